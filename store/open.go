package store

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"math/rand/v2"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"cairn/id"
	"cairn/index"
	"cairn/index/kv"
	"cairn/node"
	"cairn/pack"
	"cairn/record"
	"cairn/seal"
)

// DefaultWidth is the most data shards that a pack gets when its bucket does not
// say otherwise.
const DefaultWidth = 4

// Store is an open store. See the package comment.
type Store struct {
	cfg     Config
	log     *slog.Logger
	now     func() time.Time
	auth    node.Authority
	coder   pack.Coder
	index   *index.Index
	members atomic.Pointer[memberSet]
	writer  *writer
	packs   *packs
	confirm confirmer
	buckets knownBuckets
	started time.Time

	workers  chan struct{} // one token for each chunk being hashed, compressed and sealed
	mem      *memory       // set by apportion, as packs is
	leases   leases
	chunks   bufferPool
	zstd     *seal.Compressor
	rand     [draws]io.Reader // nil: each user draws from crypto/rand by itself
	degraded atomic.Int64     // reads that had to be rebuilt from other shards
	// lost holds the packs that the last repair found lost.
	lost atomic.Pointer[map[id.Pack]bool]
	// lostLog is the highest sequence of a log pack that was found lost.
	lostLog atomic.Uint64
	// snapshotLost is set when a piece of a snapshot was found lost, until another one is
	// taken.
	snapshotLost atomic.Bool
	// marked is set once this process has marked chunks as damaged.
	marked atomic.Bool

	realmMu sync.Mutex
	realms  map[id.Realm]*realmKeys

	nodesMu sync.Mutex
	nodes   map[string]node.Store // open nodes by member name

	recentMu sync.Mutex
	recent   map[id.Pack][]record.Place // of the newest log packs
	order    []id.Pack

	loadedFrom uint64       // the number of the snapshot that was loaded by this start
	mismatches atomic.Int64 // what a rebuild found otherwise than the log names it
	givenUp    int          // see [Store.GivenUp]
	lostEnd    []*chainLink // above the tail, sent behind what cannot be read
	unproved   []string     // what was not given up with it, though it is above the tail: why
	skipped    []Loss       // what this process has given up of the log
	unheard    []string     // members that gave no answer when the log was listed, and why
	passedOver int64        // such of a rebuild that has ended, its counts made anew

	sure       sureClock
	transfers  transfers
	suspects   suspects
	collector  collector
	jobs       jobs
	scrubs     scrubs
	shares     atomic.Pointer[SharesPage] // of the last run of JobUsage; nil: there was none
	events     *events
	collecting chan struct{} // holds a token while a collection runs
	repairing  chan struct{} // holds a token while a repair runs; only one does
	wantRepair chan string   // what it is wanted for

	snapshotting chan struct{} // holds a token while a snapshot is taken
	wantSnapshot chan struct{}
	uploads      claims
	requests     claims
	wantClear    chan struct{}
	stopJobs     func()

	background sync.WaitGroup
	calls      sync.WaitGroup // writes that have been let in
	closeMu    sync.Mutex
	closing    bool // no write is let in any more
	closed     bool // nothing is started any more
	failure    error
	failed     chan struct{}
}

