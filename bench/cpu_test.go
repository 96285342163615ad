package bench

import (
	"errors"
	"math"
	"os"
	"path/filepath"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

func TestParseStat(t *testing.T) {
	rest := " S 1 2 3 4 5 6 7 8 9 10 123 45 0 0 20 0 1 0 100"
	for _, c := range []struct {
		in   string
		want time.Duration
		ok   bool
	}{
		{"17 (cairn)" + rest, 1680 * time.Millisecond, true},
		{"17 (a (b) c) 1 2)" + rest, 1680 * time.Millisecond, true},
		{"", 0, false},
		{"17 cairn" + rest, 0, false},
		{"17 (cairn) S 1 2 3 4 5 6 7 8 9 10 123", 0, false},
		{"17 (cairn) S 1 2 3 4 5 6 7 8 9 10 x 45", 0, false},
		{"17 (cairn) S 1 2 3 4 5 6 7 8 9 10 123 -45", 0, false},
	} {
		got, err := parseStat([]byte(c.in))
		if (err == nil) != c.ok || c.ok && got != c.want {
			t.Errorf("%q: %v, %v; want %v, good: %v", c.in, got, err, c.want, c.ok)
		}
	}
}

func FuzzParseStat(f *testing.F) {
	f.Add([]byte("17 (cairn) S 1 2 3 4 5 6 7 8 9 10 123 45 0 0"))
	f.Add([]byte("cpu  1 2 3 4 5 6 7 8 9 10\ncpu0 1"))
	f.Fuzz(func(t *testing.T, b []byte) {
		if _, err := parseStat(b); err == nil && len(b) < 26 {
			t.Errorf("%q is taken for a line of /proc/PID/stat", b)
		}
		if m, err := parseMachine(b); err == nil && len(b) < 19 {
			t.Errorf("%q is taken for /proc/stat: %+v", b, m)
		}
	})
}

var sink uint64 // so that work is not left out

func TestProcCPUSeesThisProcess(t *testing.T) {
	before := selfCPU()
	for selfCPU()-before < 50*time.Millisecond {
		sink = mix(sink)
	}
	got, err := procCPU(os.Getpid())
	if own := selfCPU(); err != nil || math.Abs(float64(got-own)) > float64(500*time.Millisecond) {
		t.Errorf("/proc says %v (%v), getrusage says %v", got, err, own)
	}
	if _, err := procCPU(-1); err == nil {
		t.Error("a process that cannot be has CPU time")
	}
}

func TestOthers(t *testing.T) {
	m, err := parseMachine([]byte("cpu  100 10 50 1000 30 4 6 20 5 5\ncpu0 1 2 3\n"))
	if want := (machineTime{busy: 1900 * time.Millisecond, total: 12200 * time.Millisecond}); err != nil || m != want {
		t.Errorf("%+v, %v; want %+v", m, err, want)
	}
	for _, bad := range []string{"", "cpu  1 2 3", "cpu0 1 2 3 4 5 6 7 8", "cpu 1 2 3 4 5 6 7 x"} {
		if _, err := parseMachine([]byte(bad)); err == nil {
			t.Errorf("%q is taken for /proc/stat", bad)
		}
	}
	at := machineTime{busy: 10 * time.Second, total: 100 * time.Second, own: 3 * time.Second}
	now := machineTime{busy: 18 * time.Second, total: 120 * time.Second, own: 5 * time.Second}
	if got := at.others(now); got != 0.3 {
		t.Errorf("others had %v, want 0.3: 8 s busy, 2 s ours, of 20 s", got)
	}
	if got := at.others(at); got != 0 {
		t.Errorf("others had %v of no time", got)
	}
	if _, err := readMachine(); err != nil {
		t.Error(err)
	}
}

func TestMachineIsDescribed(t *testing.T) {
	m := describeMachine(t.TempDir())
	if m.CPUs < 1 || m.Memory < 1<<20 || m.Kernel == "" || m.Go == "" || m.Filesystem == "unknown" {
		t.Errorf("%+v", m)
	}
}

// resident counts the pages of a file that are in memory.
func resident(t *testing.T, file string) (n int) {
	t.Helper()
	f, err := os.Open(file)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	fi, err := f.Stat()
	if err != nil {
		t.Fatal(err)
	}
	m, err := unix.Mmap(int(f.Fd()), 0, int(fi.Size()), unix.PROT_READ, unix.MAP_SHARED)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Munmap(m)
	vec := make([]byte, (len(m)+os.Getpagesize()-1)/os.Getpagesize())
	if _, _, errno := unix.Syscall(unix.SYS_MINCORE, uintptr(unsafe.Pointer(&m[0])), uintptr(len(m)), uintptr(unsafe.Pointer(&vec[0]))); errno != 0 {
		t.Fatal(errno)
	}
	for _, v := range vec {
		n += int(v & 1)
	}
	return n
}

func TestForgetDropsWhatIsCached(t *testing.T) {
	dir := t.TempDir()
	if filesystem(dir) == "tmpfs" {
		t.Skip("on tmpfs the cache is the file")
	}
	file := filepath.Join(dir, "a", "b")
	if err := os.Mkdir(filepath.Dir(file), 0o700); err != nil {
		t.Fatal(err)
	}
	f, err := os.Create(file)
	if err != nil {
		t.Fatal(err)
	}
	_, err = f.Write(make([]byte, 1<<20))
	if err = errors.Join(err, f.Sync(), f.Close()); err != nil {
		t.Fatal(err)
	}
	if n := resident(t, file); n == 0 {
		t.Fatal("nothing of a file just written is cached: this test sees nothing")
	}
	if err := forget(dir); err != nil {
		t.Fatal(err)
	}
	if n := resident(t, file); n > 0 {
		t.Errorf("%d pages are still cached", n)
	}
}
