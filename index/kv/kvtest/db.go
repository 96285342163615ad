package kvtest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"cairn/id"
	"cairn/index/kv"
)

func runDB(t *testing.T, h Harness) {
	for _, test := range []struct {
		name string
		run  func(*testing.T, Harness)
	}{
		{"rows", dbRows},
		{"snapshot", dbSnapshot},
		{"one-writer", dbOneWriter},
		{"limits", dbLimits},
		{"identity", dbIdentity},
		{"tampered", dbTampered},
		{"scan-all", dbScanAll},
		{"closed", dbClosed},
		{"sealed", dbSealed},
	} {
		t.Run(test.name, func(t *testing.T) { test.run(t, h) })
	}
}

// Write commits "key=value" rows and "key" deletions in one transaction.
func Write(t testing.TB, db *kv.DB, rows ...string) {
	t.Helper()
	tx, err := db.Begin(context.Background())
	if err != nil {
		t.Fatalf("begin: %v", err)
	}
	defer tx.Discard()
	for _, row := range rows {
		k, v, put := strings.Cut(row, "=")
		if put {
			err = tx.Put([]byte(k), []byte(v))
		} else {
			_, err = tx.Delete([]byte(k))
		}
		if err != nil {
			t.Fatalf("write %.60q: %v", row, err)
		}
	}
	if err := tx.Commit(); err != nil {
		t.Fatalf("commit: %v", err)
	}
}

func list(t testing.TB, r kv.Reader) (got []string) {
	t.Helper()
	if err := r.Scan(nil, nil, false, func(k, v []byte) error {
		got = append(got, string(k)+"="+string(v))
		return nil
	}); err != nil {
		t.Fatalf("scan: %v", err)
	}
	return got
}

func view(t testing.TB, db *kv.DB, fn func(*kv.Snapshot)) {
	t.Helper()
	if err := db.View(func(s *kv.Snapshot) error { fn(s); return nil }); err != nil {
		t.Fatalf("view: %v", err)
	}
}

func dbRows(t *testing.T, h Harness) {
	db := Open(t, h.New(t))
	if !db.Created() {
		t.Error("a new database does not say so")
	}
	view(t, db, func(s *kv.Snapshot) { want(t, "a new database", list(t, s)) })
	Write(t, db, "a=1", "=the empty key", "b=")
	view(t, db, func(s *kv.Snapshot) {
		want(t, "rows", list(t, s), "=the empty key", "a=1", "b=")
		st, err := s.State()
		if err != nil || st.Rows != 3 || st.Commits != 1 {
			t.Errorf("state %+v, %v", st, err)
		}
		boom := errors.New("boom")
		if err := s.Scan(nil, nil, false, func(_, _ []byte) error { return boom }); err != boom {
			t.Errorf("a scan's own error came back as %v", err)
		}
		keys := [][]byte{[]byte("b"), []byte("none"), nil}
		var got []string
		if err := s.GetMany(keys, func(i int, v []byte, err error) error {
			got = append(got, fmt.Sprintf("%d %s %v", i, v, errors.Is(err, kv.ErrNotFound)))
			return nil
		}); err != nil {
			t.Error(err)
		}
		want(t, "many", got, "0  false", "1  true", "2 the empty key false")
	})
	if v, err := db.Get([]byte("a"), []byte("dst")); err != nil || string(v) != "dst1" {
		t.Errorf("get: %q, %v", v, err)
	}
	if v, err := db.Get([]byte("none"), []byte("dst")); !errors.Is(err, kv.ErrNotFound) || string(v) != "dst" {
		t.Errorf("get: %q, %v", v, err)
	}
	// A transaction that changes nothing writes nothing.
	Write(t, db, "none")
	tx, _ := db.Begin(t.Context())
	if err := tx.Put([]byte("x"), nil); err != nil {
		t.Fatal(err)
	}
	if had, err := tx.Delete([]byte("x")); !had || err != nil {
		t.Fatal(had, err)
	}
	if err := tx.Commit(); err != nil {
		t.Fatal(err)
	}
	view(t, db, func(s *kv.Snapshot) {
		if st, err := s.State(); err != nil || st.Commits != 1 {
			t.Errorf("state %+v, %v: something was written", st, err)
		}
	})
	// What the transaction was given may be written over, and values of GetMany
	// may go straight into it.
	tx, _ = db.Begin(t.Context())
	k, v := []byte("k"), []byte("v")
	if err := tx.Put(k, v); err != nil {
		t.Fatal(err)
	}
	k[0], v[0] = 'X', 'X'
	if err := tx.GetMany([][]byte{[]byte("a")}, func(int, []byte, error) error { return nil }); err != nil {
		t.Fatal(err) // now there is a buffer to be shared by mistake
	}
	if err := tx.GetMany([][]byte{[]byte("a"), []byte("k")}, func(i int, v []byte, _ error) error {
		return errors.Join(
			tx.GetMany([][]byte{[]byte("k")}, func(_ int, _ []byte, err error) error { return err }),
			tx.Put([]byte(""), []byte("other")),
			tx.Put(fmt.Appendf(nil, "copy%d", i), v))
	}); err != nil {
		t.Fatal(err)
	}
	if err := tx.Commit(); err != nil {
		t.Fatal(err)
	}
	view(t, db, func(s *kv.Snapshot) {
		want(t, "rows", list(t, s), "=other", "a=1", "b=", "copy0=1", "copy1=v", "k=v")
	})
	if err := db.Sync(); err != nil {
		t.Error(err)
	}
	if n, err := db.Size(); err != nil || n <= 0 {
		t.Errorf("size %d, %v", n, err)
	}
	if db.Damaged() != nil {
		t.Error(db.Damaged())
	}
}

