package index

import (
	"errors"
	"fmt"

	"cairn/id"
	"cairn/index/kv"
	"cairn/pack"
)

// Round is a log pack being applied: first the chunks in its payload and its
// records, each seeing those before it, then, once the pack is durable, its place
// in the chain ([Round.Commit]). It reads as it would after the commit, except
// that Head and the pack's own row are not there yet. After an error of AddEntry
// or Apply it can only be discarded. It belongs to one goroutine.
type Round struct {
	reader
	x    *Index
	tx   *kv.Tx
	mode Mode
	err  error // the first one; nothing is committed after it
	done bool
	met  bool // something that the log does not name; in a rebuild

	pack    id.Pack
	seq     uint64
	head    Head // before this round
	clock   int64
	entries int
	records uint32

	// Rows that most records change, written when something asks for them.
	totals  Totals
	changed bool                 // totals were
	names   map[string]id.Bucket // those that were asked for
	buckets map[id.Bucket]*bucketRow
	usage   map[id.Pack]*usageRow
	dirtyB  []*bucketRow
	dirtyU  []*usageRow

	// moved holds the chunks whose rows a record of this round made, revived or
	// pointed elsewhere: the order among entries and records would matter.
	moved map[chunkKey]struct{}
	// lists holds the list chunks whose rows this round made and whose children
	// are not counted yet.
	lists map[chunkKey]struct{}
	// tallied is what the round has changed of the shards that rows name.
	tallied tallied
	after   Head   // set by finish
	out     []byte // encoded values
}

type chunkKey struct {
	realm id.Realm
	chunk id.Chunk
}

type bucketRow struct {
	Bucket
	dirty bool
	gone  bool
}

type usageRow struct {
	PackUsage
	pack  id.Pack
	dirty bool
	gone  bool
}

// What Commit writes beyond what Size has counted by then: the format, the head,
// the pack's own two rows and the predecessor's, with as many places as there
// can be. TestSizeHoldsTheCommit.
const (
	commitKeys  = 6
	commitBytes = 6 << 10
)

// The most that one of the rows kept decoded takes in a transaction, key and all.
// TestSizeHoldsKeptRows.
const (
	keptRow   = 256 // of a bucket, and the totals
	keptUsage = 96
)

// Size is what the transaction holds and what Commit will add to it, in keys and
// bytes, counted as the database does against its limits. What a begin pack
// carries is not in it. A row that is kept decoded may be counted twice.
func (r *Round) Size() (keys, bytes int) {
	s := r.tx.Size()
	return s.Entries + commitKeys + 1 + len(r.dirtyB) + len(r.dirtyU),
		s.Bytes + commitBytes + (1+len(r.dirtyB))*keptRow + len(r.dirtyU)*keptUsage
}

// Discard ends the round without a trace. After Commit it does nothing.
func (r *Round) Discard() {
	if r.done {
		return
	}
	r.done = true
	r.tx.Discard()
	r.x.unlock()
}

// load reads what the round begins from.
func (r *Round) load() (err error) {
	if r.head, err = r.reader.Head(); err != nil {
		return err
	}
	r.clock = r.head.Clock
	r.totals, err = r.reader.Totals()
	return err
}

func (r *Round) start() (err error) {
	if err := r.load(); err != nil {
		return err
	}
	switch {
	case r.seq == 0 || r.pack.IsZero():
		return fmt.Errorf("%w: a log pack without a sequence or an ID", ErrRecord)
	case r.seq <= r.head.Seq:
		return fmt.Errorf("%w: sequence %d, the head is %d", ErrApplied, r.seq, r.head.Seq)
	case r.seq != r.head.Seq+1:
		return fmt.Errorf("%w: sequence %d after %d", ErrGap, r.seq, r.head.Seq)
	}
	switch _, err := r.packPlace(r.pack); {
	case err == nil:
		return fmt.Errorf("%w: pack %v is in the index", ErrApplied, r.pack)
	case !errors.Is(err, ErrNotFound):
		return err
	}
	r.keep(&usageRow{pack: r.pack})
	return nil
}

