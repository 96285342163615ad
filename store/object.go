package store

import (
	"cmp"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"cairn/id"
	"cairn/index"
	"cairn/manifest"
	"cairn/record"
)

// checkKey refuses keys that could not be stored or listed faithfully.
func checkKey(key string) error {
	switch {
	case key == "":
		return fmt.Errorf("%w: the key is empty", ErrInvalid)
	case len(key) > record.MaxKey:
		return fmt.Errorf("%w: the key has %d bytes, at most %d", ErrInvalid, len(key), record.MaxKey)
	case !utf8.ValidString(key):
		return fmt.Errorf("%w: the key is not valid UTF-8", ErrInvalid)
	}
	return nil
}

// checkBucketName holds names to what S3 allows, so that every face can name
// every bucket: 3 to 63 of a-z, 0-9, dot and hyphen, beginning and ending with a
// letter or digit, no two dots in a row, not the form of an IPv4 address.
func checkBucketName(name string) error {
	bad := func(why string) error {
		return fmt.Errorf("%w: bucket name %.80q %s; a name has 3 to %d lower-case letters, digits, dots and hyphens, begins and ends with a letter or a digit, "+
			"has no two dots in a row and is no number or address", ErrInvalid, name, why, record.MaxBucketName)
	}
	if len(name) < 3 || len(name) > record.MaxBucketName {
		return bad("must have 3 to 63 characters")
	}
	alnum := func(c byte) bool { return c >= 'a' && c <= 'z' || c >= '0' && c <= '9' }
	letters := false
	for i := range len(name) {
		c := name[i]
		if !alnum(c) && c != '.' && c != '-' {
			return bad("may have lower-case letters, digits, dots and hyphens only")
		}
		if c == '.' && i > 0 && name[i-1] == '.' {
			return bad("has two dots in a row")
		}
		letters = letters || c >= 'a' && c <= 'z' || c == '-'
	}
	if !alnum(name[0]) || !alnum(name[len(name)-1]) {
		return bad("must begin and end with a letter or a digit")
	}
	if !letters {
		return bad("looks like a number or an address")
	}
	return nil
}

func checkAttrs(a *record.Attrs) error {
	n := len(a.ContentType) + len(a.ContentEncoding) + len(a.ContentDisposition) + len(a.ContentLanguage) + len(a.CacheControl)
	for i, f := range a.User {
		n += len(f.Name) + len(f.Value) + 4
		if i > 0 && a.User[i-1].Name >= f.Name {
			return fmt.Errorf("%w: user metadata is not sorted, or a name is there twice", ErrInvalid)
		}
		if !utf8.ValidString(f.Name) || !utf8.ValidString(f.Value) {
			return fmt.Errorf("%w: user metadata is not valid UTF-8", ErrInvalid)
		}
	}
	for _, s := range []string{a.ContentType, a.ContentEncoding, a.ContentDisposition, a.ContentLanguage, a.CacheControl} {
		if !utf8.ValidString(s) {
			return fmt.Errorf("%w: an attribute is not valid UTF-8", ErrInvalid)
		}
	}
	if n > record.MaxAttrs {
		return fmt.Errorf("%w: attributes of %d bytes, at most %d", ErrTooLarge, n, record.MaxAttrs)
	}
	return nil
}

// translate turns the index's "not there" into ours; anything else of the index
// means that it cannot be believed.
func translate(err, notThere error) error {
	if errors.Is(err, index.ErrNotFound) {
		return notThere
	}
	return fmt.Errorf("%w: the index: %w", ErrUnavailable, err)
}

// hidden reports whether a bucket is none of the clients': no client can make one
// of such a name.
func hidden(name string) bool { return strings.HasPrefix(name, ".") }

// bucketOf looks a client's bucket up by name.
func bucketOf(r index.Reader, name string) (index.Bucket, error) {
	if hidden(name) {
		return index.Bucket{}, fmt.Errorf("bucket %.80q: %w", name, ErrNoBucket)
	}
	return anyBucketOf(r, name)
}

func anyBucketOf(r index.Reader, name string) (index.Bucket, error) {
	b, err := r.Bucket(name)
	if err != nil {
		return b, fmt.Errorf("bucket %.80q: %w", name, translate(err, ErrNoBucket))
	}
	return b, nil
}

// current returns the newest version of an object, which may be a delete marker;
// found is false when there is none.
func current(r index.Reader, b id.Bucket, key string) (o index.Object, found bool, err error) {
	o, err = r.Object(b, []byte(key), id.Version{})
	switch {
	case errors.Is(err, index.ErrNotFound):
		return o, false, nil
	case err != nil:
		return o, false, translate(err, ErrNoObject)
	}
	return o, true, nil
}

