package schedule

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"
)

var monday = time.Date(2026, 11, 2, 0, 0, 0, 0, time.UTC)

func windows(t interface{ Fatal(...any) }, text string) Windows {
	w, err := ParseWindows(text)
	if err != nil {
		t.Fatal(err)
	}
	return w
}

// TestNext: which scrub begins, at ages and in windows. The clock is at a Monday, 12:00.
func TestNext(t *testing.T) {
	const (
		nights  = "0 1 * * * for 5h"
		noons   = "0 11 * * * for 2h"
		mondays = "0 11 * * 1 for 2h"
	)
	for _, c := range []struct {
		name        string
		windows     string
		light, deep time.Duration // ages
		took        time.Duration
		plan        Plan
		want        choice
	}{
		{name: "young", light: Day, deep: Day, want: nothing},
		{name: "soon enough", light: 5 * Day, deep: 22 * Day, want: nothing},
		{name: "light", light: 6 * Day, deep: 20 * Day, want: beginLight},
		{name: "deep before light", light: 6 * Day, deep: 23 * Day, want: beginDeep},
		{name: "light is overdue, deep is due", light: 8 * Day, deep: 23 * Day, want: beginLight},
		{name: "both overdue, after a long sleep", light: 90 * Day, deep: 90 * Day, want: beginDeep},
		{name: "a pass that takes long begins earlier", light: 4 * Day, deep: 4 * Day, took: 36 * time.Hour, want: beginLight},
		{name: "a pass that takes longer than its limit", light: 3 * Day, deep: 3 * Day, took: 9 * Day, want: nothing},
		{name: "due, and no window", windows: nights, light: 6 * Day, deep: 20 * Day, want: nothing},
		{name: "due, in a window", windows: noons, light: 6 * Day, deep: 20 * Day, want: beginLight},
		{name: "overdue by less than the margin, and no window", windows: nights, light: 7*Day + 23*time.Hour, deep: 8 * Day, want: nothing},
		{name: "windows were missed", windows: nights, light: 8*Day + time.Hour, deep: 9 * Day, want: beginLight},
		{name: "deep windows were missed", windows: nights, light: 5 * Day, deep: 35 * Day, want: beginDeep},
		{name: "the last window before the limit", windows: mondays, light: 4 * Day, deep: 10 * Day, want: beginLight},
		{name: "the last window before the deep limit", windows: mondays, light: Day, deep: 22 * Day, plan: Plan{Deep: 28 * Day}, want: beginDeep},
		{name: "light off", light: 90 * Day, deep: 20 * Day, plan: Plan{Light: Off}, want: nothing},
		{name: "deep off", light: 90 * Day, deep: 90 * Day, plan: Plan{Deep: Off}, want: beginLight},
		{name: "both off", light: 90 * Day, deep: 90 * Day, plan: Plan{Light: Off, Deep: Off}, want: nothing},
		{name: "the clock was set back a little", light: -time.Minute, deep: -time.Minute, want: nothing},
		{name: "the clock was set back", light: -90 * Day, deep: -90 * Day, want: beginDeep},
		{name: "the clock was set back, and no window", windows: nights, light: -90 * Day, deep: -90 * Day, want: nothing},
	} {
		now := monday.Add(12 * time.Hour)
		c.plan.Windows = windows(t, c.windows)
		got := c.plan.next(now, Past{Since: now.Add(-c.light), Took: c.took}, Past{Since: now.Add(-c.deep)}, false, false)
		if got != c.want {
			t.Errorf("%s: %d, want %d", c.name, got, c.want)
		}
	}
}

// TestAge: what is told of an age.
func TestAge(t *testing.T) {
	for _, c := range []struct {
		name  string
		plan  Plan
		since time.Time
		want  Age
	}{
		{"young", Plan{}, monday.Add(-Day), Age{Age: Day, Within: 7 * Day}},
		{"at its limit", Plan{}, monday.Add(-7 * Day), Age{Age: 7 * Day, Within: 7 * Day}},
		{"beyond it", Plan{}, monday.Add(-7*Day - 1), Age{Age: 7*Day + 1, Within: 7 * Day, Overdue: true}},
		{"off", Plan{Light: Off}, monday.Add(-70 * Day), Age{Age: 70 * Day}},
		{"off, of the future", Plan{Light: Off}, monday.Add(70 * Day), Age{Unknown: true}},
		{"of the future", Plan{Light: Day}, monday.Add(70 * Day), Age{Within: Day, Unknown: true, Overdue: true}},
		{"of a clock that goes a little ahead", Plan{Light: Day}, monday.Add(time.Minute), Age{Within: Day}},
		{"too small a limit", Plan{Light: 1}, monday, Age{Within: Least}},
	} {
		c.want.Since = c.since
		if got := c.plan.Age(monday, false, Past{Since: c.since}); got != c.want {
			t.Errorf("%s: %+v, want %+v", c.name, got, c.want)
		}
	}
}

