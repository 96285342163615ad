package crashfs_test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"strings"
	"testing"

	"cairn/node/vfs"
	"cairn/node/vfs/crashfs"
)

const (
	create = os.O_RDWR | os.O_CREATE
	sector = 512
)

func seeded(seed int) *rand.Rand { return rand.New(rand.NewPCG(uint64(seed), 1)) }

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func open(t testing.TB, fsys vfs.FS, name string) vfs.File {
	t.Helper()
	f, err := fsys.OpenFile(name, create, 0o600)
	must(t, err)
	return f
}

func write(t testing.TB, f vfs.File, off int64, s string) {
	t.Helper()
	_, err := f.WriteAt([]byte(s), off)
	must(t, err)
}

// content is what a name holds, or "-" when it is not there.
func content(t testing.TB, fsys vfs.FS, name string) string {
	t.Helper()
	b, err := vfs.ReadFile(fsys, name, 1<<30)
	if errors.Is(err, fs.ErrNotExist) {
		return "-"
	}
	must(t, err)
	return string(b)
}

func sectors(s string) string { return strings.Repeat(s, sector) }

// outcomes gives what was found over many power cuts, and how often. It also
// checks that a copy leaves the original alone and that a seed means an outcome.
func outcomes(t *testing.T, fsys *crashfs.FS, look func(fsys *crashfs.FS) string) map[string]int {
	t.Helper()
	before := look(fsys)
	found := make(map[string]int)
	for seed := range 500 {
		a := look(fsys.CrashClone(seeded(seed)))
		if b := look(fsys.CrashClone(seeded(seed))); a != b {
			t.Fatalf("seed %d: two outcomes, %.40q and %.40q", seed, a, b)
		}
		if seed < 100 { // a copy of the state has the same future
			if b := look(fsys.Clone().Crash(seeded(seed))); a != b {
				t.Fatalf("seed %d: %.40q, of a clone %.40q", seed, a, b)
			}
		}
		found[a]++
	}
	if after := look(fsys); after != before {
		t.Fatalf("looking at copies changed the original: %.40q, was %.40q", after, before)
	}
	return found
}

func wantOutcomes(t *testing.T, got map[string]int, want ...string) {
	t.Helper()
	for _, w := range want {
		if got[w] == 0 {
			t.Errorf("outcome %.60q never came", w)
		}
		delete(got, w)
	}
	for w, n := range got {
		t.Errorf("outcome %.60q (%d bytes) came %d times", w, len(w), n)
	}
}

func lookAt(t *testing.T, names ...string) func(*crashfs.FS) string {
	return func(fsys *crashfs.FS) string {
		var all []string
		for _, name := range names {
			all = append(all, content(t, fsys, name))
		}
		return strings.Join(all, ",")
	}
}

// synced returns a file f with durable content.
func synced(t *testing.T, fsys *crashfs.FS, s string) vfs.File {
	f := open(t, fsys, "f")
	write(t, f, 0, s)
	must(t, f.Datasync())
	must(t, fsys.SyncDir("."))
	return f
}

func TestSyncedContentStays(t *testing.T) {
	fsys := crashfs.New()
	synced(t, fsys, "hello")
	wantOutcomes(t, outcomes(t, fsys, lookAt(t, "f")), "hello")
}

func TestUnsyncedContentIsTornAtSectors(t *testing.T) {
	fsys := crashfs.New()
	f := synced(t, fsys, sectors("a")+sectors("b"))
	write(t, f, 0, sectors("A")+sectors("B"))
	wantOutcomes(t, outcomes(t, fsys, lookAt(t, "f")),
		sectors("a")+sectors("b"), sectors("a")+sectors("B"), sectors("A")+sectors("b"), sectors("A")+sectors("B"))
	must(t, f.Datasync())
	wantOutcomes(t, outcomes(t, fsys, lookAt(t, "f")), sectors("A")+sectors("B"))
}

