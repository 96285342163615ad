package disk

import (
	"math/rand/v2"
	"runtime"
	"slices"
	"testing"

	"cairn/node"
	"cairn/pack"

	"pgregory.net/rapid"
)

func posAt(seq uint64, e uint32) posItem {
	return posItem{pos: pack.Position{Epoch: 1, Seq: seq}, key: node.Key{Index: uint8(e)}, e: e}
}

// TestPositions holds positions against a sorted list, under items that come in order, late,
// and twice, and go from the front or anywhere.
func TestPositions(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var (
			o    = ordered[posItem]{compare: comparePos}
			want []posItem
			next uint64
		)
		compare := func(a, b posItem) int { return comparePos(&a, &b) }
		set := func(it posItem) {
			o.set(it)
			if i, found := slices.BinarySearchFunc(want, it, compare); !found {
				want = slices.Insert(want, i, it)
			}
		}
		remove := func(it posItem) {
			o.remove(it)
			want = slices.DeleteFunc(want, func(x posItem) bool { return x == it })
		}
		for range rapid.IntRange(1, 40).Draw(t, "steps") {
			n := rapid.IntRange(1, 2*blockItems).Draw(t, "n")
			rng := rand.New(rand.NewPCG(rapid.Uint64().Draw(t, "seed"), 1))
			switch rapid.IntRange(0, 4).Draw(t, "step") {
			case 0, 1:
				for range n {
					next += 1 + rng.Uint64N(3)
					set(posAt(next, 0))
				}
			case 2:
				for range n {
					set(posAt(rng.Uint64N(next+1), rng.Uint32N(3)))
				}
			case 3:
				for range min(n, len(want)) {
					remove(want[0])
				}
			case 4:
				for range n {
					remove(posAt(rng.Uint64N(next+1), rng.Uint32N(3)))
				}
			}
			for _, b := range o.blocks {
				if len(b) == 0 || len(b) > blockItems {
					t.Fatalf("a block of %d items", len(b))
				}
			}
			from := posAt(rng.Uint64N(next+2), rng.Uint32N(4))
			for _, from := range []posItem{{}, from} {
				var got []posItem
				o.ascend(from, func(it posItem) bool { got = append(got, it); return true })
				i, _ := slices.BinarySearchFunc(want, from, compare)
				if !slices.Equal(got, want[i:]) {
					t.Fatalf("%d items from %v on, want %d", len(got), from, len(want)-i)
				}
			}
		}
		n := 0
		o.ascend(posItem{}, func(posItem) bool { n++; return n < 3 })
		if n > 3 {
			t.Fatalf("%d items of 3", n)
		}
	})
}

// TestTableIsSmall: what docs/scaling.md says that a shard costs of memory.
func TestTableIsSmall(t *testing.T) {
	const n = 200_000
	for _, c := range []struct {
		kind pack.Kind
		most int
	}{{pack.Data, 75}, {pack.Log, 125}} {
		heap := func() int64 {
			var m runtime.MemStats
			runtime.GC()
			runtime.ReadMemStats(&m)
			return int64(m.HeapAlloc)
		}
		before := heap()
		tab, seg := newTable(), &segment{}
		rng := rand.New(rand.NewPCG(1, 2))
		for i := range n {
			r := rec{kind: c.kind, inst: 1, size: 8192}
			for j := range r.key.Pack {
				r.key.Pack[j] = byte(rng.Uint32())
			}
			r.pos.Seq = uint64(1 + i)
			tab.add(&r, seg, 0)
		}
		each := int(heap()-before) / n
		runtime.KeepAlive(tab)
		t.Logf("%v: %d bytes a shard", c.kind, each)
		if each > c.most {
			t.Errorf("%v: %d bytes of memory a shard, want at most %d", c.kind, each, c.most)
		}
	}
}
