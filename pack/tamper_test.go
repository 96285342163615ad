package pack

import (
	"bytes"
	"encoding/binary"
	"errors"
	"math/big"
	"math/rand/v2"
	"os"
	"slices"
	"testing"

	"pgregory.net/rapid"

	"cairn/id"
)

// mend makes all CRCs of an altered shard right, as someone who means it would.
func mend(h Header, s Shard) Shard {
	head := h.Append(nil)
	meta := h.InlineMeta(s.Head)
	head = AppendTable(head, meta, s.Slice)
	return Shard{Head: append(head, meta...), Slice: s.Slice}
}

func parse(t interface{ Fatalf(string, ...any) }, s Shard) Header {
	h, err := ParseHeader(s.Head)
	if err != nil {
		t.Fatalf("parse: %v", err)
	}
	return h
}

// alter changes a shard in one of several ways and makes its CRCs right.
// other is a shard of the same shape from another pack.
func alter(t interface{ Fatalf(string, ...any) }, r *rand.Rand, s, other Shard) Shard {
	h, before := parse(t, s), s
	s = cloneShards([]Shard{s})[0]
	ways := 3
	if !h.MetaCoded {
		ways = 5
	}
	if len(other.Slice) != len(s.Slice) {
		other.Slice = noise(r.Uint64(), len(s.Slice))
	}
	switch r.IntN(ways) {
	case 0: // a bit
		s.Slice[r.IntN(len(s.Slice))] ^= 1 << r.IntN(8)
	case 1: // all of it
		s.Slice = bytes.Clone(other.Slice)
	case 2: // a run of zeros
		from := r.IntN(len(s.Slice))
		first := s.Slice[from]
		clear(s.Slice[from:min(len(s.Slice), from+1+r.IntN(5000))])
		if first == 0 {
			s.Slice[from] = 1
		}
	case 3: // a bit of the meta
		s.Head[h.BodyOffset()+r.IntN(int(h.MetaLen))] ^= 1 << r.IntN(8)
	case 4: // meta and slice
		s.Head[h.BodyOffset()+r.IntN(int(h.MetaLen))] ^= 1
		s.Slice[r.IntN(len(s.Slice))] ^= 1
	}
	if bytes.Equal(s.Slice, before.Slice) && bytes.Equal(s.Head, before.Head) {
		s.Slice[0] ^= 1 // the other pack's slice was the same
	}
	s = mend(h, s)
	if err := h.CheckBody(s); err != nil {
		t.Fatalf("an altered shard with right CRCs: %v", err)
	}
	return s
}

// W14: whoever decodes without comparing digests fails here.
func TestAlteredShardNeverEntersTheDecoder(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		s := drawInput(t)
		if s.in.Header.M == 0 {
			s.in.Header.M = 1
		}
		c := testCoder(rapid.Uint64().Draw(t, "rand"))
		c.Workers = rapid.IntRange(1, 2).Draw(t, "workers")
		e := encode(t, c, s.in)
		other := encode(t, c, Input{Header: s.in.Header, Meta: s.in.Meta, Payload: s.payload})
		r := rand.New(rand.NewPCG(rapid.Uint64().Draw(t, "alter"), 2))
		n, m := len(e.Shards), int(e.Header.M)
		shards := cloneShards(e.Shards)
		victims := r.Perm(n)[:1+r.IntN(min(m+1, n))]
		for _, i := range victims {
			shards[i] = alter(t, r, shards[i], other.Shards[i])
		}
		slices.Sort(victims)
		o, err := c.Assemble(e.Header.Pack, shards, e.Digests, nil)
		if !slices.Equal(o.Bad, victims) {
			t.Fatalf("altered %v, found %v", victims, o.Bad)
		}
		if len(victims) > m {
			if !errors.Is(err, ErrShort) {
				t.Fatalf("%d of %d altered: %v", len(victims), n, err)
			}
			return
		}
		if err != nil || !bytes.Equal(o.Payload, s.payload) {
			t.Fatalf("altered %v: %v, or the wrong payload", victims, err)
		}
		again, err := c.Rebuild(o)
		if err != nil {
			t.Fatal(err)
		}
		mustBeEqual(t, again, e)
	})
}

