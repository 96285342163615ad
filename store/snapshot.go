package store

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"time"

	"cairn/id"
	"cairn/index"
	"cairn/node"
	"cairn/pack"
	"cairn/record"
	"cairn/seal"
)

// Snapshots are taken and found again as docs/protocol.md, section 7, says.

const (
	// linkWeight is what a log pack counts for in Head.Logged beyond its records:
	// about what listing and opening it costs a rebuild.
	linkWeight = 512
	// snapshotLeast is what must have been logged before another snapshot is due.
	snapshotLeast = 64 << 20
	// snapshotChunk is how much of an export is sealed at a time.
	snapshotChunk = 1 << 20
	// dropBatch is how many pieces are dropped in one log pack.
	dropBatch = 256
	// After a job that failed the next one waits, twice as long each time.
	snapshotWait, snapshotMostWait = time.Minute, time.Hour
)

// SnapshotInfo describes a snapshot that was taken.
type SnapshotInfo struct {
	Number uint64 // the sequence that its rows stand behind
	Rows   uint64
	Bytes  uint64 // of the export
	Packs  int    // the root included
	Short  int    // shards that could not be read back because their node was away
}

// snapshotRef names the log pack with the record of the newest snapshot.
type snapshotRef struct {
	seq  uint64
	pack id.Pack
}

// refOf is the reference that a log pack's successor must make: to the pack itself
// when it holds the record, else what it refers to.
func refOf(h pack.Header, m *pack.LogMeta, records []record.Record) (ref snapshotRef) {
	if slices.ContainsFunc(records, func(r record.Record) bool { return r.Kind() == record.KindSnapshot }) {
		return snapshotRef{h.Seq, h.Pack}
	}
	if len(m.Snapshot) == len(ref.pack) {
		ref = snapshotRef{m.SnapshotSeq, id.Pack(m.Snapshot)}
	}
	return ref
}

func (r snapshotRef) set(m *pack.LogMeta) {
	if r.seq > 0 {
		m.SnapshotSeq, m.Snapshot = r.seq, r.pack[:]
	}
}

// snapshotDue reports whether so much was logged since the newest snapshot that
// another is worth its cost.
func (s *Store) snapshotDue() (due bool, err error) {
	err = s.view(func(r index.Reader) error {
		h, err := r.Head()
		if err != nil {
			return err
		}
		kept, err := r.Snapshots()
		if err != nil {
			return err
		}
		var newest index.SnapshotRow
		if len(kept) > 0 {
			newest = kept[0]
		}
		due = s.snapshotLost.Load() || h.Logged-newest.Logged >= max(s.cfg.SnapshotEvery, newest.Bytes/4) || len(kept) > 0 && kept[len(kept)-1].Number < s.lostLog.Load() || len(kept) < 2 && s.lostLog.Load() > 0
		return nil
	})
	return due, err
}

// snapshotLoop takes snapshots when they are due.
func (s *Store) snapshotLoop(ctx context.Context) {
	wait := time.Duration(0)
	if err := s.clearAlone(ctx); err != nil && ctx.Err() == nil {
		s.log.Warn("pieces of snapshots that nobody needs were not dropped", "err", err)
	}
	for trigger := ByStart; ; trigger = BySchedule {
		select {
		case <-ctx.Done():
			return
		case <-s.wantSnapshot:
		}
		due, err := s.snapshotDue()
		if err == nil && !due {
			continue
		}
		if err == nil {
			var ran bool
			if ran, err = s.runJob(ctx, JobSnapshot, trigger); !ran && err == nil {
				s.snapshotSoon() // somebody else's, of which nothing is known here
			}
		}
		switch {
		case ctx.Err() != nil:
			return
		case err == nil:
			wait = 0
			continue
		}
		wait = min(max(2*wait, snapshotWait), snapshotMostWait)
		if errors.Is(err, errJobCancelled) { // somebody wants none for a while
			wait = snapshotMostWait
		}
		s.log.Error("no snapshot of the index was taken", "err", err, "next try after", wait)
		t := time.NewTimer(wait)
		select {
		case <-ctx.Done():
			t.Stop()
			return
		case <-t.C:
			s.snapshotSoon()
		}
	}
}

