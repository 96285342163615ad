// Package datadir lays out and opens what `cairn` keeps on one machine: the data
// directory with the index and the local nodes, and the configuration directory
// with the key file and the admin token.
//
//	DIR/store.json            which store this is, of which version, and whether its first start is over
//	DIR/lock                  flock of the process that has the directory open
//	DIR/keyring               a copy of the wrapped keyring
//	DIR/nodes/NAME/           a node each
//	DIR/index/                the index; it may be lost
//	DIR/ballast               space in reserve; see space.go
//	CONFIG/CLUSTER.key        the key file; never in DIR
//	CONFIG/CLUSTER.recovery   the recovery code, until its owner has confirmed it
//	CONFIG/CLUSTER.token      the admin token
//	CONFIG/token              the token of the first store that is still there, for clients on this machine
//	CONFIG/stores.json        which data directory belongs to which store
//	CONFIG/servers.json       which address was last served by which store
//
// A first start may be killed at any instant and is resumed by the next one under
// the same cluster ID. An existing store whose key is missing never gets a new
// one, and an empty directory that is known to have held a store is refused: a
// disk that was not mounted must not look like a new store. docs/protocol.md,
// section 4.
package datadir

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"cairn/id"
	"cairn/index/kv"
	"cairn/keys"
	"cairn/node"
	"cairn/node/disk"
	"cairn/node/vfs"
	"cairn/record"
	"cairn/store"
)

// Sentinels.
var (
	ErrNoKey    = errors.New("the key of this store is not there")
	ErrRefused  = errors.New("refused, to be safe")
	ErrInUse    = errors.New("the data directory is in use by another process")
	ErrNotStore = errors.New("not a cairn data directory")
	// ErrBack says that a directory holds the node that was taken for lost.
	ErrBack = errors.New("the node's directory is back; restart the server instead of replacing it")
)

// Options say where things are.
type Options struct {
	Dir     string // the data directory; required
	Config  string // the configuration directory; required
	KeyFile string // default CONFIG/CLUSTER.key

	LocalNodes int  // nodes of a new store; default 6
	Losses     int  // losses that a new store survives; default 2 with five or more nodes, else 1
	New        bool // begin a new store although this directory is known to have held one
	Create     bool // begin a new store in an empty directory; else it is [ErrNotStore]

	// Unlock opens the keyring in the place of the key file; nil: the key file does.
	Unlock keys.Provider
	// RecoveryCode opens a store whose key file is lost: a new key file is made, and
	// the keyring gets a slot for it.
	RecoveryCode string

	// Serve says that a server is being started: filesystems of the directory that
	// are too full to start give up their ballast.
	Serve bool

	Keep time.Duration // how long nodes keep what was deleted; default the node's own
	Log  *slog.Logger

	later *later // for tests: what a later build would know
}

// Dir is an opened data directory. It belongs to one goroutine, where nothing else is said.
type Dir struct {
	opt     Options
	lock    io.Closer
	Cluster id.Cluster
	Keyring *keys.Keyring
	Nodes   map[string]*disk.Node
	Absent  map[string]error // why a node directory could not be opened
	Token   string           // the admin token
	// Fresh is set on a first start until it is over.
	Fresh *Fresh

	space disk.Space
	guard *guard // nil unless Options.Serve is set

	noting sync.Mutex // held while the marker is changed
}

// Fresh is what a first start has to tell.
type Fresh struct {
	RecoveryCode string // until it is confirmed; see [Dir.PendingRecovery]
	KeyFile      string
	TokenFile    string
	Genesis      *store.Genesis
}

// marker is DIR/store.json.
type marker struct {
	Format  uint32     `json:"format"`         // the version of the store; in every version a number under this name
	From    uint32     `json:"from,omitempty"` // a migration from this version is under way
	Cluster id.Cluster `json:"cluster"`
	State   string     `json:"state"` // "forming" until the first start is over, then "formed"
	Nodes   []string   `json:"nodes"`
	Losses  int        `json:"losses"`
}

const (
	markerName = "store.json"
	lockName   = "lock"
	formed     = "formed"
	forming    = "forming"
)

// NodeName is the name of the i-th local node, from 0.
func NodeName(i int) string { return fmt.Sprintf("n%02d", i+1) }

