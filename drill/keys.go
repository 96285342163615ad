package drill

import (
	"bytes"
	"context"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"syscall"
	"time"
)

func keyring(ctx context.Context, r *rig) error {
	copyOf := filepath.Join(r.dir, "exported.keyring")
	defer os.Remove(copyOf)
	c, err := r.offline(ctx, "keys", "export", copyOf)
	if err != nil {
		return err
	}
	if c.code != 0 {
		return &broken{c.String()}
	}
	spoil := func(path string) error {
		n, err := rot(r.rng, path, 1<<20)
		if err == nil && n == 0 {
			err = fmt.Errorf("no bit in %s could be flipped", path)
		}
		return err
	}
	for _, v := range r.pick(r.nodes, len(r.nodes)-1) {
		if err := spoil(filepath.Join(r.node(v), "keyring")); err != nil {
			return err
		}
	}
	if err := spoil(filepath.Join(r.data, "keyring")); err != nil {
		return err
	}
	r.say("broke", "a bit flips in all copies of the keyring but one")
	if err := r.start(ctx); err != nil {
		return err
	}
	if err := r.check(ctx); err != nil {
		return err
	}
	if err := r.stop(); err != nil {
		return err
	}
	for _, v := range r.nodes {
		if err := spoil(filepath.Join(r.node(v), "keyring")); err != nil {
			return err
		}
	}
	if err := spoil(filepath.Join(r.data, "keyring")); err != nil {
		return err
	}
	r.say("broke", "a bit flips in all copies of the keyring")
	said, err := r.refused(ctx, "no copy of the keyring is right")
	if err != nil {
		return err
	}
	r.say("found", "the start is refused: %s", said)
	if err := os.Remove(filepath.Join(r.data, "keyring")); err != nil {
		return err
	}
	if err := copyFile(copyOf, filepath.Join(r.data, "keyring")); err != nil {
		return err
	}
	r.say("repaired", "what cairn keys export wrote before is put into DIR/keyring")
	if err := r.start(ctx); err != nil {
		return err
	}
	return r.sound(ctx)
}

func wrongKey(ctx context.Context, r *rig) error {
	other := filepath.Join(r.dir, "other")
	defer os.RemoveAll(other)
	s, serving, err := r.launch(ctx, other, "--key-file", filepath.Join(r.dir, "other.key"))
	if err != nil {
		return err
	}
	if !serving {
		return fmt.Errorf("another store does not begin: %s", s.said())
	}
	s.end(syscall.SIGTERM)
	right, err := os.ReadFile(r.key)
	if err != nil {
		return err
	}
	bad := filepath.Join(r.dir, "damaged.key")
	spoiled := bytes.Clone(right)
	spoiled[len(spoiled)/2] ^= 1
	if err := os.WriteFile(bad, spoiled, 0o600); err != nil {
		return err
	}
	defer os.Remove(bad)
	before, err := fingerprint(filepath.Join(r.data, "nodes"), filepath.Join(r.data, "index"))
	if err != nil {
		return err
	}
	var words []string
	for _, try := range []struct{ what, file string }{{"the key file is missing", filepath.Join(r.dir, "no.key")}, {"a bit of the key file has flipped", bad}, {"the key file is another store's", filepath.Join(r.dir, "other.key")}} {
		r.say("broke", "%s", try.what)
		said, err := r.refused(ctx, try.what, "--key-file", try.file)
		if err != nil {
			return err
		}
		r.say("found", "the start is refused: %s", said)
		if slices.Contains(words, said) {
			return brokenf("%s, and what is said does not tell it from other mistakes: %s", try.what, said)
		}
		words = append(words, said)
	}
	after, err := fingerprint(filepath.Join(r.data, "nodes"), filepath.Join(r.data, "index"))
	if err != nil {
		return err
	}
	if before != after {
		return brokenf("starts that were refused for their keys have changed the store")
	}
	r.say("found", "no file of nodes or index has changed (sha256 %x)", after)
	if err := r.start(ctx); err != nil {
		return err
	}
	return r.sound(ctx)
}

func lostKey(ctx context.Context, r *rig) error {
	codes, err := filepath.Glob(filepath.Join(r.config, "cairn", "*.recovery"))
	if err != nil {
		return err
	}
	if r.cfg.Data != "" || len(codes) != 1 {
		return &skipped{"the drill does not have the store's recovery code"}
	}
	lost, anew := r.key, filepath.Join(r.dir, "new.key")
	defer func() { r.key = lost }() // other scenarios have keyrings that know only that one
	defer os.Remove(anew)
	r.key = anew
	r.say("broke", "the key file is not there")
	said, err := r.refused(ctx, "there is no key file")
	if err != nil {
		return err
	}
	r.say("found", "the start is refused: %s", said)
	began := time.Now()
	if err := r.start(ctx, "--key-file", anew, "--recovery-code-file", codes[0]); err != nil {
		return err
	}
	r.say("repaired", "a start with the recovery code serves, and has made a new key file, after %v", time.Since(began).Round(time.Millisecond))
	if err := r.check(ctx); err != nil {
		return err
	}
	if err := r.stop(); err != nil {
		return err
	}
	if err := r.start(ctx); err != nil {
		return err
	}
	return r.sound(ctx)
}

func notMounted(ctx context.Context, r *rig) error {
	if err := r.start(ctx); err != nil {
		return err
	}
	if err := r.stop(); err != nil {
		return err
	}
	away := filepath.Join(r.dir, "away")
	if err := os.Rename(r.data, away); err != nil {
		return err
	}
	if err := os.Mkdir(r.data, 0o700); err != nil {
		return err
	}
	r.say("broke", "DIR is an empty directory")
	said, err := r.refused(ctx, "the data directory is empty and has held a store")
	if err != nil {
		return err
	}
	r.say("found", "the start is refused: %s", said)
	made, err := files(r.data, func(p string, _ fs.FileInfo) bool { return filepath.Base(p) != "lock" })
	if err != nil {
		return err
	}
	if len(made) > 0 {
		return brokenf("the refused start has made %s", made[0])
	}
	if err := os.RemoveAll(r.data); err != nil {
		return err
	}
	if err := os.Rename(away, r.data); err != nil {
		return err
	}
	r.say("repaired", "DIR is back")
	if err := r.start(ctx); err != nil {
		return err
	}
	return r.sound(ctx)
}

func twice(ctx context.Context, r *rig) error {
	if err := r.start(ctx); err != nil {
		return err
	}
	r.say("broke", "a second server is started on the directory")
	said, err := r.refused(ctx, "the directory is served already")
	if err != nil {
		return err
	}
	r.say("found", "it is refused: %s", said)
	for _, command := range []string{"verify", "rebuild", "reclaim"} {
		c, err := r.offline(ctx, command)
		if err != nil {
			return err
		}
		if c.code != 3 {
			return brokenf("the directory is served, and %v", c)
		}
	}
	r.say("found", "cairn verify, rebuild and reclaim are refused as well (exit code 3)")
	return r.sound(ctx)
}