// snapshotSoon lets the loop look whether a snapshot is due.
func (s *Store) snapshotSoon() {
	select {
	case s.wantSnapshot <- struct{}{}:
	default:
	}
}

// Snapshot exports the index into packs on the nodes, reads them back, and logs
// that they are there: a lost index is loaded from them. While it writes it holds
// one pack, and a copy of it for each attempt that a lagging node still reads; while
// it reads back, all shards of one pack and what they open to. Writes go on meanwhile.
// One runs at a time. An index that is damaged is not exported: the store stops.
func (s *Store) Snapshot(ctx context.Context) (SnapshotInfo, error) {
	return s.snapshot(ctx, nil)
}

// SnapshotResult is what a run of [JobSnapshot] took.
type SnapshotResult struct {
	Number uint64 `json:"number"`
	Rows   uint64 `json:"rows"`
	Bytes  uint64 `json:"bytes"`
	Packs  int    `json:"packs"`
	Short  int    `json:"short"`
}

// runSnapshot is one run of [JobSnapshot].
func (s *Store) runSnapshot(ctx context.Context, r *run) (any, error) {
	r.found()
	lost := s.snapshotLost.Load()
	info, err := s.snapshot(ctx, func(bytes uint64) { r.report(bytes, 0, "bytes") })
	if err != nil {
		return nil, err
	}
	if lost {
		s.snapshotLost.Store(false) // the one that is kept beside it was read, too
	}
	if s.lostLog.Load() > 0 {
		s.snapshotSoon() // both that are kept shall be behind it
	}
	s.log.Info("snapshot of the index taken", "number", info.Number, "rows", info.Rows, "bytes", info.Bytes, "packs", info.Packs, "short", info.Short)
	return SnapshotResult(info), nil
}

// snapshot is Snapshot; report, when not nil, is told how much of the export is in
// packs.
func (s *Store) snapshot(ctx context.Context, report func(bytes uint64)) (SnapshotInfo, error) {
	leave, err := s.enter()
	if err != nil {
		return SnapshotInfo{}, err
	}
	defer leave()
	select {
	case s.snapshotting <- struct{}{}:
		defer func() { <-s.snapshotting }()
	case <-ctx.Done():
		return SnapshotInfo{}, context.Cause(ctx)
	}
	j := &snapshotJob{s: s, report: report}
	defer j.release()
	info, err := j.run(ctx)
	if err != nil {
		return info, fmt.Errorf("snapshot: %w", translate(err, ErrDamaged))
	}
	return info, nil
}

// snapshotJob writes one snapshot.
type snapshotJob struct {
	s     *Store
	ctx   context.Context // of the job; the exporter's Write takes none
	realm *realmKeys
	// report, when not nil, is told how many bytes of the export are in packs.
	report func(bytes uint64)

	number  uint64
	before  index.SnapshotRow // the newest snapshot that can be read, which is kept
	plain   []byte            // of the export, not sealed yet
	written uint64            // bytes of the export in pieces
	start   uint64            // where the open piece begins
	entries []pack.Entry
	payload []byte
	root    record.SnapshotRoot
	packs   uint32
}

