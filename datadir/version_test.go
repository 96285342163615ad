package datadir

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"cairn/id"
	"cairn/node/vfs"
	"cairn/record"
)

// fixtures are the small files of DIR and CONFIG as version 1 writes them.
const smallFilesV1 = "testdata/v1"

// TestSmallFilesOfVersion1: what version 1 wrote is read, and written in the same
// bytes.
func TestSmallFilesOfVersion1(t *testing.T) {
	cluster := id.Cluster{0xc1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16}
	read := func(name string) string {
		b, err := os.ReadFile(filepath.Join(smallFilesV1, name))
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
	same := func(dir, name, want string) {
		t.Helper()
		if b, err := os.ReadFile(filepath.Join(dir, name)); err != nil || string(b) != want {
			t.Errorf("%s is written as %q, %v; version 1 wrote %q", name, b, err, want)
		}
	}
	for name, want := range map[string]marker{
		"store.json":         {Format: 1, Cluster: cluster, State: formed, Nodes: []string{"n01", "n02", "n03"}, Losses: 1},
		"store-forming.json": {Format: 1, Cluster: cluster, State: forming, Nodes: []string{"n01", "n02", "n03", "n04", "n05"}, Losses: 2},
	} {
		d := &Dir{opt: Options{Dir: t.TempDir()}}
		write(t, d.opt.Dir, markerName, read(name))
		m, there, err := d.readMarker()
		if err != nil || !there || fmt.Sprint(m) != fmt.Sprint(want) {
			t.Errorf("%s is read as %v, %v, %v; want %v", name, m, there, err, want)
		}
		if err := d.writeMarker(want); err != nil {
			t.Fatal(err)
		}
		same(d.opt.Dir, markerName, read(name))
	}

	d := &Dir{opt: Options{Dir: "/srv/cairn", Config: t.TempDir()}, Cluster: cluster}
	write(t, d.opt.Config, "stores.json", read("stores.json"))
	if known, err := d.knownStore(); err != nil || known != cluster {
		t.Errorf("stores.json: %v, %v, want %v", known, err, cluster)
	}
	d.opt.Dir = "/srv/other"
	if err := d.rememberStore(); err != nil {
		t.Fatal(err)
	}
	same(d.opt.Config, "stores.json", read("stores-two.json"))

	write(t, d.opt.Config, cluster.String()+".token", read("token"))
	if err := d.formToken(); err != nil || d.Token != strings.TrimSpace(read("token")) {
		t.Errorf("the token of version 1 was not taken: %v", err)
	}
	same(d.opt.Config, "token", read("token"))
}

// later2 is a build that knows version 2 and takes a store there in three moves,
// each of which leaves everything as it was when it was made before.
func later2(hit func(point string) error) *later {
	move := func(name string, do func(dir string) error) func(string) error {
		return func(dir string) error {
			if err := hit("before " + name); err != nil {
				return err
			}
			if err := do(dir); err != nil {
				return err
			}
			return hit("after " + name)
		}
	}
	moves := []func(string) error{
		move("the new file", func(dir string) error {
			b, err := os.ReadFile(filepath.Join(dir, "old"))
			if errors.Is(err, fs.ErrNotExist) {
				return nil // it has gone already, so the new one is there
			}
			if err != nil {
				return err
			}
			return writeDurably(dir, "new", append(b, " in version 2"...))
		}),
		move("the old file", func(dir string) error {
			if _, err := os.Stat(filepath.Join(dir, "new")); err != nil {
				return err
			}
			if err := os.Remove(filepath.Join(dir, "old")); err != nil && !errors.Is(err, fs.ErrNotExist) {
				return err
			}
			return nil
		}),
		move("the directory", syncDir),
	}
	return &later{version: record.StoreVersion + 1, steps: []step{
		{record.StoreVersion, "the first version has no step", func(context.Context, string) error { return errors.New("a step to an older version ran") }},
		{record.StoreVersion + 1, "old becomes new", func(_ context.Context, dir string) error {
			root, err := vfs.OS(dir)
			if err != nil {
				return err
			}
			defer root.Close()
			if _, err := root.Lock(lockName); !errors.Is(err, vfs.ErrLocked) {
				return fmt.Errorf("the directory is not locked while it is changed: %v", err)
			}
			for _, m := range moves {
				if err := m(dir); err != nil {
					return err
				}
			}
			return nil
		}},
	}}
}

// TestMigrationIsCutAtEachPoint brings a directory to the next version, cut short
// at each point of it: until it is done, and afterwards, this build refuses the
// directory and changes nothing; the later build goes on with it and loses nothing,
// also when store.json is lost meanwhile.
func TestMigrationIsCutAtEachPoint(t *testing.T) {
	t.Parallel()
	errCut := errors.New("cut here")
	var points []string
	for cut := 0; cut == 0 || cut <= len(points); cut++ {
		for _, markerLost := range []bool{false, true} {
			if cut == 0 && markerLost {
				continue
			}
			p := newPlace(t)
			if err := start(t, p.options(), putStone); err != nil {
				t.Fatal(err)
			}
			write(t, p.data, "old", "precious")
			n := 0
			what := "not at all"
			o := Options{Dir: p.data, Config: p.config, later: later2(func(point string) error {
				if n++; cut == 0 {
					points = append(points, point)
				} else if n == cut {
					what = point
					return errCut
				}
				return nil
			})}
			d, err := Open(context.Background(), o)
			if cut == 0 {
				if err != nil {
					t.Fatal(err)
				}
				d.Close()
			} else if !errors.Is(err, errCut) {
				t.Fatalf("cut %s: %v", what, err)
			}
			refused := func() {
				t.Helper()
				before := contents(t, p.base)
				if _, err := Open(context.Background(), p.options()); !errors.Is(err, id.ErrNewer) || !strings.Contains(err.Error(), "version 2, this build knows 1") {
					t.Errorf("cut %s: this build says: %v", what, err)
				}
				if _, err := Reclaim(context.Background(), p.data, nil); !errors.Is(err, id.ErrNewer) {
					t.Errorf("cut %s: reclaim says: %v", what, err)
				}
				if after := contents(t, p.base); fmt.Sprint(before) != fmt.Sprint(after) {
					t.Errorf("cut %s: the refusal changed something", what)
				}
			}
			refused()
			if markerLost {
				if err := os.Remove(filepath.Join(p.data, markerName)); err != nil {
					t.Fatal(err)
				}
			}
			n, cut := 0, cut
			o.later = later2(func(string) error { n++; return nil })
			if err := start(t, o, getStone); err != nil {
				t.Errorf("cut %s, store.json lost %v: the later build: %v", what, markerLost, err)
			}
			if cut == 0 && n != 0 {
				t.Errorf("a migration that was done is done again")
			}
			if cut > 0 && n != len(points) {
				t.Errorf("cut %s: the later build went through %d points, want %d", what, n, len(points))
			}
			if b, err := os.ReadFile(filepath.Join(p.data, "new")); err != nil || string(b) != "precious in version 2" {
				t.Errorf("cut %s, store.json lost %v: new holds %q, %v", what, markerLost, b, err)
			}
			refused()
		}
	}
	if len(points) != 6 {
		t.Errorf("the migration has the points %q", points)
	}
}

// TestMigrationMarksItselfFirst: store.json says the later version before anything
// is changed.
func TestMigrationMarksItselfFirst(t *testing.T) {
	t.Parallel()
	p := newPlace(t)
	if err := start(t, p.options(), nil); err != nil {
		t.Fatal(err)
	}
	errCut := errors.New("cut here")
	_, err := Open(context.Background(), Options{Dir: p.data, Config: p.config, later: &later{version: 2, steps: []step{{2, "", func(context.Context, string) error {
		b, err := os.ReadFile(filepath.Join(p.data, markerName))
		if err != nil || !strings.Contains(string(b), `"format": 2`) || !strings.Contains(string(b), `"from": 1`) {
			return fmt.Errorf("store.json is %s, %v", b, err)
		}
		return errCut
	}}}}})
	if !errors.Is(err, errCut) {
		t.Error(err)
	}
}

// TestLaterMarkerIsNotDamage: a store.json of a later version is refused as such,
// whatever else is in it; one that says no version is not.
func TestLaterMarkerIsNotDamage(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]error{
		`{"format": 2}`: id.ErrNewer,
		`{"format": 4000000000, "cluster": {"id": "other"}, "state": 7}`: id.ErrNewer,
		`{"format": 18446744073709551615}`:                               id.ErrNewer,
		`{"format": 0}`:                                                  ErrNotStore,
		`{"format": "2"}`:                                                ErrNotStore,
		`{"format": 2`:                                                   ErrNotStore,
		`{}`:                                                             ErrNotStore,
		``:                                                               ErrNotStore,
	} {
		p := newPlace(t)
		write(t, p.data, markerName, text)
		before := contents(t, p.base)
		_, err := Open(context.Background(), p.options())
		if !errors.Is(err, want) || errors.Is(err, id.ErrNewer) != (want == id.ErrNewer) {
			t.Errorf("%s: %v, want %v", text, err, want)
		}
		if after := contents(t, p.base); fmt.Sprint(before) != fmt.Sprint(after) {
			t.Errorf("%s: the refusal changed something", text)
		}
	}
}

// TestOneProcessHasTheDirectory: the lock is DIR's own, so that it holds before any
// node is open.
func TestOneProcessHasTheDirectory(t *testing.T) {
	t.Parallel()
	p := newPlace(t)
	d, err := Open(context.Background(), p.options())
	if err != nil {
		t.Fatal(err)
	}
	for _, n := range d.Nodes {
		if err := n.Close(); err != nil {
			t.Error(err)
		}
	}
	clear(d.Nodes)
	if _, err := Open(context.Background(), p.options()); !errors.Is(err, ErrInUse) {
		t.Errorf("a second open: %v, want ErrInUse", err)
	}
	if err := d.Close(); err != nil {
		t.Error(err)
	}
	if err := start(t, p.options(), nil); err != nil {
		t.Errorf("after the first has ended: %v", err)
	}
}
