package store

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"

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

// orphan is what is there of an orphaned data pack under one common header. Whoever lies
// in a header speaks for what it holds itself.
type orphan struct {
	h      pack.Header // common
	strays []stray
	state  orphanState
}

type orphanState uint8

const (
	unread  orphanState = iota
	useless             // it opens, and nothing in it is wanted so far
	gone                // too few of its shards are left for good, whoever answers
	waits               // for children of lists in it
	taken
	left // it may hold what is wanted, and could not be taken in
)

// rescued is what a rescue knows beyond the index, for as long as one comparison takes.
type rescued struct {
	// wanted are chunks without a row that lists name which are wanted themselves.
	wanted  map[chunkKey]bool
	waiting map[id.Pack]*waitingPack
	held    int  // keys in waiting
	learned bool // in this round: what was judged before may be needed
	left    bool // what may be needed is an orphan still
}

// waitingPack is an orphan that can be taken in once the children of its lists are there.
type waitingPack struct {
	h       pack.Header
	missing []chunkKey // that have no row and are not in it
	has     []chunkKey
	cost    adoptCost
}

// adoptCost is what one submission may have of the index's rows at most.
type adoptCost struct{ keys, bytes int }

func (c adoptCost) plus(d adoptCost) adoptCost { return adoptCost{c.keys + d.keys, c.bytes + d.bytes} }

func (c adoptCost) fits() bool { return c.keys <= submissionKeys && c.bytes <= submissionRows }

// costOf is what the index writes for an adopt and the lists that come with it.
func costOf(entries int, lists []*record.List) (c adoptCost) {
	children := 0
	for _, l := range lists {
		children += len(l.Children)
	}
	return adoptCost{keys: 8 + 5*entries + 2*children, bytes: 1<<10 + 400*entries + 150*children}
}

// maxRescue is how many chunks a rescue remembers, some 100 bytes each.
const maxRescue = 1 << 17

// rescue takes orphaned data packs into the store again that hold what is wanted: chunks
// that are marked as damaged, and the children of lists that are. It returns the orphans
// that nothing is needed of. While one that may be needed is left over none is removed.
func (sc *scrubbing) rescue(ctx context.Context, orphans []stray) ([]stray, error) {
	out, all := group(orphans)
	right := map[id.Pack]*orphan{} // of packs of which one header is proved: another one is not
	for again := true; again; {
		before := len(sc.lost.wanted)
		for _, o := range all {
			by := right[o.h.Pack]
			if by != nil && by != o || o.state != unread && o.state != useless || sc.lost.waiting[o.h.Pack] != nil {
				continue
			}
			if err := sc.judgeOrphan(ctx, o); err != nil {
				return nil, err
			}
			if o.state != gone && o.state != left {
				right[o.h.Pack] = o
			}
		}
		took, err := sc.takeIn(ctx)
		if err != nil {
			return nil, err
		}
		again = len(sc.lost.wanted) > before
		sc.lost.learned = sc.lost.learned || again || took > 0
	}
	for _, o := range all {
		if by := right[o.h.Pack]; by != nil {
			o.state = by.state
		}
		sc.lost.left = sc.lost.left || o.state == left
	}
	// Where nothing was given up of the log no list is without what it names.
	spare := !sc.losses || !sc.lost.left && len(sc.lost.waiting) == 0
	for _, o := range all {
		if spare && (o.state == useless || o.state == gone) {
			out = append(out, o.strays...)
			continue
		}
		sc.res.Undecided += len(o.strays) // of what is named by now the next pass knows nothing
	}
	return out, nil
}

// group divides orphans into data packs, by their common headers, and others.
func group(orphans []stray) (others []stray, all []*orphan) {
	by := map[pack.Header]*orphan{}
	for _, x := range orphans {
		if x.kind != pack.Data {
			others = append(others, x)
			continue
		}
		o := by[x.h]
		if o == nil {
			o = &orphan{h: x.h}
			by[x.h] = o
			all = append(all, o)
		}
		o.strays = append(o.strays, x)
	}
	// Of several headers of a pack that of which there is most comes first.
	slices.SortFunc(all, func(a, b *orphan) int {
		return cmp.Or(bytes.Compare(a.h.Pack[:], b.h.Pack[:]), cmp.Compare(len(b.strays), len(a.strays)), bytes.Compare(a.h.Append(nil), b.h.Append(nil)))
	})
	return others, all
}

