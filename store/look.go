package store

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"cairn/id"
	"cairn/index"
	"cairn/node"
	"cairn/pack"
	"cairn/record"
)

// Kinds of damage.
const (
	damageMissing = "missing"     // its node does not have it, or it lies on no node
	damageRotten  = "rotten"      // its node says that its checksums do not hold
	damageOther   = "other bytes" // good checksums, and not what was written
	damageParity  = "parity"      // what was written, and not what the pack's data codes to
	damagePassing = "passing"     // read wrong once, and right the second time
	damageChunk   = "chunk"       // a chunk that does not open
	damageID      = "id"          // a chunk whose bytes have another ID
)

// badShard is a shard that is not as it should be where it should lie.
type badShard struct {
	place record.Place // without a node: it has no place
	m     *member      // nil: its node is none any more
	kind  string
	err   error
}

// look is what one reading of a pack found. It holds the pack until it is released.
type look struct {
	set  *memberSet
	row  index.PackRow
	g    geometry
	w    *whole
	dead bool // no chunk lies in it any more: not read
	// marked: of the chunks that lie in it some are marked as damaged.
	marked bool

	good     map[record.Place]bool // read, and what was written
	bad      []badShard
	notAsked []error // of places of which nothing is known
	have     []bool  // shards of which there is a good place, by index
	perhaps  []bool  // shards that a node which could not be asked may have
	bytes    uint64

	// Of a look that opens the pack:
	opened *pack.Opened // nil: it cannot be put together
	enc    *pack.Encoded
	torn   error // why it cannot
	lost   bool  // whatever the nodes that could not be asked have
	// trusted: all data shards have their logged digests, read or computed, and every
	// chunk opens. Where coding them gives other parity than was written, it is the
	// parity that is wrong.
	trusted bool
	chunks  int // opened
	broken  []brokenChunk
	found   []index.ChunkRow // opened, and marked as damaged
}

type brokenChunk struct {
	chunk chunkKey
	kind  string
	err   error
}

func (l *look) release() {
	if l.enc != nil {
		l.enc.Release()
	}
	if l.opened != nil {
		l.opened.Release()
	}
	if l.w != nil {
		l.w.release()
	}
}

// shards is how many different shards are good.
func (l *look) shards() (n int) {
	for _, have := range l.have {
		if have {
			n++
		}
	}
	return n
}

// unreadable reports whether enough of the pack is as it was written, and it cannot be
// put together all the same.
func (l *look) unreadable() bool {
	return l.torn != nil && l.shards() >= l.g.k && !errors.Is(l.torn, id.ErrNewer)
}

// look reads every shard of a pack from its node and holds it against its digest.
// With open it puts the pack together from those that match, codes them again, opens
// every chunk and computes its ID. nil: there is no such pack any more.
func (s *Store) look(ctx context.Context, p id.Pack, open bool) (*look, error) {
	l := &look{set: s.members.Load(), good: map[record.Place]bool{}}
	var (
		gone      bool
		residents []index.Resident
		rows      []index.ChunkRow
	)
	if err := s.view(func(rd index.Reader) (err error) {
		if l.row, err = rd.Pack(p); errors.Is(err, index.ErrNotFound) {
			gone = true
			return nil
		} else if err != nil {
			return err
		}
		if l.dead = empty(l.row); l.dead {
			return nil
		}
		if l.g, err = s.locate(rd, p); err != nil {
			return err
		}
		if residents, err = rd.Residents(p); err != nil {
			return err
		}
		for _, x := range residents {
			row, err := rd.Chunk(x.Realm, x.Chunk)
			if err != nil {
				return err
			}
			l.marked = l.marked || row.State == index.Damaged
			if open {
				rows = append(rows, row)
			}
		}
		return nil
	}); err != nil {
		return nil, err
	}
	if gone {
		return nil, nil
	}
	if l.dead {
		return l, nil
	}
	plain := 0 // bytes of the largest chunk
	for _, row := range rows {
		plain = max(plain, int(row.Info.PlainLen))
	}
	var err error
	if l.w, err = s.newWhole(ctx, l.g, weigh(plain)); err != nil {
		return nil, err
	}
	err = s.lookAtShards(ctx, l)
	if err == nil && open {
		buf := s.chunks.get(plain)
		err = s.lookInside(l, residents, rows, buf)
		s.chunks.put(buf)
	}
	if err != nil {
		l.release()
		return nil, err
	}
	return l, nil
}

