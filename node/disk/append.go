package disk

import (
	"fmt"
	"sync/atomic"
	"time"

	"cairn/id"
	"cairn/node"
	"cairn/node/vfs"
	"cairn/pack"
)

const (
	queueLen      = 128      // requests that wait for an appender
	groupRequests = 256      // requests under one sync
	groupBytes    = 32 << 20 // bytes under one sync, unless one record alone is longer
	writebackStep = 8 << 20  // bytes after which the system is asked to begin writing, so that the sync is short
)

// request is one thing to append.
type request struct {
	rec
	head, body []byte // the shard; not touched any more once done is closed
	payCRC     uint32
	by         node.Authority
	why        node.Purpose
	note       note
	from       *segment // a copy from there: no authority, and the instance is kept
	rotate     bool     // nothing to append: close the open segment

	// restate says that the note only writes down once more what holds already,
	// on nobody's authority.
	restate bool

	state atomic.Int32 // waiting, taken or cancelled
	skip  bool         // answered without being written; the appender's
	err   error        // valid once done is closed
	done  chan struct{}
}

const (
	waiting = iota
	taken
	cancelled
)

func (r *request) finish(err error) {
	r.err = err
	close(r.done)
}

// appender writes records of one kind, in one goroutine. Its fields are that
// goroutine's.
type appender struct {
	n     *Node
	kind  segKind
	queue chan *request
	ended chan struct{}

	seg    *segment // nil: none is open
	f      vfs.File // of seg
	off    int64    // where the next record goes; everything before it is durable
	last   rec      // the newest record, for the one behind it
	fresh  bool     // seg was closed cleanly in an earlier run: its footer must go first
	marked bool     // a mark stands at off
	synced bool     // and is durable
	asked  bool     // for the file behind seg

	group []*request
	batch []*request // what of the group goes under one sync
	notes []*request // notes of the batch, one record
	heads []byte
	body  []byte // payload of the notes record
	bufs  [][]byte
}

func newAppender(n *Node, k segKind) *appender {
	return &appender{n: n, kind: k, queue: make(chan *request, queueLen), ended: make(chan struct{}),
		heads: make([]byte, 0, (groupRequests+2)*recordHead)}
}

// send hands a request over and waits for it. A request that is taken back
// before the appender has looked at it ends with ctx; one that was taken is
// waited for, because its buffers are being read (H32).
func (a *appender) send(done <-chan struct{}, cause func() error, r *request) error {
	select {
	case a.queue <- r:
	case <-done:
		return cause()
	}
	select {
	case <-r.done:
	case <-done:
		if r.state.CompareAndSwap(waiting, cancelled) {
			return cause()
		}
		<-r.done
	}
	return r.err
}

// run appends until the queue is closed.
func (a *appender) run() {
	defer close(a.ended)
	var carry *request
	for {
		r := carry
		carry = nil
		if r == nil {
			var ok bool
			if r, ok = a.next(); !ok {
				return
			}
		}
		a.group = a.group[:0]
		bytes := int64(0)
	gather:
		for {
			if r.rotate {
				if len(a.group) > 0 {
					carry = r
					break
				}
				a.rotate(r)
				break
			}
			if len(a.group) > 0 && bytes+r.length() > groupBytes {
				carry = r
				break
			}
			a.group = append(a.group, r)
			bytes += r.length()
			if len(a.group) == groupRequests {
				break
			}
			var ok bool
			select {
			case r, ok = <-a.queue:
				if !ok {
					break gather
				}
			default:
				break gather
			}
		}
		a.do()
		if carry == nil && len(a.queue) == 0 {
			a.mark()
		}
	}
}

// next waits for a request; a mark becomes durable while none comes.
func (a *appender) next() (*request, bool) {
	if !a.marked || a.synced {
		r, ok := <-a.queue
		return r, ok
	}
	if d := a.n.cfg.MarkAfter; d > 0 {
		t := time.NewTimer(d)
		defer t.Stop()
		select {
		case r, ok := <-a.queue:
			return r, ok
		case <-t.C:
		}
	}
	a.syncMark()
	r, ok := <-a.queue
	return r, ok
}

