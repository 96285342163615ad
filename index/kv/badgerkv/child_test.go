package badgerkv

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/dgraph-io/badger/v4"
	"github.com/dgraph-io/badger/v4/options"

	"cairn/index/kv"
	"cairn/index/kv/kvtest"
)

// Some tests need a process that may die: this binary again, told by its
// environment what to do.
const (
	childTask = "CAIRN_KVTEST_CHILD"
	childDir  = "CAIRN_KVTEST_DIR"
	childArg  = "CAIRN_KVTEST_ARG"
)

func TestMain(m *testing.M) {
	switch os.Getenv(childTask) {
	case "":
		os.Exit(m.Run())
	case "read":
		readHarmed(os.Getenv(childDir), os.Getenv(childArg))
	case "open":
		openAndSay(os.Getenv(childDir))
	case "full":
		commitOnFullDisk(os.Getenv(childDir))
	case "write":
		writeUntilKilled(os.Getenv(childDir), os.Getenv(childArg) == "sync")
	}
}

func child(t *testing.T, task, dir, arg string) (*exec.Cmd, io.Reader, *bytes.Buffer) {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), self)
	cmd.Env = append(os.Environ(), childTask+"="+task, childDir+"="+dir, childArg+"="+arg)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	var said bytes.Buffer
	cmd.Stderr = &said
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	return cmd, out, &said
}

func long() bool { return os.Getenv("CAIRN_LONG") != "" }

func small(dir string) Options {
	return Options{Dir: dir, EncryptionKey: kv.NewSecret([32]byte{9}), MemTableBytes: 1 << 20, CacheBytes: 8 << 20}
}

// The history that the tests of this file write: commit n (from 1) puts 20 rows
// of 200 bytes and deletes one. What is stored after a number of commits can be
// computed.
const (
	rowsPerCommit = 20
	keysInHistory = 1500
)

func historyKey(i int) string { return fmt.Sprintf("k%06d", i*7919%keysInHistory) }

func commitHistory(db *kv.DB, n int) error {
	tx, err := db.Begin(context.Background())
	if err != nil {
		return err
	}
	defer tx.Discard()
	for k, v := range historyOf(n) {
		if v == "" {
			_, err = tx.Delete([]byte(k))
		} else {
			err = tx.Put([]byte(k), []byte(v))
		}
		if err != nil {
			return err
		}
	}
	return tx.Commit()
}

// historyOf is what commit n writes; "" deletes.
func historyOf(n int) map[string]string {
	rows := map[string]string{}
	for i := range rowsPerCommit {
		rows[historyKey(n*rowsPerCommit+i)] = fmt.Sprintf("%0200d", n)
	}
	rows[historyKey(n*13)] = ""
	return rows
}

func historyAfter(commits int) map[string]string {
	rows := map[string]string{}
	for n := 1; n <= commits; n++ {
		for k, v := range historyOf(n) {
			if v == "" {
				delete(rows, k)
			} else {
				rows[k] = v
			}
		}
	}
	return rows
}

// harmedBase makes a database with tables and a log, and copies its files while
// it is open, as a crash would leave them.
const harmedCommits = 120

func harmedBase(t *testing.T) string {
	dir, base := t.TempDir(), t.TempDir()
	for _, upTo := range []int{105, harmedCommits} { // tables, then a log
		e, err := Open(small(dir))
		if err != nil {
			t.Fatal(err)
		}
		db, err := kv.Open(e, kvtest.Config())
		if err != nil {
			t.Fatal(err)
		}
		first := 1
		if upTo == harmedCommits {
			first = 106
		}
		for n := first; n <= upTo; n++ {
			if err := commitHistory(db, n); err != nil {
				t.Fatal(err)
			}
		}
		if upTo == harmedCommits {
			if err := db.Sync(); err != nil {
				t.Fatal(err)
			}
			if err := os.CopyFS(base, os.DirFS(dir)); err != nil {
				t.Fatal(err)
			}
		}
		if err := db.Close(); err != nil {
			t.Fatal(err)
		}
	}
	return base
}

// TestBitFlips turns single bits in badger's files and reads everything: a row
// is right, or reading it says damage, or it is absent (or old) and a check of
// the database says damage, or the database as a whole has gone back to an
// earlier commit and states that commit's number. Nothing else may happen; the
// process may die. 50 flips; with CAIRN_LONG 500, and 500 more with badger's
// block checksums on, to show what they do.
func TestBitFlips(t *testing.T) {
	t.Parallel()
	base := harmedBase(t)
	flips, modes := 50, []string{"off"}
	if long() {
		flips, modes = 500, []string{"off", "on"}
	}
	for _, mode := range modes {
		t.Run("block checksums "+mode, func(t *testing.T) { bitFlips(t, base, flips, mode) })
	}
}