func (j *snapshotJob) run(ctx context.Context) (info SnapshotInfo, err error) {
	s := j.s
	j.ctx = ctx
	if j.realm, err = s.realm(id.Main); err != nil {
		return info, err
	}
	// Sums of rows prove that they are as written; that they agree with each other
	// is another matter, and what is loaded must be right in both.
	if err := s.proveIndex(ctx); err != nil {
		return info, err
	}
	if err := s.clearPieces(ctx); err != nil {
		return info, err
	}
	if j.before, err = s.readableSnapshot(ctx); err != nil {
		return info, err
	}
	out, err := s.index.ExportTo(ctx, func(h index.Head) io.Writer {
		j.number = h.Seq
		return j
	})
	if errors.Is(err, index.ErrDamaged) {
		s.fail(err)
	}
	if err == nil {
		err = j.finish()
	}
	if err != nil {
		return info, err
	}
	rec := &record.Snapshot{Number: j.number, Head: out.Head.Pack, Pieces: j.packs, Rows: out.Rows, Bytes: out.Bytes, Sum: out.Sum, Root: j.root.Pieces[j.packs-1].Ref,
		Logged: out.Head.Logged, Before: j.before.Number, BeforeSeq: j.before.Seq, BeforePack: j.before.Pack}
	rd := &snapshotReader{s: s, ctx: ctx, root: rec.Root}
	if err := rd.check(out.Bytes, out.Sum); err != nil {
		return info, fmt.Errorf("read back: %w", err)
	}
	if err := s.writer.submit(ctx, &submission{decide: func(d *decision) (func() error, error) {
		kept, err := d.round.Snapshots()
		if err != nil {
			return nil, &fatalError{err}
		}
		if !slices.ContainsFunc(kept, func(k index.SnapshotRow) bool { return k.Number == rec.Before }) && (rec.Before != 0 || len(kept) > 0) {
			return nil, fmt.Errorf("%w: snapshots have changed", ErrRetry)
		}
		return func() error { return d.emit(rec) }, nil
	}}); err != nil {
		return info, err
	}
	s.snapshotRead(rec.Number)
	info = SnapshotInfo{Number: rec.Number, Rows: rec.Rows, Bytes: rec.Bytes, Packs: int(rec.Pieces), Short: rd.short}
	s.progress("snapshot", rec.Rows, rec.Rows)
	if err := s.clearPieces(ctx); err != nil {
		s.log.Warn("pieces of an older snapshot were not dropped", "err", err)
	}
	return info, nil
}

// readableSnapshot reads the kept snapshots, newest first, and returns the first
// that is whole: that one must stay. None is the zero row.
func (s *Store) readableSnapshot(ctx context.Context) (index.SnapshotRow, error) {
	var kept []index.SnapshotRow
	err := s.view(func(r index.Reader) (err error) {
		kept, err = r.Snapshots()
		return err
	})
	if err != nil || len(kept) == 0 {
		return index.SnapshotRow{}, err
	}
	for _, k := range kept {
		rd := &snapshotReader{s: s, ctx: ctx, root: k.Root}
		if err = rd.check(k.Bytes, k.Sum); err == nil {
			s.snapshotRead(k.Number)
			return k, nil
		}
		if cerr := context.Cause(ctx); cerr != nil {
			return index.SnapshotRow{}, cerr
		}
		s.log.Error("a snapshot cannot be read", "number", k.Number, "err", err)
	}
	// Nothing better is known than the newest: nodes that are away may have it.
	return kept[0], nil
}

// Write takes the next bytes of the export.
func (j *snapshotJob) Write(b []byte) (int, error) {
	for done := 0; done < len(b); {
		n := min(len(b)-done, snapshotChunk-len(j.plain))
		j.plain = append(j.plain, b[done:done+n]...)
		done += n
		if len(j.plain) == snapshotChunk {
			if err := j.seal(); err != nil {
				return done - n, err
			}
		}
	}
	return len(b), nil
}

