package crashfs

import (
	"maps"
	"math/bits"
	"slices"
	"sync/atomic"
)

const (
	pageSize   = 4096
	sectorSize = 512     // what a disk writes whole, or not at all
	maxSize    = 1 << 42 // beyond is EFBIG

	// pageVersions bounds how many unsynced versions of a page are remembered:
	// the oldest and the newest, and some between.
	pageVersions = 6
	sizeVersions = 16
)

// page is never changed once it stands in a table. A nil *page is zeros.
type page [pageSize]byte

var zeroPage page

// leaf holds 256 pages: 1 MiB of a file. A shared leaf is not changed.
type leaf struct {
	shared atomic.Bool // set by clone, under the lock of one of the disks only
	alloc  [4]uint64   // bit per page: space is reserved
	pages  *[leafPages]*page
}

const leafPages = 256

// content is what is in a file, and what of it is durable: everything but what
// dirty, lost, sizes and runs say.
type content struct {
	size      int64
	leaves    []*leaf
	allocated int64 // pages

	dirty map[int64]*dirtyPage // changed since the last sync
	// lost holds pages that a failed sync has marked clean: readable, not
	// durable, and no sync writes them, unless they are written again.
	lost     map[int64]*dirtyPage
	durSize  int64
	sizes    []sizeVersion // since durSize
	sizeLost bool          // as lost, for the size
	runs     []run         // reserved or zeroed since the last sync
}

type sizeVersion struct {
	seq  uint64
	size int64
}

// run is a range of pages.
type run struct {
	seq      uint64
	from, to int64
}

// dirtyPage is a page's durable version and those written since.
type dirtyPage struct {
	base pageVersion
	n    int
	vers [pageVersions]pageVersion
}

type pageVersion struct {
	seq   uint64
	page  *page
	alloc bool
}

func (d *dirtyPage) add(v pageVersion) {
	if d.n == pageVersions { // forget one in the middle
		copy(d.vers[pageVersions/2:], d.vers[pageVersions/2+1:])
		d.n--
	}
	d.vers[d.n] = v
	d.n++
}

func (c *content) page(p int64) (pg *page, alloc bool) {
	i, j := p/leafPages, p%leafPages
	if i >= int64(len(c.leaves)) || c.leaves[i] == nil {
		return nil, false
	}
	l := c.leaves[i]
	if l.pages != nil {
		pg = l.pages[j]
	}
	return pg, l.alloc[j/64]>>(j%64)&1 != 0
}

// leafOf returns the leaf of page p, made and unshared, to be changed.
func (c *content) leafOf(p int64) *leaf {
	i := p / leafPages
	if n := i + 1 - int64(len(c.leaves)); n > 0 {
		c.leaves = append(c.leaves, make([]*leaf, n)...)
	}
	l := c.leaves[i]
	switch {
	case l == nil:
		l = new(leaf)
		c.leaves[i] = l
	case l.shared.Load():
		own := &leaf{alloc: l.alloc}
		if l.pages != nil {
			own.pages = new(*l.pages)
		}
		l = own
		c.leaves[i] = l
	}
	return l
}

// set changes a page in the table and counts what it takes; the caller has taken
// the room from the disk.
func (c *content) set(p int64, pg *page, alloc bool) {
	l, j := c.leafOf(p), p%leafPages
	if pg != nil || l.pages != nil {
		if l.pages == nil {
			l.pages = new([leafPages]*page)
		}
		l.pages[j] = pg
	}
	word, bit := &l.alloc[j/64], uint64(1)<<(j%64)
	switch {
	case alloc && *word&bit == 0:
		*word |= bit
		c.allocated++
	case !alloc && *word&bit != 0:
		*word &^= bit
		c.allocated--
	}
}

// change sets a page and remembers its versions.
func (c *content) change(d *Disk, seq uint64, p int64, old pageVersion, pg *page, alloc bool) {
	dp := c.dirty[p]
	if dp == nil {
		if dp = c.lost[p]; dp != nil { // written again: the next sync takes all of it
			delete(c.lost, p)
		} else if old.page == nil && pg == nil {
			// Zeros stay zeros, only the room changes.
			if alloc && !old.alloc {
				c.addRun(seq, p, p+1)
			}
			c.set(p, pg, alloc)
			return
		} else {
			dp = d.newDirty()
			dp.base = old
		}
		if c.dirty == nil {
			c.dirty = make(map[int64]*dirtyPage)
		}
		c.dirty[p] = dp
	}
	dp.add(pageVersion{seq, pg, alloc})
	c.set(p, pg, alloc)
}

