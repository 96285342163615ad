package kv

import (
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"runtime"
	"sync"
	"sync/atomic"
)

// Reader reads rows: a [Snapshot], or a [Tx] with its own writes.
type Reader interface {
	// Get appends the value to dst; [ErrNotFound].
	Get(key, dst []byte) ([]byte, error)
	// GetMany looks the keys up in turn and hands each value to fn with the
	// key's place in keys; a row that is not there comes with [ErrNotFound].
	// The value is valid until fn returns. Any other error, or one from fn,
	// ends it and is returned.
	GetMany(keys [][]byte, fn func(i int, value []byte, err error) error) error
	// Scan hands the rows of from <= key < to, upwards or downwards, to fn. An
	// empty to does not bound, an empty from is the beginning. The slices are
	// valid until fn returns. [Stop] from fn ends the scan without an error.
	Scan(from, to []byte, reverse bool, fn func(key, value []byte) error) error
	// Cursor walks the same rows by hand and can leap. The caller closes it.
	Cursor(from, to []byte, reverse bool) *Cursor
}

// Stop ends a scan early.
var Stop = errors.New("stop")

// DB is a database of sealed rows. Its methods may be called at the same time.
type DB struct {
	engine  Engine
	seal    *sealer
	limits  Limits
	rand    io.Reader
	created bool

	writer chan struct{} // holds one token; who has it may use what follows
	broken error         // set when a commit failed: no more writes
	scratch

	damage atomic.Pointer[error]

	mu     sync.Mutex
	users  int // open views and transactions, running calls
	closed bool
	idle   *sync.Cond // users became zero

	closing sync.Once
	done    error // what closing the engine said
}

// Open takes the engine over, whether it succeeds or not: it is closed by
// [DB.Close], or before a failing Open returns. An empty engine becomes a new
// database, durably; see [DB.Created].
func Open(e Engine, c Config) (*DB, error) {
	db := &DB{engine: e, rand: c.Rand, writer: make(chan struct{}, 1)}
	if db.rand == nil {
		db.rand = rand.Reader
	}
	db.idle = sync.NewCond(&db.mu)
	db.writer <- struct{}{}
	if err := db.open(&c); err != nil {
		closing := guard(func() error { return e.Close() })
		if closing != nil && !errors.Is(err, ErrDamaged) {
			err = errors.Join(err, closing)
		}
		return nil, fail("open", err)
	}
	return db, nil
}

func (db *DB) open(c *Config) error {
	db.limits = db.engine.Limits()
	if min := MaxKey + MaxValue + sealedExtra + 1 + stateLen + 2*db.limits.OpBytes + 1; db.limits.Bytes < min || db.limits.Entries < 2 {
		return fmt.Errorf("an engine whose transactions end at %d entries and %d bytes cannot hold the longest row: %w", db.limits.Entries, db.limits.Bytes, ErrTooBig)
	}
	var row []byte
	var empty bool
	err := guard(func() error {
		snap, err := db.engine.Snapshot()
		if err != nil {
			return err
		}
		defer snap.Close()
		row, err = snap.Get(stateKey, nil)
		if !errors.Is(err, ErrNotFound) {
			return err
		}
		row = nil
		cur := snap.Cursor(nil, nil, false)
		defer cur.Close()
		empty = !cur.Next()
		return cur.Err()
	})
	if err != nil {
		return err
	}
	if row == nil && !empty {
		return damaged("there are rows and no state row")
	}
	if row != nil {
		salt, err := parseSalt(row)
		if err != nil {
			return err
		}
		db.seal = newSealer(c, salt)
		_, err = db.seal.openState(row)
		return err
	}
	var salt [saltLen]byte
	var nonce [nonceLen]byte
	for _, b := range [][]byte{salt[:], nonce[:]} {
		if _, err := io.ReadFull(db.rand, b); err != nil {
			return fmt.Errorf("random bytes: %w", err)
		}
	}
	db.seal = newSealer(c, salt)
	db.created = true
	return guard(func() error {
		if err := db.engine.Commit([]Op{{Key: stateKey, Value: db.seal.appendState(nil, nonce[:], State{})}}); err != nil {
			return err
		}
		return db.engine.Sync()
	})
}

