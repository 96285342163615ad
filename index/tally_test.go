package index

import (
	"context"
	"maps"
	"sync"
	"testing"

	"cairn/id"
	"cairn/pack"
	"cairn/record"
)

// compareTally holds the tally against the rows.
func compareTally(t tester, x *Index) {
	t.Helper()
	got, err := x.Tally(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	want, sum := Tally{Kinds: map[pack.Kind]uint64{}, Nodes: map[id.Node]uint64{}}, uint64(0)
	err = x.View(func(r Reader) error {
		var err error
		if want.Head, err = r.Head(); err != nil {
			return err
		}
		if want.Totals, err = r.Totals(); err != nil {
			return err
		}
		return r.EachPack(func(_ id.Pack, row PackRow) error {
			n := uint64(row.Size) * uint64(max(len(row.Shards), int(row.K)+int(row.M)))
			want.Kinds[row.Kind] += n
			sum += n
			for _, p := range row.Shards {
				want.Nodes[p.Node] += uint64(row.Size)
			}
			return nil
		})
	})
	if err != nil {
		t.Fatal(err)
	}
	// Of a log pack that was given up not even the size may be known.
	for _, m := range []map[pack.Kind]uint64{got.Kinds, want.Kinds} {
		maps.DeleteFunc(m, func(_ pack.Kind, n uint64) bool { return n == 0 })
	}
	maps.DeleteFunc(want.Nodes, func(_ id.Node, n uint64) bool { return n == 0 })
	if got.Head != want.Head || got.Totals != want.Totals || !maps.Equal(got.Kinds, want.Kinds) || !maps.Equal(got.Nodes, want.Nodes) {
		t.Fatalf("the tally is\n%+v, the rows add up to\n%+v", got, want)
	}
	if sum != got.Totals.ShardBytes {
		t.Fatalf("the tally's totals have %d bytes of shards, the rows add up to %d", got.Totals.ShardBytes, sum)
	}
}

// TestTallyBesideRounds counts while packs come and change.
func TestTallyBesideRounds(t *testing.T) {
	for range 20 {
		x := newIndex(t)
		var c chain
		apply := func(records ...record.Record) {
			l := c.next(c.seq == 0)
			if l.Records = records; c.seq > 1 {
				l.Prev = testPlaces(3)
			}
			if err := x.Apply(l, Strict); err != nil {
				t.Fatal(err)
			}
		}
		adopt := func(n uint64) *record.Adopt {
			return &record.Adopt{In: id.Main, Pack: testPack(n), K: 2, M: 1, Slice: 1 << 20, Size: 1<<20 + 999, Body: 999, Writer: id.Writer{2}, Counter: n, Shards: testPlaces(3)}
		}
		for n := range uint64(300) {
			apply(adopt(n + 1))
		}
		var counted sync.WaitGroup
		counted.Go(func() {
			if _, err := x.Tally(t.Context()); err != nil {
				t.Error(err)
			}
		})
		for n := range uint64(40) {
			old := testPlaces(3)[0]
			to := old
			to.Node = testNode(77)
			apply(adopt(1000+n), &record.Reshard{Pack: testPack(n + 1), Index: 0, Old: old, New: to}, &record.Drop{Packs: []id.Pack{testPack(n + 200)}})
		}
		counted.Wait()
		compareTally(t, x)
	}
}

// TestTallyAfterRecount: what changes rows without a round is seen.
func TestTallyAfterRecount(t *testing.T) {
	x := newIndex(t)
	var c chain
	if err := x.Apply(c.next(true), Strict); err != nil {
		t.Fatal(err)
	}
	row := x.keys.table(nil, tableTotals)
	tx, err := x.db.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	wrong := Totals{NextBucket: 1, Packs: 7}
	if err := tx.Put(row, wrong.append(nil)); err != nil {
		t.Fatal(err)
	}
	if err := tx.Commit(); err != nil {
		t.Fatal(err)
	}
	if got, err := x.Tally(t.Context()); err != nil || got.Totals != wrong {
		t.Fatalf("%+v, %v", got, err)
	}
	if n, err := x.Recount(t.Context()); err != nil || n != 1 {
		t.Fatalf("%d rows changed, %v", n, err)
	}
	compareTally(t, x)
	cancelled, cancel := context.WithCancel(t.Context())
	cancel()
	x.tally.forget()
	if _, err := x.Tally(cancelled); err == nil {
		t.Error("counted although nobody waits")
	}
	compareTally(t, x)
}
