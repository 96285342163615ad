package integration

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"os"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// collected is what `cairn gc --json` says.
type collected struct {
	State  string `json:"state"`
	Error  string `json:"error"`
	Result struct {
		Removed      int    `json:"removed_chunks"`
		Moved        int    `json:"moved_chunks"`
		ReadBytes    uint64 `json:"read_bytes"`
		WrittenBytes uint64 `json:"written_bytes"`
		Dropped      int    `json:"dropped_packs"`
		DroppedLog   int    `json:"dropped_log_packs"`
		Waiting      int    `json:"waiting_chunks"`
		Unreadable   int    `json:"unreadable_packs"`
		NotTold      int    `json:"shards_not_deleted"`
		Snapshots    int    `json:"snapshots"`
	} `json:"result"`
}

// collect runs `cairn gc` to its end; of a server that is being killed it may say
// anything.
func (r *rig) collect(args ...string) (out collected, ok bool) {
	r.t.Helper()
	stdout, stderr, code := r.command(append([]string{"gc", "--json", "--rate", "10GB"}, args...)...)
	if code != 0 {
		if s := r.server; s == nil || s.doomed.Load() {
			return out, false
		}
		r.t.Errorf("cairn gc: exit code %d\n%s%s", code, stdout, stderr)
		return out, false
	}
	if err := json.Unmarshal([]byte(stdout), &out); err != nil {
		r.t.Errorf("cairn gc --json: %v\n%s", err, stdout)
		return out, false
	}
	return out, true
}

// churned draws bodies of 1 KiB to 1 MiB, one in three of a few that all clients put.
func churned(rng *rand.Rand) content {
	if rng.IntN(3) == 0 {
		return content{seed: 77 + rng.Uint64N(8), size: 4096 << rng.Uint64N(8)}
	}
	return content{seed: rng.Uint64(), size: 1 + rng.IntN(1<<(10+rng.IntN(11)))}
}

// TestSpaceComesBack: eight clients write and delete twenty times what the store holds,
// much of it the same bytes, while collections run one after another and the process is
// killed; everything is there, and what is on the disk is what it takes to keep it (H20 to
// H24, H37). CAIRN_LONG=1 writes twenty times as much.
func TestSpaceComesBack(t *testing.T) {
	const clients = 8
	keys, lives := rounds(3, 3, 40), rounds(2, 2, 10)
	rng := newRand(t)
	r, j := newRig(t), newJournal()
	// A key holds about 110 KiB.
	budget := int64(clients*keys) * 110 << 10 * 20
	begin := time.Now()
	var runs, removed, moved int
	var readBytes, writtenBytes uint64
	for life := range lives {
		s := r.start()
		j.check(s, true, j.all())
		report(t, j)
		stop := make(chan struct{})
		var once sync.Once
		var wg sync.WaitGroup
		var over atomic.Bool
		share := budget * int64(life+1) / int64(lives)
		for i := range clients {
			w := &worker{j: j, rng: fork(rng), prefix: fmt.Sprintf("c%d", i), keys: keys, srv: s, c: s.client(), stop: stop, draw: churned}
			w.onAck = func() {
				j.mu.Lock()
				done := j.written >= share
				j.mu.Unlock()
				if done {
					once.Do(func() { close(stop) })
				}
			}
			wg.Go(func() {
				defer w.c.close()
				w.run()
			})
		}
		collecting := make(chan struct{})
		go func() {
			defer close(collecting)
			for !over.Load() {
				if out, ok := r.collect("--now"); ok {
					runs++
					removed += out.Result.Removed
					moved += out.Result.Moved
					readBytes, writtenBytes = readBytes+out.Result.ReadBytes, writtenBytes+out.Result.WrittenBytes
				}
				time.Sleep(50 * time.Millisecond)
			}
		}()
		wg.Wait()
		s.doomed.Store(true)
		over.Store(true)
		if life+1 < lives {
			<-time.After(time.Duration(rng.IntN(300)) * time.Millisecond)
			_ = s.cmd.Process.Kill()
			<-s.exited
			<-collecting
			r.server = nil
			continue
		}
		<-collecting
		s.doomed.Store(false)
	}
	s := r.server
	j.check(s, true, j.all())
	report(t, j)
	// What was deleted cannot be brought back any more; nobody reads or writes.
	var last collected
	for range 10 {
		var ok bool
		if last, ok = r.collect("--now", "--purge"); !ok {
			t.FailNow()
		}
		if last.Result.Removed+last.Result.Moved+last.Result.Dropped == 0 {
			break
		}
	}
	if last.Result.Waiting+last.Result.Unreadable+last.Result.NotTold > 0 {
		t.Errorf("at the end something is left: %+v", last)
	}
	j.purged()
	u := s.usage(t)
	s.stop()
	r.must("reclaim", "--data", r.data)
	s = r.start()
	after := s.usage(t)
	s.stop()
	used := inNodes(after)
	// Live bytes in 4+2; beside that what the newest packs, log packs and snapshots take,
	// and the small files of six nodes.
	want := float64(u["live_bytes"]) * 1.5
	t.Logf("%d collections removed %d chunks and moved %d, %s read, %s written for %s put, %v", runs, removed, moved, mib(int64(readBytes)), mib(int64(writtenBytes)), mib(j.written), time.Since(begin).Round(time.Second))
	t.Logf("live %s; nodes use %s, %.3f times live x 6/4, and have reserved %s; index %s", mib(int64(u["live_bytes"])), mib(int64(used)), float64(used)/want, mib(int64(after["free_in_segments_bytes"])), mib(allocated(t, r.index())))
	const rest = 12 << 20
	if float64(used) > want*1.10+rest {
		t.Errorf("nodes use %s for %s of live bytes", mib(int64(used)), mib(int64(u["live_bytes"])))
	}
	if removed == 0 || runs < 2 {
		t.Errorf("%d collections removed %d chunks", runs, removed)
	}
	r.verify()
	// The index is lost: what was collected and cut off does not come back, and is not missed.
	if err := os.RemoveAll(r.index()); err != nil {
		t.Fatal(err)
	}
	s = r.start()
	j.check(s, true, j.all())
	report(t, j)
	s.stop()
}

