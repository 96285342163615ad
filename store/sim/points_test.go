package sim

import (
	"context"
	"fmt"
	"os"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"cairn/index/kv/memkv"
	"cairn/node/disk"
	"cairn/store"
)

// short is a fixed history: every kind of write once, some of them at the same
// time. It notes in the model what was acknowledged.
func (w *world) short(g *gateway) {
	c, other := w.clients[0], w.clients[1]
	small := func(n uint64, size int) *content { return &content{name: n, head: size, size: size} }
	large := &content{name: 3, head: 700 << 10, blocks: []int{0}, size: 700<<10 + blockBytes}
	again := &content{name: 4, head: 0, blocks: []int{0}, size: blockBytes}
	main, versions := c.items[:len(c.items)/2], other.items[len(c.items)/2:]
	done := make(chan struct{})
	go func() {
		defer close(done)
		other.change(g, versions[0], op{kind: opPut, body: small(10, 100)})
		other.change(g, versions[0], op{kind: opPut, body: small(11, 90<<10)})
	}()
	c.change(g, main[0], op{kind: opPut, body: small(1, 1000)})
	c.change(g, main[1], op{kind: opPut, body: large})
	<-done
	c.change(g, main[2], op{kind: opPut, body: again})
	c.change(g, main[0], op{kind: opPut, body: small(2, 150<<10)})
	c.change(g, main[1], op{kind: opDelete})
	_, _ = g.st.Snapshot(context.Background()) // what is found after a crash is what matters
	other.change(g, versions[0], op{kind: opDelete})
	c.change(g, main[1], op{kind: opUndelete})
	c.change(g, c.bucket, op{kind: opMake})
	c.change(g, c.bucket, op{kind: opPut, body: small(5, 10)})
	for range 2 { // the third lets the first go
		_, _ = g.st.Snapshot(context.Background())
	}
	for _, m := range [][2]*item{{main[2], main[4]}, {main[4], c.items[len(c.items)-1]}} {
		if from, to := m[0], m[1]; from.certain() && to.certain() && from.states[0].live() != nil { // nothing was cut short yet
			c.change(g, main[3], op{kind: opPut, from: from, body: from.states[0].live().body})
			c.rename(g, op{kind: opPut, from: from, move: true, body: again}, to)
		}
	}
}

// shortNodes is a fixed history of changes of the node set: of seven and then eight
// nodes one is drained and removed, and shards move to the new ones.
func (w *world) shortNodes(g *gateway, guests map[string]*disk.Node) {
	ctx := context.Background()
	c := w.clients[0]
	put := func(i int, n uint64, size int) {
		c.change(g, c.items[i], op{kind: opPut, body: &content{name: n, head: size, size: size}})
	}
	put(0, 1, 700<<10)
	put(1, 2, 100<<10)
	put(2, 3, 1000)
	// Whatever is refused, by a crash or behind one, what is found afterwards is what
	// matters.
	for _, v := range w.vols[nodeCount:] {
		_ = g.st.AddNode(ctx, store.NewNode{Name: v.name, Labels: []string{fmt.Sprint("disk=", v.no)}}, guests[v.name])
	}
	put(3, 4, 500<<10)
	run := func(kind string) {
		j, err := g.st.StartJob(ctx, kind, unpaced)
		for err == nil && j.State == store.JobRunning && !g.dead.Load() {
			time.Sleep(5 * time.Millisecond)
			j, err = g.st.Job(ctx, j.ID)
		}
	}
	run(store.JobRebalance)
	put(0, 5, 300<<10)
	_ = g.st.DrainNode(ctx, "n02", true)
	run(store.JobDrain)
	put(1, 6, 1000)
	_ = g.st.RemoveNode(ctx, "n02")
	put(2, 7, 200<<10)
}

// shortRaise is a fixed history in which a seventh node is added and m raised.
func (w *world) shortRaise(g *gateway, guests map[string]*disk.Node) {
	ctx := context.Background()
	c := w.clients[0]
	put := func(i int, n uint64, size int) {
		c.change(g, c.items[i], op{kind: opPut, body: &content{name: n, head: size, size: size}})
	}
	put(0, 1, 700<<10)
	put(1, 2, 100<<10)
	put(2, 3, 1000)
	for _, v := range w.vols[nodeCount:] {
		_ = g.st.AddNode(ctx, store.NewNode{Name: v.name, Labels: []string{fmt.Sprint("disk=", v.no)}}, guests[v.name])
	}
	put(3, 4, 300<<10)
	w.atMost = raisedTo
	_ = g.st.Tolerate(ctx, raisedTo)
	put(0, 5, 200<<10)
	for try := 0; try < 3 && !g.dead.Load(); try++ {
		j, err := g.st.StartJob(ctx, store.JobRaise, unpaced)
		for err == nil && j.State == store.JobRunning && !g.dead.Load() {
			time.Sleep(5 * time.Millisecond)
			j, err = g.st.Job(ctx, j.ID)
		}
		if j.State == store.JobDone {
			break
		}
	}
	put(1, 6, 1000)
}

