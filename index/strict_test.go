package index

import (
	"bytes"
	"context"
	"errors"
	"slices"
	"strings"
	"testing"

	"cairn/id"
	"cairn/index/kv"
	"cairn/index/kv/memkv"
	"cairn/manifest"
	"cairn/pack"
	"cairn/record"
)

// seeded is an index with a little of everything: buckets 1 (plain) and 2
// (versioned), chunks 1-5, data pack 7, key k with versions.
func seeded(t testing.TB) (*Index, *chain, *memkv.Engine) { return seededWith(t, nil) }

// seededWaste is seeded, and something to collect: chunk 40 has no edge; 41 and the
// list 31 are condemned; nothing lies in data pack 10. Version 2/4 of "held" in bucket 2
// is held, and the clock stands at 7.
func seededWaste(t testing.TB) (*Index, *chain, *memkv.Engine) {
	return seededWith(t, func(b *builder) {
		for _, n := range []uint64{40, 41, 42} {
			b.entry(n, false)
		}
		b.entry(31, true)
		b.apply(&record.List{In: 1, Chunk: testChunk(31), Children: []id.Chunk{testChunk(42)}})
		b.apply(&record.Condemn{In: 1, Chunks: []id.Chunk{testChunk(41), testChunk(31)}, Time: 7})
		b.apply(adoptOf(10))
		b.put(2, "held")
		b.apply(&record.LockSet{In: 1, Bucket: 2, Key: []byte("held"), Version: id.Version{Seq: 2, Pos: 4}, Lock: record.Lock{Hold: true}})
		b.apply(&record.Clock{Time: 7})
	})
}

func seededWith(t testing.TB, more func(b *builder)) (*Index, *chain, *memkv.Engine) {
	e := memkv.New(memkv.Options{})
	x := openOn(t, e)
	c := new(chain)
	build(t, x, c, true, func(b *builder) {
		b.apply(&record.Nodes{Version: 1, M: 1, Members: []record.Member{{ID: testNode(1), Name: "a"}}, LogNodes: []id.Node{testNode(1)}})
		b.bucket("plain", false)
		b.bucket("kept", true)
		b.bucket("empty", true)
		b.entry(1, false)
		b.entry(30, true)
		b.apply(&record.List{In: 1, Chunk: testChunk(30), Children: []id.Chunk{testChunk(1), testChunk(1)}})
		b.apply(adoptOf(7, 2, 3, 4))
		b.put(1, "k", 2, 30) // version 1/6
		b.put(2, "k", 2)     // version 1/7
	})
	build(t, x, c, false, func(b *builder) {
		b.put(2, "k", 3, 3) // version 2/0
		b.entry(5, false)
		if more != nil {
			more(b)
		}
	})
	return x, c, e
}

// TestFound: chunks that are marked as damaged are live again where they lie, those that
// are named and no others; what is not so is refused.
func TestFound(t *testing.T) {
	p := testPack(7)
	var at []uint32
	for _, e := range adoptOf(7, 2, 3, 4).Entries {
		at = append(at, e.Offset)
	}
	offs := func(in ...uint32) []uint32 { return in }
	for _, test := range []struct {
		name string
		rec  record.Found
		want error // nil: it applies
	}{
		{"both", record.Found{Pack: p, Offsets: offs(at[0], at[1])}, nil},
		{"the second", record.Found{Pack: p, Offsets: offs(at[1])}, nil},
		{"one that is not damaged", record.Found{Pack: p, Offsets: offs(at[1], at[2])}, ErrDivergent},
		{"one that does not lie there", record.Found{Pack: p, Offsets: offs(at[0]+1, at[1])}, ErrDivergent},
		{"a pack that is not there", record.Found{Pack: testPack(9), Offsets: offs(at[0])}, ErrDivergent},
		{"none", record.Found{Pack: p}, ErrRecord},
		{"out of order", record.Found{Pack: p, Offsets: offs(at[1], at[0])}, ErrRecord},
		{"twice the same", record.Found{Pack: p, Offsets: offs(at[0], at[0])}, ErrRecord},
		{"beyond the bound", record.Found{Pack: p, Offsets: make([]uint32, record.MaxLost+1)}, ErrRecord},
		{"its own pack", record.Found{Pack: testPack(1<<40 + 4), Offsets: offs(at[0])}, ErrRecord},
	} {
		t.Run(test.name, func(t *testing.T) {
			x, c, _ := seeded(t)
			build(t, x, c, false, func(b *builder) { b.apply(&record.Lost{Pack: p, Chunks: 2}) })
			l := c.next(false)
			l.Records = []record.Record{&test.rec}
			if err := x.Apply(l, Strict); !errors.Is(err, test.want) {
				t.Fatalf("got %v, want %v", err, test.want)
			}
			if test.want == ErrDivergent {
				said := 0
				x.cfg.Mismatch = func(Mismatch) { said++ }
				if err := x.Apply(l, Rebuild); err != nil || said != 1 {
					t.Errorf("a rebuild says %d mismatches, %v", said, err)
				}
			}
			if _, err := x.Check(t.Context()); err != nil {
				t.Fatal(err)
			}
			if err := x.View(func(r Reader) error {
				for i, n := range []uint64{2, 3, 4} {
					row, err := r.Chunk(1, testChunk(n))
					if err != nil {
						return err
					}
					want := Live
					if i < 2 && (test.want == ErrRecord || !slices.Contains(test.rec.Offsets, row.Offset) || test.rec.Pack != p) {
						want = Damaged
					}
					if row.State != want {
						t.Errorf("chunk %d at %d is %v, want %v", n, row.Offset, row.State, want)
					}
				}
				return nil
			}); err != nil {
				t.Fatal(err)
			}
		})
	}
}

type unknownRecord struct{ record.Put }

