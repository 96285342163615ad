package rest

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"syscall"

	"github.com/labstack/echo/v4"

	"cairn/store"
)

// Problem is an error as RFC 9457 has it. Type is stable; Hint says what to do.
type Problem struct {
	Type   string `json:"type"`
	Title  string `json:"title"`
	Status int    `json:"status"`
	Detail string `json:"detail,omitempty"`
	Hint   string `json:"hint,omitempty"`
}

func (p *Problem) Error() string { return p.Title }

// typePrefix begins the type URI of every problem.
const typePrefix = "urn:cairn:problem:"

func problem(status int, kind, title, hint string) *Problem {
	return &Problem{Type: typePrefix + kind, Title: title, Status: status, Hint: hint}
}

// problems is the one table from the store's errors to status codes. The first
// that matches counts: the more particular ones stand first, and before them all
// the one that says that nothing is certain, since the others promise something.
var problems = []struct {
	err    error
	status int
	kind   string
	hint   string
}{
	{store.ErrUnknown, http.StatusServiceUnavailable, "outcome-unknown", "the write may exist or not: read it, or send it again"},
	{store.ErrNoBucket, http.StatusNotFound, "no-such-bucket", "`cairn bucket ls` (GET /v1/buckets) lists those there are; `cairn bucket create NAME` (PUT /v1/buckets/NAME) makes one"},
	{store.ErrNoVersion, http.StatusNotFound, "no-such-version", "list the versions: cairn ls --versions BUCKET/KEY, or GET /v1/buckets/BUCKET/objects?versions=true"},
	{store.ErrNoUpload, http.StatusNotFound, "no-such-upload", "it was never begun, was aborted, or nothing came for seven days: begin it again"},
	{store.ErrOffset, http.StatusConflict, "upload-mismatched-offset", "ask for the offset with HEAD and go on from there"},
	{store.ErrOnceOther, http.StatusUnprocessableEntity, "idempotency-key-reused", "give each request a key of its own; the same request is one of the same method, path, headers and length"},
	{store.ErrOnceRunning, http.StatusConflict, "idempotency-key-in-use", "wait for its answer, then ask again with the same key"},
	{store.ErrTooManyParts, http.StatusRequestEntityTooLarge, "upload-too-many-parts", "begin it again, and send more in each request"},
	{store.ErrInUse, http.StatusLocked, "upload-in-use", "another request works on it; try again when that has ended"},
	{store.ErrNoObject, http.StatusNotFound, "no-such-object", ""},
	{store.ErrNoShares, http.StatusNotFound, "no-shares", "a job computes them, and they are not kept over a restart: cairn df --exclusive, or POST /v1/jobs with the kind usage"},
	{store.ErrNoJob, http.StatusNotFound, "no-such-job", "the newest runs of each kind are known: cairn jobs ls, or GET /v1/jobs"},
	{store.ErrJobRunning, http.StatusConflict, "job-running", "one of a kind runs at a time: wait for it or cancel it: `cairn jobs ls` shows it, and the header Location says where it is"},
	{store.ErrJobOver, http.StatusConflict, "job-over", ""},
	{store.ErrBucketExists, http.StatusConflict, "bucket-exists", ""},
	{store.ErrBucketNotEmpty, http.StatusConflict, "bucket-not-empty", "remove its objects first: `cairn rm --recursive BUCKET/`; versions that are locked keep the bucket until their locks are over, `cairn ls --versions` lists them"},
	{store.ErrPrecondition, http.StatusPreconditionFailed, "precondition-failed", "read the current version and decide again"},
	{store.ErrTooLarge, http.StatusRequestEntityTooLarge, "too-large", ""},
	{store.ErrRange, http.StatusRequestedRangeNotSatisfiable, "range-not-satisfiable", ""},
	{store.ErrShortBody, http.StatusBadRequest, "incomplete-body", "nothing was stored; send the whole body again"},
	{store.ErrInvalid, http.StatusBadRequest, "invalid-request", ""},
	{store.ErrLocked, http.StatusForbidden, "object-locked", "a hold is taken away, and a retention in governance mode bypassed, by who says so; one in compliance mode ends by itself"},
	{store.ErrQuota, http.StatusInsufficientStorage, "quota-exceeded", "nothing was stored; raise the bucket's quota, or remove versions of its objects: deleted objects and older versions count until they are purged"},
	{store.ErrFull, http.StatusInsufficientStorage, "full", "nothing was stored; make room where the detail says; reads go on, and so do deletes while a percent of the disk is free"},
	{store.ErrRetry, http.StatusServiceUnavailable, "try-again", "nothing was stored; send it again"},
	{store.ErrBusy, http.StatusServiceUnavailable, "busy", "too much is under way: the memory for it is taken and the line before it too long; nothing was done, try again after as many seconds as Retry-After says"},
	{store.ErrSuperseded, http.StatusServiceUnavailable, "superseded", "another gateway serves this store now"},
	{store.ErrUnavailable, http.StatusServiceUnavailable, "unavailable", "see `cairn status` (GET /v1/status) for the nodes that are needed"},
	{store.ErrClosed, http.StatusServiceUnavailable, "closing", "the server is stopping; try again when it is back"},
	{store.ErrDamaged, http.StatusInternalServerError, "damaged", "the nodes do not hold these bytes any more; see `cairn status` (GET /v1/status); `cairn scrub` finds what is lost for good, `cairn damaged` names it, and then the object can be stored again from another copy, which heals what shares its bytes too"},
}