// Open opens the directory, making a new store of an empty one when
// Options.Create says so. It takes the locks of it and of all node directories.
// What a newer version wrote is refused ([id.ErrNewer]) before anything is
// changed.
func Open(ctx context.Context, o Options) (d *Dir, err error) {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.Dir, err = filepath.Abs(o.Dir); err != nil {
		return nil, err
	}
	if o.Config, err = filepath.Abs(o.Config); err != nil {
		return nil, err
	}
	d = &Dir{opt: o, Nodes: map[string]*disk.Node{}, Absent: map[string]error{}}
	opened := d // a return of nil, err forgets d
	defer func() {
		if err != nil {
			opened.Close()
			err = opened.explain(err)
		}
	}()
	m, err := d.identify()
	if err != nil {
		return nil, err
	}
	d.Cluster = m.Cluster
	if err := d.refuseNewer(ctx); err != nil {
		return nil, err
	}
	if m, err = d.migrate(ctx, m); err != nil {
		return nil, err
	}
	if m.State == forming {
		if err := d.form(ctx, m); err != nil {
			return nil, err
		}
	}
	if err := d.openNodes(ctx, m); err != nil {
		return nil, err
	}
	if o.Serve {
		if err := d.guardSpace(); err != nil {
			return nil, err
		}
	}
	if d.Fresh != nil {
		for _, name := range m.Nodes {
			n := d.Nodes[name]
			if n == nil {
				return nil, fmt.Errorf("first start: node %s: %w", name, d.Absent[name])
			}
			d.Fresh.Genesis.Members = append(d.Fresh.Genesis.Members, record.Member{ID: n.ID(), Name: name})
		}
		return d, nil
	}
	if err := d.unlock(ctx); err != nil {
		return nil, err
	}
	if !o.Create { // it is only looked at
		return d, nil
	}
	d.settleKeyring(ctx)
	if err := os.MkdirAll(o.Config, 0o700); err != nil {
		return nil, fmt.Errorf("make the configuration directory: %w", err)
	}
	// A directory that was moved, or that came from another machine, is guarded
	// where it is now.
	if err := d.rememberStore(); err != nil {
		o.Log.Warn("that this directory holds a store could not be noted: if its disk is not mounted one day, a start will not know", "err", err)
	}
	return d, d.formToken()
}

// explain adds to an error about permissions who lacks which: in a container
// neither is obvious.
func (d *Dir) explain(err error) error {
	if !errors.Is(err, fs.ErrPermission) && !errors.Is(err, syscall.EROFS) {
		return err
	}
	for _, dir := range []string{d.opt.Dir, filepath.Dir(d.keyFile()), d.opt.Config} {
		there := dir
		for there != filepath.Dir(there) && errors.Is(unix.Access(there, unix.F_OK), fs.ErrNotExist) {
			there = filepath.Dir(there)
		}
		if unix.Access(there, unix.R_OK|unix.W_OK|unix.X_OK) != nil {
			uid, gid := os.Getuid(), os.Getgid()
			return fmt.Errorf("%s must be writable by user %d, group %d, which this process runs as (chown %d:%d %s): %w", there, uid, gid, uid, gid, there, err)
		}
	}
	return err
}

// identify finds out which store the directory holds, or begins one. When it
// returns nil the directory is locked.
func (d *Dir) identify() (marker, error) {
	m, there, err := d.readMarker()
	if err != nil {
		return m, err
	}
	if there {
		if err := d.takeLock(); err != nil {
			return m, err
		}
		// What it says now that nobody else can change it.
		if m, there, err = d.readMarker(); err != nil || there {
			return m, err
		}
	}
	// No marker: perhaps it was lost, and the nodes know.
	if m, ok, err := d.identifyByNodes(); err != nil {
		return m, err
	} else if ok {
		return m, d.takeLock()
	}
	known, err := d.knownStore()
	if err != nil {
		return m, err
	}
	if !known.IsZero() && !d.opt.New {
		return m, fmt.Errorf("%w: %s is empty, and has held the store %v. Is its disk mounted? To begin a new store there, say --new (make run FLAGS=--new)", ErrRefused, d.opt.Dir, known)
	}
	if !d.opt.Create {
		return m, fmt.Errorf("%w: %s", ErrNotStore, d.opt.Dir)
	}
	if err := d.mustBeEmpty(); err != nil {
		return m, err
	}
	return d.beginMarker()
}

