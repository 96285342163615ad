package bench

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"time"
)

// ServeSink is a server that throws away what it is sent and sends what it is
// asked for, without looking at either: what HTTP costs alone. It listens on
// loopback, writes its address as a line to w and ends when r does. It says on
// /cpu what CPU time its process has taken, in nanoseconds.
func ServeSink(r io.Reader, w io.Writer) error {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	buffer := make([]byte, transferSize)
	Random(buffer, 1)
	mux := http.NewServeMux()
	mux.HandleFunc("GET /cpu", func(w http.ResponseWriter, _ *http.Request) {
		fmt.Fprint(w, selfCPU().Nanoseconds())
	})
	mux.HandleFunc("PUT /", func(w http.ResponseWriter, r *http.Request) {
		// Not from a pool: there is one client, and a stream has its own block too.
		if _, err := io.CopyBuffer(onlyWriter{io.Discard}, r.Body, make([]byte, transferSize)); err != nil {
			panic(http.ErrAbortHandler)
		}
	})
	mux.HandleFunc("GET /", func(w http.ResponseWriter, r *http.Request) {
		n, err := strconv.Atoi(r.URL.Query().Get("n"))
		if err != nil || n < 0 {
			w.WriteHeader(http.StatusBadRequest)
			return
		}
		w.Header().Set("Content-Length", strconv.Itoa(n))
		for n > 0 {
			m, err := w.Write(buffer[:min(n, len(buffer))])
			if err != nil {
				return
			}
			n -= m
		}
	})
	srv := &http.Server{Handler: mux, ReadHeaderTimeout: 10 * time.Second}
	ended := make(chan error, 1)
	go func() { ended <- srv.Serve(l) }()
	if _, err := fmt.Fprintln(w, l.Addr()); err != nil {
		return errors.Join(err, srv.Close(), <-ended)
	}
	_, err = io.Copy(io.Discard, r)
	err = errors.Join(err, srv.Close())
	if serr := <-ended; !errors.Is(serr, http.ErrServerClosed) {
		err = errors.Join(err, serr)
	}
	return err
}

// onlyWriter hides what else a writer can do, so that the buffer given is used.
type onlyWriter struct{ io.Writer }

// sinkProcess is a sink in a process of its own.
type sinkProcess struct {
	cmd   *exec.Cmd
	stdin io.WriteCloser
	url   string
	http  *http.Client
}

// newClient makes a client that keeps one connection per goroutine and moves
// 256 KiB at a time.
func newClient(connections int) *http.Client {
	return &http.Client{Transport: &http.Transport{
		MaxIdleConnsPerHost: connections, MaxIdleConns: connections, IdleConnTimeout: time.Minute,
		ReadBufferSize: 64 << 10, WriteBufferSize: transferSize, DisableCompression: true,
	}}
}

func startSink(ctx context.Context, command []string) (*sinkProcess, error) {
	cmd := exec.CommandContext(ctx, command[0], command[1:]...)
	cmd.Stderr = os.Stderr
	stdin, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	line, err := bufio.NewReader(stdout).ReadString('\n')
	if err != nil {
		stdin.Close()
		return nil, errors.Join(fmt.Errorf("bench: %s gave no address: %w", command[0], err), cmd.Wait())
	}
	return &sinkProcess{cmd: cmd, stdin: stdin, url: "http://" + strings.TrimSpace(line), http: newClient(1)}, nil
}

func (s *sinkProcess) close() error {
	s.http.CloseIdleConnections()
	s.stdin.Close()
	return s.cmd.Wait()
}

func (s *sinkProcess) cpu(ctx context.Context) (time.Duration, error) {
	var b bytes.Buffer
	if err := transfer(ctx, s.http, http.MethodGet, s.url+"/cpu", "", nil, &b); err != nil {
		return 0, err
	}
	n, err := strconv.ParseInt(b.String(), 10, 64)
	return time.Duration(n), err
}

// during is the CPU time that the sink takes for f.
func (s *sinkProcess) during(ctx context.Context, f func() error) (time.Duration, error) {
	from, err := s.cpu(ctx)
	if err != nil {
		return 0, err
	}
	if err := f(); err != nil {
		return 0, err
	}
	to, err := s.cpu(ctx)
	return to - from, err
}

func (s *sinkProcess) send(ctx context.Context, b []byte) (time.Duration, error) {
	return s.during(ctx, func() error { return transfer(ctx, s.http, http.MethodPut, s.url+"/x", "", b, io.Discard) })
}

func (s *sinkProcess) receive(ctx context.Context, n int) (time.Duration, error) {
	return s.during(ctx, func() error {
		c := &counter{}
		if err := transfer(ctx, s.http, http.MethodGet, s.url+"/x?n="+strconv.Itoa(n), "", nil, c); err != nil {
			return err
		}
		return c.want(n)
	})
}

// transfer is one request; its answer's body goes to w. Any status but success is
// an error.
func transfer(ctx context.Context, client *http.Client, method, url, token string, body []byte, w io.Writer) error {
	var r io.Reader
	if body != nil {
		r = bytes.NewReader(body)
	}
	req, err := http.NewRequestWithContext(ctx, method, url, r)
	if err != nil {
		return err
	}
	if token != "" {
		req.Header.Set("Authorization", "Bearer "+token)
	}
	resp, err := client.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode/100 != 2 {
		text, _ := io.ReadAll(io.LimitReader(resp.Body, 1<<10))
		return fmt.Errorf("bench: %s answers %s: %s", method, resp.Status, text)
	}
	buf := buffers.Get().(*[transferSize]byte)
	defer buffers.Put(buf)
	_, err = io.CopyBuffer(onlyWriter{w}, resp.Body, buf[:])
	return err
}
