package store

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"cairn/chunker"
	"cairn/node/disk"
	"cairn/pack"
	"cairn/store/budget"
)

// TestSharesHoldWhatTheyMust: the lengths that the division reckons with are those
// of the packages they come from, and whatever is done fits its share at every size.
func TestSharesHoldWhatTheyMust(t *testing.T) {
	if n := weigh(chunker.Default().Max); n != budget.MaxChunk {
		t.Errorf("a chunk's buffer has %d bytes, the division reckons with %d", n, budget.MaxChunk)
	}
	for _, mib := range []int64{127, 128, 160, 200, 256, 320, 364, 512, 1024, 8192} {
		for m := 1; m <= 4; m++ {
			mem, err := newMemory(mib<<20, m)
			if err != nil {
				if !errors.Is(err, ErrInvalid) || mib > 160 {
					t.Errorf("%d MiB, %d losses: %v", mib, m, err)
				}
				continue
			}
			s := &Store{mem: mem}
			p := newPacks(s, mem.sizes.Sealing)
			for width := 1; width <= mem.sizes.Width; width++ {
				key := packKey{k: width}
				room := p.bufferLen(key)
				if int64(room) > mem.packs.Limit()/int64(m+1) {
					t.Errorf("%d MiB, %d losses: a pack of %d shards takes %d bytes of %d: a node that hangs holds the rest", mib, m, width, room, mem.packs.Limit())
				}
				if limit := p.limit(key); limit > 0 && limit < chunker.Default().Max+64 {
					t.Errorf("%d MiB: a pack holds %d bytes, less than a chunk", mib, limit)
				}
				// The pack is as full as can be, of large chunks or small ones.
				for _, entries := range []int{4, 100, 300, maxPackChunks} {
					payload := pack.Capacity(width, entries)
					if limit := p.limit(key); limit > 0 {
						payload = min(payload, limit)
					}
					for k := 1; k <= width; k++ {
						n, err := codingMemory(payload, room, entries, k, m)
						if err != nil || n > mem.coding.Limit() {
							t.Errorf("%d MiB, %d losses: coding a pack of %d bytes in %d chunks over %d of %d shards takes %d bytes of %d: %v", mib, m, payload, entries, k, width, n, mem.coding.Limit(), err)
						}
					}
				}
			}
			const chunk = budget.MaxChunk
			for what, c := range map[string]struct {
				n     int64
				share *budget.Share
			}{
				"getting a chunk":        {fetchMemory(chunker.Default().Max + 64), mem.fetch},
				"handing out a chunk":    {chunk, mem.slowReaders},
				"the same, fast":         {chunk, mem.fastReaders},
				"reading a chunk":        {chunk, mem.slowUploads},
				"compressing a chunk":    {weigh(chunk) + budget.Encoder, mem.compress},
				"a stream":               {budget.Stream, mem.streams},
				"a small body":           {weigh(smallObject + 1), mem.small},
				"a sealed small body":    {weigh(smallObject + 64), mem.inline},
				"a full pack opened":     {wholeMemory(geometry{k: 4, m: m, slice: 4<<20 - 8<<10, body: 20 << 10}), mem.repair},
				"a piece of a snapshot":  {weigh(p.bufferLen(packKey{k: DefaultWidth})), mem.repair},
				"the piece's copy":       {weigh(p.bufferLen(packKey{k: DefaultWidth})), mem.packs},
				"a shard read whole":     {4 << 20, mem.repair},
				"a log pack of one body": {linkMemory(smallObject + 64), mem.log},
				// What goes beyond: a small object, or a body's short end and its lists.
				"a log pack of a round": {linkMemory(linkPayload(mem.log.Limit()) + smallObject + 3*64<<10), mem.log},
			} {
				if c.n > c.share.Limit() {
					t.Errorf("%d MiB, %d losses: %s takes %d bytes of a share of %d", mib, m, what, c.n, c.share.Limit())
				}
			}
		}
	}
}

