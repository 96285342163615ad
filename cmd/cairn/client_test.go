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

// TestBodyCutShort: the message says how much there was and why there is no more, and no
// file appears.
func TestBodyCutShort(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		args []string
		next string // how the server answers to the byte that follows
		want string
	}{
		"damaged": {nil, "HTTP/1.1 500 X\r\nContent-Type: application/problem+json\r\nContent-Length: 81\r\n\r\n" + fmt.Sprintf("%-81s", `{"type":"urn:cairn:problem:damaged","title":"object is damaged","hint":"see"}`),
			"cairn: main/b: the server broke off after 10 of 100 bytes: object is damaged"},
		"there":     {nil, "HTTP/1.1 206 X\r\nContent-Length: 1\r\n\r\na", "cairn: main/b: the server broke off after 10 of 100 bytes; what follows can be read again: try once more\n"},
		"a part":    {[]string{"--range", "30-"}, "HTTP/1.1 206 X\r\nContent-Length: 1\r\n\r\na", "try once more\n"},
		"cut again": {nil, "HTTP/1.1 206 X\r\nContent-Length: 1\r\n\r\n", "the byte that follows cannot be read; see `cairn status`\n"},
	} {
		asked := ""
		cut := func(w http.ResponseWriter, r *http.Request) {
			conn, _, err := w.(http.Hijacker).Hijack()
			if err != nil {
				panic(err)
			}
			defer conn.Close()
			switch at := r.Header.Get("Range"); {
			case at == "":
				fmt.Fprint(conn, "HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n0123456789")
			case strings.HasSuffix(at, "-"):
				fmt.Fprint(conn, "HTTP/1.1 206 X\r\nContent-Range: bytes 30-129/130\r\nContent-Length: 100\r\n\r\n0123456789")
			default:
				asked = at
				fmt.Fprint(conn, c.next)
			}
		}
		for _, to := range []string{"-", "copy"} {
			dir, exit, _, said := runClient(t, cut, append([]string{"get", "main/b", to}, c.args...)...)
			if exit != 1 || !strings.Contains(said, c.want) {
				t.Errorf("%s: get to %s exits with %d and says %q, want 1 and %q", name, to, exit, said, c.want)
			}
			want := "bytes=10-10"
			if c.args != nil {
				want = "bytes=40-40"
			}
			if asked != want {
				t.Errorf("%s: %q is asked for, want %s", name, asked, want)
			}
			if left, err := os.ReadDir(dir); err != nil || len(left) > 0 {
				t.Errorf("%s: get to %s leaves %v, %v", name, to, left, err)
			}
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
