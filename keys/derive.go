package keys

import (
	"fmt"
	"io"
	"sync"

	"github.com/zeebo/blake3"

	"cairn/id"
)

// Contexts of BLAKE3's key derivation mode, one for each purpose. They are part
// of the format: docs/formats/keys.md lists them, and a test compares.
const (
	contextDataID   = "cairn 2026-11-24 chunk ID key of data chunks v1"
	contextListID   = "cairn 2026-11-24 chunk ID key of list chunks v1"
	contextSnapID   = "cairn 2026-11-26 chunk ID key of snapshot chunks v1"
	contextGear     = "cairn 2026-11-24 gear table key v1"
	contextRecord   = "cairn 2026-11-24 record key of a pack v1"
	contextMeta     = "cairn 2026-11-24 meta key of a pack v1"
	contextPad      = "cairn 2026-11-24 padding key of a pack v1"
	contextDigest   = "cairn 2026-11-24 digest key of a pack v1"
	contextValue    = "cairn 2026-11-24 index values v1"
	contextRows     = "cairn 2026-11-24 index digest v1"
	contextEngine   = "cairn 2026-11-24 index engine encryption v1"
	contextCluster  = "cairn 2026-11-24 cluster file v1"
	contextRoots    = "cairn 2026-11-24 keyring roots v1"
	contextFile     = "cairn 2026-11-24 keyring slot of a key file v1"
	contextPass     = "cairn 2026-11-24 keyring slot of a passphrase v1"
	contextRecovery = "cairn 2026-11-24 keyring slot of a recovery code v1"
)

// deriver computes one of the derivations. Its hashers have the context hashed
// in already and are used again.
type deriver struct{ pool sync.Pool }

type deriving struct {
	h   *blake3.Hasher
	in  [2 * Size]byte
	out [Size]byte
}

func newDeriver(context string) *deriver {
	d := &deriver{}
	d.pool.New = func() any { return &deriving{h: blake3.NewDeriveKey(context)} }
	return d
}

// key derives from a root and what tells this key from the root's others; rest
// is at most 32 bytes.
func (d *deriver) key(root Secret, rest []byte) Secret {
	w := d.pool.Get().(*deriving)
	if len(rest) > Size {
		panic("keys: too much to derive from")
	}
	b := append(w.in[:0], root.bytes()...)
	b = append(b, rest...)
	w.h.Reset()
	w.h.Write(b)
	w.h.Sum(w.out[:0])
	s := NewSecret(w.out)
	clear(w.in[:])
	clear(w.out[:])
	d.pool.Put(w)
	return s
}

var (
	deriveDataID  = newDeriver(contextDataID)
	deriveListID  = newDeriver(contextListID)
	deriveSnapID  = newDeriver(contextSnapID)
	deriveGear    = newDeriver(contextGear)
	deriveRecord  = newDeriver(contextRecord)
	deriveMeta    = newDeriver(contextMeta)
	derivePad     = newDeriver(contextPad)
	deriveDigest  = newDeriver(contextDigest)
	deriveValue   = newDeriver(contextValue)
	deriveRows    = newDeriver(contextRows)
	deriveEngine  = newDeriver(contextEngine)
	deriveCluster = newDeriver(contextCluster)
	deriveRoots   = newDeriver(contextRoots)
)

// MetaKey seals the meta of a pack (AES-256-GCM).
func (k *Keyring) MetaKey(p id.Pack) Secret { return deriveMeta.key(k.roots.meta, p[:]) }

// PadKey gives the padding of a pack (AES-256-CTR).
func (k *Keyring) PadKey(p id.Pack) Secret { return derivePad.key(k.roots.meta, p[:]) }

// DigestKey authenticates the shards of a pack (GMAC with AES-256).
func (k *Keyring) DigestKey(p id.Pack) Secret { return deriveDigest.key(k.roots.digest, p[:]) }

// IndexValueKey seals the values of the index.
func (k *Keyring) IndexValueKey() Secret { return deriveValue.key(k.roots.index, nil) }

// IndexDigestKey keys the digest over all rows of the index.
func (k *Keyring) IndexDigestKey() Secret { return deriveRows.key(k.roots.index, nil) }