// seal seals what has gathered into the open piece, which is written when it has
// no room for another.
func (j *snapshotJob) seal() error {
	if len(j.plain) == 0 {
		return nil
	}
	c := j.realm.chunkID(seal.Snap, j.plain)
	info, body, free, err := j.s.compress(j.ctx, j.realm, c, seal.Snap, true, j.plain)
	if err != nil {
		return err
	}
	defer free()
	key := packKey{k: DefaultWidth}
	room := pack.Capacity(DefaultWidth, len(j.entries)+1)
	if limit := j.s.packs.limit(key); limit > 0 {
		room = min(room, limit)
	}
	if len(j.payload)+int(info.SealedLen) > room {
		if err := j.flush(); err != nil {
			return err
		}
	}
	if j.payload == nil {
		n := j.s.packs.bufferLen(key)
		// Repair gets its turn between two pieces.
		if err := busy(j.s.mem.repair.Acquire(j.ctx, weigh(n))); err != nil {
			return err
		}
		j.payload = j.s.chunks.get(n)[:0]
	}
	off := len(j.payload)
	sealed, err := j.realm.sealer.Seal(j.payload, info, body)
	if err != nil {
		return fmt.Errorf("seal: %w", err)
	}
	j.payload = sealed
	j.entries = append(j.entries, pack.Entry{Info: info, Offset: uint32(off)})
	j.written += uint64(len(j.plain))
	j.plain = j.plain[:0]
	return nil
}

// flush makes the open piece durable and part of the store.
func (j *snapshotJob) flush() error {
	if len(j.entries) == 0 {
		return nil
	}
	ref, err := j.piece()
	if err != nil {
		return err
	}
	j.root.Pieces = append(j.root.Pieces, record.RootPiece{Ref: ref, Start: j.start})
	j.start = j.written
	j.packs++
	if j.report != nil {
		j.report(j.written)
	}
	j.entries = j.entries[:0]
	j.release()
	return nil
}

// release gives the open piece's memory back.
func (j *snapshotJob) release() {
	if j.payload != nil {
		j.s.mem.repair.Release(weigh(j.s.packs.bufferLen(packKey{k: DefaultWidth})))
		j.s.chunks.put(j.payload)
		j.payload = nil
	}
}

// finish writes what is left, then the root.
func (j *snapshotJob) finish() error {
	if err := j.seal(); err != nil {
		return err
	}
	if err := j.flush(); err != nil {
		return err
	}
	j.report = nil // what follows is none of the export
	list, err := j.root.Append(nil)
	if err != nil {
		return err
	}
	for part := range slices.Chunk(list, snapshotChunk) {
		j.plain = append(j.plain[:0], part...)
		before := j.packs
		if err := j.seal(); err != nil {
			return err
		}
		if j.packs != before {
			return fmt.Errorf("%w: %d pieces, more than one pack can list", ErrInvalid, j.packs)
		}
	}
	return j.flush()
}

// piece writes the pack at hand at full width, over fewer nodes when it must, and
// logs that it is a piece.
func (j *snapshotJob) piece() (ref record.PieceRef, err error) {
	s := j.s
	ctx, cancel := context.WithTimeout(j.ctx, s.cfg.Patience)
	defer cancel()
	var last error
	for ctx.Err() == nil && s.Failure() == nil {
		// A node that lags reads on after the put has returned: each attempt has
		// memory of its own. Such nodes take no further shards.
		n := s.packs.bufferLen(packKey{k: DefaultWidth})
		if err := s.admit(ctx, s.mem.packs, weigh(n)); err != nil {
			return ref, err
		}
		buf := s.chunks.get(n)
		free := newShared(func() {
			s.chunks.put(buf)
			s.mem.packs.Release(weigh(n))
		})
		a, err := s.packs.write(ctx, dataPack{kind: pack.Snapshot, why: node.ForCompaction, k: DefaultWidth, entries: j.entries, payload: append(buf[:0], j.payload...)}, free)
		free.drop()
		if err == nil {
			rec := &record.Piece{Number: j.number, Piece: j.packs, Pack: a.Pack, K: a.K, M: a.M, Slice: a.Slice, Size: a.Size, Body: a.Body, Writer: a.Writer, Counter: a.Counter, Shards: a.Shards}
			err = s.writer.submit(ctx, &submission{decide: func(d *decision) (func() error, error) {
				if err := d.reachable([]*record.Adopt{a}); err != nil {
					return nil, err
				}
				return func() error { return d.emit(rec) }, nil
			}})
			s.packs.dropCounter(a.Counter)
			if err == nil {
				ref = record.PieceRef{Pack: a.Pack, K: a.K, M: a.M, Size: a.Size}
				for _, p := range a.Shards {
					ref.Digests = append(ref.Digests, p.Digest)
				}
				return ref, nil
			}
		}
		if !errors.Is(err, errNarrow) && !errors.Is(err, ErrUnavailable) && !errors.Is(err, ErrRetry) {
			return ref, err
		}
		last = err
		pause(ctx)
	}
	return ref, fmt.Errorf("%w: piece %d could not be made durable: %w", ErrUnavailable, j.packs, errors.Join(last, context.Cause(ctx), s.Failure()))
}

