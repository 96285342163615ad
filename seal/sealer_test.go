package seal

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/klauspost/compress/zstd"
	"pgregory.net/rapid"

	"cairn/id"
	"cairn/keys"
)

// source gives the same bytes for the same seed.
func source(seed byte) *rand.ChaCha8 { return rand.NewChaCha8([32]byte{seed}) }

func random(seed byte, n int) []byte {
	b := make([]byte, n)
	source(seed).Read(b)
	return b
}

// text is up to 1 MiB of words and numbers.
func text(n int) []byte { return bytes.Clone(allText()[:n]) }

var allText = sync.OnceValue(func() []byte {
	r := rand.New(source(99))
	words := strings.Fields("a store keeps what it was given and gives back what it keeps or says loudly that it cannot; bytes shards packs chunks")
	var b []byte
	for len(b) < 1<<20 {
		b = append(append(b, words[r.IntN(len(words))]...), ' ')
		b = append(strconv.AppendInt(b, int64(r.IntN(1000)), 10), ' ')
	}
	return b
})

// testRing has the main realm after so many rotations, and realm 2.
func testRing(t testing.TB, rotations int) *keys.Keyring {
	t.Helper()
	k, err := keys.New(id.Cluster{1}, source(1))
	if err == nil {
		k, err = k.AddRealm(2)
	}
	for range rotations {
		if err == nil {
			k, err = k.Rotate(id.Main)
		}
	}
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func testRealm(t testing.TB, rotations int) *keys.Realm {
	t.Helper()
	r, err := testRing(t, rotations).Realm(id.Main)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// sealed compresses and seals a chunk.
func sealed(t testing.TB, s *Sealer, kind Kind, plain []byte) (Info, []byte) {
	t.Helper()
	body, c := plain, None
	if b, ok := new(Compressor).Compress(nil, plain); ok {
		body, c = b, Zstd
	}
	i := s.Info(s.ChunkID(kind, plain), kind, len(plain), c, len(body))
	b, err := s.Seal(nil, i, body)
	if err != nil {
		t.Fatal(err)
	}
	return i, b
}

func TestOpenGivesBackThePlaintext(t *testing.T) {
	s := NewSealer(testRealm(t, 2), nil)
	for _, plain := range [][]byte{nil, {1}, random(2, 4096), random(3, 1<<20), text(100 << 10), make([]byte, 4<<20), make([]byte, MaxPlain)} {
		for _, kind := range []Kind{Data, List, Snap} {
			i, b := sealed(t, s, kind, plain)
			was := bytes.Clone(b)
			for _, dst := range [][]byte{nil, []byte("before"), append(make([]byte, 0, len(plain)+100), "before"...)} {
				want := append(bytes.Clone(dst), plain...)
				for _, open := range []func([]byte, Info, []byte) ([]byte, error){s.Open, s.Verify} {
					got, err := open(dst, i, b)
					if err != nil || !bytes.Equal(got, want) {
						t.Errorf("%d bytes of %v, %v: %d bytes, %v", len(plain), kind, i.Compression, len(got), err)
					}
				}
			}
			if !bytes.Equal(b, was) {
				t.Errorf("%d bytes: opening changed the sealed chunk", len(plain))
			}
			if int(i.SealedLen) != len(b) || i.Realm != id.Main || i.Epoch != 3 || int(i.PlainLen) != len(plain) {
				t.Errorf("%d bytes: %+v for %d sealed", len(plain), i, len(b))
			}
		}
	}
}

// Seal writes behind dst and nowhere else, in place where there is room.
func TestSealAppends(t *testing.T) {
	s := NewSealer(testRealm(t, 0), nil)
	plain := random(1, 5000)
	i := s.Info(s.ChunkID(Data, plain), Data, len(plain), None, len(plain))
	whole := bytes.Repeat([]byte{0xee}, 6000)
	got, err := s.Seal(whole[:10:10+int(i.SealedLen)], i, plain)
	if err != nil || &got[0] != &whole[0] || len(got) != 10+int(i.SealedLen) {
		t.Fatalf("%d bytes, %v; or it moved", len(got), err)
	}
	if !bytes.Equal(whole[:10], bytes.Repeat([]byte{0xee}, 10)) || !bytes.Equal(whole[len(got):], bytes.Repeat([]byte{0xee}, 6000-len(got))) {
		t.Error("it wrote beside its place")
	}
	if p, err := s.Open(nil, i, got[10:]); err != nil || !bytes.Equal(p, plain) {
		t.Errorf("open: %v", err)
	}
	small := make([]byte, 3, 5)
	if got, err := s.Seal(small, i, plain); err != nil || len(got) != 3+int(i.SealedLen) {
		t.Errorf("with too little room: %d bytes, %v", len(got), err)
	}
}

// Each field of Info, changed in every bit, and each bit of a sealed chunk: what
// does not open says why, and nothing is handed out.
func TestEveryLabelIsUnderTheSeal(t *testing.T) {
	r := testRealm(t, 3)
	old := NewSealer(testRealm(t, 1), nil)
	s := NewSealer(r, nil)
	for _, plain := range [][]byte{random(4, 300), text(3000)} {
		i, b := sealed(t, old, Data, plain)
		if got, err := s.Open(nil, i, b); err != nil || !bytes.Equal(got, plain) {
			t.Fatal(err)
		}
		marked := bytes.Repeat([]byte{0xaa}, 8<<10)
		refuse := func(what string, i Info, b []byte, want error) {
			t.Helper()
			for _, open := range []func([]byte, Info, []byte) ([]byte, error){s.Open, s.Verify} {
				dst := bytes.Clone(marked)[:5]
				got, err := open(dst, i, b)
				if !errors.Is(err, want) {
					t.Fatalf("%s: %v, want %v", what, err, want)
				}
				if len(got) != 5 || &got[0] != &dst[0] {
					t.Fatalf("%s: %d bytes beside an error", what, len(got))
				}
				for n := 0; n < len(plain)-8; n += 61 {
					if bytes.Contains(dst[5:cap(dst)], plain[n:n+8]) {
						t.Fatalf("%s: plaintext was left in dst", what)
					}
				}
			}
		}
		for bit := range 32 {
			x := i
			x.Realm ^= 1 << bit
			refuse("realm", x, b, ErrNoKey)
			x = i
			x.Epoch ^= 1 << bit
			want := ErrNoKey
			if x.Epoch >= 1 && x.Epoch <= s.Epoch() {
				want = ErrDamaged
			}
			refuse("epoch", x, b, want)
			x = i
			x.PlainLen ^= 1 << bit
			refuse("plain length", x, b, ErrDamaged)
			x = i
			x.SealedLen ^= 1 << bit
			refuse("sealed length", x, b, ErrDamaged)
		}
		for bit := range 8 {
			x := i
			x.Kind ^= 1 << bit
			refuse("kind", x, b, ErrDamaged)
			x = i
			x.Compression ^= 1 << bit
			refuse("compression", x, b, ErrDamaged)
		}
		for bit := range 256 {
			x := i
			x.Chunk[bit/8] ^= 1 << (bit % 8)
			refuse("chunk ID", x, b, ErrDamaged)
		}
		for bit := range 8 * len(b) {
			c := bytes.Clone(b)
			c[bit/8] ^= 1 << (bit % 8)
			refuse("sealed byte", i, c, ErrDamaged)
			if bit > 8*200 {
				break
			}
		}
		for n := range b {
			x := i
			x.SealedLen = uint32(n)
			refuse("cut", x, b[:n], ErrDamaged)
			x.PlainLen = uint32(max(0, n-Overhead))
			refuse("cut, the lengths fit", x, b[:n], ErrDamaged)
		}
		x := i
		x.SealedLen++
		refuse("longer", x, append(bytes.Clone(b), 0), ErrDamaged)
	}
}

// What a bug could seal: bodies that are authentic and not as they should be.
func TestAuthenticBodiesThatDoNotFit(t *testing.T) {
	s := NewSealer(testRealm(t, 0), nil)
	e, err := zstd.NewWriter(nil)
	if err != nil {
		t.Fatal(err)
	}
	zeros := func(n int) []byte { return e.EncodeAll(make([]byte, n), nil) }
	// A frame that does not say how long it becomes, written by streaming.
	var stream bytes.Buffer
	w, err := zstd.NewWriter(&stream, zstd.WithEncoderConcurrency(1))
	if err != nil {
		t.Fatal(err)
	}
	for range 64 {
		if _, err := w.Write(make([]byte, 1<<20)); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name string
		body []byte
		n    int
		ok   bool
	}{
		{"as it should be", zeros(1000), 1000, true},
		{"a byte less", zeros(999), 1000, false},
		{"a byte more", zeros(1001), 1000, false},
		{"a bomb of 1 GiB", zeros(1 << 30), 1000, false},
		{"a bomb without a length", stream.Bytes(), 1000, false},
		{"two frames", append(zeros(1000), zeros(1000)...), 1000, false},
		{"two frames that fit", append(zeros(500), zeros(500)...), 1000, true},
		{"a cut frame", zeros(1000)[:8], 1000, false},
		{"no frame", []byte("not zstd at all"), 1000, false},
		{"nothing", nil, 1000, false},
	} {
		i := s.Info(id.Chunk{1}, Data, c.n, Zstd, len(c.body))
		b, err := s.Seal(nil, i, c.body)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := s.Open(nil, s.Info(id.Chunk{1}, Data, c.n, Zstd, len(c.body)), b); c.ok != (err == nil) {
			t.Errorf("%s: %v", c.name, err)
		}
		var m0, m1 runtime.MemStats
		runtime.ReadMemStats(&m0)
		got, err := s.Open([]byte("x"), i, b)
		runtime.ReadMemStats(&m1)
		switch {
		case c.ok && (err != nil || len(got) != 1+c.n):
			t.Errorf("%s: %d bytes, %v", c.name, len(got), err)
		case !c.ok && (!errors.Is(err, ErrDamaged) || len(got) != 1):
			t.Errorf("%s: %d bytes, %v, want ErrDamaged", c.name, len(got), err)
		}
		// A decoder has its own buffers; what must not be there is what the bomb asks for.
		if n := m1.TotalAlloc - m0.TotalAlloc; n > 20<<20 {
			t.Errorf("%s: %d bytes allocated", c.name, n)
		}
	}

	// Sealed by a version that knows more.
	i := s.Info(id.Chunk{1}, Data, 4, 2, 4)
	b := forge(t, s, i, []byte("body"))
	if _, err := s.Open(nil, i, b); !errors.Is(err, ErrNewer) {
		t.Errorf("another compression: %v, want ErrNewer", err)
	}
	b[20] ^= 1
	if _, err := s.Open(nil, i, b); !errors.Is(err, ErrDamaged) {
		t.Errorf("another compression, altered: %v, want ErrDamaged", err)
	}
	i = s.Info(id.Chunk{1}, 4, 4, None, 4)
	if _, err := s.Verify(nil, i, forge(t, s, i, []byte("body"))); !errors.Is(err, ErrNewer) {
		t.Errorf("another kind: %v, want ErrNewer", err)
	}

	// Authentic, and shorter or longer than the label says.
	for _, n := range []int{3, 5} {
		i = s.Info(id.Chunk{1}, Data, n, None, 4)
		if got, err := s.Open([]byte("x"), i, forge(t, s, i, []byte("body"))); !errors.Is(err, ErrDamaged) || string(got) != "x" {
			t.Errorf("four bytes sealed as %d: %q, %v, want ErrDamaged", n, got, err)
		}
	}

	// Other bytes than the ID names: only Verify can tell.
	i = s.Info(s.ChunkID(Data, []byte("body")), Data, 4, None, 4)
	b, err = s.Seal(nil, i, []byte("odyb"))
	if err != nil {
		t.Fatal(err)
	}
	if got, err := s.Open(nil, i, b); err != nil || string(got) != "odyb" {
		t.Errorf("Open: %q, %v", got, err)
	}
	if got, err := s.Verify([]byte("x"), i, b); !errors.Is(err, ErrDamaged) || string(got) != "x" {
		t.Errorf("Verify of other bytes: %q, %v, want ErrDamaged", got, err)
	}
	i, b = sealed(t, s, Data, []byte("a chunk of data, not of a list"))
	x := i
	x.Kind = List
	if _, err := s.Verify(nil, x, forge(t, s, x, []byte("a chunk of data, not of a list"))); !errors.Is(err, ErrDamaged) {
		t.Errorf("Verify of data sealed as a list: %v, want ErrDamaged", err)
	}
	if _, err := s.Verify(nil, i, b); err != nil {
		t.Error(err)
	}
}

// forge seals without the checks of Seal.
func forge(t *testing.T, s *Sealer, i Info, body []byte) []byte {
	t.Helper()
	w := s.works.Get().(*work)
	nonce := make([]byte, nonceSize, 100)
	return s.aead(w, &i).Seal(nonce, nonce, body, w.ad[:])
}

func TestSealRefusesWhatContradictsItself(t *testing.T) {
	s := NewSealer(testRealm(t, 1), nil)
	body := []byte("four")
	good := s.Info(id.Chunk{1}, Data, 4, None, 4)
	if _, err := s.Seal(nil, good, body); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		edit func(*Info)
		want error
	}{
		"another realm":         {func(i *Info) { i.Realm = 2 }, ErrNoKey},
		"an old epoch":          {func(i *Info) { i.Epoch = 1 }, ErrInvalid},
		"an epoch to come":      {func(i *Info) { i.Epoch = 3 }, ErrInvalid},
		"epoch 0":               {func(i *Info) { i.Epoch = 0 }, ErrInvalid},
		"no kind":               {func(i *Info) { i.Kind = 0 }, ErrInvalid},
		"kind 4":                {func(i *Info) { i.Kind = 4 }, ErrInvalid},
		"another compression":   {func(i *Info) { i.Compression = 2 }, ErrInvalid},
		"a shorter plaintext":   {func(i *Info) { i.PlainLen-- }, ErrInvalid},
		"another sealed length": {func(i *Info) { i.SealedLen++ }, ErrInvalid},
		"too long":              {func(i *Info) { i.Compression, i.PlainLen = Zstd, MaxPlain+1 }, ErrInvalid},
	} {
		i := good
		c.edit(&i)
		dst := []byte("dst")
		if got, err := s.Seal(dst, i, body); !errors.Is(err, c.want) || string(got) != "dst" {
			t.Errorf("%s: %q, %v, want %v", name, got, err, c.want)
		}
	}
	broken := NewSealer(testRealm(t, 0), strings.NewReader("eleven byte"))
	if got, err := broken.Seal([]byte("dst"), broken.Info(id.Chunk{1}, Data, 4, None, 4), body); !errors.Is(err, io.ErrUnexpectedEOF) || string(got) != "dst" {
		t.Errorf("without a nonce: %q, %v", got, err)
	}
}

// rotate, seal, rotate, seal: chunks of each epoch open in all later ones, and a
// sealer from before does not know what came after.
func TestRotation(t *testing.T) {
	plain := random(1, 1000)
	var infos []Info
	var chunks [][]byte
	for n := range 5 {
		s := NewSealer(testRealm(t, n), nil)
		i, b := sealed(t, s, Data, plain)
		infos, chunks = append(infos, i), append(chunks, b)
		for e := range infos {
			if got, err := s.Verify(nil, infos[e], chunks[e]); err != nil || !bytes.Equal(got, plain) {
				t.Errorf("epoch %d opened in epoch %d: %v", e+1, n+1, err)
			}
		}
		if infos[n].Chunk != infos[0].Chunk {
			t.Error("a rotation changed the chunk's ID")
		}
	}
	if _, err := NewSealer(testRealm(t, 3), nil).Open(nil, infos[4], chunks[4]); !errors.Is(err, ErrNoKey) {
		t.Errorf("a later epoch: %v, want ErrNoKey", err)
	}
	r, err := testRing(t, 4).Realm(2)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := NewSealer(r, nil).Open(nil, infos[0], chunks[0]); !errors.Is(err, ErrNoKey) {
		t.Errorf("another realm: %v, want ErrNoKey", err)
	}
}

// No two seals of one chunk have one nonce, in any number of goroutines and over
// any number of sealers. Nonces of one key are what must differ, and the key is
// the chunk's.
func TestNoncesNeverRepeat(t *testing.T) {
	total := 100_000
	if os.Getenv("CAIRN_LONG") != "" {
		total = 10_000_000
	}
	const workers = 4
	r := testRealm(t, 0)
	seen := make([][][nonceSize]byte, workers)
	shared := NewSealer(r, nil)
	var wg sync.WaitGroup
	for g := range workers {
		wg.Go(func() {
			s := shared
			var buf []byte
			i := s.Info(id.Chunk{1}, Data, 0, None, 0)
			for n := range total / workers {
				if n%1000 == 999 && g > 1 {
					s = NewSealer(r, nil) // as after a restart
				}
				var err error
				if buf, err = s.Seal(buf[:0], i, nil); err != nil {
					t.Error(err)
					return
				}
				seen[g] = append(seen[g], [nonceSize]byte(buf))
			}
		})
	}
	wg.Wait()
	all := slices.Concat(seen...)
	slices.SortFunc(all, func(a, b [nonceSize]byte) int { return bytes.Compare(a[:], b[:]) })
	if n := len(slices.Compact(slices.Clone(all))); n != total {
		t.Errorf("%d seals under one key, %d nonces", total, n)
	}
}

// With a source handed in each seal takes the next twelve bytes of it.
func TestNoncesFollowTheSource(t *testing.T) {
	want := random(7, 100*nonceSize)
	s := NewSealer(testRealm(t, 0), bytes.NewReader(want))
	i := s.Info(id.Chunk{1}, Data, 0, None, 0)
	for n := range 100 {
		b, err := s.Seal(nil, i, nil)
		if err != nil || !bytes.Equal(b[:nonceSize], want[n*nonceSize:][:nonceSize]) {
			t.Fatalf("seal %d has nonce %x, %v", n, b[:nonceSize], err)
		}
	}
}

func TestManyAtOnce(t *testing.T) {
	s := NewSealer(testRealm(t, 0), source(3)) // a source that two must not read at once
	var c Compressor
	var wg sync.WaitGroup
	for g := range 8 {
		wg.Go(func() {
			for n := range 60 {
				plain := random(byte(g), 100+n)
				if n%2 == 0 {
					plain = bytes.Repeat(plain[:20], 100+n)
				}
				body, how := plain, None
				if b, ok := c.Compress(nil, plain); ok {
					body, how = b, Zstd
				}
				i := s.Info(s.ChunkID(Data, plain), Data, len(plain), how, len(body))
				b, err := s.Seal(nil, i, body)
				if err == nil {
					var got []byte
					if got, err = s.Verify(nil, i, b); !bytes.Equal(got, plain) {
						t.Error("other bytes")
					}
				}
				if err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
}

// Nothing is allocated but the cipher of each chunk.
func TestAllocations(t *testing.T) {
	if raceEnabled {
		t.Skip("under the race detector a pool drops what it is given now and then")
	}
	s := NewSealer(testRealm(t, 0), nil)
	cipher := testing.AllocsPerRun(50, func() { newGCM(make([]byte, 32)) })
	for _, plain := range [][]byte{random(1, 4<<10), random(1, 1<<20), text(1 << 20)} {
		i, b := sealed(t, s, Data, plain)
		body := plain
		if i.Compression == Zstd {
			body, _ = new(Compressor).Compress(nil, plain)
		}
		dst := make([]byte, 0, len(plain)+Overhead)
		n := testing.AllocsPerRun(50, func() {
			if _, err := s.Seal(dst, i, body); err != nil {
				t.Fatal(err)
			}
		})
		if n > cipher {
			t.Errorf("seal %d bytes: %v allocations, the cipher alone %v", len(plain), n, cipher)
		}
		n = testing.AllocsPerRun(50, func() {
			if _, err := s.Open(dst, i, b); err != nil {
				t.Fatal(err)
			}
		})
		if n > cipher {
			t.Errorf("open %d bytes, %v: %v allocations, the cipher alone %v", len(plain), i.Compression, n, cipher)
		}
	}
}

func TestSealersDoNotPrint(t *testing.T) {
	k := testRing(t, 0)
	r := testRealm(t, 0)
	s := NewSealer(r, nil)
	sealed(t, s, Data, []byte("so that the pools hold something"))
	box, pad, digest := NewBox(k.ClusterFileKey(), nil), NewKeystream(k.ClusterFileKey()), NewDigester(k.ClusterFileKey())
	root, err := r.SealingKey(1)
	if err != nil {
		t.Fatal(err)
	}
	type holder struct {
		s *Sealer
		b *Box
		k *Keystream
		d *Digester
	}
	for _, v := range []any{s, box, pad, digest, holder{s, box, pad, digest}, &holder{s, box, pad, digest}} {
		var out strings.Builder
		for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%x", "%d", "%q", "%c"} {
			fmt.Fprintf(&out, verb, v)
		}
		for _, key := range [][32]byte{root.Reveal(), k.ClusterFileKey().Reveal()} {
			var words []string
			for n := range 2 { // a key schedule begins with the key's words
				words = append(words, fmt.Sprint(binary.BigEndian.Uint32(key[4*n:])))
				words = append(words, fmt.Sprint(binary.LittleEndian.Uint32(key[4*n:])))
			}
			words = append(words, fmt.Sprintf("%x", key[:4]), strings.Trim(fmt.Sprint(key[:4]), "[]"))
			for _, x := range words {
				if strings.Contains(out.String(), x) {
					t.Errorf("a %T prints %s: %.200s", v, x, out.String())
				}
			}
		}
	}
}

func BenchmarkSeal(b *testing.B) {
	s := NewSealer(testRealm(b, 0), nil)
	for _, n := range []int{4 << 10, 1 << 20} {
		b.Run(fmt.Sprintf("%dKiB", n>>10), func(b *testing.B) {
			plain := random(1, n)
			i := s.Info(s.ChunkID(Data, plain), Data, n, None, n)
			dst := make([]byte, 0, n+Overhead)
			b.SetBytes(int64(n))
			b.ReportAllocs()
			for b.Loop() {
				if _, err := s.Seal(dst, i, plain); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

func BenchmarkOpen(b *testing.B) {
	s := NewSealer(testRealm(b, 0), nil)
	for _, n := range []int{4 << 10, 1 << 20} {
		for name, plain := range map[string][]byte{"random": random(1, n), "text": text(n)} {
			b.Run(fmt.Sprintf("%s/%dKiB", name, n>>10), func(b *testing.B) {
				i, c := sealed(b, s, Data, plain)
				dst := make([]byte, 0, n)
				b.SetBytes(int64(n))
				b.ReportAllocs()
				for b.Loop() {
					if _, err := s.Open(dst, i, c); err != nil {
						b.Fatal(err)
					}
				}
			})
		}
	}
}

// Whatever is said about whatever bytes, nothing opens but what was sealed.
func FuzzOpen(f *testing.F) {
	s := NewSealer(testRealm(f, 1), source(1))
	i, b := sealed(f, s, Data, text(200))
	f.Add(uint32(i.Realm), i.Chunk[:], uint8(i.Kind), i.Epoch, uint8(i.Compression), i.PlainLen, i.SealedLen, b)
	j, c := sealed(f, s, List, random(1, 50))
	f.Add(uint32(j.Realm), j.Chunk[:], uint8(j.Kind), j.Epoch, uint8(j.Compression), j.PlainLen, j.SealedLen, c)
	f.Fuzz(func(t *testing.T, realm uint32, chunk []byte, kind uint8, epoch uint32, how uint8, plain, sealedLen uint32, bytesIn []byte) {
		x := Info{Realm: id.Realm(realm), Kind: Kind(kind), Epoch: epoch, Compression: Compression(how), PlainLen: plain, SealedLen: sealedLen}
		copy(x.Chunk[:], chunk)
		got, err := s.Verify(nil, x, bytesIn)
		if err == nil && !(x == i && bytes.Equal(bytesIn, b)) && !(x == j && bytes.Equal(bytesIn, c)) {
			t.Fatalf("%+v with %x opens", x, bytesIn)
		}
		if err != nil && (len(got) != 0 || !errors.Is(err, ErrDamaged) && !errors.Is(err, ErrNoKey)) {
			t.Fatalf("%d bytes, %v", len(got), err)
		}
	})
}

// Any authentic body becomes as many bytes as was said, or none.
func FuzzDecompress(f *testing.F) {
	var c Compressor
	body, _ := c.Compress(nil, text(500))
	f.Add(body, 500)
	f.Add(body, 499)
	f.Add([]byte("\x28\xb5\x2f\xfd"), 10)
	f.Fuzz(func(t *testing.T, body []byte, n int) {
		if n < 0 || n > 1<<20 {
			return
		}
		got, err := decompress([]byte("x"), body, n)
		if err == nil && len(got) != n+1 || err != nil && len(got) != 1 {
			t.Fatalf("%d bytes for %d, %v", len(got), n, err)
		}
	})
}

func TestRoundTrips(t *testing.T) {
	s := NewSealer(testRealm(t, 0), nil)
	rapid.Check(t, func(t *rapid.T) {
		unit := rapid.SliceOfN(rapid.Byte(), 1, 200).Draw(t, "unit")
		plain := bytes.Repeat(unit, rapid.IntRange(0, 200).Draw(t, "times"))
		body, how := plain, None
		pre := rapid.SliceOfN(rapid.Byte(), 0, 5).Draw(t, "before")
		if b, ok := new(Compressor).Compress(bytes.Clone(pre), plain); ok {
			body, how = b[len(pre):], Zstd
			if !bytes.Equal(b[:len(pre)], pre) || len(body) > len(plain)-len(plain)/32 {
				t.Fatalf("%d bytes of %d were kept", len(body), len(plain))
			}
		} else if !bytes.Equal(b, pre) {
			t.Fatal("dst is not as it was")
		}
		i := s.Info(s.ChunkID(Data, plain), Data, len(plain), how, len(body))
		b, err := s.Seal(bytes.Clone(pre), i, body)
		if err != nil {
			t.Fatal(err)
		}
		got, err := s.Verify(bytes.Clone(pre), i, b[len(pre):])
		if err != nil || !bytes.Equal(got, append(bytes.Clone(pre), plain...)) {
			t.Fatalf("%d bytes, %v", len(got), err)
		}
	})
}
