package index

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"slices"
	"unicode/utf8"

	"cairn/id"
	"cairn/index/kv"
	"cairn/manifest"
	"cairn/pack"
	"cairn/record"
)

// Bounds beside those of package record: what is within them fits into a row.
const (
	maxLabels     = 32
	maxLabel      = 256 // bytes
	maxMemberName = 256
	maxLosses     = 4
	maxETag       = 128
)

// AddEntry takes a chunk in the payload of the round's own pack into the index.
// The chunk must not be live: a writer never puts a second copy into the log
// ([ErrDivergent]). Applying the entries before the records gives the same rows
// as any order in which AddEntry accepts them.
func (r *Round) AddEntry(e pack.Entry) error {
	if err := r.ready(); err != nil {
		return err
	}
	return r.fail(r.addEntry(&e))
}

func (r *Round) addEntry(e *pack.Entry) error {
	if err := checkEntry(e); err != nil {
		return err
	}
	if _, moved := r.moved[chunkKey{e.Realm, e.Chunk}]; moved {
		return fmt.Errorf("%w: an entry for a chunk that a record before it changed", ErrRecord)
	}
	r.entries++
	return r.adopt(r.pack, e, true)
}

func checkEntry(e *pack.Entry) error {
	if e.Realm == 0 || e.Chunk.IsZero() || e.SealedLen == 0 || e.End() > max32 {
		return fmt.Errorf("%w: an entry of realm %d with %d bytes at %d", ErrRecord, e.Realm, e.SealedLen, e.Offset)
	}
	return nil
}

// adopt takes one chunk of a pack in. own says that it is the round's own pack.
func (r *Round) adopt(p id.Pack, e *pack.Entry, own bool) error {
	if err := r.usageAdd(p, uint64(e.SealedLen), 0, 0); err != nil {
		return err
	}
	row, err := r.reader.Chunk(e.Realm, e.Chunk)
	switch {
	case errors.Is(err, ErrNotFound):
		row = ChunkRow{Entry: *e, Pack: p, State: Live}
		r.totals.Chunks++
		r.totals.UniqueBytes += uint64(e.PlainLen)
		r.totals.SealedBytes += uint64(e.SealedLen)
		if uint8(e.Kind) == kindList {
			r.lists[chunkKey{e.Realm, e.Chunk}] = struct{}{}
		}
		if !own {
			r.moved[chunkKey{e.Realm, e.Chunk}] = struct{}{}
		}
		if err := r.usageAdd(p, 0, 0, 1); err != nil {
			return err
		}
		if err := r.put(r.keys.resident(r.key[:0], &p, e.Offset), appendResident(r.out[:0], e.Realm, &e.Chunk)); err != nil {
			return err
		}
		return r.putChunk(&row)
	case err != nil:
		return err
	}
	if row.Unknown() {
		// What stood for it is all that there was: it is as if it were new, but for its edges.
		if uint8(e.Kind) == kindList {
			r.lists[chunkKey{e.Realm, e.Chunk}] = struct{}{}
		}
	} else if row.Kind != e.Kind || row.PlainLen != e.PlainLen {
		if err := r.mismatch("a chunk that was something else before"); err != nil {
			return err
		}
	}
	if row.State == Live {
		if own {
			return r.mismatch("an entry for a chunk that is live")
		}
		return nil // this copy is dead bytes
	}
	if !own {
		r.moved[chunkKey{e.Realm, e.Chunk}] = struct{}{}
	}
	if err := r.spare(&row); err != nil {
		return err
	}
	if err := r.point(&row, p, *e); err != nil {
		return err
	}
	return r.putChunk(&row)
}

const (
	kindData = 1
	kindList = 2
)

// point changes where a chunk lies: its resident row, and what both packs and
// the totals count. The caller writes the row.
func (r *Round) point(row *ChunkRow, p id.Pack, e pack.Entry) error {
	had, err := r.remove(r.keys.resident(r.key[:0], &row.Pack, row.Offset))
	if err != nil {
		return err
	}
	if !had {
		return fmt.Errorf("%w: a chunk row without its resident", ErrDamaged)
	}
	var before, after uint64
	if row.Refs > 0 {
		before, after = uint64(row.SealedLen), uint64(e.SealedLen)
	}
	if err := r.usageAdd(row.Pack, 0, -before, ^uint64(0)); err != nil {
		return err
	}
	if err := r.usageAdd(p, 0, after, 1); err != nil {
		return err
	}
	r.totals.SealedBytes += uint64(e.SealedLen) - uint64(row.SealedLen)
	r.totals.UniqueBytes += uint64(e.PlainLen) - uint64(row.PlainLen)
	row.Pack, row.Entry = p, e
	return r.put(r.keys.resident(r.key[:0], &p, e.Offset), appendResident(r.out[:0], e.Realm, &e.Chunk))
}

