package integration

import (
	"fmt"
	"path/filepath"
	"slices"
	"testing"
	"time"
)

// TestKilledChangesOfNodes kills the process at random instants of adds, drains,
// removals and rebalances, under load. After each restart every key is held against the
// journal; what was begun goes on or can be begun again, and comes to its end (H43, H44,
// H45).
func TestKilledChangesOfNodes(t *testing.T) {
	rng := newRand(t)
	r, j := newRig(t), newJournal()
	elsewhere := t.TempDir()
	done := map[string]int{}
	made, n := 6, rounds(4, 20, 150)
	for round := range n {
		if round > 0 && rng.IntN(3) == 0 {
			removeAll(t, r.index())
		}
		s := r.start()
		j.check(s, true, j.all())
		report(t, j)
		var names, draining []string
		for _, x := range r.status().Nodes {
			if names = append(names, x.Name); x.State == "draining" {
				draining = append(draining, x.Name)
			}
		}
		if len(names) < 6 || len(names) > 9 || len(draining) > 1 {
			t.Fatalf("round %d: nodes %v, draining %v", round, names, draining)
		}
		// What an earlier round began comes to its end, one time in two.
		if len(draining) > 0 && rng.IntN(2) == 0 {
			r.must("nodes", "drain", draining[0], "--wait", "--rate", "10GB")
			r.must("nodes", "remove", draining[0])
			names, draining = slices.DeleteFunc(names, func(x string) bool { return x == draining[0] }), nil
			done["removed"]++
		}
		var command []string
		switch {
		case len(names) == 6 || len(names) < 9 && rng.IntN(3) == 0:
			made++
			name := fmt.Sprintf("n%02d", made)
			if command = []string{"nodes", "add", name}; rng.IntN(2) == 0 {
				command = append(command, "--path", filepath.Join(elsewhere, name))
			}
		case len(draining) > 0:
			command = []string{"nodes", "remove", draining[0]}
			if rng.IntN(2) == 0 {
				command = []string{"nodes", "drain", draining[0], "--wait", "--rate", "10GB"}
			}
		case rng.IntN(2) == 0:
			command = []string{"rebalance", "--rate", "10GB"}
		default:
			command = []string{"nodes", "drain", names[rng.IntN(len(names))], "--wait", "--rate", "10GB"}
		}
		l := &load{stop: make(chan struct{})}
		for i := range 4 {
			w := &worker{j: j, rng: fork(rng), prefix: fmt.Sprintf("r%03d/c%d", round, i), keys: 8, srv: s, c: s.client(), stop: l.stop, maxPut: 3 << 20}
			l.wg.Go(func() {
				defer w.c.close()
				w.run()
			})
		}
		time.Sleep(time.Duration(rng.Int64N(int64(300 * time.Millisecond))))
		ended := make(chan int, 1)
		go func() {
			_, _, code := r.command(command...)
			ended <- code
		}()
		time.Sleep(time.Duration(rng.Int64N(int64(delays[rng.IntN(len(delays))]))))
		s.kill()
		l.end()
		code := <-ended
		report(t, j)
		t.Logf("round %d: killed in %v, which ended with %d", round, command, code)
		kind := command[0]
		if kind == "nodes" {
			kind = command[1]
		}
		if done[kind]++; kind == "add" && code != 0 {
			// It is a member, or the same command makes it one.
			s := r.start()
			if states := r.status().states(); states[command[2]] == "" {
				r.must(command...)
				done["added again"]++
			}
			s.stop()
		}
	}
	s := r.start()
	j.check(s, true, j.all())
	report(t, j)
	for _, x := range r.status().Nodes {
		if x.State == "draining" {
			r.must("nodes", "drain", x.Name, "--wait", "--rate", "10GB")
			r.must("nodes", "remove", x.Name)
		}
	}
	r.must("rebalance", "--rate", "10GB")
	if st := r.status(); *st.PacksShort > 0 {
		t.Errorf("in the end %d packs are short: %s", *st.PacksShort, st.Survives)
	}
	j.check(s, true, j.all())
	report(t, j)
	s.stop()
	t.Logf("%d rounds; %v; %s", n, done, j.counts())
	r.verify()
}

// delays are how long a change may go on before the kill: most are over in milliseconds.
var delays = []time.Duration{5 * time.Millisecond, 30 * time.Millisecond, 300 * time.Millisecond}
