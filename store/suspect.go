package store

import (
	"context"
	"maps"
	"sync"
	"time"

	"cairn/id"
)

// A read that finds a shard missing or damaged where the log says that it lies gives its
// pack to the next repair, which begins at once: the pack is looked at as a scrub does.

const (
	maxSuspects = 1024
	// suspectRest is how long a pack is no suspect again.
	suspectRest = 10 * time.Minute
)

type suspects struct {
	mu     sync.Mutex
	packs  []id.Pack
	rested map[id.Pack]time.Time // when it was a suspect last, while there are not too many
}

// suspect notes what a read has found of a pack.
func (s *Store) suspect(p id.Pack) {
	q := &s.suspects
	q.mu.Lock()
	defer q.mu.Unlock()
	if at, known := q.rested[p]; known && time.Since(at) < suspectRest || len(q.packs) == maxSuspects {
		return
	}
	if len(q.rested) >= 4*maxSuspects {
		maps.DeleteFunc(q.rested, func(_ id.Pack, at time.Time) bool { return time.Since(at) >= suspectRest })
	}
	if len(q.rested) >= 4*maxSuspects {
		return // a scrub finds it
	}
	if q.rested == nil {
		q.rested = map[id.Pack]time.Time{}
	}
	q.rested[p] = time.Now()
	q.packs = append(q.packs, p)
	s.repairSoon(ByRead)
}

// repairSuspects mends the packs of which reads have found a shard missing or damaged; n is
// how many there were. What it did is added to out.
func (s *Store) repairSuspects(ctx context.Context, r *run, out *Repaired) (n int, err error) {
	q := &s.suspects
	q.mu.Lock()
	packs := q.packs
	q.packs = nil
	q.mu.Unlock()
	if len(packs) == 0 {
		return 0, nil
	}
	sc := &scrubbing{s: s, saved: time.Now(), pace: pacer{s: s, rate: ScrubRate},
		res: &ScrubResult{names: s.members.Load().naming(), Damage: map[string]int{}, Before: map[int]int{}, After: map[int]int{}}}
	for i, p := range packs {
		if err = context.Cause(ctx); err == nil {
			err = sc.pack(ctx, p)
		}
		if err == nil {
			err = sc.pace.pause(ctx)
		}
		if err != nil { // the rest is for the next repair
			q.mu.Lock()
			q.packs = append(q.packs, packs[i:]...)
			q.mu.Unlock()
			break
		}
	}
	if ferr := sc.flush(context.WithoutCancel(ctx)); err == nil {
		err = ferr
	}
	if sc.res.Damaged+sc.res.LostPacks > 0 {
		r.found()
	}
	out.Shards += sc.res.Repaired
	out.Read += sc.res.Bytes
	out.Lost += sc.res.LostPacks
	out.LostBytes += sc.res.LostBytes
	if err == nil {
		err = sc.res.err()
	}
	return len(packs), err
}
