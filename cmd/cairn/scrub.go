package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/dustin/go-humanize"
	"github.com/spf13/cobra"

	"cairn/store"
)

// Exit codes of scrub, beside 0 and 130.
const (
	scrubRepaired   = 1
	scrubLeft       = 2 // damaged, or lost
	scrubIncomplete = 3
)

func newScrub() *cobra.Command {
	cmd := clientFlags(&cobra.Command{
		Annotations: map[string]string{usageExit: "3"},
		Use:         "scrub", Short: "Read every shard, and repair what is missing or damaged", Args: cobra.NoArgs,
		Long: `Read every shard of every pack from its node and hold it against the digest in the log, while the server runs. What is
missing, rotten or other than it was written, on a node that is up, is made anew from other shards, written, read back and
logged, in the same pass. With --deep the parity is coded again too, every chunk is opened and its ID computed. What nodes hold
that is no part of the store, left by attempts that failed, is removed; they keep it for a day. Objects that are lost are
named, the first hundred of them ("cairn damaged" names all). With --dry-run nothing is repaired or removed, only told.

The server does this by itself too, see "cairn serve --help". It is a job, see "cairn jobs": ending this command does not end it, and when a scrub of the same depth is
under way, or a deep one, this command waits for that one, at its rate. A pass that was cancelled, or cut off by a stop of the server, goes
on where it was; what it says is of the whole pass.

Exit codes: 0 all is sound; 1 damage was found, and all of it repaired; 2 damage is left, or something is lost; 3 it could not
run, or not read everything: a node that could not be asked is no damage, and no proof of the contrary.`,
		Example: "  cairn scrub\n  cairn scrub --deep --rate 100MB --json",
		RunE: do(func(cmd *cobra.Command, _ []string) error {
			err := runScrub(cmd)
			if e, ok := errors.AsType[*exitError](err); err == nil || ok && (e.err == nil || e.code == exitInterrupted) || cmd.Context().Err() != nil {
				return err
			}
			return &exitError{scrubIncomplete, err}
		}),
	})
	cmd.Flags().Bool("dry-run", false, "repair and remove nothing; tell what would be")
	cmd.Flags().Bool("deep", false, "code the parity again, open every chunk and compute its ID")
	cmd.Flags().String("rate", "32MiB", "read at most so many bytes per second; a quarter of it while clients are served")
	return cmd
}

func runScrub(cmd *cobra.Command) error {
	deep, _ := cmd.Flags().GetBool("deep")
	dry, _ := cmd.Flags().GetBool("dry-run")
	text, _ := cmd.Flags().GetString("rate")
	rate, err := humanize.ParseBytes(text)
	if err != nil || rate == 0 {
		return fmt.Errorf("--rate %s is no number of bytes: 32MiB, 100MB", text)
	}
	cl, err := newClient(cmd)
	if err != nil {
		return err
	}
	var j jobInfo
	err = cl.call(cmd.Context(), http.MethodPost, jobsPath, nil, map[string]any{"kind": store.JobScrub, "deep": deep, "rate": rate, "dry_run": dry}, &j)
	if e, ok := errors.AsType[*remoteError](err); ok && e.Status == http.StatusConflict {
		j, err = joinScrub(cmd.Context(), cl, deep, dry, err)
	}
	if err != nil {
		return err
	}
	if j, err = await(cmd, cl, j); err != nil {
		return err
	}
	return reportScrub(cmd, cl, j)
}

// joinScrub finds the scrub that is under way, if it does what one of that depth does, and
// is a dry run if that is wanted.
func joinScrub(ctx context.Context, cl *client, deep, dry bool, conflict error) (jobInfo, error) {
	all, err := jobsOf(ctx, cl, url.Values{"kind": {store.JobScrub}}, 1)
	switch {
	case err != nil:
		return jobInfo{}, err
	case len(all) == 0:
		return jobInfo{}, conflict
	case all[0].Options != nil && all[0].Options.DryRun != dry:
		return jobInfo{}, fmt.Errorf("%w: of that one and this, one is a dry run; wait for it: cairn jobs wait %s", conflict, all[0].ID)
	case all[0].Options == nil || deep && !all[0].Options.Deep:
		return jobInfo{}, fmt.Errorf("%w: it is a light one; wait for it: cairn jobs wait %s", conflict, all[0].ID)
	}
	return all[0], nil
}

// scrubNames is how many lost objects a scrub names.
const scrubNames = 100

