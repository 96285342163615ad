// Package nodetest is the suite that every kind of node passes: a directory of
// this process, and whatever speaks for one elsewhere.
//
// [Run] needs only a function that opens an empty node. The helpers make shards
// that pass every check a node does; their content follows from a seed, so that
// a test can say which bytes belong under a key without keeping them.
package nodetest

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"testing"

	"cairn/id"
	"cairn/node"
	"cairn/pack"
)

// Harness is a node under test.
type Harness struct {
	// Store is an open node that holds nothing and has promised nothing.
	Store node.Store
	// Reopen closes Store, opens what it kept and returns it; nil where that
	// makes no sense. The suite calls it one at a time.
	Reopen func(t *testing.T) node.Store
}

// A Shard is made from these few words.
type Shard struct {
	Kind    pack.Kind
	Pack    uint64 // becomes the pack ID
	Index   uint8
	Len     int    // bytes of the body
	Seed    uint64 // of the body
	Epoch   uint64
	Seq     uint64 // of a log pack
	Attempt uint32
}

// Key is the name of the shard.
func (s Shard) Key() node.Key {
	var k node.Key
	// Spread over the key space as random IDs are, and never zero.
	binary.BigEndian.PutUint64(k.Pack[:], s.Pack*0x9e3779b97f4a7c15)
	binary.BigEndian.PutUint64(k.Pack[8:], s.Pack+1)
	k.Index = s.Index
	return k
}

// Header is the shard's header: one of a pack of 4+2.
func (s Shard) Header() pack.Header {
	h := pack.Header{Kind: s.Kind, Pack: s.Key().Pack, K: 4, M: 2, Index: s.Index, SliceLen: uint32(s.Len),
		Writer: id.Writer{1}, Counter: 1, Epoch: s.Epoch}
	binary.LittleEndian.PutUint64(h.MetaTag[:], s.Seed)
	if s.Kind == pack.Log {
		h.Epoch, h.Seq, h.Attempt = max(s.Epoch, 1), max(s.Seq, 1), max(s.Attempt, 1)
	}
	return h
}

// Bytes is the whole shard.
func (s Shard) Bytes() []byte {
	h := s.Header()
	body := make([]byte, s.Len)
	x := s.Seed*0x9e3779b97f4a7c15 + s.Pack
	for i := 0; i+8 <= len(body); i += 8 {
		x ^= x << 13 // xorshift64: fast, and nothing compresses it
		x ^= x >> 7
		x ^= x << 17
		if x == 0 {
			x = 1
		}
		binary.LittleEndian.PutUint64(body[i:], x)
	}
	b := h.Append(make([]byte, 0, h.ShardLen()))
	return append(pack.AppendTable(b, nil, body), body...)
}

// Split cuts a shard in two, at header and table where at is 0.
func Split(b []byte, at int) node.Shard {
	if at == 0 {
		h, err := pack.ParseHeader(b)
		if err != nil {
			panic("nodetest: " + err.Error())
		}
		at = h.BodyOffset()
	}
	return node.Shard{Head: b[:at:at], Body: b[at:]}
}

// By is the authority of an epoch; every epoch has a writer of its own.
func By(epoch uint64) node.Authority {
	w := id.Writer{0xaa}
	binary.BigEndian.PutUint64(w[8:], epoch)
	return node.Authority{Epoch: epoch, Writer: w}
}

// Put puts a shard under an epoch, whole, for its kind's usual purpose.
func Put(ctx context.Context, n node.Store, epoch uint64, s Shard) (id.Instance, error) {
	why := node.ForClient
	if s.Kind == pack.Log {
		why = node.ForLog
	}
	return n.Put(ctx, By(epoch), why, Split(s.Bytes(), 0))
}

// Read reads a whole shard.
func Read(ctx context.Context, n node.Store, k node.Key, size int) ([]byte, error) {
	b := make([]byte, size)
	err := n.Read(ctx, k, 0, b)
	return b, err
}

// ListAll lists a node in pages.
func ListAll(ctx context.Context, n node.Store, page int) ([]node.Info, error) {
	var all []node.Info
	var after node.Key
	for {
		got, err := n.List(ctx, after, page)
		if err != nil {
			return all, err
		}
		all = append(all, got...)
		if len(got) < page {
			return all, nil
		}
		after = got[len(got)-1].Key
	}
}

// ListLogAll lists the log shards of a node in pages.
func ListLogAll(ctx context.Context, n node.Store, from uint64, page int) ([]node.Found, error) {
	var all []node.Found
	var after *node.Found
	for {
		got, err := n.ListLog(ctx, from, after, page)
		if err != nil {
			return all, err
		}
		all = append(all, got...)
		if len(got) < page {
			return all, nil
		}
		after = &all[len(all)-1]
	}
}

