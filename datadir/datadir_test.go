package datadir

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"cairn/id"
	"cairn/index/kv/memkv"
	"cairn/keys"
	"cairn/store"
)

// place is a data directory and a configuration directory side by side.
type place struct{ base, data, config string }

func newPlace(t *testing.T) place {
	t.Helper()
	return placeIn(t.TempDir())
}

func placeIn(base string) place {
	return place{base, filepath.Join(base, "data"), filepath.Join(base, "config")}
}

func (p place) options() Options { return Options{Dir: p.data, Config: p.config, Create: true} }

// start opens the directory and the store in it, with an index in memory, runs
// fn and stops both.
func start(t testing.TB, o Options, fn func(*Dir, *store.Store) error) error {
	t.Helper()
	ctx := context.Background()
	d, err := Open(ctx, o)
	if err != nil {
		return err
	}
	defer d.Close()
	cfg := store.Config{Cluster: d.Cluster, Nodes: d.Stores(), Absent: d.Absent, Keyring: d.Keyring, Engine: memkv.New(memkv.Options{})}
	if d.Fresh != nil {
		cfg.Genesis = d.Fresh.Genesis
	}
	st, err := store.Open(ctx, cfg)
	if err != nil {
		return fmt.Errorf("open the store: %w", err)
	}
	if err := d.MarkFormed(); err != nil {
		return errors.Join(err, st.Close(ctx))
	}
	if fn != nil {
		err = fn(d, st)
	}
	return errors.Join(err, st.Close(ctx), d.Close())
}

const content = "a stone"

func putStone(_ *Dir, st *store.Store) error {
	_, err := st.Put(context.Background(), "main", "stone", strings.NewReader(content), store.PutOptions{Size: -1})
	return err
}

func getStone(_ *Dir, st *store.Store) error {
	r, err := st.Get(context.Background(), "main", "stone", store.GetOptions{})
	if err != nil {
		return err
	}
	body := r.Body(0, r.Object.Size)
	defer body.Close()
	if b, err := io.ReadAll(body); err != nil || string(b) != content {
		return fmt.Errorf("got %q, %v, want %q", b, err, content)
	}
	return nil
}

// begun is a place with a formed store that holds a stone.
func begun(t *testing.T) (place, id.Cluster) {
	t.Helper()
	p := newPlace(t)
	var cluster id.Cluster
	if err := start(t, p.options(), func(d *Dir, st *store.Store) error {
		cluster = d.Cluster
		return putStone(d, st)
	}); err != nil {
		t.Fatal(err)
	}
	return p, cluster
}

