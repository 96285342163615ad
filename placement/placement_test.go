package placement

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"testing"

	"pgregory.net/rapid"

	"cairn/id"
)

// nodeID numbers nodes, packID packs: the ranking has to cope with that.
func nodeID(i int) (n id.Node) {
	binary.BigEndian.PutUint32(n[12:], uint32(i+1))
	return n
}

func packID(i int) (p id.Pack) {
	binary.BigEndian.PutUint32(p[12:], uint32(i+1))
	return p
}

// flat makes nodes that share nothing.
func flat(n int) []Node {
	out := make([]Node, n)
	for i := range out {
		out[i] = Node{ID: nodeID(i), Weight: 1, Labels: Labels{Host: fmt.Sprint("h", i)}}
	}
	return out
}

// grid makes zones x hosts x disks x dirs nodes of weight 1.
func grid(zones, hosts, disks, dirs int) []Node {
	var out []Node
	for z := range zones {
		for h := range hosts {
			for d := range disks {
				for range dirs {
					out = append(out, Node{ID: nodeID(len(out)), Weight: 1, Labels: Labels{
						Zone: fmt.Sprint("z", z), Host: fmt.Sprint("h", h), Disk: fmt.Sprint("d", d),
					}})
				}
			}
		}
	}
	return out
}

// topology draws up to most nodes in a small tree. Some are not up if states.
func topology(least, most int, states bool) *rapid.Generator[[]Node] {
	return rapid.Custom(func(t *rapid.T) []Node {
		n := rapid.IntRange(least, most).Draw(t, "nodes")
		wide := rapid.SliceOfN(rapid.IntRange(1, 4), int(levels), int(levels)).Draw(t, "widths")
		label := func(l Level) string {
			i := rapid.IntRange(0, wide[l]-1).Draw(t, l.String())
			if i == 0 {
				return "" // not labelled
			}
			return fmt.Sprint(l.String()[:1], i)
		}
		out := make([]Node, n)
		for i := range out {
			out[i] = Node{
				ID:     nodeID(i),
				Weight: rapid.SampledFrom([]float64{1, 1, 2, 0.1, 7}).Draw(t, "weight"),
				Labels: Labels{label(Zone), label(Rack), label(Host), label(Disk)},
			}
			if states {
				out[i].State = rapid.SampledFrom([]State{Up, Up, Up, Full, Leaving, Down}).Draw(t, "state")
			}
		}
		return out
	})
}

func only(nodes []Node, s State) (out []Node) {
	for _, n := range nodes {
		if n.State == s {
			out = append(out, n)
		}
	}
	return out
}

func ids(nodes []Node) (out []id.Node) {
	for _, n := range nodes {
		out = append(out, n.ID)
	}
	return out
}

func pick(nodes []Node, which []id.Node) (out []Node) {
	for _, n := range nodes {
		if slices.Contains(which, n.ID) {
			out = append(out, n)
		}
	}
	return out
}

// path is the slow way to name a domain.
func path(n Node, l Level) string {
	parts := []string{n.Zone, n.Rack, n.Host, n.Disk, n.ID.String()}
	return fmt.Sprintf("%q", parts[:l+1])
}

// fullest is how many of the nodes the fullest domain of a level holds.
func fullest(nodes []Node, l Level) (most int) {
	counts := map[string]int{}
	for _, n := range nodes {
		counts[path(n, l)]++
		most = max(most, counts[path(n, l)])
	}
	return most
}

// subsets calls f with every choice of n of the nodes.
func subsets(nodes []Node, n int, f func([]Node)) {
	chosen := make([]Node, 0, n)
	var walk func(from int)
	walk = func(from int) {
		if len(chosen) == n {
			f(chosen)
			return
		}
		for i := from; i <= len(nodes)-(n-len(chosen)); i++ {
			chosen = append(chosen, nodes[i])
			walk(i + 1)
			chosen = chosen[:len(chosen)-1]
		}
	}
	walk(0)
}

// hardest finds by trying everything the coarsest level at which n nodes can be
// chosen with at most bound in a domain; levels if there is none.
func hardest(nodes []Node, n, bound int) Level {
	for l := range levels {
		found := false
		subsets(nodes, n, func(s []Node) { found = found || fullest(s, l) <= bound })
		if found {
			return l
		}
	}
	return levels
}

