package rest

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/labstack/echo/v4"

	"cairn/record"
	"cairn/store"
)

func quoteETag(tag string) string { return `"` + tag + `"` }

// sourcePrefix begins the names of preconditions on what is copied.
const sourcePrefix = "Cairn-Source-"

// safeTypes may be shown by a browser as they are; everything else is offered as
// a download, so that an uploaded page never runs in our origin.
var safeTypes = []string{"text/plain", "image/png", "image/jpeg", "image/gif", "image/webp", "audio/mpeg", "audio/ogg", "video/mp4", "video/webm", "application/json"}

// identify sets the headers that a 304 has too.
func identify(h http.Header, o store.Object) {
	h.Set("ETag", quoteETag(o.ETag))
	h.Set("Last-Modified", o.Modified.UTC().Format(http.TimeFormat))
	h.Set("Cairn-Version", o.Version.String())
	h.Set("Cache-Control", "private, no-cache")
	if o.Attrs.CacheControl != "" {
		h.Set("Cache-Control", o.Attrs.CacheControl)
	}
}

// describe sets the headers of an object.
func describe(h http.Header, o store.Object) {
	identify(h, o)
	setLock(h, o.Lock)
	h.Set("Accept-Ranges", "bytes")
	h.Set("Content-Security-Policy", "sandbox; default-src 'none'; frame-ancestors 'none'")
	contentType := o.Attrs.ContentType
	if contentType == "" {
		contentType = "application/octet-stream"
	}
	h.Set("Content-Type", contentType)
	if o.Attrs.ContentEncoding != "" {
		h.Set("Content-Encoding", o.Attrs.ContentEncoding)
	}
	if o.Attrs.ContentLanguage != "" {
		h.Set("Content-Language", o.Attrs.ContentLanguage)
	}
	media, _, _ := strings.Cut(contentType, ";")
	if slices.Contains(safeTypes, strings.ToLower(strings.TrimSpace(media))) {
		if o.Attrs.ContentDisposition != "" {
			h.Set("Content-Disposition", o.Attrs.ContentDisposition)
		}
	} else {
		h.Set("Content-Disposition", attachment(o.Attrs.ContentDisposition))
	}
	for _, u := range o.Attrs.User {
		h.Set(userPrefix+u.Name, u.Value)
	}
}

// attachment makes a disposition a download, keeping the file name it gives.
func attachment(disposition string) string {
	if _, params, ok := strings.Cut(disposition, ";"); ok {
		return "attachment;" + params
	}
	return "attachment"
}

// objectJSON is an object as lists and answers show it.
type objectJSON struct {
	Bucket      string            `json:"bucket"`
	Key         string            `json:"key"`
	Version     string            `json:"version"`
	Size        uint64            `json:"size"`
	ETag        string            `json:"etag,omitempty"`
	Modified    time.Time         `json:"modified"`
	ContentType string            `json:"content_type,omitempty"`
	Meta        map[string]string `json:"meta,omitempty"`
	Retention   *retentionJSON    `json:"retention,omitempty"`
	Hold        bool              `json:"legal_hold,omitempty"`
	Deleted     bool              `json:"deleted,omitempty"`
	Current     bool              `json:"current"`
}

func toJSON(o store.Object) objectJSON {
	j := objectJSON{Bucket: o.Bucket, Key: o.Key, Version: o.Version.String(), Size: o.Size, ETag: o.ETag, Modified: o.Modified.UTC(),
		ContentType: o.Attrs.ContentType, Retention: retentionToJSON(o.Lock.Retention), Hold: o.Lock.Hold, Deleted: o.Deleted, Current: o.Current}
	for _, u := range o.Attrs.User {
		if j.Meta == nil {
			j.Meta = map[string]string{}
		}
		j.Meta[u.Name] = u.Value
	}
	return j
}

// clientBody is a request's body that remembers why it could not be read: that
// is the client's matter, not the store's. It is read by one goroutine at a time.
type clientBody struct {
	io.ReadCloser
	limited bool // at most left more bytes
	left    int64
	err     error
}

func (b *clientBody) Read(p []byte) (int, error) {
	if b.limited {
		if b.left <= 0 {
			b.err = problem(http.StatusRequestEntityTooLarge, "too-large", "the form's fields besides archivo are too long", "")
			return 0, b.err
		}
		p = p[:min(int64(len(p)), b.left)]
	}
	n, err := b.ReadCloser.Read(p)
	b.left -= int64(n)
	if err != nil && err != io.EOF {
		b.err = err
	}
	return n, err
}