// judgeOrphan finds out what there is to do with an orphan. What nothing needs is known of
// a header that its meta has proved, and of no other.
func (sc *scrubbing) judgeOrphan(ctx context.Context, o *orphan) error {
	err := sc.readWanted(ctx, o)
	if cerr := context.Cause(ctx); cerr != nil {
		return cerr
	}
	if err != nil {
		o.state = left
		sc.res.find(fmt.Errorf("pack %v, which no row names, may hold chunks that are marked as damaged, and could not be taken in: %w", o.h.Pack, err))
	}
	return over(err)
}

func (sc *scrubbing) readWanted(ctx context.Context, x *orphan) error {
	s := sc.s
	meta, err := s.directory(ctx, x)
	if err != nil {
		return err
	}
	if meta != nil { // most orphans hold nothing that is needed
		if n, err := sc.wanted(meta.Entries); n == 0 || err != nil {
			x.state = useless
			return err
		}
	}
	o := &orphanPack{h: x.h}
	defer o.release()
	if meta == nil && wholeMemory(o.geometry())+weigh(orphanChunk) > s.mem.repair.Limit() {
		return fmt.Errorf("%w: nothing proves its header, and it takes more memory than there is", ErrDamaged)
	}
	if err := sc.hold(ctx); err != nil { // see takeIn
		return err
	}
	defer sc.letGoIdle()
	there, err := s.openOrphan(ctx, o)
	if err != nil {
		if there < int(o.h.K) {
			x.state = gone // whoever asks, too few of its shards are left
			return nil
		}
		return err
	}
	sc.pace.did(uint64(len(o.places)) * uint64(o.h.ShardLen()))
	if o.wanted, err = sc.wanted(o.entries); o.wanted == 0 || err != nil {
		x.state = useless
		return err
	}
	if err := sc.onlyCopies(o); err != nil {
		return err
	}
	missing, err := sc.needsFirst(o)
	if err != nil {
		return err
	}
	w := &waitingPack{h: x.h, missing: missing, cost: costOf(len(o.entries), o.lists)}
	for _, e := range o.entries {
		w.has = append(w.has, chunkKey{e.Realm, e.Chunk})
	}
	if len(missing) > 0 {
		if sc.lost.held += len(w.has) + len(missing); sc.lost.held > maxRescue {
			return fmt.Errorf("%w: more lists wait for what they name than can be held", ErrBusy)
		}
		for _, c := range missing {
			if !sc.lost.wanted[c] && len(sc.lost.wanted) == maxRescue {
				return fmt.Errorf("%w: more chunks are wanted than can be held", ErrBusy)
			}
			sc.lost.wanted[c] = true
		}
		x.state, sc.lost.waiting[o.h.Pack] = waits, w
		return nil
	}
	f, err := s.makeWhole(ctx, o)
	if err != nil {
		return err
	}
	if err := sc.adopt(ctx, []*foundPack{f}); err != nil {
		return err
	}
	x.state = taken
	sc.lost.learned = true
	return nil
}

// directory is the meta of an orphan, if it stands in a shard that is listed and opens
// under the store's keys: that proves the header. nil: nothing does, so far.
func (s *Store) directory(ctx context.Context, o *orphan) (*pack.Meta, error) {
	if o.h.MetaCoded {
		return nil, nil
	}
	var failed error
	head := make([]byte, o.h.SliceOffset())
	for _, x := range o.strays {
		err := s.inTime(ctx, x.m, func() error { return x.m.st.Read(ctx, x.key, 0, head) })
		if err != nil {
			head = make([]byte, len(head)) // a node that hangs may write to it yet
			if !lostForGood(err) {
				failed = err
			}
			continue
		}
		h, err := pack.ParseHeader(head)
		if err != nil || h.Common() != o.h {
			continue
		}
		meta, err := s.coder.OpenMeta(h, h.InlineMeta(head))
		if err == nil {
			return &meta, nil
		}
		if errors.Is(err, id.ErrNewer) {
			return nil, err
		}
	}
	return nil, failed
}

