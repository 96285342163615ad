// Command cairn is the store's one program: the server, its client, and the
// tools that work on a data directory. It wires the packages together; flags,
// environment, signals, output and exit codes are its own matters.
//
// Exit codes: 0 done, 1 the operation failed, 2 the command line or the configuration is wrong,
// 3 could not reach or open what was asked for, or a newer version wrote it, 130 interrupted. `verify` and `scrub` have their
// own, given in their help.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"strconv"
	"strings"
	"syscall"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"cairn/id"
)

// version is set when the program is built.
var version = "dev"

// Exit codes.
const (
	exitFailed  = 1
	exitUsage   = 2
	exitNoReach = 3

	exitInterrupted = 130 // as shells have it
)

// exitError carries an exit code; silent when everything was said already.
type exitError struct {
	code int
	err  error
}

func (e *exitError) Error() string {
	if e.err == nil {
		return ""
	}
	return e.err.Error()
}
func (e *exitError) Unwrap() error { return e.err }

func main() {
	// A core file would hold keys.
	_ = unix.Setrlimit(unix.RLIMIT_CORE, &unix.Rlimit{})
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, stop) // a second signal ends the process
	os.Exit(run(ctx, os.Args[1:]))
}

// usageExit annotates a command whose exit code 2 means something else.
const usageExit = "usage exit code"

func run(ctx context.Context, args []string) int {
	root := newRoot()
	root.SetArgs(args)
	cmd, err := root.ExecuteContextC(ctx)
	if err == nil {
		return 0
	}
	code, hint := exitFailed, ""
	if e, ok := errors.AsType[*exitError](err); ok {
		code = e.code
	} else if errors.Is(err, context.Canceled) && ctx.Err() != nil {
		code, err = exitInterrupted, errors.New("interrupted")
	} else if errors.Is(err, id.ErrNewer) { // nothing was done, and nothing is damaged
		code = exitNoReach
	} else if !started { // cobra refused the command line
		code, hint = exitUsage, "\nSee `"+cmd.CommandPath()+" --help`."
	}
	if n, aerr := strconv.Atoi(cmd.Annotations[usageExit]); aerr == nil && code == exitUsage && !started {
		code = n
	}
	switch {
	case err.Error() == "":
	case jsonWanted(cmd):
		object := map[string]any{"error": err.Error(), "exit_code": code}
		if e, ok := errors.AsType[*remoteError](err); ok {
			object["status"], object["type"] = e.Status, e.Type
		}
		_ = json.NewEncoder(os.Stderr).Encode(object) // there is nowhere else to say it
	default:
		fmt.Fprintln(os.Stderr, "cairn: "+err.Error()+hint)
	}
	return code
}

// parent makes a command that only holds others say so when it is called alone.
func parent(c *cobra.Command) *cobra.Command {
	c.Args = cobra.ArbitraryArgs
	c.RunE = func(cmd *cobra.Command, args []string) error {
		if len(args) == 0 {
			return errors.New(cmd.CommandPath() + " needs a command")
		}
		return fmt.Errorf("unknown command %q for %q", args[0], cmd.CommandPath())
	}
	return c
}

// started is set once a command's own code runs.
var started bool

// do marks a command as started: errors from here on are not about usage.
func do(fn func(cmd *cobra.Command, args []string) error) func(*cobra.Command, []string) error {
	return func(cmd *cobra.Command, args []string) error {
		started = true
		return fn(cmd, args)
	}
}

