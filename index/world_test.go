package index

import (
	"bytes"
	"context"
	"encoding/binary"

	"cairn/id"
	"cairn/index/kv"
	"cairn/index/kv/kvtest"
	"cairn/index/kv/memkv"
	"cairn/manifest"
	"cairn/pack"
	"cairn/record"
)

// tester is what the helpers need of a testing.TB and a rapid.T.
type tester interface {
	Helper()
	Fatal(args ...any)
	Fatalf(format string, args ...any)
	Errorf(format string, args ...any)
	Cleanup(func())
}

// newIndex is an empty index on an engine in memory.
func newIndex(t tester) *Index {
	t.Helper()
	return openOn(t, memkv.New(memkv.Options{}))
}

func openOn(t tester, e kv.Engine) *Index {
	t.Helper()
	db, err := kv.Open(e, kvtest.Config())
	if err != nil {
		t.Fatal(err)
	}
	x, err := Open(db, Config{})
	if err != nil {
		db.Close()
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := x.Close(); err != nil {
			t.Errorf("close: %v", err)
		}
	})
	return x
}

func export(t tester, x *Index) []byte {
	t.Helper()
	var b bytes.Buffer
	if _, err := x.Export(context.Background(), &b); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// IDs that tests count up; never zero.
func testPack(n uint64) (p id.Pack) {
	p[0] = 'p'
	binary.BigEndian.PutUint64(p[8:], n)
	return p
}

func testChunk(n uint64) (c id.Chunk) {
	// Spread over the table, as keyed hashes are.
	binary.BigEndian.PutUint64(c[:], n*0x9e3779b97f4a7c15)
	c[31] = 'c'
	return c
}

func testNode(n uint64) (p id.Node) {
	p[0] = 'n'
	binary.BigEndian.PutUint64(p[8:], n)
	return p
}

// testEntry is a chunk whose lengths follow from its number. It is built field
// by field, so that it does not matter which package the types come from.
func testEntry(c uint64, list bool, off uint32) (e pack.Entry) {
	e.Realm, e.Chunk = id.Main, testChunk(c)
	e.Kind, e.Epoch, e.Compression = kindData, 1, 0
	if list {
		e.Kind = kindList
	}
	e.PlainLen = uint32(1000 + c%997)
	e.SealedLen = uint32(500 + c%499)
	e.Offset = off
	return e
}

func testPlaces(n int) (out []Place) {
	for i := range n {
		out = append(out, Place{Node: testNode(uint64(i + 1)), Index: uint8(i), Instance: id.Instance(i + 1), Digest: [16]byte{byte(i)}})
	}
	return out
}

// chain makes links that follow on each other.
type chain struct {
	seq   uint64
	prev  id.Pack
	time  int64
	epoch uint64
}

// next is an empty link; begin says that it begins an epoch.
func (c *chain) next(begin bool) Link {
	c.seq++
	c.time += 1000
	if begin {
		c.epoch++
	}
	l := Link{Time: c.time, Header: pack.Header{
		Kind: pack.Log, Begin: begin, Pack: testPack(1<<40 + c.seq), K: 1, M: 2, MetaLen: 512, SliceLen: 8 << 20,
		Writer: id.Writer{1}, Counter: c.seq, Epoch: c.epoch, Seq: c.seq, Attempt: 1, Prev: c.prev,
	}}
	if c.seq > 1 {
		l.Prev = testPlaces(3)
	}
	c.prev = l.Header.Pack
	return l
}

func manifestOf(cs ...uint64) (m manifest.Manifest) {
	for _, c := range cs {
		m.Roots = append(m.Roots, manifest.Ref{Chunk: testChunk(c), Len: 1000 + c%997})
		m.Size += 1000 + c%997
	}
	return m
}

// build makes a link incrementally: fn decides. It commits and returns the link.
func build(t tester, x *Index, c *chain, begin bool, fn func(b *builder)) Link {
	t.Helper()
	l := c.next(begin)
	r, err := x.Begin(l.Header.Pack, l.Header.Seq)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Discard()
	b := &builder{t: t, r: r, link: &l}
	if fn != nil {
		fn(b)
	}
	if err := r.Commit(l); err != nil {
		t.Fatalf("commit sequence %d: %v", l.Header.Seq, err)
	}
	return l
}

type builder struct {
	t    tester
	r    *Round
	link *Link
	off  uint32
}

func (b *builder) entry(c uint64, list bool) {
	b.t.Helper()
	e := testEntry(c, list, b.off)
	b.off += e.SealedLen
	if err := b.r.AddEntry(e); err != nil {
		b.t.Fatalf("add entry: %v", err)
	}
	b.link.Entries = append(b.link.Entries, e)
}

// apply fills the record and applies it.
func (b *builder) apply(rec record.Record) {
	b.t.Helper()
	if err := b.r.Fill(rec); err != nil {
		b.t.Fatalf("fill %T: %v", rec, err)
	}
	if err := b.r.Apply(rec); err != nil {
		b.t.Fatalf("apply %T: %v", rec, err)
	}
	b.link.Records = append(b.link.Records, rec)
}

func (b *builder) bucket(name string, versioned bool) id.Bucket {
	b.t.Helper()
	n, err := b.r.NextBucket()
	if err != nil {
		b.t.Fatal(err)
	}
	b.apply(&record.BucketCreate{In: id.Main, Bucket: n, Name: name, Settings: record.Settings{Versioning: versioned}, Time: b.link.Time})
	return n
}

// put puts a version; in a bucket without versioning all others go.
func (b *builder) put(n id.Bucket, key string, cs ...uint64) {
	b.t.Helper()
	p := &record.Put{In: id.Main, Bucket: n, Key: []byte(key), Manifest: manifestOf(cs...), ETag: []byte{1, 2}, Time: b.link.Time, Attrs: record.Attrs{ContentType: "text/plain"}}
	bucket, err := b.r.BucketByID(n)
	if err != nil {
		b.t.Fatal(err)
	}
	if !bucket.Settings.Versioning {
		vs, err := b.r.Versions(n, p.Key, 1000)
		if err != nil {
			b.t.Fatal(err)
		}
		for _, v := range vs {
			p.Drops = append(p.Drops, record.Dropped{Version: v.Version})
		}
	}
	b.apply(p)
}

func adoptOf(p uint64, cs ...uint64) *record.Adopt {
	a := &record.Adopt{In: id.Main, Pack: testPack(p), K: 4, M: 2, Slice: 4 << 20, Size: 4<<20 + 8192, Body: 8192, Writer: id.Writer{2}, Counter: p, Shards: testPlaces(6)}
	var off uint32
	for _, c := range cs {
		e := testEntry(c, false, off)
		off = e.Offset + e.SealedLen
		a.Entries = append(a.Entries, e)
	}
	return a
}
