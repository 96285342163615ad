package store

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"testing"

	"cairn/id"
	"cairn/index"
	"cairn/node/disk"
	"cairn/seal"
)

// replace puts new, empty nodes in the place of those that were wiped.
func (r *rig) replace(names ...string) {
	r.t.Helper()
	for _, name := range names {
		r.wipe(name)
	}
	for _, name := range names {
		if _, err := disk.Format(r.fs[name], disk.Config{Cluster: r.cluster}); err != nil {
			r.t.Fatal(err)
		}
		n, err := disk.Open(r.fs[name], disk.Config{Cluster: r.cluster})
		if err != nil {
			r.t.Fatal(err)
		}
		r.nodes[name] = n
		if err := r.st.ReplaceNode(context.Background(), name, n); err != nil {
			r.t.Fatalf("replace %s: %v", name, err)
		}
	}
}

// putWide stores an object whose packs of data all lie on six nodes, with the first
// data shard on one of those that are lost. A pack that was sealed early may be
// narrower; and data shards that are there are read although others are too few.
func (r *rig) putWide(key string, size int) []byte {
	r.t.Helper()
	for try := range 100 {
		b := random(uint64(1000*try+size), size)
		r.put(key, b)
		p, err := r.st.Placement(context.Background(), "main", key, PlacementOptions{})
		if err != nil {
			r.t.Fatal(err)
		}
		if !slices.ContainsFunc(p.Packs, func(x PackPlace) bool { return !x.Log && (x.K != 4 || len(x.Shards) != 6 || x.Shards[0].Node > "n03") }) {
			return b
		}
	}
	r.t.Fatal("no object of a hundred lies on all six nodes")
	return nil
}

// lose makes more nodes new than the store survives, before anything is repaired.
// The nodes go one by one, two of them while the store is stopped.
func (r *rig) lose() {
	r.t.Helper()
	r.close()
	r.wipe("n01")
	r.wipe("n02")
	r.open()
	r.replace("n01", "n02")
	r.close()
	r.wipe("n03")
	r.open()
	r.replace("n03")
}

// H25: chunks of a pack that is lost for good are no hits. The next upload of
// the same bytes heals them, and with them every object that shares them.
func TestLostChunksAreHealedByTheNextUpload(t *testing.T) {
	r := newRig(t)
	r.change = func(c *Config) { c.idle, c.loseAtOnce, c.Lag = true, 3, noDeadline } // no shard on a second node
	r.close()
	r.open()
	ctx := context.Background()
	const most = 4 << 20 // the ends of objects are in log packs, which lose less
	big, other := r.putWide("big", 3<<20), r.putWide("other", 2<<20)
	r.lose()
	for _, key := range []string{"big", "other"} {
		if _, err := r.read(key); !errors.Is(err, ErrDamaged) || errors.Is(err, ErrUnavailable) {
			t.Errorf("%s, of which three shards are on nodes that are gone for good: got %v, want %v", key, err, ErrDamaged)
		}
	}
	seq := func() uint64 { return r.st.writer.head.seq }
	before := seq()
	rep, err := r.st.Repair(ctx)
	if err != nil || rep.Lost == 0 || rep.Short != 0 || rep.LostBytes < most {
		t.Fatalf("repair: %+v, %v; want packs lost with %d bytes and more", rep, err, most)
	}
	if seq() < before+2 {
		t.Errorf("the log went from %d to %d: three chunks go into a record, there are more", before, seq())
	}
	st, err := r.st.Status(ctx)
	if err != nil || st.PacksLost == 0 || st.LostBytes < most {
		t.Fatalf("status: %d packs and %d bytes lost, %v", st.PacksLost, st.LostBytes, err)
	}
	before = seq()
	if again, err := r.st.Repair(ctx); err != nil || again.Lost != rep.Lost || seq() != before {
		t.Errorf("a second repair: %+v, %v, log from %d to %d; want the same and no record", again, err, before, seq())
	}
	if _, err := r.st.Copy(ctx, Name{Bucket: "main", Key: "big"}, Name{Bucket: "main", Key: "copy"}, CopyOptions{}); !errors.Is(err, ErrDamaged) {
		t.Errorf("copy of what is lost: got %v, want %v", err, ErrDamaged)
	}

	r.put("again", big)
	lost := st.LostBytes
	check := func(when string) {
		t.Helper()
		for _, key := range []string{"big", "again"} {
			r.mustRead(key, big)
		}
		if _, err := r.read("other"); !errors.Is(err, ErrDamaged) {
			t.Errorf("%s: what nobody brought again: got %v, want %v", when, err, ErrDamaged)
		}
		if st, err := r.st.Status(ctx); err != nil || st.PacksLost == 0 || st.LostBytes+most/2 > lost {
			t.Errorf("%s: %d packs and %d bytes are lost, %v; they were %d", when, st.PacksLost, st.LostBytes, err, lost)
		}
	}
	check("after the upload")
	r.close()
	r.open()
	check("after a start")
	r.put("other", other)
	r.mustRead("other", other)
	if _, err := r.st.CheckIndex(ctx); err != nil {
		t.Error(err)
	}
}

