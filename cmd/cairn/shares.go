package main

import (
	"cmp"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"text/tabwriter"
	"time"

	"github.com/dustin/go-humanize"
	"github.com/spf13/cobra"

	"cairn/store"
)

type (
	shareInfo struct {
		Name      string `json:"name,omitempty"`
		Logical   uint64 `json:"logical_bytes"`
		Chunks    uint64 `json:"chunks"`
		Sealed    uint64 `json:"compressed_bytes"`
		Exclusive uint64 `json:"exclusive_bytes"`
		Fair      uint64 `json:"fair_share_bytes"`
	}
	sharesInfo struct {
		Job      string      `json:"job"`
		Time     time.Time   `json:"time"`
		Sequence uint64      `json:"sequence"`
		Own      shareInfo   `json:"own"`
		Buckets  []shareInfo `json:"buckets"`
	}
)

// runShares computes what each bucket makes of the store, and prints it of those that
// are named, or of all.
func runShares(cmd *cobra.Command, names []string) error {
	cl, err := newClient(cmd)
	if err != nil {
		return err
	}
	j, err := startAlone(cmd, cl, map[string]any{"kind": store.JobUsage})
	if err != nil {
		return err
	}
	if j, err = await(cmd, cl, j); err != nil {
		return err
	}
	if j.State != store.JobDone {
		return errors.New(cmp.Or(printable(j.Error), "the job was cancelled"))
	}
	var all sharesInfo
	for query, more := (url.Values{}), true; more; {
		var p struct {
			sharesInfo
			More   bool   `json:"more"`
			Cursor string `json:"cursor"`
		}
		if err := cl.call(cmd.Context(), http.MethodGet, "/v1/usage/buckets", query, nil, &p); err != nil {
			return err
		}
		p.Buckets = append(all.Buckets, p.Buckets...)
		all, more = p.sharesInfo, p.More
		query.Set("cursor", p.Cursor)
	}
	if len(names) > 0 {
		for _, name := range names {
			if !slices.ContainsFunc(all.Buckets, func(s shareInfo) bool { return s.Name == name }) {
				return fmt.Errorf("no bucket is called %s", printable(name))
			}
		}
		all.Buckets = slices.DeleteFunc(all.Buckets, func(s shareInfo) bool { return !slices.Contains(names, s.Name) })
	}
	if jsonWanted(cmd) {
		if all.Buckets == nil {
			all.Buckets = []shareInfo{}
		}
		return printJSON(cmd, all)
	}
	w := tabwriter.NewWriter(cmd.OutOrStdout(), 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(w, "LOGICAL\tCOMPRESSED\tEXCLUSIVE\tFAIR SHARE\t  BUCKET")
	line := func(s shareInfo, name string) {
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t  %s\n", humanize.IBytes(s.Logical), humanize.IBytes(s.Sealed), humanize.IBytes(s.Exclusive), humanize.IBytes(s.Fair), name)
	}
	for _, s := range all.Buckets {
		line(s, printable(s.Name))
	}
	if len(names) == 0 {
		line(all.Own, "(the store's own: uploads, requests, jobs)")
	}
	return w.Flush()
}

// startAlone starts a run of a job. One that is under way was told something else, or
// began too early: it is waited for.
func startAlone(cmd *cobra.Command, cl *client, want map[string]any) (j jobInfo, err error) {
	for tries := 0; ; tries++ {
		err = cl.call(cmd.Context(), http.MethodPost, jobsPath, nil, want, &j)
		e, ok := errors.AsType[*remoteError](err)
		if !ok || e.Status != http.StatusConflict || tries == 3 {
			return j, err
		}
		running, err := jobsOf(cmd.Context(), cl, url.Values{"kind": {fmt.Sprint(want["kind"])}, "state": {store.JobRunning}}, 1)
		if err != nil {
			return j, err
		}
		if len(running) > 0 {
			if _, err := await(cmd, cl, running[0]); err != nil {
				return j, err
			}
		}
	}
}
