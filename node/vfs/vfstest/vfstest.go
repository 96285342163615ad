// Package vfstest is the contract of [vfs.FS] as a test suite: every kind of FS
// must pass [Run]. It keeps no state and owns nothing; what it opens it closes.
package vfstest

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math"
	"os"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"

	"cairn/node/vfs"
)

// Run runs the suite. open returns an empty FS, new at each call; Run closes it.
func Run(t *testing.T, open func(t *testing.T) vfs.FS) {
	for _, c := range []struct {
		name string
		test func(t *testing.T, fsys vfs.FS)
	}{
		{"Names", names},
		{"OpenFlags", openFlags},
		{"ErrorsKeepTheirMeaning", errorIdentity},
		{"Directories", directories},
		{"RootIsADirectory", rootDirectory},
		{"ReadAt", readAt},
		{"WriteAt", writeAt},
		{"WritevAt", writevAt},
		{"ReadOnly", readOnly},
		{"Truncate", truncate},
		{"Holes", holes},
		{"Allocate", allocate},
		{"LinksAfterRemove", linksAfterRemove},
		{"Rename", rename},
		{"RenameDirectories", renameDirectories},
		{"Inodes", inodes},
		{"Sync", syncs},
		{"Lock", lock},
		{"LockBelongsToTheFile", lockReplaced},
		{"Usage", usage},
		{"Closed", closed},
		{"SmallFiles", smallFiles},
		{"Concurrent", concurrent},
		{"ConcurrentCreate", concurrentCreate},
	} {
		t.Run(c.name, func(t *testing.T) {
			fsys := open(t)
			c.test(t, fsys)
			// Closed closes it as its test; a second Close may then complain.
			if err := fsys.Close(); err != nil && !errors.Is(err, fs.ErrClosed) {
				t.Errorf("Close: %v", err)
			}
		})
	}
}

const create = os.O_RDWR | os.O_CREATE

func mustOpen(t *testing.T, fsys vfs.FS, name string, flag int) vfs.File {
	t.Helper()
	f, err := fsys.OpenFile(name, flag, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func wantErr(t *testing.T, what string, got, want error) {
	t.Helper()
	if !errors.Is(got, want) {
		t.Errorf("%s: error %v, want %v", what, got, want)
		return
	}
	if _, ok := errors.AsType[*fs.PathError](got); !ok {
		t.Errorf("%s: error %v is no *fs.PathError", what, got)
	}
}

func wantContent(t *testing.T, f vfs.File, want []byte) {
	t.Helper()
	got := make([]byte, len(want)+1)
	n, err := f.ReadAt(got, 0)
	if err != io.EOF {
		t.Errorf("ReadAt one byte more than there is: %d, %v, want io.EOF", n, err)
	}
	if !bytes.Equal(got[:n], want) {
		t.Errorf("content differs: %d bytes, first difference at %d, want %d bytes", n, diff(got[:n], want), len(want))
	}
}

func diff(a, b []byte) int {
	for i := range min(len(a), len(b)) {
		if a[i] != b[i] {
			return i
		}
	}
	return min(len(a), len(b))
}

func pattern(n int, seed byte) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(i*7+i>>8) ^ seed | 1 // never zero
	}
	return b
}

