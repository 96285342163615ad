package rest

import (
	"net/http"
	"time"

	"github.com/labstack/echo/v4"

	"cairn/store"
)

// retentionJSON keeps a version for a time; without a mode it does not.
type retentionJSON struct {
	Mode  string    `json:"mode"`
	Until time.Time `json:"until"`
}

// lockJSON says what of a version's lock is to change.
type lockJSON struct {
	Retention *retentionJSON `json:"retention"`
	Hold      *bool          `json:"legal_hold"`
}

func retentionToJSON(r store.Retention) *retentionJSON {
	if r.Mode == "" {
		return nil
	}
	return &retentionJSON{r.Mode, r.Until.UTC()}
}

// setLock says in headers what keeps a version from being removed.
func setLock(h http.Header, l store.Lock) {
	if l.Retention.Mode != "" {
		h.Set("Cairn-Retention-Mode", l.Retention.Mode)
		h.Set("Cairn-Retain-Until", l.Retention.Until.UTC().Format(time.RFC3339Nano))
	}
	if l.Hold {
		h.Set("Cairn-Legal-Hold", "on")
	}
}

// bypass reads whether a retention in governance mode is passed over.
func bypass(c echo.Context) (bool, error) {
	switch c.QueryParam("bypass_governance") {
	case "", "false", "0":
		return false, nil
	case "true", "1":
		return true, nil
	}
	return false, problem(http.StatusBadRequest, "invalid-parameter", "bypass_governance is true or false", "")
}

// patchLock changes what the body names of a version's lock.
func (f *face) patchLock(c echo.Context) error {
	bucket, key, err := target(c)
	if err != nil {
		return err
	}
	var opt store.LockOptions
	if opt.Version, err = version(c); err != nil {
		return err
	}
	if opt.Bypass, err = bypass(c); err != nil {
		return err
	}
	var body lockJSON
	if err := readJSON(c, &body); err != nil {
		return err
	}
	opt.Hold = body.Hold
	if r := body.Retention; r != nil {
		opt.Retention = &store.Retention{Mode: r.Mode, Until: r.Until}
	}
	o, err := f.store.Lock(c.Request().Context(), bucket, key, opt)
	if err != nil {
		return err
	}
	return c.JSON(http.StatusOK, toJSON(o))
}
