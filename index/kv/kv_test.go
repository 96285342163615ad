package kv_test

import (
	"bytes"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"os"
	"strings"
	"testing"

	"cairn/id"
	"cairn/index/kv"
	"cairn/index/kv/kvtest"
	"cairn/index/kv/memkv"
)

func open(t testing.TB) (*kv.DB, *memkv.Engine) {
	e := memkv.New(memkv.Options{})
	return kvtest.Open(t, e), e
}

func TestSecretsDoNotPrint(t *testing.T) {
	secret := kv.NewSecret([32]byte([]byte("0123456789abcdef0123456789abcdef")))
	var log bytes.Buffer
	slog.New(slog.NewTextHandler(&log, nil)).Info("x", "key", secret, "config", kv.Config{ValueKey: secret})
	slog.New(slog.NewJSONHandler(&log, nil)).Info("x", "key", secret)
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%d"} {
		fmt.Fprintf(&log, verb+verb, secret, kv.Config{ValueKey: secret})
	}
	for _, form := range []string{"0123456789abcdef", hex.EncodeToString([]byte("0123456789")), "48 49 50"} {
		if strings.Contains(log.String(), form) {
			t.Errorf("printed: %s", log.String())
		}
	}
	if _, err := secret.MarshalText(); err == nil {
		t.Error("a secret has a text form")
	}
}

