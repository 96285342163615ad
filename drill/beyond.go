package drill

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// ownPacks are the packs of data, by chance, that objects of the drill's own lie
// in: it can write those again.
func (r *rig) ownPacks(ctx context.Context) (out []*pack, err error) {
	all, seen := r.truth.names(), map[string]bool{}
	for _, i := range r.rng.Perm(len(all)) {
		if !r.ours[all[i]] {
			continue
		}
		chunks, _, err := r.chunksOf(ctx, all[i])
		if err != nil {
			return nil, err
		}
		for _, c := range chunks {
			if p := c.pack; p.data && !seen[p.id] {
				seen[p.id] = true
				out = append(out, p)
			}
		}
	}
	return out, nil
}

// predict says which versions are lost when shards are, from where the index says
// that their packs lie. unsure are those whose lists of chunks it does not show.
func (r *rig) predict(ctx context.Context, gone func(*pack, place) bool) (lost, unsure []name, err error) {
	for _, n := range r.truth.names() {
		chunks, whole, err := r.chunksOf(ctx, n)
		if err != nil {
			return nil, nil, err
		}
		switch {
		case lostWithout(chunks, gone):
			lost = append(lost, n)
		case !whole:
			unsure = append(unsure, n)
		}
	}
	return lost, unsure, nil
}

// split reads everything, never wants a wrong byte, and says what cannot be read.
func (r *rig) split(ctx context.Context) (failed []name, err error) {
	whole := 0
	err = r.readAll(ctx, r.truth.names(), func(n name, got reading) error {
		if err := judgeNoWrongByte(n, r.truth.versions[n], got); err != nil {
			return err
		}
		if got.whole() {
			whole++
		} else {
			failed = append(failed, n)
		}
		return nil
	})
	r.say("read back", "%d versions are read, every byte as written; %d are answered with an error", whole, len(failed))
	return failed, err
}

// without leaves out the names that are in both.
func without(names, less []name) (out []name) {
	for _, n := range names {
		if !slices.Contains(less, n) {
			out = append(out, n)
		}
	}
	return out
}

// some names a few for the evidence.
func some(names []name) string {
	var out []string
	for _, n := range names[:min(3, len(names))] {
		out = append(out, n.Bucket+"/"+n.Key)
	}
	if len(names) > 3 {
		out = append(out, fmt.Sprintf("%d more", len(names)-3))
	}
	return strings.Join(out, ", ")
}

func beyondNodes(ctx context.Context, r *rig) error {
	if err := r.start(ctx); err != nil {
		return err
	}
	victims := r.pick(r.nodes, r.losses+1)
	lost, unsure, err := r.predict(ctx, func(_ *pack, s place) bool { return slices.Contains(victims, s.node) })
	if err != nil {
		return err
	}
	// A read wants one log node more than may be lost to say that no other gateway has
	// taken over.
	st, err := r.status(ctx)
	if err != nil {
		return err
	}
	asked := 0
	for _, n := range st.Nodes {
		if n.Log && !slices.Contains(victims, n.Name) {
			asked++
		}
	}
	why := "the ones with too few shards left, by where they lay"
	if asked <= r.losses {
		lost, unsure, why = r.truth.names(), nil, fmt.Sprintf("all: %d nodes are too few to say that no other gateway has taken over", asked)
	}
	if len(lost) == 0 {
		return &skipped{"no object lies so that it would be lost"}
	}
	// One of them will be found again. A node whose directory was only moved goes on
	// writing there; what is in it is moved.
	back := victims[r.rng.IntN(len(victims))]
	away := filepath.Join(r.dir, "away")
	defer os.RemoveAll(away)
	for _, v := range victims {
		if v == back {
			err = moveAll(r.node(v), away)
		} else {
			err = lose(r.node(v))
		}
		if err != nil {
			return err
		}
	}
	r.say("broke", "the directories of %s are gone while it serves; the store survives %d", strings.Join(victims, ", "), r.losses)
	if err := r.noticed(ctx, victims); err != nil {
		return err
	}
	failed, err := r.split(ctx)
	if err != nil {
		return err
	}
	if err := judgeLoss("reading", lost, without(failed, unsure)); err != nil {
		return err
	}
	r.say("found", "%d are %s: %s", len(lost), why, some(lost))
	a, _, _ := r.server.write(ctx, name{Bucket: r.own("wide"), Key: "refused"}, []byte("beyond"))
	if a.acked {
		return brokenf("a write is acknowledged while %d nodes are lost", len(victims))
	}
	r.say("found", "a write is refused")
	r.kill()
	said, err := r.refused(ctx, "more nodes are lost than the store survives")
	if err != nil {
		return err
	}
	r.say("found", "a start is refused: %s", said)
	c, err := r.offline(ctx, "verify")
	if err != nil {
		return err
	}
	if c.code != 2 && c.code != 3 {
		return brokenf("more nodes are lost than the store survives, and %v", c)
	}
	if err := moveAll(away, r.node(back)); err != nil {
		return err
	}
	r.say("repaired", "the directory of %s is back", back)
	if err := r.start(ctx); err != nil {
		return err
	}
	if err := r.check(ctx); err != nil {
		return err
	}
	var gone []string
	for _, v := range victims {
		if v != back {
			gone = append(gone, v)
		}
	}
	if err := r.replace(ctx, gone...); err != nil {
		return err
	}
	if err := r.healed(ctx); err != nil {
		return err
	}
	return r.sound(ctx)
}

