// Package crashfs is a [vfs.FS] in memory that can lose power. It is for tests
// and simulations only.
//
// A file remembers what was synced and what was only written, a directory which
// of its names are durable. [FS.Crash] gives the filesystem as it could be after
// a power cut. What it promises is what the contract of [vfs] promises, and not
// one thing that some filesystem happens to do besides:
//
//   - content that was datasynced is there, names whose directory was synced too;
//   - of the rest, each 512-byte sector holds the durable content or that of any
//     write since, whatever became of its neighbours: writes are torn, missing,
//     or there out of order. (Of one 4 KiB page the newest and some older
//     versions are remembered, [pageVersions] of them.)
//   - a size that was not synced is the durable one or any since; what it adds
//     may read as zeros;
//   - a creation, removal or rename whose directory was not synced happened or
//     did not, but not without those before it that touched the same names.
//     Within one directory a rename is atomic. One between two directories of
//     which only one was synced may leave the file under both names or under
//     none. Syncing a file does not make its name durable.
//
// [FS.Kill] ends the process only: everything written stays, for the page cache
// lives on. After both, whatever was opened before fails with [ErrCrashed], and
// all locks are free.
//
// Faults come from an [Injector], asked before each operation. Delays block in
// time.Sleep or on a channel and hold no lock meanwhile, so a bubble of
// testing/synctest sees them as idle.
//
// Zeros and holes cost no memory. Written pages never change, so that [FS.Clone]
// and [FS.CrashClone] copy tables and share the bytes.
//
// Given the same calls in the same order and the same random source, the outcome
// is the same: nothing depends on map order, addresses or the clock. All methods
// may be called at the same time; those of all FS on one [Disk] share a lock. No
// buffer of a caller is kept.
//
// What it does not do: hard links, symbolic links, permissions, times, and
// directories that take up space.
package crashfs

import (
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"path"
	"slices"
	"strings"
	"sync"
	"syscall"

	"cairn/node/vfs"
)

// ErrCrashed is what everything opened before a crash or kill answers after it.
// It is also [fs.ErrClosed].
var ErrCrashed = fmt.Errorf("crashfs: opened before the crash: %w", fs.ErrClosed)

// DiskConfig describes a [Disk]. Zero means without limit.
type DiskConfig struct {
	Device uint64 // what vfs.Usage reports; default 1
	Bytes  int64  // capacity, counted in 4 KiB pages
	Files  int64  // inodes, directories included, the roots not
}

// Disk is room that several FS share.
type Disk struct {
	mu sync.Mutex // guards the fields below and all that is in its FS

	cfg     DiskConfig
	pages   int64 // in use
	files   int64
	nextIno uint64
	nextGen uint64
	scratch *page
	swapped []*volume    // whose openings may reach into each other's trees
	spare   []*dirtyPage // to be used again
}

// NewDisk makes an empty disk.
func NewDisk(cfg DiskConfig) *Disk {
	if cfg.Device == 0 {
		cfg.Device = 1
	}
	return &Disk{cfg: cfg, nextIno: 1, scratch: new(page)}
}

// New makes an empty FS on the disk.
func (d *Disk) New() *FS {
	d.mu.Lock()
	defer d.mu.Unlock()
	v := &volume{disk: d, handles: make(map[*file]struct{}), stop: -1}
	v.root = d.newInode(true)
	return v.mount()
}

// Occupy changes by delta bytes what others than its FS use of the disk, so that
// a disk can be filled and emptied from outside.
func (d *Disk) Occupy(delta int64) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.pages += delta / pageSize
}

// New makes an empty FS on an unlimited disk of its own.
func New() *FS { return NewDisk(DiskConfig{}).New() }

// FS is one opening of a volume: a directory tree that outlives it. Close ends
// the opening; [FS.Reopen], [FS.Crash] and [FS.Kill] give the next one.
type FS struct {
	v      *volume
	gen    uint64
	closed bool
}

var _ vfs.FS = (*FS)(nil)

// volume is the tree and what steers it. Everything is guarded by disk.mu.
type volume struct {
	disk    *Disk
	gen     uint64 // openings of another generation are dead
	root    *inode
	pending []*nameOp // changes of names that are not durable, in order
	handles map[*file]struct{}

	seq    uint64 // of the last change
	ops    int    // operations so far
	kinds  [kindCount]int
	stop   int  // operations after this one fail; -1: none does
	halted bool // one was refused because of stop
	inject Injector
	trace  []Op
	traced bool
	about  string
}

