// Package memkv is an engine for package kv that keeps its rows in memory, for
// tests and simulations. It is deterministic: what it does follows from the
// calls, and from the generator that is handed to [Engine.Crash].
//
// It plays a disk too. Unless Options.Durable is set a commit is durable only
// after Sync, and a crash leaves the state after some commit at or after the
// last sync, as an engine on disk does that does not sync its commits. Faults
// are injected by method: a commit that fails, a row that vanishes, a bit that
// turns. Snapshots cost nothing (a copy-on-write tree). Methods may be called at
// the same time; stored bytes belong to the engine and never change in place.
//
// It has no checksums of its own (Verify finds nothing), and is no cache: there
// is no bound on what it holds.
package memkv

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"

	"github.com/tidwall/btree"

	"cairn/index/kv"
)

// DefaultLimits are those of badgerkv with memtables of 64 MiB.
var DefaultLimits = kv.Limits{Entries: 104855, Bytes: 10066287, OpBytes: 12}

// Options may be zero.
type Options struct {
	Limits  kv.Limits // zero: DefaultLimits
	Durable bool      // every commit survives a crash, as with synced writes
}

// Engine implements [kv.Engine].
type Engine struct {
	opt Options

	mu     sync.Mutex
	closed bool
	now    *state
	// What a crash may leave: the state at the last sync, then the one after
	// each commit since. The last is now.
	past   []*state
	faults map[int]fault // by commits still to come
}

type fault struct {
	applied bool
	err     error
}

// state is never changed once it is in an Engine; the next one is a copy.
type state struct {
	rows *btree.BTreeG[row]
	size int64
}

type row struct{ key, value []byte }

// New is an empty engine.
func New(opt Options) *Engine {
	rows := btree.NewBTreeGOptions(func(a, b row) bool { return bytes.Compare(a.key, b.key) < 0 }, btree.Options{NoLocks: true})
	return with(opt, &state{rows: rows})
}

func with(opt Options, s *state) *Engine {
	if opt.Limits == (kv.Limits{}) {
		opt.Limits = DefaultLimits
	}
	return &Engine{opt: opt, now: s, past: []*state{s}, faults: make(map[int]fault)}
}

var errClosed = fmt.Errorf("memory engine: %w", kv.ErrClosed)

// edit makes the next state. The caller holds mu.
func (e *Engine) edit(fn func(*state)) {
	next := &state{rows: e.now.rows.Copy(), size: e.now.size}
	fn(next)
	e.now = next
}

func (s *state) put(key, value []byte) {
	old, had := s.rows.Set(row{bytes.Clone(key), append([]byte{}, value...)})
	s.size += int64(len(key) + len(value))
	if had {
		s.size -= int64(len(old.key) + len(old.value))
	}
}

func (s *state) delete(key []byte) bool {
	old, had := s.rows.Delete(row{key: key})
	if had {
		s.size -= int64(len(old.key) + len(old.value))
	}
	return had
}

