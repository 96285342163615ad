package disk

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"slices"
	"testing"
	"time"

	"cairn/id"
	"cairn/node"
	"cairn/node/nodetest"
	"cairn/node/vfs"
	"cairn/node/vfs/crashfs"
	"cairn/pack"
)

// What may be found of a key.
const (
	isLive = 1 << iota
	isDead // tombstoned: absent, and in the list
	isGone // absent, and not in the list
)

// keyModel is what a model knows of one key.
type keyModel struct {
	shard nodetest.Shard
	bytes []byte
	may   int         // set of the above
	inst  id.Instance // of the newest copy; 0: it was not told
	late  bool        // a pass has seen it dead: its bytes may have gone
}

// model is the obvious node: what was acknowledged is so, what failed may be.
type model struct {
	keys      map[node.Key]*keyModel
	instances map[id.Instance]node.Key
	promised  uint64          // at least
	tried     uint64          // at most
	high      pack.Position   // of an acknowledged log shard
	files     map[string]bool // what the cluster file may say
	next      uint64
	seq       uint64
}

func newModel() *model {
	return &model{keys: map[node.Key]*keyModel{}, instances: map[id.Instance]node.Key{}, files: map[string]bool{"": true}, next: 100, seq: 100}
}

func (m *model) clone() *model {
	c := *m
	c.keys = map[node.Key]*keyModel{}
	for k, v := range m.keys {
		w := *v
		c.keys[k] = &w
	}
	c.instances, c.files = maps.Clone(m.instances), maps.Clone(m.files)
	return &c
}

// op runs one operation against the node and notes what it says. It returns an
// error only for an answer that no node may give.
func (m *model) put(n *Node, epoch uint64, s nodetest.Shard) error {
	k := s.Key()
	km := m.keys[k]
	if km == nil {
		km = &keyModel{shard: s, bytes: s.Bytes(), may: isGone}
		m.keys[k] = km
	}
	m.tried = max(m.tried, epoch)
	inst, err := n.Put(context.Background(), nodetest.By(epoch), node.ForLog, nodetest.Split(km.bytes, 0))
	debug("put", s.Pack, s.Len, inst, err)
	if err != nil {
		if km.may != isLive {
			km.inst = 0 // should there be a new copy, nobody was told its name
		}
		km.may |= isLive
		if errors.Is(err, node.ErrDamaged) || errors.Is(err, node.ErrConflict) || errors.Is(err, node.ErrNotFound) {
			return fmt.Errorf("put of %+v: %w", s, err)
		}
		return nil
	}
	if was, ok := m.instances[inst]; ok && (was != k || km.may&isLive == 0) {
		return fmt.Errorf("instance %d given out twice", inst)
	}
	m.instances[inst] = k
	km.may, km.inst, km.late = isLive, inst, false
	m.promised = max(m.promised, epoch)
	if s.Kind == pack.Log {
		h := s.Header()
		m.high = maxPos(m.high, h.Position())
	}
	return nil
}

func (m *model) delete(n *Node, epoch uint64, k node.Key) error {
	km := m.keys[k]
	if km.inst == 0 {
		return nil // nobody knows its name
	}
	m.tried = max(m.tried, epoch)
	err := n.Delete(context.Background(), nodetest.By(epoch), k, km.inst)
	switch {
	case err == nil:
		if km.may&isLive != 0 {
			km.may = km.may&^isLive | isDead
		}
		m.promised = max(m.promised, epoch)
	case errors.Is(err, node.ErrNotFound), errors.Is(err, node.ErrDamaged):
		return fmt.Errorf("delete: %w", err)
	case km.may&isLive != 0:
		km.may |= isDead
	}
	return nil
}

func (m *model) undelete(n *Node, epoch uint64, k node.Key) error {
	km := m.keys[k]
	if km.inst == 0 {
		return nil
	}
	m.tried = max(m.tried, epoch)
	err := n.Undelete(context.Background(), nodetest.By(epoch), k, km.inst)
	switch {
	case err == nil:
		if km.may&(isLive|isDead) == 0 {
			return fmt.Errorf("undelete of %v: it had gone", k)
		}
		km.may, km.late = isLive, false
		m.promised = max(m.promised, epoch)
	case errors.Is(err, node.ErrNotFound):
		if km.may&^isLive == 0 || km.may == isDead && !km.late {
			return fmt.Errorf("undelete of %v: %w", k, err)
		}
		km.may &^= isLive
	case errors.Is(err, node.ErrDamaged):
		return fmt.Errorf("undelete of %v: %w", k, err)
	case km.may&isDead != 0:
		km.may |= isLive
	}
	return nil
}

