package main

import (
	"net/url"
	"strings"
	"testing"
)

// FuzzUploadNote: whatever stands in a note, requests with the token go to an upload
// of the server that was named and nowhere else.
func FuzzUploadNote(f *testing.F) {
	for _, s := range []string{"", "{}", `{"location":"/v1/uploads/0123456789abcdef0123456789abcdef"}`, `{"location":"/v1/uploads/../status"}`,
		`{"location":"//elsewhere/v1/uploads/0123456789abcdef0123456789abcdef"}`, `{"location":"/v1/uploads/a?b"}`, `{"location":7}`} {
		f.Add([]byte(s))
	}
	base, err := url.Parse("http://store.example:5000")
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, note []byte) {
		at := uploadOf(note)
		if at == "" {
			return
		}
		u, err := base.Parse(at)
		if err != nil || u.Host != base.Host || u.RawQuery != "" || u.Fragment != "" || u.Path != at {
			t.Fatalf("%q leads to %v, %v", at, u, err)
		}
		id, ok := strings.CutPrefix(at, "/v1/uploads/")
		if !ok || id == "" || strings.Trim(id, "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ-_") != "" {
			t.Fatalf("%q is no upload", at)
		}
	})
}
