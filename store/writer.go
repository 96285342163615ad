package store

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"cairn/id"
	"cairn/index"
	"cairn/node"
	"cairn/pack"
	"cairn/record"
	"cairn/seal"
)

// Bounds of one round of the log writer. A round stops taking submissions once it
// has reached one of them, so that it may go beyond by one submission. An index
// transaction must hold both, whatever memory the index has, now and when the log
// is replayed: what is logged can always be applied.
const (
	roundPayload = 2 << 20 // bytes of sealed chunks; less where the log's memory is short
	roundRecords = 1000
	roundBytes   = 512 << 10 // bytes of encoded records
	roundKeys    = 4 << 10   // index keys touched
	roundRows    = 512 << 10 // bytes of index rows
	// What one submission needs at most: the adopt of a pack of maxPackChunks, all of
	// them condemned until then, or the last list chunks of an object, one of each depth.
	submissionKeys = 7 << 10
	submissionRows = 700 << 10
	queueLimit     = 16 << 10 // submissions that may wait
	// smallLog is the shard length up to which a log pack is kept as identical
	// copies: one read serves it.
	smallLog = 64 << 10
)

// inline is a sealed chunk that travels in a log pack.
type inline struct {
	info   seal.Info
	sealed []byte
}

// submission is one request to the log writer: it takes effect whole or not at
// all, and is never split over log packs.
type submission struct {
	ctx    context.Context // when it is done before the round begins, nothing happens
	inline []inline
	adopts []*record.Adopt
	lists  []*record.List // for list chunks among inline
	// decide checks, and returns what applies when all checks have passed.
	decide func(*decision) (apply func() error, err error)
	done   func(error) // called once, by the writer, after the pack was applied; may be nil

	client bool // brings clients' data: refused first when room runs out
	alone  bool // gets a log pack of its own
	// change, in a submission that is alone, decides a new node set, which is in
	// force as soon as the log pack is applied.
	change func(*decision) (*record.Nodes, error)

	// Under packs.mu:
	waits   int  // open packs that must be handed in first
	refused bool // one of them was lost, and done was told
}

// decision is the state of a round while submissions are judged. Everything
// applied to round is seen by the submissions after it.
type decision struct {
	s       *Store
	round   *index.Round
	seq     uint64 // of the log pack being made
	time    int64  // of the log, in Unix nanoseconds
	sure    int64  // the time that expiry goes by, likewise
	records []record.Record
	encoded [][]byte // each record, as it goes into the log pack
	bytes   int      // of them all
	tried   bool     // an earlier attempt of this round may become the tail
	payload []byte
	entries []pack.Entry
	coming  map[id.Chunk]bool // chunks that the submission being judged brings along
}

// fatalError stops the store: going on could lose what was promised.
type fatalError struct{ err error }

func (e *fatalError) Error() string { return "the store must stop: " + e.err.Error() }
func (e *fatalError) Unwrap() error { return e.err }

// errNextRound says that a submission goes into the next log pack.
var errNextRound = errors.New("next round")

// emit applies a record and takes it into the log pack. An error means that the
// index does not hold what it must.
func (d *decision) emit(r record.Record) error {
	b, err := record.Append(nil, r)
	if err != nil {
		return &fatalError{err}
	}
	if err := d.round.Apply(r); err != nil {
		return &fatalError{err}
	}
	d.records, d.encoded, d.bytes = append(d.records, r), append(d.encoded, b), d.bytes+len(b)
	return nil
}

// present checks that every chunk can be referred to once the submission's own
// have been applied.
func (d *decision) present(realm id.Realm, chunks []id.Chunk) error {
	for _, c := range chunks {
		if d.coming[c] {
			continue
		}
		row, err := d.round.Chunk(realm, c)
		switch {
		case errors.Is(err, index.ErrNotFound), err == nil && row.State == index.Damaged:
			return fmt.Errorf("%w: a chunk that the upload relied on is gone", ErrRetry)
		case err != nil:
			return &fatalError{err}
		}
	}
	return nil
}

