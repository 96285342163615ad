package sim

import (
	"context"
	"encoding/json"
	"errors"
	"math/rand/v2"
	"slices"
	"time"

	"cairn/node/disk"
	"cairn/store"
)

// raises makes the store survive a loss more beside clients and faults: a node is added, which it
// takes, the wish is logged, at times called off, and the job runs, is cancelled, and runs again.
func (w *world) raises(stop <-chan struct{}) {
	rng := generator(w.seed, "raises", 0)
	for {
		t := time.NewTimer(time.Duration(10+rng.IntN(400)) * time.Millisecond)
		select {
		case <-stop:
			t.Stop()
			return
		case <-t.C:
		}
		if rng.IntN(2) == 0 {
			w.mu.Lock()
			cur := w.cur
			w.mu.Unlock()
			if cur != nil {
				w.runRaise(cur, rng)
			}
			continue
		}
		w.token <- struct{}{}
		w.mu.Lock()
		cur, nodes := w.cur, w.nodes
		w.mu.Unlock()
		if cur != nil && !w.over() {
			w.wish(cur, nodes, rng)
		}
		<-w.token
	}
}

// runRaise starts or cancels the job.
func (w *world) runRaise(g *gateway, rng *rand.Rand) {
	j, err := g.st.StartJob(context.Background(), store.JobRaise, unpaced)
	if errors.Is(err, store.ErrJobRunning) && rng.IntN(4) == 0 {
		_, _ = g.st.CancelJob(context.Background(), j.ID) // it may have ended meanwhile
	}
	if err == nil {
		w.fault("raise", "%v", j.ID)
	}
}

// wish logs how many losses are wanted, once there are nodes for it. The caller holds the token.
func (w *world) wish(g *gateway, nodes map[string]*disk.Node, rng *rand.Rand) {
	ctx := context.Background()
	if len(w.vols) < 2*raisedTo+1 {
		v, err := w.addNode(ctx, g, nodes)
		w.note("a node for more losses: %s, %v", v.name, err)
		w.pending = w.pending || errors.Is(err, store.ErrUnknown)
		w.unsure = w.pending || slices.ContainsFunc(w.vols, func(v *volume) bool { return v.guest })
		return
	}
	if st, err := g.st.Status(ctx); err == nil {
		w.reckonLosses(st)
	}
	want := raisedTo
	if w.losses < raisedTo && rng.IntN(6) == 0 {
		want = tolerance
	}
	w.atMost = max(w.atMost, want)
	err := g.st.Tolerate(ctx, want)
	switch {
	case err == nil:
		w.fault("losses wanted", "%d", want)
	case isAny(err, append([]error{store.ErrUnknown, store.ErrPrecondition}, refusals...)) == nil:
		w.violation("%d losses wanted: %v", want, err)
	default:
		w.note("%d losses wanted: %v", want, err)
	}
}

// reckonLosses takes in how many losses are survived.
func (w *world) reckonLosses(st store.Status) {
	if st.M < w.losses || st.M > w.atMost {
		w.violation("the store survives %d losses, it was %d and may be %d at the most", st.M, w.losses, w.atMost)
		return
	}
	if st.M > w.losses {
		w.count("m raised")
	}
	w.losses = st.M
}

// raiseAll raises m to its end while nobody is there, and takes as many nodes away. The caller
// holds the token; a gateway runs and is not published.
func (w *world) raiseAll(g *gateway, nodes map[string]*disk.Node) (*gateway, map[string]*disk.Node) {
	ctx := context.Background()
	give := func() (*gateway, map[string]*disk.Node) { w.publish(g, nodes); return nil, nil }
	if len(w.vols) < 2*raisedTo+1 {
		return g, nodes
	}
	w.patiently("losses wanted at the end", func() error { return g.st.Tolerate(ctx, raisedTo) })
	w.patiently("raise at the end", func() error {
		j, err := g.st.StartJob(ctx, store.JobRaise, unpaced)
		if errors.Is(err, store.ErrJobRunning) {
			err = nil
		}
		for err == nil && j.State == store.JobRunning {
			time.Sleep(100 * time.Millisecond)
			j, err = g.st.Job(ctx, j.ID)
		}
		if err != nil {
			return err
		}
		var r store.RaiseResult
		_ = json.Unmarshal(j.Result, &r)
		w.note("raise: %s %+v %s", j.State, r, j.Error)
		st, err := g.st.Status(ctx)
		if err == nil && st.M != raisedTo {
			err = store.ErrRetry
		}
		if err == nil {
			w.reckonLosses(st)
		}
		return err
	})
	if w.over() {
		return give()
	}
	w.publish(g, nodes)
	w.crash(w.rng.IntN(2) == 0)
	for w.lostCount() < w.losses {
		v := w.lose(w.rng, "wiped")
		if v == nil {
			break
		}
		if !v.wiped {
			v.wiped = true
			w.blank(v)
		}
	}
	w.fault("loss after m was raised", "%s", w.lostText())
	if g, nodes = w.start(false); g == nil {
		return nil, nil
	}
	w.checkAll(g, "after the loss of as many nodes as are survived since")
	if w.over() {
		return give()
	}
	for try := 0; !w.over() && !w.heal(g, nodes); try++ {
		if try == 3 {
			w.violation("lost nodes cannot be replaced and repaired after m was raised (%s)", w.lostText())
		}
		w.publish(g, nodes)
		w.crash(false)
		if g, nodes = w.start(false); g == nil {
			return nil, nil
		}
	}
	return g, nodes
}
