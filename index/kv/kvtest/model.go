package kvtest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"cairn/index/kv"
)

// Model runs random histories on a database and on a map, and compares
// everything that can be read, and the digest with one computed anew.
func Model(t *testing.T, h Harness) {
	// One engine for all histories: each begins by deleting what is left, which
	// is a history too, and opening an engine on disk is dear.
	e := h.New(t)
	m := &machine{h: h, t: t, engine: e}
	m.reset(e)
	defer func() { m.end(); m.db.Close() }()
	rapid.Check(t, func(t *rapid.T) {
		m.clear(t)
		t.Repeat(rapid.StateMachineActions(m))
		m.end()
	})
}

type machine struct {
	h      Harness
	t      testing.TB
	engine kv.Engine
	db     *kv.DB
	stored map[string]string

	tx      *kv.Tx
	own     map[string]string // what the transaction reads
	touched map[string]bool
	empty   kv.Size // of a transaction that wrote nothing
	marks   []mark
}

type mark struct {
	at      kv.Mark
	own     map[string]string
	touched map[string]bool
	size    kv.Size
}

func (m *machine) reset(e kv.Engine) {
	db, err := kv.Open(e, Config())
	if err != nil {
		m.t.Fatalf("open: %v", err)
	}
	m.engine, m.db = e, db
}

func (m *machine) clear(t *rapid.T) {
	m.end()
	tx, err := m.db.Begin(context.Background())
	must(t, err)
	var keys [][]byte
	must(t, tx.Scan(nil, nil, false, func(k, _ []byte) error {
		keys = append(keys, bytes.Clone(k))
		return nil
	}))
	for _, k := range keys {
		had, err := tx.Delete(k)
		must(t, err)
		if !had {
			t.Fatalf("delete %q: it was in the scan and is not there", k)
		}
	}
	must(t, tx.Commit())
	m.stored = map[string]string{}
}

func (m *machine) end() {
	if m.tx != nil {
		m.tx.Discard()
	}
	m.tx, m.own, m.marks = nil, nil, nil
}

func must(t *rapid.T, err error) {
	if err != nil {
		t.Helper()
		t.Fatalf("unexpected: %v", err)
	}
}

// Few keys, so that they meet; some are prefixes of others, one is long.
var keyGen = rapid.OneOf(
	rapid.StringMatching(`[ab]{0,3}`),
	rapid.SampledFrom([]string{"\x00", "\xff", "a\x00", "\xff\xff", "!badger!txn", strings.Repeat("k", kv.MaxKey)}),
)

func value(t *rapid.T) string {
	v := rapid.StringN(0, 20, -1).Draw(t, "value")
	if rapid.IntRange(0, 19).Draw(t, "big") == 0 {
		v = strings.Repeat("x", kv.MaxValue-len(v)) + v
	}
	return v
}

// Begin opens the transaction.
func (m *machine) Begin(t *rapid.T) {
	if m.tx != nil {
		t.Skip("one at a time")
	}
	tx, err := m.db.Begin(context.Background())
	must(t, err)
	m.tx, m.own, m.marks = tx, maps.Clone(m.stored), nil
	m.touched, m.empty = map[string]bool{}, tx.Size()
}

func (m *machine) need(t *rapid.T) {
	if m.tx == nil {
		m.Begin(t)
	}
}

// Put writes, and compares what was replaced.
func (m *machine) Put(t *rapid.T) {
	m.need(t)
	k, v := keyGen.Draw(t, "key"), value(t)
	want, wantHad := m.own[k]
	if rapid.Bool().Draw(t, "swap") {
		old, had, err := m.tx.Swap([]byte(k), []byte(v), []byte("dst"))
		if m.refused(t, err, k, v) {
			return
		}
		if had != wantHad || string(old) != "dst"+want {
			t.Fatalf("swap %q returned %q, %v, want %q, %v", k, old, had, "dst"+want, wantHad)
		}
	} else {
		if m.refused(t, m.tx.Put([]byte(k), []byte(v)), k, v) {
			return
		}
	}
	m.own[k], m.touched[k] = v, true
}

