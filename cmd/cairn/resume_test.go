package main

import (
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

// tusServer is a server of resumable uploads that does what a test tells it.
type tusServer struct {
	mu      sync.Mutex
	got     []byte
	length  int
	begun   int
	gone    int
	done    bool
	current string // version of the object
	// step is called before each request is answered; what it returns, if not 0, is
	// the answer.
	step func(r *http.Request, n int) int
	n    int
}

func (s *tusServer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.n++
	if s.step != nil {
		if code := s.step(r, s.n); code != 0 {
			w.Header().Set("Content-Type", "application/problem+json")
			w.WriteHeader(code)
			fmt.Fprintf(w, `{"type":"urn:cairn:problem:test","title":"told to say %d","status":%d}`, code, code)
			return
		}
	}
	h := w.Header()
	h.Set("Tus-Resumable", "1.0.0")
	finish := func() {
		if len(s.got) == s.length && !s.done {
			s.done, s.current = true, "v1"
			h.Set("ETag", `"tag"`)
		}
		if s.done {
			h.Set("Cairn-Version", "v1")
		}
		h.Set("Upload-Offset", strconv.Itoa(len(s.got)))
	}
	switch {
	case strings.HasPrefix(r.URL.Path, "/v1/buckets/"):
		h.Set("Cairn-Version", s.current)
		h.Set("ETag", `"tag"`)
	case r.Method == "POST":
		s.begun++
		s.got, s.done = nil, false
		s.length, _ = strconv.Atoi(r.Header.Get("Upload-Length"))
		h.Set("Location", "/v1/uploads/"+strings.Repeat("a", 32))
		finish()
		w.WriteHeader(201)
	case s.begun == 0:
		w.WriteHeader(404)
	case r.Method == "DELETE":
		s.gone++
		s.got = nil
		w.WriteHeader(204)
	case r.Method == "HEAD":
		finish()
	case r.Method == "PATCH":
		if r.Header.Get("Upload-Offset") != strconv.Itoa(len(s.got)) {
			w.WriteHeader(409)
			return
		}
		b, err := io.ReadAll(r.Body)
		s.got = append(s.got, b...)
		if err != nil {
			panic(http.ErrAbortHandler)
		}
		finish()
		w.WriteHeader(204)
	}
}

func TestPutLong(t *testing.T) {
	t.Parallel()
	const text = "0123456789abcdef"
	for _, c := range []struct {
		name  string
		step  func(r *http.Request, n int) int
		exit  int
		said  string // in what it says
		begun int
		whole bool
	}{
		{"at once", nil, 0, "", 1, true},
		{"busy for a while", func(r *http.Request, n int) int { return map[bool]int{true: 503}[n < 3] }, 0, "told to say 503; trying again in 500ms", 1, true},
		{"answer lost", func(r *http.Request, n int) int {
			if n == 2 {
				panic(http.ErrAbortHandler)
			}
			return 0
		}, 0, "trying again", 1, true},
		{"expired meanwhile", func(r *http.Request, n int) int { return map[int]int{2: 503, 3: 404}[n] }, 0, "trying again", 2, true},
		{"refused at the end", func(r *http.Request, n int) int { return map[bool]int{true: 412}[r.Method == "PATCH"] }, 1, "told to say 412", 1, false},
		{"forgetful", func(r *http.Request, n int) int {
			return map[string]int{"PATCH": 503, "HEAD": 404}[r.Method]
		}, 1, "has forgotten 3 uploads", 4, false},
		{"refused", func(r *http.Request, n int) int { return 412 }, 1, "told to say 412", 0, false},
		{"no token", func(r *http.Request, n int) int { return 401 }, 1, "told to say 401", 0, false},
		{"full", func(r *http.Request, n int) int { return 507 }, 1, "told to say 507", 0, false},
		{"busy for good", func(r *http.Request, n int) int { return 503 }, 1, "told to say 503", 0, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			path := filepath.Join(t.TempDir(), "f")
			if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
			s := &tusServer{step: c.step}
			_, exit, out, said := runClient(t, s.ServeHTTP, "put", "--resume-from", "1", "--retries", "2", path, "main/x")
			if exit != c.exit || !strings.Contains(said, c.said) || c.said == "" && said != "" {
				t.Errorf("put exits with %d and says %q, want %d and %q", exit, said, c.exit, c.said)
			}
			if (string(s.got) == text) != c.whole || s.begun != c.begun {
				t.Errorf("%d uploads were begun, the server has %q", s.begun, s.got)
			}
			if c.whole && !strings.Contains(out, "stored main/x  16 B") {
				t.Errorf("put says %q", out)
			}
		})
	}
}

