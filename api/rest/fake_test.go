package rest

import (
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"
	"time"

	"cairn/id"
	"cairn/record"
	"cairn/schedule"
	"cairn/store"
)

// fakeStore is the plainest store there can be: versions in a map.
type fakeStore struct {
	mu      sync.Mutex
	buckets map[string]*fakeBucket
	uploads map[string]*fakeUpload
	seq     uint64
	fail    error               // what every call returns, when not nil
	breakAt int64               // a body fails after so many bytes, when above 0
	called  []string            // "method bucket key" of each call
	puts    []store.PutOptions  // of each Put
	conds   []store.Conditions  // of each Delete
	lists   []store.ListOptions // of each List
	copies  []fakeCopy          // each Copy and Rename
	jobs    []store.Job         // from old to new
	raising int                 // losses that are wanted
	counts  []store.JobCounts
	damaged []store.DamagedObject
}

type fakeCopy struct {
	from, to store.Name
	opt      store.CopyOptions
}

type fakeBucket struct {
	bucket  store.Bucket
	objects map[string][]fakeVersion // newest first
	rules   []store.Rule
}

type fakeVersion struct {
	store.Object
	data []byte
}

func newFake(buckets ...string) *fakeStore {
	f := &fakeStore{buckets: map[string]*fakeBucket{}}
	for _, b := range buckets {
		if _, err := f.CreateBucket(context.Background(), b, record.Settings{}); err != nil {
			panic(err)
		}
	}
	f.called = nil
	return f
}

// epoch is the fake's clock: each version is a second later than the one before.
var epoch = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

// enter notes a call; the caller unlocks.
func (f *fakeStore) enter(method, bucket, key string) error {
	f.mu.Lock()
	f.called = append(f.called, fmt.Sprintf("%s %q %q", method, bucket, key))
	return f.fail
}

func (f *fakeStore) find(bucket string) (*fakeBucket, error) {
	if b := f.buckets[bucket]; b != nil {
		return b, nil
	}
	return nil, fmt.Errorf("bucket %q: %w", bucket, store.ErrNoBucket)
}

func fakeKey(key string) error {
	if key == "" || len(key) > record.MaxKey {
		return fmt.Errorf("%w: key of %d bytes", store.ErrInvalid, len(key))
	}
	return nil
}

func (f *fakeStore) next() (id.Version, time.Time) {
	f.seq++
	return id.Version{Seq: f.seq, Pos: 7}, epoch.Add(time.Duration(f.seq) * time.Second)
}

func (f *fakeStore) CreateBucket(_ context.Context, name string, s record.Settings) (store.Bucket, error) {
	defer f.mu.Unlock()
	if err := f.enter("createBucket", name, ""); err != nil {
		return store.Bucket{}, err
	}
	if len(name) < 3 || strings.ContainsAny(name, "/%\\ ") {
		return store.Bucket{}, fmt.Errorf("%w: bucket name %q", store.ErrInvalid, name)
	}
	if f.buckets[name] != nil {
		return store.Bucket{}, fmt.Errorf("%s: %w", name, store.ErrBucketExists)
	}
	b := &fakeBucket{store.Bucket{Name: name, Created: epoch, Settings: s}, map[string][]fakeVersion{}, nil}
	f.buckets[name] = b
	return b.bucket, nil
}

func (f *fakeStore) SetBucket(_ context.Context, name string, s record.Settings) error {
	defer f.mu.Unlock()
	b, err := f.find(name)
	if err := cmp.Or(f.enter("setBucket", name, ""), err); err != nil {
		return err
	}
	b.bucket.Settings = s
	return nil
}

func (f *fakeStore) DeleteBucket(_ context.Context, name string) error {
	defer f.mu.Unlock()
	if err := f.enter("deleteBucket", name, ""); err != nil {
		return err
	}
	b, err := f.find(name)
	if err != nil {
		return err
	}
	if len(b.objects) > 0 {
		return store.ErrBucketNotEmpty
	}
	delete(f.buckets, name)
	return nil
}

