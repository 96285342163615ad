package main

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"math"
	"os"
	"runtime/debug"
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

An index that a newer version wrote is not replaced.

The newest log packs are left to the next start when a shard of theirs is missing: whether they were acknowledged is
decided then.

With --to an index of the past is made in the directory that --index names, for looking back with export-index.`,
		Example: "  cairn rebuild --data /srv/cairn\n  cairn rebuild --data /srv/cairn --to 81200 --index /tmp/past",
		RunE:    do(runRebuild),
	})
	cmd.Flags().String("index", "", "make the index in this directory and leave DIR/index alone")
	cmd.Flags().Uint64("to", 0, "stop behind the log pack with this sequence (with --index)")
	cmd.Flags().Bool("whole-log", false, "replay the log from its beginning, without a snapshot")
	return cmd
}

func runRebuild(cmd *cobra.Command, _ []string) error {
	to, _ := cmd.Flags().GetUint64("to")
	path, _ := cmd.Flags().GetString("index")
	whole, _ := cmd.Flags().GetBool("whole-log")
	if to != 0 && path == "" {
		return &exitError{exitUsage, errors.New("--to goes with --index: a store that starts on an index of the past replays the log to its end")}
	}
	dir, logger, err := openOffline(cmd)
	if err != nil {
		return err
	}
	defer dir.Close()
	place := path == ""
	if place {
		if err := checkNotAhead(dir, logger, math.MaxUint64); err != nil {
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
			Log: logger, WholeLog: whole, Progress: tellProgress(cmd.ErrOrStderr(), jsonWanted(cmd))}, to)
	}
	out, err := rebuild()
	if place && badIndex(err) {
		// What an earlier rebuild has left is only half an index, and not a good one.
		logger.Warn("what an earlier rebuild has left cannot be gone on with; it is removed", "err", err)
		if err := os.RemoveAll(path); err != nil {
			return err
		}
		out, err = rebuild()
	}
	if err != nil {
		if begun && errors.Is(err, id.ErrNewer) {
			err = errors.Join(err, os.RemoveAll(path)) // nothing that this build could go on with
		}
		return err
	}
	aside := ""
	if place {
		if err := checkNotAhead(dir, logger, out.Tail); err != nil {
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
		}{out, path, aside, time.Since(began).Seconds()})
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
	if out.Mismatches > 0 {
		fmt.Fprintf(w, "%d records found something else than they name: an index of the past was damaged; all counts were made anew\n", out.Mismatches)
	}
	if aside != "" {
		fmt.Fprintf(w, "the index before it is kept as %s\n", aside)
	}
	return nil
}

// checkNotAhead refuses to replace an index that knows of more than the nodes do, for
// it may be the only record of what is missing on them, and one of a newer version.
func checkNotAhead(dir *datadir.Dir, logger *slog.Logger, tail uint64) error {
	if _, err := os.Stat(dir.IndexDir()); err != nil {
		return nil // there is none
	}
	engine, err := dir.OpenIndexAt(dir.IndexDir(), 32<<20)
	if err != nil {
		return nil // nothing can be read from it
	}
	seq, err := store.HeadOffline(store.Config{Cluster: dir.Cluster, Keyring: dir.Keyring, Engine: engine, Log: logger})
	if errors.Is(err, id.ErrNewer) {
		return fmt.Errorf("%w; or move %s away: it is made anew from the log", err, dir.IndexDir())
	}
	if err == nil && seq > tail {
		return fmt.Errorf("the index that is there has applied sequence %d, the log on the nodes ends at %d: sequences %d to %d are missing on the nodes, and it is the only record of them. "+
			"Bring those nodes back; or move %s away by hand and start again", seq, tail, tail+1, seq, dir.IndexDir())
	}
	return nil
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