// The fixture is a database of format 1 as it was first written; it must open
// for ever. CAIRN_WRITE_FIXTURE made it.
func TestFixture(t *testing.T) {
	const path = "testdata/v1.rows"
	cfg := kv.Config{
		ValueKey:  kv.NewSecret([32]byte{1}),
		DigestKey: kv.NewSecret([32]byte{2}),
		Cluster:   id.Cluster{3},
		Rand:      rand.NewChaCha8([32]byte{4}),
	}
	if _, err := os.Stat(path); err != nil && os.Getenv("CAIRN_WRITE_FIXTURE") != "" {
		e := memkv.New(memkv.Options{})
		db, err := kv.Open(e, cfg)
		if err != nil {
			t.Fatal(err)
		}
		kvtest.Write(t, db, "bucket=a value", "empty=", "=no key")
		kvtest.Write(t, db, "empty", "more=1")
		var b bytes.Buffer
		for _, k := range e.Keys() {
			v, _ := e.Row(k)
			fmt.Fprintf(&b, "%x %x\n", k, v)
		}
		if err := os.WriteFile(path, b.Bytes(), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	e := memkv.New(memkv.Options{})
	for line := range strings.Lines(string(text)) {
		var k, v []byte
		if _, err := fmt.Sscanf(line, "%x %x", &k, &v); err != nil {
			t.Fatalf("%q: %v", line, err)
		}
		e.Plant(k, v)
	}
	db, err := kv.Open(e, cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	var got []string
	if err := db.View(func(s *kv.Snapshot) error {
		_, err := s.ScanAll(t.Context(), func(k, v []byte) error {
			got = append(got, string(k)+"="+string(v))
			return nil
		})
		return err
	}); err != nil {
		t.Fatal(err)
	}
	if want := []string{"=no key", "bucket=a value", "more=1"}; strings.Join(got, "|") != strings.Join(want, "|") {
		t.Errorf("got %q, want %q", got, want)
	}
	r, err := db.Check(t.Context())
	if err != nil || r.State.Commits != 2 {
		t.Errorf("%+v, %v", r, err)
	}
}

// The order of writes does not matter to the digest: the sum of shares is taken
// by hand from the shares of single rows.
func TestDigestIsTheSumOverRows(t *testing.T) {
	db, _ := open(t)
	state := func() (st kv.State) {
		if err := db.View(func(s *kv.Snapshot) (err error) { st, err = s.State(); return err }); err != nil {
			t.Fatal(err)
		}
		return st
	}
	empty := state()
	kvtest.Write(t, db, "a=1", "b=2")
	two := state()
	kvtest.Write(t, db, "a", "b", "c=3")
	kvtest.Write(t, db, "c")
	if end := state(); end.Digest != empty.Digest || end.Rows != 0 || empty.Digest != (kv.Digest{}) {
		t.Errorf("after everything was deleted: %+v, want %+v", end, empty)
	}
	if two.Digest == empty.Digest || two.Rows != 2 {
		t.Errorf("two rows: %+v", two)
	}
}

// stubborn is an engine that fails in chosen calls.
type stubborn struct {
	kv.Engine
	fail map[string]func() error // panics or returns an error
}

func (s *stubborn) try(call string) error {
	if f := s.fail[call]; f != nil {
		return f()
	}
	return nil
}

func (s *stubborn) Snapshot() (kv.EngineSnapshot, error) {
	if err := s.try("snapshot"); err != nil {
		return nil, err
	}
	snap, err := s.Engine.Snapshot()
	return &stubbornSnapshot{snap, s}, err
}

func (s *stubborn) Commit(ops []kv.Op) error {
	if err := s.try("commit"); err != nil {
		return err
	}
	return s.Engine.Commit(ops)
}

func (s *stubborn) Sync() error {
	if err := s.try("sync"); err != nil {
		return err
	}
	return s.Engine.Sync()
}

func (s *stubborn) Verify(ctx context.Context) error {
	if err := s.try("verify"); err != nil {
		return err
	}
	return s.Engine.Verify(ctx)
}

func (s *stubborn) Close() error { return errors.Join(s.try("close"), s.Engine.Close()) }

type stubbornSnapshot struct {
	kv.EngineSnapshot
	s *stubborn
}

func (s *stubbornSnapshot) Get(key, dst []byte) ([]byte, error) {
	if err := s.s.try("get"); err != nil {
		return dst, err
	}
	return s.EngineSnapshot.Get(key, dst)
}

func (s *stubbornSnapshot) Close() { s.s.try("release"); s.EngineSnapshot.Close() }

func (s *stubbornSnapshot) Cursor(from, to []byte, reverse bool) kv.EngineCursor {
	s.s.try("cursor")
	return &stubbornCursor{s.EngineSnapshot.Cursor(from, to, reverse), s.s, nil}
}

type stubbornCursor struct {
	kv.EngineCursor
	s   *stubborn
	err error
}

func (c *stubbornCursor) Next() bool {
	if c.err = c.s.try("next"); c.err != nil {
		return false
	}
	return c.EngineCursor.Next()
}
func (c *stubbornCursor) Seek(key []byte) { c.s.try("seek"); c.EngineCursor.Seek(key) }
func (c *stubbornCursor) Value() []byte   { c.s.try("value"); return c.EngineCursor.Value() }
func (c *stubbornCursor) Err() error      { return errors.Join(c.err, c.EngineCursor.Err()) }

// A panic of the engine is damage, wherever it comes, and its text, which may
// be a key, goes nowhere.
func TestPanicsOfTheEngineAreDamage(t *testing.T) {
	var nothing []byte
	for _, kind := range []struct {
		name  string
		panic func() error
	}{
		{"own", func() error { panic("canary-key") }},
		{"runtime", func() error { _ = nothing[len(nothing)]; return nil }},
	} {
		for _, test := range []struct {
			call string
			do   func(db *kv.DB) error
		}{
			{"snapshot", func(db *kv.DB) error { return db.View(func(*kv.Snapshot) error { return nil }) }},
			{"get", func(db *kv.DB) error { _, err := db.Get([]byte("a"), nil); return err }},
			{"get", func(db *kv.DB) error { _, err := db.Begin(t.Context()); return err }},
			{"cursor", func(db *kv.DB) error { return scan(db) }},
			{"next", func(db *kv.DB) error { return scan(db) }},
			{"value", func(db *kv.DB) error { return scan(db) }},
			{"seek", func(db *kv.DB) error {
				return db.View(func(s *kv.Snapshot) error {
					c := s.Cursor(nil, nil, false)
					defer c.Close()
					c.Seek(nil)
					if c.Next() {
						t.Error("a row after a panic")
					}
					return c.Err()
				})
			}},
			{"cursor", func(db *kv.DB) error { _, err := db.Check(t.Context()); return err }},
			{"next", func(db *kv.DB) error { _, err := db.Check(t.Context()); return err }},
			{"verify", func(db *kv.DB) error { _, err := db.Check(t.Context()); return err }},
			{"sync", func(db *kv.DB) error { return db.Sync() }},
			{"commit", func(db *kv.DB) error {
				tx, err := db.Begin(t.Context())
				if err != nil {
					t.Fatal(err)
				}
				if err := tx.Put([]byte("b"), nil); err != nil {
					t.Fatal(err)
				}
				if err = tx.Commit(); !errors.Is(err, kv.ErrUnknown) {
					t.Errorf("commit: %v, want ErrUnknown", err)
				}
				return err
			}},
		} {
			s := &stubborn{Engine: memkv.New(memkv.Options{}), fail: map[string]func() error{}}
			db, err := kv.Open(s, kvtest.Config())
			if err != nil {
				t.Fatal(err)
			}
			kvtest.Write(t, db, "a=1")
			s.fail[test.call] = kind.panic
			err = test.do(db)
			if !errors.Is(err, kv.ErrDamaged) || db.Damaged() == nil {
				t.Errorf("%s panic in %s: %v, want ErrDamaged, noted", kind.name, test.call, err)
			}
			if strings.Contains(fmt.Sprint(err), "canary") {
				t.Errorf("the panic's text is passed on: %v", err)
			}
			clear(s.fail)
			if err := db.Close(); err != nil {
				t.Error(err)
			}
		}
	}
}

func scan(db *kv.DB) error {
	return db.View(func(s *kv.Snapshot) error {
		return s.Scan(nil, nil, false, func(_, _ []byte) error { return nil })
	})
}

// A panic of the caller's own function is the caller's.
func TestPanicsOfTheCallerPass(t *testing.T) {
	db, _ := open(t)
	kvtest.Write(t, db, "a=1")
	for name, do := range map[string]func(*kv.Snapshot){
		"view": func(s *kv.Snapshot) { panic("mine") },
		"scan": func(s *kv.Snapshot) { s.Scan(nil, nil, false, func(_, _ []byte) error { panic("mine") }) },
		"all":  func(s *kv.Snapshot) { s.ScanAll(t.Context(), func(_, _ []byte) error { panic("mine") }) },
	} {
		func() {
			defer func() {
				if r := recover(); r != "mine" {
					t.Errorf("%s: recovered %v", name, r)
				}
			}()
			db.View(func(s *kv.Snapshot) error { do(s); return nil })
		}()
	}
	if db.Damaged() != nil {
		t.Error(db.Damaged())
	}
}

// An error that is no damage stays what it is.
func TestErrorsOfTheEnginePass(t *testing.T) {
	full := errors.New("no space")
	s := &stubborn{Engine: memkv.New(memkv.Options{}), fail: map[string]func() error{}}
	db, err := kv.Open(s, kvtest.Config())
	if err != nil {
		t.Fatal(err)
	}
	kvtest.Write(t, db, "a=1")
	for call, do := range map[string]func() error{
		"snapshot": func() error { return scan(db) },
		"get":      func() error { _, err := db.Get([]byte("a"), nil); return err },
		"next":     func() error { return scan(db) },
		"sync":     db.Sync,
		"verify":   func() error { _, err := db.Check(t.Context()); return err },
	} {
		s.fail[call] = func() error { return full }
		if err := do(); !errors.Is(err, full) || errors.Is(err, kv.ErrDamaged) {
			t.Errorf("%s: %v, want the engine's error", call, err)
		}
		clear(s.fail)
	}
	if db.Damaged() != nil {
		t.Errorf("noted as damage: %v", db.Damaged())
	}
	s.fail["close"] = func() error { return full }
	for range 2 {
		if err := db.Close(); !errors.Is(err, full) {
			t.Errorf("close: %v", err)
		}
	}
}

// A failed Open leaves nothing open, whatever failed.
func TestFailedOpenCloses(t *testing.T) {
	boom := errors.New("boom")
	for _, call := range []string{"snapshot", "get", "next", "commit", "sync"} {
		e := memkv.New(memkv.Options{})
		s := &stubborn{Engine: e, fail: map[string]func() error{call: func() error { return boom }}}
		if _, err := kv.Open(s, kvtest.Config()); !errors.Is(err, boom) {
			t.Errorf("%s fails: %v", call, err)
		}
		if _, err := e.Snapshot(); !errors.Is(err, kv.ErrClosed) {
			t.Errorf("%s fails: the engine is left open", call)
		}
	}
	c := kvtest.Config()
	c.Rand = strings.NewReader("short")
	if _, err := kv.Open(memkv.New(memkv.Options{}), c); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("no random bytes: %v", err)
	}
	if _, err := kv.Open(memkv.New(memkv.Options{Limits: kv.Limits{Entries: 10, Bytes: 1000}}), kvtest.Config()); !errors.Is(err, kv.ErrTooBig) {
		t.Errorf("an engine that cannot hold a row: %v", err)
	}
}

// A commit without random bytes stores nothing, and the next one goes.
func TestNoRandomBytes(t *testing.T) {
	c := kvtest.Config()
	r := &broken{Reader: rand.NewChaCha8([32]byte{})}
	c.Rand = r
	db, err := kv.Open(memkv.New(memkv.Options{}), c)
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	r.broken = true
	tx, err := db.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if err := tx.Put([]byte("a"), nil); err != nil {
		t.Fatal(err)
	}
	if err := tx.Commit(); !errors.Is(err, errBroken) || errors.Is(err, kv.ErrUnknown) {
		t.Errorf("commit: %v", err)
	}
	r.broken = false
	kvtest.Write(t, db, "b=1")
	if rep, err := db.Check(t.Context()); err != nil || rep.Rows != 1 {
		t.Errorf("%+v, %v", rep, err)
	}
}

var errBroken = errors.New("broken")

type broken struct {
	io.Reader
	broken bool
}

func (b *broken) Read(p []byte) (int, error) {
	if b.broken {
		return 0, errBroken
	}
	return b.Reader.Read(p)
}

// After a commit of unknown outcome nothing is written until the database was
// opened again; then it is whole, with the commit or without.
func TestFailedCommit(t *testing.T) {
	for _, applied := range []bool{false, true} {
		e := memkv.New(memkv.Options{})
		db, err := kv.Open(e, kvtest.Config())
		if err != nil {
			t.Fatal(err)
		}
		kvtest.Write(t, db, "a=1")
		e.FailCommit(2, applied)
		kvtest.Write(t, db, "b=2")
		tx, err := db.Begin(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if err := tx.Put([]byte("c"), []byte("3")); err != nil {
			t.Fatal(err)
		}
		if err := tx.Commit(); !errors.Is(err, kv.ErrUnknown) || !errors.Is(err, memkv.ErrInjected) {
			t.Errorf("commit: %v, want ErrUnknown and the cause", err)
		}
		if tx, err := db.Begin(t.Context()); !errors.Is(err, kv.ErrUnknown) {
			t.Errorf("begin: %v, want ErrUnknown", err)
			tx.Discard()
		}
		if _, err := db.Get([]byte("a"), nil); err != nil {
			t.Errorf("reading goes on: %v", err)
		}
		if err := db.Close(); err != nil {
			t.Fatal(err)
		}
		db = kvtest.Open(t, e.Reopen())
		r, err := db.Check(t.Context())
		if want := map[bool]uint64{false: 2, true: 3}[applied]; err != nil || r.Rows != want {
			t.Errorf("applied %v: %+v, %v, want %d rows", applied, r, err, want)
		}
		kvtest.Write(t, db, "d=4")
	}
}

// No error that a caller gets to see holds a key or a value.
func TestErrorsHoldNoKeys(t *testing.T) {
	db, e := open(t)
	const canary = "canary"
	kvtest.Write(t, db, canary+"="+canary)
	e.Flip(kv.EngineKey([]byte(canary)), 100)
	tx, err := db.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer tx.Discard()
	_, get := db.Get([]byte(canary), nil)
	_, missing := db.Get([]byte(canary+"2"), nil)
	_, check := db.Check(t.Context())
	long := []byte(strings.Repeat(canary, kv.MaxValue))
	for _, err := range []error{get, missing, check, scan(db), tx.Put([]byte(canary), nil), tx.Put(long, nil), tx.Put(nil, long)} {
		if err == nil || strings.Contains(err.Error(), canary) || strings.Contains(err.Error(), hex.EncodeToString([]byte(canary))) {
			t.Errorf("%v", err)
		}
	}
}

func BenchmarkCommitMemory(b *testing.B) {
	for _, rows := range []int{1, 500} {
		b.Run(fmt.Sprintf("rows=%d", rows), func(b *testing.B) {
			// Durable, so that no history is kept.
			kvtest.BenchCommit(b, kvtest.Open(b, memkv.New(memkv.Options{Durable: true})), rows, 200)
		})
	}
}

func BenchmarkGetMemory(b *testing.B) {
	db, _ := open(b)
	kvtest.BenchGet(b, db, kvtest.BenchFill(b, db, 10_000, 200))
}

func BenchmarkCheckMemory(b *testing.B) {
	db, _ := open(b)
	const rows = 10_000
	kvtest.BenchFill(b, db, rows, 200)
	b.SetBytes(rows * 238)
	b.ReportAllocs()
	for b.Loop() {
		if _, err := db.Check(b.Context()); err != nil {
			b.Fatal(err)
		}
	}
}
