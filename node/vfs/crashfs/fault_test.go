package crashfs_test

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"cairn/node/vfs"
	"cairn/node/vfs/crashfs"
)

func wantIs(t *testing.T, what string, got, want error) {
	t.Helper()
	if !errors.Is(got, want) {
		t.Errorf("%s: error %v, want %v", what, got, want)
		return
	}
	if _, ok := errors.AsType[*fs.PathError](got); !ok {
		t.Errorf("%s: error %v is no *fs.PathError", what, got)
	}
}

// everyOperation calls each method once and returns the errors by kind.
func everyOperation(fsys *crashfs.FS, f vfs.File) map[crashfs.Kind]error {
	_, openErr := fsys.OpenFile("new", create, 0o600)
	_, readDirErr := fsys.ReadDir(".")
	_, statErr := fsys.Stat("f")
	_, lockErr := fsys.Lock("lock")
	_, usageErr := fsys.Usage()
	_, readErr := f.ReadAt(make([]byte, 1), 0)
	_, writeErr := f.WriteAt([]byte("x"), 0)
	_, writevErr := f.WritevAt([][]byte{{'x'}}, 0)
	_, fstatErr := f.Stat()
	return map[crashfs.Kind]error{
		crashfs.OpOpen: openErr, crashfs.OpMkdir: fsys.Mkdir("newdir", 0o700), crashfs.OpRemove: fsys.Remove("r"),
		crashfs.OpRename: fsys.Rename("s", "t"), crashfs.OpReadDir: readDirErr, crashfs.OpStat: statErr,
		crashfs.OpSyncDir: fsys.SyncDir("."), crashfs.OpLock: lockErr, crashfs.OpUsage: usageErr,
		crashfs.OpRead: readErr, crashfs.OpWrite: writeErr, crashfs.OpWritev: writevErr,
		crashfs.OpDatasync: f.Datasync(), crashfs.OpSync: f.Sync(), crashfs.OpWriteback: f.StartWriteback(0, 1),
		crashfs.OpAllocate: f.Allocate(0, 1), crashfs.OpPunch: f.PunchHole(0, 1), crashfs.OpTruncate: f.Truncate(1),
		crashfs.OpFileStat: fstatErr, crashfs.OpClose: f.Close(),
	}
}

func prepared(t *testing.T) (*crashfs.FS, vfs.File) {
	fsys := crashfs.New()
	f := synced(t, fsys, "old")
	for _, name := range []string{"r", "s"} {
		must(t, open(t, fsys, name).Close())
	}
	return fsys, f
}

func TestEveryOperationCanFail(t *testing.T) {
	fsys, f := prepared(t)
	fsys.Inject(func(op crashfs.Op) crashfs.Fault { return crashfs.Fault{Err: syscall.EIO} })
	for kind, err := range everyOperation(fsys, f) {
		wantIs(t, kind.String(), err, syscall.EIO)
	}
	fsys.Inject(nil)
	if names, err := fsys.ReadDir("."); err != nil || !slices.Equal(names, []string{"f", "r", "s"}) {
		t.Errorf("failed operations changed the directory: %q, %v", names, err)
	}
	if got := content(t, fsys, "f"); got != "old" {
		t.Errorf("failed operations changed the file: %q", got)
	}
	wantIs(t, "a file whose Close failed", f.Close(), fs.ErrClosed)
}

func TestEverythingOpenedBeforeFails(t *testing.T) {
	for what, end := range map[string]func(*crashfs.FS) *crashfs.FS{
		"crash": func(f *crashfs.FS) *crashfs.FS { return f.Crash(seeded(1)) },
		"kill":  (*crashfs.FS).Kill,
	} {
		fsys, f := prepared(t)
		lock, err := fsys.Lock("lock")
		must(t, err)
		must(t, fsys.SyncDir("."))
		next := end(fsys)
		for kind, err := range everyOperation(fsys, f) {
			wantIs(t, what+": "+kind.String(), err, crashfs.ErrCrashed)
			wantIs(t, what+": "+kind.String(), err, fs.ErrClosed)
		}
		wantIs(t, what+": Close", fsys.Close(), fs.ErrClosed)
		again, err := next.Lock("lock")
		if err != nil {
			t.Fatalf("%s: the lock is still held: %v", what, err)
		}
		lock.Close() // of the dead: releases nothing
		_, err = next.Reopen().Lock("lock")
		wantIs(t, what+": the next one's lock", err, vfs.ErrLocked)
		must(t, again.Close())
		if got := content(t, next, "f"); got != "old" {
			t.Errorf("%s: %q", what, got)
		}
	}
}

