package integration

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

const mebi = 1 << 20

// resident is what /proc says of a process, in bytes. Anon is what it holds
// itself: heap, stacks, the runtime's own. File is what it has mapped of files,
// badger's tables and logs and the program: pages of the system's cache, which
// takes them back when it needs them.
type resident struct{ anon, file, peak int64 }

func (s *server) resident() (resident, error) { return residentOf(s.cmd.Process.Pid) }

func residentOf(pid int) (r resident, err error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return r, err
	}
	for line := range strings.Lines(string(b)) {
		name, value, _ := strings.Cut(line, ":")
		n, err := strconv.ParseInt(strings.TrimSuffix(strings.TrimSpace(value), " kB"), 10, 64)
		if err != nil {
			continue // not a size
		}
		switch name {
		case "RssAnon", "RssShmem":
			r.anon += n << 10
		case "RssFile":
			r.file = n << 10
		case "VmHWM":
			r.peak = n << 10
		}
	}
	if r.anon == 0 {
		return r, errors.New("the system does not tell apart what is resident")
	}
	return r, nil
}

// watch looks every few milliseconds how much is resident; the result stops it
// and says how much was at most.
func (s *server) watch(t *testing.T) (stop func() resident) {
	t.Helper()
	if _, err := s.resident(); err != nil {
		t.Skipf("no figures of resident memory: %v", err)
	}
	return watchProcess(s.cmd.Process.Pid)
}

func watchProcess(pid int) (stop func() resident) {
	end, done := make(chan struct{}), make(chan struct{})
	var most resident
	go func() {
		defer close(done)
		for {
			if r, err := residentOf(pid); err == nil {
				most = resident{max(most.anon, r.anon), max(most.file, r.file), r.peak}
			}
			select {
			case <-end:
				return
			case <-time.After(10 * time.Millisecond):
			}
		}
	}()
	return func() resident {
		close(end)
		<-done
		return most
	}
}

// stream is a body that is made while it is read: blocks of 1 MiB, of which three
// of eight recur in all streams, one of eight is text and four are noise that no other
// stream has. It notes how long it was not read at most.
type stream struct {
	seed uint64
	size int64

	at    int64
	block []byte
	last  time.Time
	gap   time.Duration
	live  *atomic.Int64 // bytes read of all streams
}

func newStream(seed uint64, size int64) *stream {
	return &stream{seed: seed, size: size, block: make([]byte, mebi)}
}

// fill makes block n.
func (s *stream) fill(n int64) {
	rng := rand.New(rand.NewPCG(s.seed, uint64(n)))
	kind := rng.IntN(8)
	if kind < 3 {
		rng = rand.New(rand.NewPCG(42, rng.Uint64N(64)))
	}
	for i := 0; i < mebi; i += 8 {
		v := rng.Uint64()
		if kind == 3 {
			v = v&0x0f0f0f0f0f0f0f0f | 0x6060606060606060
		}
		for j := range 8 {
			s.block[i+j] = byte(v >> (8 * j))
		}
	}
}

func (s *stream) Read(p []byte) (int, error) {
	if now := time.Now(); s.live != nil {
		if !s.last.IsZero() {
			s.gap = max(s.gap, now.Sub(s.last))
		}
		defer func() { s.last = time.Now() }()
	}
	if s.at == s.size {
		return 0, io.EOF
	}
	if s.at%mebi == 0 {
		s.fill(s.at / mebi)
	}
	n := copy(p[:min(int64(len(p)), s.size-s.at)], s.block[s.at%mebi:])
	s.at += int64(n)
	if s.live != nil {
		s.live.Add(int64(n))
	}
	return n, nil
}