// limit bounds what may still be read.
func (b *clientBody) limit(n int64) { b.limited, b.left = true, n }

// blame returns err, or the reason in the client's body when there is one.
func (b *clientBody) blame(err error) error {
	if err == nil || b.err == nil {
		return err
	}
	if p, ok := errors.AsType[*Problem](b.err); ok {
		return p
	}
	if ne, ok := errors.AsType[net.Error](b.err); ok && ne.Timeout() {
		return problem(http.StatusRequestTimeout, "too-slow", "the body comes too slowly", "nothing was stored; send it again")
	}
	return problem(http.StatusBadRequest, "incomplete-body", "the body ended early or cannot be read", "nothing was stored; send the whole body again")
}

func (f *face) putObject(c echo.Context) error {
	bucket, key, err := target(c)
	if err != nil {
		return err
	}
	r := c.Request()
	opt := store.PutOptions{Size: r.ContentLength, Attrs: attrs(r.Header)}
	if opt.If, err = conditions(r); err != nil {
		return err
	}
	if r.Header.Get("Content-Range") != "" {
		return problem(http.StatusBadRequest, "invalid-header", "an object is put whole, Content-Range is not taken", "")
	}
	ctx, err := once(r)
	if err != nil {
		return err
	}
	body := &clientBody{ReadCloser: r.Body}
	o, err := f.store.Put(ctx, bucket, key, body, opt)
	if err != nil {
		err = body.blame(err)
		if len(opt.If.IfMatch) == 0 && slices.Equal(opt.If.IfNoneMatch, []string{"*"}) && opt.If.IfUnmodifiedSince.IsZero() {
			err = unmet(err, "an object of that name is there already", "nothing was stored; to replace it, put without If-None-Match (or --no-clobber)")
		}
		return err
	}
	return stored(c, o)
}

// stored answers a request that has made a version.
func stored(c echo.Context, o store.Object) error {
	if o.Replaced {
		return current(c, http.StatusOK, o)
	}
	return current(c, http.StatusCreated, o)
}

// current answers a write with what is current after it.
func current(c echo.Context, status int, o store.Object) error {
	h := c.Response().Header()
	replayed(h, o)
	h.Set("ETag", quoteETag(o.ETag))
	h.Set("Cairn-Version", o.Version.String())
	return c.JSON(status, toJSON(o))
}

func (f *face) getObject(c echo.Context) error {
	bucket, key, err := target(c)
	if err != nil {
		return err
	}
	var opt store.GetOptions
	if opt.Version, err = version(c); err != nil {
		return err
	}
	return f.serve(c, bucket, key, opt)
}

// serve answers with an object, whole or a range of it.
func (f *face) serve(c echo.Context, bucket, key string, opt store.GetOptions) (err error) {
	r, w := c.Request(), c.Response()
	if opt.If, err = conditions(r); err != nil {
		return err
	}
	reading, err := f.store.Get(r.Context(), bucket, key, opt)
	if err != nil {
		if reading != nil && errors.Is(err, store.ErrPrecondition) && notModified(opt.If, reading.Object) {
			identify(w.Header(), reading.Object)
			return c.NoContent(http.StatusNotModified)
		}
		return err
	}
	o := reading.Object
	ranges, err := rangesOf(r, o, !opt.Version.IsZero())
	if err != nil {
		w.Header().Set("Content-Range", fmt.Sprintf("bytes */%d", o.Size))
		return fmt.Errorf("%w: it has %d bytes", err, o.Size)
	}
	return f.send(c, reading, ranges)
}

// send answers with an object, or with these parts of it. One part at a time is
// open.
func (f *face) send(c echo.Context, reading *store.Reading, ranges []byteRange) error {
	r, w := c.Request(), c.Response()
	about := http.Header{}
	describe(about, reading.Object)
	out := contentOf(about, reading.Object, ranges)
	head := func() {
		h := w.Header()
		maps.Copy(h, about)
		maps.Copy(h, out.header)
		h.Set("Content-Length", strconv.FormatUint(out.length(), 10))
		w.WriteHeader(out.status)
	}
	if r.Method == http.MethodHead || out.length() == 0 {
		head()
		return nil
	}
	// The first bytes decide the status: what cannot be read at all is an error,
	// what fails later can only be cut short.
	p := out.pieces[0]
	body := reading.Body(p.off, p.n)
	defer func() { body.Close() }()
	first := make([]byte, min(p.n, 512))
	if _, err := io.ReadFull(body, first); err != nil {
		if err == io.EOF || err == io.ErrUnexpectedEOF {
			err = fmt.Errorf("%w: fewer bytes than the object has", store.ErrDamaged)
		}
		return err
	}
	head()
	err := writeText(w, p.text, first)
	if err == nil {
		err = copyExactly(w, body, p.n-uint64(len(first)))
	}
	for i := 1; i < len(out.pieces) && err == nil; i++ {
		body.Close()
		p := out.pieces[i]
		body = reading.Body(p.off, p.n)
		if err = writeText(w, p.text, nil); err == nil {
			err = copyExactly(w, body, p.n)
		}
	}
	if err == nil {
		err = writeText(w, out.tail, nil)
	}
	if err != nil {
		if r.Context().Err() == nil {
			f.log.Error("an answer was cut short", "err", redact(err))
		}
		panic(http.ErrAbortHandler) // the connection is cut: a short body never looks whole (H68)
	}
	return nil
}

