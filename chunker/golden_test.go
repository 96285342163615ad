package chunker

import (
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/zeebo/blake3"
)

// vectorStream is the stream of the test vectors in docs/formats/chunking.md.
func vectorStream(n int) []byte {
	b := make([]byte, n)
	blake3.DeriveKey("cairn 2026-11-24 chunker test stream v1", testKey[:], b)
	return b
}

// vectors writes the test vectors as testdata/cuts.v1.txt has them.
func vectors(t *testing.T) string {
	var out strings.Builder
	for i, w := range testGear.table() {
		fmt.Fprintf(&out, "table %d %016x\n", i, w)
	}
	v := vectorStream(19 << 20)
	long := slices.Concat(v[:16<<20], make([]byte, 5<<20), v[16<<20:])
	for _, s := range []struct {
		Params
		data []byte
	}{{tiny, v[:4096]}, {Fine(), long}, {Default(), long}} {
		fmt.Fprintf(&out, "cut %d bytes by %d %d %d\n", len(s.data), s.Min, s.Avg, s.Max)
		for _, n := range lengths(newCutter(t, testGear, s.Params), s.data) {
			fmt.Fprintln(&out, n)
		}
	}
	return out.String()
}

// The cuts of a key never change: data stored by an older version would not be
// found again. The file is kept for good and was made by another implementation,
// written from docs/formats/chunking.md; other cuts, if they must be, are another
// version with a file of its own.
func TestCutsOfVersion1(t *testing.T) {
	file, err := os.ReadFile("testdata/cuts.v1.txt")
	if err != nil {
		t.Fatal(err)
	}
	got, want := strings.Split(vectors(t), "\n"), strings.Split(string(file), "\n")
	if slices.Equal(got, want) {
		return
	}
	for i := range min(len(got), len(want)) {
		if got[i] != want[i] {
			t.Fatalf("line %d: %q, want %q", i+1, got[i], want[i])
		}
	}
	t.Fatalf("%d lines, want %d", len(got), len(want))
}
