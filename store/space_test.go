package store

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"cairn/node"
	"cairn/node/vfs/crashfs"
)

// wantFull checks an error that says that there is no room: the kind, the
// directory, and that it came at once.
func wantFull(t *testing.T, what string, begin time.Time, err error, dir string) {
	t.Helper()
	room, ok := errors.AsType[*RoomError](err)
	if !errors.Is(err, ErrFull) || !ok || !strings.HasPrefix(room.Dir, dir) || room.Need <= room.Free {
		t.Errorf("%s: %v; want ErrFull with a directory under %s", what, err, dir)
	}
	if errors.Is(err, ErrUnknown) {
		t.Errorf("%s: %v: nothing was stored, and that is known", what, err)
	}
	if d := time.Since(begin); d > 3*time.Second {
		t.Errorf("%s took %v to be refused", what, d)
	}
}

func (r *rig) delete(key string) error {
	_, err := r.st.Delete(context.Background(), "main", key, Conditions{})
	return err
}

// H52: all six nodes on one filesystem. Clients' data stops at its mark, small
// and large; deletes go on to theirs; reads always; a start takes what is left.
func TestAllNodesOnAFullDisk(t *testing.T) {
	const total = 512 << 20
	disk := crashfs.NewDisk(crashfs.DiskConfig{Bytes: total})
	r := newRigOn(t, func(string) *crashfs.FS { return disk.New() })
	large := random(1, 9<<20)
	for i := range 40 {
		r.put(fmt.Sprintf("small/%d", i), fmt.Append(nil, "small ", i))
	}
	r.put("large", large)
	occupied := int64(0)
	leave := func(bytes int64) {
		t.Helper()
		u, err := r.fs["n01"].Usage()
		if err != nil {
			t.Fatal(err)
		}
		disk.Occupy(u.FreeBytes - bytes)
		occupied += u.FreeBytes - bytes
	}
	reads := func() {
		t.Helper()
		r.mustRead("small/39", []byte("small 39"))
		r.mustRead("large", large)
	}
	const dir = "/data/nodes/n"

	leave(total / 100 * 4)
	for i := range 3 { // the first may find out for the rest
		begin := time.Now()
		wantFull(t, "a small put", begin, r.tryPut("new", []byte("new")), dir)
		begin = time.Now()
		wantFull(t, "a large put", begin, r.tryPut("new large", random(2, 20<<20)), dir)
		if err := r.delete(fmt.Sprintf("small/%d", i)); err != nil {
			t.Errorf("delete below the mark of clients' data: %v", err)
		}
	}
	reads()
	if st, err := r.st.Status(t.Context()); err != nil || !st.Writable || !strings.Contains(st.NoRoom, dir) || st.Nodes[0].State != "full" || st.Nodes[0].Allowed {
		t.Errorf("status: %+v, %v", st, err)
	}

	leave(total / 200)
	for i := range 3 {
		begin := time.Now()
		wantFull(t, "a delete below the mark of the log", begin, r.delete(fmt.Sprintf("small/%d", 10+i)), dir)
		wantFull(t, "a put", begin, r.tryPut("new", []byte("new")), dir)
	}
	reads()
	r.close()
	r.open() // what is left is enough for a start
	reads()
	for i := range 3 {
		if _, err := r.read(fmt.Sprintf("small/%d", i)); !errors.Is(err, ErrNoObject) {
			t.Errorf("what was deleted: %v", err)
		}
		r.mustRead(fmt.Sprintf("small/%d", 10+i), fmt.Appendf(nil, "small %d", 10+i))
	}
	if _, err := r.read("new"); !errors.Is(err, ErrNoObject) {
		t.Errorf("what was refused is there: %v", err)
	}

	disk.Occupy(-occupied)
	waitFor(t, "puts when there is room again", func() bool { return r.tryPut("new", []byte("new")) == nil })
	r.put("new large", random(2, 20<<20))
	if st, err := r.st.Status(t.Context()); err != nil || st.NoRoom != "" || st.Nodes[0].State != "up" {
		t.Errorf("status: %+v, %v", st, err)
	}
}

func waitFor(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for limit := time.Now().Add(5 * time.Second); !ok(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(limit) {
			t.Fatalf("%s: not within five seconds", what)
		}
	}
}

