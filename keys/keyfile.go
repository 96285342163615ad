package keys

import (
	"context"
	"encoding/base32"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/zeebo/blake3"
)

// A key file is one line of text, so that it survives secret managers, printers
// and clipboards: magic with version, key, checksum. docs/formats/keys.md.
const (
	fileMagic   = "cairn-key-"
	fileVersion = "1"
	fileCheck   = 4                                                                // bytes of BLAKE3
	fileLen     = len(fileMagic) + len(fileVersion) + 1 + 2*Size + 1 + 2*fileCheck // without the line's end
	maxKeyFile  = 4 << 10
)

// KeyFile unlocks with the key of a key file.
type KeyFile struct {
	key    Secret
	loose  fs.FileMode // permissions that others than the owner have
	path   string
	random io.Reader
}

// NewKeyFile makes a key that is in no file yet. It comes from random, nil means
// crypto/rand, which is kept for what Wrap draws.
func NewKeyFile(random io.Reader) (KeyFile, error) {
	key, err := draw(random)
	if err != nil {
		return KeyFile{}, err
	}
	return KeyFile{key: key, random: random}, nil
}

// Append appends the file's content, which is the key itself.
func (f KeyFile) Append(b []byte) []byte {
	start := len(b)
	b = append(b, fileMagic+fileVersion+":"...)
	b = hex.AppendEncode(b, f.key.bytes())
	sum := blake3.Sum256(b[start:])
	b = append(b, ':')
	b = hex.AppendEncode(b, sum[:fileCheck])
	return append(b, '\n')
}

// ParseKeyFile reads the content of a key file. The end of the line may be
// missing or Windows'; everything else has one form. The error wraps
// [ErrDamaged] or [ErrNewer] and quotes nothing.
func ParseKeyFile(b []byte) (KeyFile, error) {
	if len(b) > maxKeyFile {
		return KeyFile{}, fmt.Errorf("%w: key file: longer than any", ErrDamaged)
	}
	s := strings.TrimSuffix(strings.TrimSuffix(string(b), "\n"), "\r")
	if !strings.HasPrefix(s, fileMagic) {
		return KeyFile{}, fmt.Errorf("%w: key file: %d bytes that do not begin as one", ErrDamaged, len(b))
	}
	// Every version ends in the checksum, so that an altered digit is never taken
	// for a newer version.
	content, check, _ := cutLast(s, ':')
	if sum := blake3.Sum256([]byte(content)); check != hex.EncodeToString(sum[:fileCheck]) {
		return KeyFile{}, fmt.Errorf("%w: key file: the checksum of its %d bytes does not hold, whole they are %d; was it cut?", ErrDamaged, len(s), fileLen)
	}
	version, digits, _ := strings.Cut(content[len(fileMagic):], ":")
	if version != fileVersion {
		return KeyFile{}, fmt.Errorf("%w: key file of version %.20q, this build knows %s", ErrNewer, version, fileVersion)
	}
	var key [Size]byte
	if len(digits) != 2*Size || strings.ToLower(digits) != digits {
		return KeyFile{}, fmt.Errorf("%w: key file: not the digits of a key", ErrDamaged)
	}
	if _, err := hex.Decode(key[:], []byte(digits)); err != nil {
		return KeyFile{}, fmt.Errorf("%w: key file: not the digits of a key", ErrDamaged)
	}
	f := KeyFile{key: NewSecret(key)}
	clear(key[:])
	return f, nil
}

// cutLast cuts around the last sep; without one all is before it.
func cutLast(s string, sep byte) (before, after string, found bool) {
	if i := strings.LastIndexByte(s, sep); i >= 0 {
		return s[:i], s[i+1:], true
	}
	return s, "", false
}

