package crashfs

import (
	"fmt"
	"os"
	"path"
	"strings"
	"sync"
	"time"
)

// Kind is a kind of operation.
type Kind int

// The kinds, one for each method of vfs.FS and vfs.File but FS.Close.
const (
	OpAny Kind = iota // in a Rule only
	OpOpen
	OpMkdir
	OpRemove
	OpRename
	OpReadDir
	OpStat
	OpSyncDir
	OpLock
	OpUsage
	OpRead
	OpWrite
	OpWritev
	OpDatasync
	OpSync
	OpWriteback
	OpAllocate
	OpPunch
	OpTruncate
	OpFileStat
	OpClose
	kindCount
)

var kindNames = [kindCount]string{
	"any", "open", "mkdir", "remove", "rename", "readdir", "stat", "syncdir", "lock", "usage",
	"read", "write", "writev", "datasync", "sync", "writeback", "allocate", "punch", "truncate", "fstat", "close",
}

func (k Kind) String() string { return kindNames[k] }

// Op is one operation.
type Op struct {
	Kind Kind
	Name string // of a File: the name it was opened under
	To   string // of a rename
	Flag int    // of an open
	Off  int64  // of a truncate: the size
	Len  int64
	N    int // counts all operations of the volume, from 1, crashes over
	Nth  int // counts those of its kind
}

// String gives the line that stands in a trace: the operation without its counts.
func (o Op) String() string {
	switch o.Kind {
	case OpOpen:
		how := ""
		for _, f := range []struct {
			flag int
			name string
		}{{os.O_RDWR, " rdwr"}, {os.O_CREATE, " create"}, {os.O_EXCL, " excl"}, {os.O_TRUNC, " trunc"}} {
			if o.Flag&f.flag != 0 {
				how += f.name
			}
		}
		return "open " + o.Name + how
	case OpRename:
		return "rename " + o.Name + " " + o.To
	case OpRead, OpWrite, OpWritev, OpWriteback, OpAllocate, OpPunch:
		return fmt.Sprintf("%v %s %d+%d", o.Kind, o.Name, o.Off, o.Len)
	case OpTruncate:
		return fmt.Sprintf("truncate %s %d", o.Name, o.Off)
	}
	return o.Kind.String() + " " + o.Name
}

// Fault is what happens to one operation. The zero Fault is none.
type Fault struct {
	// Delay and Wait hold the operation up before it does anything; Wait until
	// the channel is closed or gives a value. A crash in the meantime makes it
	// fail with [ErrCrashed] when it goes on.
	Delay time.Duration
	Wait  <-chan struct{}

	// Err is returned, and the operation is not done, but for Torn and Drop.
	Err error
	// Torn is how many bytes a write that fails with Err writes before.
	Torn int
	// Drop makes a Datasync or Sync that fails with Err do what Linux does after
	// an I/O error: the pages count as clean. They can be read until the power
	// goes, the next sync answers nil, and they were never written.
	Drop bool

	// Lie makes Datasync, Sync and SyncDir answer nil and do nothing.
	Lie bool
	// Flip lists bits that a ReadAt gets wrong, counted in what it reads, the
	// lowest of each byte first.
	Flip []int64
}

// Injector is asked before each operation, by the goroutine that does it and
// with no lock held; it may be asked by several at once, and may use the FS.
type Injector func(Op) Fault

// Inject sets the injector of the volume, nil for none. It stays over crashes.
func (f *FS) Inject(in Injector) {
	f.v.disk.mu.Lock()
	defer f.v.disk.mu.Unlock()
	f.v.inject = in
}

// Rule gives a fault to some of the operations that match it.
type Rule struct {
	Kind  Kind   // OpAny: every kind
	Name  string // a pattern of path.Match for the whole name; "": every name
	From  int    // the first of the matching operations that gets it, from 1; 0 is 1
	Count int    // how many get it; 0: all from then on
	Fault Fault
}

// Rules is the injector that gives an operation the fault of the first rule
// which has one for it. Every rule counts every operation that matches it. It
// panics on a bad pattern.
func Rules(rules ...Rule) Injector {
	for _, r := range rules {
		if _, err := path.Match(r.Name, ""); err != nil {
			panic(fmt.Sprintf("crashfs: pattern %q: %v", r.Name, err))
		}
	}
	var mu sync.Mutex
	seen := make([]int, len(rules))
	return func(op Op) Fault {
		mu.Lock()
		defer mu.Unlock()
		var fault Fault
		found := false
		for i, r := range rules {
			if r.Kind != OpAny && r.Kind != op.Kind {
				continue
			}
			if ok, _ := path.Match(r.Name, op.Name); r.Name != "" && !ok {
				continue
			}
			seen[i]++
			from := max(r.From, 1)
			if !found && seen[i] >= from && (r.Count == 0 || seen[i] < from+r.Count) {
				fault, found = r.Fault, true
			}
		}
		return fault
	}
}

// begin counts an operation and lets it meet its fault. After nil the lock is
// held and alive said nil; otherwise the lock is not held.
func (v *volume) begin(op Op, alive func() error) (Fault, error) {
	mu := &v.disk.mu
	mu.Lock()
	if err := alive(); err != nil {
		mu.Unlock()
		return Fault{}, err
	}
	if v.stop >= 0 && v.ops >= v.stop {
		v.halted = true
		mu.Unlock()
		return Fault{}, ErrCrashed
	}
	v.ops++
	v.kinds[op.Kind]++
	op.N, op.Nth = v.ops, v.kinds[op.Kind]
	if v.traced {
		v.trace = append(v.trace, op)
	}
	in := v.inject
	if in == nil {
		return Fault{}, nil
	}
	mu.Unlock()
	fault := in(op)
	if fault.Delay > 0 {
		time.Sleep(fault.Delay)
	}
	if fault.Wait != nil {
		<-fault.Wait
	}
	if fault.Err != nil {
		return fault, fault.Err
	}
	mu.Lock()
	if err := alive(); err != nil {
		mu.Unlock()
		return Fault{}, err
	}
	return fault, nil
}

func (f *FS) begin(op Op) (Fault, error) { return f.v.begin(op, f.alive) }

// Ops returns how many operations the volume has begun.
func (f *FS) Ops() int {
	f.v.disk.mu.Lock()
	defer f.v.disk.mu.Unlock()
	return f.v.ops
}

// StopAfter makes every operation after the n-th of the volume fail with
// [ErrCrashed], until the next crash or kill; -1 takes it back.
func (f *FS) StopAfter(n int) {
	f.v.disk.mu.Lock()
	defer f.v.disk.mu.Unlock()
	f.v.stop = n
}

// StartTrace begins to record operations, forgetting those recorded before.
func (f *FS) StartTrace() {
	f.v.disk.mu.Lock()
	defer f.v.disk.mu.Unlock()
	f.v.traced, f.v.trace = true, nil
}

// Trace returns the operations since StartTrace.
func (f *FS) Trace() []Op {
	f.v.disk.mu.Lock()
	defer f.v.disk.mu.Unlock()
	return append([]Op(nil), f.v.trace...)
}

// TraceText returns the operations since StartTrace, one on each line.
func (f *FS) TraceText() string {
	var b strings.Builder
	for _, op := range f.Trace() {
		b.WriteString(op.String())
		b.WriteByte('\n')
	}
	return b.String()
}
