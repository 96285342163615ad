package disk

import "slices"

// positions keep log shards in the order of their positions. They nearly always come
// in that order, which leaves blocks full where the nodes of a tree would be half
// empty. Only what comes late is put into the middle of a block, and splits a full one.
type positions struct {
	blocks [][]posItem // none empty, all ascending, each before the next
}

const positionBlock = 256 // items of a block, at the most

// find returns where it stands, or the place that it would take: block b, item i. b is
// the number of blocks only when there are none.
func (o *positions) find(it *posItem) (b, i int, found bool) {
	b, found = slices.BinarySearchFunc(o.blocks, it, func(block []posItem, it *posItem) int { return comparePos(&block[0], it) })
	switch {
	case found:
		return b, 0, true
	case b > 0:
		b-- // the last block that begins before it
	case len(o.blocks) == 0:
		return 0, 0, false
	}
	i, found = slices.BinarySearchFunc(o.blocks[b], it, func(x posItem, it *posItem) int { return comparePos(&x, it) })
	return b, i, found
}

func (o *positions) set(it posItem) {
	b, i, found := o.find(&it)
	if found {
		return // there is nothing in an item beyond its order
	}
	switch n := len(o.blocks); {
	case n == 0 || b == n-1 && i == positionBlock:
		o.blocks = append(o.blocks, []posItem{it})
		return
	case len(o.blocks[b]) == positionBlock:
		rest := slices.Clone(o.blocks[b][positionBlock/2:])
		o.blocks[b] = slices.Clone(o.blocks[b][:positionBlock/2])
		o.blocks = slices.Insert(o.blocks, b+1, rest)
		if i > positionBlock/2 {
			b, i = b+1, i-positionBlock/2
		}
	}
	o.blocks[b] = slices.Insert(o.blocks[b], i, it)
}

func (o *positions) remove(it posItem) {
	b, i, found := o.find(&it)
	if !found {
		return
	}
	o.blocks[b] = slices.Delete(o.blocks[b], i, i+1)
	if len(o.blocks[b]) == 0 {
		o.blocks = slices.Delete(o.blocks, b, b+1)
		return
	}
	if b > 0 && b == len(o.blocks)-1 {
		b-- // the last one goes into the one before
	}
	if b+1 < len(o.blocks) && len(o.blocks[b])+len(o.blocks[b+1]) <= positionBlock/2 {
		o.blocks[b] = append(o.blocks[b], o.blocks[b+1]...)
		o.blocks = slices.Delete(o.blocks, b+1, b+2)
	}
}

// ascend calls fn for each item from a certain one on, until it returns false.
func (o *positions) ascend(from posItem, fn func(posItem) bool) {
	b, i, _ := o.find(&from)
	for ; b < len(o.blocks); b, i = b+1, 0 {
		for _, it := range o.blocks[b][i:] {
			if !fn(it) {
				return
			}
		}
	}
}
