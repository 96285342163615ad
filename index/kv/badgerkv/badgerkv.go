// Package badgerkv is the engine of package kv on disk: badger, with every
// option that durability, memory or loudness rests on written out, and with
// what it says about keys kept out of logs and errors. No other package knows
// that it is badger.
//
// What badger does with damaged files is described in
// docs/decisions/0004-index-engine.md, and is why package kv stands above it:
// this package translates, it does not vouch. A fault in a mapped file under a
// read (a cut or unreadable table) is a panic that kv turns into damage; under
// a write, and in badger's own goroutines, it ends the process: a full disk
// does so (H9), and whoever runs the store keeps space in reserve.
//
// Methods may be called at the same time, as [kv.Engine] says. Buffers that are
// handed in belong to the caller again when a call returns.
package badgerkv

import (
	"bytes"
	"context"
	"crypto/aes"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"runtime/debug"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/dgraph-io/badger/v4"
	"github.com/dgraph-io/badger/v4/fb"
	"github.com/dgraph-io/badger/v4/options"
	"github.com/dgraph-io/badger/v4/table"
	"github.com/dgraph-io/ristretto/v2"
	"github.com/dgraph-io/ristretto/v2/z"
	"golang.org/x/sys/unix"

	"cairn/index/kv"
)

// Options describe an engine. A zero optional field means its default.
type Options struct {
	Dir           string    // required; made (0700) if it is not there
	EncryptionKey kv.Secret // badger encrypts its files, and thereby the keys of rows, with it
	// SyncWrites makes every commit durable before it returns. Without it a
	// commit is durable after Sync, or when badger has written it into a table.
	SyncWrites bool
	// CacheBytes bounds the two caches together: three quarters for blocks, one
	// for table indexes. Default 64 MiB, at least 4 MiB.
	CacheBytes int64
	// MemTableBytes is the size of a memtable. One is being filled and one being
	// written into a table; when that takes longer than filling, a third waits for
	// it, and then commits do. Each has 15 % on top and as much again for its
	// nodes. 15 % of it bound a transaction. Default 64 MiB, at least 1 MiB.
	MemTableBytes int64
	// Calm opens without badger's compactions, which write tables anew before they
	// remove the old ones, and in goroutines in which a full disk ends the process.
	// Tables then pile up: it is for opening where there is no room, and for no longer.
	Calm bool
	Log  *slog.Logger // default: nothing is logged
}

const (
	memTables    = 1 // waiting ones, beside the one being written; with 0 badger's writer may sleep for ever
	blockSize    = 4 << 10
	maxMemTable  = 256 << 20
	maxThreshold = 1 << 20 // badger's own bound for values beside their keys
	magic        = 0xCA01  // in badger's manifest: whose database this is
	// txnOwn is what badger adds to a transaction beyond its rows: 21 bytes when
	// it begins, at most 20 more for the end marker when it is sent.
	txnOwn = 21 + 20
	opOwn  = 12 // and to each row: version (10), two bytes of flags
)

// Engine implements [kv.Engine].
type Engine struct {
	db     *badger.DB
	opt    Options
	limits kv.Limits
	// Owned by whoever commits, of whom there is one: the number of the newest
	// log file, and the file operations that the caller waited for.
	mem int
	// And of that log: bytes written at most, bytes that its memtable takes at
	// most, and up to where its disk space is reserved.
	logged, held, reserved int64
	slack                  atomic.Int64 // reserved and not written yet
}

// Slack is how much of its log's disk space is in reserve: what [Needs] counts
// and no table will hold. It may be called at any time.
func (e *Engine) Slack() int64 { return e.slack.Load() }

// Open opens the directory or begins a database in it. [kv.ErrLocked] means
// that another process has it open, [kv.ErrForeign] that it was encrypted with
// another key, [kv.ErrDamaged] that badger does not understand its files; what
// the operating system refused is passed on.
func Open(o Options) (*Engine, error) { return openWith(o, func(*badger.Options) {}) }

