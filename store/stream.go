package store

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"time"

	"cairn/id"
	"cairn/index"
	"cairn/manifest"
	"cairn/record"
	"cairn/seal"
	"cairn/store/budget"
)

const (
	// smallObject is the longest body, in bytes, that travels in the log pack
	// without chunking, and the longest last chunk of a longer body that does.
	smallObject = 128 << 10
	// firstRead is how much of a body must have come before any share of the
	// memory is taken for it: a client that sends nothing holds its connection.
	firstRead = 4 << 10
	// readSize is how much of a body is read at a time, so that cutting begins
	// while the bytes are in the processor's cache; and so it is the most that can
	// be left behind a cut.
	readSize = 256 << 10
	// maxPendingLists bounds the list chunks that a stream holds back until the
	// packs of their children are handed in.
	maxPendingLists = 4
)

// stream is one body on its way in. It belongs to one goroutine; the workers it
// starts write only into their own slot.
type stream struct {
	s      *Store
	ctx    context.Context
	bucket index.Bucket
	realm  *realmKeys
	k      int
	comp   bool

	builder manifest.Builder
	sub     *submission
	slots   []*slot // chunks in flight, oldest first
	size    uint64
	lists   []pendingList
	packs   map[*openPack]bool // not known to be handed in
	ending  bool               // what is made from now on travels with the put
	begun   bool               // it had memory for a chunk
	fast    bool               // the client sent its last chunk without delay
	held    []holding          // given back when the submission has its answer
	// transfer keeps what the stream has looked up from being collected.
	transfer *transfer
}

// holding is memory of a share.
type holding struct {
	share *budget.Share
	n     int64
}

func (st *stream) hold(share *budget.Share, n int64) { st.held = append(st.held, holding{share, n}) }

// giveBack ends what hold began, and the transfer.
func (st *stream) giveBack() {
	st.transfer.end()
	for _, h := range st.held {
		h.share.Release(h.n)
	}
	st.held = nil
}

// slot is a chunk in flight.
type slot struct {
	done  chan struct{}
	chunk id.Chunk
	n     int
	in    *openPack // nil: the chunk is in the index already, or travels inline
	err   error
}

// pendingList is a list chunk that waits for the packs its children are in.
type pendingList struct {
	sub   *submission
	packs map[*openPack]bool
}

// readBody reads r to its end, stores its chunks and returns the manifest. What
// the manifest relies on and is not handed in yet is left in st.sub and st.packs.
func (st *stream) readBody(r io.Reader, declared int64) (manifest.Manifest, error) {
	first := st.s.chunks.get(firstRead)
	defer st.s.chunks.put(first)
	want := firstRead
	if declared >= 0 && declared < firstRead {
		want = int(declared) + 1 // what is longer than declared shows
	}
	n, err := readFull(r, first[:want], declared)
	if err != nil {
		return manifest.Manifest{}, err
	}
	if n < want || declared >= 0 && declared <= smallObject {
		return st.readSmall(r, first[:n], n < want, declared)
	}
	return st.readChunks(r, first[:n], declared)
}

// readSmall stores a small object whole. head is what was read of it so far, and
// all of it when final.
func (st *stream) readSmall(r io.Reader, head []byte, final bool, declared int64) (manifest.Manifest, error) {
	plain := head
	if !final {
		s := st.s
		weight := weigh(int(declared) + 1)
		if err := s.admit(st.ctx, s.mem.small, weight); err != nil {
			return manifest.Manifest{}, err
		}
		defer s.mem.small.Release(weight)
		buf := s.chunks.get(int(declared) + 1)
		defer s.chunks.put(buf)
		n := copy(buf, head)
		more, err := readFull(r, buf[n:], -1) // a byte more than declared shows
		if err != nil {
			return manifest.Manifest{}, err
		}
		plain = buf[:n+more]
	}
	st.size = uint64(len(plain))
	if declared >= 0 && int64(len(plain)) != declared {
		return manifest.Manifest{}, fmt.Errorf("%w: %d bytes, declared %d", ErrShortBody, len(plain), declared)
	}
	if len(plain) > 0 {
		weight := weigh(len(plain) + seal.Overhead)
		if err := st.s.admit(st.ctx, st.s.mem.inline, weight); err != nil {
			return manifest.Manifest{}, err
		}
		st.hold(st.s.mem.inline, weight) // the sealed bytes go through the log
		c, err := st.inline(seal.Data, plain)
		if err != nil {
			return manifest.Manifest{}, err
		}
		if err := st.builder.Add(c, uint64(len(plain))); err != nil {
			return manifest.Manifest{}, err
		}
	}
	return st.builder.Finish()
}

