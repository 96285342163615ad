package store

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"cairn/id"
	"cairn/index"
	"cairn/record"
)

// ScrubRate is how many bytes per second a scrub reads at the most when it is told
// nothing else; while clients are served it goes down to a quarter.
const ScrubRate = 32 << 20

const (
	scrubBucket   = ".scrub"
	scrubPage     = 4096            // IDs of packs that are held
	scrubSave     = time.Minute     // at the least, between two notes of how far a pass is
	scrubGather   = 5 * time.Second // for places of shards that were made anew to come together
	scrubFindings = 8               // that are told in words
	maxFinding    = 160             // bytes
)

// ScrubResult is what a pass of [JobScrub] found and did, in all the runs that it
// took so far. Damaged is Repaired, Left and Passing together.
type ScrubResult struct {
	Deep     bool `json:"deep"`
	Complete bool `json:"complete"` // every pack that there was when it began was read, and every node listed
	Runs     int  `json:"runs"`
	// Packs were read, as far as their nodes could be asked; dead ones, in which
	// nothing lies any more, were not. Bytes are those of shards that were right.
	Packs     int            `json:"packs"`
	DeadPacks int            `json:"dead_packs"`
	Shards    int            `json:"shards"`
	Chunks    int            `json:"chunks"` // opened
	Bytes     uint64         `json:"bytes_read"`
	Damaged   int            `json:"damaged"` // shards
	Repaired  int            `json:"repaired"`
	Passing   int            `json:"passing"` // read wrong once, and right the second time
	Left      int            `json:"left"`
	NotAsked  int            `json:"not_asked"` // shards of which nothing is known
	LostPacks int            `json:"lost_packs"`
	LostBytes uint64         `json:"lost_bytes"`  // of them that something refers to
	Broken    int            `json:"lost_chunks"` // in packs that are whole
	Seconds   float64        `json:"seconds"`
	Damage    map[string]int `json:"damage,omitempty"` // by kind
	// Before and After say how many packs had so many good shards, as they were found
	// and as they were left.
	Before   map[int]int `json:"packs_by_good_shards,omitempty"`
	After    map[int]int `json:"packs_by_good_shards_after,omitempty"`
	Findings []string    `json:"findings,omitempty"` // the first

	// Of the nodes' lists. None of it is damage, nor among Damaged. A dry run counts as
	// removed what it would remove.
	Orphans      int    `json:"orphans,omitempty"` // shards of packs that are no part of the store: removed
	OrphanBytes  uint64 `json:"orphan_bytes,omitempty"`
	Stale        int    `json:"stale,omitempty"` // copies of shards that lie elsewhere, and are right there: removed
	StaleBytes   uint64 `json:"stale_bytes,omitempty"`
	Renewed      int    `json:"renewed,omitempty"` // named, and of another instance than the index says: kept
	Foreign      int    `json:"foreign,omitempty"` // not written by this store: left alone
	ForeignBytes uint64 `json:"foreign_bytes,omitempty"`
	Undecided    int    `json:"undecided,omitempty"`  // named nowhere, and left to the next pass
	NotListed    int    `json:"not_listed,omitempty"` // nodes
	DryRun       bool   `json:"dry_run,omitempty"`
	// Found are chunks that were marked as damaged and are stored again.
	Found int `json:"found_chunks,omitempty"`

	names *strings.Replacer // of nodes, for findings; see [memberSet.naming]
}

// finding is what is told of an error: one line, with nodes by their names.
func finding(names *strings.Replacer, err error) string {
	text := strings.ReplaceAll(err.Error(), "\n", "; ")
	if names != nil {
		text = names.Replace(text)
	}
	return cutText(text, maxFinding)
}

func (r *ScrubResult) find(err error) {
	if len(r.Findings) < scrubFindings {
		r.Findings = append(r.Findings, finding(r.names, err))
	}
}

// fit leaves out findings until the result is as short as that of a job must be.
func (r *ScrubResult) fit() *ScrubResult {
	for len(r.Findings) > 0 {
		if b, err := json.Marshal(r); err == nil && len(b) <= maxJobResult {
			break
		}
		r.Findings = r.Findings[:len(r.Findings)-1]
	}
	return r
}

func (r *ScrubResult) count(kind string, n int) {
	if n > 0 {
		r.Damage[kind] += n
	}
}

