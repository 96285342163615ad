package main

import (
	"cmp"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/dustin/go-humanize"
	"github.com/spf13/cobra"

	"cairn/schedule"
)

type (
	nodeInfo struct {
		Name        string   `json:"name"`
		ID          string   `json:"id"`
		State       string   `json:"state"`
		Reason      string   `json:"reason,omitempty"`
		Log         bool     `json:"log_node"`
		Labels      []string `json:"labels,omitempty"`
		TotalBytes  int64    `json:"total_bytes"`
		FreeBytes   int64    `json:"free_bytes"`
		LiveShards  int64    `json:"live_shards"`
		LiveBytes   int64    `json:"live_bytes"`
		Device      uint64   `json:"device"`
		TakesWrites bool     `json:"takes_client_data"`
		Mark        int64    `json:"free_bytes_for_client_data"`
		Weight      int64    `json:"weight"`
		Draining    bool     `json:"draining"`
	}
	passInfo struct {
		Deep  bool      `json:"deep"`
		Began time.Time `json:"began"`
		Ended time.Time `json:"ended"`
		Left  int       `json:"left"`
		Lost  int       `json:"lost"`
	}
	ageInfo struct {
		Since   time.Time `json:"since"`
		Never   bool      `json:"never"`
		Unknown bool      `json:"unknown"`
		Age     int64     `json:"age_seconds"`
		Limit   int64     `json:"limit_seconds"`
		Overdue bool      `json:"overdue"`
	}
	statusInfo struct {
		Survives   string     `json:"survives"`
		Cluster    string     `json:"cluster"`
		Writable   bool       `json:"writable"`
		Reason     string     `json:"reason,omitempty"`
		NoRoom     string     `json:"no_room,omitempty"`
		M          int        `json:"losses_by_policy"`
		Width      string     `json:"code_of_new_packs,omitempty"`
		PacksShort int        `json:"packs_short"`
		PacksLost  int        `json:"packs_lost"`
		LostBytes  uint64     `json:"lost_bytes"`
		LogLost    int        `json:"log_packs_lost"`
		Scrubbed   []passInfo `json:"scrubbed"`
		Attested   ageInfo    `json:"attested"`
		Verified   ageInfo    `json:"verified"`
		Epoch      uint64     `json:"epoch"`
		Sequence   uint64     `json:"sequence"`
		Version    string     `json:"version"`
		Started    time.Time  `json:"started"`
		Nodes      []nodeInfo `json:"nodes"`
	}
	usageInfo struct {
		Logical        uint64       `json:"logical_bytes"`
		Upload         uint64       `json:"upload_bytes"`
		Unique         uint64       `json:"unique_bytes"`
		Compressed     uint64       `json:"compressed_bytes"`
		Live           uint64       `json:"live_bytes"`
		Dead           uint64       `json:"dead_bytes"`
		Pending        uint64       `json:"pending_bytes"`
		Parity         uint64       `json:"parity_bytes"`
		Padding        uint64       `json:"padding_bytes"`
		FreeInSegments uint64       `json:"free_in_segments_bytes"`
		Physical       uint64       `json:"physical_bytes"`
		Objects        uint64       `json:"objects"`
		Versions       uint64       `json:"versions"`
		Chunks         uint64       `json:"chunks"`
		Packs          uint64       `json:"packs"`
		Buckets        []bucketInfo `json:"buckets"`
	}
)

