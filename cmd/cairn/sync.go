package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/zeebo/blake3"
)

func newSync() *cobra.Command {
	c := parent(&cobra.Command{
		Use: "sync", Short: "Make a prefix like a directory, or a directory like a prefix",
		Long: `Copy, in one direction, what is missing or differs. Nothing is ever copied back.

A file and an object are taken for the same when their sizes are equal and the one to be copied was not changed after the
other was written. A change that keeps the size and sets an older time is missed, as is one while the clocks of the two machines
differ; --checksum reads both and compares them.

With --delete what the source does not have is deleted at the target, after everything was copied, and only when nothing
failed before. A source without any file deletes nothing. Both sides are listed first; a line for each file is held in memory.`,
	})
	add := func(cmd *cobra.Command) {
		cmd.Args = cobra.ExactArgs(2)
		cmd.Flags().BoolP("dry-run", "n", false, "say what would be done, and do nothing")
		cmd.Flags().Bool("delete", false, "delete at the target what the source does not have")
		cmd.Flags().Bool("checksum", false, "compare contents of what seems to be the same")
		cmd.Flags().Int("parallel", 4, "files at a time")
		resumeFlags(cmd)
		c.AddCommand(clientFlags(cmd))
	}
	add(&cobra.Command{
		Use: "up DIR BUCKET[/PREFIX/]", Short: "Make what is under a prefix like a directory",
		Long: `Store what is in a directory under a prefix, as put does: regular files only. What get could not make a file of is left alone
by --delete.`,
		Example: "  cairn sync up photos main/photos/ --dry-run\n  cairn sync up photos main/photos/ --delete",
		RunE:    do(func(cmd *cobra.Command, args []string) error { return runSync(cmd, args[0], args[1], true) }),
	})
	add(&cobra.Command{
		Use: "down BUCKET[/PREFIX/] DIR", Short: "Make a directory like what is under a prefix",
		Long: `Read what is under a prefix into a directory, as get does. --delete removes regular files alone; directories that are empty
then stay, and so does what is no regular file.`,
		Example: "  cairn sync down main/photos/ photos --dry-run",
		RunE:    do(func(cmd *cobra.Command, args []string) error { return runSync(cmd, args[1], args[0], false) }),
	})
	return c
}

// synced is one file or object, as far as the comparison goes.
type synced struct {
	size    uint64
	changed time.Time
}

// syncPlan is what makes the target like the source. Names are sorted.
type syncPlan struct {
	copy    []string // missing, of another size, or older than the source's
	compare []string // seem to be the same
	extra   []string // the source does not have them
}

// planSync compares two sides by what is known without reading them.
func planSync(source, target map[string]synced) syncPlan {
	var p syncPlan
	for name, s := range source {
		if t, ok := target[name]; !ok || t.size != s.size || s.changed.After(t.changed) {
			p.copy = append(p.copy, name)
		} else {
			p.compare = append(p.compare, name)
		}
	}
	for name := range target {
		if _, ok := source[name]; !ok {
			p.extra = append(p.extra, name)
		}
	}
	slices.Sort(p.copy)
	slices.Sort(p.compare)
	slices.Sort(p.extra)
	return p
}

// syncing is one run.
type syncing struct {
	cmd            *cobra.Command
	cl             *client
	up             bool
	dir            string
	root           *os.Root // of dir; nil: it is not there yet
	bucket, prefix string
	parallel       int
	dry            bool
	resume         resumable
	failed         batch
}

func runSync(cmd *cobra.Command, dir, remote string, up bool) error {
	s := &syncing{cmd: cmd, up: up, dir: dir}
	var err error
	if s.cl, err = newClient(cmd); err != nil {
		return err
	}
	if s.bucket, s.prefix, err = splitName(remote, false); err != nil {
		return err
	}
	if s.prefix != "" && !strings.HasSuffix(s.prefix, "/") {
		s.prefix += "/"
	}
	s.parallel, _ = cmd.Flags().GetInt("parallel")
	if s.resume, err = resuming(cmd); err != nil {
		return err
	}
	s.parallel = max(s.parallel, 1)
	s.dry, _ = cmd.Flags().GetBool("dry-run")
	if !up && !s.dry {
		if err := os.MkdirAll(dir, 0o777); err != nil {
			return err
		}
	}
	if s.root, err = os.OpenRoot(dir); err == nil {
		defer s.root.Close()
	} else if up || !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	files, skipped, err := s.files()
	if err != nil {
		return err
	}
	objects, odd, err := s.objects()
	if err != nil {
		return err
	}
	source, target := files, objects
	if !up {
		source, target = objects, files
		for _, name := range odd {
			s.failed.note(s.bucket+"/"+s.prefix+name, fmt.Errorf("%q cannot be a file's name under %s", name, dir))
		}
	}
	p := planSync(source, target)
	same := len(p.compare)
	if sum, _ := cmd.Flags().GetBool("checksum"); sum {
		differ := s.differing(p.compare)
		same -= len(differ)
		p.copy = append(p.copy, differ...)
		slices.Sort(p.copy)
	}
	copied := p.copy
	if !s.dry {
		copied = s.copyAll(p.copy, files)
	}
	deleted := []string{}
	remove, _ := cmd.Flags().GetBool("delete")
	switch {
	case !remove || len(p.extra) == 0:
	case len(source) == 0:
		return errors.Join(s.failed.result(cmd, len(copied)), errors.New("the source has no file at all: nothing is deleted; if that is meant, use rm"))
	case len(s.failed.failed) > 0 || s.failed.stop != nil:
		s.failed.left += len(p.extra)
	case s.dry:
		deleted = p.extra
	default:
		deleted = s.deleteAll(p.extra)
	}
	result := s.failed.result(cmd, len(copied)+len(deleted))
	if jsonWanted(cmd) {
		object := map[string]any{"copied": append([]string{}, copied...), "deleted": deleted, "same": same, "dry_run": s.dry}
		if len(skipped) > 0 {
			object["skipped"] = skipped
		}
		return errors.Join(result, printJSON(cmd, s.failed.into(object)))
	}
	words := [2]string{"copied ", "deleted "}
	if s.dry {
		words = [2]string{"would copy ", "would delete "}
	}
	w := cmd.OutOrStdout()
	for i, names := range [2][]string{copied, deleted} {
		for _, name := range names {
			fmt.Fprintln(w, words[i]+printable(name))
		}
	}
	for _, x := range skipped {
		fmt.Fprintf(cmd.ErrOrStderr(), "skipped %s: %s\n", printable(x.Name), x.Why)
	}
	_, err = fmt.Fprintf(w, "%s%d, %s%d, the same %d\n", words[0], len(copied), words[1], len(deleted), same)
	return errors.Join(result, err)
}