// Apply applies the next record. Its position among the round's records is part
// of the version of what it makes. [ErrRecord], [ErrDivergent],
// [ErrUnknownRecord].
func (r *Round) Apply(rec record.Record) error {
	if err := r.ready(); err != nil {
		return err
	}
	err := r.apply(rec)
	r.records++
	return r.fail(err)
}

func (r *Round) apply(rec record.Record) error {
	switch rec := rec.(type) {
	case *record.Adopt:
		return r.applyAdopt(rec)
	case *record.List:
		return r.applyList(rec)
	case *record.Put:
		return r.applyPut(rec)
	case *record.Delete:
		return r.applyDelete(rec)
	case *record.Purge:
		return r.applyPurge(rec)
	case *record.BucketCreate:
		return r.applyBucketCreate(rec)
	case *record.BucketSet:
		return r.applyBucketSet(rec)
	case *record.BucketDelete:
		return r.applyBucketDelete(rec)
	case *record.Nodes:
		return r.applyNodes(rec)
	case *record.Reshard:
		return r.applyReshard(rec)
	case *record.Piece:
		return r.applyPiece(rec)
	case *record.Snapshot:
		return r.applySnapshot(rec)
	case *record.PieceDrop:
		return r.applyPieceDrop(rec)
	case *record.Lost:
		return r.applyLost(rec)
	case *record.Condemn:
		return r.applyCondemn(rec)
	case *record.Remove:
		return r.applyRemove(rec)
	case *record.Move:
		return r.applyMove(rec)
	case *record.Drop:
		return r.applyDrop(rec)
	case *record.Found:
		return r.applyFound(rec)
	case *record.LockSet:
		return r.applyLockSet(rec)
	case *record.Clock:
		return r.applyClock(rec)
	}
	return fmt.Errorf("%w: %T", ErrUnknownRecord, rec)
}

// version is that of what the record at hand makes.
func (r *Round) version() id.Version { return id.Version{Seq: r.seq, Pos: r.records} }

func (r *Round) applyAdopt(a *record.Adopt) error {
	if err := checkAdopt(a); err != nil {
		return err
	}
	if taken, err := r.addData(a); taken || err != nil {
		return err
	}
	for i := range a.Entries {
		if err := r.adopt(a.Pack, &a.Entries[i], false); err != nil {
			return err
		}
	}
	return nil
}

// addData writes the row of a new data pack. taken: the index has the pack, and in a
// rebuild what brings it again is passed over.
func (r *Round) addData(a *record.Adopt) (taken bool, err error) {
	if a.Pack == r.pack {
		return false, fmt.Errorf("%w: a log pack adopts itself", ErrRecord)
	}
	switch _, err := r.packPlace(a.Pack); {
	case err == nil:
		return true, r.mismatch("pack %v is in the index already", a.Pack)
	case !errors.Is(err, ErrNotFound):
		return false, err
	}
	r.keep(&usageRow{pack: a.Pack})
	row := PackRow{Kind: pack.Data, K: a.K, M: a.M, Slice: a.Slice, Size: a.Size, Body: a.Body, Writer: a.Writer, Counter: a.Counter, Shards: a.Shards}
	return false, r.addPack(a.Pack, &row)
}

// applyLost marks chunks of a pack as damaged. Their rows stay where they point:
// what was promised of them is not taken back by a second sight of the pack.
func (r *Round) applyLost(l *record.Lost) error {
	if l.Chunks == 0 || l.Chunks > record.MaxLost || l.Pack == r.pack {
		return fmt.Errorf("%w: %d chunks of pack %v are lost", ErrRecord, l.Chunks, l.Pack)
	}
	if _, err := r.packPlace(l.Pack); errors.Is(err, ErrNotFound) {
		return r.mismatch("pack %v is lost, which is not there", l.Pack)
	} else if err != nil {
		return err
	}
	rows, err := r.undamaged(l.Pack, int(l.Chunks))
	if err != nil {
		return err
	}
	if len(rows) < int(l.Chunks) {
		if err := r.mismatch("%d chunks of pack %v are lost, it has %d", l.Chunks, l.Pack, len(rows)); err != nil {
			return err
		}
	}
	for i := range rows {
		row := &rows[i]
		r.moved[chunkKey{row.Realm, row.Chunk}] = struct{}{}
		row.State = Damaged
		if err := r.putChunk(row); err != nil {
			return err
		}
	}
	return nil
}

