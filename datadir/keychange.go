package datadir

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"cairn/id"
	"cairn/keys"
	"cairn/node"
	"cairn/node/disk"
	"cairn/node/vfs"
)

// ErrHalf says that a change of the keyring is on too few copies to count for
// certain. Doing it again is safe.
var ErrHalf = errors.New("the keyring was changed on too few nodes: whether the change holds is not known; do it again when they are back")

// majority refuses a change of the keyring that fewer than more than half of the
// members could take.
func (d *Dir) majority() error {
	if n := len(d.Nodes) + len(d.Absent); len(d.Nodes) <= n/2 {
		return fmt.Errorf("%w: %d of %d node directories are open, and a change of the keyring needs more than half; nothing was changed", node.ErrUnavailable, len(d.Nodes), n)
	}
	return nil
}

// ChangeKeyring makes the next generation of the keyring with change and writes it
// to DIR and to every node that is open; docs/formats/keys.md, "Changing it". When
// change returns the keyring it was given, nothing is done. [ErrHalf] means that
// too few copies could be written. A node that did not get it is told of in the
// log; the next start brings it up.
func (d *Dir) ChangeKeyring(ctx context.Context, change func(*keys.Keyring) (*keys.Keyring, error)) error {
	if err := d.majority(); err != nil {
		return err
	}
	next, err := change(d.Keyring)
	if err != nil || next == d.Keyring {
		return err
	}
	wrapped := next.Marshal()
	if err := writeDurably(d.opt.Dir, keyringName, wrapped); err != nil {
		return fmt.Errorf("write the keyring: %w; the change may hold or not: do it again", err)
	}
	wrote := 0
	for _, name := range d.nodeNames() {
		if err := writeKeyring(ctx, d.Nodes[name], wrapped); err != nil {
			d.opt.Log.Warn("a node did not get the changed keyring; the next start brings it up", "node", name, "err", err)
			continue
		}
		wrote++
	}
	if n := len(d.Nodes) + len(d.Absent); wrote <= n/2 {
		return fmt.Errorf("%w (%d of %d)", ErrHalf, wrote, n)
	}
	d.Keyring = next
	return nil
}

func (d *Dir) nodeNames() []string {
	names := make([]string, 0, len(d.Nodes))
	for name := range d.Nodes {
		names = append(names, name)
	}
	slices.Sort(names)
	return names
}

// writeKeyring replaces a node's copy under the promise that the node has given.
func writeKeyring(ctx context.Context, n *disk.Node, wrapped []byte) error {
	by, err := n.Promised(ctx)
	if err != nil {
		return err
	}
	return n.WriteFile(ctx, by, node.KeyringFile, wrapped)
}

// behind reports whether a copy is to be replaced by the keyring that counts. A
// copy of a higher generation, or of a newer version, is not: it was passed over
// because it does not open, and may be what another key opens.
func behind(copied, wrapped []byte, generation uint64) bool {
	if bytes.Equal(copied, wrapped) {
		return false
	}
	s, err := keys.Inspect(copied)
	if errors.Is(err, keys.ErrNewer) {
		return false
	}
	return err != nil || s.Generation <= generation
}

// settleKeyring brings up the copies that are behind. What cannot be written is
// told of and left to the next start.
func (d *Dir) settleKeyring(ctx context.Context) {
	wrapped, generation := d.Keyring.Marshal(), d.Keyring.Generation()
	bring := func(where string, copied []byte, err error, write func() error) {
		switch {
		case err != nil && !errors.Is(err, node.ErrNotFound) && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, node.ErrDamaged):
			d.opt.Log.Warn("a copy of the keyring cannot be read", "in", where, "err", err)
		case err == nil && !behind(copied, wrapped, generation):
			if !bytes.Equal(copied, wrapped) {
				d.opt.Log.Warn("a copy of the keyring is of a later generation, does not open, and is left as it is", "in", where)
			}
		default:
			if err := write(); err != nil {
				d.opt.Log.Warn("a copy of the keyring that is behind could not be brought up", "in", where, "err", err)
				return
			}
			d.opt.Log.Info("a copy of the keyring was behind and has been brought up", "in", where, "generation", generation)
		}
	}
	b, err := os.ReadFile(filepath.Join(d.opt.Dir, keyringName))
	bring(d.opt.Dir, b, err, func() error { return writeDurably(d.opt.Dir, keyringName, wrapped) })
	for _, name := range d.nodeNames() {
		n := d.Nodes[name]
		b, err := n.ReadFile(ctx, node.KeyringFile)
		bring("node "+name, b, err, func() error { return writeKeyring(ctx, n, wrapped) })
	}
}

