package store

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"cairn/id"
	"cairn/index"
	"cairn/node"
	"cairn/pack"
	"cairn/record"
)

// MoveRate is how many bytes per second a drain or a rebalance moves at the most when
// it is told nothing else; while clients are served it goes down to a quarter.
const MoveRate = 32 << 20

const (
	moveGather = 5 * time.Second // for new places to come together
	movePage   = 64 << 10        // packs in which a pass knows that something moves
	moveFails  = 64              // shards in a row that cannot be moved: then it ends
)

// MoveResult is what a run of [JobDrain] or [JobRebalance] did. Only what was read back
// and logged is counted.
type MoveResult struct {
	Packs  int    `json:"packs"` // with shards that moved; one that moves twice counts twice
	Shards int    `json:"shards"`
	Bytes  uint64 `json:"bytes"`
	// Planned is how many bytes were to be moved when the run began.
	Planned uint64 `json:"planned_bytes"`
	// Remade shards could not be read where they were, and were computed from others.
	Remade int `json:"remade,omitempty"`
	Left   int `json:"left"` // shards that should have moved and did not
	// Empty are the nodes that are being drained and hold nothing any more.
	Empty    []string `json:"empty,omitempty"`
	DryRun   bool     `json:"dry_run,omitempty"`
	Findings []string `json:"findings,omitempty"` // why, of the first that are left

	names *strings.Replacer // of nodes; see [memberSet.naming]
}

func (r *MoveResult) leave(err error) {
	r.Left++
	if len(r.Findings) < scrubFindings {
		r.Findings = append(r.Findings, finding(r.names, err))
	}
}

// mover moves shards: each is copied, read back and logged, and deleted where it was
// once its new place is durable. While anything waits to be logged no repair runs
// beside it: nobody else gives the pack a shard on the same node.
type mover struct {
	s      *Store
	res    *MoveResult
	report func(done uint64)
	pace   pacer

	batch []moving
	count int // shards in it
	bytes int
	since time.Time
	holds bool // the token of repairs
	fails int  // shards in a row
}

func (s *Store) newMover(res *MoveResult, opt JobOptions, report func(done uint64)) *mover {
	return &mover{s: s, res: res, report: report, pace: pacer{s: s, rate: cmp.Or(opt.Rate, MoveRate)}}
}

// moving is a pack with shards that are at their new places too; they count, and are
// deleted where they were, once they are logged.
type moving struct {
	remade
	size   int
	anew   int           // of the shards were computed
	stayed func(i uint8) // is told of shards that stay after all; may be nil
}

// request is a shard that is to leave a place; to is nil when placement is to choose.
type request struct {
	place record.Place
	to    *member
}

// errNotRead says that a shard could not be read where it is.
var errNotRead = errors.New("it cannot be read where it is")

