package disk

import (
	"encoding/binary"
	"math/rand/v2"
	"testing"
	"time"

	"cairn/id"
	"cairn/node"
	"cairn/node/nodetest"
	"cairn/node/vfs"
	"cairn/node/vfs/crashfs"
)

// seeded draws from a seed, so that a run can be repeated.
type seeded struct{ r *rand.Rand }

func (s seeded) Read(b []byte) (int, error) {
	for i := 0; i < len(b); i += 8 {
		var w [8]byte
		binary.LittleEndian.PutUint64(w[:], s.r.Uint64())
		copy(b[i:], w[:])
	}
	return len(b), nil
}

func newRand(seed uint64) *rand.Rand { return rand.New(rand.NewPCG(seed, 0xca125)) }

// testConfig is a node without a clock of its own: nothing happens but what a
// test asks for.
func testConfig(seed uint64) Config {
	return Config{Cluster: id.Cluster{1}, Rand: seeded{newRand(seed)}, Now: func() time.Time { return time.Unix(1000, 0) },
		ReclaimEvery: -1, MarkAfter: -1}
}

func mustOpen(t testing.TB, fsys vfs.FS, cfg Config) *Node {
	t.Helper()
	n, err := Open(fsys, cfg)
	if err != nil {
		t.Fatalf("open: %v", err)
	}
	return n
}

func mustFormat(t testing.TB, fsys vfs.FS, cfg Config) id.Node {
	t.Helper()
	n, err := Format(fsys, cfg)
	if err != nil {
		t.Fatalf("format: %v", err)
	}
	return n
}

// harness opens a node on any filesystem.
func harness(t *testing.T, fsys vfs.FS, cfg Config) nodetest.Harness {
	cfg.Want = mustFormat(t, fsys, cfg)
	n := mustOpen(t, fsys, cfg)
	t.Cleanup(func() { _ = n.Close() })
	return nodetest.Harness{Store: n, Reopen: func(t *testing.T) node.Store {
		t.Helper()
		if err := n.Close(); err != nil {
			t.Fatalf("close: %v", err)
		}
		n = mustOpen(t, fsys, cfg)
		return n
	}}
}

func TestNodeOnCrashFS(t *testing.T) {
	nodetest.Run(t, func(t *testing.T) nodetest.Harness { return harness(t, crashfs.New(), testConfig(1)) })
}

func TestNodeOnOS(t *testing.T) {
	nodetest.Run(t, func(t *testing.T) nodetest.Harness {
		fsys, err := vfs.OS(t.TempDir())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = fsys.Close() })
		return harness(t, fsys, Config{Cluster: id.Cluster{1}})
	})
}

// TestNodeWithFewFiles makes segments come and go all the time.
func TestNodeWithFewFiles(t *testing.T) {
	nodetest.Run(t, func(t *testing.T) nodetest.Harness {
		cfg := testConfig(1)
		cfg.MaxFiles, cfg.MaxData, cfg.MaxJournal, cfg.first = 8, 64<<10, 64<<10, 64<<10
		return harness(t, crashfs.New(), cfg)
	})
}
