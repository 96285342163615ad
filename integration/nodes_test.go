package integration

import (
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// stopped is a store that was filled and stopped, with a copy of its data
// directory from before the last writes, and another store beside it.
type stopped struct {
	r         *rig
	j         *journal
	yesterday string // a copy of the data directory, from an earlier stop
	other     *rig
}

// fillStore writes objects of every kind of size and deletes some.
func fillStore(r *rig, j *journal, s *server, prefix string, seed uint64) {
	w := &worker{j: j, rng: rand.New(rand.NewPCG(seed, 1)), prefix: prefix, keys: 12, srv: s, c: s.client(), maxPut: 2 << 20}
	defer w.c.close()
	for i := range w.keys {
		w.put(fmt.Sprintf("%s/k%02d", prefix, i))
	}
	for i := range 3 {
		w.delete(fmt.Sprintf("%s/k%02d", prefix, i*4))
	}
	w.undelete(prefix + "/k04")
	report(r.t, j)
}

func newStopped(t *testing.T) *stopped {
	t.Helper()
	rng := newRand(t)
	st := &stopped{r: newRig(t), j: newJournal(), other: newRig(t)}
	s := st.other.start()
	fillStore(st.other, newJournal(), s, "other", rng.Uint64())
	s.stop()
	s = st.r.start()
	fillStore(st.r, st.j, s, "old", rng.Uint64())
	s.stop()
	st.yesterday = filepath.Join(st.r.base, "yesterday")
	copyTree(t, st.r.data, st.yesterday)
	s = st.r.start()
	fillStore(st.r, st.j, s, "new", rng.Uint64())
	s.stop()
	return st
}

// clone is the store and its journal for one test to spoil.
func (st *stopped) clone(t *testing.T) (*rig, *journal) {
	t.Helper()
	j := newJournal()
	for key, e := range st.j.keys {
		j.keys[key] = &entry{states: append([]state(nil), e.states...)}
	}
	return st.r.clone(t), j
}

// sound starts the store, reads everything, writes more, and reads it all again
// after another start.
func sound(t *testing.T, r *rig, j *journal) *server {
	t.Helper()
	s := r.start()
	j.check(s, true, j.all())
	report(t, j)
	fillStore(r, j, s, fmt.Sprintf("more%d", len(r.logs)), 7)
	s.stop()
	s = r.start()
	j.check(s, true, j.all())
	report(t, j)
	return s
}

// wantStates holds the nodes' states against what they should be; the others
// must be up.
func wantStates(t *testing.T, r *rig, want map[string]string) status {
	t.Helper()
	st := r.status()
	for name, state := range st.states() {
		wanted := want[name]
		if wanted == "" {
			wanted = "up"
		}
		if state != wanted {
			t.Errorf("node %s is %s (%s), want %s", name, state, st.reason(name), wanted)
		}
	}
	return st
}

// TestNodesComeBackWrong stops a store, does something to its directories, and
// starts it again: it refuses or it serves, and either way nothing is lost, and
// nothing that is not its own is touched (H5, H13, H14, H39, H48, H55).
func TestNodesComeBackWrong(t *testing.T) {
	st := newStopped(t)

	// Nodes that are not what they were: the store serves without them, says why,
	// and is whole again when they were replaced.
	for _, c := range []struct {
		name  string
		spoil func(t *testing.T, r *rig)
		lost  []string
		why   string // stands in the reason
	}{
		{"two wiped", func(t *testing.T, r *rig) { empty(t, r.node("n02")); empty(t, r.node("n05")) }, []string{"n02", "n05"}, "no node.json"},
		{"two removed", func(t *testing.T, r *rig) { removeAll(t, r.node("n01")); removeAll(t, r.node("n06")) }, []string{"n01", "n06"}, "not there"},
		{"another store's node", func(t *testing.T, r *rig) {
			removeAll(t, r.node("n03"))
			copyTree(t, st.other.node("n03"), r.node("n03"))
		}, []string{"n03"}, "belongs to cluster"},
		{"a file in its place", func(t *testing.T, r *rig) {
			removeAll(t, r.node("n04"))
			if err := os.WriteFile(r.node("n04"), []byte("not a directory\n"), 0o600); err != nil {
				t.Fatal(err)
			}
		}, []string{"n04"}, ""},
		{"the copy of another node", func(t *testing.T, r *rig) {
			removeAll(t, r.node("n02"))
			copyTree(t, r.node("n01"), r.node("n02"))
		}, []string{"n02"}, ""},
		{"node.json cut", func(t *testing.T, r *rig) { damage(t, filepath.Join(r.node("n01"), "node.json"), 20, false) }, []string{"n01"}, ""},
		{"node.json altered", func(t *testing.T, r *rig) { damage(t, filepath.Join(r.node("n06"), "node.json"), 30, true) }, []string{"n06"}, ""},
		{"node.json gone, the rest there", func(t *testing.T, r *rig) { removeAll(t, filepath.Join(r.node("n05"), "node.json")) }, []string{"n05"}, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			r, j := st.clone(t)
			c.spoil(t, r)
			var dirs []string
			for _, v := range c.lost {
				dirs = append(dirs, r.node(v))
			}
			before := fingerprint(t, dirs...)
			s := sound(t, r, j)
			if fingerprint(t, dirs...) != before {
				t.Error("a directory that is not the store's was written to")
			}
			want := map[string]string{}
			for _, v := range c.lost {
				want[v] = "missing"
			}
			says := wantStates(t, r, want)
			for _, v := range c.lost {
				if why := says.reason(v); why == "" || !strings.Contains(why, c.why) {
					t.Errorf("node %s is missing because %q; want %q in it", v, why, c.why)
				}
			}
			if !says.Writable || *says.PacksShort == 0 {
				t.Errorf("status: writable %v, %d packs short", says.Writable, *says.PacksShort)
			}
			r.replaceAndHeal(c.lost...)
			j.check(s, true, j.all())
			report(t, j)
			s.stop()
			r.verify()
		})
	}

	t.Run("two swapped", func(t *testing.T) {
		r, j := st.clone(t)
		rename(t, r.node("n02"), r.node("x"))
		rename(t, r.node("n05"), r.node("n02"))
		rename(t, r.node("x"), r.node("n05"))
		// Both are whole and say who they are: either they serve under each other's
		// name or they are missing; nothing is written to the wrong one.
		s := sound(t, r, j)
		says := r.status()
		a, b := says.states()["n02"], says.states()["n05"]
		t.Logf("n02 is %s, n05 is %s", a, b)
		if a != b {
			t.Errorf("of two swapped nodes one is %s, the other %s", a, b)
		}
		s.stop()
		rename(t, r.node("n02"), r.node("x"))
		rename(t, r.node("n05"), r.node("n02"))
		rename(t, r.node("x"), r.node("n05"))
		s = sound(t, r, j)
		wantStates(t, r, nil)
		s.stop()
		verifyNothingLost(t, r)
	})

	t.Run("two from yesterday", func(t *testing.T) {
		r, j := st.clone(t)
		for _, v := range []string{"n01", "n04"} {
			removeAll(t, r.node(v))
			copyTree(t, filepath.Join(st.yesterday, "nodes", v), r.node(v))
		}
		removeAll(t, r.index())
		s := sound(t, r, j)
		s.stop()
		verifyNothingLost(t, r)
	})

	t.Run("three missing", func(t *testing.T) {
		r, j := st.clone(t)
		aside := filepath.Join(r.base, "aside")
		if err := os.Mkdir(aside, 0o700); err != nil {
			t.Fatal(err)
		}
		gone := []string{"n01", "n03", "n06"}
		for _, v := range gone {
			rename(t, r.node(v), filepath.Join(aside, v))
		}
		code, said := r.refused()
		if code != 3 {
			t.Errorf("exit code %d, want 3", code)
		}
		for _, v := range gone {
			if !strings.Contains(said, v) {
				t.Errorf("the refusal does not name %s:\n%s", v, said)
			}
		}
		// They come back, and nothing has happened.
		for _, v := range gone {
			_ = os.RemoveAll(r.node(v))
			rename(t, filepath.Join(aside, v), r.node(v))
		}
		s := sound(t, r, j)
		wantStates(t, r, nil)
		s.stop()
		r.verify()
	})

	t.Run("an index from yesterday", func(t *testing.T) {
		r, j := st.clone(t)
		removeAll(t, r.index())
		copyTree(t, filepath.Join(st.yesterday, "index"), r.index())
		s := sound(t, r, j)
		wantStates(t, r, nil)
		s.stop()
		r.verify()
	})

	t.Run("an index of another store", func(t *testing.T) {
		r, j := st.clone(t)
		removeAll(t, r.index())
		copyTree(t, st.other.index(), r.index())
		s := r.launch()
		if !s.waitServing(time.Minute) {
			<-s.exited
			r.server = nil
			t.Logf("refused: %s", s.stderr())
			if s.code != 3 || !strings.Contains(s.stderr(), r.index()) {
				t.Errorf("exit code %d, want 3 and a text that names the directory", s.code)
			}
			removeAll(t, r.index())
			s = r.start()
		}
		j.check(s, true, j.all())
		report(t, j)
		s.stop()
		s = sound(t, r, j)
		s.stop()
		r.verify()
	})

	t.Run("the index damaged", func(t *testing.T) {
		r, j := st.clone(t)
		entries, err := os.ReadDir(r.index())
		if err != nil || len(entries) == 0 {
			t.Fatalf("the index directory: %v, %d files", err, len(entries))
		}
		for _, e := range entries {
			if info, err := e.Info(); err == nil && info.Size() > 0 {
				damage(t, filepath.Join(r.index(), e.Name()), int(info.Size()/2), true)
			}
		}
		s := sound(t, r, j)
		s.stop()
		r.verify()
	})

	t.Run("the marker gone", func(t *testing.T) {
		r, j := st.clone(t)
		removeAll(t, filepath.Join(r.data, "store.json"))
		s := sound(t, r, j)
		wantStates(t, r, nil)
		s.stop()
		r.verify()
	})
}

