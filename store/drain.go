package store

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"cairn/id"
	"cairn/index"
	"cairn/record"
)

// drainAgain is how long after a drain that did not come to its end another begins.
const drainAgain = time.Minute

// onDraining lists the places of a pack on members that are being drained.
func onDraining(set *memberSet, row index.PackRow) (out []record.Place) {
	for _, x := range row.Shards {
		if m := set.byID[x.Node]; m != nil && set.draining(m) {
			out = append(out, x)
		}
	}
	return out
}

// drainLeft is what lies on members that are being drained.
type drainLeft struct {
	packs []id.Pack // at most movePage
	bytes uint64
	on    map[id.Node]int // shards
}

func (s *Store) drainLeft(set *memberSet) (left drainLeft, err error) {
	left.on = map[id.Node]int{}
	err = s.view(func(r index.Reader) error {
		return r.EachPack(func(p id.Pack, row index.PackRow) error {
			places := onDraining(set, row)
			for _, x := range places {
				left.on[x.Node]++
			}
			left.bytes += uint64(len(places)) * uint64(row.Size)
			if len(places) > 0 && len(left.packs) < movePage {
				left.packs = append(left.packs, p)
			}
			return nil
		})
	})
	return left, err
}

// drain moves every shard that lies on a member which is being drained to others, also
// of packs in which nothing lies any more: once nothing is left there the member can be
// removed. What is left is read from the pack rows, never from a queue.
func (s *Store) drain(ctx context.Context, opt JobOptions, report func(done, total uint64)) (*MoveResult, error) {
	var (
		res = &MoveResult{names: s.members.Load().naming()}
		mv  = s.newMover(res, opt, func(done uint64) { report(done, max(done, res.Planned)) })
	)
	defer mv.letGo()
	others := 0 // passes in a row that moved nothing
	for pass := 0; ; pass++ {
		// The log's newest packs, whose places no row has yet, lie on no member that keeps
		// no log any more.
		if err := s.settleLogNodes(ctx); err != nil {
			return res, err
		}
		set := s.members.Load()
		left, err := s.drainLeft(set)
		if err != nil {
			return res, err
		}
		if pass == 0 {
			res.Planned = left.bytes
			report(0, res.Planned)
		}
		before := res.Shards
		res.Left, res.Findings = 0, nil
		for _, p := range left.packs {
			err := mv.move(ctx, p, func(set *memberSet, row index.PackRow) (out []request, err error) {
				for _, x := range onDraining(set, row) {
					out = append(out, request{place: x})
				}
				return out, nil
			}, true, nil)
			if err != nil {
				return res, errors.Join(err, mv.flush(context.WithoutCancel(ctx)))
			}
		}
		if err := mv.flush(context.WithoutCancel(ctx)); err != nil {
			return res, err
		}
		if res.Shards > before {
			others = 0
		} else {
			others++
		}
		// Where nothing was moved and nothing is left, somebody else has moved it meanwhile.
		if len(left.packs) > 0 && (others == 0 || res.Left == 0 && others < 10) {
			continue
		}
		for _, m := range set.all {
			if set.draining(m) && left.on[m.info.ID] == 0 {
				res.Empty = append(res.Empty, m.info.Name)
			}
		}
		if res.Left > 0 {
			return res, fmt.Errorf("%w: %s left on nodes that are being drained", ErrUnavailable, countOf(res.Left, "shard is", "shards are"))
		}
		return res, nil
	}
}

// runDrain is one run of [JobDrain].
func (s *Store) runDrain(ctx context.Context, r *run) (any, error) {
	res, err := s.drain(ctx, r.Options, func(done, total uint64) { r.report(done, total, "bytes") })
	switch {
	case ctx.Err() != nil:
	case err != nil:
		s.log.Warn("a drain has not come to its end", "moved", res.Shards, "left", res.Left, "err", err)
	case len(res.Empty) > 0:
		s.log.Info("nodes hold nothing any more and can be removed", "nodes", res.Empty, "moved", res.Shards)
	}
	return res, err
}

// drains reports whether a member is being drained.
func (s *memberSet) drains() bool { return slices.ContainsFunc(s.all, s.draining) }

// drainLoop goes on with drains of an earlier run, and with those that failed.
func (s *Store) drainLoop(ctx context.Context) {
	t := time.NewTimer(0)
	defer t.Stop()
	for trigger := ByStart; ; trigger = BySchedule {
		select {
		case <-ctx.Done():
			return
		case <-t.C:
		}
		if set := s.members.Load(); set.drains() && !s.jobs.cancelledLast(JobDrain) {
			if left, err := s.drainLeft(set); err == nil && len(left.packs) > 0 {
				_, _ = s.runJob(ctx, JobDrain, trigger) // runDrain says why it did not come to its end
			}
		}
		t.Reset(drainAgain)
	}
}

// cancelledLast reports whether the newest run of a kind was cancelled in this process:
// what somebody has stopped does not begin again by itself.
func (js *jobs) cancelledLast(kind string) bool {
	js.mu.Lock()
	defer js.mu.Unlock()
	for _, r := range slices.Backward(js.runs) {
		if r.Kind == kind && r.cancel != nil {
			return r.State == JobCancelled
		}
	}
	return false
}
