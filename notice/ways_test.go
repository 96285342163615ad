package notice

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

func script(t *testing.T, text string) string {
	t.Helper()
	p := filepath.Join(t.TempDir(), "told")
	if err := os.WriteFile(p, []byte("#!/bin/sh\n"+text), 0o700); err != nil {
		t.Fatal(err)
	}
	return p
}

// TestCommand: it gets the message on standard input, its arguments as they are, and
// none of our settings.
func TestCommand(t *testing.T) {
	t.Setenv("CAIRN_TOKEN", "secret")
	out := filepath.Join(t.TempDir(), "out")
	c, err := newCommand([]string{script(t, `{ cat; echo "[$2]"; env; } >"$1"`), out, "$(id); a b"})
	if err != nil {
		t.Fatal(err)
	}
	if err := c.send(t.Context(), []byte("{}\n")); err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(out)
	if err != nil || !strings.HasPrefix(string(b), "{}\n[$(id); a b]\n") || strings.Contains(string(b), "CAIRN_") || !strings.Contains(string(b), "PATH=") {
		t.Errorf("it saw %q, %v", b, err)
	}
}

// TestCommandsThatFail: what went wrong is said, in a bounded line; a message that
// nobody reads is no failure.
func TestCommandsThatFail(t *testing.T) {
	big := []byte(strings.Repeat("x", 1<<20))
	for _, c := range []struct{ text, want string }{
		{"exit 0", ""},
		{"echo no; echo way >&2; exit 3", "exit status 3: it said: no way"},
		{"head -c 100000000 /dev/zero | tr '\\0' x; exit 1", "exit status 1: it said: " + strings.Repeat("x", maxTold)},
		{"printf 'a\\033[0mb'; exit 1", "exit status 1: it said: a [0mb"},
	} {
		cmd, err := newCommand([]string{script(t, c.text)})
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.send(t.Context(), big); (err == nil) != (c.want == "") || err != nil && err.Error() != c.want {
			t.Errorf("%s: %v, want %q", c.text, err, c.want)
		}
	}
}

// TestCommandThatHangs: it is ended in time, with what it has started.
func TestCommandThatHangs(t *testing.T) {
	pid := filepath.Join(t.TempDir(), "pid")
	c, err := newCommand([]string{script(t, `sleep 1000 & echo $! >"$1"; wait`), pid})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	over := make(chan error)
	go func() { over <- c.send(ctx, nil) }()
	var child int
	for limit := time.Now().Add(time.Minute); ; time.Sleep(5 * time.Millisecond) {
		b, _ := os.ReadFile(pid)
		if n, _ := fmt.Sscan(string(b), &child); n == 1 && strings.HasSuffix(string(b), "\n") {
			break
		}
		if time.Now().After(limit) {
			t.Fatal("it does not start")
		}
	}
	cancel()
	select {
	case err := <-over:
		if err == nil || !strings.Contains(err.Error(), "did not end in time") {
			t.Errorf("it ended with %v", err)
		}
	case <-time.After(time.Minute):
		t.Fatal("it hangs still")
	}
	for limit := time.Now().Add(time.Minute); syscall.Kill(child, 0) == nil && !zombie(child); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(limit) {
			t.Fatal("what it has started runs still")
		}
	}
	c.time = time.Millisecond
	if err := c.send(t.Context(), nil); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("beyond its time it ended with %v", err)
	}
}

// zombie reports whether a process has ended and nobody has asked how.
func zombie(pid int) bool {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	return err != nil || strings.Contains(string(b), ") Z ")
}

