package kv

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"

	"github.com/tidwall/btree"
)

// Tx is the one write transaction. It reads the state that it began with and
// its own writes, and may stay open while a network write happens: readers are
// not held up. It ends in [Tx.Commit] or [Tx.Discard]; afterwards its methods
// return [ErrClosed]. It belongs to one goroutine at a time.
type Tx struct {
	db   *DB
	snap *Snapshot
	base State // of the snapshot

	rows    *btree.BTreeG[*pending]
	size    Size
	ended   bool
	journal []undo
	marked  bool // a mark was taken: changes go to the journal

	probe pending
	value []byte // lent to GetMany
	scratch
}

// scratch is what a transaction leaves to the next one. It belongs to whoever
// has the writer's token.
type scratch struct {
	slab   []pending
	arena  arena
	old    []byte // values that Put and Delete replace
	nonces []byte
	ops    []Op
	buf    []byte // keys and sealed values of ops
}

// Beyond these a buffer is not kept from one transaction to the next.
const (
	slabRows  = 128
	keepBytes = 256 << 10
	keepOps   = 4096
)

// rest makes the scratch ready for the next transaction, without what this one
// left in it.
func (s scratch) rest() scratch {
	clear(s.slab)
	s.slab = s.slab[:0]
	s.arena.free = s.arena.block
	clear(s.ops)
	s.ops = s.ops[:0]
	if cap(s.ops) > keepOps {
		s.ops = nil
	}
	for _, b := range []*[]byte{&s.old, &s.nonces, &s.buf} {
		if *b = (*b)[:0]; cap(*b) > keepBytes {
			*b = nil
		}
	}
	return s
}

// Size counts what a commit would write, the database's own state row
// included, in the way of [Limits]: a transaction may hold Limits.Entries
// entries and Limits.Bytes bytes.
type Size struct {
	Entries int
	Bytes   int
}

// Mark is a point in a transaction to come back to.
type Mark int

// pending is a row that the transaction wrote, or looked for in vain.
type pending struct {
	key, value []byte
	there      bool   // false: deleted
	stored     bool   // the snapshot has the row,
	share      Digest // and this is what it adds to the digest
}

type undo struct {
	row    *pending
	value  []byte
	there  bool
	fresh  bool // the row was not in the transaction before
	before Size
}

func lessPending(a, b *pending) bool { return bytes.Compare(a.key, b.key) < 0 }

// Begin starts the write transaction when the one before has ended.
func (db *DB) Begin(ctx context.Context) (*Tx, error) {
	if err := db.enter(); err != nil {
		return nil, fail("begin", err)
	}
	select {
	case <-db.writer:
	case <-ctx.Done():
		db.leave()
		return nil, fail("begin", context.Cause(ctx))
	}
	tx, err := db.begin()
	if err != nil {
		db.writer <- struct{}{}
		db.leave()
		return nil, db.note("begin", err)
	}
	return tx, nil
}

func (db *DB) begin() (*Tx, error) {
	if db.broken != nil {
		return nil, db.broken
	}
	snap, err := db.snapshot()
	if err != nil {
		return nil, err
	}
	tx := &Tx{db: db, snap: snap, rows: btree.NewBTreeGOptions(lessPending, btree.Options{NoLocks: true}), scratch: db.scratch}
	db.scratch = scratch{}
	// The state is read, not remembered: what an engine forgot is not written over.
	if tx.base, err = snap.state(); err != nil {
		snap.release()
		db.scratch = tx.scratch
		return nil, err
	}
	tx.size = Size{Entries: 1, Bytes: len(stateKey) + stateLen + db.limits.OpBytes}
	return tx, nil
}

// Discard ends the transaction without a trace. After Commit it does nothing.
func (tx *Tx) Discard() {
	if tx.ended {
		return
	}
	tx.ended = true
	tx.snap.release()
	tx.db.scratch = tx.scratch.rest()
	tx.scratch = scratch{}
	tx.rows, tx.journal = nil, nil
	tx.db.writer <- struct{}{}
	tx.db.leave()
}

// Size is what a commit would write now.
func (tx *Tx) Size() Size { return tx.size }

// Mark returns a point that [Tx.Rollback] can return to. It costs nothing by
// itself; from the first mark on the transaction remembers what each write
// replaced.
func (tx *Tx) Mark() Mark {
	tx.marked = true
	return Mark(len(tx.journal))
}

// Rollback takes back every write since the mark. Marks taken after it are no
// longer valid; cursors that are open stay where they are.
func (tx *Tx) Rollback(m Mark) {
	if tx.ended {
		return
	}
	if m < 0 || int(m) > len(tx.journal) {
		panic("kv: rollback to a mark that was rolled back already")
	}
	for i := len(tx.journal) - 1; i >= int(m); i-- {
		u := &tx.journal[i]
		u.row.value, u.row.there = u.value, u.there
		if u.fresh {
			tx.rows.Delete(u.row)
		}
		tx.size = u.before
	}
	clear(tx.journal[m:])
	tx.journal = tx.journal[:m]
}

