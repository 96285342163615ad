package store

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"cairn/id"
	"cairn/index"
	"cairn/node"
	"cairn/node/vfs/crashfs"
	"cairn/pack"
	"cairn/record"
)

// seq is the sequence of the newest log pack.
func (r *rig) seq() uint64 {
	r.t.Helper()
	h, err := r.st.index.Head()
	if err != nil {
		r.t.Fatal(err)
	}
	return h.Seq
}

// loseLog deletes the shards of the log packs of these sequences, but for so many of
// each as do not suffice to read it.
func (r *rig) loseLog(keep int, seqs ...uint64) {
	r.t.Helper()
	ctx := r.t.Context()
	left := map[id.Pack]int{}
	for name, n := range r.nodes {
		for after := (*node.Found)(nil); ; {
			page, err := n.ListLog(ctx, 1, after, 100)
			if err != nil {
				r.t.Fatal(err)
			}
			if len(page) == 0 {
				break
			}
			for _, f := range page {
				if !slices.Contains(seqs, f.Header.Seq) {
					continue
				}
				if keep < 0 { // they are all there, and their headers rotten
					head := make([]byte, pack.HeaderSize)
					if err := n.Read(ctx, f.Info.Key, 0, head); err != nil || !flipIn(r.t, r.fs[name], head) {
						r.t.Fatalf("the header of %v: %v", f.Info.Key, err)
					}
					continue
				}
				if left[f.Header.Pack]++; left[f.Header.Pack] <= min(keep, int(f.Header.K)-1) {
					continue
				}
				if err := n.Delete(ctx, r.st.auth, f.Info.Key, f.Info.Instance); err != nil {
					r.t.Fatal(err)
				}
			}
			after = &page[len(page)-1]
		}
	}
	for _, seq := range seqs {
		if seq > r.seq() {
			r.t.Fatalf("sequence %d is not there to be lost", seq)
		}
	}
}

// rebuildLossy makes the index anew while nothing serves the store.
func (r *rig) rebuildLossy(accept bool, change func(*Config)) (Rebuilt, error) {
	r.t.Helper()
	cfg := Config{Cluster: r.cluster, Nodes: nil, Keyring: r.ring, Engine: r.engine, Log: r.log, ListWindow: 7, AcceptLoss: accept}
	cfg.Nodes = r.stores()
	if change != nil {
		change(&cfg)
	}
	out, err := Rebuild(context.Background(), cfg, 0)
	r.closeNodes()
	r.engine = r.engine.Reopen()
	return out, err
}

// giveUp loses the index, sees that a start and a rebuild stop, gives up what is lost and
// starts.
func (r *rig) giveUp() Rebuilt {
	r.t.Helper()
	r.close()
	r.loseIndex()
	if err := r.tryOpen(); !errors.Is(err, ErrDamaged) || !strings.Contains(fmt.Sprint(err), "--accept-loss") {
		r.t.Fatalf("a start with a part of the log lost: %v", err)
	}
	r.loseIndex()
	if _, err := r.rebuildLossy(false, nil); !errors.Is(err, ErrDamaged) {
		r.t.Fatalf("a rebuild with a part of the log lost: %v", err)
	}
	r.loseIndex()
	out, err := r.rebuildLossy(true, nil)
	if err != nil {
		r.t.Fatalf("a rebuild past what is lost: %v", err)
	}
	r.open()
	r.checked()
	return out
}

func (r *rig) checked() {
	r.t.Helper()
	if rep, err := r.st.CheckIndex(r.t.Context()); err != nil {
		r.t.Errorf("%v: %v", err, rep.Findings)
	}
}

func ranges(ls []LossRange) (out []uint64) {
	for _, l := range ls {
		out = append(out, l.From, l.To)
	}
	return out
}

// together puts small objects at the same time, so that log packs come of it that are
// coded wide; it returns the sequences of those.
func (r *rig) together(prefix string, n int) (objects map[string][]byte, wide []uint64) {
	r.t.Helper()
	objects = map[string][]byte{}
	before := r.seq()
	var all sync.WaitGroup
	for i := range n {
		key := fmt.Sprintf("%s%02d", prefix, i)
		b := random(uint64(1000+i), 120<<10)
		objects[key] = b
		all.Go(func() {
			if err := r.tryPut(key, b); err != nil {
				r.t.Error(err)
			}
		})
	}
	all.Wait()
	after := r.seq()
	if err := r.st.view(func(rd index.Reader) error {
		return rd.EachPack(func(_ id.Pack, row index.PackRow) error {
			if row.Kind == pack.Log && row.Seq > before && row.Seq <= after && row.K > 1 {
				wide = append(wide, row.Seq)
			}
			return nil
		})
	}); err != nil {
		r.t.Fatal(err)
	}
	if len(wide) == 0 {
		r.t.Fatal("no log pack is coded wide")
	}
	slices.Sort(wide)
	return objects, wide
}

