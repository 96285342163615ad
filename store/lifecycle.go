package store

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"cairn/id"
	"cairn/index"
	"cairn/record"
)

// Rules of what expires are kept and followed as docs/protocol.md, section 16, says.

const (
	lifecycleBucket = ".lifecycle"
	attrRules       = "rules"
	// MaxRules bounds the rules of a bucket; maxKeepNewest what one keeps.
	MaxRules      = 32
	maxKeepNewest = 100
	// expireAtOnce bounds what one submission lets expire.
	expireAtOnce = 100
)

// Rule says what of a bucket expires. A zero field asks for nothing; each rule is followed
// by itself. Days are by the time that is sure to have passed.
type Rule struct {
	Prefix string `json:"prefix,omitempty"` // of the keys that it is for
	// Objects that were put so many days ago are deleted.
	ExpireDays uint32 `json:"expire_days,omitempty"`
	// Versions that something newer stands above since so many days are purged, but for
	// the KeepNewest newest of them.
	NoncurrentDays uint32 `json:"noncurrent_days,omitempty"`
	KeepNewest     uint32 `json:"keep_newest,omitempty"`
	// Uploads to which nothing came for so many days are aborted.
	AbortDays uint32 `json:"abort_uploads_days,omitempty"`
	// Markers: delete markers that nothing lies under are purged.
	Markers bool `json:"expired_markers,omitempty"`
}

func checkRules(rules []Rule) error {
	if len(rules) > MaxRules {
		return fmt.Errorf("%w: %d rules, at most %d", ErrInvalid, len(rules), MaxRules)
	}
	for i, r := range rules {
		bad := func(why string) error { return fmt.Errorf("%w: rule %d %s", ErrInvalid, i+1, why) }
		most := uint32(maxRetention / (24 * time.Hour))
		switch {
		case len(r.Prefix) > record.MaxKey || !utf8.ValidString(r.Prefix):
			return bad("has a prefix that is no UTF-8 or longer than a key")
		case r.ExpireDays > most || r.NoncurrentDays > most || r.AbortDays > most:
			return bad(fmt.Sprintf("waits longer than %d days", most))
		case r.KeepNewest > maxKeepNewest:
			return bad(fmt.Sprintf("keeps %d versions, at most %d", r.KeepNewest, maxKeepNewest))
		case r.KeepNewest > 0 && r.NoncurrentDays == 0:
			return bad("keeps versions that it does not purge: say noncurrent_days too")
		case r.ExpireDays == 0 && r.NoncurrentDays == 0 && r.AbortDays == 0 && !r.Markers:
			return bad("asks for nothing")
		}
	}
	return nil
}

func lifecycleKey(b id.Bucket) string { return strconv.FormatUint(uint64(b), 10) }

// rulesOf reads the rules of a bucket.
func rulesOf(r index.Reader, b id.Bucket) ([]Rule, error) {
	in, err := anyBucketOf(r, lifecycleBucket)
	if errors.Is(err, ErrNoBucket) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	row, found, err := current(r, in.ID, lifecycleKey(b))
	if err != nil || !found {
		return nil, err
	}
	return parseRules(row.Attrs.User)
}

// parseRules reads rules as SetLifecycle writes them. What a rule of another build asks
// for is not known here, and nothing of it is followed.
func parseRules(fields []record.UserField) (rules []Rule, err error) {
	bad := func(err error) error { return fmt.Errorf("%w: the rules of a bucket: %w", ErrDamaged, err) }
	if len(fields) != 1 || fields[0].Name != attrRules {
		return nil, bad(errors.New("they are not there, or something else is"))
	}
	d := json.NewDecoder(strings.NewReader(fields[0].Value))
	d.DisallowUnknownFields()
	if err := d.Decode(&rules); err != nil {
		return nil, bad(err)
	}
	if _, err := d.Token(); err != io.EOF {
		return nil, bad(errors.New("something follows them"))
	}
	if err := checkRules(rules); err != nil {
		return nil, bad(err)
	}
	return rules, nil
}

// Lifecycle returns the rules of a bucket.
func (s *Store) Lifecycle(ctx context.Context, bucket string) ([]Rule, error) {
	confirmed, err := s.confirm.begin()
	if err != nil {
		return nil, err
	}
	var rules []Rule
	err = s.view(func(r index.Reader) error {
		b, err := bucketOf(r, bucket)
		if err == nil {
			rules, err = rulesOf(r, b.ID)
		}
		return err
	})
	if cerr := confirmed(ctx); cerr != nil {
		return nil, cerr
	}
	return rules, err
}

