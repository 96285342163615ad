package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"strings"

	"github.com/spf13/cobra"
	"golang.org/x/term"
)

func newRemove() *cobra.Command {
	cmd := &cobra.Command{
		Use: "rm BUCKET/KEY...", Short: "Delete objects; undelete brings them back", Args: cobra.MinimumNArgs(1),
		Long: `Delete objects. undelete brings one back as long as nothing was put in its place. With --recursive everything
under BUCKET/KEY/ is deleted, after a question; without a terminal to ask on, --yes is needed.`,
		Example: "  cairn rm main/notes.txt\n  cairn rm -r main/photos/\n  cairn rm main/notes.txt --version 000000000000002a00000000",
		RunE:    do(runRemove),
	}
	cmd.Flags().String("version", "", "remove this version for good")
	cmd.Flags().Bool("bypass-governance", false, "with --version: also when it is retained in governance mode")
	cmd.Flags().BoolP("recursive", "r", false, "delete everything under a prefix")
	cmd.Flags().Bool("yes", false, "do not ask")
	cmd.Flags().Int("parallel", 4, "objects at a time, with --recursive")
	return clientFlags(cmd)
}

func runRemove(cmd *cobra.Command, args []string) error {
	cl, err := newClient(cmd)
	if err != nil {
		return err
	}
	version, _ := cmd.Flags().GetString("version")
	recursive, _ := cmd.Flags().GetBool("recursive")
	if version != "" && (len(args) > 1 || recursive) {
		return &exitError{exitUsage, errors.New("--version goes with one object")}
	}
	over, _ := cmd.Flags().GetBool("bypass-governance")
	if over && version == "" {
		return &exitError{exitUsage, errors.New("--bypass-governance goes with --version: nothing else removes a version")}
	}
	if recursive {
		if len(args) > 1 {
			return &exitError{exitUsage, errors.New("--recursive goes with one prefix")}
		}
		return removeTree(cmd, cl, args[0])
	}
	query := url.Values{}
	if version != "" {
		query.Set("version", version)
	}
	if over {
		query.Set("bypass_governance", "true")
	}
	return eachName(cmd, "deleted", args, nil, func(name string) (string, error) {
		bucket, key, err := splitName(name, true)
		if err != nil {
			return "", err
		}
		err = cl.call(cmd.Context(), http.MethodDelete, objectPath(bucket, key), query, nil, nil)
		if e, ok := errors.AsType[*remoteError](err); ok && e.Status == http.StatusNotFound && strings.HasSuffix(key, "/") {
			e.Hint = "to delete everything under it: cairn rm --recursive " + name
		}
		if version != "" {
			return fmt.Sprintf("removed version %s of %s for good", version, printable(name)), err
		}
		return "deleted " + printable(name), err
	})
}

// removeTree deletes everything under a prefix, page by page.
func removeTree(cmd *cobra.Command, cl *client, name string) error {
	bucket, prefix, err := splitName(name, false)
	if err != nil {
		return err
	}
	if prefix != "" && !strings.HasSuffix(prefix, "/") {
		prefix += "/"
	}
	under := printable(bucket + "/" + prefix)
	if yes, _ := cmd.Flags().GetBool("yes"); !yes {
		n := 0
		if err := eachPage(cmd.Context(), cl, bucket, url.Values{"prefix": {prefix}}, func(p listing) error {
			n += len(p.Objects)
			return nil
		}); err != nil {
			return err
		}
		if n == 0 {
			return fmt.Errorf("nothing begins with %s", under)
		}
		if f, ok := cmd.InOrStdin().(*os.File); !ok || !term.IsTerminal(int(f.Fd())) {
			return &exitError{exitUsage, fmt.Errorf("%d objects are under %s; to delete them, say --yes", n, under)}
		}
		fmt.Fprintf(cmd.ErrOrStderr(), "Delete %d objects under %s? [y/N] ", n, under)
		answer, _ := bufio.NewReader(cmd.InOrStdin()).ReadString('\n') // no answer is no
		if a := strings.ToLower(strings.TrimSpace(answer)); a != "y" && a != "yes" {
			return errors.New("nothing was deleted")
		}
	}
	_, err = eachUnder(cmd, cl, bucket, prefix, "deleted", func(ctx context.Context, o objectInfo) (string, error) {
		return bucket + "/" + o.Key, cl.call(ctx, http.MethodDelete, objectPath(bucket, o.Key), nil, nil, nil)
	}, func(name string) string { return "deleted " + printable(name) })
	return err
}
