package store

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"

	"cairn/id"
	"cairn/index"
	"cairn/node"
	"cairn/pack"
)

// Log packs are given up as docs/protocol.md, section 7.3, says.

// lostRun is a run of log packs of the chain that cannot be read.
type lostRun struct {
	from, to uint64
	pack     id.Pack     // of to, as its successor names it
	epoch    uint64      // of to, or one that it may have had
	header   pack.Header // of to, common, if any shard still tells it; else zero
}

// orAccept is what there is to do when no node comes back.
const orAccept = ". If the nodes that hold it are lost for good, stop the server and run: cairn rebuild --data DIR --accept-loss, which names what is lost"

// gaveUpEnd reports whether the index says of a log pack that it was given up with the end
// of the log.
func (s *Store) gaveUpEnd(l *chainLink) (gone bool) {
	err := s.index.View(func(r index.Reader) error {
		losses, err := r.Losses()
		gone = slices.ContainsFunc(losses, func(x Loss) bool { return x.From <= l.h.Seq && l.h.Seq <= x.To && l.h.Epoch <= x.Epoch })
		return err
	})
	return gone && err == nil // an index that is not there says nothing
}

// passLostEnd sees to it that this process's epoch is above those of what was given up with
// an end of the log: what it writes is never taken for that.
func (s *Store) passLostEnd() {
	if err := s.index.View(func(r index.Reader) error {
		losses, err := r.Losses()
		for _, l := range losses {
			s.auth.Epoch = max(s.auth.Epoch, l.Epoch)
		}
		return err
	}); err != nil {
		s.log.Warn("what was given up of the log is not known yet", "err", err)
	}
}

// believable is the highest epoch that a log pack may have of which nothing else is proved.
// At most m nodes lie or are silent, and each epoch was promised by all but m.
func (s *Store) believable(ctx context.Context) uint64 {
	set := s.members.Load()
	var heard []uint64
	for _, a := range ask(ctx, s, set.log, func(ctx context.Context, m *member) (node.Authority, error) { return m.st.Promised(ctx) }) {
		if a.err == nil {
			heard = append(heard, a.v.Epoch)
		}
	}
	slices.Sort(heard)
	slices.Reverse(heard)
	liars := max(set.m()-(len(set.log)-len(heard)), 0)
	if liars >= len(heard) {
		return 0
	}
	return heard[liars]
}

// giveUpEnd says so in the index when the log went on above its tail, and what it went on
// behind cannot be read.
func (s *Store) giveUpEnd(ctx context.Context, tail *foundTail) error {
	if len(s.lostEnd) == 0 {
		return nil
	}
	l := Loss{From: tail.link.h.Seq + 1, Before: tail.pack.Meta.Log.Time, Accepted: s.now().UnixNano()}
	l.After = l.Accepted
	var most *uint64
	for _, x := range s.lostEnd {
		if !s.metaProves(ctx, x) {
			// It may be made up, and would let every later start go past what it names.
			if most == nil {
				e := max(s.believable(ctx), tail.link.h.Epoch)
				most = &e
			}
			if x.h.Epoch > *most || x.h.Seq > tail.link.h.Seq+s.cfg.ListWindow {
				for _, f := range x.found {
					s.unproved = append(s.unproved, fmt.Sprintf("node %s shows a log pack of sequence %d and epoch %d, which nothing proves, and which is far above what the other nodes know of", f.m.info.Name, x.h.Seq, x.h.Epoch))
				}
				continue
			}
		}
		l.To, l.Epoch = max(l.To, x.h.Seq), max(l.Epoch, x.h.Epoch)
	}
	if l.Epoch == 0 {
		return context.Cause(ctx)
	}
	if l.To < l.From { // an older attempt in a newer epoch: nothing follows on it
		l.To = l.From
	}
	if err := s.index.SkipEnd(ctx, l); err != nil {
		return err
	}
	s.skipped = append(s.skipped, l)
	s.log.Error("the end of the log, which cannot be read, was given up", "from", l.From, "to", l.To)
	return nil
}

// lostLink is the error of a start, or a rebuild, that meets a link which cannot be read.
func lostLink(v *survey, seq uint64, p id.Pack) error {
	silent := "all nodes answer"
	if who := explain(v.set.all, v.silent); who != "" {
		silent = "no answer from " + who
	}
	return fmt.Errorf("%w: the log pack of sequence %d cannot be read: pack %v, named by its successor; %s. "+
		"Bring back the nodes that hold its shards. If they are lost for good, stop the server and run: cairn rebuild --data DIR --accept-loss. "+
		"It goes past what cannot be read: writes and deletes that only stood there are undone, objects that need what came with them are damaged, and the store says so from then on", ErrDamaged, seq, p, silent)
}

