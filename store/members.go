package store

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"cairn/id"
	"cairn/node"
	"cairn/pack"
	"cairn/placement"
	"cairn/record"
)

// member is a node of the store as this process sees it.
type member struct {
	info record.Member
	st   node.Store // nil: it could not be opened

	mu      sync.Mutex
	hanging int       // reads that did not come back in time
	pending int       // puts that lag so far behind that another node took their place
	downTil time.Time // not asked to write before this
	fullTil time.Time // said that it has no room for client data; not asked before this
	fullWhy error     // its words
	failed  bool      // could not take its newest shard: until it takes one it is not called up
	gone    bool      // the directory is not the one that was opened, or never was
	reason  error     // why it is not up
	closed  bool      // it is about to be removed: nothing may be placed on it any more
	total   int64     // bytes of its filesystem, as it said last; 0: not known yet
	device  uint64    // that its filesystem is on
	disk    string    // for placement, while no label says it
	weight  float64   // for placement
}

// retryAfter is how long a node that answered with an error is left alone.
const retryAfter = time.Second

// usable reports whether new shards may go to the member now.
func (m *member) usable(now time.Time) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.st != nil && !m.gone && m.pending == 0 && now.After(m.downTil)
}

// takesData reports whether shards of clients' data may go to the member now.
func (m *member) takesData(now time.Time) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return !now.Before(m.fullTil)
}

// noRoom is why the member takes nothing, or with data set no clients' data, for
// want of room; nil when that is not the reason.
func (m *member) noRoom(data bool, now time.Time) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	switch {
	case m.st == nil || m.gone:
		return nil
	case !now.After(m.downTil) && errors.Is(m.reason, node.ErrFull):
		return m.reason
	case data && now.Before(m.fullTil):
		return m.fullWhy
	}
	return nil
}

// readable reports whether asking the member makes sense at all.
func (m *member) readable() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.st != nil && !m.gone
}

// noteError remembers what an error says about the member itself.
func (m *member) noteError(err error, now time.Time) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.note(err, now)
}

// notePut is noteError of a put for a purpose.
func (m *member) notePut(why node.Purpose, err error, now time.Time) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if errors.Is(err, node.ErrFull) && (why == node.ForClient || why == node.ForCompaction) {
		// Below the mark of client data it still takes log packs: deletes go on. What has no
		// room for data that is rewritten has less than that.
		m.fullWhy, m.fullTil = err, now.Add(retryAfter)
		return
	}
	if errors.Is(err, node.ErrFull) && why != node.ForLog && why != node.ForStart {
		return // nor does a snapshot or a repair that finds no room say anything of the log
	}
	// That a second has gone by makes no dead disk well, and a dead disk may go on
	// answering how much room it has.
	m.failed = errors.Is(err, node.ErrUnavailable)
	m.note(err, now)
}

func (m *member) note(err error, now time.Time) {
	m.reason = err
	if errors.Is(err, node.ErrMissing) {
		m.gone = true
		return
	}
	// Whatever it was, asking the same node again at once would only fail again.
	m.downTil = now.Add(retryAfter)
}

// noteRead is noteError of a read: one rotten or absent shard does not make a bad
// node.
func (m *member) noteRead(err error, now time.Time) {
	if errors.Is(err, node.ErrUnavailable) || errors.Is(err, node.ErrMissing) {
		m.noteError(err, now)
	}
}

func (m *member) noteSuccess() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.failed = false
	if m.pending == 0 && !m.gone {
		m.reason = nil
	}
}

// readHangs notes that a read did not come back in time, or has come back at last.
func (m *member) readHangs(yes bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if yes {
		m.hanging++
	} else {
		m.hanging--
	}
}

// hangs reports whether the member owes an answer to a read or a put.
func (m *member) hangs() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.hanging > 0 || m.pending > 0
}

// owes is how many reads did not come back in time and have not come back since.
func (m *member) owes() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.hanging
}

