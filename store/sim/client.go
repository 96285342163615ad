package sim

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"slices"
	"strings"
	"time"

	"cairn/id"
	"cairn/record"
	"cairn/store"
)

// client is one of the concurrent users. It alone writes its items; registers
// are shared.
type client struct {
	w      *world
	no     int
	rng    *rand.Rand
	items  []*item // in buckets main and versions
	bucket *item   // its own bucket, with one key
	kept   *item   // its key in the bucket where versions are retained
}

const (
	versionsBucket = "versions"
	lockedBucket   = "locked" // new versions are retained for a day, which no history lasts
	ownQuota       = 100 << 10
)

func newClient(w *world, no int) *client {
	c := &client{w: w, no: no, rng: generator(w.seed, "client", no)}
	for _, b := range []string{"main", versionsBucket} {
		for _, k := range []string{"a/1", "a/2", "b/x/1", "b/y", "c"} {
			c.items = append(c.items, newItem(b, fmt.Sprintf("c%d/%s", no, k), b == versionsBucket, state{}))
		}
	}
	c.bucket = newItem(fmt.Sprintf("of-client-%d", no), "only/key", false, state{gone: true})
	c.bucket.quota = ownQuota
	c.kept = newItem(lockedBucket, fmt.Sprintf("c%d/kept", no), true, state{})
	c.kept.locked = true
	return c
}

// run does a number of operations.
func (c *client) run(ops int) {
	for range ops {
		time.Sleep(time.Duration(c.rng.IntN(60_000)) * time.Microsecond)
		g := c.w.enter(c.rng)
		if g == nil {
			return
		}
		acked := c.step(g)
		c.w.leave()
		if acked && c.rng.IntN(c.w.cfg.LossEvery) == 0 {
			c.w.loseAfterAck(g, c.rng)
		}
	}
}

// step does one operation and says whether it was an acknowledged write.
func (c *client) step(g *gateway) bool {
	for _, it := range append(slices.Clone(c.items), c.bucket, c.kept) {
		it.settle(c.w.startsSeen())
	}
	c.settleMoves()
	it := c.items[c.rng.IntN(len(c.items))]
	switch d := c.rng.IntN(100); {
	case it.move != nil:
		c.read(g, it)
	case d < 7:
		return c.copy(g, c.items[c.rng.IntN(len(c.items))], it)
	case d < 34:
		return c.change(g, it, op{kind: opPut, body: c.newContent(), create: c.rng.IntN(5) == 0, parts: c.rng.IntN(6) == 0})
	case d < 42:
		return c.change(g, it, op{kind: opDelete})
	case d < 46:
		return c.change(g, it, op{kind: opUndelete})
	case d < 50:
		if v := it.known(c.rng); !v.IsZero() {
			return c.change(g, it, op{kind: opPurge, version: v})
		}
		return false
	case d < 55:
		return c.own(g)
	case d < 58:
		return c.keep(g)
	case d < 76:
		return c.shared(g)
	case d < 92:
		c.read(g, it)
	default:
		c.list(g)
	}
	return false
}

// copy copies or renames a key of the client to another, or copies it to itself.
func (c *client) copy(g *gateway, from, to *item) bool {
	o := op{kind: opPut, from: from, create: c.rng.IntN(5) == 0, move: from != to && c.rng.IntN(2) == 0}
	if !from.certain() || from.move != nil || !to.certain() {
		return false
	}
	live := from.states[0].live()
	if live == nil {
		// The source is judged before the place it goes to.
		_, err := c.call(g, to, o)
		c.w.note("client %d: copy nothing of %v to %v: %v", c.no, from, to, brief(err))
		if !g.dead.Load() && !errors.Is(err, store.ErrNoObject) && !errors.Is(err, store.ErrUnknown) && isAny(err, refusals) == nil {
			c.w.violation("copy %v, where nothing is, to %v: %v", from, to, err)
		}
		return false
	}
	o.body = live.body
	if !o.move {
		return c.change(g, to, o)
	}
	if now := to.states[0].live(); now != nil && now.body.name == o.body.name {
		return false // it could not be seen whether it was done
	}
	return c.rename(g, o, to)
}

