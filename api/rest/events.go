package rest

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"time"

	"github.com/labstack/echo/v4"

	"cairn/store"
)

const (
	eventsPath = "/v1/events"
	// heartbeat is how often a stream of events without events says that it is there.
	heartbeat = 15 * time.Second
	// retryAfter is when a client that has lost its stream should ask again.
	retryAfter = 3 * time.Second
	// fewListeners is how many streams there are at a time when Config says nothing.
	fewListeners = 16
)

// eventData is what an event says beside its name.
func eventData(ev store.Event) any {
	at := ev.Time.UTC()
	switch {
	case ev.Job != nil:
		return struct {
			Time time.Time `json:"time"`
			Job  jobJSON   `json:"job"`
		}{at, jobToJSON(*ev.Job)}
	case ev.Node != nil:
		return struct {
			Time   time.Time `json:"time"`
			Node   string    `json:"node"`
			State  string    `json:"state"`
			Reason string    `json:"reason,omitempty"`
		}{at, ev.Node.Name, ev.Node.State, ev.Node.Reason}
	case ev.Taken != nil:
		return struct {
			Time   time.Time `json:"time"`
			Taken  bool      `json:"taken"`
			Reason string    `json:"reason,omitempty"`
		}{at, ev.Taken.Taken, ev.Taken.Reason}
	case ev.Overdue != nil:
		return struct {
			Time  time.Time `json:"time"`
			Depth string    `json:"depth"`
			Age   ageJSON   `json:"age"`
		}{at, depthOf(ev.Overdue.Deep), ageToJSON(*ev.Overdue)}
	}
	return struct {
		Time time.Time `json:"time"`
	}{at}
}

func depthOf(deep bool) string {
	if deep {
		return "deep"
	}
	return "light"
}

var errQuiet = errors.New("nothing happens")

// events streams what happens, as server-sent events (WHATWG HTML, section 9.2),
// until the client leaves, takes them too slowly, or the server stops. A stream has
// a place of its own beside those of other requests.
func (f *face) events(c echo.Context) error {
	r, w := c.Request(), c.Response()
	h := w.Header()
	if r.Method == http.MethodHead {
		h.Set("Content-Type", "text/event-stream")
		return c.NoContent(http.StatusOK)
	}
	select {
	case <-f.cfg.Stopping:
		return store.ErrClosed
	default:
	}
	select {
	case f.listeners <- struct{}{}:
		defer func() { <-f.listeners }()
	default:
		return busy()
	}
	l := f.store.Listen(r.Header.Get("Last-Event-ID"))
	h.Set("Content-Type", "text/event-stream")
	h.Set("X-Accel-Buffering", "no") // nginx would hold events back
	w.WriteHeader(http.StatusOK)
	rc := http.NewResponseController(c.Response().Writer) // echo's own says nothing of a flush that failed
	send := func(format string, args ...any) bool {
		_, err := fmt.Fprintf(w, format, args...)
		return err == nil && rc.Flush() == nil
	}
	// An ID without data is no event: a client that comes back before there was one
	// misses none.
	if !send("retry: %d\nid: %s\n\n", retryAfter.Milliseconds(), l.Last()) {
		return nil
	}
	ctx, cancel := context.WithCancel(r.Context())
	defer cancel()
	go func() { // ends with the stream
		select {
		case <-f.cfg.Stopping:
			cancel()
		case <-ctx.Done():
		}
	}()
	for {
		ev, err := f.nextEvent(ctx, l)
		switch {
		case errors.Is(err, errQuiet):
			if !send(":\n\n") {
				return nil
			}
			continue
		case err != nil: // what has come is whole, and who comes back goes on behind it
			return nil
		}
		b, err := json.Marshal(eventData(ev))
		if err != nil {
			return err
		}
		if !send("id: %s\nevent: %s\ndata: %s\n\n", ev.ID, ev.Name, b) {
			return nil
		}
	}
}

// nextEvent waits for an event, a heartbeat long.
func (f *face) nextEvent(ctx context.Context, l *store.Listener) (store.Event, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, f.heartbeat, errQuiet)
	defer cancel()
	return l.Next(ctx)
}
