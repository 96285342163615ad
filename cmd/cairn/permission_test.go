package main

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// TestDirectoriesThatCannotBeWritten: the message names the directory and who
// would have to be able to write there, as it happens with a bind mount.
func TestDirectoriesThatCannotBeWritten(t *testing.T) {
	t.Parallel()
	const other = 65532
	uid := os.Getuid()
	base, err := os.MkdirTemp("", "cairn-permission-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(base) })
	program, err := os.ReadFile(cairnProgram(t))
	if err != nil {
		t.Fatal(err)
	}
	cairn := filepath.Join(base, "cairn")
	if err := os.WriteFile(cairn, program, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(base, 0o755); err != nil { // whoever runs the program must get there
		t.Fatal(err)
	}
	for _, locked := range []string{"data", "config"} {
		dirs := map[string]string{}
		for _, name := range []string{"data", "config"} {
			dir := filepath.Join(base, locked+"-"+name)
			if err := os.Mkdir(dir, 0o700); err != nil {
				t.Fatal(err)
			}
			if name == locked {
				err = os.Chmod(dir, 0o555)
			} else if uid == 0 {
				err = os.Chown(dir, other, other)
			}
			if err != nil {
				t.Fatal(err)
			}
			dirs[name] = dir
		}
		cmd := exec.CommandContext(t.Context(), cairn, "serve", "--listen", "127.0.0.1:0", "--data", dirs["data"])
		cmd.Env = append(os.Environ(), "XDG_CONFIG_HOME="+dirs["config"])
		want := fmt.Sprintf("%s must be writable by user %d, group %d", dirs[locked], uid, os.Getgid())
		if uid == 0 {
			cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: other, Gid: other}}
			want = fmt.Sprintf("%s must be writable by user %d, group %d", dirs[locked], other, other)
		}
		out, err := cmd.CombinedOutput()
		if err == nil || cmd.ProcessState == nil {
			t.Fatalf("serve with a %s directory that it cannot write: %v\n%s", locked, err, out)
		}
		if code := cmd.ProcessState.ExitCode(); code != 3 || !strings.Contains(string(out), want) {
			t.Errorf("serve exits with %d and says\n%s, want 3 and %q", code, out, want)
		}
	}
}