// send puts a stream.
func (c *client) send(key string, s *stream) reply {
	req, err := http.NewRequest(http.MethodPut, c.base+objectPath(key), s)
	if err != nil {
		return reply{answer: refused, err: err}
	}
	req.ContentLength = s.size
	req.Header.Set("Authorization", "Bearer "+c.token)
	resp, err := c.http.Do(req)
	if err != nil {
		return reply{answer: unknown, err: err}
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	out := reply{status: resp.StatusCode, body: b, err: err}
	if resp.StatusCode/100 != 2 {
		out.answer = unknown
		var p struct{ Type string }
		_ = json.Unmarshal(b, &p)
		out.kind = strings.TrimPrefix(p.Type, "urn:cairn:problem:")
	}
	return out
}

// slowly gets an object at rate bytes a second and compares it with what it must
// be. It returns how long nothing came at most, beyond its own pauses.
func (c *client) slowly(ctx context.Context, key string, want *stream, rate int) (gap time.Duration, n int64, err error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, c.base+objectPath(key), nil)
	if err != nil {
		return 0, 0, err
	}
	req.Header.Set("Authorization", "Bearer "+c.token)
	begin := time.Now()
	resp, err := c.http.Do(req)
	if err != nil {
		return 0, 0, err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return 0, 0, fmt.Errorf("status %d", resp.StatusCode)
	}
	gap = time.Since(begin)
	const step = 64 << 10
	got, should := make([]byte, step), make([]byte, step)
	next := time.Now()
	for {
		begin := time.Now()
		m, err := io.ReadFull(resp.Body, got)
		gap = max(gap, time.Since(begin))
		if _, werr := io.ReadFull(want, should[:m]); werr != nil && m > 0 || !bytes.Equal(got[:m], should[:m]) {
			return gap, n, fmt.Errorf("other bytes at %d to %d", n, n+int64(m))
		}
		n += int64(m)
		if err == io.EOF || err == io.ErrUnexpectedEOF {
			if n != want.size {
				return gap, n, fmt.Errorf("%d bytes of %d", n, want.size)
			}
			return gap, n, nil
		}
		if err != nil {
			return gap, n, err
		}
		next = next.Add(step * time.Second / time.Duration(rate))
		select {
		case <-time.After(time.Until(next)):
		case <-ctx.Done():
			return gap, n, nil // enough
		}
	}
}

// narrowClient has connections that take little in advance, as one over a slow
// line.
func (s *server) narrowClient() *client {
	t := &http.Transport{DisableCompression: true, MaxConnsPerHost: 0, MaxIdleConnsPerHost: 64, ReadBufferSize: 64 << 10, DialContext: func(ctx context.Context, network, addr string) (net.Conn, error) {
		c, err := (&net.Dialer{Timeout: 30 * time.Second}).DialContext(ctx, network, addr)
		if tc, ok := c.(*net.TCPConn); ok {
			_ = tc.SetReadBuffer(64 << 10) // what it is for holds with more too
		}
		return c, err
	}}
	return &client{base: s.url, token: s.token, http: &http.Client{Transport: t}}
}

// metrics reads the gauges of shares.
func (c *client) metrics(t *testing.T) map[string]float64 {
	t.Helper()
	r := c.do(http.MethodGet, "/metrics", nil, nil)
	if r.status != http.StatusOK {
		t.Errorf("GET /metrics: %v", r)
	}
	out := map[string]float64{}
	lines := bufio.NewScanner(bytes.NewReader(r.body))
	for lines.Scan() {
		name, value, ok := strings.Cut(lines.Text(), "} ")
		if !ok {
			name, value, ok = strings.Cut(lines.Text(), " ")
		} else {
			name += "}"
		}
		if v, err := strconv.ParseFloat(value, 64); ok && err == nil && !strings.HasPrefix(name, "#") {
			out[name] = v
		}
	}
	return out
}