func TestRules(t *testing.T) {
	fsys := crashfs.New()
	must(t, fsys.Mkdir("d", 0o700))
	fsys.Inject(crashfs.Rules(
		crashfs.Rule{Kind: crashfs.OpOpen, Name: "d/*", From: 2, Count: 2, Fault: crashfs.Fault{Err: syscall.EMFILE}},
		crashfs.Rule{Kind: crashfs.OpOpen, From: 6, Fault: crashfs.Fault{Err: syscall.EIO}},
	))
	var got []string
	for _, name := range []string{"d/a", "a", "d/a", "d/a", "d/a", "a", "d/a"} {
		_, err := fsys.OpenFile(name, create, 0o600)
		got = append(got, class(err))
	}
	emfile, eio := class(syscall.EMFILE), class(syscall.EIO)
	if want := []string{"", "", emfile, emfile, "", eio, eio}; !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
	var ops []crashfs.Op
	fsys.Inject(func(op crashfs.Op) crashfs.Fault { ops = append(ops, op); return crashfs.Fault{} })
	n := fsys.Ops()
	f := open(t, fsys, "f")
	write(t, f, 10, "abc")
	must(t, fsys.Rename("f", "g"))
	write(t, f, 20, "")
	want := []crashfs.Op{
		{Kind: crashfs.OpOpen, Name: "f", Flag: create, N: n + 1, Nth: 8},
		{Kind: crashfs.OpWrite, Name: "f", Off: 10, Len: 3, N: n + 2, Nth: 1},
		{Kind: crashfs.OpRename, Name: "f", To: "g", N: n + 3, Nth: 1},
		{Kind: crashfs.OpWrite, Name: "f", Off: 20, N: n + 4, Nth: 2},
	}
	if !slices.Equal(ops, want) {
		t.Errorf("the injector saw %+v, want %+v", ops, want)
	}
}

func TestTrace(t *testing.T) {
	fsys, f := prepared(t)
	fsys.StartTrace()
	everyOperation(fsys, f)
	got := strings.Split(strings.TrimSuffix(fsys.TraceText(), "\n"), "\n")
	slices.Sort(got)
	want := []string{
		"allocate f 0+1", "close f", "datasync f", "fstat f", "lock lock", "mkdir newdir", "open new rdwr create",
		"punch f 0+1", "read f 0+1", "readdir .", "remove r", "rename s t", "stat f", "sync f", "syncdir .",
		"truncate f 1", "usage .", "write f 0+1", "writeback f 0+1", "writev f 0+1",
	}
	if !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
}

func TestTornWrite(t *testing.T) {
	fsys := crashfs.New()
	f := synced(t, fsys, "0123456789")
	fsys.Inject(crashfs.Rules(crashfs.Rule{Kind: crashfs.OpWritev, Fault: crashfs.Fault{Err: syscall.EIO, Torn: 4}}))
	n, err := f.WritevAt([][]byte{[]byte("ab"), []byte("cdef")}, 2)
	if n != 4 {
		t.Errorf("%d bytes written, want 4", n)
	}
	wantIs(t, "WritevAt", err, syscall.EIO)
	if got := content(t, fsys, "f"); got != "01abcd6789" {
		t.Errorf("content %q", got)
	}
}

