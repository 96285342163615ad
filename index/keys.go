package index

import (
	"bytes"
	"encoding/binary"
	"math/bits"

	"cairn/id"
)

// Tables. A key begins with the number of the log and the table; numbers are
// never used again for something else.
const (
	tableFormat     = 1
	tableHead       = 2
	tableTotals     = 3
	tableNodes      = 4
	tableBucketName = 5
	tableBucket     = 6
	tableObject     = 7
	tableChunk      = 8
	tableChildren   = 9
	tablePack       = 10
	tableResident   = 11
	tableSnapshot   = 12
	tablePiece      = 13
	tableLoading    = 14 // of this copy of the index alone: never exported
	tableCondemned  = 15
	tableLoss       = 16
	tableEnd        = 17
)

// Parts of the node set.
const (
	nodesHead   = 0
	nodesMember = 1
	nodesLog    = 2
	nodesGone   = 3
	nodesEnd    = 4
)

// Parts of a pack.
const (
	packPlace = 0
	packUsage = 1
)

// A version behind an object's key: sequence and position, inverted so that
// newer ones sort first.
const versionLen = 12

// keyspace makes the keys of one log.
type keyspace struct{ log []byte }

func newKeyspace(l id.Log) keyspace { return keyspace{appendOrdered(nil, uint64(l))} }

// appendOrdered appends the one encoding of v that sorts as v does: a byte up to
// 0xf7, above that 0xf7 plus the number of bytes, and these, most significant
// first.
func appendOrdered(b []byte, v uint64) []byte {
	if v < 0xf8 {
		return append(b, byte(v))
	}
	n := (bits.Len64(v) + 7) / 8
	b = append(b, 0xf7+byte(n))
	for n--; n >= 0; n-- {
		b = append(b, byte(v>>(8*n)))
	}
	return b
}

func parseOrdered(b []byte) (v uint64, rest []byte, ok bool) {
	if len(b) == 0 {
		return 0, nil, false
	}
	if b[0] < 0xf8 {
		return uint64(b[0]), b[1:], true
	}
	n := int(b[0] - 0xf7)
	if len(b) < 1+n {
		return 0, nil, false
	}
	for _, x := range b[1 : 1+n] {
		v = v<<8 | uint64(x)
	}
	return v, b[1+n:], v >= 0xf8 && b[1] != 0
}

func (k keyspace) table(b []byte, table byte) []byte {
	return append(append(b, k.log...), table)
}

func (k keyspace) nodes(b []byte, part byte) []byte {
	return append(k.table(b, tableNodes), part)
}

func (k keyspace) bucketName(b []byte, name string) []byte {
	return append(k.table(b, tableBucketName), name...)
}

func (k keyspace) bucket(b []byte, n id.Bucket) []byte {
	return appendOrdered(k.table(b, tableBucket), uint64(n))
}

func (k keyspace) chunk(b []byte, r id.Realm, c *id.Chunk) []byte {
	return append(appendOrdered(k.table(b, tableChunk), uint64(r)), c[:]...)
}

func (k keyspace) children(b []byte, r id.Realm, c *id.Chunk) []byte {
	return append(appendOrdered(k.table(b, tableChildren), uint64(r)), c[:]...)
}

func (k keyspace) condemned(b []byte, r id.Realm, c *id.Chunk) []byte {
	return append(appendOrdered(k.table(b, tableCondemned), uint64(r)), c[:]...)
}

func (k keyspace) pack(b []byte, p *id.Pack, part byte) []byte {
	return append(append(k.table(b, tablePack), p[:]...), part)
}

func (k keyspace) resident(b []byte, p *id.Pack, off uint32) []byte {
	return binary.BigEndian.AppendUint32(append(k.table(b, tableResident), p[:]...), off)
}

// objects is the beginning of all keys of a bucket's objects.
func (k keyspace) objects(b []byte, n id.Bucket) []byte {
	return appendOrdered(k.table(b, tableObject), uint64(n))
}

// object is the key of an object's current version.
func (k keyspace) object(b []byte, n id.Bucket, key []byte) []byte {
	return append(appendEscaped(k.objects(b, n), key), 0, 1)
}

// older is the key of a version that is not the current one.
func (k keyspace) older(b []byte, n id.Bucket, key []byte, v id.Version) []byte {
	return appendVersion(k.object(b, n, key), v)
}

// behind is above every key of the object's versions and below the next object.
func (k keyspace) behind(b []byte, n id.Bucket, key []byte) []byte {
	return append(appendEscaped(k.objects(b, n), key), 0, 2)
}

// appendEscaped appends a client's key so that keys sort as the client's do and
// none is the beginning of another one with its end mark: NUL becomes NUL 0xff,
// and the end mark is NUL 1.
func appendEscaped[T string | []byte](b []byte, key T) []byte {
	for i := range len(key) {
		if b = append(b, key[i]); key[i] == 0 {
			b = append(b, 0xff)
		}
	}
	return b
}

// parseEscaped appends the client's key to dst and returns what follows the end
// mark.
func parseEscaped(dst, b []byte) (key, rest []byte, ok bool) {
	for {
		i := bytes.IndexByte(b, 0)
		if i < 0 || i+1 >= len(b) {
			return dst, nil, false
		}
		dst = append(dst, b[:i]...)
		switch b[i+1] {
		case 0xff:
			dst = append(dst, 0)
		case 1:
			return dst, b[i+2:], true
		default:
			return dst, nil, false
		}
		b = b[i+2:]
	}
}

func appendVersion(b []byte, v id.Version) []byte {
	b = binary.BigEndian.AppendUint64(b, ^v.Seq)
	return binary.BigEndian.AppendUint32(b, ^v.Pos)
}

func parseVersion(b []byte) id.Version {
	return id.Version{Seq: ^binary.BigEndian.Uint64(b), Pos: ^binary.BigEndian.Uint32(b[8:])}
}

// next turns b, in place, into the first key above every key that begins with b.
// A key of ours never consists of 0xff alone.
func next(b []byte) []byte {
	for b[len(b)-1] == 0xff {
		b = b[:len(b)-1]
	}
	b[len(b)-1]++
	return b
}

func (k keyspace) snapshot(b []byte, number uint64) []byte {
	return appendOrdered(k.table(b, tableSnapshot), number)
}

func (k keyspace) piece(b []byte, number uint64, piece uint32) []byte {
	return appendOrdered(appendOrdered(k.table(b, tablePiece), number), uint64(piece))
}

// Parts of the loading table, beside the row that says how far loading has come.
const (
	partFormat  = 0 // the format's value, kept back
	partHead    = 1 // the head's
	partRebuild = 2 // a rebuild is under way
)

func (k keyspace) loadingPart(b []byte, part byte) []byte {
	return append(k.table(b, tableLoading), part)
}
