package rest

import (
	"strings"
	"testing"
)

// TestLock: locks are set, shown and passed over as the request says.
func TestLock(t *testing.T) {
	r := newRig(t)
	r.want(201, "", "PUT", "/v1/buckets/kept", `{"versioning":true,"object_lock":true,"retention_mode":"governance","retention_days":30}`)
	if s := r.store.buckets["kept"].bucket.Settings; !s.Lock || s.RetentionMode != "governance" || s.RetentionDays != 30 {
		t.Errorf("settings stored %+v", s)
	}
	const object, lock = "/v1/buckets/kept/objects/a/b", "/v1/buckets/kept/lock/a/b"
	v := r.want(201, "", "PUT", object, "content").header.Get("Cairn-Version")
	r.want(403, "cross-origin", "PATCH", lock, `{"legal_hold":true}`, "Sec-Fetch-Site: cross-site", "Origin: http://evil.example")
	a := r.want(200, "", "PATCH", lock, `{"retention":{"mode":"governance","until":"2031-02-03T04:05:06.5+01:00"}}`)
	if !strings.Contains(a.body, `"retention":{"mode":"governance","until":"2031-02-03T03:05:06.5Z"},"deleted":false`) && !strings.Contains(a.body, `"retention":{"mode":"governance","until":"2031-02-03T03:05:06.5Z"},"current":true`) {
		t.Errorf("a retention is answered as %s", a.body)
	}
	r.want(403, "object-locked", "PATCH", lock+"?version="+v, `{"retention":{"mode":""}}`)
	a = r.want(200, "", "PATCH", lock+"?version="+v, `{"legal_hold":true}`)
	if !strings.Contains(a.body, `"legal_hold":true`) || !strings.Contains(a.body, "2031-02-03T03:05:06.5Z") {
		t.Errorf("a hold is answered as %s", a.body)
	}
	for _, method := range []string{"GET", "HEAD"} {
		h := r.want(200, "", method, object, "").header
		if h.Get("Cairn-Retention-Mode") != "governance" || h.Get("Cairn-Retain-Until") != "2031-02-03T03:05:06.5Z" || h.Get("Cairn-Legal-Hold") != "on" {
			t.Errorf("%s of what is locked has the headers %v", method, h)
		}
	}
	if a := r.want(200, "", "GET", "/v1/buckets/kept/objects?versions=true", ""); !strings.Contains(a.body, `"legal_hold":true`) {
		t.Errorf("it is listed as %s", a.body)
	}
	r.want(403, "object-locked", "DELETE", object+"?version="+v+"&bypass_governance=true", "")
	r.want(200, "", "PATCH", lock, `{"legal_hold":false}`)
	if h := r.want(200, "", "GET", object, "").header; h.Get("Cairn-Legal-Hold") != "" {
		t.Errorf("without a hold the headers are %v", h)
	}
	r.want(403, "object-locked", "DELETE", object+"?version="+v, "")
	r.want(403, "object-locked", "DELETE", object+"?version="+v+"&bypass_governance=false", "")
	r.want(400, "invalid-parameter", "DELETE", object+"?version="+v+"&bypass_governance=yes", "")
	r.want(400, "invalid-parameter", "DELETE", object+"?bypass_governance=true", "")
	r.want(200, "", "PATCH", lock+"?bypass_governance=1", `{"retention":{"mode":"compliance","until":"2031-02-03T04:05:06Z"}}`)
	r.want(204, "", "DELETE", object+"?version="+v+"&bypass_governance=true", "")

	r.want(404, "no-such-object", "PATCH", lock, `{"legal_hold":true}`)
	r.want(400, "invalid-request", "PATCH", lock, "")
	r.want(400, "invalid-body", "PATCH", lock, `{"hold":true}`)
	r.want(400, "invalid-body", "PATCH", lock, `{"retention":{"mode":"governance","until":"tomorrow"}}`)
	r.want(400, "invalid-parameter", "PATCH", lock+"?undelete", `{"legal_hold":true}`)
	r.want(400, "invalid-version", "PATCH", lock+"?version=1", `{"legal_hold":true}`)
	r.want(400, "invalid-request", "PATCH", "/v1/buckets/main/lock/a", `{"legal_hold":true}`)
}