// TestMismatches gives every field that names what is replaced another value.
func TestMismatches(t *testing.T) {
	v := func(seq uint64, pos uint32) id.Version { return id.Version{Seq: seq, Pos: pos} }
	put := func(f func(*record.Put)) *record.Put {
		p := &record.Put{In: 1, Bucket: 2, Key: []byte("k"), Manifest: manifestOf(2, 2), Before: []uint64{2, 3}, Current: v(2, 0)}
		f(p)
		return p
	}
	purge := func(f func(*record.Purge)) *record.Purge {
		p := &record.Purge{In: 1, Bucket: 2, Key: []byte("k"), Drops: []record.Dropped{{Version: v(2, 0), Before: []uint64{2, 1}}}}
		f(p)
		return p
	}
	adopt := func(f func(*record.Adopt)) *record.Adopt {
		a := adoptOf(8, 3, 6)
		f(a)
		return a
	}
	move := func(f func(*record.Move)) *record.Move {
		a := adoptOf(8, 2, 3)
		m := &record.Move{In: a.In, Pack: a.Pack, K: a.K, M: a.M, Slice: a.Slice, Size: a.Size, Body: a.Body, Writer: a.Writer, Counter: a.Counter, Shards: a.Shards, Entries: a.Entries,
			Sources: []id.Pack{testPack(7)}, From: []uint32{1, 1}}
		f(m)
		return m
	}
	lock := func(f func(*record.LockSet)) *record.LockSet {
		l := &record.LockSet{In: 1, Bucket: 2, Key: []byte("held"), Version: v(2, 4), Old: record.Lock{Hold: true}, Lock: record.Lock{Mode: record.Compliance, Until: 9}}
		f(l)
		return l
	}
	place := testPlaces(6)[2]
	moved := place
	moved.Node = testNode(9)
	for _, test := range []struct {
		name string
		rec  record.Record
		want error // nil: it applies
	}{
		{"put", put(func(*record.Put) {}), nil},
		{"put, count", put(func(p *record.Put) { p.Before[0] = 1 }), ErrDivergent},
		{"put, count of the second edge", put(func(p *record.Put) { p.Before[1] = 2 }), ErrDivergent},
		{"put, too few counts", put(func(p *record.Put) { p.Before = p.Before[:1] }), ErrRecord},
		{"put, newest version", put(func(p *record.Put) { p.Current = v(1, 7) }), ErrDivergent},
		{"put, as if the key were new", put(func(p *record.Put) { p.Current = v(0, 0) }), ErrDivergent},
		{"put of a new key over nothing", put(func(p *record.Put) { p.Key, p.Current = []byte("new"), v(0, 0) }), nil},
		{"put of a new key over something", put(func(p *record.Put) { p.Key = []byte("new") }), ErrDivergent},
		{"put, drops", put(func(p *record.Put) { p.Drops = []record.Dropped{{Version: v(2, 0), Before: []uint64{2, 1}}} }), nil},
		{"put, drops in another order", put(func(p *record.Put) {
			p.Drops = []record.Dropped{{Version: v(1, 7), Before: []uint64{4}}, {Version: v(2, 0), Before: []uint64{2, 1}}}
		}), nil},
		{"put, drops a version that is not there", put(func(p *record.Put) { p.Drops = []record.Dropped{{Version: v(1, 9)}} }), ErrDivergent},
		{"put, count of a drop", put(func(p *record.Put) { p.Drops = []record.Dropped{{Version: v(2, 0), Before: []uint64{2, 2}}} }), ErrDivergent},
		{"put, counts of a drop", put(func(p *record.Put) { p.Drops = []record.Dropped{{Version: v(2, 0), Before: []uint64{2}}} }), ErrDivergent},
		{"put, too many counts of a drop", put(func(p *record.Put) { p.Drops = []record.Dropped{{Version: v(2, 0), Before: []uint64{2, 1, 0}}} }), ErrDivergent},
		{"put, drops itself", put(func(p *record.Put) { p.Drops = []record.Dropped{{Version: v(3, 0), Before: []uint64{2}}} }), ErrRecord},
		{"put, bucket", put(func(p *record.Put) { p.Bucket = 9 }), ErrDivergent},
		{"put, realm", put(func(p *record.Put) { p.In = 2 }), ErrRecord},
		{"put, chunk that is not there", put(func(p *record.Put) { p.Manifest, p.Before = manifestOf(99), []uint64{0} }), ErrDivergent},
		{"put, no key", put(func(p *record.Put) { p.Key = nil }), ErrRecord},
		{"put, long key", put(func(p *record.Put) { p.Key = make([]byte, record.MaxKey+1) }), ErrRecord},
		{"put, long ETag", put(func(p *record.Put) { p.ETag = make([]byte, maxETag+1) }), ErrRecord},
		{"put, manifest", put(func(p *record.Put) { p.Manifest.Size++ }), ErrRecord},
		{"put, attributes that are no text", put(func(p *record.Put) { p.Attrs.ContentType = "\xff" }), ErrRecord},
		{"put, attributes too long", put(func(p *record.Put) {
			p.Attrs.User = []record.UserField{{Name: "a", Value: strings.Repeat("v", record.MaxAttrs)}}
		}), ErrRecord},
		{"put, attributes out of order", put(func(p *record.Put) { p.Attrs.User = []record.UserField{{Name: "b"}, {Name: "a"}} }), ErrRecord},

		{"delete", &record.Delete{In: 1, Bucket: 2, Key: []byte("k"), Current: v(2, 0)}, nil},
		{"delete, newest version", &record.Delete{In: 1, Bucket: 2, Key: []byte("k"), Current: v(1, 7)}, ErrDivergent},
		{"delete, bucket", &record.Delete{In: 1, Bucket: 9, Key: []byte("k"), Current: v(2, 0)}, ErrDivergent},
		{"purge", purge(func(*record.Purge) {}), nil},
		{"purge, count", purge(func(p *record.Purge) { p.Drops[0].Before[0] = 1 }), ErrDivergent},
		{"purge, version", purge(func(p *record.Purge) { p.Drops[0].Version.Pos = 1 }), ErrDivergent},
		{"purge, key", purge(func(p *record.Purge) { p.Key = []byte("j") }), ErrDivergent},
		{"purge of nothing", purge(func(p *record.Purge) { p.Drops = nil }), ErrRecord},
		{"purge, twice the same", purge(func(p *record.Purge) { p.Drops = append(p.Drops, p.Drops[0]) }), ErrDivergent},

		{"list of a chunk of an earlier pack", &record.List{In: 1, Chunk: testChunk(30), Children: []id.Chunk{testChunk(1)}, Before: []uint64{2}}, ErrDivergent},
		{"list without children", &record.List{In: 1, Chunk: testChunk(30)}, ErrRecord},
		{"adopt", adopt(func(*record.Adopt) {}), nil},
		{"adopt, pack", adopt(func(a *record.Adopt) { a.Pack = testPack(7) }), ErrDivergent},
		{"adopt, a log pack", adopt(func(a *record.Adopt) { a.Pack = testPack(1<<40 + 1) }), ErrDivergent},
		{"adopt, itself", adopt(func(a *record.Adopt) { a.Pack = testPack(1<<40 + 3) }), ErrRecord},
		{"adopt, chunk", adopt(func(a *record.Adopt) { a.Entries[0].PlainLen++; a.Entries[0].Chunk = testChunk(3) }), ErrDivergent},
		{"adopt, realm", adopt(func(a *record.Adopt) { a.In = 2 }), ErrRecord},
		{"adopt, shards", adopt(func(a *record.Adopt) { a.Shards = a.Shards[1:] }), ErrRecord},
		{"adopt, overlapping entries", adopt(func(a *record.Adopt) { a.Entries[1].Offset-- }), ErrRecord},
		{"adopt, beyond the payload", adopt(func(a *record.Adopt) { a.Slice = 100 }), ErrRecord},

		{"put, a lock", put(func(p *record.Put) { p.Lock = record.Lock{Mode: record.Governance, Until: 9, Hold: true} }), nil},
		{"put, a mode for no time", put(func(p *record.Put) { p.Lock.Mode = record.Governance }), ErrRecord},
		{"put, a time without a mode", put(func(p *record.Put) { p.Lock.Until = 9 }), ErrRecord},
		{"put, another mode", put(func(p *record.Put) { p.Lock = record.Lock{Mode: "always", Until: 9} }), ErrRecord},
		{"purge of what is held", &record.Purge{In: 1, Bucket: 2, Key: []byte("held"), Drops: []record.Dropped{{Version: v(2, 4)}}}, ErrDivergent},
		{"lock", lock(func(*record.LockSet) {}), nil},
		{"lock, none", lock(func(l *record.LockSet) { l.Lock = record.Lock{} }), nil},
		{"lock of an older version", lock(func(l *record.LockSet) { l.Key, l.Version, l.Old = []byte("k"), v(1, 7), record.Lock{} }), nil},
		{"lock, old", lock(func(l *record.LockSet) { l.Old.Hold = false }), ErrDivergent},
		{"lock, version", lock(func(l *record.LockSet) { l.Version = v(2, 3) }), ErrDivergent},
		{"lock, no version", lock(func(l *record.LockSet) { l.Version = v(0, 0) }), ErrDivergent},
		{"lock, key", lock(func(l *record.LockSet) { l.Key = []byte("j") }), ErrDivergent},
		{"lock, no key", lock(func(l *record.LockSet) { l.Key = nil }), ErrRecord},
		{"lock, mode", lock(func(l *record.LockSet) { l.Lock.Mode = "" }), ErrRecord},
		{"lock, realm", lock(func(l *record.LockSet) { l.In = 2 }), ErrRecord},
		{"lock, bucket", lock(func(l *record.LockSet) { l.Bucket = 9 }), ErrDivergent},
		{"clock", &record.Clock{Old: 7, Time: 8}, nil},
		{"clock, old", &record.Clock{Old: 6, Time: 8}, ErrDivergent},
		{"clock, back", &record.Clock{Old: 7, Time: 7}, ErrRecord},

		{"bucket", &record.BucketCreate{In: 1, Bucket: 4, Name: "new"}, nil},
		{"bucket, number", &record.BucketCreate{In: 1, Bucket: 5, Name: "new"}, ErrDivergent},
		{"bucket, number of another", &record.BucketCreate{In: 1, Bucket: 1, Name: "new"}, ErrDivergent},
		{"bucket, name", &record.BucketCreate{In: 1, Bucket: 4, Name: "plain"}, ErrDivergent},
		{"bucket, no name", &record.BucketCreate{In: 1, Bucket: 4}, ErrRecord},
		{"settings", &record.BucketSet{In: 1, Bucket: 2, Old: record.Settings{Versioning: true}}, nil},
		{"settings, old", &record.BucketSet{In: 1, Bucket: 2, Old: record.Settings{Versioning: true, K: 1}}, ErrDivergent},
		{"settings, a lock without versions", &record.BucketSet{In: 1, Bucket: 2, Old: record.Settings{Versioning: true}, Settings: record.Settings{Lock: true}}, ErrRecord},
		{"settings, a time without a mode", &record.BucketSet{In: 1, Bucket: 2, Old: record.Settings{Versioning: true}, Settings: record.Settings{Versioning: true, Lock: true, RetentionDays: 1}}, ErrRecord},
		{"settings, retention without a lock", &record.BucketSet{In: 1, Bucket: 2, Old: record.Settings{Versioning: true}, Settings: record.Settings{Versioning: true, RetentionMode: record.Governance, RetentionDays: 1}}, ErrRecord},
		{"bucket gone", &record.BucketDelete{In: 1, Bucket: 3, Name: "empty"}, nil},
		{"bucket gone, name", &record.BucketDelete{In: 1, Bucket: 3, Name: "kept"}, ErrDivergent},
		{"bucket gone, not empty", &record.BucketDelete{In: 1, Bucket: 2, Name: "kept"}, ErrDivergent},

		{"nodes", &record.Nodes{Version: 2}, nil},
		{"nodes, raising m", &record.Nodes{Version: 2, M: 1, Want: 4}, nil},
		{"nodes, raising m beyond the bounds", &record.Nodes{Version: 2, M: 1, Want: 5}, ErrRecord},
		{"nodes, lowering m", &record.Nodes{Version: 2, M: 2, Want: 1}, ErrRecord},
		{"nodes, raising m to what it is", &record.Nodes{Version: 2, M: 2, Want: 2}, ErrRecord},
		{"nodes, version", &record.Nodes{Version: 3}, ErrDivergent},
		{"nodes, out of order", &record.Nodes{Version: 2, Gone: []id.Node{testNode(2), testNode(1)}}, ErrRecord},
		{"reshard", &record.Reshard{Pack: testPack(7), Index: 2, Old: place, New: moved}, nil},
		{"reshard, old place", &record.Reshard{Pack: testPack(7), Index: 2, Old: moved, New: place}, ErrDivergent},
		{"reshard, pack", &record.Reshard{Pack: testPack(9), Index: 2, Old: place, New: moved}, ErrDivergent},
		{"reshard, index", &record.Reshard{Pack: testPack(7), Index: 1, Old: place, New: moved}, ErrRecord},
		{"reshard of no place", &record.Reshard{Pack: testPack(7), Index: 2, New: moved}, ErrDivergent},
		{"reshard beyond the code", &record.Reshard{Pack: testPack(7), Index: 6, New: Place{Node: testNode(1), Index: 6}}, ErrRecord},
		{"reshard of no place of the head", &record.Reshard{Pack: testPack(1<<40 + 2), Index: 2, New: moved}, ErrDivergent},
		{"reshard of the head", &record.Reshard{Pack: testPack(1<<40 + 2), Index: 2, Old: place, New: moved}, ErrDivergent},

		{"lost", &record.Lost{Pack: testPack(7), Chunks: 3}, nil},
		{"lost, some of it", &record.Lost{Pack: testPack(7), Chunks: 2}, nil},
		{"lost, more than there is", &record.Lost{Pack: testPack(7), Chunks: 4}, ErrDivergent},
		{"lost, pack", &record.Lost{Pack: testPack(9), Chunks: 1}, ErrDivergent},
		{"lost, nothing", &record.Lost{Pack: testPack(7)}, ErrRecord},
		{"lost, beyond the bound", &record.Lost{Pack: testPack(7), Chunks: record.MaxLost + 1}, ErrRecord},
		{"lost, itself", &record.Lost{Pack: testPack(1<<40 + 3), Chunks: 1}, ErrRecord},

		{"condemn", &record.Condemn{In: 1, Chunks: []id.Chunk{testChunk(40)}}, nil},
		{"condemn, edges", &record.Condemn{In: 1, Chunks: []id.Chunk{testChunk(1)}}, ErrDivergent},
		{"condemn, twice", &record.Condemn{In: 1, Chunks: []id.Chunk{testChunk(40), testChunk(40)}}, ErrDivergent},
		{"condemn, what is condemned", &record.Condemn{In: 1, Chunks: []id.Chunk{testChunk(41)}}, ErrDivergent},
		{"condemn, chunk", &record.Condemn{In: 1, Chunks: []id.Chunk{testChunk(99)}}, ErrDivergent},
		{"condemn, realm", &record.Condemn{In: 2, Chunks: []id.Chunk{testChunk(40)}}, ErrDivergent},
		{"condemn, nothing", &record.Condemn{In: 1}, ErrRecord},
		{"condemn, beyond the bound", &record.Condemn{In: 1, Chunks: make([]id.Chunk, record.MaxCondemned+1)}, ErrRecord},
		{"remove", &record.Remove{In: 1, Chunks: []record.Removed{{Chunk: testChunk(41), Since: 2}}}, nil},
		{"remove, since", &record.Remove{In: 1, Chunks: []record.Removed{{Chunk: testChunk(41), Since: 1}}}, ErrDivergent},
		{"remove, what is not condemned", &record.Remove{In: 1, Chunks: []record.Removed{{Chunk: testChunk(40), Since: 2}}}, ErrDivergent},
		{"remove, edges", &record.Remove{In: 1, Chunks: []record.Removed{{Chunk: testChunk(1), Since: 2}}}, ErrDivergent},
		{"remove, chunk", &record.Remove{In: 1, Chunks: []record.Removed{{Chunk: testChunk(99), Since: 2}}}, ErrDivergent},
		{"remove, children of no list", &record.Remove{In: 1, Chunks: []record.Removed{{Chunk: testChunk(41), Since: 2, Before: []uint64{1}}}}, ErrDivergent},
		{"remove, a list", &record.Remove{In: 1, Chunks: []record.Removed{{Chunk: testChunk(31), Since: 2, Before: []uint64{1}}}}, nil},
		{"remove, count of a child", &record.Remove{In: 1, Chunks: []record.Removed{{Chunk: testChunk(31), Since: 2, Before: []uint64{2}}}}, ErrDivergent},
		{"remove, counts", &record.Remove{In: 1, Chunks: []record.Removed{{Chunk: testChunk(31), Since: 2}}}, ErrDivergent},
		{"remove, nothing", &record.Remove{In: 1}, ErrRecord},
		{"move", move(func(*record.Move) {}), nil},
		{"move, a copy that is dead", move(func(m *record.Move) { m.From[0] = 0 }), nil},
		{"move, from elsewhere", move(func(m *record.Move) { m.Sources[0] = testPack(10) }), ErrDivergent},
		{"move, pack", move(func(m *record.Move) { m.Pack = testPack(7) }), ErrDivergent},
		{"move, chunk", move(func(m *record.Move) { m.Entries[1].Chunk = testChunk(99) }), ErrDivergent},
		{"move, source", move(func(m *record.Move) { m.From[0] = 2 }), ErrRecord},
		{"move, sources", move(func(m *record.Move) { m.From = m.From[1:] }), ErrRecord},
		{"move, places", move(func(m *record.Move) { m.Shards = m.Shards[1:] }), ErrRecord},
		{"drop", &record.Drop{Packs: []id.Pack{testPack(10)}}, nil},
		{"drop, chunks", &record.Drop{Packs: []id.Pack{testPack(7)}}, ErrDivergent},
		{"drop, twice", &record.Drop{Packs: []id.Pack{testPack(10), testPack(10)}}, ErrDivergent},
		{"drop, a log pack", &record.Drop{Packs: []id.Pack{testPack(1<<40 + 1)}}, ErrDivergent},
		{"drop, itself", &record.Drop{Packs: []id.Pack{testPack(1<<40 + 3)}}, ErrDivergent},
		{"drop, nothing", &record.Drop{}, ErrRecord},

		{"a kind that is not known", &unknownRecord{}, ErrUnknownRecord},
	} {
		t.Run(test.name, func(t *testing.T) {
			x, c, _ := seededWaste(t)
			before := export(t, x)
			l := c.next(false)
			l.Records = []record.Record{test.rec}
			err := x.Apply(l, Strict)
			if !errors.Is(err, test.want) {
				t.Fatalf("got %v, want %v", err, test.want)
			}
			if test.want == nil {
				if _, err := x.Check(t.Context()); err != nil {
					t.Fatal(err)
				}
				return
			}
			for _, other := range []error{ErrDivergent, ErrRecord, ErrUnknownRecord, ErrDamaged, ErrNotFound} {
				if other != test.want && errors.Is(err, other) {
					t.Errorf("%v is also %v", err, other)
				}
			}
			if !bytes.Equal(export(t, x), before) {
				t.Error("a link that was refused left rows behind")
			}
			if test.want != ErrDivergent {
				return
			}
			// A rebuild goes on, says so, and can be counted right.
			said := 0
			x.cfg.Mismatch = func(m Mismatch) { said++ }
			if err := x.Apply(l, Rebuild); err != nil {
				t.Fatalf("rebuild: %v", err)
			}
			if said == 0 {
				t.Error("a rebuild passed over it in silence")
			}
			if _, err := x.Recount(t.Context()); err != nil && !strings.Contains(err.Error(), "edge to a chunk") {
				t.Fatalf("recount: %v", err)
			} else if err == nil {
				if _, err := x.Check(t.Context()); err != nil {
					t.Fatalf("after the recount: %v", err)
				}
			}
		})
	}
}