// mark writes, where the next record will go, how far the segment is durable:
// without it rot in the last group would look like a torn tail.
func (a *appender) mark() {
	if a.seg == nil || a.marked || a.fresh || a.off == dataStart || a.n.gone.Load() {
		return
	}
	h := recHeader{rec: rec{off: a.off, typ: markRec}, durable: a.off, prev: a.last}
	a.heads = h.append(a.heads[:0], &a.seg.inc)
	if _, err := a.f.WritevAt([][]byte{a.heads, zeroBlock[recordHead:]}, a.off); err != nil {
		a.retire()
		return
	}
	a.marked, a.synced = true, false
}

func (a *appender) syncMark() {
	if err := a.f.Datasync(); err != nil {
		a.retire()
		return
	}
	a.synced = true
}

// do writes a group, usually under one sync.
func (a *appender) do() {
	a.batch = a.batch[:0]
	high := pack.Position{}
	for _, r := range a.group {
		if !r.state.CompareAndSwap(waiting, taken) {
			continue // its caller has left and has its buffers back
		}
		if err := a.admit(r, &high); err != nil || r.skip {
			r.finish(err)
			continue
		}
		a.batch = append(a.batch, r)
	}
	for len(a.batch) > 0 {
		// As much as the open segment takes; the rest goes into the next one.
		fit := a.fit(a.batch)
		if fit == 0 {
			if err := a.advance(a.batch[0]); err != nil {
				for _, r := range a.batch {
					r.finish(err)
				}
				return
			}
			fit = a.fit(a.batch)
		}
		err := a.write(a.batch[:fit])
		for _, r := range a.batch[:fit] {
			if r.err == nil {
				r.err = err
			}
			close(r.done)
		}
		a.batch = a.batch[fit:]
	}
}

// fit counts how many of the requests go into the open segment.
func (a *appender) fit(rs []*request) int {
	if a.seg == nil {
		return 0
	}
	room, notes := a.seg.size-a.off-blockSize, int64(0) // a block for a mark
	for i, r := range rs {
		if r.typ == shardRec {
			room -= r.length()
		} else {
			notes++
		}
		if taken := alignUp(min(notes, 1)*recordHead + notes*noteLen); room < taken {
			return i
		}
	}
	return len(rs)
}

// admit decides whether a request is written at all. high is the highest log
// position among those of the group so far.
func (a *appender) admit(r *request, high *pack.Position) error {
	n := a.n
	if n.gone.Load() {
		return n.missing()
	}
	if r.from != nil {
		return nil // a copy keeps what it has
	}
	num, err := n.nextNumber()
	if err != nil {
		return err
	}
	n.mu.RLock()
	defer n.mu.RUnlock()
	if r.restate {
		r.note.num = uint64(num)
		return nil
	}
	if err := n.obeys(r.by); err != nil {
		return err
	}
	switch r.typ {
	case shardRec:
		r.inst = num
		if r.kind == pack.Log {
			if top := maxPos(n.high, *high); r.why != node.ForRepair && r.pos.Compare(top) <= 0 {
				return fmt.Errorf("%w: %v, held %v", node.ErrStalePut, r.pos, top)
			}
			*high = maxPos(*high, r.pos)
		}
	case notesRec:
		r.note.num = uint64(num)
		i := n.table.find(r.note.key, r.note.inst)
		if i == 0 {
			r.skip = true // gone meanwhile
			if r.note.typ == undelete {
				return node.ErrNotFound
			}
			return nil
		}
		isDead := n.table.at(i).isDead()
		r.skip = isDead == (r.note.typ == tombstone) && !n.doubted[instance{r.note.key, r.note.inst}]
	}
	return nil
}

func maxPos(p, q pack.Position) pack.Position {
	if p.Compare(q) >= 0 {
		return p
	}
	return q
}

