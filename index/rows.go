package index

import (
	"fmt"

	"cairn/id"
	"cairn/manifest"
	"cairn/pack"
	"cairn/record"
)

// rowVersion is the format version that every value begins with.
const rowVersion = 1

// State says whether a chunk may be referred to.
type State uint8

const (
	Live      State = 1
	Condemned State = 2 // by collection: nothing refers to it, look-ups miss it
	Damaged   State = 3 // its pack is lost: no hit, until an upload brings it again
)

func (s State) String() string {
	switch s {
	case Live:
		return "live"
	case Condemned:
		return "condemned"
	case Damaged:
		return "damaged"
	}
	return fmt.Sprintf("state %d", uint8(s))
}

// Place says where one shard of a pack lies, and what it must be.
type Place = record.Place

// ChunkRow says what a chunk is and where it lies. Its realm and ID are in
// Entry.
type ChunkRow struct {
	pack.Entry         // Offset is that in Pack's payload
	Pack       id.Pack // a data pack, or a log pack
	// Refs is the number of edges that lead to the chunk: from roots of object
	// versions and from list chunks. A chunk without any stays until collection.
	Refs  uint64
	State State
}

// Condemnation is a chunk that collection has found without edges and that nothing has
// revived since. Its state is [Condemned], or [Damaged].
type Condemnation struct {
	Realm id.Realm
	Chunk id.Chunk
	Since uint64 // sequence of the log pack that condemned it
	Time  int64  // of the log, Unix time in nanoseconds
}

// PackRow says where a pack's shards lie and what is in it.
type PackRow struct {
	Kind    pack.Kind
	K, M    uint8
	Slice   uint32 // bytes of the coded stream in each shard
	Size    uint32 // bytes of a whole shard
	Body    uint32 // where the slice begins within a shard
	Writer  id.Writer
	Counter uint64
	Seq     uint64 // of a log pack, else 0
	// Shards is empty for the newest log pack: its successor names its shards.
	// They may be more than K+M: a log pack that changes the node set is on both.
	Shards []Place
	PackUsage
}

// shards is how many shards the pack counts for: those of its code, whether
// their places are known or not, and what a log pack has beyond them. What is
// beyond is counted as parity.
func (p *PackRow) shards() uint64 { return uint64(max(len(p.Shards), int(p.K)+int(p.M))) }

// PackUsage accounts for a pack's payload, in bytes of sealed chunks.
type PackUsage struct {
	Payload   uint64 // all chunks that came with the pack
	Live      uint64 // those that a row points at and an edge leads to
	Residents uint64 // chunk rows that point into the pack, whatever their count
}

// Dead is the number of payload bytes that nothing refers to.
func (u PackUsage) Dead() uint64 { return u.Payload - u.Live }

// Bucket is a bucket and what is in it.
type Bucket struct {
	ID       id.Bucket
	Name     string
	Realm    id.Realm
	Time     int64 // when it was made, Unix time in nanoseconds
	Settings record.Settings
	BucketUsage
}

// BucketUsage counts what is in a bucket.
type BucketUsage struct {
	Objects  uint64 // keys whose newest version is no delete marker
	Versions uint64 // versions with content, the newest and older ones
	Markers  uint64 // delete markers
	Bytes    uint64 // logical bytes of all versions
}

// Object is one version of an object, or a delete marker.
type Object struct {
	Version  id.Version
	Deleted  bool  // a delete marker: there is no content
	Time     int64 // Unix time in nanoseconds, of the log
	Manifest manifest.Manifest
	ETag     []byte
	Attrs    record.Attrs
	Lock     record.Lock
	Current  bool // the newest version of its key
}

// Head is the newest log pack that was applied. The zero Head is an index that
// nothing was applied to.
type Head struct {
	Seq     uint64
	Pack    id.Pack
	Epoch   uint64
	Attempt uint32
	Time    int64 // of the log, Unix time in nanoseconds
	// Logged counts what replaying the log up to here takes: bytes of records, and
	// something for each log pack. Snapshots are due by it.
	Logged uint64
	// Clock is the time that expiry goes by, Unix time in nanoseconds; 0: the log says
	// nothing of it yet.
	Clock int64
}

// Totals account for the whole store.
type Totals struct {
	Buckets      uint64
	Objects      uint64 // see BucketUsage
	Versions     uint64
	Markers      uint64
	LogicalBytes uint64 // of all versions
	Chunks       uint64
	UniqueBytes  uint64 // of distinct chunks, before compression
	SealedBytes  uint64 // of distinct chunks, compressed and sealed
	LiveBytes    uint64 // of chunks that an edge leads to, sealed
	PayloadBytes uint64 // of all sealed chunks in all packs, copies included
	Packs        uint64
	ShardBytes   uint64 // of all shards of all packs
	ParityBytes  uint64 // of them, those beyond the first k' of each pack
	NextBucket   id.Bucket
}