// recoveryFile holds the recovery code until it is confirmed.
func (d *Dir) recoveryFile() string { return strings.TrimSuffix(d.keyFile(), ".key") + ".recovery" }

// nextRecoveryFile holds a recovery code that is about to take another's place.
func (d *Dir) nextRecoveryFile() string { return d.recoveryFile() + ".new" }

// ReplaceRecovery makes a new recovery code, whose slot takes the place of all of its
// kind. It counts as unconfirmed. The code is in a file before its slot is in the
// keyring, and the file takes the usual name afterwards: cut short in between,
// [Dir.PendingRecovery] tells by what opens the keyring which of the two holds.
func (d *Dir) ReplaceRecovery(ctx context.Context) (string, error) {
	if err := d.majority(); err != nil {
		return "", err
	}
	if err := d.settleRecovery(); err != nil { // an earlier one, which was cut short
		return "", err
	}
	code, err := keys.NewRecoveryCode(nil)
	if err != nil {
		return "", err
	}
	next := d.nextRecoveryFile()
	if err := writeDurably(filepath.Dir(next), filepath.Base(next), []byte(code.Reveal()+"\n")); err != nil {
		return "", fmt.Errorf("write the recovery code: %w", err)
	}
	err = d.ChangeKeyring(ctx, func(k *keys.Keyring) (*keys.Keyring, error) {
		old := k.Slots()
		k, err := k.AddSlot(ctx, code)
		for _, slot := range old {
			if err == nil && slot.Kind == code.Kind() {
				k, err = k.RemoveSlot(slot.Number)
			}
		}
		return k, err
	})
	if err != nil {
		return "", err // which of the two codes holds, the next start finds out
	}
	return code.Reveal(), d.takeNextRecovery()
}

// takeNextRecovery gives a new recovery code's file the usual name.
func (d *Dir) takeNextRecovery() error {
	if err := os.Rename(d.nextRecoveryFile(), d.recoveryFile()); err != nil {
		return fmt.Errorf("keep the recovery code: %w", err)
	}
	return syncDir(filepath.Dir(d.recoveryFile()))
}

// settleRecovery decides about a replacement of the recovery code that was cut
// short: the new code holds when it opens the keyring that counts.
func (d *Dir) settleRecovery() error {
	b, err := os.ReadFile(d.nextRecoveryFile())
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("read the recovery code: %w", err)
	}
	code, err := keys.ParseRecoveryCode(string(b))
	if err != nil {
		return os.Remove(d.nextRecoveryFile()) // it was cut short itself
	}
	_, err = keys.Open(context.Background(), d.Cluster, d.Keyring.Marshal(), code)
	if errors.Is(err, keys.ErrWrongKey) {
		return os.Remove(d.nextRecoveryFile())
	}
	if err != nil {
		return fmt.Errorf("try the recovery code: %w", err)
	}
	return d.takeNextRecovery()
}

// PendingRecovery is the recovery code as long as nobody has confirmed that it is
// written down, and it opens the keyring; else it is empty.
func (d *Dir) PendingRecovery() (string, error) {
	if err := d.settleRecovery(); err != nil {
		return "", err
	}
	b, err := os.ReadFile(d.recoveryFile())
	if errors.Is(err, fs.ErrNotExist) {
		return "", nil
	}
	if err != nil {
		return "", fmt.Errorf("read the recovery code: %w", err)
	}
	code, err := keys.ParseRecoveryCode(string(b))
	if err == nil {
		_, err = keys.Open(context.Background(), d.Cluster, d.Keyring.Marshal(), code)
	}
	if err != nil { // its slot was removed, or somebody wrote into the file
		d.opt.Log.Warn("what is kept as the recovery code opens nothing and is not shown", "file", d.recoveryFile(), "err", err)
		return "", nil
	}
	return code.Reveal(), nil
}

