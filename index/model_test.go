package index

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"slices"
	"testing"

	"pgregory.net/rapid"

	"cairn/id"
	"cairn/index/kv"
	"cairn/index/kv/memkv"
	"cairn/record"
)

// model is what the index must say, in maps, computed the slow way: counts are
// not kept but counted.
type model struct {
	buckets  map[id.Bucket]*mBucket
	names    map[string]id.Bucket
	next     id.Bucket
	chunks   map[uint64]*mChunk
	children map[uint64][]uint64
	packs    map[id.Pack]*mPack
	nodes    record.Nodes
	head     Head
}

type mBucket struct {
	name      string
	versioned bool
	objects   map[string][]mObject // newest first
}

type mObject struct {
	version id.Version
	deleted bool
	roots   []uint64
}

type mChunk struct {
	pack  id.Pack
	off   uint32
	state State
	list  bool
	since uint64 // it is condemned since then
}

type mPack struct {
	payload uint64
	size    uint64
	shards  uint64
	parity  uint64
	places  int
	seq     uint64
}

func newModel() *model {
	return &model{buckets: map[id.Bucket]*mBucket{}, names: map[string]id.Bucket{}, next: 1, chunks: map[uint64]*mChunk{}, children: map[uint64][]uint64{}, packs: map[id.Pack]*mPack{}}
}

// refs counts all edges from nothing.
func (m *model) refs() map[uint64]uint64 {
	n := map[uint64]uint64{}
	for _, b := range m.buckets {
		for _, vs := range b.objects {
			for _, v := range vs {
				for _, c := range v.roots {
					n[c]++
				}
			}
		}
	}
	for _, cs := range m.children {
		for _, c := range cs {
			n[c]++
		}
	}
	return n
}

func (m *model) usage(b *mBucket) (u BucketUsage) {
	for _, vs := range b.objects {
		for i, v := range vs {
			switch {
			case v.deleted:
				u.Markers++
			default:
				u.Versions++
				u.Bytes += manifestOf(v.roots...).Size
				if i == 0 {
					u.Objects++
				}
			}
		}
	}
	return u
}

func (m *model) bucketIDs() []id.Bucket {
	var out []id.Bucket
	for n := range m.buckets {
		out = append(out, n)
	}
	slices.Sort(out)
	return out
}

func bad(what string, got, want any) error {
	return fmt.Errorf("%s: got %+v, want %+v", what, got, want)
}

// compare holds everything that a view says against the model.
func (m *model) compare(r Reader) error {
	want, err := m.compareRows(r)
	if err == nil {
		err = m.compareSums(r, want)
	}
	return err
}

