package rest

import (
	"net/http"
	"strconv"
	"strings"

	"github.com/labstack/echo/v4"

	"cairn/id"
	"cairn/store"
)

const damagedPath = "/v1/damaged"

// damagedJSON is a page of what is lost.
type damagedJSON struct {
	Objects []objectJSON `json:"objects"`
	Looked  int          `json:"looked"`
	More    bool         `json:"more"`
	Cursor  string       `json:"cursor,omitempty"`
}

// A cursor of what is lost is the number of a bucket, and one of its listing.
func formatDamagedCursor(c store.DamagedCursor) string {
	return strconv.FormatUint(uint64(c.Bucket), 10) + "." + formatCursor(c.Key, c.Version)
}

func parseDamagedCursor(s string) (c store.DamagedCursor, err error) {
	number, rest, found := strings.Cut(s, ".")
	n, ok := parseNumber(number)
	if !found || !ok {
		return c, errCursor
	}
	c.Bucket = id.Bucket(n)
	if c.Key, c.Version, err = parseCursor(rest); err == nil && formatDamagedCursor(c) != s {
		err = errCursor
	}
	return c, err
}

// damaged names what is lost.
func (f *face) damaged(c echo.Context) (any, error) {
	var from store.DamagedCursor
	n, err := limit(c)
	if err == nil && c.QueryParams().Has("cursor") {
		if from, err = parseDamagedCursor(c.QueryParam("cursor")); err != nil {
			err = problem(http.StatusBadRequest, "invalid-cursor", "not a cursor of what is lost", "use the cursor of the page before as it is")
		}
	}
	if err != nil {
		return nil, err
	}
	page, err := f.store.Damaged(c.Request().Context(), from, n)
	if err != nil {
		return nil, err
	}
	out := damagedJSON{Objects: make([]objectJSON, 0, len(page.Objects)), Looked: page.Looked, More: page.More}
	for _, o := range page.Objects {
		out.Objects = append(out.Objects, objectJSON{Bucket: o.Bucket, Key: o.Key, Version: o.Version.String(), Size: o.Size, Modified: o.Time.UTC(), Current: o.Current})
	}
	if page.More {
		out.Cursor = formatDamagedCursor(page.Next)
	}
	return out, nil
}