func TestEveryHeaderFieldIsBound(t *testing.T) {
	c := testCoder(1)
	r := rand.New(rand.NewPCG(1, 1))
	for name, in := range map[string]Input{
		"data":  {Header: dataHeader(3, 2), Meta: Meta{Entries: cutEntries(r, 9000, 4)}, Payload: noise(2, 9000)},
		"log":   {Header: logHeader(1, 2), Meta: Meta{Log: logMeta(r, 3, 50)}, Payload: noise(2, 900)},
		"coded": {Header: logHeader(4, 2), Meta: Meta{Log: logMeta(r, 30, 1000)}, Payload: noise(2, 90000)},
	} {
		e := encode(t, c, in)
		o, err := c.Assemble(e.Header.Pack, e.Shards, e.Digests, nil)
		if err != nil {
			t.Fatal(err)
		}
		sealed := bytes.Clone(o.sealed)
		if _, err := c.OpenMeta(e.Header, sealed); err != nil {
			t.Fatalf("%s: the true header: %v", name, err)
		}
		refused, unopened := 0, 0
		for bit := range 8 * HeaderSize {
			b := bytes.Clone(e.Shards[1].Head)
			b[bit/8] ^= 1 << (bit % 8)
			if _, err := ParseHeader(b); err == nil {
				t.Fatalf("%s: bit %d of the header flipped, CRC left: accepted", name, bit)
			}
			binary.LittleEndian.PutUint32(b[188:], CRC(b[:188]))
			h, err := ParseHeader(b)
			if err != nil {
				if !errors.Is(err, ErrDamaged) && !errors.Is(err, ErrNewer) {
					t.Fatalf("%s: bit %d: %v", name, bit, err)
				}
				refused++
				continue
			}
			if bit/8 >= 188 {
				continue // the CRC itself, which was made right again
			}
			shards := cloneShards(e.Shards)
			shards[1].Head = b
			if o, _ := c.Assemble(e.Header.Pack, shards, e.Digests, nil); !slices.Equal(o.Bad, []int{1}) {
				t.Errorf("%s: bit %d of the header flipped, CRC made right: bad shards %v", name, bit, o.Bad)
			}
			if bit/8 == 26 {
				continue // the index: under the digest only
			}
			if int(h.MetaLen) > len(sealed) {
				sealed = append(sealed, make([]byte, int(h.MetaLen)-len(sealed))...)
			}
			if _, err := c.OpenMeta(h, sealed[:min(len(sealed), int(h.MetaLen))]); !errors.Is(err, ErrDamaged) {
				t.Errorf("%s: bit %d of the header flipped: its meta opens, or %v", name, bit, err)
			}
			sealed = sealed[:e.Header.MetaLen]
			unopened++
		}
		if refused < 300 || unopened < 500 {
			t.Errorf("%s: %d flips refused, %d metas did not open", name, refused, unopened)
		}
	}
}

