package integration

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"
)

// answer is how a request ended.
type answer int

const (
	acked   answer = iota // a success, read to its end
	refused               // an error that promises that nothing was done
	unknown               // no answer, or one that says that the outcome is not known
)

// reply is a request's outcome with what came back.
type reply struct {
	answer
	status int    // 0: none came
	kind   string // a problem's type, without the common prefix
	body   []byte
	header http.Header
	err    error // of the connection
}

func (r reply) String() string {
	if r.err != nil {
		return fmt.Sprintf("status %d %s: %v", r.status, r.kind, r.err)
	}
	return fmt.Sprintf("status %d %s", r.status, r.kind)
}

// client speaks REST with one server.
type client struct {
	base, token string
	http        *http.Client
}

func (s *server) client() *client {
	t := &http.Transport{MaxIdleConnsPerHost: 16, DisableCompression: true, DialContext: (&net.Dialer{Timeout: 5 * time.Second}).DialContext}
	return &client{base: s.url, token: s.token, http: &http.Client{Transport: t}}
}

func (c *client) close() { c.http.CloseIdleConnections() }

func objectPath(key string) string {
	parts := strings.Split(key, "/")
	for i, p := range parts {
		parts[i] = url.PathEscape(p)
	}
	return "/v1/buckets/main/objects/" + strings.Join(parts, "/")
}

// do sends a request and reads the answer to its end.
func (c *client) do(method, path string, header http.Header, body []byte) reply {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, method, c.base+path, bytes.NewReader(body))
	if err != nil {
		return reply{answer: refused, err: err}
	}
	for k, v := range header {
		req.Header[k] = v
	}
	req.Header.Set("Authorization", "Bearer "+c.token)
	resp, err := c.http.Do(req)
	if op, ok := errors.AsType[*net.OpError](err); ok && op.Op == "dial" {
		return reply{answer: refused, err: err} // nothing was sent
	}
	if err != nil {
		return reply{answer: unknown, err: err}
	}
	defer resp.Body.Close()
	out := reply{status: resp.StatusCode, header: resp.Header}
	buf := bytes.NewBuffer(make([]byte, 0, max(resp.ContentLength, 0)+bytes.MinRead))
	_, err = io.Copy(buf, resp.Body)
	out.body = buf.Bytes()
	switch {
	case resp.StatusCode/100 == 2:
		// The status line is the acknowledgement of a write; a body that was cut
		// short is an error of a read.
		out.answer, out.err = acked, err
	case resp.StatusCode/100 == 5:
		out.answer, out.err = unknown, err
	default:
		out.answer, out.err = refused, err
	}
	if out.answer != acked && err == nil {
		var p struct{ Type string }
		_ = json.Unmarshal(out.body, &p) // an unknown type stays unknown
		out.kind = strings.TrimPrefix(p.Type, "urn:cairn:problem:")
		switch out.kind {
		case "try-again", "busy", "closing", "full":
			out.answer = refused // each promises that nothing was done
		}
	}
	return out
}

func (c *client) put(key string, body []byte) reply {
	return c.do(http.MethodPut, objectPath(key), nil, body)
}
func (c *client) get(key string) reply { return c.do(http.MethodGet, objectPath(key), nil, nil) }
func (c *client) getRange(key string, off, n int) reply {
	return c.do(http.MethodGet, objectPath(key), http.Header{"Range": {fmt.Sprintf("bytes=%d-%d", off, off+n-1)}}, nil)
}
func (c *client) delete(key string) reply { return c.do(http.MethodDelete, objectPath(key), nil, nil) }
func (c *client) undelete(key string) reply {
	return c.do(http.MethodPost, objectPath(key)+"?undelete", nil, nil)
}

// listed is an object as a listing shows it.
type listed struct {
	Key  string `json:"key"`
	Size uint64 `json:"size"`
}

// list lists all keys with a prefix, a page at a time.
func (c *client) list(prefix string, page int) ([]listed, reply) {
	var out []listed
	cursor := ""
	for {
		q := url.Values{"prefix": {prefix}, "limit": {fmt.Sprint(page)}}
		if cursor != "" {
			q.Set("cursor", cursor)
		}
		r := c.do(http.MethodGet, "/v1/buckets/main/objects?"+q.Encode(), nil, nil)
		if r.answer != acked || r.err != nil {
			return nil, r
		}
		var body struct {
			Objects []listed `json:"objects"`
			More    bool     `json:"more"`
			Cursor  string   `json:"cursor"`
		}
		if err := json.Unmarshal(r.body, &body); err != nil {
			r.err = err
			return nil, r
		}
		out = append(out, body.Objects...)
		if !body.More {
			return out, r
		}
		if body.Cursor == "" || body.Cursor == cursor {
			r.err = fmt.Errorf("a page with more after it has the cursor %q", body.Cursor)
			return nil, r
		}
		cursor = body.Cursor
	}
}

// usage is what `cairn df --json` says.
func (s *server) usage(t *testing.T) map[string]uint64 {
	t.Helper()
	out := s.r.must("df", "--json")
	var all map[string]json.RawMessage
	if err := json.Unmarshal([]byte(out), &all); err != nil {
		t.Fatalf("df --json: %v\n%s", err, out)
	}
	u := map[string]uint64{}
	for _, name := range []string{"logical_bytes", "unique_bytes", "compressed_bytes", "live_bytes", "dead_bytes", "pending_bytes",
		"parity_bytes", "padding_bytes", "free_in_segments_bytes", "physical_bytes", "index_bytes", "other_bytes"} {
		var n uint64
		if err := json.Unmarshal(all[name], &n); err != nil {
			t.Fatalf("df --json: %s: %v\n%s", name, err, out)
		}
		u[name] = n
	}
	return u
}

// inNodes is what the directories of nodes have in use, what is preallocated left out.
func inNodes(u map[string]uint64) uint64 {
	return u["physical_bytes"] - u["free_in_segments_bytes"] - u["index_bytes"] - u["other_bytes"]
}
