// Package id holds the names that every part of Cairn shares: small comparable
// values, each with one printed form and one parser for it.
//
// Nothing here touches a file, a clock or a logger; random IDs come from
// crypto/rand or from the reader the caller hands in, so that a simulation can
// draw them from its seed. The package imports nothing of ours.
package id

import (
	"bytes"
	"crypto/rand"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
)

// ErrSyntax is wrapped by every Parse error of this package.
var ErrSyntax = errors.New("id: not a valid ID")

// ErrNewer is wrapped wherever something is refused because a newer version wrote
// it. It is neither damage nor absence: nothing is known of what it says, and
// nothing may be changed because of it. Every format says its version where all
// versions have it, under a checksum or a seal; docs/formats/README.md.
var ErrNewer = errors.New("written by a newer version; use a newer cairn")

type (
	// Chunk names a chunk: the keyed BLAKE3 of its kind and plaintext. The key
	// belongs to a realm, so equal bytes in two realms have two names.
	Chunk [32]byte
	// Pack names one attempt to write a pack: 16 random bytes, new for every
	// attempt whose bytes differ.
	Pack [16]byte
	// Node names one incarnation of a node's storage. A wiped or replaced node
	// gets a new one.
	Node [16]byte
	// Cluster names a store for its whole life.
	Cluster [16]byte
	// Writer names one run of a process that writes packs: random per start.
	Writer [16]byte
	// Upload names a resumable or multipart upload.
	Upload [16]byte
	// Job names one run of a job: a UUID of version 7 (RFC 9562), whose order is
	// that of the times at which the runs began.
	Job [16]byte
)

// Log numbers a log. There is one log today, number 0; rows and headers carry
// the number so that more can follow.
type Log uint32

// Realm numbers a dedup, key and trust domain. 0 is never a realm.
type Realm uint32

// Main is the realm every store begins with.
const Main Realm = 1

// Bucket numbers a bucket for its whole life; a name that is deleted and made
// again gets a new number. 0 is never a bucket.
type Bucket uint64

// Instance tells one stored copy of a shard from an earlier copy of the same
// shard on the same node. A node never gives out the same one twice; 0 is never
// an instance.
type Instance uint64

// Version orders the versions of objects: the sequence of the log pack that
// made it, and the position among that pack's records. Later versions compare
// greater. No clock is involved.
type Version struct {
	_   struct{} `cbor:",toarray"` // an array of two wherever it is stored
	Seq uint64
	Pos uint32
}

func (c Chunk) String() string   { return hex.EncodeToString(c[:]) }
func (p Pack) String() string    { return hex.EncodeToString(p[:]) }
func (n Node) String() string    { return hex.EncodeToString(n[:]) }
func (c Cluster) String() string { return hex.EncodeToString(c[:]) }
func (w Writer) String() string  { return hex.EncodeToString(w[:]) }
func (u Upload) String() string  { return hex.EncodeToString(u[:]) }

// String prints a job's ID as UUIDs are printed, in lower case.
func (j Job) String() string {
	return fmt.Sprintf("%x-%x-%x-%x-%x", j[:4], j[4:6], j[6:8], j[8:10], j[10:])
}

// String prints a version as the sequence in 16 and the position in 8 lower-case
// hexadecimal digits, so that the printed forms sort as the versions do.
func (v Version) String() string { return fmt.Sprintf("%016x%08x", v.Seq, v.Pos) }

// Compare orders jobs from old to new.
func (j Job) Compare(o Job) int { return bytes.Compare(j[:], o[:]) }

// Compare orders node IDs by their bytes.
func (n Node) Compare(o Node) int { return bytes.Compare(n[:], o[:]) }

// IsZero reports whether v is no version at all.
func (v Version) IsZero() bool { return v == Version{} }

// Compare orders versions from old to new.
func (v Version) Compare(w Version) int {
	switch {
	case v.Seq < w.Seq:
		return -1
	case v.Seq > w.Seq:
		return 1
	case v.Pos < w.Pos:
		return -1
	case v.Pos > w.Pos:
		return 1
	}
	return 0
}

// IsZero reports whether the ID was never set. Random IDs are never zero.
func (p Pack) IsZero() bool    { return p == Pack{} }
func (n Node) IsZero() bool    { return n == Node{} }
func (j Job) IsZero() bool     { return j == Job{} }
func (c Cluster) IsZero() bool { return c == Cluster{} }
func (w Writer) IsZero() bool  { return w == Writer{} }
func (c Chunk) IsZero() bool   { return c == Chunk{} }

// NewPack draws a pack ID from r; nil means crypto/rand.
func NewPack(r io.Reader) (Pack, error) { return draw[Pack](r) }

// NewNode draws a node ID from r; nil means crypto/rand.
func NewNode(r io.Reader) (Node, error) { return draw[Node](r) }

// NewCluster draws a cluster ID from r; nil means crypto/rand.
func NewCluster(r io.Reader) (Cluster, error) { return draw[Cluster](r) }

// NewWriter draws a writer ID from r; nil means crypto/rand.
func NewWriter(r io.Reader) (Writer, error) { return draw[Writer](r) }

// NewUpload draws an upload ID from r; nil means crypto/rand.
func NewUpload(r io.Reader) (Upload, error) { return draw[Upload](r) }

