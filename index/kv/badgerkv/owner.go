package badgerkv

import (
	"crypto/hmac"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"cairn/index/kv"
)

// Badger tells another key and a damaged key registry by one error. A file beside its
// own says whose key the directory was made with: a tag under that key. Where it is
// right and badger finds another key, the registry is damaged. It is no secret, and
// nothing else depends on it.
const ownerName = "OWNER"

func ownerTag(key *kv.Secret) []byte {
	k := key.Reveal()
	m := hmac.New(sha256.New, k[:])
	_, _ = io.WriteString(m, "cairn: whose index this is")
	return m.Sum(nil)
}

// owned reports whether the directory was made with the key.
func owned(o *Options) bool {
	b, err := os.ReadFile(filepath.Join(o.Dir, ownerName))
	return err == nil && hmac.Equal(b, ownerTag(&o.EncryptionKey))
}

// whose makes a damaged registry of badger's "another key" where the key is the
// directory's.
func whose(o *Options, err error) error {
	if errors.Is(err, kv.ErrForeign) && owned(o) {
		return fmt.Errorf("badger: open: its key registry: %w", kv.ErrDamaged)
	}
	return err
}

// own writes the file where it is not as it should be: of an index that an earlier
// version made, or that rotted.
func own(o *Options) error {
	if owned(o) {
		return nil
	}
	path := filepath.Join(o.Dir, ownerName)
	tmp := path + ".tmp"
	if err := os.Remove(tmp); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	f, err := os.OpenFile(tmp, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(ownerTag(&o.EncryptionKey))
	if err = errors.Join(err, f.Sync(), f.Close()); err == nil {
		err = os.Rename(tmp, path)
	}
	if err == nil {
		err = syncPath(o.Dir)
	}
	return err
}
