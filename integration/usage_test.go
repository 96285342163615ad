package integration

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"
)

// du is what the tool of that name says of a directory, in bytes.
func du(t *testing.T, path string) int64 {
	t.Helper()
	out, err := exec.Command("du", "-s", "--block-size=1", path).Output()
	if _, ok := err.(*exec.ExitError); err != nil && !ok { // files may go while it looks
		t.Skipf("no du: %v", err)
	}
	word, _, _ := strings.Cut(string(out), "\t")
	n, err := strconv.ParseInt(word, 10, 64)
	if err != nil {
		t.Fatalf("du: %v: %s", err, out)
	}
	return n
}

// TestUsageIsWhatDuSays: at each step of a store's life the parts that df counts, each
// by itself, add up to what it takes on disk, and that is what du says, within 1 %; of
// a node elsewhere, too.
func TestUsageIsWhatDuSays(t *testing.T) {
	rng := newRand(t)
	r, j := newRig(t), newJournal()
	s := r.start()
	w := &worker{j: j, rng: rng, prefix: "u", keys: 1000, srv: s, c: s.client()}
	n := rounds(1, 3, 20)
	var last map[string]int64
	elsewhere := filepath.Join(r.base, "elsewhere")
	onDisk := func() (sum int64) {
		for _, dir := range []string{r.data, elsewhere} {
			if _, err := os.Stat(dir); err == nil {
				sum += du(t, dir)
			}
		}
		return sum
	}
	check := func(what string) map[string]int64 {
		t.Helper()
		var said string
		for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(200 * time.Millisecond) {
			before := onDisk()
			var u map[string]int64
			var all map[string]json.RawMessage
			out := r.must("df", "--json")
			if err := json.Unmarshal([]byte(out), &all); err != nil {
				t.Fatalf("%v\n%s", err, out)
			}
			u = map[string]int64{}
			for name, raw := range all {
				var v int64
				if json.Unmarshal(raw, &v) == nil {
					u[name] = v
				}
			}
			after := onDisk()
			// The ballast is known to the byte, and much of a small store: it does not
			// count for what 1 % is.
			most := (after - du(t, filepath.Join(r.data, ballastName))) / 100
			sum := u["live_bytes"] + u["dead_bytes"] + u["parity_bytes"] + u["padding_bytes"] - u["missing_bytes"] + u["stray_bytes"] + u["pending_bytes"] +
				u["free_in_segments_bytes"] + u["layout_bytes"] + u["index_bytes"] + u["other_bytes"]
			said = fmt.Sprintf("physical %d, parts %d, du before %d and after %d, 1 %% is %d\n%s", u["physical_bytes"], sum, before, after, most, out)
			near := func(a, b int64) bool { return max(a-b, b-a) <= most }
			if before == after && near(u["physical_bytes"], after) && near(sum, after) && u["physical_bytes"] == sum+u["unaccounted_bytes"] && u["missing_bytes"] == 0 {
				t.Logf("%-28s du %s, off by %d; parts off by %d", what, mib(after), u["physical_bytes"]-after, u["unaccounted_bytes"])
				last = u
				return u
			}
			if time.Now().After(deadline) {
				t.Fatalf("%s: %s", what, said)
			}
		}
	}
	grew := func(part, what string, before map[string]int64) {
		t.Helper()
		if last[part] <= before[part] {
			t.Errorf("%s: %s went from %d to %d", what, part, before[part], last[part])
		}
	}
	check("begun")
	small, large := 100*n, 20*n
	write := func(seed uint64) {
		t.Helper()
		for i := range small {
			w.putBody(fmt.Sprintf("u/s%04d", i), content{seed: seed + uint64(i), size: 100 + rng.IntN(20_000)})
		}
		for i := range large {
			w.putBody(fmt.Sprintf("u/m%04d", i), content{seed: seed + 1e6 + uint64(i), size: 1 << 20})
		}
	}
	r.must("nodes", "add", "n07", "--path", elsewhere)
	check("with a node elsewhere")
	write(1)
	first := check("written")
	write(1e9)
	check("overwritten")
	grew("dead_bytes", "overwritten", first)
	for i := range large {
		w.delete(fmt.Sprintf("u/m%04d", i))
	}
	before := check("deleted")
	r.must("gc", "--now", "--purge")
	check("collected")
	grew("pending_bytes", "collected", before)
	if text := r.must("df"); !strings.Contains(text, "are pending: the nodes keep them until ") {
		t.Errorf("df does not say when what is pending comes back:\n%s", text)
	}
	s.kill()
	s = r.start()
	check("killed and started")
	s.stop()
	r.must("reclaim", "--data", r.data)
	before = last
	s = r.start()
	check("reclaimed")
	if last["pending_bytes"] >= before["pending_bytes"] || last["physical_bytes"] >= before["physical_bytes"] {
		t.Errorf("reclaimed: %d bytes are pending, before %d; %d on disk, before %d", last["pending_bytes"], before["pending_bytes"], last["physical_bytes"], before["physical_bytes"])
	}
	j.check(s, true, j.all())
	report(t, j)
	s.stop()
}