// world is a machine with a store, which sleeps, whose clock leaps and whose nodes are
// away.
type world struct {
	k           Keeper
	now         time.Time     // what the clock shows
	up          time.Duration // awake
	light, deep Past
	length      time.Duration // of a pass

	running, isDeep bool
	cut             [2]bool // by depth: the pass was cut off
	firsts          [2]time.Time
	dones           [2]time.Duration // of the pass, which goes on where it was cut off
	begun           []time.Duration  // up, each begin that is no going on
	complete        bool             // nodes answer
	outside         int              // scrubs that began while no window was open, nothing being overdue
}

func index(deep bool) int {
	if deep {
		return 1
	}
	return 0
}

// look is what the store does each minute; here after any time awake.
func (w *world) look(awake time.Duration) {
	w.now, w.up = w.now.Add(awake), w.up+awake
	p := w.k.Plan
	past := func(deep bool) Past {
		if deep || w.deep.Since.After(w.light.Since) && !w.deep.Since.After(w.now) {
			return w.deep
		}
		return w.light
	}
	if w.running {
		i := index(w.isDeep)
		w.dones[i] += awake
		switch {
		case w.dones[i] >= w.length:
			w.running, w.cut[i] = false, false
			if w.complete {
				done := Past{Since: w.firsts[i], Took: w.now.Sub(w.firsts[i])}
				if w.isDeep {
					w.deep = done
				} else {
					w.light = done
				}
			}
			w.k.Ended(w.up, w.isDeep, w.complete)
		case !p.Open(w.now, w.isDeep, past(w.isDeep)):
			w.running, w.cut[i] = false, true
		default:
			return
		}
	}
	if deep, begin := w.k.Look(w.now, w.up, past(false), past(true)); begin {
		i := index(deep)
		w.running, w.isDeep = true, deep
		if !w.cut[i] {
			w.firsts[i], w.dones[i] = w.now, 0
			w.begun = append(w.begun, w.up)
		}
		if a := p.Age(w.now, deep, past(deep)); !p.Windows.Open(w.now) && a.Age <= a.Within {
			w.outside++
		}
	}
}

// TestKeepsToThePlan: on a machine that is awake, whose passes end in time, nothing is
// ever older than its limit and what a window may cost on top; no pass runs outside the
// windows; and none is read more often than the limit asks for.
func TestKeepsToThePlan(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		plan := Plan{
			Light:   time.Duration(rapid.IntRange(4, 10).Draw(t, "light")) * Day,
			Deep:    time.Duration(rapid.IntRange(20, 40).Draw(t, "deep")) * Day,
			Windows: windows(t, rapid.SampledFrom([]string{"", "0 1 * * * for 5h", "30 22 * * 1-5 for 8h; 0 0 * * 0,6 for 24h", "0 2 */2 * * for 6h"}).Draw(t, "windows")),
		}
		w := &world{k: Keeper{Plan: plan}, now: monday, light: Past{Since: monday, Never: true}, deep: Past{Since: monday, Never: true}, complete: true,
			length: time.Duration(rapid.IntRange(1, 7*60).Draw(t, "minutes of a pass")) * time.Minute}
		const days = 100
		for w.now.Before(monday.Add(days * Day)) {
			w.look(10 * time.Minute)
			l := w.light.Since
			if w.deep.Since.After(l) {
				l = w.deep.Since
			}
			if age := w.now.Sub(l); age > plan.Light+plan.Light/7+2*Day {
				t.Fatalf("%v: light is %s old, its limit %s", w.now, FormatSpan(age), FormatSpan(plan.Light))
			}
			if age := w.now.Sub(w.deep.Since); age > plan.Deep {
				t.Fatalf("%v: deep is %s old, its limit %s", w.now, FormatSpan(age), FormatSpan(plan.Deep))
			}
		}
		if w.outside > 0 {
			t.Fatalf("%d scrubs began outside the windows", w.outside)
		}
		if most := 2*days*int(Day)/int(plan.Light) + 2*days*int(Day)/int(plan.Deep) + 2; len(w.begun) > most {
			t.Fatalf("%d scrubs in %d days", len(w.begun), days)
		}
	})
}

