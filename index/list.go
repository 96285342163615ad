package index

import (
	"bytes"
	"strings"

	"cairn/id"
	"cairn/index/kv"
	"cairn/record"
)

// MaxList is the most entries that one page holds, and maxListBytes, of keys and
// rows, where it ends before that: attributes may be long.
const (
	MaxList      = 1000
	maxListBytes = 1 << 20
)

// ListOptions choose what of a bucket is listed. Keys and prefixes compare as
// bytes.
type ListOptions struct {
	Prefix string // only keys that begin with it
	// Delimiter, unless empty, folds all keys that have it behind the prefix into
	// one common prefix, which ends with the first delimiter.
	Delimiter string
	// After: only keys and common prefixes above it. A common prefix that is not
	// above it stays out with all that it folds.
	After string
	// AfterVersion, with After and Versions, adds the versions of the key After
	// that are older than it.
	AfterVersion id.Version
	Limit        int  // of objects and prefixes together; 0 or above MaxList: MaxList
	Versions     bool // all versions and delete markers, newest first for each key
}

// Item is a listed object.
type Item struct {
	Key string
	Object
}

// Page is a part of a listing. Objects and Prefixes are both in order.
type Page struct {
	Objects  []Item
	Prefixes []string
	More     bool // something follows
	// Next and NextVersion are After and AfterVersion for the page that follows.
	Next        string
	NextVersion id.Version
}

// passed is how many rows of a key's older versions are passed one by one before
// the listing leaps over the rest.
const passed = 4

// lister walks the rows of a bucket's objects.
type lister struct {
	*kv.Cursor
	keys   keyspace
	bucket id.Bucket
	base   int // length of what all keys of the bucket begin with
	at     []byte
	rows   int // that were looked at
}

// leap moves to before the first row at or above esc(key) and then tail.
func (l *lister) leap(key string, tail ...byte) {
	l.at = append(appendEscaped(l.keys.objects(l.at[:0], l.bucket), key), tail...)
	l.Seek(l.at)
}

// leapPrefix moves behind all keys that begin with prefix.
func (l *lister) leapPrefix(prefix string) {
	l.at = next(appendEscaped(l.keys.objects(l.at[:0], l.bucket), prefix))
	l.Seek(l.at)
}

// List implements [Reader]. It leaps over what a common prefix folds and over
// older versions; delete markers are passed one by one.
func (r *reader) List(bucket id.Bucket, o ListOptions) (Page, error) {
	page, _, err := r.list(bucket, o)
	return page, err
}

// list also returns how many rows it looked at.
func (r *reader) list(bucket id.Bucket, o ListOptions) (page Page, rows int, err error) {
	if o.Limit <= 0 || o.Limit > MaxList {
		o.Limit = MaxList
	}
	if len(o.Prefix) > record.MaxKey {
		return page, 0, nil
	}
	// No key is longer: what is behind cannot change which keys are above it.
	o.After = o.After[:min(len(o.After), record.MaxKey+1)]
	base := r.keys.objects(nil, bucket)
	from := appendEscaped(bytes.Clone(base), o.Prefix)
	l := lister{Cursor: r.kv.Cursor(from, next(bytes.Clone(from)), false), keys: r.keys, bucket: bucket, base: len(base)}
	defer l.Close()
	if o.After != "" {
		switch folded := fold(o.After, &o); {
		case folded != "":
			l.leapPrefix(folded)
		case o.Versions && !o.AfterVersion.IsZero():
			// Nothing of ours lies between the version's key and the first above it.
			l.leap(o.After, append(appendVersion([]byte{0, 1}, o.AfterVersion), 0)...)
		default:
			l.leap(o.After, 0, 2)
		}
	}
	var (
		key   []byte // of the client
		older int    // rows of the key passed in a run
	)
	size := 0
	for l.Next() {
		l.rows++
		k, rest, ok := parseEscaped(key[:0], l.Key()[l.base:])
		key = k
		if !ok || len(rest) != 0 && len(rest) != versionLen {
			return page, l.rows, damagedRow("object")
		}
		if len(rest) > 0 && !o.Versions {
			if older++; older == passed {
				older = 0
				l.leap(string(key), 0, 2)
			}
			continue
		}
		older = 0
		v, err := l.Value()
		if err != nil {
			return page, l.rows, err
		}
		if !o.Versions && deletedRow(v) {
			continue
		}
		name := string(key)
		folded := fold(name, &o)
		if len(page.Objects)+len(page.Prefixes) == o.Limit || size >= maxListBytes {
			page.More = true
			return page, l.rows, nil
		}
		if folded != "" {
			page.Prefixes = append(page.Prefixes, folded)
			size += len(folded)
			page.Next, page.NextVersion = folded, id.Version{}
			l.leapPrefix(folded)
			continue
		}
		it := Item{Key: name}
		if err := it.parse(v); err != nil {
			return page, l.rows, err
		}
		it.Current = len(rest) == 0
		if !it.Current && parseVersion(rest) != it.Version {
			return page, l.rows, damagedRow("object")
		}
		page.Objects = append(page.Objects, it)
		size += len(name) + len(v)
		page.Next, page.NextVersion = name, id.Version{}
		if o.Versions {
			page.NextVersion = it.Version
		}
	}
	page.Next, page.NextVersion = "", id.Version{}
	return page, l.rows, l.Err()
}

// fold is the common prefix that a key is folded into, "" if it is not.
func fold(key string, o *ListOptions) string {
	if o.Delimiter == "" || !strings.HasPrefix(key, o.Prefix) {
		return ""
	}
	i := strings.Index(key[len(o.Prefix):], o.Delimiter)
	if i < 0 {
		return ""
	}
	return key[:len(o.Prefix)+i+len(o.Delimiter)]
}
