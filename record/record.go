// Package record defines the effects that the log holds. A record says what
// changes and what it replaces; it never says why. Applying records in log order
// to an empty index gives the index: no clock, randomness, map order or
// configuration takes part, and no decision is taken again.
//
// Records travel in batches, one per run of records of the same realm, each
// sealed under that realm's key by the caller; the encoding is canonical CBOR
// (docs/formats/records.md). An unknown kind is an error: a log is never
// replayed with a hole.
package record

import (
	"errors"
	"fmt"
	"unicode/utf8"

	"github.com/fxamacker/cbor/v2"

	"cairn/id"
	"cairn/manifest"
	"cairn/pack"
	"cairn/seal"
)

// Sentinels of [Parse].
var (
	ErrSyntax      = errors.New("record: not a valid record")
	ErrNewer       = fmt.Errorf("record: %w", id.ErrNewer)
	ErrUnknownKind = fmt.Errorf("record: of a kind that is not known: %w", id.ErrNewer)
)

// StoreVersion is the version of a store as a whole that this build writes, and
// the highest it reads: one number for everything on disk and in the log. It rises
// when something may be written that an older build cannot read or would not
// keep; docs/formats/README.md.
const StoreVersion = 1

// Bounds on what a record may hold.
const (
	MaxKey        = 1024 // bytes of an object's key
	MaxBucketName = 63
	MaxAttrs      = 8 << 10 // bytes of an object's attributes, encoded
	MaxNodes      = 4096
	MaxBatch      = 4 << 20 // bytes of an encoded batch
	MaxCondemned  = 1024    // chunks that one record condemns, or removes
	MaxMoved      = 2048    // chunks that one record moves
	MaxDropped    = 1024    // packs that one record drops
	MaxLost       = 4096    // chunks that one record says are lost, or found again
)

// Kind tells records apart. Numbers are never used again for something else.
type Kind uint8

const (
	KindAdopt        Kind = 1
	KindList         Kind = 2
	KindPut          Kind = 3
	KindDelete       Kind = 4
	KindPurge        Kind = 5
	KindBucketCreate Kind = 6
	KindBucketSet    Kind = 7
	KindBucketDelete Kind = 8
	KindNodes        Kind = 9
	KindReshard      Kind = 10
	KindPiece        Kind = 11
	KindSnapshot     Kind = 12
	KindPieceDrop    Kind = 13
	KindLost         Kind = 14
	KindCondemn      Kind = 15
	KindRemove       Kind = 16
	KindMove         Kind = 17
	KindDrop         Kind = 18
	KindFound        Kind = 21
	KindLockSet      Kind = 30
	KindClock        Kind = 31

	lastKind = KindClock
)

// Record is one of the pointer types below.
type Record interface {
	Kind() Kind
	// Realm is the realm whose key seals the record; 0 for the store's own.
	Realm() id.Realm
}

// Place says where one shard of a pack lies, and what it must be.
type Place = pack.Place

// Adopt makes the chunks of a durable data pack part of the store. A chunk that
// has a live row already keeps it, and the copy in this pack is dead bytes; a
// condemned or damaged one is pointed at this pack and is well again.
type Adopt struct {
	In      id.Realm  `cbor:"1,keyasint"` // realm of every entry
	Pack    id.Pack   `cbor:"2,keyasint"`
	K       uint8     `cbor:"3,keyasint"`
	M       uint8     `cbor:"4,keyasint"`
	Slice   uint32    `cbor:"5,keyasint"` // bytes of the coded stream in each shard
	Size    uint32    `cbor:"6,keyasint"` // bytes of a whole shard
	Writer  id.Writer `cbor:"7,keyasint"`
	Counter uint64    `cbor:"8,keyasint"` // the writer's pack counter
	Shards  []Place   `cbor:"9,keyasint"` // K+M of them, ordered by shard index
	Entries Entries   `cbor:"10,keyasint"`
	Body    uint32    `cbor:"11,keyasint"` // where the slice begins within a shard
}

// Entries are the chunks of a data pack by ascending offset. They travel without
// their realm, which is the record's.
type Entries []pack.Entry

