package store

import (
	"testing"

	"cairn/id"
	"cairn/index"
)

// TestVerifyOfAnOpenTail: a shard of the newest log pack that is missing is no finding,
// since nobody may have been told of the pack; one of the pack before it is.
func TestVerifyOfAnOpenTail(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.idle()
	r.put("a", []byte("one"))
	r.put("b", []byte("two"))
	head, err := r.st.index.Head()
	if err != nil {
		t.Fatal(err)
	}
	places := r.st.recall(head.Pack)
	if len(places) < 3 {
		t.Fatalf("the newest log pack has %d places", len(places))
	}
	r.remove(head.Pack, places[1])
	rep := r.verified()
	if o := rep.Open; o == nil || *o != (OpenPack{Pack: head.Pack, Seq: head.Seq, Shards: len(places) - 1, Of: len(places)}) || rep.Damaged != 0 || rep.Lost != 0 {
		t.Errorf("a shard of the newest log pack is missing: %+v, open %+v", rep, rep.Open)
	}
	// It has a successor now, which names only the places that were found: a repair makes
	// the shard anew.
	if out, err := r.st.Repair(t.Context()); err != nil || out.Shards != 1 {
		t.Errorf("repair: %+v, %v; want one shard", out, err)
	}
	var before id.Pack
	if err := r.st.view(func(rd index.Reader) error {
		return rd.EachPack(func(p id.Pack, row index.PackRow) error {
			if row.Seq == head.Seq-1 {
				before, places = p, row.Shards
			}
			return nil
		})
	}); err != nil {
		t.Fatal(err)
	}
	if before.IsZero() || len(places) < 3 {
		t.Fatalf("pack %v of sequence %d with %d places", before, head.Seq-1, len(places))
	}
	r.remove(before, places[0])
	if rep := r.verified(); rep.Damaged != 1 || rep.Open != nil {
		t.Errorf("a shard of an older log pack is missing: %+v, open %+v", rep, rep.Open)
	}
}

// TestVerifyOfARottenTail: a shard of the newest log pack that is there and rotten is
// damage, whether or not anybody was told of the pack.
func TestVerifyOfARottenTail(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.idle()
	r.put("a", []byte("one"))
	r.put("b", []byte("two"))
	head, err := r.st.index.Head()
	if err != nil {
		t.Fatal(err)
	}
	r.rot(head.Pack, r.st.recall(head.Pack)[1])
	if rep := r.verified(); rep.Damaged != 1 || rep.Lost != 0 || len(rep.Findings) != 1 || rep.Findings[0].Kind != "rotten" {
		t.Errorf("a shard of the newest log pack is rotten: %+v, open %+v", rep, rep.Open)
	}
}
