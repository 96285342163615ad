package rest

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"net"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"
	"unicode/utf8"

	"github.com/labstack/echo/v4"

	"cairn/record"
	"cairn/store"
)

// Resumable uploads are the tus protocol, version 1.0.0
// (https://tus.io/protocols/resumable-upload), with its extensions creation,
// creation-with-upload, creation-defer-length and termination. The store keeps
// them; docs/decisions/0009-tus.md says why no library stands in between.

const (
	uploadsPath   = "/v1/uploads"
	tusVersion    = "1.0.0"
	tusExtensions = "creation,creation-with-upload,creation-defer-length,termination"
	tusBody       = "application/offset+octet-stream"
	// takeOver is how long a request waits for an older one that it has stopped.
	takeOver = 20 * time.Second
)

// tus answers a request of the protocol.
func (f *face) tus(h echo.HandlerFunc) echo.HandlerFunc {
	return func(c echo.Context) error {
		r, w := c.Request(), c.Response().Header()
		w.Set("Tus-Resumable", tusVersion)
		if conditional(r.Header) {
			return problem(http.StatusBadRequest, "invalid-header", "an upload takes no preconditions as headers",
				"for an object that must not be there, send if-none-match with * in Upload-Metadata")
		}
		// HEAD changes nothing, and people try it by hand.
		if r.Method != http.MethodHead && r.Header.Get("Tus-Resumable") != tusVersion {
			w.Set("Tus-Version", tusVersion)
			return problem(http.StatusPreconditionFailed, "upload-unsupported-version", "Tus-Resumable is not "+tusVersion, "send the header Tus-Resumable: "+tusVersion)
		}
		return h(c)
	}
}

func (f *face) uploadOptions(c echo.Context) error {
	h := c.Response().Header()
	h.Set("Tus-Resumable", tusVersion)
	h.Set("Tus-Version", tusVersion)
	h.Set("Tus-Extension", tusExtensions)
	return c.NoContent(http.StatusNoContent)
}

type uploadJSON struct {
	ID      string    `json:"id"`
	Bucket  string    `json:"bucket"`
	Key     string    `json:"key"`
	Offset  uint64    `json:"offset"` // bytes that are durable
	Size    *int64    `json:"size,omitempty"`
	Changed time.Time `json:"changed"`
	Expires time.Time `json:"expires"`
	Lost    bool      `json:"lost,omitempty"` // what it was to become cannot be read: it can only be aborted
}

type uploadsJSON struct {
	Uploads []uploadJSON `json:"uploads"`
	More    bool         `json:"more"`
	Cursor  string       `json:"cursor,omitempty"`
}

// listUploads lists what is on its way, which is no part of the tus protocol. The
// cursor is the ID of the last one.
func (f *face) listUploads(c echo.Context) (any, error) {
	n, err := limit(c)
	if err != nil {
		return nil, err
	}
	after := c.QueryParam("cursor")
	if c.QueryParams().Has("cursor") && !uploadID(after) {
		return nil, problem(http.StatusBadRequest, "invalid-cursor", "not a cursor of a listing", "use the cursor of the page before as it is")
	}
	us, more, err := f.store.Uploads(c.Request().Context(), after, n)
	if err != nil {
		return nil, err
	}
	out := uploadsJSON{Uploads: make([]uploadJSON, 0, len(us)), More: more}
	for _, u := range us {
		j := uploadJSON{ID: u.ID, Bucket: u.Bucket, Key: u.Key, Offset: u.Offset, Changed: u.Changed.UTC(), Expires: u.Expires.UTC(), Lost: u.Lost}
		if u.Size >= 0 {
			j.Size = &u.Size
		}
		out.Uploads = append(out.Uploads, j)
		out.Cursor = u.ID
	}
	if !more {
		out.Cursor = ""
	}
	return out, nil
}

// uploadID reports whether s may be the ID of an upload.
func uploadID(s string) bool {
	return len(s) == 32 && strings.Trim(s, "0123456789abcdef") == ""
}

// uploadNote is what an upload keeps besides what the store knows.
type uploadNote struct {
	Metadata string `json:"metadata,omitempty"` // as the client sent it
	Create   bool   `json:"create,omitempty"`   // there must be no such object
}

func noteOf(u store.Upload) (n uploadNote) {
	_ = json.Unmarshal(u.Note, &n) // another interface's says nothing to this one
	return n
}

