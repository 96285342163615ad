package disk

import (
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"hash/crc32"
	"time"

	"cairn/id"
	"cairn/node"
	"cairn/pack"
)

// The formats, see docs/formats/node.md.
const (
	blockSize  = 4 << 10 // records and headers begin on a multiple of it
	dataStart  = 2 * blockSize
	recordHead = 192
	noteLen    = 48
	entryLen   = 72
	footerHead = 40
	smallHead  = 16
	stateLen   = 64

	formatVersion = 1

	// smallShard is the longest shard that goes into the journal although it is
	// no log pack: below it a place in a zero-filled file, which syncs three
	// times as fast, is worth more than one that can be punched.
	smallShard = 64 << 10
	// maxNotes bounds the notes of one record, so that a hostile length cannot ask for more.
	maxNotes = 4096
	// maxSmallFile is the limit of the files that node.Store.WriteFile takes.
	maxSmallFile = 1 << 20
)

type segKind uint8

const (
	dataSeg    segKind = 1
	journalSeg segKind = 2
)

func (k segKind) dir() string {
	if k == dataSeg {
		return "data"
	}
	return "journal"
}

type recType uint8

const (
	shardRec recType = 1
	notesRec recType = 2
	markRec  recType = 3
)

type noteType uint8

const (
	tombstone noteType = 1
	undelete  noteType = 2
)

// Kinds of small files, in their envelope.
const (
	stateFile   = 1
	clusterFile = 2
	keyringFile = 3
	footerFile  = 4
)

// errNewer refuses what a later version wrote: this build must not judge it.
var errNewer = id.ErrNewer

func newer(what string, version int) error {
	return fmt.Errorf("%w: %s of format %d, this build knows %d", errNewer, what, version, formatVersion)
}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

func damaged(format string, a ...any) error {
	return fmt.Errorf("%w: %s", node.ErrDamaged, fmt.Sprintf(format, a...))
}

func alignUp(n int64) int64 { return (n + blockSize - 1) &^ (blockSize - 1) }

// zeroBlock fills records up to the next block; nobody writes to it.
var zeroBlock [blockSize]byte

func allZero(b []byte) bool {
	for len(b) > 0 {
		n := min(len(b), blockSize)
		if string(b[:n]) != string(zeroBlock[:n]) {
			return false
		}
		b = b[n:]
	}
	return true
}

// segHeader begins a segment, twice.
type segHeader struct {
	kind segKind
	no   uint32
	node id.Node
	inc  [16]byte // drawn anew for each use of the file
}

const segHeaderLen = 48

// encode returns the first two blocks of a segment.
func (h *segHeader) encode() []byte {
	b := make([]byte, dataStart)
	copy(b, "CRNG")
	le := binary.LittleEndian
	le.PutUint16(b[4:], formatVersion)
	b[6] = byte(h.kind)
	le.PutUint32(b[8:], h.no)
	copy(b[12:], h.node[:])
	copy(b[28:], h.inc[:])
	le.PutUint32(b[44:], crc32.Checksum(b[:44], castagnoli))
	copy(b[blockSize:], b[:segHeaderLen])
	return b
}

// parseSegHeader reads one of the two copies.
func parseSegHeader(b []byte) (segHeader, error) {
	var h segHeader
	le := binary.LittleEndian
	switch {
	case len(b) < segHeaderLen || string(b[:4]) != "CRNG":
		return h, damaged("segment header: no magic")
	case crc32.Checksum(b[:44], castagnoli) != le.Uint32(b[44:]):
		return h, damaged("segment header: checksum")
	case le.Uint16(b[4:]) > formatVersion:
		return h, newer("a segment", int(le.Uint16(b[4:])))
	case le.Uint16(b[4:]) == 0 || b[7] != 0:
		return h, damaged("segment header: not the one valid encoding")
	}
	h.kind, h.no = segKind(b[6]), le.Uint32(b[8:])
	copy(h.node[:], b[12:])
	copy(h.inc[:], b[28:])
	if h.kind != dataSeg && h.kind != journalSeg {
		return h, damaged("segment header: kind %d", h.kind)
	}
	return h, nil
}

