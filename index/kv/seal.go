package kv

import (
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"crypto/subtle"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"hash/crc32"
	"math/bits"
	"sync"

	"github.com/zeebo/blake3"
)

// Everything about bytes on disk is here; docs/formats/index-values.md has the
// pictures.
const (
	formatVersion = 1

	nonceLen = 12
	tagLen   = 16
	// sealedExtra is what sealing adds to a value: version, nonce, tag.
	sealedExtra = 1 + nonceLen + tagLen

	// The engine's keys: one byte that tells kinds of rows apart, then the
	// user's key. So a user's key may be anything, and no key of ours looks like
	// one of badger's own ("!badger!").
	kindState = 0x00
	kindRow   = 0x01
	kindEnd   = 0x02 // first key after all rows

	saltLen  = 16
	checkLen = 16
	// The state row: magic, version, salt, check, sealed state, CRC32C.
	stateHeadLen = 4 + 1 + saltLen + checkLen
	statePlain   = 8 + 8 + 32
	stateLen     = stateHeadLen + nonceLen + statePlain + tagLen + 4
)

var (
	stateMagic = [4]byte{'C', 'K', 'V', 'S'}
	stateKey   = []byte{kindState}
	castagnoli = crc32.MakeTable(crc32.Castagnoli)
)

// Digest is the sum, modulo 2^256, of the keyed BLAKE3 of every row; it does
// not depend on the order in which rows were written, and a row's share can be
// taken out again. Without the key nobody can look for rows whose shares
// cancel out.
type Digest [4]uint64 // least significant first

func (d *Digest) add(o *Digest) {
	var c uint64
	for i := range d {
		d[i], c = bits.Add64(d[i], o[i], c)
	}
}

func (d *Digest) sub(o *Digest) {
	var b uint64
	for i := range d {
		d[i], b = bits.Sub64(d[i], o[i], b)
	}
}

func (d Digest) append(b []byte) []byte {
	for _, w := range d {
		b = binary.LittleEndian.AppendUint64(b, w)
	}
	return b
}

func parseDigest(b []byte) (d Digest) {
	for i := range d {
		d[i] = binary.LittleEndian.Uint64(b[8*i:])
	}
	return d
}

// String prints the 32 bytes as they are stored, in hexadecimal.
func (d Digest) String() string { return hex.EncodeToString(d.append(nil)) }

// State is what the database says about all its rows.
type State struct {
	Rows    uint64
	Commits uint64 // commits since the database was made
	Digest  Digest
}

// sealer does the cryptography of one database. It may be used by many
// goroutines.
type sealer struct {
	salt    [saltLen]byte
	check   [checkLen]byte
	aead    cipher.AEAD
	hashers sync.Pool // of *hasher
}

type hasher struct {
	h   *blake3.Hasher
	len [4]byte
	sum [32]byte
}

// newSealer derives the keys of one database. The salt is new for every
// database that is made, so that an index that was rebuilt, or two that grew
// from one backup's keys, do not draw nonces under one key.
func newSealer(c *Config, salt [saltLen]byte) *sealer {
	s := &sealer{salt: salt}
	material := func(key *Secret) []byte {
		b := append([]byte(nil), key.b[:]...)
		b = append(b, c.Cluster[:]...)
		return append(b, salt[:]...)
	}
	var value, digest [32]byte
	blake3.DeriveKey("cairn 2026-11-24 index value key v1", material(&c.ValueKey), value[:])
	blake3.DeriveKey("cairn 2026-11-24 index digest key v1", material(&c.DigestKey), digest[:])
	both := append(material(&c.ValueKey), material(&c.DigestKey)...)
	blake3.DeriveKey("cairn 2026-11-24 index key check v1", both, s.check[:])
	block, err := aes.NewCipher(value[:])
	if err != nil {
		panic("kv: " + err.Error()) // 32 bytes are a key
	}
	if s.aead, err = cipher.NewGCM(block); err != nil {
		panic("kv: " + err.Error())
	}
	s.hashers.New = func() any {
		h, err := blake3.NewKeyed(digest[:])
		if err != nil {
			panic("kv: " + err.Error())
		}
		return &hasher{h: h}
	}
	return s
}

// share is what a row adds to the digest. The length in front keeps one row
// from being read as another with a longer key.
func (s *sealer) share(engineKey, sealed []byte) Digest {
	h := s.hashers.Get().(*hasher)
	binary.BigEndian.PutUint32(h.len[:], uint32(len(engineKey)))
	h.h.Reset()
	h.h.Write(h.len[:])
	h.h.Write(engineKey)
	h.h.Write(sealed)
	h.h.Sum(h.sum[:0])
	d := parseDigest(h.sum[:])
	s.hashers.Put(h)
	return d
}