func TestShardsOfTwoPacksNeverCombine(t *testing.T) {
	c := testCoder(3)
	r := rand.New(rand.NewPCG(3, 3))
	in := Input{Header: logHeader(2, 2), Meta: Meta{Log: logMeta(r, 3, 50)}, Payload: noise(3, 9000)}
	a := encode(t, c, in)
	in.Header.Attempt++
	in.Payload = noise(3, 9000)
	b := encode(t, c, in)
	if a.Header.Pack == b.Header.Pack || a.Header.MetaTag == b.Header.MetaTag {
		t.Fatal("two attempts share a pack ID or a tag")
	}
	mixed := []Shard{a.Shards[0], b.Shards[1], a.Shards[2], b.Shards[3]}
	o, err := c.Assemble(a.Header.Pack, mixed, a.Digests, nil)
	if err != nil || !slices.Equal(o.Bad, []int{1, 3}) || !bytes.Equal(o.Payload, noise(3, 9000)) {
		t.Errorf("a's two and b's two: bad %v, %v", o.Bad, err)
	}
	if _, err := c.Assemble(a.Header.Pack, []Shard{a.Shards[0], b.Shards[1], b.Shards[2], b.Shards[3]}, a.Digests, nil); !errors.Is(err, ErrShort) {
		t.Errorf("a's one and b's three: %v", err)
	}
	// Under a's header, CRCs right.
	h := a.Header
	h.Index = 1
	forged := mend(h, Shard{Head: append(h.Append(nil), b.Shards[1].Head[HeaderSize:]...), Slice: b.Shards[1].Slice})
	if o, _ := c.Assemble(a.Header.Pack, []Shard{a.Shards[0], forged, a.Shards[2]}, a.Digests[:3], nil); o.Payload != nil {
		t.Error("three shards of a pack of four were taken")
	}
	o, err = c.Assemble(a.Header.Pack, []Shard{a.Shards[0], forged, a.Shards[2], {}}, a.Digests, nil)
	if err != nil || !slices.Equal(o.Bad, []int{1}) {
		t.Errorf("forged: bad %v, %v", o.Bad, err)
	}
	tail, err := c.OpenTail(mixed)
	if err != nil || !slices.Equal(tail.Bad, []int{1, 3}) || tail.Header != a.Header {
		t.Errorf("tail of two attempts: bad %v, %v", tail.Bad, err)
	}
	// At other indexes.
	if o, _ := c.Assemble(a.Header.Pack, []Shard{a.Shards[1], a.Shards[0], a.Shards[2], a.Shards[3]}, a.Digests, nil); !slices.Equal(o.Bad, []int{0, 1}) {
		t.Errorf("two shards swapped: bad %v", o.Bad)
	}
}

// waysUpTo is the sum of C(n, j) for j from 0 to a.
func waysUpTo(n, a int) int64 {
	var sum big.Int
	for j := 0; j <= a; j++ {
		sum.Add(&sum, new(big.Int).Binomial(int64(n), int64(j)))
	}
	return sum.Int64()
}

// H31.
func TestTailWithAnyMAltered(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		k, m := rapid.IntRange(1, 8).Draw(t, "k"), rapid.IntRange(0, 4).Draw(t, "m")
		r := rand.New(rand.NewPCG(rapid.Uint64().Draw(t, "seed"), 1))
		c := testCoder(r.Uint64())
		size := rapid.OneOf(rapid.Just(0), rapid.IntRange(1, 60000)).Draw(t, "payload")
		payload := noise(r.Uint64(), size)
		in := Input{Header: logHeader(k, m), Meta: Meta{Entries: cutEntries(r, size, 5),
			Log: logMeta(r, 4, rapid.SampledFrom([]int{10, 6000}).Draw(t, "batch"))}, Payload: payload}
		e := encode(t, c, in)
		in.Payload = payload
		other := encode(t, c, in)
		cands := cloneShards(e.Shards)
		isBad := make([]bool, len(cands))
		altered := r.IntN(m + 1)
		for _, i := range r.Perm(len(cands))[:altered] {
			cands[i] = alter(t, r, cands[i], other.Shards[i])
			isBad[i] = true
		}
		// Nodes that are away, as many as may be; second copies of some shards.
		for range r.IntN(m - altered + 1) {
			i := r.IntN(len(cands))
			cands, isBad = slices.Delete(cands, i, i+1), slices.Delete(isBad, i, i+1)
		}
		for _, s := range cloneShards(e.Shards) {
			if r.IntN(6) == 0 {
				bad := r.IntN(3) == 0
				if bad {
					s = alter(t, r, s, other.Shards[0])
				}
				cands, isBad = append(cands, s), append(isBad, bad)
			}
		}
		good := map[uint8]bool{}
		var want []int
		for i, b := range isBad {
			if b {
				want = append(want, i)
			} else {
				good[parse(t, cands[i]).Index] = true
			}
		}
		tail, err := c.OpenTail(cands)
		if len(good) < k && err != nil {
			if !errors.Is(err, ErrDamaged) && !errors.Is(err, ErrShort) {
				t.Fatalf("%d good of %d: %v", len(good), len(cands), err)
			}
			return
		} // else what was altered is padding, and it must be right all the same
		if err != nil {
			t.Fatalf("%d+%d, %d candidates, bad %v: %v", k, m, len(cands), want, err)
		}
		if !slices.Equal(tail.Bad, want) || !bytes.Equal(tail.Payload, payload) {
			t.Fatalf("bad %v, want %v, or the wrong payload", tail.Bad, want)
		}
		mustBeEqual(t, tail.Encoded, e)
		if most := waysUpTo(len(cands), len(want)); len(good) >= k && int64(tail.Tries) > most {
			t.Fatalf("%d tries, at most %d", tail.Tries, most)
		}
		tail.Release()
	})
}

