package index

import (
	"bytes"
	"encoding/hex"
	"errors"
	"flag"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"github.com/fxamacker/cbor/v2"
	"github.com/zeebo/blake3"
	"pgregory.net/rapid"

	"cairn/id"
	"cairn/manifest"
	"cairn/pack"
	"cairn/record"
)

var update = flag.Bool("update", false, "add lines to the fixture of rows; those that are there stay")

// kinds says of every kind of value how it is read and written again.
var kinds = map[string]func(v []byte) ([]byte, error){
	"chunk":    func(v []byte) ([]byte, error) { var r ChunkRow; err := r.parse(v); return r.append(nil), err },
	"pack":     func(v []byte) ([]byte, error) { var r PackRow; err := r.parse(v); return r.append(nil), err },
	"usage":    func(v []byte) ([]byte, error) { var r PackUsage; err := r.parse(v); return r.append(nil), err },
	"totals":   func(v []byte) ([]byte, error) { var r Totals; err := r.parse(v); return r.append(nil), err },
	"head":     func(v []byte) ([]byte, error) { var r Head; err := r.parse(v); return r.append(nil), err },
	"bucket":   func(v []byte) ([]byte, error) { var r Bucket; err := r.parse(v); return r.append(nil), err },
	"object":   func(v []byte) ([]byte, error) { var r Object; err := r.parse(v); return r.append(nil), err },
	"resident": func(v []byte) ([]byte, error) { r, c, err := parseResident(v); return appendResident(nil, r, &c), err },
	"condemned": func(v []byte) ([]byte, error) {
		var r Condemnation
		err := r.parse(v)
		return r.append(nil), err
	},
	"children": func(v []byte) ([]byte, error) { cs, err := parseChildren(v); return appendChildren(nil, cs), err },
	"nodes":    func(v []byte) ([]byte, error) { var r nodeSet; err := r.parse(v); return r.append(nil), err },
	"member": func(v []byte) ([]byte, error) {
		var r record.Member
		err := parseMember(v, &r)
		return appendMember(nil, &r), err
	},
	"snapshot":    func(v []byte) ([]byte, error) { var r SnapshotRow; err := r.parse(v); return r.append(nil), err },
	"piece":       func(v []byte) ([]byte, error) { p, err := parsePiece(v); return appendPiece(nil, &p), err },
	"loading":     func(v []byte) ([]byte, error) { var r loading; err := r.parse(v); return r.append(nil), err },
	"loss":        func(v []byte) ([]byte, error) { var r Loss; err := r.parse(v); return r.append(nil), err },
	"bucket name": func(v []byte) ([]byte, error) { n, err := parseBucketID(v); return appendBucketID(nil, n), err },
	"nothing":     func(v []byte) ([]byte, error) { return appendNothing(nil), boolErr(isNothing(v)) },
	"format": func(v []byte) ([]byte, error) {
		var n uint64
		err := parseUints(v, "", &n)
		return appendUints(nil, n), err
	},
}

func boolErr(ok bool) error {
	if !ok {
		return damagedRow("")
	}
	return nil
}

type sample struct {
	kind, name string
	key, value []byte
}

