package placement

import (
	"fmt"
	"slices"
	"testing"

	"pgregory.net/rapid"

	"cairn/id"
)

// slowSurvives tries every loss of every number of domains.
func slowSurvives(nodes []Node, a Assignment, l Level) int {
	domain := map[id.Node]string{}
	var domains []string
	for _, n := range nodes {
		if n.State != Down {
			domain[n.ID] = path(n, l)
			if !slices.Contains(domains, path(n, l)) {
				domains = append(domains, path(n, l))
			}
		}
	}
	worst := make([]int, len(domains)+1) // by how many are lost
	for i := range worst {
		worst[i] = len(a.Holders)
	}
	for lost := range 1 << len(domains) {
		count, left := 0, 0
		for i := range domains {
			count += lost >> i & 1
		}
		for _, h := range a.Holders {
			if d, ok := domain[h]; ok && lost>>slices.Index(domains, d)&1 == 0 {
				left++
			}
		}
		worst[count] = min(worst[count], left)
	}
	for n, left := range worst {
		if left < a.K {
			return n - 1
		}
	}
	return len(domains)
}

func TestSurvivesIsTheTruth(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		nodes := topology(1, 7, true).Draw(t, "nodes")
		var packs []Assignment
		want := Survival{99, 99, 99, 99, 99}
		for range rapid.IntRange(1, 3).Draw(t, "packs") {
			var a Assignment
			for range rapid.IntRange(1, 6).Draw(t, "shards") {
				a.Holders = append(a.Holders, nodeID(rapid.IntRange(0, len(nodes)).Draw(t, "holder"))) // one is unknown
			}
			a.K = rapid.IntRange(1, len(a.Holders)).Draw(t, "k")
			packs = append(packs, a)
			want = want.Min(Survival{
				slowSurvives(nodes, a, levels), slowSurvives(nodes, a, Disk), slowSurvives(nodes, a, Host),
				slowSurvives(nodes, a, Rack), slowSurvives(nodes, a, Zone),
			})
		}
		if got, n := Survives(nodes, slices.Values(packs)); got != want || n != len(packs) {
			t.Fatalf("%d packs survive %v, want %d and %v", n, got, len(packs), want)
		}
	})
}

// What is promised before a pack is placed holds for each that is placed, and
// any m nodes may go.
func TestPromisesAreKept(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		nodes := topology(2, 14, true).Draw(t, "nodes")
		m := rapid.IntRange(0, 3).Draw(t, "m")
		k := Width(len(only(nodes, Up)), rapid.IntRange(1, 6).Draw(t, "k"), m)
		if k == 0 {
			return
		}
		promise, err := Promises(nodes, k, m)
		if err != nil {
			t.Fatal(err)
		}
		for i := range 5 {
			targets, spares, err := Plan(packID(i), nodes, k, m)
			if err != nil {
				t.Fatal(err)
			}
			a := Assignment{k, targets}
			got, _ := Survives(nodes, slices.Values([]Assignment{a}))
			if got.Min(promise) != promise || got.Nodes != m {
				t.Fatalf("a pack of %d+%d on %v survives %v, promised are %v", k, m, targets, got, promise)
			}
			if len(spares) == 0 && got != promise {
				t.Fatalf("every node holds a shard: %v, promised only %v", got, promise)
			}
			for lost := range 1 << len(targets) { // any m nodes, the long way
				gone := 0
				for j := range targets {
					gone += lost >> j & 1
				}
				if gone <= m && len(targets)-gone < k {
					t.Fatalf("%d of %d nodes gone, fewer than %d left", gone, len(targets), k)
				}
			}
		}
		if n := k + m; m > 0 && len(nodes) <= 9 {
			for l := hardest(only(nodes, Up), n, m); l < levels; l++ {
				if promise.at(l) < 1 {
					t.Fatalf("a lost %v can be survived, promised are %v", l, promise)
				}
			}
		}
	})
}

func (s Survival) at(l Level) int {
	return []int{s.Zones, s.Racks, s.Hosts, s.Disks, s.Nodes}[l]
}

func TestSixDirectoriesOnOneDisk(t *testing.T) {
	nodes := grid(1, 1, 1, 6)
	packs := []Assignment{{4, ids(nodes)}}
	got, _ := Survives(nodes, slices.Values(packs))
	if want := (Survival{Nodes: 2}); got != want {
		t.Errorf("4+2 in six directories of one disk survives %v, want %v", got, want)
	}
	if s := got.String(); s != "nodes 2, disks 0, hosts 0, racks 0, zones 0" {
		t.Errorf("it reads %q", s)
	}
	for i := range nodes { // the same without labels: nothing is known, nothing is claimed
		nodes[i].Labels = Labels{}
	}
	if got, _ := Survives(nodes, slices.Values(packs)); got != (Survival{Nodes: 2}) {
		t.Errorf("without labels it survives %v", got)
	}
	nodes[0].State, nodes[1].State = Down, Down
	if got, _ := Survives(nodes, slices.Values(packs)); got != (Survival{}) {
		t.Errorf("with two nodes down it survives %v, want 0 of everything", got)
	}
	nodes[2].State = Down
	if got, _ := Survives(nodes, slices.Values(packs)); got != (Survival{-1, -1, -1, -1, -1}) {
		t.Errorf("with three nodes down it survives %v, want -1 of everything", got)
	}
	if _, n := Survives(nodes, slices.Values([]Assignment(nil))); n != 0 {
		t.Errorf("%d packs of none", n)
	}
}

func BenchmarkSurvives(b *testing.B) {
	for _, n := range []int{6, 1000} {
		nodes := grid(1, n, 1, 1)
		p, err := NewPlanner(nodes, 4, 2)
		if err != nil {
			b.Fatal(err)
		}
		packs := make([]Assignment, 10000)
		for i := range packs {
			packs[i].K = 4
			packs[i].Holders, _ = p.Plan(packID(i))
		}
		b.Run(fmt.Sprintf("nodes=%d,packs=%d", n, len(packs)), func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				Survives(nodes, slices.Values(packs))
			}
		})
	}
}
