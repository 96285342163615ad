package rest

import (
	"bytes"
	"context"
	"crypto/sha256"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"

	"pgregory.net/rapid"

	"cairn/id"
	"cairn/index/kv/memkv"
	"cairn/keys"
	"cairn/node"
	"cairn/node/disk"
	"cairn/node/vfs/crashfs"
	"cairn/record"
	"cairn/store"
)

// lockedBuffer is a log that several goroutines write.
type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// tester is a test, or one check of a property.
type tester interface {
	rapid.TB
	Cleanup(func())
}

// engine is the real store on six nodes in memory, behind the face on a socket.
type engine struct {
	t   tester
	fs  []*crashfs.FS
	url string
	log *lockedBuffer
	st  *store.Store

	handler http.Handler
}

func newEngine(t tester) *engine {
	t.Helper()
	ctx := context.Background()
	cluster, err := id.NewCluster(nil)
	if err != nil {
		t.Fatal(err)
	}
	ring, err := keys.New(cluster, nil)
	if err != nil {
		t.Fatal(err)
	}
	file, err := keys.NewKeyFile(nil)
	if err != nil {
		t.Fatal(err)
	}
	if ring, err = ring.AddSlot(ctx, file); err != nil {
		t.Fatal(err)
	}
	e := &engine{t: t, log: &lockedBuffer{}}
	log := slog.New(slog.NewTextHandler(e.log, &slog.HandlerOptions{Level: slog.LevelDebug}))
	genesis := &store.Genesis{M: 2, Buckets: []string{"main"}}
	nodes := map[string]node.Store{}
	for i := range 6 {
		fs, name := crashfs.New(), fmt.Sprintf("n%02d", i+1)
		nid, err := disk.Format(fs, disk.Config{Cluster: cluster})
		if err != nil {
			t.Fatal(err)
		}
		n, err := disk.Open(fs, disk.Config{Cluster: cluster})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { n.Close() })
		e.fs, nodes[name] = append(e.fs, fs), n
		genesis.Members = append(genesis.Members, record.Member{ID: nid, Name: name})
	}
	st, err := store.Open(ctx, store.Config{Cluster: cluster, Nodes: nodes, Keyring: ring, Engine: memkv.New(memkv.Options{}), Genesis: genesis, Log: log})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { st.Close(context.Background()) })
	e.st = st
	h, err := New(Config{Store: st, Token: testToken, First: true, Log: log, Replace: func(_ context.Context, name string) (Replaced, error) {
		if err := st.Replaceable(name); err != nil {
			return Replaced{}, err
		}
		return Replaced{Node: name}, nil
	}, Add: func(_ context.Context, n NewNode) (Added, error) { // the store's word, and no directory
		return Added{Node: n.Name}, st.Addable(&store.NewNode{Name: n.Name, Weight: n.Weight, Labels: n.Labels}, id.Node{1})
	}, Remove: func(ctx context.Context, name string) (Removed, error) {
		return Removed{Node: name}, st.RemoveNode(ctx, name)
	}})
	if err != nil {
		t.Fatal(err)
	}
	e.handler = h
	srv := httptest.NewServer(h)
	t.Cleanup(srv.Close)
	e.url = srv.URL
	return e
}

