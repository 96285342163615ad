package bench

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"cairn/datadir"
	"cairn/store"
	"cairn/store/budget"
)

// bucket is where everything is put; every store begins with it.
const bucket = "main"

// memory is what a store is given, as `cairn serve` is by default.
const memory = 512 << 20

var buffers = sync.Pool{New: func() any { return new([transferSize]byte) }}

// face is a way to a store.
type face interface {
	name() string
	net() bool // requests come over the network
	put(ctx context.Context, key string, b []byte) error
	// get writes an object to w.
	get(ctx context.Context, key string, w io.Writer) error
	// cpu is what the store's process has taken so far.
	cpu() (time.Duration, error)
}

// counter counts what is written to it.
type counter struct{ n int }

func (c *counter) Write(b []byte) (int, error) { c.n += len(b); return len(b), nil }

func (c *counter) want(n int) error {
	if c.n != n {
		return fmt.Errorf("bench: read %d bytes, want %d", c.n, n)
	}
	return nil
}

// comparer compares what is written to it with what is expected.
type comparer struct{ want []byte }

func (c *comparer) Write(b []byte) (int, error) {
	if !bytes.HasPrefix(c.want, b) {
		return 0, errors.New("bench: read other bytes than were put")
	}
	c.want = c.want[len(b):]
	return len(b), nil
}

// check reads an object back and compares it.
func check(ctx context.Context, f face, key string, want []byte) error {
	c := &comparer{want}
	if err := f.get(ctx, key, c); err != nil {
		return err
	}
	if len(c.want) > 0 {
		return fmt.Errorf("bench: %d bytes of %d are missing", len(c.want), len(want))
	}
	return nil
}

// local is a store in this process, on six directories and a badger index.
type local struct {
	dir *datadir.Dir
	st  *store.Store
}

func openLocal(ctx context.Context, dir string) (*local, error) {
	d, err := datadir.Open(ctx, datadir.Options{Dir: filepath.Join(dir, "local"), Config: filepath.Join(dir, "local-config"), Create: true})
	if err != nil {
		return nil, err
	}
	// The shares are those that `cairn serve` gives.
	sizes, err := budget.Divide(memory, 2)
	if err != nil {
		return nil, errors.Join(err, d.Close())
	}
	engine, err := d.OpenIndex(sizes.MemTable, sizes.Cache)
	if err != nil {
		return nil, errors.Join(err, d.Close())
	}
	st, err := store.Open(ctx, store.Config{Cluster: d.Cluster, Nodes: d.Stores(), Keyring: d.Keyring, Engine: engine,
		Genesis: d.Fresh.Genesis, Memory: memory})
	if err != nil {
		return nil, errors.Join(err, d.Close())
	}
	return &local{d, st}, nil
}

func (l *local) name() string { return "in process" }
func (l *local) net() bool    { return false }

func (l *local) put(ctx context.Context, key string, b []byte) error {
	_, err := l.st.Put(ctx, bucket, key, bytes.NewReader(b), store.PutOptions{Size: int64(len(b))})
	return err
}

func (l *local) get(ctx context.Context, key string, w io.Writer) error {
	r, err := l.st.Get(ctx, bucket, key, store.GetOptions{})
	if err != nil {
		return err
	}
	body := r.Body(0, r.Object.Size)
	_, err = io.Copy(w, body)
	return errors.Join(err, body.Close())
}

func (l *local) cpu() (time.Duration, error) { return selfCPU(), nil }

func (l *local) close() error {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	return errors.Join(l.st.Close(ctx), l.dir.Close())
}

// served is `cairn serve` in a process of its own, reached over loopback.
type served struct {
	cmd   *exec.Cmd
	url   string
	token string
	http  *http.Client
	log   *tail
	read  chan struct{} // closed when its output has ended
}

// tail keeps the end of what a process says, for when it fails.
type tail struct {
	mu sync.Mutex
	b  []byte
}

func (t *tail) Write(b []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.b = append(t.b, b...); len(t.b) > 4<<10 {
		t.b = t.b[len(t.b)-4<<10:]
	}
	return len(b), nil
}

func (t *tail) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return string(t.b)
}

func openServed(ctx context.Context, cairn, dir string) (*served, error) {
	config := filepath.Join(dir, "served-config")
	s := &served{cmd: exec.Command(cairn, "serve", "--data", filepath.Join(dir, "served"), "--listen", "127.0.0.1:0", "--memory", fmt.Sprint(memory), "--json"),
		http: newClient(1024), log: &tail{}, read: make(chan struct{})}
	s.cmd.Env = append(os.Environ(), "XDG_CONFIG_HOME="+config)
	s.cmd.Stderr = s.log
	out, err := s.cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := s.cmd.Start(); err != nil {
		return nil, fmt.Errorf("start %s: %w", cairn, err)
	}
	url := make(chan string, 1)
	go func() {
		defer close(s.read)
		lines := bufio.NewScanner(out)
		for lines.Scan() {
			var line struct{ Event, URL string }
			if json.Unmarshal(lines.Bytes(), &line) == nil && line.Event == "serving" {
				select {
				case url <- line.URL:
				default: // another listener's
				}
			}
		}
		_, _ = io.Copy(io.Discard, out) // what is no line must not block it
	}()
	limit := time.NewTimer(30 * time.Second)
	defer limit.Stop()
	select {
	case s.url = <-url:
		b, err := os.ReadFile(filepath.Join(config, "cairn", "token"))
		if err == nil {
			s.token = strings.TrimSpace(string(b))
			return s, nil
		}
		return nil, errors.Join(err, s.close())
	case <-s.read:
		err = errors.New("ended")
	case <-limit.C:
		err = errors.New("took longer than 30 s")
	case <-ctx.Done():
		err = context.Cause(ctx)
	}
	return nil, errors.Join(fmt.Errorf("start %s: %w; it said: %s", cairn, err, s.log), s.close())
}

func (s *served) name() string { return "REST" }
func (s *served) net() bool    { return true }

func (s *served) object(key string) string {
	return s.url + "/v1/buckets/" + bucket + "/objects/" + key
}

func (s *served) put(ctx context.Context, key string, b []byte) error {
	return transfer(ctx, s.http, http.MethodPut, s.object(key), s.token, b, io.Discard)
}

func (s *served) get(ctx context.Context, key string, w io.Writer) error {
	return transfer(ctx, s.http, http.MethodGet, s.object(key), s.token, nil, w)
}

func (s *served) cpu() (time.Duration, error) { return procCPU(s.cmd.Process.Pid) }

func (s *served) close() error {
	s.http.CloseIdleConnections()
	err := stopped(s.cmd, 20*time.Second)
	<-s.read
	return err
}
