package main

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"cairn/bench"
)

// TestMain makes the test binary the command itself.
func TestMain(m *testing.M) {
	if os.Getenv("STAGES_TEST_MAIN") != "" {
		main()
	}
	os.Exit(m.Run())
}

func stages(t *testing.T, args ...string) (stdout, stderr string, err error) {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(self, args...)
	cmd.Env = append(os.Environ(), "STAGES_TEST_MAIN=1")
	var out, errs strings.Builder
	cmd.Stdout, cmd.Stderr = &out, &errs
	err = cmd.Run()
	return out.String(), errs.String(), err
}

func TestTables(t *testing.T) {
	dir, file := t.TempDir(), filepath.Join(t.TempDir(), "report.json")
	out, errs, err := stages(t, "--tiny", "--cairn", "", "--dir", dir, "--json", file)
	if err != nil {
		t.Fatalf("%v\n%s", err, errs)
	}
	for _, want := range []string{"### Stages, each alone", "receive over HTTP/1.1", "### Whole objects of 6 MiB", "| in process | get ", "### Small objects of 4 KiB", "fdatasyncs"} {
		if !strings.Contains(out, want) {
			t.Errorf("no %q in\n%s", want, out)
		}
	}
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	var rep bench.Report
	if err := json.Unmarshal(b, &rep); err != nil || len(rep.Stages) == 0 || rep.Limits.Put == 0 {
		t.Errorf("%v in the report %s", err, b)
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) > 0 {
		t.Errorf("%v (%v) left behind", left, err)
	}
}

func TestMistakes(t *testing.T) {
	for _, args := range [][]string{{"--cairn", "/nowhere/cairn"}, {"--tiny", "--cairn", "", "extra"}, {"--tiny", "--cairn", "", "--dir", "/nowhere"}} {
		if out, errs, err := stages(t, args...); err == nil || errs == "" || out != "" {
			t.Errorf("%q: %v, wrote %q and %q", args, err, out, errs)
		}
	}
}
