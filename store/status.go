package store

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"cairn/id"
	"cairn/index"
	"cairn/node"
	"cairn/pack"
	"cairn/placement"
	"cairn/record"
)

// Status says what the store is and what it survives, asking every node.
func (s *Store) Status(ctx context.Context) (Status, error) {
	set := s.members.Load()
	out := Status{Cluster: s.cfg.Cluster, Epoch: s.auth.Epoch, M: set.m(), Started: s.started}
	var nodes []placement.Node
	used := s.usages(ctx, set)
	if err := context.Cause(ctx); err != nil {
		return out, err // which says nothing of the nodes
	}
	takes := 0
	var noRoom error
	for _, m := range set.all {
		draining := set.draining(m)
		st := NodeStatus{Name: m.info.Name, ID: m.info.ID, Labels: plainLabels(m.info.Labels), Weight: m.weighs(), Draining: draining, Log: slices.Contains(set.log, m)}
		var why error
		if st.State, why = m.state(s.now()); st.State != "missing" {
			if u, err := used[m.info.ID].v, used[m.info.ID].err; err != nil {
				m.noteError(err, s.now())
				st.State, why = m.state(s.now())
				why = errors.Join(why, err)
			} else {
				st.Total, st.Free, st.Shards, st.Bytes, st.Device, st.Allowed = u.TotalBytes, u.FreeBytes, u.LiveShards, u.LiveBytes, u.Device, u.PutsAllowed
				st.Mark = u.PutMark
				if st.State == "up" && !u.PutsAllowed {
					st.State, why = "full", &node.RoomError{Why: node.ForClient, Free: u.FreeBytes, Need: u.PutMark, Dir: u.Dir}
				}
				n := m.candidate()
				if draining {
					n.State = placement.Leaving
				} else if st.Allowed {
					takes++
				}
				if !m.putFailed() { // what a dead disk still tells is not worth a copy
					nodes = append(nodes, n)
				}
			}
		}
		st.State = drainState(st.State, draining)
		if why != nil {
			st.Reason = reasonOf(m.info.Name, why)
			if errors.Is(why, node.ErrFull) {
				noRoom = cmp.Or(noRoom, why)
			}
		}
		out.Nodes = append(out.Nodes, st)
	}
	// None is replaced before enough are back: then it is no use to be told how.
	missing := 0
	for _, n := range out.Nodes {
		if n.State == "missing" {
			missing++
		}
	}
	for i := range out.Nodes {
		if n := &out.Nodes[i]; missing > set.m() && n.State == "missing" {
			n.Reason = strings.Replace(n.Reason, "if it is lost: cairn nodes replace "+n.Name,
				fmt.Sprintf("more are missing than the store survives: bring back at least %d of them, and restart the server, before any is replaced", missing-set.m()), 1)
		}
	}
	up := len(usable(set.takers, s.now()))
	if k := placement.Width(up, DefaultWidth, set.w()); k >= 1 {
		out.Width = fmt.Sprintf("%d+%d", k, set.w())
	}
	if err := s.Failure(); err != nil {
		out.Reason = err.Error()
	} else if err := s.writable(); err != nil {
		out.Reason = err.Error()
	} else {
		out.Writable = true
		if takes > set.w() {
			noRoom = nil
		}
		if noRoom = cmp.Or(s.room(node.ForClient), noRoom); noRoom != nil {
			out.NoRoom = noRoom.Error()
		}
	}
	err := s.view(func(r index.Reader) error {
		head, err := r.Head()
		if err != nil {
			return err
		}
		out.Sequence = head.Seq
		out.Losses, err = r.Losses()
		return err
	})
	if err != nil {
		return out, err
	}
	what, err := s.survival(set, nodes)
	if err != nil {
		return out, err
	}
	out.PacksShort, out.PacksLost, out.LostBytes = what.short, what.lost, what.lostBytes
	out.LogPacksLost = what.lostLog
	out.Scrubbed = s.ScrubPasses()
	if out.Ages, err = s.ScrubAges(); err != nil {
		return out, err
	}
	out.Survives = what.sentence(len(set.all), len(nodes))
	if set.raising() {
		out.RaisingTo, out.PacksToRaise = set.w(), what.raise
		out.Survives += fmt.Sprintf("; raising to m=%d: %s left", set.w(), countOf(what.raise, "pack", "packs"))
	}
	return out, nil
}

// usages asks every member that is there how it is. One that does not answer in
// time is not asked again before it has: disks hang in this call too.
func (s *Store) usages(ctx context.Context, set *memberSet) map[id.Node]answered[node.Usage] {
	used := ask(ctx, s, set.all, func(ctx context.Context, m *member) (node.Usage, error) {
		if m.hangs() {
			return node.Usage{}, fmt.Errorf("it owes other answers: %w", node.ErrUnavailable)
		}
		late := time.AfterFunc(s.cfg.Lag, func() { m.readHangs(true) })
		u, err := m.st.Usage(ctx)
		if !late.Stop() {
			m.readHangs(false)
		}
		return u, err
	})
	for _, m := range set.all {
		if a := used[m.info.ID]; a.err == nil {
			m.noteUsage(a.v)
		}
	}
	set.weigh()
	return used
}