// TestNoStorm: whatever the clock does, and whoever is away, passes of a depth keep
// their distance in the time that the process is up; and when clock and nodes behave
// again, all is read again.
func TestNoStorm(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		plan := Plan{Windows: windows(t, rapid.SampledFrom([]string{"", "0 1 * * * for 5h"}).Draw(t, "windows"))}
		w := &world{k: Keeper{Plan: plan}, now: monday, light: Past{Since: monday}, deep: Past{Since: monday}, length: time.Minute}
		days := func(name string, from, to int) time.Duration {
			return time.Duration(rapid.IntRange(from, to).Draw(t, name)) * Day
		}
		for range rapid.IntRange(1, 20).Draw(t, "events") {
			switch rapid.IntRange(0, 2).Draw(t, "event") {
			case 0:
				w.now = w.now.Add(days("leap", -800, 800)) // and sleep
			case 1:
				w.complete = rapid.Bool().Draw(t, "complete")
			}
			for range rapid.IntRange(0, 300).Draw(t, "looks") {
				w.look(10 * time.Minute)
			}
		}
		for i := 2; i < len(w.begun); i++ { // one of the other depth may be between two
			if d := w.begun[i] - w.begun[i-2]; d < time.Hour {
				t.Fatalf("three scrubs within %v: %v", d, w.begun)
			}
		}
		w.complete = true
		for end := w.up + 40*Day; w.up < end; {
			w.look(10 * time.Minute)
		}
		if a := plan.Age(w.now, true, w.deep); a.Overdue {
			t.Fatalf("in the end deep is %+v", a)
		}
	})
}

// TestRests: what could not be complete is tried again, less and less often.
func TestRests(t *testing.T) {
	k := Keeper{}
	old := Past{Since: monday.Add(-100 * Day)}
	var at []string
	for up := time.Duration(0); up < 20*Day; up += time.Hour {
		if deep, begin := k.Look(monday, up, Past{Since: monday}, old); begin {
			if !deep {
				t.Fatal("light is not due")
			}
			at = append(at, FormatSpan(up))
			k.Ended(up, deep, false)
		}
	}
	if got, want := strings.Join(at, " "), "1h 1d23h 5d18h 13d7h"; got != want {
		t.Errorf("tried at %s, want %s", got, want)
	}
	k.Ended(0, true, true)
	if _, begin := k.Look(monday, 2*time.Hour, Past{Since: monday}, old); begin {
		t.Error("begun at the first look")
	}
	if _, begin := k.Look(monday, 2*time.Hour, Past{Since: monday}, old); !begin {
		t.Error("not begun after the rest of a complete one")
	}
}

