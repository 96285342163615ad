package store

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"sync"
	"testing"
	"time"

	"cairn/id"
	"cairn/index"
	"cairn/pack"
	"cairn/record"
	"cairn/seal"
)

// collects is a rig whose collections run when the test says so.
func collects(t *testing.T) *rig {
	r := newRig(t)
	r.idle()
	return r
}

// also opens the store anew with another configuration.
func (r *rig) also(change func(*Config)) {
	r.t.Helper()
	before := r.change
	r.change = func(c *Config) { before(c); change(c) }
	r.close()
	r.open()
}

func (r *rig) collect(now bool) CollectResult {
	r.t.Helper()
	out, err := r.st.Collect(context.Background(), JobOptions{Now: now})
	if err != nil {
		r.t.Fatalf("%+v, %v", out, err)
	}
	return out
}

// forget removes an object for good.
func (r *rig) forget(key string) {
	r.t.Helper()
	o, err := r.st.Get(context.Background(), "main", key, GetOptions{})
	if err == nil {
		o.Body(0, 0).Close()
		err = r.st.DeleteVersion(context.Background(), "main", key, o.Object.Version, false)
	}
	if err != nil {
		r.t.Fatalf("forget %s: %v", key, err)
	}
}

func (r *rig) totals() (t index.Totals) {
	r.t.Helper()
	if err := r.st.view(func(rd index.Reader) (err error) {
		t, err = rd.Totals()
		return err
	}); err != nil {
		r.t.Fatal(err)
	}
	return t
}

// held is how many bytes of shards all nodes hold, those that are deleted left out.
func (r *rig) heldBytes() (n int64) {
	r.t.Helper()
	for _, nd := range r.nodes {
		u, err := nd.Usage(context.Background())
		if err != nil {
			r.t.Fatal(err)
		}
		n += u.LiveBytes
	}
	return n
}

// sound reads everything back, here and from an index that is made anew.
func (r *rig) stands(objects map[string][]byte, gone ...string) {
	r.t.Helper()
	for i := range 2 {
		for key, want := range objects {
			r.mustRead(key, want)
		}
		for _, key := range gone {
			if _, err := r.read(key); !errors.Is(err, ErrNoObject) {
				r.t.Errorf("%s, which is deleted: %v", key, err)
			}
		}
		if rep, err := r.st.CheckIndex(context.Background()); err != nil {
			r.t.Fatalf("%+v, %v", rep, err)
		}
		if i == 1 {
			return
		}
		r.close()
		if out := r.rebuild(r.stores(), 0); out.Mismatches > 0 {
			r.t.Fatalf("rebuild: %+v", out)
		}
		r.closeNodes()
		r.loseIndex()
		r.open()
	}
}

// TestCollect: what was overwritten or purged gives its space back, lists and what they
// refer to as well, and nothing else goes.
func TestCollect(t *testing.T) {
	r := collects(t)
	objects := map[string][]byte{"big": random(1, 30<<20), "small": random(2, 5000), "kept": random(3, 3<<20)}
	for key, b := range objects {
		r.put(key, b)
	}
	r.put("shared", objects["kept"])
	before := r.totals()
	r.put("big", random(4, 100))
	objects["big"] = random(4, 100)
	r.forget("small")
	r.forget("shared")
	delete(objects, "small")

	if out := r.collect(false); out.Condemned == 0 || out.Removed > 0 || out.Dropped > 0 || out.Waiting != out.Condemned || out.WaitingUntil == nil {
		t.Errorf("within the grace: %+v", out)
	}
	out := r.collect(true)
	// All chunks of 30 MiB, their list, and the small one.
	if out.Removed < 20 || out.RemovedBytes < 30<<20 || out.Waiting > 0 || out.Dropped < 1 {
		t.Errorf("without grace: %+v", out)
	}
	after := r.totals()
	if after.SealedBytes != after.LiveBytes || before.SealedBytes-after.SealedBytes < 30<<20 || after.UniqueBytes > 3<<20+100 {
		t.Errorf("totals before %+v, after %+v", before, after)
	}
	if held := r.heldBytes(); held > 3<<20*2+4<<20 {
		t.Errorf("the nodes hold %d bytes", held)
	}
	if out = r.collect(true); out.Condemned+out.Removed+out.Dropped+out.Moved > 0 {
		t.Errorf("a second time: %+v", out)
	}
	r.stands(objects, "small", "shared")
}