// writeText writes a text and some bytes.
func writeText(w io.Writer, text string, b []byte) error {
	_, err := io.WriteString(w, text)
	if err == nil {
		_, err = w.Write(b)
	}
	return err
}

// copyExactly copies a body that must have n bytes.
func copyExactly(w io.Writer, body io.Reader, n uint64) error {
	got, err := io.Copy(w, body)
	if err == nil && uint64(got) != n {
		err = fmt.Errorf("%w: %d bytes of %d", store.ErrDamaged, got, n)
	}
	return err
}

// notModified tells a 304 from a 412, when one of the conditions does not hold.
func notModified(c store.Conditions, o store.Object) bool {
	if len(c.IfMatch) > 0 && !slices.Contains(c.IfMatch, "*") && !slices.Contains(c.IfMatch, o.ETag) {
		return false
	}
	if !c.IfUnmodifiedSince.IsZero() && len(c.IfMatch) == 0 && o.Modified.Truncate(time.Second).After(c.IfUnmodifiedSince) {
		return false
	}
	return len(c.IfNoneMatch) > 0 || !c.IfModifiedSince.IsZero()
}

func (f *face) deleteObject(c echo.Context) error {
	bucket, key, err := target(c)
	if err != nil {
		return err
	}
	ctx, err := once(c.Request())
	if err != nil {
		return err
	}
	v, err := version(c)
	if err != nil {
		return err
	}
	over, err := bypass(c)
	if err != nil {
		return err
	}
	if over && v.IsZero() {
		return problem(http.StatusBadRequest, "invalid-parameter", "bypass_governance goes with a version", "a delete without one removes nothing, and needs no bypass")
	}
	if !v.IsZero() {
		if conditional(c.Request().Header) {
			return problem(http.StatusBadRequest, "invalid-header", "a version never changes: it is removed without conditions", "")
		}
		if err := f.store.DeleteVersion(ctx, bucket, key, v, over); err != nil {
			return err
		}
		return c.NoContent(http.StatusNoContent)
	}
	cond, err := conditions(c.Request())
	if err != nil {
		return err
	}
	o, err := f.store.Delete(ctx, bucket, key, cond)
	if err != nil {
		return err
	}
	replayed(c.Response().Header(), o)
	c.Response().Header().Set("Cairn-Version", o.Version.String())
	return c.NoContent(http.StatusNoContent)
}

// replayed tells that an answer is an earlier request's.
func replayed(h http.Header, o store.Object) {
	if o.Replayed {
		h.Set("Idempotency-Replayed", "true")
	}
}

// postObject is an action on an object: ?undelete, ?copy_from= or ?rename_from=.
func (f *face) postObject(c echo.Context) error {
	bucket, key, err := target(c)
	if err != nil {
		return err
	}
	ctx, err := once(c.Request())
	if err != nil {
		return err
	}
	q := c.QueryParams()
	switch {
	case q.Has("undelete") && len(q) == 1 && q.Get("undelete") == "":
		o, err := f.store.Undelete(ctx, bucket, key)
		if err != nil {
			return unmet(err, "the object is not deleted", "there is nothing to bring back")
		}
		return current(c, http.StatusOK, o)
	case q.Has("undelete"), q.Has("copy_from") == q.Has("rename_from"):
		return problem(http.StatusBadRequest, "invalid-action", "no such action on an object", "the actions are ?undelete, ?copy_from=BUCKET/KEY and ?rename_from=BUCKET/KEY, one at a time")
	case q.Has("copy_from"):
		return f.copyObject(ctx, c, q.Get("copy_from"), store.Name{Bucket: bucket, Key: key}, f.store.Copy)
	}
	return f.copyObject(ctx, c, q.Get("rename_from"), store.Name{Bucket: bucket, Key: key}, f.store.Rename)
}

