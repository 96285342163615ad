package store

import (
	"container/list"
	"context"
	"sync"
	"time"

	"cairn/store/budget"
)

// A chunk that is handed out in small pieces is on lease: when its time is over
// and others wait for memory it is taken back, whatever its client does, and is
// fetched again when its reader comes to the front of the line. So no number of
// clients that stand still keeps others waiting, and each still gets on.
const (
	leaseTime = time.Second
	leaseLook = 100 * time.Millisecond // how often it is looked whose time is over
	// leasePiece is what a reader of a leased chunk holds while its client is
	// waited for. It counts with the connection.
	leasePiece = 16 << 10
)

// leases are the chunks that may be taken back.
type leases struct {
	mu      sync.Mutex
	line    list.List // of *fetched, the oldest first
	waiting int       // who waits for memory
	running bool      // somebody looks
}

func (l *leases) begin(f *fetched) {
	l.mu.Lock()
	defer l.mu.Unlock()
	f.inLine = l.line.PushBack(f)
}

func (l *leases) end(f *fetched) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if f.inLine != nil {
		l.line.Remove(f.inLine)
		f.inLine = nil
	}
}

// lease waits for the memory of a chunk on lease, and meanwhile sees to it that
// leases end.
func (s *Store) lease(ctx context.Context, share *budget.Share, n int64, wait func(context.Context, *budget.Share, int64) error) error {
	if share.TryAcquire(n) {
		return nil
	}
	l := &s.leases
	l.mu.Lock()
	l.waiting++
	if !l.running {
		l.running = s.spawn(s.endLeases)
	}
	l.mu.Unlock()
	err := wait(ctx, share, n)
	l.mu.Lock()
	l.waiting--
	l.mu.Unlock()
	return err
}

// endLeases takes chunks back whose time is over, the oldest first, as long as
// somebody waits.
func (s *Store) endLeases() {
	l := &s.leases
	for {
		l.mu.Lock()
		if l.waiting == 0 {
			l.running = false
			l.mu.Unlock()
			return
		}
		var over []*fetched
		for e := l.line.Front(); e != nil && len(over) < l.waiting; e = l.line.Front() {
			f := e.Value.(*fetched)
			if time.Since(f.since) < leaseTime {
				break
			}
			l.line.Remove(e)
			f.inLine = nil
			over = append(over, f)
		}
		l.mu.Unlock()
		for _, f := range over {
			f.takeBack(s)
		}
		time.Sleep(leaseLook)
	}
}

// takeBack ends a lease.
func (f *fetched) takeBack(s *Store) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.gone {
		return
	}
	f.gone = true
	s.chunks.put(f.buf)
	f.share.Release(f.weight)
	f.buf = nil
}

// take copies what comes next of a chunk; ok is false when it was taken back.
func (f *fetched) take(p []byte) (n int, ok bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.gone {
		return 0, false
	}
	n = copy(p, f.buf[f.at:f.leaf.to])
	f.at += uint64(n)
	return n, true
}
