package integration

import (
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
)

// stretch is a part of a file.
type stretch struct {
	path string
	off  int64
	n    int64
}

// written lists what is written in the segments of a node: no block of zeros.
func (r *rig) written(name string) (out []stretch) {
	r.t.Helper()
	const block = 4096
	zero := make([]byte, block)
	for _, kind := range []string{"data", "journal"} {
		names, err := filepath.Glob(filepath.Join(r.node(name), kind, "*.seg"))
		if err != nil {
			r.t.Fatal(err)
		}
		for _, path := range names {
			b, err := os.ReadFile(path)
			if err != nil {
				r.t.Fatal(err)
			}
			for off := 0; off+block <= len(b); off += block {
				if string(b[off:off+block]) != string(zero) {
					out = append(out, stretch{path, int64(off), block})
				}
			}
		}
	}
	return out
}

// change changes bytes of a file where they stand.
func change(t *testing.T, s stretch, fn func(b []byte)) {
	t.Helper()
	f, err := os.OpenFile(s.path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	b := make([]byte, s.n)
	if _, err := f.ReadAt(b, s.off); err != nil && err != io.EOF {
		t.Fatal(err)
	}
	fn(b)
	if _, err := f.WriteAt(b, s.off); err != nil {
		t.Fatal(err)
	}
}

// TestRot: bits flip in many places of two nodes, and stretches are zeroed or become copies of
// others, while objects are read; a light or a deep scrub finds and repairs all of it, the next
// finds nothing, and no read is wrong meanwhile. Then two others, until each node was hit
// (H30). CAIRN_LONG=1 flips 2,000 bits and harms 500 stretches in each round.
func TestRot(t *testing.T) {
	rng := newRand(t)
	r, j := newRig(t), newJournal()
	flips, stretches := rounds(60, 200, 2000), rounds(20, 60, 500)
	s := r.start()
	w := &worker{j: j, rng: fork(rng), prefix: "o", srv: s, c: s.client(), draw: newContent}
	for i := range rounds(40, 80, 400) {
		w.put(fmt.Sprintf("o/k%03d", i))
	}
	report(t, j)
	scrub := func(what string, want int, args ...string) {
		t.Helper()
		out, errs, code := r.command(append([]string{"scrub", "--rate", "10GB"}, args...)...)
		t.Logf("%s: exit code %d: %s", what, code, strings.ReplaceAll(strings.TrimSpace(out), "\n", "; "))
		if code != want {
			t.Errorf("%s ends with %d, want %d\n%s%s", what, code, want, cut(out), cut(errs))
		}
	}
	names := nodeNames()
	rng.Shuffle(len(names), func(a, b int) { names[a], names[b] = names[b], names[a] })
	for round := range 3 {
		hit := names[2*round : 2*round+2]
		var stop atomic.Bool
		var wg sync.WaitGroup
		reader := &worker{j: j, rng: fork(rng), prefix: "o", srv: s, c: s.client()}
		wg.Go(func() {
			keys := j.all()
			for !stop.Load() {
				reader.get(keys[reader.rng.IntN(len(keys))])
			}
		})
		var all []stretch
		for _, name := range hit {
			all = append(all, r.written(name)...)
		}
		for range flips {
			change(t, all[rng.IntN(len(all))], func(b []byte) { b[rng.IntN(len(b))] ^= 1 << rng.IntN(8) })
		}
		if round > 0 {
			for range stretches {
				harm(t, rng, all)
			}
		}
		deep := []string{"--deep"}[:round%2]
		scrub(fmt.Sprintf("round %d, %v harmed", round, hit), 1, deep...)
		scrub("the next", 0, "--deep")
		stop.Store(true)
		wg.Wait()
		report(t, j)
		// What stands beside the shards in segments is read when the nodes are opened.
		s.stop()
		r.verify()
		s = r.start()
		w.srv, w.c = s, s.client()
	}
	j.check(s, true, j.all())
	report(t, j)
	s.stop()
}

// harm does to a stretch what leaves it looking like something.
func harm(t *testing.T, rng *rand.Rand, all []stretch) {
	at, from := all[rng.IntN(len(all))], all[rng.IntN(len(all))]
	switch rng.IntN(3) {
	case 0: // zeroed
		at.n = int64(512 << rng.IntN(4))
		change(t, at, func(b []byte) { clear(b) })
	case 1: // a block from elsewhere
		var other []byte
		change(t, from, func(b []byte) { other = append(other, b...) })
		change(t, at, func(b []byte) { copy(b, other) })
	case 2: // two blocks change places
		var a, b []byte
		change(t, at, func(x []byte) { a = append(a, x...) })
		change(t, from, func(x []byte) { b = append(b, x...); copy(x, a) })
		change(t, at, func(x []byte) { copy(x, b) })
	}
}
