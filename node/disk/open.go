package disk

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"slices"
	"strconv"
	"strings"

	"cairn/id"
	"cairn/node"
	"cairn/node/vfs"
	"cairn/pack"
)

// Format makes a node of an empty directory and returns its new name. What an
// earlier Format that was cut short has left is no obstacle; anything else is.
// Only when it has returned is the node there after a power cut.
func Format(fsys vfs.FS, cfg Config) (id.Node, error) {
	cfg, err := cfg.withDefaults()
	if err != nil {
		return id.Node{}, err
	}
	lock, err := fsys.Lock("lock")
	if err != nil {
		return id.Node{}, fmt.Errorf("format a node: %w", lockError(err))
	}
	n, err := format(fsys, cfg)
	if cerr := lock.Close(); err == nil {
		err = asked(cerr)
	}
	if err != nil {
		return id.Node{}, fmt.Errorf("format a node: %w", err)
	}
	return n, nil
}

// Blank returns nil of a directory that [Format] would make a node of: one that is
// empty, or has only what a Format that was cut short has left. What else it has, the
// error names.
func Blank(fsys vfs.FS) error {
	names, err := fsys.ReadDir(".")
	if err != nil {
		return asked(err)
	}
	for _, name := range names {
		switch name {
		case "lock", "state", "state" + vfs.TempSuffix, "node.json" + vfs.TempSuffix, "lost+found":
		case dataSeg.dir(), journalSeg.dir():
			if in, err := fsys.ReadDir(name); err != nil {
				return asked(err)
			} else if len(in) > 0 {
				return fmt.Errorf("the directory is not empty: it has %s/%s", name, in[0])
			}
		default:
			return fmt.Errorf("the directory is not empty: it has %s", name)
		}
	}
	return nil
}

func lockError(err error) error {
	if errors.Is(err, vfs.ErrLocked) {
		return err
	}
	return asked(err)
}

func format(fsys vfs.FS, cfg Config) (id.Node, error) {
	if err := Blank(fsys); err != nil {
		return id.Node{}, err
	}
	n, err := id.NewNode(cfg.Rand)
	if err != nil {
		return id.Node{}, err
	}
	for _, k := range []segKind{dataSeg, journalSeg} {
		if err := fsys.Mkdir(k.dir(), 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
			return id.Node{}, asked(err)
		}
	}
	if err := fsys.SyncDir("."); err != nil {
		return id.Node{}, asked(err)
	}
	st := state{}
	if err := vfs.WriteFile(fsys, "state", sealSmall(stateFile, n, st.encode())); err != nil {
		return id.Node{}, asked(err)
	}
	// Last, because this is what makes a directory a node.
	me := identity{version: formatVersion, cluster: cfg.Cluster, node: n}
	if err := vfs.WriteFile(fsys, "node.json", me.encode()); err != nil {
		return id.Node{}, asked(err)
	}
	return n, nil
}

// Open opens the node in a directory. What is wrong is one of: node.ErrMissing
// (empty, or another node's directory), node.ErrDamaged (its identity or state
// does not hold), vfs.ErrLocked, node.ErrUnavailable (could not ask), or a
// refusal of what a newer version wrote. Rotten shards are no reason not to
// open: they are listed and answer node.ErrDamaged.
//
// After a crash it reads the segments that were open, and copies on what the
// journal among them holds. The caller closes fsys, after Close.
func Open(fsys vfs.FS, cfg Config) (*Node, error) {
	cfg, err := cfg.withDefaults()
	if err != nil {
		return nil, err
	}
	n, err := open(fsys, cfg)
	if err != nil {
		return nil, fmt.Errorf("open node: %w", err)
	}
	return n, nil
}

