package store

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"cairn/id"
	"cairn/index"
	"cairn/node"
	"cairn/pack"
	"cairn/record"
)

// heldShard is a shard that answers on a node.
type heldShard struct {
	on   string
	info node.Info
}

// held lists the shards that answer on the nodes.
func (r *rig) held() (out []heldShard) {
	r.t.Helper()
	for name, n := range r.nodes {
		for after := (node.Key{}); ; {
			page, err := n.List(context.Background(), after, 1000)
			if err != nil {
				r.t.Fatal(err)
			}
			for _, info := range page {
				if info.Deleted.IsZero() {
					out = append(out, heldShard{name, info})
				}
			}
			if len(page) < 1000 {
				break
			}
			after = page[len(page)-1].Key
		}
	}
	return out
}

// unnamed lists those of them that no row of the index names there.
func (r *rig) unnamed() (out []heldShard) {
	r.t.Helper()
	set, all := r.st.members.Load(), r.held()
	if err := r.st.view(func(rd index.Reader) error {
		for _, h := range all {
			row, err := rd.Pack(h.info.Key.Pack)
			if err != nil && !errors.Is(err, index.ErrNotFound) {
				return err
			}
			if err == nil && len(row.Shards) == 0 {
				row.Shards = r.st.recall(h.info.Key.Pack)
			}
			if err != nil || placeOn(row.Shards, set.byName[h.on].info.ID, h.info.Key.Index) == nil {
				out = append(out, h)
			}
		}
		return nil
	}); err != nil {
		r.t.Fatal(err)
	}
	return out
}

// missing lists the shards that a row names and its node does not have.
func (r *rig) missing() (out []record.Place) {
	r.t.Helper()
	at := map[id.Node]map[node.Key]bool{}
	for _, h := range r.held() {
		n := r.st.members.Load().byName[h.on].info.ID
		if at[n] == nil {
			at[n] = map[node.Key]bool{}
		}
		at[n][h.info.Key] = true
	}
	if err := r.st.view(func(rd index.Reader) error {
		return rd.EachPack(func(p id.Pack, row index.PackRow) error {
			for _, x := range row.Shards {
				if !at[x.Node][node.Key{Pack: p, Index: x.Index}] {
					out = append(out, x)
				}
			}
			return nil
		})
	}); err != nil {
		r.t.Fatal(err)
	}
	return out
}

// failing is what the nodes do to puts: every one that it says fails.
type failing struct {
	mu   sync.Mutex
	fail func(name string, kind pack.Kind) bool
}

func (f *failing) set(fail func(name string, kind pack.Kind) bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.fail = fail
}

func (f *failing) wrap(name string, n node.Store) node.Store {
	return &faulty{Store: n, put: func(s node.Shard) error {
		h, err := pack.ParseHeader(s.Head)
		if err != nil {
			return err
		}
		f.mu.Lock()
		defer f.mu.Unlock()
		if f.fail != nil && f.fail(name, h.Kind) {
			return node.ErrUnavailable
		}
		return nil
	}}
}

// copyTo puts a shard as one node holds it onto another one.
func (r *rig) copyTo(p id.Pack, place record.Place, to string) {
	r.t.Helper()
	_, _, b := r.readHeld(p, place)
	r.keep(to, b)
}

// keep puts a shard onto a node behind the store's back.
func (r *rig) keep(on string, b []byte) id.Instance {
	r.t.Helper()
	inst, err := r.nodes[on].Put(context.Background(), r.st.auth, node.ForRepair, node.Shard{Head: b[:pack.HeaderSize], Body: b[pack.HeaderSize:]})
	if err != nil {
		r.t.Fatal(err)
	}
	return inst
}

// freeFor is a node on which a pack has no shard.
func (r *rig) freeFor(places []record.Place) string {
	r.t.Helper()
	for _, m := range r.st.members.Load().all {
		if !slices.ContainsFunc(places, func(x record.Place) bool { return x.Node == m.info.ID }) {
			return m.info.Name
		}
	}
	r.t.Fatal("every node has a shard of it")
	return ""
}

