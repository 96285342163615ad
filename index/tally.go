package index

import (
	"context"
	"maps"
	"sync"

	"cairn/id"
	"cairn/index/kv"
	"cairn/pack"
)

// Tally is what the totals do not tell of shards. All of it is as of one log pack.
type Tally struct {
	Head   Head
	Totals Totals
	// Kinds are the bytes of all shards by kind of pack: together Totals.ShardBytes.
	Kinds map[pack.Kind]uint64
	// Nodes are the bytes of the shards that rows place on a node. Where the newest log
	// pack lies is in no row yet.
	Nodes map[id.Node]uint64
}

// tally keeps a Tally from the first time that it is asked for: it is counted once, and
// each round adds what it changes. Rounds change it under Index.writer too, so that
// whoever holds that knows it agrees with the rows.
type tally struct {
	counting chan struct{} // holds a token while somebody counts

	mu    sync.Mutex
	state tallyState
	Tally
}

type tallyState uint8

const (
	tallyUnknown tallyState = iota
	tallyPart               // what rounds have changed since the count began
	tallyWhole
)

// tallied is what a round changes. Counts wrap: what is taken away is added as its
// complement.
type tallied struct {
	kinds map[pack.Kind]uint64
	nodes map[id.Node]uint64
}

func newTallied() tallied {
	return tallied{kinds: map[pack.Kind]uint64{}, nodes: map[id.Node]uint64{}}
}

// add counts a pack; times is 1, or its complement to take it away.
func (t *tallied) add(row *PackRow, times uint64) {
	size := uint64(row.Size) * times
	t.kinds[row.Kind] += size * row.shards()
	for i := range row.Shards {
		t.nodes[row.Shards[i].Node] += size
	}
}

const less = ^uint64(0) // times: take away

// take adds what a round or a count has found.
func (t *tally) take(d *tallied) {
	for k, n := range d.kinds {
		t.Kinds[k] += n
	}
	for id, n := range d.nodes {
		if t.Nodes[id] += n; t.Nodes[id] == 0 {
			delete(t.Nodes, id)
		}
	}
}

// committed takes in what a round has changed.
func (t *tally) committed(d *tallied, h Head, sum Totals) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.state != tallyUnknown {
		t.take(d)
		t.Head, t.Totals = h, sum
	}
}

// forget is called, under Index.writer, when rows change that no round has changed.
func (t *tally) forget() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.state, t.Tally = tallyUnknown, Tally{}
}

// Tally counts bytes of shards by kind of pack and by node. The first call reads the
// rows of all packs, later ones none. A round that is open is waited for at first.
func (x *Index) Tally(ctx context.Context) (Tally, error) {
	t := &x.tally
	select {
	case t.counting <- struct{}{}:
		defer func() { <-t.counting }()
	case <-ctx.Done():
		return Tally{}, context.Cause(ctx)
	}
	for {
		out, ok, err := x.tallyNow()
		if ok || err != nil {
			return out, err
		}
		if ctx.Err() != nil {
			return out, context.Cause(ctx)
		}
		if err := x.count(ctx); err != nil {
			return Tally{}, err
		}
	}
}

func (x *Index) tallyNow() (out Tally, ok bool, err error) {
	if x.loading.Load() {
		return out, false, ErrLoading
	}
	t := &x.tally
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.state != tallyWhole {
		return out, false, nil
	}
	out = t.Tally
	out.Kinds, out.Nodes = maps.Clone(t.Kinds), maps.Clone(t.Nodes)
	return out, true, nil
}

// count makes the tally whole, unless rows change meanwhile that no round changes.
func (x *Index) count(ctx context.Context) error {
	// Under the writer's token, until the snapshot is there: then what rounds add is
	// what came after it.
	select {
	case x.writer <- struct{}{}:
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	locked := true
	unlock := func() {
		if locked {
			locked = false
			x.unlock()
		}
	}
	defer unlock()
	t := &x.tally
	err := x.db.View(func(s *kv.Snapshot) error {
		r := x.reader(s)
		part := Tally{Kinds: map[pack.Kind]uint64{}, Nodes: map[id.Node]uint64{}}
		var err error
		if part.Head, err = r.Head(); err != nil {
			return err
		}
		if part.Totals, err = r.Totals(); err != nil {
			return err
		}
		t.mu.Lock()
		t.state, t.Tally = tallyPart, part
		t.mu.Unlock()
		unlock()
		d, looked := newTallied(), 0
		if err := r.EachPack(func(_ id.Pack, row PackRow) error {
			if looked++; looked%1024 == 0 && ctx.Err() != nil {
				return context.Cause(ctx)
			}
			d.add(&row, 1)
			return nil
		}); err != nil {
			return err
		}
		t.mu.Lock()
		defer t.mu.Unlock()
		if t.state == tallyPart {
			t.take(&d)
			t.state = tallyWhole
		}
		return nil
	})
	if err != nil {
		t.forget()
	}
	return err
}
