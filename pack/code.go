package pack

import (
	"errors"

	"cairn/erasure"
)

// minPart is the shortest range of a shard that is worth a goroutine.
const minPart = 64 << 10

// encodeParity computes slices[k:] from slices[:k]. Every byte position is a
// code word of its own, so that each worker takes a range of all shards.
func (c Coder) encodeParity(slices [][]byte, k int) error {
	code, err := erasure.New(k, len(slices)-k)
	if err != nil {
		return err
	}
	size := len(slices[0])
	parts := min(c.Workers, size/minPart)
	if parts <= 1 {
		return code.Encode(slices)
	}
	step := (size/parts + 63) &^ 63
	errs := make([]error, parts)
	c.each(parts, func(p int) {
		lo, hi := p*step, (p+1)*step
		if p == parts-1 {
			hi = size
		}
		piece := make([][]byte, len(slices))
		for i, s := range slices {
			piece[i] = s[lo:hi]
		}
		errs[p] = code.Encode(piece)
	})
	return errors.Join(errs...)
}

// reconstruct restores the data slices that are nil, each into what buf returns
// for it, from any k others.
func (c Coder) reconstruct(slices [][]byte, k int, buf func(i int) []byte) error {
	code, err := erasure.New(k, len(slices)-k)
	if err != nil {
		return err
	}
	var missing []int
	for i := range k {
		if slices[i] == nil {
			slices[i] = buf(i)[:0]
			missing = append(missing, i)
		}
	}
	return code.Reconstruct(slices, missing...)
}