// liveOf is the version itself, or nil when there is none or it is a delete marker.
func liveOf(o *index.Object, found bool) *index.Object {
	if !found || o.Deleted {
		return nil
	}
	return o
}

// liveObject returns the current version of an object; nil when there is none.
func liveObject(r index.Reader, b id.Bucket, key string) (*index.Object, error) {
	o, found, err := current(r, b, key)
	if err != nil {
		return nil, err
	}
	return liveOf(&o, found), nil
}

// none reports whether nothing is asked for.
func (c *Conditions) none() bool {
	return len(c.IfMatch) == 0 && len(c.IfNoneMatch) == 0 && c.IfModifiedSince.IsZero() && c.IfUnmodifiedSince.IsZero()
}

// check judges conditions against the current version; o is nil when there is
// none, or only a delete marker.
func (c *Conditions) check(o *index.Object) error {
	etag := ""
	if o != nil {
		etag = hex.EncodeToString(o.ETag)
	}
	matches := func(list []string) bool {
		return o != nil && (slices.Contains(list, "*") || slices.Contains(list, etag))
	}
	if len(c.IfMatch) > 0 && !matches(c.IfMatch) {
		return fmt.Errorf("%w: If-Match", ErrPrecondition)
	}
	if len(c.IfNoneMatch) > 0 && matches(c.IfNoneMatch) {
		return fmt.Errorf("%w: If-None-Match", ErrPrecondition)
	}
	if o == nil {
		return nil
	}
	at := time.Unix(0, o.Time).Truncate(time.Second)
	if !c.IfUnmodifiedSince.IsZero() && len(c.IfMatch) == 0 && at.After(c.IfUnmodifiedSince) {
		return fmt.Errorf("%w: If-Unmodified-Since", ErrPrecondition)
	}
	if !c.IfModifiedSince.IsZero() && len(c.IfNoneMatch) == 0 && !at.After(c.IfModifiedSince) {
		return fmt.Errorf("%w: If-Modified-Since", ErrPrecondition)
	}
	return nil
}

// judge checks conditions on what is current now, so that a body which would be
// thrown away is not read. A refusal logs nothing that would show a takeover, so it
// is confirmed like a read.
func (s *Store) judge(ctx context.Context, b id.Bucket, key string, c *Conditions) error {
	if c.none() {
		return nil
	}
	err := s.view(func(r index.Reader) error {
		live, err := liveObject(r, b, key)
		if err != nil {
			return err
		}
		return c.check(live)
	})
	if errors.Is(err, ErrPrecondition) {
		return cmp.Or(s.confirmNow(ctx), err)
	}
	return err
}

// Put stores what r holds as a new version of an object and returns once the
// version would survive the loss of any m nodes. r is not read after Put returns.
func (s *Store) Put(ctx context.Context, bucket, key string, r io.Reader, opt PutOptions) (Object, error) {
	if err := cmp.Or(checkKey(key), checkAttrs(&opt.Attrs)); err != nil {
		return Object{}, err
	}
	leave, err := s.enter()
	if err != nil {
		return Object{}, err
	}
	defer leave()
	b, err := s.bucket(bucket)
	if err != nil {
		return Object{}, err
	}
	entry, o, done, end, err := s.onceOf(ctx, Name{bucket, key})
	if err != nil || done {
		o.Attrs = opt.Attrs
		return o, err
	}
	defer end()
	if err := cmp.Or(s.judge(ctx, b.ID, key, &opt.If), s.judgeQuota(ctx, b, key, opt.Size)); err != nil {
		return Object{}, err
	}
	if err := s.takesData(); err != nil {
		return Object{}, err
	}
	return s.putBody(ctx, b, key, r, opt, entry)
}

// putBody stores what r holds in any bucket; entry is that of a named request, or nil.
func (s *Store) putBody(ctx context.Context, b index.Bucket, key string, r io.Reader, opt PutOptions, entry *onceEntry) (Object, error) {
	st, err := s.newStream(ctx, b)
	if err != nil {
		return Object{}, err
	}
	defer st.giveBack()
	m, err := st.readBody(r, opt.Size)
	if err != nil {
		return Object{}, err
	}
	p := st.put(b, key, m, opt)
	st.sub.decide = entry.also(p.decide, &p.made)
	if err := s.packs.submit(ctx, st.sub, st.packs); err != nil {
		return Object{}, err
	}
	return p.made, nil
}

// takesData says why clients' data is not taken now.
func (s *Store) takesData() error {
	if err := s.writable(); err != nil {
		return err
	}
	return s.roomForData()
}

