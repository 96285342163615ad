package integration

import (
	"bytes"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"
)

// What docs/scaling.md says, in bytes. A put of 4 KiB that is alone is a log pack
// of one data shard and two copies of it, each 8 KiB and in the journal a record
// of 12 KiB.
const (
	lonePut      = 3 * 12 << 10
	openSegments = 256       // of a node, at the most
	journalMost  = 64 << 20  // a segment of the journal, at the most
	indexPerPut  = 2 * 710   // rows of a lone put and as much again for what is being merged
	indexAtLeast = 192 << 20 // logs of memtables, and tables that wait to be merged
	tablePerPut  = 3 * 120   // three entries in the tables of nodes
)

// memoryOf is how much may be resident with --memory after n lone puts: the limit
// and what goes beyond it under load; or, when the tables of nodes fill it, these and
// half of it for everything else, and a fifth that the collector lags behind.
func memoryOf(memory int64, n int) int64 {
	return max(memory*14/10, (memory/2+int64(n)*tablePerPut)*12/10)
}

// footprint is what a server and its store take at one moment.
type footprint struct {
	puts                 int
	at                   time.Duration
	cpu                  time.Duration // of the process, since it began
	journal, data, index int64         // allocated
	anon, file           int64         // resident
	files                int           // open
	segments, tables     int           // files of nodes and of the index
}

func (r *rig) footprint(puts int, since time.Time) footprint {
	r.t.Helper()
	f := footprint{puts: puts, at: time.Since(since), index: allocated(r.t, r.index())}
	for _, n := range nodeNames() {
		f.journal += allocated(r.t, filepath.Join(r.node(n), "journal"))
		f.data += allocated(r.t, filepath.Join(r.node(n), "data"))
	}
	f.segments, f.tables = r.countFiles()
	if s := r.server; s != nil {
		m, err := s.resident()
		if err != nil {
			r.t.Fatal(err)
		}
		f.anon, f.file, f.cpu = m.anon, m.file, s.cpu()
		if f.files, err = s.openFiles(); err != nil {
			r.t.Fatal(err)
		}
	}
	return f
}

func (f footprint) String() string {
	return fmt.Sprintf("%7d puts, %6.0f s, %6.0f s CPU: journals %s, data %s, index %s; anonymous %s, mapped %s; %d files open of %d segments and %d files of the index",
		f.puts, f.at.Seconds(), f.cpu.Seconds(), mib(f.journal), mib(f.data), mib(f.index), mib(f.anon), mib(f.file), f.files, f.segments, f.tables)
}

// countFiles counts the segments that nodes may have open, and the files of the index.
func (r *rig) countFiles() (segments, tables int) {
	count := func(pattern ...string) int {
		names, _ := filepath.Glob(filepath.Join(pattern...)) // no pattern of ours is bad
		return len(names)
	}
	for _, n := range nodeNames() {
		segments += min(count(r.node(n), "*", "*.seg"), openSegments)
	}
	return segments, count(r.index(), "*")
}

// openFiles counts the descriptors of the process.
func (s *server) openFiles() (int, error) {
	fds, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", s.cmd.Process.Pid))
	return len(fds), err
}

// cpu is the time that the process has computed, in it and in the system.
func (s *server) cpu() time.Duration {
	s.r.t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", s.cmd.Process.Pid))
	if err != nil {
		s.r.t.Fatal(err)
	}
	// Behind the name, which may hold anything, the 12th and 13th field, in 1/100 s.
	fields := strings.Fields(string(b[bytes.LastIndexByte(b, ')')+1:]))
	var sum time.Duration
	for _, f := range fields[11:13] {
		n, err := strconv.ParseInt(f, 10, 64)
		if err != nil {
			s.r.t.Fatal(err)
		}
		sum += time.Duration(n) * 10 * time.Millisecond
	}
	return sum
}

// sample is what a process held at one moment.
type sample struct {
	anon  int64
	files int // open ones that are neither segments nor of the index
}

