package store

import (
	"io"
	"time"

	"cairn/id"
	"cairn/record"
)

// Bucket describes a bucket.
type Bucket struct {
	ID       id.Bucket
	Name     string
	Realm    id.Realm
	Created  time.Time
	Settings record.Settings
	Objects  uint64 // that a plain listing shows
	Bytes    uint64 // logical bytes of all versions
}

// Object describes one version of an object.
type Object struct {
	Bucket   string
	Key      string
	Version  id.Version
	Size     uint64
	ETag     string // without quotes; strong: equal only for equal bytes
	Modified time.Time
	Attrs    record.Attrs
	Lock     Lock // of the version
	// Deleted marks a delete marker: there are no bytes.
	Deleted bool
	// Current: it is the newest version.
	Current bool
	// Replaced, told of a write only: another version was current until then.
	Replaced bool
	// Replayed, told of a write only: an earlier request of the same name made it
	// ([Once]).
	Replayed bool
}

// Conditions are checked by the log writer, at the point in the log where the
// write takes effect. A zero field asks for nothing.
type Conditions struct {
	IfMatch     []string // ETags one of which the current version must have; "*": there must be one
	IfNoneMatch []string // ETags none of which the current version may have; "*": there must be none
	// IfModifiedSince and IfUnmodifiedSince compare whole seconds, as HTTP dates do.
	IfModifiedSince, IfUnmodifiedSince time.Time
}

// PutOptions say how an object is stored.
type PutOptions struct {
	Attrs record.Attrs
	// Size is the declared length of the body in bytes, -1 when it is not known.
	// A body of another length is refused ([ErrShortBody]).
	Size int64
	If   Conditions
}

// GetOptions choose what of an object is read.
type GetOptions struct {
	Version id.Version // zero: the current one
	If      Conditions
}

// Reading is an object being read.
type Reading struct {
	Object Object
	open   func(off, n uint64) io.ReadCloser
}

// NewReading is a reading whose bytes open returns: for stores other than this
// one, such as those that tests of a face put in its place.
func NewReading(o Object, open func(off, n uint64) io.ReadCloser) *Reading {
	return &Reading{Object: o, open: open}
}

// Body returns the bytes [off, off+n) of the object; they must lie within it.
// Each chunk is authenticated before a byte of it is returned; an error wraps
// [ErrDamaged] or [ErrUnavailable], and what was returned before it is good. The
// result also implements io.WriterTo, which hands over whole chunks. It holds a
// bounded number of chunks. Close may be called at any time.
func (r *Reading) Body(off, n uint64) io.ReadCloser { return r.open(off, n) }

// ListOptions choose what of a bucket is listed.
type ListOptions struct {
	Prefix, Delimiter string
	After             string     // keys and prefixes above it
	AfterVersion      id.Version // with After: older versions of that key too
	Limit             int        // at most 1,000; 0 means that
	Versions          bool       // all versions and delete markers, newest first for each key
}

// Listing is one page.
type Listing struct {
	Objects  []Object
	Prefixes []string
	More     bool
	// Next and NextVersion go into After and AfterVersion for the next page.
	Next        string
	NextVersion id.Version
}