// readFull fills buf from r until it is full or r ends. Unlike io.ReadFull, the
// end is no error; any other error is.
func readFull(r io.Reader, buf []byte, declared int64) (int, error) {
	n := 0
	for idle := 0; n < len(buf); {
		m, err := r.Read(buf[n:])
		n += m
		if err == io.EOF {
			return n, nil
		}
		if err != nil {
			return n, readError(err)
		}
		if m > 0 {
			idle = 0
		} else if idle++; idle == 100 {
			return n, readError(io.ErrNoProgress)
		}
		if declared >= 0 && int64(n) > declared {
			return n, fmt.Errorf("%w: longer than the declared %d bytes", ErrShortBody, declared)
		}
	}
	return n, nil
}

// readError marks an error as the client's: its body could not be read.
func readError(err error) error {
	if errors.Is(err, io.ErrUnexpectedEOF) {
		return fmt.Errorf("%w: %w", ErrShortBody, err)
	}
	return fmt.Errorf("read the body: %w", err)
}

// readChunks cuts the rest of a body that may be longer than a small object; head
// is what was read of it so far.
func (st *stream) readChunks(r io.Reader, head []byte, declared int64) (manifest.Manifest, error) {
	b := st.s.newCutBody(r, declared)
	defer b.free()
	b.head, b.in.read = head, uint64(len(head))
	return st.readSome(b, math.MaxUint64)
}

// cutBody is a body that is being cut: by one stream, or by several in turn.
type cutBody struct {
	s     *Store
	in    bodyReader
	head  []byte // what was read before the first stream had memory for it
	carry []byte // what was read behind the last cut; nil: no stream had memory yet
}

func (s *Store) newCutBody(r io.Reader, declared int64) *cutBody {
	return &cutBody{s: s, in: bodyReader{r: r, declared: declared}}
}

// begin waits for the first bytes, which lie in buf until the first stream ends: a
// client that sends nothing holds no share.
func (b *cutBody) begin(buf []byte) error {
	for len(b.head) < len(buf) && !b.in.final {
		n, err := b.in.fill(buf[len(b.head):])
		b.head = buf[:len(b.head)+n]
		if err != nil {
			return err
		}
	}
	return nil
}

func (b *cutBody) free() {
	if b.carry != nil {
		b.s.chunks.put(b.carry)
	}
}

// ended reports whether there is nothing left to cut.
func (b *cutBody) ended() bool { return b.in.final && len(b.head) == 0 && len(b.carry) == 0 }

// readSome stores chunks of a body until it ends, or until the first cut at which
// limit bytes or more have been stored. Between two chunks it holds what was read
// behind the last cut and no other memory; it waits in line for the next chunk's.
func (st *stream) readSome(b *cutBody, limit uint64) (manifest.Manifest, error) {
	s := st.s
	if err := s.admit(st.ctx, s.mem.streams, budget.Stream); err != nil {
		return manifest.Manifest{}, err
	}
	st.hold(s.mem.streams, budget.Stream)
	if b.carry == nil {
		b.carry = s.chunks.get(readSize)[:0]
	}
	b.carry, b.head = append(b.carry, b.head...), nil
	// No worker is left behind: what it reads goes back to its share then.
	defer func() {
		for _, sl := range st.slots {
			<-sl.done
		}
	}()
	for !b.ended() && st.size < limit {
		data, mem, err := st.nextChunk(&b.in, &b.carry)
		if err != nil {
			return manifest.Manifest{}, err
		}
		if mem == nil {
			break
		}
		st.size += uint64(len(data))
		if err := st.dispatch(mem, data, b.ended()); err != nil {
			return manifest.Manifest{}, err
		}
	}
	return st.finish()
}

