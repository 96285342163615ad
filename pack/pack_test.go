package pack

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"

	"pgregory.net/rapid"

	"cairn/id"
	"cairn/seal"
)

// fakeSecrets derives keys from a seed with SHA-256.
type fakeSecrets string

func (s fakeSecrets) key(purpose string, p id.Pack) [32]byte {
	return sha256.Sum256(append([]byte(string(s)+"\x00"+purpose+"\x00"), p[:]...))
}
func (s fakeSecrets) MetaKey(p id.Pack) [32]byte   { return s.key("meta", p) }
func (s fakeSecrets) DigestKey(p id.Pack) [32]byte { return s.key("digest", p) }
func (s fakeSecrets) PadKey(p id.Pack) [32]byte    { return s.key("pad", p) }

// dirty is a pool whose buffers come back full of a byte of its own and longer
// than asked for: what is left unfilled shows.
type dirty struct{ fill byte }

func (d dirty) Get(n int) []byte { return bytes.Repeat([]byte{d.fill}, n+7)[:n] }
func (d dirty) Put(b []byte) {
	for i := range b {
		b[i] = ^d.fill
	}
}

func testCoder(seed uint64) Coder {
	var s [32]byte
	binary.LittleEndian.PutUint64(s[:], seed)
	return Coder{Secrets: fakeSecrets("test"), Pool: dirty{0xa5}, Rand: rand.NewChaCha8(s)}
}

func noise(seed uint64, n int) []byte {
	var s [32]byte
	binary.LittleEndian.PutUint64(s[:], seed)
	s[31] = 1
	b := make([]byte, n)
	rand.NewChaCha8(s).Read(b)
	return b
}

func dataHeader(k, m int) Header {
	return Header{Kind: Data, K: uint8(k), M: uint8(m), Writer: id.Writer{1}, Counter: 7, Epoch: 3}
}

func logHeader(k, m int) Header {
	h := dataHeader(k, m)
	h.Kind, h.Seq, h.Attempt, h.Prev = Log, 81, 1, id.Pack{9}
	return h
}

// cutEntries makes n entries that cover a payload, with a gap here and there.
func cutEntries(r *rand.Rand, payload, n int) []Entry {
	var out []Entry
	at := 0
	for i := 0; i < n && at < payload; i++ {
		size := min(payload-at, 1+r.IntN(2*payload/n+1))
		if r.IntN(8) > 0 {
			var c id.Chunk
			binary.LittleEndian.PutUint64(c[:], r.Uint64())
			out = append(out, Entry{Info: Info{Realm: 1, Chunk: c, Kind: 1, Epoch: 1 + r.Uint32N(3), Compression: seal.Compression(r.IntN(2)),
				PlainLen: uint32(r.IntN(1 << 22)), SealedLen: uint32(size)}, Offset: uint32(at)})
		}
		at += size
	}
	return out
}

func logMeta(r *rand.Rand, batches, batch int) *LogMeta {
	l := &LogMeta{SnapshotSeq: 40, Snapshot: []byte("snapshot"), Truncated: 12, ClusterVersion: 2, LowWater: 5, Time: -3, Clean: true}
	for i := range 6 {
		l.Prev = append(l.Prev, Place{Node: id.Node{byte(i + 1)}, Index: uint8(i), Instance: id.Instance(i + 10), Digest: [16]byte{byte(i)}})
	}
	for i := range batches {
		l.Batches = append(l.Batches, Batch{Realm: id.Realm(i % 3), First: uint32(2 * i), Body: noise(r.Uint64(), batch)})
	}
	return l
}

type sample struct {
	in      Input
	payload []byte // a copy
}

