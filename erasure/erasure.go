// Package erasure turns k data shards into m parity shards, and back from any k
// of the k+m.
//
// The code is systematic Reed-Solomon over GF(2^8) with the matrix that
// github.com/klauspost/reedsolomon builds by default (a Vandermonde matrix made
// systematic); for k = 1 every parity shard is a copy of the data. This is the
// only package that knows the library.
//
// Every byte position is coded on its own. Any equal range of all shards is
// therefore a codeword of the same code: a reader restores the range it needs
// and nothing else, and a caller with idle cores gives each a range.
//
// A missing shard is a slice of length zero, so shards have at least one byte.
// What is missing is restored; what is damaged is not found. A wrong shard that
// enters [Code.Reconstruct] makes wrong shards: hold each against its digest
// first, and pass a bad one as nil.
//
// A [Code] never changes after [New] and may be used by many goroutines at the
// same time. It starts none itself. It keeps no buffer that a caller gave it,
// and buffers that are written must overlap no other.
//
// Small calls allocate nothing. In larger ones the library's fused kernel puts
// its matrix on the heap: on amd64 with GFNI one allocation of 896 bytes a call,
// however long the shards are, and two when k is above ten. The kernel without it
// takes 1.4 to 5 times the CPU on such sizes (BenchmarkKernels), so it is used
// only where the allocation would cost as much as the work.
package erasure

import (
	"errors"
	"fmt"
	"sync"

	"github.com/klauspost/reedsolomon"
)

// MaxShards is the most shards, data and parity together, that GF(2^8) codes.
const MaxShards = 256

// Sentinels, wrapped with the numbers.
var (
	// ErrShape says that a call makes no sense: k or m out of bounds, not k+m
	// shards, unequal or zero lengths, a buffer too short. Nothing was written.
	ErrShape = errors.New("erasure: wrong shape")
	// ErrTooFew says that fewer than k shards are at hand.
	ErrTooFew = errors.New("erasure: too few shards")
	// ErrMismatch says that the parity is not the parity of the data. Which
	// shard is wrong cannot be told from it.
	ErrMismatch = errors.New("erasure: parity does not match")
)

// smallWork is the most multiplied bytes (inputs x outputs x length) of a call
// that takes the kernel without an allocation. Measured by BenchmarkKernels on an
// AMD EPYC (family 26, GFNI): both kernels take 0.25 us for 2+1 with 8 KiB and
// for 4+2 with 2 KiB; for 16+4 they are level with 1 KiB, above this bound.
const smallWork = 16 << 10

// Code is the code for one k and m.
type Code struct {
	k, m   int
	parity *transform          // nil when k = 1 or m = 0
	solver reedsolomon.Encoder // answers what the decoding matrices are

	mu       sync.RWMutex
	decoders map[pattern]*transform // grows up to maxDecoders
}

// codes holds the codes in use. k and m may come from the header of a shard that
// a stranger wrote, so there is a bound; a code pushed out still works.
var codes = struct {
	sync.RWMutex
	m map[[2]int]*Code
}{m: map[[2]int]*Code{}}

const maxCodes = 64

// New returns the code with k data and m parity shards: k at least 1, m at least
// 0 (no redundancy: only a whole set can be read), together at most [MaxShards].
// Equal arguments usually give the same Code. Making one for the first time
// inverts a k x k matrix; after that it is a look-up.
func New(k, m int) (*Code, error) {
	if k < 1 || m < 0 || k > MaxShards || m > MaxShards-k {
		return nil, fmt.Errorf("%w: %d data and %d parity shards, want at least 1 and 0, at most %d together", ErrShape, k, m, MaxShards)
	}
	key := [2]int{k, m}
	codes.RLock()
	c := codes.m[key]
	codes.RUnlock()
	if c != nil {
		return c, nil
	}
	c, err := build(k, m)
	if err != nil {
		return nil, err
	}
	codes.Lock()
	defer codes.Unlock()
	if other := codes.m[key]; other != nil {
		return other, nil
	}
	makeRoom(codes.m, maxCodes)
	codes.m[key] = c
	return c, nil
}

// makeRoom drops any entry of a cache that is full.
func makeRoom[K comparable, V any](m map[K]V, most int) {
	for k := range m {
		if len(m) < most {
			return
		}
		delete(m, k)
	}
}

func build(k, m int) (*Code, error) {
	c := &Code{k: k, m: m}
	if k == 1 || m == 0 {
		return c, nil
	}
	var err error
	// One goroutine: splitting shards of 16-64 KiB costs more than it gains, and
	// who has cores to spare splits the range. The library's own cache of
	// inversions is without a bound; decoders take its place.
	c.solver, err = reedsolomon.New(k, m, reedsolomon.WithMaxGoroutines(1), reedsolomon.WithInversionCache(false))
	if err != nil {
		return nil, fmt.Errorf("erasure: code %d+%d: %w", k, m, err)
	}
	c.decoders = map[pattern]*transform{}
	units := unitShards(k, k+m)
	for i := k; i < k+m; i++ {
		units[i] = make([]byte, k)
	}
	if err := c.solver.Encode(units); err != nil {
		return nil, fmt.Errorf("erasure: code %d+%d: %w", k, m, err)
	}
	c.parity = &transform{rows: units[k:], wide: c.solver}
	return c, nil
}

