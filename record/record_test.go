package record

import (
	"bytes"
	"errors"
	"flag"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"cairn/id"
	"cairn/manifest"
	"cairn/pack"
)

var update = flag.Bool("update", false, "add lines to the fixture; those that are there stay")

var (
	u64 = rapid.OneOf(rapid.SampledFrom([]uint64{0, 1, 23, 24, 255, 256, 65535, 65536, math.MaxUint32, math.MaxUint64}), rapid.Uint64())
	u32 = rapid.Custom(func(t *rapid.T) uint32 { return uint32(u64.Draw(t, "u32")) })
	u8  = rapid.Custom(func(t *rapid.T) uint8 { return uint8(u64.Draw(t, "u8")) })
	// No text is longer than the bounds of a record would let it be.
	text  = rapid.StringN(0, 20, 80)
	blob  = rapid.SliceOfN(rapid.Byte(), 0, 40)
	realm = rapid.SampledFrom([]id.Realm{1, 2, math.MaxUint32})
)

func random[T ~[16]byte | ~[32]byte](t *rapid.T, label string) (v T) {
	b := rapid.SliceOfN(rapid.Byte(), len(v), len(v)).Draw(t, label)
	reflect.Copy(reflect.ValueOf(&v).Elem(), reflect.ValueOf(b))
	return v
}

func list[T any](t *rapid.T, label string, fn func() T) (out []T) {
	for range rapid.IntRange(0, 4).Draw(t, label) {
		out = append(out, fn())
	}
	return out
}

func counts(t *rapid.T) []uint64 {
	return list(t, "counts", func() uint64 { return u64.Draw(t, "count") })
}

func version(t *rapid.T) id.Version {
	return id.Version{Seq: u64.Draw(t, "seq"), Pos: u32.Draw(t, "pos")}
}

func place(t *rapid.T) Place {
	return Place{Node: random[id.Node](t, "node"), Index: u8.Draw(t, "index"), Instance: id.Instance(u64.Draw(t, "instance")), Digest: random[[16]byte](t, "digest")}
}

func entry(t *rapid.T, in id.Realm) (e pack.Entry) {
	e.Realm, e.Chunk = in, random[id.Chunk](t, "chunk")
	e.Epoch, e.PlainLen, e.SealedLen, e.Offset = u32.Draw(t, "epoch"), u32.Draw(t, "plain"), u32.Draw(t, "sealed"), u32.Draw(t, "offset")
	e.Kind = 1
	return e
}

func settings(t *rapid.T) Settings {
	return Settings{K: u8.Draw(t, "k"), Compression: text.Draw(t, "compression"), Profile: text.Draw(t, "profile"), Versioning: rapid.Bool().Draw(t, "versioning"),
		QuotaBytes: u64.Draw(t, "quota"), QuotaObjects: u64.Draw(t, "most objects"),
		Lock: rapid.Bool().Draw(t, "lock"), RetentionMode: text.Draw(t, "mode"), RetentionDays: u32.Draw(t, "days")}
}

func lock(t *rapid.T) Lock {
	return Lock{Mode: text.Draw(t, "mode"), Until: int64(u64.Draw(t, "until")), Hold: rapid.Bool().Draw(t, "hold")}
}

func drops(t *rapid.T) []Dropped {
	return list(t, "drops", func() Dropped { return Dropped{Version: version(t), Before: counts(t)} })
}

func nodes(t *rapid.T) []id.Node {
	return list(t, "nodes", func() id.Node { return random[id.Node](t, "node") })
}