// attempts stores an object in several chunks of its own pack, and a small one in the
// log; of each the first attempt fails on some nodes and leaves shards on the others.
func (r *rig) attempts(f *failing, name string) map[string][]byte {
	r.t.Helper()
	out := map[string][]byte{name + " wide": random(uint64(len(name)), 1<<20), name + " small": []byte(name)}
	for _, kind := range []pack.Kind{pack.Data, pack.Log} {
		key := name + map[pack.Kind]string{pack.Data: " wide", pack.Log: " small"}[kind]
		failed := map[string]bool{}
		f.set(func(on string, k pack.Kind) bool {
			first := k == kind && !failed[on] && len(failed) < map[pack.Kind]int{pack.Data: 2, pack.Log: 4}[kind]
			failed[on] = failed[on] || first
			return first
		})
		r.put(key, out[key])
		f.set(nil)
		time.Sleep(retryAfter + 10*time.Millisecond) // until the nodes are asked again
	}
	return out
}

// TestScrubRemovesOrphans: what failed attempts have left of data and of the log, of this
// writer and of one before, goes; so do a copy of a shard that lies elsewhere, and the
// shards of a pack that was dropped. A shard of another store is left alone. A dry run
// says the same and changes nothing (H28, H48).
func TestScrubRemovesOrphans(t *testing.T) {
	t.Parallel()
	var f failing
	r := newRig(t)
	r.wrap = f.wrap
	r.idle()
	objects := r.attempts(&f, "before")
	retired := r.unnamed()
	r.close()
	r.open()
	for key, b := range r.attempts(&f, "now") {
		objects[key] = b
	}
	r.put("behind", []byte("x"))
	kinds := map[pack.Kind]int{}
	var bytesLeft uint64
	for _, h := range r.unnamed() {
		kinds[h.info.Kind]++
		bytesLeft += uint64(h.info.Size)
	}
	orphans := kinds[pack.Data] + kinds[pack.Log]
	if kinds[pack.Data] < 6 || kinds[pack.Log] < 4 || len(retired) < 5 || orphans <= len(retired) {
		t.Fatalf("failed attempts left %v, those of the writer before %d", kinds, len(retired))
	}

	logs := r.placesOf(pack.Log)
	var p id.Pack
	for p = range logs {
		if len(logs[p]) == 3 {
			break
		}
	}
	r.copyTo(p, logs[p][0], r.freeFor(logs[p]))
	n, _, b := r.readHeld(p, logs[p][1])
	r.remove(p, logs[p][1])
	if inst := r.keep(r.st.members.Load().byID[n.ID()].info.Name, b); inst == logs[p][1].Instance {
		t.Fatal("a shard that was put again is no other instance")
	}
	other := newRig(t)
	other.put("theirs", []byte("theirs"))
	other.put("more", []byte("x"))
	for q, places := range other.placesOf(pack.Log) {
		_, _, b := other.readHeld(q, places[0])
		r.keep("n04", b)
		break
	}

	before := r.held()
	for _, deep := range []bool{false, true} {
		dry, err := r.scrub(JobOptions{Rate: fast.Rate, Deep: deep, DryRun: true})
		if err != nil || !dry.Complete || !dry.DryRun || dry.Orphans != orphans || dry.OrphanBytes != bytesLeft || dry.Stale != 1 || dry.Foreign != 1 || dry.Renewed != 1 || dry.Undecided != 0 || dry.StaleBytes == 0 || dry.ForeignBytes == 0 {
			t.Errorf("dry run, %d orphans of %d bytes: %+v, %v", orphans, bytesLeft, dry, err)
		}
	}
	if len(r.st.ScrubPasses()) > 0 || len(r.held()) != len(before) {
		t.Errorf("behind dry runs %d shards are held, before %d; passes %+v", len(r.held()), len(before), r.st.ScrubPasses())
	}
	res, err := r.scrub(fast)
	if err != nil || !res.Complete || res.Orphans != orphans || res.OrphanBytes != bytesLeft || res.Stale != 1 || res.Foreign != 1 || res.Renewed != 1 || res.Undecided != 0 || res.Damaged != 0 {
		t.Errorf("%d orphans of %d bytes: %+v, %v", orphans, bytesLeft, res, err)
	}
	if left := r.unnamed(); len(left) != 1 || left[0].on != "n04" {
		t.Errorf("left are %+v", left)
	}
	if lost := r.missing(); len(lost) > 0 {
		t.Errorf("gone are %+v", lost)
	}
	if err := r.nodes[retired[0].on].Undelete(t.Context(), r.st.auth, retired[0].info.Key, retired[0].info.Instance); err != nil {
		t.Errorf("what was removed cannot be brought back within its keep time: %v", err)
	}
	if res, err := r.scrub(fast); err != nil || res.Orphans != 1 || res.Stale != 0 || res.Foreign != 1 {
		t.Errorf("the next pass: %+v, %v", res, err)
	}
	for key, b := range objects {
		r.mustRead(key, b)
	}
	if rep := r.verified(); len(rep.Findings) > 0 {
		t.Errorf("verify finds %v", rep.Findings)
	}
}