func names(t *testing.T, fsys vfs.FS) {
	must(t, fsys.Mkdir("d", 0o700))
	mustOpen(t, fsys, "f", create)
	for _, name := range []string{
		"", "..", "../f", "d/../f", "d/../../f", "/f", "/", "d/", "d//f", "./f", "d/.", "f\x00", "\x00", "d/\x00/..", "\xff",
	} {
		_, err := fsys.OpenFile(name, create, 0o600)
		wantErr(t, fmt.Sprintf("OpenFile(%q)", name), err, fs.ErrInvalid)
		_, err = fsys.Lock(name)
		wantErr(t, fmt.Sprintf("Lock(%q)", name), err, fs.ErrInvalid)
		_, err = fsys.Stat(name)
		wantErr(t, fmt.Sprintf("Stat(%q)", name), err, fs.ErrInvalid)
		_, err = fsys.ReadDir(name)
		wantErr(t, fmt.Sprintf("ReadDir(%q)", name), err, fs.ErrInvalid)
		wantErr(t, fmt.Sprintf("SyncDir(%q)", name), fsys.SyncDir(name), fs.ErrInvalid)
		wantErr(t, fmt.Sprintf("Mkdir(%q)", name), fsys.Mkdir(name, 0o700), fs.ErrInvalid)
		wantErr(t, fmt.Sprintf("Remove(%q)", name), fsys.Remove(name), fs.ErrInvalid)
		wantErr(t, fmt.Sprintf("Rename(%q, x)", name), fsys.Rename(name, "x"), fs.ErrInvalid)
		wantErr(t, fmt.Sprintf("Rename(f, %q)", name), fsys.Rename("f", name), fs.ErrInvalid)
	}
	// Odd but good names, and the longest.
	for _, name := range []string{"...", "..f", "f..", "-", "a b", "ä\n", `d\f`, "d/*", strings.Repeat("n", 255)} {
		f, err := fsys.OpenFile(name, create, 0o600)
		if err != nil {
			t.Errorf("OpenFile(%q): %v", name, err)
			continue
		}
		must(t, f.Close())
		must(t, fsys.Remove(name))
	}
	_, err := fsys.OpenFile(strings.Repeat("n", 256), create, 0o600)
	wantErr(t, "a name of 256 bytes", err, syscall.ENAMETOOLONG)
}

func openFlags(t *testing.T, fsys vfs.FS) {
	for _, flag := range []int{
		os.O_WRONLY, os.O_WRONLY | os.O_CREATE, create | os.O_APPEND, create | os.O_SYNC,
		os.O_RDWR | os.O_EXCL, os.O_RDONLY | os.O_TRUNC, os.O_CREATE | os.O_TRUNC,
	} {
		_, err := fsys.OpenFile("f", flag, 0o600)
		wantErr(t, fmt.Sprintf("OpenFile with flags %#x", flag), err, fs.ErrInvalid)
	}
	if _, err := fsys.Stat("f"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a refused open left something: %v", err)
	}
	// O_CREATE without the right to write makes the file all the same.
	must(t, mustOpen(t, fsys, "f", os.O_RDONLY|os.O_CREATE).Close())
	f := mustOpen(t, fsys, "f", create)
	_, err := f.WriteAt([]byte("hello"), 0)
	must(t, err)
	wantContent(t, mustOpen(t, fsys, "f", create), []byte("hello"))
	wantContent(t, mustOpen(t, fsys, "f", create|os.O_TRUNC), nil)
	wantContent(t, f, nil)
}

