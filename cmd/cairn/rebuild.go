package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"math"
	"os"
	"runtime/debug"
	"slices"
	"time"

	"github.com/dustin/go-humanize"
	"github.com/spf13/cobra"

	"cairn/datadir"
	"cairn/id"
	"cairn/store"
)

// offline adds the flags of commands that work on a data directory.
func offline(cmd *cobra.Command) *cobra.Command {
	cmd.Flags().String("data", "", "data directory (required)")
	cmd.Flags().String("key-file", "", "key file (default CLUSTER.key in the configuration directory)")
	cmd.Flags().String("memory", "512MiB", "memory that the collector keeps the process to, as far as it can")
	cmd.Flags().Bool("json", false, "print JSON")
	unlockFlags(cmd)
	settings(cmd.Flags(), serveSection, "data", "key-file", "memory")
	_ = cmd.MarkFlagRequired("data")
	return cmd
}

// openOffline opens a data directory that nothing serves.
func openOffline(cmd *cobra.Command) (*datadir.Dir, *slog.Logger, error) {
	text, _ := cmd.Flags().GetString("memory")
	memory, err := humanize.ParseBytes(text)
	if err != nil || memory < 128<<20 || memory > 1<<42 {
		return nil, nil, &exitError{exitUsage, fmt.Errorf("--memory %q is not a size of at least 128MiB", text)}
	}
	debug.SetMemoryLimit(int64(memory))
	config, err := configDir()
	if err != nil {
		return nil, nil, err
	}
	logger := slog.New(slog.NewTextHandler(cmd.ErrOrStderr(), &slog.HandlerOptions{Level: slog.LevelWarn}))
	o := datadir.Options{Config: config, Log: logger}
	o.Dir, _ = cmd.Flags().GetString("data")
	o.KeyFile, _ = cmd.Flags().GetString("key-file")
	if o.Unlock, err = unlockWith(cmd); err != nil {
		return nil, nil, err
	}
	dir, err := datadir.Open(cmd.Context(), o)
	if err != nil {
		return nil, nil, &exitError{exitNoReach, err}
	}
	return dir, logger, nil
}

func newRebuild() *cobra.Command {
	cmd := offline(&cobra.Command{
		Use: "rebuild", Short: "Make the index anew from the nodes", Args: cobra.NoArgs,
		Long: `Make the index anew: load the newest snapshot of it that can be read from the nodes, and replay the log behind it.
A server does the same by itself when it starts without an index; this is for doing it beforehand, with progress, or for
an index that is there and not trusted. The new index takes the old one's place, which is kept beside it; until then the
old one is not touched. A rebuild that was cut short goes on where it was.

An index that a newer version wrote is not replaced. Nor is one that has applied more than the nodes hold, and a part of the log that
cannot be read any more stops it: with the nodes that are missing all is well again.

--accept-loss is the word that they are not coming back. The rebuild goes past what cannot be read and names the sequences and
the time that are lost: what was written, deleted or set then, and stands nowhere else, is undone. Objects that need what came
with it are damaged, and named; storing the same bytes again heals them, and so does "cairn scrub", as far as what they need lies on the nodes
still. The store says so from then on (cairn status). An index that is ahead of the nodes is replaced and kept beside. Nothing on
a node is changed. While more log nodes are silent than the store survives nothing is given up, nor while the index that is
there is whole and knows what cannot be read: a server starts with it.

The newest log packs are left to the next start when a shard of theirs is missing: whether they were acknowledged is
decided then.

With --to an index of the past is made in the directory that --index names, for looking back with export-index.`,
		Example: "  cairn rebuild --data /srv/cairn\n  cairn rebuild --data /srv/cairn --to 81200 --index /tmp/past\n  cairn rebuild --data /srv/cairn --accept-loss",
		RunE:    do(runRebuild),
	})
	cmd.Flags().String("index", "", "make the index in this directory and leave DIR/index alone")
	cmd.Flags().Uint64("to", 0, "stop behind the log pack with this sequence (with --index)")
	cmd.Flags().Bool("accept-loss", false, "go past what cannot be read of the log, for good")
	cmd.Flags().Bool("whole-log", false, "replay the log from its beginning, without a snapshot")
	return cmd
}

