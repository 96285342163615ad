package store

import (
	"context"
	"errors"
	"fmt"
	"math"
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

// What nothing refers to any more is collected as docs/protocol.md, section 12, says.

const (
	// KeepDeleted is how long a deleted object stays under its marker in a bucket without
	// versioning.
	KeepDeleted = 7 * 24 * time.Hour
	// CollectGrace is how long a chunk stays that collection has found without edges.
	// Safety does not rest on it.
	CollectGrace = time.Hour
	// collectLook is how often it is looked whether there is something to collect, and
	// collectAge how old what there is may get, however little it is.
	collectLook = 10 * time.Minute
	collectAge  = time.Hour
	// collectShare: waste beyond this part of what lies in packs is collected as soon as
	// it is seen.
	collectShare = 10
	// condemnAtOnce, removeAtOnce and dropAtOnce bound what one submission names; a list
	// is removed in a submission of its own.
	condemnAtOnce = 1000
	removeAtOnce  = 1000
	dropAtOnce    = 500
	// collectChunks is how many chunks are gathered before they are handed in: a bound on
	// memory, of about 64 bytes each.
	collectChunks = 64 << 10
	// deletesAtOnce is how many deletes a node is sent at a time: it makes them durable
	// together.
	deletesAtOnce = 32
)

// CollectResult is what a run of [JobCollect] did.
type CollectResult struct {
	DryRun bool `json:"dry_run,omitempty"` // nothing was changed: what there is to do, as far as it shows
	// What the rules of buckets let expire: objects that were deleted, older versions and
	// delete markers that were purged, uploads that were aborted.
	Expired         int    `json:"expired_objects,omitempty"`
	ExpiredVersions int    `json:"expired_versions,omitempty"`
	ExpiredMarkers  int    `json:"expired_markers,omitempty"`
	Aborted         int    `json:"aborted_uploads,omitempty"`
	Purged          int    `json:"purged_objects,omitempty"` // deleted ones, in buckets without versioning
	Condemned       int    `json:"condemned_chunks,omitempty"`
	Removed         int    `json:"removed_chunks"`
	RemovedBytes    uint64 `json:"removed_bytes"` // sealed
	// What is needed of Rewritten packs was moved: so many chunks, into so many packs. Bytes
	// of both directions are what was read of chunks, and written of shards.
	Rewritten    int    `json:"rewritten_packs,omitempty"`
	Moved        int    `json:"moved_chunks,omitempty"`
	ReadBytes    uint64 `json:"read_bytes,omitempty"`
	Written      int    `json:"written_packs,omitempty"`
	WrittenBytes uint64 `json:"written_bytes,omitempty"`
	Unreadable   int    `json:"unreadable_packs,omitempty"` // that could not be moved: a scrub says why
	// Dropped packs are gone from the index; nodes give their bytes back once their own
	// keep time is over.
	Dropped      int    `json:"dropped_packs"`
	DroppedLog   int    `json:"dropped_log_packs,omitempty"`
	DroppedBytes uint64 `json:"dropped_bytes"`
	NotTold      int    `json:"shards_not_deleted,omitempty"` // their node could not be told: a scrub finds them
	Snapshots    int    `json:"snapshots,omitempty"`          // taken, so that the log could be cut
	// What is left: condemned chunks, the time from which on the first of them may go, how
	// many transfers they wait for, and how long the oldest of these has lasted.
	Waiting       int        `json:"waiting_chunks,omitempty"`
	WaitingBytes  uint64     `json:"waiting_bytes,omitempty"`
	WaitingUntil  *time.Time `json:"waiting_until,omitempty"`
	WaitingFor    int        `json:"waiting_for_transfers,omitempty"`
	OldestSeconds float64    `json:"oldest_transfer_seconds,omitempty"`
	Seconds       float64    `json:"seconds"`
}

// collector is what this process knows of collection.
type collector struct {
	mu sync.Mutex
	// fences: what was condemned up to a sequence may go when the transfers before a mark
	// have ended. Ascending in all.
	fences []fence
	read   map[uint64]time.Time  // when this process has read a snapshot whole, by its number
	bad    map[id.Pack]time.Time // when a chunk of a pack turned out to be damaged
	narrow map[id.Pack]int       // packs that were written no wider, though so many nodes were up
	left   *condemnedChunks      // by the last run; nil: not known yet
	// met is what all buckets wished for when every pack last had the best width, and when
	// that was.
	met   string
	metAt time.Time
}

type fence struct {
	head uint64 // sequence
	mark uint64 // of a transfer
	at   time.Time
}

// fence notes that what is condemned by now is out of the reach of transfers that begin
// from now on.
func (s *Store) fence() (fence, error) {
	h, err := s.index.Head()
	if err != nil {
		return fence{}, err
	}
	f := fence{h.Seq, s.transfers.mark(), time.Now()} // in this order
	c := &s.collector
	c.mu.Lock()
	defer c.mu.Unlock()
	c.fences = append(c.fences, f)
	// Of those that say the same the last is left, unless that is of use as the oldest.
	if n := len(c.fences); n > maxFences {
		c.fences = slices.Delete(c.fences, n/2, n/2+1)
	}
	return f, nil
}

// maxFences bounds what is remembered: with fewer, something waits longer.
const maxFences = 256

// passed is the sequence up to which nobody can rely on what was condemned; and aged that
// up to which the grace is over, as this process has seen it pass.
func (s *Store) passed() (seq, aged uint64) {
	oldest := s.transfers.oldest()
	c := &s.collector
	c.mu.Lock()
	defer c.mu.Unlock()
	n := 0
	for _, f := range c.fences {
		if f.mark <= oldest {
			seq = max(seq, f.head)
		}
		if time.Since(f.at) >= s.cfg.Grace {
			aged = max(aged, f.head)
		}
		if f.mark <= oldest && time.Since(f.at) >= s.cfg.Grace {
			n++
		}
	}
	if n > 1 {
		c.fences = slices.Delete(c.fences, 0, n-1) // the last of them says it all
	}
	return seq, aged
}

// snapshotRead notes that a snapshot was read whole.
func (s *Store) snapshotRead(number uint64) {
	c := &s.collector
	c.mu.Lock()
	defer c.mu.Unlock()
	c.read[number] = time.Now()
}

// snapshotProof is how long that a snapshot was read whole lets the log be cut.
const snapshotProof = time.Hour

func (s *Store) wasRead(number uint64) bool {
	c := &s.collector
	c.mu.Lock()
	defer c.mu.Unlock()
	at, read := c.read[number]
	return read && time.Since(at) < snapshotProof
}

// snapshotGone notes that a piece of a snapshot is lost, or cannot be read: what was read of
// snapshots counts no more, and another one is due.
func (s *Store) snapshotGone() {
	c := &s.collector
	c.mu.Lock()
	clear(c.read)
	c.mu.Unlock()
	s.snapshotLost.Store(true)
	s.snapshotSoon()
}

// unmovableRest is how long a pack with a damaged chunk is left to scrubs.
const unmovableRest = 24 * time.Hour

// unmovable notes that a chunk of a pack is damaged.
func (s *Store) unmovable(p id.Pack) {
	c := &s.collector
	c.mu.Lock()
	defer c.mu.Unlock()
	c.bad[p] = time.Now()
}

func (s *Store) isUnmovable(p id.Pack) bool {
	c := &s.collector
	c.mu.Lock()
	defer c.mu.Unlock()
	at, bad := c.bad[p]
	return bad && time.Since(at) < unmovableRest
}

// keptNarrow notes that a pack was written narrower than so many nodes would have allowed.
func (s *Store) keptNarrow(p id.Pack, up int) {
	c := &s.collector
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.narrow) >= maxNarrow {
		clear(c.narrow)
	}
	c.narrow[p] = up
}

