package pack

import (
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"

	"cairn/id"
)

// byLength is a pool as a store has it.
type byLength struct {
	mu   sync.Mutex
	free map[int][][]byte
}

func (p *byLength) Get(n int) []byte {
	p.mu.Lock()
	defer p.mu.Unlock()
	if l := p.free[n]; len(l) > 0 {
		p.free[n] = l[:len(l)-1]
		return l[len(l)-1]
	}
	return make([]byte, n)
}

func (p *byLength) Put(b []byte) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.free[len(b)] = append(p.free[len(b)], b)
}

func benchCoder() Coder {
	return Coder{Secrets: fakeSecrets("bench"), Pool: &byLength{free: map[int][][]byte{}}}
}

func BenchmarkEncodeData(b *testing.B) {
	for _, code := range [][2]int{{1, 2}, {4, 2}, {8, 3}} {
		for _, workers := range []int{1, 2} {
			b.Run(fmt.Sprintf("%d+%d/workers=%d", code[0], code[1], workers), func(b *testing.B) {
				k := code[0]
				c := benchCoder()
				c.Workers = workers
				n := Capacity(k, 16)
				payload := append(make([]byte, 0, StreamLen(k)), noise(1, n)...)
				in := Input{Header: dataHeader(k, code[1]), Payload: payload,
					Meta: Meta{Entries: cutEntries(rand.New(rand.NewPCG(1, 1)), n, 16)}}
				b.SetBytes(int64(n))
				b.ReportAllocs()
				for b.Loop() {
					e, err := c.Encode(in)
					if err != nil {
						b.Fatal(err)
					}
					e.Release()
				}
			})
		}
	}
}

// BenchmarkEncodeLog is the pack of one lone small put: a sealed chunk, one
// batch of records, three or six copies.
func BenchmarkEncodeLog(b *testing.B) {
	for _, code := range [][2]int{{1, 2}, {4, 2}} {
		for _, size := range []int{4 << 10, 1 << 20} {
			b.Run(fmt.Sprintf("%d+%d/%dKiB", code[0], code[1], size>>10), func(b *testing.B) {
				c := benchCoder()
				l := logMeta(rand.New(rand.NewPCG(1, 1)), 1, 300)
				l.Prev = l.Prev[:code[0]+code[1]]
				in := Input{Header: logHeader(code[0], code[1]), Meta: Meta{Log: l,
					Entries: []Entry{{Info: Info{Realm: 1, Chunk: id.Chunk{1}, Epoch: 1, Kind: 1, PlainLen: uint32(size), SealedLen: uint32(size)}}}},
					Payload: append(make([]byte, 0, size+256<<10), noise(1, size)...)}
				b.SetBytes(int64(size))
				b.ReportAllocs()
				for b.Loop() {
					e, err := c.Encode(in)
					if err != nil {
						b.Fatal(err)
					}
					e.Release()
				}
			})
		}
	}
}

// BenchmarkStages is what each stage of encoding a full pack of 4+2 costs; MB/s
// are of payload.
func BenchmarkStages(b *testing.B) {
	c := benchCoder()
	n := Capacity(4, 16)
	in := Input{Header: dataHeader(4, 2), Payload: append(make([]byte, 0, StreamLen(4)), noise(1, n)...)}
	e, err := c.Encode(in)
	if err != nil {
		b.Fatal(err)
	}
	d := digester{newGCM(c.Secrets.DigestKey(e.Header.Pack))}
	slices := make([][]byte, 6)
	for i := range slices {
		slices[i] = e.Shards[i].Slice
	}
	table := make([]byte, 0, e.Header.TableLen())
	for _, s := range []struct {
		name string
		f    func()
	}{
		{"parity", func() {
			if err := c.encodeParity(slices, 4); err != nil {
				b.Fatal(err)
			}
		}},
		{"crc", func() {
			for i := range slices {
				table = AppendTable(table[:0], nil, slices[i])
			}
		}},
		{"digest", func() {
			for i := range e.Shards {
				d.shard(uint8(i), e.Shards[i])
			}
		}},
		{"sum-of-log-payload", func() { d.payload(in.Payload) }},
	} {
		b.Run(s.name, func(b *testing.B) {
			b.SetBytes(int64(n))
			b.ReportAllocs()
			for b.Loop() {
				s.f()
			}
		})
	}
}

func BenchmarkAssemble(b *testing.B) {
	for _, lost := range []int{0, 2} {
		b.Run(fmt.Sprintf("4+2/lost=%d", lost), func(b *testing.B) {
			c := benchCoder()
			n := Capacity(4, 16)
			e, err := c.Encode(Input{Header: dataHeader(4, 2), Payload: noise(1, n)})
			if err != nil {
				b.Fatal(err)
			}
			shards := cloneShards(e.Shards)
			for i := range lost {
				shards[i] = Shard{}
			}
			b.SetBytes(int64(n))
			b.ReportAllocs()
			for b.Loop() {
				o, err := c.Assemble(e.Header.Pack, shards, e.Digests, nil)
				if err != nil {
					b.Fatal(err)
				}
				o.Release()
			}
		})
	}
}

func BenchmarkParseMeta(b *testing.B) {
	m := Meta{PayloadLen: 1 << 24, Entries: cutEntries(rand.New(rand.NewPCG(1, 1)), 1<<24, 64)}
	enc, err := m.Append(nil)
	if err != nil {
		b.Fatal(err)
	}
	b.SetBytes(int64(len(enc)))
	b.ReportAllocs()
	for b.Loop() {
		if _, err := ParseMeta(enc); err != nil {
			b.Fatal(err)
		}
	}
}
