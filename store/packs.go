package store

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"cairn/id"
	"cairn/index"
	"cairn/node"
	"cairn/pack"
	"cairn/placement"
	"cairn/record"
	"cairn/seal"
	"cairn/store/budget"
)

// maxPackChunks bounds the chunks of a data pack, so that its adopt record stays
// below half of what a log pack may hold, and the rows it changes below what a round
// may. It takes chunks below 16 KiB to reach it.
const maxPackChunks = 1000

// packKey tells open packs apart: chunks of two realms, or of buckets with
// another code, never share one.
type packKey struct {
	realm id.Realm
	k     int
}

// chunkKey names a chunk in its realm.
type chunkKey struct {
	realm id.Realm
	chunk id.Chunk
}

// openPack is a data pack on its way: open, being filled, being sent, or handed
// in to the log writer.
type openPack struct {
	key     packKey
	buf     []byte // the coded stream's memory
	builder *pack.Builder
	handed  chan struct{} // closed when the adopt was handed in, or the pack was lost
	why     node.Purpose

	// Under packs.mu:
	chunks int           // reserved
	asked  bool          // a flush was started
	riders []*submission // handed in right behind the adopt
	over   bool          // handed is closed
	err    error         // why the pack was lost
}

// wait returns when the pack's adopt was handed in; its error says that the
// chunks in it were not stored.
func (p *openPack) wait(ctx context.Context) error {
	select {
	case <-p.handed:
		return p.err
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// packs fills, seals and sends data packs. Chunks of all streams share the open
// pack of their realm and code; no stream waits for another client, since a
// chunk enters a pack only when it is there whole.
type packs struct {
	s *Store
	// A bounded number of packs is coded and sent at a time. Whoever ends a stream
	// meanwhile shares the pack that is still open: group commit.
	sealing chan struct{}
	flushes sync.WaitGroup

	mu       sync.Mutex
	open     map[packKey]*openPack
	inflight map[chunkKey]*openPack // chunks that are whole in a pack and not in the index yet
	counter  uint64                 // of packs this writer has begun
	low      map[uint64]bool        // counters of packs that may still be adopted
	closed   error
}

func newPacks(s *Store, sealing int) *packs {
	return &packs{s: s, sealing: make(chan struct{}, sealing),
		open: map[packKey]*openPack{}, inflight: map[chunkKey]*openPack{}, low: map[uint64]bool{}}
}

// find returns the pack on its way that holds a chunk.
func (p *packs) find(c chunkKey) *openPack {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.inflight[c]
}

// reserve makes room for n sealed bytes in the open pack and returns it, the
// place to write to and its offset. The caller ends it with fill or abandon.
func (p *packs) reserve(ctx context.Context, key packKey, n int) (*openPack, []byte, uint32, error) {
	for {
		p.mu.Lock()
		if p.closed != nil {
			p.mu.Unlock()
			return nil, nil, 0, p.closed
		}
		if o := p.open[key]; o != nil {
			// The entries are bounded too: their adopt must fit into one log pack.
			if o.chunks < maxPackChunks {
				if dst, off, ok := o.builder.Reserve(n); ok {
					o.chunks++
					p.mu.Unlock()
					return o, dst, off, nil
				}
			}
			p.closeLocked(o)
			p.flushLocked(o)
		}
		p.mu.Unlock()
		buf, err := p.takeBuffer(ctx, key)
		if err != nil {
			return nil, nil, 0, err
		}
		p.mu.Lock()
		if p.open[key] != nil || p.closed != nil { // someone else was faster
			p.giveBuffer(buf)
		} else {
			p.open[key] = &openPack{key: key, buf: buf, builder: pack.NewBuilder(buf, key.k, p.limit(key)), handed: make(chan struct{})}
		}
		p.mu.Unlock()
	}
}

// takeBuffer waits for a free buffer. When there is none, the fullest open pack
// is sealed, so that waiting ends.
func (p *packs) takeBuffer(ctx context.Context, key packKey) ([]byte, error) {
	mem, n := p.s.mem, p.bufferLen(key)
	if !mem.packs.TryAcquire(int64(n)) {
		p.mu.Lock()
		var fullest *openPack
		for _, o := range p.open {
			if fullest == nil || o.builder.Used() > fullest.builder.Used() {
				fullest = o
			}
		}
		if fullest != nil {
			p.flushLocked(fullest)
		}
		p.mu.Unlock()
		if err := p.s.admit(ctx, mem.packs, int64(n)); err != nil {
			return nil, err
		}
	}
	if n == mem.packBuffers.size {
		return mem.packBuffers.get(), nil
	}
	return make([]byte, n), nil
}

// giveBuffer takes back what takeBuffer gave.
func (p *packs) giveBuffer(buf []byte) {
	mem := p.s.mem
	if len(buf) == mem.packBuffers.size {
		mem.packBuffers.put(buf)
	}
	mem.packs.Release(int64(len(buf)))
}

// bufferLen is the length of a pack's buffer: room for a full stream, also over
// fewer nodes, or for less where memory is short.
func (p *packs) bufferLen(key packKey) int {
	const room = 1 << 20 // that a full stream takes less; the usual buffers are all alike
	if n := pack.StreamLen(key.k) + budget.FullPack - 16<<20; n < p.s.mem.sizes.PackBytes-room {
		return n
	}
	return p.s.mem.sizes.PackBytes
}

// limit is how much of its buffer a pack may fill; 0 means what a full pack
// holds. A shorter buffer keeps room for padding and directory.
func (p *packs) limit(key packKey) int {
	if n := p.bufferLen(key); n < pack.StreamLen(key.k) {
		return n - 512<<10
	}
	return 0
}

// fill ends a reservation: the chunk is in its place. From now on other streams
// may refer to it.
func (p *packs) fill(o *openPack, e pack.Entry) {
	p.mu.Lock()
	p.inflight[chunkKey{e.Realm, e.Chunk}] = o
	p.mu.Unlock()
	o.builder.Add(e)
}

// ask begins to seal a pack as soon as a place is free; until then it takes more.
func (p *packs) ask(o *openPack) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.flushLocked(o)
}

// closeLocked lets no more chunks into a pack.
func (p *packs) closeLocked(o *openPack) {
	o.builder.Close()
	if p.open[o.key] == o {
		delete(p.open, o.key)
	}
}

// flushLocked starts the goroutine that seals a pack, once.
func (p *packs) flushLocked(o *openPack) {
	if o.asked {
		return
	}
	o.asked = true
	p.flushes.Add(1)
	go func() {
		defer p.flushes.Done()
		p.sealing <- struct{}{}
		p.mu.Lock()
		p.closeLocked(o)
		p.mu.Unlock()
		<-o.builder.Done()
		adopt, err := p.flush(o)
		<-p.sealing
		p.finish(o, adopt, err)
	}()
}

// submit hands in a submission behind the packs that it relies on, and waits for
// its outcome. The last of those packs takes it along, so that adopt and put
// share a log pack.
func (p *packs) submit(ctx context.Context, sub *submission, on map[*openPack]bool) error {
	result := make(chan error, 1)
	sub.done = func(err error) { result <- err }
	p.mu.Lock()
	waits := 0
	for o := range on {
		switch {
		case o.over && o.err != nil:
			err := o.err
			p.mu.Unlock()
			return err
		case !o.over:
			waits++
			o.riders = append(o.riders, sub)
			p.flushLocked(o)
		}
	}
	sub.waits = waits
	p.mu.Unlock()
	if waits == 0 {
		if err := p.s.writer.enqueue(sub); err != nil {
			return err
		}
	}
	return <-result
}

// finish hands a pack's adopt to the log writer, with the submissions that waited
// for it alone, or tells everyone that the pack was lost.
func (p *packs) finish(o *openPack, adopt *record.Adopt, err error) {
	var (
		subs    []*submission
		counter uint64 // of the pack that was to be adopted
	)
	if err == nil {
		counter = adopt.Counter
		subs = append(subs, &submission{ctx: context.Background(), adopts: []*record.Adopt{adopt}, done: func(error) { p.forget(o, adopt.Counter) }})
	}
	p.mu.Lock()
	var refused []*submission
	for _, sub := range o.riders {
		if sub.waits--; err != nil {
			if !sub.refused {
				sub.refused = true
				refused = append(refused, sub)
			}
		} else if sub.waits == 0 && !sub.refused {
			subs = append(subs, sub)
		}
	}
	if err == nil {
		if err = p.s.writer.enqueue(subs...); err != nil {
			for _, sub := range subs[1:] {
				sub.refused = true
				refused = append(refused, sub)
			}
			subs = nil
		}
	}
	o.riders, o.over, o.err = nil, true, err
	close(o.handed)
	p.mu.Unlock()
	if err != nil {
		p.forget(o, counter)
	}
	for _, sub := range refused {
		sub.finish(err)
	}
}

// forget takes a pack's chunks out of the table of those on their way: the index
// has them, or they were lost.
func (p *packs) forget(o *openPack, counter uint64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, e := range o.builder.Entries() {
		if k := (chunkKey{e.Realm, e.Chunk}); p.inflight[k] == o {
			delete(p.inflight, k)
		}
	}
	delete(p.low, counter)
}

// close seals what is open and waits until every pack is handed in or lost.
func (p *packs) close() {
	p.mu.Lock()
	p.closed = ErrClosed
	for _, o := range p.open {
		p.flushLocked(o)
	}
	p.mu.Unlock()
	p.flushes.Wait()
}

// nextCounter begins a pack of this writer.
func (p *packs) nextCounter() uint64 {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.counter++
	p.low[p.counter] = true
	return p.counter
}

// begun is the counter of the newest pack of this writer.
func (p *packs) begun() uint64 {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.counter
}

func (p *packs) dropCounter(c uint64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.low, c)
}

