package pack

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"flag"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"cairn/id"
)

var write = flag.Bool("write-fixtures", false, "write the fixtures that are not there")

// golden is a stored pack: its shards stand in the file beside it, one after
// the other; keys are those of fakeSecrets("fixture").
type golden struct {
	Pack    string   `json:"pack"`
	Shards  int      `json:"shards"`
	Digests []string `json:"digests"`
	Meta    string   `json:"meta"`    // encoded
	Payload string   `json:"payload"` // SHA-256
}

func fixtures() map[string]Input {
	r := rand.New(rand.NewPCG(2026, 1))
	begin := Meta{PayloadLen: 700, Entries: cutEntries(r, 700, 3), Log: logMeta(r, 2, 40)}
	begin.Log.Begin = &Begin{Retired: []id.Writer{{7}}}
	h := logHeader(1, 2)
	h.Pack = id.Pack{8}
	list, err := Carry(h, begin, 4)
	if err != nil {
		panic(err)
	}
	return map[string]Input{
		"data-3+2": {Header: dataHeader(3, 2), Meta: Meta{Entries: cutEntries(r, 20000, 6)}, Payload: noise(20, 20000)},
		"log-1+2":  {Header: logHeader(1, 2), Meta: Meta{Entries: cutEntries(r, 900, 2), Log: logMeta(r, 3, 60)}, Payload: noise(21, 900)},
		"begin-1+1": {Header: logHeader(1, 1), Meta: Meta{Log: &LogMeta{Time: 1 << 60,
			Begin: &Begin{Retired: []id.Writer{{1}, {2}}, Carried: list}}}, Payload: noise(22, 704)},
		"coded-2+1":    {Header: logHeader(2, 1), Meta: Meta{Log: logMeta(r, 3, 6000)}, Payload: noise(23, 5000)},
		"snapshot-1+1": {Header: func() Header { h := dataHeader(1, 1); h.Kind = Snapshot; return h }(), Payload: noise(24, 3000)},
	}
}

// What version 1 wrote must be read for ever.
func TestFixturesOfVersion1(t *testing.T) {
	dir := filepath.Join("testdata", "v1")
	c := Coder{Secrets: fakeSecrets("fixture"), Rand: rand.NewChaCha8([32]byte{26})}
	if *write {
		for name, in := range fixtures() {
			e := encode(t, c, in)
			o, err := c.Assemble(e.Header.Pack, e.Shards, e.Digests, nil)
			if err != nil {
				t.Fatal(err)
			}
			sum := sha256.Sum256(o.Payload)
			g := golden{Pack: e.Header.Pack.String(), Shards: len(e.Shards), Meta: hex.EncodeToString(metaBytes(t, o.Meta)), Payload: hex.EncodeToString(sum[:])}
			var all []byte
			for i, s := range e.Shards {
				all = append(all, shardBytes(s)...)
				g.Digests = append(g.Digests, hex.EncodeToString(e.Digests[i][:]))
			}
			b, _ := json.MarshalIndent(g, "", "\t")
			if _, err := os.Stat(filepath.Join(dir, name+".json")); err == nil {
				continue // what version 1 wrote stays
			}
			if err := errors.Join(os.MkdirAll(dir, 0o777), os.WriteFile(filepath.Join(dir, name+".shards"), all, 0o666),
				os.WriteFile(filepath.Join(dir, name+".json"), append(b, '\n'), 0o666)); err != nil {
				t.Fatal(err)
			}
		}
	}
	files, err := filepath.Glob(filepath.Join(dir, "*.json"))
	if err != nil || len(files) != 5 {
		t.Fatalf("%d fixtures, %v", len(files), err)
	}
	for _, file := range files {
		var g golden
		b, err := os.ReadFile(file)
		if err == nil {
			err = json.Unmarshal(b, &g)
		}
		if err != nil {
			t.Fatal(err)
		}
		all, err := os.ReadFile(file[:len(file)-len("json")] + "shards")
		if err != nil {
			t.Fatal(err)
		}
		p, err := id.ParsePack(g.Pack)
		if err != nil {
			t.Fatal(err)
		}
		size := len(all) / g.Shards
		var shards []Shard
		var digests [][16]byte
		for i := range g.Shards {
			_, s, err := ParseShard(all[i*size : (i+1)*size])
			if err != nil {
				t.Fatalf("%s: shard %d: %v", file, i, err)
			}
			shards = append(shards, s)
			digests = append(digests, [16]byte(unhex(t, g.Digests[i])))
		}
		check := func(what string, o *Opened, err error) {
			t.Helper()
			if err != nil {
				t.Fatalf("%s: %s: %v", file, what, err)
			}
			sum := sha256.Sum256(o.Payload)
			if len(o.Bad) != 0 || hex.EncodeToString(metaBytes(t, o.Meta)) != g.Meta || hex.EncodeToString(sum[:]) != g.Payload {
				t.Errorf("%s: %s: another pack, bad %v", file, what, o.Bad)
			}
			again, err := c.Rebuild(o)
			if err != nil {
				t.Fatal(err)
			}
			for i := range shards {
				if again.Digests[i] != digests[i] || !bytes.Equal(shardBytes(again.Shards[i]), shardBytes(shards[i])) {
					t.Errorf("%s: %s: shard %d is rebuilt as another one", file, what, i)
				}
			}
		}
		o, err := c.Assemble(p, shards, digests, nil)
		check("all", o, err)
		// With the ID and the nonce that were drawn then, today's code writes the same bytes.
		name := strings.TrimSuffix(filepath.Base(file), ".json")
		same := Coder{Secrets: c.Secrets, Rand: bytes.NewReader(append(p[:], o.sealed[:nonceSize]...))}
		e := encode(t, same, fixtures()[name])
		for i, s := range e.Shards {
			if !bytes.Equal(shardBytes(s), all[i*size:(i+1)*size]) || e.Digests[i] != digests[i] {
				t.Errorf("%s: shard %d is written in other bytes", file, i)
			}
		}
		lost := append([]Shard{{}}, shards[1:]...)
		o, err = c.Assemble(p, lost, digests, nil)
		check("without the first", o, err)
		if o.Header.Kind == Log {
			tail, err := c.OpenTail(shards)
			check("as a tail", &tail.Opened, err)
		}
	}
}

