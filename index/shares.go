package index

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"

	"cairn/id"
	"cairn/index/kv"
)

// Share is what buckets make of the store, in sealed bytes of distinct chunks. What all
// versions of their objects refer to counts, themselves or through lists.
type Share struct {
	Chunks, Bytes uint64
	// Alone are those that no other share refers to.
	AloneChunks, AloneBytes uint64
	// Fair counts each chunk by its part: its bytes divided by the number of shares that
	// refer to it, what is left over by one byte each to the first of them. All fair
	// bytes together are those of all chunks that anything refers to.
	Fair uint64
}

// Shares say what each bucket makes of the store, as of one log pack.
type Shares struct {
	Head Head
	// Buckets are in the order of their names.
	Buckets []BucketShare
	// Together is one share for all buckets that were to be counted as one.
	Together Share
	// Used are the chunks that any share refers to, Unused the others.
	UsedChunks, UsedBytes, UnusedChunks, UnusedBytes uint64
}

// BucketShare is a bucket's share.
type BucketShare struct {
	Bucket
	Share
}

const (
	// sharedAtOnce is how many chunks are looked at in one sweep over all objects. They
	// take 56 bytes each.
	sharedAtOnce = 1 << 18
	// listsKnown is how many lists are remembered, so that those that many versions of a
	// bucket refer to are read once. Each takes some 60 bytes.
	listsKnown = 1 << 17
)

// Shares computes what each bucket makes of the store; together says of which buckets
// one share is made. It reads objects and lists, and no content. Memory is bounded:
// with more than a quarter of a million chunks, all objects are read more than once.
// report is told of how many versions of how many it has read; it may be nil.
func (x *Index) Shares(ctx context.Context, together func(Bucket) bool, report func(done, total uint64)) (Shares, error) {
	return x.shares(ctx, together, report, sharedAtOnce, listsKnown)
}

func (x *Index) shares(ctx context.Context, together func(Bucket) bool, report func(done, total uint64), atOnce, lists int) (out Shares, err error) {
	if x.loading.Load() {
		return out, ErrLoading
	}
	if report == nil {
		report = func(uint64, uint64) {}
	}
	err = x.db.View(func(s *kv.Snapshot) error {
		d := divider{ctx: ctx, r: x.reader(s), out: &out, report: report, atOnce: atOnce, lists: lists, known: map[chunkKey]struct{}{}}
		return d.run(together)
	})
	return out, err
}

// divider computes shares.
type divider struct {
	ctx           context.Context
	r             *reader
	out           *Shares
	report        func(done, total uint64)
	atOnce, lists int

	groups      []group
	part        []sharedChunk         // of the sweep, in the order of their keys
	known       map[chunkKey]struct{} // lists that were read, of the group at hand
	done, total uint64
	steps       int
}

// group is what one share is of.
type group struct {
	buckets []Bucket
	share   *Share
}

type sharedChunk struct {
	chunk  id.Chunk
	realm  id.Realm
	sealed uint32
	users  uint32 // groups
	turn   uint32 // of them, those whose part was counted
	last   uint32 // the newest group that was seen here, from 1; 0: none
}

func (c *sharedChunk) compare(realm id.Realm, chunk *id.Chunk) int {
	if c.realm != realm {
		if c.realm < realm {
			return -1
		}
		return 1
	}
	return bytes.Compare(c.chunk[:], chunk[:])
}

func (d *divider) tick() error {
	if d.steps++; d.steps%1024 == 0 {
		d.report(min(d.done, d.total), d.total)
		if d.ctx.Err() != nil {
			return context.Cause(d.ctx)
		}
	}
	return nil
}

func (d *divider) run(together func(Bucket) bool) error {
	var err error
	if d.out.Head, err = d.r.Head(); err != nil {
		return err
	}
	totals, err := d.r.Totals()
	if err != nil {
		return err
	}
	sweeps := (totals.Chunks + uint64(d.atOnce) - 1) / uint64(d.atOnce)
	d.total = 2 * sweeps * (totals.Versions + totals.Markers)
	all, err := d.r.Buckets()
	if err != nil {
		return err
	}
	one := group{share: &d.out.Together}
	for _, b := range all {
		if together(b) {
			one.buckets = append(one.buckets, b)
		} else {
			d.out.Buckets = append(d.out.Buckets, BucketShare{Bucket: b})
		}
	}
	for i := range d.out.Buckets { // none is added any more: their places stay
		b := &d.out.Buckets[i]
		d.groups = append(d.groups, group{[]Bucket{b.Bucket}, &b.Share})
	}
	d.groups = append(d.groups, one)
	from := d.r.keys.table(nil, tableChunk)
	for at := from; at != nil; {
		if at, err = d.load(from, at); err != nil {
			return err
		}
		if err := d.sweep(); err != nil {
			return err
		}
	}
	d.report(d.total, d.total)
	return nil
}

