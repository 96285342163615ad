package seal

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"slices"
	"sync"

	"github.com/zeebo/blake3"

	"cairn/id"
	"cairn/keys"
)

// contextChunk derives the key of a sealed chunk; docs/formats/keys.md lists it.
const contextChunk = "cairn 2026-11-24 chunk sealing key v1"

// Sealer seals the chunks of one realm in its current epoch, and opens those of
// all its epochs. When the realm gets a new epoch, make a new one.
//
// Per chunk it allocates the key schedule and the tables of AES-GCM and nothing
// else, provided dst has room.
type Sealer struct {
	realm  *keys.Realm
	epochs []keys.Secret // sealing roots of epochs 1, 2, ...
	random *reader       // nil: crypto/rand, in batches
	works  sync.Pool     // of *work
}

// work is what one call needs.
type work struct {
	h      *blake3.Hasher // with contextChunk hashed in
	in     [keys.Size + len(id.Chunk{})]byte
	key    [keys.Size]byte
	ad     [additionalSize]byte
	nonces [64 * nonceSize]byte
	left   int    // bytes of nonces not given out
	body   []byte // a compressed body, opened
}

// reader is a source that is not read by two at once.
type reader struct {
	mu sync.Mutex
	r  io.Reader
}

func newReader(r io.Reader) *reader {
	if r == nil {
		return nil
	}
	return &reader{r: r}
}

func (r *reader) read(b []byte) error {
	src := rand.Reader
	if r != nil {
		r.mu.Lock()
		defer r.mu.Unlock()
		src = r.r
	}
	if _, err := io.ReadFull(src, b); err != nil {
		return fmt.Errorf("draw a nonce: %w", err)
	}
	return nil
}

// NewSealer makes a sealer. Nonces come from random; nil means crypto/rand, read
// in batches. A simulation hands in its own source, which is then read one nonce
// at a time, in the order of the calls.
//
// Drawing ahead is safe here, although a machine cloned while it runs draws the
// same nonces twice: under one chunk's key there is one plaintext.
func NewSealer(realm *keys.Realm, random io.Reader) *Sealer {
	s := &Sealer{realm: realm, random: newReader(random)}
	for e := uint32(1); e <= realm.Epoch(); e++ {
		key, err := realm.SealingKey(e)
		if err != nil {
			panic("seal: " + err.Error()) // a realm has all its epochs
		}
		s.epochs = append(s.epochs, key)
	}
	s.works.New = func() any { return &work{h: blake3.NewDeriveKey(contextChunk)} }
	return s
}

// Realm is the realm whose chunks are sealed.
func (s *Sealer) Realm() id.Realm { return s.realm.Realm() }

// Epoch is the epoch that is sealed under.
func (s *Sealer) Epoch() uint32 { return uint32(len(s.epochs)) }

// ChunkID names a chunk of the realm; see [keys.Realm.ChunkID].
func (s *Sealer) ChunkID(kind Kind, plain []byte) id.Chunk { return s.realm.ChunkID(kind, plain) }

// Info describes a chunk that is about to be sealed, in the current epoch: how
// long it will be is known before.
func (s *Sealer) Info(chunk id.Chunk, kind Kind, plainLen int, c Compression, bodyLen int) Info {
	return Info{Realm: s.Realm(), Chunk: chunk, Kind: kind, Epoch: s.Epoch(), Compression: c, PlainLen: uint32(plainLen), SealedLen: uint32(bodyLen + Overhead)}
}

// aead makes the AEAD of one chunk and writes what it binds.
func (s *Sealer) aead(w *work, i *Info) cipher.AEAD {
	key := s.epochs[i.Epoch-1].Reveal()
	copy(w.in[copy(w.in[:], key[:]):], i.Chunk[:])
	w.h.Reset()
	w.h.Write(w.in[:])
	w.h.Sum(w.key[:0])
	g := newGCM(w.key[:])
	clear(w.key[:])
	clear(key[:])
	clear(w.in[:])
	i.additional(&w.ad)
	return g
}

func newGCM(key []byte) cipher.AEAD {
	b, err := aes.NewCipher(key)
	if err != nil {
		panic("seal: " + err.Error()) // only for other lengths
	}
	g, err := cipher.NewGCM(b)
	if err != nil {
		panic("seal: " + err.Error())
	}
	return g
}

// nonce appends a nonce to dst.
func (s *Sealer) nonce(w *work, dst []byte) ([]byte, error) {
	n := len(dst)
	if s.random != nil {
		dst = dst[:n+nonceSize]
		return dst, s.random.read(dst[n:])
	}
	if w.left == 0 {
		if err := s.random.read(w.nonces[:]); err != nil {
			return dst, err
		}
		w.left = len(w.nonces)
	}
	dst = append(dst, w.nonces[len(w.nonces)-w.left:][:nonceSize]...)
	w.left -= nonceSize
	return dst, nil
}