// Open takes the log over, brings the index up to it and begins a new epoch.
// When it returns nil, everything that was ever acknowledged is being served.
// After an error the nodes still belong to the caller; the engine is closed.
func Open(ctx context.Context, cfg Config) (*Store, error) {
	cfg.AcceptLoss = false // what serves goes past nothing
	s, err := newStore(cfg)
	if err != nil {
		return nil, err
	}
	if err := s.start(ctx); err != nil {
		return nil, errors.Join(err, s.index.Close())
	}
	s.tellLosses()
	if _, err := s.fence(); err != nil { // before the first transfer: none of another process lives
		return nil, errors.Join(err, s.index.Close())
	}
	if err := s.behindLosses(); err != nil {
		return nil, errors.Join(err, s.index.Close())
	}
	s.background.Go(s.writer.run)
	jobs, stop := context.WithCancelCause(context.Background())
	s.stopJobs = func() { stop(errJobStopped) }
	s.loadJobs(ctx)
	s.loadScrubs(ctx)
	if cfg.idle {
		return s, nil
	}
	s.background.Go(func() { s.watchLoop(jobs) })
	s.background.Go(func() { s.historyLoop(jobs) })
	s.background.Go(func() { s.usages(jobs, s.members.Load()) }) // how large the nodes are
	s.background.Go(func() { s.repairLoop(jobs) })
	s.background.Go(func() { s.drainLoop(jobs) })
	s.background.Go(func() { s.raiseLoop(jobs) })
	s.repairSoon(ByStart) // what an earlier run left short
	s.background.Go(func() { s.snapshotLoop(jobs) })
	s.snapshotSoon()
	s.background.Go(func() { s.checkLoop(jobs) })
	s.background.Go(func() { s.scheduleLoop(jobs) })
	s.background.Go(func() { s.clearLoop(jobs) })
	s.background.Go(func() { s.collectLoop(jobs) })
	s.background.Go(func() { s.countOnce(jobs) })
	return s, nil
}

// newStore builds a store that has asked no node anything yet.
func newStore(cfg Config) (s *Store, err error) {
	defer func() {
		if err != nil && s == nil && cfg.Engine != nil {
			err = errors.Join(err, cfg.Engine.Close())
		}
	}()
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.Workers <= 0 {
		cfg.Workers = runtime.GOMAXPROCS(0)
	}
	if cfg.Memory <= 0 {
		cfg.Memory = 512 << 20
	}
	if cfg.Grace <= 0 {
		cfg.Grace = CollectGrace
	}
	if cfg.KeepDeleted <= 0 {
		cfg.KeepDeleted = KeepDeleted
	}
	if cfg.Patience <= 0 {
		cfg.Patience = 10 * time.Second
	}
	if cfg.Lag <= 0 {
		cfg.Lag = 2 * time.Second
	}
	if cfg.UploadPart == 0 {
		cfg.UploadPart = 64 << 20
	}
	if cfg.SnapshotEvery == 0 {
		cfg.SnapshotEvery = snapshotLeast
	}
	if cfg.loseAtOnce == 0 {
		cfg.loseAtOnce = record.MaxLost
	}
	if cfg.walkAtOnce == 0 {
		cfg.walkAtOnce = damagedWalk
	}
	if cfg.ListWindow == 0 {
		cfg.ListWindow = listWindow
	}
	t := &Store{cfg: cfg, log: cfg.Log, now: cfg.Now, started: cfg.Now(), realms: map[id.Realm]*realmKeys{},
		nodes: maps.Clone(cfg.Nodes), recent: map[id.Pack][]record.Place{}, failed: make(chan struct{}), wantRepair: make(chan string, 1), repairing: make(chan struct{}, 1), wantSnapshot: make(chan struct{}, 1), snapshotting: make(chan struct{}, 1), wantClear: make(chan struct{}, 1), collecting: make(chan struct{}, 1), collector: collector{read: map[uint64]time.Time{}, bad: map[id.Pack]time.Time{}, narrow: map[id.Pack]int{}}}
	t.events = newEvents(cfg.Now)
	t.initJobs()
	t.zstd = &seal.Compressor{}
	if cfg.Rand != nil {
		for i := range t.rand {
			var seed [32]byte
			if _, err := io.ReadFull(cfg.Rand, seed[:]); err != nil {
				return nil, err
			}
			t.rand[i] = &lockedReader{r: rand.NewChaCha8(seed)}
		}
	}
	t.workers = make(chan struct{}, cfg.Workers)
	t.confirm.s = t
	t.coder = pack.Coder{Secrets: packSecrets{cfg.Keyring}, Pool: coderPool{&t.chunks}, Workers: cfg.Workers, Rand: t.rand[forSeals]}
	if t.auth.Writer, err = id.NewWriter(t.rand[forSeals]); err != nil {
		return nil, err
	}
	db, err := kv.Open(cfg.Engine, t.kvConfig())
	if err != nil {
		return nil, err
	}
	s = t
	if l := db.Limits(); l.Entries < roundKeys+submissionKeys || l.Bytes < roundRows+submissionRows {
		err := fmt.Errorf("%w: the index takes %d rows of %d bytes at a time, the log may bring %d of %d", ErrInvalid, l.Entries, l.Bytes, roundKeys+submissionKeys, roundRows+submissionRows)
		return nil, errors.Join(err, db.Close())
	}
	if s.index, err = index.Open(db, index.Config{Mismatch: func(m index.Mismatch) {
		if s.mismatches.Add(1) <= 20 {
			s.log.Error("rebuild: a record finds something else than it names", "sequence", m.Seq, "what", m.What)
		}
	}}); err != nil {
		return nil, errors.Join(err, db.Close())
	}
	return s, nil
}

