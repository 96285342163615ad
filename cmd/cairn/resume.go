package main

import (
	"context"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/dustin/go-humanize"
	"github.com/spf13/cobra"
	"github.com/zeebo/blake3"
)

// A long file is sent as a resumable upload (tus 1.0.0), so that what was sent once
// is not sent again: not when a connection breaks or the server restarts, when the
// command goes on by itself, and not when the command ends and is given again, when
// it finds the upload by a note in the configuration directory.

// resumable says how files are sent that can go on where they were.
type resumable struct {
	from    int64  // bytes from which a file is sent so
	retries int    // attempts in a row that bring nothing, before it is given up
	notes   string // directory of notes; empty: none can be kept
}

const (
	firstPause  = 500 * time.Millisecond // before an attempt; each further one waits twice as long
	longPause   = 15 * time.Second       // at most
	uploadStays = 7 * 24 * time.Hour     // on the server, without a byte
	mostBegun   = 3                      // uploads that a command begins for one file
)

// uploadNote is what a later command must know.
type uploadNote struct {
	Location string    `json:"location"` // path of the upload on the server
	Begun    time.Time `json:"begun"`
}

// sending is one file on its way.
type sending struct {
	resumable
	cl     *client
	bar    *bar
	bars   *progress
	bucket string
	up     upload
	f      *os.File
	info   fs.FileInfo
	header http.Header
	note   string // file of the note
	at     string // path of the upload; empty: not begun
	offset int64  // that the server has
	sent   bool   // bytes of it, by this command
	begun  int    // uploads, by this command
}

// putResumable stores a long file.
func putResumable(ctx context.Context, s *sending) (objectInfo, error) {
	if s.notes != "" {
		s.note = filepath.Join(s.notes, s.identity()+".json")
		s.remember()
	}
	o, err := s.run(ctx)
	switch {
	case err == nil:
		s.forget()
	case ctx.Err() != nil:
		what := "nothing was stored under"
		if s.offset > 0 {
			what = fmt.Sprintf("%s of %s are kept, and the same command goes on from there; nothing was stored yet under",
				humanize.IBytes(uint64(s.offset)), humanize.IBytes(uint64(s.up.size)))
		}
		if s.offset == s.up.size {
			what = "it is not known whether anything was stored under"
		}
		err = &exitError{exitInterrupted, fmt.Errorf("interrupted: %s %s/%s", what, s.bucket, printable(s.up.key))}
	}
	return o, err
}

func resumeFlags(cmd *cobra.Command) {
	cmd.Flags().String("resume-from", "64MiB", "size from which a file goes on where it was when its transfer broke off; none: never")
	cmd.Flags().Int("retries", 10, "attempts in a row that bring nothing, before such a transfer is given up")
}

// resuming reads the flags.
func resuming(cmd *cobra.Command) (resumable, error) {
	r := resumable{from: math.MaxInt64}
	text, _ := cmd.Flags().GetString("resume-from")
	if text != "none" {
		n, err := humanize.ParseBytes(text)
		if err != nil || n > math.MaxInt64 {
			return r, &exitError{exitUsage, fmt.Errorf("--resume-from %q is no size like 64MiB, nor none", text)}
		}
		r.from = max(int64(n), 1)
	}
	r.retries, _ = cmd.Flags().GetInt("retries")
	if dir, err := configDir(); err == nil {
		r.notes = filepath.Join(dir, "uploads")
	}
	return r, nil
}

// putLong sends a file as a resumable upload, and reads it back if that is wanted.
func putLong(ctx context.Context, s *sending, verify bool) (objectInfo, error) {
	s.bar = s.bars.begin(s.up.key, s.up.size)
	o, err := putResumable(ctx, s)
	s.bar.end(err)
	if err != nil || !verify {
		return o, err
	}
	sum, err := sumOf(s.f, s.up.size) // some of it may have been sent by an earlier command
	if err != nil {
		return o, fmt.Errorf("it was stored, and could not be verified: %w", err)
	}
	return o, readBack(ctx, s.cl, o, uint64(s.up.size), sum)
}