// reportScrub prints what a pass found, and chooses the exit code.
func reportScrub(cmd *cobra.Command, cl *client, j jobInfo) error {
	var r store.ScrubResult
	known := j.Result != nil && json.Unmarshal(j.Result, &r) == nil
	var lost *lostObjects
	if known && r.LostPacks+r.Broken > 0 {
		l, err := findLost(cmd.Context(), cl, scrubNames)
		if cmd.Context().Err() != nil {
			return err
		}
		if err != nil {
			fmt.Fprintln(cmd.ErrOrStderr(), "cairn: which objects are lost could not be found out: "+printable(err.Error()))
		} else {
			lost = &l
		}
	}
	if jsonWanted(cmd) {
		if err := printJSON(cmd, struct {
			jobInfo
			Lost *lostObjects `json:"lost_objects,omitempty"`
		}{j, lost}); err != nil {
			return err
		}
	} else if known {
		printScrub(cmd.OutOrStdout(), r)
		if lost != nil {
			if err := printLost(cmd.OutOrStdout(), *lost); err != nil {
				return err
			}
		}
	}
	if why := cmp.Or(j.Error, map[string]string{store.JobCancelled: "the scrub was cancelled"}[j.State]); why != "" && !jsonWanted(cmd) {
		for line := range strings.SplitSeq(why, "\n") {
			fmt.Fprintln(cmd.ErrOrStderr(), "cairn: "+printable(line))
		}
	}
	if code := scrubCode(known, r); code != 0 {
		return &exitError{code: code}
	}
	return nil
}

// scrubCode is the exit code for what a pass found. Damage that is left is told also
// when not everything could be read; what was repaired only when everything was.
func scrubCode(known bool, r store.ScrubResult) int {
	switch {
	case known && r.Left+r.LostPacks+r.Broken > 0:
		return scrubLeft
	case !known || !r.Complete:
		return scrubIncomplete
	case r.Damaged > 0:
		return scrubRepaired
	}
	return 0
}

func printScrub(w io.Writer, r store.ScrubResult) {
	depth, end := depthName(r.Deep), "complete"
	if !r.Complete {
		end = "NOT complete"
	}
	if r.DryRun {
		end += ", dry run"
	}
	fmt.Fprintf(w, "%s scrub, %s: %s, %s right, %s read in %v", depth, end, plural(r.Packs, "pack"), plural(r.Shards, "shard"), humanize.IBytes(r.Bytes), time.Duration(r.Seconds*float64(time.Second)).Round(time.Millisecond))
	if r.Deep {
		fmt.Fprintf(w, ", %s opened", plural(r.Chunks, "chunk"))
	}
	if r.Runs > 1 {
		fmt.Fprintf(w, ", in %d runs", r.Runs)
	}
	fmt.Fprintln(w)
	if r.Damaged > 0 || len(r.Damage) > 0 {
		var kinds []string
		for _, kind := range slices.Sorted(maps.Keys(r.Damage)) {
			kinds = append(kinds, fmt.Sprintf("%s %d", printable(kind), r.Damage[kind]))
		}
		fmt.Fprintf(w, "damaged: %d (%s); repaired: %d, left: %d\n", r.Damaged, strings.Join(kinds, ", "), r.Repaired, r.Left)
	}
	if r.LostPacks+r.Broken > 0 {
		fmt.Fprintf(w, "LOST: %s with %s that objects refer to, and %s in others\n", plural(r.LostPacks, "pack"), humanize.IBytes(r.LostBytes), plural(r.Broken, "chunk"))
		if r.LostBytes == 0 && r.Broken == 0 {
			fmt.Fprintln(w, "nothing that is stored needs them any more: the next collections remove them, cairn gc --now at once")
		}
	}
	if r.NotAsked > 0 {
		fmt.Fprintf(w, "could not ask for %s: see cairn status\n", plural(r.NotAsked, "shard"))
	}
	if r.NotListed > 0 {
		fmt.Fprintf(w, "could not ask %s what they hold: see cairn status\n", plural(r.NotListed, "node"))
	}
	if r.Found > 0 {
		fmt.Fprintf(w, "found again: %s that had been taken for lost\n", plural(r.Found, "chunk"))
	}
	if r.Orphans+r.Stale > 0 {
		what := "removed"
		if r.DryRun {
			what = "would be removed"
		}
		fmt.Fprintf(w, "%s: %s of no pack of the store, %s; needless copies of others: %d, %s\n", what, plural(r.Orphans, "shard"), humanize.IBytes(r.OrphanBytes), r.Stale, humanize.IBytes(r.StaleBytes))
	}
	if r.Foreign > 0 {
		fmt.Fprintf(w, "left alone: %s that this store did not write, %s\n", plural(r.Foreign, "shard"), humanize.IBytes(r.ForeignBytes))
	}
	if r.Undecided > 0 {
		fmt.Fprintf(w, "left to the next pass: %s that no pack of the store names now\n", plural(r.Undecided, "shard"))
	}
	for _, line := range r.Findings {
		fmt.Fprintln(w, "  "+printable(line))
	}
}
