// Package disk keeps shards in a directory: a [Node] is a node.Store on a
// vfs.FS.
//
// It owns everything below that directory: append-only segments of shard
// records, a footer beside each closed one, and a few small files, laid out in
// docs/formats/node.md. There is no database: a table in memory says where each
// shard lies and is rebuilt from footers, and after a crash from a scan, at open.
//
// The methods of a Node may be called at the same time. Put reads Head and Body
// until it returns and not after; Read writes only dst. Two goroutines append,
// one for data and one for the journal, gathering what waits under one sync; one
// more gives space back. All end in Close. Shards on their way are bounded by
// the callers, who wait; the node itself holds at most 32 MiB while it rewrites a
// segment, and about 70 bytes of table a shard.
//
// It does not decrypt, decode or repair, knows no other node, retries no failed
// write, and takes no one's word for a shard: what it returns has passed its CRCs.
package disk

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"cairn/id"
	"cairn/node"
	"cairn/node/vfs"
	"cairn/pack"
)

// Config describes a node. A zero optional field means its default.
type Config struct {
	Cluster id.Cluster // required: the store that the node belongs to
	Want    id.Node    // the node that is expected here; zero: any of the cluster

	Keep    time.Duration // how long a deleted shard can be brought back; default 24 h
	KeepLog time.Duration // the same for shards of log packs; default 1 h

	Now  func() time.Time // default time.Now
	Rand io.Reader        // default crypto/rand.Reader

	ReclaimEvery time.Duration // between two passes that give space back; default 1 min; negative: only [Node.Reclaim]
	MarkAfter    time.Duration // idle time until the end of a segment is marked; default 1 s; negative: at once

	MaxData    int64 // longest data segment; default 1 GiB
	MaxJournal int64 // longest journal segment; default 64 MiB
	MaxFiles   int   // segments kept open; default 256

	// Dir is what the node's directory is called in errors about its room.
	Dir string
	// Placed returns the inode of the node.json that the next start would find, where
	// the node is looked for. Nil: that is not asked. A directory that was moved away while
	// it is open goes on working, and would be missed by the next start with all that was
	// acknowledged meanwhile; so a node that is no longer in its place is missing at once.
	// fs.ErrNotExist and ENOTDIR say that nothing is there. Any number of goroutines call it.
	Placed func() (inode uint64, err error)
	// Space is shared by nodes that may lie on one filesystem; default: this node
	// shares with none.
	Space *Space

	first int64 // size of the first segment of a run; tests make it small
}

// firstSegment is the size of the first segment of a run. Later ones grow with
// what the run has written, so that a restart costs little space (H37).
const firstSegment = 1 << 20

func (c Config) withDefaults() (Config, error) {
	if c.Cluster.IsZero() {
		return c, errors.New("disk: Config.Cluster is zero")
	}
	def := func(d *time.Duration, v time.Duration) {
		if *d == 0 {
			*d = v
		}
	}
	def(&c.Keep, 24*time.Hour)
	def(&c.KeepLog, time.Hour)
	def(&c.ReclaimEvery, time.Minute)
	def(&c.MarkAfter, time.Second)
	if c.Keep < 0 || c.KeepLog < 0 {
		return c, errors.New("disk: Config.Keep and Config.KeepLog must not be negative")
	}
	if c.Now == nil {
		c.Now = time.Now
	}
	if c.Rand == nil {
		c.Rand = rand.Reader
	}
	if c.MaxData == 0 {
		c.MaxData = 1 << 30
	}
	if c.MaxJournal == 0 {
		c.MaxJournal = 64 << 20
	}
	if c.first == 0 {
		c.first = firstSegment
	}
	if c.MaxFiles == 0 {
		c.MaxFiles = 256
	}
	if c.Space == nil {
		c.Space = &Space{}
	}
	// Offsets are kept in 32-bit counts of blocks, and footers are bounded.
	if c.MaxData < c.first || c.MaxData > 4<<30 || c.MaxJournal < c.first || c.MaxJournal > 4<<30 {
		return c, errors.New("disk: Config.MaxData and Config.MaxJournal must be within 1 MiB and 4 GiB")
	}
	if c.MaxFiles < 8 {
		return c, errors.New("disk: Config.MaxFiles is below 8")
	}
	return c, nil
}

