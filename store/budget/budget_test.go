package budget_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"pgregory.net/rapid"

	"cairn/store/budget"
)

func take(t *testing.T, s *budget.Share, n int64) {
	t.Helper()
	if err := s.Acquire(t.Context(), n); err != nil {
		t.Fatal(err)
	}
}

// want compares the gauges.
func want(t *testing.T, s *budget.Share, w budget.State) {
	t.Helper()
	if got := s.State(); got != w {
		t.Errorf("got %+v, want %+v", got, w)
	}
}

func TestFirstComeFirstServed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := budget.NewShare("x", 10, 100)
		take(t, s, 10)
		var order []int64
		var mu sync.Mutex
		// The large wish stands before small ones that would fit earlier.
		for _, n := range []int64{8, 2, 10, 3} {
			go func() {
				if err := s.Acquire(t.Context(), n); err != nil {
					t.Error(err)
				}
				mu.Lock()
				order = append(order, n)
				mu.Unlock()
				time.Sleep(time.Second)
				s.Release(n)
			}()
			synctest.Wait()
		}
		if s.TryAcquire(0) {
			t.Error("somebody got past the line")
		}
		for range 5 {
			s.Release(2)
			synctest.Wait()
		}
		time.Sleep(time.Minute)
		mu.Lock()
		defer mu.Unlock()
		if w := []int64{8, 2, 10, 3}; !slices.Equal(order, w) {
			t.Errorf("served in the order %v, came in the order %v", order, w)
		}
		want(t, s, budget.State{Name: "x", Limit: 10, Waits: 4})
	})
}

func TestTheLineIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := budget.NewShare("x", 4, 2)
		take(t, s, 4)
		for range 2 {
			go s.Acquire(t.Context(), 1)
		}
		synctest.Wait()
		begin := time.Now()
		if err := s.Acquire(t.Context(), 1); !errors.Is(err, budget.ErrBusy) || time.Since(begin) != 0 {
			t.Errorf("the third in a line of two: %v after %v, want %v at once", err, time.Since(begin), budget.ErrBusy)
		}
		want(t, s, budget.State{Name: "x", Limit: 4, Used: 4, Waiting: 2, Waits: 2, Refused: 1})
		s.Release(4)
		synctest.Wait()
		want(t, s, budget.State{Name: "x", Limit: 4, Used: 2, Waits: 2, Refused: 1})
	})
}

func TestPatienceEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := budget.NewShare("x", 4, 10)
		take(t, s, 3)
		first := make(chan error, 1)
		go func() { first <- s.AcquireWithin(t.Context(), 4, 5*time.Second) }()
		synctest.Wait()
		second := make(chan error, 1)
		go func() { second <- s.Acquire(t.Context(), 1) }()
		synctest.Wait()
		begin := time.Now()
		if err := <-first; !errors.Is(err, budget.ErrBusy) || time.Since(begin) != 5*time.Second {
			t.Errorf("got %v after %v, want %v after 5 s", err, time.Since(begin), budget.ErrBusy)
		}
		// Whoever stood behind gets what was free all along.
		if err := <-second; err != nil {
			t.Error(err)
		}
		want(t, s, budget.State{Name: "x", Limit: 4, Used: 4, Waits: 2, Refused: 1})
	})
}

func TestCancelling(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := budget.NewShare("x", 4, 10)
		cause := errors.New("the client left")
		gone, leave := context.WithCancelCause(t.Context())
		leave(cause)
		if err := s.Acquire(gone, 1); !errors.Is(err, cause) {
			t.Errorf("got %v, want %v", err, cause)
		}
		take(t, s, 4)
		ctx, leave := context.WithCancelCause(t.Context())
		result := make(chan error, 1)
		go func() { result <- s.AcquireWithin(ctx, 4, time.Hour) }()
		synctest.Wait()
		leave(cause)
		if err := <-result; !errors.Is(err, cause) {
			t.Errorf("got %v, want %v", err, cause)
		}
		want(t, s, budget.State{Name: "x", Limit: 4, Used: 4, Waits: 1}) // leaving is no refusal
	})
}

func TestNeverEnough(t *testing.T) {
	s := budget.NewShare("x", 4, 10)
	if err := s.Acquire(t.Context(), 5); !errors.Is(err, budget.ErrTooLarge) || !strings.Contains(err.Error(), "x") {
		t.Errorf("got %v, want %v", err, budget.ErrTooLarge)
	}
	if s.TryAcquire(5) {
		t.Error("got 5 of 4")
	}
	want(t, s, budget.State{Name: "x", Limit: 4, Refused: 1})
}

