package datadir

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"cairn/id"
	"cairn/keys"
	"cairn/node/disk"
	"cairn/node/vfs"
	"cairn/record"
	"cairn/store"
)

// refuseNewer looks at everything that says its version and can be read before the
// nodes are open, and changes nothing. Keyring and cluster files are opened if
// there is a key; whatever else is wrong with them is found again later.
func (d *Dir) refuseNewer(ctx context.Context) error {
	names, err := d.nodeDirs()
	if err != nil {
		return err
	}
	var rings, clusters [][]byte
	for _, name := range names {
		root, err := vfs.OS(filepath.Join(d.opt.Dir, "nodes", name))
		if err != nil {
			continue
		}
		shown, err := disk.Inspect(root)
		root.Close()
		if err != nil {
			return fmt.Errorf("node %s: %w", name, err)
		}
		if shown.Keyring != nil {
			rings = append(rings, shown.Keyring)
		}
		if shown.Cluster != nil {
			clusters = append(clusters, shown.Cluster)
		}
	}
	if b, err := os.ReadFile(filepath.Join(d.opt.Dir, keyringName)); err == nil {
		rings = append(rings, b)
	}
	if len(rings) == 0 {
		return nil
	}
	unlock := d.opt.Unlock
	if unlock == nil {
		file, err := keys.ReadKeyFile(d.keyFile())
		if err != nil {
			return onlyNewer(err)
		}
		unlock = file
	}
	ring, err := keys.OpenNewest(ctx, d.Cluster, rings, unlock)
	if err != nil {
		return onlyNewer(err)
	}
	for _, b := range clusters {
		if _, err := store.OpenClusterFile(ring, d.Cluster, b); errors.Is(err, id.ErrNewer) {
			return err
		}
	}
	return nil
}

func onlyNewer(err error) error {
	if errors.Is(err, id.ErrNewer) {
		return err
	}
	return nil
}

// step takes a data directory to a version of the store from the one before it.
//
// It runs while the directory is locked and nothing in it is open. It may be cut
// short anywhere, by the process or the power, and is then run again from its
// beginning; it is also run on a directory that has been through it, when
// store.json was lost. So it must be able to tell what is done already, and what
// it replaces must stay until what replaces it is durable.
type step struct {
	to   uint32
	what string // for the log
	run  func(ctx context.Context, dir string) error
}

// steps are all there are, in order. The first version has no step.
var steps []step

// later stands for a build that knows more than this one.
type later struct {
	version uint32
	steps   []step
}

// known is the version of the store that this build writes.
func (d *Dir) known() uint32 {
	if d.opt.later != nil {
		return d.opt.later.version
	}
	return record.StoreVersion
}

// migrate brings the directory to the version that this build writes. store.json
// gets the new version before anything is changed, so that an older build keeps
// away from what may be half done, and beside it the version that the work goes
// out from, until it is done.
func (d *Dir) migrate(ctx context.Context, m marker) (marker, error) {
	if m.Format == d.known() && m.From == 0 {
		return m, nil
	}
	all := steps
	if d.opt.later != nil {
		all = d.opt.later.steps
	}
	if m.From == 0 {
		m.From = m.Format
	}
	m.Format = d.known()
	d.opt.Log.Warn("the data directory is brought to a newer version; older builds cannot open it from now on", "from", m.From, "to", m.Format)
	if err := d.writeMarker(m); err != nil {
		return m, err
	}
	for _, s := range all {
		if s.to <= m.From {
			continue
		}
		if err := s.run(ctx, d.opt.Dir); err != nil {
			return m, fmt.Errorf("bring the data directory to version %d (%s): %w; nothing is lost, the next start goes on with it", s.to, s.what, err)
		}
		if m.From = s.to; m.From < m.Format {
			if err := d.writeMarker(m); err != nil {
				return m, err
			}
		}
	}
	m.From = 0
	return m, d.writeMarker(m)
}