// nextLogCounter numbers a log pack; it is never waited for.
func (p *packs) nextLogCounter() uint64 {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.counter++
	return p.counter
}

// lowWater is the counter below which every pack of this writer is adopted or never
// will be, as far as whoever waited for it knows: when nothing is known of the log pack
// that adopts it, that is so behind the next one.
func (p *packs) lowWater() uint64 {
	p.mu.Lock()
	defer p.mu.Unlock()
	low := p.counter + 1
	for c := range p.low {
		low = min(low, c)
	}
	return low
}

// compactionTries is how often data that is rewritten is sent before it is left where it is.
const compactionTries = 3

// flush codes a pack and makes it durable at full width, over fewer nodes under
// a new pack ID when it must.
func (p *packs) flush(o *openPack) (*record.Adopt, error) {
	s := p.s
	ctx, cancel := context.WithTimeout(context.Background(), s.cfg.Patience)
	defer cancel()
	// When the pack is done and nodes that lag still read its memory, it stays
	// theirs. They take no further shards, so that at most as many packs are held
	// as are sent at a time for each node that may be lost, and others are left.
	buf := newShared(func() {
		p.giveBuffer(o.buf)
		o.buf = nil
		o.builder.Drop() // streams refer to the pack until they end
	})
	defer buf.drop()
	if o.builder.Len() == 0 {
		return nil, fmt.Errorf("%w: nothing was written into the pack", ErrRetry)
	}
	var last error
	full := false
	for tries := 0; ctx.Err() == nil; tries++ {
		// Each attempt leaves shards behind on the nodes that took one. Whoever may come again
		// another time does not go on for long.
		if o.why == node.ForCompaction && tries == compactionTries {
			break
		}
		if err := s.Failure(); err != nil {
			last = err
			break
		}
		adopt, err := p.send(ctx, o, buf)
		if errors.Is(err, errNoRoom) {
			return nil, fmt.Errorf("%w: %w", ErrFull, err)
		}
		if err == nil || !errors.Is(err, errNarrow) && !errors.Is(err, ErrUnavailable) {
			return adopt, err
		}
		full = full || errors.Is(err, node.ErrFull)
		last = err
		s.log.Warn("data pack not durable at full width, trying again", "err", err)
		select {
		case <-ctx.Done():
		case <-time.After(20 * time.Millisecond):
		}
	}
	if full {
		return nil, fmt.Errorf("%w: %w", ErrFull, last)
	}
	return nil, fmt.Errorf("%w: %w", ErrUnavailable, last)
}