// samples are rows with every field in use, and with none.
func samples() []sample {
	k := newKeyspace(0)
	chunk, p, n := testChunk(1), testPack(1), testNode(1)
	row := ChunkRow{Entry: testEntry(1, true, 1<<20), Pack: p, Refs: 1 << 40, State: Damaged}
	row.Compression, row.Epoch = 1, 70000
	places := testPlaces(3)
	places[2].Instance = math.MaxUint64
	long := Object{Version: id.Version{Seq: 1 << 33, Pos: 7}, Time: 1790000000123456789, Manifest: manifestOf(1, 2), ETag: []byte{0, 0xff},
		Attrs: record.Attrs{ContentType: "text/plain", ContentEncoding: "gzip", ContentDisposition: "inline", ContentLanguage: "es", CacheControl: "no-store",
			User: []record.UserField{{Name: "a", Value: "é"}, {Name: "b", Value: ""}}}}
	long.Manifest.Roots[1].Depth = 3
	bucket := Bucket{ID: 300, Name: "main", Realm: 1, Time: -5, Settings: record.Settings{K: 4, Compression: "off", Profile: "fine", Versioning: true}, BucketUsage: BucketUsage{1, 2, 3, 1 << 50}}
	quota := Bucket{Name: "main", Realm: 1, Settings: record.Settings{QuotaBytes: 1 << 40, QuotaObjects: 300}}
	lockable := Bucket{Name: "main", Realm: 1, Settings: record.Settings{Versioning: true, Lock: true, RetentionMode: record.Compliance, RetentionDays: 300}}
	locked := Object{Version: id.Version{Seq: 7}, Lock: record.Lock{Mode: record.Governance, Until: 1890000000123456789, Hold: true}}
	head := Head{Seq: 81, Pack: p, Epoch: 7, Attempt: 2, Time: 1790000000123456789, Logged: 1 << 40}
	clock := head
	clock.Clock = 1780000000123456789
	member := record.Member{Name: "a", ID: n, Weight: 100, Labels: []string{"host=x", "zone=a"}}
	snap := SnapshotRow{Number: 300, Seq: 307, Pack: p, Head: testPack(2), Pieces: 70000, Rows: 1 << 33, Bytes: 1 << 40, Sum: [32]byte{1, 2}, Logged: 1 << 39,
		Root: record.PieceRef{Pack: testPack(3), K: 2, M: 1, Size: 1 << 20, Digests: [][16]byte{{1}, {2}, {3}}}}
	set := nodeSet{version: 3, m: 2}
	return []sample{
		{"format", "format", k.table(nil, tableFormat), appendUints(nil, formatVersion)},
		{"head", "head", k.table(nil, tableHead), head.append(nil)},
		{"head", "head with a clock", k.table(nil, tableHead), clock.append(nil)},
		{"totals", "totals", k.table(nil, tableTotals), (&Totals{1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14}).append(nil)},
		{"nodes", "node set", k.nodes(nil, nodesHead), set.append(nil)},
		{"nodes", "node set, m being raised", k.nodes(nil, nodesHead), (&nodeSet{version: 4, m: 2, want: 3}).append(nil)},
		{"member", "member", append(k.nodes(nil, nodesMember), "a"...), appendMember(nil, &member)},
		{"member", "member without labels", append(k.nodes(nil, nodesMember), "b"...), appendMember(nil, &record.Member{ID: n})},
		{"nothing", "log node", append(k.nodes(nil, nodesLog), n[:]...), appendNothing(nil)},
		{"nothing", "gone node", append(k.nodes(nil, nodesGone), n[:]...), appendNothing(nil)},
		{"bucket name", "bucket name", k.bucketName(nil, "main"), appendBucketID(nil, 300)},
		{"bucket", "bucket", k.bucket(nil, 300), bucket.append(nil)},
		{"bucket", "bucket with object lock", k.bucket(nil, 300), lockable.append(nil)},
		{"bucket", "bucket with quotas", k.bucket(nil, 300), quota.append(nil)},
		{"object", "current version", k.object(nil, 300, []byte("a\x00b/\xff")), long.append(nil)},
		{"object", "older version", k.older(nil, 300, []byte("a\x00b/\xff"), id.Version{Seq: 9, Pos: 1}), (&Object{Version: id.Version{Seq: 9, Pos: 1}}).append(nil)},
		{"object", "locked version", k.older(nil, 300, []byte("a\x00b/\xff"), id.Version{Seq: 7}), locked.append(nil)},
		{"object", "delete marker", k.older(nil, 300, []byte("a\x00b/\xff"), id.Version{Seq: 8}), (&Object{Version: id.Version{Seq: 8}, Deleted: true, Time: 5}).append(nil)},
		{"chunk", "chunk", k.chunk(nil, 1, &chunk), row.append(nil)},
		{"children", "children", k.children(nil, 1, &chunk), appendChildren(nil, []id.Chunk{testChunk(2), testChunk(3)})},
		{"pack", "data pack", k.pack(nil, &p, packPlace), (&PackRow{Kind: pack.Data, K: 4, M: 2, Slice: 1 << 22, Size: 1<<22 + 9000, Body: 8900, Writer: id.Writer{1}, Counter: 77, Shards: places}).append(nil)},
		{"pack", "log pack without places", k.pack(nil, &p, packPlace), (&PackRow{Kind: pack.Log, K: 1, M: 2, Seq: 1 << 33}).append(nil)},
		{"usage", "pack usage", k.pack(nil, &p, packUsage), (&PackUsage{1 << 24, 1 << 23, 16}).append(nil)},
		{"snapshot", "snapshot", k.snapshot(nil, 300), snap.append(nil)},
		{"piece", "piece", k.piece(nil, 300, 69999), appendPiece(nil, &p)},
		{"loading", "loading", k.table(nil, tableLoading), (&loading{number: 300, root: p, pos: 1 << 33, rows: 70000}).append(nil)},
		{"resident", "resident", k.resident(nil, &p, 1<<20), appendResident(nil, 1, &chunk)},
		{"condemned", "condemned", k.condemned(nil, 1, &chunk), (&Condemnation{Since: 1 << 33, Time: 1790000000123456789}).append(nil)},
	}
}