func TestClassesOfBuffers(t *testing.T) {
	var p bufferPool
	last, lastSize := -1, 0
	for n := 1; n < 40<<20; n += 1 + n/7 {
		class, size := classOf(n)
		if size < n || n > 64 && size > n+n/4+1 || class < last || class > last+1 && n > 200 {
			t.Fatalf("%d bytes: class %d of %d bytes, after %d", n, class, size, last)
		}
		if c, s := classOf(size); c != class || s != size {
			t.Fatalf("a buffer of class %d goes back to class %d", class, c)
		}
		if size != lastSize {
			b := p.get(n)
			if len(b) != n || cap(b) != size {
				t.Fatalf("%d bytes: got %d of %d", n, len(b), cap(b))
			}
			p.put(b)
			p.put(make([]byte, 0, size-1)) // serves a class below
		}
		if b := p.get(n); len(b) != n || cap(b) < n {
			t.Fatalf("%d bytes: got %d of %d", n, len(b), cap(b))
		}
		last, lastSize = class, size
	}
}

// untaken fails when somebody still holds memory, or waits.
func (r *rig) untaken(when string) {
	r.t.Helper()
	synctest.Wait()
	for _, s := range r.st.Memory() {
		if s.Used != 0 || s.Waiting != 0 {
			r.t.Errorf("%s: %d bytes of %s are taken, %d wait", when, s.Used, s.Name, s.Waiting)
		}
	}
}

// little gives a store as little memory as there can be.
func little(t *testing.T) *rig {
	r := newRig(t)
	r.close()
	r.change = func(c *Config) { c.Memory = 128 << 20; c.SnapshotEvery = 1 << 40 }
	r.open()
	return r
}

var errGone = errors.New("the client has gone")

// endsAfter reads n bytes of r and then fails, or stands still until ctx ends.
type endsAfter struct {
	r   io.Reader
	n   int
	ctx context.Context // nil: fails
}

func (e *endsAfter) Read(p []byte) (int, error) {
	if e.n == 0 {
		if e.ctx != nil {
			<-e.ctx.Done()
		}
		return 0, errGone
	}
	n, err := e.r.Read(p[:min(len(p), e.n)])
	e.n -= n
	return n, err
}

// TestNothingStaysTaken: whatever way a request ends, its memory goes back.
func TestNothingStaysTaken(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := little(t)
		ctx := t.Context()
		text := bytes.Repeat([]byte("the same words again and again; "), 400_000)
		bodies := [][]byte{nil, []byte("x"), random(1, 4095), random(2, 4096), random(3, 4097), text[:smallObject], text[:smallObject+1], random(4, 300_000), text, random(5, 9<<20)}
		for i, b := range bodies {
			for _, declared := range []int64{-1, int64(len(b)), int64(len(b)) + 1, int64(len(b)) - 1} {
				key := fmt.Sprintf("k%d", i)
				_, err := r.st.Put(ctx, "main", key, bytes.NewReader(b), PutOptions{Size: declared})
				if wrong := declared >= 0 && declared != int64(len(b)) || declared < -1; wrong != errors.Is(err, ErrShortBody) && declared >= -1 {
					t.Errorf("%d bytes, declared %d: %v", len(b), declared, err)
				}
				r.untaken(fmt.Sprintf("a put of %d bytes, declared %d", len(b), declared))
			}
			for _, at := range []int{0, 1, 4096, 4097, 100_000, 131_073, 262_144, 262_145, 1 << 20, 5 << 20, len(b) - 1} {
				if at < 0 || at >= len(b) {
					continue
				}
				for _, declared := range []int64{-1, int64(len(b))} {
					if _, err := r.st.Put(ctx, "main", "cut", &endsAfter{bytes.NewReader(b), at, nil}, PutOptions{Size: declared}); !errors.Is(err, errGone) {
						t.Errorf("%d bytes, the client goes after %d: %v", len(b), at, err)
					}
					r.untaken(fmt.Sprintf("a put of %d bytes cut at %d, declared %d", len(b), at, declared))
				}
			}
		}
		for i, b := range bodies {
			g, err := r.st.Get(ctx, "main", fmt.Sprintf("k%d", i), GetOptions{})
			if err != nil {
				t.Fatal(err)
			}
			for _, n := range []int{0, 1, 600, len(b) / 2, len(b)} {
				if n > len(b) {
					continue
				}
				body := g.Body(0, uint64(len(b)))
				got := make([]byte, n)
				if _, err := io.ReadFull(body, got); err != nil || !bytes.Equal(got, b[:n]) {
					t.Errorf("%d bytes of %d: %v", n, len(b), err)
				}
				body.Close()
				r.untaken(fmt.Sprintf("a get of %d of %d bytes", n, len(b)))
			}
			gone, leave := context.WithCancel(ctx)
			g, err = r.st.Get(gone, "main", fmt.Sprintf("k%d", i), GetOptions{})
			if err != nil {
				t.Fatal(err)
			}
			body := g.Body(0, uint64(len(b)))
			leave()
			_, _ = io.Copy(io.Discard, body) // fails or not, as far as it came
			body.Close()
			r.untaken(fmt.Sprintf("a get of %d bytes whose client goes", len(b)))
		}
		if _, err := r.st.Snapshot(ctx); err != nil {
			t.Error(err)
		}
		r.untaken("a snapshot")
		// Two nodes are lost: degraded reads, then repair.
		r.close()
		r.wipe("n01")
		r.wipe("n02")
		r.open()
		r.untaken("a start")
		for i, b := range bodies {
			r.mustRead(fmt.Sprintf("k%d", i), b)
		}
		r.untaken("degraded reads")
	})
}