// maxNarrow bounds what is remembered of narrow packs.
const maxNarrow = 64 << 10

// triedWith reports whether a pack was written with so many nodes up, and came out narrow.
func (s *Store) triedWith(p id.Pack, up int) bool {
	c := &s.collector
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.narrow[p] >= up
}

// waste is what collection could give back, in bytes of sealed chunks.
type waste struct {
	payload      uint64 // of all packs
	unreferenced uint64 // of chunks without edges
	dead         uint64 // in packs, of what is no chunk any more
}

func (s *Store) waste() (w waste, err error) {
	err = s.view(func(r index.Reader) error {
		t, err := r.Totals()
		if err == nil {
			w = waste{payload: t.PayloadBytes, unreferenced: t.SealedBytes - t.LiveBytes, dead: t.PayloadBytes - t.SealedBytes}
		}
		return err
	})
	return w, err
}

// collectLoop collects when there is something to collect.
func (s *Store) collectLoop(ctx context.Context) {
	t := time.NewTicker(collectLook)
	defer t.Stop()
	last := time.Now()
	for {
		select {
		case <-ctx.Done():
			return
		case <-t.C:
		}
		w, err := s.waste()
		if err != nil {
			continue // the store says why
		}
		if sum := w.unreferenced + w.dead; sum <= w.payload/collectShare && time.Since(last) < collectAge {
			continue
		}
		last = time.Now()
		_, _ = s.runJob(ctx, JobCollect, BySchedule) // runCollect says what came of it
	}
}

