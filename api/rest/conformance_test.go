package rest

import (
	"bytes"
	"fmt"
	"io"
	"mime"
	"mime/multipart"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"
)

// ask sends a request to the handler without a socket between; the answer is held
// against openapi.json.
func (e *engine) ask(d *document, method, path, body string, headers ...string) *httptest.ResponseRecorder {
	e.t.Helper()
	req := httptest.NewRequest(method, "http://localhost"+path, strings.NewReader(body))
	req.Header.Set("Authorization", "Bearer "+testToken)
	for _, h := range headers {
		name, value, _ := strings.Cut(h, ": ")
		req.Header.Add(name, value)
	}
	w := httptest.NewRecorder()
	e.handler.ServeHTTP(w, req)
	d.checkAnswer(e.t, method, strings.Split(path, "?")[0], w.Code, w.Header(), w.Body.Bytes())
	return w
}

// precondition is one column of the table: what a header says, beside what is
// stored.
type precondition string

const (
	absent    precondition = ""
	matching  precondition = "matching" // the tag, or the second, of what is stored
	other     precondition = "other"    // another tag
	weak      precondition = "weak"     // the tag, marked as weak
	anything  precondition = "*"
	malformed precondition = "malformed"
	twice     precondition = "twice"  // two lines
	before    precondition = "before" // a second before what is stored was made
)

func (p precondition) header(name, tag string, at time.Time) []string {
	value := map[precondition]string{other: `"other"`, weak: "W/" + tag, anything: "*", malformed: "nonsense"}[p]
	date := strings.HasSuffix(name, "Since")
	switch {
	case p == absent:
		return nil
	case p == before, p == twice:
		value = at.Add(-time.Second).Format(http.TimeFormat)
	case p == matching && date:
		value = at.Format(http.TimeFormat)
	case p == matching:
		value = tag
	}
	lines := []string{name + ": " + value}
	if p == twice {
		lines = append(lines, lines[0])
	}
	return lines
}

// expected is the status that RFC 9110, section 13.2, asks for, step by step.
func expected(method string, there bool, match, none, unmodified, modified precondition) int {
	if match == malformed || none == malformed {
		return 400 // ours: a write must not happen because its condition was misspelt
	}
	read := method == "GET" || method == "HEAD"
	plain := map[string][2]int{"GET": {404, 200}, "HEAD": {404, 200}, "PUT": {201, 200}, "DELETE": {404, 204}}[method]
	if !there && plain[0] == 404 {
		return 404 // 13.2.1: conditions count only where the answer would be 2xx without them
	}
	switch { // steps 1 and 2
	case match != absent:
		if !there || match == other || match == weak {
			return 412
		}
	case unmodified == before:
		if there {
			return 412
		}
	}
	switch { // steps 3 and 4
	case none != absent:
		if there && none != other {
			if read {
				return 304
			}
			return 412
		}
	case read && modified == matching:
		return 304
	}
	if there {
		return plain[1]
	}
	return plain[0]
}

