// Package notice tells somebody elsewhere what a store found wrong: by a command, by
// an HTTP request, or both. What is told is made of fixed words, counts, and names of
// nodes; no bucket, no object, no path and no error text is in it.
//
// A [Notifier] never makes the store wait. What it has to say is kept by kind and
// subject, so that a hundred events of one kind are one notice with a count, and goes
// out in one message at a time for each way; what could not be delivered is tried
// again, later each time, with what has come meanwhile. Nothing of it is on disk: a
// process that ends takes with it what it could not deliver in its last seconds.
package notice

import (
	"encoding/json"
	"fmt"
	"strings"
	"time"

	"cairn/schedule"
	"cairn/store"
)

// Kinds of notices.
const (
	ScrubRepaired = "scrub-repaired" // damage was found, and all of it repaired
	DamageLeft    = "damage-left"    // by a scrub
	DataLost      = "data-lost"      // by what a scrub or a repair found
	RepairLeft    = "repair-left"    // packs are short still, or repair ended early
	IndexDamaged  = "index-damaged"
	JobFailed     = "job-failed" // otherwise
	NodeLost      = "node-lost"  // missing, or down
	WritesStopped = "writes-stopped"
	NoRoom        = "no-room"
	ScrubOverdue  = "scrub-overdue"
	LogGivenUp    = "log-given-up" // by an operator's word, before this start
)

// Severities.
const (
	Warning  = "warning"
	Critical = "critical" // data is lost or one more failure could lose some, or clients are refused
)

// Notice is one thing that is wrong.
type Notice struct {
	ID       string    `json:"id"` // of the event; a notice that comes twice has the same
	Time     time.Time `json:"time"`
	Kind     string    `json:"kind"`
	Severity string    `json:"severity"`
	Text     string    `json:"text"`
	Count    int       `json:"count"` // how many such came together; the rest is of the newest
	Node     string    `json:"node,omitempty"`
	State    string    `json:"state,omitempty"` // of the node
	Job      string    `json:"job,omitempty"`   // ID of the run
	JobKind  string    `json:"job_kind,omitempty"`
	Depth    string    `json:"depth,omitempty"` // of the scrub
	// Shards and packs, as far as the kind has them.
	Repaired  int   `json:"repaired,omitempty"`
	Left      int   `json:"left,omitempty"`
	LostPacks int   `json:"lost_packs,omitempty"`
	LostBytes int64 `json:"lost_bytes,omitempty"`
	Age       int64 `json:"age_seconds,omitempty"`
	Limit     int64 `json:"limit_seconds,omitempty"`
}

// subject is what a newer notice replaces an older one by.
func (n Notice) subject() string { return n.Kind + " " + n.Node + n.Depth + n.JobKind }

// message is what goes out.
type message struct {
	Store   string   `json:"store"`
	Text    string   `json:"text"` // of all notices, a line each
	Notices []Notice `json:"notices"`
	Dropped int      `json:"dropped,omitempty"` // of other notices that there was no room for
}

func newMessage(cluster string, out []waiting, dropped int) message {
	m := message{Store: cluster, Dropped: dropped}
	var lines []string
	for _, n := range out {
		m.Notices = append(m.Notices, n.Notice)
		line := "cairn " + n.Severity + ": " + n.Text
		if n.Count > 1 {
			line += fmt.Sprintf(" (%d times)", n.Count)
		}
		lines = append(lines, line)
	}
	m.Text = strings.Join(lines, "\n")
	return m
}

// of says what an event is a notice of; ok is false when of nothing.
func of(ev store.Event) (n Notice, ok bool) {
	n = Notice{ID: ev.ID, Time: ev.Time.UTC(), Count: 1}
	switch {
	case ev.Job != nil && ev.Name == store.EventJobEnded:
		ok = n.job(ev.Job)
	case ev.Node != nil:
		ok = n.node(*ev.Node)
	case ev.Taken != nil && !ev.Taken.Taken:
		ok, n.Kind, n.Severity, n.Text = true, WritesStopped, Critical, "no writes are taken any more; see cairn status"
		if ev.Name == store.EventRoom {
			n.Kind, n.Text = NoRoom, "no new data is taken any more: too little room; see cairn status"
		}
	case ev.Overdue != nil:
		ok, n.Kind, n.Severity, n.Depth = true, ScrubOverdue, Warning, depth(ev.Overdue.Deep)
		n.Age, n.Limit = int64(ev.Overdue.Age.Age/time.Second), int64(ev.Overdue.Within/time.Second)
		n.Text = fmt.Sprintf("a %s scrub is overdue: the last word is %s old, its limit %s", n.Depth, schedule.FormatSpan(ev.Overdue.Age.Age.Truncate(time.Minute)), schedule.FormatSpan(ev.Overdue.Within))
		if ev.Overdue.Unknown {
			n.Text = fmt.Sprintf("a %s scrub is overdue: the last one is of a later time than the clock shows", n.Depth)
		}
	}
	return n, ok
}

