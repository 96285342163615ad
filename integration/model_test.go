package integration

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"net/http"
	"slices"
	"strings"
	"sync"
)

// content describes a body; its bytes are computed when they are needed.
type content struct {
	seed uint64
	size int
	head int    // so many bytes at the beginning are those of another content,
	from uint64 // with this seed
	text bool   // compressible
}

func fill(b []byte, seed uint64, text bool) {
	var key [32]byte
	for i := range 8 {
		key[i], key[8+i] = byte(seed>>(8*i)), byte(seed>>(8*i))^0x5a
	}
	_, _ = rand.NewChaCha8(key).Read(b) // never fails
	if text {
		for i, c := range b {
			b[i] = 'a' + c&7
		}
	}
}

func (c content) bytes() []byte {
	b := make([]byte, c.size)
	fill(b[:c.head], c.from, c.text)
	fill(b[c.head:], c.seed, c.text)
	return b
}

// sharedContents are bodies that all clients put, so that deduplication, also
// between streams in flight, has work.
const sharedContents = 6

func sharedContent(i int) content {
	return content{seed: 1000 + uint64(i), size: 1<<20 + i*(5<<20)/sharedContents + i}
}

// newContent draws a body of 0 B to 6 MiB: small ones travel in the log, long
// ones in packs of their own.
func newContent(rng *rand.Rand) content {
	c := content{seed: rng.Uint64(), text: rng.IntN(4) == 0}
	switch p := rng.IntN(100); {
	case p < 5:
		c.size = 0
	case p < 45:
		c.size = 1 + rng.IntN(8<<10)
	case p < 60:
		c.size = rng.IntN(128<<10 + 2) // about what still travels in the log
	case p < 75:
		c.size = 128<<10 + rng.IntN(1<<20)
	case p < 85:
		c.size = 1<<20 + rng.IntN(5<<20+1)
	case p < 95:
		return sharedContent(rng.IntN(sharedContents))
	default: // begins as a shared one
		s := sharedContent(rng.IntN(sharedContents))
		c.text, c.from, c.head = s.text, s.seed, s.size/2+rng.IntN(s.size/2)
		c.size = c.head + rng.IntN(1<<20)
	}
	return c
}

// state is what one key may be.
type state struct {
	kind kind
	body content // present: what is read; deleted: what undelete brings back
}

type kind int

const (
	absent kind = iota // never put
	present
	deleted
)

// entry is a key of the model: everything it may be. More than one state means
// that an outcome is unknown. Only one client writes a key, one request at a time.
type entry struct {
	states []state
}

func (e *entry) add(s state) {
	if !slices.Contains(e.states, s) {
		e.states = append(e.states, s)
	}
}

func (e *entry) may(k kind) bool {
	return slices.ContainsFunc(e.states, func(s state) bool { return s.kind == k })
}

// journal is the model of a store, and the counts of a test.
type journal struct {
	mu   sync.Mutex
	keys map[string]*entry

	acks, unknowns, refusals, reads, cutReads int
	loud                                      map[string]int // answers of a server that nobody was stopping
	written                                   int64          // bytes of bodies that may have been stored
	faults                                    []string       // what must not be
}

func newJournal() *journal { return &journal{keys: map[string]*entry{}, loud: map[string]int{}} }

func (j *journal) fault(format string, args ...any) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.faults = append(j.faults, fmt.Sprintf(format, args...))
}

func (j *journal) entry(key string) *entry {
	j.mu.Lock()
	defer j.mu.Unlock()
	e := j.keys[key]
	if e == nil {
		e = &entry{states: []state{{}}}
		j.keys[key] = e
	}
	return e
}

// wrote counts a write's outcome. doomed says that the server was being stopped.
func (j *journal) wrote(what string, r reply, size int, doomed bool) {
	j.mu.Lock()
	defer j.mu.Unlock()
	switch r.answer {
	case acked:
		j.acks++
		j.written += int64(size)
	case unknown:
		j.unknowns++
		j.written += int64(size)
		if !doomed {
			j.loud[what+": "+r.String()]++
		}
	case refused:
		j.refusals++
		if !doomed && r.status/100 == 5 {
			j.loud[what+": "+r.String()]++
		}
	}
}

// worker is one client with keys of its own.
type worker struct {
	j      *journal
	rng    *rand.Rand
	prefix string
	keys   int
	srv    *server
	c      *client
	maxPut int // bytes; 0: no bound
	draw   func(*rand.Rand) content
	mayPut func() bool   // nil: always; else a get takes the place of a put that may not be
	onAck  func()        // after each acknowledged write
	stop   chan struct{} // closed: no new request
}

