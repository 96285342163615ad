package crashfs_test

import (
	"fmt"
	"testing"

	"cairn/node/vfs"
	"cairn/node/vfs/crashfs"
)

// BenchmarkAppend is what a simulated node mostly does: append a record, sync.
func BenchmarkAppend(b *testing.B) {
	for _, size := range []int{100, 4096, 64 << 10} {
		b.Run(fmt.Sprint(size), func(b *testing.B) {
			fsys := crashfs.New()
			f := open(b, fsys, "f")
			must(b, f.Allocate(0, 64<<20))
			record := make([]byte, size)
			for i := range record {
				record[i] = byte(i) | 1
			}
			b.SetBytes(int64(size))
			b.ReportAllocs()
			off := int64(0)
			for b.Loop() {
				if _, err := f.WriteAt(record, off); err != nil {
					b.Fatal(err)
				}
				if err := f.Datasync(); err != nil {
					b.Fatal(err)
				}
				off = (off + int64(size)) % (32 << 20)
			}
		})
	}
}

func BenchmarkReadAt(b *testing.B) {
	fsys := crashfs.New()
	f := open(b, fsys, "f")
	buf := make([]byte, 64<<10)
	for i := range buf {
		buf[i] = 1
	}
	_, err := f.WriteAt(buf, 0)
	must(b, err)
	for _, size := range []int{100, 4096, 64 << 10} {
		b.Run(fmt.Sprint(size), func(b *testing.B) {
			b.SetBytes(int64(size))
			b.ReportAllocs()
			for b.Loop() {
				if _, err := f.ReadAt(buf[:size], 0); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

func BenchmarkWriteFile(b *testing.B) {
	fsys := crashfs.New()
	content := make([]byte, 300)
	b.ReportAllocs()
	for b.Loop() {
		must(b, vfs.WriteFile(fsys, "f", content))
	}
}

// BenchmarkCrashClone copies a node of 8 MiB in 16 files, half of it unsynced.
func BenchmarkCrashClone(b *testing.B) {
	fsys := crashfs.New()
	data := make([]byte, 512<<10)
	for i := range data {
		data[i] = 1
	}
	for i := range 16 {
		f := open(b, fsys, fmt.Sprint(i))
		_, err := f.WriteAt(data, 0)
		must(b, err)
		if i%2 == 0 {
			must(b, f.Datasync())
		}
	}
	must(b, fsys.SyncDir("."))
	b.ReportAllocs()
	seed := 0
	for b.Loop() {
		seed++
		fsys.CrashClone(seeded(seed))
	}
}

// BenchmarkSeed is one whole run of the program of the tests: about 30
// operations, a power cut, the check.
func BenchmarkSeed(b *testing.B) {
	var p program
	b.ReportAllocs()
	seed := 0
	for b.Loop() {
		seed++
		if err := p.attempt(seed); err != nil {
			b.Fatal(err)
		}
	}
}
