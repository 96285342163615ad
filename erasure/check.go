package erasure

import (
	"bytes"
	"fmt"
)

// checkBlock is how much of each shard [Code.Check] codes at a time, so that the
// computed parity is still in the cache when it is compared.
const checkBlock = 64 << 10

// Check computes the parity of shards[:k] anew and compares it with shards[k:],
// for a scrub. Nothing of shards is written. All k+m shards are there and have
// the same length. A difference is an error that wraps [ErrMismatch] and names
// the first parity shard and range in which it shows; which of the shards is
// the wrong one only their digests can say. It costs an encode and a comparison,
// in ranges of 64 KiB, and holds at most m x 64 KiB. (The library's Verify is not
// used: it takes several times as long.)
func (c *Code) Check(shards [][]byte) error {
	if err := c.whole(shards); err != nil {
		return err
	}
	if c.k == 1 {
		for i, s := range shards[1:] {
			if !bytes.Equal(s, shards[0]) {
				return fmt.Errorf("%w: shard %d is no copy of shard 0", ErrMismatch, i+1)
			}
		}
		return nil
	}
	if c.m == 0 {
		return nil
	}
	size := len(shards[0])
	block := min(size, checkBlock)
	w := works.Get().(*work)
	defer w.done()
	if need := c.m * block; cap(w.buf) < need {
		w.buf = make([]byte, need)
	}
	for lo := 0; lo < size; lo += block {
		hi := min(lo+block, size)
		w.slices = w.slices[:0]
		for _, s := range shards[:c.k] {
			w.slices = append(w.slices, s[lo:hi])
		}
		for i := range c.m {
			w.slices = append(w.slices, w.buf[i*block:][:hi-lo])
		}
		if err := c.parity.apply(w.slices); err != nil {
			return err
		}
		for i := c.k; i < c.k+c.m; i++ {
			if !bytes.Equal(w.slices[i], shards[i][lo:hi]) {
				return fmt.Errorf("%w: shard %d of %d+%d, in bytes %d to %d", ErrMismatch, i, c.k, c.m, lo, hi)
			}
		}
	}
	return nil
}