// openWith lets tests measure what another option would do.
func openWith(o Options, change func(*badger.Options)) (*Engine, error) {
	if o.Dir == "" {
		return nil, errors.New("badger: no directory given")
	}
	if o.CacheBytes == 0 {
		o.CacheBytes = 64 << 20
	}
	if o.MemTableBytes == 0 {
		o.MemTableBytes = 64 << 20
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	switch {
	case o.CacheBytes < 4<<20:
		return nil, fmt.Errorf("badger: CacheBytes is %d, want at least %d", o.CacheBytes, 4<<20)
	case o.MemTableBytes < 1<<20 || o.MemTableBytes > maxMemTable:
		return nil, fmt.Errorf("badger: MemTableBytes is %d, want %d to %d", o.MemTableBytes, 1<<20, maxMemTable)
	}
	if err := prepare(o.Dir); err != nil {
		return nil, fmt.Errorf("badger: open: %w", err)
	}
	bo := badgerOptions(&o)
	change(&bo)
	if err := checkTables(bo); err != nil {
		return nil, whose(&o, fmt.Errorf("badger: open: %w", err))
	}
	// A log that a process with larger memtables has left does not fit into a smaller
	// one, and badger ends the process over that: it goes into a table first.
	if had, err := logMemTable(o.Dir); err != nil {
		return nil, fmt.Errorf("badger: open: %w", err)
	} else if had > bo.MemTableSize {
		larger := bo
		larger.MemTableSize = had
		db, err := open(larger)
		if err == nil {
			err = translate("close", db.Close())
		}
		if err != nil {
			return nil, whose(&o, err)
		}
	}
	db, err := open(bo)
	if err != nil {
		return nil, whose(&o, err)
	}
	e := &Engine{
		db:  db,
		opt: o,
		limits: kv.Limits{
			// Badger refuses what reaches its limits, and counts one entry of its own.
			Entries: int(db.MaxBatchCount()) - 2,
			Bytes:   int(db.MaxBatchSize()) - txnOwn - 1,
			OpBytes: opOwn,
		},
	}
	if e.mem, err = newestLog(o.Dir); err == nil {
		err = syncPath(o.Dir) // the names of the files that Open has made
	}
	if err == nil {
		err = own(&o)
	}
	if err != nil {
		db.Close()
		return nil, fmt.Errorf("badger: open: %w", err)
	}
	e.reserve()
	return e, nil
}

// logMemTable is the size of the memtables that the logs in the directory belong
// to at the most: badger makes a log twice as long as its memtable.
func logMemTable(dir string) (size int64, err error) {
	names, err := os.ReadDir(dir)
	if err != nil {
		return 0, err
	}
	for _, d := range names {
		if filepath.Ext(d.Name()) != logSuffix {
			continue
		}
		fi, err := d.Info()
		if err != nil {
			return 0, err
		}
		size = max(size, fi.Size()/2)
	}
	return min(size, maxMemTable), nil
}

func open(o badger.Options) (db *badger.DB, err error) {
	defer func() {
		// Badger panics over some damaged files, and locks by the directory: an
		// Open that panicked leaves goroutines and the lock until the process ends.
		if r := recover(); r != nil {
			db, err = nil, fmt.Errorf("badger: open: panic over its files: %w", kv.ErrDamaged)
		}
		if errors.Is(err, kv.ErrDamaged) {
			// A full disk looks the same: badger drops the cause, or is hit by a
			// fault where it writes to mapped files.
			if perr := probe(o.Dir); perr != nil {
				err = fmt.Errorf("badger: open: %w", perr)
			}
		}
	}()
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	if db, err = badger.Open(o); err != nil {
		return nil, translate("open", err)
	}
	return db, nil
}

// probe writes a small file durably and takes it away.
func probe(dir string) error {
	path := filepath.Join(dir, "probe.tmp")
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	_, err = f.Write(bytes.Repeat([]byte{0xff}, 64<<10))
	err = errors.Join(err, f.Sync(), f.Close())
	return errors.Join(err, os.Remove(path))
}

// Needs says how much room an index may take before a row is added to it: flush,
// to write its logs into tables, at open, at close, or when a log is full; compact,
// to merge tables, which badger does on its own. A directory that is not there
// needs what a new index does.
func Needs(dir string) (flush, compact int64, err error) {
	names, err := os.ReadDir(dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return 0, 0, err
	}
	var logs, tables int64
	for _, d := range names {
		fi, err := d.Info()
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return 0, 0, err
		}
		st, ok := fi.Sys().(*syscall.Stat_t)
		if !ok {
			continue
		}
		switch filepath.Ext(d.Name()) {
		case logSuffix:
			logs += st.Blocks * 512
		case ".sst":
			tables += st.Blocks * 512
		}
	}
	// Of a table a fifth is index and filter, at most; a log pack adds 4 MiB of rows
	// at most; new files have headers, of which badger's smallest is a mebibyte.
	return logs*6/5 + 8<<20, min(tables, maxMerge), nil
}

