package keys

import (
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"encoding/binary"
	"fmt"

	"github.com/zeebo/blake3"

	"cairn/id"
)

// The bytes of a wrapped keyring; docs/formats/keys.md has the picture. Integers
// are little-endian.
const (
	ringMagic   = "CRNK"
	ringVersion = 1
	// purposeStore is the only purpose there is. A keyring made for another one
	// must not open as a store's.
	purposeStore = 1

	ringHead = 4 + 2 + 1 + 1 + 16 + 8 + 4 + 4 // up to the first slot
	slotHead = 4 + 1 + 1 + 2
	sumSize  = 32

	nonceSize = 12
	tagSize   = 16

	rootsHead = 1 + 16 + 8 + 4*Size + 4 // up to the first realm
	realmHead = 4 + 2*Size + 4
)

// Bounds, checked before anything is done with what was read.
const (
	// MaxSize is the longest wrapped keyring in bytes.
	MaxSize  = 1 << 20
	maxSlots = 16
	maxBlob  = 4 << 10
)

// ringFile is a wrapped keyring taken apart. The slices are the parser's.
type ringFile struct {
	cluster    id.Cluster
	generation uint64
	nextSlot   uint32
	slots      []slot
	bound      []byte // all before the nonce
	sealed     []byte // nonce, sealed roots, tag
	whole      []byte
}

func damaged(format string, a ...any) error {
	return fmt.Errorf("%w: keyring: %s", ErrDamaged, fmt.Sprintf(format, a...))
}

// parse takes a wrapped keyring apart. What it accepts is exactly what encode
// writes; nothing but the checksum says yet that somebody with a key wrote it.
func parse(b []byte) (*ringFile, error) {
	if len(b) > MaxSize {
		return nil, damaged("%d bytes, at most %d are possible", len(b), MaxSize)
	}
	if len(b) < 6 || string(b[:4]) != ringMagic {
		return nil, damaged("%d bytes that do not begin as one", len(b))
	}
	// Every version ends in the checksum and has its number here, so that a flipped
	// bit is never taken for a newer version.
	if len(b) < 6+sumSize {
		return nil, damaged("cut at %d bytes", len(b))
	}
	body, sum := b[:len(b)-sumSize], b[len(b)-sumSize:]
	if got := blake3.Sum256(body); !bytes.Equal(got[:], sum) {
		return nil, damaged("the checksum does not hold")
	}
	if v := binary.LittleEndian.Uint16(b[4:]); v > ringVersion {
		return nil, fmt.Errorf("%w: keyring of version %d, this build knows %d", ErrNewer, v, ringVersion)
	} else if v != ringVersion {
		return nil, damaged("version %d", v)
	}
	if len(b) < ringHead+nonceSize+rootsHead+tagSize+sumSize {
		return nil, damaged("%d bytes are too few", len(b))
	}
	body = bytes.Clone(body)
	f := &ringFile{cluster: id.Cluster(body[8:24]), generation: binary.LittleEndian.Uint64(body[24:]),
		nextSlot: binary.LittleEndian.Uint32(body[32:]), whole: bytes.Clone(b)}
	if body[6] != purposeStore || body[7] != 0 || f.cluster.IsZero() || f.generation == 0 {
		return nil, damaged("purpose %d, generation %d", body[6], f.generation)
	}
	n := binary.LittleEndian.Uint32(body[36:])
	if n == 0 || n > maxSlots {
		return nil, damaged("%d slots", n)
	}
	at := ringHead
	for range n {
		if len(body)-at < slotHead {
			return nil, damaged("cut in a slot")
		}
		s := slot{number: binary.LittleEndian.Uint32(body[at:]), kind: SlotKind(body[at+4])}
		size := int(binary.LittleEndian.Uint16(body[at+6:]))
		if body[at+5] != 0 || !s.kind.valid() || size == 0 || size > maxBlob || size > len(body)-at-slotHead {
			return nil, damaged("slot %d of kind %d with %d bytes", s.number, uint8(s.kind), size)
		}
		if s.number == 0 || s.number >= f.nextSlot || len(f.slots) > 0 && s.number <= f.slots[len(f.slots)-1].number {
			return nil, damaged("slot %d out of order", s.number)
		}
		at += slotHead
		s.blob = body[at : at+size]
		at += size
		f.slots = append(f.slots, s)
	}
	f.bound, f.sealed = body[:at:at], body[at:]
	if len(f.sealed) < nonceSize+rootsHead+tagSize {
		return nil, damaged("sealed roots of %d bytes", len(f.sealed))
	}
	return f, nil
}

// rootsSeal is the AEAD over the roots. Its additional data is everything before
// it, so that nobody without the master key changes generation, cluster or slots.
func rootsSeal(master Secret) cipher.AEAD {
	return newGCM(deriveRoots.key(master, nil))
}

