package store

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"cairn/id"
	"cairn/index"
	"cairn/node"
	"cairn/pack"
	"cairn/placement"
	"cairn/record"
)

// Repaired is what a repair did. Only what was read back is counted.
type Repaired struct {
	Packs  int // packs that were short and are whole again
	Shards int // shards made anew, written, read back and logged
	Found  int // chunks that were marked as damaged and are stored again
	Short  int // packs that are still short: see Errs
	Lost   int // packs that have fewer shards left than they need, for good
	// LostBytes is what those packs hold that something refers to, sealed.
	LostBytes uint64
	// Read and Written are bytes of shards: those that others were made of, and what was
	// written was read back too; and those that were made.
	Read, Written uint64
	Errs          []error
}

// errLost says that a pack has fewer shards left than it needs, and that none of
// those it lacks can come back: they were on nodes that are no members any more, or
// their nodes answer that they do not have them, or not as they were written.
var errLost = errors.New("too few of its shards are left")

// maxRepairErrs bounds the list of reasons.
const maxRepairErrs = 20

func (r *Repaired) fail(err error) {
	if len(r.Errs) < maxRepairErrs {
		r.Errs = append(r.Errs, err)
	}
}

// Repair makes shards anew that lay on nodes which are gone for good: replaced,
// or no members any more. What is to be done is read from the pack rows, never
// from a queue; running it twice does nothing twice. A shard is computed from
// others whose digests are those in the log, must itself have the logged digest,
// and counts once it has been written, read back and logged. One pack is in
// memory at a time, in the share reserved for that.
func (s *Store) Repair(ctx context.Context) (Repaired, error) {
	return s.repair(ctx, func(done, of uint64) {})
}

// shortPack is a pack with shards to be made.
type shortPack struct {
	pack  id.Pack
	spare int    // shards at hand beyond those it needs
	bytes uint64 // of the shards to be made
}

// repair is Repair; report is told how many bytes of shards it is through with. Packs
// that can lose the fewest shards come first.
func (s *Store) repair(ctx context.Context, report func(done, of uint64)) (Repaired, error) {
	var out Repaired
	select {
	case s.repairing <- struct{}{}:
		defer func() { <-s.repairing }()
	case <-ctx.Done():
		return out, context.Cause(ctx)
	}
	var (
		short      []shortPack
		past       uint64
		done, todo uint64
	)
	if err := s.view(func(r index.Reader) error {
		head, err := r.Head()
		if err != nil {
			return err
		}
		if past, err = snapshotsPast(r); err != nil {
			return err
		}
		set := s.members.Load()
		return r.EachPack(func(p id.Pack, row index.PackRow) error {
			if p == head.Pack || empty(row) {
				return nil
			}
			missing := len(shortOf(set, row))
			if missing == 0 || forgone(set, row, past) {
				return nil
			}
			at := heldBy(row.Shards, func(n id.Node) bool { m := set.byID[n]; return m != nil && m.readable() })
			short = append(short, shortPack{p, at - int(row.K), uint64(missing) * uint64(row.Size)})
			todo += short[len(short)-1].bytes
			return nil
		})
	}); err != nil {
		return out, err
	}
	slices.SortStableFunc(short, func(a, b shortPack) int { return cmp.Compare(a.spare, b.spare) })
	lost, whole := map[id.Pack]bool{}, false
	defer func() {
		if known := s.lost.Load(); !whole && known != nil { // what was not come to is as it was
			maps.Copy(lost, *known)
		}
		s.lost.Store(&lost)
	}()
	var (
		batch         []remade
		shards, bytes int
		chunks        int // that can be read again
		problem       = func(p id.Pack, err error) {
			if s.dropped(p) {
				return // what is found of a pack that is none any more says nothing
			}
			if errors.Is(err, errLost) {
				row, lerr := s.lose(ctx, p)
				lost[p] = true
				if lerr == nil && row.Live == 0 && (row.Kind != pack.Log || row.Seq <= past) {
					return // nothing that is needed was in it
				}
				if lerr == nil && row.Kind == pack.Log {
					s.replaceLog(row.Seq)
				}
				out.Lost++
				out.LostBytes += row.Live
				err = errors.Join(err, lerr)
			} else {
				out.Short++
			}
			out.fail(fmt.Errorf("pack %v: %w", p, err))
		}
		flush = func() error {
			moved, err := s.logRemade(context.WithoutCancel(ctx), batch) // what is written is not thrown away
			for i := range batch {
				switch {
				case err != nil:
					problem(batch[i].pack, err)
				case moved[i]:
					problem(batch[i].pack, fmt.Errorf("%w: the pack was dropped, or the shard has another place already", ErrRetry))
				case len(batch[i].shards) > 0:
					out.Packs++
					out.Shards += len(batch[i].shards)
					n, ferr := s.regain(context.WithoutCancel(ctx), batch[i].pack, batch[i].found)
					if out.Found += n; ferr != nil {
						out.fail(ferr)
						err = errors.Join(err, over(ferr))
					}
				}
			}
			batch, shards, bytes, chunks = batch[:0], 0, 0, 0
			return err
		}
	)
	for _, x := range short {
		p := x.pack
		report(done, todo)
		done += x.bytes
		var (
			r    remade
			size int
			err  = context.Cause(ctx)
		)
		if err == nil {
			r, size, err = s.repairPack(ctx, p)
			if errors.Is(err, errLost) { // one wrong reading gives up no pack
				r, size, err = s.repairPack(ctx, p)
			}
		}
		if cerr := context.Cause(ctx); err != nil && cerr != nil { // which says nothing of the pack
			return out, errors.Join(cerr, flush())
		}
		if err != nil {
			problem(p, err)
			if over(err) != nil {
				return out, err
			}
			continue
		}
		out.Read += r.read
		out.Written += uint64(size)
		batch, shards, bytes, chunks = append(batch, r), shards+len(r.shards), bytes+size, chunks+len(r.found)
		if shards >= repairShards || bytes >= repairBytes || chunks >= repairChunks {
			if err := flush(); over(err) != nil {
				return out, err
			}
		}
	}
	if err := flush(); over(err) != nil {
		return out, err
	}
	if len(short) > 0 {
		report(todo, todo)
	}
	whole = true
	return out, nil
}

