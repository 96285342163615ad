package keys

import (
	"bytes"
	"context"
	"encoding/hex"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"cairn/id"
)

// What version 1 wrote is in testdata/v1 for good. It was made by TestWriteVersion1
// with CAIRN_WRITE_VECTORS=1, which overwrites nothing.
const v1 = "testdata/v1"

var (
	vectorCluster = id.Cluster{0xc1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16}
	vectorPack    = id.Pack{0xa1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16}
)

const vectorPass = "correct horse battery staple"

// derivedKeys prints every derivation of a keyring, in hexadecimal.
func derivedKeys(t testing.TB, k *Keyring) string {
	var out strings.Builder
	line := func(name string, b []byte) { fmt.Fprintf(&out, "%s %s\n", name, hex.EncodeToString(b)) }
	key := func(name string, s Secret) { b := s.Reveal(); line(name, b[:]) }
	key("meta", k.MetaKey(vectorPack))
	key("pad", k.PadKey(vectorPack))
	key("digest", k.DigestKey(vectorPack))
	key("index-values", k.IndexValueKey())
	key("index-digest", k.IndexDigestKey())
	key("index-engine", k.IndexEngineKey())
	key("cluster-file", k.ClusterFileKey())
	for _, n := range k.Realms() {
		r, err := k.Realm(n)
		if err != nil {
			t.Fatal(err)
		}
		key(fmt.Sprintf("realm-%d-gear", n), r.GearKey())
		key(fmt.Sprintf("realm-%d-record", n), r.RecordKey(vectorPack))
		for e := uint32(1); e <= r.Epoch(); e++ {
			s, err := r.SealingKey(e)
			if err != nil {
				t.Fatal(err)
			}
			key(fmt.Sprintf("realm-%d-epoch-%d", n, e), s)
		}
		for _, size := range []int{0, 1, 64, 1024, 1025, 8192, 8193, 100000} {
			plain := bytes.Repeat([]byte("cairn"), size/5+1)[:size]
			for _, kind := range []Kind{Data, List, Snap} {
				c := r.ChunkID(kind, plain)
				line(fmt.Sprintf("realm-%d-%v-of-%d", n, kind, size), c[:])
			}
		}
	}
	return out.String()
}

func readVector(t testing.TB, name string) []byte {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(v1, name))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestVersion1OpensForEver(t *testing.T) {
	ring := readVector(t, "keyring.bin")
	f, err := ReadKeyFile(filepath.Join(v1, "cluster.key"))
	if err != nil {
		t.Fatal(err)
	}
	code, err := ParseRecoveryCode(string(readVector(t, "recovery.txt")))
	if err != nil {
		t.Fatal(err)
	}
	if got := code.Reveal() + "\n"; got != string(readVector(t, "recovery.txt")) {
		t.Errorf("the recovery code is printed as %s", got)
	}
	if got := f.Append(nil); !bytes.Equal(got, readVector(t, "cluster.key")) {
		t.Errorf("the key file is written as %s", got)
	}
	pass, err := NewPassphrase([]byte(vectorPass))
	if err != nil {
		t.Fatal(err)
	}
	want := string(readVector(t, "derived.txt"))
	for _, p := range []Provider{f, code, pass} {
		k, err := Open(context.Background(), vectorCluster, ring, p)
		if err != nil {
			t.Fatalf("%v: %v", p.Kind(), err)
		}
		if got := derivedKeys(t, k); got != want {
			t.Errorf("%v: derived keys are\n%swant\n%s", p.Kind(), got, want)
		}
		if !bytes.Equal(k.Marshal(), ring) {
			t.Errorf("%v: marshals to other bytes", p.Kind())
		}
	}
}

func TestWriteVersion1(t *testing.T) {
	if os.Getenv("CAIRN_WRITE_VECTORS") == "" {
		t.Skip("the vectors are there; CAIRN_WRITE_VECTORS=1 writes those that are not")
	}
	src := rand.NewChaCha8([32]byte([]byte("cairn keyring vectors, version 1")))
	ctx := context.Background()
	write := func(name string, b []byte) {
		t.Helper()
		if err := os.MkdirAll(v1, 0o755); err != nil {
			t.Fatal(err)
		}
		f, err := os.OpenFile(filepath.Join(v1, name), os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := f.Write(b); err != nil {
			t.Fatal(err)
		}
		if err := f.Close(); err != nil {
			t.Fatal(err)
		}
	}
	f, err := NewKeyFile(src)
	if err != nil {
		t.Fatal(err)
	}
	code, err := NewRecoveryCode(src)
	if err != nil {
		t.Fatal(err)
	}
	pass, err := NewPassphrase([]byte(vectorPass))
	if err != nil {
		t.Fatal(err)
	}
	pass.random = src
	k, err := New(vectorCluster, src)
	for _, change := range []func(*Keyring) (*Keyring, error){
		func(k *Keyring) (*Keyring, error) { return k.AddSlot(ctx, f) },
		func(k *Keyring) (*Keyring, error) { return k.AddSlot(ctx, f) },
		func(k *Keyring) (*Keyring, error) { return k.AddSlot(ctx, pass) },
		func(k *Keyring) (*Keyring, error) { return k.RemoveSlot(1) },
		func(k *Keyring) (*Keyring, error) { return k.AddRealm(7) },
		func(k *Keyring) (*Keyring, error) { return k.Rotate(1) },
		func(k *Keyring) (*Keyring, error) { return k.Rotate(1) },
		func(k *Keyring) (*Keyring, error) { return k.AddSlot(ctx, code) },
	} {
		if err != nil {
			t.Fatal(err)
		}
		k, err = change(k)
	}
	if err != nil {
		t.Fatal(err)
	}
	write("keyring.bin", k.Marshal())
	write("cluster.key", f.Append(nil))
	write("recovery.txt", []byte(code.Reveal()+"\n"))
	write("derived.txt", []byte(derivedKeys(t, k)))
}
