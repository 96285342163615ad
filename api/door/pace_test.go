package door

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"cairn/store/budget"
)

// quick is a pace that tests can wait for: 1,000 bytes a second after 300 ms.
var quick = pace{grace: 300 * time.Millisecond, rate: 1000}

func pacedServer(t *testing.T, h http.HandlerFunc) net.Addr {
	t.Helper()
	srv := httptest.NewServer(paced(quick, h))
	t.Cleanup(srv.Close)
	return srv.Listener.Addr()
}

// TestSlowSendersAreCutOff: a byte now and then does not hold a connection, a
// slow but steady client is served, and the time of the handler is not the
// client's.
func TestSlowSendersAreCutOff(t *testing.T) {
	got := make(chan error, 1)
	addr := pacedServer(t, func(w http.ResponseWriter, r *http.Request) {
		n, err := io.Copy(io.Discard, r.Body)
		if err == nil && n != r.ContentLength {
			err = fmt.Errorf("%d bytes of %d", n, r.ContentLength)
		}
		got <- err
	})
	send := func(bytes int, pieces int, pause time.Duration) {
		c, err := net.Dial("tcp", addr.String())
		if err != nil {
			got <- err
			return
		}
		defer c.Close()
		fmt.Fprintf(c, "PUT / HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n", bytes)
		for range pieces {
			time.Sleep(pause)
			if _, err := io.WriteString(c, strings.Repeat("x", bytes/pieces)); err != nil {
				return
			}
		}
		if resp, err := http.ReadResponse(bufio.NewReader(c), nil); err == nil {
			resp.Body.Close()
		}
	}
	go send(1000, 1000, 50*time.Millisecond) // 20 bytes a second
	select {
	case err := <-got:
		if !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("20 bytes a second, when 1,000 are asked for: %v, want a timeout", err)
		}
	case <-time.After(10 * time.Second):
		t.Error("20 bytes a second hold a connection for 10 s")
	}
	go send(4000, 20, 50*time.Millisecond) // 4,000 bytes a second
	if err := <-got; err != nil {
		t.Errorf("4,000 bytes a second: %v", err)
	}
}

func TestHandlersTimeIsNotTheClients(t *testing.T) {
	var left atomic.Bool
	addr := pacedServer(t, func(w http.ResponseWriter, r *http.Request) {
		if _, err := io.CopyN(io.Discard, r.Body, 10); err != nil {
			t.Error(err)
		}
		time.Sleep(2 * quick.grace)
		if _, err := io.Copy(io.Discard, r.Body); err != nil {
			t.Errorf("after a pause of the handler: %v", err)
		}
		time.Sleep(2 * quick.grace) // as a put that waits for its nodes
		left.Store(r.Context().Err() != nil)
		fmt.Fprint(w, "done")
	})
	for range 2 { // on one connection
		req, err := http.NewRequest("PUT", "http://"+addr.String(), strings.NewReader(strings.Repeat("x", 100)))
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Expect", "100-continue") // answered before the handler writes
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		b, err := io.ReadAll(resp.Body)
		resp.Body.Close()
		if err != nil || string(b) != "done" || left.Load() {
			t.Errorf("%q, %v; taken for gone: %v", b, err, left.Load())
		}
		time.Sleep(2 * quick.grace) // the next request finds no deadline of this one
	}
}

// TestStreamsMayBeSilent: an answer that is sent now and then, and longer than a client
// may pause, goes on.
func TestStreamsMayBeSilent(t *testing.T) {
	t.Parallel()
	addr := pacedServer(t, func(w http.ResponseWriter, r *http.Request) {
		rc := http.NewResponseController(w)
		for i := range 3 {
			if i > 0 {
				time.Sleep(2 * quick.grace)
			}
			if _, err := fmt.Fprint(w, i); err != nil || rc.Flush() != nil || r.Context().Err() != nil {
				t.Errorf("after %d: %v", i, err)
			}
		}
	})
	resp, err := http.Get("http://" + addr.String())
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if b, err := io.ReadAll(resp.Body); err != nil || string(b) != "012" {
		t.Errorf("%q, %v", b, err)
	}
}