// TestPart: the part is bounded by itself and by the whole, those that wait for
// the part do not stand in the way of others, and a failure leaves nothing behind.
func TestPart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		whole := budget.NewShare("whole", 10, 10)
		slow := whole.Part("slow", 5)
		take(t, slow, 5)
		waited := make(chan error, 1)
		go func() { waited <- slow.Acquire(t.Context(), 3) }()
		synctest.Wait()
		if slow.TryAcquire(1) {
			t.Error("more than the part has")
		}
		take(t, whole, 5) // the others go on
		if whole.TryAcquire(1) {
			t.Error("more than the whole has")
		}
		slow.Release(5)
		synctest.Wait()
		if err := <-waited; err != nil {
			t.Error(err)
		}
		want(t, slow, budget.State{Name: "slow", Limit: 5, Used: 3, Waits: 1})
		want(t, whole, budget.State{Name: "whole", Limit: 10, Used: 8})
		take(t, whole, 2)
		if err := slow.AcquireWithin(t.Context(), 1, time.Second); !errors.Is(err, budget.ErrBusy) {
			t.Errorf("got %v, want %v", err, budget.ErrBusy)
		}
		if slow.TryAcquire(1) {
			t.Error("more than the whole has")
		}
		want(t, slow, budget.State{Name: "slow", Limit: 5, Used: 3, Waits: 1})
	})
}

// TestMixedUsers lets users of several kinds come, wait, lose patience, leave and
// go through two shares in a row, in a bubble where a wake-up that is lost is a
// deadlock. No share is ever exceeded; in the end all is free, and everybody got
// what they wanted or an error.
func TestMixedUsers(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		limit := rapid.Int64Range(1, 30).Draw(rt, "limit")
		seed := rapid.Uint64().Draw(rt, "seed")
		users := rapid.IntRange(1, 60).Draw(rt, "users")
		line := rapid.IntRange(0, 60).Draw(rt, "line")
		var trouble atomic.Value
		synctest.Test(t, func(t *testing.T) {
			outer := budget.NewShare("outer", limit, line)
			part := outer.Part("part", limit/2+1)
			inner := budget.NewShare("inner", limit, line)
			var held [3]atomic.Int64 // what users hold, counted by themselves
			use := func(i int, limit int64, n int64) {
				if now := held[i].Add(n); now > limit {
					trouble.Store(fmt.Sprintf("%d of %d are held", now, limit))
				}
			}
			var wg sync.WaitGroup
			for u := range users {
				rng := rand.New(rand.NewPCG(seed, uint64(u)))
				wg.Go(func() {
					for range 5 {
						time.Sleep(time.Duration(rng.IntN(10)) * time.Millisecond)
						ctx, leave := context.WithTimeout(t.Context(), time.Duration(1+rng.IntN(40))*time.Millisecond)
						share, i := outer, 0
						if rng.IntN(2) == 0 {
							share, i = part, 1
						}
						n := rng.Int64N(limit + 2)
						var err error
						switch rng.IntN(3) {
						case 0:
							err = share.Acquire(ctx, n)
						case 1:
							err = share.AcquireWithin(ctx, n, time.Duration(1+rng.IntN(20))*time.Millisecond)
						case 2:
							if !share.TryAcquire(n) {
								err = budget.ErrBusy
							}
						}
						leave()
						if err != nil {
							continue
						}
						if n > share.Limit() {
							trouble.Store(fmt.Sprintf("%d of %d were given", n, share.Limit()))
						}
						use(0, limit, n)
						if i == 1 {
							use(1, part.Limit(), n)
						}
						m := rng.Int64N(limit + 1)
						if inner.AcquireWithin(t.Context(), m, time.Second) == nil {
							use(2, limit, m)
							time.Sleep(time.Duration(rng.IntN(5)) * time.Millisecond)
							held[2].Add(-m)
							inner.Release(m)
						}
						held[0].Add(-n)
						if i == 1 {
							held[1].Add(-n)
						}
						share.Release(n)
					}
				})
			}
			stop := make(chan struct{})
			go func() { // the gauges are never above the limit, whenever they are read
				for {
					for _, s := range []*budget.Share{outer, part, inner} {
						if st := s.State(); st.Used > st.Limit || st.Used < 0 || st.Waiting < 0 {
							trouble.Store(fmt.Sprintf("%+v", st))
						}
					}
					select {
					case <-stop:
						return
					case <-time.After(100 * time.Microsecond):
					}
				}
			}()
			wg.Wait()
			close(stop)
			for _, s := range []*budget.Share{outer, part, inner} {
				if st := s.State(); st.Used != 0 || st.Waiting != 0 || !s.TryAcquire(s.Limit()) {
					trouble.Store(fmt.Sprintf("in the end %+v, and not all of it is to be had", st))
				} else {
					s.Release(s.Limit())
				}
			}
		})
		if why := trouble.Load(); why != nil {
			rt.Fatal(why)
		}
	})
}

