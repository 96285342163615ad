package store

import (
	"math/bits"
	"sync"
)

// bufferPool hands out byte slices of four sizes to each power of two. Fresh
// memory is dear on virtual machines, so buffers are used again; what a buffer
// held before is for its next user to overwrite. Nobody takes one without a
// share of the memory; those that lie here unused are the garbage collector's.
type bufferPool struct {
	classes [4 * 32]sync.Pool // of *[]byte with the class's capacity
	headers sync.Pool         // of *[]byte without their slice, so that put allocates nothing
}

// smallestClass is the capacity of class 0.
const smallestClass = 64

// classOf is the smallest class that holds n bytes, and its capacity.
func classOf(n int) (class, size int) {
	if n <= smallestClass {
		return 0, smallestClass
	}
	e := bits.Len(uint(n-1)) - 1 // 1<<e < n <= 2<<e
	quarter := 1 << (e - 2)
	steps := (n - 1<<e + quarter - 1) / quarter // 1 to 4
	return 4*(e-6) + steps, 1<<e + steps*quarter
}

// weigh is what a buffer of n bytes counts in a share.
func weigh(n int) int64 {
	_, size := classOf(n)
	return int64(size)
}

// get returns a slice of length n.
func (p *bufferPool) get(n int) []byte {
	class, size := classOf(n)
	if v := p.classes[class].Get(); v != nil {
		h := v.(*[]byte)
		b := *h
		*h = nil
		p.headers.Put(h)
		return b[:n]
	}
	return make([]byte, n, size)
}

// put takes a slice back that get gave, or that grew out of one.
func (p *bufferPool) put(b []byte) {
	class, size := classOf(cap(b))
	if size > cap(b) {
		class-- // it serves everything up to the class below
	}
	if class < 0 {
		return
	}
	h, _ := p.headers.Get().(*[]byte)
	if h == nil {
		h = new([]byte)
	}
	*h = b[:0]
	p.classes[class].Put(h)
}