func (m *member) lag(by int) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.pending += by
	if m.pending > 0 {
		m.reason = errors.New("slower than the other nodes")
	} else if !m.gone && !m.failed {
		m.reason = nil
	}
}

// putFailed reports whether the member could not take its newest shard.
func (m *member) putFailed() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.failed
}

// state says in one word how the member is, and why when it is not up.
func (m *member) state(now time.Time) (string, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	switch {
	case m.st == nil || m.gone:
		return "missing", m.reason
	case m.pending > 0:
		return "slow", m.reason
	case !now.After(m.downTil) && errors.Is(m.reason, node.ErrFull):
		return "full", m.reason
	case m.failed || !now.After(m.downTil):
		return "down", m.reason
	case now.Before(m.fullTil):
		return "full", m.fullWhy
	}
	return "up", nil
}

// memberSet is the node set in force. It is replaced whole, never changed.
type memberSet struct {
	rec    record.Nodes
	byID   map[id.Node]*member
	byName map[string]*member
	all    []*member // by name
	log    []*member // log nodes, by name
	takers []*member // those that are not draining: new shards go to them, by name
}

func newMemberSet(rec record.Nodes, open func(record.Member) *member) *memberSet {
	s := &memberSet{rec: rec, byID: map[id.Node]*member{}, byName: map[string]*member{}}
	for _, info := range rec.Members {
		m := open(info)
		s.byID[info.ID], s.byName[info.Name] = m, m
		s.all = append(s.all, m)
	}
	slices.SortFunc(s.all, func(a, b *member) int { return cmp.Compare(a.info.Name, b.info.Name) })
	for _, m := range s.all {
		if slices.Contains(rec.LogNodes, m.info.ID) {
			s.log = append(s.log, m)
		}
		if !s.draining(m) {
			s.takers = append(s.takers, m)
		}
	}
	s.weigh()
	return s
}

// draining reports whether a member is being drained: it is read, and takes no new
// shards. The set knows, and not the member, which two sets may share.
func (s *memberSet) draining(m *member) bool {
	i := slices.IndexFunc(s.rec.Members, func(x record.Member) bool { return x.ID == m.info.ID })
	return i >= 0 && slices.Contains(s.rec.Members[i].Labels, drainLabel)
}

// weigh gives the members their weights: what the record says, in GiB, or a fair part
// of the filesystem that a member shares with others. The weight of one whose size is
// not known yet is the mean of the others'.
func (s *memberSet) weigh() {
	on := map[uint64]int{} // members by device
	for _, m := range s.all {
		if total, device := m.size(); total > 0 {
			on[device]++
		}
	}
	weights, sum, known := make([]float64, len(s.all)), 0.0, 0
	for i, m := range s.all {
		total, device := m.size()
		switch {
		case m.info.Weight > 0:
			weights[i] = float64(m.info.Weight)
		case total > 0:
			weights[i] = max(float64(total)/(1<<30)/float64(on[device]), leastWeight)
		default:
			continue
		}
		sum, known = sum+weights[i], known+1
	}
	for i, m := range s.all {
		if weights[i] == 0 {
			weights[i] = 1
			if known > 0 {
				weights[i] = sum / float64(known)
			}
		}
		m.mu.Lock()
		m.weight = weights[i]
		m.mu.Unlock()
	}
}

// leastWeight is what the smallest filesystem weighs, in GiB: that of a member is above 0.
const leastWeight = 1e-3

// size is how large the member's filesystem is, in bytes, 0 when that is not known, and
// which it is.
func (m *member) size() (total int64, device uint64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.total, m.device
}

// weighs is how much the member is to hold beside others, in GiB.
func (m *member) weighs() float64 {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.weight
}

// noteUsage remembers what a member said of its filesystem.
func (m *member) noteUsage(u node.Usage) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.disk == "" || m.device != u.Device {
		m.disk = fmt.Sprintf("device %d", u.Device)
	}
	m.total, m.device = u.TotalBytes, u.Device
}