// The worst that m altered shards can do: to be those that are suspected last.
func TestTailWithinItsBoundOfTries(t *testing.T) {
	codes := [][2]int{{16, 4}, {8, 4}, {1, 19}, {18, 2}}
	if os.Getenv("CAIRN_LONG") != "" {
		codes = append(codes, [2]int{10, 10})
	}
	for _, km := range codes {
		k, m := km[0], km[1]
		for _, coded := range []bool{false, true} {
			if coded && k == 10 {
				continue
			}
			r := rand.New(rand.NewPCG(5, 5))
			c := testCoder(5)
			batch := 10
			if coded {
				batch = 6000
			}
			in := Input{Header: logHeader(k, m), Meta: Meta{Log: logMeta(r, 4, batch)}, Payload: noise(5, 2500*k)}
			e := encode(t, c, in)
			in.Payload = noise(5, e.Header.streamLen()-e.Header.codedMeta()) // up to the last slice
			e = encode(t, c, in)
			if e.Header.MetaCoded != coded {
				t.Fatalf("%d+%d: coded %v", k, m, e.Header.MetaCoded)
			}
			cands := cloneShards(e.Shards)
			var bad []int
			for i := range m {
				i += max(0, k-m)
				cands[i].Slice = noise(uint64(2000+i), len(cands[i].Slice))
				cands[i] = mend(parse(t, cands[i]), cands[i])
				bad = append(bad, i)
			}
			tail, err := c.OpenTail(cands)
			most := min(new(big.Int).Binomial(int64(k+m), int64(k)).Int64(), waysUpTo(k+m, m))
			t.Logf("%d+%d, meta coded %v: %d tries of at most %d", k, m, coded, tail.Tries, most)
			if err != nil || !slices.Equal(tail.Bad, bad) || int64(tail.Tries) > most || tail.Tries > MaxTries {
				t.Errorf("%d+%d, meta coded %v: bad %v, %d tries, %v", k, m, coded, tail.Bad, tail.Tries, err)
			}
			// One more, and there is nothing to be found.
			if k == 10 {
				continue
			}
			for i := range m + 1 {
				cands[i].Slice = noise(uint64(1000+i), len(cands[i].Slice))
				cands[i] = mend(parse(t, cands[i]), cands[i])
			}
			if _, err := c.OpenTail(cands); !errors.Is(err, ErrDamaged) {
				t.Errorf("%d+%d with %d altered: %v", k, m, m+1, err)
			}
		}
	}
}

