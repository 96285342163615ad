package rest

import (
	"net/http"
	"time"

	"github.com/labstack/echo/v4"

	"cairn/record"
	"cairn/store"
)

// shareJSON is what one bucket makes of the store.
type shareJSON struct {
	Name      string `json:"name,omitempty"`
	Logical   uint64 `json:"logical_bytes"`
	Chunks    uint64 `json:"chunks"`
	Sealed    uint64 `json:"compressed_bytes"`
	Exclusive uint64 `json:"exclusive_bytes"`
	Fair      uint64 `json:"fair_share_bytes"`
}

// sharesJSON is a page of them.
type sharesJSON struct {
	Job      string      `json:"job"`
	Time     time.Time   `json:"time"`
	Sequence uint64      `json:"sequence"`
	Own      shareJSON   `json:"own"`
	Buckets  []shareJSON `json:"buckets"`
	More     bool        `json:"more"`
	Cursor   string      `json:"cursor,omitempty"`
}

func shareToJSON(s store.BucketShare) shareJSON {
	return shareJSON{s.Name, s.Bytes, s.Chunks, s.Sealed, s.Exclusive, s.Fair}
}

// shares lists what the last run of a job of kind usage has found; the cursor is the name
// of a bucket.
func (f *face) shares(c echo.Context) (any, error) {
	n, err := limit(c)
	if err != nil {
		return nil, err
	}
	after := c.QueryParam("cursor")
	if c.QueryParams().Has("cursor") && (after == "" || len(after) > record.MaxBucketName) {
		return nil, problem(http.StatusBadRequest, "invalid-cursor", "not a cursor of buckets", "use the cursor of the page before as it is")
	}
	page, err := f.store.Shares(c.Request().Context(), after, n)
	if err != nil {
		return nil, err
	}
	out := sharesJSON{Job: page.Job.String(), Time: page.Time.UTC(), Sequence: page.Sequence, Own: shareToJSON(page.Own), Buckets: make([]shareJSON, 0, len(page.Buckets)), More: page.More}
	for _, b := range page.Buckets {
		out.Buckets = append(out.Buckets, shareToJSON(b))
	}
	if page.More {
		out.Cursor = out.Buckets[len(out.Buckets)-1].Name
	}
	return out, nil
}
