package store

import (
	"sync"
	"time"

	"cairn/record"
)

// clockStand is how long the clock must have been ahead before that is believed.
const clockStand = 24 * time.Hour

// clockSaid is how old the log's word of the time may get while something is logged.
const clockSaid = time.Hour

// sureClock tells the time that expiry goes by: never later than what is sure to have passed.
// It goes on as this process sees time pass, from where the log says that it stood. By how
// much the clock is ahead of it, it takes on only what every look has found for a day:
// after a leap ahead, or a time in which the store was not served, nothing expires at once;
// docs/protocol.md, section 15.
type sureClock struct {
	mu    sync.Mutex
	time  int64     // Unix time in nanoseconds
	at    time.Time // when it was that, as this process sees time pass
	since time.Time // from then on each look has found the clock ahead,
	ahead int64     // by so much at least
}

// start sets the clock to what the log says; 0: nothing, and then now is believed.
func (c *sureClock) start(logged int64, now, passed time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if logged == 0 {
		logged = now.UnixNano()
	}
	c.time, c.at, c.since, c.ahead = logged, passed, passed, now.UnixNano()-logged
}

// look returns the time in Unix nanoseconds. now is the clock's; passed has the reading
// that no setting of the clock changes.
func (c *sureClock) look(now, passed time.Time) int64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	if d := passed.Sub(c.at); d > 0 {
		c.time, c.at = c.time+int64(d), passed
	}
	ahead := now.UnixNano() - c.time
	if c.ahead = min(c.ahead, ahead); c.ahead <= 0 {
		c.since, c.ahead = passed, ahead // it was not ahead all the time
	} else if passed.Sub(c.since) >= clockStand {
		c.time += c.ahead
		c.since, c.ahead = passed, ahead-c.ahead
	}
	return c.time
}

// believed is the time that expiry goes by, in Unix nanoseconds.
func (s *Store) believed() int64 { return s.sure.look(s.now(), time.Now()) }

// sayClock lets the log say what time it is for sure, so that the next process goes on
// there. Nothing is logged for that alone.
func (d *decision) sayClock() error {
	h, err := d.round.Head()
	if err != nil {
		return &fatalError{err}
	}
	if d.sure-h.Clock < int64(clockSaid) {
		return nil
	}
	return d.emit(&record.Clock{Old: h.Clock, Time: d.sure})
}