func TestTailRefuses(t *testing.T) {
	c := testCoder(6)
	r := rand.New(rand.NewPCG(6, 6))
	e := encode(t, c, Input{Header: logHeader(3, 2), Meta: Meta{Log: logMeta(r, 4, 10)}, Payload: noise(5, 3000)})
	if _, err := c.OpenTail(nil); !errors.Is(err, ErrShort) {
		t.Errorf("no candidates: %v", err)
	}
	if _, err := c.OpenTail(e.Shards[:2]); !errors.Is(err, ErrShort) {
		t.Errorf("two of three: %v", err)
	}
	if _, err := c.OpenTail([]Shard{e.Shards[0], e.Shards[0], e.Shards[1]}); !errors.Is(err, ErrShort) {
		t.Errorf("two of three, one twice: %v", err)
	}
	torn := cloneShards(e.Shards)
	torn[1].Slice[5]++
	tail, err := c.OpenTail(torn)
	if err != nil || !slices.Equal(tail.Bad, []int{1}) {
		t.Errorf("a bad CRC: %v, bad %v", err, tail.Bad)
	}
	d := encode(t, c, Input{Header: dataHeader(3, 2), Payload: noise(5, 3000)})
	if _, err := c.OpenTail(d.Shards); err == nil {
		t.Error("a data pack passed for a tail")
	}
	foreign := c
	foreign.Secrets = fakeSecrets("foreign")
	if _, err := foreign.OpenTail(e.Shards); !errors.Is(err, ErrDamaged) {
		t.Errorf("under another key: %v", err)
	}
	newer := cloneShards(e.Shards)
	for i := range newer {
		newer[i].Head[4] = 2
		binary.LittleEndian.PutUint32(newer[i].Head[188:], CRC(newer[i].Head[:188]))
	}
	if _, err := c.OpenTail(newer); !errors.Is(err, ErrNewer) {
		t.Errorf("of a newer version: %v", err)
	}
}

// H32, W15: every pair of shards lost one after the other, each time repaired,
// from buffers full of something else.
func TestRepairByPairs(t *testing.T) {
	for stripes := range 4 {
		c := testCoder(uint64(stripes))
		payload := noise(8, stripes*BlockSize*3)
		buf := bytes.Repeat([]byte{0xee}, len(payload)+1<<20)
		in := Input{Header: dataHeader(3, 2), Payload: buf[:copy(buf, payload)]}
		e := encode(t, c, in)
		for i := range e.Shards {
			for j := range e.Shards {
				shards := cloneShards(e.Shards)
				for _, lost := range []int{i, j} {
					shards[lost] = Shard{}
					o, err := c.Assemble(e.Header.Pack, shards, e.Digests, nil)
					if err != nil {
						t.Fatal(err)
					}
					again, err := c.Rebuild(o)
					if err != nil {
						t.Fatal(err)
					}
					if again.Digests[lost] != e.Digests[lost] {
						t.Fatalf("%d stripes: shard %d, rebuilt, has another digest", stripes, lost)
					}
					shards[lost] = cloneShards(again.Shards)[lost]
					again.Release()
					o.Release()
				}
				o, err := c.Assemble(e.Header.Pack, shards, e.Digests, nil)
				if err != nil || !bytes.Equal(o.Payload, payload) {
					t.Fatalf("%d stripes, %d then %d: %v", stripes, i, j, err)
				}
			}
		}
	}
}

// W15, H57, H59: no byte of the pool, no zeros, and nothing that another pack has.
func TestPaddingIsKeystreamOfThisPack(t *testing.T) {
	for _, code := range [][2]int{{1, 2}, {4, 2}, {16, 4}} {
		for _, kind := range []Kind{Data, Log} {
			for _, batch := range []int{10, 9000} {
				seen := map[[8]byte]int{}
				for run := range 3 {
					c := testCoder(uint64(100 + run))
					in := Input{Header: dataHeader(code[0], code[1])}
					if kind == Log {
						in.Header = logHeader(code[0], code[1])
						in.Meta.Log = logMeta(rand.New(rand.NewPCG(1, 1)), 3, batch)
					}
					buf := bytes.Repeat([]byte{0xee}, 4<<20)
					in.Payload = buf[:copy(buf, noise(uint64(run), 5000))] // as fresh nonces make it
					e := encode(t, c, in)
					var all []byte
					for i, s := range e.Shards {
						if i == 0 || code[0] > 1 {
							all = append(all, s.Slice...)
						}
					}
					all = append(all, e.Header.InlineMeta(e.Shards[0].Head)...)
					for i := 0; i+8 <= len(all); i++ {
						w := [8]byte(all[i:])
						if before, ok := seen[w]; ok && before != run {
							t.Fatalf("%v %v: packs %d and %d share %x", code, kind, before, run, w)
						}
						seen[w] = run
						if w == [8]byte{} || w == [8]byte(bytes.Repeat([]byte{0xee}, 8)) || w == [8]byte(bytes.Repeat([]byte{0xa5}, 8)) {
							t.Fatalf("%v %v: %x in a shard", code, kind, w)
						}
					}
				}
			}
		}
	}
}