// kindsOfRecords makes a record of every kind. TestEveryKind wants them all here.
var kindsOfRecords = map[Kind]func(t *rapid.T, in id.Realm) Record{
	KindAdopt: func(t *rapid.T, in id.Realm) Record {
		return &Adopt{In: in, Pack: random[id.Pack](t, "pack"), K: u8.Draw(t, "k"), M: u8.Draw(t, "m"), Slice: u32.Draw(t, "slice"), Size: u32.Draw(t, "size"),
			Writer: random[id.Writer](t, "writer"), Counter: u64.Draw(t, "counter"), Body: u32.Draw(t, "body"),
			Shards: list(t, "shards", func() Place { return place(t) }), Entries: list(t, "entries", func() pack.Entry { return entry(t, in) })}
	},
	KindList: func(t *rapid.T, in id.Realm) Record {
		return &List{In: in, Chunk: random[id.Chunk](t, "chunk"), Before: counts(t), Children: list(t, "children", func() id.Chunk { return random[id.Chunk](t, "child") })}
	},
	KindPut: func(t *rapid.T, in id.Realm) Record {
		p := &Put{In: in, Bucket: id.Bucket(u64.Draw(t, "bucket")), Key: blob.Draw(t, "key"), ETag: blob.Draw(t, "etag"), Time: int64(u64.Draw(t, "time")),
			Before: counts(t), Current: version(t), Drops: drops(t), Lock: lock(t)}
		p.Manifest.Size = u64.Draw(t, "size")
		p.Manifest.Roots = list(t, "roots", func() manifest.Ref {
			return manifest.Ref{Chunk: random[id.Chunk](t, "root"), Depth: u8.Draw(t, "depth"), Len: u64.Draw(t, "len")}
		})
		p.Attrs = Attrs{ContentType: text.Draw(t, "type"), ContentEncoding: text.Draw(t, "encoding"), ContentDisposition: text.Draw(t, "disposition"),
			ContentLanguage: text.Draw(t, "language"), CacheControl: text.Draw(t, "cache"),
			User: list(t, "user", func() UserField { return UserField{Name: text.Draw(t, "name"), Value: text.Draw(t, "value")} })}
		return p
	},
	KindDelete: func(t *rapid.T, in id.Realm) Record {
		return &Delete{In: in, Bucket: id.Bucket(u64.Draw(t, "bucket")), Key: blob.Draw(t, "key"), Time: int64(u64.Draw(t, "time")), Current: version(t)}
	},
	KindPurge: func(t *rapid.T, in id.Realm) Record {
		return &Purge{In: in, Bucket: id.Bucket(u64.Draw(t, "bucket")), Key: blob.Draw(t, "key"), Drops: drops(t)}
	},
	KindBucketCreate: func(t *rapid.T, in id.Realm) Record {
		return &BucketCreate{In: in, Bucket: id.Bucket(u64.Draw(t, "bucket")), Name: text.Draw(t, "name"), Settings: settings(t), Time: int64(u64.Draw(t, "time"))}
	},
	KindBucketSet: func(t *rapid.T, in id.Realm) Record {
		return &BucketSet{In: in, Bucket: id.Bucket(u64.Draw(t, "bucket")), Settings: settings(t), Old: settings(t)}
	},
	KindBucketDelete: func(t *rapid.T, in id.Realm) Record {
		return &BucketDelete{In: in, Bucket: id.Bucket(u64.Draw(t, "bucket")), Name: text.Draw(t, "name")}
	},
	KindNodes: func(t *rapid.T, _ id.Realm) Record {
		return &Nodes{Version: u64.Draw(t, "version"), M: u8.Draw(t, "m"), Want: u8.Draw(t, "want"), LogNodes: nodes(t), Gone: nodes(t), Members: list(t, "members", func() Member {
			return Member{ID: random[id.Node](t, "id"), Name: text.Draw(t, "name"), Weight: u32.Draw(t, "weight"), Labels: list(t, "labels", func() string { return text.Draw(t, "label") })}
		})}
	},
	KindPiece: func(t *rapid.T, _ id.Realm) Record {
		return &Piece{Number: u64.Draw(t, "number"), Piece: u32.Draw(t, "piece"), Pack: random[id.Pack](t, "pack"), K: u8.Draw(t, "k"), M: u8.Draw(t, "m"), Slice: u32.Draw(t, "slice"),
			Size: u32.Draw(t, "size"), Body: u32.Draw(t, "body"), Writer: random[id.Writer](t, "writer"), Counter: u64.Draw(t, "counter"),
			Shards: list(t, "shards", func() Place { return place(t) })}
	},
	KindSnapshot: func(t *rapid.T, _ id.Realm) Record {
		return &Snapshot{Number: u64.Draw(t, "number"), Head: random[id.Pack](t, "head"), Pieces: u32.Draw(t, "pieces"), Rows: u64.Draw(t, "rows"), Bytes: u64.Draw(t, "bytes"),
			Sum: random[[32]byte](t, "sum"), Logged: u64.Draw(t, "logged"), Before: u64.Draw(t, "before"), BeforeSeq: u64.Draw(t, "before seq"), BeforePack: random[id.Pack](t, "before pack"),
			Root: PieceRef{Pack: random[id.Pack](t, "root"), K: u8.Draw(t, "k"), M: u8.Draw(t, "m"), Size: u32.Draw(t, "size"),
				Digests: list(t, "digests", func() [16]byte { return random[[16]byte](t, "digest") })}}
	},
	KindPieceDrop: func(t *rapid.T, _ id.Realm) Record {
		return &PieceDrop{Number: u64.Draw(t, "number"), Piece: u32.Draw(t, "piece"), Pack: random[id.Pack](t, "pack")}
	},
	KindLost: func(t *rapid.T, _ id.Realm) Record {
		return &Lost{Pack: random[id.Pack](t, "pack"), Chunks: u32.Draw(t, "chunks")}
	},
	KindCondemn: func(t *rapid.T, in id.Realm) Record {
		return &Condemn{In: in, Time: int64(u64.Draw(t, "time")), Chunks: list(t, "chunks", func() id.Chunk { return random[id.Chunk](t, "chunk") })}
	},
	KindRemove: func(t *rapid.T, in id.Realm) Record {
		return &Remove{In: in, Chunks: list(t, "chunks", func() Removed {
			return Removed{Chunk: random[id.Chunk](t, "chunk"), Since: u64.Draw(t, "since"), Before: counts(t)}
		})}
	},
	KindMove: func(t *rapid.T, in id.Realm) Record {
		return &Move{In: in, Pack: random[id.Pack](t, "pack"), K: u8.Draw(t, "k"), M: u8.Draw(t, "m"), Slice: u32.Draw(t, "slice"), Size: u32.Draw(t, "size"),
			Writer: random[id.Writer](t, "writer"), Counter: u64.Draw(t, "counter"), Body: u32.Draw(t, "body"),
			Shards: list(t, "shards", func() Place { return place(t) }), Entries: list(t, "entries", func() pack.Entry { return entry(t, in) }),
			Sources: list(t, "sources", func() id.Pack { return random[id.Pack](t, "source") }), From: list(t, "from", func() uint32 { return u32.Draw(t, "of") })}
	},
	KindDrop: func(t *rapid.T, _ id.Realm) Record {
		return &Drop{Packs: list(t, "packs", func() id.Pack { return random[id.Pack](t, "pack") })}
	},
	KindFound: func(t *rapid.T, _ id.Realm) Record {
		return &Found{Pack: random[id.Pack](t, "pack"), Offsets: list(t, "offsets", func() uint32 { return u32.Draw(t, "offset") })}
	},
	KindLockSet: func(t *rapid.T, in id.Realm) Record {
		return &LockSet{In: in, Bucket: id.Bucket(u64.Draw(t, "bucket")), Key: blob.Draw(t, "key"), Version: version(t), Lock: lock(t), Old: lock(t)}
	},
	KindClock: func(t *rapid.T, _ id.Realm) Record {
		return &Clock{Time: int64(u64.Draw(t, "time")), Old: int64(u64.Draw(t, "old"))}
	},
	KindReshard: func(t *rapid.T, _ id.Realm) Record {
		return &Reshard{Pack: random[id.Pack](t, "pack"), Index: u8.Draw(t, "index"), Old: place(t), New: place(t)}
	},
}

