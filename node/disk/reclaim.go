package disk

import (
	"cmp"
	"context"
	"errors"
	"math"
	"slices"
	"strings"
	"time"

	"cairn/node"
	"cairn/pack"
)

// Segments are rewritten when so little of them is needed.
const (
	dataRewrite    = 10 // a tenth of a data segment: its holes are given back already
	journalRewrite = 4  // a quarter of a journal segment: it is given back only whole
	freeFiles      = 4  // zero-filled journal files that are kept for later
	copyBytes      = 16 << 20
	copyRequests   = 128
)

// reclaimNowAndThen is the background pass.
func (n *Node) reclaimNowAndThen() {
	defer n.background.Done()
	t := time.NewTicker(n.cfg.ReclaimEvery)
	defer t.Stop()
	for {
		select {
		case <-n.stopping.Done():
			return
		case <-t.C:
		}
		// What fails is tried again at the next pass, and shows in Usage.
		_ = n.Reclaim(n.stopping, n.cfg.Now())
	}
}

// Reclaim gives back the space of what was deleted longer ago than its keep
// time, as of now, and rewrites segments of which little is left. It does
// nothing that a crash at any step could undo; see docs/formats/node.md.
func (n *Node) Reclaim(ctx context.Context, now time.Time) error {
	if err := n.enter(ctx); err != nil {
		return n.fail("reclaim", node.Key{}, err)
	}
	defer n.ops.Done()
	if err := acquire(ctx, n.maintSem); err != nil {
		return n.fail("reclaim", node.Key{}, err)
	}
	defer func() { <-n.maintSem }()
	return n.fail("reclaim", node.Key{}, n.reclaim(ctx, now, false))
}

// Reclaimed says what [Node.ReclaimNow] gave back.
type Reclaimed struct {
	Shards int64 // tombstoned ones that are gone
	Bytes  int64 // disk space that the filesystem has back
	// Left counts shards that are still there, tombstoned: beside damage, which
	// stays where it is, or where there was no room to rewrite a segment.
	Left int64
}

// ReclaimNow gives back the space of everything that is tombstoned, once,
// whatever is left of its keep time, and of the files kept for later. It is for
// whoever is on the node's own host: a stolen token does not reach it (H62).
func (n *Node) ReclaimNow(ctx context.Context) (Reclaimed, error) {
	before, err := n.Usage(ctx)
	if err != nil {
		return Reclaimed{}, err
	}
	if err := n.enter(ctx); err != nil {
		return Reclaimed{}, n.fail("reclaim", node.Key{}, err)
	}
	defer n.ops.Done()
	if err := acquire(ctx, n.maintSem); err != nil {
		return Reclaimed{}, n.fail("reclaim", node.Key{}, err)
	}
	defer func() { <-n.maintSem }()
	err = n.reclaim(ctx, time.Unix(0, math.MaxInt64), true)
	after, uerr := n.Usage(ctx)
	if uerr != nil {
		return Reclaimed{}, errors.Join(n.fail("reclaim", node.Key{}, err), uerr)
	}
	return Reclaimed{Shards: before.DeadShards - after.DeadShards, Bytes: before.AllocatedBytes - after.AllocatedBytes, Left: after.DeadShards},
		n.fail("reclaim", node.Key{}, err)
}

