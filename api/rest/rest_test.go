package rest

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"cairn/record"
	"cairn/store"
)

const testToken = "0123456789abcdef0123456789abcdef"

// rig is a face over a store in memory.
type rig struct {
	t        testing.TB
	store    *fakeStore
	handler  http.Handler
	doc      *document
	log      *lockedBuffer
	replaced []string
	added    []NewNode
}

func newRig(t testing.TB) *rig {
	t.Helper()
	r := &rig{t: t, store: newFake("main"), doc: readDocument(t), log: &lockedBuffer{}}
	h, err := New(Config{Store: r.store, Token: testToken, Hosts: []string{"Store.Example"}, First: true, Version: "test",
		Log: slog.New(slog.NewTextHandler(r.log, &slog.HandlerOptions{Level: slog.LevelDebug})),
		Replace: func(_ context.Context, name string) (Replaced, error) {
			r.replaced = append(r.replaced, name)
			if name == "n01" {
				return Replaced{}, fmt.Errorf("%w: node n01 is not lost", store.ErrPrecondition)
			}
			return Replaced{Node: name, ID: "00", Kept: "/data/replaced-" + name}, nil
		},
		Add: func(_ context.Context, n NewNode) (Added, error) {
			r.added = append(r.added, n)
			if n.Name == "n01" {
				return Added{}, fmt.Errorf("%w: there is a node n01 already", store.ErrPrecondition)
			}
			return Added{Node: n.Name, ID: "00"}, nil
		},
		Remove: func(_ context.Context, name string) (Removed, error) {
			if name != "n02" {
				return Removed{}, fmt.Errorf("%w: node %s is in use", store.ErrPrecondition, name)
			}
			return Removed{Node: name, Kept: "/data/removed-" + name}, nil
		}})
	if err != nil {
		t.Fatal(err)
	}
	r.handler = h
	return r
}

type answer struct {
	status int
	header http.Header
	body   string
}

func (a answer) problem(t testing.TB) Problem {
	t.Helper()
	var p Problem
	if err := json.Unmarshal([]byte(a.body), &p); err != nil {
		t.Fatalf("%d %q is no problem: %v", a.status, a.body, err)
	}
	return p
}

// raw sends the bytes of a request through net/http's own parser, so that paths
// arrive as they would from a socket. What the parser refuses never reaches the
// handler: ok is false. Every answer is held against openapi.json.
func (r *rig) raw(text string) (a answer, ok bool) {
	r.t.Helper()
	req, err := http.ReadRequest(bufio.NewReader(strings.NewReader(text)))
	if err != nil {
		return a, false
	}
	method, escaped := req.Method, req.URL.EscapedPath()
	w := httptest.NewRecorder()
	r.handler.ServeHTTP(w, req)
	a = answer{w.Code, w.Header(), w.Body.String()}
	r.doc.checkAnswer(r.t, method, escaped, a.status, a.header, w.Body.Bytes())
	if a.header.Get("X-Content-Type-Options") != "nosniff" || a.header.Get("Content-Security-Policy") == "" {
		r.t.Errorf("%s %s: %d lacks nosniff or a policy", method, escaped, a.status)
	}
	if a.status >= 400 && method != http.MethodHead {
		if p := a.problem(r.t); p.Status != a.status || !strings.HasPrefix(p.Type, typePrefix) || p.Title == "" {
			r.t.Errorf("%s %s: %d with the problem %+v", method, escaped, a.status, p)
		}
	}
	return a, true
}

// do sends a request with the token; headers are "Name: value", and override.
func (r *rig) do(method, path, body string, headers ...string) answer {
	r.t.Helper()
	lines := []string{"Host: localhost:5000", "Authorization: Bearer " + testToken}
	for _, h := range headers {
		name, _, _ := strings.Cut(h, ":")
		lines = slices.DeleteFunc(lines, func(l string) bool { return strings.HasPrefix(l, name+":") })
	}
	if body != "" || method == http.MethodPut {
		lines = append(lines, fmt.Sprintf("Content-Length: %d", len(body)))
	}
	a, ok := r.raw(method + " " + path + " HTTP/1.1\r\n" + strings.Join(append(lines, headers...), "\r\n") + "\r\n\r\n" + body)
	if !ok {
		r.t.Fatalf("%s %s: not a request", method, path)
	}
	return a
}

// want sends a request and compares the status and, when it is an error, the
// last word of its type.
func (r *rig) want(status int, kind, method, path, body string, headers ...string) answer {
	r.t.Helper()
	a := r.do(method, path, body, headers...)
	got := ""
	if status >= 400 && method != http.MethodHead {
		got = strings.TrimPrefix(a.problem(r.t).Type, typePrefix)
	}
	if a.status != status || got != kind {
		r.t.Errorf("%s %s %q: %d %s, want %d %s\n%s", method, path, headers, a.status, got, status, kind, a.body)
	}
	return a
}

const objects = "/v1/buckets/main/objects/"

func (r *rig) put(key, body string, headers ...string) (version string) {
	r.t.Helper()
	a := r.do("PUT", objects+key, body, headers...)
	if a.status != 201 && a.status != 200 {
		r.t.Errorf("PUT %s: %d %s", key, a.status, a.body)
	}
	return a.header.Get("Cairn-Version")
}

