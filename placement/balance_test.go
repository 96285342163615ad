package placement

import (
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"testing"

	"pgregory.net/rapid"

	"cairn/id"
)

// store is a set of packs, for tests of balances.
type store struct {
	k, m  int
	sizes []int64 // of a shard, by pack
	have  [][]id.Node
}

// placed makes packs as a store of these nodes would.
func placed(nodes []Node, packs, k, m int, seed uint64) *store {
	s := &store{k: k, m: m}
	p, err := NewPlanner(nodes, k, m)
	if err != nil {
		panic(err)
	}
	rng := rand.New(rand.NewPCG(seed, 1))
	for i := range packs {
		targets, _ := p.Plan(packID(int(seed)*100_000 + i))
		s.have = append(s.have, targets)
		s.sizes = append(s.sizes, 64<<10+rng.Int64N(4<<20))
	}
	return s
}

func (s *store) held() map[id.Node]int64 {
	out := map[id.Node]int64{}
	for i, have := range s.have {
		for _, n := range have {
			out[n] += s.sizes[i]
		}
	}
	return out
}

func (s *store) total() (n int64) {
	for i, have := range s.have {
		n += s.sizes[i] * int64(len(have))
	}
	return n
}

// balance moves shards until nothing moves any more, checks each move, and returns the
// bytes moved.
func (s *store) balance(t interface {
	Helper()
	Fatal(...any)
	Fatalf(string, ...any)
}, nodes []Node) (moved int64) {
	t.Helper()
	b, err := NewBalance(nodes, s.held())
	if err != nil {
		t.Fatal(err)
	}
	hard := hardest(nodes, s.k+s.m, max(s.m, 1))
	for pass := 0; ; pass++ {
		before := moved
		for i, have := range s.have {
			moves, err := b.Moves(s.k, s.m, s.sizes[i], have, func(id.Node) bool { return true })
			if err != nil {
				t.Fatal(err)
			}
			worst := [levels]int{}
			for l := range levels {
				worst[l] = fullest(pick(nodes, have), l)
			}
			for _, v := range moves {
				if have[v.Shard] != v.From || slices.Contains(have, v.To) {
					t.Fatalf("pack %d: %+v, the shards are on %v", i, v, have)
				}
				have[v.Shard] = v.To
				moved += s.sizes[i]
			}
			for l := hard; l < levels; l++ {
				if f := fullest(pick(nodes, have), l); f > max(s.m, worst[l], 1) {
					t.Fatalf("pack %d: %d shards in one %v, before it were %d, %d may be lost", i, f, l, worst[l], s.m)
				}
			}
		}
		if moved == before && !b.Relax() {
			for _, n := range nodes {
				if got, want := b.Held(n.ID), s.held()[n.ID]; got != want {
					t.Fatalf("node %v is thought to hold %d bytes, it holds %d", n.ID, got, want)
				}
			}
			return moved
		}
		if pass == 50 {
			t.Fatalf("after %d passes shards still move", pass)
		}
	}
}

// shares is the best there can be on nodes that share nothing: each as full as its
// weight says, and none with more than a shard of each pack.
func (s *store) shares(nodes []Node) map[id.Node]float64 {
	most, total := 0.0, 0.0
	for _, n := range s.sizes {
		most, total = most+float64(n), total+float64(n)*float64(s.k+s.m)
	}
	lo, hi := 0.0, total*1e6
	at := func(fill float64) (out map[id.Node]float64, sum float64) {
		out = map[id.Node]float64{}
		for _, n := range nodes {
			out[n.ID] = min(fill*n.Weight, most)
			sum += out[n.ID]
		}
		return out, sum
	}
	for range 200 {
		mid := (lo + hi) / 2
		if _, sum := at(mid); sum < total {
			lo = mid
		} else {
			hi = mid
		}
	}
	out, _ := at(hi)
	return out
}

// On nodes of any sizes that were added later, what each holds comes within 5 % of the
// best there can be, and hardly more moves than must.
func TestBalanceComesNearTheBest(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		k, m := rapid.IntRange(1, 4).Draw(t, "k"), rapid.IntRange(1, 2).Draw(t, "m")
		old := rapid.IntRange(k+m, 9).Draw(t, "old")
		nodes := flat(old + rapid.IntRange(0, 6).Draw(t, "new"))
		for i := range nodes {
			nodes[i].Weight = float64(rapid.IntRange(1, 8).Draw(t, "weight"))
		}
		s := placed(nodes[:old], 400, k, m, uint64(rapid.IntRange(0, 50).Draw(t, "seed")))
		before := s.held()
		moved := s.balance(t, nodes)
		after, best := s.held(), s.shares(nodes)
		must := 0.0
		mean := float64(s.total()) / float64(len(nodes))
		for _, n := range nodes {
			if off := math.Abs(float64(after[n.ID]) - best[n.ID]); off > 0.05*max(best[n.ID], mean)+2*float64(4<<20) {
				t.Fatalf("node %v of weight %v holds %d bytes, the best is %.0f", n.ID, n.Weight, after[n.ID], best[n.ID])
			}
			must += max(0, float64(before[n.ID])-best[n.ID])
		}
		// Chains, where two nodes have a shard of all the same packs, cost a little.
		if float64(moved) > 1.3*must+0.02*float64(s.total()) {
			t.Fatalf("%d bytes moved, %.0f must", moved, must)
		}
	})
}