// TestAcceptedLoss: log packs of which too few shards are left are gone past by an
// operator's word. What only they said is named; everything else is read as before, and
// writes, scrubs, collections, snapshots and proofs go on.
func TestAcceptedLoss(t *testing.T) {
	for _, c := range []struct {
		name string
		keep int // shards left of each
		lost func(r *rig, want map[string][]byte) (seqs []uint64)
	}{
		{"one", 0, func(r *rig, want map[string][]byte) []uint64 {
			r.put("only there", []byte("only there"))
			return []uint64{r.seq()}
		}},
		{"three in a row", 0, func(r *rig, want map[string][]byte) (seqs []uint64) {
			for i := range 3 {
				r.put(fmt.Sprint("only there", i), []byte("x"))
				seqs = append(seqs, r.seq())
			}
			return seqs
		}},
		{"with rotten headers", -1, func(r *rig, want map[string][]byte) (seqs []uint64) {
			for i := range 2 {
				r.put(fmt.Sprint("only there", i), []byte("x"))
				seqs = append(seqs, r.seq())
			}
			return seqs
		}},
		{"two gaps", 0, func(r *rig, want map[string][]byte) []uint64 {
			r.put("only there", []byte("only there"))
			a := r.seq()
			for i := range 9 {
				want[fmt.Sprint("between", i)] = random(uint64(i), 300)
				r.put(fmt.Sprint("between", i), want[fmt.Sprint("between", i)])
			}
			r.put("only there too", []byte("only there too"))
			return []uint64{a, r.seq()}
		}},
		{"with headers", 3, func(r *rig, want map[string][]byte) []uint64 {
			objects, wide := r.together("t", 24)
			first := wide[0]
			// What is in other packs than the one that is lost stays.
			if err := r.st.view(func(rd index.Reader) error {
				for key, b := range objects {
					o, err := rd.Object(1, []byte(key), id.Version{})
					if err != nil {
						return err
					}
					if o.Version.Seq != first {
						want[key] = b
					}
				}
				return nil
			}); err != nil {
				r.t.Fatal(err)
			}
			return []uint64{first}
		}},
		{"the first behind the snapshot", 0, func(r *rig, want map[string][]byte) []uint64 {
			n := r.snapshot().Number
			for r.seq() < n+1 {
				r.put("only there", []byte("x"))
			}
			return []uint64{n + 1}
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			r := newRig(t)
			r.idle()
			ctx := t.Context()
			want := r.wide()
			r.snapshot()
			lost := c.lost(r, want)
			want["behind"] = r.putWide("behind", 3<<20)
			want["small behind"] = []byte("small behind")
			r.put("small behind", want["small behind"])
			r.loseLog(c.keep, lost...)
			out := r.giveUp()
			var runs []uint64
			for _, s := range lost {
				if n := len(runs); n > 0 && runs[n-1] == s-1 {
					runs[n-1] = s
				} else {
					runs = append(runs, s, s)
				}
			}
			if got := ranges(out.Losses); !slices.Equal(got, runs) || !slices.Equal(ranges(out.Skipped), runs) {
				t.Errorf("given up are %v and %v, lost were %v", got, ranges(out.Skipped), runs)
			}
			if out.Damaged == nil || out.Damaged.Count != 0 {
				t.Errorf("damaged: %+v", out.Damaged)
			}
			for key, b := range want {
				r.mustRead(key, b)
			}
			if _, err := r.read("only there"); !errors.Is(err, ErrNoObject) {
				t.Errorf("what was lost: %v", err)
			}
			st, err := r.st.Status(ctx)
			if err != nil || !slices.Equal(ranges(Ranges(st.Losses)), runs) {
				t.Errorf("status: %+v, %v", st.Losses, err)
			}
			r.put("only there", []byte("again"))
			r.put("new", random(9, 400<<10))
			if due, err := r.st.snapshotDue(); err != nil || !due {
				t.Errorf("no snapshot is due behind it: %v", err)
			}
			if rep := r.verified(); rep.Lost != len(runs)/2 {
				t.Errorf("verify finds %v", rep.Findings)
			}
			if _, err := r.scrub(fast); err != nil && !errors.Is(err, ErrDamaged) {
				t.Error(err)
			}
			for range 2 {
				r.snapshot()
			}
			if due, err := r.st.snapshotDue(); err != nil || due {
				t.Errorf("behind two snapshots another is due: %v", err)
			}
			r.collect(true)
			r.checked()
			r.close()
			r.loseIndex()
			r.open() // without another word
			if ls, err := r.st.Losses(); err != nil || !slices.Equal(ranges(Ranges(ls)), runs) {
				t.Errorf("an index from a snapshot says %+v, %v", ls, err)
			}
			for key, b := range want {
				r.mustRead(key, b)
			}
			r.checked()
			if res, err := r.scrub(fast); err != nil {
				t.Errorf("a scrub behind two snapshots: %+v, %v", res, err)
			}
		})
	}
}