// purged is told that what was deleted cannot be brought back any more.
func (j *journal) purged() {
	j.mu.Lock()
	defer j.mu.Unlock()
	for _, e := range j.keys {
		for i := range e.states {
			if e.states[i].kind == deleted {
				e.states[i] = state{}
			}
		}
	}
}

// TestBytesPerByte: what a byte that a client stored takes on the disk once it is
// collected, for objects of three sizes; the index and the snapshots of it are told apart.
// CAIRN_LONG=1 stores ten times as much.
func TestBytesPerByte(t *testing.T) {
	for _, c := range []struct {
		size, objects int
		most, all     float64 // without and with index and snapshots; with, only where that is wanted
	}{{4 << 10, 20_000, 1.6, 1.9}, {64 << 10, 1500, 1.55, 0}, {1 << 20, 250, 1.52, 0}} {
		t.Run(fmt.Sprintf("%d KiB", c.size>>10), func(t *testing.T) {
			n := c.objects * rounds(1, 2, 10)
			if testing.Short() && c.size < 1<<20 {
				n /= 10
			}
			rng := newRand(t)
			r := newRig(t)
			s := r.start("--memory", "512MiB")
			var wg sync.WaitGroup
			var next atomic.Int64
			seed := rng.Uint64()
			for range 32 {
				wg.Go(func() {
					cl := s.client()
					defer cl.close()
					for i := next.Add(1); i <= int64(n); i = next.Add(1) {
						if a := cl.put(fmt.Sprintf("o/%07d", i), content{seed: seed + uint64(i), size: c.size}.bytes()); a.answer != acked {
							t.Errorf("put: %v", a)
							return
						}
					}
				})
			}
			wg.Wait()
			var read, written uint64
			for range 5 {
				out, ok := r.collect("--now")
				if !ok {
					t.FailNow()
				}
				read, written = read+out.Result.ReadBytes, written+out.Result.WrittenBytes
				if out.Result.Moved+out.Result.DroppedLog+out.Result.Dropped == 0 {
					break
				}
			}
			u := s.usage(t)
			s.stop()
			r.must("reclaim", "--data", r.data)
			s = r.start("--memory", "512MiB")
			after := s.usage(t)
			s.stop()
			nodes := int64(inNodes(after))
			snapshots := int64(0)
			for _, n := range r.snapshotBytes() {
				snapshots += n
			}
			logical, index := float64(n*c.size), allocated(t, r.index())
			without, with := float64(nodes-snapshots)/logical, float64(nodes+index)/logical
			layout := nodes - int64(after["compressed_bytes"]+after["padding_bytes"]+after["parity_bytes"])
			t.Logf("for each byte: sealed %.4f, padding, heads and snapshots %.4f, their parity %.4f, layout %.4f", float64(after["compressed_bytes"])/logical,
				float64(after["padding_bytes"])/logical, float64(after["parity_bytes"])/logical, float64(layout)/logical)
			t.Logf("%d objects of %d KiB: %.3f bytes on disk for each; with index (%s) and snapshots (%s) %.3f; live %.3f, %s reserved; %s read and %s written in collections",
				n, c.size>>10, without, mib(index), mib(snapshots), with, float64(u["live_bytes"])/logical, mib(int64(after["free_in_segments_bytes"])), mib(int64(read)), mib(int64(written)))
			if testing.Short() {
				return // what segments and journals begin with is most of it
			}
			if without > c.most || c.all > 0 && with > c.all {
				t.Errorf("%.3f bytes for each byte, with index and snapshots %.3f; want at most %.2f and %.2f", without, with, c.most, c.all)
			}
		})
	}
}
