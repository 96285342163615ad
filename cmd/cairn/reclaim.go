package main

import (
	"errors"
	"fmt"
	"text/tabwriter"

	"github.com/dustin/go-humanize"
	"github.com/spf13/cobra"

	"cairn/datadir"
	"cairn/node"
)

func newReclaim() *cobra.Command {
	cmd := &cobra.Command{
		Use: "reclaim", Short: "Give the space of deleted data back now, without its keep time", Args: cobra.NoArgs,
		Long: `Give back the space of everything that the nodes of a data directory hold as deleted, once, without waiting
for the end of its keep time (24 hours; an hour for the log). The keep time is there so that whoever steals a
token cannot erase a store at once; cutting it is for whoever is on the node's own host, while nothing serves
the directory. What is given back cannot be undeleted. No key is needed.

On a disk without any room the ballast is given up first; the next start makes it again.
Exit codes: 0 done, 1 something could not be given back, 3 could not run.`,
		Example: "  cairn reclaim --data /srv/cairn\n  cairn reclaim --data /srv/cairn --node n03 --json",
		RunE:    do(runReclaim),
	}
	f := cmd.Flags()
	f.String("data", "", "data directory (required)")
	f.StringSlice("node", nil, "only this node; may be given more than once (default: all)")
	f.Bool("json", false, "print JSON")
	settings(f, serveSection, "data")
	_ = cmd.MarkFlagRequired("data")
	return cmd
}

type reclaimedInfo struct {
	Node   string `json:"node"`
	Shards int64  `json:"shards"`
	Bytes  int64  `json:"bytes"`
	Left   int64  `json:"shards_left"`
	Error  string `json:"error,omitempty"`
}

func runReclaim(cmd *cobra.Command, _ []string) error {
	dir, _ := cmd.Flags().GetString("data")
	names, _ := cmd.Flags().GetStringSlice("node")
	nodes, err := datadir.Reclaim(cmd.Context(), dir, names)
	if err != nil {
		return &exitError{exitNoReach, err}
	}
	out := struct {
		Nodes  []reclaimedInfo `json:"nodes"`
		Shards int64           `json:"shards"`
		Bytes  int64           `json:"bytes"`
	}{Nodes: []reclaimedInfo{}}
	var failed error
	for _, n := range nodes {
		info := reclaimedInfo{Node: n.Node, Shards: n.Shards, Bytes: n.Bytes, Left: n.Left}
		if n.Err != nil {
			info.Error = n.Err.Error()
			err := fmt.Errorf("node %s: %w", n.Node, n.Err)
			if errors.Is(n.Err, node.ErrDamaged) {
				err = fmt.Errorf("%w; start the server and run cairn scrub, which makes anew what is rotten, then try again", err)
			}
			failed = errors.Join(failed, err)
		}
		out.Nodes = append(out.Nodes, info)
		out.Shards, out.Bytes = out.Shards+n.Shards, out.Bytes+n.Bytes
	}
	if jsonWanted(cmd) {
		return errors.Join(printJSON(cmd, out), failed)
	}
	w := tabwriter.NewWriter(cmd.OutOrStdout(), 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "NODE\tDELETED SHARDS GONE\tSPACE BACK\tLEFT")
	for _, n := range out.Nodes {
		fmt.Fprintf(w, "%s\t%d\t%s\t%d\n", n.Node, n.Shards, signed(n.Bytes), n.Left)
	}
	fmt.Fprintf(w, "all\t%d\t%s\t\n", out.Shards, signed(out.Bytes))
	return errors.Join(w.Flush(), failed)
}

// signed is a number of bytes that may be below zero: rewriting a segment may
// take a little before it gives.
func signed(n int64) string {
	if n < 0 {
		return "-" + humanize.IBytes(uint64(-n))
	}
	return humanize.IBytes(uint64(n))
}
