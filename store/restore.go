package store

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"

	"cairn/id"
	"cairn/index"
	"cairn/node"
	"cairn/record"
	"cairn/seal"
)

// highest is a sequence that the log's tail cannot be far below: the (m+1)-th
// highest of those that the nodes hold, since m of them may lie.
func (s *Store) highest(ctx context.Context, set *memberSet, silent map[id.Node]error) uint64 {
	var willing []*member
	for _, m := range set.all {
		if silent[m.info.ID] == nil {
			willing = append(willing, m)
		}
	}
	answers := ask(ctx, s, willing, func(ctx context.Context, m *member) (uint64, error) {
		// Halving: is there anything at or above a sequence?
		var low, high uint64 = 0, 1 << 62
		for low < high {
			mid := low + (high-low+1)/2
			found, err := m.st.ListLog(ctx, mid, nil, 1)
			if err != nil {
				return 0, err
			}
			if len(found) > 0 && found[0].Err == nil {
				low = mid
			} else {
				high = mid - 1
			}
		}
		return low, nil
	})
	var seqs []uint64
	for _, a := range answers {
		if a.err == nil {
			seqs = append(seqs, a.v)
		}
	}
	slices.Sort(seqs)
	slices.Reverse(seqs)
	if len(seqs) == 0 {
		return 0
	}
	return seqs[min(set.m(), len(seqs)-1)]
}

// restore loads the newest snapshot that can be read into an empty index and
// returns the index's head: zero when there is no snapshot, or none can be read.
// While nodes are away with which a snapshot might be read, the error is
// [ErrUnavailable].
func (s *Store) restore(ctx context.Context, v *survey, tail *foundTail, held snapshotRef) (index.Head, error) {
	var failed []error
	// Two are kept; what older ones were made of is gone.
	most := 2
	for ref, n := held, 0; ref.seq > 0 && n < most; n++ {
		rec, err := s.snapshotRecord(ctx, v, tail, ref)
		if err == nil && s.cfg.ReplayTo != 0 && rec.Number > s.cfg.ReplayTo {
			ref = snapshotRef{rec.BeforeSeq, rec.BeforePack}
			continue
		}
		if err == nil {
			err = s.loadSnapshot(ctx, rec)
		}
		if err == nil {
			s.loadedFrom = rec.Number
			return s.index.Head()
		}
		if cerr := context.Cause(ctx); cerr != nil {
			return index.Head{}, cerr
		}
		if errors.Is(err, index.ErrNewer) || errors.Is(err, record.ErrNewer) || errors.Is(err, seal.ErrNewer) || isNewerLog(err) {
			return index.Head{}, err // its sum held, or its seal: there is nothing wrong with it
		}
		if errors.Is(err, ErrUnavailable) || errors.Is(err, node.ErrUnavailable) {
			return index.Head{}, fmt.Errorf("the index is lost, and its snapshot cannot be read now: %w", err)
		}
		s.log.Error("a snapshot of the index cannot be used", "sequence", ref.seq, "err", err)
		failed = append(failed, err)
		if rec == nil && s.cfg.AcceptLoss {
			// What names the snapshot before it is lost with it; log packs before it do.
			most = 4
			if ref, err = s.refBelow(ctx, v, ref); err != nil {
				return index.Head{}, err
			}
			continue
		}
		if rec == nil {
			break
		}
		ref = snapshotRef{rec.BeforeSeq, rec.BeforePack}
	}
	if err := s.index.Wipe(ctx); err != nil {
		return index.Head{}, err
	}
	if len(failed) > 0 {
		s.log.Error("no snapshot of the index can be used: the whole log is replayed")
	}
	return index.Head{}, nil
}

// restoreCut makes an index anew that is behind the beginning of a log that was cut: from the
// older snapshot, if there are two, since more of the log is replayed then. missing says what
// the chain lacks; it is the error when no snapshot stands behind that.
func (s *Store) restoreCut(ctx context.Context, v *survey, tail *foundTail, head index.Head, missing error) (index.Head, error) {
	o, err := s.openLink(ctx, tail.link, tail)
	if err != nil {
		return head, errors.Join(missing, err)
	}
	newest := refOf(o.h, o.meta.Log, o.records)
	if newest.seq == 0 {
		return head, missing
	}
	rec, err := s.snapshotRecord(ctx, v, tail, newest)
	if err != nil {
		return head, errors.Join(missing, err)
	}
	if rec.Number <= head.Seq {
		return head, missing // what is missing is behind the snapshot
	}
	s.log.Warn("the log begins behind the index: a snapshot is loaded", "sequence", head.Seq, "snapshot", rec.Number)
	if head.Seq > 0 {
		if err := s.index.Clear(ctx); err != nil {
			return head, err
		}
	}
	if err := s.index.BeginRebuild(ctx); err != nil {
		return head, err
	}
	for _, ref := range []snapshotRef{{rec.BeforeSeq, rec.BeforePack}, newest} {
		if ref.seq == 0 {
			continue
		}
		if head, err = s.restore(ctx, v, tail, ref); err != nil || head.Seq > 0 {
			return head, err
		}
	}
	return head, missing
}