// close says that nothing may be placed on the member any more, or that it may again.
func (m *member) close(yes bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.closed = yes
}

func (m *member) isClosed() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.closed
}

// m is how many losses are survived: quorums and promises go by it.
func (s *memberSet) m() int { return int(s.rec.M) }

// w is how many losses what is written now is coded for: m, or more while m is being
// raised (docs/protocol.md, section 5.5).
func (s *memberSet) w() int { return int(max(s.rec.M, s.rec.Want)) }

// raising reports whether m is being raised.
func (s *memberSet) raising() bool { return s.w() > s.m() }

// usable returns the members among ms that take writes now.
func usable(ms []*member, now time.Time) []*member {
	var out []*member
	for _, m := range ms {
		if m.usable(now) {
			out = append(out, m)
		}
	}
	return out
}

// taking returns the members among ms that take clients' data now.
func taking(ms []*member, now time.Time) []*member {
	return slices.DeleteFunc(slices.Clone(ms), func(m *member) bool { return !m.takesData(now) })
}

// shortage says that too few members take a write, and wraps what is known of
// their room.
type shortage struct {
	text       string
	kind, room error
}

func (e *shortage) Error() string { return e.kind.Error() + ": " + e.text }
func (e *shortage) Unwrap() []error {
	if e.room == nil {
		return []error{e.kind}
	}
	return []error{e.kind, e.room}
}

// tooFew says that of ms only so many take a write, clients' data when data is
// set. It is ErrFull when with those that have no room there would be enough, else
// ErrUnavailable.
func (s *Store) tooFew(ms []*member, takes, need int, data bool) error {
	what := "log nodes take writes"
	if data {
		what = "nodes take clients' data"
	}
	e := &shortage{kind: ErrUnavailable, text: fmt.Sprintf("%d of %d %s, %d are needed; not up: %s", takes, len(ms), what, need, s.notUp(ms))}
	full := 0
	for _, m := range ms {
		if why := m.noRoom(data, s.now()); why != nil {
			full++
			e.room = cmp.Or(e.room, why)
		}
	}
	if full > 0 && takes+full >= need {
		e.kind = ErrFull
	}
	return e
}

// room says whether the index's filesystem has room for a write.
func (s *Store) room(why node.Purpose) error {
	if s.cfg.Room == nil {
		return nil
	}
	err := s.cfg.Room(why)
	switch {
	case err == nil:
		return nil
	case errors.Is(err, node.ErrFull):
		return fmt.Errorf("%w: %w", ErrFull, err)
	}
	return fmt.Errorf("%w: the room for the index: %w", ErrUnavailable, err)
}

// roomForData says before a body is read what would be said of it afterwards.
func (s *Store) roomForData() error {
	if err := s.room(node.ForClient); err != nil {
		return err
	}
	set := s.members.Load()
	up := usable(set.takers, s.now())
	if takes := len(taking(up, s.now())); takes <= set.w() && len(up) > set.w() {
		return s.tooFew(set.takers, takes, set.w()+1, true)
	}
	return nil
}

// candidate turns a member into placement's terms. Members on one device of which no
// label says a disk are on one disk.
func (m *member) candidate() placement.Node {
	m.mu.Lock()
	n := placement.Node{ID: m.info.ID, Weight: m.weight}
	n.Disk = m.disk
	m.mu.Unlock()
	if n.Weight == 0 { // of no set yet
		n.Weight = float64(max(m.info.Weight, 1))
	}
	for _, l := range m.info.Labels {
		name, value, _ := strings.Cut(l, "=")
		switch name {
		case "zone":
			n.Zone = value
		case "rack":
			n.Rack = value
		case "host":
			n.Host = value
		case "disk":
			n.Disk = value
		}
	}
	return n
}

// placed is where a pack's shards are to go, and how to go on when a node fails.
type placed struct {
	pack    id.Pack
	k, m    int
	nodes   []placement.Node
	by      map[id.Node]*member
	targets []*member // by shard index
	failed  []id.Node // not asked again
}

