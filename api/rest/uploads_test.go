package rest

import (
	"bufio"
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"strings"
	"testing"
	"time"

	"cairn/store"
)

const tusHeader = "Tus-Resumable: 1.0.0"

func b64(s string) string { return base64.StdEncoding.EncodeToString([]byte(s)) }

func metadata(pairs ...string) string {
	var out []string
	for i := 0; i < len(pairs); i += 2 {
		out = append(out, pairs[i]+" "+b64(pairs[i+1]))
	}
	return "Upload-Metadata: " + strings.Join(out, ",")
}

// checked is want that holds the answer against openapi.json too.
func (e *engine) checked(status int, method, path string, body io.Reader, headers ...string) (http.Header, []byte) {
	e.t.Helper()
	h, b := e.want(status, method, path, body, headers...)
	readDocument(e.t).checkAnswer(e.t, method, path, status, h, b)
	return h, b
}

func (e *engine) beginUpload(length int, pairs ...string) string {
	e.t.Helper()
	h, _ := e.checked(201, "POST", "/v1/uploads", nil, tusHeader, "Upload-Length: "+strconv.Itoa(length), metadata(pairs...))
	at := h.Get("Location")
	if !strings.HasPrefix(at, "/v1/uploads/") || len(at) != len("/v1/uploads/")+32 {
		e.t.Fatalf("Location is %q", at)
	}
	return at
}

func (e *engine) offset(at string) int {
	e.t.Helper()
	h, _ := e.checked(200, "HEAD", at, nil, tusHeader)
	n, err := strconv.Atoi(h.Get("Upload-Offset"))
	if err != nil || h.Get("Cache-Control") != "no-store" || h.Get("Tus-Resumable") != "1.0.0" {
		e.t.Fatalf("HEAD %s: %v", at, h)
	}
	return n
}

// breakOff sends bytes at an offset, ends after n of them, and waits until the
// server has noticed.
func (e *engine) breakOff(at string, offset int, body []byte, n int) {
	e.t.Helper()
	conn, err := net.Dial("tcp", strings.TrimPrefix(e.url, "http://"))
	if err != nil {
		e.t.Fatal(err)
	}
	defer conn.Close()
	fmt.Fprintf(conn, "PATCH %s HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer %s\r\n%s\r\nUpload-Offset: %d\r\nContent-Type: application/offset+octet-stream\r\nContent-Length: %d\r\n\r\n",
		at, testToken, tusHeader, offset, len(body))
	if _, err := conn.Write(body[:n]); err != nil {
		e.t.Fatal(err)
	}
	if err := conn.(*net.TCPConn).CloseWrite(); err != nil {
		e.t.Fatal(err)
	}
	resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		e.t.Fatal(err)
	}
	defer resp.Body.Close()
	b, _ := io.ReadAll(resp.Body)
	readDocument(e.t).checkAnswer(e.t, "PATCH", at, resp.StatusCode, resp.Header, b)
	if resp.StatusCode != http.StatusBadRequest || !bytes.Contains(b, []byte("upload-unexpected-eof")) {
		e.t.Errorf("a body that broke off is answered with %d %s", resp.StatusCode, b)
	}
}

const patchType = "Content-Type: application/offset+octet-stream"

