package store

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"strconv"
	"time"

	"cairn/id"
	"cairn/index"
	"cairn/manifest"
	"cairn/record"
)

// Uploads in several requests are kept as docs/protocol.md, section 8, says.

const (
	headPrefix = "h/"
	partPrefix = "p/"
	maxParts   = 10_000
	// partsOfASize is after how many parts the parts of an upload become twice as
	// long, so that any upload fits.
	partsOfASize = 500
	// uploadKeep is how long an upload stays to which nothing comes.
	uploadKeep  = 7 * 24 * time.Hour
	attrSize    = "size"
	attrDone    = "done"
	uploadIDLen = 32
)

// ErrNoUpload says that there is no such upload: it was never begun, was aborted,
// or has expired.
var ErrNoUpload = errors.New("no such upload")

// ErrOffset says that bytes were sent for another place of an upload than its end.
var ErrOffset = errors.New("upload continues at another offset")

// ErrTooManyParts says that an upload takes no further request.
var ErrTooManyParts = fmt.Errorf("an upload has at most %d parts", maxParts)

// ErrInUse says that another request works on the upload.
var ErrInUse = errors.New("upload is in use")

// Upload is an object on its way in several requests.
type Upload struct {
	ID      string
	Bucket  string
	Key     string
	Attrs   record.Attrs
	Size    int64  // declared length of the object in bytes; -1: not known yet
	Offset  uint64 // bytes that are durable
	Note    []byte // whatever the caller of BeginUpload keeps with it
	Changed time.Time
	Expires time.Time
	// Done is the version that it became; zero: it is not complete.
	Done id.Version
	// Lost says that what it is to become cannot be read any more: it can be aborted.
	Lost bool
}

// UploadOptions say what an upload is to become.
type UploadOptions struct {
	Attrs record.Attrs
	Size  int64  // declared length of the object in bytes, -1 when it is not known
	Note  []byte // at most record.MaxUploadNote bytes, given back with Upload
	// If is judged when the upload begins, so that what would be refused is not sent.
	// CompleteUpload is told its conditions again.
	If Conditions
}

func partKey(id string, n int) string { return fmt.Sprintf("%s%s/%08x", partPrefix, id, n) }

func noUpload(id string) error { return fmt.Errorf("upload %.40q: %w", id, ErrNoUpload) }

// upload is an upload as it is in the index.
type upload struct {
	Upload
	in     index.Bucket // the hidden bucket
	bucket id.Bucket    // of the object
	head   index.Object
	parts  int
}

// BeginUpload begins an upload. The object comes into being with CompleteUpload.
func (s *Store) BeginUpload(ctx context.Context, bucket, key string, opt UploadOptions) (Upload, error) {
	if err := cmp.Or(checkKey(key), checkAttrs(&opt.Attrs)); err != nil {
		return Upload{}, err
	}
	leave, err := s.enter()
	if err != nil {
		return Upload{}, err
	}
	defer leave()
	b, err := s.bucket(bucket)
	if err != nil {
		return Upload{}, err
	}
	if err := cmp.Or(s.judge(ctx, b.ID, key, &opt.If), s.judgeQuota(ctx, b, key, opt.Size)); err != nil {
		return Upload{}, err
	}
	if err := s.takesData(); err != nil {
		return Upload{}, err
	}
	head := record.UploadHead{Bucket: b.ID, Name: b.Name, Key: []byte(key), Attrs: opt.Attrs, Size: max(opt.Size, -1), Note: opt.Note}
	body, err := head.Append(nil)
	if err != nil {
		return Upload{}, fmt.Errorf("%w: %w", ErrInvalid, err)
	}
	in, err := s.hiddenBucket(ctx, uploadsBucket, true)
	if err != nil {
		return Upload{}, err
	}
	name, err := id.NewUpload(s.random(forUploads))
	if err != nil {
		return Upload{}, fmt.Errorf("%w: random bytes: %w", ErrUnavailable, err)
	}
	uid := name.String()
	made, err := s.putBody(ctx, in, headPrefix+uid, bytes.NewReader(body), PutOptions{Size: int64(len(body)), If: Conditions{IfNoneMatch: []string{"*"}}}, nil)
	if err != nil {
		return Upload{}, err
	}
	return Upload{ID: uid, Bucket: bucket, Key: key, Attrs: opt.Attrs, Size: head.Size, Note: opt.Note, Changed: made.Modified, Expires: made.Modified.Add(uploadKeep)}, nil
}

