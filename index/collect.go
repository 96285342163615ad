package index

import (
	"errors"
	"fmt"

	"cairn/id"
	"cairn/index/kv"
	"cairn/manifest"
	"cairn/pack"
	"cairn/record"
)

// Collection, as docs/protocol.md, section 12, says: what is condemned, removed, moved
// and dropped here was decided by the log writer.

// spare makes a chunk live, whatever it was before; the caller writes the row.
func (r *Round) spare(row *ChunkRow) error {
	if row.State == Live {
		return nil
	}
	row.State = Live
	_, err := r.remove(r.keys.condemned(r.key[:0], row.Realm, &row.Chunk))
	return err
}

func (r *Round) applyCondemn(c *record.Condemn) error {
	if len(c.Chunks) == 0 || len(c.Chunks) > record.MaxCondemned {
		return fmt.Errorf("%w: %d chunks are condemned", ErrRecord, len(c.Chunks))
	}
	for i := range c.Chunks {
		row, err := r.reader.Chunk(c.In, c.Chunks[i])
		if errors.Is(err, ErrNotFound) {
			if err := r.mismatch("a chunk is condemned that is not there"); err != nil {
				return err
			}
			continue
		}
		if err != nil {
			return err
		}
		_, err = r.reader.Condemned(c.In, c.Chunks[i])
		if err == nil || row.Refs > 0 {
			err = r.mismatch("a chunk with %d edges is condemned, or one that is condemned", row.Refs)
		} else if errors.Is(err, ErrNotFound) {
			err = nil
		}
		if err != nil {
			return err
		}
		r.moved[chunkKey{c.In, row.Chunk}] = struct{}{}
		now := Condemnation{Since: r.seq, Time: c.Time}
		if err := r.put(r.keys.condemned(r.key[:0], c.In, &row.Chunk), now.append(r.out[:0])); err != nil {
			return err
		}
		if row.State != Live {
			continue
		}
		row.State = Condemned
		if err := r.putChunk(&row); err != nil {
			return err
		}
	}
	return nil
}

func (r *Round) applyRemove(rm *record.Remove) error {
	if len(rm.Chunks) == 0 || len(rm.Chunks) > record.MaxCondemned {
		return fmt.Errorf("%w: %d chunks are removed", ErrRecord, len(rm.Chunks))
	}
	edges := 0
	for i := range rm.Chunks {
		edges += len(rm.Chunks[i].Before)
	}
	if edges > manifest.MaxChildren {
		return fmt.Errorf("%w: chunks with %d children are removed", ErrRecord, edges)
	}
	for i := range rm.Chunks {
		if err := r.removeChunk(rm.In, &rm.Chunks[i]); err != nil {
			return err
		}
	}
	return nil
}

// removeChunk takes the rows of one chunk away. A list gives up its edges.
func (r *Round) removeChunk(realm id.Realm, rm *record.Removed) error {
	row, err := r.reader.Chunk(realm, rm.Chunk)
	if errors.Is(err, ErrNotFound) {
		return r.mismatch("a chunk is removed that is not there")
	}
	if err != nil {
		return err
	}
	switch c, err := r.reader.Condemned(realm, rm.Chunk); {
	case err != nil && !errors.Is(err, ErrNotFound):
		return err
	case c.Since != rm.Since || row.Refs > 0:
		// In a rebuild it stays, and so does its pack: what still refers to it finds out
		// when it is read, and the rebuild comes to its end.
		return r.mismatch("a chunk with %d edges, condemned at %d, is removed; the record names %d", row.Refs, c.Since, rm.Since)
	}
	k := chunkKey{realm, rm.Chunk}
	r.moved[k] = struct{}{}
	if _, counted := r.lists[k]; counted {
		return fmt.Errorf("%w: a list is removed before its children are counted", ErrRecord)
	}
	had, err := r.remove(r.keys.resident(r.key[:0], &row.Pack, row.Offset))
	if err != nil {
		return err
	}
	if !had {
		return fmt.Errorf("%w: a chunk row without its resident", ErrDamaged)
	}
	if err := r.usageAdd(row.Pack, 0, 0, ^uint64(0)); err != nil {
		return err
	}
	r.totals.Chunks--
	r.totals.UniqueBytes -= uint64(row.PlainLen)
	r.totals.SealedBytes -= uint64(row.SealedLen)
	for _, key := range [][]byte{r.keys.chunk(nil, realm, &rm.Chunk), r.keys.condemned(nil, realm, &rm.Chunk)} {
		if _, err := r.remove(key); err != nil {
			return err
		}
	}
	if uint8(row.Kind) != kindList {
		if len(rm.Before) > 0 {
			return r.mismatch("a chunk is removed with %d children, and is no list", len(rm.Before))
		}
		return nil
	}
	return r.removeList(realm, rm)
}