func (c *content) addRun(seq uint64, from, to int64) {
	if n := len(c.runs); n > 0 && c.runs[n-1].to == from && c.runs[n-1].seq == seq {
		c.runs[n-1].to = to
		return
	}
	c.runs = append(c.runs, run{seq, from, to})
}

func (d *Disk) newDirty() *dirtyPage {
	if n := len(d.spare); n > 0 {
		dp := d.spare[n-1]
		d.spare = d.spare[:n-1]
		return dp
	}
	return new(dirtyPage)
}

func (c *content) setSize(seq uint64, size int64) {
	if size == c.size {
		return
	}
	c.size = size
	c.sizeLost = false
	if len(c.sizes) == sizeVersions {
		c.sizes = slices.Delete(c.sizes, sizeVersions/2, sizeVersions/2+1)
	}
	c.sizes = append(c.sizes, sizeVersion{seq, size})
}

// write takes n bytes from src and returns how many found room.
func (c *content) write(d *Disk, seq uint64, src *vector, off, n int64) int64 {
	done := int64(0)
	for done < n {
		at := off + done
		p, in := at/pageSize, at%pageSize
		k := min(pageSize-in, n-done)
		old, alloc := c.page(p)
		if !alloc && !d.takePages(1) {
			break
		}
		pg := d.scratch // zeros: it is kept only while it is
		if k < pageSize && old != nil {
			*pg = *old
		}
		src.copy(pg[in : in+k])
		if *pg == zeroPage {
			pg = nil
		} else {
			d.scratch = new(page)
		}
		c.change(d, seq, p, pageVersion{page: old, alloc: alloc}, pg, true)
		done += k
	}
	if done > 0 && off+done > c.size {
		c.setSize(seq, off+done)
	}
	return done
}

// vector reads several buffers as one.
type vector struct {
	bufs [][]byte
	off  int // in bufs[0]
}

func (v *vector) copy(dst []byte) {
	for len(dst) > 0 {
		n := copy(dst, v.bufs[0][v.off:])
		dst = dst[n:]
		v.off += n
		if v.off == len(v.bufs[0]) {
			v.bufs, v.off = v.bufs[1:], 0
		}
	}
}

// read copies from off on into b, as far as the file goes.
func (c *content) read(b []byte, off int64) int {
	n := int(max(0, min(int64(len(b)), c.size-off)))
	for done := 0; done < n; {
		at := off + int64(done)
		in := int(at % pageSize)
		k := min(pageSize-in, n-done)
		if pg, _ := c.page(at / pageSize); pg != nil {
			copy(b[done:done+k], pg[in:])
		} else {
			clear(b[done : done+k])
		}
		done += k
	}
	return n
}

// allocate reserves a range; false: no room for it.
func (c *content) allocate(d *Disk, seq uint64, off, n int64) bool {
	from, to := off/pageSize, (off+n+pageSize-1)/pageSize
	need := int64(0)
	c.eachFree(from, to, func(_, _ int64, free int64) { need += free })
	if !d.takePages(need) {
		return false
	}
	c.eachFree(from, to, func(word, base, free int64) {
		l := c.leafOf(base)
		mask := wordMask(base, from, to)
		if free == int64(bits.OnesCount64(mask)) {
			c.addRun(seq, max(base, from), min(base+64, to))
		} else {
			for j := max(base, from); j < min(base+64, to); j++ {
				if l.alloc[word]>>(j-base)&1 == 0 {
					c.addRun(seq, j, j+1)
				}
			}
		}
		l.alloc[word] |= mask
		c.allocated += free
	})
	if off+n > c.size {
		c.setSize(seq, off+n)
	}
	return true
}

// eachFree calls do for each 64 pages of which some in [from, to) are not
// allocated: the word in the leaf, the first of its pages, and how many.
func (c *content) eachFree(from, to int64, do func(word, base, free int64)) {
	for base := from &^ 63; base < to; base += 64 {
		var have uint64
		word := base % leafPages / 64
		if i := base / leafPages; i < int64(len(c.leaves)) && c.leaves[i] != nil {
			have = c.leaves[i].alloc[word]
		}
		if free := bits.OnesCount64(wordMask(base, from, to) &^ have); free > 0 {
			do(word, base, int64(free))
		}
	}
}

