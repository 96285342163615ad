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

// point plays the fixed history and ends everything when the n-th sync of any
// node is about to begin; then it starts again and checks. It returns how many
// syncs there were.
func point(n int, power, index bool) (syncs int, err error) {
	var (
		armed   atomic.Bool
		count   atomic.Int64
		running *gateway
		crashed = make(chan struct{})
	)
	w := newWorld(uint64(n), Config{LossEvery: 1, MostBlocks: 1, onSync: func() {
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
	armed.Store(true)
	w.token <- struct{}{}
	over := make(chan struct{})
	go func() {
		defer close(over)
		w.short(g)
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
	for range tolerance {
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
	if w.wrong != nil {
		return syncs, fmt.Errorf("crash at sync %d, power cut %v, index lost %v: %w\n  %s", n, power, index, w.wrong, strings.Join(w.lines, "\n  "))
	}
	return syncs, nil
}

// TestCrashAtEverySync ends a fixed history at each of its syncs, by a kill and by
// a power cut, and checks what comes up.
func TestCrashAtEverySync(t *testing.T) {
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(1))
	step := 7
	switch {
	case os.Getenv("CAIRN_LONG") != "":
		step = 1
	case testing.Short():
		step = 40
	}
	points := 0
	for n := 1; ; n += step {
		syncs := 0
		for _, power := range []bool{true, false} {
			var err error
			runtime.GC()
			runtime.GC()
			synctest.Test(t, func(*testing.T) { syncs, err = point(n, power, n%3 == 0) })
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
