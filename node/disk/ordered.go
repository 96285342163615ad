package disk

import "slices"

// ordered keeps items in ascending order. Items that come in that order, as those of a
// start and of the log do, leave its blocks full, where the nodes of a tree would be
// half empty; one that comes late is put into the middle of a block, and splits a full
// one.
type ordered[T any] struct {
	compare func(a, b *T) int
	blocks  [][]T // none empty, all ascending, each before the next
}

const blockItems = 256 // of a block, at the most

// find returns where an item stands that compares equal, or the place that it would
// take: block b, item i. b is the number of blocks only when there are none.
func (o *ordered[T]) find(it *T) (b, i int, found bool) {
	b, found = slices.BinarySearchFunc(o.blocks, it, func(block []T, it *T) int { return o.compare(&block[0], it) })
	switch {
	case found:
		return b, 0, true
	case b > 0:
		b-- // the last block that begins before it
	case len(o.blocks) == 0:
		return 0, 0, false
	}
	i, found = search(o.blocks[b], it, o.compare)
	return b, i, found
}

// search is slices.BinarySearchFunc without a copy of each item that it looks at.
func search[T any](items []T, it *T, compare func(a, b *T) int) (int, bool) {
	low, high := 0, len(items)
	for low < high {
		mid := int(uint(low+high) / 2)
		if compare(&items[mid], it) < 0 {
			low = mid + 1
		} else {
			high = mid
		}
	}
	return low, low < len(items) && compare(&items[low], it) == 0
}

// get returns the item that compares equal; nil: there is none. It is valid until the
// next change.
func (o *ordered[T]) get(it *T) *T {
	if b, i, found := o.find(it); found {
		return &o.blocks[b][i]
	}
	return nil
}

// set puts an item where it belongs, in the place of one that compares equal.
func (o *ordered[T]) set(it T) {
	last := len(o.blocks) - 1
	if last < 0 || o.compare(&o.blocks[last][len(o.blocks[last])-1], &it) < 0 {
		if last < 0 || len(o.blocks[last]) == blockItems {
			o.blocks = append(o.blocks, nil)
			last++
		}
		o.blocks[last] = append(o.blocks[last], it)
		return
	}
	b, i, found := o.find(&it)
	if found {
		o.blocks[b][i] = it
		return
	}
	if len(o.blocks[b]) == blockItems {
		rest := slices.Clone(o.blocks[b][blockItems/2:])
		o.blocks[b] = slices.Clone(o.blocks[b][:blockItems/2])
		o.blocks = slices.Insert(o.blocks, b+1, rest)
		if i > blockItems/2 {
			b, i = b+1, i-blockItems/2
		}
	}
	o.blocks[b] = slices.Insert(o.blocks[b], i, it)
}

// remove takes away the item that compares equal, if there is one.
func (o *ordered[T]) remove(it T) {
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
	if b+1 < len(o.blocks) && len(o.blocks[b])+len(o.blocks[b+1]) <= blockItems/2 {
		o.blocks[b] = append(o.blocks[b], o.blocks[b+1]...)
		o.blocks = slices.Delete(o.blocks, b+1, b+2)
	}
}

// ascend calls fn for each item from a certain one on, until it returns false.
func (o *ordered[T]) ascend(from T, fn func(T) bool) {
	b, i, _ := o.find(&from)
	for ; b < len(o.blocks); b, i = b+1, 0 {
		for _, it := range o.blocks[b][i:] {
			if !fn(it) {
				return
			}
		}
	}
}

// each calls fn for every item, until it returns false. fn may change what stands under
// an item, not the items.
func (o *ordered[T]) each(fn func(T) bool) {
	for _, block := range o.blocks {
		for _, it := range block {
			if !fn(it) {
				return
			}
		}
	}
}

// deleteFunc takes away the items for which fn is true.
func (o *ordered[T]) deleteFunc(fn func(T) bool) {
	for i := range o.blocks {
		o.blocks[i] = slices.DeleteFunc(o.blocks[i], fn)
	}
	o.blocks = slices.DeleteFunc(o.blocks, func(b []T) bool { return len(b) == 0 })
}

func (o *ordered[T]) len() int {
	n := 0
	for _, block := range o.blocks {
		n += len(block)
	}
	return n
}
