package drill

import (
	"bytes"
	"context"
	"crypto/sha256"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"time"
)

func indexLost(ctx context.Context, r *rig) error {
	index := filepath.Join(r.data, "index")
	export := func() ([]byte, error) {
		c, err := r.offline(ctx, "export-index", "-")
		if err == nil && c.code != 0 {
			err = &broken{c.String()}
		}
		return c.stdout, err
	}
	before, err := export()
	if err != nil {
		return err
	}
	for _, args := range [][]string{nil, {"--whole-log"}} {
		if err := os.RemoveAll(index); err != nil {
			return err
		}
		r.say("broke", "DIR/index is deleted")
		began := time.Now()
		c, err := r.offline(ctx, "rebuild", args...)
		if err != nil {
			return err
		}
		if c.code != 0 {
			return &broken{c.String()}
		}
		r.say("repaired", "%s: made anew in %v", strings.Join(append([]string{"cairn rebuild"}, args...), " "), time.Since(began).Round(time.Millisecond))
		after, err := export()
		if err != nil {
			return err
		}
		if !bytes.Equal(before, after) {
			return brokenf("the index that was made anew is not the one that was lost: %d bytes exported, %d before", len(after), len(before))
		}
		r.say("found", "all rows are the same (%d bytes exported, sha256 %x)", len(after), sha256.Sum256(after))
	}
	if err := os.RemoveAll(index); err != nil {
		return err
	}
	r.say("broke", "DIR/index is deleted once more, for a start to make it")
	if err := r.start(ctx); err != nil {
		return err
	}
	return r.sound(ctx)
}

func indexOld(ctx context.Context, r *rig) error {
	if err := r.grow(ctx, "since"); err != nil {
		return err
	}
	if err := r.putBack("index"); err != nil {
		return err
	}
	r.say("broke", "DIR/index is as it was before the last writes")
	if err := r.start(ctx); err != nil {
		return err
	}
	return r.sound(ctx)
}

func indexRot(ctx context.Context, r *rig) error {
	index := filepath.Join(r.data, "index")
	for round := range 4 {
		paths, err := files(index, func(string, fs.FileInfo) bool { return true })
		if err != nil {
			return err
		}
		bits := 0
		for _, p := range paths {
			if round == 0 && !strings.HasSuffix(p, ".sst") {
				continue // in the rows alone first
			}
			n, err := rot(r.rng, p, 16<<10)
			if err != nil {
				return err
			}
			bits += n
		}
		r.say("broke", "%d bits flip in the files of DIR/index", bits)
		s, err := r.tryStart(ctx)
		if err != nil {
			return err
		}
		if r.server == nil { // it takes the index for another store's, which is not its to remove
			if s.code != 3 {
				return brokenf("a start on a damaged index ends with exit code %d: %s", s.code, s.said())
			}
			r.say("found", "the start is refused: %s", s.said())
			if err := os.RemoveAll(index); err != nil {
				return err
			}
			r.say("repaired", "DIR/index is moved away")
			if err := r.start(ctx); err != nil {
				return err
			}
		}
		ended, err := r.proved(ctx)
		if err != nil {
			return err
		}
		if ended {
			r.say("found", "the check of a start has found damage, and the server has ended: %s", r.server.said())
			if err := r.start(ctx); err != nil {
				return err
			}
			if ended, err = r.proved(ctx); err != nil {
				return err
			}
			if ended {
				return brokenf("the index was damaged, and the second start ends as well: %s", r.server.said())
			}
		}
		aside, err := filepath.Glob(filepath.Join(r.data, "index.damaged-*"))
		if err != nil {
			return err
		}
		if len(aside) > 0 {
			r.say("found", "a start has set the index aside and made another")
		} else {
			r.say("found", "the check of the start has proved the index: no row is other than it was")
		}
		if err := r.check(ctx); err != nil {
			return err
		}
		if err := r.stop(); err != nil {
			return err
		}
		for _, p := range aside {
			if err := os.RemoveAll(p); err != nil {
				return err
			}
		}
	}
	return r.verify(ctx)
}

// proved waits for the check of the index that each start makes. A server that
// finds damage ends by itself, and leaves the rest to the next start.
func (r *rig) proved(ctx context.Context) (ended bool, err error) {
	for limit := time.Now().Add(startLimit); ; {
		var checks struct {
			Jobs []struct {
				State   string
				Started time.Time
			}
		}
		err := r.ask(ctx, "GET", "/v1/jobs", url.Values{"kind": {"check-index"}, "limit": {"1"}}, nil, &checks)
		if err == nil && len(checks.Jobs) > 0 && checks.Jobs[0].Started.After(r.server.began) && checks.Jobs[0].State == "done" {
			return false, nil // of this start, not of one before
		}
		if time.Now().After(limit) {
			return false, brokenf("the check of the index neither ends well nor ends the server within %v", startLimit)
		}
		if err == nil {
			err = pause(ctx, 20*time.Millisecond)
		}
		if ctx.Err() != nil {
			return false, ctx.Err()
		}
		wait := time.Duration(0)
		if err != nil {
			wait = stopLimit
		}
		select {
		case <-r.server.exited:
			if r.server.code <= 0 {
				return true, brokenf("a server that finds its index damaged ends with exit code %d", r.server.code)
			}
			return true, nil
		case <-time.After(wait):
			if err != nil {
				return false, err
			}
		}
	}
}

func rolledBack(ctx context.Context, r *rig) error {
	if err := r.grow(ctx, "since"); err != nil {
		return err
	}
	today := filepath.Join(r.dir, "today")
	defer os.RemoveAll(today)
	if err := os.Rename(filepath.Join(r.data, "nodes"), today); err != nil {
		return err
	}
	if err := r.putBack("nodes"); err != nil {
		return err
	}
	r.say("broke", "all node directories are as they were before the last writes, DIR/index is not")
	index := filepath.Join(r.data, "index")
	head, err := r.offline(ctx, "export-index", "-")
	if err != nil {
		return err
	}
	said, err := r.refused(ctx, "the index knows of more than the nodes")
	if err != nil {
		return err
	}
	r.say("found", "the start is refused: %s", said)
	after, err := r.offline(ctx, "export-index", "-")
	if err != nil {
		return err
	}
	if head.code != 0 || after.code != 0 || !bytes.Equal(head.stdout, after.stdout) {
		return brokenf("the refused start has not left %s as it was", index)
	}
	if err := os.RemoveAll(filepath.Join(r.data, "nodes")); err != nil {
		return err
	}
	if err := os.Rename(today, filepath.Join(r.data, "nodes")); err != nil {
		return err
	}
	r.say("repaired", "the newest node directories are back")
	if err := r.start(ctx); err != nil {
		return err
	}
	return r.sound(ctx)
}
