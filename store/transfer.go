package store

import (
	"container/list"
	"context"
	"sync"
	"time"
)

// transfers are the bodies on their way in and out: who may rely on a chunk to which
// no edge leads. What was condemned before a mark was taken is not relied on once all
// transfers that began before the mark have ended; docs/protocol.md, section 12.
type transfers struct {
	mu     sync.Mutex
	next   uint64    // number of the next one
	line   list.List // of *transfer, the oldest first
	passed chan struct{}
}

// transfer is one body. It ends once, whoever ends it.
type transfer struct {
	of      *transfers
	number  uint64
	counter uint64 // packs of this writer with a higher one may hold chunks that it brings
	since   time.Time
	at      *list.Element // nil: it has ended
}

// transfer begins one; it is called before the first look-up.
func (s *Store) transfer() *transfer {
	counter := s.packs.begun()
	t := &s.transfers
	t.mu.Lock()
	defer t.mu.Unlock()
	x := &transfer{of: t, number: t.next, counter: counter, since: time.Now()}
	t.next++
	x.at = t.line.PushBack(x)
	return x
}

func (x *transfer) end() {
	t := x.of
	t.mu.Lock()
	defer t.mu.Unlock()
	if x.at == nil {
		return
	}
	first := t.line.Front() == x.at
	t.line.Remove(x.at)
	x.at = nil
	if first && t.passed != nil {
		close(t.passed)
		t.passed = nil
	}
}

// mark is the number that the next transfer gets.
func (t *transfers) mark() uint64 {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.next
}

// oldest is the number below which every transfer has ended.
func (t *transfers) oldest() uint64 {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.oldestLocked()
}

func (t *transfers) oldestLocked() uint64 {
	if e := t.line.Front(); e != nil {
		return e.Value.(*transfer).number
	}
	return t.next
}

// first describes the oldest transfer: how long it has lasted, and the pack counter when it
// began; n is how many there are.
func (t *transfers) first() (n int, lasts time.Duration, counter uint64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if e := t.line.Front(); e != nil {
		x := e.Value.(*transfer)
		lasts, counter = time.Since(x.since), x.counter
	}
	return t.line.Len(), lasts, counter
}

// wait returns when all transfers that began before a mark have ended.
func (t *transfers) wait(ctx context.Context, mark uint64) error {
	for {
		t.mu.Lock()
		if t.oldestLocked() >= mark {
			t.mu.Unlock()
			return nil
		}
		if t.passed == nil {
			t.passed = make(chan struct{})
		}
		c := t.passed
		t.mu.Unlock()
		select {
		case <-c:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// during ends the transfer with ctx. What never ends is left to whoever closes the body.
func (x *transfer) during(ctx context.Context) {
	if ctx.Done() != nil {
		context.AfterFunc(ctx, x.end)
	}
}