// TestLostAdopt: what was stored in the lost part of the log, in packs of its own, and is
// referred to behind it, is damaged until a scrub finds those packs on the nodes.
func TestLostAdopt(t *testing.T) {
	for _, c := range []struct {
		name string
		harm func(r *rig, p id.Pack, places []record.Place)
	}{
		{"all shards are there", func(*rig, id.Pack, []record.Place) {}},
		{"two are missing", func(r *rig, p id.Pack, places []record.Place) {
			r.remove(p, places[0])
			r.remove(p, places[4])
		}},
		{"one is other than was written", func(r *rig, p id.Pack, places []record.Place) {
			sh, inst := r.swap(p, places[1])
			_, _ = sh, inst
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			r := newRig(t)
			r.idle()
			ctx := t.Context()
			want := r.wide()
			r.snapshot()
			had := r.placesOf(pack.Data)
			before := r.seq()
			big := r.putOutside("only there", 5<<20)
			from, to := before+1, r.seq()
			// Copies behind what is lost refer to chunks that came with it.
			for i := range 3 {
				if _, err := r.st.Copy(ctx, Name{"main", "only there"}, Name{"main", fmt.Sprint("copy", i)}, CopyOptions{}); err != nil {
					t.Fatal(err)
				}
			}
			r.put("behind", []byte("behind"))
			adopted := 0
			for p, places := range r.placesOf(pack.Data) {
				if had[p] == nil {
					adopted++
					c.harm(r, p, places)
				}
			}
			var seqs []uint64
			for s := from; s <= to; s++ {
				seqs = append(seqs, s)
			}
			r.loseLog(0, seqs...)
			out := r.giveUp()
			if out.Damaged == nil || out.Damaged.Count != 3 || len(out.Damaged.Objects) != 3 {
				t.Errorf("damaged: %+v", out.Damaged)
			}
			if names, _ := r.damaged(10); len(names) != 3 {
				t.Errorf("damaged are %v", names)
			}
			if _, err := r.read("copy0"); !errors.Is(err, ErrDamaged) || errors.Is(err, ErrUnavailable) {
				t.Errorf("what is damaged: %v", err)
			}
			if _, err := r.st.Copy(ctx, Name{"main", "copy0"}, Name{"main", "copy of it"}, CopyOptions{}); !errors.Is(err, ErrDamaged) {
				t.Errorf("a copy of what is damaged: %v", err)
			}
			if _, err := r.st.Placement(ctx, "main", "copy0", PlacementOptions{}); err != nil {
				t.Errorf("where it lies: %v", err)
			}
			r.usage()
			r.collect(true)
			res, err := r.scrub(fast)
			if err != nil && !errors.Is(err, ErrDamaged) {
				t.Error(err)
			}
			if res.Found == 0 || r.marked() > 0 {
				t.Errorf("a scrub has found %d chunks, %d are marked; %d packs were adopted", res.Found, r.marked(), adopted)
			}
			for i := range 3 {
				r.mustRead(fmt.Sprint("copy", i), big)
			}
			for key, b := range want {
				r.mustRead(key, b)
			}
			r.checked()
			if res, err = r.scrub(fast); err != nil && res.LostPacks != 1 { // the log pack, until two snapshots are behind
				t.Errorf("the next scrub: %+v, %v", res, err)
			}
			for range 2 {
				r.snapshot()
			}
			r.collect(true)
			if res, err = r.scrub(fast); err != nil {
				t.Errorf("a scrub behind two snapshots: %+v, %v", res, err)
			}
			if names, _ := r.damaged(10); len(names) != 0 {
				t.Errorf("damaged are %v", names)
			}
			r.close()
			r.loseIndex()
			r.open()
			r.mustRead("copy1", big)
			r.checked()
		})
	}
}