// TestRoundAfterAnError: what failed half-way can only be discarded.
func TestRoundAfterAnError(t *testing.T) {
	x, c, _ := seeded(t)
	l := c.next(false)
	r, err := x.Begin(l.Header.Pack, l.Header.Seq)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Discard()
	// The first edge is added before the second one is found to be wrong.
	if err := r.Apply(&record.Put{In: 1, Bucket: 2, Key: []byte("k"), Manifest: manifestOf(2, 2), Before: []uint64{2, 9}, Current: id.Version{Seq: 2}}); !errors.Is(err, ErrDivergent) {
		t.Fatalf("got %v, want %v", err, ErrDivergent)
	}
	if err := r.Apply(&record.Delete{In: 1, Bucket: 2, Key: []byte("k"), Current: id.Version{Seq: 2}}); !errors.Is(err, ErrDivergent) {
		t.Errorf("a record after it: got %v", err)
	}
	if err := r.AddEntry(testEntry(50, false, 0)); !errors.Is(err, ErrDivergent) {
		t.Errorf("an entry after it: got %v", err)
	}
	if err := r.Commit(l); !errors.Is(err, ErrDivergent) {
		t.Errorf("the commit: got %v", err)
	}
	if h, err := x.Head(); err != nil || h.Seq != 2 {
		t.Errorf("head %+v, %v, want sequence 2", h, err)
	}
}