// reachable refuses packs that lost a node between their last shard and now: they
// would begin with less than the losses that were promised. So it does those that were
// coded for fewer losses than are written for by now: none gets a row behind the wish
// for more.
func (d *decision) reachable(adopts []*record.Adopt) error {
	set := d.s.members.Load()
	for _, a := range adopts {
		if int(a.M) < set.w() {
			return fmt.Errorf("%w: a pack of %d+%d was on its way while more losses came to be wanted", ErrRetry, a.K, a.M)
		}
		for _, p := range a.Shards {
			if m := set.byID[p.Node]; m == nil || !m.readable() || m.isClosed() {
				return fmt.Errorf("%w: a node was lost while the upload ran", ErrRetry)
			}
		}
	}
	return nil
}

// counts returns the reference count that each chunk has now, counting the
// edges that the same list adds before it.
func (d *decision) counts(realm id.Realm, chunks []id.Chunk) ([]uint64, error) {
	out := make([]uint64, len(chunks))
	seen := make(map[id.Chunk]uint64, len(chunks))
	for i, c := range chunks {
		n, ok := seen[c]
		if !ok {
			row, err := d.round.Chunk(realm, c)
			if err != nil {
				return nil, &fatalError{fmt.Errorf("count of a chunk that was there: %w", err)}
			}
			n = row.Refs
		}
		out[i], seen[c] = n, n+1
	}
	return out, nil
}

// accept judges one submission: first everything is checked, then everything is
// applied, so that what is refused leaves nothing behind.
func (d *decision) accept(sub *submission) error {
	// Once a shard of this round has left the process, a definite refusal could
	// be contradicted by the next start: then the client's going changes nothing.
	if err := context.Cause(sub.ctx); err != nil && !d.tried {
		return err
	}
	if err := d.reachable(sub.adopts); err != nil {
		return err
	}
	d.coming = make(map[id.Chunk]bool, len(sub.inline))
	for _, c := range sub.inline {
		d.coming[c.info.Chunk] = true
	}
	for _, a := range sub.adopts {
		for _, e := range a.Entries {
			d.coming[e.Chunk] = true
		}
	}
	for _, l := range sub.lists {
		if err := d.present(l.In, l.Children); err != nil {
			return err
		}
	}
	apply := func() error { return nil }
	// An entry is applied before the records of its log pack, wherever it stands: what
	// a record of this one marks as damaged, condemns or removes it cannot bring.
	for _, c := range sub.inline {
		row, err := d.round.Chunk(c.info.Realm, c.info.Chunk)
		if (err != nil || row.State != index.Live) && d.round.Changed(c.info.Realm, c.info.Chunk) {
			return errNextRound
		}
	}
	if sub.decide != nil {
		var err error
		if apply, err = sub.decide(d); err != nil {
			return err
		}
	}
	for _, a := range sub.adopts {
		if err := d.emit(a); err != nil {
			return err
		}
	}
	made := make(map[id.Chunk]bool)
	for _, c := range sub.inline {
		row, err := d.round.Chunk(c.info.Realm, c.info.Chunk)
		if err == nil && row.State == index.Live {
			continue // stored meanwhile by someone else
		}
		if err != nil && !errors.Is(err, index.ErrNotFound) {
			return &fatalError{err}
		}
		made[c.info.Chunk] = err != nil || row.Unknown()
		e := pack.Entry{Info: c.info, Offset: uint32(len(d.payload))}
		if err := d.round.AddEntry(e); err != nil {
			return &fatalError{err}
		}
		d.payload = append(d.payload, c.sealed...)
		d.entries = append(d.entries, e)
	}
	for _, l := range sub.lists {
		if !made[l.Chunk] {
			continue // its children were counted when its row was made
		}
		delete(made, l.Chunk)
		rec := *l
		var err error
		if rec.Before, err = d.counts(l.In, l.Children); err != nil {
			return err
		}
		if err := d.emit(&rec); err != nil {
			return err
		}
	}
	return apply()
}