// TestConformancePreconditions: every combination of preconditions, on every
// method of an object, there or not, on the real store.
func TestConformancePreconditions(t *testing.T) {
	e, doc := newEngine(t), readDocument(t)
	tags := []precondition{absent, matching, other, weak, anything, malformed}
	var (
		tag string
		at  time.Time
	)
	exists := false
	arrange := func(there bool) {
		switch {
		case there && !exists:
			e.ask(doc, "PUT", objects+"k", "body", "Content-Encoding: br")
		case !there && exists:
			e.ask(doc, "DELETE", objects+"k", "")
		}
		exists = there
		if there {
			h := e.ask(doc, "HEAD", objects+"k", "").Header()
			tag = h.Get("Etag")
			var err error
			if at, err = http.ParseTime(h.Get("Last-Modified")); err != nil {
				t.Fatal(err)
			}
		}
	}
	arrange(true)
	done := map[int]int{}
	for _, there := range []bool{true, false} {
		for _, match := range tags {
			for _, none := range tags {
				for _, unmodified := range []precondition{absent, before, matching, malformed, twice} {
					for _, modified := range []precondition{absent, before, matching, malformed} {
						for _, method := range []string{"GET", "HEAD", "PUT", "DELETE"} {
							if there != exists {
								arrange(there)
							}
							var headers []string
							for name, p := range map[string]precondition{"If-Match": match, "If-None-Match": none, "If-Unmodified-Since": unmodified, "If-Modified-Since": modified} {
								headers = append(headers, p.header(name, tag, at)...)
							}
							body := ""
							if method == "PUT" {
								body = "body"
							}
							w := e.ask(doc, method, objects+"k", body, headers...)
							want := expected(method, there, match, none, unmodified, modified)
							if w.Code != want {
								t.Fatalf("%s, there %v, %q: %d, want %d", method, there, headers, w.Code, want)
							}
							done[w.Code]++
							switch h := w.Header(); {
							case w.Code == 304 && (h.Get("Etag") != tag || h.Get("Last-Modified") == "" || h.Get("Cache-Control") == "" || h.Get("Content-Encoding") != "" || w.Body.Len() > 0):
								t.Fatalf("%s %q: 304 with %v and %d bytes", method, headers, h, w.Body.Len())
							case method == "HEAD" && w.Body.Len() > 0, method == "GET" && w.Code == 200 && w.Body.String() != "body":
								t.Fatalf("%s %q: %d with %q", method, headers, w.Code, w.Body)
							}
							if exists = w.Code == 200 || w.Code == 201 || w.Code == 304 || there && w.Code != 204; exists && method == "PUT" && w.Code < 300 {
								arrange(true) // it has another date now
							}
						}
					}
				}
			}
		}
	}
	for _, status := range []int{200, 201, 204, 304, 400, 404, 412} {
		if done[status] == 0 {
			t.Errorf("no combination led to %d: %v", status, done)
		}
	}
}

// TestConditionsAreJudgedBeforeTheBody: a put that cannot succeed does not read
// what it would throw away.
func TestConditionsAreJudgedBeforeTheBody(t *testing.T) {
	e := newEngine(t)
	e.want(201, "PUT", objects+"k", strings.NewReader("body"))
	for _, cond := range []string{"If-None-Match: *", `If-Match: "x"`} {
		body := &countedReader{r: strings.NewReader(strings.Repeat("x", 1<<20))}
		req := httptest.NewRequest("PUT", "http://localhost"+objects+"k", body)
		req.Header.Set("Authorization", "Bearer "+testToken)
		name, value, _ := strings.Cut(cond, ": ")
		req.Header.Set(name, value)
		w := httptest.NewRecorder()
		e.handler.ServeHTTP(w, req)
		if w.Code != 412 || body.n > 0 {
			t.Errorf("%s: %d after %d bytes of the body, want 412 after none", cond, w.Code, body.n)
		}
	}
}

type countedReader struct {
	r io.Reader
	n int
}

func (c *countedReader) Read(p []byte) (int, error) {
	n, err := c.r.Read(p)
	c.n += n
	return n, err
}

