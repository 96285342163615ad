package sim

import (
	"bytes"
	"context"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"
)

// edit replaces one text, which must occur exactly once in the file.
type edit struct {
	file, old, new string
}

// mutant is a planted bug: edits to the engine, and the suite that must fail.
type mutant struct {
	name  string
	bug   string
	edits []edit
	pkg   string   // whose tests are run; the simulation when it is empty
	args  []string // further arguments of go test
	seeds int      // of the simulation; default 60
	env   []string
}

// early answers the log writer before the pack is durable, and lets the put go on
// behind it; cond chooses the packs.
func early(cond string) []edit {
	return []edit{{"store/link.go", `	places, err := s.putPack(ctx, l.why, enc, pl, release)
`, `	if ` + cond + ` {
		places := make([]record.Place, len(enc.Shards))
		for i := range places {
			places[i] = record.Place{Node: pl.targets[i].info.ID, Index: uint8(i), Instance: 1, Digest: enc.Digests[i]}
		}
		go s.putPack(context.WithoutCancel(ctx), node.ForLog, enc, pl, release)
		return h, places, in.Meta, nil
	}
	places, err := s.putPack(ctx, l.why, enc, pl, release)
`}}
}

var mutants = []mutant{
	{name: "W1", bug: "answer when k'+m-1 shards are durable", edits: []edit{
		{"store/members.go", "	for done < len(shards) {\n		// A put lags", "	for done < len(shards)-1 {\n		// A put lags"},
		{"store/members.go", "	return places, nil\n}\n", `	for i := range places {
		if places[i].Node.IsZero() {
			places[i] = record.Place{Node: current[i].info.ID, Index: uint8(i), Instance: 1, Digest: enc.Digests[i]}
		}
	}
	return places, nil
}
`}}},
	{name: "W2", bug: "send the next log pack while the last is in flight", edits: []edit{
		{"store/link.go", `	places, err := s.putPack(ctx, l.why, enc, pl, release)
	return h, places, in.Meta, err
`, `	if l.begin == nil && l.also == nil {
		places := make([]record.Place, len(enc.Shards))
		for i := range places {
			places[i] = record.Place{Node: pl.targets[i].info.ID, Index: uint8(i), Instance: 1, Digest: enc.Digests[i]}
		}
		s.writer.flight = make(chan error, 1)
		go func(flight chan error) {
			ctx, cancel := context.WithTimeout(context.Background(), s.cfg.Patience)
			defer cancel()
			_, err := s.putPack(ctx, l.why, enc, pl, release)
			flight <- err
		}(s.writer.flight)
		return h, places, in.Meta, nil
	}
	places, err := s.putPack(ctx, l.why, enc, pl, release)
	return h, places, in.Meta, err
`},
		{"store/writer.go", "	wake    chan struct{}\n", "	wake    chan struct{}\n	flight  chan error\n"},
		{"store/writer.go", `			for i, sub := range subs[:len(outcome)] {
				sub.finish(outcome[i])
			}
`, `			go func(flight chan error) {
				var err error
				if flight != nil {
					if err = <-flight; err != nil {
						err = fmt.Errorf("%w: %w", ErrUnknown, err)
					}
				}
				for i, sub := range subs[:len(outcome)] {
					if outcome[i] == nil {
						outcome[i] = err
					}
					sub.finish(outcome[i])
				}
			}(w.flight)
			w.flight = nil
`}}},
	{name: "W3", bug: "walk the chain forwards, at a fork to the highest (epoch, attempt)", edits: []edit{
		{"store/recover.go", `	for _, l := range v.links {
		if l.complete() && (tail == nil || l.h.Position().Compare(tail.h.Position()) > 0) {
			tail = l
		}
	}
`, `	for {
		var next *chainLink
		for _, l := range v.links {
			switch {
			case !l.complete() || tail != nil && l.h.Prev != tail.h.Pack:
			case next == nil, tail == nil && l.h.Seq < next.h.Seq,
				(tail != nil || l.h.Seq == next.h.Seq) && cmp.Or(cmp.Compare(l.h.Epoch, next.h.Epoch), cmp.Compare(l.h.Attempt, next.h.Attempt)) > 0:
				next = l
			}
		}
		if next == nil {
			break
		}
		tail = next
	}
`}}, pkg: "./store/sim", args: []string{"-run", "TestForkIsNotChosenForwards"}},
	{name: "W4", bug: "in recovery, count a damaged shard as an answer", edits: []edit{
		{"store/recover.go", "			v.silent[d.m.info.ID] = d.err\n", "			_ = d.err\n"}}, pkg: "./store/sim", args: []string{"-run", "TestDamagedTailIsNoAnswer"}},
	{name: "W4b", bug: "in recovery, count a wiped node as an answer", edits: []edit{
		{"store/recover.go", "		if v.silent[m.info.ID] != nil {\n			count++", "		if err := v.silent[m.info.ID]; err != nil && !errors.Is(err, node.ErrMissing) {\n			count++"},
		{"store/recover.go", "		need := len(set.log) - set.m()\n		if refused", "		need := len(set.log) - set.m()\n		for _, err := range silent {\n			if errors.Is(err, node.ErrMissing) {\n				need--\n			}\n		}\n		if refused"}}},
	{name: "W5", bug: "serve reads before the begin pack is at full width", edits: early("l.begin != nil && l.seq > 1 && l.also == nil"), seeds: 200},
	{name: "W6", bug: "stamp versions with the clock inside Apply", edits: []edit{
		{"index/apply.go", "o := Object{Version: r.version(), Time: p.Time,", "o := Object{Version: r.version(), Time: time.Now().UnixNano(),"},
		{"index/apply.go", "import (\n", "import (\n	\"time\"\n"}}},
	{name: "W7", bug: "drop pieces of snapshots on the word of an index that is not proved", edits: []edit{
		{"store/snapshot.go", "	if err := s.proveIndex(ctx); err != nil {\n		return err\n	}\n	for part", "	for part"}},
		pkg: "./store", args: []string{"-run", "TestDamagedIndexTakesNothingAway"}},
	{name: "W8", bug: "rebuild an index that is ahead of the tail instead of stopping", edits: []edit{
		{"store/open.go", "	if tail.link.h.Seq < indexHead.Seq {\n		return fmt.Errorf(", "	if tail.link.h.Seq < indexHead.Seq {\n		if err := s.index.Close(); err != nil {\n			return err\n		}\n		db, err := kv.Open(memkv.New(memkv.Options{}), s.kvConfig())\n		if err != nil {\n			return err\n		}\n		if s.index, err = index.Open(db, index.Config{}); err != nil {\n			return err\n		}\n		indexHead = index.Head{}\n		if tail, v, err = s.findLog(ctx, set, indexHead, silent); err != nil {\n			return err\n		}\n	}\n	if tail.link.h.Seq < indexHead.Seq {\n		return fmt.Errorf("},
		{"store/open.go", "	\"cairn/index/kv\"\n", "	\"cairn/index/kv\"\n	\"cairn/index/kv/memkv\"\n"}}, pkg: "./store/sim", args: []string{"-run", "TestIndexThatKnowsMoreStopsTheStart"}},
	{name: "W7b", bug: "collect on the word of an index that is not proved", edits: []edit{
		{"store/collect.go", "	if err := c.s.proveIndex(ctx); err != nil {\n		return err\n	}\n", ""}},
		pkg: "./store", args: []string{"-run", "TestDamagedIndexCollectsNothing"}},
	{name: "W9", bug: "cut the log behind the newest snapshot, not the older one", edits: []edit{
		{"store/collect.go", "	return kept[1].Number, nil\n", "	return kept[0].Number, nil\n"},
		{"index/collect.go", "		past = kept[1].Number\n", "		past = kept[0].Number\n"}},
		pkg: "./store", args: []string{"-run", "TestOlderSnapshotIsEnough"}},
	{name: "W10", bug: "remove while older transfers run: no fence", edits: []edit{
		{"store/collect.go", "x.Since > until, ", "x.Since > max(until, 1<<62), "}},
		pkg: "./store", args: []string{"-run", "TestTransfersKeepWhatTheyRelyOn"}},
	{name: "W11", bug: "let a move act when the chunk has left the pack", edits: []edit{
		{"store/rewrite.go", " || err == nil && row.Pack != p {\n", " || err == nil && row.Pack.IsZero() {\n"}},
		pkg: "./store", args: []string{"-run", "TestMovedMeanwhile"}},
	{name: "W12", bug: "drop a pack at 0 live bytes, residents unseen", edits: []edit{
		{"store/collect.go", "	if row.Residents > 0 || p == head {\n", "	if row.Live > 0 || p == head {\n"},
		{"store/collect.go", "			if !free {\n", "			if !free && false {\n"}},
		pkg: "./store", args: []string{"-run", "TestTransfersKeepWhatTheyRelyOn"}},
	{name: "W14", bug: "decode a shard with good CRCs without comparing its digest", edits: []edit{
		{"store/repair.go", "	if err == nil && !s.coder.CheckDigest(p, place.Index, sh, place.Digest) {", "	if err == nil && false {"},
		{"store/read.go", "			if err != nil || !s.coder.CheckDigest(", "			if err != nil || false && !s.coder.CheckDigest("}}},
	{name: "W15", bug: "leave the last shard's filling as the pool gave it", edits: []edit{
		{"pack/keys.go", "	clear(b)\n	s.XORKeyStream(b, b)", "	s.XORKeyStream(b, b)"}}},
	{name: "W16", bug: "count a rebuilt shard on the node's answer", edits: []edit{
		{"store/repair.go", "			if err = s.readBack(ctx, m, node.Key{Pack: p, Index: index}, sh); err == nil {\n", "			if err == nil {\n"}},
		pkg: "./store", args: []string{"-run", "TestRepairCountsWhatItHasReadBack"}},
	{name: "W17", bug: "skip the directory sync for a new segment", edits: []edit{
		{"node/disk/segment.go", "	if err := n.fs.SyncDir(k.dir()); err != nil { // before the first answer (W17)\n		return nil, asked(err)\n	}\n", ""}}, pkg: "./node/disk"},
	{name: "W18", bug: "retry a failed sync and believe the second answer", edits: []edit{
		{"node/disk/append.go", "		err = a.f.Datasync()\n", "		if err = a.f.Datasync(); err != nil {\n			err = a.f.Datasync()\n		}\n"}}, pkg: "./node/disk"},
	{name: "W19", bug: "leave the incarnation out of the records' CRC", edits: []edit{
		{"node/disk/format.go", "	return crc32.Update(crc32.Checksum(inc[:], castagnoli), castagnoli, b[:188])", "	return crc32.Checksum(b[:188], castagnoli)"}}, pkg: "./node/disk"},
	{name: "W20", bug: "answer reads on no check of a takeover", edits: []edit{
		{"store/read.go", "	if c.s.cfg.StaleReads {", "	if true {"}}},
	{name: "W21", bug: "do not check the epoch again after the sync", edits: []edit{
		{"node/disk/append.go", "			r.err = n.obeys(r.by)\n", ""}}, pkg: "./node/disk"},
	{name: "W22", bug: "take late shards of an older epoch", edits: []edit{
		{"node/disk/promise.go", "	case by == p:\n", "	case by.Epoch < p.Epoch, by == p:\n"}}, pkg: "./node/disk"},
	{name: "S1", bug: "take a shard for read that was not", edits: []edit{
		{"store/look.go", "			l.notAsked, l.perhaps[i] = append(l.notAsked, notAsked(g.pack, int(i), m)), true\n", "			l.good[place] = true\n"}},
		pkg: "./store", args: []string{"-run", "TestScrubAsksInVain"}},
	{name: "S2", bug: "count a shard that a scrub wrote on the node's answer", edits: []edit{
		{"store/mend.go", "	return inst, s.readBack(ctx, m, node.Key{Pack: l.g.pack, Index: b.place.Index}, sh)\n", "	return inst, nil\n"}},
		pkg: "./store", args: []string{"-run", "TestScrubCountsWhatItHasReadBack"}},
	{name: "S3", bug: "call a pass complete that could not ask a node", edits: []edit{
		{"store/scrub.go", "	sc.res.Complete = sc.res.NotAsked+sc.res.NotListed == 0\n", "	sc.res.Complete = true\n"}},
		pkg: "./store", args: []string{"-run", "TestScrubAsksInVain"}},
	{name: "S4", bug: "write a shard anew that has not its logged digest", edits: []edit{
		{"store/mend.go", "	if !b.place.Node.IsZero() && l.enc.Digests[i] != b.place.Digest && !l.trusted {\n", "	if false {\n"}},
		pkg: "./store", args: []string{"-run", "TestScrubTrustsNoParity"}},
	{name: "W13", bug: "in the orphan check look up before listing", edits: []edit{
		{"store/scrub.go", "	holds         bool // the token of repairs\n", "	holds         bool // the token of repairs\n	seen          map[id.Pack]bool\n"},
		{"store/orphans.go", "			page, err := s.listShards(ctx, m, after)\n", `			sc.seen = map[id.Pack]bool{}
			if err := s.view(func(rd index.Reader) error {
				return rd.EachPack(func(p id.Pack, _ index.PackRow) error {
					sc.seen[p] = true
					return nil
				})
			}); err != nil {
				return err
			}
			page, err := s.listShards(ctx, m, after)
`},
		{"store/orphans.go", "			known := err == nil\n", "			known := sc.seen[info.Key.Pack]\n			if !known {\n				row = index.PackRow{}\n			}\n"},
		{"store/orphans.go", "			case errors.Is(err, index.ErrNotFound) && x.over(low, head.Seq):\n", "			case !sc.seen[x.key.Pack] && x.over(low, head.Seq):\n"}},
		pkg: "./store", args: []string{"-run", "TestScrubListsFirst"}},
	{name: "O1", bug: "take shards of packs that are on their way for orphans", edits: []edit{
		{"store/orphans.go", "	return x.retired || x.counter < low\n", "	return true\n"}},
		pkg: "./store", args: []string{"-run", "TestScrubLeavesWhatIsOnItsWay"}},
	{name: "O2", bug: "take for an orphan what a log pack adopts of which nothing is known", edits: []edit{
		{"store/orphans.go", "	if !sc.opt.DryRun {\n		// Of a pack below", "	if false {\n		// Of a pack below"}},
		pkg: "./store", args: []string{"-run", "TestScrubWaitsForTheLog"}},
	{name: "O3", bug: "remove the copy of a shard that is not right elsewhere", edits: []edit{
		{"store/orphans.go", "	whole := l.dead || ", "	whole := true || l.dead || "}},
		pkg: "./store", args: []string{"-run", "TestScrubKeepsTheLastCopy"}},
	{name: "O4", bug: "remove orphans on the word of an index that is not proved", edits: []edit{
		{"store/orphans.go", "	if len(orphans)+len(copies) > 0 && !sc.opt.DryRun {\n", "	if false {\n"}},
		pkg: "./store", args: []string{"-run", "TestDamagedIndexMakesNoOrphans"}},
	{name: "O5", bug: "call it damage that a pack which was dropped is gone", edits: []edit{
		{"store/mend.go", "	l, err := s.look(ctx, p, true)\n", "	l, err := s.look(ctx, p, true)\n	if err == nil && l == nil {\n		r.Damaged, r.Left = r.Damaged+len(found), r.Left+len(found)\n	}\n"}},
		pkg: "./store", args: []string{"-run", "TestFindingsOfDroppedPacks"}},
	{name: "N1", bug: "delete a shard where it was before its new place is durable", edits: []edit{
		{"store/move.go", "	changed, err := mv.s.logRemade(ctx, batch)\n", "	for _, m := range mv.batch {\n		for _, r := range m.shards {\n			mv.s.deleteOld(ctx, r)\n		}\n	}\n	changed, err := mv.s.logRemade(ctx, batch)\n"}},
		pkg: "./store", args: []string{"-run", "TestOldCopyGoesLast"}},
	{name: "N1b", bug: "the same, and only crashes tell", edits: []edit{
		{"store/move.go", "	changed, err := mv.s.logRemade(ctx, batch)\n", "	for _, m := range mv.batch {\n		for _, r := range m.shards {\n			mv.s.deleteOld(ctx, r)\n		}\n	}\n	changed, err := mv.s.logRemade(ctx, batch)\n"}},
		pkg: "./store/sim", args: []string{"-run", "TestCrashAtEverySyncOfNodeChanges"}},
	{name: "N2", bug: "write a change of the node set on the log nodes of the old set alone", edits: []edit{
		{"store/open.go", "	if also == nil {\n		return set.log\n	}\n", "	if also == nil || true {\n		return set.log\n	}\n"}},
		pkg: "./store", args: []string{"-run", "TestNodeSetIsDurableInBothSets"}},
	{name: "N3", bug: "let the log nodes leap", edits: []edit{
		{"store/nodes.go", "	next := slices.Clone(was)\n	worst", "	if len(want) > 0 {\n		return want\n	}\n	next := slices.Clone(was)\n	worst"}},
		pkg: "./store", args: []string{"-run", "TestNodeSetIsDurableInBothSets"}},
	{name: "N4", bug: "remove a node without looking whether anything lies on it", edits: []edit{
		{"store/nodes.go", "	if n > 0 {\n		return fmt.Errorf(\"%w: %s a shard on node", "	if n > 1<<30 {\n		return fmt.Errorf(\"%w: %s a shard on node"}},
		pkg: "./store", args: []string{"-run", "TestNodeIsDrainedAndRemoved"}},
	{name: "N5", bug: "move a shard into a domain that has all that may be lost", edits: []edit{
		{"placement/balance.go", "		if r.used[t] >= r.t.limits[t] {\n", "		if false {\n"}},
		pkg: "./placement", args: []string{"-run", "TestBalance"}},
	{name: "C1", bug: "take a chunk of a lost pack for stored", edits: []edit{
		{"store/packs.go", "		if known = err == nil && row.State == index.Live; known {\n", "		if known = err == nil; known {\n"}},
		pkg: "./store", args: []string{"-run", "TestLostChunksAreHealedByTheNextUpload"}},
	{name: "C2", bug: "log the two halves of a rename apart", edits: []edit{
		{"store/copy.go", "			return d.emit(&record.Delete{In: in.Realm, Bucket: in.ID, Key: []byte(from.Key), Time: d.time, Current: source.Version})\n", `			go s.writer.submit(context.WithoutCancel(ctx), &submission{decide: func(d *decision) (func() error, error) {
				return func() error {
					return d.emit(&record.Delete{In: in.Realm, Bucket: in.ID, Key: []byte(from.Key), Time: d.time, Current: source.Version})
				}, nil
			}})
			return nil
`}}},
	{name: "Q1", bug: "hold a put to its quota when the request comes, and not in the log", edits: []edit{
		{"store/object.go", "	if err := within(d.round, &now, key, p.rec.Manifest.Size, false); err != nil {\n		return nil, err\n	}\n", ""},
		{"store/object.go", "	m, err := st.readBody(r, opt.Size)\n	if err != nil {\n		return Object{}, err\n	}\n", `	m, err := st.readBody(r, opt.Size)
	if err == nil {
		err = s.judgeQuota(ctx, b, key, int64(m.Size))
	}
	if err != nil {
		return Object{}, err
	}
`}}, pkg: "./store", args: []string{"-run", "TestQuotaHoldsAtOnce"}},
	{name: "L1", bug: "look at a lock when the request comes, and not in the log", edits: []edit{
		{"store/object.go", "		if err := cmp.Or(d.unlocked(&o, bypass), withinBack(d.round, &b, key, o.Version)); err != nil {\n", "		if err := withinBack(d.round, &b, key, o.Version); err != nil {\n"},
		{"store/object.go", "		if err := d.unlocked(&o, false); err != nil {\n			return nil, &fatalError{fmt.Errorf(\"it was to be removed: %w\", err)}\n		}\n", ""},
		{"store/object.go", "	return s.writer.submit(ctx, &submission{decide: entry.also(func(d *decision) (func() error, error) {\n		b, err := bucketOf(d.round, bucket)\n		if err != nil {\n			return nil, err\n		}\n		o, err := choose(d.round, b)\n", `	if err := s.view(func(r index.Reader) error {
		b, err := bucketOf(r, bucket)
		if err != nil {
			return err
		}
		o, err := choose(r, b)
		if err != nil {
			return err
		}
		return (&decision{sure: s.believed()}).unlocked(&o, bypass)
	}); err != nil {
		return err
	}
	return s.writer.submit(ctx, &submission{decide: entry.also(func(d *decision) (func() error, error) {
		b, err := bucketOf(d.round, bucket)
		if err != nil {
			return nil, err
		}
		o, err := choose(d.round, b)
`}}, pkg: "./store", args: []string{"-run", "TestLockDecidesInTheLog"}},
	{name: "A1", bug: "remove as orphans what the lost part of the log had adopted", edits: []edit{
		{"store/orphans.go", "	if !sc.opt.DryRun {\n		if orphans, err = sc.rescue", "	if false {\n		if orphans, err = sc.rescue"}},
		pkg: "./store", args: []string{"-run", "TestLostAdopt"}},
	{name: "A2", bug: "take the newest link below a lost one, though what is left of it names another", edits: []edit{
		{"store/loss.go", "range slices.Compact(said) {\n", "range slices.Compact(said)[:0] {\n"}},
		pkg: "./store", args: []string{"-run", "TestLostLinkSaysItsPredecessor"}},
	{name: "A3", bug: "go past a lost log pack without a word", edits: []edit{
		{"store/open.go", "errors.Is(err, ErrDamaged) && s.cfg.AcceptLoss && !past &&", "errors.Is(err, ErrDamaged) && !past &&"}},
		pkg: "./store", args: []string{"-run", "TestAcceptedLoss"}},
	{name: "A4", bug: "leave chunks without rows that something refers to", edits: []edit{
		{"index/loss.go", "	for more := true; more; {\n", "	for more := false; more; {\n"}},
		pkg: "./index", args: []string{"-run", "TestSkip|TestModelOfLoss"}},
	{name: "A5", bug: "forget where the link before a lost one lies", edits: []edit{
		{"store/loss.go", "				skip.Places = places\n", "				_ = places\n"}},
		pkg: "./store", args: []string{"-run", "TestAcceptedLoss"}},
	{name: "A6", bug: "remove what is left of log packs that were given up before two snapshots are behind", edits: []edit{
		{"store/orphans.go", "errors.Is(err, index.ErrNotFound) && (needed(x) || x.rotten", "errors.Is(err, index.ErrNotFound) && (false && needed(x) || x.rotten"}},
		pkg: "./store", args: []string{"-run", "TestLostLinkSaysItsPredecessor"}},
	{name: "A7", bug: "take no snapshot behind what was given up", edits: []edit{
		{"store/loss.go", "			s.replaceLog(last)\n", ""}},
		pkg: "./store", args: []string{"-run", "TestAcceptedLoss"}},
	{name: "A8", bug: "let the objects of a bucket go whose creation is lost", edits: []edit{
		{"index/loss.go", "	if r.mode != Rebuild || realm == 0 || n == 0 {\n", "	if true {\n"}},
		pkg: "./store", args: []string{"-run", "TestLostBucket"}},
	{name: "A9", bug: "count no children of a list that comes again in the place of a lost one", edits: []edit{
		{"store/writer.go", "err != nil || row.Unknown()\n", "err != nil\n"}},
		pkg: "./store", args: []string{"-run", "TestLostList"}},
	{name: "A10", bug: "keep a snapshot of which a piece is lost", edits: []edit{
		{"index/loss.go", "			if pieces[k.Number] != k.Pieces {\n", "			if false {\n"}},
		pkg: "./store", args: []string{"-run", "TestLostPiece"}},
	{name: "A11", bug: "look for no other snapshot when what names the newest is lost", edits: []edit{
		{"store/restore.go", "		if rec == nil && s.cfg.AcceptLoss {\n", "		if false {\n"}},
		pkg: "./store", args: []string{"-run", "TestLostSnapshotRecord"}},
	{name: "A12", bug: "keep the node set of before what is lost", edits: []edit{
		{"index/loss.go", "s.Nodes.Version > old.Version {", "s.Nodes.Version > old.Version+1000 {"}},
		pkg: "./store", args: []string{"-run", "TestLostNodeSet"}},
	{name: "A13", bug: "take a pack in again without opening what is in it", edits: []edit{
		{"store/rescue.go", "			return fmt.Errorf(\"chunk at %d: %w\", e.Offset, err)\n", "			continue\n"}},
		pkg: "./store", args: []string{"-run", "TestLostAdopt"}},
	{name: "A14", bug: "take an older tail, though what is left above it was acknowledged", edits: []edit{
		{"store/recover.go", "		if s.cfg.AcceptLoss {\n			s.lostEnd", "		if true {\n			s.lostEnd"}},
		pkg: "./store", args: []string{"-run", "TestLostEnd"}},
	{name: "F1", bug: "carry out what was given up when it arrives late", edits: []edit{
		{"node/server/ledger.go", "	if x == nil || x.gen != gen {", "	if x == nil {"}}, pkg: "./node/remote", args: []string{"-run", "TestLateRequest"}},
	{name: "F2", bug: "say that what was given up is over while it runs", edits: []edit{
		{"node/server/ledger.go", "		if older == 0 {", "		if older >= 0 {"}}, pkg: "./node/remote", args: []string{"-run", "TestGivenUp"}},
	{name: "F3", bug: "end a change when its asker stops waiting", edits: []edit{
		{"node/server/server.go", "		ctx = context.WithoutCancel(ctx)\n	}\n	st, by, k", "	}\n	st, by, k"}}, pkg: "./node/remote", args: []string{"-run", "TestGivenUp"}},
	{name: "F4", bug: "go on in the same generation behind what was given up", edits: []edit{
		{"node/remote/remote.go", "			n.settle.giveUp(gen)\n", ""}}, pkg: "./node/remote", args: []string{"-run", "TestGivenUp|TestLateRequest"}},
	{name: "F5", bug: "take a process's key without comparing it", edits: []edit{
		{"node/link/tls.go", "if !ok || !bytes.Equal(pub, peer[:]) {", "if !ok || bytes.Equal(pub, nil) {"}}, pkg: "./node/remote", args: []string{"-run", "TestStrangers$"}},
	{name: "F6", bug: "take no answer (404) for a missing directory", edits: []edit{
		{"node/remote/send.go", "		return nil, &linkError{fmt.Errorf(\"HTTP status %d\", resp.StatusCode), true}\n	}\n	return resp, nil", "		return nil, node.ErrMissing\n	}\n	return resp, nil"}}, pkg: "./node/remote", args: []string{"-run", "TestHostileNode"}},
	{name: "F7", bug: "let what hangs hold up what does not", edits: []edit{
		{"node/remote/lane.go", "		if ended {\n			return\n", "		if ended || !given {\n			return\n"}}, pkg: "./node/remote", args: []string{"-run", "TestCallsTravel"}},
	{name: "F8", bug: "ask a dead node again and again", edits: []edit{
		{"node/remote/remote.go", "	n.breaker.RecordFailure()\n", ""}}, pkg: "./node/remote", args: []string{"-run", "TestLeftAlone"}},
	{name: "L2", bug: "believe a leap of the clock where a lock ends", edits: []edit{
		{"store/lock.go", "	case o.Lock.Retained(d.sure) && (o.Lock", "	case o.Lock.Retained(d.time) && (o.Lock"}}, pkg: "./store", args: []string{"-run", "TestLocks"}},
}

