package pack

import (
	"bytes"
	"errors"
	"fmt"
	"sync"

	"github.com/fxamacker/cbor/v2"

	"cairn/id"
)

// Bounds of a meta; what exceeds them is neither written nor accepted.
const (
	MaxEntries  = 1 << 16 // sealed chunks in a pack
	MaxBatches  = 1 << 16
	MaxPlaces   = 2 * MaxWidth // a record of a change of the log nodes stands in both sets
	MaxRetired  = 4096
	MaxCarried  = 4096
	MaxSnapshot = 64 << 10 // bytes of a reference to a snapshot
	maxMeta     = 16 << 20 // bytes of an encoded meta

	metaVersion = 1
	// metaOverhead is what sealing puts before the encoded meta: the nonce, and
	// under the seal the encoding's length.
	metaOverhead = nonceSize + 4
	// These bound the encoded meta of a data pack: TestCapacityKnowsTheDirectory.
	entryOverhead = 1 + 1 + 1 + 5 + 1 + 5
	maxEntrySize  = 1 + 5 + 34 + 2 + 9 + 2 + 5 + 5 + 5
	minEntrySize  = 1 + 1 + 34 + 1 + 1 + 1 + 1 + 1 + 1
)

// Meta is the sealed part of a pack: its directory and, for a log pack, its link
// in the chain and its records. What a decoded Meta refers to is its own.
type Meta struct {
	// PayloadLen is the true length of the payload in bytes.
	PayloadLen uint32
	// Entries lists the sealed chunks by ascending offset; they do not overlap.
	Entries []Entry
	// Log is set in log packs and nowhere else.
	Log *LogMeta
	// Sum is a keyed digest of a log pack's payload, zero in other packs; Encode
	// sets it. The tail of a log has no shard digests yet: this proves its payload.
	Sum [16]byte
}

// Entry is a sealed chunk's line in the directory: all that opening it takes,
// its realm and epoch included.
type Entry struct {
	Info
	Offset uint32 // within the payload
}

// End is where the sealed chunk ends within the payload.
func (e *Entry) End() uint64 { return uint64(e.Offset) + uint64(e.SealedLen) }

// LogMeta is what a log pack holds beside sealed chunks.
type LogMeta struct {
	// Prev lists the predecessor's shards as its writer knew them; empty in the
	// first pack of a log.
	Prev []Place `cbor:"1,keyasint,omitempty"`
	// SnapshotSeq and Snapshot name the log pack with the record of the newest
	// snapshot: its sequence, and its ID in 16 bytes, opaque here. Zero and empty
	// before the first.
	SnapshotSeq uint64 `cbor:"2,keyasint,omitempty"`
	Snapshot    []byte `cbor:"3,keyasint,omitempty"`
	// Truncated is the truncation point: log packs below this sequence may be gone.
	Truncated uint64 `cbor:"4,keyasint,omitempty"`
	// ClusterVersion is the version of the cluster file in force.
	ClusterVersion uint64 `cbor:"5,keyasint,omitempty"`
	// LowWater is the writer's low-water pack counter: whatever this writer has
	// below it is adopted or will never be.
	LowWater uint64 `cbor:"6,keyasint,omitempty"`
	// Time is the log's time in Unix nanoseconds; it never goes back along a chain.
	Time int64 `cbor:"7,keyasint,omitempty"`
	// Batches are the records in order, sealed per realm by the caller.
	Batches []Batch `cbor:"8,keyasint,omitempty"`
	// Begin is set in the pack that begins an epoch.
	Begin *Begin `cbor:"9,keyasint,omitempty"`
	// Clean says that the writer stopped after this pack with nothing in hand.
	Clean bool `cbor:"10,keyasint,omitempty"`
}

// Place is one shard of a predecessor: where it is and its digest.
type Place struct {
	_        struct{} `cbor:",toarray"`
	Node     id.Node
	Index    uint8
	Instance id.Instance
	Digest   [16]byte
}

// Batch is a run of records of one realm. Realm 0 stands for records of the
// store itself.
type Batch struct {
	_     struct{} `cbor:",toarray"`
	Realm id.Realm
	First uint32 // position of the first record within the pack
	Body  []byte // sealed, opaque here
}

// Begin is what the first pack of an epoch says.
type Begin struct {
	// Retired are the writers that will never write again.
	Retired []id.Writer `cbor:"1,keyasint,omitempty"`
	// Carried are the packs whose meta and payload go along whole, oldest first;
	// the last one is the predecessor.
	Carried []Carried `cbor:"2,keyasint,omitempty"`
}

