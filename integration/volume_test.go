package integration

import (
	"bytes"
	"errors"
	"fmt"
	"log"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// volume is a real filesystem in an image file, mounted through a loop device.
// Its power can be cut: [volume.cut].
type volume struct {
	r       *rig
	fs      string // ext4 or xfs
	image   string
	dir     string // where it is mounted
	mounted bool
	frozen  bool
}

// filesystems are those that the tests with volumes run on.
var filesystems = []string{"ext4", "xfs"}

// How a volume's power is cut: what the filesystem does with its own log in
// memory. The pages of files that were not synced are gone either way.
const (
	logLost  = 2 // EXT4_GOING_FLAGS_NOLOGFLUSH, XFS_FSOP_GOING_FLAGS_NOLOGFLUSH
	logSaved = 1 // the LOGFLUSH of both: names and sizes may be ahead of what is in the files
)

// ownMounts is set in the environment of a process that has its own mounts.
const ownMounts = "CAIRN_OWN_MOUNTS"

// moveOut starts this program again, under the same process ID, in a mount
// namespace of its own. A namespace that somebody else makes meanwhile would hold
// on to a filesystem that was unmounted here, and mounting its image again would
// find it as it is in memory, with its power cut. And what is left mounted goes
// with the last process. Without the right to do it nothing happens: nothing can
// be mounted then either.
func moveOut() {
	self, err := os.Executable()
	if err != nil {
		return
	}
	runtime.LockOSThread() // a namespace is a thread's until it starts a program
	defer runtime.UnlockOSThread()
	if unix.Unshare(unix.CLONE_NEWNS) != nil || unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, "") != nil {
		return
	}
	if err := syscall.Exec(self, os.Args, append(os.Environ(), ownMounts+"=1")); err != nil {
		log.Print("start again with mounts of its own: ", err)
	}
}

// needVolumes skips a test where there is no way to mount an image.
func needVolumes(t *testing.T, fs string) {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("mounting filesystems needs root")
	}
	if why := probes[fs](); why != "" {
		t.Skip(why)
	}
}

var probes = map[string]func() string{
	"ext4": sync.OnceValue(func() string { return probe("ext4") }),
	"xfs":  sync.OnceValue(func() string { return probe("xfs") }),
}

// probe makes a filesystem, mounts it, cuts its power and says what did not work.
func probe(fs string) (why string) {
	for _, tool := range []string{"mkfs." + fs, "mount", "umount", "losetup"} {
		if _, err := exec.LookPath(tool); err != nil {
			return "there is no " + tool
		}
	}
	base, err := os.MkdirTemp("", "cairn-probe-")
	if err != nil {
		return err.Error()
	}
	defer os.RemoveAll(base)
	v := &volume{fs: fs, image: filepath.Join(base, "image"), dir: filepath.Join(base, "dir")}
	if err := v.make(512 << 20); err != nil {
		return err.Error()
	}
	if err := v.mount(); err != nil {
		return fmt.Sprintf("%s cannot be mounted here: %v", fs, err)
	}
	if err := errors.Join(v.cut(logLost), v.unmount(), v.mount(), v.unmount()); err != nil {
		_ = unix.Unmount(v.dir, unix.MNT_DETACH) // it may be unmounted
		return fmt.Sprintf("the power of %s cannot be cut here: %v", fs, err)
	}
	return ""
}

// newVolume makes a filesystem of a size, mounts it over a directory of the rig
// and moves there what was in it. The server must not run.
func (r *rig) newVolume(fs, dir string, size int64, mkfs ...string) *volume {
	r.t.Helper()
	images := filepath.Join(r.base, "images")
	if err := os.MkdirAll(images, 0o700); err != nil {
		r.t.Fatal(err)
	}
	v := &volume{r: r, fs: fs, dir: dir, image: filepath.Join(images, fmt.Sprintf("%d", len(r.volumes)))}
	r.volumes = append(r.volumes, v)
	if err := v.make(size, mkfs...); err != nil {
		r.t.Fatal(err)
	}
	old := v.image + ".old"
	rename(r.t, dir, old)
	if err := v.mount(); err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(func() {
		for _, v := range r.volumes { // or the server cannot even be killed
			if v.frozen {
				_ = v.thaw() // unmount says more
			}
		}
		if s := r.server; s != nil {
			s.kill()
		}
		if err := v.unmount(); err != nil {
			r.t.Error(err)
			_ = unix.Unmount(v.dir, unix.MNT_DETACH) // nothing more can be done
		}
	})
	copyTree(r.t, old, dir)
	removeAll(r.t, old)
	v.sync()
	return v
}

func (v *volume) make(size int64, args ...string) error {
	f, err := os.Create(v.image)
	if err != nil {
		return err
	}
	if err := errors.Join(f.Truncate(size), f.Close()); err != nil {
		return err
	}
	quick := map[string][]string{"ext4": {"-q", "-F", "-E", "lazy_itable_init=1,lazy_journal_init=1,nodiscard"}, "xfs": {"-q", "-f", "-K"}}
	return run("mkfs."+v.fs, append(append(quick[v.fs], args...), v.image)...)
}