// lockedReader lets many goroutines draw from one source.
type lockedReader struct {
	mu sync.Mutex
	r  io.Reader
}

func (l *lockedReader) Read(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return io.ReadFull(l.r, b)
}

// draw is what random bytes are for. A source that [Config.Rand] gives is divided by it,
// so that what happens at the same instant, in either order, draws the same for each.
type draw int

const (
	forSeals draw = iota
	forLog
	forData
	forJobs
	forUploads
	draws
)

// random is a source of randomness; nil stands for crypto/rand.
func (s *Store) random(what draw) io.Reader { return s.rand[what] }

// start is the walk of docs/protocol.md, section 3.
func (s *Store) start(ctx context.Context) error {
	set, err := s.loadMembers(ctx)
	if err != nil {
		return err
	}
	s.members.Store(set)
	if err := s.apportion(set.w()); err != nil {
		return err
	}
	s.passLostEnd()
	silent, err := s.promise(ctx, set)
	if err != nil {
		return err
	}
	s.log.Info("epoch promised", "epoch", s.auth.Epoch)
	indexHead, err := s.index.Head()
	if err != nil {
		return err
	}
	tail, v, err := s.findLog(ctx, set, indexHead, silent)
	if err != nil {
		return err
	}
	if tail == nil {
		return s.begin(ctx, set, indexHead, v)
	}
	defer tail.pack.Release()
	s.log.Info("log found", "index", indexHead.Seq, "tail", tail.link.h.Seq, "whole", tail.whole())
	if tail.link.h.Seq < indexHead.Seq {
		return fmt.Errorf("%w: the index has applied sequence %d, the log on the nodes ends at %d: sequences %d to %d are missing on the nodes. "+
			"Keep the index directory: it is the only record of them", ErrDivergent, indexHead.Seq, tail.link.h.Seq, tail.link.h.Seq+1, indexHead.Seq)
	}
	held, err := s.catchUp(ctx, v, tail, indexHead)
	if err != nil {
		return err
	}
	// A change of the node set that was cut short is finished by this start.
	rec, err := s.nodesRecord()
	if err != nil {
		return err
	}
	for _, l := range held {
		for _, r := range l.records {
			if n, ok := r.(*record.Nodes); ok {
				rec = *n
			}
		}
	}
	var also *memberSet
	if rec.Version > set.rec.Version {
		s.log.Info("finishing a change of the node set", "version", rec.Version)
		also = s.newSet(rec)
		if err := s.mem.widen(ctx, also.w()); err != nil {
			return err
		}
	}
	if err := s.writeBegin(ctx, set, also, tail, held, nil); err != nil {
		return err
	}
	// A member that was away when the node set changed learns of it now. Those
	// that cannot be told are told by the next start.
	now := s.members.Load()
	return s.spread(ctx, now, now.rec, 0)
}

// foundTail is the newest log pack, opened.
type foundTail struct {
	link   *chainLink
	pack   *pack.Tail
	places []record.Place // of its good shards
	rotten []string       // of those that a node has and that are not as they were written: where, and why
}

