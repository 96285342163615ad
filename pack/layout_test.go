package pack

import (
	"errors"
	"testing"

	"pgregory.net/rapid"

	"cairn/id"
)

func isClass(n int) bool {
	if n <= 1<<20 {
		return n >= 4096 && n&(n-1) == 0
	}
	return n%16384 == 0
}

func TestClassOf(t *testing.T) {
	for n, want := range map[int]int{0: 4096, 1: 4096, 4096: 4096, 4097: 8192, 524289: 1 << 20, 1 << 20: 1 << 20,
		1<<20 + 1: 1<<20 + 16384, 4 << 20: 4 << 20, 4<<20 + 1: 4<<20 + 16384} {
		if got := ClassOf(n); got != want {
			t.Errorf("class of %d is %d, want %d", n, got, want)
		}
	}
}

// Every class has a body that fills it exactly, although the table grows with
// the body, and every one is reached; nothing else is.
func TestEveryClassIsFilled(t *testing.T) {
	reached := map[int]bool{}
	for n := 4096; n <= MaxShardSize; n = ClassOf(n + 1) {
		if !isClass(n) {
			t.Fatalf("%d is no class", n)
		}
		h := Header{SliceLen: uint32(bodyIn(n))}
		if h.MetaCoded = true; h.ShardLen() != n {
			t.Fatalf("class %d: a body of %d bytes makes a shard of %d", n, bodyIn(n), h.ShardLen())
		}
		// The most that fits, and one more.
		l, err := Fit(bodyIn(n)-512, 100, 1)
		if err != nil {
			t.Fatal(err)
		}
		g := Header{K: 1, MetaCoded: l.MetaCoded, MetaLen: l.MetaLen, SliceLen: l.SliceLen}
		if l.MetaLen != 512 || g.ShardLen() != n {
			t.Fatalf("class %d: %+v makes a shard of %d", n, l, g.ShardLen())
		}
		reached[g.ShardLen()] = true
		l, err = Fit(bodyIn(n)-512+1, 100, 1)
		if n == MaxShardSize {
			if !errors.Is(err, ErrTooLarge) {
				t.Fatalf("beyond the longest shard: %v", err)
			}
			break
		}
		g = Header{K: 1, MetaCoded: l.MetaCoded, MetaLen: l.MetaLen, SliceLen: l.SliceLen}
		if err != nil || g.ShardLen() != ClassOf(n+1) {
			t.Fatalf("class %d: one byte more makes a shard of %d, %v", n, g.ShardLen(), err)
		}
	}
	if want := 9 + (MaxShardSize-1<<20)/16384; len(reached) != want {
		t.Errorf("%d classes, want %d", len(reached), want)
	}
}

func TestFitIsAlwaysAClassAndEnough(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		k := rapid.IntRange(1, MaxWidth).Draw(t, "k")
		payload := rapid.OneOf(rapid.IntRange(0, 100_000), rapid.IntRange(0, 64<<20)).Draw(t, "payload")
		meta := rapid.OneOf(rapid.IntRange(0, 17_000), rapid.IntRange(0, maxMeta)).Draw(t, "meta")
		l, err := Fit(payload, meta, k)
		if err != nil {
			if !errors.Is(err, ErrTooLarge) || payload+meta < k*(MaxShardSize-128<<10)-meta/4 {
				t.Fatalf("%d bytes and a meta of %d over %d: %v", payload, meta, k, err)
			}
			return
		}
		h := Header{K: uint8(k), MetaCoded: l.MetaCoded, MetaLen: l.MetaLen, SliceLen: l.SliceLen}
		room := h.streamLen() - h.codedMeta()
		if !isClass(h.ShardLen()) || room < payload || int(l.MetaLen) < meta+metaOverhead || l.MetaCoded != (l.MetaLen > MaxInlineMeta) {
			t.Fatalf("%+v: shards of %d, room for %d of %d", l, h.ShardLen(), room, payload)
		}
		// No smaller class would do.
		if n := h.ShardLen(); n > minClass {
			smaller := n / 2
			if n > StepClass {
				smaller = n - classStep
			}
			h.SliceLen -= uint32(h.BodyLen() - bodyIn(smaller))
			if int32(h.SliceLen) > 0 && h.streamLen()-h.codedMeta() >= payload {
				t.Fatalf("%+v fills %d, but %d would do", l, n, smaller)
			}
		}
		if l.MetaLen > 4096 && l.MetaLen%1024 != 0 || l.MetaLen%512 != 0 || float64(l.MetaLen) > 1.25*float64(meta+metaOverhead)+512 {
			t.Fatalf("a meta of %d padded to %d", meta, l.MetaLen)
		}
	})
}

// A pack ends with the last chunk that fits, wherever that is: what its shards are
// padded by is what a byte takes beyond the code.
func TestPaddingIsSmall(t *testing.T) {
	const k, meta = 4, 20 * 70
	payload, stored := 0, 0
	for n := 8 << 20; n <= Capacity(k, 20); n += 4099 {
		l, err := Fit(n, meta, k)
		if err != nil {
			t.Fatal(err)
		}
		h := Header{K: k, MetaCoded: l.MetaCoded, MetaLen: l.MetaLen, SliceLen: l.SliceLen}
		if waste := float64(k*h.ShardLen())/float64(n) - 1; waste > 0.01 {
			t.Fatalf("%d bytes take %d: %.4f beyond", n, k*h.ShardLen(), waste)
		}
		payload, stored = payload+n, stored+k*h.ShardLen()
	}
	if waste := float64(stored)/float64(payload) - 1; waste > 0.004 {
		t.Errorf("%.4f beyond what is stored", waste)
	}
}