func newGCM(key Secret) cipher.AEAD {
	b, err := aes.NewCipher(key.bytes())
	if err != nil {
		panic("keys: " + err.Error()) // only for other lengths
	}
	g, err := cipher.NewGCM(b)
	if err != nil {
		panic("keys: " + err.Error())
	}
	return g
}

// open finishes what parse began, with the master key that a slot gave.
func (f *ringFile) open(master Secret) (*Keyring, error) {
	plain, err := rootsSeal(master).Open(nil, f.sealed[:nonceSize], f.sealed[nonceSize:], f.bound)
	if err != nil {
		return nil, damaged("a slot opens, and the roots do not")
	}
	defer clear(plain)
	k := &Keyring{cluster: f.cluster, generation: f.generation, slots: f.slots, nextSlot: f.nextSlot, master: master, wrapped: f.whole}
	if err := k.parseRoots(plain); err != nil {
		return nil, err
	}
	return k, nil
}

// encode writes the keyring under a fresh nonce.
func (k *Keyring) encode() ([]byte, error) {
	b := make([]byte, 0, 4<<10)
	b = append(b, ringMagic...)
	b = binary.LittleEndian.AppendUint16(b, ringVersion)
	b = append(b, purposeStore, 0)
	b = append(b, k.cluster[:]...)
	b = binary.LittleEndian.AppendUint64(b, k.generation)
	b = binary.LittleEndian.AppendUint32(b, k.nextSlot)
	b = binary.LittleEndian.AppendUint32(b, uint32(len(k.slots)))
	for _, s := range k.slots {
		b = binary.LittleEndian.AppendUint32(b, s.number)
		b = append(b, byte(s.kind), 0)
		b = binary.LittleEndian.AppendUint16(b, uint16(len(s.blob)))
		b = append(b, s.blob...)
	}
	bound := bytes.Clone(b)
	var nonce [nonceSize]byte
	if err := fill(k.random, nonce[:]); err != nil {
		return nil, err
	}
	plain := k.appendRoots()
	defer clear(plain)
	b = append(b, nonce[:]...)
	b = rootsSeal(k.master).Seal(b, nonce[:], plain, bound)
	sum := blake3.Sum256(b)
	b = append(b, sum[:]...)
	if len(b) > MaxSize {
		return nil, fmt.Errorf("%w: a keyring of %d bytes, at most %d are possible", ErrInvalid, len(b), MaxSize)
	}
	return b, nil
}

func (k *Keyring) appendRoots() []byte {
	size := rootsHead
	for _, r := range k.roots.realms {
		size += realmHead + Size*len(r.epochs)
	}
	b := make([]byte, 0, size) // never grown, so that no copy of it stays behind
	b = append(b, purposeStore)
	b = append(b, k.cluster[:]...)
	b = binary.LittleEndian.AppendUint64(b, k.generation)
	for _, s := range []Secret{k.roots.meta, k.roots.index, k.roots.digest, k.roots.cluster} {
		b = append(b, s.bytes()...)
	}
	b = binary.LittleEndian.AppendUint32(b, uint32(len(k.roots.realms)))
	for _, r := range k.roots.realms {
		b = binary.LittleEndian.AppendUint32(b, uint32(r.number))
		b = append(append(b, r.ids.bytes()...), r.records.bytes()...)
		b = binary.LittleEndian.AppendUint32(b, r.Epoch())
		for _, s := range r.epochs {
			b = append(b, s.bytes()...)
		}
	}
	return b
}

// parseRoots reads what appendRoots wrote. The bytes are authenticated, so that
// what does not fit was written by a version that had a bug.
func (k *Keyring) parseRoots(b []byte) error {
	bad := func() error { return damaged("roots of %d bytes that do not fit together", len(b)) }
	if len(b) < rootsHead || b[0] != purposeStore || id.Cluster(b[1:17]) != k.cluster || binary.LittleEndian.Uint64(b[17:]) != k.generation {
		return bad()
	}
	at := 1 + 16 + 8
	take := func() Secret {
		s := NewSecret([Size]byte(b[at : at+Size]))
		at += Size
		return s
	}
	k.roots.meta, k.roots.index, k.roots.digest, k.roots.cluster = take(), take(), take(), take()
	n := int64(binary.LittleEndian.Uint32(b[at:]))
	at += 4
	var last id.Realm
	for range n {
		if len(b)-at < realmHead {
			return bad()
		}
		number := id.Realm(binary.LittleEndian.Uint32(b[at:]))
		at += 4
		ids, records := take(), take()
		epochs := int64(binary.LittleEndian.Uint32(b[at:]))
		at += 4
		if number <= last || epochs == 0 || epochs > int64(len(b)-at)/Size {
			return bad()
		}
		last = number
		roots := make([]Secret, epochs)
		for i := range roots {
			roots[i] = take()
		}
		k.roots.realms = append(k.roots.realms, newRealm(number, ids, records, roots))
	}
	if n == 0 || at != len(b) {
		return bad()
	}
	return nil
}
