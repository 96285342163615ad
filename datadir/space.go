package datadir

import (
	"errors"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"cairn/index/kv"
	"cairn/index/kv/badgerkv"
	"cairn/node"
	"cairn/node/disk"
	"cairn/node/vfs"
)

// The ballast is a file of preallocated space that is given up when its
// filesystem is full: badger, which maps its files, is ended by SIGBUS where it
// meets a full disk, and again at each start while the disk is full (H9). Half is
// given up in service, the rest is for the next start; it is made again as soon
// as there is room. docs/decisions/0008-full-disks.md says why so much.
const (
	ballastName  = "ballast"
	ballastIndex = 256 << 20 // where the index lies
	ballastNodes = 64 << 20  // where only nodes lie: a start needs a little from each
	ballastShare = 16        // and never more than this part of the filesystem
	// startRoom is what a start writes on a node: a promise, a log pack, footers.
	startRoom = 8 << 20
	watchStep = 500 * time.Millisecond
	needsAge  = 500 * time.Millisecond // how old a figure of the index's needs may be
	ample     = 1 << 30                // with so much free nobody asks further
)

// guard keeps space in reserve on the filesystems of a data directory. Its
// methods may be called at the same time.
type guard struct {
	index string // the index's directory
	log   *slog.Logger
	nodes *disk.Space // told of a ballast that is missing
	plain bool        // it ends with its engine

	mu             sync.Mutex
	spots          []*spot // that of the index first
	flush, compact int64   // what the index may need
	engine         *badgerkv.Engine
	needed         time.Time
}

// spot is a filesystem that something of the data directory lies on. Its changing
// fields are the guard's, under its lock.
type spot struct {
	fs     vfs.FS // of the directory that the ballast lies in
	device uint64
	dir    string // what it is called
	index  bool
	nodes  int   // that lie on it
	want   int64 // bytes of ballast
	has    int64
	told   string // what the log last said about its room
}

