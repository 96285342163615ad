package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"cairn/node"
	"cairn/node/disk"
	"cairn/node/nodetest"
	"cairn/node/vfs"
	"cairn/pack"
)

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){"cairn": main, "liar": liar})
}

// server is a real process that serves a store.
type server struct {
	cmd   *exec.Cmd
	url   string
	lines chan string // what it prints, closed with its output
	out   string      // what it printed until it served
	log   *bytes.Buffer
}

// startServer runs `cairn serve` with a data directory under dir and waits until
// it serves. cairn is the program's path.
func startServer(cairn, dir string, env []string, args ...string) (*server, error) {
	s := &server{cmd: exec.Command(cairn, append([]string{"serve", "--listen", "127.0.0.1:0"}, args...)...), lines: make(chan string, 64), log: &bytes.Buffer{}}
	s.cmd.Dir, s.cmd.Env, s.cmd.Stderr = dir, env, s.log
	s.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL} // no test leaves a server behind
	out, err := s.cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := s.cmd.Start(); err != nil {
		return nil, err
	}
	go func() {
		defer close(s.lines)
		for sc := bufio.NewScanner(out); sc.Scan(); {
			s.lines <- sc.Text()
		}
	}()
	limit := time.After(60 * time.Second)
	var printed []string
	for {
		select {
		case line, ok := <-s.lines:
			if !ok {
				err := s.cmd.Wait()
				return nil, &startError{err: err, out: strings.Join(printed, "\n"), log: s.log.String()}
			}
			printed = append(printed, line)
			_, url, ok := strings.Cut(line, " at ")
			if !ok || !strings.HasPrefix(line, "serving ") {
				var told struct{ Event, URL string }
				if json.Unmarshal([]byte(line), &told) != nil || told.Event != "serving" {
					continue
				}
				url = told.URL
			}
			s.url, s.out = url, strings.Join(printed, "\n")
			return s, nil
		case <-limit:
			s.end(syscall.SIGKILL)
			return nil, errors.New("a server does not serve within a minute: " + s.log.String())
		}
	}
}

// startError is a server that ended before it served.
type startError struct {
	err      error
	out, log string
}

func (e *startError) Error() string { return fmt.Sprintf("%v\n%s\n%s", e.err, e.out, e.log) }
func (e *startError) Unwrap() error { return e.err }

// end sends a signal and waits.
func (s *server) end(sig syscall.Signal) error {
	if err := s.cmd.Process.Signal(sig); err != nil {
		return err
	}
	for range s.lines {
	}
	return s.cmd.Wait()
}

type serverKey struct{}

func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir: filepath.Join("testdata", "script"),
		Setup: func(env *testscript.Env) error {
			env.Setenv("XDG_CONFIG_HOME", filepath.Join(env.WorkDir, "config"))
			env.Setenv("HOME", env.WorkDir)
			env.Setenv("TZ", "UTC")
			env.Setenv("DATA", filepath.Join(env.WorkDir, "data"))
			env.Values[serverKey{}] = new(*server)
			return nil
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"serve": scriptServe, "end": scriptEnd, "exits": scriptExits, "random": scriptRandom, "rot": scriptRot, "tombstones": scriptTombstones, "field": scriptField, "certify": scriptCertify,
		},
	})
}

// serve [FLAGS] starts a server on $DATA and sets CAIRN_SERVER; what it printed
// is in server.out, and its log in server.log when it has ended. With ! it must
// not come to serving; its words are in server.log.
func scriptServe(ts *testscript.TestScript, neg bool, args []string) {
	cairn, err := exec.LookPath(filepath.Join(firstOf(ts.Getenv("PATH")), "cairn"))
	ts.Check(err)
	env := []string{"PATH=" + ts.Getenv("PATH"), "HOME=" + ts.Getenv("HOME"), "XDG_CONFIG_HOME=" + ts.Getenv("XDG_CONFIG_HOME"), "TESTSCRIPT_COMMAND=" + ts.Getenv("TESTSCRIPT_COMMAND")}
	s, err := startServer(cairn, ts.Getenv("WORK"), env, append([]string{"--data", ts.Getenv("DATA"), "--memory", "256MiB"}, args...)...)
	if neg {
		if err == nil {
			s.end(syscall.SIGKILL)
			ts.Fatalf("a server started that should not")
		}
		ts.Check(os.WriteFile(ts.MkAbs("server.log"), []byte(err.Error()), 0o600))
		return
	}
	ts.Check(err)
	*ts.Value(serverKey{}).(**server) = s
	ts.Defer(func() { s.end(syscall.SIGKILL) })
	ts.Setenv("CAIRN_SERVER", s.url)
	ts.Check(os.WriteFile(ts.MkAbs("server.out"), []byte(s.out), 0o600))
}

func firstOf(path string) string { return filepath.SplitList(path)[0] }

// end [SIGNAL] stops the server; with SIGTERM it must end with 0.
func scriptEnd(ts *testscript.TestScript, neg bool, args []string) {
	p := ts.Value(serverKey{}).(**server)
	sig := syscall.SIGTERM
	if len(args) > 0 && args[0] == "KILL" {
		sig = syscall.SIGKILL
	}
	err := (*p).end(sig)
	ts.Check(os.WriteFile(ts.MkAbs("server.log"), (*p).log.Bytes(), 0o600))
	if sig == syscall.SIGTERM {
		ts.Check(err)
	}
}

