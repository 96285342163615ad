package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/dustin/go-humanize"
	"github.com/spf13/cobra"

	"cairn/store"
)

func newCollect() *cobra.Command {
	cmd := clientFlags(&cobra.Command{
		Use: "gc", Short: "Give back the space of what nothing refers to", Args: cobra.NoArgs,
		Long: `Remove chunks that no object refers to, drop packs in which none is left, write what is needed of sparse, small and narrow
packs into full ones, and cut off the log behind two snapshots of the index. The server does so by itself: soon when more
than a tenth of what is stored is waste, else hourly. A deleted object counts as referred to until it cannot be brought
back any more: 7 days in a bucket without versioning, for ever in others. What the rules of buckets let expire goes first,
see "cairn bucket lifecycle".

What is found without references waits an hour before it is removed; with --now it does not. What an upload or a download
under way may need is never removed: it waits until that has ended. Nodes keep the bytes of what was dropped for their own
keep time (24 h, of the log 1 h); "cairn reclaim --data DIR", on their host, cuts that short.

The server does this as a job, see "cairn jobs": ending this command does not end it.`,
		Example: "  cairn gc --dry-run\n  cairn gc --now\n  cairn gc --now --purge --rate 200MB --json",
		RunE:    do(runCollect),
	})
	cmd.Flags().Bool("now", false, "remove at once what is found, and rewrite more thoroughly")
	cmd.Flags().Bool("purge", false, "purge deleted objects in buckets without versioning: they cannot be brought back")
	cmd.Flags().Bool("dry-run", false, "say what there is to do, and change nothing")
	cmd.Flags().String("rate", "64MiB", "rewrite at most so many bytes per second; a quarter of it while clients are served")
	return cmd
}

func runCollect(cmd *cobra.Command, _ []string) error {
	text, _ := cmd.Flags().GetString("rate")
	rate, err := humanize.ParseBytes(text)
	if err != nil || rate == 0 {
		return &exitError{exitUsage, fmt.Errorf("--rate %s is no number of bytes: 64MiB, 100MB", text)}
	}
	want := map[string]any{"kind": store.JobCollect, "rate": rate}
	for flag, field := range map[string]string{"now": "now", "purge": "purge", "dry-run": "dry_run"} {
		if on, _ := cmd.Flags().GetBool(flag); on {
			want[field] = true
		}
	}
	cl, err := newClient(cmd)
	if err != nil {
		return err
	}
	j, err := startAlone(cmd, cl, want)
	if err != nil {
		return err
	}
	if j, err = await(cmd, cl, j); err != nil {
		return err
	}
	var r store.CollectResult
	known := j.Result != nil && json.Unmarshal(j.Result, &r) == nil
	if jsonWanted(cmd) {
		if err := printJSON(cmd, j); err != nil {
			return err
		}
	} else if known {
		printCollect(cmd.OutOrStdout(), r)
	}
	switch {
	case j.State == store.JobCancelled:
		return errors.New("the collection was cancelled; what it has done stays done")
	case j.State != store.JobDone:
		return errors.New(printable(j.Error))
	}
	return nil
}

func printCollect(w io.Writer, r store.CollectResult) {
	did := func(format string, args ...any) { fmt.Fprintf(w, format+"\n", args...) }
	if n := r.Expired + r.ExpiredVersions + r.ExpiredMarkers + r.Aborted; n > 0 {
		word := "expired:   "
		if r.DryRun {
			word = "to expire:  "
		}
		did("%s%s, %s below others, %s under which nothing lies, %s", word, plural(r.Expired, "object"), plural(r.ExpiredVersions, "version"), plural(r.ExpiredMarkers, "delete marker"), plural(r.Aborted, "upload"))
	}
	if r.DryRun {
		did("to purge:   %s", plural(r.Purged, "deleted object"))
		did("to condemn: %s without references, and %s wait to be removed, %s", plural(r.Condemned, "chunk"), plural(r.Waiting, "chunk"), humanize.IBytes(r.WaitingBytes))
		did("to drop:    %s and %s, %s with parity", plural(r.Dropped, "pack"), plural(r.DroppedLog, "log pack"), humanize.IBytes(r.DroppedBytes))
		did("to rewrite: %s, of which %s are needed", plural(r.Rewritten, "pack"), humanize.IBytes(r.ReadBytes))
	} else {
		if r.Purged > 0 {
			did("purged:    %s", plural(r.Purged, "deleted object"))
		}
		did("removed:   %s, %s", plural(r.Removed, "chunk"), humanize.IBytes(r.RemovedBytes))
		did("rewritten: %s of %s into %s, %s read, %s written", plural(r.Moved, "chunk"), plural(r.Rewritten, "pack"), plural(r.Written, "pack"), humanize.IBytes(r.ReadBytes), humanize.IBytes(r.WrittenBytes))
		did("dropped:   %s and %s, %s with parity, which the nodes give back after their keep time", plural(r.Dropped, "pack"), plural(r.DroppedLog, "log pack"), humanize.IBytes(r.DroppedBytes))
	}
	if r.Waiting > 0 && !r.DryRun {
		var why []string
		if r.WaitingUntil != nil && time.Until(*r.WaitingUntil) > 0 {
			why = append(why, "the first may go at "+r.WaitingUntil.Local().Format(time.DateTime)+", or now with --now")
		}
		if r.WaitingFor > 0 {
			why = append(why, fmt.Sprintf("for %s under way, the oldest for %v", plural(r.WaitingFor, "upload or download"), time.Duration(r.OldestSeconds*float64(time.Second)).Round(time.Second)))
		}
		did("waiting:   %s, %s: %s", plural(r.Waiting, "chunk"), humanize.IBytes(r.WaitingBytes), strings.Join(why, "; "))
	}
	if r.Unreadable > 0 {
		did("left:      %s with chunks that could not be read: cairn scrub --deep says why", plural(r.Unreadable, "pack"))
	}
	if r.NotTold > 0 {
		did("left:      %s on nodes that could not be told: a scrub removes them", plural(r.NotTold, "shard"))
	}
}
