package seal_test

import (
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"math/bits"
	"strings"

	"cairn/id"
	"cairn/seal"
)

// This file is a second implementation of docs/formats/keys.md and
// docs/formats/sealed-chunk.md: slow, with a BLAKE3 of its own, and with nothing
// from the packages under test but the struct that describes a chunk.

// --- BLAKE3, after section 2 of its paper

const (
	chunkStart = 1 << iota
	chunkEnd
	parentNode
	rootNode
	keyedHash
	deriveContext
	deriveMaterial
)

var blakeIV = [8]uint32{0x6A09E667, 0xBB67AE85, 0x3C6EF372, 0xA54FF53A, 0x510E527F, 0x9B05688C, 0x1F83D9AB, 0x5BE0CD19}

func blakeCompress(cv [8]uint32, block [64]byte, counter uint64, n int, flags uint32) (out [64]byte) {
	var m, v [16]uint32
	for i := range m {
		m[i] = binary.LittleEndian.Uint32(block[4*i:])
	}
	copy(v[:], cv[:])
	copy(v[8:], blakeIV[:4])
	v[12], v[13], v[14], v[15] = uint32(counter), uint32(counter>>32), uint32(n), flags
	for round := range 7 {
		if round > 0 {
			p := m
			for i, j := range [16]int{2, 6, 3, 10, 7, 0, 4, 13, 1, 11, 12, 5, 9, 14, 15, 8} {
				m[i] = p[j]
			}
		}
		for i, q := range [8][4]int{{0, 4, 8, 12}, {1, 5, 9, 13}, {2, 6, 10, 14}, {3, 7, 11, 15}, {0, 5, 10, 15}, {1, 6, 11, 12}, {2, 7, 8, 13}, {3, 4, 9, 14}} {
			a, b, c, d := &v[q[0]], &v[q[1]], &v[q[2]], &v[q[3]]
			*a += *b + m[2*i]
			*d = bits.RotateLeft32(*d^*a, -16)
			*c += *d
			*b = bits.RotateLeft32(*b^*c, -12)
			*a += *b + m[2*i+1]
			*d = bits.RotateLeft32(*d^*a, -8)
			*c += *d
			*b = bits.RotateLeft32(*b^*c, -7)
		}
	}
	for i := range 8 {
		binary.LittleEndian.PutUint32(out[4*i:], v[i]^v[i+8])
		binary.LittleEndian.PutUint32(out[32+4*i:], v[i+8]^cv[i])
	}
	return out
}

func words(b []byte) (w [8]uint32) {
	for i := range w {
		w[i] = binary.LittleEndian.Uint32(b[4*i:])
	}
	return w
}

// blakeNode hashes a subtree whose first chunk has that number.
func blakeNode(key [8]uint32, b []byte, chunk uint64, flags, root uint32) [64]byte {
	if len(b) <= 1024 {
		cv, start := key, uint32(chunkStart)
		for ; ; b, start = b[64:], 0 {
			var block [64]byte
			n := copy(block[:], b)
			if len(b) <= 64 {
				return blakeCompress(cv, block, chunk, n, flags|start|chunkEnd|root)
			}
			out := blakeCompress(cv, block, chunk, n, flags|start)
			cv = words(out[:])
		}
	}
	left := 1024
	for left*2 < len(b) {
		left *= 2
	}
	l := blakeNode(key, b[:left], chunk, flags, 0)
	r := blakeNode(key, b[left:], chunk+uint64(left/1024), flags, 0)
	return blakeCompress(key, [64]byte(append(l[:32:32], r[:32]...)), 0, 64, flags|parentNode|root)
}

func refHash(b []byte) []byte { h := blakeNode(blakeIV, b, 0, 0, rootNode); return h[:32] }

func refKeyed(key, b []byte) []byte {
	h := blakeNode(words(key), b, 0, keyedHash, rootNode)
	return h[:32]
}

// refDerive gives up to 64 bytes.
func refDerive(context string, n int, material ...[]byte) []byte {
	c := blakeNode(blakeIV, []byte(context), 0, deriveContext, rootNode)
	h := blakeNode(words(c[:]), bytes.Join(material, nil), 0, deriveMaterial, rootNode)
	return h[:n]
}

// --- AES-256-GCM

func refGCM(key []byte) cipher.AEAD {
	b, err := aes.NewCipher(key)
	if err != nil {
		panic(err)
	}
	g, err := cipher.NewGCM(b)
	if err != nil {
		panic(err)
	}
	return g
}