// wordMask has the bits of the pages of [from, to) among the 64 from base on.
func wordMask(base, from, to int64) uint64 {
	m := ^uint64(0)
	if from > base {
		m &= m << (from - base)
	}
	if to < base+64 {
		m &= 1<<(to-base) - 1
	}
	return m
}

// drop makes a range read as zeros and gives whole pages back.
func (c *content) drop(d *Disk, seq uint64, off, end int64) {
	end = min(end, int64(len(c.leaves))*leafPages*pageSize)
	for off < end {
		p, in := off/pageSize, off%pageSize
		if c.leaves[p/leafPages] == nil {
			off = (p/leafPages + 1) * leafPages * pageSize
			continue
		}
		k := min(pageSize-in, end-off)
		old, alloc := c.page(p)
		was := pageVersion{page: old, alloc: alloc}
		switch {
		case k == pageSize && alloc:
			c.change(d, seq, p, was, nil, false)
			d.pages--
		case k < pageSize && old != nil:
			pg := new(*old)
			clear(pg[in : in+k])
			if *pg == zeroPage {
				pg = nil
			}
			c.change(d, seq, p, was, pg, alloc)
		}
		off += k
	}
}

func (c *content) truncate(d *Disk, seq uint64, size int64) {
	if size < c.size {
		// Pages beyond the size go, the tail of the last one becomes zeros.
		c.drop(d, seq, size, 1<<62)
	}
	c.setSize(seq, size)
}

// sync makes everything durable, but what an earlier failed sync lost.
func (c *content) sync(d *Disk) {
	if len(c.dirty) > 0 {
		for _, dp := range c.dirty {
			if len(d.spare) < 1024 {
				*dp = dirtyPage{}
				d.spare = append(d.spare, dp)
			}
		}
		if len(c.dirty) <= 64 { // the usual: written and synced again and again
			clear(c.dirty)
		} else {
			c.dirty = nil
		}
	}
	c.runs = c.runs[:0]
	if !c.sizeLost {
		c.durSize, c.sizes = c.size, c.sizes[:0]
	}
}

// syncFailed does what Linux does when the device refuses a page: it is clean
// from then on, and no one will write it.
func (c *content) syncFailed() {
	if len(c.dirty) > 0 {
		if c.lost == nil {
			c.lost = make(map[int64]*dirtyPage)
		}
		maps.Copy(c.lost, c.dirty)
		c.dirty = nil
	}
	c.sizeLost = len(c.sizes) > 0
}

func (c *content) clone() content {
	o := *c
	o.leaves = slices.Clone(c.leaves)
	for _, l := range o.leaves {
		if l != nil {
			l.shared.Store(true)
		}
	}
	o.dirty, o.lost = cloneDirty(c.dirty), cloneDirty(c.lost)
	o.sizes, o.runs = slices.Clone(c.sizes), slices.Clone(c.runs)
	return o
}

func cloneDirty(m map[int64]*dirtyPage) map[int64]*dirtyPage {
	if len(m) == 0 {
		return nil
	}
	o := make(map[int64]*dirtyPage, len(m))
	for p, dp := range m {
		o[p] = new(*dp)
	}
	return o
}

// flip flips a bit in every version of its page.
func (c *content) flip(d *Disk, bit int64) {
	p := bit / 8 / pageSize
	at, mask := bit/8%pageSize, byte(1)<<(bit%8)
	flipped := func(pg *page) *page {
		n := new(page)
		if pg != nil {
			*n = *pg
		}
		n[at] ^= mask
		return n
	}
	pg, alloc := c.page(p)
	if !alloc {
		d.pages++ // rot asks nobody for room
	}
	c.set(p, flipped(pg), true)
	for _, m := range []map[int64]*dirtyPage{c.dirty, c.lost} {
		if dp := m[p]; dp != nil {
			dp.base.page = flipped(dp.base.page)
			for i := range dp.vers[:dp.n] {
				dp.vers[i].page = flipped(dp.vers[i].page)
			}
		}
	}
}
