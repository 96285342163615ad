package rest

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"
)

func TestJobRoutes(t *testing.T) {
	r := newRig(t)
	started := r.want(202, "", "POST", jobsPath, `{"kind":"repair"}`)
	var j jobJSON
	if err := json.Unmarshal([]byte(started.body), &j); err != nil {
		t.Fatal(err)
	}
	at := started.header.Get("Location")
	if at != jobsPath+"/"+j.ID || j.Kind != "repair" || j.Trigger != "request" || j.State != "running" || j.Ended != nil || *j.Progress != (progressJSON{3, 4, "packs", 0}) {
		t.Errorf("started at %s: %+v", at, j)
	}
	again := r.want(409, "job-running", "POST", jobsPath, `{"kind":"repair"}`)
	if p := again.problem(t); again.header.Get("Location") != at || !strings.Contains(p.Detail, j.ID) {
		t.Errorf("another beside it: Location %s, %+v; want the ID %s", again.header.Get("Location"), p, j.ID)
	}
	for body, kind := range map[string]string{``: "invalid-request", `{}`: "invalid-request", `{"kind":"other"}`: "invalid-request", `{"kind":1}`: "invalid-body", `{"kind":"repair","x":1}`: "invalid-body", `[]`: "invalid-body"} {
		if a := r.want(400, kind, "POST", jobsPath, body); a.header.Get("Location") != "" {
			t.Errorf("%s: Location %s", body, a.header.Get("Location"))
		}
	}
	if a := r.want(200, "", "GET", at, ""); a.body != started.body {
		t.Errorf("it is %s, was %s", a.body, started.body)
	}
	r.want(202, "", "DELETE", at, "")
	r.want(409, "job-over", "DELETE", at, "")
	over := r.want(200, "", "GET", at, "")
	if err := json.Unmarshal([]byte(over.body), &j); err != nil || j.State != "cancelled" || j.Ended == nil || !j.Ended.Equal(j.Started.Add(time.Minute)) || string(j.Result) != `{"packs":3}` {
		t.Errorf("cancelled, it is %s, %v", over.body, err)
	}
	for _, name := range []string{"x", "018bcfe5-687b-7abc-9abc-0123456789ab", strings.ToUpper(j.ID), "%20", "a%2Fb"} {
		r.want(404, "no-such-job", "GET", jobsPath+"/"+name, "")
		r.want(404, "no-such-job", "DELETE", jobsPath+"/"+name, "")
	}
	r.want(404, "no-such-route", "GET", jobsPath+"/", "")

	// Pages, the newest first.
	r.want(202, "", "POST", jobsPath, `{"kind":"repair"}`)
	r.want(202, "", "POST", jobsPath, `{"kind":"snapshot"}`)
	list := func(query string) (states []string) {
		t.Helper()
		cursor := ""
		for {
			var page struct {
				Jobs   []jobJSON
				More   bool
				Cursor string
			}
			if err := json.Unmarshal([]byte(r.want(200, "", "GET", jobsPath+"?limit=1"+query+cursor, "").body), &page); err != nil || len(page.Jobs) > 1 {
				t.Fatal(err, len(page.Jobs))
			}
			for _, j := range page.Jobs {
				states = append(states, j.Kind+" "+j.State)
			}
			if !page.More {
				return states
			}
			cursor = "&cursor=" + page.Cursor
		}
	}
	for query, want := range map[string]string{
		"":                                "[snapshot running repair running repair cancelled]",
		"&kind=repair":                    "[repair running repair cancelled]",
		"&state=running":                  "[snapshot running repair running]",
		"&kind=repair&state=cancelled":    "[repair cancelled]",
		"&kind=other":                     "[]",
		"&kind=snapshot&state=done":       "[]",
		"&cursor=" + at[len(jobsPath)+1:]: "[]",
	} {
		if strings.Contains(query, "cursor") {
			if a := r.want(200, "", "GET", jobsPath+"?"+query[1:], ""); a.body != "{\"jobs\":[],\"more\":false}\n" {
				t.Errorf("behind the oldest: %s", a.body)
			}
			continue
		}
		if got := fmt.Sprint(list(query)); got != want {
			t.Errorf("%s lists %s, want %s", query, got, want)
		}
	}
	for query, kind := range map[string]string{"state=asleep": "invalid-parameter", "state=": "invalid-parameter", "kind=": "invalid-parameter", "limit=0": "invalid-parameter", "limit=1001": "invalid-parameter",
		"cursor=": "invalid-cursor", "cursor=MDAw": "invalid-cursor", "x=1": "invalid-parameter"} {
		r.want(400, kind, "GET", jobsPath+"?"+query, "")
	}
	// A scrub is told more than its kind, and says what it was told.
	if a := r.want(202, "", "POST", jobsPath, `{"kind":"scrub","deep":true,"rate":1000,"dry_run":true}`); !strings.Contains(a.body, `"options":{"deep":true,"rate":1000,"dry_run":true}`) {
		t.Errorf("a scrub was told nothing: %s", a.body)
	}
	r.want(400, "invalid-request", "POST", jobsPath, `{"kind":"repair","dry_run":true}`)
	for body, kind := range map[string]string{`{"kind":"repair","deep":true}`: "invalid-request", `{"kind":"snapshot","rate":1}`: "invalid-request", `{"kind":"scrub","rate":-1}`: "invalid-body"} {
		r.want(400, kind, "POST", jobsPath, body)
	}
	r.want(401, "unauthorized", "POST", jobsPath, `{"kind":"repair"}`, "Authorization: Bearer x")
}
