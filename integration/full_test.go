package integration

import (
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// fullSize is the size of the filesystems that these tests fill: their images are
// sparse, and foreign files take their room without being written.
const fullSize = 1 << 30

// mountSmall mounts a new filesystem of that size over a directory.
func mountSmall(t *testing.T, r *rig, kind, at string) {
	t.Helper()
	image := filepath.Join(r.base, strings.ReplaceAll(strings.TrimPrefix(at, r.base), "/", "_")+".img")
	f, err := os.Create(image)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(f.Truncate(fullSize), f.Close()); err != nil {
		t.Fatal(err)
	}
	mkfs := exec.Command("mkfs.ext4", "-q", "-F", "-m", "0", "-E", "lazy_itable_init=1,lazy_journal_init=1", image)
	if kind == "xfs" {
		mkfs = exec.Command("mkfs.xfs", "-q", "-f", image)
	}
	if out, err := mkfs.CombinedOutput(); err != nil {
		t.Fatalf("mkfs.%s: %v\n%s", kind, err, out)
	}
	if err := os.MkdirAll(at, 0o700); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("mount", "-o", "loop", image, at).CombinedOutput(); err != nil {
		t.Fatalf("mount: %v\n%s", err, out)
	}
	t.Cleanup(func() {
		if s := r.server; s != nil {
			s.kill()
		}
		if err := syscall.Unmount(at, syscall.MNT_DETACH); err != nil {
			t.Errorf("unmount %s: %v", at, err)
		}
	})
}

// needLoop skips the test where no filesystem can be mounted.
func needLoop(t *testing.T) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("a filesystem of its own can be mounted by root only")
	}
	for _, tool := range []string{"mkfs.ext4", "mount"} {
		if _, err := exec.LookPath(tool); err != nil {
			t.Skipf("needs %s: %v", tool, err)
		}
	}
	if _, err := os.Stat("/dev/loop-control"); err != nil {
		t.Skipf("needs loop devices: %v", err)
	}
}

// disk is a filesystem that the test fills and empties.
type fullDisk struct {
	t  *testing.T
	at string
	n  int
}

func (d *fullDisk) free() int64  { return int64(d.statfs().Bavail) * d.statfs().Frsize }
func (d *fullDisk) total() int64 { return int64(d.statfs().Blocks) * d.statfs().Frsize }

func (d *fullDisk) statfs() (st syscall.Statfs_t) {
	d.t.Helper()
	if err := syscall.Statfs(d.at, &st); err != nil {
		d.t.Fatal(err)
	}
	return st
}

// leave makes a foreign file appear that leaves so many bytes free.
func (d *fullDisk) leave(left int64) {
	d.t.Helper()
	d.n++
	f, err := os.Create(filepath.Join(d.at, fmt.Sprintf("foreign-%d", d.n)))
	if errors.Is(err, syscall.ENOSPC) {
		return
	}
	if err != nil {
		d.t.Fatal(err)
	}
	defer f.Close()
	end := int64(0)
	for step := d.free() - left; step > 0 && d.free() > left; {
		switch err := syscall.Fallocate(int(f.Fd()), 0, end, step); {
		case err == nil:
			end += step
			step = min(step, d.free()-left)
		case errors.Is(err, syscall.ENOSPC):
			step /= 2
		case !errors.Is(err, syscall.EINTR):
			d.t.Fatal(err)
		}
	}
}

// clear takes the foreign files away.
func (d *fullDisk) clear() {
	d.t.Helper()
	names, err := filepath.Glob(filepath.Join(d.at, "foreign-*"))
	if err != nil {
		d.t.Fatal(err)
	}
	for _, name := range names {
		if err := os.Remove(name); err != nil {
			d.t.Fatal(err)
		}
	}
}

// wantRefused checks an answer that says that there is no room: 507, or 503 when
// that may pass; that nothing was done; which directory, and what to do.
func wantRefused(t *testing.T, what string, a reply, dir string) {
	t.Helper()
	var p struct{ Detail string }
	_ = json.Unmarshal(a.body, &p) // then the detail is empty
	if a.status != http.StatusInsufficientStorage || a.kind != "full" {
		t.Errorf("%s: %v %.500s, want 507 full", what, a, a.body)
		return
	}
	for _, words := range []string{dir, "are free", "must be", "remove other files"} {
		if !strings.Contains(p.Detail, words) {
			t.Errorf("%s: the detail does not say %q: %s", what, words, p.Detail)
		}
	}
}