// ReadKeyFile reads a key file. A file that is not there is [ErrNoKey], a cut or
// altered one [ErrDamaged], one of a newer version [ErrNewer]; other errors are
// the file system's. Files that others may read too are accepted, because secret
// managers mount them so: [KeyFile.Warning] tells.
func ReadKeyFile(path string) (KeyFile, error) {
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return KeyFile{}, fmt.Errorf("%w: %w", ErrNoKey, err)
	}
	if err != nil {
		return KeyFile{}, fmt.Errorf("read the key file: %w", err)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return KeyFile{}, fmt.Errorf("read the key file: %w", err)
	}
	b, err := io.ReadAll(io.LimitReader(f, maxKeyFile+1))
	defer clear(b)
	if err != nil {
		return KeyFile{}, fmt.Errorf("read the key file: %w", err)
	}
	k, err := ParseKeyFile(b)
	if err != nil {
		return KeyFile{}, fmt.Errorf("%s: %w", path, err)
	}
	if info.Mode().IsRegular() {
		k.loose, k.path = info.Mode().Perm()&0o077, path
	}
	return k, nil
}

// LooseError says that others than its owner may use a key file.
type LooseError struct {
	Path string
	Mode fs.FileMode // the permissions that are too many
}

func (e *LooseError) Error() string {
	return fmt.Sprintf("the key file %s can be used by others than its owner (permissions %04o too many): chmod 600", e.Path, e.Mode)
}

// Warning is a [*LooseError] when the key was read from a file that others than
// its owner may use, else nil.
func (f KeyFile) Warning() error {
	if f.loose == 0 {
		return nil
	}
	return &LooseError{Path: f.path, Mode: f.loose}
}

// link is [os.Link], for tests of filesystems without links.
var link = os.Link

// CreateKeyFile writes a new key file, mode 0600, and returns once it would
// survive a power cut. A file that is there is never touched: that is
// [fs.ErrExist]. The key is written and synced under a temporary name and then
// linked to its own, so that a crash leaves a whole key file or none; where links
// are not supported it is written in place, exclusively.
func CreateKeyFile(path string) (KeyFile, error) {
	k, err := NewKeyFile(nil)
	if err != nil {
		return KeyFile{}, err
	}
	content := k.Append(nil)
	defer clear(content)
	if err := createFile(path, content); err != nil {
		return KeyFile{}, fmt.Errorf("create the key file: %w", err)
	}
	return k, nil
}

func createFile(path string, content []byte) error {
	// The link below finds this out too; asked first, a key in a directory that is
	// mounted read-only is one that exists and not one that cannot be written.
	if _, err := os.Lstat(path); err == nil {
		return &fs.PathError{Op: "create", Path: path, Err: fs.ErrExist}
	}
	var raw [10]byte
	if err := fill(nil, raw[:]); err != nil {
		return err
	}
	dir, name := filepath.Split(path)
	tmp := filepath.Join(dir, "."+name+"."+strings.ToLower(base32.StdEncoding.EncodeToString(raw[:])))
	if err := writeNew(tmp, content); err != nil {
		return err
	}
	err := link(tmp, path)
	if rerr := os.Remove(tmp); err == nil && rerr != nil {
		return rerr
	}
	if err != nil {
		if errors.Is(err, fs.ErrExist) {
			return err
		}
		if err := writeNew(path, content); err != nil {
			return err
		}
	}
	return syncDir(filepath.Dir(path))
}

// writeNew makes a file that was not there and syncs it; what it began it
// removes when that fails.
func writeNew(path string, content []byte) (err error) {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	if _, err = f.Write(content); err == nil {
		err = f.Sync()
	}
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		return errors.Join(err, os.Remove(path))
	}
	return nil
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	err = d.Sync()
	if cerr := d.Close(); err == nil {
		err = cerr
	}
	return err
}

// Kind implements [Provider].
func (KeyFile) Kind() SlotKind { return KeyFileSlot }

// Wrap implements [Provider].
func (f KeyFile) Wrap(_ context.Context, master Secret) ([]byte, error) {
	return wrap(contextFile, f.random, plainHead(), same(f.key.bytes()), master)
}

// Unwrap implements [Provider].
func (f KeyFile) Unwrap(_ context.Context, blob []byte) (Secret, error) {
	if err := slotVersion(blob); err != nil {
		return Secret{}, err
	}
	return unwrap(contextFile, blob, wrapMin, same(f.key.bytes()))
}

// Format implements [fmt.Formatter] and hides the key.
func (KeyFile) Format(f fmt.State, _ rune) { _, _ = io.WriteString(f, hidden) }

// MarshalText hides the key.
func (KeyFile) MarshalText() ([]byte, error) { return []byte(hidden), nil }