// Collect gives back what nothing refers to any more. It waits for transfers at most as
// long as Config.Patience, and then leaves what they may rely on to the next run.
func (s *Store) Collect(ctx context.Context, opt JobOptions) (CollectResult, error) {
	out, err := s.collect(ctx, opt, func(uint64, uint64, string) {})
	return *out, err
}

// runCollect is one run of [JobCollect].
func (s *Store) runCollect(ctx context.Context, r *run) (any, error) {
	out, err := s.collect(ctx, r.Options, func(done, total uint64, unit string) {
		r.found()
		r.report(done, total, unit)
	})
	switch {
	case ctx.Err() != nil:
	case err != nil:
		s.log.Error("a collection ended early", "removed", out.Removed, "moved", out.Moved, "dropped", out.Dropped+out.DroppedLog, "err", err)
	case out.Removed+out.Moved+out.Dropped+out.DroppedLog > 0:
		s.log.Info("collected", "chunks", out.Removed, "moved", out.Moved, "packs", out.Dropped, "log packs", out.DroppedLog, "bytes", out.DroppedBytes)
	}
	return out, err
}

// collection is one run.
type collection struct {
	s      *Store
	opt    JobOptions
	out    *CollectResult
	report func(done, total uint64, unit string)
	proved time.Time // when the index was proved last; zero: not yet
	later  error     // what went wrong and did not keep the rest from being done
	// raise, when it is not 0, takes the packs that were coded for fewer losses, and no
	// others, with everything in them.
	raise      int
	passed     map[id.Pack]bool // of them: those with something that could not be moved
	base, rest uint64           // bytes of those before, and of those behind, what is rewritten now
	// wishes, when not nil, say which widths the buckets of what lies in packs wish for.
	wishes   map[id.Pack]map[int]uint64
	wishText string // of all buckets, as it was read
}

// collectProof is how long a proof of the index lasts within one run.
const collectProof = 10 * time.Minute

func (s *Store) collect(ctx context.Context, opt JobOptions, report func(done, total uint64, unit string)) (*CollectResult, error) {
	out := &CollectResult{}
	leave, err := s.enter()
	if err != nil {
		return out, err
	}
	defer leave()
	select {
	case s.collecting <- struct{}{}:
		defer func() { <-s.collecting }()
	case <-ctx.Done():
		return out, context.Cause(ctx)
	}
	began := time.Now()
	defer func() { out.Seconds = time.Since(began).Seconds() }()
	c := &collection{s: s, opt: opt, out: out, report: report}
	if out.DryRun = opt.DryRun; opt.DryRun {
		return out, c.survey(ctx)
	}
	for _, step := range []func(context.Context) error{c.expire, c.purge, c.chunks, c.drop, c.shorten, c.rewrite, c.drop, c.waiting} {
		if err := step(ctx); err != nil {
			return out, fmt.Errorf("collect: %w", err)
		}
	}
	if out.Unreadable > 0 {
		c.later = errors.Join(c.later, fmt.Errorf("%w: %s, which stay where they are", ErrDamaged, countOf(out.Unreadable, "pack has chunks that cannot be moved", "packs have chunks that cannot be moved")))
	}
	return out, c.later
}

// prove proves the index before something is removed on its word, unless that was done
// a moment ago.
func (c *collection) prove(ctx context.Context) error {
	if !c.proved.IsZero() && time.Since(c.proved) < collectProof {
		return nil
	}
	if err := c.s.proveIndex(ctx); err != nil {
		return err
	}
	c.proved = time.Now()
	return nil
}