func newStatus() *cobra.Command {
	return clientFlags(&cobra.Command{
		Use: "status", Short: "What the store survives right now, and how its nodes are", Args: cobra.NoArgs,
		Long: `Ask every node. "survives" says how much more may be lost at this moment, a line LOST what is lost already; "writes" whether
data is taken, and if not, why. "attested" is how old the word is that every shard is there as it was written, "verified" that
all of it can be read: what was stored at that time was read since. OVERDUE: that is longer ago than the server was told. A node
is up, draining, slow (it owes answers), full, down (it could not be asked), or missing (its directory is not there or not its own);
the last column says what to do.`,
		Example: "  cairn status\n  cairn status --json",
		RunE: do(func(cmd *cobra.Command, _ []string) error {
			cl, err := newClient(cmd)
			if err != nil {
				return err
			}
			var st statusInfo
			if err := cl.call(cmd.Context(), http.MethodGet, "/v1/status", nil, nil, &st); err != nil {
				return err
			}
			if jsonWanted(cmd) {
				return printJSON(cmd, st)
			}
			w := cmd.OutOrStdout()
			fmt.Fprintf(w, "survives: %s\n", st.Survives)
			if st.PacksLost > 0 {
				fmt.Fprintf(w, "LOST:     %s with %s that objects refer to; store those objects again, see docs/how-to/lost-disk.md\n", plural(st.PacksLost, "pack"), humanize.IBytes(st.LostBytes))
			}
			switch {
			case st.Writable && st.NoRoom != "":
				fmt.Fprintf(w, "writes:   deletes only, NO new data: %s\n", st.NoRoom)
			case st.Writable:
				fmt.Fprintf(w, "writes:   taken, new packs are %s\n", st.Width)
			default:
				fmt.Fprintf(w, "writes:   NOT taken: %s\n", st.Reason)
			}
			fmt.Fprintf(w, "attested: %s\n", scrubbed(st.Attested, st.Scrubbed, false))
			fmt.Fprintf(w, "verified: %s\n", scrubbed(st.Verified, st.Scrubbed, true))
			fmt.Fprintf(w, "store:    %s, epoch %d, log sequence %d, up since %s\n\n", st.Cluster, st.Epoch, st.Sequence, st.Started.Local().Format(time.DateTime))
			return printNodes(cmd, st.Nodes)
		}),
	})
}

// scrubbed says how old the last complete scrub of a depth is, and what it left: what
// was stored when it began was read since.
func scrubbed(a ageInfo, passes []passInfo, deep bool) string {
	out := a.Since.Local().Format(time.DateTime) + ", "
	if a.Never {
		out = "never; the store is "
	}
	out += a.String()
	if a.Limit == 0 {
		out += fmt.Sprintf("; OFF: none begins by itself (--scrub-%s-within 0)", depthName(deep))
	}
	for _, p := range passes {
		if p.Deep != deep {
			continue
		}
		if p.Left > 0 {
			out += fmt.Sprintf(" (%s left damaged)", plural(p.Left, "shard"))
		}
		if p.Lost > 0 {
			out += fmt.Sprintf(" (LOST: %d)", p.Lost)
		}
	}
	return out
}

// String is the age and its limit.
func (a ageInfo) String() string {
	span := func(seconds int64) string {
		return schedule.FormatSpan((time.Duration(seconds) * time.Second).Truncate(time.Minute))
	}
	out := span(a.Age) + " old"
	switch {
	case a.Unknown:
		out = "of a later time than the clock shows"
	case a.Age < 60:
		out = "under a minute old"
	}
	switch {
	case a.Limit == 0:
		return out
	case a.Overdue:
		return out + ", OVERDUE: limit " + span(a.Limit)
	}
	return out + ", limit " + span(a.Limit)
}

func depthName(deep bool) string {
	if deep {
		return "deep"
	}
	return "light"
}

func printNodes(cmd *cobra.Command, nodes []nodeInfo) error {
	w := tabwriter.NewWriter(cmd.OutOrStdout(), 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "NODE\tSTATE\tSHARDS\tBYTES\tDISK FREE\tWHY")
	for _, n := range nodes {
		free := "-"
		if n.TotalBytes > 0 {
			free = humanize.IBytes(uint64(n.FreeBytes)) + " of " + humanize.IBytes(uint64(n.TotalBytes))
		}
		fmt.Fprintf(w, "%s\t%s\t%d\t%s\t%s\t%s\n", n.Name, n.State, n.LiveShards, humanize.IBytes(uint64(n.LiveBytes)), free, n.Reason)
	}
	return w.Flush()
}