func TestDelaysAndHangs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		fsys := crashfs.New()
		f := synced(t, fsys, "old")
		release := make(chan struct{})
		fsys.Inject(crashfs.Rules(
			crashfs.Rule{Kind: crashfs.OpDatasync, From: 1, Count: 1, Fault: crashfs.Fault{Delay: time.Hour}},
			crashfs.Rule{Kind: crashfs.OpDatasync, Fault: crashfs.Fault{Wait: release}},
		))
		start := time.Now()
		must(t, f.Datasync())
		if d := time.Since(start); d != time.Hour {
			t.Errorf("the sync took %v, want an hour", d)
		}
		hung := make(chan error)
		go func() { hung <- f.Datasync() }()
		synctest.Wait()
		write(t, f, 0, "new") // others go on meanwhile
		select {
		case err := <-hung:
			t.Fatalf("the sync came back: %v", err)
		default:
		}
		next := fsys.Crash(seeded(4))
		close(release)
		wantIs(t, "a sync that hung over a crash", <-hung, crashfs.ErrCrashed)
		if got := content(t, next, "f"); got != "old" && got != "new" {
			t.Errorf("content %q", got)
		}
	})
}

func TestHungSyncDoesNotReachBeyondTheCrash(t *testing.T) {
	// Were the sync done after the crash, it would make the survivor durable.
	for seed := range 20 {
		fsys := crashfs.New()
		f := synced(t, fsys, "old")
		write(t, f, 0, "new")
		in, out, hung := make(chan struct{}), make(chan struct{}), make(chan error)
		fsys.Inject(func(op crashfs.Op) crashfs.Fault {
			if op.Kind == crashfs.OpDatasync {
				close(in)
				return crashfs.Fault{Wait: out}
			}
			return crashfs.Fault{}
		})
		go func() { hung <- f.Datasync() }()
		<-in
		next := fsys.Kill()
		close(out)
		wantIs(t, "the hung sync", <-hung, crashfs.ErrCrashed)
		if got := content(t, next.CrashClone(seeded(seed)), "f"); got == "old" {
			return // not durable, as it should
		}
	}
	t.Error("a sync that hung over a kill was done all the same")
}

func TestFlips(t *testing.T) {
	fsys := crashfs.New()
	f := synced(t, fsys, "a")
	write(t, f, 8192, "b")
	must(t, fsys.Flip("f", 1))
	if got := content(t, fsys, "f")[:1]; got != "c" {
		t.Errorf("flipped at rest: %q, want c", got)
	}
	for outcome := range outcomes(t, fsys, lookAt(t, "f")) {
		if outcome[:1] != "c" {
			t.Errorf("the flip did not last: %.10q", outcome)
		}
	}
	must(t, f.Datasync())
	write(t, f, 0, "xyz")
	must(t, fsys.Flip("f", 8))
	if got := content(t, fsys, "f")[:3]; got != "xxz" {
		t.Errorf("flipped while dirty: %q, want xxz", got)
	}
	for outcome := range outcomes(t, fsys, lookAt(t, "f")) {
		if got := outcome[:3]; got != "c\x01\x00" && got != "xxz" {
			t.Errorf("flipped while dirty, after the crash: %q", got)
		}
	}
	before, _ := free(t, fsys)
	must(t, fsys.Flip("f", 5000*8)) // in a hole
	if after, _ := free(t, fsys); before-after != 4096 {
		t.Errorf("a flip in a hole takes %d bytes", before-after)
	}
	if b := content(t, fsys, "f"); b[5000] != 1 {
		t.Errorf("flipped in a hole: %d", b[5000])
	}
	wantIs(t, "beyond the end", fsys.Flip("f", 8193*8), syscall.EINVAL)
	wantIs(t, "nothing there", fsys.Flip("g", 0), fs.ErrNotExist)

	fsys.Inject(crashfs.Rules(crashfs.Rule{Kind: crashfs.OpRead, Count: 1, Fault: crashfs.Fault{Flip: []int64{0, 9, 1 << 40}}}))
	if got := content(t, fsys, "f")[:3]; got != "yzz" {
		t.Errorf("flipped in a read: %q, want yzz", got)
	}
	if got := content(t, fsys, "f")[:3]; got != "xxz" {
		t.Errorf("the next read: %q, want xxz", got)
	}
}

func free(t *testing.T, fsys vfs.FS) (bytes, files int64) {
	t.Helper()
	u, err := fsys.Usage()
	must(t, err)
	return u.FreeBytes, u.FreeFiles
}