// Run tests a kind of node. open returns a fresh one each time and closes it
// when its test ends.
func Run(t *testing.T, open func(t *testing.T) Harness) {
	for _, c := range []struct {
		name string
		run  func(t *testing.T, h Harness)
	}{
		{"Empty", testEmpty},
		{"PutRead", testPutRead},
		{"Ranges", testRanges},
		{"Biggest", testBiggest},
		{"Refused", testRefused},
		{"PutAgain", testPutAgain},
		{"BuffersAreFree", testBuffers},
		{"DeleteUndelete", testDelete},
		{"List", testList},
		{"ListLog", testListLog},
		{"LogPositions", testPositions},
		{"Promises", testPromises},
		{"Files", testFiles},
		{"Concurrent", testConcurrent},
		{"PromiseBesidePuts", testPromiseBesidePuts},
		{"Cancelled", testCancelled},
		{"Reopen", testReopen},
		{"Closed", testClosed},
	} {
		t.Run(c.name, func(t *testing.T) { c.run(t, open(t)) })
	}
}

func want(t *testing.T, what string, err, sentinel error) {
	t.Helper()
	if !errors.Is(err, sentinel) {
		t.Errorf("%s: %v, want %v", what, err, sentinel)
	}
}

func must(t *testing.T, what string, err error) {
	t.Helper()
	if err != nil {
		t.Fatalf("%s: %v", what, err)
	}
}

// holds checks that a shard is there, whole, by every way of asking.
func holds(t *testing.T, n node.Store, s Shard) {
	t.Helper()
	ctx := t.Context()
	b := s.Bytes()
	got, err := Read(ctx, n, s.Key(), len(b))
	must(t, fmt.Sprintf("read %+v", s), err)
	if !bytes.Equal(got, b) {
		t.Fatalf("%+v reads as other bytes", s)
	}
	info, h, err := n.Stat(ctx, s.Key())
	must(t, "stat", err)
	if h != s.Header() || info.Key != s.Key() || info.Kind != s.Kind || info.Size != int64(len(b)) || info.Instance == 0 || !info.Deleted.IsZero() {
		t.Fatalf("stat of %+v: %+v, %+v", s, info, h)
	}
	must(t, "verify", n.Verify(ctx, s.Key()))
}

// absent checks that a shard is not there, by every way of asking.
func absent(t *testing.T, n node.Store, k node.Key) {
	t.Helper()
	ctx := t.Context()
	want(t, "read", n.Read(ctx, k, 0, make([]byte, 10)), node.ErrNotFound)
	_, _, err := n.Stat(ctx, k)
	want(t, "stat", err, node.ErrNotFound)
	want(t, "verify", n.Verify(ctx, k), node.ErrNotFound)
}

func testEmpty(t *testing.T, h Harness) {
	ctx, n := t.Context(), h.Store
	if n.ID() == (id.Node{}) {
		t.Error("the node has no ID")
	}
	absent(t, n, Shard{Pack: 1}.Key())
	if l, err := n.List(ctx, node.Key{}, 10); err != nil || len(l) != 0 {
		t.Errorf("List: %v, %v", l, err)
	}
	if l, err := n.ListLog(ctx, 0, nil, 10); err != nil || len(l) != 0 {
		t.Errorf("ListLog: %v, %v", l, err)
	}
	if p, err := n.Promised(ctx); err != nil || p != (node.Authority{}) {
		t.Errorf("Promised: %v, %v", p, err)
	}
	must(t, "delete of nothing", n.Delete(ctx, By(1), Shard{Pack: 1}.Key(), 1))
	want(t, "undelete of nothing", n.Undelete(ctx, By(1), Shard{Pack: 1}.Key(), 1), node.ErrNotFound)
	u, err := n.Usage(ctx)
	must(t, "usage", err)
	if u.LiveShards != 0 || u.LiveBytes != 0 || u.TotalBytes <= 0 || u.FreeBytes > u.TotalBytes || !u.PutsAllowed || !u.LogsAllow {
		t.Errorf("Usage of an empty node: %+v", u)
	}
}

// sizes are bodies around every edge: empty, one block, the journal's limit.
var sizes = []int{0, 1, 100, 3700, 3904, 4096, 16<<10 - 1, 16 << 10, 16<<10 + 1, 64<<10 - 300, 64 << 10, 64<<10 + 1, 300 << 10, 1<<20 + 7}