// maxMerge bounds what a merge of tables writes before it removes any: the newest
// level, five tables of a memtable each and what came meanwhile, and what of the
// next one they overlap.
const maxMerge = 256 << 20

// badgerOptions leaves no field to badger's defaults, which have changed between
// its versions.
func badgerOptions(o *Options) badger.Options {
	key := o.EncryptionKey.Reveal()
	compactors, stall := 2, 15 // the fewest that it accepts
	if o.Calm {
		compactors, stall = 0, 1<<30 // nobody would end a stall
	}
	return badger.Options{
		Dir:                  o.Dir,
		ValueDir:             o.Dir,
		ReadOnly:             false,
		InMemory:             false,
		BypassLockGuard:      false,
		ExternalMagicVersion: magic,

		SyncWrites:        o.SyncWrites,
		NumVersionsToKeep: 1,
		DetectConflicts:   false, // there is one writer
		NamespaceOffset:   -1,    // none

		// Sealed values do not compress, keys hardly repeat within a block.
		Compression:          options.None,
		ZSTDCompressionLevel: 0,
		// Not OnBlockRead: badger treats a block with a wrong checksum as one
		// without rows, silently. Unchecked blocks give back rows whose values do
		// not open, which is loud; [Engine.Verify] checks the checksums.
		ChecksumVerificationMode: options.NoVerification,
		VerifyValueChecksum:      true,

		EncryptionKey:                 key[:],
		EncryptionKeyRotationDuration: 10 * 24 * time.Hour,

		// All values stay beside their keys; the value log stays empty.
		ValueThreshold:     min(maxThreshold, o.MemTableBytes*15/100),
		VLogPercentile:     0,
		ValueLogFileSize:   16 << 20,
		ValueLogMaxEntries: 1_000_000,

		MemTableSize:   o.MemTableBytes,
		NumMemtables:   memTables,
		BlockSize:      blockSize,
		BlockCacheSize: o.CacheBytes / 4 * 3,
		IndexCacheSize: o.CacheBytes / 4,

		// Tables of one size: a compaction makes ten and more at once, and holds several
		// times the size of each. With tables that double from level to level the rebuild
		// of five million rows took 80 MB more.
		BaseTableSize:           2 << 20,
		BaseLevelSize:           10 << 20,
		LevelSizeMultiplier:     10,
		TableSizeMultiplier:     1,
		MaxLevels:               7,
		BloomFalsePositive:      0.01,
		NumLevelZeroTables:      5,
		NumLevelZeroTablesStall: stall,
		NumCompactors:           compactors,
		CompactL0OnClose:        false,
		LmaxCompaction:          false,
		NumGoroutines:           1, // of streams, which are not used

		MetricsEnabled: false,
		Logger:         logger{o.Log},
	}
}

// prepare makes the directory durably, finds out whether it is in use, and
// clears away what badger would stumble over. The
// lock that it tries is the one badger takes, and is given back at once: badger
// does not tell a lock that is held from any other failure.
func prepare(dir string) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	if err := syncPath(filepath.Dir(dir)); err != nil {
		return err
	}
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	if err := unix.Flock(int(d.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		if err == unix.EWOULDBLOCK {
			return kv.ErrLocked
		}
		return os.NewSyscallError("flock", err)
	}
	return removeEmptyLogs(dir)
}