// copyObject copies or renames an object to the one that the path names. The
// usual preconditions are of that; those of the source have names of their own.
func (f *face) copyObject(ctx context.Context, c echo.Context, source string, to store.Name, do func(context.Context, store.Name, store.Name, store.CopyOptions) (store.Object, error)) error {
	r := c.Request()
	from, err := sourceName(source)
	if err != nil {
		return err
	}
	if r.ContentLength != 0 {
		return problem(http.StatusBadRequest, "invalid-body", "a copy has no body", "nothing was done; to store a body, put it")
	}
	var opt store.CopyOptions
	if opt.Version, err = version(c); err != nil {
		return err
	}
	if opt.If, err = conditions(r); err != nil {
		return err
	}
	if opt.Source, err = conditionsOf(r.Header, sourcePrefix); err != nil {
		return err
	}
	switch c.QueryParam("attributes") {
	case "", "keep":
	case "replace":
		a := attrs(r.Header)
		opt.Attrs = &a
	default:
		return problem(http.StatusBadRequest, "invalid-parameter", "attributes is keep or replace", "")
	}
	o, err := do(ctx, from, to, opt)
	if err != nil {
		return err
	}
	return stored(c, o)
}

type listJSON struct {
	Objects  []objectJSON `json:"objects"`
	Prefixes []string     `json:"prefixes"`
	More     bool         `json:"more"`
	Cursor   string       `json:"cursor,omitempty"`
}

// limit reads how many entries a page may have; 0 when it is not said.
func limit(c echo.Context) (int, error) {
	if !c.QueryParams().Has("limit") {
		return 0, nil
	}
	n, ok := parseNumber(c.QueryParam("limit"))
	if !ok || n < 1 || n > 1000 {
		return 0, problem(http.StatusBadRequest, "invalid-parameter", "limit is a number from 1 to 1,000", "")
	}
	return int(n), nil
}

func listOptions(c echo.Context) (opt store.ListOptions, err error) {
	bad := func(title string) error { return problem(http.StatusBadRequest, "invalid-parameter", title, "") }
	opt = store.ListOptions{Prefix: c.QueryParam("prefix"), Delimiter: c.QueryParam("delimiter"), After: c.QueryParam("start_after")}
	for _, s := range []string{opt.Prefix, opt.Delimiter, opt.After} {
		if len(s) > record.MaxKey {
			return opt, bad("prefix, delimiter and start_after have at most 1,024 bytes")
		}
	}
	if q := c.QueryParams(); q.Has("cursor") {
		if q.Has("start_after") {
			return opt, bad("a cursor goes on where the page before ended: start_after does not go with it")
		}
		if opt.After, opt.AfterVersion, err = parseCursor(c.QueryParam("cursor")); err != nil {
			return opt, problem(http.StatusBadRequest, "invalid-cursor", "not a cursor of a listing", "use the cursor of the page before as it is")
		}
	}
	if opt.Limit, err = limit(c); err != nil {
		return opt, err
	}
	switch c.QueryParam("versions") {
	case "", "false", "0":
	case "true", "1":
		opt.Versions = true
	default:
		return opt, bad("versions is true or false")
	}
	return opt, nil
}

func (f *face) listObjects(c echo.Context) (any, error) {
	bucket, err := bucketName(c)
	if err != nil {
		return nil, err
	}
	opt, err := listOptions(c)
	if err != nil {
		return nil, err
	}
	page, err := f.store.List(c.Request().Context(), bucket, opt)
	if err != nil {
		return nil, err
	}
	out := listJSON{Objects: make([]objectJSON, 0, len(page.Objects)), Prefixes: page.Prefixes, More: page.More}
	if out.Prefixes == nil {
		out.Prefixes = []string{}
	}
	for _, o := range page.Objects {
		out.Objects = append(out.Objects, toJSON(o))
	}
	if page.More {
		out.Cursor = formatCursor(page.Next, page.NextVersion)
	}
	return out, nil
}

// ensureBucket makes a bucket that may be there already.
func (f *face) ensureBucket(ctx context.Context, name string) error {
	_, err := f.store.Bucket(ctx, name)
	if errors.Is(err, store.ErrNoBucket) {
		if _, err = f.store.CreateBucket(ctx, name, record.Settings{}); errors.Is(err, store.ErrBucketExists) {
			err = nil // another upload was faster
		}
	}
	return err
}
