package vfs

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"slices"
	"sync/atomic"
	"syscall"

	"golang.org/x/sys/unix"
)

// osFS is a directory of the operating system, held open: renaming it or
// mounting something over its path does not lead an osFS elsewhere.
type osFS struct {
	root *os.Root
	dir  *os.File // the root once more, for fstat and fstatfs
	dev  uint64
}

// OS opens an existing directory. Names are resolved by [os.Root] relative to
// the open directory, so neither ".." nor a symbolic link leads out of it.
func OS(dir string) (FS, error) {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return nil, err
	}
	d, err := root.Open(".")
	if err != nil {
		return nil, errors.Join(err, root.Close())
	}
	var st unix.Stat_t
	if err := retry(func() error { return unix.Fstat(int(d.Fd()), &st) }); err != nil {
		return nil, errors.Join(pathErr("stat", dir, err), d.Close(), root.Close())
	}
	return &osFS{root: root, dir: d, dev: st.Dev}, nil
}

func (o *osFS) OpenFile(name string, flag int, perm fs.FileMode) (File, error) {
	if err := CheckName("open", name, false); err != nil {
		return nil, err
	}
	if err := CheckFlag(name, flag); err != nil {
		return nil, err
	}
	f, err := o.open(name, flag, perm)
	if err != nil {
		return nil, err
	}
	return f, nil
}

// open makes an osFile of a regular file. [os.Root] sets O_CLOEXEC, so that no
// child process keeps a file, or a lock, alive.
func (o *osFS) open(name string, flag int, perm fs.FileMode) (*osFile, error) {
	f, err := o.root.OpenFile(name, flag, perm)
	if err != nil {
		return nil, err
	}
	fd := int(f.Fd())
	var st unix.Stat_t
	err = retry(func() error { return unix.Fstat(fd, &st) })
	switch mode := st.Mode & unix.S_IFMT; {
	case err != nil:
	case mode == unix.S_IFDIR:
		err = syscall.EISDIR
	case mode != unix.S_IFREG:
		err = fs.ErrInvalid
	}
	if err != nil {
		return nil, errors.Join(pathErr("open", name, err), f.Close())
	}
	return &osFile{f: f, fd: fd, name: name}, nil
}

func (o *osFS) Mkdir(name string, perm fs.FileMode) error {
	if err := CheckName("mkdir", name, false); err != nil {
		return err
	}
	return o.root.Mkdir(name, perm)
}

func (o *osFS) Remove(name string) error {
	if err := CheckName("remove", name, false); err != nil {
		return err
	}
	return o.root.Remove(name)
}

func (o *osFS) Rename(oldName, newName string) error {
	if err := CheckName("rename", oldName, false); err != nil {
		return err
	}
	if err := CheckName("rename", newName, false); err != nil {
		return err
	}
	err := o.root.Rename(oldName, newName)
	if e, ok := errors.AsType[*os.LinkError](err); ok {
		return &fs.PathError{Op: "rename", Path: oldName + " to " + newName, Err: e.Err}
	}
	return err
}

// openDir opens a directory for reading its names or syncing it.
func (o *osFS) openDir(op, name string) (*os.File, error) {
	if err := CheckName(op, name, true); err != nil {
		return nil, err
	}
	return o.root.OpenFile(name, os.O_RDONLY|unix.O_DIRECTORY, 0)
}

func (o *osFS) ReadDir(name string) ([]string, error) {
	d, err := o.openDir("readdir", name)
	if err != nil {
		return nil, err
	}
	names, err := d.Readdirnames(-1)
	if err = errors.Join(err, d.Close()); err != nil {
		return nil, err
	}
	slices.Sort(names)
	return names, nil
}

func (o *osFS) Stat(name string) (Info, error) {
	if err := CheckName("stat", name, true); err != nil {
		return Info{}, err
	}
	fi, err := o.root.Lstat(name)
	if err != nil {
		return Info{}, err
	}
	st := fi.Sys().(*syscall.Stat_t)
	return Info{
		Name: fi.Name(), Dir: fi.IsDir(), Size: st.Size,
		Allocated: st.Blocks * statBlock, Inode: st.Ino, Links: st.Nlink,
	}, nil
}

func (o *osFS) SyncDir(name string) error {
	d, err := o.openDir("syncdir", name)
	if err != nil {
		return err
	}
	return errors.Join(syncDir(d), d.Close())
}