func TestPadStartsAnywhere(t *testing.T) {
	whole := make([]byte, 1000)
	pad([32]byte{1}, whole, 0)
	for off := range 70 {
		part := bytes.Repeat([]byte{7}, 300)
		pad([32]byte{1}, part, off)
		if !bytes.Equal(part, whole[off:off+300]) {
			t.Fatalf("from %d on the keystream is another one", off)
		}
	}
}

func TestEncodeRefuses(t *testing.T) {
	c := testCoder(7)
	for name, in := range map[string]Input{
		"a data pack with a log meta": {Header: dataHeader(2, 1), Meta: Meta{Log: &LogMeta{}}},
		"a log pack without":          {Header: logHeader(2, 1)},
		"no shards":                   {Header: dataHeader(0, 1)},
		"too many shards":             {Header: dataHeader(30, 3)},
		"a data pack with a position": {Header: func() Header { h := logHeader(2, 1); h.Kind = Data; return h }()},
		"an entry beyond the payload": {Header: dataHeader(2, 1), Meta: Meta{Entries: []Entry{{Info: Info{SealedLen: 2}}}}, Payload: []byte{1}},
		"entries that overlap":        {Header: dataHeader(2, 1), Meta: Meta{Entries: []Entry{{Info: Info{SealedLen: 2}}, {Info: Info{SealedLen: 2}, Offset: 1}}}, Payload: make([]byte, 9)},
		"a payload too large for one": {Header: dataHeader(1, 1), Payload: make([]byte, MaxShardSize)},
		"no writer":                   {Header: func() Header { h := dataHeader(2, 1); h.Writer = id.Writer{}; return h }()},
	} {
		if e, err := c.Encode(in); err == nil {
			t.Errorf("%s was encoded: %+v", name, e.Header)
		} else if errors.Is(err, ErrDamaged) {
			t.Errorf("%s: %v; nothing stored is damaged", name, err)
		}
	}
}

// H57: the meta's nonce is drawn, whatever the pack ID is.
func TestNoncesAreDrawn(t *testing.T) {
	h := dataHeader(1, 1)
	h.Pack = id.Pack{1}
	c := testCoder(9)
	seen := map[string]bool{}
	for range 100 {
		e := encode(t, c, Input{Header: h})
		seen[string(e.Header.InlineMeta(e.Shards[0].Head)[:nonceSize])] = true
	}
	if len(seen) != 100 {
		t.Errorf("%d nonces in 100 seals", len(seen))
	}
	c.Rand = nil
	if a, b := encode(t, c, Input{Header: dataHeader(1, 1)}), encode(t, c, Input{Header: dataHeader(1, 1)}); a.Header.Pack == b.Header.Pack {
		t.Error("two packs have one ID")
	}
}

// failing gives no randomness.
type failing struct{}

func (failing) Read([]byte) (int, error) { return 0, errors.New("no randomness") }

func TestEncodeWithoutRandomness(t *testing.T) {
	c := testCoder(1)
	c.Rand = failing{}
	for _, p := range []id.Pack{{}, {1}} {
		h := dataHeader(2, 1)
		h.Pack = p
		if _, err := c.Encode(Input{Header: h, Payload: []byte("x")}); err == nil {
			t.Error("a pack was sealed without randomness")
		}
	}
}

