package erasure

import (
	"bytes"
	"encoding/hex"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"

	"pgregory.net/rapid"
)

// lengths are drawn on both sides of the step from one kernel to the other, and
// off every vector width.
func lengths(k, m int) *rapid.Generator[int] {
	wide := smallWork/(k*max(m, 1)) + 1
	return rapid.OneOf(rapid.IntRange(1, 200), rapid.IntRange(max(wide-70, 1), wide+300))
}

func fill(seed uint64, shards [][]byte) {
	src := rand.NewChaCha8([32]byte{byte(seed), byte(seed >> 8), byte(seed >> 16), byte(seed >> 24)})
	for _, s := range shards {
		_, _ = src.Read(s) // never fails
	}
}

func buffers(n, size int) [][]byte {
	out := make([][]byte, n)
	for i := range out {
		out[i] = make([]byte, size)
	}
	return out
}

func clone(shards [][]byte) [][]byte {
	out := make([][]byte, len(shards))
	for i, s := range shards {
		out[i] = bytes.Clone(s)
	}
	return out
}

func mustCode(t testing.TB, k, m int) *Code {
	t.Helper()
	c, err := New(k, m)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// codeword returns k+m encoded shards of seeded bytes; the parity buffers are
// poisoned before.
func codeword(t testing.TB, c *Code, size int, seed uint64) [][]byte {
	t.Helper()
	shards := buffers(c.K()+c.M(), size)
	fill(seed, shards)
	if err := c.Encode(shards); err != nil {
		t.Fatal(err)
	}
	return shards
}

func TestParityIsThatOfTheSlowCode(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		k, m := rapid.IntRange(1, 20).Draw(t, "k"), rapid.IntRange(0, 6).Draw(t, "m")
		size := rapid.IntRange(1, 150).Draw(t, "size")
		if rapid.IntRange(0, 9).Draw(t, "wide") == 0 {
			size = smallWork/(k*max(m, 1)) + rapid.IntRange(1, 70).Draw(t, "over")
		}
		c, err := New(k, m)
		if err != nil {
			t.Fatal(err)
		}
		shards := buffers(k+m, size)
		fill(rapid.Uint64().Draw(t, "seed"), shards)
		data := clone(shards[:k])
		if err := c.Encode(shards); err != nil {
			t.Fatal(err)
		}
		for i := range k {
			if !bytes.Equal(shards[i], data[i]) {
				t.Fatalf("%d+%d: Encode changed data shard %d", k, m, i)
			}
		}
		for i, want := range slowEncode(data, m) {
			if !bytes.Equal(shards[k+i], want) {
				t.Fatalf("%d+%d, %d bytes: parity shard %d differs from the slow code", k, m, size, k+i)
			}
		}
	})
}

// The parity is on disks: these bytes never change.
func TestParityOfTheFirstVersion(t *testing.T) {
	for _, tt := range []struct {
		k, m int
		want string
	}{
		{1, 2, "8dbbcefe09759150e19e652dafa95c07 8dbbcefe09759150e19e652dafa95c07"},
		{2, 1, "9fca752b682c160297866526cab6b4d0"},
		{4, 2, "ead074bec6b822452d48cce52c93cac4 4db83c98836b5dbc17f8620f5391834e"},
		{8, 3, "ceba4977754215abc2bea451f207320c 8f2af6043fd09d4b6881fc381fdbd5ac 0c51152a0c2226915f7bdf78f23eb6f0"},
	} {
		shards := buffers(tt.k+tt.m, 16)
		fill(8, shards[:tt.k])
		if err := mustCode(t, tt.k, tt.m).Encode(shards); err != nil {
			t.Fatal(err)
		}
		var got []string
		for _, s := range shards[tt.k:] {
			got = append(got, hex.EncodeToString(s))
		}
		if g := strings.Join(got, " "); g != tt.want {
			t.Errorf("%d+%d: parity %s, want %s", tt.k, tt.m, g, tt.want)
		}
	}
}