// full reports whether the round should take no more submissions.
func (d *decision) full() bool {
	keys, bytes := d.round.Size()
	// What a node that hangs holds of earlier log packs leaves less for this one.
	payload := min(roundPayload, linkPayload(d.s.mem.log.Limit()-d.s.mem.log.State().Used))
	return len(d.payload) >= payload || len(d.records) >= roundRecords || d.bytes >= roundBytes || keys >= roundKeys || bytes >= roundRows
}

// head is the newest link of the chain.
type head struct {
	seq     uint64
	pack    id.Pack
	time    int64
	attempt uint32 // the last one tried at seq+1
	places  []record.Place
	// snapshot is what the next log pack names as the newest.
	snapshot snapshotRef
}

// writer is the log writer: one goroutine that turns submissions into log packs.
type writer struct {
	s      *Store
	head   head   // owned by the writer's goroutine once it runs
	logged uint64 // likewise: since it was last looked whether a snapshot is due

	mu      sync.Mutex
	queue   []*submission
	stopped error  // set: nothing is taken any more
	payload []byte // owned by the goroutine, used again every round
	wake    chan struct{}
	idle    chan struct{} // closed when the goroutine has ended
}

// enqueue hands in submissions that belong together, in order.
func (w *writer) enqueue(subs ...*submission) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.stopped != nil {
		return w.stopped
	}
	if len(w.queue)+len(subs) > queueLimit {
		return fmt.Errorf("%w: %d writes wait for the log", ErrBusy, len(w.queue))
	}
	w.queue = append(w.queue, subs...)
	select {
	case w.wake <- struct{}{}:
	default:
	}
	return nil
}

// submit hands in one submission and waits for its outcome. Once it is handed
// in, it is waited for even when ctx ends: the outcome is what counts.
func (w *writer) submit(ctx context.Context, sub *submission) error {
	result := make(chan error, 1)
	sub.ctx, sub.done = ctx, func(err error) { result <- err }
	if err := w.enqueue(sub); err != nil {
		return err
	}
	return <-result
}

// stop lets nothing in any more. What waits is still written when drain is set,
// else refused with err.
func (w *writer) stop(err error, drain bool) {
	w.mu.Lock()
	if w.stopped == nil {
		w.stopped = err
	}
	var refused []*submission
	if !drain {
		refused, w.queue = w.queue, nil
	}
	w.mu.Unlock()
	for _, sub := range refused {
		sub.finish(err)
	}
	select {
	case w.wake <- struct{}{}:
	default:
	}
}

func (sub *submission) finish(err error) {
	if sub.done != nil {
		sub.done(err)
	}
}

// take removes what waits, at most a bounded number.
func (w *writer) take() ([]*submission, bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	n := min(len(w.queue), 2*roundRecords)
	subs := w.queue[:n:n]
	w.queue = w.queue[n:]
	return subs, w.stopped != nil && n == 0
}

