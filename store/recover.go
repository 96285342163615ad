package store

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"

	"cairn/id"
	"cairn/index"
	"cairn/node"
	"cairn/pack"
	"cairn/record"
)

// chainLink is a log pack as recovery sees it: which of its shards were found
// where, or what a later begin pack carries of it.
type chainLink struct {
	h       pack.Header // common
	found   []foundShard
	carried *pack.Carried
}

type foundShard struct {
	m    *member
	info node.Info
	idx  uint8
}

// complete reports whether at least k' distinct shards were found.
func (l *chainLink) complete() bool { return l.distinct() >= int(l.h.K) }

// distinct is how many different shards were found.
func (l *chainLink) distinct() int {
	var seen [pack.MaxWidth]bool
	n := 0
	for _, f := range l.found {
		if !seen[f.idx] {
			seen[f.idx] = true
			n++
		}
	}
	return n
}

// survey is what the log nodes answered.
type survey struct {
	set      *memberSet
	from, to uint64                     // the sequences that were listed; 0 for no end
	bad      map[pack.Header]bool       // taken out by distrust, in this survey or one before
	promised map[id.Node]error          // who gave no promise, and why
	links    map[pack.Header]*chainLink // by common header: shards combine only when it is equal
	byPack   map[id.Pack][]*chainLink
	silent   map[id.Node]error // no answer, and why
	damaged  []damagedShard
	doubtful []doubtful
}

// doubtful is a link that was taken out: bad of the nodes that listed it lie.
type doubtful struct {
	pos pack.Position
	by  []id.Node
	bad int
	err error
}

type damagedShard struct {
	m   *member
	h   pack.Header   // common; the zero Header when it cannot be read
	pos pack.Position // zero: unknown
	err error
}

// ask calls fn for every member at the same time and returns what they answered.
// A member that does not answer within the store's patience counts as not having
// answered: a hung disk must not hang a start.
func ask[T any](ctx context.Context, s *Store, ms []*member, fn func(context.Context, *member) (T, error)) map[id.Node]answered[T] {
	ctx, cancel := context.WithTimeout(ctx, s.cfg.Patience)
	defer cancel()
	type named struct {
		n id.Node
		a answered[T]
	}
	results := make(chan named, len(ms)) // buffered: who answers late is not waited for
	out := make(map[id.Node]answered[T], len(ms))
	asked := 0
	for _, m := range ms {
		if !m.readable() {
			out[m.info.ID] = answered[T]{err: cmp.Or(m.whyNot(), node.ErrMissing)}
			continue
		}
		asked++
		go func() {
			v, err := fn(ctx, m)
			results <- named{m.info.ID, answered[T]{v, err}}
		}()
	}
	for ; asked > 0; asked-- {
		select {
		case r := <-results:
			out[r.n] = r.a
		case <-ctx.Done():
			asked = 1
		}
	}
	for _, m := range ms {
		if _, ok := out[m.info.ID]; !ok {
			out[m.info.ID] = answered[T]{err: fmt.Errorf("%w: no answer within %v", node.ErrUnavailable, s.cfg.Patience)}
		}
	}
	return out
}

// answered is what one member said.
type answered[T any] struct {
	v   T
	err error
}

// epochLeap is how far above the others a node's promise may be and still be
// believed: a lying node could otherwise use up all epochs there are.
const epochLeap = 1 << 32

// promise takes the log: a new epoch above every one heard of, promised by all
// but m of the log nodes. It returns who gave no answer.
func (s *Store) promise(ctx context.Context, set *memberSet) (map[id.Node]error, error) {
	const rounds = 4
	for round := 1; ; round++ {
		silent := map[id.Node]error{}
		var heard []uint64
		answers := ask(ctx, s, set.all, func(ctx context.Context, m *member) (node.Authority, error) { return m.st.Promised(ctx) })
		for _, m := range set.all {
			a := answers[m.info.ID]
			if a.err != nil {
				silent[m.info.ID] = a.err
				continue
			}
			heard = append(heard, a.v.Epoch)
		}
		slices.Sort(heard)
		slices.Reverse(heard)
		// At most m nodes lie: the (m+1)-th highest was promised by an honest one,
		// or is below one that was.
		highest := s.auth.Epoch
		if i := min(set.m(), len(heard)-1); i >= 0 {
			bound := heard[i] + epochLeap
			for _, e := range heard {
				if e <= bound {
					highest = max(highest, e)
					break
				}
			}
		}
		s.auth.Epoch = highest + 1
		var willing []*member
		for _, m := range set.log {
			if silent[m.info.ID] == nil {
				willing = append(willing, m)
			}
		}
		promises := ask(ctx, s, willing, func(ctx context.Context, m *member) (struct{}, error) { return struct{}{}, m.st.Promise(ctx, s.auth) })
		promised, refused := 0, false
		for _, m := range willing {
			switch err := promises[m.info.ID].err; {
			case err != nil:
				silent[m.info.ID] = err
				refused = refused || errors.Is(err, node.ErrFenced)
			default:
				promised++
			}
		}
		need := len(set.log) - set.m()
		if refused && round < rounds {
			continue // another gateway starts at the same time: go above it
		}
		if promised < need {
			if refused {
				return silent, fmt.Errorf("%w: other gateways keep taking the log; no promise from %s", ErrSuperseded, explain(set.log, silent))
			}
			return silent, fmt.Errorf("%w: %d of %d log nodes answer, %d are needed to start; no answer from %s", ErrUnavailable, promised, len(set.log), need, explain(set.log, silent))
		}
		return silent, nil
	}
}

