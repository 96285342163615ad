package seal

import (
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync"
	"testing"

	"pgregory.net/rapid"

	"cairn/keys"
)

var (
	testKey    = [keys.Size]byte{1, 2, 3, 4}
	testSecret = keys.NewSecret(testKey)
)

func TestBox(t *testing.T) {
	b := NewBox(testSecret, nil)
	rapid.Check(t, func(t *rapid.T) {
		plain, ad := rapid.SliceOf(rapid.Byte()).Draw(t, "plain"), rapid.SliceOf(rapid.Byte()).Draw(t, "ad")
		dst := rapid.SliceOf(rapid.Byte()).Draw(t, "dst")
		sealed, err := b.Seal(bytes.Clone(dst), plain, ad)
		if err != nil || !bytes.HasPrefix(sealed, dst) || len(sealed) != len(dst)+len(plain)+Overhead {
			t.Fatalf("%d bytes, %v", len(sealed), err)
		}
		sealed = sealed[len(dst):]
		got, err := b.Open(bytes.Clone(dst), sealed, ad)
		if err != nil || !bytes.Equal(got, append(bytes.Clone(dst), plain...)) {
			t.Fatalf("%x, %v", got, err)
		}
		bad := bytes.Clone(sealed)
		bad[rapid.IntRange(0, len(bad)-1).Draw(t, "byte")] ^= 1
		for _, try := range []struct{ sealed, ad []byte }{{bad, ad}, {sealed, append(bytes.Clone(ad), 0)}, {sealed[:len(sealed)-1], ad}, {sealed[:Overhead-1], ad}, {nil, ad}} {
			if got, err := b.Open(dst, try.sealed, try.ad); !errors.Is(err, ErrDamaged) || !bytes.Equal(got, dst) {
				t.Fatalf("altered: %x, %v, want ErrDamaged", got, err)
			}
		}
		if _, err := NewBox(keys.NewSecret([keys.Size]byte{9}), nil).Open(nil, sealed, ad); !errors.Is(err, ErrDamaged) {
			t.Fatalf("another key: %v, want ErrDamaged", err)
		}
		again, err := b.Seal(nil, plain, ad)
		if err != nil || bytes.Equal(again[:nonceSize], sealed[:nonceSize]) {
			t.Fatalf("the nonce again: %x, %v", again[:nonceSize], err)
		}
	})
	if got, err := NewBox(testSecret, strings.NewReader("short")).Seal([]byte("dst"), nil, nil); !errors.Is(err, io.ErrUnexpectedEOF) || string(got) != "dst" {
		t.Errorf("without a nonce: %q, %v", got, err)
	}
	dst := make([]byte, 0, 1000)
	plain, sealed := make([]byte, 500), make([]byte, 0, 1000)
	if n := testing.AllocsPerRun(50, func() {
		sealed, _ = b.Seal(sealed[:0], plain, plain)
		if _, err := b.Open(dst, sealed, plain); err != nil {
			t.Fatal(err)
		}
	}); n > 0 && !raceEnabled {
		t.Errorf("%v allocations per box", n)
	}
}

