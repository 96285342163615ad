// Package vfs is the small filesystem interface under a node's directory. All
// file operations of a node go through it, so that the same code runs on the
// operating system ([OS]) and, in tests, on a filesystem that forgets what was
// not synced and fails, tears or delays any call (package crashfs beneath).
//
// An [FS] is rooted at one directory: names are relative, separated by "/", in
// the shape of [fs.ValidPath] and without NUL; any other is [fs.ErrInvalid].
// None can leave the root, whatever it contains: a symbolic link that leads out
// is an error, one that stays inside is followed. "." is the root and may be
// given to ReadDir, Stat and SyncDir only.
//
// Methods of an FS and of a File may be called at the same time, except that
// nothing may follow Close ([fs.ErrClosed]). No buffer is kept after a call
// returns. A call that met a signal is made again; a caller never sees EINTR.
//
// Errors are *fs.PathError or wrap one; [fs.ErrNotExist], [fs.ErrExist],
// syscall.ENOSPC, syscall.EIO, syscall.EMFILE keep their meaning under
// errors.Is, so that callers can tell "not there" from "could not ask".
//
// What the package does not do: it has no cache, no retry, no working directory,
// no hard links and no permissions beyond those given at creation.
package vfs

import (
	"errors"
	"io"
	"io/fs"
)

// ErrLocked says that another process, or another opener in this one, holds the lock.
var ErrLocked = errors.New("vfs: locked by someone else")

// FS is a directory tree.
type FS interface {
	// OpenFile opens a regular file. flag is os.O_RDONLY or os.O_RDWR, with
	// os.O_CREATE, os.O_EXCL (only with O_CREATE) and os.O_TRUNC (only with
	// O_RDWR); any other is [fs.ErrInvalid]. A directory is syscall.EISDIR. A
	// file that was created has a durable name only after SyncDir of its
	// directory; syncing the file does not do it.
	OpenFile(name string, flag int, perm fs.FileMode) (File, error)
	// Mkdir makes one directory; its name is durable after SyncDir of its parent.
	Mkdir(name string, perm fs.FileMode) error
	// Remove removes a file or an empty directory.
	Remove(name string) error
	// Rename replaces newName by oldName atomically; durable after SyncDir of
	// the directory, or, between two directories, of both. A directory is never
	// replaced ([fs.ErrExist]).
	Rename(oldName, newName string) error
	// ReadDir lists a directory, sorted by name.
	ReadDir(name string) ([]string, error)
	// Stat does not follow a symbolic link at the end of name.
	Stat(name string) (Info, error)
	// SyncDir makes the names in the directory durable. "." is the root.
	SyncDir(name string) error
	// Lock takes an exclusive lock on name, creating the file when it is not
	// there; it never waits: [ErrLocked]. Closing the result, or the end of the
	// process, gives it back. The lock belongs to the file, not to its name: when
	// the name is removed and made again, the new file can be locked as well.
	Lock(name string) (io.Closer, error)
	// Usage says how much room the filesystem underneath has.
	Usage() (Usage, error)
	// Close releases the root. Files stay usable until they are closed.
	Close() error
}

// File is an open file. Offsets and lengths are bytes; a negative one is
// syscall.EINVAL. Changing a file opened with O_RDONLY is an error.
type File interface {
	// ReadAt is as in [io.ReaderAt]: fewer bytes than asked for come with an
	// error, at the end of the file with io.EOF itself.
	io.ReaderAt
	// WriteAt writes all of p, or returns how many bytes it wrote and an error.
	io.WriterAt
	// WritevAt writes the buffers one after another from off on. Like WriteAt it
	// returns an error whenever not everything was written.
	WritevAt(bufs [][]byte, off int64) (int, error)
	// Datasync makes the file's content, and what of its metadata is needed to
	// read it back, survive a power cut. After an error the content written
	// since the last good sync is unknown, whatever a later call answers.
	Datasync() error
	// Sync is Datasync and all other metadata too.
	Sync() error
	// StartWriteback asks the system to begin writing a range, without waiting;
	// a hint, no promise. n = 0 means up to the end of the file.
	StartWriteback(off, n int64) error
	// Allocate reserves disk space for a range and extends the file over it;
	// what was written there stays, the rest reads as zeros. Writing into the
	// range needs no more space. n is above 0. After an error a part of the
	// range may be reserved. Not beside a write to the same range.
	Allocate(off, n int64) error
	// PunchHole gives the space of a range back; it then reads as zeros. The
	// file keeps its size. Only whole filesystem blocks are given back. n is
	// above 0. Durable after Sync or Datasync; until then the old bytes may be
	// back after a power cut. Not beside a write to the same range.
	PunchHole(off, n int64) error
	// Truncate sets the size; what is added reads as zeros.
	Truncate(size int64) error
	Stat() (Info, error)
	io.Closer
}

// Info describes a file or directory. Of a directory, Size and Links say nothing,
// and Allocated is what its names take, where the filesystem says so.
type Info struct {
	Name      string // the last element
	Dir       bool
	Size      int64  // bytes, as seen by a reader
	Allocated int64  // bytes of disk space in use
	Inode     uint64 // the same for two opens of one file
	Links     uint64 // 0: the file has no name any more; reported by File.Stat
}

// Usage describes the filesystem under an [FS]. Two FS with the same Device
// share its space.
type Usage struct {
	Device     uint64
	TotalBytes int64 // what the filesystem could hold, empty
	FreeBytes  int64 // available to this process
	FreeFiles  int64 // inodes; -1 where the filesystem does not count them
}