func TestPlansKeepTheRules(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		all := topology(1, 9, true).Draw(t, "nodes")
		nodes := only(all, Up)
		m := rapid.IntRange(0, 3).Draw(t, "m")
		if len(nodes) <= m {
			return
		}
		n := rapid.IntRange(m+1, min(len(nodes), m+5)).Draw(t, "n")
		pack := id.Pack(rapid.SliceOfN(rapid.Byte(), 16, 16).Draw(t, "pack"))

		targets, spares, err := Plan(pack, all, n-m, m)
		if err != nil {
			t.Fatal(err)
		}
		got := slices.Concat(targets, spares)
		slices.SortFunc(got, compareID)
		if len(targets) != n || !slices.Equal(got, ids(nodes)) {
			t.Fatalf("%d targets and spares %v: want %d, and every node that is up once", len(targets), got, n)
		}

		chosen, bound := pick(all, targets), max(m, 1)
		hard := hardest(nodes, n, bound)
		for l := hard; l < levels; l++ {
			if f := fullest(chosen, l); f > bound {
				t.Fatalf("%d shards in one %v, at most %d are possible", f, l, bound)
			}
		}
		// Rule 2 by trying everything, level by level.
		keeps := func(s []Node) bool { return hard == levels || fullest(s, hard) <= bound }
		for l := range levels {
			for c := 1; ; c++ {
				before, limit := keeps, func(share int) int { return max(c, share) }
				now := func(s []Node) bool { return before(s) && withinShares(s, nodes, l, n, limit) }
				found := false
				subsets(nodes, n, func(s []Node) { found = found || now(s) })
				if found {
					keeps = now
					break
				}
			}
			if !keeps(chosen) {
				t.Fatalf("the spread over %vs is more uneven than needed", l)
			}
		}
	})
}

// withinShares says whether every domain of a level holds no more of s than the
// limit for its share of n by weight, rounded up.
func withinShares(s, all []Node, l Level, n int, limit func(share int) int) bool {
	total, weight, count := 0.0, map[string]float64{}, map[string]int{}
	for _, x := range all {
		total += x.Weight
		weight[path(x, l)] += x.Weight
	}
	for _, x := range s {
		count[path(x, l)]++
	}
	for d, c := range count {
		if c > limit(int(math.Ceil(float64(n)*weight[d]/total-1e-9))) {
			return false
		}
	}
	return true
}

// Two shards of a pack share a disk, a host or a zone only where they must.
func TestEqualDomainsShareEvenly(t *testing.T) {
	for _, tt := range []struct {
		zones, hosts, disks, dirs int
		k, m                      int
		most                      [levels]int
		want                      Survival
	}{
		{1, 1, 6, 2, 4, 2, [levels]int{6, 6, 6, 1}, Survival{2, 2, 0, 0, 0}},
		{1, 6, 1, 2, 4, 2, [levels]int{6, 6, 1, 1}, Survival{2, 2, 2, 0, 0}},
		{3, 3, 2, 2, 4, 2, [levels]int{2, 2, 1, 1}, Survival{2, 2, 2, 1, 1}},
		{3, 1, 4, 1, 4, 2, [levels]int{2, 2, 2, 1}, Survival{2, 2, 1, 1, 1}},
		{7, 1, 1, 3, 4, 2, [levels]int{1, 1, 1, 1}, Survival{2, 2, 2, 2, 2}},
		{2, 6, 2, 2, 4, 2, [levels]int{3, 3, 1, 1}, Survival{2, 2, 2, 0, 0}},
		{1, 1, 1, 8, 4, 2, [levels]int{6, 6, 6, 6}, Survival{2, 0, 0, 0, 0}},
		{1, 1, 1, 6, 4, 2, [levels]int{6, 6, 6, 6}, Survival{2, 0, 0, 0, 0}},
		{1, 1, 3, 2, 4, 2, [levels]int{6, 6, 6, 2}, Survival{2, 1, 0, 0, 0}},
		{3, 3, 3, 1, 8, 3, [levels]int{4, 4, 2, 1}, Survival{3, 3, 1, 0, 0}},
		{5, 1, 1, 2, 1, 2, [levels]int{1, 1, 1, 1}, Survival{2, 2, 2, 2, 2}},
		{1, 4, 1, 1, 3, 0, [levels]int{3, 3, 1, 1}, Survival{0, 0, 0, 0, 0}},
		{1, 3, 1, 4, 3, 0, [levels]int{3, 3, 1, 1}, Survival{0, 0, 0, 0, 0}},
	} {
		nodes := grid(tt.zones, tt.hosts, tt.disks, tt.dirs)
		p, err := NewPlanner(nodes, tt.k, tt.m)
		if err != nil {
			t.Fatal(err)
		}
		for i := range 200 {
			targets, _ := p.Plan(packID(i))
			for l := range levels {
				if f := fullest(pick(nodes, targets), l); f > tt.most[l] {
					t.Fatalf("%+v: pack %d has %d shards in one %v", tt, i, f, l)
				}
			}
			one := []Assignment{{tt.k, targets}}
			if got, _ := Survives(nodes, slices.Values(one)); got.Min(tt.want) != tt.want {
				t.Fatalf("%+v: pack %d survives %v", tt, i, got)
			}
		}
		if got, err := Promises(nodes, tt.k, tt.m); got != tt.want || err != nil {
			t.Errorf("%+v: promises %v, %v", tt, got, err)
		}
	}
}

