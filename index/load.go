package index

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/zeebo/blake3"

	"cairn/id"
	"cairn/index/kv"
)

// Source is an export to be loaded, and what is known of it from elsewhere.
type Source struct {
	Number uint64  // the sequence that its rows stand behind
	Head   id.Pack // the log pack of that sequence
	Root   id.Pack // tells this snapshot from another of the same number
	Rows   uint64
	Sum    [32]byte
	// Open returns the export from a position on; it is closed by Load.
	Open func(ctx context.Context, pos uint64) (io.ReadCloser, error)
}

// loading is the row that says how far loading has come.
type loading struct {
	number    uint64
	root      id.Pack
	pos, rows uint64
}

func (l *loading) append(b []byte) []byte {
	b = appendArray(append(b, rowVersion), 4)
	b = appendUint(b, l.number)
	b = appendBytes(b, l.root[:])
	b = appendUint(b, l.pos)
	return appendUint(b, l.rows)
}

func (l *loading) parse(v []byte) error {
	d := open(v)
	d.array(4)
	l.number = d.uint()
	d.fill(l.root[:])
	l.pos = d.uint()
	l.rows = d.uint()
	if !d.end() {
		return damagedRow("loading")
	}
	return nil
}

// loaded is [ErrLoading] while there is a loading row, and remembers it.
func (x *Index) loaded(s *kv.Snapshot) error {
	_, err := s.Get(x.keys.table(nil, tableLoading), nil)
	switch {
	case errors.Is(err, kv.ErrNotFound):
		return nil
	case err != nil:
		return err
	}
	x.loading.Store(true)
	return ErrLoading
}

func nilIf(err, not error) error {
	if errors.Is(err, not) {
		return nil
	}
	return err
}

// Load fills an empty index with the rows of an export, in transactions of a
// bounded size, and returns when all are there; then the head is the export's.
// What was loaded before an interruption is kept, when it is of the same
// snapshot, and Load goes on behind it; otherwise it is removed first. progress,
// which may be nil, is told the number of rows now and then. An export that is
// not as it must be is [ErrExport]. At the end the rows are read back from the
// database and exported again: what comes out must have the source's sum, however
// many runs it took; if not, that is [ErrDamaged]. An index that has a head is
// [ErrApplied].
func (x *Index) Load(ctx context.Context, src Source, progress func(rows uint64)) error {
	x.lock()
	defer x.unlock()
	defer x.tally.forget()
	var at loading
	fresh := true
	err := x.db.View(func(s *kv.Snapshot) error {
		r := x.reader(s)
		r.key = x.keys.table(nil, tableLoading)
		switch v, err := r.get(); {
		case err == nil:
			fresh = false
			return at.parse(v)
		case !errors.Is(err, ErrNotFound):
			return err
		}
		h, err := r.Head()
		if err == nil && h.Seq != 0 {
			err = fmt.Errorf("%w: the index has applied sequence %d", ErrApplied, h.Seq)
		}
		return err
	})
	if err != nil {
		return fmt.Errorf("load the index: %w", err)
	}
	l := loader{x: x, src: &src, at: at}
	if fresh || at.number != src.Number || at.root != src.Root {
		l.at = loading{number: src.Number, root: src.Root}
		if !fresh {
			if err := x.wipe(ctx); err != nil {
				return fmt.Errorf("load the index: remove what another snapshot left: %w", err)
			}
		}
	}
	x.loading.Store(true)
	if err := l.run(ctx, progress); err != nil {
		x.loading.Store(!fresh || l.stored)
		return fmt.Errorf("load the index from snapshot %d: %w", src.Number, err)
	}
	x.loading.Store(false)
	return nil
}

// Wipe removes what an interrupted Load has left, so that the log can be
// replayed from its beginning. An index that has a head is [ErrApplied].
func (x *Index) Wipe(ctx context.Context) error {
	x.lock()
	defer x.unlock()
	if !x.loading.Load() {
		h, err := x.Head()
		if err == nil && h.Seq != 0 {
			err = fmt.Errorf("%w: the index has applied sequence %d", ErrApplied, h.Seq)
		}
		return err
	}
	if err := x.wipe(ctx); err != nil {
		return fmt.Errorf("empty the index: %w", err)
	}
	x.loading.Store(false)
	return nil
}

// BeginRebuild notes durably that what is applied from now on is applied in mode
// [Rebuild], until [Index.EndRebuild]: a start that finds the note must go on in
// that mode, because mismatches that were passed over have left wrong counts.
func (x *Index) BeginRebuild(ctx context.Context) error {
	x.lock()
	defer x.unlock()
	if x.rebuilding.Load() != 0 {
		return nil
	}
	if err := x.noteRebuild(ctx, rebuilding); err != nil {
		return fmt.Errorf("begin to rebuild the index: %w", err)
	}
	return nil
}

