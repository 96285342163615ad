package store

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"cairn/id"
	"cairn/index"
	"cairn/index/kv/memkv"
	"cairn/node"
	"cairn/pack"
	"cairn/record"
)

func (r *rig) snapshot() SnapshotInfo {
	r.t.Helper()
	info, err := r.st.Snapshot(context.Background())
	if err != nil {
		r.t.Fatal(err)
	}
	return info
}

func (r *rig) export() []byte {
	r.t.Helper()
	var b bytes.Buffer
	if err := r.st.ExportIndex(context.Background(), &b); err != nil {
		r.t.Fatal(err)
	}
	return b.Bytes()
}

// loads counts what starts are told of loading and replaying.
type loads struct{ loaded, replayed atomic.Int64 }

func (l *loads) change(c *Config) {
	c.Progress = func(what string, done, of uint64) {
		switch what {
		case "load":
			l.loaded.Add(1)
		case "replay":
			l.replayed.Add(1)
		}
	}
}

func (r *rig) loseIndex() { r.engine = memkv.New(memkv.Options{}) }

// puts many small objects one after another, each a log pack of its own.
func (r *rig) puts(prefix string, n int) map[string][]byte {
	r.t.Helper()
	out := map[string][]byte{}
	for i := range n {
		key := fmt.Sprintf("%s/%04d", prefix, i)
		out[key] = random(uint64(i), 100+i)
		r.put(key, out[key])
	}
	return out
}