func errorIdentity(t *testing.T, fsys vfs.FS) {
	must(t, fsys.Mkdir("d", 0o700))
	mustOpen(t, fsys, "f", create)
	mustOpen(t, fsys, "d/f", create)
	open := func(name string, flag int) error {
		f, err := fsys.OpenFile(name, flag, 0o600)
		if err == nil {
			f.Close()
		}
		return err
	}
	stat := func(name string) error { _, err := fsys.Stat(name); return err }
	readDir := func(name string) error { _, err := fsys.ReadDir(name); return err }
	lock := func(name string) error {
		l, err := fsys.Lock(name)
		if err == nil {
			l.Close()
		}
		return err
	}
	for _, c := range []struct {
		what      string
		got, want error
	}{
		{"open x", open("x", os.O_RDWR), fs.ErrNotExist},
		{"open x/y", open("x/y", create), fs.ErrNotExist},
		{"open f/y", open("f/y", create), syscall.ENOTDIR},
		{"open d", open("d", os.O_RDONLY), syscall.EISDIR},
		{"open d to write", open("d", os.O_RDWR), syscall.EISDIR},
		{"open d, create", open("d", create), syscall.EISDIR},
		{"open f, exclusive", open("f", create|os.O_EXCL), fs.ErrExist},
		{"open d, exclusive", open("d", create|os.O_EXCL), fs.ErrExist},
		{"open .", open(".", os.O_RDONLY), fs.ErrInvalid},
		{"stat x", stat("x"), fs.ErrNotExist},
		{"stat x/y", stat("x/y"), fs.ErrNotExist},
		{"stat f/y", stat("f/y"), syscall.ENOTDIR},
		{"readdir x", readDir("x"), fs.ErrNotExist},
		{"readdir f", readDir("f"), syscall.ENOTDIR},
		{"syncdir x", fsys.SyncDir("x"), fs.ErrNotExist},
		{"syncdir f", fsys.SyncDir("f"), syscall.ENOTDIR},
		{"mkdir f", fsys.Mkdir("f", 0o700), fs.ErrExist},
		{"mkdir d", fsys.Mkdir("d", 0o700), fs.ErrExist},
		{"mkdir x/y", fsys.Mkdir("x/y", 0o700), fs.ErrNotExist},
		{"mkdir f/y", fsys.Mkdir("f/y", 0o700), syscall.ENOTDIR},
		{"mkdir .", fsys.Mkdir(".", 0o700), fs.ErrInvalid},
		{"remove x", fsys.Remove("x"), fs.ErrNotExist},
		{"remove f/y", fsys.Remove("f/y"), syscall.ENOTDIR},
		{"remove d, not empty", fsys.Remove("d"), syscall.ENOTEMPTY},
		{"remove .", fsys.Remove("."), fs.ErrInvalid},
		{"rename x", fsys.Rename("x", "y"), fs.ErrNotExist},
		{"rename into nowhere", fsys.Rename("f", "x/y"), fs.ErrNotExist},
		{"rename below a file", fsys.Rename("d/f", "f/y"), syscall.ENOTDIR},
		{"rename file over directory", fsys.Rename("f", "d"), fs.ErrExist},
		{"rename directory over file", fsys.Rename("d", "f"), syscall.ENOTDIR},
		{"rename directory into itself", fsys.Rename("d", "d/e"), syscall.EINVAL},
		{"rename .", fsys.Rename(".", "y"), fs.ErrInvalid},
		{"lock d", lock("d"), syscall.EISDIR},
		{"lock x/y", lock("x/y"), fs.ErrNotExist},
	} {
		wantErr(t, c.what, c.got, c.want)
	}
	if errors.Is(open("f/y", create), fs.ErrNotExist) {
		t.Error("a file in the place of a directory is taken for absence")
	}
}

func directories(t *testing.T, fsys vfs.FS) {
	must(t, fsys.Mkdir("d", 0o700))
	must(t, fsys.Mkdir("d/sub", 0o700))
	want := []string{"sub"}
	for i := range 300 {
		name := fmt.Sprintf("f%d", i*7919%1000)
		must(t, mustOpen(t, fsys, "d/"+name, create|os.O_EXCL).Close())
		want = append(want, name)
	}
	slices.Sort(want)
	got, err := fsys.ReadDir("d")
	if err != nil || !slices.Equal(got, want) {
		t.Errorf("ReadDir: %q, %v, want %q", got, err, want)
	}
	for _, name := range want {
		must(t, fsys.Remove("d/"+name))
	}
	if got, err := fsys.ReadDir("d"); err != nil || len(got) != 0 {
		t.Errorf("ReadDir of an emptied directory: %q, %v", got, err)
	}
	info, err := fsys.Stat("d")
	if err != nil || !info.Dir || info.Name != "d" {
		t.Errorf("Stat of a directory: %+v, %v", info, err)
	}
	must(t, fsys.SyncDir("d"))
	must(t, fsys.Remove("d"))
	_, err = fsys.Stat("d")
	wantErr(t, "Stat of a removed directory", err, fs.ErrNotExist)
}

func rootDirectory(t *testing.T, fsys vfs.FS) {
	mustOpen(t, fsys, "f", create)
	if got, err := fsys.ReadDir("."); err != nil || !slices.Equal(got, []string{"f"}) {
		t.Errorf("ReadDir(.): %q, %v", got, err)
	}
	if info, err := fsys.Stat("."); err != nil || !info.Dir || info.Name != "." {
		t.Errorf("Stat(.): %+v, %v", info, err)
	}
	must(t, fsys.SyncDir("."))
}

