package store

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"
	"unicode/utf8"

	"cairn/id"
)

// What the store does beside requests is a job: it has a kind, of which one run is
// under way at a time, and each run is told of ([Store.Jobs], [Store.Listen]) and
// can be cancelled. The newest runs of each kind are kept as history.go says.

// Kinds of jobs.
const (
	JobRepair     = "repair"
	JobCheckIndex = "check-index"
	JobSnapshot   = "snapshot"
	JobScrub      = "scrub"
	JobCollect    = "gc"
	JobDrain      = "drain"
	JobRebalance  = "rebalance"
	JobUsage      = "usage"
	JobRaise      = "raise"
)

// States of a run. All but the first are final.
const (
	JobRunning   = "running"
	JobDone      = "done"
	JobFailed    = "failed"
	JobCancelled = "cancelled"
)

// What a run was started by.
const (
	ByStart    = "start"    // of the server
	BySchedule = "schedule" // it was due
	ByRequest  = "request"
	ByLoss     = "loss" // of a node
	ByRead     = "read" // which found a shard missing or damaged
)

var (
	// ErrNoJob says that no run of that ID is known: there was none, or newer ones
	// have taken its place.
	ErrNoJob = errors.New("no such job")
	// ErrJobRunning says that a run of that kind is under way.
	ErrJobRunning = errors.New("a job of that kind is under way")
	// ErrJobOver says that the run has ended already.
	ErrJobOver = errors.New("the job is over")
)

// endOfJob is why the context of a run ended.
type endOfJob string

const (
	errJobCancelled endOfJob = "cancelled"
	errJobStopped   endOfJob = "the server stopped"
	errJobCut       endOfJob = "its window has closed; it goes on in the next"
)

func (e endOfJob) Error() string { return string(e) }

// Is makes it what the ends of other contexts are.
func (e endOfJob) Is(target error) bool { return target == context.Canceled }

const (
	jobsKept     = 50              // runs of each kind
	maxJobResult = 4 << 10         // bytes of JSON
	maxJobError  = 1 << 10         // bytes
	tellProgress = 1 * time.Second // at the most so often, of each run
)

// Job is one run of a job.
type Job struct {
	ID      id.Job
	Kind    string
	Trigger string
	State   string
	Started time.Time
	Ended   time.Time // zero: it runs, or it is not known when it ended
	// Done of Total is how far it is, in Unit; Total 0: not known. No Unit: it does
	// not say how far it is.
	Done, Total uint64
	Unit        string
	// Left is how long the rest takes if it goes on as it did since the run began to say
	// how far it is; 0: not known.
	Left    time.Duration
	Options JobOptions
	Result  json.RawMessage // what it did; nil: nothing is known of that
	Error   string          // why it did not end as it should
}

// Stopped says that the run ended because the server stopped.
func (j Job) Stopped() bool { return j.State == JobFailed && j.Error == errJobStopped.Error() }

// JobOptions are what a run of [JobScrub], [JobCollect], [JobDrain], [JobRebalance] or [JobRaise] may
// be told; other kinds take none.
type JobOptions struct {
	Deep bool // of a scrub: put packs together, code parity again, open chunks
	Now  bool // of a collection: without grace, and thoroughly
	// Purge, of a collection: deleted objects in buckets without versioning at once,
	// which cannot be brought back then.
	Purge  bool
	Rate   uint64 // bytes per second at the most; 0: as in [ScrubRate], [CollectRate], [MoveRate]
	DryRun bool   // change nothing, and say what there is to do; not of a drain
}

// of reports whether a kind may be told that.
func (o JobOptions) of(kind string) bool {
	scrubs, collects, moves := kind == JobScrub, kind == JobCollect, kind == JobDrain || kind == JobRebalance || kind == JobRaise
	return (!o.Deep || scrubs) && (!o.Now && !o.Purge || collects) && (o.Rate == 0 || scrubs || collects || moves) && (!o.DryRun || scrubs || collects || kind == JobRebalance)
}

// JobFilter chooses runs.
type JobFilter struct {
	Kind, State string // empty: any
	Before      id.Job // runs that began before that one; zero: from the newest on
	Limit       int    // at most 1,000; 0 means that
}

// JobCounts counts the runs of one kind that have ended since the process began.
type JobCounts struct {
	Kind                    string
	Done, Failed, Cancelled uint64
	LastDone                time.Time // of the history too; zero: never
}

