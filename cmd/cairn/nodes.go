package main

import (
	"encoding/json"
	"fmt"
	"net/http"
	"path/filepath"
	"strconv"

	"github.com/dustin/go-humanize"
	"github.com/spf13/cobra"

	"cairn/store"
)

func newNodes() *cobra.Command {
	c := parent(&cobra.Command{Use: "nodes", Short: "List, add, drain, remove and replace nodes; how many may be lost"})
	c.AddCommand(clientFlags(&cobra.Command{
		Use: "list", Aliases: []string{"ls"}, Short: "List the nodes", Args: cobra.NoArgs, Example: "  cairn nodes list",
		RunE: do(func(cmd *cobra.Command, _ []string) error {
			cl, err := newClient(cmd)
			if err != nil {
				return err
			}
			var out struct {
				Nodes []nodeInfo `json:"nodes"`
			}
			if err := cl.call(cmd.Context(), http.MethodGet, "/v1/nodes", nil, nil, &out); err != nil {
				return err
			}
			if jsonWanted(cmd) {
				return printJSON(cmd, out)
			}
			return printNodes(cmd, out.Nodes)
		}),
	}), clientFlags(&cobra.Command{
		Use: "replace NAME...", Short: "Make a new, empty node in the place of a lost one", Args: cobra.MinimumNArgs(1),
		Long: `Make a new, empty node in the place of one whose directory is lost. The old node's ID is refused from then
on; if its directory still holds something, that is moved aside and kept, and the answer says where. Nothing is
touched while the store takes no writes. A node whose directory is back needs no replacement: restart the server.`,
		Example: "  cairn nodes replace n03",
		RunE: do(func(cmd *cobra.Command, args []string) error {
			cl, err := newClient(cmd)
			if err != nil {
				return err
			}
			kept := map[string]string{}
			return eachName(cmd, "replaced", args, map[string]any{"kept": kept}, func(name string) (string, error) {
				var out struct{ Node, ID, Kept string }
				if err := cl.call(cmd.Context(), http.MethodPost, "/v1/nodes/"+escape(name)+"/replace", nil, nil, &out); err != nil {
					return "", fmt.Errorf("not replaced: %w", err)
				}
				if out.Kept == "" {
					return "replaced " + printable(name), nil
				}
				kept[name] = out.Kept
				return fmt.Sprintf("replaced %s; what was in its directory is kept in %s", printable(name), printable(out.Kept)), nil
			})
		}),
	}), newAddNode(), newDrainNode(), newUndrainNode(), newRemoveNode(), newTolerate())
	return c
}

func newAddNode() *cobra.Command {
	cmd := clientFlags(&cobra.Command{
		Use: "add NAME", Short: "Make an empty directory a new node", Args: cobra.ExactArgs(1),
		Long: `Make an empty directory of the server's machine a new node, while it runs. The directory is DATA/nodes/NAME: a new one, or the
mount point of an empty disk. With --path it is elsewhere, and DATA/nodes/NAME a symbolic link to it; the last part of the path
is made when it is not there.

New packs use the node from then on. What is stored stays where it is until "cairn rebalance". The same command again takes
up an add that was cut short.`,
		Example: "  cairn nodes add n07\n  cairn nodes add n08 --path /mnt/disk8/cairn --label disk=8",
		RunE: do(func(cmd *cobra.Command, args []string) error {
			cl, err := newClient(cmd)
			if err != nil {
				return err
			}
			path, _ := cmd.Flags().GetString("path")
			if path != "" {
				if path, err = filepath.Abs(path); err != nil {
					return err
				}
			}
			weight, _ := cmd.Flags().GetUint32("weight")
			labels, _ := cmd.Flags().GetStringArray("label")
			var out struct{ Node, ID string }
			body := map[string]any{"name": args[0], "path": path, "weight": weight, "labels": labels}
			if err := cl.call(cmd.Context(), http.MethodPost, "/v1/nodes", nil, body, &out); err != nil {
				return fmt.Errorf("not added: %w", err)
			}
			if jsonWanted(cmd) {
				return printJSON(cmd, map[string]string{"node": out.Node, "id": out.ID})
			}
			_, err = fmt.Fprintf(cmd.OutOrStdout(), "added %s; new packs use it, and what is stored moves there with: cairn rebalance\n", printable(out.Node))
			return err
		}),
	})
	cmd.Flags().String("path", "", "the node's directory, on the server's machine (default DATA/nodes/NAME)")
	cmd.Flags().Uint32("weight", 0, "how much it is to hold beside others, in GiB (default: its filesystem, divided by the nodes on it)")
	cmd.Flags().StringArray("label", nil, "where it stands: zone=a, rack=1, host=b, disk=c; may be given several times")
	return cmd
}

