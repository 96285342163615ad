package store

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"cairn/id"
	"cairn/index"
	"cairn/keys"
	"cairn/node"
	"cairn/record"
	"cairn/seal"
)

// The cluster file says who the members are, so that a start needs no index. It
// is the encoded node-set record, sealed; docs/formats/cluster-file.md.

// sealCluster makes the cluster file of a node set.
func (s *Store) sealCluster(rec record.Nodes) ([]byte, error) {
	plain, err := record.Append(nil, &rec)
	if err != nil {
		return nil, err
	}
	return s.clusterBox().Seal(nil, plain, s.cfg.Cluster[:])
}

func (s *Store) openCluster(b []byte) (record.Nodes, error) {
	return OpenClusterFile(s.cfg.Keyring, s.cfg.Cluster, b)
}

// OpenClusterFile reads a cluster file. One that a store of a newer version wrote
// is [record.ErrNewer].
func OpenClusterFile(ring *keys.Keyring, cluster id.Cluster, b []byte) (record.Nodes, error) {
	plain, err := seal.NewBox(ring.ClusterFileKey(), nil).Open(nil, b, cluster[:])
	if err != nil {
		return record.Nodes{}, fmt.Errorf("cluster file: %w", err)
	}
	recs, err := record.Parse(0, plain)
	if err != nil {
		return record.Nodes{}, fmt.Errorf("cluster file: %w", err)
	}
	if len(recs) == 1 {
		if rec, ok := recs[0].(*record.Nodes); ok {
			return *rec, nil
		}
	}
	return record.Nodes{}, fmt.Errorf("cluster file: %w", record.ErrSyntax)
}

// newSet builds the node set of a record from the nodes that are open. Members
// that were in force before keep what is known of their health.
func (s *Store) newSet(rec record.Nodes) *memberSet {
	old := s.members.Load()
	return newMemberSet(rec, func(info record.Member) *member {
		if old != nil {
			if m := old.byID[info.ID]; m != nil {
				return m
			}
		}
		m := &member{info: info}
		st := s.nodeNamed(info.Name)
		switch {
		case st == nil:
			// "Could not ask" is no loss: the node may be as it was.
			m.reason = s.cfg.Absent[info.Name]
			if m.reason == nil {
				m.reason = fmt.Errorf("no directory of that name: %w", node.ErrMissing)
			}
			m.gone = errors.Is(m.reason, node.ErrMissing) || errors.Is(m.reason, node.ErrDamaged)
		case st.ID() != info.ID:
			m.gone, m.reason = true, fmt.Errorf("its directory holds node %v, the store knows it as %v: %w", st.ID(), info.ID, node.ErrMissing)
		default:
			m.st = st
		}
		return m
	})
}

func (s *Store) nodeNamed(name string) node.Store {
	s.nodesMu.Lock()
	defer s.nodesMu.Unlock()
	return s.nodes[name]
}

// whyNot is why a member cannot be asked.
func (m *member) whyNot() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.reason
}

// loadMembers finds the node set in force: the highest version that any node
// shows. On a first start it is the one that is about to begin.
func (s *Store) loadMembers(ctx context.Context) (*memberSet, error) {
	var (
		files []record.Nodes
		errs  []error
		none  int
	)
	s.nodesMu.Lock()
	names := make([]string, 0, len(s.nodes))
	for name := range s.nodes {
		names = append(names, name)
	}
	s.nodesMu.Unlock()
	slices.Sort(names)
	ms := make([]*member, len(names))
	for i, name := range names {
		st := s.nodeNamed(name)
		ms[i] = &member{info: record.Member{ID: st.ID(), Name: name}, st: st}
	}
	answers := ask(ctx, s, ms, func(ctx context.Context, m *member) ([]byte, error) { return m.st.ReadFile(ctx, node.ClusterFile) })
	for _, m := range ms {
		name := m.info.Name
		b, err := answers[m.info.ID].v, answers[m.info.ID].err
		if errors.Is(err, node.ErrNotFound) {
			none++
			continue
		}
		if err == nil {
			var rec record.Nodes
			if rec, err = s.openCluster(b); err == nil {
				files = append(files, rec)
				continue
			}
			if errors.Is(err, record.ErrNewer) {
				return nil, err // it is sealed, so that one is enough
			}
		}
		errs = append(errs, fmt.Errorf("node %s: %w", name, err))
	}
	// A cluster file is written only after its record was durable in both sets,
	// and it is sealed: so the highest version that any node shows is in force.
	// The first is written before the log begins.
	slices.SortFunc(files, func(a, b record.Nodes) int { return -compareVersions(a, b) })
	if len(files) > 0 && (s.cfg.Genesis == nil || files[0].Version > 1 || len(files) >= len(s.cfg.Genesis.Members)) {
		return s.newSet(files[0]), nil
	}
	if g := s.cfg.Genesis; g != nil && len(files) < len(g.Members) {
		// Not every node has its cluster file: the first start was not over. The
		// node set is what it is about to write.
		rec, err := genesisNodes(g)
		if err != nil {
			return nil, err
		}
		return s.newSet(rec), nil
	}
	if len(files) == 0 {
		err := fmt.Errorf("%w: no node shows who the members of the store are (%d nodes answer, %d of them have no cluster file); bring back the node directories", ErrUnavailable, len(names), none)
		return nil, errors.Join(append([]error{err}, errs...)...)
	}
	return s.newSet(files[0]), nil
}