// putOutside stores an object of which nothing but the record lies in the log, all of it
// in packs as wide as there are.
func (r *rig) putOutside(key string, size int) []byte {
	r.t.Helper()
	for try := range 100 {
		b := random(uint64(77+1000*try+size), size)
		r.put(key, b)
		p, err := r.st.Placement(r.t.Context(), "main", key, PlacementOptions{})
		if err != nil {
			r.t.Fatal(err)
		}
		if !slices.ContainsFunc(p.Packs, func(x PackPlace) bool { return x.Log || x.K != 4 || len(x.Shards) != 6 }) {
			return b
		}
	}
	r.t.Fatal("no object of a hundred lies outside of the log")
	return nil
}

// TestLostBucket: objects of a bucket whose creation is lost are read under the name that
// it is given, and not with its name gone.
func TestLostBucket(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.idle()
	ctx := t.Context()
	want := r.wide()
	r.bucket("made-there", record.Settings{})
	lost := r.seq()
	a, b := random(1, 300<<10), random(2, 100)
	for key, body := range map[string][]byte{"a": a, "b": b} {
		if _, err := r.st.Put(ctx, "made-there", key, bytes.NewReader(body), PutOptions{Size: int64(len(body))}); err != nil {
			t.Fatal(err)
		}
	}
	r.bucket("made-behind", record.Settings{})
	if _, err := r.st.Put(ctx, "made-behind", "a", bytes.NewReader(b), PutOptions{Size: int64(len(b))}); err != nil {
		t.Fatal(err)
	}
	r.put("behind", []byte("behind"))
	r.loseLog(0, lost)
	out := r.giveUp()
	if out.Damaged == nil || out.Damaged.Count != 0 || out.Mismatches == 0 {
		t.Errorf("%+v, %+v", out, out.Damaged)
	}
	r.holds("recovered-2", "a", a)
	r.holds("recovered-2", "b", b)
	r.holds("made-behind", "a", b)
	for key, body := range want {
		r.mustRead(key, body)
	}
	r.bucket("made-there", record.Settings{}) // its name is free
	r.bucket("another", record.Settings{})
	for range 2 {
		r.snapshot()
	}
	r.close()
	r.loseIndex()
	r.open()
	r.holds("recovered-2", "a", a)
	r.checked()
}

// TestLostSnapshotRecord: what names the newest snapshot is lost; the one before it is
// found, though the log before that may be gone.
func TestLostSnapshotRecord(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.idle()
	want := r.wide()
	for range 2 {
		r.snapshot()
		want["between"] = random(5, 700)
		r.put("between", want["between"])
	}
	r.collect(true) // and with it the beginning of the log
	r.put("cut", []byte("cut"))
	third := r.snapshot()
	lost := uint64(0)
	if err := r.st.view(func(rd index.Reader) error {
		kept, err := rd.Snapshots()
		lost = kept[0].Seq
		return err
	}); err != nil {
		t.Fatal(err)
	}
	want["behind"] = r.putWide("behind", 3<<20)
	r.loseLog(0, lost)
	out := r.giveUp()
	if out.Snapshot == 0 || out.Snapshot >= third.Number || !slices.Equal(ranges(out.Losses), []uint64{lost, lost}) {
		t.Errorf("from snapshot %d, with %d lost: %+v", out.Snapshot, third.Number, out)
	}
	for key, b := range want {
		r.mustRead(key, b)
	}
	for range 2 {
		r.snapshot()
	}
	r.close()
	r.loseIndex()
	r.open()
	for key, b := range want {
		r.mustRead(key, b)
	}
	r.collect(true)
	if _, err := r.scrub(fast); err != nil {
		t.Error(err)
	}
	r.checked()
}

// TestLostPiece: of a snapshot one piece's record is lost, and its own is not. It is none.
func TestLostPiece(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.idle()
	want := r.wide()
	before := r.seq()
	r.snapshot() // the piece, the root, the record
	if r.seq() < before+2 {
		t.Fatal("a snapshot in one log pack")
	}
	r.put("behind", []byte("behind"))
	r.loseLog(0, before+1)
	r.giveUp()
	for key, b := range want {
		r.mustRead(key, b)
	}
	for range 2 {
		r.snapshot()
	}
	r.close()
	r.loseIndex()
	r.open()
	for key, b := range want {
		r.mustRead(key, b)
	}
	r.checked()
}

