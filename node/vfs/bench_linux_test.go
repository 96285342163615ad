package vfs_test

import (
	"fmt"
	"os"
	"testing"

	"cairn/node/vfs"
)

func benchFile(tb testing.TB) vfs.File {
	fsys, err := vfs.OS(tb.TempDir())
	if err != nil {
		tb.Fatal(err)
	}
	f, err := fsys.OpenFile("f", os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		f.Close()
		fsys.Close()
	})
	if err := f.Allocate(0, 1<<20); err != nil {
		tb.Fatal(err)
	}
	return f
}

// TestFileCallsDoNotAllocate covers what a node calls for every shard.
func TestFileCallsDoNotAllocate(t *testing.T) {
	f := benchFile(t)
	b := make([]byte, 4096)
	bufs := [][]byte{b[:100], b[100:]}
	for what, call := range map[string]func() error{
		"ReadAt":         func() error { _, err := f.ReadAt(b, 0); return err },
		"WriteAt":        func() error { _, err := f.WriteAt(b, 0); return err },
		"WritevAt":       func() error { _, err := f.WritevAt(bufs, 0); return err },
		"StartWriteback": func() error { return f.StartWriteback(0, 4096) },
		"Datasync":       f.Datasync,
		"PunchHole":      func() error { return f.PunchHole(0, 4096) },
		"Stat":           func() error { _, err := f.Stat(); return err },
	} {
		if n := testing.AllocsPerRun(20, func() {
			if err := call(); err != nil {
				t.Fatal(err)
			}
		}); n != 0 {
			t.Errorf("%s allocates %v times", what, n)
		}
	}
}

func BenchmarkOS(b *testing.B) {
	f := benchFile(b)
	for _, size := range []int{4096, 64 << 10, 1 << 20} {
		p := make([]byte, size)
		bufs := [][]byte{p[:128], p[128 : size/2], p[size/2:]}
		for _, c := range []struct {
			what string
			call func() error
		}{
			{"ReadAt", func() error { _, err := f.ReadAt(p, 0); return err }},
			{"WriteAt", func() error { _, err := f.WriteAt(p, 0); return err }},
			{"WritevAt", func() error { _, err := f.WritevAt(bufs, 0); return err }},
			{"WriteAtDatasync", func() error {
				if _, err := f.WriteAt(p, 0); err != nil {
					return err
				}
				return f.Datasync()
			}},
		} {
			b.Run(fmt.Sprintf("%s/%d", c.what, size), func(b *testing.B) {
				b.SetBytes(int64(size))
				b.ReportAllocs()
				for b.Loop() {
					if err := c.call(); err != nil {
						b.Fatal(err)
					}
				}
			})
		}
	}
}