// plan chooses targets for a pack of k+m shards among ms.
func plan(p id.Pack, ms []*member, k, m int) (*placed, error) {
	pl := &placed{pack: p, k: k, m: m, nodes: make([]placement.Node, len(ms)), by: make(map[id.Node]*member, len(ms))}
	for i, x := range ms {
		pl.nodes[i], pl.by[x.info.ID] = x.candidate(), x
	}
	targets, _, err := placement.Plan(p, pl.nodes, k, m)
	for _, n := range targets {
		pl.targets = append(pl.targets, pl.by[n])
	}
	return pl, err
}

// replace chooses who takes the place of a member that failed; nil when nobody
// is left. current are the members that hold or are being sent the other shards.
func (pl *placed) replace(failed *member, current []*member, now time.Time) *member {
	pl.failed = append(pl.failed, failed.info.ID)
	var keep []id.Node
	for _, m := range current {
		if m != nil {
			keep = append(keep, m.info.ID)
		}
	}
	for _, m := range pl.by {
		if !m.usable(now) && !slices.Contains(keep, m.info.ID) && !slices.Contains(pl.failed, m.info.ID) {
			pl.failed = append(pl.failed, m.info.ID)
		}
	}
	n, err := placement.Replace(pl.pack, pl.nodes, pl.k, pl.m, keep, pl.failed)
	if err != nil {
		return nil
	}
	return pl.by[n]
}

// sent is the outcome of one shard's put.
type sent struct {
	index int
	to    *member
	inst  id.Instance
	err   error
}

// errNarrow says that full width was not reached and that no candidate is left.
var errNarrow = errors.New("too few nodes took their shard")

// errNoRoom says that every node refused its shard for want of room, before it
// wrote anything: what was sent is nowhere.
var errNoRoom = errors.New("no node has room")