// Get implements [Reader].
func (tx *Tx) Get(key, dst []byte) ([]byte, error) {
	if tx.ended {
		return dst, fail("get", ErrClosed)
	}
	if p, ok := tx.find(key); ok {
		if !p.there {
			return dst, errAbsent
		}
		return append(dst, p.value...), nil
	}
	v, err := tx.snap.Get(key, dst)
	if err == errAbsent {
		// Remembered, for what is looked for in vain is often written next: a row that
		// is neither stored nor there is not written, whatever else happens.
		p := tx.row()
		*p = pending{key: tx.arena.copy(key)}
		tx.rows.Set(p)
	}
	return v, err
}

// GetMany implements [Reader].
func (tx *Tx) GetMany(keys [][]byte, fn func(int, []byte, error) error) error {
	return getMany(tx, &tx.value, keys, fn)
}

// Scan implements [Reader]. Writes that fn makes ahead of the scan are met by it.
func (tx *Tx) Scan(from, to []byte, reverse bool, fn func(key, value []byte) error) error {
	if tx.ended {
		return fail("scan", ErrClosed)
	}
	return scan(tx.Cursor(from, to, reverse), fn)
}

// Cursor implements [Reader]. It meets what the transaction writes ahead of it,
// also after it was made.
func (tx *Tx) Cursor(from, to []byte, reverse bool) *Cursor {
	return newCursor(tx.snap, tx, from, to, reverse)
}

func (tx *Tx) find(key []byte) (*pending, bool) {
	tx.probe.key = key
	p, ok := tx.rows.Get(&tx.probe)
	tx.probe.key = nil
	return p, ok
}

// Put writes a row. [ErrTooBig] means that the row is beyond [MaxKey] or
// [MaxValue], or the transaction would be beyond its limits: nothing changed,
// and the transaction can go on. A stored row that does not open is
// [ErrDamaged], although it would be replaced.
func (tx *Tx) Put(key, value []byte) error {
	var err error
	tx.old, _, err = tx.write(key, value, true, tx.old[:0])
	return tx.db.note("put", err)
}

// Swap is Put that appends the value it replaces to dst; had says whether there
// was one. dst must not overlap value.
func (tx *Tx) Swap(key, value, dst []byte) (old []byte, had bool, err error) {
	old, had, err = tx.write(key, value, true, dst)
	return old, had, tx.db.note("put", err)
}

// Delete takes a row away; had says whether it was there.
func (tx *Tx) Delete(key []byte) (had bool, err error) {
	tx.old, had, err = tx.write(key, nil, false, tx.old[:0])
	return had, tx.db.note("delete", err)
}

// Take is Delete that appends the row's value to dst.
func (tx *Tx) Take(key, dst []byte) (old []byte, had bool, err error) {
	old, had, err = tx.write(key, nil, false, dst)
	return old, had, tx.db.note("delete", err)
}

// write appends the value that was there to dst.
func (tx *Tx) write(key, value []byte, there bool, dst []byte) (old []byte, had bool, err error) {
	switch {
	case tx.ended:
		return dst, false, ErrClosed
	case len(key) > MaxKey:
		return dst, false, fmt.Errorf("a key of %d bytes: %w", len(key), ErrTooBig)
	case len(value) > MaxValue:
		return dst, false, fmt.Errorf("a value of %d bytes: %w", len(value), ErrTooBig)
	}
	p, known := tx.find(key)
	var first pending // until it is known that the row fits
	if known {
		old, had = dst, p.there
		if had {
			old = append(dst, p.value...)
		}
	} else {
		p = &first
		old, err = tx.snap.get(key, dst)
		switch {
		case err == nil:
			had, p.stored = true, true
			p.share = tx.db.seal.share(tx.snap.bound[1:], tx.snap.sealed)
		case !errors.Is(err, ErrNotFound):
			return dst, false, err
		case !there:
			return dst, false, nil // nothing there, nothing to do
		}
	}
	size := tx.size
	if known {
		size = tx.less(size, p)
	}
	size = tx.more(size, p.stored, there, len(key), len(value))
	if size.Entries > tx.db.limits.Entries || size.Bytes > tx.db.limits.Bytes {
		return dst, false, fmt.Errorf("a transaction of %d entries and %d bytes: %w", size.Entries, size.Bytes, ErrTooBig)
	}
	if !known {
		p = tx.row()
		*p = first
		p.key = tx.arena.copy(key)
		tx.rows.Set(p)
	}
	if tx.marked {
		tx.journal = append(tx.journal, undo{row: p, value: p.value, there: p.there, fresh: !known, before: tx.size})
		p.value = nil // the journal has it: it is not written over
	}
	p.there = there
	switch {
	case !there:
		p.value = p.value[:0]
	case len(value) <= cap(p.value):
		p.value = append(p.value[:0], value...)
	default:
		p.value = tx.arena.copy(value)
	}
	tx.size = size
	return old, had, nil
}

