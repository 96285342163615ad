package drill

import (
	"bytes"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func write(t *testing.T, path string, b []byte) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
}

func bytesOf(t *testing.T, path string) []byte {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// TestNeverInTheStore: no name that leads into the store is taken for the place of
// the scratch directory.
func TestNeverInTheStore(t *testing.T) {
	dir := t.TempDir()
	data, disk := filepath.Join(dir, "data"), filepath.Join(dir, "disk")
	for _, d := range []string{"data/nodes", "data/index/deep", "disk/inside", "elsewhere"} {
		if err := os.MkdirAll(filepath.Join(dir, d), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	for link, to := range map[string]string{"link": "data/index", "data/nodes/n01": "../../disk"} {
		if err := os.Symlink(to, filepath.Join(dir, link)); err != nil {
			t.Fatal(err)
		}
	}
	for scratch, refused := range map[string]bool{"data": true, "data/index/deep": true, "link": true, "link/deep": true, "data/../data": true,
		"disk": true, "disk/inside": true, "elsewhere": false, ".": false} {
		if err := refuseInside(data, filepath.Join(dir, scratch)); (err != nil) != refused {
			t.Errorf("scratch in %s: %v, want it refused: %v", scratch, err, refused)
		}
	}
	if err := refuseInside(filepath.Join(dir, "link"), disk); err != nil {
		t.Error(err)
	}
	if _, err := newRig(Config{Data: data, Scratch: filepath.Join(data, "index")}); err == nil {
		t.Error("a drill begins in the store")
	}
	if made, _ := filepath.Glob(filepath.Join(data, "index", "cairn-drill-*")); len(made) > 0 {
		t.Errorf("the refused drill has made %s", made)
	}
}

// TestCopyHasNoLinks: a copy has what links lead to, and none of them; ballast is
// left out.
func TestCopyHasNoLinks(t *testing.T) {
	dir := t.TempDir()
	from, to := filepath.Join(dir, "from"), filepath.Join(dir, "to")
	sparse := make([]byte, 1<<20)
	copy(sparse[700_000:], "in the middle")
	write(t, filepath.Join(from, "store.json"), []byte("{}"))
	write(t, filepath.Join(from, "ballast"), make([]byte, 1000))
	write(t, filepath.Join(dir, "disk", "data", "1.seg"), sparse)
	if err := os.Mkdir(filepath.Join(from, "nodes"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("../../disk", filepath.Join(from, "nodes", "n01")); err != nil {
		t.Fatal(err)
	}
	if err := copyTree(from, to, 0); err != nil {
		t.Fatal(err)
	}
	if got := bytesOf(t, filepath.Join(to, "nodes", "n01", "data", "1.seg")); !bytes.Equal(got, sparse) {
		t.Error("a file behind a link is copied as other bytes")
	}
	if info, err := os.Lstat(filepath.Join(to, "nodes", "n01")); err != nil || !info.IsDir() {
		t.Errorf("the copy of a link is %v, %v: what is broken there would be the store's", info, err)
	}
	if _, err := os.Stat(filepath.Join(to, "ballast")); err == nil {
		t.Error("ballast is copied")
	}
	if err := os.Symlink("..", filepath.Join(dir, "disk", "loop")); err != nil {
		t.Fatal(err)
	}
	if err := copyTree(from, filepath.Join(dir, "again"), 0); err == nil {
		t.Error("a directory that holds itself is copied")
	}
}

func TestServedStoreIsNotCopied(t *testing.T) {
	dir := t.TempDir()
	if _, err := lockStore(dir); err == nil {
		t.Error("a directory that was never served is taken for a store")
	}
	write(t, filepath.Join(dir, "lock"), nil)
	first, err := lockStore(dir)
	if err != nil {
		t.Fatal(err)
	}
	if second, err := lockStore(dir); err == nil {
		second.Close()
		t.Error("a store is copied while somebody has it")
	}
	first.Close()
}

// TestRotFlipsSingleBits, each in a stretch of its own and none in zeros.
func TestRotFlipsSingleBits(t *testing.T) {
	path := filepath.Join(t.TempDir(), "f")
	was := make([]byte, 1<<20)
	rng := rand.New(rand.NewPCG(1, 2))
	for i := range was[:768<<10] { // the rest was never written
		was[i] = byte(1 + rng.IntN(255))
	}
	write(t, path, was)
	n, err := rot(rng, path, 64<<10)
	if err != nil {
		t.Fatal(err)
	}
	changed := 0
	for i, b := range bytesOf(t, path) {
		if d := b ^ was[i]; d != 0 {
			changed++
			if d&(d-1) != 0 || i >= 768<<10 {
				t.Errorf("byte %d is changed by %08b", i, d)
			}
		}
	}
	if changed != n || n != 12 {
		t.Errorf("%d bits are flipped, and %d said; want 12", changed, n)
	}
}

func TestFindAndOverwrite(t *testing.T) {
	path := filepath.Join(t.TempDir(), "f")
	const text = "where is it"
	for _, at := range []int{0, 1<<20 - 5, 1 << 20, 3<<20 - len(text), 3<<20 - 1} {
		b := bytes.Repeat([]byte("."), 3<<20)
		b = append(b[:at], text...)
		write(t, path, append(b, "the end"...))
		if got, err := find(path, text); err != nil || got != int64(at) {
			t.Errorf("at %d it is found at %d, %v", at, got, err)
		}
		if got, err := find(path, "there"); err != nil || got != -1 {
			t.Errorf("what is not there is found at %d, %v", got, err)
		}
		if err := overwrite(path, int64(at), int64(len(text))); err != nil {
			t.Fatal(err)
		}
		if got := bytesOf(t, path); !bytes.HasSuffix(got, append(make([]byte, len(text)), "the end"...)) || len(got) != at+len(text)+7 {
			t.Errorf("at %d overwritten it ends in %q", at, got[len(got)-30:])
		}
	}
}

// TestNamesOfScenarios: each is said once, and everything about it.
func TestNamesOfScenarios(t *testing.T) {
	seen := map[string]bool{}
	for _, s := range Scenarios() {
		if seen[s.Name] || s.Name == "" || strings.ContainsAny(s.Name, " ,") || s.Hazards == "" || s.Breaks == "" || s.Promise == "" || s.run == nil {
			t.Errorf("scenario %+v", s)
		}
		seen[s.Name] = true
	}
	if _, err := Find([]string{"rot", "nothing"}); err == nil {
		t.Error("a scenario that is not there is found")
	}
	if got, err := Find([]string{"rot", "kill"}); err != nil || len(got) != 2 || got[0].Name != "kill" {
		t.Errorf("found %v, %v", got, err)
	}
}
