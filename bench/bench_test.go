package bench

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"math"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"
)

// TestMain makes the test binary the servers that Run starts.
func TestMain(m *testing.M) {
	if len(os.Args) == 2 && os.Args[1] == "serve-sink" {
		if err := ServeSink(os.Stdin, os.Stdout); err != nil {
			os.Exit(1)
		}
		os.Exit(0)
	}
	if len(os.Args) == 3 && os.Args[1] == "serve-guarded" {
		if err := ServeGuarded(os.Args[2], os.Stdin, os.Stdout); err != nil {
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

func TestFigure(t *testing.T) {
	for _, c := range []struct {
		in   []float64
		want Figure
	}{
		{nil, Figure{}},
		{[]float64{3}, Figure{3, 0, 1}},
		{[]float64{4, 2}, Figure{3, 0.5, 2}},                     // quartiles 2.5 and 3.5
		{[]float64{5, 1, 3}, Figure{3, 1, 3}},                    // 2 and 4
		{[]float64{1, 2, 3, 100}, Figure{2.5, 12.75, 4}},         // 1.75 and 27.25
		{[]float64{9, 7, 5, 3, 1}, Figure{5, 2, 5}},              // 3 and 7
		{[]float64{2, 2, 2, 2, 1000}, Figure{2, 0, 5}},           // one outlier moves neither
		{[]float64{10, 20, 30, 40, 50, 60}, Figure{35, 12.5, 6}}, // 22.5 and 47.5
	} {
		before := slices.Clone(c.in)
		if got := NewFigure(c.in); got != c.want {
			t.Errorf("figure of %v: %+v, want %+v", c.in, got, c.want)
		}
		if !slices.Equal(c.in, before) {
			t.Errorf("the measurements became %v, were %v", c.in, before)
		}
	}
	if got := (Figure{Median: 4, Spread: 1}).relative(); got != 0.25 {
		t.Errorf("relative spread %v, want 0.25", got)
	}
	if got := (Figure{}).relative(); got != 0 {
		t.Errorf("relative spread of nothing %v, want 0", got)
	}
}

func TestFigureLiesWithinAndForgetsOrder(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		xs := rapid.SliceOfN(rapid.Float64Range(-1e6, 1e6), 1, 40).Draw(t, "xs")
		f := NewFigure(xs)
		lo, hi := slices.Min(xs), slices.Max(xs)
		if f.Median < lo || f.Median > hi || f.Spread < 0 || f.Spread > (hi-lo)/2 {
			t.Fatalf("%+v of values from %v to %v", f, lo, hi)
		}
		below, above := 0, 0
		for _, x := range xs {
			if x < f.Median {
				below++
			}
			if x > f.Median {
				above++
			}
		}
		if below > len(xs)/2 || above > len(xs)/2 {
			t.Fatalf("%v is no median of %v", f.Median, xs)
		}
		mixed := rapid.Permutation(xs).Draw(t, "mixed")
		if g := NewFigure(mixed); g != f {
			t.Fatalf("%+v, in another order %+v", f, g)
		}
		// Twice the values: twice the figure.
		twice := make([]float64, len(xs))
		for i, x := range xs {
			twice[i] = 2 * x
		}
		if g := NewFigure(twice); g.Median != 2*f.Median || math.Abs(g.Spread-2*f.Spread) > 1e-9*(1+f.Spread) {
			t.Fatalf("%+v, of twice the values %+v", f, g)
		}
	})
}

func TestLimits(t *testing.T) {
	stage := func(v float64, put, get, net bool) Stage {
		return Stage{CPU: Figure{Median: v}, Put: put, Get: get, OverNet: net}
	}
	got := limits([]Stage{stage(1, true, false, false), stage(2, true, true, false), stage(4, true, false, true),
		stage(8, false, true, false), stage(16, false, true, true), stage(32, false, false, false)})
	if want := (Limits{Put: 3, PutNet: 7, Get: 10, GetNet: 26}); got != want {
		t.Errorf("limits %+v, want %+v", got, want)
	}
	for _, c := range []struct {
		op   string
		net  bool
		want float64
	}{{opPut, false, 3}, {opPut, true, 7}, {opGet, false, 10}, {opGet, true, 26}, {opHit, false, 0}, {opHit, true, 0}} {
		if l := limitOf(got, c.op, c.net); l != c.want {
			t.Errorf("limit of %s, over the network %v: %v, want %v", c.op, c.net, l, c.want)
		}
	}
}

func TestComparer(t *testing.T) {
	c := &comparer{[]byte("abcdef")}
	if _, err := c.Write([]byte("abc")); err != nil || string(c.want) != "def" {
		t.Fatalf("left %q, %v", c.want, err)
	}
	if _, err := c.Write([]byte("dxf")); err == nil {
		t.Error("other bytes are taken for those that were put")
	}
	if _, err := c.Write([]byte("defg")); err == nil {
		t.Error("more bytes are taken for those that were put")
	}
	n := &counter{}
	_, _ = n.Write([]byte("abc"))
	if n.want(3) != nil || n.want(4) == nil || n.want(2) == nil {
		t.Error("a counter of 3 bytes takes 2 or 4 for right, or 3 for wrong")
	}
}

func TestTransferTakesNoRefusalForSuccess(t *testing.T) {
	status := http.StatusOK
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		w.WriteHeader(status)
		w.Write(append(body, r.Header.Get("Authorization")...))
	}))
	defer srv.Close()
	for _, status = range []int{200, 201, 404, 503, 304} {
		var got strings.Builder
		err := transfer(t.Context(), srv.Client(), http.MethodPut, srv.URL, "secret", []byte("abc"), &got)
		if ok := status/100 == 2; (err == nil) != ok || ok && got.String() != "abcBearer secret" {
			t.Errorf("answer %d: %v, %q", status, err, got.String())
		}
	}
}