// readIdentity says which node a directory is, and node.json's inode.
func readIdentity(fsys vfs.FS, cfg Config) (identity, uint64, error) {
	b, err := vfs.ReadFile(fsys, "node.json", 64<<10)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		for _, k := range []segKind{dataSeg, journalSeg} {
			names, err := fsys.ReadDir(k.dir())
			if err != nil && !errors.Is(err, fs.ErrNotExist) {
				return identity{}, 0, asked(err)
			}
			if len(names) > 0 {
				return identity{}, 0, damaged("node.json is not there, but %s/%s is", k.dir(), names[0])
			}
		}
		return identity{}, 0, fmt.Errorf("%w: no node.json: the directory is empty, or its disk is not mounted; "+
			"if what was here is lost, run: cairn nodes replace NAME", node.ErrMissing)
	case errors.Is(err, vfs.ErrTooLarge):
		return identity{}, 0, damaged("%v", err)
	case err != nil:
		return identity{}, 0, asked(err)
	}
	me, err := parseIdentity(b)
	if err != nil {
		return identity{}, 0, err
	}
	if me.cluster != cfg.Cluster {
		return identity{}, 0, fmt.Errorf("%w: the directory belongs to cluster %v, not %v; "+
			"if it is to be given up, empty it and run: cairn nodes replace NAME", node.ErrMissing, me.cluster, cfg.Cluster)
	}
	if !zeroNode(cfg.Want) && me.node != cfg.Want {
		return identity{}, 0, fmt.Errorf("%w: this is node %v, not %v; "+
			"if that one is lost, run: cairn nodes replace NAME", node.ErrMissing, me.node, cfg.Want)
	}
	info, err := fsys.Stat("node.json")
	if err != nil {
		return identity{}, 0, asked(err)
	}
	return me, info.Inode, nil
}

func zeroNode(n id.Node) bool { return n == id.Node{} }

func open(fsys vfs.FS, cfg Config) (_ *Node, err error) {
	// Before the lock, so that a directory that is not ours gets no lock file.
	if _, _, err := readIdentity(fsys, cfg); err != nil {
		return nil, err
	}
	lock, err := fsys.Lock("lock")
	if err != nil {
		return nil, lockError(err)
	}
	n := &Node{cfg: cfg, fs: fsys, lock: lock,
		table: newTable(), segs: map[segID]*segment{}, pending: map[node.Key]*request{}, orders: map[*order]struct{}{}, doubted: map[instance]bool{},
		stateSem: make(chan struct{}, 1), maintSem: make(chan struct{}, 1), fileSem: make(chan struct{}, 1),
		wanted: make(chan struct{}, 1)}
	n.stopping, n.stop = context.WithCancel(context.Background())
	n.files = files{fs: fsys, max: cfg.MaxFiles, open: map[*segment]struct{}{}}
	defer func() {
		if err != nil {
			_ = n.files.closeAll()
			_ = lock.Close()
		}
	}()
	me, inode, err := readIdentity(fsys, cfg)
	if err != nil {
		return nil, err
	}
	n.id, n.inode = me.node, inode
	// A process that was killed may have left names that its own sync never
	// reached. What this open builds on must not go in a later power cut.
	for _, dir := range []string{".", dataSeg.dir(), journalSeg.dir()} {
		if err := fsys.SyncDir(dir); errors.Is(err, fs.ErrNotExist) {
			return nil, damaged("the directory %s is not there", dir)
		} else if err != nil {
			return nil, asked(err)
		}
	}
	b, err := readSmall(fsys, "state", stateFile, n.id, maxSmallFile)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, damaged("the state file is not there, and with it what was promised")
	} else if err != nil {
		return nil, err
	}
	if n.st, err = parseState(b); err != nil {
		return nil, err
	}
	n.promised, n.high = n.st.promised, n.st.high
	l := &loader{n: n}
	for _, k := range []segKind{dataSeg, journalSeg} {
		if err := l.dir(k); err != nil {
			return nil, err
		}
	}
	if err := l.build(); err != nil {
		return nil, err
	}
	n.data, n.journal = newAppender(n, dataSeg), newAppender(n, journalSeg)
	if err := l.resume(); err != nil {
		return nil, err
	}
	go n.data.run()
	go n.journal.run()
	if err := l.tidy(); err != nil {
		_ = n.shut()
		return nil, err
	}
	if cfg.ReclaimEvery > 0 {
		n.background.Add(2)
		go n.reclaimNowAndThen()
		go n.prepareNowAndThen()
	}
	return n, nil
}

