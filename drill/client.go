package drill

import (
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
)

// answerMost bounds an answer that is not an object's bytes.
const answerMost = 64 << 20

// transport is shared by everything that a drill asks. The time that a body may
// take is the server's matter.
var transport = &http.Transport{MaxIdleConnsPerHost: 16, DisableCompression: true, ResponseHeaderTimeout: 5 * time.Minute,
	DialContext: (&net.Dialer{Timeout: 10 * time.Second}).DialContext}

func escape(s string) string {
	if s == "." || s == ".." {
		return strings.ReplaceAll(s, ".", "%2E")
	}
	return url.PathEscape(s)
}

func keyPath(what string, n name) string {
	parts := strings.Split(n.Key, "/")
	for i, p := range parts {
		parts[i] = escape(p)
	}
	return "/v1/buckets/" + escape(n.Bucket) + "/" + what + "/" + strings.Join(parts, "/")
}

// request sends one; an answer of any status is no error.
func (s *server) request(ctx context.Context, method, path string, query url.Values, body io.Reader) (*http.Response, error) {
	u := s.url + path
	if len(query) > 0 {
		u += "?" + query.Encode()
	}
	req, err := http.NewRequestWithContext(ctx, method, u, body)
	if err != nil {
		return nil, err
	}
	req.Header.Set("Authorization", "Bearer "+s.token)
	if method == http.MethodPut || method == http.MethodPost {
		req.Header.Set("Content-Type", "application/json")
	}
	return transport.RoundTrip(req)
}

// kindOf is the type of an error's answer.
func kindOf(resp *http.Response) string {
	var p struct{ Type string }
	b, _ := io.ReadAll(io.LimitReader(resp.Body, 64<<10))
	_ = json.Unmarshal(b, &p) // an unknown type stays unknown
	return strings.TrimPrefix(p.Type, "urn:cairn:problem:")
}

// ask wants a success, and decodes it; anything else is a broken promise.
func (r *rig) ask(ctx context.Context, method, path string, query url.Values, in, out any) error {
	var body io.Reader
	if in != nil {
		b, err := json.Marshal(in)
		if err != nil {
			return err
		}
		body = bytes.NewReader(b)
	}
	resp, err := r.server.request(ctx, method, path, query, body)
	if err != nil {
		return unanswered(ctx, method, path, err)
	}
	defer resp.Body.Close()
	if resp.StatusCode/100 != 2 {
		return brokenf("%s %s is answered with %d %s", method, path, resp.StatusCode, kindOf(resp))
	}
	if out == nil {
		return nil
	}
	if err := json.NewDecoder(io.LimitReader(resp.Body, answerMost)).Decode(out); err != nil {
		return brokenf("%s %s: the answer cannot be read: %v", method, path, err)
	}
	return nil
}

// unanswered is a broken promise unless it is the drill that has given up.
func unanswered(ctx context.Context, method, path string, err error) error {
	if ctx.Err() != nil {
		return ctx.Err()
	}
	return brokenf("%s %s gets no answer: %v", method, path, err)
}

// readBack reads a version to its end.
func (s *server) readBack(ctx context.Context, n name) (out reading) {
	query := url.Values{}
	if n.Version != "" {
		query.Set("version", n.Version)
	}
	resp, err := s.request(ctx, http.MethodGet, keyPath("objects", n), query, nil)
	if err != nil {
		return reading{err: err}
	}
	defer resp.Body.Close()
	out.status = resp.StatusCode
	if resp.StatusCode != http.StatusOK {
		out.kind = kindOf(resp)
		return out
	}
	h := sha256.New()
	out.size, out.err = io.Copy(h, resp.Body)
	out.sum = [sha256.Size]byte(h.Sum(nil))
	return out
}

