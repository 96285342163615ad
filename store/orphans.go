package store

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"cairn/id"
	"cairn/index"
	"cairn/node"
	"cairn/pack"
	"cairn/record"
)

// What nodes hold beside what the index names is found and removed as
// docs/protocol.md, section 11.1, says.

const (
	listPage = 4 << 10 // shards of a node that are listed, and looked up, at a time
	// strayBatch is how many shards that no row names are judged at a time, each
	// batch with a proof of the index and a log pack of its own.
	strayBatch = 16 << 10
)

// stray is a shard that a node holds and that the index did not name there when it
// was looked up behind the list.
type stray struct {
	m    *member
	key  node.Key
	inst id.Instance
	size uint64
	// Of its header, once its node was asked for it:
	h       pack.Header // common
	kind    pack.Kind
	retired bool   // its writer is of an older epoch
	counter uint64 // its writer's
	seq     uint64 // of a log pack
	// The header is rotten: nothing can be made of the shard any more, whosever it was.
	rotten bool
}

// over reports whether a pack that the index does not know can never become part of
// the store. low is the writer's low-water counter, and a log pack has become durable
// behind it; head is the sequence of the newest.
func (x *stray) over(low, head uint64) bool {
	if x.rotten {
		return true // if its pack is on its way, a repair makes it anew
	}
	if x.kind == pack.Log {
		return x.seq <= head // another pack has its place in the chain
	}
	return x.retired || x.counter < low
}

// compare lists what each node holds, looks it up in the index, and removes what is
// named nowhere and never will be. cursor is for the notes. What was judged before it
// was known what is needed is judged again.
func (sc *scrubbing) compare(ctx context.Context, cursor id.Pack) error {
	sc.lost = rescued{wanted: map[chunkKey]bool{}, waiting: map[id.Pack]*waitingPack{}}
	for {
		sc.lost.learned, sc.lost.left = false, false
		if err := sc.compareOnce(ctx, cursor); err != nil {
			return err
		}
		if !sc.lost.learned {
			break
		}
	}
	for _, w := range sc.lost.waiting {
		sc.res.find(fmt.Errorf("pack %v, which no row names, holds a list that is marked as damaged: %d of the chunks that it names are nowhere", w.h.Pack, len(w.missing)))
	}
	sc.state.Unsure = sc.state.Unsure || sc.lost.left || len(sc.lost.waiting) > 0
	return nil
}

func (sc *scrubbing) compareOnce(ctx context.Context, cursor id.Pack) error {
	s, r := sc.s, sc.res
	// Of what stays nothing is remembered: it is counted by each run that comes here.
	r.Foreign, r.ForeignBytes, r.Undecided, r.Renewed, r.NotListed = 0, 0, 0, 0, 0
	var found []stray
	for _, m := range s.members.Load().all {
		if !m.readable() {
			r.NotListed++
			r.find(fmt.Errorf("not listed: node %s is not there", m.info.Name))
			continue
		}
		for after := (node.Key{}); ; {
			began := time.Now()
			page, err := s.listShards(ctx, m, after)
			if cerr := context.Cause(ctx); cerr != nil {
				return cerr
			}
			if err != nil {
				m.noteRead(err, s.now())
				r.NotListed++
				r.find(fmt.Errorf("not listed: node %s: %w", m.info.Name, err))
				break
			}
			// Behind the list: what it shows may have become part of the store meanwhile,
			// and what became part of it before is in the index.
			if found, err = sc.unnamed(found, m, page); err != nil {
				return err
			}
			if len(found) >= strayBatch {
				if err := sc.judge(ctx, found, cursor); err != nil {
					return err
				}
				found = found[:0]
			}
			if len(page) < listPage {
				break
			}
			after = page[len(page)-1].Key
			sc.pace.due += time.Since(began) // as long as it has kept everyone from the processor
			if err := sc.pace.pause(ctx); err != nil {
				return err
			}
		}
	}
	return sc.judge(ctx, found, cursor)
}