// TestPutFindsItsUploadAgain: a command goes on with the upload of an earlier one of
// the same file, as it was, to the same place, and with no other.
func TestPutFindsItsUploadAgain(t *testing.T) {
	t.Parallel()
	s := &tusServer{}
	srv := httptest.NewServer(s)
	defer srv.Close()
	dir, config := t.TempDir(), t.TempDir()
	path := filepath.Join(dir, "f")
	notes := filepath.Join(config, "cairn", "uploads")
	write := func(text string, at int64) {
		t.Helper()
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Chtimes(path, time.Unix(at, 0), time.Unix(at, 0)); err != nil {
			t.Fatal(err)
		}
	}
	put := func(exit, begun, left int, args ...string) {
		t.Helper()
		cmd := exec.CommandContext(t.Context(), cairnProgram(t), append([]string{"put", "--resume-from", "1", "--retries", "0"}, args...)...)
		cmd.Env = append(os.Environ(), "CAIRN_TOKEN=0123456789abcdef", "CAIRN_SERVER="+srv.URL, "XDG_CONFIG_HOME="+config)
		said, _ := cmd.CombinedOutput() // its exit code says it
		names, err := filepath.Glob(filepath.Join(notes, "*"))
		if err != nil {
			t.Fatal(err)
		}
		if cmd.ProcessState.ExitCode() != exit || s.begun != begun || len(names) != left {
			t.Fatalf("put %q: exit code %d, %d uploads, %d notes; want %d, %d, %d\n%s", args, cmd.ProcessState.ExitCode(), s.begun, len(names), exit, begun, left, said)
		}
	}
	stuck := func(r *http.Request, n int) int {
		if r.Method == "PATCH" {
			return 503
		}
		return 0
	}
	write("0123456789", 1_700_000_000)
	s.step = stuck
	put(1, 1, 1, path, "main/x")
	put(1, 1, 1, path, "main/x") // the same upload
	s.got = []byte("01234")
	s.step = nil
	put(0, 1, 0, path, "main/x", "--verify=false")
	if string(s.got) != "0123456789" {
		t.Errorf("the server has %q", s.got)
	}
	s.step = stuck
	put(1, 2, 1, path, "main/x")
	put(1, 3, 2, path, "main/y")                          // another key
	put(1, 4, 3, path, "main/x", "--content-type", "a/b") // another kind of object
	write("0123456789", 1_700_000_001)
	put(1, 5, 4, path, "main/x") // another file
	// One that only looks the same.
	other := filepath.Join(dir, "other")
	if err := os.Rename(path, other); err != nil {
		t.Fatal(err)
	}
	write("9876543210", 1_700_000_001)
	put(1, 6, 5, path, "main/x")
	// An upload that an earlier command completed, and did not live to say so.
	s.got, s.done, s.current, s.step = []byte("0123456789"), true, "v1", nil
	put(0, 6, 4, path, "main/x")
	// One whose object was replaced since: the command stores the file.
	s.step = stuck
	put(1, 7, 5, path, "main/x")
	s.got, s.done, s.current, s.step = []byte("0123456789"), true, "v2", nil
	put(0, 8, 4, path, "main/x")
	// What lies there and is no note of ours.
	for _, name := range []string{"x.json", strings.Repeat("0", 32) + ".json"} {
		if err := os.WriteFile(filepath.Join(notes, name), []byte(`{"location":"http://elsewhere/v1/uploads/x"}`), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	put(0, 9, 6, path, "main/z")
	old := time.Now().Add(-8 * 24 * time.Hour)
	for _, name := range []string{"x.json", strings.Repeat("0", 32) + ".json"} {
		if err := os.Chtimes(filepath.Join(notes, name), old, old); err != nil {
			t.Fatal(err)
		}
	}
	put(0, 10, 4, path, "main/z")
}

// TestFileChangedWhileItWasSent: what is stored is a mixture, and the command says so.
func TestFileChangedWhileItWasSent(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "f")
	if err := os.WriteFile(path, []byte("0123456789"), 0o600); err != nil {
		t.Fatal(err)
	}
	s := &tusServer{step: func(r *http.Request, n int) int {
		if r.Method == "PATCH" {
			if err := os.Chtimes(path, time.Unix(1, 0), time.Unix(1, 0)); err != nil {
				t.Error(err)
			}
		}
		return 0
	}}
	_, exit, _, said := runClient(t, s.ServeHTTP, "put", "--resume-from", "1", path, "main/x")
	if exit != 1 || !strings.Contains(said, "the file was changed while it was sent: what is stored") {
		t.Errorf("put exits with %d and says %q", exit, said)
	}
	// Between two attempts: nothing of it is stored.
	s = &tusServer{step: func(r *http.Request, n int) int {
		if r.Method == "PATCH" {
			if err := os.Chtimes(path, time.Unix(2, 0), time.Unix(2, 0)); err != nil {
				t.Error(err)
			}
			return 503
		}
		return 0
	}}
	_, exit, _, said = runClient(t, s.ServeHTTP, "put", "--resume-from", "1", path, "main/x")
	if exit != 1 || !strings.Contains(said, "nothing was stored") || s.gone != 1 || s.current != "" {
		t.Errorf("put exits with %d and says %q; %d uploads given up", exit, said, s.gone)
	}
}

func TestResumeFlags(t *testing.T) {
	t.Parallel()
	for value, exit := range map[string]int{"none": 0, "1KiB": 0, "x": 2, "-1": 2, "999999999999999999999": 2} {
		path := filepath.Join(t.TempDir(), "f")
		if err := os.WriteFile(path, make([]byte, 2048), 0o600); err != nil {
			t.Fatal(err)
		}
		s := &tusServer{}
		plain := false
		_, got, _, said := runClient(t, func(w http.ResponseWriter, r *http.Request) {
			if r.Method == "PUT" {
				plain = true
				_, _ = io.Copy(io.Discard, r.Body)
				w.WriteHeader(201)
				fmt.Fprint(w, `{"bucket":"main","key":"x"}`)
				return
			}
			s.ServeHTTP(w, r)
		}, "put", "--resume-from="+value, path, "main/x")
		if got != exit || plain != (value == "none") {
			t.Errorf("--resume-from %s: exit code %d, sent in one request %v\n%s", value, got, plain, said)
		}
	}
}