// explain lists who gave no answer, and why.
func explain(ms []*member, silent map[id.Node]error) string {
	out := ""
	for _, m := range ms {
		if err := silent[m.info.ID]; err != nil {
			if out != "" {
				out += "; "
			}
			out += fmt.Sprintf("%s (%v)", m.info.Name, err)
		}
	}
	return out
}

// listWindow is the default of Config.ListWindow: a survey takes about 1.5 KB for
// each sequence.
const listWindow = 20_000

// covers reports whether a sequence was listed.
func (v *survey) covers(seq uint64) bool { return v.from <= seq && (v.to == 0 || seq <= v.to) }

// reach returns a survey of at least the sequences first to last: v when it is one.
func (s *Store) reach(ctx context.Context, v *survey, first, last uint64) *survey {
	if v.from <= first && (v.to == 0 || last <= v.to) {
		return v
	}
	w := s.listChain(ctx, v.set, first, last, maps.Clone(v.promised))
	for h := range v.bad {
		w.bad[h] = true
		delete(w.links, h)
		w.byPack[h.Pack] = slices.DeleteFunc(w.byPack[h.Pack], func(x *chainLink) bool { return x.h == h })
	}
	return w
}

// listChain asks every member that promised, or need not, for its log packs of the
// sequences from to to; a to of 0 is no end.
func (s *Store) listChain(ctx context.Context, set *memberSet, from, to uint64, silent map[id.Node]error) *survey {
	v := &survey{set: set, from: from, to: to, bad: map[pack.Header]bool{}, promised: maps.Clone(silent), links: map[pack.Header]*chainLink{}, byPack: map[id.Pack][]*chainLink{}, silent: silent}
	// Members that are no log nodes any more may hold older log packs: they are
	// asked too, though no answer of theirs is needed.
	var willing []*member
	for _, m := range set.all {
		if silent[m.info.ID] == nil {
			willing = append(willing, m)
		}
	}
	lists := askLong(ctx, willing, func(ctx context.Context, m *member) ([]node.Found, error) { return s.listLog(ctx, m, from, to) })
	for _, m := range willing {
		l := lists[m.info.ID]
		if l.err != nil {
			silent[m.info.ID] = l.err
		}
		// What was listed before an error stays: a shard that is there is there.
		for i := range l.v {
			v.add(m, &l.v[i])
		}
	}
	return v
}

// logPage is how many log shards a node is asked for at a time: it reads them
// back before it answers, and must do so within the store's patience.
const logPage = 100

// listLog reads a node's list up to a sequence, or to its end. A list that does not
// go forward is no answer.
func (s *Store) listLog(ctx context.Context, m *member, from, to uint64) ([]node.Found, error) {
	var (
		out   []node.Found
		after *node.Found
	)
	for {
		// Each page has the store's patience: a long list is no hung disk.
		a := ask(ctx, s, []*member{m}, func(ctx context.Context, m *member) ([]node.Found, error) {
			return m.st.ListLog(ctx, from, after, logPage)
		})[m.info.ID]
		if a.err != nil {
			return out, a.err
		}
		found := a.v
		if len(found) == 0 { // a short page may only mean that shards went meanwhile
			return out, nil
		}
		if after != nil && found[0].Info.Key == after.Info.Key && found[0].Header == after.Header {
			return out, fmt.Errorf("%w: the list of log packs does not go forward", node.ErrDamaged)
		}
		for i := range found {
			if h := &found[i].Header; found[i].Err == nil && len(out) > 0 && out[len(out)-1].Err == nil && h.Seq < out[len(out)-1].Header.Seq {
				return out, fmt.Errorf("%w: the list of log packs goes back", node.ErrDamaged)
			}
			if to != 0 && found[i].Err == nil && found[i].Header.Seq > to {
				return out, nil
			}
			out = append(out, found[i])
		}
		last := found[len(found)-1]
		after = &last
	}
}

