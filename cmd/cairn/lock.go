package main

import (
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"cairn/record"
	"cairn/schedule"
)

// retentionInfo is the JSON of a retention.
type retentionInfo struct {
	Mode  string     `json:"mode"`
	Until *time.Time `json:"until,omitempty"`
}

func newLock() *cobra.Command {
	cmd := &cobra.Command{
		Use: "lock BUCKET/KEY", Short: "Retain a version of an object until a time", Args: cobra.ExactArgs(1),
		Long: `Keep a version of an object from being removed until a time, in a bucket with object lock ("cairn bucket set NAME --versioning
--object-lock"). It can still be hidden by a delete or an overwrite; the version stays below, and "rm --version" is refused. In governance mode
--bypass-governance makes the time shorter, lifts it, or removes the version all the same; in compliance mode the time can only become
longer, and nothing removes the version before. Without --version the current one is retained.

Time is what is sure to have passed: a clock that leaps ahead is believed after a day.`,
		Example: "  cairn lock papers/deed.pdf --for 3650d\n  cairn lock papers/deed.pdf --until 2036-01-01 --mode compliance\n  cairn lock papers/deed.pdf --lift --bypass-governance",
		RunE:    do(runLock),
	}
	cmd.Flags().String("version", "", "this version (see ls --versions)")
	cmd.Flags().String("mode", record.Governance, "governance or compliance")
	cmd.Flags().String("until", "", "a time: 2036-01-01, 2036-01-01T12:00:00Z")
	cmd.Flags().String("for", "", "so long from now: 30d, 12h")
	cmd.Flags().Bool("lift", false, "retain it no longer")
	cmd.Flags().Bool("bypass-governance", false, "also where a retention in governance mode is not over")
	return clientFlags(cmd)
}

func runLock(cmd *cobra.Command, args []string) error {
	usage := func(format string, a ...any) error { return &exitError{exitUsage, fmt.Errorf(format, a...)} }
	until, _ := cmd.Flags().GetString("until")
	span, _ := cmd.Flags().GetString("for")
	lift, _ := cmd.Flags().GetBool("lift")
	mode, _ := cmd.Flags().GetString("mode")
	r := retentionInfo{Mode: mode}
	switch {
	case lift && until == "" && span == "" && !cmd.Flags().Changed("mode"):
		r.Mode = ""
	case lift || (until == "") == (span == ""):
		return usage("say one of --until TIME, --for TIME and --lift")
	case mode != record.Governance && mode != record.Compliance:
		return usage("--mode %q is neither %s nor %s", mode, record.Governance, record.Compliance)
	case until != "":
		t, err := time.Parse(time.RFC3339, until)
		if err != nil {
			t, err = time.ParseInLocation(time.DateOnly, until, time.Local)
		}
		if err != nil {
			return usage("--until %q is neither a day, such as 2036-01-01, nor a time, such as 2036-01-01T12:00:00Z", until)
		}
		r.Until = &t
	default:
		d, err := schedule.ParseSpan(span)
		if err != nil {
			return usage("--for %q is no time, such as 30d or 12h", span)
		}
		t := time.Now().Add(d)
		r.Until = &t
	}
	query := url.Values{}
	if over, _ := cmd.Flags().GetBool("bypass-governance"); over {
		query.Set("bypass_governance", "true")
	}
	return changeLock(cmd, args[0], query, map[string]any{"retention": r})
}

func newHold() *cobra.Command {
	cmd := &cobra.Command{
		Use: "hold BUCKET/KEY", Short: "Hold a version of an object until that is taken away", Args: cobra.ExactArgs(1),
		Long: `Keep a version of an object from being removed until --off is said, in a bucket with object lock. It is beside a retention: a
version is removed only when it is neither retained nor held. Without --version the current one is held.`,
		Example: "  cairn hold papers/deed.pdf\n  cairn hold papers/deed.pdf --off",
		RunE: do(func(cmd *cobra.Command, args []string) error {
			off, _ := cmd.Flags().GetBool("off")
			return changeLock(cmd, args[0], url.Values{}, map[string]any{"legal_hold": !off})
		}),
	}
	cmd.Flags().String("version", "", "this version (see ls --versions)")
	cmd.Flags().Bool("off", false, "hold it no longer")
	return clientFlags(cmd)
}

// changeLock sends a change and says what the lock is now.
func changeLock(cmd *cobra.Command, name string, query url.Values, body any) error {
	cl, err := newClient(cmd)
	if err != nil {
		return err
	}
	bucket, key, err := splitName(name, true)
	if err != nil {
		return err
	}
	if v, _ := cmd.Flags().GetString("version"); v != "" {
		query.Set("version", v)
	}
	var o objectInfo
	if err := cl.call(cmd.Context(), http.MethodPatch, keyPath(bucket, "lock", key), query, body, &o); err != nil {
		return fmt.Errorf("%s: %w", printable(name), err)
	}
	if jsonWanted(cmd) {
		return printJSON(cmd, o)
	}
	_, err = fmt.Fprintf(cmd.OutOrStdout(), "version %s of %s: %s\n", o.Version, printable(name), lockText(o.Retention, o.Hold))
	return err
}

// lockText is a lock in a few words.
func lockText(r *retentionInfo, hold bool) string {
	var out []string
	if r != nil && r.Until != nil {
		out = append(out, fmt.Sprintf("retained until %s, %s", r.Until.Local().Format(time.DateTime), r.Mode))
	}
	if hold {
		out = append(out, "under legal hold")
	}
	if out == nil {
		return "not locked"
	}
	return strings.Join(out, "; ")
}