func (v *volume) mount() *FS {
	v.disk.nextGen++
	v.gen = v.disk.nextGen
	return &FS{v: v, gen: v.gen}
}

// inode is a file or a directory.
type inode struct {
	ino   uint64
	dir   bool
	links int
	opens int
	lock  *locked

	// Of a directory: its names as seen, and as they are on disk.
	names, durable map[string]*inode

	content // of a file
}

func (d *Disk) newInode(dir bool) *inode {
	d.nextIno++
	n := &inode{ino: d.nextIno, dir: dir}
	if dir {
		n.names, n.durable = make(map[string]*inode), make(map[string]*inode)
	}
	return n
}

// nameOp is one change of names: one part, or for a rename two. A part whose
// directory was synced is taken out.
type nameOp struct {
	seq   uint64
	parts []namePart
}

// namePart says that name in dir is now node, or nothing when node is nil.
type namePart struct {
	dir  *inode
	name string
	node *inode
}

func (p namePart) apply() {
	if p.node == nil {
		delete(p.dir.durable, p.name)
	} else {
		p.dir.durable[p.name] = p.node
	}
}

// change makes the parts visible and remembers that they are not durable.
func (v *volume) change(parts ...namePart) {
	v.seq++
	for _, p := range parts {
		if p.node == nil {
			delete(p.dir.names, p.name)
		} else {
			p.dir.names[p.name] = p.node
		}
	}
	v.pending = append(v.pending, &nameOp{seq: v.seq, parts: parts})
}

// syncDir makes the names in dir durable.
func (v *volume) syncDir(dir *inode) {
	v.pending = slices.DeleteFunc(v.pending, func(op *nameOp) bool {
		op.parts = slices.DeleteFunc(op.parts, func(p namePart) bool {
			if p.dir != dir {
				return false
			}
			p.apply()
			return true
		})
		return len(op.parts) == 0
	})
}

// walk finds the directory that holds name, and what is there: nil for nothing.
func (v *volume) walk(name string) (dir *inode, last string, n *inode, err error) {
	dir = v.root
	if name == "." {
		return dir, ".", dir, nil
	}
	for rest := name; ; {
		elem, after, more := strings.Cut(rest, "/")
		if len(elem) > 255 {
			return nil, "", nil, syscall.ENAMETOOLONG
		}
		n = dir.names[elem]
		if !more {
			return dir, elem, n, nil
		}
		switch {
		case n == nil:
			return nil, "", nil, syscall.ENOENT
		case !n.dir:
			return nil, "", nil, syscall.ENOTDIR
		}
		dir, rest = n, after
	}
}

// unlink takes a name away from n.
func (v *volume) unlink(n *inode) {
	n.links--
	v.release(n)
}

// release gives back the room of a file that has neither name nor opening.
// The content stays: its removal may yet turn out not to have happened.
func (v *volume) release(n *inode) {
	if n.links == 0 && n.opens == 0 {
		v.disk.pages -= n.allocated
		v.disk.files--
	}
}

func (d *Disk) takeFile() bool {
	if d.cfg.Files > 0 && d.files >= d.cfg.Files {
		return false
	}
	d.files++
	return true
}

func (d *Disk) takePages(n int64) bool {
	if d.cfg.Bytes > 0 && d.pages+n > d.cfg.Bytes/pageSize {
		return false
	}
	d.pages += n
	return true
}

func (f *FS) alive() error {
	switch {
	case f.gen != f.v.gen:
		return ErrCrashed
	case f.closed:
		return fs.ErrClosed
	}
	return nil
}

func pathErr(op Kind, name string, err error) error {
	if err == nil {
		return nil
	}
	return &fs.PathError{Op: op.String(), Path: name, Err: err}
}

