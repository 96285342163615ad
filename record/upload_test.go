package record

import (
	"bytes"
	"encoding/hex"
	"errors"
	"os"
	"reflect"
	"strings"
	"testing"
)

func uploadHeads() []UploadHead {
	return []UploadHead{
		{Bucket: 1, Name: "main", Key: []byte("k"), Size: -1},
		{Bucket: 300, Name: "photos", Key: []byte("a/b \x00\xff"), Size: 10 << 30, Note: []byte(`{"x":1}`),
			Attrs: Attrs{ContentType: "image/jpeg", CacheControl: "no-cache", User: []UserField{{Name: "camera", Value: "old"}}}},
	}
}

// TestUploadHeadsOfVersion1: what version 1 wrote, a line each, is read and written
// in the same bytes.
func TestUploadHeadsOfVersion1(t *testing.T) {
	text, err := os.ReadFile("testdata/upload-head-v1.txt")
	if err != nil {
		t.Fatal(err)
	}
	lines := strings.Fields(string(text))
	heads := uploadHeads()
	if len(lines) != len(heads) {
		t.Fatalf("%d lines, want %d", len(lines), len(heads))
	}
	for i, h := range heads {
		b, err := h.Append(nil)
		if err != nil {
			t.Fatal(err)
		}
		if hex.EncodeToString(b) != lines[i] {
			t.Errorf("head %d is written as\n%x, version 1 wrote\n%s", i, b, lines[i])
		}
		got, err := ParseUploadHead(b)
		if err != nil || !reflect.DeepEqual(got, h) {
			t.Errorf("head %d is read as %+v, %v", i, got, err)
		}
		for n := range b {
			if _, err := ParseUploadHead(b[:n]); !errors.Is(err, ErrSyntax) {
				t.Errorf("head %d cut to %d bytes: %v", i, n, err)
			}
		}
		if _, err := ParseUploadHead(append(bytes.Clone(b), 0)); !errors.Is(err, ErrSyntax) {
			t.Errorf("head %d with a byte behind it: %v", i, err)
		}
		later := bytes.Clone(b)
		later[0]++
		if _, err := ParseUploadHead(later); !errors.Is(err, ErrNewer) || errors.Is(err, ErrSyntax) {
			t.Errorf("head %d of a later version: %v", i, err)
		}
	}
	for name, bad := range map[string]UploadHead{
		"no bucket": {Key: []byte("k")}, "no key": {Bucket: 1}, "long key": {Bucket: 1, Key: make([]byte, MaxKey+1)},
		"size": {Bucket: 1, Key: []byte("k"), Size: -2}, "long note": {Bucket: 1, Key: []byte("k"), Note: make([]byte, MaxUploadNote+1)},
		"no UTF-8": {Bucket: 1, Key: []byte("k"), Attrs: Attrs{ContentType: "\xff"}}, "long": {Bucket: 1, Key: []byte("k"), Attrs: Attrs{ContentType: strings.Repeat("x", MaxUploadHead)}},
	} {
		if _, err := bad.Append(nil); !errors.Is(err, ErrSyntax) {
			t.Errorf("%s: %v, want %v", name, err, ErrSyntax)
		}
	}
}

func FuzzUploadHead(f *testing.F) {
	for _, h := range uploadHeads() {
		b, err := h.Append(nil)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		h, err := ParseUploadHead(b)
		if err != nil {
			if errors.Is(err, ErrSyntax) == errors.Is(err, ErrNewer) || errors.Is(err, ErrNewer) != (len(b) > 0 && b[0] > uploadVersion) {
				t.Fatal(err)
			}
			return
		}
		if again, err := h.Append(nil); err != nil || !bytes.Equal(again, b) {
			t.Fatalf("two encodings of one head: %x and %x, %v", b, again, err)
		}
	})
}