// Upload describes an upload.
func (s *Store) Upload(ctx context.Context, uid string) (Upload, error) {
	u, err := s.upload(ctx, uid)
	if err != nil {
		return Upload{}, err
	}
	return u.Upload, nil
}

func (s *Store) upload(ctx context.Context, uid string) (*upload, error) {
	if len(uid) != uploadIDLen {
		return nil, noUpload(uid)
	}
	confirmed, err := s.confirm.begin()
	if err != nil {
		return nil, err
	}
	t := s.transfer()
	defer t.end()
	u := &upload{Upload: Upload{ID: uid}}
	err = s.view(func(r index.Reader) (err error) {
		u.in, err = anyBucketOf(r, uploadsBucket)
		if errors.Is(err, ErrNoBucket) {
			return noUpload(uid)
		}
		if err != nil {
			return err
		}
		var found bool
		if u.head, found, err = current(r, u.in.ID, headPrefix+uid); err == nil && !found {
			err = noUpload(uid)
		}
		if err != nil {
			return err
		}
		u.Changed = time.Unix(0, u.head.Time)
		if isDone(u.head) {
			return nil // its parts are being cleared
		}
		return s.eachPart(r, u.in.ID, uid, func(o index.Item) error {
			if o.Key != partKey(uid, u.parts) {
				return fmt.Errorf("%w: upload %s lacks part %d", ErrDamaged, uid, u.parts)
			}
			u.parts++
			u.Offset += o.Manifest.Size
			if t := time.Unix(0, o.Time); t.After(u.Changed) {
				u.Changed = t
			}
			return nil
		})
	})
	if cerr := confirmed(ctx); cerr != nil {
		return nil, cerr
	}
	if err != nil {
		return nil, err
	}
	body := s.newBody(ctx, u.in.Realm, u.head.Manifest, 0, u.head.Manifest.Size, t)
	b, err := io.ReadAll(io.LimitReader(body, record.MaxUploadHead+1))
	if err = errors.Join(err, body.Close()); err != nil {
		return nil, fmt.Errorf("head of upload %s: %w", uid, err)
	}
	head, err := record.ParseUploadHead(b)
	if err != nil {
		return nil, fmt.Errorf("head of upload %s: %w", uid, err)
	}
	u.bucket, u.Bucket, u.Key, u.Attrs, u.Size, u.Note = head.Bucket, head.Name, string(head.Key), head.Attrs, head.Size, head.Note
	for _, f := range u.head.Attrs.User {
		switch f.Name {
		case attrSize:
			u.Size, err = strconv.ParseInt(f.Value, 10, 64)
		case attrDone:
			u.Done, err = id.ParseVersion(f.Value)
		}
		if err != nil {
			return nil, fmt.Errorf("%w: head of upload %s: %w", ErrDamaged, uid, err)
		}
	}
	u.Expires = u.Changed.Add(uploadKeep)
	if !u.Done.IsZero() {
		u.Offset = uint64(u.Size)
	}
	return u, nil
}

// maxUploadPage bounds what Uploads gives at a time: each of them is read.
const maxUploadPage = 100

// Uploads lists uploads that are not complete, in the order of their IDs: those above
// after, at most limit of them and [maxUploadPage]. more says that others follow.
func (s *Store) Uploads(ctx context.Context, after string, limit int) (out []Upload, more bool, err error) {
	if limit <= 0 || limit > maxUploadPage {
		limit = maxUploadPage
	}
	in, err := s.hiddenBucket(ctx, uploadsBucket, false)
	if errors.Is(err, ErrNoBucket) {
		return nil, false, nil
	}
	if err != nil {
		return nil, false, err
	}
	err = s.eachHidden(ctx, in, index.ListOptions{Prefix: headPrefix, After: headPrefix + after}, func(page index.Page) error {
		for _, o := range page.Objects {
			if isDone(o.Object) {
				continue
			}
			if len(out) == limit {
				more = true
				return errStop
			}
			uid := o.Key[len(headPrefix):]
			u, err := s.upload(ctx, uid)
			switch {
			case errors.Is(err, ErrNoUpload): // it went meanwhile
			case errors.Is(err, ErrDamaged):
				changed := time.Unix(0, o.Time)
				out = append(out, Upload{ID: uid, Size: -1, Changed: changed, Expires: changed.Add(uploadKeep), Lost: true})
			case err != nil:
				return err
			case u.Done.IsZero():
				out = append(out, u.Upload)
			}
		}
		return nil
	})
	if errors.Is(err, errStop) {
		err = nil
	}
	return out, more, err
}

