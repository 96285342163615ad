package index

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"testing"

	"cairn/id"
	"cairn/index/kv/memkv"
	"cairn/record"
)

func testPiece(number uint64, piece uint32) *record.Piece {
	a := adoptOf(1000*number + uint64(piece))
	return &record.Piece{Number: number, Piece: piece, Pack: a.Pack, K: a.K, M: a.M, Slice: a.Slice, Size: a.Size, Body: a.Body, Writer: a.Writer, Counter: a.Counter, Shards: a.Shards}
}

func testSnapshot(number uint64, pieces uint32, before SnapshotRow) *record.Snapshot {
	return &record.Snapshot{Number: number, Head: testPack(1<<40 + number), Pieces: pieces, Rows: 10, Bytes: 1000, Sum: [32]byte{7}, Logged: 5,
		Root:   record.PieceRef{Pack: testPack(1000*number + uint64(pieces) - 1), K: 4, M: 2, Size: 4<<20 + 8192, Digests: make([][16]byte, 6)},
		Before: before.Number, BeforeSeq: before.Seq, BeforePack: before.Pack}
}

func testDrop(number uint64, piece uint32) *record.PieceDrop {
	return &record.PieceDrop{Number: number, Piece: piece, Pack: testPack(1000*number + uint64(piece))}
}

func snapshotsOf(t *testing.T, x *Index) (out []SnapshotRow) {
	t.Helper()
	if err := x.View(func(r Reader) (err error) { out, err = r.Snapshots(); return err }); err != nil {
		t.Fatal(err)
	}
	return out
}

func piecesOf(t *testing.T, x *Index) (out []Piece) {
	t.Helper()
	if err := x.View(func(r Reader) error {
		return r.EachPiece(func(p Piece) error { out = append(out, p); return nil })
	}); err != nil {
		t.Fatal(err)
	}
	return out
}

