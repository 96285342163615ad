package pack

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/subtle"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"sync"

	"cairn/id"
)

const (
	nonceSize = 12
	tagSize   = 16
	// sumNonce is the last byte of the nonce of a payload's sum; shards use
	// their index there, which is below MaxWidth.
	sumNonce = 0xff
)

// Secrets derives the keys of one pack, each 32 bytes and each under a purpose
// of its own. Two packs share none. Its methods may be called at the same time.
type Secrets interface {
	MetaKey(id.Pack) [32]byte
	DigestKey(id.Pack) [32]byte
	PadKey(id.Pack) [32]byte
}

func newGCM(key [32]byte) cipher.AEAD {
	b, err := aes.NewCipher(key[:])
	if err != nil {
		panic("pack: " + err.Error()) // only for other key lengths
	}
	g, err := cipher.NewGCM(b)
	if err != nil {
		panic("pack: " + err.Error())
	}
	return g
}

// digester computes the digests of one pack. It may be used by many goroutines.
type digester struct{ gcm cipher.AEAD }

// scratch holds what a digest encrypts on the way and throws away.
var scratch = sync.Pool{New: func() any { b := make([]byte, 0, 8<<10); return &b }}

// shard is the digest of a shard: the tag of AES-256-GCM with the slice as
// additional data and the head as plaintext. So one MAC covers two buffers that
// do not lie side by side; the ciphertext is of no use and is thrown away.
func (d digester) shard(index uint8, s Shard) (tag [16]byte) {
	buf := scratch.Get().(*[]byte)
	nonce := [nonceSize]byte{nonceSize - 1: index}
	out := d.gcm.Seal((*buf)[:0], nonce[:], s.Head, s.Slice)
	copy(tag[:], out[len(s.Head):])
	keep(buf, out)
	return tag
}

// keep gives scratch back with what has become of it, unless it grew far.
func keep(buf *[]byte, b []byte) {
	if cap(b) <= 64<<10 {
		*buf = b
		scratch.Put(buf)
	}
}

// payload is the digest of a log pack's payload: a GMAC.
func (d digester) payload(b []byte) (tag [16]byte) {
	nonce := [nonceSize]byte{nonceSize - 1: sumNonce}
	d.gcm.Seal(tag[:0], nonce[:], nil, b)
	return tag
}

func sameTag(a, b [16]byte) bool { return subtle.ConstantTimeCompare(a[:], b[:]) == 1 }

// pad writes the pack's keystream over b, which begins at byte off of the coded
// stream: AES-256-CTR, counter 0 at the stream's beginning.
func pad(key [32]byte, b []byte, off int) {
	if len(b) == 0 {
		return
	}
	block, err := aes.NewCipher(key[:])
	if err != nil {
		panic("pack: " + err.Error())
	}
	var iv [aes.BlockSize]byte
	binary.BigEndian.PutUint64(iv[8:], uint64(off/aes.BlockSize))
	s := cipher.NewCTR(block, iv[:])
	var skip [aes.BlockSize]byte
	s.XORKeyStream(skip[:off%aes.BlockSize], skip[:off%aes.BlockSize])
	clear(b)
	s.XORKeyStream(b, b)
}

// additional is what the seal of a meta binds beside it: the header with
// index, tag and CRC zero.
func (h *Header) additional() []byte {
	c := h.Common()
	c.MetaTag = [16]byte{}
	b := c.Append(make([]byte, 0, HeaderSize))
	clear(b[HeaderSize-4:])
	return b
}

// sealMeta appends the sealed form of an encoded meta, h.MetaLen bytes, and
// sets the header's tag: nonce, then under the seal the encoding's length, the
// encoding and zeros. All other fields of h must be final.
func sealMeta(dst []byte, h *Header, enc []byte, key [32]byte, random io.Reader) ([]byte, error) {
	n, size := len(dst), int(h.MetaLen)
	if size != sealedMetaLen(len(enc)) {
		panic(fmt.Sprintf("pack: %d bytes for a sealed meta of %d", size, sealedMetaLen(len(enc))))
	}
	dst = append(dst, make([]byte, size+tagSize)...)
	b := dst[n:]
	nonce, plain := b[:nonceSize], b[nonceSize:size]
	if _, err := io.ReadFull(random, nonce); err != nil {
		return nil, fmt.Errorf("draw a nonce: %w", err)
	}
	binary.LittleEndian.PutUint32(plain, uint32(len(enc)))
	clear(plain[4+copy(plain[4:], enc):])
	newGCM(key).Seal(plain[:0], nonce, plain, h.additional())
	copy(h.MetaTag[:], b[size:])
	return dst[:n+size], nil
}

// openMeta opens a sealed meta that stands under the header h. The error wraps
// [ErrDamaged] or [ErrNewer].
func openMeta(h Header, sealed []byte, key [32]byte) (Meta, error) {
	bad := func(err error) (Meta, error) {
		return Meta{}, fmt.Errorf("%w: meta of pack %v: %w", ErrDamaged, h.Pack, err)
	}
	if len(sealed) != int(h.MetaLen) || len(sealed) < metaOverhead {
		return bad(fmt.Errorf("%d bytes, the header says %d", len(sealed), h.MetaLen))
	}
	b := make([]byte, 0, len(sealed)+tagSize)
	b = append(append(b, sealed...), h.MetaTag[:]...)
	plain, err := newGCM(key).Open(b[nonceSize:nonceSize], b[:nonceSize], b[nonceSize:], h.additional())
	if err != nil {
		return bad(errors.New("the seal does not hold"))
	}
	n := uint64(binary.LittleEndian.Uint32(plain))
	if n > uint64(len(plain)-4) || sealedMetaLen(int(n)) != len(sealed) {
		return bad(fmt.Errorf("an encoding of %d bytes sealed in %d", n, len(sealed)))
	}
	for _, x := range plain[4+n:] {
		if x != 0 {
			return bad(errors.New("padding that is not zero"))
		}
	}
	m, err := ParseMeta(plain[4 : 4+n])
	if err != nil {
		return Meta{}, fmt.Errorf("pack %v: %w", h.Pack, err)
	}
	if (h.Kind == Log) != (m.Log != nil) {
		return bad(fmt.Errorf("not that of a %v pack", h.Kind))
	}
	if uint64(m.PayloadLen) > uint64(h.streamLen())-uint64(h.codedMeta()) {
		return bad(fmt.Errorf("a payload of %d bytes in a stream of %d", m.PayloadLen, h.streamLen()))
	}
	return m, nil
}

// streamLen is the length of the coded stream.
func (h *Header) streamLen() int { return int(h.K) * int(h.SliceLen) }

// codedMeta is the length of the meta at the coded stream's end, 0 when the
// meta stands in every shard.
func (h *Header) codedMeta() int {
	if h.MetaCoded {
		return int(h.MetaLen)
	}
	return 0
}
