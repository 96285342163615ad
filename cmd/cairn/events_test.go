package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"
)

// follower is `cairn events --json`, running.
type follower struct {
	t     *testing.T
	cmd   *exec.Cmd
	lines chan string
	said  bytes.Buffer
}

func startFollower(t *testing.T, env []string) *follower {
	t.Helper()
	f := &follower{t: t, cmd: exec.Command(cairnProgram(t), "events", "--json"), lines: make(chan string, 1000)}
	f.cmd.Env, f.cmd.Stderr = env, &f.said
	f.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	out, err := f.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := f.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		defer close(f.lines)
		for sc := bufio.NewScanner(out); sc.Scan(); {
			f.lines <- sc.Text()
		}
	}()
	t.Cleanup(func() { _ = f.cmd.Process.Kill() }) // when it runs still
	return f
}

// until reads events up to one that holds the text.
func (f *follower) until(text string) event {
	f.t.Helper()
	limit := time.After(time.Minute)
	for {
		select {
		case line, ok := <-f.lines:
			var e event
			if err := json.Unmarshal([]byte(line), &e); !ok || err != nil {
				f.t.Fatalf("%q is no event: %v\n%s", line, err, &f.said)
			}
			if strings.Contains(line, text) {
				return e
			}
		case <-limit:
			f.t.Fatalf("no event with %s\n%s", text, &f.said)
		}
	}
}

// TestEventsAreFollowed: over the end of the server, which waits for no listener, and
// its next start; until a signal.
func TestEventsAreFollowed(t *testing.T) {
	t.Parallel()
	s, env, dir := testServer(t)
	cairn := func(args ...string) string {
		t.Helper()
		cmd := exec.Command(cairnProgram(t), args...)
		cmd.Env = env
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatalf("%q: %v\n%s", args, err, out)
		}
		return string(out)
	}
	f := startFollower(t, env)
	// It listens when it tells of a run that began after it.
	for started := false; !started; {
		cairn("jobs", "start", "check-index", "--wait")
		select {
		case line := <-f.lines:
			started = strings.Contains(line, "check-index")
		default:
		}
	}
	var j jobInfo
	if err := json.Unmarshal([]byte(cairn("jobs", "start", "snapshot", "--wait", "--json")), &j); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"job-started", "job-ended"} {
		if e := f.until(j.ID); e.Name != name && e.Name != "job-progress" {
			t.Errorf("%s of the snapshot, want %s", e.Name, name)
		} else if e.Name == "job-progress" {
			f.until(`"job-ended"`)
		}
	}
	if err := s.end(syscall.SIGTERM); err != nil {
		t.Fatalf("the server does not end well beside a listener: %v", err)
	}
	if strings.Contains(s.log.String(), "cut off") {
		t.Error("the listener held the server up")
	}
	_, port, _ := strings.Cut(strings.TrimPrefix(s.url, "http://"), ":")
	again, err := startServer(cairnProgram(t), dir, env, "--data", dir+"/data", "--memory", "256MiB", "--listen", "127.0.0.1:"+port)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = again.end(syscall.SIGKILL) })
	f.until(`"missed"`)
	cairn("jobs", "start", "check-index", "--wait")
	f.until(`"request","state":"done"`)
	if err := f.cmd.Process.Signal(syscall.SIGINT); err != nil {
		t.Fatal(err)
	}
	for range f.lines {
	}
	var exit *exec.ExitError
	if err := f.cmd.Wait(); !errors.As(err, &exit) || exit.ExitCode() != exitInterrupted {
		t.Errorf("after a signal: %v; want %d", err, exitInterrupted)
	}
	if said := f.said.String(); !strings.Contains(said, "the server has broken off; trying again in 3s") {
		t.Errorf("it said %q", said)
	}
}

// TestEachEvent: what a stream says, as the WHATWG has it.
func TestEachEvent(t *testing.T) {
	for _, c := range []struct{ text, want, last string }{
		{"retry: 3000\nid: a-0\n\n", "", "a-0"},
		{"id: a-1\nevent: job-ended\ndata: {\"x\":1}\n\n:\n\nid: a-2\nevent: node\ndata: 2\n\n", `a-1 job-ended {"x":1}; a-2 node 2; `, "a-2"},
		{"id:a-1\ndata:{\ndata:}\n\n", "a-1  {\n}; ", "a-1"},
		{": comment\nother: x\ndata: 1\nid: a-7\n\ndata: 2\n\n", "a-7  1; a-7  2; ", "a-7"},
		{"id: a-1\ndata: 1\n\nid: a-2\ndata: 2\n", "a-1  1; ", "a-1"}, // cut off
		{"id: a-1\n", "", "before"},
		{"data: no JSON\n\n", "", "before"},
	} {
		got, last := "", "before"
		err := eachEvent(strings.NewReader(c.text), &last, func() {}, func(e event) error {
			got += fmt.Sprintf("%s %s %s; ", e.ID, e.Name, e.Data)
			return nil
		})
		if got != c.want || last != c.last || err == nil {
			t.Errorf("%q: %q, then %s, %v; want %q, then %s, and an error", c.text, got, last, err, c.want, c.last)
		}
	}
}

func TestEventLines(t *testing.T) {
	at := `"time":"2026-03-01T12:00:00Z"`
	for _, c := range []struct {
		e    event
		want string
	}{
		{event{Name: "node", Data: json.RawMessage(`{` + at + `,"node":"n03","state":"missing","reason":"gone\u001b[0m"}`)}, `"node n03 missing: gone\x1b[0m"`},
		{event{Name: "writes", Data: json.RawMessage(`{` + at + `,"taken":false,"reason":"too few"}`)}, "writes no: too few"},
		{event{Name: "room", Data: json.RawMessage(`{` + at + `,"taken":true}`)}, "room yes"},
		{event{Name: "overdue", Data: json.RawMessage(`{` + at + `,"depth":"deep","age":{"since":"2026-01-01T12:00:00Z","age_seconds":5100000,"limit_seconds":2592000,"overdue":true}}`)},
			"overdue deep scrub: 59d40m old, OVERDUE: limit 30d"},
		{event{Name: "missed", Data: json.RawMessage(`{` + at + `}`)}, "missed some events before this are not known any more"},
		{event{Name: "job-progress", Data: json.RawMessage(`{` + at + `,"job":{"id":"ID","kind":"scrub","trigger":"schedule","state":"running","progress":{"done":1024,"total":4096,"unit":"bytes"}}}`)},
			"job-progress scrub ID running by schedule: bytes 1.0 KiB of 4.0 KiB"},
		{event{Name: "job-ended", Data: json.RawMessage(`{` + at + `,"job":{"id":"ID","kind":"repair","trigger":"loss","state":"failed","result":{"packs":2,"lost_bytes":2048,"list":[1]},"error":"one\ntwo"}}`)},
			"job-ended repair ID failed by loss: packs 2, lost bytes 2.0 KiB; one"},
	} {
		if _, got, _ := strings.Cut(eventLine(c.e), "  "); got != c.want {
			t.Errorf("%s %s: %q, want %q", c.e.Name, c.e.Data, got, c.want)
		}
	}
}