func TestUnsyncedWritesComeInAnyOrder(t *testing.T) {
	fsys := crashfs.New()
	zero := strings.Repeat("\x00", 4*4096)
	f := synced(t, fsys, zero)
	write(t, f, 0, sectors("1"))
	write(t, f, 2*4096, sectors("2"))
	write(t, f, 0, sectors("3"))
	at := func(first, second string) string {
		b := []byte(zero)
		copy(b, sectors(first))
		copy(b[2*4096:], sectors(second))
		return string(b)
	}
	wantOutcomes(t, outcomes(t, fsys, lookAt(t, "f")),
		at("\x00", "\x00"), at("\x00", "2"), at("1", "\x00"), at("1", "2"), at("3", "\x00"), at("3", "2"))
}

func TestUnsyncedSize(t *testing.T) {
	fsys := crashfs.New()
	f := synced(t, fsys, "a")
	write(t, f, 4096, sectors("b"))
	gap := strings.Repeat("\x00", 4095)
	wantOutcomes(t, outcomes(t, fsys, lookAt(t, "f")),
		"a", "a"+gap+sectors("b"), "a"+gap+sectors("\x00"))

	must(t, f.Datasync())
	must(t, f.Truncate(1))
	got := outcomes(t, fsys, lookAt(t, "f"))
	if got["a"] == 0 || got["a"+gap+sectors("b")] == 0 {
		t.Errorf("an unsynced truncation always happened or never: %d outcomes", len(got))
	}
}

func TestUnsyncedHoleAndAllocation(t *testing.T) {
	fsys := crashfs.New()
	f := synced(t, fsys, strings.Repeat("a", 8192))
	must(t, f.PunchHole(4096, 4096))
	got := outcomes(t, fsys, lookAt(t, "f"))
	for _, w := range []string{strings.Repeat("a", 8192), strings.Repeat("a", 4096) + strings.Repeat("\x00", 4096)} {
		if got[w] == 0 {
			t.Errorf("outcome %.5q...%.5q never came", w, w[8000:])
		}
	}
	must(t, f.Datasync())
	must(t, f.Allocate(8192, 1<<20))
	room := func(fsys *crashfs.FS) string {
		info, err := fsys.Stat("f")
		must(t, err)
		return fmt.Sprint(info.Size, info.Allocated)
	}
	seen := outcomes(t, fsys, room)
	for _, w := range []string{"8192 4096", fmt.Sprint(8192+1<<20, 4096+1<<20)} {
		if seen[w] == 0 {
			t.Errorf("size and room %s never came: %v", w, seen)
		}
	}
	must(t, f.Datasync())
	wantOutcomes(t, outcomes(t, fsys, room), fmt.Sprint(8192+1<<20, 4096+1<<20))
}

// TestNothingIsBeyondTheEnd extends the file after the crash: what the old
// extension held must not come to light.
func TestNothingIsBeyondTheEnd(t *testing.T) {
	fsys := crashfs.New()
	f := synced(t, fsys, "a")
	write(t, f, 10, strings.Repeat("b", 3<<20))
	short := 0
	for seed := range 200 {
		c := fsys.CrashClone(seeded(seed))
		size := len(content(t, c, "f"))
		if size == 1 {
			short++
		}
		must(t, open(t, c, "f").Truncate(4<<20))
		if rest := content(t, c, "f")[size:]; strings.Contains(rest, "b") {
			t.Fatalf("seed %d: beyond the size of %d there was content", seed, size)
		}
	}
	if short == 0 {
		t.Error("the size was never the old one")
	}
}