// readMarker reads store.json, if it is there.
func (d *Dir) readMarker() (m marker, there bool, err error) {
	b, err := os.ReadFile(filepath.Join(d.opt.Dir, markerName))
	if errors.Is(err, fs.ErrNotExist) {
		return m, false, nil
	}
	if err != nil {
		return m, false, fmt.Errorf("read the data directory: %w", err)
	}
	// The version first: of a later one nothing else can be judged.
	var v struct {
		Format uint64 `json:"format"`
	}
	if err := json.Unmarshal(b, &v); err == nil && v.Format > uint64(d.known()) {
		return m, false, fmt.Errorf("%w: %s says that the store has version %d, this build knows %d", id.ErrNewer, filepath.Join(d.opt.Dir, markerName), v.Format, d.known())
	}
	if err := json.Unmarshal(b, &m); err != nil || m.Cluster.IsZero() || m.State != formed && m.State != forming || m.Format == 0 || m.From >= m.Format {
		return m, false, fmt.Errorf("%w: %s in it cannot be read; the nodes know which store it is: remove that file and start again", ErrNotStore, markerName)
	}
	return m, true, nil
}

// takeLock makes sure that one process at a time has the directory.
func (d *Dir) takeLock() error {
	if d.lock != nil {
		return nil
	}
	root, err := vfs.OS(d.opt.Dir)
	if err != nil {
		return err
	}
	defer root.Close()
	lock, err := root.Lock(lockName)
	if errors.Is(err, vfs.ErrLocked) {
		return fmt.Errorf("%w: %s is locked; stop the server first", ErrInUse, d.opt.Dir)
	}
	if err != nil {
		return fmt.Errorf("lock the data directory: %w", err)
	}
	d.lock = lock
	return nil
}

// identifyByNodes reads the cluster ID from a node directory.
func (d *Dir) identifyByNodes() (marker, bool, error) {
	names, err := d.nodeDirs()
	if err != nil {
		return marker{}, false, err
	}
	for _, name := range names {
		ident, err := readIdentity(filepath.Join(d.opt.Dir, "nodes", name))
		if err == nil {
			// Of which version it is nobody says: every step of a migration is done
			// again, on what has perhaps been through it.
			return marker{Format: 1, Cluster: ident, State: formed, Nodes: names}, true, nil
		}
		if errors.Is(err, id.ErrNewer) {
			return marker{}, false, fmt.Errorf("node %s: %w", name, err)
		}
	}
	return marker{}, false, nil
}

func (d *Dir) nodeDirs() ([]string, error) {
	entries, err := os.ReadDir(filepath.Join(d.opt.Dir, "nodes"))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read the node directories: %w", err)
	}
	var names []string
	for _, e := range entries {
		// A link leads to a node elsewhere, whether its disk is mounted or not.
		if (e.IsDir() || e.Type()&fs.ModeSymlink != 0) && e.Name() != "lost+found" {
			names = append(names, e.Name())
		}
	}
	slices.Sort(names)
	return names, nil
}