// identity names this file, as it is, on its way to this place: nothing else goes
// on with its upload.
func (s *sending) identity() string {
	path, err := filepath.Abs(s.up.path)
	if err != nil {
		path = s.up.path
	}
	h := blake3.New()
	for _, part := range []string{s.cl.base.String(), s.bucket, s.up.key, path, fileState(s.info), s.metadata()} {
		fmt.Fprintf(h, "%d:%s", len(part), part)
	}
	return hex.EncodeToString(h.Sum(nil)[:16])
}

// fileState is what changes when a file does, or when another takes its name: size
// and time of change alone may be set to what they were.
func fileState(info fs.FileInfo) string {
	state := fmt.Sprint(info.Size(), info.ModTime().UnixNano())
	if st, ok := info.Sys().(*syscall.Stat_t); ok {
		state += fmt.Sprint(" ", st.Dev, st.Ino, st.Ctim.Nano())
	}
	return state
}

// unchanged reports whether the file is still what it was.
func (s *sending) unchanged() (bool, error) {
	now, err := s.f.Stat()
	return err == nil && fileState(now) == fileState(s.info), err
}

// metadata is the upload's Upload-Metadata: what a put's headers say.
func (s *sending) metadata() string {
	pairs := []string{"bucket", s.bucket, "key", s.up.key}
	for name, values := range s.header {
		switch meta, ok := strings.CutPrefix(name, "Cairn-Meta-"); {
		case ok:
			pairs = append(pairs, "meta-"+strings.ToLower(meta), values[0])
		case name == "Content-Type" || name == "If-None-Match":
			pairs = append(pairs, strings.ToLower(name), values[0])
		}
	}
	out := make([]string, 0, len(pairs)/2)
	for i := 0; i < len(pairs); i += 2 {
		out = append(out, pairs[i]+" "+base64.StdEncoding.EncodeToString([]byte(pairs[i+1])))
	}
	slices.Sort(out)
	return strings.Join(out, ",")
}

// remember finds an upload that an earlier command began, and removes notes of
// uploads that are no more.
func (s *sending) remember() {
	names, _ := filepath.Glob(filepath.Join(s.notes, "*.json"))
	for _, name := range names {
		if info, err := os.Stat(name); err == nil && time.Since(info.ModTime()) > uploadStays {
			_ = os.Remove(name)
		}
	}
	f, err := os.Open(s.note)
	if err != nil {
		return
	}
	defer f.Close()
	if b, err := io.ReadAll(io.LimitReader(f, 4<<10)); err == nil {
		s.at = uploadOf(b)
	}
}

// uploadOf is the path of the upload that a note names; empty: it names none.
func uploadOf(note []byte) string {
	var n uploadNote
	if json.Unmarshal(note, &n) != nil || !isUploadPath(n.Location) {
		return ""
	}
	return n.Location
}

// isUploadPath reports whether a path is one that a server names an upload by.
func isUploadPath(p string) bool {
	name, ok := strings.CutPrefix(p, "/v1/uploads/")
	return ok && name != "" && len(name) <= 64 && !strings.ContainsFunc(name, func(r rune) bool {
		return (r < '0' || r > '9') && (r < 'a' || r > 'z') && (r < 'A' || r > 'Z') && r != '-' && r != '_'
	})
}

// keep writes the note. Without one the upload only cannot be found again.
func (s *sending) keep() {
	if s.note == "" {
		return
	}
	b, err := json.Marshal(uploadNote{Location: s.at, Begun: time.Now().UTC()})
	if err == nil {
		err = os.MkdirAll(s.notes, 0o700)
	}
	if err == nil {
		_ = os.WriteFile(s.note, b, 0o600)
	}
}

// touch keeps the note as long as the server keeps the upload: from its last byte.
func (s *sending) touch() {
	if s.note != "" {
		now := time.Now()
		_ = os.Chtimes(s.note, now, now)
	}
}

