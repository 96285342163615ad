package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/dustin/go-humanize"
	"github.com/spf13/cobra"

	"cairn/drill"
)

func newDrill() *cobra.Command {
	cmd := &cobra.Command{
		Use: "drill", Short: "Break a scratch store, or a copy of a store, and prove what was promised", Args: cobra.NoArgs,
		Long: `Begin a store in a scratch directory, write to it, break it in one way after the other (kill the server while it is written to,
delete directories of nodes and the index, flip bits, swap, cut and overwrite files, take keys away), and prove after each that what was
promised holds: what was acknowledged is read byte for byte, damage is found and repaired, and where more is destroyed than the store
survives, exactly the lost objects are named. Real processes of this program serve and are killed. For each way it prints
what was broken, how it was found, how long that took and what was read back.

With --data and --key-file a copy of that store is drilled. The store is only read, and locked meanwhile: stop its server first. The copy is
made twice, and read once or more in each scenario; it lies in the scratch directory with a copy of the key, and is removed in the end. Where
the filesystem shares blocks between files it takes no room. A configuration file and the environment say nothing to this command.

The same --seed breaks the same places. What needs root or another machine is not tried: --list says what, and which tests do.

Exit codes: 0 all that was tried is proven, 1 a promise was broken, 3 it could not run, or not to its end.`,
		Example: "  cairn drill\n  cairn drill --list\n  cairn drill --only lost-nodes,rot --size 1GiB --dir /mnt/scratch\n  cairn drill --data /srv/cairn --key-file cairn.key --dir /mnt/scratch --json",
		RunE:    do(runDrill),
	}
	f := cmd.Flags()
	f.String("dir", "", "make the scratch directory in this one (default: the system's for temporary files)")
	f.String("data", "", "drill a copy of the store in this data directory")
	f.String("key-file", "", "key file of that store")
	cmd.MarkFlagsRequiredTogether("data", "key-file")
	f.Uint64("seed", 0, "what chance decides, as an earlier drill printed it (default: another each time)")
	f.StringSlice("only", nil, "only these scenarios (see --list)")
	f.Bool("list", false, "list the scenarios, and what is not tried, and do nothing")
	f.String("size", humanize.IBytes(drill.DefaultSize), "write so much before anything is broken, beside what a copy holds")
	f.Bool("keep", false, "leave the scratch directory, without the copy of a key")
	f.Bool("json", false, "print JSON")
	return cmd
}

func runDrill(cmd *cobra.Command, _ []string) error {
	f := cmd.Flags()
	var cfg drill.Config
	cfg.Only, _ = f.GetStringSlice("only")
	scenarios, err := drill.Find(cfg.Only)
	if err != nil {
		return &exitError{exitUsage, fmt.Errorf("%w; cairn drill --list names them", err)}
	}
	if list, _ := f.GetBool("list"); list {
		return listDrill(cmd, scenarios)
	}
	text, _ := f.GetString("size")
	size, err := humanize.ParseBytes(text)
	if err != nil || size < drill.MinSize || size > drill.MaxSize {
		return &exitError{exitUsage, fmt.Errorf("--size %s is no size from %s to %s", text, humanize.IBytes(drill.MinSize), humanize.IBytes(drill.MaxSize))}
	}
	cfg.Size = int64(size)
	if cfg.Program, err = os.Executable(); err != nil {
		return &exitError{exitNoReach, err}
	}
	cfg.Scratch, _ = f.GetString("dir")
	cfg.Data, _ = f.GetString("data")
	cfg.KeyFile, _ = f.GetString("key-file")
	cfg.Keep, _ = f.GetBool("keep")
	cfg.Seed, _ = f.GetUint64("seed")
	if !f.Changed("seed") {
		cfg.Seed = uint64(rand.Uint32()) // short enough to be typed
	}
	out := cmd.OutOrStdout()
	if !jsonWanted(cmd) {
		fmt.Fprintf(out, "drill with --seed %d\n", cfg.Seed)
		cfg.Tell = func(r *drill.Result) { printDrilled(out, r) }
	}
	rep, err := drill.Run(cmd.Context(), cfg)
	if jsonWanted(cmd) && len(rep.Results) > 0 {
		err = errors.Join(err, printJSON(cmd, rep))
	} else if len(rep.Results) > 0 {
		summarize(out, rep)
	}
	if rep.Scratch != "" {
		fmt.Fprintln(cmd.ErrOrStderr(), "kept: "+rep.Scratch)
	}
	switch {
	case errors.Is(err, context.Canceled) && cmd.Context().Err() != nil:
		return err
	case rep.Counts[drill.Broken] > 0:
		return &exitError{exitFailed, err}
	case err != nil:
		return &exitError{exitNoReach, err}
	case rep.Counts[drill.NotRun] > 0:
		return &exitError{code: exitNoReach}
	}
	return nil
}