// newStream begins a body that is stored as bucket b says. The caller calls
// giveBack when its submission has its answer: until then it is a transfer.
func (s *Store) newStream(ctx context.Context, b index.Bucket) (*stream, error) {
	realm, err := s.realm(b.Realm)
	if err != nil {
		return nil, err
	}
	st := &stream{s: s, ctx: ctx, bucket: b, realm: realm, k: s.width(b.Settings), comp: b.Settings.Compression != "off",
		sub: &submission{ctx: context.WithoutCancel(ctx), client: true}, packs: map[*openPack]bool{}, transfer: s.transfer()}
	st.builder.Store = st.storeList
	return st, nil
}

// put is a version that is about to be made of a manifest.
type put struct {
	b    index.Bucket
	cond Conditions
	rec  record.Put
	made Object // set when it was decided
}

func (st *stream) put(b index.Bucket, key string, m manifest.Manifest, opt PutOptions) *put {
	return &put{b: b, cond: opt.If,
		rec: record.Put{In: b.Realm, Bucket: b.ID, Key: []byte(key), Manifest: m, ETag: st.realm.etag(m), Attrs: opt.Attrs}}
}

// decide checks the put against the index, as a submission's decide does.
func (p *put) decide(d *decision) (func() error, error) {
	bucket, key := p.b.Name, string(p.rec.Key)
	now, err := anyBucketOf(d.round, bucket)
	if err != nil {
		return nil, err
	}
	if now.ID != p.b.ID {
		return nil, fmt.Errorf("%w: bucket %.80q was deleted and made again", ErrRetry, bucket)
	}
	old, found, err := current(d.round, p.b.ID, key)
	if err != nil {
		return nil, &fatalError{err}
	}
	live := liveOf(&old, found)
	if err := p.cond.check(live); err != nil {
		return nil, err
	}
	chunks := chunksOf(p.rec.Manifest)
	if err := d.present(p.b.Realm, chunks); err != nil {
		return nil, err
	}
	if err := within(d.round, &now, key, p.rec.Manifest.Size, false); err != nil {
		return nil, err
	}
	return func() error {
		rec := p.rec // decided again, a round begins from the same record
		if err := d.emitPut(&rec, now.Settings, &old, chunks); err != nil {
			return err
		}
		p.made = madeBy(&rec, Name{bucket, key}, d.last(), live)
		return nil
	}, nil
}

// width is the most data shards of a bucket's packs. Wide codes take more memory
// when they get narrower than there may be.
func (s *Store) width(b record.Settings) int {
	return min(int(cmp.Or(b.K, DefaultWidth)), s.mem.sizes.Width)
}

func chunksOf(m manifest.Manifest) []id.Chunk {
	out := make([]id.Chunk, len(m.Roots))
	for i, r := range m.Roots {
		out[i] = r.Chunk
	}
	return out
}

// version is the version that the next record makes.
func (d *decision) version() id.Version {
	return id.Version{Seq: d.seq, Pos: uint32(len(d.records))}
}

// maxDrops bounds the versions that one record removes; older ones wait for the
// next overwrite.
const maxDrops = 64

// drops lists the newest versions of a key, to be removed once the edges to
// gained have been added.
func (d *decision) drops(b id.Bucket, realm id.Realm, key string, gained []id.Chunk) ([]record.Dropped, error) {
	versions, err := d.round.Versions(b, []byte(key), maxDrops)
	if err != nil {
		return nil, &fatalError{err}
	}
	return d.dropped(realm, versions, gained)
}

// dropped removes versions of one key, in this order: with the counts their roots
// will have once the edges to gained have been added and those of the versions
// before are gone. That none is locked was decided before: one that is stops the store.
func (d *decision) dropped(realm id.Realm, versions []index.Object, gained []id.Chunk) ([]record.Dropped, error) {
	delta := map[id.Chunk]uint64{}
	for _, c := range gained {
		delta[c]++
	}
	var out []record.Dropped
	for _, o := range versions {
		if err := d.unlocked(&o, false); err != nil {
			return nil, &fatalError{fmt.Errorf("it was to be removed: %w", err)}
		}
		drop := record.Dropped{Version: o.Version}
		for _, ref := range o.Manifest.Roots {
			row, err := d.round.Chunk(realm, ref.Chunk)
			if err != nil {
				return nil, &fatalError{fmt.Errorf("a chunk of a version that is removed: %w", err)}
			}
			drop.Before = append(drop.Before, row.Refs+delta[ref.Chunk])
			delta[ref.Chunk]--
		}
		out = append(out, drop)
	}
	return out, nil
}