// eachPart hands the parts of an upload to fn in order.
func (s *Store) eachPart(r index.Reader, in id.Bucket, uid string, fn func(index.Item) error) error {
	opt := index.ListOptions{Prefix: partPrefix + uid + "/", Limit: hiddenPage}
	for {
		page, err := r.List(in, opt)
		if err != nil {
			return translate(err, ErrNoBucket)
		}
		for _, o := range page.Objects {
			if err := fn(o); err != nil {
				return err
			}
		}
		if !page.More {
			return nil
		}
		opt.After, opt.AfterVersion = page.Next, page.NextVersion
	}
}

// unchanged says, when a submission is decided, why the head is not the one that
// was read.
func (u *upload) unchanged(d *decision) error {
	now, found, err := current(d.round, u.in.ID, headPrefix+u.ID)
	switch {
	case err != nil:
		return &fatalError{err}
	case !found:
		return noUpload(u.ID)
	case now.Version != u.head.Version:
		return fmt.Errorf("%w: upload %s was changed", ErrRetry, u.ID)
	}
	return nil
}

// openUpload claims an upload and reads it; done gives it back.
func (s *Store) openUpload(ctx context.Context, uid string) (*upload, func(), error) {
	leave, err := s.enter()
	if err != nil {
		return nil, nil, err
	}
	release, err := s.uploads.claim(uid)
	if err != nil {
		leave()
		return nil, nil, err
	}
	done := func() { release(); leave() }
	u, err := s.upload(ctx, uid)
	if err != nil {
		done()
		return nil, nil, err
	}
	return u, done, nil
}

// AppendUpload stores what r holds behind the first offset bytes of an upload,
// which must be all that it has ([ErrOffset]), and returns how many bytes are
// durable now. When r breaks off with an error, what came before it is kept, and
// the error is returned with the offset behind that. Of a body that is longer than
// the upload was declared ([ErrTooLarge]) the parts before the last are kept. Beside
// the memory of a stream it takes none. r is not read after it returns.
func (s *Store) AppendUpload(ctx context.Context, uid string, offset uint64, r io.Reader) (uint64, error) {
	u, done, err := s.openUpload(ctx, uid)
	if err != nil {
		return 0, err
	}
	defer done()
	if !u.Done.IsZero() {
		return u.Offset, fmt.Errorf("%w: upload %s is complete", ErrOffset, uid)
	}
	if offset != u.Offset {
		return u.Offset, fmt.Errorf("%w: upload %s continues at %d, not %d", ErrOffset, uid, u.Offset, offset)
	}
	var b index.Bucket
	if err := s.view(func(r index.Reader) (err error) {
		b, err = u.target(r)
		return err
	}); err != nil {
		return u.Offset, err
	}
	in := &brokenOff{r: r}
	if u.Size >= 0 {
		// A byte beyond the declared length shows.
		in.r = io.LimitReader(r, u.Size-int64(u.Offset)+1)
	}
	body := s.newCutBody(in, -1)
	defer body.free()
	first := s.chunks.get(firstRead)
	defer s.chunks.put(first)
	if err := body.begin(first[:firstRead]); err != nil {
		return u.Offset, err
	}
	for !body.ended() {
		if err := s.takesData(); err != nil {
			return u.Offset, err
		}
		if u.parts >= maxParts {
			return u.Offset, ErrTooManyParts
		}
		if err := s.appendPart(ctx, u, b, body); err != nil {
			return u.Offset, err
		}
	}
	return u.Offset, in.err
}

