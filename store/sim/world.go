package sim

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"log/slog"
	"math/rand/v2"
	"slices"
	"sort"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"cairn/id"
	"cairn/index/kv/memkv"
	"cairn/keys"
	"cairn/node"
	"cairn/node/disk"
	"cairn/node/vfs/crashfs"
	"cairn/pack"
	"cairn/record"
	"cairn/store"
)

const (
	nodeCount  = 6
	tolerance  = 2 // m of a new store
	raisedTo   = 3
	diskBytes  = 8 << 30
	diskFiles  = 1 << 16
	patience   = 3 * time.Second
	lagTime    = 400 * time.Millisecond
	openWithin = 40 // tries of a start that nothing disturbs
)

// volume is the disk of one node.
type volume struct {
	name string
	no   int
	disk *crashfs.Disk
	vol  atomic.Pointer[crashfs.FS]
	mood atomic.Pointer[mood]
	old  *crashfs.FS // a copy of earlier, nil for none

	// lost says that bytes which the node acknowledged may be gone from it: it
	// counts among the m, until it has been replaced and repaired.
	lost   bool
	reason string // what was done to it
	wiped  bool   // its directory is empty
	filled int64  // bytes taken from its disk

	draining bool // as far as is known
	guest    bool // perhaps no member yet
}

func (v *volume) fs() *crashfs.FS     { return v.vol.Load() }
func (v *volume) mount(f *crashfs.FS) { v.vol.Store(f) }

// mood is what a disk does to operations besides taking its time.
type mood struct {
	slow      int  // times slower; 0 is 1
	lie       bool // syncs answer and do nothing
	hungTil   time.Time
	readFails int    // in a thousand
	syncFails int    // in a thousand
	drop      bool   // a sync that fails loses what it should have written
	forges    bool   // reads give other bytes, with good checksums
	noWrites  string // writes into files whose names begin so fail; "" for none
}

// inject decides what happens to one operation. Time and faults follow from the
// operation and the instant, not from the order in which goroutines ask.
func (w *world) inject(v *volume) crashfs.Injector {
	return func(o crashfs.Op) crashfs.Fault {
		m := v.mood.Load()
		now := time.Since(w.began)
		h := newMix(w.seed).num(uint64(v.no)).num(uint64(o.Kind)).text(o.Name).num(uint64(o.Off)).num(uint64(o.Len)).num(uint64(now)).sum()
		var f crashfs.Fault
		if o.Kind == crashfs.OpClose {
			return f // nodes close their files in no order, so that may take no time
		}
		most := 150 * time.Microsecond
		switch o.Kind {
		case crashfs.OpWrite, crashfs.OpWritev:
			most = 300*time.Microsecond + time.Duration(o.Len/4096)*time.Microsecond
		case crashfs.OpDatasync, crashfs.OpSync, crashfs.OpSyncDir:
			if w.cfg.onSync != nil {
				w.cfg.onSync()
			}
			most = 3 * time.Millisecond
			if h>>40%64 == 0 {
				most *= 30
			}
		}
		f.Delay = time.Microsecond + time.Duration(h%uint64(most))
		if m.slow > 1 {
			f.Delay *= time.Duration(m.slow)
		}
		if left := time.Until(m.hungTil); left > 0 {
			f.Delay += left
		}
		dice := int(h >> 20 % 1000)
		switch o.Kind {
		case crashfs.OpWrite, crashfs.OpWritev:
			if m.noWrites != "" && strings.HasPrefix(o.Name, m.noWrites) {
				f.Err = syscall.EIO
			}
		case crashfs.OpRead:
			if dice < m.readFails {
				f.Err = syscall.EIO
				w.count("read error")
			}
		case crashfs.OpDatasync, crashfs.OpSync, crashfs.OpSyncDir:
			if dice < m.syncFails {
				f.Err, f.Drop = syscall.EIO, m.drop && o.Kind != crashfs.OpSyncDir
				w.count("sync error")
			} else if m.lie {
				f.Lie = true
				w.count("lying sync")
			}
		}
		return f
	}
}

// gateway is a running store, and what the clients saw of it.
type gateway struct {
	st     *store.Store
	engine *memkv.Engine
	dead   atomic.Bool // killed: no answer of it reaches a client any more
	past   atomic.Bool // another one took over

	mu        sync.Mutex
	lastStart time.Time // when the youngest acknowledged write began
}

func (g *gateway) acked(begun time.Time) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if begun.After(g.lastStart) {
		g.lastStart = begun
	}
}

