package store

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"time"

	"cairn/id"
	"cairn/index"
	"cairn/record"
)

func checkSettings(b record.Settings) error {
	switch b.Compression {
	case "", "auto", "off":
	default:
		return fmt.Errorf("%w: compression %.20q; it is auto or off", ErrInvalid, b.Compression)
	}
	switch b.Profile {
	case "", "default", "fine":
	default:
		return fmt.Errorf("%w: profile %.20q; it is default or fine", ErrInvalid, b.Profile)
	}
	if b.K > 16 {
		return fmt.Errorf("%w: k = %d data shards; at most 16", ErrInvalid, b.K)
	}
	switch {
	case b.Lock && !b.Versioning:
		return fmt.Errorf("%w: a bucket with object lock keeps versions", ErrInvalid)
	case b.RetentionMode == "" && b.RetentionDays == 0:
		return nil
	case !b.Lock:
		return fmt.Errorf("%w: versions are retained only in a bucket with object lock", ErrInvalid)
	case b.RetentionDays == 0 || time.Duration(b.RetentionDays) > maxRetention/(24*time.Hour):
		return fmt.Errorf("%w: versions are retained for 1 to %d days, not %d", ErrInvalid, maxRetention/(24*time.Hour), b.RetentionDays)
	}
	return checkMode(b.RetentionMode)
}

func exposeBucket(b index.Bucket) Bucket {
	return Bucket{ID: b.ID, Name: b.Name, Realm: b.Realm, Created: time.Unix(0, b.Time), Settings: b.Settings, Objects: b.Objects, Bytes: b.Bytes}
}

// CreateBucket makes a bucket in realm main.
func (s *Store) CreateBucket(ctx context.Context, name string, set record.Settings) (Bucket, error) {
	if err := cmp.Or(checkBucketName(name), checkSettings(set)); err != nil {
		return Bucket{}, err
	}
	leave, err := s.enter()
	if err != nil {
		return Bucket{}, err
	}
	defer leave()
	return s.createBucket(ctx, name, set)
}

// createBucket makes a bucket of any name.
func (s *Store) createBucket(ctx context.Context, name string, set record.Settings) (made Bucket, err error) {
	err = s.writer.submit(ctx, &submission{decide: func(d *decision) (func() error, error) {
		if _, err := d.round.Bucket(name); err == nil {
			return nil, fmt.Errorf("bucket %s: %w", name, ErrBucketExists)
		} else if !errors.Is(err, index.ErrNotFound) {
			return nil, &fatalError{err}
		}
		return func() error {
			b, err := d.round.NextBucket()
			if err != nil {
				return &fatalError{err}
			}
			made = Bucket{ID: b, Name: name, Realm: id.Main, Created: time.Unix(0, d.time), Settings: set}
			return d.emit(&record.BucketCreate{In: id.Main, Bucket: b, Name: name, Settings: set, Time: d.time})
		}, nil
	}})
	return made, err
}

// SetBucket replaces a bucket's settings. What is stored already stays as it is. Object lock
// is not taken away again ([ErrLocked]).
func (s *Store) SetBucket(ctx context.Context, name string, set record.Settings) error {
	if err := checkSettings(set); err != nil {
		return err
	}
	leave, err := s.enter()
	if err != nil {
		return err
	}
	defer leave()
	return s.writer.submit(ctx, &submission{decide: func(d *decision) (func() error, error) {
		b, err := bucketOf(d.round, name)
		if err != nil {
			return nil, err
		}
		if b.Settings.Lock && !set.Lock {
			return nil, fmt.Errorf("bucket %s: %w: it has object lock for good", name, ErrLocked)
		}
		return func() error {
			return d.emit(&record.BucketSet{In: b.Realm, Bucket: b.ID, Settings: set, Old: b.Settings})
		}, nil
	}})
}

// DeleteBucket removes a bucket that has no objects. Delete markers and what
// lies under them go with it, unless it has object lock: then versions are purged one by one.
func (s *Store) DeleteBucket(ctx context.Context, name string) error {
	leave, err := s.enter()
	if err != nil {
		return err
	}
	defer leave()
	for {
		more := false
		err := s.writer.submit(ctx, &submission{decide: func(d *decision) (func() error, error) {
			more = false
			b, err := bucketOf(d.round, name)
			if err != nil {
				return nil, err
			}
			if b.Objects > 0 {
				return nil, fmt.Errorf("bucket %s holds %d objects: %w", name, b.Objects, ErrBucketNotEmpty)
			}
			if b.Settings.Lock && b.Versions > 0 {
				return nil, fmt.Errorf("bucket %s has object lock and holds %d versions: %w", name, b.Versions, ErrBucketNotEmpty)
			}
			// Markers and the versions under them are purged first, a bounded number
			// at a time; the bucket goes with the last.
			page, err := d.round.List(b.ID, index.ListOptions{Limit: 200, Versions: true})
			if err != nil {
				return nil, &fatalError{err}
			}
			return func() error {
				more = page.More
				for left := page.Objects; len(left) > 0; {
					key := left[0].Key
					var versions []index.Object
					for len(left) > 0 && left[0].Key == key {
						versions, left = append(versions, left[0].Object), left[1:]
					}
					// A key may have more versions than are on the page: its marker goes
					// with the last of them, for without it they would be seen again.
					if more && len(left) == 0 {
						if versions = versions[1:]; len(versions) == 0 {
							break
						}
					}
					drops, err := d.dropped(b.Realm, versions, nil)
					if err != nil {
						return err
					}
					if err := d.emit(&record.Purge{In: b.Realm, Bucket: b.ID, Key: []byte(key), Drops: drops}); err != nil {
						return err
					}
				}
				if more {
					return nil
				}
				if err := d.forgetRules(b.ID); err != nil {
					return err
				}
				return d.emit(&record.BucketDelete{In: b.Realm, Bucket: b.ID, Name: name})
			}, nil
		}})
		if err != nil || !more {
			return err
		}
	}
}

// Bucket describes one bucket.
func (s *Store) Bucket(ctx context.Context, name string) (Bucket, error) {
	confirmed, err := s.confirm.begin()
	if err != nil {
		return Bucket{}, err
	}
	var out Bucket
	err = s.view(func(r index.Reader) error {
		b, err := bucketOf(r, name)
		out = exposeBucket(b)
		return err
	})
	if cerr := confirmed(ctx); cerr != nil {
		return Bucket{}, cerr
	}
	return out, err
}

// Buckets lists all buckets by name.
func (s *Store) Buckets(ctx context.Context) ([]Bucket, error) {
	confirmed, err := s.confirm.begin()
	if err != nil {
		return nil, err
	}
	var out []Bucket
	err = s.view(func(r index.Reader) error {
		bs, err := r.Buckets()
		for _, b := range bs {
			if !hidden(b.Name) {
				out = append(out, exposeBucket(b))
			}
		}
		return err
	})
	if cerr := confirmed(ctx); cerr != nil {
		return nil, cerr
	}
	return out, err
}