// listDrill prints what is tried, and what is not.
func listDrill(cmd *cobra.Command, scenarios []drill.Scenario) error {
	if jsonWanted(cmd) {
		return printJSON(cmd, map[string]any{"scenarios": scenarios, "not_tried": drill.NotTried()})
	}
	w := tabwriter.NewWriter(cmd.OutOrStdout(), 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "SCENARIO\tHAZARDS\tWHAT IS BROKEN")
	for _, s := range scenarios {
		fmt.Fprintf(w, "%s\t%s\t%s\n", s.Name, s.Hazards, s.Breaks)
	}
	fmt.Fprintln(w, "\nNOT TRIED\tHAZARDS\tWHY, AND WHAT TRIES IT")
	for _, u := range drill.NotTried() {
		fmt.Fprintf(w, "%s\t%s\t%s\n", u.What, u.Hazards, u.Why)
	}
	return w.Flush()
}

// words of outcomes, for people.
var outcomes = map[drill.Outcome]string{drill.Proven: "proven", drill.Broken: "BROKEN", drill.Skipped: "skipped", drill.NotRun: "COULD NOT RUN"}

// printDrilled prints what came of one scenario.
func printDrilled(w io.Writer, r *drill.Result) {
	fmt.Fprintf(w, "\n%s: %s (%s), %s\n", outcomes[r.Outcome], r.Name, r.Hazards, seconds(r.Seconds))
	fmt.Fprintf(w, "  %-10s %s\n  %-10s %s\n", "breaks", r.Breaks, "promise", r.Promise)
	for _, e := range r.Evidence {
		fmt.Fprintf(w, "  %-10s %s\n", e.Kind, printable(e.Text))
	}
	if r.Why != "" {
		for line := range strings.SplitSeq(r.Why, "\n") {
			fmt.Fprintf(w, "  %-10s %s\n", outcomes[r.Outcome], printable(line))
		}
	}
}

// summarize prints what a drill comes to.
func summarize(w io.Writer, rep drill.Report) {
	fmt.Fprintf(w, "\nSUMMARY\n%s with %d versions of objects, %s, was broken in %s, in %s; seed %d.\n", capital(rep.Store), rep.Objects, humanize.IBytes(uint64(rep.Size)),
		plural(len(rep.Results), "way"), seconds(rep.Seconds), rep.Seed)
	var read int
	var bytes int64
	for _, r := range rep.Results {
		read, bytes = read+r.Read, bytes+r.Bytes
	}
	fmt.Fprintf(w, "Promises kept: %d. Broken: %d. Could not be tried: %d. Left out on this store: %d.\n", rep.Counts[drill.Proven], rep.Counts[drill.Broken], rep.Counts[drill.NotRun], rep.Counts[drill.Skipped])
	fmt.Fprintf(w, "%s of objects were read back over HTTP, %s.\n", plural(read, "version"), humanize.IBytes(uint64(bytes)))
	for _, r := range rep.Results {
		if r.Outcome != drill.Proven {
			line, _, _ := strings.Cut(cmp.Or(r.Why, r.Promise), "\n")
			fmt.Fprintf(w, "  %s: %s: %s\n", outcomes[r.Outcome], r.Name, printable(line))
		}
	}
	fmt.Fprintln(w, "No drill tries these (cairn drill --list says why):")
	for _, u := range rep.NotTried {
		fmt.Fprintf(w, "  %s\n", u.What)
	}
}

func capital(s string) string { return strings.ToUpper(s[:1]) + s[1:] }

func seconds(s float64) string {
	return time.Duration(s * float64(time.Second)).Round(100 * time.Millisecond).String()
}
