package bench

import (
	"encoding/binary"
	"strings"
)

// weyl is the odd number next to 2^64 divided by the golden ratio, the increment
// of SplitMix64.
const weyl = 0x9e3779b97f4a7c15

// mix is the output function of SplitMix64 (Steele, Lea and Flood, "Fast
// splittable pseudorandom number generators", OOPSLA 2014, variant 13 of
// Stafford's mixers).
func mix(z uint64) uint64 {
	z = (z ^ z>>30) * 0xbf58476d1ce4e5b9
	z = (z ^ z>>27) * 0x94d049bb133111eb
	return z ^ z>>31
}

// Random fills b with bytes that no compressor gains on; one seed gives the same
// bytes always, another others throughout. Seeds are spread first, so that 1 and
// 2 share no stretch. It makes more than 1 GB a second, which a store does not
// take.
func Random(b []byte, seed uint64) {
	state := mix(seed ^ 0x6361_6972_6e00) // so that seed 0 is as good as others
	for ; len(b) >= 8; b = b[8:] {
		state += weyl
		binary.LittleEndian.PutUint64(b, mix(state))
	}
	var last [8]byte
	binary.LittleEndian.PutUint64(last[:], mix(state+weyl))
	copy(b, last[:])
}

// Text fills b with words of a made-up language, those of low numbers more often,
// in lines: about what a log or a page of text gives a compressor.
func Text(b []byte, seed uint64) {
	words := make([]string, 2048)
	state := uint64(7) // the language does not depend on the seed
	next := func() uint64 { state += weyl; return mix(state) }
	for i := range words {
		var w strings.Builder
		for range 2 + next()%4 {
			w.WriteByte("bcdfghklmnprstvz"[next()%16])
			w.WriteByte("aeiou"[next()%5])
		}
		words[i] = w.String()
	}
	state = mix(seed)
	for n, line := 0, 0; n < len(b); {
		// The product of two uniform numbers prefers low ones.
		r := next()
		w := words[(r&0xffff)*(r>>16&0xffff)*uint64(len(words))>>32]
		at := n
		n += copy(b[n:], w)
		if n < len(b) {
			b[n] = ' '
			if line += n - at + 1; line > 72 {
				b[n], line = '\n', 0
			}
			n++
		}
	}
}
