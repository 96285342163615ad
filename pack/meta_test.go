package pack

import (
	"bytes"
	"encoding/hex"
	"errors"
	"math/rand/v2"
	"reflect"
	"strings"
	"testing"

	"github.com/fxamacker/cbor/v2"
	"pgregory.net/rapid"

	"cairn/id"
)

// drawMeta draws a meta with every field set or not.
func drawMeta(t *rapid.T, carried int) Meta {
	r := rand.New(rand.NewPCG(rapid.Uint64().Draw(t, "seed"), 4))
	m := Meta{PayloadLen: uint32(rapid.OneOf(rapid.Just(0), rapid.IntRange(1, 1<<25)).Draw(t, "payload"))}
	m.Entries = cutEntries(r, int(m.PayloadLen), rapid.IntRange(1, 40).Draw(t, "entries"))
	if !rapid.Bool().Draw(t, "log") && carried >= 0 {
		return m
	}
	l := &LogMeta{}
	m.Log = l
	m.Sum = [16]byte(noise(r.Uint64(), 16))
	set := rapid.Uint16().Draw(t, "set")
	if set&1 != 0 {
		*l = *logMeta(r, r.IntN(20), 1+r.IntN(300))
	}
	for i, f := range []func(){
		func() { l.Prev = nil }, func() { l.SnapshotSeq = 0 }, func() { l.Snapshot = nil }, func() { l.Truncated = r.Uint64() },
		func() { l.ClusterVersion = 1 << 60 }, func() { l.LowWater = 0 }, func() { l.Time = int64(r.Uint64()) }, func() { l.Clean = false },
	} {
		if set>>(i+1)&1 != 0 {
			f()
		}
	}
	if set>>9&1 != 0 {
		l.Begin = &Begin{}
		for range r.IntN(4) {
			l.Begin.Retired = append(l.Begin.Retired, id.Writer(noise(r.Uint64(), 16)))
		}
		for range max(0, carried) {
			sub := drawMeta(t, -1)
			if sub.PayloadLen > m.PayloadLen {
				continue
			}
			if sub.Log.Begin != nil {
				sub.Log.Begin.Carried = nil
			}
			b, err := sub.Append(nil)
			if err != nil {
				t.Fatalf("carried: %v", err)
			}
			h := logHeader(1+r.IntN(4), r.IntN(3))
			h.Pack, h.SliceLen, h.Seq = id.Pack(noise(r.Uint64(), 16)), r.Uint32N(1<<20), 1+r.Uint64N(1<<40)
			l.Begin.Carried = append(l.Begin.Carried, Carried{Header: h, Meta: b, Off: r.Uint32N(m.PayloadLen - sub.PayloadLen + 1), Len: sub.PayloadLen})
		}
	}
	return m
}

func TestMetaRoundTrip(t *testing.T) {
	carried := 0
	rapid.Check(t, func(t *rapid.T) {
		m := drawMeta(t, 3)
		b, err := m.Append([]byte("before"))
		if err != nil {
			t.Fatal(err)
		}
		got, err := ParseMeta(b[6:])
		if err != nil {
			t.Fatalf("%x: %v", b[6:], err)
		}
		if !reflect.DeepEqual(got, m) && !equalButNil(got, m) {
			t.Fatalf("%+v, want %+v", got, m)
		}
		if got.Log != nil && got.Log.Begin != nil {
			carried += len(got.Log.Begin.Carried)
		}
		// What was decoded does not look into the encoding.
		clear(b)
		if !reflect.DeepEqual(got, m) && !equalButNil(got, m) {
			t.Fatalf("a decoded meta refers to what it was decoded from")
		}
	})
	if carried == 0 && !testing.Short() { // a short run draws twenty
		t.Error("no drawn meta carried a pack")
	}
}

// equalButNil takes empty slices for nil ones.
func equalButNil(a, b Meta) bool {
	norm := func(m Meta) Meta {
		if len(m.Entries) == 0 {
			m.Entries = nil
		}
		if m.Log != nil {
			l := *m.Log
			if len(l.Batches) == 0 {
				l.Batches = nil
			}
			if len(l.Snapshot) == 0 {
				l.Snapshot = nil
			}
			m.Log = &l
		}
		return m
	}
	return reflect.DeepEqual(norm(a), norm(b))
}