// EndRebuild counts all edges again if the rebuild met what the log does not
// name, and ends it. It returns how many rows were changed.
func (x *Index) EndRebuild(ctx context.Context) (changed int, err error) {
	if x.rebuilding.Load() == rebuildMet {
		if err := x.closeLosses(ctx); err != nil {
			return 0, fmt.Errorf("what came with log packs that were given up: %w", err)
		}
		if changed, err = x.Recount(ctx); err != nil {
			return changed, err
		}
	}
	x.lock()
	defer x.unlock()
	if x.rebuilding.Load() == 0 {
		return changed, nil
	}
	err = x.write(ctx, func(tx *kv.Tx) error {
		_, err := tx.Delete(x.keys.loadingPart(nil, partRebuild))
		return err
	})
	if err != nil {
		return changed, fmt.Errorf("end to rebuild the index: %w", err)
	}
	x.rebuilding.Store(0)
	return changed, nil
}

// Rebuilding reports whether a rebuild was begun and not ended.
func (x *Index) Rebuilding() bool { return x.rebuilding.Load() != 0 }

// How far a rebuild is from being one that nobody needs to know of.
const (
	rebuilding = 1
	rebuildMet = 2 // it met what the log does not name: all edges are counted again at its end
)

func (x *Index) noteRebuild(ctx context.Context, state uint32) error {
	err := x.write(ctx, func(tx *kv.Tx) error {
		return tx.Put(x.keys.loadingPart(nil, partRebuild), appendUints(nil, uint64(state)))
	})
	if err == nil {
		x.rebuilding.Store(state)
	}
	return err
}

