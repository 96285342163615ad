// Package chunker cuts a stream of bytes where its content says so, such that an
// edit moves only the cuts near it and equal stretches of two streams become
// equal chunks.
//
// It is FastCDC (Xia et al., USENIX ATC 2016, and "The Design of Fast
// Content-Defined Chunking for Data Deduplication Based Storage Systems", IEEE
// TPDS 31(9), 2020): a gear hash, the minimum skipped, a stricter mask before the
// normal point and a looser one after it. Three things differ. The table of the
// hash comes from a key, so that cut points depend on a secret. The masks are the
// highest bits, which see the longest window the hash has. And the hash is warmed
// up with the bytes before the minimum, so that a cut depends on the 64 bytes
// before it and not on where the chunk began; this is what lets [Cutter.Cut] run
// four hashes side by side and [Cutter.CutFrom] go on where it stopped. The exact
// definition, for other implementations, is in docs/formats/chunking.md.
//
// A secret table keeps somebody who sees only lengths from looking them up in a
// list of known files. It is no proof against one who can choose data and watch
// the chunks it makes: the hash is linear, and tables like this one have been
// recovered from chunk lengths (Truong et al., "Breaking and Fixing
// Content-Defined Chunking", 2025). Hide the lengths where that matters.
//
// [Gear] and [Cutter] never change and may be used by many goroutines. A
// [Chunker] belongs to one goroutine at a time. A Cutter keeps no data; a Chunker
// owns the one buffer it was given, of Max bytes, and allocates nothing after
// [New]. The package computes: no files, clock, logger or goroutines. It does not
// name, compress or deduplicate chunks.
package chunker

import (
	"errors"
	"fmt"
	"io"
)

// Errors that a Chunker adds to those of its reader.
var errCount = errors.New("chunker: the reader returned an impossible count")

// maxIdle is how many reads in a row may bring nothing before the reader is
// given up with [io.ErrNoProgress], as in package bufio.
const maxIdle = 100

// Chunker reads a stream and hands it out chunk by chunk. Its memory is one
// buffer of Max bytes, however long the stream is.
type Chunker struct {
	cut  *Cutter
	r    io.Reader
	buf  []byte // Max bytes
	step int    // how much is read before it is looked at

	start, end int   // buf[start:end] was read and not handed out
	seen       int   // of these, so many were looked at in vain
	err        error // why reading ended: io.EOF, or what went wrong
}

// New returns a Chunker that reads r. buf is the buffer to work in, perhaps from
// a pool: at least Max bytes of capacity, or nil, and then New allocates it. A
// shorter one is a mistake of the caller and panics. buf belongs to the Chunker
// until the caller stops using it and the last chunk it returned.
func New(r io.Reader, c *Cutter, buf []byte) *Chunker {
	size := c.params.Max
	switch {
	case buf == nil:
		buf = make([]byte, size)
	case cap(buf) < size:
		panic(fmt.Sprintf("chunker: a buffer of %d bytes, want at least Max, %d", cap(buf), size))
	}
	// What is read past a cut is moved to the front for the next chunk, so a step
	// is small against a chunk; and large against the cost of a read.
	step := min(max(c.params.Min, 16<<10), 256<<10)
	return &Chunker{cut: c, r: r, buf: buf[:size], step: step}
}

// Reset makes the Chunker read r from here on, with the same Cutter and buffer.
// What was read from the last reader and not handed out is dropped. Reset(nil)
// lets go of the last reader.
func (k *Chunker) Reset(r io.Reader) {
	k.r = r
	k.start, k.end, k.seen, k.err = 0, 0, 0, nil
}

// Next returns the next chunk: never empty, never longer than Max, and shorter
// than Min only when it is the last. It lies in the Chunker's buffer and is valid
// until the next call of Next or Reset; until then the caller may change it.
//
// At the end of the stream, at once if it is empty, the error is [io.EOF]. An
// error of the reader is returned as it is, after the chunks that were certain
// without what it withheld; the bytes since the last of them are dropped and are
// never taken for a short last chunk. Only io.EOF itself is an end: an error that
// wraps it is some layer's trouble, and becomes [io.ErrUnexpectedEOF] so that no
// caller takes it for the end either. Each error is final until Reset.
func (k *Chunker) Next() ([]byte, error) {
	for {
		pending := k.buf[k.start:k.end]
		if n := k.cut.CutFrom(pending, k.seen, k.err == io.EOF); n > 0 {
			k.start += n
			k.seen = 0
			return pending[:n:n], nil
		}
		if k.err != nil {
			return nil, k.err
		}
		k.seen = len(pending)
		k.fill()
	}
}

// fill reads a step more, or as much as fits or there is. There is room: what is
// pending is shorter than Max, or it would have been cut.
func (k *Chunker) fill() {
	if k.start > 0 {
		k.end = copy(k.buf, k.buf[k.start:k.end])
		k.start = 0
	}
	want := min(k.end+k.step, len(k.buf))
	for idle := 0; k.end < want && k.err == nil; {
		n, err := k.r.Read(k.buf[k.end:want])
		if n < 0 || n > want-k.end {
			k.err = errCount
			return
		}
		k.end += n
		if idle++; n > 0 {
			idle = 0
		}
		switch {
		case err == nil && idle == maxIdle:
			k.err = io.ErrNoProgress
		case err != io.EOF && errors.Is(err, io.EOF):
			k.err = fmt.Errorf("%w: %v", io.ErrUnexpectedEOF, err)
		default:
			k.err = err
		}
	}
}