// rottenOf describes the shards of the tail that nodes list and that are not what was
// written: neither a kill nor a power cut leaves such.
func rottenOf(v *survey, l *chainLink, good []record.Place) (out []string) {
	for _, f := range l.found {
		if !slices.ContainsFunc(good, func(p record.Place) bool { return p.Node == f.m.info.ID && p.Index == f.idx }) {
			out = append(out, fmt.Sprintf("shard %d on node %s: it cannot be read, or is not what was written", f.idx, f.m.info.Name))
		}
	}
	for _, d := range v.damaged {
		if d.pos == l.h.Position() {
			out = append(out, fmt.Sprintf("a shard on node %s: %v", d.m.info.Name, d.err))
		}
	}
	return out
}

// whole reports whether every shard of the tail was read back.
func (t *foundTail) whole() bool {
	// Each shard on a node of its own: one that lies may show them all.
	var (
		holder = map[id.Node]int{} // which shard a node stands for
		tried  map[id.Node]bool
		settle func(shard int) bool
	)
	settle = func(shard int) bool {
		for _, p := range t.places {
			if int(p.Index) != shard || tried[p.Node] {
				continue
			}
			tried[p.Node] = true
			if other, taken := holder[p.Node]; !taken || settle(other) {
				holder[p.Node] = shard
				return true
			}
		}
		return false
	}
	for shard := range int(t.link.h.K) + int(t.link.h.M) {
		tried = map[id.Node]bool{}
		if !settle(shard) {
			return false
		}
	}
	return true
}

// openLink is a link that waits to be applied.
type openLink struct {
	h       pack.Header
	meta    pack.Meta
	records []record.Record
}

// findLog lists the log from the index's head on and finds its tail. When what
// is there does not reach the index's head, or hangs in the air, the whole log is
// listed before that is judged.
func (s *Store) findLog(ctx context.Context, set *memberSet, head index.Head, silent map[id.Node]error) (*foundTail, *survey, error) {
	from := max(head.Seq, 1)
	// A pack that was acknowledged is within one or two of the highest sequence.
	near := max(s.cfg.ListWindow/20, 4)
	if h := s.highest(ctx, set, silent); h > from+near {
		from = h - near
	}
	for {
		v := s.listChain(ctx, set, from, 0, maps.Clone(silent))
		link, t, places, err := s.findTail(ctx, v)
		switch {
		case err == nil && link != nil:
			return &foundTail{link: link, pack: t, places: places, rotten: rottenOf(v, link, places)}, v, nil
		case ctx.Err() != nil:
			return nil, v, context.Cause(ctx)
		case from == 1 || v.tooSilent():
			return nil, v, err
		}
		from = 1
	}
}

