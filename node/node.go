// Package node is the contract of whatever keeps shards: a directory of this
// process (node/disk) or, later, a process on another host. One suite, package
// nodetest, tests every kind.
//
// A node sees opaque shards. It checks their plain headers and CRCs, keeps them
// durably, and obeys the newest writer it has promised to obey; it knows no key
// and no name. What a node answers is believed no further than digests and seals
// reach: the caller checks.
package node

import (
	"context"
	"errors"
	"fmt"
	"time"

	"cairn/id"
	"cairn/pack"
)

// Sentinels. "Not there", "there but damaged" and "could not ask" never share
// an error: repair acts on the first two only.
var (
	ErrNotFound    = errors.New("not found")                            // the node says for certain: no such shard
	ErrDamaged     = errors.New("damaged")                              // there, but its checksums do not hold
	ErrUnavailable = errors.New("node unavailable")                     // could not ask; nothing is known
	ErrMissing     = errors.New("node missing")                         // the directory is empty, foreign, or not the one that was opened
	ErrFenced      = errors.New("a newer epoch was promised")           // the caller's authority is out of date
	ErrStalePut    = errors.New("a later log pack is held already")     // position at or below the highest held
	ErrFull        = errors.New("no space left on the node")            // below the mark of this kind of write
	ErrConflict    = errors.New("another shard is held under this key") // same key, other bytes
	ErrClosed      = errors.New("node closed")
)

// Key names a shard on a node.
type Key struct {
	Pack  id.Pack
	Index uint8
}

func (k Key) String() string { return fmt.Sprintf("%v/%d", k.Pack, k.Index) }

// Error says what was tried, on which shard, and where.
type Error struct {
	Op   string // "put", "read", "delete", ...
	Node id.Node
	Key  Key // zero where the operation is about no shard
	Err  error
}

func (e *Error) Error() string {
	if e.Key == (Key{}) {
		return fmt.Sprintf("%s on node %v: %v", e.Op, e.Node, e.Err)
	}
	return fmt.Sprintf("%s shard %v on node %v: %v", e.Op, e.Key, e.Node, e.Err)
}
func (e *Error) Unwrap() error { return e.Err }

// Authority says on whose word a request that changes something comes.
type Authority struct {
	Epoch  uint64
	Writer id.Writer
}

// Purpose says what a put is for; it chooses the space mark and, for a repair,
// allows a log pack below the highest position held.
type Purpose uint8

const (
	ForClient     Purpose = iota // a new data pack with clients' data
	ForLog                       // a new log pack
	ForCompaction                // data rewritten to give space back
	ForRepair                    // a shard, data or log, of a pack that exists already
	ForStart                     // the log pack that a start begins with: without it nothing is read, so it takes what is left
)

// RoomError says that a filesystem has too little room for a kind of write, before
// anything was written. It wraps [ErrFull].
type RoomError struct {
	Dir        string  // a directory on that filesystem; empty where nobody knows
	Why        Purpose // what the room was for
	Free, Need int64   // bytes that are free there, and that must be
}

func (e *RoomError) Error() string {
	dir, what := e.Dir, "for the log and for deletes"
	if dir == "" {
		dir = "the node"
	}
	switch e.Why {
	case ForClient:
		what = "before clients' data is taken"
	case ForCompaction:
		what = "before data is rewritten"
	case ForRepair:
		what = "before shards are made anew"
	case ForStart:
		what = "to start"
	}
	return fmt.Sprintf("%s are free on the filesystem of %s, and %s must be %s: enlarge it, or remove other files from it",
		mib(e.Free), dir, mib(e.Need), what)
}
func (e *RoomError) Unwrap() error { return ErrFull }

func mib(n int64) string { return fmt.Sprintf("%.1f MiB", float64(n)/(1<<20)) }

// Shard is a whole shard in two pieces, so that a slice of a pack's payload can
// be written from where it lies. Head begins with the header; Head and Body
// together are exactly [pack.Header.ShardLen] bytes.
type Shard struct {
	Head, Body []byte
}

// Info describes a shard that a node holds.
type Info struct {
	Key      Key
	Instance id.Instance
	Kind     pack.Kind
	Size     int64 // bytes of the shard itself
	// Deleted is when the shard was tombstoned; zero for a live one. A
	// tombstoned shard answers ErrNotFound to everything but Undelete and List.
	Deleted time.Time
}

// Found is a shard with the place its log pack has; see [Store.ListLog].
type Found struct {
	Info   Info
	Header pack.Header
	// Err is nil, or wraps [ErrDamaged]: the shard was there and its bytes do
	// not hold. Whoever recovers counts that node as giving no answer for it.
	Err error
}