// DeadBytes is the number of sealed bytes in packs that nothing refers to.
func (t *Totals) DeadBytes() uint64 { return t.PayloadBytes - t.LiveBytes }

// PaddingBytes is what data shards hold beside sealed chunks: padding, headers,
// tables, metas and records.
func (t *Totals) PaddingBytes() uint64 { return t.ShardBytes - t.ParityBytes - t.PayloadBytes }

// open begins to read a value.
func open(v []byte) decoder {
	if len(v) == 0 || v[0] != rowVersion {
		return decoder{bad: true}
	}
	return decoder{b: v[1:]}
}

// damagedRow says that a value is not one that this package writes.
func damagedRow(kind string) error {
	return fmt.Errorf("%w: a %s row does not parse", ErrDamaged, kind)
}

func (c *ChunkRow) append(b []byte) []byte {
	b = appendArray(append(b, rowVersion), 9)
	b = appendUint(b, uint64(c.State))
	b = appendUint(b, c.Refs)
	b = appendBytes(b, c.Pack[:])
	b = appendUint(b, uint64(c.Offset))
	b = appendUint(b, uint64(c.SealedLen))
	b = appendUint(b, uint64(c.PlainLen))
	b = appendUint(b, uint64(c.Kind))
	b = appendUint(b, uint64(c.Epoch))
	return appendUint(b, uint64(c.Compression))
}

const max32 = 1<<32 - 1

// parse leaves realm and ID, which are the key's, to the caller.
func (c *ChunkRow) parse(v []byte) error {
	d := open(v)
	d.array(9)
	c.State = State(d.upTo(uint64(Damaged)))
	c.Refs = d.uint()
	d.fill(c.Pack[:])
	c.Offset = uint32(d.upTo(max32))
	c.SealedLen = uint32(d.upTo(max32))
	c.PlainLen = uint32(d.upTo(max32))
	setKind(&c.Kind, d.upTo(255))
	c.Epoch = uint32(d.upTo(max32))
	setKind(&c.Compression, d.upTo(255))
	if !d.end() || c.State == 0 {
		return damagedRow("chunk")
	}
	return nil
}

func setKind[T ~uint8](dst *T, n uint64) { *dst = T(n) }

func (p *PackRow) append(b []byte) []byte {
	b = appendArray(append(b, rowVersion), 10)
	b = appendUint(b, uint64(p.Kind))
	b = appendUint(b, uint64(p.K))
	b = appendUint(b, uint64(p.M))
	b = appendUint(b, uint64(p.Slice))
	b = appendUint(b, uint64(p.Size))
	b = appendUint(b, uint64(p.Body))
	b = appendBytes(b, p.Writer[:])
	b = appendUint(b, p.Counter)
	b = appendUint(b, p.Seq)
	b = appendArray(b, len(p.Shards))
	for i := range p.Shards {
		s := &p.Shards[i]
		b = appendArray(b, 4)
		b = appendBytes(b, s.Node[:])
		b = appendUint(b, uint64(s.Index))
		b = appendUint(b, uint64(s.Instance))
		b = appendBytes(b, s.Digest[:])
	}
	return b
}

// parse leaves the usage, which is a row of its own, to the caller.
func (p *PackRow) parse(v []byte) error {
	d := open(v)
	d.array(10)
	p.Kind = pack.Kind(d.upTo(255))
	p.K = uint8(d.upTo(255))
	p.M = uint8(d.upTo(255))
	p.Slice = uint32(d.upTo(max32))
	p.Size = uint32(d.upTo(max32))
	p.Body = uint32(d.upTo(max32))
	d.fill(p.Writer[:])
	p.Counter = d.uint()
	p.Seq = d.uint()
	p.Shards = nil
	if n := d.list(pack.MaxPlaces); n > 0 {
		p.Shards = make([]Place, n)
		for i := range p.Shards {
			s := &p.Shards[i]
			d.array(4)
			d.fill(s.Node[:])
			s.Index = uint8(d.upTo(255))
			s.Instance = id.Instance(d.uint())
			d.fill(s.Digest[:])
		}
	}
	if !d.end() {
		return damagedRow("pack")
	}
	return nil
}