// A zone that cannot be spread evenly without breaking a host's limit: the host
// comes first, because that is the loss that can be survived.
func TestAPromiseThatCanBeKeptComesFirst(t *testing.T) {
	var nodes []Node
	for i := range 4 {
		nodes = append(nodes, Node{ID: nodeID(i), Weight: 1, Labels: Labels{Zone: "a", Host: "one"}})
	}
	for i := 4; i < 12; i++ {
		nodes = append(nodes, Node{ID: nodeID(i), Weight: 1, Labels: Labels{Zone: "b", Host: fmt.Sprint("h", i)}})
	}
	for i := range 100 {
		targets, _, err := Plan(packID(i), nodes, 4, 2)
		if err != nil {
			t.Fatal(err)
		}
		if f := fullest(pick(nodes, targets), Host); f > 2 {
			t.Fatalf("pack %d: %d shards on one host", i, f)
		}
	}
}

func TestTheOrderOfNodesDoesNotMatter(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		nodes := topology(6, 14, true).Draw(t, "nodes")
		shuffled := rapid.Permutation(nodes).Draw(t, "shuffled")
		pack := id.Pack(rapid.SliceOfN(rapid.Byte(), 16, 16).Draw(t, "pack"))
		a1, s1, err1 := Plan(pack, nodes, 3, 2)
		a2, s2, err2 := Plan(pack, shuffled, 3, 2)
		if !slices.Equal(a1, a2) || !slices.Equal(s1, s2) || (err1 == nil) != (err2 == nil) {
			t.Fatalf("plans %v %v %v and %v %v %v", a1, s1, err1, a2, s2, err2)
		}
		if l1, l2 := LogNodes(nodes, 2), LogNodes(shuffled, 2); !slices.Equal(l1, l2) {
			t.Fatalf("log nodes %v and %v", l1, l2)
		}
		p1, _ := Promises(nodes, 3, 2)
		if p2, _ := Promises(shuffled, 3, 2); p1 != p2 {
			t.Fatalf("promises %v and %v", p1, p2)
		}
		if len(a1) > 0 {
			r1, err1 := Replace(pack, nodes, 3, 2, a1[1:], a1[:1])
			r2, err2 := Replace(pack, shuffled, 3, 2, a1[1:], a1[:1])
			if r1 != r2 || (err1 == nil) != (err2 == nil) {
				t.Fatalf("replacements %v %v and %v %v", r1, err1, r2, err2)
			}
		}
	})
}