func TestAnyKShardsRestoreAnyRange(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		k, m := rapid.IntRange(1, 17).Draw(t, "k"), rapid.IntRange(1, 5).Draw(t, "m")
		n := k + m
		c, err := New(k, m)
		if err != nil {
			t.Fatal(err)
		}
		size := lengths(k, m).Draw(t, "size")
		whole := buffers(n, size)
		fill(rapid.Uint64().Draw(t, "seed"), whole)
		if err := c.Encode(whole); err != nil {
			t.Fatal(err)
		}

		lo := rapid.IntRange(0, size-1).Draw(t, "lo")
		hi := rapid.IntRange(lo+1, size).Draw(t, "hi")
		lost := rapid.Permutation(indexes(n)).Draw(t, "lost")[:rapid.IntRange(1, m).Draw(t, "losses")]
		want := lost[:rapid.IntRange(0, len(lost)).Draw(t, "wants")]
		if len(want) > 0 && rapid.Bool().Draw(t, "also one that is there") {
			want = append(slices.Clone(want), (lost[0]+1)%n, want[0])
		}
		shards := make([][]byte, n)
		for i := range shards {
			shards[i] = whole[i][lo:hi:hi]
		}
		lent := map[int][]byte{} // poisoned buffers, wider than needed
		for _, i := range lost {
			shards[i] = nil
			if rapid.Bool().Draw(t, "lend a buffer") {
				b := bytes.Repeat([]byte{0xa5}, hi-lo+32)
				lent[i], shards[i] = b, b[16:16:hi-lo+16]
			}
		}
		if err := c.Reconstruct(shards, want...); err != nil {
			t.Fatal(err)
		}
		for i, s := range shards {
			restored := len(want) == 0 || slices.Contains(want, i)
			if slices.Contains(lost, i) && !restored {
				if len(s) != 0 {
					t.Fatalf("%d+%d: shard %d was not wanted and has %d bytes", k, m, i, len(s))
				}
				continue
			}
			if !bytes.Equal(s, whole[i][lo:hi]) {
				t.Fatalf("%d+%d, lost %v, want %v, bytes %d to %d: shard %d is wrong", k, m, lost, want, lo, hi, i)
			}
			if b, ok := lent[i]; ok {
				if &b[16] != &s[0] {
					t.Fatalf("shard %d is not in the buffer that was lent", i)
				}
				poison := bytes.Repeat([]byte{0xa5}, 16)
				if !bytes.Equal(b[:16], poison) || !bytes.Equal(b[hi-lo+16:], poison) {
					t.Fatalf("shard %d: bytes beside the buffer were written", i)
				}
			}
		}
	})
}

func TestRestoredDataIsThatOfTheSlowCode(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		k, m := rapid.IntRange(2, 9).Draw(t, "k"), rapid.IntRange(1, 4).Draw(t, "m")
		c, err := New(k, m)
		if err != nil {
			t.Fatal(err)
		}
		// No codeword: any k shards of any bytes determine the rest.
		have := rapid.Permutation(indexes(k+m)).Draw(t, "have")[:k]
		slices.Sort(have)
		shards := make([][]byte, k+m)
		in := buffers(k, rapid.IntRange(1, 100).Draw(t, "size"))
		fill(rapid.Uint64().Draw(t, "seed"), in)
		for j, i := range have {
			shards[i] = in[j]
		}
		if err := c.Reconstruct(shards); err != nil {
			t.Fatal(err)
		}
		for i, want := range slowDecode(in, have, m) {
			if !bytes.Equal(shards[i], want) {
				t.Fatalf("%d+%d from %v: data shard %d differs from the slow code", k, m, have, i)
			}
		}
		if err := c.Check(shards); err != nil {
			t.Fatal(err)
		}
	})
}

