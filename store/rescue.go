package store

import (
	"context"
	"errors"
	"fmt"

	"cairn/id"
	"cairn/index"
	"cairn/manifest"
	"cairn/node"
	"cairn/pack"
	"cairn/record"
	"cairn/seal"
)

// A data pack whose adopt was given up with a part of the log is an orphan, and may hold
// what objects still need: docs/protocol.md, section 11.1, step 7.

// rescue takes orphaned data packs into the store again that hold chunks which are marked
// as damaged. It returns the orphans that nothing is needed of.
func (sc *scrubbing) rescue(ctx context.Context, orphans []stray) ([]stray, error) {
	s, out := sc.s, orphans[:0]
	keep := map[id.Pack]bool{} // by whether a pack's shards stay
	for _, x := range orphans {
		if x.kind != pack.Data {
			out = append(out, x)
			continue
		}
		stays, known := keep[x.key.Pack]
		if !known {
			found, err := sc.rescuePack(ctx, x)
			if cerr := context.Cause(ctx); cerr != nil {
				return nil, cerr
			}
			if over(err) != nil {
				return nil, err
			}
			if err != nil {
				sc.res.find(fmt.Errorf("pack %v, which no row names, holds chunks that are marked as damaged, and could not be taken in: %w", x.key.Pack, err))
			}
			if found > 0 {
				s.log.Info("a pack that the log had lost is part of the store again", "pack", x.key.Pack.String(), "chunks", found)
			}
			sc.res.Found += found
			stays = found > 0 || err != nil
			sc.state.Unsure = sc.state.Unsure || stays
			keep[x.key.Pack] = stays
		}
		switch {
		case !stays:
			out = append(out, x)
		default:
			sc.res.Undecided++ // of what is named by now the next pass knows nothing
		}
	}
	return out, nil
}

// orphanPack is an orphaned pack being opened.
type orphanPack struct {
	h       pack.Header // common
	entries []pack.Entry
	wanted  int // entries of chunks that are marked as damaged
	w       *whole
	places  []record.Place // of the shards that were read
	bad     []orphanShard  // of those that are not what was written, as far as that is seen
	opened  *pack.Opened
	enc     *pack.Encoded
}

type orphanShard struct {
	m *member
	k node.Key
}

func (o *orphanPack) release() {
	if o.enc != nil {
		o.enc.Release()
	}
	if o.opened != nil {
		o.opened.Release()
	}
	if o.w != nil {
		o.w.release()
	}
}

// rescuePack takes one pack in, and returns how many chunks are not damaged any more.
// 0: nothing is needed of it, or too little is left of it for good.
func (sc *scrubbing) rescuePack(ctx context.Context, x stray) (int, error) {
	s := sc.s
	var h pack.Header
	if err := s.inTime(ctx, x.m, func() error {
		_, got, err := x.m.st.Stat(ctx, x.key)
		h = got
		return err
	}); err != nil {
		return 0, err
	}
	o := &orphanPack{h: h.Common()}
	defer o.release()
	if !h.MetaCoded {
		// Its directory stands in each shard: most orphans hold nothing that is needed.
		head := make([]byte, h.SliceOffset())
		err := s.inTime(ctx, x.m, func() error { return x.m.st.Read(ctx, x.key, 0, head) })
		if err == nil {
			var meta pack.Meta
			if meta, err = s.coder.OpenMeta(h, h.InlineMeta(head)); err == nil {
				if n, err := s.wanted(meta.Entries); n == 0 || err != nil {
					return 0, err
				}
			}
		}
		if err != nil && !errors.Is(err, node.ErrDamaged) && !errors.Is(err, pack.ErrDamaged) {
			return 0, err
		} // one that is damaged tells nothing: the others may
	}
	// From the first byte that is written until it is logged nobody else gives shards places.
	if err := sc.hold(ctx); err != nil {
		return 0, err
	}
	defer func() {
		if len(sc.batch) == 0 {
			sc.letGo()
		}
	}()
	left, err := s.openOrphan(ctx, o)
	if err != nil {
		if left < int(o.h.K) {
			return 0, nil // whoever asks, too few of its shards are left
		}
		return 0, err
	}
	if o.wanted, err = s.wanted(o.entries); o.wanted == 0 || err != nil {
		return 0, err
	}
	sc.pace.did(uint64(len(o.places)) * uint64(o.h.ShardLen()))
	if err := s.adoptOrphan(ctx, o); err != nil {
		return 0, err
	}
	return o.wanted, nil
}

// wanted counts the chunks that are marked as damaged.
func (s *Store) wanted(entries []pack.Entry) (n int, err error) {
	err = s.view(func(r index.Reader) error {
		for _, e := range entries {
			row, err := r.Chunk(e.Realm, e.Chunk)
			if err != nil && !errors.Is(err, index.ErrNotFound) {
				return err
			}
			if err == nil && row.State == index.Damaged {
				n++
			}
		}
		return nil
	})
	return n, err
}