// TestScrubRemovesRottenOrphans: what failed attempts have left goes also where its header
// is rotten: nobody can make anything of such a shard. One of a pack that has a row stays.
func TestScrubRemovesRottenOrphans(t *testing.T) {
	t.Parallel()
	var f failing
	r := newRig(t)
	r.wrap = f.wrap
	r.idle()
	objects := r.attempts(&f, "now")
	r.put("behind", []byte("x"))
	left := r.unnamed()
	for i, h := range left {
		if i%3 == 2 {
			continue
		}
		head := make([]byte, pack.HeaderSize)
		if err := r.nodes[h.on].Read(t.Context(), h.info.Key, 0, head); err != nil || !flipIn(t, r.fs[h.on], head) {
			t.Fatalf("the header of %v on %s: %v", h.info.Key, h.on, err)
		}
	}
	if len(left) < 5 {
		t.Fatalf("failed attempts left %+v", left)
	}
	dry, err := r.scrub(JobOptions{Rate: fast.Rate, DryRun: true})
	if err != nil || dry.Orphans != len(left) {
		t.Errorf("dry run, %d orphans: %+v, %v", len(left), dry, err)
	}
	res, err := r.scrub(fast)
	if err != nil || res.Orphans != len(left) || res.Undecided != 0 || res.Damaged != 0 {
		t.Errorf("%d orphans: %+v, %v", len(left), res, err)
	}
	if left := r.unnamed(); len(left) > 0 {
		t.Errorf("left are %+v", left)
	}
	if lost := r.missing(); len(lost) > 0 {
		t.Errorf("gone are %+v", lost)
	}
	for key, b := range objects {
		r.mustRead(key, b)
	}
}

// lister runs something before a node lists what it holds.
type lister struct {
	node.Store
	before func()
}

func (l *lister) List(ctx context.Context, after node.Key, limit int) ([]node.Info, error) {
	l.before()
	return l.Store.List(ctx, after, limit)
}

// TestScrubListsFirst: what becomes part of the store while a node is asked what it
// holds is in its list, and in the index that is looked up behind that (H28, W13).
func TestScrubListsFirst(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	objects, n := map[string][]byte{}, 0
	armed := false
	r.wrap = func(_ string, n2 node.Store) node.Store {
		return &lister{n2, func() {
			if !armed {
				return
			}
			n++
			key := fmt.Sprint("beside ", n)
			objects[key] = random(uint64(n), 300_000)
			r.put(key, objects[key])
		}}
	}
	r.idle()
	r.wide()
	armed = true
	res, err := r.scrub(fast)
	armed = false
	if err != nil || n < 6 || res.Orphans+res.Stale+res.Undecided != 0 {
		t.Errorf("beside %d puts: %+v, %v", n, res, err)
	}
	if lost := r.missing(); len(lost) > 0 {
		t.Fatalf("gone are %+v", lost)
	}
	for key, b := range objects {
		r.mustRead(key, b)
	}
}

// TestScrubLeavesWhatIsOnItsWay: shards of a pack of which the last one is still being
// written are named by no row, and are no orphans.
func TestScrubLeavesWhatIsOnItsWay(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	var hold atomic.Bool
	release, waits := make(chan struct{}), make(chan struct{}, 1)
	r.wrap = func(name string, n node.Store) node.Store {
		return &faulty{Store: n, put: func(s node.Shard) error {
			if h, err := pack.ParseHeader(s.Head); err == nil && h.Kind == pack.Data && name == "n03" && hold.CompareAndSwap(true, false) {
				waits <- struct{}{}
				<-release
			}
			return nil
		}}
	}
	r.idle()
	r.wide()
	hold.Store(true)
	b, done := random(3, 1<<20), make(chan error)
	go func() { done <- r.tryPut("slow", b) }()
	<-waits
	for len(r.unnamed()) < 5 {
		time.Sleep(time.Millisecond)
	}
	res, err := r.scrub(fast)
	if err != nil || res.Orphans+res.Stale != 0 || res.Undecided != 5 {
		t.Errorf("beside a pack of which five shards are there: %+v, %v", res, err)
	}
	close(release)
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	r.mustRead("slow", b)
	if lost := r.missing(); len(lost) > 0 {
		t.Errorf("gone are %+v", lost)
	}
	if res, err := r.scrub(fast); err != nil || res.Orphans+res.Undecided != 0 {
		t.Errorf("behind it: %+v, %v", res, err)
	}
}