func TestRefusesWithoutSpace(t *testing.T) {
	dir := t.TempDir()
	_, err := Run(t.Context(), Options{Dir: dir, Object: 1 << 50})
	if !errors.Is(err, ErrSpace) {
		t.Errorf("a run of petabytes: %v, want ErrSpace", err)
	}
	mustBeEmpty(t, dir)
}

func mustBeEmpty(t *testing.T, dir string) {
	t.Helper()
	left, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range left {
		t.Errorf("%s is left behind", e.Name())
	}
}

// TestRun is the whole harness on tiny objects, server included.
func TestRun(t *testing.T) {
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cairn := filepath.Join(t.TempDir(), "cairn")
	if out, err := exec.Command("go", "build", "-o", cairn, "cairn/cmd/cairn").CombinedOutput(); err != nil {
		t.Fatalf("build cairn: %v\n%s", err, out)
	}
	dir, profiles := t.TempDir(), filepath.Join(t.TempDir(), "p")
	t.Chdir(dir) // which is where the default is
	o := Options{Cairn: cairn, Sink: []string{self, "serve-sink"}, Guarded: []string{self, "serve-guarded"}, Profile: profiles}.Tiny()
	rep, err := Run(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	mustBeEmpty(t, dir)
	for _, name := range []string{"put.pprof", "small-put.pprof", "get.pprof"} {
		if fi, err := os.Stat(filepath.Join(profiles, name)); err != nil || fi.Size() == 0 {
			t.Errorf("profile %s: %v", name, err)
		}
	}
	if len(rep.Stages) != 13 {
		t.Errorf("%d stages, want 13", len(rep.Stages))
	}
	for _, s := range rep.Stages {
		if s.CPU.Median <= 0 || s.CPU.N != 1 {
			t.Errorf("stage %s: %+v", s.Name, s.CPU)
		}
	}
	if l := rep.Limits; l.Put <= 0 || l.Get <= 0 || l.PutNet <= l.Put || l.GetNet <= l.Get {
		t.Errorf("limits %+v", l)
	}
	var wholes, smalls []string
	for _, w := range rep.Whole {
		wholes = append(wholes, w.Face+" "+w.Op)
		if w.MBps.Median <= 0 || (w.Face == "REST") != (w.ClientCPU != nil) || (w.Face == "REST") == (w.Alloc != nil) {
			t.Errorf("%s %s: %+v", w.Face, w.Op, w)
		}
	}
	if want := []string{"in process put", "in process get", "in process " + opHit, "REST put", "REST get", "REST " + opHit}; !slices.Equal(wholes, want) {
		t.Errorf("long objects: %q, want %q", wholes, want)
	}
	for _, s := range rep.Small {
		smalls = append(smalls, s.Face+" "+s.Op)
		if s.PerS.Median <= 0 || (s.Clients == 1) != (s.Latency != nil) || s.Latency != nil && (s.Latency.Median <= 0 || s.Latency.N != o.Puts) {
			t.Errorf("%s %s: %+v", s.Face, s.Op, s)
		}
	}
	four := []string{"in process put", "in process get", "REST put", "REST get"}
	if want := append(four, four...); !slices.Equal(smalls, want) {
		t.Errorf("small objects: %q, want %q", smalls, want)
	}
	if len(rep.Syncs) != 2 || rep.Syncs[0].Files != 6 || rep.Syncs[1].Files != 3 || rep.Syncs[0].Latency.Median <= 0 || rep.Syncs[1].Latency.N != o.Puts {
		t.Errorf("syncs %+v", rep.Syncs)
	}
	if want := 4 * (len(variants) - 1); len(rep.Guards) != want {
		t.Errorf("%d figures of guards, want %d", len(rep.Guards), want)
	}
	for _, g := range rep.Guards {
		if g.Rate.Median <= 0 || g.Rate.N != 2*o.Rounds || g.Variant == variants[0].name {
			t.Errorf("guards: %+v", g)
		}
	}
	b, err := json.Marshal(rep)
	if err != nil {
		t.Fatal(err)
	}
	var again Report
	if err := json.Unmarshal(b, &again); err != nil || !reflect.DeepEqual(&again, rep) {
		t.Errorf("as JSON and back: %v\n%+v\nwas\n%+v", err, again, *rep)
	}
}

func TestEndsWithItsContext(t *testing.T) {
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	ctx, cancel := context.WithCancelCause(t.Context())
	defer cancel(nil)
	enough := errors.New("enough")
	o := Options{Dir: dir, Sink: []string{self, "serve-sink"}}.Tiny()
	o.Rounds = 100
	o.Progress = func(s string) {
		if s == "stages: round 3 of 100" {
			cancel(enough)
		}
	}
	start := time.Now()
	if _, err := Run(ctx, o); !errors.Is(err, enough) {
		t.Errorf("ended with %v, want the cause of its context", err)
	}
	if d := time.Since(start); d > 20*time.Second {
		t.Errorf("it took %v to end", d)
	}
	mustBeEmpty(t, dir)
}

func TestServerThatDoesNotStart(t *testing.T) {
	dir := t.TempDir()
	_, err := Run(t.Context(), Options{Dir: dir, Cairn: "/bin/false"}.Tiny())
	if err == nil {
		t.Error("a server that ends at once is no error")
	}
	mustBeEmpty(t, dir)
}
