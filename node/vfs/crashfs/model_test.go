package crashfs_test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"slices"
	"syscall"
	"testing"

	"cairn/node/vfs"
	"cairn/node/vfs/crashfs"

	"pgregory.net/rapid"
)

// class is what callers can tell of an error.
func class(err error) string {
	if errno, ok := errors.AsType[syscall.Errno](err); ok {
		return fmt.Sprintf("errno %d", int(errno))
	}
	for _, known := range []error{io.EOF, vfs.ErrLocked, fs.ErrInvalid, fs.ErrClosed} {
		if errors.Is(err, known) {
			return known.Error()
		}
	}
	if err != nil {
		return "unknown: " + err.Error()
	}
	return ""
}

// pair is one filesystem of each kind, in the same state.
type pair struct {
	want, got vfs.FS
	files     []openPair
	locks     [][2]io.Closer
}

type openPair struct{ want, got vfs.File }

func same[T any](t *rapid.T, what string, equal func(a, b T) bool, want, got T, wantErr, gotErr error) {
	t.Helper()
	if class(wantErr) != class(gotErr) {
		t.Fatalf("%s: the system says %v, crashfs %v", what, wantErr, gotErr)
	}
	if !equal(want, got) {
		t.Fatalf("%s: the system says %v, crashfs %v", what, want, got)
	}
}

func sameInfo(a, b vfs.Info) bool {
	if a.Dir && b.Dir {
		return a.Name == b.Name
	}
	return a.Name == b.Name && a.Dir == b.Dir && a.Size == b.Size && a.Links == b.Links
}

func anything[T any](T, T) bool { return true }

func equal[T comparable](a, b T) bool { return a == b }