// The ranking decides where data lies: a change of it moves everything at the
// next rebalance, so it does not change by accident.
func TestTheRankingOfTheFirstVersion(t *testing.T) {
	nodes := flat(8)
	nodes[3].Weight = 2.5
	for i, want := range [][]int{{2, 5, 3, 0, 1, 7, 6, 4}, {2, 5, 6, 1, 4, 3, 0, 7}} {
		targets, spares, err := Plan(packID(i), nodes, 3, 2)
		if err != nil {
			t.Fatal(err)
		}
		var got []int
		for _, n := range slices.Concat(targets, spares) {
			got = append(got, int(binary.BigEndian.Uint32(n[12:]))-1)
		}
		if !slices.Equal(got, want) {
			t.Errorf("pack %d: ranking %v, want %v", i, got, want)
		}
	}
}

// members plans packs and returns the sets of targets.
func members(t *testing.T, nodes []Node, packs, k, m int) []map[id.Node]bool {
	t.Helper()
	p, err := NewPlanner(nodes, k, m)
	if err != nil {
		t.Fatal(err)
	}
	out := make([]map[id.Node]bool, packs)
	for i := range out {
		targets, _ := p.Plan(packID(i))
		out[i] = map[id.Node]bool{}
		for _, n := range targets {
			out[i][n] = true
		}
	}
	return out
}

func TestANewNodeMovesItsShareOnly(t *testing.T) {
	const packs = 4000
	more := Node{ID: nodeID(1000), Weight: 1, Labels: Labels{Zone: "new", Host: "new"}}
	heavy := more
	heavy.Weight = 3
	for name, tt := range map[string]struct {
		nodes []Node
		added Node
		share float64 // of packs that get a shard on it
	}{
		"flat":           {flat(20), more, 6.0 / 21},
		"flat, heavy":    {flat(60), heavy, 0.2632},        // 1-(1-3/63)(1-3/62)...(1-3/58)
		"eight hosts":    {grid(1, 8, 2, 2), more, 0.2563}, // 1-(1-1/33)(1-1/29)...(1-1/13): one per host
		"three of seven": {flat(6), more, 6.0 / 7},
	} {
		before := members(t, tt.nodes, packs, 4, 2)
		after := members(t, append(slices.Clone(tt.nodes), tt.added), packs, 4, 2)
		moved := 0
		for i := range packs {
			left := 0
			for n := range before[i] {
				if !after[i][n] {
					left++
				}
			}
			switch {
			case left > 1:
				t.Fatalf("%s: pack %d moves %d shards for one new node", name, i, left)
			case left == 1 && !after[i][tt.added.ID]:
				t.Fatalf("%s: pack %d moves a shard between old nodes", name, i)
			}
			moved += left
		}
		got, sigma := float64(moved)/packs, math.Sqrt(tt.share*(1-tt.share)/packs)
		if math.Abs(got-tt.share) > 5*sigma {
			t.Errorf("%s: %.4f of the packs move a shard, want %.4f +- %.4f", name, got, tt.share, 5*sigma)
		}
	}
}

func TestALostNodeMovesItsShardsOnly(t *testing.T) {
	for name, nodes := range map[string][]Node{"flat": flat(20), "ten hosts": grid(1, 10, 2, 2)} {
		before, after := members(t, nodes, 2000, 4, 2), members(t, nodes[1:], 2000, 4, 2)
		for i := range before {
			for n := range before[i] {
				if n != nodes[0].ID && !after[i][n] {
					t.Fatalf("%s: pack %d leaves node %v, which is still there", name, i, n)
				}
			}
		}
	}
}

func TestLoadFollowsWeight(t *testing.T) {
	const packs = 20000
	nodes := grid(1, 60, 1, 1)
	total := 0.0
	for i := range nodes {
		nodes[i].Weight = float64(1 + i%3)
		total += nodes[i].Weight
	}
	p, err := NewPlanner(nodes, 2, 1)
	if err != nil {
		t.Fatal(err)
	}
	first, load, byWeight := map[id.Node]float64{}, map[id.Node]float64{}, map[float64]float64{}
	weight := map[id.Node]float64{}
	for _, n := range nodes {
		weight[n.ID] = n.Weight
	}
	for i := range packs {
		targets, _ := p.Plan(packID(i))
		first[targets[0]]++
		for _, n := range targets {
			load[n]++
			byWeight[weight[n]]++
		}
	}
	chi := 0.0 // the first in rank is exactly by weight: 59 degrees of freedom
	for _, n := range nodes {
		want := packs * n.Weight / total
		chi += (first[n.ID] - want) * (first[n.ID] - want) / want
	}
	if chi > 110 || chi < 25 { // 0.01 % of fair rankings lie outside each end
		t.Errorf("first in rank: chi-square %.1f of 59 degrees of freedom", chi)
	}
	for w, got := range byWeight {
		want := 3 * packs * 20 * w / total
		if math.Abs(got/want-1) > 0.04 {
			t.Errorf("nodes of weight %v hold %.0f shards, want %.0f within 4 %%", w, got, want)
		}
	}
	for _, n := range nodes {
		want := 3 * packs * n.Weight / total
		if got := load[n.ID]; math.Abs(got-want) > 5*math.Sqrt(want)+0.04*want {
			t.Errorf("node of weight %v holds %v shards, want %.0f", n.Weight, got, want)
		}
	}
}

