package integration

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/klauspost/compress/zstd"
	"github.com/zeebo/blake3"

	"cairn/datadir"
	"cairn/record"
	"cairn/store"
)

// A whole data directory of each version of the store is kept for good: what the
// program of that version wrote, its process killed, with key file and token. The
// key is the one of keys/testdata/v1.
const (
	dirFixtures = "testdata/datadir-v*.tar.zst"
	fixtureKey  = "../keys/testdata/v1/cluster.key"
)

// kept is what a fixture must give back.
type kept struct {
	Bucket  string `json:"bucket"`
	Key     string `json:"key"`
	Version string `json:"version"`
	Size    int    `json:"size"`
	Sum     string `json:"blake3"` // empty for a delete marker
	Current bool   `json:"current"`
}

func (k kept) path() string {
	parts := strings.Split(k.Key, "/")
	for i, p := range parts {
		parts[i] = url.PathEscape(p)
	}
	return "/v1/buckets/" + k.Bucket + "/objects/" + strings.Join(parts, "/")
}

// lines is text that compresses well.
func lines(what string, size int) []byte {
	var b []byte
	for i := 0; len(b) < size; i++ {
		b = fmt.Appendf(b, "line %d of what is %s\n", i, what)
	}
	return b[:size]
}

// keepAll lists every version of every object and reads it.
func keepAll(t *testing.T, c *client) []kept {
	t.Helper()
	get := func(path string, into any) {
		t.Helper()
		r := c.do(http.MethodGet, path, nil, nil)
		if r.answer != acked || r.err != nil {
			t.Fatalf("%s: %v", path, r)
		}
		if err := json.Unmarshal(r.body, into); err != nil {
			t.Fatalf("%s: %v", path, err)
		}
	}
	var buckets struct {
		Buckets []struct{ Name string } `json:"buckets"`
	}
	get("/v1/buckets", &buckets)
	var out []kept
	for _, b := range buckets.Buckets {
		var list struct {
			Objects []struct {
				Key, Version     string
				Size             int
				Deleted, Current bool
			} `json:"objects"`
			More bool `json:"more"`
		}
		get("/v1/buckets/"+b.Name+"/objects?versions=true&limit=1000", &list)
		if list.More {
			t.Fatalf("bucket %s has more than a page", b.Name)
		}
		for _, o := range list.Objects {
			k := kept{Bucket: b.Name, Key: o.Key, Version: o.Version, Size: o.Size, Current: o.Current}
			if !o.Deleted {
				r := c.do(http.MethodGet, k.path()+"?version="+url.QueryEscape(o.Version), nil, nil)
				if r.answer != acked || r.err != nil || len(r.body) != o.Size {
					t.Fatalf("get %+v: %v, %d bytes", k, r, len(r.body))
				}
				sum := blake3.Sum256(r.body)
				k.Sum = hex.EncodeToString(sum[:])
			}
			out = append(out, k)
		}
	}
	return out
}

// checkKept compares what a store gives back with what was put into it.
func checkKept(t *testing.T, what string, c *client, want []kept) {
	t.Helper()
	if got := keepAll(t, c); !slices.Equal(got, want) {
		t.Errorf("%s: the store holds\n%+v\nwant\n%+v", what, got, want)
	}
	for _, k := range want { // and by its name alone
		if r := c.do(http.MethodGet, k.path(), nil, nil); k.Current && k.Sum != "" {
			if sum := blake3.Sum256(r.body); r.answer != acked || hex.EncodeToString(sum[:]) != k.Sum {
				t.Errorf("%s: %s/%s: %v, %d bytes", what, k.Bucket, k.Key, r, len(r.body))
			}
		} else if k.Current && r.status != http.StatusNotFound {
			t.Errorf("%s: %s/%s was deleted and answers %v", what, k.Bucket, k.Key, r)
		}
	}
}