// survey counts what a run would find to do now. What would be dead only then is not
// among it.
func (c *collection) survey(ctx context.Context) error {
	s := c.s
	if err := c.expire(ctx); err != nil {
		return err
	}
	if err := c.purge(ctx); err != nil {
		return err
	}
	if err := s.view(func(r index.Reader) error {
		past, err := c.past(r)
		if err != nil {
			return err
		}
		head, err := r.Head()
		if err != nil {
			return err
		}
		return r.EachPack(func(p id.Pack, row index.PackRow) error {
			if err := context.Cause(ctx); err != nil {
				return err
			}
			if droppable(p, row, past, head.Pack) {
				c.dropped(row)
			}
			if row.Live == row.Payload || row.Residents == 0 {
				return nil
			}
			in, err := r.Residents(p)
			for i := 0; err == nil && i < len(in); i++ {
				var ok bool
				if ok, err = free(r, in[i].Realm, in[i].Chunk); ok {
					c.out.Condemned++
				}
			}
			return err
		})
	}); err != nil {
		return err
	}
	list, err := c.sources(ctx)
	if err != nil {
		return err
	}
	c.out.Rewritten = len(list)
	for _, x := range list {
		c.out.ReadBytes += x.live
	}
	return c.waiting(ctx)
}

// dropped counts a pack.
func (c *collection) dropped(row index.PackRow) {
	if row.Kind == pack.Log {
		c.out.DroppedLog++
	} else {
		c.out.Dropped++
	}
	c.out.DroppedBytes += uint64(row.Size) * uint64(len(row.Shards))
}

// purge removes what was deleted long enough ago in buckets without versioning.
func (c *collection) purge(ctx context.Context) error {
	s := c.s
	sure := time.Unix(0, s.believed())
	var buckets []index.Bucket
	if err := s.view(func(r index.Reader) (err error) {
		buckets, err = r.Buckets()
		return err
	}); err != nil {
		return err
	}
	for _, b := range buckets {
		if hidden(b.Name) || b.Settings.Versioning || b.Markers == 0 {
			continue
		}
		opt := index.ListOptions{Limit: 1000, Versions: true}
		for {
			var page index.Page
			if err := s.view(func(r index.Reader) (err error) {
				page, err = r.List(b.ID, opt)
				return err
			}); err != nil {
				return err
			}
			var due []index.Item
			for _, o := range page.Objects {
				if o.Current && o.Deleted && (c.opt.Purge || old(o.Time, sure, s.cfg.KeepDeleted)) {
					due = append(due, o)
				}
			}
			if c.opt.DryRun {
				c.out.Purged += len(due)
				due = nil
			}
			for len(due) > 0 {
				if err := context.Cause(ctx); err != nil {
					return err
				}
				c.report(0, 0, "")
				n, err := c.purgeSome(ctx, b, due)
				if err != nil {
					return err
				}
				due = due[n:]
			}
			if !page.More {
				break
			}
			opt.After, opt.AfterVersion = page.Next, page.NextVersion
		}
	}
	return nil
}

// What one submission purges stays within these bounds, or goes beyond them by the versions of
// one key: rows that it touches, and bytes of them.
const (
	purgeKeys = 2 << 10
	purgeRows = 256 << 10
	// About what rows take in a transaction.
	versionRow, chunkRow, usageRow = 2 << 10, 256, 128
)

// purgeSome removes delete markers and what lies under them, unless there is something newer;
// it returns how many of the first are done with.
func (c *collection) purgeSome(ctx context.Context, b index.Bucket, markers []index.Item) (done int, err error) {
	purged := 0
	err = c.s.writer.submit(ctx, &submission{alone: true, decide: func(d *decision) (func() error, error) {
		done, purged = 0, 0
		now, err := d.round.BucketByID(b.ID)
		if errors.Is(err, index.ErrNotFound) || err == nil && now.Settings.Versioning {
			done = len(markers)
			return func() error { return nil }, nil
		}
		if err != nil {
			return nil, &fatalError{err}
		}
		var recs []*record.Purge
		for keys, bytes := 0, 0; done < len(markers) && keys < purgeKeys && bytes < purgeRows; done++ {
			m := &markers[done]
			versions, err := d.round.Versions(b.ID, []byte(m.Key), maxDrops)
			if err != nil {
				return nil, &fatalError{err}
			}
			if len(versions) == 0 || versions[0].Version != m.Version {
				continue
			}
			more := len(versions) == maxDrops
			if more {
				versions = versions[1:] // the marker goes last: what is under it must not come back
			}
			rec := &record.Purge{In: b.Realm, Bucket: b.ID, Key: []byte(m.Key)}
			for _, v := range versions {
				if err := d.unlocked(&v, false); err != nil { // without versioning there is no lock
					return nil, &fatalError{fmt.Errorf("it was to be purged: %w", err)}
				}
				rec.Drops = append(rec.Drops, record.Dropped{Version: v.Version})
				// The row of the version, one that takes its place, and chunk and usage for each root.
				roots := len(v.Manifest.Roots)
				keys += 2 + 2*roots
				bytes += 2*(2*len(m.Key)+versionRow) + roots*(chunkRow+usageRow)
			}
			recs = append(recs, rec)
			if more {
				break // it is looked at again
			}
			purged++
		}
		return func() error {
			for _, rec := range recs {
				if err := d.round.Fill(rec); err != nil {
					return &fatalError{err}
				}
				if err := d.emit(rec); err != nil {
					return err
				}
			}
			return nil
		}, nil
	}})
	if err == nil {
		c.out.Purged += purged
	}
	return done, err
}