// rename does a move. Of both ends it is known what is there.
func (c *client) rename(g *gateway, o op, to *item) bool {
	from, gone := o.from, op{kind: opDelete}
	_, never := o.after(to.states[0], to.versioned)
	acked := c.change(g, to, o)
	switch {
	case acked:
		if !from.acknowledged(gone) {
			c.w.violation("rename %v to %v was acknowledged; the model has %s", from, to, from.describe())
		}
	case never == nil && !to.certain():
		if len(to.states) > 1 {
			from.may(gone)
		}
		for _, p := range to.pending {
			p.op = gone
			from.pending = append(from.pending, p)
		}
		from.move = &move{from: from, to: to, body: o.body}
		to.move = from.move
	}
	return acked
}

// settleMoves compares both ends of renames of unknown outcome.
func (c *client) settleMoves() {
	for _, it := range c.items {
		if m := it.move; m != nil {
			if done, agree := m.settled(); done && !agree {
				c.w.violation("a rename of %v to %v was done by half: %s; %s", m.from, m.to, m.from.describe(), m.to.describe())
			}
		}
	}
}

// own does something in the client's own bucket.
func (c *client) own(g *gateway) bool {
	switch c.rng.IntN(5) {
	case 0:
		return c.change(g, c.bucket, op{kind: opMake})
	case 1:
		return c.change(g, c.bucket, op{kind: opUnmake})
	case 2:
		return c.change(g, c.bucket, op{kind: opDelete})
	case 3:
		c.read(g, c.bucket)
		return false
	}
	return c.change(g, c.bucket, op{kind: opPut, body: c.newContent()})
}

// keep does something to a key whose versions are retained: whatever happens, none of
// them goes.
func (c *client) keep(g *gateway) bool {
	switch c.rng.IntN(6) {
	case 0, 1:
		return c.change(g, c.kept, op{kind: opPut, body: c.newContent(), parts: c.rng.IntN(6) == 0})
	case 2:
		return c.change(g, c.kept, op{kind: opDelete})
	case 3, 4:
		if v := c.kept.known(c.rng); !v.IsZero() {
			return c.change(g, c.kept, op{kind: opPurge, version: v})
		}
	case 5:
		c.read(g, c.kept)
	}
	return false
}

func (c *client) newContent() *content {
	c.w.mu.Lock()
	c.w.names++
	c.w.mu.Unlock()
	b := &content{name: c.rng.Uint64() | 1, text: c.rng.IntN(3) == 0}
	switch d := c.rng.IntN(100); {
	case d < 4:
		b.head = 0
	case d < 55:
		b.head = 8 + c.rng.IntN(4096)
	case d < 85:
		b.head = 8 + c.rng.IntN(200<<10)
	case d < 94:
		b.head = 8 + c.rng.IntN(1<<20)
	default:
		b.head = 8 + c.rng.IntN(1<<20)
		for range 1 + c.rng.IntN(c.w.cfg.MostBlocks) {
			b.blocks = append(b.blocks, c.rng.IntN(sharedBlocks))
		}
	}
	b.size = b.head + len(b.blocks)*blockBytes
	if b.size == 0 {
		b.name = 1 // all empty contents are one
	}
	return b
}

// known is a version that a purge may name; zero for none.
func (it *item) known(rng *rand.Rand) id.Version {
	s := it.states[rng.IntN(len(it.states))]
	if len(s.stack) == 0 {
		return id.Version{}
	}
	return s.stack[rng.IntN(len(s.stack))].id
}

// call does a change and returns what the store says, and the version it made.
func (c *client) call(g *gateway, it *item, o op) (id.Version, error) {
	ctx := context.Background()
	if o.from != nil {
		return c.callCopy(g, it, o)
	}
	switch o.kind {
	case opPut:
		opt := store.PutOptions{Size: int64(o.body.size)}
		if c.rng.IntN(4) == 0 {
			opt.Size = -1
		}
		if o.create {
			opt.If.IfNoneMatch = []string{"*"}
		}
		put := g.st.Put
		if o.parts {
			put = func(ctx context.Context, bucket, key string, r io.Reader, opt store.PutOptions) (store.Object, error) {
				return c.putInParts(ctx, g, bucket, key, r, opt)
			}
		}
		obj, err := put(ctx, it.bucket, it.key, bytes.NewReader(o.body.bytes(&c.w.blocks)), opt)
		if err == nil && obj.Size != uint64(o.body.size) {
			c.w.violation("put %v of %v answers a size of %d", it, o.body, obj.Size)
		}
		return obj.Version, err
	case opDelete:
		obj, err := g.st.Delete(ctx, it.bucket, it.key, store.Conditions{})
		return obj.Version, err
	case opUndelete:
		_, err := g.st.Undelete(ctx, it.bucket, it.key)
		return id.Version{}, err
	case opPurge:
		return id.Version{}, g.st.DeleteVersion(ctx, it.bucket, it.key, o.version, it.locked && c.rng.IntN(2) == 0)
	case opMake:
		_, err := g.st.CreateBucket(ctx, it.bucket, record.Settings{QuotaBytes: uint64(it.quota)})
		return id.Version{}, err
	case opUnmake:
		return id.Version{}, g.st.DeleteBucket(ctx, it.bucket)
	}
	panic("sim: unknown op")
}