func testPutRead(t *testing.T, h Harness) {
	ctx, n := t.Context(), h.Store
	var all []Shard
	seen := map[id.Instance]bool{}
	var bytesPut int64
	for i, size := range sizes {
		for _, kind := range []pack.Kind{pack.Data, pack.Log, pack.Snapshot} {
			s := Shard{Kind: kind, Pack: uint64(len(all)), Index: uint8(i % 6), Len: size, Seed: uint64(i), Seq: uint64(i + 1)}
			b := s.Bytes()
			inst, err := n.Put(ctx, By(1), node.ForLog, Split(b, i*len(b)/len(sizes)))
			must(t, fmt.Sprintf("put %+v", s), err)
			if inst == 0 || seen[inst] {
				t.Fatalf("instance %d given out twice, or zero", inst)
			}
			seen[inst] = true
			bytesPut += int64(len(b))
			all = append(all, s)
		}
	}
	for _, s := range all {
		holds(t, n, s)
	}
	u, err := n.Usage(ctx)
	must(t, "usage", err)
	if u.LiveShards != int64(len(all)) || u.LiveBytes != bytesPut || u.AllocatedBytes < bytesPut {
		t.Errorf("Usage after %d shards of %d bytes: %+v", len(all), bytesPut, u)
	}
}

func testRanges(t *testing.T, h Harness) {
	ctx, n := t.Context(), h.Store
	rng := rand.New(rand.NewPCG(1, 1))
	for i, size := range sizes {
		s := Shard{Kind: pack.Data, Pack: uint64(i), Len: size, Seed: 5}
		_, err := Put(ctx, n, 1, s)
		must(t, "put", err)
		b := s.Bytes()
		check := func(off, l int) {
			t.Helper()
			// What lies around dst must not be touched.
			buf := bytes.Repeat([]byte{0x5a}, l+64)
			must(t, fmt.Sprintf("read %d+%d of %d", off, l, len(b)), n.Read(ctx, s.Key(), int64(off), buf[32:32+l:32+l]))
			if !bytes.Equal(buf[32:32+l], b[off:off+l]) {
				t.Fatalf("read %d+%d of %d: other bytes", off, l, len(b))
			}
			if !bytes.Equal(buf[:32], bytes.Repeat([]byte{0x5a}, 32)) || !bytes.Equal(buf[32+l:], bytes.Repeat([]byte{0x5a}, 32)) {
				t.Fatalf("read %d+%d of %d wrote beside its buffer", off, l, len(b))
			}
		}
		hdr := s.Header()
		edges := []int{0, 1, pack.HeaderSize - 1, pack.HeaderSize, hdr.BodyOffset() - 1, hdr.BodyOffset(), hdr.BodyOffset() + 1,
			hdr.BodyOffset() + pack.BlockSize, hdr.BodyOffset() + pack.BlockSize + 1, len(b) - 1, len(b)}
		for _, from := range edges {
			for _, to := range edges {
				if from >= 0 && from <= to && to <= len(b) {
					check(from, to-from)
				}
			}
		}
		for range 20 {
			off := rng.IntN(len(b))
			check(off, rng.IntN(len(b)-off+1))
		}
		for _, bad := range [][2]int{{-1, 1}, {0, len(b) + 1}, {len(b), 1}, {len(b) + 1, 0}} {
			want(t, fmt.Sprintf("read %d+%d of %d", bad[0], bad[1], len(b)), n.Read(ctx, s.Key(), int64(bad[0]), make([]byte, bad[1])), node.ErrDamaged)
		}
	}
}

func testBiggest(t *testing.T, h Harness) {
	n := h.Store
	s := Shard{Kind: pack.Data, Pack: 1, Seed: 7}
	for hdr := s.Header(); hdr.ShardLen() < pack.MaxShardSize; hdr = s.Header() {
		s.Len += max(1, (pack.MaxShardSize-hdr.ShardLen())*9/10)
	}
	for hdr := s.Header(); hdr.ShardLen() > pack.MaxShardSize; hdr = s.Header() {
		s.Len--
	}
	_, err := Put(t.Context(), n, 1, s)
	must(t, "put", err)
	holds(t, n, s)
	big := s
	big.Pack, big.Len = 2, s.Len+4
	b := big.Bytes()
	_, err = n.Put(t.Context(), By(1), node.ForClient, node.Shard{Head: b})
	want(t, "put of more than the longest shard", err, node.ErrDamaged)
}

