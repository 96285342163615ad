package keys

import (
	"bytes"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/zeebo/blake3"
)

func TestKeyFileIsMadeOnce(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "cluster.key")
	if _, err := ReadKeyFile(path); !errors.Is(err, ErrNoKey) || !errors.Is(err, fs.ErrNotExist) || errors.Is(err, ErrDamaged) || errors.Is(err, ErrWrongKey) {
		t.Errorf("read what is not there: %v, want ErrNoKey", err)
	}
	old := syscall.Umask(0)
	f, err := CreateKeyFile(path)
	syscall.Umask(old)
	if err != nil {
		t.Fatal(err)
	}
	info, err := os.Stat(path)
	if err != nil || info.Mode() != 0o600 {
		t.Errorf("mode %v, %v, want -rw-------", info.Mode(), err)
	}
	got, err := ReadKeyFile(path)
	if err != nil || !got.key.Equal(f.key) || got.Warning() != nil {
		t.Errorf("read back: %v, warning %v", err, got.Warning())
	}
	before, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := CreateKeyFile(path); !errors.Is(err, fs.ErrExist) {
		t.Errorf("create over a key: %v, want ErrExist", err)
	}
	// A key that is cut, empty, or a link to nowhere is a key file all the same.
	for _, prepare := range []func(string) error{
		func(p string) error { return os.WriteFile(p, nil, 0o600) },
		func(p string) error { return os.Symlink("/nowhere/at/all", p) },
		func(p string) error { return os.Mkdir(p, 0o700) },
	} {
		p := filepath.Join(dir, "other")
		if err := prepare(p); err != nil {
			t.Fatal(err)
		}
		if _, err := CreateKeyFile(p); !errors.Is(err, fs.ErrExist) {
			t.Errorf("create over something else: %v, want ErrExist", err)
		}
		if err := os.Remove(p); err != nil {
			t.Fatal(err)
		}
	}
	if after, err := os.ReadFile(path); err != nil || !bytes.Equal(before, after) {
		t.Errorf("the key was changed: %v", err)
	}
	if names, err := os.ReadDir(dir); err != nil || len(names) != 1 {
		t.Errorf("left in the directory: %v, %v", names, err)
	}
	if _, err := CreateKeyFile(filepath.Join(dir, "no", "where")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("create in a directory that is not there: %v, want ErrNotExist", err)
	}
	if g, err := NewKeyFile(nil); err != nil || g.key.Equal(f.key) {
		t.Errorf("two keys are one: %v", err)
	}
}

// Where there are no links the file is written in place, and still never over
// another; when two race, one of them wins.
func TestKeyFileWithoutLinks(t *testing.T) {
	defer func(was func(string, string) error) { link = was }(link)
	dir := t.TempDir()
	path := filepath.Join(dir, "cluster.key")
	link = func(from, to string) error {
		return &os.LinkError{Op: "link", Old: from, New: to, Err: syscall.EPERM}
	}
	f, err := CreateKeyFile(path)
	if err != nil {
		t.Fatal(err)
	}
	got, err := ReadKeyFile(path)
	if err != nil || !got.key.Equal(f.key) {
		t.Errorf("read back: %v", err)
	}
	if info, err := os.Stat(path); err != nil || info.Mode() != 0o600 {
		t.Errorf("mode %v, %v, want -rw-------", info.Mode(), err)
	}
	for _, after := range []error{syscall.EPERM, syscall.EEXIST} {
		if err := os.Remove(path); err != nil {
			t.Fatal(err)
		}
		link = func(from, to string) error { // somebody was faster
			if b, err := os.ReadFile(from); err != nil || len(b) != fileLen+1 {
				t.Errorf("before the link the file holds %d bytes, %v", len(b), err)
			}
			if err := os.WriteFile(to, []byte("theirs"), 0o600); err != nil {
				t.Fatal(err)
			}
			return &os.LinkError{Op: "link", Old: from, New: to, Err: after}
		}
		if _, err := CreateKeyFile(path); !errors.Is(err, fs.ErrExist) {
			t.Errorf("a race lost: %v, want ErrExist", err)
		}
		if b, err := os.ReadFile(path); err != nil || string(b) != "theirs" {
			t.Errorf("the other's key was changed: %q, %v", b, err)
		}
	}
	if names, err := os.ReadDir(dir); err != nil || len(names) != 1 {
		t.Errorf("left in the directory: %v, %v", names, err)
	}
}

