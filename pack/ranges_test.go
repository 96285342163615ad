package pack

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"slices"
	"testing"

	"pgregory.net/rapid"
)

// shardBytes is the whole shard in one piece, as a node has it.
func shardBytes(s Shard) []byte { return append(bytes.Clone(s.Head), s.Slice...) }

func TestRangesHoldTheBytes(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		s := drawInput(t)
		c := testCoder(1)
		e := encode(t, c, s.in)
		h := e.Header
		off := rapid.IntRange(0, len(s.payload)).Draw(t, "off")
		n := rapid.IntRange(0, len(s.payload)-off).Draw(t, "len")
		rs, err := h.Ranges(nil, uint32(off), uint32(n))
		if err != nil {
			t.Fatal(err)
		}
		var got, degraded []byte
		r := rand.New(rand.NewPCG(rapid.Uint64().Draw(t, "lost"), 0))
		for i, x := range rs {
			shard := shardBytes(e.Shards[x.Shard])
			got = append(got, shard[x.Off:x.End()]...)
			if i > 0 && (x.Shard != rs[i-1].Shard+1 || x.Off != h.SliceOffset()) {
				t.Fatalf("%v after %v", x, rs[i-1])
			}
			// Rounded: whole blocks around it, never header or table.
			w := h.Round(x)
			if w.Off > x.Off || w.End() < x.End() || (w.Off-h.BodyOffset())%BlockSize != 0 ||
				(w.Len%BlockSize != 0 && w.End() != h.ShardLen()) || w.Off < h.BodyOffset() || w.End() > h.ShardLen() || w.Len >= x.Len+2*BlockSize {
				t.Fatalf("%v rounds to %v", x, w)
			}
			// The same range of k' others gives it back.
			if h.M == 0 {
				continue
			}
			pieces := make([][]byte, len(e.Shards))
			others := slices.DeleteFunc(r.Perm(len(e.Shards)), func(i int) bool { return i == int(x.Shard) })
			for _, i := range others[:h.K] {
				pieces[i] = shardBytes(e.Shards[i])[x.Off:x.End()]
			}
			if r.IntN(2) == 0 { // what is there of the shard itself is not looked at
				pieces[x.Shard] = make([]byte, x.Len)
			}
			dst := bytes.Repeat([]byte{0xbb}, x.Len)
			if err := c.Recover(h, x, pieces, dst); err != nil {
				t.Fatal(err)
			}
			degraded = append(degraded, dst...)
			pieces[others[0]] = nil
			if err := c.Recover(h, x, pieces, dst); !errors.Is(err, ErrShort) {
				t.Fatalf("from one piece fewer: %v", err)
			}
		}
		want := s.payload[off : off+n]
		if !bytes.Equal(got, want) || h.M > 0 && !bytes.Equal(degraded, want) {
			t.Fatalf("bytes %d to %d: ranges %v hold something else", off, off+n, rs)
		}
	})
}

func TestMetaRangesHoldTheMeta(t *testing.T) {
	c := testCoder(1)
	r := rand.New(rand.NewPCG(1, 1))
	for _, batch := range []int{10, 6000, 60000} {
		e := encode(t, c, Input{Header: logHeader(7, 2), Meta: Meta{Log: logMeta(r, 4, batch)}, Payload: noise(1, 100)})
		for i := range e.Shards {
			h := e.Header
			h.Index = uint8(i)
			var sealed []byte
			for _, x := range h.MetaRanges(nil) {
				sealed = append(sealed, shardBytes(e.Shards[x.Shard])[x.Off:x.End()]...)
			}
			if _, err := c.OpenMeta(h, sealed); err != nil {
				t.Errorf("batches of %d, by shard %d: %v", batch, i, err)
			}
		}
	}
}

func TestRangesOutside(t *testing.T) {
	h := Header{K: 2, SliceLen: 100, MetaLen: 50, MetaCoded: true}
	for _, c := range [][2]uint32{{0, 151}, {151, 0}, {150, 1}, {1<<32 - 1, 1<<32 - 1}} {
		if rs, err := h.Ranges(nil, c[0], c[1]); !errors.Is(err, ErrDamaged) {
			t.Errorf("%d bytes at %d: %v, %v", c[1], c[0], rs, err)
		}
	}
	if rs, err := h.Ranges(nil, 0, 150); err != nil || len(rs) != 2 {
		t.Errorf("all of it: %v, %v", rs, err)
	}
	c := testCoder(1)
	for _, r := range []Range{{Shard: 2, Off: h.SliceOffset(), Len: 10}, {Shard: 0, Off: h.SliceOffset() - 1, Len: 10}, {Shard: 0, Off: h.SliceOffset() + 91, Len: 10}} {
		p := make([]byte, 10)
		if err := c.Recover(h, r, [][]byte{p, p, p}, p); err == nil {
			t.Errorf("%v was recovered", r)
		}
	}
}

func TestMerge(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		gap := rapid.IntRange(0, 5).Draw(t, "gap")
		var in []Range
		want := map[[2]int]bool{} // every byte
		for range rapid.IntRange(0, 12).Draw(t, "n") {
			r := Range{Shard: rapid.Uint8Range(0, 2).Draw(t, "shard"), Off: rapid.IntRange(0, 80).Draw(t, "off"), Len: rapid.IntRange(1, 12).Draw(t, "len")}
			in = append(in, r)
			for i := range r.Len {
				want[[2]int{int(r.Shard), r.Off + i}] = true
			}
		}
		out := Merge(slices.Clone(in), gap)
		bytes := 0
		for i, r := range out {
			bytes += r.Len
			if i > 0 && r.Shard == out[i-1].Shard && r.Off <= out[i-1].End()+gap || i > 0 && r.Shard < out[i-1].Shard {
				t.Fatalf("%v merges to %v", in, out)
			}
		}
		covered := 0
		for b := range want {
			if !slices.ContainsFunc(out, func(r Range) bool { return int(r.Shard) == b[0] && r.Off <= b[1] && b[1] < r.End() }) {
				t.Fatalf("%v merges to %v: byte %v is lost", in, out, b)
			}
			covered++
		}
		if gap == 0 && bytes != covered {
			t.Fatalf("%v merges to %v: %d bytes, want %d", in, out, bytes, covered)
		}
	})
}