// load reads the chunks of a sweep, from a key on, and returns that of the next sweep;
// nil: it is the last one.
func (d *divider) load(from, at []byte) (rest []byte, err error) {
	d.part = d.part[:0]
	err = d.r.kv.Scan(at, next(bytes.Clone(from)), false, func(k, v []byte) error {
		if err := d.tick(); err != nil {
			return err
		}
		realm, id32, ok := parseOrdered(k[len(from):])
		if !ok || len(id32) != len(id.Chunk{}) || realm > max32 {
			return damagedRow("chunk")
		}
		if len(d.part) == d.atOnce {
			rest = bytes.Clone(k)
			return kv.Stop
		}
		var row ChunkRow
		if err := row.parse(v); err != nil {
			return err
		}
		d.part = append(d.part, sharedChunk{chunk: id.Chunk(id32), realm: id.Realm(realm), sealed: row.SealedLen})
		return nil
	})
	return rest, err
}

// sweep counts who uses the chunks at hand, and then what that makes of each of them.
func (d *divider) sweep() error {
	if len(d.part) == 0 {
		return nil
	}
	if err := d.walk(func(c *sharedChunk, _ *Share) { c.users++ }); err != nil {
		return err
	}
	for i := range d.part {
		c := &d.part[i]
		if c.last = 0; c.users > 0 {
			d.out.UsedChunks++
			d.out.UsedBytes += uint64(c.sealed)
		} else {
			d.out.UnusedChunks++
			d.out.UnusedBytes += uint64(c.sealed)
		}
	}
	return d.walk(func(c *sharedChunk, s *Share) {
		s.Chunks++
		s.Bytes += uint64(c.sealed)
		if c.users == 1 {
			s.AloneChunks++
			s.AloneBytes += uint64(c.sealed)
		}
		s.Fair += uint64(c.sealed / c.users)
		if c.turn < c.sealed%c.users {
			s.Fair++
		}
		c.turn++
	})
}

// walk hands each chunk at hand to fn once for each group that uses it.
func (d *divider) walk(fn func(*sharedChunk, *Share)) error {
	for i, g := range d.groups {
		clear(d.known)
		for _, b := range g.buckets {
			if err := d.bucket(b, func(c *sharedChunk) {
				if c.last != uint32(i+1) {
					c.last = uint32(i + 1)
					fn(c, g.share)
				}
			}); err != nil {
				return err
			}
		}
	}
	return nil
}

func (d *divider) bucket(b Bucket, fn func(*sharedChunk)) error {
	from := d.r.keys.objects(nil, b.ID)
	var o Object
	return d.r.kv.Scan(from, next(bytes.Clone(from)), false, func(_, v []byte) error {
		d.done++
		if err := d.tick(); err != nil {
			return err
		}
		if deletedRow(v) {
			return nil
		}
		if err := o.parse(v); err != nil {
			return err
		}
		for i := range o.Manifest.Roots {
			root := &o.Manifest.Roots[i]
			if err := d.visit(b.Realm, root.Chunk, root.Depth, fn); err != nil {
				return err
			}
		}
		return nil
	})
}

// visit hands a chunk to fn, and what is under it. Without room to remember a list it is
// read again, which changes nothing but the time.
func (d *divider) visit(realm id.Realm, c id.Chunk, depth uint8, fn func(*sharedChunk)) error {
	if depth > 0 {
		k := chunkKey{realm, c}
		if _, known := d.known[k]; known {
			return nil
		}
		if len(d.known) < d.lists {
			d.known[k] = struct{}{}
		}
	}
	if i, found := slices.BinarySearchFunc(d.part, struct{}{}, func(e sharedChunk, _ struct{}) int { return e.compare(realm, &c) }); found {
		fn(&d.part[i])
	}
	if depth == 0 {
		return nil
	}
	if err := d.tick(); err != nil {
		return err
	}
	children, err := d.r.Children(realm, c)
	if errors.Is(err, ErrNotFound) {
		err = fmt.Errorf("%w: a list without its children", ErrDamaged)
	}
	for i := range children {
		if err == nil {
			err = d.visit(realm, children[i], depth-1, fn)
		}
	}
	return err
}