// TestSlowReadersAreCutOff: a client that does not take its answer loses it.
func TestSlowReadersAreCutOff(t *testing.T) {
	got := make(chan error, 1)
	addr := pacedServer(t, func(w http.ResponseWriter, r *http.Request) {
		b := make([]byte, 256)
		var err error
		for n := 0; n < 64<<20 && err == nil; n += len(b) {
			_, err = w.Write(b)
		}
		got <- err
	})
	c, err := net.Dial("tcp", addr.String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	fmt.Fprint(c, "GET / HTTP/1.1\r\nHost: x\r\n\r\n")
	select {
	case err := <-got:
		if err == nil {
			t.Error("64 MiB went to a client that reads nothing")
		}
	case <-time.After(10 * time.Second):
		t.Error("a client that reads nothing holds its answer for 10 s")
	}
}

// TestConnectionsAreCounted: no more than so many at a time, and each place is
// given back once.
func TestConnectionsAreCounted(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	memory := budget.NewShare("connections", 2*budget.Connection, 1)
	limited := New(memory).Listen([]net.Listener{l})[0]
	accepted := make(chan net.Conn)
	ended := make(chan error, 1)
	go func() {
		for {
			c, err := limited.Accept()
			if err != nil {
				ended <- err
				return
			}
			accepted <- c
		}
	}()
	dial := func() net.Conn {
		c, err := net.Dial("tcp", l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		return c
	}
	for range 3 {
		dial()
	}
	first := <-accepted
	<-accepted
	select {
	case <-accepted:
		t.Error("a third connection while two are open")
	case <-time.After(100 * time.Millisecond):
	}
	first.Close()
	first.Close() // gives nothing back
	select {
	case <-accepted:
	case <-time.After(5 * time.Second):
		t.Fatal("no connection although one was closed")
	}
	dial()
	select {
	case <-accepted:
		t.Error("closing twice gave two places back")
	case <-time.After(100 * time.Millisecond):
	}
	limited.Close() // while Accept waits for a place
	select {
	case <-ended:
	case <-time.After(5 * time.Second):
		t.Error("Accept does not end with its listener")
	}
}

// TestAnswerBeforeTheBody: who is refused hears so at once, also a client that waits
// to be asked for its body, or never sends it; and holds no connection by it.
func TestAnswerBeforeTheBody(t *testing.T) {
	t.Parallel()
	srv := httptest.NewServer(paced(pace{grace: 300 * time.Millisecond, rate: 1 << 20}, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.WriteHeader(http.StatusUnauthorized)
	})))
	t.Cleanup(srv.Close)
	for name, head := range map[string]string{
		"waits to be asked":       "Content-Length: 6\r\nExpect: 100-continue\r\n",
		"long, waits to be asked": "Content-Length: 6000000\r\nExpect: 100-continue\r\n",
		"long, never sent":        "Content-Length: 6000000\r\n",
		"short, never sent":       "Content-Length: 6\r\n",
		"chunked, never sent":     "Transfer-Encoding: chunked\r\n",
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			conn, err := net.Dial("tcp", strings.TrimPrefix(srv.URL, "http://"))
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			if err := conn.SetDeadline(time.Now().Add(20 * time.Second)); err != nil {
				t.Fatal(err)
			}
			fmt.Fprintf(conn, "PUT / HTTP/1.1\r\nHost: localhost\r\n%s\r\n", head)
			b, err := io.ReadAll(conn) // to its end: the connection is given up
			if err != nil || !strings.HasPrefix(string(b), "HTTP/1.1 401 ") {
				t.Errorf("%q, %v", b, err)
			}
		})
	}
}