// err says why a pass did not find everything sound, or make it so.
func (r *ScrubResult) err() error {
	var errs []error
	if n := r.LostPacks; n > 0 {
		errs = append(errs, fmt.Errorf("%w: %s lost for good", ErrDamaged, countOf(n, "pack is", "packs are")))
	}
	if n := r.Broken; n > 0 {
		errs = append(errs, fmt.Errorf("%w: %s open, in packs that are as they were written", ErrDamaged, countOf(n, "chunk does not", "chunks do not")))
	}
	if n := r.Left; n > 0 {
		errs = append(errs, fmt.Errorf("%w: %s left damaged", ErrDamaged, countOf(n, "shard is", "shards are")))
	}
	if n := r.NotAsked; n > 0 {
		errs = append(errs, fmt.Errorf("%w: %s could not be read, of which nothing is known", ErrUnavailable, countOf(n, "shard", "shards")))
	}
	if n := r.NotListed; n > 0 {
		errs = append(errs, fmt.Errorf("%w: %s could not be asked what they hold", ErrUnavailable, countOf(n, "node", "nodes")))
	}
	return errors.Join(errs...)
}

// ScrubPass is the last complete pass of a depth.
type ScrubPass struct {
	Deep  bool      `json:"deep"`
	Began time.Time `json:"began"`
	Ended time.Time `json:"ended"`
	Left  int       `json:"left"` // shards that it left damaged
	Lost  int       `json:"lost"` // packs, and chunks of whole packs
}

// scrubState is what is kept of the passes of one depth, as docs/protocol.md, section
// 11, says.
type scrubState struct {
	Last *ScrubPass `json:"last,omitempty"`
	// The pass under way, if there is one: it goes on behind Cursor.
	Began  time.Time    `json:"began,omitzero"`
	Cursor string       `json:"cursor,omitempty"`
	Pass   *ScrubResult `json:"pass,omitempty"`
	// Losses is the mark of what had been given up of the log when the pass began, and
	// Unsure says that it met what it cannot tell the need of; see [Store.lossMark].
	Losses string `json:"losses,omitempty"`
	Unsure bool   `json:"unsure,omitempty"`
	// Settled is the mark of losses behind which a whole pass has found all that there
	// was of them: what no row names by then is needed by nothing.
	Settled string `json:"settled,omitempty"`
}

// scrubs is what this process knows of passes.
type scrubs struct {
	mu     sync.Mutex
	states map[bool]scrubState // by depth: deep or not
	lost   map[id.Pack]bool    // packs that were found lost
	broken map[chunkKey]bool   // chunks that do not open, in packs that are whole; at most maxBroken
}

func scrubKey(deep bool) string {
	if deep {
		return "deep"
	}
	return "light"
}

// loadScrubs reads how far passes were. A store serves without it as well.
func (s *Store) loadScrubs(ctx context.Context) {
	s.scrubs.states = map[bool]scrubState{}
	in, err := s.hiddenBucket(ctx, scrubBucket, false)
	if err == nil {
		err = s.eachHidden(ctx, in, index.ListOptions{}, func(page index.Page) error {
			for _, o := range page.Objects {
				for _, deep := range []bool{false, true} {
					if o.Key != scrubKey(deep) {
						continue
					}
					st, err := parseScrub(o.Attrs.User)
					if err != nil {
						return err
					}
					s.scrubs.states[deep] = st
				}
			}
			return nil
		})
	}
	if err != nil && !errors.Is(err, ErrNoBucket) {
		s.log.Warn("how far scrubs were is not known: they begin anew", "err", err)
	}
}

func parseScrub(fields []record.UserField) (st scrubState, err error) {
	for _, f := range fields {
		if f.Name != "state" {
			continue
		}
		if err := json.Unmarshal([]byte(f.Value), &st); err != nil {
			return scrubState{}, fmt.Errorf("%w: state of a scrub: %w", ErrDamaged, err)
		}
		if st.Pass == nil {
			continue
		}
		if _, err := id.ParsePack(st.Cursor); err != nil {
			return scrubState{}, fmt.Errorf("%w: state of a scrub: %w", ErrDamaged, err)
		}
	}
	return st, nil
}

// saveScrub notes how far a pass is, when clients' writes are taken.
func (s *Store) saveScrub(ctx context.Context, deep bool, st scrubState) error {
	if err := cmp.Or(s.Failure(), s.takesData()); err != nil {
		s.keepScrub(deep, st)
		return err
	}
	return s.noteScrub(ctx, deep, st, true)
}

func (s *Store) keepScrub(deep bool, st scrubState) {
	s.scrubs.mu.Lock()
	defer s.scrubs.mu.Unlock()
	s.scrubs.states[deep] = st
}