// askLong is ask for what has deadlines of its own.
func askLong[T any](ctx context.Context, ms []*member, fn func(context.Context, *member) (T, error)) map[id.Node]answered[T] {
	var (
		mu  sync.Mutex
		all sync.WaitGroup
		out = make(map[id.Node]answered[T], len(ms))
	)
	for _, m := range ms {
		all.Go(func() {
			v, err := fn(ctx, m)
			mu.Lock()
			defer mu.Unlock()
			out[m.info.ID] = answered[T]{v, err}
		})
	}
	all.Wait()
	return out
}

func (v *survey) add(m *member, f *node.Found) {
	if f.Err != nil {
		v.damaged = append(v.damaged, damagedShard{m, f.Header.Common(), f.Header.Position(), f.Err})
		return
	}
	h := f.Header.Common()
	l := v.links[h]
	if l == nil {
		l = &chainLink{h: h}
		v.links[h] = l
		v.byPack[h.Pack] = append(v.byPack[h.Pack], l)
	}
	l.found = append(l.found, foundShard{m: m, info: f.Info, idx: f.Header.Index})
}

// pack returns the complete link with a pack ID, nil when there is none. Two
// headers under one ID come from a lying node: the one that opens is the pack.
func (s *Store) packOf(ctx context.Context, v *survey, p id.Pack) *chainLink {
	var complete []*chainLink
	for _, l := range v.byPack[p] {
		if l.complete() {
			complete = append(complete, l)
		}
	}
	for _, l := range complete {
		if len(complete) == 1 {
			return l
		}
		if t, _, err := s.readLink(ctx, l); err == nil {
			t.Release()
			return l
		}
	}
	return nil
}

// genuine reports whether a link that is not complete was written by a writer of
// this store. What its meta does not prove is believed: then the start waits.
func (s *Store) genuine(ctx context.Context, l *chainLink) bool {
	return l.h.MetaCoded || s.metaProves(ctx, l)
}

// metaProves reports whether the meta of a link stands in a shard of it and opens under the
// store's keys.
func (s *Store) metaProves(ctx context.Context, l *chainLink) bool {
	if l.h.MetaCoded {
		return false
	}
	head := make([]byte, l.h.SliceOffset())
	for _, f := range l.found {
		if err := f.m.st.Read(ctx, node.Key{Pack: l.h.Pack, Index: f.idx}, 0, head); err != nil {
			continue
		}
		h, err := pack.ParseHeader(head)
		if err != nil || h.Common() != l.h {
			continue
		}
		if _, err := s.coder.OpenMeta(h, h.InlineMeta(head)); err == nil || errors.Is(err, pack.ErrNewer) {
			return true
		}
	}
	return false
}

// distrust takes a link out that looked complete and does not open, or was never
// written by this store. At least bad of the nodes that list it have not what was
// written, and nobody can say which: so many of them are no answer at its
// position.
func (v *survey) distrust(l *chainLink, bad int, err error) {
	v.bad[l.h] = true
	delete(v.links, l.h)
	v.byPack[l.h.Pack] = slices.DeleteFunc(v.byPack[l.h.Pack], func(x *chainLink) bool { return x == l })
	d := doubtful{pos: l.h.Position(), bad: bad, err: err}
	for _, f := range l.found {
		if !slices.Contains(d.by, f.m.info.ID) {
			d.by = append(d.by, f.m.info.ID)
		}
	}
	d.bad = min(bad, len(d.by))
	v.doubtful = append(v.doubtful, d)
}

// unopenable is how many of the nodes that list a complete link must have other
// bytes than were written, when no k' of its shards open: one more than leaves k'.
func (l *chainLink) unopenable() int { return l.distinct() - int(l.h.K) + 1 }

// tooSilent reports whether more log nodes give no answer than may.
func (v *survey) tooSilent() bool {
	n := 0
	for _, m := range v.set.log {
		if v.silent[m.info.ID] != nil {
			n++
		}
	}
	return n > v.set.m()
}

