package integration

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"hash/maphash"
	"io/fs"
	"log"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

var (
	program   string // the program under test
	buildArgs = []string{"build"}
)

func TestMain(m *testing.M) {
	if task := os.Getenv(indexChild); task != "" {
		os.Exit(runIndexChild(task, os.Getenv(indexDir)))
	}
	if os.Getenv(ownMounts) == "" {
		moveOut()
	}
	os.Exit(buildAndRun(m))
}

func buildAndRun(m *testing.M) int {
	dir, err := os.MkdirTemp("", "cairn-integration-")
	if err != nil {
		log.Print(err)
		return 1
	}
	defer os.RemoveAll(dir)
	program = filepath.Join(dir, "cairn")
	cmd := exec.Command("go", append(buildArgs, "-o", program, "cairn/cmd/cairn")...)
	cmd.Stderr = os.Stderr
	if err := cmd.Run(); err != nil {
		log.Print("build the program: ", err)
		return 1
	}
	return m.Run()
}

func long() bool { return os.Getenv("CAIRN_LONG") != "" }

// rounds chooses how much a test does.
func rounds(short, usual, many int) int {
	switch {
	case long():
		return many
	case testing.Short():
		return short
	}
	return usual
}

// newRand is the test's one source of chance. Its seed is printed.
func newRand(t *testing.T) *rand.Rand {
	t.Helper()
	seed := uint64(time.Now().UnixNano())
	if s := os.Getenv("CAIRN_SEED"); s != "" {
		n, err := strconv.ParseUint(s, 10, 64)
		if err != nil {
			t.Fatalf("CAIRN_SEED=%q: %v", s, err)
		}
		seed = n
	}
	t.Logf("CAIRN_SEED=%d", seed)
	return rand.New(rand.NewPCG(seed, uint64(len(t.Name()))))
}

// fork gives a goroutine a source of its own.
func fork(r *rand.Rand) *rand.Rand { return rand.New(rand.NewPCG(r.Uint64(), r.Uint64())) }

// rig is one store: its data directory, its configuration directory, and the
// processes that served it, at most one at a time.
type rig struct {
	t            *testing.T
	base         string
	data, config string
	logs         []string  // one file for each process
	server       *server   // the one that runs
	volumes      []*volume // filesystems made for it
	traces       int       // traces of its processes
	mayFault     bool      // a process may end by a fault in a mapped file
	program      string    // the program under test
}