// noteScrub notes how far a pass is. Unless it is refused as clients' writes are, it may
// take the room that is left for the log.
func (s *Store) noteScrub(ctx context.Context, deep bool, st scrubState, client bool) error {
	s.keepScrub(deep, st)
	b, err := json.Marshal(st)
	if err != nil {
		return err
	}
	in, err := s.hiddenBucket(ctx, scrubBucket, true)
	if err != nil {
		return err
	}
	return s.writer.submit(ctx, &submission{client: client, decide: func(d *decision) (func() error, error) {
		p := &put{b: in, rec: record.Put{In: in.Realm, Bucket: in.ID, Key: []byte(scrubKey(deep)), Attrs: record.Attrs{User: []record.UserField{{Name: "state", Value: string(b)}}}}}
		return p.decide(d)
	}})
}

// known says of a pack whether too few of its shards are left for good.
func (c *scrubs) known(p id.Pack) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.lost[p]
}

// noteBroken takes in whether a chunk of a pack that is whole opens.
func (c *scrubs) noteBroken(k chunkKey, broken bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case !broken:
		delete(c.broken, k)
	case c.broken == nil:
		c.broken = map[chunkKey]bool{k: true}
	case len(c.broken) < maxBroken:
		c.broken[k] = true
	}
}

func (c *scrubs) isBroken(k chunkKey) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.broken[k]
}

func (c *scrubs) anyLost() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.lost) > 0
}

func (c *scrubs) note(p id.Pack, lost bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !lost {
		delete(c.lost, p)
		return
	}
	if c.lost == nil {
		c.lost = map[id.Pack]bool{}
	}
	c.lost[p] = true
}

// scrubbing is one run of a scrub.
type scrubbing struct {
	s     *Store
	opt   JobOptions
	res   *ScrubResult
	state scrubState
	saved time.Time
	pace  pacer

	// Shards that were made anew, written and read back, and are not logged yet. While
	// there are any, no repair runs beside it.
	batch         []mended
	shards, bytes int
	chunks        int // that can be read again
	since         time.Time
	holds         bool // the token of repairs

	losses  bool    // something was given up of the log
	settled bool    // and keeps no orphan any more
	lost    rescued // while nodes' lists are held against the index

	// Packs that cannot be read and of which no chunk is marked: a copy in an orphan may be
	// the only one.
	doubt    map[id.Pack]bool
	doubtAll bool
}

// lossMark names all that was ever given up of the log, "" for nothing. Another loss, or
// the same one accepted again in another index, has another mark.
func (s *Store) lossMark() (string, error) {
	losses, err := s.Losses()
	if err != nil || len(losses) == 0 {
		return "", err
	}
	h := sha256.New()
	for _, l := range losses {
		fmt.Fprintf(h, "%d %d %v %d %d\n", l.From, l.To, l.Pack, l.Epoch, l.Accepted)
	}
	return hex.EncodeToString(h.Sum(nil)[:16]), nil
}

// settled reports whether a pass of either depth has settled the losses of a mark.
func (c *scrubs) settled(mark string) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return mark == "" || c.states[false].Settled == mark || c.states[true].Settled == mark
}

// runScrub is one run of [JobScrub].
func (s *Store) runScrub(ctx context.Context, r *run) (any, error) {
	r.found()
	res, err := s.scrub(ctx, r.Options, func(done, total uint64) { r.report(done, total, "packs") })
	res.fit()
	switch {
	case ctx.Err() != nil:
	case err != nil:
		s.log.Error("a scrub ended, and not all is well", "deep", res.Deep, "packs", res.Packs, "damaged", res.Damaged, "repaired", res.Repaired, "left", res.Left, "lost", res.LostPacks, "not asked", res.NotAsked, "err", err)
	case res.Damaged > 0:
		s.log.Warn("a scrub found damage and repaired it", "deep", res.Deep, "packs", res.Packs, "repaired", res.Repaired, "passing", res.Passing)
	default:
		s.log.Info("a scrub found everything sound", "deep", res.Deep, "packs", res.Packs)
	}
	if res.Orphans+res.Stale+res.Foreign > 0 {
		s.log.Info("shards that no row names", "dry run", res.DryRun, "orphans", res.Orphans, "orphan bytes", res.OrphanBytes, "stale", res.Stale, "stale bytes", res.StaleBytes, "foreign", res.Foreign, "undecided", res.Undecided)
	}
	return res, err
}

