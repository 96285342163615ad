package erasure

import (
	"fmt"

	"github.com/klauspost/reedsolomon"
)

// transform computes outputs as sums of multiples of inputs. Encoding is one,
// and so is decoding for any one pattern of losses, with another matrix: the
// library's kernel for encoding does both, and its Reconstruct, which allocates
// six times and more a call, is not needed when bytes flow.
type transform struct {
	rows [][]byte            // per output, a coefficient per input
	wide reedsolomon.Encoder // the library's fused kernel, with the same rows
}

// small multiplies one slice at a time and allocates nothing.
var small reedsolomon.LowLevel

// apply takes the inputs, then the outputs, all of one length.
func (t *transform) apply(all [][]byte) error {
	if len(t.rows[0])*len(t.rows)*len(all[0]) <= smallWork {
		t.narrow(all)
		return nil
	}
	if err := t.wide.Encode(all); err != nil {
		return fmt.Errorf("erasure: %w", err)
	}
	return nil
}

// narrow is the kernel that multiplies one slice at a time.
func (t *transform) narrow(all [][]byte) {
	k := len(t.rows[0])
	for r, row := range t.rows {
		out := all[k+r]
		small.GalMulSlice(row[0], all[0], out)
		for i := 1; i < k; i++ {
			small.GalMulSliceXor(row[i], all[i], out)
		}
	}
}

// mask is a set of shard indexes.
type mask [MaxShards / 64]uint64

func (m *mask) set(i int)      { m[i/64] |= 1 << (i % 64) }
func (m *mask) unset(i int)    { m[i/64] &^= 1 << (i % 64) }
func (m *mask) has(i int) bool { return m[i/64]>>(i%64)&1 != 0 }

// fill sets the first n.
func (m *mask) fill(n int) {
	for i := range n {
		m.set(i)
	}
}

// pattern says which k shards are read and which are computed.
type pattern struct{ used, want mask }

// maxDecoders bounds the decoding matrices a code keeps, about 1 MiB of them:
// 512 for 16+4 and narrower codes, 16 for the widest.
func (c *Code) maxDecoders() int {
	return min(max(16, (1<<20)/((c.k+c.m)*c.k)), 512)
}

// decoder returns the transform for a pattern, from the cache or made now.
func (c *Code) decoder(p pattern) (*transform, error) {
	c.mu.RLock()
	t := c.decoders[p]
	c.mu.RUnlock()
	if t != nil {
		return t, nil
	}
	t, err := c.solve(p)
	if err != nil {
		return nil, fmt.Errorf("erasure: code %d+%d: %w", c.k, c.m, err)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	makeRoom(c.decoders, c.maxDecoders())
	c.decoders[p] = t
	return t, nil
}

// solve finds the decoding matrix. Decoding is linear, so what the library
// restores from the unit vectors are the coefficients themselves: byte j of a
// wanted shard is its coefficient of the j-th shard read.
func (c *Code) solve(p pattern) (*transform, error) {
	n := c.k + c.m
	shards := make([][]byte, n)
	units := unitShards(c.k, c.k)
	want := make([]bool, n)
	for i := range n {
		if p.used.has(i) {
			shards[i], units = units[0], units[1:]
		}
		want[i] = p.want.has(i)
	}
	if err := c.solver.ReconstructSome(shards, want); err != nil {
		return nil, err
	}
	t := &transform{}
	for i, s := range shards {
		if want[i] {
			t.rows = append(t.rows, s)
		}
	}
	var err error
	t.wide, err = reedsolomon.New(c.k, len(t.rows), reedsolomon.WithCustomMatrix(t.rows),
		reedsolomon.WithMaxGoroutines(1), reedsolomon.WithInversionCache(false))
	return t, err
}

// unitShards returns n slices of which the first k are the rows of the k x k
// identity matrix and the others nil.
func unitShards(k, n int) [][]byte {
	units := make([][]byte, n)
	for i := range k {
		units[i] = make([]byte, k)
		units[i][i] = 1
	}
	return units
}
