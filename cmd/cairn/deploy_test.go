package main

import (
	"bytes"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"
)

// TestCompose starts deploy/compose.yaml, puts and gets, restarts it, gets again,
// and takes it down. The container's own health check must come to say healthy.
func TestCompose(t *testing.T) {
	t.Parallel()
	var compose []string
	for _, c := range [][]string{{"docker", "compose"}, {"docker-compose"}} {
		if exec.Command(c[0], append(c[1:], "version")...).Run() == nil {
			compose = c
			break
		}
	}
	if compose == nil {
		t.Skip("Compose is not installed")
	}
	name, dir := buildImage(t)
	run := func(program []string, env []string, args ...string) string {
		t.Helper()
		cmd := exec.Command(program[0], append(program[1:], args...)...)
		cmd.Env = append(os.Environ(), env...)
		out, err := cmd.CombinedOutput()
		if err != nil {
			logs, _ := exec.Command("docker", "logs", name).CombinedOutput()
			t.Fatalf("%q %q: %v\n%s\nthe container's log:\n%s", program, args, err, out, logs)
		}
		return string(out)
	}
	project := append(compose, "-p", name, "-f", filepath.Join("..", "..", "deploy", "compose.yaml"))
	env := []string{"CAIRN_NAME=" + name, "CAIRN_IMAGE=" + name, "CAIRN_PUBLISH=127.0.0.1:"} // a free port
	up := func(args ...string) { t.Helper(); run(project, env, args...) }
	t.Cleanup(func() {
		down := exec.Command(project[0], append(project[1:], "down", "-v", "-t", "0")...)
		down.Env = append(os.Environ(), env...)
		if out, err := down.CombinedOutput(); err != nil {
			t.Errorf("down: %v\n%s", err, out)
		}
	})
	client := func(args ...string) {
		t.Helper()
		url := "http://" + docker(t, "port", name, "5000/tcp")
		run([]string{cairnProgram(t)}, []string{"CAIRN_SERVER=" + url, "CAIRN_TOKEN=" + containerToken(t, name)}, args...)
	}
	healthy := func() {
		t.Helper()
		for limit := time.Now().Add(time.Minute); ; time.Sleep(200 * time.Millisecond) {
			state := docker(t, "inspect", "-f", "{{.State.Status}} {{.State.Health.Status}}", name)
			if state == "running healthy" {
				return
			}
			if time.Now().After(limit) {
				t.Fatalf("the container is %q after a minute:\n%s", state, run([]string{"docker"}, nil, "logs", name))
			}
		}
	}
	in, out := filepath.Join(dir, "in"), filepath.Join(dir, "out")
	content := make([]byte, 3<<20)
	rand.NewChaCha8([32]byte{2}).Read(content)
	if err := os.WriteFile(in, content, 0o600); err != nil {
		t.Fatal(err)
	}
	up("up", "-d")
	healthy()
	if logs := run([]string{"docker"}, nil, "logs", name); !strings.Contains(logs, "recovery code, shown until") || strings.Contains(logs, containerToken(t, name)) {
		t.Errorf("the first start's log lacks the recovery code, or has the token:\n%s", logs)
	}
	client("put", in, "main/in")
	client("get", "main/in", out+"1")
	up("stop")
	if code := docker(t, "inspect", "-f", "{{.State.ExitCode}}", name); code != "0" {
		t.Errorf("after stop the container has exited with %s, want 0", code)
	}
	up("up", "-d")
	healthy()
	client("get", "main/in", out+"2")
	up("down", "-t", "10") // keeps the volumes
	up("up", "-d")
	healthy()
	client("get", "main/in", out+"3")
	for _, n := range []string{"1", "2", "3"} {
		if got, err := os.ReadFile(out + n); err != nil || !bytes.Equal(got, content) {
			t.Errorf("get %s: %d bytes, %v; want the %d stored", n, len(got), err, len(content))
		}
	}
}

// TestServiceUnits: systemd takes the units without a complaint and finds the services
// closed, and the commands in them are ones there are.
func TestServiceUnits(t *testing.T) {
	t.Parallel()
	from, to := filepath.Join("..", "..", "deploy", "systemd"), t.TempDir()
	start := regexp.MustCompile(`(?m)^ExecStart=(/usr/local/bin/(cairn .*))$`)
	names, err := os.ReadDir(from)
	if err != nil {
		t.Fatal(err)
	}
	_, missing := exec.LookPath("systemd-analyze")
	analyze := func(args ...string) {
		t.Helper()
		if missing != nil {
			return
		}
		if out, err := exec.Command("systemd-analyze", args...).CombinedOutput(); err != nil || args[0] == "verify" && len(out) > 0 {
			t.Errorf("systemd-analyze %q: %v\n%s", args, err, out)
		}
	}
	verify := []string{"verify"}
	for _, name := range names {
		unit, err := os.ReadFile(filepath.Join(from, name.Name()))
		if err != nil {
			t.Fatal(err)
		}
		path := filepath.Join(to, name.Name())
		verify = append(verify, path)
		// It looks whether the program is there.
		if err := os.WriteFile(path, bytes.ReplaceAll(unit, []byte("/usr/local/bin/cairn"), []byte(cairnProgram(t))), 0o600); err != nil {
			t.Fatal(err)
		}
		if filepath.Ext(path) != ".service" {
			continue
		}
		m := start.FindSubmatch(unit)
		if m == nil {
			t.Fatalf("no ExecStart of cairn in\n%s", unit)
		}
		if err := unknownIn(string(m[2])); err != nil {
			t.Errorf("%s: %v", name.Name(), err)
		}
		analyze("security", "--offline=true", "--threshold=20", path) // 2.0 of 10
	}
	analyze(verify...)
	if missing != nil {
		t.Skip("systemd-analyze is not installed")
	}
}

// TestCronJob: the command of the CronJob is one there is.
func TestCronJob(t *testing.T) {
	b, err := os.ReadFile(filepath.Join("..", "..", "deploy", "kubernetes", "scrub.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	m := regexp.MustCompile(`(?m)^ +command: \["/(cairn", .*)\]$`).FindSubmatch(b)
	if m == nil {
		t.Fatalf("no command in it\n%s", b)
	}
	if err := unknownIn(strings.NewReplacer(`"`, "", ",", "").Replace(string(m[1]))); err != nil {
		t.Error(err)
	}
}
