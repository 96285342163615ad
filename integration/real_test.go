package integration

import (
	"archive/tar"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// sourceTar writes the tree of Go's own sources as a tar. In the second version
// a few files all over the tree have a line more, new ones stand among the old,
// and in one directory every file was changed.
func sourceTar(t *testing.T, root, to string, second bool) (size int64) {
	t.Helper()
	f, err := os.Create(to)
	if err != nil {
		t.Fatal(err)
	}
	w := tar.NewWriter(f)
	add := func(name string, b []byte) error {
		if err := w.WriteHeader(&tar.Header{Name: name, Size: int64(len(b)), Mode: 0o644, Format: tar.FormatPAX}); err != nil {
			return err
		}
		_, err := w.Write(b)
		return err
	}
	n := 0
	err = filepath.WalkDir(root, func(p string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		rel, err := filepath.Rel(root, p)
		if err != nil {
			return err
		}
		b, err := os.ReadFile(p)
		if err != nil {
			return err
		}
		if n++; second && (n%1000 == 0 || strings.HasPrefix(rel, "encoding/json/")) {
			b = append([]byte("// A line that was not here before.\n"), b...)
		}
		if err := add(rel, b); err != nil {
			return err
		}
		if second && n%1500 == 0 {
			return add(rel+".new", fmt.Appendf(nil, "// File %d of the second version.\n", n))
		}
		return nil
	})
	if err = errors.Join(err, w.Close()); err != nil {
		t.Fatal(err)
	}
	if size, err = f.Seek(0, io.SeekCurrent); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	return size
}

func fileSum(t *testing.T, name string) (sum [32]byte) {
	t.Helper()
	f, err := os.Open(name)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		t.Fatal(err)
	}
	return [32]byte(h.Sum(nil))
}

// TestRealInput stores two versions of a real source tree and a random file
// through the command line, accounts for the bytes, loses two nodes and compares
// every file, repairs, loses two others and compares again.
func TestRealInput(t *testing.T) {
	rng := newRand(t)
	r := newRig(t)
	out, err := exec.Command("go", "env", "GOROOT").Output()
	if err != nil {
		t.Fatal(err)
	}
	src := filepath.Join(strings.TrimSpace(string(out)), "src")
	one, two, random := filepath.Join(r.base, "one.tar"), filepath.Join(r.base, "two.tar"), filepath.Join(r.base, "random")
	sizes := map[string]int64{one: sourceTar(t, src, one, false), two: sourceTar(t, src, two, true)}
	sizes[random] = int64(rounds(32, 256, 2048)) << 20
	f, err := os.Create(random)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.CopyN(f, rand.NewChaCha8([32]byte{1: byte(rng.Uint32())}), sizes[random]); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}

	s := r.start()
	put := func(name, key string) {
		t.Helper()
		begin := time.Now()
		r.must("put", name, "main/"+key)
		took := time.Since(begin)
		t.Logf("put %s: %s in %v, %.0f MB/s", key, mib(sizes[name]), took.Round(time.Millisecond), float64(sizes[name])/1e6/took.Seconds())
	}
	tell := func(what string, u map[string]uint64) {
		t.Logf("df %s: logical %s, unique %s, compressed %s, parity %s, padding %s, free in segments %s, physical %s", what,
			mib(int64(u["logical_bytes"])), mib(int64(u["unique_bytes"])), mib(int64(u["compressed_bytes"])), mib(int64(u["parity_bytes"])),
			mib(int64(u["padding_bytes"])), mib(int64(u["free_in_segments_bytes"])), mib(int64(u["physical_bytes"])))
	}
	put(one, "one.tar")
	u1 := s.usage(t)
	tell("with one tar", u1)
	put(two, "two.tar")
	u2 := s.usage(t)
	tell("with both", u2)
	put(random, "random")
	u3 := s.usage(t)
	tell("with the random file", u3)

	if got, want := u1["logical_bytes"], uint64(sizes[one]); got != want {
		t.Errorf("logical bytes of one tar: %d, want %d", got, want)
	}
	if got, want := u3["logical_bytes"], uint64(sizes[one]+sizes[two]+sizes[random]); got != want {
		t.Errorf("logical bytes: %d, want %d", got, want)
	}
	// List chunks count as unique bytes: about 50 bytes for each chunk.
	const lists = 1 << 20
	if u1["unique_bytes"] > u1["logical_bytes"]+lists || u1["compressed_bytes"] > u1["unique_bytes"]/2 {
		t.Errorf("Go's sources: %d logical, %d unique, %d compressed bytes; they should compress to less than half", u1["logical_bytes"], u1["unique_bytes"], u1["compressed_bytes"])
	}
	added := u3["unique_bytes"] - u2["unique_bytes"]
	if want := uint64(sizes[random]); added < want || added > want+lists {
		t.Errorf("%d random bytes added %d unique ones", want, added)
	}
	if added := u2["unique_bytes"] - u1["unique_bytes"]; added > uint64(sizes[two])/3 {
		t.Errorf("the second version of the tree added %d unique bytes of %d", added, sizes[two])
	}
	// Sealed random bytes are a little longer, and coded 4+2.
	if got, least, most := inNodes(u3)-inNodes(u2), uint64(sizes[random])*3/2, uint64(sizes[random])*8/5+8<<20; got < least || got > most {
		t.Errorf("%d random bytes take %d on disk, want between %d and %d", sizes[random], got, least, most)
	}

	// A file put again adds nothing but a version's row, and a few words of its upload.
	put(random, "random-again")
	if u := s.usage(t); u["unique_bytes"] > u3["unique_bytes"]+1024 || u["compressed_bytes"] > u3["compressed_bytes"]+1024 {
		t.Errorf("the same file again: unique %d, compressed %d bytes, before %d, %d", u["unique_bytes"], u["compressed_bytes"], u3["unique_bytes"], u3["compressed_bytes"])
	}

	victims := pick(rng, nodeNames(), 2)
	for _, v := range victims {
		empty(t, r.node(v))
	}
	back := filepath.Join(r.base, "back")
	compare := func(when string) {
		t.Helper()
		for name, key := range map[string]string{one: "one.tar", two: "two.tar", random: "random"} {
			begin := time.Now()
			r.must("get", "main/"+key, back)
			took := time.Since(begin)
			t.Logf("get %s %s: %.0f MB/s", key, when, float64(sizes[name])/1e6/took.Seconds())
			if fileSum(t, back) != fileSum(t, name) {
				t.Errorf("%s: %s read back is not what was put", when, key)
			}
			if err := os.Remove(back); err != nil {
				t.Fatal(err)
			}
		}
	}
	compare("with two nodes lost")
	t.Logf("repair took %v", r.replaceAndHeal(victims...).Round(time.Millisecond))
	other := pick(rng, nodeNames(), 2)
	for _, v := range other {
		empty(t, r.node(v))
	}
	compare("with two others lost after the repair")
	r.replaceAndHeal(other...)
	s.stop()
	r.verify()
}