func (d *Dir) mustBeEmpty() error {
	entries, err := os.ReadDir(d.opt.Dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	for _, e := range entries {
		// The marker's temporary file is what a first start leaves that was killed
		// before it could write down that the directory is its own, and the lock.
		name := e.Name()
		if name == "lost+found" || name == lockName || name == markerName+".tmp" && e.Type().IsRegular() {
			continue
		}
		if err := d.mayHold(name); err != nil {
			return err
		}
	}
	return nil
}

// mayHold says whether a new store may begin beside something: its index and nodes
// when they are mount points of empty filesystems. An empty directory that is none
// may be the mount point of a disk that holds a store and is not mounted.
func (d *Dir) mayHold(name string) error {
	inside := []string{name}
	switch name {
	case "index":
	case "nodes":
		names, err := d.nodeDirs()
		if err != nil {
			return err
		}
		if inside = nil; len(names) == 0 {
			return fmt.Errorf("%w: %s holds an empty directory \"nodes\"; remove it, or mount the disks of a new store on nodes/%s and so on in it", ErrRefused, d.opt.Dir, NodeName(0))
		}
		for _, node := range names {
			if !slices.Contains(d.opt.newNames(), node) {
				return fmt.Errorf("%w: %s holds nodes/%s, and the nodes of a new store are %s to %s; see --local-nodes", ErrRefused, d.opt.Dir, node, NodeName(0), NodeName(d.opt.newNodes()-1))
			}
			inside = append(inside, filepath.Join("nodes", node))
		}
	default:
		return fmt.Errorf("%w: %s holds %q and is no store of cairn's; a new store begins in an empty directory", ErrRefused, d.opt.Dir, name)
	}
	for _, name := range inside {
		mounted, err := emptyMount(filepath.Join(d.opt.Dir, name))
		if err != nil {
			return err
		}
		if !mounted {
			return fmt.Errorf("%w: %s holds %q, which is no mount point of an empty filesystem: if its disk is not mounted, mount it; a new store begins in an empty directory", ErrRefused, d.opt.Dir, name)
		}
	}
	return nil
}

// emptyMount reports whether a directory is the root of an empty filesystem.
func emptyMount(dir string) (bool, error) {
	same, err := sameDevice(dir, filepath.Dir(dir))
	if err != nil || same {
		return false, err
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return false, err
	}
	return !slices.ContainsFunc(entries, func(e fs.DirEntry) bool { return e.Name() != "lost+found" }), nil
}

// newNames are the nodes of a new store.
func (o Options) newNames() []string {
	var names []string
	for i := range o.newNodes() {
		names = append(names, NodeName(i))
	}
	return names
}

func (o Options) newNodes() int { return cmp.Or(o.LocalNodes, 6) }

func (o Options) newLosses() int {
	return cmp.Or(o.Losses, defaultLosses(o.newNodes()))
}

// StoreLosses is how many losses the store in the directory survives by policy,
// or a new one there would.
func (o Options) StoreLosses() int {
	var m marker
	if b, err := os.ReadFile(filepath.Join(o.Dir, markerName)); err == nil && json.Unmarshal(b, &m) == nil && m.Losses > 0 {
		return m.Losses
	}
	return o.newLosses()
}

// beginMarker makes the first thing of a new store durable: its name.
func (d *Dir) beginMarker() (marker, error) {
	n := d.opt.newNodes()
	losses := d.opt.newLosses()
	if n < 2*losses+1 || n > 256 {
		return marker{}, fmt.Errorf("%w: %d nodes; to survive %d losses and still take writes, at least %d are needed (and at most 256)", store.ErrInvalid, n, losses, 2*losses+1)
	}
	if err := d.checkConfigDir(); err != nil {
		return marker{}, err
	}
	if err := os.MkdirAll(d.opt.Dir, 0o700); err != nil {
		return marker{}, fmt.Errorf("make the data directory: %w", err)
	}
	if err := d.takeLock(); err != nil {
		return marker{}, err
	}
	if m, there, err := d.readMarker(); err != nil || there {
		return m, err // another start was faster, and has ended since
	}
	cluster, err := id.NewCluster(nil)
	if err != nil {
		return marker{}, err
	}
	m := marker{Format: d.known(), Cluster: cluster, State: forming, Losses: losses, Nodes: d.opt.newNames()}
	return m, d.writeMarker(m)
}

func (d *Dir) writeMarker(m marker) error {
	b, err := json.MarshalIndent(m, "", "  ")
	if err != nil {
		return err
	}
	return writeDurably(d.opt.Dir, markerName, append(b, '\n'))
}

// writeDurably replaces a small file of a directory.
func writeDurably(dir, name string, b []byte) error {
	root, err := vfs.OS(dir)
	if err != nil {
		return err
	}
	defer root.Close()
	return vfs.WriteFile(root, name, b)
}

// MarkFormed says that the first start is over: the log has begun.
func (d *Dir) MarkFormed() error {
	if d.Fresh == nil {
		return nil
	}
	names := make([]string, 0, len(d.Nodes))
	for name := range d.Nodes {
		names = append(names, name)
	}
	slices.Sort(names)
	if err := d.writeMarker(marker{Format: d.known(), Cluster: d.Cluster, State: formed, Nodes: names, Losses: d.Fresh.Genesis.M}); err != nil {
		return err
	}
	d.Fresh = nil
	return nil
}

// form makes the key file, the token and the node directories of a new store.
// Each step is left as it is when it was done before.
func (d *Dir) form(ctx context.Context, m marker) error {
	if err := d.checkConfigDir(); err != nil {
		return err
	}
	if err := os.MkdirAll(d.opt.Config, 0o700); err != nil {
		return fmt.Errorf("make the configuration directory: %w", err)
	}
	d.Fresh = &Fresh{KeyFile: d.keyFile(), TokenFile: d.tokenFile(), Genesis: &store.Genesis{M: m.Losses, Buckets: []string{"main"}}}
	if err := d.formKeys(ctx); err != nil {
		return err
	}
	if err := d.rememberStore(); err != nil {
		return err
	}
	if err := d.formToken(); err != nil {
		return err
	}
	for _, name := range m.Nodes {
		dir := filepath.Join(d.opt.Dir, "nodes", name)
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return fmt.Errorf("make node %s: %w", name, err)
		}
		if err := d.formatNode(dir); err != nil {
			return fmt.Errorf("make node %s: %w", name, err)
		}
	}
	for _, dir := range []string{"nodes", "."} {
		if err := syncDir(filepath.Join(d.opt.Dir, dir)); err != nil {
			return err
		}
	}
	return nil
}