// catchUp applies the links behind the index's head and returns those that must
// wait until the begin pack is durable: nobody may have been told of the tail,
// nor, when the tail is itself a begin pack, of what it was written behind.
func (s *Store) catchUp(ctx context.Context, v *survey, tail *foundTail, head index.Head) ([]openLink, error) {
	if head.Seq == 0 {
		if err := s.index.BeginRebuild(ctx); err != nil {
			return nil, err
		}
		var ref snapshotRef
		if !s.cfg.WholeLog {
			o, err := s.openLink(ctx, tail.link, tail)
			if err != nil {
				return nil, err
			}
			ref = refOf(o.h, o.meta.Log, o.records)
		}
		var err error
		if head, err = s.restore(ctx, v, tail, ref); err != nil {
			return nil, err
		}
	}
	s.unheard = unheard(v)
	mode := s.mode()
	past := s.cfg.AcceptLoss && s.loadedFrom != 0 // a snapshot is loaded: nothing else leads past what is lost
	for cut := false; ; {
		links, err := s.chain(ctx, v, tail.link, head, past)
		if errors.Is(err, ErrDamaged) && s.cfg.ReplayTo != 0 && head.Seq == 0 && ctx.Err() == nil {
			// That far back neither snapshot goes; what they have passed may have been cut off.
			return nil, fmt.Errorf("%w: the log does not go back to sequence %d: name one that a snapshot is not past: %w", ErrInvalid, s.cfg.ReplayTo, err)
		}
		if errors.Is(err, ErrDamaged) && !cut && s.loadedFrom == 0 && ctx.Err() == nil {
			// Perhaps the log was cut there, and begins behind a snapshot.
			cut = true
			if head, err = s.restoreCut(ctx, v, tail, head, err); err == nil {
				mode = s.mode()
				continue
			}
		}
		if errors.Is(err, ErrDamaged) && s.cfg.AcceptLoss && !past && !errors.Is(err, ErrUnavailable) && !errors.Is(err, node.ErrUnavailable) && ctx.Err() == nil {
			s.log.Warn("log packs that cannot be read are given up", "err", err)
			past = true
			if err = s.index.BeginRebuild(ctx); err == nil {
				head, err = s.index.Head()
			}
			if err == nil {
				mode = s.mode()
				continue
			}
		}
		if err != nil {
			return nil, err
		}
		keep := len(links) - 1
		for keep > 0 && links[keep].begin {
			keep--
		}
		// find is the link of the chain at i; nil: it is there no more.
		find := func(i int) *chainLink {
			switch l := &links[i]; {
			case l.seq == tail.link.h.Seq:
				return tail.link
			case l.carried != nil:
				return l.carried
			default:
				if !v.covers(l.seq) {
					v = s.reach(ctx, v, l.seq, min(l.seq+s.cfg.ListWindow, tail.link.h.Seq))
				}
				return s.packOf(ctx, v, l.pack)
			}
		}
		var held []openLink
		bad := false
		for i := range links {
			if err := context.Cause(ctx); err != nil {
				return nil, err
			}
			if s.cfg.ReplayTo != 0 && links[i].seq > s.cfg.ReplayTo {
				return held, nil
			}
			at, run := i, links[i].lost
			if run != nil {
				at++ // what follows names the places of the last of them
			}
			l := find(at)
			if l == nil {
				return nil, fmt.Errorf("%w: the log pack of sequence %d cannot be read any more: pack %v; no answer from %s", ErrDamaged, links[at].seq, links[at].pack, explain(v.set.all, v.silent))
			}
			o, err := s.openLink(ctx, l, tail)
			if isNewerLog(err) {
				return nil, fmt.Errorf("the log pack of sequence %d: %w", l.h.Seq, err)
			}
			if err != nil {
				// It looked complete and does not open: perhaps a later begin pack
				// carries it.
				s.log.Error("a log pack does not open", "sequence", l.h.Seq, "err", err)
				if l.carried != nil || l == tail.link {
					return nil, fmt.Errorf("%w: the log pack of sequence %d: %w", ErrDamaged, l.h.Seq, err)
				}
				v.distrust(l, l.unopenable(), err)
				bad = true
				break
			}
			if run != nil {
				if err := s.giveUp(ctx, v, run, o); err != nil {
					return nil, err
				}
				mode = s.mode()
				continue
			}
			if i >= keep {
				held = append(held, o)
				continue
			}
			if err := s.index.Apply(linkOf(o.h, o.meta, o.records), mode); err != nil {
				return nil, fmt.Errorf("apply the log pack of sequence %d: %w", o.h.Seq, err)
			}
			s.progress("replay", l.h.Seq, tail.link.h.Seq)
			if (i+1)%1000 == 0 {
				s.log.Info("replaying the log", "sequence", l.h.Seq, "of", tail.link.h.Seq)
			}
		}
		if !bad {
			return held, nil
		}
		if head, err = s.index.Head(); err != nil {
			return nil, err
		}
	}
}

// openLink reads and opens one link of the chain. It holds the pack's memory no
// longer than that.
func (s *Store) openLink(ctx context.Context, l *chainLink, tail *foundTail) (openLink, error) {
	o := openLink{h: l.h}
	switch {
	case l == tail.link:
		o.meta = tail.pack.Meta
	case l.carried != nil:
		m, err := l.carried.Open()
		if err != nil {
			return o, err
		}
		o.meta = m
	default:
		t, _, err := s.readLink(ctx, l)
		if err != nil {
			return o, err
		}
		o.meta = t.Meta // its own memory
		t.Release()
	}
	var err error
	o.records, err = s.openBatches(l.h.Pack, o.meta.Log.Batches)
	return o, err
}