// With few nodes only -ln(h)/w is exact: h/w alone would give the heavy node 5/6.
func TestRanksOfTwoNodes(t *testing.T) {
	const packs = 20000
	nodes := flat(2)
	nodes[1].Weight = 3
	heavy := 0
	for i := range packs {
		targets, _, err := Plan(packID(i), nodes, 1, 0)
		if err != nil {
			t.Fatal(err)
		}
		if targets[0] == nodes[1].ID {
			heavy++
		}
	}
	if got, sigma := float64(heavy)/packs, math.Sqrt(0.75*0.25/packs); math.Abs(got-0.75) > 5*sigma {
		t.Errorf("a node three times as heavy comes first in %.4f of the packs, want 0.75 +- %.4f", got, 5*sigma)
	}
}

// Limits per domain must not favour anybody where the domains are alike.
func TestLoadIsEvenUnderLimits(t *testing.T) {
	const packs = 20000
	nodes := grid(3, 2, 2, 1)
	load := map[id.Node]int{}
	for _, m := range members(t, nodes, packs, 4, 2) {
		for n := range m {
			load[n]++
		}
	}
	for n, got := range load {
		if want := packs / 2; math.Abs(float64(got-want)) > 5*math.Sqrt(packs/4) {
			t.Errorf("node %v holds %d shards, want %d", n, got, want)
		}
	}
}

func TestRefused(t *testing.T) {
	ok := flat(7)
	with := func(f func(n []Node)) []Node { n := slices.Clone(ok); f(n); return n }
	for name, tt := range map[string]struct {
		nodes []Node
		k, m  int
		want  error
	}{
		"no nodes":            {nil, 4, 2, ErrTooFew},
		"one short":           {ok[:5], 4, 2, ErrTooFew},
		"full ones are none":  {with(func(n []Node) { n[0].State, n[1].State = Full, Leaving }), 4, 2, ErrTooFew},
		"down ones are none":  {with(func(n []Node) { n[0].State, n[1].State = Down, Down }), 4, 2, ErrTooFew},
		"no weight":           {with(func(n []Node) { n[2].Weight = 0 }), 4, 2, ErrBadNode},
		"no weight, no spare": {with(func(n []Node) { n[2].Weight = 0 }), 5, 2, ErrBadNode},
		"negative":            {with(func(n []Node) { n[2].Weight = -1 }), 4, 2, ErrBadNode},
		"not a number":        {with(func(n []Node) { n[2].Weight = math.NaN() }), 4, 2, ErrBadNode},
		"infinite":            {with(func(n []Node) { n[2].Weight = math.Inf(1) }), 4, 2, ErrBadNode},
		"twice":               {with(func(n []Node) { n[2].ID = n[3].ID }), 4, 2, ErrBadNode},
		"twice, no spare":     {with(func(n []Node) { n[2].ID = n[3].ID }), 5, 2, ErrBadNode},
		"twice among many":    {append(flat(40), ok[0]), 4, 2, ErrBadNode},
		"no data":             {ok, 0, 2, nil},
		"negative losses":     {ok, 2, -1, nil},
	} {
		_, _, err := Plan(packID(1), tt.nodes, tt.k, tt.m)
		if err == nil || tt.want != nil && !errors.Is(err, tt.want) {
			t.Errorf("%s: %v, want %v", name, err, tt.want)
		}
		if _, err := Promises(tt.nodes, tt.k, tt.m); err == nil {
			t.Errorf("%s: a promise", name)
		}
	}
}