func newRig(t *testing.T) *rig {
	t.Helper()
	base, err := os.MkdirTemp("", "cairn-rig-")
	if err != nil {
		t.Fatal(err)
	}
	r := &rig{t: t, base: base, program: program, data: filepath.Join(base, "data"), config: filepath.Join(base, "config")}
	for _, d := range []string{"config", "home", "logs"} {
		if err := os.Mkdir(filepath.Join(base, d), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	t.Cleanup(func() {
		if s := r.server; s != nil {
			s.kill()
		}
		r.checkLogs()
		if t.Failed() {
			r.tellLogs()
			if os.Getenv("CAIRN_KEEP") != "" {
				t.Logf("the directories are kept: %s", base)
				return
			}
		}
		os.RemoveAll(base)
	})
	return r
}

// clone makes a second rig with a copy of the store, which must not be running.
func (r *rig) clone(t *testing.T) *rig {
	t.Helper()
	c := newRig(t)
	copyTree(t, r.data, c.data)
	copyTree(t, r.config, c.config)
	return c
}

// checkLogs fails the test for what a server may never say, whatever was done to it.
func (r *rig) checkLogs() {
	for _, name := range r.logs {
		b, err := os.ReadFile(name)
		if err != nil {
			r.t.Error(err)
			continue
		}
		for _, bad := range []string{"WARNING: DATA RACE", "panic:", "fatal error:", "SIGSEGV", "SIGBUS"} {
			if i := bytes.Index(b, []byte(bad)); i >= 0 && !(r.mayFault && bytes.Contains(b, []byte("SIGBUS"))) {
				r.t.Errorf("%s says %q:\n%s", filepath.Base(name), bad, b[i:min(i+4000, len(b))])
			}
		}
	}
}

// count is how many lines of all logs say something.
func (r *rig) count(what string) (n int) {
	r.t.Helper()
	for _, name := range r.logs {
		b, err := os.ReadFile(name)
		if err != nil {
			r.t.Fatal(err)
		}
		n += bytes.Count(b, []byte(what))
	}
	return n
}

// tellLogs prints the ends of the newest logs.
func (r *rig) tellLogs() {
	for _, name := range r.logs[max(0, len(r.logs)-3):] {
		b, err := os.ReadFile(name)
		if err != nil {
			continue
		}
		lines := strings.Split(strings.TrimSpace(string(b)), "\n")
		r.t.Logf("%s, its last lines:\n%s", filepath.Base(name), strings.Join(lines[max(0, len(lines)-25):], "\n"))
	}
}

func (r *rig) env() []string {
	return []string{"GOTRACEBACK=all", "PATH=" + os.Getenv("PATH"), "HOME=" + filepath.Join(r.base, "home"), "XDG_CONFIG_HOME=" + r.config, "TMPDIR=" + r.base, "GORACE=halt_on_error=0"}
}

func (r *rig) node(name string) string { return filepath.Join(r.data, "nodes", name) }
func (r *rig) index() string           { return filepath.Join(r.data, "index") }

// nodeNames lists the node directories that a new store has.
func nodeNames() []string { return []string{"n01", "n02", "n03", "n04", "n05", "n06"} }

// server is one process.
type server struct {
	r       *rig
	cmd     *exec.Cmd
	url     string // set once it serves
	token   string
	cluster string
	serving chan struct{} // closed when it serves
	exited  chan struct{} // closed when it has ended
	code    int           // exit code; -1 when a signal ended it
	log     string
	doomed  atomic.Bool // we have begun to kill or stop it: requests may fail
}

// launch starts a process and does not wait for it to serve.
func (r *rig) launch(args ...string) *server {
	r.t.Helper()
	if r.server != nil {
		r.t.Fatal("a server runs already")
	}
	s := &server{r: r, serving: make(chan struct{}), exited: make(chan struct{})}
	s.log = filepath.Join(r.base, "logs", fmt.Sprintf("%04d.log", len(r.logs)))
	out, err := os.Create(s.log)
	if err != nil {
		r.t.Fatal(err)
	}
	defer out.Close()
	r.logs = append(r.logs, s.log)
	all := append([]string{"serve", "--data", r.data, "--listen", "127.0.0.1:0", "--memory", "256MiB"}, args...)
	s.cmd = exec.Command(r.program, all...)
	s.cmd.Env, s.cmd.Stderr = r.env(), out
	// A test that is killed itself leaves nothing behind.
	s.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	stdout, err := s.cmd.StdoutPipe()
	if err != nil {
		r.t.Fatal(err)
	}
	if err := s.cmd.Start(); err != nil {
		r.t.Fatal(err)
	}
	r.server = s
	go func() {
		lines := bufio.NewScanner(stdout)
		for lines.Scan() {
			cluster, url, ok := strings.Cut(strings.TrimPrefix(lines.Text(), "serving "), " at ")
			if ok && strings.HasPrefix(url, "http") && s.url == "" {
				s.cluster, s.url = cluster, url
				close(s.serving)
			}
		}
		err := s.cmd.Wait()
		if exit, ok := errors.AsType[*exec.ExitError](err); ok {
			s.code = exit.ExitCode()
		} else if err != nil {
			s.code = -2
		}
		close(s.exited)
	}()
	return s
}

// start starts a process and returns once it serves.
func (r *rig) start(args ...string) *server {
	r.t.Helper()
	s := r.launch(args...)
	if !s.waitServing(60 * time.Second) {
		s.dump()
		r.t.Fatalf("the server does not serve: exit code %d\n%s", s.code, s.stderr())
	}
	return s
}

// refused starts a process that must end by itself, with an exit code that is
// not 0, and returns what it said.
func (r *rig) refused(args ...string) (code int, said string) {
	r.t.Helper()
	s := r.launch(args...)
	if s.waitServing(60 * time.Second) {
		s.kill()
		r.t.Fatal("the server serves; it should have refused to start")
	}
	select {
	case <-s.exited:
	default:
		s.kill()
		r.t.Fatalf("the server neither serves nor ends\n%s", s.stderr())
	}
	r.server = nil
	if s.code <= 0 {
		r.t.Errorf("a refused start ends with exit code %d, want one above 0", s.code)
	}
	return s.code, s.stderr()
}

func (s *server) waitServing(limit time.Duration) bool {
	select {
	case <-s.serving:
	case <-s.exited:
		return false
	case <-time.After(limit):
		return false
	}
	b, err := os.ReadFile(filepath.Join(s.r.config, "cairn", s.cluster+".token"))
	if err != nil {
		s.r.t.Errorf("the admin token: %v", err)
		return false
	}
	s.token = strings.TrimSpace(string(b))
	return true
}

func (s *server) stderr() string {
	b, err := os.ReadFile(s.log)
	if err != nil {
		return err.Error()
	}
	return string(b)
}

// kill ends the process with SIGKILL and waits until it is gone.
func (s *server) kill() {
	s.doomed.Store(true)
	_ = s.cmd.Process.Signal(syscall.SIGKILL) // it may have ended by itself
	<-s.exited
	s.r.server = nil
}

// dump makes a process that hangs write its stacks to its log, which ends it.
func (s *server) dump() {
	s.doomed.Store(true)
	_ = s.cmd.Process.Signal(syscall.SIGQUIT)
	select {
	case <-s.exited:
	case <-time.After(5 * time.Second):
	}
}

// stop ends the process with SIGTERM, and fails the test when it does not end
// with exit code 0 in time.
func (s *server) stop() time.Duration {
	s.r.t.Helper()
	s.doomed.Store(true)
	begin := time.Now()
	if err := s.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		s.r.t.Errorf("SIGTERM: %v", err)
	}
	const limit = 15 * time.Second
	select {
	case <-s.exited:
	case <-time.After(limit):
		s.dump()
		s.kill()
		s.r.t.Errorf("the server did not end within %v of SIGTERM", limit)
	}
	if s.code != 0 {
		s.r.t.Errorf("after SIGTERM the server ended with exit code %d, want 0\n%s", s.code, s.stderr())
	}
	s.r.server = nil
	return time.Since(begin)
}

// stopLame ends the process with SIGTERM while a node's disk is dead: it ends by
// itself and soon, with whatever exit code.
func (s *server) stopLame() {
	s.r.t.Helper()
	s.doomed.Store(true)
	_ = s.cmd.Process.Signal(syscall.SIGTERM) // it runs
	select {
	case <-s.exited:
		s.r.server = nil
	case <-time.After(15 * time.Second):
		s.dump()
		s.kill()
		s.r.t.Errorf("the server did not end within 15 s of SIGTERM\n%s", s.stderr())
	}
}

// command runs the program to its end.
func (r *rig) command(args ...string) (stdout, stderr string, code int) {
	r.t.Helper()
	return r.commandIO(nil, args...)
}

func (r *rig) commandIO(in []byte, args ...string) (stdout, stderr string, code int) {
	r.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 40*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, r.program, args...)
	cmd.Env = r.env()
	if s := r.server; s != nil {
		cmd.Env = append(cmd.Env, "CAIRN_SERVER="+s.url)
	}
	var out, errs bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = bytes.NewReader(in), &out, &errs
	err := cmd.Run()
	if exit, ok := errors.AsType[*exec.ExitError](err); ok {
		code = exit.ExitCode()
	} else if err != nil {
		r.t.Fatalf("cairn %s: %v", strings.Join(args, " "), err)
	}
	return out.String(), errs.String(), code
}