// ackedAfter reports whether a write that began after t was acknowledged.
func (g *gateway) ackedAfter(t time.Time) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.lastStart.After(t)
}

// world is one history.
type world struct {
	seed    uint64
	cfg     Config
	began   time.Time
	rng     *rand.Rand // of whoever holds the token
	source  *source
	token   chan struct{}
	cluster id.Cluster
	ring    *keys.Keyring
	blocks  blocks
	vols    []*volume
	genesis *store.Genesis
	log     *slog.Logger
	carried map[string]bool // packs that nothing needs any more, and that cannot be repaired
	leap    atomic.Int64    // how far the store's clock is from the bubble's

	clients   []*client
	registers []*register
	drains    sync.WaitGroup
	between   func() // called in a start, when the nodes are open
	made      int    // volumes after the first
	unsure    bool   // who keeps the log: a change of the nodes may be under way
	pending   bool   // the outcome of one is not known, until the next start
	// losses is how many the store is known to survive, atMost how many it may by now.
	losses, atMost int

	mu       sync.Mutex
	cur, old *gateway // old: one that was taken over from and still runs
	nodes    map[string]*disk.Node
	engine   *memkv.Engine // of the next start
	past     *memkv.Engine // a copy of earlier
	opens    int
	inside   int // client operations being done
	starts   int // tries to start, for generators
	wrong    error
	stats    Stats
	trace    uint64
	lines    []string
	names    uint64 // of contents
}

func newWorld(seed uint64, cfg Config) *world {
	w := &world{seed: seed, cfg: cfg, began: time.Now(), rng: generator(seed, "world", 0), source: newSource(seed, "world", 0), token: make(chan struct{}, 1), losses: tolerance, atMost: tolerance,

		blocks: blocks{seed: seed}, engine: memkv.New(memkv.Options{}), genesis: &store.Genesis{M: tolerance, Buckets: []string{"main"}},
		stats: Stats{Faults: map[string]int{}}, log: slog.New(slog.DiscardHandler)}
	if cfg.Log != nil {
		w.log = slog.New(slog.NewTextHandler(cfg.Log, &slog.HandlerOptions{Level: slog.LevelDebug}))
	}
	newSource(seed, "cluster", 0).Read(w.cluster[:])
	w.ring = newKeyring(seed, w.cluster)
	w.carried = map[string]bool{}
	for i := range nodeCount {
		v := &volume{name: fmt.Sprintf("n%02d", i+1), no: i}
		w.vols = append(w.vols, v)
		w.blank(v)
		n, err := disk.Format(v.fs(), w.diskConfig(v))
		if err != nil {
			panic(err)
		}
		w.genesis.Members = append(w.genesis.Members, record.Member{ID: n, Name: v.name})
	}
	return w
}

// prepare makes what the clients expect to be there.
func (w *world) prepare(g *gateway) error {
	ctx := context.Background()
	_, err := g.st.CreateBucket(ctx, versionsBucket, record.Settings{Versioning: true})
	if err == nil {
		_, err = g.st.CreateBucket(ctx, lockedBucket, record.Settings{Versioning: true, Lock: true, RetentionMode: record.Compliance, RetentionDays: 1})
	}
	// No history lasts a day, however the clock leaps: what follows these rules expires never.
	for _, b := range []string{"main", versionsBucket, lockedBucket} {
		if err == nil {
			err = g.st.SetLifecycle(ctx, b, []store.Rule{{ExpireDays: 1, NoncurrentDays: 1, AbortDays: 1}})
		}
	}
	return err
}

// blank gives a volume a new empty disk.
func (w *world) blank(v *volume) {
	v.disk = crashfs.NewDisk(crashfs.DiskConfig{Device: uint64(v.no + 1), Bytes: diskBytes, Files: diskFiles})
	v.mount(v.disk.New())
	v.filled, v.old = 0, nil
	if v.mood.Load() == nil {
		v.mood.Store(&mood{})
	}
	v.fs().Inject(w.inject(v))
}

// change changes a volume's mood.
func (v *volume) change(fn func(*mood)) {
	m := *v.mood.Load()
	fn(&m)
	v.mood.Store(&m)
}

func (w *world) diskConfig(v *volume) disk.Config {
	w.starts++
	return disk.Config{Cluster: w.cluster, Now: w.now, Rand: newSource(w.seed, "disk", w.starts)}
}

func (w *world) now() time.Time { return time.Now().Add(time.Duration(w.leap.Load())) }

