package disk

import (
	"testing"
	"time"

	"cairn/node"
	"cairn/node/vfs/crashfs"
)

// TestNextJournalFileIsMadeBeside: when the open journal segment runs out, the next
// one is there already.
func TestNextJournalFileIsMadeBeside(t *testing.T) {
	fsys := crashfs.New()
	cfg := tiny(1)
	cfg.ReclaimEvery = time.Hour
	cfg.MaxJournal = 256 << 10
	n := newNode(t, fsys, cfg)
	idle := func() (spare []freeFile) {
		for {
			n.mu.RLock()
			busy := n.preparing != nil || len(n.wanted) > 0
			spare = append(spare[:0], n.free...)
			n.mu.RUnlock()
			if !busy {
				return spare
			}
			time.Sleep(time.Millisecond)
		}
	}
	var open *segment
	var spare []freeFile
	seq := uint64(0)
	for segs := 0; segs < 5; {
		seq++
		mustPut(t, n, logShard(seq, 8<<10))
		s := n.openSegment(journalSeg)
		if s != open {
			if segs++; open != nil && (len(spare) != 1 || s.size != spare[0].size) {
				t.Fatalf("segment %d of %d bytes was made when it was needed; spare were %v", s.no, s.size, spare)
			}
			open = s
		}
		// The background hears of it after the put was answered.
		since := time.Now()
		for spare = idle(); len(spare) == 0 && s.end > s.size*3/4; spare = idle() {
			if time.Since(since) > 10*time.Second {
				t.Fatalf("segment %d is full up to %d of %d bytes, and none is ready", s.no, s.end, s.size)
			}
			time.Sleep(time.Millisecond)
		}
	}
	if err := n.Close(); err != nil {
		t.Fatal(err)
	}
	n = mustOpen(t, fsys.Crash(newRand(1)), cfg)
	defer n.Close()
	for s := uint64(1); s <= seq; s++ {
		if err := intact(n, logShard(s, 8<<10)); err != nil {
			t.Errorf("log pack %d: %v", s, err)
		}
	}
}

// TestNoJournalFileForLaterOnAFullDisk: what is made for later takes no room that
// is kept for what cannot wait.
func TestNoJournalFileForLaterOnAFullDisk(t *testing.T) {
	disk := crashfs.NewDisk(crashfs.DiskConfig{Bytes: 64 << 20})
	fsys := disk.New()
	n := newNode(t, fsys, tiny(1))
	defer n.Close()
	u, err := fsys.Usage()
	if err != nil {
		t.Fatal(err)
	}
	disk.Occupy(u.FreeBytes - n.mark(node.ForClient, u) - 100<<10)
	if err := n.prepare(t.Context()); err != nil || len(n.free) != 0 {
		t.Errorf("just above the mark: %v, %d files", err, len(n.free))
	}
	disk.Occupy(-16 << 20)
	if err := n.prepare(t.Context()); err != nil || len(n.free) != 1 {
		t.Errorf("with room: %v, %d files", err, len(n.free))
	}
	if err := n.prepare(t.Context()); err != nil || len(n.free) != 1 {
		t.Errorf("again: %v, %d files", err, len(n.free))
	}
}
