package store

import (
	"context"
	"testing"

	"cairn/id"
	"cairn/keys"
)

// testKeyring is a keyring with one slot.
func testKeyring(t *testing.T, cluster id.Cluster) *keys.Keyring {
	t.Helper()
	ring, err := keys.New(cluster, nil)
	if err != nil {
		t.Fatal(err)
	}
	file, err := keys.NewKeyFile(nil)
	if err != nil {
		t.Fatal(err)
	}
	if ring, err = ring.AddSlot(context.Background(), file); err != nil {
		t.Fatal(err)
	}
	return ring
}
