package kv

import (
	"bytes"
	"encoding/binary"
	"errors"
	"hash/crc32"
	"math/big"
	"testing"

	"pgregory.net/rapid"
)

func testSealer(salt byte) *sealer {
	return newSealer(&Config{ValueKey: NewSecret([32]byte{1}), DigestKey: NewSecret([32]byte{2})}, [saltLen]byte{salt})
}

func fixCRC(row []byte) []byte {
	n := len(row) - 4
	binary.BigEndian.PutUint32(row[n:], crc32.Checksum(row[:n], castagnoli))
	return row
}

// Damage, another key and a later version are three errors, in each byte.
func TestStateRow(t *testing.T) {
	s := testSealer(7)
	st := State{Rows: 3, Commits: 4, Digest: Digest{5, 6, 7, 8}}
	row := s.appendState(nil, make([]byte, nonceLen), st)
	if len(row) != stateLen {
		t.Fatalf("%d bytes, want %d", len(row), stateLen)
	}
	if got, err := s.openState(row); err != nil || got != st {
		t.Fatalf("got %+v, %v, want %+v", got, err, st)
	}
	for i := range 8 * len(row) {
		b := bytes.Clone(row)
		b[i/8] ^= 1 << (i % 8)
		if _, err := s.openState(b); !errors.Is(err, ErrDamaged) {
			t.Errorf("bit %d: %v, want ErrDamaged", i, err)
		}
		// With its checksum made right it is another's, a later one's, or damage;
		// never good.
		fixCRC(b)
		want := ErrDamaged
		switch at := i / 8; {
		case at == 4 && b[4] > formatVersion:
			want = ErrNewer
		case at >= 5 && at < stateHeadLen:
			want = ErrForeign
		case at >= stateLen-4:
			continue // the checksum itself
		}
		if _, err := s.openState(b); !errors.Is(err, want) {
			t.Errorf("bit %d, checksum made right: %v, want %v", i, err, want)
		}
	}
	for n := range len(row) {
		if _, err := s.openState(row[:n]); !errors.Is(err, ErrDamaged) {
			t.Errorf("%d bytes: %v, want ErrDamaged", n, err)
		}
	}
	newer := fixCRC(append(bytes.Clone(row[:4]), 2, 'n', 'e', 'w', 0, 0, 0, 0))
	if _, err := s.openState(newer); !errors.Is(err, ErrNewer) {
		t.Errorf("another length under a later version: %v, want ErrNewer", err)
	}
	if _, err := testSealer(8).openState(row); !errors.Is(err, ErrForeign) {
		t.Errorf("another salt: %v, want ErrForeign", err)
	}
}

func FuzzStateRow(f *testing.F) {
	s := testSealer(7)
	f.Add(s.appendState(nil, make([]byte, nonceLen), State{Rows: 3}))
	f.Add([]byte("CKVS\x02newer\x00\x00\x00\x00"))
	f.Fuzz(func(t *testing.T, row []byte) {
		st, err := s.openState(row)
		if err != nil {
			return
		}
		if again := s.appendState(nil, row[stateHeadLen:stateHeadLen+nonceLen], st); !bytes.Equal(again, row) {
			t.Errorf("two encodings of one state: %x and %x", row, again)
		}
	})
}

func FuzzOpenValue(f *testing.F) {
	s := testSealer(7)
	bound := bind(nil, kindRow, []byte("key"))
	f.Add(s.seal(nil, bound, make([]byte, nonceLen), []byte("value")), []byte("key"))
	f.Fuzz(func(t *testing.T, sealed, key []byte) {
		bound := bind(nil, kindRow, key)
		v, err := s.open([]byte("dst"), bound, sealed)
		if err != nil {
			if string(v) != "dst" {
				t.Errorf("something was appended: %q", v)
			}
			return
		}
		if again := s.seal(nil, bound, sealed[1:1+nonceLen], v[3:]); !bytes.Equal(again, sealed) {
			t.Errorf("two seals of one value: %x and %x", sealed, again)
		}
	})
}