// onlyCopies refuses a pack with a chunk whose row names another pack of which nobody knows
// whether it can be read: once this one is adopted its copy is dead bytes, and that other
// one may turn out to be lost.
func (sc *scrubbing) onlyCopies(o *orphanPack) error {
	return sc.s.view(func(r index.Reader) error {
		for _, e := range o.entries {
			row, err := r.Chunk(e.Realm, e.Chunk)
			if err != nil && !errors.Is(err, index.ErrNotFound) {
				return err
			}
			if err == nil && row.State != index.Damaged && (sc.doubtAll || sc.doubt[row.Pack]) {
				return fmt.Errorf("%w: a chunk in it lies in pack %v too, of which too few nodes answer", ErrUnavailable, row.Pack)
			}
		}
		return nil
	})
}

// needsFirst reads the lists of an opened orphan, and returns the chunks that they name
// and that must be there before it is part of the store. A list that nothing refers to is
// left out: it is not worth what it names.
func (sc *scrubbing) needsFirst(o *orphanPack) (missing []chunkKey, err error) {
	lists, err := sc.s.orphanLists(o)
	if err != nil {
		return nil, err
	}
	inside := map[chunkKey]bool{}
	for _, e := range o.entries {
		inside[chunkKey{e.Realm, e.Chunk}] = true
	}
	err = sc.s.view(func(r index.Reader) error {
		unneeded := map[chunkKey]*record.List{}
		for _, l := range lists {
			k := chunkKey{l.In, l.Chunk}
			row, err := r.Chunk(l.In, l.Chunk)
			switch {
			case err != nil && !errors.Is(err, index.ErrNotFound):
				return err
			case err != nil && !sc.lost.wanted[k]:
				unneeded[k] = l
			case err != nil || row.Unknown():
				o.lists = append(o.lists, l)
			} // else what it names is there
		}
		for i := 0; i < len(o.lists); i++ {
			l := o.lists[i]
			for _, c := range l.Children {
				if in := unneeded[chunkKey{l.In, c}]; in != nil { // a list that it names itself
					o.lists = append(o.lists, in)
					delete(unneeded, chunkKey{l.In, c})
				}
				if _, err := r.Chunk(l.In, c); errors.Is(err, index.ErrNotFound) && !inside[chunkKey{l.In, c}] {
					missing = append(missing, chunkKey{l.In, c})
				} else if err != nil && !errors.Is(err, index.ErrNotFound) {
					return err
				}
			}
		}
		o.entries = slices.DeleteFunc(slices.Clone(o.entries), func(e pack.Entry) bool { return unneeded[chunkKey{e.Realm, e.Chunk}] != nil })
		return nil
	})
	return missing, err
}

// takeIn adopts the packs that have waited and whose lists name what is there by now, or
// comes with packs that wait too: these all at once. It returns how many.
func (sc *scrubbing) takeIn(ctx context.Context) (n int, err error) {
	for {
		next, err := sc.nextTogether()
		if err != nil || len(next) == 0 {
			return n, err
		}
		err = sc.takeTogether(ctx, next)
		if cerr := context.Cause(ctx); cerr != nil {
			return n, cerr
		}
		if over(err) != nil {
			return n, err
		}
		for _, p := range next {
			delete(sc.lost.waiting, p)
		}
		if err != nil {
			sc.lost.left = true
			sc.res.find(fmt.Errorf("pack %v, which no row names, holds chunks that are marked as damaged, and could not be taken in: %w", next[0], err))
			continue
		}
		n += len(next)
	}
}