func (u *PackUsage) append(b []byte) []byte {
	return appendUints(b, u.Payload, u.Live, u.Residents)
}

func (u *PackUsage) parse(v []byte) error {
	return parseUints(v, "pack usage", &u.Payload, &u.Live, &u.Residents)
}

func appendUints(b []byte, ns ...uint64) []byte {
	b = appendArray(append(b, rowVersion), len(ns))
	for _, n := range ns {
		b = appendUint(b, n)
	}
	return b
}

func parseUints(v []byte, kind string, ns ...*uint64) error {
	d := open(v)
	d.array(len(ns))
	for _, n := range ns {
		*n = d.uint()
	}
	if !d.end() {
		return damagedRow(kind)
	}
	return nil
}

func (t *Totals) append(b []byte) []byte {
	return appendUints(b, t.Buckets, t.Objects, t.Versions, t.Markers, t.LogicalBytes, t.Chunks, t.UniqueBytes, t.SealedBytes,
		t.LiveBytes, t.PayloadBytes, t.Packs, t.ShardBytes, t.ParityBytes, uint64(t.NextBucket))
}

func (t *Totals) parse(v []byte) error {
	return parseUints(v, "totals", &t.Buckets, &t.Objects, &t.Versions, &t.Markers, &t.LogicalBytes, &t.Chunks, &t.UniqueBytes, &t.SealedBytes,
		&t.LiveBytes, &t.PayloadBytes, &t.Packs, &t.ShardBytes, &t.ParityBytes, (*uint64)(&t.NextBucket))
}

func (h *Head) append(b []byte) []byte {
	n := 6
	if h.Clock != 0 {
		n = 7
	}
	b = appendArray(append(b, rowVersion), n)
	b = appendUint(b, h.Seq)
	b = appendBytes(b, h.Pack[:])
	b = appendUint(b, h.Epoch)
	b = appendUint(b, uint64(h.Attempt))
	b = appendInt(b, h.Time)
	b = appendUint(b, h.Logged)
	if h.Clock != 0 {
		b = appendInt(b, h.Clock)
	}
	return b
}

func (h *Head) parse(v []byte) error {
	d := open(v)
	n := d.list(7)
	h.Seq = d.uint()
	d.fill(h.Pack[:])
	h.Epoch = d.uint()
	h.Attempt = uint32(d.upTo(max32))
	h.Time = d.int()
	h.Logged = d.uint()
	if h.Clock = 0; n == 7 {
		h.Clock = d.int()
	}
	if !d.end() || n != 6 && (n != 7 || h.Clock == 0) {
		return damagedRow("head")
	}
	return nil
}

func appendSettings(b []byte, s *record.Settings) []byte {
	n := settingsOf(s)
	b = appendArray(b, n)
	b = appendUint(b, uint64(s.K))
	b = appendText(b, s.Compression)
	b = appendText(b, s.Profile)
	b = appendBool(b, s.Versioning)
	if n > plainSettings {
		b = appendUint(b, s.QuotaBytes)
		b = appendUint(b, s.QuotaObjects)
	}
	if n > quotaSettings {
		b = appendBool(b, s.Lock)
		b = appendText(b, s.RetentionMode)
		b = appendUint(b, uint64(s.RetentionDays))
	}
	return b
}

// How many elements settings have: without quota and lock, without lock, and in all.
const (
	plainSettings = 4
	quotaSettings = 6
	allSettings   = 9
)

// settingsOf is how many elements the row of s has: no more than it needs.
func settingsOf(s *record.Settings) int {
	switch {
	case s.Lock || s.RetentionMode != "" || s.RetentionDays != 0:
		return allSettings
	case s.QuotaBytes != 0 || s.QuotaObjects != 0:
		return quotaSettings
	}
	return plainSettings
}

func (d *decoder) settings(s *record.Settings) {
	*s = record.Settings{}
	n := d.list(allSettings)
	s.K = uint8(d.upTo(255))
	s.Compression = d.text()
	s.Profile = d.text()
	s.Versioning = d.bool()
	if n > plainSettings {
		s.QuotaBytes = d.uint()
		s.QuotaObjects = d.uint()
	}
	if n > quotaSettings {
		s.Lock = d.bool()
		s.RetentionMode = d.text()
		s.RetentionDays = uint32(d.upTo(max32))
	}
	if n != settingsOf(s) {
		d.bad = true
	}
}