// TestWebhook: the message is posted with the secret, tried again where that may help,
// and goes nowhere else.
func TestWebhook(t *testing.T) {
	secret := filepath.Join(t.TempDir(), "secret")
	if err := os.WriteFile(secret, []byte("s3cret\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	var elsewhere atomic.Int64
	other := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { elsewhere.Add(1) }))
	defer other.Close()
	var asked atomic.Int64
	var answer atomic.Value // func(n int64) int
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		b, err := io.ReadAll(r.Body)
		if err != nil || r.Method != http.MethodPost || string(b) != "{}" || r.Header.Get("Content-Type") != "application/json" || r.Header.Get("Authorization") != "Bearer s3cret" || r.URL.Path != "/hook" {
			t.Errorf("%s %s %q %v, %v", r.Method, r.URL, b, r.Header, err)
		}
		w.Header().Set("Location", other.URL)
		w.WriteHeader(answer.Load().(func(int64) int)(asked.Add(1)))
		io.WriteString(w, strings.Repeat("x", 100_000))
	}))
	defer s.Close()
	w, err := newWebhook(s.URL+"/hook", secret)
	if err != nil {
		t.Fatal(err)
	}
	w.pause = time.Millisecond
	for _, c := range []struct {
		name   string
		answer func(n int64) int
		asked  int64
		want   string
	}{
		{"taken", func(int64) int { return 204 }, 1, ""},
		{"taken the third time", func(n int64) int { return []int{0, 500, 429, 200}[n] }, 3, ""},
		{"never taken", func(int64) int { return 503 }, 3, "it answers 503"},
		{"refused", func(int64) int { return 403 }, 1, "refused: it answers 403"},
		{"elsewhere", func(int64) int { return 307 }, 1, "refused: it answers 307, and redirects are not followed: give the URL that it leads to"},
		{"elsewhere, by GET", func(int64) int { return 302 }, 1, "refused: it answers 302, and redirects are not followed: give the URL that it leads to"},
	} {
		asked.Store(0)
		answer.Store(c.answer)
		if err := w.send(t.Context(), []byte("{}")); (err == nil) != (c.want == "") || err != nil && err.Error() != c.want {
			t.Errorf("%s: %v, want %q", c.name, err, c.want)
		}
		if n := asked.Load(); n != c.asked {
			t.Errorf("%s: asked %d times, want %d", c.name, n, c.asked)
		}
	}
	if n := elsewhere.Load(); n > 0 {
		t.Errorf("a redirect was followed %d times", n)
	}
	if err := os.Remove(secret); err != nil {
		t.Fatal(err)
	}
	if err := w.send(t.Context(), []byte("{}")); err == nil || !strings.Contains(err.Error(), "no such file") {
		t.Errorf("without its secret: %v", err)
	}
}

// TestWebhookThatHangs: it is left in time, and no error names the URL.
func TestWebhookThatHangs(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	w, err := newWebhook("http://"+l.Addr().String()+"/hidden", "") // nobody accepts, nobody answers
	if err != nil {
		t.Fatal(err)
	}
	w.client.Timeout, w.pause = 50*time.Millisecond, time.Millisecond
	if err := w.send(t.Context(), []byte("{}")); err == nil || strings.Contains(err.Error(), "hidden") {
		t.Errorf("a server that hangs: %v", err)
	}
	w.client.Timeout, w.pause = time.Hour, time.Hour
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if err := w.send(ctx, []byte("{}")); err == nil {
		t.Error("a server that hangs, when the process ends: no error")
	}
	l.Close()
	if err := w.send(ctx, []byte("{}")); err == nil || strings.Contains(err.Error(), "hidden") {
		t.Errorf("no server: %v", err)
	}
}

// TestBadConfig: what cannot work is refused before anything is served.
func TestBadConfig(t *testing.T) {
	file := func(text string) string {
		p := filepath.Join(t.TempDir(), "secret")
		if err := os.WriteFile(p, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return p
	}
	good := file("s3cret")
	for _, c := range []struct {
		name string
		cfg  Config
		want string // none: it is taken
	}{
		{"nobody", Config{}, ""},
		{"a command", Config{Command: []string{"sh", "-c", "true"}}, ""},
		{"both", Config{Command: []string{"sh"}, URL: "https://h.example/x", SecretFile: good}, ""},
		{"http", Config{URL: "http://h.example/x"}, ""},
		{"http on loopback with a secret", Config{URL: "http://[::1]:8080/x", SecretFile: good}, ""},
		{"http with a secret", Config{URL: "http://h.example/x", SecretFile: good}, "in the clear"},
		{"no such command", Config{Command: []string{"/nowhere/x"}}, "no such file"},
		{"no program", Config{Command: []string{good}}, "permission denied"},
		{"no URL", Config{URL: "h.example/x"}, "is not of the form"},
		{"another scheme", Config{URL: "ftp://h.example/x"}, "is not of the form"},
		{"no host", Config{URL: "http:///x"}, "is not of the form"},
		{"a user", Config{URL: "https://u:hidden@h.example/x"}, "has a user in it"},
		{"no URL at all", Config{URL: "https://h.example/%zzhidden"}, "is not of the form"},
		{"a secret for nobody", Config{SecretFile: good}, "there is none"},
		{"no secret", Config{URL: "https://h.example/x", SecretFile: good + "x"}, "no such file"},
		{"an empty secret", Config{URL: "https://h.example/x", SecretFile: file("\n")}, "visible ASCII"},
		{"two lines", Config{URL: "https://h.example/x", SecretFile: file("hidden\nX: y")}, "visible ASCII"},
		{"a long secret", Config{URL: "https://h.example/x", SecretFile: file(strings.Repeat("x", maxSecret+1))}, "visible ASCII"},
	} {
		c.cfg.Log = slog.New(slog.DiscardHandler)
		_, err := New(c.cfg)
		if (err == nil) != (c.want == "") || err != nil && (!strings.Contains(err.Error(), c.want) || strings.Contains(err.Error(), "hidden")) {
			t.Errorf("%s: %v, want %q", c.name, err, c.want)
		}
	}
}
