package datadir

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"cairn/id"
	"cairn/node"
	"cairn/store"
)

// TestNodesComeAndGo: a node in the data directory and one elsewhere are added, found
// again by starts, missed when their directories are not there, and set aside.
func TestNodesComeAndGo(t *testing.T) {
	t.Parallel()
	p, _ := begun(t)
	ctx := context.Background()
	disk := filepath.Join(p.base, "disk")
	elsewhere := filepath.Join(disk, "cairn")
	if err := os.Mkdir(disk, 0o755); err != nil {
		t.Fatal(err)
	}
	add := func(d *Dir, st *store.Store, name, path string) error {
		n, err := d.AddNode(name, path)
		if err != nil {
			return err
		}
		return st.AddNode(ctx, store.NewNode{Name: name}, n)
	}
	marked := func(want ...string) {
		t.Helper()
		d := &Dir{opt: p.options()}
		if m, _, err := d.readMarker(); err != nil || !slices.Equal(m.Nodes, want) {
			t.Errorf("node directories that are looked for: %v, %v; want %v", m.Nodes, err, want)
		}
	}
	if err := start(t, p.options(), func(d *Dir, st *store.Store) error {
		// One that was cut short behind the formatting is taken up.
		n, err := d.AddNode("n07", "")
		if err != nil {
			return err
		}
		if err := n.Close(); err != nil {
			return err
		}
		delete(d.Nodes, "n07")
		again, err := d.AddNode("n07", "")
		if err != nil || again.ID() != n.ID() {
			t.Errorf("an add that is taken up: %v, %v; want node %v", again, err, n.ID())
		}
		if err := st.AddNode(ctx, store.NewNode{Name: "n07"}, again); err != nil {
			return err
		}
		// So is one that was cut short at any step of it, but not what somebody put there.
		half := filepath.Join(p.data, "nodes", "n09")
		steps := []string{"lock", "data/", "journal/", "state.tmp", "state", "node.json.tmp"}
		for i := range steps {
			for _, left := range steps[:i+1] {
				write(t, half, left, "half")
			}
			write(t, half, "data/precious", "bytes")
			if _, err := d.AddNode("n09", ""); !errors.Is(err, store.ErrPrecondition) || !strings.Contains(err.Error(), "data/precious") {
				t.Errorf("somebody's file where a node is to begin: %v, want ErrPrecondition that names it", err)
			}
			if err := os.Remove(filepath.Join(half, "data", "precious")); err != nil {
				return err
			}
			if n, err := d.AddNode("n09", ""); err != nil {
				t.Errorf("a formatting that was cut short behind %s is not taken up: %v", steps[i], err)
			} else if err := n.Close(); err != nil {
				return err
			}
			delete(d.Nodes, "n09")
			if err := os.RemoveAll(half); err != nil {
				return err
			}
		}
		d.noteNodes(func(names []string) []string {
			return slices.DeleteFunc(names, func(x string) bool { return x == "n09" })
		})
		for path, want := range map[string]error{
			"relative": store.ErrInvalid, p.data: store.ErrInvalid, filepath.Join(p.data, "nodes", "n09"): store.ErrInvalid, p.base: store.ErrInvalid,
			filepath.Join(p.base, "not", "there"): store.ErrInvalid, p.config: store.ErrPrecondition,
		} {
			if err := add(d, st, "n08", path); !errors.Is(err, want) {
				t.Errorf("add a node at %s: %v, want %v", path, err, want)
			}
		}
		for _, name := range []string{"", "..", "a/b"} {
			if _, err := d.AddNode(name, ""); !errors.Is(err, store.ErrInvalid) {
				t.Errorf("add node %q: %v, want ErrInvalid", name, err)
			}
		}
		if err := add(d, st, "n08", elsewhere); err != nil {
			return err
		}
		// One directory is not two nodes, whatever leads there.
		byway := filepath.Join(p.base, "byway")
		if err := os.Symlink(elsewhere, byway); err != nil {
			return err
		}
		for _, path := range []string{elsewhere, byway} {
			if err := add(d, st, "n09", path); !errors.Is(err, store.ErrPrecondition) || !strings.Contains(err.Error(), "n08") {
				t.Errorf("add the directory of n08 at %s as n09: %v, want ErrPrecondition that names n08", path, err)
			}
			if _, err := os.Lstat(filepath.Join(p.data, "nodes", "n09")); !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("a refused node has left something: %v", err)
			}
		}
		if err := add(d, st, "n08", filepath.Join(disk, "other")); !errors.Is(err, store.ErrPrecondition) {
			t.Errorf("add a node of that name at another place: %v", err)
		}
		return getStone(d, st)
	}); err != nil {
		t.Fatal(err)
	}
	marked("n01", "n02", "n03", "n04", "n05", "n06", "n07", "n08")
	if to, err := os.Readlink(filepath.Join(p.data, "nodes", "n08")); err != nil || to != elsewhere {
		t.Errorf("nodes/n08 leads to %q, %v; want %s", to, err, elsewhere)
	}
	// A second link to it is told from another process.
	twice := filepath.Join(p.data, "nodes", "n10")
	if err := os.Symlink(elsewhere, twice); err != nil {
		t.Fatal(err)
	}
	if err := start(t, p.options(), getStone); err == nil || errors.Is(err, ErrInUse) || !strings.Contains(err.Error(), "one directory") {
		t.Errorf("two links lead to one node: %v", err)
	}
	if err := os.Remove(twice); err != nil {
		t.Fatal(err)
	}
	// Its disk is not mounted.
	if err := os.Rename(disk, disk+".off"); err != nil {
		t.Fatal(err)
	}
	if err := start(t, p.options(), func(d *Dir, st *store.Store) error {
		if err := d.Absent["n08"]; !errors.Is(err, node.ErrMissing) || !strings.Contains(err.Error(), elsewhere) {
			t.Errorf("a node whose disk is not mounted: %v; want ErrMissing and %s", err, elsewhere)
		}
		if _, err := d.Replace("n08", id.Node{1}); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("it is replaced where no disk is mounted: %v", err)
		}
		return getStone(d, st)
	}); err != nil {
		t.Fatal(err)
	}
	// It is mounted, and something else is on it.
	if err := os.Mkdir(disk, 0o755); err != nil {
		t.Fatal(err)
	}
	write(t, elsewhere, "precious", "bytes")
	if err := start(t, p.options(), func(d *Dir, st *store.Store) error {
		r, err := d.Replace("n08", id.Node{1})
		if err != nil {
			return err
		}
		if _, err := os.Stat(filepath.Join(r.Kept, "precious")); err != nil || filepath.Dir(r.Kept) != disk {
			t.Errorf("what was there is kept in %s, %v; want it on the same disk", r.Kept, err)
		}
		if err := st.ReplaceNode(ctx, "n08", r.Node); err != nil {
			return err
		}
		for _, name := range []string{"n07", "n08"} {
			if err := st.DrainNode(ctx, name, true); err != nil {
				return err
			}
			j, err := st.StartJob(ctx, store.JobDrain, store.JobOptions{Rate: 1 << 50})
			for (err == nil || errors.Is(err, store.ErrJobRunning)) && j.State == store.JobRunning {
				j, err = st.Job(ctx, j.ID)
			}
			if err := st.RemoveNode(ctx, name); err != nil {
				return err
			}
		}
		kept, err := d.Retire("n07")
		if err != nil || !strings.HasPrefix(kept, filepath.Join(p.data, "removed-n07-")) {
			t.Errorf("n07 is set aside as %q, %v", kept, err)
		}
		if kept, err = d.Retire("n08"); err != nil || kept != elsewhere {
			t.Errorf("n08 is left at %q, %v; want %s", kept, err, elsewhere)
		}
		return getStone(d, st)
	}); err != nil {
		t.Fatal(err)
	}
	marked("n01", "n02", "n03", "n04", "n05", "n06")
	if _, err := os.Lstat(filepath.Join(p.data, "nodes", "n08")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("nodes/n08 is still there: %v", err)
	}
	if err := start(t, p.options(), getStone); err != nil {
		t.Errorf("the start after: %v", err)
	}
}

