package chunker

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"slices"
	"sync"
	"testing"
	"testing/iotest"

	"pgregory.net/rapid"
)

// drain reads all chunks, as copies, and the error that ended them.
func drain(k *Chunker) (chunks [][]byte, err error) {
	for {
		c, err := k.Next()
		if err != nil {
			if c != nil {
				return chunks, fmt.Errorf("%d bytes beside the error %w", len(c), err)
			}
			return chunks, err
		}
		chunks = append(chunks, bytes.Clone(c))
	}
}

func lengthsOf(chunks [][]byte) (lengths []int) {
	for _, c := range chunks {
		lengths = append(lengths, len(c))
	}
	return lengths
}

// checkStream asserts all that holds for a stream which ended well.
func checkStream(t interface {
	Helper()
	Fatalf(string, ...any)
}, what string, k *Chunker, data []byte) {
	t.Helper()
	p := k.cut.params
	chunks, err := drain(k)
	if err != io.EOF {
		t.Fatalf("%s: %d bytes: error %v, want io.EOF", what, len(data), err)
	}
	if got := bytes.Join(chunks, nil); !bytes.Equal(got, data) {
		t.Fatalf("%s: the chunks of %d bytes are %d bytes, or others", what, len(data), len(got))
	}
	for i, c := range chunks {
		if len(c) == 0 || len(c) > p.Max || len(c) < p.Min && i < len(chunks)-1 {
			t.Fatalf("%s: chunk %d of %d has %d bytes, want %d to %d", what, i, len(chunks), len(c), p.Min, p.Max)
		}
	}
	if got, want := lengthsOf(chunks), plainLengths(k.cut.gear, p, data); !slices.Equal(got, want) {
		t.Fatalf("%s: cuts %v, want %v", what, got, want)
	}
	if c, err := k.Next(); c != nil || err != io.EOF {
		t.Fatalf("%s: after the end: %d bytes and %v, want io.EOF again", what, len(c), err)
	}
}

// pieces is a reader that gives as much at a time as sizes say, in turn; a size
// of 0 is a read that brings nothing. With eof set the last bytes come with it.
type pieces struct {
	data  []byte
	sizes []int
	eof   bool
	turn  int
}

func (r *pieces) Read(p []byte) (int, error) {
	if len(r.data) == 0 {
		return 0, io.EOF
	}
	n := min(r.sizes[r.turn%len(r.sizes)], len(p), len(r.data))
	r.turn++
	copy(p, r.data[:n])
	r.data = r.data[n:]
	if r.eof && len(r.data) == 0 {
		return n, io.EOF
	}
	return n, nil
}

func TestCutsDoNotDependOnReads(t *testing.T) {
	data := slices.Concat(random(1, 700<<10), make([]byte, 200<<10), text(2, 300<<10), random(3, 77))
	for _, size := range []int{0, 1, small.Min - 1, small.Min, small.Max, small.Max + 1, 300 << 10, len(data)} {
		data := data[:size]
		for _, params := range []Params{tiny, small} {
			c := newCutter(t, testGear, params)
			for name, r := range map[string]io.Reader{
				"whole":       bytes.NewReader(data),
				"half":        iotest.HalfReader(bytes.NewReader(data)),
				"one byte":    iotest.OneByteReader(bytes.NewReader(data)),
				"data, EOF":   iotest.DataErrReader(bytes.NewReader(data)),
				"with gaps":   &pieces{data: data, sizes: []int{0, 4096, 0, 0, 1, 100_000}},
				"to the step": &pieces{data: data, sizes: []int{16 << 10}, eof: true},
			} {
				checkStream(t, fmt.Sprintf("%s, %+v", name, params), New(r, c, nil), data)
			}
		}
	}
}

func TestCutsDoNotDependOnRandomReads(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		p := drawParams(t)
		c, err := NewCutter(drawGear(t), p)
		if err != nil {
			t.Fatal(err)
		}
		data := drawData(t, 6*p.Max)
		r := &pieces{
			data:  data,
			sizes: append(rapid.SliceOfN(rapid.IntRange(0, 2*p.Max), 0, 20).Draw(t, "sizes"), 1),
			eof:   rapid.Bool().Draw(t, "eof"),
		}
		checkStream(t, "pieces", New(r, c, nil), data)
	})
}

// broken gives data and then fails, with the last bytes or after them.
type broken struct {
	data []byte
	err  error
	with bool
}

