package chunker

import (
	"encoding/binary"
	"fmt"

	"github.com/zeebo/blake3"
)

// window is how many bytes decide whether a chunk may end behind them: a byte's
// share of the hash moves up one bit with each byte after it, and after 64 it has
// left a 64-bit hash. It is no choice but a property of the gear hash.
const window = 64

// gearContext is the BLAKE3 key derivation context of the gear table. Another
// string is another table for every key, and other cuts everywhere.
const gearContext = "cairn 2026-11-24 chunker gear table v1"

// Gear is the secret table that gives each byte value its 64-bit share of the
// rolling hash. It is made once for each key, never changes and may be used by
// many goroutines. It is as secret as its key: it does not print, and there is
// no == for it.
type Gear struct {
	// Behind a function, and not only a method Format: fmt calls no methods of
	// unexported fields, and prints what a pointer points to when it does not know
	// the verb, so that printing a struct with a Gear in it showed the table. A
	// function also forbids ==.
	table func() *gearTable
}

type gearTable [256]uint64

// NewGear derives the table of a key: the first 2,048 bytes that BLAKE3 in its
// key derivation mode gives for the key under a context of this package, as 256
// little-endian words. The key is not kept.
func NewGear(key *[32]byte) *Gear {
	var raw [8 * len(gearTable{})]byte
	blake3.DeriveKey(gearContext, key[:], raw[:])
	t := new(gearTable)
	for i := range t {
		t[i] = binary.LittleEndian.Uint64(raw[8*i:])
	}
	clear(raw[:])
	return &Gear{table: func() *gearTable { return t }}
}

// Format prints a placeholder, whatever the verb: the table is a secret.
func (Gear) Format(s fmt.State, _ rune) { fmt.Fprint(s, "chunker.Gear(secret)") }

// first returns the smallest length in [from, to) behind which the window hash is
// below limit, or to if there is none. It needs window <= from and
// to <= len(data)+1.
//
// Each step of the plain loop needs the hash of the step before, so a core waits
// most of the time. The hash behind a length depends on the window before it and
// on nothing else, so four stretches of data can be hashed side by side, each
// warmed up with the bytes before it: the waits of one are filled by the others.
func (t *gearTable) first(data []byte, from, to int, limit uint64) int {
	for to-from >= lanes*laneMin {
		n := min((to-from)/lanes, laneMax)
		if at := t.abreast(data, from, n, limit); at < n {
			// One of the lanes has a match at offset at, none has an earlier one.
			// A lane to the left may have a later one, and a smaller length.
			for l := range lanes {
				start, end := from+l*n, from+(l+1)*n
				if length := t.scan(data, start+at, end, limit); length < end {
					return length
				}
			}
			panic("chunker: the lanes saw a match that the plain loop does not see")
		}
		from += lanes * n
	}
	return t.scan(data, from, to, limit)
}

// How first divides its work. A lane costs window-1 bytes of warming up and pays
// on average half of its rest again when a match is found, so it is neither short
// nor long; with these, 1.5 % go into warming up and under 1 % of a chunk of the
// default average into finding a match again.
const (
	lanes   = 4
	laneMin = 256  // bytes of a lane, at least: below, the plain loop is as good
	laneMax = 4096 // bytes of a lane, at most
)

// scan is first, without lanes.
func (t *gearTable) scan(data []byte, from, to int, limit uint64) int {
	if from >= to {
		return to
	}
	var h uint64
	for _, b := range data[from-window : from-1] {
		h = h<<1 + t[b]
	}
	for i, b := range data[from-1 : to-1] {
		if h = h<<1 + t[b]; h < limit {
			return from + i
		}
	}
	return to
}

// abreast walks through the lengths [from, from+n), [from+n, from+2n) and so on
// at the same pace. It returns the smallest offset at which any lane has a match,
// or n if there is none. The doubling stands apart from the addition because the
// compiler turns a single expression into one instruction that is slower here
// than the two.
func (t *gearTable) abreast(data []byte, from, n int, limit uint64) int {
	lane := func(l int) (warm, rest []byte) {
		start := from + l*n
		return data[start-window : start-1], data[start-1 : start-1+n]
	}
	w0, r0 := lane(0)
	w1, r1 := lane(1)
	w2, r2 := lane(2)
	w3, r3 := lane(3)

	var h0, h1, h2, h3 uint64
	w1, w2, w3 = w1[:len(w0)], w2[:len(w0)], w3[:len(w0)] // no bounds checks below
	for i := range w0 {
		h0 = h0<<1 + t[w0[i]]
		h1 = h1<<1 + t[w1[i]]
		h2 = h2<<1 + t[w2[i]]
		h3 = h3<<1 + t[w3[i]]
	}
	r1, r2, r3 = r1[:len(r0)], r2[:len(r0)], r3[:len(r0)]
	for i := range r0 {
		h0 += h0
		if h0 += t[r0[i]]; h0 < limit {
			return i
		}
		h1 += h1
		if h1 += t[r1[i]]; h1 < limit {
			return i
		}
		h2 += h2
		if h2 += t[r2[i]]; h2 < limit {
			return i
		}
		h3 += h3
		if h3 += t[r3[i]]; h3 < limit {
			return i
		}
	}
	return n
}
