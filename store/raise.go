package store

import (
	"context"
	"fmt"
	"slices"
	"time"

	"cairn/id"
	"cairn/index"
	"cairn/pack"
	"cairn/record"
)

// More losses come to be survived as docs/protocol.md, section 5.5, says.

const (
	// MostLosses is how many losses a store can be made to survive.
	MostLosses = 4
	// raiseAgain is how long after a run of [JobRaise] that did not come to its end another
	// begins; it doubles, up to raiseMostWait.
	raiseAgain, raiseMostWait = time.Minute, time.Hour
)

// Tolerate makes the store survive more losses from when everything is written for that:
// from now on new packs are, runs of [JobRaise] write what is there anew, and the last
// step changes the number. To name the number that is in force calls that off; what was
// written stays as wide as it is. A lower one is refused.
func (s *Store) Tolerate(ctx context.Context, losses int) error {
	leave, err := s.enter()
	if err != nil {
		return err
	}
	defer leave()
	set := s.members.Load()
	switch {
	case losses < 1 || losses > MostLosses:
		return fmt.Errorf("%w: a store survives 1 to %d losses, not %d", ErrInvalid, MostLosses, losses)
	case losses < set.m():
		return fmt.Errorf("%w: the store survives %s, and is not made to survive fewer: what is stored would go on surviving more than the store does", ErrPrecondition, countOf(set.m(), "loss", "losses"))
	case losses == set.w():
		return nil
	}
	want := uint8(losses)
	if losses == set.m() {
		want = 0
	} else {
		if n := len(set.takers); n < 2*losses+1 {
			return fmt.Errorf("%w: the store has %s; to survive %s and go on it takes %d. Add some first: cairn nodes add",
				ErrPrecondition, countOf(n, "node that is not being drained", "nodes that are not being drained"), countOf(losses, "loss", "losses"), 2*losses+1)
		}
		limited, cancel := context.WithTimeout(ctx, s.cfg.Patience)
		defer cancel()
		if err := s.mem.widen(limited, losses); err != nil {
			return err
		}
		// An added node is a log node as soon as the steps have come to it.
		if err := s.settleLogNodes(ctx); err != nil {
			return err
		}
	}
	err = s.changeLosses(ctx, s.members.Load().rec.Version, func(rec *record.Nodes) { rec.Want = want })
	if err == nil {
		s.log.Info("losses that are to be survived", "now", set.m(), "wanted", losses)
	}
	return err
}

// changeLosses changes the numbers of a node set of that version, and nothing else in it.
func (s *Store) changeLosses(ctx context.Context, version uint64, change func(*record.Nodes)) error {
	return s.writer.submit(ctx, &submission{alone: true, change: func(d *decision) (*record.Nodes, error) {
		was, err := d.round.Nodes()
		if err != nil {
			return nil, &fatalError{err}
		}
		if was.Version != version {
			return nil, fmt.Errorf("%w: the node set has changed", ErrRetry)
		}
		next := was
		change(&next)
		next.Version++
		return &next, s.changeable(was, next)
	}})
}

// raiseLeft is what is not written yet for as many losses as are wanted.
type raiseLeft struct {
	packs, log, pieces int
	lastLog            uint64 // the highest sequence of those of the log
	bytes              uint64 // of all their shards
}

func (l raiseLeft) all() int { return l.packs + l.log + l.pieces }

// raiseLeft counts the packs that were coded for fewer losses.
func (s *Store) raiseLeft(ctx context.Context, losses int) (out raiseLeft, err error) {
	err = s.view(func(r index.Reader) error {
		return r.EachPack(func(_ id.Pack, row index.PackRow) error {
			if err := context.Cause(ctx); err != nil {
				return err
			}
			if int(row.M) >= losses {
				return nil
			}
			out.bytes += uint64(row.Size) * uint64(len(row.Shards))
			switch row.Kind {
			case pack.Data:
				out.packs++
			case pack.Log:
				out.log, out.lastLog = out.log+1, max(out.lastLog, row.Seq)
			default:
				out.pieces++
			}
			return nil
		})
	})
	return out, err
}

