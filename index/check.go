package index

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"

	"cairn/id"
	"cairn/index/kv"
	"cairn/pack"
)

// Report is what [Index.Check] found.
type Report struct {
	Rows     kv.Report // what the rows themselves say: count, digest
	Head     Head
	Buckets  uint64
	Versions uint64 // of objects, delete markers included
	Chunks   uint64
	Packs    uint64
	Edges    uint64
	// Found is the number of differences, Findings the first of them in words,
	// without object keys.
	Found    int
	Findings []string
}

const (
	maxFindings = 100
	// countedAtOnce is how many chunks are counted in one sweep over all
	// manifests. They take 56 bytes each.
	countedAtOnce = 1 << 19
)

// Check proves the index: first that all rows are there as they were written
// ([kv.DB.Check]), then, in one point in time, that they agree with each other:
// every count equals the edges that lead to the chunk, every chunk row has its
// resident row and the other way round, packs, buckets and totals equal the sums
// over their rows. Differences are [ErrDamaged]; the report names them. Memory is
// bounded; an index with more than half a million chunks is swept more than once.
func (x *Index) Check(ctx context.Context) (Report, error) {
	var out Report
	if x.loading.Load() {
		return out, ErrLoading
	}
	rows, err := x.db.Check(ctx)
	out.Rows = rows
	if err != nil {
		return out, err
	}
	err = x.db.View(func(s *kv.Snapshot) error {
		st, err := s.State()
		if err != nil {
			return err
		}
		a := audit{ctx: ctx, r: x.reader(s), out: &out, atOnce: countedAtOnce}
		if err := a.run(); err != nil {
			return err
		}
		if a.rows != st.Rows {
			a.find("%d rows of %d belong to a table", a.rows, st.Rows)
		}
		return nil
	})
	if err == nil && out.Found > 0 {
		err = fmt.Errorf("%w: %d differences: %s", ErrDamaged, out.Found, out.Findings[0])
	}
	return out, err
}

// Recount makes every count what the manifests and lists say it is, and what
// packs, buckets and totals count what their rows say, as a rebuild must at its
// end. It returns how many rows it changed. It is not one transaction: after an
// error it is run again. Damage of another kind than a wrong number is
// [ErrDamaged]. No round may be open; none begins while it runs.
func (x *Index) Recount(ctx context.Context) (changed int, err error) {
	x.lock()
	defer x.unlock()
	defer x.tally.forget()
	if x.loading.Load() {
		return 0, ErrLoading
	}
	f := fixer{ctx: ctx, db: x.db}
	defer f.discard()
	var out Report
	// The sums need the right counts, so they are made in a view of their own.
	for _, step := range []func(*audit) error{(*audit).counts, (*audit).condemnations, (*audit).sums} {
		err := x.db.View(func(s *kv.Snapshot) error {
			return step(&audit{ctx: ctx, r: x.reader(s), out: &out, fix: &f, atOnce: countedAtOnce})
		})
		if err == nil {
			err = f.commit()
		}
		if err != nil {
			return f.rows, err
		}
	}
	if out.Found > 0 {
		return f.rows, fmt.Errorf("%w: %d differences that are not counts: %s", ErrDamaged, out.Found, out.Findings[0])
	}
	return f.rows, nil
}

// fixer writes rows in transactions of a bounded size.
type fixer struct {
	ctx  context.Context
	db   *kv.DB
	tx   *kv.Tx
	rows int
}

func (f *fixer) put(key, value []byte) error {
	return f.change(func(tx *kv.Tx) error { return tx.Put(key, value) })
}

func (f *fixer) remove(key []byte) error {
	return f.change(func(tx *kv.Tx) error {
		_, err := tx.Delete(key)
		return err
	})
}

func (f *fixer) change(fn func(*kv.Tx) error) (err error) {
	if f.tx == nil {
		if f.tx, err = f.db.Begin(f.ctx); err != nil {
			return err
		}
	}
	if err := fn(f.tx); err != nil {
		return err
	}
	f.rows++
	if f.tx.Size().Entries >= 4096 {
		return f.commit()
	}
	return nil
}

func (f *fixer) commit() error {
	if f.tx == nil {
		return nil
	}
	tx := f.tx
	f.tx = nil
	return tx.Commit()
}

func (f *fixer) discard() {
	if f.tx != nil {
		f.tx.Discard()
	}
}

