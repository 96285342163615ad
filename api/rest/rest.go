// Package rest is the HTTP face: it turns requests into calls of the store and
// the store's errors into status codes, and takes no decision about storage.
//
// [New] returns an http.Handler that may serve many requests at once. Bodies
// stream both ways and are never held whole. Every route but the health checks
// and the first system's three asks for the token; every route checks the Host
// header against an allow-list and refuses cross-origin writes, so that a page
// in the operator's browser cannot reach the store (H70). A path is decoded once,
// and what it decodes to is what is stored (H64). The handler keeps nothing
// between requests but which of them run, and starts nothing in the background but
// what stops a request for a newer one or a stream for the server's end, and ends
// with it. It bounds the requests in
// flight, the length of URLs and the memory of pages; limits on headers,
// connections and time are those of package door, around it. openapi.json
// describes every route and is served as /openapi.json.
package rest

import (
	"cmp"
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/labstack/echo/v4"

	"cairn/id"
	"cairn/notice"
	"cairn/record"
	"cairn/store"
	"cairn/store/budget"
)

// FirstBucket is where the first system's routes keep their files.
const FirstBucket = "archivo"

// Bounds on requests.
const (
	maxJSON = 64 << 10 // bytes of a JSON body
	maxForm = 64 << 10 // bytes of a multipart body before its file begins, and about as many after it
)

// Store is what the face needs of the engine; *store.Store is one.
type Store interface {
	CreateBucket(ctx context.Context, name string, s record.Settings) (store.Bucket, error)
	SetBucket(ctx context.Context, name string, s record.Settings) error
	DeleteBucket(ctx context.Context, name string) error
	Bucket(ctx context.Context, name string) (store.Bucket, error)
	Buckets(ctx context.Context) ([]store.Bucket, error)
	Put(ctx context.Context, bucket, key string, r io.Reader, o store.PutOptions) (store.Object, error)
	Get(ctx context.Context, bucket, key string, o store.GetOptions) (*store.Reading, error)
	Delete(ctx context.Context, bucket, key string, c store.Conditions) (store.Object, error)
	DeleteVersion(ctx context.Context, bucket, key string, v id.Version, bypass bool) error
	Lifecycle(ctx context.Context, bucket string) ([]store.Rule, error)
	SetLifecycle(ctx context.Context, bucket string, rules []store.Rule) error
	Lock(ctx context.Context, bucket, key string, o store.LockOptions) (store.Object, error)
	Undelete(ctx context.Context, bucket, key string) (store.Object, error)
	Copy(ctx context.Context, from, to store.Name, o store.CopyOptions) (store.Object, error)
	Rename(ctx context.Context, from, to store.Name, o store.CopyOptions) (store.Object, error)
	Placement(ctx context.Context, bucket, key string, o store.PlacementOptions) (store.Placement, error)
	List(ctx context.Context, bucket string, o store.ListOptions) (store.Listing, error)
	Damaged(ctx context.Context, from store.DamagedCursor, limit int) (store.DamagedPage, error)
	BeginUpload(ctx context.Context, bucket, key string, o store.UploadOptions) (store.Upload, error)
	Upload(ctx context.Context, id string) (store.Upload, error)
	AppendUpload(ctx context.Context, id string, offset uint64, r io.Reader) (uint64, error)
	SetUploadSize(ctx context.Context, id string, size int64) (store.Upload, error)
	CompleteUpload(ctx context.Context, id string, c store.Conditions) (store.Object, error)
	AbortUpload(ctx context.Context, id string) error
	Uploads(ctx context.Context, after string, limit int) ([]store.Upload, bool, error)
	Usage(ctx context.Context) (store.Usage, error)
	Shares(ctx context.Context, after string, limit int) (store.SharesPage, error)
	Status(ctx context.Context) (store.Status, error)
	DrainNode(ctx context.Context, name string, on bool) error
	Tolerate(ctx context.Context, losses int) error
	StartJob(ctx context.Context, kind string, opt store.JobOptions) (store.Job, error)
	ScrubPasses() []store.ScrubPass
	Losses() ([]store.Loss, error)
	ScrubAges() ([]store.ScrubAge, error)
	Job(ctx context.Context, j id.Job) (store.Job, error)
	Jobs(ctx context.Context, f store.JobFilter) (page []store.Job, more bool, err error)
	CancelJob(ctx context.Context, j id.Job) (store.Job, error)
	JobCounts() []store.JobCounts
	Listen(after string) *store.Listener
}