// OpenFile implements [vfs.FS].
func (f *FS) OpenFile(name string, flag int, perm fs.FileMode) (vfs.File, error) {
	if err := vfs.CheckName("open", name, false); err != nil {
		return nil, err
	}
	if err := vfs.CheckFlag(name, flag); err != nil {
		return nil, err
	}
	if _, err := f.begin(Op{Kind: OpOpen, Name: name, Flag: flag}); err != nil {
		return nil, pathErr(OpOpen, name, err)
	}
	defer f.v.disk.mu.Unlock()
	h, err := f.open(name, flag)
	if err != nil {
		return nil, pathErr(OpOpen, name, err)
	}
	return h, nil
}

func (f *FS) open(name string, flag int) (*file, error) {
	v := f.v
	dir, last, n, err := v.walk(name)
	switch {
	case err != nil:
		return nil, err
	case n == nil && flag&os.O_CREATE == 0:
		return nil, syscall.ENOENT
	case n != nil && flag&os.O_EXCL != 0:
		return nil, syscall.EEXIST
	case n != nil && n.dir:
		return nil, syscall.EISDIR
	case n == nil:
		if !v.disk.takeFile() {
			return nil, syscall.ENOSPC
		}
		n = v.disk.newInode(false)
		n.links = 1
		v.change(namePart{dir, last, n})
	case flag&os.O_TRUNC != 0:
		v.seq++
		n.truncate(v.disk, v.seq, 0)
	}
	n.opens++
	h := &file{fs: f, n: n, name: name, write: flag&os.O_RDWR != 0}
	v.handles[h] = struct{}{}
	return h, nil
}

// Mkdir implements [vfs.FS].
func (f *FS) Mkdir(name string, perm fs.FileMode) error {
	if err := vfs.CheckName("mkdir", name, false); err != nil {
		return err
	}
	if _, err := f.begin(Op{Kind: OpMkdir, Name: name}); err != nil {
		return pathErr(OpMkdir, name, err)
	}
	defer f.v.disk.mu.Unlock()
	dir, last, n, err := f.v.walk(name)
	switch {
	case err != nil:
	case n != nil:
		err = syscall.EEXIST
	case !f.v.disk.takeFile():
		err = syscall.ENOSPC
	default:
		n = f.v.disk.newInode(true)
		n.links = 1
		f.v.change(namePart{dir, last, n})
	}
	return pathErr(OpMkdir, name, err)
}

// Remove implements [vfs.FS].
func (f *FS) Remove(name string) error {
	if err := vfs.CheckName("remove", name, false); err != nil {
		return err
	}
	if _, err := f.begin(Op{Kind: OpRemove, Name: name}); err != nil {
		return pathErr(OpRemove, name, err)
	}
	defer f.v.disk.mu.Unlock()
	dir, last, n, err := f.v.walk(name)
	switch {
	case err != nil:
	case n == nil:
		err = syscall.ENOENT
	case len(n.names) > 0:
		err = syscall.ENOTEMPTY
	default:
		f.v.change(namePart{dir, last, nil})
		f.v.unlink(n)
	}
	return pathErr(OpRemove, name, err)
}

// Rename implements [vfs.FS].
func (f *FS) Rename(oldName, newName string) error {
	if err := vfs.CheckName("rename", oldName, false); err != nil {
		return err
	}
	if err := vfs.CheckName("rename", newName, false); err != nil {
		return err
	}
	what := oldName + " to " + newName
	if _, err := f.begin(Op{Kind: OpRename, Name: oldName, To: newName}); err != nil {
		return pathErr(OpRename, what, err)
	}
	defer f.v.disk.mu.Unlock()
	return pathErr(OpRename, what, f.rename(oldName, newName))
}

func (f *FS) rename(oldName, newName string) error {
	from, fromName, n, err := f.v.walk(oldName)
	if err != nil {
		return err
	}
	to, toName, over, err := f.v.walk(newName)
	switch {
	case err != nil:
		return err
	case n == nil:
		return syscall.ENOENT
	case over != nil && over.dir:
		return syscall.EEXIST
	case n.dir && strings.HasPrefix(newName, oldName+"/"):
		return syscall.EINVAL
	case n == over:
		return nil
	case n.dir && over != nil:
		return syscall.ENOTDIR
	}
	f.v.change(namePart{from, fromName, nil}, namePart{to, toName, n})
	if over != nil {
		f.v.unlink(over)
	}
	return nil
}

