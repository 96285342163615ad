package store

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"cairn/index"
)

// view reads the index. Damage that a read meets stops the store, as damage that
// the log writer or a check meets does: the next start makes the index anew, and
// until then what the damaged rows say could only be refused, for ever.
func (s *Store) view(fn func(index.Reader) error) error {
	err := s.index.View(fn)
	if errors.Is(err, index.ErrDamaged) {
		s.fail(fmt.Errorf("a read met damage in the index: %w", err))
	}
	return err
}

// CheckIndex proves the index: that its rows are all there as they were written,
// and that every count and total equals a recount. Differences wrap
// [index.ErrDamaged]; the report names them. Writes may go on meanwhile.
func (s *Store) CheckIndex(ctx context.Context) (index.Report, error) {
	return s.index.Check(ctx)
}

// proveIndex is CheckIndex; damage stops the store. The next start makes the
// index anew.
func (s *Store) proveIndex(ctx context.Context) error {
	_, err := s.proved(ctx)
	return err
}

func (s *Store) proved(ctx context.Context) (index.Report, error) {
	r, err := s.CheckIndex(ctx)
	if errors.Is(err, index.ErrDamaged) {
		s.log.Error("the index is damaged", "report", fmt.Sprint(r))
		s.fail(err)
	}
	return r, err
}

// checkEvery is how often the index is proved while the store runs.
const checkEvery = 24 * time.Hour

// checkLoop proves the index at the start and daily: rows that the engine lost in
// silence are found here, not by look-ups. One that runs already does as well. A day
// is one of the clock, so that a machine that sleeps has no longer ones, or one of the
// process, when the clock was set back; after a leap of the clock one proof follows.
func (s *Store) checkLoop(ctx context.Context) {
	t := time.NewTicker(lookEvery)
	defer t.Stop()
	for trigger := ByStart; ; trigger = BySchedule {
		_, _ = s.runJob(ctx, JobCheckIndex, trigger) // runCheck says what came of it
		last, began := s.now(), time.Now()
		for !checkDue(s.now().Round(0).Sub(last.Round(0)), time.Since(began)) {
			select {
			case <-ctx.Done():
				return
			case <-t.C:
			}
		}
		if ctx.Err() != nil {
			return
		}
	}
}

// checkDue reports whether the index is to be proved again, by what has passed since on
// the clock and in the process.
func checkDue(clock, up time.Duration) bool {
	return up >= checkEvery || up >= time.Hour && clock.Abs() >= checkEvery
}

// CheckResult is what a run of [JobCheckIndex] found.
type CheckResult struct {
	Sequence uint64   `json:"sequence"` // the index was proved as of there
	Rows     uint64   `json:"rows"`
	Found    int      `json:"found"`    // differences
	Findings []string `json:"findings"` // the first of them
}

// runCheck is one run of [JobCheckIndex].
func (s *Store) runCheck(ctx context.Context, _ *run) (any, error) {
	r, err := s.proved(ctx)
	if err != nil && ctx.Err() == nil && !errors.Is(err, index.ErrDamaged) {
		s.log.Error("the index could not be proved", "err", err)
	}
	if err != nil && !errors.Is(err, index.ErrDamaged) {
		return nil, err
	}
	out := CheckResult{Sequence: r.Head.Seq, Rows: r.Rows.Rows, Found: r.Found, Findings: []string{}}
	for _, f := range r.Findings[:min(len(r.Findings), 10)] {
		out.Findings = append(out.Findings, cutText(f, 200))
	}
	return out, err
}

// ExportIndex writes the rows of the index, unsealed, as of one point in the log
// (see [index.Index.Export]). They depend on nothing but the log packs that were
// applied, so two indexes at the same position are equal byte for byte. Object
// keys stand in it in clear.
func (s *Store) ExportIndex(ctx context.Context, w io.Writer) error {
	_, err := s.index.Export(ctx, w)
	return err
}

// ExportIndexOffline exports the index in cfg.Engine while nothing serves the
// store. No node is asked. The engine is closed.
func ExportIndexOffline(ctx context.Context, cfg Config, w io.Writer) (out index.Exported, err error) {
	s, err := newStore(cfg)
	if err != nil {
		return out, err
	}
	out, err = s.index.Export(ctx, w)
	return out, errors.Join(err, s.index.Close())
}

// HeadOffline is the sequence that the index in cfg.Engine has applied, while
// nothing serves the store. The engine is closed.
func HeadOffline(cfg Config) (seq uint64, err error) {
	return headOffline(cfg, func(*Store) error { return nil })
}

// KnownOffline reports whether an index, proved whole first ([index.Index.Check]), has
// applied the log up to a sequence and gone past none of it.
func KnownOffline(ctx context.Context, cfg Config, to uint64) (known bool, err error) {
	seq, err := headOffline(cfg, func(s *Store) error {
		if _, err := s.index.Check(ctx); err != nil {
			return err
		}
		return s.view(func(r index.Reader) error {
			losses, err := r.Losses()
			known = len(losses) == 0
			return err
		})
	})
	return known && err == nil && seq >= to, err
}

func headOffline(cfg Config, prove func(*Store) error) (seq uint64, err error) {
	s, err := newStore(cfg)
	if err != nil {
		return 0, err
	}
	err = prove(s)
	h, herr := s.index.Head()
	return h.Seq, errors.Join(err, herr, s.index.Close())
}