func TestEveryRoute(t *testing.T) {
	r := newRig(t)
	r.want(200, "", "GET", "/healthz", "", "Authorization: none")
	r.want(200, "", "GET", "/readyz", "", "Authorization: none")
	if a := r.want(200, "", "GET", "/openapi.json", ""); a.body != string(openAPI) {
		t.Error("openapi.json is not served as it is")
	}
	// Buckets.
	r.want(201, "", "PUT", "/v1/buckets/photos", `{"k":3,"versioning":true}`)
	r.want(201, "", "PUT", "/v1/buckets/plain", "")
	r.want(409, "bucket-exists", "PUT", "/v1/buckets/photos", "")
	r.want(400, "invalid-body", "PUT", "/v1/buckets/other", `{"kk":3}`)
	r.want(400, "invalid-body", "PUT", "/v1/buckets/other", `{"k":3}{`)
	r.want(400, "invalid-body", "PUT", "/v1/buckets/other", `{"k":"3"}`)
	r.want(413, "too-large", "PUT", "/v1/buckets/other", `{"compression":"`+strings.Repeat("x", maxJSON)+`"}`)
	r.want(400, "invalid-request", "PUT", "/v1/buckets/x", "")
	if a := r.want(200, "", "PATCH", "/v1/buckets/photos", `{"compression":"off"}`); !strings.Contains(a.body, `"k":3,"compression":"off","profile":"","versioning":true`) {
		t.Errorf("a patch changes what it does not name: %s", a.body)
	}
	if got, want := r.store.buckets["photos"].bucket.Settings, (record.Settings{K: 3, Compression: "off", Versioning: true}); got != want {
		t.Errorf("settings stored %+v, want %+v", got, want)
	}
	if a := r.want(200, "", "PATCH", "/v1/buckets/photos", `{"quota_bytes":5000000000000,"quota_objects":9}`); !strings.Contains(a.body, `"versioning":true,"quota_bytes":5000000000000,"quota_objects":9,"object_lock":false`) {
		t.Errorf("a bucket with quotas is shown as %s", a.body)
	}
	if got, want := r.store.buckets["photos"].bucket.Settings, (record.Settings{K: 3, Compression: "off", Versioning: true, QuotaBytes: 5e12, QuotaObjects: 9}); got != want {
		t.Errorf("settings stored %+v, want %+v", got, want)
	}
	r.want(400, "invalid-body", "PATCH", "/v1/buckets/photos", `{"quota_bytes":-1}`)
	r.store.fail = &store.QuotaError{Bucket: "photos", Bytes: 12, Quota: 10}
	if a := r.want(507, "quota-exceeded", "PUT", "/v1/buckets/photos/objects/k", "x"); !strings.Contains(a.body, "would hold 12 bytes in all versions, its quota is 10") {
		t.Errorf("a put beyond the quota is told of as %s", a.body)
	}
	r.store.fail = nil
	r.want(404, "no-such-bucket", "PATCH", "/v1/buckets/nothing", `{}`)
	r.want(200, "", "GET", "/v1/buckets/photos", "")
	r.want(404, "no-such-bucket", "GET", "/v1/buckets/nothing", "")
	if a := r.want(200, "", "GET", "/v1/buckets", ""); strings.Count(a.body, `"name"`) != 3 {
		t.Errorf("three buckets list as %s", a.body)
	}
	// Objects.
	v1 := r.put("a/b.txt", "first", "Content-Type: text/plain", "Cairn-Meta-Colour: blue", "Content-Language: en")
	v2 := r.put("a/b.txt", "second", "Content-Type: text/plain")
	a := r.want(200, "", "GET", objects+"a/b.txt", "")
	if a.body != "second" || a.header.Get("Cairn-Version") != v2 || a.header.Get("Content-Length") != "6" || a.header.Get("Content-Type") != "text/plain" ||
		a.header.Get("Accept-Ranges") != "bytes" || a.header.Get("Content-Disposition") != "" || len(a.header.Get("Etag")) < 3 || a.header.Get("Last-Modified") == "" {
		t.Errorf("get: %q %v", a.body, a.header)
	}
	a = r.want(200, "", "GET", objects+"a/b.txt?version="+v1, "")
	if a.body != "first" || a.header.Get("Cairn-Meta-Colour") != "blue" || a.header.Get("Content-Language") != "en" {
		t.Errorf("get of a version: %q %v", a.body, a.header)
	}
	if a := r.want(200, "", "HEAD", objects+"a/b.txt", ""); a.body != "" || a.header.Get("Content-Length") != "6" || a.header.Get("Cairn-Version") != v2 {
		t.Errorf("head: %q %v", a.body, a.header)
	}
	if a := r.want(404, "", "HEAD", objects+"nothing", ""); a.body != "" {
		t.Errorf("head of nothing has a body: %q", a.body)
	}
	r.want(404, "no-such-object", "GET", objects+"nothing", "")
	r.want(404, "no-such-bucket", "GET", "/v1/buckets/nothing/objects/x", "")
	r.want(404, "no-such-version", "GET", objects+"a/b.txt?version="+strings.Repeat("f", 24), "")
	r.want(400, "invalid-version", "GET", objects+"a/b.txt?version=1", "")
	r.want(400, "invalid-version", "DELETE", objects+"a/b.txt?version=", "")
	r.want(400, "invalid-request", "GET", objects, "")
	r.want(400, "invalid-header", "PUT", objects+"x", "abc", "Content-Range: bytes 0-2/9")
	r.want(204, "", "DELETE", objects+"a/b.txt", "")
	r.want(404, "no-such-object", "GET", objects+"a/b.txt", "")
	r.want(404, "no-such-object", "DELETE", objects+"a/b.txt", "")
	r.want(400, "invalid-action", "POST", objects+"a/b.txt", "")
	r.want(400, "invalid-action", "POST", objects+"a/b.txt?undelete=no", "")
	if a := r.want(200, "", "POST", objects+"a/b.txt?undelete", ""); !strings.Contains(a.body, v2) {
		t.Errorf("undelete brings back %s, want version %s", a.body, v2)
	}
	r.want(412, "precondition-failed", "POST", objects+"a/b.txt?undelete", "")
	r.want(204, "", "DELETE", objects+"a/b.txt?version="+v1, "")
	r.want(404, "no-such-version", "DELETE", objects+"a/b.txt?version="+v1, "")
	r.want(400, "invalid-header", "DELETE", objects+"a/b.txt?version="+v2, "", `If-Match: "x"`)
	r.want(409, "bucket-not-empty", "DELETE", "/v1/buckets/main", "")
	r.want(204, "", "DELETE", "/v1/buckets/plain", "")
	// The store.
	if a := r.want(200, "", "GET", "/v1/usage", ""); !strings.HasPrefix(a.body, `{"logical_bytes":1,"upload_bytes":0,"unique_bytes":2,"compressed_bytes":3,"physical_bytes":10,`+
		`"live_bytes":4,"dead_bytes":5,"parity_bytes":7,"padding_bytes":8,"missing_bytes":15,"stray_bytes":16,"pending_bytes":6,"free_in_segments_bytes":9,`+
		`"layout_bytes":17,"index_bytes":18,"other_bytes":19,"unaccounted_bytes":-20,"unreferenced_bytes":21,"journal_bytes":22,"snapshot_bytes":23,"due_bytes":24,`+
		`"pending_until":"2`) || !strings.Contains(a.body, `"waiting":{"chunks":25,"bytes":26,"until":"2`) || !strings.Contains(a.body, `"transfers":27,"oldest_transfer_seconds":28},"objects":11`) {
		t.Errorf("usage: %s", a.body)
	}
	r.want(200, "", "GET", "/v1/status", "")
	r.want(200, "", "GET", "/v1/nodes", "")
	if a := r.want(200, "", "POST", "/v1/nodes/n02/replace", ""); !strings.Contains(a.body, `"kept":"/data/replaced-n02"`) {
		t.Errorf("replaced: %s", a.body)
	}
	r.want(412, "precondition-failed", "POST", "/v1/nodes/n01/replace", "")
	if a := r.want(201, "", "POST", "/v1/nodes", `{"name":"n07","path":"/disk/n07","weight":5,"labels":["zone=a"]}`); a.body != `{"node":"n07","id":"00"}`+"\n" || len(r.added) != 1 || fmt.Sprint(r.added[0]) != "{n07 /disk/n07 5 [zone=a]}" {
		t.Errorf("added: %s, asked for %v", a.body, r.added)
	}
	r.want(412, "precondition-failed", "POST", "/v1/nodes", `{"name":"n01"}`)
	r.want(400, "invalid-body", "POST", "/v1/nodes", `{"name":"n07","weight":-1}`)
	if a := r.want(202, "", "POST", "/v1/nodes/n02/drain", `{"rate":1000}`); !strings.HasPrefix(a.header.Get("Location"), jobsPath+"/") || !strings.Contains(a.body, `"kind":"drain"`) || !strings.Contains(a.body, `"rate":1000`) {
		t.Errorf("drained: %s at %s", a.body, a.header.Get("Location"))
	}
	r.want(202, "", "POST", "/v1/nodes/n03/drain", "") // the job that runs takes it in
	r.want(412, "precondition-failed", "POST", "/v1/nodes/n01/drain", "")
	r.want(400, "invalid-request", "POST", "/v1/nodes/nn/drain", "")
	r.want(204, "", "DELETE", "/v1/nodes/n02/drain", "")
	if a := r.want(202, "", "PUT", "/v1/losses", `{"losses":3,"rate":1000}`); !strings.HasPrefix(a.header.Get("Location"), jobsPath+"/") || !strings.Contains(a.body, `"kind":"raise"`) || !strings.Contains(a.body, `"rate":1000`) {
		t.Errorf("raised: %s at %s", a.body, a.header.Get("Location"))
	}
	if a := r.want(200, "", "GET", "/v1/status", ""); !strings.Contains(a.body, `"raising_to":3,"packs_to_raise":15`) {
		t.Errorf("status while m is raised: %s", a.body)
	}
	r.want(412, "precondition-failed", "PUT", "/v1/losses", `{"losses":4}`)
	r.want(400, "invalid-request", "PUT", "/v1/losses", `{"losses":9}`)
	r.want(400, "invalid-request", "PUT", "/v1/losses", "")
	if a := r.want(200, "", "PUT", "/v1/losses", `{"losses":2}`); a.body != `{"losses":2}`+"\n" {
		t.Errorf("called off: %s", a.body)
	}
	if a := r.want(200, "", "DELETE", "/v1/nodes/n02", ""); !strings.Contains(a.body, `"kept":"/data/removed-n02"`) {
		t.Errorf("removed: %s", a.body)
	}
	r.want(412, "precondition-failed", "DELETE", "/v1/nodes/n03", "")
	if want := []string{"n02", "n01"}; !slices.Equal(r.replaced, want) {
		t.Errorf("replaced %q, want %q", r.replaced, want)
	}
	// What is no route.
	r.want(404, "no-such-route", "GET", "/v1/nothing", "")
	r.want(404, "no-such-route", "GET", "/v1/%62uckets", "")
	r.want(404, "no-such-route", "GET", "//v1/buckets", "")
	if a := r.want(405, "method-not-allowed", "POST", "/v1/buckets/main", ""); !strings.Contains(a.header.Get("Allow"), "PATCH") {
		t.Errorf("405 allows %q", a.header.Get("Allow"))
	}
	if r.log.String() != "" {
		t.Errorf("nothing of this is for the log: %s", r.log)
	}
}

func TestPlacementPages(t *testing.T) {
	r := newRig(t)
	r.put("dir/a", "0123456789")
	const path = "/v1/buckets/main/placement/dir/a"
	a := r.want(200, "", "GET", path+"?limit=4", "")
	var p placementJSON
	if err := json.Unmarshal([]byte(a.body), &p); err != nil || len(p.Chunks) != 4 || !p.More || p.Next != 4 || p.Object.Key != "dir/a" {
		t.Errorf("the first page: %+v, %v", p, err)
	}
	if k := p.Packs[0]; k.Code != "1+2" || k.Kind != "log" || k.Shards[0] != (shardJSON{0, "data", "n01", "up"}) || k.Shards[2] != (shardJSON{2, "parity", "ab", "gone"}) {
		t.Errorf("a pack is told as %+v", k)
	}
	p = placementJSON{}
	a = r.want(200, "", "GET", path+"?from=4&limit=1000", "")
	if err := json.Unmarshal([]byte(a.body), &p); err != nil || len(p.Chunks) != 6 || p.More || p.Chunks[0].Offset != 4 {
		t.Errorf("the second page: %+v, %v", p, err)
	}
	r.want(416, "range-not-satisfiable", "GET", path+"?from=11", "")
	r.want(404, "no-such-object", "GET", "/v1/buckets/main/placement/dir", "")
	r.want(404, "no-such-bucket", "GET", "/v1/buckets/nowhere/placement/a", "")
	r.want(400, "invalid-request", "GET", "/v1/buckets/main/placement/", "")
	for _, q := range []string{"from=", "from=-1", "from=x", "limit=0", "limit=1001", "version=1", "cursor=a"} {
		if a := r.do("GET", path+"?"+q, ""); a.status != 400 {
			t.Errorf("?%s: %d, want 400", q, a.status)
		}
	}
}