// One node's filesystem is full: the others take its place, and nobody waits.
func TestOneNodeOnAFullDisk(t *testing.T) {
	disk := crashfs.NewDisk(crashfs.DiskConfig{Bytes: 512 << 20})
	r := newRigOn(t, func(name string) *crashfs.FS {
		if name == "n03" {
			return disk.New()
		}
		return crashfs.New()
	})
	r.put("before", random(1, 3<<20))
	u, err := r.fs["n03"].Usage()
	if err != nil {
		t.Fatal(err)
	}
	for _, left := range []int64{20 << 20, 4 << 20, 0} {
		now, err := r.fs["n03"].Usage()
		if err != nil {
			t.Fatal(err)
		}
		disk.Occupy(now.FreeBytes - left)
		begin := time.Now()
		r.put(fmt.Sprintf("small %d", left), []byte("small"))
		r.put(fmt.Sprintf("large %d", left), random(uint64(left), 5<<20))
		if err := r.delete(fmt.Sprintf("small %d", left)); err != nil {
			t.Error(err)
		}
		if d := time.Since(begin); d > 3*time.Second {
			t.Errorf("with %d bytes left on one node the writes took %v", left, d)
		}
		r.mustRead(fmt.Sprintf("large %d", left), random(uint64(left), 5<<20))
		st, err := r.st.Status(t.Context())
		if err != nil || st.NoRoom != "" || st.Nodes[2].State != "full" || !strings.Contains(st.Nodes[2].Reason, "/data/nodes/n03") {
			t.Errorf("with %d bytes left on n03: %v, %q, %+v", left, err, st.NoRoom, st.Nodes[2])
		}
	}
	r.close()
	r.open()
	r.mustRead("before", random(1, 3<<20))
	r.mustRead("large 0", random(0, 5<<20))
	_ = u
}

// H9: the filesystem of the index has no room. Nothing is decided that the index
// could not apply.
func TestIndexWithoutRoom(t *testing.T) {
	r := newRig(t)
	r.put("a", []byte("a"))
	r.put("b", []byte("b"))
	r.close()
	var refuse atomic.Pointer[func(why node.Purpose) bool] // events ask for room too
	r.change = func(c *Config) {
		c.Room = func(why node.Purpose) error {
			if f := refuse.Load(); f != nil && (*f)(why) {
				return &node.RoomError{Dir: "/data/index", Why: why, Free: 5, Need: 7}
			}
			return nil
		}
	}
	r.open()
	set := func(f func(node.Purpose) bool) { refuse.Store(&f) }
	set(func(why node.Purpose) bool { return why == node.ForClient })
	begin := time.Now()
	wantFull(t, "a put", begin, r.tryPut("c", []byte("c")), "/data/index")
	if err := r.delete("a"); err != nil {
		t.Errorf("delete: %v", err)
	}
	set(func(node.Purpose) bool { return true })
	wantFull(t, "a put", begin, r.tryPut("c", []byte("c")), "/data/index")
	wantFull(t, "a delete", begin, r.delete("b"), "/data/index")
	r.mustRead("b", []byte("b"))
	if st, err := r.st.Status(t.Context()); err != nil || !strings.Contains(st.NoRoom, "/data/index") {
		t.Errorf("status: %+v, %v", st, err)
	}
	refuse.Store(nil)
	r.put("c", []byte("c"))
	if err := r.delete("b"); err != nil {
		t.Error(err)
	}
}

// A log pack that one node has taken and for which there is no room any more may
// be the tail of the next start: its writes are unknown, whatever was said since.
func TestFullBehindAnUncertainPack(t *testing.T) {
	r := newRig(t)
	r.put("a", []byte("a"))
	r.close()
	r.change = impatient
	first := true
	r.wrap = func(name string, n node.Store) node.Store {
		return &faulty{Store: n, put: func(s node.Shard) error {
			if r.st == nil { // the start
				return nil
			}
			if first && name == "n01" {
				return nil // one shard is taken
			}
			if name == "n01" {
				first = false
			}
			return &node.RoomError{Dir: "/data/nodes/" + name, Why: node.ForLog, Free: 1, Need: 2}
		}}
	}
	r.open()
	err := r.delete("a")
	if !errors.Is(err, ErrUnknown) || errors.Is(err, ErrFull) || errors.Is(err, ErrUnavailable) {
		t.Errorf("a delete of which a shard is durable: %v, want only ErrUnknown", err)
	}
}
