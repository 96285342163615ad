package pack

import (
	"encoding/binary"
	"fmt"
)

// AppendTable appends the CRC table of a body that lies in two pieces: one
// CRC32C for every [BlockSize] bytes of meta followed by slice (the last block
// may be shorter), then the CRC32C of those CRCs, all little-endian.
func AppendTable(dst, meta, slice []byte) []byte {
	from := len(dst)
	le := binary.LittleEndian
	for len(meta) > 0 || len(slice) > 0 {
		n := min(len(meta), BlockSize)
		c := CRC(meta[:n])
		meta = meta[n:]
		if n < BlockSize {
			n = min(len(slice), BlockSize-n)
			c = updateCRC(c, slice[:n])
			slice = slice[n:]
		}
		dst = le.AppendUint32(dst, c)
	}
	return le.AppendUint32(dst, CRC(dst[from:]))
}

// Shard is one shard in memory, in two pieces: Head is header, CRC table and,
// unless it is coded, the sealed meta; Slice is the piece of the coded stream.
// The zero Shard stands for one that is not at hand.
type Shard struct {
	Head, Slice []byte
}

// ParseShard checks header, length, table and every block of a whole shard and
// cuts it in two. The pieces point into b. The error wraps [ErrDamaged] or
// [ErrNewer]. A shard that passes is free of accidents; only its digest says
// that it is what the writer sent.
func ParseShard(b []byte) (Header, Shard, error) {
	h, err := ParseHeader(b)
	if err != nil {
		return Header{}, Shard{}, err
	}
	if len(b) != h.ShardLen() {
		return Header{}, Shard{}, fmt.Errorf("%w: shard %d of pack %v: %d bytes, its header says %d", ErrDamaged, h.Index, h.Pack, len(b), h.ShardLen())
	}
	n := h.SliceOffset()
	s := Shard{Head: b[:n:n], Slice: b[n:]}
	if err := h.CheckBody(s); err != nil {
		return Header{}, Shard{}, err
	}
	return h, s, nil
}

// CheckBody checks lengths, CRC table and every block of the shard s whose
// header h is. It does not look at the header's bytes again.
func (h *Header) CheckBody(s Shard) error {
	if len(s.Head) != h.SliceOffset() || len(s.Slice) != int(h.SliceLen) {
		return fmt.Errorf("%w: shard %d of pack %v: head and slice of %d and %d bytes, want %d and %d", ErrDamaged,
			h.Index, h.Pack, len(s.Head), len(s.Slice), h.SliceOffset(), h.SliceLen)
	}
	table := s.Head[HeaderSize:h.BodyOffset()]
	if err := CheckTable(table); err != nil {
		return fmt.Errorf("shard %d of pack %v: %w", h.Index, h.Pack, err)
	}
	meta, slice := s.Head[h.BodyOffset():], s.Slice
	for i := range h.Blocks() {
		n := min(len(meta), BlockSize)
		c := CRC(meta[:n])
		meta = meta[n:]
		if n < BlockSize {
			n = min(len(slice), BlockSize-n)
			c = updateCRC(c, slice[:n])
			slice = slice[n:]
		}
		if want := BlockCRC(table, i); c != want {
			return fmt.Errorf("%w: shard %d of pack %v: block %d has checksum %08x, want %08x", ErrDamaged, h.Index, h.Pack, i, c, want)
		}
	}
	return nil
}

// CheckTable checks a CRC table's own CRC. The error wraps [ErrDamaged].
func CheckTable(table []byte) error {
	n := len(table) - 4
	if n < 0 || n%4 != 0 {
		return fmt.Errorf("%w: a CRC table of %d bytes", ErrDamaged, len(table))
	}
	if got, want := CRC(table[:n]), binary.LittleEndian.Uint32(table[n:]); got != want {
		return fmt.Errorf("%w: CRC table has checksum %08x, want %08x", ErrDamaged, got, want)
	}
	return nil
}

// BlockCRC is the CRC that a table holds for block i of the body.
func BlockCRC(table []byte, i int) uint32 { return binary.LittleEndian.Uint32(table[4*i:]) }
