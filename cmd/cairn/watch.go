package main

import (
	"context"
	"log/slog"
	"time"

	"cairn/store"
)

// nodeWatch tells the log when a node is not up any more, and when it is again. A
// node that comes and goes is told once: it counts as up when it has stayed so.
type nodeWatch struct {
	log  *slog.Logger
	told map[string]string    // the state told last; none: up
	up   map[string]time.Time // since when a node is up whose other state was told
}

const (
	watchEvery = time.Second
	staysUp    = 30 * time.Second
)

// run looks at the states until ctx ends; looking asks no node.
func (w *nodeWatch) run(ctx context.Context, states func() []store.NodeState) {
	t := time.NewTicker(watchEvery)
	defer t.Stop()
	for {
		w.see(time.Now(), states())
		select {
		case <-t.C:
		case <-ctx.Done():
			return
		}
	}
}

func (w *nodeWatch) see(now time.Time, states []store.NodeState) {
	for _, s := range states {
		if s.State != "up" && s.State != "draining" { // which somebody asked for
			delete(w.up, s.Name)
			if w.told[s.Name] != s.State {
				w.told[s.Name] = s.State
				w.log.Warn("a node is "+s.State, "node", s.Name, "why", s.Reason)
			}
			continue
		}
		if w.told[s.Name] == "" {
			continue
		}
		since, ok := w.up[s.Name]
		if !ok {
			w.up[s.Name] = now
			continue
		}
		if now.Sub(since) >= staysUp {
			delete(w.told, s.Name)
			delete(w.up, s.Name)
			w.log.Info("a node is up again", "node", s.Name)
		}
	}
}