// compareRows holds chunks, buckets and objects against the model, in a view or
// in a round, and adds them up.
func (m *model) compareRows(r Reader) (want Totals, err error) {
	refs := m.refs()
	want.NextBucket = m.next
	for c := uint64(1); c <= maxChunk; c++ {
		row, err := r.Chunk(id.Main, testChunk(c))
		mc := m.chunks[c]
		if mc == nil {
			if !errors.Is(err, ErrNotFound) {
				return want, bad(fmt.Sprintf("chunk %d", c), err, ErrNotFound)
			}
			continue
		}
		if err != nil {
			return want, bad(fmt.Sprintf("chunk %d", c), err, nil)
		}
		e := ChunkRow{Entry: testEntry(c, mc.list, mc.off), Pack: mc.pack, Refs: refs[c], State: mc.state}
		if row != e {
			return want, bad(fmt.Sprintf("chunk %d", c), row, e)
		}
		since, err := r.Condemned(id.Main, testChunk(c))
		if (err == nil) != (mc.since > 0) || err == nil && since != (Condemnation{id.Main, testChunk(c), mc.since, int64(mc.since)}) {
			return want, bad(fmt.Sprintf("condemned, chunk %d: %v", c, err), since, mc.since)
		}
		want.Chunks++
		want.UniqueBytes += uint64(e.PlainLen)
		want.SealedBytes += uint64(e.SealedLen)
		if refs[c] > 0 {
			want.LiveBytes += uint64(e.SealedLen)
		}
		if mc.list {
			cs, err := r.Children(id.Main, testChunk(c))
			var w []id.Chunk
			for _, k := range m.children[c] {
				w = append(w, testChunk(k))
			}
			if err != nil || !slices.Equal(cs, w) {
				return want, bad(fmt.Sprintf("children of %d: %v", c, err), cs, w)
			}
		}
	}
	bs, err := r.Buckets()
	if err != nil || len(bs) != len(m.buckets) {
		return want, bad(fmt.Sprintf("buckets: %v", err), bs, len(m.buckets))
	}
	for i, b := range bs {
		mb := m.buckets[b.ID]
		if mb == nil || b.Name != mb.name || b.BucketUsage != m.usage(mb) || b.Settings.Versioning != mb.versioned || i > 0 && bs[i-1].Name >= b.Name {
			return want, bad("bucket", b, mb)
		}
		want.Buckets++
		want.Objects += b.Objects
		want.Versions += b.Versions
		want.Markers += b.Markers
		want.LogicalBytes += b.Bytes
		for key, vs := range mb.objects {
			got, err := r.Versions(b.ID, []byte(key), 1000)
			if err != nil || len(got) != len(vs) {
				return want, bad(fmt.Sprintf("versions of %q: %v", key, err), len(got), len(vs))
			}
			for j, v := range vs {
				o, err := r.Object(b.ID, []byte(key), v.version)
				if err != nil || o.Current != (j == 0) || got[j].Version != v.version {
					return want, bad(fmt.Sprintf("version of %q: %v", key, err), o, v)
				}
				if o.Deleted != v.deleted || !o.Deleted && !slices.Equal(o.Manifest.Roots, manifestOf(v.roots...).Roots) {
					return want, bad(fmt.Sprintf("version of %q", key), o, v)
				}
			}
			newest, err := r.Object(b.ID, []byte(key), id.Version{})
			if err != nil || newest.Version != vs[0].version || !newest.Current {
				return want, bad(fmt.Sprintf("newest of %q: %v", key, err), newest, vs[0])
			}
		}
		if _, err := r.Object(b.ID, []byte("nothing is called so"), id.Version{}); !errors.Is(err, ErrNotFound) {
			return want, bad("an object that is not there", err, ErrNotFound)
		}
		page, err := r.List(b.ID, ListOptions{Versions: true})
		if err != nil || uint64(len(page.Objects)) != b.Versions+b.Markers {
			return want, bad(fmt.Sprintf("all versions: %v", err), len(page.Objects), b.Versions+b.Markers)
		}
	}
	return want, nil
}

// compareSums holds packs, totals and nodes against the model. want is what
// compareRows added up.
func (m *model) compareSums(r Reader, want Totals) error {
	refs := m.refs()
	packs := 0
	err := r.EachPack(func(p id.Pack, row PackRow) error {
		packs++
		mp := m.packs[p]
		if mp == nil {
			return bad("a pack", p, "none")
		}
		w := PackUsage{Payload: mp.payload}
		for c, mc := range m.chunks {
			if mc.pack == p {
				w.Residents++
				if refs[c] > 0 {
					w.Live += uint64(testEntry(c, mc.list, 0).SealedLen)
				}
			}
		}
		if row.PackUsage != w || row.Seq != mp.seq || len(row.Shards) != mp.places {
			return bad(fmt.Sprintf("pack %v", p), row, fmt.Sprintf("%+v %+v", w, *mp))
		}
		want.Packs++
		want.PayloadBytes += mp.payload
		want.ShardBytes += mp.size * mp.shards
		want.ParityBytes += mp.size * mp.parity
		return nil
	})
	if err != nil {
		return err
	}
	if packs != len(m.packs) {
		return bad("packs", packs, len(m.packs))
	}
	got, err := r.Totals()
	if err != nil || got != want {
		return bad(fmt.Sprintf("totals: %v", err), got, want)
	}
	nodes, err := r.Nodes()
	if err != nil || nodes.Version != m.nodes.Version || nodes.Want != m.nodes.Want || len(nodes.Members) != len(m.nodes.Members) {
		return bad(fmt.Sprintf("nodes: %v", err), nodes, m.nodes)
	}
	return nil
}