// rec says where a record lies and what it is about. Notes and marks have zero
// key and instance.
type rec struct {
	off  int64 // of the record within its segment
	size uint32
	typ  recType
	kind pack.Kind
	key  node.Key
	inst id.Instance
	pos  pack.Position // of a log pack
}

// length is how many bytes of the segment the record takes.
func (r *rec) length() int64 { return alignUp(recordHead + int64(r.size)) }

func (r *rec) end() int64 { return r.off + r.length() }

// recHeader is the header of a record.
type recHeader struct {
	rec
	durable int64
	payCRC  uint32
	prev    rec // zero typ: there is none
}

// append writes the header of a record of the use inc of a segment.
func (h *recHeader) append(dst []byte, inc *[16]byte) []byte {
	n := len(dst)
	dst = append(dst, zeroBlock[:recordHead]...)
	b := dst[n:]
	le := binary.LittleEndian
	copy(b, "CRNR")
	b[4] = byte(h.typ)
	le.PutUint64(b[8:], uint64(h.off))
	le.PutUint64(b[16:], uint64(h.durable))
	le.PutUint32(b[24:], h.size)
	le.PutUint32(b[28:], h.payCRC)
	copy(b[32:], h.key.Pack[:])
	le.PutUint64(b[48:], uint64(h.inst))
	le.PutUint64(b[56:], h.pos.Epoch)
	le.PutUint64(b[64:], h.pos.Seq)
	le.PutUint32(b[72:], h.pos.Attempt)
	b[76], b[77] = byte(h.kind), h.key.Index
	p := &h.prev
	le.PutUint64(b[80:], uint64(p.off))
	le.PutUint32(b[88:], p.size)
	b[92], b[93], b[94] = byte(p.typ), byte(p.kind), p.key.Index
	copy(b[96:], p.key.Pack[:])
	le.PutUint64(b[112:], uint64(p.inst))
	le.PutUint64(b[120:], p.pos.Epoch)
	le.PutUint64(b[128:], p.pos.Seq)
	le.PutUint32(b[136:], p.pos.Attempt)
	le.PutUint32(b[188:], recordCRC(inc, b))
	return dst
}

// recordCRC binds a record's header to one use of one segment (H36).
func recordCRC(inc *[16]byte, b []byte) uint32 {
	return crc32.Update(crc32.Checksum(inc[:], castagnoli), castagnoli, b[:188])
}

// parseRecHeader reads the record header at the beginning of b, which was read
// from off in the use inc of a segment.
func parseRecHeader(b []byte, inc *[16]byte, off int64) (recHeader, bool) {
	var h recHeader
	le := binary.LittleEndian
	if len(b) < recordHead || string(b[:4]) != "CRNR" ||
		le.Uint32(b[188:]) != recordCRC(inc, b) || int64(le.Uint64(b[8:])) != off {
		return h, false
	}
	h.off, h.durable = off, int64(le.Uint64(b[16:]))
	h.typ, h.size, h.payCRC = recType(b[4]), le.Uint32(b[24:]), le.Uint32(b[28:])
	copy(h.key.Pack[:], b[32:])
	h.inst = id.Instance(le.Uint64(b[48:]))
	h.pos = pack.Position{Epoch: le.Uint64(b[56:]), Seq: le.Uint64(b[64:]), Attempt: le.Uint32(b[72:])}
	h.kind, h.key.Index = pack.Kind(b[76]), b[77]
	p := &h.prev
	p.off, p.size = int64(le.Uint64(b[80:])), le.Uint32(b[88:])
	p.typ, p.kind, p.key.Index = recType(b[92]), pack.Kind(b[93]), b[94]
	copy(p.key.Pack[:], b[96:])
	p.inst = id.Instance(le.Uint64(b[112:]))
	p.pos = pack.Position{Epoch: le.Uint64(b[120:]), Seq: le.Uint64(b[128:]), Attempt: le.Uint32(b[136:])}
	switch {
	case h.typ < shardRec || h.typ > markRec || h.durable < 0 || h.durable > off || h.size > pack.MaxShardSize:
		return h, false
	case p.typ != 0 && (p.off < dataStart || p.size > pack.MaxShardSize || p.end() > off):
		return h, false
	}
	var again [recordHead]byte
	return h, string(h.append(again[:0], inc)) == string(b[:recordHead])
}

