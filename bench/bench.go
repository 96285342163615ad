// Package bench measures what a put and a get cost on this machine, beside what
// they cannot cost less than: the sum of their stages, each measured alone in the
// same run.
//
// [Run] prepares stages, a store in this process and a server in a process of its
// own, warms all of them up, and measures them in turns, so that what else the
// machine does falls on all alike. It quotes medians and half the distance
// between the quartiles. CPU time is user and system time of the process that does
// the work, so that of the kernel's own threads (writing back what was synced) is
// not in it. A GB is 10^9 bytes of the object, also where a stage handles the half
// more that parity adds.
//
// Everything is written below one temporary directory, which is removed before
// Run returns, also when its context ends. Run starts one process for each thing
// that is served and waits for it. Only one Run may go on at a time: figures of
// the process are the process's. The package reports no latency of a network and
// no speed of a disk that was not idle; it says how much of the machine's CPUs
// others took meanwhile.
package bench

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"runtime/debug"
	"slices"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// GB is the unit of what costs are given per.
const GB = 1e9

// Options say what is measured and how long.
type Options struct {
	Dir     string   // where the temporary directory is made; default "."
	Cairn   string   // the cairn binary that is served; empty: REST is not measured
	Sink    []string // command that runs [ServeSink]; empty: HTTP alone is not measured
	Guarded []string // command that runs [ServeGuarded], with a directory behind it; empty: guards are not measured
	Profile string   // directory that CPU profiles of put and get go to; empty: none

	Rounds    int // how often everything is measured; default 5
	Object    int // bytes of the long objects; default 256 MiB
	Stage     int // bytes that one measurement of a stage handles; default 64 MiB
	Puts      int // small objects that one client puts and gets in a round; default 60
	PutsMany  int // small objects that many clients together put and get in a round; default 2,048
	SmallSize int // bytes of a small object; default 4 KiB
	Clients   int // how many clients "many" are; default 64

	// Progress is told what is being measured; nil: nobody is.
	Progress func(string)
}

// Quick makes the run short: fewer rounds, shorter objects.
func (o Options) Quick() Options {
	o.Rounds, o.Object, o.Stage, o.Puts, o.PutsMany = 3, 96<<20, 16<<20, 20, 512
	return o
}

// Tiny makes the run as short as it can be, to see that it works; its figures
// mean nothing.
func (o Options) Tiny() Options {
	o.Rounds, o.Object, o.Stage, o.Puts, o.PutsMany, o.Clients = 1, 6<<20, 1<<20, 2, 16, 4
	return o
}

func (o Options) withDefaults() Options {
	def := func(n *int, v int) {
		if *n == 0 {
			*n = v
		}
	}
	def(&o.Rounds, 5)
	def(&o.Object, 256<<20)
	def(&o.Stage, 64<<20)
	def(&o.Puts, 60)
	def(&o.PutsMany, 2048)
	def(&o.SmallSize, 4<<10)
	def(&o.Clients, 64)
	if o.Dir == "" {
		o.Dir = "."
	}
	if o.Progress == nil {
		o.Progress = func(string) {}
	}
	return o
}

// profiled is how many long objects are put and got under a profile.
const profiled = 6

// profiledSmall times Options.Puts small objects are put under a profile.
const profiledSmall = 20

// needs estimates the bytes that a run writes.
func (o Options) needs() int64 {
	perFace := int64(o.Rounds+1) * int64(o.Object)
	if o.Profile != "" {
		perFace += profiled * int64(o.Object)
	}
	stage := int64(o.Rounds+2) * int64(o.Stage)
	small := int64(o.Rounds+1) * int64(o.PutsMany+(1+stretchPuts+profiledSmall)*o.Puts) * 4 * int64(o.SmallSize)
	guards := int64(2*o.Rounds+1) * int64(len(variants)) * (int64(o.Stage)*3/2 + int64(o.PutsMany)*4*int64(o.SmallSize))
	return (2*perFace+stage)*3/2 + 2*small + guards + 3<<30 // segments are preallocated
}

// ErrSpace says that the disk has not enough room for a run.
var ErrSpace = errors.New("bench: not enough free space")

// Run measures everything. When ctx ends it stops soon and leaves nothing behind.
func Run(ctx context.Context, o Options) (_ *Report, err error) {
	o = o.withDefaults()
	// A server takes no relative directory for its configuration.
	if o.Dir, err = filepath.Abs(o.Dir); err != nil {
		return nil, err
	}
	var disk syscall.Statfs_t
	if err := syscall.Statfs(o.Dir, &disk); err != nil {
		return nil, fmt.Errorf("free space of %s: %w", o.Dir, err)
	}
	// Nodes take no client data below a twentieth of the filesystem.
	if free, need := int64(disk.Bavail)*disk.Bsize-int64(disk.Blocks)*disk.Bsize/20, o.needs(); free < need {
		return nil, fmt.Errorf("%w: %d MiB above the nodes' mark in %s, up to %d MiB are written", ErrSpace, free>>20, o.Dir, need>>20)
	}
	dir, err := os.MkdirTemp(o.Dir, "cairn-bench-")
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()

	began := time.Now()
	before, err := readMachine()
	if err != nil {
		return nil, err
	}
	rep := &Report{Began: began.UTC().Truncate(time.Second), Machine: describeMachine(o.Dir), Rounds: o.Rounds, ObjectBytes: o.Object, SmallBytes: o.SmallSize, Clients: o.Clients}
	if err := rep.measure(ctx, o, dir); err != nil {
		return nil, err
	}
	after, err := readMachine()
	if err != nil {
		return nil, err
	}
	rep.Elapsed = time.Since(began).Seconds()
	rep.Others = before.others(after)
	return rep, nil
}