// TestTusUpload: an upload that breaks off twice goes on where it was, with a
// client that knows nothing but the protocol.
func TestTusUpload(t *testing.T) {
	e := newEngine(t)
	h, _ := e.checked(204, "OPTIONS", "/v1/uploads", nil)
	if h.Get("Tus-Version") != "1.0.0" || h.Get("Tus-Extension") != "creation,creation-with-upload,creation-defer-length,termination" {
		t.Errorf("OPTIONS says %v", h)
	}
	want := noise(9, 5<<20+77)
	at := e.beginUpload(len(want), "bucket", "main", "key", "a dir/ü.bin", "filetype", "image/png", "meta-Camera", "old", "relativePath", "x/y")
	if n := e.offset(at); n != 0 {
		t.Fatalf("a new upload has %d bytes", n)
	}
	const first = 3<<20 + 5
	e.breakOff(at, 0, want, first)
	n := e.offset(at)
	if n != first {
		t.Fatalf("%d bytes were sent, %d are kept", first, n)
	}
	e.checked(409, "PATCH", at, bytes.NewReader(want[n-1:]), tusHeader, patchType, fmt.Sprintf("Upload-Offset: %d", n-1))
	e.checked(404, "GET", "/v1/buckets/main/objects/a%20dir/%C3%BC.bin", nil)
	h, _ = e.checked(204, "PATCH", at, bytes.NewReader(want[n:n+1000]), tusHeader, patchType, fmt.Sprintf("Upload-Offset: %d", n))
	if h.Get("Upload-Offset") != strconv.Itoa(n+1000) || h.Get("ETag") != "" {
		t.Errorf("PATCH answers %v", h)
	}
	n += 1000
	h, _ = e.checked(204, "PATCH", at, bytes.NewReader(want[n:]), tusHeader, patchType, fmt.Sprintf("Upload-Offset: %d", n))
	if h.Get("Upload-Offset") != strconv.Itoa(len(want)) || h.Get("ETag") == "" || h.Get("Cairn-Version") == "" {
		t.Errorf("the last PATCH answers %v", h)
	}
	got, b := e.checked(200, "GET", "/v1/buckets/main/objects/a%20dir/%C3%BC.bin", nil)
	if !bytes.Equal(b, want) || got.Get("ETag") != h.Get("ETag") || got.Get("Content-Type") != "image/png" || got.Get("Cairn-Meta-Camera") != "old" {
		t.Errorf("the object has %d bytes and %v", len(b), got)
	}
	if n := e.offset(at); n != len(want) {
		t.Errorf("a complete upload has %d bytes", n)
	}
	h, _ = e.checked(200, "HEAD", at, nil)
	if h.Get("Cairn-Version") != got.Get("Cairn-Version") {
		t.Errorf("HEAD of a complete upload names version %q, the object is %q", h.Get("Cairn-Version"), got.Get("Cairn-Version"))
	}
	if h.Get("Upload-Length") != strconv.Itoa(len(want)) || !strings.Contains(h.Get("Upload-Metadata"), "relativePath "+b64("x/y")) {
		t.Errorf("HEAD answers %v", h)
	}
	e.checked(204, "DELETE", at, nil, tusHeader)
	e.checked(404, "HEAD", at, nil)
	e.checked(200, "GET", "/v1/buckets/main/objects/a%20dir/%C3%BC.bin", nil)
	if strings.Contains(e.log.String(), "bin") {
		t.Errorf("the log names the object: %s", e.log)
	}
}

