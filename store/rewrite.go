package store

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"

	"cairn/id"
	"cairn/index"
	"cairn/node"
	"cairn/pack"
	"cairn/placement"
	"cairn/record"
	"cairn/seal"
)

// Rewriting, steps 8 and 9 of docs/protocol.md, section 12: what is needed of sparse, small
// and narrow packs, and of log packs that may be cut off, is sealed anew into full ones.

const (
	// CollectRate is how many bytes a second are read for rewriting at the most when
	// nothing else is said; while clients are served it goes down to a quarter.
	CollectRate = 64 << 20
	// Sparse packs are rewritten, the sparsest first, until so much of all data packs is
	// dead, one part in deadShare; one of which less than a part in sparseShare is dead
	// is left alone.
	deadShare   = 20
	sparseShare = 10
	// A run asked for goes further.
	deadShareNow   = 50
	sparseShareNow = 20
	// Small packs have less than half of what they could hold. They are rewritten when
	// there are so many, or when together they fill a pack: then each byte is rewritten
	// a few times, however slowly it came.
	smallPacks = 8
	// moveAtOnce bounds the chunks of one pack that is written: a move changes up to four
	// rows for each, and has a log pack for itself.
	moveAtOnce = 2000
	// lookAhead is how many chunks that wait are looked at for those that fill a pack up.
	lookAhead = 16
	// fillGrain is what lengths are rounded up to, so that what is chosen has room.
	fillGrain = 1 << 10
	// Log packs are emptied when so many wait for it, or when what lies in them fills a
	// quarter of a pack.
	logPacks = 256
	// cutLeast is how much the log packs behind the newest snapshot take before another
	// snapshot is taken so that they can be cut off; and at least cutCost times what that
	// takes.
	cutLeast    = 256 << 20
	cutLeastNow = 4 << 20
	cutCost     = 4
)

// logDebt is what the log takes on the nodes, in bytes of all shards.
type logDebt struct {
	kept    []index.SnapshotRow
	behind  uint64 // packs behind the newest snapshot
	between uint64 // packs that only the newest has passed
	before  uint64 // packs that both have passed
}

func (s *Store) logDebt(ctx context.Context) (out logDebt, err error) {
	err = s.view(func(r index.Reader) error {
		if out.kept, err = r.Snapshots(); err != nil {
			return err
		}
		var newest, older uint64
		if len(out.kept) > 0 {
			newest = out.kept[0].Number
		}
		if len(out.kept) > 1 {
			older = out.kept[1].Number
		}
		return r.EachPack(func(_ id.Pack, row index.PackRow) error {
			if err := context.Cause(ctx); err != nil {
				return err
			}
			n := uint64(row.Size) * uint64(len(row.Shards))
			switch {
			case row.Kind != pack.Log:
			case row.Seq > newest:
				out.behind += n
			case row.Seq > older:
				out.between += n
			default:
				out.before += n
			}
			return nil
		})
	})
	return out, err
}

// shorten sees to it that the log can be cut where that is worth it: it takes snapshots,
// and reads those again that this process has not read.
func (c *collection) shorten(ctx context.Context) error {
	s := c.s
	for range 2 {
		d, err := s.logDebt(ctx)
		if err != nil {
			return err
		}
		least, held := uint64(cutLeast), d.behind
		if c.opt.Now {
			least, held = cutLeastNow, d.behind+d.between
		}
		if len(d.kept) > 0 {
			cost := d.kept[0].Bytes
			if !c.opt.Now {
				cost *= cutCost
			}
			least = max(least, cost)
		}
		if held < least {
			break
		}
		c.report(0, 0, "")
		ran, err := s.runJob(ctx, JobSnapshot, BySchedule)
		if cerr := context.Cause(ctx); cerr != nil {
			return cerr
		}
		if err != nil { // the log stays longer; what packs hold is another matter
			c.later = fmt.Errorf("the log is not cut, no snapshot could be taken: %w", err)
			break
		}
		if ran {
			c.out.Snapshots++
		}
		if !c.opt.Now {
			break
		}
	}
	d, err := s.logDebt(ctx)
	if err != nil || len(d.kept) < 2 || d.before < cutLeastNow && !c.opt.Now {
		return err
	}
	return c.readKept(ctx)
}

