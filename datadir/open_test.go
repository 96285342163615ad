package datadir

import (
	"context"
	"errors"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"cairn/node"
)

type closer struct{ closed atomic.Bool }

func (c *closer) Close() error {
	c.closed.Store(true)
	return nil
}

// TestOpenAllLeavesAHungDiskBehind: H40, in the clock of a bubble.
func TestOpenAllLeavesAHungDiskBehind(t *testing.T) {
	names := []string{"n01", "n02", "n03", "n04", "n05", "n06"}
	for _, c := range []struct {
		name  string
		takes map[string]time.Duration // to open; the others take a second
		fails string
		want  time.Duration
		left  []string
	}{
		{"all open", nil, "", time.Second, nil},
		{"one is slow", map[string]time.Duration{"n03": 9 * time.Second}, "", 9 * time.Second, nil},
		{"one hangs", map[string]time.Duration{"n03": time.Hour}, "", 11 * time.Second, []string{"n03"}},
		{"two hang", map[string]time.Duration{"n03": time.Hour, "n06": time.Hour}, "", 11 * time.Second, []string{"n03", "n06"}},
		{"one fails, one hangs", map[string]time.Duration{"n03": time.Hour}, "n01", 11 * time.Second, []string{"n01", "n03"}},
		// A start without four of six is impossible: they are waited for.
		{"three are slow", map[string]time.Duration{"n01": time.Minute, "n02": time.Minute, "n03": time.Minute}, "", time.Minute, nil},
		// All are slow, perhaps after a crash: so may the last one be.
		{"slow disks", map[string]time.Duration{"n01": time.Minute, "n02": time.Minute, "n03": time.Minute, "n04": 3 * time.Minute}, "", 3 * time.Minute, nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				all := map[string]*closer{}
				for _, n := range names {
					all[n] = &closer{}
				}
				begin := time.Now()
				nodes, errs, err := openAll(t.Context(), names, 2, func(name string) (*closer, error) {
					d := c.takes[name]
					if d == 0 {
						d = time.Second
					}
					time.Sleep(d)
					if name == c.fails {
						return nil, node.ErrDamaged
					}
					return all[name], nil
				})
				if err != nil {
					t.Fatal(err)
				}
				if d := time.Since(begin); d != c.want {
					t.Errorf("it took %v, want %v", d, c.want)
				}
				if len(nodes) != len(names)-len(c.left) || len(errs) != len(c.left) {
					t.Errorf("%d are open, errors: %v; want all but %v", len(nodes), errs, c.left)
				}
				for _, name := range c.left {
					if name != c.fails && !errors.Is(errs[name], node.ErrUnavailable) {
						t.Errorf("%s: %v, want ErrUnavailable", name, errs[name])
					}
				}
				time.Sleep(2 * time.Hour)
				for name, n := range all {
					late := errs[name] != nil && name != c.fails
					if n.closed.Load() != late {
						t.Errorf("%s is closed: %v; it came too late: %v", name, n.closed.Load(), late)
					}
				}
			})
		})
	}
}

// TestOpenAllEndsWithItsContext: a signal ends a start that waits for disks.
func TestOpenAllEndsWithItsContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		defer cancel()
		all := map[string]*closer{"n01": {}, "n02": {}}
		_, _, err := openAll(ctx, []string{"n01", "n02"}, 0, func(name string) (*closer, error) {
			if name == "n02" {
				time.Sleep(time.Minute)
			}
			return all[name], nil
		})
		if !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("%v, want DeadlineExceeded", err)
		}
		time.Sleep(time.Hour)
		for name, n := range all {
			if !n.closed.Load() {
				t.Errorf("%s stays open", name)
			}
		}
	})
}