// Commit implements [kv.Engine].
func (e *Engine) Commit(ops []kv.Op) error {
	bytesIn := 0
	for i, op := range ops {
		if i > 0 && bytes.Compare(ops[i-1].Key, op.Key) >= 0 {
			panic("memkv: the keys of a commit do not ascend")
		}
		bytesIn += len(op.Key) + len(op.Value) + e.opt.Limits.OpBytes
	}
	if len(ops) > e.opt.Limits.Entries || bytesIn > e.opt.Limits.Bytes {
		return fmt.Errorf("memory engine: %d entries, %d bytes: %w", len(ops), bytesIn, kv.ErrTooBig)
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.closed {
		return errClosed
	}
	f, failing := e.faults[1]
	later := make(map[int]fault, len(e.faults))
	for n, f := range e.faults {
		if n > 1 {
			later[n-1] = f
		}
	}
	e.faults = later
	if failing && !f.applied {
		return f.err
	}
	e.edit(func(s *state) {
		for _, op := range ops {
			if op.Delete {
				s.delete(op.Key)
			} else {
				s.put(op.Key, op.Value)
			}
		}
	})
	e.past = append(e.past, e.now)
	if e.opt.Durable {
		e.synced()
	}
	if failing {
		return f.err
	}
	return nil
}

func (e *Engine) synced() { e.past = []*state{e.now} }

// Snapshot implements [kv.Engine].
func (e *Engine) Snapshot() (kv.EngineSnapshot, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.closed {
		return nil, errClosed
	}
	return &snapshot{e.now}, nil
}

// Limits implements [kv.Engine].
func (e *Engine) Limits() kv.Limits { return e.opt.Limits }

// Sync implements [kv.Engine].
func (e *Engine) Sync() error {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.closed {
		return errClosed
	}
	e.synced()
	return nil
}

// Verify implements [kv.Engine]; there is nothing that it could check.
func (e *Engine) Verify(ctx context.Context) error { return ctx.Err() }

// Size implements [kv.Engine].
func (e *Engine) Size() (int64, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.now.size, nil
}

// Close implements [kv.Engine]. It syncs, as every clean stop does; the rows are
// still there for [Engine.Reopen].
func (e *Engine) Close() error {
	e.mu.Lock()
	defer e.mu.Unlock()
	if !e.closed {
		e.closed = true
		e.synced()
	}
	return nil
}

// Reopen is an engine with the rows of one that was closed. It panics when e is
// open still.
func (e *Engine) Reopen() *Engine {
	e.mu.Lock()
	defer e.mu.Unlock()
	if !e.closed {
		panic("memkv: reopened while open")
	}
	return with(e.opt, e.now)
}

// Clone is an independent engine with the state of now: the copy that becomes
// yesterday's.
func (e *Engine) Clone() *Engine {
	e.mu.Lock()
	defer e.mu.Unlock()
	return with(e.opt, e.now.clone())
}

// clone is needed where two engines go on from one state: a tree is copied by
// one of them at a time.
func (s *state) clone() *state { return &state{rows: s.rows.Copy(), size: s.size} }

// Crash ends the engine as a power cut does: everything but its snapshots
// answers [kv.ErrClosed] from now on. It returns the engine that comes up
// afterwards, with the state after any of the commits since the last sync, or
// at that sync; rng chooses.
func (e *Engine) Crash(rng *rand.Rand) *Engine {
	return e.crash(func(n int) int { return rng.IntN(n + 1) })
}

// CrashKeeping is Crash that leaves exactly keep of the Unsynced commits.
func (e *Engine) CrashKeeping(keep int) *Engine {
	return e.crash(func(int) int { return keep })
}

func (e *Engine) crash(choose func(unsynced int) int) *Engine {
	e.mu.Lock()
	defer e.mu.Unlock()
	left := e.past[choose(len(e.past)-1)]
	e.closed = true
	e.now = left
	e.synced()
	return with(e.opt, left.clone())
}

// Unsynced is the number of commits that a crash could lose.
func (e *Engine) Unsynced() int {
	e.mu.Lock()
	defer e.mu.Unlock()
	return len(e.past) - 1
}

// ErrInjected is what a commit fails with that was told to.
var ErrInjected = errors.New("injected fault")

// FailCommit makes the n-th commit from now (1 is the next) fail with
// [ErrInjected], its ops applied or not.
func (e *Engine) FailCommit(n int, applied bool) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.faults[n] = fault{applied, fmt.Errorf("memory engine: commit: %w", ErrInjected)}
}

// Keys are the engine's keys in order, for whoever chooses one to harm; see
// [kv.EngineKey]. The slices are the engine's.
func (e *Engine) Keys() (keys [][]byte) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.now.rows.Scan(func(r row) bool {
		keys = append(keys, r.key)
		return true
	})
	return keys
}

