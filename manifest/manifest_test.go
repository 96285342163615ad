package manifest

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"slices"
	"testing"

	"pgregory.net/rapid"

	"cairn/id"
)

// lists keeps list chunks by a hash of their encoding, as the store does.
type lists map[id.Chunk][]byte

func (l lists) store(depth uint8, refs []Ref) (id.Chunk, error) {
	b := AppendList(nil, depth, refs)
	for _, r := range refs {
		if r.IsList() && l[r.Chunk] == nil {
			return id.Chunk{}, errors.New("a list before its child")
		}
	}
	c := id.Chunk(sha256.Sum256(b))
	l[c] = b
	return c, nil
}

// leaves walks the tree and returns the data references in order.
func (l lists) leaves(t *rapid.T, refs []Ref) []Ref {
	var out []Ref
	for _, r := range refs {
		if !r.IsList() {
			out = append(out, r)
			continue
		}
		children, err := ParseList(nil, r, l[r.Chunk])
		if err != nil {
			t.Fatalf("list %v: %v", r.Chunk, err)
		}
		out = append(out, l.leaves(t, children)...)
	}
	return out
}

func TestTreeKeepsEveryChunkInOrder(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		n := rapid.OneOf(rapid.IntRange(0, 40), rapid.IntRange(1000, 2100), rapid.SampledFrom([]int{16, 17, 1023, 1024, 1025, 1024*16 + 1})).Draw(t, "chunks")
		l := lists{}
		b := Builder{Store: l.store}
		var want []Ref
		var size uint64
		for i := range n {
			r := Ref{Len: uint64(i%7 + 1)}
			binary.BigEndian.PutUint64(r.Chunk[:], uint64(i)+1)
			want, size = append(want, r), size+r.Len
			if err := b.Add(r.Chunk, r.Len); err != nil {
				t.Fatal(err)
			}
		}
		m, err := b.Finish()
		if err != nil {
			t.Fatal(err)
		}
		if err := m.Check(); err != nil {
			t.Fatal(err)
		}
		if m.Size != size {
			t.Fatalf("size %d, want %d", m.Size, size)
		}
		if got := l.leaves(t, m.Roots); !slices.Equal(got, want) {
			t.Fatalf("%d chunks come back as %d others", len(want), len(got))
		}
		if n > 64 && len(l) > n/512+3 {
			t.Fatalf("%d chunks made %d lists", n, len(l))
		}
	})
}

// TestJoinedManifestsKeepEveryChunkInOrder: manifests of any sizes, one behind the
// other, are one manifest with the chunks of all.
func TestJoinedManifestsKeepEveryChunkInOrder(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		l := lists{}
		joined := Builder{Store: l.store}
		var want []Ref
		parts := rapid.IntRange(0, 40).Draw(t, "parts")
		for p := range parts {
			n := rapid.OneOf(rapid.IntRange(0, 20), rapid.SampledFrom([]int{1, 16, 17, 1024, 1025, 3000})).Draw(t, "chunks")
			b := Builder{Store: l.store}
			for i := range n {
				r := Ref{Len: uint64(i%7 + 1)}
				binary.BigEndian.PutUint32(r.Chunk[:], uint32(p)+1)
				binary.BigEndian.PutUint32(r.Chunk[4:], uint32(i))
				want = append(want, r)
				if err := b.Add(r.Chunk, r.Len); err != nil {
					t.Fatal(err)
				}
			}
			m, err := b.Finish()
			if err != nil {
				t.Fatal(err)
			}
			if err := joined.AddRefs(m.Roots); err != nil {
				t.Fatal(err)
			}
		}
		m, err := joined.Finish()
		if err != nil {
			t.Fatal(err)
		}
		if err := m.Check(); err != nil {
			t.Fatal(err)
		}
		if got := l.leaves(t, m.Roots); !slices.Equal(got, want) || m.Size != Size(want) {
			t.Fatalf("%d chunks of %d bytes come back as %d of %d", len(want), Size(want), len(got), m.Size)
		}
	})
}

func TestBuilderHoldsOneListPerLevel(t *testing.T) {
	var peak int
	var b Builder
	b.Store = func(depth uint8, refs []Ref) (id.Chunk, error) {
		held := 0
		for _, l := range b.levels {
			held += len(l)
		}
		peak = max(peak, held)
		return id.Chunk{1}, nil
	}
	for range 3 * MaxChildren * MaxChildren {
		if err := b.Add(id.Chunk{2}, 1); err != nil {
			t.Fatal(err)
		}
	}
	if peak > 3*MaxChildren { // three levels are in use
		t.Errorf("%d references held at once, want at most %d", peak, 3*MaxChildren)
	}
}

func FuzzParseList(f *testing.F) {
	f.Add(uint8(1), uint64(3), AppendList(nil, 1, []Ref{{Chunk: id.Chunk{1}, Len: 1}, {Chunk: id.Chunk{2}, Len: 2}}))
	f.Add(uint8(2), uint64(9), AppendList(nil, 2, []Ref{{Chunk: id.Chunk{1}, Depth: 1, Len: 9}}))
	f.Fuzz(func(t *testing.T, depth uint8, size uint64, b []byte) {
		refs, err := ParseList(nil, Ref{Depth: depth, Len: size}, b)
		if err != nil {
			if !errors.Is(err, ErrSyntax) && (!errors.Is(err, ErrNewer) || b[0] < 2) {
				t.Fatalf("error %v is no ErrSyntax", err)
			}
			return
		}
		if got := AppendList(nil, depth, refs); !bytes.Equal(got, b) {
			t.Fatalf("two encodings of one list: %x and %x", got, b)
		}
		if Size(refs) != size {
			t.Fatalf("%d bytes below, want %d", Size(refs), size)
		}
	})
}
