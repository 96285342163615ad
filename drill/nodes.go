package drill

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

func lostNodes(ctx context.Context, r *rig) error {
	if err := r.start(ctx); err != nil {
		return err
	}
	victims := r.pick(r.nodes, r.losses)
	for i, v := range victims {
		if err := lose(r.node(v)); err != nil {
			return err
		}
		r.say("broke", "everything under nodes/%s is deleted while it serves", v)
		if err := r.noticed(ctx, victims[:i+1]); err != nil {
			return err
		}
		if err := r.check(ctx); err != nil {
			return err
		}
		if err := r.put(ctx, r.own("wide"), "written without "+v, 300_000); err != nil {
			return err
		}
	}
	r.kill()
	if err := r.start(ctx); err != nil {
		return err
	}
	if err := r.check(ctx); err != nil {
		return err
	}
	if err := r.replace(ctx, victims...); err != nil {
		return err
	}
	if err := r.healed(ctx); err != nil {
		return err
	}
	if _, err := r.scrub(ctx, true, scrubClean); err != nil {
		return err
	}
	return r.sound(ctx)
}

func repairKilled(ctx context.Context, r *rig) error {
	if err := r.start(ctx); err != nil {
		return err
	}
	victims := r.pick(r.nodes, r.losses)
	if err := lose(r.dirs(victims)...); err != nil {
		return err
	}
	if err := r.noticed(ctx, victims); err != nil {
		return err
	}
	if err := r.replace(ctx, victims...); err != nil {
		return err
	}
	for range 3 {
		if err := pause(ctx, time.Duration(r.rng.IntN(60))*time.Millisecond); err != nil {
			return err
		}
		st, err := r.status(ctx)
		if err != nil {
			return err
		}
		r.kill()
		r.say("broke", "killed while %s are filled again: %d packs were short of a shard", strings.Join(victims, " and "), st.PacksShort)
		if err := r.start(ctx); err != nil {
			return err
		}
	}
	if err := r.healed(ctx); err != nil {
		return err
	}
	var others []string
	for _, n := range r.nodes {
		if !slices.Contains(victims, n) {
			others = append(others, n)
		}
	}
	others = r.pick(others, r.losses)
	if err := lose(r.dirs(others)...); err != nil {
		return err
	}
	r.say("broke", "everything under %s is deleted: what is read now was repaired", strings.Join(others, " and "))
	if err := r.noticed(ctx, others); err != nil {
		return err
	}
	if err := r.check(ctx); err != nil {
		return err
	}
	if err := r.replace(ctx, others...); err != nil {
		return err
	}
	if err := r.healed(ctx); err != nil {
		return err
	}
	return r.sound(ctx)
}

func rotLight(ctx context.Context, r *rig) error { return rotten(ctx, r, false) }
func rotDeep(ctx context.Context, r *rig) error  { return rotten(ctx, r, true) }

// rotten rots what as many nodes hold as may be lost, so that every pack stays
// within what it survives. Once all is read first, which has some of it repaired;
// once a scrub has to find it.
func rotten(ctx context.Context, r *rig, deep bool) error {
	return r.foundTwice(ctx, func() (int, error) {
		if err := r.start(ctx); err != nil {
			return 0, err
		}
		for _, v := range r.pick(r.nodes, r.losses) {
			paths, err := segments(r.node(v), "data", "journal")
			if err != nil {
				return 0, err
			}
			bits := 0
			for _, p := range paths {
				n, err := rot(r.rng, p, 32<<10)
				if err != nil {
					return 0, err
				}
				bits += n
			}
			if bits == 0 {
				return 0, fmt.Errorf("no bit in %s could be flipped", v)
			}
			r.say("broke", "%d bits flip in %d files of %s", bits, len(paths), v)
		}
		return 0, nil
	}, deep)
}

// foundTwice breaks the store and reads everything, then breaks it anew and lets a
// scrub find it before anything is read. breaks leaves it served, and says how
// many shards of other bytes the scrub is to find.
func (r *rig) foundTwice(ctx context.Context, breaks func() (int, error), deep bool) error {
	if _, err := breaks(); err != nil {
		return err
	}
	if err := r.check(ctx); err != nil {
		return err
	}
	if _, err := r.repaired(ctx, deep, scrubEither); err != nil {
		return err
	}
	if err := r.fresh(); err != nil {
		return err
	}
	other, err := breaks()
	if err != nil {
		return err
	}
	s, err := r.repaired(ctx, deep, scrubRepaired)
	if err == nil && s.Damage["other bytes"] != other {
		err = brokenf("%d shards have right checksums and wrong bytes, and the scrub finds %s", other, kinds(s.Damage))
	}
	return err
}