func TestUnsyncedAllocationInside(t *testing.T) {
	fsys := crashfs.New()
	f := synced(t, fsys, sectors("a"))
	must(t, f.Truncate(100_000))
	must(t, f.Datasync())
	must(t, f.Allocate(16384, 8192))
	room := func(fsys *crashfs.FS) string {
		info, err := fsys.Stat("f")
		must(t, err)
		return fmt.Sprint(info.Size, info.Allocated)
	}
	wantOutcomes(t, outcomes(t, fsys, room), "100000 4096", "100000 12288")
	must(t, f.Datasync())
	wantOutcomes(t, outcomes(t, fsys, room), "100000 12288")
}

// TestDirectoryHasOneName moves a directory and syncs only where it went.
func TestDirectoryHasOneName(t *testing.T) {
	fsys := crashfs.New()
	must(t, fsys.Mkdir("d", 0o700))
	must(t, fsys.Mkdir("e", 0o700))
	must(t, fsys.Mkdir("d/sub", 0o700))
	must(t, fsys.SyncDir("d"))
	must(t, fsys.SyncDir("."))
	must(t, fsys.Rename("d", "e/d"))
	must(t, fsys.SyncDir("e"))
	there := func(fsys *crashfs.FS) string {
		all := ""
		for _, name := range []string{"d/sub", "e/d/sub"} {
			if _, err := fsys.Stat(name); err == nil {
				all += name + " "
			}
		}
		return all
	}
	wantOutcomes(t, outcomes(t, fsys, there), "d/sub ", "e/d/sub ")
}

func TestUnsyncedNames(t *testing.T) {
	for _, c := range []struct {
		what   string
		change func(t *testing.T, fsys *crashfs.FS)
		want   []string // contents of f,g,d/h
	}{
		{"create", func(t *testing.T, fsys *crashfs.FS) {
			f := open(t, fsys, "g")
			write(t, f, 0, "new")
			must(t, f.Datasync()) // does not make the name durable
		}, []string{"old,-,-", "old,new,-"}},
		{"remove", func(t *testing.T, fsys *crashfs.FS) {
			must(t, fsys.Remove("f"))
		}, []string{"old,-,-", "-,-,-"}},
		{"rename", func(t *testing.T, fsys *crashfs.FS) {
			must(t, fsys.Rename("f", "g"))
		}, []string{"old,-,-", "-,old,-"}},
		{"rename over", func(t *testing.T, fsys *crashfs.FS) {
			f := open(t, fsys, "g")
			write(t, f, 0, "new")
			must(t, f.Datasync())
			must(t, fsys.Rename("g", "f"))
		}, []string{"old,-,-", "old,new,-", "new,-,-"}},
		{"rename to another directory", func(t *testing.T, fsys *crashfs.FS) {
			must(t, fsys.Rename("f", "d/h"))
		}, []string{"old,-,-", "-,-,old"}},
		{"rename to another directory, target synced", func(t *testing.T, fsys *crashfs.FS) {
			must(t, fsys.Rename("f", "d/h"))
			must(t, fsys.SyncDir("d"))
		}, []string{"old,-,old", "-,-,old"}},
		{"rename to another directory, source synced", func(t *testing.T, fsys *crashfs.FS) {
			must(t, fsys.Rename("f", "d/h"))
			must(t, fsys.SyncDir("."))
		}, []string{"-,-,-", "-,-,old"}},
		{"create in another directory, the wrong one synced", func(t *testing.T, fsys *crashfs.FS) {
			f := open(t, fsys, "d/h")
			write(t, f, 0, "new")
			must(t, f.Datasync())
			must(t, fsys.SyncDir("."))
		}, []string{"old,-,-", "old,-,new"}},
		{"all of it synced", func(t *testing.T, fsys *crashfs.FS) {
			f := open(t, fsys, "g")
			write(t, f, 0, "new")
			must(t, f.Datasync())
			must(t, fsys.Rename("f", "d/h"))
			must(t, fsys.Rename("g", "f"))
			must(t, fsys.SyncDir("."))
			must(t, fsys.SyncDir("d"))
		}, []string{"new,-,old"}},
	} {
		t.Run(c.what, func(t *testing.T) {
			fsys := crashfs.New()
			must(t, fsys.Mkdir("d", 0o700))
			synced(t, fsys, "old")
			c.change(t, fsys)
			wantOutcomes(t, outcomes(t, fsys, lookAt(t, "f", "g", "d/h")), c.want...)
		})
	}
}