// jobKind is what a kind of job does. Its result is JSON of at most maxJobResult
// bytes. When ctx ends it returns soon, with the cause, and what it did so far.
type jobKind struct {
	run func(ctx context.Context, r *run) (result any, err error)
	// silent: a run that nobody asked for is told of once it has found something to
	// do, and else not at all.
	silent bool
}

// run is a run that this process knows.
type run struct {
	s      *Store
	cancel context.CancelCauseFunc // nil: it is one of the history
	over   chan struct{}           // closed when it has ended

	// Under jobs.mu:
	Job
	shown   bool      // it is told of
	told    time.Time // when its progress was told last
	first   uint64    // Done when it first said how far it is
	firstAt time.Time // by the process's clock
	kept    bool      // it goes into the history
	rev     int       // rises when what the history is to say of it changes
	saved   int       // the rev that the history has; 0: it has none
	dropped bool      // it is beyond jobsKept
}

// jobs is what is known of all runs.
type jobs struct {
	mu      sync.Mutex
	kinds   map[string]jobKind
	runs    []*run // from old to new
	running map[string]*run
	counts  map[string]*JobCounts
	last    uint64 // milliseconds of the newest ID
	stopped bool
	gone    []id.Job // which leave the history

	saving   chan struct{} // holds a token while somebody writes the history
	wantSave chan struct{}
}

func (s *Store) initJobs() {
	s.jobs.kinds = map[string]jobKind{
		JobRepair:     {run: s.runRepair, silent: true},
		JobCheckIndex: {run: s.runCheck},
		JobSnapshot:   {run: s.runSnapshot},
		JobScrub:      {run: s.runScrub},
		JobCollect:    {run: s.runCollect, silent: true},
		JobDrain:      {run: s.runDrain},
		JobRebalance:  {run: s.runRebalance},
		JobUsage:      {run: s.runUsage},
		JobRaise:      {run: s.runRaise},
	}
	s.jobs.running, s.jobs.counts, s.jobs.wantSave = map[string]*run{}, map[string]*JobCounts{}, make(chan struct{}, 1)
	s.jobs.saving = make(chan struct{}, 1)
	for _, kind := range s.JobKinds() {
		s.jobs.counts[kind] = &JobCounts{Kind: kind}
	}
}

// JobKinds lists the kinds that there are, by name.
func (s *Store) JobKinds() []string {
	out := make([]string, 0, len(s.jobs.kinds))
	for kind := range s.jobs.kinds {
		out = append(out, kind)
	}
	slices.Sort(out)
	return out
}

// beginJob begins a run, whose context ends with parent, when it is cancelled, and
// when the store closes. When one of the kind is under way, that one is returned
// with [ErrJobRunning].
func (s *Store) beginJob(parent context.Context, kind, trigger string, opt JobOptions) (context.Context, *run, error) {
	js := &s.jobs
	js.mu.Lock()
	defer js.mu.Unlock()
	k, ok := js.kinds[kind]
	if !ok {
		return nil, nil, fmt.Errorf("%w: no kind of job is called %.40q; there are %s", ErrInvalid, kind, strings.Join(s.JobKinds(), ", "))
	}
	if !opt.of(kind) {
		return nil, nil, fmt.Errorf("%w: a job of kind %s is told nothing like that", ErrInvalid, kind)
	}
	if js.stopped {
		return nil, nil, ErrClosed
	}
	if r := js.running[kind]; r != nil {
		if trigger == ByRequest {
			js.show(r)
		}
		return nil, r, fmt.Errorf("%w: %s %v", ErrJobRunning, kind, r.ID)
	}
	now := s.now()
	js.last = max(js.last+1, uint64(max(now.UnixMilli(), 1)))
	jid, err := id.NewJob(s.random(forJobs), js.last)
	if err != nil {
		return nil, nil, fmt.Errorf("%w: random bytes: %w", ErrUnavailable, err)
	}
	r := &run{s: s, over: make(chan struct{}), Job: Job{ID: jid, Kind: kind, Trigger: trigger, State: JobRunning, Started: now, Options: opt}}
	var ctx context.Context
	ctx, r.cancel = context.WithCancelCause(parent)
	js.runs, js.running[kind] = append(js.runs, r), r
	if r.kept = trigger == ByRequest; r.kept || !k.silent {
		js.show(r)
	}
	return ctx, r, nil
}

// show tells of a run; js.mu is held.
func (js *jobs) show(r *run) {
	if r.shown {
		return
	}
	r.shown = true
	r.s.events.publish(Event{Name: EventJobStarted, Job: new(r.Job)})
	js.changed(r)
}

