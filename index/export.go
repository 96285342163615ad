package index

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"hash"
	"io"

	"github.com/zeebo/blake3"

	"cairn/id"
	"cairn/index/kv"
)

// exportName begins every export, followed by the version of its rows: whoever does not
// know that reads no further.
const exportName = "cairn index"

// Exported says what an export holds.
type Exported struct {
	Head  Head
	Rows  uint64
	Bytes uint64 // of the whole, its end included
	Sum   [32]byte
}

// Export writes all rows, unsealed, in the order of their keys: a sequence of
// CBOR items (docs/formats/index.md) that depends on nothing but the rows, and
// so on nothing but the links that were applied. At the end stand the head, the
// number of rows and the BLAKE3 of everything before. The export is one point in
// time; rows that are missing or damaged are [ErrDamaged], and then the end is
// not written. It holds object keys in clear.
func (x *Index) Export(ctx context.Context, w io.Writer) (Exported, error) {
	return x.ExportTo(ctx, func(Head) io.Writer { return w })
}

// ExportTo is Export to what begin returns, which is told the head first.
func (x *Index) ExportTo(ctx context.Context, begin func(Head) io.Writer) (out Exported, err error) {
	if x.loading.Load() {
		return out, ErrLoading
	}
	err = x.db.View(func(s *kv.Snapshot) error {
		h, err := x.reader(s).Head()
		if err != nil {
			return err
		}
		e := exporter{w: bufio.NewWriterSize(begin(h), 64<<10), sum: blake3.New()}
		version := uint64(formatVersion)
		format, err := s.Get(x.keys.table(nil, tableFormat), nil)
		if err == nil {
			err = parseUints(format, "format", &version)
		}
		if err := nilIf(err, kv.ErrNotFound); err != nil {
			return err
		}
		if err := e.begin(x.cfg.Log, version); err != nil {
			return err
		}
		// All rows, compared with what the database says of their number and sum.
		local := x.keys.table(nil, tableLoading)
		_, err = s.ScanAll(ctx, func(key, value []byte) error {
			if bytes.HasPrefix(key, local) {
				return nil // of this copy of the index, not of the log
			}
			return e.row(key, value)
		})
		if err == nil {
			out, err = e.end(h)
		}
		return err
	})
	return out, err
}

type exporter struct {
	w   *bufio.Writer
	sum hash.Hash
	buf []byte

	rows, bytes uint64 // written
}

func (e *exporter) begin(log id.Log, version uint64) error {
	e.buf = appendArray(e.buf, 3)
	e.buf = appendText(e.buf, exportName)
	e.buf = appendUint(e.buf, version)
	e.buf = appendUint(e.buf, uint64(log))
	return e.flush()
}

func (e *exporter) row(key, value []byte) error {
	e.rows++
	e.buf = appendBytes(appendBytes(appendArray(e.buf, 2), key), value)
	return e.flush()
}

func (e *exporter) end(h Head) (out Exported, err error) {
	e.buf = appendUint(appendArray(e.buf, 4), h.Seq)
	e.buf = appendBytes(e.buf, h.Pack[:])
	e.buf = appendUint(e.buf, e.rows)
	e.sum.Write(e.buf) // the end's own head, pack and count are under the sum too
	e.sum.Sum(out.Sum[:0])
	e.buf = appendBytes(e.buf, out.Sum[:])
	if err := e.flush(); err != nil {
		return out, err
	}
	if err := e.w.Flush(); err != nil {
		return out, fmt.Errorf("export the index: %w", err)
	}
	out.Head, out.Rows, out.Bytes = h, e.rows, e.bytes
	return out, nil
}

func (e *exporter) flush() error {
	e.sum.Write(e.buf)
	e.bytes += uint64(len(e.buf))
	_, err := e.w.Write(e.buf)
	e.buf = e.buf[:0]
	if err != nil {
		return fmt.Errorf("export the index: %w", err)
	}
	return nil
}

// exportTail is how an export ends: a byte string of the sum.
const exportTail = 2 + 32

// CheckExport reads an export of so many bytes to its end and computes its sum:
// [ErrExport] when it is not the one named.
func CheckExport(r io.Reader, bytes uint64, sum [32]byte) error {
	if bytes < exportTail {
		return fmt.Errorf("%w: an export of %d bytes", ErrExport, bytes)
	}
	h := blake3.New()
	n, err := io.CopyN(h, r, int64(bytes-exportTail))
	if errors.Is(err, io.EOF) {
		err = fmt.Errorf("%w: it ends after %d bytes of %d", ErrExport, n, bytes)
	}
	if err != nil {
		return err
	}
	var tail [exportTail + 1]byte
	k, err := io.ReadFull(r, tail[:])
	if err != nil && !errors.Is(err, io.ErrUnexpectedEOF) && !errors.Is(err, io.EOF) {
		return err
	}
	if k != exportTail || [32]byte(tail[2:exportTail]) != sum || [32]byte(h.Sum(nil)) != sum {
		return fmt.Errorf("%w: its bytes have another sum", ErrExport)
	}
	return nil
}
