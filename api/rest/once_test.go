package rest

import (
	"bytes"
	"net/http"
	"strings"
	"testing"

	"cairn/store"
)

// TestIdempotencyKey: the same request is answered the same and done once; another
// one under the same name is refused.
func TestIdempotencyKey(t *testing.T) {
	e := newEngine(t)
	const at = "/v1/buckets/main/objects/k"
	e.checked(200, "PATCH", "/v1/buckets/main", strings.NewReader(`{"versioning":true}`), "Content-Type: application/json")
	send := func(status int, method, path, body, name string, headers ...string) (http.Header, []byte) {
		t.Helper()
		h, b := e.want(status, method, path, strings.NewReader(body), append(headers, "Idempotency-Key: "+name)...)
		plain, _, _ := strings.Cut(path, "?")
		readDocument(t).checkAnswer(t, method, plain, status, h, b)
		return h, b
	}
	twice := func(status int, method, path, body, name string, headers ...string) {
		t.Helper()
		h1, b1 := send(status, method, path, body, name, headers...)
		h2, b2 := send(status, method, path, body, name, headers...)
		if h1.Get("Idempotency-Replayed") != "" || h2.Get("Idempotency-Replayed") != "true" {
			t.Errorf("%s %s: replayed %q, then %q", method, path, h1.Get("Idempotency-Replayed"), h2.Get("Idempotency-Replayed"))
		}
		if !bytes.Equal(b1, b2) || h1.Get("ETag") != h2.Get("ETag") || h1.Get("Cairn-Version") != h2.Get("Cairn-Version") {
			t.Errorf("%s %s: answered with %v %s, then with %v %s", method, path, h1, b1, h2, b2)
		}
	}
	twice(201, "PUT", at, "one", "a", "Content-Type: text/plain", "Cairn-Meta-Colour: blue")
	twice(200, "PUT", at, "two", "b", "Content-Type: text/plain")
	twice(201, "POST", "/v1/buckets/main/objects/copy?copy_from=main/k", "", "c")
	twice(201, "POST", "/v1/buckets/main/objects/moved?rename_from=main/copy", "", "d")
	twice(204, "DELETE", at, "", "e")
	twice(200, "POST", at+"?undelete", "", "f")
	_, list := e.checked(200, "GET", "/v1/buckets/main/objects?versions=true", nil)
	if n := bytes.Count(list, []byte(`"key"`)); n != 5 { // two of k, copy and its marker, moved
		t.Errorf("%d versions and markers: %s", n, list)
	}
	for _, c := range [][]string{
		{"PUT", at, "three", "Content-Type: text/plain", "Cairn-Meta-Colour: blue"},
		{"PUT", at, "one", "Content-Type: text/plain", "Cairn-Meta-Colour: red"},
		{"PUT", at, "one", "Content-Type: text/html", "Cairn-Meta-Colour: blue"},
		{"PUT", at, "one", "Content-Type: text/plain", "Cairn-Meta-Colour: blue", "If-Match: *"},
		{"PUT", at + "x", "one", "Content-Type: text/plain", "Cairn-Meta-Colour: blue"},
		{"DELETE", at, ""},
	} {
		_, b := send(422, c[0], c[1], c[2], "a", c[3:]...)
		if !bytes.Contains(b, []byte("idempotency-key-reused")) {
			t.Errorf("%v: %s", c, b)
		}
	}
	for _, name := range []string{"", "ü", strings.Repeat("x", 256)} {
		send(400, "PUT", at, "x", name)
	}
	if _, b := e.checked(200, "GET", at, nil); string(b) != "two" {
		t.Errorf("the object is %q", b)
	}
	if _, b := e.checked(200, "GET", "/v1/buckets", nil); bytes.Contains(b, []byte(".requests")) {
		t.Errorf("the hidden bucket is listed: %s", b)
	}
}

func TestIdempotencyKeyInUse(t *testing.T) {
	r := newRig(t)
	r.store.fail = store.ErrOnceRunning
	a := r.do("PUT", "/v1/buckets/main/objects/k", "x", "Idempotency-Key: a")
	if a.status != 409 || !strings.Contains(a.body, "idempotency-key-in-use") {
		t.Errorf("%+v", a)
	}
}
