package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"unicode"
	"unicode/utf8"

	"github.com/dustin/go-humanize"
	"github.com/spf13/cobra"
	"github.com/zeebo/blake3"
)

func newPut() *cobra.Command {
	cmd := &cobra.Command{
		Use: "put SRC... BUCKET/KEY", Short: "Store files, a directory (with a slash at its end), or standard input (-)", Args: cobra.MinimumNArgs(2),
		Long: `Store files, what is in a directory (written with a slash at its end), or standard input (-).

The content of regular files is stored, under a key that is the file's path in the directory. Symbolic links,
named pipes, sockets, devices and empty directories in it are left out, and named; so are owners, modes and times.
A link that is named as SRC itself is followed.

An object of the same name is replaced, and for good unless its bucket keeps versions; --no-clobber refuses to.

With --verify each object is read back, decrypted and put together again by the server, and its hash compared with that of
the bytes that were sent. One that differs is told of, and stays; the exit code is then 1.

A file of 64 MiB or more (--resume-from) goes on where it was when its connection breaks or the server restarts. When the
command itself ended, give it again within seven days: what the server has is not sent again.

When one of several files cannot be stored the others are; the exit code is then 1.`,
		Example: "  cairn put notes.txt main/notes.txt\n  cairn put --verify photos/ main/photos/\n  cairn put photos/ main/photos/\n  tar c . | cairn put - main/backup.tar",
		RunE:    do(runPut),
	}
	cmd.Flags().Bool("create-bucket", false, "make the bucket when it is not there")
	cmd.Flags().Bool("no-clobber", false, "fail where an object of that name is there already")
	cmd.Flags().Bool("any-key", false, "take keys that are no path of a file: with a slash in front, // or an element . or ..")
	cmd.Flags().String("content-type", "", "content type (default by the file's name)")
	cmd.Flags().StringArray("meta", nil, "user metadata, NAME=VALUE; may be repeated")
	cmd.Flags().Int("parallel", 4, "files at a time")
	cmd.Flags().Bool("verify", false, "read each object back and compare it with what was sent")
	resumeFlags(cmd)
	return clientFlags(cmd)
}

// upload is one file to be stored.
type upload struct {
	path string // "-" is standard input
	key  string
	size int64 // -1: not known
}

// skip is something in a directory that is not stored.
type skip struct {
	Name string `json:"name"`
	Why  string `json:"why"`
}

// uploads are what a put is about.
type uploads struct {
	files   []upload
	skipped []skip
	batch   // what could not be looked at
}

func runPut(cmd *cobra.Command, args []string) error {
	cl, err := newClient(cmd)
	if err != nil {
		return err
	}
	bucket, key, err := splitName(args[len(args)-1], false)
	if err != nil {
		return err
	}
	h, err := putHeader(cmd)
	if err != nil {
		return err
	}
	odd, _ := cmd.Flags().GetBool("any-key")
	ups, err := plan(args[:len(args)-1], key, odd)
	if err != nil {
		return err
	}
	if make, _ := cmd.Flags().GetBool("create-bucket"); make {
		err := cl.call(cmd.Context(), http.MethodPut, bucketPath(bucket), nil, nil, nil)
		if e, ok := errors.AsType[*remoteError](err); err != nil && !(ok && e.Status == http.StatusConflict) {
			return err
		}
	}
	contentType, _ := cmd.Flags().GetString("content-type")
	verify, _ := cmd.Flags().GetBool("verify")
	parallel, _ := cmd.Flags().GetInt("parallel")
	res, err := resuming(cmd)
	if err != nil {
		return err
	}
	bars := newProgress(cmd, jsonWanted(cmd))
	done := each(cmd.Context(), max(parallel, 1), ups.files, &ups.batch, func(u upload) string { return u.path }, func(ctx context.Context, u upload) (objectInfo, error) {
		return putOne(ctx, cl, bars, bucket, u, h, contentType, verify, res)
	})
	bars.wait()
	result := ups.result(cmd, len(done))
	if result == nil && len(done) == 0 {
		result = errors.New("there is nothing to store in it")
	}
	if jsonWanted(cmd) {
		object := map[string]any{"objects": done}
		if len(ups.skipped) > 0 {
			object["skipped"] = ups.skipped
		}
		return errors.Join(result, printJSON(cmd, ups.into(object)))
	}
	for _, o := range done {
		fmt.Fprintf(cmd.OutOrStdout(), "stored %s/%s  %s\n", o.Bucket, printable(o.Key), humanize.IBytes(o.Size))
	}
	for _, s := range ups.skipped {
		fmt.Fprintf(cmd.ErrOrStderr(), "skipped %s: %s\n", printable(s.Name), s.Why)
	}
	if len(ups.skipped) > 0 {
		fmt.Fprintf(cmd.OutOrStdout(), "%d stored, %d skipped\n", len(done), len(ups.skipped))
	}
	return result
}

