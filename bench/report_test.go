package bench

import (
	"errors"
	"strings"
	"testing"
	"time"
)

func TestTable(t *testing.T) {
	tab := table{title: "Words", head: []string{"word", "n"}, left: 1}
	tab.row("a|b", "1")
	tab.row("longer µ", "12345")
	var b strings.Builder
	tab.render(&b)
	want := `
### Words

| word     |     n |
| -------- | ----: |
| a\|b     |     1 |
| longer µ | 12345 |
`
	if b.String() != want {
		t.Errorf("got\n%s\nwant\n%s", b.String(), want)
	}
	defer func() {
		if recover() == nil {
			t.Error("a row with a cell too few is taken")
		}
	}()
	tab.row("alone")
}

func TestMarkdown(t *testing.T) {
	fig := func(m, s float64) Figure { return Figure{m, s, 5} }
	ptr := func(f Figure) *Figure { return &f }
	rep := &Report{
		Began: time.Date(2026, 1, 2, 3, 4, 0, 0, time.UTC), Elapsed: 61.4, Rounds: 5, ObjectBytes: 256 << 20, SmallBytes: 4096, Others: 0.25,
		Machine: Machine{CPU: "Fast 1", CPUs: 2, Memory: 8 << 30, Kernel: "6.1", Filesystem: "ext4", Go: "go1.26"},
		Stages:  []Stage{{Name: "chunking", CPU: fig(0.6, 0.03), Put: true}, {Name: "send", CPU: fig(0.3, 0), Get: true, OverNet: true}, {Name: "zstd", CPU: fig(2, 1)}},
		Limits:  Limits{Put: 0.6, PutNet: 0.6, GetNet: 0.3},
		Whole: []Whole{{Face: "in process", Op: "put", MBps: fig(400, 8), CPU: fig(0.9, 0.09), Limit: 0.6, Alloc: ptr(fig(1234, 0))},
			{Face: "REST", Op: opHit, MBps: fig(800, 0), CPU: fig(1, 0), ClientCPU: ptr(fig(0.25, 0))}},
		Small: []Small{{Face: "REST", Op: "get", Clients: 1, PerS: fig(5000, 50), CPU: fig(120, 0), Latency: ptr(fig(0.2, 0.01))},
			{Face: "REST", Op: "get", Clients: 64, PerS: fig(50000, 500), CPU: fig(20, 0)}},
		Syncs: []Sync{{6, fig(0.8, 0.2)}},
	}
	var b strings.Builder
	if err := rep.Markdown(&b); err != nil {
		t.Fatal(err)
	}
	want := `Commit unknown, go1.26, 2 x Fast 1, 8 GiB, Linux 6.1, ext4; 2026-01-02 03:04 UTC, 61 s.
Medians of 5 rounds and half the distance between the quartiles; a GB is 10^9 bytes of the object.
Other work had 25 % of the CPUs during the run.

**The machine was not idle: rates and latencies are worse than they could be, CPU times somewhat.**

### Stages, each alone: CPU seconds per GB

| stage               | CPU s/GB |    ± | in a put | in a get |
| ------------------- | -------: | ---: | -------: | -------: |
| chunking            |    0.600 |  5 % |      yes |          |
| send                |    0.300 |  0 % |          |     REST |
| zstd                |    2.000 | 50 % |          |          |
| **sum, in process** |          |      |     0.60 |     0.00 |
| **sum, over REST**  |          |      |     0.60 |     0.30 |

### Whole objects of 256 MiB, incompressible, one after the other

| face       | operation                     | MB/s |   ± | CPU s/GB |    ± | sum of stages | ratio | client CPU s/GB | allocated B/MB |
| ---------- | ----------------------------- | ---: | --: | -------: | ---: | ------------: | ----: | --------------: | -------------: |
| in process | put                           |  400 | 2 % |     0.90 | 10 % |          0.60 |  1.50 |                 |           1234 |
| REST       | put of what is stored already |  800 | 0 % |     1.00 |  0 % |               |       |            0.25 |                |

### Small objects of 4 KiB

| face      | operation                      | clients | per s |   ± | median ms |    ± | CPU µs each |
| --------- | ------------------------------ | ------: | ----: | --: | --------: | ---: | ----------: |
| REST      | get                            |       1 |  5000 | 1 % |      0.20 |  5 % |         120 |
| REST      | get                            |      64 | 50000 | 1 % |           |      |          20 |
| bare disk | 6 parallel fdatasyncs of 4 KiB |         |  1250 |     |      0.80 | 25 % |             |
`
	if got := b.String(); got != want {
		g, w := strings.Split(got, "\n"), strings.Split(want, "\n")
		for i := range min(len(g), len(w)) {
			if g[i] != w[i] {
				t.Errorf("line %d:\n%s\nwant\n%s", i+1, g[i], w[i])
			}
		}
		if len(g) != len(w) {
			t.Errorf("%d lines, want %d", len(g), len(w))
		}
	}
	rep.Others = 0.05
	b.Reset()
	if err := rep.Markdown(&b); err != nil || strings.Contains(b.String(), "not idle") {
		t.Errorf("an idle machine is called busy, or %v", err)
	}
	if err := rep.Markdown(broken{}); !errors.Is(err, errBroken) {
		t.Errorf("an output that cannot be written: %v", err)
	}
}

var errBroken = errors.New("broken")

type broken struct{}

func (broken) Write([]byte) (int, error) { return 0, errBroken }

func TestSize(t *testing.T) {
	for n, want := range map[int]string{0: "0 B", 1: "1 B", 1024: "1 KiB", 1025: "1025 B", 4096: "4 KiB", 256 << 20: "256 MiB", 3 << 19: "1536 KiB"} {
		if got := size(n); got != want {
			t.Errorf("size of %d: %s, want %s", n, got, want)
		}
	}
}
