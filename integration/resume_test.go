package integration

import (
	"bytes"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

// relay stands between a client and the server that runs now, counts what the
// client sends and can break all connections.
type relay struct {
	l    net.Listener
	sent atomic.Int64

	mu    sync.Mutex
	to    string // host:port
	conns map[net.Conn]bool
}

func newRelay(t *testing.T) *relay {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	r := &relay{l: l, conns: map[net.Conn]bool{}}
	t.Cleanup(func() { l.Close(); r.breakAll() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go r.carry(c)
		}
	}()
	return r
}

func (r *relay) lead(url string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.to = strings.TrimPrefix(url, "http://")
}

func (r *relay) breakAll() {
	r.mu.Lock()
	defer r.mu.Unlock()
	for c := range r.conns {
		c.Close()
	}
}

func (r *relay) carry(c net.Conn) {
	r.mu.Lock()
	to := r.to
	r.mu.Unlock()
	s, err := net.Dial("tcp", to)
	if err != nil {
		c.Close()
		return
	}
	r.mu.Lock()
	r.conns[c], r.conns[s] = true, true
	r.mu.Unlock()
	defer func() {
		r.mu.Lock()
		delete(r.conns, c)
		delete(r.conns, s)
		r.mu.Unlock()
		c.Close()
		s.Close()
	}()
	go func() {
		_, _ = io.Copy(c, s)
		c.Close()
	}()
	_, _ = io.Copy(s, io.TeeReader(c, (*counting)(&r.sent)))
}

type counting atomic.Int64

func (n *counting) Write(p []byte) (int, error) {
	(*atomic.Int64)(n).Add(int64(len(p)))
	return len(p), nil
}

// TestPutGoesOn: a long put is interrupted ten times, by connections that break, by
// servers that are killed, and by being killed itself and given again. It arrives,
// and what the server had was not sent again.
func TestPutGoesOn(t *testing.T) {
	t.Parallel()
	size := int64(rounds(100, 200, 10<<10)) << 20
	rng := newRand(t)
	r := newRig(t)
	via := newRelay(t)
	via.lead(r.start().url)
	path := filepath.Join(r.base, "long.bin")
	fill := rand.NewChaCha8([32]byte{byte(rng.Uint64())})
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.CopyN(f, fill, size); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	const interruptions = 10
	// What a killed server had not made durable: 64 MiB and a chunk. What a broken
	// connection held: buffers of three sockets and two programs.
	const killed, broken = 70 << 20, 24 << 20
	var again int64
	var said bytes.Buffer
	put := func() (*exec.Cmd, chan error) {
		cmd := exec.Command(r.program, "put", path, "main/long", "--retries", "30")
		cmd.Env = append(r.env(), "CAIRN_SERVER=http://"+via.l.Addr().String())
		cmd.Stderr = &said
		cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		done := make(chan error, 1)
		go func() { done <- cmd.Wait() }()
		return cmd, done
	}
	cmd, done := put()
	kinds := rng.Perm(interruptions)
	for i := range interruptions {
		// All gaps together are less than the file, whatever is sent again.
		at := via.sent.Load() + size/(interruptions+1)/4 + rng.Int64N(size/(interruptions+1)*3/4)
		for deadline := time.Now().Add(5 * time.Minute); via.sent.Load() < at; time.Sleep(time.Millisecond) {
			select {
			case err := <-done:
				t.Fatalf("the put ended after %d interruptions: %v\n%s", i, err, said.String())
			default:
			}
			if time.Now().After(deadline) {
				t.Fatalf("%s of %s were sent, and no more come\n%s", mib(via.sent.Load()), mib(size), said.String())
			}
		}
		switch kinds[i] % 3 {
		case 0:
			t.Logf("%s: connections break", mib(via.sent.Load()))
			again += broken
			via.breakAll()
		case 1:
			t.Logf("%s: the server is killed", mib(via.sent.Load()))
			again += killed
			r.server.kill()
			via.lead(r.start().url)
		case 2:
			t.Logf("%s: the put is killed", mib(via.sent.Load()))
			again += broken
			if err := cmd.Process.Kill(); err != nil {
				t.Fatal(err)
			}
			<-done
			cmd, done = put()
		}
	}
	select {
	case err := <-done:
		if err != nil {
			t.Fatalf("put: %v\n%s", err, said.String())
		}
	case <-time.After(10 * time.Minute):
		cmd.Process.Kill()
		t.Fatalf("the put does not end\n%s", said.String())
	}
	sent := via.sent.Load()
	t.Logf("%s of a file of %s were sent; at most %s may be sent again", mib(sent), mib(size), mib(again))
	if sent < size || sent > size+again {
		t.Errorf("%d bytes were sent of a file of %d; what may be sent again is %d", sent, size, again)
	}
	left, err := filepath.Glob(filepath.Join(r.config, "cairn", "uploads", "*"))
	if err != nil || len(left) > 0 {
		t.Errorf("notes are left: %v, %v", left, err)
	}
	got := exec.Command(r.program, "get", "main/long", "-")
	got.Env = append(r.env(), "CAIRN_SERVER="+r.server.url)
	out, err := got.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := got.Start(); err != nil {
		t.Fatal(err)
	}
	want, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer want.Close()
	if err := equalReaders(want, out); err != nil {
		t.Errorf("the object: %v", err)
	}
	if err := got.Wait(); err != nil {
		t.Errorf("get: %v", err)
	}
	r.server.stop()
	if !long() {
		r.verify()
	}
}

// equalReaders compares two streams.
func equalReaders(a, b io.Reader) error {
	x, y := make([]byte, 1<<20), make([]byte, 1<<20)
	for at := int64(0); ; {
		n, aerr := io.ReadFull(a, x)
		m, berr := io.ReadFull(b, y)
		if n != m || !bytes.Equal(x[:n], y[:m]) {
			return errors.New("other bytes behind " + mib(at))
		}
		at += int64(n)
		if aerr != nil || berr != nil {
			if errors.Is(aerr, io.EOF) == errors.Is(berr, io.EOF) || errors.Is(aerr, io.ErrUnexpectedEOF) && errors.Is(berr, io.ErrUnexpectedEOF) {
				return nil
			}
			return errors.Join(aerr, berr)
		}
	}
}
