package disk

import (
	"math/rand/v2"
	"runtime"
	"slices"
	"testing"

	"cairn/id"
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

// TestSecondCopyOfAnInstance: a rewriting that was cut short leaves one instance in two
// segments. The good copy stays, the first of two good ones; the other's segment is
// told to be brought up, and nothing of it counts.
func TestSecondCopyOfAnInstance(t *testing.T) {
	for _, c := range []struct {
		name     string
		kind     pack.Kind
		bad      [2]bool // of the copies in the order in which they are read
		kept     int
		answered bool
	}{
		{"both good", pack.Data, [2]bool{}, 0, true},
		{"the first is broken", pack.Data, [2]bool{true, false}, 1, true},
		{"the second is broken", pack.Data, [2]bool{false, true}, 0, true},
		{"both are broken", pack.Data, [2]bool{true, true}, 0, false},
		{"of the log, the first is broken", pack.Log, [2]bool{true, false}, 1, true},
		{"of the log, both good", pack.Log, [2]bool{}, 0, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			l := &loader{n: &Node{table: newTable()}}
			tab := l.n.table
			segs := [2]*segment{{no: 1, closed: true}, {no: 2, closed: true}}
			shard := func(pk byte, inst id.Instance, off int64) footShard {
				sh := footShard{}
				sh.rec = rec{key: node.Key{Pack: id.Pack{pk}, Index: 1}, inst: inst, kind: c.kind, size: 4096, off: off, pos: pack.Position{Seq: uint64(inst)}}
				return sh
			}
			for i, s := range segs {
				sh := shard(7, 5, int64(i+1)*blockSize)
				sh.damaged = c.bad[i]
				// Others before and behind it, and an older instance under the same key.
				l.take(s, []footShard{shard(9, id.Instance(10+i), 8*blockSize), sh, shard(1, id.Instance(20+i), 16*blockSize), shard(7, id.Instance(1+i), 24*blockSize)}, nil)
			}
			tab.settle(l.twice)
			key := node.Key{Pack: id.Pack{7}, Index: 1}
			e := tab.at(tab.newest(key))
			if e.inst != 5 || e.seg != segs[c.kept] || e.off() != int64(c.kept+1)*blockSize || (e.flags&broken == 0) != c.answered {
				t.Errorf("kept: instance %d in segment %d at %d, flags %d", e.inst, e.seg.no, e.off(), e.flags)
			}
			if next := tab.at(e.older); next.inst != 2 || tab.at(next.older).inst != 1 || tab.at(next.older).older != 0 {
				t.Errorf("behind it: instance %d, then %d", next.inst, tab.at(next.older).inst)
			}
			if len(l.dirty) != 1 || l.dirty[0] != segs[1-c.kept] {
				t.Errorf("to be brought up: %v, want segment %d", l.dirty, segs[1-c.kept].no)
			}
			if k, o := segs[c.kept].entries, segs[1-c.kept].entries; k != 4 || o != 3 || tab.lives != 7 || tab.liveBytes != 7*4096 {
				t.Errorf("%d and %d entries of the two segments, %d live with %d bytes; want 4, 3, 7 and 28,672", k, o, tab.lives, tab.liveBytes)
			}
			if n := tab.byPos.len(); n != map[pack.Kind]int{pack.Log: 7}[c.kind] {
				t.Errorf("%d in the order of positions", n)
			}
		})
	}
}