// guardSpace finds the filesystems of the directory and, where one is too full
// for a start, gives its ballast up. The nodes are open, and with them the locks.
func (d *Dir) guardSpace() error {
	index := d.IndexDir()
	if err := os.MkdirAll(index, 0o700); err != nil {
		return err
	}
	g := &guard{index: index, log: d.opt.Log, nodes: &d.space}
	d.guard = g
	// Beside the index, not in it, so that it stays when the index is set aside;
	// unless the index has a filesystem of its own.
	home := d.opt.Dir
	if same, err := sameDevice(home, index); err != nil {
		return err
	} else if !same {
		home = index
	}
	if _, err := g.spotOf(home, true); err != nil {
		return err
	}
	names := make([]string, 0, len(d.Nodes))
	for name := range d.Nodes {
		names = append(names, name)
	}
	slices.Sort(names)
	var nodeDirs []string
	for _, name := range names {
		dir := filepath.Join(d.opt.Dir, "nodes", name)
		nodeDirs = append(nodeDirs, dir)
		s, err := g.spotOf(dir, false)
		if err != nil {
			return err
		}
		s.nodes++
	}
	// What lies where none belongs any more: parts have moved to other disks.
	for _, dir := range append([]string{d.opt.Dir, index}, nodeDirs...) {
		if slices.ContainsFunc(g.spots, func(s *spot) bool { return s.dir == dir }) {
			continue
		}
		if err := os.Remove(filepath.Join(dir, ballastName)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return g.makeRoomToStart()
}

// spotOf is what is known of the filesystem of a directory, from now on if it was not.
func (g *guard) spotOf(dir string, index bool) (*spot, error) {
	root, err := vfs.OS(dir)
	if err != nil {
		return nil, err
	}
	u, err := root.Usage()
	if err != nil {
		return nil, errors.Join(err, root.Close())
	}
	for _, s := range g.spots {
		if s.device == u.Device {
			return s, root.Close()
		}
	}
	most := int64(ballastNodes)
	if index {
		most = ballastIndex
	}
	s := &spot{fs: root, device: u.Device, dir: dir, index: index, want: min(most, u.TotalBytes/ballastShare)}
	if info, err := root.Stat(ballastName); err == nil && !info.Dir {
		s.has = min(info.Allocated, s.want)
	}
	g.setHas(s, s.has)
	g.spots = append(g.spots, s)
	return s, nil
}

// join takes in the directory of a node that was added while a server runs.
func (g *guard) join(dir string) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	s, err := g.spotOf(dir, false)
	if err == nil {
		s.nodes++
	}
	return err
}

// plainGuard watches the filesystem of an index that no ballast belongs to.
func (d *Dir) plainGuard(index string) (*guard, error) {
	if err := os.MkdirAll(index, 0o700); err != nil {
		return nil, err
	}
	root, err := vfs.OS(index)
	if err != nil {
		return nil, err
	}
	u, err := root.Usage()
	if err != nil {
		return nil, errors.Join(err, root.Close())
	}
	return &guard{index: index, log: d.opt.Log, nodes: &d.space, plain: true,
		spots: []*spot{{fs: root, device: u.Device, dir: index, index: true}}}, nil
}

func sameDevice(a, b string) (bool, error) {
	var dev [2]uint64
	for i, dir := range []string{a, b} {
		root, err := vfs.OS(dir)
		if err != nil {
			return false, err
		}
		u, err := root.Usage()
		if err = errors.Join(err, root.Close()); err != nil {
			return false, err
		}
		dev[i] = u.Device
	}
	return dev[0] == dev[1], nil
}

func (g *guard) close() error {
	g.mu.Lock()
	defer g.mu.Unlock()
	var err error
	for _, s := range g.spots {
		err = errors.Join(err, s.fs.Close())
	}
	g.spots = nil
	return err
}

func (g *guard) makeRoomToStart() error {
	g.mu.Lock()
	defer g.mu.Unlock()
	if err := g.refresh(); err != nil {
		return err
	}
	for _, s := range g.spots {
		u, err := s.fs.Usage()
		if err != nil {
			return err
		}
		need := u.TotalBytes/100 + int64(s.nodes)*startRoom
		if s.index {
			need = max(need, g.flush+g.compact) + startRoom
		}
		if u.FreeBytes < need && s.has > 0 {
			if err := g.giveUp(s, 0); err != nil {
				return err
			}
			g.log.Warn("a filesystem is nearly full: its ballast was given up for this start; make room there",
				"directory", s.dir, "free_bytes", u.FreeBytes, "wanted_bytes", need)
		}
	}
	return nil
}

// refresh looks what the index needs, unless it was looked at just now.
func (g *guard) refresh() error {
	if time.Since(g.needed) < needsAge {
		return nil
	}
	var err error
	if g.flush, g.compact, err = badgerkv.Needs(g.index); err != nil {
		return err
	}
	if g.engine != nil {
		g.flush -= g.engine.Slack() * 6 / 5
	}
	g.needed = time.Now()
	return nil
}

// giveUp shortens a ballast.
func (g *guard) giveUp(s *spot, to int64) error {
	if s.has <= to {
		return nil
	}
	f, err := s.fs.OpenFile(ballastName, os.O_RDWR, 0)
	if errors.Is(err, fs.ErrNotExist) { // someone else has
		g.setHas(s, 0)
		return nil
	}
	if err != nil {
		return err
	}
	// The sync commits: until then some filesystems do not hand out the blocks.
	err = errors.Join(f.Truncate(to), f.Sync(), f.Close())
	if err == nil {
		g.setHas(s, to)
	}
	return err
}

// setHas notes what a ballast has. Nodes take no clients' data where some of it
// is missing.
func (g *guard) setHas(s *spot, has int64) {
	s.has = has
	g.nodes.Keep(s.device, max(s.want-has, 0))
}

// restore makes what is missing of a ballast, where the filesystem can.
func (g *guard) restore(s *spot) {
	f, err := s.fs.OpenFile(ballastName, os.O_RDWR|os.O_CREATE, 0o600)
	if err == nil {
		if err = f.Allocate(0, s.want); err != nil {
			err = errors.Join(err, f.Truncate(s.has))
		} else {
			err = f.Sync()
		}
		err = errors.Join(err, f.Close(), s.fs.SyncDir("."))
	}
	if err != nil {
		g.log.Warn("no ballast can be made: a disk that fills up will end the server", "directory", s.dir, "err", err)
		s.want = s.has // not asked again in this run
		g.setHas(s, s.has)
		return
	}
	g.log.Info("ballast made", "directory", s.dir, "bytes", s.want)
	g.setHas(s, s.want)
}

// need is how many bytes must be free for a write of that purpose. A ballast that
// was given up comes before clients' data.
func (g *guard) need(s *spot, why node.Purpose, total int64) int64 {
	if why == node.ForClient {
		n := max(total/20, 4*min(64<<20, total/100)) + s.want - s.has
		if s.index {
			n = max(n, 2*g.flush+g.compact+s.want-s.has)
		}
		return n
	}
	n := total / 100
	if why == node.ForStart {
		n = 0
	}
	if s.index {
		n = max(n, g.flush)
	}
	return n
}

// Room says whether the filesystem of the index has room for a write; see
// store.Config.Room.
func (d *Dir) Room(why node.Purpose) error {
	if d.guard == nil {
		return nil
	}
	return d.guard.room(why)
}

func (g *guard) room(why node.Purpose) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	if len(g.spots) == 0 {
		return fs.ErrClosed
	}
	s := g.spots[0]
	u, err := s.fs.Usage()
	if err != nil {
		return err
	}
	if u.FreeBytes >= max(ample, u.TotalBytes/20) && s.has == s.want {
		return nil
	}
	if err := g.refresh(); err != nil {
		return err
	}
	need := g.need(s, why, u.TotalBytes)
	if u.FreeBytes < need && why != node.ForClient && s.has > s.want/2 {
		if err := g.giveUpInService(s, u); err != nil {
			return err
		}
		if u, err = s.fs.Usage(); err != nil {
			return err
		}
	}
	if u.FreeBytes < need {
		return &node.RoomError{Dir: g.index, Why: why, Free: u.FreeBytes, Need: need}
	}
	return nil
}

