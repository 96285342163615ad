package main

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/cobra/doc"
)

// Completion asks the server; a shell waits for it at each press of a key.
const (
	completeWait  = 2 * time.Second
	completeLimit = "200"
)

// completer makes the candidates for one argument of a command. An error means
// that there are none: a shell has no place to show it.
type completer func(ctx context.Context, cl *client, typed string) ([]string, error)

// completes gives a command candidates for its arguments from one to another,
// counted from 0; to is -1 for all that follow. Other arguments are files.
func completes(cmd *cobra.Command, from, to int, names completer) {
	cmd.ValidArgsFunction = func(cmd *cobra.Command, args []string, typed string) ([]string, cobra.ShellCompDirective) {
		if len(args) < from {
			return nil, cobra.ShellCompDirectiveDefault
		}
		if to >= 0 && len(args) > to { // get's file
			return nil, cobra.ShellCompDirectiveDefault
		}
		if configure(cmd) != nil {
			return nil, cobra.ShellCompDirectiveError
		}
		cl, err := newClient(cmd)
		if err != nil {
			return nil, cobra.ShellCompDirectiveError
		}
		ctx, cancel := context.WithTimeout(cmd.Context(), completeWait)
		defer cancel()
		all, err := names(ctx, cl, typed)
		if err != nil {
			return nil, cobra.ShellCompDirectiveError
		}
		out, directive := []string{}, cobra.ShellCompDirectiveNoFileComp
		for _, name := range all {
			// Candidates are lines, with a tab before what describes them.
			if printable(name) != name || strings.ContainsAny(name, "\t\r\n") || !strings.HasPrefix(name, typed) {
				continue
			}
			if out = append(out, name); strings.HasSuffix(name, "/") {
				directive |= cobra.ShellCompDirectiveNoSpace
			}
		}
		return out, directive
	}
}

func bucketNames(ctx context.Context, cl *client, _ string) ([]string, error) {
	var out struct {
		Buckets []bucketInfo `json:"buckets"`
	}
	err := cl.call(ctx, http.MethodGet, "/v1/buckets", nil, nil, &out)
	names := make([]string, len(out.Buckets))
	for i, b := range out.Buckets {
		names[i] = b.Name
	}
	return names, err
}

func nodeNames(ctx context.Context, cl *client, _ string) ([]string, error) {
	var out struct {
		Nodes []nodeInfo `json:"nodes"`
	}
	err := cl.call(ctx, http.MethodGet, "/v1/nodes", nil, nil, &out)
	names := make([]string, len(out.Nodes))
	for i, n := range out.Nodes {
		names[i] = n.Name
	}
	return names, err
}

// objectNames are buckets with a slash behind them; in a bucket, keys and
// prefixes of the level that is being typed.
func objectNames(ctx context.Context, cl *client, typed string) ([]string, error) {
	bucket, prefix, in := strings.Cut(typed, "/")
	if !in {
		names, err := bucketNames(ctx, cl, typed)
		for i := range names {
			names[i] += "/"
		}
		return names, err
	}
	var p listing
	err := cl.call(ctx, http.MethodGet, bucketPath(bucket)+"/objects", url.Values{"prefix": {prefix}, "delimiter": {"/"}, "limit": {completeLimit}}, nil, &p)
	var names []string
	for _, s := range p.Prefixes {
		names = append(names, bucket+"/"+s)
	}
	for _, o := range p.Objects {
		names = append(names, bucket+"/"+o.Key)
	}
	return names, err
}

func newMan() *cobra.Command {
	cmd := &cobra.Command{
		Use: "man DIR", Short: "Write the manual pages into a directory", Args: cobra.ExactArgs(1),
		Long:    "Write a manual page for each command, section 1, into a directory that is made when it is not there.",
		Example: "  cairn man /usr/local/share/man/man1\n  cairn man ./man && man -l ./man/cairn-put.1",
		RunE: do(func(cmd *cobra.Command, args []string) error {
			if err := os.MkdirAll(args[0], 0o755); err != nil {
				return err
			}
			root := cmd.Root()
			root.DisableAutoGenTag = true // a page says the version, and not the day
			if err := doc.GenManTree(root, &doc.GenManHeader{Title: "CAIRN", Section: "1", Source: "cairn " + version, Manual: "Cairn"}, args[0]); err != nil {
				return err
			}
			pages, err := filepath.Glob(filepath.Join(args[0], "cairn*.1"))
			if err == nil && len(pages) == 0 {
				err = errors.New("no page was written")
			}
			if err != nil {
				return err
			}
			if jsonWanted(cmd) {
				return printJSON(cmd, map[string]any{"directory": args[0], "pages": len(pages)})
			}
			_, err = fmt.Fprintf(cmd.OutOrStdout(), "wrote %d pages into %s\n", len(pages), printable(args[0]))
			return err
		}),
	}
	cmd.Flags().Bool("json", false, "print JSON")
	return cmd
}
