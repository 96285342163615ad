package index

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"

	"cairn/id"
	"cairn/index/kv"
	"cairn/pack"
	"cairn/record"
)

// Log packs that are given up: docs/protocol.md, section 7.3. What stands here is done
// in a rebuild alone, and by an operator's word.

// formatLoss is the format of an index in which log packs were given up: builds that do
// not know what that means must not read it.
const formatLoss = 2

// Loss is a run of log packs that nobody could read any more and that an operator has
// given up. The index says so for good, and so does each snapshot of it.
type Loss struct {
	From, To uint64  // sequences, both lost
	Pack     id.Pack // of To: what its successor names. It has a row, until that is dropped
	// Before and After are the log's times of the packs around it; Before is 0 where the
	// log's beginning is lost.
	Before, After int64
	Accepted      int64 // when it was given up, by that machine's clock
	// NextBucket: buckets from this one on may have been made by what is lost.
	NextBucket id.Bucket
	// Epoch is set where the end of the log was lost: log packs of that epoch, or an older
	// one, with these sequences. Nothing followed on them, and others have their sequences.
	Epoch uint64
}

// End reports whether it is the end of the log that was lost.
func (l *Loss) End() bool { return l.Epoch > 0 }

func (l *Loss) append(b []byte) []byte {
	b = appendArray(append(b, rowVersion), 7)
	b = appendUint(b, l.To)
	b = appendBytes(b, l.Pack[:])
	b = appendInt(b, l.Before)
	b = appendInt(b, l.After)
	b = appendInt(b, l.Accepted)
	b = appendUint(b, uint64(l.NextBucket))
	return appendUint(b, l.Epoch)
}

// parse leaves the first sequence, which is the key's, to the caller.
func (l *Loss) parse(v []byte) error {
	d := open(v)
	d.array(7)
	l.To = d.uint()
	d.fill(l.Pack[:])
	l.Before = d.int()
	l.After = d.int()
	l.Accepted = d.int()
	l.NextBucket = id.Bucket(d.uint())
	l.Epoch = d.uint()
	if !d.end() {
		return damagedRow("loss")
	}
	return nil
}

// Losses implements [Reader].
func (r *reader) Losses() (out []Loss, err error) {
	from := r.keys.table(nil, tableLoss)
	err = r.kv.Scan(from, next(bytes.Clone(from)), false, func(k, v []byte) error {
		n, rest, ok := parseOrdered(k[len(from):])
		if !ok || len(rest) > 0 {
			return damagedRow("loss")
		}
		l := Loss{From: n}
		err := l.parse(v)
		out = append(out, l)
		return err
	})
	return out, err
}

// Unknown reports whether the row only stands for a chunk of which nothing is known but
// that something refers to it: what brought it is lost. Such a row is [Damaged].
func (c *ChunkRow) Unknown() bool { return c.Kind == 0 }

// unknownLen is what an unknown chunk counts for in its pack, so that the pack's usage
// tells whether something refers to what it stands for.
const unknownLen = 1

// Skipped is a run of log packs to be given up.
type Skipped struct {
	Loss
	// Header is the common one of To, as far as it is known: the zero Header, and then K
	// and M are what its successor's places allow for.
	Header pack.Header
	K, M   uint8
	Epoch  uint64  // of To, or one that it may have had
	Places []Place // of the shards of From's predecessor, which only From named
	// Nodes is the node set in force; an older one in the index is replaced by it.
	Nodes record.Nodes
}

// Skip moves the head over log packs that are lost, in one transaction that also says so
// for good. Only a rebuild may do it: what follows finds other than it names. To becomes
// the head, and gets a row, whose places its successor names.
func (x *Index) Skip(ctx context.Context, s Skipped) error {
	if x.rebuilding.Load() == 0 {
		return fmt.Errorf("%w: log packs are given up in a rebuild alone", ErrRecord)
	}
	x.lock()
	if x.loading.Load() {
		x.unlock()
		return ErrLoading
	}
	tx, err := x.db.Begin(ctx)
	if err != nil {
		x.unlock()
		return err
	}
	r := newRound(x, tx, s.Pack, s.To, Rebuild)
	defer r.Discard()
	if err := r.skip(&s); err != nil {
		return fmt.Errorf("give up sequences %d to %d: %w", s.From, s.To, err)
	}
	x.tally.forget()
	if err := tx.Commit(); err != nil {
		return fmt.Errorf("give up sequences %d to %d: %w", s.From, s.To, err)
	}
	x.rebuilding.Store(rebuildMet)
	return nil
}

