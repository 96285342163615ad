// Package kv is the ordered, transactional store of rows under the index, and
// the reason why a row that is read can be believed.
//
// A [DB] stands on an [Engine] (badgerkv on disk, memkv for tests), which is
// asked for little and trusted with less. The DB seals every value to the row's
// key, so that a changed, swapped or planted value is [ErrDamaged] and never
// another value; and it keeps one count of rows and one digest over all rows,
// changed in the same transaction as the rows, so that rows which an engine
// silently lost, kept or brought back are found: by [DB.Check], and by
// [Snapshot.ScanAll] at the end of every scan that something is decided on. A
// single look-up that finds nothing proves nothing until then.
//
// One transaction writes at a time ([DB.Begin]); any number of goroutines read,
// each in a snapshot of its own ([DB.View]). A [Snapshot], a [Tx] and a
// [Cursor] belong to one goroutine at a time. Keys and values that go in are
// copied; what comes out is appended to the caller's dst, or is valid only as
// long as the method says.
//
// The package does not know what rows mean, does not hide keys (the engine may
// encrypt them), does not retry, and does not notice when a whole database is
// replaced by its own past: whoever owns the rows compares their head with
// something outside.
package kv

import (
	"errors"
	"fmt"
	"io"
	"log/slog"

	"cairn/id"
)

// Sentinels. Errors of this package never contain a key or a value, so that
// they may be logged.
var (
	ErrNotFound = errors.New("no such row")
	// ErrDamaged: bytes that the engine returned are not those that were
	// written, or rows are missing, or the engine broke over its own files.
	ErrDamaged = errors.New("index damaged")
	// ErrTooBig: a key, a value or a transaction is beyond its limit. Nothing
	// was changed by the call that returned it.
	ErrTooBig = errors.New("beyond the limits of a row or a transaction")
	ErrClosed = errors.New("index closed")
	// ErrForeign: a good database, sealed under another key or for another cluster.
	ErrForeign = errors.New("index of another key or cluster")
	// ErrNewer: a good database, written by a later version of this program.
	ErrNewer = fmt.Errorf("index: %w", id.ErrNewer)
	// ErrLocked: another process has the engine's directory open.
	ErrLocked = errors.New("index in use by another process")
	// ErrUnknown: a commit failed, and whether it is stored is known only after
	// the database was opened again. The DB takes no more writes until then.
	ErrUnknown = errors.New("outcome of a commit unknown")
)

// Limits of one row, in bytes.
const (
	MaxKey   = 4 << 10
	MaxValue = 64 << 10
)

// Error says what was tried.
type Error struct {
	Op  string // "open", "get", "scan", "commit", ...
	Err error
}

func (e *Error) Error() string { return "index " + e.Op + ": " + e.Err.Error() }
func (e *Error) Unwrap() error { return e.Err }

func fail(op string, err error) error {
	if err == nil {
		return nil
	}
	if e, ok := err.(*Error); ok {
		return e
	}
	return &Error{Op: op, Err: err}
}

func damaged(format string, args ...any) error {
	return fmt.Errorf(format+": %w", append(args, ErrDamaged)...)
}

// Secret is a 256-bit key. It cannot be compared or printed.
type Secret struct {
	_ [0]func()
	b [32]byte
}

// NewSecret holds a copy of key.
func NewSecret(key [32]byte) Secret { return Secret{b: key} }

// Reveal returns the key itself, for an engine that hands it to its library.
func (s *Secret) Reveal() [32]byte { return s.b }

// Format prints the same for every key, whatever the verb.
func (Secret) Format(s fmt.State, _ rune) { _, _ = io.WriteString(s, "kv.Secret(hidden)") }

// LogValue keeps the key out of structured logs.
func (Secret) LogValue() slog.Value { return slog.StringValue("kv.Secret(hidden)") }

// MarshalText refuses, so that no encoder writes the key by accident.
func (Secret) MarshalText() ([]byte, error) {
	return nil, errors.New("kv: a secret has no text form")
}

// Config says whose rows these are.
type Config struct {
	ValueKey  Secret     // seals values
	DigestKey Secret     // keys the digest over all rows
	Cluster   id.Cluster // a database made for another one is [ErrForeign]
	// Rand gives nonces and the salt of a new database. nil means crypto/rand;
	// a simulation hands in its own. It is never read twice at the same time.
	Rand io.Reader
}