// audit compares rows with each other.
type audit struct {
	ctx    context.Context
	r      *reader
	out    *Report
	fix    *fixer // nil: numbers that are wrong are findings
	atOnce int
	stop   func() bool // nil, or whether enough was scanned

	steps  int
	rows   uint64 // of all tables
	realms map[id.Bucket]id.Realm
	totals Totals // as they should be
	lists  uint64 // list chunks
	pieces uint64 // of snapshots
	// condemned counts the chunks whose state says so.
	condemned uint64
}

func (a *audit) find(format string, args ...any) {
	a.out.Found++
	if len(a.out.Findings) < maxFindings {
		a.out.Findings = append(a.out.Findings, fmt.Sprintf(format, args...))
	}
}

// wrong reports a number that is not what it should be, or writes the row that
// is right.
func (a *audit) wrong(key, value []byte, format string, args ...any) error {
	if a.fix == nil {
		a.find(format, args...)
		return nil
	}
	return a.fix.put(key, value)
}

// tick looks at the context now and then.
func (a *audit) tick() error {
	if a.steps++; a.steps%1024 == 0 && a.ctx.Err() != nil {
		return context.Cause(a.ctx)
	}
	return nil
}

// scan hands the rows of a table to fn, without what all keys begin with.
func (a *audit) scan(table byte, fn func(key, value []byte) error) error {
	from := a.r.keys.table(nil, table)
	return a.r.kv.Scan(from, next(bytes.Clone(from)), false, func(k, v []byte) error {
		if err := a.tick(); err != nil {
			return err
		}
		if a.stop != nil && a.stop() {
			return kv.Stop
		}
		return fn(k[len(from):], v)
	})
}

func (a *audit) run() error {
	if err := a.head(); err != nil {
		return err
	}
	if err := a.counts(); err != nil {
		return err
	}
	if err := a.condemnations(); err != nil {
		return err
	}
	return a.sums()
}

// condemnations compares the chunks that are condemned with what is said of when.
func (a *audit) condemnations() error {
	var found uint64
	err := a.r.EachCondemned(func(c Condemnation) error {
		if err := a.tick(); err != nil {
			return err
		}
		a.rows++
		row, err := a.r.Chunk(c.Realm, c.Chunk)
		switch {
		case errors.Is(err, ErrNotFound):
			a.find("a chunk is condemned that is not there")
		case err != nil:
			return err
		case row.State == Live || row.Refs > 0:
			if a.fix != nil {
				if row.State == Condemned {
					row.State = Live
					if err := a.fix.put(a.r.keys.chunk(nil, c.Realm, &c.Chunk), row.append(nil)); err != nil {
						return err
					}
				}
				return a.fix.remove(a.r.keys.condemned(nil, c.Realm, &c.Chunk))
			}
			a.find("a %v chunk with %d edges is condemned", row.State, row.Refs)
		case row.State == Condemned:
			found++
		}
		return nil
	})
	if err == nil && a.fix == nil && found != a.condemned {
		a.find("%d chunks are condemned, of %d it is said since when", a.condemned, found)
	}
	return err
}

func (a *audit) head() error {
	h, err := a.r.Head()
	if err != nil {
		return err
	}
	a.out.Head = h
	for _, table := range [...]byte{tableFormat, tableHead, tableTotals, tableNodes, tableBucketName, tableLoading, tableLoss} {
		if err := a.scan(table, func(_, _ []byte) error { a.rows++; return nil }); err != nil {
			return err
		}
	}
	if h.Seq == 0 {
		return nil
	}
	if err := a.snapshots(); err != nil {
		return err
	}
	losses, err := a.r.Losses()
	if err != nil {
		return err
	}
	for i, l := range losses {
		if l.From == 0 || l.From > l.To || !l.End() && (l.To > h.Seq || i > 0 && !losses[i-1].End() && l.From <= losses[i-1].To) {
			a.find("sequences %d to %d are lost, the head is %d", l.From, l.To, h.Seq)
		}
	}
	nodes, err := a.r.Nodes()
	if err != nil {
		return err
	}
	if nodes.Version == 0 && len(nodes.Members) > 0 {
		a.find("members without a node set")
	}
	row, err := a.r.packPlace(h.Pack)
	switch {
	case errors.Is(err, ErrNotFound):
		a.find("the head's pack is not there")
	case err != nil:
		return err
	case row.Seq != h.Seq || len(row.Shards) > 0:
		a.find("the head's pack has sequence %d and %d places, the head has %d", row.Seq, len(row.Shards), h.Seq)
	}
	return nil
}