// brokenOff ends where r fails, and remembers why.
type brokenOff struct {
	r   io.Reader
	err error
}

func (b *brokenOff) Read(p []byte) (int, error) {
	n, err := b.r.Read(p)
	if err != nil && err != io.EOF {
		b.err, err = readError(err), io.EOF
	}
	return n, err
}

// target is the bucket that the object goes into.
func (u *upload) target(r index.Reader) (index.Bucket, error) {
	b, err := bucketOf(r, u.Bucket)
	if err == nil && b.ID != u.bucket {
		err = fmt.Errorf("bucket %.80q was deleted and made again: %w", u.Bucket, ErrNoBucket)
	}
	return b, err
}

// appendPart stores the next part of a body. An interrupted request's context
// does not end it: what has come is kept.
func (s *Store) appendPart(ctx context.Context, u *upload, b index.Bucket, body *cutBody) error {
	st, err := s.newStream(context.WithoutCancel(ctx), b)
	if err != nil {
		return err
	}
	defer st.giveBack()
	m, err := st.readSome(body, s.cfg.UploadPart<<(u.parts/partsOfASize))
	if err != nil || m.Size == 0 {
		return err
	}
	if u.Size >= 0 && u.Offset+m.Size > uint64(u.Size) {
		return fmt.Errorf("%w: more than the %d bytes that upload %s was to have", ErrTooLarge, u.Size, u.ID)
	}
	p := st.put(u.in, partKey(u.ID, u.parts), m, PutOptions{If: Conditions{IfNoneMatch: []string{"*"}}})
	st.sub.decide = func(d *decision) (func() error, error) {
		if err := u.unchanged(d); err != nil {
			return nil, err
		}
		return p.decide(d)
	}
	if err := s.packs.submit(ctx, st.sub, st.packs); err != nil {
		return err
	}
	u.parts++
	u.Offset += m.Size
	return nil
}

// SetUploadSize declares the length of an upload that was begun without one.
func (s *Store) SetUploadSize(ctx context.Context, uid string, size int64) (Upload, error) {
	u, done, err := s.openUpload(ctx, uid)
	if err != nil {
		return Upload{}, err
	}
	defer done()
	switch {
	case u.Size == size:
		return u.Upload, nil
	case u.Size >= 0 || size < 0 || uint64(size) < u.Offset:
		return Upload{}, fmt.Errorf("%w: upload %s has %d bytes of %d, and its length cannot become %d", ErrInvalid, uid, u.Offset, u.Size, size)
	}
	p := u.headPut()
	p.rec.Attrs.User = []record.UserField{{Name: attrSize, Value: strconv.FormatInt(size, 10)}}
	err = s.writer.submit(ctx, &submission{decide: func(d *decision) (func() error, error) {
		if err := u.unchanged(d); err != nil {
			return nil, err
		}
		return p.decide(d)
	}})
	if err != nil {
		return Upload{}, err
	}
	u.Size = size
	return u.Upload, nil
}

// headPut is the head once more, with other attributes.
func (u *upload) headPut() *put {
	return &put{b: u.in, rec: record.Put{In: u.in.Realm, Bucket: u.in.ID, Key: []byte(headPrefix + u.ID), Manifest: u.head.Manifest, ETag: u.head.ETag}}
}