// A value opens under its own key and kind only.
func TestSealBindsTheKey(t *testing.T) {
	s := testSealer(7)
	sealed := s.seal(nil, bind(nil, kindRow, []byte("a")), make([]byte, nonceLen), []byte("v"))
	if v, err := s.open(nil, bind(nil, kindRow, []byte("a")), sealed); err != nil || string(v) != "v" {
		t.Fatalf("%q, %v", v, err)
	}
	for _, other := range [][]byte{bind(nil, kindRow, []byte("b")), bind(nil, kindRow, nil), bind(nil, kindState, []byte("a"))} {
		if _, err := s.open(nil, other, sealed); !errors.Is(err, ErrDamaged) {
			t.Errorf("bound to %x: %v, want ErrDamaged", other, err)
		}
	}
	if _, err := testSealer(8).open(nil, bind(nil, kindRow, []byte("a")), sealed); !errors.Is(err, ErrDamaged) {
		t.Error("opens with another database's salt")
	}
}

// Digests add and subtract as numbers modulo 2^256 do.
func TestDigestArithmetic(t *testing.T) {
	num := func(d Digest) *big.Int {
		n := new(big.Int)
		for i := 3; i >= 0; i-- {
			n.Lsh(n, 64).Or(n, new(big.Int).SetUint64(d[i]))
		}
		return n
	}
	mod := new(big.Int).Lsh(big.NewInt(1), 256)
	word := rapid.OneOf(rapid.Uint64(), rapid.SampledFrom([]uint64{0, 1, 1<<64 - 1}))
	digest := rapid.Custom(func(t *rapid.T) Digest {
		return Digest{word.Draw(t, "0"), word.Draw(t, "1"), word.Draw(t, "2"), word.Draw(t, "3")}
	})
	rapid.Check(t, func(t *rapid.T) {
		a, b := digest.Draw(t, "a"), digest.Draw(t, "b")
		sum, diff := a, a
		sum.add(&b)
		diff.sub(&b)
		if want := new(big.Int).Add(num(a), num(b)); num(sum).Cmp(want.Mod(want, mod)) != 0 {
			t.Fatalf("%v + %v = %v, want %x", a, b, sum, want)
		}
		if want := new(big.Int).Sub(num(a), num(b)); num(diff).Cmp(want.Mod(want, mod)) != 0 {
			t.Fatalf("%v - %v = %v, want %x", a, b, diff, want)
		}
		if got := parseDigest(sum.append(nil)); got != sum {
			t.Fatalf("%v is read back as %v", sum, got)
		}
	})
}

// A row is not confused with one whose key is longer by what its value begins with.
func TestSharesAreUnambiguous(t *testing.T) {
	s := testSealer(7)
	if s.share([]byte("ab"), []byte("c")) == s.share([]byte("a"), []byte("bc")) {
		t.Error("two rows, one share")
	}
	if s.share([]byte("a"), nil) == testSealer(8).share([]byte("a"), nil) {
		t.Error("a share that does not depend on the database")
	}
}

func BenchmarkSealer(b *testing.B) {
	s := testSealer(7)
	bound := bind(nil, kindRow, make([]byte, 40))
	nonce, value := make([]byte, nonceLen), make([]byte, 200)
	sealed := s.seal(nil, bound, nonce, value)
	buf := make([]byte, 0, 1<<10)
	for name, do := range map[string]func(){
		"seal":  func() { s.seal(buf, bound, nonce, value) },
		"open":  func() { s.open(buf, bound, sealed) },
		"share": func() { s.share(bound[1:], sealed) },
	} {
		b.Run(name+"/200B", func(b *testing.B) {
			b.SetBytes(200)
			b.ReportAllocs()
			for b.Loop() {
				do()
			}
		})
	}
}
