package erasure

// The slow, obvious code to compare with: schoolbook multiplication in GF(2^8)
// modulo x^8+x^4+x^3+x^2+1, and Gauss-Jordan elimination.

func gfMul(a, b byte) byte {
	var p byte
	for ; b != 0; b >>= 1 {
		if b&1 != 0 {
			p ^= a
		}
		carry := a & 0x80
		a <<= 1
		if carry != 0 {
			a ^= 0x1d
		}
	}
	return p
}

func gfInv(a byte) byte {
	for b := 1; b < 256; b++ {
		if gfMul(a, byte(b)) == 1 {
			return byte(b)
		}
	}
	panic("0 has no inverse")
}

func matMul(a, b [][]byte) [][]byte {
	out := make([][]byte, len(a))
	for r := range a {
		out[r] = make([]byte, len(b[0]))
		for c := range b[0] {
			for i := range b {
				out[r][c] ^= gfMul(a[r][i], b[i][c])
			}
		}
	}
	return out
}

func matInv(a [][]byte) [][]byte {
	n := len(a)
	w := make([][]byte, n)
	for r := range a {
		w[r] = make([]byte, 2*n)
		copy(w[r], a[r])
		w[r][n+r] = 1
	}
	for c := range n {
		for r := c; r < n; r++ {
			if w[r][c] != 0 {
				w[r], w[c] = w[c], w[r]
				break
			}
		}
		inv := gfInv(w[c][c])
		for i := range w[c] {
			w[c][i] = gfMul(w[c][i], inv)
		}
		for r := range n {
			if f := w[r][c]; r != c && f != 0 {
				for i := range w[r] {
					w[r][i] ^= gfMul(f, w[c][i])
				}
			}
		}
	}
	out := make([][]byte, n)
	for r := range out {
		out[r] = w[r][n:]
	}
	return out
}

// slowMatrix is (k+m) x k: row i gives shard i from the data.
func slowMatrix(k, m int) [][]byte {
	v := make([][]byte, k+m)
	for r := range v {
		v[r] = make([]byte, k)
		x := byte(1)
		for c := range k {
			v[r][c] = x // r to the power c
			x = gfMul(x, byte(r))
		}
	}
	return matMul(v, matInv(v[:k]))
}

// slowEncode computes the parity of the data shards.
func slowEncode(data [][]byte, m int) [][]byte {
	k := len(data)
	return matMul(slowMatrix(k, m)[k:], data)
}

// slowDecode computes the data from the k shards with the given indexes.
func slowDecode(have [][]byte, index []int, m int) [][]byte {
	all := slowMatrix(len(have), m)
	var rows [][]byte
	for _, i := range index {
		rows = append(rows, all[i])
	}
	return matMul(matInv(rows), have)
}
