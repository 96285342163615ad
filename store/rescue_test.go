package store

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"

	"cairn/id"
	"cairn/index"
	"cairn/node"
	"cairn/pack"
	"cairn/record"
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
	away := func(r *rig) {
		r.away = map[string]bool{}
		for _, places := range r.placesOf(pack.Data) {
			for _, x := range places {
				if len(r.away) < 2 {
					r.away[r.st.members.Load().byID[x.Node].info.Name] = true
				}
			}
		}
		r.close()
		r.open()
		orphans := r.unnamed()
		orphans = slices.DeleteFunc(orphans, func(h heldShard) bool {
			_, at, err := r.nodes[h.on].Stat(r.t.Context(), h.info.Key)
			return err != nil || at.Kind != pack.Data
		})
		if len(orphans) == 0 {
			r.t.Error("nothing that was moved is an orphan")
		}
		for range 2 {
			if res := r.scrubBehind(); r.settled() {
				r.t.Errorf("settled while nodes are away: %+v", res)
			}
		}
		for _, h := range orphans {
			if info, _, err := r.nodes[h.on].Stat(r.t.Context(), h.info.Key); err != nil || !info.Deleted.IsZero() {
				r.t.Errorf("shard %v was removed: %v", h.info.Key, err)
			}
		}
		r.away = nil
		r.close()
		r.open()
	}
	for _, c := range []struct {
		name   string
		k      uint8
		before func(r *rig) // what is lost
		first  func(r *rig) // scrub behind it
	}{
		{"a pass anew", 0, func(*rig) {}, func(*rig) {}},
		{"a pass was under way", 0, func(r *rig) {
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
		// Enough of the packs that were dropped may be there, so that none is marked.
		{"nodes that are not asked", 2, func(*rig) {}, away},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			r := collects(t)
			if c.k > 0 {
				r.wants("main", c.k)
			}
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

// TestLyingOrphanHeader: of a pack whose adopt is lost one node shows a header that is not
// what was written. The others are enough, and nothing of theirs is removed by its word.
func TestLyingOrphanHeader(t *testing.T) {
	for _, c := range []struct {
		name string
		lie  func(h *pack.Header)
	}{
		{"more shards", func(h *pack.Header) { h.K = 12 }},
		{"one shard", func(h *pack.Header) { h.K, h.M = 1, 5 }},
		{"more than fits", func(h *pack.Header) { h.K, h.SliceLen = 12, 3<<20 }},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			r := newRig(t)
			r.idle()
			ctx := t.Context()
			r.wide()
			r.snapshot()
			had := r.placesOf(pack.Data)
			before := r.seq()
			big := r.putOutside("only there", 5<<20)
			last := r.seq()
			if _, err := r.st.Copy(ctx, Name{"main", "only there"}, Name{"main", "copy"}, CopyOptions{}); err != nil {
				t.Fatal(err)
			}
			r.put("behind", []byte("behind"))
			first, lies := r.st.members.Load().all[0].info.ID, 0
			for p, places := range r.placesOf(pack.Data) {
				i := placeIndexOn(places, first)
				if had[p] != nil || i < 0 {
					continue
				}
				n, _, b := r.readHeld(p, places[i])
				h, _, err := pack.ParseShard(b)
				if err != nil || h.MetaCoded {
					t.Fatalf("%+v, %v", h, err)
				}
				r.remove(p, places[i])
				body := bytes.Clone(b[h.BodyOffset():])
				h.SliceLen += h.MetaLen
				h.MetaCoded = true
				c.lie(&h)
				if more := int(h.SliceLen) - len(body); more > 0 {
					body = append(body, make([]byte, more)...)
				}
				head := append(h.Append(nil), pack.AppendTable(nil, nil, body)...)
				if _, err := n.Put(ctx, r.st.auth, node.ForRepair, node.Shard{Head: head, Body: body}); err != nil {
					t.Fatal(err)
				}
				lies++
			}
			if lies == 0 {
				t.Fatal("nothing lies")
			}
			r.loseSince(before, last)
			r.giveUp()
			res := r.scrubBehind()
			if got, err := r.read("copy"); err != nil || !bytes.Equal(got, big) {
				t.Errorf("%v; %+v", err, res)
			}
			r.checked()
			for range 4 {
				r.scrubBehind()
			}
			if !r.settled() {
				t.Error("it is not settled")
			}
			r.mustRead("copy", big)
		})
	}
}

func placeIndexOn(places []record.Place, n id.Node) int {
	return slices.IndexFunc(places, func(x record.Place) bool { return x.Node == n })
}

// TestLostLists: long objects came with what is lost, and so did the snapshots behind them;
// their lists were moved into data packs by then. Lists are found again behind what they
// name, and nothing of that is removed before.
func TestLostLists(t *testing.T) {
	t.Parallel()
	r := collects(t)
	ctx := t.Context()
	r.wide()
	before := r.seq()
	long := map[string][]byte{}
	for i := range 3 {
		long[fmt.Sprint("long", i)] = random(uint64(70+i), 24<<20+i<<20)
	}
	r.putAll(long)
	for i := range 300 {
		r.put(fmt.Sprint("t", i), []byte("x"))
	}
	for i := range 2 {
		r.snapshot()
		r.put(fmt.Sprint("between", i), []byte("b"))
	}
	r.collect(true) // of what lies in the log too, into data packs
	last := r.seq()
	for key := range long {
		if _, err := r.st.Copy(ctx, Name{"main", key}, Name{"main", "copy of " + key}, CopyOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	r.put("behind", []byte("behind"))
	r.loseSince(before, last)
	if out := r.giveUp(); out.Damaged == nil || out.Damaged.Count != len(long) {
		t.Errorf("damaged: %+v", out.Damaged)
	}
	for range 4 {
		res := r.scrubBehind()
		t.Logf("found %d, orphans %d, undecided %d: %v", res.Found, res.Orphans, res.Undecided, res.Findings)
	}
	for key, b := range long { // what made their bucket is lost too
		r.holds("recovered-1", "copy of "+key, b)
	}
	if !r.settled() {
		t.Error("it is not settled")
	}
	r.checked()
}

// TestTogether: packs that wait for each other are adopted at once, as few as can be.
func TestTogether(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	p := func(i byte) id.Pack { return id.Pack{i} }
	keys := func(is ...byte) (out []chunkKey) {
		for _, i := range is {
			out = append(out, chunkKey{id.Main, id.Chunk{i}})
		}
		return out
	}
	sc := &scrubbing{s: r.st, lost: rescued{waiting: map[id.Pack]*waitingPack{
		p(1): {has: keys(1, 2), missing: keys(3)},
		p(2): {has: keys(3), missing: keys(2, 5)},
		p(3): {has: keys(5), missing: keys(1)},
		p(4): {has: keys(6), missing: keys(9)}, // which is nowhere
		p(5): {has: keys(7), missing: keys(6)}, // and so of no use
		p(6): {has: keys(8), missing: keys(10)},
		p(7): {has: keys(10), missing: keys(8)},
	}}}
	for _, want := range [][]id.Pack{{p(6), p(7)}, {p(1), p(2), p(3)}, nil} {
		got, err := sc.nextTogether()
		slices.SortFunc(got, func(a, b id.Pack) int { return bytes.Compare(a[:], b[:]) })
		if err != nil || !slices.Equal(got, want) {
			t.Errorf("got %v, want %v, %v", got, want, err)
		}
		for _, x := range got {
			delete(sc.lost.waiting, x)
		}
	}
}

// TestOrphansWaitForTheWholePass: what is lost brought a pack that nothing needs. It is an
// orphan, and stays as long as some node could not be asked for what it holds.
func TestOrphansWaitForTheWholePass(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.idle()
	r.wide()
	r.snapshot()
	before := r.seq()
	r.putOutside("only there", 5<<20)
	last := r.seq()
	r.put("behind", []byte("behind"))
	r.loseSince(before, last)
	r.giveUp()
	data := func() (n int) {
		for _, h := range r.unnamed() {
			if _, at, err := r.nodes[h.on].Stat(t.Context(), h.info.Key); err != nil {
				t.Fatal(err)
			} else if at.Kind == pack.Data {
				n++
			}
		}
		return n
	}
	all := data()
	r.away = map[string]bool{"n01": true}
	r.close()
	r.open()
	some := data()
	for range 2 {
		if res := r.scrubBehind(); data() != some || some == 0 || r.settled() {
			t.Errorf("with a node away %d of %d shards are left, settled %v: %+v", data(), some, r.settled(), res)
		}
	}
	r.away = nil
	r.close()
	r.open()
	if r.scrubBehind(); data() != all || !r.settled() {
		t.Errorf("by the pass that settles it %d of %d shards are left, settled %v", data(), all, r.settled())
	}
	if r.scrubBehind(); data() != 0 {
		t.Errorf("%d shards are left behind it", data())
	}
	r.checked()
}