func syncDir(dir string) error {
	f, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer f.Close()
	return f.Sync()
}

// formatNode gives an empty directory an identity. One that has the right
// cluster's already is left alone.
func (d *Dir) formatNode(dir string) error {
	if cluster, err := readIdentity(dir); err == nil && cluster == d.Cluster {
		return nil
	}
	root, err := vfs.OS(dir)
	if err != nil {
		return err
	}
	defer root.Close()
	_, err = disk.Format(root, disk.Config{Cluster: d.Cluster})
	return err
}

// openNodes opens every node directory that can be opened.
func (d *Dir) openNodes(ctx context.Context, m marker) error {
	names, err := d.nodeDirs()
	if err != nil {
		return err
	}
	losses := m.Losses
	if losses == 0 {
		losses = defaultLosses(len(names))
	}
	nodes, errs, err := openAll(ctx, names, losses, d.openNode)
	if err != nil {
		return err
	}
	d.Nodes = nodes
	for _, name := range names {
		err := errs[name]
		if errors.Is(err, vfs.ErrLocked) {
			if other, serr := d.sameNode(name, d.nodeDir(name)); serr == nil && other != "" {
				return fmt.Errorf("%s and %s are one directory, and cannot be two nodes: remove the symbolic link that is not to be", d.nodeDir(name), d.nodeDir(other))
			}
			return fmt.Errorf("%w: node %s is locked; stop the server first", ErrInUse, name)
		}
		if err != nil {
			d.opt.Log.Warn("a node directory cannot be opened", "node", name, "err", err)
			d.Absent[name] = err
		}
	}
	for _, name := range m.Nodes {
		if d.Nodes[name] == nil && d.Absent[name] == nil {
			d.Absent[name] = d.notThere(name)
		}
	}
	return nil
}

func defaultLosses(nodes int) int {
	if nodes >= 5 {
		return 2
	}
	return 1
}

// hungAfter is how long, at the least, a node directory may take to open when as
// many as a start needs are open.
const hungAfter = 10 * time.Second

// openAll opens node directories, all at once. A disk that hangs holds up a start
// no longer than it must (H40): once all but losses of the nodes are open, the
// rest has as long again three times over. What opens later is closed again. The
// error is that of ctx.
func openAll[N io.Closer](ctx context.Context, names []string, losses int, open func(string) (N, error)) (map[string]N, map[string]error, error) {
	type opened struct {
		name string
		n    N
		err  error
	}
	results := make(chan opened, len(names))
	waiting := map[string]bool{}
	for _, name := range names {
		waiting[name] = true
		go func() {
			n, err := open(name)
			results <- opened{name, n, err}
		}()
	}
	leave := func() {
		left := len(waiting)
		go func() { // ends when the disk does
			for range left {
				if r := <-results; r.err == nil {
					_ = r.n.Close() // nobody has used it
				}
			}
		}()
	}
	nodes, errs := map[string]N{}, map[string]error{}
	begin := time.Now()
	var limit <-chan time.Time
	for len(waiting) > 0 {
		if limit == nil && len(nodes) >= len(names)-losses {
			t := time.NewTimer(max(hungAfter, 3*time.Since(begin)))
			defer t.Stop()
			limit = t.C
		}
		select {
		case r := <-results:
			delete(waiting, r.name)
			if r.err != nil {
				errs[r.name] = r.err
				continue
			}
			nodes[r.name] = r.n
		case <-limit:
			leave()
			for name := range waiting {
				errs[name] = fmt.Errorf("%w: its directory has not opened in %v", node.ErrUnavailable, time.Since(begin).Round(time.Second))
			}
			return nodes, errs, nil
		case <-ctx.Done():
			leave()
			for _, n := range nodes {
				_ = n.Close() // nobody has used it
			}
			return nil, nil, fmt.Errorf("open the node directories: %w", context.Cause(ctx))
		}
	}
	return nodes, errs, nil
}