func readAt(t *testing.T, fsys vfs.FS) {
	f := mustOpen(t, fsys, "f", create)
	wantRead := func(off int64, n int, want []byte, wantErr error) {
		t.Helper()
		b := make([]byte, n)
		got, err := f.ReadAt(b, off)
		if err != wantErr || !bytes.Equal(b[:got], want) {
			t.Errorf("ReadAt(%d bytes, %d) = %d bytes, %v, want %d bytes, %v", n, off, got, err, len(want), wantErr)
		}
	}
	wantRead(0, 1, nil, io.EOF)
	wantRead(0, 0, nil, nil)
	data := pattern(10_000, 0)
	_, err := f.WriteAt(data, 0)
	must(t, err)
	wantRead(0, 10_000, data, nil)
	wantRead(4095, 2, data[4095:4097], nil)
	wantRead(9_999, 1, data[9_999:], nil)
	wantRead(9_999, 2, data[9_999:], io.EOF)
	wantRead(10_000, 1, nil, io.EOF)
	wantRead(1<<40, 1, nil, io.EOF)
	_, err = f.ReadAt(make([]byte, 1), -1)
	wantErr(t, "ReadAt(-1)", err, syscall.EINVAL)
}

func writeAt(t *testing.T, fsys vfs.FS) {
	f := mustOpen(t, fsys, "f", create)
	want := make([]byte, 50_000)
	for i, r := range [][2]int{{0, 1}, {4095, 2}, {8192, 4096}, {1, 9000}, {40_000, 10_000}, {511, 514}, {7, 0}} {
		p := pattern(r[1], byte(i*2))
		if n, err := f.WriteAt(p, int64(r[0])); n != len(p) || err != nil {
			t.Fatalf("WriteAt(%d bytes, %d) = %d, %v", len(p), r[0], n, err)
		}
		copy(want[r[0]:], p)
	}
	wantContent(t, f, want)
	if n, err := f.WriteAt([]byte("xx"), -1); n != 0 || !errors.Is(err, syscall.EINVAL) {
		t.Errorf("WriteAt(-1) = %d, %v", n, err)
	}
	if n, err := f.WriteAt([]byte("xx"), math.MaxInt64-1); n != 0 || err == nil {
		t.Errorf("WriteAt across the end of int64 = %d, %v", n, err)
	}
	// Nothing written, nothing longer.
	if n, err := f.WriteAt(nil, 60_000); n != 0 || err != nil {
		t.Errorf("WriteAt(nil) = %d, %v", n, err)
	}
	wantContent(t, f, want)
	// The buffer is the caller's again.
	p := pattern(100, 0)
	_, err := f.WriteAt(p, 0)
	must(t, err)
	copy(want, p)
	clear(p)
	wantContent(t, f, want)
}

func writevAt(t *testing.T, fsys vfs.FS) {
	f := mustOpen(t, fsys, "f", create)
	src := pattern(200_000, 0)
	var bufs [][]byte
	// More buffers than the system takes in one call, some of them empty.
	for rest, i := src, 0; len(rest) > 0; i++ {
		n := min(len(rest), i*37%180)
		bufs = append(bufs, rest[:n])
		rest = rest[n:]
	}
	if len(bufs) < 2100 {
		t.Fatalf("only %d buffers", len(bufs))
	}
	kept := slices.Clone(bufs)
	n, err := f.WritevAt(bufs, 1000)
	if n != len(src) || err != nil {
		t.Fatalf("WritevAt = %d, %v, want %d", n, err, len(src))
	}
	wantContent(t, f, append(make([]byte, 1000), src...))
	for i := range kept {
		if !bytes.Equal(bufs[i], kept[i]) {
			t.Fatalf("WritevAt changed its argument %d", i)
		}
	}
	for _, b := range [][][]byte{nil, {nil}, make([][]byte, 1500)} {
		if n, err := f.WritevAt(b, 1<<30); n != 0 || err != nil {
			t.Errorf("WritevAt of %d empty buffers = %d, %v", len(b), n, err)
		}
	}
	if n, err := f.WritevAt([][]byte{{1}}, -1); n != 0 || !errors.Is(err, syscall.EINVAL) {
		t.Errorf("WritevAt(-1) = %d, %v", n, err)
	}
	if info, err := f.Stat(); err != nil || info.Size != 201_000 {
		t.Errorf("Stat: %+v, %v", info, err)
	}
}