func TestCapacityIsShared(t *testing.T) {
	const room = 100 * 4096
	disk := crashfs.NewDisk(crashfs.DiskConfig{Device: 7, Bytes: room})
	a, b := disk.New(), disk.New()
	other := crashfs.New()
	ua, err := a.Usage()
	must(t, err)
	uo, err := other.Usage()
	must(t, err)
	if ua.Device != 7 || ua.TotalBytes != room || ua.FreeBytes != room || ua.FreeFiles != -1 || uo.Device == 7 {
		t.Errorf("Usage %+v, of another disk %+v", ua, uo)
	}
	f := open(t, a, "f")
	must(t, f.Allocate(0, 60*4096))
	g := open(t, b, "g")
	wantIs(t, "Allocate of more than there is", g.Allocate(0, 41*4096), syscall.ENOSPC)
	n, err := g.WriteAt(make([]byte, 50*4096), 100)
	wantIs(t, "WriteAt of more than there is", err, syscall.ENOSPC)
	if n != 40*4096-100 {
		t.Errorf("%d bytes written, want what there was room for", n)
	}
	if left, _ := free(t, a); left != 0 {
		t.Errorf("%d bytes free on a full disk", left)
	}
	write(t, f, 59*4096, "reserved room is room")
	must(t, g.PunchHole(4096, 10*4096))
	if left, _ := free(t, a); left != 10*4096 {
		t.Errorf("%d bytes free, want the hole", left)
	}
	disk.Occupy(10 * 4096)
	_, err = g.WriteAt([]byte("x"), 4096)
	wantIs(t, "WriteAt after others took the room", err, syscall.ENOSPC)
	disk.Occupy(-10 * 4096)

	// A removed file keeps its room until it is closed, or the process ends.
	must(t, a.Remove("f"))
	if left, _ := free(t, b); left != 10*4096 {
		t.Errorf("%d bytes free while the removed file is open", left)
	}
	must(t, f.Close())
	if left, _ := free(t, b); left != 70*4096 {
		t.Errorf("%d bytes free once it is closed", left)
	}
	must(t, b.Remove("g"))
	b = b.Kill()
	if left, _ := free(t, b); left != room {
		t.Errorf("%d bytes free on an empty disk", left)
	}
}

func TestInodeLimit(t *testing.T) {
	disk := crashfs.NewDisk(crashfs.DiskConfig{Files: 3})
	a, b := disk.New(), disk.New()
	must(t, a.Mkdir("d", 0o700))
	open(t, a, "d/f")
	f := open(t, b, "f")
	_, err := b.OpenFile("g", create, 0o600)
	wantIs(t, "a file too many", err, syscall.ENOSPC)
	wantIs(t, "a directory too many", b.Mkdir("g", 0o700), syscall.ENOSPC)
	_, err = b.Lock("g")
	wantIs(t, "a lock file too many", err, syscall.ENOSPC)
	if _, files := free(t, a); files != 0 {
		t.Errorf("%d inodes free", files)
	}
	write(t, f, 0, "content needs no inode")
	must(t, f.Close())
	must(t, b.Remove("f"))
	must(t, b.Mkdir("g", 0o700))
}

func TestRemoveAll(t *testing.T) {
	fsys := crashfs.New()
	f := synced(t, fsys, "old")
	must(t, fsys.Mkdir("d", 0o700))
	g := open(t, fsys, "d/g")
	must(t, fsys.RemoveAll("."))
	for name, h := range map[string]vfs.File{"f": f, "g": g} {
		info, err := h.Stat()
		if err != nil || info.Links != 0 {
			t.Errorf("%s: %+v, %v", name, info, err)
		}
	}
	write(t, f, 0, "new")
	must(t, f.Datasync()) // says nil, and means nothing
	if names, err := fsys.ReadDir("."); err != nil || len(names) != 0 {
		t.Errorf("ReadDir: %q, %v", names, err)
	}
	must(t, fsys.SyncDir("."))
	wantOutcomes(t, outcomes(t, fsys, lookAt(t, "f")), "-")
	wantIs(t, "of nothing", fsys.RemoveAll("x"), fs.ErrNotExist)
}

