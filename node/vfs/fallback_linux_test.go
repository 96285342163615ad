package vfs

import (
	"bytes"
	"errors"
	"io"
	"os"
	"testing"

	"golang.org/x/sys/unix"
)

// TestShortAndInterrupted plays a system that moves a few bytes at a time and is
// interrupted between. Like the next test it changes variables, and must not run
// beside others.
func TestShortAndInterrupted(t *testing.T) {
	defer func(r, w func(int, []byte, int64) (int, error), v func(int, [][]byte, int64) (int, error)) {
		pread, pwrite, pwritev = r, w, v
	}(pread, pwrite, pwritev)
	calls, most := 0, 0
	broken := error(nil) // instead of the interruption
	interrupted := func() error {
		if calls++; calls%3 == 0 {
			if broken != nil {
				return broken
			}
			return unix.EINTR
		}
		return nil
	}
	pread = func(fd int, p []byte, off int64) (int, error) {
		if err := interrupted(); err != nil {
			return -1, err
		}
		return unix.Pread(fd, p[:min(len(p), most)], off)
	}
	pwrite = func(fd int, p []byte, off int64) (int, error) {
		if err := interrupted(); err != nil {
			return -1, err
		}
		return unix.Pwrite(fd, p[:min(len(p), most)], off)
	}
	pwritev = func(fd int, bufs [][]byte, off int64) (int, error) {
		if err := interrupted(); err != nil {
			return -1, err
		}
		all := bytes.Join(bufs, nil)
		return unix.Pwrite(fd, all[:min(len(all), most)], off)
	}
	fsys, err := OS(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer fsys.Close()
	f, err := fsys.OpenFile("f", os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()

	want := make([]byte, 10_000)
	for i := range want {
		want[i] = byte(i * i >> 3)
	}
	for _, most = range []int{1, 7, 1000, 9_999, 10_000} {
		for what, write := range map[string]func() (int, error){
			"WriteAt":  func() (int, error) { return f.WriteAt(want, 5) },
			"WritevAt": func() (int, error) { return f.WritevAt([][]byte{want[:3], nil, want[3:8000], want[8000:]}, 5) },
		} {
			if err := f.Truncate(0); err != nil {
				t.Fatal(err)
			}
			if n, err := write(); n != len(want) || err != nil {
				t.Errorf("%s, %d bytes at a time: %d, %v", what, most, n, err)
			}
			got := make([]byte, len(want)+1)
			n, err := f.ReadAt(got, 5)
			if err != io.EOF || !bytes.Equal(got[:n], want) {
				t.Errorf("%s, %d bytes at a time: read %d bytes, %v", what, most, n, err)
			}
		}
	}
	// What was done before an error is counted.
	broken, most = unix.ENOSPC, 100
	for what, call := range map[string]func() (int, error){
		"WriteAt":  func() (int, error) { return f.WriteAt(want, 0) },
		"WritevAt": func() (int, error) { return f.WritevAt([][]byte{want[:50], want[50:]}, 0) },
		"ReadAt":   func() (int, error) { return f.ReadAt(make([]byte, 1000), 0) },
	} {
		calls = 0
		if n, err := call(); n != 200 || !errors.Is(err, unix.ENOSPC) {
			t.Errorf("%s, its third part failing: %d, %v, want 200", what, n, err)
		}
	}
}

// TestWithoutFallocate plays a filesystem that can neither reserve nor punch.
func TestWithoutFallocate(t *testing.T) {
	real := fallocate
	defer func() { fallocate = real }()
	calls := 0
	fallocate = func(int, uint32, int64, int64) error {
		if calls++; calls%2 == 1 {
			return unix.EINTR
		}
		return unix.EOPNOTSUPP
	}
	fsys, err := OS(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer fsys.Close()
	f, err := fsys.OpenFile("f", os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	check := func(want []byte) Info {
		t.Helper()
		got := make([]byte, len(want)+1)
		n, err := f.ReadAt(got, 0)
		if err != io.EOF || !bytes.Equal(got[:n], want) {
			t.Errorf("content: %d bytes, %v, want %d", n, err, len(want))
		}
		if err := f.Sync(); err != nil {
			t.Fatal(err)
		}
		info, err := f.Stat()
		if err != nil {
			t.Fatal(err)
		}
		return info
	}

	want := make([]byte, 1<<20)
	for _, off := range []int{100, 300_000, 500_000} { // with holes between
		copy(want[off:], "data")
		if _, err := f.WriteAt([]byte("data"), int64(off)); err != nil {
			t.Fatal(err)
		}
	}
	if err := f.Allocate(0, 1<<20); err != nil {
		t.Fatal(err)
	}
	if info := check(want); info.Allocated < 1<<20 {
		t.Errorf("reserved only %d bytes", info.Allocated)
	}

	clear(want[50:400_000])
	if err := f.PunchHole(50, 400_000-50); err != nil {
		t.Fatal(err)
	}
	clear(want[1<<20-5:])
	if err := f.PunchHole(1<<20-5, 1<<20); err != nil { // over the end: keeps its size
		t.Fatal(err)
	}
	if err := f.PunchHole(1<<30, 1); err != nil {
		t.Fatal(err)
	}
	check(want)
}
