package chunker

import (
	"bytes"
	"flag"
	"fmt"
	"math/bits"
	"math/rand/v2"
	"os"
	"slices"
	"testing"

	"pgregory.net/rapid"
)

// testKey and testGear are what tests use that do not care for the key.
var (
	testKey  = sequence()
	testGear = NewGear(&testKey)
)

func sequence() (key [32]byte) {
	for i := range key {
		key[i] = byte(i)
	}
	return key
}

// Parameters small enough to try everything, and large enough for full lanes.
var (
	tiny   = Params{Min: 64, Avg: 256, Max: 1024}
	small  = Params{Min: 4 << 10, Avg: 16 << 10, Max: 64<<10 - 1<<10} // the default by 64
	medium = Params{Min: 8 << 10, Avg: 32 << 10, Max: 80 << 10}
)

// TestMain makes rapid try more than its 100 cases, which take no time here, and
// many more with CAIRN_LONG=1; -rapid.checks still decides when it is given.
func TestMain(m *testing.M) {
	checks := "500"
	if long() {
		checks = "50000"
	}
	if err := flag.Set("rapid.checks", checks); err != nil {
		panic(err)
	}
	os.Exit(m.Run())
}

func long() bool { return os.Getenv("CAIRN_LONG") == "1" }

func newCutter(t testing.TB, g *Gear, p Params) *Cutter {
	t.Helper()
	c, err := NewCutter(g, p)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// windowHash is the hash behind data[:n] as docs/formats/chunking.md defines it:
// no state, no lanes, one sum over the last 64 bytes.
func windowHash(g *Gear, data []byte, n int) uint64 {
	var h uint64
	for age := range 64 {
		h += g.table()[data[n-1-age]] << age
	}
	return h
}

// zeros reports whether the k highest bits of h are 0, bit by bit.
func zeros(h uint64, k int) bool {
	for i := range k {
		if h>>(63-i)&1 == 1 {
			return false
		}
	}
	return true
}

// slowCut is Cut by the definition: the lengths are tried one after the other,
// and each hash is computed from nothing.
func slowCut(g *Gear, p Params, data []byte, final bool) int {
	log := 0
	for 1<<log < p.Avg {
		log++
	}
	normal := p.Avg*7/8 - p.Min/4
	for n := p.Min; n <= len(data) && n < p.Max; n++ {
		k := log + 2
		if n >= normal {
			k = log - 2
		}
		if zeros(windowHash(g, data, n), k) {
			return n
		}
	}
	switch {
	case len(data) >= p.Max:
		return p.Max
	case final:
		return len(data)
	}
	return 0
}

// plainCut is Cut as one would first write it: the loop of the FastCDC paper, a
// byte at a time, begun a window before the minimum. It is for data too long for
// slowCut, with which TestCutIsTheDefinition compares it.
func plainCut(g *Gear, p Params, data []byte, final bool) int {
	var h uint64
	t := g.table()
	k := bits.Len(uint(p.Avg)) - 1
	for i := p.Min - 64; i < min(len(data), p.Max-1); i++ {
		h = h*2 + t[data[i]]
		mask := ^uint64(0) << (64 - (k + 2))
		if i+1 >= p.Avg*7/8-p.Min/4 {
			mask = ^uint64(0) << (64 - (k - 2))
		}
		if i+1 >= p.Min && h&mask == 0 {
			return i + 1
		}
	}
	switch {
	case len(data) >= p.Max:
		return p.Max
	case final:
		return len(data)
	}
	return 0
}

// plainLengths cuts a whole stream with plainCut.
func plainLengths(g *Gear, p Params, data []byte) (lengths []int) {
	for len(data) > 0 {
		n := plainCut(g, p, data, true)
		lengths = append(lengths, n)
		data = data[n:]
	}
	return lengths
}

// lengths cuts a whole stream with Cut.
func lengths(c *Cutter, data []byte) (lengths []int) {
	for len(data) > 0 {
		n := c.Cut(data, true)
		if n <= 0 || n > len(data) {
			panic(fmt.Sprintf("cut at %d of %d bytes", n, len(data)))
		}
		lengths = append(lengths, n)
		data = data[n:]
	}
	return lengths
}

func random(seed uint64, n int) []byte {
	var s [32]byte
	for i := range 8 {
		s[i] = byte(seed >> (8 * i))
	}
	b := make([]byte, n)
	rand.NewChaCha8(s).Read(b)
	return b
}

// text gives words of a small vocabulary, some much more common than others.
func text(seed uint64, n int) []byte {
	r := rand.New(rand.NewPCG(seed, 1))
	words := make([][]byte, 2000)
	for i := range words {
		w := make([]byte, 2+r.IntN(9))
		for j := range w {
			w[j] = 'a' + byte(r.IntN(26))
		}
		words[i] = w
	}
	zipf := rand.NewZipf(r, 1.2, 4, uint64(len(words)-1))
	b := make([]byte, 0, n+16)
	for len(b) < n {
		b = append(b, words[zipf.Uint64()]...)
		b = append(b, " \n"[min(r.IntN(12)/11, 1)])
	}
	return b[:n]
}

func pattern(p []byte, n int) []byte { return bytes.Repeat(p, n/len(p)+1)[:n] }

// drawData draws data of the kinds that have troubled chunkers: random, constant,
// periodic, with few different bytes, and stretches of these in a row.
func drawData(t *rapid.T, maxLen int) []byte {
	var data []byte
	for range rapid.IntRange(1, 4).Draw(t, "stretches") {
		// Drawn from a range, most lengths would be small.
		n := rapid.SampledFrom([]int{0, 1, window, maxLen / 64, maxLen / 16, maxLen / 4}).Draw(t, "length") +
			rapid.IntRange(0, window).Draw(t, "more")
		seed := rapid.Uint64().Draw(t, "seed")
		switch rapid.IntRange(0, 3).Draw(t, "kind") {
		case 0:
			data = append(data, random(seed, n)...)
		case 1:
			data = append(data, pattern([]byte{byte(seed)}, n)...)
		case 2:
			data = append(data, pattern(random(seed, 1+int(seed%200)), n)...)
		case 3:
			b := random(seed, n)
			for i := range b {
				b[i] &= 1
			}
			data = append(data, b...)
		}
	}
	return data
}

// drawParams draws small valid parameters, their extremes among them.
func drawParams(t *rapid.T) Params {
	p := Params{Avg: 256 << rapid.IntRange(0, 5).Draw(t, "avg")}
	p.Min = rapid.IntRange(window, p.Avg/2).Draw(t, "min")
	p.Max = rapid.IntRange(2*p.Avg, 8*p.Avg).Draw(t, "max")
	return p
}

func drawGear(t *rapid.T) *Gear {
	key := [32]byte(random(rapid.Uint64().Draw(t, "key"), 32))
	return NewGear(&key)
}

func TestCutIsTheDefinition(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		g, p := drawGear(t), drawParams(t)
		c, err := NewCutter(g, p)
		if err != nil {
			t.Fatal(err)
		}
		data := drawData(t, 4*p.Max)
		final := rapid.Bool().Draw(t, "final")
		for {
			got, want := c.Cut(data, final), slowCut(g, p, data, final)
			if got != want {
				t.Fatalf("%+v, %d bytes, final %v: cut at %d, want %d", p, len(data), final, got, want)
			}
			if plain := plainCut(g, p, data, final); plain != want {
				t.Fatalf("%+v, %d bytes, final %v: the plain loop cuts at %d, want %d", p, len(data), final, plain, want)
			}
			if got == 0 {
				break
			}
			data = data[got:]
		}
	})
}

