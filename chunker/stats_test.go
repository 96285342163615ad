package chunker

import (
	"bytes"
	"fmt"
	"maps"
	"math"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
)

// ends returns where the chunks of data end.
func ends(c *Cutter, data []byte) map[int]bool {
	at, m := 0, map[int]bool{}
	for _, n := range lengths(c, data) {
		at += n
		m[at] = true
	}
	return m
}

// After an edit the cuts find back to the old ones. The bounds hold for these
// seeds, with room: 97 of 100 edits moved no cut at all, the worst moved 7.
func TestEditsMoveOnlyCutsNearby(t *testing.T) {
	const (
		edits     = 2000
		unmoved   = 0.95 // of all edits, at least
		worst     = 16   // new cuts after an edit, at most
		longest   = 200  // bytes inserted, deleted or replaced
		dataBytes = 2 << 20
	)
	c := newCutter(t, testGear, small)
	for _, kind := range []struct {
		name string
		data []byte
	}{{"random", random(3, dataBytes)}, {"text", text(3, dataBytes)}} {
		data := kind.data
		before := ends(c, data)
		cuts := slices.Sorted(maps.Keys(before))
		r := rand.New(rand.NewPCG(1, 2))
		still, most := 0, 0
		for i := range edits {
			// Not at the end, where too few cuts follow to find back.
			pos := r.IntN(dataBytes - (worst+2)*small.Max)
			cut, insert := 1+r.IntN(longest), random(r.Uint64(), 1+r.IntN(longest))
			switch i % 4 {
			case 0: // insert
				cut = 0
			case 1: // delete
				insert = nil
			case 2: // replace
				cut = len(insert)
			}
			// Nothing before the chunk with the edit can change; the chunk before it
			// is cut again all the same.
			start := 0
			if k, _ := slices.BinarySearch(cuts, pos+1); k > 1 {
				start = cuts[k-2]
			}
			edited := slices.Concat(data[start:pos], insert, data[pos+cut:pos+cut+(worst+2)*small.Max])
			for at, moved := start, 0; ; moved++ {
				n := c.Cut(edited, false)
				if n == 0 || moved > worst {
					t.Fatalf("%s: edit %d, %d bytes at %d for %d: %d cuts moved, and no end", kind.name, i, len(insert), pos, cut, moved)
				}
				edited = edited[n:]
				if at += n; at <= pos {
					if !before[at] {
						t.Fatalf("%s: an edit at %d moved the cut at %d", kind.name, pos, at)
					}
					moved--
				} else if old := at - len(insert) + cut; old >= pos+cut && before[old] {
					if moved == 0 {
						still++
					}
					most = max(most, moved)
					break
				}
			}
		}
		t.Logf("%s: %d of %d edits moved no cut, the worst moved %d", kind.name, still, edits, most)
		if float64(still) < unmoved*edits {
			t.Errorf("%s: %d of %d edits moved no cut, want %v of all", kind.name, still, edits, unmoved)
		}
	}
}

// The rest of a stream that begins elsewhere, or lies inside another file, is cut
// at the same places.
func TestSharedTailsShareChunks(t *testing.T) {
	c := newCutter(t, testGear, small)
	data := random(4, 1<<20)
	before := ends(c, data)
	for skip := 1; skip < len(data)/2; skip += 31337 {
		shared, total := 0, 0
		for end := range ends(c, data[skip:]) {
			total++
			if before[skip+end] {
				shared++
			}
		}
		if total-shared > 10 {
			t.Errorf("from %d on, %d of %d cuts are others", skip, total-shared, total)
		}
	}
}

func TestAnotherKeyMovesTheCuts(t *testing.T) {
	for _, data := range [][]byte{random(5, 8<<20), text(5, 8<<20)} {
		a := ends(newCutter(t, testGear, small), data)
		for bit := range 256 {
			if bit%37 != 0 {
				continue
			}
			key := testKey
			key[bit/8] ^= 1 << (bit % 8)
			common := 0
			b := ends(newCutter(t, NewGear(&key), small), data)
			for end := range b {
				if a[end] && end < len(data) {
					common++
				}
			}
			// By chance a cut in 16 Ki bytes meets another: none is expected.
			if common > 2 {
				t.Errorf("key with bit %d changed: %d of %d cuts are the same", bit, common, len(b))
			}
		}
	}
}

// expectedMean is the mean length over random data, from the distribution: the
// sum over all lengths of the probability that a chunk is longer.
func expectedMean(p Params) float64 {
	mean, longer := float64(p.Min), 1.0
	for n := p.Min; n < p.Max; n++ {
		q := 1 / float64(4*p.Avg)
		if n >= p.Avg*7/8-p.Min/4 {
			q = 4 / float64(p.Avg)
		}
		longer *= 1 - q
		mean += longer
	}
	return mean
}

