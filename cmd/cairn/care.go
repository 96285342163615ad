package main

import (
	"cmp"
	"errors"
	"fmt"
	"io"
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
		RaisingTo  int        `json:"raising_to,omitempty"`
		ToRaise    int        `json:"packs_to_raise,omitempty"`
		Width      string     `json:"code_of_new_packs,omitempty"`
		PacksShort int        `json:"packs_short"`
		PacksLost  int        `json:"packs_lost"`
		LostBytes  uint64     `json:"lost_bytes"`
		LogLost    int        `json:"log_packs_lost"`
		Losses     []lossInfo `json:"losses"`
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
		Physical       uint64       `json:"physical_bytes"`
		Live           uint64       `json:"live_bytes"`
		Dead           uint64       `json:"dead_bytes"`
		Parity         uint64       `json:"parity_bytes"`
		Padding        uint64       `json:"padding_bytes"`
		Missing        uint64       `json:"missing_bytes"`
		Stray          uint64       `json:"stray_bytes"`
		Pending        uint64       `json:"pending_bytes"`
		FreeInSegments uint64       `json:"free_in_segments_bytes"`
		Layout         uint64       `json:"layout_bytes"`
		Index          uint64       `json:"index_bytes"`
		Other          uint64       `json:"other_bytes"`
		Unaccounted    int64        `json:"unaccounted_bytes"`
		Unreferenced   uint64       `json:"unreferenced_bytes"`
		Journal        uint64       `json:"journal_bytes"`
		Snapshot       uint64       `json:"snapshot_bytes"`
		Due            uint64       `json:"due_bytes"`
		PendingUntil   time.Time    `json:"pending_until,omitzero"`
		Waiting        waitingInfo  `json:"waiting"`
		Objects        uint64       `json:"objects"`
		Versions       uint64       `json:"versions"`
		Chunks         uint64       `json:"chunks"`
		Packs          uint64       `json:"packs"`
		Buckets        []bucketInfo `json:"buckets"`
	}
	waitingInfo struct {
		Chunks    int       `json:"chunks"`
		Bytes     uint64    `json:"bytes"`
		Until     time.Time `json:"until,omitzero"`
		Transfers int       `json:"transfers"`
		Oldest    int64     `json:"oldest_transfer_seconds"`
	}
)

