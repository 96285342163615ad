package rest

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"time"
)

// onWire puts the engine's face on a socket, with the bound on headers that
// `cairn serve` has.
func onWire(t *testing.T, e *engine) (addr string) {
	t.Helper()
	srv := httptest.NewUnstartedServer(e.handler)
	srv.Config.MaxHeaderBytes = 32 << 10
	srv.Start()
	t.Cleanup(srv.Close)
	return srv.Listener.Addr().String()
}

// exchange sends bytes and returns the statuses of all answers. It ends its side
// behind the bytes when they are half a request, else behind the first answer: a
// client that has ended its side before that has left.
func exchange(t *testing.T, addr, text string, half bool) (statuses []int) {
	t.Helper()
	c, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatalf("the server takes no connection: %v", err)
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(20 * time.Second))
	sent := make(chan struct{})
	go func() {
		defer close(sent)
		if _, err := io.WriteString(c, text); err == nil && half {
			_ = c.(*net.TCPConn).CloseWrite()
		}
	}()
	method, _, _ := strings.Cut(text, " ")
	for r := bufio.NewReader(c); ; {
		resp, err := http.ReadResponse(r, &http.Request{Method: method})
		if ne, ok := err.(net.Error); ok && ne.Timeout() {
			t.Fatalf("%.80q: no answer, and the connection stays", text)
		}
		if err != nil {
			break
		}
		_, _ = io.Copy(io.Discard, resp.Body)
		resp.Body.Close()
		if statuses = append(statuses, resp.StatusCode); len(statuses) == 1 {
			_ = c.(*net.TCPConn).CloseWrite()
		}
	}
	c.Close()
	<-sent
	return statuses
}

// keysOf lists what is stored, with the sizes.
func keysOf(t *testing.T, e *engine) (out []string) {
	t.Helper()
	_, b := e.want(200, "GET", "/v1/buckets/main/objects", nil)
	var page struct {
		Objects []struct {
			Key  string
			Size int
		}
	}
	if err := json.Unmarshal(b, &page); err != nil {
		t.Fatal(err)
	}
	for _, o := range page.Objects {
		out = append(out, fmt.Sprintf("%s:%d", o.Key, o.Size))
	}
	return out
}