// putHeader reads what the flags say of the objects.
func putHeader(cmd *cobra.Command) (http.Header, error) {
	h := http.Header{}
	if v, _ := cmd.Flags().GetBool("no-clobber"); v {
		h.Set("If-None-Match", "*")
	}
	metas, _ := cmd.Flags().GetStringArray("meta")
	for _, m := range metas {
		name, value, ok := strings.Cut(m, "=")
		if !ok || name == "" {
			return nil, &exitError{exitUsage, fmt.Errorf("--meta %q is not NAME=VALUE", m)}
		}
		// It travels as a header.
		if strings.ContainsFunc(name, func(r rune) bool {
			return r != '-' && r != '_' && (r < '0' || r > '9') && (r < 'a' || r > 'z') && (r < 'A' || r > 'Z')
		}) {
			return nil, &exitError{exitUsage, fmt.Errorf("--meta name %q has other characters than letters, digits, - and _", name)}
		}
		if !utf8.ValidString(value) || strings.ContainsFunc(value, unicode.IsControl) || strings.TrimSpace(value) != value {
			return nil, &exitError{exitUsage, fmt.Errorf("--meta %s: its value %q is not UTF-8, or has control characters or spaces at an end", name, value)}
		}
		h.Set("Cairn-Meta-"+name, value)
	}
	return h, nil
}

// plan lists what is to be stored under which key.
func plan(sources []string, key string, odd bool) (*uploads, error) {
	ups := &uploads{}
	into := key == "" || strings.HasSuffix(key, "/")
	for _, src := range sources {
		if src == "-" {
			if into {
				return nil, &exitError{exitUsage, errors.New("standard input needs a whole key, not a prefix")}
			}
			ups.files = append(ups.files, upload{"-", key, -1})
			continue
		}
		info, err := os.Stat(src)
		if err != nil {
			if len(sources) == 1 {
				return nil, err
			}
			ups.note(src, err)
			continue
		}
		if !info.IsDir() {
			if !info.Mode().IsRegular() {
				return nil, &exitError{exitUsage, fmt.Errorf("%s is %s; only regular files are stored. To store what it gives: cairn put - BUCKET/KEY <%s", src, kindOf(info.Mode()), src)}
			}
			k := key
			if into {
				k += filepath.Base(src)
			}
			ups.files = append(ups.files, upload{src, k, info.Size()})
			continue
		}
		if !strings.HasSuffix(src, "/") {
			return nil, &exitError{exitUsage, fmt.Errorf("%s is a directory; write %s/ to store what is in it", src, src)}
		}
		ups.walk(src, key)
	}
	if len(ups.files) > 1 && !into && len(sources) > 1 {
		return nil, &exitError{exitUsage, fmt.Errorf("several sources need a prefix that ends in a slash, not %q", key)}
	}
	from := make(map[string]string, len(ups.files))
	for _, u := range ups.files {
		if !odd && !fileName(u.key) {
			return nil, &exitError{exitUsage, fmt.Errorf("the key %q is no path of a file (a slash in front, // or an element . or ..), and get could not make one of it; say --any-key if it is meant", u.key)}
		}
		if other, ok := from[u.key]; ok {
			return nil, &exitError{exitUsage, fmt.Errorf("%s and %s would both be stored as %s", other, u.path, printable(u.key))}
		}
		from[u.key] = u.path
	}
	return ups, nil
}

// walk adds what is in a directory.
func (ups *uploads) walk(src, key string) {
	prefix := key
	if prefix != "" && !strings.HasSuffix(prefix, "/") {
		prefix += "/"
	}
	// The function never ends the walk: what cannot be read is one failure of several.
	_ = filepath.WalkDir(src, func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			ups.note(p, err)
			if d != nil && d.IsDir() {
				return fs.SkipDir
			}
			return nil
		}
		if d.IsDir() {
			if in, err := os.ReadDir(p); err == nil && len(in) == 0 {
				ups.skipped = append(ups.skipped, skip{p, "an empty directory"})
			}
			return nil
		}
		if !d.Type().IsRegular() {
			ups.skipped = append(ups.skipped, skip{p, kindOf(d.Type())})
			return nil
		}
		rel, err := filepath.Rel(src, p)
		var info fs.FileInfo
		if err == nil {
			info, err = d.Info()
		}
		if err != nil {
			ups.note(p, err)
			return nil
		}
		ups.files = append(ups.files, upload{p, prefix + filepath.ToSlash(rel), info.Size()})
		return nil
	})
}

// kindOf names what is no regular file.
func kindOf(m fs.FileMode) string {
	switch {
	case m&fs.ModeSymlink != 0:
		return "a symbolic link"
	case m&fs.ModeNamedPipe != 0:
		return "a named pipe"
	case m&fs.ModeSocket != 0:
		return "a socket"
	case m&fs.ModeDevice != 0:
		return "a device"
	}
	return "no regular file"
}