// TestLostList: a long object whose list is lost is damaged, until it is stored again;
// the chunks that it names go with the next collection, or are found again.
func TestLostList(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.idle()
	ctx := t.Context()
	want := r.wide()
	before := r.seq()
	long := random(7, 24<<20)
	r.put("long", long)
	last := r.seq()
	if _, err := r.st.Copy(ctx, Name{"main", "long"}, Name{"main", "copy"}, CopyOptions{}); err != nil {
		t.Fatal(err)
	}
	r.put("behind", []byte("behind"))
	var lost []uint64
	for s := before + 1; s <= last; s++ {
		lost = append(lost, s)
	}
	r.loseLog(0, lost...)
	if out := r.giveUp(); out.Damaged == nil || out.Damaged.Count != 1 {
		t.Errorf("damaged: %+v", out.Damaged)
	}
	if _, err := r.read("copy"); !errors.Is(err, ErrDamaged) {
		t.Errorf("without its list: %v", err)
	}
	r.collect(true)
	r.put("again", long)
	r.mustRead("again", long)
	r.mustRead("copy", long)
	r.checked()
	if names, _ := r.damaged(10); len(names) != 0 {
		t.Errorf("damaged are %v", names)
	}
	r.forget("copy")
	r.forget("again")
	r.collect(true)
	r.checked()
	for key, b := range want {
		r.mustRead(key, b)
	}
}

// TestLostNextToTheTail: the newest log pack follows on what is lost.
func TestLostNextToTheTail(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.idle()
	want := r.wide()
	r.put("only there", []byte("only there"))
	lost := r.seq()
	r.put("tail", []byte("tail"))
	want["tail"] = []byte("tail")
	r.loseLog(0, lost)
	out := r.giveUp()
	if out.Held || !slices.Equal(ranges(out.Losses), []uint64{lost, lost}) {
		t.Errorf("%+v", out)
	}
	for key, b := range want {
		r.mustRead(key, b)
	}
	// A tail of which a shard is missing is left to the start, which ends the rebuild.
	lost = r.seq()
	r.put("newest", []byte("newest"))
	want["newest"] = []byte("newest")
	r.loseLog(0, lost)
	r.awayHolder()
	r.close()
	r.loseIndex()
	out, err := r.rebuildLossy(true, func(c *Config) {
		for name := range r.away {
			delete(c.Nodes, name)
		}
	})
	if err != nil || !out.Held || len(out.Silent) != 1 || len(out.Losses) != 2 || out.Damaged != nil {
		t.Fatalf("%+v, %v", out, err)
	}
	r.open()
	for key, b := range want {
		r.mustRead(key, b)
	}
	r.checked()
}

// TestLossIsGoneOnWith: a rebuild that is killed anywhere goes on, with the word or
// without once it is past what is lost, and gives the same.
func TestLossIsGoneOnWith(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.idle()
	ctx := t.Context()
	want := r.wide()
	r.put("only there", random(3, 300))
	lost := r.seq()
	if _, err := r.st.Copy(ctx, Name{"main", "only there"}, Name{"main", "copy"}, CopyOptions{}); err != nil {
		t.Fatal(err)
	}
	for i := range 6 {
		key := fmt.Sprint("behind", i)
		want[key] = random(uint64(50+i), 300)
		r.put(key, want[key])
	}
	r.loseLog(0, lost)
	r.close()
	now := func(c *Config) { c.Now = func() time.Time { return time.Unix(1800000000, 0) } }
	whole := func() []byte {
		r.loseIndex()
		if _, err := r.rebuildLossy(true, now); err != nil {
			t.Fatal(err)
		}
		return r.exportOffline()
	}
	first := whole()
	if !bytes.Equal(whole(), first) {
		t.Error("a second time it is another index")
	}
	for at := range 12 {
		r.loseIndex()
		stop, cancel := context.WithCancel(ctx)
		steps := 0
		cfg := Config{Cluster: r.cluster, Nodes: r.stores(), Keyring: r.ring, Engine: r.engine, Log: r.log, ListWindow: 7, AcceptLoss: true,
			Progress: func(string, uint64, uint64) {
				if steps++; steps > at {
					cancel()
				}
			}}
		now(&cfg)
		_, err := Rebuild(stop, cfg, 0)
		cancel()
		r.closeNodes()
		r.engine = r.engine.Crash(rand.New(rand.NewPCG(uint64(at), 1)))
		if err != nil {
			if _, err := r.rebuildLossy(true, now); err != nil {
				t.Fatalf("gone on with behind step %d: %v", at, err)
			}
		}
		if !bytes.Equal(r.exportOffline(), first) {
			t.Errorf("killed behind step %d it is another index", at)
		}
	}
	r.open()
	for key, b := range want {
		r.mustRead(key, b)
	}
	r.checked()
}