// send writes an open pack that is done.
func (p *packs) send(ctx context.Context, o *openPack, buf *shared) (*record.Adopt, error) {
	d := dataPack{kind: pack.Data, why: o.why, realm: o.key.realm, k: o.key.k, entries: o.builder.Entries(), payload: o.builder.Payload()}
	if !buf.alone() {
		// A node of an earlier attempt still reads the payload and its padding. Those
		// who wait for the memory of a copy while they hold the original would wait
		// for each other.
		mem, n := p.s.mem, p.bufferLen(o.key)
		if !mem.packs.TryAcquire(int64(n)) {
			return nil, fmt.Errorf("%w: slow nodes hold the memory of the last attempt", errNarrow)
		}
		again := make([]byte, n)
		buf = newShared(func() { mem.packs.Release(int64(n)) })
		defer buf.drop()
		d.payload = append(again[:0], d.payload...)
	}
	return p.write(ctx, d, buf)
}

// dataPack is a pack outside the log that is about to be written.
type dataPack struct {
	kind    pack.Kind
	why     node.Purpose
	realm   id.Realm // of all entries
	k       int      // most data shards
	entries []pack.Entry
	payload []byte // with room for padding; buf's users may read it
}

// write encodes a pack for the nodes that are up and makes it durable, under a
// new pack ID. buf is held as long as a node reads the pack's memory. After
// success the caller ends the counter, by forget or dropCounter, when the log
// has the pack or never will.
func (p *packs) write(ctx context.Context, d dataPack, buf *shared) (*record.Adopt, error) {
	s := p.s
	set := s.members.Load()
	up := usable(set.takers, s.now())
	if d.why == node.ForClient {
		up = taking(up, s.now())
	} else if most := taking(up, s.now()); len(most) > set.w() {
		up = most // a node without room for clients' data is left alone while others will do
	}
	k := placement.Width(len(up), d.k, set.w())
	if k < 1 {
		return nil, s.tooFew(set.takers, len(up), set.w()+1, true)
	}
	packID, err := id.NewPack(s.random(forData))
	if err != nil {
		return nil, err
	}
	weight, err := codingMemory(len(d.payload), cap(d.payload), len(d.entries), k, set.w())
	if err != nil {
		return nil, err
	}
	if err := s.mem.coding.Acquire(ctx, weight); err != nil {
		return nil, fmt.Errorf("%w: memory for coding: %w", errNarrow, err)
	}
	counter := p.nextCounter()
	enc, err := s.coder.Encode(pack.Input{
		Header:  pack.Header{Kind: d.kind, Pack: packID, K: uint8(k), M: uint8(set.w()), Writer: s.auth.Writer, Counter: counter, Epoch: s.auth.Epoch},
		Meta:    pack.Meta{Entries: d.entries},
		Payload: d.payload,
	})
	if err != nil {
		s.mem.coding.Release(weight)
		p.dropCounter(counter)
		return nil, err
	}
	pl, err := plan(packID, up, k, set.w())
	if err != nil {
		enc.Release()
		s.mem.coding.Release(weight)
		p.dropCounter(counter)
		return nil, fmt.Errorf("%w: %w", ErrUnavailable, err)
	}
	buf.hold()
	places, err := s.putPack(ctx, d.why, enc, pl, func() {
		enc.Release()
		s.mem.coding.Release(weight)
		buf.drop()
	})
	if now := s.members.Load(); err == nil && now.w() > set.w() {
		// The log would refuse it: m is being raised since.
		err = fmt.Errorf("%w: its code is %d+%d, what is written now survives %d losses", errNarrow, k, set.w(), now.w())
	}
	if err != nil {
		p.dropCounter(counter)
		return nil, err
	}
	h := enc.Header
	return &record.Adopt{In: d.realm, Pack: packID, K: h.K, M: h.M, Slice: h.SliceLen, Size: uint32(h.ShardLen()), Body: uint32(h.SliceOffset()),
		Writer: h.Writer, Counter: counter, Shards: places, Entries: d.entries}, nil
}