func (r *broken) Read(p []byte) (int, error) {
	n := copy(p, r.data)
	r.data = r.data[n:]
	if len(r.data) == 0 && (r.with || n == 0) {
		return n, r.err
	}
	return n, nil
}

// An upload that breaks off never looks whole: the chunks before are the true
// ones, and the rest is an error and not a chunk.
func TestBrokenStreams(t *testing.T) {
	data := random(7, 40<<10)
	c := newCutter(t, testGear, tiny)
	whole := plainLengths(testGear, tiny, data)
	mine := errors.New("the line is dead")
	wrapped := fmt.Errorf("read frame: %w", io.EOF)
	for size := 0; size < len(data); size += 171 {
		// What is certain after size bytes.
		var certain []int
		for at := 0; ; {
			n := plainCut(testGear, tiny, data[at:size], false)
			if n == 0 {
				break
			}
			certain = append(certain, n)
			at += n
		}
		if !slices.Equal(certain, whole[:len(certain)]) {
			t.Fatalf("the definition cuts %d bytes at %v, all at %v", size, certain, whole)
		}
		for _, with := range []bool{false, true} {
			for in, want := range map[error]error{mine: mine, io.ErrUnexpectedEOF: io.ErrUnexpectedEOF, wrapped: io.ErrUnexpectedEOF} {
				k := New(&broken{data[:size], in, with}, c, nil)
				chunks, err := drain(k)
				if got := lengthsOf(chunks); !slices.Equal(got, certain) {
					t.Fatalf("%d bytes, then %v: chunks %v, want %v", size, in, got, certain)
				}
				if !errors.Is(err, want) || errors.Is(err, io.EOF) || want == mine && err != mine {
					t.Fatalf("%d bytes, then %v: error %v, want %v", size, in, err, want)
				}
				if c, again := k.Next(); c != nil || again != err {
					t.Fatalf("%d bytes, then %v: then %d bytes and %v", size, in, len(c), again)
				}
			}
		}
	}
}

type readFunc func([]byte) (int, error)

func (f readFunc) Read(p []byte) (int, error) { return f(p) }

func TestReadersThatMisbehave(t *testing.T) {
	c := newCutter(t, testGear, tiny)
	calls := 0
	for name, tt := range map[string]struct {
		r    readFunc
		want error
	}{
		"nothing for ever": {func([]byte) (int, error) { calls++; return 0, nil }, io.ErrNoProgress},
		"too much":         {func(p []byte) (int, error) { return len(p) + 1, nil }, errCount},
		"too much, EOF":    {func(p []byte) (int, error) { return len(p) + 1, io.EOF }, errCount},
		"negative":         {func([]byte) (int, error) { return -1, nil }, errCount},
	} {
		chunks, err := drain(New(tt.r, c, nil))
		if len(chunks) != 0 || !errors.Is(err, tt.want) {
			t.Errorf("%s: %d chunks and %v, want %v", name, len(chunks), err, tt.want)
		}
	}
	if calls != maxIdle {
		t.Errorf("%d empty reads before giving up, want %d", calls, maxIdle)
	}
	// Bytes between the empty reads are progress.
	data := random(9, 3000)
	checkStream(t, "slow", New(&pieces{data: data, sizes: append(make([]int, maxIdle-1), 1)}, c, nil), data)
}

func TestBuffer(t *testing.T) {
	c := newCutter(t, testGear, tiny)
	data := random(11, 20<<10)
	// A longer one, from a pool: only its first Max bytes are used.
	buf := bytes.Repeat([]byte{0xA5}, tiny.Max+100)
	k := New(bytes.NewReader(data), c, buf[:0])
	for {
		chunk, err := k.Next()
		if err != nil {
			break
		}
		if cap(chunk) != len(chunk) {
			t.Fatalf("a chunk of %d bytes has a capacity of %d: append would write over the next", len(chunk), cap(chunk))
		}
		inside := false
		for i := range tiny.Max {
			if &buf[i] == &chunk[0] {
				inside = i+len(chunk) <= tiny.Max
			}
		}
		if !inside {
			t.Fatal("a chunk outside the first Max bytes of the caller's buffer")
		}
	}
	if !bytes.Equal(buf[tiny.Max:], bytes.Repeat([]byte{0xA5}, 100)) {
		t.Error("bytes behind Max were written")
	}

	defer func() {
		if got, want := recover(), "chunker: a buffer of 1023 bytes, want at least Max, 1024"; got != want {
			t.Errorf("New panicked with %v over a buffer shorter than Max, want %q", got, want)
		}
	}()
	New(bytes.NewReader(data), c, make([]byte, tiny.Max-1))
}