func (d *Dir) openNode(name string) (*disk.Node, error) {
	dir, _ := d.realDir(name)
	root, err := vfs.OS(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, d.notThere(name)
	}
	if err != nil {
		return nil, err
	}
	n, err := disk.Open(root, disk.Config{Cluster: d.Cluster, Keep: d.opt.Keep, Dir: dir, Space: &d.space,
		Placed: func() (uint64, error) {
			info, err := os.Stat(filepath.Join(d.nodeDir(name), "node.json"))
			if err != nil {
				return 0, err
			}
			return info.Sys().(*syscall.Stat_t).Ino, nil
		}})
	if err != nil {
		root.Close()
		return nil, err
	}
	return n, nil
}

// Replacement is a new node in the place of a lost one.
type Replacement struct {
	Node *disk.Node
	// Kept is where the old directory was moved to; empty when there was nothing in it.
	Kept string

	d    *Dir
	name string
	dir  string
	why  error // what was known of the old node
}

// Replace formats the directory of a member whose node, lost, is lost, and
// returns the new node. Anything that is not an empty directory is moved aside,
// not removed. A directory that is the lost node after all is left as it is: that
// is [ErrBack]. Until the store has taken the new node, [Replacement.Undo] brings
// everything back to where it was.
func (d *Dir) Replace(name string, lost id.Node) (_ *Replacement, err error) {
	if name == "" || strings.ContainsAny(name, "/\x00") || name == "." || name == ".." {
		return nil, fmt.Errorf("%w: node name %q", store.ErrInvalid, name)
	}
	if old := d.Nodes[name]; old != nil {
		old.Close() // it is gone: the store said so before
		delete(d.Nodes, name)
		d.Absent[name] = fmt.Errorf("%w: this is no longer the directory that was opened", node.ErrMissing)
	}
	// Its name alone does not make it that node: it must open, with all it promised.
	dir, link := d.realDir(name)
	if n, err := d.openNode(name); err == nil {
		back := n.ID() == lost
		if err := n.Close(); err != nil {
			return nil, fmt.Errorf("close the directory of node %s: %w", name, err)
		}
		if back {
			return nil, fmt.Errorf("%w: node %s", ErrBack, name)
		}
	} else if errors.Is(err, vfs.ErrLocked) {
		return nil, fmt.Errorf("%w: node %s is locked; stop the server first", ErrInUse, name)
	}
	r := &Replacement{d: d, name: name, dir: dir, why: d.Absent[name]}
	entries, err := os.ReadDir(dir)
	if err == nil && len(entries) > 0 || errors.Is(err, syscall.ENOTDIR) {
		aside := d.asideOf("replaced", name)
		if link { // it stays on its own filesystem
			aside = dir + "." + filepath.Base(aside)
		}
		if err := os.Rename(dir, aside); err != nil {
			return nil, fmt.Errorf("move the old directory of node %s aside: %w", name, err)
		}
		r.Kept = aside
	} else if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, r.Undo())
		}
	}()
	if link { // without its parent, no disk is mounted there
		err = os.Mkdir(dir, 0o700)
	} else {
		err = os.MkdirAll(dir, 0o700)
	}
	if err != nil && !errors.Is(err, fs.ErrExist) {
		return nil, err
	}
	if err := d.formatNode(dir); err != nil {
		return nil, err
	}
	for _, parent := range []string{filepath.Dir(dir), d.opt.Dir} {
		if err := syncDir(parent); err != nil {
			return nil, err
		}
	}
	n, err := d.openNode(name)
	if err != nil {
		return nil, err
	}
	r.Node, d.Nodes[name] = n, n
	delete(d.Absent, name)
	return r, nil
}