// reclaim is one pass. all leaves nothing for later: journal segments are
// rewritten for any dead record, and no file is kept to be used again.
func (n *Node) reclaim(ctx context.Context, now time.Time, all bool) error {
	// While a segment has no footer the next open may find in it what the table
	// has given up; and while a note is in doubt, so may it what the note says.
	err := n.closeLeft(asked)
	if all && errors.Is(err, node.ErrFull) { // not even a footer has room
		err = n.trimFree(0)
		err = errors.Join(err, n.closeLeft(asked))
	}
	if err != nil {
		return err
	}
	if err := n.settleDoubts(ctx); err != nil {
		return err
	}
	segs := n.expire(now)
	for _, a := range []*appender{n.data, n.journal} {
		// Only a segment with a footer is punched: a scan takes zeros for rot.
		open := n.openSegment(a.kind)
		if open == nil || !slices.Contains(segs, open) || a.kind == journalSeg && !all {
			continue
		}
		r := &request{rotate: true, done: make(chan struct{})}
		if rerr := a.send(ctx.Done(), ctx.Err, r); rerr != nil {
			return errors.Join(err, rerr)
		}
	}
	for _, s := range segs {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if s.kind == dataSeg {
			err = errors.Join(err, n.punch(s))
		}
	}
	for _, s := range n.sparse(all) {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		err = errors.Join(err, n.evacuate(ctx, s, 0))
	}
	keep := freeFiles
	if all {
		keep = 0
	}
	return errors.Join(err, n.trimFree(keep))
}

// settleDoubts writes down once more what holds.
func (n *Node) settleDoubts(ctx context.Context) error {
	var rs []*request
	n.mu.Lock()
	for d := range n.doubted {
		i := n.table.find(d.key, d.inst)
		if i == 0 {
			delete(n.doubted, d)
			continue
		}
		nt := note{typ: undelete, key: d.key, inst: d.inst, time: n.now()}
		if n.table.at(i).isDead() {
			nt.typ, nt.time = tombstone, time.Unix(0, n.table.fates[i].at)
		}
		r := noteRequest(node.Authority{}, nt)
		r.restate = true
		rs = append(rs, r)
	}
	n.mu.Unlock()
	slices.SortFunc(rs, func(a, b *request) int { return compareKeys(&a.note.key, &b.note.key) })
	return n.sendAll(ctx, n.journal, rs)
}

func (n *Node) openSegment(k segKind) *segment {
	n.mu.RLock()
	defer n.mu.RUnlock()
	for _, s := range n.segs {
		if s.kind == k && s.open {
			return s
		}
	}
	return nil
}

// expire marks what can be given back and returns the segments it lies in. From
// then on nothing of it can be undeleted.
func (n *Node) expire(now time.Time) []*segment {
	n.mu.Lock()
	defer n.mu.Unlock()
	t := n.table
	var segs []*segment
	seen := map[*segment]bool{}
	mark := func(i uint32) {
		t.due(i)
		e := t.at(i)
		if !seen[e.seg] {
			seen[e.seg] = true
			segs = append(segs, e.seg)
		}
	}
	due := func(i uint32) bool {
		e, f := t.at(i), t.fates[i]
		keep := n.cfg.Keep
		if e.kind == pack.Log {
			keep = n.cfg.KeepLog
		}
		return e.isDead() && e.flags&pinned == 0 && !n.doubted[instance{f.key, e.inst}] && (e.flags&going != 0 || now.UnixNano()-f.at >= int64(keep))
	}
	var chain []uint32
	for i, f := range t.fates {
		if t.at(i).older != 0 || !due(i) {
			continue
		}
		// An instance goes only when the older ones of its key go: they may have
		// no tombstone of their own.
		chain = chain[:0]
		for i := t.newest(f.key); i != 0; i = t.at(i).older {
			chain = append(chain, i)
		}
		for _, i := range slices.Backward(chain) {
			if !due(i) {
				break
			}
			mark(i)
		}
	}
	slices.SortFunc(segs, func(a, b *segment) int { return int(a.no) - int(b.no) })
	return segs
}

