package store

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"cairn/id"
	"cairn/index"
	"cairn/index/kv"
	"cairn/index/kv/memkv"
	"cairn/node"
	"cairn/node/disk"
	"cairn/node/vfs/crashfs"
	"cairn/pack"
	"cairn/record"
)

// faulty is a node that does as the test says instead of what it should.
type faulty struct {
	node.Store
	promised func() (node.Authority, error)
	promise  func() error
	put      func(node.Shard) error
	list     func()                      // before each page of the log
	write    func()                      // before a small file is written
	usage    func()                      // before it says how it is
	file     func()                      // before a small file is read
	read     func(off int64, dst []byte) // after the true bytes are in dst
	hang     chan struct{}               // reads wait for it
	waiting  *atomic.Int64               // how many do
}

func (f *faulty) Promised(ctx context.Context) (node.Authority, error) {
	if f.promised != nil {
		return f.promised()
	}
	return f.Store.Promised(ctx)
}

func (f *faulty) Promise(ctx context.Context, by node.Authority) error {
	if f.promise != nil {
		return f.promise()
	}
	return f.Store.Promise(ctx, by)
}

func (f *faulty) Put(ctx context.Context, by node.Authority, why node.Purpose, s node.Shard) (id.Instance, error) {
	if f.put != nil {
		if err := f.put(s); err != nil {
			return 0, err
		}
	}
	return f.Store.Put(ctx, by, why, s)
}

func (f *faulty) WriteFile(ctx context.Context, by node.Authority, name node.File, b []byte) error {
	if f.write != nil {
		f.write()
		if err := ctx.Err(); err != nil {
			return err
		}
	}
	return f.Store.WriteFile(ctx, by, name, b)
}

func (f *faulty) Usage(ctx context.Context) (node.Usage, error) {
	if f.usage != nil {
		f.usage()
	}
	return f.Store.Usage(ctx)
}

func (f *faulty) ReadFile(ctx context.Context, name node.File) ([]byte, error) {
	if f.file != nil {
		f.file()
	}
	return f.Store.ReadFile(ctx, name)
}

func (f *faulty) ListLog(ctx context.Context, from uint64, after *node.Found, limit int) ([]node.Found, error) {
	if f.list != nil {
		f.list()
	}
	return f.Store.ListLog(ctx, from, after, limit)
}

func (f *faulty) Read(ctx context.Context, k node.Key, off int64, dst []byte) error {
	if f.hang != nil {
		if f.waiting != nil {
			f.waiting.Add(1)
			defer f.waiting.Add(-1)
		}
		<-f.hang
	}
	err := f.Store.Read(ctx, k, off, dst)
	if f.read != nil && err == nil {
		f.read(off, dst)
	}
	return err
}

// only wraps one node.
func only(which string, f faulty) func(string, node.Store) node.Store {
	return func(name string, n node.Store) node.Store {
		if name != which {
			return n
		}
		g := f
		g.Store = n
		return &g
	}
}

func impatient(c *Config) { c.Patience, c.Lag = 2*time.Second, 200*time.Millisecond }

// H42: an epoch that one node makes up costs that node its vote, nothing else.
func TestOneLyingEpochStopsNobody(t *testing.T) {
	for _, epoch := range []uint64{99, 1 << 40, ^uint64(0) - 1, ^uint64(0)} {
		r := newRig(t)
		r.put("a", []byte("a"))
		r.close()
		r.change = impatient
		r.wrap = only("n03", faulty{promised: func() (node.Authority, error) {
			return node.Authority{Epoch: epoch, Writer: id.Writer{9}}, nil
		}})
		r.open()
		r.put("b", []byte("b"))
		r.mustRead("a", []byte("a"))
		r.mustRead("b", []byte("b"))
		if err := r.st.Failure(); err != nil {
			t.Errorf("epoch %d of one node stopped the store: %v", epoch, err)
		}
		r.close()
		r.wrap = nil
		r.open()
		r.mustRead("b", []byte("b"))
	}
}

// A node that promises to nobody is no answer; the others are enough.
func TestOneRefusalStopsNoStart(t *testing.T) {
	r := newRig(t)
	r.put("a", []byte("a"))
	r.close()
	r.change = impatient
	r.wrap = only("n02", faulty{promise: func() error { return node.ErrFenced }})
	r.open()
	r.mustRead("a", []byte("a"))
}

