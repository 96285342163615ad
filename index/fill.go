package index

import (
	"errors"
	"fmt"

	"cairn/id"
	"cairn/record"
)

// edges follows the counts of chunks through the edges that one record adds and
// takes away.
type edges struct {
	r     *Round
	realm id.Realm
	now   map[id.Chunk]uint64
}

// step returns a chunk's count and changes it by n, which may be a complement.
func (e *edges) step(c id.Chunk, n uint64) (before uint64, err error) {
	before, known := e.now[c]
	if !known {
		row, err := e.r.reader.Chunk(e.realm, c)
		if errors.Is(err, ErrNotFound) {
			err = fmt.Errorf("an edge to a chunk: %w", err)
		}
		if err != nil {
			return 0, err
		}
		before = row.Refs
	}
	e.now[c] = before + n
	return before, nil
}

// Counts returns what List.Before and Put.Before must hold for edges to cs: each
// chunk's count just before its edge is added, the edges to the same chunk
// before it included. A chunk without a row is [ErrNotFound].
func (r *Round) Counts(realm id.Realm, cs []id.Chunk) ([]uint64, error) {
	e := edges{r, realm, make(map[id.Chunk]uint64, len(cs))}
	out := make([]uint64, len(cs))
	for i, c := range cs {
		var err error
		if out[i], err = e.step(c, 1); err != nil {
			return nil, err
		}
	}
	return out, nil
}

// Fill sets what a record says about the state before it (Before, Current,
// Old, the counts in Drops) from the round as it is now, so that applying it
// next finds what it names. Drops keep the versions that the caller chose. What
// the record refers to and is not there is [ErrNotFound]; other kinds of records
// stay as they are.
func (r *Round) Fill(rec record.Record) (err error) {
	if err := r.ready(); err != nil {
		return err
	}
	switch rec := rec.(type) {
	case *record.List:
		rec.Before, err = r.Counts(rec.In, rec.Children)
		return err
	case *record.Put:
		if rec.Current, err = r.currentVersion(rec.Bucket, rec.Key); err != nil {
			return err
		}
		e := edges{r, rec.In, make(map[id.Chunk]uint64)}
		rec.Before = make([]uint64, len(rec.Manifest.Roots))
		for i := range rec.Manifest.Roots {
			if rec.Before[i], err = e.step(rec.Manifest.Roots[i].Chunk, 1); err != nil {
				return err
			}
		}
		return r.fillDrops(&e, rec.Bucket, rec.Key, rec.Drops)
	case *record.Delete:
		rec.Current, err = r.currentVersion(rec.Bucket, rec.Key)
		return err
	case *record.Purge:
		e := edges{r, rec.In, make(map[id.Chunk]uint64)}
		return r.fillDrops(&e, rec.Bucket, rec.Key, rec.Drops)
	case *record.BucketSet:
		b, err := r.bucketOf(rec.Bucket)
		if err != nil {
			return err
		}
		rec.Old = b.Settings
	case *record.LockSet:
		o, err := r.reader.Object(rec.Bucket, rec.Key, rec.Version)
		if err != nil {
			return err
		}
		rec.Old = o.Lock
	case *record.Clock:
		rec.Old = r.clock
	case *record.Remove:
		return r.fillRemove(rec)
	}
	return nil
}

// fillRemove sets the counts of what lists give up.
func (r *Round) fillRemove(rec *record.Remove) error {
	e := edges{r, rec.In, make(map[id.Chunk]uint64)}
	for i := range rec.Chunks {
		rm := &rec.Chunks[i]
		rm.Before = nil
		row, err := r.reader.Chunk(rec.In, rm.Chunk)
		if err != nil {
			return fmt.Errorf("a chunk that is removed: %w", err)
		}
		if uint8(row.Kind) != kindList {
			continue
		}
		children, err := r.reader.Children(rec.In, rm.Chunk)
		if err != nil {
			return fmt.Errorf("the children of a list that is removed: %w", err)
		}
		for _, c := range children {
			n, err := e.step(c, ^uint64(0))
			if err != nil {
				return err
			}
			rm.Before = append(rm.Before, n)
		}
	}
	return nil
}

// currentVersion is zero when there is none.
func (r *Round) currentVersion(b id.Bucket, key []byte) (id.Version, error) {
	o, err := r.current(b, key)
	if errors.Is(err, ErrNotFound) {
		return id.Version{}, nil
	}
	return o.Version, err
}

func (r *Round) fillDrops(e *edges, b id.Bucket, key []byte, drops []record.Dropped) error {
	for i := range drops {
		o, err := r.reader.Object(b, key, drops[i].Version)
		if err != nil {
			return err
		}
		drops[i].Before = nil
		for j := range o.Manifest.Roots {
			n, err := e.step(o.Manifest.Roots[j].Chunk, ^uint64(0))
			if err != nil {
				return err
			}
			drops[i].Before = append(drops[i].Before, n)
		}
	}
	return nil
}
