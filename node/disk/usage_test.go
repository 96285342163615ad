package disk

import (
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	"cairn/node"
	"cairn/node/nodetest"
	"cairn/node/vfs"
	"cairn/node/vfs/crashfs"
)

// TestUsageAddsUp: whatever the life of a node was, the parts of its usage, each
// counted by itself, are what its directory takes.
func TestUsageAddsUp(t *testing.T) {
	t.Parallel()
	for name, fsys := range map[string]vfs.FS{"crashfs": crashfs.New(), "os": mustOS(t, t.TempDir())} {
		t.Run(name, func(t *testing.T) {
			var clock atomic.Int64 // seconds
			cfg := testConfig(1)
			cfg.Now = func() time.Time { return time.Unix(1000+clock.Load(), 0) }
			cfg.Want = mustFormat(t, fsys, cfg)
			n := mustOpen(t, fsys, cfg)
			check := func(what string) node.Usage {
				t.Helper()
				u, err := n.Usage(t.Context())
				if err != nil {
					t.Fatal(err)
				}
				sum := u.LiveBytes + u.DeadBytes + u.SegmentFreeBytes + u.LayoutBytes + u.OtherBytes
				// A mark, or a hole's edges, in each segment at the most.
				if off := sum - u.AllocatedBytes; max(off, -off) > 16<<10 {
					t.Errorf("%s: the parts are %d bytes, the directory takes %d: %+v", what, sum, u.AllocatedBytes, u)
				}
				if (u.DeadShards == 0) != u.Until.IsZero() || u.DueBytes > u.DeadBytes {
					t.Errorf("%s: %d dead shards until %v, %d bytes of %d are due", what, u.DeadShards, u.Until, u.DueBytes, u.DeadBytes)
				}
				return u
			}
			check("empty")
			var shards []nodetest.Shard
			for i := range uint64(40) {
				for _, s := range []nodetest.Shard{small(i, 100), small(1000+i, 50_000), small(2000+i, 300_000), logShard(i+1, 3000)} {
					shards = append(shards, s)
					mustPut(t, n, s)
				}
			}
			check("written")
			delete := func(i int) {
				info, _, err := n.Stat(t.Context(), shards[i].Key())
				if err == nil {
					err = n.Delete(t.Context(), nodetest.By(1), info.Key, info.Instance)
				}
				if err != nil {
					t.Fatal(err)
				}
			}
			for i := 0; i < len(shards); i += 2 {
				clock.Store(int64(i))
				delete(i)
			}
			// The last even one is of data, the last of the log is odd.
			u := check("deleted")
			if want := time.Unix(1000+158, 0).Add(24 * time.Hour); !u.Until.Equal(want) {
				t.Errorf("until %v, want %v", u.Until, want)
			}
			clock.Store(200)
			delete(159) // of the log: its keep time is shorter
			if again := check("deleted more"); !again.Until.Equal(u.Until) || again.DueBytes != 0 {
				t.Errorf("until %v, want %v; %d bytes are due", again.Until, u.Until, again.DueBytes)
			}
			clock.Store(25 * 3600)
			if err := n.Reclaim(t.Context(), cfg.Now()); err != nil {
				t.Fatal(err)
			}
			// The journal is more than a quarter needed: what is over there waits.
			u = check("reclaimed")
			if u.DeadBytes == 0 || u.DueBytes != u.DeadBytes {
				t.Errorf("%d bytes are dead, %d due", u.DeadBytes, u.DueBytes)
			}
			if err := n.Close(); err != nil {
				t.Fatal(err)
			}
			n = mustOpen(t, fsys, cfg)
			if again := check("opened again"); again.DeadBytes != u.DeadBytes || again.Until.IsZero() {
				t.Errorf("opened again: %+v, before %+v", again, u)
			}
			mustPut(t, n, small(9000, 300_000))
			if _, err := n.ReclaimNow(t.Context()); err != nil {
				t.Fatal(err)
			}
			if u := check("reclaimed all"); u.DeadBytes != 0 || u.DueBytes != 0 {
				t.Errorf("after all was reclaimed: %+v", u)
			}
			if err := n.Close(); err != nil {
				t.Fatal(err)
			}
		})
	}
}

// TestUsageTellsStrangers: files that are not the node's are counted apart.
func TestUsageTellsStrangers(t *testing.T) {
	dir := t.TempDir()
	fsys := mustOS(t, dir)
	cfg := testConfig(1)
	cfg.Want = mustFormat(t, fsys, cfg)
	n := mustOpen(t, fsys, cfg)
	defer n.Close()
	if err := os.WriteFile(filepath.Join(dir, "ballast"), make([]byte, 100<<10), 0o600); err != nil {
		t.Fatal(err)
	}
	u, err := n.Usage(t.Context())
	if err != nil || u.OtherBytes < 100<<10 || u.LayoutBytes > 100<<10 {
		t.Errorf("usage: %+v, %v", u, err)
	}
}

func mustOS(t *testing.T, dir string) vfs.FS {
	t.Helper()
	fsys, err := vfs.OS(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { fsys.Close() })
	return fsys
}