// The same over data as long as real chunks, where all lanes are full.
func TestProfilesCutAsThePlainLoop(t *testing.T) {
	data := slices.Concat(random(1, 9<<20), make([]byte, 5<<20), text(2, 3<<20), random(3, 12345))
	for name, p := range map[string]Params{"default": Default(), "fine": Fine()} {
		got, want := lengths(newCutter(t, testGear, p), data), plainLengths(testGear, p, data)
		if !slices.Equal(got, want) {
			t.Errorf("%s: cuts %v, want %v", name, got, want)
		}
	}
}

// planter builds data whose first window with a wanted hash ends where a test
// wants it: a filler that never matches, with a matching window planted in it.
type planter struct {
	c             *Cutter
	filler        byte
	strict, loose []byte // match behind the filler: under both masks, under the loose one only
}

func newPlanter(t *testing.T, c *Cutter) *planter {
	t.Helper()
	p := &planter{c: c}
	before := func() []byte { return pattern([]byte{p.filler}, window) }
	for windowHash(c.gear, before(), window) < c.loose {
		p.filler++
	}
	// Random bytes behind the filler, up to the first match: nothing before it
	// matches, by construction.
	for seed := uint64(0); p.strict == nil || p.loose == nil; seed++ {
		b := append(before(), random(seed, window)...)
		n, h := window, windowHash(c.gear, b, window)
		for ; n < len(b) && h >= c.loose; n++ {
			h = h*2 + c.gear.table()[b[n]]
		}
		switch w := b[window:n]; {
		case h < c.strict && p.strict == nil:
			p.strict = w
		case h >= c.strict && h < c.loose && p.loose == nil:
			p.loose = w
		}
	}
	return p
}