func (f *fakeStore) Bucket(_ context.Context, name string) (store.Bucket, error) {
	defer f.mu.Unlock()
	if err := f.enter("bucket", name, ""); err != nil {
		return store.Bucket{}, err
	}
	b, err := f.find(name)
	if err != nil {
		return store.Bucket{}, err
	}
	return b.bucket, nil
}

func (f *fakeStore) Buckets(context.Context) (out []store.Bucket, err error) {
	defer f.mu.Unlock()
	if err := f.enter("buckets", "", ""); err != nil {
		return nil, err
	}
	for _, b := range f.buckets {
		out = append(out, b.bucket)
	}
	slices.SortFunc(out, func(a, b store.Bucket) int { return strings.Compare(a.Name, b.Name) })
	return out, nil
}

func (f *fakeStore) check(c store.Conditions, vs []fakeVersion) error {
	var o *fakeVersion
	if len(vs) > 0 && !vs[0].Deleted {
		o = &vs[0]
	}
	has := func(tags []string) bool {
		return o != nil && (slices.Contains(tags, "*") || slices.Contains(tags, o.ETag))
	}
	switch {
	case len(c.IfMatch) > 0 && !has(c.IfMatch), len(c.IfNoneMatch) > 0 && has(c.IfNoneMatch):
		return store.ErrPrecondition
	case o == nil:
		return nil
	case !c.IfUnmodifiedSince.IsZero() && len(c.IfMatch) == 0 && o.Modified.After(c.IfUnmodifiedSince),
		!c.IfModifiedSince.IsZero() && len(c.IfNoneMatch) == 0 && !o.Modified.After(c.IfModifiedSince):
		return store.ErrPrecondition
	}
	return nil
}

func (f *fakeStore) Put(_ context.Context, bucket, key string, r io.Reader, o store.PutOptions) (store.Object, error) {
	b, err := io.ReadAll(r)
	defer f.mu.Unlock()
	if err := f.enter("put", bucket, key); err != nil {
		return store.Object{}, err
	}
	f.puts = append(f.puts, o)
	if err != nil {
		return store.Object{}, fmt.Errorf("read the body: %w", err)
	}
	in, err := f.find(bucket)
	if err := cmp.Or(fakeKey(key), err); err != nil {
		return store.Object{}, err
	}
	if o.Size >= 0 && o.Size != int64(len(b)) {
		return store.Object{}, store.ErrShortBody
	}
	if err := f.check(o.If, in.objects[key]); err != nil {
		return store.Object{}, err
	}
	sum := sha256.Sum256(b)
	v, at := f.next()
	made := store.Object{Bucket: bucket, Key: key, Version: v, Size: uint64(len(b)), ETag: hex.EncodeToString(sum[:8]), Modified: at, Attrs: o.Attrs, Current: true,
		Replaced: len(in.objects[key]) > 0 && !in.objects[key][0].Deleted}
	f.push(in, key, fakeVersion{made, b})
	return made, nil
}

func (f *fakeStore) push(b *fakeBucket, key string, v fakeVersion) {
	for i := range b.objects[key] {
		b.objects[key][i].Current = false
	}
	b.objects[key] = append([]fakeVersion{v}, b.objects[key]...)
}

func (f *fakeStore) Get(_ context.Context, bucket, key string, o store.GetOptions) (*store.Reading, error) {
	defer f.mu.Unlock()
	if err := f.enter("get", bucket, key); err != nil {
		return nil, err
	}
	b, err := f.find(bucket)
	if err := cmp.Or(fakeKey(key), err); err != nil {
		return nil, err
	}
	vs := b.objects[key]
	if !o.Version.IsZero() {
		if vs = slices.DeleteFunc(slices.Clone(vs), func(v fakeVersion) bool { return v.Version != o.Version }); len(vs) == 0 {
			return nil, store.ErrNoVersion
		}
	}
	if len(vs) == 0 || vs[0].Deleted {
		return nil, fmt.Errorf("%q: %w", key, store.ErrNoObject)
	}
	v, breakAt := vs[0], f.breakAt
	if err := f.check(o.If, vs); err != nil {
		return store.NewReading(v.Object, nil), err
	}
	return store.NewReading(v.Object, func(off, n uint64) io.ReadCloser {
		var r io.Reader = bytes.NewReader(v.data[off : off+n])
		if breakAt > 0 && uint64(breakAt) < n {
			r = io.MultiReader(io.LimitReader(r, breakAt), failing{})
		}
		return io.NopCloser(r)
	}), nil
}