// TestMemoryIsBounded: 32 uploads at once, as fast as they go, and 32 readers at
// 1 MiB/s stay within what the server was given, and none starves (H51). What is
// judged is anonymous memory, which is what the process holds itself; what it has
// mapped of files is reported beside it. The store's figures never exceed its
// shares. CAIRN_LONG=1 makes uploads of 1 GiB.
func TestMemoryIsBounded(t *testing.T) {
	const memory, clients = 512 * mebi, 32
	size, stored := int64(rounds(16, 48, 1024))*mebi, int64(24*mebi)
	rng := newRand(t)
	r := newRig(t)
	s := r.start("--memory", "512MiB")
	stop := s.watch(t)
	c := s.client()
	defer c.close()

	read := rng.Uint64()
	for i := range uint64(4) {
		if got := c.send(fmt.Sprintf("stored/%d", i), newStream(read+i, stored)); got.status/100 != 2 {
			t.Fatalf("put: %v", got)
		}
	}
	var (
		wg      sync.WaitGroup
		live    atomic.Int64
		gaps    = make([]time.Duration, 2*clients)
		ctx, ok = context.WithCancel(t.Context())
		got     atomic.Int64
	)
	defer ok()
	narrow := s.narrowClient()
	defer narrow.close()
	for i := range clients {
		wg.Go(func() {
			for ctx.Err() == nil {
				n := uint64(i % 4)
				gap, n64, err := narrow.slowly(ctx, fmt.Sprintf("stored/%d", n), newStream(read+n, stored), mebi)
				gaps[clients+i] = max(gaps[clients+i], gap)
				got.Add(n64)
				if err != nil && ctx.Err() == nil {
					t.Errorf("reader %d: %v", i, err)
					return
				}
			}
		})
	}
	first := rng.Uint64()
	begin := time.Now()
	// A disk that is busy with other things makes nodes lag, and then too few take
	// writes for a moment: that is not what is asked here.
	var lagged atomic.Int64
	lags := func(got reply) bool {
		if got.kind == "unavailable" || got.kind == "outcome-unknown" || got.kind == "try-again" {
			return lagged.Add(1) < 200
		}
		return false
	}
	var uploads sync.WaitGroup
	for i := range clients {
		uploads.Go(func() {
			for {
				b := newStream(first+uint64(i), size)
				b.live = &live
				got := c.send(fmt.Sprintf("up/%d", i), b)
				gaps[i] = max(gaps[i], b.gap)
				if got.status/100 == 2 {
					return
				}
				if !lags(got) {
					t.Errorf("upload %d: %v after %v", i, got, time.Since(begin))
					return
				}
			}
		})
	}
	// Small objects pass by what is large.
	var worst time.Duration
	uploaded := make(chan struct{})
	go func() { uploads.Wait(); close(uploaded) }()
	for i, going := 0, true; going; i++ {
		begin := time.Now()
		if got := c.put(fmt.Sprintf("small/%d", i%10), []byte(strings.Repeat("small ", 500))); got.answer != acked && !lags(got) {
			t.Errorf("a small put beside large ones: %v", got)
		}
		worst = max(worst, time.Since(begin))
		if i%4 == 0 {
			m := c.metrics(t)
			for name, v := range m {
				if share, ok := strings.CutPrefix(name, "cairn_memory_used_bytes{"); ok && v > m["cairn_memory_limit_bytes{"+share] {
					t.Errorf("share %s holds %.0f bytes, has %.0f", share, v, m["cairn_memory_limit_bytes{"+share])
				}
			}
		}
		select {
		case <-uploaded:
			going = false
		case <-time.After(200 * time.Millisecond):
		}
	}
	took := time.Since(begin)
	ok()
	wg.Wait()
	most := stop()
	up, down := slices.Max(gaps[:clients]), slices.Max(gaps[clients:])
	t.Logf("%d MiB uploaded in %v (%.0f MB/s), %d MiB read; longest silence of an upload %v, of a reader %v; slowest small put %v; %d answers that too few nodes were up",
		live.Load()/mebi, took.Round(time.Millisecond), float64(live.Load())/1e6/took.Seconds(), got.Load()/mebi, up, down, worst, lagged.Load())
	t.Logf("resident at most: anonymous %d MiB, of files %d MiB, together %d MiB at once", most.anon/mebi, most.file/mebi, most.peak/mebi)
	if limit := int64(memory * 14 / 10); most.anon > limit {
		t.Errorf("%d MiB of anonymous memory with --memory 512MiB, want at most %d", most.anon/mebi, limit/mebi)
	}
	// All share two processors with the clients; that nobody is left standing shows.
	const patience = 30 * time.Second
	for what, d := range map[string]time.Duration{"an upload was not read": up, "a reader got nothing": down, "a small put took": worst} {
		if d > patience {
			t.Errorf("%s for %v, want at most %v", what, d, patience)
		}
	}
	for name, v := range c.metrics(t) {
		if strings.HasPrefix(name, "cairn_memory_refused_total") && v > 0 {
			t.Errorf("%s is %v", name, v)
		}
	}
	s.stop()
}

