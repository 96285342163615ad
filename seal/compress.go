package seal

import (
	"encoding/binary"
	"fmt"
	"math"
	"slices"
	"sync"

	"github.com/klauspost/compress/zstd"
)

// A compressed form is kept when it saves a 32nd, about 3 %: what is saved less
// than that does not pay for decompressing it at every read.
const leastSaving = 32

// Compressor compresses chunks with zstd at its fastest. Its zero value is ready.
type Compressor struct {
	encoders sync.Pool // of *zstd.Encoder
}

// Compress appends the compressed plaintext to dst and reports whether it is
// worth being kept; if not, dst is as it was and the plaintext is the body. dst
// is best given room for as many bytes as the plaintext has.
func (c *Compressor) Compress(dst, plain []byte) ([]byte, bool) {
	if !Probe(plain) {
		return dst, false
	}
	return c.Try(dst, plain)
}

// Try is Compress for a plaintext that was probed already.
func (c *Compressor) Try(dst, plain []byte) ([]byte, bool) {
	e, _ := c.encoders.Get().(*zstd.Encoder)
	if e == nil {
		var err error
		// One goroutine per call. GCM authenticates, so a checksum says nothing new.
		// Literals are entropy coded even where nothing matches, which this level
		// leaves out by itself: base64 and numbers would stay as they are. A window of
		// 1 MiB, the average chunk, makes an encoder of 2 MiB of one of 5, and the
		// longest chunk of a program 0.7 % longer.
		e, err = zstd.NewWriter(nil, zstd.WithEncoderLevel(zstd.SpeedFastest), zstd.WithEncoderConcurrency(1), zstd.WithEncoderCRC(false), zstd.WithAllLitEntropyCompression(true), zstd.WithLowerEncoderMem(true), zstd.WithWindowSize(1<<20))
		if err != nil {
			panic("seal: " + err.Error()) // only for options that contradict each other
		}
	}
	out := e.EncodeAll(plain, dst)
	c.encoders.Put(e)
	if len(out)-len(dst) > len(plain)-len(plain)/leastSaving {
		return dst, false
	}
	return out, true
}

// decoders are shared by all sealers. Each serves one call at a time.
var decoders = sync.Pool{New: func() any {
	d, err := zstd.NewReader(nil, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxMemory(MaxPlain),
		zstd.WithDecodeAllCapLimit(true), zstd.WithDecoderLowmem(true))
	if err != nil {
		panic("seal: " + err.Error()) // only for options that contradict each other
	}
	return d
}}

// decompress appends exactly n bytes to dst, or nothing. The decoder stops at
// the capacity it is given, so that a frame that would become longer costs no
// more than one that does not.
func decompress(dst, body []byte, n int) ([]byte, error) {
	at := len(dst)
	room := slices.Grow(dst, n)[: at : at+n]
	d := decoders.Get().(*zstd.Decoder)
	out, err := d.DecodeAll(body, room)
	decoders.Put(d)
	if err != nil {
		return dst, fmt.Errorf("decompress: %w", err)
	}
	if len(out)-at != n {
		return dst, fmt.Errorf("decompress: %d bytes, not %d", len(out)-at, n)
	}
	return out, nil
}

// Of a chunk the probe looks at probeBlocks blocks of probeBlock bytes.
const (
	probeBlocks = 8
	probeBlock  = 1024
)

// Probe predicts whether compressing saves enough to be worth trying. It looks
// at 8 KiB spread over the chunk, because trying costs many times as much and
// most large objects are pictures, films and archives, in which nothing is saved.
//
// A block counts for what an entropy coder would save, estimated from how often
// two of its bytes are equal (the collision entropy, which needs no logarithm
// per byte and, unlike Shannon's, is not biased by a small sample), or for what
// matches of four bytes would save, whichever is more. Repetitions farther apart
// than a block are not seen. Where the blocks lie does not depend on the bytes.
func Probe(plain []byte) bool {
	if len(plain) < 64 {
		return false // the frame alone costs a dozen bytes
	}
	n, size := probeBlocks, probeBlock
	if len(plain) < n*size {
		n = (len(plain) + size - 1) / size
		size = len(plain) / n
	}
	saving := 0.0
	gap := (len(plain) - n*size) / n // between blocks; half of it before the first
	for b := range n {
		at := b*(size+gap) + gap/2
		saving += blockSaving(plain[at : at+size])
		if saving*leastSaving >= float64(n) {
			return true
		}
	}
	return false
}

// blockSaving estimates which part of a block compression would save.
func blockSaving(b []byte) float64 {
	var count [256]uint16
	for _, x := range b {
		count[x]++
	}
	var squares uint64
	for _, c := range count {
		squares += uint64(c) * uint64(c)
	}
	n := float64(len(b))
	// Pairs of equal bytes over all pairs: an unbiased estimate of the sum of the
	// squared probabilities.
	p := (float64(squares) - n) / (n * (n - 1))
	saving := matchSaving(b)
	if p > 0 {
		saving = max(saving, 1+math.Log2(p)/8)
	}
	return saving
}

// matchSaving is the part of a block's bytes that repeat four bytes met before,
// at three quarters of their length: the rest is what naming them costs. Where
// nothing matches it looks at ever fewer places, as LZ4's fast compressor does: a
// step grows by one with each 32 misses in a row.
func matchSaving(b []byte) float64 {
	var last [probeBlock]uint16 // position + 1 of the last four bytes with that hash
	matched, misses := 0, 0
	for i := 0; i+4 <= len(b); {
		v := binary.LittleEndian.Uint32(b[i:])
		h := v * 2654435761 >> 22 & (probeBlock - 1)
		j := int(last[h]) - 1
		last[h] = uint16(i + 1)
		if j >= 0 && binary.LittleEndian.Uint32(b[j:]) == v {
			matched += 4
			i += 4
			misses = 0
			continue
		}
		i += 1 + misses>>5
		misses++
	}
	return 0.75 * float64(matched) / float64(len(b))
}
