package rest

import (
	_ "embed"
	"encoding/json"
	"errors"
	"io"
	"math"
	"net/http"
	"time"

	"github.com/labstack/echo/v4"

	"cairn/record"
	"cairn/store"
)

//go:embed openapi.json
var openAPI []byte

func (f *face) serveOpenAPI(c echo.Context) error {
	return c.Blob(http.StatusOK, "application/json", openAPI)
}

// settingsJSON are a bucket's settings; a zero one is the default.
type settingsJSON struct {
	K           uint8  `json:"k"`
	Compression string `json:"compression"`
	Profile     string `json:"profile"`
	Versioning  bool   `json:"versioning"`
	// 0: no quota.
	QuotaBytes   uint64 `json:"quota_bytes"`
	QuotaObjects uint64 `json:"quota_objects"`
	Lock         bool   `json:"object_lock"`
	// New versions are retained so many days; no mode: they are not.
	RetentionMode string `json:"retention_mode"`
	RetentionDays uint32 `json:"retention_days"`
}

type bucketJSON struct {
	Name     string       `json:"name"`
	Created  time.Time    `json:"created"`
	Objects  uint64       `json:"objects"`
	Bytes    uint64       `json:"logical_bytes"`
	Settings settingsJSON `json:"settings"`
}

func bucketToJSON(b store.Bucket) bucketJSON {
	return bucketJSON{Name: b.Name, Created: b.Created.UTC(), Objects: b.Objects, Bytes: b.Bytes,
		Settings: settingsToJSON(b.Settings)}
}

func settingsToJSON(s record.Settings) settingsJSON {
	return settingsJSON{K: s.K, Compression: s.Compression, Profile: s.Profile, Versioning: s.Versioning, QuotaBytes: s.QuotaBytes, QuotaObjects: s.QuotaObjects,
		Lock: s.Lock, RetentionMode: s.RetentionMode, RetentionDays: s.RetentionDays}
}

// readJSON reads a bounded body with no unknown fields. An empty one leaves v.
func readJSON(c echo.Context, v any) error {
	body := &clientBody{ReadCloser: c.Request().Body}
	d := json.NewDecoder(http.MaxBytesReader(c.Response(), body, maxJSON))
	d.DisallowUnknownFields()
	if err := d.Decode(v); err == io.EOF {
		return nil
	} else if err != nil {
		if _, ok := errors.AsType[*http.MaxBytesError](err); ok {
			return problem(http.StatusRequestEntityTooLarge, "too-large", "the body is too long", "")
		}
		if body.err != nil { // the connection's error names addresses
			return body.blame(err)
		}
		p := problem(http.StatusBadRequest, "invalid-body", "the body is not the JSON that is expected", "")
		p.Detail = err.Error()
		return p
	}
	if _, err := d.Token(); err != io.EOF {
		return problem(http.StatusBadRequest, "invalid-body", "something follows the JSON value", "")
	}
	return nil
}

func (s settingsJSON) record() record.Settings {
	return record.Settings{K: s.K, Compression: s.Compression, Profile: s.Profile, Versioning: s.Versioning, QuotaBytes: s.QuotaBytes, QuotaObjects: s.QuotaObjects,
		Lock: s.Lock, RetentionMode: s.RetentionMode, RetentionDays: s.RetentionDays}
}

func (f *face) listBuckets(c echo.Context) (any, error) {
	bs, err := f.store.Buckets(c.Request().Context())
	if err != nil {
		return nil, err
	}
	out := make([]bucketJSON, 0, len(bs))
	for _, b := range bs {
		out = append(out, bucketToJSON(b))
	}
	return map[string]any{"buckets": out}, nil
}

func (f *face) getBucket(c echo.Context) error {
	name, err := bucketName(c)
	if err != nil {
		return err
	}
	b, err := f.store.Bucket(c.Request().Context(), name)
	if err != nil {
		return err
	}
	return c.JSON(http.StatusOK, bucketToJSON(b))
}

func (f *face) putBucket(c echo.Context) error {
	name, err := bucketName(c)
	if err != nil {
		return err
	}
	var set settingsJSON
	if err := readJSON(c, &set); err != nil {
		return err
	}
	b, err := f.store.CreateBucket(c.Request().Context(), name, set.record())
	if err != nil {
		return err
	}
	return c.JSON(http.StatusCreated, bucketToJSON(b))
}