// tree is the root of the module.
const tree = "../.."

// TestMutantsApply fails when the code that a planted bug is planted in has
// moved: then the edit has to follow it.
func TestMutantsApply(t *testing.T) {
	for _, m := range mutants {
		for _, e := range m.edits {
			b, err := os.ReadFile(filepath.Join(tree, e.file))
			if err != nil {
				t.Errorf("%s: %v", m.name, err)
				continue
			}
			if n := strings.Count(string(b), e.old); n != 1 {
				t.Errorf("%s: the text to be replaced occurs %d times in %s:\n%s", m.name, n, e.file, e.old)
			}
		}
	}
}

// TestMutantsAreCaught plants each bug in a copy of the tree and runs the suite
// that must find it. CAIRN_MUTANTS=1 or a name chooses; `make mutants` runs it.
func TestMutantsAreCaught(t *testing.T) {
	which := os.Getenv("CAIRN_MUTANTS")
	if which == "" {
		t.Skip("runs for minutes: make mutants")
	}
	dir := t.TempDir()
	if err := copyTree(tree, dir); err != nil {
		t.Fatal(err)
	}
	table := []string{"| bug | edit | caught by | seed |", "| --- | --- | --- | --- |"}
	for _, m := range mutants {
		if which != "1" && which != m.name {
			continue
		}
		undo, err := m.plant(dir)
		if err == nil {
			var row string
			if row, err = m.run(t, dir); err == nil {
				table = append(table, row)
			}
		}
		if undo != nil {
			undo()
		}
		if err != nil {
			t.Errorf("%s (%s): %v", m.name, m.bug, err)
		}
	}
	t.Logf("\n%s", strings.Join(table, "\n"))
}