// A lost index is loaded from the newest snapshot, and equals the one that the
// whole log gives; what was logged behind the snapshot is there too, with two nodes
// lost as well, and after many starts.
func TestLostIndexComesFromASnapshot(t *testing.T) {
	r := newRig(t)
	var l loads
	r.change = l.change
	objects := r.puts("a", 60)
	objects["big"] = random(9, 9<<20)
	r.put("big", objects["big"])
	first := r.snapshot()
	for key, b := range r.puts("b", 10) {
		objects[key] = b
	}
	second := r.snapshot()
	if second.Number <= first.Number || first.Packs != 2 || first.Rows < 61 || first.Short != 0 {
		t.Fatalf("snapshots %+v, %+v", first, second)
	}
	for key, b := range r.puts("c", 10) {
		objects[key] = b
	}
	if _, err := r.st.Delete(context.Background(), "main", "a/0003", Conditions{}); err != nil {
		t.Fatal(err)
	}
	delete(objects, "a/0003")
	check := func(name string, most int64) {
		t.Helper()
		for key, want := range objects {
			r.mustRead(key, want)
		}
		if _, err := r.read("a/0003"); !errors.Is(err, ErrNoObject) {
			t.Errorf("%s: a deleted object: %v", name, err)
		}
		if n := l.replayed.Swap(0); n > most {
			t.Errorf("%s: %d log packs were replayed, want at most %d", name, n, most)
		}
		if _, err := r.st.CheckIndex(context.Background()); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	r.close()
	r.loseIndex()
	r.open()
	check("index lost", 20)
	loaded := r.export()
	r.close()

	// The same log, replayed from its beginning.
	whole := func(c *Config) { l.change(c); c.WholeLog = true }
	r.loseIndex()
	r.change = whole
	r.open()
	if n := l.replayed.Swap(0); n < 80 {
		t.Errorf("%d log packs were replayed of the whole log", n)
	}
	// One more begin pack, the same rows otherwise: a start later, from the snapshot.
	replayed := r.export()
	r.close()
	if bytes.Equal(loaded, replayed) {
		t.Error("two starts have the same index")
	}
	r.change = l.change
	for range 3 {
		r.open()
		r.close()
	}
	r.loseIndex()
	r.wipe("n01")
	r.wipe("n04")
	r.open()
	check("index and two nodes lost", 20)
}

// A snapshot's record that is the tail, which the index has applied, is named by
// the begin packs of the next starts: whether they carry it or not.
func TestRecordInTheTailIsNamedByTheNextStart(t *testing.T) {
	for _, away := range []string{"", "n02"} {
		r := newRig(t)
		r.puts("a", 20)
		want := r.snapshot().Number
		for range 2 {
			r.close()
			r.away = map[string]bool{away: true}
			r.open()
		}
		r.close()
		r.away = nil
		r.loseIndex()
		r.open()
		if got := r.st.loadedFrom; got != want {
			t.Errorf("away %q: the index came from snapshot %d, want %d", away, got, want)
		}
	}
}

// The index that a snapshot gives equals, byte for byte, the one that the whole
// log gives.
func TestSnapshotAndLogAgree(t *testing.T) {
	r := newRig(t)
	r.puts("a", 30)
	r.put("big", random(1, 6<<20))
	r.snapshot()
	r.puts("b", 5)
	r.puts("a", 5)
	r.close()
	exports := [2][]byte{}
	for i := range exports {
		// On copies of the same nodes, so that both starts write the same begin pack's
		// records; its ID and epoch differ only by what is random.
		r.loseIndex()
		r.change = func(c *Config) { c.WholeLog = i == 1 }
		engine := r.survey()
		exports[i] = engine
	}
	if !bytes.Equal(exports[0], exports[1]) {
		t.Error("the rows from the snapshot and from the whole log differ")
	}
}

// survey brings an empty index up to the log, changes nothing, and exports it.
func (r *rig) survey() []byte {
	r.t.Helper()
	stores := r.stores()
	cfg := Config{Cluster: r.cluster, Nodes: stores, Keyring: r.ring, Engine: memkv.New(memkv.Options{}), Log: r.log, ListWindow: 7}
	r.change(&cfg)
	s, err := newStore(cfg)
	if err != nil {
		r.t.Fatal(err)
	}
	defer r.closeNodes()
	defer s.index.Close()
	tail, held, err := s.survey(context.Background())
	if err != nil {
		r.t.Fatal(err)
	}
	defer tail.pack.Release()
	if err := s.replay(context.Background(), held); err != nil {
		r.t.Fatal(err)
	}
	var b bytes.Buffer
	if err := s.ExportIndex(context.Background(), &b); err != nil {
		r.t.Fatal(err)
	}
	return b.Bytes()
}

// Two snapshots are kept. The pieces of a third go, from the index and from the
// nodes; so do those of a job that was cut short.
func TestOldSnapshotsGo(t *testing.T) {
	r := newRig(t)
	r.puts("a", 5)
	var packs []int
	for range 5 {
		r.snapshot()
		packs = append(packs, r.piecesOnNodes())
	}
	if packs[0] != 12 || packs[4] != 24 {
		t.Errorf("shards of snapshots on the nodes, after each: %v, want 12 after the first, 24 after the last", packs)
	}
	var kept []index.SnapshotRow
	pieces := 0
	if err := r.st.index.View(func(rd index.Reader) (err error) {
		if kept, err = rd.Snapshots(); err != nil {
			return err
		}
		return rd.EachPiece(func(index.Piece) error { pieces++; return nil })
	}); err != nil {
		t.Fatal(err)
	}
	if len(kept) != 2 || pieces != 4 {
		t.Errorf("%d snapshots of %d pieces are kept, want 2 of 4", len(kept), pieces)
	}

	// Writes cease to be possible in the middle of a job.
	ctx, cancel := context.WithCancel(context.Background())
	j := &snapshotJob{s: r.st, ctx: ctx}
	var err error
	if j.realm, err = r.st.realm(id.Main); err != nil {
		t.Fatal(err)
	}
	j.number, j.plain = r.st.writer.head.seq, random(1, 1000)
	if err := errors.Join(j.seal(), j.flush()); err != nil {
		t.Fatal(err)
	}
	cancel()
	if n := r.piecesOnNodes(); n != 30 {
		t.Fatalf("%d shards of snapshots, want 30", n)
	}
	// While a job runs they may be its own: what a start clears away waits for it.
	r.st.snapshotting <- struct{}{}
	begun, stop := context.WithTimeout(context.Background(), 200*time.Millisecond)
	r.st.snapshotLoop(begun)
	stop()
	<-r.st.snapshotting
	if n := r.piecesOnNodes(); n != 30 {
		t.Fatalf("beside a job that runs: %d shards of snapshots, want 30", n)
	}
	r.close()
	r.open() // clears them away in the background
	for r.piecesOnNodes() != 24 {
		if err := r.st.clearPieces(context.Background()); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := r.st.CheckIndex(context.Background()); err != nil {
		t.Error(err)
	}
}

// piecesOnNodes counts the shards of snapshots that the nodes list.
func (r *rig) piecesOnNodes() (n int) {
	r.t.Helper()
	for _, st := range r.nodes {
		var after node.Key
		for {
			list, err := st.List(context.Background(), after, 1000)
			if err != nil {
				r.t.Fatal(err)
			}
			if len(list) == 0 {
				break
			}
			for _, x := range list {
				head := make([]byte, pack.HeaderSize)
				if err := st.Read(context.Background(), x.Key, 0, head); errors.Is(err, node.ErrNotFound) {
					continue // deleted, and kept by the node for its keep time
				} else if err != nil {
					r.t.Fatal(err)
				}
				if h, err := pack.ParseHeader(head); err == nil && h.Kind == pack.Snapshot {
					n++
				}
			}
			after = list[len(list)-1].Key
		}
	}
	return n
}

// A newest snapshot that is lost is stepped over; with both lost the whole log is
// replayed. While nodes are away with which it could be read, the start waits.
func TestSnapshotsThatCannotBeRead(t *testing.T) {
	r := newRig(t)
	var l loads
	r.change = l.change
	objects := r.puts("a", 40)
	r.snapshot()
	objects = merge(objects, r.puts("b", 20))
	r.snapshot()
	objects = merge(objects, r.puts("c", 3))
	var kept []index.SnapshotRow
	if err := r.st.index.View(func(rd index.Reader) (err error) { kept, err = rd.Snapshots(); return err }); err != nil {
		t.Fatal(err)
	}
	r.close()
	for i, test := range []struct {
		lost     []id.Pack
		replayed [2]int64 // least, most
	}{
		{[]id.Pack{kept[0].Root.Pack}, [2]int64{24, 40}},
		{[]id.Pack{kept[0].Root.Pack, kept[1].Root.Pack}, [2]int64{60, 90}},
	} {
		// m+1 shards of the pack read as damaged.
		r.wrap = func(name string, n node.Store) node.Store {
			if name > "n03" {
				return n
			}
			return &deaf{n, test.lost, node.ErrDamaged}
		}
		r.loseIndex()
		r.open()
		for key, want := range objects {
			r.mustRead(key, want)
		}
		if n := l.replayed.Swap(0); n < test.replayed[0] || n > test.replayed[1] {
			t.Errorf("%d: %d log packs were replayed, want %v", i, n, test.replayed)
		}
		r.close()
	}
	r.wrap = func(name string, n node.Store) node.Store {
		if name > "n03" {
			return n
		}
		return &deaf{n, []id.Pack{kept[0].Root.Pack}, node.ErrUnavailable}
	}
	r.loseIndex()
	if err := r.tryOpen(); !errors.Is(err, ErrUnavailable) || !strings.Contains(err.Error(), "snapshot") {
		t.Errorf("with three nodes that cannot be asked for the snapshot: %v, want %v", err, ErrUnavailable)
	}
	// One node that cannot be asked has one shard at the most.
	r.wrap = func(name string, n node.Store) node.Store {
		switch {
		case name <= "n03":
			return &deaf{n, []id.Pack{kept[0].Root.Pack}, node.ErrDamaged}
		case name == "n04":
			return &deaf{n, []id.Pack{kept[0].Root.Pack}, node.ErrUnavailable}
		}
		return n
	}
	if got := r.loadedFrom(); got != kept[1].Number {
		t.Errorf("with three shards rotten and one that cannot be asked for: the index came from snapshot %d, want %d", got, kept[1].Number)
	}
	r.wrap = nil
	r.open()
	for key, want := range objects {
		r.mustRead(key, want)
	}
}

// A newest snapshot that is lost is not the one that stays beside the next: the one
// before it does, and both can be loaded.
func TestSnapshotBesideOneThatIsLost(t *testing.T) {
	r := newRig(t)
	r.puts("a", 10)
	first := r.snapshot()
	r.puts("b", 5)
	r.snapshot()
	snapshots := func() (kept []index.SnapshotRow) {
		t.Helper()
		if err := r.st.index.View(func(rd index.Reader) (err error) { kept, err = rd.Snapshots(); return err }); err != nil {
			t.Fatal(err)
		}
		return kept
	}
	lost := []id.Pack{snapshots()[0].Root.Pack}
	r.close()
	r.wrap = func(name string, n node.Store) node.Store {
		if name > "n03" {
			return n
		}
		return &deaf{n, lost, node.ErrDamaged}
	}
	r.open()
	third := r.snapshot()
	kept := snapshots()
	if len(kept) != 2 || kept[0].Number != third.Number || kept[1].Number != first.Number {
		t.Fatalf("kept are %+v, want %d and %d", kept, third.Number, first.Number)
	}
	if n := r.piecesOnNodes(); n != 24 {
		t.Errorf("%d shards of snapshots on the nodes, want 24", n)
	}
	for _, want := range []uint64{third.Number, first.Number} {
		r.close()
		r.loseIndex()
		r.open()
		if got := r.st.loadedFrom; got != want {
			t.Errorf("the index came from snapshot %d, want %d", got, want)
		}
		lost = append(lost, kept[0].Root.Pack)
	}
}

// stuck is a node whose deletes do not return while its channel is open.
type stuck struct {
	node.Store
	hold chan struct{}
}

func (n *stuck) Delete(ctx context.Context, a node.Authority, k node.Key, i id.Instance) error {
	<-n.hold
	return n.Store.Delete(ctx, a, k, i)
}

// A disk that hangs when it is told to delete an old snapshot's pieces hangs neither
// the next snapshots nor a stop.
func TestHungDeleteHangsNoSnapshot(t *testing.T) {
	r := newRig(t)
	r.close()
	hold := make(chan struct{})
	defer close(hold)
	r.change = func(c *Config) { c.Patience = 300 * time.Millisecond }
	r.wrap = func(name string, n node.Store) node.Store {
		if name == "n03" {
			return &stuck{n, hold}
		}
		return n
	}
	r.open()
	for range 5 {
		r.puts("a", 1)
		done := make(chan error, 1)
		go func() { _, err := r.st.Snapshot(context.Background()); done <- err }()
		select {
		case err := <-done:
			if err != nil {
				t.Fatal(err)
			}
		case <-time.After(30 * time.Second):
			t.Fatal("a snapshot hangs")
		}
	}
}

func merge(a, b map[string][]byte) map[string][]byte {
	for k, v := range b {
		a[k] = v
	}
	return a
}

// deaf is a node that fails to read some packs.
type deaf struct {
	node.Store
	packs []id.Pack
	err   error
}

func (u *deaf) Read(ctx context.Context, k node.Key, off int64, dst []byte) error {
	if slices.Contains(u.packs, k.Pack) {
		return fmt.Errorf("read: %w", u.err)
	}
	return u.Store.Read(ctx, k, off, dst)
}

// awayHolder keeps a node with a shard of the newest log pack away from the next
// start: its begin pack carries what is not whole.
func (r *rig) awayHolder() {
	r.t.Helper()
	for _, m := range r.genesis.Members {
		if m.ID == r.st.writer.head.places[0].Node {
			r.away = map[string]bool{m.Name: true}
		}
	}
}

// A log pack that does not open, far behind the tail, is taken from the begin pack
// that carries it: the chain is then walked once more, from the tail on.
func TestCarriedLinkFarBehindTheTail(t *testing.T) {
	r := newRig(t)
	r.idle() // a repair's record would come between
	objects := r.puts("a", 3)
	lost := []id.Pack{r.st.writer.head.pack}
	r.awayHolder()
	r.close()
	r.open()
	objects = merge(objects, r.puts("b", 30)) // several windows of the list
	r.close()
	r.away = nil
	r.wrap = func(_ string, n node.Store) node.Store { return &deaf{n, lost, node.ErrDamaged} }
	r.loseIndex()
	r.open()
	for key, want := range objects {
		r.mustRead(key, want)
	}
}

// The log pack with the record of a snapshot is gone, or does not open; the begin
// pack that carries it is gone too, or not: the snapshot is found by the next one.
func TestRecordThatIsCarriedIsFound(t *testing.T) {
	r := newRig(t)
	r.idle() // a repair's record would come between
	r.puts("a", 20)
	want := r.snapshot().Number
	var packs []id.Pack
	for range 2 {
		packs = append(packs, r.st.writer.head.pack)
		r.awayHolder()
		r.close()
		r.open()
	}
	r.puts("b", 3)
	r.close()
	r.away = nil
	for name, wrap := range map[string]func(node.Store) node.Store{
		"does not open":          func(n node.Store) node.Store { return &deaf{n, packs[:1], node.ErrDamaged} },
		"is gone":                func(n node.Store) node.Store { return &hides{n, packs[:1]} },
		"is gone, with its heir": func(n node.Store) node.Store { return &hides{n, packs} },
	} {
		r.wrap = func(_ string, n node.Store) node.Store { return wrap(n) }
		if got := r.loadedFrom(); got != want {
			t.Errorf("the record's log pack %s: the index came from snapshot %d, want %d", name, got, want)
		}
	}
}

// loadedFrom brings an empty index up to the log and changes nothing; it returns the
// number of the snapshot that was loaded.
func (r *rig) loadedFrom() uint64 {
	r.t.Helper()
	stores := r.stores()
	defer r.closeNodes()
	for name, n := range stores {
		stores[name] = r.wrap(name, n)
	}
	return r.rebuild(stores, 0).Snapshot
}

// rebuild makes an index anew, up to a sequence.
func (r *rig) rebuild(stores map[string]node.Store, to uint64) Rebuilt {
	r.t.Helper()
	out, err := Rebuild(context.Background(), Config{Cluster: r.cluster, Nodes: stores, Keyring: r.ring, Engine: memkv.New(memkv.Options{}), Log: r.log, ListWindow: 7}, to)
	if err != nil {
		r.t.Fatal(err)
	}
	return out
}

// An index of the past stands at the sequence that was asked for, the newest ones
// too; without a shard of the tail these are left out, and that is said.
func TestRebuildOfThePast(t *testing.T) {
	r := newRig(t)
	r.idle()
	r.puts("a", 10)
	r.snapshot()
	r.puts("b", 3)
	r.close()
	r.open() // the tail is a begin pack
	tail := r.st.writer.head.seq
	r.awayHolder()
	r.close()
	stores := r.stores()
	defer r.closeNodes()
	for to := uint64(1); to <= tail; to++ {
		if out := r.rebuild(stores, to); out.Sequence != to || out.Tail != tail || out.Held {
			t.Errorf("to %d of %d: %+v", to, tail, out)
		}
	}
	for name := range r.away {
		delete(stores, name)
	}
	for to := tail - 3; to <= tail; to++ {
		want := Rebuilt{Sequence: min(to, tail-2), Held: to > tail-2}
		if out := r.rebuild(stores, to); out.Sequence != want.Sequence || out.Held != want.Held {
			t.Errorf("to %d of %d, a shard of the tail is missing: %+v, want %+v", to, tail, out, want)
		}
	}
}

// hides is a node that does not list some log packs.
type hides struct {
	node.Store
	packs []id.Pack
}

func (h *hides) ListLog(ctx context.Context, from uint64, after *node.Found, limit int) ([]node.Found, error) {
	for {
		found, err := h.Store.ListLog(ctx, from, after, limit)
		if err != nil || len(found) == 0 {
			return found, err
		}
		last := found[len(found)-1]
		if found = slices.DeleteFunc(found, func(f node.Found) bool { return slices.Contains(h.packs, f.Info.Key.Pack) }); len(found) > 0 {
			return found, nil
		}
		after = &last
	}
}

// A rebuild that is cut short at any point is gone on with by the next start.
func TestRebuildIsResumed(t *testing.T) {
	r := newRig(t)
	objects := r.puts("a", 200)
	r.snapshot()
	objects = merge(objects, r.puts("b", 30))
	r.close()
	r.loseIndex()
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 1))
	fails := 0
	for n := 1; ; n += 3 {
		r.engine.FailCommit(n, n%2 == 0)
		err := r.tryOpen()
		if err == nil {
			break
		}
		fails++
		if n%3 == 0 {
			r.engine = r.engine.Crash(rng) // what was not synced is gone in part
		}
	}
	if fails < 4 {
		t.Errorf("%d starts failed: that proves little", fails)
	}
	for key, want := range objects {
		r.mustRead(key, want)
	}
	if _, err := r.st.CheckIndex(context.Background()); err != nil {
		t.Error(err)
	}
	if r.st.index.Rebuilding() {
		t.Error("the rebuild has not ended")
	}
}