func TestSwap(t *testing.T) {
	disk := crashfs.NewDisk(crashfs.DiskConfig{})
	fsys, below := disk.New(), disk.New()
	f := synced(t, fsys, "old")
	synced(t, below, "below")
	before, err := fsys.Stat("f")
	must(t, err)
	fsys.Swap(below)
	after, err := fsys.Stat("f")
	must(t, err)
	if before.Inode == after.Inode || content(t, fsys, "f") != "below" {
		t.Errorf("after the swap: %+v, was %+v", after, before)
	}
	write(t, f, 0, "new") // goes where the file is
	must(t, f.Datasync())
	if got := content(t, below, "f"); got != "new" {
		t.Errorf("the open file's content went elsewhere: %q", got)
	}
	fsys.Swap(below)
	wantOutcomes(t, outcomes(t, fsys, lookAt(t, "f")), "new")
	defer func() {
		if recover() == nil {
			t.Error("Swap between two disks did not panic")
		}
	}()
	fsys.Swap(crashfs.New())
}

func TestZerosCostNoMemory(t *testing.T) {
	heap := func() uint64 {
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return m.HeapAlloc
	}
	before := heap()
	fsys := crashfs.New()
	zero := make([]byte, 1<<20)
	for i := range 64 {
		f := open(t, fsys, fmt.Sprintf("reserved%d", i))
		must(t, f.Allocate(0, 1<<30))
		f = open(t, fsys, fmt.Sprintf("zeroed%d", i))
		_, err := f.WriteAt(zero, 0)
		must(t, err)
		must(t, f.Datasync())
	}
	if grown := int64(heap() - before); grown > 8<<20 {
		t.Errorf("65 GiB of zeros take %d bytes", grown)
	}
	runtime.KeepAlive(fsys)
}

func TestClonesShareTheirPages(t *testing.T) {
	fsys := crashfs.New()
	f := open(t, fsys, "f")
	must(t, fsys.SyncDir("."))
	for what, copyOf := range map[string]func(seed int) *crashfs.FS{
		"Clone":      func(int) *crashfs.FS { return fsys.Clone() },
		"CrashClone": func(seed int) *crashfs.FS { return fsys.CrashClone(seeded(seed)) },
	} {
		// Written again, so that no table is marked as shared by the other kind.
		_, err := f.WriteAt([]byte(strings.Repeat("x", 16<<20)), 0)
		must(t, err)
		must(t, f.Datasync())
		var clones []*crashfs.FS
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		for i := range 20 {
			clones = append(clones, copyOf(i))
		}
		runtime.ReadMemStats(&after)
		if per := (after.TotalAlloc - before.TotalAlloc) / 20; per > 64<<10 {
			t.Errorf("%s of 16 MiB takes %d bytes", what, per)
		}
		for i, c := range clones { // and yet each is its own
			write(t, open(t, c, "f"), int64(i)*5000, "mine")
		}
		for i, c := range clones {
			got := content(t, c, "f")
			if at := i * 5000; got[at:at+4] != "mine" || strings.Count(got, "mine") != 1 {
				t.Errorf("%s %d has the writes of others", what, i)
			}
		}
	}
	if strings.Contains(content(t, fsys, "f"), "mine") {
		t.Error("the original has the writes of its clones")
	}
}

// TestConcurrentCrashes has goroutines work while the power goes, again and
// again; the race detector looks on.
func TestConcurrentCrashes(t *testing.T) {
	fsys := crashfs.NewDisk(crashfs.DiskConfig{Bytes: 1 << 20, Files: 50}).New()
	fsys.Inject(func(op crashfs.Op) crashfs.Fault {
		if op.N%37 == 0 {
			return crashfs.Fault{Err: syscall.EIO}
		}
		return crashfs.Fault{}
	})
	var current atomic.Pointer[crashfs.FS]
	current.Store(fsys)
	var stop atomic.Bool
	var acked [4]atomic.Int64
	var wg sync.WaitGroup
	for w := range acked {
		wg.Go(func() {
			name := fmt.Sprint(w)
			for i := int64(1); !stop.Load(); i++ {
				if vfs.WriteFile(current.Load(), name, fmt.Appendf(nil, "%d", i)) == nil {
					acked[w].Store(i)
				}
			}
		})
	}
	for seed := range 120 {
		time.Sleep(100 * time.Microsecond)
		var floor [4]int64
		for w := range acked {
			floor[w] = acked[w].Load()
		}
		next := current.Load().Crash(seeded(seed))
		current.Store(next)
		clone := next.CrashClone(seeded(seed))
		for w := range floor {
			var got int64
			b, err := vfs.ReadFile(clone, fmt.Sprint(w), 100)
			if err == nil {
				_, err = fmt.Sscan(string(b), &got)
			}
			if err != nil && floor[w] > 0 || got < floor[w] {
				t.Fatalf("seed %d: worker %d was told %d is durable, %d is there: %v", seed, w, floor[w], got, err)
			}
		}
	}
	stop.Store(true)
	wg.Wait()
}

