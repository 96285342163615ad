package sim

import (
	"context"
	"errors"
	"io"
	"os"
	"path"
	"runtime"
	"testing"
	"testing/synctest"
	"time"

	"cairn/index/kv/memkv"
	"cairn/store"
)

// fixed plays a history that is written out, in a bubble.
func fixed(t *testing.T, play func(t *testing.T, w *world)) {
	t.Helper()
	runtime.GC()
	runtime.GC()
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(1))
	synctest.Test(t, func(t *testing.T) {
		cfg := Config{LossEvery: 1 << 30, MostBlocks: 1}
		if testing.Verbose() {
			cfg.Log = t.Output()
		}
		w := newWorld(1, cfg)
		w.clients = []*client{newClient(w, 0)}
		g, nodes, err := w.tryOpen(context.Background(), nil)
		if err != nil {
			t.Fatal(err)
		}
		if err := w.prepare(g); err != nil {
			t.Fatal(err)
		}
		w.opened()
		w.publish(g, nodes)
		play(t, w)
		w.end()
		w.drains.Wait()
		if w.wrong != nil {
			t.Error(w.wrong)
		}
	})
}

// put makes an acknowledged write of n bytes.
func (w *world) put(t *testing.T, i int, n int) *item {
	t.Helper()
	c := w.clients[0]
	it := c.items[i]
	if !c.change(w.cur, it, op{kind: opPut, body: &content{name: uint64(n) | 1, head: n, size: n}}) {
		t.Fatalf("put %v was not acknowledged", it)
	}
	return it
}

// open starts on the nodes that are not away, and publishes.
func (w *world) open(away ...string) error {
	gone := map[string]bool{}
	for _, n := range away {
		gone[n] = true
	}
	g, nodes, err := w.tryOpen(context.Background(), gone)
	if err != nil {
		w.engine = w.engine.Reopen()
		return err
	}
	w.opened()
	w.publish(g, nodes)
	return nil
}

// spoilTail flips a bit near the end of what a node's journal holds.
func spoilTail(t *testing.T, v *volume, back int64) {
	t.Helper()
	files, err := v.fs().ReadDir("journal")
	if err != nil {
		t.Fatal(err)
	}
	name, last := "", int64(-1)
	for _, f := range files {
		n := path.Join("journal", f)
		if path.Ext(f) != ".new" && path.Ext(f) != ".seg" {
			continue
		}
		h, err := v.fs().OpenFile(n, os.O_RDONLY, 0)
		if err != nil {
			t.Fatal(err)
		}
		info, err := h.Stat()
		if err != nil {
			t.Fatal(err)
		}
		b := make([]byte, info.Size)
		if _, err := h.ReadAt(b, 0); err != nil && err != io.EOF {
			t.Fatal(err)
		}
		if err := h.Close(); err != nil {
			t.Fatal(err)
		}
		end := int64(len(b)) - 1
		for end >= 0 && b[end] == 0 {
			end--
		}
		if end >= back && n > name { // the youngest segment with enough in it
			name, last = n, end
		}
	}
	if name == "" {
		t.Fatal("no journal holds anything")
	}
	if err := v.fs().Flip(name, (last-back)*8); err != nil {
		t.Fatal(err)
	}
}

// TestDamagedTailIsNoAnswer rots the newest log pack's shard on two nodes and
// leaves two others away: the start must wait, since the four that answer show
// only two good shards of a pack that was acknowledged.
func TestDamagedTailIsNoAnswer(t *testing.T) {
	fixed(t, func(t *testing.T, w *world) {
		w.put(t, 0, 1000)
		it := w.put(t, 1, 100<<10) // its pack has four data shards, one on each node
		w.crash(false)
		for _, v := range w.vols[:2] {
			spoilTail(t, v, 12<<10)
			v.lost, v.reason = true, "rotten"
		}
		w.engine = memkv.New(memkv.Options{})
		err := w.open("n05", "n06")
		if !errors.Is(err, store.ErrUnavailable) {
			t.Errorf("start with two damaged shards of the tail and two nodes away: %v; want unavailable", err)
		}
		if err != nil {
			if err := w.open(); err != nil {
				t.Fatalf("start with all nodes: %v", err)
			}
		}
		w.checkItem(w.cur, it, "after the start")
		w.checkAll(w.cur, "after the start")
	})
}