// changed notes that the history is to say something else of a run; js.mu is held.
func (js *jobs) changed(r *run) {
	if !r.kept {
		return
	}
	r.rev++
	select {
	case js.wantSave <- struct{}{}:
	default:
	}
}

// found tells of a run, and keeps it: it has something to do.
func (r *run) found() {
	js := &r.s.jobs
	js.mu.Lock()
	defer js.mu.Unlock()
	if !r.kept {
		r.kept = true
		if r.shown {
			js.changed(r)
		}
	}
	js.show(r)
}

// report says how far a run is.
func (r *run) report(done, total uint64, unit string) {
	js := &r.s.jobs
	js.mu.Lock()
	defer js.mu.Unlock()
	if r.firstAt.IsZero() || unit != r.Unit || done < r.first {
		r.first, r.firstAt = done, time.Now()
	}
	r.Done, r.Total, r.Unit = done, total, unit
	r.Left = r.left()
	if now := r.s.now(); r.shown && now.Sub(r.told).Abs() >= tellProgress {
		r.told = now
		r.s.events.publish(Event{Name: EventJobProgress, Job: new(r.Job)})
	}
}

// left is how long the rest takes at the pace until now: a run that stands still, because
// its rate has it wait, says more as it waits. 0 when nobody can say; js.mu is held.
func (r *run) left() time.Duration {
	if r.State != JobRunning || r.firstAt.IsZero() || r.Done <= r.first || r.Total <= r.Done {
		return 0
	}
	return time.Duration(float64(time.Since(r.firstAt)) / float64(r.Done-r.first) * float64(r.Total-r.Done))
}

// view is the run as it is told of now; js.mu is held.
func (r *run) view() Job {
	j := r.Job
	if j.State == JobRunning {
		j.Left = r.left()
	}
	return j
}

// execute runs a run that has begun, to its end.
func (s *Store) execute(ctx context.Context, r *run) error {
	result, err := s.jobs.kinds[r.Kind].run(ctx, r)
	s.endJob(ctx, r, result, err)
	return err
}

// endJob ends a run.
func (s *Store) endJob(ctx context.Context, r *run, result any, err error) {
	var b []byte
	if result != nil {
		var merr error
		if b, merr = json.Marshal(result); merr != nil || len(b) > maxJobResult {
			s.log.Error("what a job did is not kept: it takes too much", "kind", r.Kind, "job", r.ID, "bytes", len(b), "err", merr)
			b = nil
		}
	}
	js := &s.jobs
	js.mu.Lock()
	defer js.mu.Unlock()
	counts := js.counts[r.Kind]
	r.Ended, r.Result, r.Left = s.now(), b, 0
	switch {
	case err == nil:
		r.State, counts.LastDone = JobDone, r.Ended
		counts.Done++
	case errors.Is(context.Cause(ctx), errJobCancelled):
		r.State = JobCancelled
		counts.Cancelled++
	case errors.Is(context.Cause(ctx), errJobCut):
		r.State, r.Error = JobCancelled, errJobCut.Error()
		counts.Cancelled++
		err = nil
	case ctx.Err() != nil:
		r.State, r.Error = JobFailed, errJobStopped.Error()
		counts.Failed++
		err = nil // what runs by itself begins anew with the next start
	default:
		r.State, r.Error = JobFailed, cutText(err.Error(), maxJobError)
		counts.Failed++
	}
	delete(js.running, r.Kind)
	if err != nil {
		r.kept = true
		js.show(r)
	}
	if r.shown {
		s.events.publish(Event{Name: EventJobEnded, Job: new(r.Job)})
		js.changed(r)
		js.trim(r.Kind)
	} else {
		js.runs = slices.DeleteFunc(js.runs, func(o *run) bool { return o == r })
	}
	r.cancel(nil)
	close(r.over)
}

// cutText is the beginning of a text, in valid UTF-8.
func cutText(s string, most int) string {
	s = strings.ToValidUTF8(s, "?")
	if len(s) <= most {
		return s
	}
	const more = "..."
	s = s[:most-len(more)]
	for len(s) > 0 && !utf8.ValidString(s) {
		s = s[:len(s)-1]
	}
	return s + more
}

