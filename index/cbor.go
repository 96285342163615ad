package index

import "unicode/utf8"

// The rows' values are CBOR (RFC 8949) in the core deterministic encoding, of
// which they need a handful of types. Reading and writing them by hand makes
// every value that decodes the only encoding of what it decodes to, without
// encoding it a second time to compare, and allocates nothing of its own.

const (
	majorUint  = 0 << 5
	majorNeg   = 1 << 5
	majorBytes = 2 << 5
	majorText  = 3 << 5
	majorArray = 4 << 5
	cborFalse  = 0xf4
	cborTrue   = 0xf5
)

func appendHead(b []byte, major byte, n uint64) []byte {
	switch {
	case n < 24:
		return append(b, major|byte(n))
	case n < 1<<8:
		return append(b, major|24, byte(n))
	case n < 1<<16:
		return append(b, major|25, byte(n>>8), byte(n))
	case n < 1<<32:
		return append(b, major|26, byte(n>>24), byte(n>>16), byte(n>>8), byte(n))
	}
	return append(b, major|27, byte(n>>56), byte(n>>48), byte(n>>40), byte(n>>32), byte(n>>24), byte(n>>16), byte(n>>8), byte(n))
}

func appendUint(b []byte, n uint64) []byte { return appendHead(b, majorUint, n) }

func appendInt(b []byte, n int64) []byte {
	if n < 0 {
		return appendHead(b, majorNeg, uint64(^n))
	}
	return appendHead(b, majorUint, uint64(n))
}

func appendBytes(b, v []byte) []byte { return append(appendHead(b, majorBytes, uint64(len(v))), v...) }

func appendText(b []byte, v string) []byte {
	return append(appendHead(b, majorText, uint64(len(v))), v...)
}

func appendArray(b []byte, n int) []byte { return appendHead(b, majorArray, uint64(n)) }

func appendBool(b []byte, v bool) []byte {
	if v {
		return append(b, cborTrue)
	}
	return append(b, cborFalse)
}

// decoder reads what the functions above wrote. After the first thing that is
// not as it must be, bad is set and everything reads as zero.
type decoder struct {
	b   []byte
	bad bool
}

func (d *decoder) head(major byte) uint64 {
	if d.bad || len(d.b) == 0 || d.b[0]&0xe0 != major {
		d.bad = true
		return 0
	}
	n := uint64(d.b[0] & 0x1f)
	if n < 24 {
		d.b = d.b[1:]
		return n
	}
	if n > 27 {
		d.bad = true
		return 0
	}
	size := 1 << (n - 24)
	if len(d.b) < 1+size {
		d.bad = true
		return 0
	}
	n = 0
	for _, x := range d.b[1 : 1+size] {
		n = n<<8 | uint64(x)
	}
	if size == 1 && n < 24 || size > 1 && n < 1<<(4*size) {
		d.bad = true // a shorter form would do
		return 0
	}
	d.b = d.b[1+size:]
	return n
}

func (d *decoder) uint() uint64 { return d.head(majorUint) }

// upTo reads an unsigned integer that must not be above max.
func (d *decoder) upTo(max uint64) uint64 {
	n := d.uint()
	if n > max {
		d.bad = true
		return 0
	}
	return n
}

func (d *decoder) int() int64 {
	if len(d.b) > 0 && d.b[0]&0xe0 == majorNeg {
		n := d.head(majorNeg)
		if n > 1<<63-1 {
			d.bad = true
			return 0
		}
		return ^int64(n)
	}
	return int64(d.upTo(1<<63 - 1))
}

// bytes returns a part of the input.
func (d *decoder) bytes() []byte { return d.take(majorBytes) }

func (d *decoder) take(major byte) []byte {
	n := d.head(major)
	if d.bad || n > uint64(len(d.b)) {
		d.bad = true
		return nil
	}
	v := d.b[:n:n]
	d.b = d.b[n:]
	return v
}

// fill reads a byte string of exactly len(dst) bytes.
func (d *decoder) fill(dst []byte) {
	if v := d.bytes(); len(v) == len(dst) {
		copy(dst, v)
	} else {
		d.bad = true
	}
}

func (d *decoder) text() string {
	v := d.take(majorText)
	if !utf8.Valid(v) {
		d.bad = true
		return ""
	}
	return string(v)
}

func (d *decoder) bool() bool {
	if d.bad || len(d.b) == 0 || d.b[0] != cborFalse && d.b[0] != cborTrue {
		d.bad = true
		return false
	}
	v := d.b[0] == cborTrue
	d.b = d.b[1:]
	return v
}

// array reads the head of an array of exactly n elements.
func (d *decoder) array(n int) {
	if d.head(majorArray) != uint64(n) {
		d.bad = true
	}
}

// list reads the head of an array of at most max elements, each at least one
// byte long, so that what is allocated for it is bounded by what is there.
func (d *decoder) list(max int) int {
	n := d.head(majorArray)
	if n > uint64(max) || n > uint64(len(d.b)) {
		d.bad = true
		return 0
	}
	return int(n)
}

// end reports whether everything was as it must be, to the last byte.
func (d *decoder) end() bool { return !d.bad && len(d.b) == 0 }
