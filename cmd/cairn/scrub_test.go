package main

import (
	"fmt"
	"net/http"
	"strings"
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

// TestScrubJoins: a scrub waits for one under way that does all that it would do.
func TestScrubJoins(t *testing.T) {
	const run = "01a21860-8f7d-7424-9280-bc9812f38d33"
	for _, c := range []struct {
		running, wanted bool // deep
		want            int
		said            string
	}{
		{false, false, 1, ""},
		{true, true, 1, ""},
		{true, false, 1, ""},
		{false, true, 3, "it is a light one; wait for it: cairn jobs wait " + run},
	} {
		job := func(state string) string {
			return fmt.Sprintf(`{"id":%q,"kind":"scrub","trigger":"schedule","state":%q,"started":"2026-11-26T12:00:00Z","options":{"deep":%v},"result":{"complete":true,"damaged":1,"repaired":1}}`, run, state, c.running)
		}
		args := []string{"scrub"}
		if c.wanted {
			args = append(args, "--deep")
		}
		_, code, _, said := runClient(t, func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Type", "application/json")
			switch {
			case r.Method == http.MethodPost:
				w.Header().Set("Content-Type", "application/problem+json")
				w.WriteHeader(http.StatusConflict)
				fmt.Fprint(w, `{"type":"job-running","title":"a job of that kind is under way","status":409}`)
			case r.URL.Path == jobsPath:
				fmt.Fprintf(w, `{"jobs":[%s],"more":false}`, job("running"))
			default:
				fmt.Fprint(w, job("done"))
			}
		}, args...)
		if code != c.want || !strings.Contains(said, c.said) {
			t.Errorf("%q while a scrub runs that is deep: %v, ends with %d and %q; want %d, %q", args, c.running, code, said, c.want, c.said)
		}
	}
}
