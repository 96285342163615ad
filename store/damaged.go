package store

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"cairn/id"
	"cairn/index"
	"cairn/seal"
)

const (
	maxDamaged      = 1000    // objects in a page
	maxDamagedBytes = 1 << 18 // of their keys, and one key beyond
	damagedWalk     = 1 << 18 // chunks that are looked up for a page, and those of one object beyond
	maxBroken       = 10_000  // chunks that do not open, in packs that are whole, and are remembered
)

// DamagedCursor is where a page of [Store.Damaged] has ended.
type DamagedCursor struct {
	Bucket  id.Bucket
	Key     string
	Version id.Version
}

// DamagedObject is a version of an object of which bytes are lost.
type DamagedObject struct {
	Bucket, Key string
	Version     id.Version
	Current     bool
	Size        uint64
	Time        time.Time
}

// DamagedPage is a part of what is lost. A page may have no objects, and others follow.
type DamagedPage struct {
	Objects []DamagedObject
	Looked  int // versions that were looked through for this page
	More    bool
	Next    DamagedCursor
}

// Damaged names the versions of objects that cannot be read whole any more, a page at a
// time, behind from: those with a chunk that is marked as lost, that lies in a pack which
// was found lost, or that a deep scrub of this process could not open. It walks the
// manifests of all objects in the index, and asks no node. What only nodes that are away
// hold is not lost.
func (s *Store) Damaged(ctx context.Context, from DamagedCursor, limit int) (DamagedPage, error) {
	var page DamagedPage
	if limit <= 0 || limit > maxDamaged {
		limit = maxDamaged
	}
	leave, err := s.enter()
	if err != nil {
		return page, err
	}
	defer leave()
	err = s.view(func(rd index.Reader) error {
		w := &damageWalk{s: s, rd: rd, from: from, limit: limit}
		err := w.buckets(ctx)
		if page = w.page; errors.Is(err, errStop) {
			page.More, err = true, nil
		}
		return err
	})
	if err != nil {
		return page, translate(err, ErrDamaged)
	}
	return page, nil
}

// damageWalk makes one page.
type damageWalk struct {
	s     *Store
	rd    index.Reader
	from  DamagedCursor
	limit int
	page  DamagedPage
	steps int // chunks that were looked up
	bytes int // of keys in the page
}

// buckets walks the buckets by their numbers. errStop: the page is full.
func (w *damageWalk) buckets(ctx context.Context) error {
	buckets, err := w.rd.Buckets()
	if err != nil {
		return err
	}
	slices.SortFunc(buckets, func(a, b index.Bucket) int { return cmp.Compare(a.ID, b.ID) })
	for _, b := range buckets {
		if hidden(b.Name) || b.ID < w.from.Bucket {
			continue
		}
		opt := index.ListOptions{Versions: true}
		if b.ID == w.from.Bucket {
			opt.After, opt.AfterVersion = w.from.Key, w.from.Version
		}
		if err := w.bucket(ctx, b, opt); err != nil {
			return err
		}
	}
	return nil
}

func (w *damageWalk) bucket(ctx context.Context, b index.Bucket, opt index.ListOptions) error {
	for {
		list, err := w.rd.List(b.ID, opt)
		if err != nil {
			return err
		}
		for _, o := range list.Objects {
			if err := context.Cause(ctx); err != nil {
				return err
			}
			if len(w.page.Objects) == w.limit || w.bytes >= maxDamagedBytes || w.steps >= w.s.cfg.walkAtOnce {
				return errStop
			}
			bad := false
			if !o.Deleted {
				w.page.Looked++
				roots := make([]id.Chunk, len(o.Manifest.Roots))
				for i, ref := range o.Manifest.Roots {
					roots[i] = ref.Chunk
				}
				if bad, err = w.lost(ctx, b.Realm, roots); err != nil {
					return err
				}
			}
			if bad {
				w.page.Objects = append(w.page.Objects, DamagedObject{Bucket: b.Name, Key: o.Key, Version: o.Version, Current: o.Current, Size: o.Manifest.Size, Time: time.Unix(0, o.Time)})
				w.bytes += len(o.Key)
			}
			w.page.Next = DamagedCursor{b.ID, o.Key, o.Version}
			w.steps++
		}
		if !list.More {
			return nil
		}
		opt.After, opt.AfterVersion = list.Next, list.NextVersion
	}
}

// lost reports whether one of the chunks, or of those that they list, is lost. It holds
// the children of one list for each level.
func (w *damageWalk) lost(ctx context.Context, realm id.Realm, chunks []id.Chunk) (bool, error) {
	if err := context.Cause(ctx); err != nil {
		return false, err
	}
	w.steps += len(chunks)
	var (
		lists []id.Chunk
		bad   bool
	)
	err := w.rd.Chunks(realm, chunks, func(i int, row index.ChunkRow, err error) error {
		switch {
		case errors.Is(err, index.ErrNotFound):
			return fmt.Errorf("%w: an object refers to a chunk without a row", index.ErrDamaged)
		case err != nil:
			return err
		case row.State == index.Damaged || w.s.gaveUp(row.Pack) || w.s.scrubs.isBroken(chunkKey{realm, row.Chunk}):
			bad = true
			return errStop
		case row.Info.Kind == seal.List:
			lists = append(lists, row.Chunk)
		}
		return nil
	})
	if bad || err != nil {
		if bad {
			err = nil
		}
		return bad, err
	}
	for _, l := range lists {
		children, err := w.rd.Children(realm, l)
		if err != nil {
			return false, err
		}
		if bad, err := w.lost(ctx, realm, children); bad || err != nil {
			return bad, err
		}
	}
	return false, nil
}

// gaveUp reports whether a pack was found lost by the last repair, or by a scrub.
func (s *Store) gaveUp(p id.Pack) bool {
	known := s.lost.Load()
	return known != nil && (*known)[p] || s.scrubs.known(p)
}