// K is the number of data shards.
func (c *Code) K() int { return c.k }

// M is the number of parity shards.
func (c *Code) M() int { return c.m }

// Encode computes the parity of shards[:k] into shards[k:], which may hold
// anything before. All k+m have the same length, at least 1. When k is 1 a
// parity shard may be the data shard itself.
func (c *Code) Encode(shards [][]byte) error {
	if err := c.whole(shards); err != nil {
		return err
	}
	switch {
	case c.m == 0:
	case c.k == 1:
		for _, s := range shards[1:] {
			copy(s, shards[0])
		}
	default:
		return c.parity.apply(shards)
	}
	return nil
}

// whole checks that there are k+m shards of one length above zero.
func (c *Code) whole(shards [][]byte) error {
	if len(shards) != c.k+c.m {
		return c.countError(shards)
	}
	size := len(shards[0])
	for i, s := range shards {
		if len(s) != size || size == 0 {
			return fmt.Errorf("%w: shard %d has %d bytes and shard 0 %d, want one length above zero", ErrShape, i, len(s), size)
		}
	}
	return nil
}

func (c *Code) countError(shards [][]byte) error {
	return fmt.Errorf("%w: %d shards for a code of %d+%d", ErrShape, len(shards), c.k, c.m)
}

// Reconstruct restores missing shards, those of length zero, from any k others:
// the wanted ones, or without any all that are missing. A wanted shard that is
// there is left alone, and one that is missing and not wanted stays missing.
//
// shards has k+m entries, and those present have one length: whole shards, or
// the same range of each. Where a shard is wanted, a slice of length zero with
// room for that many bytes is filled in place, nil becomes fresh memory, and a
// buffer that is too short is an error, because who lends one will look for the
// bytes there. On success shards[i] has its full length; after an error, shards
// is as it was.
//
// With fewer than k present and something to restore the error wraps
// [ErrTooFew].
func (c *Code) Reconstruct(shards [][]byte, want ...int) error {
	var p pattern
	for _, i := range want {
		if i < 0 || i >= c.k+c.m {
			return fmt.Errorf("%w: shard %d of %d is wanted", ErrShape, i, c.k+c.m)
		}
		p.want.set(i)
	}
	if len(want) == 0 {
		p.want.fill(c.k + c.m)
	}
	return c.restore(shards, &p)
}

// ReconstructData is [Code.Reconstruct] with all data shards wanted.
func (c *Code) ReconstructData(shards [][]byte) error {
	var p pattern
	p.want.fill(c.k)
	return c.restore(shards, &p)
}

// restore computes those of the wanted shards that are missing.
func (c *Code) restore(shards [][]byte, p *pattern) error {
	if len(shards) != c.k+c.m {
		return c.countError(shards)
	}
	size, present := 0, 0
	for i, s := range shards {
		switch {
		case len(s) == 0:
			continue
		case size == 0:
			size = len(s)
		case len(s) != size:
			return fmt.Errorf("%w: shard %d has %d bytes, one before it %d", ErrShape, i, len(s), size)
		}
		present++
		p.want.unset(i)
	}
	if p.want == (mask{}) {
		return nil
	}
	if present < c.k {
		return fmt.Errorf("%w: %d of %d+%d", ErrTooFew, present, c.k, c.m)
	}
	for i, s := range shards {
		if p.want.has(i) && cap(s) > 0 && cap(s) < size {
			return fmt.Errorf("%w: room for %d bytes where shard %d of %d goes", ErrShape, cap(s), i, size)
		}
	}
	if c.k == 1 {
		c.copyOut(shards, &p.want, size)
		return nil
	}
	return c.decode(shards, p, size)
}

// copyOut fills the wanted copies from the first that is there.
func (c *Code) copyOut(shards [][]byte, want *mask, size int) {
	var src []byte
	for _, s := range shards {
		if len(s) != 0 {
			src = s
			break
		}
	}
	for i, s := range shards {
		if want.has(i) {
			shards[i] = room(s, size)
			copy(shards[i], src)
		}
	}
}

// room is the buffer that s lends, or a fresh one.
func room(s []byte, size int) []byte {
	if cap(s) == 0 {
		return make([]byte, size)
	}
	return s[:size]
}

// decode multiplies the first k shards that are there with the decoding matrix
// of this pattern of losses.
func (c *Code) decode(shards [][]byte, p *pattern, size int) error {
	w := works.Get().(*work)
	defer w.done()
	for i, s := range shards {
		if len(s) != 0 && len(w.slices) < c.k {
			w.slices = append(w.slices, s)
			p.used.set(i)
		}
	}
	t, err := c.decoder(*p)
	if err != nil {
		return err
	}
	for i, s := range shards {
		if p.want.has(i) {
			w.slices = append(w.slices, room(s, size))
		}
	}
	if err := t.apply(w.slices); err != nil {
		return err
	}
	out := w.slices[c.k:]
	for i := range shards {
		if p.want.has(i) {
			shards[i], out = out[0], out[1:]
		}
	}
	return nil
}

// work is what one call needs beside the caller's buffers.
type work struct {
	slices [][]byte
	buf    []byte
}

var works = sync.Pool{New: func() any { return new(work) }}

// done gives w back, without the caller's buffers.
func (w *work) done() {
	clear(w.slices)
	w.slices = w.slices[:0]
	works.Put(w)
}
