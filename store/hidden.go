package store

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"cairn/index"
	"cairn/record"
)

// Hidden buckets hold what clients do not name: uploads that are not objects yet,
// what named requests came to, and the history of jobs.
const (
	uploadsBucket  = ".uploads"
	requestsBucket = ".requests"

	hiddenPage   = 100 // objects listed at a time: a hundred parts take 100 KB
	purgedAtOnce = 100 // objects in one round
	clearEvery   = time.Hour
)

// claims holds what this process works on.
type claims struct {
	mu   sync.Mutex
	busy map[string]bool
}

// claim makes the caller the only one who works on something.
func (u *claims) claim(id string) (release func(), err error) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.busy[id] {
		return nil, fmt.Errorf("%s: %w", id, ErrInUse)
	}
	if u.busy == nil {
		u.busy = make(map[string]bool)
	}
	u.busy[id] = true
	return func() {
		u.mu.Lock()
		defer u.mu.Unlock()
		delete(u.busy, id)
	}, nil
}

// hiddenBucket is one that no client can name; it is made when create is set.
func (s *Store) hiddenBucket(ctx context.Context, name string, create bool) (index.Bucket, error) {
	for {
		var b index.Bucket
		err := s.view(func(r index.Reader) (err error) {
			b, err = anyBucketOf(r, name)
			return err
		})
		if err == nil || !create || !errors.Is(err, ErrNoBucket) {
			return b, err
		}
		if _, err := s.createBucket(ctx, name, record.Settings{}); err != nil && !errors.Is(err, ErrBucketExists) {
			return b, err
		}
	}
}

// eachHidden hands what opt lists of a hidden bucket to fn, a page at a time, each
// in a view of its own that has ended: fn may change what it is given.
func (s *Store) eachHidden(ctx context.Context, in index.Bucket, opt index.ListOptions, fn func(index.Page) error) error {
	opt.Limit = hiddenPage
	for {
		if err := ctx.Err(); err != nil {
			return context.Cause(ctx)
		}
		var page index.Page
		if err := s.view(func(r index.Reader) (err error) {
			page, err = r.List(in.ID, opt)
			return err
		}); err != nil {
			return translate(err, ErrNoBucket)
		}
		if err := fn(page); err != nil {
			return err
		}
		if !page.More {
			return nil
		}
		opt.After, opt.AfterVersion = page.Next, page.NextVersion
	}
}

// purgeAll removes an object of the hidden bucket, which has one version, for good.
func (d *decision) purgeAll(b index.Bucket, key string) error {
	versions, err := d.round.Versions(b.ID, []byte(key), maxDrops)
	if err != nil {
		return &fatalError{err}
	}
	drops, err := d.dropped(b.Realm, versions, nil)
	if err != nil || len(drops) == 0 {
		return err
	}
	return d.emit(&record.Purge{In: b.Realm, Bucket: b.ID, Key: []byte(key), Drops: drops})
}

// clearSoon lets the loop clear what was completed or aborted.
func (s *Store) clearSoon() {
	select {
	case s.wantClear <- struct{}{}:
	default:
	}
}

// clearLoop clears hidden buckets until ctx ends. What has expired goes by the time that
// is sure to have passed.
func (s *Store) clearLoop(ctx context.Context) {
	t := time.NewTicker(clearEvery)
	defer t.Stop()
	for {
		if err := s.ClearUploads(ctx); err != nil && ctx.Err() == nil {
			s.log.Warn("uploads were not cleared, trying again later", "err", err)
		}
		select {
		case <-ctx.Done():
			return
		case <-s.wantClear:
		case <-t.C:
			s.expire(ctx, time.Unix(0, s.believed()))
		}
	}
}

// expire drops what was old at that time.
func (s *Store) expire(ctx context.Context, at time.Time) {
	n, err := s.expireUploads(ctx, at)
	if err = errors.Join(err, s.expireRequests(ctx, at)); err != nil && ctx.Err() == nil {
		s.log.Warn("what has expired was not all dropped, trying again later", "err", err)
	}
	if n > 0 {
		s.log.Info("uploads expired", "number", n)
	}
}