// breakBodies makes bodies that are longer fail after n bytes.
func (f *fakeStore) breakBodies(n int64) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.breakAt = n
}

// failing is what is left of a body whose shards are gone.
type failing struct{}

func (failing) Read([]byte) (int, error) { return 0, fmt.Errorf("pack: %w", store.ErrDamaged) }

func (f *fakeStore) Delete(_ context.Context, bucket, key string, c store.Conditions) (store.Object, error) {
	defer f.mu.Unlock()
	if err := f.enter("delete", bucket, key); err != nil {
		return store.Object{}, err
	}
	f.conds = append(f.conds, c)
	b, err := f.find(bucket)
	if err := cmp.Or(fakeKey(key), err); err != nil {
		return store.Object{}, err
	}
	vs := b.objects[key]
	if len(vs) == 0 || vs[0].Deleted {
		return store.Object{}, fmt.Errorf("%q: %w", key, store.ErrNoObject)
	}
	if err := f.check(c, vs); err != nil {
		return store.Object{}, err
	}
	v, at := f.next()
	made := store.Object{Bucket: bucket, Key: key, Version: v, Modified: at, Deleted: true, Current: true}
	f.push(b, key, fakeVersion{made, nil})
	return made, nil
}

func (f *fakeStore) Copy(_ context.Context, from, to store.Name, o store.CopyOptions) (store.Object, error) {
	defer f.mu.Unlock()
	if err := f.enter("copy", to.Bucket, to.Key); err != nil {
		return store.Object{}, err
	}
	return f.copy(from, to, o)
}

func (f *fakeStore) Rename(_ context.Context, from, to store.Name, o store.CopyOptions) (store.Object, error) {
	defer f.mu.Unlock()
	if err := f.enter("rename", to.Bucket, to.Key); err != nil {
		return store.Object{}, err
	}
	if from == to || !o.Version.IsZero() {
		return store.Object{}, store.ErrInvalid
	}
	made, err := f.copy(from, to, o)
	if err == nil {
		v, at := f.next()
		f.push(f.buckets[from.Bucket], from.Key, fakeVersion{store.Object{Bucket: from.Bucket, Key: from.Key, Version: v, Modified: at, Deleted: true, Current: true}, nil})
	}
	return made, err
}

func (f *fakeStore) copy(from, to store.Name, o store.CopyOptions) (store.Object, error) {
	f.copies = append(f.copies, fakeCopy{from, to, o})
	in, err := f.find(from.Bucket)
	b, errTo := f.find(to.Bucket)
	if err := cmp.Or(fakeKey(from.Key), fakeKey(to.Key), err, errTo); err != nil {
		return store.Object{}, err
	}
	vs := in.objects[from.Key]
	if !o.Version.IsZero() {
		if vs = slices.DeleteFunc(slices.Clone(vs), func(v fakeVersion) bool { return v.Version != o.Version }); len(vs) == 0 {
			return store.Object{}, store.ErrNoVersion
		}
	}
	if len(vs) == 0 || vs[0].Deleted {
		return store.Object{}, fmt.Errorf("%q: %w", from.Key, store.ErrNoObject)
	}
	if err := cmp.Or(f.check(o.Source, vs), f.check(o.If, b.objects[to.Key])); err != nil {
		return store.Object{}, err
	}
	made := vs[0]
	made.Bucket, made.Key, made.Current = to.Bucket, to.Key, true
	made.Replaced = len(b.objects[to.Key]) > 0 && !b.objects[to.Key][0].Deleted
	made.Version, made.Modified = f.next()
	if o.Attrs != nil {
		made.Attrs = *o.Attrs
	}
	f.push(b, to.Key, made)
	return made.Object, nil
}