// A shard of a node that does not answer may come back: nothing is lost by that.
func TestAwayIsNotLost(t *testing.T) {
	r := newRig(t)
	r.idle()
	big := r.putWide("big", 3<<20)
	r.close()
	r.wipe("n01")
	r.wipe("n02")
	r.open()
	r.replace("n01", "n02")
	r.close()
	r.away = map[string]bool{"n03": true}
	r.open()
	if _, err := r.read("big"); !errors.Is(err, ErrUnavailable) || errors.Is(err, ErrDamaged) {
		t.Errorf("with one node away: got %v, want %v", err, ErrUnavailable)
	}
	rep, err := r.st.Repair(t.Context())
	if err != nil || rep.Lost != 0 || rep.Short == 0 {
		t.Errorf("repair with a node away: %+v, %v; want packs that are short and none lost", rep, err)
	}
	if st, err := r.st.Status(t.Context()); err != nil || st.PacksLost != 0 {
		t.Errorf("%d packs count as lost, %v", st.PacksLost, err)
	}
	r.close()
	r.away = nil
	r.open()
	r.mustRead("big", big)
	if rep, err := r.st.Repair(t.Context()); err != nil || rep.Packs == 0 || rep.Short+rep.Lost != 0 {
		t.Errorf("repair with the node back: %+v, %v", rep, err)
	}
}

// What is stored already and cannot be read now is not acknowledged again.
func TestHitThatCannotBeReadIsRefused(t *testing.T) {
	r := newRig(t)
	r.idle()
	big := r.putWide("big", 3<<20)
	r.close()
	r.wipe("n01")
	r.wipe("n02")
	r.open()
	r.put("with two away", big) // four of six are there
	r.mustRead("with two away", big)
	r.replace("n01", "n02")
	r.close()
	r.away = map[string]bool{"n03": true}
	r.open()
	if err := r.tryPut("again", big); !errors.Is(err, ErrUnavailable) {
		t.Errorf("put of bytes in a pack with three of six shards at hand: got %v, want %v", err, ErrUnavailable)
	}
	if _, err := r.read("again"); !errors.Is(err, ErrNoObject) {
		t.Errorf("the object that was refused: got %v, want %v", err, ErrNoObject)
	}
	other := random(64, 3<<20)
	r.put("other", other)
	r.mustRead("other", other)
	r.close()
	r.away = nil
	r.open()
	r.put("again", big)
	r.mustRead("again", big)
}

// What is lost deep within a long object is not promised again under another name: by
// a copy, or by an upload that is completed. An upload that is lost can be aborted.
func TestLostPartsAreNotPromised(t *testing.T) {
	r := newRig(t)
	r.change = func(c *Config) { c.idle, c.Lag, c.UploadPart = true, noDeadline, 8<<20 }
	r.close()
	r.open()
	ctx := t.Context()
	long := random(65, 40<<20) // more chunks than a manifest has roots
	r.put("long", long)
	up, err := r.st.BeginUpload(ctx, "main", "up", UploadOptions{Size: -1})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := r.st.AppendUpload(ctx, up.ID, 0, bytes.NewReader(random(66, 40<<20))); err != nil {
		t.Fatal(err)
	}
	r.lose()
	if rep, err := r.st.Repair(ctx); err != nil || rep.Lost == 0 {
		t.Fatalf("repair: %+v, %v", rep, err)
	}
	if _, err := r.st.Copy(ctx, Name{"main", "long"}, Name{"main", "copy"}, CopyOptions{}); !errors.Is(err, ErrDamaged) {
		t.Errorf("copy of an object that lost chunks: got %v, want %v", err, ErrDamaged)
	}
	if _, err := r.st.CompleteUpload(ctx, up.ID, Conditions{}); !errors.Is(err, ErrDamaged) || errors.Is(err, ErrRetry) {
		t.Errorf("an upload that lost bytes is completed: got %v, want %v", err, ErrDamaged)
	}
	us, more, err := r.st.Uploads(ctx, "", 0)
	if err != nil || more || len(us) != 1 || us[0].ID != up.ID {
		t.Errorf("uploads: %+v, %v, %v", us, more, err)
	}
	if err := r.st.AbortUpload(ctx, up.ID); err != nil {
		t.Errorf("abort of an upload that lost bytes: %v", err)
	}
	r.put("again", long)
	if _, err := r.st.Copy(ctx, Name{"main", "long"}, Name{"main", "copy"}, CopyOptions{}); err != nil {
		t.Errorf("copy of an object that is healed: %v", err)
	}
	r.mustRead("copy", long)
}