// patchBucket changes the settings that the body names; the others stay.
func (f *face) patchBucket(c echo.Context) error {
	name, err := bucketName(c)
	if err != nil {
		return err
	}
	b, err := f.store.Bucket(c.Request().Context(), name)
	if err != nil {
		return err
	}
	set := bucketToJSON(b).Settings
	if err := readJSON(c, &set); err != nil {
		return err
	}
	if err := f.store.SetBucket(c.Request().Context(), name, set.record()); err != nil {
		return err
	}
	b.Settings = set.record()
	return c.JSON(http.StatusOK, bucketToJSON(b))
}

func (f *face) deleteBucket(c echo.Context) error {
	name, err := bucketName(c)
	if err != nil {
		return err
	}
	if err := f.store.DeleteBucket(c.Request().Context(), name); err != nil {
		return err
	}
	return c.NoContent(http.StatusNoContent)
}

// usageJSON accounts for bytes; the names are part of the interface.
type usageJSON struct {
	Logical        uint64       `json:"logical_bytes"`
	Upload         uint64       `json:"upload_bytes"`
	Unique         uint64       `json:"unique_bytes"`
	Compressed     uint64       `json:"compressed_bytes"`
	Physical       uint64       `json:"physical_bytes"`
	Live           uint64       `json:"live_bytes"`
	Dead           uint64       `json:"dead_bytes"`
	Parity         uint64       `json:"parity_bytes"`
	Padding        uint64       `json:"padding_bytes"`
	Missing        uint64       `json:"missing_bytes"`
	Stray          uint64       `json:"stray_bytes"`
	Pending        uint64       `json:"pending_bytes"`
	FreeInSegments uint64       `json:"free_in_segments_bytes"`
	Layout         uint64       `json:"layout_bytes"`
	Index          uint64       `json:"index_bytes"`
	Other          uint64       `json:"other_bytes"`
	Unaccounted    int64        `json:"unaccounted_bytes"`
	Unreferenced   uint64       `json:"unreferenced_bytes"`
	Journal        uint64       `json:"journal_bytes"`
	Snapshot       uint64       `json:"snapshot_bytes"`
	Due            uint64       `json:"due_bytes"`
	PendingUntil   time.Time    `json:"pending_until,omitzero"`
	Waiting        waitingJSON  `json:"waiting"`
	Objects        uint64       `json:"objects"`
	Versions       uint64       `json:"versions"`
	Chunks         uint64       `json:"chunks"`
	Packs          uint64       `json:"packs"`
	Buckets        []bucketJSON `json:"buckets"`
}

// waitingJSON is what the last collection has left.
type waitingJSON struct {
	Chunks    int       `json:"chunks"`
	Bytes     uint64    `json:"bytes"`
	Until     time.Time `json:"until,omitzero"`
	Transfers int       `json:"transfers"`
	Oldest    int64     `json:"oldest_transfer_seconds"`
}

func (f *face) usage(c echo.Context) error {
	u, err := f.store.Usage(c.Request().Context())
	if err != nil {
		return err
	}
	out := usageJSON{
		Logical: u.LogicalBytes, Upload: u.UploadBytes, Unique: u.UniqueBytes, Compressed: u.CompressedBytes, Physical: u.PhysicalBytes,
		Live: u.LiveBytes, Dead: u.DeadBytes, Parity: u.ParityBytes, Padding: u.PaddingBytes, Missing: u.MissingBytes, Stray: u.StrayBytes, Pending: u.PendingBytes,
		FreeInSegments: u.FreeInSegmentsBytes, Layout: u.LayoutBytes, Index: u.IndexBytes, Other: u.OtherBytes, Unaccounted: u.UnaccountedBytes,
		Unreferenced: u.UnreferencedBytes, Journal: u.JournalBytes, Snapshot: u.SnapshotBytes, Due: u.DueBytes, PendingUntil: u.PendingUntil.UTC(),
		Waiting: waitingJSON{u.Waiting.Chunks, u.Waiting.Bytes, u.Waiting.Until.UTC(), u.Waiting.Transfers, int64(u.Waiting.Oldest.Seconds())},
		Objects: u.Objects, Versions: u.Versions, Chunks: u.Chunks, Packs: u.Packs, Buckets: make([]bucketJSON, 0, len(u.Buckets)),
	}
	for _, b := range u.Buckets {
		out.Buckets = append(out.Buckets, bucketToJSON(b))
	}
	return c.JSON(http.StatusOK, out)
}