func TestKeyFileThatOthersRead(t *testing.T) {
	path := filepath.Join(t.TempDir(), "k")
	if _, err := CreateKeyFile(path); err != nil {
		t.Fatal(err)
	}
	for mode, want := range map[fs.FileMode]fs.FileMode{0o600: 0, 0o400: 0, 0o640: 0o040, 0o444: 0o044, 0o602: 0o002} {
		if err := os.Chmod(path, mode); err != nil {
			t.Fatal(err)
		}
		f, err := ReadKeyFile(path)
		if err != nil {
			t.Fatal(err)
		}
		var loose *LooseError
		if got := errors.As(f.Warning(), &loose); got != (want != 0) || got && (loose.Mode != want || loose.Path != path) {
			t.Errorf("mode %v: warning %v", mode, f.Warning())
		}
	}
	if _, err := ReadKeyFile(t.TempDir()); err == nil || errors.Is(err, ErrNoKey) || errors.Is(err, ErrDamaged) {
		t.Errorf("a directory: %v, want the file system's error", err)
	}
}

// Cut anywhere or changed anywhere a key file is damaged: never another key,
// never a newer version, and never quoted.
func TestAlteredKeyFiles(t *testing.T) {
	f, err := NewKeyFile(nil)
	if err != nil {
		t.Fatal(err)
	}
	text := string(f.Append(nil))
	try := func(what, s string) {
		t.Helper()
		_, err := ParseKeyFile([]byte(s))
		if !errors.Is(err, ErrDamaged) || errors.Is(err, ErrNewer) {
			t.Errorf("%s: %v, want ErrDamaged", what, err)
		} else if strings.Contains(err.Error(), text[20:28]) || len(err.Error()) > 200 {
			t.Errorf("%s: the error quotes the file: %v", what, err)
		}
	}
	for i := range fileLen {
		try("cut", text[:i])
		for bit := range 8 {
			b := []byte(text)
			b[i] ^= 1 << bit
			try("a flipped bit", string(b))
		}
		try("a byte missing", text[:i]+text[i+1:])
		try("a byte too many", text[:i]+"0"+text[i:])
	}
	for _, s := range []string{text + "\n", text + " ", " " + text, text + text, strings.ToUpper(text), strings.Repeat("0", 1<<20), "\r\n", "-----BEGIN PRIVATE KEY-----"} {
		try("another text", s)
	}
	for _, end := range []string{"", "\n", "\r\n"} {
		if got, err := ParseKeyFile([]byte(text[:fileLen] + end)); err != nil || !got.key.Equal(f.key) {
			t.Errorf("with the line's end %q: %v", end, err)
		}
	}
	sum := func(s string) string {
		b := blake3.Sum256([]byte(s))
		return s + ":" + hexOf(b[:fileCheck]) + "\n"
	}
	for s, want := range map[string]error{
		"cairn-key-2:other things":                     ErrNewer,
		"cairn-key-1:" + strings.Repeat("0", 63):       ErrDamaged,
		"cairn-key-1:" + strings.Repeat("0", 66):       ErrDamaged,
		"cairn-key-1:" + strings.Repeat("A", 64):       ErrDamaged,
		"cairn-key-1:" + strings.Repeat("x", 64):       ErrDamaged,
		"cairn-key-1:" + strings.Repeat("0", 64) + ":": ErrDamaged,
		"cairn-key-1": ErrDamaged,
	} {
		if _, err := ParseKeyFile([]byte(sum(s))); !errors.Is(err, want) {
			t.Errorf("%s: %v, want %v", s, err, want)
		}
	}
}

func hexOf(b []byte) string {
	const digits = "0123456789abcdef"
	var s strings.Builder
	for _, x := range b {
		s.WriteByte(digits[x>>4])
		s.WriteByte(digits[x&15])
	}
	return s.String()
}

func FuzzKeyFile(f *testing.F) {
	k, err := NewKeyFile(nil)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(k.Append(nil))
	f.Add([]byte("cairn-key-2:x:01234567\n"))
	f.Add(k.Append(nil)[:40])
	f.Fuzz(func(t *testing.T, b []byte) {
		got, err := ParseKeyFile(b)
		if err != nil {
			if !errors.Is(err, ErrDamaged) && !errors.Is(err, ErrNewer) {
				t.Fatal(err)
			}
			return
		}
		trim := func(b []byte) string { return strings.TrimSuffix(strings.TrimSuffix(string(b), "\n"), "\r") }
		if trim(got.Append(nil)) != trim(b) {
			t.Fatalf("%q and %q are one key file", b, got.Append(nil))
		}
	})
}