// ReadDir implements [vfs.FS].
func (f *FS) ReadDir(name string) ([]string, error) {
	if err := vfs.CheckName("readdir", name, true); err != nil {
		return nil, err
	}
	if _, err := f.begin(Op{Kind: OpReadDir, Name: name}); err != nil {
		return nil, pathErr(OpReadDir, name, err)
	}
	defer f.v.disk.mu.Unlock()
	n, err := f.dir(name)
	if err != nil {
		return nil, pathErr(OpReadDir, name, err)
	}
	return sortedNames(n.names), nil
}

func (f *FS) dir(name string) (*inode, error) {
	_, _, n, err := f.v.walk(name)
	switch {
	case err != nil:
		return nil, err
	case n == nil:
		return nil, syscall.ENOENT
	case !n.dir:
		return nil, syscall.ENOTDIR
	}
	return n, nil
}

func sortedNames(m map[string]*inode) []string {
	names := make([]string, 0, len(m))
	for name := range m {
		names = append(names, name)
	}
	slices.Sort(names)
	return names
}

// Stat implements [vfs.FS].
func (f *FS) Stat(name string) (vfs.Info, error) {
	if err := vfs.CheckName("stat", name, true); err != nil {
		return vfs.Info{}, err
	}
	if _, err := f.begin(Op{Kind: OpStat, Name: name}); err != nil {
		return vfs.Info{}, pathErr(OpStat, name, err)
	}
	defer f.v.disk.mu.Unlock()
	_, _, n, err := f.v.walk(name)
	if err == nil && n == nil {
		err = syscall.ENOENT
	}
	if err != nil {
		return vfs.Info{}, pathErr(OpStat, name, err)
	}
	return n.info(name), nil
}

func (n *inode) info(name string) vfs.Info {
	return vfs.Info{
		Name: path.Base(name), Dir: n.dir, Size: n.size,
		Allocated: n.allocated * pageSize, Inode: n.ino, Links: uint64(n.links),
	}
}

// SyncDir implements [vfs.FS].
func (f *FS) SyncDir(name string) error {
	if err := vfs.CheckName("syncdir", name, true); err != nil {
		return err
	}
	fault, err := f.begin(Op{Kind: OpSyncDir, Name: name})
	if err != nil {
		return pathErr(OpSyncDir, name, err)
	}
	defer f.v.disk.mu.Unlock()
	n, err := f.dir(name)
	if err == nil && !fault.Lie {
		f.v.syncDir(n)
	}
	return pathErr(OpSyncDir, name, err)
}

// locked is a held lock. It ends with Close or with the opening it came from.
type locked struct {
	*file
}

func (l *locked) held() bool {
	_, ok := l.fs.v.handles[l.file]
	return ok
}

// Lock implements [vfs.FS].
func (f *FS) Lock(name string) (io.Closer, error) {
	if err := vfs.CheckName("lock", name, false); err != nil {
		return nil, err
	}
	if _, err := f.begin(Op{Kind: OpLock, Name: name}); err != nil {
		return nil, pathErr(OpLock, name, err)
	}
	defer f.v.disk.mu.Unlock()
	h, err := f.open(name, os.O_RDWR|os.O_CREATE)
	if err == nil && h.n.lock != nil && h.n.lock.held() {
		h.drop()
		err = vfs.ErrLocked
	}
	if err != nil {
		return nil, pathErr(OpLock, name, err)
	}
	h.n.lock = &locked{h}
	return h.n.lock, nil
}

// Usage implements [vfs.FS]. A disk without limit says that it has 1 PiB.
func (f *FS) Usage() (vfs.Usage, error) {
	if _, err := f.begin(Op{Kind: OpUsage, Name: "."}); err != nil {
		return vfs.Usage{}, pathErr(OpUsage, ".", err)
	}
	d := f.v.disk
	defer d.mu.Unlock()
	u := vfs.Usage{Device: d.cfg.Device, TotalBytes: 1 << 50, FreeFiles: -1}
	if d.cfg.Bytes > 0 {
		u.TotalBytes = d.cfg.Bytes / pageSize * pageSize
	}
	u.FreeBytes = max(0, u.TotalBytes-d.pages*pageSize)
	if d.cfg.Files > 0 {
		u.FreeFiles = max(0, d.cfg.Files-d.files)
	}
	return u, nil
}

