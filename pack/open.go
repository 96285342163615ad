package pack

import (
	"bytes"
	"errors"
	"fmt"
	"slices"

	"cairn/id"
)

// Opened is a pack put together from shards.
type Opened struct {
	Header  Header // common
	Meta    Meta
	Payload []byte // Meta.PayloadLen bytes; the beginning of a pooled buffer until Release
	// Bad lists the shards that were given and are not what they should be: by
	// index from Assemble, by position among the candidates from OpenTail.
	Bad []int

	sealed, stream []byte
	pool           Pool
	lent           []byte
}

// Release gives the pooled buffer back; Payload is no longer valid.
func (o *Opened) Release() {
	if o.pool != nil && o.lent != nil {
		o.pool.Put(o.lent)
	}
	o.Payload, o.stream, o.lent = nil, nil, nil
}

// Assemble puts a pack together from shards whose digests are known, by index;
// digests has an element for each of the pack's shards, and a zero Shard is one
// that is not at hand. A shard that does not match its digest never enters the
// decoder: it is listed in Bad and counts as lost. With fewer than k' left the
// error is [ErrShort], and Bad is set all the same.
//
// stream may be nil or a buffer with room for k' slices; data slices that lie
// in it where they belong are not copied. It stays the caller's, and the result
// refers to it; it refers to nothing else that was given.
//
// What is proven: each byte of payload and meta is what the writer sent, by
// digests that only holders of the keys can compute.
func (c Coder) Assemble(p id.Pack, shards []Shard, digests [][16]byte, stream []byte) (*Opened, error) {
	o := &Opened{pool: c.Pool}
	if len(shards) != len(digests) {
		return o, fmt.Errorf("pack: %d shards and %d digests", len(shards), len(digests))
	}
	good := make([]bool, len(shards))
	headers := make([]Header, len(shards))
	dig := digester{newGCM(c.Secrets.DigestKey(p))}
	c.each(len(shards), func(i int) {
		if shards[i].Head == nil {
			return
		}
		h, err := ParseHeader(shards[i].Head)
		good[i] = err == nil && h.Pack == p && int(h.Index) == i && int(h.K)+int(h.M) == len(shards) &&
			len(shards[i].Head) == h.SliceOffset() && len(shards[i].Slice) == int(h.SliceLen) &&
			sameTag(dig.shard(uint8(i), shards[i]), digests[i])
		headers[i] = h
	})
	have := make([]Shard, len(shards))
	n := 0
	for i, ok := range good {
		switch {
		case !ok && shards[i].Head != nil:
			o.Bad = append(o.Bad, i)
		case ok && n > 0 && headers[i].Common() != o.Header:
			// Both digests hold: the writer itself made two packs under one ID.
			return o, fmt.Errorf("%w: pack %v: shards of two packs under one ID", ErrDamaged, p)
		case ok:
			o.Header = headers[i].Common()
			have[i] = shards[i]
			n++
		}
	}
	h := &o.Header
	if n == 0 || n < int(h.K) {
		return o, fmt.Errorf("%w: pack %v: %d of %d are good, %d are needed", ErrShort, p, n, len(shards), max(int(h.K), 1))
	}
	if !h.MetaCoded {
		for i := range have {
			if have[i].Head != nil {
				o.sealed = bytes.Clone(h.InlineMeta(have[i].Head)) // the shards stay the caller's
				break
			}
		}
	}
	if err := c.join(o, have, stream); err != nil {
		o.Release()
		return o, err
	}
	if h.MetaCoded {
		o.sealed = o.stream[len(o.stream)-int(h.MetaLen):]
	}
	m, err := c.OpenMeta(*h, o.sealed)
	if err != nil {
		o.Release()
		return o, err
	}
	o.Meta, o.Payload = m, o.stream[:m.PayloadLen]
	return o, nil
}