// exportOffline is what the index holds while nothing serves the store.
func (r *rig) exportOffline() []byte {
	r.t.Helper()
	var b bytes.Buffer
	if _, err := ExportIndexOffline(context.Background(), Config{Cluster: r.cluster, Keyring: r.ring, Engine: r.engine, Log: r.log}, &b); err != nil {
		r.t.Fatal(err)
	}
	r.engine = r.engine.Reopen()
	return b.Bytes()
}

// TestLostNodeSet: the record of a change of the node set is lost; the cluster file on the
// nodes has it.
func TestLostNodeSet(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.idle()
	want := r.wide()
	before := r.seq()
	r.add(NewNode{Name: "n07"}, crashfs.New())
	var lost []uint64
	for s := before + 1; s <= r.seq(); s++ {
		lost = append(lost, s)
	}
	want["behind"] = r.putWide("behind", 3<<20)
	r.put("small", []byte("small"))
	r.loseLog(0, lost...)
	r.giveUp()
	for key, b := range want {
		r.mustRead(key, b)
	}
	r.add(NewNode{Name: "n08"}, crashfs.New())
	r.put("after", []byte("y"))
	r.reopen(true)
	r.mustRead("after", []byte("y"))
	r.checked()
	if err := r.st.view(func(rd index.Reader) error {
		rec, err := rd.Nodes()
		if set := r.st.members.Load(); len(set.all) != 8 || set.rec.Version != rec.Version || len(rec.Members) != 8 {
			t.Errorf("%d members by the cluster file of version %d, %d by the index, version %d", len(set.all), set.rec.Version, len(rec.Members), rec.Version)
		}
		return err
	}); err != nil {
		t.Fatal(err)
	}
}

// TestLostLinkSaysItsPredecessor: what is left of a lost log pack leads to what it was
// written behind, and past an attempt with a higher position that was never part of the log.
func TestLostLinkSaysItsPredecessor(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.idle()
	ctx := t.Context()
	want := r.wide()
	objects, wide := r.together("t", 70)
	n := len(wide)
	if n < 2 || wide[n-2]+1 != wide[n-1] {
		t.Skipf("log packs %v are coded wide, none behind the other", wide)
	}
	lost := wide[n-2:]
	before, err := r.logPack(lost[0] - 1)
	if err != nil {
		t.Fatal(err)
	}
	rec := &record.Delete{In: id.Main, Bucket: 1, Key: []byte("small"), Time: 5}
	b, err := record.Append(nil, rec)
	if err != nil {
		t.Fatal(err)
	}
	set := r.st.members.Load()
	void, err := id.NewPack(nil)
	if err != nil {
		t.Fatal(err)
	}
	if _, _, _, err := r.st.writeLink(ctx, &linkPlan{pack: void, seq: lost[0] - 1, attempt: 9, prev: before.Prev, prevPlaces: r.st.writer.head.places, time: 5, set: set,
		records: []record.Record{rec}, encoded: [][]byte{b}, why: node.ForRepair}, set.log, new(bool)); err != nil {
		t.Fatal(err)
	}
	r.put("behind", []byte("behind"))
	r.loseLog(3, lost...)
	for range 2 { // the same again, when the index is lost again and a scrub has gone over what is left
		out := r.giveUp()
		if !slices.Equal(ranges(out.Losses), lost) {
			t.Errorf("%+v", out)
		}
		for key, body := range want {
			r.mustRead(key, body)
		}
		if res, err := r.scrub(fast); err != nil && !errors.Is(err, ErrDamaged) || res.Undecided == 0 {
			t.Errorf("%+v, %v", res, err)
		}
	}
	stands := 0
	for key, body := range objects {
		if got, err := r.read(key); err == nil && bytes.Equal(got, body) {
			stands++
		} else if !errors.Is(err, ErrNoObject) {
			t.Errorf("%s: %v", key, err)
		}
	}
	if stands == 0 {
		t.Error("the packs before it are lost too")
	}
}