// Placement of the fake: one chunk for each byte.
func (f *fakeStore) Placement(_ context.Context, bucket, key string, o store.PlacementOptions) (store.Placement, error) {
	defer f.mu.Unlock()
	if err := f.enter("placement", bucket, key); err != nil {
		return store.Placement{}, err
	}
	b, err := f.find(bucket)
	if err := cmp.Or(fakeKey(key), err); err != nil {
		return store.Placement{}, err
	}
	vs := b.objects[key]
	if len(vs) == 0 || vs[0].Deleted {
		return store.Placement{}, fmt.Errorf("%q: %w", key, store.ErrNoObject)
	}
	if o.From > vs[0].Size {
		return store.Placement{}, store.ErrRange
	}
	out := store.Placement{Object: vs[0].Object, Packs: []store.PackPlace{{Pack: id.Pack{9}, Log: true, K: 1, M: 2,
		Shards: []store.ShardPlace{{Index: 0, Node: "n01", State: "up"}, {Index: 1, Node: "n02", State: "missing"}, {Index: 2, Node: "ab", State: "gone"}}}}}
	for at := o.From; at < vs[0].Size; at++ {
		if len(out.Chunks) == cmp.Or(o.Limit, 1000) {
			out.More, out.Next = true, at
			break
		}
		out.Chunks = append(out.Chunks, store.ChunkPlace{Offset: at, Size: 1, Chunk: id.Chunk{1}, Sealed: 29, Refs: 2, Pack: id.Pack{9}})
	}
	return out, nil
}

func (f *fakeStore) Lifecycle(_ context.Context, name string) ([]store.Rule, error) {
	defer f.mu.Unlock()
	if err := f.enter("lifecycle", name, ""); err != nil {
		return nil, err
	}
	b, err := f.find(name)
	if err != nil {
		return nil, err
	}
	return b.rules, nil
}

func (f *fakeStore) SetLifecycle(_ context.Context, name string, rules []store.Rule) error {
	defer f.mu.Unlock()
	if err := f.enter("setLifecycle", name, ""); err != nil {
		return err
	}
	b, err := f.find(name)
	if err != nil {
		return err
	}
	b.rules = rules
	return nil
}

// Lock knows nothing of time: what has a retention is retained.
func (f *fakeStore) Lock(_ context.Context, bucket, key string, opt store.LockOptions) (store.Object, error) {
	defer f.mu.Unlock()
	if err := f.enter("lock", bucket, key); err != nil {
		return store.Object{}, err
	}
	b, err := f.find(bucket)
	if err != nil {
		return store.Object{}, err
	}
	if opt.Retention == nil && opt.Hold == nil || !b.bucket.Settings.Lock {
		return store.Object{}, store.ErrInvalid
	}
	for i := range b.objects[key] {
		if v := &b.objects[key][i]; !v.Deleted && (opt.Version.IsZero() || v.Version == opt.Version) {
			if v.Lock.Retention.Mode != "" && opt.Retention != nil && !opt.Bypass {
				return store.Object{}, store.ErrLocked
			}
			if opt.Retention != nil {
				v.Lock.Retention = *opt.Retention
			}
			if opt.Hold != nil {
				v.Lock.Hold = *opt.Hold
			}
			return v.Object, nil
		}
	}
	return store.Object{}, store.ErrNoObject
}

