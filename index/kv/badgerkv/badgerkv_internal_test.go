package badgerkv

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"syscall"
	"testing"

	"github.com/dgraph-io/badger/v4"
	"golang.org/x/sys/unix"

	"cairn/index/kv"
	"cairn/index/kv/kvtest"
)

func mustOpen(t testing.TB, o Options) *Engine {
	t.Helper()
	e, err := Open(o)
	if err != nil {
		t.Fatal(err)
	}
	return e
}

func TestOpenErrors(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "index")
	e := mustOpen(t, small(dir))
	if _, err := Open(small(dir)); !errors.Is(err, kv.ErrLocked) {
		t.Errorf("a directory in use: %v, want ErrLocked", err)
	}
	if fi, err := os.Stat(dir); err != nil || fi.Mode().Perm() != 0o700 {
		t.Errorf("the directory's mode is %v, %v, want 0700", fi.Mode(), err)
	}
	if err := e.Commit([]kv.Op{{Key: []byte("k"), Value: []byte("v")}}); err != nil {
		t.Fatal(err)
	}
	if err := e.Close(); err != nil {
		t.Fatal(err)
	}
	other := small(dir)
	other.EncryptionKey = kv.NewSecret([32]byte{1})
	if _, err := Open(other); !errors.Is(err, kv.ErrForeign) {
		t.Errorf("another encryption key: %v, want ErrForeign", err)
	}
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(small(file)); !errors.Is(err, syscall.ENOTDIR) || errors.Is(err, kv.ErrDamaged) {
		t.Errorf("a file for a directory: %v, want ENOTDIR", err)
	}
	for name, o := range map[string]Options{
		"no directory":     {},
		"CacheBytes":       {Dir: dir, CacheBytes: 1},
		"MemTableBytes":    {Dir: dir, MemTableBytes: 1},
		"MemTableBytes is": {Dir: dir, MemTableBytes: 1 << 40},
	} {
		if _, err := Open(o); err == nil || !strings.Contains(err.Error(), name) {
			t.Errorf("%s: %v", name, err)
		}
	}
	// None of these left the directory locked or harmed.
	e = mustOpen(t, small(dir))
	s, err := e.Snapshot()
	if err != nil {
		t.Fatal(err)
	}
	if v, err := s.Get([]byte("k"), nil); err != nil || string(v) != "v" {
		t.Errorf("%q, %v", v, err)
	}
	s.Close()
	if err := e.Close(); err != nil {
		t.Fatal(err)
	}
}

// Files that are cut, gone or without an end: Open says so, and neither ends
// the process nor throws away what is left.
func TestHarmedFiles(t *testing.T) {
	t.Parallel()
	base, other := harmedBase(t), harmedBase(t)
	for name, harm := range map[string]func(dir string) error{
		"table cut to half": func(dir string) error {
			return forTables(dir, func(p string, n int64) error { return os.Truncate(p, n/2) })
		},
		"table cut by a byte": func(dir string) error {
			return forTables(dir, func(p string, n int64) error { return os.Truncate(p, n-1) })
		},
		"table ends in zeros": func(dir string) error {
			return forTables(dir, func(p string, n int64) error { return errors.Join(os.Truncate(p, n-100), os.Truncate(p, n)) })
		},
		// No index, and a checksum that fits nothing at all.
		"table without an index": func(dir string) error {
			return forTables(dir, func(p string, n int64) error {
				f, err := os.OpenFile(p, os.O_WRONLY, 0)
				if err != nil {
					return err
				}
				_, err = f.WriteAt([]byte{0, 0, 0, 0, 8, 0, 0, 0, 0, 2}, n-10)
				return errors.Join(err, f.Close())
			})
		},
		"table emptied": func(dir string) error {
			return forTables(dir, func(p string, n int64) error { return os.Truncate(p, 0) })
		},
		"table gone": func(dir string) error { return forTables(dir, func(p string, n int64) error { return os.Remove(p) }) },
		// Sound, and of another database: badger decrypts its index with the wrong key.
		"another database's table": func(dir string) error {
			theirs := ""
			if err := forTables(other, func(p string, _ int64) error { theirs = p; return nil }); err != nil {
				return err
			}
			b, err := os.ReadFile(theirs)
			if err != nil {
				return err
			}
			return forTables(dir, func(p string, n int64) error { return os.WriteFile(p, b, 0o600) })
		},
		"no manifest":     func(dir string) error { return os.Remove(filepath.Join(dir, "MANIFEST")) },
		"no key registry": func(dir string) error { return os.Remove(filepath.Join(dir, "KEYREGISTRY")) },
	} {
		dir := filepath.Join(t.TempDir(), "index")
		if err := os.CopyFS(dir, os.DirFS(base)); err != nil {
			t.Fatal(err)
		}
		if err := harm(dir); err != nil {
			t.Fatal(err)
		}
		before, _ := filepath.Glob(filepath.Join(dir, "*.sst"))
		e, err := Open(small(dir))
		if !errors.Is(err, kv.ErrDamaged) {
			t.Errorf("%s: %v, want ErrDamaged", name, err)
			if err == nil {
				e.Close()
			}
			continue
		}
		after, _ := filepath.Glob(filepath.Join(dir, "*.sst"))
		if len(after) != len(before) {
			t.Errorf("%s: %d tables are left of %d", name, len(after), len(before))
		}
	}
}

