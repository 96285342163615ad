package index

import (
	"bytes"
	"errors"
	"fmt"
	"slices"

	"cairn/id"
	"cairn/pack"
	"cairn/record"
)

// SnapshotRow is a snapshot that the log names: an export of this index at an
// earlier position, in packs of its own.
type SnapshotRow struct {
	Number uint64 // the sequence that its rows stand behind
	// Seq and Pack are the log pack with its record.
	Seq    uint64
	Pack   id.Pack
	Head   id.Pack // the log pack of sequence Number
	Pieces uint32  // packs, the root included
	Rows   uint64
	Bytes  uint64 // of the export
	Sum    [32]byte
	Root   record.PieceRef
	Logged uint64 // Head.Logged at Number
}

// Piece is one pack of a snapshot.
type Piece struct {
	Number uint64 // of the snapshot
	Piece  uint32
	Pack   id.Pack
}

func (s *SnapshotRow) append(b []byte) []byte {
	b = appendArray(append(b, rowVersion), 9)
	b = appendUint(b, s.Seq)
	b = appendBytes(b, s.Pack[:])
	b = appendBytes(b, s.Head[:])
	b = appendUint(b, uint64(s.Pieces))
	b = appendUint(b, s.Rows)
	b = appendUint(b, s.Bytes)
	b = appendBytes(b, s.Sum[:])
	b = appendUint(b, s.Logged)
	b = appendArray(b, 4+len(s.Root.Digests))
	b = appendBytes(b, s.Root.Pack[:])
	b = appendUint(b, uint64(s.Root.K))
	b = appendUint(b, uint64(s.Root.M))
	b = appendUint(b, uint64(s.Root.Size))
	for i := range s.Root.Digests {
		b = appendBytes(b, s.Root.Digests[i][:])
	}
	return b
}

// parse leaves the number, which is the key's, to the caller.
func (s *SnapshotRow) parse(v []byte) error {
	d := open(v)
	d.array(9)
	s.Seq = d.uint()
	d.fill(s.Pack[:])
	d.fill(s.Head[:])
	s.Pieces = uint32(d.upTo(max32))
	s.Rows = d.uint()
	s.Bytes = d.uint()
	d.fill(s.Sum[:])
	s.Logged = d.uint()
	n := d.list(4 + pack.MaxWidth)
	if n < 4 {
		d.bad = true
		n = 4
	}
	d.fill(s.Root.Pack[:])
	s.Root.K = uint8(d.upTo(255))
	s.Root.M = uint8(d.upTo(255))
	s.Root.Size = uint32(d.upTo(max32))
	s.Root.Digests = nil
	if n > 4 {
		s.Root.Digests = make([][16]byte, n-4)
		for i := range s.Root.Digests {
			d.fill(s.Root.Digests[i][:])
		}
	}
	if !d.end() {
		return damagedRow("snapshot")
	}
	return nil
}

func appendPiece(b []byte, p *id.Pack) []byte {
	return appendBytes(appendArray(append(b, rowVersion), 1), p[:])
}

func parsePiece(v []byte) (p id.Pack, err error) {
	d := open(v)
	d.array(1)
	d.fill(p[:])
	if !d.end() {
		err = damagedRow("piece")
	}
	return p, err
}

// Snapshots implements [Reader].
func (r *reader) Snapshots() (out []SnapshotRow, err error) {
	from := r.keys.table(nil, tableSnapshot)
	err = r.kv.Scan(from, next(bytes.Clone(from)), true, func(k, v []byte) error {
		n, rest, ok := parseOrdered(k[len(from):])
		if !ok || len(rest) > 0 {
			return damagedRow("snapshot")
		}
		s := SnapshotRow{Number: n}
		err := s.parse(v)
		out = append(out, s)
		return err
	})
	return out, err
}

// EachPiece implements [Reader].
func (r *reader) EachPiece(fn func(Piece) error) error {
	from := r.keys.table(nil, tablePiece)
	return r.kv.Scan(from, next(bytes.Clone(from)), false, func(k, v []byte) error {
		p, err := parsePieceRow(k[len(from):], v)
		if err != nil {
			return err
		}
		return fn(p)
	})
}

func parsePieceRow(k, v []byte) (p Piece, err error) {
	n, rest, ok := parseOrdered(k)
	piece, rest, ok2 := parseOrdered(rest)
	if !ok || !ok2 || len(rest) > 0 || piece > max32 {
		return p, damagedRow("piece")
	}
	p.Number, p.Piece = n, uint32(piece)
	p.Pack, err = parsePiece(v)
	return p, err
}

func (r *reader) piece(number uint64, piece uint32) (id.Pack, error) {
	r.key = r.keys.piece(r.key[:0], number, piece)
	v, err := r.get()
	if err != nil {
		return id.Pack{}, err
	}
	return parsePiece(v)
}