// wireEntry is an entry as it is encoded.
type wireEntry struct {
	_                           struct{} `cbor:",toarray"`
	Chunk                       id.Chunk
	Kind                        uint8
	Epoch                       uint32
	Compression                 uint8
	Offset, SealedLen, PlainLen uint32
}

// MarshalCBOR implements cbor.Marshaler.
func (e Entries) MarshalCBOR() ([]byte, error) {
	out := make([]wireEntry, len(e))
	for i, x := range e {
		out[i] = wireEntry{Chunk: x.Chunk, Kind: uint8(x.Kind), Epoch: x.Epoch, Compression: uint8(x.Compression), Offset: x.Offset, SealedLen: x.SealedLen, PlainLen: x.PlainLen}
	}
	return encMode.Marshal(out)
}

// UnmarshalCBOR implements cbor.Unmarshaler; [Parse] fills in the realm.
func (e *Entries) UnmarshalCBOR(b []byte) error {
	var in []wireEntry
	if err := decMode.Unmarshal(b, &in); err != nil {
		return err
	}
	*e = make(Entries, len(in))
	for i, x := range in {
		(*e)[i] = pack.Entry{Info: pack.Info{Chunk: x.Chunk, Kind: seal.Kind(x.Kind), Epoch: x.Epoch, Compression: seal.Compression(x.Compression),
			PlainLen: x.PlainLen, SealedLen: x.SealedLen}, Offset: x.Offset}
	}
	return nil
}

// List counts the children of a list chunk whose row this log pack made: one
// edge from the list to each child.
type List struct {
	In       id.Realm   `cbor:"1,keyasint"`
	Chunk    id.Chunk   `cbor:"2,keyasint"`
	Children []id.Chunk `cbor:"3,keyasint"`
	Before   []uint64   `cbor:"4,keyasint"` // each child's count before, in order
}

// Attrs are what a client says of an object besides its bytes.
type Attrs struct {
	ContentType        string      `cbor:"1,keyasint,omitempty"`
	ContentEncoding    string      `cbor:"2,keyasint,omitempty"`
	ContentDisposition string      `cbor:"3,keyasint,omitempty"`
	ContentLanguage    string      `cbor:"4,keyasint,omitempty"`
	CacheControl       string      `cbor:"5,keyasint,omitempty"`
	User               []UserField `cbor:"6,keyasint,omitempty"` // sorted by name, each name once
}

// UserField is one entry of an object's user metadata.
type UserField struct {
	_           struct{} `cbor:",toarray"`
	Name, Value string
}

// Modes of a [Lock].
const (
	Governance = "governance" // may be lifted by who says so
	Compliance = "compliance" // may be extended only
)

// Lock keeps a version from being removed. The zero Lock does not.
type Lock struct {
	Mode  string `cbor:"1,keyasint,omitempty"` // [Governance] or [Compliance], with Until
	Until int64  `cbor:"2,keyasint,omitempty"` // Unix time in nanoseconds
	Hold  bool   `cbor:"3,keyasint,omitempty"` // until it is taken away
}

// Retained reports whether the version is to be kept for a time that was not over at that
// time, in Unix nanoseconds.
func (l Lock) Retained(at int64) bool { return l.Mode != "" && l.Until > at }

// Held reports whether the version must not be removed at that time.
func (l Lock) Held(at int64) bool { return l.Hold || l.Retained(at) }

// Dropped names a version that a record removes, with the counts that its roots
// had before.
type Dropped struct {
	_       struct{} `cbor:",toarray"`
	Version id.Version
	Before  []uint64
}

// Put adds a version of an object. Its version is the record's own place in the
// log. Roots gain an edge each; dropped versions lose theirs afterwards.
type Put struct {
	In       id.Realm          `cbor:"1,keyasint"`
	Bucket   id.Bucket         `cbor:"2,keyasint"`
	Key      []byte            `cbor:"3,keyasint"`
	Manifest manifest.Manifest `cbor:"4,keyasint"`
	ETag     []byte            `cbor:"5,keyasint"`
	Time     int64             `cbor:"6,keyasint"` // Unix time in nanoseconds, of the log
	Attrs    Attrs             `cbor:"7,keyasint"`
	Before   []uint64          `cbor:"8,keyasint,omitempty"` // each root's count before, in order
	Current  id.Version        `cbor:"9,keyasint"`           // the newest version before, zero when there was none
	Drops    []Dropped         `cbor:"10,keyasint,omitempty"`
	Lock     Lock              `cbor:"11,keyasint,omitempty"`
}

