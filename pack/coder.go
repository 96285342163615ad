package pack

import (
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"sync"
	"sync/atomic"

	"cairn/id"
)

// ErrShort says that fewer than k' verified shards are at hand.
var ErrShort = errors.New("pack: not enough shards")

// Pool lends buffers. Get returns n bytes with any content; Put takes back what
// Get returned, whole, when nobody looks at it any more. Both may be called at
// the same time.
type Pool interface {
	Get(n int) []byte
	Put([]byte)
}

// Coder makes shards from packs and packs from shards.
type Coder struct {
	Secrets Secrets
	// Pool lends heads, parity and streams; nil means fresh memory.
	Pool Pool
	// Workers bounds the goroutines of one call; 0 means 1.
	Workers int
	// Rand is where nonces and pack IDs come from; nil means crypto/rand.
	Rand io.Reader
}

// Input is a pack to encode.
type Input struct {
	// Header gives kind, K, M, writer, counter, epoch and the log fields. Encode
	// fills in lengths and tag. A zero Pack is drawn; one that is set must never
	// have been used for other bytes: keys and nonces of the digests hang on it.
	Header Header
	// Meta's PayloadLen and Sum are filled in by Encode.
	Meta Meta
	// Payload holds the sealed chunks back to back. Its spare capacity takes
	// padding and coded meta, and then the data slices are views of it; when
	// there is not enough the stream is copied to a buffer of the pool. Either
	// way it belongs to the Encoded until that is released.
	Payload []byte
}

// Encoded is a pack cut into shards.
type Encoded struct {
	// Header is the common header.
	Header Header
	// Shards and Digests by index. The data slices are views of the payload that
	// went in; for K = 1 all slices are the same bytes.
	Shards  []Shard
	Digests [][16]byte

	pool Pool
	lent [][]byte
}

// Release gives the pooled buffers back. Nothing may look at the shards any
// more: a slow node that is still writing is a reader.
func (e *Encoded) Release() {
	if e.pool != nil {
		for _, b := range e.lent {
			e.pool.Put(b)
		}
	}
	e.Shards, e.lent = nil, nil
}

func (e *Encoded) get(n int) []byte {
	if e.pool == nil {
		return make([]byte, n)
	}
	b := e.pool.Get(n)[:n]
	e.lent = append(e.lent, b)
	return b
}

// Encode seals the meta, pads and codes the stream, and computes tables and
// digests. It holds, beside the payload, the parity and the heads.
func (c Coder) Encode(in Input) (*Encoded, error) {
	h, m := in.Header, in.Meta
	h.Index, h.MetaTag = 0, [16]byte{}
	random := c.Rand
	if random == nil {
		random = rand.Reader
	}
	if h.Pack.IsZero() {
		var err error
		if h.Pack, err = id.NewPack(random); err != nil {
			return nil, err
		}
	}
	if (h.Kind == Log) != (m.Log != nil) {
		return nil, fmt.Errorf("pack: a %v pack needs a meta of its kind", h.Kind)
	}
	if uint64(len(in.Payload)) > uint64(^uint32(0)) {
		return nil, fmt.Errorf("%w: a payload of %d bytes", ErrTooLarge, len(in.Payload))
	}
	dig := digester{newGCM(c.Secrets.DigestKey(h.Pack))}
	m.PayloadLen, m.Sum = uint32(len(in.Payload)), [16]byte{}
	if h.Kind == Log {
		m.Sum = dig.payload(in.Payload)
	}
	buf := scratch.Get().(*[]byte)
	enc, err := m.Append((*buf)[:0])
	if err != nil {
		return nil, err
	}
	defer keep(buf, enc)
	l, err := Fit(len(in.Payload), len(enc), int(h.K))
	if err != nil {
		return nil, err
	}
	h.MetaCoded, h.MetaLen, h.SliceLen = l.MetaCoded, l.MetaLen, l.SliceLen
	if err := h.check(); err != nil {
		return nil, fmt.Errorf("pack: not a header to encode: %v", err)
	}
	sealed, err := sealMeta(nil, &h, enc, c.Secrets.MetaKey(h.Pack), random)
	if err != nil {
		return nil, err
	}

	e := &Encoded{Header: h, pool: c.Pool}
	stream := in.Payload
	if n := h.streamLen(); cap(stream) < n {
		stream = e.get(n)
		copy(stream, in.Payload)
	} else {
		stream = stream[:n]
	}
	c.finishStream(&h, stream, len(in.Payload), sealed)
	if err := c.cut(e, stream, sealed, dig); err != nil {
		e.Release()
		return nil, err
	}
	return e, nil
}

