package store

import (
	"container/list"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"sync"
	"time"

	"cairn/id"
	"cairn/index"
	"cairn/manifest"
	"cairn/node"
	"cairn/pack"
	"cairn/record"
	"cairn/seal"
	"cairn/store/budget"
)

// ahead is how many chunks a body fetches before they are asked for.
const ahead = 3

// confirmer answers whether this gateway still owns the log. A check that began
// after a request came is shared by all requests that wait for it.
type confirmer struct {
	s       *Store
	mu      sync.Mutex
	running bool
	next    *confirmation // begins when the running one has ended
}

type confirmation struct {
	done chan struct{}
	err  error
}

// begin joins the next check and returns how to wait for it.
func (c *confirmer) begin() (func(context.Context) error, error) {
	if c.s.cfg.StaleReads {
		return func(context.Context) error { return nil }, nil
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.next == nil {
		c.next = &confirmation{done: make(chan struct{})}
	}
	mine := c.next
	if !c.running {
		if !c.s.spawn(c.run) {
			c.next = nil
			return nil, ErrClosed
		}
		c.running = true
	}
	return func(ctx context.Context) error {
		select {
		case <-mine.done:
			return mine.err
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}, nil
}

// run checks until nobody waits any more.
func (c *confirmer) run() {
	for {
		c.mu.Lock()
		now := c.next
		c.next = nil
		if now == nil {
			c.running = false
			c.mu.Unlock()
			return
		}
		c.mu.Unlock()
		now.err = c.s.confirmOnce()
		close(now.done)
	}
}

// confirmNow confirms what was seen of the index before it was called.
func (s *Store) confirmNow(ctx context.Context) error {
	confirmed, err := s.confirm.begin()
	if err != nil {
		return err
	}
	return confirmed(ctx)
}

// confirmOnce asks log nodes until m+1 of them know of no epoch above ours. A
// takeover has been promised by all but m of them, so one of those would know. While m
// is being raised to w it is w+1: the next start may go by either.
func (s *Store) confirmOnce() error {
	ctx, cancel := context.WithTimeout(context.Background(), s.cfg.Patience)
	defer cancel()
	set := s.members.Load()
	type answer struct {
		m   *member
		a   node.Authority
		err error
	}
	var asked []*member
	for _, m := range set.log {
		if m.readable() {
			asked = append(asked, m)
		}
	}
	answers := make(chan answer, len(asked))
	for _, m := range asked {
		go func() {
			a, err := m.st.Promised(ctx)
			answers <- answer{m, a, err}
		}()
	}
	good, against := 0, 0
	for range asked {
		var a answer
		select {
		case a = <-answers:
		case <-ctx.Done():
			return fmt.Errorf("%w: log nodes do not say whether another gateway has taken over", ErrUnavailable)
		}
		switch {
		case a.err != nil:
			a.m.noteError(a.err, s.now())
		case a.a.Epoch > s.auth.Epoch, a.a.Epoch == s.auth.Epoch && a.a.Writer != s.auth.Writer:
			// A takeover was promised by all but m. One node may lie.
			if against++; against > set.m() {
				err := fmt.Errorf("%w: epoch %d was promised, ours is %d", ErrSuperseded, a.a.Epoch, s.auth.Epoch)
				s.fail(err)
				return err
			}
			a.m.noteError(fmt.Errorf("it has promised epoch %d to another gateway: %w", a.a.Epoch, node.ErrFenced), s.now())
		default:
			if good++; good > set.w() {
				return nil
			}
		}
	}
	return fmt.Errorf("%w: %d log nodes confirm that no other gateway has taken over, %d are needed; not up: %s", ErrUnavailable, good, set.w()+1, s.notUp(set.log))
}

// geometry says where the bytes of a pack's payload lie.
type geometry struct {
	pack   id.Pack
	k, m   int
	slice  int // bytes of the coded stream in each shard
	body   int // where the slice begins within a shard
	size   int // bytes of a whole shard
	places []record.Place
}

// piece is a range of one shard.
type piece struct {
	shard  int
	off    int // within the slice
	length int
}

// pieces cuts a range of the payload at the borders of slices.
func (g *geometry) pieces(off, n int) []piece {
	var out []piece
	for n > 0 {
		p := piece{shard: off / g.slice, off: off % g.slice}
		p.length = min(n, g.slice-p.off)
		out = append(out, p)
		off, n = off+p.length, n-p.length
	}
	return out
}

// locate looks up where a pack lies. The newest log packs are known from memory:
// the index learns their places from their successors.
func (s *Store) locate(r index.Reader, p id.Pack) (geometry, error) {
	row, err := r.Pack(p)
	if err != nil {
		return geometry{}, fmt.Errorf("pack %v: %w", p, err)
	}
	g := geometry{pack: p, k: int(row.K), m: int(row.M), slice: int(row.Slice), body: int(row.Body), size: int(row.Size), places: row.Shards}
	if len(g.places) == 0 {
		g.places = s.recall(p)
	}
	return g, nil
}

// fetch reads and opens one chunk. It tries the data shards that hold it, then
// the same range of others, and at last tells by their digests which shards are
// not what was written. It appends the plaintext to dst.
func (s *Store) fetch(ctx context.Context, realm *realmKeys, c id.Chunk, kind seal.Kind, dst []byte) ([]byte, error) {
	var last error
	// A chunk may move while it is read: it is looked up again, a few times.
	for range 3 {
		var (
			row index.ChunkRow
			g   geometry
		)
		err := s.view(func(r index.Reader) (err error) {
			if row, err = r.Chunk(realm.realm, c); err != nil {
				return fmt.Errorf("chunk: %w", err)
			}
			g, err = s.locate(r, row.Pack)
			return err
		})
		if errors.Is(err, index.ErrNotFound) {
			last = fmt.Errorf("%w: %w", ErrDamaged, err)
			continue
		}
		if err != nil {
			return dst, translate(err, ErrDamaged)
		}
		if row.Unknown() {
			return dst, fmt.Errorf("%w: a chunk came with a part of the log that is lost", ErrDamaged)
		}
		if row.Info.Kind != kind {
			return dst, fmt.Errorf("%w: a chunk of kind %d where one of kind %d was expected", ErrDamaged, row.Info.Kind, kind)
		}
		weight := fetchMemory(int(row.Info.SealedLen))
		if err := s.goOn(ctx, s.mem.fetch, weight); err != nil {
			return dst, err
		}
		buf := s.chunks.get(int(row.Info.SealedLen))
		out, err := s.fetchFrom(ctx, realm, g, row, buf, dst)
		s.chunks.put(buf)
		s.mem.fetch.Release(weight)
		if err == nil {
			return out, nil
		}
		if ctx.Err() != nil {
			return dst, context.Cause(ctx)
		}
		last = err
	}
	return dst, last
}

// strip is how much of a shard is read at a time into memory that a node may
// keep, and how much of all shards together when a range is rebuilt.
const strip = 1 << 20

// fetchMemory is what it takes to get a chunk beside where its plaintext goes:
// its sealed bytes, what a node is given to write into, or the shards that a
// range of it is rebuilt from, and the compressed bytes between seal and zstd.
func fetchMemory(sealed int) int64 { return 2*weigh(sealed) + min(weigh(sealed), strip) }

// fetchFrom reads one chunk from a pack.
func (s *Store) fetchFrom(ctx context.Context, realm *realmKeys, g geometry, row index.ChunkRow, buf, dst []byte) ([]byte, error) {
	bad := make([]error, g.k+g.m) // why a shard is not asked
	pieces := g.pieces(int(row.Offset), int(row.Info.SealedLen))
	for round := 0; ; round++ {
		err := s.readPieces(ctx, g, pieces, bad, buf)
		if err != nil {
			return dst, err
		}
		out, err := realm.sealer.Open(dst, row.Info, buf)
		if err == nil {
			return out, nil
		}
		if !errors.Is(err, seal.ErrDamaged) || round > 0 {
			return dst, fmt.Errorf("%w: chunk in pack %v: %w", ErrDamaged, g.pack, err)
		}
		// Checksums held and the seal does not: some node did not give what was
		// written. The digests in the log tell which.
		s.checkDigests(ctx, g, bad)
	}
}

// readPieces fills buf with the pieces, from their own shards or rebuilt from k
// others. bad remembers what each shard answered.
func (s *Store) readPieces(ctx context.Context, g geometry, pieces []piece, bad []error, buf []byte) error {
	at := 0
	for _, p := range pieces {
		dst := buf[at : at+p.length]
		at += p.length
		if bad[p.shard] == nil {
			if bad[p.shard] = s.readShard(ctx, g, p.shard, p.off, dst); bad[p.shard] == nil {
				continue
			}
		}
		if err := s.rebuildPiece(ctx, g, p, bad, dst); err != nil {
			return err
		}
	}
	return nil
}

// readShard reads a range of a slice from the nodes that have the shard. A node
// that takes too long is left, with the memory it still writes into: the caller
// rebuilds the range from others.
func (s *Store) readShard(ctx context.Context, g geometry, shard, off int, dst []byte) error {
	var why error
	set := s.members.Load()
	for _, place := range g.places {
		if int(place.Index) != shard {
			continue
		}
		m := set.byID[place.Node]
		if m == nil || !m.readable() {
			why = likelier(why, notAsked(g.pack, shard, m))
			continue
		}
		err := s.readFrom(ctx, m, node.Key{Pack: g.pack, Index: uint8(shard)}, int64(g.body+off), dst)
		if err == nil {
			return nil
		}
		if cerr := context.Cause(ctx); cerr != nil {
			return cerr // the reader has gone, which says nothing of the node
		}
		m.noteRead(err, s.now())
		if lostForGood(err) {
			s.suspect(g.pack)
		}
		why = likelier(why, err)
	}
	if why == nil {
		why = fmt.Errorf("shard %d of pack %v has no place: %w", shard, g.pack, node.ErrNotFound)
	}
	return why
}

// notAsked is why a shard is not asked for: nil is a node that is no member any
// more, and never will be again.
func notAsked(p id.Pack, shard int, m *member) error {
	if m == nil {
		return fmt.Errorf("shard %d of pack %v was on a node that is gone for good: %w", shard, p, node.ErrNotFound)
	}
	return fmt.Errorf("shard %d of pack %v: node %s is not there: %w", shard, p, m.info.Name, node.ErrMissing)
}

// likelier is what is known of a shard with two places: that one of them may still
// have it outweighs that the other has not.
func likelier(a, b error) error {
	if a == nil || lostForGood(a) {
		return b
	}
	return a
}

// maxHanging is how many reads a member may owe before it is not asked: a disk
// that hangs must not gather memory and goroutines.
const maxHanging = 4

// readFrom is one node's read with deadlines, a strip at a time. A member known to
// hang gets a short one, and nothing more to do once it owes several answers.
func (s *Store) readFrom(ctx context.Context, m *member, k node.Key, off int64, dst []byte) error {
	if !m.hangs() && s.cfg.Lag >= noDeadline {
		return m.st.Read(ctx, k, off, dst)
	}
	for {
		n := min(len(dst), strip)
		if err := s.readStrip(ctx, m, k, off, dst[:n]); err != nil {
			return err
		}
		if dst = dst[n:]; len(dst) == 0 {
			return nil
		}
		off += int64(n)
	}
}

func (s *Store) readStrip(ctx context.Context, m *member, k node.Key, off int64, dst []byte) error {
	limit := s.cfg.Lag
	if m.hangs() {
		limit /= 20
		if m.owes() >= maxHanging {
			return fmt.Errorf("node %s owes the answers to %d reads: %w", m.info.Name, maxHanging, node.ErrUnavailable)
		}
	}
	buf := s.chunks.get(len(dst))
	done := make(chan error, 1)
	go func() { done <- m.st.Read(ctx, k, off, buf) }()
	t := time.NewTimer(limit)
	late := func() { // ends when the node's call does: until then the buffer is the node's
		if err := <-done; err != nil {
			m.noteError(err, s.now())
		}
		m.readHangs(false)
		s.chunks.put(buf)
	}
	select {
	case err := <-done:
		t.Stop()
		if err == nil {
			copy(dst, buf)
		}
		s.chunks.put(buf)
		return err
	case <-ctx.Done():
		go func() { // a reader that has gone makes no node hang: its time runs on
			defer t.Stop()
			select {
			case <-done:
				s.chunks.put(buf)
			case <-t.C:
				m.readHangs(true)
				late()
			}
		}()
		return context.Cause(ctx)
	case <-t.C:
		m.readHangs(true)
		go late()
		return fmt.Errorf("node %s does not answer within %v: %w", m.info.Name, limit, node.ErrUnavailable)
	}
}

// noDeadline and more means that reads are not watched.
const noDeadline = time.Hour

// rebuildPiece computes a range of one shard from the same range of k others, in
// strips.
func (s *Store) rebuildPiece(ctx context.Context, g geometry, p piece, bad []error, dst []byte) error {
	for len(dst) > 0 {
		n := min(len(dst), max(strip/g.k, pack.BlockSize))
		if err := s.rebuildStrip(ctx, g, piece{p.shard, p.off, n}, bad, dst[:n]); err != nil {
			return err
		}
		p.off, dst = p.off+n, dst[n:]
	}
	return nil
}

func (s *Store) rebuildStrip(ctx context.Context, g geometry, p piece, bad []error, dst []byte) error {
	shards := make([][]byte, g.k+g.m)
	have := 0
	var bufs [][]byte
	defer func() {
		for _, b := range bufs {
			s.chunks.put(b)
		}
	}()
	for i := range shards {
		if have == g.k {
			break
		}
		if cerr := context.Cause(ctx); cerr != nil {
			return cerr
		}
		if i == p.shard || bad[i] != nil {
			continue
		}
		b := s.chunks.get(p.length)
		bufs = append(bufs, b)
		if bad[i] = s.readShard(ctx, g, i, p.off, b); bad[i] == nil {
			shards[i] = b
			have++
		}
	}
	if have < g.k {
		return fmt.Errorf("%w: %d of the %d shards that pack %v needs can be read: %w", unreadable(g, bad), have, g.k, g.pack, errors.Join(bad...))
	}
	s.degraded.Add(1)
	shards[p.shard] = dst[:0:len(dst)]
	code, err := s.code(g.k, g.m)
	if err != nil {
		return err
	}
	return code.Reconstruct(shards, p.shard)
}

// unreadable says whether bytes are lost, or only cannot be had now: lost when too
// few shards would be left if every node answered that does not.
func unreadable(g geometry, bad []error) error {
	left := len(bad)
	for _, err := range bad {
		if err != nil && lostForGood(err) {
			left--
		}
	}
	if left < g.k {
		return ErrDamaged
	}
	return ErrUnavailable
}

// checkDigests reads every shard whole and marks those that are not what the log
// says.
func (s *Store) checkDigests(ctx context.Context, g geometry, bad []error) {
	if err := s.goOn(ctx, s.mem.repair, weigh(g.size)); err != nil {
		return // nothing was learned: the caller's second try fails as its first did
	}
	defer s.mem.repair.Release(weigh(g.size))
	buf := s.chunks.get(g.size)
	defer s.chunks.put(buf)
	set := s.members.Load()
	for i := range bad {
		if bad[i] != nil {
			continue
		}
		bad[i] = fmt.Errorf("shard %d of pack %v: %w", i, g.pack, node.ErrNotFound)
		for _, place := range g.places {
			m := set.byID[place.Node]
			if int(place.Index) != i {
				continue
			}
			if m == nil || !m.readable() {
				bad[i] = notAsked(g.pack, i, m)
				continue
			}
			if err := s.readFrom(ctx, m, node.Key{Pack: g.pack, Index: uint8(i)}, 0, buf); err != nil {
				bad[i] = err
				continue
			}
			_, sh, err := pack.ParseShard(buf)
			if err != nil || !s.coder.CheckDigest(g.pack, place.Index, sh, place.Digest) {
				bad[i] = fmt.Errorf("shard %d of pack %v on node %s is not what was written: %w", i, g.pack, m.info.Name, node.ErrDamaged)
				s.log.Error("a node gives other bytes than were written", "node", m.info.Name, "pack", g.pack.String(), "shard", i)
				s.suspect(g.pack)
				continue
			}
			bad[i] = nil
			break
		}
	}
}

// leaf is a data chunk of an object, and what of it is wanted.
type leaf struct {
	ref      manifest.Ref
	from, to uint64 // within the chunk
}

// walker lists the data chunks under a manifest that a range covers, in order,
// reading list chunks as it comes to them. Of one list per level it holds the
// next few references, and reads the list again for those behind them: readers
// are many, and a slow one holds what it holds for long.
type walker struct {
	s     *Store
	realm *realmKeys
	stack []part
	pos   uint64 // offset within the object of the next reference
	from  uint64
	to    uint64
	again *leaf // given back by whoever took it
}

// part is what is left of a list: the next references, and how to get those
// behind them.
type part struct {
	refs []manifest.Ref
	list manifest.Ref // where they come from
	next int          // index in it of the first one behind refs; 0: there are no more
}

// partLen is how many references of a list are held.
const partLen = 64

// read gets references of a list, from the one with index from on, without those
// that lie before what is wanted.
func (w *walker) read(ctx context.Context, list manifest.Ref, from int) (part, error) {
	plain, err := w.s.fetch(ctx, w.realm, list.Chunk, seal.List, nil)
	if err != nil {
		return part{}, err
	}
	refs, err := manifest.ParseList(nil, list, plain)
	if err != nil {
		return part{}, fmt.Errorf("%w: %w", ErrDamaged, err)
	}
	for from < len(refs) && w.pos+refs[from].Len <= w.from {
		w.pos += refs[from].Len
		from++
	}
	p := part{list: list}
	if refs = refs[from:]; len(refs) > partLen {
		refs, p.next = refs[:partLen], from+partLen
	}
	p.refs = slices.Clone(refs)
	return p, nil
}

func (w *walker) next(ctx context.Context) (leaf, error) {
	if w.again != nil {
		l := *w.again
		w.again = nil
		return l, nil
	}
	for len(w.stack) > 0 {
		top := &w.stack[len(w.stack)-1]
		if len(top.refs) == 0 {
			if top.next == 0 {
				w.stack = w.stack[:len(w.stack)-1]
				continue
			}
			p, err := w.read(ctx, top.list, top.next)
			if err != nil {
				return leaf{}, err
			}
			*top = p
			continue
		}
		ref := top.refs[0]
		top.refs = top.refs[1:]
		begin, end := w.pos, w.pos+ref.Len
		if begin >= w.to {
			break
		}
		if end <= w.from {
			w.pos = end
			continue
		}
		if ref.IsList() {
			p, err := w.read(ctx, ref, 0)
			if err != nil {
				return leaf{}, err
			}
			w.stack = append(w.stack, p)
			continue
		}
		w.pos = end
		l := leaf{ref: ref, to: ref.Len}
		if begin < w.from {
			l.from = w.from - begin
		}
		if end > w.to {
			l.to = w.to - begin
		}
		return l, nil
	}
	return leaf{}, io.EOF
}

// body reads a range of an object. Goroutines run ahead of a client that is fast,
// by a bounded number of chunks and as far as memory is free; any other holds one
// chunk, on lease. Each chunk is opened whole before a byte of it is handed out.
type body struct {
	s      *Store
	ctx    context.Context
	cancel context.CancelFunc
	realm  *realmKeys
	walk   walker

	mu     sync.Mutex // held by Read, WriteTo and Close
	queue  []*fetched // chunks on their way, in order; those ahead are not on lease
	now    *fetched   // the one being handed out
	fast   bool       // the client took its last chunk without delay
	begun  bool       // there was memory for a chunk
	ended  bool       // the walker has no more
	alone  *transfer  // ends with the body; nil: with its context
	err    error
	closed bool
}

// fetched is one chunk on its way, and the memory it holds.
type fetched struct {
	ready  chan struct{}
	leaf   leaf
	share  *budget.Share
	weight int64
	leased bool
	err    error
	at     uint64        // how far it was handed out; the body's
	since  time.Time     // when that began
	inLine *list.Element // under leases.mu; nil: not on lease, or not any more

	mu   sync.Mutex
	buf  []byte // pooled; set before ready is closed
	gone bool   // it was given back
}

// newBody reads a range of what a manifest says. t was begun before the manifest was
// read.
func (s *Store) newBody(ctx context.Context, realmID id.Realm, m manifest.Manifest, off, n uint64, t *transfer) io.ReadCloser {
	b := &body{s: s}
	if ctx.Done() == nil {
		b.alone = t
	}
	b.ctx, b.cancel = context.WithCancel(ctx)
	b.realm, b.err = s.realm(realmID)
	if b.err == nil && (off > m.Size || n > m.Size-off) {
		b.err = fmt.Errorf("%w: %d bytes from %d of %d", ErrRange, n, off, m.Size)
	}
	b.walk = walker{s: s, realm: b.realm, stack: []part{{refs: m.Roots}}, from: off, to: off + n}
	return b
}

// start begins to fetch the next chunk of the walk. Memory for the first one is
// waited for, unless the client is fast and there is some for those; for the ones
// ahead of it it is only taken when it is free.
func (b *body) start(first bool) error {
	if b.ended {
		return nil
	}
	l, err := b.walk.next(b.ctx)
	if err == io.EOF {
		b.ended = true
		return nil
	}
	if err != nil {
		return err
	}
	s := b.s
	f := &fetched{ready: make(chan struct{}), leaf: l, at: l.from, share: s.mem.fastReaders, weight: weigh(int(l.ref.Len))}
	if !b.fast || !f.share.TryAcquire(f.weight) {
		if !first {
			b.walk.again = &l
			return nil
		}
		wait := s.goOn
		switch f.leased = true; {
		case l.ref.Len <= smallObject:
			f.share = s.mem.small
		case b.begun && !b.fast:
			f.share = s.mem.slowReaders
		default:
			f.share = s.mem.readers
		}
		if !b.begun {
			wait, b.begun = s.admit, true
		}
		if err := s.lease(b.ctx, f.share, f.weight, wait); err != nil {
			return err
		}
	}
	b.queue = append(b.queue, f)
	work := func() {
		defer close(f.ready)
		f.buf = s.chunks.get(int(l.ref.Len))[:0]
		f.buf, f.err = s.fetch(b.ctx, b.realm, l.ref.Chunk, seal.Data, f.buf)
		if f.err == nil && uint64(len(f.buf)) != l.ref.Len {
			f.err = fmt.Errorf("%w: a chunk of %d bytes where the manifest says %d", ErrDamaged, len(f.buf), l.ref.Len)
		}
	}
	if first && l.ref.Len <= smallObject {
		work() // not worth a goroutine
		return nil
	}
	if !s.spawn(work) {
		work()
	}
	return nil
}

// advance makes the next chunk the one being handed out. io.EOF ends the range.
func (b *body) advance() error {
	if f := b.now; f != nil {
		b.fast = isFast(int(f.at-f.leaf.from), time.Since(f.since))
		b.release(f)
		b.now = nil
	}
	if len(b.queue) == 0 {
		if err := b.start(true); err != nil {
			return err
		}
	}
	for b.fast && len(b.queue) > 0 && !b.queue[0].leased && len(b.queue) <= ahead && !b.ended {
		n := len(b.queue)
		if err := b.start(false); err != nil {
			return err
		}
		if len(b.queue) == n {
			break
		}
	}
	if len(b.queue) == 0 {
		return io.EOF
	}
	f := b.queue[0]
	b.queue = b.queue[1:]
	<-f.ready
	b.now, f.since = f, time.Now()
	if f.err == nil && f.leased {
		b.s.leases.begin(f)
	}
	return f.err
}

// lost goes back to what is left of a chunk that was taken back: it is fetched
// again. Nothing runs ahead of one that is on lease.
func (b *body) lost() {
	l := b.now.leaf
	l.from = b.now.at
	b.walk.again, b.now, b.fast, b.ended = &l, nil, false, false
}

func (b *body) release(f *fetched) {
	<-f.ready
	b.s.leases.end(f)
	f.takeBack(b.s)
}

// prepare makes sure that there is a chunk with bytes left, or says why not.
func (b *body) prepare() error {
	for b.err == nil && (b.now == nil || b.now.at == b.now.leaf.to) {
		if b.closed {
			return ErrClosed
		}
		b.err = b.advance()
	}
	return b.err
}

func (b *body) Read(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if len(p) == 0 {
		return 0, nil
	}
	return b.read(p)
}

func (b *body) read(p []byte) (int, error) {
	for {
		if err := b.prepare(); err != nil {
			return 0, err
		}
		if n, ok := b.now.take(p); ok {
			return n, nil
		}
		b.lost()
	}
}

// WriteTo hands over whole chunks, but what is on lease in pieces.
func (b *body) WriteTo(w io.Writer) (sum int64, err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	piece := b.s.chunks.get(leasePiece)
	defer b.s.chunks.put(piece)
	for {
		if err := b.prepare(); err == io.EOF {
			return sum, nil
		} else if err != nil {
			return sum, err
		}
		var n int
		if f := b.now; f.leased {
			if n, err = b.read(piece); err == nil {
				n, err = w.Write(piece[:n])
			}
		} else {
			n, err = w.Write(f.buf[f.at:f.leaf.to])
			f.at += uint64(n)
		}
		if sum += int64(n); err != nil {
			return sum, err
		}
	}
}

// Close gives back what the body holds. It waits for chunks being fetched.
func (b *body) Close() error {
	b.cancel()
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.closed {
		return nil
	}
	b.closed = true
	if b.alone != nil {
		defer b.alone.end()
	}
	if b.now != nil {
		b.release(b.now)
		b.now = nil
	}
	for _, f := range b.queue {
		b.release(f)
	}
	b.queue = nil
	if b.err == nil {
		b.err = ErrClosed
	}
	return nil
}