// files lists the regular files of the directory by their path in it.
func (s *syncing) files() (map[string]synced, []skip, error) {
	out := map[string]synced{}
	if s.root == nil {
		return out, nil, nil
	}
	ups := &uploads{}
	ups.walk(s.dir, "")
	for _, u := range ups.files {
		info, err := os.Lstat(u.path)
		if err == nil && !info.Mode().IsRegular() {
			err = fmt.Errorf("it is %s", kindOf(info.Mode()))
		}
		if err != nil {
			ups.note(u.path, err)
			continue
		}
		out[u.key] = synced{uint64(info.Size()), info.ModTime()}
	}
	// What could not be looked at counts as a failure, so that nothing is deleted on its account.
	s.failed.failed = append(s.failed.failed, ups.failed...)
	if !s.up {
		return out, nil, nil
	}
	return out, slices.DeleteFunc(ups.skipped, func(x skip) bool { return x.Name == s.dir || x.Name == filepath.Clean(s.dir) }), nil
}

// objects lists what is under the prefix by its name behind it; odd are names that
// no file can have.
func (s *syncing) objects() (out map[string]synced, odd []string, err error) {
	out = map[string]synced{}
	err = eachPage(s.cmd.Context(), s.cl, s.bucket, url.Values{"prefix": {s.prefix}}, func(p listing) error {
		for _, o := range p.Objects {
			name := strings.TrimPrefix(o.Key, s.prefix)
			if !fileName(name) {
				odd = append(odd, name)
				continue
			}
			out[name] = synced{o.Size, o.Modified}
		}
		return nil
	})
	return out, odd, err
}

func (s *syncing) name(name string) string { return name }

// differing reads both sides of names and returns those that differ.
func (s *syncing) differing(names []string) []string {
	type verdict struct {
		name string
		same bool
	}
	var out []string
	for _, v := range each(s.cmd.Context(), s.parallel, names, &s.failed, s.name, func(ctx context.Context, name string) (verdict, error) {
		same, err := s.compare(ctx, name)
		return verdict{name, same}, err
	}) {
		if !v.same {
			out = append(out, v.name)
		}
	}
	return out
}

func (s *syncing) compare(ctx context.Context, name string) (bool, error) {
	f, err := s.root.Open(filepath.FromSlash(name))
	if err != nil {
		return false, err
	}
	defer f.Close()
	here, there := blake3.New(), blake3.New()
	if _, err := f.WriteTo(here); err != nil {
		return false, err
	}
	resp, err := open(ctx, s.cl, s.bucket, s.prefix+name, nil, http.Header{})
	if err != nil {
		return false, err
	}
	defer resp.Body.Close()
	if _, err := fetch(ctx, s.cl, there, resp, resp.Body, s.bucket, s.prefix+name); err != nil {
		return false, err
	}
	return bytes.Equal(here.Sum(nil), there.Sum(nil)), nil
}

// copyAll copies names to the target and returns those that were.
func (s *syncing) copyAll(names []string, files map[string]synced) []string {
	if s.failed.stop != nil { // it would be so for these too
		s.failed.left += len(names)
		return nil
	}
	bars := newProgress(s.cmd, jsonWanted(s.cmd))
	defer bars.wait()
	return each(s.cmd.Context(), s.parallel, names, &s.failed, s.name, func(ctx context.Context, name string) (string, error) {
		if s.up {
			u := upload{filepath.Join(s.dir, filepath.FromSlash(name)), s.prefix + name, int64(files[name].size)}
			_, err := putOne(ctx, s.cl, bars, s.bucket, u, http.Header{}, "", false, s.resume)
			return name, err
		}
		if err := s.root.MkdirAll(filepath.Dir(filepath.FromSlash(name)), 0o777); err != nil {
			return name, err
		}
		_, err := getOne(ctx, s.cl, bars, s.bucket, s.prefix+name, s.root, filepath.FromSlash(name), nil, http.Header{}, getting{})
		return name, err
	})
}

func (s *syncing) deleteAll(names []string) []string {
	return each(s.cmd.Context(), s.parallel, names, &s.failed, s.name, func(ctx context.Context, name string) (string, error) {
		if s.up {
			return name, s.cl.call(ctx, http.MethodDelete, objectPath(s.bucket, s.prefix+name), nil, nil, nil)
		}
		return name, s.root.Remove(filepath.FromSlash(name))
	})
}
