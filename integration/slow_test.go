package integration

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// attack is a crowd of connections that crawl: each moves one byte a tick, and comes
// back a tick after it was ended.
type attack struct {
	addr, auth, large string // large is an object that fits in no buffer
	tick              time.Duration

	mu    sync.Mutex
	begun map[string]int // connections, by kind
	ends  map[string]int // how they ended, by kind and end
}

// The kinds, and how each may end. All else is a failure.
var crawlers = map[string][]string{
	"header": {"closed"},
	"body":   {"closed", "408", "503"},
	"answer": {"closed", "503"},
}

func (a *attack) note(m map[string]int, what string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	m[what]++
}

// endedAll reports whether a connection of each kind was ended.
func (a *attack) endedAll() bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	for kind := range crawlers {
		ended := false
		for what := range a.ends {
			ended = ended || strings.HasPrefix(what, kind) && !strings.HasSuffix(what, "moved")
		}
		if !ended {
			return false
		}
	}
	return true
}

// run attacks with n connections until ctx is done.
func (a *attack) run(ctx context.Context, n int) {
	var wg sync.WaitGroup
	for i := range n {
		kind := []string{"header", "body", "answer"}[i%3]
		wg.Go(func() {
			// Spread over a tick, as those of many machines are.
			for pause(ctx, a.tick*time.Duration(i)/time.Duration(n)); ctx.Err() == nil; pause(ctx, a.tick) {
				a.once(ctx, kind)
			}
		})
	}
	wg.Wait()
}

func pause(ctx context.Context, d time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}

// once makes a connection and crawls until it is ended.
func (a *attack) once(ctx context.Context, kind string) {
	small := func(_, _ string, c syscall.RawConn) error {
		return c.Control(func(fd uintptr) { _ = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUF, 4096) })
	}
	c, err := (&net.Dialer{Control: small}).DialContext(ctx, "tcp", a.addr)
	if err != nil {
		return // the kernel's line is full
	}
	defer context.AfterFunc(ctx, func() { c.Close() })()
	defer c.Close()
	start := map[string]string{
		"header": "GET / HTTP/1.1\r\nX: ",
		"body":   "PUT " + objectPath("crawler") + " HTTP/1.1\r\n" + a.auth + "Content-Length: 100000\r\n\r\n",
		"answer": "GET " + objectPath(a.large) + " HTTP/1.1\r\n" + a.auth + "\r\n",
	}[kind]
	if _, err := io.WriteString(c, start); err != nil {
		return
	}
	a.note(a.begun, kind)
	for {
		end, moved := a.crawl(ctx, c, kind)
		if ctx.Err() != nil {
			return
		}
		if end != "" {
			a.note(a.ends, kind+" "+end)
			return
		}
		if moved {
			a.note(a.ends, kind+" moved")
		}
	}
}

// crawl moves a byte in a tick; end says how the connection ended if it did.
func (a *attack) crawl(ctx context.Context, c net.Conn, kind string) (end string, moved bool) {
	if kind == "answer" {
		pause(ctx, a.tick)
		if b := make([]byte, 12); over(c) {
			_ = c.SetReadDeadline(time.Now().Add(a.tick))
			if n, _ := io.ReadFull(c, b); n == len(b) && string(b[9:]) == "503" {
				return "503", false
			}
			return "closed", false
		}
		_ = c.SetReadDeadline(time.Now().Add(a.tick))
		_, err := c.Read(make([]byte, 1))
		if err != nil && !errors.Is(err, os.ErrDeadlineExceeded) {
			return "closed", false
		}
		return "", err == nil
	}
	_ = c.SetReadDeadline(time.Now().Add(a.tick))
	b := make([]byte, 12)
	n, err := io.ReadFull(c, b)
	switch {
	case n == len(b):
		return string(b[9:]), false
	case !errors.Is(err, os.ErrDeadlineExceeded):
		return "closed", false
	}
	_, err = c.Write([]byte("a"))
	return "", err == nil
}

// over reports whether the other side has ended the connection.
func over(c net.Conn) (yes bool) {
	raw, err := c.(*net.TCPConn).SyscallConn()
	if err != nil {
		return true
	}
	err = raw.Control(func(fd uintptr) {
		p := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLRDHUP}}
		_, _ = unix.Poll(p, 0)
		yes = p[0].Revents&(unix.POLLHUP|unix.POLLERR|unix.POLLRDHUP) != 0
	})
	return yes || err != nil
}

// honest is what clients saw that put and get objects of 4 KiB, each its own.
type honest struct {
	mu     sync.Mutex
	took   []time.Duration
	failed []string
}

// run lets clients work until ctx is done. Half of them keep their connection, the
// others make one for each request.
func (h *honest) run(ctx context.Context, s *server, rng *rand.Rand, clients int) {
	var wg sync.WaitGroup
	for i := range clients {
		rng := fork(rng)
		c := s.client()
		if i%2 == 1 {
			c.http.Transport.(*http.Transport).DisableKeepAlives = true
		}
		wg.Go(func() {
			defer c.close()
			body := make([]byte, 4096)
			for n := 0; ctx.Err() == nil; n++ {
				for j := range body {
					body[j] = byte(rng.Uint32())
				}
				key := fmt.Sprintf("honest/%d/%d", i, n%100)
				h.note(ctx, "put", func() reply { return c.put(key, body) })
				h.note(ctx, "get", func() reply {
					r := c.get(key)
					if r.answer == acked && r.err == nil && !bytes.Equal(r.body, body) {
						r.err = errors.New("other bytes than were put")
					}
					return r
				})
			}
		})
	}
	wg.Wait()
}

