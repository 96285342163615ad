package main

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/dustin/go-humanize"
	"github.com/spf13/cobra"
	"github.com/zeebo/blake3"
	"golang.org/x/sys/unix"
)

// The JSON of the REST interface, as far as the commands look at it.
type (
	objectInfo struct {
		Bucket      string            `json:"bucket"`
		Key         string            `json:"key"`
		Version     string            `json:"version"`
		Size        uint64            `json:"size"`
		ETag        string            `json:"etag,omitempty"`
		Modified    time.Time         `json:"modified"`
		ContentType string            `json:"content_type,omitempty"`
		Meta        map[string]string `json:"meta,omitempty"`
		Retention   *retentionInfo    `json:"retention,omitempty"`
		Hold        bool              `json:"legal_hold,omitempty"`
		Deleted     bool              `json:"deleted,omitempty"`
		Current     bool              `json:"current"`
	}
	listing struct {
		Objects  []objectInfo `json:"objects"`
		Prefixes []string     `json:"prefixes"`
		More     bool         `json:"more"`
		Cursor   string       `json:"cursor"`
	}
	bucketSettings struct {
		K            uint8   `json:"k,omitempty"`
		Compression  string  `json:"compression,omitempty"`
		Profile      string  `json:"profile,omitempty"`
		Versioning   *bool   `json:"versioning,omitempty"`
		QuotaBytes   *uint64 `json:"quota_bytes,omitempty"`
		QuotaObjects *uint64 `json:"quota_objects,omitempty"`
		ObjectLock   *bool   `json:"object_lock,omitempty"`
		// The empty mode takes a default retention away.
		RetentionMode *string `json:"retention_mode,omitempty"`
		RetentionDays *uint32 `json:"retention_days,omitempty"`
	}
	bucketInfo struct {
		Name     string         `json:"name"`
		Created  time.Time      `json:"created"`
		Objects  uint64         `json:"objects"`
		Bytes    uint64         `json:"logical_bytes"`
		Settings bucketSettings `json:"settings"`
	}
)