// move moves the shards of one pack that which asks for, as its row is now. With anew,
// what cannot be read is computed from the pack's other shards. stayed is told of those
// that do not move; it may be nil.
func (mv *mover) move(ctx context.Context, p id.Pack, which func(*memberSet, index.PackRow) ([]request, error), anew bool, stayed func(i uint8)) error {
	s := mv.s
	if err := mv.hold(ctx); err != nil {
		return err
	}
	var (
		row index.PackRow
		g   geometry
		set = s.members.Load()
	)
	err := s.view(func(r index.Reader) (err error) {
		if row, err = r.Pack(p); err == nil {
			g, err = s.locate(r, p)
		}
		return err
	})
	if errors.Is(err, index.ErrNotFound) {
		return mv.rest(ctx) // it was dropped meanwhile
	}
	var wants []request
	if err == nil {
		wants, err = which(set, row)
	}
	if err != nil {
		return err
	}
	g.places = slices.Clone(g.places)
	out := moving{remade: remade{pack: p}, size: g.size, stayed: stayed}
	var unreadable []record.Place
	for _, w := range wants {
		place, err := s.moveShard(ctx, set, g, row.Kind, w)
		if cerr := context.Cause(ctx); err != nil && cerr != nil {
			mv.add(out)
			return cerr
		}
		if anew && errors.Is(err, errNotRead) {
			unreadable = append(unreadable, w.place)
			continue
		}
		if err != nil {
			mv.failed(p, w.place, err, stayed)
			continue
		}
		mv.pace.did(uint64(g.size))
		out.shards = append(out.shards, &record.Reshard{Pack: p, Index: w.place.Index, Old: w.place, New: place})
		// The next of this pack sees where this one is.
		at := slices.Index(g.places, w.place)
		if slices.Contains(g.places, place) {
			g.places = slices.Delete(g.places, at, at+1)
		} else {
			g.places[at] = place
		}
	}
	mv.add(out)
	for _, place := range unreadable {
		// Made anew from the row: it must say first where the others are.
		if err := mv.flush(context.WithoutCancel(ctx)); err != nil {
			return err
		}
		if err := mv.hold(ctx); err != nil {
			return err
		}
		re, _, err := s.makeAnew(ctx, p, func(_ *memberSet, now index.PackRow) []record.Place {
			if !slices.Contains(now.Shards, place) {
				return nil
			}
			return []record.Place{place}
		})
		if cerr := context.Cause(ctx); err != nil && cerr != nil {
			return cerr
		}
		if err != nil {
			mv.failed(p, place, err, stayed)
			continue
		}
		mv.pace.did(uint64(g.size))
		mv.add(moving{remade: re, size: g.size, anew: len(re.shards), stayed: stayed})
	}
	return mv.rest(ctx)
}

// failed notes that a shard stays where it is.
func (mv *mover) failed(p id.Pack, place record.Place, err error, stayed func(i uint8)) {
	mv.fails++
	mv.res.leave(fmt.Errorf("shard %d of pack %v: %w", place.Index, p, err))
	if stayed != nil {
		stayed(place.Index)
	}
}

// moveShard copies one shard to another member and reads it back there. Where it lies on
// a second member too, and is right there, that one is enough.
func (s *Store) moveShard(ctx context.Context, set *memberSet, g geometry, kind pack.Kind, w request) (record.Place, error) {
	weight := min(2*weigh(g.size), s.mem.repair.Limit()) // and a copy for its new node
	if err := busy(s.mem.repair.Acquire(ctx, weight)); err != nil {
		return record.Place{}, err
	}
	defer s.mem.repair.Release(weight)
	buf := s.chunks.get(g.size)
	defer s.chunks.put(buf)
	for _, other := range g.places {
		m := set.byID[other.Node]
		if other == w.place || other.Index != w.place.Index || m == nil || set.draining(m) {
			continue
		}
		if _, err := s.readShardWhole(ctx, m, g, other, buf); err == nil {
			return other, nil
		}
	}
	to, keep, free := s.elsewhere(set, g, kind, []record.Place{w.place})
	if w.to != nil {
		if to.by[w.to.info.ID] == nil {
			return record.Place{}, fmt.Errorf("%w: node %s takes no shard of it now", ErrUnavailable, w.to.info.Name)
		}
		to.by, free = map[id.Node]*member{w.to.info.ID: w.to}, 1
		to.nodes = append(to.nodes[:len(keep):len(keep)], w.to.candidate())
	}
	if free == 0 {
		return record.Place{}, fmt.Errorf("%w: no node that takes shards has none of this pack; not up: %s", ErrUnavailable, s.notUp(set.all))
	}
	m := set.byID[w.place.Node]
	if m == nil || !m.readable() {
		return record.Place{}, fmt.Errorf("%w: %w", errNotRead, notAsked(g.pack, int(w.place.Index), m))
	}
	sh, err := s.readShardWhole(ctx, m, g, w.place, buf)
	if err != nil {
		return record.Place{}, fmt.Errorf("%w: %w", errNotRead, err)
	}
	return s.placeShard(ctx, g.pack, w.place.Index, sh, w.place.Digest, to, &keep)
}