func testRefused(t *testing.T, h Harness) {
	ctx, n := t.Context(), h.Store
	s := Shard{Kind: pack.Data, Pack: 1, Len: 40 << 10, Seed: 1}
	good := s.Bytes()
	hdr := s.Header()
	for _, c := range []struct {
		name string
		at   int
	}{{"header", 30}, {"header's checksum", pack.HeaderSize - 1}, {"table", pack.HeaderSize + 1}, {"table's checksum", hdr.BodyOffset() - 1},
		{"first block", hdr.BodyOffset()}, {"last byte", len(good) - 1}} {
		b := slices.Clone(good)
		b[c.at] ^= 0x10
		for _, cut := range []int{0, 100, hdr.BodyOffset(), len(b)} {
			_, err := n.Put(ctx, By(1), node.ForClient, node.Shard{Head: b[:cut], Body: b[cut:]})
			want(t, fmt.Sprintf("put with a flipped bit in the %s, cut at %d", c.name, cut), err, node.ErrDamaged)
		}
	}
	for _, b := range [][]byte{nil, good[:10], good[:pack.HeaderSize], good[:len(good)-1], append(slices.Clone(good), 0)} {
		_, err := n.Put(ctx, By(1), node.ForClient, node.Shard{Head: b})
		want(t, fmt.Sprintf("put of %d bytes of %d", len(b), len(good)), err, node.ErrDamaged)
	}
	absent(t, n, s.Key())
}

func testPutAgain(t *testing.T, h Harness) {
	ctx, n := t.Context(), h.Store
	for i, size := range []int{100, 200 << 10} {
		epoch := uint64(2*i + 1)
		s := Shard{Kind: pack.Data, Pack: uint64(i), Len: size, Seed: 1}
		first, err := Put(ctx, n, epoch, s)
		must(t, "put", err)
		again := func(what string, epoch uint64) {
			t.Helper()
			if inst, err := Put(ctx, n, epoch, s); err != nil || inst != first {
				t.Errorf("the same put %s: instance %d, %v, want %d", what, inst, err, first)
			}
		}
		again("again", epoch)
		again("in a later epoch", epoch+1)
		_, err = Put(ctx, n, epoch, s)
		want(t, "the same put in an older epoch", err, node.ErrFenced)
		for _, other := range []Shard{
			{Kind: pack.Data, Pack: uint64(i), Len: size, Seed: 2},
			{Kind: pack.Data, Pack: uint64(i), Len: size - 1, Seed: 1},
			{Kind: pack.Snapshot, Pack: uint64(i), Len: size, Seed: 1},
		} {
			_, err = Put(ctx, n, epoch+1, other)
			want(t, fmt.Sprintf("put of %+v over %+v", other, s), err, node.ErrConflict)
		}
		holds(t, n, s)
		if h.Reopen != nil {
			n = h.Reopen(t)
			again("after a restart", epoch+1)
		}
	}
}

func testBuffers(t *testing.T, h Harness) {
	ctx, n := t.Context(), h.Store
	for i := range 20 {
		s := Shard{Kind: pack.Data, Pack: uint64(i), Len: 1 << (i % 19), Seed: 3}
		b := s.Bytes()
		_, err := n.Put(ctx, By(1), node.ForClient, Split(b, 0))
		must(t, "put", err)
		for j := range b {
			b[j] = 0xee // it is the caller's again
		}
		holds(t, n, s)
	}
}

func testDelete(t *testing.T, h Harness) {
	ctx, n := t.Context(), h.Store
	for i, size := range []int{1000, 200 << 10} {
		s := Shard{Kind: pack.Data, Pack: uint64(i), Len: size, Seed: 1}
		inst, err := Put(ctx, n, 1, s)
		must(t, "put", err)
		must(t, "delete of another instance", n.Delete(ctx, By(1), s.Key(), inst+1))
		holds(t, n, s)
		must(t, "delete", n.Delete(ctx, By(1), s.Key(), inst))
		absent(t, n, s.Key())
		must(t, "delete again", n.Delete(ctx, By(1), s.Key(), inst))
		l, err := ListAll(ctx, n, 100)
		must(t, "list", err)
		j := slices.IndexFunc(l, func(i node.Info) bool { return i.Key == s.Key() })
		if j < 0 || l[j].Deleted.IsZero() || l[j].Instance != inst || l[j].Size != int64(len(s.Bytes())) {
			t.Fatalf("list after the delete: %+v", l)
		}
		want(t, "undelete of another instance", n.Undelete(ctx, By(1), s.Key(), inst+1), node.ErrNotFound)
		must(t, "undelete", n.Undelete(ctx, By(1), s.Key(), inst))
		must(t, "undelete again", n.Undelete(ctx, By(1), s.Key(), inst))
		holds(t, n, s)
		must(t, "delete", n.Delete(ctx, By(1), s.Key(), inst))
		// A shard that comes back is another copy: a late delete of the first must miss it.
		second, err := Put(ctx, n, 1, s)
		must(t, "put after delete", err)
		if second == inst {
			t.Fatalf("the second copy has the first one's instance %d", inst)
		}
		must(t, "late delete", n.Delete(ctx, By(1), s.Key(), inst))
		holds(t, n, s)
		want(t, "undelete beside a live copy", n.Undelete(ctx, By(1), s.Key(), inst), node.ErrConflict)
		if h.Reopen != nil {
			n = h.Reopen(t)
			h.Store = n
			holds(t, n, s)
			must(t, "delete after a restart", n.Delete(ctx, By(1), s.Key(), second))
			n = h.Reopen(t)
			h.Store = n
			absent(t, n, s.Key())
			must(t, "undelete after a restart", n.Undelete(ctx, By(1), s.Key(), second))
			n = h.Reopen(t)
			h.Store = n
			holds(t, n, s)
		}
	}
	u, err := n.Usage(ctx)
	must(t, "usage", err)
	if u.LiveShards != 2 || u.DeadShards != 2 {
		t.Errorf("Usage with two live and two dead shards: %+v", u)
	}
}