func TestCopyAndRename(t *testing.T) {
	r := newRig(t)
	r.want(201, "", "PUT", "/v1/buckets/other", "")
	v1 := r.put("a", "first", "Content-Type: text/plain", "Cairn-Meta-Colour: blue")
	r.put("a", "second", "Content-Type: text/plain", "Cairn-Meta-Colour: red")
	tag := r.do("HEAD", objects+"a", "").header.Get("Etag")
	is := func(key, body, colour string) {
		t.Helper()
		if a := r.want(200, "", "GET", key, ""); a.body != body || a.header.Get("Cairn-Meta-Colour") != colour {
			t.Errorf("%s is %q, %q; want %q, %q", key, a.body, a.header.Get("Cairn-Meta-Colour"), body, colour)
		}
	}
	a := r.want(201, "", "POST", objects+"b?copy_from=main/a", "")
	if a.header.Get("Etag") != tag || a.header.Get("Cairn-Version") == "" || !strings.Contains(a.body, `"key":"b"`) {
		t.Errorf("a copy answers %v %s", a.header, a.body)
	}
	is(objects+"b", "second", "red")
	r.want(200, "", "POST", objects+"b?copy_from=main/a&version="+v1+"&attributes=keep", "")
	is(objects+"b", "first", "blue")
	r.want(200, "", "POST", objects+"b?copy_from=main%2Fb&attributes=replace", "", "Cairn-Meta-Colour: green")
	is(objects+"b", "first", "green")
	r.want(201, "", "POST", "/v1/buckets/other/objects/x%2By?rename_from=main/b", "")
	is("/v1/buckets/other/objects/x%2By", "first", "green")
	r.want(404, "no-such-object", "GET", objects+"b", "")
	r.want(201, "", "POST", objects+"deep/c?rename_from=other/x%2By", "")
	r.want(200, "", "POST", objects+"b?undelete", "") // what is under the old name's marker
	// Conditions of the place, and of the source.
	for _, c := range []struct {
		status  int
		headers []string
	}{
		{412, []string{"If-None-Match: *"}}, {412, []string{`If-Match: "x"`}}, {400, []string{"If-Match: x"}}, {400, []string{"Cairn-Source-If-Match: x"}},
		{412, []string{`Cairn-Source-If-Match: "x"`}}, {412, []string{"Cairn-Source-If-None-Match: " + tag}}, {412, []string{"Cairn-Source-If-Unmodified-Since: " + epoch.Format(http.TimeFormat)}},
		{412, []string{"Cairn-Source-If-Modified-Since: " + epoch.Add(time.Hour).Format(http.TimeFormat)}}, {200, []string{"If-Modified-Since: " + epoch.Add(time.Hour).Format(http.TimeFormat)}},
		{200, []string{"If-Match: *", "Cairn-Source-If-Match: " + tag}},
	} {
		if a := r.do("POST", objects+"b?copy_from=main/a", "", c.headers...); a.status != c.status {
			t.Errorf("copy with %q: %d %s, want %d", c.headers, a.status, a.body, c.status)
		}
	}
	r.want(412, "precondition-failed", "POST", objects+"b?rename_from=main/a", "", "If-None-Match: *")
	r.want(404, "no-such-object", "POST", objects+"b?copy_from=main/nothing", "")
	r.want(404, "no-such-bucket", "POST", objects+"b?rename_from=nowhere/a", "")
	r.want(404, "no-such-version", "POST", objects+"b?copy_from=main/a&version="+strings.Repeat("f", 24), "")
	r.want(400, "invalid-request", "POST", objects+"a?rename_from=main/a", "")
	r.want(400, "invalid-body", "POST", objects+"b?copy_from=main/a", "body")
	r.want(400, "invalid-body", "POST", objects+"b?copy_from=main/a", "", "Transfer-Encoding: chunked")
	for _, q := range []string{"copy_from=", "copy_from=main", "copy_from=/a", "copy_from=main/", "copy_from=main/a%00", "copy_from=%FF/a", "copy_from=main/a&attributes=some", "copy_from=main/a&version=1", "copy_from=main/a&copy_from=main/a"} {
		had := len(r.store.copies)
		if a := r.do("POST", objects+"b?"+q, ""); a.status != 400 || len(r.store.copies) != had {
			t.Errorf("POST ?%s: %d, want 400", q, a.status)
		}
	}
	for _, q := range []string{"copy_from=main/a&undelete", "copy_from=main/a&rename_from=main/a", "version=" + v1, "undelete&version=" + v1, "attributes=keep"} {
		r.want(400, "invalid-action", "POST", objects+"b?"+q, "")
	}
}

func TestReplacingIsOffered(t *testing.T) {
	h, err := New(Config{Store: newFake(), Token: testToken})
	if err != nil {
		t.Fatal(err)
	}
	r := &rig{t: t, handler: h, doc: readDocument(t)}
	r.want(501, "not-offered", "POST", "/v1/nodes/n01/replace", "")
	r.want(501, "not-offered", "POST", "/v1/nodes", `{"name":"n07"}`)
	r.want(501, "not-offered", "DELETE", "/v1/nodes/n01", "")
	r.want(404, "no-such-route", "GET", "/descargar/x", "") // and so are the first routes
}

func TestNewRefuses(t *testing.T) {
	if _, err := New(Config{Token: testToken}); err == nil {
		t.Error("a face without a store")
	}
	if _, err := New(Config{Store: newFake(), Token: "short"}); err == nil {
		t.Error("a face with a token that can be guessed")
	}
}

// everyRoute lists one request for each route, and the call of the store that it
// leads to.
func everyRoute(t *testing.T) (out [][2]string) {
	t.Helper()
	f, _, err := build(Config{Store: newFake(), Token: testToken, First: true})
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range f.routes() {
		path := r.path
		for _, p := range [][2]string{{":bucket", "main"}, {":node", "n02"}, {":name", "f"}, {"*", "k"}} {
			path = strings.ReplaceAll(path, p[0], p[1])
		}
		out = append(out, [2]string{r.method, path})
	}
	return out
}

func TestTokenIsAskedForEverywhere(t *testing.T) {
	r := newRig(t)
	free := []string{"GET /healthz", "GET /readyz", "POST /cargar", "GET /descargar/f", "DELETE /eliminar/f"}
	for _, route := range append(everyRoute(t), [2]string{"GET", "/v1"}, [2]string{"GET", "/v1/nothing"}, [2]string{"GET", "/nothing"}, [2]string{"POST", "/v1/buckets"}, [2]string{"OPTIONS", "/v1/buckets"}) {
		for _, auth := range []string{"X: y", "Authorization: Bearer " + testToken + "x", "Authorization: Bearer", "Authorization: Basic Og==", "Authorization: " + testToken, "Authorization: Digest " + testToken} {
			a := r.do(route[0], route[1], "", "Authorization: none", auth)
			if isFree := slices.Contains(free, route[0]+" "+route[1]); isFree == (a.status == 401) {
				t.Errorf("%s %s with %q: %d; free: %v", route[0], route[1], auth, a.status, isFree)
			} else if a.status == 401 && a.header.Get("Www-Authenticate") == "" {
				t.Errorf("%s %s: 401 says not how", route[0], route[1])
			}
		}
	}
	for _, c := range r.store.called {
		if !strings.HasPrefix(c, "status") && !strings.Contains(c, `"archivo"`) {
			t.Errorf("without a token the store was called: %s", c)
		}
	}
	for _, auth := range []string{"Bearer " + testToken, "bearer " + testToken, "Basic " + "eDowMTIzNDU2Nzg5YWJjZGVmMDEyMzQ1Njc4OWFiY2RlZg=="} {
		r.want(200, "", "GET", "/v1/buckets", "", "Authorization: "+auth)
	}
}

func TestHostMustBeOurs(t *testing.T) {
	r := newRig(t)
	for host, ok := range map[string]bool{
		"localhost": true, "localhost:5000": true, "LOCALHOST:1": true, "localhost.": true, "127.0.0.1:5000": true, "127.9.9.9": true, "[::1]:5000": true, "[::1]": true,
		"store.example": true, "STORE.example:80": true,
		"": false, "evil.example": false, "evil.example:5000": false, "localhost.evil.example": false, "192.168.1.9:5000": false, "127.0.0.1.evil.example": false,
		"[::2]:5000": false, "0.0.0.0:5000": false, "2130706433": false, "localhost:5000:5000": false, "[store.example": false,
	} {
		for _, route := range everyRoute(t) {
			called := len(r.store.called)
			a, parsed := r.raw(fmt.Sprintf("%s %s HTTP/1.1\r\nHost: %s\r\nAuthorization: Bearer %s\r\n\r\n", route[0], route[1], host, testToken))
			if !parsed {
				continue
			}
			if (a.status != http.StatusMisdirectedRequest) != ok {
				t.Errorf("%s %s with Host %q: %d, ours: %v", route[0], route[1], host, a.status, ok)
			}
			if !ok && len(r.store.called) > called {
				t.Errorf("%s %s with Host %q reached the store", route[0], route[1], host)
			}
		}
	}
	// The name in an absolute request line counts, not the header.
	if a, _ := r.raw("GET http://evil.example/v1/buckets HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer " + testToken + "\r\n\r\n"); a.status != 421 {
		t.Errorf("a request for http://evil.example/: %d, want 421", a.status)
	}
}

