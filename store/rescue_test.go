package store

import (
	"errors"
	"fmt"
	"sync"
	"testing"

	"cairn/id"
	"cairn/index"
	"cairn/pack"
)

// putAll stores objects at the same time, so that they share packs.
func (r *rig) putAll(objects map[string][]byte) {
	r.t.Helper()
	var all sync.WaitGroup
	for key, b := range objects {
		all.Go(func() {
			if err := r.tryPut(key, b); err != nil {
				r.t.Error(err)
			}
		})
	}
	all.Wait()
}

// loseSince loses the log packs behind a sequence, up to another one.
func (r *rig) loseSince(before, last uint64) {
	r.t.Helper()
	var seqs []uint64
	for s := before + 1; s <= last; s++ {
		seqs = append(seqs, s)
	}
	r.loseLog(0, seqs...)
}

// settled reports whether what was given up keeps no orphan any more.
func (r *rig) settled() bool {
	r.t.Helper()
	mark, err := r.st.lossMark()
	if err != nil || mark == "" {
		r.t.Fatalf("nothing was given up: %v", err)
	}
	return r.st.scrubs.settled(mark)
}

// scrubBehind is a scrub that may find that log packs are lost.
func (r *rig) scrubBehind() *ScrubResult {
	r.t.Helper()
	res, err := r.scrub(fast)
	if err != nil && !errors.Is(err, ErrDamaged) && !errors.Is(err, ErrUnavailable) {
		r.t.Error(err)
	}
	return res
}

// TestLostMove: what moved chunks and dropped the packs that they lay in is lost. Their
// rows name those packs still, and the packs that they were moved to are orphans, until a
// pass has read all that there is, from its beginning.
func TestLostMove(t *testing.T) {
	for _, c := range []struct {
		name   string
		before func(r *rig) // what is lost
		first  func(r *rig) // scrub behind it
	}{
		{"a pass anew", func(*rig) {}, func(*rig) {}},
		{"a pass was under way", func(r *rig) {
			var last id.Pack
			if err := r.st.view(func(rd index.Reader) error {
				return rd.EachPack(func(p id.Pack, _ index.PackRow) error { last = p; return nil })
			}); err != nil {
				r.t.Fatal(err)
			}
			st := scrubState{Began: r.st.now(), Cursor: last.String(), Pass: &ScrubResult{Damage: map[string]int{}, Before: map[int]int{}, After: map[int]int{}}}
			if err := r.st.saveScrub(r.t.Context(), false, st); err != nil {
				r.t.Fatal(err)
			}
		}, func(*rig) {}},
		{"nodes that are not asked", func(*rig) {}, func(r *rig) {
			r.away = map[string]bool{"n01": true, "n02": true}
			r.close()
			r.open()
			for range 2 {
				if res := r.scrubBehind(); r.settled() {
					r.t.Errorf("settled while nodes are away: %+v", res)
				}
			}
			r.away = nil
			r.close()
			r.open()
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			r := collects(t)
			want, all := map[string][]byte{}, map[string][]byte{}
			for i := range 32 {
				key := fmt.Sprint(i)
				all[key] = random(uint64(i), 1<<20)
				if i%4 == 0 {
					want[key] = all[key]
				}
			}
			r.putAll(all)
			for key := range all {
				if want[key] == nil {
					r.forget(key)
				}
			}
			r.snapshot()
			c.before(r)
			before, had := r.seq(), r.placesOf(pack.Data)
			for range 2 {
				r.collect(true)
			}
			last, now, gone := r.seq(), r.placesOf(pack.Data), 0
			for p := range had {
				if now[p] == nil {
					gone++
				}
			}
			if gone == 0 {
				t.Fatal("nothing was moved")
			}
			r.put("behind", []byte("behind"))
			r.loseSince(before, last)
			r.giveUp()
			if r.settled() {
				t.Error("settled before any scrub")
			}
			c.first(r)
			found, passes := 0, 0
			for ; !r.settled() && passes < 4; passes++ {
				res := r.scrubBehind()
				found += res.Found
				t.Logf("found %d, orphans %d, undecided %d, lost %d", res.Found, res.Orphans, res.Undecided, res.LostPacks)
			}
			if !r.settled() || passes == 0 {
				t.Errorf("settled: %v, behind %d passes", r.settled(), passes)
			}
			for key, b := range want {
				if got, err := r.read(key); err != nil || string(got) != string(b) {
					t.Errorf("%s: %v; %d chunks were found", key, err, found)
				}
			}
			r.checked()
			for range 2 {
				r.snapshot()
			}
			r.reopen(false)
			if !r.settled() {
				t.Error("an index made anew from a snapshot does not say that it is settled")
			}
			r.scrubBehind()
			if left := r.unnamed(); len(left) > 0 {
				t.Errorf("behind it %d shards are left that no row names", len(left))
			}
			for key, b := range want {
				r.mustRead(key, b)
			}
			r.checked()
		})
	}
}
