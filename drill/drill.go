// Package drill breaks a store on purpose and holds what comes of it against
// what was promised.
//
// It drives the real program: processes that serve and are killed, commands,
// requests over HTTP, and files in the directories of the nodes. A drill works in
// a scratch directory that it makes, on a store that it begins there or on a copy
// of one that it is given; that one is locked while it is copied, and only read.
//
// A [Scenario] breaks one thing. What should come of it is known beforehand, as
// plain values: every version of every object with the hash of its bytes. Whether
// an answer agrees is decided by functions that ask nobody (judge.go), so that a
// drill that cannot fail would be found by their tests.
//
// What stays as it was is no proof against power cuts, failing disks or the order
// of events inside the engine: [NotTried] names what no drill can do, and why.
package drill

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// Config describes a drill. A zero optional field means its default.
type Config struct {
	Program string        // the cairn program that is drilled; required
	Scratch string        // where the scratch directory is made; default the system's for temporary files
	Data    string        // a store to drill a copy of; default: one that is begun
	KeyFile string        // the key file of that store; required with Data
	Seed    uint64        // decides places, times, sizes and bytes
	Size    int64         // bytes of objects that are written before anything is broken; default [DefaultSize]
	Only    []string      // names of scenarios; default all
	Keep    bool          // leave the scratch directory
	Tell    func(*Result) // called when a scenario has ended; may be nil
}

// DefaultSize is how much is written when nothing else is said.
const DefaultSize = 24 << 20

// MinSize and MaxSize bound Config.Size. With less than the first there would be no
// large objects.
const (
	MinSize = 4 << 20
	MaxSize = 1 << 40
)

// Outcome is how a scenario ended.
type Outcome string

// The outcomes.
const (
	Proven  Outcome = "proven"
	Broken  Outcome = "broken"  // a promise was not kept
	Skipped Outcome = "skipped" // it makes no sense on this store
	NotRun  Outcome = "not run" // what it needed failed: it says nothing of the store
)

// Evidence is one thing that was done or seen.
type Evidence struct {
	Kind string  `json:"kind"` // "broke", "found", "repaired", "read back", "note"
	Text string  `json:"text"`
	At   float64 `json:"at_seconds"` // since the scenario began
}

// Result is what came of one scenario.
type Result struct {
	Name     string     `json:"name"`
	Hazards  string     `json:"hazards"`
	Breaks   string     `json:"breaks"`
	Promise  string     `json:"promise"`
	Outcome  Outcome    `json:"outcome"`
	Why      string     `json:"why,omitempty"` // when it is not proven
	Seconds  float64    `json:"seconds"`
	Read     int        `json:"objects_read"`
	Bytes    int64      `json:"bytes_read"`
	Evidence []Evidence `json:"evidence"`
}

// Report is what came of a drill.
type Report struct {
	Seed     uint64          `json:"seed"`
	Store    string          `json:"store"` // what was drilled
	Objects  int             `json:"objects"`
	Size     int64           `json:"bytes"`
	Scratch  string          `json:"scratch,omitempty"` // when it was kept
	Seconds  float64         `json:"seconds"`
	Results  []*Result       `json:"results"`
	NotTried []Untried       `json:"not_tried"`
	Counts   map[Outcome]int `json:"counts"`
}

// Scenario is one way to break a store, and what was promised of it.
type Scenario struct {
	Name    string `json:"name"`
	Hazards string `json:"hazards"` // numbers of docs/hazards.md
	Breaks  string `json:"breaks"`
	Promise string `json:"promise"`

	run func(ctx context.Context, r *rig) error
}

// Untried is what no drill can try, and what does.
type Untried struct {
	Hazards string `json:"hazards"`
	What    string `json:"what"`
	Why     string `json:"why"`
}

// broken is a promise that was not kept. Every other error of a scenario says
// that the drill itself could not go on.
type broken struct{ why string }

func (b *broken) Error() string { return b.why }