// TestEntries: an entry is refused when applying it before the records would
// not be the same.
func TestEntries(t *testing.T) {
	x, c, _ := seededWaste(t)
	for _, test := range []struct {
		name string
		want error
		fn   func(r *Round) error
	}{
		{"live", ErrDivergent, func(r *Round) error { return r.AddEntry(testEntry(2, false, 0)) }},
		{"condemned", nil, func(r *Round) error { return r.AddEntry(testEntry(41, false, 0)) }},
		{"twice", ErrDivergent, func(r *Round) error {
			return errors.Join(r.AddEntry(testEntry(9, false, 0)), r.AddEntry(testEntry(9, false, 5000)))
		}},
		{"adopted before", ErrRecord, func(r *Round) error {
			return errors.Join(r.Apply(adoptOf(8, 9)), r.AddEntry(testEntry(9, false, 0)))
		}},
		{"revived before", ErrRecord, func(r *Round) error {
			p := &record.Put{In: 1, Bucket: 2, Key: []byte("n"), Manifest: manifestOf(41)}
			return errors.Join(r.Fill(p), r.Apply(p), r.AddEntry(testEntry(41, false, 0)))
		}},
		{"condemned before", ErrRecord, func(r *Round) error {
			return errors.Join(r.Apply(&record.Condemn{In: 1, Chunks: []id.Chunk{testChunk(40)}}), r.AddEntry(testEntry(40, false, 0)))
		}},
		{"removed before", ErrRecord, func(r *Round) error {
			return errors.Join(r.Apply(&record.Remove{In: 1, Chunks: []record.Removed{{Chunk: testChunk(41), Since: 2}}}), r.AddEntry(testEntry(41, false, 0)))
		}},
		{"moved before", ErrRecord, func(r *Round) error {
			m := &record.Move{In: 1, Pack: testPack(11), K: 4, M: 2, Slice: 4 << 20, Size: 4<<20 + 8192, Body: 8192, Writer: id.Writer{2}, Counter: 11, Shards: testPlaces(6),
				Entries: []pack.Entry{testEntry(41, false, 0)}, Sources: []id.Pack{testPack(1<<40 + 2)}, From: []uint32{1}}
			return errors.Join(r.Apply(m), r.AddEntry(testEntry(41, false, 0)))
		}},
		// What Commit would refuse too must be refused before the pack is sealed.
		{"a place for the head", ErrDivergent, func(r *Round) error {
			return r.Apply(&record.Reshard{Pack: testPack(1<<40 + 2), Index: 2, New: Place{Node: testNode(1), Index: 2}})
		}},
		{"no realm", ErrRecord, func(r *Round) error { return r.AddEntry(pack.Entry{}) }},
	} {
		l := c.next(false)
		r, err := x.Begin(l.Header.Pack, l.Header.Seq)
		if err != nil {
			t.Fatal(err)
		}
		if err := test.fn(r); !errors.Is(err, test.want) {
			t.Errorf("%s: got %v, want %v", test.name, err, test.want)
		}
		r.Discard()
		c.seq--
	}
}

