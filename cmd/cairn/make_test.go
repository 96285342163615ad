package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

// TestMakeRun: what the owner says reaches `cairn serve` as it was said.
func TestMakeRun(t *testing.T) {
	t.Parallel()
	for _, tool := range []string{"make", "bash"} {
		if _, err := exec.LookPath(tool); err != nil {
			t.Skip(tool + " is not installed")
		}
	}
	makefile, err := os.ReadFile(filepath.Join("..", "..", "Makefile"))
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	if err := os.Mkdir(filepath.Join(dir, "bin"), 0o755); err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string]string{"Makefile": string(makefile), "bin/cairn": "#!/bin/sh\nprintf '<%s>' \"$@\"\n"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for _, c := range []struct {
		args []string
		want string
	}{
		{nil, "<serve><--data><./data><--listen><localhost:5000>"},
		{[]string{"DATA=it's \"a\" dir; $$HOME", "LISTEN=localhost:5900", "FLAGS=--new --log-json"}, "<serve><--data><it's \"a\" dir; $HOME><--listen><localhost:5900><--new><--log-json>"},
	} {
		// -o: the program is not built, the script in its place is run.
		cmd := exec.CommandContext(t.Context(), "make", append([]string{"--no-print-directory", "-s", "-o", "build", "run"}, c.args...)...)
		cmd.Dir = dir
		if out, err := cmd.Output(); err != nil || string(out) != c.want {
			t.Errorf("make run %q runs %s, %v, want %s", c.args, out, err, c.want)
		}
	}
}
