package disk

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"

	"cairn/node"
	"cairn/node/vfs"
)

// Shown is what a node directory shows to whoever may not open it yet.
type Shown struct {
	// Keyring and Cluster are the small files kept for the store; nil when they are
	// not there or cannot be read.
	Keyring, Cluster []byte
}

// Inspect reads a node directory without its lock and without changing a byte,
// and refuses what a newer version wrote ([cairn/id.ErrNewer]), so that this is
// said before an open repairs or tidies anything. It judges nothing else: what
// is damaged, missing or cannot be asked is left to [Open].
func Inspect(fsys vfs.FS) (Shown, error) {
	b, err := vfs.ReadFile(fsys, "node.json", 64<<10)
	if err != nil {
		return Shown{}, nil
	}
	me, err := parseIdentity(b)
	if err != nil {
		return Shown{}, onlyNewer(err)
	}
	var out Shown
	for _, f := range []struct {
		name    string
		kind    uint16
		content *[]byte
	}{{"state", stateFile, nil}, {string(node.KeyringFile), keyringFile, &out.Keyring}, {string(node.ClusterFile), clusterFile, &out.Cluster}} {
		b, err := readSmall(fsys, f.name, f.kind, me.node, maxSmallFile)
		if err := onlyNewer(err); err != nil {
			return Shown{}, err
		}
		if err == nil && f.content != nil {
			*f.content = b
		}
	}
	for _, k := range []segKind{dataSeg, journalSeg} {
		names, err := fsys.ReadDir(k.dir())
		if err != nil {
			continue
		}
		for _, name := range names {
			base, ext, _ := strings.Cut(name, ".")
			if _, err := strconv.ParseUint(base, 16, 32); err != nil || len(base) != 8 {
				continue
			}
			full := k.dir() + "/" + name
			var err error
			switch ext {
			case "seg":
				err = inspectSegment(fsys, full)
			case "idx":
				err = inspectFooter(fsys, full, me)
			}
			if err := onlyNewer(err); err != nil {
				return Shown{}, err
			}
		}
	}
	return out, nil
}

// onlyNewer passes on nothing but a refusal.
func onlyNewer(err error) error {
	if errors.Is(err, errNewer) {
		return err
	}
	return nil
}

// inspectSegment looks at the header's copy that holds.
func inspectSegment(fsys vfs.FS, name string) error {
	f, err := fsys.OpenFile(name, os.O_RDONLY, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	for _, off := range []int64{0, blockSize} {
		var b [segHeaderLen]byte
		if _, rerr := f.ReadAt(b[:], off); rerr != nil && rerr != io.EOF {
			return rerr
		}
		if _, err = parseSegHeader(b[:]); err == nil {
			return nil
		}
		if errors.Is(err, errNewer) {
			return fmt.Errorf("%s: %w", name, err)
		}
	}
	return err
}

// inspectFooter reads a footer whole, for its checksum, only when it does not say
// that it is of a version that is known: a node may have thousands of them.
func inspectFooter(fsys vfs.FS, name string, me identity) error {
	f, err := fsys.OpenFile(name, os.O_RDONLY, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	var b [smallHead]byte
	if _, err := f.ReadAt(b[:], 0); err != nil || binary.LittleEndian.Uint16(b[4:]) <= formatVersion {
		return err
	}
	_, err = readSmall(fsys, name, footerFile, me.node, maxFooter)
	return err
}
