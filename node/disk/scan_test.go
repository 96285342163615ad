package disk

import (
	"bytes"
	"errors"
	"slices"
	"testing"
	"time"

	"cairn/id"
	"cairn/node"
	"cairn/node/nodetest"
	"cairn/node/vfs"
	"cairn/node/vfs/crashfs"
	"cairn/pack"
)

// image is a segment made by hand: groups of shards, as an appender writes them.
type image struct {
	b    []byte
	inc  [16]byte
	recs []recHeader
}

func newImage(size int, inc byte) *image {
	im := &image{b: make([]byte, size), inc: [16]byte{inc}}
	h := segHeader{kind: journalSeg, no: 1, inc: im.inc}
	copy(im.b, h.encode())
	return im
}

func (im *image) end() int64 {
	if len(im.recs) == 0 {
		return dataStart
	}
	return im.recs[len(im.recs)-1].end()
}

// group appends shards that share one known-durable offset.
func (im *image) group(shards ...nodetest.Shard) {
	durable := im.end()
	for _, s := range shards {
		b := s.Bytes()
		hdr := s.Header()
		h := recHeader{rec: rec{off: im.end(), size: uint32(len(b)), typ: shardRec, kind: s.Kind, key: s.Key(), inst: id.Instance(s.Pack + 1)},
			durable: durable, payCRC: payloadCRC(b, b[pack.HeaderSize:hdr.BodyOffset()])}
		if s.Kind == pack.Log {
			h.pos = hdr.Position()
		}
		if len(im.recs) > 0 {
			h.prev = im.recs[len(im.recs)-1].rec
		}
		copy(im.b[h.off:], append(h.append(nil, &im.inc), b...))
		clear(im.b[h.off+recordHead+int64(len(b)) : h.end()])
		im.recs = append(im.recs, h)
	}
}

func (im *image) mark() {
	h := recHeader{rec: rec{off: im.end(), typ: markRec}, durable: im.end(), prev: im.recs[len(im.recs)-1].rec}
	copy(im.b[h.off:], h.append(nil, &im.inc))
}