// TestRowFixtures holds rows against those that version 1 wrote.
func TestRowFixtures(t *testing.T) {
	var b strings.Builder
	for _, s := range samples() {
		fmt.Fprintf(&b, "%s: %x %x\n", s.name, s.key, s.value)
		again, err := kinds[s.kind](s.value)
		if err != nil || !bytes.Equal(again, s.value) {
			t.Errorf("%s: %x reads back as %x, %v", s.name, s.value, again, err)
		}
		if s.value[0] != rowVersion {
			t.Errorf("%s: version %d", s.name, s.value[0])
		}
		if err := cbor.Wellformed(s.value[1:]); err != nil {
			t.Errorf("%s: %x is no CBOR: %v", s.name, s.value[1:], err)
		}
		// A value that is cut, or has one more byte, is not one of ours.
		for i := range s.value {
			if _, err := kinds[s.kind](s.value[:i]); !errors.Is(err, ErrDamaged) {
				t.Errorf("%s: cut to %d bytes: got %v, want %v", s.name, i, err, ErrDamaged)
			}
		}
		if _, err := kinds[s.kind](append(bytes.Clone(s.value), 0)); !errors.Is(err, ErrDamaged) {
			t.Errorf("%s with a byte behind it: got %v, want %v", s.name, err, ErrDamaged)
		}
		other := bytes.Clone(s.value)
		other[0]++
		if _, err := kinds[s.kind](other); !errors.Is(err, ErrDamaged) {
			t.Errorf("%s of version %d: got %v, want %v", s.name, other[0], err, ErrDamaged)
		}
	}
	fixture(t, "rows-v1.txt", []byte(b.String()))
}

// TestExportFixture holds the rows that a fixed history makes against those that
// version 1 made of it.
func TestExportFixture(t *testing.T) {
	x, _, _ := seeded(t)
	got := export(t, x)
	fixture(t, "export-v1.cbor", got)
	// It is a sequence of CBOR items, the last of which is the end.
	var last []byte
	n := 0
	for rest := got; len(rest) > 0; n++ {
		var item []any
		var err error
		last = rest
		if rest, err = cbor.UnmarshalFirst(rest, &item); err != nil {
			t.Fatalf("item %d: %v", n, err)
		}
	}
	var end struct {
		_    struct{} `cbor:",toarray"`
		Seq  uint64
		Pack id.Pack
		Rows uint64
		Sum  []byte
	}
	if err := cbor.Unmarshal(last, &end); err != nil || end.Seq != 2 || end.Rows != uint64(n-2) || len(end.Sum) != 32 {
		t.Errorf("end %+v of %d items, %v", end, n, err)
	}
	if sum := blake3.Sum256(got[:len(got)-2-len(end.Sum)]); !bytes.Equal(sum[:], end.Sum) {
		t.Errorf("the sum is %x, want %x", end.Sum, sum)
	}
}

