package integration

import (
	"fmt"
	"math/rand/v2"
	"os/exec"
	"path/filepath"
	"testing"
	"time"
)

// TestPowerCutBites runs the power cuts on a program whose nodes never sync: if
// they do not find that it loses what it acknowledged, they find nothing.
func TestPowerCutBites(t *testing.T) {
	for _, fs := range filesystems {
		needVolumes(t, fs)
	}
	rng := newRand(t)
	faulty := filepath.Join(t.TempDir(), "cairn")
	build := append(append([]string{}, buildArgs...), "-tags", "cairn_without_syncs", "-o", faulty, "cairn/cmd/cairn")
	if out, err := exec.Command("go", build...).CombinedOutput(); err != nil {
		t.Fatalf("build without syncs: %v\n%s", err, out)
	}
	const tries = 5 // one has always been enough
	for i, fs := range filesystems {
		for k, c := range []struct {
			name string
			dirs []string
			cut  func(*testing.T, *rand.Rand, *rig, []*volume, *journal) string
		}{
			{"everything", layouts[2].dirs, loseAll},
			{"one node", layouts[0].dirs[2:3], loseOne},
		} {
			if i+k > 0 && !long() {
				continue
			}
			t.Run(fs+" "+c.name, func(t *testing.T) {
				for try := 1; ; try++ {
					r, vs := newPowerRig(t, fs, c.dirs, 6<<30)
					r.program = faulty
					if found := c.cut(t, rng, r, vs, newJournal()); found != "" {
						t.Logf("cut %d: %s", try, found[:min(len(found), 400)])
						return
					}
					if try == tries {
						t.Fatalf("%d power cuts of a program that never syncs, and nothing was found missing", try)
					}
				}
			})
		}
	}
}

// loadAndCut cuts the power under load and mounts the filesystems again.
func loadAndCut(t *testing.T, rng *rand.Rand, r *rig, vs []*volume, j *journal) {
	t.Helper()
	s := r.start()
	l := startLoad(j, s, rng, 6, 10)
	time.Sleep(300*time.Millisecond + time.Duration(rng.Int64N(int64(300*time.Millisecond))))
	s.doomed.Store(true)
	if err := s.suspend(); err != nil {
		t.Fatal(err)
	}
	for _, v := range vs {
		if err := v.cut(logLost); err != nil {
			t.Fatal(err)
		}
	}
	s.kill()
	l.end()
	report(t, j)
	restore(t, vs...)
}

// loseAll says what was found wrong after a cut of everything.
func loseAll(t *testing.T, rng *rand.Rand, r *rig, vs []*volume, j *journal) string {
	t.Helper()
	loadAndCut(t, rng, r, vs, j)
	s := r.launch()
	if !s.waitServing(60 * time.Second) {
		s.kill()
		return "the server does not start: " + cut(s.stderr())
	}
	j.check(s, true, j.all())
	s.kill()
	if len(j.faults) > 0 {
		return fmt.Sprintf("%d of %d writes were acknowledged; %d faults, the first: %s", j.acks, j.acks+j.unknowns, len(j.faults), cut(j.faults[0]))
	}
	return ""
}

// loseOne says what a verification finds after a cut of one node. The store reads
// on, since five other nodes have kept theirs.
func loseOne(t *testing.T, rng *rand.Rand, r *rig, vs []*volume, j *journal) string {
	t.Helper()
	loadAndCut(t, rng, r, vs, j)
	s := r.start()
	j.check(s, true, j.all())
	report(t, j)
	s.waitRepaired()
	s.kill()
	if out, _, code := r.command("verify", "--data", r.data); code != 0 {
		return "verify: " + cut(out)
	}
	return ""
}