// TestScrubWaitsForTheLog: a write of which nothing is known may be the log's tail at the
// next start. What it relies on is no orphan before a log pack has become durable behind
// it.
func TestScrubWaitsForTheLog(t *testing.T) {
	t.Parallel()
	var f failing
	r := newRig(t)
	r.wrap = f.wrap
	r.change = func(c *Config) { c.idle, c.Patience, c.Lag = true, 300*time.Millisecond, noDeadline }
	r.close()
	r.open()
	r.wide()
	// Whether the last attempt has reached two nodes when patience ends is a matter of luck.
	for try := uint64(0); ; try++ {
		f.set(func(name string, kind pack.Kind) bool { return kind == pack.Log && name > "n02" })
		key, b := fmt.Sprint("perhaps", try), random(5+try, 1<<20)
		if err := r.tryPut(key, b); !errors.Is(err, ErrUnknown) {
			t.Fatalf("a put whose log pack reaches two nodes: %v", err)
		}
		var on []heldShard
		for _, h := range r.unnamed() {
			if h.info.Kind == pack.Data {
				on = append(on, h)
			}
		}
		if len(on) < 6 {
			t.Fatalf("it left %+v", on)
		}
		if res, err := r.scrub(fast); res.Orphans != 0 || res.Undecided < len(on) {
			t.Errorf("while no log pack becomes durable: %+v, %v", res, err)
		}
		r.close()
		f.set(nil)
		r.open()
		if _, err := r.read(key); errors.Is(err, ErrNoObject) && try < 10 {
			continue
		}
		r.mustRead(key, b) // the start has taken it for the tail
		break
	}
	if lost := r.missing(); len(lost) > 0 {
		t.Errorf("gone are %+v", lost)
	}
}

// TestScrubKeepsTheLastCopy: a copy of a shard that lies elsewhere stays while any shard
// of its pack is not right where the index says, or could not be asked for.
func TestScrubKeepsTheLastCopy(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	var full atomic.Bool
	r.wrap = func(_ string, n node.Store) node.Store { return &noPuts{n, &full} }
	r.idle()
	r.wide()
	var p id.Pack
	var places []record.Place
	for q, x := range r.placesOf(pack.Log) {
		if p, places = q, x; len(x) == 3 {
			break
		}
	}
	to := r.freeFor(places)
	r.copyTo(p, places[1], to)
	r.remove(p, places[1])
	full.Store(true) // it cannot be made anew
	res, err := r.scrub(fast)
	if !errors.Is(err, ErrDamaged) || res.Left == 0 || res.Stale != 0 || res.Undecided != 1 {
		t.Errorf("of a pack that is short: %+v, %v", res, err)
	}
	full.Store(false)
	time.Sleep(retryAfter + 10*time.Millisecond)
	if res, err = r.scrub(fast); err != nil || res.Repaired == 0 || res.Stale != 1 {
		t.Errorf("of a pack that is made whole: %+v, %v", res, err)
	}
	if left := r.unnamed(); len(left) > 0 {
		t.Errorf("left are %+v", left)
	}
}

// noPuts is a node that takes no shards that were made anew, while it is full.
type noPuts struct {
	node.Store
	full *atomic.Bool
}

func (n *noPuts) Put(ctx context.Context, by node.Authority, why node.Purpose, s node.Shard) (id.Instance, error) {
	if why == node.ForRepair && n.full.Load() {
		return 0, node.ErrFull
	}
	return n.Store.Put(ctx, by, why, s)
}

