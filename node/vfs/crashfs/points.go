package crashfs

import (
	"fmt"
	"math/rand/v2"
)

// TB is what [EveryPoint] needs of a *testing.T or *rapid.T.
type TB interface {
	Helper()
	Failed() bool
	Logf(format string, args ...any)
	Fatalf(format string, args ...any)
}

// cutsPerPoint is how many power cuts EveryPoint makes at each point, besides
// the kill. Many points see each manner of losing; few cuts are enough.
const cutsPerPoint = 8

// EveryPoint runs a program over and over on an empty FS: in the n-th run
// everything after its n-th operation fails, until a run needs no more than n.
// check gets the volume as it could be then, once as after a kill and several
// times as after a power cut. run should forget, when it starts, what it noted
// for check in the run before, and note what it was told is done.
//
// run's error is looked at in the last run only, the one that nothing stops.
// When check fails the test, the point is logged; rng seeds follow from it, so
// that a failure comes again.
func EveryPoint(t TB, run func(fs *FS) error, check func(fs *FS)) {
	t.Helper()
	about := ""
	defer func() { // also when check ends the goroutine
		if t.Failed() && about != "" {
			t.Logf("crashfs: at %s", about)
		}
	}()
	for n := 0; ; n++ {
		fsys := New()
		fsys.StartTrace()
		fsys.StopAfter(n)
		err := run(fsys)
		trace := fsys.Trace()
		ended := !fsys.halted()
		last := "the beginning"
		if len(trace) > 0 {
			last = trace[len(trace)-1].String()
		}
		for cut := range cutsPerPoint {
			about = fmt.Sprintf("power cut %d after operation %d (%s)", cut, n, last)
			c := fsys.CrashClone(rand.New(rand.NewPCG(uint64(n), uint64(cut))))
			c.v.about = about
			if check(c); t.Failed() {
				return
			}
		}
		about = fmt.Sprintf("kill after operation %d (%s)", n, last)
		c := fsys.Kill()
		c.v.about, c.v.traced = about, false
		if check(c); t.Failed() {
			return
		}
		about = ""
		if ended {
			if err != nil {
				t.Fatalf("crashfs: with nothing in its way the program said: %v", err)
			}
			return
		}
	}
}

func (f *FS) halted() bool {
	f.v.disk.mu.Lock()
	defer f.v.disk.mu.Unlock()
	return f.v.halted
}