func (r *Bucket) append(b []byte) []byte {
	b = appendArray(append(b, rowVersion), 8)
	b = appendText(b, r.Name)
	b = appendUint(b, uint64(r.Realm))
	b = appendInt(b, r.Time)
	b = appendSettings(b, &r.Settings)
	b = appendUint(b, r.Objects)
	b = appendUint(b, r.Versions)
	b = appendUint(b, r.Markers)
	return appendUint(b, r.Bytes)
}

// parse leaves the ID, which is the key's, to the caller.
func (r *Bucket) parse(v []byte) error {
	d := open(v)
	d.array(8)
	r.Name = d.text()
	r.Realm = id.Realm(d.upTo(max32))
	r.Time = d.int()
	d.settings(&r.Settings)
	r.Objects = d.uint()
	r.Versions = d.uint()
	r.Markers = d.uint()
	r.Bytes = d.uint()
	if !d.end() {
		return damagedRow("bucket")
	}
	return nil
}

// The deleted mark comes first, so that a listing passes markers cheaply.
func (o *Object) append(b []byte) []byte {
	if o.Deleted {
		b = appendArray(append(b, rowVersion), 4)
		b = appendBool(b, true)
		b = appendUint(b, o.Version.Seq)
		b = appendUint(b, uint64(o.Version.Pos))
		return appendInt(b, o.Time)
	}
	locked := o.Lock != record.Lock{}
	n := plainObject
	if locked {
		n = lockedObject
	}
	b = appendArray(append(b, rowVersion), n)
	b = appendBool(b, false)
	b = appendUint(b, o.Version.Seq)
	b = appendUint(b, uint64(o.Version.Pos))
	b = appendInt(b, o.Time)
	b = appendUint(b, o.Manifest.Size)
	b = appendArray(b, 3*len(o.Manifest.Roots))
	for i := range o.Manifest.Roots {
		r := &o.Manifest.Roots[i]
		b = appendBytes(b, r.Chunk[:])
		b = appendUint(b, uint64(r.Depth))
		b = appendUint(b, r.Len)
	}
	b = appendBytes(b, o.ETag)
	a := &o.Attrs
	b = appendArray(b, 5+2*len(a.User))
	for _, s := range [...]string{a.ContentType, a.ContentEncoding, a.ContentDisposition, a.ContentLanguage, a.CacheControl} {
		b = appendText(b, s)
	}
	for i := range a.User {
		b = appendText(b, a.User[i].Name)
		b = appendText(b, a.User[i].Value)
	}
	if locked {
		b = appendText(b, o.Lock.Mode)
		b = appendInt(b, o.Lock.Until)
		b = appendBool(b, o.Lock.Hold)
	}
	return b
}

// How many elements the row of a version has, and that of one with a lock.
const (
	plainObject  = 8
	lockedObject = 11
)

// deletedRow reports whether the value of an object's row is a delete marker's.
func deletedRow(v []byte) bool { return len(v) > 2 && v[2] == cborTrue }

// parse leaves Current, which the key tells, to the caller. Nothing of the
// result refers to v.
func (o *Object) parse(v []byte) error {
	d := open(v)
	o.Deleted = deletedRow(v)
	locked := false
	if o.Deleted {
		d.array(4)
	} else if n := d.list(lockedObject); n == lockedObject {
		locked = true
	} else if n != plainObject {
		d.bad = true
	}
	o.Lock = record.Lock{}
	if d.bool() != o.Deleted {
		d.bad = true
	}
	o.Version.Seq = d.uint()
	o.Version.Pos = uint32(d.upTo(max32))
	o.Time = d.int()
	if o.Deleted {
		o.Manifest, o.ETag, o.Attrs = manifest.Manifest{}, nil, record.Attrs{}
		if !d.end() {
			return damagedRow("object")
		}
		return nil
	}
	o.Manifest.Size = d.uint()
	o.Manifest.Roots = nil
	n := d.list(3 * manifest.MaxRoots)
	if n%3 != 0 {
		d.bad = true
	}
	if n > 0 {
		o.Manifest.Roots = make([]manifest.Ref, n/3)
		for i := range o.Manifest.Roots {
			r := &o.Manifest.Roots[i]
			d.fill(r.Chunk[:])
			r.Depth = uint8(d.upTo(manifest.MaxDepth))
			r.Len = d.uint()
		}
	}
	o.ETag = append([]byte(nil), d.bytes()...)
	a := &o.Attrs
	n = d.list(5 + 2*record.MaxAttrs)
	if n < 5 || n%2 != 1 {
		d.bad = true
		n = 5
	}
	for _, s := range [...]*string{&a.ContentType, &a.ContentEncoding, &a.ContentDisposition, &a.ContentLanguage, &a.CacheControl} {
		*s = d.text()
	}
	a.User = nil
	if n > 5 {
		a.User = make([]record.UserField, (n-5)/2)
		for i := range a.User {
			a.User[i].Name = d.text()
			a.User[i].Value = d.text()
		}
	}
	if locked {
		o.Lock.Mode = d.text()
		o.Lock.Until = d.int()
		o.Lock.Hold = d.bool()
		if (o.Lock == record.Lock{}) {
			d.bad = true
		}
	}
	if !d.end() {
		return damagedRow("object")
	}
	return nil
}

