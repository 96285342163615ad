package pack

import (
	"errors"
	"fmt"
	"math/bits"
)

const (
	// StepClass is where size classes become fine: above it they are multiples of 16 KiB,
	// below powers of two.
	StepClass = 1 << 20

	minClass  = 4 << 10  // the smallest size class
	classStep = 16 << 10 // 64 KiB once; readers take any length
	fullShard = 4 << 20  // a shard of a full data pack with k' <= 4
	fullPack  = 16 << 20 // all data shards together of a full data pack with k' > 4

	// metaGrain is the finest step of a sealed meta's length; above 4 KiB the
	// step is an eighth of the next power of two.
	metaGrain = 512
)

// ErrTooLarge says that no shard is long enough for what should go into it.
var ErrTooLarge = errors.New("pack: too large")

// ClassOf is the smallest size class that n bytes fit into: a power of two from
// 4 KiB to 1 MiB, above that a multiple of 16 KiB. Every shard is exactly a
// class long.
func ClassOf(n int) int {
	switch {
	case n <= minClass:
		return minClass
	case n <= StepClass:
		return 1 << bits.Len(uint(n-1))
	}
	return (n + classStep - 1) / classStep * classStep
}

// Layout is how a pack is cut: what the header says of lengths.
type Layout struct {
	MetaCoded         bool
	MetaLen, SliceLen uint32
}

// Fit finds the layout for a payload and an encoded meta of the given lengths
// in bytes, over k data shards: the smallest size class that holds them. It
// depends on nothing else, so that what a header says tells nothing finer than
// its class. More than fits into the longest shard is [ErrTooLarge].
func Fit(payload, meta, k int) (Layout, error) {
	if k < 1 || k > MaxWidth || payload < 0 || meta < 0 {
		return Layout{}, fmt.Errorf("pack: no layout for %d bytes and a meta of %d over %d shards", payload, meta, k)
	}
	if payload > k*MaxShardSize || meta > maxMeta {
		return Layout{}, fmt.Errorf("%w: %d bytes and a meta of %d over %d shards", ErrTooLarge, payload, meta, k)
	}
	h := Header{MetaLen: uint32(sealedMetaLen(meta))}
	h.MetaCoded = h.MetaLen > MaxInlineMeta
	stream := payload
	if h.MetaCoded {
		stream += int(h.MetaLen)
	}
	h.SliceLen = uint32(max(1, (stream+k-1)/k))
	class := ClassOf(h.ShardLen())
	if class > MaxShardSize {
		return Layout{}, fmt.Errorf("%w: %d bytes and a meta of %d over %d shards", ErrTooLarge, payload, meta, k)
	}
	h.SliceLen += uint32(bodyIn(class) - h.BodyLen())
	if h.ShardLen() != class {
		panic(fmt.Sprintf("pack: a shard of %d bytes, want the class %d", h.ShardLen(), class))
	}
	return Layout{MetaCoded: h.MetaCoded, MetaLen: h.MetaLen, SliceLen: h.SliceLen}, nil
}

// bodyIn is the length of the body of a shard of n bytes. Every class has an
// exact one, see TestEveryClassIsFilled: n = HeaderSize + 4 + body + 4 a block.
func bodyIn(n int) int {
	n -= HeaderSize + 4
	blocks := (n + BlockSize + 3) / (BlockSize + 4)
	return n - 4*blocks
}

// sealedMetaLen is the length of the sealed form of an encoded meta of n bytes:
// nonce, length, meta and padding up to a coarse step. The tag is not among
// them, it stands in the header.
func sealedMetaLen(n int) int {
	n += metaOverhead
	grain := metaGrain
	if n > 8*metaGrain {
		grain = 1 << (bits.Len(uint(n-1)) - 3)
	}
	return (n + grain - 1) / grain * grain
}

// StreamLen is the length in bytes of the coded stream of a data pack that
// [Capacity] calls full, and so of the buffer that holds its payload and what
// [Encode] adds to it.
func StreamLen(k int) int { return k * bodyIn(fullClass(k)) }

// fullClass is the length of each shard of a full data pack: 4 MiB up to k = 4,
// then 16 MiB/k rounded down to a class.
func fullClass(k int) int {
	if k <= 4 {
		return fullShard
	}
	n := max(fullPack/k, minClass)
	if n < StepClass {
		return 1 << (bits.Len(uint(n)) - 1)
	}
	return n / classStep * classStep
}

// Capacity is how many bytes of payload in the given number of sealed chunks a
// full data pack of k data shards holds beside its directory. Its shards are
// exactly 4 MiB long each for k <= 4, above that the largest class within
// 16 MiB/k. It is negative when the directory alone does not fit.
//
// A directory's length is not known before its entries are. Capacity reckons
// with the longest, and where that would be coded and a shorter one would be
// copied into every shard, with whichever takes more: a directory of 240 to 390
// entries may leave up to 16 KiB a shard unused.
func Capacity(k, entries int) int {
	meta := sealedMetaLen(entryOverhead + entries*maxEntrySize)
	body := bodyIn(fullClass(k))
	capacity := k * (body - min(meta, MaxInlineMeta))
	if meta > MaxInlineMeta {
		coded := k*body - meta
		if sealedMetaLen(entries*minEntrySize) > MaxInlineMeta {
			return coded
		}
		capacity = min(capacity, coded)
	}
	return capacity
}