// SkipEnd says for good that log packs above the head are lost, on which nothing followed.
func (x *Index) SkipEnd(ctx context.Context, l Loss) error {
	x.lock()
	defer x.unlock()
	h, err := x.Head()
	if err != nil {
		return err
	}
	if !l.End() || l.From <= h.Seq || l.To < l.From {
		return fmt.Errorf("%w: sequences %d to %d are no end of the log behind %d", ErrRecord, l.From, l.To, h.Seq)
	}
	return x.write(ctx, func(tx *kv.Tx) error {
		return errors.Join(tx.Put(x.keys.table(nil, tableFormat), appendUints(nil, formatLoss)), tx.Put(x.keys.loss(nil, l.From), l.append(nil)))
	})
}

func (r *Round) skip(s *Skipped) (err error) {
	if err := r.load(); err != nil {
		return err
	}
	switch {
	case s.From != r.head.Seq+1 || s.To < s.From || s.Pack.IsZero() || s.K == 0:
		return fmt.Errorf("%w: the head is %d", ErrGap, r.head.Seq)
	case s.Epoch < r.head.Epoch:
		return fmt.Errorf("%w: epoch %d after %d", ErrGap, s.Epoch, r.head.Epoch)
	}
	switch _, err := r.packPlace(s.Pack); {
	case err == nil:
		return fmt.Errorf("%w: pack %v is in the index", ErrApplied, s.Pack)
	case !errors.Is(err, ErrNotFound):
		return err
	}
	r.keep(&usageRow{pack: s.Pack})
	if r.head.Seq > 0 && len(s.Places) > 0 {
		if err := r.settle(s.Places); err != nil {
			return err
		}
	}
	h := &s.Header
	own := PackRow{Kind: pack.Log, K: s.K, M: s.M, Seq: s.To}
	attempt := uint32(1)
	if h.Pack == s.Pack && h.K > 0 {
		own = PackRow{Kind: pack.Log, K: h.K, M: h.M, Slice: h.SliceLen, Size: uint32(h.ShardLen()), Body: uint32(h.SliceOffset()), Writer: h.Writer, Counter: h.Counter, Seq: s.To}
		attempt = h.Attempt
	}
	if err := r.addPack(s.Pack, &own); err != nil {
		return err
	}
	if old, err := r.reader.Nodes(); err != nil {
		return err
	} else if s.Nodes.Version > old.Version {
		if err := checkNodes(&s.Nodes); err != nil {
			return err
		}
		if err := r.setNodes(&old, &s.Nodes); err != nil {
			return err
		}
	}
	s.NextBucket = r.totals.NextBucket
	r.after = Head{Seq: s.To, Pack: s.Pack, Epoch: s.Epoch, Attempt: attempt, Time: r.head.Time, Logged: r.head.Logged, Clock: r.clock}
	for _, row := range []struct{ key, value []byte }{
		{r.keys.table(nil, tableFormat), appendUints(nil, formatLoss)},
		{r.keys.table(nil, tableHead), r.after.append(nil)},
		{r.keys.loss(nil, s.From), s.Loss.append(nil)},
		{r.keys.loadingPart(nil, partRebuild), appendUints(nil, rebuildMet)},
	} {
		if err := r.tx.Put(row.key, row.value); err != nil {
			return err
		}
	}
	r.changed = true
	return r.flush()
}