func newBucket() *cobra.Command {
	c := parent(&cobra.Command{Use: "bucket", Short: "Make, list, change and remove buckets"})
	settings := func(cmd *cobra.Command) *cobra.Command {
		cmd.Flags().Uint8("k", 0, "most data shards of its packs (default 4): more take less room for parity, and more nodes for each read")
		cmd.Flags().String("compression", "", "auto compresses what a probe finds worth it, off nothing (default auto)")
		cmd.Flags().String("profile", "", "chunk sizes: default (about 1 MiB), or fine (about 256 KiB) for data with many small changes")
		cmd.Flags().Bool("versioning", false, "keep every version of an object; without it an overwrite is final")
		cmd.Flags().String("quota", "", "most bytes that all versions may have together, as 10GB or 10GiB; 0: no quota")
		cmd.Flags().Uint64("max-objects", 0, "most objects that may be in it; 0: no quota")
		cmd.Flags().Bool("object-lock", false, "let versions be retained and held, see \"cairn lock\"; needs --versioning, and is for good")
		cmd.Flags().String("retention", "", "with object lock, retain new versions so: MODE:DAYS, as governance:30 or compliance:365, or none")
		return clientFlags(cmd)
	}
	read := func(cmd *cobra.Command) (bucketSettings, error) {
		var s bucketSettings
		s.K, _ = cmd.Flags().GetUint8("k")
		s.Compression, _ = cmd.Flags().GetString("compression")
		s.Profile, _ = cmd.Flags().GetString("profile")
		if cmd.Flags().Changed("versioning") {
			v, _ := cmd.Flags().GetBool("versioning")
			s.Versioning = &v
		}
		if cmd.Flags().Changed("quota") {
			text, _ := cmd.Flags().GetString("quota")
			n, err := humanize.ParseBytes(text)
			if err != nil {
				return s, &exitError{exitUsage, fmt.Errorf("--quota %q is no number of bytes, such as 10GB, 10GiB or 0", text)}
			}
			s.QuotaBytes = &n
		}
		if cmd.Flags().Changed("max-objects") {
			n, _ := cmd.Flags().GetUint64("max-objects")
			s.QuotaObjects = &n
		}
		if cmd.Flags().Changed("object-lock") {
			v, _ := cmd.Flags().GetBool("object-lock")
			s.ObjectLock = &v
		}
		if cmd.Flags().Changed("retention") {
			text, _ := cmd.Flags().GetString("retention")
			mode, number, ok := strings.Cut(text, ":")
			days, err := strconv.ParseUint(number, 10, 32)
			if text == "none" {
				mode, days = "", 0
			} else if !ok || err != nil {
				return s, &exitError{exitUsage, fmt.Errorf("--retention %q is not MODE:DAYS, such as governance:30, nor none", text)}
			}
			n := uint32(days)
			s.RetentionMode, s.RetentionDays = &mode, &n
		}
		return s, nil
	}
	change := func(cmd *cobra.Command, method, name, word string) error {
		set, err := read(cmd)
		if err != nil {
			return err
		}
		cl, err := newClient(cmd)
		if err != nil {
			return err
		}
		var b bucketInfo
		if err := cl.call(cmd.Context(), method, bucketPath(name), nil, set, &b); err != nil {
			return err
		}
		if jsonWanted(cmd) {
			return printJSON(cmd, b)
		}
		_, err = fmt.Fprintf(cmd.OutOrStdout(), "%s bucket %s\n", word, b.Name)
		return err
	}
	c.AddCommand(settings(&cobra.Command{
		Use: "create NAME", Short: "Make a bucket", Args: cobra.ExactArgs(1), Example: "  cairn bucket create photos --versioning",
		RunE: do(func(cmd *cobra.Command, args []string) error {
			return change(cmd, http.MethodPut, args[0], "made")
		}),
	}), settings(&cobra.Command{
		Use: "set NAME", Short: "Change a bucket's settings", Args: cobra.ExactArgs(1), Example: "  cairn bucket set photos --versioning=false\n  cairn bucket set photos --quota 10GB",
		RunE: do(func(cmd *cobra.Command, args []string) error {
			if !slices.ContainsFunc([]string{"k", "compression", "profile", "versioning", "quota", "max-objects", "object-lock", "retention"}, cmd.Flags().Changed) {
				return &exitError{exitUsage, errors.New("name a setting to change: --versioning, --quota, --max-objects, --object-lock, --retention, --k, --compression or --profile")}
			}
			return change(cmd, http.MethodPatch, args[0], "changed")
		}),
	}), newLifecycle(), clientFlags(&cobra.Command{
		Use: "ls", Aliases: []string{"list"}, Short: "List buckets", Args: cobra.NoArgs, Example: "  cairn bucket ls",
		RunE: do(listBuckets),
	}), clientFlags(&cobra.Command{
		Use: "rm NAME", Short: "Remove an empty bucket, with what was deleted in it", Args: cobra.ExactArgs(1), Example: "  cairn bucket rm photos",
		RunE: do(func(cmd *cobra.Command, args []string) error {
			cl, err := newClient(cmd)
			if err != nil {
				return err
			}
			if err := cl.call(cmd.Context(), http.MethodDelete, bucketPath(args[0]), nil, nil, nil); err != nil {
				return err
			}
			return tellAll(cmd, "removed", args)
		}),
	}))
	return c
}

func newGet() *cobra.Command {
	cmd := &cobra.Command{
		Use: "get BUCKET/KEY [FILE|-]", Short: "Read an object into a file, or to standard output (-)", Args: cobra.RangeArgs(1, 2),
		Long: `Read an object. Without FILE its name is the key's last element. A file appears only when it is whole:
it is written beside its place under another name first, and takes the place of a file that is there unless
--no-clobber is said. With a KEY that ends in a slash, everything under that prefix is read into the directory FILE.

What the server sends was opened under its seal, so it is what was stored. With --verify the file is synced, dropped from
the cache as far as the system does so, and read back from its disk before it takes its name.`,
		Example: "  cairn get main/notes.txt\n  cairn get main/photos/ ./photos\n  cairn get main/backup.tar - | tar t",
		RunE:    do(runGet),
	}
	cmd.Flags().String("version", "", "an older version (see ls --versions)")
	cmd.Flags().String("range", "", "a part: FROM-TO, FROM- or -LAST, bytes counted from 0, TO included, LAST of them from the end")
	cmd.Flags().Bool("no-clobber", false, "fail where the file is there already")
	cmd.Flags().Bool("verify", false, "read each file back from its disk and compare it with what was received")
	cmd.Flags().Int("parallel", 4, "objects at a time, with a prefix")
	return clientFlags(cmd)
}