func newStatus() *cobra.Command {
	return clientFlags(&cobra.Command{
		Use: "status", Short: "What the store survives right now, and how its nodes are", Args: cobra.NoArgs,
		Long: `Ask every node. "survives" says how much more may be lost at this moment, a line LOST what is lost already, a line GIVEN UP what of the
log was given up by cairn rebuild --accept-loss, for good; "writes" whether
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
			for _, l := range st.Losses {
				fmt.Fprintf(w, "GIVEN UP: %s, on %s\n", l, l.Accepted.Local().Format(time.DateTime))
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
	cmd := clientFlags(&cobra.Command{
		Use: "df [--exclusive [BUCKET...]]", Short: "Account for the bytes of the store", Args: cobra.ArbitraryArgs,
		Long: `Say where the bytes go. "unique" is what remains of "logical" when equal chunks are counted once, "compressed" what remains of
that after compression. What follows adds up to "physical", which is what "du" says of the data directory (and of nodes
elsewhere): "live" and "dead" part the sealed chunks in packs by whether an object or version refers to them; "parity" and
"padding" are what else the shards of packs hold; "missing" are shards that no node which answers holds, "strays" those that
the index does not name. Of dead bytes "cairn gc" gives back what it can, and nodes give back what is pending once its keep time is over.

With --exclusive a job of the server reads the names of all chunks, which takes a while, and says of each bucket what its
chunks take, compressed and without parity: "exclusive" of those that no other bucket refers to, which is what deleting the
bucket would free; "fair share" of all, what several refer to divided among them.`,
		Example: "  cairn df\n  cairn df --json\n  cairn df --exclusive main backup",
		RunE: do(func(cmd *cobra.Command, names []string) error {
			if exclusive, _ := cmd.Flags().GetBool("exclusive"); exclusive {
				return runShares(cmd, names)
			}
			if len(names) > 0 {
				return &exitError{exitUsage, errors.New("buckets are named with --exclusive only")}
			}
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
			if err := u.print(cmd.OutOrStdout()); err != nil {
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
	cmd.Flags().Bool("exclusive", false, "what deleting each bucket would free, and its fair share")
	return cmd
}

// print writes a table whose middle part adds up.
func (u *usageInfo) print(out io.Writer) error {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', tabwriter.AlignRight)
	line := func(sign, name string, n uint64, what string, args ...any) {
		fmt.Fprintf(w, "%s\t%s\t%s\t%d\t  %s\n", sign, name, humanize.IBytes(n), n, fmt.Sprintf(what, args...))
	}
	line("", "logical", u.Logical, "what clients stored: %d objects, %d versions", u.Objects, u.Versions)
	line("", "in uploads", u.Upload, "sent in several requests and not complete yet, and what is known of uploads of the last week")
	line("", "unique", u.Unique, "after deduplication: %d chunks", u.Chunks)
	line("", "compressed", u.Compressed, "after compression and sealing")
	fmt.Fprintln(w, "\t\t\t\t")
	line("", "live", u.Live, "of these, referred to")
	line("+", "dead", u.Dead, "in packs, no longer referred to; %s wait for collection, the rest for packs to be rewritten", humanize.IBytes(u.Unreferenced))
	line("+", "parity", u.Parity, "to survive losses")
	line("+", "padding", u.Padding, "padding, headers, directories and records of %d packs", u.Packs)
	if u.Missing > 0 {
		line("-", "missing", u.Missing, "of that, on no node that answers: see cairn status")
	}
	if u.Stray > 0 {
		line("+", "strays", u.Stray, "shards that the index does not name, or not yet: a scrub removes them")
	}
	line("+", "pending", u.Pending, "deleted, kept by the nodes for their keep time")
	line("+", "free in segments", u.FreeInSegments, "reserved on disk, not yet used")
	line("+", "layout", u.Layout, "headers, alignment, notes and small files of the nodes")
	line("+", "index", u.Index, "what is made anew from the nodes when it is lost")
	line("+", "other", u.Other, "ballast, keyring and what else is in the data directory")
	switch {
	case u.Unaccounted > 0:
		line("+", "unaccounted", uint64(u.Unaccounted), "being written, or rounded by the filesystem")
	case u.Unaccounted < 0:
		line("-", "unaccounted", uint64(-u.Unaccounted), "being written, or rounded by the filesystem")
	}
	line("=", "physical", u.Physical, "on disk, all nodes that answer")
	fmt.Fprintln(w, "\t\t\t\t")
	line("", "journal", u.Journal, "of the above, shards of log packs: records and small objects")
	line("", "snapshots", u.Snapshot, "of the above, shards of snapshots of the index")
	if err := w.Flush(); err != nil {
		return err
	}
	for _, s := range u.comesBack() {
		fmt.Fprintf(out, "\n%s\n", s)
	}
	return nil
}

// comesBack says when space that waits comes back.
func (u *usageInfo) comesBack() (out []string) {
	if u.Pending > 0 {
		s := humanize.IBytes(u.Pending) + " are pending: the nodes keep them until " + u.PendingUntil.Local().Format(time.DateTime) + " at the latest"
		if u.Due > 0 {
			s += fmt.Sprintf(", and of them %s are due and come back when little in their segment is needed", humanize.IBytes(u.Due))
		}
		out = append(out, s+"; cairn reclaim, with the server stopped, gives them back at once.")
	}
	if u.Waiting.Chunks > 0 {
		s := fmt.Sprintf("%s, %s, wait to be removed: the first may go ", plural(u.Waiting.Chunks, "chunk"), humanize.IBytes(u.Waiting.Bytes))
		if time.Until(u.Waiting.Until) > 0 {
			s += "from " + u.Waiting.Until.Local().Format(time.DateTime) + " on, or at once with cairn gc --now"
		} else {
			s += "with the next collection"
		}
		if u.Waiting.Transfers > 0 {
			s += fmt.Sprintf("; some wait for %s under way, the oldest for %v", plural(u.Waiting.Transfers, "upload or download"), time.Duration(u.Waiting.Oldest)*time.Second)
		}
		out = append(out, s+".")
	}
	return out
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