// Row is the stored value under an engine's key, as it is.
func (e *Engine) Row(engineKey []byte) ([]byte, bool) {
	e.mu.Lock()
	defer e.mu.Unlock()
	r, ok := e.now.rows.Get(row{key: engineKey})
	return slices.Clone(r.value), ok
}

// Drop makes a row vanish behind the database's back, as a rotten block does;
// it says whether there was one. Harm is done to every state that a crash may
// leave from now on, as harm on disk is.
func (e *Engine) Drop(engineKey []byte) (ok bool) {
	return e.harm(func(s *state) bool { return s.delete(engineKey) })
}

// Plant stores a value behind the database's back: another row's, an old one.
func (e *Engine) Plant(engineKey, value []byte) {
	e.harm(func(s *state) bool { s.put(engineKey, value); return true })
}

// Flip turns one bit of a stored value; bit is taken modulo its length.
func (e *Engine) Flip(engineKey []byte, bit int) (ok bool) {
	return e.harm(func(s *state) bool {
		r, ok := s.rows.Get(row{key: engineKey})
		if !ok || len(r.value) == 0 {
			return false
		}
		v := slices.Clone(r.value)
		bit := bit % (8 * len(v))
		v[bit/8] ^= 1 << (bit % 8)
		s.put(engineKey, v)
		return true
	})
}

func (e *Engine) harm(fn func(*state) bool) (ok bool) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.edit(func(s *state) { ok = fn(s) })
	for i, s := range e.past[:len(e.past)-1] {
		s = s.clone()
		fn(s)
		e.past[i] = s
	}
	e.past[len(e.past)-1] = e.now
	return ok
}

type snapshot struct{ *state }

func (s *snapshot) Get(key, dst []byte) ([]byte, error) {
	r, ok := s.rows.Get(row{key: key})
	if !ok {
		return dst, kv.ErrNotFound
	}
	return append(dst, r.value...), nil
}

func (s *snapshot) Close() {}

func (s *snapshot) Cursor(from, to []byte, reverse bool) kv.EngineCursor {
	return &cursor{it: s.rows.Iter(), from: from, to: to, reverse: reverse}
}

type cursor struct {
	it       btree.IterG[row]
	from, to []byte
	reverse  bool
	seek     []byte // where the next step begins, if sought
	sought   bool
	begun    bool
	done     bool
	row      row
}

func (c *cursor) Seek(key []byte) {
	c.seek, c.sought, c.begun, c.done = bytes.Clone(key), true, false, false
}

func (c *cursor) Next() bool {
	if c.done || !c.move() || c.out(c.it.Item().key) {
		c.done, c.row = true, row{}
		return false
	}
	c.row = c.it.Item()
	return true
}

func (c *cursor) out(key []byte) bool {
	if c.reverse {
		return bytes.Compare(key, c.from) < 0
	}
	return c.to != nil && bytes.Compare(key, c.to) >= 0
}

func (c *cursor) move() bool {
	if c.begun {
		if c.reverse {
			return c.it.Prev()
		}
		return c.it.Next()
	}
	c.begun = true
	if !c.reverse {
		start := c.from
		if c.sought && bytes.Compare(c.seek, start) > 0 {
			start = c.seek
		}
		return c.it.Seek(row{key: start})
	}
	// Downwards from seek, which counts, or from to, which does not.
	start, inclusive := c.to, false
	if c.sought && (c.to == nil || bytes.Compare(c.seek, c.to) < 0) {
		start, inclusive = c.seek, true
	}
	if start == nil {
		return c.it.Last()
	}
	if !c.it.Seek(row{key: start}) {
		return c.it.Last()
	}
	if inclusive && bytes.Equal(c.it.Item().key, start) {
		return true
	}
	return c.it.Prev()
}

func (c *cursor) Key() []byte   { return c.row.key }
func (c *cursor) Value() []byte { return c.row.value }
func (c *cursor) Err() error    { return nil }
func (c *cursor) Close()        { c.it.Release() }