func testList(t *testing.T, h Harness) {
	ctx, n := t.Context(), h.Store
	held := map[node.Key]id.Instance{}
	for i := range 100 {
		s := Shard{Kind: pack.Data, Pack: uint64(i / 3), Index: uint8(i % 3), Len: i * 10}
		inst, err := Put(ctx, n, 1, s)
		must(t, "put", err)
		held[s.Key()] = inst
		if i%7 == 0 {
			must(t, "delete", n.Delete(ctx, By(1), s.Key(), inst))
		}
	}
	for _, page := range []int{1, 3, 50, 100, 101, 1000} {
		l, err := ListAll(ctx, n, page)
		must(t, "list", err)
		if len(l) != len(held) {
			t.Fatalf("pages of %d: %d shards, want %d", page, len(l), len(held))
		}
		for i, info := range l {
			if held[info.Key] != info.Instance {
				t.Errorf("pages of %d: %+v, want instance %d", page, info, held[info.Key])
			}
			if i > 0 && cmpKey(l[i-1].Key, info.Key) >= 0 {
				t.Errorf("pages of %d: %v after %v", page, info.Key, l[i-1].Key)
			}
		}
	}
	if l, err := n.List(ctx, node.Key{}, 0); err != nil || len(l) != 0 {
		t.Errorf("List of at most none: %v, %v", l, err)
	}
}

func cmpKey(a, b node.Key) int {
	if c := bytes.Compare(a.Pack[:], b.Pack[:]); c != 0 {
		return c
	}
	return int(a.Index) - int(b.Index)
}

func testListLog(t *testing.T, h Harness) {
	ctx, n := t.Context(), h.Store
	var all []Shard
	for i := range 40 {
		// Sequences and attempts rise, as a log's do; the packs' IDs are in no order.
		s := Shard{Kind: pack.Log, Pack: uint64(i * 7 % 40), Len: 100 * i, Seed: uint64(i), Epoch: uint64(1 + i/15), Seq: uint64(1 + i/2), Attempt: uint32(1 + i%2)}
		_, err := Put(ctx, n, uint64(1+i/15), s)
		must(t, "put", err)
		all = append(all, s)
		_, err = Put(ctx, n, uint64(1+i/15), Shard{Kind: pack.Data, Pack: uint64(1000 + i), Len: 10})
		must(t, "put", err)
	}
	// Deleted ones are not in it.
	for _, i := range []int{0, 7, 39} {
		info, _, err := n.Stat(ctx, all[i].Key())
		must(t, "stat", err)
		must(t, "delete", n.Delete(ctx, By(3), all[i].Key(), info.Instance))
	}
	for _, from := range []uint64{0, 1, 2, 10, 20, 21} {
		var keys []node.Key
		for i, s := range all {
			if s.Seq >= from && i != 0 && i != 7 && i != 39 {
				keys = append(keys, s.Key())
			}
		}
		for _, page := range []int{1, 2, 7, 100} {
			l, err := ListLogAll(ctx, n, from, page)
			must(t, "list log", err)
			var got []node.Key
			for _, f := range l {
				got = append(got, f.Info.Key)
				if f.Err != nil || f.Header.Pack != f.Info.Key.Pack || f.Info.Kind != pack.Log {
					t.Errorf("from %d: %+v", from, f)
				}
			}
			if !slices.Equal(got, keys) {
				t.Errorf("from %d, pages of %d: %v, want %v", from, page, got, keys)
			}
		}
	}
}