// Undo takes the new node away again and puts the old directory back. It must not
// be called when the store may have taken the node.
func (r *Replacement) Undo() error {
	if r.Node != nil {
		r.Node.Close() // nothing in it is wanted
		r.Node = nil
	}
	delete(r.d.Nodes, r.name)
	if r.why != nil {
		r.d.Absent[r.name] = r.why
	}
	if r.Kept == "" {
		// The directory itself stays: something may be mounted on it.
		entries, err := os.ReadDir(r.dir)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("take the new node %s away again: %w", r.name, err)
		}
		for _, e := range entries {
			if err := os.RemoveAll(filepath.Join(r.dir, e.Name())); err != nil {
				return fmt.Errorf("take the new node %s away again: %w", r.name, err)
			}
		}
		return nil
	}
	// First the renames: cut short between them, the old directory is still where
	// its name says what it is.
	failed := r.Kept + ".new"
	if err := os.Rename(r.dir, failed); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("put the old directory of node %s back from %s: %w", r.name, r.Kept, err)
	}
	if err := os.Rename(r.Kept, r.dir); err != nil {
		return fmt.Errorf("put the old directory of node %s back from %s: %w", r.name, r.Kept, err)
	}
	r.Kept = ""
	return errors.Join(syncDir(filepath.Dir(r.dir)), syncDir(r.d.opt.Dir), os.RemoveAll(failed))
}

// Stores returns the open nodes as the store wants them.
func (d *Dir) Stores() map[string]node.Store {
	out := make(map[string]node.Store, len(d.Nodes))
	for name, n := range d.Nodes {
		out[name] = n
	}
	return out
}

// OpenIndex opens the index's engine with memtables and caches of the given sizes. Where there
// is no room to open it the error is a [node.RoomError].
func (d *Dir) OpenIndex(memTable, cache int64) (kv.Engine, error) {
	dir, g := d.IndexDir(), d.guard
	if g == nil {
		var err error
		if g, err = d.plainGuard(dir); err != nil {
			return nil, err
		}
	}
	e, err := d.openIndex(dir, memTable, cache, g)
	if errors.Is(err, kv.ErrForeign) {
		return nil, fmt.Errorf("%w: %s is not this store's index; move it away and start again: it is made anew from the log", err, dir)
	}
	if err != nil {
		return nil, err
	}
	return e, nil
}

// ScratchIndex opens an empty index in a directory, by default beside the real
// one, for a verification that replays the log; remove takes it away again.
func (d *Dir) ScratchIndex(where string) (kv.Engine, func(), error) {
	if where == "" {
		where = d.opt.Dir
	}
	if err := d.roomForScratch(where); err != nil {
		return nil, nil, err
	}
	dir, err := os.MkdirTemp(where, "verify-*")
	if err != nil {
		return nil, nil, fmt.Errorf("make room for the replayed index: %w", err)
	}
	remove := func() { os.RemoveAll(dir) }
	e, err := d.OpenIndexAt(dir, 32<<20)
	if err != nil {
		remove()
		return nil, nil, err
	}
	return e, remove, nil
}

// SetIndexAside moves a damaged index out of the way and returns where to. An
// index on a filesystem of its own cannot be renamed: its files go into a
// directory there.
func (d *Dir) SetIndexAside() (string, error) {
	dir := filepath.Join(d.opt.Dir, "index")
	name := ".damaged-" + time.Now().UTC().Format("20060102T150405.000000Z")
	aside := dir + name
	err := os.Rename(dir, aside)
	if errors.Is(err, syscall.EBUSY) {
		aside = filepath.Join(dir, name[1:])
		err = moveIndex(dir, aside)
	}
	if err == nil {
		d.dropOlder(aside, "damaged-")
	}
	return aside, err
}

