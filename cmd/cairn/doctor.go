package main

import (
	"bufio"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/dustin/go-humanize"
	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"cairn/datadir"
	"cairn/keys"
)

func newDoctor() *cobra.Command {
	cmd := &cobra.Command{
		Use: "doctor", Short: "Look at what a data directory stands on: disks, limits, clock, keys, memory", Args: cobra.NoArgs,
		Long: `Look at the machine that a data directory is on, or would be: what devices the nodes are on, what the filesystems can do,
how long a sync takes and whether that can be true, free space and inodes, open files, the clock, keys and their permissions,
memory. Each line says ok, warn or fail, and what to do. It may run while the store is served; nothing is changed, and what is
written for a measurement is in files without a name.

What a sync does inside a disk cannot be seen from here: that a sync is fast says that something stands in for the disk,
and a slow one proves nothing. What is stored is not read either: that is verify's.

Exit codes: 0 nothing failed (warnings count as that), 1 something failed, 3 the directory cannot be looked at.`,
		Example: "  cairn doctor --data /srv/cairn\n  cairn doctor --data /srv/cairn --json",
		RunE:    do(runDoctor),
	}
	keyFlags(cmd)
	cmd.Flags().String("memory", "512MiB", "memory that the server is to use")
	settings(cmd.Flags(), serveSection, "memory")
	return cmd
}

// Levels of a finding.
const (
	levelOK   = "ok"
	levelWarn = "warn"
	levelFail = "fail"
)

// finding is one line of the doctor's.
type finding struct {
	Level string `json:"level"`
	Area  string `json:"area"` // disks, limits, clock, keys, memory
	What  string `json:"what"`
	Do    string `json:"do,omitempty"`
}

// diskPlace is a directory that something lies in.
type diskPlace struct {
	Name   string // node n01, index, ...
	Dir    string // the directory, or its nearest parent that exists
	Node   bool
	Key    bool // holds keys, nothing else
	Device uint64
	Err    error // it cannot be looked at
}

// diskFacts is a filesystem that some of the places lie on.
type diskFacts struct {
	Names                         []string // of the places
	Nodes                         int
	Keys                          bool // nothing but keys lies on it
	Type                          string
	Size, Free                    uint64 // bytes
	Inodes, FreeInodes            uint64 // 0: it has no fixed number
	NoBarrier                     bool
	ReadOnly                      bool
	ProbeErr                      error // nothing could be written
	NoFile                        bool  // files without a name are not possible: nothing was measured
	Fallocate, PunchHole, SyncErr error
	Sync                          time.Duration // of 4 KiB, median
}

// facts are what the doctor judges.
type facts struct {
	Places []diskPlace
	Disks  []diskFacts
	Losses int // that the store survives by policy

	OpenFiles uint64 // limit

	Now       time.Time
	Newest    time.Time // of what is in the data directory
	Synced    bool
	SyncKnown bool

	Store      bool // there is one
	Slots      []keys.Slot
	Copies     int
	Behind     []string // places without the newest keyring
	KeyFile    string
	KeyErr     error // the key file does not open the store
	KeyLoose   error
	Pending    string
	Loose      []string // other files of the store that others may read or change
	KeysVanish bool     // the key is on a filesystem that does not stay, the data are not

	Memory, Limit, Available uint64 // asked for; what the process may have; what is free
}

const (
	fewFiles    = 1024
	enoughFiles = 4096
	slowSync    = 50 * time.Millisecond
	hastySync   = 30 * time.Microsecond // below this nothing that keeps data through a power cut has been asked
)

// vanishing are filesystems in memory or in a container's own layer.
var vanishing = []string{"tmpfs", "ramfs", "overlay"}

// distant are filesystems whose locks and syncs another machine or program answers for.
var distant = []string{"nfs", "smb", "cifs", "fuse", "9p", "ceph"}

