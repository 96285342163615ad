package store

import (
	"context"
	"errors"
	"fmt"
	"io"

	"cairn/id"
	"cairn/index"
	"cairn/manifest"
	"cairn/pack"
	"cairn/seal"
)

// maxPlaces is the most chunks that one page of a placement holds.
const maxPlaces = 1000

// PlacementOptions choose what of an object is located.
type PlacementOptions struct {
	Version id.Version // zero: the current one
	From    uint64     // begin with the chunk that holds this byte
	Limit   int        // chunks, at most 1,000; 0 means that
}

// Placement says where a part of an object lies, as the index has it. No shard is
// asked for: a node that is up may have lost one all the same.
type Placement struct {
	Object Object
	Chunks []ChunkPlace // in the order of the object's bytes
	Packs  []PackPlace  // of these chunks, each once
	More   bool
	Next   uint64 // goes into From for the next page
}

// ChunkPlace is a piece of an object and the pack that holds it.
type ChunkPlace struct {
	Offset, Size uint64 // within the object, in bytes
	Chunk        id.Chunk
	Sealed       uint32 // bytes that it takes in the pack
	Compressed   bool
	Refs         uint64 // edges that lead to it: above 1 it is shared
	Damaged      bool   // known to be lost
	Pack         id.Pack
	// First and Last are the data shards whose slices hold it, counted from 0.
	First, Last int
}

// PackPlace is a pack and its shards: the first K are data, the others parity.
type PackPlace struct {
	Pack   id.Pack
	Log    bool // a log pack: it holds records and small objects
	K, M   int
	Shards []ShardPlace
}

// ShardPlace is one shard of a pack. While a node set changes a log pack may have
// a shard on two nodes.
type ShardPlace struct {
	Index int
	Node  string // the member's name; the ID of a node that is none any more
	State string // of the node: as in [NodeStatus], or "gone"
}

// Placement says where the chunks of an object lie, a page at a time. It holds
// one page and reads the lists of the manifest that lead there.
func (s *Store) Placement(ctx context.Context, bucket, key string, opt PlacementOptions) (Placement, error) {
	if err := checkKey(key); err != nil {
		return Placement{}, err
	}
	if opt.Limit <= 0 || opt.Limit > maxPlaces {
		opt.Limit = maxPlaces
	}
	leave, err := s.enter()
	if err != nil {
		return Placement{}, err
	}
	defer leave()
	t := s.transfer()
	defer t.end()
	b, o, err := s.lookup(ctx, Name{bucket, key}, opt.Version)
	if err != nil {
		return Placement{}, err
	}
	out := Placement{Object: objectOf(bucket, key, o)}
	switch {
	case o.Deleted:
		return out, fmt.Errorf("object %.80q in bucket %s is deleted: %w", key, bucket, ErrNoObject)
	case opt.From > o.Manifest.Size:
		return out, fmt.Errorf("%w: byte %d of %d", ErrRange, opt.From, o.Manifest.Size)
	}
	realm, err := s.realm(b.Realm)
	if err != nil {
		return out, err
	}
	walk := walker{s: s, realm: realm, stack: []part{{refs: o.Manifest.Roots}}, from: opt.From, to: o.Manifest.Size}
	packs := map[id.Pack]geometry{}
	for {
		l, err := walk.next(ctx)
		if err == io.EOF {
			return out, nil
		}
		if err != nil {
			return out, err
		}
		if len(out.Chunks) == opt.Limit {
			out.More, out.Next = true, walk.pos-l.ref.Len
			return out, nil
		}
		if err := s.place(&out, packs, realm.realm, l.ref, walk.pos-l.ref.Len); err != nil {
			return out, err
		}
	}
}

// place adds a chunk, and its pack when it is the first of it.
func (s *Store) place(out *Placement, packs map[id.Pack]geometry, realm id.Realm, ref manifest.Ref, off uint64) error {
	return s.view(func(r index.Reader) error {
		row, err := r.Chunk(realm, ref.Chunk)
		if errors.Is(err, index.ErrNotFound) {
			return fmt.Errorf("%w: the object was removed while it was located", ErrRetry)
		}
		if err != nil {
			return translate(err, ErrDamaged)
		}
		g, seen := packs[row.Pack]
		if !seen {
			p, err := r.Pack(row.Pack)
			if err != nil {
				return translate(err, ErrDamaged)
			}
			if g, err = s.locate(r, row.Pack); err != nil {
				return translate(err, ErrDamaged)
			}
			packs[row.Pack] = g
			out.Packs = append(out.Packs, s.packPlace(p.Kind, g))
		}
		if row.Unknown() { // what brought it is lost, and where in its pack it lay
			out.Chunks = append(out.Chunks, ChunkPlace{Offset: off, Size: ref.Len, Chunk: ref.Chunk, Refs: row.Refs, Damaged: true, Pack: row.Pack})
			return nil
		}
		end := row.Offset + row.Info.SealedLen - 1
		out.Chunks = append(out.Chunks, ChunkPlace{Offset: off, Size: ref.Len, Chunk: ref.Chunk, Sealed: row.Info.SealedLen, Compressed: row.Info.Compression != seal.None,
			Refs: row.Refs, Damaged: row.State == index.Damaged, Pack: row.Pack, First: int(row.Offset) / g.slice, Last: int(end) / g.slice})
		return nil
	})
}

func (s *Store) packPlace(kind pack.Kind, g geometry) PackPlace {
	set := s.members.Load()
	out := PackPlace{Pack: g.pack, Log: kind == pack.Log, K: g.k, M: g.m}
	for _, p := range g.places {
		at := ShardPlace{Index: int(p.Index), Node: p.Node.String(), State: "gone"}
		if m := set.byID[p.Node]; m != nil {
			at.Node = m.info.Name
			at.State, _ = m.state(s.now())
		}
		out.Shards = append(out.Shards, at)
	}
	return out
}