// errBroken ends a body that a client's connection took with it.
var errBroken = errors.New("sim: the connection broke")

// putInParts is a put as an upload in several requests, some of which break off.
// Nothing but its completion changes the object.
func (c *client) putInParts(ctx context.Context, g *gateway, bucket, key string, r io.Reader, opt store.PutOptions) (store.Object, error) {
	// What is unknown of a step before completion is nothing to the object.
	nothing := func(err error) error {
		if errors.Is(err, store.ErrUnknown) || errors.Is(err, store.ErrNoUpload) {
			return fmt.Errorf("%w: %s", store.ErrRetry, err)
		}
		return err
	}
	u, err := g.st.BeginUpload(ctx, bucket, key, store.UploadOptions{Size: opt.Size})
	if err != nil {
		return store.Object{}, nothing(err)
	}
	body, err := io.ReadAll(r)
	if err != nil {
		return store.Object{}, err
	}
	at := uint64(0)
	for try := 0; at < uint64(len(body)); try++ {
		n := uint64(len(body)) - at
		var src io.Reader = bytes.NewReader(body[at:])
		if c.rng.IntN(2) == 0 {
			n = 1 + c.rng.Uint64N(n)
			src = bytes.NewReader(body[at : at+n])
			if c.rng.IntN(2) == 0 {
				src = io.MultiReader(src, brokenReader{})
			}
		}
		got, err := g.st.AppendUpload(ctx, u.ID, at, src)
		if err != nil && !errors.Is(err, errBroken) {
			if try > 20 || isAny(err, []error{store.ErrUnknown, store.ErrRetry, store.ErrBusy, store.ErrUnavailable}) == nil {
				return store.Object{}, nothing(err)
			}
			now, uerr := g.st.Upload(ctx, u.ID)
			if uerr != nil {
				return store.Object{}, nothing(uerr)
			}
			got = now.Offset
		} else if got != at+n && !g.dead.Load() {
			c.w.violation("upload of %s/%s: %d bytes were sent at %d, %d are durable", bucket, key, n, at, got)
		}
		if got < at || got > uint64(len(body)) {
			c.w.violation("upload of %s/%s: %d of %d bytes were durable, now %d", bucket, key, at, len(body), got)
			return store.Object{}, store.ErrRetry
		}
		at = got
	}
	o, err := g.st.CompleteUpload(ctx, u.ID, opt.If)
	if errors.Is(err, store.ErrNoUpload) {
		err = nothing(err)
	}
	return o, err
}

type brokenReader struct{}

func (brokenReader) Read([]byte) (int, error) { return 0, errBroken }

// callCopy asks the store to copy or rename.
func (c *client) callCopy(g *gateway, it *item, o op) (id.Version, error) {
	opt := store.CopyOptions{}
	if o.create {
		opt.If.IfNoneMatch = []string{"*"}
	}
	do := g.st.Copy
	if o.move {
		do = g.st.Rename
	}
	obj, err := do(context.Background(), store.Name{Bucket: o.from.bucket, Key: o.from.key}, store.Name{Bucket: it.bucket, Key: it.key}, opt)
	if err == nil && o.body != nil && obj.Size != uint64(o.body.size) {
		c.w.violation("copy %v of %v to %v answers a size of %d", o.from, o.body, it, obj.Size)
	}
	return obj.Version, err
}