func TestPagesOfOtherOriginsAreRefused(t *testing.T) {
	r := newRig(t)
	for _, route := range everyRoute(t) {
		write := !slices.Contains([]string{"GET", "HEAD", "OPTIONS"}, route[0])
		for _, c := range []struct {
			headers []string
			refused bool
		}{
			{[]string{"Origin: http://evil.example"}, write},
			{[]string{"Origin: null"}, write},
			{[]string{"Origin: http://localhost:5001"}, write},
			{[]string{"Sec-Fetch-Site: cross-site", "Sec-Fetch-Mode: no-cors", "Sec-Fetch-Dest: image"}, true},
			{[]string{"Sec-Fetch-Site: same-site", "Sec-Fetch-Mode: cors"}, true},
			{[]string{"Sec-Fetch-Site: cross-site", "Sec-Fetch-Mode: navigate", "Sec-Fetch-Dest: iframe"}, true},
			{[]string{"Sec-Fetch-Site: cross-site", "Sec-Fetch-Mode: navigate", "Sec-Fetch-Dest: document"}, write},
			{[]string{"Sec-Fetch-Site: same-origin", "Origin: http://localhost:5000"}, false},
			{[]string{"Sec-Fetch-Site: none"}, false},
			{[]string{"Origin: http://localhost:5000"}, false},
		} {
			called := len(r.store.called)
			a := r.do(route[0], route[1], "", c.headers...)
			if (a.status == http.StatusForbidden) != c.refused {
				t.Errorf("%s %s %q: %d, to be refused: %v", route[0], route[1], c.headers, a.status, c.refused)
			}
			if c.refused && len(r.store.called) > called {
				t.Errorf("%s %s %q reached the store", route[0], route[1], c.headers)
			}
			if a.header.Get("Access-Control-Allow-Origin") != "" {
				t.Errorf("%s %s lets other origins read", route[0], route[1])
			}
		}
	}
}

// pathTable holds spellings of keys as they come over the wire, and what they
// mean; refused ones have no meaning.
var pathTable = []struct {
	wire, key string
	refused   bool
}{
	{wire: "a", key: "a"}, {wire: "a/b/c", key: "a/b/c"}, {wire: "a%2Fb", key: "a/b"}, {wire: "a%2fb", key: "a/b"}, {wire: "%2F", key: "/"}, {wire: "/", key: "/"},
	{wire: "//", key: "//"}, {wire: "a//b", key: "a//b"}, {wire: "a/", key: "a/"}, {wire: "/a", key: "/a"}, {wire: ".", key: "."}, {wire: "..", key: ".."},
	{wire: "../x", key: "../x"}, {wire: "../../../etc/passwd", key: "../../../etc/passwd"}, {wire: "a/../b", key: "a/../b"}, {wire: "a/./b", key: "a/./b"},
	{wire: "%2e%2e/b", key: "../b"}, {wire: "%2E", key: "."}, {wire: "..%2fb", key: "../b"}, {wire: "%252e%252e", key: "%2e%2e"}, {wire: "a%252Fb", key: "a%2Fb"}, {wire: "%25", key: "%"},
	{wire: "%2561", key: "%61"}, {wire: "a%20b", key: "a b"}, {wire: "a+b", key: "a+b"}, {wire: "%2B", key: "+"}, {wire: "a%3Fb", key: "a?b"}, {wire: "a%23b", key: "a#b"}, {wire: "a#b", key: "a#b"},
	{wire: "a;b=c", key: "a;b=c"}, {wire: "a%26b", key: "a&b"}, {wire: "%C3%A9", key: "é"}, {wire: "é", key: "é"}, {wire: "e%CC%81", key: "e\u0301"}, {wire: "%F0%9F%AA%A8", key: "\U0001faa8"},
	{wire: "objects/x", key: "objects/x"}, {wire: "a/objects/b", key: "a/objects/b"}, {wire: `a\b`, key: `a\b`}, {wire: "a:b", key: "a:b"}, {wire: "*", key: "*"}, {wire: ":key", key: ":key"},
	{wire: "%0A", key: "\n"}, {wire: "%7F", key: "\x7f"}, {wire: "con.txt.", key: "con.txt."}, {wire: "a%22b", key: `a"b`}, {wire: "%EF%BF%BD", key: "\ufffd"},
	{wire: strings.Repeat("k", record.MaxKey), key: strings.Repeat("k", record.MaxKey)},
	{wire: strings.Repeat("k", record.MaxKey+1), refused: true}, {wire: "", refused: true}, {wire: "%00", refused: true}, {wire: "a%00b", refused: true}, {wire: "%", refused: true}, {wire: "%2", refused: true}, {wire: "%zz", refused: true},
	{wire: "%C0%AF", refused: true}, {wire: "%C0%80", refused: true}, {wire: "%ED%A0%80", refused: true}, {wire: "%FF", refused: true}, {wire: "\xff", refused: true}, {wire: "%F4%90%80%80", refused: true},
	{wire: "a?b", refused: true}, {wire: "a?", refused: true}, {wire: "?", refused: true}, {wire: "a?b=c", refused: true}, {wire: "a?version=1&version=2", refused: true}, {wire: "a?%zz", refused: true}, {wire: "a?x;y", refused: true},
}

// TestKeysAreWhatThePathSays: key in = key out, or 400, on every route that has
// one (H64).
func TestKeysAreWhatThePathSays(t *testing.T) {
	for _, c := range pathTable {
		for _, route := range []struct{ method, call string }{{"PUT", "put"}, {"GET", "get"}, {"HEAD", "get"}, {"DELETE", "delete"}, {"POST", "undelete"}, {"GET", "placement"}} {
			r := newRig(t)
			path := objects + c.wire
			if route.call == "placement" {
				path = "/v1/buckets/main/placement/" + c.wire
			}
			if route.method == "POST" && !strings.Contains(path, "?") {
				path += "?undelete"
			}
			a, ok := r.raw(route.method + " " + path + " HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer " + testToken + "\r\nContent-Length: 0\r\n\r\n")
			if c.refused {
				if ok && a.status != 400 && !(a.status == 404 && route.call == "undelete") {
					t.Errorf("%s %q: %d, want 400", route.method, c.wire, a.status)
				}
				if b := r.store.buckets["main"]; len(b.objects) > 0 {
					t.Errorf("%s %q stored something", route.method, c.wire)
				}
				continue
			}
			if want := fmt.Sprintf("%s %q %q", route.call, "main", c.key); !slices.Equal(r.store.called, []string{want}) {
				t.Errorf("%s %q: the store was asked %q, want %s (%d)", route.method, c.wire, r.store.called, want, a.status)
			}
			if route.method == "PUT" {
				var o objectJSON
				if err := json.Unmarshal([]byte(a.body), &o); err != nil || o.Key != c.key {
					t.Errorf("PUT %q answers the key %q, want %q", c.wire, o.Key, c.key)
				}
				page := r.do("GET", "/v1/buckets/main/objects", "")
				var l listJSON
				if err := json.Unmarshal([]byte(page.body), &l); err != nil || len(l.Objects) != 1 || l.Objects[0].Key != c.key {
					t.Errorf("PUT %q lists as %s", c.wire, page.body)
				}
			}
		}
	}
}

