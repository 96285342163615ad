package rest

import (
	"strings"
	"testing"

	"cairn/store"
)

// TestShares: the buckets come page by page, each page with what belongs to all.
func TestShares(t *testing.T) {
	r := newRig(t)
	const path = "/v1/usage/buckets"
	const head = `"sequence":9,"own":{"logical_bytes":0,"chunks":1,"compressed_bytes":2,"exclusive_bytes":3,"fair_share_bytes":4},"buckets":[`
	for query, want := range map[string]string{
		"":                  `"name":"a","logical_bytes":10,"chunks":11,"compressed_bytes":12,"exclusive_bytes":13,"fair_share_bytes":14},{"name":"b"`,
		"?limit=2":          `"fair_share_bytes":24}],"more":true,"cursor":"b"}`,
		"?limit=2&cursor=b": `"buckets":[{"name":"c","logical_bytes":30,"chunks":31,"compressed_bytes":32,"exclusive_bytes":33,"fair_share_bytes":34}],"more":false}`,
		"?cursor=c":         `"buckets":[],"more":false}`,
	} {
		if a := r.want(200, "", "GET", path+query, ""); !strings.Contains(a.body, head) || !strings.Contains(a.body, want) {
			t.Errorf("%q: %s", query, a.body)
		}
	}
	for _, bad := range []string{"?cursor=", "?cursor=" + strings.Repeat("x", 300)} {
		r.want(400, "invalid-cursor", "GET", path+bad, "")
	}
	r.want(400, "invalid-parameter", "GET", path+"?limit=1001", "")
	r.store.fail = store.ErrNoShares
	r.want(404, "no-shares", "GET", path, "")
}