// readKept reads the snapshots that are kept, unless this process has done so a moment ago. When one
// cannot be read the log is not cut.
func (c *collection) readKept(ctx context.Context) error {
	s := c.s
	var kept []index.SnapshotRow
	if err := s.view(func(r index.Reader) (err error) {
		kept, err = r.Snapshots()
		return err
	}); err != nil {
		return err
	}
	for _, k := range kept {
		if s.wasRead(k.Number) {
			continue
		}
		rd := &snapshotReader{s: s, ctx: ctx, root: k.Root}
		if err := rd.check(k.Bytes, k.Sum); err != nil {
			if cerr := context.Cause(ctx); cerr != nil {
				return cerr
			}
			s.log.Warn("the log is not cut: a snapshot could not be read", "number", k.Number, "err", err)
			return nil
		}
		s.snapshotRead(k.Number)
	}
	return nil
}

// source is a pack that is rewritten.
type source struct {
	pack          id.Pack
	log           bool
	seq           uint64 // of a log pack
	writer        id.Writer
	counter       uint64
	payload, live uint64
	k             int // of the pack that it goes into
}

// sources chooses the packs that are worth rewriting.
func (c *collection) sources(ctx context.Context) ([]source, error) {
	if c.raise > 0 {
		return c.sourcesToRaise(ctx)
	}
	s := c.s
	if err := c.readWishes(ctx); err != nil {
		return nil, err
	}
	var logs, narrow, small, others []source
	var payload, dead, logLive uint64
	wished := 0 // packs that most of their bytes' buckets wish wider or narrower
	err := s.view(func(r index.Reader) error {
		past, err := c.past(r)
		if err != nil {
			return err
		}
		buckets, err := r.Buckets()
		if err != nil {
			return err
		}
		head, err := r.Head()
		if err != nil {
			return err
		}
		set := s.members.Load()
		widths := s.widths(buckets)
		up := s.compactionWidth(set)
		return r.EachPack(func(p id.Pack, row index.PackRow) error {
			if err := context.Cause(ctx); err != nil {
				return err
			}
			if row.Live == 0 || p == head.Pack || s.isUnmovable(p) {
				return nil // nothing lies in it, or what does has no edge yet
			}
			x := source{pack: p, seq: row.Seq, writer: row.Writer, counter: row.Counter, payload: row.Payload, live: row.Live}
			switch row.Kind {
			case pack.Log:
				if x.log = true; row.Seq <= past {
					x.k = c.wishOf(p, min(DefaultWidth, s.mem.sizes.Width))
					logs, logLive = append(logs, x), logLive+row.Live
				}
				return nil
			case pack.Data:
			default:
				return nil
			}
			x.k = widthFor(widths, int(row.K))
			payload, dead = payload+row.Payload, dead+row.Dead()
			if k, due := c.betterWidth(p, row, up, set.w()); due && !s.triedWith(p, up) {
				x.k = k
				narrow, dead = append(narrow, x), dead-row.Dead()
				wished++
				return nil
			}
			switch to := placement.Width(up, x.k, set.w()); {
			case !s.triedWith(p, up) && to != int(row.K) && (to > int(row.K) || c.wishes == nil && !slices.Contains(widths, int(row.K)) && to == x.k):
				narrow, dead = append(narrow, x), dead-row.Dead()
			case row.Payload < uint64(pack.Capacity(int(row.K), 1))/2 && row.Residents < moveAtOnce/2:
				small = append(small, x)
			default:
				others = append(others, x)
			}
			return nil
		})
	})
	if err != nil {
		return nil, err
	}
	if wished == 0 && !c.opt.DryRun {
		c.wishesMet()
	}
	out := narrow
	full := uint64(pack.Capacity(min(DefaultWidth, s.mem.sizes.Width), 1))
	if c.opt.Now || len(logs) >= logPacks || logLive >= full/4 {
		out = append(out, logs...)
	} else {
		logs = nil
	}
	// One small pack alone gains nothing, unless there is something of its width to go with it.
	slices.SortStableFunc(small, func(a, b source) int { return cmp.Compare(a.k, b.k) })
	for len(small) > 0 {
		k, n, live := small[0].k, 0, uint64(0)
		for n < len(small) && small[n].k == k {
			live += small[n].live
			n++
		}
		same := small[:n]
		small = small[n:]
		if n >= smallPacks || n > 1 && live >= uint64(pack.Capacity(k, 1)) || c.opt.Now && (n > 1 || slices.ContainsFunc(logs, func(x source) bool { return x.k == k })) {
			out = append(out, same...)
			for _, x := range same {
				dead -= x.payload - x.live
			}
		} else {
			others = append(others, same...)
		}
	}
	share, least := uint64(deadShare), uint64(sparseShare)
	if c.opt.Now {
		share, least = deadShareNow, sparseShareNow
	}
	slices.SortFunc(others, func(a, b source) int { // the least live share first
		return cmp.Compare(float64(a.live)/float64(a.payload), float64(b.live)/float64(b.payload))
	})
	for _, x := range others {
		waste := x.payload - x.live
		if dead <= payload/share || waste < x.payload/least {
			break
		}
		out, dead = append(out, x), dead-waste
	}
	// What was written together stays together.
	slices.SortFunc(out, compareSources)
	return out, nil
}