func (f *face) beginUpload(c echo.Context) error {
	r := c.Request()
	size, err := newLength(r.Header)
	if err != nil {
		return err
	}
	text := strings.Join(r.Header.Values("Upload-Metadata"), ",")
	meta, err := parseMetadata(text)
	if err != nil {
		return err
	}
	bucket, key, a, err := uploadTarget(meta)
	if err != nil {
		return err
	}
	note, err := json.Marshal(uploadNote{Metadata: text, Create: meta[metaNoClobber] == "*"})
	if err != nil || len(note) > record.MaxUploadNote {
		return problem(http.StatusRequestHeaderFieldsTooLarge, "too-large", fmt.Sprintf("Upload-Metadata holds more than about %d bytes", record.MaxUploadNote), "")
	}
	ctx := r.Context()
	opt := store.UploadOptions{Attrs: a, Size: size, Note: note}
	if meta[metaNoClobber] == "*" {
		opt.If.IfNoneMatch = []string{"*"}
	}
	u, err := f.store.BeginUpload(ctx, bucket, key, opt)
	if err != nil {
		return err
	}
	c.Response().Header().Set("Location", uploadsPath+"/"+u.ID)
	if r.Header.Get("Content-Type") == tusBody || size == 0 {
		release, stopped, err := f.takeUpload(c, u.ID, true)
		if err != nil {
			return err
		}
		defer release()
		if err := f.appendTo(c, &u, stopped); err != nil {
			return err
		}
	}
	return c.NoContent(http.StatusCreated)
}

// newLength reads how long an upload will be; -1: it is told later.
func newLength(h http.Header) (int64, error) {
	length, later := h.Get("Upload-Length"), h.Get("Upload-Defer-Length")
	if later == "1" && length == "" {
		return -1, nil
	}
	n, ok := parseNumber(length)
	if later != "" || !ok || n > math.MaxInt64-1 {
		return 0, problem(http.StatusBadRequest, "upload-invalid-upload-length", "Upload-Length is not a number, or there is none",
			"send Upload-Length: BYTES, or Upload-Defer-Length: 1 while it is not known")
	}
	return int64(n), nil
}

// parseMetadata reads an Upload-Metadata header: names of ASCII without spaces and
// commas, each with a value in base64 or none.
func parseMetadata(text string) (map[string]string, error) {
	bad := func(title string) error {
		return problem(http.StatusBadRequest, "invalid-header", "Upload-Metadata: "+title, "send Upload-Metadata: bucket BASE64,key BASE64")
	}
	out := map[string]string{}
	if strings.Trim(text, " ") == "" {
		return out, nil
	}
	for part := range strings.SplitSeq(text, ",") {
		name, value, _ := strings.Cut(strings.Trim(part, " "), " ")
		if name == "" || strings.ContainsFunc(name, func(r rune) bool { return r <= ' ' || r > '~' }) {
			return nil, bad("a name is empty, or not of ASCII")
		}
		name = strings.ToLower(name)
		if _, twice := out[name]; twice {
			return nil, bad("a name is there twice")
		}
		b, err := base64.StdEncoding.DecodeString(value)
		if err != nil || !utf8.Valid(b) {
			return nil, bad("a value is not base64 of UTF-8")
		}
		out[name] = string(b)
	}
	return out, nil
}

// Metadata that means something here; what begins with "meta-" is the object's user
// metadata, and anything else is given back and not used.
const (
	metaBucket    = "bucket"
	metaKey       = "key"
	metaNoClobber = "if-none-match" // "*"
	metaUser      = "meta-"
)

// uploadTarget reads what an upload is to become.
func uploadTarget(m map[string]string) (bucket, key string, a record.Attrs, err error) {
	bucket, key = m[metaBucket], m[metaKey]
	if bucket == "" || key == "" || strings.IndexByte(key, 0) >= 0 {
		return "", "", a, problem(http.StatusBadRequest, "invalid-header", "Upload-Metadata lacks bucket or key, or the key has a NUL",
			"send Upload-Metadata: bucket BASE64,key BASE64")
	}
	if v, ok := m[metaNoClobber]; ok && v != "*" {
		return "", "", a, problem(http.StatusBadRequest, "invalid-header", "if-none-match in Upload-Metadata can only be *", "")
	}
	a = record.Attrs{ContentType: m["content-type"], ContentEncoding: m["content-encoding"], ContentDisposition: m["content-disposition"],
		ContentLanguage: m["content-language"], CacheControl: m["cache-control"]}
	if a.ContentType == "" {
		a.ContentType = m["filetype"] // as tus clients call it
	}
	for name, value := range m {
		if user, ok := strings.CutPrefix(name, metaUser); ok && user != "" {
			a.User = append(a.User, record.UserField{Name: user, Value: value})
		}
	}
	slices.SortFunc(a.User, func(x, y record.UserField) int { return strings.Compare(x.Name, y.Name) })
	// They go out as headers again.
	for _, f := range append(a.User, record.UserField{Value: a.ContentType}, record.UserField{Value: a.ContentEncoding}, record.UserField{Value: a.ContentDisposition},
		record.UserField{Value: a.ContentLanguage}, record.UserField{Value: a.CacheControl}) {
		if strings.ContainsFunc(f.Name, notOfName) || strings.ContainsFunc(f.Value, func(r rune) bool { return r < ' ' && r != '\t' || r == 0x7f }) || strings.TrimSpace(f.Value) != f.Value {
			return "", "", a, problem(http.StatusBadRequest, "invalid-header", "a value in Upload-Metadata cannot be the value of a header, or a name its name", "")
		}
	}
	return bucket, key, a, nil
}

