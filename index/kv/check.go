package kv

import (
	"bytes"
	"context"
	"errors"
	"time"
)

// Report is what a full scan found.
type Report struct {
	State State         // what the database says of its rows
	Rows  uint64        // rows that were read
	Bytes uint64        // of keys and values, unsealed
	Bad   uint64        // rows that did not open, or were no rows of ours
	Found Digest        // of the rows that were read
	Took  time.Duration // of Check only
}

// ScanAll hands every row to fn, in order, and compares at the end the count and
// the digest of what it read with those that the same snapshot states: nil
// means that fn was given all rows, each as it was written. Until ScanAll has
// returned nil nothing that follows from a row's absence may be acted on. fn
// may be nil. The slices are valid until fn returns; an error of fn ends the
// scan and is returned ([Stop] too, for what was not read is not known). A row
// that does not open ends it with [ErrDamaged].
func (s *Snapshot) ScanAll(ctx context.Context, fn func(key, value []byte) error) (Report, error) {
	return s.scanAll(ctx, fn, true)
}

func (s *Snapshot) scanAll(ctx context.Context, fn func(key, value []byte) error, stopAtBad bool) (r Report, err error) {
	r.State, err = s.State()
	if err != nil {
		return r, err
	}
	seal := s.db.seal
	var cur EngineCursor
	// Without bounds: a row that was planted beyond ours is met as well.
	if err := guard(func() error { cur = s.snap.Cursor(nil, nil, false); return nil }); err != nil {
		return r, s.db.note("scan", err)
	}
	defer func() { _ = guard(func() error { cur.Close(); return nil }) }()
	var last []byte
	step := func() (key, sealed []byte, err error) {
		defer recovered(&err)
		if !cur.Next() {
			return nil, nil, cur.Err()
		}
		return cur.Key(), cur.Value(), nil
	}
	for n := 0; ; n++ {
		if n%ctxEvery == 0 && ctx.Err() != nil {
			return r, fail("scan", context.Cause(ctx))
		}
		key, sealed, err := step()
		if err != nil {
			return r, s.db.note("scan", err)
		}
		if key == nil {
			break
		}
		if bytes.Equal(key, stateKey) && n == 0 {
			continue
		}
		if len(last) > 0 && bytes.Compare(last, key) >= 0 {
			return r, s.db.note("scan", damaged("rows out of order"))
		}
		last = append(last[:0], key...)
		if len(key) == 0 || key[0] != kindRow {
			r.Bad++
			if stopAtBad {
				return r, s.db.note("scan", damaged("a row of an unknown kind"))
			}
			continue
		}
		share := seal.share(key, sealed)
		r.Found.add(&share)
		r.Rows++
		s.bound = bind(s.bound, kindRow, key[1:])
		s.value, err = seal.open(s.value[:0], s.bound, sealed)
		if err != nil {
			r.Bad++
			if stopAtBad {
				return r, s.db.note("scan", err)
			}
			continue
		}
		r.Bytes += uint64(len(key) - 1 + len(s.value))
		if fn != nil {
			if err := fn(last[1:], s.value); err != nil {
				return r, err
			}
		}
	}
	return r, s.db.note("scan", r.judge())
}

// judge compares what was read with what was stated.
func (r *Report) judge() error {
	switch {
	case r.Bad > 0:
		return damaged("%d rows do not open", r.Bad)
	case r.Rows != r.State.Rows:
		return damaged("%d rows where there were %d", r.Rows, r.State.Rows)
	case r.Found != r.State.Digest:
		return damaged("the digest over %d rows is another", r.Rows)
	}
	return nil
}

// Check has the engine verify its files and reads every row in one snapshot.
// nil means that all rows are there as they were written. It goes on after
// damage, so that the report says how much there is.
func (db *DB) Check(ctx context.Context) (Report, error) {
	start := time.Now()
	if err := db.enter(); err != nil {
		return Report{}, fail("check", err)
	}
	defer db.leave()
	verr := guard(func() error { return db.engine.Verify(ctx) })
	if err := ctx.Err(); err != nil {
		return Report{}, fail("check", context.Cause(ctx))
	}
	snap, err := db.snapshot()
	if err != nil {
		return Report{}, db.note("check", errors.Join(verr, err))
	}
	defer snap.release()
	r, err := snap.scanAll(ctx, nil, false)
	r.Took = time.Since(start)
	if verr != nil {
		err = errors.Join(verr, err)
	}
	return r, db.note("check", err)
}
