package store

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"cairn/id"
	"cairn/node"
	"cairn/pack"
	"cairn/record"
)

// mended is a pack with shards made anew. They count when they are logged.
type mended struct {
	remade
	before, more int // good shards, and others that it will have
}

// hold keeps repairs away until the batch is logged.
func (sc *scrubbing) hold(ctx context.Context) error {
	if sc.holds {
		return nil
	}
	select {
	case sc.s.repairing <- struct{}{}:
		sc.holds = true
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// mend looks at a pack again in which damage was found, opening it, and makes its
// shards anew. What is right now was passing; a pack that is gone has no damage.
func (sc *scrubbing) mend(ctx context.Context, p id.Pack, found []badShard) (err error) {
	s, r := sc.s, sc.res
	if err := sc.hold(ctx); err != nil {
		return err
	}
	defer func() {
		if len(sc.batch) == 0 {
			sc.letGo()
		}
	}()
	moved := 0
	if !sc.opt.DryRun && slices.ContainsFunc(found, func(b badShard) bool { return b.m == nil }) {
		if moved, err = sc.moveAway(ctx, p); err != nil {
			return err
		}
	}
	l, err := s.look(ctx, p, true)
	if err != nil || l == nil {
		return err
	}
	defer l.release()
	sc.pace.did(l.bytes)
	if l.lost && l.row.Kind == pack.Data && l.row.Live == 0 {
		// Nothing refers to what is lost. That it is no hit any more is all there is to do.
		r.DeadPacks++
		if sc.opt.DryRun {
			return nil
		}
		_, err := s.lose(context.WithoutCancel(ctx), p)
		if err != nil {
			sc.unsure(p)
		}
		return over(err)
	}
	sc.count(p, l)
	if l.dead {
		return nil
	}
	passing := 0
	for _, b := range found {
		if b.m != nil && l.good[b.place] {
			passing++
		}
	}
	// What was found in the first look and could not be asked for in the second is no damage.
	r.Damaged += moved + passing + len(l.bad)
	r.Repaired += moved
	r.Passing += passing
	r.count(damageMissing, moved)
	r.count(damagePassing, passing)
	for _, b := range l.bad {
		r.count(b.kind, 1)
	}
	have := l.shards()
	done := mended{remade: remade{pack: p}, before: have}
	r.Before[max(have-moved, 0)]++
	switch {
	case l.lost:
		r.Left += len(l.bad)
		r.After[have]++
		return sc.lose(ctx, p, l)
	case l.enc == nil:
		r.Left += len(l.bad)
		r.After[have]++
		if l.unreadable() {
			if l.row.Kind == pack.Snapshot && !sc.opt.DryRun {
				s.snapshotGone()
			}
			s.scrubs.note(p, true)
			sc.unsure(p)
			r.LostPacks++
			r.LostBytes += l.row.Live
			r.find(fmt.Errorf("pack %v has all that was written, and cannot be opened: %w", p, l.torn))
		}
		return nil
	case sc.opt.DryRun:
		r.Left += len(l.bad)
		r.After[have]++
		for _, b := range l.bad {
			r.find(fmt.Errorf("%s: %w", b.kind, b.err))
		}
		return nil
	}
	to, keep, _ := s.elsewhere(l.set, l.g, l.row.Kind, nil)
	for i, b := range l.bad {
		re, err := s.remake(ctx, l, b, to, &keep)
		if cerr := context.Cause(ctx); err != nil && cerr != nil {
			// The pack is counted; what is left of it is left.
			r.Left += len(l.bad) - i
			sc.add(done, l)
			return nil
		}
		if err != nil {
			r.Left++
			r.find(fmt.Errorf("%s, not repaired: %w; %w", b.kind, b.err, err))
			continue
		}
		r.find(fmt.Errorf("%s: %w", b.kind, b.err))
		sc.pace.did(2 * uint64(l.g.size))
		done.shards = append(done.shards, re)
		l.have[b.place.Index] = true
	}
	if l.shards() == l.g.k+l.g.m { // what counts as stored must survive what was promised
		done.found = l.found
	}
	sc.add(done, l)
	return nil
}

// add puts a pack into the batch.
func (sc *scrubbing) add(done mended, l *look) {
	if len(done.shards)+len(done.found) == 0 {
		sc.res.After[l.shards()]++
		return
	}
	sc.chunks += len(done.found)
	done.more = l.shards() - done.before
	if len(sc.batch) == 0 {
		sc.since = time.Now()
	}
	sc.batch, sc.shards, sc.bytes = append(sc.batch, done), sc.shards+len(done.shards), sc.bytes+len(done.shards)*l.g.size
}

// flush logs the batch; what is logged counts.
func (sc *scrubbing) flush(ctx context.Context) error {
	if len(sc.batch) == 0 {
		return nil
	}
	defer sc.letGo()
	batch := make([]remade, len(sc.batch))
	for i := range sc.batch {
		batch[i] = sc.batch[i].remade
	}
	moved, err := sc.s.logRemade(ctx, batch)
	for i, b := range sc.batch {
		switch {
		case err != nil || moved[i]:
			sc.res.Left += len(b.shards)
			sc.res.After[b.before]++
			sc.res.find(fmt.Errorf("pack %v: made anew and not logged: %w", b.pack, cmp.Or(err, ErrRetry)))
		default:
			sc.res.Repaired += len(b.shards)
			sc.res.Shards += len(b.shards)
			sc.res.After[b.before+b.more]++
			n, ferr := sc.s.regain(ctx, b.pack, b.found)
			if sc.res.Found += n; ferr != nil {
				sc.res.find(ferr)
				err = cmp.Or(err, over(ferr))
			}
		}
	}
	sc.batch, sc.shards, sc.bytes, sc.chunks = nil, 0, 0, 0
	return over(err)
}

func (sc *scrubbing) letGo() {
	if sc.holds {
		<-sc.s.repairing
		sc.holds = false
	}
}

// moveAway is a repair of the shards of one pack whose nodes are none any more.
func (sc *scrubbing) moveAway(ctx context.Context, p id.Pack) (int, error) {
	if err := sc.flush(context.WithoutCancel(ctx)); err != nil {
		return 0, err
	}
	if err := sc.hold(ctx); err != nil {
		return 0, err
	}
	re, _, err := sc.s.repairPack(ctx, p)
	if cerr := context.Cause(ctx); err != nil && cerr != nil {
		return 0, cerr
	}
	if err != nil || len(re.shards) == 0 {
		return 0, nil // the second look says what is left
	}
	moved, err := sc.s.logRemade(context.WithoutCancel(ctx), []remade{re})
	if err != nil || moved[0] {
		return 0, nil
	}
	return len(re.shards), nil
}

// lose takes in that too few shards of a pack are left for good, and marks its chunks.
func (sc *scrubbing) lose(ctx context.Context, p id.Pack, l *look) error {
	if l.row.Kind == pack.Snapshot {
		if !sc.opt.DryRun {
			sc.s.snapshotGone()
		}
		sc.res.LostPacks++
		sc.res.find(fmt.Errorf("pack %v, a piece of a snapshot of the index, which is taken anew: %w: %w", p, errLost, l.torn))
		return nil
	}
	row, err := l.row, error(nil)
	if !sc.opt.DryRun {
		row, err = sc.s.lose(context.WithoutCancel(ctx), p)
		if err == nil && row.Kind == pack.Log {
			sc.s.replaceLog(row.Seq)
		}
	}
	if err != nil {
		sc.unsure(p)
	}
	sc.s.scrubs.note(p, true)
	sc.res.LostPacks++
	sc.res.LostBytes += row.Live
	sc.res.find(errors.Join(fmt.Errorf("pack %v: %w: %w", p, errLost, l.torn), err))
	return over(err)
}

// over is an error behind which there is nothing more to do.
func over(err error) error {
	if errors.Is(err, ErrClosed) || errors.Is(err, ErrSuperseded) {
		return err
	}
	return nil
}

// remake writes a shard anew and reads it back: on its own node when that takes it,
// else on one that holds none of the pack.
func (s *Store) remake(ctx context.Context, l *look, b badShard, to *placed, keep *[]*member) (*record.Reshard, error) {
	p, i := l.g.pack, b.place.Index
	if !b.place.Node.IsZero() && l.enc.Digests[i] != b.place.Digest && !l.trusted {
		return nil, fmt.Errorf("%w: made anew it is not what was written", ErrDamaged)
	}
	re := &record.Reshard{Pack: p, Index: i, Old: b.place}
	var errs []error
	if b.m != nil {
		inst, err := s.putInPlace(ctx, b, l)
		if err == nil {
			re.New = record.Place{Node: b.m.info.ID, Index: i, Instance: inst, Digest: l.enc.Digests[i]}
			return re, nil
		}
		if cerr := context.Cause(ctx); cerr != nil {
			return nil, cerr
		}
		b.m.noteRead(err, s.now())
		if errs = append(errs, fmt.Errorf("node %s: %w", b.m.info.Name, err)); l.have[i] {
			return nil, errors.Join(errs...) // its other place is enough
		}
	}
	place, err := s.placeShard(ctx, p, i, l.enc.Shards[i], l.enc.Digests[i], to, keep)
	if err != nil {
		return nil, errors.Join(append(errs, err)...)
	}
	re.New = place
	return re, nil
}

// putInPlace writes a shard anew on the node that holds it damaged, or should hold
// it, and reads it back. Bytes that are not those which were written and whose
// checksums hold give way first: the pack was put together without them.
func (s *Store) putInPlace(ctx context.Context, b badShard, l *look) (id.Instance, error) {
	m, sh := b.m, l.enc.Shards[b.place.Index]
	if !m.usable(s.now()) {
		_, why := m.state(s.now())
		return 0, errors.Join(why, node.ErrUnavailable)
	}
	if b.kind == damageOther || b.kind == damageParity {
		if err := s.giveWay(ctx, m, node.Key{Pack: l.g.pack, Index: b.place.Index}); err != nil {
			return 0, err
		}
	}
	shard := node.Shard{Head: sh.Head, Body: sh.Slice}
	inst, err := s.putRemade(ctx, m, shard)
	if errors.Is(err, node.ErrConflict) { // damaged where it was read, and of other length or bytes
		if err = s.giveWay(ctx, m, node.Key{Pack: l.g.pack, Index: b.place.Index}); err == nil {
			inst, err = s.putRemade(ctx, m, shard)
		}
	}
	if err != nil {
		return 0, err
	}
	return inst, s.readBack(ctx, m, node.Key{Pack: l.g.pack, Index: b.place.Index}, sh)
}

// giveWay deletes what a member holds under a key.
func (s *Store) giveWay(ctx context.Context, m *member, k node.Key) error {
	var info node.Info
	err := s.inTime(ctx, m, func() (err error) {
		got, _, err := m.st.Stat(ctx, k)
		info = got
		return err
	})
	if errors.Is(err, node.ErrNotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	inst := info.Instance
	return s.inTime(ctx, m, func() error { return m.st.Delete(ctx, s.auth, k, inst) })
}