// fullCase is one way in which disks are full.
type fullCase struct {
	name string
	at   func(r *rig) string // where the filesystem is mounted
	// later: the store is begun before, since its first start makes directories.
	later bool
	words func(r *rig) string // the directory that refusals name; "": the others take over
	index bool                // the index lies on it
}

// TestFullFilesystem fills real filesystems, by clients' data and by foreign
// files, down to the last byte, and kills and starts the server while they are
// full (H9, H52): one node's, all nodes' and the index's own, everything's; two of
// them, drawn by the seed, unless there is time for all.
func TestFullFilesystem(t *testing.T) {
	needLoop(t)
	rng := newRand(t)
	kinds := []string{"ext4"}
	if _, err := exec.LookPath("mkfs.xfs"); err == nil && long() {
		kinds = append(kinds, "xfs")
	}
	cases := []fullCase{
		{name: "everything on one", at: func(r *rig) string { return r.data }, words: func(r *rig) string { return r.data }, index: true},
		{name: "one node", at: func(r *rig) string { return r.node("n03") }, later: true},
		{name: "all nodes", at: func(r *rig) string { return filepath.Join(r.data, "nodes") }, later: true, words: func(r *rig) string { return filepath.Join(r.data, "nodes") + "/n" }},
		{name: "the index", at: (*rig).index, later: true, words: (*rig).index, index: true},
	}
	rng.Shuffle(len(cases), func(i, j int) { cases[i], cases[j] = cases[j], cases[i] })
	for _, c := range cases[:rounds(1, 2, len(cases))] {
		for _, kind := range kinds {
			t.Run(c.name+", "+kind, func(t *testing.T) { fillUp(t, c, kind, fork(rng)) })
		}
	}
}

