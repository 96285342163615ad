package index

import (
	"encoding/binary"
	"errors"
	"fmt"

	"cairn/id"
	"cairn/index/kv"
	"cairn/record"
)

// Reader reads rows: in a view, or in a [Round] with what the round has done so
// far. "Not there" is [ErrNotFound]; any other error means that the index could
// not be asked, or is damaged. What is returned belongs to the caller.
type Reader interface {
	Head() (Head, error)
	Totals() (Totals, error)
	// Nodes is the node set in force, the zero value before the first.
	Nodes() (record.Nodes, error)

	Bucket(name string) (Bucket, error)
	BucketByID(n id.Bucket) (Bucket, error)
	// Buckets lists all buckets in the order of their names.
	Buckets() ([]Bucket, error)

	// Object is one version of an object, or a delete marker; the zero version
	// stands for the newest.
	Object(bucket id.Bucket, key []byte, v id.Version) (Object, error)
	// Versions lists the newest versions and markers of an object, newest
	// first, at most limit; none is no error.
	Versions(bucket id.Bucket, key []byte, limit int) ([]Object, error)
	// List returns one page of a bucket, which is empty if there is no bucket.
	List(bucket id.Bucket, o ListOptions) (Page, error)

	Chunk(r id.Realm, c id.Chunk) (ChunkRow, error)
	// Chunks looks chunks up in turn and hands each row to fn with the chunk's
	// place in cs; one that is not there comes with [ErrNotFound]. An error of
	// fn ends it and is returned.
	Chunks(r id.Realm, cs []id.Chunk, fn func(i int, row ChunkRow, err error) error) error
	// Children lists what a list chunk counts, in the list's order.
	Children(r id.Realm, list id.Chunk) ([]id.Chunk, error)

	// Condemned says since when a chunk is condemned; [ErrNotFound] when it is not.
	Condemned(r id.Realm, c id.Chunk) (Condemnation, error)
	// EachCondemned hands all chunks that are condemned to fn, by realm and ID. An
	// error of fn ends it and is returned.
	EachCondemned(fn func(Condemnation) error) error

	Pack(p id.Pack) (PackRow, error)
	// EachPack hands all packs to fn in the order of their IDs. An error of fn
	// ends it and is returned.
	EachPack(fn func(id.Pack, PackRow) error) error
	// Snapshots lists the snapshots that the log keeps, newest first: two at most.
	Snapshots() ([]SnapshotRow, error)
	// EachPiece hands the packs of all snapshots to fn, by number and place, those
	// of unfinished and of dropped ones too. An error of fn ends it and is returned.
	EachPiece(fn func(Piece) error) error
	// Losses lists the runs of log packs that were given up, oldest first.
	Losses() ([]Loss, error)
	// Residents lists the chunks whose rows point into a pack, by offset.
	Residents(p id.Pack) ([]Resident, error)
}

// Resident is a chunk that lies in a pack.
type Resident struct {
	Offset uint32
	Realm  id.Realm
	Chunk  id.Chunk
}

// reader implements Reader on a snapshot or a transaction. Its buffers make it
// belong to one goroutine.
type reader struct {
	kv    kv.Reader
	keys  keyspace
	key   []byte
	value []byte
}

// get reads the row with the key in r.key; the value is valid until the next one.
func (r *reader) get() ([]byte, error) {
	v, err := r.kv.Get(r.key, r.value[:0])
	if err != nil {
		if errors.Is(err, kv.ErrNotFound) {
			return nil, ErrNotFound
		}
		return nil, err
	}
	r.value = v[:0]
	return v, nil
}

// Head implements [Reader].
func (r *reader) Head() (h Head, err error) {
	r.key = r.keys.table(r.key[:0], tableHead)
	v, err := r.get()
	if err == nil {
		err = h.parse(v)
	} else if err == ErrNotFound {
		err = nil
	}
	return h, err
}

// Totals implements [Reader].
func (r *reader) Totals() (t Totals, err error) {
	r.key = r.keys.table(r.key[:0], tableTotals)
	v, err := r.get()
	if err == nil {
		err = t.parse(v)
	} else if err == ErrNotFound {
		t.NextBucket, err = 1, nil
	}
	return t, err
}

// Nodes implements [Reader].
func (r *reader) Nodes() (n record.Nodes, err error) {
	from := r.keys.table(nil, tableNodes)
	err = r.kv.Scan(from, next(append([]byte(nil), from...)), false, func(k, v []byte) error {
		k = k[len(from):]
		if len(k) == 0 {
			return damagedRow("node set")
		}
		part, k := k[0], k[1:]
		switch {
		case part == nodesHead && len(k) == 0:
			var s nodeSet
			if err := s.parse(v); err != nil {
				return err
			}
			n.Version, n.M, n.Want = s.version, s.m, s.want
		case part == nodesMember:
			m := record.Member{Name: string(k)}
			if err := parseMember(v, &m); err != nil {
				return err
			}
			n.Members = append(n.Members, m)
		case part == nodesLog && len(k) == len(id.Node{}) && isNothing(v):
			n.LogNodes = append(n.LogNodes, id.Node(k))
		case part == nodesGone && len(k) == len(id.Node{}) && isNothing(v):
			n.Gone = append(n.Gone, id.Node(k))
		default:
			return damagedRow("node set")
		}
		return nil
	})
	return n, err
}