func runRebuild(cmd *cobra.Command, _ []string) error {
	to, _ := cmd.Flags().GetUint64("to")
	path, _ := cmd.Flags().GetString("index")
	whole, _ := cmd.Flags().GetBool("whole-log")
	accept, _ := cmd.Flags().GetBool("accept-loss")
	if to != 0 && path == "" {
		return &exitError{exitUsage, errors.New("--to goes with --index: a store that starts on an index of the past replays the log to its end")}
	}
	if to != 0 && accept {
		return &exitError{exitUsage, errors.New("--to does not go with --accept-loss: what is given up is given up up to the log's end")}
	}
	dir, logger, err := openOffline(cmd)
	if err != nil {
		return err
	}
	defer dir.Close()
	place := path == ""
	if place {
		if _, err := checkNotAhead(dir, logger, math.MaxUint64, accept); err != nil {
			return err
		}
		path = dir.RebuildDir()
	}
	_, err = os.Stat(path)
	begun := errors.Is(err, fs.ErrNotExist)
	began := time.Now()
	rebuild := func() (store.Rebuilt, error) {
		engine, err := dir.OpenIndexAt(path, 64<<20)
		if err != nil {
			return store.Rebuilt{}, err
		}
		return store.Rebuild(cmd.Context(), store.Config{Cluster: dir.Cluster, Nodes: dir.Stores(), Absent: dir.Absent, Keyring: dir.Keyring, Engine: engine,
			Log: logger, WholeLog: whole, AcceptLoss: accept, Progress: tellProgress(cmd.ErrOrStderr(), jsonWanted(cmd))}, to)
	}
	out, err := rebuild()
	left := place && !begun && err != nil && !errors.Is(err, store.ErrUnavailable) && !errors.Is(err, id.ErrNewer) && cmd.Context().Err() == nil
	if place && badIndex(err) || left {
		// What an earlier rebuild has left is only half an index, and not a good one, or not
		// of this log: nobody needs it.
		logger.Warn("what an earlier rebuild has left cannot be gone on with; it is removed", "err", err)
		if err := os.RemoveAll(path); err != nil {
			return err
		}
		out, err = rebuild()
	}
	if err == nil && place && !accept && !begun && len(out.Losses) > 0 {
		// A rebuild with --accept-loss was cut short. What it gave up, this one does not; what
		// a snapshot says was given up comes again.
		if err := os.RemoveAll(path); err != nil {
			return err
		}
		out, err = rebuild()
	}
	if err != nil {
		if begun && errors.Is(err, id.ErrNewer) {
			err = errors.Join(err, os.RemoveAll(path)) // nothing that this build could go on with
		}
		if errors.Is(err, store.ErrUnavailable) {
			return &exitError{exitNoReach, fmt.Errorf("%w; bring the node directories back and run it again", err)}
		}
		return err
	}
	aside, ahead := "", uint64(0)
	if place && len(out.Skipped) > 0 {
		if err := checkNotKnown(cmd.Context(), dir, logger, out.Skipped[len(out.Skipped)-1].To); err != nil {
			return errors.Join(err, os.RemoveAll(path))
		}
	}
	if place {
		if ahead, err = checkNotAhead(dir, logger, out.Tail, accept); err != nil {
			return err
		}
		if aside, err = dir.TakeRebuilt(); err != nil {
			return err
		}
		path = dir.IndexDir()
	}
	if jsonWanted(cmd) {
		return printJSON(cmd, struct {
			store.Rebuilt
			Index   string  `json:"index"`
			Aside   string  `json:"aside,omitempty"`
			Seconds float64 `json:"seconds"`
			// The old index had applied as much; what is beyond the tail is given up.
			Ahead uint64 `json:"ahead,omitempty"`
		}{out, path, aside, time.Since(began).Seconds(), ahead})
	}
	w := cmd.OutOrStdout()
	from := "the whole log"
	if out.Snapshot > 0 {
		from = fmt.Sprintf("snapshot %d (%s rows) and the log behind it", out.Snapshot, humanize.Comma(int64(out.Rows)))
	}
	fmt.Fprintf(w, "index at sequence %d of %d, from %s, in %v: %s\n", out.Sequence, out.Tail, from, time.Since(began).Round(time.Millisecond), path)
	if out.Held {
		fmt.Fprintln(w, "what follows is left to the next start: a shard of the newest log pack is missing")
	}
	if err := tellLoss(w, out, ahead); err != nil {
		return err
	}
	if out.Mismatches > 0 && len(out.Losses) > 0 {
		fmt.Fprintf(w, "%d records found something else than they name, and were redone as far as they could be; all counts were made anew\n", out.Mismatches)
	} else if out.Mismatches > 0 {
		fmt.Fprintf(w, "%d records found something else than they name: an index of the past was damaged; all counts were made anew\n", out.Mismatches)
	}
	if aside != "" {
		fmt.Fprintf(w, "the index before it is kept as %s\n", aside)
	}
	return nil
}