// Delete hides an object behind a delete marker and returns the marker. Until
// the marker is purged, Undelete brings the object back.
func (s *Store) Delete(ctx context.Context, bucket, key string, cond Conditions) (Object, error) {
	if err := checkKey(key); err != nil {
		return Object{}, err
	}
	leave, err := s.enter()
	if err != nil {
		return Object{}, err
	}
	defer leave()
	entry, made, done, end, err := s.onceOf(ctx, Name{bucket, key})
	if err != nil || done {
		return made, err
	}
	defer end()
	err = s.writer.submit(ctx, &submission{decide: entry.also(func(d *decision) (func() error, error) {
		b, err := bucketOf(d.round, bucket)
		if err != nil {
			return nil, err
		}
		old, found, err := current(d.round, b.ID, key)
		if err != nil {
			return nil, &fatalError{err}
		}
		if !found || old.Deleted {
			// Conditions are for what there is: that there is nothing says more.
			return nil, fmt.Errorf("object %.80q in bucket %s: %w", key, bucket, ErrNoObject)
		}
		if err := cond.check(&old); err != nil {
			return nil, err
		}
		return func() error {
			made = Object{Bucket: bucket, Key: key, Version: d.version(), Modified: time.Unix(0, d.time), Deleted: true, Current: true}
			return d.emit(&record.Delete{In: b.Realm, Bucket: b.ID, Key: []byte(key), Time: d.time, Current: old.Version})
		}, nil
	}, &made)})
	if err != nil {
		return Object{}, err
	}
	return made, nil
}

// DeleteVersion removes one version, or one delete marker, for good. A version that is
// locked is [ErrLocked]; bypass passes over a retention in governance mode.
func (s *Store) DeleteVersion(ctx context.Context, bucket, key string, v id.Version, bypass bool) error {
	if v.IsZero() {
		return fmt.Errorf("%w: no version is named", ErrInvalid) // the index would take it for the newest
	}
	var gone Object
	return s.purge(ctx, bucket, key, bypass, &gone, func(r index.Reader, b index.Bucket) (index.Object, error) {
		o, err := r.Object(b.ID, []byte(key), v)
		if err != nil {
			return o, fmt.Errorf("version %v of %.80q in bucket %s: %w", v, key, bucket, translate(err, ErrNoVersion))
		}
		return o, nil
	})
}

// Undelete removes the newest delete marker of an object and returns the version
// that is current then.
func (s *Store) Undelete(ctx context.Context, bucket, key string) (Object, error) {
	var back Object
	err := s.purge(ctx, bucket, key, false, &back, func(r index.Reader, b index.Bucket) (index.Object, error) {
		vs, err := r.Versions(b.ID, []byte(key), 2)
		if err != nil {
			return index.Object{}, translate(err, ErrNoObject)
		}
		switch {
		case len(vs) == 0:
			return index.Object{}, fmt.Errorf("object %.80q in bucket %s: %w", key, bucket, ErrNoObject)
		case !vs[0].Deleted:
			return index.Object{}, fmt.Errorf("%w: object %.80q in bucket %s is not deleted", ErrPrecondition, key, bucket)
		case len(vs) == 1 || vs[1].Deleted:
			return index.Object{}, fmt.Errorf("object %.80q in bucket %s: nothing is left under the delete marker: %w", key, bucket, ErrNoObject)
		}
		back = objectOf(bucket, key, vs[1])
		back.Current = true
		return vs[0], nil
	})
	if err != nil {
		return Object{}, err
	}
	return back, nil
}

// purge removes the version that choose names. made is the outcome, which choose may
// set; it is what the first such request came to, if this one was made before.
func (s *Store) purge(ctx context.Context, bucket, key string, bypass bool, made *Object, choose func(index.Reader, index.Bucket) (index.Object, error)) error {
	if err := checkKey(key); err != nil {
		return err
	}
	leave, err := s.enter()
	if err != nil {
		return err
	}
	defer leave()
	entry, o, done, end, err := s.onceOf(ctx, Name{bucket, key})
	if err != nil || done {
		*made = o
		return err
	}
	defer end()
	return s.writer.submit(ctx, &submission{decide: entry.also(func(d *decision) (func() error, error) {
		b, err := bucketOf(d.round, bucket)
		if err != nil {
			return nil, err
		}
		o, err := choose(d.round, b)
		if err != nil {
			return nil, err
		}
		if err := cmp.Or(d.unlocked(&o, bypass), withinBack(d.round, &b, key, o.Version)); err != nil {
			return nil, err
		}
		return func() error {
			if err := d.lift(&b, key, &o); err != nil {
				return err
			}
			drops, err := d.dropped(b.Realm, []index.Object{o}, nil)
			if err != nil {
				return err
			}
			return d.emit(&record.Purge{In: b.Realm, Bucket: b.ID, Key: []byte(key), Drops: drops})
		}, nil
	}, made)})
}