// at returns size bytes of filler with w planted to end at n.
func (p *planter) at(w []byte, n, size int) []byte {
	data := pattern([]byte{p.filler}, size)
	// What follows a match may match again, but that is later.
	copy(data[n-len(w):], w)
	return data
}

// A match is found wherever it ends: at the minimum, about the normal point, just
// before the maximum, on each side of each lane's border, at every alignment.
func TestMatchesAreFoundEverywhere(t *testing.T) {
	for _, params := range []Params{tiny, {Min: 100, Avg: 512, Max: 1500}, medium} {
		c := newCutter(t, testGear, params)
		p := newPlanter(t, c)
		size := params.Max + 10
		try := func(w []byte, n, want int) {
			t.Helper()
			data := p.at(w, n, size)
			if got := c.Cut(data, false); got != want {
				t.Fatalf("%+v: match at %d: cut at %d, want %d", params, n, got, want)
			}
			// And when the data ends there, or one byte before.
			if want == n {
				if got := c.Cut(data[:n], false); got != n {
					t.Fatalf("%+v: match at the very end, %d: cut at %d", params, n, got)
				}
				if got := c.Cut(data[:n-1], false); got != 0 {
					t.Fatalf("%+v: cut at %d before the match at %d was there", params, got, n)
				}
			}
		}
		// In the small ones every length, in the large one every border that the
		// division into blocks and lanes can have, and all alignments about it.
		interesting := map[int]bool{}
		around := func(n int) {
			for d := -10; d <= 10; d++ {
				interesting[n+d] = true
			}
		}
		if params.Max <= 2000 {
			for n := params.Min; n < params.Max; n++ {
				interesting[n] = true
			}
		} else {
			around(params.Min)
			around(c.normal)
			around(params.Max)
			for _, start := range []int{params.Min, c.normal} {
				for n := start; n < params.Max; n += laneMax {
					around(n)
				}
			}
			for _, span := range [][2]int{{params.Min, c.normal}, {c.normal, params.Max}} {
				rest := (span[1] - span[0]) % (lanes * laneMax)
				for l := range lanes + 1 {
					around(span[1] - rest + l*(rest/lanes))
				}
			}
		}
		for n := range interesting {
			switch {
			case n < params.Min:
				// Too early: the window is skipped, unless the filler after it
				// happens to match; the definition knows.
				data := p.at(p.strict, n, size)
				try(p.strict, n, plainCut(testGear, params, data, false))
			case n >= params.Max:
				try(p.strict, n, params.Max)
			case n < c.normal:
				try(p.strict, n, n)
				data := p.at(p.loose, n, size)
				if got, want := c.Cut(data, false), plainCut(testGear, params, data, false); got != want || got == n {
					t.Fatalf("%+v: loose match at %d: cut at %d, want %d", params, n, got, want)
				}
			default:
				try(p.strict, n, n)
				try(p.loose, n, n)
			}
		}
	}
}

// Two matches in one block: the smaller length wins, also when the lane of the
// larger one comes to it earlier.
func TestTheEarlierMatchWins(t *testing.T) {
	c := newCutter(t, testGear, medium)
	p := newPlanter(t, c)
	for _, first := range []int{5, 100, 4000, 4096, 4097, 8000, 12000, 16000} {
		for _, gap := range []int{200, 3000, 4000, 4096, 4200, 8100, 12288, 15000} {
			n := c.normal + first
			data := p.at(p.loose, n, medium.Max)
			copy(data[n+gap-len(p.loose):], p.loose)
			if got := c.Cut(data, false); got != n {
				t.Errorf("matches at %d and %d: cut at %d", n, n+gap, got)
			}
		}
	}
}