// The layout of the header, field by field, as docs/formats/pack.md has it.
func TestHeaderLayout(t *testing.T) {
	h := Header{Kind: Log, MetaCoded: true, Pack: id.Pack(noise(1, 16)), K: 4, M: 2, Index: 5, MetaLen: 0x04030201, SliceLen: 0x01020304,
		MetaTag: [16]byte(noise(2, 16)), Writer: id.Writer(noise(3, 16)), Counter: 0x1122334455667788, Log: 0xa1a2a3a4,
		Epoch: 0x0102030405060708, Seq: 0x1112131415161718, Attempt: 0x21222324, Prev: id.Pack(noise(4, 16))}
	b := h.Append(nil)
	want := "43524e53" + "0100" + "02" + "01" + hex.EncodeToString(h.Pack[:]) + "04" + "02" + "05" + "00" + "01020304" + "04030201" +
		hex.EncodeToString(h.MetaTag[:]) + hex.EncodeToString(h.Writer[:]) + "8877665544332211" + "a4a3a2a1" + "0807060504030201" +
		"1817161514131211" + "24232221" + hex.EncodeToString(h.Prev[:])
	if got := hex.EncodeToString(b[:116]); got != want {
		t.Errorf("header\n%s, want\n%s", got, want)
	}
	if !bytes.Equal(b[116:188], make([]byte, 72)) || len(b) != HeaderSize {
		t.Errorf("reserved bytes %x of %d", b[116:188], len(b))
	}
}

func TestTableOfTwoPieces(t *testing.T) {
	body := noise(1, 3*BlockSize+100)
	for _, cut := range []int{0, 1, 100, BlockSize - 1, BlockSize, BlockSize + 1, 2 * BlockSize, 3*BlockSize + 99, len(body)} {
		for _, end := range []int{len(body), 3 * BlockSize, cut} {
			end = max(end, cut)
			table := AppendTable([]byte("x"), body[:cut], body[cut:end])[1:]
			var want []byte
			for i := 0; i < end; i += BlockSize {
				c := CRC(body[i:min(end, i+BlockSize)])
				want = append(want, byte(c), byte(c>>8), byte(c>>16), byte(c>>24))
			}
			c := CRC(want)
			want = append(want, byte(c), byte(c>>8), byte(c>>16), byte(c>>24))
			if !bytes.Equal(table, want) {
				t.Errorf("%d + %d bytes: table %x, want %x", cut, end-cut, table, want)
			}
			if err := CheckTable(table); err != nil {
				t.Error(err)
			}
		}
	}
	for _, n := range []int{0, 1, 3, 5, 7} {
		if err := CheckTable(make([]byte, n)); !errors.Is(err, ErrDamaged) {
			t.Errorf("a table of %d bytes: %v", n, err)
		}
	}
}

