package datadir

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"cairn/id"
	"cairn/index/kv"
	"cairn/keys"
	"cairn/node"
	"cairn/node/disk"
	"cairn/node/vfs"
)

// keyringName is DIR's own copy of the wrapped keyring. It is written before the
// nodes have theirs, so that a first start that is cut short goes on with the
// same roots.
const keyringName = "keyring"

// formKeys makes key file, recovery code and keyring of a new store, or finds
// those that an earlier start has made.
func (d *Dir) formKeys(ctx context.Context) error {
	wrapped, ringErr := os.ReadFile(filepath.Join(d.opt.Dir, keyringName))
	file, err := keys.ReadKeyFile(d.keyFile())
	switch {
	case errors.Is(err, keys.ErrNoKey) && ringErr == nil:
		return fmt.Errorf("%w: the first start made a keyring for %s, which is not there now: %w", ErrNoKey, d.keyFile(), err)
	case errors.Is(err, keys.ErrNoKey):
		if err := os.MkdirAll(filepath.Dir(d.keyFile()), 0o700); err != nil {
			return fmt.Errorf("make the key's directory: %w", err)
		}
		if file, err = keys.CreateKeyFile(d.keyFile()); err != nil {
			return err
		}
	case err != nil:
		return err
	}
	if err = ringErr; err == nil {
		if d.Keyring, err = keys.Open(ctx, d.Cluster, wrapped, file); err != nil {
			return err
		}
		d.Fresh.RecoveryCode, err = d.PendingRecovery()
		return err
	}
	if !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	ring, err := keys.New(d.Cluster, nil)
	if err != nil {
		return err
	}
	if ring, err = ring.AddSlot(ctx, file); err != nil {
		return err
	}
	code, err := keys.NewRecoveryCode(nil)
	if err != nil {
		return err
	}
	if ring, err = ring.AddSlot(ctx, code); err != nil {
		return err
	}
	// Before the keyring, or a start that is cut short would lose it.
	if err := writeDurably(filepath.Dir(d.recoveryFile()), filepath.Base(d.recoveryFile()), []byte(code.Reveal()+"\n")); err != nil {
		return fmt.Errorf("write the recovery code: %w", err)
	}
	if err := writeDurably(d.opt.Dir, keyringName, ring.Marshal()); err != nil {
		return fmt.Errorf("write the keyring: %w", err)
	}
	d.Keyring, d.Fresh.RecoveryCode = ring, code.Reveal()
	return nil
}

// unlock opens the keyring of a store that was begun before.
func (d *Dir) unlock(ctx context.Context) error {
	copies, err := d.keyrings(ctx)
	if err != nil {
		return err
	}
	if d.opt.Unlock != nil {
		if d.Keyring, err = keys.OpenNewest(ctx, d.Cluster, copies, d.opt.Unlock); err != nil {
			return fmt.Errorf("open the keyring with the %v: %w", d.opt.Unlock.Kind(), err)
		}
		return nil
	}
	file, err := keys.ReadKeyFile(d.keyFile())
	if errors.Is(err, keys.ErrNoKey) && d.opt.RecoveryCode != "" {
		return d.recoverKey(ctx, copies)
	}
	if errors.Is(err, keys.ErrNoKey) {
		return fmt.Errorf("%w: %s is not there. It is never made anew: what is stored could not be read with another. "+
			"Bring it back from its backup, name it with --key-file, or unlock with --passphrase-file or --recovery-code-file: %w", ErrNoKey, d.keyFile(), err)
	}
	if err != nil {
		return err
	}
	if warning := file.Warning(); warning != nil {
		d.opt.Log.Warn(warning.Error())
	}
	if d.Keyring, err = keys.OpenNewest(ctx, d.Cluster, copies, file); err != nil {
		return fmt.Errorf("open the keyring with %s: %w", d.keyFile(), err)
	}
	return nil
}

// recoverKey opens the keyring with the recovery code, makes a new key file and
// gives it a slot. The old key file goes on opening it.
func (d *Dir) recoverKey(ctx context.Context, copies [][]byte) error {
	code, err := keys.ParseRecoveryCode(d.opt.RecoveryCode)
	if err != nil {
		return err
	}
	if d.Keyring, err = keys.OpenNewest(ctx, d.Cluster, copies, code); err != nil {
		return fmt.Errorf("open the keyring with the recovery code: %w", err)
	}
	if err := d.checkConfigDir(); err != nil {
		return err
	}
	if err := d.majority(); err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(d.keyFile()), 0o700); err != nil {
		return fmt.Errorf("make the key's directory: %w", err)
	}
	// First the key, then the keyring that it opens: cut short between the two, the
	// key file opens no slot, and the code still does once the file is moved away.
	file, err := keys.CreateKeyFile(d.keyFile())
	if err != nil {
		return err
	}
	if err := d.ChangeKeyring(ctx, func(ring *keys.Keyring) (*keys.Keyring, error) { return ring.AddSlot(ctx, file) }); err != nil {
		return err
	}
	d.opt.Log.Warn("the store was opened with its recovery code, and has a new key file: back it up", "file", d.keyFile())
	return nil
}

// keyrings gathers the copies that the nodes and DIR hold.
func (d *Dir) keyrings(ctx context.Context) ([][]byte, error) {
	var copies [][]byte
	var errs []error
	for name, n := range d.Nodes {
		b, err := n.ReadFile(ctx, node.KeyringFile)
		if err != nil {
			errs = append(errs, fmt.Errorf("node %s: %w", name, err))
			continue
		}
		copies = append(copies, b)
	}
	if b, err := os.ReadFile(filepath.Join(d.opt.Dir, keyringName)); err == nil {
		copies = append(copies, b)
	}
	if len(copies) == 0 {
		return nil, fmt.Errorf("no node holds a keyring of this store: %w", errors.Join(append(errs, node.ErrNotFound)...))
	}
	return copies, nil
}

// indexKey encrypts the files of the index.
func (d *Dir) indexKey() kv.Secret { return kv.NewSecret(d.Keyring.IndexEngineKey().Reveal()) }

// readIdentity says which store a node directory belongs to.
func readIdentity(dir string) (id.Cluster, error) {
	root, err := vfs.OS(dir)
	if err != nil {
		return id.Cluster{}, err
	}
	defer root.Close()
	cluster, _, err := disk.Identify(root)
	return cluster, err
}