const maxChunk = 24

func (m *model) clone() *model {
	n := newModel()
	n.next, n.nodes, n.head = m.next, m.nodes, m.head
	for k, b := range m.buckets {
		nb := &mBucket{name: b.name, versioned: b.versioned, objects: map[string][]mObject{}}
		for key, vs := range b.objects {
			nb.objects[key] = slices.Clone(vs)
		}
		n.buckets[k] = nb
	}
	for k, v := range m.names {
		n.names[k] = v
	}
	for k, v := range m.chunks {
		c := *v
		n.chunks[k] = &c
	}
	for k, v := range m.children {
		n.children[k] = v
	}
	for k, v := range m.packs {
		c := *v
		n.packs[k] = &c
	}
	return n
}

// machine drives two indexes and the model: x decides and commits, replica
// applies the links that come of it.
type machine struct {
	engine  *memkv.Engine
	x       *Index
	replica *Index
	m       *model
	c       chain
	history []*Link
	saved   []*memkv.Engine // saved[i]: before link i
	carried []Carried       // what the head carries, if it is a begin pack
	payload uint32          // of the head
	packs   uint64          // data packs made
	tallied bool            // x counts shards
}

// op is one submission's worth of a round.
type op struct {
	t    *rapid.T
	m    *model
	b    *builder
	link *Link
	s    *machine
}

func isList(c uint64) bool { return c > maxChunk*2/3 }

// referable lists the chunks that may get an edge.
func (o *op) referable(but uint64) (out []uint64) {
	for c := uint64(1); c <= maxChunk; c++ {
		if mc := o.m.chunks[c]; mc != nil && mc.state != Damaged && c != but {
			out = append(out, c)
		}
	}
	return out
}

func (o *op) gain(cs []uint64) {
	for _, c := range cs {
		if mc := o.m.chunks[c]; mc.state == Condemned {
			mc.state, mc.since = Live, 0
		}
	}
}

// children records what a list chunk that was just made refers to.
func (o *op) listRecord(c uint64) {
	from := o.referable(c)
	cs := rapid.SliceOfN(rapid.SampledFrom(from), 1, 5).Draw(o.t, "children")
	ids := make([]id.Chunk, len(cs))
	for i, k := range cs {
		ids[i] = testChunk(k)
	}
	o.b.apply(&record.List{In: id.Main, Chunk: testChunk(c), Children: ids})
	o.gain(cs)
	o.m.children[c] = cs
}

func (o *op) entry() {
	c := rapid.Uint64Range(1, maxChunk).Draw(o.t, "chunk")
	mc := o.m.chunks[c]
	if mc != nil && mc.state == Live || isList(c) && len(o.referable(c)) == 0 || o.b.r.Changed(id.Main, testChunk(c)) {
		return
	}
	p := o.m.packs[o.link.Header.Pack]
	e := testEntry(c, isList(c), o.b.off)
	o.b.entry(c, isList(c))
	p.payload += uint64(e.SealedLen)
	made := mc == nil
	o.m.chunks[c] = &mChunk{pack: o.link.Header.Pack, off: e.Offset, state: Live, list: isList(c)}
	if made && isList(c) {
		o.listRecord(c)
	}
}

func (o *op) adopt() {
	cs := rapid.SliceOfN(rapid.Uint64Range(1, maxChunk), 1, 6).Draw(o.t, "chunks")
	if len(o.referable(0)) == 0 {
		cs = append(cs, 1) // so that a list among them can have a child
	}
	o.s.packs++
	a := &record.Adopt{In: id.Main, Pack: testPack(o.s.packs), K: 2, M: 1, Slice: 1 << 20, Size: 1<<20 + 999, Body: 999, Writer: id.Writer{3}, Counter: o.s.packs, Shards: testPlaces(3)}
	mp := &mPack{size: 1<<20 + 999, shards: 3, parity: 1, places: 3}
	o.m.packs[a.Pack] = mp
	var off uint32
	var made []uint64
	for _, c := range cs {
		e := testEntry(c, isList(c), off)
		off += e.SealedLen
		a.Entries = append(a.Entries, e)
		mp.payload += uint64(e.SealedLen)
		mc := o.m.chunks[c]
		if mc != nil && mc.state == Live {
			continue
		}
		if mc == nil && isList(c) {
			made = append(made, c)
		}
		o.m.chunks[c] = &mChunk{pack: a.Pack, off: e.Offset, state: Live, list: isList(c)}
	}
	o.b.apply(a)
	for _, c := range made {
		if len(o.referable(c)) == 0 { // it is alone: give it company
			e := testEntry(1, false, o.b.off)
			o.b.entry(1, false)
			o.m.packs[o.link.Header.Pack].payload += uint64(e.SealedLen)
			o.m.chunks[1] = &mChunk{pack: o.link.Header.Pack, off: e.Offset, state: Live}
		}
		o.listRecord(c)
	}
}