// violation ends the history: something was promised and is not so.
func (w *world) violation(format string, a ...any) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.wrong == nil {
		w.wrong = fmt.Errorf(format, a...)
		w.noteLocked("VIOLATION: %v", w.wrong)
	}
}

func (w *world) over() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.wrong != nil
}

// note enters an event into the trace.
func (w *world) note(format string, a ...any) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.noteLocked(format, a...)
}

func (w *world) noteLocked(format string, a ...any) {
	line := fmt.Sprintf("%12v %s", time.Since(w.began), fmt.Sprintf(format, a...))
	h := fnv.New64a()
	fmt.Fprintf(h, "%x %s", w.trace, line)
	w.trace = h.Sum64()
	if w.cfg.Log != nil {
		fmt.Fprintln(w.cfg.Log, line)
	}
	if w.cfg.Events != nil {
		fmt.Fprintln(w.cfg.Events, line)
	}
	if w.lines = append(w.lines, line); len(w.lines) > 400 {
		w.lines = slices.Delete(w.lines, 0, 200)
	}
}

func (w *world) count(fault string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.stats.Faults[fault]++
}

func (w *world) fault(name, format string, a ...any) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.stats.Faults[name]++
	w.noteLocked("fault: %s %s", name, fmt.Sprintf(format, a...))
}

// lostCount is how many nodes count among the m.
func (w *world) lostCount() int {
	n := 0
	for _, v := range w.vols {
		if v.lost {
			n++
		}
	}
	return n
}

// lose chooses a node that may be harmed within the m; nil when none may.
func (w *world) lose(rng *rand.Rand, why string) *volume {
	var may []*volume
	for _, v := range w.vols {
		if v.lost || w.lostCount() < w.losses {
			may = append(may, v)
		}
	}
	if len(may) == 0 {
		return nil
	}
	v := may[rng.IntN(len(may))]
	v.lost = true
	v.reason += why + " "
	return v
}

// enter lets a client operation begin: it waits until a gateway runs. nil means
// that the history is over.
func (w *world) enter(rng *rand.Rand) *gateway {
	for {
		w.mu.Lock()
		if w.wrong != nil {
			w.mu.Unlock()
			return nil
		}
		if g := w.cur; g != nil {
			if w.old != nil && rng.IntN(2) == 0 {
				g = w.old
			}
			w.inside++
			w.mu.Unlock()
			return g
		}
		w.mu.Unlock()
		time.Sleep(time.Millisecond + time.Duration(rng.IntN(4000))*time.Microsecond)
	}
}

func (w *world) leave() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.inside--
}

// quiet waits until no client operation is being done.
func (w *world) quiet() {
	for {
		w.mu.Lock()
		n := w.inside
		w.mu.Unlock()
		if n == 0 {
			return
		}
		time.Sleep(5 * time.Millisecond)
	}
}

// crash ends the processes that run: their page cache survives a kill, and
// nothing that was not synced a power cut. The caller holds the token.
func (w *world) crash(power bool) {
	w.mu.Lock()
	cur, old, nodes := w.cur, w.old, w.nodes
	w.cur, w.old, w.nodes = nil, nil, nil
	for _, g := range []*gateway{cur, old} {
		if g != nil {
			g.dead.Store(true)
		}
	}
	w.mu.Unlock()
	for _, v := range w.vols {
		w.cut(v, power)
	}
	w.crashEngine(cur, power)
	if old != nil {
		old.engine.Crash(w.rng)
	}
	w.bury(nodes, cur, old)
}

// cut ends the processes that have a volume open, by a power cut or a kill.
func (w *world) cut(v *volume, power bool) {
	switch {
	case v.wiped:
		w.blank(v) // a removal could be undone by a power cut; not this one
	case power:
		v.mount(v.fs().Crash(w.rng))
	default:
		v.mount(v.fs().Kill())
	}
}

// crashEngine takes the index of a gateway that has ended for the next start.
func (w *world) crashEngine(g *gateway, power bool) {
	if g == nil {
		return
	}
	if power {
		w.engine = g.engine.Crash(w.rng)
	} else {
		w.engine = g.engine.CrashKeeping(g.engine.Unsynced())
	}
}

// bury lets what runs of dead gateways end.
func (w *world) bury(nodes map[string]*disk.Node, gws ...*gateway) {
	w.drains.Go(func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		for _, g := range gws {
			if g != nil {
				_ = g.st.Close(ctx)
			}
		}
		for _, name := range names(nodes) {
			_ = nodes[name].Close()
		}
	})
}