// codingMemory is what encoding a pack takes beside its payload: parity, heads,
// and a copy of the stream when it does not fit where the payload lies.
func codingMemory(payload, room, entries, k, m int) (int64, error) {
	const entryLen = 72 // more than the directory has for a chunk
	l, err := pack.Fit(payload, 256+entries*entryLen, k)
	if err != nil {
		return 0, err
	}
	weight := int64(budget.Heads)
	if k > 1 {
		weight += int64(m) * weigh(int(l.SliceLen))
	}
	if n := k * int(l.SliceLen); n > room {
		weight += weigh(n)
	}
	return weight, nil
}

// shared calls release when the last of its users is done.
type shared struct {
	mu      sync.Mutex
	users   int
	release func()
}

func newShared(release func()) *shared { return &shared{users: 1, release: release} }

func (b *shared) hold() {
	b.mu.Lock()
	b.users++
	b.mu.Unlock()
}

// alone reports whether nobody but the caller uses it.
func (b *shared) alone() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.users == 1
}

func (b *shared) drop() {
	b.mu.Lock()
	b.users--
	last := b.users == 0
	b.mu.Unlock()
	if last {
		b.release()
	}
}

// storeChunk puts one chunk of a stream where it belongs: nowhere when the store
// has it, else into the open data pack. The pack it returns must be handed in
// before a manifest with the chunk is; nil means that the index has the chunk.
func (s *Store) storeChunk(ctx context.Context, realm *realmKeys, k int, compress bool, plain []byte) (id.Chunk, *openPack, error) {
	c := realm.chunkID(seal.Data, plain)
	// In this order: a chunk leaves the table only when the index has it.
	if o := s.packs.find(chunkKey{realm.realm, c}); o != nil {
		return c, o, nil
	}
	if known, err := s.known(realm.realm, c); err != nil || known {
		return c, nil, err
	}
	info, body, free, err := s.compress(ctx, realm, c, seal.Data, compress, plain)
	if err != nil {
		return c, nil, err
	}
	defer free()
	o, dst, off, err := s.packs.reserve(ctx, packKey{realm.realm, k}, int(info.SealedLen))
	if err != nil {
		return c, nil, err
	}
	sealed, err := realm.sealer.Seal(dst[:0], info, body)
	if err == nil && len(sealed) != int(info.SealedLen) {
		err = fmt.Errorf("sealed %d bytes, reserved %d", len(sealed), info.SealedLen)
	}
	if err != nil {
		o.builder.Abandon(off)
		return c, nil, fmt.Errorf("seal a chunk: %w", err)
	}
	s.packs.fill(o, pack.Entry{Info: info, Offset: off})
	return c, o, nil
}

