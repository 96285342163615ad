package store

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"

	"pgregory.net/rapid"

	"cairn/id"
	"cairn/index"
	"cairn/pack"
)

// What is chosen has room, and leaves no more of it than any other choice would.
func TestFill(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		most := rapid.SampledFrom([]int{1000, 70_000, 4 << 20}).Draw(t, "most")
		sizes := rapid.SliceOfN(rapid.IntRange(1, most), 0, 10).Draw(t, "sizes")
		room := rapid.IntRange(0, 16<<20).Draw(t, "room")
		if rapid.Bool().Draw(t, "short") {
			room = rapid.IntRange(0, 2*most).Draw(t, "short room")
		}
		sum := func(of []int) (n int) {
			for _, i := range of {
				n += sizes[i]
			}
			return n
		}
		got := fill(room, sizes)
		if !slices.IsSorted(got) || len(slices.Compact(slices.Clone(got))) != len(got) || sum(got) > room {
			t.Fatalf("%v of %v for a room of %d", got, sizes, room)
		}
		first := len(sizes) > 0 && sizes[0] <= room
		if first && !slices.Contains(got, 0) {
			t.Fatalf("%v of %v for a room of %d: the first waits on", got, sizes, room)
		}
		// Counted in grains; the first is taken as it is.
		grains := func(of []int) (n int) {
			for _, i := range of {
				if i > 0 || !first {
					n += (sizes[i] + fillGrain - 1) / fillGrain
				}
			}
			return n
		}
		rest := room
		if first {
			rest -= sizes[0]
		}
		best := 0
		for set := range 1 << len(sizes) {
			var of []int
			for i := range sizes {
				if set>>i&1 == 1 {
					of = append(of, i)
				}
			}
			if n := grains(of); n <= rest/fillGrain {
				best = max(best, n)
			}
		}
		if n := grains(got); n != best {
			t.Fatalf("%v of %v fill %d grains of a room of %d, %d would go", got, sizes, n, room, best)
		}
	})
}

// Chunks of the usual lengths fill a pack to within what its class leaves open.
func TestFillIsDense(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	const trials = 200
	left := 0
	for range trials {
		sizes := make([]int, lookAhead)
		for i := range sizes {
			sizes[i] = 256<<10 + rng.IntN(1<<20)
		}
		room := 4<<20 + rng.IntN(4<<20)
		left += room
		for _, i := range fill(room, sizes) {
			left -= sizes[i]
		}
	}
	if left/trials > 16<<10 {
		t.Errorf("%d bytes are left of a pack", left/trials)
	}
}

// What is rewritten fills its packs, but for the last and, where little is left to choose from,
// the one before: their shards have the length of full ones, and little in them is padding.
// Where objects are cut is another matter in each run.
func TestRewrittenPacksAreFull(t *testing.T) {
	r := collects(t)
	objects := map[string][]byte{}
	for i := range 26 {
		key := fmt.Sprintf("o/%02d", i)
		objects[key] = random(uint64(100+i), 1<<20+i*137_311)
		r.put(key, objects[key])
	}
	out := r.collect(true)
	full, payload, padding := 0, 0, 0
	if err := r.st.view(func(rd index.Reader) error {
		return rd.EachPack(func(_ id.Pack, row index.PackRow) error {
			if row.Kind == pack.Data && row.Size == 4<<20 {
				full++
				payload += int(row.Payload)
				padding += pack.Capacity(int(row.K), 0) - int(row.Payload)
			}
			return nil
		})
	}); err != nil {
		t.Fatal(err)
	}
	if out.Written < 4 || full < out.Written-2 || padding > payload/500 {
		t.Errorf("%d packs written, %d of them full; they hold %d bytes and %d of padding", out.Written, full, payload, padding)
	}
	r.stands(objects)
}

// What is left over for the last pack does not end in a coarse class: the one before it
// leaves it so much.
func TestLastPackIsNotCoarse(t *testing.T) {
	r := collects(t)
	objects := map[string][]byte{}
	for i := range 9 { // 17.6 MiB
		key := fmt.Sprintf("o/%02d", i)
		objects[key] = random(uint64(200+i), 2_050_000)
		r.put(key, objects[key])
	}
	out := r.collect(true)
	stored, payload := 0, 0
	if err := r.st.view(func(rd index.Reader) error {
		return rd.EachPack(func(_ id.Pack, row index.PackRow) error {
			if row.Kind == pack.Data && row.Payload > 0 {
				stored += int(row.K) * int(row.Size)
				payload += int(row.Payload)
				if row.Size <= pack.StepClass {
					t.Errorf("%d bytes in shards of %d", row.Payload, row.Size)
				}
			}
			return nil
		})
	}); err != nil {
		t.Fatal(err)
	}
	if out.Written != 2 || float64(stored) > 1.01*float64(payload) {
		t.Errorf("%d packs were written, %d bytes for %d", out.Written, stored, payload)
	}
	r.stands(objects)
}