func TestWidth(t *testing.T) {
	for _, tt := range []struct{ up, k, m, want int }{
		{6, 4, 2, 4}, {5, 4, 2, 3}, {4, 4, 2, 2}, {3, 4, 2, 1}, {2, 4, 2, 0}, {0, 4, 2, 0},
		{100, 16, 4, 16}, {6, 1, 2, 1}, {1, 4, 0, 1}, {0, 4, 0, 0},
	} {
		if got := Width(tt.up, tt.k, tt.m); got != tt.want {
			t.Errorf("Width(%d, %d, %d) = %d, want %d", tt.up, tt.k, tt.m, got, tt.want)
		}
	}
}

func TestPlannersAreShared(t *testing.T) {
	p, err := NewPlanner(grid(3, 3, 2, 2), 4, 2)
	if err != nil {
		t.Fatal(err)
	}
	want, _ := p.Plan(packID(7))
	done := make(chan bool)
	for range 4 {
		go func() {
			same := true
			for i := range 200 {
				p.Plan(packID(i))
				got, _ := p.Plan(packID(7))
				same = same && slices.Equal(got, want)
			}
			done <- same
		}()
	}
	for range 4 {
		if !<-done {
			t.Error("two plans of one pack differ")
		}
	}
}

func TestPlansAreCheap(t *testing.T) {
	pack := packID(1)
	six := flat(6)
	twelve, err := NewPlanner(grid(3, 4, 1, 1), 4, 2)
	if err != nil {
		t.Fatal(err)
	}
	for name, tt := range map[string]struct {
		f    func()
		most float64
	}{
		"Plan, six nodes":            {func() { _, _, _ = Plan(pack, six, 4, 2) }, 2},
		"Planner.Plan, twelve nodes": {func() { twelve.Plan(pack) }, 2},
	} {
		if got := testing.AllocsPerRun(100, tt.f); got > tt.most {
			t.Errorf("%s: %v allocations, want at most %v", name, got, tt.most)
		}
	}
}

func TestStringsOfStatesAndLevels(t *testing.T) {
	var b bytes.Buffer
	for s := Up; s <= Down+1; s++ {
		fmt.Fprint(&b, s, " ")
	}
	for l := Zone; l <= levels; l++ {
		fmt.Fprint(&b, l, " ")
	}
	if got, want := b.String(), "up full leaving down State(4) zone rack host disk Level(4) "; got != want {
		t.Errorf("%q, want %q", got, want)
	}
}

func BenchmarkPlan(b *testing.B) {
	for _, n := range []int{6, 7, 12, 1000} {
		nodes := flat(n)
		if n == 1000 {
			nodes = grid(10, 10, 10, 1)
		}
		b.Run(fmt.Sprintf("nodes=%d", n), func(b *testing.B) {
			b.ReportAllocs()
			pack, i := packID(1), uint64(0)
			for b.Loop() {
				i++
				binary.LittleEndian.PutUint64(pack[:], i)
				if _, _, err := Plan(pack, nodes, 4, 2); err != nil {
					b.Fatal(err)
				}
			}
		})
		b.Run(fmt.Sprintf("planner,nodes=%d", n), func(b *testing.B) {
			p, err := NewPlanner(nodes, 4, 2)
			if err != nil {
				b.Fatal(err)
			}
			b.ReportAllocs()
			pack, i := packID(1), uint64(0)
			for b.Loop() {
				i++
				binary.LittleEndian.PutUint64(pack[:], i)
				p.Plan(pack)
			}
		})
	}
}

func BenchmarkReplace(b *testing.B) {
	nodes := grid(3, 4, 1, 1)
	targets, _, err := Plan(packID(1), nodes, 4, 2)
	if err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	for b.Loop() {
		if _, err := Replace(packID(1), nodes, 4, 2, targets[1:], targets[:1]); err != nil {
			b.Fatal(err)
		}
	}
}

func shuffle[T any](seed uint64, s []T) []T {
	s = slices.Clone(s)
	rand.New(rand.NewPCG(seed, 0)).Shuffle(len(s), func(i, j int) { s[i], s[j] = s[j], s[i] })
	return s
}
