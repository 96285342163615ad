package sim

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"slices"
	"strings"
	"time"

	"cairn/id"
	"cairn/index"
	"cairn/index/kv"
	"cairn/index/kv/memkv"
	"cairn/node"
	"cairn/node/disk"
	"cairn/store"
)

// patiently calls fn until it does not end for want of an answer. Checks run
// while nothing new goes wrong, so that ends.
func (w *world) patiently(what string, fn func() error) bool {
	for try := 0; ; try++ {
		err := fn()
		if err == nil {
			return true
		}
		if isAny(err, refusals) == nil || errors.Is(err, store.ErrDamaged) || try == 100 {
			w.violation("%s: %v", what, err)
			return false
		}
		if w.over() {
			return false
		}
		time.Sleep(time.Second)
	}
}

// checkAll reads everything back and compares it with the model. No client is
// inside, and no fault is going on but the loss of at most m nodes.
func (w *world) checkAll(g *gateway, when string) {
	w.calm()
	w.note("check %s", when)
	w.mu.Lock()
	w.stats.Checks++
	w.mu.Unlock()
	opens := w.startsSeen()
	var all [2][]*item
	for _, c := range w.clients {
		for i, it := range c.items {
			it.settle(opens)
			w.checkItem(g, it, when)
			all[i*2/len(c.items)] = append(all[i*2/len(c.items)], it)
			if w.over() {
				return
			}
		}
		c.settleMoves()
		c.bucket.settle(opens)
		w.checkItem(g, c.bucket, when)
		c.kept.settle(opens)
		w.checkItem(g, c.kept, when)
		w.checkList(g, lockedBucket, store.ListOptions{Prefix: c.kept.key, Versions: true}, []*item{c.kept}, -1)
		for i, bucket := range []string{"main", versionsBucket} {
			w.checkList(g, bucket, store.ListOptions{Prefix: c.items[0].key[:3], Versions: i == 1}, c.items[i*len(c.items)/2:(i+1)*len(c.items)/2], -1)
		}
		if w.over() {
			return
		}
	}
	for _, r := range w.registers {
		w.patiently("check "+when+": get "+r.key, func() error {
			begun := time.Now()
			got, _, err := w.getRegister(g, r)
			if err == nil {
				r.note(-1, regIn{kind: regGet}, regOut{ok: true, value: got}, begun, time.Now())
			}
			return err
		})
	}
	w.patiently("check "+when+": index", func() error {
		_, err := g.st.CheckIndex(context.Background())
		return err
	})
}

// checkItem reads the current and every older version of an item.
func (w *world) checkItem(g *gateway, it *item, when string) {
	var (
		at  span
		got []byte
		err error
	)
	w.patiently("check "+when+": get "+it.String(), func() error {
		at, got, err = w.get(g, it.bucket, it.key, id.Version{}, nil)
		if isAny(err, definite) != nil {
			return nil
		}
		return err
	})
	if w.over() {
		return
	}
	w.judge(g, it, at, got, err)
	if len(it.states) != 1 || w.over() {
		return
	}
	for _, v := range it.states[0].stack {
		if v.id.IsZero() || v.marker {
			continue
		}
		w.patiently("check "+when+": an older version of "+it.String(), func() error {
			at, got, err := w.get(g, it.bucket, it.key, v.id, nil)
			if err == nil && !w.holds(v.body, at, got) {
				w.violation("check %s: version %v of %v has %d bytes that are not those of %v", when, v.id, it, len(got), v.body)
			}
			return err
		})
	}
}

// finish brings a history to its end: restart, full check, repair, full check,
// the index lost, full check, and a verification of every byte.
func (w *world) finish() {
	w.token <- struct{}{}
	defer func() { <-w.token }()
	if w.over() {
		return
	}
	w.calm()
	for _, v := range w.vols {
		v.change(func(m *mood) { m.lie = false })
	}
	w.crash(w.rng.IntN(2) == 0)
	g, nodes := w.start(false)
	if g == nil {
		return
	}
	w.quiet()
	w.checkAll(g, "at the end")
	for try := 0; !w.over() && !w.heal(g, nodes); try++ {
		if try == 3 {
			w.violation("lost nodes cannot be replaced and repaired while nothing else is wrong (%s)", w.lostText())
		}
		w.publish(g, nodes)
		w.crash(false)
		if g, nodes = w.start(false); g == nil {
			return
		}
	}
	if w.over() {
		w.publish(g, nodes)
		return
	}
	w.checkAll(g, "after the repair")
	w.collectAll(g)
	if w.over() {
		w.publish(g, nodes)
		return
	}
	w.checkAll(g, "after a collection")
	if w.atMost > tolerance && !w.over() {
		if g, nodes = w.raiseAll(g, nodes); g == nil {
			return
		}
	}
	if w.seed%2 == 1 && !w.over() {
		w.sweep(g)
	}
	w.publish(g, nodes)
	w.stop()
	w.verify()
	if w.over() {
		return
	}
	w.engine = memkv.New(memkv.Options{})
	g, nodes, err := w.tryOpen(context.Background(), nil)
	if err != nil {
		w.violation("start without an index: %v", err)
		return
	}
	w.opened()
	w.checkAll(g, "with the index rebuilt")
	w.publish(g, nodes)
	w.stop()
	for _, r := range w.registers {
		if err := r.linearizable(); err != nil {
			w.violation("%v", err)
		}
	}
}