// TestOnTheWire sends what no client of ours would. Each has its answer, or a
// closed connection where want is 0; what is stored is named, and afterwards the
// server goes on.
func TestOnTheWire(t *testing.T) {
	const auth = "Host: localhost\r\nAuthorization: Bearer " + testToken + "\r\n"
	put := func(key, rest string) string { return "PUT " + objects + key + " HTTP/1.1\r\n" + auth + rest }
	three := "Content-Length: 3\r\n\r\nabc"
	long := strings.Repeat("k", 1024)
	for _, c := range []struct {
		name   string
		text   string
		want   []int  // any of these is the first answer; 0: none came
		stored string // key:size
	}{
		{"as it should be", put("k", three), []int{201}, "k:3"},
		// Bodies and their lengths.
		{"a body cut off", put("k", "Content-Length: 4\r\n\r\nabc"), []int{400}, ""},
		{"no body at all", put("k", "Content-Length: 4\r\n\r\n"), []int{400}, ""},
		{"a body too long is another request, and none", put("k", "Content-Length: 3\r\n\r\nabcdef"), []int{201}, "k:3"},
		{"chunks cut off", put("k", "Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n"), []int{400}, ""},
		{"a chunk longer than it says", put("k", "Transfer-Encoding: chunked\r\n\r\n2\r\nabc\r\n0\r\n\r\n"), []int{400}, ""},
		{"a chunk's length below nothing", put("k", "Transfer-Encoding: chunked\r\n\r\n-3\r\nabc\r\n0\r\n\r\n"), []int{400}, ""},
		{"a chunk's length beyond 64 bits", put("k", "Transfer-Encoding: chunked\r\n\r\nfffffffffffffffff\r\nabc\r\n0\r\n\r\n"), []int{400}, ""},
		{"a chunk of 2^63 bytes, cut off", put("k", "Transfer-Encoding: chunked\r\n\r\n8000000000000000\r\nabc\r\n0\r\n\r\n"), []int{400}, ""},
		{"a length of more than there can be", put("k", "Content-Length: 9223372036854775807\r\n\r\nabc"), []int{400, 413}, ""},
		{"a length beyond 63 bits", put("k", "Content-Length: 9223372036854775808\r\n\r\nabc"), []int{400}, ""},
		{"a length below nothing", put("k", "Content-Length: -1\r\n\r\nabc"), []int{400}, ""},
		{"a length with a plus", put("k", "Content-Length: +3\r\n\r\nabc"), []int{400}, ""},
		{"a length in hexadecimal", put("k", "Content-Length: 0x3\r\n\r\nabc"), []int{400}, ""},
		{"a list of lengths", put("k", "Content-Length: 3, 3\r\n\r\nabc"), []int{400}, ""},
		{"two lengths", put("k", "Content-Length: 3\r\nContent-Length: 4\r\n\r\nabcd"), []int{400}, ""},
		{"one length twice", put("k", "Content-Length: 3\r\n"+three), []int{201}, "k:3"},                                                     // RFC 9110, 8.6
		{"a length and chunks", put("k", "Content-Length: 8\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n"), []int{201}, "k:3"}, // chunks count: RFC 9112, 6.3
		{"chunks twice", put("k", "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n"), []int{400, 501}, ""},
		{"another coding", put("k", "Transfer-Encoding: gzip, chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n"), []int{400, 501}, ""},
		{"a coding misspelt", put("k", "Transfer-Encoding: \x0bchunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n"), []int{400, 501}, ""},
		{"JSON cut off", "PUT /v1/buckets/new HTTP/1.1\r\n" + auth + "Content-Length: 9\r\n\r\n{\"k\":", []int{400}, ""},
		{"an upload cut off", "POST /v1/uploads HTTP/1.1\r\n" + auth + tusVersion + "\r\n" + patchType + "\r\nUpload-Length: 3\r\n" + metadata("bucket", "main", "key", "k") + "\r\nContent-Length: 3\r\n\r\na", []int{400}, ""},
		// Lines and bytes.
		{"bare line feeds", strings.ReplaceAll(put("k", three), "\r\n", "\n"), []int{201}, "k:3"}, // RFC 9112, 2.2
		{"a bare line feed in chunks", put("k", "Transfer-Encoding: chunked\r\n\r\n3\nabc\r\n0\r\n\r\n"), []int{400}, ""},
		{"a bare carriage return", put("k", "X: a\rY: b\r\n"+three), []int{400}, ""},
		{"NUL in a header", put("k", "X: a\x00b\r\n"+three), []int{400}, ""},
		{"a control byte in a header", put("k", "Cairn-Meta-X: a\x01b\r\n"+three), []int{400}, ""},
		{"NUL in a header's name", put("k", "X\x00: a\r\n"+three), []int{400}, ""},
		{"a space before a colon", put("k", "X : a\r\n"+three), []int{400}, ""},
		{"no colon", put("k", "X\r\n"+three), []int{400}, ""},
		{"NUL in the path", put("k\x00", three), []int{400}, ""},
		{"a control byte in the path", put("k\x07", three), []int{400}, ""},
		{"DEL in the path", put("k\x7f", three), []int{400}, ""},
		{"a space in the path", put("k k", three), []int{400}, ""},
		{"HTTP/9", strings.Replace(put("k", three), "HTTP/1.1", "HTTP/9.0", 1), []int{505}, ""},
		{"no version", strings.Replace(put("k", three), " HTTP/1.1", "", 1), []int{400}, ""},
		{"nothing but bytes", "\x16\x03\x01\x02\x00\x01\x00\x01\xfc", []int{400, 0}, ""},
		{"a preface of HTTP/2", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", []int{400, 401, 405, 421, 505, 0}, ""},
		{"a megabyte of headers", put("k", "X: "+strings.Repeat("x", 1<<20)+"\r\n"+three), []int{431, 0}, ""},
		{"many headers", put("k", strings.Repeat("X: y\r\n", 1<<17)+three), []int{431, 0}, ""},
		{"a megabyte of URL", put(strings.Repeat("x", 1<<20), three), []int{431, 414, 0}, ""},
		{"20 KiB of URL", put(strings.Repeat("x", 20<<10), three), []int{414}, ""},
		// Names.
		{"two dots", put("../../../etc/passwd", three), []int{201}, "../../../etc/passwd:3"}, // a key like any other
		{"two dots, escaped", put("%2e%2e%2Fk", three), []int{201}, "../k:3"},
		{"dots before the bucket", "PUT /v1/buckets/../buckets/main/objects/k HTTP/1.1\r\n" + auth + three, []int{404}, ""},
		{"a bucket of dots", "PUT /v1/buckets/%2e%2e/objects/k HTTP/1.1\r\n" + auth + three, []int{400, 404}, ""},
		{"a bucket with a slash", "PUT /v1/buckets/main%2Fobjects/objects/k HTTP/1.1\r\n" + auth + three, []int{400, 404}, ""},
		{"an escaped slash", put("a%2Fb", three), []int{201}, "a/b:3"},
		{"an escaped percent", put("a%252Fb", three), []int{201}, "a%2Fb:3"},
		{"NUL, escaped", put("a%00b", three), []int{400}, ""},
		{"not UTF-8", put("a%ff%fe", three), []int{400}, ""},
		{"not UTF-8, as it is", put("a\xff\xfe", three), []int{400}, ""},
		{"UTF-8 in too many bytes", put("%c0%af", three), []int{400}, ""},
		{"half a surrogate", put("%ed%a0%80", three), []int{400}, ""},
		{"an escape cut off", put("a%2", three), []int{400}, ""},
		{"an escape that is none", put("a%zz", three), []int{400}, ""},
		{"no key", put("", three), []int{400}, ""},
		{"a key of 1,024 bytes", put(long, three), []int{201}, long + ":3"},
		{"a key of 1,025 bytes", put(long+"k", three), []int{400}, ""},
		{"a key of 1,024 bytes, all escaped", put(strings.Repeat("%6b", 1024), three), []int{201}, long + ":3"},
		{"a key of 1,026 bytes in 513 letters", put(strings.Repeat("%c3%bc", 513), three), []int{400}, ""},
		{"another server's whole URL", strings.Replace(put("k", three), objects, "http://evil.example"+objects, 1), []int{421}, ""},
		{"a CONNECT", "CONNECT evil.example:443 HTTP/1.1\r\n" + auth + "\r\n", []int{400, 401, 404, 405, 421}, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			e := newEngine(t)
			addr := onWire(t, e)
			half := strings.Contains(c.name, "cut off") || strings.Contains(c.name, "no body") || strings.Contains(c.name, "more than") || strings.Contains(c.name, "but bytes")
			got := exchange(t, addr, c.text, half)
			first := 0
			if len(got) > 0 {
				first = got[0]
			}
			if !slices.Contains(c.want, first) {
				t.Errorf("answers %v, want %v", got, c.want)
			}
			if len(got) > 1 && slices.ContainsFunc(got[1:], func(s int) bool { return s < 400 }) {
				t.Errorf("one request has the answers %v", got)
			}
			var want []string
			if c.stored != "" {
				want = []string{c.stored}
			}
			if keys := keysOf(t, e); !slices.Equal(keys, want) {
				t.Errorf("stored are %.80q, want %.80q", keys, want)
			}
			if status, _, _, err := e.do("GET", "/v1/buckets/new", nil); status != 404 || err != nil {
				t.Errorf("a bucket of half a request: %d, %v", status, err)
			}
			if got := exchange(t, addr, put("after", three), false); !slices.Equal(got, []int{201}) {
				t.Errorf("the server afterwards: %v", got)
			}
			if strings.Contains(e.log.String(), "ERROR") {
				t.Errorf("a client's fault is in the log as ours:\n%s", e.log)
			}
		})
	}
}