// Carried is a log pack that a begin pack carries: its meta lies here, its
// payload within the begin pack's. Nothing nests: what a carried pack carried
// stands in the same list, see [Carry].
type Carried struct {
	_      struct{} `cbor:",toarray"`
	Header Header   // the common header
	Meta   []byte   // encoded, without a list of carried packs of its own
	// Off and Len are the place of its payload within the begin pack's payload.
	// The ranges of carried packs may contain each other.
	Off, Len uint32
}

// Carry lists what a begin pack must carry when h and m are the tail's and the
// tail's payload begins at off within the begin pack's payload: what the tail
// carried itself, then the tail.
func Carry(h Header, m Meta, off uint32) ([]Carried, error) {
	if h.Kind != Log || m.Log == nil {
		return nil, fmt.Errorf("pack: a begin pack cannot carry %v, a %v pack", h.Pack, h.Kind)
	}
	var list []Carried
	if m.Log.Begin != nil {
		for _, c := range m.Log.Begin.Carried {
			c.Off += off
			list = append(list, c)
		}
		log, begin := *m.Log, *m.Log.Begin
		begin.Carried, log.Begin = nil, &begin
		m.Log = &log
	}
	b, err := m.Append(nil)
	if err != nil {
		return nil, err
	}
	return append(list, Carried{Header: h.Common(), Meta: b, Off: off, Len: m.PayloadLen}), nil
}

// MarshalBinary is the header's encoding, see [Header.Append].
func (h Header) MarshalBinary() ([]byte, error) { return h.Append(nil), nil }

// UnmarshalBinary reads a header of exactly [HeaderSize] bytes.
func (h *Header) UnmarshalBinary(b []byte) (err error) {
	if len(b) != HeaderSize {
		return fmt.Errorf("%w: shard header: %d bytes, want %d", ErrDamaged, len(b), HeaderSize)
	}
	*h, err = ParseHeader(b)
	return err
}

// The encoded meta: one byte of version, then CBOR (RFC 8949, core
// deterministic encoding) of this.
type wireMeta struct {
	PayloadLen uint32      `cbor:"1,keyasint,omitempty"`
	Entries    []wireEntry `cbor:"2,keyasint,omitempty"`
	Log        *LogMeta    `cbor:"3,keyasint,omitempty"`
	Sum        []byte      `cbor:"4,keyasint,omitempty"`
}

type wireEntry struct {
	_                           struct{} `cbor:",toarray"`
	Realm                       id.Realm
	Chunk                       id.Chunk
	Kind                        uint8
	Epoch                       uint64
	Compression                 uint8
	Offset, SealedLen, PlainLen uint32
}

var encMode, decMode = func() (cbor.UserBufferEncMode, cbor.DecMode) {
	eo := cbor.CoreDetEncOptions()
	eo.NilContainers = cbor.NilContainerAsEmpty
	em, err := eo.UserBufferEncMode()
	if err != nil {
		panic("pack: " + err.Error())
	}
	dm, err := cbor.DecOptions{
		DupMapKey:         cbor.DupMapKeyEnforcedAPF,
		IndefLength:       cbor.IndefLengthForbidden,
		TagsMd:            cbor.TagsForbidden,
		ExtraReturnErrors: cbor.ExtraDecErrorUnknownField,
		MaxArrayElements:  max(MaxEntries, MaxBatches),
		MaxMapPairs:       16,
		MaxNestedLevels:   8,
	}.DecMode()
	if err != nil {
		panic("pack: " + err.Error())
	}
	return em, dm
}()

var metaBuffers = sync.Pool{New: func() any { return new(bytes.Buffer) }}

// Append appends the meta's one valid encoding. A meta that breaks a rule of
// the format is an error.
func (m *Meta) Append(dst []byte) ([]byte, error) {
	if err := m.check(); err != nil {
		return dst, fmt.Errorf("pack: meta: %w", err)
	}
	w := wireMeta{PayloadLen: m.PayloadLen, Log: m.Log}
	if m.Log != nil {
		w.Sum = m.Sum[:]
	}
	if len(m.Entries) > 0 {
		w.Entries = make([]wireEntry, len(m.Entries))
		for i, e := range m.Entries {
			w.Entries[i] = e.wire()
		}
	}
	buf := metaBuffers.Get().(*bytes.Buffer)
	defer metaBuffers.Put(buf)
	buf.Reset()
	if err := encMode.MarshalToBuffer(&w, buf); err != nil {
		return dst, fmt.Errorf("pack: meta: %w", err)
	}
	if buf.Len() >= maxMeta {
		return dst, fmt.Errorf("%w: a meta of %d bytes", ErrTooLarge, buf.Len())
	}
	dst = append(dst, metaVersion)
	return append(dst, buf.Bytes()...), nil
}

// ParseMeta reads an encoded meta. It accepts nothing that Append would not
// write in the very same bytes. The error wraps [ErrDamaged] or [ErrNewer].
func ParseMeta(b []byte) (Meta, error) { return parseMeta(b, false) }