// TestBucketsAndNodesAreWhatThePathSays: the other names in paths are decoded
// once as well.
func TestBucketsAndNodesAreWhatThePathSays(t *testing.T) {
	for _, c := range []struct {
		wire, name string
		status     int // of a request that does not reach the store
	}{
		{wire: "main", name: "main"}, {wire: "m%61in", name: "main"}, {wire: "m%2561in", name: "m%61in"}, {wire: "main%2Fobjects", name: "main/objects"}, {wire: "..", name: ".."}, {wire: "%2e%2e", name: ".."},
		{wire: "main%00", status: 400}, {wire: "%C0%AF", status: 400}, {wire: "main?x=y", status: 400},
	} {
		for _, method := range []string{"GET", "PUT", "DELETE"} {
			r := newRig(t)
			a := r.do(method, "/v1/buckets/"+c.wire, "")
			call := map[string]string{"GET": "bucket", "PUT": "createBucket", "DELETE": "deleteBucket"}[method]
			if want := fmt.Sprintf("%s %q %q", call, c.name, ""); c.status == 0 && !slices.Equal(r.store.called, []string{want}) {
				t.Errorf("%s %q: the store was asked %q, want %s", method, c.wire, r.store.called, want)
			} else if c.status != 0 && (a.status != c.status || len(r.store.called) > 0) {
				t.Errorf("%s %q: %d and calls %q, want %d and none", method, c.wire, a.status, r.store.called, c.status)
			}
		}
		r := newRig(t)
		if a := r.do("POST", "/v1/nodes/"+strings.ReplaceAll(c.wire, "?x=y", "/replace?x=y")+strings.Repeat("/replace", 1-strings.Count(c.wire, "?")), ""); c.status == 0 && !slices.Equal(r.replaced, []string{c.name}) || c.status != 0 && a.status != c.status {
			t.Errorf("replace %q: asked for %q, %d", c.wire, r.replaced, a.status)
		}
		if c.status == 0 {
			r := newRig(t)
			r.do("GET", "/descargar/"+c.wire, "")
			r.do("DELETE", "/eliminar/"+c.wire, "")
			if want := []string{fmt.Sprintf(`get "archivo" %q`, c.name), fmt.Sprintf(`delete "archivo" %q`, c.name)}; !slices.Equal(r.store.called, want) {
				t.Errorf("first routes with %q: the store was asked %q, want %q", c.wire, r.store.called, want)
			}
		}
	}
	// Paths that lead nowhere do not reach the store.
	r := newRig(t)
	for _, path := range []string{"/v1/buckets/main/objects/../../..", "/v1/buckets/main/../other", "/v1//buckets", "/v1/buckets/main/objectsx/y", "/descargar/a/b", "/descargar/", "/cargar/x", "/%2e%2e/v1/buckets", "/v1/buckets/main%2Fobjects%2Fk"} {
		if a := r.do("DELETE", path, ""); a.status < 400 {
			t.Errorf("DELETE %s: %d", path, a.status)
		}
	}
	for _, c := range r.store.called {
		if c != `delete "main" "../../.."` && c != `deleteBucket "main/objects/k" ""` {
			t.Errorf("a path that leads nowhere reached the store: %s", c)
		}
	}
}

func TestRanges(t *testing.T) {
	r := newRig(t)
	const body = "0123456789"
	r.put("ten", body)
	r.put("none", "")
	for _, c := range []struct {
		spec   string
		status int
		body   string
		where  string
	}{
		{"bytes=0-0", 206, "0", "bytes 0-0/10"}, {"bytes=0-", 206, body, "bytes 0-9/10"}, {"bytes=3-5", 206, "345", "bytes 3-5/10"}, {"bytes=9-", 206, "9", "bytes 9-9/10"},
		{"bytes=-1", 206, "9", "bytes 9-9/10"}, {"bytes=-10", 206, body, "bytes 0-9/10"}, {"bytes=-11", 206, body, "bytes 0-9/10"}, {"bytes=5-999", 206, "56789", "bytes 5-9/10"}, {"bytes=5-9", 206, "56789", "bytes 5-9/10"}, {"bytes=5-10", 206, "56789", "bytes 5-9/10"},
		{"bytes=5-99999999999999999999999", 206, "56789", "bytes 5-9/10"}, {"bytes=-99999999999999999999999", 206, body, "bytes 0-9/10"}, {"bytes= 1-2 ", 206, "12", "bytes 1-2/10"},
		{"bytes=,1-2,", 206, "12", "bytes 1-2/10"}, {"Bytes=1-2", 206, "12", "bytes 1-2/10"}, {"bytes=1-2,99-", 206, "12", "bytes 1-2/10"}, {"bytes=007-8", 206, "78", "bytes 7-8/10"},
		{"bytes=10-", 416, "", "bytes */10"}, {"bytes=10-20", 416, "", "bytes */10"}, {"bytes=-0", 416, "", "bytes */10"}, {"bytes=99999999999999999999999-", 416, "", "bytes */10"}, {"bytes=10-,11-,-0", 416, "", "bytes */10"},
		{"bytes=0-1,0-1", 206, "01", "bytes 0-1/10"}, {"bytes=4-5,2-3,0-4", 206, "012345", "bytes 0-5/10"}, {"bytes=0-0,99-,-11", 206, body, "bytes 0-9/10"}, {"bytes=5-3", 200, body, ""}, {"bytes=", 200, body, ""}, {"bytes=,", 200, body, ""}, {"bytes=-", 200, body, ""}, {"bytes=a-b", 200, body, ""},
		{"bytes=1-2-3", 200, body, ""}, {"bytes=1", 200, body, ""}, {"bytes=+1-2", 200, body, ""}, {"bytes=--1", 200, body, ""}, {"bytes=0x1-2", 200, body, ""}, {"bytes=1-2,x", 200, body, ""}, {"bytes 0-1", 200, body, ""}, {"items=0-1", 200, body, ""},
		{"bytes=1 -2", 200, body, ""}, {"bytes=1-\u0662", 200, body, ""}, {"bytes=" + strings.Repeat("0-,", 1000), 200, body, ""},
		{"bytes=" + strings.Repeat("0-1,", maxRanges), 206, "01", "bytes 0-1/10"}, {"bytes=" + strings.Repeat("0-1,", maxRanges+1), 200, body, ""},
	} {
		a := r.do("GET", objects+"ten", "", "Range: "+c.spec)
		if c.status == 416 {
			if p := a.problem(t); !strings.HasSuffix(p.Type, "range-not-satisfiable") {
				t.Errorf("%q: %+v", c.spec, p)
			}
			if a.header.Get("Content-Encoding") != "" || a.header.Get("Content-Disposition") != "" || a.header.Get("Etag") != "" {
				t.Errorf("%q: the error is described as the object: %v", c.spec, a.header)
			}
			a.body = ""
		}
		if a.status != c.status || a.body != c.body || a.header.Get("Content-Range") != c.where {
			t.Errorf("%.60q: %d %q %q, want %d %q %q", c.spec, a.status, a.body, a.header.Get("Content-Range"), c.status, c.body, c.where)
		}
		if c.status != 416 && a.header.Get("Content-Length") != fmt.Sprint(len(c.body)) {
			t.Errorf("%.60q: Content-Length %s for %d bytes", c.spec, a.header.Get("Content-Length"), len(c.body))
		}
		if h := r.do("HEAD", objects+"ten", "", "Range: "+c.spec); h.status != 200 || h.header.Get("Content-Length") != "10" || h.header.Get("Content-Range") != "" {
			t.Errorf("HEAD with %.60q: %d %v; a range is for GET", c.spec, h.status, h.header)
		}
		if e := r.do("GET", objects+"none", "", "Range: "+c.spec); e.status != 200 || e.body != "" {
			t.Errorf("%.60q of an object without bytes: %d %q, want 200 and nothing", c.spec, e.status, e.body)
		}
	}
	if a := r.do("GET", objects+"ten", "", "Range: bytes=0-1", "Range: bytes=3-4"); a.status != 200 {
		t.Errorf("two Range headers: %d, want the whole", a.status)
	}
	tag := r.do("HEAD", objects+"ten", "").header.Get("Etag")
	date := r.do("HEAD", objects+"ten", "").header.Get("Last-Modified")
	for value, status := range map[string]int{tag: 206, "W/" + tag: 200, `"other"`: 200, date: 200, "nonsense": 200} {
		if a := r.do("GET", objects+"ten", "", "Range: bytes=0-1", "If-Range: "+value); a.status != status {
			t.Errorf("If-Range: %s: %d, want %d", value, a.status, status)
		}
	}
}