// segID names a segment; numbers are used once in both kinds together.
type segID struct {
	kind segKind
	no   uint32
}

// Node is a directory that keeps shards; it implements node.Store.
type Node struct {
	cfg   Config
	fs    vfs.FS
	lock  io.Closer
	id    id.Node
	inode uint64 // of node.json when it was opened
	files files

	// I/O is never done under mu.
	mu     sync.RWMutex
	table  *table
	segs   map[segID]*segment
	lost   []lostRec  // damage without a name
	free   []freeFile // journal files that can be used again
	lastNo uint32     // newest segment number
	// preparing is closed when the journal file that is being made for later is in
	// free, or will not be; nil: none is being made.
	preparing chan struct{}
	made      [3]int64              // bytes of the segments made in this run, by kind
	pending   map[node.Key]*request // puts on their way
	promised  node.Authority        // as it is on disk
	orders    map[*order]struct{}   // deletes and small files on their way
	doubted   map[instance]bool     // a note about them was lost or not
	high      pack.Position         // highest log position held
	nextInst  uint64                // next instance, when starts is on disk
	lastInst  uint64                // first one that needs another start
	closed    bool

	gone atomic.Bool // not the directory that was opened: every call is ErrMissing

	ops sync.WaitGroup // calls inside; Close waits for them

	// stateSem is held by whoever writes the state file, and owns st; maintSem by
	// whoever gives space back or closes segments; fileSem by WriteFile. They are
	// channels because their holders do I/O.
	stateSem, maintSem, fileSem chan struct{}
	st                          state

	data, journal *appender
	wanted        chan struct{}   // a journal file for later, in the background
	stopping      context.Context // ends the background pass; a field because no caller has it
	stop          context.CancelFunc
	background    sync.WaitGroup
	rnd           sync.Mutex
}

// instance names one stored copy.
type instance struct {
	key  node.Key
	inst id.Instance
}

type lostRec struct {
	seg *segment
	rec
}

type freeFile struct {
	name string
	size int64
}

// order is a change that a promise has to wait for.
type order struct {
	by   node.Authority
	done chan struct{}
}

var _ node.Store = (*Node)(nil)

// ID is the node's name.
func (n *Node) ID() id.Node { return n.id }

// fail wraps what went wrong.
func (n *Node) fail(op string, k node.Key, err error) error {
	if err == nil {
		return nil
	}
	if _, ok := errors.AsType[*node.RoomError](err); !ok && errors.Is(err, node.ErrFull) && n.cfg.Dir != "" {
		// The disk itself has said so, beyond every mark.
		err = fmt.Errorf("%w: enlarge the filesystem of %s, or remove other files from it", err, n.cfg.Dir)
	}
	return &node.Error{Op: op, Node: n.id, Key: k, Err: err}
}

// enter begins a call; n.ops.Done ends it.
func (n *Node) enter(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if n.gone.Load() {
		return n.missing()
	}
	n.mu.RLock()
	defer n.mu.RUnlock()
	if n.closed {
		return node.ErrClosed
	}
	n.ops.Add(1)
	return nil
}

func (n *Node) missing() error {
	return fmt.Errorf("%w: this is no longer the directory that was opened", node.ErrMissing)
}

func (n *Node) random(b []byte) error {
	n.rnd.Lock()
	defer n.rnd.Unlock()
	if _, err := io.ReadFull(n.cfg.Rand, b); err != nil {
		return fmt.Errorf("%w: random bytes: %w", node.ErrUnavailable, err)
	}
	return nil
}

