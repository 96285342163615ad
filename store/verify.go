package store

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	"cairn/id"
	"cairn/index"
	"cairn/node"
	"cairn/record"
	"cairn/seal"
)

// Report is what a verification found. Everything that is not in Findings was
// read and is what was written.
type Report struct {
	Packs    int       `json:"packs"`
	Dead     int       `json:"dead_packs"` // of them, data packs that no chunk lies in any more: not read
	Shards   int       `json:"shards"`
	Chunks   int       `json:"chunks"`
	Objects  int       `json:"objects"` // versions of objects
	Bytes    uint64    `json:"bytes_read"`
	Damaged  int       `json:"damaged"` // shards to be repaired
	Lost     int       `json:"lost"`    // packs, chunks or objects that cannot be had from the nodes at hand
	Findings []Finding `json:"findings"`
	// Open is the newest log pack when no node has some of its shards: a process that
	// ended while it was on its way leaves that, and nobody was told of it; or they were
	// lost since. The next start writes it again either way. It is no finding; a shard of
	// it that is there and rotten is one.
	Open *OpenPack `json:"open,omitempty"`

	names  *strings.Replacer // of nodes
	tail   id.Pack
	unread map[id.Pack]struct{}        // packs that cannot be read
	broken map[index.Resident]struct{} // single chunks that cannot, by realm and ID
}

// Finding is one thing that is not as it should be.
type Finding struct {
	Kind   string `json:"kind"` // "missing", "rotten", "parity", "unreadable pack", "chunk", "object", ...
	Detail string `json:"detail"`
}

// OpenPack is a log pack of which shards are missing and of which it is not known
// whether they ever were.
type OpenPack struct {
	Pack   id.Pack `json:"pack"`
	Seq    uint64  `json:"sequence"`
	Shards int     `json:"shards"` // that are there
	Of     int     `json:"of"`
}

// maxFindings bounds the list; the counts go on.
const maxFindings = 1000

func (r *Report) damaged(kind, format string, a ...any) {
	r.Damaged++
	r.find(kind, format, a...)
}

func (r *Report) lost(kind, format string, a ...any) {
	r.Lost++
	r.find(kind, format, a...)
}

func (r *Report) find(kind, format string, a ...any) {
	if len(r.Findings) < maxFindings {
		text := fmt.Sprintf(format, a...)
		if r.names != nil {
			text = r.names.Replace(text)
		}
		r.Findings = append(r.Findings, Finding{kind, text})
	}
}

// Verify proves a store sound while nothing serves it: it replays the log into
// cfg.Engine, which must be empty and is closed, reads every shard of every pack
// against its digest, codes the parity again, opens every chunk and computes its
// ID, and walks every object's manifest. It changes nothing on any node.
func Verify(ctx context.Context, cfg Config) (Report, error) {
	cfg.WholeLog, cfg.AcceptLoss = true, true // what cannot be read of the log is a finding
	s, err := newStore(cfg)
	if err != nil {
		return Report{}, err
	}
	defer s.index.Close()
	r := Report{Findings: []Finding{}, unread: map[id.Pack]struct{}{}, broken: map[index.Resident]struct{}{}}
	tail, held, err := s.survey(ctx)
	if err != nil {
		return r, err
	}
	defer tail.pack.Release()
	r.tail = tail.link.h.Pack
	for _, what := range tail.rotten {
		r.damaged("rotten", "pack %v, %s", r.tail, what)
	}
	s.remember(r.tail, tail.places)
	if err := s.replay(ctx, held); err != nil {
		return r, err
	}
	if err := s.giveUpEnd(ctx, tail); err != nil { // in the index that is made for this
		return r, err
	}
	for _, l := range s.skipped {
		r.lost("log", "sequences %d to %d of the log cannot be read: what only stood there is not looked at", l.From, l.To)
	}
	// The log may have gone on to another node set.
	rec, err := s.nodesRecord()
	if err != nil {
		return r, err
	}
	if rec.Version != s.members.Load().rec.Version {
		s.members.Store(s.newSet(rec))
	}
	r.names = s.members.Load().naming()
	if err := s.verifyPacks(ctx, &r); err != nil {
		return r, err
	}
	if err := s.verifySnapshots(ctx, &r); err != nil {
		return r, err
	}
	return r, s.verifyObjects(ctx, &r)
}