func (s *sending) forget() {
	if s.note != "" {
		_ = os.Remove(s.note)
	}
}

// run sends until everything is there, and goes on after what may pass.
func (s *sending) run(ctx context.Context) (objectInfo, error) {
	begun := false // the server has answered
	failed := 0
	for {
		before := s.offset
		o, done, err := s.attempt(ctx)
		if done {
			return o, err
		}
		begun = begun || s.at != "" && (err == nil || s.sent)
		if err == nil {
			failed = 0
			continue
		}
		if ctx.Err() != nil {
			return objectInfo{}, context.Cause(ctx)
		}
		if s.offset > before {
			failed = 0
			s.touch()
		}
		failed++
		if e, ok := errors.AsType[*remoteError](err); ok && e.Status == http.StatusPreconditionFailed {
			s.giveUp(ctx) // it cannot become an object
		}
		// Where no server was from the beginning, none is waited for.
		e, unreached := errors.AsType[*exitError](err)
		if !passes(err) || failed > s.retries || !begun && unreached && e.code == exitNoReach {
			if s.offset > 0 && s.note != "" {
				err = fmt.Errorf("%w; %s of %s are kept: the same command goes on from there", err, humanize.IBytes(uint64(s.offset)), humanize.IBytes(uint64(s.up.size)))
			}
			return objectInfo{}, err
		}
		pause := min(firstPause<<min(failed-1, 10), longPause)
		s.bars.say("cairn: %s: %v; trying again in %v", printable(s.up.path), err, pause)
		t := time.NewTimer(pause)
		select {
		case <-ctx.Done():
		case <-t.C:
		}
		t.Stop()
	}
}

// passes reports whether an error is one that trying again may not meet.
func passes(err error) bool {
	if e, ok := errors.AsType[*remoteError](err); ok {
		switch e.Status {
		case http.StatusRequestTimeout, http.StatusConflict, http.StatusLocked, http.StatusTooManyRequests, http.StatusBadGateway, http.StatusServiceUnavailable, http.StatusGatewayTimeout:
			return true
		case http.StatusBadRequest: // the server saw the body break off
			return strings.HasSuffix(e.Type, ":upload-unexpected-eof") || strings.HasSuffix(e.Type, ":upload-interrupted")
		}
		return false
	}
	_, local := errors.AsType[*fs.PathError](err)
	return !local
}

