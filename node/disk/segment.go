package disk

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"syscall"

	"cairn/node"
	"cairn/node/vfs"
)

// segment is one use of one file.
type segment struct {
	kind segKind
	no   uint32
	inc  [16]byte
	size int64 // of the file

	// Under Node.mu.
	end     int64 // of the last durable record
	retired bool  // a write or a sync failed: never written again
	closed  bool  // its footer is durable
	open    bool  // an appender has it
	entries int   // of the table that lie here
	broken  int   // of those, or of what has not even a name: found damaged
	notes   int   // notes here that hold
	bytes   int64 // of the records of those entries

	// What a segment without a footer holds, in order: the appender's while it
	// is open, under Node.mu afterwards.
	recs     []rec
	noteRecs []footNote

	// Owned by whoever holds maintSem: the file has lost its name, or got that of
	// one to be used again, and that was perhaps not durable yet. Until it is,
	// the segment and its tombstones stay known: a power cut may bring it back.
	unlinked, reused bool

	// Under files.mu.
	f    vfs.File
	refs int
	used uint64
	gone bool // removed, or recycled: close when the last reference goes
}

func (s *segment) name() string { return segName(s.kind, s.no, "seg") }

func segName(k segKind, no uint32, ext string) string {
	return fmt.Sprintf("%s/%08x.%s", k.dir(), no, ext)
}

// files keeps a bounded number of segments open. No lock is held while the
// filesystem is asked.
type files struct {
	fs  vfs.FS
	max int

	mu   sync.Mutex
	open map[*segment]struct{}
	tick uint64
}

// get returns the segment's open file, which stays open until put.
func (fl *files) get(s *segment) (vfs.File, error) {
	fl.mu.Lock()
	if s.f != nil {
		s.refs++
		fl.tick++
		s.used = fl.tick
		f := s.f
		fl.mu.Unlock()
		return f, nil
	}
	gone := s.gone
	fl.mu.Unlock()
	if gone {
		return nil, os.ErrNotExist
	}
	f, err := fl.fs.OpenFile(s.name(), os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	return fl.adopt(s, f), nil
}

// adopt makes f the segment's open file, unless it has one, and takes a reference.
func (fl *files) adopt(s *segment, f vfs.File) vfs.File {
	var closing []vfs.File
	fl.mu.Lock()
	if s.f != nil {
		closing = append(closing, f)
	} else {
		s.f = f
		fl.open[s] = struct{}{}
	}
	s.refs++
	fl.tick++
	s.used = fl.tick
	for len(fl.open) > fl.max {
		var lru *segment
		for o := range fl.open {
			if o.refs == 0 && (lru == nil || o.used < lru.used) {
				lru = o
			}
		}
		if lru == nil {
			break
		}
		closing = append(closing, lru.f)
		lru.f = nil
		delete(fl.open, lru)
	}
	f = s.f
	fl.mu.Unlock()
	for _, c := range closing {
		_ = c.Close() // everything in it was synced, or is known to be unknown
	}
	return f
}

// put gives a reference back.
func (fl *files) put(s *segment) {
	fl.mu.Lock()
	s.refs--
	var closing vfs.File
	if s.gone && s.refs == 0 && s.f != nil {
		closing, s.f = s.f, nil
		delete(fl.open, s)
	}
	fl.mu.Unlock()
	if closing != nil {
		_ = closing.Close()
	}
}

// drop says that the file has left the segment's name.
func (fl *files) drop(s *segment) {
	fl.mu.Lock()
	s.gone = true
	s.refs++
	fl.mu.Unlock()
	fl.put(s)
}

// closeAll closes what is open; nothing uses it any more.
func (fl *files) closeAll() error {
	fl.mu.Lock()
	var all []vfs.File
	for s := range fl.open {
		all = append(all, s.f)
		s.f = nil
	}
	clear(fl.open)
	fl.mu.Unlock()
	var err error
	for _, f := range all {
		err = errors.Join(err, f.Close())
	}
	return err
}

// asked translates an error of the filesystem: full, or could not ask. What is
// not there or damaged is told apart before.
func asked(err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, syscall.ENOSPC), errors.Is(err, syscall.EDQUOT):
		return fmt.Errorf("%w: %w", node.ErrFull, err)
	}
	for _, known := range []error{node.ErrFull, node.ErrUnavailable, node.ErrMissing, node.ErrDamaged} {
		if errors.Is(err, known) {
			return err
		}
	}
	return fmt.Errorf("%w: %w", node.ErrUnavailable, err)
}