// Close implements [vfs.FS]. It is no operation: no injector is asked.
func (f *FS) Close() error {
	f.v.disk.mu.Lock()
	defer f.v.disk.mu.Unlock()
	if err := f.alive(); err != nil {
		return &fs.PathError{Op: "close", Path: ".", Err: err}
	}
	f.closed = true
	return nil
}

// Disk returns the disk that f is on.
func (f *FS) Disk() *Disk { return f.v.disk }

// Reopen returns another opening of the same volume, as a second process would
// get it. Others stay as they are.
func (f *FS) Reopen() *FS {
	f.v.disk.mu.Lock()
	defer f.v.disk.mu.Unlock()
	return &FS{v: f.v, gen: f.v.gen}
}

// Kill ends the processes that have the volume open, and returns the opening
// that the next one gets: everything written is there, nothing more of it is
// durable than before. The injector stays.
func (f *FS) Kill() *FS {
	v := f.v
	v.disk.mu.Lock()
	defer v.disk.mu.Unlock()
	v.dropHandles()
	v.stop, v.halted = -1, false
	return v.mount()
}

func (v *volume) dropHandles() {
	for h := range v.handles { // the order does not show
		h.n.opens--
		v.release(h.n)
	}
	clear(v.handles)
}

// dropStrangers closes what other volumes, after a Swap, have open in v's tree:
// the tree is about to be another.
func (v *volume) dropStrangers() {
	if len(v.disk.swapped) == 0 {
		return
	}
	mine := v.root.all()
	for _, other := range v.disk.swapped {
		for h := range other.handles {
			if mine[h.n] {
				h.drop()
			}
		}
	}
}

// Crash cuts the power and returns the volume as the next process finds it. The
// injector stays.
func (f *FS) Crash(rng *rand.Rand) *FS {
	v := f.v
	v.disk.mu.Lock()
	defer v.disk.mu.Unlock()
	v.dropHandles()
	v.dropStrangers()
	pages, files := v.root.room()
	v.root = v.afterCrash(rng)
	v.pending = nil
	newPages, newFiles := v.root.room()
	v.disk.pages += newPages - pages
	v.disk.files += newFiles - files
	v.stop, v.halted = -1, false
	return v.mount()
}

// CrashClone returns a copy of the volume as it could be found if the power were
// cut now; f and what is open stay as they are. The copy is on a disk of its
// own, as large and as full, and has no injector.
func (f *FS) CrashClone(rng *rand.Rand) *FS {
	v := f.v
	v.disk.mu.Lock()
	defer v.disk.mu.Unlock()
	return v.copyWith(v.afterCrash(rng), nil)
}

// Clone returns a copy of the volume in its present state, with what is durable
// and what is not, on a disk of its own, and without an injector.
func (f *FS) Clone() *FS {
	v := f.v
	v.disk.mu.Lock()
	defer v.disk.mu.Unlock()
	seen := make(map[*inode]*inode)
	root := v.root.clone(seen)
	pending := make([]*nameOp, len(v.pending))
	for i, op := range v.pending {
		c := &nameOp{seq: op.seq, parts: slices.Clone(op.parts)}
		for j, p := range c.parts {
			c.parts[j].dir = p.dir.clone(seen)
			if p.node != nil {
				c.parts[j].node = p.node.clone(seen)
			}
		}
		pending[i] = c
	}
	return v.copyWith(root, pending)
}

func (v *volume) copyWith(root *inode, pending []*nameOp) *FS {
	d := NewDisk(v.disk.cfg)
	d.nextIno, d.nextGen = v.disk.nextIno, v.disk.nextGen
	oldPages, oldFiles := v.root.room()
	open := make(map[*inode]bool)
	for h := range v.handles { // a removed file that is open is not in the copy
		if h.n.links == 0 && !open[h.n] {
			open[h.n] = true
			oldPages += h.n.allocated
			oldFiles++
		}
	}
	pages, files := root.room()
	d.pages = v.disk.pages - oldPages + pages
	d.files = v.disk.files - oldFiles + files
	c := &volume{
		disk: d, root: root, pending: pending, handles: make(map[*file]struct{}),
		seq: v.seq, ops: v.ops, kinds: v.kinds, stop: -1, about: v.about,
	}
	return c.mount()
}

