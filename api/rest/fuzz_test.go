package rest

import (
	"bufio"
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"unicode/utf8"

	"cairn/id"
	"cairn/record"
	"cairn/store"
)

var id0 id.Version

// FuzzParseRange: every part lies within the object, and what is written as a
// plain range is read as that.
func FuzzParseRange(f *testing.F) {
	for _, s := range []string{"bytes=0-", "bytes=-5", "bytes=1-2,3-4", "bytes=5-6,1-2,2-5", "bytes=9-1", "bytes=18446744073709551615-", "bytes=0-18446744073709551615", "x", ""} {
		f.Add(s, uint64(10), uint64(2), uint64(3))
	}
	f.Fuzz(func(t *testing.T, spec string, size, from, n uint64) {
		ranges, ok := parseRange(spec, size)
		for _, r := range ranges {
			if !ok || r.n == 0 || r.off >= size || r.n > size-r.off {
				t.Errorf("parseRange(%q, %d) = %v, %v: not within the object", spec, size, ranges, ok)
			}
		}
		if len(ranges) > maxRanges {
			t.Errorf("parseRange(%q, %d): %d ranges", spec, size, len(ranges))
		}
		if len(ranges) > 0 {
			total := uint64(0)
			for _, r := range merge(ranges) {
				if r.n == 0 || r.off >= size || r.n > size-r.off {
					t.Errorf("%q of %d bytes, merged: %v is not within the object", spec, size, r)
				}
				if total += r.n; total > size {
					t.Errorf("%q of %d bytes, merged: more than the whole", spec, size)
				}
			}
		}
		if n == 0 || from >= size || n > size-from {
			return
		}
		plain := fmt.Sprintf("bytes=%d-%d", from, from+n-1)
		if got, ok := parseRange(plain, size); !ok || len(got) != 1 || got[0] != (byteRange{from, n}) {
			t.Errorf("parseRange(%q, %d) = %v, %v, want %d bytes from %d", plain, size, got, ok, n, from)
		}
	})
}

// FuzzCursor: a cursor has one spelling, and every key has a cursor.
func FuzzCursor(f *testing.F) {
	f.Add(formatCursor("a/b", id.Version{Seq: 1, Pos: 2}), "key")
	f.Add("", "")
	f.Add("MDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwYQ==", "\u00e9")
	f.Fuzz(func(t *testing.T, s, key string) {
		if k, v, err := parseCursor(s); err == nil {
			if formatCursor(k, v) != s || !utf8.ValidString(k) || len(k) > 1024 {
				t.Errorf("parseCursor(%q) = %q, %v, which is the cursor %q", s, k, v, formatCursor(k, v))
			}
		}
		if len(key) > 1024 || !utf8.ValidString(key) {
			return
		}
		v := id.Version{Seq: uint64(len(s)), Pos: uint32(len(key))}
		if k, w, err := parseCursor(formatCursor(key, v)); err != nil || k != key || w != v {
			t.Errorf("the cursor of %q, %v reads as %q, %v, %v", key, v, k, w, err)
		}
	})
}

// FuzzETags: what is read, written down again, reads the same.
func FuzzETags(f *testing.F) {
	for _, s := range []string{`"a"`, `W/"a", "b"`, "*", `"a,b" , W/"c"`, `"a"b`, `,,"x"`, `W/`, `"`} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		tags, err := etags([]string{s})
		if err != nil {
			return
		}
		var out []string
		for _, e := range tags {
			switch {
			case e.tag == "*" && !e.weak && strings.Trim(s, " \t") == "*":
				out = append(out, "*")
			case e.weak:
				out = append(out, `W/"`+e.tag+`"`)
			default:
				out = append(out, `"`+e.tag+`"`)
			}
		}
		again, err := etags([]string{strings.Join(out, ", ")})
		if err != nil || fmt.Sprint(again) != fmt.Sprint(tags) || len(tags) == 0 {
			t.Errorf("etags(%q) = %v, written down %q, which reads %v, %v", s, tags, out, again, err)
		}
	})
}