func (f *fakeStore) DeleteVersion(_ context.Context, bucket, key string, v id.Version, bypass bool) error {
	defer f.mu.Unlock()
	if err := f.enter("deleteVersion", bucket, key); err != nil {
		return err
	}
	b, err := f.find(bucket)
	if err != nil {
		return err
	}
	for _, o := range b.objects[key] {
		if o.Version == v && (o.Lock.Hold || o.Lock.Retention.Mode != "" && !bypass) {
			return store.ErrLocked
		}
	}
	kept := slices.DeleteFunc(slices.Clone(b.objects[key]), func(o fakeVersion) bool { return o.Version == v })
	if len(kept) == len(b.objects[key]) {
		return store.ErrNoVersion
	}
	if b.objects[key] = kept; len(kept) > 0 {
		kept[0].Current = true
	} else {
		delete(b.objects, key)
	}
	return nil
}

func (f *fakeStore) Undelete(_ context.Context, bucket, key string) (store.Object, error) {
	defer f.mu.Unlock()
	if err := f.enter("undelete", bucket, key); err != nil {
		return store.Object{}, err
	}
	b, err := f.find(bucket)
	if err != nil {
		return store.Object{}, err
	}
	vs := b.objects[key]
	switch {
	case len(vs) < 2:
		return store.Object{}, store.ErrNoObject
	case !vs[0].Deleted:
		return store.Object{}, store.ErrPrecondition
	}
	vs[1].Current = true
	b.objects[key] = vs[1:]
	return vs[1].Object, nil
}

// Damaged of the fake: bucket numbers are positions in what is damaged.
func (f *fakeStore) Damaged(_ context.Context, from store.DamagedCursor, limit int) (page store.DamagedPage, err error) {
	defer f.mu.Unlock()
	if err := f.enter("damaged", "", from.Key); err != nil {
		return page, err
	}
	left := f.damaged[min(int(from.Bucket), len(f.damaged)):]
	n := min(cmp.Or(limit, 1000), len(left))
	page = store.DamagedPage{Objects: left[:n], Looked: n, More: n < len(left)}
	if n > 0 {
		page.Next = store.DamagedCursor{Bucket: from.Bucket + id.Bucket(n), Key: left[n-1].Key, Version: left[n-1].Version}
	}
	return page, nil
}