// Delete adds a delete marker above the object's versions; its version is the
// record's own place in the log.
type Delete struct {
	In      id.Realm   `cbor:"1,keyasint"`
	Bucket  id.Bucket  `cbor:"2,keyasint"`
	Key     []byte     `cbor:"3,keyasint"`
	Time    int64      `cbor:"4,keyasint"`
	Current id.Version `cbor:"5,keyasint"`
}

// Purge removes versions and delete markers for good. Removing the newest
// delete marker is what brings a deleted object back.
type Purge struct {
	In     id.Realm  `cbor:"1,keyasint"`
	Bucket id.Bucket `cbor:"2,keyasint"`
	Key    []byte    `cbor:"3,keyasint"`
	Drops  []Dropped `cbor:"4,keyasint"`
}

// Settings of a bucket. Zero means the default in force when it is read.
type Settings struct {
	K           uint8  `cbor:"1,keyasint,omitempty"` // most data shards of its packs
	Compression string `cbor:"2,keyasint,omitempty"` // "auto" (default) or "off"
	Profile     string `cbor:"3,keyasint,omitempty"` // "default" or "fine"
	Versioning  bool   `cbor:"4,keyasint,omitempty"`
	// QuotaBytes is the most logical bytes that all versions may have together, and
	// QuotaObjects the most objects that a plain listing may show.
	QuotaBytes   uint64 `cbor:"5,keyasint,omitempty"`
	QuotaObjects uint64 `cbor:"6,keyasint,omitempty"`
	// Lock lets versions have locks. New ones are retained so many days, in that mode;
	// without a mode they are not.
	Lock          bool   `cbor:"7,keyasint,omitempty"`
	RetentionMode string `cbor:"8,keyasint,omitempty"`
	RetentionDays uint32 `cbor:"9,keyasint,omitempty"`
}

// BucketCreate makes a bucket.
type BucketCreate struct {
	In       id.Realm  `cbor:"1,keyasint"` // the realm the bucket belongs to
	Bucket   id.Bucket `cbor:"2,keyasint"`
	Name     string    `cbor:"3,keyasint"`
	Settings Settings  `cbor:"4,keyasint"`
	Time     int64     `cbor:"5,keyasint"`
}

// BucketSet replaces a bucket's settings.
type BucketSet struct {
	In       id.Realm  `cbor:"1,keyasint"`
	Bucket   id.Bucket `cbor:"2,keyasint"`
	Settings Settings  `cbor:"3,keyasint"`
	Old      Settings  `cbor:"4,keyasint"`
}

// BucketDelete removes an empty bucket.
type BucketDelete struct {
	In     id.Realm  `cbor:"1,keyasint"`
	Bucket id.Bucket `cbor:"2,keyasint"`
	Name   string    `cbor:"3,keyasint"`
}

// Member is a node of the store as the log knows it.
type Member struct {
	ID     id.Node  `cbor:"1,keyasint"`
	Name   string   `cbor:"2,keyasint"` // unique among the members
	Weight uint32   `cbor:"3,keyasint,omitempty"`
	Labels []string `cbor:"4,keyasint,omitempty"` // "zone=a", sorted
}

// Nodes replaces the node set. Old log nodes stay in force for one more link of
// the chain: the record is durable on both sets.
type Nodes struct {
	Version  uint64    `cbor:"1,keyasint"` // of the cluster file; one more than before
	M        uint8     `cbor:"2,keyasint"` // losses survived
	Members  []Member  `cbor:"3,keyasint"` // sorted by name
	LogNodes []id.Node `cbor:"4,keyasint"` // sorted
	Gone     []id.Node `cbor:"5,keyasint"` // replaced or forgotten, refused for ever; sorted
	// Store is the version of the store as a whole; 0 stands for the first. In every
	// version this record is a map in which it has this number.
	Store uint32 `cbor:"6,keyasint,omitempty"`
	// Want, while M is being raised, is what it is to become: what is written is coded
	// for so many losses. 0: M is not being raised.
	Want uint8 `cbor:"7,keyasint,omitempty"`
}

