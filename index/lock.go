package index

import (
	"errors"
	"fmt"

	"cairn/record"
)

// Locks of versions, and the time that expiry goes by, as docs/protocol.md, sections 14 and
// 15, say. Whether a lock is over was decided by the log writer.

func checkLock(l *record.Lock) error {
	if (l.Mode == "") != (l.Until == 0) || l.Mode != "" && l.Mode != record.Governance && l.Mode != record.Compliance {
		return fmt.Errorf("%w: a lock of mode %.20q until %d", ErrRecord, l.Mode, l.Until)
	}
	return nil
}

func (r *Round) applyLockSet(l *record.LockSet) error {
	if err := checkKey(l.Key); err != nil {
		return err
	}
	if err := checkLock(&l.Lock); err != nil {
		return err
	}
	b, err := r.bucketFor(l.In, l.Bucket)
	if b == nil {
		return err
	}
	o, err := r.reader.Object(b.ID, l.Key, l.Version)
	if errors.Is(err, ErrNotFound) || err == nil && (o.Deleted || o.Version != l.Version) {
		return r.mismatch("version %v is to be locked and is not there", l.Version)
	}
	if err != nil {
		return err
	}
	if o.Lock != l.Old {
		if err := r.mismatch("version %v has another lock than the record names", l.Version); err != nil {
			return err
		}
	}
	o.Lock = l.Lock
	at := r.keys.object(nil, b.ID, l.Key)
	if !o.Current {
		at = r.keys.older(nil, b.ID, l.Key, l.Version)
	}
	return r.put(at, o.append(r.out[:0]))
}

func (r *Round) applyClock(c *record.Clock) error {
	if c.Time <= c.Old {
		return fmt.Errorf("%w: the clock goes from %d to %d", ErrRecord, c.Old, c.Time)
	}
	if c.Old != r.clock {
		if err := r.mismatch("the clock stands at %d, the record names %d", r.clock, c.Old); err != nil {
			return err
		}
	}
	r.clock = c.Time
	return nil
}