// chunks condemns what has no edges and removes what was condemned, until lists that
// are removed leave nothing more without edges.
func (c *collection) chunks(ctx context.Context) error {
	// The first pass of a run that is to leave nothing condemns what transfers under way bring,
	// too; once. Those that follow are for what lists have given up.
	for all := c.opt.Now; ; all = false {
		if err := c.condemn(ctx, all); err != nil {
			return err
		}
		lists, err := c.remove(ctx)
		if err != nil || lists == 0 {
			return err
		}
	}
}

// errPage ends a scan that has gathered enough for now.
var errPage = errors.New("page is full")

// condemn condemns the chunks without edges that are not condemned yet; with all unset, but
// for those in packs that transfers under way may have brought.
func (c *collection) condemn(ctx context.Context, all bool) error {
	s := c.s
	var after id.Pack // packs up to it were looked through
	// What transfers under way bring has no edges yet: it would be missed and come to life
	// again all the time.
	skip := uint64(math.MaxUint64)
	if transfers, _, counter := s.transfers.first(); transfers > 0 && !all {
		skip = counter
	}
	for {
		var found []index.Resident
		err := s.view(func(r index.Reader) error {
			return r.EachPack(func(p id.Pack, row index.PackRow) error {
				if err := context.Cause(ctx); err != nil {
					return err
				}
				if slices.Compare(p[:], after[:]) <= 0 || row.Live == row.Payload || row.Residents == 0 || row.Writer == s.auth.Writer && row.Counter > skip {
					return nil
				}
				if len(found) >= collectChunks {
					return errPage
				}
				after = p
				in, err := r.Residents(p)
				if err != nil {
					return err
				}
				for _, x := range in {
					free, err := free(r, x.Realm, x.Chunk)
					if err != nil {
						return err
					}
					if free {
						found = append(found, x)
					}
				}
				return nil
			})
		})
		more := errors.Is(err, errPage)
		if err != nil && !more {
			return err
		}
		if len(found) > 0 {
			c.report(0, 0, "")
		}
		slices.SortStableFunc(found, func(a, b index.Resident) int { return int(a.Realm) - int(b.Realm) })
		for len(found) > 0 {
			k := 0
			for k < len(found) && k < condemnAtOnce && found[k].Realm == found[0].Realm {
				k++
			}
			if err := c.condemnSome(ctx, found[:k]); err != nil {
				return err
			}
			found = found[k:]
		}
		if !more {
			return nil
		}
	}
}

// free reports whether a chunk has neither edges nor a condemnation.
func free(r index.Reader, realm id.Realm, c id.Chunk) (bool, error) {
	row, err := r.Chunk(realm, c)
	if errors.Is(err, index.ErrNotFound) {
		return false, nil
	}
	if err != nil || row.Refs > 0 || row.State == index.Condemned {
		return false, err
	}
	if row.State == index.Live {
		return true, nil
	}
	_, err = r.Condemned(realm, c)
	if errors.Is(err, index.ErrNotFound) {
		return true, nil
	}
	return false, err
}