// judge makes findings of facts. It asks nothing else.
func judge(f facts) []finding {
	var out []finding
	say := func(level, area, do, format string, args ...any) {
		if level == levelOK {
			do = ""
		}
		out = append(out, finding{level, area, fmt.Sprintf(format, args...), do})
	}
	nodes, most := 0, 0
	for _, p := range f.Places {
		if p.Node {
			nodes++
		}
		if p.Err != nil {
			say(levelFail, "disks", "bring it back; a directory that is lost: cairn nodes replace", "%s: %v", p.Name, p.Err)
		}
	}
	devices := 0
	for _, d := range f.Disks {
		if d.Nodes > 0 {
			devices++
		}
		most = max(most, d.Nodes)
	}
	switch {
	case nodes == 0:
	case most > f.Losses:
		say(levelWarn, "disks", "mount a disk of its own on each node directory, or as many as keep to that number", "%d nodes are on %s, up to %d on one: losing that device loses more than the %d nodes that the store survives", nodes, plural(devices, "device"), most, f.Losses)
	default:
		say(levelOK, "disks", "", "%d nodes are on %s, at most %d on one; the store survives the loss of %d", nodes, plural(devices, "device"), most, f.Losses)
	}
	for _, d := range f.Disks {
		judgeDisk(d, say)
	}
	switch {
	case f.OpenFiles < fewFiles:
		say(levelFail, "limits", "raise it: ulimit -n 65536, LimitNOFILE= of the service", "%d open files are allowed; nodes, index and connections need at least %d", f.OpenFiles, fewFiles)
	case f.OpenFiles < enoughFiles:
		say(levelWarn, "limits", "raise it: ulimit -n 65536, LimitNOFILE= of the service", "%d open files are allowed; many connections at once need more", f.OpenFiles)
	default:
		say(levelOK, "limits", "", "%d open files are allowed", f.OpenFiles)
	}
	switch ahead := f.Newest.Sub(f.Now); {
	case ahead > time.Minute:
		say(levelFail, "clock", "set it; times of versions and keep times go by it", "it says %s, and what is in the data directory was written up to %v later", f.Now.UTC().Format(time.RFC3339), ahead.Round(time.Second))
	case f.SyncKnown && !f.Synced:
		say(levelWarn, "clock", "run a time service, such as chrony or systemd-timesyncd", "it says %s, and nothing keeps it right", f.Now.UTC().Format(time.RFC3339))
	case !f.SyncKnown:
		say(levelOK, "clock", "", "it says %s; whether something keeps it right cannot be asked here", f.Now.UTC().Format(time.RFC3339))
	default:
		say(levelOK, "clock", "", "it says %s and is kept right", f.Now.UTC().Format(time.RFC3339))
	}
	judgeKeys(f, say)
	switch {
	case f.Limit > 0 && f.Memory > f.Limit:
		say(levelFail, "memory", "lower --memory or raise the limit", "--memory is %s, this process may have %s", humanize.IBytes(f.Memory), humanize.IBytes(f.Limit))
	case f.Limit > 0 && f.Memory > f.Limit/5*4:
		say(levelWarn, "memory", "leave a fifth for the system and the page cache", "--memory is %s of the %s that this process may have", humanize.IBytes(f.Memory), humanize.IBytes(f.Limit))
	default:
		say(levelOK, "memory", "", "--memory is %s of %s, %s are free", humanize.IBytes(f.Memory), humanize.IBytes(f.Limit), humanize.IBytes(f.Available))
	}
	return out
}

// where names the places on a filesystem; of several nodes it gives the number.
func (d diskFacts) where() string {
	var names []string
	for _, n := range d.Names {
		if d.Nodes < 2 || !strings.HasPrefix(n, "node ") {
			names = append(names, n)
		}
	}
	if d.Nodes > 1 {
		names = append(names, fmt.Sprintf("%d nodes", d.Nodes))
	}
	return strings.Join(names, ", ")
}

