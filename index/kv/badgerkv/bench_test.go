package badgerkv

import (
	"fmt"
	"math/rand/v2"
	"os"
	"runtime"
	"strconv"
	"testing"

	"cairn/index/kv"
	"cairn/index/kv/kvtest"
)

func benchDB(b *testing.B, synced bool) (*kv.DB, Options) {
	o := Options{Dir: b.TempDir(), EncryptionKey: kv.NewSecret([32]byte{9}), SyncWrites: synced}
	e, err := Open(o)
	if err != nil {
		b.Fatal(err)
	}
	db, err := kv.Open(e, kvtest.Config())
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { db.Close() })
	return db, o
}

const benchValue = 200

// BenchmarkCommit writes rows of 200 bytes under random keys of 40, in
// transactions of so many rows.
func BenchmarkCommit(b *testing.B) {
	for _, synced := range []bool{false, true} {
		for _, rows := range []int{1, 500} {
			b.Run(fmt.Sprintf("sync=%v/rows=%d", synced, rows), func(b *testing.B) {
				db, _ := benchDB(b, synced)
				kvtest.BenchCommit(b, db, rows, benchValue)
			})
		}
	}
}

// BenchmarkOpen opens and closes a database of so many rows, default a million
// with CAIRN_LONG. A clean close leaves no log to read.
func BenchmarkOpen(b *testing.B) {
	rows := 100_000
	if long() {
		rows = 1_000_000
	}
	if n, err := strconv.Atoi(os.Getenv("CAIRN_BENCH_ROWS")); err == nil {
		rows = n
	}
	db, o := benchDB(b, false)
	rng := rand.New(rand.NewPCG(1, 2))
	value := make([]byte, benchValue)
	for n := 0; n < rows; {
		tx, err := db.Begin(b.Context())
		if err != nil {
			b.Fatal(err)
		}
		for range 5000 {
			if err := tx.Put(fmt.Appendf(nil, "chunk/%016x%016x", rng.Uint64(), n), value); err != nil {
				b.Fatal(err)
			}
			n++
		}
		if err := tx.Commit(); err != nil {
			b.Fatal(err)
		}
	}
	if err := db.Close(); err != nil {
		b.Fatal(err)
	}
	b.Run(fmt.Sprintf("rows=%d", rows), func(b *testing.B) {
		for b.Loop() {
			e, err := Open(o)
			if err != nil {
				b.Fatal(err)
			}
			db, err := kv.Open(e, kvtest.Config())
			if err != nil {
				b.Fatal(err)
			}
			if err := db.Close(); err != nil {
				b.Fatal(err)
			}
		}
	})
	e, err := Open(o)
	if err != nil {
		b.Fatal(err)
	}
	if db, err = kv.Open(e, kvtest.Config()); err != nil {
		b.Fatal(err)
	}
	defer db.Close()
	b.Run(fmt.Sprintf("check/rows=%d", rows), func(b *testing.B) {
		b.ReportAllocs()
		b.SetBytes(int64(rows) * (benchValue + 38))
		for b.Loop() {
			if r, err := db.Check(b.Context()); err != nil || r.Rows != uint64(rows) {
				b.Fatal(r, err)
			}
		}
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		b.ReportMetric(float64(m.Sys)/(1<<20), "MiB-sys")
	})
	b.Run(fmt.Sprintf("get-absent/rows=%d", rows), func(b *testing.B) {
		kvtest.BenchGet(b, db, func(i int) []byte { return fmt.Appendf(nil, "chunk/%016x%016x", uint64(i)*0x9e3779b97f4a7c15, i) })
	})
}

// BenchmarkGet reads random rows of 10,000.
func BenchmarkGet(b *testing.B) {
	db, _ := benchDB(b, false)
	key := kvtest.BenchFill(b, db, 10_000, benchValue)
	kvtest.BenchGet(b, db, key)
}

// BenchmarkScan reads 10,000 rows in order.
func BenchmarkScan(b *testing.B) {
	db, _ := benchDB(b, false)
	kvtest.BenchFill(b, db, 10_000, benchValue)
	kvtest.BenchScan(b, db, 10_000, benchValue)
}