func TestBoxesAtOnce(t *testing.T) {
	b := NewBox(testSecret, source(1))
	var wg sync.WaitGroup
	for g := range 8 {
		wg.Go(func() {
			for range 100 {
				s, err := b.Seal(nil, []byte{byte(g)}, nil)
				if err == nil {
					_, err = b.Open(nil, s, nil)
				}
				if err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
}

func TestKeystreamIsCTR(t *testing.T) {
	const size = 10_000
	block, err := aes.NewCipher(testKey[:])
	if err != nil {
		t.Fatal(err)
	}
	want := make([]byte, size)
	cipher.NewCTR(block, make([]byte, aes.BlockSize)).XORKeyStream(want, want)
	k := NewKeystream(testSecret)
	rapid.Check(t, func(t *rapid.T) {
		off := rapid.IntRange(0, size).Draw(t, "off")
		n := rapid.IntRange(0, size-off).Draw(t, "n")
		if rapid.Bool().Draw(t, "short") {
			n = min(n, 40)
		}
		b := bytes.Repeat([]byte{0xaa}, n+2)
		k.Fill(b[1:n+1], uint64(off))
		if !bytes.Equal(b[1:n+1], want[off:off+n]) {
			t.Fatalf("%d bytes from %d on differ", n, off)
		}
		if b[0] != 0xaa || b[n+1] != 0xaa {
			t.Fatal("it wrote beside its place")
		}
	})
	// Across 2^32 blocks, and where 64 bits of bytes end.
	for _, off := range []uint64{1<<36 - 20, 1<<64 - 50} {
		iv := make([]byte, aes.BlockSize)
		for i, n := 15, off/16; n > 0; i, n = i-1, n>>8 {
			iv[i] = byte(n)
		}
		want := make([]byte, 50+off%16)
		cipher.NewCTR(block, iv).XORKeyStream(want, want)
		got := make([]byte, 50)
		k.Fill(got, off)
		if !bytes.Equal(got, want[off%16:]) {
			t.Errorf("at %d: %x, want %x", off, got, want[off%16:])
		}
	}
	b := make([]byte, 1001)
	if n := testing.AllocsPerRun(50, func() { k.Fill(b, 3) }); n > 0 && !raceEnabled {
		t.Errorf("%v allocations", n)
	}
}

func TestDigestIsGMAC(t *testing.T) {
	block, err := aes.NewCipher(testKey[:])
	if err != nil {
		t.Fatal(err)
	}
	g, err := cipher.NewGCM(block)
	if err != nil {
		t.Fatal(err)
	}
	d := NewDigester(testSecret)
	rapid.Check(t, func(t *rapid.T) {
		shard, index := rapid.SliceOf(rapid.Byte()).Draw(t, "shard"), rapid.Uint32().Draw(t, "index")
		nonce := []byte{0, 0, 0, 0, 0, 0, 0, 0, byte(index >> 24), byte(index >> 16), byte(index >> 8), byte(index)}
		got := d.Sum(index, shard)
		if want := g.Seal(nil, nonce, nil, shard); !bytes.Equal(got[:], want) {
			t.Fatalf("%x, want %x", got, want)
		}
		if d.Sum(index+1, shard) == got || d.Sum(index, append(bytes.Clone(shard), 0)) == got || NewDigester(keys.NewSecret([32]byte{7})).Sum(index, shard) == got {
			t.Fatal("another shard has the same digest")
		}
	})
	shard := make([]byte, 1000)
	if n := testing.AllocsPerRun(50, func() { d.Sum(3, shard) }); n > 0 && !raceEnabled {
		t.Errorf("%v allocations", n)
	}
	var wg sync.WaitGroup
	want := d.Sum(1, shard)
	for g := range 8 {
		wg.Go(func() {
			for range 200 {
				d.Sum(uint32(g), shard[:g])
				if d.Sum(1, shard) != want {
					t.Error("another digest, at the same time as others")
				}
			}
		})
	}
	wg.Wait()
}

func BenchmarkBox(b *testing.B) {
	box := NewBox(testSecret, nil)
	for _, n := range []int{256, 16 << 10} {
		b.Run(fmt.Sprintf("%dB", n), func(b *testing.B) {
			plain, dst := make([]byte, n), make([]byte, 0, n+Overhead)
			b.SetBytes(int64(n))
			b.ReportAllocs()
			for b.Loop() {
				if _, err := box.Seal(dst, plain, plain[:16]); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

func BenchmarkKeystream(b *testing.B) {
	k := NewKeystream(testSecret)
	buf := make([]byte, 64<<10)
	b.SetBytes(int64(len(buf)))
	b.ReportAllocs()
	for b.Loop() {
		k.Fill(buf, 5)
	}
}

func BenchmarkDigest(b *testing.B) {
	d := NewDigester(testSecret)
	for _, n := range []int{4 << 10, 1 << 20, 4 << 20} {
		b.Run(fmt.Sprintf("%dKiB", n>>10), func(b *testing.B) {
			shard := make([]byte, n)
			b.SetBytes(int64(n))
			b.ReportAllocs()
			for b.Loop() {
				d.Sum(1, shard)
			}
		})
	}
}

func FuzzBox(f *testing.F) {
	b := NewBox(testSecret, source(1))
	sealed, err := b.Seal(nil, []byte("plain"), []byte("ad"))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(sealed, []byte("ad"))
	f.Fuzz(func(t *testing.T, in, ad []byte) {
		if got, err := b.Open(nil, in, ad); err == nil && (!bytes.Equal(in, sealed) || string(ad) != "ad") || err != nil && len(got) > 0 {
			t.Fatalf("%x opens", in)
		}
	})
}
