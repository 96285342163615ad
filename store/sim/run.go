package sim

import (
	"context"
	"fmt"
	"io"
	"strings"
	"sync"
)

// Config describes a history.
type Config struct {
	Clients    int       // 4 to 8 at random when it is 0
	Ops        int       // of each client
	FaultEvery int       // milliseconds of the fake clock, at most, between two faults; 0: no faults
	LossEvery  int       // one in so many answers is followed by the loss of m nodes
	MostBlocks int       // shared blocks in a large object
	Log        io.Writer // gets the events and the store's log
	Events     io.Writer // gets the events

	onSync func() // called before each sync of a disk
	roomy  bool   // 512 MiB of memory, whatever the seed
}

// Stats are the figures of one history.
type Stats struct {
	Outcomes [3]int // of writes: acknowledged, refused, unknown
	Reads    int
	Starts   int
	Checks   int // full checks
	Removed  int // shards that were no part of the store, by scrubs at the end
	Faults   map[string]int
	Trace    uint64 // digest of all events
}

// raceKey is made by whoever is first.
const raceKey = "shared/race"

// Run plays the history of a seed. It must be called inside a bubble of
// testing/synctest. An error is a broken promise; it names the seed and ends
// with the last events.
func Run(seed uint64, cfg Config) (Stats, error) {
	w := newWorld(seed, cfg)
	g, nodes, err := w.tryOpen(context.Background(), nil)
	if err != nil {
		return w.stats, fmt.Errorf("seed %d: first start: %w", seed, err)
	}
	if err := w.prepare(g); err != nil {
		return w.stats, fmt.Errorf("seed %d: make a bucket: %w", seed, err)
	}
	w.opened()
	for _, key := range []string{raceKey, "shared/one", "shared/two"} {
		w.registers = append(w.registers, &register{key: key})
	}
	n := cfg.Clients
	if n == 0 {
		n = 4 + w.rng.IntN(5)
	}
	for i := range n {
		w.clients = append(w.clients, newClient(w, i))
	}
	w.publish(g, nodes)

	stop := make(chan struct{})
	var clients, chaos sync.WaitGroup
	for _, c := range w.clients {
		clients.Go(func() { c.run(cfg.Ops) })
	}
	if cfg.FaultEvery > 0 {
		chaos.Go(func() { w.chaos(stop) })
		if seed%4 == 2 {
			chaos.Go(func() { w.nodeChanges(stop) })
		}
		if seed%4 == 1 {
			chaos.Go(func() { w.raises(stop) })
		}
		if seed%4 == 3 {
			chaos.Go(func() { w.scrubs(stop) })
		}
		if seed%5 < 3 {
			chaos.Go(func() { w.collects(stop) })
		}
	}
	clients.Wait()
	close(stop)
	chaos.Wait()
	w.finish()
	w.end()
	w.drains.Wait()
	w.stats.Trace = w.trace
	if w.wrong != nil {
		last := w.lines[max(0, len(w.lines)-60):]
		return w.stats, fmt.Errorf("seed %d: %w\nlast events:\n  %s", seed, w.wrong, strings.Join(last, "\n  "))
	}
	return w.stats, nil
}

// end lets whatever still runs end.
func (w *world) end() {
	w.mu.Lock()
	cur, old, nodes := w.cur, w.old, w.nodes
	w.cur, w.old, w.nodes = nil, nil, nil
	w.mu.Unlock()
	if cur != nil || old != nil {
		w.bury(nodes, cur, old)
	}
}