// reclaim passes so late that everything dead may go. It makes a journal file for
// later too, as the background does.
func (m *model) reclaim(n *Node) {
	_ = n.prepare(context.Background())
	_ = n.Reclaim(context.Background(), time.Unix(1000, 0).Add(25*time.Hour))
	for _, km := range m.keys {
		if km.may&isDead != 0 {
			km.late = true
			km.may |= isGone
		}
	}
}

func (m *model) promise(n *Node, epoch uint64) error {
	m.tried = max(m.tried, epoch)
	err := n.Promise(context.Background(), nodetest.By(epoch))
	switch {
	case err == nil:
		if epoch < m.promised {
			return fmt.Errorf("promised %d after %d", epoch, m.promised)
		}
		m.promised = epoch
	case errors.Is(err, node.ErrFenced) && epoch > m.tried:
		return err
	}
	return nil
}

func (m *model) writeFile(n *Node, epoch uint64, s string) {
	m.tried = max(m.tried, epoch)
	m.files[s] = true
	if err := n.WriteFile(context.Background(), nodetest.By(epoch), node.ClusterFile, []byte(s)); err == nil {
		m.files = map[string]bool{s: true}
		m.promised = max(m.promised, epoch)
	}
}

// check compares a node with the model, and narrows the model to what it found:
// what was seen once must not change by itself.
func (m *model) check(n *Node) error {
	ctx := context.Background()
	if len(n.lost) > 0 {
		return fmt.Errorf("rot found where there is none: %+v", n.lost)
	}
	list, err := nodetest.ListAll(ctx, n, 7)
	if err != nil {
		return err
	}
	listed := map[node.Key]node.Info{}
	for _, i := range list {
		if m.keys[i.Key] == nil {
			return fmt.Errorf("%v was never put", i.Key)
		}
		listed[i.Key] = i
	}
	logs := map[node.Key]bool{}
	found, err := nodetest.ListLogAll(ctx, n, 0, 3)
	if err != nil {
		return err
	}
	for _, f := range found {
		if f.Err != nil {
			return fmt.Errorf("log shard %v: %w", f.Info.Key, f.Err)
		}
		logs[f.Info.Key] = true
	}
	for _, k := range slices.SortedFunc(maps.Keys(m.keys), func(a, b node.Key) int { return compareKeys(&a, &b) }) {
		km := m.keys[k]
		want := km.bytes
		info, _, err := n.Stat(ctx, k)
		is := isLive
		if errors.Is(err, node.ErrNotFound) {
			is = isGone
			if i, ok := listed[k]; ok {
				is = isDead
				if i.Deleted.IsZero() {
					return fmt.Errorf("%v is listed and answers %v", k, err)
				}
			}
		} else if err != nil {
			return fmt.Errorf("stat: %w", err)
		}
		// What a pass could not finish, the next one or an open does.
		if km.may&is == 0 && !(is == isGone && km.may&isDead != 0 && km.late) {
			return fmt.Errorf("shard %+v is found as %d, may be %d", km.shard, is, km.may)
		}
		km.may = is
		if is == isLive {
			got := make([]byte, len(want))
			if err := n.Read(ctx, k, 0, got); err != nil || !bytes.Equal(got, want) {
				return fmt.Errorf("shard %+v: %v, or other bytes", km.shard, err)
			}
			if err := n.Verify(ctx, k); err != nil {
				return fmt.Errorf("shard %+v: %w", km.shard, err)
			}
			if km.inst != 0 && km.inst != info.Instance {
				return fmt.Errorf("shard %+v has instance %d, want %d", km.shard, info.Instance, km.inst)
			}
			if was, ok := m.instances[info.Instance]; ok && was != k {
				return fmt.Errorf("instance %d given out twice", info.Instance)
			}
			km.inst = info.Instance
			m.instances[km.inst] = k
		}
		if is != isGone {
			if l := listed[k]; is == isLive && (l.Instance != km.inst || !l.Deleted.IsZero() || l.Size != int64(len(want))) {
				return fmt.Errorf("shard %+v is listed as %+v", km.shard, l)
			}
		}
		if logs[k] != (is == isLive && km.shard.Kind == pack.Log) {
			return fmt.Errorf("shard %+v, found as %d: in ListLog %v", km.shard, is, logs[k])
		}
	}
	p, err := n.Promised(ctx)
	if err != nil {
		return err
	}
	if p.Epoch < m.promised || p.Epoch > m.tried {
		return fmt.Errorf("promised epoch %d, want %d to %d", p.Epoch, m.promised, m.tried)
	}
	m.promised = p.Epoch
	if n.high.Compare(m.high) < 0 {
		return fmt.Errorf("highest log position %v, want at least %v", n.high, m.high)
	}
	b, err := n.ReadFile(ctx, node.ClusterFile)
	if errors.Is(err, node.ErrNotFound) {
		b = nil
	} else if err != nil {
		return err
	}
	if !m.files[string(b)] {
		return fmt.Errorf("cluster file says %q, may say %v", b, m.files)
	}
	m.files = map[string]bool{string(b): true}
	return n.selfCheck()
}

