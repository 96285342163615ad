package store

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"cairn/id"
	"cairn/keys"
	"cairn/record"
	"cairn/seal"
)

// keyringV1 is the keyring of keys/testdata/v1.
func keyringV1(t *testing.T) (id.Cluster, *keys.Keyring) {
	t.Helper()
	cluster := id.Cluster{0xc1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16}
	wrapped, err := os.ReadFile(filepath.Join("..", "keys", "testdata", "v1", "keyring.bin"))
	if err != nil {
		t.Fatal(err)
	}
	file, err := keys.ReadKeyFile(filepath.Join("..", "keys", "testdata", "v1", "cluster.key"))
	if err != nil {
		t.Fatal(err)
	}
	ring, err := keys.Open(context.Background(), cluster, wrapped, file)
	if err != nil {
		t.Fatal(err)
	}
	return cluster, ring
}

// TestClusterFileOfVersion1: the one that version 1 wrote is read, and written in
// the same bytes. CAIRN_WRITE_FIXTURE=1 writes it unless it is there.
func TestClusterFileOfVersion1(t *testing.T) {
	for path, raise := range map[string]uint8{"testdata/cluster-v1.txt": 0, "testdata/cluster-raising-v1.txt": 3} {
		clusterFixture(t, path, raise)
	}
}

func clusterFixture(t *testing.T, path string, raise uint8) {
	t.Helper()
	cluster, ring := keyringV1(t)
	want := record.Nodes{Version: 3, M: 2, Want: raise, LogNodes: []id.Node{{1}, {2}, {3}, {4}, {5}}, Gone: []id.Node{{9}}}
	for i := range byte(5) {
		want.Members = append(want.Members, record.Member{ID: id.Node{i + 1}, Name: fmt.Sprintf("n%02d", i+1)})
	}
	want.Members[4].Weight, want.Members[4].Labels = 200, []string{"rack=1", "zone=a"}
	s := &Store{cfg: Config{Cluster: cluster, Keyring: ring}, rand: [draws]io.Reader{forSeals: rand.NewChaCha8([32]byte{1})}}
	sealed, err := s.sealCluster(want)
	if err != nil {
		t.Fatal(err)
	}
	plain, err := record.Append(nil, &want)
	if err != nil {
		t.Fatal(err)
	}
	text := fmt.Sprintf("%x\n%x\n", plain, sealed)
	if os.Getenv("CAIRN_WRITE_FIXTURE") != "" {
		if err := os.MkdirAll("testdata", 0o755); err != nil {
			t.Fatal(err)
		}
		f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
		if err == nil {
			_, err = f.WriteString(text)
			err = errors.Join(err, f.Close())
		}
		if err != nil && !errors.Is(err, fs.ErrExist) {
			t.Fatal(err)
		}
	}
	was, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if text != string(was) {
		t.Errorf("today's code writes\n%s\nversion 1 wrote\n%s", text, was)
	}
	b, err := hex.DecodeString(strings.Split(string(was), "\n")[1])
	if err != nil {
		t.Fatal(err)
	}
	if got, err := OpenClusterFile(ring, cluster, b); err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("read as %+v, %v", got, err)
	}
	b[20] ^= 1
	if _, err := OpenClusterFile(ring, cluster, b); err == nil || errors.Is(err, id.ErrNewer) {
		t.Errorf("with a flipped bit: %v", err)
	}
}

// TestNewerClusterFile: whatever stands in the cluster file of a later store, its
// version is found, and one copy is enough. Without one it is damage.
func TestNewerClusterFile(t *testing.T) {
	cluster, ring := keyringV1(t)
	box := seal.NewBox(ring.ClusterFileKey(), nil)
	for plain, newer := range map[string]bool{
		"\x09\xa1\x06\x02": true, // nothing but the version
		"\x09\xa2\x06\x19\x01\x00\x18\x63\x82\x01\x02": true, // and a field 99
		"\x09\xa2\x01\x61a\x06\x02":                    true, // a field of another type
		"\x63\xa0":                                     true, // another kind altogether
		"\x09\xa1\x06\x01":                             false,
		"\x09\xa1\x06\x61a":                            false,
		"\x09\xa0":                                     false,
	} {
		b, err := box.Seal(nil, []byte(plain), cluster[:])
		if err != nil {
			t.Fatal(err)
		}
		if _, err := OpenClusterFile(ring, cluster, b); err == nil || errors.Is(err, id.ErrNewer) != newer {
			t.Errorf("%x: %v, want newer %v", plain, err, newer)
		}
	}
}
