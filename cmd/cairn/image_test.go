package main

import (
	"archive/tar"
	"bytes"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// docker runs the client of the engine and returns what it prints.
func docker(t *testing.T, args ...string) string {
	t.Helper()
	cmd := exec.Command("docker", args...)
	var out, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &stderr
	if err := cmd.Run(); err != nil {
		t.Fatalf("docker %q: %v\n%s%s", args, err, &out, &stderr)
	}
	return strings.TrimSpace(out.String())
}

// buildImage builds the image from nothing, as `make image` does, under a name of
// its own, and removes it in the end. dir is what it was built in.
func buildImage(t *testing.T) (name, dir string) {
	t.Helper()
	if testing.Short() {
		t.Skip("an image is not built in a short run")
	}
	if out, err := exec.Command("docker", "version", "--format", "{{.Server.Version}}").CombinedOutput(); err != nil {
		t.Skipf("no Docker engine answers: %v: %s", err, bytes.TrimSpace(out))
	}
	name, dir = fmt.Sprintf("cairn-test-%d", rand.Uint64()), t.TempDir()
	if err := os.MkdirAll(filepath.Join(dir, "bin", "volume"), 0o755); err != nil {
		t.Fatal(err)
	}
	build := exec.Command("go", "build", "-trimpath", "-o", filepath.Join(dir, "bin", "cairn"), ".")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build: %v\n%s", err, out)
	}
	t.Cleanup(func() { _ = exec.Command("docker", "rmi", "-f", name).Run() })
	docker(t, "build", "-q", "--build-arg", "RUNTIME=scratch", "--target", "prebuilt", "-f", filepath.Join("..", "..", "Dockerfile"), "-t", name, dir)
	return name, dir
}

// containerToken copies the admin token out of a container: the image has no shell.
func containerToken(t *testing.T, container string) string {
	t.Helper()
	files := tar.NewReader(strings.NewReader(docker(t, "cp", container+":/config/cairn/token", "-")))
	if _, err := files.Next(); err != nil {
		t.Fatal(err)
	}
	var b bytes.Buffer
	if _, err := b.ReadFrom(files); err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(b.String())
}

// TestImage runs the image on volumes, puts and gets through its published port,
// stops it with SIGTERM, and finds everything again in the next container.
func TestImage(t *testing.T) {
	t.Parallel()
	name, dir := buildImage(t)
	remove := func(args ...string) { t.Cleanup(func() { _ = exec.Command("docker", args...).Run() }) }
	for _, volume := range []string{"data", "config"} {
		docker(t, "volume", "create", name+"-"+volume)
		remove("volume", "rm", "-f", name+"-"+volume)
	}
	var token string
	start := func() (container, url string) {
		container = docker(t, "run", "-d", "-v", name+"-data:/data", "-v", name+"-config:/config", "-p", "127.0.0.1::5000", name)
		remove("rm", "-f", container)
		url = "http://" + docker(t, "port", container, "5000/tcp")
		limit := time.Now().Add(time.Minute)
		for exec.Command(cairnProgram(t), "health", "--ready", "--server", url).Run() != nil {
			if state := docker(t, "inspect", "-f", "{{.State.Status}}", container); state != "running" || time.Now().After(limit) {
				logs, _ := exec.Command("docker", "logs", container).CombinedOutput()
				t.Fatalf("the container is %s and not ready:\n%s", state, logs)
			}
			time.Sleep(100 * time.Millisecond)
		}
		token = containerToken(t, container)
		return container, url
	}
	client := func(url string, args ...string) string {
		t.Helper()
		cmd := exec.Command(cairnProgram(t), args...)
		cmd.Dir, cmd.Env = dir, append(os.Environ(), "CAIRN_SERVER="+url, "CAIRN_TOKEN="+token)
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatalf("cairn %q: %v\n%s", args, err, out)
		}
		return string(out)
	}
	stop := func(container string) {
		t.Helper()
		docker(t, "stop", "-t", "10", container)
		if code := docker(t, "inspect", "-f", "{{.State.ExitCode}}", container); code != "0" {
			logs, _ := exec.Command("docker", "logs", container).CombinedOutput()
			t.Errorf("after SIGTERM the container exits with %s, want 0:\n%s", code, logs)
		}
	}
	content := make([]byte, 5<<20)
	rand.NewChaCha8([32]byte{1}).Read(content)
	if err := os.WriteFile(filepath.Join(dir, "in"), content, 0o600); err != nil {
		t.Fatal(err)
	}
	container, url := start()
	client(url, "put", "in", "main/in")
	client(url, "get", "main/in", "out1")
	stop(container)
	container, url = start()
	client(url, "get", "main/in", "out2")
	// The check that the image itself carries.
	docker(t, "exec", container, "/cairn", "health", "--server", "http://127.0.0.1:5000")
	stop(container)
	for _, out := range []string{"out1", "out2"} {
		if got, err := os.ReadFile(filepath.Join(dir, out)); err != nil || !bytes.Equal(got, content) {
			t.Errorf("%s: %d bytes, %v; want the %d stored", out, len(got), err, len(content))
		}
	}
	// A directory of the host keeps its owner, who is not the image's user.
	host := filepath.Join(dir, "host")
	if err := os.Mkdir(host, 0o755); err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command("docker", "run", "--rm", "-v", host+":/data", name).CombinedOutput()
	if want := "/data must be writable by user 65532, group 65532"; err == nil || !strings.Contains(string(out), want) {
		t.Errorf("with a directory that it cannot write the container ends with %v and says\n%s, want %q", err, out, want)
	}
}