// Config describes the face.
type Config struct {
	Store Store // required
	// Token is what a request must present as bearer token, or as the password
	// of basic authentication; required, at least 16 bytes.
	Token string
	// Hosts are the names or addresses, without port, that a Host header may have
	// besides addresses of loopback and "localhost".
	Hosts []string
	// First serves the first system's routes, which ask for no token: only for a
	// listener on loopback.
	First bool
	// Replace makes a new node in the place of a lost one; nil: not offered.
	Replace func(ctx context.Context, name string) (Replaced, error)
	// Add makes a directory of this machine a new node; nil: not offered.
	Add func(ctx context.Context, n NewNode) (Added, error)
	// Remove takes a node that is drained out of the store; nil: not offered.
	Remove func(ctx context.Context, name string) (Removed, error)
	// Memory reads the gauges of the memory's shares, for /metrics; nil: none.
	Memory func() []budget.State
	// Notices counts the messages that went out, for /metrics; nil: none.
	Notices func() []notice.Counts
	Version string
	// InFlight bounds the requests being answered; as many more wait a tenth of a
	// second and get 503 then, the rest at once, but for health checks and metrics.
	// 0: no bound.
	InFlight int
	// Listeners bounds the streams of events, which do not count as requests in
	// flight; default 16.
	Listeners int
	// Stopping, when it is closed, ends the streams of events; nil: clients end them.
	Stopping <-chan struct{}
	Log      *slog.Logger // default discards; names of buckets and objects never go into it

	noToken bool // of WithoutToken
}

// Replaced is a node that has taken the place of a lost one.
type Replaced struct {
	Node string `json:"node"`
	ID   string `json:"id"` // of the new node
	// Kept is where what was in the old directory is now; empty: there was nothing.
	Kept string `json:"kept,omitempty"`
}

// NewNode is a node that is to be made.
type NewNode struct {
	Name   string   `json:"name"`
	Path   string   `json:"path"`   // of its directory; empty: in the data directory
	Weight uint32   `json:"weight"` // GiB; 0: by its filesystem
	Labels []string `json:"labels"`
}

// Added is a node that was added.
type Added struct {
	Node string `json:"node"`
	ID   string `json:"id"`
}

// Removed is a node that is none any more.
type Removed struct {
	Node string `json:"node"`
	Kept string `json:"kept,omitempty"` // where what is left of it is
}

type face struct {
	cfg   Config
	store Store
	token [32]byte // of the token, so that comparing takes no time that tells
	hosts []string
	log   *slog.Logger
	open  map[string]bool // route patterns that ask for no token
	watch map[string]bool // those that are answered however many others are

	turns  *line // of all requests; nil: no bound
	pages  *line
	unsent atomic.Int64 // bytes of pages on their way to clients

	metrics http.Handler
	holders uploadHolders

	listeners chan struct{} // a token for each stream of events
	heartbeat time.Duration
}

// WithoutToken builds a handler that asks nobody for the token, so that package bench
// can say what asking costs. Nothing that serves uses it; a test sees to that.
func WithoutToken(cfg Config) (http.Handler, error) {
	cfg.noToken = true
	return New(cfg)
}

// New builds the handler.
func New(cfg Config) (http.Handler, error) {
	f, e, err := build(cfg)
	if err != nil {
		return nil, err
	}
	protection := http.NewCrossOriginProtection()
	protection.SetDenyHandler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { write(w, r, crossOrigin()) }))
	return f.guard(protection.Handler(e)), nil
}

func crossOrigin() *Problem {
	return problem(http.StatusForbidden, "cross-origin", "a page of another origin must not do this", "")
}

// route is one method on one path. A GET answers HEAD too.
type route struct {
	method, path string
	handle       echo.HandlerFunc
	params       []string // query parameters that it takes; any other is refused
	open         bool     // no token is asked for
}