// SetLifecycle replaces the rules of a bucket. Collections follow them from then on.
func (s *Store) SetLifecycle(ctx context.Context, bucket string, rules []Rule) error {
	if err := checkRules(rules); err != nil {
		return err
	}
	text, err := json.Marshal(rules)
	if err != nil {
		return err
	}
	attrs := record.Attrs{User: []record.UserField{{Name: attrRules, Value: string(text)}}}
	if err := checkAttrs(&attrs); err != nil {
		return fmt.Errorf("the rules together: %w", err)
	}
	leave, err := s.enter()
	if err != nil {
		return err
	}
	defer leave()
	if _, err := s.bucket(bucket); err != nil {
		return err
	}
	in, err := s.hiddenBucket(ctx, lifecycleBucket, true)
	if err != nil {
		return err
	}
	return s.writer.submit(ctx, &submission{decide: func(d *decision) (func() error, error) {
		b, err := bucketOf(d.round, bucket)
		if err != nil {
			return nil, err
		}
		key := lifecycleKey(b.ID)
		if len(rules) == 0 {
			return func() error { return d.purgeAll(in, key) }, nil
		}
		p := &put{b: in, rec: record.Put{In: in.Realm, Bucket: in.ID, Key: []byte(key), Attrs: attrs}}
		return p.decide(d)
	}})
}

// forgetRules takes the rules of a bucket that goes away.
func (d *decision) forgetRules(b id.Bucket) error {
	in, err := anyBucketOf(d.round, lifecycleBucket)
	if errors.Is(err, ErrNoBucket) {
		return nil
	}
	if err != nil {
		return &fatalError{err}
	}
	return d.purgeAll(in, lifecycleKey(b))
}

// stale is a version that a rule may let expire: it is looked at once more where that is
// decided.
type stale struct {
	key     string
	version id.Version
	above   id.Version // the next newer one; zero: it is the current one
	count   *int       // of such, in the result
}

// expire follows the rules of all buckets.
func (c *collection) expire(ctx context.Context) error {
	s := c.s
	var buckets []index.Bucket
	rules := map[string][]Rule{}
	if err := s.view(func(r index.Reader) error {
		all, err := r.Buckets()
		for i := 0; err == nil && i < len(all); i++ {
			b := all[i]
			if hidden(b.Name) {
				continue
			}
			var of []Rule
			if of, err = rulesOf(r, b.ID); len(of) > 0 {
				buckets, rules[b.Name] = append(buckets, b), of
			}
			if errors.Is(err, ErrDamaged) {
				s.log.Error("the rules of a bucket cannot be read: nothing expires in it; set them anew", "bucket", uint64(b.ID))
				err = nil
			}
		}
		return err
	}); err != nil {
		return err
	}
	for _, b := range buckets {
		if err := c.expireVersions(ctx, b, rules[b.Name]); err != nil {
			return err
		}
	}
	if len(buckets) == 0 {
		return nil
	}
	return c.abortUploads(ctx, rules)
}

// expireVersions goes through the versions of a bucket, newest first for each key.
func (c *collection) expireVersions(ctx context.Context, b index.Bucket, rules []Rule) error {
	s := c.s
	sure := s.believed()
	opt := index.ListOptions{Limit: 1000, Versions: true}
	var (
		found  []stale
		newer  index.Item // the one before in the list
		marker *stale     // a current delete marker, until it shows whether something lies under it
		rank   uint32     // how many of the key's versions came before
	)
	for {
		var page index.Page
		if err := s.view(func(r index.Reader) (err error) {
			page, err = r.List(b.ID, opt)
			return err
		}); err != nil {
			return err
		}
		for _, o := range page.Objects {
			if err := context.Cause(ctx); err != nil {
				return err
			}
			at := stale{key: o.Key, version: o.Version}
			if o.Current {
				if marker != nil {
					found = append(found, *marker)
				}
				marker, rank = nil, 0
				switch at.count = &c.out.Expired; {
				case o.Deleted && anyRule(rules, o.Key, func(r *Rule) bool { return r.Markers }):
					marker, at.count = &at, &c.out.ExpiredMarkers
				case !o.Deleted && expires(rules, o.Key, o.Object, sure):
					found = append(found, at)
				}
			} else {
				marker = nil
				at.above, at.count = newer.Version, &c.out.ExpiredVersions
				rank++
				if o.Lock.Held(sure) {
					// It stays as long as it is.
				} else if outlived(rules, o.Key, newer.Object, rank, sure) {
					found = append(found, at)
				}
			}
			newer = o
		}
		if !page.More && marker != nil {
			found, marker = append(found, *marker), nil
		}
		for len(found) >= expireAtOnce || !page.More && len(found) > 0 {
			n := min(len(found), expireAtOnce)
			if err := c.expireSome(ctx, b, found[:n]); err != nil {
				return err
			}
			found = found[n:]
		}
		if !page.More {
			return nil
		}
		opt.After, opt.AfterVersion = page.Next, page.NextVersion
	}
}

func anyRule(rules []Rule, key string, asks func(*Rule) bool) bool {
	for i := range rules {
		if strings.HasPrefix(key, rules[i].Prefix) && asks(&rules[i]) {
			return true
		}
	}
	return false
}

func passed(t, sure int64, days uint32) bool {
	return days > 0 && old(t, time.Unix(0, sure), time.Duration(days)*24*time.Hour)
}

// expires reports whether a current version is to be deleted.
func expires(rules []Rule, key string, o index.Object, sure int64) bool {
	return anyRule(rules, key, func(r *Rule) bool { return passed(o.Time, sure, r.ExpireDays) })
}

