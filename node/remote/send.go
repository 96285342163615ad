package remote

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptrace"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"cairn/id"
	"cairn/node"
	"cairn/node/link"
)

// send does one request. What it returns is an answer over a proved link of the node
// that was asked, or a *linkError.
func (n *Node) send(ctx context.Context, r *http.Request) (*http.Response, error) {
	var begun atomic.Bool // it may have reached the node
	r = r.WithContext(httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{WroteHeaders: func() { begun.Store(true) }}))
	resp, err := n.http.RoundTrip(r)
	if err != nil {
		return nil, &linkError{cause(ctx, err), begun.Load()}
	}
	if resp.StatusCode == http.StatusServiceUnavailable {
		drop(resp)
		return nil, &linkError{errors.New("it has too much to do"), false}
	}
	if err := n.heard(resp.Header); err != nil {
		drop(resp)
		return nil, &linkError{err, true}
	}
	if resp.StatusCode != http.StatusOK && resp.StatusCode != http.StatusUnprocessableEntity {
		drop(resp)
		return nil, &linkError{fmt.Errorf("HTTP status %d", resp.StatusCode), true}
	}
	return resp, nil
}

// cause is why a request failed: the end of its context, if that was it.
func cause(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return ctx.Err()
	}
	return err
}

// drop ends an answer that nobody wants. A short rest is read, so that the connection
// can be used again.
func drop(r *http.Response) {
	_, _ = io.CopyN(io.Discard, r.Body, 4<<10)
	r.Body.Close()
}

// alone sends a call in a request of its own.
func (n *Node) alone(ctx context.Context, c *link.Call) (out link.Result, err error) {
	ctx, cancel := n.over(ctx)
	defer cancel()
	c.No = 1
	if at, ok := ctx.Deadline(); ok {
		c.Within = uint32(max(time.Until(at).Milliseconds(), 1))
	}
	body, err := link.AppendCall(nil, c)
	if err != nil {
		return out, err
	}
	got, said := false, error(nil)
	err = n.post(ctx, body, c.MaxAnswer(), func(no uint32) int {
		if no == 1 && !got {
			return c.MaxAnswer()
		}
		return 0
	}, func(a *link.Answer) {
		got = true
		out, said = a.Result, a.Err()
	})
	switch {
	case got:
		return out, said
	case err == nil:
		err = &linkError{io.ErrUnexpectedEOF, true}
	}
	return out, err
}

// post sends calls and hands over their answers as they come. After an error, those
// that were not handed over have none.
func (n *Node) post(ctx context.Context, calls []byte, room int, most func(uint32) int, take func(*link.Answer)) error {
	body := newBody(calls)
	defer body.detach()
	r, err := n.request(ctx, http.MethodPost, link.CallsPath(n.cfg.Node), body, int64(len(calls)))
	if err != nil {
		return &linkError{err, false}
	}
	r.Header.Set(link.RoomHeader, strconv.Itoa(room))
	resp, err := n.send(ctx, r)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return &linkError{fmt.Errorf("HTTP status %d", resp.StatusCode), true}
	}
	for {
		a, err := link.ReadAnswer(resp.Body, most)
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return &linkError{cause(ctx, err), true}
		}
		take(&a)
	}
}

// putLong puts a shard in a request of its own.
func (n *Node) putLong(ctx context.Context, by node.Authority, gen uint64, why node.Purpose, k node.Key, sh node.Shard) (id.Instance, error) {
	slots := n.shards
	if why == node.ForLog || why == node.ForStart || why == node.ForRepair {
		slots = n.logs
	}
	in, cancel := n.slowly(ctx)
	defer cancel()
	if err := take(in, slots); err != nil {
		return 0, n.judge(ctx, &linkError{err: err})
	}
	defer func() { <-slots }()
	out, err := n.putOnce(in, by, gen, why, k, sh)
	return out, n.judge(ctx, err)
}