// H40: a disk that hangs is left behind by writes, reads and starts.
func TestHungNodeIsLeftBehind(t *testing.T) {
	r := newRig(t)
	big := random(3, 24<<20)
	r.put("before", big)
	r.close()
	release := make(chan struct{})
	defer close(release)
	wait := func() { <-release }
	r.change = impatient
	r.wrap = only("n06", faulty{put: func(node.Shard) error { wait(); return nil }, hang: release})
	r.open()
	begin := time.Now()
	r.mustRead("before", big)
	for i := range 4 {
		r.put("during", random(uint64(10+i), 20<<20))
	}
	r.put("small", []byte("small"))
	if d := time.Since(begin); d > 30*time.Second {
		t.Errorf("with one node hung it took %v", d)
	}
	st, err := r.st.Status(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	for _, n := range st.Nodes {
		if n.Name != "n06" && n.State != "up" {
			t.Errorf("node %s is %s: %s; want up, only n06 hangs", n.Name, n.State, n.Reason)
		}
	}
}

// H40, H51: what a hung disk owes does not grow with what is read meanwhile, by
// clients that wait and by clients that leave.
func TestHungNodeGathersNothing(t *testing.T) {
	r := newRig(t)
	const objects = 12
	for i := range objects {
		r.put(fmt.Sprint("k", i), random(uint64(i), 200_000))
	}
	r.close()
	release := make(chan struct{})
	var waiting atomic.Int64
	r.change = func(c *Config) { c.Patience, c.Lag = 2*time.Second, 20*time.Millisecond }
	r.wrap = only("n06", faulty{hang: release, waiting: &waiting})
	r.open()
	for range 20 {
		for i := range objects {
			key, want := fmt.Sprint("k", i), random(uint64(i), 200_000)
			r.mustRead(key, want)
			ctx, cancel := context.WithTimeout(context.Background(), time.Millisecond)
			if o, err := r.st.Get(ctx, "main", key, GetOptions{}); err == nil {
				body := o.Body(0, o.Object.Size)
				_, _ = io.Copy(io.Discard, body)
				body.Close()
			}
			cancel()
		}
	}
	// Those that began before the first was late, and a few with the short deadline.
	if n := waiting.Load(); n == 0 || n > 3*maxHanging {
		t.Errorf("after %d reads the hung node owes %d answers, want at most %d", 20*objects, n, 3*maxHanging)
	}
	close(release)
	for end := time.Now().Add(10 * time.Second); waiting.Load() > 0 || r.st.members.Load().byName["n06"].owes() > 0; time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("the disk goes on; %d reads wait, %d are owed", waiting.Load(), r.st.members.Load().byName["n06"].owes())
		}
	}
	r.mustRead("k0", random(0, 200_000))
}

// A start without an index lists the whole log. That may take longer than anyone's
// patience, as long as each node goes on answering.
func TestLongLogIsListed(t *testing.T) {
	r := newRig(t)
	for i := range 8 * logPage {
		r.put("k", []byte(fmt.Sprint(i)))
	}
	r.close()
	r.engine = memkv.New(memkv.Options{})
	release := make(chan struct{})
	defer close(release)
	const page, patience = 150 * time.Millisecond, 400 * time.Millisecond
	r.change = func(c *Config) { c.Patience = patience }
	r.wrap = func(name string, n node.Store) node.Store {
		if name == "n05" {
			var pages atomic.Int64
			return &faulty{Store: n, list: func() {
				if pages.Add(1) >= 3 {
					<-release // a disk that hangs in mid-list still hangs no start
				}
			}}
		}
		return &faulty{Store: n, list: func() { time.Sleep(page) }}
	}
	begin := time.Now()
	r.open()
	if d := time.Since(begin); d < patience {
		t.Errorf("the log was listed in %v; the test wants it to take longer than %v", d, patience)
	}
	r.mustRead("k", []byte(fmt.Sprint(8*logPage-1)))
}

// sluggish is an index engine whose commits take a while once they are told to.
type sluggish struct {
	kv.Engine
	now   atomic.Bool
	delay time.Duration
}

func (e *sluggish) Commit(ops []kv.Op) error {
	if e.now.Load() {
		time.Sleep(e.delay)
	}
	return e.Engine.Commit(ops)
}

// rotten is an index engine that gives another byte in every row it is asked for
// once it is told to.
type rotten struct {
	kv.Engine
	now atomic.Bool
}

type rottenSnapshot struct{ kv.EngineSnapshot }

