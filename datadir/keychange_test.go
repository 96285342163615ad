package datadir

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"cairn/keys"
	"cairn/node"
	"cairn/store"
)

func cheapPassphrase(t *testing.T, text string) keys.Passphrase {
	t.Helper()
	p, err := keys.NewPassphraseCost([]byte(text), keys.Argon2{Time: 1, Memory: 8, Threads: 1})
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func adding(p keys.Provider) func(*keys.Keyring) (*keys.Keyring, error) {
	return func(k *keys.Keyring) (*keys.Keyring, error) { return k.AddSlot(context.Background(), p) }
}

func removing(n uint32) func(*keys.Keyring) (*keys.Keyring, error) {
	return func(k *keys.Keyring) (*keys.Keyring, error) { return k.RemoveSlot(n) }
}

// change opens a data directory as the offline commands do and changes its
// keyring.
func change(p place, fn func(*keys.Keyring) (*keys.Keyring, error)) error {
	d, err := Open(context.Background(), Options{Dir: p.data, Config: p.config})
	if err != nil {
		return err
	}
	return errors.Join(d.ChangeKeyring(context.Background(), fn), d.Close())
}

// ringFiles are the files with copies of the keyring, in the order in which a
// change writes them.
func ringFiles(p place) []string {
	out := []string{filepath.Join(p.data, "keyring")}
	for i := range 6 {
		out = append(out, filepath.Join(p.data, "nodes", NodeName(i), "keyring"))
	}
	return out
}

func readAll(t *testing.T, names []string) []string {
	t.Helper()
	out := make([]string, len(names))
	for i, name := range names {
		b, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		out[i] = string(b)
	}
	return out
}

func writeAll(t *testing.T, names, content []string) {
	t.Helper()
	for i, name := range names {
		if err := os.WriteFile(name, []byte(content[i]), 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

func generations(t *testing.T, p place) []uint64 {
	t.Helper()
	k, err := LookAtKeys(Options{Dir: p.data, Config: p.config})
	if err != nil {
		t.Fatal(err)
	}
	var out []uint64
	for _, c := range k.Copies {
		s, err := keys.Inspect(c.Wrapped)
		if err != nil || c.Err != nil {
			t.Fatalf("copy in %q: %v, %v", c.Where, err, c.Err)
		}
		out = append(out, s.Generation)
	}
	return out
}

// opens tries a key on what is on disk, as a start would.
func opens(t *testing.T, p place, with keys.Provider) error {
	t.Helper()
	k, err := LookAtKeys(Options{Dir: p.data, Config: p.config})
	if err != nil {
		t.Fatal(err)
	}
	_, err = k.Open(context.Background(), with)
	return err
}

// TestKeyringChangeCutShort makes the state after each write of a change: the old
// keyring or the new one counts, one start later it is the same everywhere, and
// the object is read (H56).
func TestKeyringChangeCutShort(t *testing.T) {
	t.Parallel()
	p, _ := begun(t)
	files := ringFiles(p)
	pass := cheapPassphrase(t, "a passphrase of this test")
	zero := readAll(t, files)
	if err := change(p, adding(pass)); err != nil {
		t.Fatal(err)
	}
	added := readAll(t, files)
	k, err := LookAtKeys(Options{Dir: p.data, Config: p.config})
	if err != nil {
		t.Fatal(err)
	}
	s, err := keys.Inspect(k.Copies[0].Wrapped)
	if err != nil {
		t.Fatal(err)
	}
	slot := s.Slots[len(s.Slots)-1]
	if slot.Kind != keys.PassphraseSlot {
		t.Fatalf("the last slot is a %v", slot.Kind)
	}
	if err := change(p, removing(slot.Number)); err != nil {
		t.Fatal(err)
	}
	removed := readAll(t, files)
	for _, c := range []struct {
		name     string
		old, new []string
	}{{"add", zero, added}, {"remove", added, removed}} {
		for n := range len(files) + 1 {
			at := fmt.Sprintf("%s, cut after %d of %d writes", c.name, n, len(files))
			writeAll(t, files, append(append([]string{}, c.new[:n]...), c.old[n:]...))
			// More than half of the seven copies must have it before a removed key is none.
			want := c.name == "add" && n > 0 || c.name == "remove" && n <= len(files)/2
			if err := opens(t, p, pass); (err == nil) != want || err != nil && !errors.Is(err, keys.ErrWrongKey) {
				t.Errorf("%s: with the passphrase: %v, want it to open: %v", at, err, want)
			}
			if err := start(t, p.options(), getStone); err != nil {
				t.Errorf("%s: %v", at, err)
				continue
			}
			got, generation := generations(t, p), s.Generation
			if c.name == "add" && n == 0 {
				generation--
			} else if c.name == "remove" && n > 0 {
				generation++
			}
			for i, g := range got {
				if g != generation {
					t.Errorf("%s: after a start copy %d is of generation %d, want %d", at, i, g, generation)
				}
			}
			want = c.name == "add" && n > 0 || c.name == "remove" && n == 0
			if err := opens(t, p, pass); (err == nil) != want {
				t.Errorf("%s: after a start the passphrase: %v, want it to open: %v", at, err, want)
			}
		}
	}
}

// TestKeyringChangeWithNodesAway: a change needs more than half of the nodes; who
// was away is brought up when it is back, and its old copy opens nothing.
func TestKeyringChangeWithNodesAway(t *testing.T) {
	t.Parallel()
	p, _ := begun(t)
	away := func(back bool, names ...int) {
		t.Helper()
		for _, i := range names {
			from, to := filepath.Join(p.data, "nodes", NodeName(i)), filepath.Join(p.base, NodeName(i))
			if back {
				from, to = to, from
			}
			if err := os.Rename(from, to); err != nil {
				t.Fatal(err)
			}
		}
	}
	first, second := cheapPassphrase(t, "the first passphrase"), cheapPassphrase(t, "the second passphrase")
	if err := change(p, adding(first)); err != nil {
		t.Fatal(err)
	}
	before := contents(t, p.data)
	away(false, 0, 1, 2)
	if err := change(p, adding(second)); !errors.Is(err, node.ErrUnavailable) {
		t.Errorf("with three of six nodes away: %v, want node.ErrUnavailable", err)
	}
	away(true, 0, 1, 2)
	for name, b := range contents(t, p.data) {
		if strings.HasSuffix(name, "keyring") && b != before[name] {
			t.Errorf("what was refused has changed %s", name)
		}
	}
	away(false, 4, 5)
	if err := change(p, removing(3)); err != nil {
		t.Fatal(err)
	}
	if err := change(p, adding(second)); err != nil {
		t.Fatal(err)
	}
	away(true, 4, 5)
	if err := opens(t, p, first); !errors.Is(err, keys.ErrWrongKey) {
		t.Errorf("a removed passphrase with two nodes back that have its slot: %v, want keys.ErrWrongKey", err)
	}
	if err := opens(t, p, second); err != nil {
		t.Errorf("the passphrase that was added since: %v", err)
	}
	if err := start(t, p.options(), getStone); err != nil {
		t.Fatal(err)
	}
	got := generations(t, p)
	for i, g := range got {
		if g != got[0] {
			t.Errorf("after a start copy %d is of generation %d, the first of %d", i, g, got[0])
		}
	}
	if err := start(t, Options{Dir: p.data, Config: p.config, Unlock: second}, getStone); err != nil {
		t.Errorf("opened with the passphrase: %v", err)
	}
}

// TestKeyringCopiesAreBroughtUp: rot, loss, and a rival of the same generation do
// not stay; a later generation that does not open does, and is in nobody's way.
func TestKeyringCopiesAreBroughtUp(t *testing.T) {
	t.Parallel()
	p, _ := begun(t)
	files := ringFiles(p)
	zero := readAll(t, files)
	if err := change(p, adding(cheapPassphrase(t, "rival"))); err != nil {
		t.Fatal(err)
	}
	rival := readAll(t, files)
	writeAll(t, files, zero)
	if err := change(p, adding(cheapPassphrase(t, "winner"))); err != nil {
		t.Fatal(err)
	}
	good := readAll(t, files)
	state := append([]string{}, good...)
	state[0] = good[0][:100]                                                 // cut
	state[1] = rival[1]                                                      // the same generation, from a change that was cut short
	state[2] = zero[2]                                                       // an older one
	state[3] = good[3][:80] + string([]byte{good[3][80] ^ 1}) + good[3][81:] // rotten
	writeAll(t, files, state)
	if err := os.Remove(files[4]); err != nil {
		t.Fatal(err)
	}
	if err := start(t, p.options(), getStone); err != nil {
		t.Fatal(err)
	}
	for i, b := range readAll(t, files) {
		if b != good[i] {
			t.Errorf("copy %d is not what most others hold", i)
		}
	}
	// Another generation on: our key's slot is not in it, as far as one node says.
	d, err := Open(context.Background(), Options{Dir: p.data, Config: p.config})
	if err != nil {
		t.Fatal(err)
	}
	next, err := d.Keyring.RemoveSlot(1) // the key file's
	if err != nil {
		t.Fatal(err)
	}
	if err := writeKeyring(context.Background(), d.Nodes[NodeName(5)], next.Marshal()); err != nil {
		t.Fatal(err)
	}
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
	planted := readAll(t, files)[6]
	if err := start(t, p.options(), getStone); err != nil {
		t.Fatal(err)
	}
	if readAll(t, files)[6] != planted {
		t.Error("a later generation that does not open was overwritten")
	}
}

// TestRecoveryCodeUntilConfirmed: each start shows it, no wrong word takes it
// away, and the right one does while the store is served.
func TestRecoveryCodeUntilConfirmed(t *testing.T) {
	t.Parallel()
	p, cluster := begun(t)
	other, _ := begun(t)
	code := ""
	pending := func() string {
		t.Helper()
		var got string
		if err := start(t, p.options(), func(d *Dir, _ *store.Store) (err error) {
			got, err = d.PendingRecovery()
			return err
		}); err != nil {
			t.Fatal(err)
		}
		return got
	}
	if code = pending(); code == "" || code != pending() {
		t.Fatalf("starts show %q and something else", code)
	}
	if info, err := os.Stat(filepath.Join(p.config, cluster.String()+".recovery")); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("its file: %v, %v; want mode 0600", info, err)
	}
	foreign, err := LookAtKeys(Options{Dir: other.data, Config: other.config})
	if err != nil {
		t.Fatal(err)
	}
	if done, err := foreign.ConfirmRecovery(context.Background(), code); done || !errors.Is(err, keys.ErrWrongKey) {
		t.Errorf("another store's code: %v, %v; want keys.ErrWrongKey", done, err)
	}
	d, err := Open(context.Background(), p.options()) // and holds the locks
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	k, err := LookAtKeys(Options{Dir: p.data, Config: p.config})
	if err != nil {
		t.Fatal(err)
	}
	if done, err := k.ConfirmRecovery(context.Background(), code[:len(code)-1]); done || err == nil {
		t.Errorf("a code that is cut: %v, %v; want an error", done, err)
	}
	if k.RecoveryPending() == "" {
		t.Fatal("a wrong code took it away")
	}
	if done, err := k.ConfirmRecovery(context.Background(), strings.ToLower(code)); !done || err != nil {
		t.Errorf("the code: %v, %v", done, err)
	}
	if done, err := k.ConfirmRecovery(context.Background(), code); done || err != nil {
		t.Errorf("once more: %v, %v; want false and no error", done, err)
	}
	if got, err := d.PendingRecovery(); got != "" || err != nil {
		t.Errorf("confirmed, and shown again: %q, %v", got, err)
	}
}

// TestRecoveryCodeIsReplaced: the new code opens the store and the old one does not;
// cut short at any write, one of the two holds, and the starts show one that does.
func TestRecoveryCodeIsReplaced(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	p, cluster := begun(t)
	files := ringFiles(p)
	shown := filepath.Join(p.config, cluster.String()+".recovery")
	next := shown + ".new"
	provider := func(code string) keys.Provider {
		t.Helper()
		c, err := keys.ParseRecoveryCode(code)
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	was, oldShown := readAll(t, files), readAll(t, []string{shown})[0]
	d, err := Open(ctx, Options{Dir: p.data, Config: p.config})
	if err != nil {
		t.Fatal(err)
	}
	code, err := d.ReplaceRecovery(ctx)
	if err = errors.Join(err, d.Close()); err != nil {
		t.Fatal(err)
	}
	now, newShown := readAll(t, files), readAll(t, []string{shown})[0]
	if strings.TrimSpace(newShown) != code || strings.TrimSpace(oldShown) == code {
		t.Errorf("the starts would show %q; the code is %q, it was %q", newShown, code, oldShown)
	}
	if err := opens(t, p, provider(oldShown)); !errors.Is(err, keys.ErrWrongKey) {
		t.Errorf("the old code: got %v, want %v", err, keys.ErrWrongKey)
	}
	if err := opens(t, p, provider(code)); err != nil {
		t.Errorf("the new code: %v", err)
	}

	// after the file of the new code, 0 to 7 copies of the keyring are new.
	for cut := range len(files) + 1 {
		writeAll(t, files, append(append([]string{}, now[:cut]...), was[cut:]...))
		writeAll(t, []string{shown, next}, []string{oldShown, newShown})
		want := oldShown
		if cut > 0 {
			want = newShown // the newest that opens counts
		}
		var got string
		if err := start(t, p.options(), func(d *Dir, _ *store.Store) (err error) {
			got, err = d.PendingRecovery()
			return err
		}); err != nil {
			t.Fatal(err)
		}
		if got != strings.TrimSpace(want) {
			t.Errorf("cut short after %d copies: a start shows %q, want %q", cut, got, want)
		}
		if err := opens(t, p, provider(want)); err != nil {
			t.Errorf("cut short after %d copies: what is shown opens nothing: %v", cut, err)
		}
		if _, err := os.Stat(next); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("cut short after %d copies: the start leaves %s: %v", cut, next, err)
		}
	}

	// Done again behind one that was cut short before its file had its name, and cut
	// short itself before the keyring: the code of the first one holds, and is shown.
	writeAll(t, files, now)
	writeAll(t, []string{shown, next}, []string{oldShown, newShown})
	d, err = Open(ctx, Options{Dir: p.data, Config: p.config})
	if err != nil {
		t.Fatal(err)
	}
	broken, stop := context.WithCancel(ctx)
	stop()
	if _, err := d.ReplaceRecovery(broken); err == nil {
		t.Error("a replacement without time for it succeeds")
	}
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
	if got := readAll(t, []string{shown})[0]; got != newShown {
		t.Errorf("the code that holds is in no file; what would be shown is %q", got)
	}

	// It is confirmed before a start has seen it.
	writeAll(t, files, now)
	writeAll(t, []string{shown, next}, []string{oldShown, newShown})
	k, err := LookAtKeys(Options{Dir: p.data, Config: p.config})
	if err != nil {
		t.Fatal(err)
	}
	if done, err := k.ConfirmRecovery(ctx, code); !done || err != nil || k.RecoveryPending() != "" {
		t.Errorf("confirmed: %v, %v; still pending %q", done, err, k.RecoveryPending())
	}
}

// TestKeyringChangeHalfDone: with too few nodes that take it, a change is not said
// to be done; done again, it is.
func TestKeyringChangeHalfDone(t *testing.T) {
	t.Parallel()
	p, _ := begun(t)
	d, err := Open(context.Background(), Options{Dir: p.data, Config: p.config})
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	// A directory in the place of the file: nothing can be renamed over it.
	block := func(on bool) {
		t.Helper()
		for i := range 3 {
			name := filepath.Join(p.data, "nodes", NodeName(i), "keyring")
			if on {
				if err := os.Remove(name); err != nil {
					t.Fatal(err)
				}
				write(t, name, "in the way", "x")
			} else if err := os.RemoveAll(name); err != nil {
				t.Fatal(err)
			}
		}
	}
	before, pass := d.Keyring.Generation(), cheapPassphrase(t, "half done")
	block(true)
	if err := d.ChangeKeyring(context.Background(), adding(pass)); !errors.Is(err, ErrHalf) || d.Keyring.Generation() != before {
		t.Errorf("three of six nodes do not take it: %v, the keyring is of generation %d; want ErrHalf and %d", err, d.Keyring.Generation(), before)
	}
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
	block(false)
	if err := change(p, adding(pass)); err != nil {
		t.Fatal(err)
	}
	if err := start(t, p.options(), getStone); err != nil {
		t.Fatal(err)
	}
	if err := opens(t, p, pass); err != nil {
		t.Errorf("done again: %v", err)
	}
}