var modelKeys = []string{"a", "a\x00", "a\x00b", "a\x00\xff", "a/b", "a/c", "b", "\x00", "\xff", "\xff\xff", "\x00\x01", "a\x00\x01", "z"}

func (o *op) bucket() (id.Bucket, *mBucket) {
	ids := o.m.bucketIDs()
	if len(ids) == 0 {
		return 0, nil
	}
	n := rapid.SampledFrom(ids).Draw(o.t, "bucket")
	return n, o.m.buckets[n]
}

func (o *op) version() id.Version {
	return id.Version{Seq: o.link.Header.Seq, Pos: uint32(len(o.link.Records))}
}

func (o *op) put() {
	n, b := o.bucket()
	if b == nil {
		return
	}
	key := rapid.SampledFrom(modelKeys).Draw(o.t, "key")
	var roots []uint64
	if from := o.referable(0); len(from) > 0 {
		roots = rapid.SliceOfN(rapid.SampledFrom(from), 0, 4).Draw(o.t, "roots")
	}
	v := mObject{version: o.version(), roots: roots}
	o.b.put(n, key, roots...)
	o.gain(roots)
	if b.versioned {
		b.objects[key] = append([]mObject{v}, b.objects[key]...)
	} else {
		b.objects[key] = []mObject{v}
	}
}

func (o *op) delete() {
	n, b := o.bucket()
	if b == nil {
		return
	}
	key := rapid.SampledFrom(modelKeys).Draw(o.t, "key")
	v := mObject{version: o.version(), deleted: true}
	o.b.apply(&record.Delete{In: id.Main, Bucket: n, Key: []byte(key), Time: o.link.Time})
	b.objects[key] = append([]mObject{v}, b.objects[key]...)
}