func dbSnapshot(t *testing.T, h Harness) {
	db := Open(t, h.New(t))
	Write(t, db, "a=1", "b=1")
	view(t, db, func(s *kv.Snapshot) {
		tx, err := db.Begin(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		defer tx.Discard()
		if err := tx.Put([]byte("a"), []byte("2")); err != nil {
			t.Fatal(err)
		}
		want(t, "own writes", list(t, tx), "a=2", "b=1")
		view(t, db, func(s *kv.Snapshot) { want(t, "beside an open transaction", list(t, s), "a=1", "b=1") })
		if err := tx.Commit(); err != nil {
			t.Fatal(err)
		}
		want(t, "a snapshot from before", list(t, s), "a=1", "b=1")
		if r, err := s.ScanAll(t.Context(), nil); err != nil || r.Rows != 2 {
			t.Errorf("scan of a snapshot from before: %+v, %v", r, err)
		}
	})
	view(t, db, func(s *kv.Snapshot) { want(t, "after", list(t, s), "a=2", "b=1") })
}

func dbOneWriter(t *testing.T, h Harness) {
	db := Open(t, h.New(t))
	tx, err := db.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Millisecond)
	defer cancel()
	if _, err := db.Begin(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("a second transaction: %v, want to wait for the first", err)
	}
	tx.Discard()
	tx.Discard()
	// Many at a time: each adds one to a counter, none is lost; readers see the
	// counter and its copy equal.
	const writers, rounds = 4, 25
	var wg sync.WaitGroup
	for range writers {
		wg.Go(func() {
			for range rounds {
				tx, err := db.Begin(t.Context())
				if err != nil {
					t.Error(err)
					return
				}
				n := 0
				v, err := tx.Get([]byte("n"), nil)
				if err == nil {
					_, _ = fmt.Sscan(string(v), &n) // what is not a number shows in n
				} else if !errors.Is(err, kv.ErrNotFound) {
					t.Error(err)
				}
				for _, k := range []string{"n", "copy"} {
					if err := tx.Put([]byte(k), fmt.Append(nil, n+1)); err != nil {
						t.Error(err)
					}
				}
				if err := tx.Commit(); err != nil {
					t.Error(err)
				}
			}
		})
		wg.Go(func() {
			for range rounds {
				view(t, db, func(s *kv.Snapshot) {
					if got := list(t, s); len(got) == 2 && strings.TrimPrefix(got[0], "copy") != strings.TrimPrefix(got[1], "n") {
						t.Errorf("a reader saw %q", got)
					}
					if _, err := s.ScanAll(t.Context(), nil); err != nil {
						t.Error(err)
					}
				})
			}
		})
	}
	wg.Wait()
	if v, err := db.Get([]byte("n"), nil); string(v) != fmt.Sprint(writers*rounds) {
		t.Errorf("the counter is %s, %v, want %d", v, err, writers*rounds)
	}
}