// TestConformanceRanges: every form of a range, of an object of several chunks.
func TestConformanceRanges(t *testing.T) {
	e, doc := newEngine(t), readDocument(t)
	b := noise(3, 5<<20)
	size := len(b)
	h := e.ask(doc, "PUT", objects+"k", string(b), "Content-Type: text/plain", "Content-Encoding: br").Header()
	tag, version := h.Get("Etag"), h.Get("Cairn-Version")
	date := e.ask(doc, "HEAD", objects+"k", "").Header().Get("Last-Modified")
	m := size / 2
	for _, c := range []struct {
		spec    string
		headers []string
		query   string
		status  int
		parts   [][2]int // first and last byte
	}{
		{spec: "bytes=0-0", status: 206, parts: [][2]int{{0, 0}}},
		{spec: fmt.Sprintf("bytes=%d-", m), status: 206, parts: [][2]int{{m, size - 1}}},
		{spec: "bytes=-7", status: 206, parts: [][2]int{{size - 7, size - 1}}},
		{spec: fmt.Sprintf("bytes=-%d", size+1), status: 206, parts: [][2]int{{0, size - 1}}},
		{spec: "bytes=0-1,4-5", status: 206, parts: [][2]int{{0, 1}, {4, 5}}},
		{spec: "bytes=4-5,0-1", status: 206, parts: [][2]int{{4, 5}, {0, 1}}},
		{spec: "bytes=0-1,2-3", status: 206, parts: [][2]int{{0, 3}}},
		{spec: "bytes=9-11,0-1,10-20,-1", status: 206, parts: [][2]int{{9, 20}, {0, 1}, {size - 1, size - 1}}},
		{spec: fmt.Sprintf("bytes=0-9,%d-%d,-3", m-100_000, m+2_000_000), status: 206, parts: [][2]int{{0, 9}, {m - 100_000, m + 2_000_000}, {size - 3, size - 1}}},
		{spec: fmt.Sprintf("bytes=0-1,%d-,5-6", size), status: 206, parts: [][2]int{{0, 1}, {5, 6}}},
		{spec: fmt.Sprintf("bytes=%d-,%d-,3-3", size, size+9), status: 206, parts: [][2]int{{3, 3}}},
		{spec: fmt.Sprintf("bytes=%d-,-0", size), status: 416},
		{spec: "bytes=1-0", status: 200}, {spec: "bytes=0-1,x", status: 200}, {spec: "lines=0-1", status: 200},
		{spec: "bytes=" + manyRanges(maxRanges), status: 206, parts: manyParts(maxRanges)}, {spec: "bytes=" + manyRanges(maxRanges+1), status: 200},
		// If-Range decides whether there are parts; before it the preconditions.
		{spec: "bytes=0-1,4-5", headers: []string{"If-Range: " + tag}, status: 206, parts: [][2]int{{0, 1}, {4, 5}}},
		{spec: "bytes=0-1", headers: []string{"If-Range: W/" + tag}, status: 200},
		{spec: "bytes=0-1", headers: []string{`If-Range: "other"`}, status: 200},
		{spec: "bytes=0-1", headers: []string{"If-Range: nonsense"}, status: 200},
		{spec: "bytes=0-1", headers: []string{"If-Range: " + tag, "If-Range: " + tag}, status: 200},
		{spec: "bytes=0-1", headers: []string{"If-Range: " + date}, status: 200},
		{spec: "bytes=0-1", headers: []string{"If-Range: " + date}, query: "?version=" + version, status: 206, parts: [][2]int{{0, 1}}},
		{spec: "bytes=0-1", headers: []string{"If-Range: Mon, 02 Jan 2006 15:04:05 GMT"}, query: "?version=" + version, status: 200},
		{spec: "bytes=0-1", headers: []string{"If-Range: " + tag}, query: "?version=" + version, status: 206, parts: [][2]int{{0, 1}}},
		{spec: fmt.Sprintf("bytes=%d-", size), headers: []string{`If-Range: "other"`}, status: 200},
		{spec: fmt.Sprintf("bytes=%d-", size), headers: []string{`If-Match: "other"`}, status: 412},
		{spec: "bytes=0-1", headers: []string{"If-None-Match: " + tag, "If-Range: " + tag}, status: 304},
	} {
		w := e.ask(doc, "GET", objects+"k"+c.query, "", append(c.headers, "Range: "+c.spec)...)
		at := fmt.Sprintf("%.80q %q", c.spec, c.headers)
		if w.Code != c.status {
			t.Errorf("%s: %d, want %d", at, w.Code, c.status)
			continue
		}
		if got := w.Header().Get("Content-Length"); w.Code < 300 && got != fmt.Sprint(w.Body.Len()) {
			t.Errorf("%s: Content-Length %s for %d bytes", at, got, w.Body.Len())
		}
		switch c.status {
		case 200:
			if !bytes.Equal(w.Body.Bytes(), b) || w.Header().Get("Content-Range") != "" {
				t.Errorf("%s: %d bytes at %q are not the whole", at, w.Body.Len(), w.Header().Get("Content-Range"))
			}
		case 206:
			checkParts(t, at, w, b, c.parts)
		case 416:
			if got := w.Header().Get("Content-Range"); got != fmt.Sprintf("bytes */%d", size) {
				t.Errorf("%s: Content-Range %q", at, got)
			}
		}
		if w := e.ask(doc, "HEAD", objects+"k", "", "Range: "+c.spec); w.Code != 200 || w.Header().Get("Content-Length") != fmt.Sprint(size) {
			t.Errorf("HEAD with %s: %d %v; a range is for GET", at, w.Code, w.Header())
		}
	}
}

func manyRanges(n int) string {
	var list []string
	for i := range n {
		list = append(list, fmt.Sprintf("%d-%d", 3*i, 3*i+1))
	}
	return strings.Join(list, ",")
}

