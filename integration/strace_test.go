package integration

import (
	"bytes"
	"cmp"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// needStrace skips a test where a running process cannot be given false answers.
func needStrace(t *testing.T) {
	t.Helper()
	if why := straceProbe(); why != "" {
		t.Skip(why)
	}
}

var straceProbe = sync.OnceValue(func() string {
	if _, err := exec.LookPath("strace"); err != nil {
		return "there is no strace"
	}
	child := exec.Command("sleep", "60")
	if err := child.Start(); err != nil {
		return err.Error()
	}
	defer func() {
		_ = child.Process.Kill() // it runs
		_ = child.Wait()         // killed
	}()
	dir, err := os.MkdirTemp("", "cairn-probe-")
	if err != nil {
		return err.Error()
	}
	defer os.RemoveAll(dir)
	tr, err := attach(child.Process.Pid, filepath.Join(dir, "trace"), "-P", "/", "-e", "trace=fdatasync", "-e", "inject=fdatasync:error=EIO")
	if err == nil {
		err = tr.detach()
	}
	if err != nil {
		return fmt.Sprintf("strace cannot inject errors here: %v", err)
	}
	return ""
})

// tracer is an strace of a running process.
type tracer struct {
	cmd  *exec.Cmd
	said *lockedBuffer
	out  string // one file for each thread: out.TID
}

// lockedBuffer is written by one goroutine and read by another.
type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// attach returns when all threads are traced.
func attach(pid int, out string, args ...string) (*tracer, error) {
	tr := &tracer{out: out, said: &lockedBuffer{}}
	all := append([]string{"-ff", "-y", "-ttt", "-s", "0", "-o", out, "-p", strconv.Itoa(pid)}, args...)
	tr.cmd = exec.Command("strace", all...)
	tr.cmd.Stderr = tr.said
	tr.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGTERM} // it detaches
	if err := tr.cmd.Start(); err != nil {
		return nil, err
	}
	for begin := time.Now(); ; time.Sleep(5 * time.Millisecond) {
		// "Process 123 attached with 9 threads", or without, of one thread.
		if strings.Contains(tr.said.String(), "attached") {
			return tr, nil
		}
		if time.Since(begin) > 20*time.Second || strings.Contains(tr.said.String(), "ptrace(") {
			_ = tr.cmd.Process.Kill() // it may have ended
			_ = tr.cmd.Wait()
			return nil, fmt.Errorf("strace does not attach: %s", tr.said)
		}
	}
}

// detach lets the process run untouched again.
func (tr *tracer) detach() error {
	if err := tr.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		return err
	}
	done := make(chan struct{})
	go func() {
		_ = tr.cmd.Wait() // ended by the signal
		close(done)
	}()
	select {
	case <-done:
		return nil
	case <-time.After(20 * time.Second):
		_ = tr.cmd.Process.Kill() // which detaches as well
		<-done
		return fmt.Errorf("strace does not detach: %s", tr.said)
	}
}

// tamper makes calls of the running server answer what the arguments say.
func (s *server) tamper(args ...string) *tracer {
	s.r.t.Helper()
	s.r.traces++
	tr, err := attach(s.cmd.Process.Pid, filepath.Join(s.r.base, "logs", fmt.Sprintf("trace%d", s.r.traces)), args...)
	if err != nil {
		s.r.t.Fatal(err)
	}
	return tr
}

// call is one line of a trace.
type call struct {
	at       float64 // seconds, when it began
	name     string
	path     string // of its descriptor
	result   string
	injected bool
}

var traceLine = regexp.MustCompile(`^(\d+\.\d+) (\w+)\(\d+<([^>]*)>.*\) += (.*)$`)

// calls reads the trace, in the order in which the calls began. Every thread has
// a file of its own, so that no line is torn in two.
func (tr *tracer) calls(t *testing.T) []call {
	t.Helper()
	names, err := filepath.Glob(tr.out + ".*")
	if err != nil {
		t.Fatal(err)
	}
	var out []call
	for _, name := range names {
		b, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		for line := range strings.Lines(string(b)) {
			m := traceLine.FindStringSubmatch(strings.TrimSpace(line))
			if m == nil {
				continue
			}
			at, err := strconv.ParseFloat(m[1], 64)
			if err != nil {
				t.Fatal(err)
			}
			out = append(out, call{at: at, name: m[2], path: m[3], result: m[4], injected: strings.HasSuffix(m[4], "(INJECTED)")})
		}
	}
	slices.SortStableFunc(out, func(a, b call) int { return cmp.Compare(a.at, b.at) })
	return out
}

// injected lists the calls whose answers were false.
func injected(calls []call) []call {
	return slices.DeleteFunc(slices.Clone(calls), func(c call) bool { return !c.injected })
}