func newDrainNode() *cobra.Command {
	cmd := clientFlags(&cobra.Command{
		Use: "drain NAME", Short: "Move everything off a node", Args: cobra.ExactArgs(1),
		Long: `Mark a node, so that new shards avoid it, and move every shard that it holds to other nodes: copied, read back, logged, and
only then deleted. What cannot be read there is computed from other shards. The server does this as a job, see "cairn jobs":
ending this command does not end it, and a restart of the server goes on with it.

When nothing is left, "cairn nodes remove NAME" takes the node out of the store; "cairn nodes undrain NAME" calls it off.
Refused while the nodes that are left could not hold what there is, or would survive less: the answer says what would follow.`,
		Example: "  cairn nodes drain n03\n  cairn nodes drain n03 --rate 100MB --wait",
		RunE: do(func(cmd *cobra.Command, args []string) error {
			rate, err := rateOf(cmd)
			if err != nil {
				return err
			}
			cl, err := newClient(cmd)
			if err != nil {
				return err
			}
			var j jobInfo
			if err := cl.call(cmd.Context(), http.MethodPost, "/v1/nodes/"+escape(args[0])+"/drain", nil, map[string]any{"rate": rate}, &j); err != nil {
				return fmt.Errorf("not drained: %w", err)
			}
			if wait, _ := cmd.Flags().GetBool("wait"); wait {
				return followMoves(cmd, cl, j)
			}
			if jsonWanted(cmd) {
				return printJSON(cmd, j)
			}
			_, err = fmt.Fprintf(cmd.OutOrStdout(), "draining %s; wait for it: cairn jobs wait %s\n", printable(args[0]), j.ID)
			return err
		}),
	})
	cmd.Flags().Bool("wait", false, "wait until it is over")
	cmd.Flags().String("rate", "32MiB", "move at most so many bytes per second; a quarter of it while clients are served")
	return cmd
}

func newUndrainNode() *cobra.Command {
	return clientFlags(&cobra.Command{
		Use: "undrain NAME...", Short: "Call the drain of a node off", Args: cobra.MinimumNArgs(1),
		Long:    "Call the drain of a node off: new shards go there again. What was moved stays where it is.",
		Example: "  cairn nodes undrain n03",
		RunE: do(func(cmd *cobra.Command, args []string) error {
			cl, err := newClient(cmd)
			if err != nil {
				return err
			}
			return eachName(cmd, "undrained", args, nil, func(name string) (string, error) {
				if err := cl.call(cmd.Context(), http.MethodDelete, "/v1/nodes/"+escape(name)+"/drain", nil, nil, nil); err != nil {
					return "", fmt.Errorf("not called off: %w", err)
				}
				return "undrained " + printable(name), nil
			})
		}),
	})
}

func newRemoveNode() *cobra.Command {
	return clientFlags(&cobra.Command{
		Use: "remove NAME...", Short: "Take a drained node out of the store", Args: cobra.MinimumNArgs(1),
		Long: `Take a node out of the store that was drained and holds nothing any more. Its ID is refused from then on. Its directory is moved
to DATA/removed-...; one elsewhere, or a mount point, stays where it is. Nothing in it is needed any more.`,
		Example: "  cairn nodes remove n03",
		RunE: do(func(cmd *cobra.Command, args []string) error {
			cl, err := newClient(cmd)
			if err != nil {
				return err
			}
			kept := map[string]string{}
			return eachName(cmd, "removed", args, map[string]any{"kept": kept}, func(name string) (string, error) {
				var out struct{ Node, Kept string }
				if err := cl.call(cmd.Context(), http.MethodDelete, "/v1/nodes/"+escape(name), nil, nil, &out); err != nil {
					return "", fmt.Errorf("not removed: %w", err)
				}
				if out.Kept == "" {
					return "removed " + printable(name), nil
				}
				kept[name] = out.Kept
				return fmt.Sprintf("removed %s; what is left of it, and is not needed, is in %s", printable(name), printable(out.Kept)), nil
			})
		}),
	})
}

