package datadir

import (
	"log/slog"
	"os"
	"path/filepath"
	"testing"
)

// TestOneIndexIsKeptAside: what was set aside before is removed, of the same kind and
// of this index alone, whatever the directory is called.
func TestOneIndexIsKeptAside(t *testing.T) {
	base := filepath.Join(t.TempDir(), "a [b]*? damaged-")
	make := func(names ...string) {
		t.Helper()
		for _, name := range names {
			if err := os.MkdirAll(filepath.Join(base, name), 0o700); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(filepath.Join(base, name, "file"), []byte(name), 0o600); err != nil {
				t.Fatal(err)
			}
		}
	}
	others := []string{"damaged-other", "index.rebuild", "nodes", "replaced-n01-20260101T000000.000Z"}
	make(append(others, "index", "index.damaged-20250101T000000.000000Z", "index.replaced-20250101T000000.000000Z")...)
	d := &Dir{opt: Options{Dir: base, Log: slog.New(slog.DiscardHandler)}}
	var last string
	for range 3 {
		aside, err := d.SetIndexAside()
		if err != nil {
			t.Fatal(err)
		}
		last = aside
		make("index")
	}
	replaced := ""
	for range 2 {
		var err error
		if replaced, err = d.TakeRebuilt(); err != nil {
			t.Fatal(err)
		}
		make("index.rebuild")
	}
	want := map[string]bool{filepath.Base(last): true, filepath.Base(replaced): true, "index": true}
	for _, name := range others {
		want[name] = true
	}
	entries, err := os.ReadDir(base)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if !want[e.Name()] {
			t.Errorf("%s is left", e.Name())
		}
		delete(want, e.Name())
	}
	for name := range want {
		t.Errorf("%s is gone", name)
	}
	if b, err := os.ReadFile(filepath.Join(last, "file")); err != nil || string(b) != "index" {
		t.Errorf("what was set aside: %q, %v", b, err)
	}
}