// survey brings the index up to the log without taking it over, but for the links
// that it returns, which the caller may apply. The tail is the caller's to
// release.
func (s *Store) survey(ctx context.Context) (*foundTail, []openLink, error) {
	set, err := s.loadMembers(ctx)
	if err != nil {
		return nil, nil, err
	}
	s.members.Store(set)
	if err := s.apportion(set.w()); err != nil {
		return nil, nil, err
	}
	silent := map[id.Node]error{}
	for _, m := range set.all {
		if !m.readable() {
			if silent[m.info.ID] = m.whyNot(); !errors.Is(silent[m.info.ID], node.ErrMissing) {
				silent[m.info.ID] = errors.Join(m.whyNot(), node.ErrMissing)
			}
		}
	}
	head, err := s.index.Head()
	if err != nil {
		return nil, nil, err
	}
	tail, v, err := s.findLog(ctx, set, head, silent)
	if err != nil {
		return nil, nil, err
	}
	switch {
	case tail == nil:
		return nil, nil, fmt.Errorf("%w: the nodes hold no log", ErrDamaged)
	case tail.link.h.Seq < head.Seq:
		tail.pack.Release()
		return nil, nil, fmt.Errorf("%w: the index has applied sequence %d, the log on the nodes ends at %d", ErrDivergent, head.Seq, tail.link.h.Seq)
	case s.cfg.ReplayTo != 0 && head.Seq > s.cfg.ReplayTo:
		tail.pack.Release()
		return nil, nil, fmt.Errorf("%w: the index has applied sequence %d, which is past %d", ErrInvalid, head.Seq, s.cfg.ReplayTo)
	}
	held, err := s.catchUp(ctx, v, tail, head)
	if err != nil {
		tail.pack.Release()
		return nil, nil, err
	}
	return tail, held, nil
}

// verifyPacks reads every pack whole.
func (s *Store) verifyPacks(ctx context.Context, r *Report) error {
	var ids []id.Pack
	if err := s.view(func(rd index.Reader) error {
		return rd.EachPack(func(p id.Pack, _ index.PackRow) error {
			ids = append(ids, p)
			return nil
		})
	}); err != nil {
		return err
	}
	for _, p := range ids {
		if err := context.Cause(ctx); err != nil {
			return err
		}
		if err := s.verifyPack(ctx, r, p); err != nil {
			return err
		}
	}
	return nil
}