// punch gives back what is going in a data segment. The tombstones are durable
// already: tombstone, sync, punch, sync, footer, in that order (H38).
func (n *Node) punch(s *segment) error {
	recs, notes, err := n.contents(s)
	if err != nil {
		return err
	}
	n.mu.RLock()
	open, closed := s.open, s.closed
	var dead []rec
	for _, r := range recs {
		if i := n.table.find(r.key, r.inst); i != 0 {
			if e := n.table.at(i); e.seg == s && e.off() == r.off && e.flags&going != 0 {
				dead = append(dead, r)
			}
		}
	}
	all := len(dead) == s.entries && s.broken == 0
	n.mu.RUnlock()
	if open || !closed || len(dead) == 0 {
		return nil // it waits for its footer
	}
	if all {
		if err := n.removeSegment(s); err != nil {
			return err
		}
		n.forget(dead)
		return nil
	}
	if err := n.punchRecords(s, dead); err != nil {
		return err
	}
	if err := n.writeFooter(s, n.footerOf(s, recs, notes, false, true)); err != nil {
		return err
	}
	n.forget(dead)
	return nil
}

// punchRecords punches holes and makes them durable.
func (n *Node) punchRecords(s *segment, dead []rec) error {
	f, err := n.files.get(s)
	if err != nil {
		return n.noFile(err)
	}
	defer n.files.put(s)
	slices.SortFunc(dead, func(a, b rec) int { return int(a.off/blockSize) - int(b.off/blockSize) })
	for i := 0; i < len(dead); {
		off, end := dead[i].off, dead[i].end()
		for i++; i < len(dead) && dead[i].off == end; i++ {
			end = dead[i].end()
		}
		if err := f.PunchHole(off, end-off); err != nil {
			return asked(err)
		}
	}
	return asked(f.Sync())
}

// forget takes records whose space is durably given back out of the table, and
// so the need for their tombstones.
func (n *Node) forget(dead []rec) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for i := range dead {
		if e := n.table.find(dead[i].key, dead[i].inst); e != 0 {
			n.table.remove(&dead[i], e)
		}
	}
}

// dropCopies takes out of a footer what lies elsewhere under the same instance:
// a rewriting was cut short.
func (n *Node) dropCopies(s *segment) error {
	recs, notes, err := n.contents(s)
	if err != nil {
		return err
	}
	var copies []rec
	n.mu.RLock()
	for _, r := range recs {
		if i := n.table.find(r.key, r.inst); i != 0 && (n.table.at(i).seg != s || n.table.at(i).off() != r.off) {
			copies = append(copies, r)
		}
	}
	n.mu.RUnlock()
	if len(copies) > 0 && s.kind == dataSeg && !s.retired {
		if err := n.punchRecords(s, copies); err != nil {
			return err
		}
	}
	return n.writeFooter(s, n.footerOf(s, recs, notes, false, false))
}

// sparse lists the segments worth rewriting, oldest first; all of the journal in
// which anything is going when all is set, and then those first of which nothing
// is needed: they cost no room.
func (n *Node) sparse(all bool) []*segment {
	n.mu.RLock()
	defer n.mu.RUnlock()
	goingBytes := map[*segment]int64{}
	for i := range n.table.fates {
		if e := n.table.at(i); e.flags&going != 0 {
			goingBytes[e.seg] += e.length()
		}
	}
	var out, small []*segment
	needs := map[*segment]int64{}
	for _, s := range n.segs {
		if s.open || !s.closed || s.broken > 0 {
			continue
		}
		needed := s.bytes - goingBytes[s] + int64(s.notes)*noteLen
		needs[s] = needed
		share := int64(dataRewrite)
		if s.kind == journalSeg {
			share = journalRewrite
		}
		switch {
		case needed*share <= s.end, all && s.kind == journalSeg && goingBytes[s] > 0:
			out = append(out, s)
		case s.kind == dataSeg && s.end <= n.cfg.first:
			small = append(small, s)
		}
	}
	if len(small) > smallSegments {
		out = append(out, small...)
	}
	slices.SortFunc(out, func(a, b *segment) int {
		if c := cmp.Compare(needs[a], needs[b]); all && c != 0 {
			return c
		}
		return int(a.no) - int(b.no)
	})
	return out
}

