package disk

import (
	"fmt"
	"sync"

	"cairn/node"
	"cairn/node/vfs"
)

// Space is what the nodes of a process that lie on one filesystem know of each
// other's puts: each of them sees the same free bytes, and without it all would
// take the last of them as their own (H52). The zero Space is ready.
type Space struct {
	mu    sync.Mutex
	taken map[uint64]int64 // by device: bytes of puts on their way
	kept  map[uint64]int64 // by device: what clients' data leaves beyond its mark
}

// Keep says how many bytes of a filesystem clients' data has to leave free beyond
// its mark, for what its owner has still to put there.
func (s *Space) Keep(device uint64, bytes int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.kept == nil {
		s.kept = map[uint64]int64{}
	}
	s.kept[device] = bytes
}

func (s *Space) keeps(device uint64) int64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.kept[device]
}

// take enters size bytes as on their way and returns how many there were before.
func (s *Space) take(device uint64, size int64) int64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.taken == nil {
		s.taken = map[uint64]int64{}
	}
	before := s.taken[device]
	s.taken[device] += size
	return before
}

// mark is how many bytes must stay free on a filesystem after a write of that
// purpose. The last percent is for what nothing can do without:
// promises, footers, the first pack of a start.
func (n *Node) mark(why node.Purpose, u vfs.Usage) int64 {
	switch why {
	case node.ForClient:
		return max(u.TotalBytes/20, 4*n.journalMax(u.TotalBytes)) + n.cfg.Space.keeps(u.Device)
	case node.ForCompaction:
		return u.TotalBytes / 100 * 3
	case node.ForStart:
		return 0
	}
	return u.TotalBytes / 100
}

// room lets a put of that purpose and size begin, or says why not. release ends
// what it holds of the room.
func (n *Node) room(why node.Purpose, size int64) (release func(), err error) {
	u, err := n.fs.Usage()
	if err != nil {
		return nil, asked(err)
	}
	free := u.FreeBytes - n.cfg.Space.take(u.Device, size)
	release = func() { n.cfg.Space.take(u.Device, -size) }
	if need := n.mark(why, u) + size; free < need {
		release()
		return nil, &node.RoomError{Dir: n.cfg.Dir, Why: why, Free: u.FreeBytes, Need: need}
	}
	if err := enoughFiles(why, u); err != nil {
		release()
		return nil, fmt.Errorf("%w in %s", err, n.cfg.Dir)
	}
	return release, nil
}

// enoughFiles says whether a put of that purpose leaves inodes for what matters
// more. A segment takes two, and so does one that is rewritten before the old one
// goes; a promise needs one for a moment, and without it nothing can start, even
// to read.
func enoughFiles(why node.Purpose, u vfs.Usage) error {
	kept := int64(0)
	switch why {
	case node.ForClient:
		kept = 32
	case node.ForCompaction, node.ForRepair:
		kept = 16
	}
	if u.FreeFiles >= 0 && u.FreeFiles < kept {
		return fmt.Errorf("%w: %d inodes free, %d are kept for what matters more", node.ErrFull, u.FreeFiles, kept)
	}
	return nil
}