func runGet(cmd *cobra.Command, args []string) error {
	cl, err := newClient(cmd)
	if err != nil {
		return err
	}
	bucket, key, err := splitName(args[0], false)
	if err != nil {
		return err
	}
	target := ""
	if len(args) == 2 {
		target = args[1]
	}
	query, h := url.Values{}, http.Header{}
	if v, _ := cmd.Flags().GetString("version"); v != "" {
		query.Set("version", v)
	}
	if cmd.Flags().Changed("range") {
		v, _ := cmd.Flags().GetString("range")
		if !byteRange(v) {
			return &exitError{exitUsage, fmt.Errorf("--range %q is not FROM-TO, FROM- or -LAST", v)}
		}
		h.Set("Range", "bytes="+v)
	}
	var how getting
	how.keep, _ = cmd.Flags().GetBool("no-clobber")
	how.verify, _ = cmd.Flags().GetBool("verify")
	bars := newProgress(cmd, jsonWanted(cmd) || target == "-")
	if key == "" || strings.HasSuffix(key, "/") {
		if len(query) > 0 || len(h) > 0 {
			return &exitError{exitUsage, errors.New("--version and --range go with one object, not with a prefix")}
		}
		if target == "" || target == "-" {
			return &exitError{exitUsage, errors.New("to read everything under a prefix, name a directory")}
		}
		return getTree(cmd, cl, bars, bucket, key, target, how)
	}
	if target == "-" {
		if how.keep || how.verify {
			return &exitError{exitUsage, errors.New("--verify and --no-clobber go with files, not with standard output")}
		}
		resp, err := open(cmd.Context(), cl, bucket, key, query, h)
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		_, err = fetch(cmd.Context(), cl, cmd.OutOrStdout(), resp, resp.Body, bucket, key)
		return err
	}
	name := key[strings.LastIndexByte(key, '/')+1:]
	if info, err := os.Stat(target); target == "" || err == nil && info.IsDir() {
		if !fileName(name) {
			return &exitError{exitUsage, fmt.Errorf("%q cannot be a file's name; name the file", name)}
		}
		target = filepath.Join(target, name)
	}
	root, err := os.OpenRoot(filepath.Dir(target))
	if err != nil {
		return err
	}
	defer root.Close()
	n, err := getOne(cmd.Context(), cl, bars, bucket, key, root, filepath.Base(target), query, h, how)
	bars.wait()
	if err != nil {
		return err
	}
	if jsonWanted(cmd) {
		return printJSON(cmd, map[string]any{"bucket": bucket, "key": key, "file": target, "size": n})
	}
	_, err = fmt.Fprintf(cmd.OutOrStdout(), "read %s/%s into %s  %s\n", bucket, printable(key), printable(target), humanize.IBytes(uint64(n)))
	return err
}

// byteRange reports whether s is one of FROM-TO, FROM- and -LAST. A server answers
// with the whole object to what it does not understand.
func byteRange(s string) bool {
	from, to, ok := strings.Cut(s, "-")
	number := func(s string) (uint64, bool) {
		n, err := strconv.ParseUint(s, 10, 64)
		return n, err == nil && s[0] != '+'
	}
	a, okA := number(from)
	b, okB := number(to)
	switch {
	case !ok || from != "" && !okA || to != "" && !okB:
		return false
	case from == "" || to == "":
		return from != to
	}
	return a <= b
}

