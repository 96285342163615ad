package datadir

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"cairn/node"
	"cairn/node/disk"
	"cairn/node/vfs"
	"cairn/store"
)

// nodeDir is where a node is, as its name says: a directory, a mount point, or a
// symbolic link to a directory elsewhere.
func (d *Dir) nodeDir(name string) string { return filepath.Join(d.opt.Dir, "nodes", name) }

// realDir is nodeDir, or where the link there leads.
func (d *Dir) realDir(name string) (dir string, link bool) {
	dir = d.nodeDir(name)
	to, err := os.Readlink(dir)
	if err != nil {
		return dir, false
	}
	if !filepath.IsAbs(to) {
		to = filepath.Join(filepath.Dir(dir), to)
	}
	return to, true
}

// AddNode makes an empty directory a node, and opens it: DIR/nodes/NAME, or the one at
// an absolute path elsewhere, to which a symbolic link of that name then leads. What is
// not there is made, its parents not. A directory that an earlier call made a node, and
// that has not become a member, is taken as it is. Each step leaves what the next call
// goes on with; nothing is removed.
func (d *Dir) AddNode(name, elsewhere string) (*disk.Node, error) {
	if err := store.CheckNodeName(name); err != nil {
		return nil, err
	}
	at := d.nodeDir(name)
	real, link := d.realDir(name)
	_, err := os.Lstat(at)
	there := err == nil
	switch {
	case err != nil && !errors.Is(err, fs.ErrNotExist):
		return nil, fmt.Errorf("make node %s: %w", name, err)
	case elsewhere == "":
	case !filepath.IsAbs(elsewhere):
		return nil, fmt.Errorf("%w: %q is no absolute path: the directory is the server's", store.ErrInvalid, elsewhere)
	case there && (!link || real != filepath.Clean(elsewhere)):
		return nil, fmt.Errorf("%w: %s is there already; a node whose directory is elsewhere begins without", store.ErrPrecondition, at)
	default:
		if real = filepath.Clean(elsewhere); within(resolved(d.opt.Dir), resolved(real)) || within(resolved(real), resolved(d.opt.Dir)) {
			return nil, fmt.Errorf("%w: %s and the data directory %s must not lie in each other", store.ErrInvalid, elsewhere, d.opt.Dir)
		}
	}
	if n := d.Nodes[name]; n != nil {
		return n, nil
	}
	if err := os.Mkdir(real, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return nil, fmt.Errorf("%w: make the directory of node %s: %w", store.ErrInvalid, name, err)
	}
	if other, err := d.sameNode(name, real); err != nil {
		return nil, err
	} else if other != "" {
		return nil, fmt.Errorf("%w: %s is the directory of node %s already", store.ErrPrecondition, real, other)
	}
	if err := d.mayFormat(real); err != nil {
		return nil, err
	}
	if err := d.formatNode(real); err != nil {
		return nil, fmt.Errorf("make node %s: %w", name, err)
	}
	if err := syncDir(filepath.Dir(real)); err != nil {
		return nil, err
	}
	if real != at && !there {
		if err := os.Symlink(real, at); err != nil {
			return nil, fmt.Errorf("make node %s: %w", name, err)
		}
	}
	if err := errors.Join(syncDir(filepath.Dir(at)), syncDir(d.opt.Dir)); err != nil {
		return nil, err
	}
	n, err := d.openNode(name)
	if err != nil {
		return nil, fmt.Errorf("open the new node %s: %w", name, err)
	}
	if d.guard != nil {
		if err := d.guard.join(real); err != nil {
			return nil, errors.Join(err, n.Close())
		}
	}
	d.Nodes[name] = n
	delete(d.Absent, name)
	d.noteNodes(func(names []string) []string { return append(names, name) })
	return n, nil
}

// sameNode is the name, other than the given one, under which a directory is a node
// already, or a name for one: one directory cannot be two nodes. It is empty when there
// is none.
func (d *Dir) sameNode(name, dir string) (string, error) {
	at, err := os.Stat(dir)
	if err != nil {
		return "", err
	}
	entries, err := os.ReadDir(filepath.Join(d.opt.Dir, "nodes"))
	if err != nil {
		return "", err
	}
	for _, e := range entries {
		// What a link leads to may be gone: then it is not this directory.
		if other, err := os.Stat(d.nodeDir(e.Name())); err == nil && e.Name() != name && os.SameFile(at, other) {
			return e.Name(), nil
		}
	}
	return "", nil
}