// goPast finds how the chain goes on behind a predecessor of l that cannot be read, as
// far down as head: below is nil when all in between is lost. What is taken has been
// opened under the store's keys.
func (s *Store) goPast(ctx context.Context, v **survey, l *chainLink, head index.Head) (run *lostRun, below *chainLink, err error) {
	run = &lostRun{to: l.h.Seq - 1, pack: l.h.Prev, epoch: l.h.Epoch}
	if l.h.Begin {
		run.epoch--
	}
	missing, most := run.pack, l.h.Epoch // epochs never go up on the way back
	for seq := run.to; ; seq-- {
		if run.from = seq; seq > 1 {
			s.widen(ctx, v, max(head.Seq, 1), seq-1)
		}
		if (*v).tooSilent() {
			return nil, nil, fmt.Errorf("%w: the log pack of sequence %d cannot be read, and more log nodes give no answer than the store survives: %s", ErrUnavailable, seq, explain((*v).set.log, (*v).silent))
		}
		h, sure, err := s.headerOf(ctx, *v, missing, seq, most)
		if err != nil {
			return nil, nil, err
		}
		known := h.Pack == missing
		if known && missing == run.pack {
			run.header, run.epoch = h, h.Epoch
		}
		if seq <= head.Seq+1 {
			if sure && head.Seq > 0 && h.Prev != head.Pack {
				return nil, nil, fmt.Errorf("%w: sequence %d was written behind pack %v and the index applied pack %v: the log has forked", ErrDivergent, seq, h.Prev, head.Pack)
			}
			return run, nil, nil
		}
		if known {
			most = min(most, h.Epoch)
			if prev := s.packOf(ctx, *v, h.Prev); prev != nil && prev.h.Seq == seq-1 && prev.h.Epoch <= most {
				ok, err := s.opens(ctx, prev)
				if ok || err != nil {
					return run, prev, err
				}
			}
		}
		if !sure {
			// Nothing proves what it was written behind: the newest that there is.
			if below, err = s.newestBelow(ctx, v, seq, head.Seq, most); err != nil {
				return nil, nil, err
			}
			if run.from = head.Seq + 1; below != nil {
				run.from = below.h.Seq + 1
			}
			return run, below, nil
		}
		missing = h.Prev
	}
}

// widen makes a survey cover a sequence, down to first or as many below it as are listed
// at a time.
func (s *Store) widen(ctx context.Context, v **survey, first, seq uint64) {
	if (*v).covers(seq) {
		return
	}
	if seq > first+s.cfg.ListWindow {
		first = seq - s.cfg.ListWindow
	}
	*v = s.reach(ctx, *v, first, seq)
}

// headerOf is what the shards that are left of a log pack say of it, the zero Header when
// there is none. sure: its meta opens, so the header is what was written.
func (s *Store) headerOf(ctx context.Context, v *survey, p id.Pack, seq, most uint64) (h pack.Header, sure bool, err error) {
	var said []pack.Header
	for _, l := range v.byPack[p] {
		said = append(said, l.h)
	}
	for h := range v.bad {
		if h.Pack == p {
			said = append(said, h)
		}
	}
	for _, d := range v.damaged {
		if d.h.Pack != p {
			continue
		}
		if errors.Is(d.err, id.ErrNewer) {
			return h, false, fmt.Errorf("the log pack of sequence %d: %w", seq, d.err)
		}
		said = append(said, d.h)
	}
	slices.SortFunc(said, func(a, b pack.Header) int { // the same whenever it is asked
		return cmp.Or(b.Position().Compare(a.Position()), slices.Compare(a.Append(nil), b.Append(nil)))
	})
	for _, x := range slices.Compact(said) {
		if x.Kind != pack.Log || x.K == 0 || x.Seq != seq || x.Epoch > most { // K is 0 where the header itself is rotten
			continue
		}
		ok, err := s.metaOpens(ctx, v, x)
		if ok || err != nil {
			return x, ok, err
		}
		h = x // better than nothing: what it leads to must open by itself
	}
	return h, false, nil
}

// metaOpens reports whether a shard with this common header has meta that opens under the
// store's keys: that proves the header.
func (s *Store) metaOpens(ctx context.Context, v *survey, h pack.Header) (bool, error) {
	if h.MetaCoded {
		return false, nil
	}
	head := make([]byte, h.SliceOffset())
	for _, m := range v.set.all {
		if v.promised[m.info.ID] != nil || !m.readable() {
			continue
		}
		for i := range h.K + h.M {
			if err := m.st.Read(ctx, node.Key{Pack: h.Pack, Index: i}, 0, head); err != nil {
				continue
			}
			got, err := pack.ParseHeader(head)
			if err != nil || got.Common() != h {
				continue
			}
			_, err = s.coder.OpenMeta(got, got.InlineMeta(head))
			if errors.Is(err, id.ErrNewer) {
				return false, newerLog{fmt.Errorf("log pack at %v: %w", h.Position(), err)}
			}
			if err == nil {
				return true, nil
			}
		}
	}
	return false, context.Cause(ctx)
}