func (f *face) routes() []route {
	object := "/v1/buckets/:bucket/objects/*"
	rs := []route{
		{method: http.MethodGet, path: "/healthz", handle: f.healthz, open: true},
		{method: http.MethodGet, path: "/readyz", handle: f.readyz, open: true},
		{method: http.MethodGet, path: "/openapi.json", handle: f.serveOpenAPI},
		{method: http.MethodGet, path: "/metrics", handle: f.serveMetrics},
		{method: http.MethodGet, path: "/v1/buckets", handle: f.held(f.listBuckets)},
		{method: http.MethodGet, path: "/v1/buckets/:bucket", handle: f.getBucket},
		{method: http.MethodPut, path: "/v1/buckets/:bucket", handle: f.putBucket},
		{method: http.MethodPatch, path: "/v1/buckets/:bucket", handle: f.patchBucket},
		{method: http.MethodDelete, path: "/v1/buckets/:bucket", handle: f.deleteBucket},
		{method: http.MethodGet, path: "/v1/buckets/:bucket/objects", handle: f.held(f.listObjects),
			params: []string{"prefix", "delimiter", "start_after", "cursor", "limit", "versions"}},
		{method: http.MethodGet, path: object, handle: f.getObject, params: []string{"version"}},
		{method: http.MethodPut, path: object, handle: f.putObject},
		{method: http.MethodDelete, path: object, handle: f.deleteObject, params: []string{"version", "bypass_governance"}},
		{method: http.MethodPost, path: object, handle: f.postObject, params: []string{"undelete", "copy_from", "rename_from", "version", "attributes"}},
		{method: http.MethodGet, path: "/v1/buckets/:bucket/placement/*", handle: f.held(f.placement), params: []string{"version", "from", "limit"}},
		{method: http.MethodGet, path: "/v1/buckets/:bucket/lifecycle", handle: f.getLifecycle},
		{method: http.MethodPut, path: "/v1/buckets/:bucket/lifecycle", handle: f.putLifecycle},
		{method: http.MethodPatch, path: "/v1/buckets/:bucket/lock/*", handle: f.patchLock, params: []string{"version", "bypass_governance"}},
		{method: http.MethodGet, path: uploadsPath, handle: f.held(f.listUploads), params: []string{"cursor", "limit"}},
		{method: http.MethodOptions, path: uploadsPath, handle: f.uploadOptions},
		{method: http.MethodPost, path: uploadsPath, handle: f.tus(f.beginUpload)},
		{method: http.MethodHead, path: uploadsPath + "/:upload", handle: f.tus(f.uploadOffset)},
		{method: http.MethodPatch, path: uploadsPath + "/:upload", handle: f.tus(f.appendUpload)},
		{method: http.MethodDelete, path: uploadsPath + "/:upload", handle: f.tus(f.abortUpload)},
		{method: http.MethodGet, path: "/v1/usage", handle: f.usage},
		{method: http.MethodGet, path: "/v1/usage/buckets", handle: f.held(f.shares), params: []string{"cursor", "limit"}},
		{method: http.MethodGet, path: "/v1/status", handle: f.status},
		{method: http.MethodGet, path: "/v1/nodes", handle: f.nodes},
		{method: http.MethodPost, path: "/v1/nodes", handle: f.addNode},
		{method: http.MethodDelete, path: "/v1/nodes/:node", handle: f.removeNode},
		{method: http.MethodPost, path: "/v1/nodes/:node/replace", handle: f.replaceNode},
		{method: http.MethodPost, path: "/v1/nodes/:node/drain", handle: f.drainNode},
		{method: http.MethodDelete, path: "/v1/nodes/:node/drain", handle: f.undrainNode},
		{method: http.MethodPut, path: "/v1/losses", handle: f.tolerate},
		{method: http.MethodGet, path: jobsPath, handle: f.held(f.listJobs), params: []string{"kind", "state", "limit", "cursor"}},
		{method: http.MethodPost, path: jobsPath, handle: f.startJob},
		{method: http.MethodGet, path: jobsPath + "/:job", handle: f.getJob},
		{method: http.MethodDelete, path: jobsPath + "/:job", handle: f.cancelJob},
		{method: http.MethodGet, path: damagedPath, handle: f.held(f.damaged), params: []string{"cursor", "limit"}},
		{method: http.MethodGet, path: eventsPath, handle: f.events},
	}
	if f.cfg.First {
		rs = append(rs,
			route{method: http.MethodPost, path: "/cargar", handle: f.cargar, open: true},
			route{method: http.MethodGet, path: "/descargar/:name", handle: f.descargar, open: true},
			route{method: http.MethodDelete, path: "/eliminar/:name", handle: f.eliminar, open: true})
	}
	return rs
}

