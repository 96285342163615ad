package schedule

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/netresearch/go-cron"
)

// Day is 24 hours: ages do not follow the clock's summer.
const Day = 24 * time.Hour

const (
	maxWindows = 16
	minLength  = time.Minute
	maxLength  = 31 * Day
	maxText    = 1024 // bytes
)

// Windows are recurring spans of time. The zero value has none and is always open.
type Windows struct {
	all  []window
	text string
}

type window struct {
	starts cron.Schedule
	length time.Duration
}

// Days of the month and of the week are alternatives when both are given, as in every
// crontab; no names such as @daily, no seconds, no time zone of its own.
var fields = cron.MustNewParser(cron.Minute | cron.Hour | cron.Dom | cron.Month | cron.Dow | cron.DowOrDom)

// ParseWindows reads windows, with semicolons between: "0 1 * * * for 5h", the five
// fields of a crontab in the time zone of the process, and how long the window is.
// Empty: none.
func ParseWindows(text string) (w Windows, err error) {
	if len(text) > maxText {
		return w, fmt.Errorf("windows take at most %d bytes", maxText)
	}
	if strings.TrimSpace(text) == "" {
		return w, nil
	}
	for part := range strings.SplitSeq(text, ";") {
		one, err := parseWindow(part)
		if err != nil {
			return Windows{}, fmt.Errorf("window %.80q: %w", strings.TrimSpace(part), err)
		}
		if w.all = append(w.all, one); len(w.all) > maxWindows {
			return Windows{}, fmt.Errorf("there are at most %d windows", maxWindows)
		}
	}
	w.text = text
	return w, nil
}

func parseWindow(text string) (w window, err error) {
	expr, length, ok := strings.Cut(text, " for ")
	if !ok || len(strings.Fields(expr)) != 5 {
		return w, errors.New(`a window is five fields of a crontab and a length, such as "0 1 * * * for 5h"`)
	}
	if strings.ContainsAny(expr, "=@") { // zones and names
		return w, errors.New("only the five fields of a crontab: minute, hour, day of the month, month, day of the week")
	}
	if w.starts, err = fields.Parse(strings.TrimSpace(expr)); err != nil {
		return w, err
	}
	if w.starts.Next(time.Unix(0, 0)).IsZero() {
		return w, errors.New("there is no such day")
	}
	if w.length, err = ParseSpan(strings.TrimSpace(length)); err != nil {
		return w, err
	}
	if w.length < minLength || w.length > maxLength {
		return w, fmt.Errorf("a window is %s to %s long", FormatSpan(minLength), FormatSpan(maxLength))
	}
	return w, nil
}

// String is what the windows were read from.
func (w Windows) String() string { return w.text }

// Open reports whether a window is open, or there is none.
func (w Windows) Open(now time.Time) bool {
	for _, x := range w.all {
		// It has begun when the first start behind now-length is not to come yet.
		if s := x.starts.Next(now.Add(-x.length)); !s.IsZero() && !s.After(now) {
			return true
		}
	}
	return len(w.all) == 0
}

// next is when the next window begins; ok is false when there is none.
func (w Windows) next(now time.Time) (at time.Time, ok bool) {
	for _, x := range w.all {
		if s := x.starts.Next(now); !s.IsZero() && (!ok || s.Before(at)) {
			at, ok = s, true
		}
	}
	return at, ok
}

// Gap is the longest time between the beginnings of two of the next hundred windows;
// 0 when there are none.
func (w Windows) Gap(now time.Time) (most time.Duration) {
	before, ok := w.next(now)
	for range 100 {
		var at time.Time
		if !ok {
			break
		}
		if at, ok = w.next(before); ok {
			most, before = max(most, at.Sub(before)), at
		}
	}
	return most
}

// ParseSpan reads a length of time: "7d", "36h", "1d12h", "90m", "0".
func ParseSpan(text string) (time.Duration, error) {
	wrong := fmt.Errorf("%.40q is no length of time, such as 7d or 36h", text)
	days, rest, ok := strings.Cut(text, "d")
	if !ok {
		days, rest = "0", text
	}
	n, err := strconv.ParseUint(days, 10, 16)
	if err != nil {
		return 0, wrong
	}
	var d time.Duration
	if rest != "" || !ok {
		if d, err = time.ParseDuration(rest); err != nil || d < 0 || strings.ContainsAny(rest, "+-") {
			return 0, wrong
		}
	}
	if total := time.Duration(n)*Day + d; total >= 0 {
		return total, nil
	}
	return 0, wrong
}

// FormatSpan writes a length of time as ParseSpan reads it.
func FormatSpan(d time.Duration) string {
	out := ""
	if days := d / Day; days > 0 {
		out = fmt.Sprintf("%dd", days)
	}
	if d %= Day; d == 0 && out != "" {
		return out
	}
	s := d.String()
	if d%time.Minute == 0 && d != 0 {
		s = strings.TrimSuffix(s, "0s")
	}
	if d%time.Hour == 0 && d != 0 {
		s = strings.TrimSuffix(s, "0m")
	}
	if d == 0 {
		s = "0"
	}
	return out + s
}
