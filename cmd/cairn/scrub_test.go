package main

import (
	"testing"

	"cairn/store"
)

// TestScrubCode: what a timer acts upon, the worst first.
func TestScrubCode(t *testing.T) {
	for _, c := range []struct {
		name  string
		known bool
		r     store.ScrubResult
		want  int
	}{
		{"nothing is known", false, store.ScrubResult{}, 3},
		{"sound", true, store.ScrubResult{Complete: true, Packs: 5}, 0},
		{"a node not asked", true, store.ScrubResult{NotAsked: 1}, 3},
		{"repaired", true, store.ScrubResult{Complete: true, Damaged: 2, Repaired: 2}, 1},
		{"passing", true, store.ScrubResult{Complete: true, Damaged: 1, Passing: 1}, 1},
		{"repaired, a node not asked", true, store.ScrubResult{Damaged: 2, Repaired: 2}, 3},
		{"left", true, store.ScrubResult{Complete: true, Damaged: 2, Repaired: 1, Left: 1}, 2},
		{"left, a node not asked", true, store.ScrubResult{Damaged: 1, Left: 1}, 2},
		{"a pack lost", true, store.ScrubResult{Complete: true, LostPacks: 1}, 2},
		{"a chunk lost", true, store.ScrubResult{Complete: true, Broken: 1}, 2},
	} {
		if got := scrubCode(c.known, c.r); got != c.want {
			t.Errorf("%s: exit code %d, want %d", c.name, got, c.want)
		}
	}
}