// applyFound takes back that chunks are damaged which can be read where they lie.
func (r *Round) applyFound(f *record.Found) error {
	if len(f.Offsets) == 0 || len(f.Offsets) > record.MaxLost || f.Pack == r.pack {
		return fmt.Errorf("%w: %d chunks of pack %v are found", ErrRecord, len(f.Offsets), f.Pack)
	}
	for i := 1; i < len(f.Offsets); i++ {
		if f.Offsets[i] <= f.Offsets[i-1] {
			return fmt.Errorf("%w: chunks of pack %v are found at %d and then at %d", ErrRecord, f.Pack, f.Offsets[i-1], f.Offsets[i])
		}
	}
	if _, err := r.packPlace(f.Pack); errors.Is(err, ErrNotFound) {
		return r.mismatch("chunks of pack %v are found, which is not there", f.Pack)
	} else if err != nil {
		return err
	}
	all, err := r.chunksIn(f.Pack)
	if err != nil {
		return err
	}
	rows := make(map[uint32]*ChunkRow, len(all))
	for i := range all {
		rows[all[i].Offset] = &all[i]
	}
	for _, off := range f.Offsets {
		row := rows[off]
		if row == nil || row.State != Damaged {
			if err := r.mismatch("a chunk of pack %v at %d is found that is not marked as damaged", f.Pack, off); err != nil {
				return err
			}
			continue
		}
		r.moved[chunkKey{row.Realm, row.Chunk}] = struct{}{}
		if err := r.spare(row); err != nil {
			return err
		}
		if err := r.putChunk(row); err != nil {
			return err
		}
	}
	return nil
}

// chunksIn lists the chunks that lie in a pack, by offset.
func (r *Round) chunksIn(p id.Pack) (out []ChunkRow, err error) {
	residents, err := r.reader.Residents(p)
	if err != nil {
		return nil, err
	}
	for i := range residents {
		at := &residents[i]
		row, err := r.reader.Chunk(at.Realm, at.Chunk)
		switch {
		case errors.Is(err, ErrNotFound) || err == nil && (row.Pack != p || row.Offset != at.Offset):
			return nil, fmt.Errorf("%w: a resident that no chunk row points at", ErrDamaged)
		case err != nil:
			return nil, err
		}
		out = append(out, row)
	}
	return out, nil
}

// undamaged lists the first chunks of a pack that are not marked as damaged.
func (r *Round) undamaged(p id.Pack, most int) (out []ChunkRow, err error) {
	all, err := r.chunksIn(p)
	for _, row := range all {
		if row.State != Damaged && len(out) < most {
			out = append(out, row)
		}
	}
	return out, err
}

// Undamaged is how many of a pack's chunks are not marked as damaged, at most so
// many: what a record that it is lost may name now.
func (r *Round) Undamaged(p id.Pack, most int) (int, error) {
	if err := r.ready(); err != nil {
		return 0, err
	}
	rows, err := r.undamaged(p, most)
	return len(rows), err
}

// Changed reports whether a record of the round changed the chunk's row: then no
// entry for it may follow.
func (r *Round) Changed(realm id.Realm, c id.Chunk) bool {
	_, moved := r.moved[chunkKey{realm, c}]
	return moved
}

func checkAdopt(a *record.Adopt) error {
	width := int(a.K) + int(a.M)
	switch {
	case a.Pack.IsZero() || a.K == 0 || width > pack.MaxWidth || len(a.Shards) != width:
		return fmt.Errorf("%w: adopt pack %v of %d+%d with %d shards", ErrRecord, a.Pack, a.K, a.M, len(a.Shards))
	case len(a.Entries) > pack.MaxEntries || uint64(a.Body)+uint64(a.Slice) > uint64(a.Size):
		return fmt.Errorf("%w: adopt pack %v with %d entries and a slice of %d bytes at %d in a shard of %d", ErrRecord, a.Pack, len(a.Entries), a.Slice, a.Body, a.Size)
	}
	for i, s := range a.Shards {
		if int(s.Index) != i || s.Node.IsZero() {
			return fmt.Errorf("%w: adopt pack %v: place %d is of shard %d", ErrRecord, a.Pack, i, s.Index)
		}
	}
	var end uint64
	for i := range a.Entries {
		e := &a.Entries[i]
		if err := checkEntry(e); err != nil {
			return err
		}
		if e.Realm != a.In || uint64(e.Offset) < end || e.End() > uint64(a.K)*uint64(a.Slice) {
			return fmt.Errorf("%w: adopt pack %v: entry %d of realm %d has %d bytes at %d", ErrRecord, a.Pack, i, e.Realm, e.SealedLen, e.Offset)
		}
		end = e.End()
	}
	return nil
}