func judgeDisk(d diskFacts, say func(level, area, do, format string, args ...any)) {
	where := d.where()
	is := func(list []string) bool {
		return slices.ContainsFunc(list, func(s string) bool { return strings.HasPrefix(d.Type, s) })
	}
	if d.Keys { // judged with the keys
		return
	}
	switch {
	case d.ReadOnly:
		say(levelFail, "disks", "mount it to be written", "%s: %s is mounted read-only", where, d.Type)
		return
	case d.ProbeErr != nil:
		say(levelFail, "disks", "let the user of the server write there", "%s: nothing can be written: %v", where, d.ProbeErr)
		return
	case is(vanishing):
		say(levelWarn, "disks", "put the data on a disk", "%s: %s goes away with the machine's memory or the container", where, d.Type)
	case is(distant):
		say(levelWarn, "disks", "a local filesystem (ext4, xfs) is what is tested", "%s: %s: locks and syncs are only as good as what serves it", where, d.Type)
	}
	percent := 100.0
	if d.Size > 0 {
		percent = float64(d.Free) * 100 / float64(d.Size)
	}
	free := fmt.Sprintf("%s: %s, %s of %s free (%.0f %%)", where, d.Type, humanize.IBytes(d.Free), humanize.IBytes(d.Size), percent)
	switch {
	case percent < 5:
		say(levelFail, "disks", "make room: new data is refused below 5 %", "%s", free)
	case percent < 10:
		say(levelWarn, "disks", "make room soon: new data is refused below 5 %", "%s", free)
	default:
		say(levelOK, "disks", "", "%s", free)
	}
	switch {
	case d.Inodes == 0:
	case d.FreeInodes < 64:
		say(levelFail, "disks", "make the filesystem anew with more of them, or remove small files", "%s: %d inodes are free", where, d.FreeInodes)
	case d.FreeInodes < max(1000, d.Inodes/50):
		say(levelWarn, "disks", "remove small files", "%s: %d of %d inodes are free", where, d.FreeInodes, d.Inodes)
	default:
		say(levelOK, "disks", "", "%s: %d inodes are free", where, d.FreeInodes)
	}
	if d.NoBarrier {
		say(levelFail, "disks", "mount it without nobarrier or barrier=0", "%s: mounted so that a sync does not empty the disk's cache", where)
	}
	if d.NoFile {
		say(levelWarn, "disks", "measure on a local filesystem (ext4, xfs), or see what the server's log says of this one", "%s: nothing could be measured: the filesystem has no files without a name", where)
		return
	}
	for _, c := range []struct {
		err           error
		what, instead string
	}{{d.Fallocate, "fallocate", "space is taken by writing it: slower"}, {d.PunchHole, "punch hole", "space in segments comes back only when they are written anew"}} {
		if c.err != nil {
			say(levelWarn, "disks", "ext4 and xfs can", "%s: no %s (%v): %s", where, c.what, c.err, c.instead)
		}
	}
	switch {
	case d.SyncErr != nil:
		say(levelFail, "disks", "look at the kernel's log: the disk may be dying", "%s: a sync fails: %v", where, d.SyncErr)
	case is(vanishing):
	case d.Sync < hastySync:
		say(levelWarn, "disks", "see whether its cache is kept through a power cut, and whether a virtual machine ignores syncs", "%s: 4 KiB are synced in %v, faster than disks are", where, d.Sync.Round(time.Microsecond))
	case d.Sync > slowSync:
		say(levelWarn, "disks", "each write waits for such a sync on all its nodes; a faster disk helps", "%s: 4 KiB take %v to sync", where, d.Sync.Round(time.Microsecond))
	default:
		say(levelOK, "disks", "", "%s: 4 KiB are synced in %v; fallocate and punch hole: %v, %v", where, d.Sync.Round(time.Microsecond), d.Fallocate == nil, d.PunchHole == nil)
	}
}