func TestFullPacks(t *testing.T) {
	const maxChunk = 4<<20 - 64<<10 // the longest chunk; its seal adds a few dozen bytes
	if got := Capacity(1, 1); got < maxChunk+64 {
		t.Errorf("a pack of one shard takes %d bytes, a sealed chunk has up to %d", got, maxChunk+64)
	}
	for k := 1; k <= 16; k++ {
		want := 4 << 20
		if k > 4 {
			want = 16 << 20 / k / 16384 * 16384
		}
		for _, entries := range []int{0, 1, 4, 16, 64, 256, 1000} {
			capacity := Capacity(k, entries)
			meta := entryOverhead + entries*maxEntrySize
			l, err := Fit(capacity, meta, k)
			h := Header{K: uint8(k), MetaCoded: l.MetaCoded, MetaLen: l.MetaLen, SliceLen: l.SliceLen}
			if err != nil || h.ShardLen() != want {
				t.Errorf("k=%d, %d entries: %d bytes make shards of %d, %v; want %d", k, entries, capacity, h.ShardLen(), err, want)
			}
			undecided := entries == 256 // coded if every entry is long, else in every shard
			if l, _ := Fit(capacity+k, meta, k); l.SliceLen == h.SliceLen && !undecided {
				t.Errorf("k=%d, %d entries: %d bytes more fit as well", k, entries, k)
			}
			if h.streamLen() > StreamLen(k) {
				t.Errorf("k=%d: a stream of %d, StreamLen says %d", k, h.streamLen(), StreamLen(k))
			}
			if waste := float64(h.streamLen()-h.codedMeta()-capacity) / float64(k*want); waste > 0.005 && !undecided || waste > 0.016 {
				t.Errorf("k=%d, %d entries: %.4f of the pack is padding", k, entries, waste)
			}
		}
	}
	// With a directory of real entries the meta is no longer than reckoned.
	for k := 1; k <= 16; k++ {
		h := Header{MetaLen: uint32(sealedMetaLen(entryOverhead + 16*maxEntrySize))}
		all := k * fullClass(k)
		if waste := all - Capacity(k, 16); float64(waste) > 0.005*float64(all) {
			t.Errorf("k=%d: %d of %d bytes are head, meta of %d or padding", k, waste, all, h.MetaLen)
		}
	}
}

func TestCapacityKnowsTheDirectory(t *testing.T) {
	for _, n := range []int{0, 1, 20, 240, 300, 390, 1000, MaxEntries} {
		long, short := Meta{PayloadLen: 1<<32 - 1}, Meta{PayloadLen: 1 << 20}
		for i := range n {
			long.Entries = append(long.Entries, Entry{Info: Info{Realm: 1<<32 - 1, Chunk: id.Chunk{0xff}, Kind: 0xff, Epoch: maxEpoch, Compression: 0xff,
				PlainLen: 1<<32 - 1, SealedLen: 1 << 10}, Offset: 1<<24 + uint32(i)<<12})
			short.Entries = append(short.Entries, Entry{Info: Info{Realm: 1, Chunk: id.Chunk{1}, SealedLen: 1}, Offset: uint32(i)})
		}
		most, least := metaBytes(t, long), metaBytes(t, short)
		if len(most) > entryOverhead+n*maxEntrySize || len(least) < n*minEntrySize {
			t.Errorf("a directory of %d entries takes %d to %d bytes, reckoned %d to %d", n, len(least), len(most),
				n*minEntrySize, entryOverhead+n*maxEntrySize)
		}
		for k := 1; k <= 16; k++ {
			for _, enc := range [][]byte{most, least} {
				capacity := Capacity(k, n)
				if capacity < 0 {
					continue
				}
				l, err := Fit(capacity, len(enc), k)
				h := Header{K: uint8(k), MetaCoded: l.MetaCoded, MetaLen: l.MetaLen, SliceLen: l.SliceLen}
				if err != nil || h.ShardLen() > fullClass(k) || h.ShardLen() < fullClass(k) && n < 300 {
					t.Errorf("k=%d, %d entries in %d bytes: shards of %d, want %d; %v", k, n, len(enc), h.ShardLen(), fullClass(k), err)
				}
			}
		}
	}
}

func TestWhatAShardTellsIsCoarse(t *testing.T) {
	// Two packs whose payloads differ by less than what their class leaves open
	// have the same lengths everywhere outside the seal.
	for _, d := range []int{0, 1, 13, 1000} {
		a, _ := Fit(1_200_000, 700, 4)
		b, _ := Fit(1_200_000+d, 700+d/20, 4)
		if a != b {
			t.Errorf("%d bytes more show: %+v and %+v", d, a, b)
		}
	}
}
