package placement

import (
	"fmt"
	"math"
	"slices"

	"cairn/id"
)

// Slack is how far apart, as a part of the mean, two nodes may stay that could even
// out what they hold: a move that gains less is not worth its bytes.
const Slack = 0.02

// Balance moves shards between nodes so that what they hold follows their weights.
//
// The fill of a node is what it holds divided by its weight. A shard moves only where
// that makes the two fills more equal by more than [Slack], so each move makes the sum
// of the squares of what nodes hold, each divided by its weight, smaller by more than a
// fixed part of the bytes moved: it ends, and moves little. A shard never moves into a
// domain that the rules in the package comment leave no room in. Where more than m
// shards are in one domain though that could be had otherwise, as with packs that are
// older than the nodes of other domains, the surplus moves first, whatever the fills:
// no move makes such a surplus, so that ends too.
//
// Who goes through all packs begins with moves from nodes that are fuller than the mean
// to such that are emptier, and when there are none left calls [Balance.Relax]: a node
// that can never be as full as its weight says, for a pack gives it one shard, would
// else be emptied by the first packs and filled again by the last.
//
// A Balance belongs to one goroutine.
type Balance struct {
	nodes   []Node // as given
	at      map[id.Node]int
	held    []int64 // bytes, by node
	mean    float64 // fill
	relaxed bool
	codes   map[[2]int]*rules
}

// rules are the limits for packs of one code.
type rules struct {
	tree *tree
	of   []*candidate // by node
}

// NewBalance begins with what each node holds, in bytes; nodes that are not there hold
// nothing. Shards move to nodes that are [Up], from those that are Up or [Full]; those
// on others stay and count in their domains.
func NewBalance(nodes []Node, held map[id.Node]int64) (*Balance, error) {
	b := &Balance{nodes: slices.Clone(nodes), at: make(map[id.Node]int, len(nodes)), held: make([]int64, len(nodes)), codes: map[[2]int]*rules{}}
	sum, weight := int64(0), 0.0
	for i, n := range b.nodes {
		if !(n.Weight > 0) || math.IsInf(n.Weight, 1) {
			return nil, fmt.Errorf("%w: node %v has weight %v", ErrBadNode, n.ID, n.Weight)
		}
		if _, twice := b.at[n.ID]; twice {
			return nil, fmt.Errorf("%w: node %v is there twice", ErrBadNode, n.ID)
		}
		b.at[n.ID], b.held[i] = i, held[n.ID]
		if n.State == Up || n.State == Full {
			sum, weight = sum+b.held[i], weight+n.Weight
		}
	}
	if weight > 0 {
		b.mean = float64(sum) / weight
	}
	return b, nil
}

// Clone is a balance of its own, which begins where b is.
func (b *Balance) Clone() *Balance {
	c := *b
	c.held, c.codes = slices.Clone(b.held), map[[2]int]*rules{}
	return &c
}

// Held is what a node holds after the moves.
func (b *Balance) Held(n id.Node) int64 {
	if i, ok := b.at[n]; ok {
		return b.held[i]
	}
	return 0
}

// Relax lets shards move between any two nodes from now on. It reports false when they
// do already.
func (b *Balance) Relax() bool {
	was := b.relaxed
	b.relaxed = true
	return !was
}

// Undo takes a move back that was not carried out; size is the shard's.
func (b *Balance) Undo(v Move, size int64) {
	b.held[b.at[v.From]] += size
	b.held[b.at[v.To]] -= size
}

// Moves says which shards of a pack are to move, each once, and takes the moves for
// done. have[i] is the node of shard i, zero when it is missing; all are different. size
// is how many bytes each shard has. A shard goes only to a node that may says it can.
func (b *Balance) Moves(k, m int, size int64, have []id.Node, may func(id.Node) bool) ([]Move, error) {
	r, err := b.rules(k, m)
	if err != nil || r == nil {
		return nil, err
	}
	var (
		out     []Move
		room    = r.tree.room()
		on      = make([]int, len(have)) // by shard; -1: on no node, or it stays
		holds   = make([]bool, len(b.nodes))
		takes   []int
		leaving = func(s State) bool { return s != Up && s != Full }
	)
	for i, n := range have {
		at, ok := b.at[n]
		if on[i] = at; !ok {
			on[i] = -1
			continue
		}
		room.add(r.of[at])
		if holds[at] = true; leaving(b.nodes[at].State) {
			on[i] = -1
		}
	}
	for i := range b.nodes {
		if b.nodes[i].State == Up && !holds[i] && may(b.nodes[i].ID) {
			takes = append(takes, i)
		}
	}
	for {
		shard, at := b.best(r, &room, size, on, takes)
		if shard < 0 {
			return out, nil
		}
		from, to := on[shard], takes[at]
		room.remove(r.of[from])
		room.add(r.of[to])
		b.held[from] -= size
		b.held[to] += size
		on[shard], takes = -1, slices.Delete(takes, at, at+1)
		out = append(out, Move{Shard: shard, From: b.nodes[from].ID, To: b.nodes[to].ID})
	}
}

// best is the move that gains most: of which shard, and to which of those that take
// any. -1: none is worth it.
func (b *Balance) best(r *rules, room *room, size int64, on, takes []int) (shard, at int) {
	shard = -1
	most, surplus := Slack*b.mean, false
	for i, from := range on {
		if from < 0 {
			continue
		}
		fill := b.fill(from, -size)
		for j, to := range takes {
			fits, relieves := room.moves(r.of[from], r.of[to])
			if !fits || surplus && !relieves {
				continue
			}
			taken := b.fill(to, size)
			gain := fill - taken
			if !relieves && !b.relaxed && (fill <= b.mean || taken >= b.mean) {
				continue
			}
			if relieves && !surplus || gain > most {
				shard, at, most, surplus = i, j, gain, relieves
			}
		}
	}
	return shard, at
}

// fill is a node's in the middle of a move of so many bytes.
func (b *Balance) fill(i int, size int64) float64 {
	return (float64(b.held[i]) + float64(size)/2) / b.nodes[i].Weight
}

// rules returns the limits for a code, nil when there are too few nodes for it.
func (b *Balance) rules(k, m int) (*rules, error) {
	if r, ok := b.codes[[2]int{k, m}]; ok {
		return r, nil
	}
	if err := checkCode(k, m); err != nil {
		return nil, err
	}
	var r *rules
	if len(b.nodes) >= k+m {
		chosen := make([]*Node, len(b.nodes))
		for i := range b.nodes {
			chosen[i] = &b.nodes[i]
		}
		cs, t := plant(nil, chosen)
		t.limit(k+m, m)
		r = &rules{tree: t, of: make([]*candidate, len(cs))}
		for i := range cs {
			r.of[b.at[cs[i].id]] = &cs[i]
		}
	}
	b.codes[[2]int{k, m}] = r
	return r, nil
}

// moves says whether a shard may go from one node to another, and whether one of the
// domains that it leaves holds more than may be lost.
func (r *room) moves(from, to *candidate) (fits, relieves bool) {
	for l := range levels {
		f, t := from.domain[l], to.domain[l]
		if f == t {
			continue
		}
		if r.used[t] >= r.t.limits[t] {
			return false, false
		}
		relieves = relieves || l >= r.t.hard && r.used[f] > r.t.bound
	}
	return true, relieves
}

func (r *room) remove(c *candidate) {
	for _, d := range c.domain {
		r.used[d]--
	}
}