// smallSegments is how many data segments as short as a first one, which crashes leave,
// are put up with before they are joined.
const smallSegments = 16

// evacuate copies on what a segment holds from an offset on that is needed, and
// gives the segment back when nothing else in it is. The copies are durable before anything else happens (H37).
func (n *Node) evacuate(ctx context.Context, s *segment, from int64) error {
	recs, notes, err := n.contents(s)
	if err != nil {
		return err
	}
	var batch []*request
	bytes := int64(0)
	a := n.data
	if s.kind == journalSeg {
		a = n.journal
	}
	flush := func(a *appender) error {
		err := n.sendAll(ctx, a, batch)
		batch, bytes = batch[:0], 0
		return err
	}
	for _, r := range recs {
		if r.off < from {
			continue
		}
		n.mu.RLock()
		i := n.table.find(r.key, r.inst)
		needed := i != 0 && n.table.at(i).seg == s && n.table.at(i).off() == r.off && n.table.at(i).flags&going == 0
		n.mu.RUnlock()
		if !needed {
			continue
		}
		b, crc, err := n.load(s, &r)
		if errors.Is(err, node.ErrDamaged) {
			n.mu.Lock()
			if i := n.table.find(r.key, r.inst); i != 0 && n.table.at(i).seg == s && n.table.at(i).flags&broken == 0 {
				n.table.at(i).flags |= broken
				s.broken++
			}
			n.mu.Unlock()
			return err // what is damaged stays where it is, and the segment with it
		} else if err != nil {
			return err
		}
		batch = append(batch, &request{rec: r, body: b, payCRC: crc, from: s, done: make(chan struct{})})
		if bytes += r.length(); bytes >= copyBytes || len(batch) == copyRequests {
			if err := flush(a); err != nil {
				return err
			}
		}
	}
	if err := flush(a); err != nil {
		return err
	}
	for i := range notes {
		n.mu.RLock()
		needed := n.needsNote(s, &notes[i].note)
		n.mu.RUnlock()
		if !needed || notes[i].off < from {
			continue
		}
		batch = append(batch, &request{rec: rec{typ: notesRec, size: noteLen}, note: notes[i].note, from: s, done: make(chan struct{})})
		if len(batch) == copyRequests {
			if err := flush(n.journal); err != nil {
				return err
			}
		}
	}
	if err := flush(n.journal); err != nil {
		return err
	}
	return n.giveBack(s, recs, notes)
}

// needsNote says whether a note in s has to be copied on. The caller holds n.mu.
func (n *Node) needsNote(s *segment, nt *note) bool {
	i := n.table.find(nt.key, nt.inst)
	if i == 0 {
		return false
	}
	f, e := n.table.fates[i], n.table.at(i)
	return f.num == nt.num && f.home == s && !(e.seg == s && e.flags&going != 0)
}

// load reads a record's shard and checks all of it.
func (n *Node) load(s *segment, r *rec) ([]byte, uint32, error) {
	f, err := n.files.get(s)
	if err != nil {
		return nil, 0, n.noFile(err)
	}
	defer n.files.put(s)
	b := make([]byte, r.size)
	if err := readFull(f, b, r.off+recordHead); err != nil {
		return nil, 0, err
	}
	h, crc, err := inspect(node.Shard{Head: b})
	if err != nil {
		return nil, 0, err
	}
	if (node.Key{Pack: h.Pack, Index: h.Index}) != r.key {
		return nil, 0, damaged("the header is that of shard %v/%d", h.Pack, h.Index)
	}
	return b, crc, nil
}

// sendAll hands requests to an appender and waits for all of them.
func (n *Node) sendAll(ctx context.Context, a *appender, rs []*request) error {
	var err error
	sent := 0
	for _, r := range rs {
		select {
		case a.queue <- r:
			sent++
			continue
		case <-ctx.Done():
			err = ctx.Err()
		}
		break
	}
	for _, r := range rs[:sent] {
		<-r.done
		err = errors.Join(err, r.err)
	}
	return err
}