func TestTusExtensions(t *testing.T) {
	e := newEngine(t)
	to := metadata("bucket", "main", "key", "k")
	h, _ := e.checked(201, "POST", "/v1/uploads", strings.NewReader("hello"), tusHeader, patchType, "Upload-Length: 5", to)
	if h.Get("Upload-Offset") != "5" || h.Get("ETag") == "" {
		t.Errorf("creation with upload: %v", h)
	}
	if _, b := e.checked(200, "GET", "/v1/buckets/main/objects/k", nil); string(b) != "hello" {
		t.Errorf("the object is %q", b)
	}
	h, _ = e.checked(201, "POST", "/v1/uploads", nil, tusHeader, "Upload-Length: 0", to)
	if _, b := e.checked(200, "GET", "/v1/buckets/main/objects/k", nil); len(b) != 0 || h.Get("ETag") == "" {
		t.Errorf("an empty upload: %v, the object has %d bytes", h, len(b))
	}
	h, _ = e.checked(201, "POST", "/v1/uploads", nil, tusHeader, "Upload-Defer-Length: 1", to)
	at := h.Get("Location")
	if h, _ = e.checked(200, "HEAD", at, nil); h.Get("Upload-Defer-Length") != "1" {
		t.Errorf("HEAD of an upload without a length: %v", h)
	}
	e.checked(204, "PATCH", at, strings.NewReader("abc"), tusHeader, patchType, "Upload-Offset: 0")
	e.checked(204, "PATCH", at, strings.NewReader("def"), tusHeader, patchType, "Upload-Offset: 3", "Upload-Length: 6")
	if _, b := e.checked(200, "GET", "/v1/buckets/main/objects/k", nil); string(b) != "abcdef" {
		t.Errorf("the object is %q", b)
	}
	// An object that must not be there and is: nothing replaces it, and the upload can wait.
	_, b := e.checked(412, "POST", "/v1/uploads", strings.NewReader("no"), tusHeader, patchType, "Upload-Length: 2", metadata("bucket", "main", "key", "k", "if-none-match", "*"))
	if !bytes.Contains(b, []byte("precondition-failed")) {
		t.Errorf("refused with %s", b)
	}
	if _, b := e.checked(200, "GET", "/v1/buckets/main/objects/k", nil); string(b) != "abcdef" {
		t.Errorf("the object became %q", b)
	}
}

func TestTusRefusals(t *testing.T) {
	e := newEngine(t)
	at := e.beginUpload(10, "bucket", "main", "key", "k")
	to := metadata("bucket", "main", "key", "k")
	for _, c := range []struct {
		status  int
		kind    string
		method  string
		path    string
		body    string
		headers []string
	}{
		{412, "upload-unsupported-version", "POST", "/v1/uploads", "", []string{"Upload-Length: 1", to}},
		{400, "invalid-header", "POST", "/v1/uploads", "", []string{tusHeader, "Upload-Length: 1"}},
		{400, "invalid-header", "POST", "/v1/uploads", "", []string{tusHeader, "Upload-Length: 1", metadata("bucket", "main")}},
		{400, "invalid-header", "POST", "/v1/uploads", "", []string{tusHeader, "Upload-Length: 1", metadata("bucket", "main", "key", "k", "if-none-match", "x")}},
		{400, "upload-invalid-upload-length", "POST", "/v1/uploads", "", []string{tusHeader, to}},
		{400, "upload-invalid-upload-length", "POST", "/v1/uploads", "", []string{tusHeader, "Upload-Length: -1", to}},
		{404, "no-such-bucket", "POST", "/v1/uploads", "", []string{tusHeader, "Upload-Length: 1", metadata("bucket", "nowhere", "key", "k")}},
		{404, "no-such-bucket", "POST", "/v1/uploads", "", []string{tusHeader, "Upload-Length: 1", metadata("bucket", ".uploads", "key", "k")}},
		{400, "invalid-request", "POST", "/v1/uploads", "", []string{tusHeader, "Upload-Length: 1", metadata("bucket", "main", "key", strings.Repeat("k", 1025))}},
		{431, "too-large", "POST", "/v1/uploads", "", []string{tusHeader, "Upload-Length: 1", metadata("bucket", "main", "key", "k", "x", strings.Repeat("k", 13000))}},
		{400, "invalid-parameter", "POST", "/v1/uploads?x=1", "", []string{tusHeader, "Upload-Length: 1", to}},
		{404, "no-such-upload", "HEAD", "/v1/uploads/" + strings.Repeat("0", 32), "", nil},
		{404, "no-such-upload", "PATCH", "/v1/uploads/nothing", "x", []string{tusHeader, patchType, "Upload-Offset: 0"}},
		{404, "no-such-upload", "DELETE", "/v1/uploads/" + strings.Repeat("0", 32), "", []string{tusHeader}},
		{412, "upload-unsupported-version", "PATCH", at, "x", []string{patchType, "Upload-Offset: 0"}},
		{415, "upload-invalid-content-type", "PATCH", at, "x", []string{tusHeader, "Upload-Offset: 0"}},
		{400, "upload-invalid-offset", "PATCH", at, "x", []string{tusHeader, patchType}},
		{409, "upload-mismatched-offset", "PATCH", at, "x", []string{tusHeader, patchType, "Upload-Offset: 1"}},
		{413, "upload-size-exceeded", "PATCH", at, "01234567890", []string{tusHeader, patchType, "Upload-Offset: 0"}},
		{412, "upload-unsupported-version", "DELETE", at, "", nil},
		{400, "invalid-header", "POST", "/v1/uploads", "", []string{tusHeader, "Upload-Length: 1", to, "If-None-Match: *"}},
		{400, "invalid-header", "PATCH", at, "x", []string{tusHeader, patchType, "Upload-Offset: 0", "If-Match: *"}},
	} {
		h, b := e.want(c.status, c.method, c.path, strings.NewReader(c.body), c.headers...)
		path, _, _ := strings.Cut(c.path, "?")
		readDocument(t).checkAnswer(t, c.method, path, c.status, h, b)
		if c.method != "HEAD" && !bytes.Contains(b, []byte(typePrefix+c.kind+`"`)) {
			t.Errorf("%s %s %q: %s, want %s", c.method, c.path, c.headers, b, c.kind)
		}
	}
	if n := e.offset(at); n != 0 {
		t.Errorf("%d bytes were kept of what was refused", n)
	}
}

