package store

import (
	"context"
	"errors"
	"fmt"
	"time"
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
	// Losses are what was given up of the log, by this rebuild or an earlier one, as the
	// index says from now on. Skipped are those of this one.
	Losses  []LossRange `json:"losses"`
	Skipped []LossRange `json:"skipped"`
	// Silent are the nodes that gave no answer, and why.
	Silent []string `json:"silent"`
	// Damaged are the versions of objects that need what came with it. It is not known yet
	// when log packs were held back.
	Damaged *RebuiltDamage `json:"damaged,omitempty"`
}

// LossRange is a run of log packs that was given up.
type LossRange struct {
	From     uint64    `json:"from"`
	To       uint64    `json:"to"`
	Before   time.Time `json:"before,omitzero"` // of the log pack before it; zero where the beginning is lost
	After    time.Time `json:"after"`           // of the one behind it
	Accepted time.Time `json:"accepted"`
}

// RebuiltDamage says what is damaged in an index that a rebuild has made.
type RebuiltDamage struct {
	Count   int              `json:"count"` // versions
	Looked  int              `json:"looked"`
	Objects []RebuiltVersion `json:"objects"` // the first of them
}

// RebuiltVersion is a version of an object that cannot be read whole.
type RebuiltVersion struct {
	Bucket  string `json:"bucket"`
	Key     string `json:"key"`
	Version string `json:"version"`
	Size    uint64 `json:"size"`
	Current bool   `json:"current"`
}

// rebuiltNames bounds how many versions a rebuild names.
const rebuiltNames = 100

// Ranges says the same of losses as a client is told.
func Ranges(ls []Loss) []LossRange {
	out := make([]LossRange, len(ls))
	for i, l := range ls {
		out[i] = LossRange{From: l.From, To: l.To, After: time.Unix(0, l.After).UTC(), Accepted: time.Unix(0, l.Accepted).UTC()}
		if l.Before != 0 {
			out[i].Before = time.Unix(0, l.Before).UTC()
		}
	}
	return out
}

// rebuiltDamage walks the manifests of all objects.
func (s *Store) rebuiltDamage(ctx context.Context) (*RebuiltDamage, error) {
	out := &RebuiltDamage{Objects: []RebuiltVersion{}}
	for from := (DamagedCursor{}); ; {
		page, err := s.Damaged(ctx, from, 0)
		if err != nil {
			return nil, err
		}
		out.Count += len(page.Objects)
		out.Looked += page.Looked
		for _, o := range page.Objects {
			if len(out.Objects) < rebuiltNames {
				out.Objects = append(out.Objects, RebuiltVersion{o.Bucket, o.Key, o.Version.String(), o.Size, o.Current})
			}
		}
		if from = page.Next; !page.More {
			return out, nil
		}
	}
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
	if err := s.giveUpEnd(ctx, tail); err != nil {
		return out, err
	}
	if len(s.unproved) > 0 {
		return out, fmt.Errorf("%w: %s. The word does not stand for that: take the node out, or stop it, and run the same again", ErrDamaged, s.unproved[0])
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
	losses, err := s.Losses()
	if err != nil {
		return out, err
	}
	out.Losses, out.Skipped, out.Silent = Ranges(losses), Ranges(s.skipped), s.unheard
	if len(losses) > 0 && !s.index.Rebuilding() {
		if out.Damaged, err = s.rebuiltDamage(ctx); err != nil {
			return out, err
		}
	}
	return out, nil
}
