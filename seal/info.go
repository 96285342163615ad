package seal

import (
	"encoding/binary"
	"fmt"

	"cairn/id"
	"cairn/keys"
)

const (
	nonceSize = 12
	tagSize   = 16

	// Overhead is by how many bytes a sealed chunk or box is longer than its body.
	Overhead = nonceSize + tagSize

	// MaxPlain bounds the plaintext of a chunk in bytes.
	MaxPlain = 16 << 20

	// version is the first byte of what a chunk's seal binds.
	version = 1
)

// Kind is what a chunk holds.
type Kind = keys.Kind

// Kinds of chunks.
const (
	Data = keys.Data // a piece of an object
	List = keys.List // a piece of a manifest
	Snap = keys.Snap // a piece of an exported index
)

// Compression is how a chunk's body was made of its plaintext.
type Compression uint8

// Compressions.
const (
	None Compression = 0
	Zstd Compression = 1 // one zstd frame
)

func (c Compression) String() string {
	switch c {
	case None:
		return "none"
	case Zstd:
		return "zstd"
	}
	return fmt.Sprintf("compression %d", uint8(c))
}

// Info says what a sealed chunk is. Every field is authenticated by the seal;
// SealedLen is, because the ciphertext's length is.
type Info struct {
	Realm       id.Realm
	Chunk       id.Chunk
	Kind        Kind
	Epoch       uint32 // of the realm's sealing root
	Compression Compression
	PlainLen    uint32 // bytes of the plaintext
	SealedLen   uint32 // bytes of the sealed chunk, [Overhead] more than the body
}

// additionalSize is the length of what a chunk's seal binds.
const additionalSize = 1 + 4 + 4 + 1 + 1 + 32 + 4

// additional writes what the seal binds; docs/formats/sealed-chunk.md.
func (i *Info) additional(b *[additionalSize]byte) {
	b[0] = version
	binary.LittleEndian.PutUint32(b[1:], uint32(i.Realm))
	binary.LittleEndian.PutUint32(b[5:], i.Epoch)
	b[9] = byte(i.Kind)
	b[10] = byte(i.Compression)
	copy(b[11:], i.Chunk[:])
	binary.LittleEndian.PutUint32(b[43:], i.PlainLen)
}
