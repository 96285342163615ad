package budget

import (
	"fmt"
)

// Lengths that the shares are reckoned from. The packages that they come from
// are above this one; a test of the store holds them together.
const (
	// MaxChunk is the longest chunk, and the length of a chunk's buffer.
	MaxChunk = 4 << 20
	// FullPack is the memory of a full data pack, and SmallPack of one where
	// memory is short: its stream, without parity. The stream takes the same place
	// over fewer nodes, but for the rounding of five shards at most. A small pack
	// holds one of the longest chunks.
	FullPack  = 16<<20 + 256<<10
	SmallPack = 6 << 20
	// Encoder is what one zstd encoder holds, beside its output.
	Encoder = 2 << 20
	// Stream is what an upload holds however long it is and however long it
	// waits: what was read behind the last cut, and lists of chunks that wait for
	// their packs.
	Stream = 512 << 10
	// Connection is what a client's connection holds: its goroutines and buffers.
	Connection = 28 << 10
	// Heads is room for the headers, tables and metas of one pack's shards.
	Heads = 512 << 10

	minMemTable = 8 << 20
	maxMemTable = 64 << 20
	minCache    = 4 << 20
)

// Sizes is how the memory is divided, in bytes.
type Sizes struct {
	Total int64

	Packs  int64 // streams of data packs: open, being sent, held by a node that hangs
	Coding int64 // parity and heads of the packs being sent
	Repair int64 // reserved for repair and for whatever else opens a whole pack
	Log    int64 // reserved for the log writer

	Uploads  int64 // chunks being read, and until they are in their pack
	Streams  int64 // what an upload holds beside them
	Small    int64 // small objects, in both directions
	Compress int64 // encoders and their output
	Readers  int64 // chunks being handed out
	Fetch    int64 // chunks being fetched, decrypted and decompressed

	Index       int64
	Connections int64
	Rest        int64 // everything else: the runtime, tables of nodes, stacks

	PackBytes int // stream of one open pack
	Sealing   int // packs being sent at a time
	Width     int // most data shards of a pack; more would not fit when it narrows
	// The index's share holds two memtables, one being filled and one being
	// written out, and the caches. A third memtable, when writing out cannot keep
	// up, is part of the rest.
	MemTable, Cache int64
}

// arena is what badger allocates for a memtable of n bytes.
func arena(n int64) int64 { return n + 2*(n*15/100) }

// part is a share while it is being reckoned.
type part struct {
	size    *int64
	permil  int64 // of the total
	atLeast int64
}

// Divide divides total bytes in a store that survives the given number of
// losses. Each share has its part of the total, or what it needs at least; what
// that is more is taken from the others, as far as they have more than they
// need. The error is [ErrTooLarge], and says what would do.
func Divide(total int64, losses int) (Sizes, error) {
	s := Sizes{Total: total, PackBytes: FullPack, Sealing: 2}
	m := int64(losses)
	parts := s.parts(m)
	if total*parts[0].permil/1000 < max(3, 1+m)*FullPack {
		s.PackBytes = SmallPack
		parts = s.parts(m)
	}
	var short, spare, least int64
	for _, p := range parts {
		least += p.atLeast
		if *p.size = total * p.permil / 1000; *p.size < p.atLeast {
			short += p.atLeast - *p.size
			*p.size = p.atLeast
		} else {
			spare += *p.size - p.atLeast
		}
	}
	if least > total {
		const mib = 1 << 20
		return s, fmt.Errorf("%w: a store that survives %d losses needs at least %d MiB", ErrTooLarge, losses, (least+mib-1)/mib)
	}
	for _, p := range parts {
		if more := *p.size - p.atLeast; more > 0 && spare > 0 {
			*p.size -= (more*short + spare - 1) / spare // rounded up: the sum stays within the total
		}
	}
	if s.Width = 16; s.PackBytes == SmallPack || s.Coding < FullPack+m*MaxChunk {
		s.Width = 4
	}
	if s.Packs/int64(s.PackBytes) < 2*m+1 {
		s.Sealing = 1
	}
	s.MemTable = min(maxMemTable, max(minMemTable, min(s.Index*10/52, s.Rest*10/13)))
	s.Cache = s.Index - 2*arena(s.MemTable)
	return s, nil
}

// Least is what coding and repair need at least in a store that survives so many losses, with
// packs of these sizes.
func (s *Sizes) Least(losses int) (coding, repair int64) {
	m := int64(losses)
	return m*int64(s.PackBytes)/2 + Heads, FullPack + m*MaxChunk + Heads
}

// parts are the shares in order of size, the packs first.
func (s *Sizes) parts(m int64) []part {
	pack := int64(s.PackBytes)
	coding, repair := s.Least(int(m))
	return []part{
		// A node that hangs holds the packs that were being sent to it: with one
		// sealed at a time m of them hold m, and one is left.
		{&s.Packs, 223, (1 + m) * pack},
		// Over fewer nodes the code is narrower and its parity longer: at worst two
		// data shards.
		{&s.Coding, 55, coding},
		// A pack of full length, whatever is written now, and its parity.
		{&s.Repair, 50, repair},
		{&s.Log, 25, 4 << 20},

		{&s.Uploads, 107, 2 * MaxChunk},
		{&s.Streams, 40, 3 * Stream},
		{&s.Small, 25, 2 << 20},
		{&s.Compress, 25, MaxChunk + MaxChunk/32 + Encoder},
		{&s.Readers, 100, 2 * MaxChunk},
		{&s.Fetch, 50, 2*MaxChunk + 1<<20},

		{&s.Index, 200, 2*arena(minMemTable) + minCache},
		{&s.Connections, 60, 160 * Connection},
		{&s.Rest, 40, arena(minMemTable)},
	}
}