// TestChain: the same link twice, an older one, one with a hole before it, one
// of another chain (H18, H19).
func TestChain(t *testing.T) {
	x, c, _ := seeded(t)
	good := c.next(false)
	after := c.next(false)
	for _, test := range []struct {
		name string
		edit func(*Link)
		want error
	}{
		{"again", func(l *Link) { l.Header.Seq-- }, ErrApplied},
		{"the same pack at the next sequence", func(l *Link) { l.Header.Pack = l.Header.Prev }, ErrApplied},
		{"a hole", func(l *Link) { *l = after }, ErrGap},
		{"another predecessor", func(l *Link) { l.Header.Prev = testPack(5) }, ErrGap},
		{"an older epoch", func(l *Link) { l.Header.Epoch = 0 }, ErrGap},
		{"a newer epoch without a begin", func(l *Link) { l.Header.Epoch = 2 }, ErrGap},
		{"a begin in the same epoch", func(l *Link) { l.Header.Begin = true }, ErrGap},
		{"sequence 0", func(l *Link) { l.Header.Seq = 0 }, ErrRecord},
		{"a data pack", func(l *Link) { l.Header.Kind = pack.Data }, ErrRecord},
		{"another log", func(l *Link) { l.Header.Log = 1 }, ErrRecord},
		{"no places of the predecessor", func(l *Link) { l.Prev = nil }, ErrRecord},
		{"a place beyond the code", func(l *Link) { l.Prev = testPlaces(4) }, ErrRecord},
		{"time goes back", func(l *Link) { l.Time = 1 }, ErrDivergent},
		{"carrying without a begin", func(l *Link) { l.Carried = []Carried{{Pack: l.Header.Prev, Len: 1 << 20}} }, ErrRecord},
		{"a carried payload that is too short", func(l *Link) {
			l.Header.Begin, l.Header.Epoch = true, 2
			l.Carried = []Carried{{Pack: l.Header.Prev, Len: 1}}
		}, ErrRecord},
		{"a list chunk without its children", func(l *Link) { l.Entries = []pack.Entry{testEntry(31, true, 0)} }, ErrDivergent},
	} {
		l := good
		test.edit(&l)
		before := export(t, x)
		if err := x.Apply(l, Strict); !errors.Is(err, test.want) {
			t.Errorf("%s: got %v, want %v", test.name, err, test.want)
		}
		if !bytes.Equal(export(t, x), before) {
			t.Fatalf("%s: rows changed", test.name)
		}
	}
	// A hole is refused before anything is decided.
	if r, err := x.Begin(after.Header.Pack, after.Header.Seq); !errors.Is(err, ErrGap) {
		if err == nil {
			r.Discard() // else everything after waits for it
		}
		t.Errorf("a round behind a hole: got %v, want %v", err, ErrGap)
	}
	if err := x.Apply(good, Strict); err != nil {
		t.Fatal(err)
	}
	if err := x.Apply(good, Strict); !errors.Is(err, ErrApplied) {
		t.Errorf("twice: got %v, want %v", err, ErrApplied)
	}
	if err := x.Apply(after, Strict); err != nil {
		t.Fatal(err)
	}
	// What the commit is told must be what was applied.
	l := c.next(false)
	r, err := x.Begin(l.Header.Pack, l.Header.Seq)
	if err != nil {
		t.Fatal(err)
	}
	l.Entries = []pack.Entry{testEntry(50, false, 0)}
	if err := r.Commit(l); !errors.Is(err, ErrRecord) {
		t.Errorf("a commit with another number of entries: got %v, want %v", err, ErrRecord)
	}
	if err := r.Apply(&record.Delete{}); !errors.Is(err, ErrClosed) {
		t.Errorf("a record after the commit: got %v, want %v", err, ErrClosed)
	}
}