func TestEveryBitOfAShardIsChecked(t *testing.T) {
	c := testCoder(1)
	e := encode(t, c, Input{Header: dataHeader(2, 1), Meta: Meta{Entries: cutEntries(rand.New(rand.NewPCG(1, 1)), 3000, 3)}, Payload: noise(1, 3000)})
	b := shardBytes(e.Shards[2])
	for bit := range 8 * len(b) {
		b[bit/8] ^= 1 << (bit % 8)
		if _, _, err := ParseShard(b); err == nil {
			t.Fatalf("bit %d flipped: accepted", bit)
		}
		b[bit/8] ^= 1 << (bit % 8)
	}
	for _, n := range []int{0, 1, HeaderSize - 1, HeaderSize, HeaderSize + 3, len(b) - 1} {
		if _, _, err := ParseShard(b[:n]); !errors.Is(err, ErrDamaged) {
			t.Errorf("cut to %d bytes: %v", n, err)
		}
	}
	if _, _, err := ParseShard(append(b, 0)); !errors.Is(err, ErrDamaged) {
		t.Errorf("a byte longer: %v", err)
	}
}

func FuzzParseHeader(f *testing.F) {
	for _, h := range []Header{dataHeader(3, 2), logHeader(1, 2)} {
		h.Pack, h.SliceLen, h.MetaLen = id.Pack{1}, 1000, 512
		f.Add(h.Append(nil))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		// As given, and with magic, version and CRC made right, so that the fields
		// are reached.
		for range 2 {
			h, err := ParseHeader(b)
			if err == nil {
				if again := h.Append(nil); !bytes.Equal(again, b[:HeaderSize]) {
					t.Errorf("two encodings of one header: %x and %x", b[:HeaderSize], again)
				}
				if n := h.ShardLen(); n > MaxShardSize || n < HeaderSize || h.SliceOffset() < h.BodyOffset() || h.streamLen() < h.codedMeta() {
					t.Errorf("%+v: a shard of %d bytes", h, n)
				}
			} else if !errors.Is(err, ErrDamaged) && !errors.Is(err, ErrNewer) {
				t.Errorf("%x: %v", b, err)
			}
			if len(b) < HeaderSize {
				return
			}
			b = bytes.Clone(b)
			copy(b, magic+"\x01\x00")
			c := CRC(b[:188])
			b[188], b[189], b[190], b[191] = byte(c), byte(c>>8), byte(c>>16), byte(c>>24)
		}
	})
}

func FuzzParseShard(f *testing.F) {
	c := testCoder(1)
	for _, in := range []Input{
		{Header: dataHeader(2, 1), Payload: noise(1, 30)},
		{Header: logHeader(1, 1), Meta: Meta{Log: logMeta(rand.New(rand.NewPCG(1, 1)), 2, 10)}},
	} {
		e, err := c.Encode(in)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(shardBytes(e.Shards[0]))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		h, s, err := ParseShard(b)
		if err != nil {
			if !errors.Is(err, ErrDamaged) && !errors.Is(err, ErrNewer) {
				t.Errorf("%v", err)
			}
			return
		}
		again := AppendTable(h.Append(nil), h.InlineMeta(s.Head), s.Slice)
		again = append(append(again, h.InlineMeta(s.Head)...), s.Slice...)
		if !bytes.Equal(again, b) {
			t.Errorf("two encodings of one shard: %x and %x", b, again)
		}
		// Whatever its CRCs say, it opens nothing.
		if o, err := c.Assemble(h.Pack, make([]Shard, int(h.K)+int(h.M)), make([][16]byte, int(h.K)+int(h.M)), nil); err == nil {
			t.Errorf("a pack from nothing: %+v", o)
		}
		if h.Kind == Log {
			if _, err := c.OpenTail([]Shard{s}); err == nil && h.K > 1 {
				t.Errorf("a tail from one of %d shards", h.K)
			}
		}
	})
}