// write puts an object, and says how that ended.
func (s *server) write(ctx context.Context, n name, body []byte) (a attempt, version string, err error) {
	a = attempt{sum: sha256.Sum256(body), size: int64(len(body))}
	resp, err := s.request(ctx, http.MethodPut, keyPath("objects", n), nil, bytes.NewReader(body))
	if op, ok := errors.AsType[*net.OpError](err); ok && op.Op == "dial" {
		a.refused = true // nothing was sent
		return a, "", err
	}
	if err != nil {
		return a, "", err
	}
	defer resp.Body.Close()
	if resp.StatusCode/100 == 2 {
		a.acked = true
		return a, resp.Header.Get("Cairn-Version"), nil
	}
	kind := kindOf(resp)
	a.refused = resp.StatusCode/100 == 4 || slices.Contains([]string{"try-again", "busy", "closing", "full", "not-ready"}, kind)
	return a, "", fmt.Errorf("status %d %s", resp.StatusCode, kind)
}

// put writes an object that is to be there from then on.
func (r *rig) put(ctx context.Context, bucket, key string, size int) error {
	body := r.body(bucket, key, size)
	a, v, err := r.server.write(ctx, name{Bucket: bucket, Key: key}, body)
	if !a.acked {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		return brokenf("put %s/%s is not taken: %v", bucket, key, err)
	}
	for n, old := range r.truth.versions {
		switch {
		case n.Bucket != bucket || n.Key != key:
		case bucket == r.own("versions"):
			old.Current = false
			r.truth.versions[n] = old
		default: // without versions an overwrite is final
			delete(r.truth.versions, n)
		}
	}
	r.truth.versions[name{bucket, key, v}] = version{Size: a.size, Current: true, Sum: a.sum}
	return nil
}

// makeBucket makes one of the drill's own.
func (r *rig) makeBucket(ctx context.Context, bucket string, settings map[string]any) error {
	return r.ask(ctx, http.MethodPut, "/v1/buckets/"+escape(bucket), nil, settings, nil)
}

// listBuckets are the names of all.
func (r *rig) listBuckets(ctx context.Context) (out []string, err error) {
	var all struct{ Buckets []struct{ Name string } }
	if err := r.ask(ctx, http.MethodGet, "/v1/buckets", nil, nil, &all); err != nil {
		return nil, err
	}
	for _, b := range all.Buckets {
		out = append(out, b.Name)
	}
	return out, nil
}

// list lists all versions in these buckets, without hashes.
func (r *rig) list(ctx context.Context, buckets []string) (map[name]version, error) {
	out := map[name]version{}
	for _, bucket := range buckets {
		query := url.Values{"versions": {"true"}}
		for {
			var page struct {
				Objects []struct {
					Key, Version     string
					Size             int64
					Deleted, Current bool
				}
				More   bool
				Cursor string
			}
			if err := r.ask(ctx, http.MethodGet, "/v1/buckets/"+escape(bucket)+"/objects", query, nil, &page); err != nil {
				return nil, err
			}
			for _, o := range page.Objects {
				out[name{bucket, o.Key, o.Version}] = version{Size: o.Size, Deleted: o.Deleted, Current: o.Current}
			}
			if !page.More {
				break
			}
			if page.Cursor == "" || page.Cursor == query.Get("cursor") {
				return nil, brokenf("a listing of %s says that there is more and not where", bucket)
			}
			query.Set("cursor", page.Cursor)
		}
	}
	return out, nil
}

// readers is how many objects are read at a time.
const readers = 4

// readAll reads these, and gives each reading to judge, one at a time.
func (r *rig) readAll(ctx context.Context, names []name, judge func(name, reading) error) error {
	var (
		g, gctx = errgroup.WithContext(ctx)
		mu      sync.Mutex
	)
	g.SetLimit(readers)
	for _, n := range names {
		g.Go(func() error {
			if gctx.Err() != nil {
				return gctx.Err()
			}
			got := r.server.readBack(gctx, n)
			if gctx.Err() != nil {
				return gctx.Err()
			}
			mu.Lock()
			defer mu.Unlock()
			r.readBytes += got.size
			if got.whole() {
				r.read++
			}
			return judge(n, got)
		})
	}
	return g.Wait()
}

// check holds everything that can be asked against the truth: buckets, listings
// with all versions, and every byte.
func (r *rig) check(ctx context.Context) error {
	began := time.Now()
	got, err := r.list(ctx, r.truth.buckets)
	if err != nil {
		return err
	}
	if err := judgeListing(r.truth.versions, got); err != nil {
		return err
	}
	var size int64
	names := r.truth.names()
	err = r.readAll(ctx, names, func(n name, got reading) error {
		size += got.size
		return judgeRead(n, r.truth.versions[n], got)
	})
	if err != nil {
		return err
	}
	r.say("read back", "%d versions of objects, %s, every byte as written; the listing is the same (%v)", len(names), mib(size), time.Since(began).Round(time.Millisecond))
	return nil
}

