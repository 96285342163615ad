package rest

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"cairn/store"
)

// listening is a face over the real store, for streams.
type listening struct {
	*engine
	f    *face
	stop chan struct{}
	doc  *document
}

func newListening(t *testing.T, c Config) *listening {
	t.Helper()
	l := &listening{engine: newEngine(t), stop: make(chan struct{}), doc: readDocument(t)}
	c.Store, c.Token, c.Stopping = l.st, testToken, l.stop
	f, e, err := build(c)
	if err != nil {
		t.Fatal(err)
	}
	l.f, l.handler = f, f.guard(e)
	srv := httptest.NewServer(l.handler)
	t.Cleanup(srv.Close)
	l.url = srv.URL
	return l
}

// stream is what a client reads.
type stream struct {
	t    *testing.T
	l    *listening
	resp *http.Response
	r    *bufio.Reader
	last string // id
}

type sent struct {
	id, name string
	data     struct {
		Time time.Time
		Job  *jobJSON
	}
	raw string
}

func (l *listening) open(t *testing.T, last string) *stream {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	t.Cleanup(cancel)
	req, err := http.NewRequestWithContext(ctx, "GET", l.url+eventsPath, nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+testToken)
	if last != "" {
		req.Header.Set("Last-Event-ID", last)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { resp.Body.Close() })
	if resp.StatusCode != 200 || resp.Header.Get("Content-Type") != "text/event-stream" || resp.Header.Get("Cache-Control") != "no-store" {
		t.Fatalf("%s, %v", resp.Status, resp.Header)
	}
	s := &stream{t: t, l: l, resp: resp, r: bufio.NewReader(resp.Body)}
	lines, err := s.block()
	if err != nil || len(lines) != 2 || lines[0] != "retry: 3000" || !strings.HasPrefix(lines[1], "id: ") {
		t.Fatalf("a stream begins with %q, %v", lines, err)
	}
	s.last = lines[1][4:]
	return s
}

// block reads lines to an empty one.
func (s *stream) block() (lines []string, err error) {
	for {
		line, err := s.r.ReadString('\n')
		if err != nil {
			if line != "" || len(lines) > 0 {
				s.t.Errorf("a stream ends in the middle of %q", append(lines, line))
			}
			return nil, err
		}
		if line = strings.TrimSuffix(line, "\n"); line == "" {
			return lines, nil
		}
		lines = append(lines, line)
	}
}

// next reads the next event, heartbeats passed over.
func (s *stream) next() (e sent, err error) {
	for {
		lines, err := s.block()
		if err != nil {
			return e, err
		}
		if len(lines) == 1 && lines[0] == ":" {
			continue
		}
		if len(lines) != 3 || !strings.HasPrefix(lines[0], "id: ") || !strings.HasPrefix(lines[1], "event: ") || !strings.HasPrefix(lines[2], "data: ") {
			s.t.Fatalf("an event is %q", lines)
		}
		e.id, e.name, e.raw = lines[0][4:], lines[1][7:], lines[2][6:]
		var v any
		if err := json.Unmarshal([]byte(e.raw), &v); err != nil {
			s.t.Fatal(err)
		}
		for _, fault := range s.l.doc.faults(e.name, &schema{Ref: "#/components/schemas/Event"}, v) {
			s.t.Error(fault)
		}
		s.last = e.id
		return e, json.Unmarshal([]byte(e.raw), &e.data)
	}
}

// of reads to the end of a run and returns the names of its events.
func (s *stream) of(job string) (names []string) {
	s.t.Helper()
	for {
		e, err := s.next()
		if err != nil {
			s.t.Fatalf("after %q: %v", names, err)
		}
		if e.data.Job != nil && e.data.Job.ID == job {
			names = append(names, e.name)
			if e.name == store.EventJobEnded {
				return names
			}
		}
	}
}

// start runs a job to its end, and returns its ID.
func (l *listening) start() string {
	l.t.Helper()
	for {
		j, err := l.st.StartJob(context.Background(), store.JobCheckIndex, store.JobOptions{})
		if j.ID.IsZero() {
			l.t.Fatal(err)
		}
		for limit := time.Now().Add(time.Minute); ; time.Sleep(100 * time.Microsecond) {
			got, jerr := l.st.Job(context.Background(), j.ID)
			if jerr != nil || time.Now().After(limit) {
				l.t.Fatalf("%+v, %v", got, jerr)
			}
			if got.State != store.JobRunning {
				break
			}
		}
		if err == nil { // else it was that of the start
			return j.ID.String()
		}
	}
}