// Delete deletes, and compares what was there.
func (m *machine) Delete(t *rapid.T) {
	m.need(t)
	k := keyGen.Draw(t, "key")
	want, wantHad := m.own[k]
	if rapid.Bool().Draw(t, "take") {
		old, had, err := m.tx.Take([]byte(k), nil)
		must(t, err)
		if had != wantHad || string(old) != want {
			t.Fatalf("take %q returned %q, %v, want %q, %v", k, old, had, want, wantHad)
		}
	} else {
		had, err := m.tx.Delete([]byte(k))
		must(t, err)
		if had != wantHad {
			t.Fatalf("delete %q: had %v, want %v", k, had, wantHad)
		}
	}
	delete(m.own, k)
	m.touched[k] = true
}

// Mark takes a mark.
func (m *machine) Mark(t *rapid.T) {
	m.need(t)
	m.marks = append(m.marks, mark{m.tx.Mark(), maps.Clone(m.own), maps.Clone(m.touched), m.tx.Size()})
}

// Rollback goes back to one of the marks.
func (m *machine) Rollback(t *rapid.T) {
	if len(m.marks) == 0 {
		t.Skip("no marks")
	}
	i := rapid.IntRange(0, len(m.marks)-1).Draw(t, "mark")
	to := m.marks[i]
	m.tx.Rollback(to.at)
	m.own, m.touched, m.marks = maps.Clone(to.own), maps.Clone(to.touched), m.marks[:i+1]
	if got := m.tx.Size(); got != to.size {
		t.Fatalf("size %+v after the rollback, want %+v", got, to.size)
	}
}

// Commit commits.
func (m *machine) Commit(t *rapid.T) {
	if m.tx == nil {
		t.Skip("no transaction")
	}
	must(t, m.tx.Commit())
	m.stored = m.own
	m.end()
}

// Discard discards.
func (m *machine) Discard(t *rapid.T) {
	if m.tx == nil {
		t.Skip("no transaction")
	}
	m.tx.Discard()
	m.end()
}

// Reopen closes the engine and opens it again.
func (m *machine) Reopen(t *rapid.T) {
	if m.h.Reopen == nil || rapid.IntRange(0, 9).Draw(t, "reopen") != 0 {
		t.Skip("not now")
	}
	m.end()
	must(t, m.db.Close())
	m.reset(m.h.Reopen(m.t, m.engine))
}

// Scan compares a bounded scan, upwards or downwards.
func (m *machine) Scan(t *rapid.T) {
	from, to := keyGen.Draw(t, "from"), keyGen.Draw(t, "to")
	reverse := rapid.Bool().Draw(t, "reverse")
	m.read(t, func(r kv.Reader, rows map[string]string) {
		want := expect(rows, from, to, reverse)
		var got []string
		must(t, r.Scan([]byte(from), []byte(to), reverse, func(k, v []byte) error {
			got = append(got, fmt.Sprintf("%q=%q", k, v))
			return nil
		}))
		if !slices.Equal(got, want) {
			t.Fatalf("scan %q to %q reverse %v:\n got %v\nwant %v", from, to, reverse, got, want)
		}
	})
}

// Leap walks a cursor and seeks with it.
func (m *machine) Leap(t *rapid.T) {
	from, to := keyGen.Draw(t, "from"), keyGen.Draw(t, "to")
	reverse := rapid.Bool().Draw(t, "reverse")
	m.read(t, func(r kv.Reader, rows map[string]string) {
		c := r.Cursor([]byte(from), []byte(to), reverse)
		defer c.Close()
		want := expect(rows, from, to, reverse)
		for range rapid.IntRange(1, 4).Draw(t, "leaps") {
			if rapid.Bool().Draw(t, "seek") {
				at := keyGen.Draw(t, "at")
				c.Seek([]byte(at))
				if reverse {
					want = expect(rows, from, to, true)
					for len(want) > 0 && keyOf(want[0]) > at {
						want = want[1:]
					}
				} else {
					want = expect(rows, max(from, at), to, false)
				}
			}
			for range rapid.IntRange(0, 3).Draw(t, "steps") {
				ok := c.Next()
				must(t, c.Err())
				if ok != (len(want) > 0) {
					t.Fatalf("next is %v, want %v", ok, want)
				}
				if !ok {
					break
				}
				v, err := c.Value()
				must(t, err)
				if got := fmt.Sprintf("%q=%q", c.Key(), v); got != want[0] {
					t.Fatalf("cursor at %s, want %s", got, want[0])
				}
				want = want[1:]
			}
		}
	})
}

func keyOf(row string) (key string) {
	var v string
	if _, err := fmt.Sscanf(row, "%q=%q", &key, &v); err != nil {
		panic(err)
	}
	return key
}

