package rest

import (
	"encoding/base64"
	"errors"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/labstack/echo/v4"

	"cairn/id"
	"cairn/record"
	"cairn/store"
)

// bucketName returns the bucket of a request.
func bucketName(c echo.Context) (string, error) { return unescape(c.Param("bucket")) }

// objectKey returns the key of a request: everything behind /objects/ in the
// path, decoded once, with its slashes and dots as they were sent.
func objectKey(c echo.Context) (string, error) { return unescape(c.Param("*")) }

// target returns what a request to an object names.
func target(c echo.Context) (bucket, key string, err error) {
	if bucket, err = bucketName(c); err != nil {
		return "", "", err
	}
	key, err = objectKey(c)
	return bucket, key, err
}

// unescape decodes a part of an escaped path.
func unescape(s string) (string, error) {
	out, err := url.PathUnescape(s)
	if err != nil || !utf8.ValidString(out) || strings.IndexByte(out, 0) >= 0 {
		return "", problem(http.StatusBadRequest, "invalid-path", "the path is not percent-encoded UTF-8 without NUL", "")
	}
	return out, nil
}

// query reads the query of a URL; each parameter may be there once.
func query(u *url.URL) (url.Values, error) {
	bad := func(title string) error {
		return problem(http.StatusBadRequest, "invalid-parameter", title, "a question mark in a key is written %3F")
	}
	q, err := url.ParseQuery(u.RawQuery)
	if err != nil || u.ForceQuery {
		return nil, bad("the query is not well formed")
	}
	for _, values := range q {
		if len(values) != 1 || !utf8.ValidString(values[0]) {
			return nil, bad("a parameter is there twice, or is not UTF-8")
		}
	}
	return q, nil
}

// version reads the parameter of that name; zero when it is not there.
func version(c echo.Context) (id.Version, error) {
	if !c.QueryParams().Has("version") {
		return id.Version{}, nil
	}
	v, err := id.ParseVersion(c.QueryParam("version"))
	if err != nil || v.IsZero() {
		return id.Version{}, problem(http.StatusBadRequest, "invalid-version", "not a version", "versions are listed with ?versions=true")
	}
	return v, nil
}

// sourceName reads BUCKET/KEY. A bucket's name has no slash.
func sourceName(s string) (store.Name, error) {
	bucket, key, ok := strings.Cut(s, "/")
	if !ok || bucket == "" || key == "" || strings.IndexByte(s, 0) >= 0 {
		return store.Name{}, problem(http.StatusBadRequest, "invalid-parameter", "the source is written BUCKET/KEY, percent-encoded, without NUL", "a plus in a key is written %2B")
	}
	return store.Name{Bucket: bucket, Key: key}, nil
}

// A cursor is the version and the key after which a listing goes on. It is
// opaque to clients, and checked like any other input.
func formatCursor(key string, v id.Version) string {
	return base64.RawURLEncoding.EncodeToString([]byte(v.String() + key))
}

var errCursor = errors.New("not a cursor")

func parseCursor(s string) (key string, v id.Version, err error) {
	const n = 24 // hexadecimal digits of a version
	if len(s) > base64.RawURLEncoding.EncodedLen(n+record.MaxKey) {
		return "", v, errCursor
	}
	b, err := base64.RawURLEncoding.DecodeString(s)
	if err != nil || len(b) < n || !utf8.Valid(b) {
		return "", v, errCursor
	}
	if v, err = id.ParseVersion(string(b[:n])); err != nil {
		return "", v, errCursor
	}
	key = string(b[n:])
	if formatCursor(key, v) != s { // base64 has several spellings
		return "", v, errCursor
	}
	return key, v, nil
}

// etag is an entity tag of a request.
type etag struct {
	tag  string // "*" alone: any
	weak bool
}