// --- the keyring

type refRealm struct {
	number       uint32
	ids, records []byte
	epochs       [][]byte
}

type refRing struct {
	cluster                      []byte
	generation                   uint64
	meta, index, digest, cluRoot []byte
	realms                       []refRealm
}

var errRef = errors.New("reference: refused")

// refKeyFile is the key in the text of a key file.
func refKeyFile(text string) ([]byte, error) {
	part := strings.Split(strings.TrimSuffix(text, "\n"), ":")
	if len(part) != 3 || part[0] != "cairn-key-1" || hex.EncodeToString(refHash([]byte(part[0] + ":" + part[1]))[:4]) != part[2] {
		return nil, errRef
	}
	return hex.DecodeString(part[1])
}

// refOpen unlocks a keyring by a slot of kind 1 or 3.
func refOpen(b []byte, kind byte, context string, key []byte) (*refRing, error) {
	le := binary.LittleEndian
	body, sum := b[:len(b)-32], b[len(b)-32:]
	if !bytes.Equal(refHash(body), sum) || string(b[:4]) != "CRNK" || le.Uint16(b[4:]) != 1 || b[6] != 1 || b[7] != 0 {
		return nil, errRef
	}
	var master []byte
	at := 40
	for range le.Uint32(b[36:]) {
		n := int(le.Uint16(b[at+6:]))
		slot := b[at+8 : at+8+n]
		if b[at+4] == kind {
			k := refDerive(context, 48, key, slot[2:18])
			if !bytes.Equal(k[32:], slot[18:34]) {
				return nil, errRef
			}
			var err error
			if master, err = refGCM(k[:32]).Open(nil, slot[34:46], slot[46:], slot[:34]); err != nil {
				return nil, err
			}
		}
		at += 8 + n
	}
	plain, err := refGCM(refDerive("cairn 2026-11-24 keyring roots v1", 32, master)).Open(nil, body[at:at+12], body[at+12:], body[:at])
	if err != nil {
		return nil, err
	}
	take := func(n int) []byte { x := plain[:n]; plain = plain[n:]; return x }
	if take(1)[0] != 1 {
		return nil, errRef
	}
	r := &refRing{cluster: take(16), generation: le.Uint64(take(8)), meta: take(32), index: take(32), digest: take(32), cluRoot: take(32)}
	if !bytes.Equal(r.cluster, b[8:24]) || r.generation != le.Uint64(b[24:]) {
		return nil, errRef
	}
	for range le.Uint32(take(4)) {
		x := refRealm{number: le.Uint32(take(4)), ids: take(32), records: take(32)}
		for range le.Uint32(take(4)) {
			x.epochs = append(x.epochs, take(32))
		}
		r.realms = append(r.realms, x)
	}
	if len(plain) != 0 {
		return nil, errRef
	}
	return r, nil
}

// --- chunks

func (r *refRealm) chunkID(kind seal.Kind, plain []byte) id.Chunk {
	context := map[seal.Kind]string{1: "cairn 2026-11-24 chunk ID key of data chunks v1", 2: "cairn 2026-11-24 chunk ID key of list chunks v1", 3: "cairn 2026-11-26 chunk ID key of snapshot chunks v1"}[kind]
	return id.Chunk(refKeyed(refDerive(context, 32, r.ids), plain))
}

func refAdditional(i seal.Info) []byte {
	le := binary.LittleEndian
	b := le.AppendUint32([]byte{1}, uint32(i.Realm))
	b = le.AppendUint32(b, i.Epoch)
	b = append(b, byte(i.Kind), byte(i.Compression))
	b = append(b, i.Chunk[:]...)
	return le.AppendUint32(b, i.PlainLen)
}

func (r *refRealm) chunkSeal(i seal.Info) cipher.AEAD {
	return refGCM(refDerive("cairn 2026-11-24 chunk sealing key v1", 32, r.epochs[i.Epoch-1], i.Chunk[:]))
}

func (r *refRealm) seal(i seal.Info, nonce, body []byte) []byte {
	return r.chunkSeal(i).Seal(bytes.Clone(nonce), nonce, body, refAdditional(i))
}

// open returns the body.
func (r *refRealm) open(i seal.Info, sealed []byte) ([]byte, error) {
	return r.chunkSeal(i).Open(nil, sealed[:12], sealed[12:], refAdditional(i))
}