// removeEmptyLogs takes away what a process killed between two calls leaves of
// a log: badger begins one by making an empty file that it then lengthens, and
// ends one by cutting it to nothing and then removing it. Either remnant holds
// no row, and badger refuses to open a directory with one. That a log with rows
// was cut to nothing instead is for kv's digest to notice, as any lost commit.
func removeEmptyLogs(dir string) error {
	names, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, d := range names {
		if ext := filepath.Ext(d.Name()); ext != logSuffix && ext != ".vlog" {
			continue
		}
		fi, err := d.Info()
		if err != nil {
			return err
		}
		if !fi.Mode().IsRegular() || fi.Size() != 0 {
			continue
		}
		if err := os.Remove(filepath.Join(dir, d.Name())); err != nil {
			return err
		}
	}
	return nil
}

// checkTables looks at the end of every table in the manifest. Badger opens
// tables in goroutines of its own and panics there over lengths that reach
// beyond the file, which would end the process at each start. A directory with
// tables and without a manifest it takes for a new one, and deletes the tables.
func checkTables(o badger.Options) error {
	f, err := os.Open(filepath.Join(o.Dir, badger.ManifestFilename))
	if errors.Is(err, fs.ErrNotExist) {
		tables, err := filepath.Glob(filepath.Join(o.Dir, "*.sst"))
		if err == nil && len(tables) > 0 {
			err = fmt.Errorf("%d tables without a manifest: %w", len(tables), kv.ErrDamaged)
		}
		return err
	}
	if err != nil {
		return err
	}
	defer f.Close()
	manifest, _, err := badger.ReplayManifestFile(f, magic, o)
	if err != nil {
		return translate("manifest", err)
	}
	for id := range manifest.Tables {
		if err := checkFooter(table.NewFilename(id, o.Dir)); err != nil {
			return err
		}
	}
	return openTables(o, manifest)
}

// openTables opens each table as badger will, and closes it again: a table of
// another database, or one whose index does not decrypt to an index, makes it panic
// in a goroutine of its own, at each start.
func openTables(o badger.Options, manifest badger.Manifest) error {
	if len(manifest.Tables) == 0 {
		return nil
	}
	if _, err := os.Stat(filepath.Join(o.Dir, badger.KeyRegistryFileName)); err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("tables without a key registry: %w", kv.ErrDamaged)
		}
		return err
	}
	keys, err := badger.OpenKeyRegistry(badger.KeyRegistryOptions{Dir: o.Dir, ReadOnly: true, EncryptionKey: o.EncryptionKey,
		EncryptionKeyRotationDuration: o.EncryptionKeyRotationDuration})
	if err != nil {
		return translate("key registry", err)
	}
	// Tables of an encrypted database cannot be opened without one.
	indexes, err := ristretto.NewCache(&ristretto.Config[uint64, *fb.TableIndex]{NumCounters: 1000, MaxCost: 4 << 20, BufferItems: 64})
	if err != nil {
		return err
	}
	defer indexes.Close()
	for id, t := range manifest.Tables {
		key, err := keys.DataKey(t.KeyID)
		if err != nil {
			return translate("data key", err)
		}
		opt := table.Options{BlockSize: o.BlockSize, BloomFalsePositive: o.BloomFalsePositive, ChkMode: options.NoVerification, Compression: t.Compression,
			IndexCache: indexes, DataKey: key}
		if err := openTable(table.NewFilename(id, o.Dir), opt); err != nil {
			return err
		}
	}
	return nil
}

func openTable(path string, opt table.Options) (err error) {
	file, err := z.OpenMmapFile(path, os.O_RDONLY, 0)
	if err != nil {
		return translate("table", err)
	}
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("table %s does not open: %w", filepath.Base(path), kv.ErrDamaged)
		}
		_ = file.Close(-1) // badger leaves it open when it does not open the table
	}()
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	if _, err := table.OpenTable(file, opt); err != nil {
		return translate("table", err)
	}
	return nil
}

