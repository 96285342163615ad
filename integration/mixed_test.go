package integration

import (
	"fmt"
	"math"
	"math/rand/v2"
	"os"
	"slices"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// sizedContent draws a body of 1 KiB to 64 MiB, each power of two as often.
func sizedContent(rng *rand.Rand) content {
	size := int(math.Exp2(10 + 16*rng.Float64()))
	return content{seed: rng.Uint64(), size: size, text: rng.IntN(4) == 0}
}

// thirds are the medians of the first and of the last third.
func thirds(v []int64) (first, last int64) {
	median := func(v []int64) int64 {
		v = slices.Sorted(slices.Values(v))
		return v[len(v)/2]
	}
	n := max(len(v)/3, 1)
	return median(v[:n]), median(v[len(v)-n:])
}

// isFlat reports whether what a process holds has stopped growing: the median of
// the last third is at most a quarter and 32 MiB above that of the first.
func isFlat(v []int64) bool {
	first, last := thirds(v)
	return last <= first+first/4+32*mebi
}

func TestFlat(t *testing.T) {
	ramp := func(from, to int64) (v []int64) {
		for i := range int64(300) {
			v = append(v, (from+(to-from)*i/299)*mebi+i*7919%3*mebi)
		}
		return v
	}
	for _, c := range []struct {
		from, to int64
		want     bool
	}{{200, 200, true}, {200, 240, true}, {300, 100, true}, {200, 400, false}, {20, 120, false}} {
		if got := isFlat(ramp(c.from, c.to)); got != c.want {
			t.Errorf("from %d to %d MiB: flat is %v", c.from, c.to, got)
		}
	}
}

// TestHourOfMixedLoad: clients put, overwrite, delete, bring back, read, read parts
// and list objects of 1 KiB to 64 MiB, and the process is killed every few minutes;
// after each start everything is held against the model. While it lives its memory is
// within its limit and stops growing, and it leaves no file open. How much is put is
// bounded, since space comes back by the hour; when it is too much for the hour, reads
// take its place. CAIRN_LONG=1 makes it an hour, else it is seconds; CAIRN_FOR=20m
// says how long.
func TestHourOfMixedLoad(t *testing.T) {
	const memory, clients, keys = 512 * mebi, 4, 12
	length := time.Duration(rounds(5, 15, 3600)) * time.Second
	if s := os.Getenv("CAIRN_FOR"); s != "" {
		var err error
		if length, err = time.ParseDuration(s); err != nil {
			t.Fatal(err)
		}
	}
	// A life is as long as chance has it, a twentieth of the whole on average and a
	// third at most. What the process takes is judged behind its first minute.
	const warmUp, judged = time.Minute, 3 * time.Minute
	every := min(time.Second, length/100)
	budget := int64(min(6<<30, length.Seconds()*24*mebi))
	rng := newRand(t)
	r, j := newRig(t), newJournal()
	var fs unix.Statfs_t
	if err := unix.Statfs(r.base, &fs); err != nil {
		t.Fatal(err)
	}
	if free := int64(fs.Bavail) * fs.Bsize; free < 2*budget+int64(fs.Blocks)*fs.Bsize/20+4<<30 {
		t.Skipf("%s free, too little to put %s", mib(free), mib(budget))
	}

	begin := time.Now()
	mayPut := func() bool {
		j.mu.Lock()
		defer j.mu.Unlock()
		share := time.Since(begin).Seconds() / length.Seconds()
		return j.written < int64(share*float64(budget))+64*mebi && j.written < budget
	}
	var kills, flat int
	var starts []time.Duration
	var mostAnon int64
	mostFiles := 0
	for {
		started := time.Now()
		s := r.start("--memory", "512MiB")
		starts = append(starts, time.Since(started))
		j.check(s, true, j.all())
		report(t, j)
		left := length - time.Since(begin)
		if left <= 0 {
			break
		}
		life := min(time.Duration(rng.ExpFloat64()*float64(length)/20), length/3, left)
		stop := make(chan struct{})
		var wg sync.WaitGroup
		watch := s.observe(every)
		for i := range clients {
			w := &worker{j: j, rng: fork(rng), prefix: fmt.Sprintf("c%d", i), keys: keys, srv: s, c: s.client(), stop: stop, draw: sizedContent, mayPut: mayPut}
			wg.Go(func() {
				defer w.c.close()
				w.run()
			})
		}
		select {
		case <-time.After(life):
		case <-s.exited:
			t.Fatalf("the server has ended by itself: exit code %d\n%s", s.code, cut(s.stderr()))
		}
		samples := watch()
		s.kill()
		kills++
		close(stop)
		wg.Wait()
		report(t, j)

		var anon []int64
		for _, x := range samples {
			mostFiles = max(mostFiles, x.files)
			mostAnon = max(mostAnon, x.anon)
			anon = append(anon, x.anon)
		}
		if life >= judged {
			anon = anon[min(int(warmUp/every), len(anon)/2):]
			first, last := thirds(anon)
			t.Logf("life of %v: anonymous memory %s in the first third behind the warm-up, %s in the last", life.Round(time.Second), mib(first), mib(last))
			if !isFlat(anon) {
				t.Errorf("memory has grown from %s to %s in a life of %v", mib(first), mib(last), life)
			}
			flat++
		}
	}
	s := r.server
	st := s.usage(t)
	s.stop()
	t.Logf("%d kills in %v; %d lives judged; a start took %v at most; %s", kills, time.Since(begin).Round(time.Second), flat, slices.Max(starts).Round(time.Millisecond), j.counts())
	t.Logf("anonymous memory at most %s; at most %d files open beside segments and index", mib(mostAnon), mostFiles)
	t.Logf("df: %v", st)
	if limit := int64(memory * 14 / 10); mostAnon > limit {
		t.Errorf("%s of anonymous memory with --memory 512MiB, want at most %s", mib(mostAnon), mib(limit))
	}
	if mostFiles > 64+2*clients {
		t.Errorf("%d files open beside segments and index, want at most %d", mostFiles, 64+2*clients)
	}
	if length >= 20*time.Minute && flat == 0 {
		t.Error("no life was long enough to be judged")
	}
	// Every byte of a body is there with half as much parity, padding is a tenth at
	// the most but for small objects, and each kill leaves packs that were on
	// their way. Segments that are not full: those of data double in size.
	physical := allocated(t, r.data)
	if most := j.written*165/100 + int64(j.acks+j.unknowns)*96<<10 + int64(kills)*32<<20 + min(6<<30, j.written*3/2) + 6*journalMost; physical > most {
		t.Errorf("%s of bodies were sent, and the data directory takes %s, want at most %s", mib(j.written), mib(physical), mib(most))
	}
	t.Logf("the data directory takes %s", mib(physical))
	r.verify()
}