func newTolerate() *cobra.Command {
	cmd := clientFlags(&cobra.Command{
		Use: "tolerate LOSSES", Short: "Survive the loss of more nodes at a time", Args: cobra.ExactArgs(1),
		Long: `Raise how many nodes may be lost at a time. From now on everything is written for that, and the server writes anew what is stored:
a snapshot of the index, then the log, then the data, as a job, see "cairn jobs". Only when nothing is left that was written for
fewer losses the store survives them, and starts without so many nodes; until then "cairn status" says how many packs are left.
Ending this command does not end the job, and a restart of the server goes on with it.

Each loss takes two nodes, and one more: three losses seven nodes. What is written anew takes its room once more, until the nodes have
given back what it replaces, a day later. What cannot be read keeps the number where it is. To name the number that is in force
calls it off; there is no way to fewer losses.`,
		Example: "  cairn nodes tolerate 3\n  cairn nodes tolerate 3 --rate 100MB --wait",
		RunE: do(func(cmd *cobra.Command, args []string) error {
			losses, err := strconv.Atoi(args[0])
			if err != nil {
				return &exitError{exitUsage, fmt.Errorf("%s is no number of losses", printable(args[0]))}
			}
			rate, err := rateOf(cmd)
			if err != nil {
				return err
			}
			cl, err := newClient(cmd)
			if err != nil {
				return err
			}
			var j struct {
				jobInfo
				Losses int `json:"losses"`
			}
			if err := cl.call(cmd.Context(), http.MethodPut, "/v1/losses", nil, map[string]any{"losses": losses, "rate": rate}, &j); err != nil {
				return fmt.Errorf("not changed: %w", err)
			}
			if j.ID == "" {
				if jsonWanted(cmd) {
					return printJSON(cmd, map[string]int{"losses": j.Losses})
				}
				_, err = fmt.Fprintf(cmd.OutOrStdout(), "the store survives %d lost nodes and will go on to: nothing is being raised any more\n", j.Losses)
				return err
			}
			if wait, _ := cmd.Flags().GetBool("wait"); wait {
				return follow(cmd, cl, j.jobInfo)
			}
			if jsonWanted(cmd) {
				return printJSON(cmd, j.jobInfo)
			}
			_, err = fmt.Fprintf(cmd.OutOrStdout(), "what is stored is written anew, for %d lost nodes; wait for it: cairn jobs wait %s\n", losses, j.ID)
			return err
		}),
	})
	cmd.Flags().Bool("wait", false, "wait until it is over")
	cmd.Flags().String("rate", "64MiB", "read at most so many bytes per second; a quarter of it while clients are served")
	return cmd
}

func newRebalance() *cobra.Command {
	cmd := clientFlags(&cobra.Command{
		Use: "rebalance", Short: "Move shards so that nodes fill up evenly", Args: cobra.NoArgs,
		Long: `Move shards between nodes until each holds its part by weight, as near as the rules allow: the shards of a pack lie on different
nodes, and no more of them in one failure domain than must. As little moves as that takes: after "cairn nodes add" about the
new node's part. Each shard is copied, read back, logged, and only then deleted where it was.

The server does this as a job, see "cairn jobs": ending this command does not end it. Cancelled or cut off, the next run goes
on with what is left.`,
		Example: "  cairn rebalance --dry-run\n  cairn rebalance --rate 100MB",
		RunE: do(func(cmd *cobra.Command, _ []string) error {
			rate, err := rateOf(cmd)
			if err != nil {
				return err
			}
			cl, err := newClient(cmd)
			if err != nil {
				return err
			}
			dry, _ := cmd.Flags().GetBool("dry-run")
			var j jobInfo
			if err := cl.call(cmd.Context(), http.MethodPost, jobsPath, nil, map[string]any{"kind": store.JobRebalance, "rate": rate, "dry_run": dry}, &j); err != nil {
				return err
			}
			return followMoves(cmd, cl, j)
		}),
	})
	cmd.Flags().Bool("dry-run", false, "say how much there is to move, and move nothing")
	cmd.Flags().String("rate", "32MiB", "move at most so many bytes per second; a quarter of it while clients are served")
	return cmd
}

// rateOf reads --rate.
func rateOf(cmd *cobra.Command) (uint64, error) {
	text, _ := cmd.Flags().GetString("rate")
	rate, err := humanize.ParseBytes(text)
	if err != nil || rate == 0 {
		return 0, &exitError{exitUsage, fmt.Errorf("--rate %s is no number of bytes: 32MiB, 100MB", text)}
	}
	return rate, nil
}

// followMoves waits for the end of a drain or a rebalance and says what came of it.
func followMoves(cmd *cobra.Command, cl *client, j jobInfo) error {
	j, err := await(cmd, cl, j)
	if err != nil {
		return err
	}
	var r store.MoveResult
	if jsonWanted(cmd) {
		if err := printJSON(cmd, j); err != nil {
			return err
		}
	} else if j.Result != nil && json.Unmarshal(j.Result, &r) == nil {
		printMoves(cmd, r)
	}
	if j.State == store.JobDone {
		return nil
	}
	if j.Error != "" && !jsonWanted(cmd) {
		return &exitError{exitFailed, fmt.Errorf("%s %s: %s", j.Kind, j.State, j.Error)}
	}
	return &exitError{code: exitFailed}
}

func printMoves(cmd *cobra.Command, r store.MoveResult) {
	w := cmd.OutOrStdout()
	if r.DryRun {
		fmt.Fprintf(w, "to move: %s\n", humanize.IBytes(r.Planned))
		return
	}
	fmt.Fprintf(w, "moved %s, %s\n", plural(r.Shards, "shard"), humanize.IBytes(r.Bytes))
	if r.Left > 0 {
		fmt.Fprintf(w, "%s where they were\n", plural(r.Left, "shard"))
	}
	for _, line := range r.Findings {
		fmt.Fprintln(w, "  "+printable(line))
	}
	for _, name := range r.Empty {
		fmt.Fprintf(w, "%s holds nothing any more: cairn nodes remove %s\n", printable(name), printable(name))
	}
}