// TestWindows: when they are open, also over midnight and where the clock of a summer
// leaps.
func TestWindows(t *testing.T) {
	berlin, err := time.LoadLocation("Europe/Berlin")
	if err != nil {
		t.Skip(err)
	}
	at := func(text string) time.Time {
		v, err := time.ParseInLocation(time.RFC3339, text, berlin)
		if err != nil {
			t.Fatal(err)
		}
		return v.In(berlin)
	}
	for _, c := range []struct {
		windows, at string
		want        bool
	}{
		{"", "2026-11-02T12:00:00+01:00", true},
		{"0 1 * * * for 5h", "2026-11-02T00:59:59+01:00", false},
		{"0 1 * * * for 5h", "2026-11-02T01:00:00+01:00", true},
		{"0 1 * * * for 5h", "2026-11-02T05:59:59+01:00", true},
		{"0 1 * * * for 5h", "2026-11-02T06:00:00+01:00", false},
		{"0 22 * * 7 for 8h", "2026-11-02T05:00:00+01:00", true}, // of Sunday evening
		{"0 22 * * 1 for 8h", "2026-11-02T05:00:00+01:00", false},
		{"0 1 * * * for 5h; 0 12 * * MON for 1h", "2026-11-02T12:30:00+01:00", true},
		{"0 0 1 * 1 for 1h", "2026-11-02T00:30:00+01:00", true}, // the first, or a Monday
		{"0 0 1 * 1 for 1h", "2026-11-01T00:30:00+01:00", true},
		{"0 0 1 * 1 for 1h", "2026-11-03T00:30:00+01:00", false},
		{"30 2 * * * for 1h", "2026-03-29T03:45:00+02:00", true}, // there was no 2:30
		{"30 2 * * * for 30m", "2026-10-25T02:45:00+02:00", true},
		{"0 1 1 * * for 31d", "2026-11-20T00:00:00+01:00", true},
	} {
		if got := windows(t, c.windows).Open(at(c.at)); got != c.want {
			t.Errorf("%q at %s is open: %v, want %v", c.windows, c.at, got, c.want)
		}
	}
	if got := windows(t, "0 2 * * 1-5 for 1h").Gap(monday); got != 3*Day {
		t.Errorf("working days are %v apart at the most, want three", got)
	}
	if got := (Windows{}).Gap(monday); got != 0 {
		t.Errorf("no windows are %v apart", got)
	}
}

// TestBadWindows: what is none is refused when it is read.
func TestBadWindows(t *testing.T) {
	for _, text := range []string{
		"0 1 * * *", "0 1 * * * for", "0 1 * * * for 0", "0 1 * * * for 30s", "0 1 * * * for 32d", "0 1 * * * for -1h", "0 1 * * for 5h", "0 0 1 * * * for 5h",
		"@daily for 5h", "TZ=UTC 1 * * * for 5h", "CRON_TZ=X 0 1 * * * for 5h", "60 * * * * for 1h", "* 24 * * * for 1h", "* * 0 * * for 1h", "* * * 13 * for 1h", "* * * * 8 for 1h",
		"*/0 * * * * for 1h", "0 2 30 2 * for 1h", "; ", "0 1 * * * for 5h;", "x for 1h", "99999999999999999999 * * * * for 1h", strings.Repeat("0 1 * * * for 5h;", 16) + "0 1 * * * for 5h", strings.Repeat("0", 2000),
	} {
		if w, err := ParseWindows(text); err == nil {
			t.Errorf("%.60q is taken as %v", text, w)
		}
	}
}

// TestSpans: lengths of time are read as they are written.
func TestSpans(t *testing.T) {
	for text, want := range map[string]time.Duration{"0": 0, "7d": 7 * Day, "36h": 36 * time.Hour, "1d12h": 36 * time.Hour, "90m": 90 * time.Minute, "0d": 0, "1h30m": 90 * time.Minute} {
		if got, err := ParseSpan(text); err != nil || got != want {
			t.Errorf("%s: %v, %v; want %v", text, got, err, want)
		}
	}
	for _, text := range []string{"", "d", "7", "-7d", "-1h", "7d-1h", "7d1", "1.5d", "d7", "7d7d", "99999d", "65535d2500000h", "+1h", "a week"} {
		if got, err := ParseSpan(text); err == nil {
			t.Errorf("%q is %v", text, got)
		}
	}
	rapid.Check(t, func(t *rapid.T) {
		d := time.Duration(rapid.Int64Range(0, int64(60_000*Day)).Draw(t, "d"))
		if got, err := ParseSpan(FormatSpan(d)); err != nil || got != d {
			t.Fatalf("%d is written %s and read as %d, %v", d, FormatSpan(d), got, err)
		}
	})
}

// FuzzWindows: no text ends the process, and what was read is read again.
func FuzzWindows(f *testing.F) {
	for _, text := range []string{"0 1 * * * for 5h", "*/5 0-4 1,15 JAN-MAR 7 for 10m; 0 0 * * SAT for 1d", "TZ=0 for 1h"} {
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text string) {
		w, err := ParseWindows(text)
		if err != nil {
			return
		}
		w.Open(monday)
		if again, err := ParseWindows(w.String()); err != nil || fmt.Sprint(again.next(monday)) != fmt.Sprint(w.next(monday)) {
			t.Errorf("%q is not read again: %v", w, err)
		}
	})
}