// run sends requests until stop is closed or the server is gone.
func (w *worker) run() {
	for {
		select {
		case <-w.stop:
			return
		case <-w.srv.exited:
			return
		default:
		}
		key := fmt.Sprintf("%s/k%02d", w.prefix, w.rng.IntN(w.keys))
		switch p := w.rng.IntN(100); {
		case p < 50 && (w.mayPut == nil || w.mayPut()):
			w.put(key)
		case p < 50:
			w.get(key)
		case p < 60:
			w.delete(key)
		case p < 67:
			w.undelete(key)
		case p < 72:
			w.list()
		case p < 88:
			w.get(key)
		default:
			w.getRange(key)
		}
	}
}

func (w *worker) put(key string) {
	draw := newContent
	if w.draw != nil {
		draw = w.draw
	}
	body := draw(w.rng)
	if w.maxPut > 0 && body.size > w.maxPut {
		body = content{seed: body.seed, size: body.size % w.maxPut, text: body.text}
	}
	w.putBody(key, body)
}

func (w *worker) putBody(key string, body content) {
	e := w.j.entry(key)
	r := w.c.put(key, body.bytes())
	w.j.wrote("put", r, body.size, w.srv.doomed.Load())
	switch {
	case r.answer == acked:
		e.states = []state{{present, body}}
		if w.onAck != nil {
			w.onAck()
		}
	case r.answer == unknown:
		e.add(state{present, body})
	case r.status/100 == 4:
		w.j.fault("put %s of %d bytes: %v", key, body.size, r)
	}
}

func (w *worker) delete(key string) {
	e := w.j.entry(key)
	r := w.c.delete(key)
	if r.answer == refused && r.status == http.StatusNotFound {
		if !e.may(absent) && !e.may(deleted) {
			w.j.fault("delete %s: %v, and it is there: %+v", key, r, e.states)
		}
		return
	}
	w.j.wrote("delete", r, 0, w.srv.doomed.Load())
	var after []state
	for _, s := range e.states {
		if s.kind == present {
			after = append(after, state{deleted, s.body})
		}
	}
	switch {
	case r.answer == acked && len(after) == 0:
		w.j.fault("delete %s is acknowledged, and it cannot be there: %+v", key, e.states)
	case r.answer == acked:
		e.states = after
	case r.answer == unknown:
		for _, s := range after {
			e.add(s)
		}
	case r.status/100 == 4:
		w.j.fault("delete %s: %v", key, r)
	}
}

func (w *worker) undelete(key string) {
	e := w.j.entry(key)
	r := w.c.undelete(key)
	switch {
	case r.answer == refused && r.status == http.StatusNotFound:
		if !e.may(absent) {
			w.j.fault("undelete %s: %v, and there is something to bring back: %+v", key, r, e.states)
		}
		return
	case r.answer == refused && r.status == http.StatusPreconditionFailed:
		if !e.may(present) {
			w.j.fault("undelete %s: %v, and it is not there: %+v", key, r, e.states)
		}
		return
	}
	w.j.wrote("undelete", r, 0, w.srv.doomed.Load())
	var after []state
	for _, s := range e.states {
		if s.kind == deleted {
			after = append(after, state{present, s.body})
		}
	}
	switch {
	case r.answer == acked && len(after) == 0:
		w.j.fault("undelete %s is acknowledged, and it cannot be deleted: %+v", key, e.states)
	case r.answer == acked:
		e.states = after
	case r.answer == unknown:
		for _, s := range after {
			e.add(s)
		}
	case r.status/100 == 4:
		w.j.fault("undelete %s: %v", key, r)
	}
}

// read counts a read and reports whether its answer is to be judged: a server
// that is being stopped may leave it undone.
func (w *worker) read(what, key string, r reply) bool {
	doomed := w.srv.doomed.Load()
	w.j.mu.Lock()
	defer w.j.mu.Unlock()
	w.j.reads++
	if r.err != nil || r.answer == unknown || r.status == http.StatusServiceUnavailable {
		w.j.cutReads++
		if !doomed {
			w.j.faults = append(w.j.faults, fmt.Sprintf("%s %s: %v", what, key, r))
		}
		return false
	}
	return true
}