// NewJob makes the ID of a run that begins in that millisecond since 1970; what is
// random in it is drawn from r, nil meaning crypto/rand.
func NewJob(r io.Reader, ms uint64) (Job, error) {
	j, err := draw[Job](r)
	if err != nil {
		return Job{}, err
	}
	var b [8]byte
	binary.BigEndian.PutUint64(b[:], ms<<16)
	copy(j[:6], b[:])
	j[6] = j[6]&0x0f | 0x70 // version
	j[8] = j[8]&0x3f | 0x80 // variant
	return j, nil
}

// Milliseconds is when the run began, in milliseconds since 1970.
func (j Job) Milliseconds() uint64 { return binary.BigEndian.Uint64(j[:8]) >> 16 }

// draw reads 16 random bytes that are not all zero.
func draw[T ~[16]byte](r io.Reader) (T, error) {
	if r == nil {
		r = rand.Reader
	}
	var v [16]byte
	for range 3 {
		if _, err := io.ReadFull(r, v[:]); err != nil {
			return T{}, fmt.Errorf("draw a random ID: %w", err)
		}
		if v != ([16]byte{}) {
			return T(v), nil
		}
	}
	return T{}, errors.New("draw a random ID: the source gives only zeros")
}

// ParseChunk reads the printed form of a chunk ID.
func ParseChunk(s string) (c Chunk, err error) { err = parse(c[:], s, "chunk"); return c, err }

// ParsePack reads the printed form of a pack ID.
func ParsePack(s string) (p Pack, err error) { err = parse(p[:], s, "pack"); return p, err }

// ParseNode reads the printed form of a node ID.
func ParseNode(s string) (n Node, err error) { err = parse(n[:], s, "node"); return n, err }

// ParseCluster reads the printed form of a cluster ID.
func ParseCluster(s string) (c Cluster, err error) { err = parse(c[:], s, "cluster"); return c, err }

// ParseJob reads the printed form of a job's ID.
func ParseJob(s string) (j Job, err error) {
	if len(s) != 36 || s[8] != '-' || s[13] != '-' || s[18] != '-' || s[23] != '-' {
		return Job{}, fmt.Errorf("%w: job %q is no UUID", ErrSyntax, short(s))
	}
	if err = parse(j[:], s[:8]+s[9:13]+s[14:18]+s[19:23]+s[24:], "job"); err == nil && (j[6]>>4 != 7 || j[8]>>6 != 2) {
		err = fmt.Errorf("%w: job %q is no UUID of version 7", ErrSyntax, short(s))
	}
	if err != nil {
		return Job{}, err
	}
	return j, nil
}

// ParseVersion reads the printed form of a version.
func ParseVersion(s string) (Version, error) {
	var b [12]byte
	if err := parse(b[:], s, "version"); err != nil {
		return Version{}, err
	}
	v := Version{}
	for _, x := range b[:8] {
		v.Seq = v.Seq<<8 | uint64(x)
	}
	for _, x := range b[8:] {
		v.Pos = v.Pos<<8 | uint32(x)
	}
	return v, nil
}

// parse fills dst from exactly as many lower-case hexadecimal digits; upper
// case is refused so that a value has one printed form.
func parse(dst []byte, s, noun string) error {
	if len(s) != 2*len(dst) {
		return fmt.Errorf("%w: %s %q: %d characters, want %d", ErrSyntax, noun, short(s), len(s), 2*len(dst))
	}
	for i := range len(s) {
		if c := s[i]; (c < '0' || c > '9') && (c < 'a' || c > 'f') {
			return fmt.Errorf("%w: %s %q: character %d is no lower-case hexadecimal digit", ErrSyntax, noun, short(s), i)
		}
	}
	_, err := hex.Decode(dst, []byte(s))
	return err
}

// short keeps a hostile string from filling an error message.
func short(s string) string {
	if len(s) > 80 {
		return s[:80] + "..."
	}
	return s
}

// MarshalText, UnmarshalText: the printed form, for JSON.

func (c Chunk) MarshalText() ([]byte, error)   { return []byte(c.String()), nil }
func (p Pack) MarshalText() ([]byte, error)    { return []byte(p.String()), nil }
func (n Node) MarshalText() ([]byte, error)    { return []byte(n.String()), nil }
func (c Cluster) MarshalText() ([]byte, error) { return []byte(c.String()), nil }
func (w Writer) MarshalText() ([]byte, error)  { return []byte(w.String()), nil }
func (v Version) MarshalText() ([]byte, error) { return []byte(v.String()), nil }

func (c *Chunk) UnmarshalText(b []byte) error   { return parse(c[:], string(b), "chunk") }
func (p *Pack) UnmarshalText(b []byte) error    { return parse(p[:], string(b), "pack") }
func (n *Node) UnmarshalText(b []byte) error    { return parse(n[:], string(b), "node") }
func (c *Cluster) UnmarshalText(b []byte) error { return parse(c[:], string(b), "cluster") }
func (w *Writer) UnmarshalText(b []byte) error  { return parse(w[:], string(b), "writer") }
func (v *Version) UnmarshalText(b []byte) (err error) {
	*v, err = ParseVersion(string(b))
	return err
}