// join fills o.stream from at least k' good shards.
func (c Coder) join(o *Opened, have []Shard, stream []byte) error {
	h := &o.Header
	k, size := int(h.K), int(h.SliceLen)
	if n := h.streamLen(); cap(stream) >= n {
		o.stream = stream[:n]
	} else if c.Pool != nil {
		o.lent = c.Pool.Get(n)
		o.stream = o.lent[:n]
	} else {
		o.stream = make([]byte, n)
	}
	pieces := make([][]byte, len(have))
	missing := false
	for i := range have {
		if have[i].Head == nil {
			missing = missing || i < k
			continue
		}
		pieces[i] = have[i].Slice
		if i < k {
			at := o.stream[i*size : (i+1)*size]
			if &at[0] != &pieces[i][0] {
				copy(at, pieces[i])
			}
			pieces[i] = at
		}
	}
	if !missing {
		return nil
	}
	return c.reconstruct(pieces, k, func(i int) []byte { return o.stream[i*size : (i+1)*size : (i+1)*size] })
}

// Rebuild makes all shards of an opened pack anew, byte for byte those that
// were written: whoever repairs compares the digests with the logged ones. The
// data slices are views of o, which must not be released before the result.
func (c Coder) Rebuild(o *Opened) (*Encoded, error) {
	if o.stream == nil {
		return nil, errors.New("pack: rebuild of a pack that is not open")
	}
	e := &Encoded{Header: o.Header, pool: c.Pool}
	// The padding is not taken from the shards but computed.
	c.finishStream(&o.Header, o.stream, len(o.Payload), o.sealed)
	if err := c.cut(e, o.stream, o.sealed, digester{newGCM(c.Secrets.DigestKey(o.Header.Pack))}); err != nil {
		e.Release()
		return nil, err
	}
	return e, nil
}

// MaxTries bounds how many combinations of shards OpenTail decodes. It is the
// number of ways to choose 10 of 20, so that with k'+m <= 20 distinct shards
// every combination is within it.
const MaxTries = 184756

// ErrTries says that [MaxTries] combinations were tried and none opened, and
// that others are left: nothing is known about the pack.
var ErrTries = errors.New("pack: too many combinations of shards")

// Tail is what OpenTail found.
type Tail struct {
	Opened
	// Encoded has all shards of the pack as the writer made them, with their
	// digests. Its data slices are views of Opened.
	Encoded *Encoded
	// Tries is the number of combinations that were decoded.
	Tries int
}

// Release gives all buffers back.
func (t *Tail) Release() {
	if t.Encoded != nil {
		t.Encoded.Release()
	}
	t.Opened.Release()
}

// OpenTail puts together the one log pack whose shards' digests nobody knows
// yet. The candidates must have the same common header, which the caller sorts
// them by: one whose CRCs do not hold, or whose header differs from that of the
// first that does, is bad from the outset. Two candidates may have the same
// index. They stay the caller's, and nothing of the result refers to them.
//
// It assumes no candidate is altered, then one, then two, and so on, and decodes
// k' of the others, until the meta opens and the payload has the sum that the
// meta holds. With a altered candidates among c that takes at most the sum of
// C(c, j) for j from 0 to a tries, and never more than there are combinations
// or than [MaxTries]. It finds the pack whenever k' candidates with distinct
// indexes are unaltered.
//
// What is proven, and by what: that the meta opens proves header and meta; the
// sum in it, keyed like the digests, proves every byte of the payload; padding,
// tables and parity are then computed and not believed. So the shards returned
// are exactly the writer's, and Bad lists every candidate that differs from
// them in any byte.
//
// [ErrShort]: fewer than k' distinct shards with good CRCs. [ErrDamaged]: no
// combination opens. [ErrTries]: not all could be tried. [ErrNewer] as usual.
func (c Coder) OpenTail(candidates []Shard) (*Tail, error) {
	t := &Tail{Opened: Opened{pool: c.Pool}}
	search, err := c.newSearch(t, candidates)
	if err != nil {
		return t, err
	}
	err = search.run()
	t.Tries = search.tries
	if err != nil {
		t.Opened.Release()
		return t, err
	}
	if t.Encoded, err = c.Rebuild(&t.Opened); err != nil {
		t.Opened.Release()
		return t, err
	}
	t.Bad = t.Bad[:0]
	for i, s := range candidates {
		h, err := ParseHeader(s.Head)
		if err != nil || h.Common() != t.Header || !bytes.Equal(s.Head, t.Encoded.Shards[h.Index].Head) ||
			!bytes.Equal(s.Slice, t.Encoded.Shards[h.Index].Slice) {
			t.Bad = append(t.Bad, i)
		}
	}
	return t, nil
}

