package placement

import (
	"cmp"
	"math"
	"slices"
)

// tree is the failure domains of a set of candidates, with the most shards of
// one pack that each may hold.
//
// The limits of nested domains make the allowed sets of nodes the independent
// sets of a laminar matroid. Hence taking nodes down any ranking, skipping those
// that would break a limit, never runs into a dead end: it finds as many as
// there can be (a matroid's bases have one size; Edmonds, "Matroids and the
// greedy algorithm", 1971). So it is enough to know that number, which [tree.holds]
// counts from the leaves up, and to choose limits under which it is k+m. Nor does
// it matter how badly fewer than k+m nodes were chosen before, perhaps for other
// limits: some zone then holds less than can be chosen in it, in that some rack,
// and so on down to a node, and none of its domains is at its limit.
type tree struct {
	start  [levels + 1]int32 // the domains of level l are start[l] to start[l+1]
	parent []int32           // of the coarser level; -1 for zones
	size   []int32           // of disks: the nodes on them
	weight []float64         // of the nodes inside
	limits []int32
	total  float64

	bound int32 // what no domain of level hard and below exceeds: max(m, 1)
	hard  Level // the coarsest level at which that can be had; levels if none
}

const unlimited = math.MaxInt32

// plant sorts nodes by their paths, appends them to dst as candidates, and
// numbers the domains.
func plant(dst []candidate, nodes []*Node) ([]candidate, *tree) {
	slices.SortFunc(nodes, func(a, b *Node) int {
		return cmp.Or(a.compareTo(&b.Labels, Disk), compareID(a.ID, b.ID))
	})
	for _, n := range nodes {
		dst = append(dst, newCandidate(n))
	}
	t := &tree{hard: levels}
	for l := range levels {
		t.start[l] = int32(len(t.parent))
		for i, n := range nodes {
			if i == 0 || n.compareTo(&nodes[i-1].Labels, l) != 0 {
				up := int32(-1)
				if l > Zone {
					up = dst[i].domain[l-1]
				}
				t.parent = append(t.parent, up)
			}
			dst[i].domain[l] = int32(len(t.parent) - 1)
		}
	}
	t.start[levels] = int32(len(t.parent))
	t.size = make([]int32, len(t.parent))
	t.limits = make([]int32, len(t.parent))
	t.weight = make([]float64, len(t.parent))
	for i := range dst {
		t.size[dst[i].domain[Disk]]++
		t.total += dst[i].weight // in the order of paths, so the sum is one sum
		for _, d := range dst[i].domain {
			t.weight[d] += dst[i].weight
		}
	}
	for i := range t.limits {
		t.limits[i] = unlimited
	}
	return dst, t
}

// holds returns for each domain how many nodes can be chosen in it at most, and
// how many in all.
func (t *tree) holds(dst []int32) ([]int32, int) {
	if dst == nil {
		dst = make([]int32, len(t.parent))
	}
	copy(dst, t.size)
	all := 0
	for d := len(dst) - 1; d >= 0; d-- { // finer levels have higher numbers
		dst[d] = min(dst[d], t.limits[d])
		if up := t.parent[d]; up >= 0 {
			dst[up] += dst[d]
		} else {
			all += int(dst[d])
		}
	}
	return dst, all
}

// limit sets the limits for packs of n shards of which m may be lost, by the
// rules in the package comment. There are at least n candidates.
func (t *tree) limit(n, m int) {
	t.bound = int32(max(m, 1))
	scratch := make([]int32, len(t.parent))
	enough := func() bool {
		_, all := t.holds(scratch)
		return all >= n
	}
	for l := range levels { // rule 1
		t.set(l, func(int32) int32 { return t.bound })
		if enough() {
			t.hard = l
			break
		}
		t.set(l, func(int32) int32 { return unlimited })
	}
	for l := range levels { // rule 2
		most := int32(n)
		if l >= t.hard {
			most = t.bound
		}
		even := func(c int32) func(int32) int32 {
			return func(d int32) int32 { return min(max(c, t.share(d, n)), most) }
		}
		// The smallest c that leaves enough; the largest does.
		c := 1 + int32(searchFirst(int(most)-1, func(i int) bool {
			t.set(l, even(1+int32(i)))
			return enough()
		}))
		t.set(l, even(c))
	}
}

// searchFirst returns the first i in [0, n) for which ok, n if there is none. ok
// is monotonous; 0 is tried first, being the usual answer.
func searchFirst(n int, ok func(int) bool) int {
	if n == 0 || ok(0) {
		return 0
	}
	lo, hi := 1, n
	for lo < hi {
		if mid := (lo + hi) / 2; ok(mid) {
			hi = mid
		} else {
			lo = mid + 1
		}
	}
	return lo
}

// share is what a domain would hold of n shards by weight, rounded up; a sum of
// weights that is off in its last digits does not count.
func (t *tree) share(d int32, n int) int32 {
	return int32(math.Ceil(float64(n)*t.weight[d]/t.total - 1e-9))
}

func (t *tree) set(l Level, limit func(d int32) int32) {
	for d := t.start[l]; d < t.start[l+1]; d++ {
		t.limits[d] = limit(d)
	}
}

// room counts what the domains hold of one pack.
type room struct {
	t    *tree
	used []int32
}

func (t *tree) room() room { return room{t, make([]int32, len(t.parent))} }

// fits says whether no domain of a node is at its limit.
func (r *room) fits(c *candidate) bool {
	for _, d := range c.domain {
		if r.used[d] >= r.t.limits[d] {
			return false
		}
	}
	return true
}

func (r *room) add(c *candidate) {
	for _, d := range c.domain {
		r.used[d]++
	}
}
