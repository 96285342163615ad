package pack

import (
	"cmp"
	"crypto/rand"
	"fmt"
	"slices"
	"sync"
)

// Builder collects the sealed chunks of one pack in one buffer, which never
// moves: whoever has reserved a place seals right into it, side by side with
// others. Reserve, Add, Abandon and Close may be called at the same time; Meta
// and Payload only after Done, and Reset only when nobody looks at the buffer
// any more.
type Builder struct {
	buf   []byte // its length is all there is
	k     int
	limit int

	mu      sync.Mutex // owns everything below
	used    int
	places  []place // reservations by offset, abandoned ones too
	open    int     // those neither added nor abandoned
	closed  bool
	entries []Entry
	done    chan struct{}
}

type place struct {
	off, end uint32
	settled  bool
}

// NewBuilder returns a builder over buf for a pack of k data shards. It is full
// when limit bytes are reserved, or what [Capacity] says, if that is less; limit
// 0 means only the latter. [StreamLen] bytes of buffer are enough for any data
// pack (but for one of hundreds of chunks most of which are abandoned: its
// directory may take another place than was reckoned, and Encode copies); a
// shorter buffer is full earlier.
func NewBuilder(buf []byte, k, limit int) *Builder {
	b := &Builder{}
	b.Reset(buf, k, limit)
	return b
}

// Reset begins a new pack, in a buffer that may be the old one.
func (b *Builder) Reset(buf []byte, k, limit int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.open != 0 {
		panic("pack: reset of a builder with open reservations")
	}
	b.buf, b.k, b.limit = buf, k, limit
	b.used, b.closed = 0, false
	b.places, b.entries = b.places[:0], b.entries[:0]
	b.done = make(chan struct{})
}

// Reserve finds room for a sealed chunk of n bytes at offset off. The caller
// fills buf, whose content is that of some earlier pack, and says so with Add,
// or calls Abandon. When there is no room, or after Close, ok is false and
// nothing changes: a shorter chunk may still fit.
func (b *Builder) Reserve(n int) (buf []byte, off uint32, ok bool) {
	if n <= 0 {
		panic(fmt.Sprintf("pack: reserve %d bytes", n))
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.closed || !b.fits(n) {
		return nil, 0, false
	}
	from := b.used
	b.used += n
	b.places = append(b.places, place{off: uint32(from), end: uint32(b.used)})
	b.open++
	return b.buf[from:b.used:b.used], uint32(from), true
}

// fits reports whether one more chunk of n bytes has room.
func (b *Builder) fits(n int) bool {
	end := b.used + n
	return len(b.places) < MaxEntries && end <= len(b.buf) && (b.limit == 0 || end <= b.limit) && end <= Capacity(b.k, len(b.places)+1)
}

// Room is how many bytes that many further chunks may have together, at least.
func (b *Builder) Room(chunks int) int {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.closed || len(b.places)+chunks > MaxEntries {
		return 0
	}
	room := min(len(b.buf), Capacity(b.k, len(b.places)+chunks))
	if b.limit > 0 {
		room = min(room, b.limit)
	}
	return max(0, room-b.used)
}

// Add says that the reservation at e.Offset holds the sealed chunk e, which is
// as long as was reserved.
func (b *Builder) Add(e Entry) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if p := b.at(e.Offset); uint64(p.end) != e.End() {
		panic(fmt.Sprintf("pack: a sealed chunk of %d bytes in a reservation of %d", e.SealedLen, p.end-p.off))
	}
	b.entries = append(b.entries, e)
	b.settle(e.Offset)
}

// Abandon gives up the reservation at off. Its bytes are dead: they are filled
// with random ones, so that nothing of what the buffer held before gets into
// the pack and a node cannot tell them from a chunk.
func (b *Builder) Abandon(off uint32) {
	b.mu.Lock()
	defer b.mu.Unlock()
	p := b.at(off)
	_, _ = rand.Read(b.buf[p.off:p.end]) // it never fails, the process ends first
	b.settle(off)
}

// at finds the open reservation at off; b.mu is held.
func (b *Builder) at(off uint32) *place {
	i, ok := slices.BinarySearchFunc(b.places, off, func(p place, off uint32) int { return cmp.Compare(p.off, off) })
	if !ok || b.places[i].settled {
		panic(fmt.Sprintf("pack: no open reservation at %d", off))
	}
	return &b.places[i]
}

func (b *Builder) settle(off uint32) {
	b.at(off).settled = true
	b.open--
	b.finish()
}

func (b *Builder) finish() {
	if b.closed && b.open == 0 {
		close(b.done)
	}
}

// Drop lets go of the buffer of a builder that is done; the entries stay.
func (b *Builder) Drop() {
	b.mustBeDone()
	b.mu.Lock()
	defer b.mu.Unlock()
	b.buf = nil
}

// Close ends reserving. Closing again does nothing.
func (b *Builder) Close() {
	b.mu.Lock()
	defer b.mu.Unlock()
	if !b.closed {
		b.closed = true
		b.finish()
	}
}

// Done is closed once the builder is closed and every reservation was added or
// abandoned.
func (b *Builder) Done() <-chan struct{} {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.done
}

// Used is how many bytes are reserved.
func (b *Builder) Used() int { b.mu.Lock(); defer b.mu.Unlock(); return b.used }

// Len is how many chunks were added.
func (b *Builder) Len() int { b.mu.Lock(); defer b.mu.Unlock(); return len(b.entries) }

// Entries are the chunks that were added, by offset; valid until Reset.
func (b *Builder) Entries() []Entry {
	b.mustBeDone()
	slices.SortFunc(b.entries, func(a, c Entry) int { return cmp.Compare(a.Offset, c.Offset) })
	return b.entries
}

// Payload is what [Coder.Encode] wants: the reserved bytes, with the rest of the
// buffer as spare capacity. Dead bytes at its end are left off.
func (b *Builder) Payload() []byte {
	b.mustBeDone()
	end := uint64(0)
	for i := range b.entries {
		end = max(end, b.entries[i].End())
	}
	return b.buf[:end]
}

func (b *Builder) mustBeDone() {
	b.mu.Lock()
	defer b.mu.Unlock()
	if !b.closed || b.open != 0 {
		panic("pack: a builder was read that is not done")
	}
}
