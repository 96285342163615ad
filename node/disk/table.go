package disk

import (
	"bytes"
	"cmp"
	"slices"
	"time"

	"cairn/id"
	"cairn/node"
	"cairn/pack"
)

// table says where each shard lies. It is rebuilt at every open and lives only
// in memory: 32 bytes an entry and 24 in the order of keys, whose blocks are full
// behind an open and about two thirds full where shards came since; a log shard has
// 48 more in the order of positions, a dead one its fate. Whoever uses it holds Node.mu.
type table struct {
	slabs   []*[slabLen]entry // entries never move: entry i is slabs[i/slabLen][i%slabLen]
	used    uint32            // entries ever handed out
	free    uint32            // head of the list of those given back, linked by older
	byKey   ordered[keyItem]
	byPos   ordered[posItem] // log shards, dead ones too
	loading []keyItem        // entries that [table.settle] will put under their keys
	fates   map[uint32]fate  // of entries that are dead, or were

	lives, deads         int64
	liveBytes, deadBytes int64
	dueBytes             int64 // of the dead, those that are going
	// The newest tombstone, of data and of log packs, since there were none.
	lastData, lastLog int64 // Unix nanoseconds; 0: none
}

const slabLen = 1024

// entry is one stored instance of a shard. Entry 0 is none.
type entry struct {
	inst  id.Instance
	seg   *segment
	block uint32 // offset of its record, in blocks
	size  uint32 // bytes of the shard
	older uint32 // the next older instance under the same key
	kind  pack.Kind
	flags uint8
}

const (
	dead   = 1 << iota // tombstoned or superseded
	going              // its space is being given back: no undelete any more
	broken             // found damaged by a scan
	pinned             // an undelete is on its way: not to be reclaimed
)

// fate is the newest note about an entry.
type fate struct {
	key  node.Key
	at   int64    // Unix nanoseconds of its tombstone
	num  uint64   // of the note; 0: superseded, there is none
	typ  noteType //
	home *segment // the journal segment that holds the note; nil without one
}

type keyItem struct {
	key node.Key
	e   uint32 // newest instance under the key
}

type posItem struct {
	pos pack.Position
	key node.Key
	e   uint32
}

func newTable() *table {
	return &table{
		slabs: []*[slabLen]entry{new([slabLen]entry)},
		used:  1,
		fates: map[uint32]fate{},
		byKey: ordered[keyItem]{compare: func(a, b *keyItem) int { return compareKeys(&a.key, &b.key) }},
		byPos: ordered[posItem]{compare: comparePos},
	}
}

func compareKeys(a, b *node.Key) int {
	if c := bytes.Compare(a.Pack[:], b.Pack[:]); c != 0 {
		return c
	}
	return cmp.Compare(a.Index, b.Index)
}

// comparePos is the order of node.Store.ListLog: sequence, attempt, epoch,
// key; the entry tells two instances apart.
func comparePos(a, b *posItem) int {
	return cmp.Or(cmp.Compare(a.pos.Seq, b.pos.Seq), cmp.Compare(a.pos.Attempt, b.pos.Attempt),
		cmp.Compare(a.pos.Epoch, b.pos.Epoch), compareKeys(&a.key, &b.key), cmp.Compare(a.e, b.e))
}

func (t *table) at(i uint32) *entry { return &t.slabs[i/slabLen][i%slabLen] }

func (e *entry) off() int64   { return int64(e.block) * blockSize }
func (e *entry) isDead() bool { return e.flags&dead != 0 }

// length is how much of its segment the entry's record takes.
func (e *entry) length() int64 { return alignUp(recordHead + int64(e.size)) }

// newest returns the newest instance under k, 0 for none.
func (t *table) newest(k node.Key) uint32 {
	if it := t.byKey.get(&keyItem{key: k}); it != nil {
		return it.e
	}
	return 0
}

// live returns the instance under k that answers, 0 for none. It is always the
// newest one, or one that was undeleted.
func (t *table) live(k node.Key) uint32 { return t.liveIn(t.newest(k)) }

// liveIn is live for the instances of a key from a certain one on.
func (t *table) liveIn(i uint32) uint32 {
	for i != 0 && t.at(i).isDead() {
		i = t.at(i).older
	}
	return i
}

// find returns a certain instance under k, 0 for none.
func (t *table) find(k node.Key, inst id.Instance) uint32 {
	for i := t.newest(k); i != 0; i = t.at(i).older {
		if t.at(i).inst == inst {
			return i
		}
	}
	return 0
}

// add enters a live shard and returns its entry. The same instance twice is
// not added: 0.
func (t *table) add(r *rec, seg *segment, flags uint8) uint32 {
	first := t.newest(r.key)
	prev := uint32(0) // the entry behind which the new one goes: instances descend
	for i := first; i != 0 && t.at(i).inst >= r.inst; i = t.at(i).older {
		if t.at(i).inst == r.inst {
			return 0
		}
		prev = i
	}
	i := t.enter(r, seg, flags)
	e := t.at(i)
	if prev == 0 {
		e.older = first
		t.byKey.set(keyItem{r.key, i})
	} else {
		e.older, t.at(prev).older = t.at(prev).older, i
	}
	return i
}

// load is add for one of many: it is under its key, and told from a second copy of the
// same instance, when settle has been called.
func (t *table) load(r *rec, seg *segment, flags uint8) {
	t.loading = append(t.loading, keyItem{r.key, t.enter(r, seg, flags)})
}