func beyondRot(ctx context.Context, r *rig) error {
	if err := r.start(ctx); err != nil {
		return err
	}
	own, err := r.ownPacks(ctx)
	if err != nil {
		return err
	}
	doomed, victims := own[:min(4, len(own))], map[string]held{}
	for _, p := range doomed {
		// All shards of data, so that no chunk is left in one, and more of them than
		// the pack survives.
		for _, s := range p.shards[:min(max(p.need, r.losses+1), len(p.shards))] {
			if victims[s.node] == nil {
				victims[s.node] = held{}
			}
			victims[s.node][p.id] = s.index
		}
	}
	lost, _, err := r.predict(ctx, func(p *pack, s place) bool {
		_, is := victims[s.node][p.id]
		return is
	})
	if err != nil {
		return err
	}
	if len(lost) == 0 {
		return &skipped{"no object of the drill lies in a pack of data"}
	}
	if err := r.stop(); err != nil {
		return err
	}
	for v, shards := range victims {
		if err := shards.destroy(ctx, r.node(v)); err != nil {
			return err
		}
	}
	r.say("broke", "%d packs lose all their shards of data, more than the %d that they survive: overwritten with zeros, on %d nodes", len(doomed), r.losses, len(victims))
	c, err := r.offline(ctx, "verify", "--json")
	if err != nil {
		return err
	}
	if c.code != 2 {
		return brokenf("data is lost, and %v", c)
	}
	var report struct {
		Findings []struct{ Kind, Detail string }
	}
	if err := json.Unmarshal(c.stdout, &report); err != nil {
		return &broken{"cairn verify --json: " + err.Error()}
	}
	// It lists a thousand findings, and counts the others.
	if len(report.Findings) < 1000 {
		var named []name
		for _, n := range r.truth.names() {
			if slices.ContainsFunc(report.Findings, func(f struct{ Kind, Detail string }) bool {
				return f.Kind == "object" && strings.HasPrefix(f.Detail, n.String()+":")
			}) {
				named = append(named, n)
			}
		}
		if err := judgeLoss("cairn verify", lost, named); err != nil {
			return err
		}
		r.say("found", "cairn verify names the %d objects that are lost, and no other (exit code 2)", len(named))
	}
	if err := r.start(ctx); err != nil {
		return err
	}
	failed, err := r.split(ctx)
	if err != nil {
		return err
	}
	if err := judgeLoss("reading", lost, failed); err != nil {
		return err
	}
	r.say("found", "%d are the ones with too few shards left, by where they lay: %s", len(lost), some(lost))
	s, err := r.scrub(ctx, false, scrubLost)
	if err != nil {
		return err
	}
	if s.LostPacks != len(doomed) {
		return brokenf("%d packs are lost, and the scrub says %d", len(doomed), s.LostPacks)
	}
	named, err := r.damaged(ctx)
	if err != nil {
		return err
	}
	if err := judgeLoss("cairn damaged", lost, named); err != nil {
		return err
	}
	r.say("found", "cairn damaged names the %d objects that are lost, and no other", len(named))
	healed := 0
	for _, n := range lost {
		if v := r.truth.versions[n]; r.ours[n] && v.Current {
			if err := r.put(ctx, n.Bucket, n.Key, int(v.Size)); err != nil {
				return err
			}
			healed++
		}
	}
	r.say("repaired", "%d of them, which the drill has written itself, are stored again", healed)
	if healed < len(lost) { // what is nobody's current version has no other copy here
		_, err := r.split(ctx)
		return err
	}
	// What was stored again heals the version before it too, as long as it is kept.
	if named, err = r.damaged(ctx); err != nil {
		return err
	}
	if err := judgeLoss("cairn damaged", nil, named); err != nil {
		return err
	}
	r.say("found", "cairn damaged names none any more")
	return r.check(ctx)
}

// damaged are the objects that the store says are lost.
func (r *rig) damaged(ctx context.Context) (out []name, err error) {
	c, err := r.must(ctx, "damaged", "--limit", "0", "--json")
	if err != nil {
		return nil, err
	}
	var lost struct {
		Objects []struct{ Bucket, Key, Version string }
	}
	if err := json.Unmarshal(c.stdout, &lost); err != nil {
		return nil, &broken{"cairn damaged --json: " + err.Error()}
	}
	for _, o := range lost.Objects {
		out = append(out, name{o.Bucket, o.Key, o.Version})
	}
	return out, nil
}