func TestReconstructDataLeavesParityAlone(t *testing.T) {
	for _, km := range [][2]int{{1, 2}, {4, 2}, {70, 9}} {
		c := mustCode(t, km[0], km[1])
		n := km[0] + km[1]
		whole := codeword(t, c, 300, 9)
		for i := range n {
			shards := clone(whole)
			shards[i], shards[n-1] = nil, nil
			if err := c.ReconstructData(shards); err != nil {
				t.Fatal(err)
			}
			for j := range shards {
				lost := j == n-1 || j == i && i >= c.K()
				if lost && shards[j] != nil || !lost && !bytes.Equal(shards[j], whole[j]) {
					t.Fatalf("%v, lost %d and %d: shard %d (%d bytes) is wrong, or there without being wanted", km, i, n-1, j, len(shards[j]))
				}
			}
		}
		if err := c.ReconstructData(make([][]byte, n)); !errors.Is(err, ErrTooFew) {
			t.Errorf("%v from nothing: %v, want ErrTooFew", km, err)
		}
		if err := c.ReconstructData(whole[1:]); !errors.Is(err, ErrShape) {
			t.Errorf("%v, one shard less: %v, want ErrShape", km, err)
		}
	}
}

func TestEveryWidthTheFieldAllows(t *testing.T) {
	for _, km := range [][2]int{{1, 0}, {3, 0}, {1, 255}, {255, 1}, {128, 128}, {200, 56}, {16, 4}} {
		c := mustCode(t, km[0], km[1])
		n := km[0] + km[1]
		for _, size := range []int{1, 1 << 10} {
			whole := codeword(t, c, size, 1)
			shards := clone(whole)
			for i := range km[1] { // every second shard, then from the front
				shards[(2*i+i*2/n)%n] = nil
			}
			if err := c.Reconstruct(shards); err != nil {
				t.Fatalf("%v: %v", km, err)
			}
			for i := range shards {
				if !bytes.Equal(shards[i], whole[i]) {
					t.Fatalf("%v: shard %d of %d bytes is wrong", km, i, size)
				}
			}
			if err := c.Check(whole); err != nil {
				t.Fatalf("%v: %v", km, err)
			}
		}
	}
}

func TestOneDataShardMeansCopies(t *testing.T) {
	c := mustCode(t, 1, 3)
	data := []byte("the log pack, in four copies")
	if err := c.Encode([][]byte{data, data, data, data}); err != nil { // its own parity
		t.Fatal(err)
	}
	shards := [][]byte{data, make([]byte, len(data)), make([]byte, len(data)), make([]byte, len(data))}
	if err := c.Encode(shards); err != nil {
		t.Fatal(err)
	}
	for i := range 4 {
		if !bytes.Equal(shards[i], data) {
			t.Fatalf("copy %d is %q", i, shards[i])
		}
		only := make([][]byte, 4)
		only[i] = data
		if err := c.Reconstruct(only); err != nil {
			t.Fatal(err)
		}
		for j, s := range only {
			if !bytes.Equal(s, data) {
				t.Fatalf("from copy %d: copy %d is %q", i, j, s)
			}
			if j != i && &s[0] == &data[0] {
				t.Fatalf("from copy %d: copy %d is the same memory", i, j)
			}
		}
	}
}

