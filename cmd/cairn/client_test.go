package main

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// TestPathsKeepKeys: what is sent decodes to the key, and has nothing in it that
// something on the road would clean away.
func TestPathsKeepKeys(t *testing.T) {
	for _, key := range []string{"a", "a/b", "..", ".", "../x", "a/./b", "a//b", "/", "a b+c%2F?#;&=", "\u00e9\U0001faa8", "...", "a/..b", "\n\x7f"} {
		p := objectPath("main", key)
		u, err := url.ParseRequestURI(p)
		if err != nil || u.Path != "/v1/buckets/main/objects/"+key || u.RawQuery != "" {
			t.Errorf("the path of %q is %s, which reads %+v, %v", key, p, u, err)
		}
		for part := range strings.SplitSeq(p, "/") {
			if part == "." || part == ".." {
				t.Errorf("the path of %q is %s: its dots would be cleaned away", key, p)
			}
		}
	}
}

func TestByteRange(t *testing.T) {
	for _, s := range []string{"0-0", "0-4", "5-", "-5", "18446744073709551615-"} {
		if !byteRange(s) {
			t.Errorf("%q is refused", s)
		}
	}
	for _, s := range []string{"", "-", "9-5", "bogus", "5", "a-b", "1-2,3-4", "+1-2", "1-+2", " 1-2", "1--2", "--2", "-+2", "0x1-2", "18446744073709551616-"} {
		if byteRange(s) {
			t.Errorf("%q is a range", s)
		}
	}
}

// runClient runs the program against a server of the test's own.
func runClient(t *testing.T, h http.HandlerFunc, args ...string) (dir string, exit int, out, said string) {
	t.Helper()
	s := httptest.NewServer(h)
	t.Cleanup(s.Close)
	dir = t.TempDir()
	cmd := exec.CommandContext(t.Context(), cairnProgram(t), args...)
	var stdout, stderr strings.Builder
	cmd.Dir, cmd.Stdout, cmd.Stderr = dir, &stdout, &stderr
	cmd.Env = append(os.Environ(), "CAIRN_TOKEN=0123456789abcdef", "CAIRN_SERVER="+s.URL, "XDG_CONFIG_HOME="+t.TempDir())
	_ = cmd.Run() // its exit code says it
	return dir, cmd.ProcessState.ExitCode(), stdout.String(), stderr.String()
}

// TestBodyCutShort: the message says how much there was and where to look, and no
// file appears.
func TestBodyCutShort(t *testing.T) {
	t.Parallel()
	cut := func(w http.ResponseWriter, r *http.Request) {
		conn, _, err := w.(http.Hijacker).Hijack()
		if err != nil {
			panic(err)
		}
		fmt.Fprintf(conn, "HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n0123456789")
		conn.Close()
	}
	for _, to := range []string{"-", "copy"} {
		dir, exit, _, said := runClient(t, cut, "get", "main/b", to)
		if want := "cairn: main/b: the server broke off after 10 of 100 bytes; see `cairn status`\n"; exit != 1 || said != want {
			t.Errorf("get to %s exits with %d and says %q, want 1 and %q", to, exit, said, want)
		}
		if left, err := os.ReadDir(dir); err != nil || len(left) > 0 {
			t.Errorf("get to %s leaves %v, %v", to, left, err)
		}
	}
}

// TestWholeInPlaceOfAPart: a server that does not understand a range answers with
// the whole object; that is not what was asked for.
func TestWholeInPlaceOfAPart(t *testing.T) {
	t.Parallel()
	whole := func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, "0123456789") }
	dir, exit, _, said := runClient(t, whole, "get", "main/b", "copy", "--range", "0-4")
	if exit != 1 || !strings.Contains(said, "whole object") {
		t.Errorf("it exits with %d and says %q", exit, said)
	}
	if _, err := os.Stat(filepath.Join(dir, "copy")); err == nil {
		t.Error("the whole object is kept as the part")
	}
}