// newSegment makes the next segment of a kind, with room for need bytes of
// records, the first of which is for why. When it returns, the segment's header
// and name are durable.
func (n *Node) newSegment(k segKind, why node.Purpose, need int64) (_ *segment, err error) {
	if err := n.still(); err != nil { // never write into a stranger's directory
		return nil, err
	}
	s := &segment{kind: k, end: dataStart, open: true}
	if err := n.random(s.inc[:]); err != nil {
		return nil, err
	}
	need += dataStart + blockSize // two headers, a mark

	var spare freeFile
	if k == journalSeg {
		spare = n.spare(need)
	}
	n.mu.Lock()
	n.lastNo++
	s.no = n.lastNo
	n.mu.Unlock()

	name := spare.name
	s.size = spare.size
	flag := os.O_RDWR
	if name == "" {
		if s.size, err = n.segmentSize(k, why, need); err != nil {
			return nil, err
		}
		name = segName(k, s.no, "new")
		flag |= os.O_CREATE | os.O_EXCL
	}
	f, err := n.fs.OpenFile(name, flag, 0o600)
	if err != nil {
		return nil, asked(err)
	}
	defer func() {
		if err != nil {
			_ = f.Close()
			_ = n.fs.Remove(name) // the next open removes it otherwise
		}
	}()
	if spare.name == "" {
		if err := f.Allocate(0, s.size); err != nil {
			return nil, asked(err)
		}
		if k == journalSeg {
			if err := fill(context.Background(), f, s.size); err != nil {
				return nil, asked(err)
			}
		}
	}
	h := segHeader{kind: k, no: s.no, node: n.id, inc: s.inc}
	if _, err := f.WriteAt(h.encode(), 0); err != nil {
		return nil, asked(err)
	}
	if err := f.Sync(); err != nil {
		return nil, asked(err)
	}
	if err := n.fs.Rename(name, s.name()); err != nil {
		return nil, asked(err)
	}
	name = s.name()
	if err := n.fs.SyncDir(k.dir()); err != nil { // before the first answer (W17)
		return nil, asked(err)
	}
	n.files.adopt(s, f) // the appender's reference
	n.mu.Lock()
	n.segs[segID{k, s.no}] = s
	n.made[k] += s.size
	n.mu.Unlock()
	return s, nil
}

// segmentSize chooses how long a new file is: a data file a quarter as long as those
// before it in this run together, since what of it is not used yet is lost to
// others, a journal file, which is used again, half as long; of what is free above the mark at
// most an eighth, so that several nodes on one filesystem, and both kinds on each,
// do not together preallocate what the mark keeps for others.
func (n *Node) segmentSize(k segKind, why node.Purpose, need int64) (int64, error) {
	u, err := n.fs.Usage()
	if err != nil {
		return 0, asked(err)
	}
	largest := n.cfg.MaxData
	if k == journalSeg {
		largest = n.journalMax(u.TotalBytes)
	}
	n.mu.RLock()
	made := n.made[k]
	n.mu.RUnlock()
	if k == journalSeg {
		made /= 2
	} else {
		made /= 4
	}
	size := min(max(n.cfg.first, made), largest, u.TotalBytes/100, (u.FreeBytes-n.mark(why, u))/8)
	return alignUp(max(size, need)), nil
}

// journalMax is how long journal segments get on a filesystem of that size.
func (n *Node) journalMax(total int64) int64 {
	return min(n.cfg.MaxJournal, max(total/100, n.cfg.first))
}

// fill writes zeros over a new journal file, so that later syncs find written
// blocks: on ext4 that is three times as fast as into preallocated ones.
func fill(ctx context.Context, f vfs.File, size int64) error {
	b := fillPool.Get().(*[fillStep]byte)
	defer fillPool.Put(b)
	for off := int64(0); off < size; off += fillStep {
		if err := ctx.Err(); err != nil {
			return err
		}
		if _, err := f.WriteAt(b[:min(fillStep, size-off)], off); err != nil {
			return err
		}
	}
	return nil
}