// selfCheck recounts what the table and the segments count as they go.
func (n *Node) selfCheck() error {
	n.mu.RLock()
	defer n.mu.RUnlock()
	t := n.table
	entries, notes, size := map[*segment]int{}, map[*segment]int{}, map[*segment]int64{}
	var lives, deads, liveBytes, deadBytes int64
	t.byKey.each(func(it keyItem) bool {
		for i := it.e; i != 0; i = t.at(i).older {
			e := t.at(i)
			entries[e.seg]++
			size[e.seg] += e.length()
			if e.isDead() {
				deads, deadBytes = deads+1, deadBytes+int64(e.size)
			} else {
				lives, liveBytes = lives+1, liveBytes+int64(e.size)
			}
			if f, ok := t.fates[i]; ok && f.home != nil {
				notes[f.home]++
			}
		}
		return true
	})
	if lives != t.lives || deads != t.deads || liveBytes != t.liveBytes || deadBytes != t.deadBytes {
		return fmt.Errorf("counted %d live and %d dead of %d and %d bytes, the table says %d, %d, %d, %d",
			lives, deads, liveBytes, deadBytes, t.lives, t.deads, t.liveBytes, t.deadBytes)
	}
	known := map[*segment]bool{}
	for _, s := range n.segs {
		known[s] = true
		if s.entries != entries[s] || s.bytes != size[s] || s.notes != notes[s] {
			return fmt.Errorf("segment %s counts %d entries, %d bytes, %d notes; there are %d, %d, %d", s.name(), s.entries, s.bytes, s.notes, entries[s], size[s], notes[s])
		}
	}
	for s := range entries {
		if !known[s] {
			return fmt.Errorf("the table points into segment %s, which has gone", s.name())
		}
	}
	return nil
}

// newShard draws a shard that was never put.
func (m *model) newShard(rng *rand.Rand, epoch uint64) nodetest.Shard {
	m.next++
	s := nodetest.Shard{Kind: pack.Data, Pack: m.next, Seed: m.next, Epoch: epoch, Index: uint8(rng.IntN(6))}
	switch rng.IntN(10) {
	case 0, 1, 2, 3:
		m.seq++
		s.Kind, s.Seq, s.Attempt, s.Len = pack.Log, m.seq, 1, 200<<rng.IntN(7)
		if rng.IntN(10) == 0 {
			s.Len = 40<<10 + rng.IntN(60<<10)
		}
	case 4, 5, 6:
		s.Len = rng.IntN(12 << 10)
	default:
		s.Len = 64<<10 + rng.IntN(30<<10)
		if rng.IntN(8) == 0 {
			s.Len += 300 << 10
		}
	}
	return s
}

// step makes one random operation.
func (m *model) step(n *Node, rng *rand.Rand) error {
	epoch := max(m.tried, 1)
	pick := func() (node.Key, bool) {
		if len(m.keys) == 0 {
			return node.Key{}, false
		}
		all := slices.SortedFunc(maps.Keys(m.keys), func(a, b node.Key) int { return compareKeys(&a, &b) })
		return all[rng.IntN(len(all))], true
	}
	switch x := rng.IntN(100); {
	case x < 55:
		return m.put(n, epoch, m.newShard(rng, epoch))
	case x < 60:
		// Once more under a key that is known: the same bytes, alive or not.
		if k, ok := pick(); ok && m.keys[k].shard.Kind != pack.Log {
			return m.put(n, epoch, m.keys[k].shard)
		}
	case x < 80:
		if k, ok := pick(); ok {
			return m.delete(n, epoch, k)
		}
	case x < 86:
		if k, ok := pick(); ok {
			return m.undelete(n, epoch, k)
		}
	case x < 91:
		m.reclaim(n)
	case x < 95:
		return m.promise(n, epoch+uint64(rng.IntN(2)))
	case x < 97:
		m.writeFile(n, epoch, fmt.Sprint("file ", rng.Uint32()))
	default:
		_, err := n.Usage(context.Background())
		if errors.Is(err, node.ErrDamaged) {
			return err
		}
	}
	return nil
}

