package main

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/dustin/go-humanize"
	"github.com/spf13/cobra"

	"cairn/store"
)

const jobsPath = "/v1/jobs"

type jobInfo struct {
	ID       string    `json:"id"`
	Kind     string    `json:"kind"`
	Trigger  string    `json:"trigger"`
	State    string    `json:"state"`
	Started  time.Time `json:"started"`
	Ended    time.Time `json:"ended,omitzero"`
	Progress *struct {
		Done  uint64 `json:"done"`
		Total uint64 `json:"total,omitempty"`
		Unit  string `json:"unit"`
		Left  uint64 `json:"seconds_left,omitempty"`
	} `json:"progress,omitempty"`
	Options *struct {
		Deep   bool   `json:"deep"`
		Rate   uint64 `json:"rate,omitempty"`
		DryRun bool   `json:"dry_run,omitempty"`
	} `json:"options,omitempty"`
	Result json.RawMessage `json:"result,omitempty"`
	Error  string          `json:"error,omitempty"`
}

func newJobs() *cobra.Command {
	c := parent(&cobra.Command{
		Use: "jobs", Short: "List, start, wait for and cancel what the store does beside requests",
		Long: `Jobs are what the store does beside requests: repair makes shards anew that lay on lost nodes, check-index proves the
index, snapshot exports it to the nodes, scrub reads every shard, gc gives space back, drain empties nodes, rebalance evens
them out, raise writes anew what survives fewer losses than are wanted. These start by themselves, or with "cairn jobs start"; usage, which says whose the space is, with "cairn df --exclusive". One run of a kind is under way at a time; the 50 newest of each are known, after a restart as well.`,
	})
	list := clientFlags(&cobra.Command{
		Use: "ls", Aliases: []string{"list"}, Short: "List runs, the newest first", Args: cobra.NoArgs,
		Example: "  cairn jobs ls\n  cairn jobs ls --kind repair --state failed --limit 5", RunE: do(listJobs),
	})
	list.Flags().String("kind", "", "only runs of that kind")
	list.Flags().String("state", "", "only runs in that state: running, done, failed or cancelled")
	list.Flags().Int("limit", 0, "no more than so many; 0: all that are known")
	start := clientFlags(&cobra.Command{
		Use: "start KIND", Short: "Start a run of a kind of job", Args: cobra.ExactArgs(1),
		Long: `Start a run of a kind of job: repair, check-index, snapshot, scrub, which is a light one, gc, drain, rebalance, raise, or usage, whose result
"cairn df --exclusive" shows. When one is under way, nothing is started, and the exit code is 1. With --wait the exit code is that of "cairn jobs wait".`,
		Example: "  cairn jobs start repair --wait\n  cairn jobs start check-index", RunE: do(startJob),
	})
	start.Flags().Bool("wait", false, "wait for its end, and show how far it is")
	c.AddCommand(list, start, clientFlags(&cobra.Command{
		Use: "show ID", Short: "Describe a run", Args: cobra.ExactArgs(1),
		Example: "  cairn jobs show 0199f3a2-7c4e-7b1a-8e21-5d0c6b9a4f37", RunE: do(showJob),
	}), clientFlags(&cobra.Command{
		Use: "cancel ID...", Short: "Make runs end soon; what they have done stays done", Args: cobra.MinimumNArgs(1),
		Long: `Make runs end soon; what they have done stays done. The command does not wait for that: see "cairn jobs wait". A
cancelled repair is begun again by the next loss of a node or start of the server, a cancelled snapshot after an hour. The
next scrub of the same depth goes on where a cancelled one was; by itself it does so half a day later, a deep one two days
(a sixteenth of what --scrub-light-within and --scrub-deep-within say).`,
		Example: "  cairn jobs cancel 0199f3a2-7c4e-7b1a-8e21-5d0c6b9a4f37", RunE: do(cancelJobs),
	}), clientFlags(&cobra.Command{
		Use: "wait ID", Short: "Wait for the end of a run", Args: cobra.ExactArgs(1),
		Long:    "Wait for the end of a run, and show how far it is. The exit code is 0 when it is done, 1 when it failed or was cancelled.",
		Example: "  cairn jobs wait 0199f3a2-7c4e-7b1a-8e21-5d0c6b9a4f37", RunE: do(waitJob),
	}))
	return c
}

// jobsOf lists runs, at most so many when limit is not 0.
func jobsOf(ctx context.Context, cl *client, query url.Values, limit int) ([]jobInfo, error) {
	all := []jobInfo{}
	for more := true; more && (limit == 0 || len(all) < limit); {
		var p struct {
			Jobs   []jobInfo `json:"jobs"`
			More   bool      `json:"more"`
			Cursor string    `json:"cursor"`
		}
		if limit > 0 {
			query.Set("limit", fmt.Sprint(min(limit-len(all), 1000)))
		}
		if err := cl.call(ctx, http.MethodGet, jobsPath, query, nil, &p); err != nil {
			return nil, err
		}
		all, more = append(all, p.Jobs...), p.More
		query.Set("cursor", p.Cursor)
	}
	return all, nil
}