func TestMetaHasOneEncoding(t *testing.T) {
	// A log pack: payload of 5 bytes, sum, everything else absent.
	const sum = "0450" + "00112233445566778899aabbccddeeff"
	const good = "01" + "a3" + "0105" + "03a0" + sum
	if _, err := ParseMeta(unhex(t, good)); err != nil {
		t.Fatalf("the good one: %v", err)
	}
	for name, c := range map[string]struct {
		hex  string
		want error
	}{
		"nothing":                  {"", ErrDamaged},
		"version 0":                {"00" + good[2:], ErrDamaged},
		"version 2":                {"02" + good[2:], ErrNewer},
		"version 2, other content": {"02ff", ErrNewer},
		"trailing byte":            {good + "00", ErrDamaged},
		"cut":                      {good[:len(good)-2], ErrDamaged},
		"long form of 5":           {"01a3" + "011805" + "03a0" + sum, ErrDamaged},
		"long form of a length":    {"01a3" + "0105" + "03a0" + "045810" + sum[4:], ErrDamaged},
		"indefinite map":           {"01bf" + "0105" + "03a0" + sum + "ff", ErrDamaged},
		"indefinite bytes":         {"01a3" + "0105" + "03a0" + "045f50" + sum[4:] + "ff", ErrDamaged},
		"keys out of order":        {"01a3" + "03a0" + "0105" + sum, ErrDamaged},
		"a key twice":              {"01a4" + "0105" + "0105" + "03a0" + sum, ErrDamaged},
		"an unknown key":           {"01a4" + "0105" + "03a0" + sum + "0500", ErrDamaged},
		"an unknown key below":     {"01a3" + "0105" + "03a10b00" + sum, ErrDamaged},
		"a key of text":            {"01a4" + "0105" + "03a0" + sum + "617800", ErrDamaged},
		"an explicit zero":         {"01a3" + "0105" + "03a10200" + sum, ErrDamaged},
		"an explicit empty list":   {"01a4" + "0105" + "0280" + "03a0" + sum, ErrDamaged},
		"null for a log":           {"01a3" + "0105" + "03f6" + sum, ErrDamaged},
		"a tag":                    {"01a3" + "01c105" + "03a0" + sum, ErrDamaged},
		"a float":                  {"01a3" + "01f94500" + "03a0" + sum, ErrDamaged},
		"a negative length":        {"01a3" + "0124" + "03a0" + sum, ErrDamaged},
		"a length beyond 32 bits":  {"01a3" + "011b0000000100000000" + "03a0" + sum, ErrDamaged},
		"a short sum":              {"01a3" + "0105" + "03a0" + "044f" + sum[6:], ErrDamaged},
		"a long sum":               {"01a3" + "0105" + "03a0" + "0451" + sum[4:] + "00", ErrDamaged},
		"no sum":                   {"01a2" + "0105" + "03a0", ErrDamaged},
		"a sum outside the log":    {"01a2" + "0105" + sum, ErrDamaged},
		"a zero sum, no log":       {"01a2" + "0105" + "0450" + strings.Repeat("00", 16), ErrDamaged},
		"a list instead":           {"018105", ErrDamaged},
		"a list that claims 2^31":  {"01a1" + "029a80000000", ErrDamaged},
		"a list that claims 2^63":  {"01a1" + "029b8000000000000000", ErrDamaged},
		"bytes that claim 2^40":    {"01a1" + "045b0000010000000000", ErrDamaged},
		"deep":                     {"01a1" + "02" + strings.Repeat("81", 5000) + "00", ErrDamaged},
		"a short chunk ID":         {"01a2" + "0105" + "0281" + "88" + "01" + "41ff" + "01" + "01" + "00" + "00" + "01" + "01", ErrDamaged},
	} {
		if _, err := ParseMeta(unhex(t, c.hex)); !errors.Is(err, c.want) {
			t.Errorf("%s: %v, want %v", name, err, c.want)
		}
	}
}

