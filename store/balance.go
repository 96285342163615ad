package store

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"cairn/id"
	"cairn/index"
	"cairn/pack"
	"cairn/placement"
	"cairn/record"
)

// maxPasses bounds how often a rebalance goes through all packs: each pass makes the
// nodes more even, and the third finds little.
const maxPasses = 100

// balancing is a placement.Balance of the members as they are.
type balancing struct {
	set *memberSet
	*placement.Balance
}

// balance begins one with what the pack rows say that each member holds.
func (s *Store) balance(ctx context.Context) (*balancing, error) {
	set := s.members.Load()
	used := s.usages(ctx, set)
	if err := context.Cause(ctx); err != nil {
		return nil, err // which says nothing of the nodes
	}
	nodes := make([]placement.Node, len(set.all))
	for i, m := range set.all {
		nodes[i] = m.candidate()
		switch a := used[m.info.ID]; {
		case set.draining(m):
			nodes[i].State = placement.Leaving
		case a.err != nil || !m.usable(s.now()):
			nodes[i].State = placement.Down
		case !a.v.PutsAllowed || !m.takesData(s.now()):
			nodes[i].State = placement.Full
		}
	}
	held := map[id.Node]int64{}
	err := s.view(func(r index.Reader) error {
		return r.EachPack(func(_ id.Pack, row index.PackRow) error {
			if empty(row) {
				return nil // it goes as a whole before long
			}
			for _, x := range row.Shards {
				held[x.Node] += int64(row.Size)
			}
			return nil
		})
	})
	if err != nil {
		return nil, err
	}
	b, err := placement.NewBalance(nodes, held)
	return &balancing{set, b}, err
}

// moves says which shards of a pack are to move, and takes it for done.
func (b *balancing) moves(row index.PackRow) ([]placement.Move, []record.Place, error) {
	n := int(row.K) + int(row.M)
	if empty(row) || len(row.Shards) < n {
		return nil, nil, nil // short, or the log's newest
	}
	have, places := make([]id.Node, n), make([]record.Place, n)
	for _, x := range row.Shards {
		if have[x.Index].IsZero() {
			have[x.Index], places[x.Index] = x.Node, x
		}
	}
	moves, err := b.Moves(int(row.K), int(row.M), int64(row.Size), have, func(n id.Node) bool {
		if slices.ContainsFunc(row.Shards, func(x record.Place) bool { return x.Node == n }) {
			return false
		}
		return row.Kind != pack.Log || slices.Contains(b.set.rec.LogNodes, n)
	})
	return moves, places, err
}

// plan says in which packs something is to move, at most movePage of them, and how many
// bytes in all.
func (s *Store) planMoves(b *balancing) (packs []id.Pack, bytes uint64, err error) {
	b = &balancing{b.set, b.Clone()}
	err = s.view(func(r index.Reader) error {
		return r.EachPack(func(p id.Pack, row index.PackRow) error {
			moves, _, err := b.moves(row)
			if len(moves) > 0 && len(packs) < movePage {
				packs = append(packs, p)
			}
			bytes += uint64(len(moves)) * uint64(row.Size)
			return err
		})
	})
	return packs, bytes, err
}

// rebalance moves shards so that what the members hold follows their weights, and so
// that no more shards of a pack are in one failure domain than must. What is to be done
// is computed from the pack rows, pass for pass, until a pass finds nothing: cut off
// anywhere, another run goes on.
func (s *Store) rebalance(ctx context.Context, opt JobOptions, report func(done, total uint64)) (*MoveResult, error) {
	var (
		res     = &MoveResult{DryRun: opt.DryRun, names: s.members.Load().naming()}
		total   uint64
		mv      = s.newMover(res, opt, func(done uint64) { report(done, max(done, total)) })
		relaxed bool
	)
	defer mv.letGo()
	for pass := range maxPasses {
		b, err := s.balance(ctx)
		if err != nil {
			return res, err
		}
		if relaxed {
			b.Relax()
		}
		packs, bytes, err := s.planMoves(b)
		if err != nil {
			return res, err
		}
		if total = res.Bytes + bytes; pass == 0 {
			res.Planned = bytes
		}
		report(res.Bytes, total)
		if opt.DryRun {
			return res, nil
		}
		before := res.Shards
		res.Left, res.Findings = 0, nil
		for _, p := range packs {
			var (
				moves []placement.Move
				size  int64
			)
			if s.members.Load().rec.Version != b.set.rec.Version {
				break // the next pass has the nodes that there are now
			}
			err := mv.move(ctx, p, func(set *memberSet, row index.PackRow) (out []request, err error) {
				if set.rec.Version != b.set.rec.Version {
					return nil, nil
				}
				var places []record.Place
				moves, places, err = b.moves(row)
				size = int64(row.Size)
				for _, v := range moves {
					out = append(out, request{places[v.Shard], set.byID[v.To]})
				}
				return out, err
			}, false, func(i uint8) {
				for _, v := range moves {
					if v.Shard == int(i) {
						b.Undo(v, size)
					}
				}
			})
			if err != nil {
				return res, errors.Join(err, mv.flush(context.WithoutCancel(ctx)))
			}
		}
		if err := mv.flush(context.WithoutCancel(ctx)); err != nil {
			return res, err
		}
		switch {
		case res.Shards > before || s.members.Load().rec.Version != b.set.rec.Version:
		case !relaxed:
			relaxed = true
		case res.Left > 0:
			return res, fmt.Errorf("%w: %s where they are", ErrUnavailable, countOf(res.Left, "shard stays", "shards stay"))
		default:
			return res, nil
		}
	}
	return res, fmt.Errorf("%w: after %d passes shards still move", ErrBusy, maxPasses)
}

// runRebalance is one run of [JobRebalance].
func (s *Store) runRebalance(ctx context.Context, r *run) (any, error) {
	res, err := s.rebalance(ctx, r.Options, func(done, total uint64) { r.report(done, total, "bytes") })
	switch {
	case ctx.Err() != nil || res.DryRun:
	case err != nil:
		s.log.Warn("a rebalance has not come to its end", "moved", res.Shards, "left", res.Left, "err", err)
	default:
		s.log.Info("rebalanced", "shards", res.Shards, "bytes", res.Bytes)
	}
	return res, err
}
