package rest

import (
	"crypto/rand"
	"fmt"
	"net/http"
	"slices"
	"strings"

	"cairn/store"
)

// maxRanges bounds the ranges that one request may name. More are not refused:
// the whole object is the answer, as HTTP lets a server do.
const maxRanges = 16

// byteRange is n bytes from off on.
type byteRange struct{ off, n uint64 }

func (r byteRange) end() uint64 { return r.off + r.n }

// contentRange says where in an object of a size the range lies.
func (r byteRange) contentRange(size uint64) string {
	return fmt.Sprintf("bytes %d-%d/%d", r.off, r.end()-1, size)
}

// rangesOf returns the parts of an object that a request asks for, no two of
// which overlap or touch. None without an error means that the whole object is
// the answer: no Range, one that is not understood, too many, or one that
// If-Range makes void. Of an object without bytes there are no parts. It fails
// when all of them lie outside.
func rangesOf(r *http.Request, o store.Object, fixed bool) ([]byteRange, error) {
	lines := r.Header.Values("Range")
	if r.Method != http.MethodGet || len(lines) != 1 || o.Size == 0 || !ifRange(r.Header, o, fixed) {
		return nil, nil
	}
	ranges, ok := parseRange(lines[0], o.Size)
	switch {
	case !ok:
		return nil, nil
	case len(ranges) == 0:
		return nil, store.ErrRange
	}
	return merge(ranges), nil
}

// ifRange reports whether ranges may be answered with parts. A strong tag says
// so. A date does only where a version is named (fixed), which never changes: two
// versions of an object may share a second, and a client would join their halves.
func ifRange(h http.Header, o store.Object, fixed bool) bool {
	lines := h.Values("If-Range")
	if len(lines) != 1 {
		return len(lines) == 0
	}
	if fixed && lines[0] == o.Modified.UTC().Format(http.TimeFormat) {
		return true
	}
	return lines[0] == quoteETag(o.ETag)
}

// parseRange reads a Range header (RFC 9110, section 14). ok is false for what is
// not a list of byte ranges, not well formed, or longer than maxRanges: the header
// is then ignored. No ranges and ok means that none of them lies within the
// object.
func parseRange(spec string, size uint64) (out []byteRange, ok bool) {
	unit, list, ok := strings.Cut(spec, "=")
	if !ok || !strings.EqualFold(unit, "bytes") {
		return nil, false
	}
	seen := 0
	for part := range strings.SplitSeq(list, ",") {
		part = strings.Trim(part, " \t")
		if part == "" {
			continue // a list may have empty elements
		}
		if seen++; seen > maxRanges {
			return nil, false
		}
		a, b, dash := strings.Cut(part, "-")
		from, okFrom := parseNumber(a)
		last, okLast := parseNumber(b)
		switch {
		case !dash || a != "" && !okFrom || b != "" && !okLast || a == "" && b == "" || a != "" && b != "" && last < from:
			return nil, false
		case a == "": // the last bytes
			if n := min(last, size); n > 0 {
				out = append(out, byteRange{size - n, n})
			}
		case from >= size:
		case b == "" || last >= size:
			out = append(out, byteRange{from, size - from})
		default:
			out = append(out, byteRange{from, last + 1 - from})
		}
	}
	return out, seen > 0
}

// merge joins ranges that overlap or touch, so that no byte is sent twice. The
// others keep the order in which they were asked for; a joined one stands where
// the first of its parts stood.
func merge(ranges []byteRange) []byteRange {
	type placed struct {
		byteRange
		at int
	}
	sorted := make([]placed, len(ranges))
	for i, r := range ranges {
		sorted[i] = placed{r, i}
	}
	slices.SortFunc(sorted, func(a, b placed) int {
		if a.off != b.off {
			if a.off < b.off {
				return -1
			}
			return 1
		}
		return a.at - b.at
	})
	joined := sorted[:1]
	for _, r := range sorted[1:] {
		last := &joined[len(joined)-1]
		if r.off > last.end() {
			joined = append(joined, r)
			continue
		}
		last.n = max(last.end(), r.end()) - last.off
		last.at = min(last.at, r.at)
	}
	slices.SortFunc(joined, func(a, b placed) int { return a.at - b.at })
	out := make([]byteRange, len(joined))
	for i, r := range joined {
		out[i] = r.byteRange
	}
	return out
}

// piece is a text and the bytes of the object that follow it.
type piece struct {
	text string
	byteRange
}

// content is what an answer with an object consists of: at least one piece.
type content struct {
	status int
	pieces []piece
	tail   string
	header http.Header // beside that of the object, or in its place
}

// length is that of the body.
func (c content) length() (n uint64) {
	for _, p := range c.pieces {
		n += uint64(len(p.text)) + p.n
	}
	return n + uint64(len(c.tail))
}

// contentOf lays out the answer: whole, a part, or several as
// multipart/byteranges (RFC 9110, section 14.6). h is the object's header.
func contentOf(h http.Header, o store.Object, ranges []byteRange) content {
	switch len(ranges) {
	case 0:
		return content{status: http.StatusOK, pieces: []piece{{byteRange: byteRange{0, o.Size}}}}
	case 1:
		return content{status: http.StatusPartialContent, pieces: []piece{{byteRange: ranges[0]}},
			header: http.Header{"Content-Range": {ranges[0].contentRange(o.Size)}}}
	}
	// What says how the object's bytes are to be read belongs to the parts: the
	// whole of them is not encoded.
	about := ""
	for _, name := range []string{"Content-Type", "Content-Encoding"} {
		if v := h.Get(name); v != "" {
			about += name + ": " + oneLine.Replace(v) + "\r\n"
		}
	}
	boundary := rand.Text() // 128 bits: no object has it, whoever wrote it
	c := content{status: http.StatusPartialContent, tail: "\r\n--" + boundary + "--\r\n",
		header: http.Header{"Content-Type": {"multipart/byteranges; boundary=" + boundary}, "Content-Encoding": nil}}
	start := "--"
	for _, r := range ranges {
		c.pieces = append(c.pieces, piece{start + boundary + "\r\n" + about + "Content-Range: " + r.contentRange(o.Size) + "\r\n\r\n", r})
		start = "\r\n--"
	}
	return c
}

// oneLine keeps a value from becoming two headers.
var oneLine = strings.NewReplacer("\r", " ", "\n", " ")
