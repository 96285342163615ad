package rest

import (
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"sort"
	"strings"
	"testing"
	"time"

	"github.com/labstack/echo/v4"
	"pgregory.net/rapid"
)

// document is openapi.json as far as the tests look at it.
type document struct {
	OpenAPI    string                                `json:"openapi"`
	Paths      map[string]map[string]json.RawMessage `json:"paths"`
	Components struct {
		Schemas map[string]*schema `json:"schemas"`
	} `json:"components"`
}

type operation struct {
	Parameters []parameter         `json:"parameters"`
	Security   *[]map[string]any   `json:"security"`
	Responses  map[string]response `json:"responses"`
}

type parameter struct {
	Name, In string
	Required bool
	Schema   *schema
}

type response struct {
	Content map[string]struct {
		Schema *schema `json:"schema"`
	} `json:"content"`
}

type schema struct {
	Ref        string             `json:"$ref"`
	Type       string             `json:"type"`
	Format     string             `json:"format"`
	Enum       []string           `json:"enum"`
	Minimum    *float64           `json:"minimum"`
	Maximum    *float64           `json:"maximum"`
	Required   []string           `json:"required"`
	Properties map[string]*schema `json:"properties"`
	Items      *schema            `json:"items"`
	More       json.RawMessage    `json:"additionalProperties"`
}

func readDocument(t rapid.TB) *document {
	t.Helper()
	var d document
	if err := json.Unmarshal(openAPI, &d); err != nil {
		t.Fatal(err)
	}
	return &d
}

func (d *document) operation(t rapid.TB, path, method string) (operation, bool) {
	t.Helper()
	raw, ok := d.Paths[path][strings.ToLower(method)]
	if !ok {
		return operation{}, false
	}
	var op operation
	if err := json.Unmarshal(raw, &op); err != nil {
		t.Fatalf("%s %s in openapi.json: %v", method, path, err)
	}
	return op, true
}

// describedAs turns a pattern of ours into the document's form.
func describedAs(pattern string) string {
	for _, p := range [][2]string{{":bucket", "{bucket}"}, {":node", "{node}"}, {":name", "{name}"}, {":upload", "{upload}"}, {":job", "{job}"}, {"*", "{key}"}} {
		pattern = strings.ReplaceAll(pattern, p[0], p[1])
	}
	return pattern
}

func TestOpenAPIDescribesTheRoutes(t *testing.T) {
	d := readDocument(t)
	if !strings.HasPrefix(d.OpenAPI, "3.1.") {
		t.Errorf("openapi.json is of version %q, want 3.1", d.OpenAPI)
	}
	var served, described []string
	f, e, err := build(Config{Store: newFake(), Token: testToken, First: true})
	if err != nil {
		t.Fatal(err)
	}
	table := map[string]route{}
	for _, r := range f.routes() {
		table[r.method+" "+describedAs(r.path)] = r
	}
	for _, r := range e.Routes() { // what is really served, not what the table says
		gets := slices.ContainsFunc(e.Routes(), func(g *echo.Route) bool { return g.Method == http.MethodGet && g.Path == r.Path })
		if r.Method == http.MethodHead && gets {
			continue
		}
		if r.Method == http.MethodGet && !slices.ContainsFunc(e.Routes(), func(h *echo.Route) bool { return h.Method == http.MethodHead && h.Path == r.Path }) {
			t.Errorf("%s answers GET and not HEAD", r.Path)
		}
		served = append(served, r.Method+" "+describedAs(r.Path))
	}
	for path, methods := range d.Paths {
		for m := range methods {
			if m == "parameters" {
				continue
			}
			name := strings.ToUpper(m) + " " + path
			described = append(described, name)
			op, _ := d.operation(t, path, m)
			r := table[name]
			var params []string
			for _, p := range op.Parameters {
				if p.In == "query" {
					params = append(params, p.Name)
				}
			}
			sort.Strings(params)
			want := slices.Sorted(slices.Values(r.params))
			if !slices.Equal(params, want) {
				t.Errorf("%s: query parameters described %q, taken %q", name, params, want)
			}
			if free := op.Security != nil && len(*op.Security) == 0; free != r.open {
				t.Errorf("%s: described as free of the token: %v, served so: %v", name, free, r.open)
			}
		}
	}
	sort.Strings(served)
	sort.Strings(described)
	if !slices.Equal(served, described) {
		t.Errorf("served\n %s\ndescribed\n %s", strings.Join(served, "\n "), strings.Join(described, "\n "))
	}
}

