package sim

import (
	"math/rand/v2"
	"sync"
)

// mix turns numbers and names into one number that looks random: FNV-1a, ended
// with the finaliser of SplitMix64.
type mix uint64

func newMix(seed uint64) mix { return mix(14695981039346656037).num(seed) }

func (m mix) num(v uint64) mix {
	for range 8 {
		m = (m ^ mix(v&0xff)) * 1099511628211
		v >>= 8
	}
	return m
}

func (m mix) text(s string) mix {
	for i := range len(s) {
		m = (m ^ mix(s[i])) * 1099511628211
	}
	return m
}

func (m mix) sum() uint64 {
	z := uint64(m)
	z = (z ^ z>>30) * 0xbf58476d1ce4e5b9
	z = (z ^ z>>27) * 0x94d049bb133111eb
	return z ^ z>>31
}

// generator returns a random source of its own for one part of a history.
func generator(seed uint64, part string, n int) *rand.Rand {
	s := newMix(seed).text(part).num(uint64(n)).sum()
	return rand.New(rand.NewPCG(s, seed))
}

// source is a reader of random bytes for several goroutines.
type source struct {
	mu  sync.Mutex
	src *rand.ChaCha8
}

func newSource(seed uint64, part string, n int) *source {
	var key [32]byte
	g := generator(seed, part, n)
	for i := range key {
		key[i] = byte(g.Uint32())
	}
	return &source{src: rand.NewChaCha8(key)}
}

func (s *source) Read(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.src.Read(p)
}