// tail finds the complete pack with the highest position, or says why the store
// must wait. Without any log pack it returns nil.
func (s *Store) tail(ctx context.Context, v *survey) (*chainLink, error) {
	var tail *chainLink
	for _, l := range v.links {
		if l.complete() && (tail == nil || l.h.Position().Compare(tail.h.Position()) > 0) {
			tail = l
		}
	}
	var pos pack.Position
	if tail != nil {
		pos = tail.h.Position()
	}
	// Damage at or below the tail cannot hide a later pack; anything else makes
	// its node no answer.
	for _, d := range v.damaged {
		if d.pos == (pack.Position{}) || d.pos.Compare(pos) > 0 {
			v.silent[d.m.info.ID] = d.err
		}
	}
	count := 0
	for _, m := range v.set.log {
		if v.silent[m.info.ID] != nil {
			count++
		}
	}
	// What does not open was not acknowledged, if no more than m nodes are silent or
	// lie; those that must lie for it are counted, once, beside the silent ones.
	liars := 0
	var why error
	for _, d := range v.doubtful {
		if d.pos.Compare(pos) <= 0 {
			continue
		}
		bad := d.bad
		for _, n := range d.by {
			if v.silent[n] != nil {
				bad--
			}
		}
		if bad > liars {
			liars, why = bad, d.err
		}
	}
	if count += liars; count > v.set.m() {
		if why != nil {
			why = fmt.Errorf("at least %d more give other bytes than were written: %w", liars, why)
		}
		return nil, errors.Join(fmt.Errorf("%w: %d log nodes give no answer, at most %d may: %s", ErrUnavailable, count, v.set.m(), explain(v.set.log, v.silent)), why, newerAmong(v.silent))
	}
	s.lostEnd = nil
	for _, l := range v.links {
		if l.h.Begin || l.h.Position().Compare(pos) <= 0 || l.h.Seq <= 1 || s.packOf(ctx, v, l.h.Prev) != nil {
			continue
		}
		if !s.genuine(ctx, l) {
			v.distrust(l, len(l.found), fmt.Errorf("%w: a log pack that this store never wrote", node.ErrDamaged))
			return s.tail(ctx, v) // its node is no answer
		}
		if s.gaveUpEnd(l) {
			continue
		}
		if s.cfg.AcceptLoss {
			s.lostEnd = append(s.lostEnd, l)
			continue
		}
		// It was sent, so its predecessor was acknowledged.
		return nil, fmt.Errorf("%w: the log goes on at sequence %d, and the pack before it, which was acknowledged, cannot be read; no answer from %s",
			ErrUnavailable, l.h.Seq, explain(v.set.all, v.silent)+orAccept)
	}
	return tail, nil
}

// newerAmong is the refusal of what a newer version wrote that stands among the
// reasons why nodes give no answer, nil when there is none. One node may make it
// up, so that it decides nothing; but where too many are silent it is what helps.
func newerAmong(silent map[id.Node]error) error {
	for _, err := range silent {
		if errors.Is(err, id.ErrNewer) {
			return err
		}
	}
	return nil
}

// readLink reads a link whole and opens it. Digests are not needed: what opens
// under the log's key is what was written.
func (s *Store) readLink(ctx context.Context, l *chainLink) (*pack.Tail, []record.Place, error) {
	var (
		shards []pack.Shard
		from   []foundShard
		errs   []error
	)
	size := l.h.ShardLen()
	ms := make([]*member, 0, len(l.found))
	at := map[id.Node][]foundShard{}
	for _, f := range l.found {
		if at[f.m.info.ID] == nil {
			ms = append(ms, f.m)
		}
		at[f.m.info.ID] = append(at[f.m.info.ID], f)
	}
	answers := ask(ctx, s, ms, func(ctx context.Context, m *member) ([][]byte, error) {
		out := make([][]byte, len(at[m.info.ID]))
		var errs []error
		for i, f := range at[m.info.ID] {
			b := make([]byte, size)
			if err := m.st.Read(ctx, node.Key{Pack: l.h.Pack, Index: f.idx}, 0, b); err != nil {
				errs = append(errs, err)
				continue
			}
			out[i] = b
		}
		return out, errors.Join(errs...)
	})
	for _, m := range ms {
		a := answers[m.info.ID]
		if a.err != nil {
			errs = append(errs, a.err)
		}
		for i, b := range a.v {
			if b == nil {
				continue
			}
			_, sh, err := pack.ParseShard(b)
			if err != nil {
				errs = append(errs, err)
				continue
			}
			shards, from = append(shards, sh), append(from, at[m.info.ID][i])
		}
	}
	t, err := s.coder.OpenTail(shards)
	if errors.Is(err, pack.ErrNewer) {
		return nil, nil, newerLog{fmt.Errorf("log pack at %v: %w", l.h.Position(), err)}
	}
	if err != nil {
		return nil, nil, fmt.Errorf("log pack at %v: %w", l.h.Position(), errors.Join(append(errs, err)...))
	}
	var places []record.Place
	for i, f := range from {
		if !slices.Contains(t.Bad, i) {
			places = append(places, record.Place{Node: f.m.info.ID, Index: f.idx, Instance: f.info.Instance, Digest: t.Encoded.Digests[f.idx]})
		}
	}
	slices.SortFunc(places, func(a, b record.Place) int {
		return cmp.Or(cmp.Compare(a.Index, b.Index), slices.Compare(a.Node[:], b.Node[:]))
	})
	return t, places, nil
}