// open asks for an object, or for the part that a Range in h names.
func open(ctx context.Context, cl *client, bucket, key string, query url.Values, h http.Header) (*http.Response, error) {
	resp, err := cl.do(ctx, http.MethodGet, objectPath(bucket, key), query, h, nil, 0)
	if err != nil {
		return nil, err
	}
	// Of an object without bytes there are no parts: it is answered whole.
	if h.Get("Range") != "" && resp.StatusCode != http.StatusPartialContent && resp.ContentLength != 0 {
		resp.Body.Close()
		return nil, fmt.Errorf("%s/%s: the server answers with the whole object, not with the part that was asked for", bucket, printable(key))
	}
	return resp, nil
}

// fetch copies a body, read through r, and says how far it came when it ends early, and
// why: the next byte is asked for by itself.
func fetch(ctx context.Context, cl *client, w io.Writer, resp *http.Response, r io.Reader, bucket, key string) (int64, error) {
	n, err := io.Copy(w, r)
	if err == nil && resp.ContentLength >= 0 && n != resp.ContentLength {
		err = io.ErrUnexpectedEOF
	}
	if errors.Is(err, io.ErrUnexpectedEOF) {
		of := ""
		if resp.ContentLength >= 0 {
			of = fmt.Sprintf(" of %d", resp.ContentLength)
		}
		broke := fmt.Errorf("%s/%s: the server broke off after %d%s bytes", bucket, printable(key), n, of)
		if why := nextByte(ctx, cl, resp, n, bucket, key); why != nil {
			return n, fmt.Errorf("%w: %w", broke, why)
		}
		return n, fmt.Errorf("%w; what follows can be read again: try once more", broke)
	}
	if err != nil {
		return n, fmt.Errorf("read %s/%s: %w", bucket, printable(key), err)
	}
	return n, nil
}

// nextByte asks for the byte behind the n that came of an answer, and returns why it
// cannot be had.
func nextByte(ctx context.Context, cl *client, resp *http.Response, n int64, bucket, key string) error {
	from := n
	if at, ok := strings.CutPrefix(resp.Header.Get("Content-Range"), "bytes "); ok {
		first, _, _ := strings.Cut(at, "-")
		begin, err := strconv.ParseInt(first, 10, 64)
		if err != nil {
			return nil
		}
		from += begin
	}
	h := http.Header{"Range": {fmt.Sprintf("bytes=%d-%d", from, from)}}
	if tag := resp.Header.Get("ETag"); tag != "" {
		h.Set("If-Match", tag)
	}
	again, err := open(ctx, cl, bucket, key, resp.Request.URL.Query(), h)
	if err != nil {
		return err
	}
	defer again.Body.Close()
	if m, err := io.Copy(io.Discard, io.LimitReader(again.Body, 2)); m != 1 || err != nil {
		return errors.New("the byte that follows cannot be read; see `cairn status`")
	}
	return nil
}

// fileName reports whether a relative path names the one file that it spells:
// nothing outside, and no other spelling of the same place.
func fileName(rel string) bool {
	return filepath.IsLocal(rel) && filepath.Clean(rel) == rel && rel != "." && strings.IndexByte(rel, 0) < 0
}

// getting is how files are written.
type getting struct {
	keep   bool // what is there already
	verify bool // read back
}

// getOne reads an object into a file of a directory; it appears when it is whole.
func getOne(ctx context.Context, cl *client, bars *progress, bucket, key string, dir *os.Root, target string, query url.Values, h http.Header, how getting) (int64, error) {
	if how.keep {
		if _, err := dir.Lstat(target); err == nil {
			return 0, there(target)
		}
	}
	resp, err := open(ctx, cl, bucket, key, query, h)
	if err != nil {
		return 0, err
	}
	defer resp.Body.Close()
	temp := filepath.Join(filepath.Dir(target), ".cairn-"+rand.Text())
	f, err := dir.OpenFile(temp, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o666)
	if err != nil {
		return 0, err
	}
	defer func() { _ = dir.Remove(temp) }() // does nothing after the rename
	defer f.Close()
	bar := bars.begin(key, resp.ContentLength)
	var to io.Writer = f
	sum := blake3.New()
	if how.verify {
		to = io.MultiWriter(f, sum)
	}
	n, err := fetch(ctx, cl, to, resp, bar.reader(resp.Body), bucket, key)
	if err == nil && how.verify {
		if err = readBackFile(dir, temp, f, sum); err != nil {
			err = fmt.Errorf("%s: %w", printable(target), err)
		}
	}
	bar.end(err)
	if err != nil {
		return n, err
	}
	if err := f.Close(); err != nil {
		return n, err
	}
	if how.keep {
		err := dir.Link(temp, target)
		if errors.Is(err, fs.ErrExist) {
			return n, there(target)
		}
		if err == nil || !errors.Is(err, unix.EPERM) && !errors.Is(err, unix.ENOTSUP) {
			return n, err
		}
		// A filesystem without links: what comes between the look and the rename is lost.
		if _, err := dir.Lstat(target); err == nil {
			return n, there(target)
		}
	}
	return n, dir.Rename(temp, target)
}

