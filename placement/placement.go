// Package placement decides which node should hold what, and says what a
// placement survives. It only computes: plans go in and out as plain values,
// nothing is contacted, no clock is read and no chance is involved.
//
// Nodes are ranked per pack by weighted rendezvous hashing: Thaler and
// Ravishankar, "Using name-based mappings to increase hit rates" (IEEE/ACM
// Transactions on Networking, 1998), in the weighted form -w/ln(h) that
// Schindelhauer and Schomaker analyse ("Weighted distributed hash tables", SPAA
// 2005). Down that ranking the first nodes are taken that the failure domains
// allow. The same nodes in any order give the same plan. A plan is recorded
// where it is carried out; nothing is ever found again by computing it, so
// ranks need to be reproducible on one build only, and are.
//
// # Failure domains
//
// Labels form a tree: disks in hosts in racks in zones. A domain is named by its
// whole path, so disk "sda" of host a is not disk "sda" of host b. An empty
// label is a label like others: nodes that do not say where they stand are
// thought to stand together.
//
// For a pack of k data and m parity shards the rules are, in this order:
//
//  1. at most m shards in one domain of the coarsest level at which the nodes
//     allow that, and with it in every finer domain: losing one loses no data;
//  2. from coarse to fine, no domain holds more than its share of the shards by
//     weight, rounded up; where that leaves too few places, more by the smallest
//     number that does: two disks, hosts or zones share shards of a pack only
//     where they must, so more than one loss is survived where possible, and an
//     outage hits as little of a pack as it can.
//
// Rule 2 goes by weight because the most even spread in numbers would put a
// shard of every pack on the one node of a new zone, and survive no more by it.
// With m = 0 rule 1 reads "at most one".
//
// A [Planner] never changes and may be used by many goroutines at the same time.
// Slices that are returned belong to the caller, slices handed in are only read.
package placement

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"math"
	"math/bits"
	"slices"

	"cairn/id"
)

// Sentinels, wrapped with the numbers.
var (
	// ErrTooFew says that there are fewer nodes to choose from than are needed.
	ErrTooFew = errors.New("placement: too few nodes")
	// ErrBadNode says that two nodes have one ID, or that a weight is not a
	// finite number above zero.
	ErrBadNode = errors.New("placement: not a node to place on")
)

// State says what may be expected of a node.
type State uint8

const (
	Up      State = iota // holds shards and takes new ones
	Full                 // holds shards, takes no new ones for now
	Leaving              // is being drained: holds shards, takes no new ones
	Down                 // cannot be asked; its shards do not count
)

func (s State) String() string {
	if int(s) < len(stateNames) {
		return stateNames[s]
	}
	return fmt.Sprintf("State(%d)", uint8(s))
}

var stateNames = [...]string{"up", "full", "leaving", "down"}

// Labels say where a node stands, from coarse to fine.
type Labels struct {
	Zone, Rack, Host, Disk string
}

// Node is a candidate.
type Node struct {
	ID     id.Node
	Weight float64 // capacity in any unit, the same for all nodes; above zero
	Labels
	State State
}

// Level is a kind of failure domain, from coarse to fine.
type Level uint8

const (
	Zone Level = iota
	Rack
	Host
	Disk
	levels // domains above the node itself
)

func (l Level) String() string {
	if int(l) < len(levelNames) {
		return levelNames[l]
	}
	return fmt.Sprintf("Level(%d)", uint8(l))
}

var levelNames = [...]string{"zone", "rack", "host", "disk"}

// compareTo compares the paths of two nodes down to a level.
func (a *Labels) compareTo(b *Labels, l Level) int {
	c := cmp.Compare(a.Zone, b.Zone)
	if c == 0 && l >= Rack {
		c = cmp.Compare(a.Rack, b.Rack)
	}
	if c == 0 && l >= Host {
		c = cmp.Compare(a.Host, b.Host)
	}
	if c == 0 && l >= Disk {
		c = cmp.Compare(a.Disk, b.Disk)
	}
	return c
}

// Width is k', the data shards of a new pack when up nodes take shards, k is
// asked for and m losses are to be survived: min(k, up-m), or 0 when there are
// too few nodes to write at all.
func Width(up, k, m int) int { return max(min(k, up-m), 0) }

// Plan ranks the nodes that take shards, see [Planner.Plan]. A caller with many
// packs for the same nodes keeps a [Planner].
func Plan(pack id.Pack, nodes []Node, k, m int) (targets, spares []id.Node, err error) {
	p, err := newPlanner(nodes, k, m)
	if err != nil {
		return nil, nil, err
	}
	targets, spares = p.Plan(pack)
	return targets, spares, nil
}

// Planner plans packs of one k and m for one set of nodes.
type Planner struct {
	n     int // k+m
	nodes []candidate
	tree  *tree // nil when every candidate is taken anyway
}

// candidate is what ranking needs to know of a node.
type candidate struct {
	id     id.Node
	seed   [2]uint64 // from the ID
	weight float64
	domain [levels]int32 // its domains in the tree
}

// NewPlanner prepares plans for packs of k data and m parity shards on those of
// the nodes that are [Up]. Fewer than k+m of them are [ErrTooFew]: see [Width].
func NewPlanner(nodes []Node, k, m int) (*Planner, error) {
	p, err := newPlanner(nodes, k, m)
	if err != nil {
		return nil, err
	}
	return &p, nil
}