const fillStep = 1 << 20

// fillPool holds zeros that nobody writes to.
var fillPool = sync.Pool{New: func() any { return new([fillStep]byte) }}

// closeSegment writes the footer of a segment that no appender has any more; a
// data file is cut at its end first, which gives the rest back. When it fails,
// the segment keeps its lists in memory and the next open scans it.
func (n *Node) closeSegment(s *segment, resumable bool) error {
	if n.gone.Load() {
		return n.missing()
	}
	if s.kind == dataSeg && !resumable && !s.retired && s.size > s.end {
		f, err := n.files.get(s)
		if err != nil {
			return asked(err)
		}
		err = f.Truncate(s.end)
		n.files.put(s)
		if err != nil {
			return asked(err)
		}
		n.mu.Lock()
		s.size = s.end
		n.mu.Unlock()
	}
	if err := n.writeFooter(s, n.footerOf(s, s.recs, s.noteRecs, resumable, false)); err != nil {
		return err
	}
	n.mu.Lock()
	s.closed, s.recs, s.noteRecs = true, nil, nil
	n.mu.Unlock()
	return nil
}

// footerOf lists what of the given records is still needed; punched says that
// what is going has gone.
func (n *Node) footerOf(s *segment, recs []rec, notes []footNote, resumable, punched bool) *footer {
	n.mu.RLock()
	defer n.mu.RUnlock()
	f := &footer{no: s.no, kind: s.kind, resumable: resumable, retired: s.retired, inc: s.inc, end: s.end}
	for _, r := range recs {
		i := n.table.find(r.key, r.inst)
		if i == 0 {
			continue
		}
		e := n.table.at(i)
		if e.seg == s && e.off() == r.off && !(punched && e.flags&going != 0) {
			f.shards = append(f.shards, footShard{rec: r, damaged: e.flags&broken != 0})
		}
	}
	for _, l := range n.lost {
		if l.seg == s {
			f.shards = append(f.shards, footShard{rec: l.rec, damaged: true})
		}
	}
	for _, nt := range notes {
		if i := n.table.find(nt.key, nt.inst); i != 0 && n.table.fates[i].num == nt.num {
			f.notes = append(f.notes, nt)
		}
	}
	return f
}

func (n *Node) writeFooter(s *segment, f *footer) error {
	return asked(vfs.WriteFile(n.fs, segName(s.kind, s.no, "idx"), sealSmall(footerFile, n.id, f.encode())))
}

// readFooter reads the footer of a closed segment back.
func (n *Node) readFooter(s *segment) (*footer, error) {
	b, err := vfs.ReadFile(n.fs, segName(s.kind, s.no, "idx"), maxFooter)
	if err != nil {
		return nil, err
	}
	if b, err = openSmall(footerFile, n.id, b); err != nil {
		return nil, err
	}
	return parseFooter(b)
}

// maxFooter bounds what is read as a footer: every block of the longest segment a record.
const maxFooter = smallHead + footerHead + entryLen*(4<<30/blockSize)

// contents lists the records of a segment that no appender has.
func (n *Node) contents(s *segment) ([]rec, []footNote, error) {
	n.mu.RLock()
	closed, recs, notes := s.closed, s.recs, s.noteRecs
	n.mu.RUnlock()
	if !closed {
		return recs, notes, nil
	}
	f, err := n.readFooter(s)
	if err != nil {
		return nil, nil, asked(err)
	}
	recs = make([]rec, 0, len(f.shards))
	for _, sh := range f.shards {
		recs = append(recs, sh.rec)
	}
	return recs, f.notes, nil
}

// readFull reads exactly len(p) bytes. A file that is shorter is damage.
func readFull(f vfs.File, p []byte, off int64) error {
	if _, err := f.ReadAt(p, off); err == io.EOF {
		return damaged("the file ends before %d", off+int64(len(p)))
	} else if err != nil {
		return asked(err)
	}
	return nil
}