// listShards is one page of a member's list. One that does not go forward is none.
func (s *Store) listShards(ctx context.Context, m *member, after node.Key) ([]node.Info, error) {
	a := ask(ctx, s, []*member{m}, func(ctx context.Context, m *member) ([]node.Info, error) {
		return m.st.List(ctx, after, listPage)
	})[m.info.ID]
	if a.err != nil {
		return nil, a.err
	}
	for i := range a.v {
		if k := a.v[i].Key; compareKeys(after, k) >= 0 {
			return nil, fmt.Errorf("%w: the list of shards does not go forward", node.ErrDamaged)
		}
		after = a.v[i].Key
	}
	return a.v, nil
}

func compareKeys(a, b node.Key) int {
	return cmp.Or(bytes.Compare(a.Pack[:], b.Pack[:]), cmp.Compare(a.Index, b.Index))
}

// unnamed appends the shards of a page that no row names on their node.
func (sc *scrubbing) unnamed(found []stray, m *member, page []node.Info) ([]stray, error) {
	err := sc.s.view(func(rd index.Reader) error {
		for _, info := range page {
			if !info.Deleted.IsZero() {
				continue
			}
			row, err := rd.Pack(info.Key.Pack)
			if err != nil && !errors.Is(err, index.ErrNotFound) {
				return err
			}
			known := err == nil
			if known && len(row.Shards) == 0 {
				continue // the log's newest pack, whose places its successor names
			}
			at := placeOn(row.Shards, m.info.ID, info.Key.Index)
			if at == nil {
				found = append(found, stray{m: m, key: info.Key, inst: info.Instance, size: uint64(info.Size)})
			} else if at.Instance != info.Instance {
				sc.res.Renewed++
			}
		}
		return nil
	})
	return found, err
}

// placeOn is the place of a shard on a node, nil for none.
func placeOn(places []record.Place, n id.Node, index uint8) *record.Place {
	i := slices.IndexFunc(places, func(p record.Place) bool { return p.Node == n && p.Index == index })
	if i < 0 {
		return nil
	}
	return &places[i]
}

// judge tells of strays which are orphans and which are copies of shards that lie
// elsewhere, and removes them.
func (sc *scrubbing) judge(ctx context.Context, found []stray, cursor id.Pack) error {
	s := sc.s
	found, err := sc.headers(ctx, found)
	if err != nil || len(found) == 0 {
		return err
	}
	low := s.packs.lowWater()
	if !sc.opt.DryRun {
		// Of a pack below the low-water mark nobody waits for an answer any more. But
		// that answer may have been that nothing is known: a log pack that adopts it may
		// lie on some nodes and be the tail of the next start. Behind one that is durable
		// it never is. And whoever was taken over makes none durable.
		if err := sc.settle(ctx, cursor); err != nil {
			sc.res.Undecided += len(found)
			sc.state.Unsure = true
			sc.res.find(fmt.Errorf("what no row names was left alone: %w", err))
			return over(err)
		}
	}
	// And what was adopted before is in the index by now.
	orphans, copies, err := sc.lookUp(found, low)
	if err != nil {
		return err
	}
	if len(orphans)+len(copies) > 0 && !sc.opt.DryRun {
		// A row that went in silence makes an orphan of what it named. The proof is of
		// what was just read.
		if err := s.proveIndex(ctx); err != nil {
			return err
		}
	}
	var rotten []stray
	orphans = slices.DeleteFunc(orphans, func(x stray) bool {
		if x.rotten {
			rotten = append(rotten, x)
		}
		return x.rotten
	})
	if !sc.opt.DryRun {
		if orphans, err = sc.rescue(ctx, orphans); err != nil {
			return err
		}
	}
	orphans = append(sc.keepData(orphans), rotten...)
	for i := range orphans {
		x := &orphans[i]
		if sc.remove(ctx, x) {
			sc.res.Orphans++
			sc.res.OrphanBytes += x.size
		}
		if err := context.Cause(ctx); err != nil {
			return err
		}
	}
	return sc.thin(ctx, copies)
}

