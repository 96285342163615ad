package chunker

import (
	"errors"
	"fmt"
	"math/bits"
)

// ErrParams is wrapped by every error of [Params.Validate].
var ErrParams = errors.New("chunker: not valid parameters")

// Params says how long chunks are, in bytes. The same bytes cut under other
// parameters share hardly a chunk with those cut before, so the parameters of
// data that is meant to be deduplicated never change.
type Params struct {
	Min int // no chunk is shorter, but for the last of a stream; at least 64
	Avg int // the mean over random data; a power of two, at least 256 and twice Min
	Max int // no chunk is longer; at least twice Avg, at most 1 GiB
}

// maxMax bounds Params.Max, and with it the buffer of a [Chunker], so that
// numbers read from a configuration cannot ask for all memory.
const maxMax = 1 << 30

// Default returns what ordinary data is cut with: 256 KiB, 1 MiB, 4 MiB - 64 KiB.
// The maximum leaves room in 4 MiB for what sealing and packing add.
func Default() Params { return Params{Min: 256 << 10, Avg: 1 << 20, Max: 4<<20 - 64<<10} }

// Fine returns the parameters for data that changes in many small places, such
// as disk images and databases: 64 KiB, 256 KiB, 1 MiB.
func Fine() Params { return Params{Min: 64 << 10, Avg: 256 << 10, Max: 1 << 20} }

// Validate returns nil, or an error that wraps [ErrParams] and names the field.
func (p Params) Validate() error {
	bad := func(field string, got int, want string) error {
		return fmt.Errorf("%w: %s is %d, want %s", ErrParams, field, got, want)
	}
	switch {
	case p.Avg < 256 || p.Avg > maxMax/2 || p.Avg&(p.Avg-1) != 0:
		return bad("Avg", p.Avg, fmt.Sprintf("a power of two from 256 to %d", maxMax/2))
	case p.Min < window || p.Min > p.Avg/2:
		return bad("Min", p.Min, fmt.Sprintf("from %d to half of Avg, %d", window, p.Avg/2))
	case p.Max < 2*p.Avg || p.Max > maxMax:
		return bad("Max", p.Max, fmt.Sprintf("from twice Avg, %d, to %d", 2*p.Avg, maxMax))
	}
	return nil
}

// normalisation is by how many bits the strict mask is longer and the loose mask
// shorter than one that matches once in Avg bytes. Two is the level of the
// constants printed in the FastCDC paper: 15 and 11 bits around the 13 of 8 KiB.
const normalisation = 2

// normal returns the length at which the loose mask takes over from the strict
// one. The paper switches at Avg, which makes chunks of random data longer than
// Avg on average: the minimum is skipped before. For lengths without a maximum
// the mean is
//
//	Min + 4 Avg - 15/4 Avg exp(-(normal-Min) / (4 Avg))
//
// and Avg*7/8 - Min/4 keeps it between 0.977 Avg and 0.993 Avg for every Min that
// Validate lets through; for Min = Avg/4, as in both profiles, it is 0.992 Avg.
func (p Params) normal() int { return p.Avg/8*7 - p.Min/4 }

// Cutter finds where chunks end. It is a table and parameters, both constant:
// its methods may be called by many goroutines at the same time.
type Cutter struct {
	gear   *Gear
	params Params
	normal int
	// A mask of the k highest bits is empty in a hash exactly when the hash is
	// below 2^(64-k), so the masks are kept as these limits.
	strict, loose uint64
}

// NewCutter returns a Cutter, or an error that wraps [ErrParams].
func NewCutter(g *Gear, p Params) (*Cutter, error) {
	if err := p.Validate(); err != nil {
		return nil, err
	}
	k := bits.TrailingZeros(uint(p.Avg)) // log2
	return &Cutter{
		gear:   g,
		params: p,
		normal: p.normal(),
		strict: 1 << (64 - (k + normalisation)),
		loose:  1 << (64 - (k - normalisation)),
	}, nil
}

// Params returns what the Cutter was made with.
func (c *Cutter) Params() Params { return c.params }

// Cut returns the length of the first chunk of data. final says that nothing
// follows data. 0 means that more data is needed, and is only returned when data
// is shorter than Max and not final, or empty.
//
// The length is a function of the key, the parameters and the bytes of the chunk
// alone: not of what stood before, of what follows (but that final data ends a
// chunk), or of how much of it was there. Cut keeps nothing and changes nothing.
func (c *Cutter) Cut(data []byte, final bool) int { return c.CutFrom(data, 0, final) }

// CutFrom is [Cutter.Cut] for data that has grown: an earlier call for
// data[:seen], not final, returned 0, and only what came since is looked at. So
// a chunk that arrives in pieces is hashed once, each piece while it is still in
// the processor's cache. A seen that is not from such a call makes wrong cuts,
// though never one out of bounds.
func (c *Cutter) CutFrom(data []byte, seen int, final bool) int {
	t := c.gear.table()
	// The lengths to try are those from the first that was not tried up to all
	// there is; Max needs no hash.
	from := max(c.params.Min, seen+1)
	end := min(len(data)+1, c.params.Max)
	if to := min(c.normal, end); from < to {
		if n := t.first(data, from, to, c.strict); n < to {
			return n
		}
	}
	if from = max(from, c.normal); from < end {
		if n := t.first(data, from, end, c.loose); n < end {
			return n
		}
	}
	switch {
	case len(data) >= c.params.Max:
		return c.params.Max
	case final:
		return len(data)
	}
	return 0
}