// plain makes empty slices nil: a record does not tell them apart.
func plain(v reflect.Value) {
	switch v.Kind() {
	case reflect.Pointer:
		plain(v.Elem())
	case reflect.Struct:
		for i := range v.NumField() {
			if v.Type().Field(i).Name != "_" {
				plain(v.Field(i))
			}
		}
	case reflect.Slice:
		if v.Len() == 0 {
			v.SetZero()
			return
		}
		for i := range v.Len() {
			plain(v.Index(i))
		}
	}
}

func same(a, b Record) bool {
	plain(reflect.ValueOf(a))
	plain(reflect.ValueOf(b))
	return reflect.DeepEqual(a, b)
}

func TestEveryKind(t *testing.T) {
	for k := range 256 {
		r := blank(Kind(k))
		if (r != nil) != (kindsOfRecords[Kind(k)] != nil) {
			t.Errorf("kind %d: known %v, tested %v", k, r != nil, kindsOfRecords[Kind(k)] != nil)
		}
		if r != nil && r.Kind() != Kind(k) {
			t.Errorf("a blank record of kind %d is of kind %d", k, r.Kind())
		}
	}
}

// TestRoundTrip: batches of all kinds read back as they were, and are written
// again in the same bytes.
func TestRoundTrip(t *testing.T) {
	var kinds []Kind
	for k := range 256 {
		if kindsOfRecords[Kind(k)] != nil {
			kinds = append(kinds, Kind(k))
		}
	}
	rapid.Check(t, func(t *rapid.T) {
		in := realm.Draw(t, "realm")
		if rapid.IntRange(0, 4).Draw(t, "of the store") == 0 {
			in = 0
		}
		var recs []Record
		var b []byte
		for range rapid.IntRange(0, 5).Draw(t, "records") {
			r := kindsOfRecords[rapid.SampledFrom(kinds).Draw(t, "kind")](t, in)
			if r.Realm() != in {
				continue
			}
			var err error
			recs = append(recs, r)
			if b, err = Append(b, r); err != nil {
				t.Fatal(err)
			}
		}
		got, err := Parse(in, b)
		if err != nil {
			t.Fatalf("%x: %v", b, err)
		}
		if len(got) != len(recs) {
			t.Fatalf("%d records, want %d", len(got), len(recs))
		}
		for i := range got {
			if !same(got[i], recs[i]) {
				t.Fatalf("record %d: got %+v, want %+v", i, got[i], recs[i])
			}
		}
		if len(recs) > 0 {
			if _, err := Parse(in+1, b); !errors.Is(err, ErrSyntax) {
				t.Errorf("read as a batch of another realm: got %v, want %v", err, ErrSyntax)
			}
		}
	})
}

