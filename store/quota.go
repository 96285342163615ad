package store

import (
	"cmp"
	"context"
	"errors"
	"fmt"

	"cairn/id"
	"cairn/index"
)

// ErrQuota says that a bucket would hold more than its quota. Nothing was stored.
var ErrQuota = errors.New("quota exceeded")

// QuotaError is an [ErrQuota] that says by how much. Each figure is of the bucket with
// what was to be stored, and zero when that quota is not exceeded.
type QuotaError struct {
	Bucket       string
	Bytes, Quota uint64 // logical bytes of all versions
	Objects, Max uint64
}

func (e *QuotaError) Error() string {
	if e.Quota > 0 {
		return fmt.Sprintf("bucket %s would hold %d bytes in all versions, its quota is %d", e.Bucket, e.Bytes, e.Quota)
	}
	return fmt.Sprintf("bucket %s would hold %d objects, at most %d may be in it", e.Bucket, e.Objects, e.Max)
}

func (e *QuotaError) Unwrap() error { return ErrQuota }

// change is what a write does to what a bucket counts.
type change struct {
	more, less uint64 // bytes of versions that it adds, and removes
	objects    int    // that a plain listing shows
}

// allows refuses what adds to a bucket beyond a quota. What takes no more than it gives
// back is never refused, also where the quota was set below what was there.
func allows(b *index.Bucket, c change) error {
	if q := b.Settings.QuotaBytes; q > 0 && c.more > c.less {
		if after := b.Bytes - c.less + c.more; after > q || after < b.Bytes {
			return &QuotaError{Bucket: b.Name, Bytes: after, Quota: q}
		}
	}
	if q := b.Settings.QuotaObjects; q > 0 && c.objects > 0 {
		if after := b.Objects + uint64(c.objects); after > q {
			return &QuotaError{Bucket: b.Name, Objects: after, Max: q}
		}
	}
	return nil
}

// hasQuota reports whether there is something to be held to.
func hasQuota(b *index.Bucket) bool { return b.Settings.QuotaBytes|b.Settings.QuotaObjects > 0 }

// within refuses a new version of so many bytes that the bucket has no quota for. moved
// says that an object goes out of the bucket's listing with it.
func within(r index.Reader, b *index.Bucket, key string, size uint64, moved bool) error {
	if !hasQuota(b) {
		return nil
	}
	// Without versioning a put removes what this lists, and drops in the same order.
	versions, err := r.Versions(b.ID, []byte(key), maxDrops)
	if err != nil {
		return &fatalError{err}
	}
	c := change{more: size}
	if len(versions) == 0 || versions[0].Deleted {
		c.objects++
	}
	if moved {
		c.objects--
	}
	for _, v := range versions {
		if !b.Settings.Versioning {
			c.less += v.Manifest.Size
		}
	}
	return allows(b, c)
}

// withinBack refuses to take a delete marker away when the object under it would be one
// too many.
func withinBack(r index.Reader, b *index.Bucket, key string, marker id.Version) error {
	if b.Settings.QuotaObjects == 0 {
		return nil
	}
	versions, err := r.Versions(b.ID, []byte(key), 2)
	if err != nil {
		return &fatalError{err}
	}
	if len(versions) == 2 && versions[0].Version == marker && versions[0].Deleted && !versions[1].Deleted {
		return allows(b, change{objects: 1})
	}
	return nil
}

// judgeQuota looks beforehand whether a body of a declared length has a chance, so that
// one which would be thrown away is not read. The log writer decides.
func (s *Store) judgeQuota(ctx context.Context, b index.Bucket, key string, size int64) error {
	if !hasQuota(&b) {
		return nil
	}
	err := s.view(func(r index.Reader) error {
		now, err := r.BucketByID(b.ID)
		if err != nil {
			return fmt.Errorf("bucket %.80q: %w", b.Name, translate(err, ErrNoBucket))
		}
		return within(r, &now, key, uint64(max(size, 0)), false)
	})
	if errors.Is(err, ErrQuota) {
		return cmp.Or(s.confirmNow(ctx), err)
	}
	return err
}