// keepData leaves the orphaned data packs alone as long as something that was given up
// of the log is not settled: a chunk whose row names another pack may lie in one of them
// only, and nothing marks it before that other pack is read.
func (sc *scrubbing) keepData(orphans []stray) []stray {
	if sc.settled {
		return orphans
	}
	n := len(orphans)
	orphans = slices.DeleteFunc(orphans, func(x stray) bool { return x.kind == pack.Data })
	sc.res.Undecided += n - len(orphans)
	return orphans
}

// headers asks the nodes for the headers of strays, and returns those of packs that
// this store wrote.
func (sc *scrubbing) headers(ctx context.Context, found []stray) ([]stray, error) {
	s, out := sc.s, found[:0]
	for i := range found {
		x := found[i]
		if x.m.hangs() { // it has been waited for once
			sc.res.Undecided++
			sc.state.Unsure = true
			continue
		}
		var (
			info node.Info
			h    pack.Header
			mine bool
		)
		err := s.inTime(ctx, x.m, func() (err error) {
			i, got, err := x.m.st.Stat(ctx, x.key)
			if err != nil {
				return err
			}
			ok, err := s.wrote(ctx, x.m, got)
			if err == nil {
				info, h, mine = i, got, ok
			}
			return err
		})
		if cerr := context.Cause(ctx); cerr != nil {
			return nil, cerr
		}
		switch {
		case errors.Is(err, node.ErrNotFound) || err == nil && info.Instance != x.inst:
			continue // it is gone, and what is there now is not what was listed
		case errors.Is(err, node.ErrDamaged) && !errors.Is(err, node.ErrUnavailable):
			x.rotten = true
			out = append(out, x)
			continue
		case err != nil:
			x.m.noteRead(err, s.now())
			sc.res.Undecided++
			sc.state.Unsure = true
			sc.res.find(fmt.Errorf("what no row names, on node %s: %w", x.m.info.Name, err))
			continue
		case !mine:
			sc.res.Foreign++
			sc.res.ForeignBytes += x.size
			sc.res.find(fmt.Errorf("shard %v on node %s was not written by this store: left alone", x.key, x.m.info.Name))
			continue
		}
		x.h, x.kind, x.retired, x.counter, x.seq = h.Common(), h.Kind, h.Epoch < s.auth.Epoch, h.Counter, h.Seq
		if !x.retired && (h.Epoch != s.auth.Epoch || h.Writer != s.auth.Writer) {
			sc.res.Undecided++ // of a gateway that has taken over, or a header that lies
			continue
		}
		out = append(out, x)
	}
	return out, nil
}

// wrote reports whether a shard is of a pack that this store wrote: of this writer, or
// with meta that opens under the store's keys. Meta that is coded with the pack, or
// that is damaged, proves nothing; then the header is believed.
func (s *Store) wrote(ctx context.Context, m *member, h pack.Header) (bool, error) {
	if h.MetaCoded || h.Epoch == s.auth.Epoch && h.Writer == s.auth.Writer {
		return true, nil
	}
	head := make([]byte, h.SliceOffset())
	err := m.st.Read(ctx, node.Key{Pack: h.Pack, Index: h.Index}, 0, head)
	if errors.Is(err, node.ErrDamaged) {
		return true, nil
	}
	if err != nil {
		return false, err
	}
	_, err = s.coder.OpenMeta(h, h.InlineMeta(head))
	if errors.Is(err, id.ErrNewer) {
		return false, err
	}
	return err == nil, nil
}

// settle makes a log pack durable, which notes how far the pass is.
func (sc *scrubbing) settle(ctx context.Context, cursor id.Pack) error {
	sc.mark(cursor)
	return sc.s.noteScrub(ctx, sc.opt.Deep, sc.state, false)
}

