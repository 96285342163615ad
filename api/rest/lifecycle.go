package rest

import (
	"net/http"

	"github.com/labstack/echo/v4"

	"cairn/store"
)

// ruleJSON is a rule of what expires; the names are part of the interface.
type ruleJSON struct {
	Prefix         string `json:"prefix,omitempty"`
	ExpireDays     uint32 `json:"expire_days,omitempty"`
	NoncurrentDays uint32 `json:"noncurrent_days,omitempty"`
	KeepNewest     uint32 `json:"keep_newest,omitempty"`
	AbortDays      uint32 `json:"abort_uploads_days,omitempty"`
	Markers        bool   `json:"expired_markers,omitempty"`
}

type lifecycleJSON struct {
	Rules []ruleJSON `json:"rules"`
}

func (f *face) getLifecycle(c echo.Context) error {
	name, err := bucketName(c)
	if err != nil {
		return err
	}
	rules, err := f.store.Lifecycle(c.Request().Context(), name)
	if err != nil {
		return err
	}
	out := lifecycleJSON{Rules: make([]ruleJSON, 0, len(rules))}
	for _, r := range rules {
		out.Rules = append(out.Rules, ruleJSON(r))
	}
	return c.JSON(http.StatusOK, out)
}

// putLifecycle replaces all rules of a bucket.
func (f *face) putLifecycle(c echo.Context) error {
	name, err := bucketName(c)
	if err != nil {
		return err
	}
	var in lifecycleJSON
	if err := readJSON(c, &in); err != nil {
		return err
	}
	if in.Rules == nil {
		return problem(http.StatusBadRequest, "invalid-body", "the body has no rules", `to take all away, send {"rules": []}`)
	}
	var rules []store.Rule
	for _, r := range in.Rules {
		rules = append(rules, store.Rule(r))
	}
	if err := f.store.SetLifecycle(c.Request().Context(), name, rules); err != nil {
		return err
	}
	return c.JSON(http.StatusOK, in)
}
