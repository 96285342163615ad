package store

import (
	"context"
	"encoding/json"
	"sync"
	"testing"
	"time"

	"cairn/id"
	"cairn/index"
	"cairn/node"
	"cairn/node/disk"
	"cairn/pack"
)

// TestReadsStartRepairs: a read that finds a shard rotten or missing where it should lie has
// its pack repaired, and gets its bytes meanwhile.
func TestReadsStartRepairs(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	objects := map[string][]byte{"a": random(1, 9<<20), "b": random(2, 9<<20)}
	for key, b := range objects {
		r.put(key, b)
	}
	broken := 0
	for p, places := range r.placesOf(pack.Data) {
		r.remove(p, places[0])
		r.rot(p, places[1])
		broken += 2
	}
	repairs := func() (shards, suspects int) {
		for _, j := range r.jobs() {
			var res RepairResult
			if j.Kind == JobRepair && json.Unmarshal(j.Result, &res) == nil {
				shards, suspects = shards+res.Shards, suspects+res.Suspects
			}
		}
		return shards, suspects
	}
	if n, _ := repairs(); broken < 4 || n > 0 {
		t.Fatalf("%d shards are broken, %d repaired before a read", broken, n)
	}
	for deadline := time.Now().Add(aWhile); ; time.Sleep(10 * time.Millisecond) {
		for key, want := range objects {
			r.mustRead(key, want)
		}
		shards, suspects := repairs()
		if shards == broken && suspects > 0 {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("%d of %d shards are repaired, %d packs were suspects", shards, broken, suspects)
		}
	}
	if res, err := r.scrub(deeply(fast)); err != nil || res.Damaged > 0 {
		t.Errorf("behind it: %+v, %v", res, err)
	}
}

// TestWeakestPacksAreRepairedFirst: with two nodes lost, one behind the other, the packs that
// can lose nothing more come before those that can lose one.
func TestWeakestPacksAreRepairedFirst(t *testing.T) {
	r := newRig(t)
	r.idle()
	r.put("old", random(8, 8<<20))
	r.close()
	r.away = map[string]bool{"n06": true}
	r.open()
	r.put("narrow", random(9, 8<<20)) // on five nodes
	r.close()
	r.away = nil
	r.wipe("n01")
	r.wipe("n06")
	r.open()
	var mu sync.Mutex
	var order []id.Pack
	for _, name := range []string{"n01", "n06"} {
		if _, err := disk.Format(r.fs[name], disk.Config{Cluster: r.cluster}); err != nil {
			t.Fatal(err)
		}
		n, err := disk.Open(r.fs[name], disk.Config{Cluster: r.cluster})
		if err != nil {
			t.Fatal(err)
		}
		r.nodes[name] = n
		if err := r.st.ReplaceNode(t.Context(), name, putWatcher{n, func(why node.Purpose, sh node.Shard) {
			if h, err := pack.ParseHeader(sh.Head); err == nil && why == node.ForRepair && h.Kind == pack.Data {
				mu.Lock()
				order = append(order, h.Pack)
				mu.Unlock()
			}
		}}); err != nil {
			t.Fatal(err)
		}
	}
	out, err := r.st.Repair(t.Context())
	if err != nil || out.Short > 0 || out.Written == 0 || out.Read < 2*out.Written {
		t.Fatalf("%+v, %v", out, err)
	}
	width := map[id.Pack]uint8{}
	if err := r.st.view(func(rd index.Reader) error {
		return rd.EachPack(func(p id.Pack, row index.PackRow) error {
			width[p] = row.K
			return nil
		})
	}); err != nil {
		t.Fatal(err)
	}
	narrow := 0
	for _, p := range order {
		if width[p] == 3 {
			narrow++
		} else if narrow > 0 {
			t.Errorf("a pack that could lose nothing more was repaired behind %d shards of one that could", narrow)
		}
	}
	if narrow == 0 || narrow == len(order) {
		t.Errorf("%d of %d shards were of narrow packs", narrow, len(order))
	}
}

// putWatcher tells of each put to a node.
type putWatcher struct {
	node.Store
	on func(node.Purpose, node.Shard)
}

func (w putWatcher) Put(ctx context.Context, by node.Authority, why node.Purpose, sh node.Shard) (id.Instance, error) {
	w.on(why, sh)
	return w.Store.Put(ctx, by, why, sh)
}
