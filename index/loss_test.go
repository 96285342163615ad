package index

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"cairn/id"
	"cairn/index/kv"
	"cairn/index/kv/memkv"
	"cairn/pack"
	"cairn/record"
)

// TestLossFixtures holds the rows that only an index has in which log packs were given
// up against those that the first such version wrote.
func TestLossFixtures(t *testing.T) {
	k, p, chunk := newKeyspace(0), testPack(1), testChunk(1)
	var b strings.Builder
	for _, s := range []sample{
		{"format", "format", k.table(nil, tableFormat), appendUints(nil, formatLoss)},
		{"loss", "loss", k.loss(nil, 300), (&Loss{To: 302, Pack: p, Before: 1790000000123456789, After: 1790000001123456789, Accepted: 1795000000123456789, NextBucket: 7}).append(nil)},
		{"loss", "loss of the beginning", k.loss(nil, 1), (&Loss{To: 1, Pack: p, NextBucket: 1}).append(nil)},
		{"loss", "loss of the end", k.loss(nil, 300), (&Loss{To: 310, Before: 1790000000123456789, After: 1795000000123456789, Accepted: 1795000000123456789, Epoch: 7}).append(nil)},
		{"chunk", "chunk of which nothing is known", k.chunk(nil, 1, &chunk), (&ChunkRow{Entry: pack.Entry{Info: pack.Info{SealedLen: 1}, Offset: 7}, Pack: p, Refs: 2, State: Damaged}).append(nil)},
	} {
		fmt.Fprintf(&b, "%s: %x %x\n", s.name, s.key, s.value)
		again, err := kinds[s.kind](s.value)
		if err != nil || !bytes.Equal(again, s.value) {
			t.Errorf("%s: %x reads back as %x, %v", s.name, s.value, again, err)
		}
		for i := range s.value { // cut short, it is none
			if _, err := kinds[s.kind](s.value[:i]); !errors.Is(err, ErrDamaged) {
				t.Errorf("%s of %d bytes: got %v, want %v", s.name, i, err, ErrDamaged)
			}
		}
	}
	fixture(t, "rows-v2.txt", []byte(b.String()))
	x, _ := lossy(t, memkv.New(memkv.Options{}), replayable(t), map[int]bool{1: true}, nil)
	fixture(t, "export-v2.cbor", export(t, x))
}

// replayable makes links and keeps them.
func replayable(t tester) (history []*Link) {
	x, c := newIndex(t), new(chain)
	add := func(begin bool, fn func(b *builder)) {
		l := build(t, x, c, begin, fn)
		history = append(history, &l)
	}
	add(true, func(b *builder) {
		b.apply(&record.Nodes{Version: 1, M: 1, Members: []record.Member{{ID: testNode(1), Name: "a"}}, LogNodes: []id.Node{testNode(1)}})
		b.bucket("plain", false)
		b.entry(1, false)
		b.put(1, "k", 1)
	})
	add(false, func(b *builder) {
		b.bucket("made and lost", false)
		b.entry(5, false)
		b.entry(30, true)
		b.apply(&record.List{In: 1, Chunk: testChunk(30), Children: []id.Chunk{testChunk(5), testChunk(1)}})
		b.apply(adoptOf(7, 2, 3, 4))
		b.put(1, "lost", 2)
		b.put(1, "k", 2)
	})
	add(false, func(b *builder) {
		b.put(1, "behind", 2, 3)
		b.put(1, "tree", 30)
		b.put(2, "elsewhere", 4)
		b.put(1, "k", 1)
		b.entry(6, false)
		b.put(1, "own", 6)
	})
	add(true, nil)
	return history
}

