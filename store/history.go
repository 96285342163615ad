package store

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"time"
	"unicode/utf8"

	"cairn/id"
	"cairn/index"
	"cairn/record"
)

// The history of jobs is kept as docs/protocol.md, section 10, says.

const (
	jobsBucket  = ".jobs"
	jobsAtOnce  = 8           // runs in one log pack
	jobsGather  = time.Second // for changes to come together
	jobsRetry   = time.Minute // after the history could not be written
	maxJobWord  = 32          // bytes of a kind, trigger, state or unit
	jobsInIndex = 10_000      // runs that are looked at when the history is read
)

// jobFields says of a run what its history keeps, sorted by name.
func jobFields(j Job) (out []record.UserField) {
	add := func(name, value string) {
		if value != "" {
			out = append(out, record.UserField{Name: name, Value: value})
		}
	}
	number := func(name string, n uint64) {
		if n > 0 {
			add(name, strconv.FormatUint(n, 10))
		}
	}
	at := func(name string, t time.Time) {
		if !t.IsZero() {
			add(name, strconv.FormatInt(t.UnixNano(), 10))
		}
	}
	if j.Options.Deep {
		add("deep", "yes")
	}
	number("done", j.Done)
	if j.Options.DryRun {
		add("dry-run", "yes")
	}
	at("ended", j.Ended)
	add("error", j.Error)
	add("kind", j.Kind)
	number("rate", j.Options.Rate)
	add("result", string(j.Result))
	at("started", j.Started)
	add("state", j.State)
	number("total", j.Total)
	add("trigger", j.Trigger)
	add("unit", j.Unit)
	return out
}

// parseJob is the inverse of jobFields. Names that it does not know are a later
// build's and say nothing; of anything else there is one form. A run that still ran
// ended with its process.
func parseJob(key string, fields []record.UserField) (j Job, err error) {
	bad := func(what string) error { return fmt.Errorf("%w: job %.40q: %s", ErrDamaged, key, what) }
	if j.ID, err = id.ParseJob(key); err != nil {
		return Job{}, bad("its ID")
	}
	for _, f := range fields {
		most, number := maxJobWord, (*uint64)(nil)
		switch f.Name {
		case "deep":
			if j.Options.Deep = f.Value == "yes"; !j.Options.Deep {
				return Job{}, bad("its depth")
			}
		case "done":
			number = &j.Done
		case "dry-run":
			if j.Options.DryRun = f.Value == "yes"; !j.Options.DryRun {
				return Job{}, bad("whether it changed anything")
			}
		case "rate":
			number = &j.Options.Rate
		case "total":
			number = &j.Total
		case "ended", "started":
			ns, err := strconv.ParseInt(f.Value, 10, 64)
			if err != nil || strconv.FormatInt(ns, 10) != f.Value {
				return Job{}, bad("a time")
			}
			if f.Name == "ended" {
				j.Ended = time.Unix(0, ns)
			} else {
				j.Started = time.Unix(0, ns)
			}
		case "error":
			j.Error, most = f.Value, maxJobError
		case "kind":
			j.Kind = f.Value
		case "result":
			if j.Result, most = json.RawMessage(f.Value), maxJobResult; !json.Valid(j.Result) {
				return Job{}, bad("its result")
			}
		case "state":
			j.State = f.Value
		case "trigger":
			j.Trigger = f.Value
		case "unit":
			j.Unit = f.Value
		default:
			continue
		}
		if number != nil {
			if *number, err = strconv.ParseUint(f.Value, 10, 64); err != nil || *number == 0 || strconv.FormatUint(*number, 10) != f.Value {
				return Job{}, bad("a number")
			}
		}
		if f.Value == "" || len(f.Value) > most || !utf8.ValidString(f.Value) {
			return Job{}, bad(f.Name)
		}
	}
	if j.Kind == "" || j.Trigger == "" || j.Started.IsZero() || !slices.Contains([]string{JobRunning, JobDone, JobFailed, JobCancelled}, j.State) {
		return Job{}, bad("its kind, trigger, start or state")
	}
	if j.State == JobRunning {
		j.State, j.Error = JobFailed, errJobStopped.Error()
	}
	return j, nil
}

// loadJobs reads the history. A store serves without it as well.
func (s *Store) loadJobs(ctx context.Context) {
	unknown, seen := 0, 0
	in, err := s.hiddenBucket(ctx, jobsBucket, false)
	if err == nil {
		err = s.eachHidden(ctx, in, index.ListOptions{}, func(page index.Page) error {
			for _, o := range page.Objects {
				j, err := parseJob(o.Key, o.Attrs.User)
				if err != nil {
					unknown++
					continue
				}
				s.jobs.load(s, j)
			}
			if seen += len(page.Objects); seen >= jobsInIndex {
				return fmt.Errorf("%w: more than %d runs", ErrDamaged, seen)
			}
			return nil
		})
	}
	if err != nil && !errors.Is(err, ErrNoBucket) {
		s.log.Warn("the history of jobs was not read to its end", "err", err)
	}
	if unknown > 0 {
		s.log.Warn("runs in the history of jobs are not understood, and are left as they are", "number", unknown)
	}
}