// finish ends the manifest. What is made from now on travels with the put.
func (st *stream) finish() (manifest.Manifest, error) {
	if err := st.collect(0); err != nil {
		return manifest.Manifest{}, err
	}
	if err := st.releaseLists(0); err != nil {
		return manifest.Manifest{}, err
	}
	st.ending = true
	return st.builder.Finish()
}

// bodyReader reads a body and holds it to its declared length.
type bodyReader struct {
	r        io.Reader
	declared int64
	read     uint64
	final    bool          // it has ended
	took     time.Duration // spent waiting for the client
}

// fill reads once into b and returns how much came.
func (in *bodyReader) fill(b []byte) (int, error) {
	begin := time.Now()
	defer func() { in.took += time.Since(begin) }()
	for range 100 {
		n, err := in.r.Read(b)
		in.read += uint64(n)
		switch {
		case in.declared >= 0 && in.read > uint64(in.declared):
			return n, fmt.Errorf("%w: longer than the declared %d bytes", ErrShortBody, in.declared)
		case err == io.EOF:
			in.final = true
			if in.declared >= 0 && in.read != uint64(in.declared) {
				return n, fmt.Errorf("%w: %d bytes, declared %d", ErrShortBody, in.read, in.declared)
			}
			return n, nil
		case err != nil:
			return n, readError(err)
		case n > 0:
			return n, nil
		}
	}
	return 0, readError(io.ErrNoProgress)
}

// chunkMemory is the buffer that a chunk lies in, and its part of a share.
type chunkMemory struct {
	s     *Store
	buf   []byte
	share *budget.Share
	n     int64
}

func (b *chunkMemory) free() {
	if len(b.buf) == b.s.mem.chunkBuffers.size {
		b.s.mem.chunkBuffers.put(b.buf)
	} else {
		b.s.chunks.put(b.buf)
	}
	b.share.Release(b.n)
}

// takeChunk waits for the memory of one chunk of at most n bytes.
func (st *stream) takeChunk(n int) (*chunkMemory, error) {
	s := st.s
	b := &chunkMemory{s: s, share: s.mem.slowUploads}
	if st.fast {
		b.share = s.mem.uploads
	}
	whole := n > s.mem.chunkBuffers.size/2
	if b.n = weigh(n); whole {
		b.n = int64(s.mem.chunkBuffers.size)
	}
	wait := s.goOn
	if !st.begun {
		wait, st.begun = s.admit, true
	}
	if err := wait(st.ctx, b.share, b.n); err != nil {
		return nil, err
	}
	if whole {
		b.buf = s.mem.chunkBuffers.get()
	} else {
		b.buf = s.chunks.get(n)
	}
	return b, nil
}

// nextChunk reads the next chunk and leaves what follows it in carry. At the end
// of the body there is none.
func (st *stream) nextChunk(in *bodyReader, carry *[]byte) ([]byte, *chunkMemory, error) {
	cutter := st.realm.cutter(st.bucket.Settings.Profile)
	// A client that sends nothing holds no chunk's memory. And a body that ends
	// within the length of a small object is known before it is cut.
	begin, had := in.took, len(*carry)
	for old := *carry; !in.final && len(old) <= smallObject; old = *carry {
		n, err := in.fill(old[len(old):readSize])
		*carry = old[:len(old)+n]
		if err != nil {
			return nil, nil, err
		}
	}
	if len(*carry) == 0 {
		return nil, nil, nil
	}
	if !st.begun {
		st.fast = isFast(len(*carry)-had, in.took-begin)
	}
	b, err := st.takeChunk(cutter.Params().Max)
	if err != nil {
		return nil, nil, err
	}
	fill := copy(b.buf, *carry)
	*carry = (*carry)[:0]
	begin = in.took
	for seen := 0; ; {
		n := cutter.CutFrom(b.buf[:fill], seen, in.final)
		if in.final && in.read <= smallObject {
			n = fill // one chunk, as if its length had been declared
		}
		if n > 0 {
			*carry = append(*carry, b.buf[n:fill]...)
			st.fast = isFast(n, in.took-begin)
			return b.buf[:n], b, nil
		}
		seen = fill
		n, err := in.fill(b.buf[fill:min(cutter.Params().Max, fill+readSize)])
		if fill += n; err != nil {
			b.free()
			return nil, nil, err
		}
	}
}

