package seal

import (
	"crypto/aes"
	"crypto/cipher"
	"encoding/binary"
	"fmt"
	"io"
	"sync"

	"cairn/keys"
)

// Keystream gives padding that looks like sealed chunks: AES-256 in counter
// mode, the counter block being a big-endian number that begins at 0. Every byte
// has its place, so that whoever rebuilds a pack computes the same.
type Keystream struct{ block cipher.Block }

// scraps hold a block of keystream of which only a part is wanted.
var scraps = sync.Pool{New: func() any { return new([aes.BlockSize]byte) }}

// NewKeystream makes the keystream of a key.
func NewKeystream(key keys.Secret) *Keystream {
	k := key.Reveal()
	defer clear(k[:])
	b, err := aes.NewCipher(k[:])
	if err != nil {
		panic("seal: " + err.Error()) // only for other lengths
	}
	return &Keystream{block: b}
}

// Fill overwrites b with the bytes off ... off+len(b) of the keystream. It
// allocates nothing: counters are written into b and encrypted where they stand.
func (k *Keystream) Fill(b []byte, off uint64) {
	count := off / aes.BlockSize
	if skip := off % aes.BlockSize; skip > 0 && len(b) > 0 {
		b = b[k.part(b, count, int(skip)):]
		count++
	}
	for ; len(b) >= aes.BlockSize; count++ {
		clear(b[:8])
		binary.BigEndian.PutUint64(b[8:], count)
		k.block.Encrypt(b[:aes.BlockSize], b[:aes.BlockSize])
		b = b[aes.BlockSize:]
	}
	if len(b) > 0 {
		k.part(b, count, 0)
	}
}

// part copies what follows the first skip bytes of a block.
func (k *Keystream) part(b []byte, count uint64, skip int) int {
	s := scraps.Get().(*[aes.BlockSize]byte)
	clear(s[:8])
	binary.BigEndian.PutUint64(s[8:], count)
	k.block.Encrypt(s[:], s[:])
	n := copy(b, s[skip:])
	scraps.Put(s)
	return n
}

func (k *Keystream) String() string { return "[keystream]" }

// Format implements [fmt.Formatter]: every verb prints what String does.
func (k *Keystream) Format(f fmt.State, _ rune) { _, _ = io.WriteString(f, k.String()) }

// Digester computes keyed digests of a pack's shards: GMAC, which is AES-256-GCM
// over additional data only.
//
// A GMAC is worth nothing once two messages were given a digest under one key
// and nonce. The nonce is the shard's index and the key is the pack's, so a pack
// ID must be new for every attempt whose bytes differ: then one pair covers one
// message, and asking again for the digest of the same shard gives nothing away.
type Digester struct{ aead cipher.AEAD }

// NewDigester makes the digester of one pack.
func NewDigester(key keys.Secret) *Digester {
	k := key.Reveal()
	defer clear(k[:])
	return &Digester{aead: newGCM(k[:])}
}

// digesting is what one call needs.
type digesting struct {
	nonce [nonceSize]byte
	sum   [tagSize]byte
}

var digestings = sync.Pool{New: func() any { return new(digesting) }}

// Sum is the digest of the shard with that index. The shard must lie in one
// piece, for additional data cannot be given in several.
func (d *Digester) Sum(index uint32, shard []byte) [16]byte {
	w := digestings.Get().(*digesting)
	binary.BigEndian.PutUint32(w.nonce[nonceSize-4:], index) // the rest stays 0
	d.aead.Seal(w.sum[:0], w.nonce[:], nil, shard)
	sum := w.sum
	digestings.Put(w)
	return sum
}

func (d *Digester) String() string { return "[digester]" }

// Format implements [fmt.Formatter]: every verb prints what String does.
func (d *Digester) Format(f fmt.State, _ rune) { _, _ = io.WriteString(f, d.String()) }