// putBack returns what a round had no room for to the front of the queue.
func (w *writer) putBack(subs []*submission) {
	if len(subs) == 0 {
		return
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.queue = append(append(make([]*submission, 0, len(subs)+len(w.queue)), subs...), w.queue...)
	select {
	case w.wake <- struct{}{}:
	default:
	}
}

// run is the writer's goroutine.
func (w *writer) run() {
	defer close(w.idle)
	for {
		subs, stopped := w.take()
		if len(subs) == 0 {
			if stopped {
				return
			}
			<-w.wake
			continue
		}
		if err := w.round(subs); err != nil {
			w.s.fail(err)
			w.stop(fmt.Errorf("%w: %w", ErrUnknown, err), false)
		}
	}
}

// round makes one log pack of as many submissions as fit and answers them. An
// error stops the store.
func (w *writer) round(subs []*submission) error {
	s := w.s
	ctx, cancel := context.WithTimeout(context.Background(), s.cfg.Patience)
	defer cancel()
	tried := false // shards of this round have left the process
	last := errors.New("there was no time to try")
	if subs = w.withRoom(subs); len(subs) == 0 {
		return nil
	}
	for {
		if ctx.Err() != nil {
			// Some attempt may become the tail of the next start: nothing that promises
			// more may be found in this error.
			refuse(subs, fmt.Errorf("%w: the log pack could not be made durable on enough nodes: %s", ErrUnknown, last.Error()))
			return nil
		}
		set := s.members.Load()
		up := usable(set.log, s.now())
		if need := len(set.log) - set.m(); len(up) < need || len(up) <= set.w() {
			err := s.tooFew(set.log, len(up), need, false)
			if !tried {
				refuse(subs, err)
				return nil
			}
			last = err
			pause(ctx)
			continue
		}
		before := tried
		rest, outcome, err := w.attempt(ctx, set, up, subs, &tried)
		switch {
		case err == nil:
			for i, sub := range subs[:len(outcome)] {
				sub.finish(outcome[i])
			}
			w.putBack(rest)
			return nil
		case errors.Is(err, errNoRoom) && !before:
			// Nothing is anywhere. Clients' data makes way for the rest.
			tried = false
			err = fmt.Errorf("%w: %w", ErrFull, err)
			if others := dropClients(subs, err); len(others) < len(subs) {
				subs = others
			} else {
				refuse(subs, err)
				subs = nil
			}
			if len(subs) == 0 {
				return nil
			}
		case errors.Is(err, errNarrow), errors.Is(err, errNoRoom):
			last = err
			if errors.Is(err, node.ErrFenced) {
				// One node's word is not enough; a takeover shows at all but m.
				if err := s.confirmOnce(); errors.Is(err, ErrSuperseded) {
					refuse(subs, fmt.Errorf("%w: %w", ErrUnknown, err))
					return err
				}
			}
			pause(ctx)
			s.log.Warn("log pack not durable at full width, trying again", "sequence", w.head.seq+1, "attempt", w.head.attempt, "err", err)
		default:
			refuse(subs, fmt.Errorf("%w: %w", ErrUnknown, err))
			return err
		}
	}
}

// withRoom refuses what the filesystem of the index has no room for, and returns
// the rest.
func (w *writer) withRoom(subs []*submission) []*submission {
	if err := w.s.room(node.ForLog); err != nil {
		refuse(subs, err)
		return nil
	}
	if slices.ContainsFunc(subs, (*submission).isClient) {
		if err := w.s.room(node.ForClient); err != nil {
			return dropClients(subs, err)
		}
	}
	return subs
}

func (sub *submission) isClient() bool { return sub.client }

// dropClients refuses the submissions that bring clients' data, and returns the others.
func dropClients(subs []*submission, err error) []*submission {
	var others []*submission
	for _, sub := range subs {
		if sub.client {
			sub.finish(err)
		} else {
			others = append(others, sub)
		}
	}
	return others
}

// pause is the wait between two attempts.
func pause(ctx context.Context) {
	t := time.NewTimer(20 * time.Millisecond)
	defer t.Stop()
	select {
	case <-ctx.Done():
	case <-t.C:
	}
}

func refuse(subs []*submission, err error) {
	for _, sub := range subs {
		sub.finish(err)
	}
}

// attempt tries once to make the submissions durable. On success it returns
// those that did not fit, and the outcome of each of the others. After an error
// nothing has been applied.
func (w *writer) attempt(ctx context.Context, set *memberSet, up []*member, subs []*submission, tried *bool) (rest []*submission, outcome []error, err error) {
	s := w.s
	packID, err := id.NewPack(s.random(forLog))
	if err != nil {
		return nil, nil, err
	}
	now := max(s.now().UnixNano(), w.head.time+1)
	round, err := s.index.Begin(packID, w.head.seq+1)
	if err != nil {
		return nil, nil, err
	}
	defer round.Discard()
	d := &decision{s: s, round: round, seq: w.head.seq + 1, time: now, sure: s.believed(), payload: w.payload[:0], tried: *tried}
	change := false
	for i, sub := range subs {
		if i > 0 && (sub.alone || change || d.full()) {
			rest = subs[i:]
			break
		}
		err := d.accept(sub)
		if errors.Is(err, errNextRound) {
			rest = subs[i:]
			break
		}
		change = sub.alone
		if fatal := (*fatalError)(nil); errors.As(err, &fatal) {
			return nil, nil, err
		}
		outcome = append(outcome, err)
	}
	w.payload = d.payload[:0]
	// A round that has begun to reach nodes is finished, whatever it brings.
	why := node.ForLog
	for i, sub := range subs[:len(outcome)] {
		if sub.client && outcome[i] == nil && !*tried {
			why = node.ForClient
		}
	}
	if why == node.ForClient {
		takes := taking(up, s.now())
		if len(takes) <= set.w() {
			return nil, nil, fmt.Errorf("%w: %w", errNoRoom, s.tooFew(set.log, len(takes), set.w()+1, true))
		}
		up = takes
	}
	var also *memberSet
	if subs[0].change != nil && outcome[0] == nil {
		rec, err := subs[0].change(d)
		if err == nil {
			err = d.emit(rec)
		}
		if fatal := (*fatalError)(nil); errors.As(err, &fatal) {
			return nil, nil, err
		}
		if outcome[0] = err; err == nil {
			also = s.newSet(*rec)
			if up = usable(logNodes(set, also), s.now()); len(up) <= max(set.w(), also.w()) {
				return nil, nil, fmt.Errorf("%w: %d log nodes of the old and the new set take writes", errNarrow, len(up))
			}
		}
	}
	if len(d.records) == 0 && len(d.entries) == 0 {
		if *tried {
			for i, err := range outcome {
				if err != nil {
					outcome[i] = fmt.Errorf("%w: an earlier attempt may have been stored: %w", ErrUnknown, err)
				}
			}
		}
		// Every one was refused: there is nothing to log, and so nothing that would show
		// a takeover. What is refused is a fact only if this is still the writer.
		if slices.ContainsFunc(outcome, func(err error) bool { return err != nil }) && !*tried {
			if cerr := s.confirmNow(ctx); cerr != nil {
				for i, err := range outcome {
					if err != nil {
						outcome[i] = cerr
					}
				}
			}
		}
		return rest, outcome, nil
	}
	if also == nil {
		if err := d.sayClock(); err != nil {
			return nil, nil, err
		}
	}
	link := &linkPlan{seq: w.head.seq + 1, prev: w.head.pack, prevPlaces: w.head.places, pack: packID, time: now,
		entries: d.entries, records: d.records, encoded: d.encoded, payload: d.payload, set: set, also: also, why: why, snapshot: w.head.snapshot}
	w.head.attempt++
	link.attempt = w.head.attempt
	h, places, meta, err := s.writeLink(ctx, link, up, tried)
	if err != nil {
		return nil, nil, err
	}
	applied := linkOf(h, meta, d.records)
	if err := round.Commit(applied); err != nil {
		return nil, nil, &fatalError{fmt.Errorf("the log pack is durable, and the index could not apply it: %w", err)}
	}
	w.head = head{seq: link.seq, pack: packID, time: now, places: places, snapshot: refOf(h, meta.Log, d.records)}
	if w.logged += applied.Logged; w.logged >= s.cfg.SnapshotEvery/16 {
		w.logged = 0
		s.snapshotSoon()
	}
	s.buckets.changed(d.records)
	s.remember(packID, places)
	if also != nil {
		// Before the next log pack is sent, the members must know each other. The
		// time that making the pack durable took is not taken from them.
		if err := s.spreadCluster(context.WithoutCancel(ctx), set, also); err != nil {
			return nil, nil, &fatalError{fmt.Errorf("the node set was changed and could not be told to its members: %w", err)}
		}
		s.members.Store(also)
	}
	return rest, outcome, nil
}
