package sim

import (
	"context"

	"cairn/id"
	"cairn/keys"
)

// newKeyring makes the keyring of a history.
func newKeyring(seed uint64, cluster id.Cluster) *keys.Keyring {
	k, err := keys.New(cluster, newSource(seed, "keyring", 0))
	if err != nil {
		panic(err)
	}
	file, err := keys.NewKeyFile(newSource(seed, "keyfile", 0))
	if err != nil {
		panic(err)
	}
	if k, err = k.AddSlot(context.Background(), file); err != nil {
		panic(err)
	}
	return k
}
