package integration

import (
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

// harms are what is done to an index while nothing runs. They return what they did.
var harms = map[string]func(t *testing.T, rng *rand.Rand, r *rig, old, foreign string) string{
	"a bit": func(t *testing.T, rng *rand.Rand, r *rig, _, _ string) string {
		// Any file, weighted by nothing: the small ones hold the most.
		var files []string
		err := filepath.WalkDir(r.index(), func(p string, d fs.DirEntry, err error) error {
			if err == nil && d.Type().IsRegular() {
				if fi, err := d.Info(); err == nil && fi.Size() > 0 {
					files = append(files, p)
				}
			}
			return err
		})
		if err != nil || len(files) == 0 {
			t.Fatalf("%d files of the index, %v", len(files), err)
		}
		name := pick(rng, files, 1)[0]
		b, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		// Logs are mapped at their full length, most of it never written.
		used := len(bytes.TrimRight(b, "\x00"))
		if used == 0 {
			used = len(b)
		}
		at := rng.IntN(used)
		b[at] ^= 1 << rng.IntN(8)
		if err := os.WriteFile(name, b, 0o600); err != nil {
			t.Fatal(err)
		}
		return fmt.Sprintf("bit in byte %d of %s", at, filepath.Base(name))
	},
	"yesterday's": func(t *testing.T, _ *rand.Rand, r *rig, old, _ string) string {
		removeAll(t, r.index())
		copyTree(t, old, r.index())
		return "the directory of earlier"
	},
	"another store's": func(t *testing.T, _ *rand.Rand, r *rig, _, foreign string) string {
		removeAll(t, r.index())
		copyTree(t, foreign, r.index())
		return "the directory of another store"
	},
	"another store's table": func(t *testing.T, rng *rand.Rand, r *rig, _, foreign string) string {
		r.start().stop() // what is in the index's log goes into a table
		theirs, err := filepath.Glob(filepath.Join(foreign, "*.sst"))
		ours, err2 := filepath.Glob(filepath.Join(r.index(), "*.sst"))
		if err != nil || err2 != nil || len(theirs) == 0 || len(ours) == 0 {
			t.Fatalf("%d and %d tables, %v, %v", len(theirs), len(ours), err, err2)
		}
		to := pick(rng, ours, 1)[0]
		b, err := os.ReadFile(pick(rng, theirs, 1)[0])
		if err == nil {
			err = os.WriteFile(to, b, 0o600)
		}
		if err != nil {
			t.Fatal(err)
		}
		return "a table of another store for " + filepath.Base(to)
	},
	"deleted": func(t *testing.T, _ *rand.Rand, r *rig, _, _ string) string {
		removeAll(t, r.index())
		return "deleted"
	},
}

// TestHarmedIndex harms the index between two runs of the server in every way above,
// bits of its files most of all (H11, H12, H13, H17). Whatever happens, a read gives the
// right bytes or an error; what is said to be absent and is not must not outlast
// the check that each start begins with: the server ends by itself then, and the next
// one has everything. Nothing is removed from any node, and what is written meanwhile
// stays.
func TestHarmedIndex(t *testing.T) {
	rng := newRand(t)
	other := newRig(t)
	fillStore(other, newJournal(), other.start(), "o", rng.Uint64())
	other.server.stop()

	r, j := newRig(t), newJournal()
	fillStore(r, j, r.start(), "a", rng.Uint64())
	r.server.stop()
	old := filepath.Join(r.base, "index.old")
	copyTree(t, r.index(), old)
	s := r.start()
	fillStore(r, j, s, "b", rng.Uint64())
	s.stop()

	kinds := []string{"yesterday's", "another store's", "another store's table", "deleted"}
	n := rounds(8, 30, 500)
	ended, aside := 0, 0
	for i := range n {
		kind := "a bit"
		if i < len(kinds) {
			kind = kinds[i]
		} else if rng.IntN(20) == 0 {
			kind = pick(rng, kinds, 1)[0]
		}
		did := harms[kind](t, rng, r, old, other.index())
		foreign := 0
		w := &worker{j: j, rng: rng, prefix: "h", keys: 4}
		var absent []string
		for try := 0; ; try++ {
			if try == 4 {
				t.Fatalf("%d: %s: the server does not come up", i, did)
			}
			s := r.launch()
			if !s.waitServing(60 * time.Second) {
				// It may end once: the next start sets aside what it has found.
				<-s.exited
				r.server = nil
				ended++
				// An index that seems to be another store's is named, and not replaced: it
				// may be somebody's only copy. So says a bit in the file with its key too.
				if strings.Contains(s.stderr(), "not this store's index") {
					foreign++
					removeAll(t, r.index())
				}
				continue
			}
			w.srv, w.c = s, s.client()
			absent = absent[:0]
			dead := false
			for _, key := range j.all() {
				reply := w.c.get(key)
				fits, why := match(j.entry(key).states, reply)
				switch {
				case len(fits) > 0:
				case reply.answer == acked && reply.status == http.StatusOK:
					t.Fatalf("%d: %s: a wrong answer for %s: %s", i, did, key, why)
				default:
					absent = append(absent, fmt.Sprintf("%s: %s", key, why))
				}
				select {
				case <-s.exited:
					dead = true
				default:
				}
				if dead {
					break
				}
			}
			w.c.close()
			if dead || len(absent) > 0 {
				// The check of this start finds what look-ups did not.
				select {
				case <-s.exited:
				case <-time.After(60 * time.Second):
					t.Fatalf("%d: %s: the server goes on without what it has acknowledged: %v", i, did, absent)
				}
				r.server = nil
				ended++
				continue
			}
			// Nothing is missed. It may still end by itself, when the check finds what
			// nobody asked for; a write that it answered is there in any case.
			w.put(fmt.Sprintf("h/%d", i%4))
			report(t, j)
			s.doomed.Store(true)
			time.Sleep(time.Duration(rng.IntN(300)) * time.Millisecond)
			if rng.IntN(2) == 0 {
				s.kill()
				break
			}
			_ = s.cmd.Process.Signal(os.Interrupt)
			<-s.exited
			r.server = nil
			break
		}
		if kind == "another store's" && foreign != 1 {
			t.Errorf("%d: another store's index was named %d times", i, foreign)
		}
		if found, _ := filepath.Glob(r.index() + ".damaged-*"); len(found) > 0 {
			aside += len(found)
			for _, f := range found {
				removeAll(t, f)
			}
		}
	}
	s = r.start()
	j.check(s, true, j.all())
	report(t, j)
	s.stop()
	t.Logf("%d harms: %d times the server ended by itself, %d indexes were set aside", n, ended, aside)
	if ended+aside == 0 {
		t.Error("no harm was noticed")
	}
	r.verify()
}

// rebuilt is what cairn rebuild says.
type rebuilt struct {
	Sequence, Tail, Snapshot, Rows uint64
	Held                           bool
	Seconds                        float64
	resident                       int64 // bytes at the most
	anon                           int64 // of it what the process holds itself; 0: not known
}

// rebuild runs cairn rebuild and measures it.
func (r *rig) rebuild(args ...string) (out rebuilt) {
	r.t.Helper()
	cmd := exec.Command(program, append([]string{"rebuild", "--data", r.data, "--json"}, args...)...)
	cmd.Env = r.env()
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	err := cmd.Start()
	if err == nil {
		stop := watchProcess(cmd.Process.Pid)
		err = cmd.Wait()
		out.anon = stop().anon
	}
	if err == nil {
		err = json.Unmarshal(stdout.Bytes(), &out)
	}
	if err != nil {
		r.t.Fatalf("rebuild: %v\n%s", err, cut(stderr.String()))
	}
	if u, ok := cmd.ProcessState.SysUsage().(*syscall.Rusage); ok {
		out.resident = u.Maxrss << 10
	}
	return out
}

// exportIndex exports an index and returns the export's sum.
func (r *rig) exportIndex(args ...string) string {
	r.t.Helper()
	name := filepath.Join(r.base, "export.cbor")
	r.must(append([]string{"export-index", "--data", r.data, name}, args...)...)
	f, err := os.Open(name)
	if err != nil {
		r.t.Fatal(err)
	}
	defer f.Close()
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		r.t.Fatal(err)
	}
	return fmt.Sprintf("%x", h.Sum(nil))
}