// RepairResult is what a run of [JobRepair] did.
type RepairResult struct {
	Packs     int    `json:"packs"`
	Shards    int    `json:"shards"`
	Found     int    `json:"found_chunks,omitempty"`
	Short     int    `json:"short"`
	Lost      int    `json:"lost"`
	LostBytes uint64 `json:"lost_bytes"`
	Read      uint64 `json:"read_bytes,omitempty"`
	Written   uint64 `json:"written_bytes,omitempty"`
	// Suspects are packs of which a read found a shard missing or damaged. What was made
	// anew of them is among Shards.
	Suspects int `json:"suspect_packs,omitempty"`
}

// runRepair is one run of [JobRepair].
func (s *Store) runRepair(ctx context.Context, r *run) (any, error) {
	out, err := s.repair(ctx, func(done, of uint64) {
		r.found()
		r.report(done, of, "bytes")
	})
	if err == nil {
		err = errors.Join(out.Errs...)
	}
	suspects := 0
	if ctx.Err() == nil {
		var serr error
		suspects, serr = s.repairSuspects(ctx, r, &out)
		err = errors.Join(err, serr)
	}
	switch {
	case ctx.Err() != nil:
	case err != nil:
		s.log.Error("repair ended early", "packs", out.Packs, "shards", out.Shards, "short", out.Short, "lost", out.Lost, "err", err)
	case out.Packs > 0:
		s.log.Info("repaired", "packs", out.Packs, "shards", out.Shards)
	}
	return RepairResult{Packs: out.Packs, Shards: out.Shards, Found: out.Found, Short: out.Short, Lost: out.Lost, LostBytes: out.LostBytes,
		Read: out.Read, Written: out.Written, Suspects: suspects}, err
}

// The new places of many packs go into one log pack, within these bounds: a log
// pack is itself a pack that the next loss leaves short, and with one for each
// repaired pack every loss would nearly double the log.
const (
	repairShards = 256
	repairBytes  = 256 << 20 // written and not yet logged: what a crash makes orphans of
	repairChunks = 16 << 10  // that can be read again, and are held until it is logged
)

// remade is a pack with shards made anew, written and read back.
type remade struct {
	pack   id.Pack
	shards []*record.Reshard
	found  []index.ChunkRow // of the pack, which was opened: marked as damaged, and they open
	read   uint64           // bytes of shards that were read for it
}

