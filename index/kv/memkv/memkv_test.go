package memkv_test

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"testing"

	"cairn/index/kv"
	"cairn/index/kv/kvtest"
	"cairn/index/kv/memkv"
)

func TestEngine(t *testing.T) {
	kvtest.Run(t, kvtest.Harness{
		New:    func(testing.TB) kv.Engine { return memkv.New(memkv.Options{}) },
		Reopen: func(_ testing.TB, e kv.Engine) kv.Engine { return e.(*memkv.Engine).Reopen() },
	})
}

func open(t *testing.T, e kv.Engine) *kv.DB { return kvtest.Open(t, e) }

// A crash leaves the state after a prefix of the commits, never less than what
// was synced; every prefix can be left, and the same seed leaves the same.
func TestCrash(t *testing.T) {
	build := func() *memkv.Engine {
		e := memkv.New(memkv.Options{})
		db, err := kv.Open(e, kvtest.Config())
		if err != nil {
			t.Fatal(err)
		}
		for i := range 10 {
			kvtest.Write(t, db, fmt.Sprintf("k%d=%d", i, i), fmt.Sprintf("last=%d", i))
			if i == 3 {
				if err := db.Sync(); err != nil {
					t.Fatal(err)
				}
			}
		}
		return e
	}
	rowsAfter := func(e *memkv.Engine) uint64 {
		r, err := open(t, e).Check(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		return r.Rows
	}
	left := map[uint64]int{}
	for seed := range uint64(100) {
		e := build()
		if e.Unsynced() != 6 {
			t.Fatalf("%d unsynced commits, want 6", e.Unsynced())
		}
		n := rowsAfter(e.Crash(rand.New(rand.NewPCG(seed, 0))))
		if again := rowsAfter(build().Crash(rand.New(rand.NewPCG(seed, 0)))); n != again {
			t.Fatalf("seed %d leaves %d rows, then %d", seed, n, again)
		}
		left[n]++
		if _, err := e.Snapshot(); !errors.Is(err, kv.ErrClosed) {
			t.Fatalf("the engine lives on after its crash: %v", err)
		}
	}
	for n := uint64(5); n <= 11; n++ { // rows, with "last"
		if left[n] == 0 {
			t.Errorf("no crash of 100 left %d rows: %v", n, left)
		}
		delete(left, n)
	}
	if len(left) > 0 {
		t.Errorf("crashes left what was never a durable state: %v", left)
	}
	if n := rowsAfter(build().CrashKeeping(2)); n != 7 {
		t.Errorf("kept two commits: %d rows, want 7", n)
	}
	durable := memkv.New(memkv.Options{Durable: true})
	db := open(t, durable)
	kvtest.Write(t, db, "a=1")
	if durable.Unsynced() != 0 {
		t.Error("a durable engine has unsynced commits")
	}
}

// Two engines that come from one go their own ways.
func TestClone(t *testing.T) {
	e := memkv.New(memkv.Options{})
	db := open(t, e)
	kvtest.Write(t, db, "a=1", "b=1")
	yesterday := e.Clone()
	old := open(t, yesterday)
	kvtest.Write(t, db, "a=2")
	kvtest.Write(t, old, "b=3")
	for name, test := range map[string]struct {
		db   *kv.DB
		a, b string
	}{"the first": {db, "2", "1"}, "the clone": {old, "1", "3"}} {
		a, _ := test.db.Get([]byte("a"), nil)
		b, _ := test.db.Get([]byte("b"), nil)
		if string(a) != test.a || string(b) != test.b {
			t.Errorf("%s: a=%s b=%s, want %s, %s", name, a, b, test.a, test.b)
		}
		if _, err := test.db.Check(t.Context()); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// Harm is found by a check, also in what a crash leaves.
func TestHarm(t *testing.T) {
	key := kv.EngineKey([]byte("a"))
	for name, harm := range map[string]func(*memkv.Engine) bool{
		"drop":  func(e *memkv.Engine) bool { return e.Drop(key) },
		"flip":  func(e *memkv.Engine) bool { return e.Flip(key, 1234567) },
		"plant": func(e *memkv.Engine) bool { e.Plant(kv.EngineKey([]byte("c")), []byte("x")); return true },
	} {
		e := memkv.New(memkv.Options{})
		db, err := kv.Open(e, kvtest.Config())
		if err != nil {
			t.Fatal(err)
		}
		kvtest.Write(t, db, "a=1")
		kvtest.Write(t, db, "b=1")
		if err := db.View(func(s *kv.Snapshot) error {
			if !harm(e) {
				t.Errorf("%s: nothing was harmed", name)
			}
			_, err := s.ScanAll(t.Context(), nil)
			return err
		}); err != nil {
			t.Errorf("%s: a snapshot from before: %v", name, err)
		}
		if _, err := db.Check(t.Context()); !errors.Is(err, kv.ErrDamaged) {
			t.Errorf("%s: %v, want ErrDamaged", name, err)
		}
		after := open(t, e.CrashKeeping(1))
		if _, err := after.Check(t.Context()); !errors.Is(err, kv.ErrDamaged) {
			t.Errorf("%s, then a crash: %v, want ErrDamaged", name, err)
		}
	}
	e := memkv.New(memkv.Options{})
	if e.Drop(key) || e.Flip(key, 0) {
		t.Error("what is not there was harmed")
	}
}
