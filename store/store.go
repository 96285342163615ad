// Package store is the engine: it takes streams of bytes and returns them, and
// keeps the promises in between. It composes the chunker, the seal, packs,
// placement, the index and the nodes into the write path, the log, the read path
// and recovery; docs/protocol.md walks through each step and crash point.
//
// A [Store] may be used by many goroutines. A reader given to Put is read by one
// goroutine at a time and never after Put returns; a body from Get belongs to its
// caller, who closes it. After Close returns nothing of the store runs. Memory is
// bounded by Config.Memory, not by the size or number of objects or by how slow
// clients are: each stream waits for its share before it reads on, and when too
// many wait the answer is [ErrBusy].
//
// The store makes no protocol decisions (package api) and ends no process: when
// it must stop it says so on [Store.Failed].
package store

import (
	"errors"
	"io"
	"log/slog"
	"time"

	"cairn/id"
	"cairn/index/kv"
	"cairn/keys"
	"cairn/node"
	"cairn/record"
	"cairn/schedule"
)

// Sentinels. Every error of the store that a caller may act on wraps one.
var (
	ErrNoBucket       = errors.New("no such bucket")
	ErrNoObject       = errors.New("no such object")
	ErrNoVersion      = errors.New("no such version")
	ErrBucketExists   = errors.New("bucket exists already")
	ErrBucketNotEmpty = errors.New("bucket is not empty")
	ErrPrecondition   = errors.New("precondition does not hold")
	ErrInvalid        = errors.New("invalid request")
	ErrTooLarge       = errors.New("too large")
	ErrRange          = errors.New("range lies outside the object")
	// ErrShortBody says that a body ended before its declared length, or went
	// beyond it. Nothing was stored.
	ErrShortBody = errors.New("body does not have its declared length")
	// ErrBusy says that memory or a queue is full: nothing was done, try again.
	ErrBusy = errors.New("too busy")
	// ErrFull says that nodes, or the index, have no room; a [node.RoomError] in it
	// says where. Nothing was stored.
	ErrFull = errors.New("not enough space left")
	// ErrUnavailable says that too few nodes answer. Nothing was stored.
	ErrUnavailable = errors.New("too few nodes answer")
	// ErrUnknown says that the outcome of a write is unknown: it was sent to the
	// nodes and may exist or not. Ask, or try again.
	ErrUnknown = errors.New("outcome unknown")
	// ErrDamaged says that bytes of the object cannot be had any more, or not
	// now, and that no other bytes are given in their place.
	ErrDamaged = errors.New("data damaged or lost")
	// ErrSuperseded says that another process has taken over the log.
	ErrSuperseded = errors.New("another gateway has taken over")
	ErrClosed     = errors.New("store is closed")
	// ErrRetry says that something the write relied on has just changed: nothing
	// was stored, the same request may succeed.
	ErrRetry = errors.New("changed meanwhile, try again")
)

// RoomError says which filesystem has too little room, and what would help.
type RoomError = node.RoomError

// Config describes a store. A zero optional field means its default.
type Config struct {
	Cluster id.Cluster
	// Nodes are the open nodes, by member name. A member of the store that is
	// not here is missing. The caller closes them after the store.
	Nodes map[string]node.Store
	// Absent says why a member could not be opened, for error texts.
	Absent  map[string]error
	Keyring *keys.Keyring
	// Engine holds the index. The store closes it.
	Engine kv.Engine
	// Genesis, when not nil, is the node set of a store that may not exist yet:
	// if no log is found on any node, and every member answers, it is begun.
	Genesis *Genesis

	// Memory is how many bytes the process is to use; default 512 MiB. The store
	// takes its shares of it ([budget.Divide]), whoever opened the engine and
	// whoever takes connections theirs.
	Memory  int64
	Workers int              // goroutines that hash, compress and seal; default GOMAXPROCS
	Rand    io.Reader        // default crypto/rand; the simulation's seed otherwise
	Now     func() time.Time // default time.Now
	Log     *slog.Logger     // default discards
	// Patience is how long a write waits for full width before its outcome is
	// given up as unknown or refused; default 10 s.
	Patience time.Duration
	// Lag is how long a node may take longer than the pack's other nodes before
	// another one is asked in its place; default 2 s.
	Lag time.Duration
	// SnapshotEvery is how much must be logged at the least, in bytes of records and
	// 512 for each log pack, before another snapshot of the index is taken; default
	// 64 MiB.
	SnapshotEvery uint64
	// Grace is how long a chunk that collection has found without edges stays, beside
	// what safety takes; default [CollectGrace].
	Grace time.Duration
	// KeepDeleted is how long a deleted object can be brought back in a bucket without
	// versioning, before it is purged; default [KeepDeleted].
	KeepDeleted time.Duration
	// UploadPart is how many bytes of a request to an upload come, or a few more,
	// before they are made durable as a part: what a killed process loses of it;
	// default 64 MiB.
	UploadPart uint64
	// Scrub says when scrubs begin by themselves; the zero value: everything is read
	// within 7 days, and verified within 30, at any time of day.
	Scrub schedule.Plan
	// ScrubRate is how many bytes per second such a scrub reads at the most; default
	// [ScrubRate].
	ScrubRate uint64
	// ListWindow is how many sequences of a long log are listed at a time, which
	// bounds a start's memory; default 20,000.
	ListWindow uint64

	// Footprint says what else there is on disk, in bytes: the index, and what is in the
	// data directory beside it and the directories of the nodes that are named. An error
	// says what could not be counted. nil: nothing.
	Footprint func(nodes []string) (index, other int64, err error)
	// Survives, when not nil, is told how many losses the store survives: once it is open,
	// and when that has changed.
	Survives func(losses int)

	// idle starts no background job, so that a test knows every record of the log.
	idle bool
	// loseAtOnce is how many chunks one record says are lost; default record.MaxLost.
	loseAtOnce int
	// walkAtOnce is how many chunks a page of Damaged looks up; default damagedWalk.
	walkAtOnce int
	// AcceptLoss is an operator's word that log packs which cannot be read are given up:
	// a rebuild goes past them and says so in the index, for good. See docs/protocol.md,
	// section 7.3. [Open] knows nothing of it.
	AcceptLoss bool
	// WholeLog makes an empty index from the whole log, snapshots unseen.
	WholeLog bool
	// ReplayTo, when not 0, is the last sequence that is applied to an index. Only
	// [Rebuild] knows what to do with such an index.
	ReplayTo uint64
	// Progress, when not nil, is told how far an index is loaded or replayed:
	// "load" counts rows, "replay" log packs. "snapshot" tells of one that was taken.
	Progress func(what string, done, of uint64)
	// StaleReads skips the check that no other gateway has taken over.
	StaleReads bool
	// Room says whether the filesystem of the index has room for a write of that
	// purpose; its errors are [node.RoomError]. It is asked before each log pack.
	// nil: there is always room.
	Room func(why node.Purpose) error
}

// Genesis describes a store that is about to be begun.
type Genesis struct {
	M       int             // losses survived
	Members []record.Member // with the IDs of freshly formatted nodes
	Buckets []string        // made with the first log pack, in realm main
}