// match finds the described path of an escaped path, the one with the fewest
// parameters when there are several.
func (d *document) match(escaped string) string {
	got := strings.Split(strings.TrimPrefix(escaped, "/"), "/")
	best := ""
	for path := range d.Paths {
		want := strings.Split(strings.TrimPrefix(path, "/"), "/")
		if len(got) < len(want) || len(got) > len(want) && want[len(want)-1] != "{key}" {
			continue
		}
		ok := true
		for i, w := range want {
			ok = ok && (w == got[i] || w == "{key}" || strings.HasPrefix(w, "{") && (got[i] != "" || i < len(want)-1))
		}
		if ok && (best == "" || strings.Count(path, "{") < strings.Count(best, "{")) {
			best = path
		}
	}
	return best
}

// checkAnswer holds an answer against the document.
func (d *document) checkAnswer(t rapid.TB, method, escaped string, status int, h http.Header, body []byte) {
	t.Helper()
	path := d.match(escaped)
	op, ok := d.operation(t, path, method)
	if method == http.MethodHead {
		if body = nil; !ok {
			op, ok = d.operation(t, path, http.MethodGet)
		}
	}
	if !ok || status == http.StatusMethodNotAllowed {
		return // no such route
	}
	r, ok := op.Responses[fmt.Sprint(status)]
	if !ok {
		t.Errorf("%s %s answers %d, which openapi.json does not describe", method, path, status)
		return
	}
	if len(body) == 0 {
		for media := range r.Content {
			if method != http.MethodHead && strings.HasSuffix(media, "json") {
				t.Errorf("%s %s: %d has no body, and %s is described", method, path, status, media)
			}
		}
		return
	}
	if len(r.Content) == 0 {
		t.Errorf("%s %s: %d is described as without content, and has %.80q", method, path, status, body)
	}
	for media, content := range r.Content {
		if !strings.HasSuffix(media, "json") {
			continue
		}
		if got := h.Get("Content-Type"); got != media {
			t.Errorf("%s %s: %d has Content-Type %q, described %q", method, path, status, got, media)
		}
		var v any
		if err := json.Unmarshal(body, &v); err != nil {
			t.Errorf("%s %s: %d is no JSON: %v: %.200q", method, path, status, err, body)
			return
		}
		for _, fault := range d.faults(fmt.Sprintf("%s %s: %d", method, path, status), content.Schema, v) {
			t.Error(fault)
		}
	}
}

// faults says where a value is not what its schema describes.
func (d *document) faults(at string, s *schema, v any) (out []string) {
	if s == nil {
		return nil
	}
	if s.Ref != "" {
		name := strings.TrimPrefix(s.Ref, "#/components/schemas/")
		if s = d.Components.Schemas[name]; s == nil {
			return []string{at + ": no schema " + name}
		}
	}
	bad := func() []string { return append(out, fmt.Sprintf("%s: %v (%T) is no %s", at, v, v, s.Type)) }
	switch x := v.(type) {
	case map[string]any:
		if s.Type != "object" {
			return bad()
		}
		for _, name := range s.Required {
			if _, ok := x[name]; !ok {
				out = append(out, at+": "+name+" is missing")
			}
		}
		for name, value := range x {
			p := s.Properties[name]
			if p == nil && string(s.More) == "false" {
				out = append(out, at+": "+name+" is not described")
			}
			if p == nil && strings.HasPrefix(string(s.More), "{") {
				if err := json.Unmarshal(s.More, &p); err != nil {
					return append(out, at+": "+err.Error())
				}
			}
			out = append(out, d.faults(at+"."+name, p, value)...)
		}
	case []any:
		if s.Type != "array" {
			return bad()
		}
		for i, value := range x {
			out = append(out, d.faults(fmt.Sprintf("%s[%d]", at, i), s.Items, value)...)
		}
	case string:
		if s.Type != "string" || len(s.Enum) > 0 && !slices.Contains(s.Enum, x) {
			return bad()
		}
		if _, err := time.Parse(time.RFC3339, x); s.Format == "date-time" && err != nil {
			return bad()
		}
	case float64:
		if s.Type != "integer" || x != float64(int64(x)) || s.Minimum != nil && x < *s.Minimum || s.Maximum != nil && x > *s.Maximum {
			return bad()
		}
	case bool:
		if s.Type != "boolean" {
			return bad()
		}
	default:
		return bad()
	}
	return out
}
