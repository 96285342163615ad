package crashfs

import (
	"errors"
	"io/fs"
	"math/rand/v2"
	"os"
	"syscall"
	"testing"

	"cairn/node/vfs"

	"pgregory.net/rapid"
)

// inUse counts what the volumes of a disk take, by looking.
func (d *Disk) inUse(volumes ...*volume) (pages, files int64) {
	seen := make(map[*inode]bool)
	count := func(n *inode) {
		if seen[n] {
			return
		}
		seen[n] = true
		files++
		own := int64(0)
		for p := range int64(len(n.leaves)) * leafPages {
			pg, alloc := n.page(p)
			if pg != nil && !alloc {
				panic("a page with content and no room")
			}
			if alloc {
				own++
			}
		}
		if own != n.allocated {
			panic("an inode does not know its pages")
		}
		pages += own
	}
	var walk func(n *inode)
	walk = func(n *inode) {
		for _, x := range n.names {
			count(x)
			walk(x)
		}
	}
	for _, v := range volumes {
		walk(v.root)
		for h := range v.handles {
			if h.n.links == 0 { // else it is in a tree, after a swap in another's
				count(h.n)
			}
		}
	}
	return pages, files
}

// TestRoomIsCounted does everything that takes or gives room, crashes included,
// on a small disk with two volumes, and counts afresh after each step.
func TestRoomIsCounted(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		disk := NewDisk(DiskConfig{Bytes: 64 * pageSize, Files: 8})
		vols := []*FS{disk.New(), disk.New()}
		var open []vfs.File
		name := rapid.SampledFrom([]string{"a", "b", "d", "d/a", "e"})
		offset := rapid.Int64Range(0, 20*pageSize)
		allowed := func(err error) {
			for _, e := range []error{nil, syscall.ENOSPC, fs.ErrNotExist, fs.ErrExist, syscall.ENOTDIR, syscall.EISDIR,
				syscall.ENOTEMPTY, syscall.EINVAL, ErrCrashed, vfs.ErrLocked} {
				if errors.Is(err, e) {
					return
				}
			}
			t.Fatalf("unexpected: %v", err)
		}
		pick := func(t *rapid.T) int { return rapid.IntRange(0, 1).Draw(t, "volume") }
		file := func(t *rapid.T) vfs.File {
			if len(open) == 0 {
				t.Skip("nothing is open")
			}
			return rapid.SampledFrom(open).Draw(t, "file")
		}
		rng := func(t *rapid.T) *rand.Rand { return rand.New(rand.NewPCG(rapid.Uint64().Draw(t, "seed"), 0)) }
		openFile := func(t *rapid.T) {
			f, err := vols[pick(t)].OpenFile(name.Draw(t, "name"), os.O_RDWR|os.O_CREATE, 0o600)
			if allowed(err); err == nil {
				open = append(open, f)
			}
		}
		write := func(t *rapid.T) {
			b := make([]byte, rapid.IntRange(0, 5*pageSize).Draw(t, "length"))
			for i := range b {
				b[i] = byte(i >> 12) // some pages are zeros
			}
			_, err := file(t).WriteAt(b, offset.Draw(t, "off"))
			allowed(skipClosed(err))
		}
		t.Repeat(map[string]func(*rapid.T){
			"open": openFile, "open again": openFile, "write": write, "write again": write,
			"lock": func(t *rapid.T) {
				_, err := vols[pick(t)].Lock(name.Draw(t, "name"))
				allowed(err)
			},
			"close":    func(t *rapid.T) { allowed(skipClosed(file(t).Close())) },
			"mkdir":    func(t *rapid.T) { allowed(vols[pick(t)].Mkdir(name.Draw(t, "name"), 0o700)) },
			"remove":   func(t *rapid.T) { allowed(vols[pick(t)].Remove(name.Draw(t, "name"))) },
			"rename":   func(t *rapid.T) { allowed(vols[pick(t)].Rename(name.Draw(t, "old"), name.Draw(t, "new"))) },
			"truncate": func(t *rapid.T) { allowed(skipClosed(file(t).Truncate(offset.Draw(t, "size")))) },
			"allocate": func(t *rapid.T) {
				allowed(skipClosed(file(t).Allocate(offset.Draw(t, "off"), offset.Draw(t, "n"))))
			},
			"punch": func(t *rapid.T) {
				allowed(skipClosed(file(t).PunchHole(offset.Draw(t, "off"), offset.Draw(t, "n"))))
			},
			"sync": func(t *rapid.T) { allowed(skipClosed(file(t).Datasync())) },
			"failed sync": func(t *rapid.T) {
				v := vols[pick(t)]
				v.Inject(Rules(Rule{Kind: OpSync, Fault: Fault{Err: syscall.EINVAL, Drop: true}}))
				allowed(skipClosed(file(t).Sync()))
				v.Inject(nil)
			},
			"syncdir":    func(t *rapid.T) { allowed(vols[pick(t)].SyncDir(".")) },
			"remove all": func(t *rapid.T) { allowed(vols[pick(t)].RemoveAll(name.Draw(t, "name"))) },
			"flip": func(t *rapid.T) {
				err := vols[pick(t)].Flip(name.Draw(t, "name"), 8*offset.Draw(t, "byte"))
				allowed(err)
			},
			"swap": func(t *rapid.T) { vols[0].Swap(vols[1]) },
			"kill": func(t *rapid.T) { i := pick(t); vols[i] = vols[i].Kill() },
			"crash": func(t *rapid.T) {
				i := pick(t)
				vols[i] = vols[i].Crash(rng(t))
				if p, _ := vols[i].v.root.room(); len(vols[i].v.pending) != 0 || p > disk.pages {
					t.Fatal("after a crash something is pending")
				}
			},
			"copy": func(t *rapid.T) {
				f := vols[pick(t)]
				others, otherFiles := disk.inUse(vols[0].v, vols[1].v)
				own, ownFiles := disk.inUse(f.v)
				for _, c := range []*FS{f.Clone(), f.CrashClone(rng(t))} {
					pages, files := c.v.disk.inUse(c.v)
					if p, n := c.v.disk.pages, c.v.disk.files; p != others-own+pages || n != otherFiles-ownFiles+files {
						t.Fatalf("a copy counts %d pages and %d files, has %d and %d besides others' %d and %d",
							p, n, pages, files, others-own, otherFiles-ownFiles)
					}
				}
			},
			"": func(t *rapid.T) {
				pages, files := disk.inUse(vols[0].v, vols[1].v)
				if pages != disk.pages || files != disk.files {
					t.Fatalf("the disk counts %d pages and %d files, its volumes have %d and %d", disk.pages, disk.files, pages, files)
				}
			},
		})
	})
}

func skipClosed(err error) error {
	if errors.Is(err, fs.ErrClosed) {
		return nil
	}
	return err
}