// attempt learns how far the upload is, and sends the rest in one request. done:
// err says how it ended; else it may go on, err saying why it must.
func (s *sending) attempt(ctx context.Context) (o objectInfo, done bool, err error) {
	var head http.Header
	if s.at == "" {
		h := http.Header{"Tus-Resumable": {"1.0.0"}, "Upload-Length": {strconv.FormatInt(s.up.size, 10)}, "Upload-Metadata": {s.metadata()}}
		resp, err := s.cl.do(ctx, http.MethodPost, "/v1/uploads", nil, h, nil, 0)
		if err != nil {
			return o, false, err
		}
		resp.Body.Close()
		at, err := url.Parse(resp.Header.Get("Location"))
		if err != nil || !isUploadPath(at.Path) {
			return o, true, errors.New("the server answers a new upload without saying where it is")
		}
		s.at, s.offset, head = at.Path, 0, resp.Header
		s.keep()
		if s.begun++; s.begun > mostBegun {
			return o, true, fmt.Errorf("the server has forgotten %d uploads that it began", mostBegun)
		}
	} else {
		resp, err := s.cl.do(ctx, http.MethodHead, s.at, nil, http.Header{"Tus-Resumable": {"1.0.0"}}, nil, 0)
		if e, ok := errors.AsType[*remoteError](err); ok && (e.Status == http.StatusNotFound || e.Status == http.StatusGone) {
			s.at, s.offset = "", 0
			s.forget()
			return o, false, nil // it has expired; begin anew
		}
		if err != nil {
			return o, false, err
		}
		resp.Body.Close()
		n, err := strconv.ParseInt(resp.Header.Get("Upload-Offset"), 10, 64)
		if err != nil || n < 0 || n > s.up.size {
			return o, true, fmt.Errorf("the server says that it has %q of %d bytes", resp.Header.Get("Upload-Offset"), s.up.size)
		}
		s.offset, head = n, resp.Header
	}
	s.bar.at(s.offset)
	if s.offset < s.up.size {
		if same, err := s.unchanged(); err != nil || !same {
			if err == nil {
				err = errors.New("the file was changed while it was sent; nothing was stored: give the command again")
				s.giveUp(ctx)
			}
			return o, true, err
		}
		h := http.Header{"Tus-Resumable": {"1.0.0"}, "Upload-Offset": {strconv.FormatInt(s.offset, 10)}, "Content-Type": {"application/offset+octet-stream"}}
		body := io.NopCloser(s.bar.reader(io.NewSectionReader(s.f, s.offset, s.up.size-s.offset)))
		s.sent = true
		resp, err := s.cl.do(ctx, http.MethodPatch, s.at, nil, h, body, s.up.size-s.offset)
		if err != nil {
			return o, false, err
		}
		resp.Body.Close()
		if s.offset, err = strconv.ParseInt(resp.Header.Get("Upload-Offset"), 10, 64); err != nil || s.offset != s.up.size {
			return o, false, fmt.Errorf("the server took the rest of the file and says that it has %q bytes", resp.Header.Get("Upload-Offset"))
		}
		head = resp.Header
	}
	o, err = s.stored(ctx, head)
	if err != nil || o.Version == "" {
		return o, false, err
	}
	same, err := s.unchanged()
	if err == nil && !same {
		err = fmt.Errorf("the file was changed while it was sent: what is stored as %s/%s is neither what it was nor what it is", s.bucket, printable(s.up.key))
	}
	return o, true, err
}

// stored describes the object that the upload became. One that an earlier command
// completed and that is not the current version is none: the file is stored anew.
func (s *sending) stored(ctx context.Context, head http.Header) (objectInfo, error) {
	o := objectInfo{Bucket: s.bucket, Key: s.up.key, Version: head.Get("Cairn-Version"), ETag: strings.Trim(head.Get("ETag"), `"`), Size: uint64(s.up.size),
		ContentType: s.header.Get("Content-Type"), Current: true}
	if o.Version == "" {
		return o, errors.New("the server has all of the file and does not say what it has made of it")
	}
	if o.ETag != "" {
		return o, nil
	}
	resp, err := s.cl.do(ctx, http.MethodHead, objectPath(s.bucket, s.up.key), nil, nil, nil, 0)
	if e, ok := errors.AsType[*remoteError](err); err != nil && (!ok || e.Status != http.StatusNotFound) && !s.sent {
		return o, err
	}
	if err == nil {
		resp.Body.Close()
		if resp.Header.Get("Cairn-Version") == o.Version {
			o.ETag = strings.Trim(resp.Header.Get("ETag"), `"`)
			return o, nil
		}
	}
	if s.sent {
		return o, nil // it was stored, and replaced or deleted since
	}
	s.forget()
	s.at, s.offset = "", 0
	return objectInfo{}, nil
}

// giveUp ends an upload that is of no use any more.
func (s *sending) giveUp(ctx context.Context) {
	if s.at == "" {
		return
	}
	if resp, err := s.cl.do(ctx, http.MethodDelete, s.at, nil, http.Header{"Tus-Resumable": {"1.0.0"}}, nil, 0); err == nil {
		resp.Body.Close()
	} // else it expires
	s.forget()
	s.at, s.offset = "", 0
}

// sumOf hashes a file from its beginning.
func sumOf(f *os.File, size int64) (*blake3.Hasher, error) {
	h := blake3.New()
	n, err := io.Copy(h, io.NewSectionReader(f, 0, size))
	if err == nil && n != size {
		err = io.ErrUnexpectedEOF
	}
	return h, err
}