// unpackRig makes a rig of a fixture. Blocks of zeros become holes, as they were.
func unpackRig(t *testing.T, fixture string) *rig {
	t.Helper()
	r := newRig(t)
	f, err := os.Open(fixture)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	z, err := zstd.NewReader(f)
	if err != nil {
		t.Fatal(err)
	}
	defer z.Close()
	root, err := os.OpenRoot(r.base)
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	for in := tar.NewReader(z); ; {
		h, err := in.Next()
		if err == io.EOF {
			return r
		}
		if err != nil {
			t.Fatal(err)
		}
		if h.Typeflag == tar.TypeDir {
			if err := root.MkdirAll(strings.TrimSuffix(h.Name, "/"), 0o700); err != nil {
				t.Fatal(err)
			}
			continue
		}
		out, err := root.OpenFile(h.Name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
		if err != nil {
			t.Fatal(err)
		}
		err = out.Truncate(h.Size)
		block := make([]byte, 64<<10)
		for off := int64(0); err == nil && off < h.Size; {
			n := min(int64(len(block)), h.Size-off)
			if _, err = io.ReadFull(in, block[:n]); err == nil && !zeros(block[:n]) {
				_, err = out.WriteAt(block[:n], off)
			}
			off += n
		}
		if err := errors.Join(err, out.Close()); err != nil {
			t.Fatal(err)
		}
	}
}

func zeros(b []byte) bool { return len(bytes.TrimLeft(b, "\x00")) == 0 }

// packRig writes the rig's directories into an archive that is not there yet.
func packRig(t *testing.T, r *rig, name string) {
	t.Helper()
	f, err := os.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
	if err != nil {
		t.Fatal(err)
	}
	// The window reaches over the identical copies of a small log pack.
	z, err := zstd.NewWriter(f, zstd.WithEncoderLevel(zstd.SpeedBestCompression), zstd.WithWindowSize(8<<20))
	if err != nil {
		t.Fatal(err)
	}
	w := tar.NewWriter(z)
	for _, dir := range []string{"config", "data"} {
		err = errors.Join(err, filepath.WalkDir(filepath.Join(r.base, dir), func(p string, d fs.DirEntry, err error) error {
			// Lists hold paths of the machine that wrote them, the ballast holds nothing.
			if err != nil || d.Name() == "stores.json" || d.Name() == "servers.json" || d.Name() == ballastName {
				return err
			}
			rel, err := filepath.Rel(r.base, p)
			if err != nil {
				return err
			}
			if d.IsDir() {
				return w.WriteHeader(&tar.Header{Typeflag: tar.TypeDir, Name: rel + "/", Mode: 0o700})
			}
			b, err := os.ReadFile(p)
			if err != nil {
				return err
			}
			if err := w.WriteHeader(&tar.Header{Name: rel, Mode: 0o600, Size: int64(len(b))}); err != nil {
				return err
			}
			_, err = w.Write(b)
			return err
		}))
	}
	if err := errors.Join(err, w.Close(), z.Close(), f.Close()); err != nil {
		t.Fatal(err)
	}
}

// TestWriteDataDirectory writes the fixture of the store's present version, unless
// there is one: then it only shows that it could.
func TestWriteDataDirectory(t *testing.T) {
	if os.Getenv("CAIRN_WRITE_FIXTURE") == "" {
		t.Skip("CAIRN_WRITE_FIXTURE=1 writes the fixture of a version that has none")
	}
	name := strings.Replace(dirFixtures, "*", fmt.Sprint(record.StoreVersion), 1)
	if _, err := os.Stat(name); err == nil {
		t.Skipf("%s is there, and stays for good", name)
	}
	r := newRig(t)
	dir := filepath.Join(r.config, "cairn")
	key, err := os.ReadFile(fixtureKey)
	if err == nil {
		err = os.MkdirAll(dir, 0o700)
	}
	if err == nil {
		err = os.WriteFile(filepath.Join(dir, "test.key"), key, 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
	keyFile := []string{"--key-file", filepath.Join(dir, "test.key")}
	put := func(c *client, bucket, key string, body []byte, header ...string) {
		t.Helper()
		h := http.Header{}
		for i := 0; i+1 < len(header); i += 2 {
			h.Set(header[i], header[i+1])
		}
		if r := c.do(http.MethodPut, kept{Bucket: bucket, Key: key}.path(), h, body); r.answer != acked {
			t.Fatalf("put %s/%s: %v", bucket, key, r)
		}
	}
	del := func(c *client, bucket, key string) {
		t.Helper()
		if r := c.do(http.MethodDelete, kept{Bucket: bucket, Key: key}.path(), nil, nil); r.answer != acked {
			t.Fatalf("delete %s/%s: %v", bucket, key, r)
		}
	}

	// A first life: small and large, plain and compressible, overwritten and deleted.
	s := r.start(append(keyFile, "--local-nodes", "4", "--losses", "1")...)
	r.must("bucket", "create", "versions", "--versioning")
	r.must("bucket", "create", "fine", "--profile", "fine")
	c := s.client()
	put(c, "main", "empty", nil)
	put(c, "main", "small/one", []byte("a stone\n"), "Content-Type", "text/plain", "Cache-Control", "no-store")
	put(c, "main", "small/ñ ü/日本", []byte("another stone\n"))
	put(c, "main", "large/text", lines("large", 200_000))
	put(c, "fine", "cut", lines("cut", 900_000)) // into several chunks
	put(c, "main", "large/noise", content{seed: 2, size: 140_000}.bytes())
	put(c, "main", "large/again", content{seed: 2, size: 140_000}.bytes())
	put(c, "fine", "list", make([]byte, 20<<20+1)) // more references than a manifest holds
	for i := range 3 {
		put(c, "versions", "kept", fmt.Appendf(nil, "version %d\n", i))
		put(c, "main", "small/over", fmt.Appendf(nil, "version %d\n", i))
	}
	del(c, "versions", "kept")
	put(c, "versions", "gone and back", []byte("back\n"))
	del(c, "versions", "gone and back")
	if r := c.do(http.MethodPost, kept{Bucket: "versions", Key: "gone and back"}.path()+"?undelete", nil, nil); r.answer != acked {
		t.Fatalf("undelete: %v", r)
	}
	put(c, "main", "deleted", []byte("not to be seen again\n"))
	del(c, "main", "deleted")
	c.close()
	s.stop()

	// A snapshot of the index, which no command asks for.
	ctx := context.Background()
	d, err := datadir.Open(ctx, datadir.Options{Dir: r.data, Config: dir, KeyFile: keyFile[1]})
	if err != nil {
		t.Fatal(err)
	}
	engine, err := d.OpenIndex(32<<20, 32<<20)
	if err != nil {
		t.Fatal(err)
	}
	st, err := store.Open(ctx, store.Config{Cluster: d.Cluster, Nodes: d.Stores(), Keyring: d.Keyring, Engine: engine})
	if err != nil {
		t.Fatal(err)
	}
	_, err = st.Snapshot(ctx)
	if err := errors.Join(err, st.Close(ctx), d.Close()); err != nil {
		t.Fatal(err)
	}

	// A lost node, replaced; then a kill in the middle of life.
	removeAll(t, r.node("n03"))
	s = r.start(keyFile...)
	r.replaceAndHeal("n03")
	r.must("bucket", "set", "fine", "--versioning")
	c = s.client()
	put(c, "main", "small/over", []byte("after the loss\n"))
	put(c, "fine", "late", lines("late", 150_000))
	put(c, "main", "last", []byte("the last stone\n"))
	want := keepAll(t, c)
	s.kill()
	c.close()

	b, err := json.MarshalIndent(want, "", " ")
	if err == nil {
		err = os.MkdirAll(filepath.Dir(name), 0o755)
	}
	if err == nil {
		err = os.WriteFile(strings.TrimSuffix(name, ".tar.zst")+".json", append(b, '\n'), 0o644)
	}
	if err != nil {
		t.Fatal(err)
	}
	packRig(t, r, name)
	if info, err := os.Stat(name); err != nil || info.Size() > 1<<20 {
		t.Errorf("%s has %d bytes, want at most 1 MiB: %v", name, info.Size(), err)
	}
}

// TestDataDirectoriesOfEveryVersion opens a copy of each fixture with today's
// program: everything is there, also without the index, without a node, and after a
// rebuild; it is sound, and takes and gives what is new.
func TestDataDirectoriesOfEveryVersion(t *testing.T) {
	names, err := filepath.Glob(dirFixtures)
	if err != nil || len(names) != record.StoreVersion {
		t.Fatalf("the store has version %d, and there are the fixtures %v: %v", record.StoreVersion, names, err)
	}
	for _, name := range names {
		t.Run(strings.TrimSuffix(filepath.Base(name), ".tar.zst"), func(t *testing.T) {
			var want []kept
			b, err := os.ReadFile(strings.TrimSuffix(name, ".tar.zst") + ".json")
			if err == nil {
				err = json.Unmarshal(b, &want)
			}
			if err != nil || len(want) < 10 {
				t.Fatalf("%d objects are to be found: %v", len(want), err)
			}

			r := unpackRig(t, name)
			key := []string{"--key-file", filepath.Join(r.config, "cairn", "test.key")}
			offline := func(command string, more ...string) string {
				t.Helper()
				return r.must(append(append([]string{command, "--data", r.data}, key...), more...)...)
			}
			export := func() string {
				t.Helper()
				return offline("export-index", "-")
			}
			if out := offline("verify"); !strings.Contains(out, "sound:") {
				t.Errorf("verify: %s", out)
			}
			s := r.start(key...)
			c := s.client()
			checkKept(t, "after the kill", c, want)
			for n, state := range r.status().states() {
				if state != "up" {
					t.Errorf("node %s is %s", n, state)
				}
			}
			put := func(key string, body []byte) {
				t.Helper()
				if rep := c.do(http.MethodPut, kept{Bucket: "fine", Key: key}.path(), nil, body); rep.answer != acked {
					t.Fatalf("put %s: %v", key, rep)
				}
			}
			// The last is there already, cut and named as it was then.
			fresh := map[string][]byte{"new/small": content{seed: 11, size: 1000}.bytes(), "new/large": content{seed: 12, size: 3 << 20}.bytes(), "new/old": lines("cut", 900_000)}
			put("new/small", fresh["new/small"])
			put("new/large", fresh["new/large"])
			unique := s.usage(t)["unique_bytes"]
			put("new/old", fresh["new/old"])
			if u := s.usage(t)["unique_bytes"]; u != unique {
				t.Errorf("what was stored then is stored again: %d bytes more", u-unique)
			}
			if rep := c.delete("large/again"); rep.answer != acked {
				t.Errorf("delete: %v", rep)
			}
			if rep := c.put("small/over", []byte("once more\n")); rep.answer != acked {
				t.Errorf("put: %v", rep)
			}
			now := keepAll(t, c)
			if len(now) != len(want)+len(fresh)+1 { // and a marker
				t.Errorf("%d versions after three objects were made and one was deleted, %d before", len(now), len(want))
			}
			c.close()
			s.stop()

			// The index made anew, from the snapshot of then and from the whole log.
			before := export()
			for _, more := range [][]string{nil, {"--whole-log"}} {
				removeAll(t, r.index())
				out := offline("rebuild", more...)
				if strings.Contains(out, "the whole log") != (more != nil) {
					t.Errorf("rebuild %v: %s", more, out)
				}
				if export() != before {
					t.Errorf("rebuild %v makes another index", more)
				}
			}
			s = r.start(key...)
			c = s.client()
			checkKept(t, "rebuilt", c, now)
			for key, body := range fresh {
				if rep := c.do(http.MethodGet, kept{Bucket: "fine", Key: key}.path(), nil, nil); rep.answer != acked || !bytes.Equal(rep.body, body) {
					t.Errorf("get %s: %v, %d bytes", key, rep, len(rep.body))
				}
			}
			c.close()
			s.stop()
			if out := offline("verify"); !strings.Contains(out, "sound:") {
				t.Errorf("verify: %s", out)
			}

			// Without the index and without a node.
			r = unpackRig(t, name)
			key[1] = filepath.Join(r.config, "cairn", "test.key")
			removeAll(t, r.index())
			removeAll(t, r.node("n02"))
			s = r.start(key...)
			c = s.client()
			checkKept(t, "without index and n02", c, want)
			if !strings.Contains(s.stderr(), "loading a snapshot of the index") {
				t.Error("the lost index was not loaded from the snapshot")
			}
			c.close()
			s.stop()
		})
	}
}