func depth(deep bool) string {
	if deep {
		return "deep"
	}
	return "light"
}

func plural(n int, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}

// node says what the state of a node is a notice of.
func (n *Notice) node(s store.NodeState) bool {
	n.Kind, n.Node, n.State = NodeLost, s.Name, s.State
	switch s.State {
	case "missing":
		n.Severity, n.Text = Critical, fmt.Sprintf("node %s is missing; if its directory is lost: cairn nodes replace %s", s.Name, s.Name)
	case "down":
		n.Severity, n.Text = Warning, fmt.Sprintf("node %s is down; see cairn status", s.Name)
	default:
		return false
	}
	return true
}

// job says what the end of a run is a notice of. One that was cancelled, or stopped with
// the server, is none; what it had found until then is told when it is found again.
func (n *Notice) job(j *store.Job) bool {
	if j.State != store.JobDone && j.State != store.JobFailed || j.Stopped() {
		return false
	}
	failed := j.State == store.JobFailed
	n.Job, n.JobKind = j.ID.String(), j.Kind
	var scrub store.ScrubResult
	var repair store.RepairResult
	var check store.CheckResult
	switch {
	case j.Kind == store.JobScrub && json.Unmarshal(j.Result, &scrub) == nil:
		n.Depth, n.Repaired, n.Left, n.LostPacks, n.LostBytes = depth(scrub.Deep), scrub.Repaired, scrub.Left, scrub.LostPacks, int64(scrub.LostBytes)
		found := fmt.Sprintf("a %s scrub found %s damaged: %d repaired, %d right when read again, %d left", n.Depth, plural(scrub.Damaged, "shard"), scrub.Repaired, scrub.Passing, scrub.Left)
		switch {
		case scrub.LostPacks+scrub.Broken > 0:
			n.Kind, n.Severity, n.Text = DataLost, Critical, fmt.Sprintf("%s; LOST: %s, and %s in others", found, plural(scrub.LostPacks, "pack"), plural(scrub.Broken, "chunk"))
			return true
		case scrub.DryRun: // whoever asked for it knows, and a run that repairs will tell
			return false
		case scrub.Left > 0:
			n.Kind, n.Severity, n.Text = DamageLeft, Critical, found
			return true
		case scrub.Damaged > 0:
			n.Kind, n.Severity, n.Text = ScrubRepaired, Warning, found
			return true
		case scrub.NotAsked > 0:
			n.Kind, n.Severity, n.Text = JobFailed, Warning, fmt.Sprintf("a %s scrub could not ask for %s; see cairn status", n.Depth, plural(scrub.NotAsked, "shard"))
			return true
		}
	case j.Kind == store.JobRepair && json.Unmarshal(j.Result, &repair) == nil:
		n.Left, n.LostPacks, n.LostBytes = repair.Short, repair.Lost, int64(repair.LostBytes)
		switch {
		case repair.Lost > 0:
			n.Kind, n.Severity, n.Text = DataLost, Critical, fmt.Sprintf("a repair found %s LOST, and %s short of a shard still", plural(repair.Lost, "pack"), plural(repair.Short, "pack"))
			return true
		case failed:
			n.Kind, n.Severity, n.Text = RepairLeft, Critical, fmt.Sprintf("a repair ended before all was whole: %s short of a shard still", plural(repair.Short, "pack"))
			return true
		}
	case j.Kind == store.JobCheckIndex && json.Unmarshal(j.Result, &check) == nil && failed && check.Found > 0:
		n.Kind, n.Severity, n.Text = IndexDamaged, Critical, fmt.Sprintf("the index is damaged: %s; the server stops, and its next start makes the index anew", plural(check.Found, "difference"))
		return true
	}
	n.Kind, n.Severity, n.Text = JobFailed, Warning, fmt.Sprintf("a job failed: %s %s; see cairn jobs show", j.Kind, n.Job)
	return failed
}