func there(target string) error {
	return fmt.Errorf("%s is there already, and --no-clobber was said", printable(target))
}

// readBackFile holds a file on its disk against the sum of what was written to f.
func readBackFile(dir *os.Root, name string, f *os.File, sum *blake3.Hasher) error {
	if err := f.Sync(); err != nil {
		return err
	}
	// Only what is clean and synced leaves the cache; that it does is not promised.
	_ = unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_DONTNEED)
	r, err := dir.Open(name)
	if err != nil {
		return err
	}
	defer r.Close()
	again := blake3.New()
	if _, err := io.Copy(again, r); err != nil {
		return fmt.Errorf("read back what was written: %w", err)
	}
	if !bytes.Equal(again.Sum(nil), sum.Sum(nil)) {
		return errors.New("it does not read back as it was written: its disk or memory is at fault")
	}
	return nil
}

func getTree(cmd *cobra.Command, cl *client, bars *progress, bucket, prefix, dir string, how getting) error {
	if err := os.MkdirAll(dir, 0o777); err != nil {
		return err
	}
	root, err := os.OpenRoot(dir) // no key leads out of it
	if err != nil {
		return err
	}
	defer root.Close()
	n, err := eachUnder(cmd, cl, bucket, prefix, "objects", func(ctx context.Context, o objectInfo) (objectInfo, error) {
		rel := strings.TrimPrefix(o.Key, prefix)
		if !fileName(rel) {
			return o, fmt.Errorf("%q cannot be a file's name under %s", rel, dir)
		}
		if err := root.MkdirAll(filepath.Dir(rel), 0o777); err != nil {
			return o, err
		}
		_, err := getOne(ctx, cl, bars, bucket, o.Key, root, rel, nil, http.Header{}, how)
		return o, err
	}, nil)
	bars.wait()
	if !jsonWanted(cmd) {
		_, perr := fmt.Fprintf(cmd.OutOrStdout(), "read %s into %s\n", plural(n, "object"), printable(dir))
		err = errors.Join(err, perr)
	}
	return err
}

// eachPage goes through the pages of a listing.
func eachPage(ctx context.Context, cl *client, bucket string, query url.Values, fn func(listing) error) error {
	for {
		var p listing
		if err := cl.call(ctx, http.MethodGet, bucketPath(bucket)+"/objects", query, nil, &p); err != nil {
			return err
		}
		if err := fn(p); err != nil {
			return err
		}
		if !p.More {
			return nil
		}
		query.Set("cursor", p.Cursor)
	}
}

func listBuckets(cmd *cobra.Command, _ []string) error {
	cl, err := newClient(cmd)
	if err != nil {
		return err
	}
	var out struct {
		Buckets []bucketInfo `json:"buckets"`
	}
	if err := cl.call(cmd.Context(), http.MethodGet, "/v1/buckets", nil, nil, &out); err != nil {
		return err
	}
	if jsonWanted(cmd) {
		return printJSON(cmd, out)
	}
	w := tabwriter.NewWriter(cmd.OutOrStdout(), 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "NAME\tOBJECTS\tSIZE\tQUOTA\tVERSIONING\tCREATED")
	for _, b := range out.Buckets {
		fmt.Fprintf(w, "%s\t%d\t%s\t%s\t%v\t%s\n", b.Name, b.Objects, humanize.IBytes(b.Bytes), quotaText(b.Settings), b.Settings.Versioning != nil && *b.Settings.Versioning, b.Created.Local().Format(time.DateTime))
	}
	return w.Flush()
}

