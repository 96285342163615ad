package rest

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"
)

// described is one operation of openapi.json.
type described struct {
	method, path string
	query, head  []parameter
	body         []string // media types that it takes
}

func (x described) String() string   { return x.method + " " + x.path }
func (x described) GoString() string { return x.String() }

// operations lists what the document describes, HEAD beside each GET.
func (d *document) operations(t rapid.TB) (out []described) {
	for path, methods := range d.Paths {
		for m, raw := range methods {
			if m == "parameters" {
				continue
			}
			var op struct {
				Parameters  []parameter `json:"parameters"`
				RequestBody response    `json:"requestBody"`
			}
			if err := json.Unmarshal(raw, &op); err != nil {
				t.Fatalf("%s %s in openapi.json: %v", m, path, err)
			}
			x := described{method: strings.ToUpper(m), path: path}
			for _, p := range op.Parameters {
				if p.In == "query" {
					x.query = append(x.query, p)
				} else {
					x.head = append(x.head, p)
				}
			}
			for media := range op.RequestBody.Content {
				x.body = append(x.body, media)
			}
			out = append(out, x)
			if x.method == http.MethodGet {
				x.method = http.MethodHead
				out = append(out, x)
			}
		}
	}
	slices.SortFunc(out, func(a, b described) int { return strings.Compare(a.path+a.method, b.path+b.method) })
	return out
}

// driver sends random requests to the real store, and remembers what the answers
// named, so that later requests can name it too.
type driver struct {
	*engine
	t     *rapid.T
	doc   *document
	ops   []described
	known map[string][]string // by kind of value
	tally map[string]int      // of operation and status; all checks share it
}

func newDriver(t *rapid.T, doc *document, tally map[string]int) *driver {
	d := &driver{engine: newEngine(t), t: t, doc: doc, ops: doc.operations(t), tally: tally, known: map[string][]string{
		"bucket": {"other.bucket", "archivo", "b-1", "main", "main", "main"}, "key": {strings.Repeat("k", 1024), "..", "a?b%2F#", "k", "a/b", "dir/", "\u00fc"},
		"name": {"k", "f.txt"}, "node": {"n01", "n06"}, "upload": {strings.Repeat("0", 32)},
		"version": {strings.Repeat("0", 23) + "1"}, "etag": {`"none"`}, "offset": {"0"}, "cursor": {"MDAw"},
		"job": {"018bcfe5-687b-7abc-9abc-0123456789ab"},
	}}
	// Something to ask for.
	auth := "Host: localhost\r\nAuthorization: Bearer " + testToken + "\r\n"
	d.send(described{method: "PUT", path: "/v1/buckets/{bucket}"}, "PUT /v1/buckets/b-1 HTTP/1.1\r\n"+auth+"\r\n")
	body, ct := form([2]string{"archivo", "f.txt"})
	d.send(described{method: "POST", path: "/cargar"}, fmt.Sprintf("POST /cargar HTTP/1.1\r\n%s%s\r\nContent-Length: %d\r\n\r\n%s", auth, ct, len(body), body))
	for _, key := range d.known["key"][3:] {
		d.send(described{method: "PUT", path: "/v1/buckets/{bucket}/objects/{key}"}, fmt.Sprintf("PUT %s%s HTTP/1.1\r\n%sContent-Length: 10\r\n\r\n0123456789", objects, url.PathEscape(key), auth))
		d.send(described{method: "POST", path: uploadsPath}, fmt.Sprintf("POST %s HTTP/1.1\r\n%s%s\r\nUpload-Length: 10\r\n%s\r\n\r\n", uploadsPath, auth, tusVersion, metadata("bucket", "main", "key", key)))
	}
	return d
}

func (d *driver) learn(kind, value string) {
	if value != "" && !slices.Contains(d.known[kind], value) {
		d.known[kind] = append(d.known[kind], value)
	}
}

// chance is true once in n.
func (d *driver) chance(n int, what string) bool { return rapid.IntRange(1, n).Draw(d.t, what) == n }

func (d *driver) one(values []string, what string) string {
	return rapid.SampledFrom(values).Draw(d.t, what)
}

// a value of a kind that was seen before; the newer ones are the likelier ones.
func (d *driver) a(kind string) string {
	all := d.known[kind]
	if !d.chance(3, "any "+kind) {
		all = all[max(0, len(all)-4):]
	}
	return d.one(all, kind)
}