// dropOlder removes what was set aside before as something was now: the newest is
// kept, for whoever wants to know what had happened to it, and no more.
func (d *Dir) dropOlder(aside, mark string) {
	at := strings.LastIndex(aside, mark)
	all, _ := filepath.Glob(globQuote(aside[:at]) + mark + "*") // the pattern is well formed
	for _, old := range all {
		if old == aside {
			continue
		}
		if err := os.RemoveAll(old); err != nil {
			d.opt.Log.Warn("an index that was set aside earlier could not be removed", "path", old, "err", err)
		}
	}
}

// globQuote makes a path one that [filepath.Glob] takes as it is.
func globQuote(path string) string {
	return strings.NewReplacer(`\`, `\\`, "*", `\*`, "?", `\?`, "[", `\[`).Replace(path)
}

// moveIndex moves an index's files into a directory beside them. When that is
// cut short, what is left must be damaged too, or an earlier state: so the log
// files (.mem) go first, the newest of them at the beginning, then the tables,
// and what names the tables goes last.
func moveIndex(dir, aside string) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	if err := os.Mkdir(aside, 0o700); err != nil {
		return err
	}
	var logs, rest, last []string
	for _, e := range entries {
		switch name := e.Name(); {
		case e.IsDir(): // lost+found, and what was moved aside before
		case filepath.Ext(name) == ".mem":
			logs = append(logs, name)
		case name == "MANIFEST":
			last = append(last, name)
		default:
			rest = append(rest, name)
		}
	}
	slices.Reverse(logs)
	for _, name := range slices.Concat(logs, rest, last) {
		if err := os.Rename(filepath.Join(dir, name), filepath.Join(aside, name)); err != nil {
			return err
		}
	}
	return syncDir(dir)
}

// Close closes the nodes and gives the locks back.
func (d *Dir) Close() error {
	var errs []error
	for name, n := range d.Nodes {
		if err := n.Close(); err != nil {
			errs = append(errs, fmt.Errorf("close node %s: %w", name, err))
		}
	}
	d.Nodes = map[string]*disk.Node{}
	if d.guard != nil {
		errs = append(errs, d.guard.close())
	}
	if d.lock != nil {
		errs = append(errs, d.lock.Close())
		d.lock = nil
	}
	return errors.Join(errs...)
}

// checkConfigDir refuses to put the only key where it would be gone with a
// container or at the next boot, while the data stays.
func (d *Dir) checkConfigDir() error {
	keyDir := filepath.Dir(d.keyFile())
	rel, err := filepath.Rel(resolved(d.opt.Dir), resolved(keyDir))
	if err == nil && rel != ".." && !strings.HasPrefix(rel, "../") {
		return fmt.Errorf("%w: the key would lie in the data directory, beside what it locks; choose another place with --key-file or XDG_CONFIG_HOME", ErrRefused)
	}
	if fleeting(keyDir) && !fleeting(d.opt.Dir) {
		return fmt.Errorf("%w: %s is on a temporary or container filesystem, %s is not: the key would be lost and the data kept. "+
			"Mount a volume there, or set --key-file or XDG_CONFIG_HOME to a place that stays", ErrRefused, keyDir, d.opt.Dir)
	}
	return nil
}

// resolved follows the symbolic links of a path as far as it exists.
func resolved(path string) string {
	for rest := ""; ; path, rest = filepath.Dir(path), filepath.Join(filepath.Base(path), rest) {
		if p, err := filepath.EvalSymlinks(path); err == nil {
			return filepath.Join(p, rest)
		}
		if path == filepath.Dir(path) {
			return filepath.Join(path, rest)
		}
	}
}

// Magic numbers of filesystems, from linux/magic.h.
const (
	magicTmpfs   = 0x01021994
	magicRamfs   = 0x858458f6
	magicOverlay = 0x794c7630
)

// fleeting reports whether what is written to a directory, or its nearest parent
// that exists, goes away with a container or a reboot.
func fleeting(dir string) bool {
	for {
		var st syscall.Statfs_t
		if err := syscall.Statfs(dir, &st); err == nil {
			switch uint32(st.Type) {
			case magicTmpfs, magicRamfs, magicOverlay:
				return true
			}
			return false
		}
		parent := filepath.Dir(dir)
		if parent == dir {
			return false
		}
		dir = parent
	}
}

func (d *Dir) keyFile() string {
	if d.opt.KeyFile != "" {
		return d.opt.KeyFile
	}
	return filepath.Join(d.opt.Config, d.Cluster.String()+".key")
}
