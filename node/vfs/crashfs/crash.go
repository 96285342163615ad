package crashfs

import (
	"maps"
	"math/bits"
	"math/rand/v2"
	"slices"
)

// manner is how a power cut chooses among what was not durable. The extremes
// and the orderly prefix stand beside plain chance, because chance alone hardly
// ever gives them to a history of more than a few writes.
type manner int

const (
	nothing  manner = iota // none of it
	all                    // all of it
	prefix                 // all up to a moment, and sectors of the write then on its way
	byPage                 // each page for itself
	bySector               // each sector for itself
)

// plan is one power cut.
type plan struct {
	rng    *rand.Rand
	manner manner
	cut    uint64 // prefix: the last change that is there
	odds   uint64 // of 8, for names, or for the file at hand
}

func newPlan(rng *rand.Rand, seq uint64) *plan {
	p := &plan{rng: rng}
	p.manner = [...]manner{nothing, all, prefix, prefix, byPage, byPage, bySector, bySector}[rng.IntN(8)]
	// How far back the moment lies: any distance, small ones often.
	p.cut = seq - min(seq, rng.Uint64N(1<<rng.IntN(12)))
	p.redraw()
	return p
}

func (p *plan) redraw() { p.odds = [...]uint64{0, 1, 4, 7, 8}[p.rng.IntN(5)] }

// keep decides on one change.
func (p *plan) keep(seq uint64) bool {
	switch p.manner {
	case nothing:
		return false
	case all:
		return true
	case prefix:
		return seq <= p.cut
	}
	return p.rng.Uint64N(8) < p.odds
}

// afterCrash returns the root of a tree as it could be after a power cut. The
// volume is not changed.
func (v *volume) afterCrash(rng *rand.Rand) *inode {
	pl := newPlan(rng, v.seq)

	type slot struct {
		dir  *inode
		name string
	}
	needed := make(map[slot]bool)
	kept := make([]bool, len(v.pending))
	for i, op := range slices.Backward(v.pending) {
		kept[i] = pl.keep(op.seq)
		for _, p := range op.parts {
			kept[i] = kept[i] || needed[slot{p.dir, p.name}]
		}
		for _, p := range op.parts {
			if kept[i] {
				needed[slot{p.dir, p.name}] = true
			}
		}
	}
	names := make(map[*inode]map[string]*inode) // where they are not the durable ones
	for i, op := range v.pending {
		if !kept[i] {
			continue
		}
		for _, p := range op.parts {
			m := names[p.dir]
			if m == nil {
				m = maps.Clone(p.dir.durable)
				names[p.dir] = m
			}
			if p.node == nil {
				delete(m, p.name)
			} else {
				m[p.name] = p.node
			}
		}
	}

	made := make(map[*inode]*inode)
	var build func(n *inode) *inode
	build = func(n *inode) *inode {
		c := &inode{ino: n.ino, dir: n.dir}
		made[n] = c
		if !n.dir {
			pl.redraw()
			c.content = n.content.afterCrash(pl)
			return c
		}
		from, ok := names[n]
		if !ok {
			from = n.durable
		}
		c.names = make(map[string]*inode, len(from))
		for _, name := range sortedNames(from) {
			x := from[name]
			m := made[x]
			switch {
			case m == nil:
				m = build(x)
			case x.dir:
				continue // a directory has one name: the check at mount removes others
			}
			m.links++
			c.names[name] = m
		}
		c.durable = maps.Clone(c.names)
		return c
	}
	return build(v.root)
}

// afterCrash returns the content of a file as it could be after a power cut.
func (c *content) afterCrash(pl *plan) content {
	o := content{size: c.size, allocated: c.allocated, leaves: slices.Clone(c.leaves)}
	for _, l := range o.leaves {
		if l != nil {
			l.shared.Store(true)
		}
	}
	pages := make([]int64, 0, len(c.dirty)+len(c.lost))
	pages = slices.AppendSeq(pages, maps.Keys(c.dirty))
	pages = slices.AppendSeq(pages, maps.Keys(c.lost)) // in one of the two only
	slices.Sort(pages)
	for _, p := range pages {
		dp := c.dirty[p]
		if dp == nil {
			dp = c.lost[p]
		}
		v := pl.pick(dp)
		o.set(p, v.page, v.alloc)
	}
	for _, r := range c.runs {
		if pl.keep(r.seq) {
			continue
		}
		for p := r.from; p < r.to; p++ {
			if pg, alloc := o.page(p); pg == nil && alloc {
				o.set(p, nil, false)
			}
		}
	}
	o.size = c.durSize
	for _, s := range c.sizes {
		if pl.keep(s.seq) {
			o.size = s.size // the newest of those kept
		}
	}
	o.durSize = o.size
	o.cut(o.size)
	return o
}

// cut removes what is beyond size.
func (c *content) cut(size int64) {
	first := (size + pageSize - 1) / pageSize // page wholly beyond
	for i := range c.leaves {
		l, base := c.leaves[i], int64(i)*leafPages
		switch {
		case l == nil || base+leafPages <= first:
		case base >= first:
			for _, w := range l.alloc {
				c.allocated -= int64(bits.OnesCount64(w))
			}
			c.leaves[i] = nil
		default:
			for p := first; p < base+leafPages; p++ {
				if pg, alloc := c.page(p); pg != nil || alloc {
					c.set(p, nil, false)
				}
			}
		}
	}
	if in := size % pageSize; in != 0 {
		if pg, alloc := c.page(size / pageSize); pg != nil {
			tail := new(*pg)
			clear(tail[in:])
			if *tail == zeroPage {
				tail = nil
			}
			c.set(size/pageSize, tail, alloc)
		}
	}
}

// pick chooses what a page holds after the power cut.
func (pl *plan) pick(d *dirtyPage) pageVersion {
	vers := d.vers[:d.n]
	switch pl.manner {
	case nothing:
		return d.base
	case all:
		return vers[len(vers)-1]
	case prefix:
		v := d.base
		for i, w := range vers {
			switch {
			case w.seq <= pl.cut:
				v = vers[i]
			case w.seq == pl.cut+1: // on its way
				return pl.mix(func() pageVersion {
					if pl.rng.Uint64()&1 == 0 {
						return v
					}
					return w
				})
			}
		}
		return v
	case byPage:
		return pl.draw(d)
	}
	return pl.mix(func() pageVersion { return pl.draw(d) })
}

// draw chooses one version: with the odds one of those written, half of the time
// the newest.
func (pl *plan) draw(d *dirtyPage) pageVersion {
	switch {
	case pl.rng.Uint64N(8) >= pl.odds:
		return d.base
	case pl.rng.Uint64()&1 == 0:
		return d.vers[d.n-1]
	}
	return d.vers[pl.rng.IntN(d.n)]
}

// mix puts a page together from sectors of the versions that choose returns.
func (pl *plan) mix(choose func() pageVersion) pageVersion {
	var from [pageSize / sectorSize]pageVersion
	same, alloc := true, false
	for i := range from {
		from[i] = choose()
		same = same && from[i].page == from[0].page
		alloc = alloc || from[i].alloc
	}
	if same {
		return pageVersion{page: from[0].page, alloc: alloc}
	}
	pg := new(page)
	for i, v := range from {
		if v.page != nil {
			copy(pg[i*sectorSize:(i+1)*sectorSize], v.page[i*sectorSize:])
		}
	}
	if *pg == zeroPage {
		pg = nil
	}
	return pageVersion{page: pg, alloc: alloc}
}
