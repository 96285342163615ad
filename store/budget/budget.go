// Package budget accounts for memory. A [Share] is a part of what the process
// was given; whoever takes much memory takes it out of a share first and gives
// it back when it is free again. [Divide] says how large the shares are.
//
// A share is never exceeded. Who finds it used up waits in line, first come,
// first served, whatever the sizes: a large wish is not overtaken by small ones.
// The line is bounded in length, and by whoever waits in time; beyond that the
// answer is [ErrBusy]. Shares may be used by many goroutines at once.
//
// A share counts bytes and holds none. It does not know what they are used for,
// and cannot tell a deadlock: whoever holds a part of one share and waits for
// another must do so in the order that the store's own comment gives.
package budget

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"golang.org/x/sync/semaphore"
)

var (
	// ErrBusy says that a share is used up and the line before it too long, in
	// length or in time.
	ErrBusy = errors.New("no memory is free")
	// ErrTooLarge says that more was asked for than the share ever has.
	ErrTooLarge = errors.New("more memory than there is")
)

// Share is a part of the memory.
//
// Order, cancelling and waking are those of x/sync's weighted semaphore, which
// is in line with what is wanted here: first come, first served, and whoever
// leaves the line wakes those behind. What it does not have is around it: a
// bound on the line, an answer to what can never be had, and the gauges.
type Share struct {
	name  string
	limit atomic.Int64 // it only grows
	line  int64        // how many may wait
	of    *Share       // the share that this one is a part of; nil: none
	sem   *semaphore.Weighted

	used, waiting, waits, refused atomic.Int64
}

// NewShare makes a share of limit bytes before which at most line may wait.
func NewShare(name string, limit int64, line int) *Share {
	s := &Share{name: name, line: int64(line), sem: semaphore.NewWeighted(most)}
	s.sem.TryAcquire(most - limit) // what it may still grow by
	s.limit.Store(limit)
	return s
}

// most is more than any share has.
const most = 1 << 60

// Grow gives the share n bytes more for good: its caller has them from another one.
func (s *Share) Grow(n int64) {
	s.limit.Add(n)
	s.sem.Release(n)
}

// Part makes a share within s: what is taken from it is taken from s too, so
// that those who use it hold at most limit bytes of s together.
func (s *Share) Part(name string, limit int64) *Share {
	p := NewShare(name, min(limit, s.Limit()), int(s.line))
	p.of = s
	return p
}

// Limit is how many bytes the share has.
func (s *Share) Limit() int64 { return s.limit.Load() }

// Acquire takes n bytes, or waits for them until ctx is done; its cause is the
// error then.
func (s *Share) Acquire(ctx context.Context, n int64) error { return s.AcquireWithin(ctx, n, 0) }

// AcquireWithin is Acquire that waits no longer than limit; 0 means as long as
// it takes.
func (s *Share) AcquireWithin(ctx context.Context, n int64, limit time.Duration) error {
	if limit > 0 {
		inner, cancel := context.WithTimeout(ctx, limit)
		defer cancel()
		return s.acquire(ctx, inner, n, limit)
	}
	return s.acquire(ctx, ctx, n, 0)
}

// acquire waits until limited is done, which is ctx with a time limit.
func (s *Share) acquire(ctx, limited context.Context, n int64, limit time.Duration) error {
	if err := s.join(ctx, limited, n, limit); err != nil {
		return err
	}
	if s.of == nil {
		return nil
	}
	if err := s.of.acquire(ctx, limited, n, limit); err != nil {
		s.leave(n)
		return err
	}
	return nil
}

// join takes n bytes of this share alone.
func (s *Share) join(ctx, limited context.Context, n int64, limit time.Duration) error {
	if n > s.Limit() {
		s.refused.Add(1)
		return fmt.Errorf("%w: %d bytes for %s, which has %d", ErrTooLarge, n, s.name, s.Limit())
	}
	if err := ctx.Err(); err != nil {
		return context.Cause(ctx)
	}
	if s.sem.TryAcquire(n) { // not when somebody waits
		s.used.Add(n)
		return nil
	}
	if s.waiting.Add(1) > s.line {
		s.waiting.Add(-1)
		s.refused.Add(1)
		return fmt.Errorf("%w for %s: %d wait already", ErrBusy, s.name, s.line)
	}
	s.waits.Add(1)
	err := s.sem.Acquire(limited, n)
	s.waiting.Add(-1)
	switch {
	case err == nil:
		s.used.Add(n)
		return nil
	case ctx.Err() != nil:
		return context.Cause(ctx)
	}
	s.refused.Add(1)
	return fmt.Errorf("%w for %s within %v", ErrBusy, s.name, limit)
}

// TryAcquire takes n bytes if they are free and nobody waits.
func (s *Share) TryAcquire(n int64) bool {
	if n > s.Limit() || !s.sem.TryAcquire(n) {
		return false
	}
	s.used.Add(n)
	if s.of != nil && !s.of.TryAcquire(n) {
		s.leave(n)
		return false
	}
	return true
}

// Release gives n bytes back.
func (s *Share) Release(n int64) {
	if s.of != nil {
		s.of.Release(n)
	}
	s.leave(n)
}

func (s *Share) leave(n int64) {
	s.used.Add(-n) // before somebody else counts them
	s.sem.Release(n)
}

// State is a share as its gauges show it.
type State struct {
	Name    string
	Limit   int64 // bytes
	Used    int64 // bytes
	Waiting int64 // in line now
	Waits   int64 // who had to wait, ever
	Refused int64 // who was answered [ErrBusy] or [ErrTooLarge], ever
}

// State reads the gauges, each by itself.
func (s *Share) State() State {
	return State{s.name, s.Limit(), s.used.Load(), s.waiting.Load(), s.waits.Load(), s.refused.Load()}
}