// Usage accounts for bytes.
type Usage struct {
	LogicalBytes    uint64 // of all versions
	UploadBytes     uint64 // logical bytes of uploads that are not objects yet
	UniqueBytes     uint64 // of distinct chunks, before compression
	CompressedBytes uint64 // of distinct chunks, sealed

	// PhysicalBytes is what the store takes on disk: the directories of all nodes that
	// answer, the index, and what else is in the data directory. It is the sum of the
	// parts that follow, less MissingBytes.
	PhysicalBytes uint64
	// What the index names of shards, in four parts.
	LiveBytes    uint64 // sealed bytes that a version refers to
	DeadBytes    uint64 // sealed bytes that nothing refers to
	ParityBytes  uint64
	PaddingBytes uint64 // padding, headers, tables, metas and records
	// MissingBytes are of shards that the index names and no node that answers holds.
	MissingBytes uint64
	// StrayBytes are of shards that nodes hold and the index does not name, those on their
	// way among them. Of each node only the difference of the two is known: what one
	// misses makes up for strays on it.
	StrayBytes   uint64
	PendingBytes uint64 // deleted, kept by the nodes for their keep time
	// FreeInSegmentsBytes is preallocated on nodes and not yet used.
	FreeInSegmentsBytes uint64
	LayoutBytes         uint64 // what nodes need beside shards: headers, alignment, notes, small files
	IndexBytes          uint64
	OtherBytes          uint64 // beside index and nodes in the data directory
	// UnaccountedBytes is what is on disk beyond the sum of the parts, or lacks: what is
	// being written while it is counted, and what filesystems round.
	UnaccountedBytes int64

	// Of the above:
	UnreferencedBytes uint64 // of DeadBytes, chunks that wait for collection; the rest is in no chunk any more
	JournalBytes      uint64 // shards of log packs, whatever is in them
	SnapshotBytes     uint64 // shards of snapshots of the index
	DueBytes          uint64 // of PendingBytes, those whose keep time is over
	// PendingUntil is when the keep time of all that is pending is over; zero: nothing is.
	PendingUntil time.Time
	Waiting      Waiting

	Objects  uint64
	Versions uint64
	Chunks   uint64
	Packs    uint64
	Buckets  []Bucket
}

// Waiting is what the last collection has left to later ones; before the first, what an
// earlier process has left.
type Waiting struct {
	Chunks int       // condemned
	Bytes  uint64    // sealed
	Until  time.Time // when the first of them may go; zero without any
	// Transfers is how many uploads and downloads under way some of them wait for, and
	// Oldest how long the oldest of these has lasted.
	Transfers int
	Oldest    time.Duration
}

// NodeStatus is a member as the store sees it.
type NodeStatus struct {
	Name   string
	ID     id.Node
	Labels []string
	Weight float64 // how much it is to hold beside others, in GiB
	Log    bool    // may hold log packs
	// Draining: it takes no new shards, and those that it has are moved away.
	Draining bool
	State    string // "up", "draining" (and up), "full", "slow", "down", "missing"
	Reason   string // why it is not up
	Total    int64  // bytes of its filesystem
	Free     int64
	Shards   int64
	Bytes    int64 // of live shards
	Device   uint64
	Allowed  bool  // takes client data: above its space mark
	Mark     int64 // bytes that must be free there for client data
}

// Status is the store's state in a few words and figures.
type Status struct {
	Cluster  id.Cluster
	Epoch    uint64
	Sequence uint64 // of the newest log pack
	M        int    // losses survived by policy
	Width    string // "4+2": the code that new packs get now
	Writable bool
	Reason   string // why it is not writable
	// NoRoom says why client data is not taken although the store is writable;
	// empty when it is.
	NoRoom string
	Nodes  []NodeStatus
	// Survives says in one sentence what may be lost right now, from devices and
	// the nodes that are up.
	Survives string
	// PacksShort is the number of packs with a shard on a node that is gone.
	PacksShort int
	// PacksLost is the number of packs that have fewer shards left than they need and
	// hold something that is referred to; LostBytes is how much of it is, sealed.
	PacksLost int
	LostBytes uint64
	// LogPacksLost is the number of such packs that a rebuild of the index could need:
	// until two snapshots are behind them, an index that is lost stays lost.
	LogPacksLost int
	// Losses is what was ever given up of the log, oldest first.
	Losses []Loss
	// Scrubbed are the last complete scrubs; see [Store.ScrubPasses].
	Scrubbed []ScrubPass
	// RaisingTo is what M is being raised to, 0 when it is not; PacksToRaise are the packs
	// that were coded for fewer losses.
	RaisingTo    int
	PacksToRaise int
	// Ages are those of what was last read; see [Store.ScrubAges].
	Ages    []ScrubAge
	Started time.Time
}
