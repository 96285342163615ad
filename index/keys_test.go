package index

import (
	"bytes"
	"cmp"
	"math"
	"testing"

	"pgregory.net/rapid"

	"cairn/id"
)

func TestEscapedKeysKeepTheirOrder(t *testing.T) {
	keys := newKeyspace(0)
	key := rapid.SliceOfN(rapid.SampledFrom([]byte{0, 0, 1, 2, 'a', 0xfe, 0xff, 0xff}), 1, 6)
	rapid.Check(t, func(t *rapid.T) {
		a, b := key.Draw(t, "a"), key.Draw(t, "b")
		v := id.Version{Seq: rapid.Uint64().Draw(t, "seq"), Pos: rapid.Uint32().Draw(t, "pos")}
		w := id.Version{Seq: rapid.SampledFrom([]uint64{0, v.Seq, v.Seq + 1}).Draw(t, "other seq"), Pos: rapid.Uint32().Draw(t, "other pos")}
		want := bytes.Compare(a, b)
		for _, ka := range [][]byte{keys.object(nil, 7, a), keys.older(nil, 7, a, v), keys.behind(nil, 7, a)} {
			for _, kb := range [][]byte{keys.object(nil, 7, b), keys.older(nil, 7, b, w), keys.behind(nil, 7, b)} {
				if want != 0 && bytes.Compare(ka, kb) != want {
					t.Fatalf("%x, %x compare as %d, their rows %x, %x do not", a, b, want, ka, kb)
				}
			}
		}
		if !bytes.HasPrefix(b, a) == bytes.HasPrefix(appendEscaped(nil, b), appendEscaped(nil, a)) {
			t.Fatalf("%x begins with %x, or their escaped forms do, and not both", b, a)
		}
		// Newest first, the current one before all.
		if got := bytes.Compare(keys.older(nil, 7, a, v), keys.older(nil, 7, a, w)); got != -v.Compare(w) {
			t.Fatalf("versions %v, %v sort as %d", v, w, got)
		}
		if bytes.Compare(keys.object(nil, 7, a), keys.older(nil, 7, a, v)) >= 0 || bytes.Compare(keys.older(nil, 7, a, v), keys.behind(nil, 7, a)) >= 0 {
			t.Fatalf("%x: the current version, older ones and what is behind are out of order", a)
		}
		got, rest, ok := parseEscaped(nil, keys.older(nil, 7, a, v)[len(keys.objects(nil, 7)):])
		if !ok || !bytes.Equal(got, a) || len(rest) != versionLen || parseVersion(rest) != v {
			t.Fatalf("%x at %v reads back as %x, %x", a, v, got, rest)
		}
	})
}

func TestOrderedNumbers(t *testing.T) {
	edge := rapid.SampledFrom([]uint64{0, 1, 0xf6, 0xf7, 0xf8, 0xf9, 0xff, 0x100, 0xffff, 0x10000, math.MaxUint32, math.MaxUint64})
	rapid.Check(t, func(t *rapid.T) {
		n := rapid.OneOf(edge, rapid.Uint64())
		a, b := n.Draw(t, "a"), n.Draw(t, "b")
		ka, kb := appendOrdered(nil, a), appendOrdered(nil, b)
		if bytes.Compare(append(ka, 0xff), append(kb, 0)) != cmp.Compare(a, b) && a != b {
			t.Fatalf("%d, %d are %x, %x", a, b, ka, kb)
		}
		if got, rest, ok := parseOrdered(append(ka, 9)); !ok || got != a || len(rest) != 1 {
			t.Fatalf("%d, as %x, reads back as %d, %x, %v", a, ka, got, rest, ok)
		}
	})
}

func FuzzOrdered(f *testing.F) {
	f.Add([]byte{0xf8, 0x05})
	f.Add([]byte{0xf9, 0x00, 0xff})
	f.Fuzz(func(t *testing.T, b []byte) {
		v, rest, ok := parseOrdered(b)
		if ok && !bytes.Equal(appendOrdered(nil, v), b[:len(b)-len(rest)]) {
			t.Errorf("two forms of %d: %x", v, b)
		}
	})
}

func FuzzEscaped(f *testing.F) {
	f.Add([]byte("a\x00\xffb\x00\x01rest"))
	f.Fuzz(func(t *testing.T, b []byte) {
		key, rest, ok := parseEscaped(nil, b)
		if ok && !bytes.Equal(append(append(appendEscaped(nil, key), 0, 1), rest...), b) {
			t.Errorf("two forms of %x: %x", key, b)
		}
	})
}