// logRemade logs the new places of the batch. moved says of which packs nothing
// was logged, because they were dropped or changed meanwhile: they are gone, the old
// place is another one, or the new one is on a node that has a shard of the pack by now
// or is about to leave.
func (s *Store) logRemade(ctx context.Context, batch []remade) (moved []bool, err error) {
	if !slices.ContainsFunc(batch, func(b remade) bool { return len(b.shards) > 0 }) {
		return make([]bool, len(batch)), nil
	}
	err = s.writer.submit(ctx, &submission{decide: func(d *decision) (func() error, error) {
		moved = make([]bool, len(batch))
		for i := range batch {
			now, err := d.round.Pack(batch[i].pack)
			switch {
			case errors.Is(err, index.ErrNotFound):
				moved[i] = true
			case err != nil:
				return nil, &fatalError{err}
			}
			for _, r := range batch[i].shards {
				moved[i] = moved[i] || !r.Old.Node.IsZero() && !slices.Contains(now.Shards, r.Old) || !s.mayMove(now, batch[i].shards, r)
			}
		}
		return func() error {
			for i := range batch {
				if moved[i] {
					continue
				}
				for _, r := range batch[i].shards {
					if err := d.emit(r); err != nil {
						return err
					}
				}
			}
			return nil
		}, nil
	}})
	return moved, err
}

// mayMove reports whether the new place of a shard is on a member that stays and that
// holds no other shard of the pack, once those of the batch have moved.
func (s *Store) mayMove(row index.PackRow, batch []*record.Reshard, r *record.Reshard) bool {
	m := s.members.Load().byID[r.New.Node]
	if m == nil || m.isClosed() {
		return false
	}
	for _, x := range row.Shards {
		if x.Node == r.New.Node && x.Index != r.Index && !slices.ContainsFunc(batch, func(o *record.Reshard) bool { return o.Old == x }) {
			return false
		}
	}
	return !slices.ContainsFunc(batch, func(o *record.Reshard) bool { return o != r && o.New.Node == r.New.Node && o.Index != r.Index })
}

// snapshotsPast is the sequence up to which no kept snapshot needs the log: the older
// one's number, 0 without two.
func snapshotsPast(r index.Reader) (uint64, error) {
	kept, err := r.Snapshots()
	if err != nil || len(kept) < 2 {
		return 0, err
	}
	return kept[1].Number, nil
}

// dropped reports whether a pack is no part of the store any more.
func (s *Store) dropped(p id.Pack) bool {
	err := s.view(func(r index.Reader) error {
		_, err := r.Pack(p)
		return err
	})
	return errors.Is(err, index.ErrNotFound)
}

// forgone reports whether a log pack cannot be had again and is not needed: nothing but
// records is in it, and the snapshots stand behind it.
func forgone(set *memberSet, row index.PackRow, past uint64) bool {
	return row.Kind == pack.Log && row.Residents == 0 && row.Seq <= past && len(row.Shards) > 0 &&
		heldBy(row.Shards, func(n id.Node) bool { return set.byID[n] != nil }) < int(row.K)
}

// replaceLog asks for snapshots behind a log pack that is lost: until there is one, an
// index that is lost could not be made anew.
func (s *Store) replaceLog(seq uint64) {
	for {
		was := s.lostLog.Load()
		if seq <= was || s.lostLog.CompareAndSwap(was, seq) {
			break
		}
	}
	s.snapshotSoon()
}

// empty reports whether no chunk lies in a data pack any more: its shards are not
// worth a repair, nor a loss.
func empty(row index.PackRow) bool { return row.Kind == pack.Data && row.Residents == 0 }

// shortOf lists the places of a pack that are on no member any more, and those
// that it never had. A member that is only away does not count: it may be back.
func shortOf(set *memberSet, row index.PackRow) []record.Place {
	var out []record.Place
	for i := range int(row.K) + int(row.M) {
		var (
			gone record.Place
			good bool
		)
		gone.Index = uint8(i)
		for _, p := range row.Shards {
			if int(p.Index) != i {
				continue
			}
			if set.byID[p.Node] != nil {
				good = true
				break
			}
			gone = p
		}
		if !good {
			out = append(out, gone)
		}
	}
	return out
}

// repairPack makes the missing shards of one pack, writes them and reads them
// back; size is how many bytes they have. They count once they are logged.
func (s *Store) repairPack(ctx context.Context, p id.Pack) (out remade, size int, err error) {
	return s.makeAnew(ctx, p, shortOf)
}