// scrub reads every shard of every pack against its digest, in the order of the packs'
// IDs, and makes anew what is missing or damaged on members that are up: from others
// that match their digests, each chunk opened, and counted once it was read back and
// logged. A node that could not be asked is no damage; it leaves the pass incomplete.
// One pack is in memory at a time, in the share for that. Then the nodes' lists are held
// against the index, and what is named nowhere and never will be is removed. A pass that
// was cut off goes on where it was; a dry run changes nothing, and begins anew each time.
func (s *Store) scrub(ctx context.Context, opt JobOptions, report func(done, total uint64)) (*ScrubResult, error) {
	sc := &scrubbing{s: s, opt: opt, saved: time.Now(), pace: pacer{s: s, rate: cmp.Or(opt.Rate, ScrubRate)}}
	sc.state = s.scrubs.state(opt.Deep)
	mark, err := s.lossMark()
	if err != nil {
		return &ScrubResult{Deep: opt.Deep, DryRun: opt.DryRun}, err
	}
	sc.losses, sc.settled = mark != "", s.scrubs.settled(mark)
	cursor := id.Pack{}
	// What a pass read before a part of the log was given up says nothing of rows that the
	// rest of the log had changed.
	if sc.state.Pass != nil && !opt.DryRun && sc.state.Losses == mark {
		cursor, _ = id.ParsePack(sc.state.Cursor) // which was looked at when it was read
		sc.res = sc.state.Pass.clone()
		// Which packs they were is not known any more.
		sc.doubtAll = sc.state.Unsure || sc.res.NotAsked > 0
	} else {
		sc.state = scrubState{Last: sc.state.Last, Settled: sc.state.Settled, Began: s.now(), Losses: mark}
		sc.res = &ScrubResult{Deep: opt.Deep, DryRun: opt.DryRun, Damage: map[string]int{}, Before: map[int]int{}, After: map[int]int{}}
	}
	sc.res.names = s.members.Load().naming()
	sc.res.Runs++
	began, before := time.Now(), sc.res.Seconds
	cursor, err = sc.walk(ctx, cursor, report)
	if err == nil {
		err = sc.compare(ctx, cursor)
	}
	sc.res.Seconds = before + time.Since(began).Seconds()
	if err != nil {
		// What is written is not thrown away, and what was read is not read again.
		after := context.WithoutCancel(ctx)
		if ferr := sc.flush(after); ferr != nil {
			return sc.res, errors.Join(err, ferr)
		}
		if !cursor.IsZero() {
			sc.save(after, cursor)
		}
		return sc.res, err
	}
	sc.res.Complete = sc.res.NotAsked+sc.res.NotListed == 0
	if opt.DryRun {
		return sc.res, sc.res.err()
	}
	st := scrubState{Last: sc.state.Last, Settled: sc.state.Settled}
	if sc.res.Complete && !sc.state.Unsure {
		st.Settled = mark
	}
	if sc.res.Complete {
		st.Last = &ScrubPass{Deep: opt.Deep, Began: sc.state.Began, Ended: s.now(), Left: sc.res.Left, Lost: sc.res.LostPacks + sc.res.Broken}
	}
	if err := s.saveScrub(context.WithoutCancel(ctx), opt.Deep, st); err != nil && !errors.Is(err, ErrClosed) {
		s.log.Warn("that a scrub has ended is not noted: a restart will not know it", "err", err)
	}
	return sc.res, sc.res.err()
}

func (r *ScrubResult) clone() *ScrubResult {
	out := *r
	out.Findings = slices.Clone(r.Findings)
	copied := func(m map[int]int) map[int]int {
		c := map[int]int{}
		for k, v := range m {
			c[k] = v
		}
		return c
	}
	out.Before, out.After, out.Damage = copied(r.Before), copied(r.After), map[string]int{}
	for k, v := range r.Damage {
		out.Damage[k] = v
	}
	return &out
}