// CompleteUpload makes the object of everything that was appended, if the
// conditions hold. No byte is read or moved. An upload whose length was declared
// must have it ([ErrShortBody]). Completing a second time gives the same object.
func (s *Store) CompleteUpload(ctx context.Context, uid string, cond Conditions) (Object, error) {
	u, done, err := s.openUpload(ctx, uid)
	if err != nil {
		return Object{}, err
	}
	defer done()
	if !u.Done.IsZero() {
		r, err := s.Get(ctx, u.Bucket, u.Key, GetOptions{Version: u.Done})
		if errors.Is(err, ErrNoVersion) || errors.Is(err, ErrNoBucket) {
			return Object{}, fmt.Errorf("upload %s is complete, and its object was replaced or deleted since: %w", uid, err)
		}
		if err != nil {
			return Object{}, err
		}
		return r.Object, nil
	}
	if u.Size >= 0 && u.Offset != uint64(u.Size) {
		return Object{}, fmt.Errorf("%w: upload %s has %d bytes of %d", ErrShortBody, uid, u.Offset, u.Size)
	}
	var b index.Bucket
	if err := s.view(func(r index.Reader) (err error) {
		b, err = u.target(r)
		return err
	}); err != nil {
		return Object{}, err
	}
	if err := s.takesData(); err != nil {
		return Object{}, err
	}
	st, err := s.newStream(ctx, b)
	if err != nil {
		return Object{}, err
	}
	defer st.giveBack()
	m, err := s.join(st, u)
	if err != nil {
		return Object{}, err
	}
	p := st.put(b, u.Key, m, PutOptions{Attrs: u.Attrs, If: cond})
	head := u.headPut()
	head.rec.Attrs.User = []record.UserField{{Name: attrDone}, {Name: attrSize, Value: strconv.FormatUint(u.Offset, 10)}}
	st.sub.decide = func(d *decision) (func() error, error) {
		if err := u.unchanged(d); err != nil {
			return nil, err
		}
		object, err := p.decide(d)
		if err != nil {
			return nil, err
		}
		mark, err := head.decide(d)
		if err != nil {
			return nil, err
		}
		return func() error {
			if err := object(); err != nil {
				return err
			}
			head.rec.Attrs.User[0].Value = p.made.Version.String()
			return mark()
		}, nil
	}
	if err := s.packs.submit(ctx, st.sub, st.packs); err != nil {
		return Object{}, err
	}
	s.clearSoon()
	return p.made, nil
}