// seal appends the sealed value to dst. bound is the row's additional data, see
// [bind].
func (s *sealer) seal(dst, bound, nonce, value []byte) []byte {
	dst = append(dst, formatVersion)
	dst = append(dst, nonce...)
	return s.aead.Seal(dst, nonce, value, bound)
}

// open appends the value to dst.
func (s *sealer) open(dst, bound, sealed []byte) ([]byte, error) {
	if len(sealed) < sealedExtra {
		return dst, damaged("a sealed value of %d bytes", len(sealed))
	}
	// The version is in the additional data with the value we know, so another
	// one does not open: whether the program is too old is said by the state row.
	if sealed[0] != formatVersion {
		return dst, damaged("a value of format %d", sealed[0])
	}
	out, err := s.aead.Open(dst, sealed[1:1+nonceLen], sealed[1+nonceLen:], bound)
	if err != nil {
		return dst, damaged("a value does not open")
	}
	return out, nil
}

// bind puts together a row's additional data, version then engine key, in buf.
// The engine key is bind(...)[1:].
func bind(buf []byte, kind byte, key []byte) []byte {
	buf = append(buf[:0], formatVersion, kind)
	return append(buf, key...)
}

// appendState appends the state row's value.
func (s *sealer) appendState(dst, nonce []byte, st State) []byte {
	start := len(dst)
	dst = append(dst, stateMagic[:]...)
	dst = append(dst, formatVersion)
	dst = append(dst, s.salt[:]...)
	dst = append(dst, s.check[:]...)
	var plain [statePlain]byte
	binary.BigEndian.PutUint64(plain[0:], st.Rows)
	binary.BigEndian.PutUint64(plain[8:], st.Commits)
	st.Digest.append(plain[:16])
	bound := append(append(make([]byte, 0, stateHeadLen+1), dst[start:start+stateHeadLen]...), stateKey...)
	dst = append(dst, nonce...)
	dst = s.aead.Seal(dst, nonce, plain[:], bound)
	return binary.BigEndian.AppendUint32(dst, crc32.Checksum(dst[start:], castagnoli))
}

// parseSalt reads the plain head of a state row. Its checksum separates damage
// from a later format and, with [sealer.openState], from another key.
func parseSalt(row []byte) (salt [saltLen]byte, err error) {
	if len(row) < 9 || crc32.Checksum(row[:len(row)-4], castagnoli) != binary.BigEndian.Uint32(row[len(row)-4:]) {
		return salt, damaged("the state row's checksum does not hold")
	}
	if !bytes.Equal(row[:4], stateMagic[:]) {
		return salt, damaged("the state row has no magic")
	}
	if row[4] > formatVersion {
		return salt, fmt.Errorf("%w: a state row of format %d, this build knows %d", ErrNewer, row[4], formatVersion)
	}
	if row[4] != formatVersion || len(row) != stateLen {
		return salt, damaged("a state row of format %d and %d bytes", row[4], len(row))
	}
	copy(salt[:], row[5:])
	return salt, nil
}

func (s *sealer) openState(row []byte) (State, error) {
	salt, err := parseSalt(row)
	if err != nil {
		return State{}, err
	}
	if salt != s.salt || subtle.ConstantTimeCompare(row[5+saltLen:stateHeadLen], s.check[:]) != 1 {
		return State{}, ErrForeign
	}
	bound := append(append(make([]byte, 0, stateHeadLen+1), row[:stateHeadLen]...), stateKey...)
	var buf [statePlain]byte
	nonce, sealed := row[stateHeadLen:stateHeadLen+nonceLen], row[stateHeadLen+nonceLen:stateLen-4]
	plain, err := s.aead.Open(buf[:0], nonce, sealed, bound)
	if err != nil {
		return State{}, damaged("the state row does not open")
	}
	return State{
		Rows:    binary.BigEndian.Uint64(plain[0:]),
		Commits: binary.BigEndian.Uint64(plain[8:]),
		Digest:  parseDigest(plain[16:]),
	}, nil
}

// EngineKey is the key under which an engine keeps the row with a user's key,
// for tests that harm a row behind the database's back.
func EngineKey(key []byte) []byte { return bind(nil, kindRow, key)[1:] }
