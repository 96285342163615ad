package integration

import (
	"bytes"
	"context"
	"fmt"
	"maps"
	"math/rand/v2"
	"net/http"
	"slices"
	"sync"
	"testing"
	"time"
)

// pressure is what a number of clients got out of a server that each of them asks for
// the next put as soon as the one before is answered.
type pressure struct {
	mu      sync.Mutex
	puts    int             // acknowledged
	took    []time.Duration // of those
	early   []time.Duration // what refusals took
	refused map[string]int  // by status and kind
	wrong   []string        // what is no success, and no refusal as documented
}

const loadKeys = 8192

// storedSeeds is what must be read back: the seed of the last body that was acknowledged
// under each key.
type storedSeeds struct {
	mu   sync.Mutex
	seed map[string]uint64
}

func (s *storedSeeds) set(key string, seed uint64, known bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.seed[key] = seed; !known {
		delete(s.seed, key)
	}
}

func bodyOf(seed uint64) []byte {
	rng := rand.New(rand.NewPCG(seed, 4096))
	b := make([]byte, 4096)
	for i := range b {
		b[i] = byte(rng.Uint32())
	}
	return b
}

// run lets clients put until ctx is done. Every other one honours Retry-After, the
// rest asks again at once.
// All runs use the same keys, as many for each client as there are.
func (l *pressure) run(ctx context.Context, s *server, rng *rand.Rand, clients int, kept *storedSeeds) {
	each := loadKeys / clients
	var wg sync.WaitGroup
	for i := range clients {
		rng := fork(rng)
		wg.Go(func() {
			c := s.client()
			defer c.close()
			for n := 0; ctx.Err() == nil; n++ {
				key, seed := fmt.Sprintf("load/%d", i*each+n%each), rng.Uint64()
				begin := time.Now()
				r := c.put(key, bodyOf(seed))
				l.note(r, time.Since(begin))
				if r.answer != refused {
					kept.set(key, seed, r.answer == acked)
				}
				if r.status == http.StatusServiceUnavailable && i%2 == 0 {
					pause(ctx, time.Second)
				}
			}
		})
	}
	wg.Wait()
}

func (l *pressure) note(r reply, took time.Duration) {
	l.mu.Lock()
	defer l.mu.Unlock()
	switch {
	case r.answer == acked && r.err == nil:
		l.puts++
		l.took = append(l.took, took)
	case r.status == http.StatusServiceUnavailable && r.answer == refused && r.header.Get("Retry-After") == "1":
		if l.refused == nil {
			l.refused = map[string]int{}
		}
		l.refused[r.kind]++
		l.early = append(l.early, took)
	default:
		l.wrong = append(l.wrong, r.String())
	}
}

func quantile(d []time.Duration, permil int) time.Duration {
	if len(d) == 0 {
		return 0
	}
	d = slices.Sorted(slices.Values(d))
	return d[(len(d)-1)*permil/1000]
}

func (l *pressure) String() string {
	return fmt.Sprintf("%d puts (median %v, p99 %v), refused %v (median %v, p99 %v)", l.puts, quantile(l.took, 500), quantile(l.took, 990), l.refused,
		quantile(l.early, 500), quantile(l.early, 990))
}

// TestOverload: four times as many clients as a server is at its best with get no
// less out of it, whether they honour Retry-After or not: who is too many is told so,
// and nothing that was acknowledged is lost (H54). With CAIRN_LONG=1 what is
// acknowledged in the same time is compared, in turns.
func TestOverload(t *testing.T) {
	for _, c := range []struct{ memory, clients int }{{128, 128}, {256, 192}, {512, 64}} {
		t.Run(fmt.Sprintf("%dMiB", c.memory), func(t *testing.T) {
			phase := 2 * time.Second
			if long() {
				phase = 20 * time.Second
			} else if c.memory > 128 {
				t.Skip("for the long form")
			}
			rng := newRand(t)
			r := newRig(t)
			s := r.start("--memory", fmt.Sprintf("%dMiB", c.memory))
			kept := &storedSeeds{seed: map[string]uint64{}}
			(&pressure{}).run(timeout(t, phase/4), s, rng, c.clients, kept) // to warm up
			var peak, over pressure
			for range rounds(1, 1, 3) {
				peak.run(timeout(t, phase), s, rng, c.clients, kept)
				over.run(timeout(t, phase), s, rng, 4*c.clients, kept)
			}
			t.Logf("%d clients: %v", c.clients, &peak)
			t.Logf("%d clients: %v", 4*c.clients, &over)
			for _, l := range []*pressure{&peak, &over} {
				if len(l.wrong) > 0 {
					t.Errorf("%d answers are neither success nor 503 with Retry-After, such as %s", len(l.wrong), l.wrong[0])
				}
			}
			if ratio := float64(over.puts) / float64(peak.puts); long() {
				// With the least memory there can be, what the clients' connections take is
				// what the garbage collector's cycles get shorter by: it is told, not judged.
				if t.Logf("%.2f of the peak", ratio); ratio < 0.8 && c.memory > 128 {
					t.Errorf("four times the load leaves %.2f of the goodput, want 0.8", ratio)
				}
			}
			if len(kept.seed) < c.clients {
				t.Errorf("%d keys were put: that proves little", len(kept.seed))
			}
			s.kill()
			cl := r.start("--memory", fmt.Sprintf("%dMiB", c.memory)).client()
			defer cl.close()
			for _, key := range slices.Sorted(maps.Keys(kept.seed)) {
				if got := cl.get(key); got.answer != acked || !bytes.Equal(got.body, bodyOf(kept.seed[key])) {
					t.Fatalf("%s, which was acknowledged: %v, %d bytes", key, got, len(got.body))
				}
			}
		})
	}
}