func TestConditions(t *testing.T) {
	r := newRig(t)
	r.put("k", "body", "Content-Type: text/html", "Content-Encoding: br")
	head := r.do("HEAD", objects+"k", "").header
	tag, at := head.Get("Etag"), head.Get("Last-Modified")
	before, after := epoch.Format(http.TimeFormat), epoch.Add(time.Hour).Format(http.TimeFormat)
	for _, c := range []struct {
		headers []string
		status  int
	}{
		{[]string{"If-None-Match: " + tag}, 304}, {[]string{"If-None-Match: W/" + tag}, 304}, {[]string{`If-None-Match: "x", ` + tag}, 304}, {[]string{`If-None-Match: "x"`, "If-None-Match: " + tag}, 304}, {[]string{"If-None-Match: *"}, 304},
		{[]string{`If-None-Match: "x"`}, 200}, {[]string{`If-None-Match: "a,b", "c"`}, 200},
		{[]string{"If-Modified-Since: " + at}, 304}, {[]string{"If-Modified-Since: " + after}, 304}, {[]string{"If-Modified-Since: " + before}, 200}, {[]string{"If-Modified-Since: yesterday"}, 200},
		{[]string{`If-None-Match: "x"`, "If-Modified-Since: " + after}, 200},
		{[]string{"If-Match: " + tag}, 200}, {[]string{"If-Match: *"}, 200}, {[]string{`If-Match: "x"`}, 412}, {[]string{"If-Match: W/" + tag}, 412},
		{[]string{"If-Unmodified-Since: " + at}, 200}, {[]string{"If-Unmodified-Since: " + before}, 412}, {[]string{"If-Match: " + tag, "If-Unmodified-Since: " + before}, 200},
		{[]string{`If-Match: "x"`, "If-None-Match: " + tag}, 412}, {[]string{"If-Match: " + tag, "If-None-Match: " + tag}, 304}, {[]string{"If-Unmodified-Since: " + before, "If-None-Match: " + tag}, 412},
		{[]string{"If-None-Match: " + tag, "Range: bytes=0-0"}, 304}, {[]string{"If-Match: " + tag, "Range: bytes=0-0"}, 206},
		{[]string{"If-None-Match: " + strings.Trim(tag, `"`)}, 400}, {[]string{"If-Match: "}, 400}, {[]string{`If-Match: "a" "b"`}, 400}, {[]string{`If-Match: "a`}, 400}, {[]string{`If-Match: *, "a"`}, 400}, {[]string{`If-Match: "a b"`}, 400},
	} {
		for _, method := range []string{"GET", "HEAD"} {
			want := c.status
			if method == "HEAD" && want == 206 {
				want = 200
			}
			a := r.do(method, objects+"k", "", c.headers...)
			if a.status != want {
				t.Errorf("%s %q: %d, want %d", method, c.headers, a.status, want)
			}
			if a.status == 304 && (a.body != "" || a.header.Get("Etag") != tag || a.header.Get("Content-Type") != "" || a.header.Get("Content-Encoding") != "") {
				t.Errorf("%s %q: 304 with %q %v", method, c.headers, a.body, a.header)
			}
		}
	}
	// Writes hand them to the store, which decides at the point of the write.
	r.want(412, "precondition-failed", "PUT", objects+"k", "new", "If-None-Match: *")
	r.want(412, "precondition-failed", "PUT", objects+"k", "new", `If-Match: "x"`)
	r.want(200, "", "PUT", objects+"k", "new", "If-Match: "+tag)
	r.want(201, "", "PUT", objects+"fresh", "new", "If-None-Match: *", "If-Modified-Since: "+after)
	if last := r.store.puts[len(r.store.puts)-1]; !last.If.IfModifiedSince.IsZero() || !slices.Equal(last.If.IfNoneMatch, []string{"*"}) {
		t.Errorf("conditions of a put: %+v; If-Modified-Since is for reads", last.If)
	}
	r.want(412, "precondition-failed", "DELETE", objects+"k", "", "If-Match: "+tag)
	r.want(204, "", "DELETE", objects+"k", "", "If-Match: *")
	r.want(404, "no-such-object", "DELETE", objects+"nothing", "", "If-Match: *")
	r.want(400, "invalid-header", "PUT", objects+"k", "x", "If-Match: bare")
	r.want(400, "invalid-header", "DELETE", objects+"k", "", "If-None-Match: bare")
}

func TestListingPages(t *testing.T) {
	r := newRig(t)
	for _, k := range []string{"a", "b/1", "b/2", "b/3/x", "c", "d\u00e9", "e%25"} {
		r.put(k, k)
	}
	r.put("c", "newer")
	r.do("DELETE", objects+"d\u00e9", "")
	list := func(query string) (keys []string, pages int) {
		cursor := ""
		for pages = 1; pages < 99; pages++ {
			a := r.want(200, "", "GET", "/v1/buckets/main/objects?"+query+cursor, "")
			var l listJSON
			if err := json.Unmarshal([]byte(a.body), &l); err != nil {
				t.Fatal(err)
			}
			for _, o := range l.Objects {
				keys = append(keys, o.Key)
			}
			keys = append(keys, l.Prefixes...)
			if !l.More {
				return keys, pages
			}
			cursor = "&cursor=" + l.Cursor
		}
		t.Fatalf("%s never ends", query)
		return nil, 0
	}
	for query, want := range map[string][]string{
		"limit=1000": {"a", "b/1", "b/2", "b/3/x", "c", "e%"}, "limit=1": {"a", "b/1", "b/2", "b/3/x", "c", "e%"}, "limit=2": {"a", "b/1", "b/2", "b/3/x", "c", "e%"},
		"prefix=b%2F&limit=1": {"b/1", "b/2", "b/3/x"}, "delimiter=/&limit=1": {"a", "b/", "c", "e%"}, "limit=3&start_after=b%2F2": {"b/3/x", "c", "e%"}, "limit=1000&prefix=zz": nil,
		"versions=true&limit=1": {"a", "b/1", "b/2", "b/3/x", "c", "c", "d\u00e9", "d\u00e9", "e%"}, "versions=false&prefix=e%25": {"e%"},
	} {
		if got, _ := list(query); !slices.Equal(got, want) {
			t.Errorf("%s: %q, want %q", query, got, want)
		}
	}
	if _, pages := list("versions=1&limit=2"); pages != 5 {
		t.Errorf("nine versions by twos are %d pages", pages)
	}
	for _, q := range []string{"limit=0", "limit=1001", "limit=99999999999999999999", "limit=-1", "limit=x", "limit=", "limit=1.5", "versions=maybe", "prefix=%FF", "prefix=" + strings.Repeat("p", 1025), "delimiter=" + strings.Repeat("p", 1025), "cursor=", "cursor=!", "cursor=AAAA",
		"cursor=" + strings.Repeat("A", 5000), "x=y", "prefix=a&prefix=b", "cursor=" + formatCursor("a", id0) + "&start_after=b", "cursor=" + formatCursor("a", id0) + "%0A"} {
		if a := r.do("GET", "/v1/buckets/main/objects?"+q, ""); a.status != 400 {
			t.Errorf("?%.60s: %d, want 400", q, a.status)
		}
	}
	if last := r.store.lists[len(r.store.lists)-1]; last.Limit > 1000 {
		t.Errorf("a limit of %d reached the store", last.Limit)
	}
}

// TestObjectsNeverRunAsPages: what a browser could run comes as a download, and
// all of it in a sandbox (H70).
func TestObjectsNeverRunAsPages(t *testing.T) {
	r := newRig(t)
	for i, c := range []struct{ contentType, disposition, want string }{
		{"text/html", "", "attachment"}, {"text/html; charset=utf-8", `inline; filename="a.html"`, `attachment; filename="a.html"`}, {"TEXT/HTML", "inline", "attachment"}, {"image/svg+xml", "", "attachment"},
		{"application/xhtml+xml", "", "attachment"}, {"text/xml", "", "attachment"}, {"application/pdf", "", "attachment"}, {"", "", "attachment"}, {"nonsense", "", "attachment"}, {"text/javascript", "", "attachment"}, {"text/plain/html", "", "attachment"},
		{"text/plain", "", ""}, {"text/plain;charset=utf-8", "", ""}, {"image/png", "inline", "inline"}, {"image/png", "attachment", "attachment"},
	} {
		key := fmt.Sprint("k", i)
		headers := []string{}
		if c.contentType != "" {
			headers = append(headers, "Content-Type: "+c.contentType)
		}
		if c.disposition != "" {
			headers = append(headers, "Content-Disposition: "+c.disposition)
		}
		r.put(key, "<script>", headers...)
		a := r.do("GET", objects+key, "")
		if got := a.header.Get("Content-Disposition"); got != c.want {
			t.Errorf("%q, %q: disposition %q, want %q", c.contentType, c.disposition, got, c.want)
		}
		if p := a.header.Get("Content-Security-Policy"); !strings.HasPrefix(p, "sandbox;") || strings.Contains(p, "allow") {
			t.Errorf("policy %q", p)
		}
		if a.header.Get("Cross-Origin-Resource-Policy") != "same-origin" {
			t.Errorf("%q may be embedded elsewhere", c.contentType)
		}
	}
}

// form is a multipart body with a file for each pair of field and file name.
func form(files ...[2]string) (body string, contentType string) {
	var b strings.Builder
	for _, f := range files {
		b.WriteString("--xyz\r\nContent-Disposition: form-data; name=\"" + f[0] + "\"")
		if f[1] != "" {
			b.WriteString("; filename=\"" + f[1] + "\"\r\nContent-Type: text/plain")
		}
		b.WriteString("\r\n\r\nbytes of " + f[1] + "\r\n")
	}
	b.WriteString("--xyz--\r\n")
	return b.String(), "Content-Type: multipart/form-data; boundary=xyz"
}

