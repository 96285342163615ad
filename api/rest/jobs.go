package rest

import (
	"encoding/json"
	"fmt"
	"math"
	"net/http"
	"slices"
	"time"

	"github.com/labstack/echo/v4"

	"cairn/id"
	"cairn/store"
)

const jobsPath = "/v1/jobs"

// jobJSON is one run of a job.
type jobJSON struct {
	ID       string          `json:"id"`
	Kind     string          `json:"kind"`
	Trigger  string          `json:"trigger"`
	State    string          `json:"state"`
	Started  time.Time       `json:"started"`
	Ended    *time.Time      `json:"ended,omitempty"`
	Progress *progressJSON   `json:"progress,omitempty"`
	Options  *optionsJSON    `json:"options,omitempty"`
	Result   json.RawMessage `json:"result,omitempty"`
	Error    string          `json:"error,omitempty"`
}

type progressJSON struct {
	Done  uint64 `json:"done"`
	Total uint64 `json:"total,omitempty"`
	Unit  string `json:"unit"`
	Left  uint64 `json:"seconds_left,omitempty"`
}

// optionsJSON is what a run was told.
type optionsJSON struct {
	Deep   bool   `json:"deep"`
	Now    bool   `json:"now,omitempty"`
	Purge  bool   `json:"purge,omitempty"`
	Rate   uint64 `json:"rate,omitempty"`
	DryRun bool   `json:"dry_run,omitempty"`
}

func jobToJSON(j store.Job) jobJSON {
	out := jobJSON{ID: j.ID.String(), Kind: j.Kind, Trigger: j.Trigger, State: j.State, Started: j.Started.UTC(), Result: j.Result, Error: j.Error}
	if !j.Ended.IsZero() {
		out.Ended = new(j.Ended.UTC())
	}
	if j.Unit != "" {
		out.Progress = &progressJSON{j.Done, j.Total, j.Unit, uint64(math.Ceil(j.Left.Seconds()))}
	}
	if j.Kind == store.JobScrub || j.Kind == store.JobCollect || j.Options != (store.JobOptions{}) {
		out.Options = new(optionsJSON(j.Options))
	}
	return out
}

var jobStates = []string{store.JobRunning, store.JobDone, store.JobFailed, store.JobCancelled}

// jobFilter reads which runs are meant. Kinds are the store's to know: of one that
// there is not there are no runs.
func jobFilter(c echo.Context) (f store.JobFilter, err error) {
	q := c.QueryParams()
	f.Kind, f.State = q.Get("kind"), q.Get("state")
	if q.Has("state") && !slices.Contains(jobStates, f.State) {
		return f, problem(http.StatusBadRequest, "invalid-parameter", "state is running, done, failed or cancelled", "")
	}
	if q.Has("kind") && f.Kind == "" {
		return f, problem(http.StatusBadRequest, "invalid-parameter", "kind names a kind of job", "")
	}
	if q.Has("cursor") {
		if f.Before, err = id.ParseJob(q.Get("cursor")); err != nil {
			return f, problem(http.StatusBadRequest, "invalid-cursor", "not a cursor of a list of jobs", "use the cursor of the page before as it is")
		}
	}
	f.Limit, err = limit(c)
	return f, err
}

func (f *face) listJobs(c echo.Context) (any, error) {
	filter, err := jobFilter(c)
	if err != nil {
		return nil, err
	}
	page, more, err := f.store.Jobs(c.Request().Context(), filter)
	if err != nil {
		return nil, err
	}
	out := struct {
		Jobs   []jobJSON `json:"jobs"`
		More   bool      `json:"more"`
		Cursor string    `json:"cursor,omitempty"`
	}{Jobs: make([]jobJSON, 0, len(page)), More: more}
	for _, j := range page {
		out.Jobs = append(out.Jobs, jobToJSON(j))
	}
	if more {
		out.Cursor = out.Jobs[len(page)-1].ID
	}
	return out, nil
}

// startJob starts a run. Location names it, or the one that is under way.
func (f *face) startJob(c echo.Context) error {
	var want struct {
		Kind string `json:"kind"`
		optionsJSON
	}
	if err := readJSON(c, &want); err != nil {
		return err
	}
	j, err := f.store.StartJob(c.Request().Context(), want.Kind, store.JobOptions(want.optionsJSON))
	if !j.ID.IsZero() {
		c.Response().Header().Set("Location", jobsPath+"/"+j.ID.String())
	}
	if err != nil {
		return err
	}
	return c.JSON(http.StatusAccepted, jobToJSON(j))
}

// jobID is the run of a request. What is no ID names none.
func jobID(c echo.Context) (id.Job, error) {
	s, err := unescape(c.Param("job"))
	if err != nil {
		return id.Job{}, err
	}
	j, err := id.ParseJob(s)
	if err != nil {
		return j, fmt.Errorf("job %.40q: %w", s, store.ErrNoJob)
	}
	return j, nil
}

func (f *face) getJob(c echo.Context) error {
	jid, err := jobID(c)
	if err != nil {
		return err
	}
	j, err := f.store.Job(c.Request().Context(), jid)
	if err != nil {
		return err
	}
	return c.JSON(http.StatusOK, jobToJSON(j))
}

func (f *face) cancelJob(c echo.Context) error {
	jid, err := jobID(c)
	if err != nil {
		return err
	}
	j, err := f.store.CancelJob(c.Request().Context(), jid)
	if err != nil {
		return err
	}
	return c.JSON(http.StatusAccepted, jobToJSON(j))
}