// finishStream writes what follows the payload: padding and coded meta.
func (c Coder) finishStream(h *Header, stream []byte, payload int, sealed []byte) {
	end := len(stream) - h.codedMeta()
	pad(c.Secrets.PadKey(h.Pack), stream[payload:end], payload)
	if h.MetaCoded {
		copy(stream[end:], sealed)
	}
}

// cut makes the shards of a finished stream: slices, parity, tables, digests.
// Every byte of every shard follows from header, sealed meta and stream.
func (c Coder) cut(e *Encoded, stream, sealed []byte, dig digester) error {
	h := &e.Header
	k, n, size := int(h.K), int(h.K)+int(h.M), int(h.SliceLen)
	e.Shards, e.Digests = make([]Shard, n), make([][16]byte, n)
	for i := range k {
		e.Shards[i].Slice = stream[i*size : (i+1)*size : (i+1)*size]
	}
	switch {
	case k == 1: // parity of one shard is a copy of it
		for i := range n {
			e.Shards[i].Slice = e.Shards[0].Slice
		}
	case n > k:
		slices := make([][]byte, n)
		for i := range n {
			if i >= k {
				e.Shards[i].Slice = e.get(size)
			}
			slices[i] = e.Shards[i].Slice
		}
		if err := c.encodeParity(slices, k); err != nil {
			return err
		}
	}

	headLen := h.SliceOffset()
	heads := e.get(n * headLen)
	var inline []byte
	if !h.MetaCoded {
		inline = sealed
	}
	head := func(i int, table []byte) {
		s := &e.Shards[i]
		b := heads[i*headLen : i*headLen : (i+1)*headLen]
		hi := *h
		hi.Index = uint8(i)
		b = hi.Append(b)
		if table != nil {
			b = append(b, table...)
		} else {
			b = AppendTable(b, inline, s.Slice)
		}
		s.Head = append(b, inline...)
		e.Digests[i] = dig.shard(uint8(i), *s)
	}
	if k == 1 { // equal bodies, equal tables
		head(0, nil)
		table := e.Shards[0].Head[HeaderSize:h.BodyOffset()]
		c.each(n-1, func(i int) { head(i+1, table) })
		return nil
	}
	c.each(n, func(i int) { head(i, nil) })
	return nil
}

// each calls f(0) to f(n-1) from at most c.Workers goroutines, this one included.
func (c Coder) each(n int, f func(int)) {
	workers := min(c.Workers, n)
	if workers <= 1 {
		for i := range n {
			f(i)
		}
		return
	}
	var next atomic.Int64
	work := func() {
		for i := int(next.Add(1)) - 1; i < n; i = int(next.Add(1)) - 1 {
			f(i)
		}
	}
	var wg sync.WaitGroup
	for range workers - 1 {
		wg.Go(work)
	}
	work()
	wg.Wait()
}

// OpenMeta opens the sealed meta of a pack. What it proves: header (but for the
// index) and meta are what the writer sealed under this pack ID. It says
// nothing about any slice. The error wraps [ErrDamaged] or [ErrNewer].
func (c Coder) OpenMeta(h Header, sealed []byte) (Meta, error) {
	return openMeta(h, sealed, c.Secrets.MetaKey(h.Pack))
}

// InlineMeta is the sealed meta in the head of a shard, nil when it is coded.
func (h *Header) InlineMeta(head []byte) []byte {
	if h.MetaCoded || len(head) != h.SliceOffset() {
		return nil
	}
	return head[h.BodyOffset():]
}

// Digest computes the digest of a shard of the given pack and index.
func (c Coder) Digest(p id.Pack, index uint8, s Shard) [16]byte {
	return digester{newGCM(c.Secrets.DigestKey(p))}.shard(index, s)
}

// CheckDigest reports, in constant time, whether a shard has the digest that
// was logged for it: then every byte of it is what the writer sent.
func (c Coder) CheckDigest(p id.Pack, index uint8, s Shard, want [16]byte) bool {
	return sameTag(c.Digest(p, index, s), want)
}