func (c *collection) condemnSome(ctx context.Context, in []index.Resident) error {
	n := 0
	err := c.s.writer.submit(ctx, &submission{decide: func(d *decision) (func() error, error) {
		rec := &record.Condemn{In: in[0].Realm, Time: d.time}
		for _, x := range in {
			ok, err := free(d.round, x.Realm, x.Chunk)
			if err != nil {
				return nil, &fatalError{err}
			}
			if ok {
				rec.Chunks = append(rec.Chunks, x.Chunk)
			}
		}
		n = len(rec.Chunks)
		return func() error {
			if n == 0 {
				return nil
			}
			return d.emit(rec)
		}, nil
	}})
	if err == nil {
		c.out.Condemned += n
	}
	return err
}

// remove removes what was condemned and is out of everybody's reach. lists is how many
// of them were lists.
func (c *collection) remove(ctx context.Context) (lists int, err error) {
	s := c.s
	f, err := s.fence()
	if err != nil {
		return 0, err
	}
	if c.opt.Now {
		limited, cancel := context.WithTimeout(ctx, s.cfg.Patience)
		err := s.transfers.wait(limited, f.mark)
		cancel()
		if err != nil && ctx.Err() != nil {
			return 0, context.Cause(ctx)
		}
	}
	var after index.Condemnation
	for begun := false; ; begun = true {
		var (
			found       []index.Condemnation
			until, aged = s.passed()
			now         = s.now()
		)
		err := s.view(func(r index.Reader) error {
			return r.EachCondemned(func(x index.Condemnation) error {
				switch {
				case begun && compareChunks(&x, &after) <= 0, x.Since > until, !c.opt.Now && x.Since > aged && !old(x.Time, now, s.cfg.Grace):
					return nil
				case len(found) == collectChunks:
					return errPage
				}
				found = append(found, x)
				return nil
			})
		})
		more := errors.Is(err, errPage)
		if err != nil && !more {
			return lists, err
		}
		if len(found) == 0 {
			return lists, nil
		}
		c.report(0, 0, "")
		after = found[len(found)-1]
		if err := c.prove(ctx); err != nil {
			return lists, err
		}
		for len(found) > 0 {
			k := 0
			for k < len(found) && k < removeAtOnce && found[k].Realm == found[0].Realm {
				k++
			}
			did, err := c.removeSome(ctx, found[:k])
			if lists += did; err != nil {
				return lists, err
			}
			found = found[k:]
		}
		if !more {
			return lists, nil
		}
	}
}

// old reports whether what happened at a time of the log is longer ago than d. A time that is
// not past yet says nothing: a clock has leapt.
func old(t int64, now time.Time, d time.Duration) bool {
	at := time.Unix(0, t)
	return now.Sub(at) >= d
}

func compareChunks(a, b *index.Condemnation) int {
	if a.Realm != b.Realm {
		return int(a.Realm) - int(b.Realm)
	}
	return slices.Compare(a.Chunk[:], b.Chunk[:])
}

// removeSome removes chunks of one realm: first those that are no lists, then lists, as
// many together as have few enough children.
func (c *collection) removeSome(ctx context.Context, in []index.Condemnation) (lists int, err error) {
	var kept []index.Condemnation // lists
	err = c.removeOne(ctx, in[0].Realm, func(d *decision, rec *record.Remove) (bytes uint64, err error) {
		kept = nil
		for _, x := range in {
			row, ok, err := condemned(d.round, x)
			switch {
			case err != nil:
				return 0, err
			case !ok:
			case row.Kind == seal.List:
				kept = append(kept, x)
			default:
				rec.Chunks = append(rec.Chunks, record.Removed{Chunk: x.Chunk, Since: x.Since})
				bytes += uint64(row.SealedLen)
			}
		}
		return bytes, nil
	})
	for err == nil && len(kept) > 0 {
		var looked, n int
		err = c.removeOne(ctx, in[0].Realm, func(d *decision, rec *record.Remove) (bytes uint64, err error) {
			looked, n = 0, 0
			children := 0
			for _, x := range kept {
				row, ok, err := condemned(d.round, x)
				if err != nil {
					return 0, err
				}
				if ok {
					cs, err := d.round.Children(x.Realm, x.Chunk)
					if err != nil {
						return 0, err
					}
					if children += len(cs); n > 0 && children > removeAtOnce {
						break
					}
					n++
					rec.Chunks = append(rec.Chunks, record.Removed{Chunk: x.Chunk, Since: x.Since})
					bytes += uint64(row.SealedLen)
				}
				looked++
			}
			return bytes, nil
		})
		kept = kept[looked:]
		lists += n
	}
	return lists, err
}