// checkFooter reads a table from its end: index, its length, a checksum, its
// length. The checksum itself badger compares without a panic.
func checkFooter(path string) error {
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("table %s is gone: %w", filepath.Base(path), kv.ErrDamaged)
	}
	if err != nil {
		return err
	}
	defer f.Close()
	fi, err := f.Stat()
	if err != nil {
		return err
	}
	end := fi.Size()
	length := func(least int64) bool {
		var b [4]byte
		if end -= int64(len(b)); end < 0 {
			return false
		}
		if _, err = f.ReadAt(b[:], end); err != nil {
			return false
		}
		n := int64(binary.BigEndian.Uint32(b[:]))
		end -= n
		return n >= least && end >= 0
	}
	// An encrypted index has an initialisation vector.
	ok := length(1) && length(aes.BlockSize+1) && end > 0
	if err != nil {
		return err
	}
	if !ok {
		return fmt.Errorf("table %s has no end: %w", filepath.Base(path), kv.ErrDamaged)
	}
	return nil
}

// Snapshot implements [kv.Engine].
func (e *Engine) Snapshot() (kv.EngineSnapshot, error) {
	if e.db.IsClosed() {
		return nil, fmt.Errorf("badger: %w", kv.ErrClosed)
	}
	return &snapshot{e.db.NewTransaction(false)}, nil
}

// Commit implements [kv.Engine].
func (e *Engine) Commit(ops []kv.Op) error {
	if e.db.IsClosed() {
		return fmt.Errorf("badger: commit: %w", kv.ErrClosed)
	}
	// Badger's own limits depend on how long a number's decimals are; ours are
	// the nearest that always fit, and are kept to the byte.
	size := 0
	for _, op := range ops {
		size += len(op.Key) + len(op.Value) + opOwn
	}
	if len(ops) > e.limits.Entries || size > e.limits.Bytes {
		return fmt.Errorf("badger: %d entries, %d bytes: %w", len(ops), size, kv.ErrTooBig)
	}
	txn := e.db.NewTransaction(true)
	defer txn.Discard()
	entries := make([]badger.Entry, len(ops))
	for i, op := range ops {
		var err error
		if op.Delete {
			err = txn.Delete(op.Key)
		} else {
			entries[i] = badger.Entry{Key: op.Key, Value: op.Value}
			err = txn.SetEntry(&entries[i])
		}
		if errors.Is(err, badger.ErrTxnTooBig) {
			return fmt.Errorf("badger: %d entries: %w", len(ops), kv.ErrTooBig)
		}
		if err != nil {
			return translate("commit", err)
		}
	}
	if err := txn.Commit(); err != nil {
		if errors.Is(err, badger.ErrTxnTooBig) { // found before anything is written
			return fmt.Errorf("badger: %d entries: %w", len(ops), kv.ErrTooBig)
		}
		return translate("commit", err)
	}
	logged, held := costs(len(ops), size)
	e.logged, e.held = e.logged+logged, e.held+held
	mem := e.mem
	if err := e.rotated(); err != nil {
		return err
	}
	if e.mem != mem {
		e.logged, e.held, e.reserved = logged, held, 0
	}
	e.reserve()
	return nil
}

// costs is what rows take at most in a log and in a memtable, with badger's
// headers and nodes.
func costs(ops, size int) (logged, held int64) {
	return int64(size) + 64*int64(ops+1), int64(size) + 256*int64(ops+1)
}

// reserve takes disk space for the next transactions in the log that is being
// written: badger maps the file, and a page that has no room is SIGBUS. Where
// that cannot be, nothing is worse than before.
func (e *Engine) reserve() {
	defer func() { e.slack.Store(max(e.reserved-e.logged, 0)) }()
	ahead := e.opt.MemTableBytes / 5 // a transaction has 15 % of it at most
	if e.logged+ahead <= e.reserved {
		return
	}
	f, err := os.OpenFile(logPath(e.opt.Dir, e.mem), os.O_RDWR, 0)
	if err != nil {
		return
	}
	defer f.Close()
	to := min(e.logged+2*ahead, 2*e.opt.MemTableBytes) // which is the file's size
	if unix.Fallocate(int(f.Fd()), unix.FALLOC_FL_KEEP_SIZE, e.reserved, to-e.reserved) == nil {
		e.reserved = to
	}
}

// Reserved says whether a commit of these ops needs no more disk space than it
// has: it stays within the log that is being written. For whoever commits.
func (e *Engine) Reserved(ops []kv.Op) bool {
	size := 0
	for _, op := range ops {
		size += len(op.Key) + len(op.Value) + opOwn
	}
	logged, held := costs(len(ops), size)
	return e.logged+logged <= e.reserved && max(e.logged+logged, e.held+held) < e.opt.MemTableBytes
}

