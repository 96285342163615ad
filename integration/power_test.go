package integration

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
)

// layouts are the ways a store's directories lie on filesystems.
var layouts = []struct {
	name string
	dirs []string // below the data directory
	size int64
}{
	{"a filesystem for each node", []string{"nodes/n01", "nodes/n02", "nodes/n03", "nodes/n04", "nodes/n05", "nodes/n06"}, 1 << 30},
	{"one for all nodes", []string{"nodes"}, 6 << 30},
	{"one for everything", []string{"."}, 6 << 30},
	{"one for all nodes and one for the index", []string{"nodes", "index"}, 6 << 30},
}

// newPowerRig begins a store and moves it onto filesystems.
func newPowerRig(t *testing.T, fs string, dirs []string, size int64) (*rig, []*volume) {
	t.Helper()
	r := newRig(t)
	r.start().stop()
	var vs []*volume
	for _, dir := range dirs {
		vs = append(vs, r.newVolume(fs, filepath.Join(r.data, dir), size))
	}
	return r, vs
}

// powerLoad is the mixed load of these tests; in a third of the rounds one more
// client puts objects that take several packs.
func powerLoad(j *journal, s *server, rng *rand.Rand) *load {
	l := startLoad(j, s, rng, 6, 10)
	if rng.IntN(3) == 0 {
		w := &worker{j: j, rng: fork(rng), prefix: "large", srv: s, c: s.client(), stop: l.stop}
		l.wg.Go(func() {
			defer w.c.close()
			for {
				select {
				case <-w.stop:
					return
				case <-s.exited:
					return
				default:
					w.putBody(fmt.Sprintf("large/k%d", w.rng.IntN(2)), content{seed: w.rng.Uint64(), size: 17<<20 + w.rng.IntN(20<<20)})
				}
			}
		})
	}
	return l
}

// powerCount is what a test of power cuts tells at its end.
type powerCount struct {
	cuts, live, saved, noIndex int
	starts                     []time.Duration
	verified                   int
	index                      indexCount
}

func (c *powerCount) start(r *rig) *server {
	begin := time.Now()
	s := r.start()
	c.starts = append(c.starts, time.Since(begin))
	return s
}

func (c *powerCount) String() string {
	var sum, most time.Duration
	for _, d := range c.starts {
		sum, most = sum+d, max(most, d)
	}
	return fmt.Sprintf("%d cuts (%d with a process that ran on, %d with the filesystem's log saved), %d indexes removed; a start took %v on average, %v at most; %d clean verifications; %s",
		c.cuts, c.live, c.saved, c.noIndex, (sum / time.Duration(max(1, len(c.starts)))).Round(time.Millisecond), most.Round(time.Millisecond), c.verified, c.index)
}

// indexCount is what starts found the index to be after a cut.
type indexCount struct {
	whole, prefix, none, damaged int
	behind                       uint64 // log packs that prefixes lacked, together
}

func (c indexCount) String() string {
	return fmt.Sprintf("of %d indexes %d were up to the log, %d a prefix (%d log packs behind in all), %d empty, %d noticed as damaged",
		c.whole+c.prefix+c.none+c.damaged, c.whole, c.prefix, c.behind, c.none, c.damaged)
}

var foundLog = regexp.MustCompile(`msg="log found" index=(\d+) tail=(\d+)`)

// note reads from a start's log in what state it found the index. The tail
// itself is never in an index that had no time to acknowledge it, and counts as
// up to the log.
func (c *indexCount) note(t *testing.T, s *server) {
	t.Helper()
	said := s.stderr()
	if strings.Contains(said, "the index is damaged") {
		c.damaged++
		return
	}
	m := foundLog.FindStringSubmatch(said)
	if m == nil {
		t.Errorf("the start does not say how far index and log were:\n%s", said)
		return
	}
	index, _ := strconv.ParseUint(m[1], 10, 64) // digits
	tail, _ := strconv.ParseUint(m[2], 10, 64)
	switch {
	case index == 0:
		c.none++
	case index+1 >= tail:
		c.whole++
	default:
		c.prefix++
		c.behind += tail - index
	}
}

// waitRepaired waits until a start that found its newest log pack short of shards,
// because it was on its way when the power went, has made them anew.
func (s *server) waitRepaired() {
	s.r.t.Helper()
	for begin := time.Now(); strings.Contains(s.stderr(), "whole=false") && !strings.Contains(s.stderr(), "msg=repaired"); time.Sleep(10 * time.Millisecond) {
		if time.Since(begin) > 20*time.Second {
			s.r.t.Errorf("20 s after the start the pack that was on its way is still short:\n%s", s.stderr())
			return
		}
	}
}

// cutHow draws what the filesystem does with its log, mostly nothing.
func cutHow(rng *rand.Rand, c *powerCount) int {
	if rng.IntN(3) == 0 {
		c.saved++
		return logSaved
	}
	return logLost
}