// RaiseResult is what a run of [JobRaise] did.
type RaiseResult struct {
	Losses int  `json:"losses"` // that are to be survived
	Raised bool `json:"raised"` // they are, from this run on
	Left   int  `json:"left"`   // packs that were coded for fewer
	// What was written anew, and what came of what it lay in before.
	Rewritten    int    `json:"rewritten_packs,omitempty"`
	Moved        int    `json:"moved_chunks,omitempty"`
	ReadBytes    uint64 `json:"read_bytes,omitempty"`
	Written      int    `json:"written_packs,omitempty"`
	WrittenBytes uint64 `json:"written_bytes,omitempty"`
	Dropped      int    `json:"dropped_packs,omitempty"`
	DroppedBytes uint64 `json:"dropped_bytes,omitempty"`
	Unreadable   int    `json:"unreadable_packs,omitempty"` // they keep the number where it is
	Snapshots    int    `json:"snapshots,omitempty"`
}

// raiseAtOnce is how many bytes are rewritten before collections have a turn.
const raiseAtOnce = 1 << 30

// raise is one run of [JobRaise].
func (s *Store) raise(ctx context.Context, opt JobOptions, report func(done, total uint64, unit string)) (*RaiseResult, error) {
	res := &RaiseResult{}
	leave, err := s.enter()
	if err != nil {
		return res, err
	}
	defer leave()
	set := s.members.Load()
	if res.Losses = set.w(); !set.raising() {
		return res, nil
	}
	out := &CollectResult{}
	c := &collection{s: s, opt: JobOptions{Rate: opt.Rate, Now: true}, out: out, raise: res.Losses, passed: map[id.Pack]bool{}, report: func(done, total uint64, unit string) {
		if unit == "bytes" {
			report(done, total, unit)
		}
	}}
	defer func() {
		res.Rewritten, res.Moved, res.ReadBytes, res.Written, res.WrittenBytes = out.Rewritten, out.Moved, out.ReadBytes, out.Written, out.WrittenBytes
		res.Dropped, res.DroppedBytes, res.Unreadable = out.Dropped+out.DroppedLog, out.DroppedBytes, out.Unreadable
	}()
	for pass := 0; ; pass++ {
		left, err := s.raiseLeft(ctx, res.Losses)
		if err != nil {
			return res, err
		}
		before := res.Left
		if res.Left = left.all(); res.Left == 0 {
			break
		}
		if s.members.Load().w() != res.Losses {
			return res, nil // it was called off, or more is wanted
		}
		if pass > 0 && res.Left >= before {
			why := ErrUnavailable
			if out.Unreadable > 0 {
				why = ErrDamaged
			}
			return res, fmt.Errorf("%w: %s for fewer losses, and could not be written anew: %s outside the log, %d of the log, %d of snapshots; what cannot be read keeps the number where it is, and a scrub says what that is",
				why, countOf(res.Left, "pack is coded", "packs are coded"), countOf(left.packs, "pack", "packs"), left.log, left.pieces)
		}
		if err := c.raiseSome(ctx, left, res); err != nil {
			return res, err
		}
	}
	return res, s.raised(ctx, res)
}