// etags reads the lines of If-Match or If-None-Match: "*", or a list of tags.
func etags(lines []string) ([]etag, error) {
	s := strings.Trim(strings.Join(lines, ","), " \t")
	if s == "*" {
		return []etag{{tag: "*"}}, nil
	}
	bad := problem(http.StatusBadRequest, "invalid-header", "If-Match or If-None-Match is not a list of entity tags", `write a tag as "TAG"`)
	var out []etag
	for {
		s = strings.TrimLeft(s, " \t,")
		if s == "" {
			break
		}
		var e etag
		s, e.weak = strings.CutPrefix(s, "W/")
		if s == "" || s[0] != '"' {
			return nil, bad
		}
		end := strings.IndexByte(s[1:], '"')
		if end < 0 {
			return nil, bad
		}
		e.tag, s = s[1:1+end], strings.TrimLeft(s[2+end:], " \t")
		if strings.ContainsFunc(e.tag, func(r rune) bool { return r <= ' ' || r == 0x7f }) || s != "" && s[0] != ',' {
			return nil, bad
		}
		out = append(out, e)
	}
	if len(lines) > 0 && len(out) == 0 {
		return nil, bad
	}
	return out, nil
}

// weakTag stands for a weak tag in a strong comparison: no object has it.
const weakTag = "W/"

// conditions reads the preconditions of a request (RFC 9110, section 13).
// If-Modified-Since is for reads.
func conditions(r *http.Request) (store.Conditions, error) {
	c, err := conditionsOf(r.Header, "")
	if r.Method != http.MethodGet && r.Method != http.MethodHead {
		c.IfModifiedSince = time.Time{}
	}
	return c, err
}

// conditionsOf reads preconditions from the headers whose names begin so.
// If-Match compares strongly, If-None-Match weakly. A date that cannot be read is
// ignored.
func conditionsOf(h http.Header, prefix string) (c store.Conditions, err error) {
	match, err := etags(h.Values(prefix + "If-Match"))
	if err != nil {
		return c, err
	}
	for _, e := range match {
		if e.weak {
			e.tag = weakTag
		}
		c.IfMatch = append(c.IfMatch, e.tag)
	}
	none, err := etags(h.Values(prefix + "If-None-Match"))
	if err != nil {
		return c, err
	}
	for _, e := range none {
		c.IfNoneMatch = append(c.IfNoneMatch, e.tag)
	}
	if t, ok := date(h, prefix+"If-Modified-Since"); ok {
		c.IfModifiedSince = t
	}
	if t, ok := date(h, prefix+"If-Unmodified-Since"); ok {
		c.IfUnmodifiedSince = t
	}
	return c, nil
}

// date reads a header that holds one date. One that does not, or that is there
// twice, is as good as none.
func date(h http.Header, name string) (t time.Time, ok bool) {
	lines := h.Values(name)
	if len(lines) != 1 {
		return t, false
	}
	t, err := http.ParseTime(lines[0])
	return t, err == nil
}

// conditional reports whether a request has any precondition.
func conditional(h http.Header) bool {
	return slices.ContainsFunc([]string{"If-Match", "If-None-Match", "If-Unmodified-Since"}, func(n string) bool { return len(h.Values(n)) > 0 })
}

const userPrefix = "Cairn-Meta-"

// attrs reads what a client says of an object from its headers.
func attrs(h http.Header) record.Attrs {
	a := record.Attrs{ContentType: h.Get("Content-Type"), ContentEncoding: h.Get("Content-Encoding"), ContentDisposition: h.Get("Content-Disposition"),
		ContentLanguage: h.Get("Content-Language"), CacheControl: h.Get("Cache-Control")}
	for name, values := range h {
		if user, ok := strings.CutPrefix(name, userPrefix); ok && user != "" {
			a.User = append(a.User, record.UserField{Name: strings.ToLower(user), Value: strings.Join(values, ", ")})
		}
	}
	slices.SortFunc(a.User, func(x, y record.UserField) int { return strings.Compare(x.Name, y.Name) })
	return a
}

// parseNumber reads digits only; a number beyond 64 bits is as good as the largest.
func parseNumber(s string) (uint64, bool) {
	if s == "" || strings.ContainsFunc(s, func(r rune) bool { return r < '0' || r > '9' }) {
		return 0, false
	}
	n, err := strconv.ParseUint(s, 10, 64)
	if err != nil {
		return ^uint64(0), true
	}
	return n, true
}