func fixture(t *testing.T, name string, got []byte) {
	t.Helper()
	path := filepath.Join("testdata", name)
	if *update {
		old, err := os.ReadFile(path)
		if err == nil && !strings.HasSuffix(name, ".txt") && !bytes.Equal(old, got) {
			t.Fatalf("%s is what version 1 wrote, and stays; something else is to be made for what is new", name)
		}
		for line := range strings.Lines(string(old)) {
			if strings.HasSuffix(name, ".txt") && !strings.Contains(string(got), line) {
				t.Fatalf("a line that version 1 wrote would go: %s", line)
			}
		}
		if err := os.WriteFile(path, got, 0o666); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		if strings.HasSuffix(name, ".txt") {
			t.Errorf("%s:\n got\n%s\nwant\n%s", name, got, want)
		} else {
			t.Errorf("%s:\n got %s\nwant %s", name, hex.EncodeToString(got), hex.EncodeToString(want))
		}
	}
}

// TestRowsRoundTrip: what is written is read back, whatever it is, and as the
// deterministic encoding that another implementation would give it.
func TestRowsRoundTrip(t *testing.T) {
	enc, err := cbor.CoreDetEncOptions().EncMode()
	if err != nil {
		t.Fatal(err)
	}
	num := rapid.OneOf(rapid.SampledFrom([]uint64{0, 23, 24, 255, 256, 65535, 65536, math.MaxUint32, math.MaxUint32 + 1, math.MaxUint64}), rapid.Uint64())
	text := rapid.String()
	rapid.Check(t, func(t *rapid.T) {
		var o, back Object
		o.Version = id.Version{Seq: num.Draw(t, "seq"), Pos: uint32(num.Draw(t, "pos"))}
		o.Time = int64(num.Draw(t, "time"))
		if o.Deleted = rapid.Bool().Draw(t, "deleted"); !o.Deleted {
			o.Manifest.Size = num.Draw(t, "size")
			for range rapid.IntRange(0, manifest.MaxRoots).Draw(t, "roots") {
				o.Manifest.Roots = append(o.Manifest.Roots, manifest.Ref{Chunk: testChunk(num.Draw(t, "chunk")), Depth: uint8(rapid.IntRange(0, manifest.MaxDepth).Draw(t, "depth")), Len: num.Draw(t, "len")})
			}
			o.ETag = rapid.SliceOfN(rapid.Byte(), 1, 40).Draw(t, "etag")
			o.Lock = record.Lock{Mode: text.Draw(t, "mode"), Until: int64(num.Draw(t, "until")), Hold: rapid.Bool().Draw(t, "hold")}
			o.Attrs = record.Attrs{ContentType: text.Draw(t, "type"), CacheControl: text.Draw(t, "cache")}
			for range rapid.IntRange(0, 3).Draw(t, "user") {
				o.Attrs.User = append(o.Attrs.User, record.UserField{Name: text.Draw(t, "name"), Value: text.Draw(t, "value")})
			}
		}
		v := o.append(nil)
		if err := back.parse(v); err != nil || !reflect.DeepEqual(o, back) {
			t.Fatalf("%+v reads back as %+v, %v", o, back, err)
		}
		var generic any
		if err := cbor.Unmarshal(v[1:], &generic); err != nil {
			t.Fatal(err)
		}
		if again, err := enc.Marshal(generic); err != nil || !bytes.Equal(again, v[1:]) {
			t.Fatalf("%x is encoded as %x by another, %v", v[1:], again, err)
		}
		h := Head{Seq: num.Draw(t, "seq"), Epoch: num.Draw(t, "epoch"), Time: int64(num.Draw(t, "time")), Clock: int64(num.Draw(t, "clock"))}
		var h2 Head
		if err := h2.parse(h.append(nil)); err != nil || h != h2 {
			t.Fatalf("%+v reads back as %+v, %v", h, h2, err)
		}
	})
}

