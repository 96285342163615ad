package sim

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"time"

	"cairn/id"
	"cairn/store"
)

// content says what an object holds without holding it: a head of its own, then
// blocks that contents of one history share, so that chunks recur.
type content struct {
	name   uint64 // also the seed of the head
	head   int
	blocks []int
	text   bool // the head compresses
	size   int
}

const (
	sharedBlocks = 4
	blockBytes   = 5 << 19 // 2.5 MiB: several chunks
)

// blocks makes the shared blocks of a history as they are asked for.
type blocks struct {
	seed uint64
	made [sharedBlocks][]byte
}

func (b *blocks) get(i int) []byte {
	if b.made[i] == nil {
		b.made[i] = make([]byte, blockBytes)
		newSource(b.seed, "block", i).Read(b.made[i])
	}
	return b.made[i]
}

// bytes makes the content.
func (c *content) bytes(b *blocks) []byte {
	out := make([]byte, c.head, c.size)
	rng := rand.New(rand.NewPCG(c.name, 77))
	for i := 0; i < len(out); i += 8 {
		v := rng.Uint64()
		if c.text && i > 64 {
			v &= 0x0101010101010101
		}
		for j := i; j < min(i+8, len(out)); j++ {
			out[j] = byte(v)
			v >>= 8
		}
	}
	for _, i := range c.blocks {
		out = append(out, b.get(i)...)
	}
	return out
}

func (c *content) String() string { return fmt.Sprintf("%x(%d bytes)", c.name, c.size) }

// version is one version of an object in the model.
type version struct {
	marker bool
	body   *content   // nil for a marker
	id     id.Version // zero: it was never told
}

// state is what may be under one key.
type state struct {
	gone  bool      // there is no bucket
	stack []version // newest first
}

func (s state) key() string {
	var b strings.Builder
	if s.gone {
		return "no bucket"
	}
	for _, v := range s.stack {
		if v.marker {
			b.WriteString("marker")
		} else {
			fmt.Fprintf(&b, "%x", v.body.name)
		}
		// Two versions may have the same bytes, and a put of unknown outcome has an
		// ID that nobody was told.
		if v.id.IsZero() {
			b.WriteString("@? ")
		} else {
			fmt.Fprintf(&b, "@%x.%x ", v.id.Seq, v.id.Pos)
		}
	}
	return b.String()
}

// live is what a plain get finds; nil for nothing.
func (s state) live() *version {
	if s.gone || len(s.stack) == 0 || s.stack[0].marker {
		return nil
	}
	return &s.stack[0]
}

func (s state) push(v version) state {
	return state{stack: append([]version{v}, s.stack...)}
}

func (s state) without(i int) state {
	out := state{stack: make([]version, 0, len(s.stack)-1)}
	out.stack = append(out.stack, s.stack[:i]...)
	out.stack = append(out.stack, s.stack[i+1:]...)
	return out
}

// op is one change that a client asks for.
type op struct {
	kind    opKind
	body    *content
	version id.Version // of a purge
	create  bool       // a put that asks that there is nothing yet
	parts   bool       // a put in several requests
	got     id.Version // told with the acknowledgement
	quota   int        // of the item's bucket, in bytes; 0: none
	locked  bool       // the item's versions are retained
	from    *item      // a put of what is current there, which the store copies
	move    bool       // and which is deleted there at the same time
}

type opKind int

const (
	opPut opKind = iota
	opDelete
	opUndelete
	opPurge
	opMake
	opUnmake
)

func (k opKind) String() string {
	return [...]string{"put", "delete", "undelete", "purge", "make bucket", "remove bucket"}[k]
}

// after is the state that the op makes of s, or the error that it must end with.
func (o *op) after(s state, versioned bool) (state, error) {
	if o.kind == opMake {
		if !s.gone {
			return s, store.ErrBucketExists
		}
		return state{}, nil
	}
	if s.gone {
		return s, store.ErrNoBucket
	}
	switch o.kind {
	case opPut:
		if o.create && s.live() != nil {
			return s, store.ErrPrecondition
		}
		if o.quota > 0 && o.body.size > o.quota {
			return s, store.ErrQuota
		}
		v := version{body: o.body, id: o.got}
		if versioned {
			return s.push(v), nil
		}
		return state{stack: []version{v}}, nil
	case opDelete:
		if s.live() == nil {
			return s, store.ErrNoObject
		}
		return s.push(version{marker: true, id: o.got}), nil
	case opUndelete:
		switch {
		case len(s.stack) == 0:
			return s, store.ErrNoObject
		case !s.stack[0].marker:
			return s, store.ErrPrecondition
		case len(s.stack) == 1:
			return s, store.ErrNoObject
		}
		return s.without(0), nil
	case opPurge:
		for i, v := range s.stack {
			if v.id == o.version && o.locked && !v.marker {
				return s, store.ErrLocked
			}
			if v.id == o.version {
				return s.without(i), nil
			}
		}
		return s, store.ErrNoVersion
	case opUnmake:
		if s.live() != nil {
			return s, store.ErrBucketNotEmpty
		}
		return state{gone: true}, nil
	}
	panic("sim: unknown op")
}

