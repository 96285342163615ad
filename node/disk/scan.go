package disk

import (
	"errors"
	"io"

	"cairn/node"
	"cairn/pack"
)

// scanned is what a segment without a footer turned out to hold.
type scanned struct {
	shards []footShard
	notes  []footNote
	lost   []rec // rot that has not even a name
	end    int64 // of the last good record
	sure   int64 // records from here on were perhaps never synced
	torn   bool  // something that was never durable stood there
}

// scan reads a segment record after record. A bad place below the highest
// known-durable offset that any good record knows is rot, above it a torn tail
// (H36). holes says that the segment may have been punched: then zeros are no
// rot. The error is one of r, or errNewer.
func scan(r io.ReaderAt, size int64, inc *[16]byte, holes bool) (*scanned, error) {
	w := window{r: r, size: size, buf: make([]byte, 256<<10)}
	type place struct {
		recHeader
		gap int64 // bytes before it that are no record
	}
	var places []place
	var durable int64
	off, gap := int64(dataStart), int64(0)
	for off+blockSize <= size {
		b, err := w.get(off, recordHead)
		if err != nil {
			return nil, err
		}
		h, ok := parseRecHeader(b, inc, off)
		if !ok || h.end() > size {
			off, gap = off+blockSize, gap+blockSize
			continue
		}
		durable = max(durable, h.durable)
		places = append(places, place{h, gap})
		gap = 0
		off = h.end()
	}
	// A gap after the last record cannot be below anything known to be durable.
	s := &scanned{end: dataStart, sure: durable}
	for i := range places {
		p := &places[i]
		if p.gap > 0 {
			if p.off-p.gap >= durable {
				s.torn = true
				return s, nil
			}
			if err := s.rot(&w, p.off-p.gap, min(p.off, durable), &p.prev, holes); err != nil {
				return nil, err
			}
			s.end = max(s.end, min(p.off, durable))
			if durable < p.off {
				s.torn = true
				return s, nil
			}
		}
		if p.typ == markRec {
			if p.off >= durable {
				// Nothing real follows a mark at the end; what does is a leftover.
				return s, nil
			}
			s.end = p.end() // unreachable in what we write: a record replaces the mark
			continue
		}
		bad, err := s.accept(&w, p.recHeader, p.off < durable)
		if err != nil {
			return nil, err
		}
		if bad {
			s.torn = true
			return s, nil
		}
		s.end = p.end()
	}
	s.torn = s.torn || gap > 0
	return s, nil
}

// accept takes one record with a good header. A shard below the known-durable
// offset is taken unread: should it have rotted, whoever reads it will see. bad
// says that it is torn.
func (s *scanned) accept(w *window, h recHeader, durable bool) (bad bool, err error) {
	if h.typ == shardRec && durable {
		s.shards = append(s.shards, footShard{rec: h.rec})
		return false, nil
	}
	b, err := w.get(h.off+recordHead, int(h.size))
	if err != nil {
		return false, err
	}
	if h.typ == shardRec {
		hdr, _, err := pack.ParseShard(b)
		if errors.Is(err, errNewer) {
			return false, err // its own checksum holds: it is not torn
		}
		if err != nil || hdr.Pack != h.key.Pack || hdr.Index != h.key.Index || payloadCRC(b, b[pack.HeaderSize:hdr.BodyOffset()]) != h.payCRC {
			return true, nil
		}
		s.shards = append(s.shards, footShard{rec: h.rec})
		return false, nil
	}
	notes, err := parseNotes(b)
	if err != nil || pack.CRC(b) != h.payCRC {
		if durable {
			s.lost = append(s.lost, h.rec)
		}
		return !durable, nil
	}
	for _, nt := range notes {
		s.notes = append(s.notes, footNote{note: nt, off: h.off})
	}
	return false, nil
}

// rot names what it can of a bad place that was durable once. The record behind
// it names the last of what was there; for the others their own shard header
// may still stand.
func (s *scanned) rot(w *window, from, to int64, last *rec, holes bool) error {
	for from < to {
		if last.typ == shardRec && last.off == from {
			s.shards = append(s.shards, footShard{rec: *last, damaged: true})
			from = last.end()
			continue
		}
		b, err := w.get(from, blockSize)
		if err != nil {
			return err
		}
		if holes && allZero(b) {
			from += blockSize
			continue
		}
		until := to
		if last.typ != 0 && last.off > from && last.off < to {
			until = last.off
		}
		r := rec{off: from, size: uint32(until-from) - recordHead}
		if h, err := pack.ParseHeader(b[recordHead:]); err == nil && alignUp(recordHead+int64(h.ShardLen())) <= until-from {
			r = rec{off: from, size: uint32(h.ShardLen()), typ: shardRec, kind: h.Kind, key: node.Key{Pack: h.Pack, Index: h.Index}}
			if h.Kind == pack.Log {
				r.pos = h.Position()
			}
			s.shards = append(s.shards, footShard{rec: r, damaged: true})
		} else {
			r.size = min(r.size, pack.MaxShardSize)
			r.typ = shardRec
			s.lost = append(s.lost, r)
			from = until
			continue
		}
		from = r.end()
	}
	return nil
}

// window reads a file in large pieces.
type window struct {
	r    io.ReaderAt
	size int64
	buf  []byte
	off  int64
	n    int
}

// get returns n bytes from off on, valid until the next call.
func (w *window) get(off int64, n int) ([]byte, error) {
	if off < w.off || off+int64(n) > w.off+int64(w.n) {
		if n > len(w.buf) {
			w.buf = make([]byte, n)
		}
		want := int(min(int64(len(w.buf)), w.size-off))
		m, err := w.r.ReadAt(w.buf[:want], off)
		if err != nil && !errors.Is(err, io.EOF) {
			w.n = 0
			return nil, err
		}
		clear(w.buf[m:want]) // a file that shrank reads as zeros
		w.off, w.n = off, want
	}
	return w.buf[off-w.off:][:n], nil
}