// TestIdleAndSlowClients: a thousand connections that send nothing, a byte now
// and then, or half a request hold little memory and nobody up (H67).
func TestIdleAndSlowClients(t *testing.T) {
	r := newRig(t)
	s := r.start("--memory", "512MiB")
	c := s.client()
	defer c.close()
	rng := newRand(t)
	object := newStream(rng.Uint64(), 8*mebi)
	if got := c.send("object", object); got.status/100 != 2 {
		t.Fatalf("put: %v", got)
	}
	// What honest clients see, alone and beside the others.
	honest := func() (put, get time.Duration) {
		for i := range 20 {
			begin := time.Now()
			if got := c.put(fmt.Sprintf("honest/%d", i), []byte("a few bytes")); got.answer != acked {
				t.Errorf("put: %v", got)
			}
			put = max(put, time.Since(begin))
			begin = time.Now()
			if got := c.get("object"); got.answer != acked || got.err != nil || len(got.body) != 8*mebi {
				t.Errorf("get: %v, %d bytes", got, len(got.body))
			}
			get = max(get, time.Since(begin))
		}
		if got := c.send("honest/large", newStream(rng.Uint64(), 16*mebi)); got.status/100 != 2 {
			t.Errorf("put of 16 MiB: %v", got)
		}
		return put, get
	}
	stop := s.watch(t)
	honest()
	putAlone, getAlone := honest()
	alone := stop()
	before, err := s.resident()
	if err != nil {
		t.Fatal(err)
	}
	const clients = 1000
	auth := "Host: localhost\r\nAuthorization: Bearer " + s.token + "\r\n"
	starts := []string{
		"",                     // nothing
		"PUT /v1/buckets/main", // half a request
		"PUT " + objectPath("slow") + " HTTP/1.1\r\n" + auth + "Content-Length: 100000\r\n\r\nx",
		"PUT " + objectPath("slow") + " HTTP/1.1\r\n" + auth + "Content-Length: 5000000000\r\n\r\nx",
		"PUT " + objectPath("slow") + " HTTP/1.1\r\n" + auth + "Transfer-Encoding: chunked\r\n\r\n1\r\nx\r\n",
		"GET /healthz HTTP/1.1\r\n" + auth + "\r\n", // served, then idle
		"POST /cargar HTTP/1.1\r\n" + auth + "Content-Type: multipart/form-data; boundary=b\r\nContent-Length: 100000\r\n\r\n--b\r\n",
	}
	var conns []net.Conn
	defer func() {
		for _, c := range conns {
			c.Close()
		}
	}()
	address := strings.TrimPrefix(s.url, "http://")
	connect := func(start string) {
		t.Helper()
		conn, err := net.DialTimeout("tcp", address, 30*time.Second)
		if err != nil {
			t.Fatalf("connection %d: %v", len(conns), err)
		}
		conns = append(conns, conn)
		_ = conn.(*net.TCPConn).SetReadBuffer(16 << 10)
		if _, err := io.WriteString(conn, start); err != nil {
			t.Fatalf("connection %d: %v", len(conns), err)
		}
	}
	for i := range clients {
		connect(starts[i%len(starts)])
	}
	time.Sleep(time.Second) // what they hold now they hold for long
	after, err := s.resident()
	if err != nil {
		t.Fatal(err)
	}
	// These hold a chunk each, and take nothing of it.
	for range 50 {
		connect("GET " + objectPath("object") + " HTTP/1.1\r\n" + auth + "\r\n")
	}
	stop = s.watch(t)
	begin := time.Now()
	put, get := honest()
	took := time.Since(begin)
	m := c.metrics(t)
	most, more := stop(), after.anon-before.anon
	t.Logf("alone: slowest put %v, get %v; beside %d others: %v, %v; anonymous memory at most %d MiB alone, %d MiB beside them; they take %d MiB; %.0f bytes of connections",
		putAlone, getAlone, clients, put, get, alone.anon/mebi, most.anon/mebi, more/mebi, m[`cairn_memory_used_bytes{share="connections"}`])
	if more > 64*mebi || most.anon > 512*mebi {
		t.Errorf("a thousand connections take %d MiB, and %d MiB are resident", more/mebi, most.anon/mebi)
	}
	if took > 25*time.Second {
		t.Errorf("honest clients take %v beside idle ones", took)
	}
	if n := m[`cairn_memory_used_bytes{share="connections"}`]; n < clients*1024 {
		t.Errorf("%d connections count as %.0f bytes", clients, n)
	}
	for _, share := range []string{"streams", "uploads", "small"} {
		if used := m[fmt.Sprintf(`cairn_memory_used_bytes{share=%q}`, share)]; used > 64<<10 {
			t.Errorf("clients that send nothing hold %.0f bytes of %s", used, share)
		}
	}
	s.kill() // the idle ones would be waited for
}