func appendResident(b []byte, r id.Realm, c *id.Chunk) []byte {
	b = appendArray(append(b, rowVersion), 2)
	b = appendUint(b, uint64(r))
	return appendBytes(b, c[:])
}

func parseResident(v []byte) (r id.Realm, c id.Chunk, err error) {
	d := open(v)
	d.array(2)
	r = id.Realm(d.upTo(max32))
	d.fill(c[:])
	if !d.end() {
		return 0, c, damagedRow("resident")
	}
	return r, c, nil
}

func (c *Condemnation) append(b []byte) []byte {
	return appendInt(appendUint(appendArray(append(b, rowVersion), 2), c.Since), c.Time)
}

// parse leaves realm and chunk, which are the key's, to the caller.
func (c *Condemnation) parse(v []byte) error {
	d := open(v)
	d.array(2)
	c.Since = d.uint()
	c.Time = d.int()
	if !d.end() || c.Since == 0 {
		return damagedRow("condemned")
	}
	return nil
}

// A list chunk's children stand back to back in one byte string.
func appendChildren(b []byte, cs []id.Chunk) []byte {
	b = appendHead(append(b, rowVersion), majorBytes, uint64(len(cs)*len(id.Chunk{})))
	for i := range cs {
		b = append(b, cs[i][:]...)
	}
	return b
}

func parseChildren(v []byte) ([]id.Chunk, error) {
	d := open(v)
	s := d.bytes()
	const size = len(id.Chunk{})
	if !d.end() || len(s) == 0 || len(s)%size != 0 || len(s) > manifest.MaxChildren*size {
		return nil, damagedRow("children")
	}
	out := make([]id.Chunk, len(s)/size)
	for i := range out {
		out[i] = id.Chunk(s[i*size:])
	}
	return out, nil
}

// nodeSet is the head of the node set; its members are rows of their own.
type nodeSet struct {
	version uint64
	m, want uint8 // want is left out when it is 0
}

func (n *nodeSet) append(b []byte) []byte {
	if n.want == 0 {
		return appendUints(b, n.version, uint64(n.m))
	}
	return appendUints(b, n.version, uint64(n.m), uint64(n.want))
}

func (n *nodeSet) parse(v []byte) error {
	var m, want uint64
	err := parseUints(v, "node set", &n.version, &m)
	if err != nil {
		if err = parseUints(v, "node set", &n.version, &m, &want); err == nil && want == 0 {
			err = damagedRow("node set")
		}
	}
	if err == nil && (m > 255 || want > 255) {
		err = damagedRow("node set")
	}
	n.m, n.want = uint8(m), uint8(want)
	return err
}

// appendMember leaves out the name, which is the key's.
func appendMember(b []byte, m *record.Member) []byte {
	b = appendArray(append(b, rowVersion), 2+len(m.Labels))
	b = appendBytes(b, m.ID[:])
	b = appendUint(b, uint64(m.Weight))
	for _, l := range m.Labels {
		b = appendText(b, l)
	}
	return b
}

func parseMember(v []byte, m *record.Member) error {
	d := open(v)
	n := d.list(2 + maxLabels)
	if n < 2 {
		d.bad = true
		n = 2
	}
	d.fill(m.ID[:])
	m.Weight = uint32(d.upTo(max32))
	m.Labels = nil
	if n > 2 {
		m.Labels = make([]string, n-2)
		for i := range m.Labels {
			m.Labels[i] = d.text()
		}
	}
	if !d.end() {
		return damagedRow("member")
	}
	return nil
}

// The rows that are only there have an empty array for a value.
func appendNothing(b []byte) []byte { return appendArray(append(b, rowVersion), 0) }

func isNothing(v []byte) bool { return len(v) == 2 && v[0] == rowVersion && v[1] == majorArray }

func appendBucketID(b []byte, n id.Bucket) []byte { return appendUints(b, uint64(n)) }

func parseBucketID(v []byte) (n id.Bucket, err error) {
	err = parseUints(v, "bucket name", (*uint64)(&n))
	return n, err
}
