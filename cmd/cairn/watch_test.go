package main

import (
	"bytes"
	"log/slog"
	"strings"
	"testing"
	"time"

	"cairn/store"
)

func TestNodeWatch(t *testing.T) {
	var log bytes.Buffer
	w := &nodeWatch{log: slog.New(slog.NewTextHandler(&log, nil)), told: map[string]string{}, up: map[string]time.Time{}}
	now := time.Unix(0, 0)
	for _, c := range []struct {
		after time.Duration
		state string
		want  string
	}{
		{0, "up", ""},
		{time.Second, "down", `level=WARN msg="a node is down" node=n02 why=reason`},
		{time.Second, "down", ""},
		{time.Second, "up", ""},
		{29 * time.Second, "up", ""},
		{time.Second, "down", ""}, // it comes and goes
		{time.Second, "missing", `level=WARN msg="a node is missing" node=n02 why=reason`},
		{time.Second, "up", ""},
		{30 * time.Second, "up", `level=INFO msg="a node is up again" node=n02`},
		{time.Second, "up", ""},
		{time.Second, "down", `level=WARN msg="a node is down" node=n02 why=reason`},
	} {
		log.Reset()
		now = now.Add(c.after)
		w.see(now, []store.NodeState{{Name: "n01", State: "up"}, {Name: "n02", State: c.state, Reason: "reason"}})
		if got := strings.TrimSpace(log.String()); !strings.HasSuffix(got, c.want) || (got == "") != (c.want == "") {
			t.Errorf("at %v, %s: the log has %q, want %q", now.Sub(time.Unix(0, 0)), c.state, got, c.want)
		}
	}
}