// raiseSome takes the next packs. Collections have their turn before and behind it.
func (c *collection) raiseSome(ctx context.Context, left raiseLeft, res *RaiseResult) error {
	select {
	case c.s.collecting <- struct{}{}:
		defer func() { <-c.s.collecting }()
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	if err := c.standBehind(ctx, left, res); err != nil {
		return err
	}
	if err := c.rewrite(ctx); err != nil {
		return err
	}
	return c.drop(ctx)
}

// standBehind takes snapshots until the log's last pack that was coded for fewer losses is
// behind two that were not, and both were read whole: then the log can be cut there.
func (c *collection) standBehind(ctx context.Context, left raiseLeft, res *RaiseResult) error {
	s := c.s
	for range 3 {
		var (
			kept   []index.SnapshotRow
			narrow bool
		)
		err := s.view(func(r index.Reader) (err error) {
			if kept, err = r.Snapshots(); err != nil {
				return err
			}
			return r.EachPiece(func(p index.Piece) error {
				row, err := r.Pack(p.Pack)
				narrow = narrow || err == nil && int(row.M) < c.raise
				return err
			})
		})
		if err != nil {
			return err
		}
		if left.log == 0 && !narrow {
			break
		}
		if len(kept) == 2 && kept[1].Number >= left.lastLog && !narrow {
			break
		}
		c.report(0, 0, "")
		ran, err := s.runJob(ctx, JobSnapshot, BySchedule)
		if cerr := context.Cause(ctx); cerr != nil {
			return cerr
		}
		if err != nil {
			return err
		}
		if ran {
			res.Snapshots++
		}
	}
	return c.readKept(ctx)
}

// raised is the last step: nothing that is needed was coded for fewer losses.
func (s *Store) raised(ctx context.Context, res *RaiseResult) error {
	version := s.members.Load().rec.Version
	// A row that the engine has lost in silence was not seen either.
	if err := s.proveIndex(ctx); err != nil {
		return err
	}
	left, err := s.raiseLeft(ctx, res.Losses)
	if err != nil {
		return err
	}
	if res.Left = left.all(); res.Left > 0 {
		return fmt.Errorf("%w: %s for fewer losses", ErrRetry, countOf(res.Left, "pack is coded", "packs are coded"))
	}
	err = s.changeLosses(ctx, version, func(rec *record.Nodes) {
		rec.M, rec.Want = uint8(res.Losses), 0
	})
	if err != nil {
		return err
	}
	res.Raised = true
	s.tellLosses()
	if err := s.settleLogNodes(ctx); err != nil {
		s.log.Warn("more losses are survived, and the log stays where it was", "err", err)
	}
	return nil
}

// tellLosses tells whoever wants to know how many losses are survived.
func (s *Store) tellLosses() {
	if s.cfg.Survives != nil {
		s.cfg.Survives(s.members.Load().m())
	}
}

// runRaise is one run of [JobRaise].
func (s *Store) runRaise(ctx context.Context, r *run) (any, error) {
	res, err := s.raise(ctx, r.Options, r.report)
	switch {
	case ctx.Err() != nil:
	case err != nil:
		s.log.Warn("m is not raised yet", "to", res.Losses, "packs left", res.Left, "err", err)
	case res.Raised:
		s.log.Info("m is raised", "to", res.Losses, "packs", res.Rewritten)
	}
	return res, err
}

// raiseLoop goes on with what an earlier run, or process, has begun.
func (s *Store) raiseLoop(ctx context.Context) {
	wait := raiseAgain
	t := time.NewTimer(0)
	defer t.Stop()
	for trigger := ByStart; ; trigger = BySchedule {
		select {
		case <-ctx.Done():
			return
		case <-t.C:
		}
		if s.members.Load().raising() && !s.jobs.cancelledLast(JobRaise) {
			_, err := s.runJob(ctx, JobRaise, trigger) // runRaise says why it did not come to its end
			if wait = min(2*wait, raiseMostWait); err == nil {
				wait = raiseAgain
			}
		} else {
			wait = raiseAgain
		}
		t.Reset(wait)
	}
}

// sourcesToRaise are the packs that were coded for fewer losses than are wanted and have
// chunks in them; those of the log, when both snapshots are past them.
func (c *collection) sourcesToRaise(ctx context.Context) (out []source, err error) {
	s := c.s
	err = s.view(func(r index.Reader) error {
		past, err := c.past(r)
		if err != nil {
			return err
		}
		buckets, err := r.Buckets()
		if err != nil {
			return err
		}
		widths := s.widths(buckets)
		return r.EachPack(func(p id.Pack, row index.PackRow) error {
			if err := context.Cause(ctx); err != nil {
				return err
			}
			if int(row.M) >= c.raise || row.Residents == 0 || c.passed[p] {
				return nil
			}
			x := source{pack: p, seq: row.Seq, writer: row.Writer, counter: row.Counter, payload: row.Payload, live: row.Live}
			switch row.Kind {
			case pack.Log:
				if row.Seq > past {
					return nil
				}
				x.log, x.k = true, min(DefaultWidth, s.mem.sizes.Width)
			case pack.Data:
				x.k = widthFor(widths, int(row.K))
			default:
				return nil
			}
			out = append(out, x)
			return nil
		})
	})
	slices.SortFunc(out, compareSources)
	c.rest = 0
	var sum uint64
	for i, x := range out {
		if sum += x.live; i > 0 && sum > raiseAtOnce {
			for _, x := range out[i:] {
				c.rest += x.live
			}
			return out[:i], err
		}
	}
	return out, err
}