// The caller may work in a chunk, as encryption does: the cuts stay.
func TestChunksMayBeChanged(t *testing.T) {
	data := random(12, 200<<10)
	k := New(bytes.NewReader(data), newCutter(t, testGear, small), nil)
	var got []int
	for {
		chunk, err := k.Next()
		if err == io.EOF {
			break
		}
		got = append(got, len(chunk))
		clear(chunk)
	}
	if want := plainLengths(testGear, small, data); !slices.Equal(got, want) {
		t.Errorf("cuts %v, want %v", got, want)
	}
}

func TestReset(t *testing.T) {
	a, b := random(13, 300<<10), random(14, 100<<10)
	c := newCutter(t, testGear, small)
	k := New(bytes.NewReader(a), c, nil)
	for stop := range 6 { // in the middle of a, with bytes of it in the buffer
		for range stop {
			if _, err := k.Next(); err != nil {
				t.Fatal(err)
			}
		}
		k.Reset(bytes.NewReader(b))
		checkStream(t, "after Reset", k, b)
		k.Reset(&broken{data: make([]byte, small.Max-1), err: io.ErrUnexpectedEOF})
		if _, err := drain(k); err != io.ErrUnexpectedEOF {
			t.Fatalf("error %v", err)
		}
		// Also when nearly all the buffer was looked at in vain.
		k.Reset(bytes.NewReader(a))
		checkStream(t, "after an error", k, a)
		k.Reset(bytes.NewReader(a))
	}
	k.Reset(nil)
	if k.r != nil {
		t.Error("Reset(nil) holds on to the reader")
	}
}

// endless gives the same random bytes over and over, and allocates nothing.
type endless struct {
	data []byte
	at   int
}

func (r *endless) Read(p []byte) (int, error) {
	n := copy(p, r.data[r.at:])
	r.at = (r.at + n) % len(r.data)
	return n, nil
}

func TestNoAllocations(t *testing.T) {
	data := random(15, 1<<20)
	c := newCutter(t, testGear, small)
	var sink int
	if n := testing.AllocsPerRun(100, func() { sink += c.Cut(data, false) }); n != 0 {
		t.Errorf("Cut allocates %v times", n)
	}
	k := New(&endless{data: data}, c, nil)
	if n := testing.AllocsPerRun(500, func() {
		chunk, err := k.Next()
		if err != nil {
			t.Fatal(err)
		}
		sink += len(chunk)
	}); n != 0 {
		t.Errorf("Next allocates %v times", n)
	}
	r := bytes.NewReader(data)
	if n := testing.AllocsPerRun(20, func() { r.Reset(data); k.Reset(r); sink += k.end }); n != 0 {
		t.Errorf("Reset allocates %v times", n)
	}
}

// One Gear and one Cutter serve many goroutines; the race detector watches.
func TestSharedCutter(t *testing.T) {
	c := newCutter(t, testGear, small)
	data := random(16, 400<<10)
	want := lengths(c, data)
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			chunks, err := drain(New(bytes.NewReader(data), c, nil))
			if got := lengthsOf(chunks); err != io.EOF || !slices.Equal(got, want) {
				t.Errorf("cuts %v (%v), want %v", got, err, want)
			}
		})
	}
	wg.Wait()
}

// FuzzChunker compares the stream, read in pieces, with the definition.
func FuzzChunker(f *testing.F) {
	f.Add(random(1, 3000), uint64(1), uint8(0), uint16(0), uint16(0), []byte{1, 200, 0})
	f.Add(make([]byte, 5000), uint64(2), uint8(1), uint16(100), uint16(77), []byte{255})
	f.Add(text(3, 9000), uint64(3), uint8(2), uint16(900), uint16(2000), []byte{0, 0, 3})
	f.Fuzz(func(t *testing.T, data []byte, seed uint64, avg uint8, minimum, maximum uint16, reads []byte) {
		p := Params{Avg: 256 << (avg % 4)}
		p.Min = window + int(minimum)%(p.Avg/2-window+1)
		p.Max = 2*p.Avg + int(maximum)%(4*p.Avg)
		key := [32]byte(random(seed, 32))
		c := newCutter(t, NewGear(&key), p)
		sizes := []int{1}
		for _, n := range reads[:min(len(reads), maxIdle-1)] { // more may be too many empty ones
			sizes = append(sizes, int(n)*8)
		}
		checkStream(t, fmt.Sprintf("%+v", p), New(&pieces{data: data, sizes: sizes}, c, nil), data)
	})
}