// A log that names what is not there (an index of the past had lost rows) is
// rebuilt from a snapshot all the same, with right counts.
func TestMismatchBehindASnapshot(t *testing.T) {
	r := newRig(t)
	r.puts("a", 5)
	r.snapshot()
	// A purge of a version that there never was, as a rotten index would log it.
	r.logUnapplied(&record.Purge{In: id.Main, Bucket: 1, Key: []byte("a/0001"), Drops: []record.Dropped{{Version: id.Version{Seq: 1, Pos: 77}}}})
	r.close()
	// Strictly it cannot be applied; an index made anew passes it over.
	if err := r.tryOpen(); !errors.Is(err, index.ErrDivergent) {
		t.Fatalf("the old index took it: %v", err)
	}
	if out := r.rebuild(r.stores(), 0); out.Mismatches != 1 || out.Held {
		t.Errorf("a rebuild: %+v, want one mismatch", out)
	}
	r.closeNodes()
	for _, cut := range []bool{true, false} {
		r.loseIndex()
		if cut {
			r.engine.FailCommit(6, true)
			if err := r.tryOpen(); err == nil {
				t.Fatal("the rebuild was not cut short")
			}
		}
		r.open()
		if _, err := r.st.CheckIndex(context.Background()); err != nil {
			t.Error(err)
		}
		r.mustRead("a/0001", random(1, 101))
		r.close()
	}
}