// lostBucket is the bucket that a put or a setting names and that is not there, made
// anew, if what is lost may have made it: its objects shall not go with its name. nil: it
// is another one, and the record is passed over.
func (r *Round) lostBucket(realm id.Realm, n id.Bucket, set record.Settings) (*bucketRow, error) {
	if r.mode != Rebuild || realm == 0 || n == 0 {
		return nil, nil
	}
	losses, err := r.reader.Losses()
	if err != nil || !slices.ContainsFunc(losses, func(l Loss) bool { return !l.End() && n >= l.NextBucket }) {
		return nil, err
	}
	name := fmt.Sprintf("recovered-%d", n)
	for {
		if _, err := r.reader.bucketID(name); errors.Is(err, ErrNotFound) {
			break
		} else if err != nil {
			return nil, err
		}
		if name += "-x"; len(name) > record.MaxBucketName {
			return nil, nil
		}
	}
	if err := r.mismatch("bucket %d is not there: what made it is lost; it is called %s", n, name); err != nil {
		return nil, err
	}
	r.totals.NextBucket = max(r.totals.NextBucket, n+1)
	r.totals.Buckets++
	b := &bucketRow{Bucket: Bucket{ID: n, Name: name, Realm: realm, Time: r.head.Time, Settings: set}}
	r.buckets[n] = b
	r.names[name] = n
	r.touchBucket(b)
	return b, r.put(r.keys.bucketName(r.key[:0], name), appendBucketID(r.out[:0], n))
}

// movedAnew takes a chunk in that a record moves and that is not there, if what is lost
// may have brought it: the record says all that is known of it. A list is left, since
// what it lists stands in no record of a move.
func (r *Round) movedAnew(p id.Pack, e *pack.Entry) error {
	losses, err := r.reader.Losses()
	if err != nil || len(losses) == 0 || uint8(e.Kind) != kindData {
		return err
	}
	// addData has counted its bytes.
	row := ChunkRow{Entry: *e, Pack: p, State: Live}
	r.totals.Chunks++
	r.totals.UniqueBytes += uint64(e.PlainLen)
	r.totals.SealedBytes += uint64(e.SealedLen)
	r.moved[chunkKey{e.Realm, e.Chunk}] = struct{}{}
	if err := r.usageAdd(p, 0, 0, 1); err != nil {
		return err
	}
	if err := r.put(r.keys.resident(r.key[:0], &p, e.Offset), appendResident(r.out[:0], e.Realm, &e.Chunk)); err != nil {
		return err
	}
	return r.putChunk(&row)
}