// more and less count an op. A row that is neither stored nor there any more
// costs nothing: nothing is written for it.
func (tx *Tx) more(s Size, stored, there bool, key, value int) Size {
	if !stored && !there {
		return s
	}
	s.Entries++
	s.Bytes += 1 + key + tx.db.limits.OpBytes
	if there {
		s.Bytes += value + sealedExtra
	}
	return s
}

func (tx *Tx) less(s Size, p *pending) Size {
	n := tx.more(Size{}, p.stored, p.there, len(p.key), len(p.value))
	return Size{Entries: s.Entries - n.Entries, Bytes: s.Bytes - n.Bytes}
}

func (tx *Tx) row() *pending {
	if len(tx.slab) == cap(tx.slab) {
		tx.slab = make([]pending, 0, slabRows)
	}
	tx.slab = tx.slab[:len(tx.slab)+1]
	return &tx.slab[len(tx.slab)-1]
}

// Commit writes everything in one engine transaction, and ends this one
// whatever it returns. Without changes it writes nothing. An error is
// [ErrUnknown] unless it is certain that nothing was stored; after it the DB
// takes no more writes.
func (tx *Tx) Commit() error {
	if tx.ended {
		return fail("commit", ErrClosed)
	}
	defer tx.Discard()
	if tx.size.Entries == 1 {
		return nil
	}
	ops, err := tx.sealAll()
	if err != nil {
		return fail("commit", err) // nothing was stored
	}
	err = guard(func() error { return tx.db.engine.Commit(ops) })
	if err == nil {
		return nil
	}
	if errors.Is(err, ErrTooBig) || errors.Is(err, ErrClosed) {
		return fail("commit", err)
	}
	tx.db.broken = fmt.Errorf("%w: %w", ErrUnknown, err)
	return tx.db.note("commit", tx.db.broken)
}

// sealAll seals every row that changed. It reads all its nonces at once, and keeps
// none for later: what a copy of this process draws is its own.
func (tx *Tx) sealAll() ([]Op, error) {
	nonces := slices.Grow(tx.nonces, tx.size.Entries*nonceLen)[:tx.size.Entries*nonceLen]
	tx.nonces = nonces
	if _, err := io.ReadFull(tx.db.rand, nonces); err != nil {
		return nil, fmt.Errorf("random bytes: %w", err)
	}
	ops := slices.Grow(tx.ops, tx.size.Entries)[:1] // the state row is the first in order
	// One buffer for all keys and values; it does not move, for the sizes are known.
	buf := slices.Grow(tx.buf, tx.size.Bytes-tx.size.Entries*tx.db.limits.OpBytes)
	st := tx.base
	bound := tx.snap.bound
	nonce := func() (n []byte) {
		n, nonces = nonces[:nonceLen], nonces[nonceLen:]
		return n
	}
	tx.rows.Scan(func(p *pending) bool {
		if !p.stored && !p.there {
			return true
		}
		bound = bind(bound, kindRow, p.key)
		start := len(buf)
		buf = append(buf, bound[1:]...)
		op := Op{Key: buf[start:len(buf):len(buf)], Delete: !p.there}
		if p.stored {
			st.Rows--
			st.Digest.sub(&p.share)
		}
		if p.there {
			start = len(buf)
			buf = tx.db.seal.seal(buf, bound, nonce(), p.value)
			op.Value = buf[start:len(buf):len(buf)]
			share := tx.db.seal.share(op.Key, op.Value)
			st.Rows++
			st.Digest.add(&share)
		}
		ops = append(ops, op)
		return true
	})
	tx.snap.bound = bound
	st.Commits++
	start := len(buf)
	buf = tx.db.seal.appendState(buf, nonce(), st)
	ops[0] = Op{Key: stateKey, Value: buf[start:]}
	tx.ops, tx.buf = ops, buf
	return ops, nil
}

// arena keeps copies for the life of a transaction.
type arena struct {
	free  []byte
	block []byte // the first one, kept
}

const arenaBlock = 64 << 10

func (a *arena) copy(b []byte) []byte {
	if len(b) > len(a.free) {
		if len(b) > arenaBlock/8 {
			return append([]byte(nil), b...)
		}
		a.free = make([]byte, arenaBlock)
		if a.block == nil {
			a.block = a.free
		}
	}
	n := copy(a.free, b)
	c := a.free[:n:n]
	a.free = a.free[n:]
	return c
}
