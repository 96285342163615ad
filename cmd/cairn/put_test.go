package main

import (
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// TestBatchEndsWithTheServer: what would fail for every file ends the batch, and
// what was left is counted.
func TestBatchEndsWithTheServer(t *testing.T) {
	t.Parallel()
	src := t.TempDir()
	for _, name := range []string{"a", "b", "c"} {
		if err := os.WriteFile(filepath.Join(src, name), []byte(name), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for _, c := range []struct {
		status int
		last   string
	}{
		{503, "cairn: 1 of 3 done, 1 failed, 1 not tried\n"},
		{507, "cairn: 1 of 3 done, 1 failed, 1 not tried\n"},
		{401, "cairn: 1 of 3 done, 1 failed, 1 not tried\n"},
		{400, "cairn: 2 of 3 done, 1 failed\n"},
	} {
		answer := func(w http.ResponseWriter, r *http.Request) {
			if _, err := io.Copy(io.Discard, r.Body); err != nil {
				panic(http.ErrAbortHandler)
			}
			if strings.HasSuffix(r.URL.Path, "b") {
				w.WriteHeader(c.status)
				return
			}
			w.WriteHeader(201)
			io.WriteString(w, `{"bucket":"main","key":"x"}`)
		}
		_, exit, _, said := runClient(t, answer, "put", src+"/", "main/", "--parallel", "1")
		if exit != 1 || !strings.HasSuffix(said, c.last) {
			t.Errorf("a server that answers %d: put exits with %d and says\n%s, want at its end %s", c.status, exit, said, c.last)
		}
		_, _, out, _ := runClient(t, answer, "put", src+"/", "main/", "--parallel", "1", "--json")
		if strings.Contains(out, `"not_tried": 1`) != strings.Contains(c.last, "not tried") || !strings.Contains(out, `"failed": [`) {
			t.Errorf("a server that answers %d: the JSON is %s", c.status, out)
		}
	}
}

// TestPutInterrupted: a signal ends a put with 130, and the words say what is known.
func TestPutInterrupted(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name, said string
		args       []string
		whole      bool // the body is sent to its end
	}{
		{"standard input", "cairn: -: interrupted: nothing was stored under main/x\n", []string{"put", "-", "main/x"}, false},
		{"a file", "cairn: f: interrupted: it is not known whether anything was stored under main/x\n", []string{"put", "f", "main/x"}, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			got, end := make(chan struct{}), make(chan struct{})
			s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				var err error
				if c.whole {
					_, err = io.Copy(io.Discard, r.Body)
				} else {
					_, err = io.ReadFull(r.Body, make([]byte, 5))
				}
				if err != nil {
					t.Errorf("the body: %v", err)
				}
				close(got)
				<-end
			}))
			defer s.Close()
			defer close(end)
			dir := t.TempDir()
			if err := os.WriteFile(filepath.Join(dir, "f"), []byte("bytes"), 0o600); err != nil {
				t.Fatal(err)
			}
			cmd := exec.CommandContext(t.Context(), cairnProgram(t), c.args...)
			var said strings.Builder
			cmd.Dir, cmd.Stderr = dir, &said
			cmd.Env = append(os.Environ(), "CAIRN_TOKEN=0123456789abcdef", "CAIRN_SERVER="+s.URL)
			in, err := cmd.StdinPipe()
			if err != nil {
				t.Fatal(err)
			}
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			if _, err := io.WriteString(in, "bytes and more to come"); err != nil {
				t.Fatal(err)
			}
			<-got
			if err := cmd.Process.Signal(syscall.SIGINT); err != nil {
				t.Fatal(err)
			}
			_ = cmd.Wait() // its exit code says it
			if exit := cmd.ProcessState.ExitCode(); exit != 130 || said.String() != c.said {
				t.Errorf("it exits with %d and says %q, want 130 and %q", exit, said.String(), c.said)
			}
		})
	}
}

// TestPutVerify: what is given back is compared with what was sent, of the very
// version that was stored.
func TestPutVerify(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name, back string
		status     int
		exit       int
		said       string
	}{
		{"the same", "bytes", 200, 0, ""},
		{"another byte", "bytez", 200, 1, "not what was sent"},
		{"shorter", "byte", 200, 1, "4 bytes, 5 were sent"},
		{"longer", "bytes!", 200, 1, "6 bytes, 5 were sent"},
		{"nothing", "", 200, 1, "0 bytes, 5 were sent"},
		{"replaced since", "", 404, 1, "replaced or deleted since"},
		{"no answer", "", 503, 1, "could not be verified"},
	} {
		h := func(w http.ResponseWriter, r *http.Request) {
			if r.Method == http.MethodPut {
				_, _ = io.Copy(io.Discard, r.Body)
				w.WriteHeader(http.StatusCreated)
				fmt.Fprint(w, `{"bucket":"main","key":"x","version":"000000000000000100000000","size":5}`)
				return
			}
			if v := r.URL.Query().Get("version"); v != "000000000000000100000000" {
				t.Errorf("%s: version %q is read back", c.name, v)
			}
			w.WriteHeader(c.status)
			fmt.Fprint(w, c.back)
		}
		s := httptest.NewServer(http.HandlerFunc(h))
		cmd := exec.CommandContext(t.Context(), cairnProgram(t), "put", "--verify", "-", "main/x")
		var said strings.Builder
		cmd.Stdin, cmd.Stderr, cmd.Dir = strings.NewReader("bytes"), &said, t.TempDir()
		cmd.Env = append(os.Environ(), "CAIRN_TOKEN=0123456789abcdef", "CAIRN_SERVER="+s.URL)
		_ = cmd.Run() // its exit code says it
		s.Close()
		if exit := cmd.ProcessState.ExitCode(); exit != c.exit || !strings.Contains(said.String(), c.said) {
			t.Errorf("%s: it exits with %d and says %q, want %d and %q", c.name, exit, said.String(), c.exit, c.said)
		}
	}
}