// nextTogether are the fewest packs that wait and can be adopted: for each list in them
// what it names has a row, or lies in one of them.
func (sc *scrubbing) nextTogether() (best []id.Pack, err error) {
	waiting := sc.lost.waiting
	if len(waiting) == 0 {
		return nil, nil
	}
	where := map[chunkKey]id.Pack{}
	order := slices.SortedFunc(maps.Keys(waiting), func(a, b id.Pack) int { return bytes.Compare(a[:], b[:]) })
	for _, p := range order {
		for _, c := range waiting[p].has {
			where[c] = p
		}
	}
	if err := sc.s.view(func(r index.Reader) error {
		for _, p := range order {
			w := waiting[p]
			still := w.missing[:0]
			for _, c := range w.missing {
				if _, err := r.Chunk(c.realm, c.chunk); errors.Is(err, index.ErrNotFound) {
					still = append(still, c)
				} else if err != nil {
					return err
				}
			}
			w.missing = still
		}
		return nil
	}); err != nil {
		return nil, err
	}
	for _, p := range order {
		set, in, ok := []id.Pack{p}, map[id.Pack]bool{p: true}, true
		for i := 0; ok && i < len(set); i++ {
			for _, c := range waiting[set[i]].missing {
				q, there := where[c]
				if ok = ok && there; there && !in[q] {
					in[q] = true
					set = append(set, q)
				}
			}
		}
		if ok && (best == nil || len(set) < len(best)) {
			best = set
		}
	}
	return best, nil
}

// takeTogether makes orphans part of the store by one submission. One is opened at a time.
func (sc *scrubbing) takeTogether(ctx context.Context, packs []id.Pack) error {
	var cost adoptCost
	for _, p := range packs {
		cost = cost.plus(sc.lost.waiting[p].cost)
	}
	if len(packs) > 1 && !cost.fits() {
		return fmt.Errorf("%w: %d packs hold lists that name chunks of each other, too many to be adopted at once", ErrBusy, len(packs))
	}
	// From the first byte that is written until it is logged nobody else gives shards places.
	if err := sc.hold(ctx); err != nil {
		return err
	}
	defer sc.letGoIdle()
	var found []*foundPack
	for _, p := range packs {
		f, err := sc.openAgain(ctx, sc.lost.waiting[p].h)
		if err != nil {
			return err
		}
		found = append(found, f)
	}
	return sc.adopt(ctx, found)
}

func (sc *scrubbing) openAgain(ctx context.Context, h pack.Header) (*foundPack, error) {
	o := &orphanPack{h: h}
	defer o.release()
	_, err := sc.s.openOrphan(ctx, o)
	if err == nil {
		sc.pace.did(uint64(len(o.places)) * uint64(o.h.ShardLen()))
		o.wanted, err = sc.wanted(o.entries)
	}
	if err == nil {
		_, err = sc.needsFirst(o)
	}
	if err != nil {
		return nil, err
	}
	return sc.s.makeWhole(ctx, o)
}

// letGoIdle gives the token of repairs back unless a batch waits to be logged.
func (sc *scrubbing) letGoIdle() {
	if len(sc.batch) == 0 {
		sc.letGo()
	}
}

// orphanPack is an orphaned pack being opened.
type orphanPack struct {
	h       pack.Header // common
	entries []pack.Entry
	lists   []*record.List // that it is adopted with
	wanted  int            // entries that are wanted
	w       *whole
	places  []record.Place // of the shards that were read
	bad     []orphanShard  // of those that are not what was written, as far as that is seen
	opened  *pack.Opened
	enc     *pack.Encoded
}