// findTail finds the newest link and opens it. A candidate of which no k' shards
// open counts as not complete, since a shard that was altered is no more than one
// that is missing; the nodes that must have altered theirs give no answer, and the
// next candidate is tried.
func (s *Store) findTail(ctx context.Context, v *survey) (*chainLink, *pack.Tail, []record.Place, error) {
	for {
		tail, err := s.tail(ctx, v)
		if err != nil || tail == nil {
			return nil, nil, nil, err
		}
		t, places, err := s.readLink(ctx, tail)
		if err == nil && len(places) > 0 {
			return tail, t, places, nil
		}
		if isNewerLog(err) {
			return nil, nil, nil, err
		}
		bad := tail.unopenable()
		if err == nil {
			bad = len(tail.found)
			// It opens, but no node has a shard of it as it was written: only lying
			// nodes hold it, so it was never acknowledged, and nothing could name it.
			t.Release()
			err = fmt.Errorf("%w: no shard of it is what was written", pack.ErrDamaged)
		}
		if cerr := context.Cause(ctx); cerr != nil {
			return nil, nil, nil, cerr
		}
		if errors.Is(err, node.ErrUnavailable) {
			bad = len(tail.found) // some could not be read: nothing is known of it
		}
		s.log.Error("a log pack looks complete and does not open", "position", tail.h.Position().String(), "err", err)
		v.distrust(tail, bad, err)
	}
}

// replay applies links that are open already.
func (s *Store) replay(ctx context.Context, links []openLink) error {
	mode := s.mode()
	for _, o := range links {
		if err := s.index.Apply(linkOf(o.h, o.meta, o.records), mode); err != nil {
			return fmt.Errorf("apply the log pack of sequence %d: %w", o.h.Seq, err)
		}
	}
	if !s.index.Rebuilding() {
		return nil
	}
	changed, err := s.index.EndRebuild(ctx)
	if err != nil {
		return fmt.Errorf("end of a rebuild: %w", err)
	}
	n := s.mismatches.Swap(0)
	s.passedOver += n
	if n > 0 || changed > 0 {
		s.log.Error("the log names what it did not find: an index of the past was damaged", "records", n, "counts mended", changed)
	}
	return nil
}

// mode says what happens to a record that finds something else than it names.
func (s *Store) mode() index.Mode {
	if s.index.Rebuilding() {
		return index.Rebuild
	}
	return index.Strict
}

// linkOf is a log pack in the index's terms.
func linkOf(h pack.Header, m pack.Meta, records []record.Record) index.Link {
	l := index.Link{Header: h, Entries: m.Entries, Prev: m.Log.Prev, Time: m.Log.Time, Records: records, Logged: linkWeight}
	for _, b := range m.Log.Batches {
		l.Logged += uint64(len(b.Body))
	}
	if m.Log.Begin != nil {
		for _, c := range m.Log.Begin.Carried {
			l.Carried = append(l.Carried, index.Carried{Pack: c.Header.Pack, Off: c.Off, Len: c.Len})
		}
	}
	return l
}

// begin starts the log of a new store, or resumes a first start that was cut
// short before its first pack was complete.
func (s *Store) begin(ctx context.Context, set *memberSet, head index.Head, v *survey) error {
	genesis := s.cfg.Genesis
	if head.Seq > 0 {
		return fmt.Errorf("%w: the index has applied sequence %d, and the nodes hold no log at all. Keep the index directory; are these the right node directories?", ErrDivergent, head.Seq)
	}
	if genesis == nil {
		return fmt.Errorf("%w: the nodes hold no log pack, and this is not a first start", ErrDamaged)
	}
	if len(v.silent) > 0 {
		return fmt.Errorf("%w: a first start needs every node; no answer from %s", ErrUnavailable, explain(set.all, v.silent))
	}
	for _, m := range set.all {
		if err := m.st.WriteFile(ctx, s.auth, node.KeyringFile, s.cfg.Keyring.Marshal()); err != nil {
			return err
		}
	}
	if err := s.spread(ctx, set, set.rec, len(set.all)); err != nil {
		return err
	}
	now := s.now().UnixNano()
	nodes := set.rec
	records := []record.Record{&nodes}
	for i, name := range genesis.Buckets {
		if err := checkBucketName(name); err != nil {
			return err
		}
		records = append(records, &record.BucketCreate{In: id.Main, Bucket: id.Bucket(i + 1), Name: name, Time: now})
	}
	return s.writeBegin(ctx, set, nil, nil, nil, records)
}