// Reshard says that one shard of a pack has a new place: rebuilt, copied or
// moved. Old without a node says that the shard had no place at all.
type Reshard struct {
	Pack  id.Pack `cbor:"1,keyasint"`
	Index uint8   `cbor:"2,keyasint"`
	Old   Place   `cbor:"3,keyasint"`
	New   Place   `cbor:"4,keyasint"`
}

// Piece makes a durable pack with a part of a snapshot, or its root, part of the
// store. The snapshot does not exist before its [Snapshot] record.
type Piece struct {
	Number  uint64    `cbor:"1,keyasint"` // of the snapshot: the sequence its rows stand behind
	Piece   uint32    `cbor:"2,keyasint"` // from 0; the root is the last
	Pack    id.Pack   `cbor:"3,keyasint"`
	K       uint8     `cbor:"4,keyasint"`
	M       uint8     `cbor:"5,keyasint"`
	Slice   uint32    `cbor:"6,keyasint"` // as in Adopt
	Size    uint32    `cbor:"7,keyasint"`
	Body    uint32    `cbor:"8,keyasint"`
	Writer  id.Writer `cbor:"9,keyasint"`
	Counter uint64    `cbor:"10,keyasint"`
	Shards  []Place   `cbor:"11,keyasint"`
}

// PieceRef is what reading a pack takes when nothing but the log is at hand:
// its places may be others by now, its digests are not.
type PieceRef struct {
	_       struct{} `cbor:",toarray"`
	Pack    id.Pack
	K, M    uint8
	Size    uint32     // bytes of a shard
	Digests [][16]byte // of the shards by index
}

// Snapshot says that a snapshot was read back whole. It is the newest from now
// on; of those before it, only the one that it names is kept.
type Snapshot struct {
	Number uint64   `cbor:"1,keyasint"`
	Head   id.Pack  `cbor:"2,keyasint"` // the log pack of that sequence
	Pieces uint32   `cbor:"3,keyasint"` // the root included
	Rows   uint64   `cbor:"4,keyasint"`
	Bytes  uint64   `cbor:"5,keyasint"` // of the export
	Sum    [32]byte `cbor:"6,keyasint"` // the export's own, at its end
	Root   PieceRef `cbor:"7,keyasint"`
	Logged uint64   `cbor:"8,keyasint"` // what the index counts as logged at Number
	// Before is the number of the snapshot that stays beside this one, the newest
	// that could be read, and the log pack with its record; zero when there is none.
	Before     uint64  `cbor:"9,keyasint,omitempty"`
	BeforeSeq  uint64  `cbor:"10,keyasint,omitempty"`
	BeforePack id.Pack `cbor:"11,keyasint"`
}

// PieceDrop removes a piece of a snapshot that is neither the newest nor the one
// before it. The shards on the nodes may be deleted once it is durable.
type PieceDrop struct {
	Number uint64  `cbor:"1,keyasint"`
	Piece  uint32  `cbor:"2,keyasint"`
	Pack   id.Pack `cbor:"3,keyasint"`
}

// Lost says that a pack has fewer shards left than it needs, for good. Of the
// chunks that lie in it and are not marked as damaged yet, so many are from now on,
// in the order of their offsets: look-ups miss them, and an [Adopt] that brings one
// heals it. A pack with more of them takes several records.
type Lost struct {
	Pack   id.Pack `cbor:"1,keyasint"`
	Chunks uint32  `cbor:"2,keyasint"`
}

// Condemn says that no edge leads to chunks any more: look-ups miss them from now
// on. An edge, or an [Adopt] that brings one, revives it.
type Condemn struct {
	In     id.Realm   `cbor:"1,keyasint"`
	Chunks []id.Chunk `cbor:"2,keyasint"`
	Time   int64      `cbor:"3,keyasint"` // Unix time in nanoseconds, of the log
}

// Remove takes chunks away that were condemned and that nothing has revived since.
type Remove struct {
	In     id.Realm  `cbor:"1,keyasint"`
	Chunks []Removed `cbor:"2,keyasint"`
}