// TestEventStream: who listens gets what happens in its order, who comes back what
// happened meanwhile, and who cannot get that is told.
func TestEventStream(t *testing.T) {
	l := newListening(t, Config{})
	s := l.open(t, "")
	first := s.last
	both := "[job-started job-ended]"
	j := l.start()
	if got := fmt.Sprint(s.of(j)); got != both {
		t.Errorf("of the first run %s, want %s", got, both)
	}
	at := s.last
	s.resp.Body.Close()
	k := l.start()
	back := l.open(t, at)
	if back.last != at {
		t.Errorf("who comes back at %s begins at %s", at, back.last)
	}
	if e, err := back.next(); err != nil || e.data.Job == nil || e.data.Job.ID != k {
		t.Errorf("the first that comes is %+v, %v; want the second run", e, err)
	}
	if back = l.open(t, first); fmt.Sprint(back.of(j), back.of(k)) != both+" "+both {
		t.Error("who comes back to the beginning does not get both runs")
	}
	for _, unknown := range []string{"other-7", "nonsense", first + "99999"} {
		back := l.open(t, unknown)
		if e, err := back.next(); err != nil || e.name != store.EventMissed {
			t.Errorf("after %s: %+v, %v; want that some are missed", unknown, e, err)
		}
		if got := fmt.Sprint(back.of(k)); got != both {
			t.Errorf("after those that were missed: %s", got)
		}
	}
	// A node whose directory goes away.
	if err := l.fs[2].RemoveAll("node.json"); err != nil {
		t.Fatal(err)
	}
	l.want(200, "GET", "/v1/status", nil)
	for {
		e, err := back.next()
		if err != nil {
			t.Fatal(err)
		}
		if e.name == store.EventNode {
			if !strings.Contains(e.raw, `"node":"n03","state":"missing","reason":"`) {
				t.Errorf("of a lost node: %s", e.raw)
			}
			break
		}
	}
	l.want(400, "GET", eventsPath+"?x=1", nil)
	if h, b := l.want(200, "HEAD", eventsPath, nil); h.Get("Content-Type") != "text/event-stream" || len(b) > 0 {
		t.Errorf("HEAD: %v, %q", h, b)
	}
}

// TestHeartbeat: a stream on which nothing happens says that it is there.
func TestHeartbeat(t *testing.T) {
	l := newListening(t, Config{})
	l.start() // so that the check of the start is over
	l.f.heartbeat = 10 * time.Millisecond
	s := l.open(t, "")
	beats := 0
	for beats < 3 {
		lines, err := s.block()
		if err != nil {
			t.Fatal(err)
		}
		if len(lines) == 1 && lines[0] == ":" {
			beats++
		}
	}
}

// TestStreamsHaveTheirOwnPlaces: so many and no more, and none of a request's.
func TestStreamsHaveTheirOwnPlaces(t *testing.T) {
	l := newListening(t, Config{InFlight: 1, Listeners: 2})
	a := l.open(t, "")
	l.open(t, "")
	h, b := l.want(503, "GET", eventsPath, nil)
	l.doc.checkAnswer(t, "GET", eventsPath, 503, h, b)
	if h.Get("Retry-After") == "" {
		t.Error("no Retry-After")
	}
	l.want(200, "GET", "/v1/status", nil)
	l.want(200, "HEAD", eventsPath, nil)
	a.resp.Body.Close()
	for limit := time.Now().Add(time.Minute); ; time.Sleep(time.Millisecond) {
		ctx, cancel := context.WithCancel(context.Background())
		req, _ := http.NewRequestWithContext(ctx, "GET", l.url+eventsPath, nil)
		req.Header.Set("Authorization", "Bearer "+testToken)
		resp, err := http.DefaultClient.Do(req)
		cancel()
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if resp.StatusCode == 200 {
			break
		}
		if time.Now().After(limit) {
			t.Fatal("a client that has left keeps its place")
		}
	}
}

// TestStreamsEndWithTheServer: at once, whole, with what has happened until then;
// there are no others.
func TestStreamsEndWithTheServer(t *testing.T) {
	l := newListening(t, Config{})
	s := l.open(t, "")
	j := l.start()
	close(l.stop)
	if got := len(s.of(j)); got != 2 {
		t.Errorf("%d events, want 2", got)
	}
	for {
		if _, err := s.next(); err == io.EOF {
			break
		} else if err != nil {
			t.Fatal(err)
		}
	}
	h, b := l.want(503, "GET", eventsPath, nil)
	l.doc.checkAnswer(t, "GET", eventsPath, 503, h, b)
}

// stuckWriter is a connection that takes nothing from its second write on until it is let
// go.
type stuckWriter struct {
	*httptest.ResponseRecorder
	entered chan struct{}
	free    chan struct{}
	writes  int
}

func (s *stuckWriter) Write(b []byte) (int, error) {
	if s.writes++; s.writes == 2 {
		close(s.entered)
		<-s.free
	}
	return s.ResponseRecorder.Write(b)
}

// TestSlowListenerIsDropped: a client that takes nothing stops nobody, and loses its
// stream when it has fallen too far behind.
func TestSlowListenerIsDropped(t *testing.T) {
	l := newListening(t, Config{})
	l.start()
	w := &stuckWriter{ResponseRecorder: httptest.NewRecorder(), entered: make(chan struct{}), free: make(chan struct{})}
	req := httptest.NewRequest("GET", "http://localhost"+eventsPath, nil)
	req.Header.Set("Authorization", "Bearer "+testToken)
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		l.handler.ServeHTTP(w, req)
	}()
	for stuck := false; !stuck; {
		l.start()
		select {
		case <-w.entered:
			stuck = true
		default:
		}
	}
	first := l.st.Listen("")
	for range 600 { // two events each, and 1,024 are kept
		l.start()
	}
	if _, err := first.Next(t.Context()); err != store.ErrSlow {
		t.Fatalf("too few events for this test: %v", err)
	}
	close(w.free)
	select {
	case <-ended:
	case <-time.After(time.Minute):
		t.Fatal("it still has its stream")
	}
	if n := strings.Count(w.Body.String(), "\nevent: "); n > 100 || w.Code != 200 {
		t.Errorf("%d, %d events", w.Code, n)
	}
}