func brokenf(format string, a ...any) error { return &broken{fmt.Sprintf(format, a...)} }

// skipped is why a scenario makes no sense on this store.
type skipped struct{ why string }

func (s *skipped) Error() string { return s.why }

// Find returns the scenarios with these names, in the order of the drill; all
// when there is none.
func Find(names []string) ([]Scenario, error) {
	all := Scenarios()
	if len(names) == 0 {
		return all, nil
	}
	var out []Scenario
	for _, s := range all {
		if slices.Contains(names, s.Name) {
			out = append(out, s)
		}
	}
	for _, name := range names {
		if !slices.ContainsFunc(all, func(s Scenario) bool { return s.Name == name }) {
			return nil, fmt.Errorf("there is no scenario %q", name)
		}
	}
	return out, nil
}

// Run drills. An error says that it could not be run to its end; the report then
// has what was done until then.
func Run(ctx context.Context, cfg Config) (rep Report, err error) {
	if cfg.Size == 0 {
		cfg.Size = DefaultSize
	}
	if cfg.Size < MinSize || cfg.Size > MaxSize {
		return rep, fmt.Errorf("a drill writes %d to %d bytes, not %d", int64(MinSize), int64(MaxSize), cfg.Size)
	}
	scenarios, err := Find(cfg.Only)
	if err != nil {
		return rep, err
	}
	began := time.Now()
	rep = Report{Seed: cfg.Seed, Results: []*Result{}, NotTried: NotTried(), Counts: map[Outcome]int{}}
	r, err := newRig(cfg)
	if err != nil {
		return rep, err
	}
	defer func() {
		r.halt()
		rep.Seconds = time.Since(began).Seconds()
		if cfg.Keep {
			rep.Scratch = r.dir
			err = errors.Join(err, r.forgetKey())
			return
		}
		err = errors.Join(err, os.RemoveAll(r.dir))
	}()
	if err := r.makeBase(ctx); err != nil {
		if b, ok := errors.AsType[*broken](err); ok && ctx.Err() == nil {
			rep.add(&Result{Name: "begin", Breaks: "nothing", Promise: "a store can be begun and written to", Outcome: Broken, Why: b.why, Evidence: r.evidence}, cfg.Tell)
			return rep, nil
		}
		return rep, fmt.Errorf("before anything was broken: %w", err)
	}
	rep.Store = "a store that the drill began"
	if cfg.Data != "" {
		rep.Store = "a copy of " + cfg.Data
	}
	for _, v := range r.base.versions {
		if !v.Deleted {
			rep.Objects++
			rep.Size += v.Size
		}
	}
	for _, s := range scenarios {
		res, err := r.try(ctx, s)
		if ctx.Err() != nil {
			return rep, ctx.Err()
		}
		rep.add(res, cfg.Tell)
		if err != nil {
			return rep, err
		}
	}
	return rep, nil
}

func (rep *Report) add(res *Result, tell func(*Result)) {
	rep.Results = append(rep.Results, res)
	rep.Counts[res.Outcome]++
	if tell != nil {
		tell(res)
	}
}

// try runs one scenario on a fresh copy of the base. An error is about the
// scratch directory, and ends the drill.
func (r *rig) try(ctx context.Context, s Scenario) (*Result, error) {
	began := time.Now()
	r.begin(s.Name)
	res := &Result{Name: s.Name, Hazards: s.Hazards, Breaks: s.Breaks, Promise: s.Promise, Outcome: Proven}
	err := r.fresh()
	if err == nil {
		err = s.run(ctx, r)
	}
	r.halt()
	if lerr := r.checkLogs(); lerr != nil {
		err = errors.Join(lerr, err)
	}
	res.Seconds, res.Evidence, res.Read, res.Bytes = time.Since(began).Seconds(), r.evidence, r.read, r.readBytes
	if err != nil {
		res.Why = err.Error()
		res.Outcome = NotRun
		if _, ok := errors.AsType[*broken](err); ok {
			res.Outcome = Broken
		} else if _, ok := errors.AsType[*skipped](err); ok {
			res.Outcome = Skipped
		}
	}
	return res, os.RemoveAll(r.data)
}