func (s *Store) verifyPack(ctx context.Context, r *Report, p id.Pack) error {
	var (
		g         geometry
		pk        index.PackRow
		residents []index.Resident
		rows      []index.ChunkRow
	)
	if err := s.view(func(rd index.Reader) (err error) {
		if pk, err = rd.Pack(p); err != nil {
			return err
		}
		if g, err = s.locate(rd, p); err != nil {
			return err
		}
		if residents, err = rd.Residents(p); err != nil {
			return err
		}
		for _, x := range residents {
			row, err := rd.Chunk(x.Realm, x.Chunk)
			if err != nil {
				return err
			}
			rows = append(rows, row)
		}
		return nil
	}); err != nil {
		return err
	}
	r.Packs++
	if empty(pk) {
		r.Dead++
		return nil
	}
	set := s.members.Load()
	w, err := s.newWhole(ctx, g, 0)
	if err != nil {
		return err
	}
	defer w.release()
	for _, place := range g.places {
		name := set.nameOf(place.Node)
		m := set.byID[place.Node]
		if m == nil && slices.ContainsFunc(g.places, func(x record.Place) bool { return x.Index == place.Index && set.byID[x.Node] != nil }) {
			continue // the shard lay on two nodes, and one of them was replaced
		}
		if m == nil || !m.readable() {
			r.damaged("missing", "pack %v, shard %d: node %s is not there", p, place.Index, name)
			continue
		}
		switch err := w.read(ctx, m, place); {
		case errors.Is(err, errOtherBytes):
			r.damaged("other bytes", "pack %v, shard %d on node %s has good checksums and is not what was written", p, place.Index, name)
		case errors.Is(err, node.ErrDamaged):
			r.damaged("rotten", "pack %v, shard %d on node %s: %v", p, place.Index, name, err)
			continue
		case errors.Is(err, node.ErrUnavailable):
			r.damaged("could not ask", "pack %v, shard %d on node %s: %v", p, place.Index, name, err)
			continue
		case err != nil:
			r.damaged("missing", "pack %v, shard %d on node %s: %v", p, place.Index, name, err)
			continue
		}
		r.Shards++
		r.Bytes += uint64(g.size)
	}
	there := 0
	for i := range g.k + g.m {
		switch {
		case slices.ContainsFunc(g.places, func(x record.Place) bool { return int(x.Index) == i }):
			there++
		case p != r.tail: // of the tail only those that were found have a place
			r.damaged("missing", "pack %v, shard %d: no node has it", p, i)
		}
	}
	if p == r.tail && there < g.k+g.m {
		r.Open = &OpenPack{Pack: p, Seq: pk.Seq, Shards: there, Of: g.k + g.m}
	}
	opened, err := w.assemble()
	if errors.Is(err, id.ErrNewer) {
		return err // what a newer version wrote is neither sound nor lost
	}
	if err != nil {
		if len(rows) > 0 {
			r.lost("unreadable pack", "pack %v with %d chunks: %v", p, len(rows), err)
			r.unread[p] = struct{}{}
		} else {
			r.damaged("unreadable pack", "pack %v, which holds no chunk any more: %v", p, err)
		}
		return nil
	}
	again, err := s.coder.Rebuild(opened)
	if err != nil {
		return err
	}
	defer again.Release()
	for _, place := range g.places {
		if w.shards[place.Index].Head != nil && again.Digests[place.Index] != place.Digest {
			r.damaged("parity", "pack %v, shard %d: coding the pack again gives other bytes", p, place.Index)
		}
	}
	for i, row := range rows {
		r.Chunks++
		err := s.verifyChunk(nil, row, residents[i], opened.Payload)
		if errors.Is(err, id.ErrNewer) {
			return err
		}
		if err != nil {
			r.lost("chunk", "pack %v, chunk at %d: %v", p, row.Offset, err)
			r.broken[index.Resident{Realm: residents[i].Realm, Chunk: residents[i].Chunk}] = struct{}{}
		}
	}
	return nil
}

// verifySnapshots reads the kept snapshots as a rebuild would.
func (s *Store) verifySnapshots(ctx context.Context, r *Report) error {
	var kept []index.SnapshotRow
	if err := s.view(func(rd index.Reader) (err error) {
		kept, err = rd.Snapshots()
		return err
	}); err != nil {
		return err
	}
	for _, k := range kept {
		rd := &snapshotReader{s: s, ctx: ctx, root: k.Root}
		err := index.CheckExport(rd, k.Bytes, k.Sum)
		rd.release()
		if err != nil {
			if cerr := context.Cause(ctx); cerr != nil {
				return cerr
			}
			if errors.Is(err, id.ErrNewer) {
				return fmt.Errorf("snapshot %d of the index: %w", k.Number, err)
			}
			r.lost("snapshot", "snapshot %d of the index: %v", k.Number, err)
		}
	}
	return nil
}

// errOtherID says that a chunk opens and is another one.
var errOtherID = errors.New("its bytes have another ID")

