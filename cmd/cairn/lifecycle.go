package main

import (
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"
)

// maxRulesFile bounds the file with a bucket's rules, in bytes.
const maxRulesFile = 64 << 10

type (
	ruleInfo struct {
		Prefix         string `json:"prefix,omitempty"`
		ExpireDays     uint32 `json:"expire_days,omitempty"`
		NoncurrentDays uint32 `json:"noncurrent_days,omitempty"`
		KeepNewest     uint32 `json:"keep_newest,omitempty"`
		AbortDays      uint32 `json:"abort_uploads_days,omitempty"`
		Markers        bool   `json:"expired_markers,omitempty"`
	}
	lifecycleInfo struct {
		Rules []ruleInfo `json:"rules"`
	}
)

func newLifecycle() *cobra.Command {
	cmd := &cobra.Command{
		Use: "lifecycle NAME [FILE|-]", Short: "Show or replace the rules of what expires in a bucket", Args: cobra.RangeArgs(1, 2),
		Long: `Without FILE show the rules of a bucket, with one put those in it in their place: JSON, as --json shows them.

  {"rules": [{"prefix": "logs/", "expire_days": 30},
             {"noncurrent_days": 7, "keep_newest": 3, "expired_markers": true, "abort_uploads_days": 2}]}

  expire_days          objects that were put so many days ago are deleted, as "cairn rm" does
  noncurrent_days      versions that something newer stands above since so many days are purged,
  keep_newest          but so many of them, the newest, stay
  expired_markers      delete markers that nothing lies under are purged
  abort_uploads_days   uploads to which nothing came for so many days are aborted

The server follows them hourly; "cairn gc" does so at once, "cairn gc --dry-run" says what it would do. What is locked stays. A
clock that leaps ahead is believed after a day.`,
		Example: "  cairn bucket lifecycle photos rules.json\n  cairn bucket lifecycle photos --json\n  cairn bucket lifecycle photos --clear",
		RunE:    do(runLifecycle),
	}
	cmd.Flags().Bool("clear", false, "take all rules away")
	return clientFlags(cmd)
}

func runLifecycle(cmd *cobra.Command, args []string) error {
	none, _ := cmd.Flags().GetBool("clear")
	rules := lifecycleInfo{Rules: []ruleInfo{}}
	switch {
	case none && len(args) > 1:
		return &exitError{exitUsage, errors.New("--clear goes without a file")}
	case len(args) > 1:
		b, err := readRules(cmd, args[1])
		if err != nil {
			return err
		}
		if err := rules.parse(b); err != nil {
			return fmt.Errorf("%s holds no rules: %w", printable(args[1]), err)
		}
	}
	cl, err := newClient(cmd)
	if err != nil {
		return err
	}
	path := bucketPath(args[0]) + "/lifecycle"
	if none || len(args) > 1 {
		if err := cl.call(cmd.Context(), http.MethodPut, path, nil, rules, &rules); err != nil {
			return err
		}
	} else if err := cl.call(cmd.Context(), http.MethodGet, path, nil, nil, &rules); err != nil {
		return err
	}
	if jsonWanted(cmd) {
		return printJSON(cmd, rules)
	}
	w := tabwriter.NewWriter(cmd.OutOrStdout(), 0, 0, 2, ' ', 0)
	if len(rules.Rules) == 0 {
		fmt.Fprintf(w, "nothing expires in bucket %s\n", args[0])
	}
	for _, r := range rules.Rules {
		fmt.Fprintf(w, "%s*\t%s\n", printable(r.Prefix), r.text())
	}
	return w.Flush()
}

// parse reads rules as a file has them: an object with the list, and nothing behind it.
// No list is refused, for it would take all rules away.
func (l *lifecycleInfo) parse(b []byte) error {
	l.Rules = nil
	d := json.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	if err := d.Decode(l); err != nil {
		if e, ok := errors.AsType[*json.UnmarshalTypeError](err); ok {
			return fmt.Errorf("%s cannot be a JSON %s", cmp.Or(e.Field, "a file of rules"), e.Value)
		}
		return err
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return errors.New("there is something behind the rules")
	}
	if l.Rules == nil {
		return errors.New(`it has no "rules"; to take all away: --clear`)
	}
	return nil
}

func readRules(cmd *cobra.Command, name string) ([]byte, error) {
	in := cmd.InOrStdin()
	if name != "-" {
		f, err := os.Open(name)
		if err != nil {
			return nil, err
		}
		defer f.Close()
		in = f
	}
	b, err := io.ReadAll(io.LimitReader(in, maxRulesFile+1))
	if err == nil && len(b) > maxRulesFile {
		err = fmt.Errorf("%s is longer than %d bytes", printable(name), maxRulesFile)
	}
	return b, err
}

// text is a rule in a few words.
func (r *ruleInfo) text() string {
	var out []string
	days := func(what string, n uint32) {
		if n > 0 {
			out = append(out, fmt.Sprintf("%s after %s", what, plural(int(n), "day")))
		}
	}
	days("deleted", r.ExpireDays)
	days("older versions purged", r.NoncurrentDays)
	if r.KeepNewest > 0 {
		out = append(out, fmt.Sprintf("but the newest %d", r.KeepNewest))
	}
	if r.Markers {
		out = append(out, "lone delete markers purged")
	}
	days("uploads aborted", r.AbortDays)
	return strings.Join(out, ", ")
}
