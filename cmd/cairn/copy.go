package main

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strings"

	"github.com/spf13/cobra"
)

func newCopy() *cobra.Command {
	cmd := &cobra.Command{
		Use: "cp BUCKET/KEY BUCKET/KEY", Short: "Copy an object without moving a byte", Args: cobra.ExactArgs(2),
		Long: `Copy an object to another name, in the same bucket or another. The copy refers to the same chunks: nothing is read, sent or
stored again. Type and metadata go with it. A target that ends in a slash takes the last part of the source's key.

With --recursive everything under the source's prefix is copied, each object under the rest of its key.`,
		Example: "  cairn cp main/notes.txt main/notes.old\n  cairn cp -r main/photos/ archive/2026/",
		RunE:    do(func(cmd *cobra.Command, args []string) error { return copyObjects(cmd, args, "copy_from", "copied") }),
	}
	cmd.Flags().String("version", "", "copy this version, not the current one")
	return copyFlags(cmd)
}

func newMove() *cobra.Command {
	return copyFlags(&cobra.Command{
		Use: "mv BUCKET/KEY BUCKET/KEY", Short: "Rename an object without moving a byte", Args: cobra.ExactArgs(2),
		Long: `Rename an object, in its bucket or into another, at one point in time: nobody sees it under both names or under neither. The
old name keeps its versions under a delete marker. A target that ends in a slash takes the last part of the source's key.

With --recursive everything under the source's prefix is renamed, one object after the other.`,
		Example: "  cairn mv main/draft.txt main/letter.txt\n  cairn mv -r main/inbox/ main/done/",
		RunE:    do(func(cmd *cobra.Command, args []string) error { return copyObjects(cmd, args, "rename_from", "renamed") }),
	})
}

func copyFlags(cmd *cobra.Command) *cobra.Command {
	cmd.Flags().Bool("no-clobber", false, "fail where an object of the target's name is there already")
	cmd.Flags().BoolP("recursive", "r", false, "everything under a prefix")
	cmd.Flags().Int("parallel", 4, "objects at a time, with --recursive")
	return clientFlags(cmd)
}

// copying is what one command copies or renames, and how.
type copying struct {
	cmd          *cobra.Command
	cl           *client
	action, word string // of the query; of what is told
	query        url.Values
	header       http.Header
}

func copyObjects(cmd *cobra.Command, args []string, action, word string) error {
	cl, err := newClient(cmd)
	if err != nil {
		return err
	}
	c := &copying{cmd: cmd, cl: cl, action: action, word: word, query: url.Values{}, header: http.Header{}}
	if v, _ := cmd.Flags().GetBool("no-clobber"); v {
		c.header.Set("If-None-Match", "*")
	}
	recursive, _ := cmd.Flags().GetBool("recursive")
	if f := cmd.Flags().Lookup("version"); f != nil && f.Value.String() != "" {
		if recursive {
			return &exitError{exitUsage, errors.New("--version goes with one object")}
		}
		c.query.Set("version", f.Value.String())
	}
	from, fromKey, err := splitName(args[0], !recursive)
	if err != nil {
		return err
	}
	to, toKey, err := splitName(args[1], false)
	if err != nil {
		return err
	}
	if recursive {
		return c.tree(from, slashed(fromKey), to, slashed(toKey))
	}
	if toKey == "" || strings.HasSuffix(toKey, "/") {
		toKey += fromKey[strings.LastIndex(fromKey, "/")+1:]
	}
	if toKey == "" || strings.HasSuffix(toKey, "/") && strings.HasSuffix(fromKey, "/") {
		return &exitError{exitUsage, fmt.Errorf("%q has no last part to be a name; name the target, or say --recursive", args[0])}
	}
	o, err := c.one(cmd.Context(), from, fromKey, to, toKey)
	if err != nil {
		return fmt.Errorf("%s: %w", printable(args[0]), err)
	}
	if jsonWanted(cmd) {
		return printJSON(cmd, o)
	}
	_, err = fmt.Fprintln(cmd.OutOrStdout(), c.line(from, fromKey, o))
	return err
}

// slashed is a prefix that ends where a name does.
func slashed(prefix string) string {
	if prefix != "" && !strings.HasSuffix(prefix, "/") {
		prefix += "/"
	}
	return prefix
}

func (c *copying) line(bucket, key string, o objectInfo) string {
	return fmt.Sprintf("%s %s to %s", c.word, printable(bucket+"/"+key), printable(o.Bucket+"/"+o.Key))
}

func (c *copying) one(ctx context.Context, from, fromKey, to, toKey string) (o objectInfo, err error) {
	q := url.Values{c.action: {from + "/" + fromKey}}
	for name, v := range c.query {
		q[name] = v
	}
	resp, err := c.cl.do(ctx, http.MethodPost, objectPath(to, toKey), q, c.header, nil, 0)
	if e, ok := errors.AsType[*remoteError](err); ok && e.Status == http.StatusPreconditionFailed && c.header.Get("If-None-Match") != "" {
		return o, fmt.Errorf("%s is there already, and --no-clobber was said", printable(to+"/"+toKey))
	}
	if err != nil {
		return o, err
	}
	defer resp.Body.Close()
	return o, decode(resp.Body, &o)
}

// tree copies everything under a prefix, page by page.
func (c *copying) tree(from, prefix, to, target string) error {
	if from == to && (strings.HasPrefix(target, prefix) || c.action == "rename_from" && target == prefix) {
		return &exitError{exitUsage, fmt.Errorf("%s/%s lies within %s/%s: what was copied would be copied again", to, target, from, prefix)}
	}
	_, err := eachUnder(c.cmd, c.cl, from, prefix, "objects", func(ctx context.Context, o objectInfo) (objectInfo, error) {
		return c.one(ctx, from, o.Key, to, target+strings.TrimPrefix(o.Key, prefix))
	}, func(o objectInfo) string { return c.line(from, prefix+strings.TrimPrefix(o.Key, target), o) })
	return err
}
