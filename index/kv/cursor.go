package kv

import (
	"bytes"
)

// Cursor walks rows in order. It begins before its first row. It belongs to the
// goroutine of its snapshot or transaction, and is closed before these end.
type Cursor struct {
	snap    *Snapshot
	tx      *Tx // nil for a snapshot
	base    EngineCursor
	reverse bool
	from    []byte // bounds of user's keys; an empty to does not bound
	to      []byte

	have   bool // base stands on a row that is not passed yet
	key    []byte
	placed bool // key is where the walk has come to
	at     bool // and a row there is still to come: the cursor was told to seek
	row    *pending
	onBase bool
	bound  []byte
	value  []byte
	err    error
}

func newCursor(s *Snapshot, tx *Tx, from, to []byte, reverse bool) *Cursor {
	c := &Cursor{
		snap: s, tx: tx, reverse: reverse,
		from: append([]byte{kindRow}, from...),
		to:   append([]byte{kindRow}, to...),
	}
	if len(to) == 0 {
		c.to[0] = kindEnd
	}
	if tx != nil && tx.ended {
		c.err = ErrClosed
		return c
	}
	if bytes.Compare(c.from, c.to) >= 0 {
		return c // nothing between: base stays nil
	}
	c.err = guard(func() error {
		c.base = s.snap.Cursor(c.from, c.to, reverse)
		return nil
	})
	return c
}

// Seek moves to before the first row at or after key; in reverse, to before the
// first at or below it. Rows out of bounds stay out.
func (c *Cursor) Seek(key []byte) {
	if c.base == nil || c.err != nil {
		return
	}
	c.key = append(c.key[:0], key...)
	c.placed, c.at = true, true
	c.have, c.row, c.onBase = false, nil, false
	c.bound = bind(c.bound, kindRow, key)
	c.err = guard(func() error {
		c.base.Seek(c.bound[1:])
		return nil
	})
}

// Next moves to the next row; false at the end or after an error.
func (c *Cursor) Next() bool {
	if c.base == nil || c.err != nil {
		c.row, c.onBase = nil, false
		return false
	}
	if c.tx != nil && c.tx.ended {
		c.err = ErrClosed
		return false
	}
	for {
		if c.onBase || !c.have {
			c.have = c.step()
			if c.err != nil {
				return false
			}
		}
		c.row, c.onBase = c.ahead(), false
		if c.have {
			base := c.base.Key()[1:]
			order := -1
			if c.row != nil {
				order = bytes.Compare(base, c.row.key)
				if c.reverse {
					order = -order
				}
			}
			switch {
			case order < 0:
				c.row, c.onBase = nil, true
				c.key = append(c.key[:0], base...)
			case order == 0:
				c.have = false // the transaction has its own word on this row
			}
		}
		if c.row == nil && !c.onBase {
			return false
		}
		if c.row != nil {
			c.key = append(c.key[:0], c.row.key...)
		}
		c.placed, c.at = true, false
		if c.onBase || c.row.there {
			return true
		}
	}
}

// step moves the engine's cursor.
func (c *Cursor) step() (ok bool) {
	defer recovered(&c.err)
	if c.base.Next() {
		if k := c.base.Key(); len(k) == 0 || k[0] != kindRow {
			c.err = damaged("a row of an unknown kind")
			return false
		}
		return true
	}
	c.err = c.base.Err()
	return false
}

// ahead is the transaction's next row beyond the cursor.
func (c *Cursor) ahead() (next *pending) {
	if c.tx == nil {
		return nil
	}
	pick := func(p *pending) bool {
		if c.placed && !c.at && bytes.Equal(p.key, c.key) {
			return true
		}
		next = p
		return false
	}
	probe := &c.tx.probe
	defer func() { probe.key = nil }()
	from := c.from[1:]
	to, bounded := c.to[1:], c.to[0] == kindRow
	if !c.reverse {
		probe.key = from
		if c.placed && bytes.Compare(c.key, from) > 0 {
			probe.key = c.key
		}
		c.tx.rows.Ascend(probe, pick)
		if next != nil && bounded && bytes.Compare(next.key, to) >= 0 {
			next = nil
		}
		return next
	}
	switch below := func(p *pending) bool {
		if bounded && bytes.Compare(p.key, to) >= 0 {
			return true // at most one: to itself
		}
		return pick(p)
	}; {
	case c.placed && (!bounded || bytes.Compare(c.key, to) < 0):
		probe.key = c.key
		c.tx.rows.Descend(probe, below)
	case bounded:
		probe.key = to
		c.tx.rows.Descend(probe, below)
	default:
		c.tx.rows.Reverse(below)
	}
	if next != nil && bytes.Compare(next.key, from) < 0 {
		next = nil
	}
	return next
}

// Key is that of the row which Next moved to. It is valid until the cursor
// moves.
func (c *Cursor) Key() []byte { return c.key }

// Value opens the row which Next moved to. It is valid until the cursor moves
// or the transaction writes.
func (c *Cursor) Value() ([]byte, error) {
	switch {
	case c.row != nil:
		return c.row.value, nil
	case !c.onBase:
		panic("kv: the value of a cursor that is on no row")
	}
	c.bound = bind(c.bound, kindRow, c.key)
	v, err := c.open()
	if err != nil {
		return nil, c.snap.db.note("scan", err)
	}
	return v, nil
}

func (c *Cursor) open() (v []byte, err error) {
	var sealed []byte
	if err := guard(func() error { sealed = c.base.Value(); return nil }); err != nil {
		return nil, err
	}
	c.value, err = c.snap.db.seal.open(c.value[:0], c.bound, sealed)
	return c.value, err
}

// Err is what stopped the cursor, if it was not the end.
func (c *Cursor) Err() error {
	if c.err == nil {
		return nil
	}
	return c.snap.db.note("scan", c.err)
}

// Close gives the cursor's resources back. It may be called twice.
func (c *Cursor) Close() {
	if c.base != nil {
		_ = guard(func() error { c.base.Close(); return nil })
		c.base = nil
	}
}