// observe takes samples until the result is called.
func (s *server) observe(every time.Duration) (stop func() []sample) {
	end, done := make(chan struct{}), make(chan struct{})
	var samples []sample
	go func() {
		defer close(done)
		for {
			select {
			case <-end:
				return
			case <-time.After(every):
			}
			m, err := s.resident()
			files, ferr := s.openFiles()
			if err != nil || ferr != nil {
				continue // it has ended
			}
			segments, tables := s.r.countFiles()
			samples = append(samples, sample{m.anon, files - segments - tables})
		}
	}()
	return func() []sample {
		close(end)
		<-done
		return samples
	}
}

// begin starts a process, however long it takes until it serves.
func (r *rig) begin(args ...string) (*server, time.Duration) {
	r.t.Helper()
	begin := time.Now()
	s := r.launch(args...)
	if !s.waitServing(10 * time.Minute) {
		s.dump()
		r.t.Fatalf("the server does not serve: exit code %d\n%s", s.code, cut(s.stderr()))
	}
	return s, time.Since(begin)
}

// snapshotBytes are the sizes of the exports in the snapshots that were taken.
func (r *rig) snapshotBytes() (sizes []int64) {
	r.t.Helper()
	taken := regexp.MustCompile(`snapshot of the index taken.* bytes=(\d+)`)
	for _, name := range r.logs {
		b, err := os.ReadFile(name)
		if err != nil {
			r.t.Fatal(err)
		}
		for _, m := range taken.FindAllSubmatch(b, -1) {
			n, err := strconv.ParseInt(string(m[1]), 10, 64)
			if err != nil {
				r.t.Fatal(err)
			}
			sizes = append(sizes, n)
		}
	}
	return sizes
}