// search looks for k' unaltered candidates.
type search struct {
	Coder
	t     *Tail
	cand  []Shard // distinct, CRCs good; by index, so that data shards come first
	index []uint8 // of each
	dig   digester
	meta  bool // the sealed meta is known
	tries int
	newer error
	set   []int // the candidates of the current try
	slots [][]byte
}

// newSearch sorts out what can be told without decoding.
func (c Coder) newSearch(t *Tail, candidates []Shard) (*search, error) {
	s := &search{Coder: c, t: t}
	var bad error
	seen := map[uint8]bool{}
next:
	for i, x := range candidates {
		h, err := ParseHeader(x.Head)
		if err == nil {
			err = h.CheckBody(x)
		}
		if err == nil && len(s.cand) > 0 && h.Common() != t.Header {
			err = fmt.Errorf("%w: candidates of two packs, %v and %v", ErrDamaged, t.Header.Pack, h.Pack)
		}
		if err == nil && h.Kind != Log {
			err = fmt.Errorf("%w: pack %v: %v packs have no tail", ErrDamaged, h.Pack, h.Kind)
		}
		if err != nil {
			t.Bad, bad = append(t.Bad, i), err
			continue
		}
		t.Header = h.Common()
		for j := range s.cand {
			if s.index[j] == h.Index && bytes.Equal(s.cand[j].Head, x.Head) && bytes.Equal(s.cand[j].Slice, x.Slice) {
				continue next
			}
		}
		at, _ := slices.BinarySearch(s.index, h.Index)
		s.cand, s.index = slices.Insert(s.cand, at, x), slices.Insert(s.index, at, h.Index)
		seen[h.Index] = true
	}
	if len(s.cand) == 0 && errors.Is(bad, ErrNewer) {
		return nil, bad
	}
	if h := &t.Header; len(s.cand) == 0 || len(seen) < int(h.K) {
		return nil, fmt.Errorf("%w: log pack %v: %d candidates hold, %d are needed", ErrShort, h.Pack, len(seen), max(1, int(h.K)))
	}
	if len(s.cand) > 64 {
		return nil, fmt.Errorf("%w: log pack %v: %d different candidates", ErrTries, t.Header.Pack, len(s.cand))
	}
	return s, nil
}