// Commit makes the round the index's head. link describes the pack as it was
// made durable; its entries and records are those that were given to the round,
// in order.
func (r *Round) Commit(link Link) error {
	if err := r.ready(); err != nil {
		return err
	}
	defer r.Discard()
	if err := r.fail(r.finish(&link)); err != nil {
		return err
	}
	if err := r.tx.Commit(); err != nil {
		r.x.tally.forget() // it may have been committed
		return fmt.Errorf("apply sequence %d: %w", r.seq, err)
	}
	r.x.tally.committed(&r.tallied, r.after, r.totals)
	if r.met {
		r.x.rebuilding.Store(rebuildMet)
	}
	return nil
}

// ready says why the round takes nothing any more.
func (r *Round) ready() error {
	if r.done {
		return fmt.Errorf("round: %w", ErrClosed)
	}
	return r.err
}

// fail remembers the first error.
func (r *Round) fail(err error) error {
	if err == nil {
		return nil
	}
	err = fmt.Errorf("apply sequence %d: %w", r.seq, err)
	if r.err == nil {
		r.err = err
	}
	return err
}

func (r *Round) finish(link *Link) error {
	h := link.Header
	switch {
	case h.Kind != pack.Log || h.Log != r.x.cfg.Log:
		return fmt.Errorf("%w: a %v pack of log %d", ErrRecord, h.Kind, h.Log)
	case h.Pack != r.pack || h.Seq != r.seq:
		return fmt.Errorf("%w: the round was of pack %v", ErrRecord, r.pack)
	case len(link.Entries) != r.entries || len(link.Records) != int(r.records):
		return fmt.Errorf("%w: %d entries and %d records, of which %d and %d were applied", ErrRecord, len(link.Entries), len(link.Records), r.entries, r.records)
	case h.Prev != r.head.Pack:
		return fmt.Errorf("%w: pack %v names %v as its predecessor, the head is %v", ErrGap, h.Pack, h.Prev, r.head.Pack)
	case h.Epoch < r.head.Epoch || h.Begin != (h.Epoch > r.head.Epoch):
		return fmt.Errorf("%w: epoch %d after %d", ErrGap, h.Epoch, r.head.Epoch)
	case !h.Begin && len(link.Carried) > 0:
		return fmt.Errorf("%w: an ordinary log pack that carries", ErrRecord)
	case (r.head.Seq == 0) != (len(link.Prev) == 0) || len(link.Prev) > pack.MaxPlaces:
		return fmt.Errorf("%w: %d places of the predecessor", ErrRecord, len(link.Prev))
	}
	if link.Time < r.head.Time {
		if err := r.mismatch("the log's time goes back"); err != nil {
			return err
		}
	}
	if n := len(r.lists); n > 0 {
		if err := r.mismatch("%d list chunks without a record of their children", n); err != nil {
			return err
		}
	}
	if r.head.Seq == 0 {
		if err := r.put(r.keys.table(r.key[:0], tableFormat), appendUints(r.out[:0], formatVersion)); err != nil {
			return err
		}
	} else if err := r.settle(link.Prev); err != nil {
		return err
	}
	own := PackRow{Kind: pack.Log, K: h.K, M: h.M, Slice: h.SliceLen, Size: uint32(h.ShardLen()), Body: uint32(h.SliceOffset()),
		Writer: h.Writer, Counter: h.Counter, Seq: h.Seq}
	if err := r.addPack(h.Pack, &own); err != nil {
		return err
	}
	for _, c := range link.Carried {
		if err := r.carry(c); err != nil {
			return err
		}
	}
	r.after = Head{Seq: h.Seq, Pack: h.Pack, Epoch: h.Epoch, Attempt: h.Attempt, Time: link.Time, Logged: r.head.Logged + link.Logged, Clock: r.clock}
	if err := r.put(r.keys.table(r.key[:0], tableHead), r.after.append(r.out[:0])); err != nil {
		return err
	}
	r.changed = true
	return r.flush()
}

// settle writes the places of the head's shards, which its successor names.
func (r *Round) settle(places []Place) error {
	row, err := r.packPlace(r.head.Pack)
	if errors.Is(err, ErrNotFound) {
		return r.mismatch("the head's pack has no row")
	}
	if err != nil {
		return err
	}
	if len(row.Shards) > 0 {
		if err := r.mismatch("the places of the head's shards are known already"); err != nil {
			return err
		}
	}
	for _, p := range places {
		if int(p.Index) >= int(row.K)+int(row.M) {
			return fmt.Errorf("%w: shard %d of a pack of %d+%d", ErrRecord, p.Index, row.K, row.M)
		}
	}
	before := row.shards()
	r.tallied.add(&row, less)
	row.Shards = places
	r.tallied.add(&row, 1)
	r.countShards(&row, before)
	return r.put(r.keys.pack(r.key[:0], &r.head.Pack, packPlace), row.append(r.out[:0]))
}

