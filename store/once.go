package store

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"strconv"
	"time"

	"cairn/id"
	"cairn/index"
	"cairn/record"
)

// A request that may be sent twice and must take effect once is kept as
// docs/protocol.md, section 9, says.

// onceKeep is how long an outcome is kept.
const onceKeep = 7 * 24 * time.Hour

var (
	// ErrOnceOther says that the name of a request was used for another request.
	ErrOnceOther = errors.New("the key was used for another request")
	// ErrOnceRunning says that the same request is under way.
	ErrOnceRunning = errors.New("a request with that key is under way")
)

// once names a request.
type once struct{ key, request [32]byte }

type onceKey struct{}

// Once makes the change of an object that a call with this context makes take
// effect once: a later call with the same key within seven days changes nothing and
// returns what the first returned; one with the same key and another request is
// [ErrOnceOther]. Only successes are kept: after an error the same call may be made
// again, whatever became of it. Both are hashes: of the name that the client gave
// its request, and of everything that the request asks for. It is honoured by Put,
// Copy, Rename, Delete, DeleteVersion and Undelete.
func Once(ctx context.Context, key, request [32]byte) context.Context {
	return context.WithValue(ctx, onceKey{}, &once{key, request})
}

// onceOf begins a change that may be one to make once. When done is set, it was made
// before and o is its outcome. end is called when the change has its outcome.
func (s *Store) onceOf(ctx context.Context, name Name) (e *onceEntry, o Object, done bool, end func(), err error) {
	end = func() {}
	req, _ := ctx.Value(onceKey{}).(*once)
	if req == nil {
		return nil, o, false, end, nil
	}
	e = &onceEntry{key: hex.EncodeToString(req.key[:]), request: hex.EncodeToString(req.request[:]), name: name}
	release, err := s.requests.claim(e.key)
	if err != nil {
		return nil, o, false, end, ErrOnceRunning
	}
	defer func() {
		if err != nil || done {
			release()
		} else {
			end = release
		}
	}()
	if e.in, err = s.hiddenBucket(ctx, requestsBucket, true); err != nil {
		return nil, o, false, end, err
	}
	confirmed, err := s.confirm.begin()
	if err != nil {
		return nil, o, false, end, err
	}
	err = s.view(func(r index.Reader) (err error) {
		if o, done, err = e.outcome(r); err != nil || !done || o.Deleted || o.Version.IsZero() {
			return err
		}
		// What the client said of the object is told while the version is there.
		b, err := bucketOf(r, name.Bucket)
		if err == nil {
			var row index.Object
			if row, err = r.Object(b.ID, []byte(name.Key), o.Version); err == nil {
				o.Attrs, o.Lock = row.Attrs, exposeLock(row.Lock)
			} else if errors.Is(err, index.ErrNotFound) {
				err = nil
			}
		} else if errors.Is(err, ErrNoBucket) {
			err = nil
		}
		return err
	})
	if cerr := confirmed(ctx); cerr != nil {
		err = cerr
	}
	return e, o, done, end, err
}

// onceEntry is the row in which the outcome of a request is kept.
type onceEntry struct {
	in           index.Bucket
	key, request string
	name         Name // of the object
}

// outcome reads what an earlier request with the same key came to.
func (e *onceEntry) outcome(r index.Reader) (o Object, found bool, err error) {
	row, found, err := current(r, e.in.ID, e.key)
	if err != nil || !found {
		return o, false, err
	}
	o = Object{Bucket: e.name.Bucket, Key: e.name.Key, Current: true, Replayed: true}
	request := ""
	for _, f := range row.Attrs.User {
		switch f.Name {
		case "deleted":
			o.Deleted = true
		case "modified":
			var ns int64
			ns, err = strconv.ParseInt(f.Value, 10, 64)
			o.Modified = time.Unix(0, ns)
		case "etag":
			o.ETag = f.Value
		case "replaced":
			o.Replaced = true
		case "request":
			request = f.Value
		case "size":
			o.Size, err = strconv.ParseUint(f.Value, 10, 64)
		case "version":
			o.Version, err = id.ParseVersion(f.Value)
		}
		if err != nil {
			return o, false, fmt.Errorf("%w: the outcome of a request: %w", ErrDamaged, err)
		}
	}
	if request != e.request {
		return o, false, ErrOnceOther
	}
	return o, true, nil
}

// also makes what decides a change keep its outcome with it, in one log pack. made
// is read when the change has been applied. A nil entry keeps nothing.
func (e *onceEntry) also(decide func(*decision) (func() error, error), made *Object) func(*decision) (func() error, error) {
	if e == nil {
		return decide
	}
	return func(d *decision) (func() error, error) {
		// Claims are this process's: another one's request is seen here.
		switch _, found, err := e.outcome(d.round); {
		case err != nil:
			return nil, err
		case found:
			return nil, fmt.Errorf("%w: the same request has just been made", ErrRetry)
		}
		apply, err := decide(d)
		if err != nil {
			return nil, err
		}
		keep := &put{b: e.in, rec: record.Put{In: e.in.Realm, Bucket: e.in.ID, Key: []byte(e.key)}}
		mark, err := keep.decide(d)
		if err != nil {
			return nil, err
		}
		return func() error {
			if err := apply(); err != nil {
				return err
			}
			keep.rec.Attrs.User = e.fields(made)
			return mark()
		}, nil
	}
}

// fields are what is kept of an outcome, sorted by name.
func (e *onceEntry) fields(o *Object) (out []record.UserField) {
	add := func(name, value string) { out = append(out, record.UserField{Name: name, Value: value}) }
	if o.Deleted {
		add("deleted", "")
	}
	if o.ETag != "" {
		add("etag", o.ETag)
	}
	if !o.Modified.IsZero() {
		add("modified", strconv.FormatInt(o.Modified.UnixNano(), 10))
	}
	if o.Replaced {
		add("replaced", "")
	}
	add("request", e.request)
	add("size", strconv.FormatUint(o.Size, 10))
	if !o.Version.IsZero() {
		add("version", o.Version.String())
	}
	return out
}

// expireRequests forgets outcomes that were older than onceKeep at that time, a page
// in each round.
func (s *Store) expireRequests(ctx context.Context, at time.Time) error {
	leave, err := s.enter()
	if err != nil {
		return err
	}
	defer leave()
	in, err := s.hiddenBucket(ctx, requestsBucket, false)
	if errors.Is(err, ErrNoBucket) {
		return nil
	}
	if err != nil {
		return err
	}
	return s.eachHidden(ctx, in, index.ListOptions{}, func(page index.Page) error {
		var old []string
		for _, o := range page.Objects {
			if at.Sub(time.Unix(0, o.Time)) >= onceKeep {
				old = append(old, o.Key)
			}
		}
		if len(old) == 0 {
			return nil
		}
		return s.writer.submit(ctx, &submission{decide: func(d *decision) (func() error, error) {
			return func() error {
				for _, key := range old {
					if err := d.purgeAll(in, key); err != nil {
						return err
					}
				}
				return nil
			}, nil
		}})
	})
}
