package rest

import (
	"slices"
	"strings"
	"testing"

	"cairn/store"
)

// TestLifecycle: rules are set and shown as they are; what is not known is refused.
func TestLifecycle(t *testing.T) {
	r := newRig(t)
	const path = "/v1/buckets/main/lifecycle"
	if a := r.want(200, "", "GET", path, ""); strings.TrimSpace(a.body) != `{"rules":[]}` {
		t.Errorf("no rules are shown as %s", a.body)
	}
	body := `{"rules":[{"prefix":"logs/","expire_days":30,"noncurrent_days":7,"keep_newest":3},{"abort_uploads_days":2,"expired_markers":true}]}`
	r.want(200, "", "PUT", path, body)
	want := []store.Rule{{Prefix: "logs/", ExpireDays: 30, NoncurrentDays: 7, KeepNewest: 3}, {AbortDays: 2, Markers: true}}
	if got := r.store.buckets["main"].rules; !slices.Equal(got, want) {
		t.Errorf("rules stored %+v, want %+v", got, want)
	}
	if a := r.want(200, "", "GET", path, ""); strings.TrimSpace(a.body) != body {
		t.Errorf("rules are shown as %s", a.body)
	}
	for _, bad := range []string{"", `{}`, `{"rules":null}`, `{"rules":[{"days":3}]}`, `{"rules":[{"expire_days":-1}]}`, `[]`} {
		r.want(400, "invalid-body", "PUT", path, bad)
	}
	r.want(200, "", "PUT", path, `{"rules":[]}`)
	if got := r.store.buckets["main"].rules; len(got) != 0 {
		t.Errorf("rules stored %+v", got)
	}
	r.want(404, "no-such-bucket", "GET", "/v1/buckets/nowhere/lifecycle", "")
}