// do sends a request; an error is that of reading the answer.
func (e *engine) do(method, path string, body io.Reader, headers ...string) (int, http.Header, []byte, error) {
	e.t.Helper()
	req, err := http.NewRequest(method, e.url+path, body)
	if err != nil {
		e.t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+testToken)
	for _, h := range headers {
		name, value, _ := strings.Cut(h, ": ")
		req.Header.Set(name, value)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return 0, nil, nil, err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	return resp.StatusCode, resp.Header, b, err
}

func (e *engine) want(status int, method, path string, body io.Reader, headers ...string) (http.Header, []byte) {
	e.t.Helper()
	got, h, b, err := e.do(method, path, body, headers...)
	if err != nil || got != status {
		e.t.Fatalf("%s %s: %d, %v, want %d\n%.300s", method, path, got, err, status, b)
	}
	return h, b
}

func noise(seed byte, n int) []byte {
	b := make([]byte, n)
	rand.NewChaCha8([32]byte{seed}).Read(b)
	return b
}

// TestEngineThroughTheFace: bytes in are bytes out, whole, by ranges, by
// versions, on the real store.
func TestEngineThroughTheFace(t *testing.T) {
	e := newEngine(t)
	for i, n := range []int{0, 1, 128 << 10, 128<<10 + 1, 9 << 20} {
		b := noise(byte(i), n)
		path := fmt.Sprintf("%ssize/%d", objects, n)
		var body io.Reader = bytes.NewReader(b)
		if i%2 == 1 {
			body = io.MultiReader(body) // of no known length: chunked
		}
		h, _ := e.want(201, "PUT", path, body)
		tag := h.Get("Etag")
		if _, got := e.want(200, "GET", path, nil); sha256.Sum256(got) != sha256.Sum256(b) {
			t.Errorf("%d bytes come back as %d others", n, len(got))
		}
		e.want(304, "GET", path, nil, "If-None-Match: "+tag)
		for _, r := range [][2]int{{0, 0}, {n - 1, n - 1}, {n / 3, n / 2}} {
			if n == 0 {
				break
			}
			_, got := e.want(206, "GET", path, nil, fmt.Sprintf("Range: bytes=%d-%d", r[0], r[1]), "If-Range: "+tag)
			if !bytes.Equal(got, b[r[0]:r[1]+1]) {
				t.Errorf("bytes %v of %d are others", r, n)
			}
		}
		e.want(412, "PUT", path, strings.NewReader("x"), "If-None-Match: *")
		e.want(200, "PUT", path, strings.NewReader("new"), "If-Match: "+tag)
		e.want(412, "DELETE", path, nil, "If-Match: "+tag)
	}
	e.want(400, "PUT", objects, strings.NewReader("x"))
	e.want(400, "PUT", objects+strings.Repeat("k", 1025), strings.NewReader("x"))
	e.want(204, "DELETE", objects+"size/1", nil)
	e.want(404, "GET", objects+"size/1", nil)
	e.want(200, "POST", objects+"size/1?undelete", nil)
	e.want(200, "GET", objects+"size/1", nil)
	for _, path := range []string{"/v1/usage", "/v1/status", "/v1/nodes", "/v1/damaged", "/v1/buckets", "/v1/buckets/main/objects?versions=true", "/v1/buckets/main/placement/size/9437184", "/readyz"} {
		h, b := e.want(200, "GET", path, nil)
		readDocument(t).checkAnswer(t, "GET", strings.Split(path, "?")[0], 200, h, b)
	}
	// One of many creates wins.
	var (
		wg  sync.WaitGroup
		mu  sync.Mutex
		won int
	)
	for i := range 16 {
		wg.Go(func() {
			status, _, b, err := e.do("PUT", objects+"once", strings.NewReader(fmt.Sprint(i)), "If-None-Match: *")
			mu.Lock()
			defer mu.Unlock()
			if status == 201 {
				won++
			} else if status != 412 || err != nil {
				t.Errorf("a create that lost: %d, %v: %s", status, err, b)
			}
		})
	}
	if wg.Wait(); won != 1 {
		t.Errorf("%d of 16 creates of one key won", won)
	}
}

// TestEngineLosesNodesInTheMiddle: with more nodes gone than can be survived an
// answer that has begun is cut, one that has not is an error, and neither is a
// short body that looks whole (H68).
func TestEngineLosesNodesInTheMiddle(t *testing.T) {
	e := newEngine(t)
	const n = 48 << 20
	b := noise(9, n)
	e.want(201, "PUT", objects+"big", bytes.NewReader(b))
	req, err := http.NewRequest("GET", e.url+objects+"big", nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+testToken)
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	head := make([]byte, 1<<20)
	if _, err := io.ReadFull(resp.Body, head); err != nil {
		t.Fatal(err)
	}
	for _, fs := range e.fs[:3] {
		fs.Kill()
	}
	rest, err := io.ReadAll(resp.Body)
	got := append(head, rest...)
	if err == nil && len(got) != n || !bytes.Equal(got, b[:len(got)]) {
		t.Errorf("an answer over dying nodes: %d bytes, %v; want %d, or a broken connection after good ones", len(got), err, n)
	}
	if err == nil {
		t.Log("the whole answer was in flight already")
	}
	status, _, body, err := e.do("GET", objects+"big", nil)
	if status < 500 && err == nil {
		t.Errorf("with three of six nodes gone: %d with %d bytes", status, len(body))
	}
}

// TestEngineKeepsNamesOutOfTheLog: the store writes into the same log (H60).
func TestEngineKeepsNamesOutOfTheLog(t *testing.T) {
	e := newEngine(t)
	const canary = "canary51e0"
	key := objects + canary
	e.want(201, "PUT", key, strings.NewReader(strings.Repeat(canary, 1000)), "Cairn-Meta-X: "+canary, "Content-Type: text/"+canary)
	e.want(201, "PUT", "/v1/buckets/"+canary, nil)
	e.want(409, "PUT", "/v1/buckets/"+canary, nil)
	e.want(412, "POST", key+"?undelete", nil)
	e.want(200, "GET", key, nil)
	e.want(204, "DELETE", key, nil)
	e.want(404, "GET", key, nil)
	e.want(404, "GET", "/v1/buckets/no-"+canary+"/objects/x", nil)
	e.want(201, "PUT", key, bytes.NewReader(noise(1, 300_000)))
	form, ct := form([2]string{"archivo", canary})
	e.want(200, "POST", "/cargar", strings.NewReader(form), ct)
	for _, fs := range e.fs[:4] {
		fs.Kill()
	}
	if status, _, _, err := e.do("GET", key, nil); err == nil && status < 500 {
		t.Errorf("with four of six nodes gone: %d", status)
	}
	if status, _, _, err := e.do("PUT", key, strings.NewReader(canary)); err == nil && status < 500 {
		t.Errorf("a put with four of six nodes gone: %d", status)
	}
	if log := e.log.String(); strings.Contains(log, canary) || strings.Contains(log, testToken) || log == "" {
		t.Errorf("the log has a name or the token in it, or nothing:\n%s", log)
	}
}