// notOfName reports whether a character cannot be part of a header's name (RFC 9110,
// section 5.6.2).
func notOfName(r rune) bool {
	return (r < '0' || r > '9') && (r < 'a' || r > 'z') && (r < 'A' || r > 'Z') && !strings.ContainsRune("!#$%&'*+-.^_`|~", r)
}

// uploadOffset says how far an upload is. It stops a request that works on it: who
// asks has lost that.
func (f *face) uploadOffset(c echo.Context) error {
	uid := c.Param("upload")
	release, _, err := f.takeUpload(c, uid, false)
	if err != nil {
		return err
	}
	defer release()
	ctx := c.Request().Context()
	u, err := f.store.Upload(ctx, uid)
	if err != nil {
		return err
	}
	h := c.Response().Header()
	// All bytes are there and the object is not: the request that brought the last
	// ones was cut short. A client takes its upload for done when it hears the offset.
	if u.Done.IsZero() && u.Size >= 0 && u.Offset == uint64(u.Size) {
		if err := f.completeUpload(c, u); err != nil {
			return err
		}
	} else if !u.Done.IsZero() {
		h.Set("Cairn-Version", u.Done.String())
	}
	h.Set("Upload-Offset", strconv.FormatUint(u.Offset, 10))
	if u.Size < 0 {
		h.Set("Upload-Defer-Length", "1")
	} else {
		h.Set("Upload-Length", strconv.FormatInt(u.Size, 10))
	}
	if meta := noteOf(u).Metadata; meta != "" {
		h.Set("Upload-Metadata", meta)
	}
	return c.NoContent(http.StatusOK)
}

func (f *face) appendUpload(c echo.Context) error {
	r, uid := c.Request(), c.Param("upload")
	if r.Header.Get("Content-Type") != tusBody {
		return problem(http.StatusUnsupportedMediaType, "upload-invalid-content-type", "Content-Type is not "+tusBody, "")
	}
	offset, ok := parseNumber(r.Header.Get("Upload-Offset"))
	if !ok {
		return problem(http.StatusBadRequest, "upload-invalid-offset", "Upload-Offset is not a number, or there is none", "ask for the offset with HEAD")
	}
	release, stopped, err := f.takeUpload(c, uid, true)
	if err != nil {
		return err
	}
	defer release()
	ctx := r.Context()
	u, err := f.store.Upload(ctx, uid)
	if err != nil {
		return err
	}
	if offset != u.Offset {
		return fmt.Errorf("%w: it continues at %d, not %d", store.ErrOffset, u.Offset, offset)
	}
	if length := r.Header.Get("Upload-Length"); length != "" {
		n, ok := parseNumber(length)
		if !ok || n > math.MaxInt64-1 || n < u.Offset || u.Size >= 0 && u.Size != int64(n) {
			return problem(http.StatusBadRequest, "upload-invalid-upload-length", "Upload-Length is no number, less than what is there, or another than was declared", "")
		}
		if u, err = f.store.SetUploadSize(ctx, uid, int64(n)); err != nil {
			return err
		}
	}
	if err := f.appendTo(c, &u, stopped); err != nil {
		return err
	}
	return c.NoContent(http.StatusNoContent)
}

// appendTo stores the request's body at the upload's end, and completes an upload
// that then has its length.
func (f *face) appendTo(c echo.Context, u *store.Upload, stopped *atomic.Bool) error {
	r := c.Request()
	tooMuch := problem(http.StatusRequestEntityTooLarge, "upload-size-exceeded", "more bytes than the upload was to have", "nothing of them was kept")
	if u.Size >= 0 && r.ContentLength > u.Size-int64(u.Offset) {
		return tooMuch
	}
	if u.Done.IsZero() && r.ContentLength != 0 {
		body := &uploadBody{r: r.Body, stopped: stopped}
		at, err := f.store.AppendUpload(r.Context(), u.ID, u.Offset, body)
		switch {
		case err == nil:
		case body.err != nil && stopped.Load():
			return problem(http.StatusBadRequest, "upload-interrupted", "another request for the upload has stopped this one", "ask for the offset with HEAD and go on from there")
		case body.err != nil:
			if ne, ok := errors.AsType[net.Error](body.err); ok && ne.Timeout() {
				return problem(http.StatusRequestTimeout, "too-slow", "the body comes too slowly", "what came is kept: ask for the offset with HEAD and go on from there")
			}
			return problem(http.StatusBadRequest, "upload-unexpected-eof", "the body broke off", "what came is kept: ask for the offset with HEAD and go on from there")
		case errors.Is(err, store.ErrTooLarge) && u.Size >= 0:
			return tooMuch
		default:
			return err
		}
		u.Offset = at
	}
	c.Response().Header().Set("Upload-Offset", strconv.FormatUint(u.Offset, 10))
	if u.Size < 0 || u.Offset != uint64(u.Size) {
		return nil
	}
	return f.completeUpload(c, *u)
}