func (r *Round) applyList(l *record.List) error {
	if n := len(l.Children); n == 0 || n > manifest.MaxChildren || len(l.Before) != n {
		return fmt.Errorf("%w: a list of %d children with %d counts", ErrRecord, n, len(l.Before))
	}
	k := chunkKey{l.In, l.Chunk}
	if _, made := r.lists[k]; !made {
		// Counting its children a second time would be worse than not at all.
		return r.mismatch("children of a chunk that this log pack did not make, or counted already")
	}
	delete(r.lists, k)
	for i := range l.Children {
		if err := r.gain(l.In, l.Children[i], l.Before[i]); err != nil {
			return err
		}
	}
	return r.put(r.keys.children(r.key[:0], l.In, &l.Chunk), appendChildren(r.out[:0], l.Children))
}

// gain adds an edge to a chunk.
func (r *Round) gain(realm id.Realm, c id.Chunk, before uint64) error {
	row, err := r.reader.Chunk(realm, c)
	if errors.Is(err, ErrNotFound) {
		return r.mismatch("an edge to a chunk that is not there")
	}
	if err != nil {
		return err
	}
	if row.Refs != before {
		if err := r.mismatch("a chunk has %d edges, the record names %d", row.Refs, before); err != nil {
			return err
		}
	}
	if row.Refs == 0 {
		if err := r.usageAdd(row.Pack, 0, uint64(row.SealedLen), 0); err != nil {
			return err
		}
	}
	row.Refs++
	if row.State == Condemned {
		r.moved[chunkKey{realm, c}] = struct{}{}
		if err := r.spare(&row); err != nil {
			return err
		}
	}
	return r.putChunk(&row)
}

// lose takes an edge to a chunk away.
func (r *Round) lose(realm id.Realm, c id.Chunk, before uint64) error {
	row, err := r.reader.Chunk(realm, c)
	if errors.Is(err, ErrNotFound) {
		return r.mismatch("an edge from a chunk that is not there")
	}
	if err != nil {
		return err
	}
	if row.Refs != before {
		if err := r.mismatch("a chunk has %d edges, the record names %d", row.Refs, before); err != nil {
			return err
		}
	}
	if row.Refs == 0 {
		return r.mismatch("a chunk has no edge to lose")
	}
	row.Refs--
	if row.Refs == 0 {
		if err := r.usageAdd(row.Pack, 0, -uint64(row.SealedLen), 0); err != nil {
			return err
		}
	}
	return r.putChunk(&row)
}

func badText(ss ...string) bool {
	for _, s := range ss {
		if !utf8.ValidString(s) {
			return true
		}
	}
	return false
}

// checkAttrs bounds what an object's row holds.
func checkAttrs(a *record.Attrs) error {
	size := len(a.ContentType) + len(a.ContentEncoding) + len(a.ContentDisposition) + len(a.ContentLanguage) + len(a.CacheControl)
	bad := badText(a.ContentType, a.ContentEncoding, a.ContentDisposition, a.ContentLanguage, a.CacheControl)
	for i, f := range a.User {
		size += len(f.Name) + len(f.Value)
		bad = bad || badText(f.Name, f.Value) || i > 0 && a.User[i-1].Name >= f.Name
	}
	if bad || size > record.MaxAttrs {
		return fmt.Errorf("%w: attributes of %d bytes, which are at most %d of UTF-8, sorted by name", ErrRecord, size, record.MaxAttrs)
	}
	return nil
}

func checkKey(key []byte) error {
	if len(key) == 0 || len(key) > record.MaxKey {
		return fmt.Errorf("%w: an object key of %d bytes", ErrRecord, len(key))
	}
	return nil
}

