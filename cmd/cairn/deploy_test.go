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

// TestServiceUnit: systemd takes the unit without a complaint and finds it closed,
// and the command in it is one there is.
func TestServiceUnit(t *testing.T) {
	t.Parallel()
	unit, err := os.ReadFile(filepath.Join("..", "..", "deploy", "systemd", "cairn.service"))
	if os.IsNotExist(err) {
		t.Skip("there is no unit here")
	}
	if err != nil {
		t.Fatal(err)
	}
	start := regexp.MustCompile(`(?m)^ExecStart=(/usr/local/bin/(cairn .*))$`).FindSubmatch(unit)
	if start == nil {
		t.Fatalf("no ExecStart of cairn in\n%s", unit)
	}
	if err := unknownIn(string(start[2])); err != nil {
		t.Error(err)
	}
	if _, err := exec.LookPath("systemd-analyze"); err != nil {
		t.Skip("systemd-analyze is not installed")
	}
	// It looks whether the program is there.
	path := filepath.Join(t.TempDir(), "cairn.service")
	if err := os.WriteFile(path, bytes.ReplaceAll(unit, []byte("/usr/local/bin/cairn"), []byte(cairnProgram(t))), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, args := range [][]string{{"verify", path}, {"security", "--offline=true", "--threshold=20", path}} { // 2.0 of 10
		if out, err := exec.Command("systemd-analyze", args...).CombinedOutput(); err != nil || args[0] == "verify" && len(out) > 0 {
			t.Errorf("systemd-analyze %q: %v\n%s", args, err, out)
		}
	}
}