// write appends the requests, syncs once, checks that this is still the node's
// directory, and enters them into the table.
func (a *appender) write(rs []*request) error {
	if a.fresh {
		if err := a.reopen(); err != nil {
			return err
		}
	}
	a.heads, a.body, a.notes = a.heads[:0], a.body[:0], a.notes[:0]
	a.bufs = a.bufs[:0]
	start, off, from := a.off, a.off, a.off
	last := a.last
	a.marked = false
	flush := func(final bool) error {
		if len(a.bufs) == 0 {
			return nil
		}
		if _, err := a.f.WritevAt(a.bufs, from); err != nil {
			return err
		}
		if a.kind == dataSeg && !final {
			_ = a.f.StartWriteback(from, off-from) // a hint
		}
		clear(a.bufs)
		a.bufs, from = a.bufs[:0], off
		return nil
	}
	add := func(h *recHeader, head, body []byte) error {
		h.off, h.durable, h.prev = off, start, last
		at := len(a.heads)
		a.heads = h.append(a.heads, &a.seg.inc)
		a.bufs = append(a.bufs, a.heads[at:])
		if len(head) > 0 {
			a.bufs = append(a.bufs, head)
		}
		if len(body) > 0 {
			a.bufs = append(a.bufs, body)
		}
		if pad := h.length() - recordHead - int64(h.size); pad > 0 {
			a.bufs = append(a.bufs, zeroBlock[:pad])
		}
		off, last = h.end(), h.rec
		if off-from >= writebackStep {
			return flush(false)
		}
		return nil
	}
	err := func() error {
		for _, r := range rs {
			if r.typ == notesRec {
				a.notes = append(a.notes, r)
				a.body = r.note.append(a.body)
				continue
			}
			h := recHeader{rec: r.rec, payCRC: r.payCRC}
			if err := add(&h, r.head, r.body); err != nil {
				return err
			}
			r.off = h.off
		}
		if len(a.notes) > 0 {
			h := recHeader{rec: rec{typ: notesRec, size: uint32(len(a.body))}, payCRC: pack.CRC(a.body)}
			if err := add(&h, a.body, nil); err != nil {
				return err
			}
			for _, r := range a.notes {
				r.off = h.off
			}
		}
		return flush(true)
	}()
	clear(a.bufs) // nothing of the callers' is kept
	if err == nil {
		err = a.f.Datasync()
	}
	if err != nil {
		// What was written since the last good sync is unknown, whatever a retry
		// would say (H35): the segment ends here.
		a.n.doubt(a.notes)
		a.retire()
		return asked(err)
	}
	a.off, a.last = off, last
	a.wantSpare()
	err = a.n.check(a.f)
	if a.n.gone.Load() {
		return err
	}
	// Even when nobody could be asked whether this is still the node: the records
	// are durable, a reopened node would find them, and the table says so.
	a.n.commit(a.seg, off, rs)
	return err
}

// commit enters durable records into the table and decides, under the same lock
// as a promise takes effect, which puts may be acknowledged (H71).
func (n *Node) commit(seg *segment, end int64, rs []*request) {
	n.mu.Lock()
	defer n.mu.Unlock()
	seg.end = end
	t := n.table
	for _, r := range rs {
		switch {
		case r.typ == notesRec:
			i := t.find(r.note.key, r.note.inst)
			if i == 0 {
				if r.from == nil && r.note.typ == undelete {
					r.err = node.ErrNotFound
				}
				continue
			}
			if t.fates[i].num > r.note.num {
				continue // a newer note of the same group, or a copy come too late
			}
			if r.from != nil && t.fates[i].num != r.note.num {
				continue
			}
			seg.noteRecs = append(seg.noteRecs, footNote{note: r.note, off: r.off})
			if r.from == nil {
				delete(n.doubted, instance{r.note.key, r.note.inst})
			}
			n.apply(i, r.note, seg)
		case r.from != nil:
			i := t.find(r.key, r.inst)
			if i != 0 && t.at(i).seg == r.from {
				t.move(i, seg, r.off)
				seg.recs = append(seg.recs, r.rec)
			}
		default:
			// A put that comes too late is durable all the same, and listed: a
			// reopened node would find it too.
			r.err = n.obeys(r.by)
			n.supersede(r.key)
			t.add(&r.rec, seg, 0)
			seg.recs = append(seg.recs, r.rec)
			if r.kind == pack.Log {
				n.high = maxPos(n.high, r.pos)
			}
		}
	}
}

// supersede kills what is held under a key that a put replaces: something damaged.
func (n *Node) supersede(k node.Key) {
	if i := n.table.live(k); i != 0 {
		n.table.kill(i)
		n.table.setFate(i, fate{key: k, at: n.cfg.Now().UnixNano()})
	}
}