// rotated looks whether the commit has begun a new log file (badger's .mem). If
// so the file before it is synced now, lest a power cut leave this commit and
// not those before it; and the new file's name is made durable, which badger
// leaves to the filesystem even with SyncWrites.
func (e *Engine) rotated() error {
	if _, err := os.Lstat(logPath(e.opt.Dir, e.mem+1)); err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		return fmt.Errorf("badger: commit: %w", err)
	}
	if !e.opt.SyncWrites {
		// It may be gone already, written into a table and synced there.
		if err := syncPath(logPath(e.opt.Dir, e.mem)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("badger: commit: %w", err)
		}
	}
	if err := syncPath(e.opt.Dir); err != nil {
		return fmt.Errorf("badger: commit: %w", err)
	}
	e.mem++
	return nil
}

const logSuffix = ".mem"

func logPath(dir string, n int) string { return filepath.Join(dir, fmt.Sprintf("%05d"+logSuffix, n)) }

func newestLog(dir string) (newest int, err error) {
	names, err := os.ReadDir(dir)
	if err != nil {
		return 0, err
	}
	for _, d := range names {
		if s, ok := strings.CutSuffix(d.Name(), logSuffix); ok {
			if n, err := strconv.Atoi(s); err == nil {
				newest = max(newest, n)
			}
		}
	}
	return newest, nil
}

func syncPath(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	err = f.Sync()
	return errors.Join(err, f.Close())
}

// Limits implements [kv.Engine].
func (e *Engine) Limits() kv.Limits { return e.limits }

// Sync implements [kv.Engine].
func (e *Engine) Sync() error {
	if e.db.IsClosed() {
		return fmt.Errorf("badger: sync: %w", kv.ErrClosed)
	}
	return translate("sync", e.db.Sync())
}

// Verify implements [kv.Engine] with the checksums of all tables. Blocks that
// are in the cache are checked there. It cannot be interrupted.
func (e *Engine) Verify(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	if err := e.db.VerifyChecksum(); err != nil {
		return fmt.Errorf("badger: a table's checksum does not hold: %w", kv.ErrDamaged)
	}
	return nil
}

// Size implements [kv.Engine]: blocks that the directory's files have on disk.
func (e *Engine) Size() (n int64, err error) {
	names, err := os.ReadDir(e.opt.Dir)
	if err != nil {
		return 0, fmt.Errorf("badger: size: %w", err)
	}
	for _, d := range names {
		fi, err := d.Info()
		if errors.Is(err, fs.ErrNotExist) {
			continue // compacted away meanwhile
		}
		if err != nil {
			return 0, fmt.Errorf("badger: size: %w", err)
		}
		if st, ok := fi.Sys().(*syscall.Stat_t); ok {
			n += st.Blocks * 512
		}
	}
	return n, nil
}

// Close implements [kv.Engine]. The memtable is written into a table, durably.
func (e *Engine) Close() error { return translate("close", e.db.Close()) }

type snapshot struct{ txn *badger.Txn }

func (s *snapshot) Close() { s.txn.Discard() }

func (s *snapshot) Get(key, dst []byte) ([]byte, error) {
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	item, err := s.txn.Get(key)
	if err != nil {
		return dst, translate("get", err)
	}
	// ValueCopy overwrites what it is given; the tail of dst is ours to fill.
	v, err := item.ValueCopy(dst[len(dst):])
	if err != nil {
		return dst, translate("get", err)
	}
	if len(dst) == 0 {
		return v, nil
	}
	return append(dst, v...), nil
}

func (s *snapshot) Cursor(from, to []byte, reverse bool) kv.EngineCursor {
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	c := &cursor{from: from, to: to, reverse: reverse}
	c.it = s.txn.NewIterator(badger.IteratorOptions{
		Reverse: reverse,
		// Values lie beside the keys: fetching ahead only starts goroutines.
		PrefetchValues: false,
		// What both bounds begin with all keys between begin with: tables without
		// it are not opened.
		Prefix: common(from, to),
	})
	return c
}

