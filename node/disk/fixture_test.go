package disk

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"cairn/id"
	"cairn/node"
	"cairn/node/nodetest"
	"cairn/node/vfs"
	"cairn/node/vfs/crashfs"
	"cairn/pack"
)

// What version 1 wrote is in testdata/v1 for good: a node's directory after a
// clean stop, and one whose process was killed. CAIRN_WRITE_FIXTURE=1 writes those
// that are not there.
const v1 = "testdata/v1"

// fixtureShards are what the node of the fixtures was given, in order.
func fixtureShards() (first, second []nodetest.Shard) {
	first = []nodetest.Shard{small(1, 600), small(2, 600), small(3, 600), logShard(1, 200), logShard(2, 200), logShard(3, 200), small(9, 68<<10)}
	return first, []nodetest.Shard{logShard(4, 200), small(4, 600)}
}

// fixtureNode lives the life of the fixtures and returns its directory after the
// clean stop and after the kill.
func fixtureNode(t *testing.T) (stopped, cut map[string][]byte) {
	t.Helper()
	ctx := t.Context()
	by := node.Authority{Epoch: 1, Writer: id.Writer{7}}
	fsys, cfg := crashfs.New(), tiny(7)
	cfg.Want = mustFormat(t, fsys, cfg)
	n := mustOpen(t, fsys, cfg)
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	put := func(shards []nodetest.Shard) (out []id.Instance) {
		for _, s := range shards {
			i, err := n.Put(ctx, by, node.ForClient, nodetest.Split(s.Bytes(), 0))
			must(err)
			out = append(out, i)
		}
		return out
	}
	first, second := fixtureShards()
	must(n.Promise(ctx, by))
	insts := put(first)
	must(n.Delete(ctx, by, first[1].Key(), insts[1]))
	must(n.Delete(ctx, by, first[2].Key(), insts[2]))
	must(n.Undelete(ctx, by, first[2].Key(), insts[2]))
	must(n.WriteFile(ctx, by, node.ClusterFile, []byte("opaque to the node")))
	must(n.WriteFile(ctx, by, node.KeyringFile, []byte("so is this")))
	must(n.Close())
	stopped = tree(t, fsys)
	n = mustOpen(t, fsys, cfg)
	put(second)
	must(n.Delete(ctx, by, first[3].Key(), insts[3]))
	for i := 0; !marked(tree(t, fsys)); i++ {
		if i == 5000 {
			t.Fatal("the end of the journal is not marked")
		}
		time.Sleep(time.Millisecond)
	}
	cut = tree(t, fsys.Kill())
	_ = n.Close() // its filesystem is gone
	return stopped, cut
}

// marked says whether the last record of the journal is a mark.
func marked(files map[string][]byte) bool {
	last := recType(0)
	for name, b := range files {
		if strings.HasPrefix(name, "journal/") && strings.HasSuffix(name, ".seg") {
			for off := dataStart; off < len(b); off += blockSize {
				if string(b[off:][:4]) == "CRNR" {
					last = recType(b[off+4])
				}
			}
		}
	}
	return last == markRec
}

// tree reads every file.
func tree(t testing.TB, fsys vfs.FS) map[string][]byte {
	t.Helper()
	out := map[string][]byte{}
	for _, dir := range []string{".", "data", "journal"} {
		names, err := fsys.ReadDir(dir)
		if err != nil {
			t.Fatal(err)
		}
		for _, name := range names {
			full := strings.TrimPrefix(dir+"/"+name, "./")
			if b, err := vfs.ReadFile(fsys, full, 1<<30); err == nil && name != "lock" {
				out[full] = b
			}
		}
	}
	return out
}

// plant makes a directory of what tree returned.
func plant(t testing.TB, files map[string][]byte) *crashfs.FS {
	t.Helper()
	fsys := crashfs.New()
	err := errors.Join(fsys.Mkdir("data", 0o700), fsys.Mkdir("journal", 0o700))
	for _, name := range slices.Sorted(maps.Keys(files)) {
		err = errors.Join(err, vfs.WriteFile(fsys, name, files[name]))
	}
	if err != nil {
		t.Fatal(err)
	}
	return fsys
}

func readFixture(t testing.TB, name string) map[string][]byte {
	t.Helper()
	f, err := os.Open(filepath.Join(v1, name))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	z, err := gzip.NewReader(f)
	if err != nil {
		t.Fatal(err)
	}
	out := map[string][]byte{}
	for r := tar.NewReader(z); ; {
		h, err := r.Next()
		if err == io.EOF {
			return out
		}
		if err != nil {
			t.Fatal(err)
		}
		if out[h.Name], err = io.ReadAll(r); err != nil {
			t.Fatal(err)
		}
	}
}