// rig is the scratch directory of a drill and what is known of the store in it.
type rig struct {
	cfg    Config
	dir    string // the scratch directory
	config string // XDG_CONFIG_HOME of everything that is run
	key    string // the key file
	origin string // the store as it is before anything is broken
	data   string // the one that is broken

	base   truth // what origin holds
	losses int   // how many lost nodes it survives
	nodes  []string
	ours   map[name]bool // objects of the drill's own, which it can write again
	bucket string        // what names of the drill's own buckets begin with

	// Of the scenario that runs.
	rng       *rand.Rand
	truth     truth
	server    *server
	logs      []string
	evidence  []Evidence
	began     time.Time
	read      int
	readBytes int64
}

func newRig(cfg Config) (*rig, error) {
	parent := cfg.Scratch
	if parent == "" {
		parent = os.TempDir()
	}
	if err := os.MkdirAll(parent, 0o700); err != nil {
		return nil, err
	}
	parent, err := filepath.Abs(parent)
	if err != nil {
		return nil, err
	}
	if cfg.Data != "" {
		if err := refuseInside(cfg.Data, parent); err != nil {
			return nil, err
		}
	}
	dir, err := os.MkdirTemp(parent, "cairn-drill-")
	if err != nil {
		return nil, err
	}
	r := &rig{cfg: cfg, dir: dir, config: filepath.Join(dir, "config"), origin: filepath.Join(dir, "before"), data: filepath.Join(dir, "data"),
		bucket: fmt.Sprintf("drill-%08x-", uint32(cfg.Seed)), ours: map[name]bool{}}
	for _, d := range []string{"config", "home", "logs"} {
		if err := os.Mkdir(filepath.Join(dir, d), 0o700); err != nil {
			return nil, errors.Join(err, os.RemoveAll(dir))
		}
	}
	r.begin("")
	return r, nil
}

// begin gives a scenario a source of chance of its own, so that it does the same
// whatever else is run.
func (r *rig) begin(scenario string) {
	h := sha256.Sum256([]byte(scenario))
	r.rng = rand.New(rand.NewPCG(r.cfg.Seed, binary.LittleEndian.Uint64(h[:])))
	r.evidence, r.logs, r.read, r.readBytes, r.began = []Evidence{}, nil, 0, 0, time.Now()
	r.truth = r.base.clone()
}

func (r *rig) say(kind, format string, a ...any) {
	r.evidence = append(r.evidence, Evidence{kind, fmt.Sprintf(format, a...), time.Since(r.began).Seconds()})
}

func (r *rig) node(name string) string { return filepath.Join(r.data, "nodes", name) }

// pick draws n of the names.
func (r *rig) pick(names []string, n int) []string {
	out := slices.Clone(names)
	r.rng.Shuffle(len(out), func(i, j int) { out[i], out[j] = out[j], out[i] })
	out = out[:min(n, len(out))]
	slices.Sort(out)
	return out
}

// forgetKey takes what opens the store out of a scratch directory that is kept,
// when it is a copy of somebody's.
func (r *rig) forgetKey() error {
	if r.cfg.Data == "" || r.key == "" {
		return nil
	}
	return os.Remove(r.key)
}

// checkLogs finds what no server may say, whatever was done to it.
func (r *rig) checkLogs() error {
	for _, log := range r.logs {
		f, err := os.Open(log)
		if err != nil {
			return err
		}
		b, err := io.ReadAll(io.LimitReader(f, 16<<20))
		f.Close()
		if err != nil {
			return err
		}
		for _, bad := range []string{"panic:", "fatal error:", "DATA RACE", "SIGBUS", "SIGSEGV"} {
			if i := strings.Index(string(b), bad); i >= 0 {
				return brokenf("a process ended in a fault: %.500s", b[i:])
			}
		}
	}
	return nil
}
