package vfs_test

import (
	"bytes"
	"errors"
	"io"
	"io/fs"
	"os"
	"slices"
	"strings"
	"syscall"
	"testing"

	"cairn/node/vfs"
	"cairn/node/vfs/crashfs"
)

// TestWriteFileOrder is the golden trace: the order of these operations is what
// makes the replacement durable, and no test of results can see it on a
// filesystem that does not lose power.
func TestWriteFileOrder(t *testing.T) {
	const fresh = `open d/f.tmp rdwr create excl
write d/f.tmp 0+3
datasync d/f.tmp
close d/f.tmp
rename d/f.tmp d/f
syncdir d
`
	const leftOver = `open d/f.tmp rdwr create excl
remove d/f.tmp
` + fresh
	fsys := crashfs.New()
	if err := fsys.Mkdir("d", 0o700); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{fresh, leftOver} {
		fsys.StartTrace()
		if err := vfs.WriteFile(fsys, "d/f", []byte("abc")); err != nil {
			t.Fatal(err)
		}
		if got := fsys.TraceText(); got != want {
			t.Errorf("got\n%swant\n%s", got, want)
		}
		if _, err := fsys.OpenFile("d/f.tmp", os.O_RDWR|os.O_CREATE, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	fsys = crashfs.New()
	fsys.StartTrace()
	if err := vfs.WriteFile(fsys, "f", nil); err != nil || !strings.HasSuffix(fsys.TraceText(), "\nsyncdir .\n") {
		t.Errorf("in the root: %v\n%s", err, fsys.TraceText())
	}
}

// TestWriteFileAtEveryPoint stops it, and cuts the power, after each operation.
func TestWriteFileAtEveryPoint(t *testing.T) {
	first, second := bytes.Repeat([]byte("first"), 1000), bytes.Repeat([]byte("2nd"), 3000)
	done := 0
	run := func(fsys *crashfs.FS) error {
		done = 0
		for _, b := range [][]byte{first, second} {
			if err := vfs.WriteFile(fsys, "f", b); err != nil {
				return err
			}
			done++
		}
		return nil
	}
	allowed := [][][]byte{{nil, first}, {first, second}, {second}}
	crashfs.EveryPoint(t, run, func(fsys *crashfs.FS) {
		b, err := vfs.ReadFile(fsys, "f", 1<<20)
		if err != nil && (!errors.Is(err, fs.ErrNotExist) || done > 0) {
			t.Errorf("after %d calls: %v", done, err)
		}
		if !slices.ContainsFunc(allowed[done], func(w []byte) bool { return bytes.Equal(b, w) && (w == nil) == (err != nil) }) {
			t.Errorf("after %d calls: %d bytes, neither the old content nor the new", done, len(b))
		}
		// What a crash left is no obstacle.
		if err := vfs.WriteFile(fsys, "f", []byte("next")); err != nil {
			t.Error(err)
		}
		if b, err := vfs.ReadFile(fsys, "f", 4); err != nil || string(b) != "next" {
			t.Errorf("afterwards: %q, %v", b, err)
		}
		if names, err := fsys.ReadDir("."); err != nil || !slices.Equal(names, []string{"f"}) {
			t.Errorf("afterwards: %q, %v", names, err)
		}
	})
}

// TestWriteFileFailsCleanly fails each operation in turn.
func TestWriteFileFailsCleanly(t *testing.T) {
	const steps = 6
	for n := 1; n <= steps; n++ {
		for _, torn := range []int{0, 2} {
			fsys := crashfs.New()
			if err := vfs.WriteFile(fsys, "f", []byte("old")); err != nil {
				t.Fatal(err)
			}
			fsys.Inject(crashfs.Rules(crashfs.Rule{From: n, Count: 1, Fault: crashfs.Fault{Err: syscall.EIO, Torn: torn}}))
			err := vfs.WriteFile(fsys, "f", []byte("new"))
			fsys.Inject(nil)
			if !errors.Is(err, syscall.EIO) {
				t.Errorf("operation %d failed, WriteFile said %v", n, err)
			}
			want := "old"
			if n == steps { // only the directory sync is missing
				want = "new"
			}
			if b, err := vfs.ReadFile(fsys, "f", 10); err != nil || string(b) != want {
				t.Errorf("operation %d failed: %q, %v, want %q", n, b, err, want)
			}
			if names, err := fsys.ReadDir("."); err != nil || !slices.Equal(names, []string{"f"}) {
				t.Errorf("operation %d failed: the directory holds %q, %v", n, names, err)
			}
		}
	}
	// A full disk, and a leftover that cannot be removed.
	fsys := crashfs.NewDisk(crashfs.DiskConfig{Bytes: 8192}).New()
	if err := vfs.WriteFile(fsys, "f", []byte("old")); err != nil {
		t.Fatal(err)
	}
	if err := vfs.WriteFile(fsys, "f", make([]byte, 20_000)); !errors.Is(err, syscall.ENOSPC) {
		t.Errorf("on a full disk: %v", err)
	}
	if err := vfs.WriteFile(fsys, "f", []byte("new")); err != nil {
		t.Errorf("the failure kept the room: %v", err)
	}
	if err := fsys.Mkdir("f.tmp", 0o700); err != nil {
		t.Fatal(err)
	}
	if _, err := fsys.OpenFile("f.tmp/x", os.O_RDWR|os.O_CREATE, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := vfs.WriteFile(fsys, "f", []byte("newer")); !errors.Is(err, syscall.ENOTEMPTY) {
		t.Errorf("with a directory in the temporary's place: %v", err)
	}
}

// growing is a file that gets longer between Stat and ReadAt.
type growing struct{ vfs.FS }

type growingFile struct{ vfs.File }

func (g growing) OpenFile(name string, flag int, perm fs.FileMode) (vfs.File, error) {
	f, err := g.FS.OpenFile(name, os.O_RDWR, perm)
	return growingFile{f}, err
}

func (g growingFile) ReadAt(p []byte, off int64) (int, error) {
	if _, err := g.WriteAt([]byte("longer than before"), 0); err != nil {
		return 0, err
	}
	return g.File.ReadAt(p, off)
}

func TestReadFile(t *testing.T) {
	fsys := crashfs.New()
	if err := vfs.WriteFile(fsys, "f", []byte("hello")); err != nil {
		t.Fatal(err)
	}
	for _, limit := range []int64{5, 6, 1 << 40} {
		if b, err := vfs.ReadFile(fsys, "f", limit); err != nil || string(b) != "hello" {
			t.Errorf("limit %d: %q, %v", limit, b, err)
		}
	}
	for _, limit := range []int64{0, 4} {
		if b, err := vfs.ReadFile(fsys, "f", limit); !errors.Is(err, vfs.ErrTooLarge) {
			t.Errorf("limit %d: %q, %v", limit, b, err)
		}
	}
	if b, err := vfs.ReadFile(growing{fsys}, "f", 5); err == nil {
		t.Errorf("a file that grew: %q, and no error", b)
	}
	// What could not be asked is neither absence nor an empty file.
	for _, kind := range []crashfs.Kind{crashfs.OpOpen, crashfs.OpFileStat, crashfs.OpRead} {
		fsys.Inject(crashfs.Rules(crashfs.Rule{Kind: kind, Fault: crashfs.Fault{Err: syscall.EMFILE}}))
		_, err := vfs.ReadFile(fsys, "f", 100)
		if !errors.Is(err, syscall.EMFILE) || errors.Is(err, fs.ErrNotExist) || errors.Is(err, io.EOF) {
			t.Errorf("%v failed: %v", kind, err)
		}
	}
}