// Created says that Open found nothing and made a new database. Whoever
// expected rows has lost them.
func (db *DB) Created() bool { return db.created }

// Limits bound a transaction; [Tx.Size] counts in the same way.
func (db *DB) Limits() Limits { return db.limits }

// Damaged is the first damage that any read, commit or check has met since the
// database was opened, or nil.
func (db *DB) Damaged() error {
	if p := db.damage.Load(); p != nil {
		return *p
	}
	return nil
}

// note remembers damage on its way out.
func (db *DB) note(op string, err error) error {
	if err == nil {
		return nil
	}
	err = fail(op, err)
	if errors.Is(err, ErrDamaged) {
		db.damage.CompareAndSwap(nil, &err)
	}
	return err
}

// guard runs a call into the engine. Badger panics over some damaged files.
// The panic's text may hold keys and is not kept, unless it is the runtime's.
func guard(fn func() error) (err error) {
	defer recovered(&err)
	return fn()
}

func recovered(err *error) {
	if r := recover(); r != nil {
		*err = panicked(r)
	}
}

func panicked(r any) error {
	if e, ok := r.(runtime.Error); ok {
		return damaged("the engine panicked: %v", e)
	}
	return damaged("the engine panicked with a %T", r)
}

func (db *DB) enter() error {
	db.mu.Lock()
	defer db.mu.Unlock()
	if db.closed {
		return ErrClosed
	}
	db.users++
	return nil
}

func (db *DB) leave() {
	db.mu.Lock()
	defer db.mu.Unlock()
	if db.users--; db.users == 0 {
		db.idle.Broadcast()
	}
}

// View runs fn on a snapshot of what is committed. An error of fn is returned
// as it is.
func (db *DB) View(fn func(*Snapshot) error) error {
	if err := db.enter(); err != nil {
		return fail("view", err)
	}
	defer db.leave()
	snap, err := db.snapshot()
	if err != nil {
		return db.note("view", err)
	}
	defer snap.release()
	return fn(snap)
}

func (db *DB) snapshot() (*Snapshot, error) {
	s := &Snapshot{db: db}
	err := guard(func() (err error) {
		s.snap, err = db.engine.Snapshot()
		return err
	})
	if err != nil {
		return nil, err
	}
	return s, nil
}

// Get reads one row from what is committed now; see [Snapshot.Get].
func (db *DB) Get(key, dst []byte) (v []byte, err error) {
	v = dst
	err = db.View(func(s *Snapshot) error {
		v, err = s.Get(key, dst)
		return err
	})
	return v, err
}

// Sync returns once every commit that returned would survive a power cut. For
// an engine that syncs each commit it has nothing to do.
func (db *DB) Sync() error {
	if err := db.enter(); err != nil {
		return fail("sync", err)
	}
	defer db.leave()
	return db.note("sync", guard(db.engine.Sync))
}

// Size is the space that the engine takes, in bytes. It may lag.
func (db *DB) Size() (n int64, err error) {
	if err := db.enter(); err != nil {
		return 0, fail("size", err)
	}
	defer db.leave()
	err = guard(func() (err error) {
		n, err = db.engine.Size()
		return err
	})
	return n, db.note("size", err)
}

// Close waits for views and for the transaction to end, and closes the engine.
// Every further call waits for the first and returns what it did.
func (db *DB) Close() error {
	db.closing.Do(func() {
		db.mu.Lock()
		db.closed = true
		for db.users > 0 {
			db.idle.Wait()
		}
		db.mu.Unlock()
		db.done = fail("close", guard(db.engine.Close))
	})
	return db.done
}