// measure runs the parts one after the other; within a part, what is compared is
// measured in turns.
func (rep *Report) measure(ctx context.Context, o Options, dir string) (err error) {
	closing := func(what string, close func() error) {
		if cerr := close(); cerr != nil && err == nil {
			err = fmt.Errorf("close %s: %w", what, cerr)
		}
	}
	o.Progress("stages: warming up")
	st, err := newStages(ctx, o, dir)
	if err != nil {
		return err
	}
	rep.Stages, err = st.measure(ctx, o)
	closing("the stages", st.close)
	if err != nil {
		return err
	}
	rep.Limits = limits(rep.Stages)
	debug.FreeOSMemory() // what the stages held

	local, err := openLocal(ctx, dir)
	if err != nil {
		return err
	}
	defer closing("the store", local.close)
	faces := []face{local}
	if o.Cairn != "" {
		served, err := openServed(ctx, o.Cairn, dir)
		if err != nil {
			return err
		}
		defer closing("the server", served.close)
		faces = append(faces, served)
	}
	if rep.Whole, err = measureWhole(ctx, o, dir, faces, rep.Limits); err != nil {
		return err
	}
	if rep.Small, rep.Syncs, err = measureSmall(ctx, o, dir, faces); err != nil {
		return err
	}
	if o.Profile != "" {
		if err := profile(ctx, o, dir, local); err != nil {
			return err
		}
	}
	if len(o.Guarded) == 0 {
		return nil
	}
	guarded, err := startGuarded(o.Guarded, dir)
	if err != nil {
		return err
	}
	defer closing("the server of guards", guarded.close)
	rep.Guards, err = measureGuards(ctx, o, guarded)
	return err
}

// Figure is what several measurements of one thing came to.
type Figure struct {
	Median float64 `json:"median"`
	// Spread is half the distance between the quartiles.
	Spread float64 `json:"spread"`
	N      int     `json:"n"`
}

// NewFigure sums up measurements; of none it is zero.
func NewFigure(xs []float64) Figure {
	xs = slices.Clone(xs)
	slices.Sort(xs)
	return Figure{Median: quantile(xs, 0.5), Spread: (quantile(xs, 0.75) - quantile(xs, 0.25)) / 2, N: len(xs)}
}

// quantile interpolates linearly between the two nearest of sorted values.
func quantile(sorted []float64, q float64) float64 {
	if len(sorted) == 0 {
		return 0
	}
	at := q * float64(len(sorted)-1)
	lo := int(math.Floor(at))
	hi := min(lo+1, len(sorted)-1)
	return sorted[lo] + (at-float64(lo))*(sorted[hi]-sorted[lo])
}

// relative is the spread as a part of the median.
func (f Figure) relative() float64 {
	if f.Median == 0 {
		return 0
	}
	return f.Spread / f.Median
}

// touch lets a file pass through the page cache that is as long as what n bytes
// of an object take on nodes, and removes it: the memory it leaves free is what is
// taken next. Memory that a virtual machine has never touched costs several times
// as much to write to as what it has, and what others free and take is of both
// kinds.
func touch(dir string, n int) (err error) {
	f, err := os.CreateTemp(dir, "touch-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close(), os.Remove(f.Name())) }()
	var piece [transferSize]byte
	for left := n * allShards / dataShards; left > 0; left -= len(piece) {
		if _, err := f.Write(piece[:]); err != nil {
			return err
		}
	}
	return nil
}

// forget makes the kernel drop what it caches of the nodes' files below dir, so
// that a run does not take all memory there is. What is mapped, as parts of the
// index are, stays.
func forget(dir string) error {
	return filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil // a store is at work here
		}
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		f, err := os.Open(path)
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil {
			return err
		}
		defer f.Close()
		if err := unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_DONTNEED); err != nil {
			return fmt.Errorf("drop what is cached of %s: %w", path, err)
		}
		return nil
	})
}

// series collects measurements under names, in the order of their first.
type series[K comparable] struct {
	order  []K
	values map[K][]float64
}

func (s *series[K]) add(k K, v float64) {
	if s.values == nil {
		s.values = map[K][]float64{}
	}
	if _, ok := s.values[k]; !ok {
		s.order = append(s.order, k)
	}
	s.values[k] = append(s.values[k], v)
}

func (s *series[K]) figure(k K) Figure { return NewFigure(s.values[k]) }

// seconds of a duration, for arithmetic.
func seconds(d time.Duration) float64 { return d.Seconds() }
