package drill

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// body makes an object's bytes: those of its name, size and the drill's seed.
func (r *rig) body(bucket, key string, size int) []byte {
	seed := sha256.Sum256(fmt.Appendf(nil, "%d %q %q %d", r.cfg.Seed, bucket, key, size))
	b := make([]byte, size)
	_, _ = rand.NewChaCha8(seed).Read(b) // never fails
	return b
}

// maxObject bounds an object of the drill's own: so large a one has few enough
// chunks that its manifest needs no lists.
const maxObject = 6 << 20

// makeBase makes the store that every scenario gets a copy of: with objects whose
// packs survive the loss of m nodes, and with some that happen to survive more.
func (r *rig) makeBase(ctx context.Context) error {
	need := 5 * r.cfg.Size
	if r.cfg.Data != "" {
		unlock, err := lockStore(r.cfg.Data)
		if err != nil {
			return err
		}
		defer unlock.Close()
		size, err := treeSize(r.cfg.Data, 0)
		if err != nil {
			return err
		}
		if err := room(r.dir, need+3*size); err != nil {
			return err
		}
		if err := copyTree(r.cfg.Data, r.data, 0); err != nil {
			return fmt.Errorf("copy the store: %w", err)
		}
		r.key = filepath.Join(r.dir, "the.key")
		if err := copyFile(r.cfg.KeyFile, r.key); err != nil {
			return fmt.Errorf("copy the key file: %w", err)
		}
		unlock.Close()
		// What is not whole before proves nothing afterwards.
		c, err := r.offline(ctx, "verify")
		if err != nil {
			return err
		}
		if c.code == 1 || c.code == 2 {
			return fmt.Errorf("the copy is not sound to begin with: %v%s; repair the store first (cairn scrub --deep)", c, lastLine(c.stdout))
		}
		if c.code != 0 {
			return fmt.Errorf("the copy cannot be read: %v", c)
		}
	} else if err := room(r.dir, need); err != nil {
		return err
	}
	if err := r.start(ctx); err != nil {
		return err
	}
	if r.key == "" {
		found, err := filepath.Glob(filepath.Join(r.config, "cairn", "*.key"))
		if err != nil || len(found) != 1 {
			return errors.Join(err, fmt.Errorf("a new store has made %d key files", len(found)))
		}
		r.key = found[0]
	}
	st, err := r.status(ctx)
	if err != nil {
		return err
	}
	r.losses = st.Losses
	for _, n := range st.Nodes {
		r.nodes = append(r.nodes, n.Name)
	}
	slices.Sort(r.nodes)
	if r.losses < 1 || len(r.nodes) < 2*r.losses+1 {
		return fmt.Errorf("the store has %d nodes and survives %d losses: there is nothing to drill", len(r.nodes), r.losses)
	}
	r.truth = truth{versions: map[name]version{}}
	if err := r.fill(ctx); err != nil {
		return err
	}
	if err := r.takeTruth(ctx); err != nil {
		return err
	}
	// One may be under way, or not be possible: then the whole log is read.
	if _, err := r.cairn(ctx, "jobs", "start", "snapshot", "--wait"); err != nil {
		return err
	}
	// What comes behind a snapshot is found in the log alone.
	for i := range 4 {
		if err := r.put(ctx, r.own("wide"), fmt.Sprintf("behind the snapshot/%d", i), 2000+i); err != nil {
			return err
		}
	}
	if err := r.stop(); err != nil {
		return err
	}
	r.base = r.truth
	for n := range r.base.versions {
		if strings.HasPrefix(n.Bucket, r.bucket) {
			r.ours[n] = true
		}
	}
	return os.Rename(r.data, r.origin)
}

// own is the name of one of the drill's buckets.
func (r *rig) own(what string) string { return r.bucket + what }

// fill writes what is drilled with: large objects in wide packs and in narrow
// ones, small ones that lie in the log, versions, and some that are deleted.
func (r *rig) fill(ctx context.Context) error {
	taken, err := r.listBuckets(ctx)
	if err != nil {
		return err
	}
	for bucket, settings := range map[string]map[string]any{"wide": {}, "narrow": {"k": 2}, "versions": {"versioning": true}} {
		if slices.Contains(taken, r.own(bucket)) {
			return fmt.Errorf("the store has a bucket %s: drill with another --seed", r.own(bucket))
		}
		if err := r.makeBucket(ctx, r.own(bucket), settings); err != nil {
			return err
		}
	}
	for bucket, share := range map[string]int64{"wide": r.cfg.Size * 6 / 10, "narrow": r.cfg.Size * 3 / 10} {
		n := max(6, (share+maxObject-1)/maxObject)
		for i := range n {
			if err := r.put(ctx, r.own(bucket), fmt.Sprintf("large/%d", i), int(share/n)); err != nil {
				return err
			}
		}
	}
	for i := range 24 { // each in a log pack of its own
		if err := r.put(ctx, r.own("wide"), fmt.Sprintf("small/año %d%%/?#+ü", i), 100+r.rng.IntN(4000)); err != nil {
			return err
		}
	}
	for i := range 6 {
		if err := r.put(ctx, r.own("wide"), fmt.Sprintf("middle/%d", i), 50_000+r.rng.IntN(200_000)); err != nil {
			return err
		}
	}
	if err := r.put(ctx, r.own("wide"), "empty", 0); err != nil {
		return err
	}
	for i := range 3 {
		if err := r.put(ctx, r.own("versions"), "the same", 30_000+i); err != nil {
			return err
		}
	}
	return r.remove(ctx, r.own("versions"), "the same")
}

// remove deletes an object; what its listing looks like afterwards is asked.
func (r *rig) remove(ctx context.Context, bucket, key string) error {
	return r.ask(ctx, "DELETE", keyPath("objects", name{Bucket: bucket, Key: key}), nil, nil, nil)
}

// fresh makes the store that is broken next.
func (r *rig) fresh() error {
	if err := os.RemoveAll(r.data); err != nil {
		return err
	}
	return copyTree(r.origin, r.data, 0)
}