func fillUp(t *testing.T, c fullCase, kind string, rng *rand.Rand) {
	r, j := newRig(t), newJournal()
	at := c.at(r)
	if c.later {
		s := r.start()
		fillStore(r, j, s, "first", 1)
		s.stop()
		aside := at + ".aside"
		rename(t, at, aside)
		mountSmall(t, r, kind, at)
		copyTree(t, aside, at)
		removeAll(t, aside)
		// The ballast is made where there was none.
	} else {
		mountSmall(t, r, kind, at)
	}
	d := &fullDisk{t: t, at: at}
	s := r.start()
	fillStore(r, j, s, "second", 2)
	cl := s.client()
	defer func() { cl.close() }()
	full := c.words != nil
	words := ""
	if full {
		words = c.words(r)
	}
	keys := 0
	put := func(size int) reply {
		keys++
		key, body := fmt.Sprintf("put/k%04d", keys), content{seed: rng.Uint64(), size: size}
		a := cl.put(key, body.bytes())
		j.wrote("put", a, size, false)
		switch a.answer {
		case acked:
			j.entry(key).states = []state{{present, body}}
		case unknown:
			j.entry(key).add(state{present, body})
		}
		return a
	}
	must := func(what string, a reply) {
		t.Helper()
		if a.answer != acked || a.err != nil {
			t.Errorf("%s: %v %s", what, a, cut(string(a.body)))
		}
	}
	del := func() reply {
		for {
			key := fmt.Sprintf("put/k%04d", 1+rng.IntN(keys))
			if e := j.entry(key); len(e.states) == 1 && e.may(present) {
				a := cl.delete(key)
				j.wrote("delete", a, 0, false)
				switch a.answer {
				case acked:
					e.states = []state{{deleted, e.states[0].body}}
				case unknown:
					e.add(state{deleted, e.states[0].body})
				}
				return a
			}
		}
	}
	reads := func(settled bool) {
		t.Helper()
		j.check(s, settled, j.all())
		report(t, j)
	}
	for range 40 {
		must("put while there is room", put(1+rng.IntN(60<<10)))
	}
	must("put while there is room", put(5<<20))

	// Clients' data up to its mark. A foreign file spares the test most of the way;
	// the index alone is not filled by clients within a test.
	if full && !(c.index && c.later) {
		d.leave(fullSize/20 + 60<<20)
		l := startLoad(j, s, rng, 3, 10)
		stopped := false
		for range 200 {
			if a := put(1 << 20); a.answer != acked {
				wantRefused(t, "a put that meets the mark", a, words)
				stopped = true
				break
			}
		}
		l.end()
		report(t, j)
		if !stopped {
			t.Fatalf("200 MiB went into 60 MiB above the mark; %s are free", mib(d.free()))
		}
	}
	// A foreign file to between the marks.
	d.leave(fullSize / 50)
	for range 3 {
		for what, a := range map[string]reply{"a small put": put(100), "a large put": put(3 << 20)} {
			if full {
				wantRefused(t, what+" below the mark", a, words)
			} else {
				must(what+" beside a full node", a)
			}
		}
		must("delete below the mark", del())
	}
	reads(false)
	if full {
		var st struct {
			Writable bool   `json:"writable"`
			NoRoom   string `json:"no_room"`
		}
		if out := r.must("status", "--json"); json.Unmarshal([]byte(out), &st) != nil || !st.Writable || !strings.Contains(st.NoRoom, words) {
			t.Errorf("status does not say that nothing new is taken, and why: %s", out)
		}
		for _, command := range []string{"status", "df"} {
			if out := r.must(command); !strings.Contains(out, words) || !strings.Contains(strings.ToLower(out), "no new data") {
				t.Errorf("cairn %s does not say that nothing new is taken, and why:\n%s\n%s", command, out, r.must("status", "--json"))
			}
		}
	}
	if !full || !c.index || !c.later {
		if st := r.status(); st.states()["n03"] != "full" {
			t.Errorf("status of a full node: %+v", st.Nodes)
		}
	}

	// To the last byte, under load, at the pace of a disk; then again, since where
	// the index lies the ballast makes room.
	l := startLoad(j, s, rng, 3, 10)
	for range 2 {
		d.leave(4 << 20)
		time.Sleep(300 * time.Millisecond)
		d.leave(0)
		time.Sleep(700 * time.Millisecond)
	}
	l.end()
	report(t, j)
	select {
	case <-s.exited:
		t.Fatalf("a full disk ended the server with exit code %d", s.code)
	default:
	}
	if full {
		wantRefused(t, "a put on a full disk", put(100), words)
		wantRefused(t, "a delete on a full disk", del(), words)
	} else {
		must("put beside a full disk", put(100))
		must("delete beside a full disk", del())
	}
	reads(false)

	// Killed and started while it is full. The rest of the ballast is for this.
	left := d.free()
	s.kill()
	cl.close()
	s = r.start()
	cl = s.client()
	reads(true)
	if full && !strings.Contains(s.stderr(), "ballast was given up") {
		t.Errorf("with %s free the start does not say that it gave up its ballast:\n%s", mib(left), s.stderr())
	}
	must("delete after a start on a full disk", del())
	if full {
		wantRefused(t, "a put after a start on a full disk", put(100), words)
	}
	if took := s.stop(); took > 10*time.Second {
		t.Errorf("a stop on a full disk took %v", took)
	}

	// Nothing is left at all: the start says so, or works all the same.
	d.leave(0)
	if full {
		code, said := r.refused()
		if !strings.Contains(said, words) && !strings.Contains(said, at) || !strings.Contains(said, "remove other files") && !strings.Contains(said, "no space left") {
			t.Errorf("a start without any room ends with %d and these words:\n%s", code, cut(said))
		}
		if strings.Contains(said, "SIGBUS") || strings.Contains(said, "goroutine ") {
			t.Errorf("a start without any room dies: %s", cut(said))
		}
	} else {
		s = r.start()
		reads(true)
		s.kill()
	}

	// Room again.
	d.clear()
	s = r.start()
	cl.close()
	cl = s.client()
	reads(true)
	must("put when there is room again", put(100))
	must("put when there is room again", put(5<<20))
	must("delete when there is room again", del())
	// And once more without a restart between.
	d.leave(fullSize / 50)
	if a := put(2 << 20); full {
		wantRefused(t, "a put below the mark", a, words)
	}
	d.clear()
	for limit := time.Now().Add(10 * time.Second); ; time.Sleep(50 * time.Millisecond) {
		a := put(2 << 20)
		if a.answer == acked {
			break
		}
		if time.Now().After(limit) {
			t.Fatalf("ten seconds after there is room: %v %s", a, a.body)
		}
	}
	if full {
		has := int64(0)
		for _, dir := range []string{at, r.node("n01")} {
			if info, err := os.Stat(filepath.Join(dir, ballastName)); err == nil && has == 0 {
				has = info.Size()
			}
		}
		if want := d.total() / 16; has != want {
			t.Errorf("with %s free the ballast has %s, want %s", mib(d.free()), mib(has), mib(want))
		}
	}
	reads(false)
	s.stop()
	t.Log(j.counts())
	r.verify()
}