// openOrphan puts a pack together of which no digest is logged. Its meta must open, and
// every chunk in it, with its ID; when one does not, each shard in turn is left out.
// left is how many of its shards there may be, at most.
func (s *Store) openOrphan(ctx context.Context, o *orphanPack) (left int, err error) {
	g := geometry{pack: o.h.Pack, k: int(o.h.K), m: int(o.h.M), slice: int(o.h.SliceLen), body: o.h.SliceOffset(), size: o.h.ShardLen()}
	const most = 4 << 20 // the longest chunk that is cut
	if o.w, err = s.newWhole(ctx, g, weigh(most)); err != nil {
		return g.k, err
	}
	buf := s.chunks.get(most)
	defer s.chunks.put(buf)
	for without := -1; without < g.k+g.m; without++ {
		left, err = s.readOrphan(ctx, o, without)
		if err == nil {
			err = s.checkOrphan(o, buf)
		}
		if err == nil || context.Cause(ctx) != nil || errors.Is(err, id.ErrNewer) || without < 0 && left < g.k {
			return left, err
		}
		if o.opened != nil {
			o.opened.Release()
			o.opened = nil
		}
	}
	return left, err
}

// readOrphan reads what shards there are, but for one, and puts the pack together.
func (s *Store) readOrphan(ctx context.Context, o *orphanPack, without int) (left int, err error) {
	w, g := o.w, o.w.g
	o.places, o.bad = o.places[:0], nil
	clear(w.shards)
	have := make([]bool, g.k+g.m)
	perhaps := false // a node that cannot be asked may have another
	there := 0       // shards that are there, whatever they are
	var errs []error
	for _, m := range s.members.Load().all {
		if !m.readable() {
			perhaps = true
			continue
		}
		for i := range g.k + g.m {
			k := node.Key{Pack: g.pack, Index: uint8(i)}
			if i == without {
				o.bad = append(o.bad, orphanShard{m, k})
			}
			if have[i] || i == without {
				continue
			}
			var info node.Info
			err := s.inTime(ctx, m, func() (err error) {
				got, _, err := m.st.Stat(ctx, k)
				info = got
				return err
			})
			if err == nil {
				err = s.readOrphanShard(ctx, o, m, k, i)
			}
			if cerr := context.Cause(ctx); cerr != nil {
				return g.k, cerr
			}
			if !errors.Is(err, node.ErrNotFound) {
				there++
			}
			switch {
			case errors.Is(err, node.ErrNotFound):
			case err != nil:
				perhaps = perhaps || !lostForGood(err)
				if lostForGood(err) {
					o.bad = append(o.bad, orphanShard{m, k})
				}
				errs = append(errs, err)
			default:
				have[i] = true
				o.places = append(o.places, record.Place{Node: m.info.ID, Index: uint8(i), Instance: info.Instance, Digest: w.digests[i]})
			}
		}
	}
	if left = there; perhaps || without >= 0 {
		left = g.k + g.m
	}
	if o.opened, err = w.assemble(); err != nil {
		return left, errors.Join(append(errs, err)...)
	}
	return left, nil
}

// readOrphanShard reads one shard. Its digest is what is computed from it: that it is
// what was written its chunks say.
func (s *Store) readOrphanShard(ctx context.Context, o *orphanPack, m *member, k node.Key, i int) error {
	w, g := o.w, o.w.g
	var slice []byte
	if i < g.k {
		slice = w.stream[i*g.slice : (i+1)*g.slice : (i+1)*g.slice]
	} else {
		slice = s.chunks.get(g.slice)
		w.parity = append(w.parity, slice)
	}
	head := w.heads[i*g.body : (i+1)*g.body : (i+1)*g.body]
	if err := s.readFrom(ctx, m, k, 0, head); err != nil {
		return err
	}
	if err := s.readFrom(ctx, m, k, int64(len(head)), slice); err != nil {
		return err
	}
	sh := pack.Shard{Head: head, Slice: slice}
	h, err := pack.ParseHeader(head)
	if err == nil && h.Common() != o.h {
		err = fmt.Errorf("shard %v on node %s: %w", k, m.info.Name, errOtherBytes)
	}
	if err == nil {
		err = h.CheckBody(sh)
	}
	if err != nil {
		return fmt.Errorf("%w: %w", errOtherBytes, err)
	}
	w.shards[i], w.digests[i] = sh, s.coder.Digest(g.pack, uint8(i), sh)
	return nil
}