func (e *rotten) Snapshot() (kv.EngineSnapshot, error) {
	s, err := e.Engine.Snapshot()
	if err == nil && e.now.Load() {
		s = rottenSnapshot{s}
	}
	return s, err
}

func (s rottenSnapshot) Get(key, dst []byte) ([]byte, error) {
	b, err := s.EngineSnapshot.Get(key, dst)
	if err == nil && len(b) > 0 {
		b[len(b)-1] ^= 1
	}
	return b, err
}

// H11: a damaged row that a read meets ends the process, so that the index is made
// anew; it is not refused for ever.
func TestReadThatMeetsADamagedRowStopsTheStore(t *testing.T) {
	r := newRig(t)
	r.put("a", []byte("a"))
	r.close()
	e := &rotten{Engine: r.engine}
	r.change = func(c *Config) { c.Engine = e }
	r.open()
	r.mustRead("a", []byte("a"))
	if err := r.st.Failure(); err != nil {
		t.Fatal(err)
	}
	e.now.Store(true)
	if b, err := r.read("a"); err == nil {
		t.Fatalf("read through a damaged index: %q", b)
	}
	select {
	case <-r.st.Failed():
	case <-time.After(10 * time.Second):
		t.Fatal("the store goes on with an index that a read found damaged")
	}
	if err := r.st.Failure(); !errors.Is(err, kv.ErrDamaged) {
		t.Errorf("the store stopped with %v, want damage of the index", err)
	}
	e.now.Store(false)
}