// note is a change of one instance's state.
type note struct {
	typ  noteType
	key  node.Key
	inst id.Instance
	num  uint64 // of two notes about one instance the higher one holds
	time time.Time
}

func (n *note) append(dst []byte) []byte {
	dst = append(dst, byte(n.typ), n.key.Index, 0, 0, 0, 0, 0, 0)
	dst = append(dst, n.key.Pack[:]...)
	le := binary.LittleEndian
	dst = le.AppendUint64(dst, uint64(n.inst))
	dst = le.AppendUint64(dst, n.num)
	return le.AppendUint64(dst, uint64(n.time.UnixNano()))
}

// parseNotes reads the payload of a notes record; its CRC was checked.
func parseNotes(b []byte) ([]note, error) {
	if len(b) == 0 || len(b)%noteLen != 0 || len(b) > maxNotes*noteLen {
		return nil, damaged("%d bytes of notes", len(b))
	}
	le := binary.LittleEndian
	notes := make([]note, 0, len(b)/noteLen)
	for ; len(b) > 0; b = b[noteLen:] {
		n := note{typ: noteType(b[0]), inst: id.Instance(le.Uint64(b[24:])), num: le.Uint64(b[32:]),
			time: time.Unix(0, int64(le.Uint64(b[40:])))}
		n.key.Index = b[1]
		copy(n.key.Pack[:], b[8:])
		if n.typ != tombstone && n.typ != undelete || !allZero(b[2:8]) {
			return nil, damaged("a note of type %d", n.typ)
		}
		notes = append(notes, n)
	}
	return notes, nil
}

// footer lists what a closed segment holds.
type footer struct {
	no        uint32
	kind      segKind
	resumable bool // the node was stopped cleanly; appending may go on at end
	retired   bool // a write or sync failed: the file is never written again
	inc       [16]byte
	end       int64
	shards    []footShard
	notes     []footNote
}

type footShard struct {
	rec
	damaged bool
}

type footNote struct {
	note
	off int64 // of the record that holds the note; only for the reader's eye
}

func (f *footer) encode() []byte {
	b := make([]byte, footerHead, footerHead+entryLen*(len(f.shards)+len(f.notes)))
	le := binary.LittleEndian
	le.PutUint32(b, f.no)
	b[4] = byte(f.kind)
	if f.resumable {
		b[5] |= 1
	}
	if f.retired {
		b[5] |= 2
	}
	copy(b[8:], f.inc[:])
	le.PutUint64(b[24:], uint64(f.end))
	le.PutUint32(b[32:], uint32(len(f.shards)+len(f.notes)))
	for i := range f.shards {
		s := &f.shards[i]
		b = append(b, 1, byte(s.kind), s.key.Index, 0)
		if s.damaged {
			b[len(b)-1] = 1
		}
		b = le.AppendUint32(b, s.size)
		b = le.AppendUint64(b, uint64(s.off))
		b = append(b, s.key.Pack[:]...)
		b = le.AppendUint64(b, uint64(s.inst))
		b = le.AppendUint64(b, s.pos.Epoch)
		b = le.AppendUint64(b, s.pos.Seq)
		b = le.AppendUint32(b, s.pos.Attempt)
		b = append(b, zeroBlock[:12]...)
	}
	for i := range f.notes {
		n := &f.notes[i]
		b = append(b, 2, byte(n.typ), n.key.Index, 0, 0, 0, 0, 0)
		b = le.AppendUint64(b, uint64(n.off))
		b = append(b, n.key.Pack[:]...)
		b = le.AppendUint64(b, uint64(n.inst))
		b = le.AppendUint64(b, n.num)
		b = le.AppendUint64(b, uint64(n.time.UnixNano()))
		b = append(b, zeroBlock[:16]...)
	}
	return b
}

