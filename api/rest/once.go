package rest

import (
	"context"
	"crypto/sha256"
	"fmt"
	"hash"
	"net/http"
	"slices"
	"strings"

	"cairn/store"
)

// maxOnceKey bounds an Idempotency-Key, in bytes.
const maxOnceKey = 255

// onceHeaders are the headers that are part of what a request asks for, besides
// those whose names begin with "Cairn-".
var onceHeaders = []string{"Cache-Control", "Content-Disposition", "Content-Encoding", "Content-Language", "Content-Length", "Content-Type",
	"If-Match", "If-Modified-Since", "If-None-Match", "If-Unmodified-Since"}

// once is a request's context, in which its Idempotency-Key makes it take effect
// once (draft-ietf-httpapi-idempotency-key-header). The body is known by its length
// alone: it has not come yet.
func once(r *http.Request) (context.Context, error) {
	keys := r.Header.Values("Idempotency-Key")
	if len(keys) == 0 {
		return r.Context(), nil
	}
	key := keys[0]
	if len(keys) > 1 || key == "" || len(key) > maxOnceKey || strings.ContainsFunc(key, func(c rune) bool { return c < ' ' || c > '~' }) {
		return nil, problem(http.StatusBadRequest, "invalid-header", fmt.Sprintf("Idempotency-Key is 1 to %d characters of ASCII, once", maxOnceKey), "a UUID will do")
	}
	h := sha256.New()
	add(h, r.Method, r.URL.EscapedPath(), r.URL.RawQuery, fmt.Sprint(r.ContentLength))
	var names []string
	for name := range r.Header {
		if strings.HasPrefix(name, "Cairn-") || slices.Contains(onceHeaders, name) {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	for _, name := range names {
		add(h, name)
		add(h, r.Header[name]...)
	}
	return store.Once(r.Context(), sha256.Sum256([]byte(key)), [32]byte(h.Sum(nil))), nil
}

// add hashes strings so that no two lists of them are taken for one.
func add(h hash.Hash, ss ...string) {
	fmt.Fprintf(h, "%d;", len(ss))
	for _, s := range ss {
		fmt.Fprintf(h, "%d:%s", len(s), s)
	}
}