// Snapshots are taken by themselves when enough was logged.
func TestSnapshotWhenDue(t *testing.T) {
	r := newRig(t)
	r.close()
	r.change = func(c *Config) { c.SnapshotEvery = 20_000 }
	r.open()
	r.puts("a", 100)
	for {
		var kept []index.SnapshotRow
		if err := r.st.index.View(func(rd index.Reader) (err error) { kept, err = rd.Snapshots(); return err }); err != nil {
			t.Fatal(err)
		}
		if len(kept) > 0 {
			break
		}
		r.puts("b", 1)
	}
	// Without writes it ends: what a snapshot logs itself makes no other due.
	for range 1000 {
		due, err := r.st.snapshotDue()
		if err != nil {
			t.Fatal(err)
		}
		if !due {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Error("there is always another one due")
}

// Rows that the engine has lost in silence: no snapshot is taken of what is left,
// and nothing is removed from the nodes because of what is not (H11).
func TestDamagedIndexTakesNothingAway(t *testing.T) {
	// The key of a row as the engine has it: what kv puts before it, log, table.
	table := func(e *memkv.Engine, table byte) (keys [][]byte) {
		for _, k := range e.Keys() {
			if len(k) > 2 && bytes.Equal(k[1:3], []byte{0, table}) {
				keys = append(keys, k)
			}
		}
		return keys
	}
	for name, lost := range map[string]byte{"the snapshots' own rows": 12, "pieces": 13, "a chunk": 8, "an object": 7} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t)
			objects := r.puts("a", 5)
			r.snapshot()
			r.snapshot()
			shards := r.piecesOnNodes()
			keys := table(r.engine, lost)
			if len(keys) == 0 {
				t.Fatalf("no row of table %d among %x", lost, r.engine.Keys())
			}
			for _, k := range keys {
				r.engine.Drop(k)
			}
			if err := r.st.clearPieces(context.Background()); lost == 12 && !errors.Is(err, index.ErrDamaged) {
				t.Errorf("pieces were dropped on the word of what is left: %v", err)
			}
			if info, err := r.st.Snapshot(context.Background()); err == nil {
				t.Errorf("a snapshot of a damaged index: %+v", info)
			}
			if r.st.Failure() == nil {
				t.Error("the store goes on")
			}
			if n := r.piecesOnNodes(); n != shards {
				t.Errorf("%d shards of snapshots on the nodes, %d before", n, shards)
			}
			r.close()
			r.loseIndex()
			r.open()
			for key, want := range objects {
				r.mustRead(key, want)
			}
		})
	}
}