// settle puts what was loaded under its keys. Of two copies of one instance the one
// that was loaded first stays, once twice has been called, which may move it to the
// other's place. It is called once, before anything else looks for a key: to sort all
// and add them in order takes less than to find each one's place, and leaves the blocks
// full.
func (t *table) settle(twice func(first, second uint32)) {
	slices.SortFunc(t.loading, func(a, b keyItem) int {
		if c := compareKeys(&a.key, &b.key); c != 0 {
			return c
		}
		return cmp.Or(cmp.Compare(t.at(b.e).inst, t.at(a.e).inst), cmp.Compare(a.e, b.e))
	})
	var last keyItem // the oldest instance under the key at hand
	gone := map[uint32]bool{}
	for i, it := range t.loading {
		switch {
		case i == 0 || it.key != last.key:
			t.byKey.set(it)
		case t.at(it.e).inst == t.at(last.e).inst:
			twice(last.e, it.e)
			gone[it.e] = true
			continue
		default:
			t.at(last.e).older = it.e
		}
		last = it
	}
	t.loading = nil
	if len(gone) == 0 {
		return
	}
	t.byPos.deleteFunc(func(it posItem) bool { return gone[it.e] })
	for i := range gone {
		e := t.at(i)
		t.lives--
		t.liveBytes -= int64(e.size)
		t.leave(e)
		*e = entry{older: t.free}
		t.free = i
	}
}

// enter makes a live entry, which is under no key yet.
func (t *table) enter(r *rec, seg *segment, flags uint8) uint32 {
	i := t.free
	if i != 0 {
		t.free = t.at(i).older
	} else {
		i = t.used
		t.used++
		if int(i/slabLen) == len(t.slabs) {
			t.slabs = append(t.slabs, new([slabLen]entry))
		}
	}
	e := t.at(i)
	*e = entry{inst: r.inst, seg: seg, block: uint32(r.off / blockSize), size: r.size, kind: r.kind, flags: flags}
	seg.entries++
	seg.bytes += e.length()
	if flags&broken != 0 {
		seg.broken++
	}
	t.lives++
	t.liveBytes += int64(e.size)
	if e.kind == pack.Log {
		t.byPos.set(posItem{r.pos, r.key, i})
	}
	return i
}

// remove forgets an entry, whose record r was.
func (t *table) remove(r *rec, i uint32) {
	e := t.at(i)
	if e.isDead() {
		if e.flags&going != 0 {
			t.dueBytes -= int64(e.size)
		}
		t.deads--
		t.deadBytes -= int64(e.size)
		t.noneLeft()
	} else {
		t.lives--
		t.liveBytes -= int64(e.size)
	}
	if e.kind == pack.Log {
		t.byPos.remove(posItem{r.pos, r.key, i})
	}
	if first := t.newest(r.key); first != i {
		for t.at(first).older != i {
			first = t.at(first).older
		}
		t.at(first).older = e.older
	} else if e.older != 0 {
		t.byKey.set(keyItem{r.key, e.older})
	} else {
		t.byKey.remove(keyItem{key: r.key})
	}
	t.leave(e)
	t.setFate(i, fate{})
	*e = entry{older: t.free}
	t.free = i
}

// leave takes an entry out of its segment's counts.
func (t *table) leave(e *entry) {
	e.seg.entries--
	e.seg.bytes -= e.length()
	if e.flags&broken != 0 {
		e.seg.broken--
	}
}

// move says that an entry's record has been copied to another place.
func (t *table) move(i uint32, seg *segment, off int64) {
	e := t.at(i)
	t.leave(e)
	e.seg, e.block = seg, uint32(off/blockSize)
	e.flags &^= broken
	seg.entries++
	seg.bytes += e.length()
}

// setFate replaces what the newest note said; the zero fate takes it away.
func (t *table) setFate(i uint32, f fate) {
	if old, ok := t.fates[i]; ok && old.home != nil {
		old.home.notes--
	}
	if f.home != nil {
		f.home.notes++
	}
	if f == (fate{}) {
		delete(t.fates, i)
		return
	}
	t.fates[i] = f
	switch {
	case f.typ == undelete:
	case t.at(i).kind == pack.Log:
		t.lastLog = max(t.lastLog, f.at)
	default:
		t.lastData = max(t.lastData, f.at)
	}
}

// due says that the space of an entry is being given back.
func (t *table) due(i uint32) {
	if e := t.at(i); e.flags&going == 0 {
		e.flags |= going
		t.dueBytes += int64(e.size)
	}
}

// noneLeft forgets when the last ones died, once none is left.
func (t *table) noneLeft() {
	if t.deads == 0 {
		t.lastData, t.lastLog = 0, 0
	}
}

// until is when the keep times of all that are dead are over, at the latest.
func (t *table) until(keep, keepLog time.Duration) (out time.Time) {
	if t.deads == 0 {
		return out
	}
	if t.lastData != 0 {
		out = time.Unix(0, t.lastData).Add(keep)
	}
	if t.lastLog != 0 {
		if log := time.Unix(0, t.lastLog).Add(keepLog); log.After(out) {
			out = log
		}
	}
	return out
}

// kill and revive change whether an entry answers.
func (t *table) kill(i uint32) {
	e := t.at(i)
	if !e.isDead() {
		e.flags |= dead
		t.lives, t.deads = t.lives-1, t.deads+1
		t.liveBytes, t.deadBytes = t.liveBytes-int64(e.size), t.deadBytes+int64(e.size)
	}
}

func (t *table) revive(i uint32) {
	e := t.at(i)
	if e.isDead() {
		e.flags &^= dead
		t.lives, t.deads = t.lives+1, t.deads-1
		t.liveBytes, t.deadBytes = t.liveBytes+int64(e.size), t.deadBytes-int64(e.size)
		t.noneLeft()
	}
}