// quotaText is a bucket's quotas in a few words.
func quotaText(s bucketSettings) string {
	var out []string
	if s.QuotaBytes != nil && *s.QuotaBytes > 0 {
		out = append(out, humanize.IBytes(*s.QuotaBytes))
	}
	if s.QuotaObjects != nil && *s.QuotaObjects > 0 {
		out = append(out, plural(int(*s.QuotaObjects), "object"))
	}
	if out == nil {
		return "-"
	}
	return strings.Join(out, ", ")
}

func newList() *cobra.Command {
	cmd := &cobra.Command{
		Use: "ls [BUCKET[/PREFIX]]", Short: "List buckets, or objects", Args: cobra.MaximumNArgs(1),
		Long: `Without an argument list the buckets; with one the objects whose keys begin with PREFIX, one level of them: what follows
up to the next slash is one line. A line has size, time of the last change and key, with --versions the version too, newest
first, and delete markers. Sizes are logical: what the object has, not what it takes after deduplication. With --json the
attributes are there as well.`,
		Example: "  cairn ls\n  cairn ls main\n  cairn ls main/photos/ --recursive",
		RunE:    do(runList),
	}
	cmd.Flags().BoolP("recursive", "r", false, "list everything under the prefix, not only its level")
	cmd.Flags().Bool("versions", false, "list all versions and delete markers")
	cmd.Flags().Bool("bytes", false, "print sizes in bytes")
	return clientFlags(cmd)
}

func runList(cmd *cobra.Command, args []string) error {
	if len(args) == 0 {
		return listBuckets(cmd, nil)
	}
	cl, err := newClient(cmd)
	if err != nil {
		return err
	}
	bucket, prefix, err := splitName(args[0], false)
	if err != nil {
		return err
	}
	query := url.Values{"prefix": {prefix}}
	if r, _ := cmd.Flags().GetBool("recursive"); !r {
		query.Set("delimiter", "/")
	}
	versions, _ := cmd.Flags().GetBool("versions")
	if versions {
		query.Set("versions", "true")
	}
	exact, _ := cmd.Flags().GetBool("bytes")
	all := listing{Objects: []objectInfo{}, Prefixes: []string{}}
	w := tabwriter.NewWriter(cmd.OutOrStdout(), 0, 0, 2, ' ', 0)
	err = eachPage(cmd.Context(), cl, bucket, query, func(p listing) error {
		if jsonWanted(cmd) {
			all.Objects, all.Prefixes = append(all.Objects, p.Objects...), append(all.Prefixes, p.Prefixes...)
			return nil
		}
		for _, name := range p.Prefixes {
			fmt.Fprintf(w, "-\t-\t%s\n", printable(name))
		}
		for _, o := range p.Objects {
			size := humanize.IBytes(o.Size)
			if exact {
				size = strconv.FormatUint(o.Size, 10)
			}
			if o.Deleted {
				size = "deleted"
			}
			line := fmt.Sprintf("%s\t%s\t%s", size, o.Modified.Local().Format(time.DateTime), printable(o.Key))
			if versions {
				line += "\t" + o.Version
			}
			fmt.Fprintln(w, line)
		}
		return w.Flush()
	})
	if err == nil && jsonWanted(cmd) {
		return printJSON(cmd, all)
	}
	return err
}

// printable quotes a name that would do something to the terminal.
func printable(s string) string {
	for _, r := range s {
		if !strconv.IsPrint(r) {
			return strconv.Quote(s)
		}
	}
	return s
}