// lookUp is the last word of the index on strays: which are of packs that it does not
// know and that are over, and which are copies. What is named by now is neither.
func (sc *scrubbing) lookUp(found []stray, low uint64) (orphans, copies []stray, err error) {
	undecided := 0
	err = sc.s.view(func(rd index.Reader) error {
		head, err := rd.Head()
		if err != nil {
			return err
		}
		losses, err := rd.Losses()
		if err != nil {
			return err
		}
		past, err := snapshotsPast(rd)
		if err != nil {
			return err
		}
		// What is left of log packs that were given up leads past them, should the index be
		// lost before two snapshots are behind.
		needed := func(x stray) bool {
			return x.kind == pack.Log && slices.ContainsFunc(losses, func(l Loss) bool { return !l.End() && l.From <= x.seq && x.seq <= l.To && l.To > past })
		}
		for _, x := range found {
			row, err := rd.Pack(x.key.Pack)
			switch {
			case errors.Is(err, index.ErrNotFound) && (needed(x) || x.rotten && !sc.settled), err == nil && x.rotten:
				undecided++
			case errors.Is(err, index.ErrNotFound) && x.over(low, head.Seq):
				orphans = append(orphans, x)
			case errors.Is(err, index.ErrNotFound):
				undecided++
			case err != nil:
				return err
			case len(row.Shards) > 0 && placeOn(row.Shards, x.m.info.ID, x.key.Index) == nil:
				copies = append(copies, x)
			}
		}
		return nil
	})
	sc.res.Undecided += undecided
	return orphans, copies, err
}

// thin removes copies of shards that lie elsewhere, of packs of which every shard is
// where the index says, and right. Nobody gives a shard a new place meanwhile.
func (sc *scrubbing) thin(ctx context.Context, copies []stray) error {
	slices.SortFunc(copies, func(a, b stray) int { return compareKeys(a.key, b.key) })
	for len(copies) > 0 {
		p, n := copies[0].key.Pack, 1
		for n < len(copies) && copies[n].key.Pack == p {
			n++
		}
		if err := sc.thinOne(ctx, p, copies[:n]); err != nil {
			return err
		}
		if err := sc.pace.pause(ctx); err != nil {
			return err
		}
		copies = copies[n:]
	}
	return nil
}

// thinOne is thin of the copies that one pack has.
func (sc *scrubbing) thinOne(ctx context.Context, p id.Pack, copies []stray) error {
	if err := sc.hold(ctx); err != nil {
		return err
	}
	defer sc.letGo()
	l, err := sc.s.look(ctx, p, false)
	if err != nil {
		return err
	}
	if l == nil {
		sc.res.Undecided += len(copies) // the pack was dropped: orphans of the next pass
		return nil
	}
	sc.pace.did(l.bytes)
	// What is missing elsewhere might still be had from here.
	whole := l.dead || len(l.bad)+len(l.notAsked) == 0 && l.shards() == l.g.k+l.g.m
	places := l.row.Shards
	l.release()
	for i := range copies {
		x := &copies[i]
		switch {
		case len(places) == 0 || placeOn(places, x.m.info.ID, x.key.Index) != nil:
		case !whole:
			sc.res.Undecided++
		case sc.remove(ctx, x):
			sc.res.Stale++
			sc.res.StaleBytes += x.size
		}
		if err := context.Cause(ctx); err != nil {
			return err
		}
	}
	return nil
}

// remove deletes a stray, which its node keeps for its own keep time. What it cannot
// delete stays for the next pass.
func (sc *scrubbing) remove(ctx context.Context, x *stray) bool {
	if sc.opt.DryRun {
		return true
	}
	s := sc.s
	var err error
	if !x.m.usable(s.now()) {
		err = node.ErrUnavailable
	} else {
		err = s.inTime(ctx, x.m, func() error { return x.m.st.Delete(ctx, s.auth, x.key, x.inst) })
		if err != nil && ctx.Err() == nil {
			x.m.noteError(err, s.now())
		}
	}
	if err != nil {
		sc.res.Undecided++
		sc.res.find(fmt.Errorf("not removed, from node %s: %w", x.m.info.Name, err))
	}
	return err == nil
}