// collectAll collects while nobody is there: then nothing waits.
func (w *world) collectAll(g *gateway) {
	w.patiently("collect", func() error {
		out, err := g.st.Collect(context.Background(), store.JobOptions{Now: true, Rate: 1 << 50})
		if err == nil && (out.Waiting > 0 || out.Unreadable > 0) {
			w.violation("a collection beside nothing leaves something: %+v", out)
		}
		w.note("collected: %+v", out)
		return err
	})
}

// sweep scrubs until no node holds anything that is no part of the store: what the
// history has left of failed attempts must go, all of it. That nothing else went is for
// the verification behind it to say.
func (w *world) sweep(g *gateway) {
	var removed, tries int
	for {
		r, err := w.scrub(g)
		if err != nil {
			w.violation("scrub at the end: %v", err)
			return
		}
		removed += r.Orphans + r.Stale
		// A copy stays while its pack is short: of those that nothing needs some are.
		done := r.Orphans+r.Stale+r.Foreign+r.NotListed == 0 && (r.Undecided == 0 || r.Left+r.LostPacks > 0)
		if done || w.over() {
			w.note("sweep: %d shards removed", removed)
			w.mu.Lock()
			w.stats.Removed += removed
			w.mu.Unlock()
			return
		}
		if tries++; tries == 20 {
			w.violation("scrubs at the end find ever more that is no part of the store: %+v", r)
			return
		}
		time.Sleep(time.Second)
	}
}

// scrub runs a light scrub to its end.
func (w *world) scrub(g *gateway) (r store.ScrubResult, err error) {
	j, err := g.st.StartJob(context.Background(), store.JobScrub, store.JobOptions{Rate: 1 << 50})
	for err == nil && j.State == store.JobRunning {
		time.Sleep(100 * time.Millisecond)
		j, err = g.st.Job(context.Background(), j.ID)
	}
	if err == nil {
		err = json.Unmarshal(j.Result, &r)
	}
	return r, err
}

// expected reports whether a finding is about a pack that nothing needs any more.
func (w *world) expected(f store.Finding) bool {
	id, found := strings.CutPrefix(f.Detail, "pack ")
	return found && len(id) > 32 && w.carried[id[:32]]
}

// verify runs the engine's own proof on the stopped store: nothing is lost and
// nothing is damaged, since everything was repaired.
//
// The index that it replayed from the log must equal the live one, byte for byte.
func (w *world) verify() {
	nodes, stores, absent := map[string]*disk.Node{}, map[string]node.Store{}, map[string]error{}
	for _, v := range w.vols {
		n, err := disk.Open(v.fs(), w.diskConfig(v))
		if err != nil {
			w.violation("open node %s to verify: %v", v.name, err)
			absent[v.name] = err
			continue
		}
		nodes[v.name], stores[v.name] = n, liar{n, v}
	}
	w.starts++
	engine := memkv.New(memkv.Options{})
	r, err := store.Verify(context.Background(), store.Config{Cluster: w.cluster, Nodes: stores, Absent: absent, Keyring: w.ring, Engine: engine,
		Workers: w.workers(), Rand: newSource(w.seed, "store", w.starts), Now: w.now, Log: w.log, Patience: patience, Lag: lagTime})
	// A pack of the log without a chunk of which too little is left is not needed: the
	// whole log was replayed without it, from the begin pack that carries what it held. A
	// repair that comes when snapshots stand behind it does not tell of it.
	for _, f := range r.Findings {
		if id, found := strings.CutPrefix(f.Detail, "pack "); found && f.Kind == "unreadable pack" && strings.Contains(f.Detail, "which holds no chunk any more") {
			w.carried[id[:32]] = true
		}
	}
	switch {
	case err != nil:
		w.violation("verify: %v", err)
	case r.Lost > 0 || slices.ContainsFunc(r.Findings, func(f store.Finding) bool { return !w.expected(f) }):
		w.violation("verify finds %d damaged and %d lost after everything was repaired: %v", r.Damaged, r.Lost, r.Findings)
	}
	w.note("verify: %d packs, %d shards, %d chunks, %d objects", r.Packs, r.Shards, r.Chunks, r.Objects)
	for _, name := range names(nodes) {
		if err := nodes[name].Close(); err != nil {
			w.note("close node %s: not clean", name)
		}
	}
	if w.over() {
		return
	}
	live, err := w.export(w.engine.Clone())
	if err != nil {
		w.violation("export of the live index: %v", err)
	}
	replayed, err := w.export(engine.Reopen())
	if err != nil {
		w.violation("export of the replayed index: %v", err)
	}
	if !bytes.Equal(live, replayed) {
		w.violation("the live index and the one replayed from the log differ: %d and %d bytes", len(live), len(replayed))
	}
	for _, v := range w.vols {
		w.cut(v, false)
	}
}

// export writes out the rows of an index that nobody has open, after checking it.
func (w *world) export(engine *memkv.Engine) ([]byte, error) {
	db, err := kv.Open(engine, kv.Config{ValueKey: kv.NewSecret(w.ring.IndexValueKey().Reveal()), DigestKey: kv.NewSecret(w.ring.IndexDigestKey().Reveal()),
		Cluster: w.cluster, Rand: w.source})
	if err != nil {
		return nil, err
	}
	x, err := index.Open(db, index.Config{})
	if err != nil {
		return nil, errors.Join(err, db.Close())
	}
	var out bytes.Buffer
	_, err = x.Check(context.Background())
	_, exporting := x.Export(context.Background(), &out)
	err = errors.Join(err, exporting, x.Close())
	return out.Bytes(), err
}
