package sim

import (
	"fmt"
	"sync"
	"time"

	"github.com/anishathalye/porcupine"

	"cairn/store"
)

// register is a key that all clients write. What they see must be explained by
// some order of the operations in which each lies between its call and its
// answer; porcupine looks for one.
type register struct {
	key string

	mu   sync.Mutex
	ops  []porcupine.Operation
	open []int // ops whose outcome is unknown and not decided by a start yet
}

type regKind int

const (
	regGet regKind = iota
	regPut
	regCreate // put if there is nothing
	regSwap   // put if the ETag matches
	regDelete
)

func (k regKind) String() string {
	return [...]string{"get", "put", "create", "swap", "delete"}[k]
}

// regIn and regOut are an operation of a register and its answer. Values are
// names of contents; zero is nothing.
type regIn struct {
	kind  regKind
	value uint64
	want  uint64 // of a swap: what must be there
}

type regOut struct {
	ok      bool
	failed  bool // a precondition did not hold, or there was nothing to delete
	unknown bool
	value   uint64 // of a get
}

// note enters an operation. A refused one had no effect and says nothing.
func (r *register) note(client int, in regIn, out regOut, from, to time.Time) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if out.unknown {
		r.open = append(r.open, len(r.ops))
	}
	r.ops = append(r.ops, porcupine.Operation{ClientId: client, Input: in, Output: out, Call: from.UnixNano(), Return: to.UnixNano()})
}

// decided ends what was unknown: a start has found it, or it never was.
func (r *register) decided(at time.Time) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, i := range r.open {
		r.ops[i].Return = max(r.ops[i].Return, at.UnixNano())
	}
	r.open = nil
}

// registerModel is a register that may or may not take an unknown write.
var registerModel = porcupine.NondeterministicModel{
	Init: func() []any { return []any{uint64(0)} },
	Step: func(state, input, output any) []any {
		s, in, out := state.(uint64), input.(regIn), output.(regOut)
		next, ok := s, true
		switch in.kind {
		case regGet:
			if out.ok && out.value == s {
				return []any{s}
			}
			return nil
		case regPut:
			next = in.value
		case regCreate:
			next, ok = in.value, s == 0
		case regSwap:
			next, ok = in.value, s == in.want
		case regDelete:
			next, ok = 0, s != 0
		}
		switch {
		case out.unknown && ok:
			return []any{s, next}
		case out.unknown:
			return []any{s}
		case out.failed && !ok:
			return []any{s}
		case out.ok && ok:
			return []any{next}
		}
		return nil
	},
	Equal: func(a, b any) bool { return a == b },
	DescribeOperation: func(in, out any) string {
		i, o := in.(regIn), out.(regOut)
		return fmt.Sprintf("%v %x (if %x): ok %v, failed %v, unknown %v, %x", i.kind, i.value, i.want, o.ok, o.failed, o.unknown, o.value)
	},
}

// linearizable looks for an order that explains what the clients saw.
func (r *register) linearizable() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	model := registerModel.ToModel()
	switch porcupine.CheckOperationsTimeout(model, r.ops, 20*time.Second) {
	case porcupine.Illegal:
		text := ""
		for _, o := range r.ops {
			text += fmt.Sprintf("\n  client %d, %v to %v: %s", o.ClientId, time.Unix(0, o.Call).UTC().Format("04:05.000000"), time.Unix(0, o.Return).UTC().Format("04:05.000000"),
				registerModel.DescribeOperation(o.Input, o.Output))
		}
		return fmt.Errorf("no order explains what was seen of %s:%s", r.key, text)
	}
	return nil
}

// outcome sorts the error of a write of a register.
func outcome(err error, dead bool) (out regOut, refused bool) {
	switch {
	case dead, isAny(err, []error{store.ErrUnknown}) != nil:
		return regOut{unknown: true}, false
	case err == nil:
		return regOut{ok: true}, false
	case isAny(err, []error{store.ErrPrecondition, store.ErrNoObject}) != nil:
		return regOut{failed: true}, false
	}
	return regOut{}, true
}