func copyTree(from, to string) error {
	return filepath.WalkDir(from, func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(from, p)
		if err != nil {
			return err
		}
		name := d.Name()
		if d.IsDir() {
			if rel != "." && (strings.HasPrefix(name, ".") || rel == "bin" || rel == "data") {
				return filepath.SkipDir
			}
			return os.MkdirAll(filepath.Join(to, rel), 0o755)
		}
		if !d.Type().IsRegular() {
			return nil
		}
		b, err := os.ReadFile(p)
		if err != nil {
			return err
		}
		return os.WriteFile(filepath.Join(to, rel), b, 0o644)
	})
}

// plant makes the edits and returns how to take them back.
func (m *mutant) plant(dir string) (undo func(), err error) {
	before := map[string][]byte{}
	undo = func() {
		for f, b := range before {
			_ = os.WriteFile(f, b, 0o644)
		}
	}
	for _, e := range m.edits {
		f := filepath.Join(dir, e.file)
		b, err := os.ReadFile(f)
		if err != nil {
			return undo, err
		}
		if before[f] == nil {
			before[f] = b
		}
		if n := bytes.Count(b, []byte(e.old)); n != 1 {
			return undo, fmt.Errorf("the text to be replaced occurs %d times in %s", n, e.file)
		}
		if err := os.WriteFile(f, bytes.Replace(b, []byte(e.old), []byte(e.new), 1), 0o644); err != nil {
			return undo, err
		}
	}
	return undo, nil
}