func writeFixture(t *testing.T, name string, files map[string][]byte) {
	t.Helper()
	if err := os.MkdirAll(v1, 0o755); err != nil {
		t.Fatal(err)
	}
	f, err := os.OpenFile(filepath.Join(v1, name), os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
	if errors.Is(err, fs.ErrExist) {
		t.Logf("%s is there and stays", name)
		return
	}
	if err != nil {
		t.Fatal(err)
	}
	z, err := gzip.NewWriterLevel(f, gzip.BestCompression)
	if err != nil {
		t.Fatal(err)
	}
	w := tar.NewWriter(z)
	for _, name := range slices.Sorted(maps.Keys(files)) {
		if err := w.WriteHeader(&tar.Header{Name: name, Mode: 0o600, Size: int64(len(files[name]))}); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write(files[name]); err != nil {
			t.Fatal(err)
		}
	}
	if err := errors.Join(w.Close(), z.Close(), f.Close()); err != nil {
		t.Fatal(err)
	}
}

// TestDirectoriesOfVersion1: what version 1 wrote opens for ever and holds what was
// put there, and the same life leaves the same bytes today.
func TestDirectoriesOfVersion1(t *testing.T) {
	stopped, cut := fixtureNode(t)
	if os.Getenv("CAIRN_WRITE_FIXTURE") != "" {
		writeFixture(t, "stopped.tar.gz", stopped)
		writeFixture(t, "cut.tar.gz", cut)
	}
	first, second := fixtureShards()
	for name, test := range map[string]struct {
		now    map[string][]byte
		gone   int // of first
		shards []nodetest.Shard
	}{
		"stopped.tar.gz": {stopped, 1, first},
		"cut.tar.gz":     {cut, 2, append(slices.Clone(first), second...)},
	} {
		was := readFixture(t, name)
		if a, b := slices.Sorted(maps.Keys(test.now)), slices.Sorted(maps.Keys(was)); !slices.Equal(a, b) {
			t.Errorf("%s: today's code leaves the files %v, version 1 left %v", name, a, b)
		}
		for file, b := range was {
			if !bytes.Equal(test.now[file], b) {
				t.Errorf("%s: %s has other bytes than version 1 wrote", name, file)
			}
		}
		fsys, cfg := plant(t, was), tiny(8)
		n := mustOpen(t, fsys, cfg)
		if p, err := n.Promised(t.Context()); err != nil || p != (node.Authority{Epoch: 1, Writer: id.Writer{7}}) {
			t.Errorf("%s: promised %v, %v", name, p, err)
		}
		for f, want := range map[node.File]string{node.ClusterFile: "opaque to the node", node.KeyringFile: "so is this"} {
			if b, err := n.ReadFile(t.Context(), f); err != nil || string(b) != want {
				t.Errorf("%s: small file %s holds %q, %v", name, f, b, err)
			}
		}
		gone := map[node.Key]bool{first[1].Key(): true, first[3].Key(): test.gone == 2}
		for _, s := range test.shards {
			err := intact(n, s)
			if gone[s.Key()] {
				if !errors.Is(err, node.ErrNotFound) {
					t.Errorf("%s: %+v was deleted and is %v", name, s, err)
				}
				// The tombstone can be taken back.
				list, lerr := n.List(t.Context(), node.Key{}, 100)
				i := slices.IndexFunc(list, func(x node.Info) bool { return x.Key == s.Key() })
				if lerr != nil || i < 0 || list[i].Deleted.IsZero() {
					t.Fatalf("%s: %+v has no tombstone: %v", name, s, lerr)
				}
				if err = n.Undelete(t.Context(), node.Authority{Epoch: 1, Writer: id.Writer{7}}, s.Key(), list[i].Instance); err == nil {
					err = intact(n, s)
				}
			}
			if err != nil {
				t.Errorf("%s: %+v: %v", name, s, err)
			}
		}
		list, err := n.List(t.Context(), node.Key{}, 100)
		if err != nil || len(list) != len(test.shards) {
			t.Errorf("%s: %d shards are listed, want %d: %v", name, len(list), len(test.shards), err)
		}
		if err := n.Close(); err != nil {
			t.Errorf("%s: close: %v", name, err)
		}
		n = mustOpen(t, fsys, cfg)
		for _, s := range test.shards {
			if err := intact(n, s); err != nil {
				t.Errorf("%s, opened again: %+v: %v", name, s, err)
			}
		}
		_ = n.Close()
	}
}

// TestNewerIsNotDamage: each thing in a node's directory that has a version says a
// higher one. It is refused as that, by a look and by an open, and not a byte
// changes; with the checksum broken besides it is never called newer.
func TestNewerIsNotDamage(t *testing.T) {
	was := readFixture(t, "stopped.tar.gz")
	me, err := parseIdentity(was["node.json"])
	if err != nil {
		t.Fatal(err)
	}
	le := binary.LittleEndian
	edits := map[string]func(b []byte) []byte{}
	for name := range was {
		switch {
		case name == "node.json":
			edits[name] = func([]byte) []byte {
				later := me
				later.version = 2
				return later.encode()
			}
			edits[name+" with more in it"] = func([]byte) []byte {
				b := fmt.Appendf(nil, `{"cairn":"node","version":2,"cluster":"%v","labels":["a"],"node":"%v"`, me.cluster, me.node)
				return fmt.Appendf(b, ",\"crc32c\":\"%08x\"}\n", crc32.Checksum(b, castagnoli))
			}
		case strings.HasSuffix(name, ".seg"):
			edits[name] = func(b []byte) []byte {
				for _, off := range []int{0, blockSize} {
					le.PutUint16(b[off+4:], 2)
					le.PutUint32(b[off+44:], crc32.Checksum(b[off:off+44], castagnoli))
				}
				return b
			}
			edits[name+" with a rotten first header"] = func(b []byte) []byte {
				le.PutUint16(b[blockSize+4:], 2)
				le.PutUint32(b[blockSize+44:], crc32.Checksum(b[blockSize:blockSize+44], castagnoli))
				b[0] ^= 1
				return b
			}
		default: // small files and footers
			edits[name] = func(b []byte) []byte {
				le.PutUint16(b[4:], 2)
				le.PutUint32(b[12:], smallCRC(b, me.node, b[smallHead:]))
				return b
			}
			edits[name+", longer"] = func(b []byte) []byte {
				b = append(b, make([]byte, 1000)...)
				le.PutUint16(b[4:], 2)
				le.PutUint32(b[8:], uint32(len(b)-smallHead))
				le.PutUint32(b[12:], smallCRC(b, me.node, b[smallHead:]))
				return b
			}
		}
	}
	if len(edits) < 14 {
		t.Errorf("only %d things have a version: %v", len(edits), slices.Sorted(maps.Keys(edits)))
	}
	for what, edit := range edits {
		name, _, _ := strings.Cut(strings.Split(what, " ")[0], ",")
		files := maps.Clone(was)
		files[name] = edit(bytes.Clone(was[name]))
		fsys := plant(t, files)
		_, err := Inspect(fsys)
		if !errors.Is(err, id.ErrNewer) || errors.Is(err, node.ErrDamaged) || !strings.Contains(err.Error(), "of format 2, this build knows 1") {
			t.Errorf("%s: Inspect says %v", what, err)
		}
		if after := tree(t, fsys); !maps.EqualFunc(files, after, bytes.Equal) {
			t.Errorf("%s: Inspect changed something", what)
		}
		// Those kept for the store are opaque, and opened when they are asked for.
		if n, err := Open(fsys, tiny(8)); name != "cluster" && name != "keyring" {
			if !errors.Is(err, id.ErrNewer) {
				t.Errorf("%s: Open says %v", what, err)
			}
		} else if err != nil {
			t.Errorf("%s: Open says %v", what, err)
		} else {
			if _, err := n.ReadFile(context.Background(), node.File(name)); !errors.Is(err, id.ErrNewer) {
				t.Errorf("%s: ReadFile says %v", what, err)
			}
			_ = n.Close()
			continue
		}
		if after := tree(t, fsys); !maps.EqualFunc(files, after, bytes.Equal) {
			t.Errorf("%s: the refusal changed something", what)
		}
		// A flipped bit is never a newer version.
		torn := maps.Clone(was)
		torn[name] = bytes.Clone(was[name])
		if name == "node.json" {
			torn[name] = bytes.Replace(torn[name], []byte(`"version":1`), []byte(`"version":3`), 1)
		} else {
			torn[name][4] ^= 2
		}
		if _, err := Inspect(plant(t, torn)); err != nil {
			t.Errorf("%s with a flipped bit: %v", name, err)
		}
	}
}

// TestNewerShardIsNotTorn: a shard of a later version at the end of a segment that
// was open at a crash is refused, not cut off as torn.
func TestNewerShardIsNotTorn(t *testing.T) {
	im := newImage(64<<10, 1)
	im.group(small(1, 600))
	s := small(2, 600)
	b := s.Bytes()
	hdr := s.Header()
	binary.LittleEndian.PutUint16(b[4:], 2)
	binary.LittleEndian.PutUint32(b[pack.HeaderSize-4:], crc32.Checksum(b[:pack.HeaderSize-4], castagnoli))
	h := recHeader{rec: rec{off: im.end(), size: uint32(len(b)), typ: shardRec, kind: s.Kind, key: s.Key(), inst: 9},
		durable: im.end(), payCRC: payloadCRC(b, b[pack.HeaderSize:hdr.BodyOffset()]), prev: im.recs[0].rec}
	copy(im.b[h.off:], append(h.append(nil, &im.inc), b...))
	if _, err := scan(bytes.NewReader(im.b), int64(len(im.b)), &im.inc, false); !errors.Is(err, id.ErrNewer) {
		t.Errorf("scanned: %v", err)
	}
	im.b[h.off+recordHead+8] ^= 1 // its header's checksum
	if got := mustScan(t, im.b, &im.inc); !got.torn || len(got.shards) != 1 {
		t.Errorf("torn: %+v", got)
	}
}
