package integration

import (
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// TestLoss destroys any two nodes at once, from the moment of an answer, while
// puts go on; sometimes the process is killed at the same instant. Everything
// acknowledged is read from the process that is left and from the next one, then
// both nodes are replaced and repaired, and it begins again (H1, H2, H39).
func TestLoss(t *testing.T) {
	rng := newRand(t)
	// Each round repairs a third of everything there is, so that a store is given
	// up before that takes longer than the rest.
	const most = 25
	for n, i := rounds(4, 20, 200), 1; n > 0; n, i = n-most, i+1 {
		t.Run(fmt.Sprintf("store %d", i), func(t *testing.T) { loseNodes(t, rng, min(n, most)) })
	}
}

func loseNodes(t *testing.T, rng *rand.Rand, n int) {
	r, j := newRig(t), newJournal()
	var (
		kills           int
		slowest, during time.Duration
		degraded        = map[string]int{}
	)
	s := r.start()
	for round := range n {
		victims := pick(rng, nodeNames(), 2)
		alsoKill := rng.IntN(3) == 0
		before := len(j.all())
		// The blow falls on one acknowledgement, in the goroutine that got it.
		var (
			acks atomic.Int64
			once sync.Once
			at   = 1 + rng.Int64N(40)
		)
		blow := func() {
			var both sync.WaitGroup
			if alsoKill {
				both.Go(s.kill)
			}
			for _, v := range victims {
				both.Go(func() { empty(t, r.node(v)) })
			}
			both.Wait()
		}
		l := &load{stop: make(chan struct{})}
		struck := make(chan struct{})
		for i := range 4 {
			w := &worker{j: j, rng: fork(rng), prefix: fmt.Sprintf("r%03d/c%d", round, i), keys: 8, srv: s, c: s.client(), stop: l.stop, maxPut: 3 << 20}
			w.onAck = func() {
				if acks.Add(1) >= at {
					once.Do(func() { blow(); close(struck) })
				}
			}
			l.wg.Go(func() {
				defer w.c.close()
				w.run()
			})
		}
		select {
		case <-struck:
		case <-s.exited: // by our hand, or by itself
			select {
			case <-struck:
			case <-time.After(10 * time.Second):
				t.Fatalf("round %d: the server ended by itself with exit code %d: %s", round, s.code, j.counts())
			}
		case <-time.After(time.Minute):
			t.Fatalf("round %d: after a minute %d writes are acknowledged: %s", round, acks.Load(), j.counts())
		}
		// Writes go on over the four nodes that are left.
		time.Sleep(time.Duration(rng.Int64N(int64(200 * time.Millisecond))))
		l.end()
		report(t, j)
		keys := j.all()
		// This round's keys, and some of the older ones.
		look := keys[before:]
		for range min(before, 40) {
			look = append(look, keys[rng.IntN(before)])
		}
		if alsoKill {
			kills++
		} else {
			j.check(s, false, look)
			report(t, j)
			st := r.status()
			if !st.Writable || *st.PacksShort == 0 {
				t.Errorf("round %d: two nodes are lost, and status says: writable %v (%s), %d packs short", round, st.Writable, st.Reason, *st.PacksShort)
			}
			for _, v := range victims {
				if st.states()[v] != "missing" {
					t.Errorf("round %d: node %s was emptied and is %q", round, v, st.states()[v])
				}
			}
			degraded[st.Width]++
			if rng.IntN(2) == 0 {
				s.stop()
			} else {
				s.kill()
			}
		}
		if rng.IntN(3) == 0 {
			removeAll(t, r.index())
		}
		s = r.start()
		j.check(s, true, look)
		report(t, j)
		took := r.replaceAndHeal(victims...)
		during += took
		slowest = max(slowest, took)
		if st := r.status(); st.Width != "4+2" || !strings.HasPrefix(st.Survives, "bit rot and 2 lost directories") {
			t.Errorf("round %d: all is repaired, and new packs are %s; survives: %s", round, st.Width, st.Survives)
		}
	}
	j.check(s, true, j.all())
	report(t, j)
	st := s.usage(t)
	s.stop()
	t.Logf("%d rounds, in %d of them the process was killed at the same instant; codes while two nodes were lost: %v; %s", n, kills, degraded, j.counts())
	t.Logf("repair after a replacement took %v on average, %v at most; in the end %s unique, %s on disk", (during / time.Duration(n)).Round(time.Millisecond),
		slowest.Round(time.Millisecond), mib(int64(st["unique_bytes"])), mib(int64(st["physical_bytes"])))
	r.verify()
}