// junk is what no parameter should be, of bytes that a header's value can have.
func (d *driver) junk(what string) string {
	return rapid.OneOf(
		rapid.SampledFrom([]string{"", " ", "0", "-1", "1e3", "0x10", "+1", "007", "18446744073709551616", "9223372036854775807", "true", "null", "*", "..", "../../etc/passwd", "%", "%00", "%2F", "%zz",
			"\xff\xfe", "\xc0\xaf", "\u202e", ",", `"`, `W/"`, "bytes=", strings.Repeat("9", 400), strings.Repeat("x", 1025)}),
		rapid.StringMatching(`[ -~\t]{0,40}`),
		rapid.Map(rapid.SliceOfN(rapid.ByteRange(0x80, 0xff), 0, 12), func(b []byte) string { return string(b) }),
	).Draw(d.t, what)
}

// value is one for a parameter, by its name, else by its schema.
func (d *driver) value(p parameter) string {
	switch strings.TrimPrefix(p.Name, "Cairn-Source-") {
	case "version":
		return d.a("version")
	case "cursor":
		return d.a("cursor")
	case "kind":
		return d.one([]string{"repair", "check-index", "snapshot", "scrub", "other"}, p.Name)
	case "Last-Event-ID":
		return d.one([]string{"0", "x-1", "x-18446744073709551615"}, p.Name)
	case "prefix", "start_after":
		return d.one([]string{"", "a", "a/", "dir/", "\u00fc", "k"}, p.Name)
	case "delimiter":
		return d.one([]string{"", "/", "b", "//"}, p.Name)
	case "copy_from", "rename_from":
		return d.a("bucket") + "/" + d.a("key")
	case "Range":
		return d.one([]string{"bytes=0-0", "bytes=-5", "bytes=1-", "bytes=0-1,3-4,900-", "bytes=99999999-", "bytes=5-1", "lines=1-2", "bytes=0-18446744073709551615",
			"bytes=" + strings.Repeat("0-0,", 40)}, p.Name)
	case "If-Range", "If-Match", "If-None-Match":
		return d.one([]string{d.a("etag"), "*", "W/" + d.a("etag"), d.a("etag") + ", " + d.a("etag")}, p.Name)
	case "If-Unmodified-Since", "If-Modified-Since":
		return d.one([]string{"Thu, 01 Jan 1970 00:00:00 GMT", "Fri, 31 Dec 2199 23:59:59 GMT", "yesterday"}, p.Name)
	case "Tus-Resumable":
		return "1.0.0"
	case "Upload-Length":
		return d.one([]string{"0", "1", "10", "300000", "5000000000000", "9223372036854775807"}, p.Name)
	case "Upload-Defer-Length":
		return "1"
	case "Upload-Offset":
		return d.a("offset")
	case "Upload-Metadata":
		m := metadata("bucket", d.a("bucket"), "key", d.a("key"), "meta-x", "y", "filetype", d.one([]string{"text/plain", "", "\x01", "\xff"}, "filetype"))
		if d.chance(3, "create") {
			m += ",if-none-match " + b64("*")
		}
		return strings.TrimPrefix(m, "Upload-Metadata: ")
	case "Content-Type":
		return d.one([]string{"text/plain", "text/html; charset=utf-8", "application/octet-stream"}, p.Name)
	}
	if p.Schema != nil && len(p.Schema.Enum) > 0 {
		return d.one(p.Schema.Enum, p.Name)
	}
	if p.Schema != nil && p.Schema.Type == "integer" {
		return fmt.Sprint(rapid.IntRange(0, 1001).Draw(d.t, p.Name))
	}
	if p.Schema != nil && p.Schema.Type == "boolean" {
		return d.one([]string{"true", "false"}, p.Name)
	}
	return ""
}

// target fills in the path's parameters and a query.
func (d *driver) target(op described, wild bool) string {
	parts := strings.Split(op.path, "/")
	for i, p := range parts {
		kind, ok := strings.CutPrefix(p, "{")
		if !ok {
			continue
		}
		v := d.a(strings.TrimSuffix(kind, "}"))
		if wild && d.chance(3, "a wild part") {
			v = d.junk(kind)
		}
		if parts[i] = url.PathEscape(v); d.chance(4, "escaped less") {
			parts[i] = strings.ReplaceAll(parts[i], "%2F", "/")
		}
		if wild && d.chance(8, "escaped wrong") {
			parts[i] = strings.ReplaceAll(v, " ", "")
		}
	}
	var query []string
	action := ""
	if op.method == http.MethodPost && len(op.query) > 0 && !wild { // one at a time
		action = d.one([]string{"undelete", "copy_from", "rename_from"}, "action")
	}
	for _, p := range op.query {
		another := action != "" && (slices.Contains([]string{"undelete", "copy_from", "rename_from"}, p.Name) || action == "undelete")
		if p.Name != action && (another || !d.chance(4, "with "+p.Name)) {
			continue
		}
		v := d.value(p)
		if wild && d.chance(3, "a wild parameter") {
			v = d.junk(p.Name)
		}
		query = append(query, url.QueryEscape(p.Name)+"="+url.QueryEscape(v))
		if wild && d.chance(10, "twice") {
			query = append(query, query[len(query)-1])
		}
	}
	if wild && d.chance(8, "an unknown parameter") {
		query = append(query, d.one([]string{"x", "x=1", "%zz", ";", "version", "\xff"}, "parameter"))
	}
	out := strings.Join(parts, "/")
	if len(query) > 0 {
		out += "?" + strings.Join(query, "&")
	}
	if wild && d.chance(40, "a long URL") {
		out += "?" + strings.Repeat("x", maxURL)
	}
	return out
}