// definite are the refusals that say something about what is stored.
var definite = []error{store.ErrNoBucket, store.ErrNoObject, store.ErrNoVersion, store.ErrBucketExists, store.ErrBucketNotEmpty, store.ErrPrecondition, store.ErrQuota, store.ErrLocked}

// refusals say that nothing was done, and nothing else.
var refusals = []error{store.ErrBusy, store.ErrFull, store.ErrUnavailable, store.ErrSuperseded, store.ErrClosed, store.ErrRetry}

func isAny(err error, list []error) error {
	for _, e := range list {
		if errors.Is(err, e) {
			return e
		}
	}
	return nil
}

// item is one key of one client, and what may be under it. It belongs to its
// client, and to the full check while no client is inside.
type item struct {
	bucket, key string
	versioned   bool
	quota       int  // of its bucket, in bytes; 0: none
	locked      bool // its versions are retained for longer than the history lasts
	states      []state
	pending     []pending
	move        *move // whose outcome is unknown; nothing is done to the item meanwhile
}

// pending is a write whose outcome was given up as unknown: it may come into
// being at the next start, unless a later log pack was completed before.
type pending struct {
	op       op
	gw       *gateway
	answered time.Time
	opens    int // starts that there had been
}

func newItem(bucket, key string, versioned bool, s state) *item {
	return &item{bucket: bucket, key: key, versioned: versioned, states: []state{s}}
}

func (it *item) String() string { return it.bucket + "/" + it.key }

func (it *item) describe() string {
	var b strings.Builder
	for i, s := range it.states {
		if i > 0 {
			b.WriteString(" | ")
		}
		b.WriteString("[" + s.key() + "]")
	}
	for _, p := range it.pending {
		fmt.Fprintf(&b, " +unknown %v", p.op.kind)
		if p.op.body != nil {
			fmt.Fprintf(&b, " %v", p.op.body)
		}
	}
	return b.String()
}

// add joins a state to those that are possible.
func add(states []state, s state) []state {
	k := s.key()
	for _, have := range states {
		if have.key() == k {
			return states
		}
	}
	return append(states, s)
}

// may adds what the op would make of each possible state.
func (it *item) may(o op) {
	o.got = id.Version{}
	states := append([]state(nil), it.states...)
	for _, s := range it.states {
		if o.kind == opUnmake && s.live() == nil && !s.gone {
			states = add(states, state{}) // it purges first, then removes
		}
		if n, err := o.after(s, it.versioned); err == nil {
			states = add(states, n)
		}
	}
	it.states = states
}

// settle takes in the unknown writes that a start may have brought to light.
func (it *item) settle(opens int) {
	keep := it.pending[:0]
	for _, p := range it.pending {
		switch {
		case p.gw.ackedAfter(p.answered):
			// A later log pack is complete: it never will be.
		case opens > p.opens:
			it.may(p.op)
		default:
			keep = append(keep, p)
		}
	}
	it.pending = keep
}

// acknowledged narrows to the states from which the op succeeds. False means
// that there is none.
func (it *item) acknowledged(o op) bool {
	var states []state
	for _, s := range it.states {
		if n, err := o.after(s, it.versioned); err == nil {
			states = add(states, n)
		}
	}
	if states == nil {
		return false
	}
	it.states = states
	return true
}

// refused narrows to the states from which the op ends with that error.
func (it *item) refused(o op, why error) bool {
	return it.keep(func(s state) bool {
		_, err := o.after(s, it.versioned)
		return err == why
	})
}

// keep narrows to the states for which ok holds.
func (it *item) keep(ok func(state) bool) bool {
	var states []state
	for _, s := range it.states {
		if ok(s) {
			states = append(states, s)
		}
	}
	if states == nil {
		return false
	}
	it.states = states
	return true
}

// move is a rename whose outcome is unknown: both of its halves were done, or
// neither.
type move struct {
	from, to *item
	body     *content
}

// certain reports whether it is known what is under a key.
func (it *item) certain() bool { return len(it.states) == 1 && len(it.pending) == 0 }

// settled ends a move of which both ends are known again. It says whether they
// agree.
func (m *move) settled() (done, agree bool) {
	if !m.from.certain() || !m.to.certain() {
		return false, true
	}
	m.from.move, m.to.move = nil, nil
	gone := m.from.states[0].live() == nil
	live := m.to.states[0].live()
	return true, gone == (live != nil && live.body.name == m.body.name)
}