var (
	failedTest = regexp.MustCompile(`--- FAIL: (\S+)`)
	failedSeed = regexp.MustCompile(`seed (\d+)`)
)

// run runs the suite on the mutant and returns its row of the table. An error
// says that the bug went by, or that nothing could be run.
func (m *mutant) run(t *testing.T, dir string) (string, error) {
	pkg, args := m.pkg, m.args
	env := os.Environ()
	if pkg == "" {
		pkg, args = "./store/sim", []string{"-run", "TestHistories"}
		n := m.seeds
		if n == 0 {
			n = 60
		}
		env = append(env, fmt.Sprintf("CAIRN_SIM_SEEDS=%d", n), "CAIRN_SIM_STOP=1")
	}
	env = append(env, "CAIRN_MUTANTS=", "CAIRN_LONG=")
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Minute)
	defer cancel()
	build := exec.CommandContext(ctx, "go", "vet", pkg)
	build.Dir, build.Env = dir, env
	if out, err := build.CombinedOutput(); err != nil {
		return "", fmt.Errorf("does not build: %w\n%s", err, out)
	}
	cmd := exec.CommandContext(ctx, "go", append([]string{"test", "-count=1", "-vet=off", pkg}, args...)...)
	cmd.Dir, cmd.Env = dir, append(env, m.env...)
	out, err := cmd.CombinedOutput()
	if err == nil {
		return "", fmt.Errorf("was not caught by %s %v", pkg, args)
	}
	by, seed := "", "-"
	if f := failedTest.FindSubmatch(out); f != nil {
		by = string(f[1])
	}
	if f := failedSeed.FindSubmatch(out); f != nil {
		seed = string(f[1])
	}
	if by == "" {
		by = "a panic"
		if !bytes.Contains(out, []byte("panic")) {
			return "", fmt.Errorf("the suite did not run: %w\n%s", err, out)
		}
	}
	if at := bytes.Index(out, []byte("VIOLATION")); at >= 0 {
		end := min(len(out), at+300)
		t.Logf("%s: %s", m.name, out[at:end])
	}
	var files []string
	for _, e := range m.edits {
		if len(files) == 0 || files[len(files)-1] != e.file {
			files = append(files, e.file)
		}
	}
	return fmt.Sprintf("| %s: %s | %s | `%s` `%s` | %s |", m.name, m.bug, strings.Join(files, ", "), pkg, by, seed), nil
}