// survival is what the store would survive from now on.
type survival struct {
	placement.Survival
	short     int // packs with a shard on a node that is not there
	lost      int // packs that too few shards can be left of
	lostBytes uint64
	lostLog   int // log packs that a rebuild of the index could need
	disks     int // that hold nodes
	raise     int // packs that were coded for fewer losses than are wanted
}

// survival asks placement. When every member is up and none was ever replaced,
// the policy decides; otherwise every pack is looked at.
func (s *Store) survival(set *memberSet, up []placement.Node) (survival, error) {
	out := survival{}
	seen := map[placement.Labels]bool{}
	there := map[id.Node]bool{}
	for _, n := range up {
		seen[n.Labels] = true
		there[n.ID] = true
	}
	out.disks = len(seen)
	takers := 0
	for _, n := range up {
		if n.State == placement.Up {
			takers++
		}
	}
	k := placement.Width(takers, DefaultWidth, set.w())
	if k < 1 {
		k = 1
	}
	promised, err := placement.Promises(up, k, min(set.w(), max(takers-k, 0)))
	if err == nil {
		out.Survival = promised
	}
	if set.raising() { // a start is without no more log nodes than m
		m := set.m()
		for _, x := range set.log {
			if !there[x.info.ID] {
				m = max(m-1, 0)
			}
		}
		out.Survival = out.Survival.Min(placement.Survival{Nodes: m, Disks: m, Hosts: m, Racks: m, Zones: m})
	}
	// While the set is what it began as, every pack is placed as a new one would be.
	if len(up) == len(set.all) && set.rec.Version == 1 && !s.scrubs.anyLost() {
		return out, nil
	}
	var known map[id.Pack]bool
	if p := s.lost.Load(); p != nil {
		known = *p
	}
	err = s.view(func(r index.Reader) error {
		past, err := snapshotsPast(r)
		if err != nil {
			return err
		}
		var failed error
		worst, n := placement.Survives(up, func(yield func(placement.Assignment) bool) {
			var a placement.Assignment
			failed = r.EachPack(func(p id.Pack, row index.PackRow) error {
				if int(row.M) < set.w() {
					out.raise++
				}
				if empty(row) {
					return nil
				}
				a.K, a.Holders = int(row.K), a.Holders[:0]
				places := row.Shards
				if len(places) == 0 {
					places = s.recall(p)
				}
				whole := 0
				if known[p] || s.scrubs.known(p) || len(places) > 0 && heldBy(places, func(n id.Node) bool { return set.byID[n] != nil }) < int(row.K) {
					if row.Live > 0 {
						out.lost++
						out.lostBytes += row.Live
					}
					if row.Kind == pack.Log && row.Seq > past {
						out.lostLog++
					}
					return nil // there is nothing left to survive, or to repair
				}
				for _, x := range places {
					if there[x.Node] {
						a.Holders = append(a.Holders, x.Node)
						whole++
					}
				}
				if whole < int(row.K)+int(row.M) {
					out.short++
				}
				if len(places) > 0 && !yield(a) {
					return errStop
				}
				return nil
			})
		})
		if n > 0 {
			out.Survival = out.Survival.Min(worst)
		}
		if errors.Is(failed, errStop) {
			failed = nil
		}
		return failed
	})
	return out, err
}

var errStop = errors.New("stop")

// heldBy is how many different shards have a place on a node that counts.
func heldBy(places []record.Place, counts func(id.Node) bool) int {
	var held [pack.MaxWidth]bool
	n := 0
	for _, x := range places {
		if counts(x.Node) && !held[x.Index] {
			held[x.Index] = true
			n++
		}
	}
	return n
}

// sentence says it so that a count of nodes never stands alone: six directories
// on one disk survive no disk.
func (w survival) sentence(members, up int) string {
	out := ""
	switch {
	case w.Nodes < 0:
		out = "something cannot be read already"
	case w.Nodes == 0:
		out = "no further lost directory"
	default:
		out = "bit rot and " + countOf(w.Nodes, "lost directory", "lost directories")
	}
	switch {
	case w.disks == 1:
		out += fmt.Sprintf("; 0 disks: all %d nodes are on one device", up)
	default:
		out += "; " + countOf(max(w.Disks, 0), "disk", "disks")
	}
	if members > up {
		out += fmt.Sprintf("; %s not there", countOf(members-up, "node is", "nodes are"))
	}
	if w.lost > 0 {
		out = countOf(w.lost, "pack is", "packs are") + " lost for good; of the others: " + out
	}
	if w.lostLog > 0 {
		out += fmt.Sprintf("; the index: %s lost, and until two snapshots are behind, it cannot be made anew", countOf(w.lostLog, "log pack is", "log packs are"))
	}
	if w.short > 0 {
		out += fmt.Sprintf("; %s short of a shard", countOf(w.short, "pack is", "packs are"))
	}
	return out
}

func countOf(n int, one, many string) string {
	if n == 1 {
		return "1 " + one
	}
	return fmt.Sprintf("%d %s", n, many)
}