// Removed names a chunk, and the sequence of the log pack that condemned it. Before
// are the counts that a list's children had, in order; of other chunks it is empty.
type Removed struct {
	_      struct{} `cbor:",toarray"`
	Chunk  id.Chunk
	Since  uint64
	Before []uint64
}

// Move makes a durable data pack part of the store that was written of chunks of
// other packs. Sources are those packs; From says of each entry in which of them,
// counted from 1, the chunk lay; 0: it lies elsewhere by now, or nowhere, and this copy
// of it is dead bytes.
type Move struct {
	In      id.Realm  `cbor:"1,keyasint"` // as in Adopt, up to Body
	Pack    id.Pack   `cbor:"2,keyasint"`
	K       uint8     `cbor:"3,keyasint"`
	M       uint8     `cbor:"4,keyasint"`
	Slice   uint32    `cbor:"5,keyasint"`
	Size    uint32    `cbor:"6,keyasint"`
	Writer  id.Writer `cbor:"7,keyasint"`
	Counter uint64    `cbor:"8,keyasint"`
	Shards  []Place   `cbor:"9,keyasint"`
	Entries Entries   `cbor:"10,keyasint"`
	Body    uint32    `cbor:"11,keyasint"`
	Sources []id.Pack `cbor:"12,keyasint"`
	From    []uint32  `cbor:"13,keyasint"`
}

// Adopt is what the move says of its own pack. It shares memory with m.
func (m *Move) Adopt() *Adopt {
	return &Adopt{In: m.In, Pack: m.Pack, K: m.K, M: m.M, Slice: m.Slice, Size: m.Size, Body: m.Body, Writer: m.Writer, Counter: m.Counter, Shards: m.Shards, Entries: m.Entries}
}

// Drop removes packs into which no chunk points any more: data packs, and log packs that
// the older of two snapshots stands behind. Their shards may be deleted once it is durable.
type Drop struct {
	Packs []id.Pack `cbor:"1,keyasint"`
}

// Found says that chunks which lie in a pack and are marked as damaged can be read
// again, named by their offsets, which ascend: they are live from now on.
type Found struct {
	Pack    id.Pack  `cbor:"1,keyasint"`
	Offsets []uint32 `cbor:"2,keyasint"`
}

// LockSet replaces the lock of a version.
type LockSet struct {
	In      id.Realm   `cbor:"1,keyasint"`
	Bucket  id.Bucket  `cbor:"2,keyasint"`
	Key     []byte     `cbor:"3,keyasint"`
	Version id.Version `cbor:"4,keyasint"`
	Lock    Lock       `cbor:"5,keyasint"`
	Old     Lock       `cbor:"6,keyasint"`
}

// Clock says what time it is for sure: what expires goes by it. It is no time of a write.
type Clock struct {
	Time int64 `cbor:"1,keyasint"` // Unix time in nanoseconds, above the one before
	Old  int64 `cbor:"2,keyasint"` // 0: there was none
}

func (*Adopt) Kind() Kind        { return KindAdopt }
func (*List) Kind() Kind         { return KindList }
func (*Put) Kind() Kind          { return KindPut }
func (*Delete) Kind() Kind       { return KindDelete }
func (*Purge) Kind() Kind        { return KindPurge }
func (*BucketCreate) Kind() Kind { return KindBucketCreate }
func (*BucketSet) Kind() Kind    { return KindBucketSet }
func (*BucketDelete) Kind() Kind { return KindBucketDelete }
func (*Nodes) Kind() Kind        { return KindNodes }
func (*Reshard) Kind() Kind      { return KindReshard }
func (*Piece) Kind() Kind        { return KindPiece }
func (*Snapshot) Kind() Kind     { return KindSnapshot }
func (*PieceDrop) Kind() Kind    { return KindPieceDrop }
func (*Lost) Kind() Kind         { return KindLost }
func (*Condemn) Kind() Kind      { return KindCondemn }
func (*Remove) Kind() Kind       { return KindRemove }
func (*Move) Kind() Kind         { return KindMove }
func (*Drop) Kind() Kind         { return KindDrop }
func (*Found) Kind() Kind        { return KindFound }
func (*LockSet) Kind() Kind      { return KindLockSet }
func (*Clock) Kind() Kind        { return KindClock }