// TestDeletedIsPurged: a deleted object can be brought back for a while, and is then
// purged; where versions are kept it stays.
func TestDeletedIsPurged(t *testing.T) {
	r := collects(t)
	ctx := context.Background()
	now := time.Now()
	r.also(func(c *Config) { c.Now = func() time.Time { return now } })
	if _, err := r.st.CreateBucket(ctx, "kept", record.Settings{Versioning: true}); err != nil {
		t.Fatal(err)
	}
	for _, bucket := range []string{"main", "kept"} {
		for _, key := range []string{"a", "b"} {
			if _, err := r.st.Put(ctx, bucket, key, bytes.NewReader(random(1, 9000)), PutOptions{Size: -1}); err != nil {
				t.Fatal(err)
			}
			if _, err := r.st.Delete(ctx, bucket, key, Conditions{}); err != nil {
				t.Fatal(err)
			}
		}
	}
	now = now.AddDate(10, 0, 0)
	if out := r.collect(false); out.Purged > 0 {
		t.Errorf("after a leap of the clock: %+v", out)
	}
	now = now.AddDate(-10, 0, 0)
	pass := func(d time.Duration) { now = now.Add(d); r.pass(d) }
	pass(KeepDeleted - time.Minute)
	if out := r.collect(false); out.Purged > 0 {
		t.Errorf("too early: %+v", out)
	}
	if _, err := r.st.Undelete(ctx, "main", "b"); err != nil {
		t.Fatal(err)
	}
	pass(2 * time.Minute)
	if out := r.collect(false); out.Purged != 1 {
		t.Errorf("%+v, want 1 purged", out)
	}
	r.mustRead("b", random(1, 9000))
	if _, err := r.st.Undelete(ctx, "main", "a"); !errors.Is(err, ErrNoObject) {
		t.Errorf("undelete of what was purged: %v", err)
	}
	if _, err := r.st.Undelete(ctx, "kept", "a"); err != nil {
		t.Errorf("undelete where versions are kept: %v", err)
	}
	if _, err := r.st.Delete(ctx, "main", "b", Conditions{}); err != nil {
		t.Fatal(err)
	}
	if out := r.collect(true); out.Purged != 0 {
		t.Errorf("without being told to: %+v", out)
	}
	if out, err := r.st.Collect(ctx, JobOptions{Purge: true}); out.Purged != 1 || err != nil {
		t.Errorf("at once: %+v, %v", out, err)
	}
}

// TestPurgeOfManyVersions: what lies under a marker goes before the marker does, however much
// it is, and other keys with the same bytes lose nothing.
func TestPurgeOfManyVersions(t *testing.T) {
	r := collects(t)
	ctx := context.Background()
	b, err := r.st.CreateBucket(ctx, "was", record.Settings{Versioning: true})
	if err != nil {
		t.Fatal(err)
	}
	put := func(key string) {
		if _, err := r.st.Put(ctx, "was", key, bytes.NewReader(random(1, 900)), PutOptions{Size: -1}); err != nil {
			t.Fatal(err)
		}
	}
	for range 3*maxDrops + 5 {
		put("a")
	}
	for i := range 300 {
		put(fmt.Sprintf("b/%03d", i))
	}
	put("stays")
	if _, err := r.st.Delete(ctx, "was", "a", Conditions{}); err != nil {
		t.Fatal(err)
	}
	for i := range 300 {
		if _, err := r.st.Delete(ctx, "was", fmt.Sprintf("b/%03d", i), Conditions{}); err != nil {
			t.Fatal(err)
		}
	}
	if err := r.st.SetBucket(ctx, b.Name, record.Settings{}); err != nil {
		t.Fatal(err)
	}
	if out, err := r.st.Collect(ctx, JobOptions{Purge: true}); err != nil || out.Purged != 301 {
		t.Fatalf("%+v, %v", out, err)
	}
	list, err := r.st.List(ctx, "was", ListOptions{Versions: true})
	if err != nil || len(list.Objects) != 1 || list.Objects[0].Key != "stays" {
		t.Errorf("%d versions are left, %v", len(list.Objects), err)
	}
	if rep, err := r.st.CheckIndex(ctx); err != nil {
		t.Fatalf("%+v, %v", rep, err)
	}
}

