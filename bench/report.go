package bench

import (
	"fmt"
	"io"
	"strings"
	"time"
	"unicode/utf8"
)

// Report is what a run found.
type Report struct {
	Began       time.Time `json:"began"`
	Elapsed     float64   `json:"elapsed_s"`
	Machine     Machine   `json:"machine"`
	Others      float64   `json:"cpu_of_others"` // part of all CPUs that other work had
	Rounds      int       `json:"rounds"`
	ObjectBytes int       `json:"object_bytes"`
	SmallBytes  int       `json:"small_bytes"`
	Clients     int       `json:"clients"`
	Stages      []Stage   `json:"stages"`
	Limits      Limits    `json:"limits_cpu_s_per_gb"`
	Whole       []Whole   `json:"whole"`
	Small       []Small   `json:"small"`
	Syncs       []Sync    `json:"syncs"`
	Guards      []Guard   `json:"guards,omitempty"`
}

// busyOthers is how much of the CPUs others may have before the report warns.
const busyOthers = 0.10

// Markdown writes the report as tables.
func (r *Report) Markdown(w io.Writer) error {
	var b strings.Builder
	m := r.Machine
	commit := m.Commit
	if commit == "" {
		commit = "unknown"
	}
	fmt.Fprintf(&b, "Commit %s, %s, %d x %s, %.0f GiB, Linux %s, %s; %s, %.0f s.\n", commit, m.Go, m.CPUs, m.CPU,
		float64(m.Memory)/(1<<30), m.Kernel, m.Filesystem, r.Began.Format("2006-01-02 15:04 UTC"), r.Elapsed)
	fmt.Fprintf(&b, "Medians of %d rounds and half the distance between the quartiles; a GB is 10^9 bytes of the object.\n", r.Rounds)
	fmt.Fprintf(&b, "Other work had %.0f %% of the CPUs during the run.\n", 100*r.Others)
	if r.Others > busyOthers {
		b.WriteString("\n**The machine was not idle: rates and latencies are worse than they could be, CPU times somewhat.**\n")
	}

	t := table{title: "Stages, each alone: CPU seconds per GB", head: []string{"stage", "CPU s/GB", "±", "in a put", "in a get"}, left: 1}
	part := func(in, net bool) string {
		switch {
		case in && net:
			return "REST"
		case in:
			return "yes"
		}
		return ""
	}
	for _, s := range r.Stages {
		t.row(s.Name, fmt.Sprintf("%.3f", s.CPU.Median), percent(s.CPU), part(s.Put, s.OverNet), part(s.Get, s.OverNet))
	}
	t.row("**sum, in process**", "", "", number(r.Limits.Put), number(r.Limits.Get))
	t.row("**sum, over REST**", "", "", number(r.Limits.PutNet), number(r.Limits.GetNet))
	t.render(&b)

	t = table{title: fmt.Sprintf("Whole objects of %s, incompressible, one after the other", size(r.ObjectBytes)),
		head: []string{"face", "operation", "MB/s", "±", "CPU s/GB", "±", "sum of stages", "ratio", "client CPU s/GB", "allocated B/MB"}, left: 2}
	for _, x := range r.Whole {
		ratio, limit, client, alloc := "", "", "", ""
		if x.Limit > 0 {
			limit, ratio = number(x.Limit), fmt.Sprintf("%.2f", x.CPU.Median/x.Limit)
		}
		if x.ClientCPU != nil {
			client = number(x.ClientCPU.Median)
		}
		if x.Alloc != nil {
			alloc = fmt.Sprintf("%.0f", x.Alloc.Median)
		}
		t.row(x.Face, x.Op, fmt.Sprintf("%.0f", x.MBps.Median), percent(x.MBps), number(x.CPU.Median), percent(x.CPU), limit, ratio, client, alloc)
	}
	t.render(&b)

	t = table{title: fmt.Sprintf("Small objects of %s", size(r.SmallBytes)),
		head: []string{"face", "operation", "clients", "per s", "±", "median ms", "±", "CPU µs each"}, left: 2}
	for _, x := range r.Small {
		ms, spread := "", ""
		if x.Latency != nil {
			ms, spread = fmt.Sprintf("%.2f", x.Latency.Median), percent(*x.Latency)
		}
		t.row(x.Face, x.Op, fmt.Sprint(x.Clients), fmt.Sprintf("%.0f", x.PerS.Median), percent(x.PerS), ms, spread, fmt.Sprintf("%.0f", x.CPU.Median))
	}
	for _, s := range r.Syncs {
		t.row("bare disk", fmt.Sprintf("%d parallel fdatasyncs of 4 KiB", s.Files), "", fmt.Sprintf("%.0f", 1e3/max(s.Latency.Median, 1e-9)), "",
			fmt.Sprintf("%.2f", s.Latency.Median), percent(s.Latency), "")
	}
	t.render(&b)
	if len(r.Guards) > 0 {
		t = table{title: "What guards cost: beside REST as it is served", head: []string{"variant", "operation", "of", "clients", "rate", "±", "CPU time", "±"}, left: 3}
		for _, g := range r.Guards {
			t.row(g.Variant, g.Op, size(g.Bytes), fmt.Sprint(g.Clients), number(g.Rate.Median), percent(g.Rate), number(g.CPU.Median), percent(g.CPU))
		}
		t.render(&b)
	}
	_, err := io.WriteString(w, b.String())
	return err
}

func percent(f Figure) string { return fmt.Sprintf("%.0f %%", 100*f.relative()) }
func number(v float64) string { return fmt.Sprintf("%.2f", v) }

func size(n int) string {
	switch {
	case n >= 1<<20 && n%(1<<20) == 0:
		return fmt.Sprintf("%d MiB", n>>20)
	case n >= 1<<10 && n%(1<<10) == 0:
		return fmt.Sprintf("%d KiB", n>>10)
	}
	return fmt.Sprintf("%d B", n)
}

// table is written as Markdown that can also be read as it is: columns line up.
type table struct {
	title string
	head  []string
	left  int // the first columns stand left, the others right
	rows  [][]string
}

func (t *table) row(cells ...string) {
	if len(cells) != len(t.head) {
		panic(fmt.Sprintf("bench: a row of %d cells in a table of %d columns", len(cells), len(t.head)))
	}
	for i, c := range cells {
		cells[i] = strings.ReplaceAll(c, "|", `\|`)
	}
	t.rows = append(t.rows, cells)
}

func (t *table) render(b *strings.Builder) {
	width := make([]int, len(t.head))
	for _, r := range append([][]string{t.head}, t.rows...) {
		for i, c := range r {
			width[i] = max(width[i], utf8.RuneCountInString(c), 3)
		}
	}
	line := func(cells []string) {
		for i, c := range cells {
			pad := strings.Repeat(" ", width[i]-utf8.RuneCountInString(c))
			if i < t.left {
				b.WriteString("| " + c + pad + " ")
			} else {
				b.WriteString("| " + pad + c + " ")
			}
		}
		b.WriteString("|\n")
	}
	fmt.Fprintf(b, "\n### %s\n\n", t.title)
	line(t.head)
	rule := make([]string, len(t.head))
	for i := range rule {
		if rule[i] = strings.Repeat("-", width[i]); i >= t.left {
			rule[i] = strings.Repeat("-", width[i]-1) + ":"
		}
	}
	line(rule)
	for _, r := range t.rows {
		line(r)
	}
}
