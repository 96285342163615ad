package notice

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"time"
	"unicode"
)

const (
	commandTime   = 30 * time.Second
	commandLinger = 2 * time.Second // for what it has started to let go of its output
	maxOutput     = 4 << 10         // bytes that are kept
	maxTold       = 300             // bytes of them in an error
)

// command runs a program for each message.
type command struct {
	path string
	args []string
	time time.Duration
}

func newCommand(words []string) (*command, error) {
	path, err := exec.LookPath(words[0])
	if err != nil {
		return nil, fmt.Errorf("the command for notices: %w", err)
	}
	return &command{path: path, args: words[1:], time: commandTime}, nil
}

// send runs the program, with the message on its standard input and none of our
// settings and tokens in its environment, and ends it with all that it has started when
// it takes too long.
func (c *command) send(ctx context.Context, body []byte) error {
	ctx, cancel := context.WithTimeout(ctx, c.time)
	defer cancel()
	cmd := exec.CommandContext(ctx, c.path, c.args...)
	for _, e := range os.Environ() {
		if !strings.HasPrefix(e, "CAIRN_") {
			cmd.Env = append(cmd.Env, e)
		}
	}
	var out capped
	cmd.Stdin, cmd.Stdout, cmd.Stderr = bytes.NewReader(body), &out, &out
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	cmd.WaitDelay = commandLinger
	err := cmd.Run()
	if ctx.Err() != nil {
		err = fmt.Errorf("it did not end in time: %w", ctx.Err())
	}
	if err == nil {
		return nil
	}
	if text := out.text(); text != "" {
		return fmt.Errorf("%w: it said: %s", err, text)
	}
	return err
}

// capped keeps the beginning of what is written to it. One goroutine writes.
type capped struct{ b []byte }

func (c *capped) Write(p []byte) (int, error) {
	c.b = append(c.b, p[:min(len(p), maxOutput-len(c.b))]...)
	return len(p), nil
}

// text is a line of it for a log.
func (c *capped) text() string {
	s := strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) {
			return ' '
		}
		return r
	}, strings.ToValidUTF8(string(c.b[:min(len(c.b), maxTold)]), "?"))
	return strings.TrimSpace(s)
}