// Seal appends the sealed chunk, i.SealedLen bytes, to dst. The body is the
// plaintext, or its compressed form as i says. i is checked: it must be of this
// realm ([ErrNoKey]), of the current epoch, and fit the body ([ErrInvalid]).
func (s *Sealer) Seal(dst []byte, i Info, body []byte) ([]byte, error) {
	if err := s.check(&i, body); err != nil {
		return dst, err
	}
	w := s.works.Get().(*work)
	defer s.works.Put(w)
	n := len(dst)
	out, err := s.nonce(w, slices.Grow(dst, len(body)+Overhead))
	if err != nil {
		return dst, err
	}
	return s.aead(w, &i).Seal(out, out[n:], body, w.ad[:]), nil
}

func (s *Sealer) check(i *Info, body []byte) error {
	switch {
	case i.Realm != s.Realm():
		return fmt.Errorf("%w: a chunk of realm %d, the sealer is of realm %d", ErrNoKey, i.Realm, s.Realm())
	case i.Epoch != s.Epoch():
		return fmt.Errorf("%w: a chunk to be sealed in epoch %d, the current one is %d", ErrInvalid, i.Epoch, s.Epoch())
	case !i.Kind.Valid() || i.Compression > Zstd:
		return fmt.Errorf("%w: a chunk of %v with %v", ErrInvalid, i.Kind, i.Compression)
	case i.PlainLen > MaxPlain || uint64(i.SealedLen) != uint64(len(body))+Overhead || i.Compression == None && int64(i.PlainLen) != int64(len(body)):
		return fmt.Errorf("%w: %d bytes of body, %v, for a chunk of %d bytes, sealed %d", ErrInvalid, len(body), i.Compression, i.PlainLen, i.SealedLen)
	}
	return nil
}

// Open appends the plaintext, i.PlainLen bytes, to dst. The error wraps
// [ErrDamaged] when the bytes do not open as i says or do not decompress to as
// many bytes, [ErrNoKey] when realm or epoch are unknown, [ErrNewer] when the
// compression is. It takes no more memory than the sealed chunk is long, and
// i.PlainLen once the seal has held.
func (s *Sealer) Open(dst []byte, i Info, sealed []byte) ([]byte, error) {
	switch {
	case i.Realm != s.Realm() || i.Epoch == 0 || i.Epoch > s.Epoch():
		return dst, fmt.Errorf("%w: chunk %v of realm %d, epoch %d", ErrNoKey, i.Chunk, i.Realm, i.Epoch)
	case uint64(len(sealed)) != uint64(i.SealedLen) || len(sealed) < Overhead:
		return dst, bad(&i, fmt.Errorf("%d bytes, not %d", len(sealed), i.SealedLen))
	case i.PlainLen > MaxPlain || i.Compression == None && int(i.PlainLen) != len(sealed)-Overhead:
		return dst, bad(&i, fmt.Errorf("%d bytes of body, %v, for %d bytes", len(sealed)-Overhead, i.Compression, i.PlainLen))
	}
	w := s.works.Get().(*work)
	defer s.works.Put(w)
	into := dst
	if i.Compression != None {
		into = w.body[:0]
	}
	body, err := s.aead(w, &i).Open(into, sealed[:nonceSize], sealed[nonceSize:], w.ad[:])
	if err != nil {
		return dst, bad(&i, errors.New("the seal does not hold"))
	}
	switch i.Compression {
	case None:
		return body, nil
	case Zstd:
		w.body = body
		out, err := decompress(dst, body, int(i.PlainLen))
		if err != nil {
			return dst, bad(&i, err)
		}
		return out, nil
	}
	return dst, fmt.Errorf("%w: chunk %v: %v", ErrNewer, i.Chunk, i.Compression)
}

// Verify is Open and then the proof that the plaintext is what i.Chunk names,
// which the seal alone does not give: a bug could have sealed other bytes.
func (s *Sealer) Verify(dst []byte, i Info, sealed []byte) ([]byte, error) {
	out, err := s.Open(dst, i, sealed)
	if err != nil {
		return dst, err
	}
	if !i.Kind.Valid() {
		return dst, fmt.Errorf("%w: chunk %v: %v", ErrNewer, i.Chunk, i.Kind)
	}
	if got := s.ChunkID(i.Kind, out[len(dst):]); got != i.Chunk {
		return dst, bad(&i, fmt.Errorf("the bytes are those of %v", got))
	}
	return out, nil
}

func bad(i *Info, err error) error {
	return fmt.Errorf("%w: chunk %v: %w", ErrDamaged, i.Chunk, err)
}

func (s *Sealer) String() string { return "sealer of " + s.realm.String() }

// Format implements [fmt.Formatter]: every verb prints what String does.
func (s *Sealer) Format(f fmt.State, _ rune) { _, _ = io.WriteString(f, s.String()) }