func (r *Adopt) Realm() id.Realm        { return r.In }
func (r *List) Realm() id.Realm         { return r.In }
func (r *Put) Realm() id.Realm          { return r.In }
func (r *Delete) Realm() id.Realm       { return r.In }
func (r *Purge) Realm() id.Realm        { return r.In }
func (r *BucketCreate) Realm() id.Realm { return r.In }
func (r *BucketSet) Realm() id.Realm    { return r.In }
func (r *BucketDelete) Realm() id.Realm { return r.In }
func (*Nodes) Realm() id.Realm          { return 0 }
func (*Reshard) Realm() id.Realm        { return 0 }
func (*Piece) Realm() id.Realm          { return 0 }
func (*Snapshot) Realm() id.Realm       { return 0 }
func (*PieceDrop) Realm() id.Realm      { return 0 }
func (*Lost) Realm() id.Realm           { return 0 }
func (r *Condemn) Realm() id.Realm      { return r.In }
func (r *Remove) Realm() id.Realm       { return r.In }
func (r *Move) Realm() id.Realm         { return r.In }
func (*Drop) Realm() id.Realm           { return 0 }
func (*Found) Realm() id.Realm          { return 0 }
func (r *LockSet) Realm() id.Realm      { return r.In }
func (*Clock) Realm() id.Realm          { return 0 }

// blank returns a new record of a kind, nil when there is none.
func blank(k Kind) Record {
	switch k {
	case KindAdopt:
		return new(Adopt)
	case KindList:
		return new(List)
	case KindPut:
		return new(Put)
	case KindDelete:
		return new(Delete)
	case KindPurge:
		return new(Purge)
	case KindBucketCreate:
		return new(BucketCreate)
	case KindBucketSet:
		return new(BucketSet)
	case KindBucketDelete:
		return new(BucketDelete)
	case KindNodes:
		return new(Nodes)
	case KindReshard:
		return new(Reshard)
	case KindPiece:
		return new(Piece)
	case KindSnapshot:
		return new(Snapshot)
	case KindPieceDrop:
		return new(PieceDrop)
	case KindLost:
		return new(Lost)
	case KindCondemn:
		return new(Condemn)
	case KindRemove:
		return new(Remove)
	case KindMove:
		return new(Move)
	case KindDrop:
		return new(Drop)
	case KindFound:
		return new(Found)
	case KindLockSet:
		return new(LockSet)
	case KindClock:
		return new(Clock)
	}
	return nil
}

var (
	encMode = mustMode(encOptions().EncMode())
	decMode = mustMode(cbor.DecOptions{
		DupMapKey:         cbor.DupMapKeyEnforcedAPF,
		IndefLength:       cbor.IndefLengthForbidden,
		ExtraReturnErrors: cbor.ExtraDecErrorUnknownField,
		TagsMd:            cbor.TagsForbidden,
		MaxNestedLevels:   16,
		MaxArrayElements:  1 << 20,
		MaxMapPairs:       64,
	}.DecMode())
)

// encOptions: core deterministic encoding (RFC 8949, 4.2.1), and one form for an
// empty list.
func encOptions() cbor.EncOptions {
	o := cbor.CoreDetEncOptions()
	o.NilContainers = cbor.NilContainerAsEmpty
	return o
}

func mustMode[T any](m T, err error) T {
	if err != nil {
		panic("record: " + err.Error()) // constant options
	}
	return m
}

// Append appends the one encoding of a record: its kind, then its body. What
// [Parse] would not read back is an error.
func Append(dst []byte, r Record) ([]byte, error) {
	if err := check(r); err != nil {
		return dst, fmt.Errorf("encode record of kind %d: %w", r.Kind(), err)
	}
	b, err := encMode.Marshal(r)
	if err != nil {
		return dst, fmt.Errorf("encode record of kind %d: %w", r.Kind(), err)
	}
	return append(append(dst, byte(r.Kind())), b...), nil
}