// content is a body for a media type, and its type as a header has it.
func (d *driver) content(media []string, wild bool) (body, contentType string) {
	if len(media) == 0 {
		if wild && d.chance(6, "a body unasked") {
			return d.junk("body"), "text/plain"
		}
		return "", ""
	}
	if wild && d.chance(4, "a wild body") {
		return d.junk("body"), d.one([]string{media[0], "multipart/form-data", "application/json", "x"}, "type")
	}
	switch media[0] {
	case "application/json":
		return d.one([]string{"", "{}", `{"kind":"repair"}`, `{"kind":"check-index"}`, `{"kind":"snapshot"}`, `{"kind":"scrub","deep":true,"rate":1000}`, `{"kind":"scrub","rate":-1}`, `{"kind":"repair","deep":true}`, `{"kind":"other"}`, `{"versioning":true}`, `{"k":2,"compression":"off"}`, `{"k":17}`, `{"k":-1}`, `{"profile":"fine","versioning":false}`, `{"compression":"zip"}`,
			`{"x":1}`, `[]`, `{"k":`, `{}{}`, `null`, strings.Repeat(" ", maxJSON+1), `{"k":1e400}`, strings.Repeat(`[`, 30000)}, "JSON"), media[0]
	case "multipart/form-data":
		field := "archivo"
		if wild {
			field = d.one([]string{"archivo", "otro", "", "archivo\"; x=\""}, "field")
		}
		body, ct := form([2]string{field, d.one([]string{"f.txt", "k", "a/b", "..", "", "\xff"}, "file")})
		return body, strings.TrimPrefix(ct, "Content-Type: ")
	case "application/offset+octet-stream":
		return strings.Repeat("u", d.size()), media[0]
	}
	return strings.Repeat("d", d.size()), d.one([]string{"text/plain", "application/x-thing", ""}, "type")
}

func (d *driver) size() int {
	return rapid.SampledFrom([]int{0, 1, 10, 100, 5000, 300_000}).Draw(d.t, "bytes")
}

// extra headers, which no operation describes.
var extra = []string{"Content-Type", "Content-Encoding", "Content-Disposition", "Content-Language", "Cache-Control", "Cairn-Meta-X", "Cairn-Meta-", "Content-Range", "Range", "If-Match",
	"X-HTTP-Method-Override", "Upload-Concat", "Upload-Checksum", "Upload-Length", "Upload-Offset", "Tus-Resumable", "Accept", "Accept-Encoding", "TE", "Cookie", "X-Forwarded-For", "X-Forwarded-Host", "Forwarded"}

// request draws one.
func (d *driver) request() (op described, text string) {
	op = rapid.SampledFrom(d.ops).Draw(d.t, "operation")
	wild := d.chance(3, "wild")
	target := d.target(op, wild)
	host, auth := "localhost", "Authorization: Bearer "+testToken
	if wild {
		host = d.one([]string{"localhost", "localhost:99", "127.0.0.1", "[::1]:5", "other.example", "[", ""}, "host")
		auth = d.one([]string{auth, auth, auth, auth, auth, "Authorization: Bearer x", "Authorization: Basic eA==", "Authorization: " + testToken, "X: y"}, "auth")
	}
	lines := []string{"Host: " + host, auth}
	body, contentType := d.content(op.body, wild)
	for _, p := range op.head {
		if p.Name == "Content-Type" || p.Name == "Cairn-Meta-NAME" || p.Required && wild && d.chance(6, "without "+p.Name) || !p.Required && !d.chance(4, "with "+p.Name) {
			continue
		}
		v := d.value(p)
		if wild && d.chance(4, "a wild header") {
			v = d.junk(p.Name)
		}
		lines = append(lines, p.Name+": "+v)
		if wild && d.chance(12, "header twice") {
			lines = append(lines, p.Name+": "+v)
		}
	}
	if contentType != "" {
		lines = append(lines, "Content-Type: "+contentType)
	}
	for wild && d.chance(2, "one more header") {
		lines = append(lines, d.one(extra, "header")+": "+d.junk("its value"))
	}
	if wild && d.chance(10, "another origin") {
		lines = append(lines, d.one([]string{"Origin: http://evil.example", "Sec-Fetch-Site: cross-site", "Sec-Fetch-Site: same-site", "Origin: null"}, "origin"))
	}
	switch n := len(body); {
	case n > 0 && d.chance(4, "chunked"):
		lines = append(lines, "Transfer-Encoding: chunked")
		body = fmt.Sprintf("%x\r\n%s\r\n0\r\n\r\n", n, body)
		if wild && d.chance(4, "cut off") {
			body = body[:len(body)/2]
		}
	case n > 0 || len(op.body) > 0:
		if wild && d.chance(6, "wrong length") {
			n += rapid.SampledFrom([]int{1, 1000, 1 << 40, -1}).Draw(d.t, "by")
		}
		lines = append(lines, fmt.Sprintf("Content-Length: %d", max(n, 0)))
	}
	return op, op.method + " " + target + " HTTP/1.1\r\n" + strings.Join(lines, "\r\n") + "\r\n\r\n" + body
}