// spineLink is a link of the chain, with no more than it takes to find it again.
type spineLink struct {
	pack    id.Pack
	seq     uint64
	begin   bool
	carried *chainLink // when only a begin pack has it
	lost    *lostRun   // it stands for packs that are given up
}

// chain lists the links from the index's head (exclusive) to the tail, oldest
// first, by walking the predecessors back. What the survey does not reach is listed
// window by window. A link that cannot be read is taken from the begin pack that
// carries it; with past it is given up, and the chain goes on behind it.
func (s *Store) chain(ctx context.Context, v *survey, tail *chainLink, head index.Head, past bool) ([]spineLink, error) {
	var (
		out     []spineLink
		carried = map[id.Pack]*chainLink{}
	)
	for l := tail; ; {
		if err := context.Cause(ctx); err != nil {
			return nil, err
		}
		if l.h.Seq <= head.Seq {
			if l.h.Seq == head.Seq && l.h.Pack == head.Pack {
				break
			}
			return nil, fmt.Errorf("%w: at sequence %d the nodes hold pack %v and the index applied pack %v: the log has forked", ErrDivergent, l.h.Seq, l.h.Pack, head.Pack)
		}
		link := spineLink{pack: l.h.Pack, seq: l.h.Seq, begin: l.h.Begin}
		if l.carried != nil {
			link.carried = l
		}
		out = append(out, link)
		if l.h.Seq == 1 {
			if !l.h.Prev.IsZero() || head.Seq != 0 {
				return nil, fmt.Errorf("%w: the chain ends at sequence 1, the index at %d", ErrDivergent, head.Seq)
			}
			break
		}
		if l.h.Seq == head.Seq+1 && l.h.Prev == head.Pack {
			break
		}
		if prev := l.h.Seq - 1; !v.covers(prev) {
			first := max(head.Seq, 1)
			if prev > first+s.cfg.ListWindow {
				first = prev - s.cfg.ListWindow
			}
			v = s.reach(ctx, v, first, prev)
		}
		prev := s.packOf(ctx, v, l.h.Prev)
		if prev == nil && carried[l.h.Prev] == nil && l.h.Begin && l.carried == nil {
			if err := s.carriedBy(ctx, l, carried); err != nil {
				return nil, err
			}
		}
		if prev == nil {
			prev = carried[l.h.Prev]
		}
		if prev == nil && past {
			run, below, err := s.goPast(ctx, &v, l, head)
			if err != nil {
				return nil, err
			}
			out = append(out, spineLink{pack: run.pack, seq: run.to, lost: run})
			if below == nil {
				break
			}
			l = below
			continue
		}
		switch {
		case prev == nil:
			return nil, lostLink(v, l.h.Seq-1, l.h.Prev)
		case prev.h.Seq != l.h.Seq-1:
			return nil, fmt.Errorf("%w: sequence %d names pack %v of sequence %d as its predecessor", ErrDivergent, l.h.Seq, l.h.Prev, prev.h.Seq)
		}
		l = prev
	}
	slices.Reverse(out)
	return out, nil
}

// carriedBy adds the links that a begin pack carries to those known.
func (s *Store) carriedBy(ctx context.Context, l *chainLink, known map[id.Pack]*chainLink) error {
	t, _, err := s.readLink(ctx, l)
	if err != nil {
		return err
	}
	defer t.Release()
	if begin := t.Meta.Log.Begin; begin != nil {
		for i := range begin.Carried {
			c := &begin.Carried[i]
			known[c.Header.Pack] = &chainLink{h: c.Header, carried: c}
		}
	}
	return nil
}

// ErrDivergent says that the index does not belong to the log on the nodes:
// neither may be believed without an operator's word.
var ErrDivergent = errors.New("index and log do not agree")