// loader rebuilds the table.
type loader struct {
	n     *Node
	notes []homeNote
	dirty []*segment // their footers list what is not there any more
	left  []leftover // open at the crash: to be closed or copied on
	last  [3]*segment
}

// leftover is a segment that was open at a crash.
type leftover struct {
	*segment
	sure int64 // records from here on were perhaps never synced
}

type homeNote struct {
	note
	home *segment
}

// dir reads one of the two directories.
func (l *loader) dir(k segKind) error {
	n := l.n
	names, err := n.fs.ReadDir(k.dir())
	if errors.Is(err, fs.ErrNotExist) {
		return damaged("the directory %s is not there", k.dir())
	} else if err != nil {
		return asked(err)
	}
	var segs []uint32
	footers := map[uint32]bool{}
	for _, name := range names {
		full := k.dir() + "/" + name
		base, ext, _ := strings.Cut(name, ".")
		no, perr := strconv.ParseUint(base, 16, 32)
		if perr != nil || len(base) != 8 {
			continue // not ours
		}
		n.lastNo = max(n.lastNo, uint32(no))
		switch ext {
		case "seg":
			segs = append(segs, uint32(no))
		case "idx":
			footers[uint32(no)] = true
		case "free":
			info, err := n.fs.Stat(full)
			if err != nil {
				return asked(err)
			}
			n.free = append(n.free, freeFile{full, info.Size})
		case "new", "idx" + vfs.TempSuffix:
			if err := n.fs.Remove(full); err != nil {
				return asked(err)
			}
		}
	}
	slices.Sort(segs)
	for _, no := range segs {
		if err := l.segment(k, no, footers[no]); err != nil {
			return fmt.Errorf("%s: %w", segName(k, no, "seg"), err)
		}
		delete(footers, no)
	}
	for no := range footers { // of segments that were recycled or removed
		if err := n.fs.Remove(segName(k, no, "idx")); err != nil {
			return asked(err)
		}
	}
	return nil
}

// segment reads one segment's header and footer, or scans it.
func (l *loader) segment(k segKind, no uint32, hasFooter bool) error {
	n := l.n
	s := &segment{kind: k, no: no, end: dataStart}
	f, err := n.files.get(s)
	if err != nil {
		return asked(err)
	}
	defer n.files.put(s)
	info, err := f.Stat()
	if err != nil {
		return asked(err)
	}
	s.size = info.Size
	n.segs[segID{k, no}] = s

	headerErr := l.header(s, f)
	if headerErr != nil && !errors.Is(headerErr, node.ErrDamaged) {
		return headerErr
	}
	var foot *footer
	footErr := error(nil)
	if hasFooter {
		foot, footErr = n.readFooter(s)
		if errors.Is(footErr, errNewer) {
			return footErr
		}
		if footErr != nil && !errors.Is(footErr, node.ErrDamaged) {
			return asked(footErr)
		}
		if footErr == nil && headerErr == nil && foot.inc != s.inc {
			foot = nil // of an earlier use of the number
		}
	}
	if foot != nil && footErr == nil {
		s.inc, s.end = foot.inc, foot.end
		stale := false
		if foot.resumable {
			if stale, err = l.appended(s, f); err != nil {
				return err
			}
		}
		if !stale {
			l.take(s, foot.shards, foot.notes)
			s.closed, s.retired = true, foot.retired
			if foot.resumable && s.broken == 0 {
				l.last[k] = s
			}
			return nil
		}
		s.end = dataStart
	}
	if headerErr != nil {
		// Without the incarnation no record can be told from an old one.
		l.lose(s, rec{typ: shardRec, off: dataStart, size: uint32(min(max(s.size-dataStart, 0), pack.MaxShardSize))})
		s.retired = true
		return nil
	}
	found, err := scan(f, s.size, &s.inc, footErr != nil)
	if errors.Is(err, errNewer) {
		return err
	}
	if err != nil {
		return asked(err)
	}
	s.end = found.end
	l.take(s, found.shards, found.notes)
	for i := range found.shards {
		s.recs = append(s.recs, found.shards[i].rec)
	}
	s.noteRecs = found.notes
	for _, r := range found.lost {
		l.lose(s, r)
	}
	l.left = append(l.left, leftover{s, found.sure})
	return nil
}

