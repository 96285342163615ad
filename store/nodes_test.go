package store

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync/atomic"
	"testing"

	"cairn/id"
	"cairn/index"
	"cairn/index/kv/memkv"
	"cairn/node"
	"cairn/node/disk"
	"cairn/node/vfs/crashfs"
	"cairn/record"
)

// diskOf is a filesystem of its own, of so many GiB.
func diskOf(device uint64, gib int64) *crashfs.FS {
	return crashfs.NewDisk(crashfs.DiskConfig{Device: device, Bytes: gib << 30, Files: 1 << 16}).New()
}

// fresh formats a new node.
func (r *rig) fresh(name string, fs *crashfs.FS) *disk.Node {
	r.t.Helper()
	r.fs[name] = fs
	if _, err := disk.Format(fs, disk.Config{Cluster: r.cluster}); err != nil {
		r.t.Fatal(err)
	}
	n, err := disk.Open(fs, disk.Config{Cluster: r.cluster, Dir: "/data/nodes/" + name, Space: &r.space})
	if err != nil {
		r.t.Fatal(err)
	}
	r.nodes[name] = n
	return n
}

func (r *rig) add(n NewNode, fs *crashfs.FS) {
	r.t.Helper()
	if err := r.st.AddNode(context.Background(), n, r.fresh(n.Name, fs)); err != nil {
		r.t.Fatalf("add %s: %v", n.Name, err)
	}
}

// reopen stops and starts, with index or without.
func (r *rig) reopen(index bool) {
	r.t.Helper()
	r.close()
	if !index {
		r.engine = memkv.New(memkv.Options{})
	}
	r.open()
}

// onNodes counts the shards and bytes of each node as the pack rows have them. Each row
// is held to the rules: every shard has a place, on members that are all different, at
// most m of them on one disk where the members allow that; each is there.
func (r *rig) onNodes() (shards map[string]int, bytes map[string]int64) {
	r.t.Helper()
	shards, bytes = map[string]int{}, map[string]int64{}
	set := r.st.members.Load()
	type at struct {
		p     id.Pack
		place record.Place
	}
	var all []at
	if err := r.st.view(func(rd index.Reader) error {
		return rd.EachPack(func(p id.Pack, row index.PackRow) error {
			places := row.Shards
			if len(places) == 0 {
				places = r.st.recall(p)
			}
			if held := heldBy(places, func(n id.Node) bool { return set.byID[n] != nil }); held != int(row.K)+int(row.M) {
				r.t.Errorf("pack %v of kind %d has %d of %d shards", p, row.Kind, held, row.K+row.M)
			}
			on := map[id.Node]uint8{}
			for _, x := range places {
				m := set.byID[x.Node]
				if m == nil {
					r.t.Errorf("pack %v has a shard on %v, which is no member", p, x.Node)
					continue
				}
				if i, twice := on[x.Node]; twice && i != x.Index {
					r.t.Errorf("pack %v has shards %d and %d on node %s", p, i, x.Index, m.info.Name)
				}
				on[x.Node] = x.Index
				shards[m.info.Name]++
				bytes[m.info.Name] += int64(row.Size)
				all = append(all, at{p, x})
			}
			return nil
		})
	}); err != nil {
		r.t.Fatal(err)
	}
	for _, a := range all {
		m := set.byID[a.place.Node]
		info, _, err := m.st.Stat(context.Background(), node.Key{Pack: a.p, Index: a.place.Index})
		if err != nil || info.Instance != a.place.Instance {
			r.t.Errorf("shard %d of pack %v on node %s: instance %v, %v; its row says %v", a.place.Index, a.p, m.info.Name, info.Instance, err, a.place.Instance)
		}
	}
	return shards, bytes
}

