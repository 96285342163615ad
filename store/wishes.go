package store

import (
	"context"
	"fmt"
	"strings"
	"time"

	"cairn/id"
	"cairn/index"
	"cairn/placement"
)

// A bucket's k may change, and packs are shared: what lies in one may belong to buckets of several
// widths. A collection reads which, and rewrites a pack as a whole to the width that the most
// of its bytes are wished at, when that is clearly more than at the width it has. Each such
// rewriting makes more bytes lie at a width that one of their buckets wishes for, so they
// come to an end, whatever the buckets have in common.

const (
	// wishMargin: a pack is rewritten for its width when a part in wishMargin of what is live in it
	// gains by that.
	wishMargin = 4
	// wishAge is after what time the wishes are read again though no bucket's k has changed:
	// copies and deletes change whose chunks are.
	wishAge = 24 * time.Hour
)

// readWishes reads what widths are wished for, unless all buckets wish for the same, or nothing
// has changed.
func (c *collection) readWishes(ctx context.Context) error {
	s := c.s
	var buckets []index.Bucket
	if err := s.view(func(r index.Reader) (err error) {
		buckets, err = r.Buckets()
		return err
	}); err != nil {
		return err
	}
	c.wishes, c.wishText = nil, ""
	widths := map[int]bool{}
	var text strings.Builder
	for _, b := range buckets {
		if !hidden(b.Name) {
			widths[s.width(b.Settings)] = true
			fmt.Fprintf(&text, "%d %d\n", b.ID, s.width(b.Settings))
		}
	}
	if len(widths) < 2 {
		return nil // the pack rows say it all
	}
	m := &s.collector
	m.mu.Lock()
	met := m.met == text.String() && time.Since(m.metAt) < wishAge
	m.mu.Unlock()
	if met && !c.opt.Now {
		return nil
	}
	w, err := s.index.Wishes(ctx, func(b index.Bucket) int {
		if hidden(b.Name) {
			return 0 // an upload's bucket is known when it is complete
		}
		return s.width(b.Settings)
	})
	if err != nil {
		return s.view(func(index.Reader) error { return err }) // damage stops the store
	}
	c.wishes, c.wishText = w.Bytes, text.String()
	return nil
}

// wishesMet notes that every pack has the best width.
func (c *collection) wishesMet() {
	if c.wishes == nil {
		return
	}
	m := &c.s.collector
	m.mu.Lock()
	defer m.mu.Unlock()
	m.met, m.metAt = c.wishText, time.Now()
}

// wishOf is the width that the most bytes of a pack are wished at, the greater of two; k when
// nothing is known of that.
func (c *collection) wishOf(p id.Pack, k int) int {
	best, most := k, uint64(0)
	for w, n := range c.wishes[p] {
		if n > most || n == most && n > 0 && w > best {
			best, most = w, n
		}
	}
	return best
}

// betterWidth says for how many data shards a pack is to be rewritten, with so many nodes up and
// w parity shards; due is false when it is as good where it is. That nodes are away makes no
// pack narrower.
func (c *collection) betterWidth(p id.Pack, row index.PackRow, up, w int) (k int, due bool) {
	var at [index.MostWish + 1]uint64 // bytes that would be as their buckets wish
	var wish [index.MostWish + 1]int
	has := int(row.K)
	if has > index.MostWish {
		return has, false
	}
	for k, n := range c.wishes[p] {
		to := placement.Width(up, k, w)
		if to != k && to <= has {
			to = has // it cannot be had now, or is had as far as it can
		}
		at[to] += n
		wish[to] = max(wish[to], k)
	}
	best := has
	for to := range at {
		if at[to] > at[best] {
			best = to
		}
	}
	if best == has || at[best]-at[has] <= row.Live/wishMargin {
		return has, false
	}
	return wish[best], true
}
