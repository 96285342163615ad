package sim

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"path"
	"time"

	"cairn/index/kv/memkv"
	"cairn/node"
	"cairn/store"
)

// chaos does things to disks, nodes and processes until it is told to end.
func (w *world) chaos(stop <-chan struct{}) {
	rng := generator(w.seed, "chaos", 0)
	for {
		t := time.NewTimer(time.Duration(20+rng.IntN(w.cfg.FaultEvery)) * time.Millisecond)
		select {
		case <-stop:
			t.Stop()
			return
		case <-t.C:
		}
		w.token <- struct{}{}
		if !w.over() {
			w.one(rng)
		}
		<-w.token
	}
}

// scrubs starts one scrub after the other beside clients and faults, at a rate that is
// no matter.
func (w *world) scrubs(stop <-chan struct{}) {
	rng := generator(w.seed, "scrubs", 0)
	for {
		t := time.NewTimer(time.Duration(10+rng.IntN(300)) * time.Millisecond)
		select {
		case <-stop:
			t.Stop()
			return
		case <-t.C:
		}
		w.mu.Lock()
		cur := w.cur
		w.mu.Unlock()
		if cur == nil {
			continue
		}
		j, err := cur.st.StartJob(context.Background(), store.JobScrub, store.JobOptions{Deep: rng.IntN(2) == 0, Rate: 1 << 50})
		if errors.Is(err, store.ErrJobRunning) && rng.IntN(3) == 0 {
			_, _ = cur.st.CancelJob(context.Background(), j.ID) // it may have ended meanwhile
		}
		if err == nil {
			w.fault("scrub", "%v, deep %v", j.ID, j.Options.Deep)
		}
	}
}

// collects starts one collection after the other beside clients and faults.
func (w *world) collects(stop <-chan struct{}) {
	rng := generator(w.seed, "collections", 0)
	for {
		t := time.NewTimer(time.Duration(10+rng.IntN(500)) * time.Millisecond)
		select {
		case <-stop:
			t.Stop()
			return
		case <-t.C:
		}
		w.mu.Lock()
		cur := w.cur
		w.mu.Unlock()
		if cur == nil {
			continue
		}
		j, err := cur.st.StartJob(context.Background(), store.JobCollect, store.JobOptions{Now: rng.IntN(3) > 0, Rate: 1 << 50})
		if errors.Is(err, store.ErrJobRunning) && rng.IntN(8) == 0 {
			_, _ = cur.st.CancelJob(context.Background(), j.ID) // it may have ended meanwhile
		}
		if err == nil {
			w.fault("collection", "%v, now %v", j.ID, j.Options.Now)
		}
	}
}

