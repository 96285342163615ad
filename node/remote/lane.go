package remote

import (
	"context"
	"fmt"
	"io"
	"slices"
	"sync"
	"time"

	"cairn/node"
	"cairn/node/link"
)

// lane sends calls, as many together as wait: as soon as one of four requests is free,
// with all that fits. What is older than a second counts no more towards the four.
type lane struct {
	n *Node

	mu      sync.Mutex
	waiting []*waiting
	bytes   int // of what waits
	fresh   int // requests that count
	total   int // requests at all
}

const (
	freshMost    = 4
	totalMost    = 16
	staleAfter   = time.Second
	waitingMost  = 1024
	waitingBytes = 16 << 20
)

// waiting is a call with whoever waits for its answer.
type waiting struct {
	call   *link.Call
	ended  chan struct{}
	answer link.Answer
	err    error
	sent   bool // by lane.mu
}

// ask has a call answered, with others. The error is a *linkError, the answer's own, or
// the context's when that is over.
func (l *lane) ask(ctx context.Context, c *link.Call) (link.Result, error) {
	if at, ok := ctx.Deadline(); ok {
		c.Within = uint32(max(time.Until(at).Milliseconds(), 1))
	}
	w := &waiting{call: c, ended: make(chan struct{})}
	size := len(c.Body) + 256
	l.mu.Lock()
	if len(l.waiting) >= waitingMost || l.bytes+size > waitingBytes {
		l.mu.Unlock()
		return link.Result{}, fmt.Errorf("%w: %d calls wait for it", link.ErrNotBegun, waitingMost)
	}
	l.waiting = append(l.waiting, w)
	l.bytes += size
	l.start()
	l.mu.Unlock()
	var why error
	select {
	case <-w.ended:
	case <-ctx.Done():
		why = ctx.Err()
	case <-l.n.ctx.Done():
		why = node.ErrClosed
	}
	if why != nil {
		l.mu.Lock()
		sent := w.sent
		if i := slices.Index(l.waiting, w); i >= 0 {
			l.waiting = slices.Delete(l.waiting, i, i+1)
			l.bytes -= size
		}
		l.mu.Unlock()
		select {
		case <-w.ended: // it came at the same moment
		default:
			return link.Result{}, &linkError{why, sent}
		}
	}
	if w.err != nil {
		return link.Result{}, w.err
	}
	return w.answer.Result, w.answer.Err()
}

// start sends another request if one may be; l.mu is held.
func (l *lane) start() {
	if len(l.waiting) == 0 || l.fresh >= freshMost || l.total >= totalMost || l.n.ctx.Err() != nil {
		return
	}
	l.fresh++
	l.total++
	l.n.all.Add(1) // under l.mu, behind the look at n.ctx; see Close
	go func() {
		defer l.n.all.Done()
		l.run()
	}()
}

// run sends requests until nothing waits.
func (l *lane) run() {
	for {
		l.mu.Lock()
		batch, body, room, until := l.gather()
		if len(batch) == 0 {
			l.fresh--
			l.total--
			l.mu.Unlock()
			return
		}
		l.mu.Unlock()
		stale := l.send(batch, body, room, until)
		if stale {
			l.mu.Lock()
			l.total--
			l.start() // its place among the four was given away
			l.mu.Unlock()
			return
		}
	}
}

// gather takes what fits into a request; l.mu is held.
func (l *lane) gather() (batch []*waiting, body []byte, room int, until time.Time) {
	for len(l.waiting) > 0 && len(batch) < link.MaxCalls {
		w := l.waiting[0]
		most := w.call.MaxAnswer()
		if len(batch) > 0 && (len(body)+len(w.call.Body)+512 > link.MaxBody || room+most > link.MaxAnswers) {
			break
		}
		l.waiting = l.waiting[1:]
		l.bytes -= len(w.call.Body) + 256
		w.call.No = uint32(len(batch) + 1)
		next, err := link.AppendCall(body, w.call)
		if err != nil {
			w.err = err
			close(w.ended)
			continue
		}
		w.sent = true
		batch, body, room = append(batch, w), next, room+most
		if at := time.Now().Add(time.Duration(w.call.Within) * time.Millisecond); at.After(until) {
			until = at
		}
	}
	return batch, body, room, until
}

// send sends a request and hands out its answers. It reports whether it took so long that
// its place was given to another.
func (l *lane) send(batch []*waiting, body []byte, room int, until time.Time) (stale bool) {
	ctx, cancel := context.WithDeadline(l.n.ctx, until)
	defer cancel()
	var given, ended bool // by l.mu
	timer := time.AfterFunc(staleAfter, func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		if ended {
			return
		}
		given = true
		l.fresh--
		l.start()
	})
	err := l.n.post(ctx, body, room, func(no uint32) int {
		if no == 0 || no > uint32(len(batch)) || batch[no-1] == nil {
			return 0
		}
		return batch[no-1].call.MaxAnswer()
	}, func(a *link.Answer) {
		w := batch[a.No-1]
		batch[a.No-1] = nil
		w.answer = *a
		close(w.ended)
	})
	if err == nil {
		err = &linkError{io.ErrUnexpectedEOF, true}
	}
	if l.n.ctx.Err() != nil {
		err = node.ErrClosed
	}
	for _, w := range batch {
		if w != nil {
			w.err = err
			close(w.ended)
		}
	}
	timer.Stop()
	l.mu.Lock()
	defer l.mu.Unlock()
	ended = true
	return given
}