// File names one of the few small files that every node keeps for the store.
type File string

const (
	ClusterFile File = "cluster" // sealed: members, log nodes, version
	KeyringFile File = "keyring" // wrapped roots
)

// Usage describes a node's space, in bytes. Live, dead, free, layout and other bytes are
// counted each by itself; what they add up to differs from AllocatedBytes by what is
// being written, and by what the filesystem rounds.
type Usage struct {
	Dir                    string // a directory on the filesystem, for words
	Device                 uint64 // nodes with the same device share its space
	TotalBytes, FreeBytes  int64  // of the filesystem
	LiveBytes, LiveShards  int64  // shards that answer
	DeadBytes, DeadShards  int64  // tombstoned, space not given back yet
	DueBytes               int64  // of DeadBytes, those whose keep time is over: their segment is to be rewritten first
	SegmentFreeBytes       int64  // preallocated and not yet used
	LayoutBytes            int64  // what keeping shards takes beside them: headers, alignment, notes, ends of segments, small files
	OtherBytes             int64  // files in the directory that are not the node's
	AllocatedBytes         int64  // everything under the node's directory, on disk
	PutMark, LogMark       int64  // bytes that must be free for client data, for log packs
	PutsAllowed, LogsAllow bool   // false below these marks
	// Until is when the keep time of everything in DeadBytes is over at the latest; zero:
	// there is nothing.
	Until time.Time
}

// Store keeps shards. Its methods may be called at the same time. Errors are
// *[Error] wrapping one of the sentinels above, or the context's.
type Store interface {
	// ID is this incarnation's name.
	ID() id.Node
	// Put returns once the shard would survive a power cut. Head and Body belong
	// to the caller again when it returns, whatever it returns. Putting the same
	// bytes under the same key again is no error and returns the same instance;
	// other bytes under a key that is held are [ErrConflict]. An authority newer
	// than the promised one is made durable first, an older one is [ErrFenced];
	// the epoch is checked again after the sync, so that a put is never
	// acknowledged beside a promise that did not see it. A log pack at or below
	// the highest position held is [ErrStalePut], unless its bytes are the same or
	// the purpose is ForRepair.
	Put(ctx context.Context, by Authority, why Purpose, s Shard) (id.Instance, error)
	// Read fills dst with the shard's bytes from off on, exactly len(dst) of
	// them, their CRCs checked: [ErrDamaged] when they do not hold or the shard
	// is shorter. off counts from the beginning of the header.
	Read(ctx context.Context, k Key, off int64, dst []byte) error
	// Stat says that a shard is held. It reads nothing from disk but what it needs.
	Stat(ctx context.Context, k Key) (Info, pack.Header, error)
	// Verify reads the whole shard and checks header, table and every block.
	Verify(ctx context.Context, k Key) error
	// Delete tombstones the instance durably; the space comes back after the
	// node's own keep time. Deleting what is not there, or another instance, is
	// nil and changes nothing.
	Delete(ctx context.Context, by Authority, k Key, i id.Instance) error
	// Undelete brings a tombstoned instance back while its bytes are there:
	// [ErrNotFound] afterwards.
	Undelete(ctx context.Context, by Authority, k Key, i id.Instance) error
	// List returns up to limit shards in key order, after the given key
	// (exclusive; the zero key begins), tombstoned ones included. Fewer than
	// limit means the end. A shard that was held throughout is in the list;
	// one that came or went meanwhile may be.
	List(ctx context.Context, after Key, limit int) ([]Info, error)
	// Promise makes durable that nothing below by.Epoch will be obeyed any more,
	// and nothing of that epoch but by.Writer's. [ErrFenced] when as much was
	// promised to another before. When it returns nil every put that was or will
	// be acknowledged under an older epoch is durable and listed.
	Promise(ctx context.Context, by Authority) error
	// Promised is the newest durable promise; for a node in this process it
	// costs a memory look-up.
	Promised(ctx context.Context) (Authority, error)
	// ListLog returns the shards of log packs with a sequence of at least from,
	// by (sequence, attempt, epoch, key), after the given one (nil begins), up
	// to limit. Each was read back and its CRCs checked; a damaged one is
	// listed with its error.
	ListLog(ctx context.Context, from uint64, after *Found, limit int) ([]Found, error)
	// WriteFile replaces one of the small files durably, ReadFile reads it:
	// [ErrNotFound] when it was never written. At most 1 MiB.
	WriteFile(ctx context.Context, by Authority, f File, b []byte) error
	ReadFile(ctx context.Context, f File) ([]byte, error)
	Usage(ctx context.Context) (Usage, error)
	// Close waits for what runs and marks the stop clean.
	Close() error
}