// header reads the two copies of a segment's header.
func (l *loader) header(s *segment, f vfs.File) error {
	var err error
	for _, off := range []int64{0, blockSize} {
		var b [segHeaderLen]byte
		if _, rerr := f.ReadAt(b[:], off); rerr != nil && rerr != io.EOF {
			return asked(rerr)
		}
		var h segHeader
		if h, err = parseSegHeader(b[:]); errors.Is(err, errNewer) {
			return err
		} else if err != nil {
			continue
		}
		if h.node != l.n.id || h.kind != s.kind || h.no != s.no {
			err = damaged("segment header of another place")
			continue
		}
		s.inc = h.inc
		return nil
	}
	return err
}

// appended says whether a record stands at the end of a segment that was closed
// cleanly: then its footer came back from before it was appended to.
func (l *loader) appended(s *segment, f vfs.File) (bool, error) {
	if s.end+blockSize > s.size {
		return false, nil
	}
	var b [recordHead]byte
	if _, err := f.ReadAt(b[:], s.end); err != nil && err != io.EOF {
		return false, asked(err)
	}
	h, ok := parseRecHeader(b[:], &s.inc, s.end)
	return ok && h.typ != markRec, nil
}

// lose remembers damage without a name.
func (l *loader) lose(s *segment, r rec) {
	l.n.lost = append(l.n.lost, lostRec{s, r})
	s.broken++
}

// take enters what a segment holds into the table.
func (l *loader) take(s *segment, shards []footShard, notes []footNote) {
	n := l.n
	for i := range shards {
		sh := &shards[i]
		if sh.key == (node.Key{}) {
			l.lose(s, sh.rec)
			continue
		}
		if sh.inst == 0 {
			// Only its own header named it. The instance is made up from the start
			// that is being made, and written down when the segment is closed.
			sh.inst = id.Instance((n.st.starts+1)<<startShift + uint64(len(n.lost)) + uint64(n.table.lives+n.table.deads))
		}
		n.lastInst = max(n.lastInst, uint64(sh.inst))
		if sh.kind == pack.Log {
			n.high = maxPos(n.high, sh.pos)
		}
		flags := uint8(0)
		if sh.damaged {
			flags = broken
		}
		n.table.load(&sh.rec, s, flags)
	}
	for _, nt := range notes {
		n.lastInst = max(n.lastInst, nt.num)
		l.notes = append(l.notes, homeNote{nt.note, s})
	}
}

// twice is told of a second copy of one instance: a rewriting was cut short. A good
// one wins.
func (l *loader) twice(first, second uint32) {
	a, b := l.n.table.at(first), l.n.table.at(second)
	stale := b.seg
	if a.flags&broken != 0 && b.flags&broken == 0 {
		stale = a.seg
		l.n.table.move(first, b.seg, b.off())
	}
	if !slices.Contains(l.dirty, stale) {
		l.dirty = append(l.dirty, stale)
	}
}

// build applies the notes and settles what lies under one key more than once.
func (l *loader) build() error {
	n := l.n
	n.table.settle(l.twice)
	slices.SortFunc(l.notes, func(a, b homeNote) int {
		switch {
		case a.num < b.num:
			return -1
		case a.num > b.num:
			return 1
		}
		return 0
	})
	for i := range l.notes {
		nt := &l.notes[i]
		if e := n.table.find(nt.key, nt.inst); e != 0 && n.table.fates[e].num <= nt.num {
			n.apply(e, nt.note, nt.home)
		}
	}
	// Only the newest instance of a key may live without an undelete: an older
	// one was replaced because it was damaged.
	now := n.now().UnixNano()
	n.table.byKey.each(func(it keyItem) bool {
		for i := n.table.at(it.e).older; i != 0; i = n.table.at(i).older {
			if _, noted := n.table.fates[i]; !noted {
				n.table.kill(i)
				n.table.setFate(i, fate{key: it.key, at: now})
			}
		}
		return true
	})
	// Numbers go on above everything that is there, even if the state file is
	// from before it was given out.
	if used := n.lastInst >> startShift; used > n.st.starts {
		n.st.starts = used
	}
	n.nextInst, n.lastInst = 0, 0
	return nil
}