// clone copies a tree with all its states; seen keeps files with several names,
// and directories that only one of the two views has, single.
func (n *inode) clone(seen map[*inode]*inode) *inode {
	if c := seen[n]; c != nil {
		return c
	}
	c := &inode{ino: n.ino, dir: n.dir, links: n.links}
	seen[n] = c
	if !n.dir {
		c.content = n.content.clone()
		return c
	}
	c.names, c.durable = make(map[string]*inode, len(n.names)), make(map[string]*inode, len(n.durable))
	for name, x := range n.names {
		c.names[name] = x.clone(seen)
	}
	for name, x := range n.durable {
		c.durable[name] = x.clone(seen)
	}
	return c
}

// room returns pages and inodes in use beneath a directory.
func (n *inode) room() (pages, files int64) {
	all := n.all()
	for x := range all {
		pages += x.allocated
	}
	return pages, int64(len(all))
}

// all returns the files and directories beneath a directory.
func (n *inode) all() map[*inode]bool {
	seen := make(map[*inode]bool)
	var walk func(n *inode)
	walk = func(n *inode) {
		for _, x := range n.names {
			if !seen[x] {
				seen[x] = true
				walk(x)
			}
		}
	}
	walk(n)
	return seen
}

// RemoveAll removes name and all beneath, "." for everything in the volume, as
// someone from outside would: no injector is asked, and it is no more durable
// than any removal. Open files live on, with no links.
func (f *FS) RemoveAll(name string) error {
	if err := vfs.CheckName("removeall", name, true); err != nil {
		return err
	}
	v := f.v
	v.disk.mu.Lock()
	defer v.disk.mu.Unlock()
	dir, last, n, err := v.walk(name)
	if err == nil && n == nil {
		err = syscall.ENOENT
	}
	if err != nil {
		return &fs.PathError{Op: "removeall", Path: name, Err: err}
	}
	v.removeBelow(n)
	if n != v.root {
		v.change(namePart{dir, last, nil})
		v.unlink(n)
	}
	return nil
}

func (v *volume) removeBelow(n *inode) {
	for _, name := range sortedNames(n.names) {
		x := n.names[name]
		v.removeBelow(x)
		v.change(namePart{n, name, nil})
		v.unlink(x)
	}
}

// Swap exchanges the trees of two volumes of one disk, as a mount over the
// directory does: names lead to the other tree from now on, open files stay
// what they were. (vfs.OS is milder: it holds its directory open and goes on in
// the old one.) It panics when the volumes are on different disks.
func (f *FS) Swap(other *FS) {
	if f.v.disk != other.v.disk {
		panic("crashfs: Swap between two disks")
	}
	f.v.disk.mu.Lock()
	defer f.v.disk.mu.Unlock()
	a, b := f.v, other.v
	a.root, b.root = b.root, a.root
	a.pending, b.pending = b.pending, a.pending
	for _, v := range []*volume{a, b} {
		if !slices.Contains(v.disk.swapped, v) {
			v.disk.swapped = append(v.disk.swapped, v)
		}
	}
	a.seq = max(a.seq, b.seq) // sequences must go on rising in both
	b.seq = a.seq
}

// Flip flips one bit of a file at rest: in the durable content and in what a
// reader sees. bit counts from the start of the file, the lowest of each byte
// first.
func (f *FS) Flip(name string, bit int64) error {
	v := f.v
	v.disk.mu.Lock()
	defer v.disk.mu.Unlock()
	_, _, n, err := v.walk(name)
	switch {
	case err != nil:
	case n == nil:
		err = syscall.ENOENT
	case n.dir:
		err = syscall.EISDIR
	case bit < 0 || bit/8 >= n.size:
		err = syscall.EINVAL
	default:
		n.flip(v.disk, bit)
	}
	if err != nil {
		return &fs.PathError{Op: "flip", Path: name, Err: err}
	}
	return nil
}

// String says where f comes from: which crash, for the log of a failed test.
func (f *FS) String() string {
	f.v.disk.mu.Lock()
	defer f.v.disk.mu.Unlock()
	if f.v.about != "" {
		return f.v.about
	}
	return fmt.Sprintf("crashfs after %d operations", f.v.ops)
}