func readOnly(t *testing.T, fsys vfs.FS) {
	w := mustOpen(t, fsys, "f", create)
	_, err := w.WriteAt([]byte("hello"), 0)
	must(t, err)
	f := mustOpen(t, fsys, "f", os.O_RDONLY)
	wantContent(t, f, []byte("hello"))
	_, err = f.WriteAt([]byte("x"), 0)
	wantErr(t, "WriteAt", err, syscall.EBADF)
	_, err = f.WritevAt([][]byte{{'x'}}, 0)
	wantErr(t, "WritevAt", err, syscall.EBADF)
	wantErr(t, "Allocate", f.Allocate(0, 1), syscall.EBADF)
	wantErr(t, "PunchHole", f.PunchHole(0, 1), syscall.EBADF)
	wantErr(t, "Truncate", f.Truncate(0), syscall.EINVAL)
	must(t, f.Datasync())
	must(t, f.Sync())
	wantContent(t, f, []byte("hello"))
}

func truncate(t *testing.T, fsys vfs.FS) {
	f := mustOpen(t, fsys, "f", create)
	data := pattern(10_000, 0)
	_, err := f.WriteAt(data, 0)
	must(t, err)
	must(t, f.Truncate(5000))
	wantContent(t, f, data[:5000])
	must(t, f.Truncate(10_000)) // what was cut off does not come back
	wantContent(t, f, append(bytes.Clone(data[:5000]), make([]byte, 5000)...))
	must(t, f.Truncate(0))
	wantContent(t, f, nil)
	must(t, f.Truncate(100))
	wantContent(t, f, make([]byte, 100))
	wantErr(t, "Truncate(-1)", f.Truncate(-1), syscall.EINVAL)
	must(t, f.Truncate(1<<38))
	info, err := f.Stat()
	if err != nil || info.Size != 1<<38 || info.Allocated > 1<<20 {
		t.Errorf("a file of 256 GiB of nothing: %+v, %v", info, err)
	}
}

func holes(t *testing.T, fsys vfs.FS) {
	f := mustOpen(t, fsys, "f", create)
	const size = 1 << 20
	data := pattern(size, 0)
	_, err := f.WriteAt(data, 0)
	must(t, err)
	must(t, f.Sync()) // delayed allocation
	before, err := f.Stat()
	must(t, err)
	if before.Allocated < size {
		t.Fatalf("%d bytes allocated for %d written", before.Allocated, size)
	}
	// Unaligned: the edges are zeroed, the blocks between come back.
	must(t, f.PunchHole(100_001, 700_000))
	clear(data[100_001:800_001])
	wantContent(t, f, data)
	must(t, f.Sync())
	after, err := f.Stat()
	must(t, err)
	if gain := before.Allocated - after.Allocated; gain < 600_000 {
		t.Errorf("a hole of 700000 bytes gave %d back", gain)
	}
	// Inside one block, and over the end: the file keeps its size.
	must(t, f.PunchHole(10, 20))
	clear(data[10:30])
	must(t, f.PunchHole(size-10, 1<<20))
	clear(data[size-10:])
	must(t, f.PunchHole(1<<30, 4096))
	wantContent(t, f, data)
	// A hole can be filled again.
	_, err = f.WriteAt([]byte("again"), 400_000)
	must(t, err)
	copy(data[400_000:], "again")
	wantContent(t, f, data)
	wantErr(t, "PunchHole(-1)", f.PunchHole(-1, 10), syscall.EINVAL)
	wantErr(t, "PunchHole of nothing", f.PunchHole(0, 0), syscall.EINVAL)
	wantErr(t, "PunchHole across the end of int64", f.PunchHole(math.MaxInt64-1, 10), syscall.EINVAL)
}

func allocate(t *testing.T, fsys vfs.FS) {
	f := mustOpen(t, fsys, "f", create)
	data := pattern(5000, 0)
	_, err := f.WriteAt(data, 0)
	must(t, err)
	must(t, f.Allocate(0, 1<<20))
	must(t, f.Sync())
	info, err := f.Stat()
	if err != nil || info.Size != 1<<20 || info.Allocated < 1<<20 {
		t.Errorf("after Allocate of 1 MiB: %+v, %v", info, err)
	}
	want := append(bytes.Clone(data), make([]byte, 1<<20-5000)...)
	wantContent(t, f, want)
	must(t, f.Allocate(1000, 10)) // inside: changes nothing
	wantContent(t, f, want)
	must(t, f.Truncate(5000))
	wantContent(t, f, data)
	wantErr(t, "Allocate(-1)", f.Allocate(-1, 10), syscall.EINVAL)
	wantErr(t, "Allocate of nothing", f.Allocate(0, 0), syscall.EINVAL)
	wantErr(t, "Allocate across the end of int64", f.Allocate(math.MaxInt64-1, 10), syscall.EINVAL)
}

