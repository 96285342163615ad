package datadir

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"cairn/id"
	"cairn/node"
	"cairn/node/disk"
	"cairn/node/vfs"
	"cairn/store"
)

// Reclaimed is what the reclaim of one node did.
type Reclaimed struct {
	Node string
	disk.Reclaimed
	Err error // why not all of it was done
}

// Reclaim cuts the keep time of deleted shards, once, on the nodes of a data
// directory that nobody serves: what is tombstoned now is gone when it returns,
// and can never be undeleted. No names means all nodes. It needs no key. An error
// of its own says that nothing was done.
func Reclaim(ctx context.Context, dir string, names []string) (out []Reclaimed, err error) {
	d := &Dir{opt: Options{Dir: dir}}
	there, err := d.nodeDirs()
	if err != nil {
		return nil, err
	}
	if len(there) == 0 {
		return nil, fmt.Errorf("%w: no node directories in %s", ErrNotStore, filepath.Join(dir, "nodes"))
	}
	// What a newer version deleted may not be for this one to give back.
	if _, _, err := d.readMarker(); errors.Is(err, id.ErrNewer) {
		return nil, err
	}
	if err := d.refuseNewer(ctx); err != nil {
		return nil, err
	}
	if len(names) == 0 {
		names = there
	}
	names = slices.Compact(slices.Sorted(slices.Values(names)))
	var (
		nodes []*disk.Node
		roots []vfs.FS
	)
	defer func() {
		for i, n := range nodes {
			if n == nil {
				continue
			}
			if cerr := errors.Join(n.Close(), roots[i].Close()); cerr != nil && out != nil {
				out[i].Err = errors.Join(out[i].Err, cerr)
			}
		}
	}()
	// All are locked before anything is given back.
	var failed []error
	for _, name := range names {
		if !slices.Contains(there, name) {
			return nil, fmt.Errorf("%w: no node is called %.80q; there are %s", store.ErrInvalid, name, strings.Join(there, ", "))
		}
		n, root, err := openToReclaim(filepath.Join(dir, "nodes", name))
		if errors.Is(err, vfs.ErrLocked) {
			return nil, fmt.Errorf("%w: node %s is locked; stop the server first", ErrInUse, name)
		}
		nodes, roots, failed = append(nodes, n), append(roots, root), append(failed, err)
	}
	for i, n := range nodes {
		r := Reclaimed{Node: names[i], Err: failed[i]}
		if n != nil {
			r.Reclaimed, r.Err = n.ReclaimNow(ctx)
			if errors.Is(r.Err, node.ErrFull) && d.dropBallast() {
				first := r.Reclaimed
				r.Reclaimed, r.Err = n.ReclaimNow(ctx)
				r.Shards, r.Bytes = r.Shards+first.Shards, r.Bytes+first.Bytes
			}
		}
		out = append(out, r)
	}
	return out, nil
}

func openToReclaim(dir string) (*disk.Node, vfs.FS, error) {
	root, err := vfs.OS(dir)
	if err != nil {
		return nil, nil, err
	}
	cluster, _, err := disk.Identify(root)
	if err != nil {
		root.Close()
		return nil, nil, fmt.Errorf("%w: %w", node.ErrMissing, err)
	}
	n, err := disk.Open(root, disk.Config{Cluster: cluster, Dir: dir, ReclaimEvery: -1})
	if err != nil {
		root.Close()
		return nil, nil, err
	}
	return n, root, nil
}

// dropBallast gives up every ballast of the directory and reports whether there
// was one: where there is no room even to give room back. The next start makes
// them again.
func (d *Dir) dropBallast() bool {
	places := []string{d.opt.Dir, d.IndexDir()}
	if names, err := d.nodeDirs(); err == nil {
		for _, name := range names {
			places = append(places, filepath.Join(d.opt.Dir, "nodes", name))
		}
	}
	had := false
	for _, dir := range places {
		if err := os.Remove(filepath.Join(dir, ballastName)); err == nil {
			had = true
			_ = syncDir(dir) // a hint: some filesystems hand out the blocks only then
		} else if !errors.Is(err, fs.ErrNotExist) {
			return had
		}
	}
	return had
}