// Whatever the topology, it ends and breaks no rule.
func TestBalanceKeepsTheRules(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		nodes := topology(4, 12, false).Draw(t, "nodes")
		m := rapid.IntRange(1, 2).Draw(t, "m")
		old := rapid.IntRange(m+1, len(nodes)).Draw(t, "old")
		k := rapid.IntRange(1, old-m).Draw(t, "k")
		s := placed(nodes[:old], 100, k, m, 1)
		s.balance(t, nodes)
		if again := s.balance(t, nodes); again != 0 {
			t.Fatalf("%d bytes move in a store that was just balanced", again)
		}
	})
}

// Packs that lie on one disk, because there was one, are spread once there are others.
func TestBalanceSpreadsWhatWasOnOneDisk(t *testing.T) {
	nodes := make([]Node, 10)
	for i := range nodes {
		nodes[i] = Node{ID: nodeID(i), Weight: 1, Labels: Labels{Disk: fmt.Sprint("d", max(0, i-5))}}
	}
	s := placed(nodes[:6], 200, 4, 2, 1)
	s.balance(t, nodes)
	for i, have := range s.have {
		if f := fullest(pick(nodes, have), Disk); f > 2 {
			t.Fatalf("pack %d has %d shards on one disk, and each of four others could have one", i, f)
		}
	}
	wide := grid(1, 1, 4, 3)
	s = placed(wide[:6], 200, 4, 2, 1) // three on each of two disks
	s.balance(t, wide)
	for i, have := range s.have {
		if f := fullest(pick(wide, have), Disk); f > 2 {
			t.Fatalf("pack %d has %d shards on one of four disks", i, f)
		}
	}
}

func TestBalanceLooksAtStates(t *testing.T) {
	nodes := flat(9)
	s := placed(nodes[:6], 100, 4, 2, 1)
	nodes[0].State, nodes[6].State, nodes[7].State = Leaving, Down, Full
	before := s.held()
	s.balance(t, nodes)
	after := s.held()
	if after[nodes[0].ID] != before[nodes[0].ID] {
		t.Errorf("a node that is leaving held %d bytes, now %d: that is for others to do", before[nodes[0].ID], after[nodes[0].ID])
	}
	if after[nodes[6].ID] != 0 || after[nodes[7].ID] != 0 || after[nodes[8].ID] == 0 {
		t.Errorf("a node down, one full and one up got %d, %d and %d bytes; want the last alone", after[nodes[6].ID], after[nodes[7].ID], after[nodes[8].ID])
	}
	b, err := NewBalance(nodes, before)
	if err != nil {
		t.Fatal(err)
	}
	have := slices.Clone(s.have[0])
	if moves, err := b.Moves(4, 2, 1<<20, have, func(id.Node) bool { return false }); len(moves) > 0 || err != nil {
		t.Errorf("%v, %v: moves where no node may take any", moves, err)
	}
	if moves, err := b.Moves(8, 2, 1<<20, have, func(id.Node) bool { return true }); len(moves) > 0 || err != nil {
		t.Errorf("%v, %v: moves of a pack that is wider than the nodes are many", moves, err)
	}
	nodes[3].Weight = 0
	if _, err := NewBalance(nodes, nil); !errors.Is(err, ErrBadNode) {
		t.Errorf("a node without weight: %v, want ErrBadNode", err)
	}
	nodes[3] = nodes[4]
	if _, err := NewBalance(nodes, nil); !errors.Is(err, ErrBadNode) {
		t.Errorf("a node twice: %v, want ErrBadNode", err)
	}
}

func BenchmarkBalance(b *testing.B) {
	for _, n := range []int{12, 100} {
		nodes := flat(n)
		s := placed(nodes[:n/2], 10_000, 4, 2, 1)
		held := s.held()
		b.Run(fmt.Sprintf("nodes=%d", n), func(b *testing.B) {
			for b.Loop() {
				x, err := NewBalance(nodes, held)
				if err != nil {
					b.Fatal(err)
				}
				for i, have := range s.have {
					if _, err := x.Moves(4, 2, s.sizes[i], have, func(id.Node) bool { return true }); err != nil {
						b.Fatal(err)
					}
				}
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/float64(len(s.have)), "ns/pack")
		})
	}
}
