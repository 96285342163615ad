package main

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"net/url"
	"strings"

	"github.com/spf13/cobra"
)

// failure is one item of a batch that was not done.
type failure struct {
	Name   string `json:"name"`
	Error  string `json:"error"`
	Status int    `json:"status,omitempty"` // of the server's answer

	err error
}

// batch counts what came of a command that does the same to several things. What
// fails for one of them is no reason to leave the others; what would fail for all
// of them ends it.
type batch struct {
	failed []failure
	left   int  // not tried
	more   bool // and others, which were not listed yet
	stop   error
}

// note files an outcome and reports whether to go on.
func (b *batch) note(name string, err error) bool {
	if err == nil {
		return true
	}
	f := failure{Name: name, Error: err.Error(), err: err}
	if e, ok := errors.AsType[*remoteError](err); ok {
		f.Status = e.Status
	}
	b.failed = append(b.failed, f)
	if endsBatch(err) {
		b.stop = err
		return false
	}
	return true
}

// endsBatch reports whether an error is about the server, not about the item.
func endsBatch(err error) bool {
	if errors.Is(err, context.Canceled) {
		return true
	}
	if e, ok := errors.AsType[*exitError](err); ok {
		return e.code == exitNoReach || e.code == exitInterrupted
	}
	e, ok := errors.AsType[*remoteError](err)
	if !ok {
		return false
	}
	switch e.Status {
	case http.StatusUnauthorized, http.StatusMisdirectedRequest, http.StatusServiceUnavailable, http.StatusInsufficientStorage:
		return true
	}
	return false
}

// result is the batch's error: that of the one item when there was one, else how
// many of them were not done, each failure having its line before that.
func (b *batch) result(cmd *cobra.Command, done int) error {
	if len(b.failed) == 0 && b.left == 0 {
		return nil
	}
	if done == 0 && len(b.failed) == 1 && b.left == 0 && !b.more {
		return fmt.Errorf("%s: %w", printable(b.failed[0].Name), b.failed[0].err)
	}
	if !jsonWanted(cmd) {
		for _, f := range b.failed {
			fmt.Fprintf(cmd.ErrOrStderr(), "cairn: %s: %s\n", printable(f.Name), f.Error)
		}
	}
	text := []string{fmt.Sprintf("%d of %d done", done, done+len(b.failed)+b.left)}
	if b.more {
		text[0] = fmt.Sprintf("%d done", done)
	}
	if len(b.failed) > 0 {
		text = append(text, fmt.Sprintf("%d failed", len(b.failed)))
	}
	switch {
	case b.more:
		text = append(text, "the rest not tried")
	case b.left > 0:
		text = append(text, fmt.Sprintf("%d not tried", b.left))
	}
	code := exitFailed
	if errors.Is(b.stop, context.Canceled) {
		code = exitInterrupted
	} else if e, ok := errors.AsType[*exitError](b.stop); ok {
		code = e.code
	}
	if code == exitInterrupted {
		text[0] = "interrupted: " + text[0]
	}
	return &exitError{code, errors.New(strings.Join(text, ", "))}
}

// into adds what was not done to an object that is printed as JSON.
func (b *batch) into(object map[string]any) map[string]any {
	if len(b.failed) > 0 {
		object["failed"] = b.failed
	}
	if b.left > 0 || b.more {
		object["not_tried"] = b.left
	}
	return object
}

// eachName does something to one name after the other and tells the outcome, a
// line each: say gives it for a name that it was done to. more goes into the JSON.
func eachName(cmd *cobra.Command, word string, names []string, more map[string]any, do func(name string) (say string, err error)) error {
	var b batch
	done, said := []string{}, []string{}
	for i, name := range names {
		say, err := do(name)
		if err == nil {
			done, said = append(done, name), append(said, say)
		}
		if !b.note(name, err) {
			b.left = len(names) - i - 1
			break
		}
	}
	if jsonWanted(cmd) {
		object := b.into(map[string]any{word: done})
		maps.Copy(object, more)
		return errors.Join(b.result(cmd, len(done)), printJSON(cmd, object))
	}
	for _, say := range said {
		if _, err := fmt.Fprintln(cmd.OutOrStdout(), say); err != nil {
			return err
		}
	}
	return b.result(cmd, len(done))
}

// errStopped ends a listing of which nothing more is to be tried.
var errStopped = errors.New("stopped")

// eachUnder does something to every object whose key begins with prefix, page by page
// and --parallel at a time, and returns to how many. line, unless it is nil, gives what
// is told of each that was done; with --json they are all printed together under word.
func eachUnder[T any](cmd *cobra.Command, cl *client, bucket, prefix, word string, do func(ctx context.Context, o objectInfo) (T, error), line func(T) string) (int, error) {
	parallel, _ := cmd.Flags().GetInt("parallel")
	var failed batch
	all, n := []T{}, 0 // all is kept for --json only
	err := eachPage(cmd.Context(), cl, bucket, url.Values{"prefix": {prefix}}, func(p listing) error {
		done := each(cmd.Context(), max(parallel, 1), p.Objects, &failed, func(o objectInfo) string { return bucket + "/" + o.Key }, do)
		n += len(done)
		for _, d := range done {
			if jsonWanted(cmd) {
				all = append(all, d)
			} else if line != nil {
				if _, err := fmt.Fprintln(cmd.OutOrStdout(), line(d)); err != nil {
					return err
				}
			}
		}
		if failed.stop != nil {
			failed.more = p.More
			return errStopped
		}
		return nil
	})
	if errors.Is(err, errStopped) {
		err = nil // the batch tells it
	}
	if err == nil && n == 0 && len(failed.failed) == 0 {
		err = fmt.Errorf("nothing begins with %s", printable(bucket+"/"+prefix))
	}
	err = errors.Join(err, failed.result(cmd, n))
	if jsonWanted(cmd) {
		err = errors.Join(err, printJSON(cmd, failed.into(map[string]any{word: all})))
	}
	return n, err
}
