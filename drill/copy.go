package drill

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"

	"golang.org/x/sys/unix"
)

// ballast is space in reserve: it holds nothing, and a start makes it anew.
const ballast = "ballast"

// maxDepth bounds how deep a data directory is followed, links included.
const maxDepth = 12

// refuseInside refuses a place for the scratch directory that is the store, lies
// in it, or holds it: whatever names and mounts lead there.
func refuseInside(data, scratch string) error {
	inside := func(dir, of string) (bool, error) {
		want, err := os.Stat(of)
		if err != nil {
			return false, err
		}
		if dir, err = filepath.EvalSymlinks(dir); err != nil {
			return false, err
		}
		for {
			info, err := os.Stat(dir)
			if err != nil {
				return false, err
			}
			if os.SameFile(info, want) {
				return true, nil
			}
			up := filepath.Dir(dir)
			if up == dir {
				return false, nil
			}
			dir = up
		}
	}
	data, err := filepath.Abs(data)
	if err != nil {
		return err
	}
	nodes, err := filepath.Glob(filepath.Join(data, "nodes", "*"))
	if err != nil {
		return err
	}
	for _, part := range append([]string{data}, nodes...) { // a node's directory may be a link out of it
		is, err := inside(scratch, part)
		if err != nil {
			return err
		}
		if is {
			return fmt.Errorf("%s is the store itself, or lies in it: a drill breaks what is in its directory; name one elsewhere", scratch)
		}
	}
	return nil
}

// lockStore keeps everybody from serving a store while it is copied, and is
// refused while somebody does.
func lockStore(data string) (io.Closer, error) {
	f, err := os.Open(filepath.Join(data, "lock"))
	if err != nil {
		return nil, fmt.Errorf("%s is no data directory that was served: %w", data, err)
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		f.Close()
		return nil, fmt.Errorf("%s is in use: stop the server first, a copy of a store that is served is none", data)
	}
	return f, nil
}

// treeSize is what a copy takes.
func treeSize(dir string, depth int) (total int64, err error) {
	err = eachEntry(dir, depth, func(path string, info fs.FileInfo) error {
		if info.IsDir() {
			n, err := treeSize(path, depth+1)
			total += n
			return err
		}
		total += info.Sys().(*syscall.Stat_t).Blocks * 512
		return nil
	})
	return total, err
}

// eachEntry calls fn for what a directory holds but for ballast. A link is what it
// points to: a copy with a link in it would lead back to the store.
func eachEntry(dir string, depth int, fn func(path string, info fs.FileInfo) error) error {
	if depth > maxDepth {
		return fmt.Errorf("%s lies too deep for a data directory", dir)
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		path := filepath.Join(dir, e.Name())
		info, err := os.Stat(path)
		if err != nil {
			return err
		}
		if e.Name() == ballast && depth <= 2 || e.Name() == "lost+found" {
			continue
		}
		if !info.IsDir() && !info.Mode().IsRegular() {
			return fmt.Errorf("%s is neither a file nor a directory", path)
		}
		if err := fn(path, info); err != nil {
			return err
		}
	}
	return nil
}

// copyTree makes to, which is not there, a copy of from.
func copyTree(from, to string, depth int) error {
	if err := os.Mkdir(to, 0o700); err != nil {
		return err
	}
	return eachEntry(from, depth, func(path string, info fs.FileInfo) error {
		dst := filepath.Join(to, filepath.Base(path))
		if info.IsDir() {
			return copyTree(path, dst, depth+1)
		}
		return copyFile(path, dst)
	})
}

// copyFile shares the blocks where the filesystem can, and leaves holes where the
// bytes are zero.
func copyFile(from, to string) error {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.OpenFile(to, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	if unix.IoctlFileClone(int(out.Fd()), int(in.Fd())) == nil {
		return out.Close()
	}
	buf := make([]byte, 256<<10)
	var off int64
	for {
		n, err := io.ReadFull(in, buf)
		if n > 0 && !zero(buf[:n]) {
			if _, werr := out.WriteAt(buf[:n], off); werr != nil {
				return errors.Join(werr, out.Close())
			}
		}
		off += int64(n)
		if err == io.EOF || err == io.ErrUnexpectedEOF {
			break
		}
		if err != nil {
			return errors.Join(err, out.Close())
		}
	}
	return errors.Join(out.Truncate(off), out.Close())
}

func zero(b []byte) bool {
	for _, x := range b {
		if x != 0 {
			return false
		}
	}
	return true
}

// room refuses to begin what the filesystem of dir would not hold: the nodes take
// nothing when it is nearly full.
func room(dir string, need int64) error {
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return err
	}
	free, total := int64(st.Bavail)*st.Bsize, int64(st.Blocks)*st.Bsize
	if need += total/20 + 512<<20; free < need {
		return fmt.Errorf("the drill needs %d MiB free in %s, and there are %d MiB: name another place with --dir, or less with --size", need>>20, dir, free>>20)
	}
	return nil
}