func TestRefused(t *testing.T) {
	for _, km := range [][2]int{{0, 1}, {-1, 2}, {1, -1}, {257, 0}, {200, 57}, {1, 256}, {1 << 62, 1 << 62}} {
		if _, err := New(km[0], km[1]); !errors.Is(err, ErrShape) {
			t.Errorf("New(%d, %d): %v, want ErrShape", km[0], km[1], err)
		}
	}
	for _, km := range [][2]int{{4, 2}, {1, 2}} {
		c := mustCode(t, km[0], km[1])
		n := km[0] + km[1]
		whole := codeword(t, c, 64, 2)
		change := func(f func(s [][]byte) [][]byte) [][]byte { return f(clone(whole)) }
		for _, tt := range []struct {
			name   string
			shards [][]byte
		}{
			{"none", nil},
			{"one less", whole[:n-1]},
			{"one more", append(clone(whole), make([]byte, 64))},
			{"a short one", change(func(s [][]byte) [][]byte { s[n-1] = s[n-1][:63]; return s })},
			{"a long one", change(func(s [][]byte) [][]byte { s[1] = append(s[1], 0); return s })},
		} {
			before := clone(tt.shards)
			for op, f := range map[string]func([][]byte) error{
				"Encode": c.Encode, "Check": c.Check, "Reconstruct": func(s [][]byte) error { return c.Reconstruct(s) },
			} {
				if err := f(tt.shards); !errors.Is(err, ErrShape) {
					t.Errorf("%v %s with %s: %v, want ErrShape", km, op, tt.name, err)
				}
			}
			if !slices.EqualFunc(before, tt.shards, bytes.Equal) {
				t.Errorf("%v with %s: shards changed", km, tt.name)
			}
		}
		missing := change(func(s [][]byte) [][]byte { s[1] = nil; return s })
		for op, f := range map[string]func([][]byte) error{"Encode": c.Encode, "Check": c.Check} {
			if err := f(missing); !errors.Is(err, ErrShape) {
				t.Errorf("%v %s with a missing shard: %v, want ErrShape", km, op, err)
			}
			if err := f(make([][]byte, n)); !errors.Is(err, ErrShape) {
				t.Errorf("%v %s with nothing: %v, want ErrShape", km, op, err)
			}
		}
		for _, want := range []int{-1, n} {
			if err := c.Reconstruct(missing, want); !errors.Is(err, ErrShape) {
				t.Errorf("%v Reconstruct wants %d: %v, want ErrShape", km, want, err)
			}
		}
		short := change(func(s [][]byte) [][]byte { s[0] = nil; s[1] = make([]byte, 0, 63); return s })
		if err := c.Reconstruct(short); !errors.Is(err, ErrShape) || short[0] != nil || len(short[1]) != 0 {
			t.Errorf("%v Reconstruct into 63 bytes: %v and %d, %d bytes, want ErrShape and nothing", km, err, len(short[0]), len(short[1]))
		}
		few := make([][]byte, n)
		copy(few[1:km[0]], whole[1:km[0]]) // k-1 of them
		for _, want := range [][]int{nil, {0}, {n - 1}} {
			if err := c.Reconstruct(few, want...); !errors.Is(err, ErrTooFew) {
				t.Errorf("%v Reconstruct(%v) from k-1 shards: %v, want ErrTooFew", km, want, err)
			}
		}
		if km[0] > 1 {
			if err := c.Reconstruct(few, 1); err != nil {
				t.Errorf("%v: a shard that is there was wanted: %v", km, err)
			}
		}
	}
}

// Reed-Solomon restores erasures. Whoever lets a damaged shard in gets wrong
// bytes and no error; this is why digests are compared before.
func TestDamageIsNotDetected(t *testing.T) {
	c := mustCode(t, 4, 2)
	whole := codeword(t, c, 4096, 3)
	shards := clone(whole)
	shards[1][100] ^= 1
	shards[0] = nil
	if err := c.Reconstruct(shards, 0); err != nil {
		t.Fatalf("the code noticed damage: %v; then the package comment is wrong", err)
	}
	if bytes.Equal(shards[0], whole[0]) {
		t.Fatal("a damaged shard was an input and the output is right")
	}
	if err := c.Check(shards); !errors.Is(err, ErrMismatch) {
		t.Fatalf("six shards, one damaged, one derived from it: %v, want ErrMismatch", err)
	}
}

func TestCheckSeesEveryBit(t *testing.T) {
	for _, km := range [][2]int{{1, 2}, {2, 1}, {4, 2}, {16, 4}} {
		c := mustCode(t, km[0], km[1])
		for _, size := range []int{1, 100, checkBlock, 2*checkBlock + 5} {
			shards := codeword(t, c, size, 4)
			before := clone(shards)
			if err := c.Check(shards); err != nil {
				t.Fatalf("%v, %d bytes: %v", km, size, err)
			}
			for i := range shards {
				for _, at := range []int{0, size / 2, size - 1} {
					shards[i][at] ^= 0x10
					if err := c.Check(shards); !errors.Is(err, ErrMismatch) {
						t.Errorf("%v, %d bytes: shard %d byte %d flipped: %v, want ErrMismatch", km, size, i, at, err)
					}
					shards[i][at] ^= 0x10
				}
			}
			if !slices.EqualFunc(before, shards, bytes.Equal) {
				t.Fatalf("%v: Check wrote to the shards", km)
			}
		}
	}
}

