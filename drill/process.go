package drill

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

const (
	// startLimit is how long a start may take: a store of some size replays its log.
	startLimit = 10 * time.Minute
	// stopLimit is how long the end of a process may take after a signal to stop.
	stopLimit = time.Minute
	// saidMost bounds what is kept of what a command prints.
	saidMost = 64 << 20
)

// server is a process that serves the store that is broken.
type server struct {
	cmd    *exec.Cmd
	url    string
	token  string
	log    string
	began  time.Time
	exited chan struct{} // closed when it has ended
	code   int           // then: its exit code, -1 when a signal ended it
}

// env is that of everything that is run: nothing of the caller's reaches it.
func (r *rig) env() []string {
	return []string{"PATH=" + os.Getenv("PATH"), "HOME=" + filepath.Join(r.dir, "home"), "XDG_CONFIG_HOME=" + r.config, "TMPDIR=" + r.dir}
}

// launch starts a process that is to serve dir, and returns when it serves or has
// ended by itself.
func (r *rig) launch(ctx context.Context, dir string, args ...string) (s *server, serving bool, err error) {
	s = &server{began: time.Now(), exited: make(chan struct{}), log: filepath.Join(r.dir, "logs", fmt.Sprintf("%d.log", time.Now().UnixNano()))}
	log, err := os.Create(s.log)
	if err != nil {
		return nil, false, err
	}
	defer log.Close()
	r.logs = append(r.logs, s.log)
	// Scrubs begin when the drill says so.
	all := []string{"serve", "--data", dir, "--listen", "127.0.0.1:0", "--json", "--scrub-light-within", "0", "--scrub-deep-within", "0"}
	s.cmd = exec.Command(r.cfg.Program, append(all, args...)...)
	s.cmd.Env, s.cmd.Stderr = r.env(), log
	s.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL} // a drill that is killed leaves no server behind
	out, err := s.cmd.StdoutPipe()
	if err != nil {
		return nil, false, err
	}
	if err := s.cmd.Start(); err != nil {
		return nil, false, err
	}
	type told struct{ Event, Store, URL string }
	serves := make(chan told, 1)
	go func() {
		for lines := bufio.NewScanner(out); lines.Scan(); {
			var t told
			if json.Unmarshal(lines.Bytes(), &t) == nil && t.Event == "serving" && len(serves) == 0 {
				serves <- t
			}
		}
		s.code = exitCode(s.cmd.Wait())
		close(s.exited)
	}()
	limit := time.NewTimer(startLimit)
	defer limit.Stop()
	select {
	case t := <-serves:
		b, err := os.ReadFile(filepath.Join(r.config, "cairn", t.Store+".token"))
		if err != nil {
			s.end(syscall.SIGKILL)
			return nil, false, err
		}
		s.url, s.token = t.URL, strings.TrimSpace(string(b))
		return s, true, nil
	case <-s.exited:
		return s, false, nil
	case <-ctx.Done():
		err = ctx.Err()
	case <-limit.C:
		err = brokenf("a start neither serves nor ends within %v", startLimit)
	}
	s.end(syscall.SIGKILL)
	return nil, false, err
}

// exitCode is that of a process that has ended; -1 when a signal ended it.
func exitCode(err error) int {
	if e, ok := errors.AsType[*exec.ExitError](err); ok {
		return e.ExitCode()
	}
	if err != nil {
		return -2
	}
	return 0
}

// end sends a signal and waits; a process that does not end is killed.
func (s *server) end(sig syscall.Signal) (inTime bool) {
	_ = s.cmd.Process.Signal(sig) // it may have ended by itself
	select {
	case <-s.exited:
		return true
	case <-time.After(stopLimit):
	}
	_ = s.cmd.Process.Kill()
	<-s.exited
	return false
}

// said is the end of a process's log.
func (s *server) said() string {
	b, err := os.ReadFile(s.log)
	if err != nil {
		return err.Error()
	}
	var last struct{ Error string } // its last words are an object, as it was told
	line := lastLine(b)
	if json.Unmarshal([]byte(line), &last) == nil && last.Error != "" {
		return last.Error
	}
	return line
}