func (g *guard) giveUpInService(s *spot, u vfs.Usage) error {
	g.log.Warn("a filesystem is full: half of its ballast is given up; make room there", "directory", s.dir, "free_bytes", u.FreeBytes)
	return g.giveUp(s, s.want/2)
}

// Watch keeps an eye on the filesystems until the function that it returns is
// called: it gives ballast up before the index's background work meets a full
// disk, makes it again, and tells the log.
func (d *Dir) Watch() (stop func()) {
	if d.guard == nil {
		return func() {}
	}
	d.guard.look()
	end, ended := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		t := time.NewTicker(watchStep)
		defer t.Stop()
		for {
			select {
			case <-end:
				return
			case <-t.C:
				d.guard.look()
			}
		}
	}()
	return sync.OnceFunc(func() { close(end); <-ended })
}

// look is one look at every filesystem.
func (g *guard) look() {
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, s := range g.spots {
		u, err := s.fs.Usage()
		if err == nil && s.index && u.FreeBytes < ample {
			err = g.refresh()
		}
		if err != nil {
			g.tell(s, "a filesystem of the data directory cannot be asked for its room", "err", err)
			continue
		}
		if s.index && u.FreeBytes < g.flush && s.has > s.want/2 {
			if err := g.giveUpInService(s, u); err != nil {
				g.log.Error("the ballast cannot be given up", "directory", s.dir, "err", err)
			}
		}
		if s.has < s.want && u.FreeBytes >= g.need(s, node.ForClient, u.TotalBytes) {
			g.restore(s)
		}
		switch need := g.need(s, node.ForClient, u.TotalBytes); {
		case u.FreeBytes < g.need(s, node.ForLog, u.TotalBytes):
			g.tell(s, "a filesystem is full: nothing is written there, not even deletes; make room", "free_bytes", u.FreeBytes)
		case u.FreeBytes < need:
			g.tell(s, "a filesystem is nearly full: it takes no new data; make room", "free_bytes", u.FreeBytes, "needed_bytes", need)
		case s.told != "":
			s.told = ""
			g.log.Info("a filesystem has room again", "directory", s.dir, "free_bytes", u.FreeBytes)
		}
	}
}