// TestLittleMemory: with the least memory there can be everything works, if not
// all at once: uploads and readers, of which those beyond the places are refused
// and come again, a lost node, its repair, and a proof of what is stored.
func TestLittleMemory(t *testing.T) {
	const memory, clients = 128 * mebi, 8
	size := int64(rounds(4, 12, 128)) * mebi
	rng := newRand(t)
	r := newRig(t)
	s := r.start("--memory", "128MiB")
	stop := s.watch(t)
	c := s.client()
	defer c.close()
	// persist puts a stream until it is not refused any more.
	persist := func(key string, seed uint64) {
		for end := time.Now().Add(3 * time.Minute); ; {
			got := c.send(key, newStream(seed, size))
			if got.status/100 == 2 {
				return
			}
			if got.kind != "busy" || time.Now().After(end) {
				t.Errorf("put: %v", got)
				return
			}
		}
	}
	first := rng.Uint64()
	var wg sync.WaitGroup
	for i := range uint64(clients) {
		wg.Go(func() { persist(fmt.Sprintf("k%d", i), first+i) })
	}
	wg.Wait()
	if t.Failed() {
		return
	}
	if err := os.RemoveAll(r.node("n02")); err != nil {
		t.Fatal(err)
	}
	for i := range uint64(clients) {
		wg.Go(func() { // degraded, at full speed
			if _, n, err := c.slowly(t.Context(), fmt.Sprintf("k%d", i), newStream(first+i, size), 1<<40); err != nil {
				t.Errorf("get: %v after %d bytes", err, n)
			}
		})
		wg.Go(func() { persist(fmt.Sprintf("more%d", i), first+100+i) })
	}
	wg.Wait()
	r.replaceAndHeal("n02")
	for i := range uint64(clients) {
		wg.Go(func() {
			if _, n, err := c.slowly(t.Context(), fmt.Sprintf("more%d", i), newStream(first+100+i, size), 1<<40); err != nil {
				t.Errorf("get: %v after %d bytes", err, n)
			}
		})
	}
	wg.Wait()
	most := stop()
	t.Logf("resident at most: anonymous %d MiB, of files %d MiB", most.anon/mebi, most.file/mebi)
	if limit := int64(memory * 14 / 10); most.anon > limit {
		t.Errorf("%d MiB of anonymous memory with --memory 128MiB, want at most %d", most.anon/mebi, limit/mebi)
	}
	s.stop()
	r.verify()
}