// outlived reports whether a version is to be purged that stands below newer and is the
// rank-th of those that are not current.
func outlived(rules []Rule, key string, newer index.Object, rank uint32, sure int64) bool {
	return anyRule(rules, key, func(r *Rule) bool { return rank > r.KeepNewest && passed(newer.Time, sure, r.NoncurrentDays) })
}

// expireSome lets versions of a bucket expire that the rules still let then.
func (c *collection) expireSome(ctx context.Context, b index.Bucket, some []stale) error {
	if c.opt.DryRun {
		for _, x := range some {
			*x.count++
		}
		return nil
	}
	c.report(0, 0, "")
	var did []*int
	err := c.s.writer.submit(ctx, &submission{decide: func(d *decision) (func() error, error) {
		did = nil
		now, err := d.round.BucketByID(b.ID)
		if errors.Is(err, index.ErrNotFound) {
			return func() error { return nil }, nil
		}
		var rules []Rule
		if err == nil {
			rules, err = rulesOf(d.round, b.ID)
		}
		if errors.Is(err, ErrDamaged) {
			return nil, err
		}
		if err != nil {
			return nil, &fatalError{err}
		}
		return func() error {
			// Of one key the oldest goes first, so that each still has above it what it had.
			for _, x := range slices.Backward(some) {
				gone, err := d.expireOne(&now, rules, x)
				if err != nil {
					return err
				}
				if gone {
					did = append(did, x.count)
				}
			}
			return nil
		}, nil
	}})
	if err != nil {
		return err
	}
	for _, count := range did {
		*count++
	}
	return nil
}

// expireOne lets one version expire if the rules let it now.
func (d *decision) expireOne(b *index.Bucket, rules []Rule, x stale) (gone bool, err error) {
	versions, err := d.round.Versions(b.ID, []byte(x.key), maxKeepNewest+2)
	if err != nil {
		return false, &fatalError{err}
	}
	at := slices.IndexFunc(versions, func(o index.Object) bool { return o.Version == x.version })
	if x.above.IsZero() {
		switch {
		case at != 0:
			return false, nil
		case !versions[0].Deleted && expires(rules, x.key, versions[0], d.sure):
			return true, d.emit(&record.Delete{In: b.Realm, Bucket: b.ID, Key: []byte(x.key), Time: d.time, Current: x.version})
		case !versions[0].Deleted || len(versions) > 1 || !anyRule(rules, x.key, func(r *Rule) bool { return r.Markers }):
			return false, nil
		}
		return true, d.purgeOne(b, x.key, versions[0])
	}
	var o, newer index.Object
	rank := uint32(maxKeepNewest + 2)
	if at > 0 {
		o, newer, rank = versions[at], versions[at-1], uint32(at)
	} else { // far below, or what was above it is gone
		o, err = d.round.Object(b.ID, []byte(x.key), x.version)
		if err == nil {
			newer, err = d.round.Object(b.ID, []byte(x.key), x.above)
		}
		if errors.Is(err, index.ErrNotFound) {
			return false, nil // the next run looks again
		}
		if err != nil {
			return false, &fatalError{err}
		}
	}
	if o.Lock.Held(d.sure) || !outlived(rules, x.key, newer, rank, d.sure) {
		return false, nil
	}
	return true, d.purgeOne(b, x.key, o)
}

// purgeOne removes a version that is not locked.
func (d *decision) purgeOne(b *index.Bucket, key string, o index.Object) error {
	drops, err := d.dropped(b.Realm, []index.Object{o}, nil)
	if err != nil {
		return err
	}
	return d.emit(&record.Purge{In: b.Realm, Bucket: b.ID, Key: []byte(key), Drops: drops})
}

// abortUploads aborts uploads to which nothing came for as long as the rules of the bucket
// that they go to say. One that a request works on is left alone.
func (c *collection) abortUploads(ctx context.Context, rules map[string][]Rule) error {
	s := c.s
	sure := s.believed()
	for after, more := "", true; more; {
		var page []Upload
		var err error
		if page, more, err = s.Uploads(ctx, after, maxUploadPage); err != nil {
			return err
		}
		for _, u := range page {
			after = u.ID
			waits := func(u *Upload) bool {
				return u.Done.IsZero() && anyRule(rules[u.Bucket], u.Key, func(r *Rule) bool { return passed(u.Changed.UnixNano(), sure, r.AbortDays) })
			}
			if u.Lost || !waits(&u) {
				continue
			}
			if c.opt.DryRun {
				c.out.Aborted++
				continue
			}
			now, done, err := s.openUpload(ctx, u.ID)
			if errors.Is(err, ErrInUse) || errors.Is(err, ErrNoUpload) {
				continue
			}
			if err != nil {
				return err
			}
			if waits(&now.Upload) {
				if err = s.dropHead(ctx, now); err == nil {
					c.out.Aborted++
				}
			}
			done()
			if err != nil && !errors.Is(err, ErrNoUpload) && !errors.Is(err, ErrRetry) {
				return err
			}
		}
	}
	if c.out.Aborted > 0 && !c.opt.DryRun {
		s.clearSoon()
	}
	return nil
}
