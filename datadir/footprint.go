package datadir

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"golang.org/x/sys/unix"
)

// Footprint says what the data directory takes on disk, in bytes: the index, wherever
// its directory lies, and what else there is, directories among it, but for those of the
// nodes that are named, which say themselves what they take. What lies on other
// filesystems is not looked at. An error says what could not be counted. It may be
// called at any time, also at the same time.
func (d *Dir) Footprint(nodes []string) (index, other int64, err error) {
	at := d.IndexDir()
	if to, err := filepath.EvalSymlinks(at); err == nil {
		at = to
	}
	all := walk{ballast: filepath.Join(at, ballastName)}
	index = all.tree(at)
	other, all.ballasts = all.ballasts, 0
	// As the index says them and as they are found: a link counts as a link.
	all.skip = append(all.skip, d.IndexDir(), at)
	for _, name := range nodes {
		all.skip = append(all.skip, filepath.Join(d.opt.Dir, "nodes", name))
	}
	other += all.tree(d.opt.Dir)
	return index, other, all.err
}

// walk adds up trees of one filesystem each.
type walk struct {
	skip     []string
	ballast  string // counted apart
	ballasts int64
	device   uint64
	err      error // the first
}

const statBlock = 512 // of st_blocks, on Linux

// tree is what a directory and all below it takes.
func (w *walk) tree(dir string) int64 {
	st, err := w.stat(dir)
	if err != nil {
		return 0
	}
	w.device = st.Dev
	return st.Blocks*statBlock + w.below(dir)
}

func (w *walk) below(dir string) (sum int64) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		w.fail(err)
	}
	for _, e := range entries {
		name := filepath.Join(dir, e.Name())
		if slices.Contains(w.skip, name) && e.IsDir() {
			continue
		}
		st, err := w.stat(name)
		switch {
		case err != nil:
		case name == w.ballast:
			w.ballasts += st.Blocks * statBlock
		case !e.IsDir():
			sum += st.Blocks * statBlock
		case st.Dev == w.device:
			sum += st.Blocks*statBlock + w.below(name)
		}
	}
	return sum
}

func (w *walk) stat(name string) (st unix.Stat_t, err error) {
	if err = unix.Lstat(name, &st); err != nil {
		w.fail(fmt.Errorf("stat %s: %w", name, err))
	}
	return st, err
}

// fail notes an error, unless something went meanwhile.
func (w *walk) fail(err error) {
	if w.err == nil && !errors.Is(err, fs.ErrNotExist) {
		w.err = err
	}
}