func bitFlips(t *testing.T, base string, flips int, mode string) {
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 0))
	work := t.TempDir()
	what := make([]string, flips)
	for i := range flips {
		dir := filepath.Join(work, strconv.Itoa(i))
		if err := os.CopyFS(dir, os.DirFS(base)); err != nil {
			t.Fatal(err)
		}
		what[i] = flip(t, dir, []string{".sst", ".sst", ".mem", "MANIFEST", ".sst", ".mem", ".vlog", "KEYREGISTRY"}[i%8], rng)
	}
	results := make([]string, flips)
	for next := 0; next < flips; {
		cmd, out, said := child(t, "read", work, fmt.Sprintf("%s %d %d", mode, next, flips))
		scanner := bufio.NewScanner(out)
		for scanner.Scan() {
			line, ok := strings.CutPrefix(scanner.Text(), fmt.Sprintf("%d ", next))
			if !ok {
				continue // badger prints here and there
			}
			results[next] = line
			next++
		}
		if err := cmd.Wait(); err != nil && next < flips {
			if cmd.ProcessState.ExitCode() == exitHung {
				continue // had answered; only its closing hung
			}
			results[next] = "died"
			if said.Len() == 0 {
				t.Errorf("%s: the process died without a word: %v", what[next], err)
			}
			next++
		}
	}
	counts := map[string]map[string]int{}
	if testing.Verbose() && long() {
		for i, r := range results {
			t.Logf("%s: %s", what[i], r)
		}
	}
	for i, r := range results {
		class, detail, _ := strings.Cut(r, ": ")
		kind, _, _ := strings.Cut(what[i], " ")
		if counts[kind] == nil {
			counts[kind] = map[string]int{}
		}
		counts[kind][class]++
		if class == "SILENT" || class == "WRONG" {
			t.Errorf("%s: %s: %s", what[i], class, detail)
		}
	}
	total := map[string]int{}
	for _, kind := range slices.Sorted(maps.Keys(counts)) {
		t.Logf("%-12s %v", kind, counts[kind])
		for class, n := range counts[kind] {
			total[class] += n
		}
	}
	t.Logf("%-12s %v", "all", total)
	if total["harmless"] == flips {
		t.Error("no flip did anything: the test tests nothing")
	}
}

// flip turns one bit in the written part of a file whose name ends so.
func flip(t *testing.T, dir, suffix string, rng *rand.Rand) string {
	names, err := filepath.Glob(filepath.Join(dir, "*"+suffix))
	if err != nil || len(names) == 0 {
		t.Fatalf("no file *%s: %v", suffix, err)
	}
	// Some files are made empty, for later.
	for _, i := range rng.Perm(len(names)) {
		b, err := os.ReadFile(names[i])
		if err != nil {
			t.Fatal(err)
		}
		used := len(bytes.TrimRight(b, "\x00"))
		if used == 0 {
			continue
		}
		at := rng.IntN(8 * used)
		b[at/8] ^= 1 << (at % 8)
		if err := os.WriteFile(names[i], b, 0o600); err != nil {
			t.Fatal(err)
		}
		return fmt.Sprintf("%s %s, bit %d of byte %d", suffix, filepath.Base(names[i]), at%8, at/8)
	}
	t.Fatalf("every *%s is empty", suffix)
	return ""
}

const exitHung = 9

// readHarmed judges the directories first to last-1 under work, a line for each.
func readHarmed(work, arg string) {
	var mode string
	var first, last int
	if _, err := fmt.Sscan(arg, &mode, &first, &last); err != nil {
		panic(err)
	}
	for i := first; i < last; i++ {
		verdict, db := judge(filepath.Join(work, strconv.Itoa(i)), mode)
		fmt.Println(i, strings.ReplaceAll(verdict, "\n", "; "))
		if db == nil {
			continue
		}
		// A badger that panicked may wait for itself.
		closed := make(chan struct{})
		go func() { db.Close(); close(closed) }()
		select {
		case <-closed:
		case <-time.After(2 * time.Second):
			os.Exit(exitHung)
		}
	}
}