func (o *orphanPack) geometry() geometry {
	return geometry{pack: o.h.Pack, k: int(o.h.K), m: int(o.h.M), slice: int(o.h.SliceLen), body: o.h.SliceOffset(), size: o.h.ShardLen()}
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

// wanted counts the chunks that are marked as damaged, or that lists name which are
// wanted.
func (sc *scrubbing) wanted(entries []pack.Entry) (n int, err error) {
	err = sc.s.view(func(r index.Reader) error {
		for _, e := range entries {
			row, err := r.Chunk(e.Realm, e.Chunk)
			switch {
			case err == nil && row.State == index.Damaged, errors.Is(err, index.ErrNotFound) && sc.lost.wanted[chunkKey{e.Realm, e.Chunk}]:
				n++
			case err != nil && !errors.Is(err, index.ErrNotFound):
				return err
			}
		}
		return nil
	})
	return n, err
}

// orphanChunk is the longest chunk that is cut.
const orphanChunk = 4 << 20

// openOrphan puts a pack together of which no digest is logged. Its meta must open, and
// every chunk in it, with its ID; when one does not, each shard in turn is left out.
// left is how many of its shards there may be, at most.
func (s *Store) openOrphan(ctx context.Context, o *orphanPack) (left int, err error) {
	g := o.geometry()
	if o.w, err = s.newWhole(ctx, g, weigh(orphanChunk)); err != nil {
		return g.k, err
	}
	buf := s.chunks.get(orphanChunk)
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
			var (
				info node.Info
				h    pack.Header
			)
			err := s.inTime(ctx, m, func() error {
				i, got, err := m.st.Stat(ctx, k)
				info, h = i, got
				return err
			})
			if err == nil && h.Common() != o.h { // it is none of these shards, and in the way of one
				o.bad = append(o.bad, orphanShard{m, k})
				continue
			}
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
		defer func() {
			if w.shards[i].Head == nil {
				s.chunks.put(slice) // another node may have it right
			} else {
				w.parity = append(w.parity, slice)
			}
		}()
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

// foundPack is an orphan every shard of which is on a node, and that can be adopted.
type foundPack struct {
	rec    *record.Adopt
	lists  []*record.List
	wanted int
}

// makeWhole makes an opened pack as wide as it was meant to be.
func (s *Store) makeWhole(ctx context.Context, o *orphanPack) (_ *foundPack, err error) {
	if o.enc, err = s.coder.Rebuild(o.opened); err != nil {
		return nil, err
	}
	g, set := o.w.g, s.members.Load()
	a := &record.Adopt{In: o.entries[0].Realm, Pack: g.pack, K: uint8(g.k), M: uint8(g.m), Slice: uint32(g.slice), Size: uint32(g.size), Body: uint32(g.body),
		Writer: o.h.Writer, Counter: o.h.Counter, Entries: slices.Clone(o.entries)}
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
				return nil, context.Cause(ctx)
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
			return nil, err
		}
		a.Shards = append(a.Shards, place)
	}
	return &foundPack{rec: a, lists: o.lists, wanted: o.wanted}, nil
}

// adopt makes found packs part of the store, and the lists in them what they were.
func (sc *scrubbing) adopt(ctx context.Context, found []*foundPack) error {
	s := sc.s
	if err := s.writer.submit(context.WithoutCancel(ctx), &submission{decide: func(d *decision) (func() error, error) {
		coming := map[chunkKey]bool{}
		for _, f := range found {
			if _, err := d.round.Pack(f.rec.Pack); !errors.Is(err, index.ErrNotFound) {
				if err != nil {
					return nil, &fatalError{err}
				}
				return nil, fmt.Errorf("%w: the pack is part of the store already", ErrRetry)
			}
			if err := d.reachable([]*record.Adopt{f.rec}); err != nil {
				return nil, err
			}
			for _, e := range f.rec.Entries {
				coming[chunkKey{e.Realm, e.Chunk}] = true
			}
		}
		var made []*record.List // of lists whose rows it makes
		twice := map[chunkKey]bool{}
		for _, f := range found {
			// A list that was left out, or is none any more, decides nothing; one that came
			// to be known meanwhile is not made again.
			for _, l := range f.lists {
				row, err := d.round.Chunk(l.In, l.Chunk)
				if err == nil && !row.Unknown() || twice[chunkKey{l.In, l.Chunk}] {
					continue
				}
				if err != nil && !errors.Is(err, index.ErrNotFound) {
					return nil, &fatalError{err}
				}
				for _, c := range l.Children {
					if _, err := d.round.Chunk(l.In, c); errors.Is(err, index.ErrNotFound) && !coming[chunkKey{l.In, c}] {
						return nil, fmt.Errorf("%w: a list in it names chunks that are not there", ErrRetry)
					} else if err != nil && !errors.Is(err, index.ErrNotFound) {
						return nil, &fatalError{err}
					}
				}
				twice[chunkKey{l.In, l.Chunk}] = true
				made = append(made, l)
			}
		}
		return func() error {
			for _, f := range found {
				if err := d.emit(f.rec); err != nil {
					return err
				}
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
	}}); err != nil {
		return err
	}
	for _, f := range found {
		s.log.Info("a pack that the log had lost is part of the store again", "pack", f.rec.Pack.String(), "chunks", f.wanted)
		sc.res.Found += f.wanted
	}
	return nil
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