// giveBack frees a segment in which nothing is needed any more.
func (n *Node) giveBack(s *segment, recs []rec, notes []footNote) error {
	var dead []rec
	high := pack.Position{}
	n.mu.RLock()
	for _, r := range recs {
		i := n.table.find(r.key, r.inst)
		if i == 0 || n.table.at(i).seg != s {
			continue
		}
		if n.table.at(i).flags&going == 0 {
			n.mu.RUnlock()
			return nil // it came meanwhile; the next pass will see
		}
		dead = append(dead, r)
		if r.kind == pack.Log {
			high = maxPos(high, r.pos)
		}
	}
	for i := range notes {
		if n.needsNote(s, &notes[i].note) {
			n.mu.RUnlock()
			return nil
		}
	}
	stuck := s.broken > 0
	n.mu.RUnlock()
	if stuck {
		return nil
	}
	// That a position was taken outlives the shard that took it.
	if err := n.keepHigh(high); err != nil {
		return err
	}
	var err error
	if s.reused || !s.unlinked && s.kind == journalSeg && !s.retired && n.wantsFree(s.size) {
		err = n.recycle(s)
	} else {
		err = n.removeSegment(s)
	}
	if err != nil {
		return err
	}
	n.forget(dead)
	return nil
}

func (n *Node) keepHigh(high pack.Position) error {
	n.stateSem <- struct{}{}
	defer func() { <-n.stateSem }()
	if high.Compare(n.st.high) <= 0 {
		return nil
	}
	st := n.st
	st.high = high
	return n.saveState(st)
}

func (n *Node) wantsFree(size int64) bool {
	n.mu.RLock()
	defer n.mu.RUnlock()
	return len(n.free) < freeFiles && size >= n.cfg.first
}

// recycle makes a journal segment's file one that can be used again. From the
// moment that its new name is durable its records do not exist.
func (n *Node) recycle(s *segment) error {
	name := segName(s.kind, s.no, "free")
	if !s.reused {
		if err := n.fs.Rename(s.name(), name); err != nil {
			return asked(err)
		}
		s.reused = true
	}
	if err := n.fs.SyncDir(s.kind.dir()); err != nil {
		return asked(err)
	}
	n.leaveSegment(s)
	n.mu.Lock()
	n.free = append(n.free, freeFile{name, s.size})
	slices.SortFunc(n.free, func(a, b freeFile) int { return strings.Compare(a.name, b.name) })
	n.mu.Unlock()
	n.removeFooter(s)
	return nil
}

// removeSegment removes a segment. The footer goes only when the segment is
// durably gone, so that a punched one is never without.
func (n *Node) removeSegment(s *segment) error {
	if !s.unlinked {
		if err := n.fs.Remove(s.name()); err != nil {
			return asked(err)
		}
		s.unlinked = true
	}
	if err := n.fs.SyncDir(s.kind.dir()); err != nil {
		return asked(err)
	}
	n.leaveSegment(s)
	n.removeFooter(s)
	return nil
}

func (n *Node) leaveSegment(s *segment) {
	n.mu.Lock()
	delete(n.segs, segID{s.kind, s.no})
	n.mu.Unlock()
	n.files.drop(s)
}

// removeFooter tidies up; a footer without a segment means nothing, and the next
// open removes it.
func (n *Node) removeFooter(s *segment) { _ = n.fs.Remove(segName(s.kind, s.no, "idx")) }

// trimFree removes spare journal files above what is kept.
func (n *Node) trimFree(keep int) error {
	for {
		n.mu.Lock()
		if len(n.free) <= keep {
			n.mu.Unlock()
			return nil
		}
		f := n.free[0]
		n.free = n.free[1:]
		n.mu.Unlock()
		if err := n.fs.Remove(f.name); err != nil {
			return asked(err)
		}
	}
}