func judgeKeys(f facts, say func(level, area, do, format string, args ...any)) {
	if f.KeysVanish {
		say(levelFail, "keys", "mount a volume there, or set --key-file or XDG_CONFIG_HOME to a place that stays", "%s is on a filesystem that goes away, the data are not", f.KeyFile)
	}
	if !f.Store {
		say(levelOK, "keys", "", "no store has begun here; its key file would be in %s", filepath.Dir(f.KeyFile))
		return
	}
	switch {
	case errors.Is(f.KeyErr, keys.ErrNoKey):
		say(levelFail, "keys", "bring it back from its backup, name it with --key-file, or start with --recovery-code-file", "%s is not there", f.KeyFile)
	case f.KeyErr != nil:
		say(levelFail, "keys", "name the right one with --key-file", "%s does not open the store: %v", f.KeyFile, f.KeyErr)
	default:
		say(levelOK, "keys", "", "%s opens the store", f.KeyFile)
	}
	if f.KeyLoose != nil {
		say(levelWarn, "keys", "chmod 600 it", "%v", f.KeyLoose)
	}
	for _, name := range f.Loose {
		say(levelFail, "keys", "chmod go= it", "%s can be read or changed by others than its owner", name)
	}
	kinds := make([]string, len(f.Slots))
	for i, s := range f.Slots {
		kinds[i] = s.Kind.String()
	}
	if len(f.Slots) < 2 {
		say(levelWarn, "keys", "cairn keys add-passphrase", "there is one way to unlock the store (%s)", strings.Join(kinds, ", "))
	} else {
		say(levelOK, "keys", "", "%d ways to unlock the store: %s", len(f.Slots), strings.Join(kinds, ", "))
	}
	if len(f.Behind) > 0 {
		say(levelWarn, "keys", "the next start brings them up", "%d of %d copies of the keyring are behind or missing: %s", len(f.Behind), f.Copies, strings.Join(f.Behind, ", "))
	} else {
		say(levelOK, "keys", "", "all %d copies of the keyring are the same", f.Copies)
	}
	if f.Pending != "" {
		say(levelWarn, "keys", "write it down elsewhere, then cairn keys confirm-recovery --data DIR", "the recovery code is not confirmed and lies in %s", f.Pending)
	}
}

func runDoctor(cmd *cobra.Command, _ []string) error {
	memoryText, _ := cmd.Flags().GetString("memory")
	memory, err := humanize.ParseBytes(memoryText)
	if err != nil {
		return &exitError{exitUsage, fmt.Errorf("--memory %q is not a size, such as 512MiB", memoryText)}
	}
	f, err := gather(cmd)
	if err != nil {
		return &exitError{exitNoReach, err}
	}
	f.Memory = memory
	found := judge(f)
	failed, warned := 0, 0
	for _, x := range found {
		switch x.Level {
		case levelFail:
			failed++
		case levelWarn:
			warned++
		}
	}
	if jsonWanted(cmd) {
		err = printJSON(cmd, map[string]any{"findings": found, "failed": failed, "warned": warned})
	} else {
		for _, x := range found {
			if _, err = fmt.Fprintf(cmd.OutOrStdout(), "%-4s  %-6s  %s\n", x.Level, x.Area, printable(x.What)); err == nil && x.Do != "" {
				_, err = fmt.Fprintf(cmd.OutOrStdout(), "%14s-> %s\n", "", x.Do)
			}
		}
	}
	if err == nil && failed > 0 {
		return &exitError{code: exitFailed}
	}
	return err
}

func plural(n int, word string) string {
	if n == 1 {
		return "1 " + word
	}
	return fmt.Sprintf("%d %ss", n, word)
}

// existing is a directory, or its nearest parent that is there.
func existing(dir string) string {
	for {
		if _, err := os.Stat(dir); err == nil || dir == filepath.Dir(dir) {
			return dir
		}
		dir = filepath.Dir(dir)
	}
}