func (n *Node) putOnce(ctx context.Context, by node.Authority, gen uint64, why node.Purpose, k node.Key, sh node.Shard) (id.Instance, error) {
	ctx, cancel := n.over(ctx)
	defer cancel()
	body := newBody(sh.Head, sh.Body)
	defer body.detach() // the shard is the caller's again
	pace := n.pace(cancel)
	defer pace.Stop()
	body.moved = func(left int) {
		if pace.Reset(n.cfg.Pace); left == 0 {
			pace.Stop() // what follows is the node's time to store it
		}
	}
	r, err := n.request(ctx, http.MethodPut, link.ShardPath(n.cfg.Node, k)+"?why="+strconv.Itoa(int(why)), body, int64(len(sh.Head)+len(sh.Body)))
	if err != nil {
		return 0, &linkError{err, false}
	}
	r.Header.Set(link.AuthorityHeader, link.FormatAuthority(by))
	r.Header.Set(link.GenerationHeader, strconv.FormatUint(gen, 10))
	r.Header.Set("Expect", "100-continue")
	resp, err := n.send(ctx, r)
	if err != nil {
		return 0, err
	}
	defer resp.Body.Close()
	a, err := oneAnswer(ctx, resp)
	if err != nil {
		return 0, err
	}
	return a.Result.Instance, a.Err()
}

// oneAnswer reads the answer to a request that is no request of calls.
func oneAnswer(ctx context.Context, resp *http.Response) (link.Answer, error) {
	a, err := link.ReadAnswer(resp.Body, func(uint32) int { return 4 << 10 })
	if err != nil {
		return a, &linkError{cause(ctx, err), true}
	}
	return a, nil
}

// pace ends a request whose body stands still.
func (n *Node) pace(cancel context.CancelFunc) *time.Timer {
	t := time.AfterFunc(time.Hour, cancel)
	t.Stop()
	return t
}

// readLong reads a range in a request of its own.
func (n *Node) readLong(ctx context.Context, k node.Key, off int64, dst []byte) error {
	in, cancel := n.slowly(ctx)
	defer cancel()
	if err := take(in, n.shards); err != nil {
		return n.judge(ctx, &linkError{err: err})
	}
	defer func() { <-n.shards }()
	return n.judge(ctx, n.readOnce(in, k, off, dst))
}

func (n *Node) readOnce(ctx context.Context, k node.Key, off int64, dst []byte) error {
	ctx, cancel := n.over(ctx)
	defer cancel()
	r, err := n.request(ctx, http.MethodGet, fmt.Sprintf("%s?off=%d&len=%d", link.ShardPath(n.cfg.Node, k), off, len(dst)), nil, 0)
	if err != nil {
		return &linkError{err, false}
	}
	resp, err := n.send(ctx, r)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		a, err := oneAnswer(ctx, resp)
		if err != nil {
			return err
		}
		if a.Code == link.CodeNone {
			return &linkError{errors.New("a refusal without a reason"), true}
		}
		return a.Err()
	}
	if resp.ContentLength != int64(len(dst)) {
		return &linkError{fmt.Errorf("%d bytes where %d were asked for", resp.ContentLength, len(dst)), true}
	}
	pace := n.pace(cancel)
	defer pace.Stop()
	for at := 0; at < len(dst); {
		pace.Reset(n.cfg.Pace)
		m, err := io.ReadFull(resp.Body, dst[at:min(at+64<<10, len(dst))])
		if at += m; err != nil {
			return &linkError{cause(ctx, err), true}
		}
	}
	return nil
}

// body hands out a request's bytes until it is detached: the transport may still read a
// body when the request is over for its caller, whose bytes they are again then.
type body struct {
	moved func(left int) // called with each piece that is handed out

	mu    sync.Mutex
	parts [][]byte
	left  int
	gone  bool
}

func newBody(parts ...[]byte) *body {
	b := &body{parts: parts}
	for _, p := range parts {
		b.left += len(p)
	}
	return b
}

// Read implements io.Reader.
func (b *body) Read(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.gone {
		return 0, errDetached
	}
	for len(b.parts) > 0 && len(b.parts[0]) == 0 {
		b.parts = b.parts[1:]
	}
	if len(b.parts) == 0 {
		return 0, io.EOF
	}
	n := copy(p, b.parts[0])
	b.parts[0] = b.parts[0][n:]
	if b.left -= n; b.moved != nil {
		b.moved(b.left)
	}
	return n, nil
}

var errDetached = errors.New("the request is over")

// Close implements io.Closer.
func (b *body) Close() error { return nil }

// detach ends all reading, and waits for what copies.
func (b *body) detach() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.gone, b.parts = true, nil
}
