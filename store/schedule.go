package store

import (
	"context"
	"time"

	"cairn/index"
	"cairn/schedule"
)

const (
	lookEvery   = time.Minute     // it is looked what is due
	lookFirst   = 5 * time.Minute // after the start: others have work to do, and the clock may not be right yet
	tellOverdue = 24 * time.Hour  // and again, as long as it is
)

// ScrubPasses are the last complete passes, light before deep; a deep pass is one of
// the other kind as well.
func (s *Store) ScrubPasses() (out []ScrubPass) {
	for _, p := range s.scrubs.passes(s.now()) {
		if p != nil {
			out = append(out, *p)
		}
	}
	return out
}

// passes are the last complete passes, light and deep; nil: there was none. What began
// before the clock was set back says less than what began since.
func (c *scrubs) passes(now time.Time) (out [2]*ScrubPass) {
	c.mu.Lock()
	defer c.mu.Unlock()
	light, deep := c.states[false].Last, c.states[true].Last
	future := func(p *ScrubPass) bool { return p.Began.After(now) }
	if deep != nil && (light == nil || future(light) && !future(deep) || deep.Began.After(light.Began) && (future(light) || !future(deep))) {
		l := *deep
		l.Deep = false
		light = &l
	}
	return [2]*ScrubPass{light, deep}
}

// state is how far a pass of that depth is, to go on from there. A light pass that
// began before the last deep one would end with older news than there are.
func (c *scrubs) state(deep bool) scrubState {
	c.mu.Lock()
	defer c.mu.Unlock()
	st := c.states[deep]
	if last := c.states[true].Last; !deep && st.Pass != nil && last != nil && st.Began.Before(last.Began) {
		st = scrubState{Last: st.Last, Settled: st.Settled}
	}
	return st
}

// ScrubAge is how old the word is that everything stored is there: read against its
// digest (attested), or, with Deep, besides put together, its parity coded again and
// every chunk opened (verified).
type ScrubAge struct {
	Deep bool
	schedule.Age
}

// ScrubAges are the ages of both depths, light before deep, and their limits.
func (s *Store) ScrubAges() ([]ScrubAge, error) {
	light, deep, err := s.pasts()
	if err != nil {
		return nil, err
	}
	now, plan := s.now(), s.cfg.Scrub
	return []ScrubAge{{false, plan.Age(now, false, light)}, {true, plan.Age(now, true, deep)}}, nil
}

// pasts is what is known of light and deep scrubs.
func (s *Store) pasts() (light, deep schedule.Past, err error) {
	var out [2]schedule.Past
	for i, p := range s.scrubs.passes(s.now()) {
		if p != nil {
			out[i] = schedule.Past{Since: p.Began, Took: p.Ended.Sub(p.Began)}
			continue
		}
		out[i].Never = true
		if out[i].Since, err = s.oldest(); err != nil {
			return light, deep, err
		}
	}
	return out[0], out[1], nil
}

// oldest is when the oldest bucket was made: nothing that can be read is older.
func (s *Store) oldest() (at time.Time, err error) {
	at = s.now()
	err = s.view(func(r index.Reader) error {
		bs, err := r.Buckets()
		for _, b := range bs {
			at = earlier(at, exposeBucket(b).Created)
		}
		return err
	})
	return at, err
}

// keeper sees to it that what is due is done, and is told of when it is overdue. One
// goroutine uses it.
type keeper struct {
	s      *Store
	keep   schedule.Keeper
	run    *run          // the scrub that is under way, as far as it knows
	missed [2]bool       // by depth: it is told that it is overdue,
	told   time.Duration // at this time since the start
}

// scheduleLoop begins scrubs when they are due, until ctx ends.
func (s *Store) scheduleLoop(ctx context.Context) {
	k := &keeper{s: s, keep: schedule.Keeper{Plan: s.cfg.Scrub}}
	began := time.Now()
	t := time.NewTimer(lookFirst)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-t.C:
			t.Reset(lookEvery)
		}
		if err := k.look(ctx, time.Since(began)); err != nil {
			s.log.Warn("whether a scrub is due is not known", "err", err)
		}
	}
}

// look does what is to be done now, up after the store was opened. A scrub that it
// begins runs in the background.
func (k *keeper) look(ctx context.Context, up time.Duration) error {
	s := k.s
	light, deep, err := s.pasts()
	if err != nil {
		return err
	}
	now := s.now()
	k.tell(now, up, light, deep)
	if k.run != nil {
		select {
		case <-k.run.over:
			j := s.jobs.copyOf(k.run)
			k.run = nil
			if j.Error != errJobCut.Error() {
				k.keep.Ended(up, j.Options.Deep, j.State == JobDone)
			}
		default:
			past := light
			if k.run.Options.Deep {
				past = deep
			}
			if k.run.Trigger == BySchedule && !k.keep.Plan.Open(now, k.run.Options.Deep, past) {
				k.run.cancel(errJobCut)
			}
			return nil
		}
	}
	if s.Failure() != nil || s.writable() != nil {
		return nil // what it would find could not be mended, nor noted
	}
	isDeep, begin := k.keep.Look(now, up, light, deep)
	if !begin {
		return nil
	}
	jobCtx, r, err := s.beginJob(ctx, JobScrub, BySchedule, JobOptions{Deep: isDeep, Rate: s.cfg.ScrubRate})
	if err != nil {
		k.run = r // somebody's is under way; its end counts like that of an own one
		return nil
	}
	if !s.spawn(func() { _ = s.execute(jobCtx, r) }) { // its end says what came of it
		r.cancel(errJobStopped)
		s.endJob(jobCtx, r, nil, ErrClosed)
		return nil
	}
	k.run = r
	return nil
}

// tell publishes what is overdue, when it comes to be and once a day from then on.
func (k *keeper) tell(now time.Time, up time.Duration, light, deep schedule.Past) {
	again := up-k.told >= tellOverdue
	for i, past := range []schedule.Past{light, deep} {
		a := k.keep.Plan.Age(now, i == 1, past)
		if a.Overdue && (again || !k.missed[i]) {
			k.s.events.publish(Event{Name: EventOverdue, Overdue: &ScrubAge{i == 1, a}})
			k.s.log.Warn("a scrub is overdue", "deep", i == 1, "since", a.Since, "limit", schedule.FormatSpan(a.Within))
			k.told = up
		}
		k.missed[i] = a.Overdue
	}
}

func earlier(a, b time.Time) time.Time {
	if b.Before(a) {
		return b
	}
	return a
}