// one fires one fault.
func (w *world) one(rng *rand.Rand) {
	v := w.vols[rng.IntN(len(w.vols))]
	switch d := rng.IntN(100); {
	case d < 14:
		w.fault("kill", "")
		w.restart(false, true)
	case d < 30:
		w.fault("power cut", "")
		w.restart(true, true)
	case d < 34:
		w.fault("stop and start", "")
		w.stop()
		w.up(false)
	case d < 42:
		w.fault("power cut of one node", "%s", v.name)
		v.mount(v.fs().Crash(w.rng))
	case d < 48:
		if v := w.lose(rng, "wiped"); v != nil {
			w.fault("wiped", "%s", v.name)
			v.wiped = true
			if err := v.fs().RemoveAll("."); err != nil {
				w.violation("sim: remove %s: %v", v.name, err)
			}
			v.old = nil
		}
	case d < 52:
		w.oldCopy(rng)
	case d < 57:
		if v := w.lose(rng, "lies"); v != nil {
			w.fault("lies from now on", "%s", v.name)
			v.change(func(m *mood) { m.lie = true })
		}
	case d < 60:
		w.rot(rng)
	case d < 64:
		if v := w.lose(rng, "forges"); v != nil {
			w.fault("forges from now on", "%s", v.name)
			v.change(func(m *mood) { m.forges = true })
		}
	case d < 68:
		w.fault("slow", "%s", v.name)
		slow := 10 + rng.IntN(200)
		v.change(func(m *mood) { m.slow = slow })
		w.later(rng, 3000, func() { v.change(func(m *mood) { m.slow = 0 }) })
	case d < 72:
		w.fault("hung for a minute", "%s", v.name)
		v.change(func(m *mood) { m.hungTil = time.Now().Add(time.Minute) })
	case d < 77:
		w.fault("sync errors", "%s", v.name)
		most, drop := 20+rng.IntN(400), rng.IntN(2) == 0
		v.change(func(m *mood) { m.syncFails, m.drop = most, drop })
		w.later(rng, 1000, func() { v.change(func(m *mood) { m.syncFails = 0 }) })
	case d < 82:
		w.fault("read errors", "%s", v.name)
		most := 20 + rng.IntN(900)
		v.change(func(m *mood) { m.readFails = most })
		w.later(rng, 1000, func() { v.change(func(m *mood) { m.readFails = 0 }) })
	case d < 87:
		vs := w.vols
		if rng.IntN(3) > 0 {
			vs = []*volume{v}
		}
		left := rng.Int64N(diskBytes / 10)
		w.fault("full", "%d disks, %d bytes left", len(vs), left)
		for _, v := range vs {
			w.fill(v, left)
		}
		w.later(rng, 2000, func() {
			for _, v := range vs {
				w.unfill(v)
			}
		})
	case d < 92:
		leap := time.Duration(rng.Int64N(int64(48*time.Hour))) - 24*time.Hour
		w.fault("clock leap", "%v", leap)
		w.leap.Add(int64(leap))
	case d < 95:
		w.takeover()
	case d < 98:
		w.failCommit(rng)
	default:
		if w.lostCount() > 0 {
			w.restart(rng.IntN(2) == 0, false)
		}
	}
}

// failCommit makes the index fail behind a log pack that is durable. The store
// must stop taking writes; the process ends then, and the next start applies.
func (w *world) failCommit(rng *rand.Rand) {
	w.mu.Lock()
	cur, old := w.cur, w.old
	w.mu.Unlock()
	if cur == nil || old != nil {
		return
	}
	applied := rng.IntN(2) == 0
	w.fault("commit of the index fails", "applied %v", applied)
	cur.engine.FailCommit(1, applied)
	t := time.NewTimer(2 * time.Second)
	defer t.Stop()
	select {
	case <-cur.st.Failed():
	case <-t.C:
	}
	w.restart(rng.IntN(2) == 0, true)
}

// later undoes a fault after a while, whatever happens meanwhile.
func (w *world) later(rng *rand.Rand, within int, undo func()) {
	after := time.Duration(1+rng.IntN(within)) * time.Millisecond
	w.drains.Go(func() {
		time.Sleep(after)
		w.token <- struct{}{}
		undo()
		<-w.token
	})
}

// restart ends what runs, by a kill or a power cut, and starts again; with heal
// what was lost is replaced and repaired before clients are let in.
func (w *world) restart(power, hard bool) {
	w.crash(power)
	w.up(hard)
}

// up starts a gateway and lets clients in. Nodes that were lost are replaced
// once in a while.
func (w *world) up(hard bool) {
	g, nodes := w.start(hard)
	if g == nil {
		return
	}
	if w.lostCount() > 0 && w.rng.IntN(3) == 0 && !w.heal(g, nodes) && !w.over() {
		w.publish(g, nodes)
		w.crash(false)
		if g, nodes = w.start(false); g == nil {
			return
		}
	}
	w.publish(g, nodes)
}

// oldCopy copies a node's directory, or brings the copy back while nothing runs.
func (w *world) oldCopy(rng *rand.Rand) {
	v := w.vols[rng.IntN(len(w.vols))]
	if v.old == nil || v.wiped {
		if !v.wiped {
			w.note("copy of %s", v.name)
			v.old = v.fs().Clone()
		}
		return
	}
	if !v.lost && w.lostCount() == w.losses {
		return
	}
	v.lost = true
	v.reason += "yesterday's "
	w.fault("directory of earlier", "%s", v.name)
	w.crash(rng.IntN(2) == 0)
	old := v.old
	w.blank(v)
	v.mount(old.Kill())
	v.disk = v.fs().Disk()
	v.fs().Inject(w.inject(v))
	w.up(true)
}

