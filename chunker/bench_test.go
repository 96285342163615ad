package chunker

import (
	"testing"
)

// What the benchmarks cut: data that does not compress, the longest chunks with
// no match in them, and data with few different bytes.
var benchData = []struct {
	name string
	make func(n int) []byte
}{
	{"random", func(n int) []byte { return random(1, n) }},
	// Written, not just allocated: pages that were never written are all the same
	// page of memory, which no data of a user is.
	{"zeros", func(n int) []byte { return pattern([]byte{0}, n) }},
	{"text", func(n int) []byte { return text(1, n) }},
}

var benchParams = []struct {
	name string
	Params
}{{"default", Default()}, {"fine", Fine()}}

// BenchmarkCut cuts 32 MiB that lie in memory.
func BenchmarkCut(b *testing.B) {
	for _, p := range benchParams {
		c := newCutter(b, testGear, p.Params)
		for _, d := range benchData {
			data := d.make(32 << 20)
			b.Run(p.name+"/"+d.name, func(b *testing.B) {
				b.SetBytes(int64(len(data)))
				b.ReportAllocs()
				for b.Loop() {
					for rest := data; len(rest) > 0; {
						rest = rest[c.Cut(rest, true):]
					}
				}
			})
		}
	}
}

// BenchmarkNext cuts a stream, one chunk of the average length for each round:
// reading it costs a copy, of which a byte past a cut needs another one.
func BenchmarkNext(b *testing.B) {
	for _, p := range benchParams {
		c := newCutter(b, testGear, p.Params)
		for _, d := range benchData {
			r := &endless{data: d.make(32 << 20)}
			k := New(r, c, nil)
			b.Run(p.name+"/"+d.name, func(b *testing.B) {
				b.SetBytes(int64(p.Avg))
				b.ReportAllocs()
				done := 0
				for round := 1; b.Loop(); round++ {
					for done < round*p.Avg {
						chunk, err := k.Next()
						if err != nil {
							b.Fatal(err)
						}
						done += len(chunk)
					}
				}
			})
		}
	}
}

// BenchmarkScan walks through data without a match: the lanes, and the plain loop
// that they replace.
func BenchmarkScan(b *testing.B) {
	data := random(1, 4<<20)
	t := testGear.table()
	for name, walk := range map[string]func([]byte, int, int, uint64) int{"lanes": t.first, "plain": t.scan} {
		b.Run(name, func(b *testing.B) {
			b.SetBytes(int64(len(data)))
			b.ReportAllocs()
			for b.Loop() {
				if walk(data, window, len(data), 1) < len(data) {
					b.Fatal("a match")
				}
			}
		})
	}
}

func BenchmarkNewGear(b *testing.B) {
	b.ReportAllocs()
	for b.Loop() {
		NewGear(&testKey)
	}
}