func newPlanner(nodes []Node, k, m int) (Planner, error) {
	if err := checkCode(k, m); err != nil {
		return Planner{}, err
	}
	up := 0
	for i := range nodes {
		if nodes[i].State == Up {
			up++
		}
	}
	if up < k+m {
		return Planner{}, fmt.Errorf("%w: %d take shards, %d+%d are needed", ErrTooFew, up, k, m)
	}
	p := Planner{n: k + m, nodes: make([]candidate, 0, up)}
	if up == p.n { // no choice: no domain needs a thought
		for i := range nodes {
			if nodes[i].State == Up {
				p.nodes = append(p.nodes, newCandidate(&nodes[i]))
			}
		}
		return p, p.check()
	}
	chosen := make([]*Node, 0, up)
	for i := range nodes {
		if nodes[i].State == Up {
			chosen = append(chosen, &nodes[i])
		}
	}
	p.nodes, p.tree = plant(p.nodes, chosen)
	if err := p.check(); err != nil {
		return Planner{}, err
	}
	p.tree.limit(p.n, m)
	return p, nil
}

func checkCode(k, m int) error {
	if k < 1 || m < 0 {
		return fmt.Errorf("placement: a pack of %d+%d shards, want at least 1+0", k, m)
	}
	return nil
}

func newCandidate(n *Node) candidate {
	return candidate{id: n.ID, seed: seed(n.ID), weight: n.Weight}
}

// check refuses what would make a plan that is none.
func (p *Planner) check() error {
	for i := range p.nodes {
		if w := p.nodes[i].weight; !(w > 0) || math.IsInf(w, 1) {
			return fmt.Errorf("%w: node %v has weight %v", ErrBadNode, p.nodes[i].id, w)
		}
	}
	if twice, ok := duplicate(p.nodes); ok {
		return fmt.Errorf("%w: node %v is there twice", ErrBadNode, twice)
	}
	return nil
}

func duplicate(nodes []candidate) (id.Node, bool) {
	if len(nodes) <= 16 { // cheaper than a map
		for i := range nodes {
			for j := range i {
				if nodes[i].id == nodes[j].id {
					return nodes[i].id, true
				}
			}
		}
		return id.Node{}, false
	}
	seen := make(map[id.Node]struct{}, len(nodes))
	for i := range nodes {
		if _, ok := seen[nodes[i].id]; ok {
			return nodes[i].id, true
		}
		seen[nodes[i].id] = struct{}{}
	}
	return id.Node{}, false
}

// Plan returns the nodes for shards 0 to k+m-1, all different, and the other
// candidates in order of rank. Not every spare may stand in for every target:
// [Replace] chooses the one that keeps to the rules.
func (p *Planner) Plan(pack id.Pack) (targets, spares []id.Node) {
	var few [12]ranked
	order := p.rank(few[:0], pack)
	out := make([]id.Node, len(order))
	if p.tree == nil {
		for i, r := range order {
			out[i] = p.nodes[r.at].id
		}
		return out[:p.n:p.n], out[p.n:]
	}
	room := p.tree.room()
	t, s := 0, p.n
	for _, r := range order {
		c := &p.nodes[r.at]
		if t < p.n && room.fits(c) {
			room.add(c)
			out[t] = c.id
			t++
			continue
		}
		out[s] = c.id // never past the end: all p.n targets are found, see tree
		s++
	}
	return out[:p.n:p.n], out[p.n:]
}

// ranked is a node's place in the ranking of one pack: smaller keys first.
type ranked struct {
	key float64
	at  int32
}

// rank sorts all candidates. The key of a node is -ln(h)/w for a hash h in (0,1)
// of pack and node: the first of independent exponential clocks that run at rate
// w, so a node comes first with probability w over the sum of all.
func (p *Planner) rank(dst []ranked, pack id.Pack) []ranked {
	s := seed(pack)
	dst = slices.Grow(dst, len(p.nodes))
	for i := range p.nodes {
		c := &p.nodes[i]
		dst = append(dst, ranked{-math.Log(uniform(s, c.seed)) / c.weight, int32(i)})
	}
	slices.SortFunc(dst, func(a, b ranked) int {
		switch {
		case a.key < b.key:
			return -1
		case a.key > b.key:
			return 1
		}
		return compareID(p.nodes[a.at].id, p.nodes[b.at].id)
	})
	return dst
}

// seed takes two words from an ID and mixes them, so that IDs that differ little
// (tests number them) are as good as random ones.
func seed[T ~[16]byte](v T) [2]uint64 {
	lo, hi := word(v[:8]), word(v[8:])
	lo = mix(lo + 0x9e3779b97f4a7c15)
	return [2]uint64{lo, mix(hi ^ bits.RotateLeft64(lo, 32))}
}

func compareID(a, b id.Node) int { return bytes.Compare(a[:], b[:]) }

func word(b []byte) (w uint64) {
	for i, x := range b[:8] {
		w |= uint64(x) << (8 * i)
	}
	return w
}

// uniform hashes a pack and a node to a number in (0, 1), neither end included.
func uniform(p, n [2]uint64) float64 {
	h := mix(mix(p[0]^bits.RotateLeft64(n[1], 21)) + p[1] ^ n[0])
	return (float64(h>>11) + 0.5) * 0x1p-53
}

// mix is the finaliser of SplitMix64 (Steele, Lea and Flood, "Fast splittable
// pseudorandom number generators", OOPSLA 2014).
func mix(z uint64) uint64 {
	z = (z ^ z>>30) * 0xbf58476d1ce4e5b9
	z = (z ^ z>>27) * 0x94d049bb133111eb
	return z ^ z>>31
}
