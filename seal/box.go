package seal

import (
	"crypto/cipher"
	"errors"
	"fmt"
	"io"
	"slices"

	"cairn/keys"
)

// Box seals small things under one key: AES-256-GCM with a random nonce. The
// sealed form is nonce, ciphertext, tag: [Overhead] bytes more than the plain
// one. One key is good for 2^32 messages; what seals more must derive more keys.
type Box struct {
	aead   cipher.AEAD
	random *reader // nil: crypto/rand
}

// NewBox makes the box of a key. Nonces come from random, nil means crypto/rand.
// Nothing is drawn ahead: the key covers many messages, and two machines cloned
// from one would use the same nonces for different ones.
func NewBox(key keys.Secret, random io.Reader) *Box {
	k := key.Reveal()
	defer clear(k[:])
	return &Box{aead: newGCM(k[:]), random: newReader(random)}
}

// Seal appends the sealed plain to dst, bound to ad.
func (b *Box) Seal(dst, plain, ad []byte) ([]byte, error) {
	n := len(dst)
	out := slices.Grow(dst, len(plain)+Overhead)[:n+nonceSize]
	if err := b.random.read(out[n:]); err != nil {
		return dst, err
	}
	return b.aead.Seal(out, out[n:], plain, ad), nil
}

// Open appends the plain form of what Seal made with the same ad. Anything else
// is [ErrDamaged].
func (b *Box) Open(dst, sealed, ad []byte) ([]byte, error) {
	if len(sealed) < Overhead {
		return dst, fmt.Errorf("%w: a box of %d bytes", ErrDamaged, len(sealed))
	}
	out, err := b.aead.Open(dst, sealed[:nonceSize], sealed[nonceSize:], ad)
	if err != nil {
		return dst, fmt.Errorf("%w: %w", ErrDamaged, errors.New("the seal does not hold"))
	}
	return out, nil
}

func (b *Box) String() string { return "[box]" }

// Format implements [fmt.Formatter]: every verb prints what String does.
func (b *Box) Format(f fmt.State, _ rune) { _, _ = io.WriteString(f, b.String()) }