// start serves the store; that it does not is a broken promise.
func (r *rig) start(ctx context.Context, args ...string) error {
	s, err := r.tryStart(ctx, args...)
	if err == nil && r.server == nil {
		err = brokenf("a start ends with exit code %d: %s", s.code, s.said())
	}
	return err
}

// tryStart serves the store, unless the start ends by itself.
func (r *rig) tryStart(ctx context.Context, args ...string) (*server, error) {
	began := time.Now()
	r.server = nil // one that has ended by itself
	s, serving, err := r.launch(ctx, r.data, r.withKey(args)...)
	if err == nil && serving {
		r.server = s
		r.say("note", "a start serves after %v", time.Since(began).Round(time.Millisecond))
	}
	return s, err
}

func (r *rig) withKey(args []string) []string {
	if r.key == "" {
		return args // the first start makes it
	}
	for _, a := range args {
		if a == "--key-file" || a == "--recovery-code-file" {
			return args
		}
	}
	return append([]string{"--key-file", r.key}, args...)
}

// refused wants a start that ends by itself, with an exit code above 0, and
// returns what it said.
func (r *rig) refused(ctx context.Context, what string, args ...string) (string, error) {
	s, serving, err := r.launch(ctx, r.data, r.withKey(args)...)
	if err != nil {
		return "", err
	}
	if serving {
		s.end(syscall.SIGKILL)
		return "", brokenf("%s, and a start serves all the same", what)
	}
	if s.code <= 0 {
		return "", brokenf("%s, and the start that was refused ends with exit code %d", what, s.code)
	}
	return s.said(), nil
}

// kill ends the process with SIGKILL.
func (r *rig) kill() {
	r.server.end(syscall.SIGKILL)
	r.server = nil
}

// stop ends the process in an orderly way.
func (r *rig) stop() error {
	s := r.server
	r.server = nil
	if !s.end(syscall.SIGTERM) {
		return brokenf("a server does not end within %v of a signal to stop", stopLimit)
	}
	if s.code != 0 {
		return brokenf("a server that is told to stop ends with exit code %d: %s", s.code, s.said())
	}
	return nil
}

// halt leaves no process behind.
func (r *rig) halt() {
	if r.server != nil {
		r.kill()
	}
}

// ran is what a command printed, and its exit code.
type ran struct {
	args   []string
	stdout []byte
	stderr string
	code   int
}

func (c ran) String() string {
	line, _, _ := strings.Cut(strings.TrimSpace(c.stderr), "\n")
	return fmt.Sprintf("cairn %s ends with exit code %d: %s", strings.Join(c.args, " "), c.code, line)
}

// bounded keeps the first bytes of what is written to it.
type bounded struct{ bytes.Buffer }

func (b *bounded) Write(p []byte) (int, error) {
	if n := saidMost - b.Len(); n > 0 {
		b.Buffer.Write(p[:min(n, len(p))])
	}
	return len(p), nil
}

// cairn runs a command to its end.
func (r *rig) cairn(ctx context.Context, args ...string) (ran, error) {
	cmd := exec.CommandContext(ctx, r.cfg.Program, args...)
	cmd.Env = r.env()
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if r.server != nil {
		cmd.Env = append(cmd.Env, "CAIRN_SERVER="+r.server.url, "CAIRN_TOKEN="+r.server.token)
	}
	var out, errs bounded
	cmd.Stdout, cmd.Stderr = &out, &errs
	err := cmd.Run()
	if _, ok := errors.AsType[*exec.ExitError](err); err != nil && !ok {
		return ran{}, err
	}
	return ran{args, out.Bytes(), errs.String(), exitCode(err)}, ctx.Err()
}

// must runs a command that has to end with 0.
func (r *rig) must(ctx context.Context, args ...string) (ran, error) {
	c, err := r.cairn(ctx, args...)
	if err == nil && c.code != 0 {
		err = &broken{c.String()}
	}
	return c, err
}

// offline runs a command on the store's directory.
func (r *rig) offline(ctx context.Context, command string, args ...string) (ran, error) {
	all := []string{command, "--data", r.data}
	if command != "reclaim" { // it needs none
		all = append(all, "--key-file", r.key)
	}
	return r.cairn(ctx, append(all, args...)...)
}
