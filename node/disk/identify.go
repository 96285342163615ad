package disk

import (
	"cairn/id"
	"cairn/node/vfs"
)

// Identify says which store and node a directory is, without opening it: so that
// a data directory can be recognised by its nodes. The error is vfs.ReadFile's,
// or says that what is there is no node's identity.
func Identify(fsys vfs.FS) (id.Cluster, id.Node, error) {
	b, err := vfs.ReadFile(fsys, "node.json", 4<<10)
	if err != nil {
		return id.Cluster{}, id.Node{}, err
	}
	i, err := parseIdentity(b)
	return i.cluster, i.node, err
}