// gather asks the machine.
func gather(cmd *cobra.Command) (facts, error) {
	f := facts{Now: time.Now()}
	data, _ := cmd.Flags().GetString("data")
	data, err := filepath.Abs(data)
	if err != nil {
		return f, err
	}
	if info, err := os.Stat(data); err == nil && !info.IsDir() {
		return f, fmt.Errorf("%s is not a directory", data)
	}
	config, err := configDir()
	keyFile, _ := cmd.Flags().GetString("key-file")
	if err != nil && keyFile == "" {
		return f, err
	}
	o := datadir.Options{Dir: data, Config: config, KeyFile: keyFile}
	f.Losses = o.StoreLosses()
	f.Places = append(f.Places, diskPlace{Name: "data", Dir: data}, diskPlace{Name: "index", Dir: filepath.Join(data, "index")})
	f.KeyFile = cmp.Or(keyFile, filepath.Join(config, "CLUSTER.key"))
	k, err := datadir.LookAtKeys(o)
	switch {
	case errors.Is(err, datadir.ErrNotStore):
		if known, err := datadir.Known(o); err == nil && !known.IsZero() {
			f.Places = append(f.Places, diskPlace{Name: "data", Dir: data, Err: fmt.Errorf("it has held the store %v, and holds none now: is its disk mounted?", known)})
		}
		for i := range 6 {
			name := datadir.NodeName(i)
			f.Places = append(f.Places, diskPlace{Name: "node " + name, Dir: filepath.Join(data, "nodes", name), Node: true})
		}
	case err != nil:
		return f, err
	default:
		f.Store, f.KeyFile, f.Pending = true, k.KeyFile, k.RecoveryPending()
		gatherKeys(cmd.Context(), k, config, &f)
		for _, c := range k.Copies {
			if c.Where != "" {
				dir := filepath.Join(data, "nodes", c.Where)
				f.Places = append(f.Places, diskPlace{Name: "node " + c.Where, Dir: dir, Node: true, Err: noNode(dir)})
			}
		}
	}
	f.Places = append(f.Places, diskPlace{Name: "keys", Dir: filepath.Dir(f.KeyFile), Key: true})
	f.gatherDisks()
	_ = filepath.WalkDir(data, func(path string, e fs.DirEntry, err error) error {
		if err != nil {
			return nil // said of its place already
		}
		if e.IsDir() && strings.Count(strings.TrimPrefix(path, data), "/") > 2 {
			return fs.SkipDir // the files of nodes are many, and like their directories
		}
		if info, err := e.Info(); err == nil && info.ModTime().After(f.Newest) {
			f.Newest = info.ModTime()
		}
		return nil
	})
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err == nil {
		f.OpenFiles = limit.Cur
	}
	var timex unix.Timex
	if _, err := unix.Adjtimex(&timex); err == nil {
		f.SyncKnown, f.Synced = true, timex.Status&unix.STA_UNSYNC == 0
	}
	f.Limit, f.Available = machineMemory()
	return f, nil
}

// noNode is why a directory that is there holds no node.
func noNode(dir string) error {
	if _, err := os.Stat(dir); err != nil {
		return nil // which is said of the directory
	}
	_, err := os.Stat(filepath.Join(dir, "node.json"))
	if errors.Is(err, fs.ErrNotExist) {
		return errors.New("no node is in it: it was emptied, or its disk is not mounted")
	}
	return err
}

func gatherKeys(ctx context.Context, k *datadir.KeyCopies, config string, f *facts) {
	var newest keys.Summary
	generations := make([]uint64, len(k.Copies))
	for i, c := range k.Copies {
		if s, err := keys.Inspect(c.Wrapped); c.Err == nil && err == nil {
			if generations[i] = s.Generation; s.Generation > newest.Generation {
				newest = s
			}
		}
	}
	f.Slots, f.Copies = newest.Slots, len(k.Copies)
	for i, c := range k.Copies {
		if generations[i] < newest.Generation {
			f.Behind = append(f.Behind, cmp.Or(c.Where, "the data directory"))
		}
	}
	file, err := keys.ReadKeyFile(k.KeyFile)
	if f.KeyErr = err; err == nil {
		f.KeyLoose = file.Warning()
		_, f.KeyErr = k.Open(ctx, file)
	}
	for _, name := range []string{f.Pending, filepath.Join(config, k.Cluster.String()+".token"), filepath.Join(config, "token")} {
		if info, err := os.Stat(name); err == nil && info.Mode().Perm()&0o077 != 0 {
			f.Loose = append(f.Loose, name)
		}
	}
	for _, dir := range []string{config, filepath.Dir(k.KeyFile)} {
		if info, err := os.Stat(dir); err == nil && info.Mode().Perm()&0o022 != 0 && info.Mode()&fs.ModeSticky == 0 && !slices.Contains(f.Loose, dir) {
			f.Loose = append(f.Loose, dir)
		}
	}
}

// gatherDisks measures each filesystem once.
func (f *facts) gatherDisks() {
	at := map[uint64]int{}
	dirs := map[uint64]string{}
	for i := range f.Places {
		p := &f.Places[i]
		if p.Node && f.Store {
			if _, err := os.Stat(p.Dir); err != nil {
				p.Err = err
				continue
			}
		}
		p.Dir = existing(p.Dir)
		var st unix.Stat_t
		if err := unix.Stat(p.Dir, &st); err != nil {
			p.Err = fmt.Errorf("%s: %w", p.Dir, err)
			continue
		}
		p.Device = st.Dev
		n, ok := at[p.Device]
		if !ok {
			n = len(f.Disks)
			at[p.Device], dirs[p.Device] = n, p.Dir
			f.Disks = append(f.Disks, diskFacts{Keys: true})
		}
		d := &f.Disks[n]
		d.Names = append(d.Names, p.Name)
		d.Keys = d.Keys && p.Key
		if p.Node {
			d.Nodes++
		}
	}
	vanishes := map[bool]bool{}
	for device, n := range at {
		d := &f.Disks[n]
		d.measure(dirs[device], device)
		if slices.ContainsFunc(vanishing, func(s string) bool { return d.Type == s }) {
			vanishes[d.Keys] = true
		}
	}
	f.KeysVanish = vanishes[true] && !vanishes[false]
}