// lossInfo is a run of log packs that was given up.
type lossInfo store.LossRange

func (l lossInfo) String() string {
	out := fmt.Sprintf("sequences %d to %d of the log", l.From, l.To)
	if l.From == l.To {
		out = fmt.Sprintf("sequence %d of the log", l.From)
	}
	if l.Before.IsZero() {
		return out + ", its beginning, until " + l.After.Local().Format(time.DateTime)
	}
	return fmt.Sprintf("%s, between %s and %s", out, l.Before.Local().Format(time.DateTime), l.After.Local().Format(time.DateTime))
}

// tellLoss says what a rebuild has given up, and what became of it.
func tellLoss(w io.Writer, out store.Rebuilt, ahead uint64) error {
	for _, l := range out.Losses {
		if slices.Contains(out.Skipped, l) {
			fmt.Fprintf(w, "GIVEN UP: %s: what only stood there is undone\n", lossInfo(l))
		} else {
			fmt.Fprintf(w, "given up on %s already: %s\n", l.Accepted.Local().Format(time.DateTime), lossInfo(l))
		}
	}
	if ahead > 0 {
		fmt.Fprintf(w, "GIVEN UP: sequences %d to %d, which only the index before this one knew\n", out.Tail+1, ahead)
	}
	if len(out.Losses) == 0 {
		return nil
	}
	for _, n := range out.Silent {
		fmt.Fprintf(w, "no answer from node %s: what is lost may be there\n", n)
	}
	if out.Damaged == nil {
		fmt.Fprintln(w, "what is damaged is known once the server has started: cairn damaged, and cairn scrub --deep for what only the nodes tell")
		return nil
	}
	lost := lostObjects{Count: out.Damaged.Count, Looked: out.Damaged.Looked}
	for _, o := range out.Damaged.Objects {
		lost.Objects = append(lost.Objects, lostObject(o))
	}
	if err := printLost(w, lost); err != nil {
		return err
	}
	fmt.Fprintln(w, "that is as far as the index knows: what was lost may have moved or removed what it still names")
	fmt.Fprintln(w, "start the server and run cairn scrub --deep: it finds what lies on the nodes still, and all else that is damaged; cairn damaged names what is left")
	return nil
}

// checkNotKnown refuses to give up sequences that the index which is there knows: with it
// a server starts, and puts snapshots behind them.
func checkNotKnown(ctx context.Context, dir *datadir.Dir, logger *slog.Logger, to uint64) error {
	if _, err := os.Stat(dir.IndexDir()); err != nil {
		return nil // there is none
	}
	engine, err := dir.OpenIndexAt(dir.IndexDir(), 32<<20)
	if err != nil {
		return nil // nothing can be read from it
	}
	known, err := store.KnownOffline(ctx, store.Config{Cluster: dir.Cluster, Keyring: dir.Keyring, Engine: engine, Log: logger}, to)
	if cerr := context.Cause(ctx); cerr != nil {
		return cerr
	}
	if err != nil || !known {
		return nil // a damaged index is no reason
	}
	return fmt.Errorf("nothing is given up: the index in %s is whole, and knows what cannot be read of the log. Start the server with it; it takes snapshots, behind which that log is not needed. "+
		"If this index is not to be believed, move it away and run this again", dir.IndexDir())
}