func linksAfterRemove(t *testing.T, fsys vfs.FS) {
	f := mustOpen(t, fsys, "f", create)
	_, err := f.WriteAt([]byte("hello"), 0)
	must(t, err)
	links := func(want uint64) {
		t.Helper()
		if info, err := f.Stat(); err != nil || info.Links != want {
			t.Errorf("Stat: %+v, %v, want %d links", info, err, want)
		}
	}
	links(1)
	must(t, fsys.Rename("f", "g"))
	links(1)
	must(t, fsys.Remove("g"))
	links(0)
	// It is still a file.
	_, err = f.WriteAt([]byte("HE"), 0)
	must(t, err)
	must(t, f.Sync())
	wantContent(t, f, []byte("HEllo"))

	f = mustOpen(t, fsys, "f", create)
	mustOpen(t, fsys, "g", create)
	must(t, fsys.Rename("g", "f"))
	links(0)
}

func rename(t *testing.T, fsys vfs.FS) {
	must(t, fsys.Mkdir("d", 0o700))
	write := func(name, content string) {
		f := mustOpen(t, fsys, name, create)
		_, err := f.WriteAt([]byte(content), 0)
		must(t, err)
	}
	write("a", "new")
	write("b", "old, and longer")
	must(t, fsys.Rename("a", "b"))
	wantContent(t, mustOpen(t, fsys, "b", os.O_RDONLY), []byte("new"))
	_, err := fsys.Stat("a")
	wantErr(t, "Stat of the old name", err, fs.ErrNotExist)
	must(t, fsys.Rename("b", "d/c"))
	wantContent(t, mustOpen(t, fsys, "d/c", os.O_RDONLY), []byte("new"))
	must(t, fsys.Rename("d/c", "d/c")) // onto itself
	wantContent(t, mustOpen(t, fsys, "d/c", os.O_RDONLY), []byte("new"))
}

func renameDirectories(t *testing.T, fsys vfs.FS) {
	must(t, fsys.Mkdir("d", 0o700))
	f := mustOpen(t, fsys, "d/f", create)
	must(t, fsys.Mkdir("empty", 0o700))
	must(t, fsys.Mkdir("full", 0o700))
	mustOpen(t, fsys, "full/f", create)
	wantErr(t, "rename over a full directory", fsys.Rename("d", "full"), fs.ErrExist)
	wantErr(t, "rename over an empty directory", fsys.Rename("d", "empty"), fs.ErrExist)
	must(t, fsys.Remove("empty"))
	must(t, fsys.Rename("d", "full/e"))
	a, err := f.Stat()
	must(t, err)
	b, err := fsys.Stat("full/e/f")
	if err != nil || a.Inode != b.Inode {
		t.Errorf("after moving its directory: %+v, %v, want inode %d", b, err, a.Inode)
	}
	if got, err := fsys.ReadDir("."); err != nil || !slices.Equal(got, []string{"full"}) {
		t.Errorf("ReadDir(.): %q, %v", got, err)
	}
}

func inodes(t *testing.T, fsys vfs.FS) {
	a, b := mustOpen(t, fsys, "f", create), mustOpen(t, fsys, "f", os.O_RDONLY)
	c := mustOpen(t, fsys, "g", create)
	ia, err := a.Stat()
	must(t, err)
	ib, err := b.Stat()
	must(t, err)
	ic, err := c.Stat()
	must(t, err)
	is, err := fsys.Stat("f")
	must(t, err)
	if ia != ib || ia != is {
		t.Errorf("one file, three answers: %+v, %+v, %+v", ia, ib, is)
	}
	if ia.Inode == ic.Inode {
		t.Errorf("two files with inode %d", ia.Inode)
	}
	if ia.Name != "f" || ia.Dir {
		t.Errorf("Stat: %+v", ia)
	}
}