// parseMeta reads the meta of a pack, or of a carried one, which carries
// nothing itself: that is looked at first, so that metas within metas are not
// followed down.
func parseMeta(b []byte, carried bool) (Meta, error) {
	bad := func(err error) (Meta, error) { return Meta{}, fmt.Errorf("%w: meta: %w", ErrDamaged, err) }
	switch {
	case len(b) == 0 || b[0] == 0 || len(b) > maxMeta:
		return bad(fmt.Errorf("no version in %d bytes", len(b)))
	case b[0] > metaVersion:
		return Meta{}, fmt.Errorf("%w: meta format %d, this build knows %d", ErrNewer, b[0], metaVersion)
	}
	var w wireMeta
	if err := decMode.Unmarshal(b[1:], &w); err != nil {
		return bad(err)
	}
	if carried && w.Log != nil && w.Log.Begin != nil && len(w.Log.Begin.Carried) > 0 {
		return bad(errors.New("a carried pack that carries"))
	}
	m := Meta{PayloadLen: w.PayloadLen, Log: w.Log}
	copy(m.Sum[:], w.Sum)
	if len(w.Entries) > 0 {
		m.Entries = make([]Entry, len(w.Entries))
		for i := range w.Entries {
			m.Entries[i] = w.Entries[i].entry()
		}
	}
	again, err := m.Append(nil)
	if err != nil {
		return bad(err)
	}
	if !bytes.Equal(again, b) {
		return bad(errors.New("not the one valid encoding"))
	}
	return m, nil
}

// check holds a meta against the rules of the format that the encoding itself
// does not enforce.
func (m *Meta) check() error {
	if len(m.Entries) > MaxEntries {
		return fmt.Errorf("%d entries, at most %d", len(m.Entries), MaxEntries)
	}
	var end uint64
	for i := range m.Entries {
		e := &m.Entries[i]
		if e.SealedLen == 0 || uint64(e.Offset) < end || e.End() > uint64(m.PayloadLen) {
			return fmt.Errorf("entry %d has %d bytes at %d; the one before ends at %d, the payload at %d", i, e.SealedLen, e.Offset, end, m.PayloadLen)
		}
		end = e.End()
	}
	if m.Log == nil {
		if m.Sum != [16]byte{} {
			return errors.New("a payload digest outside the log")
		}
		return nil
	}
	l := m.Log
	switch {
	case len(l.Prev) > MaxPlaces:
		return fmt.Errorf("%d places, at most %d", len(l.Prev), MaxPlaces)
	case len(l.Snapshot) > MaxSnapshot:
		return fmt.Errorf("a snapshot reference of %d bytes, at most %d", len(l.Snapshot), MaxSnapshot)
	case len(l.Batches) > MaxBatches:
		return fmt.Errorf("%d batches, at most %d", len(l.Batches), MaxBatches)
	}
	for i, p := range l.Prev {
		if int(p.Index) >= MaxWidth || p.Node.IsZero() || p.Instance == 0 {
			return fmt.Errorf("place %d is shard %d, instance %d on node %v", i, p.Index, p.Instance, p.Node)
		}
	}
	for i, b := range l.Batches {
		if len(b.Body) == 0 || i > 0 && b.First <= l.Batches[i-1].First {
			return fmt.Errorf("batch %d of %d bytes begins at record %d", i, len(b.Body), b.First)
		}
	}
	if l.Begin == nil {
		return nil
	}
	if n := len(l.Begin.Retired); n > MaxRetired {
		return fmt.Errorf("%d retired writers, at most %d", n, MaxRetired)
	}
	if n := len(l.Begin.Carried); n > MaxCarried {
		return fmt.Errorf("%d carried packs, at most %d", n, MaxCarried)
	}
	for i := range l.Begin.Carried {
		if err := l.Begin.Carried[i].check(m.PayloadLen); err != nil {
			return fmt.Errorf("carried pack %d: %w", i, err)
		}
	}
	return nil
}

func (c *Carried) check(payloadLen uint32) error {
	if err := c.Header.check(); err != nil {
		return err
	}
	if c.Header.Kind != Log || c.Header.Index != 0 {
		return fmt.Errorf("shard %d of a %v pack", c.Header.Index, c.Header.Kind)
	}
	m, err := c.Open()
	if err != nil {
		return err
	}
	if m.PayloadLen != c.Len || uint64(c.Off)+uint64(c.Len) > uint64(payloadLen) {
		return fmt.Errorf("payload of %d bytes at %d, its meta says %d and the payload ends at %d", c.Len, c.Off, m.PayloadLen, payloadLen)
	}
	return nil
}

// Open decodes the carried pack's meta. Offsets in it count from c.Off.
func (c *Carried) Open() (Meta, error) { return parseMeta(c.Meta, true) }
