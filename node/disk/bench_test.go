package disk

import (
	"context"
	"fmt"
	"runtime"
	"sync/atomic"
	"testing"

	"cairn/id"
	"cairn/node"
	"cairn/node/nodetest"
	"cairn/node/vfs"
	"cairn/node/vfs/crashfs"
	"cairn/pack"
)

func benchNode(b *testing.B) (*Node, vfs.FS, Config) {
	fsys, err := vfs.OS(b.TempDir())
	if err != nil {
		b.Fatal(err)
	}
	cfg := Config{Cluster: id.Cluster{1}}
	mustFormat(b, fsys, cfg)
	n := mustOpen(b, fsys, cfg)
	b.Cleanup(func() { _ = n.Close(); _ = fsys.Close() })
	return n, fsys, cfg
}

// shardOf makes a shard of exactly size bytes.
func shardOf(kind pack.Kind, size int) nodetest.Shard {
	s := nodetest.Shard{Kind: kind, Seed: 1}
	for h := s.Header(); h.ShardLen() != size; h = s.Header() {
		s.Len += size - h.ShardLen()
	}
	return s
}

// rename gives a shard another pack, in place: cheaper than making it anew.
func rename(b []byte, p uint64) {
	h, err := pack.ParseHeader(b)
	if err != nil {
		panic(err)
	}
	h.Pack = nodetest.Shard{Pack: p}.Key().Pack
	if h.Kind == pack.Log {
		h.Seq = p
	}
	h.Append(b[:0])
}

func BenchmarkPut(b *testing.B) {
	for _, size := range []int{8 << 10, 4 << 20} {
		for _, callers := range []int{1, 64} {
			b.Run(fmt.Sprintf("%dKiB/callers=%d", size>>10, callers), func(b *testing.B) {
				n, fsys, _ := benchNode(b)
				s := shardOf(pack.Data, size)
				b.SetBytes(int64(size))
				b.ReportAllocs()
				var next atomic.Uint64
				put := func(buf []byte) {
					rename(buf, next.Add(1))
					_, err := n.Put(context.Background(), nodetest.By(1), node.ForClient, nodetest.Split(buf, 0))
					if err != nil {
						b.Fatal(err)
					}
				}
				if callers == 1 {
					buf := s.Bytes()
					for b.Loop() {
						put(buf)
					}
				} else {
					b.SetParallelism(callers / runtime.GOMAXPROCS(0))
					b.RunParallel(func(pb *testing.PB) {
						buf := s.Bytes()
						for pb.Next() {
							put(buf)
						}
					})
				}
				_ = fsys
			})
		}
	}
}

func BenchmarkRead(b *testing.B) {
	n, _, _ := benchNode(b)
	s := shardOf(pack.Data, 4<<20)
	buf := s.Bytes()
	for p := range uint64(16) {
		rename(buf, p)
		if _, err := n.Put(b.Context(), nodetest.By(1), node.ForClient, nodetest.Split(buf, 0)); err != nil {
			b.Fatal(err)
		}
	}
	hdr := s.Header()
	for _, size := range []int{16 << 10, 1 << 20} {
		b.Run(fmt.Sprintf("%dKiB", size>>10), func(b *testing.B) {
			dst := make([]byte, size)
			b.SetBytes(int64(size))
			b.ReportAllocs()
			i := 0
			for b.Loop() {
				k := nodetest.Shard{Pack: uint64(i % 16)}.Key()
				off := int64(hdr.BodyOffset() + (i*7%3)*(1<<20))
				if err := n.Read(b.Context(), k, off, dst); err != nil {
					b.Fatal(err)
				}
				i++
			}
		})
	}
}

// BenchmarkOpen opens a node of 100,000 shards, after a clean stop and after a
// kill, and measures the table.
func BenchmarkOpen(b *testing.B) {
	const shards = 100000
	fsys := crashfs.New()
	cfg := Config{Cluster: id.Cluster{1}, ReclaimEvery: -1}
	mustFormat(b, fsys, cfg)
	n := mustOpen(b, fsys, cfg)
	var next atomic.Uint64
	done := make(chan struct{})
	s := shardOf(pack.Data, 4<<10)
	for range 64 {
		go func() {
			buf := s.Bytes()
			for p := next.Add(1); p <= shards; p = next.Add(1) {
				rename(buf, p)
				if _, err := n.Put(context.Background(), nodetest.By(1), node.ForClient, nodetest.Split(buf, 0)); err != nil {
					panic(err)
				}
			}
			done <- struct{}{}
		}()
	}
	for range 64 {
		<-done
	}
	killed := fsys.Clone()
	if err := n.Close(); err != nil {
		b.Fatal(err)
	}
	b.Run("clean", func(b *testing.B) {
		var before, after runtime.MemStats
		for b.Loop() {
			runtime.GC()
			runtime.ReadMemStats(&before)
			n := mustOpen(b, fsys, cfg)
			runtime.GC()
			runtime.ReadMemStats(&after)
			if n.table.lives != shards {
				b.Fatal(n.table.lives)
			}
			_ = n.Close()
		}
		b.ReportMetric(float64(after.HeapAlloc-before.HeapAlloc)/shards, "B/shard")
		b.ReportMetric(shards, "shards")
	})
	b.Run("killed", func(b *testing.B) {
		for b.Loop() {
			n := mustOpen(b, killed.Clone().Kill(), cfg)
			if n.table.lives != shards {
				b.Fatal(n.table.lives)
			}
			_ = n.Close()
		}
	})
}

// BenchmarkList pages through a node.
func BenchmarkList(b *testing.B) {
	const shards = 1000000
	n := &Node{table: newTable()}
	seg := &segment{}
	for i := range uint64(shards) {
		n.table.add(&rec{key: nodetest.Shard{Pack: i}.Key(), inst: id.Instance(i + 1), kind: pack.Data, size: 4096, off: int64(i+2) * blockSize}, seg, 0)
	}
	b.ReportAllocs()
	var after node.Key
	for b.Loop() {
		l, err := n.List(b.Context(), after, 1000)
		if err != nil {
			b.Fatal(err)
		}
		after = node.Key{}
		if len(l) == 1000 {
			after = l[999].Key
		}
	}
}