func TestDivide(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		total := rapid.OneOf(rapid.Int64Range(0, 1<<30), rapid.Int64Range(0, 1<<42)).Draw(t, "total")
		losses := rapid.IntRange(1, 4).Draw(t, "losses")
		s, err := budget.Divide(total, losses)
		if err != nil {
			if !errors.Is(err, budget.ErrTooLarge) {
				t.Fatalf("%d bytes: %v", total, err)
			}
			var least int64 // what the error says does do
			if i := strings.LastIndex(err.Error(), "at least "); i < 0 {
				t.Fatalf("%d bytes: %v", total, err)
			} else if _, serr := fmt.Sscanf(err.Error()[i:], "at least %d MiB", &least); serr != nil || total >= least<<20 || least > 160 {
				t.Fatalf("%d bytes: %v", total, err)
			}
			if _, err := budget.Divide(least<<20, losses); err != nil {
				t.Fatalf("%d MiB: %v", least, err)
			}
			return
		}
		parts := []int64{s.Packs, s.Coding, s.Repair, s.Log, s.Uploads, s.Streams, s.Small, s.Compress, s.Readers, s.Fetch, s.Index, s.Connections, s.Rest}
		var sum int64
		for _, p := range parts {
			sum += p
		}
		m := int64(losses)
		pack := int64(s.PackBytes)
		for _, c := range []struct {
			what      string
			got, want int64
		}{
			{"the total", total, sum},
			{"packs that nodes hold which hang, and one more", s.Packs, m*int64(s.Sealing)*pack + pack},
			{"parity of a pack over two data shards", s.Coding, m * pack / 2},
			{"a full pack and its parity", s.Repair, budget.FullPack + m*budget.MaxChunk},
			{"a slow and a fast upload", s.Uploads, 2 * budget.MaxChunk},
			{"a slow and a fast reader", s.Readers, 2 * budget.MaxChunk},
			{"a chunk being fetched", s.Fetch, 2*budget.MaxChunk + 1<<20},
			{"a chunk being compressed", s.Compress, budget.MaxChunk + budget.Encoder},
			{"two small objects on each way", s.Small * 2 / 5, 2 * 160 << 10},
			{"two memtables and the caches", s.Index, 2*(s.MemTable*13/10) + s.Cache - 4},
			{"a third memtable", s.Rest, s.MemTable * 13 / 10},
			{"caches", s.Cache, 4 << 20},
			{"a memtable that holds any round", s.MemTable, 8 << 20},
		} {
			if c.got < c.want {
				t.Errorf("%d MiB, %d losses: %s: %d bytes, want at least %d", total>>20, losses, c.what, c.got, c.want)
			}
		}
		if least := min(s.Packs, s.Coding, s.Repair, s.Log, s.Streams, s.Connections); least < 512<<10 {
			t.Errorf("a share of %d bytes", least)
		}
	})
}

func TestDivisionAtFamiliarSizes(t *testing.T) {
	for _, c := range []struct {
		mib, losses int
		packs       int64 // open at a time
	}{{128, 2, 3}, {256, 2, 3}, {512, 2, 7}, {1024, 2, 14}, {4096, 2, 56}} {
		s, err := budget.Divide(int64(c.mib)<<20, c.losses)
		if err != nil {
			t.Errorf("%d MiB: %v", c.mib, err)
			continue
		}
		if n := s.Packs / int64(s.PackBytes); n != c.packs {
			t.Errorf("%d MiB: %d packs of %d bytes, want %d", c.mib, n, s.PackBytes, c.packs)
		}
	}
	if _, err := budget.Divide(100<<20, 2); err == nil || !strings.Contains(err.Error(), "at least 12") {
		t.Errorf("100 MiB: %v, want to be told what would do", err)
	}
}