// TestSameAsTheSystem runs random operations on vfs.OS and on crashfs: without
// a crash nobody can tell them apart.
func TestSameAsTheSystem(t *testing.T) {
	top := t.TempDir()
	rapid.Check(t, func(t *rapid.T) {
		dir, err := os.MkdirTemp(top, "")
		must2(t, err)
		defer os.RemoveAll(dir)
		want, err := vfs.OS(dir)
		must2(t, err)
		p := &pair{want: want, got: crashfs.New()}
		defer p.close()
		name := rapid.SampledFrom([]string{"a", "b", "d", "d/a", "d/b", "d/e", "d/e/a", "a/x", "x/y", ".", "../a"})
		offset := rapid.OneOf(rapid.Int64Range(0, 20_000), rapid.SampledFrom([]int64{0, 511, 512, 4095, 4096, 8192, 1 << 20}))
		length := rapid.OneOf(rapid.IntRange(0, 9000), rapid.SampledFrom([]int{1, 512, 4096, 8192}))
		flags := rapid.SampledFrom([]int{os.O_RDONLY, os.O_RDWR, create, create, create | os.O_EXCL, os.O_RDWR | os.O_TRUNC, create | os.O_TRUNC, os.O_RDONLY | os.O_CREATE})
		file := func(t *rapid.T) openPair {
			if len(p.files) == 0 {
				t.Skip("nothing is open")
			}
			return rapid.SampledFrom(p.files).Draw(t, "file")
		}
		t.Repeat(map[string]func(*rapid.T){
			"open": func(t *rapid.T) {
				n, f := name.Draw(t, "name"), flags.Draw(t, "flags")
				a, aerr := p.want.OpenFile(n, f, 0o600)
				b, berr := p.got.OpenFile(n, f, 0o600)
				same(t, "open", anything, a, b, aerr, berr)
				if aerr == nil {
					p.files = append(p.files, openPair{a, b})
				}
			},
			"close": func(t *rapid.T) {
				f := file(t)
				same(t, "close", anything, 0, 0, f.want.Close(), f.got.Close())
				p.files = slices.DeleteFunc(p.files, func(o openPair) bool { return o == f })
			},
			"mkdir": func(t *rapid.T) {
				n := name.Draw(t, "name")
				same(t, "mkdir", anything, 0, 0, p.want.Mkdir(n, 0o700), p.got.Mkdir(n, 0o700))
			},
			"remove": func(t *rapid.T) {
				n := name.Draw(t, "name")
				same(t, "remove", anything, 0, 0, p.want.Remove(n), p.got.Remove(n))
			},
			"rename": func(t *rapid.T) {
				a, b := name.Draw(t, "old"), name.Draw(t, "new")
				same(t, "rename", anything, 0, 0, p.want.Rename(a, b), p.got.Rename(a, b))
			},
			"lock": func(t *rapid.T) {
				n := name.Draw(t, "name")
				a, aerr := p.want.Lock(n)
				b, berr := p.got.Lock(n)
				same(t, "lock", anything, a, b, aerr, berr)
				if aerr == nil {
					p.locks = append(p.locks, [2]io.Closer{a, b})
				}
			},
			"unlock": func(t *rapid.T) {
				if len(p.locks) == 0 {
					t.Skip("nothing is locked")
				}
				l := p.locks[0]
				p.locks = p.locks[1:]
				same(t, "unlock", anything, 0, 0, l[0].Close(), l[1].Close())
			},
			"write": func(t *rapid.T) {
				f, off := file(t), offset.Draw(t, "off")
				b := bytes.Repeat([]byte{rapid.Byte().Draw(t, "byte")}, length.Draw(t, "length"))
				n, err := f.want.WriteAt(b, off)
				m, merr := f.got.WriteAt(b, off)
				same(t, "write", equal[int], n, m, err, merr)
			},
			"writev": func(t *rapid.T) {
				f, off := file(t), offset.Draw(t, "off")
				var bufs [][]byte
				for i, n := range rapid.SliceOfN(length, 0, 4).Draw(t, "lengths") {
					bufs = append(bufs, bytes.Repeat([]byte{byte(i)}, n))
				}
				n, err := f.want.WritevAt(bufs, off)
				m, merr := f.got.WritevAt(bufs, off)
				same(t, "writev", equal[int], n, m, err, merr)
			},
			"read": func(t *rapid.T) {
				f, off := file(t), offset.Draw(t, "off")
				n := length.Draw(t, "length")
				a, b := make([]byte, n), make([]byte, n)
				na, aerr := f.want.ReadAt(a, off)
				nb, berr := f.got.ReadAt(b, off)
				same(t, "read", bytes.Equal, a[:na], b[:nb], aerr, berr)
			},
			"truncate": func(t *rapid.T) {
				f, size := file(t), offset.Draw(t, "size")
				same(t, "truncate", anything, 0, 0, f.want.Truncate(size), f.got.Truncate(size))
			},
			"allocate": func(t *rapid.T) {
				f, off, n := file(t), offset.Draw(t, "off"), int64(length.Draw(t, "length"))
				same(t, "allocate", anything, 0, 0, f.want.Allocate(off, n), f.got.Allocate(off, n))
			},
			"punch": func(t *rapid.T) {
				f, off, n := file(t), offset.Draw(t, "off"), int64(length.Draw(t, "length"))
				same(t, "punch", anything, 0, 0, f.want.PunchHole(off, n), f.got.PunchHole(off, n))
			},
			"sync": func(t *rapid.T) {
				// Only ours: the system's are slow and change nothing.
				if err := errors.Join(file(t).got.Datasync(), p.got.SyncDir(".")); err != nil {
					t.Fatal(err)
				}
			},
			"fstat": func(t *rapid.T) {
				f := file(t)
				a, aerr := f.want.Stat()
				b, berr := f.got.Stat()
				same(t, "fstat", sameInfo, a, b, aerr, berr)
			},
			"": func(t *rapid.T) {
				for _, n := range []string{".", "a", "b", "d", "d/a", "d/b", "d/e", "d/e/a", "a/x"} {
					a, aerr := p.want.Stat(n)
					b, berr := p.got.Stat(n)
					same(t, "stat "+n, sameInfo, a, b, aerr, berr)
					la, aerr := p.want.ReadDir(n)
					lb, berr := p.got.ReadDir(n)
					same(t, "readdir "+n, slices.Equal, la, lb, aerr, berr)
				}
				for _, f := range p.files {
					a, b := make([]byte, 2<<20), make([]byte, 2<<20)
					na, aerr := f.want.ReadAt(a, 0)
					nb, berr := f.got.ReadAt(b, 0)
					same(t, "read all", bytes.Equal, a[:na], b[:nb], aerr, berr)
				}
			},
		})
	})
}

func must2(t *rapid.T, err error) {
	if err != nil {
		t.Fatal(err)
	}
}

func (p *pair) close() {
	for _, f := range p.files {
		f.want.Close()
		f.got.Close()
	}
	for _, l := range p.locks {
		l[0].Close()
		l[1].Close()
	}
	p.want.Close()
	p.got.Close()
}