func newDf() *cobra.Command {
	return clientFlags(&cobra.Command{
		Use: "df", Short: "Account for the bytes of the store", Args: cobra.NoArgs,
		Long: `Say where the bytes go, from what clients stored to what is on the disks. "unique" is what remains of "logical" when equal
chunks are counted once, "compressed" what remains of that after compression. "live" and "dead" part the sealed chunks by
whether an object or version refers to them. "parity", "padding", "pending" and "free in segments" are what durability and the
layout on disk add. "physical" leaves out the index and about 64 KiB of small files on each node.`,
		Example: "  cairn df\n  cairn df --json",
		RunE: do(func(cmd *cobra.Command, _ []string) error {
			cl, err := newClient(cmd)
			if err != nil {
				return err
			}
			var u usageInfo
			if err := cl.call(cmd.Context(), http.MethodGet, "/v1/usage", nil, nil, &u); err != nil {
				return err
			}
			if jsonWanted(cmd) {
				return printJSON(cmd, u)
			}
			w := tabwriter.NewWriter(cmd.OutOrStdout(), 0, 0, 2, ' ', tabwriter.AlignRight)
			line := func(name string, n uint64, what string) {
				fmt.Fprintf(w, "%s\t%s\t%d\t  %s\n", name, humanize.IBytes(n), n, what)
			}
			line("logical", u.Logical, fmt.Sprintf("what clients stored: %d objects, %d versions", u.Objects, u.Versions))
			line("in uploads", u.Upload, "sent in several requests and not complete yet, and what is known of uploads of the last week")
			line("unique", u.Unique, fmt.Sprintf("after deduplication: %d chunks", u.Chunks))
			line("compressed", u.Compressed, "after compression and sealing")
			line("live", u.Live, "of these, referred to")
			line("dead", u.Dead, "no longer referred to")
			line("parity", u.Parity, "to survive losses")
			line("padding", u.Padding, fmt.Sprintf("padding, headers and directories of %d packs", u.Packs))
			line("pending", u.Pending, "deleted, kept by the nodes for their keep time")
			line("free in segments", u.FreeInSegments, "reserved on disk, not yet used")
			line("physical", u.Physical, "on disk, all nodes that answer; the index not counted")
			if err := w.Flush(); err != nil {
				return err
			}
			var st statusInfo
			if err := cl.call(cmd.Context(), http.MethodGet, "/v1/status", nil, nil, &st); err != nil {
				return err
			}
			if why := cmp.Or(st.NoRoom, st.Reason); why != "" {
				fmt.Fprintf(cmd.OutOrStdout(), "\nno new data is taken: %s\n", why)
			}
			return nil
		}),
	})
}

func newHealth() *cobra.Command {
	cmd := &cobra.Command{
		Use: "health", Short: "Ask a server whether it is alive; for health checks", Args: cobra.NoArgs,
		Long:    "Ask a server whether it is alive, or with --ready whether it takes writes. No token is needed.",
		Example: "  cairn health\n  cairn health --ready --server http://localhost:5000",
		RunE: do(func(cmd *cobra.Command, _ []string) error {
			server, err := serverURL(cmd)
			if err != nil {
				return err
			}
			path, state := "/healthz", "alive"
			if ready, _ := cmd.Flags().GetBool("ready"); ready {
				path, state = "/readyz", "ready"
			}
			req, err := http.NewRequestWithContext(cmd.Context(), http.MethodGet, strings.TrimSuffix(server.String(), "/")+path, nil)
			if err != nil {
				return &exitError{exitUsage, err}
			}
			transport, err := newTransport(cmd)
			if err != nil {
				return err
			}
			resp, err := (&http.Client{Timeout: 3 * time.Second, Transport: transport}).Do(req)
			if err != nil {
				return noAnswer(server, err)
			}
			resp.Body.Close()
			if resp.StatusCode != http.StatusOK {
				return &exitError{exitFailed, errors.New("the server answers " + resp.Status)}
			}
			if jsonWanted(cmd) {
				return printJSON(cmd, map[string]string{"server": server.String(), "state": state})
			}
			return nil
		}),
	}
	cmd.Flags().Bool("ready", false, "ask whether writes are taken")
	serverFlags(cmd)
	cmd.Flags().Bool("json", false, "print JSON")
	return cmd
}
