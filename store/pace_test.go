package store

import (
	"context"
	"testing"
	"testing/synctest"
	"time"
)

// TestPace: work and pauses together keep the rate within a tenth, whatever part of the time
// the work takes; beside clients it is a quarter; and an end is an end.
func TestPace(t *testing.T) {
	for name, c := range map[string]struct {
		work    time.Duration // for each 4 MiB
		serving bool
		want    float64 // MiB/s
	}{
		"work takes no time":   {0, false, 32},
		"half the time":        {60 * time.Millisecond, false, 32},
		"more than there is":   {250 * time.Millisecond, false, 16},
		"beside clients":       {10 * time.Millisecond, true, 8},
		"and more than a part": {250 * time.Millisecond, true, 8},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t)
			s := r.st
			if c.serving {
				if err := s.mem.small.Acquire(t.Context(), 1); err != nil {
					t.Fatal(err)
				}
				defer s.mem.small.Release(1)
			}
			synctest.Test(t, func(t *testing.T) {
				p := pacer{s: s, rate: 32 << 20}
				begin := time.Now()
				const packs = 100
				for range packs {
					time.Sleep(c.work)
					p.did(4 << 20)
					if err := p.pause(context.Background()); err != nil {
						t.Fatal(err)
					}
				}
				rate := 4 * packs / time.Since(begin).Seconds()
				if rate < c.want*0.9 || rate > c.want*1.1 {
					t.Errorf("%.1f MiB/s, want %.0f", rate, c.want)
				}
				ctx, cancel := context.WithCancel(context.Background())
				cancel()
				p.did(1 << 40)
				if err := p.pause(ctx); err == nil {
					t.Error("a pause goes on behind the end")
				}
			})
		})
	}
}