// checkOrphan opens every chunk of a pack and computes its ID.
func (s *Store) checkOrphan(o *orphanPack, buf []byte) error {
	o.entries = o.opened.Meta.Entries
	for _, e := range o.entries {
		if err := s.verifyChunk(buf, index.ChunkRow{Entry: e}, index.Resident{Realm: e.Realm, Chunk: e.Chunk}, o.opened.Payload); err != nil {
			return fmt.Errorf("chunk at %d: %w", e.Offset, err)
		}
	}
	return nil
}

// adoptOrphan makes the pack as wide as it was meant to be, and part of the store.
func (s *Store) adoptOrphan(ctx context.Context, o *orphanPack) (err error) {
	if o.enc, err = s.coder.Rebuild(o.opened); err != nil {
		return err
	}
	g, set := o.w.g, s.members.Load()
	a := &record.Adopt{In: o.entries[0].Realm, Pack: g.pack, K: uint8(g.k), M: uint8(g.m), Slice: uint32(g.slice), Size: uint32(g.size), Body: uint32(g.body),
		Writer: o.h.Writer, Counter: o.h.Counter, Entries: o.entries}
	// Two shards on one node survive one loss less: one of them is put elsewhere.
	on := map[id.Node]bool{}
	good := make([]*record.Place, g.k+g.m)
	for i := range o.places {
		p := &o.places[i]
		if o.enc.Digests[p.Index] == p.Digest && good[p.Index] == nil && !on[p.Node] {
			good[p.Index], on[p.Node] = p, true
			g.places = append(g.places, *p)
		}
	}
	for _, p := range o.places {
		if o.enc.Digests[p.Index] != p.Digest {
			o.bad = append(o.bad, orphanShard{set.byID[p.Node], node.Key{Pack: g.pack, Index: p.Index}})
		}
	}
	// What was not written gives way: the pack was put together without it.
	for _, b := range o.bad {
		if !on[b.m.info.ID] {
			if err := s.giveWay(ctx, b.m, b.k); err != nil && context.Cause(ctx) != nil {
				return context.Cause(ctx)
			}
		}
	}
	to, keep, _ := s.elsewhere(set, g, pack.Data, nil)
	for i := range good {
		if good[i] != nil {
			a.Shards = append(a.Shards, *good[i])
			continue
		}
		place, err := s.placeShard(ctx, g.pack, uint8(i), o.enc.Shards[i], o.enc.Digests[i], to, &keep)
		if err != nil {
			return err
		}
		a.Shards = append(a.Shards, place)
	}
	lists, err := s.orphanLists(o)
	if err != nil {
		return err
	}
	return s.writer.submit(context.WithoutCancel(ctx), &submission{decide: func(d *decision) (func() error, error) {
		if _, err := d.round.Pack(g.pack); !errors.Is(err, index.ErrNotFound) {
			if err != nil {
				return nil, &fatalError{err}
			}
			return nil, fmt.Errorf("%w: the pack is part of the store already", ErrRetry)
		}
		if err := d.reachable([]*record.Adopt{a}); err != nil {
			return nil, err
		}
		d.coming = map[id.Chunk]bool{}
		for _, e := range a.Entries {
			d.coming[e.Chunk] = true
		}
		var made []*record.List // of lists whose rows it makes
		for _, l := range lists {
			row, err := d.round.Chunk(l.In, l.Chunk)
			if err == nil && !row.Unknown() {
				continue
			}
			if err != nil && !errors.Is(err, index.ErrNotFound) {
				return nil, &fatalError{err}
			}
			for _, c := range l.Children {
				if _, err := d.round.Chunk(l.In, c); errors.Is(err, index.ErrNotFound) && !d.coming[c] {
					return nil, fmt.Errorf("%w: a list in it names chunks that are not there", ErrRetry)
				} else if err != nil && !errors.Is(err, index.ErrNotFound) {
					return nil, &fatalError{err}
				}
			}
			made = append(made, l)
		}
		return func() error {
			if err := d.emit(a); err != nil {
				return err
			}
			for _, l := range made {
				rec := *l
				var err error
				if rec.Before, err = d.counts(l.In, l.Children); err != nil {
					return err
				}
				if err := d.emit(&rec); err != nil {
					return err
				}
			}
			return nil
		}, nil
	}})
}

// orphanLists reads the list chunks of an opened pack.
func (s *Store) orphanLists(o *orphanPack) (out []*record.List, err error) {
	for _, e := range o.entries {
		if e.Kind != seal.List {
			continue
		}
		realm, err := s.realm(e.Realm)
		if err != nil {
			return nil, err
		}
		plain, err := realm.sealer.Open(nil, e.Info, o.opened.Payload[e.Offset:e.End()])
		if err != nil {
			return nil, err
		}
		refs, err := manifest.ReadList(plain)
		if err != nil {
			return nil, err
		}
		l := &record.List{In: e.Realm, Chunk: e.Chunk}
		for _, r := range refs {
			l.Children = append(l.Children, r.Chunk)
		}
		out = append(out, l)
	}
	return out, nil
}
