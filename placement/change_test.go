package placement

import (
	"errors"
	"fmt"
	"slices"
	"testing"

	"pgregory.net/rapid"

	"cairn/id"
)

// Nodes of a pack fail one after the other and are replaced while the pack is
// being written; the promise holds as long as what is left allows it.
func TestReplacementsKeepThePromise(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		nodes := topology(3, 9, false).Draw(t, "nodes")
		m := rapid.IntRange(1, 2).Draw(t, "m")
		n := rapid.IntRange(m+1, min(len(nodes), m+4)).Draw(t, "n")
		pack := id.Pack(rapid.SliceOfN(rapid.Byte(), 16, 16).Draw(t, "pack"))
		targets, _, err := Plan(pack, nodes, n-m, m)
		if err != nil {
			t.Fatal(err)
		}
		var failed []id.Node
		left := slices.Clone(nodes)
		for len(left) > n {
			at := rapid.IntRange(0, n-1).Draw(t, "fails")
			lost := targets[at]
			failed = append(failed, lost)
			left = slices.DeleteFunc(left, func(x Node) bool { return x.ID == lost })
			keep := slices.Delete(slices.Clone(targets), at, at+1)
			got, err := Replace(pack, nodes, n-m, m, keep, failed)
			if err != nil {
				t.Fatal(err)
			}
			if slices.Contains(keep, got) || slices.Contains(failed, got) {
				t.Fatalf("the replacement is %v; kept are %v, failed %v", got, keep, failed)
			}
			targets[at] = got
			for l := hardest(left, n, m); l < levels; l++ {
				if f := fullest(pick(nodes, targets), l); f > m {
					t.Fatalf("%d shards in one %v after %d replacements, %d are possible", f, l, len(failed), m)
				}
			}
		}
		if _, err := Replace(pack, nodes, n-m, m, targets[1:], append(failed, targets[0])); !errors.Is(err, ErrTooFew) {
			t.Fatalf("nobody is left: %v, want ErrTooFew", err)
		}
	})
}

// Without domains a replacement is whom a new plan would take.
func TestReplacementsFollowTheRanking(t *testing.T) {
	nodes := flat(12)
	for i := range 300 {
		targets, spares, err := Plan(packID(i), nodes, 4, 2)
		if err != nil {
			t.Fatal(err)
		}
		keep := slices.Delete(slices.Clone(targets), i%6, i%6+1)
		for j := range spares {
			failed := append([]id.Node{targets[i%6]}, spares[:j]...)
			if got, err := Replace(packID(i), nodes, 4, 2, keep, failed); got != spares[j] || err != nil {
				t.Fatalf("pack %d after %d: %v, %v, want spare %v", i, j, got, err, spares[j])
			}
		}
	}
}

func TestReplaceLooksAtStates(t *testing.T) {
	nodes := flat(7)
	nodes[0].State = Leaving // keeps its shard meanwhile
	keep := ids(nodes[:5])
	for _, s := range []State{Full, Leaving, Down} {
		nodes[5].State = s
		if got, err := Replace(packID(1), nodes, 4, 2, keep, nil); got != nodes[6].ID || err != nil {
			t.Errorf("with one node up: %v, %v, want %v", got, err, nodes[6].ID)
		}
		if _, err := Replace(packID(1), nodes, 4, 2, keep, ids(nodes[6:])); !errors.Is(err, ErrTooFew) {
			t.Errorf("with one node %v: %v, want ErrTooFew", s, err)
		}
	}
	// A kept node that is not up still fills its host.
	shared := flat(7)
	for i := range shared {
		shared[i].Host = fmt.Sprint("h", i%6) // 0 and 6 share one
	}
	shared[0].State = Full
	for i := range 50 {
		got, err := Replace(packID(i), shared, 2, 1, []id.Node{shared[0].ID, shared[1].ID}, nil)
		if err != nil || got == shared[6].ID {
			t.Fatalf("pack %d: %v, %v: on the host of a shard that is kept", i, got, err)
		}
	}
	nodes[6].Weight = 0
	if _, err := Replace(packID(1), nodes, 4, 2, keep, nil); !errors.Is(err, ErrBadNode) {
		t.Errorf("without a weight: %v, want ErrBadNode", err)
	}
	if _, err := Replace(packID(1), nodes, 0, 2, keep, nil); err == nil {
		t.Error("a pack without data shards was taken")
	}
	if _, err := Replace(packID(1), flat(9), 4, 2, ids(nodes[:6]), nil); err == nil {
		t.Error("a seventh node for six shards was chosen")
	}
}

func TestLogNodes(t *testing.T) {
	for n := range MaxLogNodes + 1 {
		nodes := shuffle(uint64(n), flat(n))
		got := LogNodes(nodes, 2)
		slices.SortFunc(nodes, func(a, b Node) int { return compareID(a.ID, b.ID) })
		if !slices.Equal(got, ids(nodes)) {
			t.Errorf("of %d nodes: %v, want all", n, got)
		}
	}
	nodes := flat(10)
	nodes[4].State = Leaving
	nodes[5].State, nodes[6].State = Down, Full
	if got, want := LogNodes(nodes, 2), slices.Delete(ids(nodes), 4, 5); !slices.Equal(got, want) {
		t.Errorf("with one node leaving: %v, want the others", got)
	}
	nodes[9].ID = nodes[8].ID
	if got := LogNodes(nodes, 2); len(got) != 8 {
		t.Errorf("with a node that is there twice: %d, want 8", len(got))
	}
}