// TestAlteredShardHoldsNoStartUp leaves a log pack on four nodes, one of which
// gives other bytes: it looks complete and does not open. It was not acknowledged,
// and the nodes that hold it truly are no reason to wait.
func TestAlteredShardHoldsNoStartUp(t *testing.T) {
	fixed(t, func(t *testing.T, w *world) {
		w.put(t, 0, 1000)
		for _, v := range w.vols[4:] {
			v.change(func(m *mood) { m.noWrites = "journal/" })
		}
		c, g, done := w.clients[0], w.cur, make(chan struct{})
		go func() {
			defer close(done)
			c.change(g, c.items[1], op{kind: opPut, body: &content{name: 7, head: 100 << 10, size: 100 << 10}})
		}()
		time.Sleep(15 * time.Millisecond) // one attempt, before the next with fewer nodes
		w.crash(false)
		<-done
		for _, v := range w.vols[4:] {
			v.change(func(m *mood) { m.noWrites = "" })
		}
		v := w.vols[0]
		v.change(func(m *mood) { m.forges = true })
		v.lost, v.reason = true, "forges"
		if err := w.open(); err != nil {
			t.Fatalf("start: %v", err)
		}
		w.checkAll(w.cur, "after the start")
	})
}

// TestForkIsNotChosenForwards builds a fork of the log. A write reaches two nodes
// only and is not acknowledged. A start that does not see those two writes its
// begin pack to two others, and dies. A start that does not see that adopts the
// write and goes on, in a higher epoch. The last start sees everything, and must
// follow what was acknowledged, though the begin pack is of a higher epoch than
// its rival.
func TestForkIsNotChosenForwards(t *testing.T) {
	fixed(t, func(t *testing.T, w *world) {
		spoil := func(from, to int) { // no journal takes a write there
			for i, v := range w.vols {
				v.change(func(m *mood) {
					if m.noWrites = ""; i >= from && i < to {
						m.noWrites = "journal/"
					}
				})
			}
		}
		c := w.clients[0]
		w.put(t, 0, 1000)
		spoil(2, 6)
		if c.change(w.cur, c.items[1], op{kind: opPut, body: &content{name: 5, head: 500, size: 500}}) {
			t.Fatal("a write on two nodes was acknowledged")
		}
		w.crash(false)
		spoil(0, 0)

		w.engine = memkv.New(memkv.Options{})
		w.between = func() { spoil(4, 6) }
		if err := w.open("n01", "n02"); !errors.Is(err, store.ErrUnavailable) {
			t.Fatalf("start whose begin pack reaches two nodes: %v; want unavailable", err)
		}
		w.between = nil
		for _, v := range w.vols {
			w.cut(v, false)
		}
		spoil(0, 0)

		w.engine = memkv.New(memkv.Options{})
		if err := w.open("n03", "n04"); err != nil {
			t.Fatal(err)
		}
		for i := 2; i < 6; i++ {
			w.put(t, i, 3000+i)
		}
		w.checkAll(w.cur, "on the branch that goes on")
		if w.over() {
			return
		}
		if live := c.items[1].states[0].live(); len(c.items[1].states) != 1 || live == nil {
			t.Fatalf("the write on two nodes was not adopted: %s", c.items[1].describe())
		}
		w.crash(true)
		w.engine = memkv.New(memkv.Options{})
		if err := w.open(); err != nil {
			t.Fatal(err)
		}
		w.checkAll(w.cur, "with both branches in sight")
	})
}

// TestIndexThatKnowsMoreStopsTheStart takes all nodes back in time and leaves the
// index: it is the only record of what was acknowledged since.
func TestIndexThatKnowsMoreStopsTheStart(t *testing.T) {
	fixed(t, func(t *testing.T, w *world) {
		w.put(t, 0, 1000)
		w.stop()
		for _, v := range w.vols {
			v.old = v.fs().Clone()
		}
		if err := w.open(); err != nil {
			t.Fatal(err)
		}
		for i := range 5 {
			w.put(t, i, 2000+i)
		}
		w.stop()
		for _, v := range w.vols {
			v.mount(v.old.Kill())
			v.fs().Inject(w.inject(v))
		}
		if err := w.open(); !errors.Is(err, store.ErrDivergent) {
			t.Errorf("start with an index that is ahead of all nodes: %v; want divergent", err)
		}
	})
}
