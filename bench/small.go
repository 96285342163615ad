package bench

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// Small is what many small objects cost.
type Small struct {
	Face    string `json:"face"`
	Op      string `json:"op"`
	Clients int    `json:"clients"`
	PerS    Figure `json:"per_s"`
	CPU     Figure `json:"cpu_us_each"` // of the store's process, microseconds
	// Latency of one, in milliseconds; only for one client.
	Latency *Figure `json:"latency_ms,omitempty"`
}

// Sync is what the disk takes to make 4 KiB durable in several files at once.
type Sync struct {
	Files   int    `json:"files"`
	Latency Figure `json:"latency_ms"`
}

type smallKey struct {
	face, clients int
	op            string
}

// measureSmall puts and gets small objects, by one client in turns with syncs of
// the bare disk, then by many.
func measureSmall(ctx context.Context, o Options, dir string, faces []face) ([]Small, []Sync, error) {
	syncs, err := newSyncers(dir)
	if err != nil {
		return nil, nil, err
	}
	defer syncs.close()
	var rate, cpu, latency series[smallKey]
	var disk series[int]
	var seed atomic.Uint64
	seed.Store(1 << 32)
	counts := []int{allShards, 1 + parityShards} // a coded log pack has six shards, one below 64 KiB three copies
	one := func(f face, key string, b []byte, op string) (time.Duration, error) {
		if op == opPut {
			Random(b, seed.Add(1))
		}
		start := time.Now()
		if op == opPut {
			err := f.put(ctx, key, b)
			return time.Since(start), err
		}
		c := &counter{}
		err := f.get(ctx, key, c)
		return time.Since(start), errors.Join(err, c.want(len(b)))
	}
	buf := make([]byte, o.SmallSize)
	for round := -1; round < o.Rounds; round++ {
		o.Progress(fmt.Sprintf("small objects: round %d of %d", round+1, o.Rounds))
		alone := make([]struct{ wall, cpu [2]time.Duration }, len(faces))
		for n := range o.Puts {
			if err := ctx.Err(); err != nil {
				return nil, nil, context.Cause(ctx)
			}
			for _, files := range counts {
				took, err := syncs.do(files)
				if err != nil {
					return nil, nil, err
				}
				if round >= 0 {
					disk.add(files, seconds(took)*1e3)
				}
			}
			for i, f := range faces {
				for j, op := range []string{opPut, opGet} {
					took, err := one(f, fmt.Sprintf("one/%d/%d", round+1, n), buf, op)
					if err != nil {
						return nil, nil, fmt.Errorf("%s, small objects: %w", f.name(), err)
					}
					alone[i].wall[j] += took
					if round >= 0 {
						latency.add(smallKey{i, 1, op}, seconds(took)*1e3)
					}
				}
			}
		}
		// CPU time has ticks far longer than one operation: it is measured over a
		// long stretch of them, all of one kind.
		for i, f := range faces {
			for j, op := range []string{opPut, opGet} {
				from, err := f.cpu()
				if err != nil {
					return nil, nil, err
				}
				keys, stretch := stretchPuts*o.Puts, stretchPuts*o.Puts
				if op == opGet {
					stretch *= stretchGets
				}
				for n := range stretch {
					if _, err := one(f, fmt.Sprintf("more/%d/%d", round+1, n%keys), buf, op); err != nil {
						return nil, nil, fmt.Errorf("%s, small objects: %w", f.name(), err)
					}
				}
				to, err := f.cpu()
				if err != nil {
					return nil, nil, err
				}
				if k := (smallKey{i, 1, op}); round >= 0 {
					rate.add(k, float64(o.Puts)/seconds(alone[i].wall[j]))
					cpu.add(k, seconds(to-from)*1e6/float64(stretch))
				}
			}
		}
		for i, f := range faces {
			for _, op := range []string{opPut, opGet} {
				from, err := f.cpu()
				if err != nil {
					return nil, nil, err
				}
				start := time.Now()
				if err := many(ctx, o, func(n int, b []byte) error {
					_, err := one(f, fmt.Sprintf("many/%d/%d", round+1, n), b, op)
					return err
				}); err != nil {
					return nil, nil, fmt.Errorf("%s, small objects of many clients: %w", f.name(), err)
				}
				took := time.Since(start)
				to, err := f.cpu()
				if err != nil {
					return nil, nil, err
				}
				if k := (smallKey{i, o.Clients, op}); round >= 0 {
					rate.add(k, float64(o.PutsMany)/seconds(took))
					cpu.add(k, seconds(to-from)*1e6/float64(o.PutsMany))
				}
			}
		}
	}
	var out []Small
	for _, k := range rate.order {
		s := Small{Face: faces[k.face].name(), Op: k.op, Clients: k.clients, PerS: rate.figure(k), CPU: cpu.figure(k)}
		if k.clients == 1 {
			l := latency.figure(k)
			s.Latency = &l
		}
		out = append(out, s)
	}
	var ds []Sync
	for _, files := range disk.order {
		ds = append(ds, Sync{files, disk.figure(files)})
	}
	return out, ds, nil
}

// CPU time of one client is measured over so many times o.Puts puts, and over
// each of these objects being read so many times.
const stretchPuts, stretchGets = 4, 5

// many runs f for every number below o.PutsMany from o.Clients goroutines.
func many(ctx context.Context, o Options, f func(n int, b []byte) error) error {
	var next atomic.Int64
	errs := make([]error, o.Clients)
	var wg sync.WaitGroup
	for c := range o.Clients {
		wg.Go(func() {
			b := make([]byte, o.SmallSize)
			for n := int(next.Add(1)) - 1; n < o.PutsMany && ctx.Err() == nil; n = int(next.Add(1)) - 1 {
				if err := f(n, b); err != nil {
					errs[c] = err
					return
				}
			}
		})
	}
	wg.Wait()
	if err := ctx.Err(); err != nil {
		return context.Cause(ctx)
	}
	return errors.Join(errs...)
}

const (
	syncBlock = 4 << 10
	syncFile  = 4 << 20
)

// syncers write 4 KiB into files that are preallocated and were written before,
// and sync them: the least that a durable answer waits for.
type syncers struct {
	files []*os.File
	block []byte
	at    int64
}

func newSyncers(dir string) (_ *syncers, err error) {
	s := &syncers{block: make([]byte, syncBlock)}
	defer func() {
		if err != nil {
			s.close()
		}
	}()
	Random(s.block, 3)
	full := make([]byte, syncFile)
	for i := range allShards {
		f, err := os.OpenFile(filepath.Join(dir, fmt.Sprintf("sync-%d", i)), os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
		if err != nil {
			return nil, err
		}
		s.files = append(s.files, f)
		// Written, so that a sync changes no extent.
		if _, err := f.Write(full); err != nil {
			return nil, err
		}
		if err := f.Sync(); err != nil {
			return nil, err
		}
	}
	return s, nil
}

func (s *syncers) close() {
	for _, f := range s.files {
		f.Close()
	}
}

// do writes and syncs the first n files at once and returns how long that took.
func (s *syncers) do(n int) (time.Duration, error) {
	s.at = (s.at + syncBlock) % syncFile
	errs := make([]error, n)
	start := time.Now()
	var wg sync.WaitGroup
	for i, f := range s.files[:n] {
		wg.Go(func() {
			if _, errs[i] = f.WriteAt(s.block, s.at); errs[i] == nil {
				errs[i] = unix.Fdatasync(int(f.Fd()))
			}
		})
	}
	wg.Wait()
	return time.Since(start), errors.Join(errs...)
}