func TestReopen(t *testing.T) {
	fsys := crashfs.New()
	f := open(t, fsys, "f")
	other := fsys.Reopen()
	must(t, fsys.Close())
	write(t, f, 0, "seen")
	if got := content(t, other, "f"); got != "seen" {
		t.Errorf("the other opening sees %q", got)
	}
	if _, err := fsys.OpenFile("f", os.O_RDONLY, 0); !errors.Is(err, fs.ErrClosed) || errors.Is(err, crashfs.ErrCrashed) {
		t.Errorf("after Close: %v", err)
	}
}

// TestDeadGiveTheirRoomBack has files without names, held open by what dies or
// by a lock that was refused.
func TestDeadGiveTheirRoomBack(t *testing.T) {
	disk := crashfs.NewDisk(crashfs.DiskConfig{Bytes: 100 * 4096, Files: 10})
	fsys := disk.New()
	f := open(t, fsys, "f")
	write(t, f, 0, "x")
	must(t, fsys.Remove("f"))
	must(t, fsys.SyncDir("."))
	if _, files := free(t, fsys); files != 9 {
		t.Errorf("%d inodes free while the removed file is open", files)
	}
	fsys = fsys.Crash(seeded(1))
	if left, files := free(t, fsys); left != 100*4096 || files != 10 {
		t.Errorf("%d bytes and %d inodes free after the crash", left, files)
	}
	l, err := fsys.Lock("lock")
	must(t, err)
	_, err = fsys.Lock("lock")
	wantIs(t, "a second Lock", err, vfs.ErrLocked)
	must(t, fsys.Remove("lock"))
	must(t, l.Close())
	if _, files := free(t, fsys); files != 10 {
		t.Errorf("%d inodes free: the refused lock keeps its file", files)
	}
	// A crash brings the disk's count to what is there then.
	f = open(t, fsys, "f")
	must(t, fsys.SyncDir("."))
	write(t, f, 0, strings.Repeat("x", 50*4096))
	sizes := make(map[int64]bool)
	for seed := range 30 {
		c := fsys.Clone().Crash(seeded(seed))
		info, err := c.Stat("f")
		must(t, err)
		left, _ := free(t, c)
		if left != 100*4096-info.Allocated {
			t.Errorf("seed %d: %d bytes free beside a file of %d", seed, left, info.Allocated)
		}
		sizes[info.Allocated] = true
	}
	if len(sizes) < 2 {
		t.Error("every crash left as much")
	}
}

func TestSwapTakesAlongWhatIsNotDurable(t *testing.T) {
	disk := crashfs.NewDisk(crashfs.DiskConfig{})
	fsys, below := disk.New(), disk.New()
	f := open(t, fsys, "f")
	write(t, f, 0, "x")
	must(t, f.Datasync())
	fsys.Swap(below)
	wantOutcomes(t, outcomes(t, below, lookAt(t, "f")), "-", "x")
	wantOutcomes(t, outcomes(t, fsys, lookAt(t, "f")), "-")
	must(t, below.SyncDir("."))
	wantOutcomes(t, outcomes(t, below, lookAt(t, "f")), "x")
	below.Crash(seeded(1))
	_, err := f.WriteAt([]byte("y"), 0)
	wantIs(t, "a write into the tree that crashed", err, fs.ErrClosed)
}
