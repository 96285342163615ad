package store

import (
	"context"
	"errors"
	"fmt"

	"cairn/id"
	"cairn/node"
	"cairn/pack"
	"cairn/placement"
	"cairn/record"
)

// linkPlan is a log pack about to be written.
type linkPlan struct {
	pack       id.Pack
	seq        uint64
	attempt    uint32
	prev       id.Pack
	prevPlaces []record.Place
	time       int64
	entries    []pack.Entry
	records    []record.Record
	encoded    [][]byte // the records, as they are sealed
	payload    []byte
	set        *memberSet
	why        node.Purpose
	begin      *pack.Begin
	clean      bool
	snapshot   snapshotRef // the newest before this pack
	// also, when not nil, is the node set that the link brings into force: the
	// pack must be durable at full width in both sets.
	also *memberSet
}

// w is how many losses it is coded for: what either set asks for.
func (l *linkPlan) w() int {
	if l.also != nil {
		return max(l.set.w(), l.also.w())
	}
	return l.set.w()
}

// batches seals the records, one batch for each run of records of one realm.
func (s *Store) batches(p id.Pack, records []record.Record, encoded [][]byte) ([]pack.Batch, error) {
	var (
		out   []pack.Batch
		plain []byte
	)
	for i := 0; i < len(records); {
		realm, first := records[i].Realm(), i
		plain = plain[:0]
		// A batch stays far below what a reader accepts.
		for ; i < len(records) && records[i].Realm() == realm && (i == first || len(plain)+len(encoded[i]) <= record.MaxBatch/4); i++ {
			plain = append(plain, encoded[i]...)
		}
		body, err := s.sealBatch(nil, p, realm, uint32(first), plain)
		if err != nil {
			return nil, err
		}
		out = append(out, pack.Batch{Realm: realm, First: uint32(first), Body: body})
	}
	return out, nil
}

// openBatches is the inverse of batches.
func (s *Store) openBatches(p id.Pack, batches []pack.Batch) ([]record.Record, error) {
	var out []record.Record
	for _, b := range batches {
		if int(b.First) != len(out) {
			return nil, fmt.Errorf("%w: a batch begins at record %d, %d were read", pack.ErrDamaged, b.First, len(out))
		}
		plain, err := s.openBatch(p, b.Realm, b.First, b.Body)
		if err != nil {
			return nil, fmt.Errorf("%w: records of realm %d: %w", pack.ErrDamaged, b.Realm, err)
		}
		recs, err := record.Parse(b.Realm, plain)
		if errors.Is(err, record.ErrNewer) || errors.Is(err, record.ErrUnknownKind) {
			return nil, newerLog{err}
		}
		if err != nil {
			return nil, err
		}
		out = append(out, recs...)
	}
	return out, nil
}

// linkMemory is what a log pack with a payload of n bytes takes until its last
// shard is written: the payload gathered and copied, with room for what is coded
// with it, and parity, which for the narrowest codes is as long as two payloads.
func linkMemory(n int) int64 { return weigh(2*n) + 3*int64(n) + 64<<10 }

// linkPayload is how much payload may gather with so much memory free: what goes
// beyond it, by one submission, fits too.
func linkPayload(free int64) int { return int(free-1<<20) / 8 }

// newerLog says that the log was written by a newer version. It stands under the
// log's seals, so that no node can make it up: nothing but a newer build helps,
// and the log must not be taken to end before it.
type newerLog struct{ error }

func (e newerLog) Unwrap() error { return e.error }

func isNewerLog(err error) bool {
	_, ok := errors.AsType[newerLog](err)
	return ok
}

// writeLink encodes a log pack and makes it durable at full width. It returns
// the pack's common header, where its shards lie, and its meta. sent is set as soon as a
// shard may have left the process. An error wraps errNarrow when trying again
// under a new pack ID makes sense, errNoRoom when no node has kept anything.
func (s *Store) writeLink(ctx context.Context, l *linkPlan, up []*member, sent *bool) (pack.Header, []record.Place, pack.Meta, error) {
	batches, err := s.batches(l.pack, l.records, l.encoded)
	if err != nil {
		return pack.Header{}, nil, pack.Meta{}, err
	}
	k := placement.Width(len(up), DefaultWidth, l.w())
	if k < 1 {
		return pack.Header{}, nil, pack.Meta{}, fmt.Errorf("%w: %d log nodes take writes", errNarrow, len(up))
	}
	// What is small is kept as identical copies, so that one read serves it.
	need := len(l.payload) + 4096
	for _, b := range batches {
		need += len(b.Body)
	}
	if need <= smallLog || l.also != nil {
		k = 1
	}
	in := pack.Input{
		Header: pack.Header{Kind: pack.Log, Begin: l.begin != nil, Pack: l.pack, K: uint8(k), M: uint8(l.w()), Writer: s.auth.Writer, Counter: s.packs.nextLogCounter(),
			Epoch: s.auth.Epoch, Seq: l.seq, Attempt: l.attempt, Prev: l.prev},
		Meta: pack.Meta{Entries: l.entries, Log: &pack.LogMeta{Prev: l.prevPlaces, ClusterVersion: l.set.rec.Version, LowWater: s.packs.lowWater(),
			Time: l.time, Batches: batches, Begin: l.begin, Clean: l.clean}},
	}
	l.snapshot.set(in.Meta.Log)
	// The payload is the writer's and is used again, and a node that lags still
	// reads what it was given: so it is given a copy.
	weight := linkMemory(len(l.payload))
	if err := s.mem.log.Acquire(ctx, weight); err != nil {
		return pack.Header{}, nil, pack.Meta{}, fmt.Errorf("%w: memory for a log pack: %w", errNarrow, err)
	}
	in.Payload = append(s.chunks.get(2 * len(l.payload))[:0], l.payload...)
	enc, err := s.coder.Encode(in)
	if err != nil {
		s.chunks.put(in.Payload)
		s.mem.log.Release(weight)
		return pack.Header{}, nil, pack.Meta{}, err
	}
	h := enc.Header
	release := func() {
		enc.Release()
		s.chunks.put(in.Payload)
		s.mem.log.Release(weight)
	}
	pl, err := plan(l.pack, up, k, l.w())
	if err != nil {
		release()
		return h, nil, in.Meta, fmt.Errorf("%w: %w", errNarrow, err)
	}
	*sent = true
	places, err := s.putPack(ctx, l.why, enc, pl, release)
	return h, places, in.Meta, err
}