func TestUnsyncedDirectoryTakesItsFilesAlong(t *testing.T) {
	fsys := crashfs.New()
	must(t, fsys.Mkdir("d", 0o700))
	f := open(t, fsys, "d/f")
	write(t, f, 0, "new")
	must(t, f.Datasync())
	must(t, fsys.SyncDir("d"))
	wantOutcomes(t, outcomes(t, fsys, lookAt(t, "d/f")), "-", "new")
	must(t, fsys.SyncDir("."))
	wantOutcomes(t, outcomes(t, fsys, lookAt(t, "d/f")), "new")
}

func TestFailedSyncLosesWhatItMarkedClean(t *testing.T) {
	fsys := crashfs.New()
	f := synced(t, fsys, "old")
	fsys.Inject(crashfs.Rules(crashfs.Rule{Kind: crashfs.OpDatasync, Count: 1,
		Fault: crashfs.Fault{Err: io.ErrUnexpectedEOF, Drop: true}}))
	write(t, f, 0, "new")
	if err := f.Datasync(); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Fatalf("Datasync: %v", err)
	}
	must(t, f.Datasync()) // the lie that Linux tells
	if got := content(t, fsys, "f"); got != "new" {
		t.Errorf("before the crash %q", got)
	}
	wantOutcomes(t, outcomes(t, fsys, lookAt(t, "f")), "old", "new")
	write(t, f, 1, "E") // dirty again: the page is written as it is
	must(t, f.Datasync())
	wantOutcomes(t, outcomes(t, fsys, lookAt(t, "f")), "nEw")

	// The size is lost in the same way.
	fsys.Inject(crashfs.Rules(crashfs.Rule{Kind: crashfs.OpSync, Count: 1,
		Fault: crashfs.Fault{Err: io.ErrUnexpectedEOF, Drop: true}}))
	must(t, f.Truncate(5))
	f.Sync()
	must(t, f.Sync())
	wantOutcomes(t, outcomes(t, fsys, lookAt(t, "f")), "nEw", "nEw\x00\x00")

	// A failure that drops nothing can be made good.
	fsys.Inject(crashfs.Rules(crashfs.Rule{Kind: crashfs.OpSync, Count: 1, Fault: crashfs.Fault{Err: io.ErrUnexpectedEOF}}))
	write(t, f, 0, "abcdef")
	if err := f.Sync(); err == nil {
		t.Error("Sync: no error")
	}
	must(t, f.Sync())
	wantOutcomes(t, outcomes(t, fsys, lookAt(t, "f")), "abcdef")
}

func TestLyingSync(t *testing.T) {
	fsys := crashfs.New()
	f := synced(t, fsys, "old")
	lie := crashfs.Rule{Fault: crashfs.Fault{Lie: true}}
	fsys.Inject(crashfs.Rules(lie))
	write(t, f, 0, "new")
	open(t, fsys, "g")
	must(t, f.Datasync())
	must(t, f.Sync())
	must(t, fsys.SyncDir("."))
	wantOutcomes(t, outcomes(t, fsys, lookAt(t, "f", "g")), "old,-", "new,-", "old,", "new,")
	fsys.Inject(nil)
	must(t, f.Datasync())
	must(t, fsys.SyncDir("."))
	wantOutcomes(t, outcomes(t, fsys, lookAt(t, "f", "g")), "new,")
}

