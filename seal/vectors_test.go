package seal_test

import (
	"bytes"
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"cairn/id"
	"cairn/keys"
	"cairn/seal"
)

// What version 1 wrote is in testdata/v1 for good, under the keyring in
// keys/testdata/v1. It was made by TestWriteVersion1 with CAIRN_WRITE_VECTORS=1,
// which overwrites nothing.
const (
	v1     = "testdata/v1"
	keysV1 = "../keys/testdata/v1"
)

// vectorChunk is a sealed chunk of testdata, with what stands beside it.
type vectorChunk struct {
	Name   string
	Info   seal.Info
	Sealed string // hexadecimal, as below
	Plain  string
}

// fixed draws the same nonce for ever.
type fixed [12]byte

func (f fixed) Read(b []byte) (int, error) { return copy(b, f[:]), nil }

func readFile(t testing.TB, elem ...string) []byte {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(elem...))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func vectorRing(t testing.TB) *keys.Keyring {
	t.Helper()
	f, err := keys.ReadKeyFile(filepath.Join(keysV1, "cluster.key"))
	if err != nil {
		t.Fatal(err)
	}
	k, err := keys.Open(context.Background(), id.Cluster{}, readFile(t, keysV1, "keyring.bin"), f)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func vectorRealm(t testing.TB, n id.Realm) *keys.Realm {
	t.Helper()
	r, err := vectorRing(t).Realm(n)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// vectorReference opens the same keyring with the other implementation.
func vectorReference(t testing.TB) *refRing {
	t.Helper()
	key, err := refKeyFile(string(readFile(t, keysV1, "cluster.key")))
	if err != nil {
		t.Fatal(err)
	}
	r, err := refOpen(readFile(t, keysV1, "keyring.bin"), 1, "cairn 2026-11-24 keyring slot of a key file v1", key)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func unhex(t testing.TB, s string) []byte {
	t.Helper()
	b, err := hex.DecodeString(s)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestVersion1OpensForEver(t *testing.T) {
	var chunks []vectorChunk
	if err := json.Unmarshal(readFile(t, v1, "chunks.json"), &chunks); err != nil {
		t.Fatal(err)
	}
	ref := vectorReference(t)
	seen := map[string]bool{}
	for _, c := range chunks {
		sealed, plain := unhex(t, c.Sealed), unhex(t, c.Plain)
		s := seal.NewSealer(vectorRealm(t, c.Info.Realm), fixed(sealed[:12]))
		got, err := s.Verify(nil, c.Info, sealed)
		if err != nil || !bytes.Equal(got, plain) {
			t.Errorf("%s: %x, %v", c.Name, got, err)
		}
		i := c.Info.Realm / 7 // realms 1 and 7 are there
		body, err := ref.realms[i].open(c.Info, sealed)
		if err != nil {
			t.Errorf("%s: the reference: %v", c.Name, err)
			continue
		}
		if ref.realms[i].chunkID(c.Info.Kind, plain) != c.Info.Chunk {
			t.Errorf("%s: the reference has another chunk ID", c.Name)
		}
		// Sealing the same again gives the same, in the current epoch.
		if c.Info.Epoch == s.Epoch() {
			if again, err := s.Seal(nil, c.Info, body); err != nil || !bytes.Equal(again, sealed) {
				t.Errorf("%s: sealed again it is %x, %v", c.Name, again, err)
			}
		}
		seen[fmt.Sprint(c.Info.Realm, c.Info.Kind, c.Info.Compression)] = true
		seen[fmt.Sprint("epoch ", c.Info.Epoch)] = true
	}
	for _, what := range []string{"1 data none", "1 data zstd", "1 list none", "7 data none", "epoch 1", "epoch 2", "epoch 3"} {
		if !seen[what] {
			t.Errorf("no vector for %s", what)
		}
	}

	small := map[string]string{}
	if err := json.Unmarshal(readFile(t, v1, "small.json"), &small); err != nil {
		t.Fatal(err)
	}
	for name, want := range smallVectors(t) {
		if name == "box" {
			plain, err := seal.NewBox(vectorRing(t).ClusterFileKey(), nil).Open(nil, unhex(t, small[name]), []byte("bound"))
			if err != nil || string(plain) != "boxed" {
				t.Errorf("box: %q, %v", plain, err)
			}
		}
		if small[name] != want {
			t.Errorf("%s is %s, want %s", name, want, small[name])
		}
	}
}

// smallVectors are box, keystream and digest under the vectors' keyring.
func smallVectors(t testing.TB) map[string]string {
	k := vectorRing(t)
	p := id.Pack{1, 2, 3}
	box, err := seal.NewBox(k.ClusterFileKey(), fixed{9, 8, 7}).Seal(nil, []byte("boxed"), []byte("bound"))
	if err != nil {
		t.Fatal(err)
	}
	pad := make([]byte, 50)
	seal.NewKeystream(k.PadKey(p)).Fill(pad, 1<<32-3)
	d := seal.NewDigester(k.DigestKey(p))
	a, b := d.Sum(0, nil), d.Sum(3, []byte("a shard"))
	return map[string]string{"box": hex.EncodeToString(box), "keystream": hex.EncodeToString(pad), "digest-0": hex.EncodeToString(a[:]), "digest-3": hex.EncodeToString(b[:])}
}

func TestWriteVersion1(t *testing.T) {
	if os.Getenv("CAIRN_WRITE_VECTORS") == "" {
		t.Skip("the vectors are there; CAIRN_WRITE_VECTORS=1 writes those that are not")
	}
	src := rand.NewChaCha8([32]byte([]byte("cairn chunk vectors, version 1!!")))
	text := bytes.Repeat([]byte("what is written twice is written once. "), 20)
	noise := make([]byte, 100)
	src.Read(noise)
	ref := vectorReference(t)
	var chunks []vectorChunk
	for _, c := range []struct {
		name  string
		realm int
		kind  seal.Kind
		epoch uint32
		zstd  bool
		plain []byte
	}{
		{"empty", 0, seal.Data, 3, false, nil}, {"noise", 0, seal.Data, 3, false, noise}, {"text", 0, seal.Data, 3, true, text}, {"list", 0, seal.List, 3, false, noise},
		{"first epoch", 0, seal.Data, 1, false, noise}, {"second epoch", 0, seal.Data, 2, true, text}, {"realm 7", 1, seal.Data, 1, false, noise},
	} {
		r := &ref.realms[c.realm]
		body, how := c.plain, seal.None
		if c.zstd {
			var ok bool
			if body, ok = new(seal.Compressor).Compress(nil, c.plain); !ok {
				t.Fatal("the text does not compress")
			}
			how = seal.Zstd
		}
		i := seal.Info{Realm: id.Realm(r.number), Chunk: r.chunkID(c.kind, c.plain), Kind: c.kind, Epoch: c.epoch, Compression: how, PlainLen: uint32(len(c.plain)), SealedLen: uint32(len(body) + 28)}
		nonce := make([]byte, 12)
		src.Read(nonce)
		chunks = append(chunks, vectorChunk{c.name, i, hex.EncodeToString(r.seal(i, nonce, body)), hex.EncodeToString(c.plain)})
	}
	write := func(name string, v any) {
		t.Helper()
		b, err := json.MarshalIndent(v, "", "  ")
		if err == nil {
			err = os.MkdirAll(v1, 0o755)
		}
		if err != nil {
			t.Fatal(err)
		}
		f, err := os.OpenFile(filepath.Join(v1, name), os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
		if err == nil {
			_, err = f.Write(append(b, '\n'))
			err = errors.Join(err, f.Close())
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	write("chunks.json", chunks)
	write("small.json", smallVectors(t))
}

// The reference agrees with known answers of BLAKE3, so that it is not wrong in
// the same way as what it is compared with.
func TestReferenceHash(t *testing.T) {
	// From the test vectors of the BLAKE3 team: input bytes i mod 251.
	input := make([]byte, 102400)
	for i := range input {
		input[i] = byte(i % 251)
	}
	key := []byte("whats the Elvish word for friend")
	for _, v := range []struct {
		n                   int
		hash, keyed, derive string
	}{
		{0, "af1349b9f5f9a1a6a0404dea36dcc9499bcb25c9adc112b7cc9a93cae41f3262", "92b2b75604ed3c761f9d6f62392c8a9227ad0ea3f09573e783f1498a4ed60d26", "2cc39783c223154fea8dfb7c1b1660f2ac2dcbd1c1de8277b0b0dd39b7e50d7d"},
		{1024, "42214739f095a406f3fc83deb889744ac00df831c10daa55189b5d121c855af7", "75c46f6f3d9eb4f55ecaaee480db732e6c2105546f1e675003687c31719c7ba4", "7356cd7720d5b66b6d0697eb3177d9f8d73a4a5c5e968896eb6a689684302706"},
	} {
		h, k := hex.EncodeToString(refHash(input[:v.n])), hex.EncodeToString(refKeyed(key, input[:v.n]))
		d := hex.EncodeToString(refDerive("BLAKE3 2019-12-27 16:29:52 test vectors context", 32, input[:v.n]))
		if h != v.hash || k != v.keyed || d != v.derive {
			t.Errorf("%d bytes: %s, %s, %s", v.n, h, k, d)
		}
	}
}

// Each implementation opens what the other one sealed.
func TestTwoImplementationsAgree(t *testing.T) {
	real, ref := vectorRealm(t, 1), &vectorReference(t).realms[0]
	s := seal.NewSealer(real, nil)
	rapid.Check(t, func(t *rapid.T) {
		plain := bytes.Repeat(rapid.SliceOfN(rapid.Byte(), 0, 300).Draw(t, "plain"), rapid.IntRange(1, 30).Draw(t, "times"))
		kind := rapid.SampledFrom([]seal.Kind{seal.Data, seal.List, seal.Snap}).Draw(t, "kind")
		c := s.ChunkID(kind, plain)
		if got := ref.chunkID(kind, plain); got != c {
			t.Fatalf("chunk ID %v, the reference has %v", c, got)
		}
		body, how := plain, seal.None
		if b, ok := new(seal.Compressor).Compress(nil, plain); ok {
			body, how = b, seal.Zstd
		}
		i := s.Info(c, kind, len(plain), how, len(body))
		sealed, err := s.Seal(nil, i, body)
		if err != nil {
			t.Fatal(err)
		}
		if got, err := ref.open(i, sealed); err != nil || !bytes.Equal(got, body) {
			t.Fatalf("the reference opens %x as %x, %v", sealed, got, err)
		}
		i.Epoch = uint32(rapid.IntRange(1, 3).Draw(t, "epoch"))
		nonce := rapid.SliceOfN(rapid.Byte(), 12, 12).Draw(t, "nonce")
		if got, err := s.Verify(nil, i, ref.seal(i, nonce, body)); err != nil || !bytes.Equal(got, plain) {
			t.Fatalf("what the reference sealed opens as %x, %v", got, err)
		}
	})
}

// The reference derives the keys that are in the vectors of package keys.
func TestTwoImplementationsDeriveTheSame(t *testing.T) {
	r := vectorReference(t)
	pack := append([]byte{0xa1}, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16)
	const c = "cairn 2026-11-24 "
	want := map[string][]byte{
		"meta":         refDerive(c+"meta key of a pack v1", 32, r.meta, pack),
		"pad":          refDerive(c+"padding key of a pack v1", 32, r.meta, pack),
		"digest":       refDerive(c+"digest key of a pack v1", 32, r.digest, pack),
		"index-values": refDerive(c+"index values v1", 32, r.index),
		"index-digest": refDerive(c+"index digest v1", 32, r.index),
		"index-engine": refDerive(c+"index engine encryption v1", 32, r.index),
		"cluster-file": refDerive(c+"cluster file v1", 32, r.cluRoot),
	}
	for _, x := range r.realms {
		want[fmt.Sprintf("realm-%d-gear", x.number)] = refDerive(c+"gear table key v1", 32, x.ids)
		want[fmt.Sprintf("realm-%d-record", x.number)] = refDerive(c+"record key of a pack v1", 32, x.records, pack)
		for e, k := range x.epochs {
			want[fmt.Sprintf("realm-%d-epoch-%d", x.number, e+1)] = k
		}
		for _, n := range []int{0, 1, 64, 1024, 1025, 8192, 8193, 100000} {
			plain := bytes.Repeat([]byte("cairn"), n/5+1)[:n]
			for _, kind := range []seal.Kind{seal.Data, seal.List, seal.Snap} {
				id := x.chunkID(kind, plain)
				want[fmt.Sprintf("realm-%d-%v-of-%d", x.number, kind, n)] = id[:]
			}
		}
	}
	got := map[string]string{}
	for line := range strings.Lines(string(readFile(t, keysV1, "derived.txt"))) {
		name, value, _ := strings.Cut(strings.TrimSpace(line), " ")
		got[name] = value
	}
	for name, key := range want {
		if got[name] != hex.EncodeToString(key) {
			t.Errorf("%s is %s, the reference has %x", name, got[name], key)
		}
	}
	if len(got) != len(want) {
		t.Errorf("%d keys, the reference has %d", len(got), len(want))
	}
	// The recovery code, after its page too.
	const symbols = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
	var acc, n uint
	var code []byte
	for _, group := range strings.Split(strings.TrimSpace(string(readFile(t, keysV1, "recovery.txt"))), "-") {
		for _, c := range group[:4] {
			acc, n = acc<<5|uint(strings.IndexRune(symbols, c)), n+5
			if n >= 8 {
				n -= 8
				code = append(code, byte(acc>>n))
			}
		}
	}
	if _, err := refOpen(readFile(t, keysV1, "keyring.bin"), 3, c+"keyring slot of a recovery code v1", code); err != nil {
		t.Errorf("the reference with the recovery code: %v", err)
	}
}