// known reports whether a chunk is stored and not lost. One that cannot be read now is
// [ErrUnavailable]: what would be acknowledged could not be read back.
func (s *Store) known(realm id.Realm, c id.Chunk) (bool, error) {
	known, away := false, error(nil)
	err := s.view(func(r index.Reader) error {
		row, err := r.Chunk(realm, c)
		if errors.Is(err, index.ErrNotFound) {
			return nil
		}
		if known = err == nil && row.State == index.Live; known {
			away, err = s.atHand(r, row.Pack)
		}
		return err
	})
	if err != nil {
		return false, translate(err, ErrDamaged)
	}
	return known, away
}

// atHand returns as away that fewer shards of a pack than it needs are on nodes that
// are there.
func (s *Store) atHand(r index.Reader, p id.Pack) (away, err error) {
	set := s.members.Load()
	if len(set.rec.Gone) == 0 && !slices.ContainsFunc(set.all, func(m *member) bool { return !m.readable() }) {
		return nil, nil
	}
	g, err := s.locate(r, p)
	if err != nil || len(g.places) == 0 {
		return nil, err
	}
	n := heldBy(g.places, func(id id.Node) bool { m := set.byID[id]; return m != nil && m.readable() })
	if n >= g.k {
		return nil, nil
	}
	return fmt.Errorf("%w: the same bytes are stored already, in pack %v, and %d of the %d shards that it needs are there; not up: %s", ErrUnavailable, p, n, g.k, s.notUp(set.all)), nil
}

// inlineChunk seals a chunk into a submission, unless the store has it.
func (s *Store) inlineChunk(sub *submission, realm *realmKeys, compress bool, kind seal.Kind, plain []byte) (id.Chunk, error) {
	c := realm.chunkID(kind, plain)
	for _, in := range sub.inline {
		if in.info.Chunk == c {
			return c, nil
		}
	}
	if known, err := s.known(realm.realm, c); err != nil || known {
		return c, err
	}
	info, body, free, err := s.compress(sub.ctx, realm, c, kind, compress, plain)
	if err != nil {
		return c, err
	}
	defer free()
	sealed, err := realm.sealer.Seal(make([]byte, 0, info.SealedLen), info, body)
	if err != nil {
		return c, fmt.Errorf("seal a chunk: %w", err)
	}
	sub.inline = append(sub.inline, inline{info, sealed})
	return c, nil
}
