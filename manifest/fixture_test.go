package manifest

import (
	"encoding/hex"
	"errors"
	"os"
	"slices"
	"strings"
	"testing"

	"cairn/id"
)

// TestListsOfVersion1: what version 1 wrote, a line each, is read and written in the
// same bytes. A later version is refused as that, an earlier one never was.
func TestListsOfVersion1(t *testing.T) {
	lists := [][]Ref{
		{{Chunk: id.Chunk{1, 2, 3}, Len: 1}},
		{{Chunk: id.Chunk{4}, Len: 1 << 20}, {Chunk: id.Chunk{5}, Len: 4128768}, {Chunk: id.Chunk{4}, Len: 1 << 20}},
		{{Chunk: id.Chunk{0xff}, Depth: 3, Len: 1 << 60}, {Chunk: id.Chunk{0xfe}, Depth: 3, Len: 77}},
	}
	text, err := os.ReadFile("testdata/list-v1.txt")
	if err != nil {
		t.Fatal(err)
	}
	lines := strings.Fields(string(text))
	if len(lines) != len(lists) {
		t.Fatalf("%d lines, want %d", len(lines), len(lists))
	}
	for i, refs := range lists {
		depth := refs[0].Depth + 1
		if got := hex.EncodeToString(AppendList(nil, depth, refs)); got != lines[i] {
			t.Errorf("list %d is written as\n%s, version 1 wrote\n%s", i, got, lines[i])
		}
		b, err := hex.DecodeString(lines[i])
		if err != nil {
			t.Fatal(err)
		}
		parent := Ref{Depth: depth, Len: Size(refs)}
		if got, err := ParseList(nil, parent, b); err != nil || !slices.Equal(got, refs) {
			t.Errorf("list %d is read as %v, %v", i, got, err)
		}
		for version, newer := range map[byte]bool{0: false, 2: true, 255: true} {
			b[0] = version
			if _, err := ParseList(nil, parent, b); err == nil || errors.Is(err, id.ErrNewer) != newer || errors.Is(err, ErrSyntax) == newer {
				t.Errorf("list %d as version %d: %v", i, version, err)
			}
		}
	}
}