// lossy applies a history as a rebuild does that gives up the links that are lost. What
// was applied already by an earlier one stays. crash, when it is not nil, may end it
// after any step.
func lossy(t tester, e *memkv.Engine, history []*Link, lost map[int]bool, crash func() bool) (*Index, bool) {
	ctx := context.Background()
	x := openOn(t, e)
	if err := x.BeginRebuild(ctx); err != nil {
		t.Fatal(err)
	}
	h, err := x.Head()
	if err != nil {
		t.Fatal(err)
	}
	for i := int(h.Seq); i < len(history); i++ {
		if crash != nil && crash() {
			return x, false
		}
		if !lost[i] {
			if err := x.Apply(*history[i], Rebuild); err != nil {
				t.Fatalf("apply link %d: %v", i, err)
			}
			continue
		}
		j := i
		for lost[j+1] {
			j++
		}
		next, last := history[j+1], history[j]
		s := Skipped{Loss: Loss{From: uint64(i + 1), To: uint64(j + 1), Pack: last.Header.Pack, After: next.Time, Accepted: 77}, Epoch: next.Header.Epoch, K: 1, M: 2}
		if next.Header.Begin {
			s.Epoch--
		}
		if i > 0 {
			s.Before, s.Places = history[i-1].Time, history[i].Prev
		}
		if j%2 == 0 {
			s.Header = last.Header
		}
		if err := x.Skip(ctx, s); err != nil {
			t.Fatalf("give up links %d to %d: %v", i, j, err)
		}
		i = j
	}
	if crash != nil && crash() {
		return x, false
	}
	if _, err := x.EndRebuild(ctx); err != nil {
		t.Fatalf("end: %v", err)
	}
	return x, true
}