func (h *honest) note(ctx context.Context, what string, do func() reply) {
	if ctx.Err() != nil {
		return
	}
	begin := time.Now()
	r := do()
	took := time.Since(begin)
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.took = append(h.took, took); r.answer != acked || r.err != nil {
		h.failed = append(h.failed, fmt.Sprintf("%s after %v: %v", what, took, r))
	}
}

func (h *honest) p99() time.Duration {
	slices.Sort(h.took)
	return h.took[len(h.took)*99/100]
}

// TestSlowClientsShutNobodyOut: thousands of connections that crawl, in a header, in
// a body, in taking an answer, each end as documented, and beside them honest clients
// are served (H67). With CAIRN_LONG=1 there are 5,000 at a byte in ten seconds, and
// what honest clients wait is compared between phases with and without them.
func TestSlowClientsShutNobodyOut(t *testing.T) {
	crowd, tick, phase, memory := 400, 2*time.Second, 4*time.Second, int64(128)
	if long() {
		crowd, tick, phase, memory = 5000, 10*time.Second, time.Minute, 512
	}
	var files unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &files); err != nil {
		t.Fatal(err)
	}
	need := uint64(crowd + 1000)
	if files.Cur < need {
		files.Cur = min(need, files.Max)
		if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &files); err != nil || files.Cur < need {
			t.Skipf("%d open files are allowed, %d are needed: %v", files.Cur, need, err)
		}
	}
	rng := newRand(t)
	r := newRig(t)
	s := r.start("--memory", fmt.Sprintf("%dMiB", memory))
	c := s.client()
	defer c.close()
	large := newStream(rng.Uint64(), 8*mebi)
	if got := c.send("large", large); got.status/100 != 2 {
		t.Fatalf("put: %v", got)
	}
	a := &attack{addr: strings.TrimPrefix(s.url, "http://"), auth: "Host: localhost\r\nAuthorization: Bearer " + s.token + "\r\n", large: "large", tick: tick,
		begun: map[string]int{}, ends: map[string]int{}}
	(&honest{}).run(timeout(t, phase/4), s, rng, 8) // to warm up
	stop := s.watch(t)
	var alone, beside honest
	for range rounds(1, 1, 2) {
		alone.run(timeout(t, phase), s, rng, 8)
		attacked, end := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		wg.Go(func() { a.run(attacked, crowd) })
		beside.run(timeout(t, phase), s, rng, 8)
		for limit := timeout(t, time.Minute); limit.Err() == nil && !a.endedAll(); { // a loaded machine
			pause(limit, 100*time.Millisecond)
		}
		end()
		wg.Wait()
		pause(t.Context(), time.Second)
	}
	most := stop()
	t.Logf("alone: %d requests, p99 %v; beside %d: %d, p99 %v, failed %d; anonymous memory at most %d MiB", len(alone.took), alone.p99(), crowd,
		len(beside.took), beside.p99(), len(beside.failed), most.anon/mebi)
	t.Logf("crawlers: begun %v, ended %v", a.begun, a.ends)
	for _, h := range []*honest{&alone, &beside} {
		if n := len(h.failed); n*1000 > len(h.took) {
			t.Errorf("%d of %d requests of honest clients failed, such as: %s", n, len(h.took), strings.Join(h.failed[:min(n, 5)], "; "))
		}
	}
	if limit := memory * mebi * 14 / 10; most.anon > limit {
		t.Errorf("%d MiB of anonymous memory, want at most %d", most.anon/mebi, limit/mebi)
	}
	for kind, ends := range crawlers {
		ended := 0
		for end, n := range a.ends {
			if k, how, _ := strings.Cut(end, " "); k == kind && how != "moved" {
				if ended += n; !slices.Contains(ends, how) {
					t.Errorf("%d crawlers in the %s ended with %q, want %v", n, kind, how, ends)
				}
			}
		}
		if ended == 0 || a.begun[kind] < crowd/3 {
			t.Errorf("of %d crawlers in the %s %d were ended", a.begun[kind], kind, ended)
		}
	}
	if long() && beside.p99() > 2*alone.p99() {
		t.Errorf("p99 %v beside those that crawl, alone %v: more than twice", beside.p99(), alone.p99())
	}
	if got := c.get("large"); got.answer != acked || sha256.Sum256(got.body) != sumOf(t, newStream(large.seed, large.size)) {
		t.Errorf("the large object afterwards: %v", got)
	}
	s.stop()
}

func sumOf(t *testing.T, r io.Reader) (out [32]byte) {
	t.Helper()
	h := sha256.New()
	if _, err := io.Copy(h, r); err != nil {
		t.Fatal(err)
	}
	return [32]byte(h.Sum(nil))
}

// timeout is a context that ends by itself.
func timeout(t *testing.T, d time.Duration) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), d)
	t.Cleanup(cancel)
	return ctx
}