var debug = func(a ...any) {}

func long() bool { return os.Getenv("CAIRN_LONG") != "" }

// TestHistories runs random histories with power cuts, kills and clean stops
// between them, some in the middle of an operation or of an open.
func TestHistories(t *testing.T) {
	t.Parallel()
	seeds := uint64(300)
	if long() {
		seeds = 6000
	}
	for seed := range seeds {
		if err := history(seed, nil); err != nil {
			t.Fatalf("seed %d: %v", seed, err)
		}
	}
}

// history is one of them; inject, if any, draws the faults of one run between
// two opens.
func history(seed uint64, inject func(rng *rand.Rand) crashfs.Injector) error {
	rng := newRand(seed)
	fsys := crashfs.New()
	cfg := testConfig(seed + 1e6)
	cfg.MaxJournal, cfg.MaxData, cfg.first, cfg.MaxFiles = 128<<10, 256<<10, 64<<10, 8
	if rng.IntN(3) == 0 {
		cfg.MarkAfter = time.Hour // no mark is ever synced
	}
	want, err := Format(fsys, cfg)
	if err != nil {
		return err
	}
	cfg.Want = want
	m := newModel()
	for round := range 5 {
		if rng.IntN(4) == 0 { // the power also goes while it opens
			fsys.StopAfter(fsys.Ops() + rng.IntN(60))
			if n, err := Open(fsys, cfg); err == nil {
				_ = m.step(n, rng)
				_ = n.Close()
			} else if errors.Is(err, node.ErrDamaged) || errors.Is(err, node.ErrMissing) {
				return fmt.Errorf("round %d: interrupted open: %w", round, err)
			}
			fsys = fsys.Crash(rng)
		}
		n, err := Open(fsys, cfg)
		debug("open", round, fsys, err)
		if err != nil {
			return fmt.Errorf("round %d: %w", round, err)
		}
		if err := m.check(n); err != nil {
			_ = n.Close()
			return fmt.Errorf("round %d, after open: %w", round, err)
		}
		if inject != nil {
			fsys.Inject(inject(rng))
		} else if rng.IntN(2) == 0 {
			fsys.StopAfter(fsys.Ops() + rng.IntN(300))
		}
		for range 5 + rng.IntN(40) {
			if err := m.step(n, rng); err != nil {
				_ = n.Close()
				return fmt.Errorf("round %d: %w", round, err)
			}
		}
		fsys.Inject(nil)
		end := rng.IntN(5)
		if end < 2 || inject != nil {
			err := n.Close()
			debug("close", err, end)
			if err == nil || end == 0 {
				if end == 0 {
					fsys = fsys.Crash(rng)
				} else {
					fsys = fsys.Kill()
				}
				continue
			}
			fsys = fsys.Crash(rng)
			continue
		}
		if end == 2 {
			fsys = fsys.Kill()
		} else {
			fsys = fsys.Crash(rng)
		}
		closed(n)
	}
	return nil
}

// closed ends the goroutines of a node whose filesystem has gone.
func closed(n *Node) *Node {
	_ = n.Close()
	return n
}