// must runs a command that has to succeed.
func (r *rig) must(args ...string) string {
	r.t.Helper()
	out, errs, code := r.command(args...)
	if code != 0 {
		r.t.Fatalf("cairn %s: exit code %d\n%s%s", strings.Join(args, " "), code, out, errs)
	}
	return out
}

// verify reads the stopped store with `cairn verify`, which must find it sound.
func (r *rig) verify() {
	r.t.Helper()
	out, errs, code := r.command("verify", "--data", r.data)
	if code != 0 {
		r.t.Errorf("cairn verify: exit code %d, want 0\n%s%s", code, cut(out), cut(errs))
		return
	}
	r.t.Logf("verify: %s", strings.ReplaceAll(strings.TrimSpace(out), "\n", "; "))
}

func cut(s string) string {
	if len(s) > 4000 {
		return s[:4000] + "\n..."
	}
	return s
}

// status is what `cairn status --json` says.
type status struct {
	Survives   string `json:"survives"`
	Writable   bool   `json:"writable"`
	Reason     string `json:"reason"`
	Width      string `json:"code_of_new_packs"`
	PacksShort *int   `json:"packs_short"`
	Epoch      uint64 `json:"epoch"`
	Sequence   uint64 `json:"sequence"`
	Nodes      []struct {
		Name   string `json:"name"`
		ID     string `json:"id"`
		State  string `json:"state"`
		Reason string `json:"reason"`
	} `json:"nodes"`
}

func (r *rig) status() status {
	r.t.Helper()
	var st status
	out := r.must("status", "--json")
	if err := json.Unmarshal([]byte(out), &st); err != nil {
		r.t.Fatalf("status --json: %v\n%s", err, out)
	}
	if st.PacksShort == nil || len(st.Nodes) == 0 {
		r.t.Fatalf("status --json tells no packs_short or no nodes:\n%s", out)
	}
	return st
}

// states maps the nodes to their states.
func (st status) states() map[string]string {
	m := map[string]string{}
	for _, n := range st.Nodes {
		m[n.Name] = n.State
	}
	return m
}

// reason is why a node is not up.
func (st status) reason(name string) string {
	for _, n := range st.Nodes {
		if n.Name == name {
			return n.Reason
		}
	}
	return ""
}