// cutAll cuts the power of everything, mostly at one instant for all filesystems,
// and otherwise of some a little earlier; sometimes the process runs on for a
// moment and sees that nothing works any more. Then it is killed.
func cutAll(t *testing.T, rng *rand.Rand, s *server, vs []*volume, c *powerCount) {
	t.Helper()
	c.cuts++
	how := cutHow(rng, c)
	s.doomed.Store(true)
	order := rng.Perm(len(vs))
	early := 0
	if rng.IntN(3) == 0 {
		early = rng.IntN(len(vs))
	}
	runsOn := rng.IntN(3) == 0
	if early > 0 || runsOn {
		c.live++
	}
	// A process that runs on without the filesystem of its index may end by a fault in
	// a mapped file: badger writes to its log so.
	gone := false
	for i, at := range order {
		if i == 0 || i == early && !gone {
			if err := s.suspend(); err != nil && !(s.r.mayFault && s.over()) {
				t.Fatal(err)
			}
		}
		if err := vs[at].cut(how); err != nil {
			t.Fatal(err)
		}
		if (i == early-1 || i == len(order)-1 && runsOn) && !s.over() {
			if slices.ContainsFunc(order[:i+1], func(at int) bool { return vs[at].dir == s.r.data || vs[at].dir == s.r.index() }) {
				s.r.mayFault = true
			}
			s.resume()
			time.Sleep(time.Duration(rng.Int64N(int64(100 * time.Millisecond))))
			gone = s.over()
		}
	}
	s.kill()
}

// over reports whether the process has ended.
func (s *server) over() bool {
	select {
	case <-s.exited:
		return true
	case <-time.After(20 * time.Millisecond): // a signal on its way
		return false
	}
}

// storeRounds is how many cuts one store lives through: what was put is never
// taken away, and each check reads all of it.
const storeRounds = 10

// TestPowerCut cuts the power of everything at once, on real filesystems, under
// a mixed load; in a fifth of the rounds the index is lost as well. Everything
// acknowledged is there, byte for byte, at the next start, and a verification is
// clean (H13, H34, H36).
func TestPowerCut(t *testing.T) {
	for _, fs := range filesystems {
		t.Run(fs, func(t *testing.T) {
			needVolumes(t, fs)
			rng := newRand(t)
			c, total := &powerCount{}, ""
			n := rounds(1, 4, 50)
			for store := 0; c.cuts < n; store++ {
				l := layouts[store%len(layouts)]
				t.Run(l.name, func(t *testing.T) {
					r, vs := newPowerRig(t, fs, l.dirs, l.size)
					j := newJournal()
					most := min(n, c.cuts+max(1, min(storeRounds, n/len(layouts))))
					for c.cuts < most {
						powerCutRound(t, rng, r, vs, j, c)
					}
					total += "\n" + l.name + ": " + j.counts()
				})
				if t.Failed() {
					break
				}
			}
			t.Logf("%s: %v%s", fs, c, total)
		})
	}
}

func powerCutRound(t *testing.T, rng *rand.Rand, r *rig, vs []*volume, j *journal, c *powerCount) {
	t.Helper()
	s := r.server
	if s == nil {
		s = c.start(r)
	}
	l := powerLoad(j, s, rng)
	time.Sleep(100*time.Millisecond + time.Duration(rng.Int64N(int64(600*time.Millisecond))))
	cutAll(t, rng, s, vs, c)
	l.end()
	report(t, j)
	restore(t, vs...)
	noIndex := c.cuts%5 == 2
	if noIndex {
		c.noIndex++
		empty(t, r.index()) // a filesystem of its own can be emptied, not removed
	}
	s = c.start(r)
	j.check(s, true, j.all())
	report(t, j)
	if !noIndex && slices.ContainsFunc(vs, func(v *volume) bool { return v.dir == r.data || v.dir == r.index() }) {
		c.index.note(t, s)
	}
	wantStates(t, r, nil)
	// Not only what can be read: every shard is where the log says.
	s.waitRepaired()
	s.kill()
	r.verify()
	c.verified++
	if t.Failed() {
		t.FailNow()
	}
}

// TestPowerCutOfOneNode cuts the power of one node's filesystem while the process
// and the other nodes live. Nothing is refused that need not be, what is read
// stays right, and after a restart with the filesystem mounted again the node
// holds all it ever answered for (H5, H34, H39).
func TestPowerCutOfOneNode(t *testing.T) {
	for _, fs := range filesystems {
		t.Run(fs, func(t *testing.T) {
			needVolumes(t, fs)
			rng := newRand(t)
			c, total := &powerCount{}, ""
			n := rounds(1, 2, 50)
			for c.cuts < n {
				r, vs := newPowerRig(t, fs, layouts[0].dirs, layouts[0].size)
				j := newJournal()
				for most := min(n, c.cuts+storeRounds); c.cuts < most; {
					cutOneRound(t, rng, r, vs, j, c)
				}
				total += "\n" + j.counts()
			}
			t.Logf("%s: %v%s", fs, c, total)
		})
	}
}