// exits CODE PROGRAM ARGS... wants an exit code, exactly.
func scriptExits(ts *testscript.TestScript, neg bool, args []string) {
	want, err := strconv.Atoi(args[0])
	ts.Check(err)
	got := 0
	if err := ts.Exec(args[1], args[2:]...); err != nil {
		e, ok := errors.AsType[*exec.ExitError](err)
		if !ok {
			ts.Fatalf("%v", err)
		}
		got = e.ExitCode()
	}
	if got != want {
		ts.Fatalf("%q exits with %d, want %d", args[1:], got, want)
	}
}

// random FILE SIZE SEED makes a file.
func scriptRandom(ts *testscript.TestScript, neg bool, args []string) {
	n, err := strconv.Atoi(args[1])
	ts.Check(err)
	b := make([]byte, n)
	var seed [32]byte
	copy(seed[:], args[2])
	rand.NewChaCha8(seed).Read(b)
	ts.Check(os.WriteFile(ts.MkAbs(args[0]), b, 0o600))
}

// rot DIR flips a bit in the middle of every file there of 64 KiB and more.
func scriptRot(ts *testscript.TestScript, neg bool, args []string) {
	done := 0
	ts.Check(filepath.Walk(ts.MkAbs(args[0]), func(p string, info os.FileInfo, err error) error {
		if err != nil || !info.Mode().IsRegular() || info.Size() < 64<<10 {
			return err
		}
		b, err := os.ReadFile(p)
		if err != nil {
			return err
		}
		for at := 20_000; at < len(b); at += 50_000 {
			b[at] ^= 4
		}
		done++
		return os.WriteFile(p, b, info.Mode())
	}))
	if done == 0 {
		ts.Fatalf("nothing in %s can rot", args[0])
	}
}

// tombstones DIR N SIZE puts N shards of SIZE bytes on a node that nobody serves,
// beside what it holds, and deletes them, as a server that collects does.
func scriptTombstones(ts *testscript.TestScript, neg bool, args []string) {
	root, err := vfs.OS(ts.MkAbs(args[0]))
	ts.Check(err)
	defer root.Close()
	cluster, _, err := disk.Identify(root)
	ts.Check(err)
	n, err := disk.Open(root, disk.Config{Cluster: cluster})
	ts.Check(err)
	defer n.Close()
	count, err := strconv.Atoi(args[1])
	ts.Check(err)
	size, err := strconv.Atoi(args[2])
	ts.Check(err)
	by, err := n.Promised(context.Background())
	ts.Check(err)
	for i := range count {
		s := nodetest.Shard{Kind: pack.Data, Pack: uint64(i), Len: size, Seed: uint64(i), Epoch: by.Epoch}
		inst, err := n.Put(context.Background(), by, node.ForClient, nodetest.Split(s.Bytes(), 0))
		ts.Check(err)
		ts.Check(n.Delete(context.Background(), by, s.Key(), inst))
	}
}

// field NAME VAR takes a field out of the JSON that the last command printed.
func scriptField(ts *testscript.TestScript, neg bool, args []string) {
	var v any
	if err := json.Unmarshal([]byte(ts.ReadFile("stdout")), &v); err != nil {
		ts.Fatalf("not JSON: %v", err)
	}
	for name := range strings.SplitSeq(args[0], ".") {
		switch x := v.(type) {
		case map[string]any:
			v = x[name]
		case []any:
			i, err := strconv.Atoi(name)
			if err != nil || i >= len(x) {
				ts.Fatalf("no element %s", name)
			}
			v = x[i]
		}
	}
	if v == nil {
		ts.Fatalf("no field %s", args[0])
	}
	ts.Setenv(args[1], fmt.Sprint(v))
}

// cairnProgram is this test's own binary under the name cairn.
func cairnProgram(t *testing.T) string {
	t.Helper()
	for _, dir := range filepath.SplitList(os.Getenv("PATH")) {
		p := filepath.Join(dir, "cairn")
		if info, err := os.Stat(p); err == nil && strings.Contains(dir, "testscript-main") && info.Mode().IsRegular() {
			return p
		}
	}
	t.Fatal("testscript.Main did not put the program into the path")
	return ""
}

// testServer runs a server for a Go test, with a store of its own.
func testServer(t *testing.T, args ...string) (s *server, env []string, dir string) {
	t.Helper()
	dir = t.TempDir()
	env = append(os.Environ(), "XDG_CONFIG_HOME="+filepath.Join(dir, "config"), "HOME="+dir)
	s, err := startServer(cairnProgram(t), dir, env, append([]string{"--data", filepath.Join(dir, "data"), "--memory", "256MiB"}, args...)...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		s.end(syscall.SIGKILL)
		if t.Failed() {
			t.Logf("the server's log:\n%s", s.log)
		}
	})
	return s, append(env, "CAIRN_SERVER="+s.url), dir
}
