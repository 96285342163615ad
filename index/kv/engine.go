package kv

import "context"

// Engine is what a [DB] stands on: an ordered map of byte strings with
// snapshots and atomic commits. The DB serialises commits, seals values, merges
// uncommitted writes and counts sizes, so that an engine has none of that to
// repeat; package kvtest holds the suite that every engine passes.
//
// Methods may be called at the same time, except that Commit runs alone among
// commits, and Close alone. Errors wrap the sentinels of this package where
// they fit and contain no key; an engine may also panic over damaged files: the
// DB turns that into [ErrDamaged].
type Engine interface {
	// Snapshot is the state after the last commit that returned, unchanged by
	// later ones. The caller closes it.
	Snapshot() (EngineSnapshot, error)
	// Commit applies all ops or, when it fails, leaves open which: only
	// [ErrTooBig] and [ErrClosed] promise that nothing was applied. Keys ascend
	// strictly. The slices belong to the caller again when it returns.
	Commit(ops []Op) error
	// Limits never change while the engine is open.
	Limits() Limits
	// Sync returns once all commits that returned would survive a power cut.
	Sync() error
	// Verify has the engine check its files by its own means; [ErrDamaged].
	Verify(ctx context.Context) error
	// Size is the space that the engine takes on disk (in memory, for one that
	// has no files), in bytes. It may lag.
	Size() (int64, error)
	Close() error
}

// EngineSnapshot is one state of an engine. It belongs to one goroutine.
type EngineSnapshot interface {
	// Get appends the value to dst; [ErrNotFound].
	Get(key, dst []byte) ([]byte, error)
	// Cursor walks from <= key < to, or from the top down; nil does not bound.
	// Several cursors of one snapshot may be open. from and to stay unchanged
	// until the cursor is closed.
	Cursor(from, to []byte, reverse bool) EngineCursor
	// Close ends the snapshot, whose cursors are closed before.
	Close()
}

// EngineCursor begins before its first row.
type EngineCursor interface {
	// Next moves to the next row; false at the end or after an error.
	Next() bool
	// Seek moves to before the first row at or after key (at or before it in
	// reverse) that is within the bounds.
	Seek(key []byte)
	// Key and Value are those of the row that Next moved to, valid until the
	// cursor moves or closes.
	Key() []byte
	Value() []byte
	Err() error
	Close()
}

// Op is one row to be written, or deleted if Delete is set.
type Op struct {
	Key, Value []byte
	Delete     bool
}

// Limits bound one commit. An op counts as one entry and as the length of its
// key and value as the engine sees them plus OpBytes.
type Limits struct {
	Entries int
	Bytes   int
	OpBytes int
}
