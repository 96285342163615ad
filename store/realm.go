package store

import (
	"context"
	"encoding/binary"
	"fmt"

	"cairn/chunker"
	"cairn/erasure"
	"cairn/id"
	"cairn/index/kv"
	"cairn/keys"
	"cairn/manifest"
	"cairn/pack"
	"cairn/seal"
	"cairn/store/budget"
)

// packSecrets derives the keys of packs.
type packSecrets struct{ ring *keys.Keyring }

func (p packSecrets) MetaKey(i id.Pack) [32]byte   { return p.ring.MetaKey(i).Reveal() }
func (p packSecrets) DigestKey(i id.Pack) [32]byte { return p.ring.DigestKey(i).Reveal() }
func (p packSecrets) PadKey(i id.Pack) [32]byte    { return p.ring.PadKey(i).Reveal() }

var _ pack.Secrets = packSecrets{}

// coderPool lends the coder the store's buffers.
type coderPool struct{ p *bufferPool }

func (c coderPool) Get(n int) []byte { return c.p.get(n) }
func (c coderPool) Put(b []byte)     { c.p.put(b) }

func (s *Store) kvConfig() kv.Config {
	return kv.Config{
		ValueKey:  kv.NewSecret(s.cfg.Keyring.IndexValueKey().Reveal()),
		DigestKey: kv.NewSecret(s.cfg.Keyring.IndexDigestKey().Reveal()),
		Cluster:   s.cfg.Cluster,
		Rand:      s.random(forSeals),
	}
}

// realmKeys are the derived values of one realm that streams share.
type realmKeys struct {
	realm    id.Realm
	keys     *keys.Realm
	sealer   *seal.Sealer
	standard *chunker.Cutter
	fine     *chunker.Cutter
}

func (r *realmKeys) cutter(profile string) *chunker.Cutter {
	if profile == "fine" {
		return r.fine
	}
	return r.standard
}

func (r *realmKeys) chunkID(kind seal.Kind, plain []byte) id.Chunk {
	return r.keys.ChunkID(kind, plain)
}

// etag names an object's content: the beginning of the ID that its roots would
// have as a list chunk. Equal content cut alike has one tag; outside the realm it
// tells nothing.
func (r *realmKeys) etag(m manifest.Manifest) []byte {
	var plain []byte
	for depth := uint8(1); len(m.Roots) > 0; depth++ {
		if m.Roots[0].Depth == depth-1 {
			plain = manifest.AppendList(nil, min(depth, manifest.MaxDepth), m.Roots)
			break
		}
	}
	c := r.keys.ChunkID(keys.List, plain)
	return c[:16]
}

// realm returns the keys of a realm.
func (s *Store) realm(r id.Realm) (*realmKeys, error) {
	s.realmMu.Lock()
	defer s.realmMu.Unlock()
	if k := s.realms[r]; k != nil {
		return k, nil
	}
	ring, err := s.cfg.Keyring.Realm(r)
	if err != nil {
		return nil, fmt.Errorf("realm %d: %w", r, err)
	}
	k := &realmKeys{realm: r, keys: ring}
	k.sealer = seal.NewSealer(ring, s.random(forSeals))
	key := ring.GearKey().Reveal()
	gear := chunker.NewGear(&key)
	clear(key[:])
	if k.standard, err = chunker.NewCutter(gear, chunker.Default()); err != nil {
		return nil, err
	}
	if k.fine, err = chunker.NewCutter(gear, chunker.Fine()); err != nil {
		return nil, err
	}
	s.realms[r] = k
	return k, nil
}

// compress decides how a chunk is sealed and returns what is to be sealed; free
// gives back what body may lie in.
func (s *Store) compress(ctx context.Context, realm *realmKeys, c id.Chunk, kind seal.Kind, try bool, plain []byte) (info seal.Info, body []byte, free func(), err error) {
	body, free = plain, func() {}
	how := seal.None
	if try && seal.Probe(plain) {
		// Compressing may end up longer than plain before it is given up.
		n := len(plain) + len(plain)/64 + 1024
		weight := weigh(n) + budget.Encoder
		if err := s.goOn(ctx, s.mem.compress, weight); err != nil {
			return info, nil, nil, err
		}
		buf := s.chunks.get(n)
		free = func() {
			s.chunks.put(buf)
			s.mem.compress.Release(weight)
		}
		if out, ok := s.zstd.Try(buf[:0], plain); ok {
			how, body = seal.Zstd, out
		} else {
			free()
			free = func() {}
		}
	}
	return realm.sealer.Info(c, kind, len(plain), how, len(body)), body, free, nil
}

// Record bodies are sealed per realm, bound to their pack and place in it.

func batchAD(p id.Pack, realm id.Realm, first uint32) []byte {
	b := append(make([]byte, 0, 24), p[:]...)
	b = binary.LittleEndian.AppendUint32(b, uint32(realm))
	return binary.LittleEndian.AppendUint32(b, first)
}

// batchBox is the box of a realm's records in one log pack. The store's own
// records, realm 0, have only the meta's seal: nobody may read the log without
// them.
func (s *Store) batchBox(p id.Pack, realm id.Realm) (*seal.Box, error) {
	k, err := s.realm(realm)
	if err != nil {
		return nil, err
	}
	return seal.NewBox(k.keys.RecordKey(p), s.random(forSeals)), nil
}

func (s *Store) sealBatch(dst []byte, p id.Pack, realm id.Realm, first uint32, plain []byte) ([]byte, error) {
	if realm == 0 {
		return append(dst, plain...), nil
	}
	box, err := s.batchBox(p, realm)
	if err != nil {
		return dst, err
	}
	return box.Seal(dst, plain, batchAD(p, realm, first))
}

func (s *Store) openBatch(p id.Pack, realm id.Realm, first uint32, sealed []byte) ([]byte, error) {
	if realm == 0 {
		return sealed, nil
	}
	box, err := s.batchBox(p, realm)
	if err != nil {
		return nil, err
	}
	return box.Open(nil, sealed, batchAD(p, realm, first))
}

func (s *Store) clusterBox() *seal.Box {
	return seal.NewBox(s.cfg.Keyring.ClusterFileKey(), s.random(forSeals))
}

func (s *Store) code(k, m int) (*erasure.Code, error) { return erasure.New(k, m) }
