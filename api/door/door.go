// Package door bounds what clients may cost a server before anybody looks at what
// they ask for: how many connections there are, how long a header, a body and an
// answer may take, and how much of an answer the kernel holds. In a crowd those are
// given up first that have kept the server waiting longest.
//
// A [Door] may be used by several listeners and one http.Server at once. It starts
// nothing in the background. It knows nothing of what is served.
package door

import (
	"errors"
	"net/http"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"cairn/store/budget"
)

// Server is a server whose connections come from [Door.Listen].
func (c *Door) Server(h http.Handler) *http.Server {
	return &http.Server{Handler: paced(defaultPace, h), ReadHeaderTimeout: 10 * time.Second, IdleTimeout: 2 * time.Minute, MaxHeaderBytes: 32 << 10,
		ConnContext: inContext, ConnState: between}
}

// mostStreams is how many streams of events there are at the most.
const mostStreams = 64

// part is a sixteenth of the places.
func (c *Door) part() int64 { return max(c.memory.Limit()/budget.Connection/16, 1) }

// Streams is how many streams of events may be held open at a time.
func (c *Door) Streams() int { return int(min(c.part(), mostStreams)) }

// Requests is how many requests may be answered at a time beside them. What is left
// of the connections is for telling others so, and for those who watch.
func (c *Door) Requests() int {
	return int(max(c.memory.Limit()/budget.Connection-c.part()-int64(c.Streams()), 1))
}

// unsent is how much of its answers the kernel holds for a client that does not take
// them, beside what is on the way.
const unsent = 256 << 10 // bytes

// Control is for a net.ListenConfig; the connections inherit what it sets.
func Control(_, _ string, c syscall.RawConn) error {
	var err error
	cerr := c.Control(func(fd uintptr) {
		err = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_NOTSENT_LOWAT, unsent)
	})
	return errors.Join(cerr, err)
}
