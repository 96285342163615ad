// Package manifest holds the ordered chunk references of one object version: a
// few inline, more as a tree of list chunks, so that an object of any size
// touches few index rows.
//
// A list chunk's plaintext is the encoding of its references ([AppendList],
// [ParseList]; docs/formats/manifest.md). A [Builder] makes the tree while the
// object streams past, holding at most one unfinished list per level. The
// package only computes; it keeps no buffer of its caller.
package manifest

import (
	"encoding/binary"
	"errors"
	"fmt"

	"cairn/id"
)

// Bounds of the tree.
const (
	// MaxRoots is the most references a manifest holds inline.
	MaxRoots = 16
	// MaxChildren is the most references one list chunk holds.
	MaxChildren = 1024
	// MaxDepth bounds the levels of lists above the data: MaxChildren^3 chunks
	// under each root are far beyond any object.
	MaxDepth = 4

	refSize  = 32 + 1 + 8
	listHead = 4
	// MaxListSize is the length of the longest list chunk's plaintext in bytes.
	MaxListSize = listHead + MaxChildren*refSize
)

// ErrSyntax is wrapped by the errors of ParseList and Check; ErrNewer by that of
// ParseList for a list of a later version.
var (
	ErrSyntax = errors.New("manifest: not a valid list")
	ErrNewer  = fmt.Errorf("manifest: %w", id.ErrNewer)
)

const listVersion = 1

// Ref points at a chunk.
type Ref struct {
	_     struct{} `cbor:",toarray"`
	Chunk id.Chunk
	// Depth is 0 for a chunk of the object's bytes, otherwise one more than the
	// depth of the list's children.
	Depth uint8
	// Len is the number of the object's bytes at and below this reference; never 0.
	Len uint64
}

// IsList reports whether the reference points at a list chunk.
func (r Ref) IsList() bool { return r.Depth > 0 }

// Manifest is the content of one object version. An empty object has no roots.
type Manifest struct {
	_     struct{} `cbor:",toarray"`
	Size  uint64
	Roots []Ref
}

// Check reports whether m is well formed: few enough roots, lengths that add up.
func (m Manifest) Check() error {
	if len(m.Roots) > MaxRoots {
		return fmt.Errorf("%w: %d roots, at most %d", ErrSyntax, len(m.Roots), MaxRoots)
	}
	return check(m.Roots, m.Size, MaxDepth)
}

func check(refs []Ref, size uint64, maxDepth uint8) error {
	var sum uint64
	for i, r := range refs {
		if r.Depth > maxDepth {
			return fmt.Errorf("%w: reference %d has depth %d, at most %d", ErrSyntax, i, r.Depth, maxDepth)
		}
		if r.Len == 0 || sum+r.Len < sum {
			return fmt.Errorf("%w: reference %d has length %d", ErrSyntax, i, r.Len)
		}
		sum += r.Len
	}
	if sum != size {
		return fmt.Errorf("%w: references hold %d bytes, want %d", ErrSyntax, sum, size)
	}
	return nil
}

// Size is the number of the object's bytes under refs.
func Size(refs []Ref) (n uint64) {
	for _, r := range refs {
		n += r.Len
	}
	return n
}

// AppendList appends the one encoding of a list chunk's plaintext: version 1,
// depth of the list, number of children, then each child's ID, depth and length.
func AppendList(dst []byte, depth uint8, refs []Ref) []byte {
	if depth == 0 || depth > MaxDepth || len(refs) == 0 || len(refs) > MaxChildren {
		panic(fmt.Sprintf("manifest: a list of depth %d with %d children", depth, len(refs)))
	}
	dst = append(dst, listVersion, depth)
	dst = binary.LittleEndian.AppendUint16(dst, uint16(len(refs)))
	for _, r := range refs {
		dst = append(dst, r.Chunk[:]...)
		dst = append(dst, r.Depth)
		dst = binary.LittleEndian.AppendUint64(dst, r.Len)
	}
	return dst
}