// verifyChunk opens a chunk and computes its ID. buf may hold the plaintext.
func (s *Store) verifyChunk(buf []byte, row index.ChunkRow, x index.Resident, payload []byte) error {
	realm, err := s.realm(x.Realm)
	if err != nil {
		return err
	}
	end := uint64(row.Offset) + uint64(row.Info.SealedLen)
	if end > uint64(len(payload)) {
		return fmt.Errorf("%w: it ends at %d of %d bytes", ErrDamaged, end, len(payload))
	}
	plain, err := realm.sealer.Open(buf[:0], row.Info, payload[row.Offset:end])
	if err != nil {
		return err
	}
	if got := realm.chunkID(row.Info.Kind, plain); got != x.Chunk {
		return fmt.Errorf("%w: %w", ErrDamaged, errOtherID)
	}
	return nil
}

// verifyObjects walks the manifest of every version of every object, and names those
// that need a chunk which was lost.
func (s *Store) verifyObjects(ctx context.Context, r *Report) error {
	return s.view(func(rd index.Reader) error {
		buckets, err := rd.Buckets()
		if err != nil {
			return err
		}
		for _, b := range buckets {
			opt := index.ListOptions{Limit: 1000, Versions: true}
			for {
				page, err := rd.List(b.ID, opt)
				if err != nil {
					return err
				}
				for _, o := range page.Objects {
					if o.Deleted {
						continue
					}
					what := fmt.Sprintf("%s/%s, version %v", b.Name, o.Key, o.Version)
					if hidden(b.Name) { // an upload on its way, or what a request came to
						what = fmt.Sprintf("of the store's own, %q in %s", o.Key, b.Name)
					} else {
						r.Objects++
					}
					err := s.verifyManifest(ctx, rd, r, b.Realm, o.Object)
					if errors.Is(err, id.ErrNewer) {
						return err
					}
					if err != nil {
						r.lost("object", "%s: %v", what, err)
					}
				}
				if !page.More {
					break
				}
				opt.After, opt.AfterVersion = page.Next, page.NextVersion
			}
		}
		return nil
	})
}

// verifyManifest checks that every chunk of a version has a row with the length
// that the manifest says. The chunks themselves were opened with their packs.
func (s *Store) verifyManifest(ctx context.Context, rd index.Reader, r *Report, realmID id.Realm, o index.Object) error {
	if err := o.Manifest.Check(); err != nil {
		return err
	}
	realm, err := s.realm(realmID)
	if err != nil {
		return err
	}
	w := walker{s: s, realm: realm, from: 0, to: o.Manifest.Size}
	w.stack = append(w.stack, part{refs: o.Manifest.Roots})
	for {
		l, err := w.next(ctx)
		if err != nil {
			if err == io.EOF {
				return nil
			}
			return err
		}
		row, err := rd.Chunk(realmID, l.ref.Chunk)
		if err != nil {
			return err
		}
		_, unread := r.unread[row.Pack]
		if _, broken := r.broken[index.Resident{Realm: realmID, Chunk: l.ref.Chunk}]; unread || broken {
			return fmt.Errorf("%w: a chunk of it, at byte %d, cannot be read", ErrDamaged, w.pos-l.ref.Len)
		}
		if uint64(row.Info.PlainLen) != l.ref.Len || row.Info.Kind != seal.Data {
			return fmt.Errorf("%w: a chunk of %d bytes where the manifest says %d", ErrDamaged, row.Info.PlainLen, l.ref.Len)
		}
	}
}

// naming puts the names of members in the place of their IDs, in text for people.
func (s *memberSet) naming() *strings.Replacer {
	var pairs []string
	for _, m := range s.all {
		pairs = append(pairs, m.info.ID.String(), m.info.Name)
	}
	return strings.NewReplacer(pairs...)
}

// nameOf is a member's name, or the ID of a node that is none any more.
func (s *memberSet) nameOf(n id.Node) string {
	if m := s.byID[n]; m != nil {
		return m.info.Name
	}
	return n.String()
}