func expect(rows map[string]string, from, to string, reverse bool) (want []string) {
	for _, k := range slices.Sorted(maps.Keys(rows)) {
		if k >= from && (to == "" || k < to) {
			want = append(want, fmt.Sprintf("%q=%q", k, rows[k]))
		}
	}
	if reverse {
		slices.Reverse(want)
	}
	return want
}

// read runs fn on what is committed and on what the transaction sees.
func (m *machine) read(t *rapid.T, fn func(kv.Reader, map[string]string)) {
	if m.tx != nil {
		fn(m.tx, m.own)
	}
	must(t, m.db.View(func(s *kv.Snapshot) error {
		fn(s, m.stored)
		return nil
	}))
}

// Write scans in a transaction and writes ahead of, behind and under the scan.
func (m *machine) Write(t *rapid.T) {
	m.need(t)
	reverse := rapid.Bool().Draw(t, "reverse")
	n := 0
	last, begun := "", false
	must(t, m.tx.Scan(nil, nil, reverse, func(k, v []byte) error {
		key := string(k)
		if want, ok := m.own[key]; !ok || want != string(v) {
			t.Fatalf("the scan meets %q=%q, want %q, %v", k, v, want, ok)
		}
		if begun && (key > last) == reverse {
			t.Fatalf("the scan meets %q after %q", key, last)
		}
		last, begun = key, true
		if n++; n > 10 {
			return kv.Stop
		}
		at, v2 := keyGen.Draw(t, "key"), value(t)
		if rapid.Bool().Draw(t, "delete") {
			_, err := m.tx.Delete([]byte(at))
			delete(m.own, at)
			m.touched[at] = true
			return err
		}
		if !m.refused(t, m.tx.Put([]byte(at), []byte(v2)), at, v2) {
			m.own[at], m.touched[at] = v2, true
		}
		return nil
	}))
}

// Digest compares the count and the digest, which were kept step by step, with
// those of a full scan.
func (m *machine) Digest(t *rapid.T) {
	r, err := m.db.Check(context.Background())
	must(t, err)
	if r.Rows != uint64(len(m.stored)) || r.Found != r.State.Digest || r.Bad != 0 {
		t.Fatalf("report %+v for %d rows", r, len(m.stored))
	}
}

// Check runs after every action: point reads, and the transaction's size.
func (m *machine) Check(t *rapid.T) {
	m.read(t, func(r kv.Reader, rows map[string]string) {
		keys := [][]byte{[]byte("absent")}
		for _, k := range slices.Sorted(maps.Keys(rows)) {
			keys = append(keys, []byte(k))
		}
		must(t, r.GetMany(keys, func(i int, v []byte, err error) error {
			want, ok := rows[string(keys[i])]
			if ok != (err == nil) || (!ok && !errors.Is(err, kv.ErrNotFound)) || string(v) != want {
				t.Fatalf("get %q: %q, %v, want %q, %v", keys[i], v, err, want, ok)
			}
			return nil
		}))
	})
	if m.tx == nil {
		return
	}
	want := m.size()
	if got := m.tx.Size(); got != want {
		t.Fatalf("size %+v, want %+v", got, want)
	}
}

// size counts by the rule of kv.Limits.
func (m *machine) size() kv.Size {
	want := m.empty
	for k := range m.touched {
		_, stored := m.stored[k]
		v, there := m.own[k]
		if stored || there {
			want.Entries++
			want.Bytes += 1 + len(k) + m.db.Limits().OpBytes
		}
		if there {
			want.Bytes += 29 + len(v) // version, nonce, tag
		}
	}
	return want
}

// refused says that a put found no room, and checks that there was none.
func (m *machine) refused(t *rapid.T, err error, k, v string) bool {
	if !errors.Is(err, kv.ErrTooBig) {
		must(t, err)
		return false
	}
	before, had := m.own[k]
	touched := m.touched[k]
	m.own[k], m.touched[k] = v, true
	size, limits := m.size(), m.db.Limits()
	if m.own[k] = before; !had {
		delete(m.own, k)
	}
	if m.touched[k] = touched; !touched {
		delete(m.touched, k)
	}
	if size.Entries <= limits.Entries && size.Bytes <= limits.Bytes {
		t.Fatalf("%q was refused at %+v, within %+v", k, size, limits)
	}
	return true
}
