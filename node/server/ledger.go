package server

import (
	"context"
	"fmt"
	"slices"
	"sync"

	"cairn/node"
	"cairn/node/link"
)

// ledgers know which generation of each writer's calls is in force, and what of the
// older ones still runs (docs/formats/node-link.md, What was given up).
type ledgers struct {
	mu  sync.Mutex
	all []*ledger // of the newest writers, highest epoch last
}

// A ledger is one writer's.
type ledger struct {
	by      node.Authority
	gen     uint64
	running map[uint64]int // by generation
	changed chan struct{}  // closed and replaced when something of it is over
}

// mostLedgers is how many writers are remembered. Those of older epochs are fenced by the node.
const mostLedgers = 8

// of returns a writer's ledger, nil when there is none. With begin it begins one; nil is then a
// writer whose epoch is older than those of all that are remembered.
func (l *ledgers) of(by node.Authority, begin bool) *ledger {
	for _, x := range l.all {
		if x.by == by {
			return x
		}
	}
	if !begin || len(l.all) == mostLedgers && by.Epoch < l.all[0].by.Epoch {
		return nil
	}
	if len(l.all) == mostLedgers {
		l.all = slices.Delete(l.all, 0, 1)
	}
	x := &ledger{by: by, running: map[uint64]int{}, changed: make(chan struct{})}
	i, _ := slices.BinarySearchFunc(l.all, by.Epoch+1, func(x *ledger, epoch uint64) int {
		if x.by.Epoch < epoch {
			return -1
		}
		return 1
	})
	l.all = slices.Insert(l.all, i, x)
	return x
}

// begin notes that a call of a generation runs, until over is called. What is of another
// generation than the one that was settled last is [link.ErrNotBegun].
func (l *ledgers) begin(by node.Authority, gen uint64) (over func(), err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	x := l.of(by, false)
	if x == nil || x.gen != gen {
		return nil, fmt.Errorf("%w: generation %d is not in force", link.ErrNotBegun, gen)
	}
	x.running[gen]++
	return func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		if x.running[gen]--; x.running[gen] == 0 {
			delete(x.running, gen)
		}
		close(x.changed)
		x.changed = make(chan struct{})
	}, nil
}

// settle puts a generation in force and waits until nothing of an older one runs.
func (l *ledgers) settle(ctx context.Context, by node.Authority, gen uint64) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	x := l.of(by, true)
	if x == nil {
		return fmt.Errorf("%w: epoch %d", node.ErrFenced, by.Epoch)
	}
	if gen < x.gen {
		return fmt.Errorf("%w: generation %d is in force, not %d", link.ErrNotBegun, x.gen, gen)
	}
	x.gen = gen
	for {
		older := 0
		for g, n := range x.running {
			if g < gen {
				older += n
			}
		}
		if older == 0 {
			return nil
		}
		changed := x.changed
		l.mu.Unlock()
		select {
		case <-changed:
			l.mu.Lock()
		case <-ctx.Done():
			l.mu.Lock()
			return fmt.Errorf("%w: %d calls that were given up are not over", node.ErrUnavailable, older)
		}
	}
}
