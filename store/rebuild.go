package store

import (
	"context"
	"errors"
)

// Rebuilt says what a rebuild has made.
type Rebuilt struct {
	Sequence uint64 `json:"sequence"` // the newest log pack that the index has applied
	Tail     uint64 `json:"tail"`     // the newest on the nodes
	// Held is set when newer log packs were asked for and not applied: they may never
	// have been acknowledged, which the next start decides.
	Held       bool   `json:"held"`
	Snapshot   uint64 `json:"snapshot"`   // the number of the one that was loaded, 0 when none was
	Rows       uint64 `json:"rows"`       // loaded from it
	Mismatches int64  `json:"mismatches"` // records that found something else than they name
}

// Rebuild brings the index in cfg.Engine up to the log, from a snapshot if it is
// empty, while nothing serves the store. It changes nothing on any node. One that
// was cut short is gone on with. to, when it is not 0, is the last sequence
// applied: an index of the past, for looking back; one that is past it already is
// [ErrInvalid]. The engine is closed.
func Rebuild(ctx context.Context, cfg Config, to uint64) (out Rebuilt, err error) {
	cfg.ReplayTo = to
	load := cfg.Progress
	cfg.Progress = func(what string, done, of uint64) {
		if what == "load" {
			out.Rows = of
		}
		if load != nil {
			load(what, done, of)
		}
	}
	s, err := newStore(cfg)
	if err != nil {
		return out, err
	}
	defer func() { err = errors.Join(err, s.index.Close()) }()
	tail, held, err := s.survey(ctx)
	if err != nil {
		return out, err
	}
	defer tail.pack.Release()
	out.Tail = tail.link.h.Seq
	// A tail of which a shard is missing may yet turn out never to have existed. An
	// index that has applied it would then know more than the log.
	if out.Held = len(held) > 0 && !tail.whole(); !out.Held {
		if err := s.replay(ctx, held); err != nil {
			return out, err
		}
	}
	out.Mismatches = s.passedOver + s.mismatches.Load()
	if err := s.index.Sync(); err != nil {
		return out, err
	}
	h, err := s.index.Head()
	if err != nil {
		return out, err
	}
	out.Sequence, out.Snapshot = h.Seq, s.loadedFrom
	return out, nil
}