// TestKeyRegistryBitByBit: whichever bit of the key registry flips, the index is damaged
// or still whole, and never another store's; without the note of whose it is nobody can
// say. Another key is another key all the same.
func TestKeyRegistryBitByBit(t *testing.T) {
	base := filepath.Join(t.TempDir(), "index")
	e := mustOpen(t, small(base))
	if err := e.Commit([]kv.Op{{Key: []byte("k"), Value: []byte("v")}}); err != nil {
		t.Fatal(err)
	}
	if err := e.Close(); err != nil {
		t.Fatal(err)
	}
	whole, err := os.ReadFile(filepath.Join(base, "KEYREGISTRY"))
	if err != nil {
		t.Fatal(err)
	}
	damaged := 0
	for i := 0; i < 8*len(whole); i += 3 {
		b := bytes.Clone(whole)
		b[i/8] ^= 1 << (i % 8)
		dir := filepath.Join(t.TempDir(), "index")
		if err := errors.Join(os.CopyFS(dir, os.DirFS(base)), os.WriteFile(filepath.Join(dir, "KEYREGISTRY"), b, 0o600)); err != nil {
			t.Fatal(err)
		}
		e, err := Open(small(dir))
		switch {
		case err == nil:
			if err := e.Close(); err != nil {
				t.Errorf("bit %d: close: %v", i, err)
			}
		case !errors.Is(err, kv.ErrDamaged) || errors.Is(err, kv.ErrForeign):
			t.Errorf("bit %d of the key registry: %v, want ErrDamaged", i, err)
		default:
			damaged++
		}
	}
	if damaged < 28*8/3 {
		t.Errorf("of %d bits %d are found", 8*len(whole), damaged)
	}
	other := small(base)
	other.EncryptionKey = kv.NewSecret([32]byte{1})
	if _, err := Open(other); !errors.Is(err, kv.ErrForeign) {
		t.Errorf("another key: %v, want ErrForeign", err)
	}
	// Of an earlier version, or rotten: it is written again.
	for _, b := range [][]byte{nil, []byte("rotten")} {
		path := filepath.Join(base, ownerName)
		if err := os.Remove(path); err != nil {
			t.Fatal(err)
		}
		if b != nil {
			if err := os.WriteFile(path, b, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := Open(other); !errors.Is(err, kv.ErrForeign) {
			t.Errorf("another key, note %q: %v, want ErrForeign", b, err)
		}
		if err := mustOpen(t, small(base)).Close(); err != nil {
			t.Fatal(err)
		}
		if o := small(base); !owned(&o) {
			t.Errorf("note %q is not written again", b)
		}
	}
}

func forTables(dir string, fn func(path string, size int64) error) error {
	names, err := filepath.Glob(filepath.Join(dir, "*.sst"))
	if err != nil || len(names) == 0 {
		return fmt.Errorf("no tables: %v", err)
	}
	for _, p := range names {
		fi, err := os.Stat(p)
		if err != nil {
			return err
		}
		if err := fn(p, fi.Size()); err != nil {
			return err
		}
	}
	return nil
}

// Badger takes files that say they are not encrypted, under any key. A database
// that was planted so is refused by what stands above (H17).
func TestPlantedDatabase(t *testing.T) {
	dir := t.TempDir()
	e, err := openWith(small(dir), func(o *badger.Options) { o.EncryptionKey = nil })
	if err != nil {
		t.Fatal(err)
	}
	c := kvtest.Config()
	c.ValueKey = kv.NewSecret([32]byte{0xbd})
	db, err := kv.Open(e, c)
	if err != nil {
		t.Fatal(err)
	}
	kvtest.Write(t, db, "access=anonymous may read")
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	e, err = Open(small(dir))
	if err != nil {
		return // a badger that has become stricter
	}
	if _, err := kv.Open(e, kvtest.Config()); !errors.Is(err, kv.ErrForeign) {
		t.Errorf("a planted database: %v, want ErrForeign", err)
	}
}

// Keys and values stand in no file, no log line and no error (H60).
func TestNothingInClear(t *testing.T) {
	t.Parallel()
	var log bytes.Buffer
	o := small(t.TempDir())
	o.Log = slog.New(slog.NewTextHandler(&log, &slog.HandlerOptions{Level: slog.LevelDebug}))
	canary := "a-canary-that-sings"
	search := func(when string) {
		err := filepath.WalkDir(o.Dir, func(p string, d fs.DirEntry, err error) error {
			if errors.Is(err, fs.ErrNotExist) || err == nil && d.IsDir() {
				return nil // a log became a table meanwhile
			}
			if err != nil {
				return err
			}
			b, err := os.ReadFile(p)
			if errors.Is(err, fs.ErrNotExist) {
				return nil
			}
			if bytes.Contains(b, []byte(canary)) {
				t.Errorf("%s: %s holds it in clear", when, d.Name())
			}
			return err
		})
		if err != nil {
			t.Error(err)
		}
		if strings.Contains(log.String(), "canary") || strings.Contains(log.String(), fmt.Sprintf("%x", "canary")) {
			t.Errorf("%s: the log holds it: %s", when, log.String())
		}
	}
	for range 2 {
		db, err := kv.Open(mustOpen(t, o), kvtest.Config())
		if err != nil {
			t.Fatal(err)
		}
		for i := range 20 { // several logs and tables
			var rows []string
			for j := range 20 {
				rows = append(rows, fmt.Sprintf("%s/%d/%d=%s", canary, i, j, strings.Repeat(canary, 200)))
			}
			kvtest.Write(t, db, rows...)
		}
		search("open")
		if err := db.Close(); err != nil {
			t.Fatal(err)
		}
		search("closed")
	}
	if !strings.Contains(log.String(), "badger") {
		t.Error("nothing was logged: the test tests nothing")
	}
	// What badger logs and says about rows, made up.
	l := logger{o.Log}
	for _, say := range []func(string, ...any){l.Errorf, l.Warningf, l.Infof, l.Debugf} {
		say("Unable to read: Key: %v, Version : %v", canary, 1)
		say("while reading \"" + canary + "\"")
	}
	search("errors logged")
	for _, text := range []string{"DB::Get key: \"" + canary + "\"", "Key with size 70000 exceeded 65000 limit. Key:\n" + canary} {
		for _, err := range []error{errors.New(text), fmt.Errorf("%s: %w", text, syscall.EIO), fmt.Errorf("%s: %w", text, badger.ErrDBClosed)} {
			if err := translate("get", err); strings.Contains(err.Error(), "canary") {
				t.Errorf("%v", err)
			}
		}
	}
}

func TestTranslate(t *testing.T) {
	for _, test := range []struct{ badger, want error }{
		{badger.ErrKeyNotFound, kv.ErrNotFound},
		{badger.ErrDBClosed, kv.ErrClosed},
		{badger.ErrBlockedWrites, kv.ErrClosed},
		{badger.ErrEncryptionKeyMismatch, kv.ErrForeign},
		{badger.ErrInvalidDataKeyID, kv.ErrDamaged},
		{errors.New("who knows"), kv.ErrDamaged},
		{&fs.PathError{Op: "open", Path: "x", Err: syscall.EMFILE}, syscall.EMFILE},
	} {
		if got := translate("x", fmt.Errorf("more: %w", test.badger)); !errors.Is(got, test.want) {
			t.Errorf("%v becomes %v, want %v", test.badger, got, test.want)
		}
	}
	for _, op := range []string{"commit", "sync", "close"} {
		if err := translate(op, errors.New("disk full, says badger")); err == nil || errors.Is(err, kv.ErrDamaged) {
			t.Errorf("%s: a failed write is called %v", op, err)
		}
	}
	if translate("x", nil) != nil {
		t.Error("nil becomes an error")
	}
	if err := translate("x", &fs.PathError{Op: "open", Path: "x", Err: syscall.EMFILE}); errors.Is(err, kv.ErrDamaged) {
		t.Errorf("what the system refused is called damage: %v", err)
	}
}

// A later badger may have options that this package has not thought about.
func TestEveryOptionIsDecided(t *testing.T) {
	decided := map[string]bool{}
	for _, name := range strings.Fields(`
		Dir ValueDir SyncWrites NumVersionsToKeep ReadOnly Logger Compression InMemory MetricsEnabled NumGoroutines
		MemTableSize BaseTableSize BaseLevelSize LevelSizeMultiplier TableSizeMultiplier MaxLevels VLogPercentile
		ValueThreshold NumMemtables BlockSize BloomFalsePositive BlockCacheSize IndexCacheSize NumLevelZeroTables
		NumLevelZeroTablesStall ValueLogFileSize ValueLogMaxEntries NumCompactors CompactL0OnClose LmaxCompaction
		ZSTDCompressionLevel VerifyValueChecksum EncryptionKey EncryptionKeyRotationDuration BypassLockGuard
		ChecksumVerificationMode DetectConflicts NamespaceOffset ExternalMagicVersion`) {
		decided[name] = true
	}
	for f := range reflect.TypeFor[badger.Options]().Fields() {
		if f.IsExported() && !decided[f.Name] {
			t.Errorf("badger has a new option %s: decide about it in badgerOptions", f.Name)
		}
		delete(decided, f.Name)
	}
	for name := range decided {
		t.Errorf("badger has no option %s any more", name)
	}
}

// With memtables of 64 MiB the limits are those that a round of the log is
// bounded by.
func TestDefaultLimits(t *testing.T) {
	o := small(t.TempDir())
	o.MemTableBytes = 0
	e := mustOpen(t, o)
	defer e.Close()
	if got, want := e.Limits(), (kv.Limits{Entries: 104855, Bytes: 10066287, OpBytes: 12}); got != want {
		t.Errorf("got %+v, want %+v", got, want)
	}
}

// The worst transactions, at the size that runs: the most entries, the most
// bytes, the longest keys; and the rows are there.
func TestLargestTransactions(t *testing.T) {
	t.Parallel()
	o := small(t.TempDir())
	o.MemTableBytes = 64 << 20
	e := mustOpen(t, o)
	defer e.Close()
	l := e.Limits()
	for _, test := range []struct {
		name       string
		key, value int
	}{{"rows", kv.MaxKey + 1, kv.MaxValue + 29}, {"keys", kv.MaxKey + 1, 0}, {"entries", 6, 0}} {
		var ops []kv.Op
		for size := 0; ; {
			size += test.key + test.value + l.OpBytes
			if len(ops) == l.Entries || size > l.Bytes {
				break
			}
			ops = append(ops, kv.Op{Key: fmt.Appendf(nil, "%0*x", test.key, len(ops)), Value: make([]byte, test.value)})
		}
		// All but the first begin in a memtable that is not empty.
		if err := e.Commit(ops); err != nil {
			t.Fatalf("%s: %d entries: %v", test.name, len(ops), err)
		}
		s, err := e.Snapshot()
		if err != nil {
			t.Fatal(err)
		}
		for _, i := range []int{0, len(ops) / 2, len(ops) - 1} {
			if v, err := s.Get(ops[i].Key, nil); err != nil || len(v) != test.value {
				t.Errorf("%s: row %d: %d bytes, %v", test.name, i, len(v), err)
			}
		}
		s.Close()
	}
}

// The number of the newest log file is followed, so that the one before it is
// synced when it changes.
func TestRotation(t *testing.T) {
	t.Parallel()
	for _, synced := range []bool{false, true} {
		o := small(t.TempDir())
		o.SyncWrites = synced
		e := mustOpen(t, o)
		first := e.mem
		for i := range 60 {
			if err := e.Commit([]kv.Op{{Key: fmt.Appendf(nil, "k%d", i), Value: make([]byte, 60<<10)}}); err != nil {
				t.Fatal(err)
			}
			if newest, err := newestLog(o.Dir); err != nil || newest != e.mem {
				t.Fatalf("commit %d: the newest log is %d, %v, and %d is taken for it", i, newest, err, e.mem)
			}
		}
		if e.mem < first+2 {
			t.Errorf("the log changed %d times: the test tests nothing", e.mem-first)
		}
		if err := e.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

// What a process with larger memtables has left in its logs when it was killed is
// opened by one with smaller ones.
func TestSmallerMemTables(t *testing.T) {
	t.Parallel()
	dir, left := t.TempDir(), filepath.Join(t.TempDir(), "index")
	o := small(dir)
	o.MemTableBytes = 32 << 20
	e := mustOpen(t, o)
	const rows = 400
	value := bytes.Repeat([]byte{7}, 50<<10)
	for i := range rows {
		if err := e.Commit([]kv.Op{{Key: fmt.Appendf(nil, "k%03d", i), Value: value}}); err != nil {
			t.Fatal(err)
		}
	}
	if err := e.Sync(); err != nil {
		t.Fatal(err)
	}
	if err := os.CopyFS(left, os.DirFS(dir)); err != nil {
		t.Fatal(err)
	}
	if err := e.Close(); err != nil {
		t.Fatal(err)
	}
	o = small(left)
	o.MemTableBytes = 1 << 20
	e = mustOpen(t, o)
	defer e.Close()
	s, err := e.Snapshot()
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	for i := range rows {
		if v, err := s.Get(fmt.Appendf(nil, "k%03d", i), nil); err != nil || !bytes.Equal(v, value) {
			t.Fatalf("row %d: %d bytes, %v", i, len(v), err)
		}
	}
}

// A process that is killed between the calls with which badger begins or ends
// a log leaves it without bytes, without a header, or with a header alone. None
// of them holds a row, and none may keep the database from opening.
func TestRemnantsOfLogs(t *testing.T) {
	t.Parallel()
	for name, content := range map[string][]byte{
		"no bytes":     nil,
		"zeroed":       make([]byte, 2<<20),
		"header alone": append(binary.BigEndian.AppendUint64(nil, 1), make([]byte, 12)...),
	} {
		for _, file := range []string{"00099.mem", "000099.vlog"} {
			t.Run(name+" "+file, func(t *testing.T) {
				o := small(t.TempDir())
				put := func(e *Engine, row string) {
					t.Helper()
					if err := e.Commit([]kv.Op{{Key: []byte(row), Value: []byte(row)}}); err != nil {
						t.Fatal(err)
					}
				}
				e := mustOpen(t, o)
				put(e, "before")
				if err := e.Close(); err != nil {
					t.Fatal(err)
				}
				if err := os.WriteFile(filepath.Join(o.Dir, file), content, 0o600); err != nil {
					t.Fatal(err)
				}
				for range 2 {
					e = mustOpen(t, o)
					put(e, "after")
					s, err := e.Snapshot()
					if err != nil {
						t.Fatal(err)
					}
					for _, row := range []string{"before", "after"} {
						if v, err := s.Get([]byte(row), nil); err != nil || string(v) != row {
							t.Errorf("get %s: %q, %v", row, v, err)
						}
					}
					s.Close()
					if err := e.Close(); err != nil {
						t.Fatal(err)
					}
				}
			})
		}
	}
}

// A full disk at Open is no damage (H9): whoever took it for damage would throw
// the index away. It needs a filesystem of its own, so it runs as root only.
func TestOpenOnFullDisk(t *testing.T) {
	dir := t.TempDir()
	if err := unix.Mount("none", dir, "tmpfs", 0, "size=16m"); err != nil {
		t.Skipf("cannot mount a small filesystem: %v", err)
	}
	defer unix.Unmount(dir, unix.MNT_DETACH)
	o := small(filepath.Join(dir, "index"))
	db, err := kv.Open(mustOpen(t, o), kvtest.Config())
	if err != nil {
		t.Fatal(err)
	}
	kvtest.Write(t, db, "a=1")
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	filler, err := os.Create(filepath.Join(dir, "filler"))
	if err != nil {
		t.Fatal(err)
	}
	for block := make([]byte, 4096); err == nil; {
		_, err = filler.Write(block)
	}
	filler.Close()
	// In another process: what badger leaves behind when it fails ends with it.
	cmd, out, said := child(t, "open", o.Dir, "")
	answer, _ := io.ReadAll(out)
	cmd.Wait()
	if string(answer) != "no space\n" {
		t.Errorf("open on a full disk: %q, %.300s", answer, said)
	}
	if err := os.Remove(filler.Name()); err != nil {
		t.Fatal(err)
	}
	db, err = kv.Open(mustOpen(t, o), kvtest.Config())
	if err != nil {
		t.Fatalf("after space came back: %v", err)
	}
	defer db.Close()
	if r, err := db.Check(t.Context()); err != nil || r.Rows != 1 {
		t.Errorf("after space came back: %+v, %v", r, err)
	}
}

// What a log has in reserve is there when the disk is full: a commit that fits
// meets no SIGBUS (H9), and what is stored is read by the next open.
func TestCommitOnFullDisk(t *testing.T) {
	dir := t.TempDir()
	if err := unix.Mount("none", dir, "tmpfs", 0, "size=16m"); err != nil {
		t.Skipf("cannot mount a small filesystem: %v", err)
	}
	defer unix.Unmount(dir, unix.MNT_DETACH)
	cmd, out, said := child(t, "full", filepath.Join(dir, "index"), "")
	answer, _ := io.ReadAll(out)
	err := cmd.Wait()
	var commits int
	if _, serr := fmt.Sscanf(string(answer), "%d commits on a full disk", &commits); err != nil || serr != nil || commits < 10 {
		t.Fatalf("%q, %v, %.300s", answer, err, said)
	}
	if err := os.Remove(filepath.Join(dir, "filler")); err != nil {
		t.Fatal(err)
	}
	e := mustOpen(t, small(filepath.Join(dir, "index")))
	defer e.Close()
	s, err := e.Snapshot()
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	for i := range commits {
		if v, err := s.Get(fmt.Appendf(nil, "full%04d", i), nil); err != nil || len(v) != 20<<10 {
			t.Errorf("commit %d of %d: %d bytes, %v", i, commits, len(v), err)
		}
	}
}

func commitOnFullDisk(dir string) {
	e, err := Open(small(dir))
	if err != nil {
		fmt.Println(err)
		return
	}
	commit := func(key string) error { return e.Commit([]kv.Op{{Key: []byte(key), Value: make([]byte, 20<<10)}}) }
	if err := commit("first"); err != nil {
		fmt.Println(err)
		return
	}
	filler, err := os.Create(filepath.Join(filepath.Dir(dir), "filler"))
	for block := make([]byte, 4096); err == nil; {
		_, err = filler.Write(block)
	}
	n := 0
	for ; n < 1000; n++ {
		key := fmt.Sprintf("full%04d", n)
		if !e.Reserved([]kv.Op{{Key: []byte(key), Value: make([]byte, 20<<10)}}) {
			break
		}
		if err := commit(key); err != nil {
			fmt.Println(err)
			return
		}
	}
	fmt.Println(n, "commits on a full disk")
	os.Exit(0) // as a kill would: there is no room to close it
}

func openAndSay(dir string) {
	e, err := Open(small(dir))
	switch {
	case err == nil:
		fmt.Println("opened", e.Close())
	case errors.Is(err, syscall.ENOSPC) && !errors.Is(err, kv.ErrDamaged):
		fmt.Println("no space")
	default:
		fmt.Println(err)
	}
}

// Calm: far more tables of the newest level than badger puts up with, and no
// commit waits for a merge that nobody does. What was written is there.
func TestCalm(t *testing.T) {
	o := small(t.TempDir())
	if flush, compact, err := Needs(filepath.Join(o.Dir, "no such directory")); err != nil || flush <= 0 || flush > 16<<20 || compact != 0 {
		t.Errorf("a new index needs %d and %d bytes, %v", flush, compact, err)
	}
	o.Calm = true
	e := mustOpen(t, o)
	value := make([]byte, 100<<10)
	const commits = 300 // of a log of a mebibyte
	for i := range commits {
		if err := e.Commit([]kv.Op{{Key: fmt.Appendf(nil, "%05d", i), Value: value}}); err != nil {
			t.Fatal(err)
		}
	}
	if err := e.Close(); err != nil {
		t.Fatal(err)
	}
	tables, err := filepath.Glob(filepath.Join(o.Dir, "*.sst"))
	if err != nil || len(tables) < 20 {
		t.Errorf("%d tables, %v: were they merged?", len(tables), err)
	}
	if flush, compact, err := Needs(o.Dir); err != nil || flush < 8<<20 || compact < commits*100<<10 {
		t.Errorf("%d tables of %d bytes in all: needs %d and %d, %v", len(tables), commits*100<<10, flush, compact, err)
	}
	o.Calm = false
	e = mustOpen(t, o)
	defer e.Close()
	s, err := e.Snapshot()
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	for i := range commits {
		if v, err := s.Get(fmt.Appendf(nil, "%05d", i), nil); err != nil || len(v) != len(value) {
			t.Errorf("row %d: %d bytes, %v", i, len(v), err)
		}
	}
}