// snapshots compares snapshots, their pieces and the packs of these.
func (a *audit) snapshots() error {
	kept, err := a.r.Snapshots()
	if err != nil {
		return err
	}
	a.rows += uint64(len(kept))
	if len(kept) > 2 {
		a.find("%d snapshots are kept", len(kept))
	}
	pieces := map[uint64]uint32{}
	err = a.scan(tablePiece, func(k, v []byte) error {
		a.rows++
		p, err := parsePieceRow(k, v)
		if err != nil {
			return err
		}
		pieces[p.Number]++
		a.pieces++
		row, err := a.r.packPlace(p.Pack)
		switch {
		case errors.Is(err, ErrNotFound) || err == nil && row.Kind != pack.Snapshot:
			a.find("piece %d of snapshot %d has no pack", p.Piece, p.Number)
		case err != nil:
			return err
		}
		return nil
	})
	if err != nil {
		return err
	}
	for _, s := range kept {
		if pieces[s.Number] != s.Pieces {
			a.find("snapshot %d has %d pieces of %d", s.Number, pieces[s.Number], s.Pieces)
		}
	}
	return nil
}

// counted is a chunk whose edges are being counted.
type counted struct {
	chunk  id.Chunk
	realm  id.Realm
	stored uint64
	edges  uint64
}

func (c *counted) compare(realm id.Realm, chunk *id.Chunk) int {
	if c.realm != realm {
		if c.realm < realm {
			return -1
		}
		return 1
	}
	return bytes.Compare(c.chunk[:], chunk[:])
}

// counts compares every chunk's count with the edges that lead to it.
func (a *audit) counts() error {
	if err := a.loadRealms(); err != nil {
		return err
	}
	var part []counted
	edge := func(realm id.Realm, c *id.Chunk, lo, hi *counted) {
		if lo != nil && lo.compare(realm, c) > 0 || hi != nil && hi.compare(realm, c) <= 0 {
			return // another sweep's
		}
		a.out.Edges++
		i, found := slices.BinarySearchFunc(part, struct{}{}, func(e counted, _ struct{}) int { return e.compare(realm, c) })
		if !found {
			a.find("an edge to a chunk that is not there")
			return
		}
		part[i].edges++
	}
	from := a.r.keys.table(nil, tableChunk)
	end := next(bytes.Clone(from))
	base := len(from)
	var lo *counted // the sweep's first chunk; nil: no bound
	for first := true; first || lo != nil; first = false {
		part = part[:0]
		var hi *counted // the first chunk of the next sweep
		start := from
		if lo != nil {
			start = a.r.keys.chunk(nil, lo.realm, &lo.chunk)
		}
		err := a.r.kv.Scan(start, end, false, func(k, v []byte) error {
			if err := a.tick(); err != nil {
				return err
			}
			realm, rest, ok := parseOrdered(k[base:])
			if !ok || len(rest) != len(id.Chunk{}) || realm > max32 {
				return damagedRow("chunk")
			}
			e := counted{chunk: id.Chunk(rest), realm: id.Realm(realm)}
			if len(part) == a.atOnce {
				hi = &e
				return kv.Stop
			}
			var row ChunkRow
			if err := row.parse(v); err != nil {
				return err
			}
			e.stored = row.Refs
			part = append(part, e)
			a.rows++
			if row.State == Condemned {
				a.condemned++
			}
			if uint8(row.Kind) == kindList {
				a.lists++
			}
			return nil
		})
		if err != nil {
			return err
		}
		if err := a.sweep(first, func(realm id.Realm, c *id.Chunk) { edge(realm, c, lo, hi) }); err != nil {
			return err
		}
		for i := range part {
			e := &part[i]
			if e.stored == e.edges {
				continue
			}
			row, err := a.r.Chunk(e.realm, e.chunk)
			if err != nil {
				return err
			}
			row.Refs = e.edges
			if row.State == Condemned && row.Refs > 0 {
				row.State = Live
			}
			key := a.r.keys.chunk(nil, e.realm, &e.chunk)
			if err := a.wrong(key, row.append(nil), "a chunk counts %d edges, %d lead to it", e.stored, e.edges); err != nil {
				return err
			}
		}
		a.out.Chunks += uint64(len(part))
		lo = hi
	}
	return nil
}