func build(cfg Config) (*face, *echo.Echo, error) {
	if cfg.Store == nil {
		return nil, nil, errors.New("rest: no store")
	}
	if len(cfg.Token) < 16 {
		return nil, nil, errors.New("rest: the token has fewer than 16 characters")
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	f := &face{cfg: cfg, store: cfg.Store, token: sha256.Sum256([]byte(cfg.Token)), log: cfg.Log, open: map[string]bool{},
		watch: map[string]bool{"/healthz": true, "/readyz": true, "/metrics": true, eventsPath: true}, pages: newLine(heldAtOnce, heldInLine, heldWait),
		metrics: newMetrics(cfg), listeners: make(chan struct{}, cmp.Or(cfg.Listeners, fewListeners)), heartbeat: heartbeat}
	if cfg.InFlight > 0 {
		f.turns = newLine(cfg.InFlight, cfg.InFlight, turnWait)
	}
	for _, h := range cfg.Hosts {
		f.hosts = append(f.hosts, plainHost(h))
	}
	e := echo.New()
	e.HideBanner, e.HidePort = true, true
	e.HTTPErrorHandler = f.fail
	if e.Use(f.admit); !cfg.noToken {
		e.Use(f.authenticate)
	}
	for _, r := range f.routes() {
		if r.open {
			f.open[r.path] = true
		}
		h := checked(r)
		e.Add(r.method, r.path, h)
		if r.method == http.MethodGet {
			e.HEAD(r.path, h)
		}
	}
	return f, e, nil
}

// guard refuses, before anything is looked at, requests that reached us under a
// name that is not ours (DNS rebinding) and what pages of other origins embed,
// and sets what every answer has.
func (f *face) guard(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		h := w.Header()
		h.Set("X-Content-Type-Options", "nosniff")
		h.Set("Cache-Control", "no-store")
		h.Set("Content-Security-Policy", "default-src 'none'; frame-ancestors 'none'")
		h.Set("Cross-Origin-Resource-Policy", "same-origin")
		h.Set("Referrer-Policy", "no-referrer")
		h.Set("Server", "cairn")
		if !f.hostAllowed(r.Host) {
			write(w, r, problem(http.StatusMisdirectedRequest, "misdirected", "this server does not answer to that Host name",
				"use localhost or an address of this machine, or name the host with --host"))
			return
		}
		if embedded(r.Header) {
			write(w, r, crossOrigin())
			return
		}
		// From here on there is one form of the path, the escaped one: routes match
		// it, and parts of it are unescaped once.
		u := *r.URL
		u.RawPath = r.URL.EscapedPath()
		r2 := *r
		r2.URL = &u
		next.ServeHTTP(w, &r2)
	})
}

// embedded reports whether a page of another origin asks, other than by a link
// that someone follows. The first system's routes ask for no token, so that such
// a page would otherwise learn by trying which files there are.
func embedded(h http.Header) bool {
	switch h.Get("Sec-Fetch-Site") {
	case "cross-site", "same-site":
		return h.Get("Sec-Fetch-Mode") != "navigate" || h.Get("Sec-Fetch-Dest") != "document"
	}
	return false
}

// plainHost is a Host header's name: lower case, without port, brackets and the
// root's dot.
func plainHost(host string) string {
	name := host
	if h, _, err := net.SplitHostPort(host); err == nil {
		name = h
	}
	if n, ok := strings.CutPrefix(name, "["); ok {
		if name, ok = strings.CutSuffix(n, "]"); !ok {
			return ""
		}
	}
	return strings.ToLower(strings.TrimSuffix(name, "."))
}

func (f *face) hostAllowed(host string) bool {
	name := plainHost(host)
	if name == "localhost" || name != "" && slices.Contains(f.hosts, name) {
		return true
	}
	ip := net.ParseIP(name)
	return ip != nil && ip.IsLoopback()
}

// authenticate asks for the token, as bearer or as basic password, on every
// route that is not open; on paths that are no route too.
func (f *face) authenticate(next echo.HandlerFunc) echo.HandlerFunc {
	return func(c echo.Context) error {
		if f.open[c.Path()] || f.tokenGiven(c.Request()) {
			return next(c)
		}
		c.Response().Header().Set("WWW-Authenticate", `Bearer realm="cairn", Basic realm="cairn"`)
		return problem(http.StatusUnauthorized, "unauthorized", "a valid token is needed",
			"send the content of the token file as Authorization: Bearer TOKEN")
	}
}

func (f *face) tokenGiven(r *http.Request) bool {
	scheme, given, _ := strings.Cut(r.Header.Get("Authorization"), " ")
	if !strings.EqualFold(scheme, "Bearer") {
		var ok bool
		if _, given, ok = r.BasicAuth(); !ok {
			return false
		}
	}
	sum := sha256.Sum256([]byte(strings.TrimSpace(given)))
	return subtle.ConstantTimeCompare(sum[:], f.token[:]) == 1
}

func (f *face) healthz(c echo.Context) error { return c.String(http.StatusOK, "ok\n") }

// readyz says whether writes are taken now.
func (f *face) readyz(c echo.Context) error {
	st, err := f.store.Status(c.Request().Context())
	if err == nil && st.Writable {
		return c.String(http.StatusOK, "ready\n")
	}
	return problem(http.StatusServiceUnavailable, "not-ready", "writes are not taken now", "see `cairn status` (GET /v1/status) for the reason")
}

// checked refuses query parameters that a route does not take: what follows an
// unescaped question mark in a key must not be lost in silence.
func checked(r route) echo.HandlerFunc {
	return func(c echo.Context) error {
		q, err := query(c.Request().URL)
		if err != nil {
			return err
		}
		for name := range q {
			if !slices.Contains(r.params, name) {
				return problem(http.StatusBadRequest, "invalid-parameter", fmt.Sprintf("no such parameter: %.40q", name), "a question mark in a key is written %3F")
			}
		}
		return r.handle(c)
	}
}