// countShards brings the totals up to the places of a pack that counted for so
// many shards before.
func (r *Round) countShards(row *PackRow, before uint64) {
	n := (row.shards() - before) * uint64(row.Size)
	r.totals.ShardBytes += n
	r.totals.ParityBytes += n
	r.changed = true
}

// addPack writes the row of a new pack.
func (r *Round) addPack(p id.Pack, row *PackRow) error {
	r.tallied.add(row, 1)
	t := &r.totals
	t.Packs++
	t.ShardBytes += uint64(row.Size) * row.shards()
	t.ParityBytes += uint64(row.Size) * (row.shards() - uint64(row.K))
	return r.put(r.keys.pack(r.key[:0], &p, packPlace), row.append(r.out[:0]))
}

// carry points what lies in a carried pack at its copy in this one.
func (r *Round) carry(c Carried) error {
	type resident struct {
		off   uint32
		realm id.Realm
		chunk id.Chunk
	}
	var all []resident
	err := r.eachResident(c.Pack, func(off uint32, realm id.Realm, chunk id.Chunk) error {
		all = append(all, resident{off, realm, chunk})
		return nil
	})
	if err != nil {
		return err
	}
	for _, m := range all {
		row, err := r.reader.Chunk(m.realm, m.chunk)
		if errors.Is(err, ErrNotFound) || err == nil && (row.Pack != c.Pack || row.Offset != m.off) {
			return fmt.Errorf("%w: a resident that no chunk row points at", ErrDamaged)
		}
		if err != nil {
			return err
		}
		if row.End() > uint64(c.Len) || uint64(c.Off)+row.End() > max32 {
			return fmt.Errorf("%w: a carried payload of %d bytes lacks a chunk", ErrRecord, c.Len)
		}
		if err := r.usageAdd(r.pack, uint64(row.SealedLen), 0, 0); err != nil {
			return err
		}
		to := row.Entry
		to.Offset += c.Off
		if err := r.point(&row, r.pack, to); err != nil {
			return err
		}
		if err := r.putChunk(&row); err != nil {
			return err
		}
	}
	return nil
}

// mismatch is called when a record finds something else than it names. nil: go
// on as if it had found it.
func (r *Round) mismatch(format string, args ...any) error {
	what := fmt.Sprintf(format, args...)
	if r.mode == Strict {
		return fmt.Errorf("%w: record %d: %s", ErrDivergent, r.records, what)
	}
	r.x.cfg.Mismatch(Mismatch{Seq: r.seq, Pos: r.records, What: what})
	if !r.met {
		r.met = true
		return r.put(r.keys.loadingPart(r.key[:0], partRebuild), appendUints(r.out[:0], rebuildMet))
	}
	return nil
}

// put writes a row. key may be r.key and value r.out, grown.
func (r *Round) put(key, value []byte) error {
	r.key, r.out = key[:0], value[:0]
	return r.tx.Put(key, value)
}

func (r *Round) putChunk(row *ChunkRow) error {
	return r.put(r.keys.chunk(r.key[:0], row.Realm, &row.Chunk), row.append(r.out[:0]))
}

// remove deletes the row with the key.
func (r *Round) remove(key []byte) (had bool, err error) {
	r.key = key[:0]
	return r.tx.Delete(key)
}

// flush writes the rows that are kept decoded.
func (r *Round) flush() error {
	if err := r.ready(); err != nil {
		return err
	}
	if r.changed {
		r.changed = false
		if err := r.put(r.keys.table(r.key[:0], tableTotals), r.totals.append(r.out[:0])); err != nil {
			return r.fail(err)
		}
	}
	for _, b := range r.dirtyB {
		b.dirty = false
		if b.gone {
			continue
		}
		if err := r.put(r.keys.bucket(r.key[:0], b.ID), b.append(r.out[:0])); err != nil {
			return r.fail(err)
		}
	}
	r.dirtyB = r.dirtyB[:0]
	for _, u := range r.dirtyU {
		u.dirty = false
		if u.gone {
			continue
		}
		if err := r.put(r.keys.pack(r.key[:0], &u.pack, packUsage), u.append(r.out[:0])); err != nil {
			return r.fail(err)
		}
	}
	r.dirtyU = r.dirtyU[:0]
	return nil
}