func testPositions(t *testing.T, h Harness) {
	ctx, n := t.Context(), h.Store
	put := func(why node.Purpose, s Shard) error {
		_, err := n.Put(ctx, By(5), why, Split(s.Bytes(), 0))
		return err
	}
	held := Shard{Kind: pack.Log, Pack: 1, Len: 100, Epoch: 3, Seq: 10, Attempt: 2}
	must(t, "put", put(node.ForLog, held))
	for i, c := range []struct {
		epoch, seq uint64
		attempt    uint32
		stale      bool
	}{{3, 10, 2, true}, {3, 10, 1, true}, {3, 9, 9, true}, {2, 99, 9, true}, {3, 10, 3, false}, {3, 11, 1, false}, {4, 1, 1, false}, {3, 99, 1, true}} {
		s := Shard{Kind: pack.Log, Pack: uint64(10 + i), Len: 100, Epoch: c.epoch, Seq: c.seq, Attempt: c.attempt}
		err := put(node.ForLog, s)
		if c.stale {
			want(t, fmt.Sprintf("put at %v", s.Header().Seq), err, node.ErrStalePut)
			absent(t, n, s.Key())
			must(t, "repair", put(node.ForRepair, s))
			holds(t, n, s)
		} else {
			must(t, fmt.Sprintf("put at %+v", c), err)
		}
	}
	must(t, "the same bytes again", put(node.ForLog, held))
	if h.Reopen != nil {
		n = h.Reopen(t)
		s := Shard{Kind: pack.Log, Pack: 50, Len: 100, Epoch: 4, Seq: 1, Attempt: 1}
		want(t, "put after a restart", put(node.ForLog, s), node.ErrStalePut)
		s.Attempt = 2
		must(t, "put after a restart", put(node.ForLog, s))
	}
}

func testPromises(t *testing.T, h Harness) {
	ctx, n := t.Context(), h.Store
	s := Shard{Kind: pack.Data, Pack: 1, Len: 100}
	inst, err := Put(ctx, n, 3, s)
	must(t, "put", err)
	if p, err := n.Promised(ctx); err != nil || p != By(3) {
		t.Errorf("a put is a promise: %v, %v, want %v", p, err, By(3))
	}
	must(t, "promise", n.Promise(ctx, By(5)))
	must(t, "the same promise again", n.Promise(ctx, By(5)))
	other := By(5)
	other.Writer[0]++
	refused := func() {
		t.Helper()
		for _, by := range []node.Authority{{}, By(1), By(3), By(4), other} {
			want(t, "promise", n.Promise(ctx, by), node.ErrFenced)
			_, err := n.Put(ctx, by, node.ForClient, Split(Shard{Kind: pack.Data, Pack: 2, Len: 9}.Bytes(), 0))
			want(t, "put", err, node.ErrFenced)
			absent(t, n, Shard{Pack: 2}.Key())
			want(t, "delete", n.Delete(ctx, by, s.Key(), inst), node.ErrFenced)
			want(t, "undelete", n.Undelete(ctx, by, s.Key(), inst), node.ErrFenced)
			want(t, "write file", n.WriteFile(ctx, by, node.ClusterFile, []byte("x")), node.ErrFenced)
		}
		if p, err := n.Promised(ctx); err != nil || p != By(5) {
			t.Errorf("promised: %v, %v, want %v", p, err, By(5))
		}
		holds(t, n, s)
	}
	refused()
	if h.Reopen != nil {
		n = h.Reopen(t)
		refused()
	}
	must(t, "delete", n.Delete(ctx, By(6), s.Key(), inst))
	if p, err := n.Promised(ctx); err != nil || p != By(6) {
		t.Errorf("a delete is a promise: %v, %v, want %v", p, err, By(6))
	}
	must(t, "write file", n.WriteFile(ctx, By(7), node.ClusterFile, []byte("x")))
	want(t, "promise", n.Promise(ctx, By(6)), node.ErrFenced)
}

func testFiles(t *testing.T, h Harness) {
	ctx, n := t.Context(), h.Store
	for _, f := range []node.File{node.ClusterFile, node.KeyringFile} {
		_, err := n.ReadFile(ctx, f)
		want(t, "read of what was never written", err, node.ErrNotFound)
	}
	big := bytes.Repeat([]byte{7}, 1<<20)
	for _, b := range [][]byte{[]byte("one"), {}, big, []byte("two")} {
		must(t, "write", n.WriteFile(ctx, By(1), node.ClusterFile, b))
		if got, err := n.ReadFile(ctx, node.ClusterFile); err != nil || !bytes.Equal(got, b) {
			t.Errorf("%d bytes come back as %d, %v", len(b), len(got), err)
		}
	}
	if err := n.WriteFile(ctx, By(1), node.ClusterFile, append(big, 1)); err == nil {
		t.Error("a file of more than a MiB was taken")
	}
	for _, f := range []node.File{"", "node.json", "../cluster", "state"} {
		if err := n.WriteFile(ctx, By(1), f, nil); err == nil {
			t.Errorf("file %q was written", f)
		}
		if _, err := n.ReadFile(ctx, f); err == nil {
			t.Errorf("file %q was read", f)
		}
	}
	_, err := n.ReadFile(ctx, node.KeyringFile)
	want(t, "the other file", err, node.ErrNotFound)
	if h.Reopen != nil {
		n = h.Reopen(t)
		if got, err := n.ReadFile(ctx, node.ClusterFile); err != nil || string(got) != "two" {
			t.Errorf("after a restart: %q, %v", got, err)
		}
	}
}