func mustScan(t *testing.T, b []byte, inc *[16]byte) *scanned {
	t.Helper()
	s, err := scan(bytes.NewReader(b), int64(len(b)), inc, false)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// TestTornAtEveryByte (H36, W19): a recycled segment, full of the good records of
// its last use, is written to and torn at each of 64 Ki bytes.
func TestTornAtEveryByte(t *testing.T) {
	t.Parallel()
	const size = 64 << 10
	old := newImage(size, 1)
	for p := uint64(100); old.end()+8<<10 <= size; p++ {
		old.group(small(p, 3000))
	}
	now := newImage(size, 2)
	now.group(small(0, 3000))
	now.group(small(1, 9000), small(2, 100))
	now.group(small(3, 5000), small(4, 3300), small(5, 700))
	now.group(small(6, 3000))
	torn := bytes.Clone(old.b)
	for cut := range size {
		// Everything before cut is of the new use, the rest of the old one.
		torn[cut] = now.b[cut]
		if cut < dataStart {
			continue
		}
		if !long() && cut%7 != 0 && cut%blockSize > recordHead+pack.HeaderSize && cut%blockSize < blockSize-4 {
			continue // inside of bodies every seventh byte will do; see CAIRN_LONG
		}
		got := mustScan(t, torn, &now.inc)
		if len(got.lost) > 0 || len(got.notes) > 0 {
			t.Fatalf("torn at %d: %+v", cut, got)
		}
		whole := 0
		for _, r := range now.recs {
			if r.off+recordHead+int64(r.size) <= int64(cut)+1 {
				whole++
			}
		}
		// A shard of which only the last bytes are of the old use may still be the
		// same by chance; nothing else may differ.
		if len(got.shards) < whole || len(got.shards) > whole+1 {
			t.Fatalf("torn at %d: %d shards, want %d", cut, len(got.shards), whole)
		}
		for i, s := range got.shards {
			if s.rec != now.recs[i].rec || s.damaged {
				t.Fatalf("torn at %d: shard %d is %+v, want %+v", cut, i, s, now.recs[i].rec)
			}
			if i >= whole && !bytes.Equal(torn[s.off:s.off+recordHead+int64(s.size)], now.b[s.off:s.off+recordHead+int64(s.size)]) {
				t.Fatalf("torn at %d: a mixed shard %d was taken for whole", cut, i)
			}
		}
	}
}

// TestRotIsLoud (H36): in a segment whose end is marked, one rotten bit in any
// record header, shard header or table either leaves the shard whole, or lists
// it as damaged under its name. None vanishes.
func TestRotIsLoud(t *testing.T) {
	im := newImage(96<<10, 3)
	im.group(small(0, 3000))
	im.group(small(1, 20000), logShard(2, 100))
	im.group(small(3, 700))
	im.mark()
	for i, r := range im.recs {
		for at := r.off; at < r.off+recordHead+pack.HeaderSize+12; at++ {
			for _, mask := range []byte{0x01, 0x80, 0xff} {
				im.b[at] ^= mask
				got := mustScan(t, im.b, &im.inc)
				im.b[at] ^= mask
				if len(got.shards) != len(im.recs) || len(got.lost) != 0 {
					t.Fatalf("byte %d of record %d: %d shards, %d lost, want all %d: %+v", at-r.off, i, len(got.shards), len(got.lost), len(im.recs), got.shards)
				}
				for j, s := range got.shards {
					if s.key != im.recs[j].key || s.inst != im.recs[j].inst || s.off != im.recs[j].off {
						t.Fatalf("byte %d of record %d: shard %d is found as %+v", at-r.off, i, j, s)
					}
					if j == i && at < r.off+recordHead-4 && !s.damaged {
						t.Fatalf("byte %d of record %d: not damaged", at-r.off, i)
					}
				}
			}
		}
	}
	// Two rotten records in a row: the first is named by its shard's own header,
	// without the instance; when that is gone too there is something without a name.
	im.b[im.recs[1].off] ^= 1
	im.b[im.recs[2].off] ^= 1
	got := mustScan(t, im.b, &im.inc)
	if len(got.shards) != 4 || got.shards[1].key != im.recs[1].key || got.shards[1].inst != 0 || !got.shards[1].damaged || !got.shards[2].damaged {
		t.Errorf("two rotten record headers: %+v", got)
	}
	im.b[im.recs[1].off+recordHead] ^= 1
	got = mustScan(t, im.b, &im.inc)
	if len(got.shards) != 3 || len(got.lost) != 1 {
		t.Errorf("a record without a name: %+v", got)
	}
}

// TestRotInTheNode flips bits in a running node's segments and opens it again
// after a kill: a shard is intact or damaged, in the lists, and never absent.
func TestRotInTheNode(t *testing.T) {
	t.Parallel()
	base := crashfs.New()
	cfg := testConfig(1)
	cfg.Want = mustFormat(t, base, cfg)
	n := mustOpen(t, base, cfg)
	shards := []nodetest.Shard{small(1, 3000), logShard(1, 9000), small(2, 70<<10), logShard(2, 500), small(3, 100<<10)}
	insts := map[node.Key]id.Instance{}
	for _, s := range shards {
		insts[s.Key()] = mustPut(t, n, s)
	}
	base = base.Kill()
	_ = n.Close()
	rng := newRand(5)
	loud := 0
	for round := range 400 {
		fsys := base.Clone()
		name := []string{"journal/00000001.seg", "data/00000002.seg"}[round%2]
		at := int64(dataStart) + rng.Int64N(32<<10)
		if round%3 == 0 {
			at = at/blockSize*blockSize + rng.Int64N(recordHead+pack.HeaderSize)
		}
		if round%10 == 0 {
			at = rng.Int64N(dataStart) // the segment's header
		}
		for range 1 + round%3 {
			if err := fsys.Flip(name, at*8+rng.Int64N(64)); err != nil {
				t.Fatal(err)
			}
		}
		for _, again := range []string{"after the kill", "opened once more", "and once more"} {
			n, err := Open(fsys, cfg)
			if err != nil {
				t.Fatalf("round %d, %s at %d: open: %v", round, name, at, err)
			}
			list, err := nodetest.ListAll(t.Context(), n, 3)
			if err != nil || len(list) != len(shards) {
				t.Fatalf("round %d, %s at %d, %s: %d listed, %v", round, name, at, again, len(list), err)
			}
			for _, i := range list {
				if i.Instance != insts[i.Key] {
					t.Fatalf("round %d, %s at %d, %s: %+v, want instance %d", round, name, at, again, i, insts[i.Key])
				}
			}
			found, err := nodetest.ListLogAll(t.Context(), n, 0, 1)
			if err != nil || len(found) != 2 {
				t.Fatalf("round %d, %s at %d, %s: %+v, %v", round, name, at, again, found, err)
			}
			for _, f := range found {
				if err := intact(n, logShard(f.Header.Seq, map[uint64]int{1: 9000, 2: 500}[f.Header.Seq])); (err == nil) != (f.Err == nil) {
					t.Errorf("round %d: ListLog says %v, read %v", round, f.Err, err)
				}
			}
			for _, s := range shards {
				err := intact(n, s)
				if errors.Is(err, node.ErrDamaged) {
					loud++
				} else if err != nil {
					t.Fatalf("round %d, %s at %d, %s: %+v: %v", round, name, at, again, s, err)
				}
				if err != nil && again == "and once more" {
					// A repair writes it anew in its place.
					i, perr := n.Put(t.Context(), nodetest.By(1), node.ForRepair, nodetest.Split(s.Bytes(), 0))
					if perr != nil || i == insts[s.Key()] {
						t.Fatalf("round %d: put over the damaged shard: %d, %v", round, i, perr)
					}
					if err := intact(n, s); err != nil {
						t.Fatalf("round %d: after the repair: %v", round, err)
					}
				}
			}
			if err := n.selfCheck(); err != nil {
				t.Fatal(err)
			}
			if round%2 == 0 {
				fsys = fsys.Kill()
			}
			if err := n.Close(); err != nil && round%2 == 1 {
				t.Fatal(err)
			}
		}
		n, err := Open(fsys, cfg)
		if err != nil {
			t.Fatal(err)
		}
		for _, s := range shards {
			if err := intact(n, s); err != nil {
				t.Fatalf("round %d: after the repair and a restart: %v", round, err)
			}
		}
		_ = n.Close()
	}
	if loud < 100 {
		t.Errorf("only %d reads met rot", loud)
	}
}

// TestRecycledSegment (W19): a journal segment is recycled, written a little and
// cut off; nothing of its first use comes back.
func TestRecycledSegment(t *testing.T) {
	for seed := range uint64(40) {
		fsys := crashfs.New()
		cfg := tiny(seed)
		cfg.MarkAfter = 1 << 40
		n := newNode(t, fsys, cfg)
		var first []nodetest.Shard
		for i := range uint64(8) {
			s := logShard(i+1, 3000)
			inst := mustPut(t, n, s)
			if err := n.Delete(t.Context(), nodetest.By(1), s.Key(), inst); err != nil {
				t.Fatal(err)
			}
			first = append(first, s)
		}
		for len(n.free) == 0 { // until the journal has turned and is recycled
			s := logShard(100+uint64(len(first)), 3000)
			inst := mustPut(t, n, s)
			if err := n.Delete(t.Context(), nodetest.By(1), s.Key(), inst); err != nil {
				t.Fatal(err)
			}
			first = append(first, s)
			if err := n.Reclaim(t.Context(), cfg.Now().Add(2*cfg.keep())); err != nil {
				t.Fatal(err)
			}
		}
		var second []nodetest.Shard
		for len(n.free) > 0 {
			s := logShard(10000+uint64(len(second)), 700)
			mustPut(t, n, s)
			second = append(second, s)
		}
		mustPut(t, n, logShard(20000, 700))
		fsys = fsys.Crash(newRand(seed))
		n = mustOpen(t, fsys, cfg)
		for _, s := range second {
			if err := intact(n, s); err != nil {
				t.Fatalf("seed %d: %v", seed, err)
			}
		}
		for _, s := range first {
			if _, _, err := n.Stat(t.Context(), s.Key()); !errors.Is(err, node.ErrNotFound) {
				t.Fatalf("seed %d: deleted shard %+v: %v", seed, s, err)
			}
		}
		_ = n.Close()
	}
}

func (c Config) keep() time.Duration { c, _ = c.withDefaults(); return c.Keep }

// TestFooterLost: a footer that is damaged, or gone, costs a scan and nothing else.
func TestFooterLost(t *testing.T) {
	fsys := crashfs.New()
	cfg := tiny(3)
	cfg.Want = mustFormat(t, fsys, cfg)
	n := mustOpen(t, fsys, cfg)
	m := newModel()
	rng := newRand(3)
	for range 150 {
		if err := m.step(n, rng); err != nil {
			t.Fatal(err)
		}
	}
	if err := m.check(n); err != nil {
		t.Fatal(err)
	}
	if err := n.Close(); err != nil {
		t.Fatal(err)
	}
	for _, dir := range []string{"data", "journal"} {
		names, err := fsys.ReadDir(dir)
		if err != nil {
			t.Fatal(err)
		}
		for _, name := range names {
			if len(name) < 4 || name[len(name)-4:] != ".idx" {
				continue
			}
			bad := fsys.Clone()
			b, err := vfs.ReadFile(bad, dir+"/"+name, 1<<20)
			if err != nil {
				t.Fatal(err)
			}
			b[rng.IntN(len(b))] ^= 4
			if err := vfs.WriteFile(bad, dir+"/"+name, b); err != nil {
				t.Fatal(err)
			}
			n := mustOpen(t, bad, cfg)
			if err := m.clone().check(n); err != nil {
				t.Errorf("%s/%s damaged: %v", dir, name, err)
			}
			_ = n.Close()
		}
	}
}

func FuzzFormats(f *testing.F) {
	im := newImage(32<<10, 1)
	im.group(small(1, 100), logShard(2, 50))
	f.Add(im.b[:segHeaderLen])
	f.Add(im.b[dataStart : dataStart+recordHead])
	foot := footer{no: 1, kind: dataSeg, inc: im.inc, end: im.end(), shards: []footShard{{rec: im.recs[0].rec}, {rec: im.recs[1].rec, damaged: true}},
		notes: []footNote{{note: note{typ: tombstone, key: small(1, 0).Key(), inst: 2, num: 3}, off: dataStart}}}
	f.Add(foot.encode())
	f.Add(sealSmall(clusterFile, id.Node{1}, []byte("x")))
	st := state{starts: 1}
	f.Add(st.encode())
	me := identity{version: 1, cluster: id.Cluster{1}, node: id.Node{1}}
	f.Add(me.encode())
	nt := note{typ: undelete, inst: 1}
	f.Add(nt.append(nil))
	f.Fuzz(func(t *testing.T, b []byte) {
		if h, err := parseSegHeader(b); err == nil && !bytes.Equal(h.encode()[:segHeaderLen], b[:segHeaderLen]) {
			t.Errorf("two encodings of one segment header: %x", b)
		}
		inc := [16]byte{1}
		if h, ok := parseRecHeader(b, &inc, dataStart); ok && !bytes.Equal(h.append(nil, &inc), b[:recordHead]) {
			t.Errorf("two encodings of one record header: %x", b)
		}
		if p, err := parseFooter(b); err == nil && !bytes.Equal(p.encode(), b) {
			t.Errorf("two encodings of one footer: %x", b)
		}
		if s, err := parseState(b); err == nil && !bytes.Equal(s.encode(), b) {
			t.Errorf("two encodings of one state: %x", b)
		}
		if i, err := parseIdentity(b); err == nil && !bytes.Equal(i.encode(), b) {
			t.Errorf("two encodings of one identity: %x", b)
		}
		if notes, err := parseNotes(b); err == nil {
			var again []byte
			for i := range notes {
				again = notes[i].append(again)
			}
			if !bytes.Equal(again, b) {
				t.Errorf("two encodings of notes: %x", b)
			}
		}
		if c, err := openSmall(clusterFile, id.Node{1}, b); err == nil && !bytes.Equal(sealSmall(clusterFile, id.Node{1}, c), b) {
			t.Errorf("two encodings of one small file: %x", b)
		}
		im := newImage(dataStart+len(b)/blockSize*blockSize+2*blockSize, 1)
		copy(im.b[dataStart:], b)
		for _, holes := range []bool{false, true} {
			if _, err := scan(bytes.NewReader(im.b), int64(len(im.b)), &im.inc, holes); err != nil {
				t.Errorf("scan: %v", err)
			}
		}
	})
}

func TestTableOrder(t *testing.T) {
	rng := newRand(1)
	tab := newTable()
	seg := &segment{}
	var recs []rec
	for i := range 3000 {
		r := rec{off: int64(i+2) * blockSize, size: 10, typ: shardRec, kind: pack.Data, inst: id.Instance(1 + rng.Uint64N(500)),
			key: node.Key{Pack: id.Pack{byte(rng.IntN(8)), byte(rng.IntN(8))}, Index: uint8(rng.IntN(4))}}
		if slices.ContainsFunc(recs, func(o rec) bool { return o.key == r.key && o.inst == r.inst }) {
			if tab.add(&r, seg, 0) != 0 {
				t.Fatal("one instance was added twice")
			}
			continue
		}
		if tab.add(&r, seg, 0) == 0 {
			t.Fatal("not added")
		}
		recs = append(recs, r)
		if len(recs) > 500 {
			j := rng.IntN(len(recs))
			tab.remove(&recs[j], tab.find(recs[j].key, recs[j].inst))
			recs = slices.Delete(recs, j, j+1)
		}
		if i%100 == 0 {
			newest := map[node.Key]id.Instance{}
			for _, r := range recs {
				newest[r.key] = max(newest[r.key], r.inst)
				if e := tab.find(r.key, r.inst); e == 0 || tab.at(e).off() != r.off {
					t.Fatalf("%+v is not where it was put", r)
				}
			}
			if tab.byKey.len() != len(newest) || seg.entries != len(recs) {
				t.Fatalf("%d keys, %d entries, want %d, %d", tab.byKey.len(), seg.entries, len(newest), len(recs))
			}
			for k, inst := range newest {
				if tab.at(tab.newest(k)).inst != inst {
					t.Fatalf("newest of %v is %d, want %d", k, tab.at(tab.newest(k)).inst, inst)
				}
			}
		}
	}
}
