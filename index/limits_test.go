package index

import (
	"errors"
	"fmt"
	"math"
	"os"
	"strings"
	"testing"

	"cairn/id"
	"cairn/index/kv"
	"cairn/index/kv/badgerkv"
	"cairn/record"
)

func newBadger(t testing.TB, dir string) kv.Engine {
	t.Helper()
	// The smallest memtable that a store has: what fits it fits every other.
	e, err := badgerkv.Open(badgerkv.Options{Dir: dir, EncryptionKey: kv.NewSecret([32]byte{7}), MemTableBytes: 8 << 20})
	if err != nil {
		t.Fatal(err)
	}
	return e
}

// What the log writer lets into one round, or more, before the one submission
// that goes beyond its bounds.
const (
	roundRecords = 1000
	roundBytes   = 1 << 20
	roundKeys    = 8 << 10
	roundRows    = 1 << 20
)

// TestWorstRounds fills rounds with the worst there is, up to the log writer's
// limits, and up to the engine's own: whatever fits is committed by badger (H10).
// CAIRN_LONG=1 goes up to the engine's limits in every way.
func TestWorstRounds(t *testing.T) {
	nul := strings.Repeat("\x00", record.MaxKey-8)
	user := []record.UserField{{Name: "n", Value: strings.Repeat("v", record.MaxAttrs-100)}}
	const chunks = 20000
	for _, test := range []struct {
		name string
		prep func(x *Index, c *chain)
		fill func(b *builder, i int)
	}{
		{"longest keys, overwritten", nil, func(b *builder, i int) { b.put(1, fmt.Sprintf("%s%08d", nul, i/2), 1) }},
		{"longest attributes", nil, func(b *builder, i int) {
			b.apply(&record.Put{In: 1, Bucket: 1, Key: fmt.Appendf(nil, "%s%08d", nul, i), Manifest: manifestOf(1, 1, 1, 1), Attrs: record.Attrs{User: user}})
		}},
		{"most drops", func(x *Index, c *chain) {
			for at := range 32 {
				build(t, x, c, false, func(b *builder) {
					for i := range 4 {
						for range 64 {
							b.put(1, fmt.Sprintf("%s%08d", nul, at*4+i), 1)
						}
					}
				})
			}
		}, func(b *builder, i int) {
			key := fmt.Appendf(nil, "%s%08d", nul, i%128)
			p := &record.Put{In: 1, Bucket: 1, Key: key, Manifest: manifestOf(1)}
			vs, err := b.r.Versions(1, key, 64)
			if err != nil {
				b.t.Fatal(err)
			}
			for _, v := range vs {
				p.Drops = append(p.Drops, record.Dropped{Version: v.Version})
			}
			b.apply(p)
		}},
		{"most edges", func(x *Index, c *chain) {
			for at := uint64(0); at < chunks; at += 2000 {
				build(t, x, c, false, func(b *builder) {
					for p := at; p < at+2000; p += 10 {
						cs := make([]uint64, 10)
						for i := range cs {
							cs[i] = 100 + p + uint64(i)
						}
						b.apply(adoptOf(1000+p, cs...))
					}
				})
			}
		}, func(b *builder, i int) {
			list := uint64(1e6 + i)
			b.entry(list, true)
			l := &record.List{In: 1, Chunk: testChunk(list)}
			for j := range 1024 {
				l.Children = append(l.Children, testChunk(100+uint64(i*1024+j)%chunks))
			}
			b.apply(l)
		}},
		{"most entries", nil, func(b *builder, i int) { b.entry(uint64(1000+i), false) }},
		{"largest adopts", nil, func(b *builder, i int) {
			cs := make([]uint64, 500)
			for j := range cs {
				cs[j] = uint64(1e6 + i*500 + j)
			}
			b.apply(adoptOf(uint64(1e5+i), cs...))
		}},
	} {
		t.Run(test.name, func(t *testing.T) {
			x := openOn(t, newBadger(t, t.TempDir()))
			var c chain
			build(t, x, &c, true, func(b *builder) {
				b.bucket("main", true)
				b.entry(1, false)
			})
			if test.prep != nil {
				test.prep(x, &c)
			}
			limits := x.db.Limits()
			n := 0
			for _, brim := range []bool{false, true} {
				if brim && os.Getenv("CAIRN_LONG") == "" && test.prep == nil && !strings.HasPrefix(test.name, "longest") {
					break // it takes seconds
				}
				l := c.next(false)
				r, err := x.Begin(l.Header.Pack, l.Header.Seq)
				if err != nil {
					t.Fatal(err)
				}
				defer r.Discard()
				b := &builder{t: t, r: r, link: &l}
				var keys, bytes, recordBytes int
				for {
					test.fill(b, n)
					n++
					if n := len(l.Records); n > 0 {
						enc, err := record.Append(nil, l.Records[n-1])
						if err != nil {
							t.Fatal(err)
						}
						recordBytes += len(enc)
					}
					wasKeys, wasBytes := keys, bytes
					keys, bytes = r.Size()
					if !brim && (keys >= roundKeys || bytes >= roundRows || recordBytes >= roundBytes || len(l.Records) >= roundRecords) {
						break
					}
					// To the brim: as long as one more of the same would fit.
					if brim && (2*keys-wasKeys > limits.Entries || 2*bytes-wasBytes > limits.Bytes || n > 1e5) {
						break
					}
				}
				if keys > limits.Entries || bytes > limits.Bytes {
					t.Fatalf("the round has %d keys and %d bytes, the engine takes %+v", keys, bytes, limits)
				}
				if err := r.Commit(l); err != nil {
					t.Fatalf("%d keys and %d bytes in %d records: %v", keys, bytes, len(l.Records), err)
				}
				if at := r.tx.Size(); at.Entries > keys || at.Bytes > bytes {
					t.Errorf("Size said %d keys and %d bytes, the commit had %+v", keys, bytes, at)
				}
				t.Logf("brim %v: %d records of %d bytes, %d entries: %d keys, %d bytes of rows", brim, len(l.Records), recordBytes, len(l.Entries), keys, bytes)
			}
			if _, err := x.Check(t.Context()); err != nil {
				t.Error(err)
			}
		})
	}
}