func compareVersions(a, b record.Nodes) int {
	switch {
	case a.Version < b.Version:
		return -1
	case a.Version > b.Version:
		return 1
	}
	return 0
}

func memberNames(rec record.Nodes) []string {
	out := make([]string, len(rec.Members))
	for i, m := range rec.Members {
		out[i] = m.Name
	}
	return out
}

// genesisNodes is the first node set of a store.
func genesisNodes(g *Genesis) (record.Nodes, error) {
	rec := record.Nodes{Version: 1, M: uint8(g.M), Members: slices.Clone(g.Members)}
	if g.M < 1 || g.M > 4 {
		return rec, fmt.Errorf("%w: a store survives 1 to 4 losses, not %d", ErrInvalid, g.M)
	}
	if len(g.Members) < 2*g.M+1 {
		return rec, fmt.Errorf("%w: %d nodes are too few to survive %d losses and go on; at least %d are needed", ErrInvalid, len(g.Members), g.M, 2*g.M+1)
	}
	slices.SortFunc(rec.Members, func(a, b record.Member) int { return strings.Compare(a.Name, b.Name) })
	rec.LogNodes = logNodesOf(newMemberSet(rec, func(info record.Member) *member { return &member{info: info} }))
	return rec, nil
}

// spread writes the cluster file of rec to the members of set and fails unless
// at least need of them have it.
func (s *Store) spread(ctx context.Context, set *memberSet, rec record.Nodes, need int) error {
	b, err := s.sealCluster(rec)
	if err != nil {
		return err
	}
	var errs []error
	have := 0
	answers := ask(ctx, s, set.all, func(ctx context.Context, m *member) (struct{}, error) {
		return struct{}{}, m.st.WriteFile(ctx, s.auth, node.ClusterFile, b)
	})
	for _, m := range set.all {
		if err := answers[m.info.ID].err; err != nil {
			if m.readable() {
				m.noteError(err, s.now())
			}
			errs = append(errs, fmt.Errorf("node %s: %w", m.info.Name, err))
			continue
		}
		have++
	}
	if have < need {
		return fmt.Errorf("%w: the cluster file is on %d nodes, %d are needed: %w", ErrUnavailable, have, need, errors.Join(errs...))
	}
	return nil
}

// spreadCluster makes a new node set known to its members, all but m at least: the
// smaller m where the two sets have different ones.
func (s *Store) spreadCluster(ctx context.Context, old, set *memberSet) error {
	return s.spread(ctx, set, set.rec, len(set.all)-min(old.m(), set.m()))
}

// nodesRecord is the node set as the index has it.
func (s *Store) nodesRecord() (rec record.Nodes, err error) {
	err = s.view(func(r index.Reader) (err error) {
		rec, err = r.Nodes()
		return err
	})
	return rec, err
}

// Replaceable says whether a member may be replaced: only one that is lost.
func (s *Store) Replaceable(name string) error {
	set := s.members.Load()
	m := set.byName[name]
	switch {
	case m == nil:
		return fmt.Errorf("%w: no node is called %.80q; there are %s", ErrInvalid, name, strings.Join(memberNames(set.rec), ", "))
	case m.readable():
		return fmt.Errorf("%w: node %s answers and is not to be replaced", ErrPrecondition, name)
	case !m.lost():
		return fmt.Errorf("%w: node %s could not be asked, which is not the same as lost: %w", ErrPrecondition, name, m.whyNot())
	}
	return nil
}

// lost reports whether the member's storage is known to be gone.
func (m *member) lost() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.gone
}