// makeAnew makes those shards of one pack anew, elsewhere, whose places which chooses.
func (s *Store) makeAnew(ctx context.Context, p id.Pack, which func(*memberSet, index.PackRow) []record.Place) (out remade, size int, err error) {
	out.pack = p
	var (
		row index.PackRow
		g   geometry
		set = s.members.Load()
	)
	var marked []index.ChunkRow
	if err := s.view(func(r index.Reader) (err error) {
		if row, err = r.Pack(p); err != nil {
			return err
		}
		if g, err = s.locate(r, p); err == nil {
			marked, err = markedIn(r, p)
		}
		return err
	}); err != nil {
		return out, 0, err
	}
	missing := which(set, row)
	if len(missing) == 0 || len(g.places) == 0 {
		return out, 0, nil
	}
	plain := 0 // bytes of the largest chunk that may be opened
	for _, row := range marked {
		plain = max(plain, int(row.Info.PlainLen))
	}
	w, err := s.newWhole(ctx, g, weigh(plain))
	if err != nil {
		return out, 0, err
	}
	defer w.release()
	var (
		have    int
		errs    []error
		perhaps = make([]bool, g.k+g.m) // shards of which a node that does not answer may have one
	)
	for _, place := range g.places {
		m := set.byID[place.Node]
		if have == g.k || m == nil || w.shards[place.Index].Head != nil {
			continue
		}
		if !m.readable() {
			perhaps[place.Index] = true
			continue
		}
		if err := w.read(ctx, m, place); err != nil {
			if ctx.Err() == nil && !errors.Is(err, errOtherBytes) {
				m.noteRead(err, s.now())
			}
			perhaps[place.Index] = perhaps[place.Index] || !lostForGood(err)
			errs = append(errs, err)
			continue
		}
		have++
		out.read += uint64(g.size)
	}
	opened, err := w.assemble()
	if err != nil {
		left := 0
		for i, sh := range w.shards {
			if sh.Head != nil || perhaps[i] {
				left++
			}
		}
		if left < g.k {
			err = fmt.Errorf("%w, %d of the %d it needs: %w", errLost, left, g.k, err)
		}
		return out, 0, errors.Join(append([]error{err}, errs...)...)
	}
	enc, err := s.coder.Rebuild(opened)
	if err != nil {
		return out, 0, err
	}
	defer enc.Release()
	to, keep, free := s.elsewhere(set, g, row.Kind, missing)
	if free < len(missing) {
		return out, 0, fmt.Errorf("%w: %d nodes are free to take %d shards; not up: %s", ErrUnavailable, free, len(missing), s.notUp(set.all))
	}
	for _, old := range missing {
		if !old.Node.IsZero() && enc.Digests[old.Index] != old.Digest {
			return out, 0, fmt.Errorf("%w: shard %d of pack %v made anew is not what was written", ErrDamaged, old.Index, p)
		}
		place, err := s.placeShard(ctx, p, old.Index, enc.Shards[old.Index], enc.Digests[old.Index], to, &keep)
		if err != nil {
			return out, 0, err
		}
		size += enc.Header.ShardLen()
		out.read += uint64(enc.Header.ShardLen()) // read back
		out.shards = append(out.shards, &record.Reshard{Pack: p, Index: old.Index, Old: old, New: place})
	}
	if len(marked) > 0 {
		buf := s.chunks.get(plain)
		defer s.chunks.put(buf)
		for _, row := range marked {
			if s.verifyChunk(buf, row, index.Resident{Realm: row.Realm, Chunk: row.Chunk}, opened.Payload) == nil {
				out.found = append(out.found, row)
			}
		}
	}
	return out, size, nil
}

// markedIn lists the chunks that lie in a pack and are marked as damaged.
func markedIn(r index.Reader, p id.Pack) (out []index.ChunkRow, err error) {
	residents, err := r.Residents(p)
	if err != nil {
		return nil, err
	}
	for _, x := range residents {
		row, err := r.Chunk(x.Realm, x.Chunk)
		if err != nil {
			return nil, err
		}
		if row.State == index.Damaged {
			out = append(out, row)
		}
	}
	return out, nil
}