// Bucket implements [Reader].
func (r *reader) Bucket(name string) (Bucket, error) {
	n, err := r.bucketID(name)
	if err != nil {
		return Bucket{}, err
	}
	b, err := r.BucketByID(n)
	if err == ErrNotFound || err == nil && b.Name != name {
		err = fmt.Errorf("%w: a bucket's name and its row disagree", ErrDamaged)
	}
	return b, err
}

func (r *reader) bucketID(name string) (id.Bucket, error) {
	if len(name) > record.MaxBucketName {
		return 0, ErrNotFound
	}
	r.key = r.keys.bucketName(r.key[:0], name)
	v, err := r.get()
	if err != nil {
		return 0, err
	}
	return parseBucketID(v)
}

// BucketByID implements [Reader].
func (r *reader) BucketByID(n id.Bucket) (b Bucket, err error) {
	r.key = r.keys.bucket(r.key[:0], n)
	v, err := r.get()
	if err == nil {
		err = b.parse(v)
	}
	b.ID = n
	return b, err
}

// Buckets implements [Reader].
func (r *reader) Buckets() ([]Bucket, error) {
	var ids []id.Bucket
	from := r.keys.table(nil, tableBucketName)
	err := r.kv.Scan(from, next(append([]byte(nil), from...)), false, func(_, v []byte) error {
		n, err := parseBucketID(v)
		ids = append(ids, n)
		return err
	})
	if err != nil {
		return nil, err
	}
	out := make([]Bucket, len(ids))
	for i, n := range ids {
		if out[i], err = r.BucketByID(n); err == ErrNotFound {
			err = fmt.Errorf("%w: a bucket has a name and no row", ErrDamaged)
		}
		if err != nil {
			return nil, err
		}
	}
	return out, nil
}

// Object implements [Reader].
func (r *reader) Object(bucket id.Bucket, key []byte, v id.Version) (o Object, err error) {
	if len(key) > record.MaxKey {
		return o, ErrNotFound
	}
	// The newest version has a key of its own: this is one look-up, not a search.
	o, err = r.current(bucket, key)
	if err != nil || v.IsZero() || o.Version == v {
		return o, err
	}
	o = Object{}
	r.key = r.keys.older(r.key[:0], bucket, key, v)
	b, err := r.get()
	if err == nil {
		err = o.parse(b)
	}
	if err == nil && o.Version != v {
		err = damagedRow("object")
	}
	return o, err
}

func (r *reader) current(bucket id.Bucket, key []byte) (o Object, err error) {
	r.key = r.keys.object(r.key[:0], bucket, key)
	v, err := r.get()
	if err == nil {
		err = o.parse(v)
	}
	o.Current = true
	return o, err
}

// Versions implements [Reader].
func (r *reader) Versions(bucket id.Bucket, key []byte, limit int) (out []Object, err error) {
	if len(key) > record.MaxKey || limit <= 0 {
		return nil, nil
	}
	from := r.keys.object(nil, bucket, key)
	err = r.kv.Scan(from, r.keys.behind(nil, bucket, key), false, func(k, v []byte) error {
		o := Object{Current: len(k) == len(from)}
		if err := o.parse(v); err != nil {
			return err
		}
		if !o.Current && (len(k) != len(from)+versionLen || parseVersion(k[len(from):]) != o.Version) {
			return damagedRow("object")
		}
		if out = append(out, o); len(out) == limit {
			return kv.Stop
		}
		return nil
	})
	return out, err
}

// Chunk implements [Reader].
func (r *reader) Chunk(realm id.Realm, c id.Chunk) (row ChunkRow, err error) {
	r.key = r.keys.chunk(r.key[:0], realm, &c)
	v, err := r.get()
	if err != nil {
		return row, err
	}
	row.Realm, row.Chunk = realm, c
	return row, row.parse(v)
}