// measure fills in what is known of the filesystem of a directory.
func (d *diskFacts) measure(dir string, device uint64) {
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		d.ProbeErr = err
		return
	}
	d.Size, d.Free = st.Blocks*uint64(st.Bsize), st.Bavail*uint64(st.Bsize)
	d.Inodes, d.FreeInodes = st.Files, st.Ffree
	d.ReadOnly = st.Flags&unix.ST_RDONLY != 0
	var options string
	d.Type, options = mountOf(device)
	d.NoBarrier = slices.ContainsFunc(strings.Split(options, ","), func(o string) bool { return o == "nobarrier" || o == "barrier=0" })
	if d.ReadOnly || d.Keys {
		return
	}
	fd, err := unix.Open(dir, unix.O_TMPFILE|unix.O_RDWR|unix.O_CLOEXEC, 0o600)
	if errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.EISDIR) || errors.Is(err, unix.EINVAL) {
		d.NoFile = true
		return
	}
	if err != nil {
		d.ProbeErr = err
		return
	}
	defer unix.Close(fd)
	d.Fallocate = unix.Fallocate(fd, 0, 0, 256<<10)
	d.PunchHole = unix.Fallocate(fd, unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, 0, 64<<10)
	block := make([]byte, 4096)
	var took []time.Duration
	begin := time.Now()
	for i := 0; i < 15 && time.Since(begin) < 3*time.Second; i++ {
		block[0] = byte(i)
		start := time.Now()
		if _, err := unix.Pwrite(fd, block, int64(i)*4096); err != nil {
			d.ProbeErr = err
			return
		}
		if d.SyncErr = unix.Fdatasync(fd); d.SyncErr != nil {
			return
		}
		took = append(took, time.Since(start))
	}
	slices.Sort(took)
	d.Sync = took[len(took)/2]
}

// mountOf says of which kind the filesystem on a device is, and how it is
// mounted.
func mountOf(device uint64) (kind, options string) {
	f, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return "a filesystem", ""
	}
	defer f.Close()
	return parseMounts(bufio.NewScanner(f), fmt.Sprintf("%d:%d", unix.Major(device), unix.Minor(device)))
}

// parseMounts looks a device up in the lines of /proc/self/mountinfo.
func parseMounts(sc *bufio.Scanner, device string) (kind, options string) {
	for sc.Scan() {
		fields := strings.Fields(sc.Text())
		dash := slices.Index(fields, "-")
		if len(fields) < 6 || fields[2] != device || dash < 0 || dash+3 >= len(fields) {
			continue
		}
		return fields[dash+1], fields[5] + "," + fields[dash+3]
	}
	return "a filesystem", ""
}

// machineMemory is what this process may have, and what is free.
func machineMemory() (limit, available uint64) {
	if f, err := os.Open("/proc/meminfo"); err == nil {
		defer f.Close()
		for sc := bufio.NewScanner(f); sc.Scan(); {
			name, rest, _ := strings.Cut(sc.Text(), ":")
			n, err := strconv.ParseUint(strings.TrimSuffix(strings.TrimSpace(rest), " kB"), 10, 64)
			if err != nil {
				continue
			}
			switch name {
			case "MemTotal":
				limit = n << 10
			case "MemAvailable":
				available = n << 10
			}
		}
	}
	// A control group, version 2 and 1.
	for _, name := range []string{"/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"} {
		if b, err := os.ReadFile(name); err == nil {
			if n, err := strconv.ParseUint(strings.TrimSpace(string(b)), 10, 64); err == nil && n > 0 && n < limit {
				limit = n
			}
		}
	}
	return limit, min(available, limit)
}
