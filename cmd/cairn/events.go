package main

import (
	"bufio"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"cairn/store"
)

const (
	// eventsSilence is how long a stream may say nothing before it is given up: a
	// server says something every 15 seconds.
	eventsSilence = time.Minute
	eventsRetry   = 3 * time.Second
	maxEventLine  = 1 << 20 // bytes
)

func newEvents() *cobra.Command {
	return clientFlags(&cobra.Command{
		Use: "events", Short: "Tell what happens, until interrupted", Args: cobra.NoArgs,
		Long: `Tell what happens from now on: jobs that start, get on and end, nodes whose state changes, whether writes are taken and
whether there is room for new data, and once a day what scrub is overdue. Puts and deletes of objects are not told. A connection that breaks is made again,
and what happened meanwhile is told then; what cannot be told any more is told as "missed". With --json each line is
an object with id, event and data.`,
		Example: "  cairn events\n  cairn events --json",
		RunE:    do(runEvents),
	})
}

// event is one as it comes.
type event struct {
	ID   string          `json:"id"`
	Name string          `json:"event"`
	Data json.RawMessage `json:"data"`
}

func runEvents(cmd *cobra.Command, _ []string) error {
	cl, err := newClient(cmd)
	if err != nil {
		return err
	}
	ctx, last := cmd.Context(), ""
	for first := true; ; first = false {
		err := cl.listen(ctx, &last, func(e event) error { return printEvent(cmd, e) })
		if ctx.Err() != nil {
			return context.Canceled
		}
		var refused *remoteError
		switch {
		case errors.As(err, &refused) && (first || refused.Status/100 == 4):
			return err
		case first && last == "", errors.Is(err, errOutput):
			return err
		}
		fmt.Fprintf(cmd.ErrOrStderr(), "cairn: the server has broken off; trying again in %v\n", eventsRetry)
		select {
		case <-time.After(eventsRetry):
		case <-ctx.Done():
		}
	}
}

var errOutput = errors.New("standard output cannot be written")

// listen hands what happens after *last to fn, until the stream ends or fn fails, and
// keeps *last.
func (c *client) listen(ctx context.Context, last *string, fn func(event) error) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	h := http.Header{}
	if *last != "" {
		h.Set("Last-Event-ID", *last)
	}
	resp, err := c.do(ctx, http.MethodGet, "/v1/events", nil, h, nil, 0)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	silence := time.AfterFunc(eventsSilence, cancel)
	defer silence.Stop()
	return eachEvent(resp.Body, last, func() { silence.Reset(eventsSilence) }, fn)
}

// eachEvent reads server-sent events (WHATWG HTML, section 9.2.6) as this server
// sends them: lines end with LF alone. What the stream ends in the middle of is none.
func eachEvent(r io.Reader, last *string, heard func(), fn func(event) error) error {
	lines := bufio.NewScanner(r)
	lines.Buffer(nil, maxEventLine)
	e := event{ID: *last}
	var data []string
	for lines.Scan() {
		heard()
		name, value, _ := strings.Cut(lines.Text(), ":")
		value = strings.TrimPrefix(value, " ")
		switch name {
		case "id":
			e.ID = value
		case "event":
			e.Name = value
		case "data":
			data = append(data, value)
		}
		if lines.Text() != "" {
			continue
		}
		if *last = e.ID; len(data) > 0 {
			e.Data = json.RawMessage(strings.Join(data, "\n"))
			if !json.Valid(e.Data) {
				return fmt.Errorf("the data of event %.40q is no JSON", e.ID)
			}
			if err := fn(e); err != nil {
				return err
			}
		}
		e, data = event{ID: *last}, nil
	}
	return cmp.Or(lines.Err(), io.ErrUnexpectedEOF)
}

// printEvent prints an event in a line.
func printEvent(cmd *cobra.Command, e event) error {
	var err error
	if jsonWanted(cmd) {
		err = json.NewEncoder(cmd.OutOrStdout()).Encode(e)
	} else {
		_, err = fmt.Fprintln(cmd.OutOrStdout(), eventLine(e))
	}
	if err != nil {
		return fmt.Errorf("%w: %w", errOutput, err)
	}
	return nil
}

func eventLine(e event) string {
	var d struct {
		Time   time.Time
		Job    *jobInfo
		Node   string
		State  string
		Taken  bool
		Reason string
		Depth  string
		Age    ageInfo
	}
	if err := json.Unmarshal(e.Data, &d); err != nil {
		return printable(e.Name + " " + string(e.Data))
	}
	what := ""
	switch {
	case d.Job != nil:
		what = fmt.Sprintf("%s %s %s by %s", d.Job.Kind, d.Job.ID, d.Job.State, d.Job.Trigger)
		if w := d.Job.what(); w != "" {
			what += ": " + w
		}
	case e.Name == store.EventNode:
		what = d.Node + " " + d.State
	case e.Name == store.EventWrites, e.Name == store.EventRoom:
		if what = "yes"; !d.Taken {
			what = "no"
		}
	case e.Name == store.EventOverdue:
		what = fmt.Sprintf("%s scrub: %s", d.Depth, d.Age)
	case e.Name == store.EventMissed:
		what = "some events before this are not known any more"
	}
	if d.Reason != "" {
		what += ": " + d.Reason
	}
	return d.Time.Local().Format(time.DateTime) + "  " + printable(strings.TrimSpace(e.Name+" "+what))
}