// TestScrubsBesideFailingPuts: scrubs run one after the other beside clients, on nodes
// of which puts fail now and then and of which one is away for a while. Only orphans go,
// and in the end all of them have gone (H28).
func TestScrubsBesideFailingPuts(t *testing.T) {
	t.Parallel()
	var f failing
	r := newRig(t)
	r.wrap = f.wrap
	r.idle()
	objects := map[string][]byte{}
	var (
		mu      sync.Mutex
		removed atomic.Int64
	)
	load := func(round int, fail func(name string, kind pack.Kind) bool) {
		f.set(fail)
		stop := make(chan struct{})
		var clients sync.WaitGroup
		for c := range 3 {
			clients.Go(func() {
				for i := range 12 {
					key, b := fmt.Sprintf("%d.%d.%d", round, c, i), random(uint64(round*1000+c*100+i), 150_000)
					if r.tryPut(key, b) == nil {
						mu.Lock()
						objects[key] = b
						mu.Unlock()
					}
				}
			})
		}
		scrubs := sync.WaitGroup{}
		scrubs.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				res, _ := r.st.scrub(t.Context(), fast, func(uint64, uint64) {})
				removed.Add(int64(res.Orphans))
			}
		})
		clients.Wait()
		close(stop)
		scrubs.Wait()
		f.set(nil)
	}
	n := 0
	now := func(name string, _ pack.Kind) bool {
		n++
		return n%41 == 0
	}
	load(0, now)
	r.close()
	r.away = map[string]bool{"n04": true}
	r.open()
	load(1, now)
	r.close()
	r.away = nil
	r.open()
	load(2, nil)
	time.Sleep(retryAfter + 10*time.Millisecond)
	if rep, err := r.st.Repair(t.Context()); err != nil || rep.Short+rep.Lost > 0 {
		t.Fatalf("%+v, %v", rep, err)
	}
	res, err := r.scrub(fast)
	if err != nil || !res.Complete || res.Undecided != 0 {
		t.Errorf("%+v, %v", res, err)
	}
	removed.Add(int64(res.Orphans))
	if left := r.unnamed(); len(left) > 0 {
		t.Errorf("left are %d, the first %+v", len(left), left[0])
	}
	if lost := r.missing(); len(lost) > 0 {
		t.Errorf("gone are %+v", lost)
	}
	if len(objects) < 36 || removed.Load() == 0 {
		t.Errorf("%d puts were answered, and %d orphans removed", len(objects), removed.Load())
	}
	for key, b := range objects {
		if got, err := r.read(key); err != nil || !bytes.Equal(got, b) {
			t.Errorf("%s: %v", key, err)
		}
	}
	if rep := r.verified(); len(rep.Findings) > 0 {
		t.Errorf("verify finds %v", rep.Findings)
	}
}

// TestDamagedIndexMakesNoOrphans: a pack whose rows the index has lost in silence looks
// as if it were no part of the store. Nothing is removed on such an index's word (H11).
func TestDamagedIndexMakesNoOrphans(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	objects := r.wide()
	r.idle()
	gone := map[id.Pack]bool{}
	for p := range r.placesOf(pack.Data) {
		for _, k := range r.engine.Keys() {
			if bytes.Contains(k, p[:]) && len(k) > 2 && k[2] == 10 { // the row of the pack, not of what lies in it
				r.engine.Drop(k)
				gone[p] = true
			}
		}
	}
	before := r.held()
	if _, err := r.scrub(fast); !errors.Is(err, index.ErrDamaged) || len(gone) == 0 {
		t.Errorf("a scrub with an index that lacks %d packs: %v", len(gone), err)
	}
	if r.st.Failure() == nil {
		t.Error("the store goes on")
	}
	after := r.held()
	for _, h := range before {
		if !slices.Contains(after, h) {
			t.Errorf("gone is %+v", h)
		}
	}
	r.close()
	r.loseIndex()
	r.open()
	for key, b := range objects {
		r.mustRead(key, b)
	}
}

// dropping is a node that has a snapshot taken while a shard of a piece is read, or made
// anew, for the first time: the piece is dropped, and its shards are deleted.
type dropping struct {
	node.Store
	reads, puts *atomic.Pointer[id.Pack]
	drop        func()
}

func (d *dropping) when(at *atomic.Pointer[id.Pack], p id.Pack) {
	if x := at.Load(); x != nil && *x == p && at.CompareAndSwap(x, nil) {
		d.drop()
	}
}

func (d *dropping) Read(ctx context.Context, k node.Key, off int64, dst []byte) error {
	d.when(d.reads, k.Pack)
	return d.Store.Read(ctx, k, off, dst)
}

func (d *dropping) Put(ctx context.Context, by node.Authority, why node.Purpose, s node.Shard) (id.Instance, error) {
	if h, err := pack.ParseHeader(s.Head); err == nil && why == node.ForRepair {
		d.when(d.puts, h.Pack)
	}
	return d.Store.Put(ctx, by, why, s)
}

