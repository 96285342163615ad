package index

import (
	"fmt"
	"testing"

	"cairn/id"
	"cairn/index/kv"
	"cairn/index/kv/memkv"
)

func engines() map[string]func(testing.TB) kv.Engine {
	return map[string]func(testing.TB) kv.Engine{
		"memory": func(testing.TB) kv.Engine { return memkv.New(memkv.Options{}) },
		"badger": func(t testing.TB) kv.Engine { return newBadger(t, t.TempDir()) },
	}
}

// BenchmarkRound applies rounds of 64 puts of small objects, each with its chunk.
func BenchmarkRound(b *testing.B) {
	for name, engine := range engines() {
		b.Run(name, func(b *testing.B) {
			x := openOn(b, engine(b))
			var c chain
			build(b, x, &c, true, func(b *builder) { b.bucket("main", false) })
			b.ReportAllocs()
			n := uint64(0)
			rows := 0
			for b.Loop() {
				build(b, x, &c, false, func(d *builder) {
					for range 64 {
						n++
						d.entry(n, false)
						d.put(1, fmt.Sprintf("some/prefix/object-%09d", n*7919%1000000007), n)
					}
					keys, _ := d.r.Size()
					rows += keys
				})
			}
			b.ReportMetric(float64(rows)/b.Elapsed().Seconds(), "rows/s")
			b.ReportMetric(64*float64(b.N)/b.Elapsed().Seconds(), "puts/s")
		})
	}
}

const benchObjects = 100000

func filled(b *testing.B, e kv.Engine) *Index {
	x := openOn(b, e)
	var c chain
	build(b, x, &c, true, func(b *builder) { b.bucket("main", false) })
	for at := uint64(0); at < benchObjects; at += 1000 {
		build(b, x, &c, false, func(d *builder) {
			for i := at; i < at+1000; i++ {
				d.entry(i+1, false)
				d.put(1, fmt.Sprintf("some/prefix/object-%09d", i), i+1)
			}
		})
	}
	return x
}

// BenchmarkObject looks up an object and its chunk, in a view of its own.
func BenchmarkObject(b *testing.B) {
	for name, engine := range engines() {
		b.Run(name, func(b *testing.B) {
			x := filled(b, engine(b))
			b.ReportAllocs()
			var key []byte
			i := 0
			for b.Loop() {
				i = (i + 7919) % benchObjects
				key = fmt.Appendf(key[:0], "some/prefix/object-%09d", i)
				err := x.View(func(r Reader) error {
					o, err := r.Object(1, key, id.Version{})
					if err != nil {
						return err
					}
					_, err = r.Chunk(1, o.Manifest.Roots[0].Chunk)
					return err
				})
				if err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// BenchmarkList lists 100,000 keys in pages of 1,000.
func BenchmarkList(b *testing.B) {
	for name, engine := range engines() {
		b.Run(name, func(b *testing.B) {
			x := filled(b, engine(b))
			b.ReportAllocs()
			for b.Loop() {
				var o ListOptions
				for n := 0; ; {
					var page Page
					err := x.View(func(r Reader) (err error) {
						page, err = r.List(1, o)
						return err
					})
					if err != nil {
						b.Fatal(err)
					}
					n += len(page.Objects)
					if !page.More {
						if n != benchObjects {
							b.Fatalf("%d objects", n)
						}
						break
					}
					o.After = page.Next
				}
			}
			b.ReportMetric(benchObjects*float64(b.N)/b.Elapsed().Seconds(), "keys/s")
		})
	}
}