func (o *osFS) Lock(name string) (io.Closer, error) {
	if err := CheckName("lock", name, false); err != nil {
		return nil, err
	}
	f, err := o.open(name, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	err = retry(func() error { return unix.Flock(f.fd, unix.LOCK_EX|unix.LOCK_NB) })
	if err == unix.EWOULDBLOCK {
		err = ErrLocked
	}
	if err != nil {
		return nil, errors.Join(pathErr("lock", name, err), f.Close())
	}
	return f, nil
}

func (o *osFS) Usage() (Usage, error) {
	var st unix.Statfs_t
	if err := retry(func() error { return unix.Fstatfs(int(o.dir.Fd()), &st) }); err != nil {
		if err == unix.EBADF {
			err = fs.ErrClosed
		}
		return Usage{}, pathErr("statfs", ".", err)
	}
	unit := st.Frsize
	if unit == 0 {
		unit = st.Bsize
	}
	u := Usage{
		Device:     o.dev,
		TotalBytes: int64(st.Blocks) * unit,
		FreeBytes:  int64(st.Bavail) * unit,
		FreeFiles:  int64(st.Ffree),
	}
	if st.Files == 0 { // btrfs and others make inodes as they need them
		u.FreeFiles = -1
	}
	return u, nil
}

func (o *osFS) Close() error { return errors.Join(o.dir.Close(), o.root.Close()) }

// statBlock is the unit of st_blocks, whatever the filesystem's block is (stat(2)).
const statBlock = 512

// osFile is an open regular file. Calls go to the descriptor directly: os.File
// has neither pwritev nor fdatasync, and its RawConn costs an allocation a call.
// users keeps the descriptor open until the last call has come back, so that a
// call that wrongly runs beside Close never reaches a stranger's file that was
// given the same number.
type osFile struct {
	f     *os.File
	fd    int
	name  string
	users atomic.Int64 // calls inside, + closedBit once Close was called
}

const closedBit = 1 << 62

func (f *osFile) enter(op string) error {
	if f.users.Add(1) < closedBit {
		return nil
	}
	_ = f.leave()
	return pathErr(op, f.name, fs.ErrClosed)
}

// leave closes the descriptor when Close came while this call was the last one.
func (f *osFile) leave() error {
	if f.users.Add(-1) == closedBit {
		return f.f.Close() // a second os.File.Close does nothing but say so
	}
	return nil
}

func (f *osFile) Close() error {
	for {
		n := f.users.Load()
		if n >= closedBit {
			return pathErr("close", f.name, fs.ErrClosed)
		}
		if f.users.CompareAndSwap(n, n+1+closedBit) {
			return f.leave()
		}
	}
}

func (f *osFile) ReadAt(p []byte, off int64) (int, error) {
	if err := CheckRange("read", f.name, off, int64(len(p))); err != nil {
		return 0, err
	}
	if err := f.enter("read"); err != nil {
		return 0, err
	}
	defer f.leave()
	done := 0
	for done < len(p) {
		n, err := pread(f.fd, p[done:], off+int64(done))
		switch {
		case err == unix.EINTR:
		case err != nil:
			return done, pathErr("read", f.name, err)
		case n == 0:
			return done, io.EOF
		default:
			done += n
		}
	}
	return done, nil
}

func (f *osFile) WriteAt(p []byte, off int64) (int, error) {
	if err := CheckRange("write", f.name, off, int64(len(p))); err != nil {
		return 0, err
	}
	if err := f.enter("write"); err != nil {
		return 0, err
	}
	defer f.leave()
	return f.writeAll(p, off)
}

func (f *osFile) writeAll(p []byte, off int64) (int, error) {
	done := 0
	for done < len(p) {
		n, err := pwrite(f.fd, p[done:], off+int64(done))
		switch {
		case err == unix.EINTR:
		case err != nil:
			return done, pathErr("write", f.name, err)
		case n == 0: // never seen for a regular file; do not spin on it
			return done, pathErr("write", f.name, io.ErrShortWrite)
		default:
			done += n
		}
	}
	return done, nil
}

// maxIov is IOV_MAX of Linux (limits.h): more buffers in one call are EINVAL.
const maxIov = 1024

func (f *osFile) WritevAt(bufs [][]byte, off int64) (int, error) {
	var total int64
	for _, b := range bufs {
		total += int64(len(b))
	}
	if err := CheckRange("writev", f.name, off, total); err != nil {
		return 0, err
	}
	if err := f.enter("writev"); err != nil {
		return 0, err
	}
	defer f.leave()
	done := 0
	for len(bufs) > 0 {
		part := bufs[:min(len(bufs), maxIov)]
		want := 0
		for _, b := range part {
			want += len(b)
		}
		n, err := 0, error(nil)
		if want > 0 {
			n, err = pwritev(f.fd, part, off+int64(done))
		}
		switch {
		case err == unix.EINTR:
			continue
		case err != nil:
			return done, pathErr("writev", f.name, err)
		case n == 0 && want > 0:
			return done, pathErr("writev", f.name, io.ErrShortWrite)
		}
		done += n
		bufs = bufs[len(part):]
		if n == want {
			continue
		}
		// A short write, which is rare: finish its buffers one by one. The
		// caller's slice of buffers is not ours to advance.
		for _, b := range part {
			if n >= len(b) {
				n -= len(b)
				continue
			}
			m, err := f.writeAll(b[n:], off+int64(done))
			done, n = done+m, 0
			if err != nil {
				return done, err
			}
		}
	}
	return done, nil
}

// call runs one system call on the descriptor, again after a signal.
func (f *osFile) call(op string, do func(fd int) error) error {
	if err := f.enter(op); err != nil {
		return err
	}
	defer f.leave()
	if err := retry(func() error { return do(f.fd) }); err != nil {
		return pathErr(op, f.name, err)
	}
	return nil
}

func (f *osFile) Datasync() error { return f.call("datasync", fdatasync) }

func (f *osFile) Sync() error { return f.call("sync", fsync) }

func (f *osFile) StartWriteback(off, n int64) error {
	if err := CheckRange("writeback", f.name, off, n); err != nil {
		return err
	}
	return f.call("writeback", func(fd int) error {
		err := unix.SyncFileRange(fd, off, n, unix.SYNC_FILE_RANGE_WRITE)
		if unsupported(err) {
			return nil // it was only a hint
		}
		return err
	})
}

// Allocate falls back to writing where the filesystem has no fallocate (NFS
// before 4.2, some FUSE): it reads the range and writes it again, holes and what
// is beyond the end as zeros. That takes as long as writing does and, on a
// filesystem that copies on write or compresses, promises no space; nothing else
// is possible there.
func (f *osFile) Allocate(off, n int64) error {
	if err := checkPiece("allocate", f.name, off, n); err != nil {
		return err
	}
	return f.call("allocate", func(fd int) error {
		err := fallocate(fd, 0, off, n)
		if unsupported(err) {
			return f.allocateByWriting(off, n)
		}
		return err
	})
}

// PunchHole falls back to writing zeros where the filesystem cannot punch: the
// promise that old bytes are not seen again is worth more than the time, and
// Info.Allocated shows that no space came back.
func (f *osFile) PunchHole(off, n int64) error {
	if err := checkPiece("punch", f.name, off, n); err != nil {
		return err
	}
	return f.call("punch", func(fd int) error {
		err := fallocate(fd, unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, off, n)
		if unsupported(err) {
			return f.punchByWriting(off, n)
		}
		return err
	})
}

// These are variables for the tests of the fallbacks, of short transfers and of
// interrupted calls, none of which a filesystem at hand shows on demand.
var (
	fallocate = unix.Fallocate
	pread     = unix.Pread
	pwrite    = unix.Pwrite
	pwritev   = unix.Pwritev
)

var zeros [64 << 10]byte

func (f *osFile) allocateByWriting(off, n int64) error {
	buf := make([]byte, len(zeros))
	for n > 0 {
		b := buf[:min(n, int64(len(buf)))]
		got, err := f.ReadAt(b, off)
		if err != nil && err != io.EOF {
			return err
		}
		clear(b[got:]) // beyond the end
		if _, err := f.writeAll(b, off); err != nil {
			return err
		}
		off, n = off+int64(len(b)), n-int64(len(b))
	}
	return nil
}

func (f *osFile) punchByWriting(off, n int64) error {
	info, err := f.stat()
	if err != nil {
		return err
	}
	n = min(n, info.Size-off) // the file keeps its size
	for n > 0 {
		b := zeros[:min(n, int64(len(zeros)))]
		if _, err := f.writeAll(b, off); err != nil {
			return err
		}
		off, n = off+int64(len(b)), n-int64(len(b))
	}
	return nil
}

func (f *osFile) Truncate(size int64) error {
	if err := CheckRange("truncate", f.name, size, 0); err != nil {
		return err
	}
	return f.call("truncate", func(fd int) error { return unix.Ftruncate(fd, size) })
}

func (f *osFile) Stat() (Info, error) {
	if err := f.enter("stat"); err != nil {
		return Info{}, err
	}
	defer f.leave()
	return f.stat()
}

func (f *osFile) stat() (Info, error) {
	var st unix.Stat_t
	if err := retry(func() error { return unix.Fstat(f.fd, &st) }); err != nil {
		return Info{}, pathErr("stat", f.name, err)
	}
	return Info{
		Name: base(f.name), Size: st.Size,
		Allocated: st.Blocks * statBlock, Inode: st.Ino, Links: st.Nlink,
	}, nil
}

func base(name string) string {
	for i := len(name) - 1; i >= 0; i-- {
		if name[i] == '/' {
			return name[i+1:]
		}
	}
	return name
}

// checkPiece is CheckRange for calls that take no empty range.
func checkPiece(op, name string, off, n int64) error {
	if n == 0 {
		return pathErr(op, name, syscall.EINVAL)
	}
	return CheckRange(op, name, off, n)
}

func unsupported(err error) bool {
	return err == unix.EOPNOTSUPP || err == unix.ENOSYS
}

func retry(call func() error) error {
	for {
		if err := call(); err != unix.EINTR {
			return err
		}
	}
}

func pathErr(op, name string, err error) error {
	if _, ok := err.(*fs.PathError); ok {
		return fmt.Errorf("%s: %w", op, err) // from a step of a fallback
	}
	return &fs.PathError{Op: op, Path: name, Err: err}
}