func syncs(t *testing.T, fsys vfs.FS) {
	f := mustOpen(t, fsys, "f", create)
	_, err := f.WriteAt(pattern(100_000, 0), 0)
	must(t, err)
	must(t, f.StartWriteback(0, 50_000))
	must(t, f.StartWriteback(0, 0))
	must(t, f.Datasync())
	must(t, f.Sync())
	must(t, fsys.SyncDir("."))
	wantContent(t, f, pattern(100_000, 0))
	wantErr(t, "StartWriteback(-1)", f.StartWriteback(-1, 1), syscall.EINVAL)
}

func lock(t *testing.T, fsys vfs.FS) {
	a, err := fsys.Lock("lock")
	must(t, err)
	_, err = fsys.Lock("lock")
	wantErr(t, "a second Lock", err, vfs.ErrLocked)
	b, err := fsys.Lock("lock2")
	must(t, err)
	must(t, b.Close())
	must(t, a.Close())
	a, err = fsys.Lock("lock")
	must(t, err)
	_, err = fsys.Lock("lock")
	wantErr(t, "a second Lock after a release", err, vfs.ErrLocked)
	must(t, a.Close())
	if _, err := fsys.Stat("lock"); err != nil {
		t.Errorf("the locked file is not there: %v", err)
	}
}

func lockReplaced(t *testing.T, fsys vfs.FS) {
	a, err := fsys.Lock("lock")
	must(t, err)
	must(t, fsys.Remove("lock"))
	b, err := fsys.Lock("lock")
	must(t, err)
	must(t, a.Close())
	_, err = fsys.Lock("lock")
	wantErr(t, "Lock of the new file", err, vfs.ErrLocked)
	must(t, b.Close())
}

func usage(t *testing.T, fsys vfs.FS) {
	u, err := fsys.Usage()
	must(t, err)
	if u.TotalBytes <= 0 || u.FreeBytes < 0 || u.FreeBytes > u.TotalBytes || u.FreeFiles < -1 {
		t.Errorf("Usage: %+v", u)
	}
	again, err := fsys.Usage()
	if err != nil || again.Device != u.Device || again.TotalBytes != u.TotalBytes {
		t.Errorf("Usage again: %+v, %v, want %+v", again, err, u)
	}
}

func closed(t *testing.T, fsys vfs.FS) {
	f := mustOpen(t, fsys, "f", create)
	_, err := f.WriteAt([]byte("hello"), 0)
	must(t, err)
	must(t, fsys.Close())
	wantContent(t, f, []byte("hello")) // files outlive their FS
	must(t, f.Close())
	b := make([]byte, 1)
	_, err = f.ReadAt(b, 0)
	wantErr(t, "ReadAt", err, fs.ErrClosed)
	_, err = f.WriteAt(b, 0)
	wantErr(t, "WriteAt", err, fs.ErrClosed)
	_, err = f.WritevAt([][]byte{b}, 0)
	wantErr(t, "WritevAt", err, fs.ErrClosed)
	_, err = f.Stat()
	wantErr(t, "Stat", err, fs.ErrClosed)
	for what, err := range map[string]error{
		"Datasync": f.Datasync(), "Sync": f.Sync(), "StartWriteback": f.StartWriteback(0, 1),
		"Allocate": f.Allocate(0, 1), "PunchHole": f.PunchHole(0, 1), "Truncate": f.Truncate(0), "Close": f.Close(),
	} {
		wantErr(t, what, err, fs.ErrClosed)
	}
	_, err = fsys.OpenFile("f", os.O_RDONLY, 0)
	wantErr(t, "OpenFile", err, fs.ErrClosed)
	_, err = fsys.Stat("f")
	wantErr(t, "FS.Stat", err, fs.ErrClosed)
	_, err = fsys.ReadDir(".")
	wantErr(t, "ReadDir", err, fs.ErrClosed)
	_, err = fsys.Usage()
	wantErr(t, "Usage", err, fs.ErrClosed)
	_, err = fsys.Lock("f")
	wantErr(t, "Lock", err, fs.ErrClosed)
	for what, err := range map[string]error{
		"Mkdir": fsys.Mkdir("d", 0o700), "Remove": fsys.Remove("f"), "Rename": fsys.Rename("f", "g"), "SyncDir": fsys.SyncDir("."),
	} {
		wantErr(t, what, err, fs.ErrClosed)
	}
}