// opens reports whether a complete link is one that this store wrote, whole.
func (s *Store) opens(ctx context.Context, l *chainLink) (bool, error) {
	t, places, err := s.readLink(ctx, l)
	if err == nil {
		t.Release()
		return len(places) > 0, nil
	}
	if isNewerLog(err) {
		return false, err
	}
	return false, context.Cause(ctx)
}

// newestBelow is the complete link with the highest position of those with a sequence
// below seq and above floor, and an epoch of at most most, that opens; nil for none.
func (s *Store) newestBelow(ctx context.Context, v **survey, seq, floor, most uint64) (*chainLink, error) {
	for high := seq - 1; high > floor; {
		s.widen(ctx, v, floor+1, high)
		low := max(floor+1, (*v).from)
		var all []*chainLink
		for _, l := range (*v).links {
			if l.complete() && l.h.Seq >= low && l.h.Seq <= high && l.h.Epoch <= most {
				all = append(all, l)
			}
		}
		slices.SortFunc(all, func(a, b *chainLink) int { return b.h.Position().Compare(a.h.Position()) })
		for _, l := range all {
			if ok, err := s.opens(ctx, l); ok || err != nil {
				return l, err
			}
		}
		high = low - 1
	}
	return nil, context.Cause(ctx)
}

// refBelow is the newest snapshot as the log names it below the record of another one,
// which is lost.
func (s *Store) refBelow(ctx context.Context, v *survey, ref snapshotRef) (snapshotRef, error) {
	l, err := s.newestBelow(ctx, &v, ref.seq, 0, ^uint64(0))
	if l == nil || err != nil {
		return snapshotRef{}, err
	}
	o, err := s.openLink(ctx, l, &foundTail{})
	if err != nil {
		return snapshotRef{}, fmt.Errorf("%w: the log pack of sequence %d: %w", ErrDamaged, l.h.Seq, err)
	}
	return refOf(o.h, o.meta.Log, o.records), nil
}

// giveUp moves the index's head past a run of log packs; next follows on it.
func (s *Store) giveUp(ctx context.Context, v *survey, run *lostRun, next openLink) error {
	before, err := s.index.Head()
	if err != nil {
		return err
	}
	skip := index.Skipped{
		Loss:   index.Loss{From: run.from, To: run.to, Pack: run.pack, Before: before.Time, After: next.meta.Log.Time, Accepted: s.now().UnixNano()},
		Header: run.header, Epoch: max(run.epoch, before.Epoch), Nodes: v.set.rec,
	}
	// Of a pack of which no header is left its successor tells at least how many shards it had.
	width := 1
	for _, p := range next.meta.Log.Prev {
		width = max(width, int(p.Index)+1)
	}
	skip.K = uint8(max(width-v.set.m(), 1))
	skip.M = uint8(width) - skip.K
	if before.Seq > 0 {
		// Where the head lies only the first of those that are lost has said.
		v = s.reach(ctx, v, before.Seq, min(before.Seq+s.cfg.ListWindow, next.h.Seq))
		if l := s.packOf(ctx, v, before.Pack); l != nil {
			t, places, err := s.readLink(ctx, l)
			if isNewerLog(err) {
				return err
			}
			if err == nil {
				t.Release()
				skip.Places = places
			}
		}
	}
	if err := context.Cause(ctx); err != nil {
		return err
	}
	if err := s.index.Skip(ctx, skip); err != nil {
		return err
	}
	s.skipped = append(s.skipped, skip.Loss)
	s.log.Error("log packs that cannot be read were given up", "from", run.from, "to", run.to, "after", before.Time, "before", next.meta.Log.Time)
	return nil
}

// Loss is a run of log packs that was given up by an operator's word.
type Loss = index.Loss

// Losses lists what was ever given up of the log, oldest first.
func (s *Store) Losses() (out []Loss, err error) {
	err = s.view(func(r index.Reader) (err error) {
		out, err = r.Losses()
		return err
	})
	return out, err
}

// behindLosses asks for snapshots until two are behind what was given up: then losing the
// index again needs no second word.
func (s *Store) behindLosses() error {
	return s.view(func(r index.Reader) error {
		losses, err := r.Losses()
		if err != nil || len(losses) == 0 {
			return err
		}
		past, err := snapshotsPast(r)
		if err != nil {
			return err
		}
		for _, l := range losses {
			last := l.To
			if l.End() { // of the log nothing but the index says so, and its sequences are used again
				last = l.From
			}
			if last > past {
				s.givenUp += int(l.To - l.From + 1)
			}
			s.replaceLog(last)
		}
		return nil
	})
}

// GivenUp is how many log packs had been given up when the store was opened that two
// snapshots were not behind: the word was given not long ago.
func (s *Store) GivenUp() int { return s.givenUp }

// unheard names the members that gave no answer, and why.
func unheard(v *survey) []string {
	out := []string{}
	for _, m := range v.set.all {
		if err := v.silent[m.info.ID]; err != nil {
			out = append(out, fmt.Sprintf("%s (%v)", m.info.Name, err))
		}
	}
	return out
}