func testConcurrent(t *testing.T, h Harness) {
	ctx, n := t.Context(), h.Store
	const goroutines, each = 64, 12
	var wg sync.WaitGroup
	var instances sync.Map
	for g := range goroutines {
		wg.Go(func() {
			rng := rand.New(rand.NewPCG(1, uint64(g)))
			for i := range each {
				s := Shard{Kind: pack.Data, Pack: uint64(g*each + i), Len: 1 << rng.IntN(18), Seed: uint64(g)}
				if i%4 == 3 {
					s = Shard{Kind: pack.Data, Pack: uint64(1e6 + i), Len: 5000, Seed: 9} // the same one by everybody
				}
				inst, err := Put(ctx, n, 1, s)
				if err != nil {
					t.Errorf("put: %v", err)
					return
				}
				if was, dup := instances.LoadOrStore(inst, s.Key()); dup && was != s.Key() {
					t.Errorf("instance %d for %v and %v", inst, was, s.Key())
				}
				b := s.Bytes()
				if got, err := Read(ctx, n, s.Key(), len(b)); err != nil || !bytes.Equal(got, b) {
					t.Errorf("read of what was put: %v", err)
				}
				switch i % 4 {
				case 0:
					if err := n.Delete(ctx, By(1), s.Key(), inst); err != nil {
						t.Errorf("delete: %v", err)
					}
				case 1:
					if _, err := ListAll(ctx, n, 20); err != nil {
						t.Errorf("list: %v", err)
					}
				}
			}
		})
	}
	wg.Wait()
	l, err := ListAll(ctx, n, 100)
	must(t, "list", err)
	if wantN := goroutines*each*3/4 + 3; len(l) != wantN {
		t.Errorf("%d shards, want %d", len(l), wantN)
	}
}

// testPromiseBesidePuts lets puts of old epochs run beside promises: what was
// acknowledged to an old writer must be in a list made after the promise (H71).
func testPromiseBesidePuts(t *testing.T, h Harness) {
	ctx, n := t.Context(), h.Store
	var next atomic.Uint64
	for epoch := uint64(1); epoch < 20; epoch += 2 {
		must(t, "promise", n.Promise(ctx, By(epoch)))
		var mu sync.Mutex
		acked := map[node.Key]bool{}
		var wg sync.WaitGroup
		begun := make(chan struct{}, 8)
		for range 8 {
			wg.Go(func() {
				for i := range 5000 {
					if i == 2 {
						begun <- struct{}{}
					}
					s := Shard{Kind: pack.Data, Pack: next.Add(1), Len: 3000}
					_, err := Put(ctx, n, epoch, s)
					if errors.Is(err, node.ErrFenced) {
						return
					}
					if err != nil {
						t.Errorf("put: %v", err)
						return
					}
					mu.Lock()
					acked[s.Key()] = true
					mu.Unlock()
				}
				t.Error("puts of an old epoch were never refused")
			})
		}
		for range 8 {
			<-begun
		}
		must(t, "promise", n.Promise(ctx, By(epoch+1)))
		l, err := ListAll(ctx, n, 1000)
		must(t, "list", err)
		listed := map[node.Key]bool{}
		for _, i := range l {
			listed[i.Key] = true
		}
		wg.Wait()
		for k := range acked {
			if !listed[k] {
				t.Fatalf("epoch %d: %v was acknowledged and is not in the list made after the promise", epoch, k)
			}
		}
		if len(acked) < 8 {
			t.Fatalf("only %d puts were acknowledged beside the promise", len(acked))
		}
	}
}

