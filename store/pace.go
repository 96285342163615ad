package store

import (
	"context"
	"time"
)

// pacer holds a job to a rate; while clients are served, to a quarter of it.
type pacer struct {
	s    *Store
	rate uint64 // bytes per second
	due  time.Duration
	last time.Time // when the last pause ended
}

// did counts bytes.
func (p *pacer) did(n uint64) {
	if p.last.IsZero() {
		p.last = time.Now()
	}
	p.due += time.Duration(float64(n) / float64(p.rate) * float64(time.Second))
}

// pause waits until what was done since the last one fits the rate; the time that doing it
// took is part of that. Nothing is held meanwhile.
func (p *pacer) pause(ctx context.Context) error {
	const step = 20 * time.Millisecond
	if p.due < step { // it comes together
		return nil
	}
	due, began := p.due, p.last
	p.due = 0
	defer func() { p.last = time.Now() }()
	for {
		took := time.Since(began)
		if took >= 4*due || took >= due && !p.s.serving() {
			return nil
		}
		wait := step
		if took < due {
			wait = due - took
		}
		t := time.NewTimer(wait)
		select {
		case <-ctx.Done():
			t.Stop()
			return context.Cause(ctx)
		case <-t.C:
		}
	}
}

// serving reports whether clients send or take bytes now.
func (s *Store) serving() bool {
	for _, share := range s.mem.clients() {
		if share.State().Used > 0 {
			return true
		}
	}
	return false
}
