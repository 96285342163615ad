package drill

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"cairn/node"
	"cairn/node/disk"
	"cairn/node/vfs"
	packs "cairn/pack"
)

// files are the regular files under dir that want likes, by path.
func files(dir string, want func(path string, info fs.FileInfo) bool) (out []string, err error) {
	err = filepath.WalkDir(dir, func(p string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		info, err := d.Info()
		if err == nil && want(p, info) {
			out = append(out, p)
		}
		return err
	})
	return out, err
}

// segments are the segment files of a node's directory: of "data", "journal", or both.
func segments(node string, kinds ...string) (out []string, err error) {
	for _, kind := range kinds {
		got, err := files(filepath.Join(node, kind), func(p string, _ fs.FileInfo) bool { return strings.HasSuffix(p, ".seg") })
		if err != nil {
			return nil, err
		}
		out = append(out, got...)
	}
	return out, nil
}

// rot flips one bit in each stretch of every bytes of a file, where it does not
// hit a block of zeros, and says how many. Only the byte that is hit is written:
// the file may be in use.
func rot(rng *rand.Rand, path string, every int64) (flipped int, err error) {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	info, err := f.Stat()
	if err != nil {
		return 0, err
	}
	const block = 4096
	b := make([]byte, block)
	for off := int64(0); off < info.Size(); off += every {
		at := off + rng.Int64N(min(every, info.Size()-off))&^(block-1)
		n, err := f.ReadAt(b, at)
		if err != nil && err != io.EOF {
			return flipped, err
		}
		if n == 0 || zero(b[:n]) {
			continue
		}
		i := rng.IntN(n)
		if _, err := f.WriteAt([]byte{b[i] ^ 1<<rng.IntN(8)}, at+int64(i)); err != nil {
			return flipped, err
		}
		flipped++
	}
	return flipped, nil
}

// overwrite puts n zeros over a file's bytes.
func overwrite(path string, off, n int64) error {
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	_, err = io.Copy(io.NewOffsetWriter(f, off), io.LimitReader(zeros{}, n))
	return errors.Join(err, f.Close())
}

type zeros struct{}

func (zeros) Read(b []byte) (int, error) { clear(b); return len(b), nil }

// openNode opens a node that nobody serves.
func openNode(dir string) (*disk.Node, io.Closer, error) {
	root, err := vfs.OS(dir)
	if err != nil {
		return nil, nil, err
	}
	cluster, _, err := disk.Identify(root)
	if err != nil {
		return nil, nil, errors.Join(err, root.Close())
	}
	d, err := disk.Open(root, disk.Config{Cluster: cluster})
	if err != nil {
		return nil, nil, errors.Join(err, root.Close())
	}
	return d, closers{d, root}, nil
}

type closers []io.Closer

func (c closers) Close() (err error) {
	for _, x := range c {
		err = errors.Join(err, x.Close())
	}
	return err
}

// held are shards of a node: by the printed ID of their pack, their number.
type held map[string]uint8

// shard is one that was read, and where it is known.
type shard struct {
	info   node.Info
	header packs.Header
	packs.Shard
}

// read reads shards from an open node.
func (h held) read(ctx context.Context, d *disk.Node) (out []shard, err error) {
	for _, p := range slices.Sorted(maps.Keys(h)) {
		k := node.Key{Index: h[p]}
		if err := k.Pack.UnmarshalText([]byte(p)); err != nil {
			return nil, err
		}
		info, _, err := d.Stat(ctx, k)
		if err != nil {
			return nil, err
		}
		b := make([]byte, info.Size)
		if err := d.Read(ctx, k, 0, b); err != nil {
			return nil, err
		}
		header, s, err := packs.ParseShard(b)
		if err != nil {
			return nil, err
		}
		out = append(out, shard{info, header, s})
	}
	return out, nil
}

// forge puts other bytes in the place of shards on a node that nobody serves, and
// makes all checksums of the node right: what only the digests in the log can find.
func (h held) forge(ctx context.Context, dir string) (err error) {
	d, all, err := openNode(dir)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, all.Close()) }()
	by, err := d.Promised(ctx)
	if err != nil {
		return err
	}
	shards, err := h.read(ctx, d)
	if err != nil {
		return err
	}
	for _, s := range shards {
		s.Slice[len(s.Slice)/3] ^= 1
		copy(s.Head[packs.HeaderSize:], packs.AppendTable(nil, s.Head[s.header.BodyOffset():], s.Slice))
		if err := d.Delete(ctx, by, s.info.Key, s.info.Instance); err != nil {
			return err
		}
		if _, err := d.Put(ctx, by, node.ForRepair, node.Shard{Head: s.Head, Body: s.Slice}); err != nil {
			return err
		}
	}
	return nil
}

// destroy overwrites the bytes of shards with zeros where they lie in the files of
// a node that nobody serves.
func (h held) destroy(ctx context.Context, dir string) error {
	d, all, err := openNode(dir)
	if err != nil {
		return err
	}
	shards, err := h.read(ctx, d)
	if err = errors.Join(err, all.Close()); err != nil {
		return err
	}
	paths, err := segments(dir, "data", "journal")
	if err != nil {
		return err
	}
	for _, s := range shards {
		found := false
		for _, p := range paths {
			at, err := find(p, string(s.Slice[:min(64, len(s.Slice))]))
			if err != nil {
				return err
			}
			if at < 0 {
				continue
			}
			found = true
			if err := overwrite(p, at, int64(len(s.Slice))); err != nil {
				return err
			}
		}
		if !found {
			return fmt.Errorf("a shard is not found in the files of %s", dir)
		}
	}
	return nil
}

// fingerprint sums up names and bytes of a tree, for "nothing was changed". Lock
// files are left out: they hold nothing.
func fingerprint(dirs ...string) (sum [sha256.Size]byte, err error) {
	h := sha256.New()
	for _, dir := range dirs {
		all, err := files(dir, func(p string, _ fs.FileInfo) bool { return filepath.Base(p) != "lock" })
		if err != nil {
			return sum, err
		}
		for _, p := range all {
			f, err := os.Open(p)
			if err != nil {
				return sum, err
			}
			fmt.Fprintf(h, "%q ", p)
			n, err := io.Copy(h, f)
			f.Close()
			if err != nil {
				return sum, err
			}
			fmt.Fprintf(h, " %d\n", n)
		}
	}
	return [sha256.Size]byte(h.Sum(nil)), nil
}

// allocated is what the files of a tree take on disk.
func allocated(dir string) (int64, error) { return treeSize(dir, 0) }

// holding are the files under dir that hold the text.
func holding(dir, text string) ([]string, error) {
	all, err := files(dir, func(string, fs.FileInfo) bool { return true })
	if err != nil {
		return nil, err
	}
	var out []string
	for _, p := range all {
		at, err := find(p, text)
		if err != nil {
			return nil, err
		}
		if at >= 0 {
			out = append(out, p)
		}
	}
	return out, nil
}

// find looks through a file, in pieces that overlap, and says where the text
// begins first; -1: nowhere.
func find(path, text string) (int64, error) {
	f, err := os.Open(path)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	var (
		buf  = make([]byte, 1<<20)
		kept int
		at   int64 // of buf in the file
	)
	for {
		n, err := io.ReadFull(f, buf[kept:])
		if i := bytes.Index(buf[:kept+n], []byte(text)); i >= 0 {
			return at + int64(i), nil
		}
		if err == io.EOF || err == io.ErrUnexpectedEOF {
			return -1, nil
		}
		if err != nil {
			return 0, err
		}
		kept = copy(buf, buf[len(buf)-len(text):])
		at += int64(len(buf) - kept)
	}
}