// TestCheckFindsRows changes rows in ways that seals and sums over rows cannot
// notice, as a fault in this package would, and wants each to be found; and
// those that are counts to be put right.
func TestCheckFindsRows(t *testing.T) {
	keys := newKeyspace(0)
	c := func(n uint64) *id.Chunk { c := testChunk(n); return &c }
	p := func(n uint64) *id.Pack { p := testPack(n); return &p }
	log2 := p(1<<40 + 2)
	edit := func(key []byte, fn func(v []byte) []byte) func(*testing.T, *kv.Tx) {
		return func(t *testing.T, tx *kv.Tx) {
			v, err := tx.Get(key, nil)
			if err != nil {
				t.Fatal(err)
			}
			if v = fn(v); v == nil {
				_, err = tx.Delete(key)
			} else {
				err = tx.Put(key, v)
			}
			if err != nil {
				t.Fatal(err)
			}
		}
	}
	gone := func([]byte) []byte { return nil }
	chunk := func(fn func(*ChunkRow)) func([]byte) []byte {
		return func(v []byte) []byte {
			var row ChunkRow
			if err := row.parse(v); err != nil {
				panic(err)
			}
			fn(&row)
			return row.append(nil)
		}
	}
	put := func(key, value []byte) func(*testing.T, *kv.Tx) {
		return func(t *testing.T, tx *kv.Tx) {
			if err := tx.Put(key, value); err != nil {
				t.Fatal(err)
			}
		}
	}
	usage := func(fn func(*PackUsage)) func([]byte) []byte {
		return func(v []byte) []byte {
			var u PackUsage
			if err := u.parse(v); err != nil {
				panic(err)
			}
			fn(&u)
			return u.append(nil)
		}
	}
	for _, test := range []struct {
		name  string
		harm  func(*testing.T, *kv.Tx)
		mends bool // by a recount
	}{
		{"a count too high", edit(keys.chunk(nil, 1, c(2)), chunk(func(r *ChunkRow) { r.Refs++ })), true},
		{"a count too low", edit(keys.chunk(nil, 1, c(1)), chunk(func(r *ChunkRow) { r.Refs = 0 })), true},
		{"a condemned chunk with edges", edit(keys.chunk(nil, 1, c(1)), chunk(func(r *ChunkRow) { r.State = Condemned })), false},
		{"a chunk row gone", edit(keys.chunk(nil, 1, c(3)), gone), false},
		{"an unreferenced chunk row gone", edit(keys.chunk(nil, 1, c(4)), gone), false},
		{"a chunk row elsewhere", edit(keys.chunk(nil, 1, c(3)), chunk(func(r *ChunkRow) { r.Offset++ })), false},
		{"a resident gone", edit(keys.resident(nil, log2, 0), gone), false},
		{"a resident too many", put(keys.resident(nil, log2, 9999), appendResident(nil, 1, c(5))), false},
		{"a resident of no pack", put(keys.resident(nil, p(3), 0), appendResident(nil, 1, c(5))), false},
		{"a resident of no pack, behind all", put(keys.resident(nil, p(1<<50), 0), appendResident(nil, 1, c(5))), false},
		{"a version gone", edit(keys.older(nil, 2, []byte("k"), id.Version{Seq: 1, Pos: 7}), gone), true},
		{"a current version gone", edit(keys.object(nil, 2, []byte("k")), gone), false},
		{"a version of another bucket", put(keys.object(nil, 9, []byte("k")), (&Object{Deleted: true}).append(nil)), false},
		{"a version in another's place", put(keys.older(nil, 2, []byte("k"), id.Version{Seq: 1, Pos: 5}), (&Object{Version: id.Version{Seq: 1, Pos: 6}, Deleted: true}).append(nil)), false},
		{"an older version that is newer", put(keys.older(nil, 2, []byte("k"), id.Version{Seq: 9}), (&Object{Version: id.Version{Seq: 9}, Deleted: true}).append(nil)), false},
		{"a list without children", edit(keys.chunk(nil, 1, c(2)), chunk(func(r *ChunkRow) { r.Kind = kindList })), false},
		{"children gone", edit(keys.children(nil, 1, c(30)), gone), false},
		{"children of no list", put(keys.children(nil, 1, c(2)), appendChildren(nil, []id.Chunk{*c(3)})), false},
		{"children other", edit(keys.children(nil, 1, c(30)), func([]byte) []byte { return appendChildren(nil, []id.Chunk{*c(1)}) }), true},
		{"a bucket's name gone", edit(keys.bucketName(nil, "kept"), gone), false},
		{"a bucket gone", edit(keys.bucket(nil, 3), gone), false},
		{"a bucket's counts", edit(keys.bucket(nil, 2), func(v []byte) []byte {
			var b Bucket
			if err := b.parse(v); err != nil {
				panic(err)
			}
			b.Bytes++
			return b.append(nil)
		}), true},
		{"a pack's live bytes", edit(keys.pack(nil, p(7), packUsage), usage(func(u *PackUsage) { u.Live-- })), true},
		{"a pack's residents", edit(keys.pack(nil, p(7), packUsage), usage(func(u *PackUsage) { u.Residents-- })), true},
		{"a pack's payload", edit(keys.pack(nil, p(7), packUsage), usage(func(u *PackUsage) { u.Payload = 1 })), false},
		{"half a pack", edit(keys.pack(nil, p(7), packUsage), gone), false},
		{"the other half", edit(keys.pack(nil, p(7), packPlace), gone), false},
		{"totals", edit(keys.table(nil, tableTotals), func(v []byte) []byte {
			var n Totals
			if err := n.parse(v); err != nil {
				panic(err)
			}
			n.LiveBytes++
			return n.append(nil)
		}), true},
		{"totals gone", edit(keys.table(nil, tableTotals), gone), false},
		{"the head's pack", edit(keys.table(nil, tableHead), func(v []byte) []byte {
			var h Head
			if err := h.parse(v); err != nil {
				panic(err)
			}
			h.Pack = *p(7)
			return h.append(nil)
		}), false},
		{"a condemned chunk that is live", edit(keys.chunk(nil, 1, c(41)), chunk(func(r *ChunkRow) { r.State = Live })), true},
		{"a condemned chunk, not said since when", edit(keys.condemned(nil, 1, c(41)), gone), false},
		{"said to be condemned, and live", put(keys.condemned(nil, 1, c(40)), (&Condemnation{Since: 1}).append(nil)), true},
		{"said to be condemned, with edges", put(keys.condemned(nil, 1, c(2)), (&Condemnation{Since: 1}).append(nil)), true},
		{"said to be condemned, and not there", put(keys.condemned(nil, 1, c(99)), (&Condemnation{Since: 1}).append(nil)), false},
		{"a row of no table", put(keys.table(nil, tableEnd), nil), false},
		{"a row of another log", put(newKeyspace(1).table(nil, tableHead), (&Head{}).append(nil)), false},
		{"a value with something behind", edit(keys.bucket(nil, 3), func(v []byte) []byte { return append(v, 0) }), false},
	} {
		t.Run(test.name, func(t *testing.T) {
			x, _, _ := seededWaste(t)
			if _, err := x.Check(t.Context()); err != nil {
				t.Fatal(err)
			}
			tx, err := x.db.Begin(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			defer tx.Discard()
			test.harm(t, tx)
			if err := tx.Commit(); err != nil {
				t.Fatal(err)
			}
			if report, err := x.Check(t.Context()); !errors.Is(err, ErrDamaged) {
				t.Fatalf("check: got %v, %+v, want %v", err, report, ErrDamaged)
			}
			if !test.mends {
				// Counting again must not make it look sound.
				_, _ = x.Recount(t.Context())
				if report, err := x.Check(t.Context()); !errors.Is(err, ErrDamaged) {
					t.Errorf("after a recount: got %v, %+v, want %v", err, report, ErrDamaged)
				}
				return
			}
			if n, err := x.Recount(t.Context()); err != nil || n == 0 {
				t.Fatalf("recount: changed %d rows, %v", n, err)
			}
			if _, err := x.Check(t.Context()); err != nil {
				t.Errorf("after the recount: %v", err)
			}
			if n, err := x.Recount(t.Context()); err != nil || n != 0 {
				t.Errorf("a second recount changed %d rows, %v", n, err)
			}
		})
	}
}

// TestCheckInSweeps has more chunks than are counted at once.
func TestCheckInSweeps(t *testing.T) {
	x, _, _ := seeded(t)
	for _, atOnce := range []int{1, 2, 5, 6, 7} {
		var out Report
		err := x.db.View(func(s *kv.Snapshot) error {
			a := audit{ctx: t.Context(), r: x.reader(s), out: &out, atOnce: atOnce}
			return a.run()
		})
		if err != nil || out.Found > 0 || out.Chunks != 6 || out.Edges != 2+2+1+2 {
			t.Errorf("%d at once: %v, %+v", atOnce, err, out)
		}
	}
	// An edge to a chunk that is not there is found in every way to sweep.
	tx, err := x.db.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := tx.Delete(x.keys.chunk(nil, 1, &manifestOf(3).Roots[0].Chunk)); err != nil {
		t.Fatal(err)
	}
	if err := tx.Commit(); err != nil {
		t.Fatal(err)
	}
	for _, atOnce := range []int{1, 2, 5, 6, 7} {
		var out Report
		err := x.db.View(func(s *kv.Snapshot) error {
			a := audit{ctx: t.Context(), r: x.reader(s), out: &out, atOnce: atOnce}
			return a.counts()
		})
		if err != nil || out.Found != 2 {
			t.Errorf("%d at once: %v, %+v, want the two edges to it", atOnce, err, out)
		}
	}
}

// TestKVDamageIsFound: a row that the engine loses is found by Check and stops
// an export before its end.
func TestKVDamageIsFound(t *testing.T) {
	x, c, e := seeded(t)
	lost := testChunk(1)
	if !e.Drop(kv.EngineKey(x.keys.chunk(nil, 1, &lost))) {
		t.Fatal("the row is not there")
	}
	if _, err := x.Check(t.Context()); !errors.Is(err, ErrDamaged) {
		t.Errorf("check: got %v, want %v", err, ErrDamaged)
	}
	var b bytes.Buffer
	if _, err := x.Export(t.Context(), &b); !errors.Is(err, ErrDamaged) {
		t.Errorf("export: got %v, want %v", err, ErrDamaged)
	}
	// A put that refers to the chunk was decided on a whole index: here it stops.
	l := c.next(false)
	l.Records = []record.Record{&record.Put{In: 1, Bucket: 2, Key: []byte("n"), Manifest: manifestOf(1), Before: []uint64{2}}}
	if err := x.Apply(l, Strict); !errors.Is(err, ErrDivergent) {
		t.Errorf("apply: got %v, want %v", err, ErrDivergent)
	}
}

func TestOpenRefuses(t *testing.T) {
	for _, test := range []struct {
		name string
		harm func(x *Index, tx *kv.Tx) error
		want error
	}{
		{"a newer format", func(x *Index, tx *kv.Tx) error {
			return tx.Put(x.keys.table(nil, tableFormat), appendUints(nil, knownFormat+1))
		}, ErrNewer},
		{"no format", func(x *Index, tx *kv.Tx) error {
			_, err := tx.Delete(x.keys.table(nil, tableFormat))
			return err
		}, ErrDamaged},
		{"no head", func(x *Index, tx *kv.Tx) error {
			_, err := tx.Delete(x.keys.table(nil, tableHead))
			return err
		}, ErrDamaged},
	} {
		x, _, _ := seeded(t)
		tx, err := x.db.Begin(context.Background())
		if err == nil {
			err = errors.Join(test.harm(x, tx), tx.Commit())
		}
		if err != nil {
			t.Fatal(err)
		}
		if _, err := Open(x.db, Config{}); !errors.Is(err, test.want) {
			t.Errorf("%s: got %v, want %v", test.name, err, test.want)
		}
	}
}

// TestErrorsHoldNoKeys: errors are logged, and a log is no place for keys.
func TestErrorsHoldNoKeys(t *testing.T) {
	x, c, _ := seeded(t)
	l := c.next(false)
	const canary = "canary-4711"
	for _, rec := range []record.Record{
		&record.Put{In: 1, Bucket: 2, Key: []byte(canary), Current: id.Version{Seq: 1}},
		&record.Purge{In: 1, Bucket: 2, Key: []byte(canary), Drops: []record.Dropped{{Version: id.Version{Seq: 1}}}},
		&record.Put{In: 1, Bucket: 2, Key: []byte(canary), Attrs: record.Attrs{ContentType: canary + "\xff"}},
		&record.Put{In: 1, Bucket: 2, Key: []byte(strings.Repeat(canary, 1000)), Manifest: manifest.Manifest{}},
	} {
		l.Records = []record.Record{rec}
		if err := x.Apply(l, Strict); err == nil || strings.Contains(err.Error(), canary) {
			t.Errorf("got %v", err)
		}
	}
}
