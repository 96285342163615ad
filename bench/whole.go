package bench

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"runtime/pprof"
	"time"
)

// Whole is what an operation on long objects costs, end to end.
type Whole struct {
	Face string `json:"face"`
	Op   string `json:"op"`
	MBps Figure `json:"mb_per_s"`
	CPU  Figure `json:"cpu_s_per_gb"` // of the store's process
	// Limit is the sum of the stages that the operation is made of, 0 where that
	// says nothing.
	Limit float64 `json:"limit_cpu_s_per_gb,omitempty"`
	// ClientCPU is what the client took besides, where it is another process.
	ClientCPU *Figure `json:"client_cpu_s_per_gb,omitempty"`
	// Alloc is bytes allocated per MB of the object, where that can be known.
	Alloc *Figure `json:"alloc_bytes_per_mb,omitempty"`
}

type opKey struct {
	face int
	op   string
}

const (
	opPut = "put"
	opGet = "get"
	opHit = "put of what is stored already"
)

// measureWhole puts and gets one long object after the other through each face in
// turn. The first object of each is to warm up, and is read back and compared.
func measureWhole(ctx context.Context, o Options, dir string, faces []face, l Limits) ([]Whole, error) {
	object := make([]byte, o.Object)
	mb := float64(o.Object) / 1e6
	var rate, cpu, client, alloc series[opKey]
	for round := -1; round < o.Rounds; round++ {
		o.Progress(fmt.Sprintf("long objects: round %d of %d", round+1, o.Rounds))
		for i, f := range faces {
			Random(object, uint64(1000+round*len(faces)+i))
			key := fmt.Sprintf("long/%d", round+1)
			do := func(op string, run func() error) error {
				if err := ctx.Err(); err != nil {
					return context.Cause(ctx)
				}
				var m0, m1 runtime.MemStats
				runtime.ReadMemStats(&m0)
				from, err := f.cpu()
				if err != nil {
					return err
				}
				own, start := selfCPU(), time.Now()
				if err := run(); err != nil {
					return fmt.Errorf("%s %s: %w", f.name(), op, err)
				}
				took, ownTook := time.Since(start), selfCPU()-own
				to, err := f.cpu()
				if err != nil {
					return err
				}
				runtime.ReadMemStats(&m1)
				if round < 0 {
					return nil
				}
				k := opKey{i, op}
				rate.add(k, mb/seconds(took))
				cpu.add(k, seconds(to-from)*1e3/mb)
				if f.net() {
					client.add(k, seconds(ownTook)*1e3/mb)
				} else {
					alloc.add(k, float64(m1.TotalAlloc-m0.TotalAlloc)/mb)
				}
				return nil
			}
			if err := touch(dir, len(object)); err != nil {
				return nil, err
			}
			if err := do(opPut, func() error { return f.put(ctx, key, object) }); err != nil {
				return nil, err
			}
			if err := do(opGet, func() error {
				if round < 0 {
					return check(ctx, f, key, object)
				}
				c := &counter{}
				if err := f.get(ctx, key, c); err != nil {
					return err
				}
				return c.want(len(object))
			}); err != nil {
				return nil, err
			}
			if err := do(opHit, func() error { return f.put(ctx, key+"-again", object) }); err != nil {
				return nil, err
			}
			if err := forget(dir); err != nil {
				return nil, err
			}
		}
	}
	var out []Whole
	for _, k := range rate.order {
		f := faces[k.face]
		w := Whole{Face: f.name(), Op: k.op, MBps: rate.figure(k), CPU: cpu.figure(k), Limit: limitOf(l, k.op, f.net())}
		if f.net() {
			c := client.figure(k)
			w.ClientCPU = &c
		} else {
			a := alloc.figure(k)
			w.Alloc = &a
		}
		out = append(out, w)
	}
	return out, nil
}

// limitOf is the limit of an operation, 0 where there is none: what a put of
// stored bytes does not do is most of it.
func limitOf(l Limits, op string, net bool) float64 {
	switch {
	case op == opPut && net:
		return l.PutNet
	case op == opPut:
		return l.Put
	case op == opGet && net:
		return l.GetNet
	case op == opGet:
		return l.Get
	}
	return 0
}

// profile writes CPU profiles of puts, of puts of small objects by one client, and
// of gets, all in this process.
func profile(ctx context.Context, o Options, dir string, f face) error {
	if err := os.MkdirAll(o.Profile, 0o755); err != nil {
		return err
	}
	object := make([]byte, o.Object)
	put := func(i int) error {
		return f.put(ctx, fmt.Sprintf("profiled/%d", i), object)
	}
	get := func(i int) error { return f.get(ctx, fmt.Sprintf("profiled/%d", i), &counter{}) }
	o.Progress("profiles")
	// A profile cannot be paused, so what makes the objects and prepares the memory
	// is in it, as functions that stand apart.
	if err := profiling(filepath.Join(o.Profile, "put.pprof"), func() error {
		for i := range profiled {
			Random(object, uint64(2000+i))
			if err := touch(dir, len(object)); err != nil {
				return err
			}
			if err := put(i); err != nil {
				return err
			}
			if i < profiled-1 { // the last one is read
				if err := forget(dir); err != nil {
					return err
				}
			}
		}
		return nil
	}); err != nil {
		return err
	}
	if err := profiling(filepath.Join(o.Profile, "small-put.pprof"), func() error {
		small := make([]byte, o.SmallSize)
		for i := range profiledSmall * o.Puts {
			Random(small, uint64(1<<33+i))
			if err := f.put(ctx, fmt.Sprintf("profiled/small/%d", i), small); err != nil {
				return err
			}
		}
		return nil
	}); err != nil {
		return err
	}
	return profiling(filepath.Join(o.Profile, "get.pprof"), func() error {
		for range 2 * profiled {
			if err := get(profiled - 1); err != nil {
				return err
			}
		}
		return nil
	})
}

func profiling(file string, f func() error) (err error) {
	w, err := os.Create(file)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, w.Close()) }()
	if err := pprof.StartCPUProfile(w); err != nil {
		return err
	}
	defer pprof.StopCPUProfile()
	return f()
}