// logUnapplied puts a record into the log that the index has not applied. The store
// stops over it.
func (r *rig) logUnapplied(rec record.Record) {
	r.t.Helper()
	err := r.st.writer.submit(context.Background(), &submission{decide: func(d *decision) (func() error, error) {
		return func() error {
			b, err := record.Append(nil, rec)
			d.records, d.encoded = append(d.records, rec), append(d.encoded, b)
			return err
		}, nil
	}})
	if err == nil {
		r.t.Fatal("a record that was logged and not applied was acknowledged")
	}
	select {
	case <-r.st.Failed(): // which may come a moment after the answer
	case <-time.After(30 * time.Second):
		r.t.Fatalf("the store goes on behind a record that was logged and not applied: %v", err)
	}
}

// listed counts how often a node is asked for a list of log packs.
type listed struct {
	node.Store
	n *atomic.Int64
}

func (l *listed) ListLog(ctx context.Context, from uint64, after *node.Found, limit int) ([]node.Found, error) {
	if limit > 1 { // one is asked for by whoever looks for the highest sequence
		l.n.Add(1)
	}
	return l.Store.ListLog(ctx, from, after, limit)
}

// A log of many windows is listed window by window, backwards and forwards, and not
// a window for each log pack: a long one would never be replayed.
func TestRebuildListsTheLogTwice(t *testing.T) {
	const puts, window = 140, 7
	r := newRig(t)
	r.puts("a", puts)
	r.close()
	stores := r.stores()
	defer r.closeNodes()
	counts := map[string]*atomic.Int64{}
	for name, n := range stores {
		counts[name] = new(atomic.Int64)
		stores[name] = &listed{n, counts[name]}
	}
	if got := r.rebuild(stores, 0); got.Sequence != got.Tail || got.Tail < puts {
		t.Fatalf("rebuilt: %+v", got)
	}
	for name, n := range counts {
		// Each window takes at most two pages here, the second one empty.
		if got, most := n.Load(), int64(2*(2*puts/window+6)); got > most {
			t.Errorf("%s was asked for %d lists of log packs, want at most %d", name, got, most)
		}
	}
}
