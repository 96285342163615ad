package door

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"cairn/store/budget"
)

// crowded serves on a listener with room for so many connections.
func crowded(t *testing.T, places int64, h http.HandlerFunc) (*Door, string) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	c := New(budget.NewShare("connections", places*budget.Connection, 1))
	srv := &http.Server{Handler: paced(defaultPace, h), ConnContext: inContext, ConnState: between, ReadHeaderTimeout: time.Minute}
	ended := make(chan error, 1)
	go func() { ended <- srv.Serve(c.Listen([]net.Listener{l})[0]) }()
	t.Cleanup(func() {
		srv.Close()
		<-ended
	})
	return c, l.Addr().String()
}

// TestCrowdMakesRoom: when places get few, who stands still is given up for who
// comes, each as it is due; who is served or was not waited for long stays.
func TestCrowdMakesRoom(t *testing.T) {
	const places = 8
	held, letGo := make(chan struct{}), make(chan struct{})
	defer close(letGo)
	_, addr := crowded(t, places, func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/hold": // the server's own time
			close(held)
			<-letGo
		case "/large":
			for b := make([]byte, 64<<10); ; {
				if _, err := w.Write(b); err != nil {
					return
				}
			}
		}
		if _, err := io.Copy(io.Discard, r.Body); err != nil {
			w.WriteHeader(http.StatusRequestTimeout)
			return
		}
		fmt.Fprint(w, "ok")
	})
	open := func(start string) net.Conn {
		t.Helper()
		c, err := net.Dial("tcp", addr)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		_ = c.SetDeadline(time.Now().Add(time.Minute))
		if _, err := io.WriteString(c, start); err != nil {
			t.Fatal(err)
		}
		return c
	}
	working := open("GET /hold HTTP/1.1\r\nHost: x\r\n\r\n")
	<-held
	still := map[string]net.Conn{
		"sends nothing":     open(""),
		"half a header":     open("GET / HTTP/1.1\r\nX: "),
		"half a body":       open("PUT / HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\nhalf"),
		"takes no answer":   open("GET /large HTTP/1.1\r\nHost: x\r\n\r\n"),
		"served, then idle": open("GET / HTTP/1.1\r\nHost: x\r\n\r\n"),
	}
	if err := served(still["served, then idle"]); err != nil {
		t.Fatalf("before it is crowded: %v", err)
	}
	time.Sleep(2 * patience)
	for range 2 * places { // these are answered, each on a connection of its own, which stays
		c := open("GET / HTTP/1.1\r\nHost: x\r\n\r\n")
		if err := served(c); err != nil {
			t.Fatalf("a client that comes to a crowd: %v", err)
		}
	}
	for what, c := range still {
		b := make([]byte, 12)
		switch what {
		case "takes no answer":
			if n, err := io.Copy(io.Discard, c); err == nil {
				t.Errorf("%s: %d bytes and an end as if that were all", what, n)
			}
		case "half a body":
			if n, _ := io.ReadFull(c, b); string(b[:n]) != "HTTP/1.1 408" {
				t.Errorf("%s: %q, want 408", what, b[:n])
			}
		case "served, then idle":
			if _, err := io.Copy(io.Discard, c); err != nil && !strings.Contains(err.Error(), "reset") {
				t.Errorf("%s: %v", what, err)
			}
		default:
			if n, _ := io.ReadFull(c, b); n > 0 {
				t.Errorf("%s: it is answered %q", what, b[:n])
			}
		}
	}
	letGo <- struct{}{}
	if err := served(working); err != nil {
		t.Errorf("what the server worked for: %v", err)
	}
}

// served reads an answer, which must be a 200.
func served(c net.Conn) error {
	resp, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return errors.New(resp.Status)
	}
	return nil
}

// TestGivenUpIsTakenBack: a body that came whole before its client was given up is
// what the client sent.
func TestGivenUpIsTakenBack(t *testing.T) {
	here, there := net.Pipe()
	defer here.Close()
	defer there.Close()
	c := New(budget.NewShare("connections", 4*budget.Connection, 1))
	if err := c.place(t.Context()); err != nil {
		t.Fatal(err)
	}
	g := c.join(here)
	before := time.Now()
	g.awaited(inBody, before.Add(-time.Second))
	if g.giveUp(before); !g.given {
		t.Fatal("it was not given up")
	}
	_ = g.SetReadDeadline(time.Time{})
	if _, err := g.Read(make([]byte, 1)); err == nil {
		t.Error("a connection that was given up gets more time")
	}
	g.served()
	g.forgiven()
	go func() { _, _ = there.Write([]byte("x")) }()
	if _, err := g.Read(make([]byte, 1)); err != nil {
		t.Errorf("after it was taken back: %v", err)
	}
	g.awaited(inBody, before)
	if g.giveUp(before); g.given {
		t.Error("it is given up although it is waited for since that moment only")
	}
}

// TestFullHouseTakesTurns: of clients that ask without a pause, more than there are
// places for, each is served; none is cut off in the middle.
func TestFullHouseTakesTurns(t *testing.T) {
	const places, clients = 4, 12
	_, addr := crowded(t, places, func(w http.ResponseWriter, r *http.Request) {
		time.Sleep(5 * time.Millisecond)
		fmt.Fprint(w, "ok")
	})
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	var waits, all sync.WaitGroup
	waits.Add(clients)
	for i := range clients {
		all.Go(func() {
			c := &http.Client{Transport: &http.Transport{}}
			defer c.CloseIdleConnections()
			for n := 0; ctx.Err() == nil; n++ {
				req, err := http.NewRequestWithContext(ctx, "PUT", "http://"+addr, strings.NewReader("body"))
				if err != nil {
					t.Error(err)
					return
				}
				resp, err := c.Do(req)
				if err != nil {
					if ctx.Err() == nil || n == 0 {
						t.Errorf("client %d, request %d: %v", i, n, err)
					}
					if n == 0 {
						waits.Done()
					}
					return
				}
				_, _ = io.Copy(io.Discard, resp.Body)
				resp.Body.Close()
				if n == 0 {
					waits.Done()
				}
			}
		})
	}
	waits.Wait() // each was served once
	cancel()
	all.Wait()
}

// TestPlaces: never all connections are busy with requests and streams, neither with
// the other's, and never none.
func TestPlaces(t *testing.T) {
	for connections, want := range map[int64][2]int{0: {1, 1}, 1: {1, 1}, 2: {1, 1}, 10: {8, 1}, 160: {140, 10}, 1600: {1436, 64}} {
		d := New(budget.NewShare("connections", connections*budget.Connection+1, 1))
		if requests, streams := d.Requests(), d.Streams(); requests != want[0] || streams != want[1] {
			t.Errorf("%d connections serve %d requests and %d streams, want %v", connections, requests, streams, want)
		}
	}
}