func (w *worker) get(key string) {
	r := w.c.get(key)
	if w.read("get", key, r) {
		if _, why := match(w.j.entry(key).states, r); why != "" {
			w.j.fault("get %s: %s", key, why)
		}
	}
}

// match finds the states that an answer to a get shows, or says why it can be none.
func match(states []state, r reply) (fits []state, why string) {
	for _, s := range states {
		switch {
		case s.kind != present && r.status == http.StatusNotFound:
			fits = append(fits, s)
		case s.kind == present && r.status == http.StatusOK && len(r.body) == s.body.size && bytes.Equal(r.body, s.body.bytes()):
			fits = append(fits, s)
		}
	}
	if len(fits) == 0 {
		why = fmt.Sprintf("%v with %d bytes; it may be: %+v", r, len(r.body), states)
	}
	return fits, why
}

func (w *worker) getRange(key string) {
	states := w.j.entry(key).states
	if len(states) != 1 || states[0].kind != present || states[0].body.size == 0 {
		return
	}
	size := states[0].body.size
	off := w.rng.IntN(size)
	n := 1 + w.rng.IntN(min(size-off, 1<<20))
	r := w.c.getRange(key, off, n)
	if !w.read("get a range of", key, r) {
		return
	}
	if r.status != http.StatusPartialContent || !bytes.Equal(r.body, states[0].body.bytes()[off:off+n]) {
		w.j.fault("get %d bytes at %d of %s: %v with %d bytes that are not those of %+v", n, off, key, r, len(r.body), states[0])
	}
}

func (w *worker) list() {
	got, r := w.c.list(w.prefix+"/", 1+w.rng.IntN(9))
	if w.read("list", w.prefix, r) {
		w.j.compareList(w.prefix+"/", got)
	}
}

// compareList holds a listing against the model.
func (j *journal) compareList(prefix string, got []listed) {
	sizes := map[string]uint64{}
	for i, o := range got {
		if i > 0 && got[i-1].Key >= o.Key {
			j.fault("a listing of %q has %q before %q", prefix, got[i-1].Key, o.Key)
		}
		sizes[o.Key] = o.Size
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	for key, e := range j.keys {
		if !strings.HasPrefix(key, prefix) {
			continue
		}
		size, there := sizes[key]
		delete(sizes, key)
		if !slices.ContainsFunc(e.states, func(s state) bool {
			return there == (s.kind == present) && (!there || size == uint64(s.body.size))
		}) {
			j.faults = append(j.faults, fmt.Sprintf("a listing of %q shows %s as %v, %d bytes; it may be: %+v", prefix, key, there, size, e.states))
		}
	}
	for key := range sizes {
		j.faults = append(j.faults, fmt.Sprintf("a listing of %q shows %q, which nobody put", prefix, key))
	}
}

// check reads keys of a server that nobody disturbs and holds every one against
// the model, and the whole listing. settled says that what is seen now is what
// it will stay: a start has decided over what was unknown.
func (j *journal) check(s *server, settled bool, keys []string) {
	c := s.client()
	defer c.close()
	work := make(chan string)
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for key := range work {
				e := j.entry(key)
				r := c.get(key)
				fits, why := match(e.states, r)
				switch {
				case r.err != nil || why != "":
					j.fault("check: get %s: %v %s", key, r, why)
				case settled:
					e.states = fits
				}
			}
		})
	}
	for _, key := range keys {
		work <- key
	}
	close(work)
	wg.Wait()
	got, r := c.list("", 1000)
	if r.answer != acked || r.err != nil {
		j.fault("check: list: %v", r)
		return
	}
	j.compareList("", got)
}

// all lists the model's keys.
func (j *journal) all() []string {
	j.mu.Lock()
	defer j.mu.Unlock()
	out := make([]string, 0, len(j.keys))
	for key := range j.keys {
		out = append(out, key)
	}
	slices.Sort(out)
	return out
}

// acknowledged is how many writes have been.
func (j *journal) acknowledged() int {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.acks
}

func (j *journal) counts() string {
	j.mu.Lock()
	defer j.mu.Unlock()
	s := fmt.Sprintf("%d writes acknowledged, %d unknown, %d refused; %d reads, %d of them cut off by a kill; %s of bodies sent",
		j.acks, j.unknowns, j.refusals, j.reads, j.cutReads, mib(j.written))
	for what, n := range j.loud {
		s += fmt.Sprintf("\n%d times, with nobody stopping the server: %s", n, what)
	}
	return s
}
