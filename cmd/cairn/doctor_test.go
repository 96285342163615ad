package main

import (
	"bufio"
	"errors"
	"strings"
	"testing"
	"time"

	"cairn/keys"
)

// healthy are facts without a fault.
func healthy() facts {
	now := time.Date(2026, 11, 26, 12, 0, 0, 0, time.UTC)
	f := facts{Losses: 1, OpenFiles: 65536, Now: now, Newest: now.Add(-time.Hour), Synced: true, SyncKnown: true,
		Store: true, Slots: []keys.Slot{{Number: 1, Kind: keys.KeyFileSlot}, {Number: 2, Kind: keys.RecoverySlot}}, Copies: 4, KeyFile: "/c/x.key",
		Memory: 512 << 20, Limit: 4 << 30, Available: 2 << 30}
	for i, name := range []string{"node n01", "node n02", "node n03"} {
		f.Places = append(f.Places, diskPlace{Name: name, Node: true, Device: uint64(i)})
		f.Disks = append(f.Disks, diskFacts{Names: []string{name}, Nodes: 1, Type: "ext4", Size: 100 << 30, Free: 50 << 30, Inodes: 1e6, FreeInodes: 9e5, Sync: 2 * time.Millisecond})
	}
	return f
}

func TestDoctorJudges(t *testing.T) {
	for _, x := range judge(healthy()) {
		if x.Level != levelOK || x.Do != "" {
			t.Errorf("without a fault: %+v", x)
		}
	}
	disk := func(change func(*diskFacts)) func(*facts) { return func(f *facts) { change(&f.Disks[1]) } }
	for _, c := range []struct {
		name   string
		change func(*facts)
		level  string
		what   string // in the one line that is not ok
	}{
		{"two nodes on one device", func(f *facts) { f.Disks = f.Disks[:2]; f.Disks[0].Nodes = 2 }, levelWarn, "up to 2 on one"},
		{"as many as are survived", func(f *facts) { f.Losses = 2; f.Disks = f.Disks[:2]; f.Disks[0].Nodes = 2 }, "", ""},
		{"a node is away", func(f *facts) { f.Places[2].Err = errors.New("no such directory") }, levelFail, "node n03: no such"},
		{"nearly full", disk(func(d *diskFacts) { d.Free = d.Size * 7 / 100 }), levelWarn, "(7 %)"},
		{"full", disk(func(d *diskFacts) { d.Free = d.Size * 4 / 100 }), levelFail, "(4 %)"},
		{"few inodes", disk(func(d *diskFacts) { d.FreeInodes = 900 }), levelWarn, "900 of 1000000 inodes"},
		{"no inodes", disk(func(d *diskFacts) { d.FreeInodes = 10 }), levelFail, "10 inodes"},
		{"no fixed number of inodes", disk(func(d *diskFacts) { d.Inodes, d.FreeInodes = 0, 0 }), "", ""},
		{"no barriers", disk(func(d *diskFacts) { d.NoBarrier = true }), levelFail, "does not empty the disk's cache"},
		{"read-only", disk(func(d *diskFacts) { d.ReadOnly = true }), levelFail, "read-only"},
		{"not writable", disk(func(d *diskFacts) { d.ProbeErr = errors.New("permission denied") }), levelFail, "nothing can be written: permission"},
		{"in memory", disk(func(d *diskFacts) { d.Type, d.Sync = "tmpfs", time.Microsecond }), levelWarn, "goes away"},
		{"from a network", disk(func(d *diskFacts) { d.Type = "nfs4" }), levelWarn, "locks and syncs"},
		{"from a program", disk(func(d *diskFacts) { d.Type = "fuse.sshfs" }), levelWarn, "locks and syncs"},
		{"no fallocate", disk(func(d *diskFacts) { d.Fallocate = errors.New("not supported") }), levelWarn, "no fallocate"},
		{"no holes", disk(func(d *diskFacts) { d.PunchHole = errors.New("not supported") }), levelWarn, "no punch hole"},
		{"slow", disk(func(d *diskFacts) { d.Sync = 80 * time.Millisecond }), levelWarn, "take 80ms to sync"},
		{"too fast", disk(func(d *diskFacts) { d.Sync = 9 * time.Microsecond }), levelWarn, "faster than disks are"},
		{"dying", disk(func(d *diskFacts) { d.SyncErr = errors.New("input/output error") }), levelFail, "a sync fails"},
		{"nothing measured", disk(func(d *diskFacts) { d.NoFile = true }), levelWarn, "nothing could be measured"},
		{"keys alone on a disk that is full", disk(func(d *diskFacts) { d.Keys, d.Nodes, d.Free = true, 0, 0 }), "", ""},
		{"few files", func(f *facts) { f.OpenFiles = 1024 }, levelWarn, "1024 open files"},
		{"too few files", func(f *facts) { f.OpenFiles = 256 }, levelFail, "256 open files"},
		{"set back", func(f *facts) { f.Newest = f.Now.Add(time.Hour) }, levelFail, "1h0m0s later"},
		{"not kept right", func(f *facts) { f.Synced = false }, levelWarn, "nothing keeps it right"},
		{"not known", func(f *facts) { f.SyncKnown = false }, "", ""},
		{"no key", func(f *facts) { f.KeyErr = keys.ErrNoKey }, levelFail, "is not there"},
		{"another key", func(f *facts) { f.KeyErr = keys.ErrWrongKey }, levelFail, "does not open the store"},
		{"key for all", func(f *facts) { f.KeyLoose = &keys.LooseError{Path: "/c/x.key", Mode: 0o044} }, levelWarn, "x.key"},
		{"token for all", func(f *facts) { f.Loose = []string{"/c/token"} }, levelFail, "/c/token can be read"},
		{"one slot", func(f *facts) { f.Slots = f.Slots[:1] }, levelWarn, "one way to unlock the store (key file)"},
		{"copies behind", func(f *facts) { f.Behind = []string{"n02"} }, levelWarn, "1 of 4 copies"},
		{"not confirmed", func(f *facts) { f.Pending = "/c/x.recovery" }, levelWarn, "/c/x.recovery"},
		{"a key that goes", func(f *facts) { f.KeysVanish = true }, levelFail, "goes away, the data are not"},
		{"no store yet", func(f *facts) { f.Store, f.KeyErr, f.Slots = false, keys.ErrNoKey, nil }, "", ""},
		{"little memory", func(f *facts) { f.Limit = 600 << 20 }, levelWarn, "512 MiB of the 600 MiB"},
		{"too little memory", func(f *facts) { f.Limit = 256 << 20 }, levelFail, "may have 256 MiB"},
	} {
		f := healthy()
		c.change(&f)
		var bad []finding
		for _, x := range judge(f) {
			if x.Level != levelOK {
				bad = append(bad, x)
			}
		}
		if c.level == "" && len(bad) == 0 || c.level != "" && len(bad) == 1 && bad[0].Level == c.level && strings.Contains(bad[0].What, c.what) && bad[0].Do != "" {
			continue
		}
		t.Errorf("%s: found %+v; want one %q with %q and what to do", c.name, bad, c.level, c.what)
	}
}

func TestParseMounts(t *testing.T) {
	const mounts = `22 28 0:21 / /proc rw,nosuid - proc proc rw
28 1 8:1 / / rw,relatime shared:1 master:2 - ext4 /dev/sda1 rw,nobarrier
cut 8:2
30 28 8:3 / /x rw,relatime -
31 28 8:4 / /with\040space ro,noatime - xfs /dev/sdb rw,attr2
`
	for device, want := range map[string][2]string{
		"8:1": {"ext4", "rw,relatime,rw,nobarrier"}, "8:4": {"xfs", "ro,noatime,rw,attr2"}, "8:3": {"a filesystem", ""}, "9:9": {"a filesystem", ""},
	} {
		kind, options := parseMounts(bufio.NewScanner(strings.NewReader(mounts)), device)
		if kind != want[0] || options != want[1] {
			t.Errorf("%s: %q, %q; want %q", device, kind, options, want)
		}
	}
}
