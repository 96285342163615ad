package vfs_test

import (
	"errors"
	"os"
	"syscall"
	"testing"

	"cairn/node/vfs"
)

// TestSyncsReachTheKernel asks for syncs where Linux has none to give: files and
// directories in /proc answer EINVAL. A program whose syncs do nothing says nil.
func TestSyncsReachTheKernel(t *testing.T) {
	if !vfs.Syncs {
		t.Fatal("this is the build without syncs, which is for the tests of power cuts alone")
	}
	fsys, err := vfs.OS("/proc/self")
	if err != nil {
		t.Skip("there is no /proc here: ", err)
	}
	defer fsys.Close()
	f, err := fsys.OpenFile("comm", os.O_RDONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for what, err := range map[string]error{"Datasync": f.Datasync(), "Sync": f.Sync(), "SyncDir": fsys.SyncDir("fd")} {
		if !errors.Is(err, syscall.EINVAL) {
			t.Errorf("%s of something in /proc: %v, want EINVAL", what, err)
		}
	}
}