func TestKillKeepsWhatWasWritten(t *testing.T) {
	fsys := crashfs.New()
	f := synced(t, fsys, "old")
	write(t, f, 0, "new")
	write(t, open(t, fsys, "g"), 0, "g")
	must(t, fsys.Rename("g", "h"))
	fsys = fsys.Kill()
	if got := lookAt(t, "f", "g", "h")(fsys); got != "new,-,g" {
		t.Errorf("after the kill %q", got)
	}
	// And it is no more durable than before.
	got := outcomes(t, fsys, lookAt(t, "f"))
	wantOutcomes(t, got, "old", "new")
}

// A program for the tests below: a log of records, and a small file that says
// which log it is. skip leaves out one of its syncs.
type program struct {
	skip  string
	acked int
	named bool
}

var programSyncs = []string{"log content", "log name", "directory name", "small content", "small name"}

const recordSize = 700

func record(i int) []byte { return bytes.Repeat([]byte{byte(i + 1)}, recordSize) }

func (p *program) run(fsys *crashfs.FS) error {
	p.acked, p.named = 0, false
	try := func(what string, sync func() error) error {
		if what == p.skip {
			return nil
		}
		return sync()
	}
	if err := fsys.Mkdir("d", 0o700); err != nil {
		return err
	}
	f, err := fsys.OpenFile("d/log", create|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	if err := errors.Join(
		try("log name", func() error { return fsys.SyncDir("d") }),
		try("directory name", func() error { return fsys.SyncDir(".") }),
	); err != nil {
		return err
	}
	for i := range 8 {
		if _, err := f.WriteAt(record(i), int64(i*recordSize)); err != nil {
			return err
		}
		if err := try("log content", f.Datasync); err != nil {
			return err
		}
		p.acked = i + 1
	}
	s, err := fsys.OpenFile("d/name.tmp", create|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	if _, err := s.WriteAt(record(99), 0); err != nil {
		return err
	}
	if err := try("small content", s.Datasync); err != nil {
		return err
	}
	if err := fsys.Rename("d/name.tmp", "d/name"); err != nil {
		return err
	}
	if err := try("small name", func() error { return fsys.SyncDir("d") }); err != nil {
		return err
	}
	p.named = true
	return nil
}

// check returns what was promised and is not there.
func (p *program) check(fsys vfs.FS) error {
	name, err := vfs.ReadFile(fsys, "d/name", recordSize)
	if err == nil && !bytes.Equal(name, record(99)) {
		return fmt.Errorf("the small file is neither old nor new: %d bytes", len(name))
	}
	if err != nil && (p.named || !errors.Is(err, fs.ErrNotExist)) {
		return fmt.Errorf("the small file: %w", err)
	}
	log, err := vfs.ReadFile(fsys, "d/log", 1<<20)
	if err != nil && p.acked > 0 {
		return fmt.Errorf("the log: %w", err)
	}
	for i := range p.acked {
		if len(log) < (i+1)*recordSize || !bytes.Equal(log[i*recordSize:(i+1)*recordSize], record(i)) {
			return fmt.Errorf("record %d of %d is not in the log of %d bytes", i, p.acked, len(log))
		}
	}
	return nil
}

// attempt runs the program to a random operation and cuts the power there.
func (p *program) attempt(seed int) error {
	rng := seeded(seed)
	fsys := crashfs.New()
	fsys.StopAfter(rng.IntN(30))
	if err := p.run(fsys); err != nil && !errors.Is(err, crashfs.ErrCrashed) {
		return err
	}
	return p.check(fsys.Crash(rng))
}

// TestCarefulProgramLosesNothing takes 2,000 seeds, with CAIRN_LONG=1 200,000.
func TestCarefulProgramLosesNothing(t *testing.T) {
	seeds := 2000
	if os.Getenv("CAIRN_LONG") == "1" {
		seeds = 200_000
	}
	var p program
	finished := 0
	for seed := range seeds {
		if err := p.attempt(seed); err != nil {
			t.Fatalf("seed %d: %v", seed, err)
		}
		if p.named {
			finished++
		}
	}
	if finished == 0 || finished == seeds {
		t.Errorf("%d of %d runs came to the end, want some", finished, seeds)
	}
}

func TestCarelessProgramIsCaught(t *testing.T) {
	for _, skip := range programSyncs {
		p := program{skip: skip}
		caught, first := 0, -1
		for seed := range 2000 {
			if p.attempt(seed) != nil {
				if caught++; first < 0 {
					first = seed
				}
			}
		}
		if caught == 0 {
			t.Errorf("without the sync of the %s nothing was ever lost", skip)
		}
		t.Logf("without the sync of the %s: %d of 2000 seeds lose, the first is %d", skip, caught, first)
	}
}

// recorder is a TB that survives its failure.
type recorder struct {
	testing.TB
	failed bool
	log    string
}

func (r *recorder) Helper()                    {}
func (r *recorder) Failed() bool               { return r.failed }
func (r *recorder) Logf(f string, args ...any) { r.log += fmt.Sprintf(f, args...) }
func (r *recorder) Fatalf(f string, args ...any) {
	r.failed = true
	r.Logf(f, args...)
}

func TestEveryPoint(t *testing.T) {
	for _, skip := range append([]string{""}, programSyncs...) {
		p := program{skip: skip}
		var last error
		points, seen := 0, make(map[int]bool)
		r := &recorder{TB: t}
		whole := crashfs.New()
		must(t, p.run(whole))
		crashfs.EveryPoint(r, p.run, func(fsys *crashfs.FS) {
			points++
			seen[fsys.Ops()] = true
			if last = p.check(fsys); last != nil {
				r.failed = true
			}
		})
		switch {
		case skip == "" && (r.failed || len(seen) != whole.Ops()+1):
			t.Errorf("careful program of %d operations, %d points: %v (%s)", whole.Ops(), len(seen), last, r.log)
		case skip != "" && (!r.failed || !strings.Contains(r.log, "power cut")):
			t.Errorf("without the sync of the %s nothing was lost at %d points (%s)", skip, points, r.log)
		}
	}
	// The error of a run that nothing stopped is the program's own.
	r := &recorder{TB: t}
	crashfs.EveryPoint(r, func(fsys *crashfs.FS) error { return fsys.Remove("missing") }, func(*crashfs.FS) {})
	if !r.failed || !strings.Contains(r.log, "missing") {
		t.Errorf("a program that fails by itself passes (%s)", r.log)
	}
}

func TestChangesOfOneNameComeInOrder(t *testing.T) {
	fsys := crashfs.New()
	synced(t, fsys, "x")
	must(t, fsys.Rename("f", "g"))
	must(t, fsys.Rename("g", "h"))
	wantOutcomes(t, outcomes(t, fsys, lookAt(t, "f", "g", "h")), "x,-,-", "-,x,-", "-,-,x")
}

func TestCloneIsNotSyncedWithTheOriginal(t *testing.T) {
	fsys := crashfs.New()
	f := synced(t, fsys, "old")
	write(t, f, 0, "new")
	c := fsys.Clone()
	must(t, open(t, c, "f").Datasync())
	wantOutcomes(t, outcomes(t, fsys, lookAt(t, "f")), "old", "new")
	wantOutcomes(t, outcomes(t, c, lookAt(t, "f")), "new")
}

func TestStopAfter(t *testing.T) {
	fsys := crashfs.New()
	fsys.StopAfter(2)
	f := open(t, fsys, "f")
	write(t, f, 0, "x")
	for range 2 {
		if err := f.Datasync(); !errors.Is(err, crashfs.ErrCrashed) {
			t.Errorf("the third operation: %v", err)
		}
	}
	if n := fsys.Ops(); n != 2 {
		t.Errorf("%d operations, want 2", n)
	}
	if got := content(t, fsys.Kill(), "f"); got != "x" {
		t.Errorf("after the kill %q", got)
	}
}