// logPack is the header of a log pack of the chain.
func (r *rig) logPack(seq uint64) (h pack.Header, err error) {
	var at id.Pack
	if err := r.st.view(func(rd index.Reader) error {
		return rd.EachPack(func(p id.Pack, row index.PackRow) error {
			if row.Kind == pack.Log && row.Seq == seq {
				at = p
			}
			return nil
		})
	}); err != nil {
		return h, err
	}
	for _, n := range r.nodes {
		for i := range uint8(6) {
			if _, got, err := n.Stat(r.t.Context(), node.Key{Pack: at, Index: i}); err == nil {
				return got.Common(), nil
			}
		}
	}
	return h, fmt.Errorf("no node has log pack %d", seq)
}

// TestLossWaitsForNodes: the word stands for what is lost, and not for nodes that are away.
func TestLossWaitsForNodes(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.idle()
	r.wide()
	r.put("only there", []byte("only there"))
	lost := r.seq()
	for i := range 3 {
		r.put(fmt.Sprint("behind", i), []byte("x"))
	}
	r.loseLog(0, lost)
	r.close()
	r.loseIndex()
	away := func(n int) func(*Config) {
		return func(c *Config) {
			for i := range n {
				delete(c.Nodes, fmt.Sprintf("n%02d", i+1))
			}
		}
	}
	if _, err := r.rebuildLossy(true, away(3)); !errors.Is(err, ErrUnavailable) {
		t.Errorf("with three of six nodes away: %v", err)
	}
	r.loseIndex()
	out, err := r.rebuildLossy(true, away(2))
	if err != nil || len(out.Silent) != 2 || !strings.HasPrefix(out.Silent[0], "n01 ") || len(out.Losses) != 1 {
		t.Errorf("with two of six nodes away: %+v, %v", out, err)
	}
	r.open()
	r.checked()
}