// TestNodeIsMovedAway: a directory that is moved while it is open takes nothing more, for
// the next start would not find it; that start finds it when it is back.
func TestNodeIsMovedAway(t *testing.T) {
	t.Parallel()
	p, _ := begun(t)
	ctx := context.Background()
	at, away := filepath.Join(p.data, "nodes", "n02"), filepath.Join(p.base, "away")
	if err := start(t, p.options(), func(d *Dir, st *store.Store) error {
		n := d.Nodes["n02"]
		if _, err := n.Usage(ctx); err != nil {
			return err
		}
		if err := os.Rename(at, away); err != nil {
			return err
		}
		if _, err := n.Usage(ctx); !errors.Is(err, node.ErrMissing) {
			t.Errorf("a node that was moved away: %v, want ErrMissing", err)
		}
		if err := os.Rename(away, at); err != nil {
			return err
		}
		// Other processes may have had it.
		if _, err := n.Usage(ctx); !errors.Is(err, node.ErrMissing) {
			t.Errorf("a node that was away: %v, want ErrMissing", err)
		}
		return getStone(d, st)
	}); err != nil {
		t.Fatal(err)
	}
	if err := start(t, p.options(), func(d *Dir, st *store.Store) error {
		if _, err := d.Nodes["n02"].Usage(ctx); err != nil {
			t.Errorf("the next start: %v", err)
		}
		return getStone(d, st)
	}); err != nil {
		t.Fatal(err)
	}
}
