package crashfs

import (
	"io"
	"io/fs"
	"syscall"

	"cairn/node/vfs"
)

// file is an open file. It is open while the volume's handles have it.
type file struct {
	fs    *FS
	n     *inode
	name  string
	write bool
}

var _ vfs.File = (*file)(nil)

func (h *file) alive() error {
	if h.fs.gen != h.fs.v.gen {
		return ErrCrashed
	}
	if _, ok := h.fs.v.handles[h]; !ok {
		return fs.ErrClosed
	}
	return nil
}

// drop ends the opening.
func (h *file) drop() {
	delete(h.fs.v.handles, h)
	h.n.opens--
	h.fs.v.release(h.n)
}

// begin asks the injector; after nil the lock is held and the file open.
func (h *file) begin(op Op) (Fault, error) {
	op.Name = h.name
	return h.fs.v.begin(op, h.alive)
}

func (h *file) err(op Kind, err error) error { return pathErr(op, h.name, err) }

// ReadAt implements [vfs.File].
func (h *file) ReadAt(p []byte, off int64) (int, error) {
	if err := vfs.CheckRange("read", h.name, off, int64(len(p))); err != nil {
		return 0, err
	}
	fault, err := h.begin(Op{Kind: OpRead, Off: off, Len: int64(len(p))})
	if err != nil {
		return 0, h.err(OpRead, err)
	}
	n := h.n.read(p, off)
	h.fs.v.disk.mu.Unlock()
	for _, bit := range fault.Flip {
		if bit >= 0 && bit/8 < int64(n) {
			p[bit/8] ^= 1 << (bit % 8)
		}
	}
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

// WriteAt implements [vfs.File].
func (h *file) WriteAt(p []byte, off int64) (int, error) {
	bufs := [1][]byte{p}
	return h.writeAll(OpWrite, bufs[:], off)
}

// WritevAt implements [vfs.File].
func (h *file) WritevAt(bufs [][]byte, off int64) (int, error) {
	return h.writeAll(OpWritev, bufs, off)
}

func (h *file) writeAll(op Kind, bufs [][]byte, off int64) (int, error) {
	var n int64
	for _, b := range bufs {
		n += int64(len(b))
	}
	if err := vfs.CheckRange(op.String(), h.name, off, n); err != nil {
		return 0, err
	}
	fault, err := h.begin(Op{Kind: op, Off: off, Len: n})
	if err != nil && fault.Torn == 0 {
		return 0, h.err(op, err)
	}
	if err != nil { // the lock is not held: the injector's error came first
		if h.lockAlive() != nil {
			return 0, h.err(op, ErrCrashed)
		}
		n = min(n, int64(fault.Torn))
	}
	defer h.fs.v.disk.mu.Unlock()
	switch {
	case n == 0:
		return 0, h.err(op, err)
	case !h.write:
		return 0, h.err(op, syscall.EBADF)
	case off+n > maxSize:
		return 0, h.err(op, syscall.EFBIG)
	}
	v := h.fs.v
	v.seq++
	done := h.n.content.write(v.disk, v.seq, &vector{bufs: bufs}, off, n)
	if done < n {
		err = syscall.ENOSPC
	}
	return int(done), h.err(op, err)
}

// lockAlive takes the lock, and keeps it when the file is still open.
func (h *file) lockAlive() error {
	h.fs.v.disk.mu.Lock()
	err := h.alive()
	if err != nil {
		h.fs.v.disk.mu.Unlock()
	}
	return err
}

// Datasync implements [vfs.File].
func (h *file) Datasync() error { return h.sync(OpDatasync) }

// Sync implements [vfs.File].
func (h *file) Sync() error { return h.sync(OpSync) }

func (h *file) sync(op Kind) error {
	fault, err := h.begin(Op{Kind: op})
	if err != nil {
		if fault.Drop && h.lockAlive() == nil {
			h.n.syncFailed()
			h.fs.v.disk.mu.Unlock()
		}
		return h.err(op, err)
	}
	if !fault.Lie {
		h.n.sync(h.fs.v.disk)
	}
	h.fs.v.disk.mu.Unlock()
	return nil
}

// StartWriteback implements [vfs.File]. What was written may be on disk before
// it is synced anyway, so there is nothing to do.
func (h *file) StartWriteback(off, n int64) error {
	if err := vfs.CheckRange("writeback", h.name, off, n); err != nil {
		return err
	}
	if _, err := h.begin(Op{Kind: OpWriteback, Off: off, Len: n}); err != nil {
		return h.err(OpWriteback, err)
	}
	h.fs.v.disk.mu.Unlock()
	return nil
}

// Allocate implements [vfs.File]: all of the range is reserved, or, without
// room, nothing.
func (h *file) Allocate(off, n int64) error {
	return h.changeRange(OpAllocate, off, n, func(v *volume) error {
		switch {
		case off+n > maxSize:
			return syscall.EFBIG
		case !h.n.allocate(v.disk, v.seq, off, n):
			return syscall.ENOSPC
		}
		return nil
	})
}

// PunchHole implements [vfs.File].
func (h *file) PunchHole(off, n int64) error {
	return h.changeRange(OpPunch, off, n, func(v *volume) error {
		h.n.content.drop(v.disk, v.seq, off, off+n)
		return nil
	})
}

func (h *file) changeRange(op Kind, off, n int64, do func(v *volume) error) error {
	if err := vfs.CheckRange(op.String(), h.name, off, n); err != nil {
		return err
	}
	if _, err := h.begin(Op{Kind: op, Off: off, Len: n}); err != nil {
		return h.err(op, err)
	}
	v := h.fs.v
	defer v.disk.mu.Unlock()
	switch {
	case n == 0:
		return h.err(op, syscall.EINVAL)
	case !h.write:
		return h.err(op, syscall.EBADF)
	}
	v.seq++
	return h.err(op, do(v))
}

// Truncate implements [vfs.File].
func (h *file) Truncate(size int64) error {
	if err := vfs.CheckRange("truncate", h.name, size, 0); err != nil {
		return err
	}
	if _, err := h.begin(Op{Kind: OpTruncate, Off: size}); err != nil {
		return h.err(OpTruncate, err)
	}
	v := h.fs.v
	defer v.disk.mu.Unlock()
	switch {
	case !h.write:
		return h.err(OpTruncate, syscall.EINVAL)
	case size > maxSize:
		return h.err(OpTruncate, syscall.EFBIG)
	}
	v.seq++
	h.n.truncate(v.disk, v.seq, size)
	return nil
}

// Stat implements [vfs.File].
func (h *file) Stat() (vfs.Info, error) {
	if _, err := h.begin(Op{Kind: OpFileStat}); err != nil {
		return vfs.Info{}, h.err(OpFileStat, err)
	}
	defer h.fs.v.disk.mu.Unlock()
	return h.n.info(h.name), nil
}

// Close implements [io.Closer]. The file is closed whatever an injector says.
func (h *file) Close() error {
	_, err := h.begin(Op{Kind: OpClose})
	if err != nil {
		if h.lockAlive() != nil {
			return h.err(OpClose, err)
		}
	}
	h.drop()
	h.fs.v.disk.mu.Unlock()
	return h.err(OpClose, err)
}