// trim forgets the oldest runs of a kind beyond jobsKept; js.mu is held.
func (js *jobs) trim(kind string) {
	n := 0
	for i := len(js.runs) - 1; i >= 0; i-- {
		r := js.runs[i]
		if r.Kind != kind {
			continue
		}
		if n++; n <= jobsKept || r.State == JobRunning {
			continue
		}
		js.runs = slices.Delete(js.runs, i, i+1)
		if r.dropped = true; r.saved > 0 {
			js.gone = append(js.gone, r.ID)
		}
	}
}

// runJob runs a kind of job here and returns its error. When a run of the kind is
// under way it waits for that one's end, and ran is false.
func (s *Store) runJob(ctx context.Context, kind, trigger string) (ran bool, err error) {
	jobCtx, r, err := s.beginJob(ctx, kind, trigger, JobOptions{})
	if errors.Is(err, ErrJobRunning) {
		select {
		case <-r.over:
			return false, nil
		case <-ctx.Done():
			return false, context.Cause(ctx)
		}
	}
	if err != nil {
		return false, err
	}
	return true, s.execute(jobCtx, r)
}

// StartJob starts a run of a kind in the background. When one is under way, that one
// is returned with [ErrJobRunning].
func (s *Store) StartJob(_ context.Context, kind string, opt JobOptions) (Job, error) {
	ctx, r, err := s.beginJob(context.Background(), kind, ByRequest, opt)
	if r == nil {
		return Job{}, err
	}
	j := s.jobs.copyOf(r)
	if err != nil {
		return j, err
	}
	if !s.spawn(func() { _ = s.execute(ctx, r) }) { // its end says what came of it
		r.cancel(errJobStopped)
		s.endJob(ctx, r, nil, ErrClosed)
		return j, ErrClosed
	}
	return j, nil
}

func (js *jobs) copyOf(r *run) Job {
	js.mu.Lock()
	defer js.mu.Unlock()
	return r.view()
}

// find returns a run that is told of; js.mu is held.
func (js *jobs) find(j id.Job) (*run, error) {
	i, ok := slices.BinarySearchFunc(js.runs, j, func(r *run, j id.Job) int { return r.ID.Compare(j) })
	if !ok || !js.runs[i].shown {
		return nil, fmt.Errorf("job %v: %w", j, ErrNoJob)
	}
	return js.runs[i], nil
}

// Job describes a run.
func (s *Store) Job(_ context.Context, j id.Job) (Job, error) {
	s.jobs.mu.Lock()
	defer s.jobs.mu.Unlock()
	r, err := s.jobs.find(j)
	if err != nil {
		return Job{}, err
	}
	return r.view(), nil
}

// Jobs lists runs, the newest first; more says that there are older ones.
func (s *Store) Jobs(_ context.Context, f JobFilter) (out []Job, more bool, err error) {
	js := &s.jobs
	js.mu.Lock()
	defer js.mu.Unlock()
	limit := min(cmp.Or(f.Limit, 1000), 1000)
	for _, r := range slices.Backward(js.runs) {
		if !r.shown || f.Kind != "" && r.Kind != f.Kind || f.State != "" && r.State != f.State || !f.Before.IsZero() && r.ID.Compare(f.Before) >= 0 {
			continue
		}
		if len(out) == limit {
			return out, true, nil
		}
		out = append(out, r.view())
	}
	return out, false, nil
}

// CancelJob makes a run end soon; what it has done stays done. It may still end as
// done, when it was about to.
func (s *Store) CancelJob(_ context.Context, j id.Job) (Job, error) {
	s.jobs.mu.Lock()
	defer s.jobs.mu.Unlock()
	r, err := s.jobs.find(j)
	if err != nil {
		return Job{}, err
	}
	if r.State != JobRunning {
		return r.Job, fmt.Errorf("job %v is %s: %w", j, r.State, ErrJobOver)
	}
	r.cancel(errJobCancelled)
	return r.Job, nil
}

// JobCounts counts the runs that have ended, by kind.
func (s *Store) JobCounts() []JobCounts {
	s.jobs.mu.Lock()
	defer s.jobs.mu.Unlock()
	out := make([]JobCounts, 0, len(s.jobs.counts))
	for _, kind := range s.JobKinds() {
		out = append(out, *s.jobs.counts[kind])
	}
	return out
}

// stop ends all runs and lets none begin. It returns those that have not ended yet.
func (js *jobs) stop() (left []*run) {
	js.mu.Lock()
	defer js.mu.Unlock()
	js.stopped = true
	for _, r := range js.running {
		r.cancel(errJobStopped)
		left = append(left, r)
	}
	return left
}