// watched is a source that knows how much of it was taken; net/http may go on
// reading it when a request has failed.
type watched struct {
	r   io.Reader
	n   atomic.Int64
	eof atomic.Bool

	mu  sync.Mutex
	sum *blake3.Hasher // of what was taken; nil: not wanted
}

func (w *watched) Read(p []byte) (int, error) {
	n, err := w.r.Read(p)
	w.n.Add(int64(n))
	if w.sum != nil {
		w.mu.Lock()
		w.sum.Write(p[:n])
		w.mu.Unlock()
	}
	if err == io.EOF {
		w.eof.Store(true)
	}
	return n, err
}

// standardInput reads standard input until ctx ends: net/http waits for a read of
// the body that runs, and one of a terminal or an idle pipe does not come back. The
// goroutine that is left in it ends with the process.
func standardInput(ctx context.Context) io.Reader {
	r, w := io.Pipe()
	go func() {
		_, err := io.Copy(w, os.Stdin)
		w.CloseWithError(err)
	}()
	context.AfterFunc(ctx, func() { w.CloseWithError(context.Cause(ctx)) })
	return r
}

func putOne(ctx context.Context, cl *client, bars *progress, bucket string, u upload, h http.Header, contentType string, verify bool, res resumable) (objectInfo, error) {
	h = h.Clone()
	if contentType == "" {
		contentType = typeOf(u.key)
	}
	h.Set("Content-Type", contentType)
	src := &watched{}
	if verify {
		src.sum = blake3.New()
	}
	if u.path == "-" {
		src.r = standardInput(ctx)
	} else {
		// A pipe that took the file's place meanwhile must not be waited for.
		f, err := os.OpenFile(u.path, os.O_RDONLY|syscall.O_NONBLOCK, 0)
		if err != nil {
			return objectInfo{}, err
		}
		defer f.Close()
		info, err := f.Stat()
		if err != nil {
			return objectInfo{}, err
		}
		if !info.Mode().IsRegular() {
			return objectInfo{}, fmt.Errorf("it is %s", kindOf(info.Mode()))
		}
		src.r, u.size = f, info.Size()
		if u.size >= res.from {
			return putLong(ctx, &sending{resumable: res, cl: cl, bars: bars, bucket: bucket, up: u, f: f, info: info, header: h}, verify)
		}
	}
	bar := bars.begin(u.key, u.size)
	body := io.NopCloser(bar.reader(src))
	if u.size == 0 {
		body = http.NoBody
	}
	resp, err := cl.do(ctx, http.MethodPut, objectPath(bucket, u.key), nil, h, body, u.size)
	bar.end(err)
	if err != nil {
		if ctx.Err() != nil {
			return objectInfo{}, interrupted(bucket, u, src)
		}
		return objectInfo{}, err
	}
	defer resp.Body.Close()
	var o objectInfo
	if err := decode(resp.Body, &o); err != nil || !verify {
		return o, err
	}
	src.mu.Lock()
	defer src.mu.Unlock()
	return o, readBack(ctx, cl, o, uint64(src.n.Load()), src.sum)
}

// readBack reads the version that was stored and compares it with what was sent.
func readBack(ctx context.Context, cl *client, o objectInfo, size uint64, sum *blake3.Hasher) error {
	resp, err := open(ctx, cl, o.Bucket, o.Key, url.Values{"version": {o.Version}}, http.Header{})
	if e, ok := errors.AsType[*remoteError](err); ok && e.Status == http.StatusNotFound {
		return errors.New("it was stored, and could not be verified: it was replaced or deleted since")
	}
	if err != nil {
		return fmt.Errorf("it was stored, and could not be verified: %w", err)
	}
	defer resp.Body.Close()
	got := blake3.New()
	n, err := fetch(ctx, cl, got, resp, resp.Body, o.Bucket, o.Key)
	if err != nil {
		return fmt.Errorf("it was stored, and could not be verified: %w", err)
	}
	if uint64(n) != size || !bytes.Equal(got.Sum(nil), sum.Sum(nil)) {
		return fmt.Errorf("what the server gives back is not what was sent: %d bytes, %d were sent; the object is there, do not rely on it", n, size)
	}
	return nil
}

// interrupted says what is known of a put that was ended: a body that was not sent
// to its end is never stored.
func interrupted(bucket string, u upload, src *watched) error {
	what := "nothing was stored under"
	if src.eof.Load() || src.n.Load() == u.size {
		what = "it is not known whether anything was stored under"
	}
	return &exitError{exitInterrupted, fmt.Errorf("interrupted: %s %s/%s", what, bucket, printable(u.key))}
}