type nodeJSON struct {
	Name        string   `json:"name"`
	ID          string   `json:"id"`
	State       string   `json:"state"`
	Reason      string   `json:"reason,omitempty"`
	Log         bool     `json:"log_node"`
	Labels      []string `json:"labels,omitempty"`
	TotalBytes  int64    `json:"total_bytes"`
	FreeBytes   int64    `json:"free_bytes"`
	LiveShards  int64    `json:"live_shards"`
	LiveBytes   int64    `json:"live_bytes"`
	Device      uint64   `json:"device"`
	TakesWrites bool     `json:"takes_client_data"`
	Mark        int64    `json:"free_bytes_for_client_data"`
	Weight      int64    `json:"weight"`
	Draining    bool     `json:"draining"`
}

// passJSON is the last complete scrub of a depth.
type passJSON struct {
	Deep  bool      `json:"deep"`
	Began time.Time `json:"began"`
	Ended time.Time `json:"ended"`
	Left  int       `json:"left"`
	Lost  int       `json:"lost"`
}

// ageJSON is how old the word of one depth of scrubs is.
type ageJSON struct {
	Since   time.Time `json:"since"`
	Never   bool      `json:"never"`
	Unknown bool      `json:"unknown"`
	Age     int64     `json:"age_seconds"`
	Limit   int64     `json:"limit_seconds"`
	Overdue bool      `json:"overdue"`
}

func ageToJSON(a store.ScrubAge) ageJSON {
	return ageJSON{a.Since.UTC(), a.Never, a.Unknown, int64(a.Age.Age / time.Second), int64(a.Within / time.Second), a.Overdue}
}

type statusJSON struct {
	Survives   string `json:"survives"`
	Cluster    string `json:"cluster"`
	Writable   bool   `json:"writable"`
	Reason     string `json:"reason,omitempty"`
	NoRoom     string `json:"no_room,omitempty"`
	M          int    `json:"losses_by_policy"`
	RaisingTo  int    `json:"raising_to,omitempty"`
	ToRaise    int    `json:"packs_to_raise,omitempty"`
	Width      string `json:"code_of_new_packs,omitempty"`
	PacksShort int    `json:"packs_short"`
	PacksLost  int    `json:"packs_lost"`
	LostBytes  uint64 `json:"lost_bytes"`
	LogLost    int    `json:"log_packs_lost"`
	// Losses is what was given up of the log.
	Losses   []store.LossRange `json:"losses"`
	Scrubbed []passJSON        `json:"scrubbed"`
	Attested ageJSON           `json:"attested"`
	Verified ageJSON           `json:"verified"`
	Epoch    uint64            `json:"epoch"`
	Sequence uint64            `json:"sequence"`
	Version  string            `json:"version"`
	Started  time.Time         `json:"started"`
	Nodes    []nodeJSON        `json:"nodes"`
}

func (f *face) statusOf(c echo.Context) (statusJSON, error) {
	st, err := f.store.Status(c.Request().Context())
	if err != nil {
		return statusJSON{}, err
	}
	out := statusJSON{Survives: st.Survives, Cluster: st.Cluster.String(), Writable: st.Writable, Reason: st.Reason, NoRoom: st.NoRoom, M: st.M, RaisingTo: st.RaisingTo, ToRaise: st.PacksToRaise, Width: st.Width,
		PacksShort: st.PacksShort, PacksLost: st.PacksLost, LostBytes: st.LostBytes, LogLost: st.LogPacksLost, Epoch: st.Epoch, Sequence: st.Sequence, Version: f.cfg.Version, Started: st.Started.UTC(), Losses: store.Ranges(st.Losses), Nodes: []nodeJSON{}, Scrubbed: []passJSON{}}
	for _, p := range st.Scrubbed {
		out.Scrubbed = append(out.Scrubbed, passJSON{p.Deep, p.Began.UTC(), p.Ended.UTC(), p.Left, p.Lost})
	}
	for _, a := range st.Ages {
		if a.Deep {
			out.Verified = ageToJSON(a)
		} else {
			out.Attested = ageToJSON(a)
		}
	}
	for _, n := range st.Nodes {
		out.Nodes = append(out.Nodes, nodeJSON{Name: n.Name, ID: n.ID.String(), State: n.State, Reason: n.Reason, Log: n.Log, Labels: n.Labels,
			TotalBytes: n.Total, FreeBytes: n.Free, LiveShards: n.Shards, LiveBytes: n.Bytes, Device: n.Device, TakesWrites: n.Allowed, Mark: n.Mark,
			Weight: max(int64(math.Ceil(n.Weight)), 1), Draining: n.Draining})
	}
	return out, nil
}