// KeyCopy is a copy of the keyring, or why there is none to be read.
type KeyCopy struct {
	Where   string // the name of a node, or "" for the data directory's own
	Wrapped []byte
	Err     error
}

// KeyCopies are the keyrings of a data directory as they are seen without its
// locks, while it may be served.
type KeyCopies struct {
	Cluster id.Cluster
	Copies  []KeyCopy
	KeyFile string // where the key file is looked for
	dir     *Dir
}

// Known is the store that a data directory held when it was last served by this user;
// zero: none is known.
func Known(o Options) (id.Cluster, error) {
	dir, err := filepath.Abs(o.Dir)
	if err != nil {
		return id.Cluster{}, err
	}
	o.Dir = dir
	return (&Dir{opt: o}).knownStore()
}

// LookAtKeys reads the copies of the keyring of a data directory. It takes no
// lock and changes nothing.
func LookAtKeys(o Options) (*KeyCopies, error) {
	var err error
	if o.Dir, err = filepath.Abs(o.Dir); err != nil {
		return nil, err
	}
	d := &Dir{opt: o}
	m, there, err := d.readMarker()
	if err != nil {
		return nil, err
	}
	if !there {
		if m, there, err = d.identifyByNodes(); err != nil {
			return nil, err
		}
	}
	if !there {
		return nil, fmt.Errorf("%w: %s", ErrNotStore, o.Dir)
	}
	d.Cluster = m.Cluster
	k := &KeyCopies{Cluster: m.Cluster, KeyFile: d.keyFile(), dir: d}
	b, err := os.ReadFile(filepath.Join(o.Dir, keyringName))
	k.Copies = append(k.Copies, KeyCopy{Wrapped: b, Err: err})
	names, err := d.nodeDirs()
	if err != nil {
		return nil, err
	}
	names = append(names, m.Nodes...)
	slices.Sort(names)
	for _, name := range slices.Compact(names) {
		c := KeyCopy{Where: name}
		if root, err := vfs.OS(filepath.Join(o.Dir, "nodes", name)); err != nil {
			c.Err = err
		} else {
			shown, err := disk.Inspect(root)
			root.Close()
			if c.Wrapped, c.Err = shown.Keyring, err; err == nil && c.Wrapped == nil {
				c.Err = fmt.Errorf("%w: it holds no keyring that can be read", node.ErrNotFound)
			}
		}
		k.Copies = append(k.Copies, c)
	}
	return k, nil
}

// Open opens the newest copy.
func (k *KeyCopies) Open(ctx context.Context, p keys.Provider) (*keys.Keyring, error) {
	var copies [][]byte
	var errs []error
	for _, c := range k.Copies {
		if c.Err == nil {
			copies = append(copies, c.Wrapped)
		} else {
			errs = append(errs, c.Err)
		}
	}
	if len(copies) == 0 {
		return nil, fmt.Errorf("no copy of the keyring can be read: %w", errors.Join(errs...))
	}
	return keys.OpenNewest(ctx, k.Cluster, copies, p)
}

// RecoveryPending says where the recovery code is as long as nobody has confirmed
// it; else it is empty.
func (k *KeyCopies) RecoveryPending() string {
	for _, file := range []string{k.dir.recoveryFile(), k.dir.nextRecoveryFile()} {
		if _, err := os.Lstat(file); err == nil {
			return file
		}
	}
	return ""
}

// ConfirmRecovery opens the newest keyring with what its owner says is the
// recovery code, and removes the file that holds it when it does. done is false
// when it was confirmed before.
func (k *KeyCopies) ConfirmRecovery(ctx context.Context, code string) (done bool, err error) {
	c, err := keys.ParseRecoveryCode(code)
	if err != nil {
		return false, err
	}
	if _, err := k.Open(ctx, c); err != nil {
		return false, fmt.Errorf("open the keyring with the recovery code: %w", err)
	}
	for _, file := range []string{k.dir.nextRecoveryFile(), k.dir.recoveryFile()} {
		err := os.Remove(file)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return false, fmt.Errorf("remove the file with the recovery code: %w", err)
		}
		done = done || err == nil
	}
	if !done {
		return false, nil
	}
	return true, syncDir(filepath.Dir(k.dir.recoveryFile()))
}