// takeTruth makes what the store holds the truth: of what the drill has written
// itself, what it wrote.
func (r *rig) takeTruth(ctx context.Context) error {
	buckets, err := r.listBuckets(ctx)
	if err != nil {
		return err
	}
	written := r.truth.versions
	all, err := r.list(ctx, buckets)
	if err != nil {
		return err
	}
	r.truth = truth{buckets, all}
	for n, w := range written {
		if g, ok := all[n]; !ok || g.Size != w.Size {
			return brokenf("%v was written and is not listed so", n)
		}
	}
	return r.readAll(ctx, r.truth.names(), func(n name, got reading) error {
		want, ours := written[n]
		if !ours {
			want = version{Size: r.truth.versions[n].Size, Sum: got.sum}
		}
		if err := judgeRead(n, want, got); err != nil {
			return err
		}
		v := r.truth.versions[n]
		v.Sum = got.sum
		r.truth.versions[n] = v
		return nil
	})
}

// state is what the store says of itself.
type state struct {
	Survives   string
	Writable   bool
	Reason     string
	Losses     int `json:"losses_by_policy"`
	PacksShort int `json:"packs_short"`
	PacksLost  int `json:"packs_lost"`
	Nodes      []struct {
		Name, State string
		Log         bool `json:"log_node"`
	}
}

func (r *rig) status(ctx context.Context) (st state, err error) {
	err = r.ask(ctx, http.MethodGet, "/v1/status", nil, nil, &st)
	return st, err
}

// nodesIn are the names of the nodes in a state.
func (s state) nodesIn(what string) (out []string) {
	for _, n := range s.Nodes {
		if n.State == what {
			out = append(out, n.Name)
		}
	}
	slices.Sort(out)
	return out
}

// noticed waits until status calls exactly these nodes missing.
func (r *rig) noticed(ctx context.Context, missing []string) error {
	began := time.Now()
	for {
		st, err := r.status(ctx)
		if err != nil {
			return err
		}
		if got := st.nodesIn("missing"); slices.Equal(got, missing) {
			r.say("found", "status calls %s missing after %v; survives: %s", cmp.Or(strings.Join(got, ", "), "no node"), time.Since(began).Round(time.Millisecond), st.Survives)
			return nil
		}
		if time.Since(began) > 30*time.Second {
			return brokenf("%s are gone, and status calls missing: %q", strings.Join(missing, ", "), st.nodesIn("missing"))
		}
		if err := pause(ctx, 50*time.Millisecond); err != nil {
			return err
		}
	}
}

func pause(ctx context.Context, d time.Duration) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(d):
		return nil
	}
}

// restless is how long packs may be short of a shard while no repair runs.
const restless = 30 * time.Second

// healed waits until no pack is short of a shard. A repair takes as long as it
// takes; that none runs and packs stay short is a broken promise.
func (r *rig) healed(ctx context.Context) error {
	began, quiet := time.Now(), time.Now()
	for {
		st, err := r.status(ctx)
		if err != nil {
			return err
		}
		if st.PacksLost > 0 {
			return brokenf("%d packs are lost that should have been repaired", st.PacksLost)
		}
		if st.PacksShort == 0 && len(st.nodesIn("missing")) == 0 {
			r.say("repaired", "no pack is short of a shard after %v; survives: %s", time.Since(began).Round(time.Millisecond), st.Survives)
			return nil
		}
		var running struct{ Jobs []struct{ ID string } }
		if err := r.ask(ctx, http.MethodGet, "/v1/jobs", url.Values{"kind": {"repair"}, "state": {"running"}}, nil, &running); err != nil {
			return err
		}
		if len(running.Jobs) > 0 {
			quiet = time.Now()
		}
		if time.Since(quiet) > restless {
			return brokenf("%d packs stay short of a shard, and no repair has run for %v", st.PacksShort, restless)
		}
		if err := pause(ctx, 50*time.Millisecond); err != nil {
			return err
		}
	}
}

