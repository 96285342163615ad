package placement

import (
	"fmt"
	"iter"
	"slices"

	"cairn/id"
)

// Survival says how many losses of a kind, any of them and one kind at a time,
// leave everything readable. -1 means that something cannot be read already.
type Survival struct {
	Nodes, Disks, Hosts, Racks, Zones int
}

func (s Survival) String() string {
	return fmt.Sprintf("nodes %d, disks %d, hosts %d, racks %d, zones %d", s.Nodes, s.Disks, s.Hosts, s.Racks, s.Zones)
}

// Min is what both survive.
func (s Survival) Min(o Survival) Survival {
	return Survival{
		Nodes: min(s.Nodes, o.Nodes), Disks: min(s.Disks, o.Disks), Hosts: min(s.Hosts, o.Hosts),
		Racks: min(s.Racks, o.Racks), Zones: min(s.Zones, o.Zones),
	}
}

// Assignment is where a pack is.
type Assignment struct {
	K       int       // shards that are needed to read it
	Holders []id.Node // of the shards that are there, one entry for each
}

// Survives returns what the worst placed of the packs survives, and how many
// packs there were; of none it says nothing. A shard on a node that is [Down] or
// not among nodes does not count. Weights do not matter. The slices of an
// Assignment may be used again for the next.
func Survives(nodes []Node, packs iter.Seq[Assignment]) (worst Survival, count int) {
	chosen := make([]*Node, 0, len(nodes))
	for i := range nodes {
		if nodes[i].State != Down {
			chosen = append(chosen, &nodes[i])
		}
	}
	placed, _ := plant(nil, chosen)
	at := make(map[id.Node]int32, len(placed))
	for i := range placed {
		at[placed[i].id] = int32(i)
	}
	var held, domains []int32
	for a := range packs {
		held = held[:0]
		for _, h := range a.Holders {
			if i, ok := at[h]; ok {
				held = append(held, i)
			}
		}
		// spared is how many of them may go.
		spared := len(held) - a.K
		level := func(l Level) int {
			domains = append(domains[:0], held...)
			if l < levels {
				for i, h := range held {
					domains[i] = placed[h].domain[l]
				}
			}
			return losses(tally(domains), spared)
		}
		s := Survival{Nodes: level(levels), Disks: level(Disk), Hosts: level(Host), Racks: level(Rack), Zones: level(Zone)}
		if count == 0 {
			worst = s
		}
		worst = worst.Min(s)
		count++
	}
	return worst, count
}

// tally turns a list of domains into how often each is in it, in place.
func tally(domains []int32) []int32 {
	slices.Sort(domains)
	out := domains[:0]
	for i := 0; i < len(domains); {
		j := i
		for j < len(domains) && domains[j] == domains[i] {
			j++
		}
		out = append(out, int32(j-i)) // at most i entries so far
		i = j
	}
	return out
}

// losses is how many domains, the fullest first, hold no more than spared shards
// together: then any as many do.
func losses(counts []int32, spared int) int {
	if spared < 0 {
		return -1
	}
	slices.Sort(counts)
	for n := range counts {
		spared -= int(counts[len(counts)-1-n])
		if spared < 0 {
			return n
		}
	}
	return len(counts)
}

// Promises returns what every pack of k data and m parity shards survives at
// least that a [Planner] places on the nodes now, before there is one. When the
// pack fills all nodes this is exact.
func Promises(nodes []Node, k, m int) (Survival, error) {
	p, err := newPlanner(nodes, k, m)
	if err != nil {
		return Survival{}, err
	}
	if p.tree == nil {
		chosen := make([]*Node, 0, p.n)
		for i := range nodes {
			if nodes[i].State == Up {
				chosen = append(chosen, &nodes[i])
			}
		}
		_, p.tree = plant(nil, chosen)
	}
	most, _ := p.tree.holds(nil)
	level := func(l Level) int {
		return losses(slices.Clone(most[p.tree.start[l]:p.tree.start[l+1]]), m)
	}
	return Survival{Nodes: m, Disks: level(Disk), Hosts: level(Host), Racks: level(Rack), Zones: level(Zone)}, nil
}
