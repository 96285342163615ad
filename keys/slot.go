package keys

import (
	"bytes"
	"context"
	"crypto/subtle"
	"encoding/binary"
	"fmt"
	"io"

	"github.com/zeebo/blake3"
	"golang.org/x/crypto/argon2"
)

// SlotKind is a way of unlocking a keyring.
type SlotKind uint8

// Kinds of slots.
const (
	KeyFileSlot    SlotKind = 1
	PassphraseSlot SlotKind = 2
	RecoverySlot   SlotKind = 3
	// ServiceSlot is for a key management service; nothing here implements it.
	ServiceSlot SlotKind = 4
)

func (k SlotKind) valid() bool { return k >= KeyFileSlot && k <= ServiceSlot }

func (k SlotKind) String() string {
	switch k {
	case KeyFileSlot:
		return "key file"
	case PassphraseSlot:
		return "passphrase"
	case RecoverySlot:
		return "recovery code"
	case ServiceSlot:
		return "key service"
	}
	return fmt.Sprintf("slot of kind %d", uint8(k))
}

// Slot describes one way to unlock a keyring. Numbers are never used again.
type Slot struct {
	Number uint32
	Kind   SlotKind
}

type slot struct {
	number uint32
	kind   SlotKind
	blob   []byte
}

func describe(slots []slot) []Slot {
	out := make([]Slot, len(slots))
	for i, s := range slots {
		out[i] = Slot{s.number, s.kind}
	}
	return out
}

// Provider wraps the master key of a keyring and unwraps it again. The ones of
// this package are [KeyFile], [Passphrase] and [RecoveryCode]; a key management
// service fits the same way.
type Provider interface {
	// Kind says which slots are this provider's.
	Kind() SlotKind
	// Wrap returns what only this provider's key makes a master key of again, at
	// most 4 KiB.
	Wrap(ctx context.Context, master Secret) ([]byte, error)
	// Unwrap undoes Wrap. The error wraps [ErrWrongKey] when the blob was made
	// with another key, [ErrDamaged] when it was altered, and is anything else
	// when that is not known. The blob was not authenticated: what it asks for
	// must be bounded. The provider may keep it.
	Unwrap(ctx context.Context, blob []byte) (Secret, error)
}

// The slots of this package, after what is the kind's own: salt, key check,
// nonce, sealed master key.
const (
	saltSize  = 16
	checkSize = 16
	wrapSize  = saltSize + checkSize + nonceSize + Size + tagSize
	wrapMin   = 2 // version
)

const wrapVersion = 1

// keyFrom stretches a slot's key, or mixes it with the salt. The first 32 bytes
// wrap, the rest is the key check: it tells a wrong key from damage and, coming
// from a key derivation, says nothing about the key.
func keyFrom(context string, material, salt []byte) (kek Secret, check [checkSize]byte) {
	h := blake3.NewDeriveKey(context)
	h.Write(material)
	h.Write(salt)
	var out [Size + checkSize]byte
	_, _ = h.Digest().Read(out[:]) // never fails
	kek, check = NewSecret([Size]byte(out[:Size])), [checkSize]byte(out[Size:])
	clear(out[:])
	return kek, check
}

// wrap appends salt, check, nonce and sealed master key to head, which is bound
// to them. stretch makes the key's material of a salt.
func wrap(context string, random io.Reader, head []byte, stretch func(salt []byte) []byte, master Secret) ([]byte, error) {
	b := make([]byte, 0, len(head)+wrapSize)
	b = append(b, head...)
	var salt [saltSize]byte
	var nonce [nonceSize]byte
	if err := fill(random, salt[:]); err != nil {
		return nil, err
	}
	if err := fill(random, nonce[:]); err != nil {
		return nil, err
	}
	kek, check := keyFrom(context, stretch(salt[:]), salt[:])
	defer kek.Wipe()
	b = append(b, salt[:]...)
	b = append(b, check[:]...)
	bound := bytes.Clone(b)
	b = append(b, nonce[:]...)
	return newGCM(kek).Seal(b, nonce[:], master.bytes(), bound), nil
}

// unwrap undoes wrap; the blob's first head bytes were read already.
func unwrap(context string, blob []byte, head int, stretch func(salt []byte) []byte) (Secret, error) {
	if len(blob) != head+wrapSize {
		return Secret{}, fmt.Errorf("%w: a slot of %d bytes, not %d", ErrDamaged, len(blob), head+wrapSize)
	}
	salt := blob[head : head+saltSize]
	bound, sealed := blob[:head+saltSize+checkSize], blob[head+saltSize+checkSize:]
	kek, check := keyFrom(context, stretch(salt), salt)
	defer kek.Wipe()
	if subtle.ConstantTimeCompare(check[:], bound[head+saltSize:]) != 1 {
		return Secret{}, fmt.Errorf("%w", ErrWrongKey)
	}
	plain, err := newGCM(kek).Open(nil, sealed[:nonceSize], sealed[nonceSize:], bound)
	if err != nil {
		return Secret{}, fmt.Errorf("%w: the key fits a slot that does not open", ErrDamaged)
	}
	master := NewSecret([Size]byte(plain))
	clear(plain)
	return master, nil
}