func names[V any](m map[string]V) []string {
	out := make([]string, 0, len(m))
	for k := range m {
		out = append(out, k)
	}
	sort.Strings(out)
	return out
}

// stop ends the gateway as an operator does.
func (w *world) stop() {
	w.mu.Lock()
	cur, old, nodes := w.cur, w.old, w.nodes
	w.cur, w.old, w.nodes = nil, nil, nil
	w.mu.Unlock()
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	if old != nil {
		_ = old.st.Close(ctx)
	}
	if err := cur.st.Close(ctx); err != nil {
		w.note("close: %v", err)
	}
	cur.dead.Store(true)
	for _, name := range names(nodes) {
		if err := nodes[name].Close(); err != nil {
			w.note("close node %s: not clean", name)
		}
	}
	for _, v := range w.vols {
		w.cut(v, false)
	}
	w.engine = cur.engine.Reopen()
}

// tryOpen starts a gateway on the nodes, but for those that are away. The
// caller holds the token and publishes what it returns.
func (w *world) tryOpen(ctx context.Context, away map[string]bool) (*gateway, map[string]*disk.Node, error) {
	nodes, absent, stores := map[string]*disk.Node{}, map[string]error{}, map[string]node.Store{}
	for _, v := range w.vols {
		if away[v.name] {
			absent[v.name] = fmt.Errorf("away: %w", node.ErrUnavailable)
			continue
		}
		n, err := disk.Open(v.fs(), w.diskConfig(v))
		if err != nil {
			absent[v.name] = err
			w.note("open node %s: %v", v.name, err)
			continue
		}
		nodes[v.name], stores[v.name] = n, liar{n, v}
	}
	if w.between != nil {
		w.between()
	}
	g, err := w.openOn(ctx, stores, absent)
	if err != nil {
		for _, name := range names(nodes) {
			_ = nodes[name].Close()
		}
		return nil, nil, err
	}
	if w.made > 0 {
		w.reckon(g)
	}
	return g, nodes, nil
}

// openOn starts a gateway on open nodes, with the engine of the next start.
func (w *world) openOn(ctx context.Context, stores map[string]node.Store, absent map[string]error) (*gateway, error) {
	w.starts++
	engine := w.engine
	g := &gateway{engine: engine}
	st, err := store.Open(ctx, store.Config{Cluster: w.cluster, Nodes: stores, Absent: absent, Keyring: w.ring, Engine: engine, Genesis: w.genesis,
		Memory: w.memory(), Workers: w.workers(), Rand: newSource(w.seed, "store", w.starts), Now: w.now, Log: w.log, Patience: patience, Lag: lagTime,
		Grace: 100 * time.Millisecond, KeepDeleted: 1 << 60, // clients bring back what they have deleted
		SnapshotEvery: w.snapshotEvery(), ListWindow: [...]uint64{0, 5, 40}[w.seed/3%3], Progress: func(what string, done, of uint64) {
			switch {
			case what == "snapshot":
				w.count("snapshot taken")
			case what == "load" && done == of:
				w.count("snapshot loaded")
			}
		}})
	if err != nil {
		return nil, err
	}
	g.st = st
	w.genesis = nil
	return g, nil
}

// workers is how many chunks are sealed at a time. Two that are ready at the same
// instant may enter a pack in either order, so most histories have one.
func (w *world) workers() int { return 1 + int(w.seed%8/7) }

// snapshotEvery is how much is logged between two snapshots of the index: so
// little in two histories of three that they are taken all the time.
func (w *world) snapshotEvery() uint64 { return [...]uint64{0, 20_000, 100_000}[w.seed%3] }

// memory is the least that a store takes in every other history, so that uploads
// and reads wait for each other, and packs are small.
func (w *world) memory() int64 {
	if w.cfg.roomy {
		return 512 << 20
	}
	return 128<<20 + int64(w.seed%2)*384<<20
}

// publish lets clients in.
func (w *world) publish(g *gateway, nodes map[string]*disk.Node) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.cur, w.nodes = g, nodes
	w.noteLocked("serving")
}

// opened tells the model that a start is over: what was unknown is decided.
func (w *world) opened() {
	w.mu.Lock()
	w.opens++
	w.stats.Starts++
	w.mu.Unlock()
	for _, r := range w.registers {
		r.decided(time.Now())
	}
}