// TestTooManyUploads: who finds no place waits so long as the store has patience,
// and small objects pass by.
func TestTooManyUploads(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := little(t)
		places := int(r.st.mem.streams.Limit() / budget.Stream)
		ctx, leave := context.WithCancel(t.Context())
		b := random(6, 2<<20)
		ended := make(chan error, places)
		for i := range places {
			go func() {
				_, err := r.st.Put(t.Context(), "main", fmt.Sprintf("slow%d", i), &endsAfter{bytes.NewReader(b), 100_000, ctx}, PutOptions{Size: int64(len(b))})
				ended <- err
			}()
		}
		synctest.Wait()
		begin := time.Now()
		_, err := r.st.Put(t.Context(), "main", "late", bytes.NewReader(b), PutOptions{Size: int64(len(b))})
		if !errors.Is(err, ErrBusy) || time.Since(begin) != r.st.cfg.Patience {
			t.Errorf("one upload more than there are places for: %v after %v, want %v after %v", err, time.Since(begin), ErrBusy, r.st.cfg.Patience)
		}
		for i := range 20 {
			r.put(fmt.Sprintf("small%d", i), []byte(strings.Repeat("x", 100*i)))
		}
		waited := make(chan error, 1)
		go func() {
			_, err := r.st.Put(t.Context(), "main", "patient", bytes.NewReader(b), PutOptions{Size: int64(len(b))})
			waited <- err
		}()
		time.Sleep(time.Second)
		leave()
		for range places {
			if err := <-ended; !errors.Is(err, errGone) {
				t.Error(err)
			}
		}
		if err := <-waited; err != nil {
			t.Errorf("an upload that waited its turn: %v", err)
		}
		r.mustRead("patient", b)
		r.untaken("all uploads")
	})
}