// ParseList reads a list chunk's plaintext and appends its references to dst.
// parent is the reference that led to it: depth and length must agree.
func ParseList(dst []Ref, parent Ref, b []byte) ([]Ref, error) {
	if len(b) > 0 && b[0] > listVersion {
		return dst, fmt.Errorf("%w: a list of version %d, this build knows %d", ErrNewer, b[0], listVersion)
	}
	if len(b) < listHead || b[0] != listVersion {
		return dst, fmt.Errorf("%w: no head of version 1", ErrSyntax)
	}
	n := int(binary.LittleEndian.Uint16(b[2:]))
	if b[1] != parent.Depth || parent.Depth == 0 {
		return dst, fmt.Errorf("%w: depth %d, want %d", ErrSyntax, b[1], parent.Depth)
	}
	if n == 0 || n > MaxChildren || len(b) != listHead+n*refSize {
		return dst, fmt.Errorf("%w: %d children in %d bytes", ErrSyntax, n, len(b))
	}
	start := len(dst)
	for b = b[listHead:]; len(b) > 0; b = b[refSize:] {
		r := Ref{Chunk: id.Chunk(b[:32]), Depth: b[32], Len: binary.LittleEndian.Uint64(b[33:])}
		if r.Depth != parent.Depth-1 {
			return dst[:start], fmt.Errorf("%w: a child of depth %d in a list of depth %d", ErrSyntax, r.Depth, parent.Depth)
		}
		dst = append(dst, r)
	}
	if err := check(dst[start:], parent.Len, MaxDepth); err != nil {
		return dst[:start], err
	}
	return dst, nil
}

// ReadList reads a list chunk's plaintext without the reference that led to it: what it
// lists is well formed, and that is all.
func ReadList(b []byte) ([]Ref, error) {
	if len(b) < listHead {
		return nil, fmt.Errorf("%w: no head of version 1", ErrSyntax)
	}
	parent := Ref{Depth: b[1]}
	for at := listHead + refSize; at <= len(b); at += refSize {
		parent.Len += binary.LittleEndian.Uint64(b[at-8:])
	}
	return ParseList(nil, parent, b)
}

// A Builder turns a stream of references into a manifest. It holds at most
// MaxChildren references per level, however long the object is.
type Builder struct {
	// Store keeps a list chunk and returns its ID. refs are valid only during
	// the call. Children are always stored before the list that names them.
	Store  func(depth uint8, refs []Ref) (id.Chunk, error)
	levels [MaxDepth + 1][]Ref
	size   uint64
}

// Add appends a chunk of n bytes.
func (b *Builder) Add(c id.Chunk, n uint64) error {
	b.size += n
	return b.add(Ref{Chunk: c, Len: n})
}

// AddRefs appends what another manifest refers to, chunks and lists as they are:
// how manifests are joined without reading what is under them. What is unfinished
// below a list's depth becomes a list first, so that the order stays.
func (b *Builder) AddRefs(refs []Ref) error {
	for _, r := range refs {
		if r.Depth > MaxDepth || r.Len == 0 || b.size+r.Len < b.size {
			return fmt.Errorf("%w: a reference of depth %d and length %d", ErrSyntax, r.Depth, r.Len)
		}
		for depth := range r.Depth {
			if len(b.levels[depth]) > 0 {
				if err := b.flush(depth); err != nil {
					return err
				}
			}
		}
		b.size += r.Len
		if err := b.add(r); err != nil {
			return err
		}
	}
	return nil
}

func (b *Builder) add(r Ref) error {
	l := &b.levels[r.Depth]
	if len(*l) == MaxChildren {
		if err := b.flush(r.Depth); err != nil {
			return err
		}
	}
	*l = append(*l, r)
	return nil
}

// flush turns a level's references into one list of the next level.
func (b *Builder) flush(depth uint8) error {
	if depth == MaxDepth {
		return fmt.Errorf("manifest: an object of more than %d bytes does not fit the tree", b.size)
	}
	l := &b.levels[depth]
	c, err := b.Store(depth+1, *l)
	if err != nil {
		return err
	}
	up := Ref{Chunk: c, Depth: depth + 1, Len: Size(*l)}
	*l = (*l)[:0]
	return b.add(up)
}

// Finish stores what lists are left and returns the manifest. Only one level
// can be the roots' level, so unfinished lower levels are closed first.
func (b *Builder) Finish() (Manifest, error) {
	for depth := uint8(0); ; depth++ {
		above := 0
		for _, l := range b.levels[depth+1:] {
			above += len(l)
		}
		if above == 0 && len(b.levels[depth]) <= MaxRoots {
			return Manifest{Size: b.size, Roots: append([]Ref(nil), b.levels[depth]...)}, nil
		}
		if len(b.levels[depth]) == 0 {
			continue
		}
		if err := b.flush(depth); err != nil {
			return Manifest{}, err
		}
	}
}