// condemned returns the row of a chunk that is still condemned since then.
func condemned(r index.Reader, x index.Condemnation) (row index.ChunkRow, ok bool, err error) {
	since, err := r.Condemned(x.Realm, x.Chunk)
	if errors.Is(err, index.ErrNotFound) || err == nil && since.Since != x.Since {
		return row, false, nil // it was revived
	}
	if err == nil {
		row, err = r.Chunk(x.Realm, x.Chunk)
	}
	if err == nil && row.Refs > 0 {
		err = fmt.Errorf("%w: a condemned chunk with %d edges", index.ErrDamaged, row.Refs)
	}
	return row, true, err
}

// removeOne is one submission; choose is asked for what it removes, maybe more than once.
func (c *collection) removeOne(ctx context.Context, realm id.Realm, choose func(*decision, *record.Remove) (bytes uint64, err error)) error {
	var (
		rec   *record.Remove
		bytes uint64
	)
	err := c.s.writer.submit(ctx, &submission{decide: func(d *decision) (func() error, error) {
		rec = &record.Remove{In: realm}
		var err error
		if bytes, err = choose(d, rec); err != nil {
			return nil, &fatalError{err}
		}
		return func() error {
			if len(rec.Chunks) == 0 {
				return nil
			}
			if err := d.round.Fill(rec); err != nil {
				return &fatalError{err}
			}
			return d.emit(rec)
		}, nil
	}})
	if err == nil {
		c.out.Removed += len(rec.Chunks)
		c.out.RemovedBytes += bytes
	}
	return err
}

// drop drops the packs in which no chunk lies any more, and tells the nodes.
func (c *collection) drop(ctx context.Context) error {
	s := c.s
	for {
		var ids []id.Pack
		err := s.view(func(r index.Reader) error {
			past, err := c.past(r)
			if err != nil {
				return err
			}
			head, err := r.Head()
			if err != nil {
				return err
			}
			return r.EachPack(func(p id.Pack, row index.PackRow) error {
				if !droppable(p, row, past, head.Pack) {
					return nil
				}
				if ids = append(ids, p); len(ids) == collectChunks {
					return errPage
				}
				return nil
			})
		})
		more := errors.Is(err, errPage)
		if err != nil && !more {
			return err
		}
		if len(ids) == 0 {
			return nil
		}
		c.report(0, 0, "")
		if err := c.prove(ctx); err != nil {
			return err
		}
		// What is dropped must not be needed by an index that a power cut takes back.
		if err := s.index.Sync(); err != nil {
			return err
		}
		for i, part := 0, slices.Collect(slices.Chunk(ids, dropAtOnce)); i < len(part); i++ {
			if err := c.dropSome(ctx, part[i]); err != nil {
				return err
			}
			c.report(uint64(min((i+1)*dropAtOnce, len(ids))), uint64(len(ids)), "packs")
		}
		if !more {
			return nil
		}
	}
}

// droppable reports whether a pack is needed no more: no chunk lies in it, and if it is
// of the log, the older of two snapshots stands behind it.
func droppable(p id.Pack, row index.PackRow, past uint64, head id.Pack) bool {
	if row.Residents > 0 || p == head {
		return false
	}
	return row.Kind == pack.Data || row.Kind == pack.Log && row.Seq <= past
}

// past is the sequence up to which the log may be cut: that of the older of two
// snapshots, if this process has read both whole.
func (c *collection) past(r index.Reader) (uint64, error) {
	kept, err := r.Snapshots()
	if err != nil || len(kept) < 2 || !c.s.wasRead(kept[0].Number) || !c.s.wasRead(kept[1].Number) {
		return 0, err
	}
	return kept[1].Number, nil
}