func TestFirstRoutes(t *testing.T) {
	r := newRig(t)
	none := "Authorization: none"
	r.want(404, "no-such-bucket", "GET", "/descargar/a.txt", "", none)
	body, ct := form([2]string{"other", ""}, [2]string{"archivo", "a b+c%20.txt"}, [2]string{"after", ""})
	if a := r.want(200, "", "POST", "/cargar", body, ct, none); !strings.Contains(a.body, `"archivo":"a b+c%20.txt"`) {
		t.Errorf("cargar: %s", a.body)
	}
	if got := r.want(200, "", "GET", "/descargar/a%20b+c%2520.txt", "", none).body; got != "bytes of a b+c%20.txt" {
		t.Errorf("descargar: %q", got)
	}
	if a := r.want(206, "", "GET", "/descargar/a%20b+c%2520.txt", "", none, "Range: bytes=0-4"); a.body != "bytes" {
		t.Errorf("descargar of a range: %q", a.body)
	}
	r.want(200, "", "DELETE", "/eliminar/a%20b+c%2520.txt", "", none)
	r.want(404, "no-such-object", "GET", "/descargar/a%20b+c%2520.txt", "", none)
	r.want(404, "no-such-object", "DELETE", "/eliminar/a%20b+c%2520.txt", "", none)

	stored := func() int { return len(r.store.buckets["archivo"].objects) }
	had := stored()
	for _, name := range []string{"../main/x", "/etc/passwd", "a/b", "..", "."} {
		body, ct := form([2]string{"archivo", name})
		r.want(400, "invalid-key", "POST", "/cargar", body, ct)
	}
	for _, files := range [][][2]string{{{"other", "x"}}, {{"archivo", ""}}, {{"archivo", "one"}, {"archivo", "two"}}, {}} {
		body, ct := form(files...)
		r.want(400, "invalid-body", "POST", "/cargar", body, ct)
	}
	r.want(400, "invalid-body", "POST", "/cargar", "archivo=x", "Content-Type: application/x-www-form-urlencoded")
	r.want(400, "invalid-body", "POST", "/cargar", "", "Content-Type: multipart/form-data")
	long := "--xyz\r\nContent-Disposition: form-data; name=\"other\"\r\n\r\n" + strings.Repeat("x", maxForm) + "\r\n"
	body, ct = form([2]string{"archivo", "after"})
	r.want(413, "too-large", "POST", "/cargar", long+body, ct)
	body, _ = form([2]string{"archivo", "before"})
	r.want(413, "too-large", "POST", "/cargar", strings.TrimSuffix(body, "--xyz--\r\n")+long+long+"--xyz--\r\n", ct)
	// A form that is cut off at any byte stores nothing.
	body, ct = form([2]string{"archivo", "cut"}, [2]string{"after", ""})
	end := strings.LastIndex(body, "--") // the first of the two that end a form
	for n := range end {
		a, _ := r.raw(fmt.Sprintf("POST /cargar HTTP/1.1\r\nHost: localhost\r\n%s\r\nContent-Length: %d\r\n\r\n%s", ct, len(body), body[:n]))
		if a.status != 400 {
			t.Errorf("a form cut at byte %d of %d: %d, want 400", n, len(body), a.status)
		}
	}
	if stored() != had {
		t.Errorf("refused forms stored %d files", stored()-had)
	}
	r.want(405, "method-not-allowed", "GET", "/cargar", "", none)
}

// TestEverySentinelHasAnAnswer reads the store's sources, so that a new sentinel
// cannot be forgotten here.
func TestEverySentinelHasAnAnswer(t *testing.T) {
	// What only opening a store returns never comes to a client; nor does what ends a
	// stream that has begun.
	only := map[string]bool{"ErrDivergent": true, "ErrSlow": true}
	files, err := filepath.Glob("../../store/*.go")
	if err != nil || len(files) == 0 {
		t.Fatalf("the store's sources: %v, %v", files, err)
	}
	sentinels := map[string]bool{}
	for _, name := range files {
		f, err := parser.ParseFile(token.NewFileSet(), name, nil, 0)
		if err != nil {
			t.Fatal(err)
		}
		if f.Name.Name != "store" || strings.HasSuffix(name, "_test.go") {
			continue
		}
		for _, d := range f.Decls {
			if g, ok := d.(*ast.GenDecl); ok && g.Tok == token.VAR {
				for _, s := range g.Specs {
					for _, n := range s.(*ast.ValueSpec).Names {
						if strings.HasPrefix(n.Name, "Err") && n.IsExported() && !only[n.Name] {
							sentinels[n.Name] = true
						}
					}
				}
			}
		}
	}
	f, err := parser.ParseFile(token.NewFileSet(), "problem.go", nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	ast.Inspect(f, func(n ast.Node) bool {
		if s, ok := n.(*ast.SelectorExpr); ok {
			if x, ok := s.X.(*ast.Ident); ok && x.Name == "store" {
				delete(sentinels, s.Sel.Name)
			}
		}
		return true
	})
	for name := range sentinels {
		t.Errorf("store.%s has no entry in the table of problems", name)
	}
}

func TestErrorsOfTheStore(t *testing.T) {
	want := map[error]int{store.ErrNoBucket: 404, store.ErrNoVersion: 404, store.ErrNoObject: 404, store.ErrBucketExists: 409, store.ErrBucketNotEmpty: 409, store.ErrPrecondition: 412,
		store.ErrTooLarge: 413, store.ErrRange: 416, store.ErrShortBody: 400, store.ErrInvalid: 400, store.ErrFull: 507, store.ErrQuota: 507, store.ErrLocked: 403, store.ErrUnknown: 503, store.ErrRetry: 503, store.ErrBusy: 503,
		store.ErrSuperseded: 503, store.ErrUnavailable: 503, store.ErrClosed: 503, store.ErrDamaged: 500, store.ErrNoUpload: 404, store.ErrOffset: 409, store.ErrInUse: 423, store.ErrTooManyParts: 413, store.ErrOnceOther: 422, store.ErrOnceRunning: 409,
		store.ErrNoJob: 404, store.ErrNoShares: 404, store.ErrJobRunning: 409, store.ErrJobOver: 409, errFake: 500, context.DeadlineExceeded: 503, context.Canceled: 499}
	for _, p := range problems {
		if _, ok := want[p.err]; !ok {
			t.Errorf("%v has no line in this test", p.err)
		}
	}
	kinds := map[string]error{}
	for err, status := range want {
		p := asProblem(fmt.Errorf("node n01 at /secret/path: %w", err))
		if p.Status != status {
			t.Errorf("%v: %d, want %d", err, p.Status, status)
		}
		if status >= 500 && strings.Contains(p.Detail+p.Title+p.Hint, "secret") {
			t.Errorf("%v: the client reads of our nodes: %+v", err, p)
		}
		if other, ok := kinds[p.Type]; ok {
			t.Errorf("%v and %v have one type, %s", err, other, p.Type)
		}
		kinds[p.Type] = err
	}
	// Unknown outcomes are never told as "nothing was stored".
	for _, p := range problems { // whatever else is in it
		if p := asProblem(fmt.Errorf("%w: %w", p.err, store.ErrUnknown)); !strings.HasSuffix(p.Type, "outcome-unknown") || p.Status != http.StatusServiceUnavailable {
			t.Errorf("an unknown outcome beside another error is told as %+v", p)
		}
	}
	if p := asProblem(fmt.Errorf("%w: %w: %w", store.ErrUnavailable, store.ErrUnknown, context.Canceled)); !strings.HasSuffix(p.Type, "outcome-unknown") {
		t.Errorf("an unknown outcome is told as %s", p.Type)
	}
	for _, route := range everyRoute(t) {
		r := newRig(t)
		r.store.fail = errFake
		if strings.HasSuffix(route[1], "/healthz") || strings.HasSuffix(route[1], "openapi.json") || route[1] == "/metrics" || strings.HasSuffix(route[1], "/replace") || route[0] != "GET" && strings.HasPrefix(route[1], "/v1/nodes") || route[1] == "/cargar" || route[1] == "/readyz" ||
			strings.HasPrefix(route[1], uploadsPath) || route[1] == eventsPath {
			continue // what does not ask the store, or has its own way to fail
		}
		path, job := strings.Replace(route[1], ":job", "018bcfe5-687b-7abc-9abc-0123456789ab", 1), strings.HasPrefix(route[1], jobsPath)
		if route[0] == "POST" && !job {
			path += "?undelete"
		}
		body := ""
		if route[0] == "PUT" && strings.HasSuffix(path, "/lifecycle") {
			body = `{"rules":[]}`
		}
		r.want(500, "internal", route[0], path, body)
		if strings.Count(r.log.String(), "a request failed") != 1 || strings.Contains(r.log.String(), errFake.Error()) {
			t.Errorf("%s %s: the log says %q", route[0], route[1], r.log)
		}
		r.store.fail = store.ErrBusy
		if a := r.want(503, "busy", route[0], path, body); a.header.Get("Retry-After") == "" {
			t.Errorf("%s %s: 503 without Retry-After", route[0], route[1])
		}
		if route[0] != "GET" && !job { // a delete too needs room
			r.store.fail = store.ErrFull
			r.want(507, "full", route[0], path, body)
		}
	}
	r := newRig(t)
	r.store.fail = store.ErrUnavailable
	if a := r.do("GET", "/readyz", ""); a.status != 503 || !strings.Contains(a.body, "not-ready") {
		t.Errorf("readyz of a store that is not: %d %q", a.status, a.body)
	}
}

// TestNamesStayOutOfTheLog: canaries in every place where a client can put a
// name, through every route, with the store failing in every way (H60).
func TestNamesStayOutOfTheLog(t *testing.T) {
	const canary = "canary7f3a"
	fails := []error{nil, errFake, fmt.Errorf("open %s: %w", canary, store.ErrDamaged), fmt.Errorf("%s: %w", canary, errFake), fmt.Errorf("%s: %w", canary, errors.Join(errors.New(canary), io.ErrUnexpectedEOF))}
	logged := 0
	for _, fail := range fails {
		for _, route := range everyRoute(t) {
			r := newRig(t)
			r.store.fail = fail
			r.store.breakBodies(600)
			path := strings.NewReplacer("main", canary, "/k", "/"+canary, "/f", "/"+canary, "n02", canary).Replace(route[1])
			body, ct := form([2]string{"archivo", canary})
			for _, p := range []string{path, path + "?" + canary, path + "?version=" + canary, path + "?undelete", path + "?prefix=" + canary} {
				r.do(route[0], p, body, ct, "Cairn-Meta-X: "+canary, "X-"+canary+": "+canary, "User-Agent: "+canary, "Cookie: "+canary, "Content-Disposition: "+canary)
				r.do(route[0], p, body, "Authorization: Bearer "+canary, "Host: "+canary)
			}
			if strings.Contains(r.log.String(), canary) || strings.Contains(r.log.String(), testToken) {
				t.Errorf("%s %s, %v: a name or the token is in the log:\n%s", route[0], path, fail, r.log)
			}
			logged += strings.Count(r.log.String(), "\n")
		}
	}
	if logged == 0 {
		t.Error("nothing was logged at all: this test sees nothing")
	}
}

// serveRig puts the face on a socket.
func serveRig(t *testing.T, r *rig) net.Addr {
	t.Helper()
	srv := httptest.NewServer(r.handler)
	t.Cleanup(srv.Close)
	return srv.Listener.Addr()
}

// TestBrokenAnswerNeverLooksWhole: when a body fails in the middle, the client
// sees a broken connection, not a short file (H68).
func TestBrokenAnswerNeverLooksWhole(t *testing.T) {
	r := newRig(t)
	const n = 300_000
	r.put("big", strings.Repeat("x", n))
	addr := serveRig(t, r)
	get := func(headers map[string]string) (int, int, error) {
		req, err := http.NewRequest("GET", "http://"+addr.String()+objects+"big", nil)
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Authorization", "Bearer "+testToken)
		for k, v := range headers {
			req.Header.Set(k, v)
		}
		req.Close = true // on a connection used before, the client would try again by itself
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			return 0, 0, err // cut before the head went out
		}
		defer resp.Body.Close()
		b, err := io.ReadAll(resp.Body)
		return resp.StatusCode, len(b), err
	}
	if status, got, err := get(nil); status != 200 || got != n || err != nil {
		t.Fatalf("a whole answer: %d, %d bytes, %v", status, got, err)
	}
	for _, at := range []int64{512, 513, 4096, 100_000, n - 2} {
		r.store.breakBodies(at)
		if status, got, err := get(nil); status != 200 && status != 0 || err == nil || got > int(at) {
			t.Errorf("broken at %d: %d, %d bytes, %v; want a broken connection", at, status, got, err)
		}
		if status, got, err := get(map[string]string{"Range": "bytes=1-"}); status != 206 && status != 0 || err == nil || got > int(at) {
			t.Errorf("a range broken at %d: %d, %d bytes, %v; want a broken connection", at, status, got, err)
		}
	}
	r.store.breakBodies(511) // not one answer's worth: an error with a status
	if status, _, err := get(nil); status != 500 || err != nil {
		t.Errorf("a body that cannot be read at all: %d, %v; want 500", status, err)
	}
	if got := strings.Count(r.log.String(), "an answer was cut short"); got != 10 {
		t.Errorf("ten answers were cut short, %d of them are in the log", got)
	}
}

