package disk

import (
	"context"
	"os"
	"slices"
	"strings"

	"cairn/node"
)

// A journal file is filled with zeros before it is used, which takes as long as
// writing it. While one is being used up the next one is made beside the appender,
// so that no put waits for it: a .free file like a recycled one, which means
// nothing until a segment takes it.

// wantSpare tells the background that the open journal segment is running out.
// The point is another one in every segment, between a quarter and three quarters
// of it, so that nodes that are written alike do not fill at the same time.
func (a *appender) wantSpare() {
	if a.kind != journalSeg || a.asked || a.seg == nil || a.off < a.seg.size/4+a.seg.size/512*int64(a.seg.inc[0]) {
		return
	}
	a.asked = true
	select {
	case a.n.wanted <- struct{}{}:
	default: // it is being made, or asked for
	}
}

// prepareNowAndThen makes the files that are asked for.
func (n *Node) prepareNowAndThen() {
	defer n.background.Done()
	for {
		select {
		case <-n.stopping.Done():
			return
		case <-n.wanted:
		}
		_ = n.prepare(n.stopping) // whoever needs a segment tries again, and reports
	}
}

// prepare makes a journal file for later, unless there is one, or room only for
// what cannot wait.
func (n *Node) prepare(ctx context.Context) (err error) {
	if err := n.still(); err != nil {
		return err
	}
	size, err := n.segmentSize(journalSeg, node.ForClient, 0)
	if err != nil || size < n.cfg.first {
		return err
	}
	u, err := n.fs.Usage()
	if err != nil {
		return asked(err)
	}
	if enoughFiles(node.ForClient, u) != nil {
		return nil
	}
	done := make(chan struct{})
	defer close(done)
	n.mu.Lock()
	fits := func(f freeFile) bool { return f.size >= size }
	if slices.ContainsFunc(n.free, fits) || len(n.free) > freeFiles || n.closed {
		n.mu.Unlock()
		return nil
	}
	n.lastNo++
	no := n.lastNo
	n.preparing = done
	n.mu.Unlock()
	defer func() {
		n.mu.Lock()
		n.preparing = nil
		n.mu.Unlock()
	}()

	name := segName(journalSeg, no, "new")
	f, err := n.fs.OpenFile(name, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return asked(err)
	}
	defer func() {
		_ = f.Close() // what is in it was synced, or is of no use
		if err != nil {
			_ = n.fs.Remove(name) // the next open removes it otherwise
		}
	}()
	if err := f.Allocate(0, size); err != nil {
		return asked(err)
	}
	if err := fill(ctx, f, size); err != nil {
		return asked(err)
	}
	if err := f.Sync(); err != nil {
		return asked(err)
	}
	free := freeFile{segName(journalSeg, no, "free"), size}
	// Should a power cut take the new name back, the next open removes the file.
	if err := n.fs.Rename(name, free.name); err != nil {
		return asked(err)
	}
	n.mu.Lock()
	n.free = append(n.free, free)
	slices.SortFunc(n.free, func(a, b freeFile) int { return strings.Compare(a.name, b.name) })
	n.mu.Unlock()
	return nil
}

// spare takes a journal file of at least need bytes that can be used again,
// waiting for one that is being made. Its name is empty when there is none.
func (n *Node) spare(need int64) freeFile {
	for {
		n.mu.Lock()
		best := -1 // the longest: segments are changed as seldom as can be
		for i, fr := range n.free {
			if fr.size >= need && (best < 0 || fr.size > n.free[best].size) {
				best = i
			}
		}
		if best >= 0 {
			fr := n.free[best]
			n.free = slices.Delete(n.free, best, best+1)
			n.mu.Unlock()
			return fr
		}
		making := n.preparing
		n.mu.Unlock()
		if making == nil {
			return freeFile{}
		}
		<-making
	}
}