// soundOffline verifies the stopped store, and starts it again.
func (r *rig) soundOffline() {
	r.t.Helper()
	r.close()
	rep, err := Verify(context.Background(), Config{Cluster: r.cluster, Nodes: r.stores(), Keyring: r.ring, Engine: memkv.New(memkv.Options{})})
	if err != nil || rep.Damaged > 0 || rep.Lost > 0 || len(rep.Findings) > 0 {
		r.t.Errorf("verify: %+v, %v", rep, err)
	}
	r.closeNodes()
	r.open()
}

func (r *rig) drain(name string) {
	r.t.Helper()
	if err := r.st.DrainNode(context.Background(), name, true); err != nil {
		r.t.Fatalf("drain %s: %v", name, err)
	}
	res, err := r.st.drain(context.Background(), fast, func(uint64, uint64) {})
	if err != nil || res.Left > 0 || !slices.Contains(res.Empty, name) {
		r.t.Fatalf("drain %s: %+v, %v", name, res, err)
	}
}

// Three nodes become twelve, of unequal sizes. New packs use each; nothing moves; the
// log is kept by nine at the most.
func TestThreeNodesBecomeTwelve(t *testing.T) {
	r := newRigOf(t, 3, 1, func(name string) *crashfs.FS { return diskOf(uint64(name[2]), 4) })
	objects := map[string][]byte{}
	put := func(key string, seed uint64, n int) {
		t.Helper()
		objects[key] = random(seed, n)
		r.put(key, objects[key])
	}
	check := func() {
		t.Helper()
		for key, want := range objects {
			r.mustRead(key, want)
		}
	}
	put("first", 1, 3<<20)
	for i := 4; i <= 12; i++ {
		name := fmt.Sprintf("n%02d", i)
		before, _ := r.onNodes()
		r.add(NewNode{Name: name, Labels: []string{"rack=" + name, "host=h"}}, diskOf(uint64(100+i), int64(1+i%4)*4))
		put(fmt.Sprint("small", i), uint64(i), 1000)
		put(fmt.Sprint("large", i), uint64(50+i), 2<<20)
		set := r.st.members.Load()
		if want := min(i, 9); len(set.all) != i || len(set.log) != want {
			t.Fatalf("%d members, %d of them keep the log; want %d and %d", len(set.all), len(set.log), i, want)
		}
		after, _ := r.onNodes()
		for n, was := range before {
			if after[n] < was {
				t.Errorf("node %s held %d shards, and %d after %s was added", n, was, after[n], name)
			}
		}
		switch i {
		case 6:
			r.reopen(true)
		case 9, 11:
			r.reopen(false)
		}
		check()
	}
	for range 20 { // each is on half of the nodes
		put(fmt.Sprint("more", len(objects)), uint64(len(objects)), 1<<20)
	}
	r.reopen(false)
	check()
	shards, _ := r.onNodes()
	for i := range 12 {
		if name := fmt.Sprintf("n%02d", i+1); shards[name] == 0 {
			t.Errorf("node %s holds nothing after many packs: %v", name, shards)
		}
	}
	st, err := r.st.Status(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	for _, n := range st.Nodes {
		if n.Name == "n07" && (n.Weight != 16 || !slices.Equal(n.Labels, []string{"host=h", "rack=n07"})) {
			t.Errorf("node n07 on 16 GiB weighs %v and has the labels %v", n.Weight, n.Labels)
		}
	}
	r.soundOffline()
}

func TestNodesThatAreNotAdded(t *testing.T) {
	r := newRig(t)
	ctx := context.Background()
	refuse := func(want error, n NewNode, st node.Store, what string) {
		t.Helper()
		err := r.st.AddNode(ctx, n, st)
		if !errors.Is(err, want) || !strings.Contains(err.Error(), what) {
			t.Errorf("add %+v: %v; want %v with %q", n, err, want, what)
		}
	}
	st := r.fresh("n07", crashfs.New())
	for _, name := range []string{"", "a/b", ".hidden", "lost+found", "a b", strings.Repeat("n", 64), "é"} {
		refuse(ErrInvalid, NewNode{Name: name}, st, "a name has")
	}
	for _, label := range []string{"zone", "=a", "zone=", "zone=a b", "zone=" + strings.Repeat("a", 200)} {
		refuse(ErrInvalid, NewNode{Name: "n07", Labels: []string{label}}, st, "label")
	}
	refuse(ErrInvalid, NewNode{Name: "n07", Labels: []string{"state=draining"}}, st, "state")
	refuse(ErrInvalid, NewNode{Name: "n07", Labels: []string{"zone=b", "zone=a"}}, st, "twice")
	refuse(ErrPrecondition, NewNode{Name: "n01"}, st, "already")
	refuse(ErrPrecondition, NewNode{Name: "n07"}, r.nodes["n01"], "another node")
	if err := r.st.AddNode(ctx, NewNode{Name: "n07"}, st); err != nil {
		t.Fatal(err)
	}
	r.put("wide", random(1, 200<<10))
	r.drain("n07")
	if err := r.st.RemoveNode(ctx, "n07"); err != nil {
		t.Fatal(err)
	}
	refuse(ErrPrecondition, NewNode{Name: "n07"}, r.nodes["n07"], "refused for ever")
	full := r.fresh("n08", crashfs.New())
	if _, err := full.Put(ctx, r.st.auth, node.ForClient, someShard(t, r)); err != nil {
		t.Fatal(err)
	}
	refuse(ErrPrecondition, NewNode{Name: "n08"}, full, "1 shard")
}

// someShard is a shard of a pack of the store.
func someShard(t *testing.T, r *rig) (sh node.Shard) {
	t.Helper()
	set := r.st.members.Load()
	if err := r.st.view(func(rd index.Reader) error {
		return rd.EachPack(func(p id.Pack, row index.PackRow) error {
			if len(row.Shards) == 0 || sh.Head != nil {
				return nil
			}
			b := make([]byte, row.Size)
			x := row.Shards[0]
			sh.Head = b
			return set.byID[x.Node].st.Read(context.Background(), node.Key{Pack: p, Index: x.Index}, 0, b)
		})
	}); err != nil {
		t.Fatal(err)
	}
	return sh
}

// A drained node holds nothing: every shard, also those of the log and of its newest
// packs, lies on the others, and the node can be taken out of the set.
func TestNodeIsDrainedAndRemoved(t *testing.T) {
	r := newRig(t)
	ctx := context.Background()
	objects := map[string][]byte{}
	put := func(key string, seed uint64, n int) {
		t.Helper()
		objects[key] = random(seed, n)
		r.put(key, objects[key])
	}
	check := func() {
		t.Helper()
		for key, want := range objects {
			r.mustRead(key, want)
		}
	}
	put("large", 1, 9<<20)
	put("wide", 2, 120<<10) // in the log, 4+2
	for i := range 20 {
		put(fmt.Sprint("small", i), uint64(10+i), 500)
	}
	if _, err := r.st.Snapshot(ctx); err != nil {
		t.Fatal(err)
	}
	// Packs of six shards need six nodes.
	if err := r.st.DrainNode(ctx, "n03", true); !errors.Is(err, ErrPrecondition) || !strings.Contains(err.Error(), "New packs would be 3+2") {
		t.Fatalf("drain with five nodes left for packs of six shards: %v", err)
	}
	r.add(NewNode{Name: "n07"}, crashfs.New())
	if err := r.st.RemoveNode(ctx, "n03"); !errors.Is(err, ErrPrecondition) || !strings.Contains(err.Error(), "cairn nodes drain n03") {
		t.Errorf("remove a node in use: %v", err)
	}
	put("after", 3, 3<<20)
	if err := r.st.DrainNode(ctx, "n03", true); err != nil {
		t.Fatal(err)
	}
	before, _ := r.onNodes()
	if err := r.st.RemoveNode(ctx, "n03"); !errors.Is(err, ErrPrecondition) || !strings.Contains(err.Error(), "have a shard on node n03") {
		t.Errorf("remove a node that holds shards: %v", err)
	}
	put("during", 4, 3<<20)
	for i := range 5 {
		put(fmt.Sprint("tail", i), uint64(50+i), 500)
	}
	r.reopen(false) // the mark is in the log
	for _, n := range r.st.NodeStates() {
		if want := map[bool]string{true: "draining", false: "up"}[n.Name == "n03"]; n.State != want {
			t.Errorf("node %s is %s, want %s", n.Name, n.State, want)
		}
	}
	if after, _ := r.onNodes(); after["n03"] > before["n03"] {
		t.Errorf("node n03 held %d shards when its drain began, and %d after more was stored", before["n03"], after["n03"])
	}
	// It may be called off, and then takes shards again.
	if err := r.st.DrainNode(ctx, "n03", false); err != nil {
		t.Fatal(err)
	}
	if set := r.st.members.Load(); len(set.log) != 7 || set.drains() {
		t.Errorf("after the drain was called off %d nodes keep the log, want 7", len(set.log))
	}
	put("undrained", 5, 3<<20)
	r.drain("n03")
	if after, _ := r.onNodes(); after["n03"] != 0 {
		t.Errorf("after its drain node n03 holds %d shards", after["n03"])
	}
	u, err := r.nodes["n03"].Usage(ctx)
	if err != nil || u.LiveShards > 1 {
		t.Errorf("the drained node says that it has %d shards, %v; want none, or one of a pack that lagged", u.LiveShards, err)
	}
	check()
	if err := r.st.RemoveNode(ctx, "n03"); err != nil {
		t.Fatal(err)
	}
	check()
	put("removed", 6, 3<<20)
	// The directory may stay where it is: it is nobody.
	r.reopen(false)
	check()
	if r.st.members.Load().byName["n03"] != nil {
		t.Error("node n03 was removed and is a member again")
	}
	r.nodes["n03"].Close()
	delete(r.nodes, "n03")
	delete(r.fs, "n03")
	r.soundOffline()
	check()
}

// A node whose shards cannot be read, or that is away, is drained all the same: they are
// computed from the others.
func TestNodeThatCannotBeReadIsDrained(t *testing.T) {
	for _, how := range []string{"away", "rotten"} {
		t.Run(how, func(t *testing.T) {
			r := newRig(t)
			big := random(1, 9<<20)
			r.put("big", big)
			r.add(NewNode{Name: "n07"}, crashfs.New())
			r.close()
			if how == "away" {
				r.away = map[string]bool{"n02": true}
			} else {
				r.wrap = only("n02", faulty{read: func(_ int64, dst []byte) { dst[0] ^= 1 }})
			}
			r.change = func(c *Config) { c.idle = true }
			r.open()
			if err := r.st.DrainNode(context.Background(), "n02", true); err != nil {
				t.Fatal(err)
			}
			res, err := r.st.drain(context.Background(), fast, func(uint64, uint64) {})
			if err != nil || res.Remade == 0 || !slices.Equal(res.Empty, []string{"n02"}) {
				t.Fatalf("%+v, %v", res, err)
			}
			if err := r.st.RemoveNode(context.Background(), "n02"); err != nil {
				t.Fatal(err)
			}
			r.wrap, r.away = nil, nil
			r.reopen(false)
			if _, err := r.st.Repair(context.Background()); err != nil { // of a tail whose places a start could not tell
				t.Fatal(err)
			}
			r.onNodes()
			r.mustRead("big", big)
		})
	}
}

// What a store could not go on without is not drained.
func TestDrainsThatAreRefused(t *testing.T) {
	r := newRigOf(t, 5, 2, func(string) *crashfs.FS { return crashfs.New() })
	err := r.st.DrainNode(context.Background(), "n01", true)
	if !errors.Is(err, ErrPrecondition) || !strings.Contains(err.Error(), "4 nodes would be left") {
		t.Errorf("drain of one of five nodes that survive two losses: %v", err)
	}
	if err := r.st.DrainNode(context.Background(), "n09", true); !errors.Is(err, ErrInvalid) || !strings.Contains(err.Error(), "n01, n02") {
		t.Errorf("drain of a node that there is not: %v", err)
	}
	r.add(NewNode{Name: "n06"}, crashfs.New())
	r.add(NewNode{Name: "n07"}, crashfs.New())
	r.drain("n01")
	r.drain("n02")
	if err := r.st.DrainNode(context.Background(), "n03", true); !errors.Is(err, ErrPrecondition) {
		t.Errorf("drain of a third, where two are being drained: %v", err)
	}
	for _, name := range []string{"n01", "n02"} {
		if err := r.st.RemoveNode(context.Background(), name); err != nil {
			t.Errorf("remove %s: %v", name, err)
		}
	}
}

// Nodes that were added fill up as their sizes say, and no more moves than must.
func TestRebalance(t *testing.T) {
	r := newRigOf(t, 6, 2, func(name string) *crashfs.FS { return diskOf(uint64(name[2]), 8) })
	ctx := context.Background()
	objects := map[string][]byte{}
	for i := range 40 {
		key := fmt.Sprint("o", i)
		objects[key] = random(uint64(i), 300<<10+i*20<<10)
		r.put(key, objects[key])
	}
	for i, gib := range []int64{8, 8, 16} {
		name := fmt.Sprintf("n%02d", 7+i)
		r.add(NewNode{Name: name}, diskOf(uint64(100+i), gib))
	}
	_, before := r.onNodes()
	plan, err := r.st.rebalance(ctx, JobOptions{DryRun: true}, func(uint64, uint64) {})
	if err != nil || !plan.DryRun || plan.Planned == 0 || plan.Shards > 0 {
		t.Fatalf("dry run: %+v, %v", plan, err)
	}
	if _, again := r.onNodes(); fmt.Sprint(again) != fmt.Sprint(before) {
		t.Errorf("a dry run moved something: %v to %v", before, again)
	}
	var last [2]uint64
	res, err := r.st.rebalance(ctx, fast, func(done, total uint64) {
		if done < last[0] || done > total {
			t.Errorf("progress goes from %v to %d of %d", last, done, total)
		}
		last = [2]uint64{done, total}
	})
	if err != nil || res.Left > 0 || res.Bytes == 0 || last[0] != res.Bytes {
		t.Fatalf("rebalance: %+v, %v; it ended at %v", res, err, last)
	}
	_, after := r.onNodes()
	sum := int64(0)
	for _, n := range after {
		sum += n
	}
	must := int64(0)
	for name, n := range after {
		// By its size the node of 16 GiB would hold a fifth. It cannot: one shard of each pack
		// is a sixth. The others share the rest.
		best := float64(sum) * 5 / 6 / 8
		if name == "n09" {
			best = float64(sum) / 6
		}
		must += max(0, before[name]-n)
		if off := float64(n)/best - 1; off > 0.05 || off < -0.05 {
			t.Errorf("node %s holds %d bytes, the best is %.0f: %+.1f %%; of all %v", name, n, best, 100*off, after)
		}
	}
	if int64(res.Bytes) > must*11/10 {
		t.Errorf("%d bytes moved, %d had to", res.Bytes, must)
	}
	if again, err := r.st.rebalance(ctx, fast, func(uint64, uint64) {}); err != nil || again.Shards > 0 {
		t.Errorf("a second run: %+v, %v", again, err)
	}
	r.reopen(false)
	for key, want := range objects {
		r.mustRead(key, want)
	}
	if _, rebuilt := r.onNodes(); fmt.Sprint(rebuilt) == fmt.Sprint(before) {
		t.Error("an index made anew from the log has the places of before")
	}
	r.soundOffline()
}

// H44: the record of a change lies at full width on nodes that keep the log before and
// after it, and the nodes that keep the log change one at a time.
func TestNodeSetIsDurableInBothSets(t *testing.T) {
	r := newRigOf(t, 9, 2, func(string) *crashfs.FS { return crashfs.New() })
	r.idle()
	ctx := context.Background()
	was := r.st.members.Load()
	check := func(what string, err error) {
		t.Helper()
		if err != nil {
			t.Fatalf("%s: %v", what, err)
		}
		set := r.st.members.Load()
		gone, come := 0, 0
		for _, n := range was.rec.LogNodes {
			if !slices.Contains(set.rec.LogNodes, n) {
				gone++
			}
		}
		for _, n := range set.rec.LogNodes {
			if !slices.Contains(was.rec.LogNodes, n) {
				come++
			}
		}
		if gone > 1 || come > 1 {
			t.Errorf("%s: %d nodes keep the log no more, %d do now", what, gone, come)
		}
		on := map[id.Node]bool{}
		for _, x := range r.st.writer.head.places {
			if on[x.Node] = true; !slices.Contains(set.rec.LogNodes, x.Node) || !slices.Contains(was.rec.LogNodes, x.Node) {
				t.Errorf("%s: the record lies on %v, which does not keep the log before and after it", what, x.Node)
			}
		}
		if len(on) < set.m()+1 {
			t.Errorf("%s: the record lies on %d nodes, want %d", what, len(on), set.m()+1)
		}
		was = set
	}
	for i := range 40 {
		check("drain", r.st.DrainNode(ctx, "n09", true))
		check("undrain", r.st.DrainNode(ctx, "n09", false))
		if i%12 == 0 {
			name := fmt.Sprintf("n%02d", 10+i/12)
			check("add", r.st.AddNode(ctx, NewNode{Name: name, Labels: []string{"zone=" + name}}, r.fresh(name, crashfs.New())))
		}
	}
	// A set that differs by several is come to in steps.
	want := slices.Clone(was.rec.LogNodes)
	for i := range 3 {
		want[i] = id.Node{0xff, byte(i)}
	}
	slices.SortFunc(want, func(a, b id.Node) int { return slices.Compare(a[:], b[:]) })
	log, steps := was.rec.LogNodes, 0
	for ; !slices.Equal(log, want) && steps < 10; steps++ {
		log = stepLogNodes(log, was, want)
	}
	if steps != 3 {
		t.Errorf("three other nodes came to keep the log in %d steps, want 3", steps)
	}
}

// H45: what a process that ends between the record and the delete leaves is no shard
// of the store's any more, and one that ends before the record has lost nothing.
func TestOldCopyGoesLast(t *testing.T) {
	r := newRig(t)
	r.idle()
	big := random(1, 5<<20)
	r.put("big", big)
	var deleted, early atomic.Int64
	r.close()
	r.wrap = func(name string, n node.Store) node.Store {
		return &lateDelete{Store: n, before: func(k node.Key) {
			deleted.Add(1)
			if err := r.st.view(func(rd index.Reader) error {
				row, err := rd.Pack(k.Pack)
				if err == nil && slices.ContainsFunc(row.Shards, func(x record.Place) bool { return x.Node == n.ID() && x.Index == k.Index }) {
					early.Add(1)
				}
				return err
			}); err != nil {
				t.Error(err)
			}
		}}
	}
	r.open()
	r.add(NewNode{Name: "n07"}, crashfs.New())
	r.drain("n02")
	if deleted.Load() == 0 || early.Load() > 0 {
		t.Errorf("%d shards were deleted where they were, %d of them before the log had their new places", deleted.Load(), early.Load())
	}
	r.mustRead("big", big)
}

// lateDelete tells of deletes.
type lateDelete struct {
	node.Store
	before func(node.Key)
}

func (d *lateDelete) Delete(ctx context.Context, by node.Authority, k node.Key, i id.Instance) error {
	d.before(k)
	return d.Store.Delete(ctx, by, k, i)
}