// asProblem finds how an error is told to a client. Details of errors that are
// not the client's stay here: they may name nodes and paths.
func asProblem(err error) *Problem {
	if p, ok := errors.AsType[*Problem](err); ok {
		return p
	}
	for _, t := range problems {
		if errors.Is(err, t.err) {
			p := problem(t.status, t.kind, t.err.Error(), t.hint)
			if t.status < 500 {
				p.Detail = err.Error()
			} else if room, ok := errors.AsType[*store.RoomError](err); ok {
				p.Detail = room.Error() // where there is no room, and what to do
			} else if quota, ok := errors.AsType[*store.QuotaError](err); ok {
				p.Detail = quota.Error()
			}
			return p
		}
	}
	if h, ok := errors.AsType[*echo.HTTPError](err); ok {
		kind := map[int]string{http.StatusNotFound: "no-such-route", http.StatusMethodNotAllowed: "method-not-allowed"}[h.Code]
		if kind == "" {
			kind = "invalid-request"
		}
		return problem(h.Code, kind, http.StatusText(h.Code), "")
	}
	if _, ok := errors.AsType[*http.MaxBytesError](err); ok {
		return problem(http.StatusRequestEntityTooLarge, "too-large", "the request is too large", "")
	}
	if errors.Is(err, context.Canceled) {
		return problem(499, "client-gone", "the client left", "")
	}
	if errors.Is(err, context.DeadlineExceeded) {
		return problem(http.StatusServiceUnavailable, "timeout", "not done in time", "try again a little later")
	}
	return problem(http.StatusInternalServerError, "internal", "something unexpected happened", "the server's log says more")
}

// unmet gives a precondition that does not hold the words of the one route that
// knows what it means there; an empty title leaves the store's.
func unmet(err error, title, hint string) error {
	if !errors.Is(err, store.ErrPrecondition) {
		return err
	}
	p := *asProblem(err)
	p.Hint = hint
	if title != "" {
		p.Title, p.Detail = title, ""
	}
	return &p
}

// fail is echo's error handler: every error leaves through it.
func (f *face) fail(err error, c echo.Context) {
	if c.Response().Committed {
		panic(http.ErrAbortHandler) // half an answer must not look whole
	}
	p := asProblem(err)
	if p.Status >= 500 && p.Status != http.StatusServiceUnavailable && p.Status != http.StatusInsufficientStorage {
		f.log.Error("a request failed", "method", c.Request().Method, "route", c.Path(), "status", p.Status, "err", redact(err))
	}
	write(c.Response(), c.Request(), p)
}

// write answers with a problem.
func write(w http.ResponseWriter, r *http.Request, p *Problem) {
	h := w.Header()
	if p.Status == http.StatusServiceUnavailable {
		h.Set("Retry-After", "1")
	}
	b, err := json.Marshal(p)
	if err != nil {
		panic("rest: a problem of strings and a number is no JSON: " + err.Error())
	}
	h.Set("Content-Type", "application/problem+json")
	h.Set("Content-Length", strconv.Itoa(len(b)+1))
	w.WriteHeader(p.Status)
	if r.Method != http.MethodHead {
		_, _ = w.Write(append(b, '\n')) // the client is gone when this fails
	}
}

// redact keeps names of objects out of the log (H60): only the sentinels that an
// error wraps are logged, and the innermost types of what is not one of ours.
func redact(err error) string {
	for _, t := range problems {
		if errors.Is(err, t.err) {
			return t.err.Error()
		}
	}
	return "an error of type " + strings.Join(leaves(nil, err), ", ")
}

// leaves appends the types of the errors that wrap nothing.
func leaves(types []string, err error) []string {
	switch e := err.(type) {
	case interface{ Unwrap() error }:
		if inner := e.Unwrap(); inner != nil {
			return leaves(types, inner)
		}
	case interface{ Unwrap() []error }:
		for _, inner := range e.Unwrap() {
			types = leaves(types, inner)
		}
		return types
	case syscall.Errno: // a number: it names nothing
		return append(types, e.Error())
	}
	return append(types, fmt.Sprintf("%T", err))
}