func (o *op) purge() {
	n, b := o.bucket()
	if b == nil || len(b.objects) == 0 {
		return
	}
	var keys []string
	for k := range b.objects {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	key := rapid.SampledFrom(keys).Draw(o.t, "key")
	p := &record.Purge{In: id.Main, Bucket: n, Key: []byte(key)}
	vs := b.objects[key]
	for _, i := range rapid.Permutation(indexes(len(vs))).Draw(o.t, "order")[:rapid.IntRange(1, len(vs)).Draw(o.t, "drops")] {
		p.Drops = append(p.Drops, record.Dropped{Version: vs[i].version})
	}
	o.b.apply(p)
	gone := func(v mObject) bool {
		return slices.ContainsFunc(p.Drops, func(d record.Dropped) bool { return d.Version == v.version })
	}
	if b.objects[key] = slices.DeleteFunc(slices.Clone(vs), gone); len(b.objects[key]) == 0 {
		delete(b.objects, key)
	}
}

func indexes(n int) (out []int) {
	for i := range n {
		out = append(out, i)
	}
	return out
}

func (o *op) bucketCreate() {
	name := rapid.SampledFrom([]string{"one", "two", "three"}).Draw(o.t, "name")
	if o.m.names[name] != 0 {
		return
	}
	versioned := rapid.Bool().Draw(o.t, "versioned")
	n := o.b.bucket(name, versioned)
	if n != o.m.next {
		o.t.Fatalf("bucket %d, want %d", n, o.m.next)
	}
	o.m.next++
	o.m.names[name] = n
	o.m.buckets[n] = &mBucket{name: name, versioned: versioned, objects: map[string][]mObject{}}
}

func (o *op) bucketSet() {
	n, b := o.bucket()
	if b == nil {
		return
	}
	b.versioned = !b.versioned
	o.b.apply(&record.BucketSet{In: id.Main, Bucket: n, Settings: record.Settings{Versioning: b.versioned}})
}

func (o *op) bucketDelete() {
	n, b := o.bucket()
	if b == nil || len(b.objects) > 0 {
		return
	}
	o.b.apply(&record.BucketDelete{In: id.Main, Bucket: n, Name: b.name})
	delete(o.m.buckets, n)
	delete(o.m.names, b.name)
}

func (o *op) setNodes() {
	n := record.Nodes{Version: o.m.nodes.Version + 1, M: 1, Want: rapid.SampledFrom([]uint8{0, 2, 4}).Draw(o.t, "want")}
	for i := range rapid.IntRange(0, 4).Draw(o.t, "members") {
		n.Members = append(n.Members, record.Member{ID: testNode(uint64(10 + i)), Name: fmt.Sprintf("n%d", i), Weight: uint32(rapid.IntRange(0, 3).Draw(o.t, "weight"))})
		n.LogNodes = append(n.LogNodes, testNode(uint64(10+i)))
	}
	o.b.apply(&n)
	o.m.nodes = n
}

func (o *op) reshard() {
	var all []id.Pack
	for p, mp := range o.m.packs {
		if mp.places > 0 {
			all = append(all, p)
		}
	}
	if len(all) == 0 {
		return
	}
	slices.SortFunc(all, func(a, b id.Pack) int { return bytes.Compare(a[:], b[:]) })
	p := rapid.SampledFrom(all).Draw(o.t, "pack")
	row, err := o.b.r.Pack(p)
	if err != nil {
		o.t.Fatal(err)
	}
	index := uint8(rapid.IntRange(0, 2).Draw(o.t, "shard"))
	rec := &record.Reshard{Pack: p, Index: index, New: Place{Node: testNode(rapid.Uint64Range(20, 30).Draw(o.t, "node")), Index: index, Instance: id.Instance(o.link.Header.Seq<<20 | uint64(len(o.link.Records)))}}
	var there []Place
	for _, at := range row.Shards {
		if at.Index == index {
			there = append(there, at)
		}
	}
	if len(there) > 0 {
		rec.Old = rapid.SampledFrom(there).Draw(o.t, "old")
		if others := slices.DeleteFunc(there, func(at Place) bool { return at == rec.Old }); len(others) > 0 && rapid.Bool().Draw(o.t, "leaves one") {
			rec.New = others[0] // it lay on two nodes
			mp := o.m.packs[p]
			if mp.places--; mp.places >= 3 {
				mp.shards--
				mp.parity--
			}
		}
	} else {
		mp := o.m.packs[p]
		if mp.places++; mp.places > 3 {
			mp.shards++
			mp.parity++
		}
	}
	o.b.apply(rec)
	row, err = o.b.r.Pack(p)
	if err != nil || !slices.Contains(row.Shards, rec.New) || slices.Contains(row.Shards, rec.Old) {
		o.t.Fatalf("%+v left %+v, %v", rec, row.Shards, err)
	}
}

// lost marks some chunks of a pack, the first by offset.
func (o *op) lost() {
	var all []id.Pack
	for p := range o.m.packs {
		if p != o.link.Header.Pack {
			all = append(all, p)
		}
	}
	if len(all) == 0 {
		return
	}
	slices.SortFunc(all, func(a, b id.Pack) int { return bytes.Compare(a[:], b[:]) })
	p := rapid.SampledFrom(all).Draw(o.t, "pack")
	var in []*mChunk
	for _, mc := range o.m.chunks {
		if mc.pack == p && mc.state != Damaged {
			in = append(in, mc)
		}
	}
	if got, err := o.b.r.Undamaged(p, maxChunk); err != nil || got != len(in) {
		o.t.Fatalf("%d chunks of pack %v are not damaged, want %d: %v", got, p, len(in), err)
	}
	if len(in) == 0 {
		return
	}
	slices.SortFunc(in, func(a, b *mChunk) int { return cmp.Compare(a.off, b.off) })
	n := rapid.IntRange(1, len(in)).Draw(o.t, "lost")
	o.b.apply(&record.Lost{Pack: p, Chunks: uint32(n)})
	for _, mc := range in[:n] {
		mc.state = Damaged
	}
}

// chosen draws some of the chunks that want is true of, each once.
func (o *op) chosen(want func(c uint64, mc *mChunk) bool) (out []uint64) {
	for c := uint64(1); c <= maxChunk; c++ {
		if mc := o.m.chunks[c]; mc != nil && want(c, mc) && rapid.IntRange(0, 2).Draw(o.t, "chosen") > 0 {
			out = append(out, c)
		}
	}
	return out
}

// condemn condemns chunks without edges.
func (o *op) condemn() {
	refs := o.m.refs()
	rec := &record.Condemn{In: id.Main, Time: int64(o.link.Header.Seq)}
	for _, c := range o.chosen(func(c uint64, mc *mChunk) bool { return refs[c] == 0 && mc.since == 0 }) {
		rec.Chunks = append(rec.Chunks, testChunk(c))
		mc := o.m.chunks[c]
		if mc.since = o.link.Header.Seq; mc.state == Live {
			mc.state = Condemned
		}
	}
	if len(rec.Chunks) > 0 {
		o.b.apply(rec)
	}
}

// remove removes chunks that are condemned, in this round or before.
func (o *op) remove() {
	rec := &record.Remove{In: id.Main}
	for _, c := range o.chosen(func(_ uint64, mc *mChunk) bool { return mc.since > 0 }) {
		rec.Chunks = append(rec.Chunks, record.Removed{Chunk: testChunk(c), Since: o.m.chunks[c].since})
		delete(o.m.chunks, c)
		delete(o.m.children, c)
	}
	if len(rec.Chunks) > 0 {
		o.b.apply(rec)
	}
}

// move writes chunks of several packs into a new one, and some that are dead in it.
func (o *op) move() {
	cs := o.chosen(func(uint64, *mChunk) bool { return true })
	if len(cs) == 0 {
		return
	}
	o.s.packs++
	m := &record.Move{In: id.Main, Pack: testPack(o.s.packs), K: 2, M: 1, Slice: 1 << 20, Size: 1<<20 + 999, Body: 999, Writer: id.Writer{3}, Counter: o.s.packs, Shards: testPlaces(3)}
	mp := &mPack{size: 1<<20 + 999, shards: 3, parity: 1, places: 3}
	o.m.packs[m.Pack] = mp
	var off uint32
	for _, c := range cs {
		mc := o.m.chunks[c]
		e := testEntry(c, mc.list, off)
		off += e.SealedLen
		mp.payload += uint64(e.SealedLen)
		m.Entries = append(m.Entries, e)
		if rapid.IntRange(0, 4).Draw(o.t, "dead") == 0 {
			m.From = append(m.From, 0)
			continue
		}
		i := slices.Index(m.Sources, mc.pack)
		if i < 0 {
			i = len(m.Sources)
			m.Sources = append(m.Sources, mc.pack)
		}
		m.From = append(m.From, uint32(i+1))
		if mc.pack, mc.off = m.Pack, e.Offset; mc.state == Damaged {
			mc.state, mc.since = Live, 0
		}
	}
	o.b.apply(m)
}

// drop drops data packs without residents. There are no snapshots: no log pack goes.
func (o *op) drop() {
	held := map[id.Pack]bool{}
	for _, mc := range o.m.chunks {
		held[mc.pack] = true
	}
	rec := &record.Drop{}
	for p, mp := range o.m.packs {
		if p == o.link.Header.Pack {
			continue
		}
		free, err := o.b.r.Vacant(p)
		if err != nil || free == held[p] {
			o.t.Fatalf("pack %v is vacant: %v, %v", p, free, err)
		}
		if mp.seq == 0 && free {
			rec.Packs = append(rec.Packs, p)
		}
	}
	if len(rec.Packs) == 0 {
		return
	}
	slices.SortFunc(rec.Packs, func(a, b id.Pack) int { return bytes.Compare(a[:], b[:]) })
	rec.Packs = rec.Packs[:rapid.IntRange(1, len(rec.Packs)).Draw(o.t, "packs")]
	for _, p := range rec.Packs {
		delete(o.m.packs, p)
	}
	o.b.apply(rec)
}

// found takes back that some chunks of a pack are damaged.
func (o *op) found() {
	in := map[id.Pack][]*mChunk{}
	for _, mc := range o.m.chunks {
		if mc.pack != o.link.Header.Pack && mc.state == Damaged {
			in[mc.pack] = append(in[mc.pack], mc)
		}
	}
	if len(in) == 0 {
		return
	}
	all := slices.SortedFunc(maps.Keys(in), func(a, b id.Pack) int { return bytes.Compare(a[:], b[:]) })
	rec := record.Found{Pack: rapid.SampledFrom(all).Draw(o.t, "pack")}
	these := in[rec.Pack]
	slices.SortFunc(these, func(a, b *mChunk) int { return cmp.Compare(a.off, b.off) })
	for i, mc := range these {
		if i == 0 || rapid.Bool().Draw(o.t, "found") {
			mc.state, mc.since = Live, 0
			rec.Offsets = append(rec.Offsets, mc.off)
		}
	}
	o.b.apply(&rec)
}

// link makes one log pack, or gives one up.
func (s *machine) link(t *rapid.T) {
	begin := s.c.seq == 0 || rapid.IntRange(0, 5).Draw(t, "begin") == 0
	before, chainBefore, packsBefore := s.m.clone(), s.c, s.packs
	prev, prevSeq := s.c.prev, s.c.seq
	l := s.c.next(begin)
	r, err := s.x.Begin(l.Header.Pack, l.Header.Seq)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Discard()
	var carried []Carried
	off := uint32(0)
	if begin && prevSeq > 0 {
		off = rapid.Uint32Range(0, 1000).Draw(t, "carried off")
		for _, c := range s.carried {
			c.Off += off
			carried = append(carried, c)
		}
		carried = append(carried, Carried{Pack: prev, Off: off, Len: s.payload})
		off += s.payload
	}
	l.Carried = carried
	own := &mPack{size: uint64(l.Header.ShardLen()), shards: 3, parity: 2, seq: l.Header.Seq}
	s.m.packs[l.Header.Pack] = own
	b := &builder{t: t, r: r, link: &l, off: off}
	o := &op{t: t, m: s.m, b: b, link: &l, s: s}
	ops := map[string]func(){
		"entry": o.entry, "adopt": o.adopt, "put": o.put, "delete": o.delete, "purge": o.purge, "bucket create": o.bucketCreate,
		"bucket set": o.bucketSet, "bucket delete": o.bucketDelete, "nodes": o.setNodes, "reshard": o.reshard, "lost": o.lost,
		"found": o.found, "condemn": o.condemn, "remove": o.remove, "move": o.move, "drop": o.drop,
	}
	names := []string{"entry", "entry", "adopt", "put", "put", "put", "delete", "purge", "purge", "bucket create", "bucket set", "bucket delete", "nodes", "reshard", "lost", "found",
		"condemn", "condemn", "remove", "remove", "move", "drop"}
	for range rapid.IntRange(0, 8).Draw(t, "ops") {
		ops[rapid.SampledFrom(names).Draw(t, "op")]()
		if rapid.IntRange(0, 3).Draw(t, "look") == 0 {
			if _, err := s.m.compareRows(r); err != nil {
				t.Fatalf("inside the round: %v", err)
			}
		}
	}
	if rapid.IntRange(0, 9).Draw(t, "give up") == 0 {
		s.m, s.c, s.packs = before, chainBefore, packsBefore
		return
	}
	if prevSeq > 0 {
		// All shards, or those that a start has found, or those on two sets of nodes.
		l.Prev = rapid.SampledFrom([][]Place{testPlaces(3), testPlaces(3)[1:], testPlaces(1), slices.Concat(testPlaces(3), testPlaces(3)), slices.Concat(testPlaces(2), testPlaces(2))}).Draw(t, "places")
		for i := range l.Prev {
			l.Prev[i].Node[1] = byte(i)
		}
		mp := s.m.packs[prev]
		mp.places = len(l.Prev)
		if extra := mp.places - 3; extra > 0 {
			mp.shards += uint64(extra)
			mp.parity += uint64(extra)
		}
	}
	for _, c := range carried {
		for n, mc := range s.m.chunks {
			if mc.pack == c.Pack {
				mc.pack, mc.off = l.Header.Pack, mc.off+c.Off
				own.payload += uint64(testEntry(n, mc.list, 0).SealedLen)
			}
		}
	}
	s.save()
	sizeKeys, sizeBytes := r.Size()
	if err := r.Commit(l); err != nil {
		t.Fatalf("commit: %v", err)
	}
	if at := r.tx.Size(); len(carried) == 0 && (at.Entries > sizeKeys || at.Bytes > sizeBytes) {
		t.Fatalf("Size said %d keys and %d bytes, the commit has %+v", sizeKeys, sizeBytes, at)
	}
	s.carried, s.payload = carried, b.off
	s.m.head = Head{Seq: l.Header.Seq, Pack: l.Header.Pack, Epoch: l.Header.Epoch, Attempt: 1, Time: l.Time}
	s.happened(t, &l)
}

// save keeps the state before the next event.
func (s *machine) save() { s.saved = append(s.saved, s.engine.Clone()) }

// happened gives the replica what happened.
func (s *machine) happened(t *rapid.T, l *Link) {
	s.history = append(s.history, l)
	if err := s.replica.Apply(*l, Strict); err != nil {
		t.Fatalf("replica: %v", err)
	}
}

// replay applies what happened since some earlier state to that state.
func (s *machine) replay(t *rapid.T) {
	if len(s.saved) == 0 {
		return
	}
	at := rapid.IntRange(0, len(s.saved)-1).Draw(t, "from")
	x := openOn(t, s.saved[at].Clone())
	for _, l := range s.history[at:] {
		if err := x.Apply(*l, Strict); err != nil {
			t.Fatal(err)
		}
	}
	if !bytes.Equal(export(t, x), export(t, s.x)) {
		t.Fatalf("replayed from link %d of %d, the rows are others", at, len(s.history))
	}
}

// crash loses commits that were not synced and goes on from what is left, as a
// start does.
func (s *machine) crash(t *rapid.T) {
	seed := rapid.Uint64().Draw(t, "seed")
	s.engine = s.engine.Crash(rand.New(rand.NewPCG(seed, 1)))
	s.x, s.tallied = openOn(t, s.engine), false
	var commits uint64
	err := s.x.db.View(func(v *kv.Snapshot) error {
		st, err := v.State()
		commits = st.Commits
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range s.history[commits:] {
		if err := s.x.Apply(*l, Strict); err != nil {
			t.Fatal(err)
		}
	}
}

func (s *machine) check(t *rapid.T) {
	err := s.x.View(func(r Reader) error {
		if err := s.m.compare(r); err != nil {
			return err
		}
		h, err := r.Head()
		if err != nil || h != s.m.head {
			return bad(fmt.Sprintf("head: %v", err), h, s.m.head)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if s.c.seq%3 == 0 || s.tallied { // from some point of its life on
		s.tallied = true
		compareTally(t, s.x)
	}
	if !bytes.Equal(export(t, s.x), export(t, s.replica)) {
		t.Fatal("deciding and replaying left different rows")
	}
	if _, err := s.x.Check(context.Background()); err != nil {
		t.Fatal(err)
	}
}

// TestModel runs random histories against the model: what a round sees, what a
// view sees, crashes and replays from every earlier state. CAIRN_LONG=1 runs ten
// times as many.
func TestModel(t *testing.T) {
	rounds := 1
	if os.Getenv("CAIRN_LONG") != "" {
		rounds = 10
	}
	for range rounds {
		rapid.Check(t, func(t *rapid.T) {
			s := &machine{engine: memkv.New(memkv.Options{}), replica: newIndex(t), m: newModel()}
			s.x = openOn(t, s.engine)
			t.Repeat(map[string]func(*rapid.T){
				"link": s.link, "link again": s.link, "replay": s.replay, "crash": s.crash, "": s.check,
			})
		})
	}
}