// verifyNothingLost runs verify on a store whose nodes lack shards: what is
// damaged must be repairable.
func verifyNothingLost(t *testing.T, r *rig) {
	t.Helper()
	out, errs, code := r.command("verify", "--data", r.data)
	if code != 0 && code != 1 {
		t.Errorf("cairn verify: exit code %d, want 0 or 1 (repairable)\n%s%s", code, cut(out), cut(errs))
	}
	lines := strings.Split(strings.TrimSpace(out), "\n")
	t.Logf("verify: exit code %d; %s", code, lines[len(lines)-1])
}

// damage flips a bit of the byte at off, or cuts the file there.
func damage(t *testing.T, name string, off int, flip bool) {
	t.Helper()
	b, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	off = min(off, len(b)-1)
	if flip {
		b[off] ^= 4
	} else {
		b = b[:off]
	}
	if err := os.WriteFile(name, b, 0o600); err != nil {
		t.Fatal(err)
	}
}

// TestKeys: a key that is missing, cut, or another store's are three errors, and
// none of them changes anything (H55).
func TestKeys(t *testing.T) {
	rng := newRand(t)
	r, other, j := newRig(t), newRig(t), newJournal()
	s := other.start()
	foreign := filepath.Join(other.config, "cairn", s.cluster+".key")
	s.stop()
	s = r.start()
	fillStore(r, j, s, "c0", rng.Uint64())
	key := filepath.Join(r.config, "cairn", s.cluster+".key")
	s.stop()
	good, err := os.ReadFile(key)
	if err != nil {
		t.Fatal(err)
	}
	wrong, err := os.ReadFile(foreign)
	if err != nil {
		t.Fatal(err)
	}
	said := map[string]string{}
	for _, c := range []struct {
		name    string
		content []byte
		want    string
	}{
		{"missing", nil, "not there"},
		{"cut", good[:len(good)/2], "damaged"},
		{"another store's", wrong, "wrong key"},
	} {
		removeAll(t, key)
		if c.content != nil {
			if err := os.WriteFile(key, c.content, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		before := fingerprint(t, r.data, r.config)
		code, text := r.refused()
		if code != 3 {
			t.Errorf("key %s: exit code %d, want 3", c.name, code)
		}
		lines := strings.Split(strings.TrimSpace(text), "\n")
		said[c.name] = lines[len(lines)-1]
		t.Logf("key %s: %s", c.name, said[c.name])
		if !strings.Contains(said[c.name], c.want) {
			t.Errorf("key %s: the last line has no %q", c.name, c.want)
		}
		if fingerprint(t, r.data, r.config) != before {
			t.Errorf("key %s: the refused start has changed something", c.name)
		}
		if _, err := os.Stat(key); c.content == nil && err == nil {
			t.Error("a missing key was made anew")
		}
		if out, _, code := r.command("verify", "--data", r.data); code != 3 {
			t.Errorf("key %s: verify ends with %d, want 3 (could not run)\n%s", c.name, code, out)
		}
	}
	removeAll(t, key)
	if err := os.WriteFile(key, good, 0o600); err != nil {
		t.Fatal(err)
	}
	s = r.start()
	j.check(s, true, j.all())
	report(t, j)
	s.stop()
	r.verify()
}

// TestEmptied: a data directory that has held a store and is empty now is
// refused: its disk may not be mounted. --new begins another.
func TestEmptied(t *testing.T) {
	rng := newRand(t)
	r, j := newRig(t), newJournal()
	s := r.start()
	fillStore(r, j, s, "c0", rng.Uint64())
	first := s.cluster
	s.stop()
	aside := filepath.Join(r.base, "aside")
	rename(t, r.data, aside)
	if err := os.Mkdir(r.data, 0o700); err != nil {
		t.Fatal(err)
	}
	before := fingerprint(t, r.data, r.config)
	code, said := r.refused()
	if code != 3 || !strings.Contains(said, "--new") || !strings.Contains(said, first) {
		t.Errorf("exit code %d, want 3, and a text that names --new and the store:\n%s", code, said)
	}
	if fingerprint(t, r.data, r.config) != before {
		t.Error("the refused start has changed something")
	}
	s = r.start("--new")
	if s.cluster == first {
		t.Error("--new went on under the old store's ID")
	}
	s.stop()
	// The disk is mounted again: the old store is there, and its key too.
	removeAll(t, r.data)
	rename(t, aside, r.data)
	s = r.start()
	if s.cluster != first {
		t.Errorf("the old directory is served as %s, want %s", s.cluster, first)
	}
	j.check(s, true, j.all())
	report(t, j)
	s.stop()
	r.verify()
}