// TestFindingsOfDroppedPacks: a scrub, or a repair, is at a piece of a snapshot when that
// is dropped. That it is gone is no damage, nothing is lost or short, and what was made
// anew of it is an orphan of the next scrub (H29).
func TestFindingsOfDroppedPacks(t *testing.T) {
	for _, job := range []string{"light scrub", "deep scrub", "repair", "repair that has read"} {
		t.Run(job, func(t *testing.T) {
			t.Parallel()
			r := newRig(t)
			var reads, puts atomic.Pointer[id.Pack]
			r.wrap = func(_ string, n node.Store) node.Store {
				return &dropping{n, &reads, &puts, func() { r.snapshot() }}
			}
			r.idle()
			r.wide()
			r.snapshot()
			var (
				p      id.Pack
				places []record.Place
			)
			for p, places = range r.placesOf(pack.Snapshot) { // of the first
				break
			}
			r.snapshot()
			at := &reads
			switch job {
			case "light scrub", "deep scrub":
				at.Store(&p)
				res, err := r.scrub(JobOptions{Rate: fast.Rate, Deep: job == "deep scrub"})
				if err != nil || res.Damaged > 0 || res.LostPacks > 0 {
					t.Errorf("%+v, %v", res, err)
				}
			default:
				name := r.st.members.Load().byID[places[0].Node].info.Name
				r.close()
				r.wipe(name)
				r.open()
				r.replace(name)
				r.close()
				r.open()
				r.put("behind", []byte("x"))
				if job != "repair" {
					at = &puts
				}
				at.Store(&p)
				if rep, err := r.st.Repair(t.Context()); err != nil || rep.Short+rep.Lost > 0 || len(rep.Errs) > 0 {
					t.Errorf("%+v, %v", rep, err)
				}
			}
			if at.Load() != nil || !r.st.dropped(p) {
				t.Fatal("it was not dropped meanwhile")
			}
			if res, err := r.scrub(fast); err != nil || res.Damaged > 0 {
				t.Errorf("%+v, %v", res, err)
			}
			if left := r.unnamed(); len(left) > 0 {
				t.Errorf("left are %+v", left)
			}
		})
	}
}

// TestScrubBesideDrops: deep scrubs and repairs run over packs that are being dropped,
// the pieces of snapshots that are not kept, with a node that was replaced, so that there
// is something to repair. What is gone is no damage, nothing is lost, and in the end no
// shard is left of it (H29).
func TestScrubBesideDrops(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.idle()
	objects := r.wide()
	r.snapshot()
	r.close()
	r.wipe("n02")
	r.open()
	r.replace("n02")
	stop := make(chan struct{})
	var jobs sync.WaitGroup
	loop := func(what string, run func() error) {
		jobs.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				if err := run(); err != nil {
					t.Errorf("%s: %v", what, err)
				}
			}
		})
	}
	loop("scrub", func() error {
		res, err := r.st.scrub(t.Context(), deeply(fast), func(uint64, uint64) {})
		if err == nil && res.Left+res.LostPacks > 0 {
			err = fmt.Errorf("%+v", res)
		}
		return err
	})
	loop("repair", func() error {
		_, err := r.st.Repair(t.Context()) // which finds packs short that were dropped under it
		return err
	})
	for i := range 12 {
		key := fmt.Sprint("beside ", i)
		objects[key] = random(uint64(i), 200_000)
		r.put(key, objects[key])
		r.snapshot()
	}
	close(stop)
	jobs.Wait()
	r.put("behind", []byte("x"))
	if rep, err := r.st.Repair(t.Context()); err != nil || rep.Short+rep.Lost > 0 {
		t.Errorf("%+v, %v", rep, err)
	}
	if res, err := r.scrub(deeply(fast)); err != nil || res.Damaged > 0 || res.Undecided > 0 {
		t.Errorf("%+v, %v", res, err)
	}
	if left := r.unnamed(); len(left) > 0 {
		t.Errorf("left are %d, the first %+v", len(left), left[0])
	}
	if lost := r.missing(); len(lost) > 0 {
		t.Errorf("gone are %+v", lost)
	}
	for key, b := range objects {
		r.mustRead(key, b)
	}
	if rep := r.verified(); len(rep.Findings) > 0 {
		t.Errorf("verify finds %v", rep.Findings)
	}
}