// noteNodes changes the names of node directories that the marker has: those that are
// looked for. It only helps to say what is missing.
func (d *Dir) noteNodes(change func([]string) []string) {
	d.note("which node directories there are", func(m *marker) bool {
		m.Nodes = change(m.Nodes)
		slices.Sort(m.Nodes)
		m.Nodes = slices.Compact(m.Nodes)
		return true
	})
}

// NoteLosses notes how many losses the store survives: a start waits no longer than it must
// for directories that do not answer, and divides its memory by it.
func (d *Dir) NoteLosses(losses int) {
	d.note("how many losses the store survives", func(m *marker) bool {
		changed := m.State == formed && m.Losses != losses
		m.Losses = losses
		return changed
	})
}

// note changes the marker of a store, when there is one.
func (d *Dir) note(what string, change func(*marker) bool) {
	d.noting.Lock()
	defer d.noting.Unlock()
	m, there, err := d.readMarker()
	if err == nil && there && change(&m) {
		err = d.writeMarker(m)
	}
	if err != nil {
		d.opt.Log.Warn(what+" is not noted", "err", err)
	}
}

// mayFormat says whether a directory may become a node: it is empty, one already, or has
// what a call that was cut short has left.
func (d *Dir) mayFormat(dir string) error {
	if cluster, err := readIdentity(dir); err == nil && cluster == d.Cluster {
		return nil
	}
	root, err := vfs.OS(dir)
	if err != nil {
		return fmt.Errorf("%w: %w", store.ErrInvalid, err)
	}
	defer root.Close()
	if err := disk.Blank(root); err != nil {
		return fmt.Errorf("%w: %s cannot become a node: %w; a new node begins in an empty directory", store.ErrPrecondition, dir, err)
	}
	return nil
}

// within reports whether a path lies in a directory, or is it.
func within(dir, path string) bool {
	rel, err := filepath.Rel(dir, path)
	return err == nil && rel != ".." && !strings.HasPrefix(rel, ".."+string(filepath.Separator))
}

// Retire closes a node that is no member any more and sets its directory aside: it
// returns where that is now. A link to a directory elsewhere is removed, and the
// directory stays there; so does a mount point.
func (d *Dir) Retire(name string) (kept string, err error) {
	if n := d.Nodes[name]; n != nil {
		err = n.Close()
		delete(d.Nodes, name)
	}
	delete(d.Absent, name)
	d.noteNodes(func(names []string) []string {
		return slices.DeleteFunc(names, func(x string) bool { return x == name })
	})
	real, link := d.realDir(name)
	if link {
		return real, errors.Join(err, os.Remove(d.nodeDir(name)), syncDir(filepath.Join(d.opt.Dir, "nodes")))
	}
	aside := d.asideOf("removed", name)
	switch rerr := os.Rename(real, aside); {
	case errors.Is(rerr, syscall.EBUSY): // something is mounted there
		return real, err
	case errors.Is(rerr, fs.ErrNotExist):
		return "", err
	case rerr != nil:
		return real, errors.Join(err, rerr)
	}
	return aside, errors.Join(err, syncDir(filepath.Join(d.opt.Dir, "nodes")), syncDir(d.opt.Dir))
}

// asideOf is where what a node's directory held is moved to.
func (d *Dir) asideOf(what, name string) string {
	return filepath.Join(d.opt.Dir, fmt.Sprintf("%s-%s-%s", what, name, time.Now().UTC().Format("20060102T150405.000Z")))
}

// notThere says of a node whose directory is not there where it should be.
func (d *Dir) notThere(name string) error {
	if real, link := d.realDir(name); link {
		return fmt.Errorf("directory %s, to which %s leads, is not there: %w", real, d.nodeDir(name), node.ErrMissing)
	}
	return fmt.Errorf("directory %s is not there: %w", d.nodeDir(name), node.ErrMissing)
}
