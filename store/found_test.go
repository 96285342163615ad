package store

import (
	"errors"
	"sync/atomic"
	"testing"

	"cairn/id"
	"cairn/index"
	"cairn/node"
	"cairn/pack"
	"cairn/record"
)

// marked counts the chunks that are marked as damaged, in data packs.
func (r *rig) marked() (n int) {
	r.t.Helper()
	if err := r.st.view(func(rd index.Reader) error {
		return rd.EachPack(func(p id.Pack, row index.PackRow) error {
			rows, err := markedIn(rd, p)
			n += len(rows)
			return err
		})
	}); err != nil {
		r.t.Fatal(err)
	}
	return n
}

// takeAway deletes three shards of each data pack, and returns how to bring them back.
func (r *rig) takeAway() (back func()) {
	r.t.Helper()
	type gone struct {
		p     id.Pack
		place record.Place
	}
	var all []gone
	for p, places := range r.placesOf(pack.Data) {
		if r.live(p) == 0 {
			continue
		}
		for _, x := range places[:3] {
			n, k, _ := r.readHeld(p, x)
			if err := n.Delete(r.t.Context(), r.st.auth, k, x.Instance); err != nil {
				r.t.Fatal(err)
			}
			all = append(all, gone{p, x})
		}
	}
	return func() {
		r.t.Helper()
		for _, g := range all {
			n := r.nodes[r.st.members.Load().byID[g.place.Node].info.Name]
			if err := n.Undelete(r.t.Context(), r.st.auth, node.Key{Pack: g.p, Index: g.place.Index}, g.place.Instance); err != nil {
				r.t.Fatal(err)
			}
		}
	}
}

// TestScrubFindsWhatWasLost: chunks of packs that were lost are stored again once their
// shards are back, all of them or as many as it takes to make the others anew. What was
// uploaded again meanwhile stays where it is.
func TestScrubFindsWhatWasLost(t *testing.T) {
	for _, whole := range []bool{true, false} {
		t.Run(map[bool]string{true: "all are back", false: "two are missing"}[whole], func(t *testing.T) {
			t.Parallel()
			r := newRig(t)
			r.idle()
			ctx := t.Context()
			a, b := r.putWide("a", 3<<20), r.putWide("b", 2<<20)
			r.put("behind", []byte("x"))
			back := r.takeAway()
			if _, err := r.scrub(fast); !errors.Is(err, ErrDamaged) || r.marked() == 0 {
				t.Fatalf("three shards of each pack are gone: %v, %d chunks marked", err, r.marked())
			}
			r.put("b again", b)
			left := r.marked()
			back()
			if !whole {
				for p, places := range r.placesOf(pack.Data) {
					if r.live(p) > 0 {
						r.remove(p, places[3])
						r.remove(p, places[4])
					}
				}
			}
			dry, err := r.scrub(JobOptions{Rate: fast.Rate, DryRun: true})
			if (err == nil) != whole || dry.Found != 0 || r.marked() != left {
				t.Errorf("dry run: %+v, %v", dry, err)
			}
			if _, err := r.st.Copy(ctx, Name{"main", "a"}, Name{"main", "copy"}, CopyOptions{}); !errors.Is(err, ErrDamaged) {
				t.Errorf("a copy of what is marked: %v", err)
			}
			res, err := r.scrub(fast)
			if err != nil || res.Found != left || left == 0 || r.marked() != 0 || res.LostPacks != 0 || (res.Repaired > 0) == whole {
				t.Errorf("%d chunks can be read again: %+v, %v; still marked are %d", left, res, err, r.marked())
			}
			if st, err := r.st.Status(ctx); err != nil || st.PacksLost != 0 {
				t.Errorf("%d packs count as lost, %v", st.PacksLost, err)
			}
			if _, err := r.st.Copy(ctx, Name{"main", "a"}, Name{"main", "copy"}, CopyOptions{}); err != nil {
				t.Errorf("a copy of what was found again: %v", err)
			}
			packs := len(r.placesOf(pack.Data))
			r.put("a again", a)
			if n := len(r.placesOf(pack.Data)); n != packs {
				t.Errorf("what is stored is stored again: %d data packs, before %d", n, packs)
			}
			if _, err := r.st.CheckIndex(ctx); err != nil {
				t.Error(err)
			}
			r.close()
			r.loseIndex()
			r.open()
			if n := r.marked(); n != 0 {
				t.Errorf("an index that was made anew has %d chunks marked", n)
			}
			for _, key := range []string{"a", "copy", "a again"} {
				r.mustRead(key, a)
			}
			r.mustRead("b", b)
			if rep := r.verified(); len(rep.Findings) > 0 {
				t.Errorf("verify finds %v", rep.Findings)
			}
		})
	}
}

// TestScrubFindsNothingInHalfAPack: a pack that can be read and not be made as wide as
// it was promised is no place to point at.
func TestScrubFindsNothingInHalfAPack(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	var full atomic.Bool
	r.wrap = func(_ string, n node.Store) node.Store { return &noPuts{n, &full} }
	r.idle()
	r.putWide("a", 3<<20)
	r.put("behind", []byte("x"))
	back := r.takeAway()
	if _, err := r.scrub(fast); !errors.Is(err, ErrDamaged) {
		t.Fatal(err)
	}
	left := r.marked()
	back()
	for p, places := range r.placesOf(pack.Data) {
		if r.live(p) > 0 {
			r.remove(p, places[4])
		}
	}
	full.Store(true)
	if res, err := r.scrub(fast); !errors.Is(err, ErrDamaged) || res.Left == 0 || res.Found != 0 || r.marked() != left {
		t.Errorf("%+v, %v; %d chunks are marked, before %d", res, err, r.marked(), left)
	}
}

// TestRepairLooksTwice: with as many shards left as a pack needs, one that is read wrong
// once gives up nothing. One that is read wrong twice does, until it is read right.
func TestRepairLooksTwice(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	var wrong atomic.Int64 // so many reads to come give other bytes
	r.wrap = only("n06", faulty{read: func(_ int64, b []byte) {
		if len(b) > 1<<18 && wrong.Add(-1) >= 0 {
			b[len(b)/2] ^= 1
		}
	}})
	r.idle()
	big := r.putWide("big", 3<<20)
	r.close()
	r.wipe("n01")
	r.wipe("n02")
	r.open()
	r.replace("n01", "n02")
	wrong.Store(1 << 30)
	rep, err := r.st.Repair(t.Context())
	left := r.marked()
	if err != nil || rep.Lost == 0 || left == 0 {
		t.Fatalf("with a shard that is read wrong: %+v, %v; %d chunks are marked", rep, err, left)
	}
	wrong.Store(1)
	if rep, err = r.st.Repair(t.Context()); err != nil || rep.Lost != 0 || rep.Found != left || wrong.Load() > 0 || r.marked() != 0 {
		t.Errorf("with a shard that is read wrong once: %+v, %v; of %d chunks %d are marked", rep, err, left, r.marked())
	}
	if st, err := r.st.Status(t.Context()); err != nil || st.PacksLost != 0 {
		t.Errorf("%d packs count as lost, %v", st.PacksLost, err)
	}
	r.mustRead("big", big)
	if _, err := r.st.CheckIndex(t.Context()); err != nil {
		t.Error(err)
	}
}
