package keys

import (
	"crypto/rand"
	"crypto/subtle"
	"fmt"
	"io"
	"log/slog"
)

// Size is the length of every secret in bytes.
const Size = 32

// hidden is what a secret prints as.
const hidden = "[secret]"

// Secret is a 256-bit key. It cannot be compared with == and never prints,
// logs or marshals. Copies of a Secret share the key.
type Secret struct {
	// A function, because package fmt does not call methods of unexported fields:
	// a struct that holds a Secret prints an address here, whatever the verb, where
	// an array or a pointer to one would print the key.
	get func() *[Size]byte
}

// NewSecret holds a copy of key.
func NewSecret(key [Size]byte) Secret {
	return Secret{get: func() *[Size]byte { return &key }}
}

// bytes is the key in its place.
func (s Secret) bytes() []byte {
	if s.get == nil {
		panic("keys: a secret that was never set")
	}
	return s.get()[:]
}

// Reveal returns the key itself, for the cipher or hash that needs it.
func (s Secret) Reveal() [Size]byte { return [Size]byte(s.bytes()) }

// IsSet reports whether s holds a key.
func (s Secret) IsSet() bool { return s.get != nil }

// Equal compares two secrets in constant time. A secret that was never set
// equals none.
func (s Secret) Equal(o Secret) bool {
	return s.IsSet() && o.IsSet() && subtle.ConstantTimeCompare(s.bytes(), o.bytes()) == 1
}

// Wipe overwrites the key, in all copies of s. It is best effort: what Reveal
// returned is not reached.
func (s Secret) Wipe() {
	if s.IsSet() {
		clear(s.bytes())
	}
}

// String and the methods below print the same for every key.
func (Secret) String() string { return hidden }

// GoString implements [fmt.GoStringer].
func (Secret) GoString() string { return hidden }

// Format implements [fmt.Formatter], for every verb.
func (Secret) Format(f fmt.State, _ rune) { _, _ = io.WriteString(f, hidden) }

// LogValue implements [slog.LogValuer].
func (Secret) LogValue() slog.Value { return slog.StringValue(hidden) }

// MarshalText implements [encoding.TextMarshaler], which JSON, XML and YAML ask.
func (Secret) MarshalText() ([]byte, error) { return []byte(hidden), nil }

// MarshalJSON implements [json.Marshaler].
func (Secret) MarshalJSON() ([]byte, error) { return []byte(`"` + hidden + `"`), nil }

// draw reads a random secret; nil means crypto/rand.
func draw(random io.Reader) (Secret, error) {
	var b [Size]byte
	if err := fill(random, b[:]); err != nil {
		return Secret{}, err
	}
	if b == ([Size]byte{}) {
		return Secret{}, fmt.Errorf("draw a key: the source gives only zeros")
	}
	return NewSecret(b), nil
}

func fill(random io.Reader, b []byte) error {
	if random == nil {
		random = rand.Reader
	}
	if _, err := io.ReadFull(random, b); err != nil {
		return fmt.Errorf("draw random bytes: %w", err)
	}
	return nil
}