// TestTooBig: a round beyond the engine's limits is an error before anything is
// durable, and leaves nothing.
func TestTooBig(t *testing.T) {
	x, c, _ := seeded(t)
	l := c.next(false)
	r, err := x.Begin(l.Header.Pack, l.Header.Seq)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Discard()
	for i := uint64(0); ; i++ {
		if err = r.AddEntry(testEntry(1000+i, false, uint32(i)*2000)); err != nil {
			break
		}
	}
	if !errors.Is(err, ErrTooBig) {
		t.Fatalf("got %v, want %v", err, ErrTooBig)
	}
	if err := r.Commit(l); !errors.Is(err, ErrTooBig) {
		t.Errorf("commit: got %v, want %v", err, ErrTooBig)
	}
	r.Discard()
	if _, err := x.Check(t.Context()); err != nil {
		t.Error(err)
	}
	var n id.Bucket
	build(t, x, &chain{seq: c.seq - 1, prev: l.Header.Prev, time: c.time, epoch: c.epoch}, false, func(b *builder) { n = b.bucket("after", false) })
	if n == 0 {
		t.Error("no bucket")
	}
}

// TestManyStarts: begin packs that carry what was carried before do not nest,
// and what lies in the first pack is found in the last.
func TestManyStarts(t *testing.T) {
	x := newIndex(t)
	var c chain
	var carried []Carried
	first := build(t, x, &c, true, func(b *builder) {
		for i := range uint64(300) {
			b.entry(i+1, false)
		}
	})
	payload := first.Entries[299].Offset + first.Entries[299].SealedLen
	for range 100 {
		prev := c.prev
		l := c.next(true)
		carried = append(carried, Carried{Pack: prev, Len: payload})
		l.Carried = carried
		if err := x.Apply(l, Strict); err != nil {
			t.Fatal(err)
		}
	}
	err := x.View(func(r Reader) error {
		row, err := r.Chunk(1, testChunk(300))
		if row.Pack != c.prev || row.Offset != first.Entries[299].Offset {
			t.Errorf("the chunk lies in pack %v at %d, want %v at %d", row.Pack, row.Offset, c.prev, first.Entries[299].Offset)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := x.Check(t.Context()); err != nil {
		t.Error(err)
	}
}

// TestSizeHoldsKeptRows: the longest of the rows that a round keeps decoded are
// within what Size counts for them, sealed and with their keys.
func TestSizeHoldsKeptRows(t *testing.T) {
	const most = ^uint64(0)
	const sealing, op = 1 + 12 + 16, 12 // version, nonce, tag; what badger adds to a row
	keys := newKeyspace(id.Log(math.MaxUint32))
	name := strings.Repeat("n", record.MaxBucketName)
	p := id.Pack{1}
	b := Bucket{Name: name, Realm: max32, Time: math.MinInt64, Settings: record.Settings{K: 255, Compression: "auto", Profile: "default", Versioning: true, QuotaBytes: most, QuotaObjects: most,
		Lock: true, RetentionMode: record.Governance, RetentionDays: max32},
		BucketUsage: BucketUsage{most, most, most, most}}
	u := PackUsage{most, most, most}
	totals := Totals{most, most, most, most, most, most, most, most, most, most, most, most, most, id.Bucket(most)}
	for _, row := range []struct {
		what       string
		key, value []byte
		most       int
	}{
		{"bucket", keys.bucket(nil, id.Bucket(most)), b.append(nil), keptRow},
		{"totals", keys.table(nil, tableTotals), totals.append(nil), keptRow},
		{"usage", keys.pack(nil, &p, packUsage), u.append(nil), keptUsage},
	} {
		if n := 1 + len(row.key) + len(row.value) + sealing + op; n > row.most {
			t.Errorf("%s: %d bytes, %d are counted", row.what, n, row.most)
		} else {
			t.Logf("%s: %d bytes of %d", row.what, n, row.most)
		}
	}
}

// TestLargestMove: a move of as many chunks as one may name, each out of a pack of its own
// and damaged and condemned, fits into the transaction of the smallest index, alone (H10).
func TestLargestMove(t *testing.T) {
	x := openOn(t, newBadger(t, t.TempDir()))
	var c chain
	const first = 10_000
	build(t, x, &c, true, func(b *builder) { b.bucket("main", true) })
	m := &record.Move{In: 1, Pack: testPack(7), K: 4, M: 2, Slice: 4 << 20, Size: 4<<20 + 8192, Body: 8192, Writer: id.Writer{2}, Counter: 7, Shards: testPlaces(6)}
	var off uint32
	for at := uint64(0); at < record.MaxMoved; at += 512 {
		build(t, x, &c, false, func(b *builder) {
			var cs []id.Chunk
			for n := at; n < at+512; n++ {
				b.apply(adoptOf(first+n, first+n))
				b.apply(&record.Lost{Pack: testPack(first + n), Chunks: 1})
				cs = append(cs, testChunk(first+n))
				e := testEntry(first+n, false, off)
				off += e.SealedLen
				m.Entries, m.Sources, m.From = append(m.Entries, e), append(m.Sources, testPack(first+n)), append(m.From, uint32(len(m.From)+1))
			}
			b.apply(&record.Condemn{In: 1, Chunks: cs})
		})
	}
	build(t, x, &c, false, func(b *builder) {
		b.apply(m)
		keys, bytes := b.r.Size()
		t.Logf("%d keys, %d bytes, of %+v", keys, bytes, x.db.Limits())
	})
	if _, err := x.Check(t.Context()); err != nil {
		t.Error(err)
	}
}
