package vfs

import (
	"io/fs"
	"os"
	"strings"
	"syscall"
)

// CheckName returns the error that every [FS] gives for a name it must not
// touch, nil for a good one. dot says whether "." (the root) will do.
func CheckName(op, name string, dot bool) error {
	if !fs.ValidPath(name) || strings.IndexByte(name, 0) >= 0 || (name == "." && !dot) {
		return &fs.PathError{Op: op, Path: name, Err: fs.ErrInvalid}
	}
	return nil
}

// CheckFlag returns the error that every [FS] gives for flags that OpenFile
// does not take. O_APPEND is among them because on Linux it makes pwrite ignore
// its offset.
func CheckFlag(name string, flag int) error {
	const known = os.O_RDONLY | os.O_RDWR | os.O_CREATE | os.O_EXCL | os.O_TRUNC
	if flag&^known != 0 ||
		flag&os.O_EXCL != 0 && flag&os.O_CREATE == 0 ||
		flag&os.O_TRUNC != 0 && flag&os.O_RDWR == 0 {
		return &fs.PathError{Op: "open", Path: name, Err: fs.ErrInvalid}
	}
	return nil
}

// CheckRange returns syscall.EINVAL, as a *fs.PathError, for a range that no
// file can have: a negative offset or length, or an end beyond int64.
func CheckRange(op, name string, off, n int64) error {
	if off < 0 || n < 0 || off+n < 0 {
		return &fs.PathError{Op: op, Path: name, Err: syscall.EINVAL}
	}
	return nil
}