func (v *volume) mount() error {
	if err := os.MkdirAll(v.dir, 0o700); err != nil {
		return err
	}
	if err := run("mount", "-t", v.fs, "-o", "loop", v.image, v.dir); err != nil {
		return err
	}
	v.mounted = true
	return nil
}

// unmount waits for the last user of the filesystem to be gone.
func (v *volume) unmount() error {
	if !v.mounted {
		return nil
	}
	if v.frozen {
		if err := v.thaw(); err != nil {
			return err
		}
	}
	var err error
	for range 100 {
		if err = unix.Unmount(v.dir, 0); err == nil {
			v.mounted = false
			return v.released()
		}
		time.Sleep(20 * time.Millisecond)
	}
	return fmt.Errorf("unmount %s: %w", v.dir, err)
}

// released waits until no loop device has the image any more.
func (v *volume) released() error {
	for range 500 {
		used := ""
		files, err := filepath.Glob("/sys/block/loop*/loop/backing_file")
		if err != nil {
			return err
		}
		for _, name := range files {
			// One that cannot be read has just been released.
			if b, err := os.ReadFile(name); err == nil && strings.TrimSpace(string(b)) == v.image {
				used = name
			}
		}
		if used == "" {
			return nil
		}
		time.Sleep(20 * time.Millisecond)
	}
	return fmt.Errorf("%s is unmounted, and somebody still uses its device", v.dir)
}

// cut ends the filesystem where it stands: from now on every call into it fails,
// and what it had not yet written to the image stays unwritten. It is what
// `xfs_io -x -c shutdown` does, on both filesystems. Mounting it again plays back
// its journal.
//
// The process must be suspended while this happens: an fdatasync that is on its
// way may still return 0 for what the image will not hold (ext4 fails to mark the
// extents as written and does not tell), which no power cut does, since no answer
// leaves a machine after it.
func (v *volume) cut(how int) error {
	const goingDown = 0x8004587d // XFS_IOC_GOINGDOWN, EXT4_IOC_SHUTDOWN: _IOR('X', 125, __u32)
	d, err := os.Open(v.dir)
	if err != nil {
		return err
	}
	defer d.Close()
	if err := unix.IoctlSetPointerInt(int(d.Fd()), goingDown, how); err != nil {
		return fmt.Errorf("shut down %s: %w", v.dir, err)
	}
	return nil
}

func (v *volume) sync() {
	d, err := os.Open(v.dir)
	if err == nil {
		err = errors.Join(unix.Syncfs(int(d.Fd())), d.Close())
	}
	if err != nil {
		v.r.t.Fatal(err)
	}
}

// freeze makes every write and sync of the filesystem hang.
func (v *volume) freeze() error {
	err := run("fsfreeze", "-f", v.dir)
	v.frozen = err == nil
	return err
}

func (v *volume) thaw() error {
	v.frozen = false
	return run("fsfreeze", "-u", v.dir)
}

// restore mounts filesystems again whose power was cut. The server must be gone.
func restore(t *testing.T, vs ...*volume) {
	t.Helper()
	for _, v := range vs {
		if err := errors.Join(v.unmount(), v.mount()); err != nil {
			t.Fatal(err)
		}
	}
}

func run(name string, args ...string) error {
	var out bytes.Buffer
	cmd := exec.Command(name, args...)
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("%s %s: %w: %s", name, strings.Join(args, " "), err, strings.TrimSpace(out.String()))
	}
	return nil
}

// suspend stops the process and returns when no thread of it is inside a call
// any more, so that nothing is answered after what follows.
func (s *server) suspend() error { return suspend(s.cmd.Process) }

func suspend(p *os.Process) error {
	if err := p.Signal(syscall.SIGSTOP); err != nil {
		return err
	}
	limit := time.Now().Add(30 * time.Second)
	for stopped := 0; ; time.Sleep(time.Millisecond) {
		states, err := threadStates(p.Pid)
		if err != nil {
			return err
		}
		switch {
		case strings.Trim(states, "T") == "":
			return nil
		case strings.Trim(states, "Tt") == "":
			// Under strace a stopped thread is "t", as for an instant each thread is
			// that makes a call; all of them, over and over, only when they stay so.
			if stopped++; stopped == 20 {
				return nil
			}
		default:
			stopped = 0
		}
		if time.Now().After(limit) {
			return fmt.Errorf("threads of the process do not stop: their states are %s", states)
		}
	}
}

// resume lets a suspended process run again.
func (s *server) resume() {
	if err := s.cmd.Process.Signal(syscall.SIGCONT); err != nil {
		s.r.t.Error(err)
	}
}

// threadStates returns the state letters of a process's threads.
func threadStates(pid int) (string, error) {
	tasks, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/stat", pid))
	if err != nil {
		return "", err
	}
	states := ""
	for _, name := range tasks {
		b, err := os.ReadFile(name)
		if errors.Is(err, os.ErrNotExist) || errors.Is(err, syscall.ESRCH) {
			continue // it has ended
		}
		if err != nil {
			return "", err
		}
		// pid (name) state ...; the name may hold anything.
		if i := bytes.LastIndexByte(b, ')'); i >= 0 && i+2 < len(b) {
			states += string(b[i+2])
		}
	}
	if states == "" {
		return "", errors.New("the process has no threads")
	}
	return states, nil
}
