package integration

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// TestManyObjects: of a store with many small objects, a third of which is overwritten and
// removed, everything is listed and accounted for in no time; it is collected, and an index
// that is made anew then is the same, row by row. CAIRN_LONG=1 stores a million.
func TestManyObjects(t *testing.T) {
	rng := newRand(t)
	r := newRig(t)
	s := r.start("--memory", "512MiB")
	n := rounds(3000, 20_000, 1_000_000)
	seed := rng.Uint64()
	each := func(what string, n int, fn func(c *client, i int) reply) {
		begin := time.Now()
		var next atomic.Int64
		var wg sync.WaitGroup
		for range 64 {
			wg.Go(func() {
				c := s.client()
				defer c.close()
				for i := next.Add(1); i <= int64(n); i = next.Add(1) {
					if a := fn(c, int(i)); a.answer != acked {
						t.Errorf("%s: %v", what, a)
						return
					}
				}
			})
		}
		wg.Wait()
		t.Logf("%s: %d in %v, %.0f/s", what, n, time.Since(begin).Round(time.Millisecond), float64(n)/time.Since(begin).Seconds())
	}
	key := func(i int) string { return fmt.Sprintf("o/%07d", i) }
	each("put", n, func(c *client, i int) reply {
		return c.put(key(i), content{seed: seed + uint64(i), size: 100 + i%900}.bytes())
	})
	each("overwritten", n/6, func(c *client, i int) reply {
		return c.put(key(6*i), content{seed: seed + uint64(n+i), size: 100}.bytes())
	})
	each("deleted", n/6, func(c *client, i int) reply { return c.delete(key(6*i - 3)) })
	begin := time.Now()
	out, ok := r.collect("--now", "--purge")
	if !ok {
		t.FailNow()
	}
	t.Logf("collected in %v: %+v", time.Since(begin).Round(time.Millisecond), out.Result)
	if out.Result.Removed < n/4 || out.Result.Moved < n/4 || out.Result.DroppedLog < 1 {
		t.Errorf("too little: %+v", out.Result)
	}

	c := s.client()
	begin = time.Now()
	all, a := c.list("o/", 1000)
	if a.answer != acked || a.err != nil {
		t.Fatalf("list: %v", a)
	}
	listed := len(all)
	took := time.Since(begin)
	t.Logf("listed %d in %v, %.0f/s", listed, took.Round(time.Millisecond), float64(listed)/took.Seconds())
	if listed != n-n/6 {
		t.Errorf("%d objects are listed, want %d", listed, n-n/6)
	}
	begin = time.Now()
	u := s.usage(t)
	t.Logf("df, the command and all, in %v: live %s", time.Since(begin).Round(time.Millisecond), mib(int64(u["live_bytes"])))
	c.close()
	s.stop()

	export := func(name string) []byte {
		path := filepath.Join(r.base, name)
		r.must("export-index", "--data", r.data, path)
		b, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	before := export("before")
	removeAll(t, r.index())
	begin = time.Now()
	r.must("rebuild", "--data", r.data)
	t.Logf("rebuilt in %v", time.Since(begin).Round(time.Millisecond))
	after := export("after")
	if !bytes.Equal(before, after) {
		t.Error("the index that was made anew is another one")
	}
}