// tell logs what is new.
func (g *guard) tell(s *spot, what string, args ...any) {
	if s.told != what {
		s.told = what
		g.log.Warn(what, append([]any{"directory", s.dir}, args...)...)
	}
}

// roomToOpen says whether the index can be opened at all, and whether it must be
// without the merges that badger does on its own.
func (g *guard) roomToOpen() (calm bool, err error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if err := g.refresh(); err != nil {
		return false, err
	}
	s := g.spots[0]
	u, err := s.fs.Usage()
	if err != nil {
		return false, err
	}
	if u.FreeBytes < g.flush && s.has > 0 {
		if err := g.giveUp(s, 0); err != nil {
			return false, err
		}
		if u, err = s.fs.Usage(); err != nil {
			return false, err
		}
	}
	if u.FreeBytes < g.flush {
		return false, &node.RoomError{Dir: g.index, Why: node.ForStart, Free: u.FreeBytes, Need: g.flush}
	}
	if calm = u.FreeBytes < g.flush+g.compact; calm {
		g.log.Warn("the index is opened without merging its tables, for which there is no room; make room and start again",
			"directory", g.index, "free_bytes", u.FreeBytes, "wanted_bytes", g.flush+g.compact)
	}
	return calm, nil
}

// roomForScratch says whether a second index fits.
func (d *Dir) roomForScratch(where string) error {
	size := int64(0)
	names, err := os.ReadDir(d.IndexDir())
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	for _, e := range names {
		if info, err := e.Info(); err == nil && filepath.Ext(e.Name()) == ".sst" {
			size += info.Size()
		}
	}
	root, err := vfs.OS(where)
	if err != nil {
		return err
	}
	u, err := root.Usage()
	if err = errors.Join(err, root.Close()); err != nil {
		return err
	}
	if need := 2*size + 96<<20; u.FreeBytes < need {
		return &scratchError{&node.RoomError{Dir: where, Why: node.ForStart, Free: u.FreeBytes, Need: need}}
	}
	return nil
}

type scratchError struct{ room *node.RoomError }

func (e *scratchError) Error() string {
	return "the log is replayed into an index of its own: " + e.room.Error() + ", or name a directory elsewhere with --scratch"
}
func (e *scratchError) Unwrap() error { return e.room }

// guarded is the index's engine where space is kept in reserve: no call that
// writes is made where it would meet a full disk.
type guarded struct {
	*badgerkv.Engine
	g *guard
}

func (g *guard) watch(e *badgerkv.Engine) *guarded {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.engine, g.needed = e, time.Time{}
	return &guarded{e, g}
}

// Commit refuses where there is no room left to write a log into a table. The log
// writer asks before it decides; this is for a replay, and for a disk that was
// filled meanwhile, when what has its space already still goes.
func (e *guarded) Commit(ops []kv.Op) error {
	if !e.Reserved(ops) {
		if err := e.g.room(node.ForStart); err != nil {
			return err
		}
	}
	return e.Engine.Commit(ops)
}

// Close leaves the index as a kill would where there is no room to close it: the
// next open replays its log.
func (e *guarded) Close() (err error) {
	if rerr := e.g.roomToClose(); rerr != nil {
		e.g.log.Warn("the index is left open: there is no room to close it", "err", rerr)
	} else {
		err = e.Engine.Close()
	}
	if e.g.plain {
		err = errors.Join(err, e.g.close())
	}
	return err
}

func (g *guard) roomToClose() error {
	g.mu.Lock()
	defer g.mu.Unlock()
	if len(g.spots) == 0 {
		return nil // the engine will say that it is closed
	}
	if err := g.refresh(); err != nil {
		return err
	}
	s := g.spots[0]
	for to := s.want / 2; ; to = 0 {
		u, err := s.fs.Usage()
		if err != nil {
			return err
		}
		if u.FreeBytes >= g.flush {
			return nil
		}
		if s.has <= 0 {
			return &node.RoomError{Dir: g.index, Why: node.ForLog, Free: u.FreeBytes, Need: g.flush}
		}
		if err := g.giveUp(s, min(to, s.has-1)); err != nil {
			return err
		}
	}
}
