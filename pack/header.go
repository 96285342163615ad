package pack

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"

	"cairn/id"
)

// Sizes of the shard format. See docs/formats/pack.md for the picture.
const (
	HeaderSize = 192      // bytes of a header
	BlockSize  = 16 << 10 // bytes of body under one CRC32C
	// MaxInlineMeta is the longest sealed meta that is copied into every shard;
	// a longer one is coded with the payload.
	MaxInlineMeta = 16 << 10
	// MaxShardSize bounds a whole shard; what claims to be longer is refused
	// before anything is allocated.
	MaxShardSize = 32 << 20
	// MaxWidth bounds k'+m.
	MaxWidth = 32

	version = 1
	magic   = "CRNS"

	flagMetaCoded = 1 << 0
	flagBegin     = 1 << 1
)

// Kind says what a pack holds.
type Kind uint8

const (
	Data     Kind = 1 // sealed chunks; outside the log
	Log      Kind = 2 // records and small sealed chunks; a link of the chain
	Snapshot Kind = 3 // a piece of an exported index; outside the log
)

func (k Kind) String() string {
	switch k {
	case Data:
		return "data"
	case Log:
		return "log"
	case Snapshot:
		return "snapshot"
	}
	return fmt.Sprintf("kind %d", uint8(k))
}

// Sentinels. A newer version is not damage: this build must not judge it.
var (
	ErrDamaged = errors.New("pack: damaged")
	ErrNewer   = fmt.Errorf("pack: %w", id.ErrNewer)
)

// Header is the plain beginning of every shard. Two shards belong together only
// when everything but Index is equal, MetaTag included.
type Header struct {
	Kind      Kind
	MetaCoded bool // the sealed meta ends the coded stream instead of standing in every shard
	Begin     bool // a log pack that begins an epoch: its predecessor was found, not acknowledged
	Pack      id.Pack
	K, M      uint8 // data and parity shards of this pack
	Index     uint8 // 0..K-1 data, K..K+M-1 parity
	// MetaLen is the length of the sealed meta, SliceLen that of this shard's
	// piece of the coded stream, both in bytes and both padded: they tell a size
	// class and nothing finer.
	MetaLen, SliceLen uint32
	MetaTag           [16]byte // the GCM tag of the sealed meta
	Writer            id.Writer
	Counter           uint64 // the writer's pack counter, from 1
	// The log fields. Epoch is set for every kind; the others are zero unless
	// Kind is Log.
	Log     id.Log
	Epoch   uint64
	Seq     uint64 // from 1
	Attempt uint32 // from 1, within one epoch and sequence
	Prev    id.Pack
}

// Position orders log packs: the tail of a log is the complete pack with the
// highest position anywhere.
type Position struct {
	Epoch, Seq uint64
	Attempt    uint32
}

// Compare orders positions by epoch, then sequence, then attempt.
func (p Position) Compare(q Position) int {
	for _, d := range [...][2]uint64{{p.Epoch, q.Epoch}, {p.Seq, q.Seq}, {uint64(p.Attempt), uint64(q.Attempt)}} {
		if d[0] != d[1] {
			if d[0] < d[1] {
				return -1
			}
			return 1
		}
	}
	return 0
}

func (p Position) String() string {
	return fmt.Sprintf("epoch %d, sequence %d, attempt %d", p.Epoch, p.Seq, p.Attempt)
}

// Position is the header's place among log packs.
func (h *Header) Position() Position { return Position{h.Epoch, h.Seq, h.Attempt} }

// Common is the header without what differs from shard to shard: two shards
// belong together exactly when their Commons are equal.
func (h Header) Common() Header {
	h.Index = 0
	return h
}

// BodyLen is the number of bytes under the CRC table: the meta, where it is not
// coded, and the slice.
func (h *Header) BodyLen() int {
	n := int(h.SliceLen)
	if !h.MetaCoded {
		n += int(h.MetaLen)
	}
	return n
}

// Blocks is the number of CRCs in the table.
func (h *Header) Blocks() int { return (h.BodyLen() + BlockSize - 1) / BlockSize }

// TableLen is the length of the CRC table in bytes, its own CRC included.
func (h *Header) TableLen() int { return 4*h.Blocks() + 4 }

// BodyOffset is where the body begins within the shard.
func (h *Header) BodyOffset() int { return HeaderSize + h.TableLen() }

// SliceOffset is where the slice begins within the shard.
func (h *Header) SliceOffset() int { return h.BodyOffset() + h.BodyLen() - int(h.SliceLen) }

// ShardLen is the length of the whole shard in bytes.
func (h *Header) ShardLen() int { return h.BodyOffset() + h.BodyLen() }

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// CRC is the checksum of headers, tables and blocks: CRC32C, which finds
// accidents; it is no defence against someone who means it.
func CRC(b []byte) uint32 { return crc32.Checksum(b, castagnoli) }

// updateCRC is the checksum of what c is the checksum of, followed by b.
func updateCRC(c uint32, b []byte) uint32 { return crc32.Update(c, castagnoli, b) }