func newRoot() *cobra.Command {
	root := &cobra.Command{
		Use:   "cairn",
		Short: "A self-hosted, content-addressed, encrypted and erasure-coded store",
		Long: `Cairn keeps files: cut into chunks, stored once, encrypted, erasure-coded over nodes.

  cairn serve --data ./data          begin or serve a store on this machine
  cairn put FILE main/NAME           store a file
  cairn get main/NAME -              read it back
  cairn status                       what the store survives right now

Exit codes: 0 done, 1 failed, 2 the command line or the configuration is wrong, 3 could not reach or open what was asked for,
130 interrupted. What a command means by others, its own help says.`,
		// What no flag says may come from the environment or the configuration file.
		PersistentPreRunE: func(cmd *cobra.Command, _ []string) error {
			if err := configure(cmd); err != nil {
				return &exitError{exitUsage, err}
			}
			return nil
		},
		SilenceUsage:  true,
		SilenceErrors: true,
		Version:       version,
	}
	root.PersistentFlags().String("config", "", "configuration file (default "+configName+" in the configuration directory; $CAIRN_CONFIG)")
	root.AddGroup(&cobra.Group{ID: "server", Title: "Server:"}, &cobra.Group{ID: "objects", Title: "Buckets and objects:"},
		&cobra.Group{ID: "care", Title: "Care of the store:"}, &cobra.Group{ID: "offline", Title: "On a data directory, while nothing serves it:"},
		&cobra.Group{ID: "program", Title: "This program:"})
	add := func(group string, cmds ...*cobra.Command) {
		for _, c := range cmds {
			c.GroupID = group
			root.AddCommand(c)
		}
	}
	add("server", newServe(), newHealth())
	add("objects", newBucket(), newPut(), newGet(), newList(), newStat(), newCopy(), newMove(), newRemove(), newUndelete(), newLock(), newHold(), newSync(), newUploads())
	add("care", newStatus(), newDf(), newNodes(), newRebalance(), newScrub(), newDamaged(), newCollect(), newJobs(), newEvents(), newKeys(), newDoctor(), newDrill())
	add("offline", newReclaim(), newVerify(), newRebuild(), newExportIndex())
	add("program", newConfig(), newMan(), newVersion())
	root.SetHelpCommandGroupID("program")
	root.SetCompletionCommandGroupID("program")
	for path, c := range map[string]struct {
		from, to int // arguments, counted from 0; to -1: all that follow
		names    completer
	}{
		"put": {1, -1, objectNames}, "get": {0, 0, objectNames}, "ls": {0, 0, objectNames}, "stat": {0, 0, objectNames}, "undelete": {0, 0, objectNames},
		"cp": {0, 1, objectNames}, "mv": {0, 1, objectNames}, "rm": {0, -1, objectNames}, "bucket set": {0, 0, bucketNames}, "bucket rm": {0, 0, bucketNames}, "nodes replace": {0, -1, nodeNames}, "df": {0, -1, bucketNames},
		"jobs start": {0, 0, jobKinds}, "jobs show": {0, 0, jobIDs}, "jobs cancel": {0, -1, runningIDs}, "jobs wait": {0, 0, runningIDs},
	} {
		if cmd, _, err := root.Find(strings.Fields(path)); err == nil {
			completes(cmd, c.from, c.to, c.names)
		}
	}
	root.InitDefaultHelpCmd()
	if help, _, err := root.Find([]string{"help"}); err == nil {
		help.Run, help.RunE = nil, func(cmd *cobra.Command, args []string) error {
			topic, rest, err := cmd.Root().Find(args)
			if err != nil || len(rest) > 0 {
				return fmt.Errorf("unknown command %q", strings.Join(args, " "))
			}
			topic.InitDefaultHelpFlag()
			return topic.Help()
		}
	}
	return root
}

func newVersion() *cobra.Command {
	cmd := &cobra.Command{
		Use: "version", Short: "Print the version", Args: cobra.NoArgs,
		RunE: do(func(cmd *cobra.Command, _ []string) error {
			if jsonWanted(cmd) {
				return printJSON(cmd, map[string]string{"version": version})
			}
			_, err := fmt.Fprintln(cmd.OutOrStdout(), "cairn "+version)
			return err
		}),
	}
	cmd.Flags().Bool("json", false, "print JSON")
	return cmd
}