// Get opens a version of an object for reading. A delete marker is
// [ErrNoObject]; conditions that do not hold are [ErrPrecondition]. The answer is
// confirmed against a takeover before Get returns.
func (s *Store) Get(ctx context.Context, bucket, key string, opt GetOptions) (out *Reading, err error) {
	if err := checkKey(key); err != nil {
		return nil, err
	}
	t := s.transfer()
	defer func() {
		if err != nil {
			t.end()
		}
	}()
	b, o, err := s.lookup(ctx, Name{bucket, key}, opt.Version)
	if err != nil {
		return nil, err
	}
	obj := objectOf(bucket, key, o)
	if o.Deleted {
		return &Reading{Object: obj}, fmt.Errorf("object %.80q in bucket %s is deleted: %w", key, bucket, ErrNoObject)
	}
	if err := opt.If.check(&o); err != nil {
		return &Reading{Object: obj}, err
	}
	t.during(ctx)
	return &Reading{Object: obj, open: func(off, n uint64) io.ReadCloser {
		return s.newBody(ctx, b.Realm, o.Manifest, off, n, t)
	}}, nil
}

// find returns a version of an object, or a delete marker; the zero version stands
// for the newest.
func find(r index.Reader, b id.Bucket, bucket, key string, v id.Version) (index.Object, error) {
	if !v.IsZero() {
		o, err := r.Object(b, []byte(key), v)
		if err != nil {
			err = fmt.Errorf("version %v of %.80q in bucket %s: %w", v, key, bucket, translate(err, ErrNoVersion))
		}
		return o, err
	}
	o, found, err := current(r, b, key)
	if err == nil && !found {
		err = fmt.Errorf("object %.80q in bucket %s: %w", key, bucket, ErrNoObject)
	}
	return o, err
}

// lookup finds a version, the current one when v is zero; it may be a delete
// marker. The answer is confirmed against a takeover.
func (s *Store) lookup(ctx context.Context, name Name, v id.Version) (b index.Bucket, o index.Object, err error) {
	confirmed, err := s.confirm.begin()
	if err != nil {
		return b, o, err
	}
	b, age, remembered := s.buckets.get(name.Bucket)
	err = s.view(func(r index.Reader) (err error) {
		if remembered {
			if o, err = find(r, b.ID, name.Bucket, name.Key, v); err == nil {
				return nil
			}
			// It is not there, or the bucket is another one by now.
		}
		if b, err = bucketOf(r, name.Bucket); err != nil {
			return err
		}
		s.buckets.put(b, age)
		o, err = find(r, b.ID, name.Bucket, name.Key, v)
		return err
	})
	return b, o, cmp.Or(confirmed(ctx), err)
}

func objectOf(bucket, key string, o index.Object) Object {
	return Object{Bucket: bucket, Key: key, Version: o.Version, Size: o.Manifest.Size, ETag: hex.EncodeToString(o.ETag),
		Modified: time.Unix(0, o.Time), Attrs: o.Attrs, Lock: exposeLock(o.Lock), Deleted: o.Deleted, Current: o.Current}
}

// List returns one page of a bucket's objects, in the byte order of their keys.
func (s *Store) List(ctx context.Context, bucket string, opt ListOptions) (Listing, error) {
	if opt.Limit <= 0 || opt.Limit > 1000 {
		opt.Limit = 1000
	}
	confirmed, err := s.confirm.begin()
	if err != nil {
		return Listing{}, err
	}
	var out Listing
	err = s.view(func(r index.Reader) error {
		b, err := bucketOf(r, bucket)
		if err != nil {
			return err
		}
		page, err := r.List(b.ID, index.ListOptions{Prefix: opt.Prefix, Delimiter: opt.Delimiter, After: opt.After, AfterVersion: opt.AfterVersion, Limit: opt.Limit, Versions: opt.Versions})
		if err != nil {
			return translate(err, ErrNoBucket)
		}
		for _, o := range page.Objects {
			out.Objects = append(out.Objects, objectOf(bucket, o.Key, o.Object))
		}
		out.Prefixes, out.More, out.Next, out.NextVersion = page.Prefixes, page.More, page.Next, page.NextVersion
		return nil
	})
	if cerr := confirmed(ctx); cerr != nil {
		return Listing{}, cerr
	}
	return out, err
}