// scrub runs one, and wants its exit code.
func (r *rig) scrub(ctx context.Context, deep bool, want int) (scrubbed, error) {
	args, depth := []string{"scrub", "--rate", "10GB", "--json"}, "a light scrub"
	if deep {
		args, depth = append(args, "--deep"), "a deep scrub"
	}
	c, err := r.cairn(ctx, args...)
	if err != nil {
		return scrubbed{}, err
	}
	var job struct{ Result scrubbed }
	if err := json.Unmarshal(c.stdout, &job); err != nil {
		return scrubbed{}, &broken{c.String()}
	}
	s := job.Result
	if err := judgeScrub(c.code, s, want); err != nil {
		return s, err
	}
	took := time.Duration(s.Seconds * float64(time.Second)).Round(time.Millisecond)
	switch c.code { // as wanted
	case scrubClean:
		r.say("found", "%s finds nothing wrong with %d shards of %d packs (exit code 0, %v)", depth, s.Shards, s.Packs, took)
	case scrubRepaired:
		r.say("found", "%s finds %d shards damaged (%s) and makes all of them anew (exit code 1, %v)", depth, s.Damaged, kinds(s.Damage), took)
	case scrubLost:
		r.say("found", "%s finds %d packs lost, and %d shards that it makes anew (exit code 2, %v)", depth, s.LostPacks, s.Repaired, took)
	}
	return s, nil
}

// kinds are the kinds of damage with their numbers.
func kinds(damage map[string]int) string {
	var out []string
	for k, n := range damage {
		out = append(out, fmt.Sprintf("%s %d", k, n))
	}
	slices.Sort(out)
	return strings.Join(out, ", ")
}

// chunksOf says where the chunks of a version lie, as the index knows it. Lists of a
// long object's chunks are not among them: whole is false for one that has some.
func (r *rig) chunksOf(ctx context.Context, n name) (out []piece, whole bool, err error) {
	query := url.Values{"version": {n.Version}}
	for {
		var page struct {
			Chunks []struct {
				Pack  string
				First uint8 `json:"first_shard"`
				Last  uint8 `json:"last_shard"`
			}
			Packs []struct {
				ID, Kind, Code string
				Shards         []struct {
					Index uint8
					Node  string
				}
			}
			More bool
			Next int64
		}
		if err := r.ask(ctx, http.MethodGet, keyPath("placement", n), query, nil, &page); err != nil {
			return nil, false, err
		}
		packs := map[string]*pack{}
		for _, p := range page.Packs {
			k, _, _ := strings.Cut(p.Code, "+")
			need, err := strconv.Atoi(k)
			if err != nil {
				return nil, false, brokenf("%v lies in a pack of the code %q", n, p.Code)
			}
			packs[p.ID] = &pack{id: p.ID, data: p.Kind == "data", need: need}
			for _, s := range p.Shards {
				packs[p.ID].shards = append(packs[p.ID].shards, place{s.Index, s.Node})
			}
		}
		for _, c := range page.Chunks {
			if packs[c.Pack] == nil {
				return nil, false, brokenf("%v has a chunk in a pack %q that is not described", n, c.Pack)
			}
			out = append(out, piece{packs[c.Pack], c.First, c.Last})
		}
		if !page.More {
			return out, len(out) <= inline, nil
		}
		query.Set("from", strconv.FormatInt(page.Next, 10))
	}
}

// inline is how many chunks a manifest has without lists.
const inline = 16

// verify reads the stopped store to the last byte, which must be sound.
func (r *rig) verify(ctx context.Context) error {
	began := time.Now()
	c, err := r.offline(ctx, "verify")
	if err != nil {
		return err
	}
	if c.code != 0 {
		return brokenf("%v%s", c, lastLine(c.stdout))
	}
	r.say("read back", "cairn verify: %s (%v)", lastLine(c.stdout), time.Since(began).Round(time.Millisecond))
	return nil
}

func lastLine(b []byte) string {
	lines := strings.Split(strings.TrimSpace(string(b)), "\n")
	return lines[len(lines)-1]
}

func mib(n int64) string { return fmt.Sprintf("%.1f MiB", float64(n)/(1<<20)) }