func smallFiles(t *testing.T, fsys vfs.FS) {
	must(t, fsys.Mkdir("d", 0o700))
	_, err := vfs.ReadFile(fsys, "d/f", 100)
	wantErr(t, "ReadFile", err, fs.ErrNotExist)
	for _, content := range []string{"first", "", "third, longer"} {
		if _, err := mustOpen(t, fsys, "d/f"+vfs.TempSuffix, create).WriteAt([]byte("left by a crash, and long"), 0); err != nil {
			t.Fatal(err)
		}
		must(t, vfs.WriteFile(fsys, "d/f", []byte(content)))
		b, err := vfs.ReadFile(fsys, "d/f", 13)
		if err != nil || string(b) != content {
			t.Errorf("ReadFile: %q, %v, want %q", b, err, content)
		}
	}
	_, err = vfs.ReadFile(fsys, "d/f", 12)
	wantErr(t, "ReadFile with a limit of 12", err, vfs.ErrTooLarge)
	if got, err := fsys.ReadDir("d"); err != nil || !slices.Equal(got, []string{"f"}) {
		t.Errorf("ReadDir: %q, %v", got, err)
	}
	wantErr(t, "WriteFile over a directory", vfs.WriteFile(fsys, "d", nil), fs.ErrExist)
	if got, err := fsys.ReadDir("."); err != nil || !slices.Equal(got, []string{"d"}) {
		t.Errorf("after a failed WriteFile: %q, %v", got, err)
	}
}

// concurrent has many goroutines use their own ranges of one file, and their
// own files; the race detector looks on.
func concurrent(t *testing.T, fsys vfs.FS) {
	const workers, rounds, span = 8, 20, 20_000
	f := mustOpen(t, fsys, "shared", create)
	var wg sync.WaitGroup
	for w := range workers {
		wg.Go(func() {
			own := fmt.Sprintf("own%d", w)
			off := int64(w * span)
			for r := range rounds {
				p := pattern(span, byte(2*(w*rounds+r)))
				_, err := f.WritevAt([][]byte{p[:777], p[777:]}, off)
				err = errors.Join(err, f.Datasync())
				got := make([]byte, span)
				_, rerr := f.ReadAt(got, off)
				if rerr == io.EOF { // a full read may end with the file
					rerr = nil
				}
				if err = errors.Join(err, rerr); err != nil || !bytes.Equal(got, p) {
					t.Errorf("worker %d, round %d: %v, first difference at %d", w, r, err, diff(got, p))
				}
				if err := vfs.WriteFile(fsys, own, p[:100]); err != nil {
					t.Error(err)
				}
				if b, err := vfs.ReadFile(fsys, own, 100); err != nil || !bytes.Equal(b, p[:100]) {
					t.Errorf("worker %d: ReadFile: %v", w, err)
				}
				if _, err := fsys.ReadDir("."); err != nil {
					t.Error(err)
				}
				if _, err := f.Stat(); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
}

// concurrentCreate has many goroutines race for one name: one of them wins.
func concurrentCreate(t *testing.T, fsys vfs.FS) {
	for r := range 20 {
		name := fmt.Sprintf("f%d", r)
		var mu sync.Mutex
		var won, locked int
		var closers []io.Closer
		var wg sync.WaitGroup
		for range 8 {
			wg.Go(func() {
				f, err := fsys.OpenFile(name, create|os.O_EXCL, 0o600)
				l, lerr := fsys.Lock("lock")
				mu.Lock()
				defer mu.Unlock()
				if err == nil {
					won++
					closers = append(closers, f)
				} else if !errors.Is(err, fs.ErrExist) {
					t.Error(err)
				}
				if lerr == nil {
					locked++
					closers = append(closers, l)
				} else if !errors.Is(lerr, vfs.ErrLocked) {
					t.Error(lerr)
				}
			})
		}
		wg.Wait()
		if won != 1 || locked != 1 {
			t.Errorf("%d created %s and %d locked, want one each", won, name, locked)
		}
		for _, c := range closers {
			must(t, c.Close())
		}
	}
}