// Append writes the header's one valid encoding, HeaderSize bytes.
func (h *Header) Append(dst []byte) []byte {
	n := len(dst)
	dst = append(dst, make([]byte, HeaderSize)...)
	b := dst[n:]
	copy(b, magic)
	le := binary.LittleEndian
	le.PutUint16(b[4:], version)
	b[6] = byte(h.Kind)
	if h.MetaCoded {
		b[7] |= flagMetaCoded
	}
	if h.Begin {
		b[7] |= flagBegin
	}
	copy(b[8:], h.Pack[:])
	b[24], b[25], b[26] = h.K, h.M, h.Index
	le.PutUint32(b[28:], h.MetaLen)
	le.PutUint32(b[32:], h.SliceLen)
	copy(b[36:], h.MetaTag[:])
	copy(b[52:], h.Writer[:])
	le.PutUint64(b[68:], h.Counter)
	le.PutUint32(b[76:], uint32(h.Log))
	le.PutUint64(b[80:], h.Epoch)
	le.PutUint64(b[88:], h.Seq)
	le.PutUint32(b[96:], h.Attempt)
	copy(b[100:], h.Prev[:])
	le.PutUint32(b[188:], CRC(b[:188]))
	return dst
}

// ParseHeader reads the header at the beginning of b. The error wraps
// [ErrDamaged] or [ErrNewer]. What it accepts, Append writes back byte for byte.
func ParseHeader(b []byte) (Header, error) {
	var h Header
	bad := func(format string, a ...any) (Header, error) {
		return Header{}, fmt.Errorf("%w: shard header: %s", ErrDamaged, fmt.Sprintf(format, a...))
	}
	if len(b) < HeaderSize {
		return bad("%d bytes, want %d", len(b), HeaderSize)
	}
	b = b[:HeaderSize]
	if string(b[:4]) != magic {
		return bad("no magic")
	}
	le := binary.LittleEndian
	if got, want := CRC(b[:188]), le.Uint32(b[188:]); got != want {
		return bad("checksum %08x, want %08x", got, want)
	}
	if v := le.Uint16(b[4:]); v > version {
		return Header{}, fmt.Errorf("%w: shard format %d, this build knows %d", ErrNewer, v, version)
	} else if v == 0 {
		return bad("version 0")
	}
	h.Kind, h.MetaCoded, h.Begin = Kind(b[6]), b[7]&flagMetaCoded != 0, b[7]&flagBegin != 0
	copy(h.Pack[:], b[8:])
	h.K, h.M, h.Index = b[24], b[25], b[26]
	h.MetaLen, h.SliceLen = le.Uint32(b[28:]), le.Uint32(b[32:])
	copy(h.MetaTag[:], b[36:])
	copy(h.Writer[:], b[52:])
	h.Counter = le.Uint64(b[68:])
	h.Log = id.Log(le.Uint32(b[76:]))
	h.Epoch, h.Seq, h.Attempt = le.Uint64(b[80:]), le.Uint64(b[88:]), le.Uint32(b[96:])
	copy(h.Prev[:], b[100:])
	if err := h.check(); err != nil {
		return Header{}, err
	}
	var again [HeaderSize]byte
	if string(h.Append(again[:0])) != string(b) {
		return bad("not the one valid encoding")
	}
	return h, nil
}

// check bounds every field, so that lengths computed from an accepted header
// cannot overflow or ask for absurd memory.
func (h *Header) check() error {
	bad := func(format string, a ...any) error {
		return fmt.Errorf("%w: shard header: %s", ErrDamaged, fmt.Sprintf(format, a...))
	}
	switch {
	case h.Kind < Data || h.Kind > Snapshot:
		return bad("kind %d", h.Kind)
	case h.Pack.IsZero() || h.Writer.IsZero():
		return bad("a zero ID")
	case h.K == 0 || int(h.K)+int(h.M) > MaxWidth:
		return bad("code %d+%d", h.K, h.M)
	case h.Index >= h.K+h.M:
		return bad("shard %d of %d", h.Index, h.K+h.M)
	case h.MetaLen > MaxShardSize || h.SliceLen > MaxShardSize:
		return bad("lengths %d and %d", h.MetaLen, h.SliceLen)
	case !h.MetaCoded && h.MetaLen > MaxInlineMeta:
		return bad("inline meta of %d bytes", h.MetaLen)
	case h.MetaCoded && uint64(h.MetaLen) > uint64(h.SliceLen)*uint64(h.K):
		return bad("coded meta of %d bytes in %d slices of %d", h.MetaLen, h.K, h.SliceLen)
	case h.ShardLen() > MaxShardSize:
		return bad("%d bytes long", h.ShardLen())
	case h.Kind == Log && (h.Seq == 0 || h.Attempt == 0 || h.Epoch == 0):
		return bad("a log pack without a position")
	case h.Kind != Log && (h.Begin || h.Seq != 0 || h.Attempt != 0 || h.Log != 0 || !h.Prev.IsZero()):
		return bad("a %v pack with a position in the log", h.Kind)
	}
	return nil
}