// checkNotAhead refuses to replace an index that knows of more than the nodes do, for
// it may be the only record of what is missing on them, and one of a newer version. With
// accept the first is given up; ahead is then how far it was.
func checkNotAhead(dir *datadir.Dir, logger *slog.Logger, tail uint64, accept bool) (ahead uint64, err error) {
	if _, err := os.Stat(dir.IndexDir()); err != nil {
		return 0, nil // there is none
	}
	engine, err := dir.OpenIndexAt(dir.IndexDir(), 32<<20)
	if err != nil {
		return 0, nil // nothing can be read from it
	}
	seq, err := store.HeadOffline(store.Config{Cluster: dir.Cluster, Keyring: dir.Keyring, Engine: engine, Log: logger})
	switch {
	case errors.Is(err, id.ErrNewer):
		return 0, fmt.Errorf("%w; or move %s away: it is made anew from the log", err, dir.IndexDir())
	case err != nil || seq <= tail:
		return 0, nil
	case accept:
		return seq, nil
	}
	return 0, fmt.Errorf("the index that is there has applied sequence %d, the log on the nodes ends at %d: sequences %d to %d are missing on the nodes, and it is the only record of them. "+
		"Bring those nodes back. If they are lost for good, give these sequences up: cairn rebuild --data DIR --accept-loss; %s is kept beside", seq, tail, tail+1, seq, dir.IndexDir())
}

// tellProgress prints how far a rebuild is, at most once a second.
func tellProgress(w io.Writer, json bool) func(string, uint64, uint64) {
	if json {
		return nil
	}
	last := time.Now()
	return func(what string, done, of uint64) {
		if time.Since(last) < time.Second {
			return
		}
		last = time.Now()
		switch what {
		case "load":
			fmt.Fprintf(w, "loading: %s of %s rows\n", humanize.Comma(int64(done)), humanize.Comma(int64(of)))
		case "replay":
			fmt.Fprintf(w, "replaying: sequence %d of %d\n", done, of)
		}
	}
}

func newExportIndex() *cobra.Command {
	cmd := offline(&cobra.Command{
		Use: "export-index [FILE|-]", Short: "Write the index's rows, as snapshots hold them", Args: cobra.MaximumNArgs(1),
		Long: `Write all rows of the index, in order and in the clear, in the form that docs/formats/index.md describes: the same
bytes for every index that has applied the same log, whatever engine holds it. The rows are proved while they are read:
an index that is damaged gives an error and no export. OBJECT KEYS ARE IN IT.`,
		Example: "  cairn export-index --data /srv/cairn index.cbor\n  cairn export-index --data /srv/cairn --index /tmp/past - | sha256sum",
		RunE:    do(runExportIndex),
	})
	cmd.Flags().String("index", "", "the index in this directory (default DIR/index)")
	return cmd
}

func runExportIndex(cmd *cobra.Command, args []string) (err error) {
	dir, logger, err := openOffline(cmd)
	if err != nil {
		return err
	}
	defer dir.Close()
	path, _ := cmd.Flags().GetString("index")
	if path == "" {
		path = dir.IndexDir()
	}
	if _, err := os.Stat(path); err != nil {
		return fmt.Errorf("there is no index: %w (cairn rebuild makes it anew)", err)
	}
	engine, err := dir.OpenIndexAt(path, 64<<20)
	if err != nil {
		return err
	}
	out := cmd.OutOrStdout()
	name := "-"
	if len(args) == 1 {
		name = args[0]
	}
	var file *os.File
	if name != "-" {
		if file, err = os.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600); err != nil {
			engine.Close()
			return err
		}
		out = file
	}
	buf := bufio.NewWriterSize(out, 256<<10)
	e, err := store.ExportIndexOffline(cmd.Context(), store.Config{Cluster: dir.Cluster, Keyring: dir.Keyring, Engine: engine, Log: logger}, buf)
	err = errors.Join(err, buf.Flush())
	if file != nil {
		err = errors.Join(err, file.Sync(), file.Close())
	}
	if err != nil {
		if file != nil {
			err = errors.Join(err, os.Remove(name)) // without its end it is none
		}
		return err
	}
	if jsonWanted(cmd) && file != nil {
		return printJSON(cmd, map[string]any{"sequence": e.Head.Seq, "rows": e.Rows, "bytes": e.Bytes, "blake3": fmt.Sprintf("%x", e.Sum)})
	}
	fmt.Fprintf(cmd.ErrOrStderr(), "index at sequence %d: %s rows, %s\n", e.Head.Seq, humanize.Comma(int64(e.Rows)), humanize.IBytes(e.Bytes))
	return nil
}