// TestLostGoesWithItsObjects: once nothing refers to it, what is lost is forgotten like
// anything else, and the log pack that it is said to lie in with it.
func TestLostGoesWithItsObjects(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.idle()
	ctx := t.Context()
	want := r.wide()
	r.put("only there", random(3, 90<<10))
	lost := r.seq()
	for i := range 2 {
		if _, err := r.st.Copy(ctx, Name{"main", "only there"}, Name{"main", fmt.Sprint("copy", i)}, CopyOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	r.put("behind", []byte("behind"))
	r.loseLog(0, lost)
	r.giveUp()
	for range 2 {
		r.snapshot()
	}
	for range 2 { // it can neither be moved nor read
		r.collect(true)
		if _, err := r.st.Repair(ctx); err != nil {
			t.Error(err)
		}
		if _, err := r.scrub(fast); err != nil && !errors.Is(err, ErrDamaged) {
			t.Error(err)
		}
		if _, err := r.scrub(JobOptions{Rate: fast.Rate, Deep: true}); err != nil && !errors.Is(err, ErrDamaged) {
			t.Error(err)
		}
	}
	if n := r.marked(); n != 1 {
		t.Errorf("%d chunks are marked", n)
	}
	if rep := r.verified(); rep.Lost == 0 {
		t.Errorf("verify finds %v", rep.Findings)
	}
	r.usage()
	if _, err := r.st.runJob(ctx, JobUsage, ByStart); err != nil {
		t.Error(err)
	}
	r.forget("copy0")
	r.forget("copy1")
	for range 3 {
		r.collect(true)
	}
	if n := r.marked(); n != 0 {
		t.Errorf("%d chunks are marked that nothing refers to", n)
	}
	if err := r.st.view(func(rd index.Reader) error {
		return rd.EachPack(func(p id.Pack, row index.PackRow) error {
			if row.Kind == pack.Log && row.Seq == lost {
				t.Errorf("the lost log pack has a row still: %+v", row)
			}
			return nil
		})
	}); err != nil {
		t.Fatal(err)
	}
	if _, err := r.scrub(fast); err != nil {
		t.Error(err)
	}
	for key, b := range want {
		r.mustRead(key, b)
	}
	r.checked()
}

// TestLostEnd: the newest log packs are lost, and what is left of them says that they were
// acknowledged. The word stands for that too; the sequences are used again.
func TestLostEnd(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.idle()
	want := r.wide()
	_, wide := r.together("t", 70)
	n := len(wide)
	if n < 2 || wide[n-2]+1 != wide[n-1] || wide[n-1] != r.seq() {
		t.Skipf("log packs %v are coded wide, the newest is %d", wide, r.seq())
	}
	lost := wide[n-2:]
	r.loseLog(3, lost...)
	r.close()
	r.loseIndex()
	if err := r.tryOpen(); !errors.Is(err, ErrUnavailable) || !strings.Contains(fmt.Sprint(err), "--accept-loss") {
		t.Fatalf("a start with the end of the log lost: %v", err)
	}
	r.loseIndex()
	if _, err := r.rebuildLossy(false, nil); !errors.Is(err, ErrUnavailable) {
		t.Fatalf("a rebuild with the end of the log lost: %v", err)
	}
	r.loseIndex()
	out, err := r.rebuildLossy(true, nil)
	if err != nil || !slices.Equal(ranges(out.Losses), lost) || out.Tail != lost[0]-1 || out.Damaged == nil || out.Damaged.Count != 0 {
		t.Fatalf("%+v, %v", out, err)
	}
	r.open()
	want["again"] = []byte("again")
	r.put("again", want["again"])
	r.checked()
	if n := r.st.GivenUp(); n != 2 {
		t.Errorf("the start tells of %d", n)
	}
	for i := range 3 {
		if due, err := r.st.snapshotDue(); err != nil || due != (i < 2) {
			t.Errorf("behind %d snapshots another is due: %v, %v", i, due, err)
		}
		if i < 2 {
			r.snapshot()
		}
	}
	if rep := r.verified(); rep.Lost != 0 {
		t.Errorf("verify finds %v", rep.Findings)
	}
	r.reopen(false) // without another word
	for key, b := range want {
		r.mustRead(key, b)
	}
	if ls, err := r.st.Losses(); err != nil || !slices.Equal(ranges(Ranges(ls)), lost) {
		t.Errorf("an index from a snapshot says %+v, %v", ls, err)
	}
	if res, err := r.scrub(fast); err != nil || res.Orphans == 0 {
		t.Errorf("what is left of them: %+v, %v", res, err)
	}
	r.checked()
	if r.st.GivenUp() != 0 {
		t.Error("it is told of again")
	}
}

// TestLyingEnd: one node makes up a log pack far above the tail. The word does not stand
// for that, or no later start would wait for what was acknowledged; without the node it
// does, and what is written from then on is above all that was given up.
func TestLyingEnd(t *testing.T) {
	t.Parallel()
	for _, c := range []struct{ seq, epoch uint64 }{{1 << 62, 1 << 60}, {0, 1 << 60}, {1 << 62, 1}} {
		r := newRig(t)
		r.idle()
		ctx := t.Context()
		want := r.wide()
		_, wide := r.together("t", 70)
		n := len(wide)
		if n < 2 || wide[n-2]+1 != wide[n-1] || wide[n-1] != r.seq() {
			t.Skipf("log packs %v are coded wide, the newest is %d", wide, r.seq())
		}
		lost := wide[n-2:]
		r.loseLog(3, lost...)
		h := pack.Header{Kind: pack.Log, MetaCoded: true, Pack: id.Pack{1}, K: 4, M: 2, MetaLen: 4096, SliceLen: 4096, Writer: r.st.auth.Writer, Counter: 1 << 40, Epoch: c.epoch, Seq: c.seq, Attempt: 1, Prev: id.Pack{2}}
		if h.Seq == 0 {
			h.Seq = r.seq() + 1
		}
		if h.Epoch == 1 {
			h.Epoch = r.st.auth.Epoch
		}
		body := make([]byte, 4096)
		if _, err := r.nodes["n01"].Put(ctx, r.st.auth, node.ForRepair, node.Shard{Head: append(h.Append(nil), pack.AppendTable(nil, nil, body)...), Body: body}); err != nil {
			t.Fatal(err)
		}
		r.close()
		r.loseIndex()
		if out, err := r.rebuildLossy(true, nil); !errors.Is(err, ErrDamaged) || !strings.Contains(fmt.Sprint(err), "node n01 ") {
			t.Fatalf("sequence %d, epoch %d: %+v, %v", h.Seq, h.Epoch, out, err)
		}
		r.loseIndex()
		r.away = map[string]bool{"n01": true}
		out, err := r.rebuildLossy(true, func(c *Config) { delete(c.Nodes, "n01") })
		if err != nil || len(out.Losses) != 1 || out.Losses[0].To > lost[1] {
			t.Fatalf("%+v, %v", out, err)
		}
		r.open()
		losses, err := r.st.Losses()
		if err != nil || len(losses) != 1 || losses[0].Epoch >= r.st.auth.Epoch {
			t.Errorf("%+v, and epoch %d; %v", losses, r.st.auth.Epoch, err)
		}
		for key, b := range want {
			r.mustRead(key, b)
		}
		r.checked()
	}
}