// point plays the fixed history, or that of the nodes or of m, and ends everything when the n-th sync of any
// node is about to begin; then it starts again and checks. It returns how many
// syncs there were.
func point(n int, power, index bool, what played) (syncs int, err error) {
	var (
		armed   atomic.Bool
		count   atomic.Int64
		running *gateway
		crashed = make(chan struct{})
	)
	w := newWorld(uint64(n), Config{LossEvery: 1, MostBlocks: 1, roomy: what == theRaise, onSync: func() {
		if armed.Load() && count.Add(1) == int64(n) {
			running.dead.Store(true)
			close(crashed)
		}
	}})
	g, nodes, err := w.tryOpen(context.Background(), nil)
	if err != nil {
		return 0, err
	}
	w.clients = []*client{newClient(w, 0), newClient(w, 1)}
	if err := w.prepare(g); err != nil {
		return 0, err
	}
	w.opened()
	w.publish(g, nodes)
	running = g
	play := w.short
	if what != theWrites {
		guests, more := map[string]*disk.Node{}, 2
		if what == theRaise {
			more = 1
		}
		for range more {
			v := w.newVolume()
			n, err := disk.Open(v.fs(), w.diskConfig(v))
			if err != nil {
				return 0, err
			}
			w.vols, nodes[v.name], guests[v.name] = append(w.vols, v), n, n
		}
		play = func(g *gateway) { w.shortNodes(g, guests) }
		if what == theRaise {
			play = func(g *gateway) { w.shortRaise(g, guests) }
		}
	}
	armed.Store(true)
	w.token <- struct{}{}
	over := make(chan struct{})
	go func() {
		defer close(over)
		play(g)
	}()
	select {
	case <-over:
		time.Sleep(time.Second) // what goes on behind an answer has syncs too
	case <-crashed:
	}
	w.crash(power)
	<-over
	armed.Store(false)
	syncs = int(count.Load())
	if index {
		w.engine = memkv.New(memkv.Options{})
	}
	// Of what was crossed by the crash, any two nodes may be lost too.
	for range w.losses {
		if v := w.lose(w.rng, "wiped"); n%2 == 0 && v != nil {
			v.wiped = true
			w.blank(v)
		} else if v != nil {
			v.lost = false
		}
	}
	<-w.token
	w.finish()
	w.end()
	w.drains.Wait()
	if what == theRaise && syncs < n && w.stats.Faults["m raised"] != 1 {
		w.violation("without a crash m was raised %d times", w.stats.Faults["m raised"])
	}
	if what != theWrites && syncs < n && len(w.vols) != nodeCount+1 {
		w.violation("without a crash there are %d nodes in the end, want %d", len(w.vols), nodeCount+1)
	}
	if w.wrong != nil {
		return syncs, fmt.Errorf("crash at sync %d, power cut %v, index lost %v: %w\n  %s", n, power, index, w.wrong, strings.Join(w.lines, "\n  "))
	}
	return syncs, nil
}

// TestCrashAtEverySync ends a fixed history at each of its syncs, by a kill and by
// a power cut, and checks what comes up.
func TestCrashAtEverySync(t *testing.T) { crashEverywhere(t, theWrites, 7) }

// TestCrashAtEverySyncOfNodeChanges does the same while nodes are added, drained and
// removed, and shards move.
func TestCrashAtEverySyncOfNodeChanges(t *testing.T) { crashEverywhere(t, theNodes, 17) }

// TestCrashAtEverySyncOfRaising does the same while m is raised.
func TestCrashAtEverySyncOfRaising(t *testing.T) { crashEverywhere(t, theRaise, 17) }

// played is which of the fixed histories is played.
type played int

const (
	theWrites played = iota
	theNodes
	theRaise
)

func crashEverywhere(t *testing.T, what played, step int) {
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(1))
	switch {
	case os.Getenv("CAIRN_LONG") != "":
		step = 1
	case testing.Short():
		step *= 6
	}
	points := 0
	for n := 1; ; n += step {
		syncs := 0
		for _, power := range []bool{true, false} {
			var err error
			runtime.GC()
			runtime.GC()
			synctest.Test(t, func(*testing.T) { syncs, err = point(n, power, n%3 == 0, what) })
			points++
			if err != nil {
				t.Fatal(err)
			}
		}
		if syncs < n {
			t.Logf("%d crashes over %d syncs", points, syncs)
			return
		}
	}
}