// elsewhere says where shards of a pack may go that have no place any more: to one
// of the free members, which hold no shard of it, by placement's order. keep are
// those that hold one, but for the places that are given up.
func (s *Store) elsewhere(set *memberSet, g geometry, kind pack.Kind, givenUp []record.Place) (to *placed, keep []*member, free int) {
	to = &placed{pack: g.pack, k: g.k, m: g.m, by: map[id.Node]*member{}}
	// The failure domains of the shards that stay count too. A shard may lie on two
	// nodes, when one lagged and another took its place; it counts once.
	kept := make([]bool, g.k+g.m)
	for _, x := range g.places {
		if m := set.byID[x.Node]; m != nil && !kept[x.Index] && !slices.Contains(givenUp, x) {
			kept[x.Index] = true
			keep = append(keep, m)
			to.nodes = append(to.nodes, m.candidate())
		}
	}
	for _, m := range usable(set.takers, s.now()) {
		if !slices.ContainsFunc(g.places, func(x record.Place) bool { return x.Node == m.info.ID }) && (kind != pack.Log || slices.Contains(set.log, m)) {
			to.nodes, to.by[m.info.ID] = append(to.nodes, m.candidate()), m
			free++
		}
	}
	return to, keep, free
}

// lostForGood reports whether a node answered that it does not have a shard, or
// not as it was written. That a node could not be asked says nothing.
func lostForGood(err error) bool {
	if errors.Is(err, node.ErrUnavailable) || errors.Is(err, node.ErrMissing) || errors.Is(err, node.ErrClosed) {
		return false
	}
	return errors.Is(err, node.ErrNotFound) || errors.Is(err, node.ErrDamaged) || errors.Is(err, errOtherBytes)
}

// loss is one record of a lost pack, as a submission.
type loss struct {
	sub  *submission
	row  index.PackRow
	more bool // chunks may be left that are not marked
}

// loss makes the submission that marks chunks of a pack as damaged.
func (s *Store) loss(p id.Pack) *loss {
	l := &loss{}
	l.sub = &submission{decide: func(d *decision) (func() error, error) {
		l.more = false
		row, err := d.round.Pack(p)
		if errors.Is(err, index.ErrNotFound) {
			return func() error { return nil }, nil
		}
		n := 0
		if err == nil {
			l.row = row
			n, err = d.round.Undamaged(p, s.cfg.loseAtOnce)
		}
		if err != nil {
			return nil, &fatalError{err}
		}
		return func() error {
			if n == 0 {
				return nil
			}
			l.more = n == s.cfg.loseAtOnce
			s.marked.Store(true)
			return d.emit(&record.Lost{Pack: p, Chunks: uint32(n)})
		}, nil
	}}
	return l
}

// lose logs that the chunks of a pack are lost, so that they are no hits any more
// and the next upload of the same bytes heals them. It returns the pack's row, which
// says how many of its bytes something refers to.
func (s *Store) lose(ctx context.Context, p id.Pack) (row index.PackRow, err error) {
	for {
		l := s.loss(p)
		if err := s.writer.submit(ctx, l.sub); err != nil {
			return row, fmt.Errorf("its chunks could not be marked as damaged: %w", err)
		}
		if row = l.row; row.Kind == pack.Snapshot {
			s.snapshotGone()
		}
		if !l.more {
			return row, nil
		}
	}
}

// regain logs that chunks of a pack which are marked as damaged can be read again, and
// counts them: they were opened, in a pack that is as wide as it was promised. What was
// stored again meanwhile, or lies elsewhere, is not among them.
func (s *Store) regain(ctx context.Context, p id.Pack, chunks []index.ChunkRow) (n int, err error) {
	for part := range slices.Chunk(chunks, s.cfg.loseAtOnce) {
		var rec record.Found
		if err := s.writer.submit(ctx, &submission{decide: func(d *decision) (func() error, error) {
			rec = record.Found{Pack: p}
			for _, c := range part {
				row, err := d.round.Chunk(c.Realm, c.Chunk)
				if err != nil && !errors.Is(err, index.ErrNotFound) {
					return nil, &fatalError{err}
				}
				if err == nil && row.Pack == p && row.Offset == c.Offset && row.State == index.Damaged {
					rec.Offsets = append(rec.Offsets, c.Offset)
				}
			}
			return func() error {
				if len(rec.Offsets) == 0 {
					return nil
				}
				return d.emit(&rec)
			}, nil
		}}); err != nil {
			return n, fmt.Errorf("pack %v: chunks that can be read again are still marked as damaged: %w", p, err)
		}
		n += len(rec.Offsets)
	}
	if n > 0 {
		s.log.Info("chunks that were taken for lost can be read again", "pack", p.String(), "chunks", n)
		s.foundAgain(p)
	}
	return n, nil
}