// check refuses what has no encoding: text that is not UTF-8, and chunks of
// another realm than the record's.
func check(r Record) error {
	var texts []string
	switch r := r.(type) {
	case *Adopt:
		if err := r.Entries.check(r.In); err != nil {
			return err
		}
	case *Move:
		if err := r.Entries.check(r.In); err != nil {
			return err
		}
	case *Put:
		texts = append(r.Attrs.texts(texts), r.Lock.Mode)
	case *BucketCreate:
		texts = append(r.Settings.texts(texts), r.Name)
	case *BucketSet:
		texts = r.Old.texts(r.Settings.texts(texts))
	case *LockSet:
		texts = append(texts, r.Lock.Mode, r.Old.Mode)
	case *BucketDelete:
		texts = append(texts, r.Name)
	case *Nodes:
		if r.Store == 1 {
			return fmt.Errorf("%w: the first version of a store is written as none", ErrSyntax)
		}
		for _, m := range r.Members {
			texts = append(append(texts, m.Name), m.Labels...)
		}
	}
	return checkText(texts)
}

// in sets the realm, which is not encoded.
func (e Entries) in(realm id.Realm) {
	for i := range e {
		e[i].Realm = realm
	}
}

// check refuses chunks of another realm.
func (e Entries) check(in id.Realm) error {
	for i := range e {
		if e[i].Realm != in {
			return fmt.Errorf("%w: a chunk of realm %d in a record of realm %d", ErrSyntax, e[i].Realm, in)
		}
	}
	return nil
}

// texts appends all text in s to dst.
func (s *Settings) texts(dst []string) []string {
	return append(dst, s.Compression, s.Profile, s.RetentionMode)
}

// texts appends all text in a to dst.
func (a *Attrs) texts(dst []string) []string {
	dst = append(dst, a.ContentType, a.ContentEncoding, a.ContentDisposition, a.ContentLanguage, a.CacheControl)
	for _, f := range a.User {
		dst = append(dst, f.Name, f.Value)
	}
	return dst
}

func checkText(texts []string) error {
	for _, s := range texts {
		if !utf8.ValidString(s) {
			return fmt.Errorf("%w: text that is not UTF-8", ErrSyntax)
		}
	}
	return nil
}

// storeVersion is the version of the store that the record at the beginning of b
// names, 0 for none. It is found in node sets of any version, whatever else stands
// in them.
func storeVersion(b []byte) uint64 {
	if Kind(b[0]) != KindNodes {
		return 0
	}
	var fields map[uint64]cbor.RawMessage
	if _, err := decMode.UnmarshalFirst(b[1:], &fields); err != nil {
		return 0
	}
	var v uint64
	if err := decMode.Unmarshal(fields[6], &v); err != nil {
		return 0
	}
	return v
}

// Parse reads the records of a batch, as Append wrote them one after another.
// The error wraps [ErrSyntax], [ErrUnknownKind] or [ErrNewer]; realm is the realm the batch
// was sealed for, and every record must be of it.
func Parse(realm id.Realm, b []byte) ([]Record, error) {
	var out []Record
	if len(b) > MaxBatch {
		return nil, fmt.Errorf("%w: a batch of %d bytes, at most %d", ErrSyntax, len(b), MaxBatch)
	}
	for n := 0; len(b) > 0; n++ {
		r := blank(Kind(b[0]))
		if r == nil {
			return nil, fmt.Errorf("%w: record %d has kind %d, this build knows 1 to %d", ErrUnknownKind, n, b[0], lastKind)
		}
		if v := storeVersion(b); v > StoreVersion {
			return nil, fmt.Errorf("%w: record %d begins version %d of the store, this build knows %d", ErrNewer, n, v, StoreVersion)
		}
		rest, err := decMode.UnmarshalFirst(b[1:], r)
		if err != nil {
			return nil, fmt.Errorf("%w: record %d of kind %d: %v", ErrSyntax, n, b[0], err)
		}
		switch r := r.(type) {
		case *Adopt:
			r.Entries.in(r.In)
		case *Move:
			r.Entries.in(r.In)
		}
		again, err := Append(nil, r)
		if err != nil || string(again) != string(b[:len(b)-len(rest)]) {
			return nil, fmt.Errorf("%w: record %d of kind %d is not in its one valid encoding", ErrSyntax, n, b[0])
		}
		if r.Realm() != realm {
			return nil, fmt.Errorf("%w: record %d belongs to realm %d, its batch to realm %d", ErrSyntax, n, r.Realm(), realm)
		}
		out, b = append(out, r), rest
	}
	return out, nil
}
