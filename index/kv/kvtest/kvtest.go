// Package kvtest is the suite that every engine of package kv passes: first the
// engine by itself, then a database upon it, then a random history against a
// map. It owns the engines that it asks for and closes them.
package kvtest

import (
	"testing"

	"cairn/id"
	"cairn/index/kv"
)

// Harness makes engines. Reopen gets an engine that was closed and returns one
// with the same rows; it is nil for an engine that cannot.
type Harness struct {
	New    func(t testing.TB) kv.Engine
	Reopen func(t testing.TB, closed kv.Engine) kv.Engine
}

// Config is the same for every test, so that a database can be opened again.
func Config() kv.Config {
	return kv.Config{
		ValueKey:  kv.NewSecret([32]byte{1: 'v'}),
		DigestKey: kv.NewSecret([32]byte{1: 'd'}),
		Cluster:   id.Cluster{7},
	}
}

// Run runs everything.
func Run(t *testing.T, h Harness) {
	t.Run("engine", func(t *testing.T) { runEngine(t, h) })
	t.Run("db", func(t *testing.T) { runDB(t, h) })
	t.Run("model", func(t *testing.T) { Model(t, h) })
}

// Open makes a database that is closed, and checked, when the test ends.
func Open(t testing.TB, e kv.Engine) *kv.DB {
	t.Helper()
	db, err := kv.Open(e, Config())
	if err != nil {
		t.Fatalf("open: %v", err)
	}
	t.Cleanup(func() {
		if err := db.Close(); err != nil {
			t.Errorf("close: %v", err)
		}
	})
	return db
}