// writeBegin writes the first pack of this epoch at full width, applies it, and
// makes the writer ready. tail is nil for the first pack of a store.
func (s *Store) writeBegin(ctx context.Context, set, also *memberSet, tail *foundTail, held []openLink, records []record.Record) error {
	l := &linkPlan{seq: 1, time: s.now().UnixNano(), set: set, also: also, why: node.ForStart, begin: &pack.Begin{}, records: records}
	if tail != nil {
		// From the log, never from the index, which may not have applied the tail yet;
		// and when it has, the tail is not among what is held.
		o, err := s.openLink(ctx, tail.link, tail)
		if err != nil {
			return err
		}
		l.snapshot = refOf(o.h, o.meta.Log, o.records)
		for _, o := range held {
			if ref := refOf(o.h, o.meta.Log, o.records); ref.seq > l.snapshot.seq {
				l.snapshot = ref
			}
		}
	}
	for _, r := range records {
		b, err := record.Append(nil, r)
		if err != nil {
			return err
		}
		l.encoded = append(l.encoded, b)
	}
	if tail != nil {
		l.seq, l.prev, l.prevPlaces = tail.link.h.Seq+1, tail.link.h.Pack, tail.places
		l.time = max(l.time, tail.pack.Meta.Log.Time+1)
		l.begin.Retired = []id.Writer{tail.link.h.Writer}
		// A tail of which every shard was read back is as safe as anything that was
		// acknowledged. Otherwise this pack carries it, and what it carried itself.
		if !tail.whole() {
			carried, err := pack.Carry(tail.pack.Header, tail.pack.Meta, 0)
			if err != nil {
				return err
			}
			l.begin.Carried, l.payload = carried, tail.pack.Payload
		}
	}
	// Only the nodes have so much time: what follows takes as long as the index is large.
	limited, cancel := context.WithTimeout(ctx, s.cfg.Patience)
	defer cancel()
	var last error
	for {
		if limited.Err() != nil {
			return fmt.Errorf("%w: the first log pack of this start could not be made durable: %w", ErrUnavailable, errors.Join(last, context.Cause(limited)))
		}
		up := usable(logNodes(set, also), s.now())
		if need := len(set.log) - set.m(); len(up) < need && also == nil || len(up) <= l.w() {
			last = fmt.Errorf("%d of %d log nodes take writes, %d are needed; not up: %s", len(up), len(set.log), need, s.notUp(set.log))
			pause(limited)
			continue
		}
		var err error
		if l.pack, err = id.NewPack(s.random(forLog)); err != nil {
			return err
		}
		l.attempt++
		var sent bool
		h, at, meta, err := s.writeLink(limited, l, up, &sent)
		if err != nil {
			if !errors.Is(err, errNarrow) {
				return err
			}
			last = err
			pause(limited)
			continue
		}
		if err := s.replay(ctx, held); err != nil {
			return err
		}
		if err := s.index.Apply(linkOf(h, meta, records), index.Strict); err != nil {
			return fmt.Errorf("apply the first log pack of this start: %w", err)
		}
		s.remember(l.pack, at)
		applied, err := s.index.Head()
		if err != nil {
			return err
		}
		s.sure.start(applied.Clock, s.now(), time.Now())
		s.writer = &writer{s: s, head: head{seq: l.seq, pack: l.pack, time: l.time, places: at, snapshot: l.snapshot}, wake: make(chan struct{}, 1), idle: make(chan struct{})}
		break
	}
	if also != nil {
		if err := s.spreadCluster(ctx, set, also); err != nil {
			return err
		}
		s.members.Store(also)
	}
	return nil
}

