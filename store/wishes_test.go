package store

import (
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"testing"

	"cairn/id"
	"cairn/index"
	"cairn/pack"
	"cairn/record"
)

// widthOf is the width of the packs in which an object's chunks lie, but for one pack, which
// may be another's for the most part; 0: it has several.
func (r *rig) widthOf(bucket, key string) (k int) {
	r.t.Helper()
	p, err := r.st.Placement(context.Background(), bucket, key, PlacementOptions{})
	if err != nil {
		r.t.Fatal(err)
	}
	by, packs := map[int]int{}, 0
	for _, x := range p.Packs {
		if !x.Log {
			by[x.K]++
			packs++
		}
	}
	for k, n := range by {
		if n == packs || packs > 2 && n == packs-1 {
			return k
		}
	}
	return 0
}

// into puts an object into a bucket.
func (r *rig) into(bucket, key string, b []byte) {
	r.t.Helper()
	if _, err := r.st.Put(context.Background(), bucket, key, bytes.NewReader(b), PutOptions{Size: int64(len(b))}); err != nil {
		r.t.Fatal(err)
	}
}

func (r *rig) wants(bucket string, k uint8) {
	r.t.Helper()
	if err := r.st.SetBucket(context.Background(), bucket, record.Settings{K: k}); err != nil {
		r.t.Fatal(err)
	}
}

// settles collects until nothing is rewritten any more.
func (r *rig) settles() (runs int) {
	r.t.Helper()
	for runs = 0; ; runs++ {
		out := r.collect(true)
		if out.Moved == 0 {
			return runs
		}
		if runs == 8 {
			r.t.Fatalf("collections rewrite for ever: %+v", out)
		}
	}
}

// TestBucketsWidthChanges: a bucket's data follows its k, though other buckets want the width that it has and
// none wants that of the next wider pack; the others' stays. Nothing moves twice.
func TestBucketsWidthChanges(t *testing.T) {
	r := collects(t)
	r.bucket("bbb", record.Settings{K: 2})
	r.bucket("ccc", record.Settings{K: 2})
	bodies := map[string][]byte{"main": random(1, 33<<20), "bbb": random(2, 33<<20), "ccc": random(3, 33<<20)}
	for _, bucket := range []string{"main", "bbb", "ccc"} {
		r.into(bucket, "o", bodies[bucket])
	}
	check := func(main, b, c int) {
		t.Helper()
		for bucket, want := range map[string]int{"main": main, "bbb": b, "ccc": c} {
			if k := r.widthOf(bucket, "o"); k != want {
				t.Errorf("what lies in %s has %d data shards, want %d", bucket, k, want)
			}
			r.holds(bucket, "o", bodies[bucket])
		}
	}
	r.settles()
	check(4, 2, 2)
	r.wants("bbb", 3)
	if n := r.settles(); n == 0 {
		t.Error("nothing was rewritten")
	}
	check(4, 3, 2)
	r.wants("main", 2)
	r.settles()
	check(2, 3, 2)
	r.wants("bbb", 2)
	r.wants("ccc", 4)
	r.settles()
	check(2, 2, 4)
	if n := r.settles(); n > 0 {
		t.Errorf("%d more runs rewrite", n)
	}
	r.soundOffline()
}

// TestSharedPacksHaveOneWidth: what two buckets of different widths have in common stays where one of them wants
// it, and a pack of which some is one's and some the other's goes by the most; neither moves back and forth.
func TestSharedPacksHaveOneWidth(t *testing.T) {
	r := collects(t)
	r.bucket("bbb", record.Settings{})
	shared, mostly, little := random(1, 9<<20), random(2, 8<<20), random(3, 1<<20)
	r.into("main", "shared", shared)
	r.into("bbb", "shared", shared)
	r.into("bbb", "mostly", mostly)
	r.into("main", "little", little)
	r.settles() // little and mostly may come into one pack
	r.wants("bbb", 2)
	r.settles()
	if k := r.widthOf("bbb", "mostly"); k != 2 {
		t.Errorf("mostly what the bucket has alone has %d data shards", k)
	}
	for range 4 {
		if out := r.collect(true); out.Moved > 0 {
			t.Fatalf("it moves again: %+v", out)
		}
	}
	// Once its other owner is gone, it is the bucket's alone.
	r.forget("shared")
	r.settles()
	if k := r.widthOf("bbb", "shared"); k != 2 {
		t.Errorf("what the bucket has alone by now has %d data shards", k)
	}
	r.holds("bbb", "shared", shared)
	r.holds("main", "little", little)
	r.soundOffline()
}

// TestNoNodeMakesPacksNarrower: that a node is away is no reason to recode what is as its bucket wants it.
func TestNoNodeMakesPacksNarrower(t *testing.T) {
	r := collects(t)
	r.bucket("bbb", record.Settings{K: 2})
	big := random(1, 20<<20)
	r.into("main", "o", big)
	r.into("bbb", "o", random(2, 20<<20))
	r.settles()
	r.close()
	r.away = map[string]bool{"n06": true}
	r.open()
	r.settles()
	if k := r.widthOf("main", "o"); k != 4 {
		t.Errorf("with a node away it has %d data shards", k)
	}
	r.close()
	r.away = nil
	r.open()
	r.holds("main", "o", big)
}

// TestWidthsSettle: whatever buckets have in common and wish, collections come to an end, and no wish is
// left that is most of a pack's.
func TestWidthsSettle(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 7))
	rounds := 6
	if testing.Short() {
		rounds = 2
	}
	r := collects(t)
	names := []string{"main", "bbb", "ccc"}
	r.bucket("bbb", record.Settings{K: 2})
	r.bucket("ccc", record.Settings{K: 3})
	var pool [][]byte
	for i := range 6 {
		pool = append(pool, random(uint64(10+i), (1+rng.IntN(5))<<20))
	}
	held := map[[2]string][]byte{}
	for round := range rounds {
		for range 5 {
			bucket, key, body := names[rng.IntN(3)], fmt.Sprint(rng.IntN(4)), pool[rng.IntN(len(pool))]
			r.into(bucket, key, body)
			held[[2]string{bucket, key}] = body
		}
		if round > 0 {
			r.wants(names[rng.IntN(3)], uint8(2+rng.IntN(3)))
		}
		r.settles()
		c := &collection{s: r.st, opt: JobOptions{Now: true}, out: &CollectResult{}}
		if err := c.readWishes(context.Background()); err != nil {
			t.Fatal(err)
		}
		if err := r.st.view(func(rd index.Reader) error {
			return rd.EachPack(func(p id.Pack, row index.PackRow) error {
				if k, due := c.betterWidth(p, row, 6, 2); due && row.Kind == pack.Data && row.Live > 0 {
					t.Errorf("round %d: pack %v of %d+%d is wanted at %d: %v", round, p, row.K, row.M, k, c.wishes[p])
				}
				return nil
			})
		}); err != nil {
			t.Fatal(err)
		}
		for at, body := range held {
			r.holds(at[0], at[1], body)
		}
	}
}