// W15: filling that is not really zeroed is part of the codeword, so reads and
// even repairs from the same shards work; what fails is the mix with a shard
// that was laid out anew, with other filling. Every pair: drop i, repair it,
// drop j, repair it, read.
func TestFillingIsZeroed(t *testing.T) {
	k, m := 4, 2
	c := mustCode(t, k, m)
	lay := map[string]func(poison byte, payload []byte, size int) [][]byte{
		"Split": func(poison byte, payload []byte, size int) [][]byte {
			shards := make([][]byte, k+m)
			for i := range shards {
				shards[i] = bytes.Repeat([]byte{poison}, size)
			}
			if err := Split(shards[:k], payload); err != nil {
				t.Fatal(err)
			}
			return shards
		},
		"View": func(poison byte, payload []byte, size int) [][]byte {
			shards := make([][]byte, k+m)
			stream := bytes.Repeat([]byte{poison}, k*size)
			if err := View(shards[:k], stream, copy(stream, payload)); err != nil {
				t.Fatal(err)
			}
			for i := k; i < k+m; i++ {
				shards[i] = bytes.Repeat([]byte{poison}, size)
			}
			return shards
		},
	}
	const unit = 16
	for name, split := range lay {
		for n := 0; n <= 3*k*unit; n += 13 { // none to three stripes
			payload := make([]byte, n)
			fill(uint64(n), [][]byte{payload})
			size := ShardLen(n, k)
			if n%2 == 1 {
				size += unit // longer than needed: whole shards of filling
			}
			first, second := split(0xa5, payload, size), split(0x5a, payload, size)
			for _, s := range [][][]byte{first, second} {
				if err := c.Encode(s); err != nil {
					t.Fatal(err)
				}
			}
			for i := range k + m {
				for j := range k + m {
					shards := clone(first)
					shards[j] = bytes.Clone(second[j]) // a peer's, or a retry's
					for _, lost := range []int{i, j} {
						shards[lost] = append(shards[lost][:0], bytes.Repeat([]byte{0xee}, size)...)[:0]
						if err := c.Reconstruct(shards, lost); err != nil {
							t.Fatal(err)
						}
					}
					got, err := Join(nil, shards[:k], n)
					if err != nil || !bytes.Equal(got, payload) {
						t.Fatalf("%s of %d bytes: lost %d, then %d: not the payload (%v)", name, n, i, j, err)
					}
					if err := c.Check(shards); err != nil {
						t.Fatalf("%s of %d bytes: lost %d, then %d: %v", name, n, i, j, err)
					}
				}
			}
		}
	}
}

func TestSplitAndJoinRefuse(t *testing.T) {
	two := buffers(2, 8)
	for name, err := range map[string]error{
		"no shards":       Split(nil, nil),
		"empty shards":    Split(make([][]byte, 2), nil),
		"unequal shards":  Split([][]byte{two[0], two[1][:7]}, nil),
		"too much":        Split(two, make([]byte, 17)),
		"view of nothing": View(two, nil, 0),
		"view, odd":       View(two, make([]byte, 15), 1),
		"view, too much":  View(two, make([]byte, 16), 17),
		"view, negative":  View(two, make([]byte, 16), -1),
		"join too much":   second(Join(nil, buffers(2, 8), 17)),
		"join negative":   second(Join(nil, buffers(2, 8), -1)),
	} {
		if !errors.Is(err, ErrShape) {
			t.Errorf("%s: %v, want ErrShape", name, err)
		}
	}
	for _, tt := range []struct{ n, k, want int }{{0, 4, 1}, {1, 4, 1}, {4, 4, 1}, {5, 4, 2}, {16 << 20, 4, 4 << 20}} {
		if got := ShardLen(tt.n, tt.k); got != tt.want {
			t.Errorf("ShardLen(%d, %d) = %d, want %d", tt.n, tt.k, got, tt.want)
		}
	}
}