func unhex(t *testing.T, s string) []byte {
	b, err := hex.DecodeString(s)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// What breaks a rule is neither written nor, when some other program wrote it,
// read.
func TestMetaRules(t *testing.T) {
	e := func(off, n uint32) Entry { return Entry{Info: Info{Realm: 1, SealedLen: n}, Offset: off} }
	good := func() Meta {
		return Meta{PayloadLen: 10, Entries: []Entry{e(0, 3), e(5, 5)}, Log: logMeta(rand.New(rand.NewPCG(1, 1)), 3, 10)}
	}
	inner, err := (&Meta{PayloadLen: 4, Log: &LogMeta{}}).Append(nil)
	if err != nil {
		t.Fatal(err)
	}
	h := logHeader(1, 2)
	h.Pack = id.Pack{1}
	carry := func(c Carried) func(*Meta) { return func(m *Meta) { m.Log.Begin = &Begin{Carried: []Carried{c}} } }
	nested, err := (&Meta{PayloadLen: 4, Log: &LogMeta{Begin: &Begin{Carried: []Carried{{Header: h, Meta: inner, Len: 4}}}}}).Append(nil)
	if err != nil {
		t.Fatal(err)
	}
	if m := good(); m.check() != nil {
		t.Fatal(m.check())
	}
	if m := good(); func() error { carry(Carried{Header: h, Meta: inner, Off: 6, Len: 4})(&m); return m.check() }() != nil {
		t.Fatal(m.check())
	}
	for name, breakIt := range map[string]func(*Meta){
		"an empty entry":            func(m *Meta) { m.Entries[0].SealedLen = 0 },
		"entries out of order":      func(m *Meta) { m.Entries[0], m.Entries[1] = m.Entries[1], m.Entries[0] },
		"entries that overlap":      func(m *Meta) { m.Entries[1].Offset = 2 },
		"an entry beyond":           func(m *Meta) { m.Entries[1].SealedLen = 6 },
		"an entry far beyond":       func(m *Meta) { m.Entries[1].SealedLen = 1<<32 - 1 },
		"too many entries":          func(m *Meta) { m.Entries = make([]Entry, MaxEntries+1) },
		"too many places":           func(m *Meta) { m.Log.Prev = make([]Place, MaxPlaces+1) },
		"a place of no node":        func(m *Meta) { m.Log.Prev[2].Node = id.Node{} },
		"a place of no instance":    func(m *Meta) { m.Log.Prev[2].Instance = 0 },
		"a place of shard 32":       func(m *Meta) { m.Log.Prev[2].Index = 32 },
		"a long snapshot reference": func(m *Meta) { m.Log.Snapshot = make([]byte, MaxSnapshot+1) },
		"too many batches":          func(m *Meta) { m.Log.Batches = make([]Batch, MaxBatches+1) },
		"an empty batch":            func(m *Meta) { m.Log.Batches[1].Body = nil },
		"batches out of order":      func(m *Meta) { m.Log.Batches[1].First = 0 },
		"too many retired":          func(m *Meta) { m.Log.Begin = &Begin{Retired: make([]id.Writer, MaxRetired+1)} },
		"too many carried":          func(m *Meta) { m.Log.Begin = &Begin{Carried: make([]Carried, MaxCarried+1)} },
		"carried without a header":  carry(Carried{Meta: inner, Len: 4}),
		"carried shard 1":           carry(Carried{Header: func() Header { h := h; h.Index = 1; return h }(), Meta: inner, Len: 4}),
		"carried data":              carry(Carried{Header: func() Header { h := dataHeader(1, 1); h.Pack = id.Pack{1}; return h }(), Meta: inner, Len: 4}),
		"carried without a meta":    carry(Carried{Header: h, Len: 4}),
		"carried of another length": carry(Carried{Header: h, Meta: inner, Len: 5}),
		"carried beyond":            carry(Carried{Header: h, Meta: inner, Off: 7, Len: 4}),
		"carried that carries":      carry(Carried{Header: h, Meta: nested, Off: 0, Len: 4}),
	} {
		m := good()
		breakIt(&m)
		if b, err := m.Append(nil); err == nil {
			t.Errorf("%s: written as %x", name, b)
		}
		w := wireMeta{PayloadLen: m.PayloadLen, Log: m.Log, Sum: m.Sum[:]}
		for _, e := range m.Entries {
			w.Entries = append(w.Entries, e.wire())
		}
		var buf bytes.Buffer
		buf.WriteByte(metaVersion)
		if err := encMode.MarshalToBuffer(&w, &buf); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if _, err := ParseMeta(buf.Bytes()); !errors.Is(err, ErrDamaged) {
			t.Errorf("%s: read with %v", name, err)
		}
	}
}

// A hundred starts in a row: what a begin pack carried goes along flat.
func TestCarryStaysFlat(t *testing.T) {
	c := testCoder(11)
	r := rand.New(rand.NewPCG(11, 11))
	payload := noise(1, 5000)
	e := encode(t, c, Input{Header: logHeader(1, 2), Meta: Meta{Entries: cutEntries(r, 5000, 4), Log: logMeta(r, 3, 50)}, Payload: bytes.Clone(payload)})
	var first []byte
	for start := range 101 {
		o, err := c.OpenTail(e.Shards)
		if err != nil {
			t.Fatalf("start %d: %v", start, err)
		}
		if start == 0 {
			first = metaBytes(t, o.Meta)
		} else {
			list := o.Meta.Log.Begin.Carried
			if len(list) != start {
				t.Fatalf("start %d: %d carried packs", start, len(list))
			}
			old := list[0]
			if !bytes.Equal(old.Meta, first) || !bytes.Equal(o.Payload[old.Off:][:old.Len], payload) {
				t.Fatalf("start %d: the first pack's meta or payload is not what it was", start)
			}
			if last := list[start-1]; last.Header.Epoch != o.Header.Epoch-1 && start > 1 {
				t.Fatalf("start %d: the predecessor is of epoch %d", start, last.Header.Epoch)
			}
		}
		const own = 3 // bytes of the begin pack's own payload, in front
		list, err := Carry(o.Header, o.Meta, own)
		if err != nil {
			t.Fatal(err)
		}
		h := logHeader(1, 2)
		h.Epoch, h.Seq, h.Prev = o.Header.Epoch+1, o.Header.Seq+1, o.Header.Pack
		e = encode(t, c, Input{Header: h, Meta: Meta{Log: &LogMeta{Begin: &Begin{Retired: []id.Writer{{1}}, Carried: list}}},
			Payload: append([]byte("own"), o.Payload...)})
	}
	if n := e.Header.ShardLen(); n > 128<<10 {
		t.Errorf("after a hundred starts the begin pack's shards have %d bytes", n)
	}
	if _, err := Carry(dataHeader(1, 1), Meta{}, 0); err == nil {
		t.Error("a data pack can be carried")
	}
}

func FuzzParseMeta(f *testing.F) {
	r := rand.New(rand.NewPCG(2, 2))
	m := Meta{PayloadLen: 5000, Entries: cutEntries(r, 5000, 4), Log: logMeta(r, 3, 20)}
	m.Log.Begin = &Begin{Retired: []id.Writer{{1}}}
	h := logHeader(1, 2)
	h.Pack = id.Pack{3}
	list, err := Carry(h, m, 0)
	if err != nil {
		f.Fatal(err)
	}
	b, err := (&Meta{PayloadLen: 5000, Log: &LogMeta{Begin: &Begin{Carried: list}}}).Append(nil)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	f.Add(list[0].Meta)
	m.Log = nil
	b, _ = m.Append(nil)
	f.Add(b)
	f.Fuzz(func(t *testing.T, b []byte) {
		m, err := ParseMeta(b)
		if err != nil {
			if !errors.Is(err, ErrDamaged) && !errors.Is(err, ErrNewer) {
				t.Fatalf("%x: %v", b, err)
			}
			return
		}
		again, err := m.Append(nil)
		if err != nil || !bytes.Equal(again, b) {
			t.Errorf("two encodings of one meta: %x and %x, %v", b, again, err)
		}
		// And an independent decoder sees well-formed CBOR.
		if err := cbor.Wellformed(b[1:]); err != nil {
			t.Errorf("%x: %v", b, err)
		}
	})
}
