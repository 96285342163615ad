package store

import (
	"context"
	"errors"
	"sort"
	"time"

	"cairn/id"
	"cairn/index"
)

// ErrNoShares says that no run of [JobUsage] has ended well since the process began.
var ErrNoShares = errors.New("the shares of buckets are not computed yet")

// BucketShare is what one bucket makes of the store, in sealed bytes of chunks: all
// versions of its objects count.
type BucketShare struct {
	Name   string
	Bytes  uint64 // logical bytes of all versions
	Chunks uint64 // distinct ones that it refers to
	Sealed uint64 // their bytes
	// Exclusive are the bytes of chunks that no other bucket refers to: what is free, but
	// for parity and what packs hold beside, once the bucket was deleted and collected.
	Exclusive uint64
	// Fair counts each chunk by its part: its bytes divided by the number of buckets that
	// refer to it.
	Fair uint64
}

// SharesPage is a part of the result of the last run of [JobUsage].
type SharesPage struct {
	Job      id.Job
	Time     time.Time // when it ended
	Sequence uint64    // all of it is as of that log pack
	// Own is what the store keeps for itself in buckets that no client can name: uploads
	// that are not complete, requests and jobs of the last time.
	Own     BucketShare
	Buckets []BucketShare // by name
	More    bool          // there are more, after the last of these
}

// SharesResult is what a run of [JobUsage] found. [Store.Shares] lists the buckets.
type SharesResult struct {
	Sequence     uint64  `json:"sequence"` // all of it is as of that log pack
	Buckets      int     `json:"buckets"`
	Chunks       uint64  `json:"chunks"` // that something refers to
	Bytes        uint64  `json:"bytes"`  // sealed; what the fair shares add up to
	Shared       uint64  `json:"shared_bytes"`
	Unreferenced uint64  `json:"unreferenced_bytes"` // of chunks that wait for collection
	Seconds      float64 `json:"seconds"`
}

// runUsage is one run of [JobUsage].
func (s *Store) runUsage(ctx context.Context, r *run) (any, error) {
	began := time.Now()
	got, err := s.index.Shares(ctx, func(b index.Bucket) bool { return hidden(b.Name) }, func(done, total uint64) { r.report(done, total, "versions read") })
	if err != nil {
		return nil, s.view(func(index.Reader) error { return err }) // damage stops the store
	}
	page := &SharesPage{Job: r.ID, Time: s.now(), Sequence: got.Head.Seq, Own: exposeShare(got.Together), Buckets: make([]BucketShare, 0, len(got.Buckets))}
	alone := got.Together.AloneBytes
	for _, b := range got.Buckets {
		share := exposeShare(b.Share)
		share.Name, share.Bytes = b.Name, b.Bucket.Bytes
		page.Buckets = append(page.Buckets, share)
		alone += b.AloneBytes
	}
	s.shares.Store(page)
	return SharesResult{Sequence: got.Head.Seq, Buckets: len(got.Buckets), Chunks: got.UsedChunks, Bytes: got.UsedBytes, Shared: got.UsedBytes - alone,
		Unreferenced: got.UnusedBytes, Seconds: time.Since(began).Seconds()}, nil
}

func exposeShare(s index.Share) BucketShare {
	return BucketShare{Chunks: s.Chunks, Sealed: s.Bytes, Exclusive: s.AloneBytes, Fair: s.Fair}
}

// Shares returns a page of the result of the last run of [JobUsage] that ended well:
// the buckets whose names are above after, at most limit, 0 or above 1,000 meaning that.
// It is not kept over a restart: [ErrNoShares].
func (s *Store) Shares(_ context.Context, after string, limit int) (SharesPage, error) {
	all := s.shares.Load()
	if all == nil {
		return SharesPage{}, ErrNoShares
	}
	if limit <= 0 || limit > 1000 {
		limit = 1000
	}
	page := *all
	page.Buckets = page.Buckets[sort.Search(len(page.Buckets), func(i int) bool { return page.Buckets[i].Name > after }):]
	if page.More = len(page.Buckets) > limit; page.More {
		page.Buckets = page.Buckets[:limit]
	}
	return page, nil
}
