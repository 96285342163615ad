package placement

import (
	"cmp"
	"fmt"
	"slices"

	"cairn/id"
)

// Replace chooses the node that takes over one shard of a pack: the first in
// rank that, beside the nodes to keep, is within the rules for the nodes that are
// left. keep are the nodes that hold or are being sent the pack's other shards,
// fewer than k+m and of any state; failed are not asked again, whatever nodes
// says of them. k and m are those of the pack. With nobody left the error wraps
// [ErrTooFew].
//
// When several shards need a new node, call it for one after the other, the
// nodes chosen so far among keep.
func Replace(pack id.Pack, nodes []Node, k, m int, keep, failed []id.Node) (id.Node, error) {
	if err := checkCode(k, m); err != nil {
		return id.Node{}, err
	}
	if len(keep) >= k+m {
		return id.Node{}, fmt.Errorf("placement: %d nodes are kept of a pack of %d+%d shards, none is left to replace", len(keep), k, m)
	}
	var chosen []*Node
	free := 0
	for i := range nodes {
		n := &nodes[i]
		switch {
		case slices.Contains(keep, n.ID):
		case n.State == Up && !slices.Contains(failed, n.ID):
			free++
		default:
			continue
		}
		chosen = append(chosen, n)
	}
	if free == 0 {
		return id.Node{}, fmt.Errorf("%w: nobody is left to take a shard of pack %v, which has %d nodes and lost %d", ErrTooFew, pack, len(keep), len(failed))
	}
	p := Planner{n: min(k+m, len(chosen))}
	p.nodes, p.tree = plant(nil, chosen)
	if err := p.check(); err != nil {
		return id.Node{}, err
	}
	p.tree.limit(p.n, m)

	room := p.tree.room()
	for i := range p.nodes {
		if slices.Contains(keep, p.nodes[i].id) {
			room.add(&p.nodes[i])
		}
	}
	for _, r := range p.rank(nil, pack) {
		if c := &p.nodes[r.at]; room.fits(c) && !slices.Contains(keep, c.id) {
			return c.id, nil
		}
	}
	panic("placement: limits that leave no room") // see tree
}

// MaxLogNodes is how many nodes keep the log when there are more.
const MaxLogNodes = 9

// LogNodes returns the nodes that may hold log packs, ordered by ID: all up to
// nine, else nine in as many domains as possible, none of which holds more than
// m where the topology allows. Nodes that are leaving are none of them; other
// states and weights do not matter, being a member is not being up. A node that
// joins or goes changes little else: the choice is by rank.
func LogNodes(nodes []Node, m int) []id.Node {
	var members []*Node
	for i := range nodes {
		if nodes[i].State != Leaving {
			equal := nodes[i]
			equal.Weight = 1
			members = append(members, &equal)
		}
	}
	byID := func(a, b *Node) int { return compareID(a.ID, b.ID) }
	slices.SortFunc(members, byID)
	members = slices.CompactFunc(members, func(a, b *Node) bool { return a.ID == b.ID })
	out := make([]id.Node, 0, min(len(members), MaxLogNodes))
	if len(members) <= MaxLogNodes {
		for _, n := range members {
			out = append(out, n.ID)
		}
		return out
	}
	p := Planner{n: MaxLogNodes}
	p.nodes, p.tree = plant(nil, members)
	p.tree.limit(p.n, m)
	room := p.tree.room()
	order := p.rank(nil, id.Pack{})
	for len(out) < MaxLogNodes {
		// The next is in the zone with the fewest so far, there in the rack with
		// the fewest, and so on. That cannot lead into a dead end: see tree.
		best := -1
		for i, r := range order {
			c := &p.nodes[r.at]
			if !room.fits(c) {
				continue
			}
			if best < 0 || room.compare(c, &p.nodes[order[best].at]) < 0 {
				best = i
			}
		}
		c := &p.nodes[order[best].at]
		room.add(c)
		out = append(out, c.id)
		order = slices.Delete(order, best, best+1)
	}
	slices.SortFunc(out, compareID)
	return out
}

// compare orders nodes by how many of the pack are near them, from coarse to fine.
func (r *room) compare(a, b *candidate) int {
	for l := range levels {
		if c := cmp.Compare(r.used[a.domain[l]], r.used[b.domain[l]]); c != 0 {
			return c
		}
	}
	return 0
}

// Move says that a shard goes from one node to another.
type Move struct {
	Shard    int
	From, To id.Node // From is zero when the shard has to be rebuilt
}

// Moves says how the shards of a pack get from where they are to the nodes of a
// plan with as few moves as possible. have[i] is the node of shard i, zero when
// it is missing; want are the nodes of the plan, as many and all different. Which
// shard a node holds does not matter, so one that is in both keeps its shard (the
// first, should it have two).
func Moves(have, want []id.Node) ([]Move, error) {
	if len(have) != len(want) {
		return nil, fmt.Errorf("placement: a plan of %d nodes for %d shards", len(want), len(have))
	}
	free := slices.Clone(want)
	var moves []Move
	for i, n := range have {
		if at := slices.Index(free, n); at >= 0 && n != (id.Node{}) {
			free = slices.Delete(free, at, at+1)
			continue
		}
		moves = append(moves, Move{Shard: i, From: n})
	}
	for i := range moves {
		moves[i].To = free[i]
	}
	return moves, nil
}
