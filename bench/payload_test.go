package bench

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"testing"
	"time"

	"cairn/seal"
)

func TestRandomIsSeeded(t *testing.T) {
	a, b := make([]byte, 1<<20), make([]byte, 1<<20)
	Random(a, 5)
	Random(b, 5)
	if !bytes.Equal(a, b) {
		t.Fatal("one seed gives two payloads")
	}
	// No word of eight bytes is met twice, in one payload or in two of seeds that
	// lie side by side: nothing can be deduplicated.
	seen := map[uint64]uint64{}
	for seed := range uint64(8) {
		Random(a, seed)
		for at := 0; at < len(a); at += 8 {
			w := binary.LittleEndian.Uint64(a[at:])
			if other, ok := seen[w]; ok {
				t.Fatalf("the word %x of seed %d is one of seed %d too", w, seed, other)
			}
			seen[w] = seed
		}
	}
}

func TestRandomFillsEveryLength(t *testing.T) {
	long := make([]byte, 64)
	Random(long, 9)
	for n := range len(long) {
		b := bytes.Repeat([]byte{0xaa}, n+1)
		Random(b[:n], 9)
		if !bytes.Equal(b[:n], long[:n]) {
			t.Errorf("%d bytes: %x, want %x", n, b[:n], long[:n])
		}
		if b[n] != 0xaa {
			t.Errorf("%d bytes: wrote behind the end", n)
		}
	}
}

func TestPayloadsCompressAsTheyShould(t *testing.T) {
	var z seal.Compressor
	b := make([]byte, 1<<20)
	Random(b, 1)
	if seal.Probe(b) {
		t.Error("the probe thinks that random bytes can be compressed")
	}
	for seed := range uint64(3) {
		Text(b, seed)
		out, ok := z.Compress(nil, b)
		if !ok || len(out) < len(b)/10 || len(out) > len(b)*2/3 {
			t.Errorf("text of seed %d: %d bytes of %d, worth it: %v; want a tenth to two thirds", seed, len(out), len(b), ok)
		}
		if i := bytes.IndexByte(b, 0); i >= 0 {
			t.Errorf("text of seed %d is not filled at byte %d", seed, i)
		}
	}
	other := make([]byte, len(b))
	Text(other, 9)
	if bytes.Equal(b[:1<<10], other[:1<<10]) {
		t.Error("two seeds give one text")
	}
	for n := range 200 {
		short := bytes.Repeat([]byte{0xaa}, n+1)
		Text(short[:n], 2)
		if !bytes.Equal(short[:n], b[:n]) || short[n] != 0xaa {
			t.Fatalf("%d bytes of text are not the beginning of more, or go beyond", n)
		}
	}
}

// A store that ran at the speed of the payload would measure the payload.
func TestRandomIsFasterThanAStore(t *testing.T) {
	if raceEnabled {
		t.Skip("the race detector is what would be measured")
	}
	b := make([]byte, 32<<20)
	Random(b, 1) // first touch
	best := time.Hour
	for range 5 {
		from := selfCPU()
		Random(b, 2)
		best = min(best, selfCPU()-from)
	}
	if rate := float64(len(b)) / best.Seconds() / 1e6; rate < 400 {
		t.Errorf("%.0f MB a CPU second, want at least 400", rate)
	}
}

func BenchmarkRandom(b *testing.B) {
	for _, n := range []int{4 << 10, 4 << 20} {
		b.Run(fmt.Sprintf("%dKiB", n>>10), func(b *testing.B) {
			buf := make([]byte, n)
			b.SetBytes(int64(n))
			b.ReportAllocs()
			for seed := uint64(0); b.Loop(); seed++ {
				Random(buf, seed)
			}
		})
	}
}