// putPack makes every shard durable on distinct members: the planned ones, and
// others in the place of those that fail or lag. It returns where each shard
// lies. An error wraps errNarrow or errNoRoom. release is called once, when no node reads the
// shards any more; that may be long after putPack has returned.
func (s *Store) putPack(ctx context.Context, why node.Purpose, enc *pack.Encoded, pl *placed, release func()) ([]record.Place, error) {
	shards := enc.Shards
	var (
		running = sync.WaitGroup{}
		results = make(chan sent, len(pl.nodes)+len(shards))
		lagMu   sync.Mutex
		marks   = map[*member]bool{} // false: its put runs; true: it was marked as lagging
		start   = func(index int, to *member) {
			lagMu.Lock()
			marks[to] = false
			lagMu.Unlock()
			running.Add(1)
			go func() {
				defer running.Done()
				defer func() {
					lagMu.Lock()
					if marks[to] {
						to.lag(-1)
					}
					delete(marks, to)
					lagMu.Unlock()
				}()
				inst, err := to.st.Put(context.WithoutCancel(ctx), s.auth, why, node.Shard{Head: shards[index].Head, Body: shards[index].Slice})
				if err != nil {
					to.notePut(why, err, s.now())
				} else {
					to.noteSuccess()
				}
				results <- sent{index: index, to: to, inst: inst, err: err}
			}()
		}
		current = make([]*member, len(shards)) // whose answer counts for each shard
		places  = make([]record.Place, len(shards))
		done    int
		full    int // shards that nobody has room for
		errs    []error
		certain = true // every error so far is a want of room
	)
	for i := range shards {
		current[i] = pl.targets[i]
		start(i, pl.targets[i])
	}
	// mark notes that a member is behind the others, until its own put returns.
	mark := func(m *member) {
		lagMu.Lock()
		defer lagMu.Unlock()
		if marked, runs := marks[m]; runs && !marked {
			marks[m] = true
			m.lag(1)
		}
	}
	// Whatever still runs when we leave gives the buffers back itself.
	defer func() {
		lagMu.Lock()
		ended := len(marks) == 0
		lagMu.Unlock()
		if ended {
			release()
			return
		}
		over := make(chan struct{})
		// Ends when the node's own calls do: a hung disk is not waited for.
		go func() {
			running.Wait()
			close(over)
			release()
		}()
		// That another node failed is no reason to call the rest slow: a pack is
		// left as soon as one put has failed and has no other place to go, mostly
		// while the others are being written. But what still runs after Lag takes no
		// further shards, so that what it holds is bounded.
		var left []*member
		for i, m := range current {
			if m != nil && places[i].Node.IsZero() {
				left = append(left, m)
			}
		}
		late := func() {
			for _, m := range left {
				mark(m)
			}
		}
		if ctx.Err() != nil {
			late() // they had long enough
			return
		}
		go func() {
			t := time.NewTimer(s.cfg.Lag)
			defer t.Stop()
			select {
			case <-over:
			case <-t.C:
				late()
			}
		}()
	}()

	// replace gives shard i to another member.
	replace := func(i int) bool {
		failed := current[i]
		current[i] = nil
		m := pl.replace(failed, current, s.now())
		if m == nil {
			return false
		}
		current[i] = m
		start(i, m)
		return true
	}
	// settle waits before giving up for the puts that still run, as long as one may
	// lag: nodes that are no slower than others would else take no shard of the next
	// attempt, nor of anyone else's pack meanwhile.
	settle := func() {
		t := time.NewTimer(s.cfg.Lag)
		defer t.Stop()
		for i := range current {
			for current[i] != nil && places[i].Node.IsZero() {
				select {
				case r := <-results:
					if current[r.index] == r.to {
						current[r.index] = nil
					}
				case <-t.C:
					return
				case <-ctx.Done():
					return
				}
			}
		}
	}
	var timer <-chan time.Time
	for done < len(shards) {
		// A put lags behind the pack's other shards: most are done, it is not.
		if timer == nil && (done*2 >= len(shards) || full > 0) {
			t := time.NewTimer(s.cfg.Lag)
			defer t.Stop()
			timer = t.C
		}
		select {
		case r := <-results:
			if current[r.index] != r.to {
				continue // a laggard that was replaced
			}
			if r.err == nil {
				places[r.index] = record.Place{Node: r.to.info.ID, Index: uint8(r.index), Instance: r.inst, Digest: enc.Digests[r.index]}
				done++
				if full > 0 {
					settle()
					return nil, fmt.Errorf("%w: %w", errNarrow, errors.Join(errs...))
				}
				continue
			}
			errs = append(errs, r.err)
			if _, ok := errors.AsType[*node.RoomError](r.err); !ok {
				certain = false
			}
			if replace(r.index) {
				continue
			}
			// If all the others find no room either, then nothing was stored, and
			// whoever waits can be told so at once.
			full++
			switch {
			case certain && full == len(shards):
				return nil, fmt.Errorf("%w: %w", errNoRoom, errors.Join(errs...))
			case !certain || done > 0:
				settle()
				return nil, fmt.Errorf("%w: %w", errNarrow, errors.Join(errs...))
			}
		case <-timer:
			t := time.NewTimer(s.cfg.Lag)
			defer t.Stop()
			timer = t.C
			if full > 0 {
				return nil, fmt.Errorf("%w: %w", errNarrow, errors.Join(errs...))
			}
			for i, m := range current {
				if !places[i].Node.IsZero() {
					continue
				}
				mark(m)
				errs = append(errs, fmt.Errorf("node %s lags by more than %v", m.info.Name, s.cfg.Lag))
				if !replace(i) {
					return nil, fmt.Errorf("%w: %w", errNarrow, errors.Join(errs...))
				}
			}
		case <-ctx.Done():
			return nil, fmt.Errorf("%w: %w", errNarrow, context.Cause(ctx))
		}
	}
	return places, nil
}