// readShardWhole reads a shard into buf and holds it against its digest.
func (s *Store) readShardWhole(ctx context.Context, m *member, g geometry, place record.Place, buf []byte) (pack.Shard, error) {
	if err := s.readFrom(ctx, m, node.Key{Pack: g.pack, Index: place.Index}, 0, buf); err != nil {
		if ctx.Err() == nil {
			m.noteRead(err, s.now())
		}
		return pack.Shard{}, err
	}
	_, sh, err := pack.ParseShard(buf)
	if err == nil && !s.coder.CheckDigest(g.pack, place.Index, sh, place.Digest) {
		err = node.ErrDamaged
	}
	if err != nil {
		return sh, fmt.Errorf("shard %d of pack %v on node %s: %w: %w", place.Index, g.pack, m.info.Name, errOtherBytes, err)
	}
	return sh, nil
}

// hold keeps repairs away until the next flush.
func (mv *mover) hold(ctx context.Context) error {
	if mv.holds {
		return nil
	}
	select {
	case mv.s.repairing <- struct{}{}:
		mv.holds, mv.since = true, time.Now()
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

func (mv *mover) letGo() {
	if mv.holds {
		<-mv.s.repairing
		mv.holds = false
	}
}

// add puts what was written and read back into the batch.
func (mv *mover) add(m moving) {
	if len(m.shards) > 0 {
		mv.fails = 0
		mv.batch, mv.count, mv.bytes = append(mv.batch, m), mv.count+len(m.shards), mv.bytes+len(m.shards)*m.size
	}
}

// rest is the end of one pack: what has gathered is logged when it is time, and the rate
// is kept.
func (mv *mover) rest(ctx context.Context) error {
	if mv.fails >= moveFails {
		return errors.Join(fmt.Errorf("%w: %d shards in a row could not be moved", ErrUnavailable, mv.fails), mv.flush(context.WithoutCancel(ctx)))
	}
	if mv.count >= repairShards || mv.bytes >= repairBytes || time.Since(mv.since)+4*mv.pace.due > moveGather {
		if err := mv.flush(context.WithoutCancel(ctx)); err != nil {
			return err
		}
	}
	return mv.pace.pause(ctx)
}

// flush logs the batch, and then deletes what lies at the old places. What a member that
// is away, or a process that ends here, does not delete, no row names any more: a light
// scrub finds it.
func (mv *mover) flush(ctx context.Context) error {
	defer mv.letGo()
	if len(mv.batch) == 0 {
		return nil
	}
	batch := make([]remade, len(mv.batch))
	for i := range mv.batch {
		batch[i] = mv.batch[i].remade
	}
	changed, err := mv.s.logRemade(ctx, batch)
	for i, m := range mv.batch {
		for _, r := range m.shards {
			switch {
			case err != nil:
				mv.failed(m.pack, r.Old, err, m.stayed)
			case changed[i] && m.stayed != nil: // dropped, or moved by somebody else
				m.stayed(r.Index)
			case changed[i] && !mv.s.dropped(m.pack):
				mv.res.Left++
			}
		}
		if err != nil || changed[i] {
			continue
		}
		mv.res.Packs++
		mv.res.Shards += len(m.shards)
		mv.res.Remade += m.anew
		mv.res.Bytes += uint64(len(m.shards) * m.size)
		for _, r := range m.shards {
			mv.s.deleteOld(ctx, r)
		}
	}
	mv.batch, mv.count, mv.bytes = nil, 0, 0
	mv.report(mv.res.Bytes)
	return err
}

// deleteOld deletes a shard where it was. Its new place is durable. The instance is
// named: a delete that comes late takes nothing that came there afterwards.
func (s *Store) deleteOld(ctx context.Context, r *record.Reshard) {
	m := s.members.Load().byID[r.Old.Node]
	if m == nil || !m.usable(s.now()) {
		return
	}
	err := s.inTime(ctx, m, func() error { return m.st.Delete(ctx, s.auth, node.Key{Pack: r.Pack, Index: r.Index}, r.Old.Instance) })
	if err != nil && !errors.Is(err, node.ErrNotFound) {
		m.noteError(err, s.now())
	}
}