// loadRealms reads the buckets and compares their names.
func (a *audit) loadRealms() error {
	a.realms = map[id.Bucket]id.Realm{}
	names := 0
	err := a.scan(tableBucketName, func(k, v []byte) error {
		names++
		n, err := parseBucketID(v)
		if err != nil {
			return err
		}
		b, err := a.r.BucketByID(n)
		switch {
		case errors.Is(err, ErrNotFound):
			a.find("the name of bucket %d has no bucket", n)
		case err != nil:
			return err
		case b.Name != string(k):
			a.find("bucket %d has another name", n)
		}
		return nil
	})
	if err != nil {
		return err
	}
	err = a.scan(tableBucket, func(k, v []byte) error {
		n, rest, ok := parseOrdered(k)
		if !ok || len(rest) > 0 {
			return damagedRow("bucket")
		}
		var b Bucket
		if err := b.parse(v); err != nil {
			return err
		}
		a.realms[id.Bucket(n)] = b.Realm
		a.rows++
		return nil
	})
	if err == nil && names != len(a.realms) {
		a.find("%d buckets have %d names", len(a.realms), names)
	}
	return err
}

// sweep hands every edge to fn. The first sweep also looks at the rows that the
// edges come from.
func (a *audit) sweep(first bool, fn func(realm id.Realm, c *id.Chunk)) error {
	var (
		o        Object
		key, now []byte     // of the object at hand, and of the one before
		last     id.Version // of it
		lists    uint64
	)
	err := a.scan(tableObject, func(k, v []byte) error {
		n, rest, ok := parseOrdered(k)
		if !ok {
			return damagedRow("object")
		}
		realm, there := a.realms[id.Bucket(n)]
		if err := o.parse(v); err != nil {
			return err
		}
		if first {
			a.rows++
			a.out.Versions++
			now = now[:0]
			now = appendOrdered(now, n)
			var version []byte
			if now, version, ok = parseEscaped(now, rest); !ok || len(version) != 0 && len(version) != versionLen {
				return damagedRow("object")
			}
			switch {
			case !there:
				a.find("an object of bucket %d, which is not there", n)
			case len(version) == 0:
			case !bytes.Equal(key, now):
				a.find("an older version in bucket %d without a current one", n)
			case parseVersion(version) != o.Version || o.Version.Compare(last) >= 0:
				a.find("versions of an object in bucket %d out of order", n)
			}
			key, now, last = now, key, o.Version
		}
		for i := range o.Manifest.Roots {
			fn(realm, &o.Manifest.Roots[i].Chunk)
		}
		return nil
	})
	if err != nil {
		return err
	}
	err = a.scan(tableChildren, func(k, v []byte) error {
		n, rest, ok := parseOrdered(k)
		if !ok || len(rest) != len(id.Chunk{}) || n > max32 {
			return damagedRow("children")
		}
		cs, err := parseChildren(v)
		if err != nil {
			return err
		}
		if first {
			a.rows++
			lists++
			row, err := a.r.Chunk(id.Realm(n), id.Chunk(rest))
			if err != nil && !errors.Is(err, ErrNotFound) {
				return err
			}
			if err != nil || uint8(row.Kind) != kindList {
				a.find("children of what is no list chunk")
			}
		}
		for i := range cs {
			fn(id.Realm(n), &cs[i])
		}
		return nil
	})
	if first {
		a.lists -= lists // what is left of it is compared by sums
	}
	return err
}

// sums compares packs, buckets and totals with the rows they add up.
func (a *audit) sums() error {
	if err := a.bucketSums(); err != nil {
		return err
	}
	if err := a.packSums(); err != nil {
		return err
	}
	if a.pieces != 0 && a.fix == nil {
		a.find("snapshot packs and pieces do not match")
	}
	if a.lists != 0 {
		a.find("list chunks and their children do not match")
	}
	have, err := a.r.Totals()
	if err != nil {
		return err
	}
	t := &a.totals
	t.NextBucket = have.NextBucket
	a.out.Buckets, a.out.Packs = t.Buckets, t.Packs
	if have == *t {
		return nil
	}
	return a.wrong(a.r.keys.table(nil, tableTotals), t.append(nil), "totals are %+v, the rows add up to %+v", have, *t)
}