// clearAlone is clearPieces while no job runs.
func (s *Store) clearAlone(ctx context.Context) error {
	select {
	case s.snapshotting <- struct{}{}:
		defer func() { <-s.snapshotting }()
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	return s.clearPieces(ctx)
}

// clearPieces drops the pieces of snapshots that are not kept: of older ones, and
// of jobs that were cut short. Its caller holds the token of the one job that may
// run, whose own pieces look like these until its snapshot is logged. Once that is durable the nodes are told; those that
// cannot be told have orphans.
func (s *Store) clearPieces(ctx context.Context) error {
	var stale []index.Piece
	err := s.view(func(r index.Reader) error {
		kept, err := r.Snapshots()
		if err != nil {
			return err
		}
		return r.EachPiece(func(p index.Piece) error {
			if !slices.ContainsFunc(kept, func(k index.SnapshotRow) bool { return k.Number == p.Number }) {
				stale = append(stale, p)
			}
			return nil
		})
	})
	if err != nil || len(stale) == 0 {
		return err
	}
	// A row that went in silence would make a snapshot that is kept look like one
	// that is not: nothing is removed on the word of an index that is not proved.
	if err := s.proveIndex(ctx); err != nil {
		return err
	}
	for part := range slices.Chunk(stale, dropBatch) {
		var gone []index.PackRow
		var ids []id.Pack
		err := s.writer.submit(ctx, &submission{decide: func(d *decision) (func() error, error) {
			gone, ids = nil, nil
			kept, err := d.round.Snapshots()
			if err != nil {
				return nil, &fatalError{err}
			}
			var recs []record.Record
			for _, p := range part {
				row, err := d.round.Pack(p.Pack)
				switch {
				case errors.Is(err, index.ErrNotFound) || slices.ContainsFunc(kept, func(k index.SnapshotRow) bool { return k.Number == p.Number }):
					continue
				case err != nil:
					return nil, &fatalError{err}
				}
				recs = append(recs, &record.PieceDrop{Number: p.Number, Piece: p.Piece, Pack: p.Pack})
				gone, ids = append(gone, row), append(ids, p.Pack)
			}
			return func() error {
				for _, r := range recs {
					if err := d.emit(r); err != nil {
						return err
					}
				}
				return nil
			}, nil
		}})
		if err != nil {
			return err
		}
		s.deleteShards(ctx, ids, gone)
	}
	return nil
}

// snapshotReader reads a snapshot with nothing but its root at hand. It holds one
// piece, in the share for packs that are opened whole, and one chunk of it in
// plain.
type snapshotReader struct {
	s     *Store
	ctx   context.Context
	root  record.PieceRef
	list  *record.SnapshotRoot // read when it is needed
	all   bool                 // read every shard, not only as many as it takes
	short int                  // shards that could not be read because a node was away

	next  int          // piece to be read
	open  *openedPiece // the one before, while it has chunks
	plain []byte       // of a chunk, what was not handed out yet
	buf   []byte       // where chunks go
}

// openedPiece is a piece of a snapshot in memory.
type openedPiece struct {
	w       *whole
	o       *pack.Opened
	realm   *realmKeys
	entries []pack.Entry // not read yet
}

// load reads the root.
func (r *snapshotReader) load() error {
	if r.list != nil {
		return nil
	}
	root, err := r.piece(r.root)
	if err != nil {
		return fmt.Errorf("root: %w", err)
	}
	defer root.w.release()
	var b []byte
	for len(root.entries) > 0 {
		if b, err = root.read(b); err != nil {
			return fmt.Errorf("root: %w", err)
		}
	}
	list, err := record.ParseRoot(b)
	if err != nil {
		return fmt.Errorf("root: %w", err)
	}
	r.list = &list
	return nil
}

// seek goes to a position of the export.
func (r *snapshotReader) seek(pos uint64) error {
	if err := r.load(); err != nil {
		return err
	}
	pieces := r.list.Pieces
	i, found := slices.BinarySearchFunc(pieces, pos, func(p record.RootPiece, pos uint64) int {
		switch {
		case p.Start < pos:
			return -1
		case p.Start > pos:
			return 1
		}
		return 0
	})
	if !found {
		i--
	}
	if i < 0 {
		return fmt.Errorf("%w: no piece holds byte %d", ErrDamaged, pos)
	}
	r.next = i
	for skip := pos - pieces[i].Start; skip > 0; {
		if len(r.plain) == 0 {
			if err := r.chunk(); err == io.EOF {
				return fmt.Errorf("%w: the snapshot ends before byte %d", ErrDamaged, pos)
			} else if err != nil {
				return err
			}
		}
		n := min(skip, uint64(len(r.plain)))
		r.plain, skip = r.plain[n:], skip-n
	}
	return nil
}

// chunk reads the next chunk.
func (r *snapshotReader) chunk() (err error) {
	for r.open == nil || len(r.open.entries) == 0 {
		r.release()
		if r.next == len(r.list.Pieces) {
			return io.EOF
		}
		if r.open, err = r.piece(r.list.Pieces[r.next].Ref); err != nil {
			return fmt.Errorf("piece %d: %w", r.next, err)
		}
		r.next++
	}
	r.buf, err = r.open.read(r.buf[:0])
	r.plain = r.buf
	return err
}

// release gives the open piece's memory back.
func (r *snapshotReader) release() {
	if r.open != nil {
		r.open.w.release()
		r.open = nil
	}
}

// Read implements io.Reader.
func (r *snapshotReader) Read(b []byte) (int, error) {
	if err := r.load(); err != nil {
		return 0, err
	}
	for len(r.plain) == 0 {
		if err := r.chunk(); err != nil {
			return 0, err
		}
	}
	n := copy(b, r.plain)
	r.plain = r.plain[n:]
	return n, nil
}

// Close implements io.Closer.
func (r *snapshotReader) Close() error {
	r.release()
	return nil
}

// check reads everything, every shard of it, and compares the export's sum.
func (r *snapshotReader) check(bytes uint64, sum [32]byte) error {
	r.all = true
	defer r.Close()
	return index.CheckExport(r, bytes, sum)
}

// cutOf asks a node's header how the shards of a piece are cut.
func (s *Store) cutOf(ctx context.Context, m *member, ref record.PieceRef, index int) (geometry, error) {
	head := s.chunks.get(pack.HeaderSize)
	defer s.chunks.put(head)
	if err := s.readFrom(ctx, m, node.Key{Pack: ref.Pack, Index: uint8(index)}, 0, head); err != nil {
		return geometry{}, err
	}
	h, err := pack.ParseHeader(head)
	if err == nil && (h.Pack != ref.Pack || h.K != ref.K || h.M != ref.M || h.ShardLen() != int(ref.Size) || h.SliceLen == 0) {
		err = fmt.Errorf("shard %d of pack %v on node %s: %w: %w", index, ref.Pack, m.info.Name, errOtherBytes, node.ErrDamaged)
	}
	return geometry{pack: ref.Pack, k: int(h.K), m: int(h.M), slice: int(h.SliceLen), body: h.SliceOffset(), size: int(ref.Size)}, err
}

// piece reads one pack. Where its shards lie may have changed since the reference
// was written: every node is asked. [ErrUnavailable]: with the nodes that do not
// answer it may be there.
func (r *snapshotReader) piece(ref record.PieceRef) (p *openedPiece, err error) {
	s := r.s
	width := int(ref.K) + int(ref.M)
	if width != len(ref.Digests) || ref.K == 0 || width > pack.MaxWidth || ref.Size > pack.MaxShardSize {
		return nil, fmt.Errorf("%w: a piece of %d+%d with %d digests", ErrDamaged, ref.K, ref.M, len(ref.Digests))
	}
	if err := context.Cause(r.ctx); err != nil {
		return nil, err
	}
	var (
		w    *whole
		have int
		errs []error
		set  = s.members.Load()
		// Members that may have a shard that was not found: one each.
		away = map[*member]bool{}
	)
	defer func() {
		if err != nil && w != nil {
			w.release()
		}
	}()
	// How a shard is cut is not in the reference. A node's header says so, and is
	// believed when a shard cut that way has its digest.
	read := func(m *member, i int) error {
		if have == 0 {
			g, err := s.cutOf(r.ctx, m, ref, i)
			if err != nil {
				return err
			}
			if w != nil && (w.g.body != g.body || w.g.slice != g.slice) {
				w.release()
				w = nil
			}
			if w == nil {
				if w, err = s.newWhole(r.ctx, g, 0); err != nil {
					return err
				}
			}
		}
		return w.read(r.ctx, m, record.Place{Node: m.info.ID, Index: uint8(i), Digest: ref.Digests[i]})
	}
	for i := range width {
		if have == int(ref.K) && !r.all {
			break
		}
		found := false
		var silent []*member
		for _, m := range set.all {
			if !m.readable() {
				continue // it can have nothing: it is gone, or is counted below
			}
			err := read(m, i)
			if err == nil {
				found = true
				have++
				break
			}
			if !errors.Is(err, node.ErrNotFound) {
				errs = append(errs, err)
				if errors.Is(err, node.ErrUnavailable) {
					silent = append(silent, m)
				}
			}
		}
		if !found {
			for _, m := range silent {
				away[m] = true
			}
		}
	}
	for _, m := range set.all {
		if !m.readable() && !m.lost() {
			away[m] = true
		}
	}
	if have < width && r.all && have >= int(ref.K) {
		r.short += width - have
	}
	if have < int(ref.K) && have+len(away) >= int(ref.K) {
		return nil, fmt.Errorf("%w: pack %v of a snapshot: %d of %d shards that it takes; not up: %s: %w", ErrUnavailable, ref.Pack, have, ref.K, s.notUp(set.all), errors.Join(errs...))
	}
	if w == nil {
		return nil, fmt.Errorf("%w: pack %v of a snapshot: %w: %v", ErrDamaged, ref.Pack, pack.ErrShort, errors.Join(errs...))
	}
	opened, err := w.assemble()
	if err != nil {
		// Why single shards were not had is told in words: that some node did not answer
		// is not why the pack cannot be read.
		return nil, fmt.Errorf("%w: pack %v of a snapshot: %w: %v", ErrDamaged, ref.Pack, err, errors.Join(errs...))
	}
	if opened.Header.Kind != pack.Snapshot {
		return nil, fmt.Errorf("%w: a %v pack where a snapshot should be", ErrDamaged, opened.Header.Kind)
	}
	realm, err := s.realm(id.Main)
	if err != nil {
		return nil, err
	}
	return &openedPiece{w, opened, realm, opened.Meta.Entries}, nil
}

// read appends the plaintext of the next chunk.
func (p *openedPiece) read(dst []byte) ([]byte, error) {
	e := p.entries[0]
	if e.Kind != seal.Snap || e.End() > uint64(len(p.o.Payload)) {
		return dst, fmt.Errorf("%w: a chunk of kind %v in a snapshot", ErrDamaged, e.Kind)
	}
	p.entries = p.entries[1:]
	return p.realm.sealer.Verify(dst, e.Info, p.o.Payload[e.Offset:e.End()])
}
