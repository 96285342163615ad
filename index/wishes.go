package index

import (
	"context"
	"errors"

	"cairn/id"
	"cairn/index/kv"
)

// MostWish is the widest code that a bucket may wish for.
const MostWish = 31

// Wishes say how many sealed bytes of a pack, in chunks that versions refer to, would be at a width that one of
// their buckets wishes for, by that width. A chunk that buckets of several widths refer to counts
// for each of them.
type Wishes struct {
	Bytes map[id.Pack]map[int]uint64
	Head  Head
}

// Wishes computes them for all packs. width is how many data shards a bucket wishes for; 0: it
// is content with any. It reads objects and lists, and no content, in bounded memory but for an entry
// for each pack: with more than a quarter of a million chunks, all objects are read more than once.
func (x *Index) Wishes(ctx context.Context, width func(Bucket) int) (out Wishes, err error) {
	return x.wishes(ctx, width, sharedAtOnce, listsKnown)
}

func (x *Index) wishes(ctx context.Context, width func(Bucket) int, atOnce, lists int) (out Wishes, err error) {
	if x.loading.Load() {
		return out, ErrLoading
	}
	err = x.db.View(func(s *kv.Snapshot) error {
		out = Wishes{Bytes: map[id.Pack]map[int]uint64{}}
		d := divider{ctx: ctx, r: x.reader(s), report: func(uint64, uint64) {}, atOnce: atOnce, lists: lists, known: map[chunkKey]struct{}{}}
		return d.wish(width, &out)
	})
	return out, err
}

// wish is the walk of a divider for wishes: a group for each width, and in place of users a bit for it.
func (d *divider) wish(width func(Bucket) int, out *Wishes) error {
	var err error
	if out.Head, err = d.r.Head(); err != nil {
		return err
	}
	all, err := d.r.Buckets()
	if err != nil {
		return err
	}
	bit := map[*Share]uint32{}
	var widths []int
	at := map[int]int{}
	for _, b := range all {
		w := min(max(width(b), 0), MostWish)
		i, there := at[w]
		if !there {
			i = len(d.groups)
			at[w] = i
			g := group{share: &Share{}}
			if bit[g.share] = 1 << w; w == 0 {
				bit[g.share] = ^uint32(0)
			} else {
				widths = append(widths, w)
			}
			d.groups = append(d.groups, g)
		}
		d.groups[i].buckets = append(d.groups[i].buckets, b)
	}
	from := d.r.keys.table(nil, tableChunk)
	for key := from; key != nil; {
		if key, err = d.load(from, key); err != nil {
			return err
		}
		if err := d.walk(func(c *sharedChunk, s *Share) { c.users |= bit[s] }); err != nil {
			return err
		}
		for i := range d.part {
			c := &d.part[i]
			if c.users == 0 {
				continue
			}
			if err := d.tick(); err != nil {
				return err
			}
			row, err := d.r.Chunk(c.realm, c.chunk)
			if errors.Is(err, ErrNotFound) {
				err = damagedRow("chunk") // it was there in the same snapshot
			}
			if err != nil {
				return err
			}
			in := out.Bytes[row.Pack]
			if in == nil {
				in = make(map[int]uint64, 1)
				out.Bytes[row.Pack] = in
			}
			for _, w := range widths {
				if c.users&(1<<w) != 0 {
					in[w] += uint64(c.sealed)
				}
			}
		}
	}
	return nil
}