func common(a, b []byte) []byte {
	n := 0
	for n < len(a) && n < len(b) && a[n] == b[n] {
		n++
	}
	return a[:n]
}

type cursor struct {
	it       *badger.Iterator
	from, to []byte
	reverse  bool
	begun    bool
	done     bool
	key      []byte
	value    []byte
	err      error
}

func (c *cursor) Seek(key []byte) {
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	c.begun, c.done, c.key, c.err = true, false, nil, nil
	switch {
	case !c.reverse && bytes.Compare(key, c.from) < 0:
		key = c.from
	case c.reverse && c.to != nil && bytes.Compare(key, c.to) >= 0:
		c.begin()
		return
	}
	if len(key) == 0 { // Seek would take it for "from the start", whichever way
		c.done = c.reverse
		c.it.Rewind()
		return
	}
	c.it.Seek(key)
}

func (c *cursor) begin() {
	start := c.from
	if c.reverse {
		start = c.to
	}
	if len(start) == 0 {
		c.it.Rewind()
		return
	}
	c.it.Seek(start)
	if c.reverse && c.it.Valid() && bytes.Equal(c.it.Item().Key(), c.to) {
		c.it.Next() // to itself is out
	}
}

func (c *cursor) Next() bool {
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	if c.done {
		return false
	}
	if !c.begun {
		c.begun = true
		c.begin()
	} else if c.key != nil {
		c.it.Next()
	}
	c.key = nil
	if !c.it.Valid() {
		c.done = true
		return false
	}
	item := c.it.Item()
	key := item.Key()
	if c.reverse && bytes.Compare(key, c.from) < 0 || !c.reverse && c.to != nil && bytes.Compare(key, c.to) >= 0 {
		c.done = true
		return false
	}
	if c.value, c.err = item.ValueCopy(c.value[:0]); c.err != nil {
		c.err = translate("scan", c.err)
		c.done = true
		return false
	}
	c.key = key
	return true
}

func (c *cursor) Key() []byte   { return c.key }
func (c *cursor) Value() []byte { return c.value }
func (c *cursor) Err() error    { return c.err }
func (c *cursor) Close()        { c.it.Close() }

// translate keeps badger's errors and their texts, which may hold keys, here.
func translate(op string, err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, badger.ErrKeyNotFound):
		return kv.ErrNotFound
	case errors.Is(err, badger.ErrDBClosed), errors.Is(err, badger.ErrBlockedWrites):
		return fmt.Errorf("badger: %s: %w", op, kv.ErrClosed)
	case errors.Is(err, badger.ErrEncryptionKeyMismatch):
		return fmt.Errorf("badger: %s: %w", op, kv.ErrForeign)
	}
	// Badger keeps the chain of some errors only; what the system refused is not damage.
	if errno, ok := errors.AsType[syscall.Errno](err); ok {
		return fmt.Errorf("badger: %s: %s: %w", op, class(err.Error()), errno)
	}
	switch op {
	case "commit", "sync", "close":
		// Nobody knows what it was; that stored rows are bad does not follow.
		return fmt.Errorf("badger: %s: %s", op, class(err.Error()))
	}
	return fmt.Errorf("badger: %s: %s: %w", op, class(err.Error()), kv.ErrDamaged)
}

// class is the constant beginning of one of badger's messages: letters up to
// the first thing that could have been put into it. Keys and paths come later.
func class(text string) string {
	end := strings.IndexFunc(text, func(r rune) bool {
		return !(r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r == ' ' || r == '-')
	})
	if end < 0 {
		end = len(text)
	}
	return strings.TrimSpace(text[:min(end, 60)])
}

// logger passes on level and class of what badger logs, never an argument: they
// hold keys (H60).
type logger struct{ log *slog.Logger }

func (l logger) Errorf(f string, _ ...any)   { l.log.Error("badger", "says", class(f)) }
func (l logger) Warningf(f string, _ ...any) { l.log.Warn("badger", "says", class(f)) }
func (l logger) Infof(f string, _ ...any)    { l.log.Debug("badger", "says", class(f)) }
func (l logger) Debugf(string, ...any)       {} // one for every write