// snapshotRecord reads the record that a reference names. Its log pack must be on
// the chain.
func (s *Store) snapshotRecord(ctx context.Context, v *survey, tail *foundTail, ref snapshotRef) (*record.Snapshot, error) {
	above, err := s.chain(ctx, v, tail.link, index.Head{Seq: ref.seq, Pack: ref.pack}, s.cfg.AcceptLoss)
	if err != nil {
		return nil, fmt.Errorf("the log pack with the record of a snapshot, sequence %d: %w", ref.seq, err)
	}
	// With the begin packs right above it, one of which may carry it.
	v = s.reach(ctx, v, ref.seq, min(ref.seq+s.cfg.ListWindow, tail.link.h.Seq))
	link := s.packOf(ctx, v, ref.pack)
	if ref.pack == tail.link.h.Pack {
		link = tail.link
	}
	var (
		o       openLink
		errs    []error
		open    bool
		carried = map[id.Pack]*chainLink{}
	)
	for i := 0; ; i++ {
		if link != nil {
			if o, err = s.openLink(ctx, link, tail); err == nil {
				open = true
				break
			}
			errs, link = append(errs, err), nil
		}
		if i == len(above) || !above[i].begin {
			break
		}
		// One that is itself carried is carried by the next, and what it carried too.
		if begin := s.packOf(ctx, v, above[i].pack); begin != nil && above[i].carried == nil {
			if err := s.carriedBy(ctx, begin, carried); err != nil {
				errs = append(errs, err)
			}
			link = carried[ref.pack]
		}
	}
	if !open {
		return nil, errors.Join(append([]error{fmt.Errorf("%w: the log pack with the record of a snapshot, sequence %d, cannot be read", ErrDamaged, ref.seq)}, errs...)...)
	}
	for _, r := range o.records {
		if rec, ok := r.(*record.Snapshot); ok {
			return rec, nil
		}
	}
	return nil, fmt.Errorf("%w: sequence %d holds no record of a snapshot", ErrDamaged, ref.seq)
}

// loadSnapshot loads a snapshot into the index and proves what it has loaded.
func (s *Store) loadSnapshot(ctx context.Context, rec *record.Snapshot) error {
	s.log.Info("loading a snapshot of the index", "number", rec.Number, "rows", rec.Rows, "bytes", rec.Bytes)
	next := rec.Rows / 10
	src := index.Source{Number: rec.Number, Head: rec.Head, Root: rec.Root.Pack, Rows: rec.Rows, Sum: rec.Sum,
		Open: func(ctx context.Context, pos uint64) (io.ReadCloser, error) {
			r := &snapshotReader{s: s, ctx: ctx, root: rec.Root}
			if err := r.seek(pos); err != nil {
				return nil, errors.Join(err, r.Close())
			}
			return r, nil
		}}
	if err := s.index.Load(ctx, src, func(rows uint64) {
		s.progress("load", rows, rec.Rows)
		if rows >= next {
			s.log.Info("loading a snapshot of the index", "rows", rows, "of", rec.Rows)
			next += rec.Rows / 10
		}
	}); err != nil {
		return err
	}
	s.progress("load", rec.Rows, rec.Rows)
	// Its sum holds, so it is what was written; that rows and counts agree is
	// proved here, once, while there is something else to turn to.
	if _, err := s.index.Check(ctx); err != nil {
		return errors.Join(fmt.Errorf("snapshot %d: %w", rec.Number, err), s.index.Clear(ctx))
	}
	return nil
}

// progress tells whoever asked to be told.
func (s *Store) progress(what string, done, of uint64) {
	if s.cfg.Progress != nil {
		s.cfg.Progress(what, done, of)
	}
}