// foundAgain takes a pack out of those that the last repair found lost.
func (s *Store) foundAgain(p id.Pack) {
	for {
		known := s.lost.Load()
		if known == nil || !(*known)[p] {
			return
		}
		without := maps.Clone(*known)
		delete(without, p)
		if s.lost.CompareAndSwap(known, &without) {
			return
		}
	}
}

// whole is a pack being read whole. Data shards are read to where they belong in
// its stream, so that putting them together copies nothing.
type whole struct {
	s       *Store
	g       geometry
	stream  []byte // k slices
	heads   []byte
	parity  [][]byte // slices of other shards, lent
	shards  []pack.Shard
	digests [][16]byte
	weight  int64
}

// wholeMemory is what it takes to open a pack and code it again: its stream, and
// parity that is first read and then made. Copies of one shard are all the same
// bytes.
func wholeMemory(g geometry) int64 {
	n := weigh(g.k*g.slice) + weigh((g.k+g.m)*g.body)
	if g.k > 1 {
		return n + int64(g.m)*weigh(g.slice)
	}
	return n + weigh(g.slice)
}

// newWhole waits for the memory. A pack that takes more than the whole share, one
// narrower than any that is written with so little memory, takes all of it. more is what
// the caller needs beside it.
func (s *Store) newWhole(ctx context.Context, g geometry, more int64) (*whole, error) {
	w := &whole{s: s, g: g, shards: make([]pack.Shard, g.k+g.m), digests: make([][16]byte, g.k+g.m)}
	w.weight = min(wholeMemory(g)+more, s.mem.repair.Limit())
	if err := busy(s.mem.repair.Acquire(ctx, w.weight)); err != nil {
		return nil, err
	}
	w.stream, w.heads = s.chunks.get(g.k*g.slice), s.chunks.get((g.k+g.m)*g.body)
	return w, nil
}

// errOtherBytes says that a node gave bytes with good checksums of its own that
// are not those that were written.
var errOtherBytes = errors.New("not what was written")

// read reads a shard whole and holds it against its digest.
func (w *whole) read(ctx context.Context, m *member, place record.Place) error {
	s, p, i := w.s, w.g.pack, int(place.Index)
	var slice []byte
	if i < w.g.k {
		slice = w.stream[i*w.g.slice : (i+1)*w.g.slice : (i+1)*w.g.slice]
	} else {
		slice = s.chunks.get(w.g.slice)
		w.parity = append(w.parity, slice)
	}
	head := w.heads[i*w.g.body : (i+1)*w.g.body : (i+1)*w.g.body]
	k := node.Key{Pack: p, Index: place.Index}
	err := s.readFrom(ctx, m, k, 0, head)
	if err == nil {
		err = s.readFrom(ctx, m, k, int64(len(head)), slice)
	}
	if err != nil {
		return err
	}
	sh := pack.Shard{Head: head, Slice: slice}
	h, err := pack.ParseHeader(head)
	if err == nil {
		err = h.CheckBody(sh)
	}
	if err != nil {
		err = fmt.Errorf("shard %d of pack %v on node %s: %w: %w", place.Index, p, m.info.Name, errOtherBytes, err)
	}
	if err == nil && !s.coder.CheckDigest(p, place.Index, sh, place.Digest) {
		err = fmt.Errorf("shard %d of pack %v on node %s: %w: %w", place.Index, p, m.info.Name, errOtherBytes, node.ErrDamaged)
	}
	if err == nil {
		w.shards[i], w.digests[i] = sh, place.Digest
	}
	return err
}

// assemble puts the shards that were read together. What it returns lies in w.
func (w *whole) assemble() (*pack.Opened, error) {
	opened, err := w.s.coder.Assemble(w.g.pack, w.shards, w.digests, w.stream)
	for _, b := range w.parity {
		w.s.chunks.put(b)
	}
	w.parity = nil
	return opened, err
}

func (w *whole) release() {
	for _, b := range append(w.parity, w.stream, w.heads) {
		w.s.chunks.put(b)
	}
	w.s.mem.repair.Release(w.weight)
}