func cutOneRound(t *testing.T, rng *rand.Rand, r *rig, vs []*volume, j *journal, c *powerCount) {
	t.Helper()
	s := c.start(r)
	l := powerLoad(j, s, rng)
	time.Sleep(50*time.Millisecond + time.Duration(rng.Int64N(int64(400*time.Millisecond))))
	victim := rng.IntN(len(vs))
	name := filepath.Base(vs[victim].dir)
	c.cuts++
	if err := s.suspend(); err != nil {
		t.Fatal(err)
	}
	before := j.acknowledged()
	if err := vs[victim].cut(cutHow(rng, c)); err != nil {
		t.Fatal(err)
	}
	s.resume()
	for begin := time.Now(); j.acknowledged() < before+30; time.Sleep(5 * time.Millisecond) {
		if time.Since(begin) > 20*time.Second {
			t.Fatalf("20 s after the power of %s was cut %d more writes are acknowledged: %s", name, j.acknowledged()-before, j.counts())
		}
	}
	l.end()
	report(t, j)
	j.check(s, false, j.all())
	report(t, j)
	if st := r.status(); st.states()[name] == "up" || st.reason(name) == "" || !st.Writable {
		t.Errorf("the power of %s was cut, and status says: %s (%s); writable: %v (%s)", name, st.states()[name], st.reason(name), st.Writable, st.Reason)
	}
	noIndex := c.cuts%5 == 2
	if rng.IntN(2) == 0 {
		c.live++
		s.stopLame()
	} else {
		s.kill()
	}
	restore(t, vs[victim])
	if noIndex {
		c.noIndex++
		empty(t, r.index())
	}
	s = c.start(r)
	j.check(s, true, j.all())
	report(t, j)
	if st := wantStates(t, r, nil); *st.PacksShort != 0 {
		t.Errorf("%s is back, and %d packs are short", name, *st.PacksShort)
	}
	s.waitRepaired()
	s.kill()
	r.verify()
	c.verified++
	if t.Failed() {
		t.FailNow()
	}
}

// TestPowerCutOfTheIndex cuts the power of the index alone, under a process that
// runs on: it may end, but it never answers from an index that it could not
// write, and the next start makes good what the index lacks (H9, H13).
func TestPowerCutOfTheIndex(t *testing.T) {
	for _, fs := range filesystems {
		t.Run(fs, func(t *testing.T) {
			needVolumes(t, fs)
			rng := newRand(t)
			r, vs := newPowerRig(t, fs, []string{"index"}, 1<<30)
			r.mayFault = true
			j, c, ended := newJournal(), &powerCount{}, map[string]int{}
			for range rounds(1, 1, 20) {
				s := c.start(r)
				if c.cuts > 0 {
					c.index.note(t, s)
				}
				j.check(s, true, j.all())
				report(t, j)
				l := powerLoad(j, s, rng)
				time.Sleep(50*time.Millisecond + time.Duration(rng.Int64N(int64(500*time.Millisecond))))
				c.cuts++
				s.doomed.Store(true) // it may end at any time
				if err := errors.Join(s.suspend(), vs[0].cut(cutHow(rng, c))); err != nil {
					t.Fatal(err)
				}
				s.resume()
				select {
				case <-s.exited:
					ended[fmt.Sprintf("exit code %d", s.code)]++
				case <-time.After(time.Second + time.Duration(rng.Int64N(int64(time.Second)))):
					ended["killed"]++
				}
				s.kill()
				l.end()
				report(t, j)
				restore(t, vs...)
			}
			s := c.start(r)
			c.index.note(t, s)
			j.check(s, true, j.all())
			report(t, j)
			s.waitRepaired()
			s.kill()
			r.verify()
			t.Logf("%s: %v; the process: %v; %s", fs, c, ended, j.counts())
		})
	}
}

// TestDamagedIndexOnItsOwnFilesystem starts with an index that is damaged and
// whose directory cannot be renamed, because a filesystem is mounted there.
func TestDamagedIndexOnItsOwnFilesystem(t *testing.T) {
	needVolumes(t, "ext4")
	r, vs := newPowerRig(t, "ext4", []string{"index"}, 1<<30)
	j := newJournal()
	s := r.start()
	fillStore(r, j, s, "old", 3)
	s.stop()
	damage(t, filepath.Join(r.index(), "MANIFEST"), 20, true)
	s = r.start()
	if said := s.stderr(); !strings.Contains(said, "the index is damaged and is made anew from the log") {
		t.Errorf("the start says nothing of a damaged index:\n%s", said)
	}
	j.check(s, true, j.all())
	report(t, j)
	s.stop()
	kept, err := filepath.Glob(filepath.Join(r.data, "index*", "*", "MANIFEST"))
	if err != nil || len(kept) != 1 {
		t.Errorf("the damaged index is not kept once: %v, %v", kept, err)
	}
	if _, err := os.Stat(filepath.Join(vs[0].dir, "MANIFEST")); err != nil {
		t.Errorf("the new index is not on its filesystem: %v", err)
	}
	s = sound(t, r, j)
	s.stop()
	if err := errors.Join(vs[0].unmount(), vs[0].mount()); err != nil {
		t.Error(err)
	}
}