// Chunks implements [Reader].
func (r *reader) Chunks(realm id.Realm, cs []id.Chunk, fn func(int, ChunkRow, error) error) error {
	const batch = 256 // keys made at once
	var keys [][]byte
	for at := 0; at < len(cs); at += batch {
		part := cs[at:min(at+batch, len(cs))]
		keys = keys[:0]
		for i := range part {
			keys = append(keys, r.keys.chunk(nil, realm, &part[i]))
		}
		err := r.kv.GetMany(keys, func(i int, v []byte, err error) error {
			if err != nil {
				return fn(at+i, ChunkRow{}, ErrNotFound)
			}
			var row ChunkRow
			row.Realm, row.Chunk = realm, part[i]
			if err := row.parse(v); err != nil {
				return err
			}
			return fn(at+i, row, nil)
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// Children implements [Reader].
func (r *reader) Children(realm id.Realm, list id.Chunk) ([]id.Chunk, error) {
	r.key = r.keys.children(r.key[:0], realm, &list)
	v, err := r.get()
	if err != nil {
		return nil, err
	}
	return parseChildren(v)
}

// Condemned implements [Reader].
func (r *reader) Condemned(realm id.Realm, c id.Chunk) (Condemnation, error) {
	out := Condemnation{Realm: realm, Chunk: c}
	r.key = r.keys.condemned(r.key[:0], realm, &c)
	v, err := r.get()
	if err == nil {
		err = out.parse(v)
	}
	return out, err
}

// EachCondemned implements [Reader].
func (r *reader) EachCondemned(fn func(Condemnation) error) error {
	from := r.keys.table(nil, tableCondemned)
	return r.kv.Scan(from, next(append([]byte(nil), from...)), false, func(k, v []byte) error {
		realm, rest, ok := parseOrdered(k[len(from):])
		if !ok || len(rest) != len(id.Chunk{}) || realm > max32 {
			return damagedRow("condemned")
		}
		c := Condemnation{Realm: id.Realm(realm), Chunk: id.Chunk(rest)}
		if err := c.parse(v); err != nil {
			return err
		}
		return fn(c)
	})
}

// Pack implements [Reader].
func (r *reader) Pack(p id.Pack) (row PackRow, err error) {
	if row, err = r.packPlace(p); err == nil {
		row.PackUsage, err = r.packUsage(p)
	}
	return row, err
}

func (r *reader) packPlace(p id.Pack) (row PackRow, err error) {
	r.key = r.keys.pack(r.key[:0], &p, packPlace)
	v, err := r.get()
	if err == nil {
		err = row.parse(v)
	}
	return row, err
}

func (r *reader) packUsage(p id.Pack) (u PackUsage, err error) {
	r.key = r.keys.pack(r.key[:0], &p, packUsage)
	v, err := r.get()
	if err == nil {
		err = u.parse(v)
	} else if err == ErrNotFound {
		err = fmt.Errorf("%w: a pack without its usage", ErrDamaged)
	}
	return u, err
}

// EachPack implements [Reader].
func (r *reader) EachPack(fn func(id.Pack, PackRow) error) error {
	return r.eachPackBut(id.Pack{}, fn)
}

// eachPackBut leaves one pack out: a round's own, of which only the usage is there.
func (r *reader) eachPackBut(but id.Pack, fn func(id.Pack, PackRow) error) error {
	from := r.keys.table(nil, tablePack)
	var (
		p   id.Pack
		row PackRow
		own bool // the place was read, the usage is to come
	)
	err := r.kv.Scan(from, next(append([]byte(nil), from...)), false, func(k, v []byte) error {
		if k = k[len(from):]; len(k) != len(p)+1 {
			return damagedRow("pack")
		}
		if !but.IsZero() && but == id.Pack(k[:len(p)]) {
			return nil
		}
		switch part := k[len(p)]; {
		case part == packPlace && !own:
			p, own, row = id.Pack(k), true, PackRow{}
			return row.parse(v)
		case part == packUsage && own && p == id.Pack(k[:len(p)]):
			own = false
			if err := row.PackUsage.parse(v); err != nil {
				return err
			}
			return fn(p, row)
		}
		return fmt.Errorf("%w: the rows of a pack are not a pair", ErrDamaged)
	})
	if err == nil && own {
		err = fmt.Errorf("%w: a pack without its usage", ErrDamaged)
	}
	return err
}

// eachResident hands the chunks whose rows point into a pack to fn, by offset.
// Residents is eachResident, collected.
func (r *reader) Residents(p id.Pack) (out []Resident, err error) {
	err = r.eachResident(p, func(off uint32, realm id.Realm, c id.Chunk) error {
		out = append(out, Resident{off, realm, c})
		return nil
	})
	return out, err
}

func (r *reader) eachResident(p id.Pack, fn func(off uint32, realm id.Realm, c id.Chunk) error) error {
	from := r.keys.resident(nil, &p, 0)
	at := len(from) - 4
	return r.kv.Scan(from[:at:at], next(append([]byte(nil), from[:at]...)), false, func(k, v []byte) error {
		realm, c, err := parseResident(v)
		if err != nil || len(k) != at+4 {
			return damagedRow("resident")
		}
		return fn(binary.BigEndian.Uint32(k[at:]), realm, c)
	})
}