// A meta that a broken writer sealed under the right key is damage, not a panic
// further on.
func TestSealedNonsenseIsRefused(t *testing.T) {
	c := testCoder(12)
	logOf := func(n uint32) Meta { return Meta{PayloadLen: n, Log: &LogMeta{}} }
	seal := func(h Header, m Meta, spoil func(plain []byte)) error {
		enc := metaBytes(t, m)
		l, err := Fit(0, len(enc), int(h.K))
		if err != nil {
			t.Fatal(err)
		}
		h.Pack, h.MetaCoded, h.MetaLen, h.SliceLen = id.Pack{1}, l.MetaCoded, l.MetaLen, 100
		key := c.Secrets.MetaKey(h.Pack)
		plain := make([]byte, int(h.MetaLen)-nonceSize)
		binary.LittleEndian.PutUint32(plain, uint32(len(enc)))
		copy(plain[4:], enc)
		spoil(plain)
		sealed := newGCM(key).Seal(make([]byte, nonceSize), make([]byte, nonceSize), plain, h.additional())
		copy(h.MetaTag[:], sealed[h.MetaLen:])
		_, err = c.OpenMeta(h, sealed[:h.MetaLen])
		return err
	}
	sound := func([]byte) {}
	if err := seal(logHeader(2, 1), logOf(200), sound); err != nil {
		t.Fatalf("a sound one: %v", err)
	}
	for name, err := range map[string]error{
		"a payload longer than the stream": seal(logHeader(2, 1), logOf(201), sound),
		"a log meta in a data pack":        seal(dataHeader(2, 1), logOf(200), sound),
		"a data meta in a log pack":        seal(logHeader(2, 1), Meta{PayloadLen: 200}, sound),
		"a byte behind the encoding":       seal(logHeader(2, 1), logOf(200), func(p []byte) { p[len(p)-1] = 1 }),
		"a length beyond the seal":         seal(logHeader(2, 1), logOf(200), func(p []byte) { p[3] = 0xff }),
		"a length of nothing":              seal(logHeader(2, 1), logOf(200), func(p []byte) { clear(p[:4]) }),
		"an encoding cut short":            seal(logHeader(2, 1), logOf(200), func(p []byte) { p[0]-- }),
	} {
		if !errors.Is(err, ErrDamaged) {
			t.Errorf("%s: %v", name, err)
		}
	}
	// Padded further than its length asks for.
	h := logHeader(2, 1)
	h.Pack, h.SliceLen, h.MetaLen = id.Pack{1}, 100, 1024
	enc := metaBytes(t, logOf(200))
	plain := make([]byte, int(h.MetaLen)-nonceSize)
	binary.LittleEndian.PutUint32(plain, uint32(len(enc)))
	copy(plain[4:], enc)
	sealed := newGCM(c.Secrets.MetaKey(h.Pack)).Seal(make([]byte, nonceSize), make([]byte, nonceSize), plain, h.additional())
	copy(h.MetaTag[:], sealed[h.MetaLen:])
	if _, err := c.OpenMeta(h, sealed[:h.MetaLen]); !errors.Is(err, ErrDamaged) {
		t.Errorf("padded too far: %v", err)
	}
}

// Data slices that lie where they belong are left where they are.
func TestAssembleInPlace(t *testing.T) {
	c := testCoder(13)
	e := encode(t, c, Input{Header: dataHeader(4, 2), Payload: noise(13, 50_000)})
	size := int(e.Header.SliceLen)
	for _, lost := range [][]int{nil, {0}, {3, 1}, {4, 5}} {
		stream := bytes.Repeat([]byte{0xcc}, 4*size)
		shards := cloneShards(e.Shards)
		for i := range 4 {
			at := stream[i*size : (i+1)*size]
			if !slices.Contains(lost, i) {
				copy(at, shards[i].Slice)
				shards[i].Slice = at
			}
		}
		for _, i := range lost {
			shards[i] = Shard{}
		}
		o, err := c.Assemble(e.Header.Pack, shards, e.Digests, stream)
		if err != nil || !bytes.Equal(o.Payload, noise(13, 50_000)) || &o.Payload[0] != &stream[0] || o.lent != nil {
			t.Errorf("without %v: %v, or another payload, or copied", lost, err)
		}
		o.Release()
		if stream[0] != noise(13, 1)[0] {
			t.Errorf("without %v: the caller's buffer went back to the pool", lost)
		}
	}
}
