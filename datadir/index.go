package datadir

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"cairn/index/kv"
	"cairn/index/kv/badgerkv"
)

// IndexDir is where the index lies.
func (d *Dir) IndexDir() string { return filepath.Join(d.opt.Dir, "index") }

// RebuildDir is where an index is made anew before it takes the old one's place.
func (d *Dir) RebuildDir() string { return filepath.Join(d.opt.Dir, "index.rebuild") }

// offlineMemTable is the memtable of an index that is not served.
const offlineMemTable = 16 << 20

// OpenIndexAt opens the engine of an index that lies elsewhere, or begins one there.
func (d *Dir) OpenIndexAt(path string, cacheBytes int64) (kv.Engine, error) {
	g, err := d.plainGuard(path)
	if err != nil {
		return nil, err
	}
	e, err := d.openIndex(path, offlineMemTable, cacheBytes, g)
	if errors.Is(err, kv.ErrForeign) {
		return nil, fmt.Errorf("%w: %s is not this store's index", err, path)
	}
	if err != nil {
		return nil, err
	}
	return e, nil
}

// openIndex opens an engine where there is room for it, and keeps it from writing
// where there is none.
func (d *Dir) openIndex(path string, memTable, cacheBytes int64, g *guard) (kv.Engine, error) {
	calm, err := g.roomToOpen()
	if err == nil {
		var e *badgerkv.Engine
		e, err = badgerkv.Open(badgerkv.Options{Dir: path, EncryptionKey: d.indexKey(), CacheBytes: cacheBytes, MemTableBytes: memTable, Calm: calm, Log: d.opt.Log})
		if err == nil {
			return g.watch(e), nil
		}
	}
	if g != d.guard {
		err = errors.Join(err, g.close())
	}
	return nil, err
}

// TakeRebuilt puts the index in RebuildDir into the index's place. One that is
// there already is kept aside, at the path that is returned.
func (d *Dir) TakeRebuilt() (aside string, err error) {
	aside = d.IndexDir() + ".replaced-" + time.Now().UTC().Format("20060102T150405.000000Z")
	if err := os.Rename(d.IndexDir(), aside); errors.Is(err, fs.ErrNotExist) {
		aside = ""
	} else if err != nil {
		return "", fmt.Errorf("set the index aside: %w", err)
	}
	if err := os.Rename(d.RebuildDir(), d.IndexDir()); err != nil {
		return aside, fmt.Errorf("put the new index into its place: %w", err)
	}
	f, err := os.Open(d.opt.Dir)
	if err != nil {
		return aside, err
	}
	if err := errors.Join(f.Sync(), f.Close()); err != nil {
		return aside, err
	}
	if aside != "" {
		d.dropOlder(aside, "replaced-")
	}
	return aside, nil
}