// send sends one request and judges the answer.
func (d *driver) send(op described, text string) {
	req, err := http.ReadRequest(bufio.NewReader(strings.NewReader(text)))
	if err != nil {
		d.tally["no request"]++
		return
	}
	escaped, w := req.URL.EscapedPath(), httptest.NewRecorder()
	if strings.HasPrefix(escaped, eventsPath) { // its client leaves
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Millisecond)
		defer cancel()
		req = req.WithContext(ctx)
	}
	func() {
		defer func() {
			if p := recover(); p != nil {
				d.t.Errorf("%.400q: %v", text, p)
			}
		}()
		d.handler.ServeHTTP(w, req)
	}()
	d.tally["requests"]++
	if d.doc.match(escaped) == op.path {
		d.tally[fmt.Sprintf("%v: %dxx", op, w.Code/100)]++
	}
	if w.Code >= 500 {
		d.t.Errorf("%.400q is answered with %d %.300s", text, w.Code, w.Body)
	}
	d.doc.checkAnswer(d.t, op.method, escaped, w.Code, w.Header(), w.Body.Bytes())
	if d.t.Failed() {
		d.t.Fatalf("the request was %.600q\nthe answer %d %v %.300q", text, w.Code, w.Header(), w.Body)
	}
	d.learn("etag", w.Header().Get("ETag"))
	d.learn("version", w.Header().Get("Cairn-Version"))
	d.learn("offset", w.Header().Get("Upload-Offset"))
	if at, ok := strings.CutPrefix(w.Header().Get("Location"), uploadsPath+"/"); ok {
		d.learn("upload", at)
	}
	if at, ok := strings.CutPrefix(w.Header().Get("Location"), jobsPath+"/"); ok {
		d.learn("job", at)
	}
	var said struct{ Cursor, Archivo string }
	if json.Unmarshal(w.Body.Bytes(), &said) == nil {
		d.learn("cursor", said.Cursor)
		d.learn("name", said.Archivo)
	}
}

// TestRandomRequests sends requests made from openapi.json to the real store, two
// of three of them as it describes and the others bent: no answer may be a fault
// of ours, or one that the document does not describe. CAIRN_LONG=1 sends 50,000.
func TestRandomRequests(t *testing.T) {
	each := 10
	switch {
	case os.Getenv("CAIRN_LONG") != "":
		each = 500
	case testing.Short(): // rapid makes a fifth of the checks
		each = 50
	}
	doc, tally := readDocument(t), map[string]int{}
	rapid.Check(t, func(t *rapid.T) {
		d := newDriver(t, doc, tally)
		for range each {
			d.send(d.request())
		}
	})
	t.Logf("%d requests, and %d that are none", tally["requests"], tally["no request"])
	var reached []string
	for name, n := range tally {
		reached = append(reached, fmt.Sprintf("%5d %s", n, name))
	}
	slices.SortFunc(reached, func(a, b string) int { return strings.Compare(a[6:], b[6:]) })
	t.Log(strings.Join(reached, "\n"))
	if tally["requests"] < 20_000 {
		return // not enough for each operation to have been both taken and refused
	}
	for _, op := range doc.operations(t) {
		name := op.String()
		if tally[name+": 2xx"] == 0 && !strings.HasPrefix(op.path, "/v1/nodes/{node}") { // no node is lost here, nor more than packs need
			t.Errorf("%s has never succeeded", name)
		}
		if tally[name+": 4xx"] == 0 {
			t.Errorf("%s was never refused", name)
		}
	}
}