func torn(ctx context.Context, r *rig) error {
	for i, v := range r.pick(r.nodes, r.losses) {
		paths, err := segments(r.node(v), "data", "journal")
		if err != nil {
			return err
		}
		for _, p := range paths {
			info, err := os.Stat(p)
			if err != nil {
				return err
			}
			half := info.Size() / 2 &^ 4095
			if i%2 == 0 {
				err = os.Truncate(p, half)
			} else {
				err = overwrite(p, half, info.Size()-half)
			}
			if err != nil {
				return err
			}
		}
		r.say("broke", "the second half of %d segments of %s is %s", len(paths), v, []string{"cut off", "overwritten with zeros"}[i%2])
	}
	if err := r.start(ctx); err != nil {
		return err
	}
	_, err := r.repaired(ctx, false, scrubRepaired)
	return err
}

func smallFiles(ctx context.Context, r *rig) error {
	for _, pair := range [][]string{{"node.json", "keyring"}, {"state", "cluster"}} {
		if err := r.fresh(); err != nil {
			return err
		}
		for i, v := range r.pick(r.nodes, r.losses) {
			file := pair[i%2]
			if n, err := rot(r.rng, filepath.Join(r.node(v), file), 1<<20); err != nil || n == 0 {
				return fmt.Errorf("no bit in %s of %s could be flipped: %w", file, v, err)
			}
			r.say("broke", "a bit flips in %s of %s", file, v)
		}
		if err := r.start(ctx); err != nil {
			return err
		}
		if err := r.check(ctx); err != nil {
			return err
		}
		st, err := r.status(ctx)
		if err != nil {
			return err
		}
		var away []string
		for _, n := range st.Nodes {
			if n.State != "up" {
				r.say("found", "status calls %s %s", n.Name, n.State)
				away = append(away, n.Name)
			}
		}
		if len(away) > 0 {
			if err := r.replace(ctx, away...); err != nil {
				return err
			}
			if err := r.healed(ctx); err != nil {
				return err
			}
		}
		if err := r.sound(ctx); err != nil {
			return err
		}
	}
	return nil
}

func otherBytes(ctx context.Context, r *rig) error {
	return r.foundTwice(ctx, func() (forged int, err error) {
		if err := r.start(ctx); err != nil {
			return 0, err
		}
		own, err := r.ownPacks(ctx)
		if err != nil {
			return 0, err
		}
		if err := r.stop(); err != nil {
			return 0, err
		}
		for _, v := range r.pick(r.nodes, r.losses) {
			h := held{}
			for _, p := range own {
				for _, s := range p.shards {
					if s.node == v && len(h) < 3 {
						h[p.id] = s.index
					}
				}
			}
			if err := h.forge(ctx, r.node(v)); err != nil {
				return 0, err
			}
			forged += len(h)
			r.say("broke", "%d shards on %s are other bytes, and every checksum of the node is right", len(h), v)
		}
		if forged == 0 {
			return 0, &skipped{"no object of the drill lies in a pack of data"}
		}
		return forged, r.start(ctx)
	}, false)
}

func oldNode(ctx context.Context, r *rig) error {
	if err := r.grow(ctx, "since"); err != nil {
		return err
	}
	old := r.pick(r.nodes, r.losses)
	for _, v := range old {
		if err := r.putBack("nodes", v); err != nil {
			return err
		}
	}
	r.say("broke", "%s are as they were before the last writes", strings.Join(old, " and "))
	if err := r.start(ctx); err != nil {
		return err
	}
	if err := r.check(ctx); err != nil {
		return err
	}
	_, err := r.repaired(ctx, false, scrubEither)
	return err
}

func swapped(ctx context.Context, r *rig) error {
	if r.losses < 2 {
		return &skipped{"the store survives one lost node, and these are two"}
	}
	two := r.pick(r.nodes, 2)
	swap := func() error {
		aside := filepath.Join(r.data, "nodes.aside")
		for _, m := range [][2]string{{r.node(two[0]), aside}, {r.node(two[1]), r.node(two[0])}, {aside, r.node(two[1])}} {
			if err := os.Rename(m[0], m[1]); err != nil {
				return err
			}
		}
		return nil
	}
	if err := swap(); err != nil {
		return err
	}
	r.say("broke", "the directories of %s and %s are swapped", two[0], two[1])
	if err := r.start(ctx); err != nil {
		return err
	}
	if err := r.noticed(ctx, two); err != nil {
		return err
	}
	if err := r.check(ctx); err != nil {
		return err
	}
	if err := r.stop(); err != nil {
		return err
	}
	if err := swap(); err != nil {
		return err
	}
	r.say("repaired", "they are swapped back")
	if err := r.start(ctx); err != nil {
		return err
	}
	if err := r.noticed(ctx, nil); err != nil {
		return err
	}
	if err := r.healed(ctx); err != nil {
		return err
	}
	return r.sound(ctx)
}