// logNodes is where a log pack may go: with a change of the node set under way,
// the nodes that are log nodes of both sets.
func logNodes(set, also *memberSet) []*member {
	if also == nil {
		return set.log
	}
	var both []*member
	for _, m := range also.log {
		if slices.Contains(set.rec.LogNodes, m.info.ID) {
			both = append(both, m)
		}
	}
	return both
}

// remember keeps the places of a new log pack until the index has them.
func (s *Store) remember(p id.Pack, places []record.Place) {
	s.recentMu.Lock()
	defer s.recentMu.Unlock()
	const keep = 64
	s.recent[p] = places
	if s.order = append(s.order, p); len(s.order) > keep {
		delete(s.recent, s.order[0])
		s.order = s.order[1:]
	}
}

func (s *Store) recall(p id.Pack) []record.Place {
	s.recentMu.Lock()
	defer s.recentMu.Unlock()
	return s.recent[p]
}

// fail stops the store for good: nothing is written any more.
func (s *Store) fail(err error) {
	s.closeMu.Lock()
	defer s.closeMu.Unlock()
	if s.failure == nil {
		s.failure = err
		s.log.Error("the store stops taking writes", "err", err)
		close(s.failed)
	}
}

// Failed is closed when the store has stopped taking writes by itself: the
// process should end, and the next start will apply what the log holds.
func (s *Store) Failed() <-chan struct{} { return s.failed }

// Failure is why.
func (s *Store) Failure() error {
	s.closeMu.Lock()
	defer s.closeMu.Unlock()
	return s.failure
}

// spawn runs fn in the background, unless the store is closed.
func (s *Store) spawn(fn func()) bool {
	s.closeMu.Lock()
	defer s.closeMu.Unlock()
	if s.closed {
		return false
	}
	s.background.Go(fn)
	return true
}

// enter lets a write in; the result is called when it is over.
func (s *Store) enter() (leave func(), err error) {
	s.closeMu.Lock()
	defer s.closeMu.Unlock()
	switch {
	case s.closing:
		return nil, ErrClosed
	case s.failure != nil:
		return nil, fmt.Errorf("%w: %w", ErrUnavailable, s.failure)
	}
	s.calls.Add(1)
	return s.calls.Done, nil
}

// writable reports early what the log writer would say of a write now.
func (s *Store) writable() error {
	set := s.members.Load()
	up := usable(set.log, s.now())
	if need := len(set.log) - set.m(); len(up) < need || len(up) <= set.w() {
		return s.tooFew(set.log, len(up), need, false)
	}
	return nil
}

// notUp lists the members that take no writes, and why.
func (s *Store) notUp(ms []*member) string {
	out := ""
	for _, m := range ms {
		if state, why := m.state(s.now()); state != "up" {
			if out != "" {
				out += "; "
			}
			out += m.info.Name + " (" + state
			if why != nil {
				out += ": " + reasonOf(m.info.Name, why)
			}
			out += ")"
		}
	}
	return out
}

// Close lets the writes that run end, seals what is open, and closes the index.
// When ctx ends first, what still runs is refused or left as unknown.
func (s *Store) Close(ctx context.Context) error {
	s.closeMu.Lock()
	if s.closing {
		s.closeMu.Unlock()
		return ErrClosed
	}
	s.closing = true
	s.closeMu.Unlock()
	s.stopJobs()
	runs := s.jobs.stop() // those of requests too, which count among the calls
	done := make(chan struct{})
	go func() {
		s.calls.Wait()
		close(done)
	}()
	select {
	case <-done:
	case <-ctx.Done():
		s.writer.stop(ErrClosed, false)
	}
	s.lastSave(ctx, runs)
	s.packs.close()
	s.writer.stop(ErrClosed, true)
	<-s.writer.idle
	s.closeMu.Lock()
	s.closed = true
	s.closeMu.Unlock()
	s.background.Wait()
	s.events.close()
	return s.index.Close()
}