// contents maps each file below a directory to its bytes, and each directory to
// nothing.
func contents(t *testing.T, dir string) map[string]string {
	t.Helper()
	out := map[string]string{}
	err := filepath.WalkDir(dir, func(p string, e fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil || p == dir {
			return err
		}
		rel, err := filepath.Rel(dir, p)
		if err != nil || e.IsDir() {
			out[rel+"/"] = ""
			return err
		}
		b, err := os.ReadFile(p)
		out[rel] = string(b)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func write(t *testing.T, dir, name, text string) {
	t.Helper()
	p := filepath.Join(dir, name)
	if strings.HasSuffix(name, "/") {
		if err := os.MkdirAll(p, 0o700); err != nil {
			t.Fatal(err)
		}
		return
	}
	if err := os.MkdirAll(filepath.Dir(p), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(p, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

func TestStoreBeginsAndComesBack(t *testing.T) {
	t.Parallel()
	p := newPlace(t)
	var fresh *Fresh
	var token string
	d, err := Open(context.Background(), p.options())
	if err != nil {
		t.Fatal(err)
	}
	fresh, token = d.Fresh, d.Token
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
	if fresh == nil || fresh.RecoveryCode == "" || len(fresh.Genesis.Members) != 6 || fresh.Genesis.M != 2 || len(token) < 32 {
		t.Fatalf("a first start tells %+v", fresh)
	}
	for _, name := range []string{fresh.KeyFile, fresh.TokenFile, filepath.Join(p.config, "token")} {
		info, err := os.Stat(name)
		if err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("%s: %v, %v; want mode 0600", filepath.Base(name), info.Mode(), err)
		}
	}
	if err := start(t, p.options(), func(d *Dir, st *store.Store) error {
		if d.Token != token {
			t.Error("the second start has another token")
		}
		return putStone(d, st)
	}); err != nil {
		t.Fatal(err)
	}
	if err := start(t, Options{Dir: p.data, Config: p.config}, func(d *Dir, st *store.Store) error {
		if d.Fresh != nil {
			t.Error("a formed store begins again")
		}
		return getStone(d, st)
	}); err != nil {
		t.Fatal(err)
	}
	// No plaintext of the key or the token beside the data.
	key, err := os.ReadFile(fresh.KeyFile)
	if err != nil {
		t.Fatal(err)
	}
	for name, b := range contents(t, p.data) {
		for _, secret := range []string{token, strings.TrimSpace(string(key)), fresh.RecoveryCode, content} {
			if strings.Contains(b, secret) {
				t.Errorf("%s holds a secret in the clear", name)
			}
		}
	}
}

// TestFirstStartResumesAtEachStep makes the state after each step of a first
// start, and the one in which the step's file is only half there under its
// temporary name, and starts again: one cluster ID, one key, and a store that
// takes and gives (H55).
func TestFirstStartResumesAtEachStep(t *testing.T) {
	t.Parallel()
	whole := newPlace(t)
	d, err := Open(context.Background(), whole.options())
	if err != nil {
		t.Fatal(err)
	}
	cluster := d.Cluster
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
	data, config := contents(t, whole.data), contents(t, whole.config)
	c := cluster.String()
	type thing struct{ dir, name string } // in the order in which they are made
	steps := []thing{{"data", "lock"}, {"data", "store.json"}, {"config", c + ".key"}, {"config", c + ".recovery"}, {"data", "keyring"}, {"config", "stores.json"}, {"config", c + ".token"}, {"config", "token"}}
	for i := range 6 {
		dir := "nodes/" + NodeName(i) + "/"
		steps = append(steps, thing{"data", dir})
		var inside []string
		for name := range data {
			if strings.HasPrefix(name, dir) && name != dir && name != dir+"node.json" {
				inside = append(inside, name)
			}
		}
		slices.Sort(inside)
		for _, name := range inside {
			steps = append(steps, thing{"data", name})
		}
		steps = append(steps, thing{"data", dir + "node.json"})
	}
	known := map[string]map[string]string{"data": data, "config": config}
	for _, s := range steps {
		if _, ok := known[s.dir][s.name]; !ok {
			t.Fatalf("a first start makes no %s/%s any more: mend the list of steps", s.dir, s.name)
		}
	}
	if n := len(data) + len(config) - 1; n != len(steps) { // nodes/ itself comes with its first
		t.Errorf("a first start makes %d things, %d are in the list of steps: %v", n, len(steps), keysOf(known))
	}
	for n := range steps {
		if strings.HasPrefix(steps[n].name, "nodes/n0") && !strings.HasPrefix(steps[n].name, "nodes/n01/") && !strings.HasPrefix(steps[n].name, "nodes/n06/") && os.Getenv("CAIRN_LONG") == "" {
			continue // the others are like the first
		}
		for _, torn := range []bool{false, true} {
			p := newPlace(t)
			dirs := map[string]string{"data": p.data, "config": p.config}
			for _, s := range steps[:n] {
				write(t, dirs[s.dir], s.name, known[s.dir][s.name])
			}
			if next := steps[n]; torn {
				if strings.HasSuffix(next.name, "/") || filepath.Base(next.name) == "lock" {
					continue // these are made at once
				}
				write(t, dirs[next.dir], next.name+".tmp", known[next.dir][next.name][:len(known[next.dir][next.name])/2])
			}
			// stores.json names the data directory of the first start.
			if b, err := os.ReadFile(filepath.Join(p.config, "stores.json")); err == nil {
				write(t, p.config, "stores.json", strings.ReplaceAll(string(b), whole.data, p.data))
			}
			at := fmt.Sprintf("cut before %s/%s, torn %v", steps[n].dir, strings.ReplaceAll(steps[n].name, c, "CLUSTER"), torn)
			err := start(t, p.options(), func(d *Dir, st *store.Store) error {
				if n > 1 && d.Cluster != cluster {
					t.Errorf("%s: goes on as %v, want %v", at, d.Cluster, cluster)
				}
				if code, err := d.PendingRecovery(); err != nil {
					return err
				} else if c, err := keys.ParseRecoveryCode(code); err != nil {
					t.Errorf("%s: the recovery code: %v", at, err)
				} else if _, err := keys.Open(context.Background(), d.Cluster, d.Keyring.Marshal(), c); err != nil {
					t.Errorf("%s: the recovery code that is shown: %v", at, err)
				}
				return putStone(d, st)
			})
			if err != nil {
				t.Errorf("%s: %v", at, err)
				continue
			}
			if key, err := os.ReadFile(filepath.Join(p.config, c+".key")); n > 2 && (err != nil || string(key) != config[c+".key"]) {
				t.Errorf("%s: the key was made anew", at)
			}
			if token, err := os.ReadFile(filepath.Join(p.config, c+".token")); n > 6 && (err != nil || string(token) != config[c+".token"]) {
				t.Errorf("%s: the token was made anew", at)
			}
			if torn {
				continue
			}
			if err := start(t, Options{Dir: p.data, Config: p.config}, getStone); err != nil {
				t.Errorf("%s: started, stopped, started: %v", at, err)
			}
		}
	}
}

func keysOf(m map[string]map[string]string) (out []string) {
	for dir, files := range m {
		for name := range files {
			out = append(out, dir+"/"+name)
		}
	}
	slices.Sort(out)
	return out
}

const childVariable = "CAIRN_DATADIR_CHILD"

// TestMain runs a first start when it is the child of the test below.
func TestMain(m *testing.M) {
	if base := os.Getenv(childVariable); base != "" {
		if err := start(nil2{}, placeIn(base).options(), putStone); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// nil2 is a testing.TB for start outside of a test.
type nil2 struct{ testing.TB }

func (nil2) Helper() {}

// TestFirstStartSurvivesKills kills real first starts at any instant; whoever
// starts next always gets to a store, and to one only (H55).
func TestFirstStartSurvivesKills(t *testing.T) {
	// Not beside other tests: a process that is being started holds their locks
	// for an instant.
	rounds := 5
	if os.Getenv("CAIRN_LONG") != "" {
		rounds = 400
	}
	run := func(base string, kill time.Duration) (string, bool, error) {
		cmd := exec.Command(os.Args[0])
		cmd.Env = append(os.Environ(), childVariable+"="+base)
		var out bytes.Buffer
		cmd.Stdout, cmd.Stderr = &out, &out
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		var killed bool
		if kill > 0 {
			timer := time.AfterFunc(kill, func() { _ = cmd.Process.Kill() })
			defer timer.Stop()
		}
		err := cmd.Wait()
		if e, ok := errors.AsType[*exec.ExitError](err); ok && !e.Exited() {
			killed = true
		}
		return out.String(), killed, err
	}
	begin := time.Now()
	if out, _, err := run(t.TempDir(), 0); err != nil {
		t.Fatalf("a start that nobody kills: %v\n%s", err, out)
	}
	full := time.Since(begin)
	seed := rand.Uint64()
	rng := rand.New(rand.NewPCG(seed, 1))
	kills := 0
	for range rounds {
		p := newPlace(t)
		clusters := map[string]bool{}
		for range 4 {
			out, killed, err := run(p.base, 1+time.Duration(rng.Int64N(int64(full))))
			if killed {
				kills++
			} else if err != nil {
				t.Fatalf("seed %d: after kills a start fails: %v\n%s", seed, err, out)
			}
			found, err := filepath.Glob(filepath.Join(p.config, "*.key"))
			if err != nil {
				t.Fatal(err)
			}
			for _, f := range found {
				clusters[filepath.Base(f)] = true
			}
		}
		if out, _, err := run(p.base, 0); err != nil {
			t.Fatalf("seed %d: after kills a start fails: %v\n%s", seed, err, out)
		}
		if err := start(t, Options{Dir: p.data, Config: p.config}, getStone); err != nil {
			t.Errorf("seed %d: %v", seed, err)
		}
		if len(clusters) > 1 {
			t.Errorf("seed %d: one directory had %d keys: %v", seed, len(clusters), clusters)
		}
	}
	t.Logf("seed %d: %d first starts, %d kills", seed, rounds, kills)
	if kills == 0 {
		t.Error("nothing was killed: this test saw nothing")
	}
}

// TestKeysAreToldApart: a key that is missing, cut, damaged or another store's is
// a different error each, and none is ever made anew (H55).
func TestKeysAreToldApart(t *testing.T) {
	t.Parallel()
	p, cluster := begun(t)
	other, otherCluster := begun(t)
	name := filepath.Join(p.config, cluster.String()+".key")
	good, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	foreign, err := os.ReadFile(filepath.Join(other.config, otherCluster.String()+".key"))
	if err != nil {
		t.Fatal(err)
	}
	flipped := bytes.Clone(good)
	if i := len(flipped) / 2; flipped[i] == 'A' || flipped[i] == 'a' {
		flipped[i]++
	} else {
		flipped[i] = 'A'
	}
	for what, c := range map[string]struct {
		key  []byte // nil: none
		want error
	}{
		"missing": {nil, ErrNoKey}, "foreign": {foreign, keys.ErrWrongKey}, "cut": {good[:len(good)/2], keys.ErrDamaged}, "empty": {[]byte{}, keys.ErrDamaged}, "flipped": {flipped, keys.ErrDamaged},
	} {
		if err := os.Remove(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
			t.Fatal(err)
		}
		if c.key != nil {
			if err := os.WriteFile(name, c.key, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		for _, o := range []Options{p.options(), {Dir: p.data, Config: p.config}, {Dir: p.data, Config: p.config, New: true, Create: true}} {
			err := start(t, o, nil)
			if !errors.Is(err, c.want) {
				t.Errorf("%s key: %v, want %v", what, err, c.want)
			}
			for _, e := range []error{ErrNoKey, keys.ErrWrongKey, keys.ErrDamaged} {
				if e != c.want && errors.Is(err, e) {
					t.Errorf("%s key: the error is %q as well", what, e)
				}
			}
		}
		if b, err := os.ReadFile(name); c.key == nil && err == nil || c.key != nil && !bytes.Equal(b, c.key) {
			t.Errorf("%s key: it was made anew", what)
		}
	}
	if err := os.WriteFile(name, good, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := start(t, p.options(), getStone); err != nil {
		t.Errorf("with the right key again: %v", err)
	}
	// It may lie elsewhere.
	aside := filepath.Join(p.base, "aside.key")
	if err := os.Rename(name, aside); err != nil {
		t.Fatal(err)
	}
	o := p.options()
	o.KeyFile = aside
	if err := start(t, o, getStone); err != nil {
		t.Errorf("with the key elsewhere: %v", err)
	}
}

// TestFirstStartLeavesADamagedKeyAlone: what an earlier start has sealed under it
// may be there already.
func TestFirstStartLeavesADamagedKeyAlone(t *testing.T) {
	t.Parallel()
	p := newPlace(t)
	d, err := Open(context.Background(), p.options())
	if err != nil {
		t.Fatal(err)
	}
	name := d.Fresh.KeyFile
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(name, 20); err != nil {
		t.Fatal(err)
	}
	before, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	if err := start(t, p.options(), nil); !errors.Is(err, keys.ErrDamaged) {
		t.Errorf("a first start with a damaged key: %v, want keys.ErrDamaged", err)
	}
	if after, err := os.ReadFile(name); err != nil || !bytes.Equal(after, before) {
		t.Errorf("the damaged key has changed: %v", err)
	}
}

func TestDirectoriesThatAreRefused(t *testing.T) {
	t.Parallel()
	t.Run("known and empty", func(t *testing.T) {
		p, cluster := begun(t)
		if err := os.Rename(p.data, p.data+".aside"); err != nil {
			t.Fatal(err)
		}
		for _, made := range []bool{false, true} {
			if made {
				write(t, p.data, "lost+found/", "")
			}
			if err := start(t, p.options(), nil); !errors.Is(err, ErrRefused) || !strings.Contains(err.Error(), cluster.String()) {
				t.Errorf("an empty directory that held a store (there: %v): %v, want ErrRefused naming it", made, err)
			}
		}
		o := p.options()
		o.New = true
		if err := start(t, o, func(d *Dir, st *store.Store) error {
			if d.Cluster == cluster {
				t.Error("--new gives the old cluster ID")
			}
			return putStone(d, st)
		}); err != nil {
			t.Errorf("--new: %v", err)
		}
		if _, err := os.Stat(filepath.Join(p.config, cluster.String()+".key")); err != nil {
			t.Errorf("--new removes the old store's key: %v", err)
		}
	})
	t.Run("foreign", func(t *testing.T) {
		for _, name := range []string{"a file", ".hidden", "nodes/readme", "index/", "store.json.tmp/"} {
			p := newPlace(t)
			write(t, p.data, name, "x")
			o := p.options()
			o.New = true
			if err := start(t, o, nil); !errors.Is(err, ErrRefused) {
				t.Errorf("a directory with %q: %v, want ErrRefused", name, err)
			}
			if got := contents(t, p.data); len(got) > 2 || got["store.json"] != "" {
				t.Errorf("a refused directory holds %d things now", len(got))
			}
		}
	})
	t.Run("not to be created", func(t *testing.T) {
		p := newPlace(t)
		if err := start(t, Options{Dir: p.data, Config: p.config}, nil); !errors.Is(err, ErrNotStore) {
			t.Errorf("nothing, without Create: %v, want ErrNotStore", err)
		}
		if _, err := os.Stat(p.data); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("it was made: %v", err)
		}
	})
	t.Run("key beside the data", func(t *testing.T) {
		for _, where := range []string{"key", "sub/key", "../data/key"} {
			p := newPlace(t)
			o := p.options()
			o.KeyFile = filepath.Join(p.data, where)
			if err := start(t, o, nil); !errors.Is(err, ErrRefused) {
				t.Errorf("key file DIR/%s: %v, want ErrRefused", where, err)
			}
			o = p.options()
			o.Config = filepath.Join(p.data, where)
			if err := start(t, o, nil); !errors.Is(err, ErrRefused) {
				t.Errorf("configuration in DIR/%s: %v, want ErrRefused", where, err)
			}
		}
		// Through a symbolic link too.
		p := newPlace(t)
		if err := os.Mkdir(p.data, 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.Symlink(p.data, p.config); err != nil {
			t.Fatal(err)
		}
		if err := start(t, p.options(), nil); !errors.Is(err, ErrRefused) {
			t.Errorf("a configuration directory that is a link into DIR: %v, want ErrRefused", err)
		}
		// A name that only begins alike is another directory.
		p = newPlace(t)
		o := p.options()
		o.Config = p.data + "..config"
		if err := start(t, o, putStone); err != nil {
			t.Errorf("configuration beside DIR: %v", err)
		}
	})
	t.Run("in use", func(t *testing.T) {
		p, _ := begun(t)
		d, err := Open(context.Background(), p.options())
		if err != nil {
			t.Fatal(err)
		}
		if err := start(t, p.options(), nil); !errors.Is(err, ErrInUse) {
			t.Errorf("a second process: %v, want ErrInUse", err)
		}
		if err := d.Close(); err != nil {
			t.Fatal(err)
		}
		if err := start(t, p.options(), getStone); err != nil {
			t.Errorf("after the first has ended: %v", err)
		}
	})
	t.Run("too few nodes", func(t *testing.T) {
		for _, c := range []struct{ nodes, losses int }{{1, 0}, {2, 0}, {4, 2}, {257, 0}, {-1, 0}, {6, -1}} {
			p := newPlace(t)
			o := p.options()
			o.LocalNodes, o.Losses = c.nodes, c.losses
			if err := start(t, o, nil); !errors.Is(err, store.ErrInvalid) {
				t.Errorf("%d nodes for %d losses: %v, want ErrInvalid", c.nodes, c.losses, err)
			}
		}
	})
	t.Run("temporary", func(t *testing.T) {
		shm, err := os.MkdirTemp("/dev/shm", "cairn-")
		if err != nil {
			t.Skip("no /dev/shm: " + err.Error())
		}
		t.Cleanup(func() { os.RemoveAll(shm) })
		p := newPlace(t)
		if !fleeting(shm) || fleeting(p.base) {
			t.Skip("/dev/shm is not temporary here, or everything is")
		}
		o := p.options()
		o.Config = filepath.Join(shm, "config")
		if err := start(t, o, nil); !errors.Is(err, ErrRefused) {
			t.Errorf("the key on tmpfs, the data on disk: %v, want ErrRefused", err)
		}
		o = p.options()
		o.Dir = filepath.Join(shm, "data")
		if err := start(t, o, putStone); err != nil {
			t.Errorf("the data on tmpfs, the key on disk: %v", err)
		}
	})
}

// TestMarkerMayBeLost: the nodes know which store they are.
func TestMarkerMayBeLost(t *testing.T) {
	t.Parallel()
	p, cluster := begun(t)
	marker := filepath.Join(p.data, markerName)
	if err := os.WriteFile(marker, []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := start(t, p.options(), nil); !errors.Is(err, ErrNotStore) {
		t.Errorf("a marker that cannot be read: %v, want ErrNotStore", err)
	}
	if err := os.Remove(marker); err != nil {
		t.Fatal(err)
	}
	if err := start(t, p.options(), func(d *Dir, st *store.Store) error {
		if d.Cluster != cluster {
			t.Errorf("without a marker it is the store %v, want %v", d.Cluster, cluster)
		}
		return getStone(d, st)
	}); err != nil {
		t.Errorf("without a marker: %v", err)
	}
}

// TestReplaceKeepsWhatWasThere: the old directory is moved aside.
func TestReplaceKeepsWhatWasThere(t *testing.T) {
	t.Parallel()
	p, _ := begun(t)
	if err := os.RemoveAll(filepath.Join(p.data, "nodes", "n03")); err != nil {
		t.Fatal(err)
	}
	write(t, p.data, "nodes/n03/precious", "bytes")
	if err := start(t, p.options(), func(d *Dir, st *store.Store) error {
		if d.Nodes["n03"] != nil || d.Absent["n03"] == nil {
			t.Error("a foreign directory is taken for node n03")
		}
		r, err := d.Replace("n03", id.Node{1})
		if err != nil {
			return err
		}
		if _, err := os.Stat(filepath.Join(r.Kept, "precious")); err != nil {
			t.Errorf("it is said to be kept in %q: %v", r.Kept, err)
		}
		if err := st.ReplaceNode(context.Background(), "n03", r.Node); err != nil {
			return err
		}
		return getStone(d, st)
	}); err != nil {
		t.Fatal(err)
	}
	kept, err := filepath.Glob(filepath.Join(p.data, "replaced-n03-*", "precious"))
	if err != nil || len(kept) != 1 {
		t.Errorf("the old directory's file is kept as %v, %v", kept, err)
	}
	// So is a file in its place.
	if err := os.RemoveAll(filepath.Join(p.data, "nodes", "n05")); err != nil {
		t.Fatal(err)
	}
	write(t, p.data, "nodes/n05", "bytes")
	if err := start(t, p.options(), func(d *Dir, st *store.Store) error {
		r, err := d.Replace("n05", id.Node{1})
		if err != nil {
			return err
		}
		return st.ReplaceNode(context.Background(), "n05", r.Node)
	}); err != nil {
		t.Fatal(err)
	}
	if kept, err := filepath.Glob(filepath.Join(p.data, "replaced-n05-*")); err != nil || len(kept) != 1 {
		t.Errorf("the file in the place of a node is kept as %v, %v", kept, err)
	}
	for _, name := range []string{"", ".", "..", "../config", "a/b", "a\x00b"} {
		d := &Dir{opt: p.options()}
		if _, err := d.Replace(name, id.Node{1}); !errors.Is(err, store.ErrInvalid) {
			t.Errorf("replace %q: %v, want ErrInvalid", name, err)
		}
	}
	if err := start(t, p.options(), getStone); err != nil {
		t.Errorf("the start after: %v", err)
	}
}

// TestReplaceUndone: a replacement that the store did not take leaves the data
// directory as it was, and one of a node that is there after all is refused.
func TestReplaceUndone(t *testing.T) {
	t.Parallel()
	p, _ := begun(t)
	nodes := filepath.Join(p.data, "nodes")
	for what, lose := range map[string]func() error{
		"no directory": func() error { return os.RemoveAll(filepath.Join(nodes, "n01")) },
		"an empty directory": func() error {
			return errors.Join(os.RemoveAll(filepath.Join(nodes, "n02")), os.Mkdir(filepath.Join(nodes, "n02"), 0o700))
		},
		"a foreign directory": func() error { return os.Remove(filepath.Join(nodes, "n03", "node.json")) },
		"a file": func() error {
			return errors.Join(os.RemoveAll(filepath.Join(nodes, "n04")), os.WriteFile(filepath.Join(nodes, "n04"), []byte("bytes"), 0o600))
		},
	} {
		if err := lose(); err != nil {
			t.Fatal(what, err)
		}
	}
	d, err := Open(context.Background(), p.options())
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"n01", "n02", "n03", "n04"} {
		before, why := contents(t, p.data), d.Absent[name]
		if why == nil {
			t.Fatalf("%s is not absent", name)
		}
		r, err := d.Replace(name, id.Node{1})
		if err != nil {
			t.Fatalf("replace %s: %v", name, err)
		}
		if d.Nodes[name] != r.Node || d.Absent[name] != nil {
			t.Errorf("%s: the new node is not known", name)
		}
		if err := r.Undo(); err != nil {
			t.Errorf("undo %s: %v", name, err)
		}
		after := contents(t, p.data)
		delete(before, "nodes/n01/") // of a node that had no directory one may stay
		delete(after, "nodes/n01/")
		if !maps.Equal(before, after) {
			t.Errorf("%s: before it was replaced the directory held %q, undone %q", name, slices.Sorted(maps.Keys(before)), slices.Sorted(maps.Keys(after)))
		}
		if d.Nodes[name] != nil || d.Absent[name] != why {
			t.Errorf("%s: undone, it is known as %v, %v", name, d.Nodes[name], d.Absent[name])
		}
	}
	// The lock is given back, and nothing is moved.
	lost := d.Nodes["n05"].ID()
	before := contents(t, p.data)
	if _, err := d.Replace("n05", lost); !errors.Is(err, ErrBack) {
		t.Errorf("replace a node that is there: %v, want ErrBack", err)
	}
	if after := contents(t, p.data); !maps.Equal(before, after) {
		t.Error("a refused replacement has changed the directory")
	}
	if _, err := d.Replace("n05", lost); !errors.Is(err, ErrBack) {
		t.Errorf("again: %v, want ErrBack", err)
	}
	r, err := d.Replace("n05", id.Node{1}) // another node's: that is no return
	if err != nil || r.Kept == "" {
		t.Errorf("replace a node by a directory of another: %+v, %v", r, err)
	}
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
}

// TestMovedStoreIsGuarded: a directory that has held a store is refused when it
// is empty, also where the store was moved to.
func TestMovedStoreIsGuarded(t *testing.T) {
	t.Parallel()
	p, cluster := begun(t)
	moved := p.data + ".moved"
	if err := os.Rename(p.data, moved); err != nil {
		t.Fatal(err)
	}
	o := p.options()
	o.Dir = moved
	o.Create = false
	if err := start(t, o, getStone); err != nil {
		t.Fatal(err)
	}
	if known, err := readConfig(p.config, storesName); err != nil || len(known) != 1 {
		t.Errorf("who only looks has noted %v, %v", known, err)
	}
	o.Create = true
	if err := start(t, o, getStone); err != nil {
		t.Fatal(err)
	}
	if err := os.RemoveAll(moved); err != nil {
		t.Fatal(err)
	}
	if err := start(t, o, nil); !errors.Is(err, ErrRefused) || !strings.Contains(err.Error(), cluster.String()) {
		t.Errorf("an empty directory that a store was moved to: %v, want ErrRefused naming it", err)
	}
}

// TestTokenOfAnAddress: the last store that was served there.
func TestTokenOfAnAddress(t *testing.T) {
	t.Parallel()
	config := t.TempDir()
	a, b := id.Cluster{1}, id.Cluster{2}
	serve := func(cluster id.Cluster, addrs ...string) {
		t.Helper()
		d := &Dir{opt: Options{Config: config}, Cluster: cluster}
		var out []net.Addr
		for _, addr := range addrs {
			tcp, err := net.ResolveTCPAddr("tcp", addr)
			if err != nil {
				t.Fatal(err)
			}
			out = append(out, tcp)
		}
		if err := d.RememberServer(out...); err != nil {
			t.Fatal(err)
		}
	}
	want := func(host, port, name string) {
		t.Helper()
		if got, err := TokenFile(config, host, port); err != nil || got != filepath.Join(config, name) {
			t.Errorf("token of %s port %s: %s, %v, want %s", host, port, got, err, name)
		}
	}
	want("localhost", "5000", "token")
	serve(a, "127.0.0.1:5000", "[::1]:5000")
	serve(b, "127.0.0.1:5900")
	for _, host := range []string{"localhost", "127.0.0.1", "::1"} {
		want(host, "5000", a.String()+".token")
	}
	want("localhost", "5900", b.String()+".token")
	want("::1", "5900", "token")
	want("localhost", "5001", "token")
	serve(b, "127.0.0.1:5000") // and no longer at 5900
	want("localhost", "5000", b.String()+".token")
	want("::1", "5000", a.String()+".token")
	want("localhost", "5900", "token")
	serve(a, "0.0.0.0:5900")
	want("127.0.0.1", "5900", a.String()+".token")
}

// TestFirstStartOnMountPoints: a store begins where the disks of its nodes and of its
// index are mounted already, and nowhere else that is not empty: an empty directory
// may be where a disk with a store is not mounted.
func TestFirstStartOnMountPoints(t *testing.T) {
	p := newPlace(t)
	mount := func(name string) string {
		t.Helper()
		dir := filepath.Join(p.data, name)
		if err := os.MkdirAll(dir, 0o700); err != nil {
			t.Fatal(err)
		}
		if err := unix.Mount("none", dir, "tmpfs", 0, "size=64m"); err != nil {
			t.Skipf("mounting a filesystem takes root: %v", err)
		}
		t.Cleanup(func() { _ = unix.Unmount(dir, unix.MNT_DETACH) })
		return dir
	}
	refused := func(why string) {
		t.Helper()
		err := start(t, p.options(), func(*Dir, *store.Store) error { return nil })
		if !errors.Is(err, ErrRefused) || !strings.Contains(err.Error(), why) {
			t.Fatalf("got %v, want %v with %q", err, ErrRefused, why)
		}
		if _, err := os.Stat(filepath.Join(p.data, markerName)); !errors.Is(err, fs.ErrNotExist) {
			t.Fatalf("a start that was refused left a marker: %v", err)
		}
	}
	if err := os.MkdirAll(filepath.Join(p.data, "nodes"), 0o700); err != nil {
		t.Fatal(err)
	}
	refused("remove it")
	one := mount("nodes/n01")
	plain := filepath.Join(p.data, "nodes", "n02")
	if err := os.Mkdir(plain, 0o700); err != nil {
		t.Fatal(err)
	}
	refused("nodes/n02")
	if err := os.Remove(plain); err != nil {
		t.Fatal(err)
	}
	far := mount("nodes/n09")
	refused("--local-nodes")
	if err := errors.Join(unix.Unmount(far, 0), os.Remove(far)); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(one, "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	refused("nodes/n01")
	if err := os.Remove(file); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(filepath.Join(one, "lost+found"), 0o700); err != nil {
		t.Fatal(err)
	}
	mount("nodes/n04")
	mount("index")
	for range 2 {
		if err := start(t, p.options(), func(d *Dir, st *store.Store) error { return putStone(d, st) }); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := os.Stat(filepath.Join(one, "node.json")); err != nil {
		t.Errorf("the node on its own disk: %v", err)
	}
}