// TestSkip: what followed on a lost link stands, what it needed from there is named, and
// comes to life again.
func TestSkip(t *testing.T) {
	history := replayable(t)
	x, _ := lossy(t, memkv.New(memkv.Options{}), history, map[int]bool{1: true}, nil)
	ctx := t.Context()
	if rep, err := x.Check(ctx); err != nil {
		t.Fatalf("%v: %v", err, rep.Findings)
	}
	at := history[1].Header.Pack
	if err := x.View(func(r Reader) error {
		ls, err := r.Losses()
		if err != nil || !slices.Equal(ls, []Loss{{From: 2, To: 2, Pack: at, Before: 1000, After: 3000, Accepted: 77, NextBucket: 2}}) {
			t.Errorf("losses: %+v, %v", ls, err)
		}
		for c, refs := range map[uint64]uint64{2: 1, 3: 1, 4: 1, 30: 1} {
			row, err := r.Chunk(1, testChunk(c))
			if err != nil || !row.Unknown() || row.State != Damaged || row.Pack != at || row.Refs != refs {
				t.Errorf("chunk %d: %+v, %v", c, row, err)
			}
		}
		if _, err := r.Chunk(1, testChunk(5)); !errors.Is(err, ErrNotFound) {
			t.Errorf("a chunk that nothing refers to: %v", err)
		}
		b, err := r.BucketByID(2)
		if err != nil || b.Name != "recovered-2" || b.Versions != 1 || !b.Settings.Versioning {
			t.Errorf("the bucket that was made there: %+v, %v", b, err)
		}
		for _, key := range []string{"behind", "tree", "own", "k"} {
			if _, err := r.Object(1, []byte(key), id.Version{}); err != nil {
				t.Errorf("%s: %v", key, err)
			}
		}
		if _, err := r.Object(1, []byte("lost"), id.Version{}); !errors.Is(err, ErrNotFound) {
			t.Errorf("what was put there: %v", err)
		}
		row, err := r.Pack(at)
		if err != nil || row.Residents != 4 || row.Live != 4 || row.Payload != 4 || len(row.Shards) != 3 {
			t.Errorf("its pack: %+v, %v", row, err)
		}
		first, err := r.Pack(history[0].Header.Pack)
		if err != nil || len(first.Shards) != 3 {
			t.Errorf("the pack before it: %+v, %v", first, err)
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	if x.Rebuilding() {
		t.Error("the rebuild is not over")
	}
	if err := x.Skip(ctx, Skipped{Loss: Loss{From: 5, To: 5, Pack: testPack(99)}, K: 1, Epoch: 9}); !errors.Is(err, ErrRecord) {
		t.Errorf("given up outside of a rebuild: %v", err)
	}
	// The same content again.
	c := &chain{seq: 4, prev: history[3].Header.Pack, time: 4000, epoch: 2}
	build(t, x, c, false, func(b *builder) {
		b.entry(30, true)
		b.apply(&record.List{In: 1, Chunk: testChunk(30), Children: []id.Chunk{testChunk(1)}})
		b.apply(adoptOf(70, 2, 3, 4))
	})
	if err := x.View(func(r Reader) error {
		for _, c := range []uint64{2, 3, 4, 30} {
			row, err := r.Chunk(1, testChunk(c))
			if err != nil || row.State != Live || row.Unknown() || row.Refs != 1 || row.PlainLen != testEntry(c, false, 0).PlainLen {
				t.Errorf("chunk %d again: %+v, %v", c, row, err)
			}
		}
		row, err := r.Pack(at)
		if err != nil || row.Residents != 0 || row.Live != 0 {
			t.Errorf("the lost pack: %+v, %v", row, err)
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	if rep, err := x.Check(ctx); err != nil {
		t.Fatalf("%v: %v", err, rep.Findings)
	}
	compareTally(t, x)
}

// TestLossOfFormat: an index in which nothing was given up has the format that it always
// had; one in which something was is refused by whoever does not know that.
func TestLossOfFormat(t *testing.T) {
	history := replayable(t)
	for _, lost := range []map[int]bool{nil, {0: true}, {1: true}} {
		x, _ := lossy(t, memkv.New(memkv.Options{}), history, lost, nil)
		want := uint64(1)
		if len(lost) > 0 {
			want = 2
		}
		err := x.db.View(func(s *kv.Snapshot) error {
			v, err := s.Get(x.keys.table(nil, tableFormat), nil)
			if !bytes.Equal(v, appendUints(nil, want)) {
				t.Errorf("lost %v: format %x", lost, v)
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		// Loaded from a snapshot it says the same.
		var b bytes.Buffer
		e, err := x.Export(t.Context(), &b)
		if err != nil {
			t.Fatal(err)
		}
		y := newIndex(t)
		src := Source{Number: e.Head.Seq, Head: e.Head.Pack, Root: id.Pack{1}, Rows: e.Rows, Sum: e.Sum,
			Open: func(context.Context, uint64) (io.ReadCloser, error) {
				return io.NopCloser(bytes.NewReader(b.Bytes())), nil
			}}
		if err := y.Load(t.Context(), src, nil); err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(export(t, y), b.Bytes()) {
			t.Error("loaded, it is another index")
		}
	}
}

// TestModelOfLoss gives up any links of random histories: what is left agrees with
// itself, has every version that another link made and that stands in the end, comes out
// the same a second time and when it is killed at any point, and goes on.
func TestModelOfLoss(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		s := &machine{engine: memkv.New(memkv.Options{}), replica: newIndex(t), m: newModel()}
		s.x = openOn(t, s.engine)
		for n := rapid.IntRange(3, 9).Draw(t, "links"); len(s.history) < n; {
			s.link(t)
		}
		lost := map[int]bool{}
		for i := range len(s.history) - 1 {
			if rapid.IntRange(0, 3).Draw(t, "lost") == 0 {
				lost[i] = true
			}
		}
		x, _ := lossy(t, memkv.New(memkv.Options{}), s.history, lost, nil)
		want := export(t, x)
		if len(lost) == 0 && !bytes.Equal(want, export(t, s.x)) {
			t.Fatal("with nothing lost it is another index")
		}
		if rep, err := x.Check(context.Background()); err != nil {
			t.Fatalf("lost %v: %v: %v", lost, err, rep.Findings)
		}
		compareTally(t, x)
		var unknown []uint64
		if err := x.View(func(r Reader) error {
			for n, b := range s.m.buckets {
				for key, vs := range b.objects {
					for _, v := range vs {
						if v.deleted || lost[int(v.version.Seq-1)] {
							continue
						}
						o, err := r.Object(n, []byte(key), v.version)
						if err != nil || !slices.Equal(o.Manifest.Roots, manifestOf(v.roots...).Roots) {
							return fmt.Errorf("version %v of %q in bucket %d: %+v, %w", v.version, key, n, o, err)
						}
					}
				}
			}
			for c := uint64(1); c <= maxChunk; c++ {
				row, err := r.Chunk(id.Main, testChunk(c))
				if err == nil && row.Unknown() {
					unknown = append(unknown, c)
					if row.State != Damaged || row.Refs == 0 {
						return fmt.Errorf("chunk %d: %+v", c, row)
					}
				}
			}
			return nil
		}); err != nil {
			t.Fatalf("lost %v: %v", lost, err)
		}
		// Killed, and gone on with.
		e := memkv.New(memkv.Options{})
		seed := rapid.Uint64().Draw(t, "seed")
		rng := rand.New(rand.NewPCG(seed, 2))
		for kills := 0; ; kills++ {
			y, over := lossy(t, e, s.history, lost, func() bool { return kills < 5 && rng.IntN(3) == 0 })
			if over {
				if !bytes.Equal(export(t, y), want) {
					t.Fatalf("lost %v: killed %d times, it is another index", lost, kills)
				}
				break
			}
			e = e.Crash(rand.New(rand.NewPCG(seed, uint64(kills))))
		}
		if len(lost) == 0 || len(unknown) == 0 {
			return
		}
		h, err := x.Head()
		if err != nil {
			t.Fatal(err)
		}
		c := &chain{seq: h.Seq, prev: h.Pack, time: h.Time, epoch: h.Epoch}
		build(t, x, c, false, func(b *builder) {
			for _, c := range unknown {
				b.entry(c, false)
			}
		})
		if rep, err := x.Check(context.Background()); err != nil {
			t.Fatalf("lost %v, and brought again: %v: %v", lost, err, rep.Findings)
		}
	})
}

// TestSkipEnd: that the end of the log was lost is said without a step of the head, and
// the sequences are used again.
func TestSkipEnd(t *testing.T) {
	x, c, _ := seeded(t)
	ctx := t.Context()
	l := Loss{From: 3, To: 4, Before: 2000, After: 9, Accepted: 9, Epoch: 1}
	for _, bad := range []Loss{{From: 2, To: 4, Epoch: 1}, {From: 3, To: 2, Epoch: 1}, {From: 3, To: 4}} {
		if err := x.SkipEnd(ctx, bad); !errors.Is(err, ErrRecord) {
			t.Errorf("%+v: %v", bad, err)
		}
	}
	if err := x.SkipEnd(ctx, l); err != nil {
		t.Fatal(err)
	}
	for range 3 {
		build(t, x, c, false, nil)
		if rep, err := x.Check(ctx); err != nil {
			t.Fatalf("%v: %v", err, rep.Findings)
		}
	}
	if err := x.View(func(r Reader) error {
		ls, err := r.Losses()
		if !slices.Equal(ls, []Loss{l}) {
			t.Errorf("losses: %+v", ls)
		}
		return err
	}); err != nil {
		t.Fatal(err)
	}
}

// TestMissingInParts: what is missing is found a part at a time, and what stands for it
// lies one behind the other.
func TestMissingInParts(t *testing.T) {
	ctx := t.Context()
	x, _ := lossy(t, memkv.New(memkv.Options{}), replayable(t), map[int]bool{1: true}, nil)
	var at id.Pack
	if err := x.write(ctx, func(tx *kv.Tx) error {
		r := &reader{kv: tx, keys: x.keys}
		for _, c := range []uint64{2, 3, 4, 30} {
			row, err := r.Chunk(1, testChunk(c))
			if err != nil || !row.Unknown() {
				t.Fatalf("chunk %d: %+v, %v", c, row, err)
			}
			at = row.Pack
			for _, key := range [][]byte{x.keys.chunk(nil, 1, &row.Chunk), x.keys.resident(nil, &at, row.Offset)} {
				if _, err := tx.Delete(key); err != nil {
					return err
				}
			}
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	free, parts := uint64(7), 0
	for more := true; more; parts++ {
		var out []chunkKey
		if err := x.db.View(func(s *kv.Snapshot) (err error) {
			out, more, err = x.missing(ctx, s, 3)
			return err
		}); err != nil {
			t.Fatal(err)
		}
		if want := min(3, 4-3*parts); len(out) != want || more != (parts == 0) {
			t.Errorf("part %d: %d chunks, more %v", parts, len(out), more)
		}
		var err error
		if free, err = x.unknown(ctx, at, free, out); err != nil {
			t.Fatal(err)
		}
	}
	if got, err := x.behindResidents(at); err != nil || got != free || free != 11 {
		t.Errorf("behind all %d, %d: %v", got, free, err)
	}
}