// change does a change and takes its outcome into the model. It says whether the
// change was acknowledged.
func (c *client) change(g *gateway, it *item, o op) bool {
	w := c.w
	opens := w.startsSeen()
	begun := time.Now()
	o.quota, o.locked = it.quota, it.locked
	v, err := c.call(g, it, o)
	what := o.kind.String()
	if o.from != nil {
		what = fmt.Sprintf("copy (rename %v) of %v to", o.move, o.from)
	}
	text := fmt.Sprintf("client %d: %s %v %v: %v", c.no, what, it, o.body, brief(err))
	switch {
	case g.dead.Load():
		// No answer of a process that was killed ever arrived.
		w.note("%s (dead)", text)
		w.countOutcome(2)
		it.may(o)
	case err == nil:
		w.note("%s %v", text, v)
		w.countOutcome(0)
		if o.got = v; !it.acknowledged(o) {
			w.violation("%s was acknowledged; the model has %s", text, it.describe())
			return false
		}
		g.acked(begun)
		return true
	case errors.Is(err, store.ErrUnknown):
		w.note("%s", text)
		w.countOutcome(2)
		if g.past.Load() || w.startsSeen() != opens {
			it.may(o)
		}
		it.pending = append(it.pending, pending{op: o, gw: g, answered: time.Now(), opens: w.startsSeen()})
		if o.kind == opUnmake {
			it.mayPurge()
		}
	case isAny(err, definite) != nil:
		w.note("%s", text)
		if !it.refused(o, isAny(err, definite)) {
			w.violation("%s was refused; the model has %s", text, it.describe())
		}
	case isAny(err, refusals) != nil:
		w.note("%s", text)
		w.countOutcome(1)
		if o.kind == opUnmake {
			it.mayPurge()
		}
	default:
		w.violation("%s: an error of no class", text)
	}
	return false
}

// mayPurge takes in that the removal of a bucket was cut short.
func (it *item) mayPurge() {
	for _, s := range slices.Clone(it.states) {
		if !s.gone && s.live() == nil {
			it.states = add(it.states, state{})
		}
	}
}

// brief is an error in few words.
func brief(err error) string {
	if err == nil {
		return "ok"
	}
	s := err.Error()
	if len(s) > 160 {
		s = s[:160] + "..."
	}
	return strings.ReplaceAll(s, "\n", "; ")
}

// read reads an item, whole or in part, and holds it against the model.
func (c *client) read(g *gateway, it *item) {
	w := c.w
	body, got, err := c.w.get(g, it.bucket, it.key, id.Version{}, c.rng)
	w.note("client %d: get %v: %d bytes, %v", c.no, it, len(got), brief(err))
	w.judge(g, it, body, got, err)
}

// span is a range of an object.
type span struct{ off, n uint64 }

// get reads the current or a certain version, a random range of it when rng is
// given. It returns the range.
func (w *world) get(g *gateway, bucket, key string, v id.Version, rng *rand.Rand) (span, []byte, error) {
	ctx := context.Background()
	r, err := g.st.Get(ctx, bucket, key, store.GetOptions{Version: v})
	if err != nil {
		return span{}, nil, err
	}
	at := span{0, r.Object.Size}
	if rng != nil && r.Object.Size > 0 && rng.IntN(2) == 0 {
		at.off = rng.Uint64N(r.Object.Size)
		at.n = rng.Uint64N(r.Object.Size-at.off) + 1
	}
	b := r.Body(at.off, at.n)
	defer b.Close()
	out := bytes.NewBuffer(make([]byte, 0, at.n))
	if _, err := io.Copy(out, b); err != nil {
		return at, nil, err
	}
	w.mu.Lock()
	w.stats.Reads++
	w.mu.Unlock()
	if uint64(out.Len()) != at.n {
		w.violation("get %s/%s: %d bytes without an error, the range has %d", bucket, key, out.Len(), at.n)
	}
	return at, out.Bytes(), nil
}

// holds reports whether a range of a content is these bytes.
func (w *world) holds(c *content, at span, got []byte) bool {
	if at.off+at.n > uint64(c.size) || at.n != uint64(len(got)) {
		return false
	}
	return bytes.Equal(c.bytes(&w.blocks)[at.off:at.off+at.n], got)
}

