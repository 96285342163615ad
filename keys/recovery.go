package keys

import (
	"context"
	"fmt"
	"io"
	"strings"
)

// A recovery code is 160 random bits as eight groups of five symbols, four of
// which are data and the fifth checks them. Symbols are Crockford's base 32,
// without I, L, O and U. docs/formats/keys.md.
const (
	codeGroups  = 8
	codeData    = 4 // symbols of a group that carry 5 bits each
	codeBytes   = codeGroups * codeData * 5 / 8
	codeSymbols = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
)

// RecoveryCode unlocks with a code that was written down. It holds 160 bits of
// entropy, so that nothing needs to be stretched.
type RecoveryCode struct {
	get    func() *[codeBytes]byte // a function, as in Secret
	random io.Reader
}

// NewRecoveryCode draws a code from random, nil means crypto/rand, which is kept
// for what Wrap draws.
func NewRecoveryCode(random io.Reader) (RecoveryCode, error) {
	var b [codeBytes]byte
	if err := fill(random, b[:]); err != nil {
		return RecoveryCode{}, err
	}
	c := newCode(b)
	c.random = random
	return c, nil
}

func newCode(b [codeBytes]byte) RecoveryCode {
	return RecoveryCode{get: func() *[codeBytes]byte { return &b }}
}

// field multiplies in GF(32), modulo x^5 + x^2 + 1.
func field(a, b byte) byte {
	var p byte
	for range 5 {
		if b&1 != 0 {
			p ^= a
		}
		b >>= 1
		if a <<= 1; a&32 != 0 {
			a ^= 0b100101
		}
	}
	return p
}

// checkSymbol is linear with a factor of its own for each place, none of them 1,
// so that one wrong symbol or any two exchanged ones in a group are found; the
// group's number is added, so that groups cannot change places.
func checkSymbol(group int, data []byte) byte {
	c := byte(group + 1)
	factor := byte(2)
	for _, d := range data {
		c ^= field(factor, d)
		factor = field(factor, 2)
	}
	return c
}

// Reveal returns the code as it is shown to the operator.
func (c RecoveryCode) Reveal() string {
	var out strings.Builder
	b := c.get()
	var acc uint32
	var bits int
	next := 0
	for g := range codeGroups {
		if g > 0 {
			out.WriteByte('-')
		}
		var data [codeData]byte
		for i := range data {
			if bits < 5 {
				acc, bits = acc<<8|uint32(b[next]), bits+8
				next++
			}
			bits -= 5
			data[i] = byte(acc>>bits) & 31
			out.WriteByte(codeSymbols[data[i]])
		}
		out.WriteByte(codeSymbols[checkSymbol(g, data[:])])
	}
	return out.String()
}

// ParseRecoveryCode reads a code that somebody typed: upper or lower case, with
// or without hyphens and spaces, O for 0, I and L for 1. The error wraps
// [ErrInvalid], says which group is mistyped and quotes nothing.
func ParseRecoveryCode(s string) (RecoveryCode, error) {
	var symbols [codeGroups * (codeData + 1)]byte
	n := 0
	for i := range len(s) {
		c := s[i]
		switch {
		case c == '-' || c == ' ' || c == '\t' || c == '\r' || c == '\n':
			continue
		case c >= 'a' && c <= 'z':
			c -= 'a' - 'A'
		}
		switch c {
		case 'O':
			c = '0'
		case 'I', 'L':
			c = '1'
		}
		v := strings.IndexByte(codeSymbols, c)
		if v < 0 {
			return RecoveryCode{}, fmt.Errorf("%w: recovery code: group %d has a character that no code has", ErrInvalid, n/(codeData+1)+1)
		}
		if n == len(symbols) {
			return RecoveryCode{}, fmt.Errorf("%w: recovery code: more than %d characters", ErrInvalid, len(symbols))
		}
		symbols[n] = byte(v)
		n++
	}
	if n != len(symbols) {
		return RecoveryCode{}, fmt.Errorf("%w: recovery code: %d characters, not %d", ErrInvalid, n, len(symbols))
	}
	var b [codeBytes]byte
	var acc uint32
	var bits, at int
	for g := range codeGroups {
		group := symbols[g*(codeData+1):][:codeData+1]
		if checkSymbol(g, group[:codeData]) != group[codeData] {
			return RecoveryCode{}, fmt.Errorf("%w: recovery code: group %d is mistyped", ErrInvalid, g+1)
		}
		for _, v := range group[:codeData] {
			acc, bits = acc<<5|uint32(v), bits+5
			if bits >= 8 {
				bits -= 8
				b[at] = byte(acc >> bits)
				at++
			}
		}
	}
	return newCode(b), nil
}

// Kind implements [Provider].
func (RecoveryCode) Kind() SlotKind { return RecoverySlot }

// Wrap implements [Provider].
func (c RecoveryCode) Wrap(_ context.Context, master Secret) ([]byte, error) {
	return wrap(contextRecovery, c.random, plainHead(), same(c.get()[:]), master)
}

// Unwrap implements [Provider].
func (c RecoveryCode) Unwrap(_ context.Context, blob []byte) (Secret, error) {
	if err := slotVersion(blob); err != nil {
		return Secret{}, err
	}
	return unwrap(contextRecovery, blob, wrapMin, same(c.get()[:]))
}

// Format implements [fmt.Formatter] and hides the code.
func (RecoveryCode) Format(f fmt.State, _ rune) { _, _ = io.WriteString(f, hidden) }

// MarshalText hides the code.
func (RecoveryCode) MarshalText() ([]byte, error) { return []byte(hidden), nil }