// Params promises that Avg is the mean over random data.
func TestExpectedMeanIsAvg(t *testing.T) {
	for avg := 4096; avg <= 4<<20; avg *= 4 {
		for _, minimum := range []int{window, avg / 8, avg / 4, avg / 3, avg / 2} {
			for _, maximum := range []int{2 * avg, 4 * avg} {
				p := Params{minimum, avg, maximum}
				if got := expectedMean(p) / float64(avg); got < 0.97 || got > 1.0 {
					t.Errorf("%+v: a mean of %.4f Avg is expected", p, got)
				}
			}
		}
	}
	for _, p := range []Params{Default(), Fine()} {
		if got := expectedMean(p) / float64(p.Avg); math.Abs(got-0.992) > 0.001 {
			t.Errorf("%+v: a mean of %.4f Avg is expected, documented is 0.992", p, got)
		}
	}
}

// And random data gives the mean that is expected: within four standard errors.
func TestMeanOverRandomData(t *testing.T) {
	bytesEach := float64(64 << 20)
	profiles := []Params{small}
	if long() {
		bytesEach = 2 << 30
		profiles = append(profiles, Fine(), Default())
	}
	for _, p := range profiles {
		for key := range uint64(3) {
			k := [32]byte(random(key, 32))
			chunks := New(noise{rand.NewChaCha8(k)}, newCutter(t, NewGear(&k), p), nil)
			var sum, squares, count float64
			for sum < bytesEach {
				chunk, err := chunks.Next()
				if err != nil {
					t.Fatal(err)
				}
				n := float64(len(chunk))
				sum, squares, count = sum+n, squares+n*n, count+1
			}
			mean := sum / count
			se := math.Sqrt((squares/count-mean*mean)/count) / float64(p.Avg)
			got, want := mean/float64(p.Avg), expectedMean(p)/float64(p.Avg)
			t.Logf("%+v: %.0f chunks, mean %.4f Avg, deviation %.3f Avg", p, count, got, se*math.Sqrt(count))
			if math.Abs(got-want) > 4*se {
				t.Errorf("%+v, key %d: mean %.4f Avg, want %.4f +- %.4f", p, key, got, want, 4*se)
			}
		}
	}
}

type noise struct{ *rand.ChaCha8 } // endless

func TestValidate(t *testing.T) {
	for _, p := range []Params{Default(), Fine(), tiny, small, medium, {64, 256, 512}, {128, 256, 1 << 30}, {64, 1 << 29, 1 << 30}} {
		if err := p.Validate(); err != nil {
			t.Errorf("%+v: %v", p, err)
		}
	}
	for field, bad := range map[string][]Params{
		"Min": {{63, 256, 1024}, {129, 256, 1024}, {-64, 256, 1024}, {1 << 30, 1 << 20, 1 << 22}},
		"Avg": {{}, {64, 0, 1024}, {64, 128, 1024}, {64, 257, 1024}, {64, 255, 1024}, {64, -256, 1024}, {64, 1 << 30, 1 << 30}, {64, math.MinInt, 1024}},
		"Max": {{64, 256, 511}, {64, 256, 0}, {64, 256, -1}, {64, 256, 1<<30 + 1}},
	} {
		for _, p := range bad {
			err := p.Validate()
			if err == nil || !strings.Contains(err.Error(), field+" is") {
				t.Errorf("%+v: %v, want an error that names %s", p, err, field)
			}
			if c, err := NewCutter(testGear, p); c != nil || err == nil {
				t.Errorf("%+v: NewCutter took it", p)
			}
		}
	}
}

// No verb prints the table, also not one that fmt does not know for it.
func TestGearDoesNotPrint(t *testing.T) {
	c := newCutter(t, testGear, small)
	k := New(bytes.NewReader(nil), c, nil)
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%x", "%d", "%q"} {
		for _, g := range []any{testGear, *testGear} {
			if got := fmt.Sprintf(verb, g); got != "chunker.Gear(secret)" {
				t.Errorf("%s of a %T prints %.60q", verb, g, got)
			}
		}
		for _, v := range []any{c, *c, k, *k, struct{ g Gear }{*testGear}, struct{ g *Gear }{testGear}, map[string]*Gear{"g": testGear}} {
			out := fmt.Sprintf(verb, v)
			for _, w := range testGear.table()[:8] {
				for _, f := range []string{"%d", "%x", "%X"} {
					if strings.Contains(out, fmt.Sprintf(f, w)) {
						t.Errorf("%s of a %T prints the table: %.100q", verb, v, out)
					}
				}
			}
		}
	}
}