func testCancelled(t *testing.T, h Harness) {
	n := h.Store
	done, cancel := context.WithCancel(t.Context())
	cancel()
	s := Shard{Kind: pack.Data, Pack: 1, Len: 100}
	_, err := Put(done, n, 1, s)
	want(t, "put", err, context.Canceled)
	want(t, "read", n.Read(done, s.Key(), 0, nil), context.Canceled)
	_, _, err = n.Stat(done, s.Key())
	want(t, "stat", err, context.Canceled)
	want(t, "verify", n.Verify(done, s.Key()), context.Canceled)
	want(t, "delete", n.Delete(done, By(1), s.Key(), 1), context.Canceled)
	want(t, "undelete", n.Undelete(done, By(1), s.Key(), 1), context.Canceled)
	_, err = n.List(done, node.Key{}, 1)
	want(t, "list", err, context.Canceled)
	_, err = n.ListLog(done, 0, nil, 1)
	want(t, "list log", err, context.Canceled)
	want(t, "promise", n.Promise(done, By(2)), context.Canceled)
	_, err = n.Promised(done)
	want(t, "promised", err, context.Canceled)
	want(t, "write file", n.WriteFile(done, By(1), node.ClusterFile, nil), context.Canceled)
	_, err = n.ReadFile(done, node.ClusterFile)
	want(t, "read file", err, context.Canceled)
	_, err = n.Usage(done)
	want(t, "usage", err, context.Canceled)
	absent(t, n, s.Key())

	// Cancelled in the middle: the outcome is open, the buffer must be free, and
	// what is there must be whole.
	for i := range 50 {
		ctx, cancel := context.WithCancel(t.Context())
		s := Shard{Kind: pack.Data, Pack: uint64(100 + i), Len: 100 << (i % 12), Seed: 4}
		b := s.Bytes()
		whole := len(b)
		var wg sync.WaitGroup
		wg.Go(cancel)
		_, err := n.Put(ctx, By(1), node.ForClient, Split(b, 0))
		for j := range b {
			b[j] = 0xdd
		}
		wg.Wait()
		if err != nil && !errors.Is(err, context.Canceled) {
			t.Fatalf("cancelled put: %v", err)
		}
		got, rerr := Read(t.Context(), n, s.Key(), whole)
		if rerr == nil && !bytes.Equal(got, s.Bytes()) {
			t.Fatal("a cancelled put left other bytes")
		} else if rerr != nil && (err == nil || !errors.Is(rerr, node.ErrNotFound)) {
			t.Fatalf("put said %v, read says %v", err, rerr)
		}
		_, err = Put(t.Context(), n, 1, s)
		must(t, "put after a cancelled one", err)
		holds(t, n, s)
	}
}

func testReopen(t *testing.T, h Harness) {
	if h.Reopen == nil {
		t.Skip("this kind of node cannot be reopened")
	}
	ctx, n := t.Context(), h.Store
	me := n.ID()
	var all []Shard
	seen := map[id.Instance]bool{}
	for round := range 6 {
		for i, size := range sizes {
			s := Shard{Kind: pack.Data, Pack: uint64(len(all)), Len: size / (round + 1), Seed: uint64(round)}
			if i%3 == 0 {
				s.Kind, s.Seq = pack.Log, uint64(len(all)+1)
			}
			inst, err := Put(ctx, n, 1, s)
			must(t, "put", err)
			if seen[inst] {
				t.Fatalf("instance %d given out twice", inst)
			}
			seen[inst] = true
			all = append(all, s)
		}
		n = h.Reopen(t)
		if n.ID() != me {
			t.Fatalf("reopened as %v, was %v", n.ID(), me)
		}
		for _, s := range all {
			holds(t, n, s)
		}
		if round%2 == 1 { // twice in a row, with nothing between
			n = h.Reopen(t)
		}
	}
	l, err := ListAll(ctx, n, 10)
	must(t, "list", err)
	if len(l) != len(all) {
		t.Errorf("%d shards listed, want %d", len(l), len(all))
	}
}

func testClosed(t *testing.T, h Harness) {
	ctx, n := t.Context(), h.Store
	s := Shard{Kind: pack.Data, Pack: 1, Len: 100}
	inst, err := Put(ctx, n, 1, s)
	must(t, "put", err)
	must(t, "close", n.Close())
	_, err = Put(ctx, n, 1, s)
	want(t, "put", err, node.ErrClosed)
	want(t, "read", n.Read(ctx, s.Key(), 0, nil), node.ErrClosed)
	_, _, err = n.Stat(ctx, s.Key())
	want(t, "stat", err, node.ErrClosed)
	want(t, "verify", n.Verify(ctx, s.Key()), node.ErrClosed)
	want(t, "delete", n.Delete(ctx, By(1), s.Key(), inst), node.ErrClosed)
	want(t, "undelete", n.Undelete(ctx, By(1), s.Key(), inst), node.ErrClosed)
	_, err = n.List(ctx, node.Key{}, 1)
	want(t, "list", err, node.ErrClosed)
	_, err = n.ListLog(ctx, 0, nil, 1)
	want(t, "list log", err, node.ErrClosed)
	want(t, "promise", n.Promise(ctx, By(2)), node.ErrClosed)
	_, err = n.Promised(ctx)
	want(t, "promised", err, node.ErrClosed)
	want(t, "write file", n.WriteFile(ctx, By(1), node.ClusterFile, nil), node.ErrClosed)
	_, err = n.ReadFile(ctx, node.ClusterFile)
	want(t, "read file", err, node.ErrClosed)
	_, err = n.Usage(ctx)
	want(t, "usage", err, node.ErrClosed)
	want(t, "close again", n.Close(), node.ErrClosed)
	if n.ID() == (id.Node{}) {
		t.Error("a closed node has lost its name")
	}
}