// bucketFor is the bucket that a record names; nil, when the record is to be
// passed over.
func (r *Round) bucketFor(realm id.Realm, n id.Bucket) (*bucketRow, error) {
	b, err := r.bucketOf(n)
	if errors.Is(err, ErrNotFound) {
		return nil, r.mismatch("bucket %d is not there", n)
	}
	if err != nil {
		return nil, err
	}
	if b.Realm != realm {
		return nil, fmt.Errorf("%w: bucket %d belongs to realm %d, not %d", ErrRecord, n, b.Realm, realm)
	}
	return b, nil
}

func (r *Round) applyPut(p *record.Put) error {
	if err := checkKey(p.Key); err != nil {
		return err
	}
	if err := p.Manifest.Check(); err != nil {
		return fmt.Errorf("%w: %w", ErrRecord, err)
	}
	if err := cmp.Or(checkAttrs(&p.Attrs), checkLock(&p.Lock)); err != nil {
		return err
	}
	if len(p.ETag) > maxETag || len(p.Before) != len(p.Manifest.Roots) {
		return fmt.Errorf("%w: an ETag of %d bytes, %d counts for %d roots", ErrRecord, len(p.ETag), len(p.Before), len(p.Manifest.Roots))
	}
	if _, err := r.bucketOf(p.Bucket); errors.Is(err, ErrNotFound) {
		// Its settings are lost too: what comes shall not replace what is there.
		set := record.Settings{Versioning: true, Lock: p.Lock != (record.Lock{})}
		if _, err := r.lostBucket(p.In, p.Bucket, set); err != nil {
			return err
		}
	}
	b, err := r.bucketFor(p.In, p.Bucket)
	if b == nil {
		return err
	}
	for i := range p.Manifest.Roots {
		if err := r.gain(p.In, p.Manifest.Roots[i].Chunk, p.Before[i]); err != nil {
			return err
		}
	}
	o := Object{Version: r.version(), Time: p.Time, Manifest: p.Manifest, ETag: p.ETag, Attrs: p.Attrs, Lock: p.Lock}
	if err := r.add(b, p.Key, &o, p.Current); err != nil {
		return err
	}
	return r.drop(b, p.Key, p.Drops)
}

func (r *Round) applyDelete(d *record.Delete) error {
	if err := checkKey(d.Key); err != nil {
		return err
	}
	b, err := r.bucketFor(d.In, d.Bucket)
	if b == nil {
		return err
	}
	return r.add(b, d.Key, &Object{Version: r.version(), Deleted: true, Time: d.Time}, d.Current)
}

func (r *Round) applyPurge(p *record.Purge) error {
	if err := checkKey(p.Key); err != nil {
		return err
	}
	if len(p.Drops) == 0 {
		return fmt.Errorf("%w: a purge of nothing", ErrRecord)
	}
	b, err := r.bucketFor(p.In, p.Bucket)
	if b == nil {
		return err
	}
	return r.drop(b, p.Key, p.Drops)
}

// count adds a version to what a bucket and the store count, or takes one away.
func (r *Round) count(b *bucketRow, o *Object, n uint64) {
	if o.Deleted {
		b.Markers += n
		r.totals.Markers += n
	} else {
		size := n * o.Manifest.Size
		b.Versions += n
		b.Bytes += size
		r.totals.Versions += n
		r.totals.LogicalBytes += size
	}
	r.touchBucket(b)
}

// shown counts the keys that a plain listing shows; was and is say whether the
// key at hand is one of them.
func (r *Round) shown(b *bucketRow, was, is bool) {
	var n uint64
	switch {
	case is && !was:
		n = 1
	case was && !is:
		n = ^uint64(0)
	}
	b.Objects += n
	r.totals.Objects += n
}

// add makes o the newest version of a key.
func (r *Round) add(b *bucketRow, key []byte, o *Object, current id.Version) error {
	r.key = r.keys.object(r.key[:0], b.ID, key)
	r.out = o.append(r.out[:0])
	old, had, err := r.tx.Swap(r.key, r.out, r.value[:0])
	if err != nil {
		return err
	}
	r.value = old[:0]
	var was Object
	if had {
		if err := was.parse(old); err != nil {
			return err
		}
		if was.Version.Compare(o.Version) >= 0 {
			return fmt.Errorf("%w: an object's newest version is %v, above the one being made", ErrDamaged, was.Version)
		}
		r.key = r.keys.older(r.key[:0], b.ID, key, was.Version)
		if err := r.tx.Put(r.key, old); err != nil {
			return err
		}
	}
	if was.Version != current {
		if err := r.mismatch("an object's newest version is %v, the record names %v", was.Version, current); err != nil {
			return err
		}
	}
	r.shown(b, had && !was.Deleted, !o.Deleted)
	r.count(b, o, 1)
	return nil
}