// resume lets the appenders go on in segments that were closed cleanly.
func (l *loader) resume() error {
	n := l.n
	for _, a := range []*appender{n.data, n.journal} {
		s := l.last[a.kind]
		if s == nil || s.retired || slices.Contains(l.dirty, s) {
			continue
		}
		if s.size-s.end < 4*blockSize {
			continue
		}
		f, err := n.files.get(s)
		if err != nil {
			return asked(err)
		}
		// Its lists come back into memory: its next footer is written from them.
		recs, notes, err := n.contents(s)
		if err != nil {
			n.files.put(s)
			return err
		}
		s.recs, s.noteRecs, s.open = recs, notes, true
		a.take(s, f)
		a.fresh = true
	}
	return nil
}

// tidy finishes what the crash interrupted, so that a restart costs no space.
// A full disk or an error only leaves it for later.
func (l *loader) tidy() error {
	n := l.n
	ctx := context.Background()
	for _, s := range l.dirty {
		if !s.closed {
			continue
		}
		if err := n.dropCopies(s); err != nil {
			return err
		}
	}
	for _, left := range l.left {
		// What was perhaps never synced is copied on in any case. It can be read,
		// but after a failed sync a page counts as clean that no disk has seen, and
		// another sync of the same file would say nothing (H35).
		s, from := left.segment, left.sure
		if s.broken == 0 && (s.kind == journalSeg || s.bytes <= n.cfg.first) {
			from = 0
		}
		if err := n.evacuate(ctx, s, from); n.gone.Load() {
			return err
		}
		n.mu.RLock()
		there := n.segs[segID{s.kind, s.no}] == s
		n.mu.RUnlock()
		if !there {
			continue
		}
		if err := n.syncSegment(s); err != nil {
			return err
		}
		if err := n.closeSegment(s, false); err != nil && !errors.Is(err, node.ErrFull) {
			return err
		}
	}
	return nil
}

// syncSegment makes durable what a killed process wrote and could not be copied.
func (n *Node) syncSegment(s *segment) error {
	f, err := n.files.get(s)
	if err != nil {
		return n.noFile(err)
	}
	defer n.files.put(s)
	return asked(f.Datasync())
}

// Close waits for what runs and marks the stop clean: the next open reads
// footers and scans nothing.
func (n *Node) Close() error {
	n.mu.Lock()
	if n.closed {
		n.mu.Unlock()
		return n.fail("close", node.Key{}, node.ErrClosed)
	}
	n.closed = true
	n.mu.Unlock()
	n.stop()
	n.background.Wait()
	n.ops.Wait()
	return n.fail("close", node.Key{}, n.shut())
}

// shut ends the appenders and closes what is open.
func (n *Node) shut() error {
	var err error
	for _, a := range []*appender{n.data, n.journal} {
		close(a.queue)
		<-a.ended
		s := a.seg
		if s == nil {
			continue
		}
		if !a.fresh {
			err = errors.Join(err, unlessFull(n.closeSegment(s, true)))
		}
		n.files.put(s)
		a.seg, a.f = nil, nil
	}
	if n.gone.Load() {
		err = nil // there is nothing to mark
	}
	err = errors.Join(err, n.closeLeft(unlessFull), asked(n.files.closeAll()), asked(n.lock.Close()))
	return err
}

// closeLeft tries once more to write footers that failed; judge may forgive that
// it fails again.
func (n *Node) closeLeft(judge func(error) error) error {
	n.mu.RLock()
	var left []*segment
	for _, s := range n.segs {
		if !s.closed && !s.open {
			left = append(left, s)
		}
	}
	n.mu.RUnlock()
	slices.SortFunc(left, func(a, b *segment) int { return int(a.no) - int(b.no) })
	var err error
	for _, s := range left {
		if s.inc != ([16]byte{}) && !n.gone.Load() {
			err = errors.Join(err, judge(n.closeSegment(s, false)))
		}
	}
	return err
}

// unlessFull forgives a footer that the disk has no room for: the next open reads
// the segment instead.
func unlessFull(err error) error {
	if errors.Is(err, node.ErrFull) {
		return nil
	}
	return err
}