// dispatch hands a chunk and its memory to a worker. The last chunk of a body is
// stored inline when it is short.
func (st *stream) dispatch(b *chunkMemory, data []byte, last bool) error {
	if last && len(data) <= smallObject {
		defer b.free()
		if err := st.collect(0); err != nil {
			return err
		}
		c, err := st.inline(seal.Data, data)
		if err != nil {
			return err
		}
		return st.builder.Add(c, uint64(len(data)))
	}
	if err := st.collect(2 * st.s.cfg.Workers); err != nil {
		b.free()
		return err
	}
	select {
	case st.s.workers <- struct{}{}:
	case <-st.ctx.Done():
		b.free()
		return context.Cause(st.ctx)
	}
	sl := &slot{done: make(chan struct{}), n: len(data)}
	st.slots = append(st.slots, sl)
	go func() {
		defer func() {
			b.free()
			<-st.s.workers
			close(sl.done)
		}()
		sl.chunk, sl.in, sl.err = st.s.storeChunk(st.ctx, st.realm, st.k, st.comp, data)
	}()
	return nil
}

// collect waits until at most keep chunks are in flight, and adds the finished
// ones to the manifest in order.
func (st *stream) collect(keep int) error {
	for len(st.slots) > keep {
		sl := st.slots[0]
		<-sl.done
		st.slots = st.slots[1:]
		if sl.err != nil {
			return sl.err
		}
		if sl.in != nil {
			st.packs[sl.in] = true
		}
		if err := st.builder.Add(sl.chunk, uint64(sl.n)); err != nil {
			return err
		}
	}
	return nil
}

// inline seals a chunk for the log pack, unless the index has it.
func (st *stream) inline(kind seal.Kind, plain []byte) (id.Chunk, error) {
	return st.s.inlineChunk(st.sub, st.realm, st.comp, kind, plain)
}

// storeList is the builder's Store. While the body streams past, a list chunk
// travels in a submission of its own, handed in once the packs of its children
// are; the last lists travel with the put. Either way children are adopted before
// their list.
func (st *stream) storeList(depth uint8, refs []manifest.Ref) (id.Chunk, error) {
	plain := manifest.AppendList(nil, depth, refs)
	sub := st.sub
	if !st.ending {
		sub = &submission{ctx: context.WithoutCancel(st.ctx), client: true}
	}
	c, err := st.s.inlineChunk(sub, st.realm, st.comp, seal.List, plain)
	if err != nil {
		return c, err
	}
	l := record.List{In: st.realm.realm, Chunk: c, Children: make([]id.Chunk, len(refs))}
	for i, r := range refs {
		l.Children[i] = r.Chunk
	}
	sub.lists = append(sub.lists, &l)
	if st.ending {
		return c, nil
	}
	// The chunks in flight are not among refs: those have been collected.
	packs := st.packs
	st.packs = map[*openPack]bool{}
	st.lists = append(st.lists, pendingList{sub, packs})
	return c, st.releaseLists(maxPendingLists)
}

// releaseLists hands in list chunks, oldest first, until at most keep are left.
func (st *stream) releaseLists(keep int) error {
	for len(st.lists) > keep {
		l := st.lists[0]
		for p := range l.packs {
			st.s.packs.ask(p)
		}
		for p := range l.packs {
			if err := p.wait(st.ctx); err != nil {
				return err
			}
		}
		st.lists = st.lists[1:]
		if err := st.s.writer.submit(st.ctx, l.sub); err != nil {
			return err
		}
	}
	return nil
}
