package sim

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"time"

	"cairn/node/disk"
	"cairn/store"
)

const (
	mostNodes = 9
	fewNodes  = nodeCount // packs of 4+2 shards need as many
)

// unpaced moves shards as fast as it can.
var unpaced = store.JobOptions{Rate: 1 << 50}

// nodeChanges adds, drains, removes and evens out nodes beside clients and faults. A
// change of the set itself holds the token; what moves shards does not.
func (w *world) nodeChanges(stop <-chan struct{}) {
	rng := generator(w.seed, "nodes", 0)
	for {
		t := time.NewTimer(time.Duration(10+rng.IntN(200)) * time.Millisecond)
		select {
		case <-stop:
			t.Stop()
			return
		case <-t.C:
		}
		if rng.IntN(3) == 0 {
			w.mu.Lock()
			cur := w.cur
			w.mu.Unlock()
			if cur != nil {
				w.moveShards(cur, rng)
			}
			continue
		}
		w.token <- struct{}{}
		w.mu.Lock()
		cur, nodes := w.cur, w.nodes
		w.mu.Unlock()
		if cur != nil && !w.over() {
			w.changeNodes(cur, nodes, rng)
		}
		<-w.token
	}
}

// moveShards starts or cancels a job that moves shards.
func (w *world) moveShards(g *gateway, rng *rand.Rand) {
	kind := []string{store.JobDrain, store.JobRebalance}[rng.IntN(2)]
	j, err := g.st.StartJob(context.Background(), kind, unpaced)
	if errors.Is(err, store.ErrJobRunning) && rng.IntN(4) == 0 {
		_, _ = g.st.CancelJob(context.Background(), j.ID) // it may have ended meanwhile
	}
	if err == nil {
		w.fault(kind, "%v", j.ID)
	}
}

// changeNodes makes one change of the node set.
func (w *world) changeNodes(g *gateway, nodes map[string]*disk.Node, rng *rand.Rand) {
	ctx := context.Background()
	var draining *volume
	for _, v := range w.vols {
		if v.draining {
			draining = v
		}
	}
	var (
		what string
		v    *volume
		err  error
	)
	switch {
	case len(w.vols) < mostNodes && (len(w.vols) == fewNodes || rng.IntN(3) == 0):
		what = "add"
		v, err = w.addNode(ctx, g, nodes)
	case draining == nil && len(w.vols) > fewNodes:
		what, v = "drain", w.vols[rng.IntN(len(w.vols))]
		w.unsure = true
		err = g.st.DrainNode(ctx, v.name, true)
		v.draining = err == nil
	case draining != nil && rng.IntN(5) == 0:
		what, v = "undrain", draining
		err = g.st.DrainNode(ctx, v.name, false)
		v.draining = err != nil
	case draining != nil:
		what, v = "remove", draining
		if err = g.st.RemoveNode(ctx, v.name); err == nil {
			w.dropVolume(v)
			if n := nodes[v.name]; n != nil {
				_ = n.Close()
				delete(nodes, v.name)
			}
		}
	default:
		return
	}
	switch {
	case err == nil:
		w.fault("node: "+what, "%s", v.name)
	case isAny(err, append([]error{store.ErrUnknown, store.ErrPrecondition}, refusals...)) == nil:
		w.violation("%s %s: %v", what, v.name, err)
	default:
		w.note("%s %s: %v", what, v.name, err)
	}
	// Only a start knows how a change ended of which nothing is known.
	w.pending = w.pending || isAny(err, []error{store.ErrUnknown}) != nil
	w.unsure = w.pending || slices.ContainsFunc(w.vols, func(v *volume) bool { return v.draining || v.guest })
}

// addNode makes a new volume a member.
func (w *world) addNode(ctx context.Context, g *gateway, nodes map[string]*disk.Node) (*volume, error) {
	v := w.newVolume()
	if v == nil {
		return &volume{}, store.ErrUnavailable
	}
	n, err := disk.Open(v.fs(), w.diskConfig(v))
	if err != nil {
		return v, fmt.Errorf("sim: open a new node: %w", err)
	}
	w.vols, w.unsure = append(w.vols, v), true
	nodes[v.name] = n
	err = g.st.AddNode(ctx, store.NewNode{Name: v.name, Labels: []string{fmt.Sprint("disk=", v.no)}}, liar{n, v})
	switch {
	case err == nil:
		v.guest = false
	case !errors.Is(err, store.ErrUnknown):
		w.dropVolume(v)
		_ = n.Close()
		delete(nodes, v.name)
	}
	return v, err
}

// newVolume formats a disk that is no member's yet; nil: something is wrong.
func (w *world) newVolume() *volume {
	w.made++
	v := &volume{name: fmt.Sprintf("n%02d", nodeCount+w.made), no: nodeCount + w.made, guest: true}
	w.blank(v)
	if _, err := disk.Format(v.fs(), w.diskConfig(v)); err != nil {
		w.violation("sim: format a new node: %v", err)
		return nil
	}
	return v
}

func (w *world) dropVolume(v *volume) {
	w.vols = slices.DeleteFunc(slices.Clone(w.vols), func(x *volume) bool { return x == v })
}

// reckon takes in who the members are, once a start knows: an add or a removal that was
// cut short has come to be, or not.
func (w *world) reckon(g *gateway) {
	states := map[string]store.NodeStatus{}
	st, err := g.st.Status(context.Background())
	if err != nil {
		w.note("status of a start: %v", err)
		return
	}
	for _, n := range st.Nodes {
		states[n.Name] = n
	}
	w.reckonLosses(st)
	w.unsure, w.pending = false, false
	for _, v := range w.vols {
		n, member := states[v.name]
		if !member {
			w.note("%s is no member", v.name)
			w.dropVolume(v)
			continue
		}
		v.guest, v.draining = false, n.Draining
		w.unsure = w.unsure || n.Draining
	}
	if len(states) != len(w.vols) {
		w.violation("%d members, and %d disks of members", len(states), len(w.vols))
	}
}