// slowly hands out b, and stops after the first half until it is told to go on.
type slowly struct {
	io.Reader
	half chan struct{} // closed when half is read
	on   chan struct{}
}

func newSlowly(b []byte) *slowly {
	s := &slowly{half: make(chan struct{}), on: make(chan struct{})}
	s.Reader = io.MultiReader(bytes.NewReader(b[:len(b)/2]), readerFunc(func([]byte) (int, error) {
		close(s.half)
		<-s.on
		return 0, io.EOF
	}), bytes.NewReader(b[len(b)/2:]))
	return s
}

// TestTransfersKeepWhatTheyRelyOn: an upload that found its chunks stored, and a reader of a
// version that is removed, hold a collection back (H20, H21).
func TestTransfersKeepWhatTheyRelyOn(t *testing.T) {
	t.Run("chunks", func(t *testing.T) { transfersKeep(t, 3<<20) })
	t.Run("lists", func(t *testing.T) { transfersKeep(t, 20<<20) })
}

func transfersKeep(t *testing.T, n int) {
	r := collects(t)
	b := random(1, n)
	r.put("first", b)
	r.also(func(c *Config) { c.Patience = time.Second }) // a collection waits so long
	ctx := context.Background()

	up := newSlowly(b)
	goOn := sync.OnceFunc(func() { close(up.on) })
	defer goOn() // whatever goes wrong, the upload ends
	done := make(chan error, 1)
	go func() {
		_, err := r.st.Put(ctx, "main", "second", up, PutOptions{Size: int64(len(b))})
		done <- err
	}()
	<-up.half
	o, err := r.st.Get(ctx, "main", "first", GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	body := o.Body(0, o.Object.Size)
	var got bytes.Buffer
	if _, err := io.CopyN(&got, body, 1<<20); err != nil {
		t.Fatal(err)
	}
	r.forget("first")
	for range 2 {
		if out := r.collect(true); out.Removed > 0 || out.Dropped > 0 || out.WaitingFor != 2 || out.Waiting == 0 {
			t.Errorf("beside an upload and a reader: %+v", out)
		}
	}
	goOn()
	if err := <-done; err != nil {
		t.Fatalf("the upload: %v", err)
	}
	if _, err := io.Copy(&got, body); err != nil || !bytes.Equal(got.Bytes(), b) {
		t.Fatalf("the reader got %d bytes, %v", got.Len(), err)
	}
	body.Close()
	r.collect(true)
	r.stands(map[string][]byte{"second": b}, "first")
	r.forget("second")
	if out := r.collect(true); out.Removed == 0 || r.totals().SealedBytes != r.totals().LiveBytes {
		t.Errorf("nobody is left: %+v, %+v", out, r.totals())
	}
}

// packsOf counts packs of a kind.
func (r *rig) packsOf(kind pack.Kind) (n int) {
	r.t.Helper()
	if err := r.st.view(func(rd index.Reader) error {
		return rd.EachPack(func(_ id.Pack, row index.PackRow) error {
			if row.Kind == kind {
				n++
			}
			return nil
		})
	}); err != nil {
		r.t.Fatal(err)
	}
	return n
}

// TestSparsePacksAreRewritten: what is left of packs of which most is dead moves into full
// ones.
func TestSparsePacksAreRewritten(t *testing.T) {
	r := collects(t)
	objects := map[string][]byte{}
	for i := range 32 { // two packs
		key := fmt.Sprint(i)
		objects[key] = random(uint64(i), 1<<20)
	}
	var all sync.WaitGroup
	for key, b := range objects {
		all.Go(func() { r.put(key, b) })
	}
	all.Wait()
	for i := range 32 {
		if i%4 > 0 {
			r.forget(fmt.Sprint(i))
			delete(objects, fmt.Sprint(i))
		}
	}
	// How the chunks of 32 puts at once share packs is chance, and what one run has left small
	// the next may put together; after three of them nothing is left to do.
	moved, runs := 0, 0
	for out := r.collect(true); out.Moved > 0; out = r.collect(true) {
		if moved += out.Moved; out.Written < 1 || out.Dropped < 1 || out.Unreadable > 0 || out.NotTold > 0 {
			t.Errorf("%+v", out)
		}
		if runs++; runs == 4 {
			t.Fatalf("a fourth run moves something: %+v", out)
		}
	}
	if moved < 8 {
		t.Errorf("%d chunks were moved", moved)
	}
	var payload, live uint64
	for p := range r.placesOf(pack.Data) {
		if err := r.st.view(func(rd index.Reader) error {
			row, err := rd.Pack(p)
			payload, live = payload+row.Payload, live+row.Live
			return err
		}); err != nil {
			t.Fatal(err)
		}
	}
	if payload-live > payload/20 {
		t.Errorf("%d bytes are dead, of %d", payload-live, payload)
	}
	// 8 MiB in 4+2, and heads, and the log.
	if held := r.heldBytes(); held > 12<<20*5/4 {
		t.Errorf("the nodes hold %d bytes for 8 MiB", held)
	}
	r.stands(objects)
}

// TestLogIsCut: small objects move out of log packs that two snapshots have passed, and
// these are dropped; an index that is lost or old is made anew from a snapshot, and what
// proves the store offline finds it sound (H13, H16).
func TestLogIsCut(t *testing.T) {
	r := collects(t)
	objects := r.puts("a", 100)
	r.close()
	old := r.engine.Clone() // an index of the past
	r.open()
	for key, b := range r.puts("b", 100) {
		objects[key] = b
	}
	r.forget("a/0007")
	delete(objects, "a/0007")
	r.snapshot()
	r.put("between", []byte("between"))
	objects["between"] = []byte("between")
	r.snapshot()
	r.put("behind", []byte("behind"))
	objects["behind"] = []byte("behind")
	before := r.packsOf(pack.Log)
	out := r.collect(true)
	if out.DroppedLog < 200 || out.Moved < 100 || out.Written != 1 {
		t.Fatalf("%+v", out)
	}
	if after := r.packsOf(pack.Log); before-after < 195 || after > 12 {
		t.Errorf("%d log packs, %d before", after, before)
	}
	r.stands(objects, "a/0007")
	if rep := r.verified(); rep.Damaged+rep.Lost > 0 || rep.Objects != len(objects) {
		t.Errorf("verify: %+v", rep)
	}
	r.close()
	r.engine = old
	r.open()
	r.stands(objects, "a/0007")
}

// TestContentRacesItsCollection: the same few contents are put and purged by many while
// collections run: what is acknowledged is read back (H20, H22). CAIRN_LONG=1 does it
// 100,000 times, nearly always with small contents.
func TestContentRacesItsCollection(t *testing.T) {
	each, large := 60, 4
	if os.Getenv("CAIRN_LONG") != "" {
		each, large = 100_000/6+1, 2000
	}
	r := collects(t)
	contents := [][]byte{random(1, 100), random(2, 300_000), random(3, 2<<20), random(4, 18<<20)}
	for i := range 12 {
		contents = append(contents, random(uint64(10+i), 1000*i+1))
	}
	ctx, stop := context.WithCancel(context.Background())
	defer stop()
	var all sync.WaitGroup
	var collected, rounds int
	all.Go(func() {
		for ctx.Err() == nil {
			out, err := r.st.Collect(ctx, JobOptions{Now: true})
			if err != nil && ctx.Err() == nil {
				t.Errorf("collect: %v", err)
				return
			}
			collected += out.Removed
			rounds++
		}
	})
	var clients sync.WaitGroup
	for c := range 6 {
		clients.Go(func() {
			rnd := rand.New(rand.NewPCG(1, uint64(c)))
			for i := range each {
				b := contents[rnd.IntN(len(contents))]
				if len(b) > 1<<20 && rnd.IntN(large) > 0 {
					b = contents[rnd.IntN(2)]
				}
				key := fmt.Sprintf("%d/%d", c, i)
				if err := r.tryPut(key, b); err != nil {
					t.Errorf("put: %v", err)
					return
				}
				if got, err := r.read(key); err != nil || !bytes.Equal(got, b) {
					t.Errorf("%s: %d bytes, %v", key, len(got), err)
				}
				r.forget(key)
			}
		})
	}
	clients.Wait()
	stop()
	all.Wait()
	t.Logf("%d times put, read and purged; %d chunks went in %d collections meanwhile", 6*each, collected, rounds)
	if collected == 0 {
		t.Errorf("nothing was collected in %d rounds", rounds)
	}
	r.collect(true)
	if tot := r.totals(); tot.Chunks > 0 {
		t.Errorf("%+v", tot)
	}
	r.stands(nil, "0/0")
}

// TestNarrowPacksAreWidened: what was written while nodes were away gets the full code
// once they are back.
func TestNarrowPacksAreWidened(t *testing.T) {
	r := collects(t)
	r.close()
	r.away = map[string]bool{"n06": true}
	r.open()
	b := random(1, 10<<20)
	r.put("a", b)
	r.close()
	r.away = nil
	r.open()
	wide := func() (n int) {
		for p := range r.placesOf(pack.Data) {
			if err := r.st.view(func(rd index.Reader) error {
				row, err := rd.Pack(p)
				if row.K == 4 {
					n++
				}
				return err
			}); err != nil {
				t.Fatal(err)
			}
		}
		return n
	}
	if n := wide(); n > 0 {
		t.Fatalf("%d packs are wide already", n)
	}
	out := r.collect(true)
	if out.Moved == 0 || out.Dropped == 0 || wide() != len(r.placesOf(pack.Data)) {
		t.Errorf("%+v, %d of %d packs are wide", out, wide(), len(r.placesOf(pack.Data)))
	}
	r.stands(map[string][]byte{"a": b})
}

// TestChangedWidthIsRecoded: when no bucket wants a pack's number of data shards any more, what
// lies in it gets another.
func TestChangedWidthIsRecoded(t *testing.T) {
	r := collects(t)
	ctx := context.Background()
	if err := r.st.SetBucket(ctx, "main", record.Settings{K: 2}); err != nil {
		t.Fatal(err)
	}
	b := random(1, 10<<20)
	r.put("a", b)
	widths := func() map[uint8]int {
		out := map[uint8]int{}
		if err := r.st.view(func(rd index.Reader) error {
			return rd.EachPack(func(_ id.Pack, row index.PackRow) error {
				if row.Kind == pack.Data {
					out[row.K]++
				}
				return nil
			})
		}); err != nil {
			t.Fatal(err)
		}
		return out
	}
	if out := r.collect(true); out.Moved > 0 || widths()[2] == 0 || len(widths()) > 1 {
		t.Fatalf("%+v, %v", out, widths())
	}
	if err := r.st.SetBucket(ctx, "main", record.Settings{}); err != nil {
		t.Fatal(err)
	}
	if out := r.collect(true); out.Moved == 0 || widths()[4] == 0 || len(widths()) > 1 {
		t.Fatalf("%+v, %v", out, widths())
	}
	r.stands(map[string][]byte{"a": b})
}

// TestDamagedIndexCollectsNothing: where a row went in silence, counts that were made since
// are wrong: nothing is removed on their word (H11, H12).
func TestDamagedIndexCollectsNothing(t *testing.T) {
	r := collects(t)
	b := random(1, 5000)
	r.put("a", b)
	for _, k := range r.engine.Keys() {
		if len(k) > 2 && bytes.Equal(k[1:3], []byte{0, 8}) { // a chunk's row
			r.engine.Drop(k)
		}
	}
	r.put("b", b) // stored again: the new row does not count the edge from a
	r.forget("b")
	out, err := r.st.Collect(context.Background(), JobOptions{Now: true})
	if !errors.Is(err, index.ErrDamaged) || out.Removed > 0 || r.st.Failure() == nil {
		t.Errorf("%+v, %v; the store says %v", out, err, r.st.Failure())
	}
	r.close()
	r.loseIndex()
	r.open()
	r.mustRead("a", b)
}

// TestOlderSnapshotIsEnough: when the log has been cut, the newest snapshot may be lost and
// the index as well (H16).
func TestOlderSnapshotIsEnough(t *testing.T) {
	r := collects(t)
	objects := r.puts("a", 20)
	r.snapshot()
	objects["between"] = random(1, 70_000)
	r.put("between", objects["between"])
	r.snapshot()
	if out := r.collect(true); out.DroppedLog < 20 {
		t.Fatalf("%+v", out)
	}
	var newest uint64
	pieces := map[uint64][]id.Pack{}
	if err := r.st.view(func(rd index.Reader) error {
		return rd.EachPiece(func(p index.Piece) error {
			newest = max(newest, p.Number)
			pieces[p.Number] = append(pieces[p.Number], p.Pack)
			return nil
		})
	}); err != nil || len(pieces) != 2 {
		t.Fatalf("%d snapshots, %v", len(pieces), err)
	}
	places := r.placesOf(pack.Snapshot)
	for _, p := range pieces[newest] {
		for _, place := range places[p] {
			r.remove(p, place)
		}
	}
	r.close()
	r.loseIndex()
	r.open()
	if n := r.st.loadedFrom; n == 0 || n == newest {
		t.Errorf("loaded from snapshot %d, the newest is %d", n, newest)
	}
	for key, want := range objects {
		r.mustRead(key, want)
	}
}

// TestMovedMeanwhile: a chunk that was stored anew between its reading and the record of
// the move stays where it is; one that was removed does not come back (H23).
func TestMovedMeanwhile(t *testing.T) {
	r := collects(t)
	ctx := context.Background()
	stays, again, gone := random(1, 70_000), random(2, 70_000), random(3, 70_000)
	r.put("again", again) // its count goes to 0 in a moment
	r.put("gone", gone)
	r.put("stays", stays)
	where := func(b []byte) (row index.ChunkRow, err error) {
		realm, err := r.st.realm(id.Main)
		if err != nil {
			return row, err
		}
		return row, r.st.view(func(rd index.Reader) error {
			row, err = rd.Chunk(id.Main, realm.chunkID(seal.Data, b))
			return err
		})
	}
	c := &collection{s: r.st, opt: JobOptions{Now: true}, out: &CollectResult{}, report: func(uint64, uint64, string) {}}
	w := &rewriter{c: c, pace: pacer{s: r.st, rate: 1 << 50}}
	for _, b := range [][]byte{again, gone, stays} {
		row, err := where(b)
		if err == nil {
			err = w.source(ctx, source{pack: row.Pack, k: DefaultWidth}, 0)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	// What a rewriting has read goes through a collection, and comes back elsewhere.
	r.forget("again")
	r.forget("gone")
	if err := c.chunks(ctx); err != nil || c.out.Removed != 2 {
		t.Fatalf("%+v, %v", c.out, err)
	}
	r.put("new", again)
	before, err := where(again)
	if err != nil {
		t.Fatal(err)
	}
	if err := w.flush(ctx); err != nil || r.st.Failure() != nil {
		t.Fatalf("%v, %v", err, r.st.Failure())
	}
	if now, err := where(again); err != nil || now.Pack != before.Pack {
		t.Errorf("what was stored anew lies in %v, was in %v, %v", now.Pack, before.Pack, err)
	}
	if _, err := where(gone); !errors.Is(err, index.ErrNotFound) {
		t.Errorf("what was removed: %v", err)
	}
	if now, err := where(stays); err != nil || c.out.Moved != 1 || now.Offset == 0 {
		t.Errorf("%d moved; what stayed lies in %v, %v", c.out.Moved, now.Pack, err)
	}
	r.stands(map[string][]byte{"new": again, "stays": stays}, "gone", "again")
}