// loadedRebuild reads the note when the index is opened.
func (x *Index) loadedRebuild(s *kv.Snapshot) error {
	v, err := s.Get(x.keys.loadingPart(nil, partRebuild), nil)
	if errors.Is(err, kv.ErrNotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	var state uint64
	if err := parseUints(v, "rebuild", &state); err != nil {
		return err
	}
	if state != rebuilding && state != rebuildMet {
		return damagedRow("rebuild")
	}
	x.rebuilding.Store(uint32(state))
	return nil
}

// Clear removes all rows, whatever the index holds.
func (x *Index) Clear(ctx context.Context) error {
	x.lock()
	defer x.unlock()
	if err := x.wipe(ctx); err != nil {
		return fmt.Errorf("empty the index: %w", err)
	}
	x.loading.Store(false)
	return nil
}

// wipe removes all rows, the loading row last. First that row is made to fit no
// snapshot: what is half removed must not be gone on from.
func (x *Index) wipe(ctx context.Context) error {
	defer x.tally.forget()
	const atOnce = 2048
	mark := x.keys.table(nil, tableLoading)
	err := x.write(ctx, func(tx *kv.Tx) error { return tx.Put(mark, (&loading{}).append(nil)) })
	var from []byte // what was removed lies before it: an engine takes long to step over that
	for more := err == nil; more; {
		err = x.write(ctx, func(tx *kv.Tx) error {
			var keys [][]byte
			err := tx.Scan(from, nil, false, func(k, _ []byte) error {
				if keys = append(keys, bytes.Clone(k)); len(keys) > atOnce {
					return kv.Stop
				}
				return nil
			})
			if more = len(keys) > atOnce; more {
				from = keys[atOnce]
			}
			note := x.keys.loadingPart(nil, partRebuild)
			for i := 0; err == nil && i < min(len(keys), atOnce); i++ {
				if !bytes.Equal(keys[i], note) {
					_, err = tx.Delete(keys[i])
				}
			}
			return err
		})
		more = more && err == nil
	}
	return err
}

func (x *Index) write(ctx context.Context, fn func(*kv.Tx) error) error {
	tx, err := x.db.Begin(ctx)
	if err != nil {
		return err
	}
	defer tx.Discard()
	if err := fn(tx); err != nil {
		return err
	}
	return tx.Commit()
}

// loader reads an export and writes its rows.
type loader struct {
	x   *Index
	src *Source
	at  loading
	in  *bufio.Reader
	raw []byte // the item at hand, as it was read

	key, last    []byte
	value        []byte
	format, head []byte // values of the rows that come last
	tx           *kv.Tx
	stored       bool // a transaction was committed
}

func (l *loader) run(ctx context.Context, progress func(uint64)) error {
	in, err := l.src.Open(ctx, l.at.pos)
	if err != nil {
		return err
	}
	defer in.Close()
	l.in = bufio.NewReaderSize(in, 64<<10)
	defer func() {
		if l.tx != nil {
			l.tx.Discard()
		}
	}()
	if l.at.pos == 0 {
		if err := l.begin(); err != nil {
			return err
		}
	} else if err := l.again(); err != nil {
		return err
	}
	limits := l.x.db.Limits()
	for n := 1; ; n++ {
		if n%4096 == 0 && ctx.Err() != nil {
			return context.Cause(ctx)
		}
		count, err := l.number(majorArray)
		switch {
		case err != nil:
			return err
		case count == 4:
			return l.end(ctx)
		case count != 2:
			return l.damaged("an item of %d parts", count)
		}
		if err := l.row(ctx); err != nil {
			return err
		}
		if s := l.tx.Size(); s.Entries >= min(8192, limits.Entries/2) || s.Bytes >= limits.Bytes/2 {
			if err := l.commit(); err != nil {
				return err
			}
			if progress != nil {
				progress(l.at.rows)
			}
		}
	}
}

func (l *loader) damaged(format string, args ...any) error {
	return fmt.Errorf("%w: at byte %d: "+format, append([]any{ErrExport, l.at.pos}, args...)...)
}

// begin reads the export's head.
func (l *loader) begin() error {
	n, err := l.number(majorArray)
	if err != nil {
		return err
	}
	name, err := l.bytes(nil, majorText, len(exportName))
	if err != nil {
		return err
	}
	version, err := l.number(majorUint)
	if err != nil {
		return err
	}
	if string(name) != exportName {
		return l.damaged("it is no export")
	}
	if version > knownFormat {
		return fmt.Errorf("%w: an export of version %d, this build knows %d", ErrNewer, version, knownFormat)
	}
	if n != 3 || version == 0 {
		return l.damaged("it is no export")
	}
	log, err := l.number(majorUint)
	if err != nil {
		return err
	}
	if log != uint64(l.x.cfg.Log) {
		return l.damaged("it is of log %d", log)
	}
	l.item()
	return nil
}

// again reads what an earlier run has kept back: format and head are written
// last, and stand behind the loading row meanwhile.
func (l *loader) again() error {
	return l.x.db.View(func(s *kv.Snapshot) (err error) {
		for i, part := range [...]*[]byte{&l.format, &l.head} {
			*part, err = s.Get(l.x.keys.loadingPart(nil, byte(i)), nil)
			if errors.Is(err, kv.ErrNotFound) {
				err = l.damaged("what was loaded of it lacks its beginning")
			}
			if err != nil {
				return err
			}
		}
		return nil
	})
}

// row reads one row and writes it.
func (l *loader) row(ctx context.Context) (err error) {
	if l.key, err = l.bytes(l.key[:0], majorBytes, kv.MaxKey); err != nil {
		return err
	}
	if l.value, err = l.bytes(l.value[:0], majorBytes, kv.MaxValue); err != nil {
		return err
	}
	rest, ours := bytes.CutPrefix(l.key, l.x.keys.log)
	if !ours || len(rest) == 0 || rest[0] == 0 || rest[0] == tableLoading || rest[0] >= tableEnd {
		return l.damaged("a row of no table")
	}
	if l.last != nil && bytes.Compare(l.key, l.last) <= 0 {
		return l.damaged("rows out of order")
	}
	l.last = append(l.last[:0], l.key...)
	l.item()
	l.at.rows++
	if l.tx == nil {
		if l.tx, err = l.x.db.Begin(ctx); err != nil {
			return err
		}
	}
	key := l.key
	switch rest[0] {
	case tableFormat:
		l.format, key = bytes.Clone(l.value), l.x.keys.loadingPart(nil, partFormat)
	case tableHead:
		l.head, key = bytes.Clone(l.value), l.x.keys.loadingPart(nil, partHead)
	}
	return l.tx.Put(key, l.value)
}

// commit writes what was read and where to go on.
func (l *loader) commit() error {
	if err := l.tx.Put(l.x.keys.table(nil, tableLoading), l.at.append(nil)); err != nil {
		return err
	}
	tx := l.tx
	l.tx, l.stored = nil, true
	return tx.Commit()
}

// end holds what was read against the export's end and the source, and makes the
// index whole.
func (l *loader) end(ctx context.Context) error {
	seq, err := l.number(majorUint)
	if err != nil {
		return err
	}
	head, err := l.bytes(nil, majorBytes, len(id.Pack{}))
	if err != nil {
		return err
	}
	rows, err := l.number(majorUint)
	if err != nil {
		return err
	}
	want, err := l.bytes(nil, majorBytes, len(l.src.Sum))
	if err != nil {
		return err
	}
	switch {
	case !bytes.Equal(want, l.src.Sum[:]):
		return l.damaged("its sum is another than the one named")
	case rows != l.at.rows || rows != l.src.Rows:
		return l.damaged("%d rows were read, %d were written, %d are named", l.at.rows, rows, l.src.Rows)
	case seq != l.src.Number || !bytes.Equal(head, l.src.Head[:]):
		return l.damaged("it ends at sequence %d", seq)
	}
	if _, err := l.in.ReadByte(); err != io.EOF {
		return l.damaged("something follows on its end")
	}
	var version uint64
	var h Head
	if err := errors.Join(parseUints(l.format, "format", &version), h.parse(l.head)); err != nil {
		return err
	}
	if version > knownFormat {
		return fmt.Errorf("%w: rows of format %d, this build knows %d", ErrNewer, version, knownFormat)
	}
	if h.Seq != seq || !bytes.Equal(h.Pack[:], head) {
		return l.damaged("its head is at sequence %d", h.Seq)
	}
	if l.tx != nil {
		if err := l.commit(); err != nil {
			return err
		}
	}
	if err := l.readBack(ctx, h); err != nil {
		return err
	}
	if l.tx, err = l.x.db.Begin(ctx); err != nil {
		return err
	}
	keys := l.x.keys
	if err := errors.Join(l.tx.Put(keys.table(nil, tableFormat), l.format), l.tx.Put(keys.table(nil, tableHead), l.head)); err != nil {
		return err
	}
	for _, k := range [...][]byte{keys.table(nil, tableLoading), keys.loadingPart(nil, partFormat), keys.loadingPart(nil, partHead)} {
		if _, err := l.tx.Delete(k); err != nil {
			return err
		}
	}
	tx := l.tx
	l.tx = nil
	return tx.Commit()
}

// readBack exports what the database holds by now, all of it, and compares sums.
func (l *loader) readBack(ctx context.Context, h Head) error {
	return l.x.db.View(func(s *kv.Snapshot) error {
		keys := l.x.keys
		e := exporter{w: bufio.NewWriterSize(io.Discard, 4<<10), sum: blake3.New()}
		// The two rows that are kept back stand before all others.
		var version uint64
		err := parseUints(l.format, "format", &version)
		if err != nil {
			return err
		}
		err = errors.Join(e.begin(l.x.cfg.Log, version), e.row(keys.table(nil, tableFormat), l.format), e.row(keys.table(nil, tableHead), l.head))
		if err != nil {
			return err
		}
		local := keys.table(nil, tableLoading)
		if _, err := s.ScanAll(ctx, func(key, value []byte) error {
			if bytes.HasPrefix(key, local) {
				return nil
			}
			return e.row(key, value)
		}); err != nil {
			return err
		}
		out, err := e.end(h)
		if err != nil {
			return err
		}
		if out.Sum != l.src.Sum {
			return fmt.Errorf("%w: what was loaded has another sum than the snapshot", ErrDamaged)
		}
		return nil
	})
}

// item ends an item: a place to go on from.
func (l *loader) item() {
	l.at.pos += uint64(len(l.raw))
	l.raw = l.raw[:0]
}

// number reads a head in its one encoding.
func (l *loader) number(major byte) (uint64, error) {
	first, err := l.in.ReadByte()
	if err != nil {
		return 0, l.cut(err)
	}
	start := len(l.raw)
	l.raw = append(l.raw, first)
	if low := first & 0x1f; low >= 24 && low <= 27 {
		for range 1 << (low - 24) {
			b, err := l.in.ReadByte()
			if err != nil {
				return 0, l.cut(err)
			}
			l.raw = append(l.raw, b)
		}
	}
	d := decoder{b: l.raw[start:]}
	n := d.head(major)
	if !d.end() {
		return 0, l.damaged("no head of its kind")
	}
	return n, nil
}

// bytes appends a string of at most most bytes to dst.
func (l *loader) bytes(dst []byte, major byte, most int) ([]byte, error) {
	n, err := l.number(major)
	if err != nil {
		return dst, err
	}
	if n > uint64(most) {
		return dst, l.damaged("a string of %d bytes, at most %d", n, most)
	}
	start := len(l.raw)
	l.raw = append(l.raw, make([]byte, n)...)
	if _, err := io.ReadFull(l.in, l.raw[start:]); err != nil {
		return dst, l.cut(err)
	}
	return append(dst, l.raw[start:]...), nil
}

// cut is the error of an export that ends too early, or cannot be read.
func (l *loader) cut(err error) error {
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return l.damaged("it ends too early")
	}
	return err
}
