package notice

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"time"

	"cairn/store"
)

const (
	maxNotices = 50               // that wait for a way; others are counted
	gather     = 2 * time.Second  // for what happens at the same time to come together
	every      = time.Minute      // between two messages of a way
	again      = 15 * time.Minute // between two notices of a subject, such as a node that comes and goes
	mostWait   = time.Hour        // between two attempts
)

// Config says whom to tell. Without Command and URL nobody is told.
type Config struct {
	// Command is a program and its arguments. It gets the message on standard input.
	Command []string
	// URL gets the message as the body of a POST.
	URL string
	// SecretFile holds what goes along with it, as Authorization: Bearer; it is read
	// each time. Empty: nothing.
	SecretFile string
	Log        *slog.Logger // required
}

// Notifier tells of what a store found wrong. Its methods may be called at the same
// time.
type Notifier struct {
	log  *slog.Logger
	ways []*way
}

// Counts counts the messages of a way.
type Counts struct {
	Way     string // "command" or "url"
	Sent    uint64
	Failed  uint64 // attempts
	Dropped uint64 // notices that there was no room for
}

// New checks a configuration; nothing is told before [Notifier.Run].
func New(cfg Config) (*Notifier, error) {
	n := &Notifier{log: cfg.Log}
	if len(cfg.Command) > 0 {
		c, err := newCommand(cfg.Command)
		if err != nil {
			return nil, err
		}
		n.ways = append(n.ways, newWay("command", c.send, cfg.Log))
	}
	if cfg.URL != "" {
		w, err := newWebhook(cfg.URL, cfg.SecretFile)
		if err != nil {
			return nil, err
		}
		n.ways = append(n.ways, newWay("url", w.send, cfg.Log))
	} else if cfg.SecretFile != "" {
		return nil, errors.New("a secret is sent to a URL, and there is none")
	}
	return n, nil
}

// Run tells of what happens in a store from now on, of nodes that are lost already, and
// of so many log packs that were given up lately, until the store has closed, or ctx ends; then it gives each way what is left of grace
// to deliver what waits, and returns.
func (n *Notifier) Run(ctx context.Context, cluster string, listen func(after string) *store.Listener, states func() []store.NodeState, givenUp int, grace time.Duration) {
	if len(n.ways) == 0 {
		return
	}
	l := listen("")
	sending, stop := context.WithCancel(context.Background())
	defer stop()
	closing := make(chan struct{})
	var running sync.WaitGroup
	for _, w := range n.ways {
		running.Go(func() { w.run(sending, cluster, closing) })
	}
	for _, s := range states() {
		// No event says so: an ID that no event has.
		if x := (Notice{ID: l.Last() + "-" + s.Name, Time: time.Now().UTC(), Count: 1}); x.node(s) {
			n.add(x)
		}
	}
	if givenUp > 0 {
		n.add(Notice{ID: l.Last() + "-given-up", Time: time.Now().UTC(), Count: 1, Kind: LogGivenUp, Severity: Critical,
			Text: fmt.Sprintf("%s of the log cannot be read and were given up: what only stood there is undone; run cairn scrub, then see cairn status and cairn damaged", plural(givenUp, "sequence"))})
	}
	for {
		ev, err := l.Next(ctx)
		if errors.Is(err, store.ErrSlow) {
			n.log.Warn("events came faster than they were looked at: a notice may be missing")
			l = listen("")
			continue
		}
		if err != nil {
			break
		}
		if x, ok := of(ev); ok {
			n.add(x)
		}
	}
	late := time.AfterFunc(grace, stop)
	defer late.Stop()
	close(closing)
	running.Wait()
}

func (n *Notifier) add(x Notice) {
	for _, w := range n.ways {
		w.add(x)
	}
}

// Counts counts what became of messages since the process began.
func (n *Notifier) Counts() []Counts {
	out := make([]Counts, 0, len(n.ways))
	for _, w := range n.ways {
		w.mu.Lock()
		c := w.counts
		w.mu.Unlock()
		c.Way = w.name
		out = append(out, c)
	}
	return out
}