// Three snapshots one after another: two are kept, the pieces of the third may
// go, and every count is right after each step.
func TestSnapshotsComeAndGo(t *testing.T) {
	x, c, _ := seeded(t)
	check := func() {
		t.Helper()
		if _, err := x.Check(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	var links []Link
	step := func(recs ...record.Record) {
		t.Helper()
		links = append(links, build(t, x, c, false, func(b *builder) {
			for _, r := range recs {
				b.apply(r)
			}
		}))
		check()
	}
	var before Totals
	if err := x.View(func(r Reader) (err error) { before, err = r.Totals(); return err }); err != nil {
		t.Fatal(err)
	}
	step(testPiece(2, 0))                           // 3
	step(testPiece(2, 1))                           // 4
	step(testSnapshot(2, 2, SnapshotRow{}))         // 5
	step(testPiece(5, 0), testPiece(5, 1))          // 6, of a job that is cut short
	step(testDrop(5, 0))                            // 7
	step(testDrop(5, 1))                            // 8
	step(testPiece(8, 0))                           // 9
	step(testSnapshot(8, 1, snapshotsOf(t, x)[0]))  // 10
	step(testPiece(10, 0))                          // 11
	step(testSnapshot(10, 1, snapshotsOf(t, x)[0])) // 12
	if got := snapshotsOf(t, x); len(got) != 2 || got[0].Number != 10 || got[0].Seq != 12 || got[0].Pack != testPack(1<<40+12) || got[1].Number != 8 {
		t.Fatalf("kept are %+v", got)
	}
	step(testDrop(2, 0), testDrop(2, 1))
	if got := piecesOf(t, x); len(got) != 2 || got[0] != (Piece{8, 0, testPack(8000)}) || got[1] != (Piece{10, 0, testPack(10000)}) {
		t.Errorf("pieces left: %+v", got)
	}
	var after Totals
	if err := x.View(func(r Reader) (err error) { after, err = r.Totals(); return err }); err != nil {
		t.Fatal(err)
	}
	logs, one := uint64(len(links)), links[0].Header
	if got, want := after.Packs-before.Packs, logs+2; got != want {
		t.Errorf("%d packs more, want %d", got, want)
	}
	if got, want := after.ShardBytes-before.ShardBytes, logs*3*uint64(one.ShardLen())+2*6*(4<<20+8192); got != want {
		t.Errorf("%d bytes of shards more, want %d", got, want)
	}
	if after.PayloadBytes != before.PayloadBytes || after.LiveBytes != before.LiveBytes {
		t.Errorf("pieces count as payload: %+v, before %+v", after, before)
	}

	// The same links, applied to another index.
	y, _, _ := seeded(t)
	for _, l := range links {
		if err := y.Apply(l, Strict); err != nil {
			t.Fatal(err)
		}
	}
	if !bytes.Equal(export(t, x), export(t, y)) {
		t.Error("replayed, the rows are others")
	}
}

// A newest snapshot that could not be read makes place for the next one: the one
// before it is kept.
func TestUnreadableSnapshotGoesFirst(t *testing.T) {
	x, c, _ := seeded(t)
	step := func(recs ...record.Record) {
		t.Helper()
		build(t, x, c, false, func(b *builder) {
			for _, r := range recs {
				b.apply(r)
			}
		})
		if _, err := x.Check(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	step(testPiece(2, 0), testSnapshot(2, 1, SnapshotRow{}))
	step(testPiece(3, 0), testSnapshot(3, 1, snapshotsOf(t, x)[0]))
	step(testPiece(4, 0), testSnapshot(4, 1, snapshotsOf(t, x)[1]))
	if got := snapshotsOf(t, x); len(got) != 2 || got[0].Number != 4 || got[1].Number != 2 {
		t.Fatalf("kept are %+v", got)
	}
	step(testDrop(3, 0))
	if got := piecesOf(t, x); len(got) != 2 || got[0].Number != 2 || got[1].Number != 4 {
		t.Errorf("pieces left: %+v", got)
	}
}

// Records about snapshots that do not fit what is there: refused live; in a
// rebuild done as far as that is safe.
func TestSnapshotMismatches(t *testing.T) {
	newest := SnapshotRow{Number: 2, Seq: 5, Pack: testPack(1<<40 + 5)}
	edit := func(s *record.Snapshot, f func(*record.Snapshot)) *record.Snapshot { f(s); return s }
	for _, test := range []struct {
		name string
		rec  record.Record
		want error
	}{
		{"piece", testPiece(6, 2), nil},
		{"piece of number 0", testPiece(0, 0), ErrRecord},
		{"piece of what is to come", testPiece(100, 0), ErrRecord},
		{"piece of the newest", testPiece(2, 7), ErrDivergent},
		{"piece that is there", testPiece(6, 0), ErrDivergent},
		{"another pack for a piece", func() record.Record { p := testPiece(6, 0); p.Pack = testPack(77); return p }(), ErrDivergent},
		{"piece in a data pack", func() record.Record { p := testPiece(6, 9); p.Pack = testPack(7); return p }(), ErrDivergent},
		{"piece with a place missing", func() record.Record { p := testPiece(6, 9); p.Shards = p.Shards[1:]; return p }(), ErrRecord},
		{"snapshot", testSnapshot(6, 2, newest), nil},
		{"snapshot without its last piece", testSnapshot(6, 3, newest), ErrDivergent},
		{"snapshot with fewer pieces", testSnapshot(6, 1, newest), nil}, // what it says is believed; Check compares
		{"snapshot behind one that is none any more", testSnapshot(6, 2, SnapshotRow{Number: 1, Seq: 3, Pack: testPack(1<<40 + 3)}), ErrDivergent},
		{"snapshot behind another", testSnapshot(6, 2, SnapshotRow{Number: 1, Seq: 5, Pack: newest.Pack}), ErrDivergent},
		{"snapshot behind none", testSnapshot(6, 2, SnapshotRow{}), ErrDivergent},
		{"snapshot of what is to come", testSnapshot(100, 2, newest), ErrRecord},
		{"snapshot of no piece", edit(testSnapshot(6, 2, newest), func(s *record.Snapshot) { s.Pieces = 0 }), ErrRecord},
		{"snapshot with digests missing", edit(testSnapshot(6, 2, newest), func(s *record.Snapshot) { s.Root.Digests = nil }), ErrRecord},
		{"drop of an unfinished one's", testDrop(6, 0), nil},
		{"drop of the newest's", testDrop(2, 0), ErrDivergent},
		{"drop of what is not there", testDrop(6, 5), ErrDivergent},
		{"drop of another pack", &record.PieceDrop{Number: 6, Piece: 0, Pack: testPack(7)}, ErrDivergent},
	} {
		t.Run(test.name, func(t *testing.T) {
			x, c, _ := seeded(t)
			for _, r := range []record.Record{testPiece(2, 0), testPiece(2, 1), testSnapshot(2, 2, SnapshotRow{}), testPiece(5, 0)} {
				build(t, x, c, false, func(b *builder) { b.apply(r) })
			}
			build(t, x, c, false, func(b *builder) { b.apply(testPiece(6, 0)); b.apply(testPiece(6, 1)) })
			l := c.next(false)
			l.Records = []record.Record{test.rec}
			if err := x.Apply(l, Strict); !errors.Is(err, test.want) {
				t.Errorf("live: got %v, want %v", err, test.want)
			}
			if test.want != ErrDivergent {
				return
			}
			if err := x.Apply(l, Rebuild); err != nil {
				t.Fatalf("in a rebuild: %v", err)
			}
			if got := piecesOf(t, x); len(got) < 2 || got[0].Number != 2 || got[1].Number != 2 {
				t.Errorf("a rebuild let pieces of a kept snapshot go: %+v", got)
			}
		})
	}
}

// source is an export that Load reads, and what it was asked for.
type source struct {
	Source
	export []byte
	from   []uint64
	failAt int // bytes after which reading fails; negative: never
}

var errReading = errors.New("the nodes are away")

func sourceOf(t *testing.T, x *Index) *source {
	t.Helper()
	var b bytes.Buffer
	e, err := x.Export(t.Context(), &b)
	if err != nil {
		t.Fatal(err)
	}
	if e.Bytes != uint64(b.Len()) {
		t.Fatalf("%d bytes exported, said to be %d", b.Len(), e.Bytes)
	}
	s := &source{export: b.Bytes(), failAt: -1}
	s.Source = Source{Number: e.Head.Seq, Head: e.Head.Pack, Root: id.Pack{1}, Rows: e.Rows, Sum: e.Sum, Open: s.open}
	return s
}

func (s *source) open(_ context.Context, pos uint64) (io.ReadCloser, error) {
	s.from = append(s.from, pos)
	b := s.export[pos:]
	if s.failAt < 0 || s.failAt > len(b) {
		return io.NopCloser(bytes.NewReader(b)), nil
	}
	return io.NopCloser(io.MultiReader(bytes.NewReader(b[:s.failAt]), failing{})), nil
}

type failing struct{}

func (failing) Read([]byte) (int, error) { return 0, errReading }

// large is an index whose export takes several transactions to load.
func large(t *testing.T, objects int) *Index {
	t.Helper()
	x := newIndex(t)
	c := new(chain)
	build(t, x, c, true, func(b *builder) {
		b.apply(&record.Nodes{Version: 1, M: 1, Members: []record.Member{{ID: testNode(1), Name: "a"}}, LogNodes: []id.Node{testNode(1)}})
		b.bucket("b", true)
	})
	for i := 0; i < objects; {
		build(t, x, c, false, func(b *builder) {
			for range min(500, objects-i) {
				b.entry(uint64(i+1), false)
				b.put(1, fmt.Sprintf("key %06d", i), uint64(i+1))
				i++
			}
		})
	}
	return x
}

// An export that is loaded gives the same index, in one run or in as many as
// it is cut into; and the log goes on from there.
func TestLoad(t *testing.T) {
	src := sourceOf(t, large(t, 9000))
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 1))
	for _, cut := range []bool{false, true} {
		e := memkv.New(memkv.Options{})
		x := openOn(t, e)
		src.from = nil
		runs := 0
		for {
			runs++
			src.failAt = -1
			if cut {
				src.failAt = rng.IntN(len(src.export) * 2 / 3)
			}
			err := x.Load(t.Context(), src.Source, nil)
			if err == nil {
				break
			}
			if !errors.Is(err, errReading) {
				t.Fatal(err)
			}
			if !x.loading.Load() {
				continue // nothing was loaded
			}
			// What is loaded in part answers nothing, however it is opened.
			if rng.IntN(2) == 0 {
				if err := x.db.Close(); err != nil {
					t.Fatal(err)
				}
				x = openOn(t, e.Reopen())
			}
			if err := x.View(func(Reader) error { return nil }); !errors.Is(err, ErrLoading) {
				t.Fatalf("a view of an index that is loaded in part: %v, want %v", err, ErrLoading)
			}
			if h, err := x.Head(); err != nil || h.Seq != 0 {
				t.Fatalf("the head of an index that is loaded in part: %+v, %v", h, err)
			}
			for name, err := range map[string]error{
				"begin":   second(x.Begin(testPack(1), 1)),
				"check":   second(x.Check(t.Context())),
				"recount": second(x.Recount(t.Context())),
				"export":  second(x.Export(t.Context(), io.Discard)),
			} {
				if !errors.Is(err, ErrLoading) {
					t.Errorf("%s: %v, want %v", name, err, ErrLoading)
				}
			}
		}
		if !bytes.Equal(export(t, x), src.export) {
			t.Error("what was loaded is exported as something else")
		}
		if _, err := x.Check(t.Context()); err != nil {
			t.Error(err)
		}
		if cut && (runs < 2 || src.from[len(src.from)-1] == 0) {
			t.Errorf("%d runs from %v: nothing was gone on with", runs, src.from)
		}
		if err := x.Load(t.Context(), src.Source, nil); !errors.Is(err, ErrApplied) {
			t.Errorf("loading it again: %v, want %v", err, ErrApplied)
		}
	}
}

func second[T any](_ T, err error) error { return err }

// What one snapshot has left half loaded goes before another is loaded, or
// before the log is replayed from its beginning.
func TestLoadAnother(t *testing.T) {
	first, then := sourceOf(t, large(t, 9000)), sourceOf(t, large(t, 3000))
	first.failAt = len(first.export) * 3 / 4
	then.Root = id.Pack{2}
	for _, wipe := range []bool{false, true} {
		x := newIndex(t)
		if err := x.Load(t.Context(), first.Source, nil); !errors.Is(err, errReading) {
			t.Fatal(err)
		}
		if wipe {
			if err := x.Wipe(t.Context()); err != nil {
				t.Fatal(err)
			}
			if err := x.Apply(new(chain).next(true), Strict); err != nil {
				t.Errorf("replay into an index that was emptied: %v", err)
			}
			continue
		}
		if err := x.Load(t.Context(), then.Source, nil); err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(export(t, x), then.export) {
			t.Error("rows of two snapshots are mixed")
		}
	}
}

// An export that is altered, cut, longer or another than what is known of it is
// damage, and leaves no index that answers.
func TestLoadDamaged(t *testing.T) {
	x, _, _ := seeded(t)
	good := sourceOf(t, x)
	try := func(name string, f func(s *source)) {
		t.Helper()
		s := &source{Source: good.Source, export: bytes.Clone(good.export), failAt: -1}
		s.Open = s.open
		f(s)
		y := newIndex(t)
		err := y.Load(t.Context(), s.Source, nil)
		if !errors.Is(err, ErrExport) && !errors.Is(err, ErrDamaged) && !errors.Is(err, ErrNewer) {
			t.Errorf("%s: got %v, want %v", name, err, ErrExport)
		}
		if h, err := y.Head(); err != nil || h.Seq != 0 {
			t.Errorf("%s: a head %+v, %v", name, h, err)
		}
	}
	for i := range good.export {
		try(fmt.Sprintf("byte %d altered", i), func(s *source) { s.export[i] ^= 0x10 })
		if i%7 == 0 {
			try(fmt.Sprintf("cut to %d bytes", i), func(s *source) { s.export = s.export[:i] })
		}
	}
	try("a byte behind it", func(s *source) { s.export = append(s.export, 0) })
	try("other number", func(s *source) { s.Number++ })
	try("other head", func(s *source) { s.Head[0]++ })
	try("other rows", func(s *source) { s.Rows++ })
	try("other sum", func(s *source) { s.Sum[0]++ })
}

// FuzzLoad: whatever is read as an export, it is refused, or it is the export of
// what was loaded.
func FuzzLoad(f *testing.F) {
	x, _, _ := seeded(f)
	f.Add(export(f, x))
	f.Fuzz(func(t *testing.T, b []byte) {
		y := newIndex(t)
		s := &source{export: b, failAt: -1}
		// What is known from elsewhere is taken from the end, where there is one.
		s.Source = Source{Number: 2, Head: testPack(1<<40 + 2), Open: s.open}
		if len(b) > 32 {
			s.Sum = [32]byte(b[len(b)-32:])
		}
		for s.Rows = range uint64(40) {
			if err := y.Load(t.Context(), s.Source, nil); err != nil {
				if !errors.Is(err, ErrExport) && !errors.Is(err, ErrDamaged) && !errors.Is(err, ErrNewer) {
					t.Fatal(err)
				}
				continue
			}
			if got := export(t, y); !bytes.Equal(got, b) {
				t.Fatalf("loaded %x, exported %x", b, got)
			}
			return
		}
	})
}