// TestAbsurdRanges: a part, the whole, or 416, and never other bytes.
func TestAbsurdRanges(t *testing.T) {
	e := newEngine(t)
	addr := onWire(t, e)
	b := noise(3, 5000)
	e.want(201, "PUT", objects+"k", bytes.NewReader(b))
	for spec, want := range map[string]int{
		"bytes=0-18446744073709551615": 206, "bytes=-18446744073709551616": 206, "bytes=18446744073709551615-": 416, "bytes=99999999999999999999999-": 416,
		"bytes=4999-": 206, "bytes=5000-": 416, "bytes=-0": 416, "bytes=9-1": 200, "bytes=--1": 200, "bytes=0x0-0x1": 200, "bytes=": 200, "bytes": 200, "=0-1": 200, "chars=0-1": 200,
		"bytes=0-0," + strings.Repeat("0-0,", 5000): 200, "bytes=0-1\xff": 200, "bytes= 0 - 1": 200, "bytes=\u0660-\u0661": 200, strings.Repeat("bytes=0-1,", 100): 200,
	} {
		got := exchange(t, addr, "GET "+objects+"k HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer "+testToken+"\r\nRange: "+spec+"\r\n\r\n", false)
		if !slices.Equal(got, []int{want}) {
			t.Errorf("Range: %.60q: %v, want %d", spec, got, want)
		}
	}
	e.want(200, "GET", objects+"k", nil)
}

// TestBodiesOfJSON: a body that comes too slowly or is cut off is the client's
// matter, and what the connection's error says stays here.
func TestBodiesOfJSON(t *testing.T) {
	for _, method := range []string{"PUT", "PATCH"} {
		r := newRig(t)
		req := httptest.NewRequest(method, "http://localhost/v1/buckets/main", slowBody{})
		req.Header.Set("Authorization", "Bearer "+testToken)
		w := httptest.NewRecorder()
		r.handler.ServeHTTP(w, req)
		r.doc.checkAnswer(t, method, "/v1/buckets/main", w.Code, w.Header(), w.Body.Bytes())
		if w.Code != http.StatusRequestTimeout || strings.Contains(w.Body.String(), "deadline") {
			t.Errorf("%s with a body too slow: %d %s", method, w.Code, w.Body)
		}
	}
}