// FuzzObjectKey sends keys through the whole of net/http's parser, the guard and
// the router: what arrives is what the path decodes to once, or nothing does.
func FuzzObjectKey(f *testing.F) {
	for _, c := range pathTable {
		f.Add(c.wire)
	}
	f.Fuzz(func(t *testing.T, wire string) {
		// Names that mean something.
		if utf8.ValidString(wire) && wire != "" && len(wire) <= 1024 && strings.IndexByte(wire, 0) < 0 {
			r := newRig(t)
			r.raw("PUT " + objects + url.PathEscape(wire) + " HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer " + testToken + "\r\nContent-Length: 0\r\n\r\n")
			if b := r.store.buckets["main"]; b.objects[wire] == nil || len(b.objects) != 1 {
				t.Errorf("the key %q, escaped, did not arrive: %q", wire, r.store.called)
			}
		}
		// Any bytes on the wire.
		text := "PUT " + objects + wire + " HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer " + testToken + "\r\nContent-Length: 0\r\n\r\n"
		req, err := http.ReadRequest(bufio.NewReader(strings.NewReader(text)))
		if err != nil || req.Method != http.MethodPut || !strings.HasPrefix(req.RequestURI, objects) {
			return
		}
		r := newRig(t)
		if _, ok := r.raw(text); !ok {
			return
		}
		path, _, _ := strings.Cut(req.RequestURI, "?")
		want, err := url.PathUnescape(strings.TrimPrefix(path, objects))
		for key := range r.store.buckets["main"].objects {
			if err != nil || key != want {
				t.Errorf("%q was stored as %q, want %q", wire, key, want)
			}
		}
	})
}

// FuzzConditions: no header makes a condition that is weaker than what it says.
func FuzzConditions(f *testing.F) {
	f.Add(`"a"`, `"b"`)
	f.Add("*", `W/"b"`)
	f.Fuzz(func(t *testing.T, match, none string) {
		r := &http.Request{Method: http.MethodPut, Header: http.Header{"If-Match": {match}, "If-None-Match": {none}}}
		c, err := conditions(r)
		if err == nil && (len(c.IfMatch) == 0 || len(c.IfNoneMatch) == 0) {
			t.Errorf("If-Match: %q and If-None-Match: %q ask for nothing: %+v", match, none, c)
		}
		var _ store.Conditions = c
	})
}

// FuzzUploadMetadata: what is taken of Upload-Metadata can be kept as an object's
// attributes and sent as headers.
func FuzzUploadMetadata(f *testing.F) {
	f.Add("bucket bWFpbg==,key aw==")
	f.Add("bucket bWFpbg==,key aw==,filetype dGV4dC9wbGFpbg==,meta-a Yg==,x")
	f.Add("key \x00,,bucket")
	f.Fuzz(func(t *testing.T, text string) {
		m, err := parseMetadata(text)
		if err != nil {
			return
		}
		bucket, key, a, err := uploadTarget(m)
		if err != nil {
			return
		}
		head := record.UploadHead{Bucket: 1, Name: bucket, Key: []byte(key), Attrs: a, Size: 1}
		if len(key) <= record.MaxKey && len(text) < record.MaxAttrs {
			if _, err := head.Append(nil); err != nil {
				t.Errorf("%q cannot be kept: %v", text, err)
			}
		}
		h := http.Header{}
		describe(h, store.Object{Attrs: a})
		for name, values := range h {
			for _, v := range values {
				if strings.ContainsAny(name+v, "\r\n\x00") {
					t.Errorf("%q makes the header %q: %q", text, name, v)
				}
			}
		}
	})
}

// FuzzSourceName: what is read is not empty and has one spelling.
func FuzzSourceName(f *testing.F) {
	for _, s := range []string{"main/k", "main//", "main/", "/k", "main", "a/b\x00", ""} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		n, err := sourceName(s)
		if err == nil && (n.Bucket == "" || n.Key == "" || n.Bucket+"/"+n.Key != s || strings.ContainsAny(n.Bucket, "/\x00") || strings.Contains(n.Key, "\x00")) {
			t.Errorf("sourceName(%q) = %+v", s, n)
		}
	})
}
