package store

import (
	"context"
	"errors"
	"sync/atomic"
	"testing"
	"time"

	"cairn/node"
	"cairn/pack"
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
