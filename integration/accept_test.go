package integration

import (
	"bytes"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net/http"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"cairn/node"
)

// loseLog deletes all shards of the log packs of these sequences, while nothing serves
// the store.
func (r *rig) loseLog(t *testing.T, seqs ...uint64) {
	t.Helper()
	d := r.open()
	defer d.Close()
	lost := 0
	for _, n := range d.Nodes {
		by, err := n.Promised(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		for after := (*node.Found)(nil); ; {
			page, err := n.ListLog(t.Context(), 1, after, 100)
			if err != nil {
				t.Fatal(err)
			}
			if len(page) == 0 {
				break
			}
			for _, f := range page {
				if slices.Contains(seqs, f.Header.Seq) {
					if err := n.Delete(t.Context(), by, f.Info.Key, f.Info.Instance); err != nil {
						t.Fatal(err)
					}
					lost++
				}
			}
			after = &page[len(page)-1]
		}
	}
	if lost < 3*len(seqs) {
		t.Fatalf("%d shards of log packs %v were there", lost, seqs)
	}
}

// TestAcceptLoss: a log pack is lost and the index with it. The program stops, says what
// to do, does it when it is told to, names what is lost, and goes on with all the rest.
func TestAcceptLoss(t *testing.T) {
	rng := newRand(t)
	r := newRig(t)
	s := r.start()
	c := s.client()
	want := map[string][]byte{}
	put := func(key string, n int) {
		t.Helper()
		b := noise(rng, n)
		if rep := c.put(key, b); rep.answer != acked {
			t.Fatalf("put %s: %v", key, rep)
		}
		want[key] = b
	}
	put("before", 3<<20)
	from := r.status().Sequence
	put("only there", 5<<20) // small at its end, large before
	put("small there", 900)
	to := r.status().Sequence
	for i := range 3 {
		r.must("cp", "main/only there", fmt.Sprint("main/copy", i))
	}
	put("behind", 2<<20)
	put("small behind", 700)
	c.close()
	s.stop()
	whole, lossy := r.clone(t), r.clone(t)
	var lost []uint64
	for seq := from + 1; seq <= to; seq++ {
		lost = append(lost, seq)
	}
	r.loseLog(t, lost...)
	if out, said, code := r.command("rebuild", "--data", r.data, "--accept-loss"); code != 1 || !strings.Contains(said, "nothing is given up") {
		t.Errorf("with an index that knows all of it: exit code %d, it says:\n%s%s", code, out, said)
	}
	r.start().stop() // with the index nothing of it is needed
	removeAll(t, r.index())
	if code, said := r.refused(); code != 3 || !strings.Contains(said, fmt.Sprintf("sequence %d cannot be read", to)) || !strings.Contains(said, "cairn rebuild --data DIR --accept-loss") {
		t.Errorf("a start: exit code %d, it says:\n%s", code, said)
	}
	removeAll(t, r.index())
	if out, said, code := r.command("rebuild", "--data", r.data); code != 1 || !strings.Contains(said, "--accept-loss") {
		t.Errorf("a rebuild: exit code %d, it says:\n%s%s", code, out, said)
	}
	var made struct {
		Losses []struct{ From, To uint64 }
		Held   bool
		Silent []string
		Damage *struct {
			Count   int
			Objects []struct{ Bucket, Key string }
		} `json:"damaged"`
	}
	// One with the word that is cut short leaves nothing that one without it goes on with, once
	// the nodes are back.
	half := filepath.Join(whole.data, "index.rebuild")
	lossy.loseLog(t, lost...)
	if out, said, code := lossy.command("rebuild", "--data", lossy.data, "--accept-loss", "--index", half); code != 0 {
		t.Fatalf("half a rebuild: exit code %d, it says:\n%s%s", code, out, said)
	}
	removeAll(t, whole.index())
	if out, said, code := whole.command("rebuild", "--data", whole.data, "--json"); code != 0 || !strings.Contains(out, `"losses": []`) {
		t.Errorf("with the nodes back: exit code %d, it says:\n%s%s", code, out, said)
	}
	if s, c := whole.start(), whole.server.client(); s != nil {
		for key, b := range want {
			if rep := c.get(key); rep.answer != acked || !bytes.Equal(rep.body, b) {
				t.Errorf("with the nodes back, %s: %v, %d bytes", key, rep, len(rep.body))
			}
		}
		c.close()
		s.stop()
	}
	out, said, code := r.command("rebuild", "--data", r.data, "--accept-loss", "--json")
	if err := json.Unmarshal([]byte(out), &made); err != nil || code != 0 {
		t.Fatalf("with --accept-loss: exit code %d, %v, it says:\n%s%s", code, err, out, said)
	}
	if len(made.Losses) != 1 || made.Losses[0] != struct{ From, To uint64 }{lost[0], to} || made.Held || len(made.Silent) > 0 || made.Damage == nil || made.Damage.Count != 3 || len(made.Damage.Objects) != 3 {
		t.Errorf("lost were %v: %s", lost, out)
	}
	out, said, code = r.command("rebuild", "--data", r.data, "--accept-loss") // the same again, in words
	for _, words := range []string{fmt.Sprintf("GIVEN UP: sequences %d to %d of the log", lost[0], to), "lost: 3 versions of ", "main/copy1", "cairn scrub", "the index before it is kept"} {
		if !strings.Contains(out, words) || code != 0 {
			t.Errorf("exit code %d, it does not say %q:\n%s%s", code, words, out, said)
		}
	}
	s = r.start()
	c = s.client()
	if out := r.must("status"); !strings.Contains(out, fmt.Sprintf("GIVEN UP: sequences %d to %d of the log", lost[0], to)) {
		t.Errorf("status:\n%s", out)
	}
	if rep := c.do(http.MethodGet, "/metrics", nil, nil); !bytes.Contains(rep.body, fmt.Appendf(nil, "cairn_log_given_up_sequences %d\n", len(lost))) {
		t.Errorf("no metric of what was given up: %v", rep)
	}
	there := func(keys ...string) {
		t.Helper()
		for _, key := range keys {
			if rep := c.get(key); rep.answer != acked || !bytes.Equal(rep.body, want[key]) {
				t.Errorf("%s: %v, %d bytes", key, rep, len(rep.body))
			}
		}
	}
	there("before", "behind", "small behind")
	if rep := c.get("only there"); rep.status != http.StatusNotFound {
		t.Errorf("what was given up: %v", rep)
	}
	r.command("scrub", "--rate", "1GB") // what the log had adopted there lies on the nodes
	r.must("gc", "--now")
	want["copy0"] = want["only there"]
	if out := r.must("damaged"); strings.Contains(out, "copy") { // its end lay in the log itself
		if rep := c.put("again", want["only there"]); rep.answer != acked {
			t.Fatal(rep)
		}
	}
	there("copy0")
	if out := r.must("damaged"); !strings.HasPrefix(out, "lost: 0 versions") {
		t.Errorf("damaged:\n%s", out)
	}
	put("since", 1<<20)
	for began := time.Now(); strings.Count(r.must("jobs", "ls", "--kind", "snapshot", "--json"), `"state": "done"`) < 2; time.Sleep(100 * time.Millisecond) {
		if time.Since(began) > time.Minute {
			t.Fatal("no two snapshots were taken behind what is lost")
		}
	}
	c.close()
	s.stop()
	removeAll(t, r.index())
	s = r.start() // without another word
	c = s.client()
	if out := r.must("status"); !strings.Contains(out, "GIVEN UP") {
		t.Errorf("status:\n%s", out)
	}
	there("before", "behind", "small behind", "copy0", "since")
	c.close()
	s.stop()

	// An index that knows more than the nodes.
	old := r.clone(t)
	r.start()
	r.must("put", one(t, filepath.Join(r.config, "cairn", "*.token")), "main/ahead") // any file
	r.server.stop()
	removeAll(t, old.index())
	copyTree(t, r.index(), old.index())
	if out, said, code := old.command("rebuild", "--data", old.data); code != 1 || !strings.Contains(said, "--accept-loss") {
		t.Errorf("an index that is ahead: exit code %d\n%s%s", code, out, said)
	}
	if out, said, code := old.command("rebuild", "--data", old.data, "--accept-loss"); code != 0 || !strings.Contains(out, "which only the index before this one knew") {
		t.Errorf("an index that is ahead, given up: exit code %d\n%s%s", code, out, said)
	}
	if aside, _ := filepath.Glob(old.index() + ".replaced-*"); len(aside) != 1 {
		t.Errorf("kept aside are %v", aside)
	}
	old.start().stop()
}

func noise(rng *rand.Rand, n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(rng.Uint32())
	}
	return b
}
