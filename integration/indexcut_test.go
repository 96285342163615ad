package integration

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"cairn/id"
	"cairn/index/kv"
	"cairn/index/kv/badgerkv"
)

// The index's engine under power cuts, without the store above it: many commits
// and small memtables, so that its logs turn over several times a second.

const (
	indexChild = "CAIRN_INDEX_CHILD" // what this binary, started again, does with an index: write or read
	indexDir   = "CAIRN_INDEX_DIR"
)

func openIndex(dir string) (*kv.DB, error) {
	e, err := badgerkv.Open(badgerkv.Options{Dir: dir, EncryptionKey: kv.NewSecret([32]byte{9}), MemTableBytes: 1 << 20, CacheBytes: 8 << 20})
	if err != nil {
		return nil, err
	}
	return kv.Open(e, kv.Config{ValueKey: kv.NewSecret([32]byte{1}), DigestKey: kv.NewSecret([32]byte{2}), Cluster: id.Cluster{3}})
}

// rowsOf is what commit n, from 1 on, writes; "" deletes. Commits differ in size.
func rowsOf(n int) map[string]string {
	rng := rand.New(rand.NewPCG(uint64(n), 0))
	rows := map[string]string{}
	for range 1 + rng.IntN(60) {
		rows[fmt.Sprintf("k%06d", rng.IntN(3000))] = fmt.Sprintf("%0*d", 20+rng.IntN(400), n)
	}
	rows[fmt.Sprintf("k%06d", rng.IntN(3000))] = ""
	return rows
}

// runIndexChild writes commits and tells each one's number, or says in one line
// what an index is.
func runIndexChild(task, dir string) int {
	db, err := openIndex(dir)
	if task == "read" {
		fmt.Println(judgeIndex(db, err))
		return 0
	}
	if err != nil {
		fmt.Println(err)
		return 1
	}
	commits, err := commitsOf(db)
	for n := commits + 1; err == nil; n++ {
		err = commitRows(db, n)
		fmt.Println(n)
	}
	fmt.Println(err)
	return 1
}

func commitsOf(db *kv.DB) (int, error) {
	var st kv.State
	err := db.View(func(s *kv.Snapshot) (err error) {
		st, err = s.State()
		return err
	})
	return int(st.Commits), err
}

func commitRows(db *kv.DB, n int) error {
	tx, err := db.Begin(context.Background())
	if err != nil {
		return err
	}
	defer tx.Discard()
	for k, v := range rowsOf(n) {
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

// judgeIndex holds an index against the history: "prefix N", or "damaged" and
// who noticed. Anything else is a wrong answer.
func judgeIndex(db *kv.DB, err error) string {
	switch {
	case errors.Is(err, kv.ErrDamaged):
		return "damaged, noticed at open"
	case err != nil:
		return "cannot be opened: " + err.Error()
	}
	n, err := commitsOf(db)
	want, got := map[string]string{}, map[string]string{}
	for i := 1; i <= n; i++ {
		for k, v := range rowsOf(i) {
			if v == "" {
				delete(want, k)
			} else {
				want[k] = v
			}
		}
	}
	if err == nil {
		err = db.View(func(s *kv.Snapshot) error {
			return s.Scan(nil, nil, false, func(k, v []byte) error {
				got[string(k)] = string(v)
				return nil
			})
		})
	}
	wrong := 0
	for k, v := range want {
		if got[k] != v {
			wrong++
		}
	}
	if len(got) > len(want) {
		wrong += len(got) - len(want)
	}
	_, cerr := db.Check(context.Background())
	switch {
	case errors.Is(err, kv.ErrDamaged):
		return "damaged, noticed at a read"
	case err != nil:
		return "cannot be read: " + err.Error()
	case errors.Is(cerr, kv.ErrDamaged) && wrong > 0:
		return "damaged, noticed by the check"
	case cerr != nil:
		return fmt.Sprintf("the check says %v, and %d rows are wrong", cerr, wrong)
	case wrong > 0:
		return fmt.Sprintf("WRONG: %d rows are not those after %d commits, and the check finds nothing", wrong, n)
	}
	return fmt.Sprintf("prefix %d", n)
}

// TestIndexPowerCut cuts the power under the index's engine alone: afterwards it
// is a prefix of what was committed, or it is noticed as damaged (H13).
func TestIndexPowerCut(t *testing.T) {
	for _, fs := range filesystems {
		t.Run(fs, func(t *testing.T) {
			needVolumes(t, fs)
			rng := newRand(t)
			r := newRig(t)
			dir := filepath.Join(r.base, "index")
			if err := os.Mkdir(dir, 0o700); err != nil {
				t.Fatal(err)
			}
			v := r.newVolume(fs, dir, 1<<30)
			found := map[string]int{}
			commits, behind, most := 0, 0, 0
			n := rounds(1, 2, 100)
			for i := range n {
				if i%10 == 9 {
					empty(t, dir) // judging reads the whole history
				}
				last := writeAndCut(t, rng, v)
				restore(t, v)
				said := tellIndex(t, dir)
				switch what, number, _ := strings.Cut(said, " "); what {
				case "prefix":
					is, err := strconv.Atoi(number)
					// The one that was being committed may be there.
					if err != nil || is > last+1 {
						t.Errorf("after %d commits the index is at %s", last, said)
					}
					found["a prefix"]++
					commits, behind, most = commits+last, behind+max(0, last-is), max(most, last-is)
				case "damaged,":
					found[said]++
					empty(t, dir)
				default:
					t.Errorf("after %d commits: %s", last, said)
					empty(t, dir)
				}
			}
			t.Logf("%s: of %d indexes %v; prefixes lacked %d commits on average, %d at most", fs, n, found, behind/max(1, found["a prefix"]), most)
		})
	}
}

func indexProcess(t *testing.T, task, dir string) *exec.Cmd {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(self)
	cmd.Env = append(os.Environ(), indexChild+"="+task, indexDir+"="+dir)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	return cmd
}

// writeAndCut lets a process commit until the power is cut and returns how many
// commits the index had had by then.
func writeAndCut(t *testing.T, rng *rand.Rand, v *volume) int {
	t.Helper()
	cmd := indexProcess(t, "write", v.dir)
	out, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	last, begun, ended := 0, make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		for lines := bufio.NewScanner(out); lines.Scan(); {
			n, err := strconv.Atoi(lines.Text())
			if err != nil {
				t.Error(lines.Text())
				continue
			}
			if last == 0 {
				close(begun)
			}
			last = n
		}
	}()
	select {
	case <-begun:
	case <-ended:
		t.Fatal("the process that writes has ended")
	}
	time.Sleep(time.Duration(rng.Int64N(int64(700 * time.Millisecond))))
	how := logLost
	if rng.IntN(3) == 0 {
		how = logSaved
	}
	if err := errors.Join(suspend(cmd.Process), v.cut(how), cmd.Process.Kill()); err != nil {
		t.Fatal(err)
	}
	<-ended
	_ = cmd.Wait() // killed
	return last
}

// tellIndex asks a process of its own, since badger may end it.
func tellIndex(t *testing.T, dir string) string {
	t.Helper()
	out, err := indexProcess(t, "read", dir).CombinedOutput()
	if err != nil {
		return fmt.Sprintf("a process that reads it ends with %v:\n%s", err, cut(string(out)))
	}
	return strings.TrimSpace(string(out))
}