// drop removes versions of a key for good.
func (r *Round) drop(b *bucketRow, key []byte, drops []record.Dropped) error {
	for i := range drops {
		if err := r.dropOne(b, key, &drops[i]); err != nil {
			return err
		}
	}
	return nil
}

func (r *Round) dropOne(b *bucketRow, key []byte, d *record.Dropped) error {
	if d.Version.Compare(r.version()) >= 0 {
		return fmt.Errorf("%w: version %v is dropped before it is made", ErrRecord, d.Version)
	}
	var o Object
	row, had, err := r.tx.Take(r.keys.older(nil, b.ID, key, d.Version), r.value[:0])
	if err != nil {
		return err
	}
	r.value = row[:0]
	if had {
		if err := o.parse(row); err != nil {
			return err
		}
	} else {
		o, err = r.current(b.ID, key)
		if errors.Is(err, ErrNotFound) || err == nil && o.Version != d.Version {
			return r.mismatch("version %v is to be dropped and is not there", d.Version)
		}
		if err != nil {
			return err
		}
		if err := r.promote(b, key, &o); err != nil {
			return err
		}
	}
	if o.Lock.Hold {
		if err := r.mismatch("version %v is dropped, and is held", d.Version); err != nil {
			return err
		}
	}
	r.count(b, &o, ^uint64(0))
	if len(d.Before) != len(o.Manifest.Roots) {
		if err := r.mismatch("version %v has %d roots, the record names %d counts", d.Version, len(o.Manifest.Roots), len(d.Before)); err != nil {
			return err
		}
	}
	for i := range o.Manifest.Roots {
		c := o.Manifest.Roots[i].Chunk
		var before uint64
		if i < len(d.Before) {
			before = d.Before[i]
		}
		if err := r.lose(b.Realm, c, before); err != nil {
			return err
		}
	}
	return nil
}

// promote takes the current version's row away and puts the next older version,
// if there is one, into its place.
func (r *Round) promote(b *bucketRow, key []byte, was *Object) error {
	at := r.keys.object(nil, b.ID, key)
	c := r.tx.Cursor(append(bytes.Clone(at), 0), r.keys.behind(nil, b.ID, key), false)
	defer c.Close()
	if !c.Next() {
		if err := c.Err(); err != nil {
			return err
		}
		r.shown(b, !was.Deleted, false)
		_, err := r.remove(at)
		return err
	}
	v, err := c.Value()
	if err != nil {
		return err
	}
	var o Object
	if err := o.parse(v); err != nil {
		return err
	}
	row := bytes.Clone(v)
	if _, err := r.tx.Delete(bytes.Clone(c.Key())); err != nil {
		return err
	}
	r.shown(b, !was.Deleted, !o.Deleted)
	return r.tx.Put(at, row)
}

func checkSettings(s *record.Settings) error {
	if len(s.Compression) > 64 || len(s.Profile) > 64 || badText(s.Compression, s.Profile) || s.Lock && !s.Versioning ||
		s.RetentionMode != "" && (!s.Lock || s.RetentionMode != record.Governance && s.RetentionMode != record.Compliance) || (s.RetentionMode == "") != (s.RetentionDays == 0) {
		return fmt.Errorf("%w: settings", ErrRecord)
	}
	return nil
}

func (r *Round) applyBucketCreate(c *record.BucketCreate) error {
	if err := checkSettings(&c.Settings); err != nil {
		return err
	}
	if c.In == 0 || c.Bucket == 0 || c.Name == "" || len(c.Name) > record.MaxBucketName || badText(c.Name) {
		return fmt.Errorf("%w: bucket %d of realm %d with a name of %d bytes", ErrRecord, c.Bucket, c.In, len(c.Name))
	}
	if c.Bucket != r.totals.NextBucket {
		if err := r.mismatch("bucket %d is made, the next is %d", c.Bucket, r.totals.NextBucket); err != nil {
			return err
		}
	}
	if _, err := r.reader.bucketID(c.Name); !errors.Is(err, ErrNotFound) {
		if err == nil {
			err = r.mismatch("bucket %d is made under a name that is taken", c.Bucket)
		}
		return err // in a rebuild it is passed over: the name has a bucket
	}
	if _, err := r.bucketOf(c.Bucket); !errors.Is(err, ErrNotFound) {
		if err == nil {
			err = r.mismatch("bucket %d is made and is there", c.Bucket)
		}
		return err
	}
	r.totals.NextBucket = max(r.totals.NextBucket, c.Bucket+1)
	r.totals.Buckets++
	b := &bucketRow{Bucket: Bucket{ID: c.Bucket, Name: c.Name, Realm: c.In, Time: c.Time, Settings: c.Settings}}
	r.buckets[c.Bucket] = b
	r.touchBucket(b)
	return r.put(r.keys.bucketName(r.key[:0], c.Name), appendBucketID(r.out[:0], c.Bucket))
}