// acquire takes a semaphore unless ctx ends first.
func acquire(ctx context.Context, sem chan struct{}) error {
	select {
	case sem <- struct{}{}:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// check finds out whether this is still the directory that was opened (H39):
// after each sync, before the answer.
func (n *Node) check(f vfs.File) error {
	info, err := f.Stat()
	if err != nil {
		return asked(err)
	}
	if info.Links == 0 {
		n.gone.Store(true)
		return n.missing()
	}
	return n.still()
}

// Usage describes the node's space.
func (n *Node) Usage(ctx context.Context) (node.Usage, error) {
	if err := n.enter(ctx); err != nil {
		return node.Usage{}, n.fail("usage", node.Key{}, err)
	}
	defer n.ops.Done()
	// Who asks how the node is must not hear figures of what was removed.
	if err := n.still(); err != nil {
		return node.Usage{}, n.fail("usage", node.Key{}, err)
	}
	u, err := n.fs.Usage()
	if err != nil {
		return node.Usage{}, n.fail("usage", node.Key{}, asked(err))
	}
	out := node.Usage{Dir: n.cfg.Dir, Device: u.Device, TotalBytes: u.TotalBytes, FreeBytes: u.FreeBytes,
		PutMark: n.mark(node.ForClient, u), LogMark: n.mark(node.ForLog, u)}
	out.PutsAllowed = u.FreeBytes >= out.PutMark && enoughFiles(node.ForClient, u) == nil
	out.LogsAllow = u.FreeBytes >= out.LogMark
	if err := n.measure(&out); err != nil {
		return node.Usage{}, n.fail("usage", node.Key{}, asked(err))
	}
	n.mu.RLock()
	defer n.mu.RUnlock()
	t := n.table
	out.LiveBytes, out.LiveShards, out.DeadBytes, out.DeadShards = t.liveBytes, t.lives, t.deadBytes, t.deads
	out.DueBytes, out.Until = t.dueBytes, t.until(n.cfg.Keep, n.cfg.KeepLog)
	out.LayoutBytes -= t.liveBytes + t.deadBytes // of the records that are counted below
	for _, s := range n.segs {
		out.LayoutBytes += dataStart + s.bytes
		if s.kind == journalSeg { // it has no holes: the rest are notes, and what was copied on
			out.LayoutBytes += s.end - dataStart - s.bytes
		}
		if s.open {
			out.SegmentFreeBytes += max(0, s.size-s.end)
		} else {
			out.LayoutBytes += max(0, s.size-s.end)
		}
	}
	for _, l := range n.lost {
		if l.seg.kind == dataSeg {
			out.LayoutBytes += l.length()
		}
	}
	return out, nil
}

// measure adds what is on the disk: in all, and of the files that are no segments.
func (n *Node) measure(out *node.Usage) error {
	for _, dir := range []string{".", dataSeg.dir(), journalSeg.dir()} {
		names, err := n.fs.ReadDir(dir)
		if err != nil {
			return err
		}
		for _, name := range append(names, ".") {
			info, err := n.fs.Stat(path.Join(dir, name))
			if errors.Is(err, fs.ErrNotExist) { // it went meanwhile
				continue
			}
			if err != nil {
				return err
			}
			if info.Dir && name != "." {
				continue // one of those above, or not the node's
			}
			out.AllocatedBytes += info.Allocated
			switch ext := path.Ext(name); {
			case dir == "." && !ours(name):
				out.OtherBytes += info.Allocated
			case dir != "." && (ext == ".free" || ext == ".new"):
				out.SegmentFreeBytes += info.Allocated
			case dir == "." || ext != ".seg":
				out.LayoutBytes += info.Allocated
			}
		}
	}
	return nil
}

// ours reports whether a name in the node's directory is that of one of its files.
func ours(name string) bool {
	switch name {
	case ".", "lock", "node.json", "state", string(node.ClusterFile), string(node.KeyringFile):
		return true
	}
	return strings.HasSuffix(name, vfs.TempSuffix)
}
