package datadir

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"cairn/node"
)

// The ballast is made once a server watches, found again by the next, made anew
// where some of it is missing, and taken away where none belongs any more.
func TestBallast(t *testing.T) {
	o := newPlace(t).options()
	if err := start(t, o, nil); err != nil {
		t.Fatal(err)
	}
	o.Serve = true
	file := filepath.Join(o.Dir, ballastName)
	size := func() int64 {
		info, err := os.Stat(file)
		if err != nil {
			return 0
		}
		return info.Size()
	}
	open := func() *Dir {
		t.Helper()
		d, err := Open(t.Context(), o)
		if err != nil {
			t.Fatal(err)
		}
		return d
	}
	d := open()
	if size() != 0 {
		t.Error("a ballast is made before the store is open")
	}
	stop := d.Watch()
	want := d.guard.spots[0].want
	stop()
	if want <= 0 || want > ballastIndex || size() != want {
		t.Fatalf("the ballast has %d bytes, want %d", size(), want)
	}
	for _, why := range []node.Purpose{node.ForClient, node.ForLog, node.ForStart} {
		if err := d.Room(why); err != nil {
			t.Errorf("room for %v: %v", why, err)
		}
	}
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
	stray := filepath.Join(o.Dir, "index", ballastName)
	if err := errors.Join(os.Truncate(file, want/2), os.WriteFile(stray, []byte("x"), 0o600)); err != nil {
		t.Fatal(err)
	}
	d = open()
	if has := d.guard.spots[0].has; has < want/2-8192 || has > want/2+8192 {
		t.Errorf("half of the ballast is found as %d bytes of %d", has, want)
	}
	if _, err := os.Stat(stray); err == nil {
		t.Error("a ballast that belongs nowhere is kept")
	}
	d.Watch()()
	if size() != want {
		t.Errorf("the ballast has %d bytes, want %d", size(), want)
	}
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
	// Who only looks makes none.
	if err := os.Remove(file); err != nil {
		t.Fatal(err)
	}
	o.Serve = false
	d = open()
	d.Watch()()
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
	if size() != 0 {
		t.Error("a ballast is made without a server")
	}
}

// An index is not opened where there is no room for it, whoever asks: words, and
// no signal.
func TestNoRoomForAnIndex(t *testing.T) {
	o := newPlace(t).options()
	if err := start(t, o, nil); err != nil {
		t.Fatal(err)
	}
	d, err := Open(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	small := t.TempDir()
	if err := unix.Mount("none", small, "tmpfs", 0, "size=6m"); err != nil {
		t.Skipf("cannot mount a small filesystem: %v", err)
	}
	defer unix.Unmount(small, unix.MNT_DETACH)
	check := func(what string, err error) {
		t.Helper()
		if room, ok := errors.AsType[*node.RoomError](err); !ok || room.Free > 6<<20 || room.Need <= room.Free {
			t.Errorf("%s: %v, want a RoomError", what, err)
		}
	}
	_, err = d.OpenIndexAt(filepath.Join(small, "index"), 8<<20)
	check("an index", err)
	_, _, err = d.ScratchIndex(small)
	check("an index for a verification", err)
}