// fixtures are one record of each kind, with nothing left out.
func fixtures() []Record {
	v := id.Version{Seq: 81, Pos: 3}
	at := func(n byte, i uint8) Place {
		return Place{Node: id.Node{n}, Index: i, Instance: id.Instance(n) << 40, Digest: [16]byte{n, n}}
	}
	var e pack.Entry
	e.Realm, e.Chunk, e.Kind, e.Epoch, e.Compression, e.PlainLen, e.SealedLen, e.Offset = 1, id.Chunk{9}, 1, 2, 1, 70000, 60000, 128
	set := Settings{K: 4, Compression: "off", Profile: "fine", Versioning: true}
	drop := []Dropped{{Version: id.Version{Seq: 80, Pos: 1}, Before: []uint64{1, 1 << 33}}}
	attrs := Attrs{ContentType: "text/plain", ContentEncoding: "gzip", ContentDisposition: "inline", ContentLanguage: "es", CacheControl: "no-store", User: []UserField{{Name: "a", Value: "é"}}}
	return []Record{
		&Adopt{In: 1, Pack: id.Pack{1}, K: 2, M: 1, Slice: 1 << 20, Size: 1<<20 + 8192, Writer: id.Writer{2}, Counter: 300, Shards: []Place{at(1, 0), at(2, 1), at(3, 2)}, Entries: []pack.Entry{e}, Body: 8192},
		&List{In: 1, Chunk: id.Chunk{3}, Children: []id.Chunk{{4}, {4}}, Before: []uint64{0, 1}},
		&Put{In: 1, Bucket: 300, Key: []byte("a\x00b"), Manifest: manifest.Manifest{Size: 70000, Roots: []manifest.Ref{{Chunk: id.Chunk{9}, Depth: 1, Len: 70000}}}, ETag: []byte{1, 2}, Time: 1790000000123456789, Attrs: attrs, Before: []uint64{5}, Current: v, Drops: drop},
		&Delete{In: 1, Bucket: 300, Key: []byte("a"), Time: -1, Current: v},
		&Purge{In: 1, Bucket: 300, Key: []byte("a"), Drops: drop},
		&BucketCreate{In: 1, Bucket: 300, Name: "main", Settings: set, Time: 1790000000123456789},
		&BucketSet{In: 1, Bucket: 300, Settings: set, Old: Settings{K: 1}},
		&BucketSet{In: 1, Bucket: 300, Settings: Settings{QuotaBytes: 1 << 40, QuotaObjects: 300}},
		&BucketDelete{In: 1, Bucket: 300, Name: "main"},
		&Nodes{Version: 2, M: 2, Members: []Member{{ID: id.Node{1}, Name: "a", Weight: 100, Labels: []string{"zone=x"}}, {ID: id.Node{2}, Name: "b"}}, LogNodes: []id.Node{{1}, {2}}, Gone: []id.Node{{3}}},
		&Reshard{Pack: id.Pack{1}, Index: 2, Old: at(3, 2), New: at(4, 2)},
		&Piece{Number: 300, Piece: 1, Pack: id.Pack{1}, K: 2, M: 1, Slice: 1 << 20, Size: 1<<20 + 8192, Body: 8192, Writer: id.Writer{2}, Counter: 300, Shards: []Place{at(1, 0), at(2, 1), at(3, 2)}},
		&Snapshot{Number: 300, Head: id.Pack{5}, Pieces: 2, Rows: 70000, Bytes: 1 << 33, Sum: [32]byte{6}, Root: PieceRef{Pack: id.Pack{1}, K: 2, M: 1, Size: 1<<20 + 8192, Digests: [][16]byte{{1}, {2}, {3}}},
			Logged: 1 << 34, Before: 200, BeforeSeq: 207, BeforePack: id.Pack{7}},
		&PieceDrop{Number: 100, Piece: 1, Pack: id.Pack{1}},
		&Lost{Pack: id.Pack{1}, Chunks: 300},
		&Condemn{In: 1, Chunks: []id.Chunk{{9}, {8}}, Time: 1790000000123456789},
		&Remove{In: 1, Chunks: []Removed{{Chunk: id.Chunk{9}, Since: 81}, {Chunk: id.Chunk{3}, Since: 300, Before: []uint64{1, 1 << 33}}}},
		&Move{In: 1, Pack: id.Pack{1}, K: 2, M: 1, Slice: 1 << 20, Size: 1<<20 + 8192, Writer: id.Writer{2}, Counter: 300, Shards: []Place{at(1, 0), at(2, 1), at(3, 2)}, Entries: []pack.Entry{e}, Body: 8192,
			Sources: []id.Pack{{4}}, From: []uint32{1}},
		&Drop{Packs: []id.Pack{{4}, {5}}},
		&Found{Pack: id.Pack{1}, Offsets: []uint32{0, 70000}},
		&BucketSet{In: 1, Bucket: 300, Settings: Settings{Versioning: true, Lock: true, RetentionMode: Governance, RetentionDays: 300}},
		&Put{In: 1, Bucket: 300, Key: []byte("a"), Time: 1790000000123456789, Lock: Lock{Mode: Compliance, Until: 1890000000123456789, Hold: true}},
		&LockSet{In: 1, Bucket: 300, Key: []byte("a"), Version: v, Lock: Lock{Mode: Governance, Until: 1890000000123456789}, Old: Lock{Hold: true}},
		&Clock{Time: 1790000000123456789, Old: 1780000000123456789},
		&Nodes{Version: 3, M: 2, Members: []Member{{ID: id.Node{1}, Name: "a"}}, LogNodes: []id.Node{{1}}, Want: 3},
	}
}

