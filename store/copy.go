package store

import (
	"cmp"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"slices"
	"time"

	"cairn/id"
	"cairn/index"
	"cairn/manifest"
	"cairn/record"
)

// Name is a bucket and a key in it.
type Name struct{ Bucket, Key string }

// CopyOptions say what is copied, and when. A zero field asks for nothing.
type CopyOptions struct {
	Version id.Version // of the source; zero: the current one
	Source  Conditions // of the version that is copied
	If      Conditions // of what is current under the new name
	// Attrs take the place of those of the source; nil: they are kept.
	Attrs *record.Attrs
}

// Copy makes a version of an object the current one under a name, which may be
// its own. No byte is read or written: the new version refers to the same chunks.
// The source is looked up where the copy takes effect in the log, so that it is
// there then. Both buckets must be of one realm. A source with a chunk that is
// known to be lost is [ErrDamaged].
func (s *Store) Copy(ctx context.Context, from, to Name, opt CopyOptions) (Object, error) {
	return s.copy(ctx, from, to, opt, false)
}

// Rename copies the current version of an object to another name and deletes it
// under its own, at one point of the log: nobody sees both, or neither. The old
// name keeps its versions below a delete marker, as [Store.Delete] leaves them.
func (s *Store) Rename(ctx context.Context, from, to Name, opt CopyOptions) (Object, error) {
	switch {
	case from == to:
		return Object{}, fmt.Errorf("%w: an object is renamed to its own name", ErrInvalid)
	case !opt.Version.IsZero():
		return Object{}, fmt.Errorf("%w: the current version is renamed, no other can be", ErrInvalid)
	}
	return s.copy(ctx, from, to, opt, true)
}

func (s *Store) copy(ctx context.Context, from, to Name, opt CopyOptions, move bool) (Object, error) {
	if err := cmp.Or(checkKey(from.Key), checkKey(to.Key)); err != nil {
		return Object{}, err
	}
	if opt.Attrs != nil {
		if err := checkAttrs(opt.Attrs); err != nil {
			return Object{}, err
		}
	}
	leave, err := s.enter()
	if err != nil {
		return Object{}, err
	}
	defer leave()
	entry, made, done, end, err := s.onceOf(ctx, to)
	if err != nil || done {
		if opt.Attrs != nil {
			made.Attrs = *opt.Attrs
		}
		return made, err
	}
	defer end()
	if err := s.takesData(); err != nil {
		return Object{}, err
	}
	// Chunks deep within are looked at beforehand, the roots once more at the decision.
	var (
		before *index.Object
		realm  id.Realm
	)
	t := s.transfer()
	defer t.end()
	if err := s.view(func(r index.Reader) error {
		if in, err := bucketOf(r, from.Bucket); err == nil {
			realm = in.Realm
			before, _ = sourceOf(r, in.ID, from, opt.Version) // the decision says why there is none
		}
		return nil
	}); err != nil {
		return Object{}, err
	}
	if before != nil {
		if err := s.allThere(ctx, realm, before.Manifest); err != nil {
			return Object{}, fmt.Errorf("the source: %w", err)
		}
	}
	err = s.writer.submit(ctx, &submission{client: true, decide: entry.also(func(d *decision) (func() error, error) {
		in, err := bucketOf(d.round, from.Bucket)
		if err != nil {
			return nil, err
		}
		b, err := bucketOf(d.round, to.Bucket)
		if err != nil {
			return nil, err
		}
		if in.Realm != b.Realm {
			return nil, fmt.Errorf("%w: buckets %s and %s are of two realms, whose chunks are kept apart: read the object and put it", ErrInvalid, from.Bucket, to.Bucket)
		}
		source, err := sourceOf(d.round, in.ID, from, opt.Version)
		if err != nil {
			return nil, err
		}
		if err := opt.Source.check(source); err != nil {
			return nil, fmt.Errorf("the source: %w", err)
		}
		old, found, err := current(d.round, b.ID, to.Key)
		if err != nil {
			return nil, &fatalError{err}
		}
		live := liveOf(&old, found)
		if err := opt.If.check(live); err != nil {
			return nil, err
		}
		roots := chunksOf(source.Manifest)
		if err := d.sound(b.Realm, roots); err != nil {
			return nil, err
		}
		if err := within(d.round, &b, to.Key, source.Manifest.Size, move && in.ID == b.ID); err != nil {
			return nil, err
		}
		return func() error {
			rec := record.Put{In: b.Realm, Bucket: b.ID, Key: []byte(to.Key), Manifest: source.Manifest, ETag: source.ETag, Attrs: source.Attrs}
			if opt.Attrs != nil {
				rec.Attrs = *opt.Attrs
			}
			if err := d.emitPut(&rec, b.Settings, &old, roots); err != nil {
				return err
			}
			made = madeBy(&rec, to, d.last(), live)
			if !move {
				return nil
			}
			return d.emit(&record.Delete{In: in.Realm, Bucket: in.ID, Key: []byte(from.Key), Time: d.time, Current: source.Version})
		}, nil
	}, &made)})
	if err != nil {
		return Object{}, err
	}
	return made, nil
}

