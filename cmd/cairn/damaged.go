package main

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"text/tabwriter"

	"github.com/dustin/go-humanize"
	"github.com/spf13/cobra"
)

// lostObject is a version of an object of which bytes are lost.
type lostObject struct {
	Bucket  string `json:"bucket"`
	Key     string `json:"key"`
	Version string `json:"version"`
	Size    uint64 `json:"size"`
	Current bool   `json:"current"`
}

// lostObjects are all of them, and the first by name.
type lostObjects struct {
	Count   int          `json:"count"`
	Looked  int          `json:"looked"` // versions
	Objects []lostObject `json:"objects"`
}

func newDamaged() *cobra.Command {
	cmd := clientFlags(&cobra.Command{
		Use: "damaged", Short: "Name the objects that are lost", Args: cobra.NoArgs,
		Long: `Name the versions of objects that cannot be read whole any more, as far as repairs and scrubs have found out: run "cairn scrub"
before, or "cairn scrub --deep", which opens every chunk. The manifests of all objects are walked, which takes a while when
there are many. Objects that only nodes which are away could give are not lost, and not named.

What is named can be stored again from another copy: that heals every object that shares the bytes. When lost nodes come back
after all, the next scrub finds what can be read again.`,
		Example: "  cairn damaged\n  cairn damaged --limit 0 --json",
		RunE: do(func(cmd *cobra.Command, _ []string) error {
			limit, _ := cmd.Flags().GetInt("limit")
			if limit < 0 {
				return fmt.Errorf("--limit %d is no number of objects", limit)
			}
			cl, err := newClient(cmd)
			if err != nil {
				return err
			}
			lost, err := findLost(cmd.Context(), cl, limit)
			if err != nil {
				return err
			}
			if jsonWanted(cmd) {
				return printJSON(cmd, lost)
			}
			return printLost(cmd.OutOrStdout(), lost)
		}),
	})
	cmd.Flags().Int("limit", 1000, "name no more than so many, and count the rest; 0: name all")
	return cmd
}

// findLost asks for what is lost, page by page, and keeps the names of the first;
// keep 0 is all.
func findLost(ctx context.Context, cl *client, keep int) (lostObjects, error) {
	out, query := lostObjects{Objects: []lostObject{}}, url.Values{}
	for {
		var p struct {
			Objects []lostObject `json:"objects"`
			Looked  int          `json:"looked"`
			More    bool         `json:"more"`
			Cursor  string       `json:"cursor"`
		}
		if err := cl.call(ctx, http.MethodGet, "/v1/damaged", query, nil, &p); err != nil {
			return out, err
		}
		out.Count += len(p.Objects)
		out.Looked += p.Looked
		for _, o := range p.Objects {
			if keep == 0 || len(out.Objects) < keep {
				out.Objects = append(out.Objects, o)
			}
		}
		if !p.More {
			return out, nil
		}
		query.Set("cursor", p.Cursor)
	}
}

func printLost(w io.Writer, lost lostObjects) error {
	fmt.Fprintf(w, "lost: %s of %s\n", plural(lost.Count, "version"), humanize.Comma(int64(lost.Looked)))
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	for _, o := range lost.Objects {
		which := "current"
		if !o.Current {
			which = "older"
		}
		fmt.Fprintf(t, "  %s\t%s\t%s\t%s\n", humanize.IBytes(o.Size), which, o.Version, printable(o.Bucket+"/"+o.Key))
	}
	if err := t.Flush(); err != nil {
		return err
	}
	if more := lost.Count - len(lost.Objects); more > 0 {
		fmt.Fprintf(w, "  and %s more: cairn damaged --limit 0\n", humanize.Comma(int64(more)))
	}
	return nil
}
