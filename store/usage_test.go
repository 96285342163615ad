package store

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"sync/atomic"
	"testing"
	"time"

	"cairn/node"
	"cairn/pack"
	"cairn/record"
)

func (r *rig) usage() Usage {
	r.t.Helper()
	u, err := r.st.Usage(context.Background())
	if err != nil {
		r.t.Fatal(err)
	}
	if got := int64(u.PhysicalBytes) - int64(u.Parts()); got != u.UnaccountedBytes {
		r.t.Errorf("%d bytes on disk, parts of %d, and %d are said to be unaccounted for", u.PhysicalBytes, u.Parts(), u.UnaccountedBytes)
	}
	return u
}

// TestUsageTellsMissingAndStrays: shards that are gone, shards too many, and nodes that
// do not answer show, in bytes.
func TestUsageTellsMissingAndStrays(t *testing.T) {
	r := newRig(t)
	r.idle()
	var dead, mute atomic.Bool
	r.wrap = func(name string, n node.Store) node.Store {
		if name != "n02" {
			return n
		}
		return &dying{Store: n, dead: &dead, mute: &mute}
	}
	r.also(func(c *Config) {
		c.Footprint = func(nodes []string) (int64, int64, error) {
			if want := 6; len(nodes) != want && !mute.Load() {
				t.Errorf("%q say for themselves what they take, want %d", nodes, want)
			}
			return 1000, 300, errors.New("one file could not be counted")
		}
	})
	r.put("a", random(1, 5<<20))
	r.put("b", random(2, 3<<20))
	before := r.usage()
	if before.MissingBytes+before.StrayBytes+before.PendingBytes > 0 || !before.PendingUntil.IsZero() {
		t.Errorf("of a store that is whole: %+v", before)
	}
	if before.IndexBytes != 1000 || before.OtherBytes != 300 || before.UnaccountedBytes > 256<<10 || before.UnaccountedBytes < -256<<10 {
		t.Errorf("usage: %+v", before)
	}
	if sum := before.LiveBytes + before.DeadBytes + before.ParityBytes + before.PaddingBytes; sum != uint64(r.heldBytes()) {
		t.Errorf("the index names %d bytes of shards, the nodes hold %d", sum, r.heldBytes())
	}
	for p, places := range r.placesOf(pack.Data) {
		_, _, b := r.readHeld(p, places[0])
		r.remove(p, places[0])
		gone := uint64(len(b))
		u := r.usage()
		if u.MissingBytes != gone || u.StrayBytes != 0 || u.PendingBytes != gone || u.PendingUntil.IsZero() {
			t.Errorf("a shard of %d bytes was deleted: %+v", gone, u)
		}
		// On a node that lacks nothing; where something is missing the two make up for
		// each other.
		r.keep(r.st.members.Load().byID[places[1].Node].info.Name, b)
		if u = r.usage(); u.MissingBytes != gone || u.StrayBytes != gone {
			t.Errorf("and put onto another node: %d bytes are missing, %d are strays, want %d", u.MissingBytes, u.StrayBytes, gone)
		}
		r.keep(r.st.members.Load().byID[places[0].Node].info.Name, b)
		if u = r.usage(); u.MissingBytes != 0 || u.StrayBytes != gone {
			t.Errorf("and put back: %d bytes are missing, %d are strays, want 0 and %d", u.MissingBytes, u.StrayBytes, gone)
		}
		break
	}
	held, err := r.nodes["n02"].Usage(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	mute.Store(true)
	if u := r.usage(); u.MissingBytes == 0 || u.MissingBytes > uint64(held.LiveBytes) {
		t.Errorf("n02, with %d bytes of shards, says nothing, and %d are missing", held.LiveBytes, u.MissingBytes)
	}
}

// TestUsageTellsWhatWaits: what is condemned is told of with its time and the transfers
// that it waits for; without a collection in this process, too.
func TestUsageTellsWhatWaits(t *testing.T) {
	r := collects(t)
	r.put("a", random(1, 3<<20))
	r.put("b", random(2, 3<<20))
	r.put("small", random(3, 3000))
	if w := r.usage().Waiting; w != (Waiting{}) {
		t.Errorf("nothing is condemned: %+v", w)
	}
	if u := r.usage(); u.UnreferencedBytes != 0 || u.JournalBytes < 3*3000 || u.SnapshotBytes != 0 {
		t.Errorf("%d bytes are unreferenced, %d of the journal, %d of snapshots", u.UnreferencedBytes, u.JournalBytes, u.SnapshotBytes)
	}
	r.forget("a")
	if u := r.usage(); u.UnreferencedBytes < 3<<20 || u.UnreferencedBytes > u.DeadBytes {
		t.Errorf("%d bytes are unreferenced, %d dead", u.UnreferencedBytes, u.DeadBytes)
	}
	out := r.collect(false)
	w := r.usage().Waiting
	if w.Chunks != out.Waiting || w.Bytes != out.WaitingBytes || w.Bytes < 3<<20 || !w.Until.Equal(*out.WaitingUntil) {
		t.Errorf("%+v waits, the collection said %+v", w, out)
	}
	r.close()
	r.open()
	if again := r.usage().Waiting; again.Chunks != w.Chunks || again.Bytes != w.Bytes || !again.Until.Equal(w.Until) {
		t.Errorf("after a restart %+v waits, before %+v", again, w)
	}
	r.collect(true)
	if w := r.usage().Waiting; w != (Waiting{}) {
		t.Errorf("all was removed: %+v", w)
	}
	r.snapshot()
	if u := r.usage(); u.SnapshotBytes == 0 {
		t.Error("a snapshot takes nothing")
	}
}

// TestUsageTellsWhoIsWaitedFor: a transfer that began before the condemnation.
func TestUsageTellsWhoIsWaitedFor(t *testing.T) {
	r := collects(t)
	r.put("a", random(1, 3<<20))
	x := r.st.transfer()
	r.forget("a")
	r.collect(false)
	if w := r.usage().Waiting; w.Chunks == 0 || w.Transfers != 1 || w.Oldest <= 0 || time.Until(w.Until) <= 0 {
		t.Errorf("%+v", w)
	}
	x.end()
	if w := r.usage().Waiting; w.Chunks == 0 || w.Transfers != 0 || w.Oldest != 0 {
		t.Errorf("the transfer has ended: %+v", w)
	}
}

// TestShares: the job says whose the space is, page by page; what the store keeps for
// itself counts as one.
func TestShares(t *testing.T) {
	r := collects(t)
	ctx := context.Background()
	if _, err := r.st.Shares(ctx, "", 0); !errors.Is(err, ErrNoShares) {
		t.Errorf("before any run: %v", err)
	}
	put := func(bucket, key string, b []byte) {
		t.Helper()
		if _, err := r.st.Put(ctx, bucket, key, bytes.NewReader(b), PutOptions{Size: -1}); err != nil {
			t.Fatal(err)
		}
	}
	for _, name := range []string{"other", "third"} {
		if _, err := r.st.CreateBucket(ctx, name, record.Settings{}); err != nil {
			t.Fatal(err)
		}
	}
	common, alone, upload := random(1, 40<<20), random(2, 1<<20), random(3, 2<<20) // the first under a list
	put("main", "a", common)
	put("other", "b", common)
	put("other", "c", common)
	put("other", "d", alone)
	put("main", "gone", random(4, 3<<20))
	r.forget("gone")
	u := r.begin("sent", -1)
	if _, err := r.st.AppendUpload(ctx, u.ID, 0, bytes.NewReader(upload)); err != nil {
		t.Fatal(err)
	}
	j, err := r.st.StartJob(ctx, JobUsage, JobOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if j = ended(t, r.st, j.ID); j.State != JobDone {
		t.Fatalf("%+v", j)
	}
	var res SharesResult
	if err := json.Unmarshal(j.Result, &res); err != nil {
		t.Fatal(err)
	}
	var all []BucketShare
	var page SharesPage
	for more, after := true, ""; more; more = page.More {
		if page, err = r.st.Shares(ctx, after, 2); err != nil || len(page.Buckets) > 2 {
			t.Fatalf("%+v, %v", page, err)
		}
		all, after = append(all, page.Buckets...), page.Buckets[len(page.Buckets)-1].Name
	}
	if len(all) != 3 || page.Job != j.ID || page.Sequence != res.Sequence || res.Buckets != 3 {
		t.Fatalf("%+v, %+v", all, page)
	}
	about := func(what string, got uint64, want ...[]byte) {
		t.Helper()
		n := uint64(0)
		for _, b := range want {
			n += uint64(len(b))
		}
		if got < n || got > n+n/100 { // sealed, and lists
			t.Errorf("%s: %d bytes, want those of %d", what, got, n)
		}
	}
	main, other, third := all[0], all[1], all[2]
	about("main", main.Sealed, common)
	about("main, fair", main.Fair, common[:len(common)/2])
	about("other", other.Sealed, common, alone)
	about("other, exclusive", other.Exclusive, alone)
	about("other, fair", other.Fair, common[:len(common)/2], alone)
	about("own", page.Own.Exclusive, upload)
	about("shared", res.Shared, common)
	about("unreferenced", res.Unreferenced, random(4, 3<<20))
	if main.Name != "main" || main.Bytes != uint64(len(common)) || main.Exclusive != 0 || other.Bytes != uint64(2*len(common)+len(alone)) || third != (BucketShare{Name: "third"}) {
		t.Errorf("%+v", all)
	}
	if sum := main.Fair + other.Fair + page.Own.Fair; sum != res.Bytes || sum != r.totals().LiveBytes {
		t.Errorf("fair shares of %d bytes together, %d are said to be used, %d live", sum, res.Bytes, r.totals().LiveBytes)
	}
	// Deleting the bucket frees what was said.
	before := r.totals().SealedBytes
	for _, key := range []string{"b", "c", "d"} {
		o, err := r.st.Get(ctx, "other", key, GetOptions{})
		if err != nil {
			t.Fatal(err)
		}
		o.Body(0, 0).Close()
		if err := r.st.DeleteVersion(ctx, "other", key, o.Object.Version, false); err != nil {
			t.Fatal(err)
		}
	}
	r.collect(true)
	if freed := before - r.totals().SealedBytes - res.Unreferenced; freed != other.Exclusive {
		t.Errorf("%d bytes came back, %d were exclusive", freed, other.Exclusive)
	}
	if _, err := r.st.StartJob(ctx, JobUsage, JobOptions{DryRun: true}); !errors.Is(err, ErrInvalid) {
		t.Errorf("options: %v", err)
	}
}