// IndexEngineKey is what the index's engine encrypts its files with.
func (k *Keyring) IndexEngineKey() Secret { return deriveEngine.key(k.roots.index, nil) }

// ClusterFileKey seals the cluster file.
func (k *Keyring) ClusterFileKey() Secret { return deriveCluster.key(k.roots.cluster, nil) }

// Kind is what a chunk holds.
type Kind uint8

// Kinds of chunks.
const (
	Data Kind = 1 // a piece of an object
	List Kind = 2 // a piece of a manifest
	Snap Kind = 3 // a piece of an exported index
)

// Valid reports whether k is a kind of this version.
func (k Kind) Valid() bool { return k >= Data && k <= Snap }

func (k Kind) String() string {
	switch k {
	case Data:
		return "data"
	case List:
		return "list"
	case Snap:
		return "snapshot"
	}
	return fmt.Sprintf("kind %d", uint8(k))
}

// Realm is the part of a keyring that belongs to one realm. It never changes and
// may be used by many goroutines.
type Realm struct {
	number  id.Realm
	ids     Secret   // root of chunk IDs and of the gear table
	records Secret   // root of record keys
	epochs  []Secret // sealing roots of epochs 1, 2, ...

	data, list, snap sync.Pool // of *chunkHasher
}

// chunkHasher is here as a whole so that a sum needs no memory of its own.
type chunkHasher struct {
	h   *blake3.Hasher
	sum id.Chunk
}

func newRealm(number id.Realm, ids, records Secret, epochs []Secret) *Realm {
	r := &Realm{number: number, ids: ids, records: records, epochs: epochs}
	hashers := func(key Secret) func() any {
		return func() any {
			h, err := blake3.NewKeyed(key.bytes())
			if err != nil {
				panic("keys: " + err.Error()) // only for other lengths
			}
			return &chunkHasher{h: h}
		}
	}
	r.data.New = hashers(deriveDataID.key(ids, nil))
	r.list.New = hashers(deriveListID.key(ids, nil))
	r.snap.New = hashers(deriveSnapID.key(ids, nil))
	return r
}

// Realm returns the realm's number.
func (r *Realm) Realm() id.Realm { return r.number }

// Epoch is the epoch that is sealed under now; epochs count from 1.
func (r *Realm) Epoch() uint32 { return uint32(len(r.epochs)) }

// SealingKey is the root of the keys that seal chunks in an epoch; one that the
// realm never had is [ErrUnknown].
func (r *Realm) SealingKey(epoch uint32) (Secret, error) {
	if epoch == 0 || epoch > r.Epoch() {
		return Secret{}, fmt.Errorf("%w: epoch %d of realm %d; it has %d", ErrUnknown, epoch, r.number, r.Epoch())
	}
	return r.epochs[epoch-1], nil
}

// RecordKey seals the realm's records in one log pack. Every pack has its own
// key, so that random nonces are never used up however many packs there are.
func (r *Realm) RecordKey(p id.Pack) Secret { return deriveRecord.key(r.records, p[:]) }

// GearKey is the key of the chunker's gear table.
func (r *Realm) GearKey() Secret { return deriveGear.key(r.ids, nil) }

// ChunkID names a chunk: BLAKE3-256 of its plaintext under the realm's key for
// that kind. Each kind has a key of its own, so that no object's bytes get the ID
// of a list. It allocates nothing once warm.
func (r *Realm) ChunkID(kind Kind, plain []byte) id.Chunk {
	var pool *sync.Pool
	switch kind {
	case Data:
		pool = &r.data
	case List:
		pool = &r.list
	case Snap:
		pool = &r.snap
	default:
		panic("keys: " + kind.String() + " has no IDs")
	}
	w := pool.Get().(*chunkHasher)
	w.h.Reset()
	w.h.Write(plain)
	w.h.Sum(w.sum[:0])
	c := w.sum
	pool.Put(w)
	return c
}

func (r *Realm) String() string {
	return fmt.Sprintf("realm %d, epoch %d", r.number, r.Epoch())
}

// Format implements [fmt.Formatter]: every verb prints what String does.
func (r *Realm) Format(f fmt.State, _ rune) { _, _ = io.WriteString(f, r.String()) }
