package rest

import (
	"context"
	"encoding/json"
	"net/http"
	"sync/atomic"
	"time"

	"github.com/labstack/echo/v4"

	"cairn/store"
)

// What a request may cost before it is looked at.
const (
	// maxURL is the longest request target: room for two keys of the greatest
	// length with every byte escaped, a prefix and a cursor.
	maxURL = 16 << 10 // bytes
	// heldAtOnce is how many answers that are held whole (pages of listings) are
	// made at the same time, and heldInLine how many more may wait for that.
	heldAtOnce = 4
	heldInLine = 64
	heldWait   = 5 * time.Second
	// turnWait is how long a request waits for its turn when all that may be answered
	// at a time are: others end meanwhile, and who asks again at once when refused
	// does so ten times a second.
	turnWait = 100 * time.Millisecond
	// maxUnsent is how much of such answers may wait for their clients: the longest
	// page, of a mebibyte of keys and attributes, takes six when all is escaped.
	maxUnsent = 32 << 20 // bytes
)

// busy is what a request is told that finds too many others.
func busy() error { return store.ErrBusy }

// admit bounds the requests in flight: further ones wait a moment, then are told so,
// before their bodies are read, and may come back (H54). What watches the server is
// always answered.
func (f *face) admit(next echo.HandlerFunc) echo.HandlerFunc {
	return func(c echo.Context) error {
		if len(c.Request().RequestURI) > maxURL {
			return problem(http.StatusRequestURITooLong, "url-too-long", "the URL is too long", "a key has at most 1,024 bytes")
		}
		if f.watch[c.Path()] || f.turns == nil {
			return next(c)
		}
		leave, err := f.turns.enter(c.Request().Context())
		if err != nil {
			return err
		}
		defer leave()
		return next(c)
	}
}

// line lets a few at a time do something, and a bounded number wait for it.
type line struct {
	places  chan struct{}
	length  int64 // how many may wait
	wait    time.Duration
	waiting atomic.Int64
}

func newLine(places, length int, wait time.Duration) *line {
	return &line{places: make(chan struct{}, places), length: int64(length), wait: wait}
}

// enter waits for a place; leave gives it back.
func (l *line) enter(ctx context.Context) (leave func(), err error) {
	leave = func() { <-l.places }
	select {
	case l.places <- struct{}{}:
		return leave, nil
	default:
	}
	defer l.waiting.Add(-1)
	if l.waiting.Add(1) > l.length {
		return nil, busy()
	}
	t := time.NewTimer(l.wait)
	defer t.Stop()
	select {
	case l.places <- struct{}{}:
		return leave, nil
	case <-t.C:
		return nil, busy()
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}

// held makes an answer that is held whole, when few others are being made. While
// it is sent, which may take a slow client long, its bytes count and its place is
// free again.
func (f *face) held(make func(echo.Context) (any, error)) echo.HandlerFunc {
	return func(c echo.Context) error {
		b, err := f.page(c, make)
		if err != nil {
			return err
		}
		n := int64(len(b))
		defer f.unsent.Add(-n)
		if f.unsent.Add(n) > maxUnsent {
			return busy()
		}
		return c.JSONBlob(http.StatusOK, b)
	}
}

func (f *face) page(c echo.Context, make func(echo.Context) (any, error)) ([]byte, error) {
	leave, err := f.pages.enter(c.Request().Context())
	if err != nil {
		return nil, err
	}
	defer leave()
	v, err := make(c)
	if err != nil {
		return nil, err
	}
	b, err := json.Marshal(v)
	return append(b, '\n'), err
}