// run tries combinations until one opens.
func (s *search) run() error {
	h := &s.t.Header
	s.dig = digester{newGCM(s.Secrets.DigestKey(h.Pack))}
	if !h.MetaCoded {
		// Each candidate has its own copy, and none can forge one.
		for _, x := range s.cand {
			if s.open(h.InlineMeta(x.Head)) {
				break
			}
		}
		if !s.meta {
			return s.failed()
		}
		n := 0
		for i, x := range s.cand {
			if bytes.Equal(h.InlineMeta(x.Head), s.t.sealed) {
				s.cand[n], s.index[n] = x, s.index[i]
				n++
			}
		}
		s.cand, s.index = s.cand[:n], s.index[:n]
	}
	n := h.streamLen()
	if s.Pool != nil {
		s.t.lent = s.Pool.Get(n)
		s.t.stream = s.t.lent[:n]
	} else {
		s.t.stream = make([]byte, n)
	}
	s.slots = make([][]byte, int(h.K)+int(h.M))
	// Each mask says which candidates are taken to be altered. When a try fails,
	// one of those it used is: each in turn joins the mask. So a mask within the
	// altered ones leads to another, one larger, until none altered is used.
	// Going by size makes the fewest assumptions first.
	level, seen := []uint64{0}, map[uint64]bool{0: true}
	for len(level) > 0 {
		var next []uint64
		for _, out := range level {
			if !s.choose(out) {
				continue
			}
			if s.tries == MaxTries {
				return fmt.Errorf("%w: log pack %v: %d tried", ErrTries, h.Pack, s.tries)
			}
			s.tries++
			if ok, err := s.try(); ok || err != nil {
				return err
			}
			for _, i := range s.set {
				if more := out | 1<<i; !seen[more] {
					seen[more] = true
					next = append(next, more)
				}
			}
		}
		level = next
	}
	return s.failed()
}

func (s *search) failed() error {
	if s.newer != nil {
		return s.newer
	}
	return fmt.Errorf("%w: log pack %v: none of %d combinations of %d shards opens", ErrDamaged, s.t.Header.Pack, s.tries, len(s.cand))
}

// open tries to open a sealed meta and keeps it when it does.
func (s *search) open(sealed []byte) bool {
	m, err := s.OpenMeta(s.t.Header, sealed)
	if err != nil {
		if errors.Is(err, ErrNewer) {
			s.newer = err // the seal held: no other meta will open
		}
		return false
	}
	s.t.Meta, s.t.sealed, s.meta = m, bytes.Clone(sealed), true
	return true
}

// choose sets s.set to the first k' candidates with distinct indexes that are
// not in the mask out; it reports whether there are so many.
func (s *search) choose(out uint64) bool {
	s.set = s.set[:0]
	for i, x := range s.index {
		if n := len(s.set); out>>i&1 == 0 && (n == 0 || s.index[s.set[n-1]] != x) {
			if s.set = append(s.set, i); n+1 == int(s.t.Header.K) {
				return true
			}
		}
	}
	return false
}

// try decodes s.set and reports whether that is the pack.
func (s *search) try() (bool, error) {
	h := &s.t.Header
	// The meta first: where it is coded, only its range has to be decoded.
	size := int(h.SliceLen)
	if h.MetaCoded {
		from := len(s.t.stream) - int(h.MetaLen)
		if err := s.decode(from/size, from%size); err != nil {
			return false, err
		}
		sealed := s.t.stream[from:]
		if !s.meta && !s.open(sealed) {
			return false, s.newer
		}
		if !bytes.Equal(sealed, s.t.sealed) {
			return false, nil
		}
	}
	if err := s.decode(0, 0); err != nil {
		return false, err
	}
	payload := s.t.stream[:s.t.Meta.PayloadLen]
	if !sameTag(s.dig.payload(payload), s.t.Meta.Sum) {
		return false, nil
	}
	s.t.Payload = payload
	return true, nil
}

// decode fills the stream's slices from the current set, from the given data
// shard on. When the range lies within that one slice only its end, from off
// on, is decoded.
func (s *search) decode(first, off int) error {
	h := &s.t.Header
	k, size := int(h.K), int(h.SliceLen)
	if first < k-1 {
		off = 0
	}
	clear(s.slots)
	missing := k
	for _, i := range s.set {
		x := s.index[i]
		s.slots[x] = s.cand[i].Slice[off:]
		if int(x) < k {
			missing--
			if int(x) >= first {
				copy(s.t.stream[int(x)*size+off:(int(x)+1)*size], s.cand[i].Slice[off:])
			}
		}
	}
	if missing == 0 {
		return nil
	}
	return s.reconstruct(s.slots, k, func(i int) []byte { return s.t.stream[i*size+off : (i+1)*size : (i+1)*size] })
}