// start brings a gateway up again after a crash or a stop, with faults on the
// way as asked for, and returns it unpublished. The caller holds the token.
func (w *world) start(hard bool) (*gateway, map[string]*disk.Node) {
	ctx := context.Background()
	w.chooseIndex(hard)
	if hard {
		for range w.rng.IntN(4) {
			if w.over() {
				return nil, nil
			}
			if g, nodes := w.troubledStart(ctx); g != nil {
				return g, nodes
			}
		}
	}
	w.calm()
	for try := 0; ; try++ {
		away := map[string]bool{}
		if hard && try == 0 && w.rng.IntN(3) == 0 {
			w.away(away, w.losses)
		}
		g, nodes, err := w.tryOpen(ctx, away)
		if err == nil {
			w.note("started without %v", names(away))
			w.opened()
			return g, nodes
		}
		w.note("start without %v: %v", names(away), err)
		w.engine = w.engine.Reopen()
		if try == openWithin || errors.Is(err, store.ErrDivergent) || errors.Is(err, store.ErrDamaged) {
			w.violation("the store does not start with %d nodes lost (%s): %v", w.lostCount(), w.lostText(), err)
			return nil, nil
		}
		time.Sleep(100 * time.Millisecond)
	}
}

func (w *world) lostText() string {
	var out []string
	for _, v := range w.vols {
		if v.lost {
			out = append(out, v.name+": "+strings.TrimSpace(v.reason))
		}
	}
	return strings.Join(out, "; ")
}

// away chooses nodes that are not up at a start, so that at most most give no
// answer, counting those that are lost.
func (w *world) away(away map[string]bool, most int) {
	for n := w.lostCount(); n < most; n++ {
		v := w.vols[w.rng.IntN(len(w.vols))]
		if v.lost || away[v.name] {
			continue
		}
		away[v.name] = true
		w.count("node away at a start")
	}
}

// chooseIndex sometimes loses the index, or brings an older one back.
func (w *world) chooseIndex(hard bool) {
	switch d := w.rng.IntN(10); {
	case d < 3:
		w.engine = memkv.New(memkv.Options{})
		w.fault("index lost", "")
	case d == 3 && w.past != nil && hard:
		w.engine = w.past.Clone()
		w.fault("old index", "")
	case d < 6:
		w.past = w.engine.Clone()
	}
}

// troubledStart is a start during which the power fails, or with too few nodes.
func (w *world) troubledStart(ctx context.Context) (*gateway, map[string]*disk.Node) {
	away := map[string]bool{}
	few := w.rng.IntN(4) == 0 && !w.unsure && w.losses == w.atMost
	switch {
	case few:
		w.away(away, w.losses+1)
		for len(away) == 0 || len(away)+w.gone() <= w.losses {
			v := w.vols[w.rng.IntN(len(w.vols))]
			if !v.wiped {
				away[v.name] = true
			}
		}
		w.fault("start with too few nodes", "%v", names(away))
	case w.rng.IntN(2) == 0:
		w.away(away, w.losses)
	}
	power, after := w.rng.IntN(2) == 0, time.Duration(w.rng.IntN(30000))*time.Microsecond
	if few {
		after = time.Hour
	}
	w.fault("crash in a start", "after %v", after)
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	crashed := false
	var next *memkv.Engine
	done := make(chan struct{})
	ended := make(chan struct{})
	rng := w.rng // while the other goroutine waits nobody else draws
	go func() {
		defer close(ended)
		t := time.NewTimer(after)
		defer t.Stop()
		select {
		case <-done:
			return
		case <-t.C:
		}
		crashed = true
		if power {
			next = w.engine.Crash(rng)
		} else {
			next = w.engine.CrashKeeping(w.engine.Unsynced())
		}
		for _, v := range w.vols {
			w.cut(v, power)
		}
		cancel()
	}()
	g, nodes, err := w.tryOpen(ctx, away)
	close(done)
	<-ended
	if crashed {
		w.engine = next
	}
	switch {
	case err == nil && few:
		w.violation("a start with %d nodes away and %d gone went through; all but %d are needed", len(away), w.gone(), w.losses)
		w.discard(g, nodes, crashed)
		return nil, nil
	case err == nil && crashed:
		w.discard(g, nodes, crashed)
		return nil, nil
	case err == nil:
		w.note("started without %v", names(away))
		w.opened()
		return g, nodes
	}
	w.note("start: %v", err)
	if !crashed && few && !errors.Is(err, store.ErrUnavailable) {
		w.violation("a start with too few nodes: %v; want unavailable", err)
	}
	if !crashed {
		w.engine = w.engine.Reopen()
	}
	return nil, nil
}

