package pack

import (
	"cmp"
	"fmt"
	"slices"

	"cairn/erasure"
)

// Range is a run of bytes in one shard, counted from the beginning of its header.
type Range struct {
	Shard    uint8
	Off, Len int
}

// End is the offset just behind the range.
func (r Range) End() int { return r.Off + r.Len }

// Ranges appends where bytes off to off+n of the payload lie: in order, one
// range for each data shard they touch. They hold the same bytes of the same
// code words in every shard, so what is missing in one shard is reconstructed
// from the equal ranges of k' others, see [Coder.Recover]. A run that does not
// lie in the coded stream is [ErrDamaged]: some row or directory is wrong.
func (h *Header) Ranges(dst []Range, off, n uint32) ([]Range, error) {
	if uint64(off)+uint64(n) > uint64(h.streamLen()-h.codedMeta()) {
		return dst, fmt.Errorf("%w: pack %v: no %d bytes at %d in a stream of %d", ErrDamaged, h.Pack, n, off, h.streamLen())
	}
	first, size := h.SliceOffset(), int(h.SliceLen)
	for at, left := int(off), int(n); left > 0; {
		part := min(left, size-at%size)
		dst = append(dst, Range{Shard: uint8(at / size), Off: first + at%size, Len: part})
		at, left = at+part, left-part
	}
	return dst, nil
}

// MetaRanges appends where the sealed meta lies: at the end of the coded
// stream, or in the head of the shard with the header's index.
func (h *Header) MetaRanges(dst []Range) []Range {
	if !h.MetaCoded {
		return append(dst, Range{Shard: h.Index, Off: h.BodyOffset(), Len: int(h.MetaLen)})
	}
	first, size := h.SliceOffset(), int(h.SliceLen)
	for at := h.streamLen() - int(h.MetaLen); at < h.streamLen(); {
		part := size - at%size
		dst = append(dst, Range{Shard: uint8(at / size), Off: first + at%size, Len: part})
		at += part
	}
	return dst
}

// Round widens a range within the shard's body to whole CRC blocks: what is
// read can be checked by whoever keeps the shard, and tells it nothing finer.
func (h *Header) Round(r Range) Range {
	from, to := r.Off-h.BodyOffset(), r.End()-h.BodyOffset()
	from -= from % BlockSize
	to = min((to+BlockSize-1)/BlockSize*BlockSize, h.BodyLen())
	return Range{Shard: r.Shard, Off: h.BodyOffset() + from, Len: to - from}
}

// Merge sorts ranges of one pack by shard and offset and joins, in place, those
// of the same shard that touch, overlap or are at most gap bytes apart.
func Merge(rs []Range, gap int) []Range {
	slices.SortFunc(rs, func(a, b Range) int {
		return cmp.Or(cmp.Compare(a.Shard, b.Shard), cmp.Compare(a.Off, b.Off), cmp.Compare(a.Len, b.Len))
	})
	out := rs[:0]
	for _, r := range rs {
		if n := len(out); n > 0 && out[n-1].Shard == r.Shard && r.Off <= out[n-1].End()+gap {
			out[n-1].Len = max(out[n-1].End(), r.End()) - out[n-1].Off
		} else {
			out = append(out, r)
		}
	}
	return out
}

// Recover reconstructs the range r of a data shard from what the other shards
// hold at the same offsets: pieces has an element for each of the pack's shards,
// nil where nothing was read, otherwise r.Len bytes. At least k' are needed,
// else [ErrShort]. The result fills dst, r.Len bytes.
//
// Nothing is proven: a digest covers a whole shard, and these are parts. The
// caller opens the sealed chunk before a byte of it leaves.
func (c Coder) Recover(h Header, r Range, pieces [][]byte, dst []byte) error {
	n := int(h.K) + int(h.M)
	if r.Off < h.SliceOffset() || r.End() > h.ShardLen() || r.Shard >= h.K || len(dst) != r.Len || r.Len == 0 || len(pieces) != n {
		return fmt.Errorf("pack: recover %d bytes at %d of shard %d from %d pieces into %d bytes", r.Len, r.Off, r.Shard, len(pieces), len(dst))
	}
	have := make([][]byte, n)
	count := 0
	for i, p := range pieces {
		if p == nil || i == int(r.Shard) || count == int(h.K) {
			continue
		}
		if len(p) != r.Len {
			return fmt.Errorf("pack: recover from a piece of %d bytes, want %d", len(p), r.Len)
		}
		have[i] = p
		count++
	}
	if count < int(h.K) {
		return fmt.Errorf("%w: pack %v: %d pieces, %d are needed", ErrShort, h.Pack, count, h.K)
	}
	code, err := erasure.New(int(h.K), int(h.M))
	if err != nil {
		return err
	}
	have[r.Shard] = dst[:0]
	return code.Reconstruct(have, int(r.Shard))
}