func second(_ []byte, err error) error { return err }

// A view must not hand out the next shard's bytes as spare capacity.
func TestViewsEndWhereTheyEnd(t *testing.T) {
	data := make([][]byte, 3)
	if err := View(data, make([]byte, 30, 60), 7); err != nil {
		t.Fatal(err)
	}
	for i, d := range data {
		if len(d) != 10 || cap(d) != 10 {
			t.Errorf("view %d: length %d, capacity %d, want 10 and 10", i, len(d), cap(d))
		}
	}
}

func TestManyGoroutinesShareACode(t *testing.T) {
	var wg sync.WaitGroup
	for g := range 8 {
		wg.Go(func() {
			r := rand.New(rand.NewPCG(uint64(g), 1))
			for range 60 {
				k, m := 2+r.IntN(4), 1+r.IntN(3)
				c, err := New(k, m)
				if err != nil {
					t.Error(err)
					return
				}
				whole := buffers(k+m, 1+r.IntN(6000))
				fill(r.Uint64(), whole)
				if err := c.Encode(whole); err != nil {
					t.Error(err)
					return
				}
				shards := clone(whole)
				for _, i := range r.Perm(k + m)[:m] {
					shards[i] = shards[i][:0]
				}
				if err := c.Reconstruct(shards); err != nil {
					t.Error(err)
					return
				}
				if !slices.EqualFunc(shards, whole, bytes.Equal) {
					t.Errorf("goroutine %d: %d+%d restored wrong", g, k, m)
					return
				}
				if err := c.Check(shards); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
}

func TestCachesAreBounded(t *testing.T) {
	for k := 1; k <= 2*maxCodes; k++ {
		mustCode(t, k, 1)
	}
	codes.RLock()
	n := len(codes.m)
	codes.RUnlock()
	if n > maxCodes {
		t.Errorf("%d codes are kept, want at most %d", n, maxCodes)
	}
	c := mustCode(t, 64, 64) // 128*64 bytes a matrix
	whole := codeword(t, c, 2, 5)
	for i := range c.maxDecoders() + 40 {
		shards := clone(whole)
		shards[i%128], shards[(i+1+i/128)%128] = nil, nil
		if err := c.Reconstruct(shards); err != nil || !slices.EqualFunc(shards, whole, bytes.Equal) {
			t.Fatalf("pattern %d: restored wrong (%v)", i, err)
		}
	}
	if len(c.decoders) > c.maxDecoders() {
		t.Errorf("%d decoders are kept, want at most %d", len(c.decoders), c.maxDecoders())
	}
}

func TestAllocations(t *testing.T) {
	if raceEnabled {
		t.Skip("the race detector makes sync.Pool drop what it is given")
	}
	for _, tt := range []struct {
		k, m, size int
		most       float64
	}{
		{1, 2, 4096, 0}, {1, 2, 1 << 20, 0}, {2, 1, 8 << 10, 0}, {4, 2, 2048, 0}, {8, 3, 512, 0}, {16, 4, 256, 0},
		// What the library's widest kernel takes, however long the shards.
		{4, 2, 64 << 10, 1}, {4, 2, 1 << 20, 1}, {8, 3, 256 << 10, 1}, {16, 4, 256 << 10, 2},
	} {
		c := mustCode(t, tt.k, tt.m)
		shards := codeword(t, c, tt.size, 6)
		lent := clone(shards)
		data, payload := shards[:tt.k], make([]byte, tt.size)
		for name, f := range map[string]func() error{
			"New":    func() error { _, err := New(tt.k, tt.m); return err },
			"Split":  func() error { return Split(data, payload) },
			"Encode": func() error { return c.Encode(shards) },
			"Reconstruct one": func() error {
				shards[0] = lent[0][:0]
				return c.Reconstruct(shards, 0)
			},
			"ReconstructData": func() error {
				shards[0] = lent[0][:0]
				return c.ReconstructData(shards)
			},
			"Reconstruct all": func() error {
				for i := range tt.m {
					shards[i*2] = lent[i*2][:0]
				}
				return c.Reconstruct(shards)
			},
		} {
			var err error
			most := tt.most
			if name == "New" || name == "Split" {
				most = 0
			}
			if got := testing.AllocsPerRun(50, func() { err = errors.Join(err, f()) }); got > most || err != nil {
				t.Errorf("%d+%d, %d bytes: %s allocates %v times, want at most %v (%v)", tt.k, tt.m, tt.size, name, got, most, err)
			}
		}
	}
}

func indexes(n int) []int {
	out := make([]int, n)
	for i := range out {
		out[i] = i
	}
	return out
}

func Example() {
	c, _ := New(4, 2)
	payload := []byte("sixteen nodes, four shards, two lost")
	shards := make([][]byte, 6)
	for i := range shards {
		shards[i] = make([]byte, ShardLen(len(payload), 4))
	}
	_ = Split(shards[:4], payload)
	_ = c.Encode(shards)

	// Shards 1 and 4 are lost; a reader needs bytes 2 to 7 of shard 1 only.
	part := make([][]byte, 6)
	for _, i := range []int{0, 2, 3, 5} {
		part[i] = shards[i][2:7]
	}
	buf := make([]byte, 5)
	part[1] = buf[:0]
	fmt.Println(c.Reconstruct(part, 1), string(buf) == string(payload[9+2:9+7]))
	// Output: <nil> true
}

func BenchmarkEncode(b *testing.B) {
	bench(b, func(b *testing.B, c *Code, shards [][]byte) {
		for b.Loop() {
			if err := c.Encode(shards); err != nil {
				b.Fatal(err)
			}
		}
	})
}

// BenchmarkKernels is where smallWork comes from.
func BenchmarkKernels(b *testing.B) {
	for _, km := range [][2]int{{2, 1}, {4, 2}, {8, 3}, {16, 4}} {
		for _, size := range []int{1 << 10, 2 << 10, 4 << 10, 8 << 10, 16 << 10, 64 << 10} {
			c := mustCode(b, km[0], km[1])
			shards := codeword(b, c, size, 7)
			for name, f := range map[string]func(){
				"narrow": func() { c.parity.narrow(shards) },
				"wide":   func() { _ = c.parity.wide.Encode(shards) },
			} {
				b.Run(fmt.Sprintf("%d+%d/%dKiB/%s", km[0], km[1], size>>10, name), func(b *testing.B) {
					b.SetBytes(int64(km[0] * size))
					b.ReportAllocs()
					for b.Loop() {
						f()
					}
				})
			}
		}
	}
}

// BenchmarkReconstruct restores as many data shards as may be lost.
func BenchmarkReconstruct(b *testing.B) {
	bench(b, func(b *testing.B, c *Code, shards [][]byte) {
		for b.Loop() {
			for i := range min(c.M(), c.K()) {
				shards[i] = shards[i][:0]
			}
			if err := c.Reconstruct(shards); err != nil {
				b.Fatal(err)
			}
		}
	})
}

func BenchmarkCheck(b *testing.B) {
	bench(b, func(b *testing.B, c *Code, shards [][]byte) {
		for b.Loop() {
			if err := c.Check(shards); err != nil {
				b.Fatal(err)
			}
		}
	})
}

// bench counts the bytes of the data shards.
func bench(b *testing.B, f func(*testing.B, *Code, [][]byte)) {
	for _, km := range [][2]int{{1, 2}, {2, 1}, {4, 2}, {8, 3}, {16, 4}} {
		for _, size := range []int{16 << 10, 256 << 10, 4 << 20} {
			b.Run(fmt.Sprintf("%d+%d/%dKiB", km[0], km[1], size>>10), func(b *testing.B) {
				c := mustCode(b, km[0], km[1])
				shards := codeword(b, c, size, 7)
				b.SetBytes(int64(km[0] * size))
				b.ReportAllocs()
				f(b, c, shards)
			})
		}
	}
}
