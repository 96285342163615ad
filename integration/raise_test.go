package integration

import (
	"encoding/json"
	"fmt"
	"testing"
	"time"
)

// losses is how many lost nodes the store says it survives, and is to survive.
func (r *rig) losses() (m, raising, left int) {
	r.t.Helper()
	var st struct {
		M       int `json:"losses_by_policy"`
		Raising int `json:"raising_to"`
		Left    int `json:"packs_to_raise"`
	}
	if err := json.Unmarshal([]byte(r.must("status", "--json")), &st); err != nil {
		r.t.Fatal(err)
	}
	return st.M, st.Raising, st.Left
}

// TestKilledWhileMIsRaised kills the process at random instants while it comes to survive three lost
// nodes in the place of two, under load, with and without its index. Whatever number it says then, a copy of the
// store that has lost as many nodes, and its index, gives everything back; in the end that is three (H25).
func TestKilledWhileMIsRaised(t *testing.T) {
	rng := newRand(t)
	r, j := newRig(t), newJournal()
	roomy := []string{"--memory", "512MiB"}
	names := append(nodeNames(), "n07")
	s := r.start(roomy...)
	work := func(round int) *load {
		l := &load{stop: make(chan struct{})}
		for i := range 4 {
			w := &worker{j: j, rng: fork(rng), prefix: fmt.Sprintf("r%03d/c%d", round, i), keys: 8, srv: s, c: s.client(), stop: l.stop, maxPut: 3 << 20}
			l.wg.Go(func() {
				defer w.c.close()
				w.run()
			})
		}
		return l
	}
	l := work(0)
	time.Sleep(time.Second)
	r.must("nodes", "add", "n07")
	l.end()
	s.stop()
	survives := func(m int) {
		t.Helper()
		c := r.clone(t)
		gone := pick(rng, names, m)
		for _, name := range gone {
			removeAll(t, c.node(name))
		}
		removeAll(t, c.index())
		cs := c.start(roomy...)
		j.check(cs, true, j.all())
		if t.Failed() {
			t.Fatalf("a store that survives %d losses has lost %v: %s", m, gone, j.counts())
		}
		cs.kill()
		c.server = nil
	}
	said := map[string]int{}
	for round := 1; ; round++ {
		if rng.IntN(3) == 0 {
			removeAll(t, r.index())
		}
		s = r.start(roomy...)
		j.check(s, true, j.all())
		report(t, j)
		m, raising, left := r.losses()
		said[fmt.Sprintf("%d to %d", m, raising)]++
		t.Logf("round %d: survives %d, raising to %d: %d packs left", round, m, raising, left)
		if m == 3 || round > rounds(3, 12, 60) {
			break
		}
		if round%3 == 0 {
			s.stop()
			survives(m)
			s = r.start(roomy...)
		}
		l := work(round)
		time.Sleep(time.Duration(rng.Int64N(int64(300 * time.Millisecond))))
		ended := make(chan int, 1)
		go func() {
			_, _, code := r.command("nodes", "tolerate", "3", "--rate", "10GB", "--wait")
			ended <- code
		}()
		time.Sleep(time.Duration(rng.Int64N(int64(time.Duration(round) * 40 * time.Millisecond))))
		s.kill()
		l.end()
		<-ended
		report(t, j)
	}
	if m, _, _ := r.losses(); m < 3 {
		r.must("nodes", "tolerate", "3", "--rate", "10GB", "--wait")
	}
	if m, raising, left := r.losses(); m != 3 || raising != 0 || left != 0 {
		t.Fatalf("in the end it survives %d, raising to %d, %d packs left", m, raising, left)
	}
	j.check(s, true, j.all())
	report(t, j)
	s.stop()
	for range 2 {
		survives(3)
	}
	// And here: three directories are lost at once under load, replaced, and made whole.
	s = r.start(roomy...)
	l = work(1000)
	time.Sleep(500 * time.Millisecond)
	gone := pick(rng, names, 3)
	for _, name := range gone {
		empty(t, r.node(name))
	}
	s.kill()
	l.end()
	removeAll(t, r.index())
	s = r.start(roomy...)
	j.check(s, true, j.all())
	report(t, j)
	r.replaceAndHeal(gone...)
	s.stop()
	t.Logf("%v; %s", said, j.counts())
	r.verify()
}