// apply makes a note hold.
func (n *Node) apply(i uint32, nt note, home *segment) {
	n.table.setFate(i, fate{key: nt.key, at: nt.time.UnixNano(), num: nt.num, typ: nt.typ, home: home})
	if nt.typ == tombstone {
		n.table.kill(i)
	} else {
		n.table.revive(i)
	}
}

// advance closes the open segment and opens one with room for r.
func (a *appender) advance(r *request) error {
	if err := a.leave(); err != nil {
		return err
	}
	why := r.why
	switch {
	case r.from != nil:
		why = node.ForCompaction
	case r.typ == notesRec:
		why = node.ForStart // a delete takes what is left: it gives space back
	}
	s, err := a.n.newSegment(a.kind, why, r.length()+blockSize)
	if err != nil {
		return err
	}
	f, err := a.n.files.get(s) // it is open: newSegment holds a reference
	if err != nil {
		return asked(err)
	}
	a.n.files.put(s)
	a.take(s, f)
	return nil
}

func (a *appender) take(s *segment, f vfs.File) {
	a.seg, a.f, a.off, a.last = s, f, s.end, rec{}
	a.fresh, a.marked, a.synced, a.asked = false, false, false, false
}

// leave closes the open segment. Its footer may fail: the segment is then kept
// as it is, and tried again by the background pass.
func (a *appender) leave() error {
	s := a.seg
	if s == nil {
		return nil
	}
	a.fresh = false
	_ = a.n.closeSegment(s, false)
	a.n.mu.Lock()
	s.open = false
	a.n.mu.Unlock()
	a.n.files.put(s)
	a.seg, a.f = nil, nil
	a.marked = false
	return nil
}

// retire ends the open segment after a failed write or sync: it is never
// written again, and what the last good sync covered stays.
func (a *appender) retire() {
	a.n.mu.Lock()
	a.seg.retired = true
	a.n.mu.Unlock()
	_ = a.leave()
}

// rotate closes the open segment so that its space can be given back.
func (a *appender) rotate(r *request) {
	if r.state.CompareAndSwap(waiting, taken) {
		var err error
		if a.seg != nil && a.off > dataStart {
			err = a.leave()
		}
		r.finish(err)
	}
}

// reopen takes the footer away from a segment that was closed cleanly and is
// now appended to: a footer that no longer tells all must not be found.
func (a *appender) reopen() error {
	a.fresh = false
	a.n.mu.Lock()
	a.seg.closed = false
	a.n.mu.Unlock()
	err := a.n.fs.Remove(segName(a.kind, a.seg.no, "idx"))
	if err == nil {
		err = a.n.fs.SyncDir(a.kind.dir())
	}
	if err != nil {
		_ = a.leave() // which writes it anew; this segment has seen enough
		return asked(err)
	}
	return nil
}

// doubt remembers notes that were written and perhaps are not on the disk: what
// they change is, until a later note settles it, one thing in memory and may be
// another at the next open.
func (n *Node) doubt(rs []*request) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, r := range rs {
		if r.from == nil {
			n.doubted[instance{r.note.key, r.note.inst}] = true
		}
	}
}

// nextNumber gives out the next instance, making the start durable that it belongs to.
func (n *Node) nextNumber() (id.Instance, error) {
	for {
		n.mu.Lock()
		if n.nextInst < n.lastInst {
			i := n.nextInst
			n.nextInst++
			n.mu.Unlock()
			return id.Instance(i), nil
		}
		n.mu.Unlock()
		n.stateSem <- struct{}{}
		n.mu.RLock()
		done := n.nextInst < n.lastInst // the other appender did it
		n.mu.RUnlock()
		var err error
		if !done {
			st := n.st
			st.starts++
			if err = n.saveState(st); err == nil {
				n.mu.Lock()
				n.nextInst = st.starts<<startShift | 1
				n.lastInst = (st.starts + 1) << startShift
				n.mu.Unlock()
			}
		}
		<-n.stateSem
		if err != nil {
			return 0, err
		}
	}
}

// startShift leaves 2^36 instances to each of 2^28 starts.
const startShift = 36