// TestEveryCrashPoint cuts the power after every single operation of a history
// in which everything happens once.
func TestEveryCrashPoint(t *testing.T) {
	t.Parallel()
	var m *model
	cfg := testConfig(7)
	cfg.MaxJournal, cfg.MaxData, cfg.first = 64<<10, 256<<10, 64<<10
	formatted, checks := false, 0
	run := func(fsys *crashfs.FS) error {
		m, formatted = newModel(), false
		cfg := cfg
		cfg.Rand = seeded{newRand(7)}
		if _, err := Format(fsys, cfg); err != nil {
			return err
		}
		formatted = true
		n, err := Open(fsys, cfg)
		if err != nil {
			return err
		}
		shard := func(kind pack.Kind, p uint64, l int) nodetest.Shard {
			s := nodetest.Shard{Kind: kind, Pack: p, Len: l, Seed: p}
			if kind == pack.Log {
				s.Epoch, s.Seq = 1, p
			}
			return s
		}
		small, big, log1, log2 := shard(pack.Data, 1, 3000), shard(pack.Data, 2, 70<<10), shard(pack.Log, 3, 40<<10), shard(pack.Log, 4, 40<<10)
		steps := []func(n *Node) error{
			func(n *Node) error { return m.put(n, 1, small) },
			func(n *Node) error { return m.put(n, 1, big) },
			func(n *Node) error { return m.put(n, 1, shard(pack.Data, 20, 80<<10)) },
			func(n *Node) error { return m.put(n, 1, log1) },
			func(n *Node) error { return m.delete(n, 1, big.Key()) },
			func(n *Node) error { return m.undelete(n, 1, big.Key()) },
			func(n *Node) error { return m.delete(n, 1, small.Key()) },
			func(n *Node) error { return m.put(n, 1, small) },
			func(n *Node) error { return m.put(n, 1, log2) }, // the journal turns
			func(n *Node) error { return m.delete(n, 1, log1.Key()) },
			func(n *Node) error { return m.delete(n, 1, big.Key()) },
			func(n *Node) error { m.reclaim(n); return nil }, // punch, copy on, recycle
			func(n *Node) error { return m.put(n, 1, shard(pack.Log, 5, 40<<10)) },
			func(n *Node) error { return m.promise(n, 2) },
			func(n *Node) error { m.writeFile(n, 2, "two"); return nil },
			func(n *Node) error { return m.put(n, 2, shard(pack.Data, 6, 66<<10)) },
			func(n *Node) error { return m.delete(n, 2, shard(pack.Data, 20, 0).Key()) },
			func(n *Node) error { m.reclaim(n); return nil },
			// Two in one segment: the first is punched out, then the file goes.
			func(n *Node) error { return m.put(n, 2, shard(pack.Data, 31, 66<<10)) },
			func(n *Node) error { return m.put(n, 2, shard(pack.Data, 32, 66<<10)) },
			func(n *Node) error { return m.delete(n, 2, shard(pack.Data, 31, 0).Key()) },
			func(n *Node) error { m.reclaim(n); return nil },
			func(n *Node) error { return m.delete(n, 2, shard(pack.Data, 32, 0).Key()) },
			func(n *Node) error { return m.delete(n, 2, shard(pack.Data, 6, 0).Key()) },
			func(n *Node) error { m.reclaim(n); return nil },
		}
		do := func(steps []func(n *Node) error) error {
			for i, s := range steps {
				if err := s(n); err != nil {
					return errors.Join(fmt.Errorf("step %d: %w", i, err), n.Close())
				}
			}
			return n.Close()
		}
		if err := do(steps); err != nil {
			return err
		}
		if n, err = Open(fsys, cfg); err != nil {
			return err
		}
		return do([]func(n *Node) error{
			func(n *Node) error { return m.put(n, 2, shard(pack.Data, 7, 5000)) },
			func(n *Node) error { return m.put(n, 2, shard(pack.Data, 8, 70<<10)) },
			func(n *Node) error { return m.delete(n, 2, small.Key()) },
			func(n *Node) error { m.reclaim(n); return nil },
		})
	}
	crashfs.EveryPoint(t, run, func(fsys *crashfs.FS) {
		t.Helper()
		cfg := cfg
		cfg.Rand = seeded{newRand(8)}
		n, err := Open(fsys, cfg)
		if errors.Is(err, node.ErrMissing) && !formatted {
			if _, err = Format(fsys, cfg); err != nil {
				t.Fatalf("format after a format that was cut short: %v", err)
			}
			n, err = Open(fsys, cfg)
		}
		if err != nil {
			t.Fatalf("open: %v", err)
		}
		m := m.clone()
		if err := m.check(n); err != nil {
			_ = n.Close()
			t.Fatal(err)
		}
		if checks++; checks%4 != 0 && !long() {
			_ = n.Close()
			return
		}
		// It goes on working, and stays so over a clean stop and a kill.
		rng := newRand(9)
		for range 3 {
			if err := m.step(n, rng); err != nil {
				t.Fatal(err)
			}
		}
		if err := n.Close(); err != nil {
			t.Fatalf("close: %v", err)
		}
		n = mustOpen(t, fsys, cfg)
		if err := m.check(n); err != nil {
			t.Fatalf("after a clean stop: %v", err)
		}
		again := fsys.Kill()
		_ = n.Close()
		n = mustOpen(t, again, cfg)
		if err := m.check(n); err != nil {
			t.Fatalf("after a kill: %v", err)
		}
		_ = n.Close()
	})
}

var _ vfs.FS = (*crashfs.FS)(nil)
