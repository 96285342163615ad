package drill

import (
	"context"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

func kill(ctx context.Context, r *rig) error {
	const clients = 4
	bucket := r.own("killed")
	if err := r.start(ctx); err != nil {
		return err
	}
	if err := r.makeBucket(ctx, bucket, nil); err != nil {
		return err
	}
	history := map[name][]attempt{}
	for round := range 4 {
		var (
			mu          sync.Mutex
			wg          sync.WaitGroup
			acks, tried atomic.Int64
			stopped     atomic.Bool
			enough      = make(chan struct{}, 1)
		)
		s := r.server
		for c := range clients {
			seed := rand.NewPCG(r.rng.Uint64(), r.rng.Uint64())
			wg.Go(func() {
				rng := rand.New(seed)
				for i := 0; !stopped.Load() && ctx.Err() == nil; i++ {
					n := name{Bucket: bucket, Key: fmt.Sprintf("client %d/%d", c, rng.IntN(12))} // overwritten by and by
					size := rng.IntN(4000)
					if rng.IntN(3) == 0 {
						size = rng.IntN(1 << 20)
					}
					body := r.body(bucket, fmt.Sprintf("%s %d %d", n.Key, round, i), size)
					tried.Add(1)
					a, _, _ := s.write(ctx, n, body) // the outcome says it
					mu.Lock()
					history[n] = append(history[n], a)
					mu.Unlock()
					if a.acked && acks.Add(1) == 20 {
						enough <- struct{}{}
					}
				}
			})
		}
		var err error
		select {
		case <-enough:
			err = pause(ctx, time.Duration(r.rng.IntN(300))*time.Millisecond)
		case <-s.exited:
			err = brokenf("a server that is written to ends by itself with exit code %d: %s", s.code, s.said())
		case <-time.After(time.Minute):
			err = brokenf("in a minute %d of %d writes are acknowledged", acks.Load(), tried.Load())
		case <-ctx.Done():
			err = ctx.Err()
		}
		r.kill()
		stopped.Store(true)
		wg.Wait()
		if err != nil {
			return err
		}
		also := ""
		if round%2 == 1 {
			if err := os.RemoveAll(filepath.Join(r.data, "index")); err != nil {
				return err
			}
			also = ", and the index deleted"
		}
		r.say("broke", "killed in round %d: %d writes begun, %d of them acknowledged%s", round+1, tried.Load(), acks.Load(), also)
		if err := r.start(ctx); err != nil {
			return err
		}
		var keys []name
		for n := range history {
			keys = append(keys, n)
		}
		if err := r.readAll(ctx, keys, func(n name, got reading) error {
			if err := judgeWrites(n, history[n], got); err != nil {
				return err
			}
			// What is there now stands from here on.
			history[n] = nil
			if got.whole() {
				history[n] = []attempt{{sum: got.sum, size: got.size, acked: true}}
			}
			return nil
		}); err != nil {
			return err
		}
		r.say("read back", "%d keys: each as it was acknowledged, or as the write that was under way has left it, whole", len(keys))
	}
	return r.sound(ctx)
}

func uploadCut(ctx context.Context, r *rig) error {
	if err := r.start(ctx); err != nil {
		return err
	}
	old := name{Bucket: r.own("wide"), Key: "large/0"}
	for i := range 8 {
		n := old
		if i%2 == 1 {
			n = name{Bucket: r.own("wide"), Key: fmt.Sprintf("cut %d", i)}
		}
		size := 1000 + r.rng.IntN(3<<20)
		body := r.body(n.Bucket, "cut", size)
		conn, err := (&net.Dialer{Timeout: 10 * time.Second}).DialContext(ctx, "tcp", strings.TrimPrefix(r.server.url, "http://"))
		if err != nil {
			return brokenf("the server takes no connection: %v", err)
		}
		sent := r.rng.IntN(size)
		_, err = fmt.Fprintf(conn, "PUT %s HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer %s\r\nContent-Length: %d\r\n\r\n", keyPath("objects", n), r.server.token, size)
		if err == nil {
			_, err = conn.Write(body[:sent])
		}
		conn.Close()
		if err != nil {
			return brokenf("an upload ends before it was cut: %v", err)
		}
		r.say("broke", "upload %d: cut after %d of %d bytes", i+1, sent, size)
		if n == old {
			continue
		}
		if got := r.server.readBack(ctx, n); got.status != 404 {
			return brokenf("%v was uploaded in part and is answered with %v", n, got)
		}
	}
	r.say("found", "what was new is not there (404)")
	return r.sound(ctx)
}

func plaintext(ctx context.Context, r *rig) error {
	if err := r.start(ctx); err != nil {
		return err
	}
	text := fmt.Sprintf("planted-%016x", r.rng.Uint64())
	bucket := r.own("wide")
	for _, copies := range []int{3, 40_000} {
		n := name{Bucket: bucket, Key: fmt.Sprintf("%s/%d", text, copies)}
		a, v, err := r.server.write(ctx, n, []byte(strings.Repeat(text+"\n", copies)))
		if !a.acked {
			return brokenf("put %v is not taken: %v", n, err)
		}
		n.Version = v
		r.truth.versions[n] = version{Size: a.size, Sum: a.sum, Current: true}
	}
	r.say("broke", "%s is planted in names and contents", text)
	if err := r.sound(ctx); err != nil {
		return err
	}
	// That it would be found is tried as well.
	control := filepath.Join(r.data, "control")
	if err := os.WriteFile(control, []byte("..."+text), 0o600); err != nil {
		return err
	}
	found, err := holding(r.data, text)
	if err != nil {
		return err
	}
	logs, err := holding(filepath.Join(r.dir, "logs"), text)
	if err != nil {
		return err
	}
	if !slices.Contains(found, control) {
		return fmt.Errorf("%s is not found where it was written", text)
	}
	if found = append(found, logs...); len(found) > 1 {
		return brokenf("%s is found in %d files, one of them %s", text, len(found)-1, found[0])
	}
	r.say("found", "it stands in no file of nodes, index and logs")
	return nil
}

func collect(ctx context.Context, r *rig) error {
	bucket := r.own("collected")
	if err := r.start(ctx); err != nil {
		return err
	}
	kept := r.truth.clone()
	if err := r.makeBucket(ctx, bucket, nil); err != nil {
		return err
	}
	total := max(r.cfg.Size/2, 4<<20)
	n := max(4, (total+maxObject-1)/maxObject)
	for i := range n {
		if err := r.put(ctx, bucket, fmt.Sprint(i), int(total/n)); err != nil {
			return err
		}
	}
	r.truth = kept
	if err := r.stop(); err != nil {
		return err
	}
	full, err := allocated(filepath.Join(r.data, "nodes"))
	if err != nil {
		return err
	}
	if err := r.start(ctx); err != nil {
		return err
	}
	for i := range n {
		if err := r.remove(ctx, bucket, fmt.Sprint(i)); err != nil {
			return err
		}
	}
	r.say("broke", "%d objects of %s in all are deleted", n, mib(total))
	c, err := r.must(ctx, "gc", "--now", "--purge", "--rate", "10GB", "--json")
	if err != nil {
		return err
	}
	var job struct {
		Result struct {
			Purged  int   `json:"purged_objects"`
			Removed int   `json:"removed_chunks"`
			Rewrote int   `json:"rewritten_packs"`
			Dropped int   `json:"dropped_packs"`
			Bytes   int64 `json:"dropped_bytes"`
		}
	}
	if err := json.Unmarshal(c.stdout, &job); err != nil {
		return &broken{"cairn gc --json: " + err.Error()}
	}
	r.say("found", "gc purges %d objects, removes %d chunks, rewrites what is needed of %d packs, and drops %d packs, %s with parity", job.Result.Purged, job.Result.Removed, job.Result.Rewrote, job.Result.Dropped, mib(job.Result.Bytes))
	// Purging takes what others had deleted as well.
	if err := r.forgetPurged(ctx); err != nil {
		return err
	}
	if err := r.check(ctx); err != nil {
		return err
	}
	if err := r.stop(); err != nil {
		return err
	}
	if c, err = r.offline(ctx, "reclaim"); err != nil {
		return err
	}
	if c.code != 0 {
		return &broken{c.String()}
	}
	less, err := allocated(filepath.Join(r.data, "nodes"))
	if err != nil {
		return err
	}
	r.say("found", "the nodes take %s on disk, %s before, after cairn reclaim", mib(less), mib(full))
	if err := judgeSpace(full, less, total); err != nil {
		return err
	}
	if err := r.start(ctx); err != nil {
		return err
	}
	if _, err := r.scrub(ctx, true, scrubClean); err != nil {
		return err
	}
	return r.sound(ctx)
}

// forgetPurged takes out of the truth what a purge may take: deleted objects of
// buckets without versions. Nothing that is current is among them.
func (r *rig) forgetPurged(ctx context.Context) error {
	var all struct {
		Buckets []struct {
			Name     string
			Settings struct{ Versioning bool }
		}
	}
	if err := r.ask(ctx, "GET", "/v1/buckets", nil, nil, &all); err != nil {
		return err
	}
	versioned := map[string]bool{}
	for _, b := range all.Buckets {
		versioned[b.Name] = b.Settings.Versioning
	}
	type object struct{ bucket, key string }
	deleted := map[object]bool{}
	for n, v := range r.truth.versions {
		if v.Deleted && v.Current && !versioned[n.Bucket] {
			deleted[object{n.Bucket, n.Key}] = true
		}
	}
	for n := range r.truth.versions {
		if deleted[object{n.Bucket, n.Key}] {
			delete(r.truth.versions, n)
		}
	}
	return nil
}