// closeLosses makes rows for what something refers to and that came with log packs that
// were given up, and takes away what cannot stand without them. Counts are not touched:
// they are made anew behind it. It may be run again after an error.
func (x *Index) closeLosses(ctx context.Context) error {
	x.lock()
	defer x.unlock()
	defer x.tally.forget()
	var (
		at   id.Pack // where what is unknown is said to lie
		some bool
	)
	if err := x.db.View(func(s *kv.Snapshot) error {
		r := x.reader(s)
		losses, err := r.Losses()
		if err != nil {
			return err
		}
		some = len(losses) > 0
		for _, l := range losses { // the last of which the row is still there
			if _, err := r.packPlace(l.Pack); err == nil {
				at = l.Pack
			} else if !errors.Is(err, ErrNotFound) {
				return err
			}
		}
		return nil
	}); err != nil || !some {
		return err
	}
	if err := x.dropHalf(ctx); err != nil {
		return err
	}
	if at.IsZero() {
		return nil
	}
	free, err := x.behindResidents(at)
	if err != nil {
		return err
	}
	for more := true; more; {
		var missing []chunkKey
		err := x.db.View(func(s *kv.Snapshot) (err error) {
			missing, more, err = x.missing(ctx, s, missingAtOnce)
			return err
		})
		for part := range slices.Chunk(missing, 1024) {
			if err == nil {
				free, err = x.unknown(ctx, at, free, part)
			}
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// dropHalf takes away snapshots of which pieces are lost, and list chunks of which it is
// not known what they list. What refers to such a list finds it missing, as it were.
func (x *Index) dropHalf(ctx context.Context) error {
	f := fixer{ctx: ctx, db: x.db}
	defer f.discard()
	err := x.db.View(func(s *kv.Snapshot) error {
		r := x.reader(s)
		kept, err := r.Snapshots()
		if err != nil {
			return err
		}
		pieces := map[uint64]uint32{}
		if err := r.EachPiece(func(p Piece) error { pieces[p.Number]++; return nil }); err != nil {
			return err
		}
		for _, k := range kept {
			if pieces[k.Number] != k.Pieces {
				x.cfg.Mismatch(Mismatch{Seq: k.Seq, What: fmt.Sprintf("snapshot %d has %d pieces of %d: what brought the others is lost", k.Number, pieces[k.Number], k.Pieces)})
				if err := f.remove(r.keys.snapshot(nil, k.Number)); err != nil {
					return err
				}
			}
		}
		a := audit{ctx: ctx, r: r, out: &Report{}}
		return a.scan(tableChunk, func(k, v []byte) error {
			realm, rest, ok := parseOrdered(k)
			if !ok || len(rest) != len(id.Chunk{}) || realm > max32 {
				return damagedRow("chunk")
			}
			var row ChunkRow
			if err := row.parse(v); err != nil || uint8(row.Kind) != kindList {
				return err
			}
			c := id.Chunk(rest)
			_, err := r.Children(id.Realm(realm), c)
			if !errors.Is(err, ErrNotFound) {
				return err
			}
			x.cfg.Mismatch(Mismatch{What: "what a list chunk lists is lost"})
			return f.change(func(tx *kv.Tx) (err error) {
				for _, key := range [][]byte{r.keys.chunk(nil, id.Realm(realm), &c), r.keys.resident(nil, &row.Pack, row.Offset), r.keys.condemned(nil, id.Realm(realm), &c)} {
					if err == nil {
						_, err = tx.Delete(key)
					}
				}
				return err
			})
		})
	})
	if err != nil {
		return err
	}
	return f.commit()
}

// missingAtOnce is how many chunks that have no row are held at a time, some 150 bytes each.
const missingAtOnce = 1 << 17

// missing lists chunks that an edge leads to and that have no row, each once and at most
// so many; more: there are others.
func (x *Index) missing(ctx context.Context, s *kv.Snapshot, most int) (out []chunkKey, more bool, err error) {
	r := x.reader(s)
	a := audit{ctx: ctx, r: r, out: &Report{}}
	if err := a.loadRealms(); err != nil {
		return nil, false, err
	}
	seen := map[chunkKey]struct{}{}
	var failed error
	a.stop = func() bool { return more || failed != nil }
	err = a.sweep(false, func(realm id.Realm, c *id.Chunk) {
		k := chunkKey{realm, *c}
		if _, known := seen[k]; known || failed != nil {
			return
		}
		_, err := r.Chunk(realm, *c)
		switch {
		case err == nil:
		case !errors.Is(err, ErrNotFound):
			failed = err
		case len(out) == most:
			more = true
		default:
			seen[k] = struct{}{}
			out = append(out, k)
		}
	})
	return out, more, errors.Join(err, failed)
}

// behindResidents is the offset behind all that lie in a pack.
func (x *Index) behindResidents(p id.Pack) (off uint64, err error) {
	err = x.db.View(func(s *kv.Snapshot) error {
		return x.reader(s).eachResident(p, func(o uint32, _ id.Realm, _ id.Chunk) error {
			off = uint64(o) + unknownLen
			return nil
		})
	})
	return off, err
}

// unknown makes the rows of chunks that are missing, in one transaction. They lie from an
// offset on; it returns the next one.
func (x *Index) unknown(ctx context.Context, at id.Pack, off uint64, missing []chunkKey) (uint64, error) {
	free := off
	err := x.write(ctx, func(tx *kv.Tx) error {
		r := &reader{kv: tx, keys: x.keys}
		u, err := r.packUsage(at)
		if err != nil {
			return err
		}
		off := off
		for _, m := range missing {
			if off > max32 {
				return fmt.Errorf("%w: more chunks are missing than can be named", ErrDamaged)
			}
			row := ChunkRow{Pack: at, State: Damaged}
			row.Realm, row.Chunk, row.Offset, row.SealedLen = m.realm, m.chunk, uint32(off), unknownLen
			if err := tx.Put(x.keys.chunk(nil, m.realm, &m.chunk), row.append(nil)); err != nil {
				return err
			}
			if err := tx.Put(x.keys.resident(nil, &at, uint32(off)), appendResident(nil, m.realm, &m.chunk)); err != nil {
				return err
			}
			off += unknownLen
		}
		u.Payload += uint64(len(missing)) * unknownLen
		u.Residents += uint64(len(missing))
		free = off
		return tx.Put(x.keys.pack(nil, &at, packUsage), u.append(nil))
	})
	return free, err
}

func (k keyspace) loss(b []byte, seq uint64) []byte {
	return appendOrdered(k.table(b, tableLoss), seq)
}