// A log pack that is lost is made up for by snapshots: then the index can be lost too.
// A repair that ends early forgets nothing that was found lost.
func TestLostLogPackIsPutBehindSnapshots(t *testing.T) {
	r := newRig(t)
	r.idle()
	ctx := t.Context()
	big := r.putWide("big", 3<<20)
	want := map[string][]byte{}
	for i := range 60 { // one log pack each, on three nodes of the six
		key := fmt.Sprint("k", i)
		want[key] = random(uint64(100+i), 100)
		r.put(key, want[key])
	}
	r.lose()
	if _, err := r.st.Repair(ctx); err != nil {
		t.Fatal(err)
	}
	st, err := r.st.Status(ctx)
	if err != nil || st.LostBytes == 0 {
		t.Fatalf("status: %+v, %v", st, err)
	}
	stop, cancel := context.WithCancel(ctx)
	cancel()
	if _, err := r.st.Repair(stop); err == nil {
		t.Error("a repair that is called off succeeds")
	}
	if again, err := r.st.Status(ctx); err != nil || again.PacksLost != st.PacksLost || again.LostBytes != st.LostBytes {
		t.Errorf("behind a repair that was called off %d packs and %d bytes are lost, %v; they were %d and %d", again.PacksLost, again.LostBytes, err, st.PacksLost, st.LostBytes)
	}
	if st.LogPacksLost > 0 {
		if due, err := r.st.snapshotDue(); !due || err != nil {
			t.Errorf("with %d log packs lost no snapshot is due: %v", st.LogPacksLost, err)
		}
	}
	r.put("big", big)
	for key, b := range want {
		r.put(key, b) // what a log pack took along is stored again
	}
	for range 2 {
		r.snapshot()
	}
	if due, err := r.st.snapshotDue(); due || err != nil {
		t.Errorf("behind two snapshots another is due: %v, %v", due, err)
	}
	rep, err := r.st.Repair(ctx)
	if err != nil || rep.Lost != 0 || len(rep.Errs) > 0 {
		t.Errorf("repair behind two snapshots: %+v, %v", rep, err)
	}
	if st, err = r.st.Status(ctx); err != nil || st.LogPacksLost != 0 || st.LostBytes != 0 || st.PacksLost != 0 {
		t.Errorf("behind two snapshots: %d log packs, %d packs, %d bytes lost, %v", st.LogPacksLost, st.PacksLost, st.LostBytes, err)
	}
	r.close()
	r.loseIndex()
	r.open()
	r.mustRead("big", big)
	for key, b := range want {
		r.mustRead(key, b)
	}
}

// An entry of a log pack counts before its records. A write that brings a chunk in
// the very round that marks it as damaged goes into the next one, and heals it there.
func TestLostInTheRoundThatBringsItAgain(t *testing.T) {
	r := newRig(t)
	r.idle()
	small := []byte("small")
	r.put("small", small)
	r.lose()
	s := r.st
	realm, err := s.realm(id.Main)
	if err != nil {
		t.Fatal(err)
	}
	var at id.Pack
	c := realm.chunkID(seal.Data, small)
	if err := s.view(func(rd index.Reader) error {
		row, err := rd.Chunk(realm.realm, c)
		at = row.Pack
		return err
	}); err != nil {
		t.Fatal(err)
	}
	info, body, free, err := s.compress(t.Context(), realm, c, seal.Data, true, small)
	if err != nil {
		t.Fatal(err)
	}
	defer free()
	sealed, err := realm.sealer.Seal(nil, info, body)
	if err != nil {
		t.Fatal(err)
	}
	results := make(chan error, 2)
	done := func(err error) { results <- err }
	lost := s.loss(at)
	lost.sub.ctx, lost.sub.done = t.Context(), done
	again := &submission{ctx: t.Context(), inline: []inline{{info, sealed}}, done: done}
	before, err := s.index.Head()
	if err != nil {
		t.Fatal(err)
	}
	if err := s.writer.enqueue(lost.sub, again); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(<-results, <-results); err != nil {
		t.Fatal(err)
	}
	if h, err := s.index.Head(); err != nil || h.Seq < before.Seq+2 {
		t.Errorf("both are in one log pack: head %d after %d, %v", h.Seq, before.Seq, err)
	}
	r.mustRead("small", small)
	if s.Failure() != nil {
		t.Error(s.Failure())
	}
}