func (r *Round) applyBucketSet(s *record.BucketSet) error {
	if err := checkSettings(&s.Settings); err != nil {
		return err
	}
	if _, err := r.bucketOf(s.Bucket); errors.Is(err, ErrNotFound) {
		if _, err := r.lostBucket(s.In, s.Bucket, s.Old); err != nil {
			return err
		}
	}
	b, err := r.bucketFor(s.In, s.Bucket)
	if b == nil {
		return err
	}
	if b.Settings != s.Old {
		if err := r.mismatch("bucket %d has other settings than the record names", s.Bucket); err != nil {
			return err
		}
	}
	b.Settings = s.Settings
	r.touchBucket(b)
	return nil
}

func (r *Round) applyBucketDelete(d *record.BucketDelete) error {
	b, err := r.bucketFor(d.In, d.Bucket)
	if b == nil {
		return err
	}
	if b.Name != d.Name {
		if err := r.mismatch("bucket %d has another name", d.Bucket); err != nil {
			return err
		}
	}
	if err := r.clear(b); err != nil {
		return err
	}
	r.totals.Buckets--
	r.changed = true
	b.gone = true
	delete(r.names, b.Name)
	if _, err := r.remove(r.keys.bucketName(r.key[:0], b.Name)); err != nil {
		return err
	}
	_, err = r.remove(r.keys.bucket(r.key[:0], b.ID))
	return err
}

// clear makes sure that a bucket is empty. In a rebuild what is left in it goes;
// edges are counted again at the end.
func (r *Round) clear(b *bucketRow) error {
	from := r.keys.objects(nil, b.ID)
	var left [][]byte
	err := r.tx.Scan(from, next(bytes.Clone(from)), false, func(k, _ []byte) error {
		left = append(left, bytes.Clone(k))
		if r.mode == Strict {
			return kv.Stop
		}
		return nil
	})
	if err != nil || len(left) == 0 && b.BucketUsage == (BucketUsage{}) {
		return err
	}
	if err := r.mismatch("bucket %d is deleted and is not empty", b.ID); err != nil {
		return err
	}
	for _, k := range left {
		if _, err := r.tx.Delete(k); err != nil {
			return err
		}
	}
	r.totals.Objects -= b.Objects
	r.totals.Versions -= b.Versions
	r.totals.Markers -= b.Markers
	r.totals.LogicalBytes -= b.Bytes
	return nil
}

func (r *Round) applyNodes(n *record.Nodes) error {
	if err := checkNodes(n); err != nil {
		return err
	}
	old, err := r.reader.Nodes()
	if err != nil {
		return err
	}
	if n.Version != old.Version+1 {
		if err := r.mismatch("the node set has version %d, the record makes %d", old.Version, n.Version); err != nil {
			return err
		}
	}
	return r.setNodes(&old, n)
}

// setNodes replaces the rows of a node set.
func (r *Round) setNodes(old, n *record.Nodes) error {
	// Only rows that differ are written.
	rows := map[string][]byte{}
	r.nodeRows(n, func(key, value []byte) { rows[string(key)] = value })
	var firstErr error
	r.nodeRows(old, func(key, value []byte) {
		if firstErr != nil {
			return
		}
		if now, there := rows[string(key)]; !there {
			_, firstErr = r.tx.Delete(key)
		} else if bytes.Equal(now, value) {
			delete(rows, string(key))
		}
	})
	if firstErr != nil {
		return firstErr
	}
	for key, value := range rows { // in any order: the transaction sorts them
		if err := r.tx.Put([]byte(key), value); err != nil {
			return err
		}
	}
	return nil
}

