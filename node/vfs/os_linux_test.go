package vfs_test

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"testing"

	"cairn/node/vfs"
	"cairn/node/vfs/vfstest"
)

func openOS(t *testing.T) vfs.FS {
	fsys, err := vfs.OS(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	return fsys
}

func TestOS(t *testing.T) { vfstest.Run(t, openOS) }

// TestLinksDoNotLeadOut plants what a stranger with access to the directory
// could plant.
func TestLinksDoNotLeadOut(t *testing.T) {
	top := t.TempDir()
	inside, outside := filepath.Join(top, "in"), filepath.Join(top, "out")
	for _, d := range []string{inside, outside} {
		if err := os.Mkdir(d, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	secret := filepath.Join(outside, "secret")
	if err := os.WriteFile(secret, []byte("secret"), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, target := range map[string]string{
		"abs": secret, "rel": "../out/secret", "dir": outside, "new": "../out/new", "up": "..", "loop": "loop",
	} {
		if err := os.Symlink(target, filepath.Join(inside, name)); err != nil {
			t.Fatal(err)
		}
	}
	fsys, err := vfs.OS(inside)
	if err != nil {
		t.Fatal(err)
	}
	defer fsys.Close()
	for _, name := range []string{"abs", "rel", "dir/secret", "new", "up/out/secret", "dir", "up", "loop"} {
		for _, flag := range []int{os.O_RDONLY, os.O_RDWR, os.O_RDWR | os.O_TRUNC, os.O_RDWR | os.O_CREATE} {
			f, err := fsys.OpenFile(name, flag, 0o600)
			if err == nil {
				t.Errorf("OpenFile(%q, %#x) went through the link", name, flag)
				f.Close()
			}
		}
		if l, err := fsys.Lock(name); err == nil {
			t.Errorf("Lock(%q) went through the link", name)
			l.Close()
		}
		if _, err := vfs.ReadFile(fsys, name, 100); err == nil {
			t.Errorf("ReadFile(%q) went through the link", name)
		}
	}
	for _, name := range []string{"dir/x", "up/x"} {
		for what, err := range map[string]error{
			"Mkdir": fsys.Mkdir(name, 0o700), "WriteFile": vfs.WriteFile(fsys, name, nil), "Rename": fsys.Rename("abs", name),
		} {
			if err == nil {
				t.Errorf("%s(%q) went through the link", what, name)
			}
		}
	}
	if err := fsys.Remove("dir/secret"); err == nil {
		t.Error("Remove went through the link")
	}
	if err := fsys.SyncDir("up"); err == nil {
		t.Error("SyncDir went through the link")
	}
	if _, err := fsys.ReadDir("dir"); err == nil {
		t.Error("ReadDir went through the link")
	}
	// The link itself can be looked at, replaced and removed.
	if info, err := fsys.Stat("dir"); err != nil || info.Dir {
		t.Errorf("Stat of a link to a directory: %+v, %v", info, err)
	}
	if err := vfs.WriteFile(fsys, "abs", []byte("mine")); err != nil {
		t.Error(err)
	}
	if err := fsys.Remove("rel"); err != nil {
		t.Error(err)
	}
	if b, err := os.ReadFile(secret); err != nil || string(b) != "secret" {
		t.Errorf("the file outside: %q, %v", b, err)
	}
	if names, err := os.ReadDir(outside); err != nil || len(names) != 1 {
		t.Errorf("the directory outside: %v, %v", names, err)
	}
}

func TestOSOfNothing(t *testing.T) {
	if _, err := vfs.OS(filepath.Join(t.TempDir(), "missing")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("error %v, want fs.ErrNotExist", err)
	}
}