func manyParts(n int) (out [][2]int) {
	for i := range n {
		out = append(out, [2]int{3 * i, 3*i + 1})
	}
	return out
}

// checkParts holds a 206 against the parts that were asked for.
func checkParts(t *testing.T, at string, w *httptest.ResponseRecorder, whole []byte, parts [][2]int) {
	t.Helper()
	where := func(p [2]int) string { return fmt.Sprintf("bytes %d-%d/%d", p[0], p[1], len(whole)) }
	h := w.Header()
	if h.Get("Etag") == "" || h.Get("Cache-Control") == "" || !strings.HasPrefix(h.Get("Content-Security-Policy"), "sandbox") {
		t.Errorf("%s: a 206 with %v", at, h)
	}
	if len(parts) == 1 {
		if p := parts[0]; h.Get("Content-Range") != where(p) || !bytes.Equal(w.Body.Bytes(), whole[p[0]:p[1]+1]) || h.Get("Content-Type") != "text/plain" || h.Get("Content-Encoding") != "br" {
			t.Errorf("%s: %d bytes and %v, want %s", at, w.Body.Len(), h, where(p))
		}
		return
	}
	media, params, err := mime.ParseMediaType(h.Get("Content-Type"))
	if err != nil || media != "multipart/byteranges" || h.Get("Content-Range") != "" || h.Get("Content-Encoding") != "" {
		t.Errorf("%s: several parts with %v", at, h)
		return
	}
	r := multipart.NewReader(w.Body, params["boundary"])
	for i, p := range parts {
		part, err := r.NextRawPart()
		if err != nil {
			t.Errorf("%s: part %d: %v", at, i, err)
			return
		}
		got, err := io.ReadAll(part)
		if err != nil || part.Header.Get("Content-Range") != where(p) || !bytes.Equal(got, whole[p[0]:p[1]+1]) || part.Header.Get("Content-Type") != "text/plain" || part.Header.Get("Content-Encoding") != "br" {
			t.Errorf("%s: part %d has %d bytes, %v, %v; want %s", at, i, len(got), part.Header, err, where(p))
		}
	}
	if _, err := r.NextRawPart(); err != io.EOF {
		t.Errorf("%s: more than %d parts: %v", at, len(parts), err)
	}
}

// TestPartsOfADyingObjectAreCut: a later part that cannot be read cuts the
// connection like any other (H68).
func TestPartsOfADyingObjectAreCut(t *testing.T) {
	r := newRig(t)
	r.put("k", strings.Repeat("x", 10_000))
	r.store.breakBodies(600)
	defer func() {
		if got := recover(); got != http.ErrAbortHandler {
			t.Errorf("a second part that fails ends in %v, want a cut connection", got)
		}
	}()
	r.do("GET", objects+"k", "", "Range: bytes=0-9,2000-3000")
	t.Error("an answer with a part that failed looks whole")
}

// TestMergedRangesCoverTheSame: merging changes neither which bytes are sent nor,
// among those that stay apart, their order.
func TestMergedRangesCoverTheSame(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		const size = 40
		in := rapid.SliceOfN(rapid.Custom(func(t *rapid.T) byteRange {
			off := rapid.Uint64Range(0, size-1).Draw(t, "off")
			return byteRange{off, rapid.Uint64Range(1, size-off).Draw(t, "n")}
		}), 1, maxRanges).Draw(t, "ranges")
		cover := func(rs []byteRange) (out [size + 1]int) {
			for _, r := range rs {
				for i := r.off; i < r.end(); i++ {
					out[i]++
				}
			}
			return out
		}
		asked := cover(in)
		out := merge(append([]byteRange(nil), in...))
		got := cover(out)
		firsts := -1
		for i := range asked {
			if got[i] != min(asked[i], 1) {
				t.Fatalf("%v merged to %v: byte %d is there %d times", in, out, i, got[i])
			}
		}
		for i, a := range out {
			for _, b := range out[i+1:] {
				if a.end() == b.off || b.end() == a.off {
					t.Fatalf("%v merged to %v: %v and %v touch", in, out, a, b)
				}
			}
			first := 0
			for in[first].off < a.off || in[first].off >= a.end() {
				first++
			}
			if first <= firsts {
				t.Fatalf("%v merged to %v: not in the order asked for", in, out)
			}
			firsts = first
		}
	})
}