func (r *Round) removeList(realm id.Realm, rm *record.Removed) error {
	children, err := r.reader.Children(realm, rm.Chunk)
	if errors.Is(err, ErrNotFound) {
		return r.mismatch("a list without its children")
	}
	if err != nil {
		return err
	}
	if len(children) != len(rm.Before) {
		if err := r.mismatch("a list of %d children is removed, the record has %d counts", len(children), len(rm.Before)); err != nil {
			return err
		}
	}
	for i := range children {
		var before uint64
		if i < len(rm.Before) {
			before = rm.Before[i]
		}
		if err := r.lose(realm, children[i], before); err != nil {
			return err
		}
	}
	_, err = r.remove(r.keys.children(r.key[:0], realm, &rm.Chunk))
	return err
}

func (r *Round) applyMove(m *record.Move) error {
	a := m.Adopt()
	if err := checkAdopt(a); err != nil {
		return err
	}
	if len(m.Entries) > record.MaxMoved || len(m.From) != len(m.Entries) || len(m.Sources) > len(m.Entries) {
		return fmt.Errorf("%w: %d chunks are moved from %d places in %d packs", ErrRecord, len(m.Entries), len(m.From), len(m.Sources))
	}
	for _, from := range m.From {
		if from > uint32(len(m.Sources)) {
			return fmt.Errorf("%w: a chunk is moved from pack %d of %d", ErrRecord, from, len(m.Sources))
		}
	}
	if taken, err := r.addData(a); taken || err != nil {
		return err
	}
	for i := range m.Entries {
		e := &m.Entries[i]
		if err := r.usageAdd(m.Pack, uint64(e.SealedLen), 0, 0); err != nil {
			return err
		}
		if m.From[i] == 0 {
			continue
		}
		row, err := r.reader.Chunk(m.In, e.Chunk)
		if errors.Is(err, ErrNotFound) {
			if err := r.mismatch("a chunk is moved that is not there"); err != nil {
				return err
			}
			if err := r.movedAnew(m.Pack, e); err != nil {
				return err
			}
			continue
		}
		if err != nil {
			return err
		}
		if from := m.Sources[m.From[i]-1]; row.Pack != from || row.Kind != e.Kind || row.PlainLen != e.PlainLen {
			if err := r.mismatch("a chunk is moved from pack %v, and lies in pack %v", from, row.Pack); err != nil {
				return err
			}
		}
		r.moved[chunkKey{m.In, e.Chunk}] = struct{}{}
		if row.State == Damaged { // it was read whole, and lies in a whole pack now
			if err := r.spare(&row); err != nil {
				return err
			}
		}
		if err := r.point(&row, m.Pack, *e); err != nil {
			return err
		}
		if err := r.putChunk(&row); err != nil {
			return err
		}
	}
	return nil
}

func (r *Round) applyDrop(d *record.Drop) error {
	if len(d.Packs) == 0 || len(d.Packs) > record.MaxDropped {
		return fmt.Errorf("%w: %d packs are dropped", ErrRecord, len(d.Packs))
	}
	kept, err := r.reader.Snapshots()
	if err != nil {
		return err
	}
	past := uint64(0)
	if len(kept) == 2 {
		past = kept[1].Number
	}
	for i := range d.Packs {
		if err := r.dropPack(d.Packs[i], past); err != nil {
			return err
		}
	}
	return nil
}

// dropPack takes the rows of one pack away. In a rebuild one that cannot go stays, and
// what is thought to lie in it is found to be gone when it is read.
func (r *Round) dropPack(p id.Pack, past uint64) error {
	row, err := r.packPlace(p)
	if errors.Is(err, ErrNotFound) || err == nil && p == r.pack {
		return r.mismatch("pack %v is dropped, which is not there", p)
	}
	if err != nil {
		return err
	}
	switch {
	case row.Kind == pack.Data:
	case row.Kind == pack.Log && row.Seq <= past && p != r.head.Pack:
	default:
		return r.mismatch("a %v pack of sequence %d is dropped, snapshots are past %d", row.Kind, row.Seq, past)
	}
	free, err := r.vacant(p)
	if err != nil {
		return err
	}
	if !free {
		return r.mismatch("pack %v is dropped, and chunks lie in it", p)
	}
	return r.removePack(p, &row)
}

// vacant reports whether no chunk row points into a pack: its count says so, and there is
// no resident.
func (r *Round) vacant(p id.Pack) (bool, error) {
	u, err := r.usageOf(p)
	if err != nil || u.Residents > 0 {
		return false, err
	}
	found := false
	err = r.eachResident(p, func(uint32, id.Realm, id.Chunk) error {
		found = true
		return kv.Stop
	})
	return !found, err
}

// Vacant reports whether a pack may be dropped as far as chunks are concerned: none
// points into it.
func (r *Round) Vacant(p id.Pack) (bool, error) {
	if err := r.ready(); err != nil {
		return false, err
	}
	return r.vacant(p)
}