func (a *audit) bucketSums() error {
	use := map[id.Bucket]*BucketUsage{}
	err := a.scan(tableObject, func(k, v []byte) error {
		n, rest, ok := parseOrdered(k)
		if !ok {
			return damagedRow("object")
		}
		u := use[id.Bucket(n)]
		if u == nil {
			u = new(BucketUsage)
			use[id.Bucket(n)] = u
		}
		var o Object
		if err := o.parse(v); err != nil {
			return err
		}
		if o.Deleted {
			u.Markers++
			return nil
		}
		u.Versions++
		u.Bytes += o.Manifest.Size
		if currentKey(rest) {
			u.Objects++
		}
		return nil
	})
	if err != nil {
		return err
	}
	t := &a.totals
	var high id.Bucket
	err = a.scan(tableBucket, func(k, v []byte) error {
		n, _, _ := parseOrdered(k)
		var b Bucket
		if err := b.parse(v); err != nil {
			return err
		}
		var want BucketUsage
		if u := use[id.Bucket(n)]; u != nil {
			want = *u
		}
		high = max(high, id.Bucket(n))
		t.Buckets++
		t.Objects += want.Objects
		t.Versions += want.Versions
		t.Markers += want.Markers
		t.LogicalBytes += want.Bytes
		if b.BucketUsage == want {
			return nil
		}
		have := b.BucketUsage
		b.BucketUsage = want
		return a.wrong(a.r.keys.bucket(nil, id.Bucket(n)), b.append(nil), "bucket %d counts %+v, its rows add up to %+v", n, have, want)
	})
	if err != nil {
		return err
	}
	if have, err := a.r.Totals(); err != nil {
		return err
	} else if high >= have.NextBucket {
		a.find("bucket %d is there, the next is %d", high, have.NextBucket)
	}
	return nil
}

// currentKey reports whether what follows the bucket in a key ends with the end
// mark.
func currentKey(k []byte) bool {
	_, rest, ok := parseEscaped(nil, k)
	return ok && len(rest) == 0
}

// packSums walks packs and residents side by side.
func (a *audit) packSums() error {
	t := &a.totals
	from := a.r.keys.table(nil, tableResident)
	c := a.r.kv.Cursor(from, next(bytes.Clone(from)), false)
	defer c.Close()
	var (
		at    id.Pack // of the resident at hand
		more  bool
		found uint64
	)
	step := func() error {
		if more = c.Next(); !more {
			return c.Err()
		}
		k := c.Key()[len(from):]
		if len(k) != len(at)+4 {
			return damagedRow("resident")
		}
		at = id.Pack(k)
		a.rows++
		return a.tick()
	}
	if err := step(); err != nil {
		return err
	}
	err := a.r.EachPack(func(p id.Pack, row PackRow) error {
		a.rows += 2
		for more && bytes.Compare(at[:], p[:]) < 0 {
			a.find("a resident of a pack that is not there")
			if err := step(); err != nil {
				return err
			}
		}
		var held uint64
		want := PackUsage{Payload: row.Payload}
		for more && at == p {
			off := binary.BigEndian.Uint32(c.Key()[len(from)+len(p):])
			v, err := c.Value()
			if err != nil {
				return err
			}
			realm, chunk, err := parseResident(v)
			if err != nil {
				return err
			}
			ch, err := a.r.Chunk(realm, chunk)
			switch {
			case errors.Is(err, ErrNotFound) || err == nil && (ch.Pack != p || ch.Offset != off):
				a.find("a resident of pack %v that no chunk row points at", p)
			case err != nil:
				return err
			default:
				found++
				want.Residents++
				held += uint64(ch.SealedLen)
				t.UniqueBytes += uint64(ch.PlainLen)
				t.SealedBytes += uint64(ch.SealedLen)
				if ch.Refs > 0 {
					want.Live += uint64(ch.SealedLen)
				}
			}
			if err := step(); err != nil {
				return err
			}
		}
		if held > row.Payload {
			a.find("pack %v holds %d bytes of chunks in a payload of %d", p, held, row.Payload)
		}
		if row.Kind == pack.Snapshot {
			a.pieces--
		}
		t.Packs++
		t.ShardBytes += uint64(row.Size) * row.shards()
		t.ParityBytes += uint64(row.Size) * (row.shards() - uint64(row.K))
		t.PayloadBytes += row.Payload
		t.LiveBytes += want.Live
		if row.PackUsage == want {
			return nil
		}
		return a.wrong(a.r.keys.pack(nil, &p, packUsage), want.append(nil), "pack %v counts %+v, its rows add up to %+v", p, row.PackUsage, want)
	})
	if err != nil {
		return err
	}
	for more {
		a.find("a resident of a pack that is not there")
		if err := step(); err != nil {
			return err
		}
	}
	err = a.scan(tableChunk, func(_, _ []byte) error { t.Chunks++; return nil })
	if err == nil && t.Chunks != found {
		a.find("%d chunks, %d of them resident in a pack", t.Chunks, found)
	}
	return err
}