// rot flips bits of a node's files at rest.
func (w *world) rot(rng *rand.Rand) {
	v := w.lose(rng, "rotten")
	if v == nil {
		return
	}
	var files []string
	for _, dir := range []string{"journal", "data", "."} {
		in, err := v.fs().ReadDir(dir)
		if err != nil {
			continue
		}
		for _, name := range in {
			files = append(files, path.Join(dir, name))
		}
		if rng.IntN(4) > 0 && len(files) > 0 {
			break // mostly the journal, sometimes the data, at times what the node is made of
		}
	}
	if len(files) == 0 {
		return
	}
	flips := 0
	for range 1 + rng.IntN(400) {
		name := files[rng.IntN(len(files))]
		info, err := v.fs().Stat(name)
		if err != nil || info.Size == 0 {
			continue
		}
		size := info.Size
		if rng.IntN(2) == 0 {
			size = min(size, 1<<18) // where the first records lie
		}
		if v.fs().Flip(name, rng.Int64N(size*8)) == nil {
			flips++
		}
	}
	w.fault("rot", "%s: %d bits", v.name, flips)
}

// takeover starts a second gateway on the nodes of the first, which goes on for
// a while without knowing it.
func (w *world) takeover() {
	w.mu.Lock()
	cur, old, nodes := w.cur, w.old, w.nodes
	w.mu.Unlock()
	if cur == nil || old != nil {
		return
	}
	stores := map[string]node.Store{}
	for _, name := range names(nodes) {
		for _, v := range w.vols {
			if v.name == name {
				stores[name] = liar{nodes[name], v}
			}
		}
	}
	keep := w.engine
	w.engine = memkv.New(memkv.Options{})
	g, err := w.openOn(context.Background(), stores, nil)
	if err != nil {
		w.note("takeover: %v", err)
		w.engine = keep
		// The first may have been fenced meanwhile: only a start helps.
		w.crash(false)
		w.up(false)
		return
	}
	w.fault("takeover", "")
	cur.past.Store(true)
	w.opened()
	w.mu.Lock()
	w.cur, w.old = g, cur
	w.mu.Unlock()
	time.Sleep(time.Duration(50+w.rng.IntN(500)) * time.Millisecond)
	w.mu.Lock()
	w.old = nil
	w.mu.Unlock()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	_ = cur.st.Close(ctx)
}

// loseAfterAck ends everything at the moment of an answer, takes away as many
// nodes as may be lost, and checks everything.
func (w *world) loseAfterAck(g *gateway, rng *rand.Rand) {
	select {
	case w.token <- struct{}{}:
	default:
		return
	}
	defer func() { <-w.token }()
	if g.dead.Load() || g.past.Load() || w.over() {
		return
	}
	power := rng.IntN(2) == 0
	w.crash(power)
	wiped := 0
	for range w.losses {
		// A node that has been harmed already may be taken away as well.
		if v := w.lose(rng, "wiped"); v != nil {
			v.wiped = true
			w.blank(v)
			wiped++
		}
	}
	w.fault("loss after an answer", "%d nodes, power %v", wiped, power)
	ng, nodes := w.start(rng.IntN(2) == 0)
	if ng == nil {
		return
	}
	w.quiet()
	w.checkAll(ng, fmt.Sprintf("after the loss of any %d nodes", w.losses))
	if w.over() {
		w.publish(ng, nodes)
		return
	}
	if !w.heal(ng, nodes) && !w.over() {
		w.publish(ng, nodes)
		w.crash(false)
		if ng, nodes = w.start(false); ng == nil {
			return
		}
	}
	w.publish(ng, nodes)
}