// readBack holds a shard that was written against what was written.
func (s *Store) readBack(ctx context.Context, m *member, k node.Key, sh pack.Shard) error {
	buf := s.chunks.get(strip)
	defer s.chunks.put(buf)
	off := int64(0)
	for _, want := range [][]byte{sh.Head, sh.Slice} {
		for len(want) > 0 {
			n := min(len(want), strip)
			if err := s.readFrom(ctx, m, k, off, buf[:n]); err != nil {
				return err
			}
			if !bytes.Equal(buf[:n], want[:n]) {
				return fmt.Errorf("shard %d of pack %v on node %s: %w: %w", k.Index, k.Pack, m.info.Name, errOtherBytes, node.ErrDamaged)
			}
			want, off = want[n:], off+int64(n)
		}
	}
	return nil
}

// placeShard writes one shard to a member that holds none of the pack, and reads
// it back. A node that does not answer in time keeps a copy of it until it does.
func (s *Store) placeShard(ctx context.Context, p id.Pack, index uint8, sh pack.Shard, digest [16]byte, to *placed, keep *[]*member) (record.Place, error) {
	var errs []error
	for {
		var kept []id.Node
		for _, m := range *keep {
			kept = append(kept, m.info.ID)
		}
		n, err := placement.Replace(p, to.nodes, to.k, to.m, kept, to.failed)
		if err != nil {
			return record.Place{}, fmt.Errorf("%w: no node took shard %d: %w", ErrUnavailable, index, errors.Join(append(errs, err)...))
		}
		m := to.by[n]
		inst, err := s.putRemade(ctx, m, node.Shard{Head: sh.Head, Body: sh.Slice})
		if err == nil {
			place := record.Place{Node: m.info.ID, Index: index, Instance: inst, Digest: digest}
			if err = s.readBack(ctx, m, node.Key{Pack: p, Index: index}, sh); err == nil {
				*keep = append(*keep, m)
				return place, nil
			}
		}
		if cerr := context.Cause(ctx); cerr != nil {
			return record.Place{}, cerr // which says nothing of the node
		}
		m.notePut(node.ForRepair, err, s.now())
		to.failed = append(to.failed, n)
		errs = append(errs, fmt.Errorf("node %s: %w", m.info.Name, err))
	}
}

// putRemade is one put of a shard made anew. The node is given a copy, so that one
// that hangs does not keep the whole pack, and with it the next one waiting.
func (s *Store) putRemade(ctx context.Context, m *member, sh node.Shard) (id.Instance, error) {
	var inst id.Instance
	buf := s.chunks.get(len(sh.Head) + len(sh.Body))
	n := copy(buf, sh.Head)
	copy(buf[n:], sh.Body)
	sh = node.Shard{Head: buf[:n:n], Body: buf[n:]}
	err := s.inTime(ctx, m, func() error {
		i, err := m.st.Put(ctx, s.auth, node.ForRepair, sh)
		s.chunks.put(buf)
		inst = i
		return err
	})
	if err != nil {
		return 0, err // inst may still be written
	}
	return inst, nil
}

// inTime is one call that changes something on a member, with a deadline: a disk
// that hangs must not hang a job. Until it answers it takes nothing else.
func (s *Store) inTime(ctx context.Context, m *member, call func() error) error {
	done := make(chan error, 1)
	go func() { done <- call() }() // ends when the node's call does
	t := time.NewTimer(s.cfg.Patience)
	defer t.Stop()
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-t.C:
		m.lag(1)
		go func() {
			<-done
			m.lag(-1)
		}()
		return fmt.Errorf("no answer within %v: %w", s.cfg.Patience, node.ErrUnavailable)
	}
}

// repairSoon starts a repair in the background, unless one waits already.
func (s *Store) repairSoon(trigger string) {
	select {
	case s.wantRepair <- trigger:
	default:
	}
}

// repairLoop runs repairs as they are asked for. One that was under way when a node
// was lost may not have seen that: another follows it.
func (s *Store) repairLoop(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case trigger := <-s.wantRepair:
			for ran := false; !ran && ctx.Err() == nil; {
				var err error
				if ran, err = s.runJob(ctx, JobRepair, trigger); err != nil { // runRepair says why
					break
				}
			}
		}
	}
}