func (r *Round) applyPiece(p *record.Piece) error {
	a := record.Adopt{Pack: p.Pack, K: p.K, M: p.M, Slice: p.Slice, Size: p.Size, Body: p.Body, Shards: p.Shards}
	if err := checkAdopt(&a); err != nil {
		return err
	}
	if p.Pack == r.pack || p.Number == 0 || p.Number > r.head.Seq {
		return fmt.Errorf("%w: a piece of snapshot %d", ErrRecord, p.Number)
	}
	kept, err := r.reader.Snapshots()
	if err != nil {
		return err
	}
	if len(kept) > 0 && kept[0].Number >= p.Number {
		if err := r.mismatch("a piece of snapshot %d, the newest is %d", p.Number, kept[0].Number); err != nil {
			return err
		}
	}
	switch _, err := r.packPlace(p.Pack); {
	case err == nil: // in a rebuild it is passed over: that is done
		return r.mismatch("pack %v is in the index already", p.Pack)
	case !errors.Is(err, ErrNotFound):
		return err
	}
	switch _, err := r.reader.piece(p.Number, p.Piece); {
	case err == nil:
		return r.mismatch("piece %d of snapshot %d is in the index already", p.Piece, p.Number)
	case !errors.Is(err, ErrNotFound):
		return err
	}
	r.keep(&usageRow{pack: p.Pack})
	row := PackRow{Kind: pack.Snapshot, K: p.K, M: p.M, Slice: p.Slice, Size: p.Size, Body: p.Body, Writer: p.Writer, Counter: p.Counter, Shards: p.Shards}
	if err := r.addPack(p.Pack, &row); err != nil {
		return err
	}
	return r.put(r.keys.piece(r.key[:0], p.Number, p.Piece), appendPiece(r.out[:0], &p.Pack))
}

func (r *Round) applySnapshot(s *record.Snapshot) error {
	if s.Number == 0 || s.Number > r.head.Seq || s.Pieces == 0 || s.Head.IsZero() || s.Root.K == 0 ||
		int(s.Root.K)+int(s.Root.M) > pack.MaxWidth || len(s.Root.Digests) != int(s.Root.K)+int(s.Root.M) || s.Before >= s.Number {
		return fmt.Errorf("%w: snapshot %d of %d pieces", ErrRecord, s.Number, s.Pieces)
	}
	kept, err := r.reader.Snapshots()
	if err != nil {
		return err
	}
	var newest SnapshotRow
	if len(kept) > 0 {
		newest = kept[0]
	}
	// The one that stays beside it is the newest that could be read.
	stays := slices.IndexFunc(kept, func(k SnapshotRow) bool {
		return k.Number == s.Before && k.Seq == s.BeforeSeq && k.Pack == s.BeforePack
	})
	if stays < 0 && (len(kept) > 0 || s.Before != 0 || s.BeforeSeq != 0 || !s.BeforePack.IsZero()) {
		if err := r.mismatch("the newest snapshot is %d, the record names %d", newest.Number, s.Before); err != nil {
			return err
		}
		stays = 0 // in a rebuild the newest
	}
	if newest.Number >= s.Number { // in a rebuild it is passed over: a newer one is there
		return r.mismatch("snapshot %d after %d", s.Number, newest.Number)
	}
	switch root, err := r.reader.piece(s.Number, s.Pieces-1); {
	case errors.Is(err, ErrNotFound) || err == nil && root != s.Root.Pack:
		if err := r.mismatch("snapshot %d has another root than its last piece", s.Number); err != nil {
			return err
		}
	case err != nil:
		return err
	}
	for i := range kept {
		if i != stays {
			if _, err := r.remove(r.keys.snapshot(r.key[:0], kept[i].Number)); err != nil {
				return err
			}
		}
	}
	row := SnapshotRow{Number: s.Number, Seq: r.seq, Pack: r.pack, Head: s.Head, Pieces: s.Pieces, Rows: s.Rows, Bytes: s.Bytes, Sum: s.Sum, Root: s.Root, Logged: s.Logged}
	return r.put(r.keys.snapshot(r.key[:0], s.Number), row.append(r.out[:0]))
}

func (r *Round) applyPieceDrop(d *record.PieceDrop) error {
	kept, err := r.reader.Snapshots()
	if err != nil {
		return err
	}
	for i := range kept {
		if kept[i].Number == d.Number {
			// In a rebuild too: what is kept is what the next rebuild needs.
			return r.mismatch("a piece of snapshot %d is dropped, which is kept", d.Number)
		}
	}
	had, err := r.reader.piece(d.Number, d.Piece)
	if errors.Is(err, ErrNotFound) || err == nil && had != d.Pack {
		return r.mismatch("piece %d of snapshot %d is dropped and is not there", d.Piece, d.Number)
	}
	if err != nil {
		return err
	}
	if _, err := r.remove(r.keys.piece(r.key[:0], d.Number, d.Piece)); err != nil {
		return err
	}
	row, err := r.packPlace(d.Pack)
	if errors.Is(err, ErrNotFound) {
		return r.mismatch("a piece's pack has no row")
	}
	if err != nil {
		return err
	}
	if row.Kind != pack.Snapshot {
		return fmt.Errorf("%w: a piece of snapshot %d in a %v pack", ErrDamaged, d.Number, row.Kind)
	}
	return r.removePack(d.Pack, &row)
}

// removePack takes away the rows of a pack that nothing points into.
func (r *Round) removePack(p id.Pack, row *PackRow) error {
	u, err := r.usageOf(p)
	if err != nil {
		return err
	}
	u.gone = true
	delete(r.usage, p)
	r.tallied.add(row, less)
	t := &r.totals
	t.Packs--
	t.PayloadBytes -= u.Payload
	t.ShardBytes -= uint64(row.Size) * row.shards()
	t.ParityBytes -= uint64(row.Size) * (row.shards() - uint64(row.K))
	r.changed = true
	if _, err := r.remove(r.keys.pack(r.key[:0], &p, packPlace)); err != nil {
		return err
	}
	_, err = r.remove(r.keys.pack(r.key[:0], &p, packUsage))
	return err
}