func compareSources(a, b source) int {
	return cmp.Or(cmp.Compare(a.k, b.k), cmp.Compare(a.seq, b.seq), slices.Compare(a.writer[:], b.writer[:]), cmp.Compare(a.counter, b.counter))
}

// compactionWidth is how many nodes a pack that is rewritten may lie on.
func (s *Store) compactionWidth(set *memberSet) int {
	now := s.now()
	up := slices.DeleteFunc(usable(set.takers, now), func(m *member) bool { return m.putFailed() })
	if most := taking(up, now); len(most) > set.w() {
		up = most
	}
	return len(up)
}

// widths are the most data shards that some bucket wants for its packs.
func (s *Store) widths(buckets []index.Bucket) []int {
	out := []int{min(DefaultWidth, s.mem.sizes.Width)}
	for _, b := range buckets {
		if !hidden(b.Name) {
			out = append(out, s.width(b.Settings))
		}
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// widthFor is how many data shards what lies in a pack of k gets: k, if some bucket wants
// that, else the next more, else the most.
func widthFor(widths []int, k int) int {
	for _, w := range widths {
		if w >= k {
			return w
		}
	}
	return widths[len(widths)-1]
}

// rewrite rewrites what is worth it, and drops the packs that are empty then.
func (c *collection) rewrite(ctx context.Context) error {
	s := c.s
	list, err := c.sources(ctx)
	if err != nil || len(list) == 0 {
		return err
	}
	if err := s.index.Sync(); err != nil { // before anything of the log is dropped
		return err
	}
	var total, done uint64
	for _, x := range list {
		total += x.live
	}
	c.report(c.base, c.base+total+c.rest, "bytes")
	w := &rewriter{c: c, pace: pacer{s: s, rate: cmp.Or(c.opt.Rate, CollectRate)}}
	defer w.release()
	for _, x := range list {
		if err := context.Cause(ctx); err != nil {
			return errors.Join(err, w.flush(context.WithoutCancel(ctx))) // what was read is not read again
		}
		if err := w.source(ctx, x, lookAhead); err != nil {
			return err
		}
		done += x.live
		c.report(c.base+done, c.base+total+c.rest, "bytes")
	}
	c.base += done
	w.ending = true
	if err := w.drain(ctx, 0); err != nil {
		return err
	}
	return w.flush(ctx)
}

// rewriter fills packs with chunks of others.
type rewriter struct {
	c    *collection
	pace pacer

	realm *realmKeys
	o     *openPack // nil: none is open
	from  []id.Pack // for each chunk in it, where it lies until now
	// Sources that were gone through; some of their chunks may be in o.
	through []id.Pack

	waiting []waiting // what is moved next, in order; of few packs more than one
	chosen  int       // so many of them go into o next, that is decided
	ending  bool      // nothing more comes
}

// waiting is a chunk that is to be moved.
type waiting struct {
	key    packKey
	chunk  id.Chunk
	sealed int // how long it is where it lies
	of     *going
}

// going is a source that is gone through.
type going struct {
	source
	left int // chunks that wait
	bad  bool

	where geometry // as it was when a chunk of it was first moved into seen
	seen  *openPack
}

// source takes what is needed of one pack, and moves it but for the last chunks, rest at
// the most, which go with those of the next.
func (w *rewriter) source(ctx context.Context, x source, rest int) error {
	of := &going{source: x}
	var add []waiting
	err := w.c.s.view(func(r index.Reader) error {
		in, err := r.Residents(x.pack)
		if err != nil {
			return err
		}
		for _, at := range in {
			row, err := r.Chunk(at.Realm, at.Chunk)
			if err != nil {
				return err
			}
			if (row.Refs > 0 || w.c.raise > 0) && !row.Unknown() { // one without edges may still be found
				add = append(add, waiting{key: packKey{row.Realm, x.k}, chunk: row.Chunk, sealed: int(row.SealedLen), of: of})
			}
		}
		return nil
	})
	if errors.Is(err, index.ErrNotFound) {
		return nil // dropped meanwhile
	}
	if err != nil {
		return err
	}
	if of.left = len(add); of.left == 0 {
		w.through = append(w.through, x.pack)
		return nil
	}
	w.waiting = append(w.waiting, add...)
	return w.drain(ctx, rest)
}

// drain moves what waits, until no more than rest do.
func (w *rewriter) drain(ctx context.Context, rest int) error {
	for len(w.waiting) > rest {
		if err := context.Cause(ctx); err != nil {
			return err
		}
		if err := w.next(ctx); err != nil {
			return err
		}
	}
	return nil
}

// next moves the chunk whose turn it is.
func (w *rewriter) next(ctx context.Context) error {
	key := w.waiting[0].key
	if w.o != nil && w.o.key != key {
		if err := w.flush(ctx); err != nil {
			return err
		}
	}
	if w.o == nil {
		if err := w.open(ctx, key); err != nil {
			return err
		}
	}
	if w.chosen == 0 && !w.choose() {
		return w.flush(ctx)
	}
	c := w.waiting[0]
	w.waiting = w.waiting[1:]
	w.chosen--
	err := w.move(ctx, c)
	switch {
	case errors.Is(err, errUnreadable):
		c.of.bad = true
		w.c.s.log.Warn("a chunk could not be moved", "pack", c.of.pack, "err", err)
	case err != nil:
		return err
	}
	if c.of.left--; c.of.left == 0 {
		if c.of.bad {
			w.c.out.Unreadable++
			w.c.s.unmovable(c.of.pack)
			if w.c.raise > 0 {
				w.c.passed[c.of.pack] = true
			}
		}
		w.through = append(w.through, c.of.pack)
	}
	return nil
}

// choose sees to it that the chunk whose turn it is has room in the open pack. As long as half
// of those that are looked at have, they go in order; then it decides which of all of them fill
// the pack best, and these go first. It is false when none has room.
func (w *rewriter) choose() bool {
	var sizes []int
	all := 0
	for _, c := range w.waiting[:min(lookAhead, len(w.waiting), moveAtOnce-len(w.from))] {
		if c.key != w.o.key {
			break
		}
		sizes, all = append(sizes, c.sealed), all+c.sealed
	}
	if len(sizes) == 0 {
		return false
	}
	room, half := w.o.builder.Room(len(sizes)), 0
	if w.ending {
		room = w.leave(room)
	}
	for _, n := range sizes[:(len(sizes)+1)/2] { // so there is a choice left
		half += n
	}
	switch {
	case all <= room:
		w.chosen = (len(sizes) + 1) / 2
		return true
	case half <= room:
		w.chosen = 1
		return true
	}
	chosen := fill(room, sizes)
	if len(chosen) == 0 && len(w.from) == 0 {
		chosen = []int{0} // alone it has more room than beside others
	}
	ordered := make([]waiting, 0, len(sizes))
	for _, i := range chosen {
		ordered = append(ordered, w.waiting[i])
	}
	for i, c := range w.waiting[:len(sizes)] {
		if !slices.Contains(chosen, i) {
			ordered = append(ordered, c)
		}
	}
	copy(w.waiting, ordered)
	w.chosen = len(chosen)
	return w.chosen > 0
}

// leave is how much of the room of the last pack but one is used: so much is left for the last
// that its shards get beyond the coarse classes, if there is so much.
func (w *rewriter) leave(room int) int {
	rest := 0
	for _, c := range w.waiting {
		if c.key == w.o.key {
			rest += c.sealed
		}
	}
	coarse := w.o.key.k * pack.StepClass
	if whole := w.o.builder.Used() + room; rest >= coarse && rest > room && rest-room < coarse && coarse <= whole/2 {
		return rest - coarse
	}
	return room
}

// fill chooses which of the sizes fill a room best, in order: the first, so that none waits
// for long, unless it has no room, and those others that leave the least. The sizes are 255
// at the most.
func fill(room int, sizes []int) []int {
	var out []int
	from := 0
	if len(sizes) > 0 && sizes[0] <= room {
		room -= sizes[0]
		out, from = append(out, 0), 1
	}
	// by[n] is the size, counted from 1, with which n grains were reached first: those before
	// it reach the rest.
	by := make([]uint8, room/fillGrain+1)
	best := 0
	for i, size := range sizes[from:] {
		n := (size + fillGrain - 1) / fillGrain
		for sum := len(by) - 1; sum >= n; sum-- {
			if by[sum] == 0 && (sum == n || by[sum-n] > 0) {
				by[sum] = uint8(from + i + 1)
				best = max(best, sum)
			}
		}
	}
	for best > 0 {
		i := int(by[best]) - 1
		out = append(out, i)
		best -= (sizes[i] + fillGrain - 1) / fillGrain
	}
	slices.Sort(out)
	return out
}

// errUnreadable says that a chunk cannot be moved: it stays where it is, and a scrub says
// what is wrong.
var errUnreadable = errors.New("not readable")

// move reads one chunk and seals it into the open pack.
func (w *rewriter) move(ctx context.Context, c waiting) error {
	s := w.c.s
	var row index.ChunkRow
	err := s.view(func(r index.Reader) (err error) { // it has waited
		if row, err = r.Chunk(c.key.realm, c.chunk); err != nil || c.of.seen == w.o {
			return err
		}
		if c.of.where, err = s.locate(r, c.of.pack); err == nil {
			c.of.seen = w.o
		}
		return err
	})
	if errors.Is(err, index.ErrNotFound) || err == nil && (row.Pack != c.of.pack || row.Refs == 0 && w.c.raise == 0) {
		return nil // nobody needs it there
	}
	if err != nil {
		return err
	}
	// Memory is taken in the order of a reader: chunks, then what fetching takes.
	weight := weigh(int(row.PlainLen))
	if err := s.goOn(ctx, s.mem.readers, weight); err != nil {
		return err
	}
	defer s.mem.readers.Release(weight)
	plain := s.chunks.get(int(row.PlainLen))
	defer s.chunks.put(plain)
	data, err := w.read(ctx, c.of.where, row, plain[:0])
	if err != nil {
		return err
	}
	info, body, free, err := s.compress(ctx, w.realm, row.Chunk, row.Kind, row.Compression != seal.None, data)
	if err != nil {
		return err
	}
	defer free()
	for {
		dst, off, ok := w.o.builder.Reserve(int(info.SealedLen))
		if !ok || len(w.from) == moveAtOnce { // it is longer now than it was
			if ok {
				w.o.builder.Abandon(off)
			}
			if err := w.flush(ctx); err != nil {
				return err
			}
			if err := w.open(ctx, c.key); err != nil {
				return err
			}
			continue
		}
		sealed, err := w.realm.sealer.Seal(dst[:0], info, body)
		if err == nil && len(sealed) != int(info.SealedLen) {
			err = fmt.Errorf("sealed %d bytes, reserved %d", len(sealed), info.SealedLen)
		}
		if err != nil {
			w.o.builder.Abandon(off)
			return fmt.Errorf("seal a chunk: %w", err)
		}
		w.o.builder.Add(pack.Entry{Info: info, Offset: off})
		w.from = append(w.from, c.of.pack)
		return nil
	}
}

// read opens a chunk where it lies, and computes its ID: what a seal holds over may still
// be other bytes than the name says.
func (w *rewriter) read(ctx context.Context, g geometry, row index.ChunkRow, dst []byte) ([]byte, error) {
	s := w.c.s
	weight := fetchMemory(int(row.SealedLen))
	if err := s.goOn(ctx, s.mem.fetch, weight); err != nil {
		return dst, err
	}
	defer s.mem.fetch.Release(weight)
	buf := s.chunks.get(int(row.SealedLen))
	defer s.chunks.put(buf)
	w.pace.did(uint64(row.SealedLen))
	w.c.out.ReadBytes += uint64(row.SealedLen)
	err := s.readPieces(ctx, g, g.pieces(int(row.Offset), int(row.SealedLen)), make([]error, g.k+g.m), buf)
	if err == nil {
		dst, err = w.realm.sealer.Verify(dst, row.Info, buf)
	}
	if err != nil {
		if cerr := context.Cause(ctx); cerr != nil {
			return dst, cerr
		}
		if errors.Is(err, ErrUnavailable) { // which says nothing of the chunk
			return dst, fmt.Errorf("pack %v, chunk at %d: %w", g.pack, row.Offset, err)
		}
		return dst, fmt.Errorf("%w: pack %v, chunk at %d: %w", errUnreadable, g.pack, row.Offset, err)
	}
	return dst, nil
}

// open begins a pack, when the rate allows.
func (w *rewriter) open(ctx context.Context, key packKey) error {
	s := w.c.s
	if err := w.pace.pause(ctx); err != nil {
		return err
	}
	realm, err := s.realm(key.realm)
	if err != nil {
		return err
	}
	buf, err := s.packs.takeBuffer(ctx, key)
	if err != nil {
		return err
	}
	w.realm = realm
	w.chosen = 0
	w.o = &openPack{key: key, buf: buf, builder: pack.NewBuilder(buf, key.k, s.packs.limit(key)), why: node.ForCompaction}
	return nil
}

// release gives back the memory of a pack that is not written.
func (w *rewriter) release() {
	if w.o != nil {
		w.c.s.packs.giveBuffer(w.o.buf)
		w.o, w.from = nil, nil
	}
}

// flush makes the open pack durable, logs what has moved into it, and drops the packs that
// were gone through and are empty by now.
func (w *rewriter) flush(ctx context.Context) error {
	s := w.c.s
	if len(w.from) > 0 {
		o, from := w.o, w.from
		w.o, w.from = nil, nil
		o.builder.Close()
		s.packs.sealing <- struct{}{}
		adopt, err := s.packs.flush(o)
		<-s.packs.sealing
		if err != nil {
			return err
		}
		err = w.log(ctx, adopt, o.key.k, from)
		s.packs.dropCounter(adopt.Counter)
		if err != nil {
			return err
		}
	}
	w.release()
	through := w.through
	w.through = nil
	if err := w.c.prove(ctx); err != nil {
		return err
	}
	for part := range slices.Chunk(through, dropAtOnce) {
		if err := w.c.dropSome(ctx, part); err != nil {
			return err
		}
	}
	return nil
}

// log logs a move into a pack that was to get k data shards.
func (w *rewriter) log(ctx context.Context, a *record.Adopt, k int, from []id.Pack) error {
	s := w.c.s
	moved, sources := 0, 0
	err := s.writer.submit(ctx, &submission{alone: true, decide: func(d *decision) (func() error, error) {
		moved = 0
		if err := d.reachable([]*record.Adopt{a}); err != nil {
			return nil, err
		}
		m := &record.Move{In: a.In, Pack: a.Pack, K: a.K, M: a.M, Slice: a.Slice, Size: a.Size, Body: a.Body, Writer: a.Writer, Counter: a.Counter, Shards: a.Shards, Entries: a.Entries,
			From: make([]uint32, len(from))}
		at := map[id.Pack]uint32{}
		for i, p := range from {
			row, err := d.round.Chunk(a.In, a.Entries[i].Chunk)
			if errors.Is(err, index.ErrNotFound) || err == nil && row.Pack != p {
				continue // it was removed, or lies elsewhere by now
			}
			if err != nil {
				return nil, &fatalError{err}
			}
			if at[p] == 0 {
				m.Sources = append(m.Sources, p)
				at[p] = uint32(len(m.Sources))
			}
			m.From[i] = at[p]
			moved++
		}
		sources = len(m.Sources)
		return func() error {
			if moved == 0 {
				return nil
			}
			return d.emit(m)
		}, nil
	}})
	if err != nil {
		return err
	}
	if moved == 0 {
		w.c.out.NotTold += len(a.Shards) // an attempt that is not void yet may name them: a scrub removes them
		return nil
	}
	if set := s.members.Load(); int(a.K) < k {
		s.keptNarrow(a.Pack, s.compactionWidth(set))
	}
	w.c.out.Rewritten += sources
	w.c.out.Moved += moved
	w.c.out.Written++
	w.c.out.WrittenBytes += uint64(a.Size) * uint64(len(a.Shards))
	return nil
}