// load takes a run of the history in; they come from old to new.
func (js *jobs) load(s *Store, j Job) {
	js.mu.Lock()
	defer js.mu.Unlock()
	over := make(chan struct{})
	close(over)
	js.runs = append(js.runs, &run{s: s, over: over, Job: j, shown: true, kept: true, rev: 1, saved: 1})
	js.last = max(js.last, j.ID.Milliseconds())
	if c := js.counts[j.Kind]; c != nil && j.State == JobDone && j.Ended.After(c.LastDone) {
		c.LastDone = j.Ended
	}
	js.trim(j.Kind)
}

// historyLoop writes the history down until ctx ends, a while after it has changed.
func (s *Store) historyLoop(ctx context.Context) {
	var retry <-chan time.Time
	told := false
	for {
		select {
		case <-ctx.Done():
			return
		case <-s.jobs.wantSave:
		case <-retry:
		}
		retry = nil
		t := time.NewTimer(jobsGather)
		select {
		case <-ctx.Done():
			t.Stop()
			return
		case <-t.C:
		}
		err := s.saveJobs()
		if err == nil {
			told = false
			continue
		}
		if !told {
			told = true
			s.log.Warn("the history of jobs is kept in memory until it can be written", "err", err)
		}
		retry = time.After(jobsRetry)
	}
}

// unsaved returns what the history does not say yet: some of the runs that it is to
// have, as they are now, and some that leave it.
func (js *jobs) unsaved() (runs []*run, now []Job, revs []int, gone []id.Job) {
	js.mu.Lock()
	defer js.mu.Unlock()
	for _, r := range js.runs {
		if r.kept && r.shown && r.saved < r.rev && len(runs) < jobsAtOnce {
			runs, now, revs = append(runs, r), append(now, r.Job), append(revs, r.rev)
		}
	}
	return runs, now, revs, slices.Clone(js.gone[:min(len(js.gone), purgedAtOnce)])
}

// saveJobs writes the history down, when writes are taken.
func (s *Store) saveJobs() error {
	js := &s.jobs
	js.saving <- struct{}{} // a channel: nodes may hang meanwhile
	defer func() { <-js.saving }()
	for {
		runs, now, revs, gone := js.unsaved()
		if len(runs)+len(gone) == 0 {
			return nil
		}
		if err := cmp.Or(s.Failure(), s.takesData()); err != nil {
			return err
		}
		ctx := context.Background() // each submission ends by itself
		in, err := s.hiddenBucket(ctx, jobsBucket, true)
		if err != nil {
			return err
		}
		if err := s.writer.submit(ctx, &submission{client: true, decide: func(d *decision) (func() error, error) {
			var apply []func() error
			for _, j := range now {
				p := &put{b: in, rec: record.Put{In: in.Realm, Bucket: in.ID, Key: []byte(j.ID.String()), Attrs: record.Attrs{User: jobFields(j)}}}
				mark, err := p.decide(d)
				if err != nil {
					return nil, err
				}
				apply = append(apply, mark)
			}
			return func() error {
				for _, mark := range apply {
					if err := mark(); err != nil {
						return err
					}
				}
				for _, j := range gone {
					if err := d.purgeAll(in, j.String()); err != nil {
						return err
					}
				}
				return nil
			}, nil
		}}); err != nil {
			return err
		}
		js.mu.Lock()
		for i, r := range runs {
			if r.saved = revs[i]; r.dropped { // meanwhile
				js.gone = append(js.gone, r.ID)
			}
		}
		js.gone = js.gone[len(gone):]
		js.mu.Unlock()
	}
}

// lastSave waits for the last runs and writes down what came of them, as far as ctx
// allows.
func (s *Store) lastSave(ctx context.Context, left []*run) {
	if s.cfg.idle {
		return
	}
	done := make(chan struct{})
	ctx, cancel := context.WithTimeout(ctx, s.cfg.Patience)
	defer cancel()
	if !s.spawn(func() {
		defer close(done)
		for _, r := range left {
			select {
			case <-r.over:
			case <-ctx.Done(): // read as stopped by the next start
				return
			}
		}
		if err := s.saveJobs(); err != nil && !errors.Is(err, ErrClosed) {
			s.log.Warn("the history of the last jobs is lost", "err", err)
		}
	}) {
		return
	}
	select {
	case <-done:
	case <-ctx.Done():
	}
}