// Snapshot is one committed state. It belongs to one goroutine and ends with
// the function that [DB.View] gave it to.
type Snapshot struct {
	db     *DB
	snap   EngineSnapshot
	bound  []byte // additional data and engine key of the row at hand
	sealed []byte
	value  []byte
}

func (s *Snapshot) release() {
	// A snapshot whose engine panicked may panic again; the damage was reported.
	_ = guard(func() error { s.snap.Close(); return nil })
}

// Get appends the value to dst; [ErrNotFound].
func (s *Snapshot) Get(key, dst []byte) ([]byte, error) {
	v, err := s.get(key, dst)
	if err == nil {
		return v, nil
	}
	if errors.Is(err, ErrNotFound) {
		return v, errAbsent
	}
	return v, s.db.note("get", err)
}

// errAbsent is made once: most look-ups for chunks find nothing.
var errAbsent = fail("get", ErrNotFound)

// get leaves the row's binding in s.bound and its sealed value in s.sealed.
func (s *Snapshot) get(key, dst []byte) ([]byte, error) {
	if len(key) > MaxKey {
		return dst, fmt.Errorf("a key of %d bytes: %w", len(key), ErrTooBig)
	}
	s.bound = bind(s.bound, kindRow, key)
	if err := s.raw(s.bound[1:]); err != nil {
		return dst, err
	}
	return s.db.seal.open(dst, s.bound, s.sealed)
}

// raw is a guarded get without a closure, for it is the hot path.
func (s *Snapshot) raw(engineKey []byte) (err error) {
	defer recovered(&err)
	s.sealed, err = s.snap.Get(engineKey, s.sealed[:0])
	return err
}

// GetMany implements [Reader].
func (s *Snapshot) GetMany(keys [][]byte, fn func(int, []byte, error) error) error {
	return getMany(s, &s.value, keys, fn)
}

// getMany takes the buffer away while it runs, for fn may come back here.
func getMany(r Reader, lent *[]byte, keys [][]byte, fn func(int, []byte, error) error) error {
	buf := *lent
	*lent = nil
	defer func() { *lent = buf }()
	for i, key := range keys {
		v, err := r.Get(key, buf[:0])
		buf = v[:0]
		if err != nil && !errors.Is(err, ErrNotFound) {
			return err
		}
		if err := fn(i, v, err); err != nil {
			return err
		}
	}
	return nil
}

// Scan implements [Reader].
func (s *Snapshot) Scan(from, to []byte, reverse bool, fn func(key, value []byte) error) error {
	return scan(s.Cursor(from, to, reverse), fn)
}

func scan(c *Cursor, fn func(key, value []byte) error) error {
	defer c.Close()
	for c.Next() {
		v, err := c.Value()
		if err != nil {
			return err
		}
		if err := fn(c.Key(), v); err != nil {
			if err == Stop {
				return nil
			}
			return err
		}
	}
	return c.Err()
}

// Cursor implements [Reader].
func (s *Snapshot) Cursor(from, to []byte, reverse bool) *Cursor {
	return newCursor(s, nil, from, to, reverse)
}

// State is what the database says about its rows in this snapshot; whether it
// is true is found out by [Snapshot.ScanAll].
func (s *Snapshot) State() (State, error) {
	st, err := s.state()
	return st, s.db.note("state", err)
}

func (s *Snapshot) state() (State, error) {
	err := s.raw(stateKey)
	if errors.Is(err, ErrNotFound) {
		return State{}, damaged("the state row is gone")
	}
	if err != nil {
		return State{}, err
	}
	st, err := s.db.seal.openState(s.sealed)
	if errors.Is(err, ErrForeign) || errors.Is(err, ErrNewer) {
		// It was ours when it was opened.
		err = damaged("the state row is another's")
	}
	return st, err
}

// ctxEvery is how many rows a full scan reads between looks at its context.
const ctxEvery = 1024