// bucketOf is the decoded row of a bucket; after a change, touchBucket.
func (r *Round) bucketOf(n id.Bucket) (*bucketRow, error) {
	if b := r.buckets[n]; b != nil {
		if b.gone {
			return nil, ErrNotFound
		}
		return b, nil
	}
	b, err := r.reader.BucketByID(n)
	if err != nil {
		return nil, err
	}
	row := &bucketRow{Bucket: b}
	r.buckets[n] = row
	return row, nil
}

func (r *Round) touchBucket(b *bucketRow) {
	r.changed = true
	if !b.dirty {
		b.dirty = true
		r.dirtyB = append(r.dirtyB, b)
	}
}

func (r *Round) keep(u *usageRow) {
	r.usage[u.pack] = u
	u.dirty = true
	r.dirtyU = append(r.dirtyU, u)
}

// usageOf is the decoded usage of a pack.
func (r *Round) usageOf(p id.Pack) (*usageRow, error) {
	if u := r.usage[p]; u != nil {
		return u, nil
	}
	got, err := r.reader.packUsage(p)
	if err != nil {
		return nil, err
	}
	u := &usageRow{PackUsage: got, pack: p}
	r.usage[p] = u
	return u, nil
}

// usageAdd changes a pack's usage, and the totals with it.
func (r *Round) usageAdd(p id.Pack, payload, live, residents uint64) error {
	u, err := r.usageOf(p)
	if err != nil {
		return err
	}
	if !u.dirty {
		u.dirty = true
		r.dirtyU = append(r.dirtyU, u)
	}
	// Unsigned arithmetic wraps: what is taken away is added as its complement.
	u.Payload += payload
	u.Live += live
	u.Residents += residents
	r.totals.PayloadBytes += payload
	r.totals.LiveBytes += live
	r.changed = true
	return nil
}

// The rows kept decoded are written before they are read as rows.

// Totals implements [Reader].
func (r *Round) Totals() (Totals, error) { return r.totals, r.ready() }

// NextBucket is the number that the next bucket must get.
func (r *Round) NextBucket() (id.Bucket, error) { return r.totals.NextBucket, r.ready() }

// Bucket implements [Reader].
func (r *Round) Bucket(name string) (Bucket, error) {
	if err := r.ready(); err != nil {
		return Bucket{}, err
	}
	n, ok := r.names[name]
	if !ok {
		var err error
		if n, err = r.reader.bucketID(name); err != nil {
			return Bucket{}, err
		}
		r.names[name] = n
	}
	b, err := r.bucketOf(n)
	if errors.Is(err, ErrNotFound) || err == nil && b.Name != name {
		err = fmt.Errorf("%w: a bucket's name and its row disagree", ErrDamaged)
	}
	if err != nil {
		return Bucket{}, err
	}
	return b.Bucket, nil
}

// BucketByID implements [Reader].
func (r *Round) BucketByID(n id.Bucket) (Bucket, error) {
	if err := r.ready(); err != nil {
		return Bucket{}, err
	}
	b, err := r.bucketOf(n)
	if err != nil {
		return Bucket{}, err
	}
	return b.Bucket, nil
}

// Buckets implements [Reader].
func (r *Round) Buckets() ([]Bucket, error) {
	if err := r.flush(); err != nil {
		return nil, err
	}
	return r.reader.Buckets()
}

// Pack implements [Reader].
func (r *Round) Pack(p id.Pack) (PackRow, error) {
	if err := r.flush(); err != nil {
		return PackRow{}, err
	}
	return r.reader.Pack(p)
}

// EachPack implements [Reader]. The round's own pack is not among them.
func (r *Round) EachPack(fn func(id.Pack, PackRow) error) error {
	if err := r.flush(); err != nil {
		return err
	}
	return r.reader.eachPackBut(r.pack, fn)
}

var (
	_ Reader = (*reader)(nil)
	_ Reader = (*Round)(nil)
)