// TestFixtures holds every kind against the bytes that version 1 wrote: a log
// holds them for ever.
func TestFixtures(t *testing.T) {
	var b strings.Builder
	seen := map[Kind]bool{}
	for _, r := range fixtures() {
		enc, err := Append(nil, r)
		if err != nil {
			t.Fatal(err)
		}
		fmt.Fprintf(&b, "%T %x\n", r, enc)
		seen[r.Kind()] = true
		got, err := Parse(r.Realm(), enc)
		if err != nil || len(got) != 1 || !same(got[0], r) {
			t.Errorf("%T reads back as %+v, %v", r, got, err)
		}
	}
	for k := range kindsOfRecords {
		if !seen[k] {
			t.Errorf("no fixture of kind %d", k)
		}
	}
	path := filepath.Join("testdata", "records-v1.txt")
	if *update {
		if old, err := os.ReadFile(path); err == nil {
			for line := range strings.Lines(string(old)) {
				if !strings.Contains(b.String(), line) {
					t.Fatalf("a line that version 1 wrote would go: %s", line)
				}
			}
		}
		if err := os.WriteFile(path, []byte(b.String()), 0o666); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if b.String() != string(want) {
		t.Errorf("got\n%s\nwant\n%s", b.String(), want)
	}
}

// TestRefused: batches that are nearly right.
func TestRefused(t *testing.T) {
	good, err := Append(nil, &Delete{In: 1, Bucket: 2, Key: []byte("k"), Time: 3})
	if err != nil {
		t.Fatal(err)
	}
	swap := func(old, new string) []byte {
		if bytes.Count(good, []byte(old)) != 1 {
			t.Fatalf("%x is not once in %x", old, good)
		}
		return bytes.Replace(good, []byte(old), []byte(new), 1)
	}
	for _, test := range []struct {
		name string
		b    []byte
		want error
	}{
		{"good", good, nil},
		{"nothing", nil, nil},
		{"twice", append(bytes.Clone(good), good...), nil},
		{"kind 0", append([]byte{0}, good[1:]...), ErrUnknownKind},
		{"kind 99", append([]byte{99}, good[1:]...), ErrUnknownKind},
		{"kind 255, behind a good one", append(bytes.Clone(good), 255), ErrUnknownKind},
		{"another kind's body", append([]byte{byte(KindReshard)}, good[1:]...), ErrSyntax},
		{"a kind alone", []byte{byte(KindDelete)}, ErrSyntax},
		{"a byte behind", append(bytes.Clone(good), 0), ErrUnknownKind},
		{"a longer number", swap("\x02\x02", "\x02\x18\x02"), ErrSyntax},
		{"a longer head", swap("\xa5\x01", "\xb8\x05\x01"), ErrSyntax},
		{"an indefinite key", swap("\x41k", "\x5f\x41k\xff"), ErrSyntax},
		{"a tag", swap("\x04\x03", "\x04\xc1\x03"), ErrSyntax},
		{"a key twice", swap("\x02\x02", "\x01\x01"), ErrSyntax},
		{"fields out of order", swap("\x01\x01\x02\x02", "\x02\x02\x01\x01"), ErrSyntax},
		{"a field that is not known", swap("\xa5\x01", "\xa6\x00\x00\x01"), ErrSyntax},
		{"a field missing", swap("\xa5\x01\x01", "\xa4"), ErrSyntax},
		{"a node set of a later store", []byte("\x09\xa1\x06\x02"), ErrNewer},
		{"one with fields that are not known", []byte("\x09\xa3\x01\xf5\x06\x19\x01\x00\x18\x63\x80"), ErrNewer},
		{"one whose version is no number", []byte("\x09\xa1\x06\x61a"), ErrSyntax},
		{"another record with a field 6", []byte("\x04\xa1\x06\x02"), ErrSyntax},
		{"a float", swap("\x04\x03", "\x04\xf9\x42\x00"), ErrSyntax},
		{"realm 0", swap("\x01\x01\x02", "\x01\x00\x02"), ErrSyntax},
	} {
		got, err := Parse(1, test.b)
		if !errors.Is(err, test.want) {
			t.Errorf("%s: %x: got %+v, %v, want %v", test.name, test.b, got, err, test.want)
		}
		if err != nil && got != nil {
			t.Errorf("%s: an error and %d records", test.name, len(got))
		}
	}
	// The first version of the store has one encoding: none.
	none := "\x01\x01\x02\x01\x03\x80\x04\x80\x05\x80"
	if got, err := Parse(0, []byte("\x09\xa5"+none)); err != nil {
		t.Errorf("a node set without a version: got %+v, %v", got, err)
	}
	if got, err := Parse(0, []byte("\x09\xa6"+none+"\x06\x01")); !errors.Is(err, ErrSyntax) {
		t.Errorf("a node set that names the first version: got %+v, %v", got, err)
	}
	if b, err := Append(nil, &Nodes{Store: 1}); !errors.Is(err, ErrSyntax) {
		t.Errorf("the first version is written as %x, %v", b, err)
	}
	for i := 1; i < len(good); i++ {
		if _, err := Parse(1, good[:i]); !errors.Is(err, ErrSyntax) {
			t.Errorf("cut to %d bytes: got %v, want %v", i, err, ErrSyntax)
		}
	}
	if _, err := Parse(1, bytes.Repeat(good, MaxBatch/len(good))); err != nil {
		t.Errorf("a batch as large as allowed: %v", err)
	}
	if _, err := Parse(1, bytes.Repeat(good, MaxBatch/len(good)+1)); !errors.Is(err, ErrSyntax) {
		t.Errorf("a batch beyond the bound: got %v, want %v", err, ErrSyntax)
	}
}

// FuzzParse: what parses is written back byte for byte.
func FuzzParse(f *testing.F) {
	for _, r := range fixtures() {
		b, err := Append(nil, r)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(uint32(r.Realm()), b)
	}
	f.Fuzz(func(t *testing.T, in uint32, b []byte) {
		recs, err := Parse(id.Realm(in), b)
		if err != nil {
			if !errors.Is(err, ErrSyntax) && !errors.Is(err, ErrUnknownKind) && !errors.Is(err, ErrNewer) {
				t.Errorf("an error of no kind: %v", err)
			}
			return
		}
		var again []byte
		for _, r := range recs {
			if again, err = Append(again, r); err != nil {
				t.Fatal(err)
			}
		}
		if !bytes.Equal(again, b) {
			t.Errorf("two encodings of one batch: %x and %x", b, again)
		}
	})
}

func BenchmarkParse(b *testing.B) {
	var batch []byte
	for _, r := range fixtures()[2:8] {
		for range 20 {
			var err error
			if batch, err = Append(batch, r); err != nil {
				b.Fatal(err)
			}
		}
	}
	b.SetBytes(int64(len(batch)))
	b.ReportAllocs()
	for b.Loop() {
		if _, err := Parse(1, batch); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkAppend(b *testing.B) {
	r := fixtures()[2]
	b.ReportAllocs()
	var buf []byte
	for b.Loop() {
		var err error
		if buf, err = Append(buf[:0], r); err != nil {
			b.Fatal(err)
		}
	}
	b.SetBytes(int64(len(buf)))
}

// TestRoot: the root of a snapshot reads back as it was, is held to the bytes
// that version 1 wrote, and nothing else is one.
func TestRoot(t *testing.T) {
	root := SnapshotRoot{Pieces: []RootPiece{
		{Ref: PieceRef{Pack: id.Pack{1}, K: 2, M: 1, Size: 1 << 22, Digests: [][16]byte{{1}, {2}, {3}}}},
		{Ref: PieceRef{Pack: id.Pack{2}, K: 1, M: 1, Size: 8192, Digests: [][16]byte{{4}, {5}}}, Start: 1 << 33},
	}}
	b, err := root.Append(nil)
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join("testdata", "root-v1.txt")
	if want, err := os.ReadFile(path); err != nil || string(want) != fmt.Sprintf("%x\n", b) {
		t.Errorf("got %x, want %s, %v", b, want, err)
	}
	if got, err := ParseRoot(b); err != nil || !reflect.DeepEqual(got, root) {
		t.Errorf("reads back as %+v, %v", got, err)
	}
	for i := range b {
		if got, err := ParseRoot(b[:i]); !errors.Is(err, ErrSyntax) {
			t.Errorf("cut to %d bytes: %+v, %v", i, got, err)
		}
	}
	later := append(bytes.Clone(b), 0)
	later[0] = rootVersion + 1
	if _, err := ParseRoot(later); !errors.Is(err, ErrNewer) || errors.Is(err, ErrSyntax) {
		t.Errorf("a later version: %v", err)
	}
	if _, err := ParseRoot(append(bytes.Clone(b), 0)); !errors.Is(err, ErrSyntax) {
		t.Errorf("a byte behind it: %v", err)
	}
	for name, bad := range map[string]SnapshotRoot{
		"no piece": {}, "no beginning": {Pieces: root.Pieces[1:]}, "out of order": {Pieces: []RootPiece{root.Pieces[0], root.Pieces[0]}},
	} {
		if _, err := bad.Append(nil); !errors.Is(err, ErrSyntax) {
			t.Errorf("%s: %v, want %v", name, err, ErrSyntax)
		}
	}
}

func FuzzRoot(f *testing.F) {
	root := SnapshotRoot{Pieces: []RootPiece{{Ref: PieceRef{Pack: id.Pack{1}, K: 1, M: 1, Size: 8192, Digests: [][16]byte{{4}, {5}}}}}}
	b, err := root.Append(nil)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	f.Fuzz(func(t *testing.T, b []byte) {
		r, err := ParseRoot(b)
		if err != nil {
			if errors.Is(err, ErrSyntax) == errors.Is(err, ErrNewer) || errors.Is(err, ErrNewer) != (len(b) > 0 && b[0] > rootVersion) {
				t.Fatal(err)
			}
			return
		}
		if again, err := r.Append(nil); err != nil || !bytes.Equal(again, b) {
			t.Fatalf("two encodings of one root: %x and %x, %v", b, again, err)
		}
	})
}