// TestTusDeleteNeverMakesAnObject: what has all its bytes and is given up is gone.
func TestTusDeleteNeverMakesAnObject(t *testing.T) {
	r := newRig(t)
	u, err := r.store.BeginUpload(context.Background(), "main", "k", store.UploadOptions{Size: 4})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := r.store.AppendUpload(context.Background(), u.ID, 0, strings.NewReader("gone")); err != nil {
		t.Fatal(err)
	}
	if a := r.do("DELETE", "/v1/uploads/"+u.ID, "", tusHeader); a.status != 204 {
		t.Fatalf("%+v", a)
	}
	if a := r.do("GET", "/v1/buckets/main/objects/k", ""); a.status != 404 {
		t.Errorf("the object: %+v", a)
	}
}

// TestTusTakesOver: a request that hangs does not keep the client that comes back
// from going on, and what the first one brought is there.
func TestTusTakesOver(t *testing.T) {
	e := newEngine(t)
	at := e.beginUpload(10, "bucket", "main", "key", "k")
	// A request that is stopped before the server has read anything of it brings nothing:
	// then it is made again.
	var conn net.Conn
	for pause := 50 * time.Millisecond; ; pause *= 2 {
		var err error
		if conn, err = net.Dial("tcp", strings.TrimPrefix(e.url, "http://")); err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		fmt.Fprintf(conn, "PATCH %s HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer %s\r\n%s\r\nUpload-Offset: 0\r\n%s\r\nContent-Length: 10\r\n\r\nabcd", at, testToken, tusHeader, patchType)
		time.Sleep(pause)
		if n := e.offset(at); n == 4 {
			break
		} else if n != 0 || pause > 10*time.Second {
			t.Fatalf("of what the hanging request brought %d bytes are there", n)
		}
	}
	resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		t.Fatalf("the request that was stopped: %v", err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != 400 {
		t.Errorf("the request that was stopped: %v", resp.Status)
	}
	e.checked(204, "PATCH", at, strings.NewReader("efghij"), tusHeader, patchType, "Upload-Offset: 4")
	if _, b := e.checked(200, "GET", "/v1/buckets/main/objects/k", nil); string(b) != "abcdefghij" {
		t.Errorf("the object is %q", b)
	}
}

// TestTusCompletesWhatWasCutShort: all bytes are there, and the process ended
// before the object was. Who asks for the offset hears that it is done, and it is.
func TestTusCompletesWhatWasCutShort(t *testing.T) {
	r := newRig(t)
	u, err := r.store.BeginUpload(context.Background(), "main", "k", store.UploadOptions{Size: 4})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := r.store.AppendUpload(context.Background(), u.ID, 0, strings.NewReader("done")); err != nil {
		t.Fatal(err)
	}
	a := r.do("HEAD", "/v1/uploads/"+u.ID, "", tusHeader)
	if a.status != 200 || a.header.Get("Upload-Offset") != "4" {
		t.Fatalf("HEAD: %+v", a)
	}
	if a := r.do("GET", "/v1/buckets/main/objects/k", ""); a.status != 200 || a.body != "done" {
		t.Errorf("the object: %+v", a)
	}
}

func TestTusTellsTheStoresErrors(t *testing.T) {
	for err, status := range map[error]int{store.ErrBusy: 503, store.ErrFull: 507, store.ErrUnknown: 503, store.ErrInUse: 423, errFake: 500} {
		r := newRig(t)
		r.store.fail = err
		for _, c := range [][]string{{"POST", "/v1/uploads", "Upload-Length: 1", metadata("bucket", "main", "key", "k")}, {"PATCH", "/v1/uploads/x", patchType, "Upload-Offset: 0"}, {"DELETE", "/v1/uploads/x"}} {
			a := r.do(c[0], c[1], "", append(c[2:], tusHeader)...)
			if a.status != status || a.header.Get("Content-Type") != "application/problem+json" || strings.Contains(a.body, "ERR_") {
				t.Errorf("%s with %v: %d %s, want %d", c[0], err, a.status, a.body, status)
			}
		}
	}
}

// TestUploadsAreListed: page by page, what is on its way and nothing else.
func TestUploadsAreListed(t *testing.T) {
	e := newEngine(t)
	type page struct {
		Uploads []struct {
			ID, Bucket, Key string
			Offset          uint64
			Size            *uint64
		}
		More   bool
		Cursor string
	}
	list := func(query string) (p page) {
		t.Helper()
		_, b := e.checked(200, "GET", "/v1/uploads"+query, nil)
		if err := json.Unmarshal(b, &p); err != nil {
			t.Fatal(err)
		}
		return p
	}
	if p := list(""); p.Uploads == nil || len(p.Uploads) != 0 || p.More || p.Cursor != "" {
		t.Errorf("before the first: %+v", p)
	}
	var at []string
	for i := range 3 {
		at = append(at, e.beginUpload(1000, "bucket", "main", "key", fmt.Sprintf("ü%d", i)))
	}
	e.checked(204, "PATCH", at[1], bytes.NewReader(make([]byte, 10)), tusHeader, patchType, "Upload-Offset: 0")
	e.checked(204, "PATCH", at[2], bytes.NewReader(make([]byte, 1000)), tusHeader, patchType, "Upload-Offset: 0")
	seen := map[string]uint64{}
	p := list("?limit=1")
	for ; ; p = list("?limit=1&cursor=" + p.Cursor) {
		if len(p.Uploads) != 1 || p.More != (p.Cursor != "") {
			t.Fatalf("a page of one: %+v", p)
		}
		u := p.Uploads[0]
		if u.Bucket != "main" || !strings.HasPrefix(u.Key, "ü") || u.Size == nil || *u.Size != 1000 {
			t.Errorf("told as %+v", u)
		}
		seen["/v1/uploads/"+u.ID] = u.Offset
		if !p.More {
			break
		}
	}
	if len(seen) != 2 || seen[at[1]] != 10 {
		t.Errorf("listed %v; two are on their way, %s with 10 bytes", seen, at[1])
	}
	for _, query := range []string{"?limit=0", "?limit=1001", "?cursor=", "?cursor=xyz", "?cursor=" + strings.Repeat("G", 32), "?prefix=a"} {
		e.checked(400, "GET", "/v1/uploads"+query, nil)
	}
}