func (f *fakeStore) List(_ context.Context, bucket string, o store.ListOptions) (out store.Listing, err error) {
	defer f.mu.Unlock()
	if err := f.enter("list", bucket, ""); err != nil {
		return out, err
	}
	f.lists = append(f.lists, o)
	b, err := f.find(bucket)
	if err != nil {
		return out, err
	}
	limit := cmp.Or(o.Limit, 1000)
	keys := make([]string, 0, len(b.objects))
	for k := range b.objects {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	for _, k := range keys {
		if !strings.HasPrefix(k, o.Prefix) || k < o.After || k == o.After && o.AfterVersion.IsZero() {
			continue
		}
		if o.Delimiter != "" {
			if head, _, ok := strings.Cut(k[len(o.Prefix):], o.Delimiter); ok {
				p := o.Prefix + head + o.Delimiter
				if p <= o.After || slices.Contains(out.Prefixes, p) {
					continue
				}
				if len(out.Objects)+len(out.Prefixes) == limit {
					out.More = true
					return out, nil
				}
				out.Prefixes, out.Next, out.NextVersion = append(out.Prefixes, p), p, id.Version{}
				continue
			}
		}
		for i, v := range b.objects[k] {
			if !o.Versions && (i > 0 || v.Deleted) || k == o.After && v.Version.Compare(o.AfterVersion) >= 0 {
				continue
			}
			if len(out.Objects)+len(out.Prefixes) == limit {
				out.More = true
				return out, nil
			}
			out.Objects, out.Next = append(out.Objects, v.Object), k
			if out.NextVersion = (id.Version{}); o.Versions {
				out.NextVersion = v.Version
			}
		}
	}
	return out, nil
}

func (f *fakeStore) Usage(context.Context) (store.Usage, error) {
	defer f.mu.Unlock()
	if err := f.enter("usage", "", ""); err != nil {
		return store.Usage{}, err
	}
	return store.Usage{LogicalBytes: 1, UniqueBytes: 2, CompressedBytes: 3, LiveBytes: 4, DeadBytes: 5, PendingBytes: 6, ParityBytes: 7, PaddingBytes: 8,
		FreeInSegmentsBytes: 9, PhysicalBytes: 10, MissingBytes: 15, StrayBytes: 16, LayoutBytes: 17, IndexBytes: 18, OtherBytes: 19, UnaccountedBytes: -20,
		UnreferencedBytes: 21, JournalBytes: 22, SnapshotBytes: 23, DueBytes: 24, PendingUntil: epoch, Waiting: store.Waiting{Chunks: 25, Bytes: 26, Until: epoch, Transfers: 27, Oldest: 28 * time.Second}, Objects: 11, Versions: 12, Chunks: 13, Packs: 14, Buckets: []store.Bucket{{Name: "main", Created: epoch}}}, nil
}

// Shares of the fake: those of three buckets.
func (f *fakeStore) Shares(_ context.Context, after string, limit int) (store.SharesPage, error) {
	defer f.mu.Unlock()
	if err := f.enter("shares", after, ""); err != nil {
		return store.SharesPage{}, err
	}
	page := store.SharesPage{Job: id.Job{1}, Time: epoch, Sequence: 9, Own: store.BucketShare{Chunks: 1, Sealed: 2, Exclusive: 3, Fair: 4}}
	for i, name := range []string{"a", "b", "c"} {
		if name <= after {
			continue
		}
		if page.More = len(page.Buckets) == cmp.Or(limit, 1000); page.More {
			break
		}
		n := uint64(10 * (i + 1))
		page.Buckets = append(page.Buckets, store.BucketShare{Name: name, Bytes: n, Chunks: n + 1, Sealed: n + 2, Exclusive: n + 3, Fair: n + 4})
	}
	return page, nil
}

func (f *fakeStore) Status(context.Context) (store.Status, error) {
	defer f.mu.Unlock()
	if err := f.enter("status", "", ""); err != nil {
		return store.Status{}, err
	}
	ages, _ := f.ScrubAges()
	raising := f.raising
	if raising == 2 {
		raising = 0
	}
	return store.Status{RaisingTo: raising, PacksToRaise: 5 * raising, Ages: ages, Cluster: id.Cluster{1}, Epoch: 2, Sequence: 3, M: 2, Width: "4+2", Writable: true, Survives: "2 lost directories", Started: epoch,
		Nodes: []store.NodeStatus{{Name: "n01", ID: id.Node{1}, State: "up", Log: true, Total: 100, Free: 50, Allowed: true},
			{Name: "n02", ID: id.Node{2}, State: "missing", Reason: "its directory is gone"}}}, nil
}

// ScrubPasses of the fake: one.
func (f *fakeStore) Losses() ([]store.Loss, error) { return nil, nil }

func (f *fakeStore) ScrubPasses() []store.ScrubPass {
	return []store.ScrubPass{{Deep: true, Began: epoch, Ended: epoch.Add(time.Hour), Left: 1}}
}

// ScrubAges of the fake: everything is attested, nothing verified.
func (f *fakeStore) ScrubAges() ([]store.ScrubAge, error) {
	return []store.ScrubAge{{Age: schedule.Age{Since: epoch.Add(time.Hour), Age: 90 * time.Minute, Within: 7 * schedule.Day}},
		{Deep: true, Age: schedule.Age{Since: epoch, Never: true, Age: 40 * schedule.Day, Within: 30 * schedule.Day, Overdue: true}}}, nil
}

func (f *fakeStore) Tolerate(_ context.Context, losses int) error {
	defer f.mu.Unlock()
	if err := f.enter("tolerate", fmt.Sprint(losses), ""); err != nil {
		return err
	}
	switch {
	case losses < 1 || losses > 4:
		return fmt.Errorf("%w: a store survives 1 to 4 losses, not %d", store.ErrInvalid, losses)
	case losses == 4:
		return fmt.Errorf("%w: 6 nodes are too few", store.ErrPrecondition)
	}
	f.raising = losses
	return nil
}

func (f *fakeStore) DrainNode(_ context.Context, name string, on bool) error {
	defer f.mu.Unlock()
	if err := f.enter(fmt.Sprint("drainNode ", on), name, ""); err != nil {
		return err
	}
	switch name {
	case "n01":
		return fmt.Errorf("%w: 4 nodes would be left", store.ErrPrecondition)
	case "n02", "n03":
		return nil
	}
	return fmt.Errorf("%w: no node is called %q", store.ErrInvalid, name)
}

// StartJob of the fake: a run runs until it is cancelled.
func (f *fakeStore) StartJob(_ context.Context, kind string, opt store.JobOptions) (store.Job, error) {
	defer f.mu.Unlock()
	if err := f.enter("startJob", kind, ""); err != nil {
		return store.Job{}, err
	}
	moves := kind == store.JobDrain || kind == store.JobRebalance || kind == store.JobRaise
	if kind != store.JobRepair && kind != store.JobSnapshot && kind != store.JobScrub && !moves || kind != store.JobScrub && !moves && opt != (store.JobOptions{}) {
		return store.Job{}, fmt.Errorf("%w: no kind of job is called %q", store.ErrInvalid, kind)
	}
	for _, j := range f.jobs {
		if j.Kind == kind && j.State == store.JobRunning {
			return j, fmt.Errorf("%w: %s %v", store.ErrJobRunning, kind, j.ID)
		}
	}
	f.seq++
	at := epoch.Add(time.Duration(f.seq) * time.Second)
	jid, err := id.NewJob(nil, uint64(at.UnixMilli()))
	j := store.Job{ID: jid, Kind: kind, Trigger: store.ByRequest, State: store.JobRunning, Started: at, Done: 3, Total: 4, Unit: "packs", Options: opt}
	f.jobs = append(f.jobs, j)
	return j, err
}

func (f *fakeStore) findJob(j id.Job) (*store.Job, error) {
	for i := range f.jobs {
		if f.jobs[i].ID == j {
			return &f.jobs[i], nil
		}
	}
	return nil, fmt.Errorf("job %v: %w", j, store.ErrNoJob)
}

func (f *fakeStore) Job(_ context.Context, j id.Job) (store.Job, error) {
	defer f.mu.Unlock()
	if err := f.enter("job", j.String(), ""); err != nil {
		return store.Job{}, err
	}
	r, err := f.findJob(j)
	if err != nil {
		return store.Job{}, err
	}
	return *r, nil
}

func (f *fakeStore) Jobs(_ context.Context, o store.JobFilter) (out []store.Job, more bool, err error) {
	defer f.mu.Unlock()
	if err := f.enter("jobs", o.Kind, o.State); err != nil {
		return nil, false, err
	}
	for _, j := range slices.Backward(f.jobs) {
		if o.Kind != "" && j.Kind != o.Kind || o.State != "" && j.State != o.State || !o.Before.IsZero() && j.ID.Compare(o.Before) >= 0 {
			continue
		}
		if len(out) == cmp.Or(o.Limit, 1000) {
			return out, true, nil
		}
		out = append(out, j)
	}
	return out, false, nil
}

func (f *fakeStore) CancelJob(_ context.Context, j id.Job) (store.Job, error) {
	defer f.mu.Unlock()
	if err := f.enter("cancelJob", j.String(), ""); err != nil {
		return store.Job{}, err
	}
	r, err := f.findJob(j)
	if err != nil {
		return store.Job{}, err
	}
	if r.State != store.JobRunning {
		return *r, fmt.Errorf("job %v is %s: %w", j, r.State, store.ErrJobOver)
	}
	r.State, r.Ended, r.Result = store.JobCancelled, r.Started.Add(time.Minute), []byte(`{"packs":3}`)
	return *r, nil
}

func (f *fakeStore) JobCounts() []store.JobCounts {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.counts
}

// Listen of the fake: events are the real store's.
func (f *fakeStore) Listen(string) *store.Listener { return &store.Listener{} }

var errFake = errors.New("something that is none of the store's errors")