func (f *face) status(c echo.Context) error {
	out, err := f.statusOf(c)
	if err != nil {
		return err
	}
	return c.JSON(http.StatusOK, out)
}

func (f *face) nodes(c echo.Context) error {
	out, err := f.statusOf(c)
	if err != nil {
		return err
	}
	return c.JSON(http.StatusOK, map[string]any{"nodes": out.Nodes})
}

func (f *face) replaceNode(c echo.Context) error {
	if f.cfg.Replace == nil {
		return problem(http.StatusNotImplemented, "not-offered", "this server cannot make nodes", "")
	}
	name, err := unescape(c.Param("node"))
	if err != nil {
		return err
	}
	out, err := f.cfg.Replace(c.Request().Context(), name)
	if err != nil {
		return unmet(err, "", "only a node that is lost is replaced; see `cairn status`")
	}
	return c.JSON(http.StatusOK, out)
}

func (f *face) addNode(c echo.Context) error {
	if f.cfg.Add == nil {
		return problem(http.StatusNotImplemented, "not-offered", "this server cannot make nodes", "")
	}
	var n NewNode
	if err := readJSON(c, &n); err != nil {
		return err
	}
	out, err := f.cfg.Add(c.Request().Context(), n)
	if err != nil {
		return unmet(err, "", "a new node has a name and a directory of its own")
	}
	return c.JSON(http.StatusCreated, out)
}

func (f *face) removeNode(c echo.Context) error {
	if f.cfg.Remove == nil {
		return problem(http.StatusNotImplemented, "not-offered", "this server cannot remove nodes", "")
	}
	name, err := unescape(c.Param("node"))
	if err != nil {
		return err
	}
	out, err := f.cfg.Remove(c.Request().Context(), name)
	if err != nil {
		return unmet(err, "", "only a node that was drained is removed; see `cairn nodes drain`")
	}
	return c.JSON(http.StatusOK, out)
}

// drainNode marks a node and starts the job that moves what it holds, unless that runs
// already: it takes this node in.
func (f *face) drainNode(c echo.Context) error {
	name, err := unescape(c.Param("node"))
	if err != nil {
		return err
	}
	var want struct {
		Rate uint64 `json:"rate"`
	}
	if err := readJSON(c, &want); err != nil {
		return err
	}
	ctx := c.Request().Context()
	if err := f.store.DrainNode(ctx, name, true); err != nil {
		return unmet(err, "", "a drain needs room for what the node holds, on enough other nodes; see `cairn nodes add`")
	}
	j, err := f.store.StartJob(ctx, store.JobDrain, store.JobOptions{Rate: want.Rate})
	if err != nil && !errors.Is(err, store.ErrJobRunning) {
		return err
	}
	c.Response().Header().Set("Location", jobsPath+"/"+j.ID.String())
	return c.JSON(http.StatusAccepted, jobToJSON(j))
}

func (f *face) undrainNode(c echo.Context) error {
	name, err := unescape(c.Param("node"))
	if err != nil {
		return err
	}
	if err := f.store.DrainNode(c.Request().Context(), name, false); err != nil {
		return err
	}
	return c.NoContent(http.StatusNoContent)
}

// tolerate changes how many losses are to be survived, and starts the job that sees to it,
// unless that runs already.
func (f *face) tolerate(c echo.Context) error {
	var want struct {
		Losses int    `json:"losses"`
		Rate   uint64 `json:"rate"`
	}
	if err := readJSON(c, &want); err != nil {
		return err
	}
	ctx := c.Request().Context()
	if err := f.store.Tolerate(ctx, want.Losses); err != nil {
		return unmet(err, "", "more losses take more nodes, two for each and one more, and are never fewer than now; see `cairn nodes add`")
	}
	st, err := f.store.Status(ctx)
	if err != nil {
		return err
	}
	if st.RaisingTo == 0 {
		return c.JSON(http.StatusOK, map[string]any{"losses": st.M})
	}
	j, err := f.store.StartJob(ctx, store.JobRaise, store.JobOptions{Rate: want.Rate})
	if err != nil && !errors.Is(err, store.ErrJobRunning) {
		return err
	}
	c.Response().Header().Set("Location", jobsPath+"/"+j.ID.String())
	return c.JSON(http.StatusAccepted, jobToJSON(j))
}