func newStat() *cobra.Command {
	cmd := &cobra.Command{
		Use: "stat BUCKET/KEY", Short: "Show what is known of an object", Args: cobra.ExactArgs(1),
		Long: `Show an object's size, version, time, ETag, type and metadata, without reading it. The ETag is a keyed hash: the same for the
same bytes in this store, and nothing that another program could compute. Exit code 1 when there is no such object.`,
		Example: "  cairn stat main/notes.txt\n  cairn stat main/notes.txt --version 000000000000002a00000000",
		RunE: do(func(cmd *cobra.Command, args []string) error {
			cl, err := newClient(cmd)
			if err != nil {
				return err
			}
			bucket, key, err := splitName(args[0], true)
			if err != nil {
				return err
			}
			query := url.Values{}
			if v, _ := cmd.Flags().GetString("version"); v != "" {
				query.Set("version", v)
			}
			resp, err := cl.do(cmd.Context(), http.MethodHead, objectPath(bucket, key), query, http.Header{}, nil, 0)
			if e, ok := errors.AsType[*remoteError](err); ok && e.Status == http.StatusNotFound {
				e.Detail = "no such object, version or bucket" // the answer to a HEAD has no body to say which
			}
			if err != nil {
				return fmt.Errorf("%s: %w", printable(args[0]), err)
			}
			resp.Body.Close()
			modified, _ := http.ParseTime(resp.Header.Get("Last-Modified"))
			o := objectInfo{Bucket: bucket, Key: key, Version: resp.Header.Get("Cairn-Version"), Size: uint64(max(resp.ContentLength, 0)),
				ETag: strings.Trim(resp.Header.Get("ETag"), `"`), Modified: modified, ContentType: resp.Header.Get("Content-Type"), Current: !query.Has("version")}
			if mode := resp.Header.Get("Cairn-Retention-Mode"); mode != "" {
				until, err := time.Parse(time.RFC3339, resp.Header.Get("Cairn-Retain-Until"))
				if err != nil {
					return fmt.Errorf("%s: the server's Cairn-Retain-Until is no time: %w", printable(args[0]), err)
				}
				o.Retention = &retentionInfo{mode, &until}
			}
			o.Hold = resp.Header.Get("Cairn-Legal-Hold") == "on"
			for name, v := range resp.Header {
				if m, ok := strings.CutPrefix(name, "Cairn-Meta-"); ok {
					if o.Meta == nil {
						o.Meta = map[string]string{}
					}
					o.Meta[strings.ToLower(m)] = strings.Join(v, ", ")
				}
			}
			if jsonWanted(cmd) {
				return printJSON(cmd, o)
			}
			w := tabwriter.NewWriter(cmd.OutOrStdout(), 0, 0, 2, ' ', 0)
			fmt.Fprintf(w, "key\t%s\nsize\t%s (%d bytes)\nmodified\t%s\ncontent type\t%s\netag\t%s\nversion\t%s\n", printable(key), humanize.IBytes(o.Size), o.Size,
				o.Modified.Local().Format(time.DateTime), o.ContentType, o.ETag, o.Version)
			if o.Retention != nil || o.Hold {
				fmt.Fprintf(w, "lock\t%s\n", lockText(o.Retention, o.Hold))
			}
			for _, name := range slices.Sorted(maps.Keys(o.Meta)) {
				fmt.Fprintf(w, "meta %s\t%s\n", printable(name), printable(o.Meta[name]))
			}
			return w.Flush()
		}),
	}
	cmd.Flags().String("version", "", "an older version (see ls --versions)")
	return clientFlags(cmd)
}

func newUndelete() *cobra.Command {
	return clientFlags(&cobra.Command{
		Use: "undelete BUCKET/KEY", Short: "Bring a deleted object back", Args: cobra.ExactArgs(1), Example: "  cairn undelete main/notes.txt",
		RunE: do(func(cmd *cobra.Command, args []string) error {
			cl, err := newClient(cmd)
			if err != nil {
				return err
			}
			bucket, key, err := splitName(args[0], true)
			if err != nil {
				return err
			}
			var o objectInfo
			if err := cl.call(cmd.Context(), http.MethodPost, objectPath(bucket, key), url.Values{"undelete": {""}}, nil, &o); err != nil {
				return fmt.Errorf("%s: %w", printable(args[0]), err)
			}
			if jsonWanted(cmd) {
				return printJSON(cmd, o)
			}
			_, err = fmt.Fprintf(cmd.OutOrStdout(), "%s is back, %s\n", printable(args[0]), humanize.IBytes(o.Size))
			return err
		}),
	})
}
