package integration

import (
	"encoding/json"
	"math/rand/v2"
	"net/http"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// foreground is what clients got beside something else.
type foreground struct {
	bytes int64
	times []time.Duration
	took  time.Duration
}

func (f foreground) rate() float64 { return float64(f.bytes) / (1 << 20) / f.took.Seconds() }

func (f foreground) p99() time.Duration {
	if len(f.times) == 0 {
		return 0
	}
	slices.Sort(f.times)
	return f.times[len(f.times)*99/100]
}

// serveClients has four clients put and get objects of 1 MiB in turn until stop is closed.
func (s *server) serveClients(t *testing.T, rng *rand.Rand, stop chan struct{}) (puts, gets foreground) {
	var mu sync.Mutex
	var wg sync.WaitGroup
	begin := time.Now()
	for i := range 4 {
		own := fork(rng)
		wg.Go(func() {
			c := s.client()
			defer c.close()
			for n := 0; ; n++ {
				select {
				case <-stop:
					return
				default:
				}
				body := content{seed: own.Uint64(), size: 1 << 20}.bytes()
				key := "front/" + string(rune('a'+i))
				at := time.Now()
				a := c.put(key, body)
				for try := 0; a.answer == refused && try < 20; try++ { // "nothing was stored; send it again"
					time.Sleep(20 * time.Millisecond)
					a = c.put(key, body)
				}
				put := time.Since(at) // repeats are the client's time, too
				at = time.Now()
				b := c.get(key)
				get := time.Since(at)
				if a.answer != acked || b.answer != acked || string(b.body) != string(body) {
					t.Errorf("put: %v; get: %v, %d bytes", a, b, len(b.body))
					return
				}
				mu.Lock()
				puts.bytes, puts.times = puts.bytes+1<<20, append(puts.times, put)
				gets.bytes, gets.times = gets.bytes+1<<20, append(gets.times, get)
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	puts.took = time.Since(begin)
	gets.took = puts.took
	return puts, gets
}

// job is what `cairn jobs show --json` says.
type jobSeen struct {
	ID       string
	State    string
	Started  time.Time
	Ended    time.Time
	Progress struct {
		Done, Total uint64
		Left        uint64 `json:"seconds_left"`
	}
	Result struct {
		Packs, Shards, Short, Lost int
		Read                       uint64 `json:"read_bytes"`
		Written                    uint64 `json:"written_bytes"`
	}
}

// TestRepairOfTwoNodes loses two of six nodes of a store and measures their repair, alone and
// beside clients: how fast, what it reads for what it writes, how right the time left is
// half-way, and what the clients notice. Rates depend on the machine; what is held against a
// bound are ratios of one run. CAIRN_LONG=1 stores 10 GiB, and holds all of them against theirs.
func TestRepairOfTwoNodes(t *testing.T) {
	rng := newRand(t)
	r := newRig(t)
	s := r.start("--memory", "512MiB")
	c := s.client()
	objects := rounds(2, 8, 160)
	begin := time.Now()
	var next atomic.Int64
	var wg sync.WaitGroup
	seed := rng.Uint64()
	for range 2 {
		wg.Go(func() {
			cl := s.client()
			defer cl.close()
			for i := next.Add(1); i <= int64(objects); i = next.Add(1) {
				if a := cl.put("big/"+time.Duration(i).String(), content{seed: seed + uint64(i), size: 64 << 20}.bytes()); a.answer != acked {
					t.Errorf("put: %v", a)
				}
			}
		})
	}
	wg.Wait()
	total := int64(objects) * 64 << 20
	putRate := float64(total) / (1 << 20) / time.Since(begin).Seconds()
	measure := func(d time.Duration) (foreground, foreground) {
		stop := make(chan struct{})
		time.AfterFunc(d, func() { close(stop) })
		return s.serveClients(t, rng, stop)
	}
	idlePuts, idleGets := measure(time.Duration(rounds(1, 2, 10)) * time.Second)
	// repair loses two nodes and follows the repair to its end.
	repair := func(lost ...string) (rate, amplification, wrong float64, took time.Duration) {
		for _, name := range lost {
			removeAll(t, r.node(name))
		}
		for range 5 { // it is noticed
			c.put("notice", content{seed: rng.Uint64(), size: 1 << 20}.bytes())
		}
		time.Sleep(time.Second)
		r.must(append([]string{"nodes", "replace"}, lost...)...)
		type sample struct {
			at   time.Time
			left float64
			done float64
		}
		var samples []sample
		var runs []jobSeen
		for deadline := time.Now().Add(10 * time.Minute); ; time.Sleep(100 * time.Millisecond) {
			a := c.do(http.MethodGet, "/v1/jobs?kind=repair", nil, nil)
			var out struct{ Jobs []jobSeen }
			if err := json.Unmarshal(a.body, &out); err != nil {
				t.Fatalf("jobs: %v, %v", a, err)
			}
			runs = out.Jobs
			if len(runs) > 0 && runs[0].State == "running" {
				p := runs[0].Progress
				if p.Total > 0 {
					samples = append(samples, sample{time.Now(), float64(p.Left), float64(p.Done) / float64(p.Total)})
				}
			} else if st := r.status(); *st.PacksShort == 0 {
				break
			}
			if time.Now().After(deadline) {
				t.Fatal("the repair does not end")
			}
		}
		// The longest run is the one that counts: a second one follows for what came meanwhile.
		longest := slices.MaxFunc(runs, func(a, b jobSeen) int { return int(a.Ended.Sub(a.Started) - b.Ended.Sub(b.Started)) })
		took = longest.Ended.Sub(longest.Started)
		res := longest.Result
		rate = float64(res.Written) / (1 << 20) / took.Seconds()
		amplification = float64(res.Read) / float64(res.Written)
		for _, x := range samples {
			if x.done >= 0.5 && x.left > 0 && x.at.Before(longest.Ended) {
				truth := longest.Ended.Sub(x.at).Seconds()
				wrong = x.left/truth - 1
				break
			}
		}
		return rate, amplification, wrong, took
	}
	rate, amp, wrong, took := repair("n02", "n05")
	t.Logf("%s put at %.0f MiB/s; alone: two nodes repaired in %v, %.0f MiB/s of shards written, %.2f bytes read for each (read back included), the time left was wrong by %+.0f %% half-way",
		mib(total), putRate, took.Round(time.Millisecond), rate, amp, 100*wrong)
	// Both shards of a pack of 4+2 are made of the same four; each is read back.
	if amp > 4.2 {
		t.Errorf("%.2f bytes were read for each that was written", amp)
	}
	// Half of what is put is written again for two lost nodes: as fast as a put is twice that.
	t.Logf("that is %.2f times the rate of the puts, in bytes that clients put", 2*rate/putRate)
	long := objects >= 100 // what is held against a bound takes minutes
	if long && rate < putRate/2 {
		t.Errorf("a repair writes %.0f MiB/s, puts bring %.0f", rate, putRate)
	}
	if long && (wrong < -0.25 || wrong > 0.25) {
		t.Errorf("half-way the time left was wrong by %+.0f %%", 100*wrong)
	}
	stop := make(chan struct{})
	type both struct{ puts, gets foreground }
	seen := make(chan both, 1)
	go func() {
		puts, gets := s.serveClients(t, rng, stop)
		seen <- both{puts, gets}
	}()
	rate, amp, wrong, took = repair("n01", "n04")
	close(stop)
	b := <-seen
	t.Logf("beside four clients: repaired in %v, %.0f MiB/s, %.2f read for each, time left wrong by %+.0f %%", took.Round(time.Millisecond), rate, amp, 100*wrong)
	t.Logf("clients: puts %.0f MiB/s of %.0f idle, p99 %v of %v; gets %.0f MiB/s of %.0f, p99 %v of %v", b.puts.rate(), idlePuts.rate(), b.puts.p99().Round(time.Millisecond), idlePuts.p99().Round(time.Millisecond),
		b.gets.rate(), idleGets.rate(), b.gets.p99().Round(time.Millisecond), idleGets.p99().Round(time.Millisecond))
	if long {
		if b.puts.rate() < idlePuts.rate()/2 || b.gets.rate() < idleGets.rate()/2 {
			t.Error("beside a repair clients keep less than half of their speed")
		}
		if b.puts.p99() > 3*idlePuts.p99() || b.gets.p99() > 3*idleGets.p99() {
			t.Error("beside a repair the slowest hundredth takes more than three times as long")
		}
		if wrong < -0.25 || wrong > 0.25 {
			t.Errorf("beside clients the time left was wrong by %+.0f %% half-way", 100*wrong)
		}
	}
	c.close()
	s.stop()
	r.verify()
}
