package kvtest

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"testing"

	"cairn/index/kv"
)

// BenchCommit commits transactions of so many new rows.
func BenchCommit(b *testing.B, db *kv.DB, rows, size int) {
	rng := rand.New(rand.NewPCG(1, 2))
	value := make([]byte, size)
	var key []byte
	b.SetBytes(int64(rows * (size + 40)))
	b.ReportAllocs()
	for b.Loop() {
		tx, err := db.Begin(b.Context())
		if err != nil {
			b.Fatal(err)
		}
		for range rows {
			key = fmt.Appendf(key[:0], "chunk/%016x%016x", rng.Uint64(), rng.Uint64())
			if err := tx.Put(key, value); err != nil {
				b.Fatal(err)
			}
		}
		if err := tx.Commit(); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(rows)*float64(b.N)/b.Elapsed().Seconds(), "rows/s")
}

// BenchFill writes rows in order and returns their keys by number.
func BenchFill(b *testing.B, db *kv.DB, rows, size int) (key func(int) []byte) {
	key = func(i int) []byte { return fmt.Appendf(nil, "chunk/%032x", i%rows) }
	value := make([]byte, size)
	for n := 0; n < rows; {
		tx, err := db.Begin(b.Context())
		if err != nil {
			b.Fatal(err)
		}
		for ; n < rows && tx.Size().Entries < 2000; n++ {
			if err := tx.Put(key(n), value); err != nil {
				b.Fatal(err)
			}
		}
		if err := tx.Commit(); err != nil {
			b.Fatal(err)
		}
	}
	return key
}

// BenchGet reads rows in a random order, in one view.
func BenchGet(b *testing.B, db *kv.DB, key func(int) []byte) {
	rng := rand.New(rand.NewPCG(3, 4))
	keys := make([][]byte, 4096)
	for i := range keys {
		keys[i] = key(rng.IntN(1 << 30))
	}
	b.ReportAllocs()
	var dst []byte
	if err := db.View(func(s *kv.Snapshot) (err error) {
		for i := 0; b.Loop(); i++ {
			if dst, err = s.Get(keys[i%len(keys)], dst[:0]); err != nil && !errors.Is(err, kv.ErrNotFound) {
				return err
			}
		}
		return nil
	}); err != nil {
		b.Fatal(err)
	}
}

// BenchScan reads all rows in order.
func BenchScan(b *testing.B, db *kv.DB, rows, size int) {
	b.ReportAllocs()
	b.SetBytes(int64(rows * (size + 38)))
	for b.Loop() {
		n := 0
		if err := db.View(func(s *kv.Snapshot) error {
			return s.Scan(nil, nil, false, func(_, _ []byte) error { n++; return nil })
		}); err != nil || n != rows {
			b.Fatal(n, err)
		}
	}
	b.ReportMetric(float64(rows)*float64(b.N)/b.Elapsed().Seconds(), "rows/s")
}
