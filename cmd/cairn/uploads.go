package main

import (
	"fmt"
	"net/http"
	"net/url"
	"text/tabwriter"
	"time"

	"github.com/dustin/go-humanize"
	"github.com/spf13/cobra"
)

type uploadInfo struct {
	ID      string    `json:"id"`
	Bucket  string    `json:"bucket"`
	Key     string    `json:"key"`
	Offset  uint64    `json:"offset"`
	Size    *int64    `json:"size,omitempty"`
	Changed time.Time `json:"changed"`
	Expires time.Time `json:"expires"`
	Lost    bool      `json:"lost,omitempty"`
}

func newUploads() *cobra.Command {
	c := parent(&cobra.Command{
		Use: "uploads", Short: "List and abort uploads that are not complete",
		Long: `Large files are sent in several requests, and what came of one that broke off is kept for a week. Nothing is seen of the
object until then; what the store holds of it is upload_bytes in "cairn df --json".`,
	})
	c.AddCommand(clientFlags(&cobra.Command{
		Use: "ls", Aliases: []string{"list"}, Short: "List uploads that are not complete", Args: cobra.NoArgs, Example: "  cairn uploads ls",
		RunE: do(listUploads),
	}), clientFlags(&cobra.Command{
		Use: "rm ID...", Aliases: []string{"abort"}, Short: "Abort uploads; what they hold is given up", Args: cobra.MinimumNArgs(1),
		Example: "  cairn uploads rm 0f3a6c0e5d2b4b7a9e1c8d7f6a5b4c3d", RunE: do(abortUploads),
	}))
	return c
}

func listUploads(cmd *cobra.Command, _ []string) error {
	cl, err := newClient(cmd)
	if err != nil {
		return err
	}
	all, query := []uploadInfo{}, url.Values{}
	for more := true; more; {
		var p struct {
			Uploads []uploadInfo `json:"uploads"`
			More    bool         `json:"more"`
			Cursor  string       `json:"cursor"`
		}
		if err := cl.call(cmd.Context(), http.MethodGet, "/v1/uploads", query, nil, &p); err != nil {
			return err
		}
		all = append(all, p.Uploads...)
		more = p.More
		query.Set("cursor", p.Cursor)
	}
	if jsonWanted(cmd) {
		return printJSON(cmd, map[string]any{"uploads": all})
	}
	w := tabwriter.NewWriter(cmd.OutOrStdout(), 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "ID\tARRIVED\tOF\tLAST\tEXPIRES\tOBJECT")
	for _, u := range all {
		of := "?"
		if u.Size != nil {
			of = humanize.IBytes(uint64(*u.Size))
		}
		name := printable(u.Bucket + "/" + u.Key)
		if u.Lost {
			name = "lost: abort it"
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\n", u.ID, humanize.IBytes(u.Offset), of, u.Changed.Local().Format(time.DateTime), u.Expires.Local().Format(time.DateTime), name)
	}
	return w.Flush()
}

func abortUploads(cmd *cobra.Command, args []string) error {
	cl, err := newClient(cmd)
	if err != nil {
		return err
	}
	for _, id := range args {
		resp, err := cl.do(cmd.Context(), http.MethodDelete, "/v1/uploads/"+escape(id), nil, http.Header{"Tus-Resumable": {"1.0.0"}}, nil, 0)
		if err != nil {
			return fmt.Errorf("%s: %w", printable(id), err)
		}
		resp.Body.Close()
	}
	return tellAll(cmd, "aborted", args)
}