// sourceOf looks up what is copied.
func sourceOf(r index.Reader, b id.Bucket, from Name, v id.Version) (*index.Object, error) {
	if v.IsZero() {
		o, err := liveObject(r, b, from.Key)
		switch {
		case err != nil:
			return nil, &fatalError{err}
		case o == nil:
			return nil, fmt.Errorf("object %.80q in bucket %s: %w", from.Key, from.Bucket, ErrNoObject)
		}
		return o, nil
	}
	o, err := r.Object(b, []byte(from.Key), v)
	switch {
	case errors.Is(err, index.ErrNotFound):
		return nil, fmt.Errorf("version %v of %.80q in bucket %s: %w", v, from.Key, from.Bucket, ErrNoVersion)
	case err != nil:
		return nil, &fatalError{err}
	case o.Deleted:
		return nil, fmt.Errorf("version %v of %.80q in bucket %s is a delete marker: %w", v, from.Key, from.Bucket, ErrNoObject)
	}
	return &o, nil
}

// allThere refuses, with [ErrDamaged], a manifest with a chunk that is marked as lost.
// It looks only when something may be: every chunk is looked up.
func (s *Store) allThere(ctx context.Context, realmID id.Realm, m manifest.Manifest) error {
	if len(s.members.Load().rec.Gone) == 0 && !s.marked.Load() {
		return nil
	}
	realm, err := s.realm(realmID)
	if err != nil {
		return err
	}
	w := walker{s: s, realm: realm, to: m.Size, stack: []part{{refs: slices.Clone(m.Roots)}}}
	for {
		l, err := w.next(ctx)
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		var row index.ChunkRow
		if err := s.view(func(r index.Reader) (err error) {
			row, err = r.Chunk(realmID, l.ref.Chunk)
			return err
		}); err != nil {
			return translate(err, ErrDamaged)
		}
		if row.State == index.Damaged {
			return fmt.Errorf("%w: a chunk, at byte %d of %d, is lost", ErrDamaged, w.pos-l.ref.Len, m.Size)
		}
	}
}

// sound checks chunks that a version refers to, so that they are there.
func (d *decision) sound(realm id.Realm, chunks []id.Chunk) error {
	for _, c := range chunks {
		row, err := d.round.Chunk(realm, c)
		if err != nil {
			return &fatalError{fmt.Errorf("a chunk of a version: %w", err)}
		}
		if row.State == index.Damaged {
			return fmt.Errorf("%w: a chunk of the source is lost", ErrDamaged)
		}
	}
	return nil
}

// emitPut completes a put with what the round is at, and emits it. old is the
// newest version under its key, zero when there is none.
func (d *decision) emitPut(rec *record.Put, s record.Settings, old *index.Object, roots []id.Chunk) (err error) {
	rec.Time, rec.Current, rec.Lock = d.time, old.Version, d.newLock(s)
	if rec.Before, err = d.counts(rec.In, roots); err != nil {
		return err
	}
	if !s.Versioning && !old.Version.IsZero() {
		if rec.Drops, err = d.drops(rec.Bucket, rec.In, string(rec.Key), roots); err != nil {
			return err
		}
	}
	return d.emit(rec)
}

// last is the version that the record emitted last has made.
func (d *decision) last() id.Version {
	return id.Version{Seq: d.seq, Pos: uint32(len(d.records) - 1)}
}

// madeBy is what a put has made; live is what it replaced, or nil.
func madeBy(rec *record.Put, name Name, v id.Version, live *index.Object) Object {
	return Object{Bucket: name.Bucket, Key: name.Key, Version: v, Size: rec.Manifest.Size, ETag: hex.EncodeToString(rec.ETag),
		Modified: time.Unix(0, rec.Time), Attrs: rec.Attrs, Lock: exposeLock(rec.Lock), Current: true, Replaced: live != nil}
}