// dbLimits fills a transaction until it is refused, in entries and in bytes, and
// commits what was taken: what Put takes the engine takes.
func dbLimits(t *testing.T, h Harness) {
	db := Open(t, h.New(t))
	l := db.Limits()
	put := func(t *testing.T, tx *kv.Tx, key func(int) []byte, value []byte) (n int) {
		for ; ; n++ {
			before := tx.Size()
			err := tx.Put(key(n), value)
			if errors.Is(err, kv.ErrTooBig) {
				if tx.Size() != before {
					t.Errorf("size %+v after a refused row, want %+v", tx.Size(), before)
				}
				if _, err := tx.Get(key(n), nil); !errors.Is(err, kv.ErrNotFound) {
					t.Errorf("the refused row is there: %v", err)
				}
				return n
			}
			if err != nil {
				t.Fatal(err)
			}
			if s := tx.Size(); s.Entries > l.Entries || s.Bytes > l.Bytes {
				t.Fatalf("taken beyond the limits: %+v, %+v", s, l)
			}
		}
	}
	for _, test := range []struct {
		name  string
		key   func(int) []byte
		value []byte
	}{
		{"short", func(i int) []byte { return fmt.Appendf(nil, "s%05x", i) }, nil},
		{"longest keys", func(i int) []byte { return fmt.Appendf(nil, "%0*x", kv.MaxKey, i) }, nil},
		{"longest rows", func(i int) []byte { return fmt.Appendf(nil, "r%0*x", kv.MaxKey-1, i) }, make([]byte, kv.MaxValue)},
	} {
		t.Run(test.name, func(t *testing.T) {
			tx, err := db.Begin(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			defer tx.Discard()
			n := put(t, tx, test.key, test.value)
			// Fill up with what is left, to the byte.
			pad := []byte("~")
			if left := l.Bytes - tx.Size().Bytes - len(pad) - 1 - 29 - l.OpBytes; left >= 0 && left <= kv.MaxValue && tx.Size().Entries < l.Entries {
				if err := tx.Put(pad, make([]byte, left+1)); !errors.Is(err, kv.ErrTooBig) {
					t.Errorf("one byte too many: %v, want ErrTooBig", err)
				}
				if err := tx.Put(pad, make([]byte, left)); err != nil {
					t.Errorf("to the last byte: %v", err)
				}
				n++
			}
			// Writing a row again costs nothing more.
			if err := tx.Put(test.key(0), test.value); err != nil {
				t.Errorf("the same row again: %v", err)
			}
			if err := tx.Commit(); err != nil {
				t.Fatalf("%d rows, %+v: %v", n, tx.Size(), err)
			}
			if r, err := db.Check(t.Context()); err != nil || r.Rows < uint64(n) {
				t.Errorf("%d rows: %+v, %v", n, r, err)
			}
		})
	}
	tx, err := db.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer tx.Discard()
	long := make([]byte, kv.MaxKey+1)
	if err := tx.Put(long, nil); !errors.Is(err, kv.ErrTooBig) {
		t.Errorf("a key of %d bytes: %v, want ErrTooBig", len(long), err)
	}
	if _, err := tx.Get(long, nil); !errors.Is(err, kv.ErrTooBig) {
		t.Errorf("get of a key of %d bytes: %v, want ErrTooBig", len(long), err)
	}
	if err := tx.Put(nil, make([]byte, kv.MaxValue+1)); !errors.Is(err, kv.ErrTooBig) {
		t.Errorf("a value of %d bytes: %v, want ErrTooBig", kv.MaxValue+1, err)
	}
}

func dbIdentity(t *testing.T, h Harness) {
	if h.Reopen == nil {
		t.Skip("nothing to reopen")
	}
	e := h.New(t)
	db, err := kv.Open(e, Config())
	if err != nil {
		t.Fatal(err)
	}
	Write(t, db, "a=1")
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	for name, change := range map[string]func(*kv.Config){
		"value key":  func(c *kv.Config) { c.ValueKey = kv.NewSecret([32]byte{3}) },
		"digest key": func(c *kv.Config) { c.DigestKey = kv.NewSecret([32]byte{3}) },
		"cluster":    func(c *kv.Config) { c.Cluster = id.Cluster{3} },
	} {
		c := Config()
		change(&c)
		e = h.Reopen(t, e)
		if _, err := kv.Open(e, c); !errors.Is(err, kv.ErrForeign) {
			t.Errorf("another %s: %v, want ErrForeign", name, err)
		}
		if _, err := e.Snapshot(); !errors.Is(err, kv.ErrClosed) {
			t.Errorf("another %s: the engine is left open", name)
		}
	}
	db = Open(t, h.Reopen(t, e))
	if db.Created() {
		t.Error("an old database calls itself new")
	}
	view(t, db, func(s *kv.Snapshot) { want(t, "its rows", list(t, s), "a=1") })
}

// dbTampered harms the engine's rows behind the database's back.
func dbTampered(t *testing.T, h Harness) {
	raw := func(t *testing.T, e kv.Engine, key []byte) []byte {
		s := snapshot(t, e)
		defer s.Close()
		v, err := s.Get(key, nil)
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
	plant := func(t *testing.T, e kv.Engine, key, value []byte) {
		if err := e.Commit([]kv.Op{{Key: key, Value: value, Delete: value == nil}}); err != nil {
			t.Fatal(err)
		}
	}
	a, b := kv.EngineKey([]byte("a")), kv.EngineKey([]byte("b"))
	state := []byte{0}
	for _, test := range []struct {
		name string
		harm func(*testing.T, kv.Engine, *kv.DB)
		get  error // of row a: nil means that only a check can know
	}{
		{"a bit", func(t *testing.T, e kv.Engine, _ *kv.DB) {
			v := raw(t, e, a)
			v[len(v)/2] ^= 1
			plant(t, e, a, v)
		}, kv.ErrDamaged},
		{"its version", func(t *testing.T, e kv.Engine, _ *kv.DB) {
			v := raw(t, e, a)
			v[0]++
			plant(t, e, a, v)
		}, kv.ErrDamaged},
		{"cut short", func(t *testing.T, e kv.Engine, _ *kv.DB) { plant(t, e, a, raw(t, e, a)[:20]) }, kv.ErrDamaged},
		{"empty", func(t *testing.T, e kv.Engine, _ *kv.DB) { plant(t, e, a, []byte{}) }, kv.ErrDamaged},
		{"another row's", func(t *testing.T, e kv.Engine, _ *kv.DB) {
			va, vb := raw(t, e, a), raw(t, e, b)
			plant(t, e, a, vb)
			plant(t, e, b, va)
		}, kv.ErrDamaged},
		{"deleted", func(t *testing.T, e kv.Engine, _ *kv.DB) { plant(t, e, a, nil) }, kv.ErrNotFound},
		{"an old value", func(t *testing.T, e kv.Engine, db *kv.DB) {
			old := raw(t, e, a)
			Write(t, db, "a=new")
			plant(t, e, a, old)
		}, nil},
		{"a deleted row again", func(t *testing.T, e kv.Engine, db *kv.DB) {
			old := raw(t, e, a)
			Write(t, db, "a")
			plant(t, e, a, old)
		}, nil},
		{"a row that never was", func(t *testing.T, e kv.Engine, _ *kv.DB) {
			plant(t, e, kv.EngineKey([]byte("planted")), raw(t, e, a))
		}, nil},
		{"a row below all others", func(t *testing.T, e kv.Engine, _ *kv.DB) { plant(t, e, []byte{0, 0}, []byte("x")) }, nil},
		{"a row above all others", func(t *testing.T, e kv.Engine, _ *kv.DB) { plant(t, e, []byte{9}, []byte("x")) }, nil},
		{"an old state row", func(t *testing.T, e kv.Engine, db *kv.DB) {
			old := raw(t, e, state)
			Write(t, db, "c=3")
			plant(t, e, state, old)
		}, nil},
	} {
		t.Run(test.name, func(t *testing.T) {
			e := h.New(t)
			db := Open(t, e)
			Write(t, db, "a=1", "b=2")
			test.harm(t, e, db)
			v, err := db.Get([]byte("a"), nil)
			if test.get == nil && err != nil || test.get != nil && !errors.Is(err, test.get) {
				t.Errorf("get: %q, %v, want %v", v, err, test.get)
			}
			if errors.Is(test.get, kv.ErrDamaged) {
				if db.Damaged() == nil {
					t.Error("the damage was not noted")
				}
				view(t, db, func(s *kv.Snapshot) {
					if err := s.Scan(nil, nil, true, func(_, _ []byte) error { return nil }); !errors.Is(err, kv.ErrDamaged) {
						t.Errorf("scan: %v, want ErrDamaged", err)
					}
				})
				tx, err := db.Begin(t.Context())
				if err != nil {
					t.Fatal(err)
				}
				if err := tx.Put([]byte("a"), []byte("good again")); !errors.Is(err, kv.ErrDamaged) {
					t.Errorf("put over it: %v, want ErrDamaged", err)
				}
				tx.Discard()
			}
			if r, err := db.Check(t.Context()); !errors.Is(err, kv.ErrDamaged) {
				t.Errorf("check: %+v, %v, want ErrDamaged", r, err)
			}
			view(t, db, func(s *kv.Snapshot) {
				if r, err := s.ScanAll(t.Context(), nil); !errors.Is(err, kv.ErrDamaged) {
					t.Errorf("scan of all rows: %+v, %v, want ErrDamaged", r, err)
				}
			})
			if db.Damaged() == nil {
				t.Error("the damage was not noted")
			}
			// Writing goes on beside it, and does not hide it.
			Write(t, db, "z=26")
			if r, err := db.Check(t.Context()); !errors.Is(err, kv.ErrDamaged) {
				t.Errorf("check after another commit: %+v, %v, want ErrDamaged", r, err)
			}
		})
	}
	t.Run("state row", func(t *testing.T) {
		for _, gone := range []bool{true, false} {
			e := h.New(t)
			db := Open(t, e)
			Write(t, db, "a=1")
			v := raw(t, e, state)
			if gone {
				v = nil
			} else {
				v[len(v)-20] ^= 1
			}
			plant(t, e, state, v)
			if tx, err := db.Begin(t.Context()); !errors.Is(err, kv.ErrDamaged) {
				t.Errorf("begin: %v, want ErrDamaged", err)
				tx.Discard()
			}
			if _, err := db.Check(t.Context()); !errors.Is(err, kv.ErrDamaged) {
				t.Errorf("check: %v, want ErrDamaged", err)
			}
			if h.Reopen == nil {
				continue
			}
			if err := db.Close(); err != nil {
				t.Fatal(err)
			}
			if _, err := kv.Open(h.Reopen(t, e), Config()); !errors.Is(err, kv.ErrDamaged) {
				t.Errorf("open: %v, want ErrDamaged", err)
			}
		}
	})
}

func dbScanAll(t *testing.T, h Harness) {
	db := Open(t, h.New(t))
	var rows []string
	for i := range 2000 {
		rows = append(rows, fmt.Sprintf("%05d=%d", i, i))
	}
	Write(t, db, rows...)
	view(t, db, func(s *kv.Snapshot) {
		var got []string
		r, err := s.ScanAll(t.Context(), func(k, v []byte) error {
			got = append(got, string(k)+"="+string(v))
			return nil
		})
		if err != nil || r.Rows != 2000 || r.Found != r.State.Digest || !slices.Equal(got, rows) {
			t.Errorf("%+v, %v, %d rows", r, err, len(got))
		}
		if r, err := s.ScanAll(t.Context(), func(_, _ []byte) error { return kv.Stop }); err != kv.Stop || r.Rows != 1 {
			t.Errorf("stopped: %+v, %v: a scan that ended early must not look whole", r, err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		n := 0
		if _, err := s.ScanAll(ctx, func(_, _ []byte) error {
			if n++; n == 10 {
				cancel()
			}
			return nil
		}); !errors.Is(err, context.Canceled) || n >= 2000 {
			t.Errorf("cancelled: %v after %d rows", err, n)
		}
	})
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := db.Check(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("check when cancelled: %v", err)
	}
}

func dbClosed(t *testing.T, h Harness) {
	db := Open(t, h.New(t))
	Write(t, db, "a=1")
	tx, err := db.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if err := tx.Put([]byte("b"), nil); err != nil {
		t.Fatal(err)
	}
	closed := make(chan error)
	go func() { closed <- db.Close() }()
	select {
	case err := <-closed:
		t.Fatalf("close did not wait for the transaction: %v", err)
	case <-time.After(20 * time.Millisecond):
	}
	if err := tx.Commit(); err != nil {
		t.Errorf("commit while closing: %v", err)
	}
	if err := <-closed; err != nil {
		t.Errorf("close: %v", err)
	}
	for what, err := range map[string]error{
		"commit": tx.Commit(),
		"put":    tx.Put([]byte("c"), nil),
		"scan":   tx.Scan(nil, nil, false, nil),
		"view":   db.View(func(*kv.Snapshot) error { return nil }),
		"sync":   db.Sync(),
		"get":    second(db.Get(nil, nil)),
		"tx get": second(tx.Get(nil, nil)),
		"size":   second(db.Size()),
		"begin":  second(db.Begin(t.Context())),
		"check":  second(db.Check(t.Context())),
		"cursor": tx.Cursor(nil, nil, false).Err(),
	} {
		if !errors.Is(err, kv.ErrClosed) {
			t.Errorf("%s: %v, want ErrClosed", what, err)
		}
	}
}

func second[T any](_ T, err error) error { return err }

// dbSealed looks for what went in among what the engine was given.
func dbSealed(t *testing.T, h Harness) {
	e := h.New(t)
	db := Open(t, e)
	secret := "an attack at dawn, and nobody knows"
	Write(t, db, "a="+secret, "b="+secret)
	s := snapshot(t, e)
	defer s.Close()
	c := s.Cursor(nil, nil, false)
	defer c.Close()
	var sealed [][]byte
	for c.Next() {
		if bytes.Contains(c.Value(), []byte("dawn")) {
			t.Errorf("row %q is stored in clear", c.Key())
		}
		sealed = append(sealed, bytes.Clone(c.Value()))
	}
	if len(sealed) != 3 || bytes.Equal(sealed[1][13:], sealed[2][13:]) || bytes.Equal(sealed[1][:13], sealed[2][:13]) {
		t.Errorf("%d rows; equal values have equal seals or nonces", len(sealed))
	}
}