func judge(dir, mode string) (verdict string, db *kv.DB) {
	e, err := openWith(small(dir), func(o *badger.Options) {
		if mode == "on" {
			o.ChecksumVerificationMode = options.OnBlockRead
		}
	})
	if err == nil {
		db, err = kv.Open(e, kvtest.Config())
	}
	if err != nil {
		return "refused: " + err.Error(), nil
	}
	full := historyAfter(harmedCommits)
	var state kv.State
	var loud, absent, old int
	stored := map[string]string{}
	err = db.View(func(s *kv.Snapshot) (err error) {
		if state, err = s.State(); err != nil {
			loud++
		}
		for i := range keysInHistory {
			k := historyKey(i)
			v, err := s.Get([]byte(k), nil)
			switch {
			case errors.Is(err, kv.ErrDamaged):
				loud++
			case errors.Is(err, kv.ErrNotFound):
				if _, ok := full[k]; ok {
					absent++
				}
			case err != nil:
				return fmt.Errorf("get: %w", err)
			case string(v) == full[k]:
				stored[k] = string(v)
			default:
				stored[k] = string(v)
				old++
			}
		}
		return nil
	})
	if err != nil {
		return "WRONG: " + err.Error(), db
	}
	// A value that was never written under its key would be beyond all bounds.
	for k, v := range stored {
		n, err := strconv.Atoi(v)
		if err != nil || historyOf(n)[k] != v {
			return fmt.Sprintf("WRONG: %s=%q was never stored", k, v), db
		}
	}
	_, check := db.Check(context.Background())
	detail := fmt.Sprintf("%d loud, %d absent, %d old; commit %d; check: %v", loud, absent, old, state.Commits, check)
	switch {
	case check != nil && !errors.Is(check, kv.ErrDamaged):
		return "WRONG: " + detail, db
	case loud > 0:
		return "loud: " + detail, db
	case check != nil:
		return "checked: " + detail, db
	case state.Commits < harmedCommits:
		if maps.Equal(stored, historyAfter(int(state.Commits))) {
			return "went back: " + detail, db
		}
		return "SILENT: " + detail, db
	case absent > 0 || old > 0 || !maps.Equal(stored, full):
		return "SILENT: " + detail, db
	}
	return "harmless", db
}

// TestKilled kills a process in the middle of its commits. Page cache and all,
// nothing that was acknowledged may be missing, and what is there is the state
// after a commit, whole.
func TestKilled(t *testing.T) {
	t.Parallel()
	rounds := 3
	if long() {
		rounds = 40
	}
	for _, mode := range []string{"sync", "no sync"} {
		t.Run(mode, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			acked := 0
			for range rounds {
				cmd, out, said := child(t, "write", dir, mode)
				scanner := bufio.NewScanner(out)
				deadline := time.Now().Add(time.Duration(50+rand.IntN(300)) * time.Millisecond)
				for scanner.Scan() {
					n, err := strconv.Atoi(scanner.Text())
					if err != nil {
						t.Fatalf("the child says %q", scanner.Text())
					}
					acked = n
					if time.Now().After(deadline) {
						break
					}
				}
				if err := cmd.Process.Kill(); err != nil {
					t.Fatal(err)
				}
				for scanner.Scan() { // what it had said before it died
					if n, err := strconv.Atoi(scanner.Text()); err == nil {
						acked = n
					}
				}
				cmd.Wait()
				if said.Len() > 0 {
					t.Fatalf("the child complains: %s", said)
				}
				e, err := Open(small(dir))
				if err != nil {
					t.Fatal(err)
				}
				db, err := kv.Open(e, kvtest.Config())
				if err != nil {
					t.Fatal(err)
				}
				r, err := db.Check(t.Context())
				if err != nil {
					t.Errorf("check: %+v, %v", r, err)
				}
				if n := int(r.State.Commits); n < acked || n > acked+1 {
					t.Errorf("%d commits, %d were acknowledged", n, acked)
				}
				got := map[string]string{}
				if err := db.View(func(s *kv.Snapshot) error {
					return s.Scan(nil, nil, false, func(k, v []byte) error {
						got[string(k)] = string(v)
						return nil
					})
				}); err != nil {
					t.Fatal(err)
				}
				if !maps.Equal(got, historyAfter(int(r.State.Commits))) {
					t.Errorf("%d rows are not those after commit %d", len(got), r.State.Commits)
				}
				acked = int(r.State.Commits)
				if err := db.Close(); err != nil {
					t.Fatal(err)
				}
			}
			t.Logf("%d commits in %d lives", acked, rounds)
			if acked < rounds {
				t.Error("hardly anything was committed: the test tests nothing")
			}
		})
	}
}

func writeUntilKilled(dir string, synced bool) {
	o := small(dir)
	o.SyncWrites = synced
	e, err := Open(o)
	if err != nil {
		panic(err)
	}
	db, err := kv.Open(e, kvtest.Config())
	if err != nil {
		panic(err)
	}
	var st kv.State
	if err := db.View(func(s *kv.Snapshot) (err error) { st, err = s.State(); return err }); err != nil {
		panic(err)
	}
	for n := int(st.Commits) + 1; ; n++ {
		if err := commitHistory(db, n); err != nil {
			panic(err)
		}
		fmt.Println(n)
	}
}