// slotVersion checks a slot's first two bytes.
func slotVersion(blob []byte) error {
	if len(blob) < wrapMin {
		return fmt.Errorf("%w: a slot of %d bytes", ErrDamaged, len(blob))
	}
	if v := binary.LittleEndian.Uint16(blob); v > wrapVersion {
		return fmt.Errorf("%w: a slot of version %d, this build knows %d", ErrNewer, v, wrapVersion)
	} else if v != wrapVersion {
		return fmt.Errorf("%w: a slot of version %d", ErrDamaged, v)
	}
	return nil
}

func plainHead() []byte { return binary.LittleEndian.AppendUint16(nil, wrapVersion) }

func same(material []byte) func([]byte) []byte {
	return func([]byte) []byte { return material }
}

// Argon2 says what stretching a passphrase costs.
type Argon2 struct {
	Time    uint32 // passes
	Memory  uint32 // KiB
	Threads uint8
}

// defaultArgon2 is the second recommended choice of RFC 9106, section 4, for
// where memory is scarce.
var defaultArgon2 = Argon2{Time: 3, Memory: 64 << 10, Threads: 4}

// What is accepted from storage: a planted keyring must not be able to stop a
// start by what it asks for.
const (
	maxTime    = 10
	maxMemory  = 256 << 10
	maxThreads = 16
)

func (a Argon2) ok() bool {
	return a.Time >= 1 && a.Time <= maxTime && a.Threads >= 1 && a.Threads <= maxThreads && a.Memory >= 8*uint32(a.Threads) && a.Memory <= maxMemory
}

// Passphrase unlocks with what somebody remembers, stretched with argon2id.
type Passphrase struct {
	secret func() []byte // a function, as in Secret
	cost   Argon2
	random io.Reader
}

// NewPassphrase takes the bytes of a passphrase as they are: what two keyboards
// encode differently are two passphrases. Wrapping costs three passes over
// 64 MiB with four threads; unwrapping what the slot says, bounded by ten passes
// over 256 MiB with sixteen. The memory is garbage afterwards, so that a process
// with a memory budget unlocks before it fills it.
func NewPassphrase(passphrase []byte) (Passphrase, error) {
	return NewPassphraseCost(passphrase, defaultArgon2)
}

// NewPassphraseCost is NewPassphrase with another cost for wrapping.
func NewPassphraseCost(passphrase []byte, cost Argon2) (Passphrase, error) {
	if len(passphrase) == 0 {
		return Passphrase{}, fmt.Errorf("%w: an empty passphrase", ErrInvalid)
	}
	if !cost.ok() {
		return Passphrase{}, fmt.Errorf("%w: argon2id with %+v", ErrInvalid, cost)
	}
	b := bytes.Clone(passphrase)
	return Passphrase{secret: func() []byte { return b }, cost: cost}, nil
}

const passHead = 2 + 4 + 4 + 1 + 1

// Kind implements [Provider].
func (Passphrase) Kind() SlotKind { return PassphraseSlot }

func (p Passphrase) stretch(a Argon2) func([]byte) []byte {
	return func(salt []byte) []byte {
		return argon2.IDKey(p.secret(), salt, a.Time, a.Memory, a.Threads, Size)
	}
}

// Wrap implements [Provider].
func (p Passphrase) Wrap(ctx context.Context, master Secret) ([]byte, error) {
	if err := ctx.Err(); err != nil {
		return nil, context.Cause(ctx)
	}
	head := plainHead()
	head = binary.LittleEndian.AppendUint32(head, p.cost.Time)
	head = binary.LittleEndian.AppendUint32(head, p.cost.Memory)
	head = append(head, p.cost.Threads, 0)
	return wrap(contextPass, p.random, head, p.stretch(p.cost), master)
}

// Unwrap implements [Provider].
func (p Passphrase) Unwrap(ctx context.Context, blob []byte) (Secret, error) {
	if err := ctx.Err(); err != nil {
		return Secret{}, context.Cause(ctx)
	}
	if err := slotVersion(blob); err != nil {
		return Secret{}, err
	}
	if len(blob) != passHead+wrapSize {
		return Secret{}, fmt.Errorf("%w: a slot of %d bytes, not %d", ErrDamaged, len(blob), passHead+wrapSize)
	}
	cost := Argon2{Time: binary.LittleEndian.Uint32(blob[2:]), Memory: binary.LittleEndian.Uint32(blob[6:]), Threads: blob[10]}
	if !cost.ok() || blob[11] != 0 {
		return Secret{}, fmt.Errorf("%w: a slot that asks for argon2id with %+v", ErrDamaged, cost)
	}
	return unwrap(contextPass, blob, passHead, p.stretch(cost))
}

// Format implements [fmt.Formatter] and hides the passphrase.
func (Passphrase) Format(f fmt.State, _ rune) { _, _ = io.WriteString(f, hidden) }

// MarshalText hides the passphrase.
func (Passphrase) MarshalText() ([]byte, error) { return []byte(hidden), nil }