func (c *collection) dropSome(ctx context.Context, ids []id.Pack) error {
	s := c.s
	var (
		gone []id.Pack
		rows []index.PackRow
	)
	err := s.writer.submit(ctx, &submission{decide: func(d *decision) (func() error, error) {
		gone, rows = nil, nil
		past, err := c.past(d.round)
		if err != nil {
			return nil, &fatalError{err}
		}
		head, err := d.round.Head()
		if err != nil {
			return nil, &fatalError{err}
		}
		for _, p := range ids {
			row, err := d.round.Pack(p)
			if errors.Is(err, index.ErrNotFound) || err == nil && !droppable(p, row, past, head.Pack) {
				continue
			}
			free := false
			if err == nil {
				free, err = d.round.Vacant(p)
			}
			if err != nil {
				return nil, &fatalError{err}
			}
			if !free {
				return nil, &fatalError{fmt.Errorf("%w: pack %v counts no residents and has some", index.ErrDamaged, p)}
			}
			gone, rows = append(gone, p), append(rows, row)
		}
		return func() error {
			if len(gone) == 0 {
				return nil
			}
			return d.emit(&record.Drop{Packs: gone})
		}, nil
	}})
	if err != nil {
		return err
	}
	for _, row := range rows {
		c.dropped(row)
	}
	c.out.NotTold += s.deleteShards(ctx, gone, rows)
	return nil
}

// deleteShards tells the nodes to delete what the log has dropped, all at the same time.
// It returns how many shards they were not told of: one that hangs is told nothing more.
func (s *Store) deleteShards(ctx context.Context, ids []id.Pack, rows []index.PackRow) (notTold int) {
	type order struct {
		k    node.Key
		inst id.Instance
	}
	var (
		set  = s.members.Load()
		todo = map[*member][]order{}
		mu   sync.Mutex
		all  sync.WaitGroup
	)
	for i, row := range rows {
		for _, p := range row.Shards {
			if m := set.byID[p.Node]; m != nil {
				todo[m] = append(todo[m], order{node.Key{Pack: ids[i], Index: p.Index}, p.Instance})
			}
		}
	}
	for m, orders := range todo {
		next := make(chan order)
		for range min(deletesAtOnce, len(orders)) {
			all.Go(func() {
				for o := range next {
					err := error(nil)
					if !m.usable(s.now()) {
						err = node.ErrUnavailable
					} else if err = s.inTime(ctx, m, func() error { return m.st.Delete(ctx, s.auth, o.k, o.inst) }); err != nil && ctx.Err() == nil && !errors.Is(err, node.ErrNotFound) {
						m.noteError(err, s.now())
					}
					if err != nil && !errors.Is(err, node.ErrNotFound) {
						mu.Lock()
						notTold++
						mu.Unlock()
					}
				}
			})
		}
		all.Go(func() {
			defer close(next)
			for _, o := range orders {
				next <- o
			}
		})
	}
	all.Wait()
	return notTold
}

// waiting says what is left.
func (c *collection) waiting(ctx context.Context) error {
	left, err := c.s.countCondemned(ctx)
	if err != nil || left.chunks == 0 {
		return err
	}
	w := c.s.waiting(left)
	c.out.Waiting, c.out.WaitingBytes, c.out.WaitingUntil = w.Chunks, w.Bytes, &w.Until
	c.out.WaitingFor, c.out.OldestSeconds = w.Transfers, w.Oldest.Seconds()
	return nil
}

// condemnedChunks are those that are condemned.
type condemnedChunks struct {
	chunks int
	bytes  uint64 // sealed
	last   uint64 // sequence of the newest condemnation
	first  int64  // time of the oldest
}

// countCondemned reads all condemnations, and remembers what they add up to.
func (s *Store) countCondemned(ctx context.Context) (out condemnedChunks, err error) {
	if err := s.view(func(r index.Reader) error {
		return r.EachCondemned(func(x index.Condemnation) error {
			if err := context.Cause(ctx); err != nil {
				return err
			}
			row, err := r.Chunk(x.Realm, x.Chunk)
			if err != nil {
				return err
			}
			out.chunks++
			out.bytes += uint64(row.SealedLen)
			out.last = max(out.last, x.Since)
			if out.first == 0 || x.Time < out.first {
				out.first = x.Time
			}
			return nil
		})
	}); err != nil {
		return out, err
	}
	c := &s.collector
	c.mu.Lock()
	defer c.mu.Unlock()
	c.left = &out
	return out, nil
}

// waiting says what condemned chunks wait for now.
func (s *Store) waiting(left condemnedChunks) Waiting {
	w := Waiting{Chunks: left.chunks, Bytes: left.bytes, Until: time.Unix(0, left.first).Add(s.cfg.Grace)}
	if passed, _ := s.passed(); left.last > passed {
		w.Transfers, w.Oldest, _ = s.transfers.first()
	}
	return w
}