func parseFooter(b []byte) (*footer, error) {
	le := binary.LittleEndian
	if len(b) < footerHead || len(b)-footerHead != entryLen*int(le.Uint32(b[32:])) {
		return nil, damaged("footer of %d bytes", len(b))
	}
	whole := b
	f := &footer{no: le.Uint32(b), kind: segKind(b[4]), resumable: b[5]&1 != 0, retired: b[5]&2 != 0, end: int64(le.Uint64(b[24:]))}
	copy(f.inc[:], b[8:])
	if f.end < dataStart || f.end%blockSize != 0 || f.kind != dataSeg && f.kind != journalSeg {
		return nil, damaged("footer of segment %d", f.no)
	}
	for b = b[footerHead:]; len(b) > 0; b = b[entryLen:] {
		off := int64(le.Uint64(b[8:]))
		if off < dataStart || off >= f.end || off%blockSize != 0 {
			return nil, damaged("footer of segment %d: offset %d", f.no, off)
		}
		key := node.Key{Pack: id.Pack(b[16:32]), Index: b[2]}
		inst := id.Instance(le.Uint64(b[32:]))
		switch b[0] {
		case 1:
			s := footShard{rec: rec{off: off, size: le.Uint32(b[4:]), typ: shardRec, kind: pack.Kind(b[1]), key: key, inst: inst,
				pos: pack.Position{Epoch: le.Uint64(b[40:]), Seq: le.Uint64(b[48:]), Attempt: le.Uint32(b[56:])}}, damaged: b[3]&1 != 0}
			if s.size > pack.MaxShardSize || s.end() > f.end {
				return nil, damaged("footer of segment %d: a shard of %d bytes at %d", f.no, s.size, off)
			}
			f.shards = append(f.shards, s)
		case 2:
			n := footNote{off: off, note: note{typ: noteType(b[1]), key: key, inst: inst, num: le.Uint64(b[40:]), time: time.Unix(0, int64(le.Uint64(b[48:])))}}
			if n.typ != tombstone && n.typ != undelete {
				return nil, damaged("footer of segment %d: a note of type %d", f.no, n.typ)
			}
			f.notes = append(f.notes, n)
		default:
			return nil, damaged("footer of segment %d: an entry of type %d", f.no, b[0])
		}
	}
	if string(f.encode()) != string(whole) {
		return nil, damaged("footer of segment %d: not the one valid encoding", f.no)
	}
	return f, nil
}

// state is what a node must not forget beside its shards.
type state struct {
	promised node.Authority
	starts   uint64        // the last start that gave out instances
	high     pack.Position // the highest log position held by what has left the table
}

func (s *state) encode() []byte {
	b := make([]byte, stateLen)
	le := binary.LittleEndian
	le.PutUint64(b, s.promised.Epoch)
	copy(b[8:], s.promised.Writer[:])
	le.PutUint64(b[24:], s.starts)
	le.PutUint64(b[32:], s.high.Epoch)
	le.PutUint64(b[40:], s.high.Seq)
	le.PutUint32(b[48:], s.high.Attempt)
	return b
}