func TestConstantAndPeriodicData(t *testing.T) {
	for _, params := range []Params{tiny, small} {
		c := newCutter(t, testGear, params)
		for b := 0; b < 256; b += 1 + params.Min/512 {
			data := pattern([]byte{byte(b)}, 3*params.Max+17)
			if got, want := lengths(c, data), plainLengths(testGear, params, data); !slices.Equal(got, want) {
				t.Errorf("%+v: bytes %#02x: cuts %v, want %v", params, b, got, want)
			}
		}
		for period := 2; period < 200; period += 3 + params.Min/512 {
			data := pattern(random(uint64(period), period), 3*params.Max+17)
			if got, want := lengths(c, data), plainLengths(testGear, params, data); !slices.Equal(got, want) {
				t.Errorf("%+v: period %d: cuts %v, want %v", params, period, got, want)
			}
		}
	}
}

func TestShortStreamsAreOneChunk(t *testing.T) {
	for _, params := range []Params{tiny, small} {
		c := newCutter(t, testGear, params)
		data := random(5, params.Min)
		for n := range params.Min {
			if got := c.Cut(data[:n], true); got != n {
				t.Fatalf("%+v: %d bytes: cut at %d", params, n, got)
			}
			if got := c.Cut(data[:n], false); got != 0 {
				t.Fatalf("%+v: %d bytes, not final: cut at %d, want 0", params, n, got)
			}
		}
	}
}

// What comes after the cut, and what came before the chunk, changes nothing.
func TestCutDependsOnTheChunkAlone(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		p := drawParams(t)
		c, err := NewCutter(testGear, p)
		if err != nil {
			t.Fatal(err)
		}
		data := drawData(t, 3*p.Max)
		n := c.Cut(data, false)
		if n == 0 {
			return
		}
		seed := rapid.Uint64().Draw(t, "other")
		other := slices.Concat(random(seed, 333), data[:n], random(seed+1, p.Max))
		if got := c.Cut(other[333:], rapid.Bool().Draw(t, "final")); got != n {
			t.Fatalf("%+v: cut at %d, among other bytes at %d", p, n, got)
		}
		if got := c.Cut(data[:n], false); got != n {
			t.Fatalf("%+v: cut at %d, with nothing behind it %d", p, n, got)
		}
	})
}

// Data that grows is cut as if it had been there at once.
func TestCutFromGoesOn(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		p := drawParams(t)
		c, err := NewCutter(testGear, p)
		if err != nil {
			t.Fatal(err)
		}
		data := drawData(t, 3*p.Max)
		final := rapid.Bool().Draw(t, "final")
		want := slowCut(testGear, p, data, final)
		seen, got := 0, 0
		for got == 0 {
			n := min(len(data), seen+rapid.IntRange(1, p.Avg).Draw(t, "more"))
			got = c.CutFrom(data[:n], seen, final && n == len(data))
			if n == len(data) {
				break
			}
			seen = n
		}
		if got != want {
			t.Fatalf("%+v, %d bytes: cut at %d piece by piece, %d at once", p, len(data), got, want)
		}
	})
}

// A seen that no call returned 0 for cuts at wrong places, never at impossible ones.
func TestCutFromKeepsBounds(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		p := drawParams(t)
		c, err := NewCutter(testGear, p)
		if err != nil {
			t.Fatal(err)
		}
		data := drawData(t, 2*p.Max)
		seen := rapid.IntRange(-10, 3*p.Max).Draw(t, "seen")
		final := rapid.Bool().Draw(t, "final")
		n := c.CutFrom(data, seen, final)
		switch {
		case n < 0 || n > len(data) || n > p.Max,
			n > 0 && n < p.Min && !(final && n == len(data)),
			n == 0 && len(data) > 0 && (final || len(data) >= p.Max):
			t.Fatalf("%+v, %d bytes, seen %d, final %v: cut at %d", p, len(data), seen, final, n)
		}
	})
}