func TestLogNodesStandApart(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		nodes := topology(10, 12, false).Draw(t, "nodes")
		m := rapid.IntRange(1, 3).Draw(t, "m")
		got := LogNodes(nodes, m)
		if !slices.IsSortedFunc(got, compareID) || len(slices.Compact(slices.Clone(got))) != MaxLogNodes {
			t.Fatalf("not nine nodes in order: %v", got)
		}
		chosen := pick(nodes, got)
		for l := hardest(nodes, MaxLogNodes, m); l < levels; l++ {
			if f := fullest(chosen, l); f > m {
				t.Fatalf("%d log nodes in one %v, %d are possible", f, l, m)
			}
		}
		zones := func(s []Node) int {
			seen := map[string]bool{}
			for _, n := range s {
				seen[n.Zone] = true
			}
			return len(seen)
		}
		if have, can := zones(chosen), min(zones(nodes), MaxLogNodes); have != can {
			t.Fatalf("log nodes in %d zones, %d are possible", have, can)
		}
	})
}

func TestLogNodesAreInEveryZone(t *testing.T) {
	for i := range 100 {
		var nodes []Node
		for j, zone := range []string{"a", "a", "a", "a", "a", "b", "b", "b", "b", "b", "c", "d"} {
			nodes = append(nodes, Node{ID: nodeID(100*i + j), Labels: Labels{Zone: zone, Host: fmt.Sprint(j)}})
		}
		got := LogNodes(nodes, 2)
		for _, lone := range nodes[10:] {
			if !slices.Contains(got, lone.ID) {
				t.Errorf("round %d: none of the log nodes is in zone %s", i, lone.Zone)
			}
		}
		for j := range nodes {
			nodes[j].Weight = float64(j * j)
		}
		if again := LogNodes(nodes, 2); !slices.Equal(again, got) {
			t.Errorf("round %d: weights change the log nodes from %v to %v", i, got, again)
		}
	}
}

// A pack that was placed by other rules, or by none, is repaired by the rules.
func TestReplacementsBesideABadPlacement(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		nodes := topology(2, 9, false).Draw(t, "nodes")
		m := rapid.IntRange(0, 3).Draw(t, "m")
		k := rapid.IntRange(1, 6).Draw(t, "k")
		kept := rapid.IntRange(0, min(len(nodes), k+m)-1).Draw(t, "kept")
		keep := ids(rapid.Permutation(nodes).Draw(t, "keep")[:kept])
		got, err := Replace(packID(1), nodes, k, m, keep, nil)
		if err != nil || slices.Contains(keep, got) {
			t.Fatalf("%v, %v", got, err)
		}
		// Only at a level where the kept ones are no worse than the rule.
		n, bound := min(k+m, len(nodes)), max(m, 1)
		for l := hardest(nodes, n, bound); l < levels; l++ {
			mine := fullest(slices.Concat(pick(nodes, []id.Node{got}), pick(nodes, keep)), l)
			if before := fullest(pick(nodes, keep), l); mine > max(before, bound) {
				t.Fatalf("%d shards in one %v, kept ones %d, allowed %d", mine, l, before, bound)
			}
		}
	})
}

func TestLogNodesChangeLittle(t *testing.T) {
	for seed := range uint64(50) {
		nodes := shuffle(seed, flat(30))[:10+seed%15]
		before := LogNodes(nodes, 2)
		gone := before[seed%9]
		after := LogNodes(slices.DeleteFunc(slices.Clone(nodes), func(n Node) bool { return n.ID == gone }), 2)
		for _, n := range before {
			if n != gone && !slices.Contains(after, n) {
				t.Errorf("seed %d: %v left, and %v is no log node any more", seed, gone, n)
			}
		}
	}
}

func TestMovesAreFewest(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		n := rapid.IntRange(1, 8).Draw(t, "n")
		want := ids(flat(12))
		want = rapid.Permutation(want).Draw(t, "want")[:n]
		have := make([]id.Node, n)
		for i := range have { // missing, anywhere, or two on one node
			if at := rapid.IntRange(-1, 11).Draw(t, "have"); at >= 0 {
				have[i] = nodeID(at)
			}
		}
		stay := map[id.Node]bool{}
		for _, h := range have {
			if slices.Contains(want, h) {
				stay[h] = true
			}
		}
		moves, err := Moves(have, want)
		if err != nil {
			t.Fatal(err)
		}
		if len(moves) != n-len(stay) {
			t.Fatalf("%d moves from %v to %v, want %d", len(moves), have, want, n-len(stay))
		}
		now := slices.Clone(have)
		for _, v := range moves {
			if now[v.Shard] != v.From {
				t.Fatalf("move %+v: shard is at %v", v, now[v.Shard])
			}
			now[v.Shard] = v.To
		}
		slices.SortFunc(now, compareID)
		sorted := slices.SortedFunc(slices.Values(want), compareID)
		if !slices.Equal(now, sorted) {
			t.Fatalf("after the moves %v, want %v", now, sorted)
		}
	})
	if _, err := Moves(make([]id.Node, 3), make([]id.Node, 2)); err == nil {
		t.Error("two nodes for three shards were taken")
	}
}
