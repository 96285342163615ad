package vfs

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
)

// TempSuffix ends the name of the temporary that [WriteFile] makes beside its
// target. After a crash one may be left; it means nothing and may be removed.
const TempSuffix = ".tmp"

// ErrTooLarge says that a file is longer than its reader wants to take.
var ErrTooLarge = errors.New("vfs: file is too large")

// WriteFile gives the small file name the content b, durably: after nil it is
// there after a power cut, and at no moment is there anything but the old
// content, whole, or the new. The steps are: a fresh temporary beside the
// target, write, datasync, close, rename, sync of the directory.
//
// After an error the old content stays and the temporary is removed, with one
// exception: when only the last step, the directory sync, failed, the new
// content is in place and a power cut may bring the old one back. Two calls for
// one name must not run at the same time.
func WriteFile(fsys FS, name string, b []byte) error {
	tmp := name + TempSuffix
	const flag = os.O_RDWR | os.O_CREATE | os.O_EXCL
	f, err := fsys.OpenFile(tmp, flag, 0o600)
	if errors.Is(err, fs.ErrExist) { // left by a crash
		if err = fsys.Remove(tmp); err == nil {
			f, err = fsys.OpenFile(tmp, flag, 0o600)
		}
	}
	if err != nil {
		return err
	}
	if _, err = f.WriteAt(b, 0); err == nil {
		err = f.Datasync()
	}
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err == nil {
		err = fsys.Rename(tmp, name)
	}
	if err != nil {
		_ = fsys.Remove(tmp) // best effort: the next call removes it otherwise
		return err
	}
	return fsys.SyncDir(path.Dir(name))
}

// ReadFile returns the content of a file of at most limit bytes; a longer one is
// [ErrTooLarge], and no more than limit+1 bytes of it are read.
func ReadFile(fsys FS, name string, limit int64) ([]byte, error) {
	f, err := fsys.OpenFile(name, os.O_RDONLY, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close() // nothing was written
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if info.Size > limit {
		return nil, &fs.PathError{Op: "read", Path: name,
			Err: fmt.Errorf("%w: %d bytes, at most %d", ErrTooLarge, info.Size, limit)}
	}
	// One byte more than Stat said: a full buffer then means that it has grown.
	b := make([]byte, info.Size+1)
	n, err := f.ReadAt(b, 0)
	switch {
	case errors.Is(err, io.EOF):
		return b[:n], nil
	case err != nil:
		return nil, err
	}
	return nil, &fs.PathError{Op: "read", Path: name, Err: errors.New("the file grew while it was read")}
}