// walk scrubs the packs behind the cursor, and returns the last one that it is
// through with.
func (sc *scrubbing) walk(ctx context.Context, cursor id.Pack, report func(done, total uint64)) (id.Pack, error) {
	s := sc.s
	for {
		var (
			ids   []id.Pack
			head  id.Pack
			total uint64
		)
		if err := s.view(func(r index.Reader) error {
			t, err := r.Totals()
			if err != nil {
				return err
			}
			total = t.Packs
			err = r.EachPack(func(p id.Pack, _ index.PackRow) error {
				if slices.Compare(p[:], cursor[:]) > 0 {
					ids = append(ids, p)
				}
				if len(ids) == scrubPage {
					return errStop
				}
				return nil
			})
			if errors.Is(err, errStop) {
				err = nil
			}
			return err
		}); err != nil {
			return cursor, err
		}
		if len(ids) == 0 {
			return cursor, sc.flush(context.WithoutCancel(ctx))
		}
		for _, p := range ids {
			if err := context.Cause(ctx); err != nil {
				return cursor, err
			}
			if err := s.view(func(r index.Reader) error {
				h, err := r.Head()
				head = h.Pack
				return err
			}); err != nil {
				return cursor, err
			}
			if p == head {
				// New places of the log's newest pack cannot be logged. The note makes
				// another one the newest.
				if err := sc.flush(context.WithoutCancel(ctx)); err != nil {
					return cursor, err
				}
				sc.save(ctx, cursor)
			}
			if err := sc.pack(ctx, p); err != nil {
				return cursor, err
			}
			cursor = p
			done := uint64(sc.res.Packs + sc.res.DeadPacks)
			report(done, max(done, total))
			if len(sc.batch) > 0 && (sc.shards >= repairShards || sc.bytes >= repairBytes || sc.chunks >= repairChunks || time.Since(sc.since)+4*sc.pace.due > scrubGather) || time.Since(sc.saved) > scrubSave {
				if err := sc.flush(context.WithoutCancel(ctx)); err != nil {
					return cursor, err
				}
			}
			if time.Since(sc.saved) > scrubSave {
				sc.save(ctx, cursor)
			}
			if err := sc.pace.pause(ctx); err != nil {
				return cursor, err
			}
		}
	}
}

// save notes how far the pass is; nothing of it waits to be logged.
func (sc *scrubbing) save(ctx context.Context, cursor id.Pack) {
	if sc.opt.DryRun {
		return
	}
	sc.mark(cursor)
	if err := sc.s.saveScrub(ctx, sc.opt.Deep, sc.state); err != nil && !errors.Is(err, ErrClosed) {
		sc.s.log.Warn("how far a scrub is is not noted: after a restart it goes on from before", "err", err)
	}
}

// mark takes into the state how far the pass is.
func (sc *scrubbing) mark(cursor id.Pack) {
	sc.saved = time.Now()
	sc.state.Cursor, sc.state.Pass = cursor.String(), sc.res.clone().fit()
}

// pack scrubs one pack.
func (sc *scrubbing) pack(ctx context.Context, p id.Pack) error {
	l, err := sc.s.look(ctx, p, sc.opt.Deep)
	if err != nil || l == nil {
		return err
	}
	found := l.bad
	sc.pace.did(l.bytes)
	if len(found) == 0 && !l.unreadable() && !l.marked {
		defer l.release()
		sc.count(p, l)
		if !l.dead {
			sc.res.Before[l.shards()]++
			sc.res.After[l.shards()]++
		}
		return nil
	}
	sc.res.Bytes += l.bytes
	l.release()
	return sc.mend(ctx, p, found)
}

// maxDoubt bounds the packs that are remembered as in doubt.
const maxDoubt = 1 << 16

// doubts says of a pack that it cannot be read, and that its chunks are not marked.
func (sc *scrubbing) doubts(p id.Pack) {
	if sc.doubt == nil {
		sc.doubt = map[id.Pack]bool{}
	}
	if len(sc.doubt) == maxDoubt {
		sc.doubtAll = true
		return
	}
	sc.doubt[p] = true
}

// unsure is doubts of a pack that the nodes were asked for.
func (sc *scrubbing) unsure(p id.Pack) {
	sc.state.Unsure = true
	sc.doubts(p)
}

// count takes in what was looked at and is not damage of shards.
func (sc *scrubbing) count(p id.Pack, l *look) {
	r := sc.res
	if l.dead {
		r.DeadPacks++
		sc.s.scrubs.note(p, false)
		return
	}
	r.Packs++
	r.Shards += len(l.good)
	r.Chunks += l.chunks
	r.Bytes += l.bytes
	r.NotAsked += len(l.notAsked)
	for _, err := range l.notAsked {
		r.find(fmt.Errorf("not asked: %w", err))
	}
	for _, b := range l.broken {
		r.Broken++
		sc.s.scrubs.noteBroken(b.chunk, true)
		r.count(b.kind, 1)
		r.find(b.err)
	}
	if l.shards() >= l.g.k {
		sc.s.scrubs.note(p, false)
	} else if !l.lost {
		sc.doubts(p)
	}
}