// completeUpload makes the object, and tells of it.
func (f *face) completeUpload(c echo.Context, u store.Upload) error {
	var cond store.Conditions
	if noteOf(u).Create {
		cond.IfNoneMatch = []string{"*"}
	}
	// The client has sent everything: that it is gone by now changes nothing.
	o, err := f.store.CompleteUpload(context.WithoutCancel(c.Request().Context()), u.ID, cond)
	if err != nil {
		return err
	}
	h := c.Response().Header()
	h.Set("ETag", quoteETag(o.ETag))
	h.Set("Cairn-Version", o.Version.String())
	return nil
}

func (f *face) abortUpload(c echo.Context) error {
	uid := c.Param("upload")
	release, _, err := f.takeUpload(c, uid, false)
	if err != nil {
		return err
	}
	defer release()
	if err := f.store.AbortUpload(c.Request().Context(), uid); err != nil {
		return err
	}
	return c.NoContent(http.StatusNoContent)
}

// uploadBody is a body that a later request may end.
type uploadBody struct {
	r       io.Reader
	stopped *atomic.Bool
	err     error
}

func (b *uploadBody) Read(p []byte) (n int, err error) {
	if b.stopped.Load() {
		err = errors.New("rest: stopped")
	} else {
		n, err = b.r.Read(p)
	}
	if err != nil && err != io.EOF {
		b.err = err
	}
	return n, err
}

// uploadHolders are the requests that work on uploads, one at a time on each.
type uploadHolders struct {
	mu sync.Mutex
	by map[string]*uploadHolder
}

// uploadHolder is such a request. Once it is done its connection serves another
// request: its deadline is not touched any more.
type uploadHolder struct {
	rc      *http.ResponseController
	reads   bool          // a body, for which it may wait long; else it is soon done
	stopped atomic.Bool   // it is to end
	done    chan struct{} // closed when it has

	mu    sync.Mutex
	ended bool
}

// stop asks the request to end. A read that runs ends now; one that was about to
// begin has a deadline of its own put after this one, so it is told again.
func (h *uploadHolder) stop() {
	if !h.reads || !h.stopped.CompareAndSwap(false, true) {
		return
	}
	go func() {
		t := time.NewTicker(20 * time.Millisecond)
		defer t.Stop()
		for {
			h.mu.Lock()
			if !h.ended {
				_ = h.rc.SetReadDeadline(time.Now())
			}
			h.mu.Unlock()
			select {
			case <-h.done:
				return
			case <-t.C:
			}
		}
	}()
}

func (h *uploadHolder) end() {
	h.mu.Lock()
	h.ended = true
	h.mu.Unlock()
	close(h.done)
}

// takeUpload makes a request the one that works on an upload; one that did so
// before is stopped and waited for. stopped is set when this one is to end in turn.
func (f *face) takeUpload(c echo.Context, uid string, reads bool) (release func(), stopped *atomic.Bool, err error) {
	me := &uploadHolder{reads: reads, rc: http.NewResponseController(c.Response().Writer), done: make(chan struct{})}
	limit := time.NewTimer(takeOver)
	defer limit.Stop()
	for {
		f.holders.mu.Lock()
		if f.holders.by == nil {
			f.holders.by = map[string]*uploadHolder{}
		}
		before := f.holders.by[uid]
		if before == nil {
			f.holders.by[uid] = me
			f.holders.mu.Unlock()
			return func() {
				f.holders.mu.Lock()
				delete(f.holders.by, uid)
				f.holders.mu.Unlock()
				me.end()
			}, &me.stopped, nil
		}
		f.holders.mu.Unlock()
		before.stop()
		select {
		case <-before.done:
		case <-c.Request().Context().Done():
			return nil, nil, context.Cause(c.Request().Context())
		case <-limit.C:
			return nil, nil, store.ErrInUse
		}
	}
}