func parseState(b []byte) (state, error) {
	if len(b) != stateLen || !allZero(b[52:]) {
		return state{}, damaged("state of %d bytes", len(b))
	}
	le := binary.LittleEndian
	s := state{starts: le.Uint64(b[24:]),
		high: pack.Position{Epoch: le.Uint64(b[32:]), Seq: le.Uint64(b[40:]), Attempt: le.Uint32(b[48:])}}
	s.promised.Epoch = le.Uint64(b)
	copy(s.promised.Writer[:], b[8:])
	return s, nil
}

// sealSmall puts content into the envelope of small files.
func sealSmall(kind uint16, n id.Node, content []byte) []byte {
	b := make([]byte, smallHead, smallHead+len(content))
	copy(b, "CRNF")
	le := binary.LittleEndian
	le.PutUint16(b[4:], formatVersion)
	le.PutUint16(b[6:], kind)
	le.PutUint32(b[8:], uint32(len(content)))
	le.PutUint32(b[12:], smallCRC(b, n, content))
	return append(b, content...)
}

func smallCRC(head []byte, n id.Node, content []byte) uint32 {
	c := crc32.Checksum(head[:12], castagnoli)
	c = crc32.Update(c, castagnoli, n[:])
	return crc32.Update(c, castagnoli, content)
}

// openSmall takes content, which points into b, out of its envelope.
func openSmall(kind uint16, n id.Node, b []byte) ([]byte, error) {
	le := binary.LittleEndian
	switch {
	case len(b) < smallHead || string(b[:4]) != "CRNF":
		return nil, damaged("no magic")
	case int64(len(b)-smallHead) != int64(le.Uint32(b[8:])) || smallCRC(b, n, b[smallHead:]) != le.Uint32(b[12:]):
		return nil, damaged("checksum, or a file of another node")
	case le.Uint16(b[4:]) > formatVersion:
		return nil, newer("a small file", int(le.Uint16(b[4:])))
	case le.Uint16(b[4:]) == 0 || le.Uint16(b[6:]) != kind:
		return nil, damaged("file of kind %d, want %d", le.Uint16(b[6:]), kind)
	}
	return b[smallHead:], nil
}

// identity is the content of node.json.
type identity struct {
	version int
	cluster id.Cluster
	node    id.Node
}

// encode prints the one valid form.
func (i *identity) encode() []byte {
	b := fmt.Appendf(nil, `{"cairn":"node","version":%d,"cluster":"%v","node":"%v"`, i.version, i.cluster, i.node)
	return fmt.Appendf(b, ",\"crc32c\":\"%08x\"}\n", crc32.Checksum(b, castagnoli))
}

func parseIdentity(b []byte) (identity, error) {
	var i identity
	const head, tail = `{"cairn":"node","version":`, `,"crc32c":"00000000"}` + "\n"
	if len(b) > 4096 || len(b) < len(head)+len(tail) || string(b[:len(head)]) != head {
		return i, damaged("node.json does not begin as one")
	}
	body := b[:len(b)-len(tail)]
	var sum [4]byte
	if _, err := hex.Decode(sum[:], b[len(b)-len(`00000000"}`)-1:len(b)-len(`"}`)-1]); err != nil ||
		binary.BigEndian.Uint32(sum[:]) != crc32.Checksum(body, castagnoli) {
		return i, damaged("node.json: checksum")
	}
	var cluster, nodeID string
	if _, err := fmt.Sscanf(string(b[len(head):]), `%d,"cluster":%q,"node":%q`, &i.version, &cluster, &nodeID); err != nil {
		if i.version > formatVersion {
			return i, newer("node.json", i.version)
		}
		return i, damaged("node.json: %v", err)
	}
	if i.version > formatVersion {
		return i, newer("node.json", i.version)
	}
	var err, err2 error
	i.cluster, err = id.ParseCluster(cluster)
	i.node, err2 = id.ParseNode(nodeID)
	if err != nil || err2 != nil || i.version != formatVersion || string(i.encode()) != string(b) {
		return i, damaged("node.json: not the one valid encoding")
	}
	return i, nil
}