// TestOneEncoding: heads that are longer than they must be, and what is no value.
func TestOneEncoding(t *testing.T) {
	for _, test := range []struct {
		b    string
		read func(d *decoder)
		ok   bool
	}{
		{"\x17", func(d *decoder) { d.uint() }, true},
		{"\x18\x18", func(d *decoder) { d.uint() }, true},
		{"\x18\x17", func(d *decoder) { d.uint() }, false},
		{"\x19\x01\x00", func(d *decoder) { d.uint() }, true},
		{"\x19\x00\xff", func(d *decoder) { d.uint() }, false},
		{"\x1a\x00\x01\x00\x00", func(d *decoder) { d.uint() }, true},
		{"\x1a\x00\x00\xff\xff", func(d *decoder) { d.uint() }, false},
		{"\x1b\x00\x00\x00\x01\x00\x00\x00\x00", func(d *decoder) { d.uint() }, true},
		{"\x1b\x00\x00\x00\x00\xff\xff\xff\xff", func(d *decoder) { d.uint() }, false},
		{"\x1c", func(d *decoder) { d.uint() }, false},
		{"\x1f", func(d *decoder) { d.uint() }, false},
		{"\x20", func(d *decoder) { d.uint() }, false},
		{"\x20", func(d *decoder) { d.int() }, true},
		{"\x3b\x7f\xff\xff\xff\xff\xff\xff\xff", func(d *decoder) { d.int() }, true},
		{"\x3b\x80\x00\x00\x00\x00\x00\x00\x00", func(d *decoder) { d.int() }, false},
		{"\x1b\x80\x00\x00\x00\x00\x00\x00\x00", func(d *decoder) { d.int() }, false},
		{"\x18\xff", func(d *decoder) { d.upTo(254) }, false},
		{"\x61a", func(d *decoder) { d.text() }, true},
		{"\x61\xff", func(d *decoder) { d.text() }, false},
		{"\x41a", func(d *decoder) { d.text() }, false},
		{"\x42a", func(d *decoder) { d.bytes() }, false},
		{"\x5b\xff\xff\xff\xff\xff\xff\xff\xff", func(d *decoder) { d.bytes() }, false},
		{"\x41a", func(d *decoder) { d.fill(make([]byte, 2)) }, false},
		{"\xf5", func(d *decoder) { d.bool() }, true},
		{"\xf6", func(d *decoder) { d.bool() }, false},
		{"\x82", func(d *decoder) { d.array(2) }, true},
		{"\x82", func(d *decoder) { d.array(3) }, false},
		{"\x82", func(d *decoder) { d.list(9) }, false}, // two elements take two bytes
		{"", func(d *decoder) { d.uint() }, false},
		{"\x00\x00", func(d *decoder) { d.uint() }, false},
	} {
		d := decoder{b: []byte(test.b)}
		if test.read(&d); d.end() != test.ok {
			t.Errorf("%x: accepted %v, want %v", test.b, d.end(), test.ok)
		}
	}
}

// FuzzRows: whatever parses is the one encoding of what it parses to.
func FuzzRows(f *testing.F) {
	var names []string
	for _, s := range samples() {
		f.Add(s.kind, s.value)
		names = append(names, s.kind)
	}
	f.Fuzz(func(t *testing.T, kind string, v []byte) {
		parse := kinds[kind]
		if parse == nil {
			parse = kinds[names[len(v)%len(names)]]
		}
		if again, err := parse(v); err == nil && !bytes.Equal(again, v) {
			t.Errorf("two encodings of one row: %x and %x", v, again)
		}
	})
}