// nodeRows makes the rows of a node set.
func (r *Round) nodeRows(n *record.Nodes, fn func(key, value []byte)) {
	s := nodeSet{version: n.Version, m: n.M, want: n.Want}
	fn(r.keys.nodes(nil, nodesHead), s.append(nil))
	for i := range n.Members {
		fn(append(r.keys.nodes(nil, nodesMember), n.Members[i].Name...), appendMember(nil, &n.Members[i]))
	}
	for _, id := range n.LogNodes {
		fn(append(r.keys.nodes(nil, nodesLog), id[:]...), appendNothing(nil))
	}
	for _, id := range n.Gone {
		fn(append(r.keys.nodes(nil, nodesGone), id[:]...), appendNothing(nil))
	}
}

// checkNodes holds a node set to its bounds and its order: rows give it back
// sorted, and it must be the same.
func checkNodes(n *record.Nodes) error {
	bad := func(what string) error { return fmt.Errorf("%w: node set %d: %s", ErrRecord, n.Version, what) }
	if len(n.Members) > record.MaxNodes || len(n.LogNodes) > record.MaxNodes || len(n.Gone) > record.MaxNodes {
		return bad("too many nodes")
	}
	if n.Want != 0 && (n.Want <= n.M || n.Want > maxLosses) {
		return bad(fmt.Sprintf("from %d losses to %d", n.M, n.Want))
	}
	for i, m := range n.Members {
		switch {
		case m.ID.IsZero() || m.Name == "" || len(m.Name) > maxMemberName || badText(m.Name) || len(m.Labels) > maxLabels:
			return bad("a member beyond the bounds")
		case i > 0 && n.Members[i-1].Name >= m.Name:
			return bad("members out of order")
		}
		for _, l := range m.Labels {
			if len(l) > maxLabel || badText(l) {
				return bad("a label beyond the bounds")
			}
		}
	}
	for _, ids := range [...][]id.Node{n.LogNodes, n.Gone} {
		for i := range ids {
			if ids[i].IsZero() || i > 0 && bytes.Compare(ids[i-1][:], ids[i][:]) >= 0 {
				return bad("nodes out of order")
			}
		}
	}
	return nil
}

func (r *Round) applyReshard(s *record.Reshard) error {
	had := !s.Old.Node.IsZero()
	if s.New.Index != s.Index || had && s.Old.Index != s.Index || s.New.Node.IsZero() {
		return fmt.Errorf("%w: a new place of shard %d for shard %d", ErrRecord, s.New.Index, s.Index)
	}
	row, err := r.packPlace(s.Pack)
	if errors.Is(err, ErrNotFound) {
		return r.mismatch("a shard of pack %v moves, which is not there", s.Pack)
	}
	if err != nil {
		return err
	}
	if s.Pack == r.head.Pack {
		// Its places are known when this round's pack names them.
		return r.mismatch("a shard of the head moves")
	}
	if int(s.Index) >= int(row.K)+int(row.M) && row.Size > 0 {
		return fmt.Errorf("%w: shard %d of a pack of %d+%d", ErrRecord, s.Index, row.K, row.M)
	} else if int(s.Index) >= int(row.K)+int(row.M) {
		return r.mismatch("shard %d moves of a pack of which only %d are known", s.Index, int(row.K)+int(row.M)) // it was given up
	}
	// The place that is named, else any of the same shard.
	at := slices.Index(row.Shards, s.Old)
	if at < 0 {
		at = slices.IndexFunc(row.Shards, func(p Place) bool { return p.Index == s.Index })
	}
	if found := at >= 0; found != had || found && row.Shards[at] != s.Old {
		if err := r.mismatch("shard %d of pack %v is elsewhere than the record names", s.Index, s.Pack); err != nil {
			return err
		}
	}
	before := row.shards()
	r.tallied.add(&row, less)
	switch {
	case at >= 0 && row.Shards[at] != s.New && slices.Contains(row.Shards, s.New):
		row.Shards = slices.Delete(row.Shards, at, at+1) // it lay on two nodes, and leaves one
	case at >= 0:
		row.Shards[at] = s.New
	default:
		at, _ = slices.BinarySearchFunc(row.Shards, s.Index, func(p Place, i uint8) int { return cmp.Compare(p.Index, i) })
		row.Shards = slices.Insert(row.Shards, at, s.New)
	}
	r.tallied.add(&row, 1)
	r.countShards(&row, before)
	return r.put(r.keys.pack(r.key[:0], &s.Pack, packPlace), row.append(r.out[:0]))
}