// lookAtShards reads the shards.
func (s *Store) lookAtShards(ctx context.Context, l *look) error {
	g, w := l.g, l.w
	l.have, l.perhaps = make([]bool, g.k+g.m), make([]bool, g.k+g.m)
	if len(g.places) == 0 {
		l.notAsked = append(l.notAsked, fmt.Errorf("where the shards of pack %v lie is not known yet", g.pack))
		for i := range l.perhaps {
			l.perhaps[i] = true
		}
		return nil
	}
	for _, place := range g.places {
		i := place.Index
		m := l.set.byID[place.Node]
		if m == nil && slices.ContainsFunc(g.places, func(x record.Place) bool { return x.Index == i && l.set.byID[x.Node] != nil }) {
			continue // the shard lay on two nodes, and one of them was replaced
		}
		if m == nil {
			l.bad = append(l.bad, badShard{place: place, kind: damageMissing, err: notAsked(g.pack, int(i), nil)})
			continue
		}
		if !m.readable() {
			l.notAsked, l.perhaps[i] = append(l.notAsked, notAsked(g.pack, int(i), m)), true
			continue
		}
		var err error
		if l.have[i] { // the second place of a shard: the first must stay where it was read to
			err = s.readBack(ctx, m, node.Key{Pack: g.pack, Index: i}, w.shards[i])
		} else {
			err = w.read(ctx, m, place)
		}
		if cerr := context.Cause(ctx); cerr != nil {
			return cerr // which says nothing of the node
		}
		switch {
		case err == nil:
			l.good[place], l.have[i] = true, true
			l.bytes += uint64(g.size)
		case errors.Is(err, id.ErrNewer) || !lostForGood(err):
			m.noteRead(err, s.now())
			l.notAsked, l.perhaps[i] = append(l.notAsked, err), true
		case errors.Is(err, errOtherBytes):
			l.bad = append(l.bad, badShard{place, m, damageOther, err})
		case errors.Is(err, node.ErrDamaged):
			l.bad = append(l.bad, badShard{place, m, damageRotten, err})
		default:
			l.bad = append(l.bad, badShard{place, m, damageMissing, err})
		}
	}
	for i := range g.k + g.m {
		if !slices.ContainsFunc(g.places, func(x record.Place) bool { return int(x.Index) == i }) {
			l.bad = append(l.bad, badShard{place: record.Place{Index: uint8(i)}, kind: damageMissing, err: fmt.Errorf("shard %d of pack %v has no place", i, g.pack)})
		}
	}
	return nil
}

// lookInside puts the pack together and looks at what is in it, chunk by chunk in buf.
func (s *Store) lookInside(l *look, residents []index.Resident, rows []index.ChunkRow, buf []byte) error {
	left := 0
	for i := range l.have {
		if l.have[i] || l.perhaps[i] {
			left++
		}
	}
	opened, err := l.w.assemble()
	if err != nil {
		if errors.Is(err, id.ErrNewer) {
			l.notAsked = append(l.notAsked, err)
		}
		l.torn, l.lost = err, left < l.g.k
		return nil
	}
	l.opened = opened
	if l.enc, err = s.coder.Rebuild(opened); err != nil {
		return err
	}
	for i, row := range rows {
		if row.Unknown() {
			continue // it only stands for what is lost
		}
		switch err := s.verifyChunk(buf, row, residents[i], opened.Payload); {
		case err == nil:
			s.scrubs.noteBroken(chunkKey{row.Realm, row.Chunk}, false)
			if l.chunks++; row.State == index.Damaged {
				l.found = append(l.found, row)
			}
		case errors.Is(err, id.ErrNewer):
			l.notAsked = append(l.notAsked, err)
		case errors.Is(err, errOtherID):
			l.broken = append(l.broken, brokenChunk{chunkKey{row.Realm, row.Chunk}, damageID, fmt.Errorf("pack %v, chunk at %d: %w", l.g.pack, row.Offset, err)})
		default:
			l.broken = append(l.broken, brokenChunk{chunkKey{row.Realm, row.Chunk}, damageChunk, fmt.Errorf("pack %v, chunk at %d: %w", l.g.pack, row.Offset, err)})
		}
	}
	l.trusted = l.chunks == len(rows)
	for i := range l.g.k {
		l.trusted = l.trusted && slices.ContainsFunc(l.g.places, func(x record.Place) bool { return int(x.Index) == i && x.Digest == l.enc.Digests[i] })
	}
	for _, place := range l.g.places {
		if !l.good[place] || l.enc.Digests[place.Index] == place.Digest {
			continue
		}
		delete(l.good, place)
		l.have[place.Index] = false
		l.bad = append(l.bad, badShard{place, l.set.byID[place.Node], damageParity, fmt.Errorf("shard %d of pack %v: coding the pack again gives other bytes", place.Index, l.g.pack)})
	}
	return nil
}
