package integration

import (
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"hash/crc32"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/zeebo/blake3"

	"cairn/datadir"
	"cairn/id"
	"cairn/index/kv"
	"cairn/keys"
	"cairn/node"
	"cairn/pack"
	"cairn/record"
	"cairn/seal"
)

// open opens the rig's data directory in this process.
func (r *rig) open() *datadir.Dir {
	r.t.Helper()
	d, err := datadir.Open(r.t.Context(), datadir.Options{Dir: r.data, Config: filepath.Join(r.config, "cairn")})
	if err != nil {
		r.t.Fatal(err)
	}
	return d
}

// edit changes a file and returns what brings it back.
func edit(t *testing.T, name string, change func([]byte) []byte) (undo func()) {
	t.Helper()
	old, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(name, change(bytes.Clone(old)), 0o600); err != nil {
		t.Fatal(err)
	}
	return func() {
		if err := os.WriteFile(name, old, 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

// one is the only file, or the first, that a pattern matches.
func one(t *testing.T, pattern string) string {
	t.Helper()
	names, err := filepath.Glob(pattern)
	if err != nil || len(names) == 0 {
		t.Fatalf("no file is called %s: %v", pattern, err)
	}
	return names[0]
}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// identity takes the node's ID from node.json.
func identity(t *testing.T, dir string) id.Node {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(dir, "node.json"))
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(b), `,"node":"`)
	n, err := id.ParseNode(strings.Split(rest, `"`)[0])
	if err != nil {
		t.Fatalf("%s: %v", b, err)
	}
	return n
}

// envelope is a small file's, docs/formats/node.md; the parts are written out here
// so that the test does not follow the code.
func envelope(version, kind uint16, n id.Node, content []byte) []byte {
	b := []byte("CRNF")
	b = binary.LittleEndian.AppendUint16(b, version)
	b = binary.LittleEndian.AppendUint16(b, kind)
	b = binary.LittleEndian.AppendUint32(b, uint32(len(content)))
	crc := crc32.Checksum(slices.Concat(b, n[:], content), castagnoli)
	return append(binary.LittleEndian.AppendUint32(b, crc), content...)
}

// TestNewerIsRefused gives each thing in a data directory that has a version a
// higher one, in turn. Every command that opens the directory refuses, says what is
// newer, of which version it is, which one it knows and what to do, ends with exit
// code 3, and leaves every byte as it was.
func TestNewerIsRefused(t *testing.T) {
	r := newRig(t)
	s := r.start()
	c := s.client()
	for key, size := range map[string]int{"small": 1000, "large": 700_000} {
		if rep := c.put(key, content{seed: 1, size: size}.bytes()); rep.answer != acked {
			t.Fatalf("put %s: %v", key, rep)
		}
	}
	c.close()
	s.stop()
	d := r.open()
	ring, cluster := d.Keyring, d.Cluster
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
	n3 := r.node("n03")
	node3 := identity(t, n3)
	configuration := filepath.Join(r.config, "cairn")

	segment := func(name string) func() {
		return edit(t, name, func(b []byte) []byte {
			for _, off := range []int{0, 4096} {
				binary.LittleEndian.PutUint16(b[off+4:], 2)
				binary.LittleEndian.PutUint32(b[off+44:], crc32.Checksum(b[off:off+44], castagnoli))
			}
			return b
		})
	}
	small := func(name string, kind uint16) func() {
		rel, _ := filepath.Rel(r.node(""), name)
		n := identity(t, r.node(strings.Split(rel, "/")[0]))
		return edit(t, name, func(b []byte) []byte { return envelope(2, kind, n, b[16:]) })
	}
	keyring := func(b []byte) []byte { // docs/formats/keys.md
		binary.LittleEndian.PutUint16(b[4:], 2)
		sum := blake3.Sum256(b[:len(b)-32])
		copy(b[len(b)-32:], sum[:])
		return b
	}
	all := func(undo ...func()) func() {
		return func() {
			for _, u := range undo {
				u()
			}
		}
	}
	for what, spoil := range map[string]func() func(){
		"store.json": func() func() {
			return edit(t, filepath.Join(r.data, "store.json"), func(b []byte) []byte {
				return bytes.Replace(b, []byte(`"format": 1`), []byte(`"format": 2, "more": {}`), 1)
			})
		},
		"node.json": func() func() {
			return edit(t, filepath.Join(n3, "node.json"), func(b []byte) []byte {
				b = bytes.Replace(b[:bytes.Index(b, []byte(`,"crc32c"`))], []byte(`"version":1`), []byte(`"version":2`), 1)
				return fmt.Appendf(b, ",\"crc32c\":\"%08x\"}\n", crc32.Checksum(b, castagnoli))
			})
		},
		"node state":      func() func() { return small(filepath.Join(n3, "state"), 1) },
		"node cluster":    func() func() { return small(filepath.Join(n3, "cluster"), 2) },
		"node keyring":    func() func() { return small(filepath.Join(n3, "keyring"), 3) },
		"data segment":    func() func() { return segment(one(t, r.node("*/data/*.seg"))) },
		"journal segment": func() func() { return segment(one(t, r.node("*/journal/*.seg"))) },
		"footer":          func() func() { return small(one(t, r.node("*/journal/*.idx")), 4) },
		"keyring": func() func() {
			undo := []func(){edit(t, filepath.Join(r.data, "keyring"), keyring)}
			for _, name := range nodeNames() {
				undo = append(undo, edit(t, filepath.Join(r.node(name), "keyring"), func(b []byte) []byte {
					return envelope(1, 3, identity(t, r.node(name)), keyring(b[16:]))
				}))
			}
			return all(undo...)
		},
		"key file": func() func() {
			return edit(t, filepath.Join(configuration, cluster.String()+".key"), func([]byte) []byte {
				b := []byte("cairn-key-2:what:ever")
				sum := blake3.Sum256(b)
				return fmt.Appendf(b, ":%x\n", sum[:4])
			})
		},
		// One sealed copy is enough, though five nodes show the version before.
		"version of the store in a cluster file": func() func() {
			return edit(t, filepath.Join(n3, "cluster"), func([]byte) []byte {
				sealed, err := seal.NewBox(ring.ClusterFileKey(), nil).Seal(nil, []byte{9, 0xa2, 6, 2, 0x18, 99, 0}, cluster[:])
				if err != nil {
					t.Fatal(err)
				}
				return envelope(1, 2, node3, sealed)
			})
		},
	} {
		undo := spoil()
		r.refuses(what, true, [][]string{{"serve"}, {"verify"}, {"rebuild"}, {"export-index", "-"}})
		undo()
	}

	// The rows of the index. `verify` does not look at it. An engine that was opened
	// has touched its own files.
	c2 := r.clone(t)
	d = c2.open()
	engine, err := d.OpenIndex(32<<20, 32<<20)
	if err != nil {
		t.Fatal(err)
	}
	db, err := kv.Open(engine, kv.Config{ValueKey: kv.NewSecret(d.Keyring.IndexValueKey().Reveal()), DigestKey: kv.NewSecret(d.Keyring.IndexDigestKey().Reveal()), Cluster: d.Cluster})
	if err != nil {
		t.Fatal(err)
	}
	tx, err := db.Begin(t.Context())
	if err == nil {
		err = tx.Put([]byte{0, 1}, []byte{1, 0x81, 3}) // docs/formats/index.md: table 1, [3]
	}
	if err == nil {
		err = tx.Commit()
	}
	if err == nil {
		err = db.Close()
	}
	if err != nil {
		t.Fatal(err)
	}
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
	c2.refuses("rows of the index", false, [][]string{{"serve"}, {"rebuild"}, {"export-index", "-"}})
	c2.verify()
	removeAll(t, c2.index())
	c2.start().stop()

	// The log, with nothing at the door that says so.
	unknown := []byte{200, 0xa0}
	later, err := record.Append(nil, &record.Nodes{Version: 9, M: 2})
	if err != nil {
		t.Fatal(err)
	}
	later[1]++ // one field more
	later = append(later, 6, 2)
	for what, log := range map[string][]forged{
		"a record of a kind that is not known, in the newest log pack": {{body: unknown}},
		"a record of a kind that is not known, further back":           {{body: unknown}, {}},
		"a node set of a later store":                                  {{body: later}},
		"the sealed meta of the newest log pack":                       {{version: 2}},
	} {
		c := r.clone(t)
		d := c.open()
		forge(t, d, log)
		if err := d.Close(); err != nil {
			t.Fatal(err)
		}
		c.refuses(what, false, [][]string{{"verify"}, {"rebuild"}, {"serve"}})
	}
}

// refuses runs commands on a directory that holds something newer.
func (r *rig) refuses(what string, untouched bool, commands [][]string) {
	r.t.Helper()
	for _, args := range commands {
		before := r.bytes(untouched)
		var said string
		var code int
		if args[0] == "serve" {
			code, said = r.refused()
		} else {
			var out string
			out, said, code = r.command(append([]string{args[0], "--data", r.data}, args[1:]...)...)
			said = out + said
		}
		if code != 3 {
			r.t.Errorf("%s: %s ends with exit code %d, want 3:\n%s", what, args[0], code, cut(said))
		}
		words := []string{"written by a newer version", "use a newer cairn", "2", "this build knows 1"}
		if what == "rows of the index" { // of which there are two versions
			words[2], words[3] = "3", "this build knows 2"
		}
		for _, word := range words {
			if !strings.Contains(said, word) {
				r.t.Errorf("%s: %s does not say %q:\n%s", what, args[0], word, cut(said))
			}
		}
		for _, word := range []string{"damage", "LOST", "lost", "missing"} {
			if strings.Contains(said, word) {
				r.t.Errorf("%s: %s speaks of %q:\n%s", what, args[0], word, cut(said))
			}
		}
		after := r.bytes(untouched)
		for name := range after {
			if before[name] != after[name] {
				r.t.Errorf("%s: %s changed or made %s", what, args[0], name)
			}
		}
		for name := range before {
			if _, there := after[name]; !there {
				r.t.Errorf("%s: %s removed %s", what, args[0], name)
			}
		}
	}
}

// bytes sums up each file of data and configuration. Unless untouched is asked for,
// the engine's files are left out, and what a start writes before it reads the log:
// its promise, and where a directory that was copied lies now.
func (r *rig) bytes(untouched bool) map[string]string {
	r.t.Helper()
	out := map[string]string{}
	for _, dir := range []string{r.data, r.config} {
		err := filepath.WalkDir(dir, func(p string, d fs.DirEntry, err error) error {
			rel, _ := filepath.Rel(r.base, p)
			if err != nil || d.IsDir() {
				return err
			}
			if !untouched && (strings.HasPrefix(rel, filepath.Join("data", "index")+"/") || d.Name() == "state" || d.Name() == "stores.json") {
				return nil
			}
			if d.Name() == ballastName {
				out[rel] = "it holds nothing"
				return nil
			}
			b, err := os.ReadFile(p)
			sum := blake3.Sum256(b)
			out[rel] = hex.EncodeToString(sum[:])
			return err
		})
		if err != nil {
			r.t.Fatal(err)
		}
	}
	return out
}

// forged is a log pack that a later build could have written.
type forged struct {
	body    []byte // records of realm 0
	version byte   // of the sealed meta; 0 for this build's
}

type secrets struct{ ring *keys.Keyring }

func (s secrets) MetaKey(p id.Pack) [32]byte   { return s.ring.MetaKey(p).Reveal() }
func (s secrets) DigestKey(p id.Pack) [32]byte { return s.ring.DigestKey(p).Reveal() }
func (s secrets) PadKey(p id.Pack) [32]byte    { return s.ring.PadKey(p).Reveal() }

// forge appends log packs to the log of a store that nobody serves, at full width.
func forge(t *testing.T, d *datadir.Dir, log []forged) {
	t.Helper()
	ctx := t.Context()
	coder := pack.Coder{Secrets: secrets{d.Keyring}}
	// The tail: the shards with the highest position, wherever they are.
	var tail pack.Position
	var shards []pack.Shard
	var places []record.Place
	for _, n := range d.Nodes {
		for after := (*node.Found)(nil); ; {
			list, err := n.ListLog(ctx, 1, after, 100)
			if err != nil {
				t.Fatal(err)
			}
			if len(list) == 0 {
				break
			}
			for i := range list {
				f := &list[i]
				after = f
				if f.Header.Position().Compare(tail) < 0 {
					continue
				}
				b := make([]byte, f.Info.Size)
				if err := n.Read(ctx, f.Info.Key, 0, b); err != nil {
					t.Fatal(err)
				}
				h, sh, err := pack.ParseShard(b)
				if err != nil {
					t.Fatal(err)
				}
				if h.Position().Compare(tail) > 0 {
					tail, shards, places = h.Position(), nil, nil
				}
				shards = append(shards, sh)
				places = append(places, record.Place{Node: n.ID(), Index: h.Index, Instance: f.Info.Instance})
			}
		}
	}
	opened, err := coder.OpenTail(shards)
	if err != nil {
		t.Fatal(err)
	}
	for i := range places {
		places[i].Digest = opened.Encoded.Digests[places[i].Index]
	}
	slices.SortFunc(places, func(a, b record.Place) int { return int(a.Index) - int(b.Index) })
	names := nodeNames()
	by, err := d.Nodes[names[0]].Promised(ctx)
	if err != nil {
		t.Fatal(err)
	}
	prev, meta := opened.Header, opened.Meta.Log
	for i, f := range log {
		m := pack.LogMeta{Prev: places, ClusterVersion: meta.ClusterVersion, LowWater: meta.LowWater, Time: meta.Time + int64(i) + 1}
		if f.body != nil {
			m.Batches = []pack.Batch{{Realm: 0, First: 0, Body: f.body}}
		}
		enc, err := coder.Encode(pack.Input{Header: pack.Header{Kind: pack.Log, K: 1, M: prev.M, Writer: by.Writer, Counter: prev.Counter + 1, Epoch: by.Epoch, Seq: prev.Seq + 1,
			Attempt: 1, Prev: prev.Pack}, Meta: pack.Meta{Log: &m}})
		if err != nil {
			t.Fatal(err)
		}
		places = nil
		for j, sh := range enc.Shards {
			b := slices.Concat(sh.Head, sh.Slice)
			if f.version != 0 {
				b = reversion(t, coder, b, f.version)
			}
			h, _, err := pack.ParseShard(b)
			if err != nil {
				t.Fatal(err)
			}
			n := d.Nodes[names[j]]
			inst, err := n.Put(ctx, by, node.ForLog, node.Shard{Head: b[:h.BodyOffset()], Body: b[h.BodyOffset():]})
			if err != nil {
				t.Fatal(err)
			}
			places = append(places, record.Place{Node: n.ID(), Index: uint8(j), Instance: inst, Digest: enc.Digests[j]})
		}
		prev = enc.Header
	}
}

// reversion seals a shard's meta again with another first byte, docs/formats/pack.md.
func reversion(t *testing.T, coder pack.Coder, b []byte, version byte) []byte {
	t.Helper()
	h, err := pack.ParseHeader(b)
	if err != nil {
		t.Fatal(err)
	}
	key := coder.Secrets.MetaKey(h.Pack)
	block, err := aes.NewCipher(key[:])
	if err != nil {
		t.Fatal(err)
	}
	gcm, err := cipher.NewGCM(block)
	if err != nil {
		t.Fatal(err)
	}
	plain := h
	plain.Index, plain.MetaTag = 0, [16]byte{}
	ad := plain.Append(nil)
	clear(ad[pack.HeaderSize-4:])
	body := bytes.Clone(b[h.BodyOffset():])
	sealed := body[:h.MetaLen]
	meta, err := gcm.Open(nil, sealed[:12], slices.Concat(sealed[12:], h.MetaTag[:]), ad)
	if err != nil {
		t.Fatal(err)
	}
	meta[4] = version
	again := gcm.Seal(nil, sealed[:12], meta, ad)
	copy(sealed[12:], again)
	copy(h.MetaTag[:], again[len(again)-16:])
	return append(pack.AppendTable(h.Append(nil), nil, body), body...)
}
