// Package schedule decides when a store reads everything by itself: what is due goes
// by its age, and windows say when there is a mind to it. It only decides: it has no
// clock, starts nothing and remembers nothing.
package schedule

import "time"

const (
	// WithinLight and WithinDeep are the ages that nothing is to outgrow, when a [Plan]
	// says nothing else.
	WithinLight = 7 * Day
	WithinDeep  = 30 * Day
	// Least is the smallest age that a Plan may ask for.
	Least = time.Hour
	// Off, in the place of an age: no scrub of that depth begins by itself.
	Off time.Duration = -1

	// ahead is how far a clock may have been set back before a time that lies ahead of
	// it is taken for what it is: of another clock.
	ahead = time.Hour
)

// Plan says within which age everything is read. The zero Plan means the defaults, at
// any time of day.
type Plan struct {
	// Light is for the word that every shard is there as it was written, Deep for the
	// word that everything can be read. At least [Least]; 0: the default; negative: Off.
	Light, Deep time.Duration
	// Windows are when scrubs begin and run by themselves, as long as nothing is overdue
	// by more than a seventh of its limit.
	Windows Windows
}

// Past is what is known of one depth.
type Past struct {
	Since time.Time     // all that was stored then has been read since
	Never bool          // it has not: Since is when the store began
	Took  time.Duration // the last pass, from its first run to its last; 0: not known
}

// Age is how old the word of one depth is.
type Age struct {
	Since   time.Time
	Never   bool          // no scrub was complete: Since is when the store began
	Unknown bool          // Since lies ahead of the clock
	Age     time.Duration // 0 when it is unknown
	Within  time.Duration // its limit; 0: none, no scrub of that depth begins by itself
	Overdue bool          // beyond the limit, or unknown while there is one
}

func (p Plan) within(deep bool) time.Duration {
	d, usual := p.Light, WithinLight
	if deep {
		d, usual = p.Deep, WithinDeep
	}
	switch {
	case d < 0:
		return 0
	case d == 0:
		return usual
	}
	return max(d, Least)
}

// Age judges the age of one depth.
func (p Plan) Age(now time.Time, deep bool, past Past) Age {
	a := Age{Since: past.Since, Never: past.Never, Within: p.within(deep)}
	// Without the monotonic reading: a machine that slept has aged.
	a.Age = now.Round(0).Sub(past.Since.Round(0))
	if a.Unknown = a.Age < -ahead; a.Unknown || a.Age < 0 {
		a.Age = 0
	}
	a.Overdue = a.Within > 0 && (a.Unknown || a.Age > a.Within)
	return a
}

// due reports whether a scrub is to begin: so early that it ends before the limit is
// reached, and in the last window before that.
func (p Plan) due(now time.Time, a Age, took time.Duration) bool {
	if a.Within == 0 {
		return false
	}
	if a.Unknown {
		return true
	}
	early := min(max(a.Within/4, 2*took), a.Within/2)
	if a.Age >= a.Within-early {
		return true
	}
	next, ok := p.Windows.next(now)
	return ok && a.Age+next.Sub(now)+took > a.Within
}

// Open reports whether a scrub by itself may run now: in a window, or when the last
// ones were missed for so long that the age counts for more.
func (p Plan) Open(now time.Time, deep bool, past Past) bool {
	a := p.Age(now, deep, past)
	return a.Within > 0 && (p.Windows.Open(now) || a.Age > a.Within+a.Within/7)
}

// next says which scrub is to begin now, if any. One runs at a time, and a deep one
// does for a light one: so it goes first, unless the light one is overdue and the deep
// one is not.
func (p Plan) next(now time.Time, light, deep Past, lightRests, deepRests bool) choice {
	ready := func(isDeep bool, past Past) bool {
		return p.due(now, p.Age(now, isDeep, past), past.Took) && p.Open(now, isDeep, past)
	}
	l, d := !lightRests && ready(false, light), !deepRests && ready(true, deep)
	switch {
	case l && (!d || p.Age(now, false, light).Overdue && !p.Age(now, true, deep).Overdue):
		return beginLight
	case d:
		return beginDeep
	}
	return nothing
}

type choice int

const (
	nothing choice = iota
	beginLight
	beginDeep
)

// Keeper keeps to a plan while a process is up. Whatever the clock does, it lets no
// scrub follow another at once: a scrub begins when two looks in a row want it, and
// after one has ended there is a rest, by the time that the process was up.
type Keeper struct {
	Plan   Plan
	wanted choice // by the look before
	rests  [2]rest
}

type rest struct {
	until  time.Duration
	failed int
}

// Look says whether a scrub is to begin now, and which. No scrub is under way, and the
// process began up ago.
func (k *Keeper) Look(now time.Time, up time.Duration, light, deep Past) (isDeep, begin bool) {
	want := k.Plan.next(now, light, deep, up < k.rests[0].until, up < k.rests[1].until)
	begin = want != nothing && want == k.wanted
	k.wanted = want
	return want == beginDeep, begin
}

// Ended notes that a scrub has ended. One that was not complete, because a node did not
// answer or somebody cancelled it, makes the rests longer, up to a quarter of the
// limit. One that was cut off by the end of its window goes on in the next, without a
// rest, and is not told of here.
func (k *Keeper) Ended(up time.Duration, isDeep, complete bool) {
	r, within := &k.rests[0], k.Plan.within(isDeep)
	if isDeep {
		r = &k.rests[1]
	}
	if complete {
		*r = rest{until: up + min(within/16, time.Hour)}
		return
	}
	r.until = up + min(within/16<<r.failed, within/4)
	r.failed = min(r.failed+1, 2)
}