// way is one way out.
type way struct {
	name string
	// send delivers a message or gives up in a time of its own, and when ctx ends.
	send func(ctx context.Context, body []byte) error
	log  *slog.Logger
	wake chan struct{}

	mu      sync.Mutex
	pending []waiting            // the oldest first, one of each subject
	told    map[string]time.Time // subjects that went out less than again ago
	dropped int                  // since the last message
	counts  Counts
}

// waiting is a notice that waits.
type waiting struct {
	Notice
	since time.Time // that one of its subject waits
}

func newWay(name string, send func(context.Context, []byte) error, log *slog.Logger) *way {
	return &way{name: name, send: send, log: log, wake: make(chan struct{}, 1), told: map[string]time.Time{}}
}

// add lets a notice wait; a newer one takes the place of an older one of its subject.
func (w *way) add(x Notice) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.put(waiting{x, time.Now()})
	select {
	case w.wake <- struct{}{}:
	default:
	}
}

// put is add; w.mu is held.
func (w *way) put(x waiting) {
	i := slices.IndexFunc(w.pending, func(o waiting) bool { return o.subject() == x.subject() })
	switch {
	case i >= 0:
		x.Count, x.since = x.Count+w.pending[i].Count, w.pending[i].since
		w.pending[i] = x
	case len(w.pending) == maxNotices:
		w.dropped++
		w.counts.Dropped++
	default:
		w.pending = append(w.pending, x)
	}
}

// due is when a notice is to go out; w.mu is held.
func (w *way) due(x waiting) time.Time {
	at := x.since.Add(gather)
	if told, ok := w.told[x.subject()]; ok && told.Add(again).After(at) {
		at = told.Add(again)
	}
	return at
}

// first is when the next message is due; ok is false when nothing waits.
func (w *way) first() (at time.Time, ok bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, x := range w.pending {
		if d := w.due(x); !ok || d.Before(at) {
			at, ok = d, true
		}
	}
	return at, ok
}

// run sends what waits, a message at a time, until closing is closed; then once more.
func (w *way) run(ctx context.Context, cluster string, closing <-chan struct{}) {
	var (
		next   time.Time // no message before
		failed time.Duration
	)
	for last := false; !last; {
		var ready <-chan time.Time
		if at, ok := w.first(); ok {
			ready = time.After(max(time.Until(at), time.Until(next)))
		}
		select {
		case <-w.wake:
			continue
		case <-ready:
		case <-closing:
			last = true
		}
		sent, err := w.deliver(ctx, cluster, last)
		switch {
		case err != nil:
			failed = min(max(2*failed, every), mostWait)
			next = time.Now().Add(failed)
		case sent:
			failed, next = 0, time.Now().Add(every)
		}
	}
}

// deliver sends what is due now or in a moment, or all. What could not be sent waits again, before what
// has come meanwhile.
func (w *way) deliver(ctx context.Context, cluster string, all bool) (sent bool, err error) {
	w.mu.Lock()
	now := time.Now()
	maps.DeleteFunc(w.told, func(_ string, at time.Time) bool { return now.Sub(at) >= again })
	var out, later []waiting
	for _, x := range w.pending {
		if all || !w.due(x).After(now.Add(gather)) {
			out = append(out, x)
		} else {
			later = append(later, x)
		}
	}
	dropped := w.dropped
	w.pending, w.dropped = later, 0
	w.mu.Unlock()
	if len(out) == 0 {
		return false, nil
	}
	body, err := json.Marshal(newMessage(cluster, out, dropped))
	if err == nil {
		err = w.send(ctx, append(body, '\n'))
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if err == nil {
		w.counts.Sent++
		for _, x := range out {
			w.told[x.subject()] = now
		}
		return true, nil
	}
	w.counts.Failed++
	w.log.Warn("a notice could not be delivered; it is tried again", "way", w.name, "notices", len(out), "err", err)
	came := w.pending
	w.pending, w.dropped = out, w.dropped+dropped
	for _, x := range came {
		w.put(x)
	}
	return false, err
}