func listJobs(cmd *cobra.Command, _ []string) error {
	query := url.Values{}
	for _, name := range []string{"kind", "state"} {
		if v, _ := cmd.Flags().GetString(name); v != "" {
			query.Set(name, v)
		}
	}
	limit, _ := cmd.Flags().GetInt("limit")
	if limit < 0 {
		return &exitError{exitUsage, fmt.Errorf("--limit %d is no number of runs", limit)}
	}
	cl, err := newClient(cmd)
	if err != nil {
		return err
	}
	all, err := jobsOf(cmd.Context(), cl, query, limit)
	if err != nil {
		return err
	}
	if jsonWanted(cmd) {
		return printJSON(cmd, map[string]any{"jobs": all})
	}
	w := tabwriter.NewWriter(cmd.OutOrStdout(), 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "ID\tKIND\tBY\tSTATE\tSTARTED\tTOOK\tWHAT")
	for _, j := range all {
		took := "-"
		if !j.Ended.IsZero() {
			took = j.Ended.Sub(j.Started).Round(time.Millisecond).String()
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\t%s\n", j.ID, printable(j.Kind), printable(j.Trigger), printable(j.State), j.Started.Local().Format(time.DateTime), took, j.what())
	}
	return w.Flush()
}

// what says in one line how far a run is, or what came of it.
func (j *jobInfo) what() string {
	var parts []string
	if j.State == store.JobRunning {
		if p := j.Progress; p != nil {
			parts = append(parts, p.Unit+" "+amount(p.Unit, p.Done))
			if p.Total > 0 {
				parts[0] += " of " + amount(p.Unit, p.Total)
			}
			if p.Left > 0 {
				parts = append(parts, fmt.Sprintf("about %v left", time.Duration(p.Left)*time.Second))
			}
		}
	} else if s := summary(j.Result); s != "" {
		parts = append(parts, s)
	}
	if line, _, _ := strings.Cut(j.Error, "\n"); line != "" {
		parts = append(parts, line)
	}
	return printable(strings.Join(parts, "; "))
}

func amount(unit string, n uint64) string {
	if strings.HasSuffix(unit, "bytes") {
		return humanize.IBytes(n)
	}
	return fmt.Sprint(n)
}

// summary gives the numbers and words of a result in its order, without lists.
func summary(result json.RawMessage) string {
	d := json.NewDecoder(bytes.NewReader(result))
	d.UseNumber()
	if t, err := d.Token(); err != nil || t != json.Delim('{') {
		return ""
	}
	var out []string
	for d.More() {
		name, err := d.Token()
		if err != nil {
			break
		}
		var v any
		if d.Decode(&v) != nil {
			break
		}
		label := strings.ReplaceAll(fmt.Sprint(name), "_", " ")
		switch v := v.(type) {
		case json.Number:
			text := v.String()
			if n, err := v.Int64(); err == nil && n >= 0 {
				text = amount(label, uint64(n))
			}
			out = append(out, label+" "+text)
		case string, bool:
			out = append(out, fmt.Sprint(label, " ", v))
		}
	}
	return strings.Join(out, ", ")
}

func getJob(ctx context.Context, cl *client, id string) (j jobInfo, err error) {
	err = cl.call(ctx, http.MethodGet, jobsPath+"/"+escape(id), nil, nil, &j)
	return j, err
}

func startJob(cmd *cobra.Command, args []string) error {
	cl, err := newClient(cmd)
	if err != nil {
		return err
	}
	var j jobInfo
	if err := cl.call(cmd.Context(), http.MethodPost, jobsPath, nil, map[string]string{"kind": args[0]}, &j); err != nil {
		return err
	}
	if wait, _ := cmd.Flags().GetBool("wait"); wait {
		return follow(cmd, cl, j)
	}
	if jsonWanted(cmd) {
		return printJSON(cmd, j)
	}
	_, err = fmt.Fprintf(cmd.OutOrStdout(), "started %s %s\n", j.Kind, j.ID)
	return err
}

func showJob(cmd *cobra.Command, args []string) error {
	cl, err := newClient(cmd)
	if err != nil {
		return err
	}
	j, err := getJob(cmd.Context(), cl, args[0])
	if err != nil {
		return err
	}
	if jsonWanted(cmd) {
		return printJSON(cmd, j)
	}
	w := cmd.OutOrStdout()
	fmt.Fprintf(w, "job:      %s\nkind:     %s, started by %s\nstate:    %s\nstarted:  %s\n", j.ID, printable(j.Kind), printable(j.Trigger), printable(j.State), j.Started.Local().Format(time.DateTime))
	if !j.Ended.IsZero() {
		fmt.Fprintf(w, "ended:    %s, after %v\n", j.Ended.Local().Format(time.DateTime), j.Ended.Sub(j.Started).Round(time.Millisecond))
	}
	if j.State == store.JobRunning && j.Progress != nil {
		fmt.Fprintf(w, "progress: %s\n", j.what())
	}
	if s := summary(j.Result); s != "" {
		fmt.Fprintf(w, "result:   %s\n", printable(s))
	}
	var lists map[string]json.RawMessage
	if json.Unmarshal(j.Result, &lists) == nil {
		for name, raw := range lists {
			var lines []string
			if json.Unmarshal(raw, &lines) == nil {
				for _, line := range lines {
					fmt.Fprintf(w, "%s: %s\n", name, printable(line))
				}
			}
		}
	}
	for line := range strings.SplitSeq(j.Error, "\n") {
		if line != "" {
			fmt.Fprintf(w, "error:    %s\n", printable(line))
		}
	}
	return nil
}

func cancelJobs(cmd *cobra.Command, args []string) error {
	cl, err := newClient(cmd)
	if err != nil {
		return err
	}
	return eachName(cmd, "cancelled", args, nil, func(name string) (string, error) {
		if err := cl.call(cmd.Context(), http.MethodDelete, jobsPath+"/"+escape(name), nil, nil, nil); err != nil {
			return "", fmt.Errorf("not cancelled: %w", err)
		}
		return "cancelled " + printable(name), nil
	})
}

func waitJob(cmd *cobra.Command, args []string) error {
	cl, err := newClient(cmd)
	if err != nil {
		return err
	}
	j, err := getJob(cmd.Context(), cl, args[0])
	if err != nil {
		return err
	}
	return follow(cmd, cl, j)
}

// await waits for the end of a run, which it does not end itself.
func await(cmd *cobra.Command, cl *client, j jobInfo) (jobInfo, error) {
	bars, id := newProgress(cmd, jsonWanted(cmd)), j.ID
	var b *bar
	for pause := 50 * time.Millisecond; j.State == store.JobRunning; pause = min(2*pause, time.Second) {
		if p := j.Progress; p != nil {
			if b == nil {
				b = bars.count(j.Kind, p.Unit)
			}
			b.left(time.Duration(p.Left) * time.Second)
			b.of(int64(p.Total))
			b.at(int64(p.Done))
		}
		var err error
		select {
		case <-time.After(pause):
			j, err = getJob(cmd.Context(), cl, id)
		case <-cmd.Context().Done():
			err = cmd.Context().Err()
		}
		if err != nil {
			if b != nil {
				b.end(err)
			}
			bars.wait()
			if errors.Is(err, context.Canceled) {
				return j, &exitError{exitInterrupted, fmt.Errorf("interrupted; the job goes on: cairn jobs wait %s", id)}
			}
			return j, err
		}
	}
	if b != nil {
		b.end(nil)
	}
	bars.wait()
	return j, nil
}

// follow waits for the end of a run and prints what came of it.
func follow(cmd *cobra.Command, cl *client, j jobInfo) error {
	j, err := await(cmd, cl, j)
	if err != nil {
		return err
	}
	if jsonWanted(cmd) {
		if err := printJSON(cmd, j); err != nil {
			return err
		}
	} else if _, err := fmt.Fprintf(cmd.OutOrStdout(), "%s %s %s: %s\n", printable(j.State), printable(j.Kind), j.ID, cmp.Or(j.what(), "nothing is known of what it did")); err != nil {
		return err
	}
	if j.State != store.JobDone {
		return &exitError{code: exitFailed}
	}
	return nil
}

func jobKinds(context.Context, *client, string) ([]string, error) {
	return []string{store.JobCheckIndex, store.JobCollect, store.JobDrain, store.JobRaise, store.JobRebalance, store.JobRepair, store.JobScrub, store.JobSnapshot, store.JobUsage}, nil
}

func jobIDs(ctx context.Context, cl *client, _ string) ([]string, error) {
	return idsOf(ctx, cl, url.Values{})
}

func runningIDs(ctx context.Context, cl *client, _ string) ([]string, error) {
	return idsOf(ctx, cl, url.Values{"state": {store.JobRunning}})
}

func idsOf(ctx context.Context, cl *client, query url.Values) ([]string, error) {
	all, err := jobsOf(ctx, cl, query, 200)
	out := make([]string, len(all))
	for i, j := range all {
		out[i] = j.ID
	}
	return out, err
}
