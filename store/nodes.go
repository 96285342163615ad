package store

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"cairn/id"
	"cairn/index"
	"cairn/node"
	"cairn/pack"
	"cairn/placement"
	"cairn/record"
)

// How the node set changes: docs/protocol.md, section 5.

// drainLabel is what marks a member that is being drained. It is a label, so that every
// build reads the node set; one that does not know it places shards there.
const drainLabel = "state=draining"

// maxNodeName is how long a new node's name may be, in bytes.
const maxNodeName = 63

// NewNode describes a node that is to become a member.
type NewNode struct {
	Name string
	// Weight is how much it is to hold beside others, in GiB. 0: as much as its
	// filesystem has, divided by the nodes on it.
	Weight uint32
	// Labels say where it stands: "zone=a", "rack=1", "host=b", "disk=c". Others are
	// kept, and mean nothing.
	Labels []string
}

// check holds it to the bounds, and sorts its labels.
func (n *NewNode) check() error {
	if err := CheckNodeName(n.Name); err != nil {
		return err
	}
	if len(n.Labels) > 16 {
		return fmt.Errorf("%w: %d labels, at most 16", ErrInvalid, len(n.Labels))
	}
	n.Labels = slices.Clone(n.Labels)
	slices.Sort(n.Labels)
	for i, l := range n.Labels {
		name, value, ok := strings.Cut(l, "=")
		if !ok || name == "" || value == "" || len(l) > 128 || strings.ContainsFunc(l, func(r rune) bool { return r <= ' ' || r == 0x7f || r == 0xfffd }) {
			return fmt.Errorf("%w: label %.80q: a label is NAME=VALUE of at most 128 bytes, without spaces", ErrInvalid, l)
		}
		if name == "state" {
			return fmt.Errorf("%w: label %.80q: what state a node is in is not told by a label", ErrInvalid, l)
		}
		if i > 0 && strings.HasPrefix(n.Labels[i-1], name+"=") {
			return fmt.Errorf("%w: label %.80q is there twice", ErrInvalid, name)
		}
	}
	return nil
}