// replaceAndHeal replaces nodes and waits until nothing is short of a shard.
func (r *rig) replaceAndHeal(names ...string) time.Duration {
	r.t.Helper()
	before := r.status()
	r.must(append([]string{"nodes", "replace"}, names...)...)
	begin := time.Now()
	fewest, since := -1, begin
	for {
		st := r.status()
		if fewest < 0 || *st.PacksShort < fewest {
			fewest, since = *st.PacksShort, time.Now()
		}
		if *st.PacksShort == 0 {
			// A log pack is a pack that the next loss leaves short: a repair that
			// wrote one for each pack would double the log with every loss.
			if grew, most := st.Sequence-before.Sequence, uint64(20+*before.PacksShort/16); grew > most {
				r.t.Errorf("repairing %d packs took %d log packs, want at most %d", *before.PacksShort, grew, most)
			}
			for _, n := range st.Nodes {
				if n.State != "up" {
					r.t.Fatalf("replaced and repaired, and node %s is %s: %s", n.Name, n.State, n.Reason)
				}
			}
			return time.Since(begin)
		}
		if time.Since(since) > 3*time.Minute {
			r.t.Fatalf("%v were replaced, and for three minutes %d packs have been short: %s", names, *st.PacksShort, st.Survives)
		}
		time.Sleep(50 * time.Millisecond)
	}
}

// empty removes what a directory holds, not the directory. Under a running
// process names may come while others go, so that it looks until nothing is left.
func empty(t *testing.T, dir string) {
	t.Helper()
	for range 100 {
		entries, err := os.ReadDir(dir)
		if err != nil {
			t.Error(err)
			return
		}
		if len(entries) == 0 {
			return
		}
		for _, e := range entries {
			_ = os.RemoveAll(filepath.Join(dir, e.Name())) // looked at again
		}
	}
	t.Errorf("%s does not become empty", dir)
}

func removeAll(t *testing.T, path string) {
	t.Helper()
	if err := os.RemoveAll(path); err != nil {
		t.Fatal(err)
	}
}

func rename(t *testing.T, from, to string) {
	t.Helper()
	if err := os.Rename(from, to); err != nil {
		t.Fatal(err)
	}
}

// copyTree copies directories and plain files.
func copyTree(t *testing.T, from, to string) {
	t.Helper()
	err := filepath.WalkDir(from, func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(from, p)
		if err != nil || d.Name() == ballastName || d.Name() == "lost+found" {
			return err
		}
		dst := filepath.Join(to, rel)
		if d.IsDir() {
			return os.MkdirAll(dst, 0o700)
		}
		in, err := os.Open(p)
		if err != nil {
			return err
		}
		defer in.Close()
		out, err := os.OpenFile(dst, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
		if err != nil {
			return err
		}
		_, err = out.ReadFrom(in)
		return errors.Join(err, out.Close())
	})
	if err != nil {
		t.Fatal(err)
	}
}

var hashSeed = maphash.MakeSeed()

// fingerprint sums up names, sizes and bytes of a tree, for "nothing changed".
// Lock files are left out: they hold nothing.
func fingerprint(t *testing.T, dirs ...string) uint64 {
	t.Helper()
	var h maphash.Hash
	h.SetSeed(hashSeed)
	for _, dir := range dirs {
		err := filepath.WalkDir(dir, func(p string, d fs.DirEntry, err error) error {
			if err != nil || d.Name() == "lock" || d.Name() == "LOCK" || d.Name() == ballastName {
				return err
			}
			h.WriteString(p)
			if d.IsDir() {
				return nil
			}
			b, err := os.ReadFile(p)
			if err != nil {
				return err
			}
			_ = binary.Write(&h, binary.LittleEndian, int64(len(b)))
			h.Write(b)
			return nil
		})
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			t.Fatal(err)
		}
	}
	return h.Sum64()
}

// ballastName is the file that keeps space in reserve; it holds nothing, and a
// server makes it again.
const ballastName = "ballast"

// allocated is the number of bytes that a tree takes on disk, but for the ballast.
func allocated(t *testing.T, dir string) int64 {
	t.Helper()
	var sum int64
	err := filepath.WalkDir(dir, func(_ string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err != nil || d.Name() == ballastName {
			return err
		}
		if st, ok := info.Sys().(*syscall.Stat_t); ok {
			sum += st.Blocks * 512
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return sum
}

func mib(n int64) string { return fmt.Sprintf("%.1f MiB", float64(n)/(1<<20)) }

// pick draws n different names.
func pick(rng *rand.Rand, names []string, n int) []string {
	out := slices.Clone(names)
	rng.Shuffle(len(out), func(i, j int) { out[i], out[j] = out[j], out[i] })
	return out[:n]
}
