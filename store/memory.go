package store

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"cairn/store/budget"
)

// memory is what this store may use, share by share. Whoever holds a part of one
// share and waits for another does so in this order, so that waiting ends:
//
//	streams, slow uploads, uploads, compress, packs, coding
//	small, inline, compress, log
//	slow readers, readers, fetch, repair
//	repair, compress, packs, coding (a snapshot's pieces)
//
// What is at the end of a line is held only while nodes work, which is bounded
// by [Config.Patience]; a node that hangs keeps what it was given, and gets no
// more. The log writer waits for nothing but its own share.
type memory struct {
	sizes budget.Sizes

	// packs holds the streams of data packs, from when one is opened until the
	// last node that reads it has returned; coding what is added for sending.
	packs, coding *budget.Share
	log           *budget.Share // log packs
	repair        *budget.Share // packs opened whole

	streams              *budget.Share // uploads that are being taken
	uploads, slowUploads *budget.Share // chunks from their first byte until they are in a pack
	small                *budget.Share // small bodies being read, small objects being handed out
	inline               *budget.Share // small objects on their way through the log
	compress             *budget.Share
	readers, slowReaders *budget.Share // chunks being handed out, on lease
	fastReaders          *budget.Share // the same, to clients that take them at once: only what is free at once
	fetch                *budget.Share // what it takes to get one

	packBuffers, chunkBuffers stack

	widening sync.Mutex
	lent     int64 // of the readers' share, to coding and repair
}

// lineLength is how many may wait before a share. Each of them is a request with
// a connection, so connections bound it too.
const lineLength = 1024

// longLine is the same where who waits may wait for long: uploads, and readers of
// what is large. A quarter of the connections at most: they leave some to requests
// that need no such memory.
func longLine(sizes budget.Sizes) int { return int(sizes.Connections / budget.Connection / 4) }

// newMemory divides the memory of a store that survives m losses.
func newMemory(total int64, m int) (*memory, error) {
	sizes, err := budget.Divide(total, m)
	if err != nil {
		return nil, fmt.Errorf("%w: memory of %d bytes: %w", ErrInvalid, total, err)
	}
	share := func(name string, limit int64) *budget.Share { return budget.NewShare(name, limit, lineLength) }
	long := func(name string, limit int64) *budget.Share { return budget.NewShare(name, limit, longLine(sizes)) }
	mem := &memory{sizes: sizes,
		packs: share("packs", sizes.Packs), coding: share("coding", sizes.Coding), log: share("log", sizes.Log), repair: share("repair", sizes.Repair),
		streams: long("streams", sizes.Streams), uploads: share("uploads", sizes.Uploads), small: share("small", sizes.Small*3/5),
		inline: share("inline", sizes.Small-sizes.Small*3/5), compress: share("compress", sizes.Compress), readers: long("readers", sizes.Readers/2), fastReaders: share("readers, fast", sizes.Readers/2), fetch: share("fetch", sizes.Fetch),
		packBuffers: stack{size: sizes.PackBytes}, chunkBuffers: stack{size: budget.MaxChunk}}
	// Clients that take their time get at most half of what there is for their kind:
	// the others go on.
	mem.slowUploads = mem.uploads.Part("uploads, slow", max(sizes.Uploads/2, budget.MaxChunk))
	mem.slowReaders = mem.readers.Part("readers, slow", max(sizes.Readers/4, budget.MaxChunk))
	return mem, nil
}

func (m *memory) states() []budget.State {
	var out []budget.State
	for _, s := range []*budget.Share{m.packs, m.coding, m.log, m.repair, m.streams, m.uploads, m.slowUploads, m.small, m.inline, m.compress, m.readers, m.slowReaders, m.fastReaders, m.fetch} {
		out = append(out, s.State())
	}
	return out
}

// clients are the shares that are taken from while clients send or take bytes.
func (m *memory) clients() []*budget.Share {
	return []*budget.Share{m.streams, m.uploads, m.small, m.inline, m.readers, m.fastReaders, m.fetch}
}

// Memory says how much of each share of the memory is in use.
func (s *Store) Memory() []budget.State { return s.mem.states() }

// apportion divides the memory once it is known how many losses are survived.
func (s *Store) apportion(m int) error {
	mem, err := newMemory(s.cfg.Memory, m)
	if err != nil {
		return err
	}
	s.mem, s.packs = mem, newPacks(s, mem.sizes.Sealing)
	return nil
}

// widen sees to it that packs can be coded and repaired that survive so many losses. What
// that takes more comes from the readers' share, and is given back by the next start,
// which divides the memory anew. It waits for readers as long as ctx lets it.
func (m *memory) widen(ctx context.Context, losses int) error {
	if _, err := budget.Divide(m.sizes.Total, losses); err != nil { // the next start would not go through
		return fmt.Errorf("%w: memory of %d bytes: %w", ErrInvalid, m.sizes.Total, err)
	}
	m.widening.Lock()
	defer m.widening.Unlock()
	coding, repair := m.sizes.Least(losses)
	coding, repair = max(coding-m.coding.Limit(), 0), max(repair-m.repair.Limit(), 0)
	more := coding + repair
	if more == 0 {
		return nil
	}
	if m.readers.Limit()-m.lent-more < 2*budget.MaxChunk {
		return fmt.Errorf("%w: %d MiB of memory are too few for packs that survive %d losses: give the server more", ErrInvalid, m.sizes.Total>>20, losses)
	}
	if err := busy(m.readers.Acquire(ctx, more)); err != nil {
		return err
	}
	m.lent += more
	m.coding.Grow(coding)
	m.repair.Grow(repair)
	return nil
}

// admit waits for memory as long as a request that has not begun may wait.
func (s *Store) admit(ctx context.Context, share *budget.Share, n int64) error {
	return busy(share.AcquireWithin(ctx, n, s.cfg.Patience))
}

// goOn waits for memory in the middle of a request: longer, since giving up
// would waste what was done.
func (s *Store) goOn(ctx context.Context, share *budget.Share, n int64) error {
	return busy(share.AcquireWithin(ctx, n, 12*s.cfg.Patience))
}

// busy is a budget's refusal in the store's words.
func busy(err error) error {
	if errors.Is(err, budget.ErrBusy) || errors.Is(err, budget.ErrTooLarge) {
		return fmt.Errorf("%w: %w", ErrBusy, err)
	}
	return err
}

// A client is fast when it sends or takes a chunk at this rate, beside a pause.
const (
	fastRate  = 4 << 20 // bytes per second
	fastPause = 50 * time.Millisecond
)

func isFast(n int, took time.Duration) bool {
	return took <= fastPause+time.Duration(n)*time.Second/fastRate
}

// stack keeps buffers of one size for their next use: fresh memory is dear on
// virtual machines. There are no more of them than the share that they are taken
// under has room for.
type stack struct {
	size int
	mu   sync.Mutex
	free [][]byte
}

func (s *stack) get() []byte {
	s.mu.Lock()
	defer s.mu.Unlock()
	if n := len(s.free); n > 0 {
		b := s.free[n-1]
		s.free = s.free[:n-1]
		return b
	}
	return make([]byte, s.size)
}

func (s *stack) put(b []byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.free = append(s.free, b[:s.size])
}
