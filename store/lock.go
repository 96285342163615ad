package store

import (
	"context"
	"errors"
	"fmt"
	"math"
	"time"

	"cairn/id"
	"cairn/index"
	"cairn/record"
)

// Locks of versions are kept as docs/protocol.md, section 14, says.

// ErrLocked says that a version is retained or held, or that a lock cannot become what it
// was to be.
var ErrLocked = errors.New("object is locked")

// maxRetention bounds for how long a version can be retained.
const maxRetention = 36_500 * 24 * time.Hour

// Retention keeps a version from being removed until a time. The zero Retention does not.
type Retention struct {
	Mode  string // [record.Governance] or [record.Compliance]
	Until time.Time
}

// Lock is what keeps a version from being removed.
type Lock struct {
	Retention Retention // which may be over
	Hold      bool
}

func exposeLock(l record.Lock) (out Lock) {
	if out.Hold = l.Hold; l.Mode != "" {
		out.Retention = Retention{l.Mode, time.Unix(0, l.Until)}
	}
	return out
}

// LockOptions say what is to become of a version's lock. What is nil stays.
type LockOptions struct {
	Version   id.Version // zero: the current one
	Retention *Retention
	Hold      *bool
	// Bypass lets a retention in governance mode become shorter, or none.
	Bypass bool
}

// Lock changes the lock of a version, in a bucket that lets versions have one, and returns the
// version. A retention ends in the future. One in compliance mode that is not over can only
// become longer, one in governance mode likewise unless Bypass is set; else [ErrLocked].
func (s *Store) Lock(ctx context.Context, bucket, key string, opt LockOptions) (Object, error) {
	if err := checkKey(key); err != nil {
		return Object{}, err
	}
	if opt.Retention == nil && opt.Hold == nil {
		return Object{}, fmt.Errorf("%w: neither a retention nor a hold is to change", ErrInvalid)
	}
	leave, err := s.enter()
	if err != nil {
		return Object{}, err
	}
	defer leave()
	var made Object
	err = s.writer.submit(ctx, &submission{decide: func(d *decision) (func() error, error) {
		b, err := bucketOf(d.round, bucket)
		if err != nil {
			return nil, err
		}
		if !b.Settings.Lock {
			return nil, fmt.Errorf("%w: bucket %s has no object lock", ErrInvalid, bucket)
		}
		o, err := sourceOf(d.round, b.ID, Name{bucket, key}, opt.Version)
		if err != nil {
			return nil, err
		}
		next := o.Lock
		if opt.Hold != nil {
			next.Hold = *opt.Hold
		}
		if opt.Retention != nil {
			if next, err = d.retain(next, *opt.Retention, opt.Bypass); err != nil {
				return nil, fmt.Errorf("version %v of %.80q in bucket %s: %w", o.Version, key, bucket, err)
			}
		}
		return func() error {
			was := o.Lock
			o.Lock = next
			made = objectOf(bucket, key, *o)
			return d.emit(&record.LockSet{In: b.Realm, Bucket: b.ID, Key: []byte(key), Version: o.Version, Lock: next, Old: was})
		}, nil
	}})
	if err != nil {
		return Object{}, err
	}
	return made, nil
}

// retain gives a lock another retention, if that may be.
func (d *decision) retain(l record.Lock, r Retention, bypass bool) (record.Lock, error) {
	was := l
	l.Mode, l.Until = "", 0
	if r.Mode != "" {
		if err := checkMode(r.Mode); err != nil {
			return l, err
		}
		begin := time.Unix(0, d.from())
		if !r.Until.After(begin) || r.Until.Sub(begin) > maxRetention || r.Until.After(time.Unix(0, math.MaxInt64)) {
			return l, fmt.Errorf("%w: a retention ends in the future, and within 100 years; it is %s", ErrInvalid, begin.UTC().Format(time.RFC3339))
		}
		l.Mode, l.Until = r.Mode, r.Until.UnixNano()
	}
	weaker := l.Until < was.Until || was.Mode == record.Compliance && l.Mode != record.Compliance
	if was.Retained(d.sure) && weaker && (was.Mode == record.Compliance || !bypass) {
		return l, fmt.Errorf("%w: it is retained in %s mode until %s", ErrLocked, was.Mode, time.Unix(0, was.Until).UTC().Format(time.RFC3339))
	}
	return l, nil
}

func checkMode(mode string) error {
	if mode != record.Governance && mode != record.Compliance {
		return fmt.Errorf("%w: retention mode %.20q; it is %s or %s", ErrInvalid, mode, record.Governance, record.Compliance)
	}
	return nil
}

// from is the time that retentions are counted from: never before what is sure.
func (d *decision) from() int64 { return max(d.time, d.sure) }

// newLock is the lock of a new version in a bucket of such settings.
func (d *decision) newLock(s record.Settings) record.Lock {
	if s.RetentionMode == "" {
		return record.Lock{}
	}
	until := d.from() + int64(s.RetentionDays)*int64(24*time.Hour)
	if until < d.from() { // the clock has leapt to where its own time ends
		until = math.MaxInt64
	}
	return record.Lock{Mode: s.RetentionMode, Until: until}
}

// unlocked refuses to remove a version that is held or retained. With bypass a retention in
// governance mode is none.
func (d *decision) unlocked(o *index.Object, bypass bool) error {
	switch {
	case o.Lock.Hold:
		return fmt.Errorf("version %v: %w: it is under legal hold", o.Version, ErrLocked)
	case o.Lock.Retained(d.sure) && (o.Lock.Mode == record.Compliance || !bypass):
		return fmt.Errorf("version %v: %w: it is retained in %s mode until %s", o.Version, ErrLocked, o.Lock.Mode, time.Unix(0, o.Lock.Until).UTC().Format(time.RFC3339))
	}
	return nil
}

// lift takes what is left of a version's lock away in the log before it is removed.
func (d *decision) lift(b *index.Bucket, key string, o *index.Object) error {
	if !o.Lock.Held(d.sure) {
		return nil
	}
	was := o.Lock
	o.Lock = record.Lock{}
	return d.emit(&record.LockSet{In: b.Realm, Bucket: b.ID, Key: []byte(key), Version: o.Version, Old: was})
}
