package store

import (
	"context"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"cairn/id"
	"cairn/node"
	"cairn/pack"
)

// A pack is given up as soon as one node fails and no other can take its place,
// while the rest are still writing their shards. They are not slow, and the next
// log pack is theirs: one dead disk refuses nobody's write.
func TestOneFailureMakesNobodySlow(t *testing.T) {
	r := newRig(t)
	r.put("before", random(1, 1<<20))
	r.close()
	var (
		busy    = make(chan struct{}) // closed: a shard of the pack is being written
		once    sync.Once
		release = make(chan struct{})
		writing atomic.Int64
	)
	r.wrap = func(name string, n node.Store) node.Store {
		return &faulty{Store: n, put: func(s node.Shard) error {
			h, err := pack.ParseHeader(s.Head)
			if err != nil {
				return err
			}
			switch {
			case h.Kind == pack.Log:
			case name == "n01":
				// Dead for good, and the first to answer: when the others have begun.
				<-busy
				return node.ErrUnavailable
			default:
				if writing.Add(1) == 5 {
					once.Do(func() { close(busy) })
				}
				<-release
			}
			return nil
		}}
	}
	r.change = func(c *Config) { c.Lag = time.Minute }
	r.open()
	done := make(chan error, 1)
	go func() { done <- r.tryPut("large", random(2, 5<<20)) }()
	<-busy
	for range 100 { // n01 has failed by then, or fails in the middle of it
		if err := r.tryPut("small", []byte("small")); err != nil {
			t.Errorf("five nodes are writing, one is dead, and a write is refused: %v", err)
			break
		}
	}
	close(release)
	if err := <-done; err != nil {
		t.Error(err)
	}
}

// dying is a node that takes no shard when it is dead, and tells no figures when
// it is mute.
type dying struct {
	node.Store
	dead, mute *atomic.Bool
}

func (d *dying) Put(ctx context.Context, by node.Authority, why node.Purpose, s node.Shard) (id.Instance, error) {
	if d.dead.Load() {
		return 0, node.ErrUnavailable
	}
	return d.Store.Put(ctx, by, why, s)
}

func (d *dying) Usage(ctx context.Context) (node.Usage, error) {
	if d.mute.Load() {
		return node.Usage{}, node.ErrUnavailable
	}
	return d.Store.Usage(ctx)
}

// A disk that takes nothing any more may go on answering how much room it has. It
// is not called up because a second has gone by, and what it holds is no copy to
// count on; the first put that succeeds makes it up again. One whose figures
// cannot be had is left out of the sums, and the sums are told.
func TestDeadDiskIsNotCalledUp(t *testing.T) {
	r := newRig(t)
	r.put("before", random(1, 1<<20))
	r.close()
	var dead, mute atomic.Bool
	var later atomic.Int64 // jobs read the clock too
	began := time.Now()
	r.change = func(c *Config) { c.Now = func() time.Time { return began.Add(time.Duration(later.Load())) } }
	r.wrap = func(name string, n node.Store) node.Store {
		if name != "n02" {
			return n
		}
		return &dying{Store: n, dead: &dead, mute: &mute}
	}
	r.open()
	state := func() (NodeStatus, Status) {
		t.Helper()
		st, err := r.st.Status(context.Background())
		if err != nil {
			t.Fatal(err)
		}
		for _, n := range st.Nodes {
			if n.Name == "n02" {
				return n, st
			}
		}
		t.Fatal("there is no n02")
		return NodeStatus{}, st
	}
	dead.Store(true)
	r.put("during", random(2, 5<<20))
	for range 3 {
		if n, st := state(); n.State != "down" || n.Reason == "" || !st.Writable || !strings.Contains(st.Survives, "1 node is not there") {
			t.Errorf("the last put to n02 failed, and it is %s (%s); writable: %v; survives: %s", n.State, n.Reason, st.Writable, st.Survives)
		}
		later.Add(int64(time.Hour))
	}
	dead.Store(false)
	r.put("after", random(3, 5<<20))
	if n, st := state(); n.State != "up" || n.Reason != "" || strings.Contains(st.Survives, "not there") {
		t.Errorf("n02 takes shards again, and is %s (%s); survives: %s", n.State, n.Reason, st.Survives)
	}
	all, err := r.st.Usage(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	mute.Store(true)
	rest, err := r.st.Usage(context.Background())
	if err != nil || rest.PhysicalBytes == 0 || rest.PhysicalBytes >= all.PhysicalBytes {
		t.Errorf("n02 says nothing: %v, %d bytes on disk; with it %d", err, rest.PhysicalBytes, all.PhysicalBytes)
	}
}