// TestManyPutsOneByOne is the dearest way to fill a store: one client puts objects
// of 4 KiB, each after the answer to the one before, so that each is a log pack of
// its own, and nothing takes the log away. What that takes on the disk, in memory, in
// open files and in time to start is held against docs/scaling.md.
func TestManyPutsOneByOne(t *testing.T) {
	const size = 4 << 10
	n, memory, every, rate := rounds(1500, 4000, 1_000_000), int64(512*mebi), "256KiB", 20*time.Millisecond
	if long() {
		memory, every, rate = 768*mebi, "64MiB", time.Second
	}
	if s := os.Getenv("CAIRN_PUTS"); s != "" {
		var err error
		if n, err = strconv.Atoi(s); err != nil {
			t.Fatal(err)
		}
	}
	flags := []string{"--memory", fmt.Sprint(memory), "--snapshot-every", every}
	rng := newRand(t)
	r := newRig(t)
	s := r.start(flags...)
	first := rng.Uint64()
	body := func(i int) []byte { return content{seed: first + uint64(i), size: size}.bytes() }
	key := func(i int) string { return fmt.Sprintf("%03d/%06d", i%1000, i) }
	before := r.status().Sequence

	c := s.client()
	begin := time.Now()
	f := r.footprint(0, begin)
	t.Log(f)
	watch := s.observe(rate)
	var mostFiles, again int
	for i := range n {
		for try := 0; ; try++ {
			reply := c.put(key(i), body(i))
			if reply.answer == acked {
				break
			}
			again++ // a node that lagged, most likely: what it has is written elsewhere as well
			if try == 20 {
				t.Fatalf("put %d: %v", i, reply)
			}
		}
		if (i+1)%max(n/40, 500) == 0 {
			f = r.footprint(i+1, begin)
			t.Log(f)
			mostFiles = max(mostFiles, f.files)
		}
	}
	f = r.footprint(n, begin)
	c.close()
	mostFiles = max(mostFiles, f.files)
	mostAnon := int64(0)
	for _, x := range watch() {
		mostAnon = max(mostAnon, x.anon)
	}
	st := s.usage(t)
	links := int64(r.status().Sequence - before)
	t.Logf("%d puts in %v, %.2f ms each, %d again; %d log packs", n, f.at.Round(time.Second), f.at.Seconds()*1e3/float64(n), again, links)
	t.Logf("at most %s of anonymous memory, %d files open; df: %v", mib(mostAnon), mostFiles, st)
	var exported int64
	sizes := r.snapshotBytes()
	for _, b := range sizes {
		exported += b
	}
	t.Logf("snapshots: %v", sizes)

	stopped := s.stop()
	s, kept := r.begin(flags...)
	idle := r.footprint(n, begin)
	s.kill()
	s, killed := r.begin(flags...)
	c = s.client()
	for range min(n, 1000) {
		i := rng.IntN(n)
		if reply := c.get(key(i)); reply.status != http.StatusOK || !bytes.Equal(reply.body, body(i)) {
			t.Fatalf("get %s: %v with %d bytes", key(i), reply, len(reply.body))
		}
	}
	c.close()
	stoppedAgain := s.stop()
	t.Logf("a stop took %v, a start with the index %v, one after a kill %v, a stop right after it %v; after a start: %v", stopped, kept, killed, stoppedAgain, idle)

	if links < int64(n) || links > int64(n)+int64(n)/20+1000 {
		t.Errorf("%d log packs for %d puts", links, n)
	}
	// Each log pack has its copies. Snapshots are kept for a day when they are not
	// needed any more.
	least, snapshots := int64(n)*lonePut, exported*3/2+int64(len(sizes))*mebi
	used := int64(inNodes(st))
	if most := links*lonePut + int64(again)*lonePut + least/50 + snapshots; used < least || used > most {
		t.Errorf("%s of segments are in use after %d puts, want %s to %s", mib(used), n, mib(least), mib(most))
	}
	// Each node has one segment of a kind that is not full, and one of the journal
	// that is filled ahead.
	if most := least + int64(again)*lonePut + least/50 + 2*6*min(journalMost, least/6+2*mebi); f.journal < least || f.journal > most {
		t.Errorf("journals take %s after %d puts, want %s to %s", mib(f.journal), n, mib(least), mib(most))
	}
	// Segments of data double in size, so that half may be empty.
	if most := 2*snapshots + 6*4*mebi; f.data > most {
		t.Errorf("segments of data take %s for %s of snapshots, want at most %s", mib(f.data), mib(exported), mib(most))
	}
	if most := int64(n)*indexPerPut + indexAtLeast; f.index > most {
		t.Errorf("the index takes %s, want at most %s", mib(f.index), mib(most))
	}
	if most := f.segments + f.tables + 64; mostFiles > most {
		t.Errorf("%d files open, want at most %d: %d segments, %d files of the index, and 64", mostFiles, most, f.segments, f.tables)
	}
	if most := 10*time.Second + time.Duration(n)*40*time.Microsecond; kept > most || killed > most {
		t.Errorf("a start took %v, one after a kill %v, want at most %v", kept, killed, most)
	}

	if most := memoryOf(memory, n); mostAnon > most {
		t.Errorf("%s of anonymous memory, want at most %s", mib(mostAnon), mib(most))
	}

	// What a rebuild holds beyond its limit are the tables of nodes, too.
	live := r.exportIndex()
	for _, whole := range []bool{true, false} {
		path := filepath.Join(r.base, "anew")
		args := []string{"--index", path}
		if whole {
			args = append(args, "--whole-log")
		}
		got := r.rebuild(args...)
		t.Logf("rebuilt, whole log %v: %+v: %s anonymous at the most", whole, got, mib(got.anon))
		if sum := r.exportIndex("--index", path); sum != live {
			t.Errorf("whole log %v: the index that was made anew is exported as something else", whole)
		}
		removeAll(t, path)
		if most := memoryOf(512*mebi, n); got.anon > most {
			t.Errorf("whole log %v: a rebuild takes %s of anonymous memory, want at most %s", whole, mib(got.anon), mib(most))
		}
	}
	r.verify()
}
