package pack

import (
	"bytes"
	"sync"
	"sync/atomic"
	"testing"

	"pgregory.net/rapid"

	"cairn/id"
)

func TestBuilderSideBySide(t *testing.T) {
	const old = 0xee
	buf := bytes.Repeat([]byte{old}, StreamLen(2))
	b := NewBuilder(buf, 2, 0)
	for round := range 3 {
		var want sync.Map // offset to content
		var kept, abandoned atomic.Int64
		var wg sync.WaitGroup
		for g := range 8 {
			wg.Go(func() {
				for i := 0; ; i++ {
					n := 1 + (g*7919+i*104729)%60000
					p, off, ok := b.Reserve(n)
					if !ok {
						return
					}
					if len(p) != n || cap(p) != n {
						t.Errorf("reserved %d bytes, got %d with room for %d", n, len(p), cap(p))
					}
					if i%7 == 3 {
						b.Abandon(off)
						abandoned.Add(1)
						continue
					}
					content := noise(uint64(round*1e9+g*1e6+i), n)
					copy(p, content)
					want.Store(off, content)
					kept.Add(1)
					b.Add(Entry{Info: Info{Realm: 1, Chunk: id.Chunk{byte(g)}, SealedLen: uint32(n)}, Offset: off})
				}
			})
		}
		wg.Wait()
		select {
		case <-b.Done():
			t.Fatal("done before it was closed")
		default:
		}
		b.Close()
		b.Close()
		<-b.Done()
		if _, _, ok := b.Reserve(1); ok {
			t.Fatal("a closed builder has room")
		}
		entries, payload := b.Entries(), b.Payload()
		if &payload[0] != &buf[0] || abandoned.Load() == 0 || len(entries) != int(kept.Load()) || b.Len() != len(entries) {
			t.Fatalf("%d entries, %d kept, %d abandoned", len(entries), kept.Load(), abandoned.Load())
		}
		if bytes.Contains(payload, bytes.Repeat([]byte{old}, 4)) {
			t.Fatal("what the buffer held before is in the payload")
		}
		c := testCoder(uint64(round))
		e := encode(t, c, Input{Header: dataHeader(2, 1), Meta: Meta{Entries: entries}, Payload: payload})
		if n := e.Header.ShardLen(); n > 4<<20 || n <= 4<<20-64<<10 { // what did not fit any more was small
			t.Errorf("a full pack's shards have %d bytes", n)
		}
		if &e.Shards[0].Slice[0] != &buf[0] {
			t.Error("the payload was copied")
		}
		o, err := c.Assemble(e.Header.Pack, e.Shards, e.Digests, nil)
		if err != nil {
			t.Fatal(err)
		}
		for _, en := range o.Meta.Entries {
			content, ok := want.Load(en.Offset)
			if !ok || !bytes.Equal(o.Payload[en.Offset:en.End()], content.([]byte)) {
				t.Fatalf("entry at %d is not what was sealed there", en.Offset)
			}
		}
		for i := range buf {
			buf[i] = old
		}
		b.Reset(buf, 2, 0)
	}
}

func TestBuilderDoneWaitsForTheLast(t *testing.T) {
	b := NewBuilder(make([]byte, 1<<20), 1, 1000)
	p, off, _ := b.Reserve(600)
	if _, _, ok := b.Reserve(401); ok {
		t.Error("more than the limit")
	}
	q, off2, ok := b.Reserve(400)
	if !ok || off2 != 600 || len(p)+len(q) != 1000 {
		t.Errorf("exactly the limit: %v at %d", ok, off2)
	}
	b.Close()
	mustWait := func() {
		t.Helper()
		select {
		case <-b.Done():
			t.Error("done with an open reservation")
		default:
		}
		mustPanic(t, "read before done", func() { b.Payload() })
		mustPanic(t, "read before done", func() { b.Entries() })
		mustPanic(t, "reset with open reservations", func() { b.Reset(nil, 1, 0) })
	}
	mustWait()
	mustPanic(t, "a shorter chunk", func() { b.Add(Entry{Info: Info{SealedLen: 599}, Offset: off}) })
	mustPanic(t, "another place", func() { b.Add(Entry{Info: Info{SealedLen: 600}, Offset: off + 1}) })
	b.Add(Entry{Info: Info{SealedLen: 600}, Offset: off})
	mustPanic(t, "added twice", func() { b.Add(Entry{Info: Info{SealedLen: 600}, Offset: off}) })
	mustWait()
	b.Abandon(off2)
	<-b.Done()
	mustPanic(t, "abandoned twice", func() { b.Abandon(off2) })
	if n := len(b.Payload()); n != 600 {
		t.Errorf("payload of %d bytes: dead ones at the end", n)
	}
	empty := NewBuilder(nil, 1, 0)
	empty.Close()
	<-empty.Done()
	if len(empty.Payload()) != 0 || len(empty.Entries()) != 0 {
		t.Error("an empty builder has something in it")
	}
}

func mustPanic(t *testing.T, what string, f func()) {
	t.Helper()
	defer func() {
		t.Helper()
		if recover() == nil {
			t.Errorf("%s: no panic", what)
		}
	}()
	f()
}

// However chunks come, what a builder took makes shards of the full class at most.
func TestBuilderNeverOverfills(t *testing.T) {
	buf := make([]byte, StreamLen(4)) // the longest of all k
	rapid.Check(t, func(t *rapid.T) {
		k := rapid.IntRange(1, 16).Draw(t, "k")
		most := rapid.SampledFrom([]int{300, 5000, 300_000, 4<<20 - 64<<10}).Draw(t, "most")
		b := NewBuilder(buf[:StreamLen(k)], k, 0)
		x := rapid.Uint64().Draw(t, "seed")
		full := false
		for range 4000 {
			x = x*6364136223846793005 + 1442695040888963407
			n := 1 + int(x>>33)%most
			_, off, ok := b.Reserve(n)
			if !ok {
				full = true
				break
			}
			b.Add(Entry{Info: Info{Realm: 1<<32 - 1, Chunk: id.Chunk{1}, Kind: 200, Epoch: maxEpoch, Compression: 200, PlainLen: 1<<32 - 1, SealedLen: uint32(n)}, Offset: off})
		}
		b.Close()
		m := Meta{Entries: b.Entries(), PayloadLen: uint32(len(b.Payload()))}
		enc, err := m.Append(nil)
		if err != nil {
			t.Fatal(err)
		}
		l, err := Fit(len(b.Payload()), len(enc), k)
		if err != nil {
			t.Fatal(err)
		}
		h := Header{K: uint8(k), MetaCoded: l.MetaCoded, MetaLen: l.MetaLen, SliceLen: l.SliceLen}
		if h.ShardLen() > fullClass(k) || h.streamLen() > StreamLen(k) {
			t.Fatalf("k=%d, full %v: shards of %d, a stream of %d in a buffer of %d", k, full, h.ShardLen(), h.streamLen(), StreamLen(k))
		}
	})
}