// judge narrows an item by what a get of it gave.
func (w *world) judge(g *gateway, it *item, at span, got []byte, err error) {
	seen := ""
	var ok func(state) bool
	switch {
	case err == nil:
		seen = fmt.Sprintf("%d bytes from %d on, %x", at.n, at.off, got[:min(len(got), 16)])
		ok = func(s state) bool {
			v := s.live()
			return v != nil && w.holds(v.body, at, got)
		}
	case errors.Is(err, store.ErrNoBucket):
		seen = "no bucket"
		ok = func(s state) bool { return s.gone }
	case errors.Is(err, store.ErrNoObject):
		seen = "nothing"
		ok = func(s state) bool { return !s.gone && s.live() == nil }
	default:
		w.readError(g, it.String(), err)
		return
	}
	if g.dead.Load() && err != nil {
		return // what a dead process says of absence reaches nobody
	}
	if !it.keep(ok) {
		w.violation("get %v gives %s; the model has %s", it, seen, it.describe())
	}
}

// readError judges a read that gave nothing.
func (w *world) readError(g *gateway, what string, err error) {
	if g.dead.Load() || g.past.Load() {
		return
	}
	if errors.Is(err, store.ErrDamaged) || isAny(err, refusals) == nil {
		w.violation("read %s with %d nodes lost (%s): %v", what, w.lostCount(), w.lostText(), err)
	}
}

// list lists the client's own prefix of a bucket, and compares.
func (c *client) list(g *gateway) {
	bucket := []string{"main", versionsBucket}[c.rng.IntN(2)]
	opt := store.ListOptions{Prefix: fmt.Sprintf("c%d/", c.no), Limit: 1 + c.rng.IntN(8)}
	switch c.rng.IntN(3) {
	case 0:
		opt.Delimiter = "/"
	case 1:
		opt.Versions = true
	}
	var mine []*item
	for _, it := range c.items {
		if it.bucket == bucket {
			mine = append(mine, it)
		}
	}
	c.w.checkList(g, bucket, opt, mine, c.no)
}

// checkList lists everything under a prefix, which is what the items are, and
// narrows them by it.
func (w *world) checkList(g *gateway, bucket string, opt store.ListOptions, items []*item, who int) (ok bool) {
	var (
		objects  []store.Object
		prefixes []string
	)
	for o := opt; ; {
		page, err := g.st.List(context.Background(), bucket, o)
		if err != nil {
			w.note("client %d: list %s/%s: %v", who, bucket, opt.Prefix, brief(err))
			w.readError(g, "list "+bucket, err)
			return false
		}
		if len(page.Objects)+len(page.Prefixes) > o.Limit && o.Limit > 0 {
			w.violation("list %s: %d objects and %d prefixes where %d were asked for", bucket, len(page.Objects), len(page.Prefixes), o.Limit)
		}
		objects, prefixes = append(objects, page.Objects...), append(prefixes, page.Prefixes...)
		if !page.More {
			break
		}
		if page.Next == o.After && page.NextVersion == o.AfterVersion {
			w.violation("list %s: the next page begins where this one did: %q", bucket, page.Next)
			return false
		}
		o.After, o.AfterVersion = page.Next, page.NextVersion
	}
	w.note("client %d: list %s %+v: %d objects, %d prefixes", who, bucket, opt, len(objects), len(prefixes))
	if g.dead.Load() {
		return false
	}
	for i := 1; i < len(objects); i++ {
		a, b := objects[i-1], objects[i]
		if a.Key > b.Key || a.Key == b.Key && (!opt.Versions || a.Version.Compare(b.Version) <= 0) {
			w.violation("list %s %+v: %q %v stands before %q %v", bucket, opt, a.Key, a.Version, b.Key, b.Version)
		}
	}
	taken := 0
	group := map[string][]*item{}
	for _, it := range items {
		if opt.Delimiter != "" {
			if rest := it.key[len(opt.Prefix):]; strings.Contains(rest, opt.Delimiter) {
				p := opt.Prefix + rest[:strings.Index(rest, opt.Delimiter)+1]
				group[p] = append(group[p], it)
				continue
			}
		}
		var found []store.Object
		for _, o := range objects {
			if o.Key == it.key {
				found = append(found, o)
			}
		}
		taken += len(found)
		before := it.describe()
		if !it.keep(func(s state) bool { return listed(s, found, opt.Versions) }) {
			w.violation("list %s %+v shows %d versions of %v: %v; the model has %s", bucket, opt, len(found), it, found, before)
		}
	}
	for _, p := range names(group) {
		shown := slices.Contains(prefixes, p)
		may, must := false, false
		for _, it := range group[p] {
			yes, no := false, false
			for _, s := range it.states {
				if s.live() != nil {
					yes = true
				} else {
					no = true
				}
			}
			may, must = may || yes, must || yes && !no
		}
		if shown && !may || !shown && must {
			w.violation("list %s %+v: prefix %q shown %v; the model says possible %v, certain %v", bucket, opt, p, shown, may, must)
		}
	}
	if taken != len(objects) || len(prefixes) > len(group) {
		w.violation("list %s %+v shows %d objects and %d prefixes, %d and at most %d belong there: %v", bucket, opt, len(objects), len(prefixes), taken, len(group), objects)
	}
	return true
}