// TestUploadsThatEndEarlyStoreNothing: the client goes away, or its body is not
// as long as it said (H68).
func TestUploadsThatEndEarlyStoreNothing(t *testing.T) {
	r := newRig(t)
	addr := serveRig(t, r)
	send := func(text string, half bool) string {
		c, err := net.Dial("tcp", addr.String())
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		if _, err := io.WriteString(c, text); err != nil {
			t.Fatal(err)
		}
		if half {
			if err := c.(*net.TCPConn).CloseWrite(); err != nil {
				t.Fatal(err)
			}
		}
		_ = c.SetReadDeadline(time.Now().Add(5 * time.Second))
		resp, err := http.ReadResponse(bufio.NewReader(c), nil)
		if err != nil {
			return err.Error()
		}
		defer resp.Body.Close()
		b, _ := io.ReadAll(resp.Body)
		return resp.Status + " " + string(b)
	}
	head := "PUT " + objects + "short HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer " + testToken + "\r\n"
	for name, text := range map[string]string{
		"fewer bytes than Content-Length": head + "Content-Length: 100\r\n\r\nabc",
		"no last chunk":                   head + "Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n",
		"a chunk cut off":                 head + "Transfer-Encoding: chunked\r\n\r\n9\r\nabc",
		"a bad chunk size":                head + "Transfer-Encoding: chunked\r\n\r\nzz\r\nabc\r\n0\r\n\r\n",
	} {
		if got := send(text, true); !strings.HasPrefix(got, "400 ") || !strings.Contains(got, "incomplete-body") {
			t.Errorf("%s: %s; want 400 incomplete-body", name, got)
		}
	}
	// What HTTP itself refuses (H66).
	for name, text := range map[string]string{
		"a length and chunks":         head + "Content-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n",
		"two lengths":                 head + "Content-Length: 3\r\nContent-Length: 4\r\n\r\nabcd",
		"a length that is no number":  head + "Content-Length: +3\r\n\r\nabc",
		"an unknown coding":           head + "Transfer-Encoding: gzip, chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n",
		"a space before a colon":      head + "Content-Length : 3\r\n\r\nabc",
		"a line folded":               head + "X: a\r\n b\r\nContent-Length: 3\r\n\r\nabc",
		"no Host":                     "PUT " + objects + "short HTTP/1.1\r\nAuthorization: Bearer " + testToken + "\r\nContent-Length: 3\r\n\r\nabc",
		"two Hosts":                   head + "Host: localhost\r\nContent-Length: 3\r\n\r\nabc",
		"a space in the request line": strings.Replace(head, "short", "sh ort", 1) + "Content-Length: 3\r\n\r\nabc",
	} {
		got := send(text, true)
		if name == "a length and chunks" || name == "a line folded" {
			continue // allowed by RFC 9112 when read as one message; the count below says whether it was
		}
		if !strings.HasPrefix(got, "400 ") && !strings.HasPrefix(got, "501 ") {
			t.Errorf("%s: %.80s; want a refusal", name, got)
		}
	}
	// The client hangs up in the middle.
	c, err := net.Dial("tcp", addr.String())
	if err != nil {
		t.Fatal(err)
	}
	fmt.Fprintf(c, "%sContent-Length: 1000000\r\n\r\n%s", head, strings.Repeat("x", 5000))
	calls := func() int {
		r.store.mu.Lock()
		defer r.store.mu.Unlock()
		return len(r.store.called)
	}
	before := calls()
	c.Close()
	for range 500 {
		if calls() > before {
			break
		}
		time.Sleep(10 * time.Millisecond)
	}
	if calls() == before {
		t.Fatal("an upload whose client has gone still runs")
	}
	r.store.mu.Lock()
	defer r.store.mu.Unlock()
	if vs := r.store.buckets["main"].objects["short"]; len(vs) > 0 && string(vs[0].data) != "abc" || len(vs) > 2 {
		t.Errorf("uploads that ended early stored %d versions", len(vs))
	}
	if r.log.String() != "" {
		t.Errorf("clients' faults are in the log: %s", r.log)
	}
}

// slowBody is a body whose deadline passes.
type slowBody struct{}

func (slowBody) Read([]byte) (int, error) {
	return 0, &net.OpError{Op: "read", Err: context.DeadlineExceeded}
}
func (slowBody) Close() error { return nil }

func TestSlowBodyIsTheClients(t *testing.T) {
	r := newRig(t)
	req := httptest.NewRequest("PUT", "http://localhost"+objects+"slow", slowBody{})
	req.Header.Set("Authorization", "Bearer "+testToken)
	w := httptest.NewRecorder()
	r.handler.ServeHTTP(w, req)
	if w.Code != http.StatusRequestTimeout || r.log.String() != "" {
		t.Errorf("a body too slow: %d %s, log %q; want 408 and no log", w.Code, w.Body, r.log)
	}
}

// TestHalfAnAnswerIsAborted: an error after the status has gone out must not end
// the body cleanly.
func TestHalfAnAnswerIsAborted(t *testing.T) {
	f, e, err := build(Config{Store: newFake(), Token: testToken})
	if err != nil {
		t.Fatal(err)
	}
	w := httptest.NewRecorder()
	c := e.NewContext(httptest.NewRequest("GET", "/", nil), w)
	c.Response().WriteHeader(200)
	defer func() {
		if p := recover(); p != http.ErrAbortHandler {
			t.Errorf("an error after the status: %v, want the connection aborted", p)
		}
	}()
	f.fail(errFake, c)
}