// What a start does behind its first log pack has no deadline: a rebuild that met
// another index than the records name counts all edges again, and a start that
// gives up in that would give up every time.
func TestRecountTakesItsTime(t *testing.T) {
	r := newRig(t)
	for i := range 800 {
		r.put(fmt.Sprint("k", i), []byte(fmt.Sprint(i)))
	}
	r.logUnapplied(&record.Purge{In: id.Main, Bucket: 1, Key: []byte("k1"), Drops: []record.Dropped{{Version: id.Version{Seq: 1, Pos: 77}}}})
	r.close()
	e := &sluggish{Engine: memkv.New(memkv.Options{}), delay: 600 * time.Millisecond}
	cfg := Config{Cluster: r.cluster, Nodes: map[string]node.Store{}, Keyring: r.ring, Engine: e, Patience: 500 * time.Millisecond}
	for name, fs := range r.fs {
		n, err := disk.Open(fs, disk.Config{Cluster: r.cluster})
		if err != nil {
			t.Fatal(err)
		}
		defer n.Close()
		cfg.Nodes[name] = &faulty{Store: n, put: func(node.Shard) error { e.now.Store(true); return nil }}
	}
	s, err := newStore(cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer s.index.Close()
	if err := s.start(context.Background()); err != nil {
		t.Fatalf("start with a recount that ends later than a node may take: %v", err)
	}
	if s.passedOver == 0 || s.index.Rebuilding() {
		t.Errorf("%d records were passed over, rebuilding %v: nothing was counted again", s.passedOver, s.index.Rebuilding())
	}
}

func TestHungNodeHangsNoStart(t *testing.T) {
	r := newRig(t)
	r.put("a", []byte("a"))
	r.close()
	release := make(chan struct{})
	defer close(release)
	r.change = impatient
	r.wrap = only("n01", faulty{promise: func() error { <-release; return node.ErrUnavailable }})
	r.open()
	r.mustRead("a", []byte("a"))
	r.close()
	// Nor does one that hangs when it is asked for the first thing there is.
	r.wrap = only("n01", faulty{file: func() { <-release }})
	r.open()
	r.mustRead("a", []byte("a"))
}

// H30, H46: a node whose checksums hold and whose bytes are others is found by
// the seals and the digests.
func TestNodesThatGiveOtherBytes(t *testing.T) {
	r := newRig(t)
	big, small := random(4, 9<<20), random(5, 2000)
	r.put("big", big)
	r.put("small", small)
	r.close()
	lie := func(_ int64, dst []byte) {
		for i := range dst {
			dst[i] ^= 0x55
		}
	}
	r.wrap = func(name string, n node.Store) node.Store {
		if name == "n02" || name == "n04" {
			return &faulty{Store: n, read: lie}
		}
		return n
	}
	r.open()
	r.mustRead("big", big)
	r.mustRead("small", small)
}

// A third liar is beyond the tolerance: then the read fails, and no byte is wrong.
func TestTooManyLiarsAreAnErrorNotAWrongByte(t *testing.T) {
	r := newRig(t)
	big := random(6, 9<<20)
	r.put("big", big)
	r.close()
	lying := false
	r.wrap = func(name string, n node.Store) node.Store {
		if name < "n04" {
			return &faulty{Store: n, read: func(_ int64, dst []byte) {
				if lying {
					dst[len(dst)/2] ^= 1
				}
			}}
		}
		return n
	}
	r.open()
	lying = true
	got, err := r.read("big")
	if !errors.Is(err, ErrDamaged) && !errors.Is(err, ErrUnavailable) {
		t.Errorf("three of six nodes lie: %d bytes, %v; want ErrDamaged", len(got), err)
	}
	if !bytes.Equal(got, big[:len(got)]) {
		t.Error("a wrong byte was returned")
	}
}

// H12, H14: an index that knows more than the nodes is kept, not rebuilt.
func TestIndexAheadOfTheLogStopsTheStart(t *testing.T) {
	r := newRig(t)
	r.put("old", []byte("old"))
	r.close()
	past := map[string]*crashfs.FS{}
	for name, fs := range r.fs {
		past[name] = fs.Clone()
	}
	r.open()
	for range 5 {
		r.put("new", random(1, 3000))
	}
	r.close()
	r.fs = past
	err := r.tryOpen()
	if !errors.Is(err, ErrDivergent) || !strings.Contains(err.Error(), "missing on the nodes") {
		t.Fatalf("the nodes are an hour old, the index is not: %v; want ErrDivergent naming what is missing", err)
	}
	r.engine = memkv.New(memkv.Options{}) // the operator's decision
	r.open()
	r.mustRead("old", []byte("old"))
}

// H14: the index of a branch that died is another history.
func TestIndexOfAnotherBranchStopsTheStart(t *testing.T) {
	r := newRig(t)
	r.put("old", []byte("old"))
	r.close()
	past, index := map[string]*crashfs.FS{}, r.engine.Clone()
	for name, fs := range r.fs {
		past[name] = fs.Clone()
	}
	r.open()
	r.put("one", []byte("one"))
	r.close()
	other := r.engine
	r.fs, r.engine = past, index
	r.open()
	for range 5 {
		r.put("two", []byte("two"))
	}
	r.close()
	r.engine = other
	if err := r.tryOpen(); !errors.Is(err, ErrDivergent) {
		t.Fatalf("the index of a dead branch: %v, want ErrDivergent", err)
	}
}

// H44, H48: a replaced node that comes back is nobody, however few others are there.
func TestReplacedNodeComesBack(t *testing.T) {
	r := newRig(t)
	ctx := context.Background()
	r.put("before", []byte("before"))
	r.close()
	old := r.fs["n01"]
	r.wipe("n01")
	r.open()
	if _, err := disk.Format(r.fs["n01"], disk.Config{Cluster: r.cluster}); err != nil {
		t.Fatal(err)
	}
	n, err := disk.Open(r.fs["n01"], disk.Config{Cluster: r.cluster})
	if err != nil {
		t.Fatal(err)
	}
	r.nodes["n01"] = n
	if err := r.st.ReplaceNode(ctx, "n01", n); err != nil {
		t.Fatal(err)
	}
	r.put("after", []byte("after"))
	r.close()

	replacement := r.fs["n01"]
	r.fs["n01"] = old.Reopen()
	r.away = map[string]bool{"n03": true, "n04": true}
	r.engine = memkv.New(memkv.Options{})
	r.change = impatient
	if err := r.tryOpen(); !errors.Is(err, ErrUnavailable) {
		t.Fatalf("three of the six members are there: %v, want ErrUnavailable", err)
	}
	r.fs["n01"], r.away = replacement, nil
	r.open()
	r.mustRead("before", []byte("before"))
	r.mustRead("after", []byte("after"))
}

// H40: a disk that hangs while it is given a shard made anew hangs no repair, and
// no stop.
func TestHungNodeHangsNoRepair(t *testing.T) {
	r := newRig(t)
	big := random(8, 5<<20)
	r.put("big", big)
	r.close()
	r.wipe("n04")
	r.change = impatient
	r.open()
	if _, err := disk.Format(r.fs["n04"], disk.Config{Cluster: r.cluster}); err != nil {
		t.Fatal(err)
	}
	n, err := disk.Open(r.fs["n04"], disk.Config{Cluster: r.cluster})
	if err != nil {
		t.Fatal(err)
	}
	r.nodes["n04"] = n
	release := make(chan struct{})
	var once sync.Once
	defer once.Do(func() { close(release) })
	if err := r.st.ReplaceNode(context.Background(), "n04", &faulty{Store: n, put: func(s node.Shard) error {
		if h, err := pack.ParseHeader(s.Head); err == nil && h.Kind == pack.Data {
			<-release // log packs go on, so that only a repair meets it
		}
		return nil
	}}); err != nil {
		t.Fatal(err)
	}
	limit, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	rep, err := r.st.Repair(limit)
	if err != nil || rep.Short == 0 {
		t.Fatalf("repair onto a disk that hangs: %+v, %v; want one that stays short", rep, err)
	}
	if state, _ := r.st.members.Load().byName["n04"].state(time.Now()); state != "slow" {
		t.Errorf("the node that hangs is %s, want slow", state)
	}
	once.Do(func() { close(release) })
	for end := time.Now().Add(10 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		if rep, err = r.st.Repair(limit); err == nil && rep.Short == 0 {
			break
		}
		if time.Now().After(end) {
			t.Fatalf("repair onto a disk that goes on: %+v, %v", rep, err)
		}
	}
	r.wipe("n01")
	r.wipe("n02")
	r.mustRead("big", big)
}

// H40: a disk that hangs when it is asked how it is hangs no status, and is not
// asked again and again.
func TestHungNodeHangsNoStatus(t *testing.T) {
	r := newRig(t)
	r.close()
	release := make(chan struct{})
	defer close(release)
	var asked atomic.Int64
	r.change = func(c *Config) { c.Patience, c.Lag = 200*time.Millisecond, 100*time.Millisecond }
	r.wrap = only("n02", faulty{usage: func() { asked.Add(1); <-release }})
	r.open()
	for range 5 {
		st, err := r.st.Status(context.Background())
		if err != nil {
			t.Fatal(err)
		}
		for _, n := range st.Nodes {
			if (n.Name == "n02") != (n.State != "up") {
				t.Errorf("node %s is %s: %s; only n02 hangs", n.Name, n.State, n.Reason)
			}
		}
		if u, err := r.st.Usage(context.Background()); err != nil || u.PhysicalBytes == 0 {
			t.Errorf("usage beside a disk that hangs: %d bytes, %v", u.PhysicalBytes, err)
		}
	}
	if n := asked.Load(); n > 2 {
		t.Errorf("the disk that hangs was asked %d times, want 1, or 2: a start asks too", n)
	}
}

// Who asks for the status and leaves says nothing of the nodes.
func TestStatusCalledOffRefusesNobody(t *testing.T) {
	r := newRig(t)
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if _, err := r.st.Status(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("a status that was called off: %v, want %v", err, context.Canceled)
	}
	r.put("a", []byte("a"))
}

// A change of the node set that became durable late is told to the members all the
// same; the store does not stop because little was left of the round's time.
func TestSlowChangeOfTheNodeSet(t *testing.T) {
	r := newRig(t)
	r.put("a", []byte("a"))
	r.close()
	r.wipe("n04")
	r.change = func(c *Config) { c.Patience, c.Lag = time.Second, 900*time.Millisecond }
	var slow atomic.Bool
	wait := func() {
		if slow.Load() {
			time.Sleep(600 * time.Millisecond)
		}
	}
	r.wrap = func(_ string, n node.Store) node.Store {
		return &faulty{Store: n, put: func(node.Shard) error { wait(); return nil }, write: wait}
	}
	r.open()
	if _, err := disk.Format(r.fs["n04"], disk.Config{Cluster: r.cluster}); err != nil {
		t.Fatal(err)
	}
	n, err := disk.Open(r.fs["n04"], disk.Config{Cluster: r.cluster})
	if err != nil {
		t.Fatal(err)
	}
	r.nodes["n04"] = n
	slow.Store(true)
	err = r.st.ReplaceNode(context.Background(), "n04", n)
	slow.Store(false)
	if err != nil || r.st.Failure() != nil {
		t.Fatalf("replace a node while all are slow: %v; the store: %v", err, r.st.Failure())
	}
	r.put("b", []byte("b"))
	r.mustRead("a", []byte("a"))
}

// H5: wiped nodes and unreachable ones together are more than m: wait.
func TestTooFewAnswersAreWaitedFor(t *testing.T) {
	r := newRig(t)
	r.put("a", []byte("a"))
	r.close()
	keep := r.fs["n01"]
	r.wipe("n01")
	r.away = map[string]bool{"n05": true, "n06": true}
	r.engine = memkv.New(memkv.Options{})
	r.change = impatient
	err := r.tryOpen()
	if !errors.Is(err, ErrUnavailable) || !strings.Contains(err.Error(), "n05") || !strings.Contains(err.Error(), "n01") {
		t.Fatalf("three nodes give no answer: %v; want ErrUnavailable naming them", err)
	}
	r.fs["n01"], r.away = keep, nil
	r.open()
	r.mustRead("a", []byte("a"))
}

// A hundred starts in a row leave a store that starts, and a log that does not
// carry itself along.
func TestManyStartsInARow(t *testing.T) {
	r := newRig(t)
	r.put("a", random(1, 100_000))
	starts := 100
	if testing.Short() {
		starts = 20
	}
	for i := range starts {
		r.close()
		if i%7 == 3 {
			r.engine = memkv.New(memkv.Options{})
		}
		r.open()
	}
	r.mustRead("a", random(1, 100_000))
	u, err := r.st.Usage(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	if u.LiveBytes > 110_000 || u.DeadBytes > 110_000 {
		t.Errorf("after %d starts %d bytes are live and %d dead; one object of 100,000 was stored", starts, u.LiveBytes, u.DeadBytes)
	}
}

// A node that fails at once leaves a pack of full width nobody to take its place;
// those that are still at work on their shards must not count as lagging for it.
func TestFailingNodeRefusesNobody(t *testing.T) {
	r := newRig(t)
	r.close()
	r.wrap = func(name string, n node.Store) node.Store {
		if name == "n03" {
			return &faulty{Store: n, put: func(node.Shard) error { return node.ErrUnavailable }}
		}
		return &faulty{Store: n, put: func(node.Shard) error { time.Sleep(50 * time.Millisecond); return nil }}
	}
	r.open()
	time.Sleep(retryAfter + 100*time.Millisecond) // n03 is asked again
	done := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			select {
			case <-done:
				return
			case <-time.After(time.Millisecond):
			}
			if err := r.st.writable(); err != nil {
				t.Errorf("beside a pack that one node did not take: %v", err)
				return
			}
		}
	})
	r.put("big", random(1, 1<<20))
	close(done)
	wg.Wait()
}