// drawInput draws a pack: any code, kind, payload, inline or coded meta, with
// and without spare capacity.
func drawInput(t *rapid.T) sample {
	k, m := rapid.IntRange(1, 16).Draw(t, "k"), rapid.IntRange(0, 4).Draw(t, "m")
	r := rand.New(rand.NewPCG(rapid.Uint64().Draw(t, "seed"), 1))
	payload := rapid.OneOf(rapid.Just(0), rapid.IntRange(1, 300), rapid.IntRange(1, 70000), rapid.IntRange(1, 2<<20)).Draw(t, "payload")
	entries := cutEntries(r, payload, rapid.SampledFrom([]int{1, 3, 30, 1000}).Draw(t, "entries"))
	in := Input{Header: dataHeader(k, m), Meta: Meta{Entries: entries}}
	if rapid.Bool().Draw(t, "log") {
		in.Header = logHeader(k, m)
		in.Meta.Log = logMeta(r, rapid.IntRange(0, 20).Draw(t, "batches"), rapid.SampledFrom([]int{1, 100, 3000}).Draw(t, "batch"))
	}
	p := noise(r.Uint64(), payload)
	in.Payload = slices.Clip(p)
	if rapid.Bool().Draw(t, "spare") {
		b := bytes.Repeat([]byte{0x5a}, payload+k*(1<<20)+1<<20)
		in.Payload = b[:copy(b, p)]
	}
	return sample{in, bytes.Clone(p)}
}

func encode(t interface{ Fatalf(string, ...any) }, c Coder, in Input) *Encoded {
	e, err := c.Encode(in)
	if err != nil {
		t.Fatalf("encode: %v", err)
	}
	return e
}

func cloneShards(in []Shard) []Shard {
	out := make([]Shard, len(in))
	for i, s := range in {
		out[i] = Shard{Head: bytes.Clone(s.Head), Slice: bytes.Clone(s.Slice)}
	}
	return out
}

func metaBytes(t interface{ Fatalf(string, ...any) }, m Meta) []byte {
	b, err := m.Append(nil)
	if err != nil {
		t.Fatalf("meta: %v", err)
	}
	return b
}

func TestAnyKShardsGiveThePack(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		s := drawInput(t)
		c := testCoder(rapid.Uint64().Draw(t, "rand"))
		c.Workers = rapid.IntRange(0, 3).Draw(t, "workers")
		e := encode(t, c, s.in)
		want := s.in.Meta
		want.PayloadLen = uint32(len(s.payload))
		n := len(e.Shards)
		class := ClassOf(e.Header.ShardLen())
		for i, x := range e.Shards {
			b := append(bytes.Clone(x.Head), x.Slice...)
			if len(b) != class {
				t.Fatalf("shard %d has %d bytes, want the class %d", i, len(b), class)
			}
			h, _, err := ParseShard(b)
			if err != nil || int(h.Index) != i || h.Common() != e.Header {
				t.Fatalf("shard %d parses as %+v, %v; want %+v", i, h, err, e.Header)
			}
			if !c.CheckDigest(h.Pack, h.Index, x, e.Digests[i]) {
				t.Fatalf("shard %d does not have its digest", i)
			}
		}
		shards := cloneShards(e.Shards)
		lost := rapid.Permutation(indexes(n)).Draw(t, "lost")[:rapid.IntRange(0, int(e.Header.M)).Draw(t, "losses")]
		for _, i := range lost {
			shards[i] = Shard{}
		}
		o, err := c.Assemble(e.Header.Pack, shards, e.Digests, nil)
		if err != nil {
			t.Fatalf("assemble without %v: %v", lost, err)
		}
		if !bytes.Equal(o.Payload, s.payload) || o.Header != e.Header || len(o.Bad) != 0 {
			t.Fatalf("assembled without %v: payload of %d bytes differs, or header %+v, or bad %v", lost, len(o.Payload), o.Header, o.Bad)
		}
		want.Sum = o.Meta.Sum
		if got, want := metaBytes(t, o.Meta), metaBytes(t, want); !bytes.Equal(got, want) {
			t.Fatalf("meta %x, want %x", got, want)
		}
		again, err := c.Rebuild(o)
		if err != nil {
			t.Fatalf("rebuild: %v", err)
		}
		mustBeEqual(t, again, e)
	})
}

func mustBeEqual(t interface{ Fatalf(string, ...any) }, got, want *Encoded) {
	if got.Header != want.Header || !slices.Equal(got.Digests, want.Digests) {
		t.Fatalf("header %+v and digests %x, want %+v and %x", got.Header, got.Digests, want.Header, want.Digests)
	}
	for i := range want.Shards {
		if !bytes.Equal(got.Shards[i].Head, want.Shards[i].Head) || !bytes.Equal(got.Shards[i].Slice, want.Shards[i].Slice) {
			t.Fatalf("shard %d is not the same", i)
		}
	}
}

func indexes(n int) []int {
	out := make([]int, n)
	for i := range out {
		out[i] = i
	}
	return out
}

var _ = errors.Is
var _ = fmt.Sprint
