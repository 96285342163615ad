package main

import (
	"strings"
	"testing"
	"time"

	"cairn/store"
)

// TestTellLoss: a rebuild that went past a loss says that it cannot know all that is
// damaged, and what does.
func TestTellLoss(t *testing.T) {
	for _, damaged := range []*store.RebuiltDamage{nil, {Count: 0, Looked: 7}} {
		var b strings.Builder
		old, lost := store.LossRange{From: 1, To: 1, After: time.Unix(4, 0), Accepted: time.Unix(9, 0)}, store.LossRange{From: 3, To: 4, After: time.Unix(5, 0)}
		out := store.Rebuilt{Tail: 9, Losses: []store.LossRange{old, lost}, Skipped: []store.LossRange{lost}, Damaged: damaged}
		if err := tellLoss(&b, out, 0); err != nil {
			t.Fatal(err)
		}
		for _, want := range []string{"GIVEN UP: sequences 3 to 4 of the log", "already: sequence 1 of the log", "cairn scrub --deep", "cairn damaged"} {
			if !strings.Contains(b.String(), want) {
				t.Errorf("%q is not in %q", want, b.String())
			}
		}
		if damaged != nil && !strings.Contains(b.String(), "as far as the index knows") {
			t.Errorf("nothing says that the count is the index's: %q", b.String())
		}
	}
}