// TestReadersThatStandStill: readers that take a little and then nothing keep
// nobody waiting for long, and go on where they were.
func TestReadersThatStandStill(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := little(t)
		b := random(7, 10<<20)
		r.put("large", b)
		r.put("small", b[:100_000])
		var still []io.ReadCloser
		for i := range 40 {
			key, n := "large", len(b)
			if i%4 == 0 {
				key, n = "small", 100_000
			}
			g, err := r.st.Get(t.Context(), "main", key, GetOptions{})
			if err != nil {
				t.Fatal(err)
			}
			body := g.Body(0, uint64(n))
			first := make([]byte, 1000)
			begin := time.Now()
			if _, err := io.ReadFull(body, first); err != nil || !bytes.Equal(first, b[:1000]) {
				t.Fatalf("reader %d: %v", i, err)
			}
			if d := time.Since(begin); d > 3*leaseTime {
				t.Errorf("reader %d waited %v", i, d)
			}
			still = append(still, body)
		}
		begin := time.Now()
		r.mustRead("large", b)
		if d := time.Since(begin); d > 40*leaseTime {
			t.Errorf("a reader beside those that stand still takes %v", d)
		}
		for i, body := range still {
			n := len(b)
			if i%4 == 0 {
				n = 100_000
			}
			rest, err := io.ReadAll(body)
			if err != nil || !bytes.Equal(rest, b[1000:n]) {
				t.Errorf("reader %d goes on with %d bytes, %v; want %d", i, len(rest), err, n-1000)
			}
			body.Close()
		}
		r.untaken("all readers")
	})
}

// TestRepairHasItsOwn: with every other share taken, lost shards are made anew and
// small objects are logged.
func TestRepairHasItsOwn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := little(t)
		b := random(8, 12<<20)
		r.put("k", b)
		r.close()
		r.wipe("n03")
		r.wipe("n04")
		r.open()
		m := r.st.mem
		for _, s := range []*budget.Share{m.packs, m.coding, m.streams, m.uploads, m.compress, m.readers, m.fastReaders, m.fetch} {
			if !s.TryAcquire(s.Limit()) {
				t.Fatalf("%s is not free", s.State().Name)
			}
		}
		r.put("small", []byte("a few random bytes: \x93\x01\x88\xf0"))
		for _, name := range []string{"n03", "n04"} {
			if _, err := disk.Format(r.fs[name], disk.Config{Cluster: r.cluster}); err != nil {
				t.Fatal(err)
			}
			n, err := disk.Open(r.fs[name], disk.Config{Cluster: r.cluster})
			if err != nil {
				t.Fatal(err)
			}
			r.nodes[name] = n
			if err := r.st.ReplaceNode(t.Context(), name, n); err != nil {
				t.Fatal(err)
			}
		}
		synctest.Wait() // for the repair that this starts
		if out, err := r.st.Repair(t.Context()); err != nil || out.Short > 0 || out.Lost > 0 {
			t.Errorf("repair: %+v, %v", out, err)
		}
		if st, err := r.st.Status(t.Context()); err != nil || st.PacksShort > 0 {
			t.Errorf("%d packs are short, %v", st.PacksShort, err)
		}
		for _, s := range []*budget.Share{m.packs, m.coding, m.streams, m.uploads, m.compress, m.readers, m.fastReaders, m.fetch} {
			s.Release(s.Limit())
		}
		r.mustRead("k", b)
		r.untaken("repair")
	})
}

// TestLongLinesLeaveConnections: those who wait for the memory of large objects are
// so few that requests of the other kinds find a connection, whatever the size.
func TestLongLinesLeaveConnections(t *testing.T) {
	for _, mib := range []int64{128, 512, 8192} {
		synctest.Test(t, func(t *testing.T) {
			mem, err := newMemory(mib<<20, 2)
			if err != nil {
				t.Fatal(err)
			}
			connections := int(mem.sizes.Connections / budget.Connection)
			ctx, leave := context.WithCancel(t.Context())
			for _, share := range []*budget.Share{mem.streams, mem.readers} {
				if !share.TryAcquire(share.Limit()) {
					t.Fatalf("%s is not free", share.State().Name)
				}
				for range connections {
					go share.Acquire(ctx, 1)
				}
			}
			synctest.Wait()
			stand := mem.streams.State().Waiting + mem.readers.State().Waiting
			if stand == 0 || stand > int64(connections/2) {
				t.Errorf("%d MiB: %d stand in line, of %d connections", mib, stand, connections)
			}
			leave()
		})
	}
}
