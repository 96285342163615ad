package store

import (
	"context"
	"errors"
	"slices"

	"cairn/index"
	"cairn/node"
	"cairn/pack"
)

// countOnce makes ready what Usage takes from memory: rows of all packs, and of all that
// is condemned, are read once.
func (s *Store) countOnce(ctx context.Context) {
	if _, err := s.index.Tally(ctx); err != nil {
		return // Usage says why
	}
	_, _ = s.condemnedNow(ctx)
}

// condemnedNow is what the last collection has left, or what there is at the start.
func (s *Store) condemnedNow(ctx context.Context) (condemnedChunks, error) {
	c := &s.collector
	c.mu.Lock()
	left := c.left
	c.mu.Unlock()
	if left != nil {
		return *left, nil
	}
	return s.countCondemned(ctx)
}

// Usage accounts for the store's bytes, asking every node. The first call after a start
// may wait until the index has been counted.
func (s *Store) Usage(ctx context.Context) (Usage, error) {
	var out Usage
	tally, err := s.index.Tally(ctx)
	if errors.Is(err, index.ErrDamaged) {
		err = s.view(func(index.Reader) error { return err }) // which stops the store
	}
	if err != nil {
		return out, err
	}
	left, err := s.condemnedNow(ctx)
	if err != nil {
		return out, err
	}
	if left.chunks > 0 {
		out.Waiting = s.waiting(left)
	}
	t := &tally.Totals
	out.UniqueBytes, out.CompressedBytes, out.LiveBytes, out.DeadBytes = t.UniqueBytes, t.SealedBytes, t.LiveBytes, t.DeadBytes()
	out.UnreferencedBytes = t.SealedBytes - t.LiveBytes
	out.ParityBytes, out.PaddingBytes = t.ParityBytes, t.PaddingBytes()
	out.Chunks, out.Packs = t.Chunks, t.Packs
	out.JournalBytes, out.SnapshotBytes = tally.Kinds[pack.Log], tally.Kinds[pack.Snapshot]
	if err := s.view(func(r index.Reader) error { return out.objects(r) }); err != nil {
		return out, err
	}
	// Where the newest log pack lies is in no row yet.
	if places := s.recall(tally.Head.Pack); len(places) > 0 {
		if err := s.view(func(r index.Reader) error {
			row, err := r.Pack(tally.Head.Pack)
			for _, p := range places[:min(len(places), int(row.K)+int(row.M))] { // as many as the totals count
				tally.Nodes[p.Node] += uint64(row.Size)
			}
			return err
		}); err != nil {
			return out, err
		}
	}
	return out, s.measure(ctx, &out, &tally)
}

// objects counts what clients stored: what they can see.
func (u *Usage) objects(r index.Reader) error {
	t, err := r.Totals()
	if err != nil {
		return err
	}
	u.LogicalBytes, u.Objects, u.Versions = t.LogicalBytes, t.Objects, t.Versions
	bs, err := r.Buckets()
	for _, b := range bs {
		if !hidden(b.Name) {
			u.Buckets = append(u.Buckets, exposeBucket(b))
			continue
		}
		u.LogicalBytes -= b.Bytes
		u.Objects -= b.Objects
		u.Versions -= b.Versions
		if b.Name == uploadsBucket {
			u.UploadBytes += b.Bytes
		}
	}
	return err
}

// measure adds what is on the disks, and holds it against what the index names.
func (s *Store) measure(ctx context.Context, out *Usage, tally *index.Tally) error {
	set := s.members.Load()
	used := s.usages(ctx, set)
	if err := context.Cause(ctx); err != nil {
		return err
	}
	var counted []string
	there := uint64(0) // of what is named, on nodes that answer
	for _, m := range set.all {
		if !m.readable() {
			continue
		}
		u, err := used[m.info.ID].v, used[m.info.ID].err
		if err != nil {
			if errors.Is(err, node.ErrMissing) {
				m.noteError(err, s.now())
			}
			continue
		}
		counted = append(counted, m.info.Name)
		held, named := uint64(u.LiveBytes), tally.Nodes[m.info.ID]
		there += min(held, named)
		out.StrayBytes += held - min(held, named)
		out.PendingBytes += uint64(u.DeadBytes)
		out.DueBytes += uint64(u.DueBytes)
		out.FreeInSegmentsBytes += uint64(u.SegmentFreeBytes)
		out.LayoutBytes += uint64(u.LayoutBytes)
		out.OtherBytes += uint64(u.OtherBytes)
		out.PhysicalBytes += uint64(u.AllocatedBytes)
		if u.Until.After(out.PendingUntil) {
			out.PendingUntil = u.Until
		}
	}
	out.MissingBytes = tally.Totals.ShardBytes - there
	if s.cfg.Footprint != nil {
		slices.Sort(counted)
		of, other, err := s.cfg.Footprint(counted)
		if err != nil {
			s.log.Warn("not all of the data directory can be counted", "err", err)
		}
		out.IndexBytes = uint64(of)
		out.OtherBytes += uint64(other)
		out.PhysicalBytes += uint64(of + other)
	}
	out.UnaccountedBytes = int64(out.PhysicalBytes - out.Parts())
	return nil
}

// Parts is what the parts of PhysicalBytes add up to, but for UnaccountedBytes.
func (u *Usage) Parts() uint64 {
	return u.LiveBytes + u.DeadBytes + u.ParityBytes + u.PaddingBytes - u.MissingBytes + u.StrayBytes + u.PendingBytes +
		u.FreeInSegmentsBytes + u.LayoutBytes + u.IndexBytes + u.OtherBytes
}