// discard ends a gateway that no client saw.
func (w *world) discard(g *gateway, nodes map[string]*disk.Node, crashed bool) {
	w.opened()
	g.dead.Store(true)
	if !crashed {
		w.crashEngine(g, false)
	}
	for _, v := range w.vols {
		w.cut(v, false)
	}
	w.bury(nodes, g)
}

// gone is how many nodes have an empty directory.
func (w *world) gone() int {
	n := 0
	for _, v := range w.vols {
		if v.wiped {
			n++
		}
	}
	return n
}

// calm ends every fault that passes: disks answer again, in their own time.
func (w *world) calm() {
	for _, v := range w.vols {
		m := v.mood.Load()
		v.mood.Store(&mood{lie: m.lie, forges: m.forges})
		w.unfill(v)
	}
}

func (w *world) fill(v *volume, left int64) {
	w.unfill(v)
	u, err := v.fs().Usage()
	if err != nil || u.FreeBytes < left {
		return
	}
	v.filled = u.FreeBytes - left
	v.disk.Occupy(v.filled)
}

func (w *world) unfill(v *volume) {
	v.disk.Occupy(-v.filled)
	v.filled = 0
}

// heal replaces every node that counts as lost by a new one and repairs, until
// nothing counts among the m any more. The caller holds the token; a gateway
// runs and is not published.
func (w *world) heal(g *gateway, nodes map[string]*disk.Node) bool {
	ctx := context.Background()
	for _, v := range w.vols {
		if !v.lost {
			continue
		}
		if n := nodes[v.name]; n != nil {
			// It answers: whoever runs the store takes the disk out.
			if err := v.fs().RemoveAll("."); err != nil {
				w.violation("sim: remove the directory of %s: %v", v.name, err)
			}
			if err := g.st.Replaceable(v.name); err != nil {
				for range 5 { // it is noticed at the next request to the node
					wide := make([]byte, 100<<10) // its log pack is on every node, of six
					w.source.Read(wide)
					if w.made > 0 { // of more, or when it is being drained, at the next status
						_, _ = g.st.Status(ctx)
					}
					_, _ = g.st.Put(ctx, "main", "notice", bytes.NewReader(wide), store.PutOptions{Size: -1})
					if err = g.st.Replaceable(v.name); err == nil {
						break
					}
					time.Sleep(2 * time.Second)
				}
				if err != nil {
					w.violation("a node whose directory was removed is not noticed: %v", err)
					return false
				}
			}
			_ = n.Close()
			delete(nodes, v.name)
		}
		w.blank(v)
		v.wiped = false
		v.mood.Store(&mood{})
		if _, err := disk.Format(v.fs(), w.diskConfig(v)); err != nil {
			w.violation("sim: format a new node: %v", err)
			return false
		}
		n, err := disk.Open(v.fs(), w.diskConfig(v))
		if err != nil {
			w.violation("sim: open a new node: %v", err)
			return false
		}
		nodes[v.name] = n
		if err := g.st.ReplaceNode(ctx, v.name, liar{n, v}); err != nil {
			w.note("replace %s: %v", v.name, err)
			if isAny(err, append([]error{store.ErrUnknown}, refusals...)) == nil {
				w.violation("replace %s: %v", v.name, err)
			}
			return false
		}
		w.fault("node replaced", "%s", v.name)
		if w.rng.IntN(2) == 0 {
			_, _ = g.st.Repair(ctx) // beside nodes that are lost still
		}
	}
	for try := 0; ; try++ {
		r, err := g.st.Repair(ctx)
		w.note("repair: %d packs, %d shards, %d short, %d lost, %v", r.Packs, r.Shards, r.Short, r.Lost, err)
		// A log pack that was adopted as the tail without ever being at full width may
		// be beyond repair; the begin pack after it carries what it held. That nothing
		// else is missing the verification at the end says.
		for _, err := range r.Errs {
			if id, found := strings.CutPrefix(err.Error(), "pack "); found && errors.Is(err, pack.ErrShort) {
				w.carried[id[:32]] = true
			}
		}
		if err == nil && r.Short == 0 {
			break
		}
		if try == 5 {
			w.note("repair gives up: %v %v", err, errors.Join(r.Errs...))
			return false
		}
		time.Sleep(2 * time.Second)
	}
	for _, v := range w.vols {
		v.lost, v.wiped, v.reason = false, false, ""
	}
	return true
}