// listed reports whether a listing shows a key as a state has it.
func listed(s state, found []store.Object, versions bool) bool {
	var want []version
	switch {
	case versions:
		want = s.stack
	case s.live() != nil:
		want = s.stack[:1]
	}
	if len(found) != len(want) {
		return false
	}
	for i, v := range want {
		o := found[i]
		if o.Deleted != v.marker || !v.id.IsZero() && v.id != o.Version || !v.marker && o.Size != uint64(v.body.size) || o.Current != (i == 0) {
			return false
		}
	}
	for i := range want {
		want[i].id = found[i].Version
	}
	return true
}

// shared does something to a key that all clients write.
func (c *client) shared(g *gateway) bool {
	w := c.w
	r := w.registers[c.rng.IntN(len(w.registers))]
	ctx := context.Background()
	in := regIn{kind: regKind(c.rng.IntN(5))}
	if r.key == raceKey && in.kind != regGet {
		in.kind = regCreate
	}
	var body *content
	opt := store.PutOptions{Size: -1}
	switch in.kind {
	case regPut, regCreate, regSwap:
		body = &content{name: c.rng.Uint64() | 1, head: 8 + c.rng.IntN(300)}
		body.size = body.head
		in.value = newMix(0).text(string(body.bytes(nil))).sum()
	}
	if in.kind == regCreate {
		opt.If.IfNoneMatch = []string{"*"}
	}
	if in.kind == regSwap {
		begun := time.Now()
		got, etag, err := w.getRegister(g, r)
		if err != nil {
			return false
		}
		c.noteGet(g, r, got, begun)
		if got == 0 {
			return false
		}
		in.want = got
		opt.If.IfMatch = []string{etag}
	}
	begun := time.Now()
	var err error
	switch in.kind {
	case regGet:
		got, _, err := w.getRegister(g, r)
		if err == nil {
			c.noteGet(g, r, got, begun)
		}
		return false
	case regDelete:
		_, err = g.st.Delete(ctx, "main", r.key, store.Conditions{})
	default:
		_, err = g.st.Put(ctx, "main", r.key, bytes.NewReader(body.bytes(nil)), opt)
	}
	dead := g.dead.Load()
	w.note("client %d: %v %s %x: %v (dead %v)", c.no, in.kind, r.key, in.value, brief(err), dead)
	out, refused := outcome(err, dead)
	if refused {
		if isAny(err, refusals) == nil {
			w.violation("%v of %s: an error of no class: %v", in.kind, r.key, err)
		}
		w.countOutcome(1)
		return false
	}
	if out.unknown {
		w.countOutcome(2)
	}
	r.note(c.no, in, out, begun, time.Now())
	if out.ok {
		w.countOutcome(0)
		g.acked(begun)
	}
	return out.ok
}

func (c *client) noteGet(g *gateway, r *register, got uint64, begun time.Time) {
	if g.dead.Load() {
		return
	}
	c.w.note("client %d: get %s: %x", c.no, r.key, got)
	r.note(c.no, regIn{kind: regGet}, regOut{ok: true, value: got}, begun, time.Now())
}

// getRegister reads a register: the name of its content, zero for nothing.
func (w *world) getRegister(g *gateway, r *register) (uint64, string, error) {
	o, err := g.st.Get(context.Background(), "main", r.key, store.GetOptions{})
	if errors.Is(err, store.ErrNoObject) {
		return 0, "", nil
	}
	if err != nil {
		w.readError(g, r.key, err)
		return 0, "", err
	}
	b := o.Body(0, o.Object.Size)
	defer b.Close()
	var buf bytes.Buffer
	if _, err := io.Copy(&buf, b); err != nil {
		w.readError(g, r.key, err)
		return 0, "", err
	}
	return newMix(0).text(buf.String()).sum(), o.Object.ETag, nil
}

func (w *world) countOutcome(i int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.stats.Outcomes[i]++
}

// startsSeen is how many starts there were.
func (w *world) startsSeen() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.opens
}