// join makes one manifest of all parts. List chunks are stored between two pages,
// not inside a view: they wait for the log.
func (s *Store) join(st *stream, u *upload) (manifest.Manifest, error) {
	err := s.eachHidden(st.ctx, u.in, index.ListOptions{Prefix: partPrefix + u.ID + "/"}, func(page index.Page) error {
		for _, o := range page.Objects {
			if err := s.allThere(st.ctx, u.in.Realm, o.Manifest); err != nil {
				return fmt.Errorf("upload %s cannot be completed, abort it and begin again: %w", u.ID, err)
			}
			if err := st.builder.AddRefs(o.Manifest.Roots); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return manifest.Manifest{}, err
	}
	m, err := st.finish()
	if err == nil && m.Size != u.Offset {
		err = fmt.Errorf("%w: the parts of upload %s hold %d bytes, not %d", ErrDamaged, u.ID, m.Size, u.Offset)
	}
	return m, err
}

// AbortUpload ends an upload; what it has is given up. One that is complete is
// forgotten, its object stays.
func (s *Store) AbortUpload(ctx context.Context, uid string) error {
	if len(uid) != uploadIDLen {
		return noUpload(uid)
	}
	leave, err := s.enter()
	if err != nil {
		return err
	}
	defer leave()
	release, err := s.uploads.claim(uid)
	if err != nil {
		return err
	}
	defer release()
	// By its row alone: one whose bytes are lost can be aborted too.
	u := &upload{Upload: Upload{ID: uid}}
	if err := s.view(func(r index.Reader) (err error) {
		u.in, err = anyBucketOf(r, uploadsBucket)
		if errors.Is(err, ErrNoBucket) {
			return noUpload(uid)
		}
		if err != nil {
			return err
		}
		var found bool
		if u.head, found, err = current(r, u.in.ID, headPrefix+uid); err == nil && !found {
			err = noUpload(uid)
		}
		return err
	}); err != nil {
		return err
	}
	if err := s.dropHead(ctx, u); err != nil {
		return err
	}
	s.clearSoon()
	return nil
}

func (s *Store) dropHead(ctx context.Context, u *upload) error {
	return s.writer.submit(ctx, &submission{decide: func(d *decision) (func() error, error) {
		if err := u.unchanged(d); err != nil {
			return nil, err
		}
		return func() error { return d.purgeAll(u.in, headPrefix+u.ID) }, nil
	}})
}

// ClearUploads gives up what uploads have that are complete or were aborted.
func (s *Store) ClearUploads(ctx context.Context) error {
	leave, err := s.enter()
	if err != nil {
		return err
	}
	defer leave()
	in, err := s.hiddenBucket(ctx, uploadsBucket, false)
	if errors.Is(err, ErrNoBucket) {
		return nil
	}
	if err != nil {
		return err
	}
	return s.eachUpload(ctx, in, partPrefix, "/", func(prefix string) error {
		uid, wanted := prefix[len(partPrefix):len(prefix)-1], false
		if err := s.view(func(r index.Reader) error {
			head, found, err := current(r, in.ID, headPrefix+uid)
			wanted = found && !isDone(head)
			return err
		}); err != nil || wanted {
			return err
		}
		return s.clearParts(ctx, in, uid)
	})
}

// expireUploads aborts uploads to which nothing had come for uploadKeep at that
// time, and forgets complete ones as old. It returns how many. One that a request
// works on is left alone.
func (s *Store) expireUploads(ctx context.Context, at time.Time) (expired int, err error) {
	leave, err := s.enter()
	if err != nil {
		return 0, err
	}
	defer leave()
	in, err := s.hiddenBucket(ctx, uploadsBucket, false)
	if errors.Is(err, ErrNoBucket) {
		return 0, nil
	}
	if err != nil {
		return 0, err
	}
	err = s.eachUpload(ctx, in, headPrefix, "", func(key string) error {
		uid := key[len(headPrefix):]
		release, err := s.uploads.claim(uid)
		if err != nil {
			return nil // in use
		}
		defer release()
		u := &upload{Upload: Upload{ID: uid}, in: in}
		found := false
		if err := s.view(func(r index.Reader) (err error) {
			if u.head, found, err = current(r, in.ID, key); err != nil || !found {
				return err
			}
			u.Changed = time.Unix(0, u.head.Time)
			return s.eachPart(r, in.ID, uid, func(o index.Item) error {
				if t := time.Unix(0, o.Time); t.After(u.Changed) {
					u.Changed = t
				}
				return nil
			})
		}); err != nil || !found || at.Sub(u.Changed) < uploadKeep {
			return err
		}
		switch err := s.dropHead(ctx, u); {
		case errors.Is(err, ErrNoUpload), errors.Is(err, ErrRetry):
			return nil // it went, or changed, meanwhile
		case err != nil:
			return err
		}
		expired++
		return nil
	})
	return expired, err
}

// eachUpload hands every key, or with a delimiter every common prefix, of a part
// of the hidden bucket to fn, which may change what it is given.
func (s *Store) eachUpload(ctx context.Context, in index.Bucket, prefix, delimiter string, fn func(string) error) error {
	return s.eachHidden(ctx, in, index.ListOptions{Prefix: prefix, Delimiter: delimiter}, func(page index.Page) error {
		for _, o := range page.Objects {
			page.Prefixes = append(page.Prefixes, o.Key)
		}
		for _, key := range page.Prefixes {
			if err := ctx.Err(); err != nil {
				return context.Cause(ctx)
			}
			if err := fn(key); err != nil {
				return err
			}
		}
		return nil
	})
}

// clearParts purges the parts of an upload that is complete or has no head: none
// is added to it any more.
func (s *Store) clearParts(ctx context.Context, in index.Bucket, uid string) error {
	for more := true; more; {
		if err := ctx.Err(); err != nil {
			return context.Cause(ctx)
		}
		err := s.writer.submit(ctx, &submission{decide: func(d *decision) (func() error, error) {
			more = false
			head, found, err := current(d.round, in.ID, headPrefix+uid)
			if err != nil {
				return nil, &fatalError{err}
			}
			if found && !isDone(head) {
				return func() error { return nil }, nil
			}
			page, err := d.round.List(in.ID, index.ListOptions{Prefix: partPrefix + uid + "/", Limit: purgedAtOnce})
			if err != nil {
				return nil, &fatalError{err}
			}
			return func() error {
				more = page.More
				for _, o := range page.Objects {
					if err := d.purgeAll(in, o.Key); err != nil {
						return err
					}
				}
				return nil
			}, nil
		}})
		if err != nil {
			return err
		}
	}
	return nil
}

func isDone(head index.Object) bool {
	for _, f := range head.Attrs.User {
		if f.Name == attrDone {
			return true
		}
	}
	return false
}
