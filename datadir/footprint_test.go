package datadir

import (
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
)

// du is what the tool of that name says of a directory, in bytes.
func du(t *testing.T, dir string) int64 {
	t.Helper()
	out, err := exec.Command("du", "-s", "--block-size=1", dir).Output()
	if err != nil {
		t.Skipf("no du: %v", err)
	}
	word, _, _ := strings.Cut(string(out), "\t")
	n, err := strconv.ParseInt(word, 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func TestFootprint(t *testing.T) {
	dir := t.TempDir()
	file := func(name string, size int) {
		t.Helper()
		name = filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(name), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(name, make([]byte, size), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	file("store.json", 100)
	file("ballast", 300_000)
	file("index/a.sst", 50_000)
	file("index/deep/b", 70_000)
	file("index/ballast", 90_000)
	file("replaced-n01-x/data/1.seg", 110_000)
	file("nodes/n01/data/1.seg", 1_000_000)
	file("nodes/n02/data/1.seg", 2_000_000)
	sparse, err := os.OpenFile(filepath.Join(dir, "index/sparse"), os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	if err := sparse.Truncate(1 << 30); err != nil {
		t.Fatal(err)
	}
	sparse.Close()
	d := &Dir{opt: Options{Dir: dir}}
	check := func(nodes ...string) {
		t.Helper()
		index, other, err := d.Footprint(nodes)
		ballast := du(t, filepath.Join(d.IndexDir(), "ballast"))
		want := du(t, filepath.Join(dir, "index")+"/.") - ballast
		if err != nil || index != want {
			t.Errorf("the index takes %d bytes, du says %d; %v", index, want, err)
		}
		rest := du(t, dir) + ballast
		if info, err := os.Lstat(filepath.Join(dir, "index")); err != nil || info.IsDir() {
			rest -= du(t, filepath.Join(dir, "index"))
		}
		for _, n := range nodes {
			rest -= du(t, filepath.Join(dir, "nodes", n))
		}
		if other != rest {
			t.Errorf("without %q the rest takes %d bytes, du says %d", nodes, other, rest)
		}
	}
	check()
	check("n01")
	check("n01", "n02", "n03")
	// The index may lie elsewhere.
	away := filepath.Join(t.TempDir(), "index")
	if err := os.Rename(filepath.Join(dir, "index"), away); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(away, filepath.Join(dir, "index")); err != nil {
		t.Fatal(err)
	}
	check("n01", "n02")
}