// TestLostIndexAtScale deletes the index under many small objects and some long
// ones: what cairn rebuild makes from a snapshot and the log behind it is, row by
// row, what was there; with two nodes gone as well, what there was one log pack
// earlier, since the newest one may never have been acknowledged.
func TestLostIndexAtScale(t *testing.T) {
	rng := newRand(t)
	r := newRig(t)
	small, mebibytes, every := rounds(400, 4000, 1_000_000), rounds(8, 64, 10<<10), "192KiB"
	if long() {
		every = "64MiB"
	}
	s := r.start("--snapshot-every", every)
	body := func(i int) []byte { return content{seed: uint64(i), size: 512 + i%3584}.bytes() }
	key := func(i int) string { return fmt.Sprintf("s/%03d/%06d", i%100, i) }
	begin := time.Now()
	var next, failed atomic.Int64
	var wg sync.WaitGroup
	for range 64 {
		wg.Go(func() {
			c := s.client()
			defer c.close()
			for {
				i := int(next.Add(1)) - 1
				if i >= small || failed.Load() > 0 {
					return
				}
				for try := 0; ; try++ {
					reply := c.put(key(i), body(i))
					if reply.answer == acked {
						break
					}
					if try == 20 {
						failed.Add(1)
						t.Errorf("put %s: %v", key(i), reply)
						return
					}
				}
			}
		})
	}
	wg.Wait()
	c := s.client()
	const piece = 8 << 20
	for i := 0; i < mebibytes<<20/piece; i++ {
		if reply := c.put(fmt.Sprintf("l/%05d", i), content{seed: 1<<40 + uint64(i), size: piece}.bytes()); reply.answer != acked {
			t.Fatalf("put of a long object: %v", reply)
		}
	}
	c.close()
	t.Logf("%d small objects and %d MiB of long ones in %v; %d snapshots", small, mebibytes, time.Since(begin).Round(time.Second), r.count("snapshot of the index taken"))
	s.stop()
	if r.count("snapshot of the index taken") == 0 && !testing.Short() {
		t.Error("no snapshot was taken: the test tests less than it should")
	}
	before := r.exportIndex()

	removeAll(t, r.index())
	got := r.rebuild()
	t.Logf("rebuilt: %+v, %s resident, index %s", got, mib(got.resident), mib(allocated(t, r.index())))
	if got.Held || got.Sequence != got.Tail {
		t.Errorf("with every node there, sequence %d of %d", got.Sequence, got.Tail)
	}
	if after := r.exportIndex(); after != before {
		t.Error("the index that was made anew is exported as something else")
	}
	begin = time.Now()
	r.start("--snapshot-every", every).stop()
	t.Logf("a start and a stop took %v", time.Since(begin).Round(time.Millisecond))

	past := filepath.Join(r.base, "past")
	// The newest log pack begins the last start's epoch; what it was written behind is
	// left to the next start with it.
	tail := r.rebuild("--index", past).Tail
	want := map[uint64]string{tail: r.exportIndex("--index", past)}
	removeAll(t, past)
	r.rebuild("--index", past, "--to", fmt.Sprint(tail-2))
	want[tail-2] = r.exportIndex("--index", past)
	for _, n := range pick(rng, nodeNames(), 2) {
		empty(t, r.node(n))
	}
	removeAll(t, r.index())
	got = r.rebuild()
	t.Logf("with two nodes gone: %+v, %s resident", got, mib(got.resident))
	// Unless neither of the two had a copy of it.
	if after := r.exportIndex(); got.Held != (got.Sequence == tail-2) || after != want[got.Sequence] {
		t.Errorf("with two nodes gone the index is at %d of %d, held %v, and as it was there: %v", got.Sequence, tail, got.Held, after == want[got.Sequence])
	}
	s = r.start("--snapshot-every", every)
	c = s.client()
	defer c.close()
	for range min(small, 300) {
		i := rng.IntN(small)
		if reply := c.get(key(i)); reply.status != http.StatusOK || !bytes.Equal(reply.body, body(i)) {
			t.Fatalf("get %s: %v with %d bytes", key(i), reply, len(reply.body))
		}
	}
	s.stop()
}