// CheckNodeName says whether a new node may have that name: it is one of a directory,
// and of commands' arguments.
func CheckNodeName(name string) error {
	alnum := func(c byte) bool { return c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' }
	ok := name != "" && len(name) <= maxNodeName && alnum(name[0])
	for i := range len(name) {
		ok = ok && (alnum(name[i]) || strings.IndexByte("-_.", name[i]) >= 0)
	}
	if !ok || name == "lost+found" {
		return fmt.Errorf("%w: node name %.80q: a name has at most %d letters, digits, dots, hyphens and underscores, and begins with a letter or a digit", ErrInvalid, name, maxNodeName)
	}
	return nil
}

// changeNodes changes the node set: change gets the one in force and returns what it
// is to be, but for version and log nodes. The log nodes go one step towards those
// that placement chooses.
func (s *Store) changeNodes(ctx context.Context, change func(rec *record.Nodes) error) error {
	return s.writer.submit(ctx, &submission{alone: true, change: func(d *decision) (*record.Nodes, error) {
		was, err := d.round.Nodes()
		if err != nil {
			return nil, &fatalError{err}
		}
		next := was
		next.Members, next.Gone = slices.Clone(was.Members), slices.Clone(was.Gone)
		for i := range next.Members {
			next.Members[i].Labels = slices.Clone(next.Members[i].Labels)
		}
		if err := change(&next); err != nil {
			return nil, err
		}
		next.Version++
		slices.SortFunc(next.Members, func(a, b record.Member) int { return strings.Compare(a.Name, b.Name) })
		slices.SortFunc(next.Gone, func(a, b id.Node) int { return slices.Compare(a[:], b[:]) })
		set := s.newSet(next)
		next.LogNodes = stepLogNodes(was.LogNodes, set, logNodesOf(set))
		return &next, s.changeable(was, next)
	}})
}

// logNodesOf are the members of a set that placement would have keep the log.
func logNodesOf(set *memberSet) []id.Node {
	var nodes []placement.Node
	for _, m := range set.takers {
		nodes = append(nodes, m.candidate())
	}
	return placement.LogNodes(nodes, set.m())
}

// stepLogNodes brings the log nodes one closer to those that are wanted: at most one
// goes, at most one comes. Those that are no members any more go first, then those
// that are being drained.
func stepLogNodes(was []id.Node, set *memberSet, want []id.Node) []id.Node {
	next := slices.Clone(was)
	worst := func(n id.Node) int {
		switch m := set.byID[n]; {
		case m == nil:
			return 0
		case set.draining(m):
			return 1
		}
		return 2
	}
	out := -1
	for i, n := range next {
		if !slices.Contains(want, n) && (out < 0 || worst(n) < worst(next[out])) {
			out = i
		}
	}
	if out >= 0 {
		next = slices.Delete(next, out, out+1)
	}
	for _, n := range want {
		if !slices.Contains(was, n) && len(next) < len(want) {
			next = append(next, n)
			break
		}
	}
	slices.SortFunc(next, func(a, b id.Node) int { return slices.Compare(a[:], b[:]) })
	return next
}

// changeable says whether a change of the node set can be carried out now, and leaves a
// store that goes on. What it refuses, nobody was told of.
func (s *Store) changeable(was, next record.Nodes) error {
	set, also := s.newSet(was), s.newSet(next)
	if n, w := len(next.LogNodes), also.w(); n < 2*w+1 {
		return fmt.Errorf("%w: %d nodes would be left to keep the log; to survive %d losses and go on it takes %d", ErrPrecondition, n, w, 2*w+1)
	}
	m, w := min(set.m(), also.m()), max(set.w(), also.w())
	for _, n := range next.LogNodes {
		if also.byID[n] == nil {
			return fmt.Errorf("%w: a node that keeps the log would be none of the store's", ErrRetry)
		}
	}
	now := s.now()
	if up := usable(logNodes(set, also), now); len(up) <= w {
		return fmt.Errorf("%w: %d log nodes that stay take writes, %d are needed; not up: %s", ErrUnavailable, len(up), w+1, s.notUp(set.log))
	}
	if up := usable(also.log, now); len(up) < len(also.log)-m {
		return s.tooFew(also.log, len(up), len(also.log)-m, false)
	}
	there := 0
	for _, x := range also.all {
		if x.readable() {
			there++
		}
	}
	if there < len(also.all)-m {
		return fmt.Errorf("%w: %d of %d nodes are there to be told of the change, %d are needed; not up: %s", ErrUnavailable, there, len(also.all), len(also.all)-m, s.notUp(also.all))
	}
	return nil
}

// settleLogNodes changes the log nodes, one at a time, until they are those that
// placement chooses.
func (s *Store) settleLogNodes(ctx context.Context) error {
	for {
		set := s.members.Load()
		if slices.Equal(stepLogNodes(set.rec.LogNodes, set, logNodesOf(set)), set.rec.LogNodes) {
			return nil
		}
		if err := s.changeNodes(ctx, func(*record.Nodes) error { return nil }); err != nil {
			return fmt.Errorf("the nodes that keep the log: %w", err)
		}
	}
}

// welcome makes a freshly formatted node ready to become a member: it knows the store,
// and holds the promise.
func (s *Store) welcome(ctx context.Context, st node.Store) error {
	if err := st.Promise(ctx, s.auth); err != nil {
		return err
	}
	b, err := s.sealCluster(s.members.Load().rec)
	if err == nil {
		err = st.WriteFile(ctx, s.auth, node.ClusterFile, b)
	}
	if err == nil {
		err = st.WriteFile(ctx, s.auth, node.KeyringFile, s.cfg.Keyring.Marshal())
	}
	return err
}

// setNode notes which open node has a name; nil: none.
func (s *Store) setNode(name string, st node.Store) (before node.Store) {
	s.nodesMu.Lock()
	defer s.nodesMu.Unlock()
	before = s.nodes[name]
	if st == nil {
		delete(s.nodes, name)
	} else {
		s.nodes[name] = st
	}
	return before
}

// ReplaceNode puts a freshly formatted node in the place of the member with a
// name, whose node is destroyed or lost: its ID is refused from now on. Packs
// that had a shard on it are short until a repair.
func (s *Store) ReplaceNode(ctx context.Context, name string, st node.Store) error {
	leave, err := s.enter()
	if err != nil {
		return err
	}
	defer leave()
	if err := s.Replaceable(name); err != nil {
		return err
	}
	set := s.members.Load()
	old := set.byName[name]
	if err := s.welcome(ctx, st); err != nil {
		return err
	}
	before := s.setNode(name, st)
	err = s.changeNodes(ctx, func(rec *record.Nodes) error {
		if rec.Version != set.rec.Version {
			return fmt.Errorf("%w: the node set has changed", ErrRetry)
		}
		rec.Gone = append(rec.Gone, old.info.ID)
		for i := range rec.Members {
			if rec.Members[i].Name == name {
				rec.Members[i].ID = st.ID()
			}
		}
		return nil
	})
	if err != nil && !errors.Is(err, ErrUnknown) {
		s.setNode(name, before)
	}
	s.repairSoon(ByLoss)
	return err
}

// AddNode makes a freshly formatted node a member. New packs use it from then on;
// nothing that is stored moves before a run of [JobRebalance]. After an error that
// wraps [ErrUnknown] it may be a member or not: the next start knows.
func (s *Store) AddNode(ctx context.Context, n NewNode, st node.Store) error {
	leave, err := s.enter()
	if err != nil {
		return err
	}
	defer leave()
	if err := s.Addable(&n, st.ID()); err != nil {
		return err
	}
	u, err := st.Usage(ctx)
	if err != nil {
		return err
	}
	if u.LiveShards > 0 {
		return fmt.Errorf("%w: the directory holds %s; a new node begins with an empty one", ErrPrecondition, countOf(int(u.LiveShards), "shard", "shards"))
	}
	if err := s.welcome(ctx, st); err != nil {
		return err
	}
	s.setNode(n.Name, st)
	err = s.changeNodes(ctx, func(rec *record.Nodes) error {
		if err := addable(*rec, &n, st.ID()); err != nil {
			return err
		}
		rec.Members = append(rec.Members, record.Member{ID: st.ID(), Name: n.Name, Weight: n.Weight, Labels: n.Labels})
		return nil
	})
	if err != nil && !errors.Is(err, ErrUnknown) {
		s.setNode(n.Name, nil)
	}
	if err != nil {
		return err
	}
	s.log.Info("a node was added", "node", n.Name, "id", st.ID())
	s.usages(ctx, s.members.Load()) // how large it is
	if err := s.settleLogNodes(ctx); err != nil {
		s.log.Warn("a node was added, and the log stays where it was", "err", err)
	}
	return nil
}

// Addable says whether a node may become a member, and what is wrong with its
// description.
func (s *Store) Addable(n *NewNode, nid id.Node) error {
	if err := n.check(); err != nil {
		return err
	}
	return addable(s.members.Load().rec, n, nid)
}

func addable(rec record.Nodes, n *NewNode, nid id.Node) error {
	switch {
	case len(rec.Members) >= record.MaxNodes:
		return fmt.Errorf("%w: a store has at most %d nodes", ErrPrecondition, record.MaxNodes)
	case slices.ContainsFunc(rec.Members, func(m record.Member) bool { return m.Name == n.Name }):
		return fmt.Errorf("%w: there is a node %s already", ErrPrecondition, n.Name)
	case slices.ContainsFunc(rec.Members, func(m record.Member) bool { return m.ID == nid }):
		return fmt.Errorf("%w: the directory is that of another node", ErrPrecondition)
	case slices.Contains(rec.Gone, nid):
		return fmt.Errorf("%w: the directory holds a node that was replaced or removed, which is refused for ever: empty it", ErrPrecondition)
	}
	return nil
}

// DrainNode marks a member, so that new shards avoid it and a run of [JobDrain] moves
// what it holds to others; on false it takes the mark away. The mark stands in the log.
// A drain is refused when what is left could not hold what there is.
func (s *Store) DrainNode(ctx context.Context, name string, on bool) error {
	leave, err := s.enter()
	if err != nil {
		return err
	}
	defer leave()
	set := s.members.Load()
	m := set.byName[name]
	if m == nil {
		return noNode(name, set)
	}
	if set.draining(m) == on {
		return nil
	}
	if on {
		if err := s.drainable(set, m); err != nil {
			return err
		}
	}
	err = s.changeNodes(ctx, func(rec *record.Nodes) error {
		if rec.Version != set.rec.Version {
			return fmt.Errorf("%w: the node set has changed", ErrRetry)
		}
		for i := range rec.Members {
			if x := &rec.Members[i]; x.Name == name {
				x.Labels = slices.DeleteFunc(x.Labels, func(l string) bool { return l == drainLabel })
				if on {
					x.Labels = append(x.Labels, drainLabel)
				}
				slices.Sort(x.Labels)
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	return s.settleLogNodes(ctx)
}

func noNode(name string, set *memberSet) error {
	return fmt.Errorf("%w: no node is called %.80q; there are %s", ErrInvalid, name, strings.Join(memberNames(set.rec), ", "))
}

// plainLabels are the labels that somebody gave a member.
func plainLabels(labels []string) []string {
	return slices.DeleteFunc(slices.Clone(labels), func(l string) bool { return l == drainLabel })
}

// drainable says what would follow if a member were drained, when that may not be: the
// store has to go on surviving, and every pack needs as many nodes as it has shards.
func (s *Store) drainable(set *memberSet, m *member) error {
	left := len(slices.DeleteFunc(slices.Clone(set.takers), func(x *member) bool { return x == m }))
	if need := 2*set.w() + 1; left < need {
		return fmt.Errorf("%w: %s would be left; to survive %s and go on it takes %d. Add a node first: cairn nodes add",
			ErrPrecondition, countOf(left, "node", "nodes"), countOf(set.w(), "loss", "losses"), need)
	}
	wide, widest := 0, 0
	err := s.view(func(r index.Reader) error {
		return r.EachPack(func(_ id.Pack, row index.PackRow) error {
			if n := int(row.K) + int(row.M); n > left {
				wide, widest = wide+1, max(widest, n)
			}
			return nil
		})
	})
	if err != nil {
		return err
	}
	if wide > 0 {
		return fmt.Errorf("%w: %s would be left, and %s up to %d shards, which lie on as many different nodes. New packs would be %d+%d. Add a node first: cairn nodes add",
			ErrPrecondition, countOf(left, "node", "nodes"), countOf(wide, "pack has", "packs have"), widest, placement.Width(left, DefaultWidth, set.w()), set.w())
	}
	return nil
}

// RemoveNode takes a member out of the set that is being drained and on which nothing
// lies any more. Its ID is refused from now on.
func (s *Store) RemoveNode(ctx context.Context, name string) error {
	leave, err := s.enter()
	if err != nil {
		return err
	}
	defer leave()
	set := s.members.Load()
	m := set.byName[name]
	switch {
	case m == nil:
		return noNode(name, set)
	case !set.draining(m):
		return fmt.Errorf("%w: node %s is in use; first: cairn nodes drain %s", ErrPrecondition, name, name)
	}
	if err := s.settleLogNodes(ctx); err != nil {
		return err
	}
	set = s.members.Load()
	if slices.Contains(set.rec.LogNodes, m.info.ID) {
		return fmt.Errorf("%w: node %s keeps the log, and no other can take its place", ErrPrecondition, name)
	}
	// From here on nothing new comes to lie there, and when the log writer has been
	// through what it had, the index shows all that does.
	m.close(true)
	defer m.close(false)
	if err := s.writer.submit(ctx, &submission{decide: func(*decision) (func() error, error) {
		return func() error { return nil }, nil
	}}); err != nil {
		return err
	}
	n, err := s.placedOn(m)
	if err != nil {
		return err
	}
	if n > 0 {
		return fmt.Errorf("%w: %s a shard on node %s; go on with: cairn nodes drain %s", ErrPrecondition, countOf(n, "pack has", "packs have"), name, name)
	}
	err = s.changeNodes(ctx, func(rec *record.Nodes) error {
		if rec.Version != set.rec.Version {
			return fmt.Errorf("%w: the node set has changed", ErrRetry)
		}
		rec.Members = slices.DeleteFunc(rec.Members, func(x record.Member) bool { return x.Name == name })
		rec.Gone = append(rec.Gone, m.info.ID)
		return nil
	})
	if err != nil {
		return err
	}
	s.setNode(name, nil)
	s.log.Info("a node was removed", "node", name, "id", m.info.ID)
	return nil
}

// placedOn counts the packs that have a shard on a member.
func (s *Store) placedOn(m *member) (n int, err error) {
	err = s.view(func(r index.Reader) error {
		return r.EachPack(func(p id.Pack, row index.PackRow) error {
			places := row.Shards
			if len(places) == 0 && row.Kind == pack.Log {
				places = s.recall(p)
			}
			if slices.ContainsFunc(places, func(x record.Place) bool { return x.Node == m.info.ID }) {
				n++
			}
			return nil
		})
	})
	return n, err
}