// forgetful is a node that takes shards of repairs and keeps none of them.
type forgetful struct{ node.Store }

func (f *forgetful) Put(ctx context.Context, by node.Authority, why node.Purpose, s node.Shard) (id.Instance, error) {
	if why == node.ForRepair {
		return 4711, nil
	}
	return f.Store.Put(ctx, by, why, s)
}

// A shard that was made anew counts when it was read back, not when the node said
// that it is durable (H33).
func TestRepairCountsWhatItHasReadBack(t *testing.T) {
	r := newRig(t)
	big := random(7, 20<<20)
	r.put("big", big)
	r.close()
	r.wipe("n01")
	r.open()
	if _, err := disk.Format(r.fs["n01"], disk.Config{Cluster: r.cluster}); err != nil {
		t.Fatal(err)
	}
	n, err := disk.Open(r.fs["n01"], disk.Config{Cluster: r.cluster})
	if err != nil {
		t.Fatal(err)
	}
	r.nodes["n01"] = n
	if err := r.st.ReplaceNode(context.Background(), "n01", &forgetful{n}); err != nil {
		t.Fatal(err)
	}
	got, err := r.st.Repair(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	st, err := r.st.Status(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	if got.Short == 0 || st.PacksShort == 0 {
		t.Errorf("repaired %+v, %d packs are short; the only node that is free for most of them keeps nothing", got, st.PacksShort)
	}
	claimed := 0
	if err := r.st.index.View(func(rd index.Reader) error {
		return rd.EachPack(func(p id.Pack, row index.PackRow) error {
			for _, place := range row.Shards {
				if place.Node != r.st.members.Load().byName["n01"].info.ID {
					continue
				}
				if place.Instance == 4711 {
					claimed++
				}
			}
			return nil
		})
	}); err != nil {
		t.Fatal(err)
	}
	if claimed > 0 {
		t.Errorf("%d shards are said to lie on a node that kept none", claimed)
	}
	r.mustRead("big", big)
}
