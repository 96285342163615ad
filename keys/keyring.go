package keys

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"

	"cairn/id"
)

// roots is what the master key seals.
type roots struct {
	meta, index, digest, cluster Secret
	realms                       []*Realm // by number
}

// Keyring is one generation of a store's keyring, unlocked. It never changes.
type Keyring struct {
	cluster    id.Cluster
	generation uint64
	slots      []slot // by number
	nextSlot   uint32
	master     Secret
	roots      roots
	random     io.Reader
	wrapped    []byte // nil while there is no slot
}

// New makes the keyring of a new store, with realm [id.Main] in its first epoch
// and no slot yet: it is lost with the process until AddSlot has given it one
// and the result is stored. Keys come from random, nil means crypto/rand; it is
// kept for what later generations need.
func New(cluster id.Cluster, random io.Reader) (*Keyring, error) {
	if cluster.IsZero() {
		return nil, fmt.Errorf("%w: a keyring for no cluster", ErrInvalid)
	}
	k := &Keyring{cluster: cluster, nextSlot: 1, random: random}
	for _, s := range []*Secret{&k.master, &k.roots.meta, &k.roots.index, &k.roots.digest, &k.roots.cluster} {
		var err error
		if *s, err = draw(random); err != nil {
			return nil, err
		}
	}
	return k.AddRealm(id.Main)
}

// next is the keyring of the next generation, to be changed and finished.
func (k *Keyring) next() *Keyring {
	n := *k
	n.generation++
	n.slots = slices.Clone(k.slots)
	n.roots.realms = slices.Clone(k.roots.realms)
	return &n
}

// finish seals what next began.
func (k *Keyring) finish() (*Keyring, error) {
	k.wrapped = nil
	if len(k.slots) == 0 {
		return k, nil
	}
	var err error
	if k.wrapped, err = k.encode(); err != nil {
		return nil, err
	}
	return k, nil
}

// Marshal returns the wrapped keyring, the one encoding of this generation: no
// two calls differ. The caller owns the result. A keyring without a slot, which
// nobody could ever open, panics.
func (k *Keyring) Marshal() []byte {
	if k.wrapped == nil {
		panic("keys: a keyring without a slot is not to be stored")
	}
	return bytes.Clone(k.wrapped)
}

// Cluster is the store the keyring belongs to.
func (k *Keyring) Cluster() id.Cluster { return k.cluster }

// Generation counts the changes since the keyring was made. Of two keyrings of
// one cluster the one with the higher generation is newer.
func (k *Keyring) Generation() uint64 { return k.generation }

// Slots lists the ways to unlock the keyring, by number.
func (k *Keyring) Slots() []Slot { return describe(k.slots) }

// Realms lists the realms by number.
func (k *Keyring) Realms() []id.Realm {
	var out []id.Realm
	for _, r := range k.roots.realms {
		out = append(out, r.number)
	}
	return out
}

func (k *Keyring) realm(n id.Realm) (int, bool) {
	return slices.BinarySearchFunc(k.roots.realms, n, func(r *Realm, n id.Realm) int {
		switch {
		case r.number < n:
			return -1
		case r.number > n:
			return 1
		}
		return 0
	})
}

// Realm returns what belongs to a realm; one that is not there is [ErrUnknown].
func (k *Keyring) Realm(n id.Realm) (*Realm, error) {
	i, ok := k.realm(n)
	if !ok {
		return nil, fmt.Errorf("%w: realm %d", ErrUnknown, n)
	}
	return k.roots.realms[i], nil
}

// AddRealm returns the next generation, with a new realm in its first epoch.
func (k *Keyring) AddRealm(n id.Realm) (*Keyring, error) {
	i, ok := k.realm(n)
	if n == 0 || ok {
		return nil, fmt.Errorf("%w: realm %d cannot be added", ErrInvalid, n)
	}
	var s [3]Secret
	for j := range s {
		var err error
		if s[j], err = draw(k.random); err != nil {
			return nil, err
		}
	}
	next := k.next()
	next.roots.realms = slices.Insert(next.roots.realms, i, newRealm(n, s[0], s[1], []Secret{s[2]}))
	return next.finish()
}

// Rotate returns the next generation, in which the realm has a new epoch to seal
// under. What earlier epochs sealed stays readable; chunk IDs stay as they are.
func (k *Keyring) Rotate(n id.Realm) (*Keyring, error) {
	i, ok := k.realm(n)
	if !ok {
		return nil, fmt.Errorf("%w: realm %d", ErrUnknown, n)
	}
	s, err := draw(k.random)
	if err != nil {
		return nil, err
	}
	next, r := k.next(), k.roots.realms[i]
	next.roots.realms[i] = newRealm(n, r.ids, r.records, append(slices.Clip(slices.Clone(r.epochs)), s))
	return next.finish()
}

// AddSlot returns the next generation, which p unlocks too.
func (k *Keyring) AddSlot(ctx context.Context, p Provider) (*Keyring, error) {
	if len(k.slots) == maxSlots {
		return nil, fmt.Errorf("%w: a keyring has at most %d slots", ErrInvalid, maxSlots)
	}
	kind := p.Kind()
	if !kind.valid() {
		return nil, fmt.Errorf("%w: a provider of %v", ErrInvalid, kind)
	}
	blob, err := p.Wrap(ctx, k.master)
	if err != nil {
		return nil, fmt.Errorf("wrap the master key for a %v: %w", kind, err)
	}
	if len(blob) == 0 || len(blob) > maxBlob {
		return nil, fmt.Errorf("%w: a slot of %d bytes for a %v; 1 to %d are possible", ErrInvalid, len(blob), kind, maxBlob)
	}
	next := k.next()
	next.slots = append(next.slots, slot{number: next.nextSlot, kind: kind, blob: bytes.Clone(blob)})
	next.nextSlot++
	return next.finish()
}

// RemoveSlot returns the next generation without a slot; the last one stays.
//
// Whoever kept an old generation and the key of the slot can still open that
// generation, and with it everything sealed under the roots it has: removing a
// slot keeps a key from being used, it does not undo that somebody knows it.
func (k *Keyring) RemoveSlot(number uint32) (*Keyring, error) {
	i := slices.IndexFunc(k.slots, func(s slot) bool { return s.number == number })
	switch {
	case i < 0:
		return nil, fmt.Errorf("%w: slot %d", ErrUnknown, number)
	case len(k.slots) == 1:
		return nil, fmt.Errorf("%w: slot %d is the last one", ErrInvalid, number)
	}
	next := k.next()
	next.slots = slices.Delete(next.slots, i, i+1)
	return next.finish()
}

// Open unlocks a wrapped keyring with p, trying each slot of its kind. cluster
// is the store the keyring should belong to; zero takes any. The error wraps
//
//   - [ErrDamaged] when the keyring is cut or altered;
//   - [ErrForeign] when it is another cluster's, before p is asked;
//   - [ErrNewer] when a newer version wrote it;
//   - [ErrWrongKey] when p opens none of the slots, or there is none of its kind;
//   - else what p said, such as a key service that does not answer.
//
// Slots are tried before anything in the keyring is authenticated, so p bounds
// what it does at their word.
func Open(ctx context.Context, cluster id.Cluster, wrapped []byte, p Provider) (*Keyring, error) {
	f, err := parse(wrapped)
	if err != nil {
		return nil, err
	}
	if !cluster.IsZero() && f.cluster != cluster {
		return nil, fmt.Errorf("%w: of %v, this is %v", ErrForeign, f.cluster, cluster)
	}
	kind, tried, wrong := p.Kind(), 0, 0
	var errs []error
	for _, s := range f.slots {
		if s.kind != kind {
			continue
		}
		tried++
		master, err := p.Unwrap(ctx, bytes.Clone(s.blob))
		switch {
		case errors.Is(err, ErrWrongKey):
			wrong++
		case err != nil:
			errs = append(errs, fmt.Errorf("slot %d: %w", s.number, err))
		default:
			return f.open(master)
		}
	}
	if len(errs) > 0 {
		return nil, fmt.Errorf("unlock the keyring with a %v: %w", kind, errors.Join(errs...))
	}
	if tried == 0 {
		return nil, fmt.Errorf("%w: no slot of the keyring is for a %v", ErrWrongKey, kind)
	}
	return nil, fmt.Errorf("%w: the %v opens none of its %d slots", ErrWrongKey, kind, wrong)
}

// Summary is what a wrapped keyring says of itself before it is unlocked.
// Nothing of it is authenticated.
type Summary struct {
	Cluster    id.Cluster
	Generation uint64
	Slots      []Slot
}

// Inspect reads a wrapped keyring without a key, so that the newest of several
// can be found. The error wraps [ErrDamaged] or [ErrNewer].
func Inspect(wrapped []byte) (Summary, error) {
	f, err := parse(wrapped)
	if err != nil {
		return Summary{}, err
	}
	return Summary{Cluster: f.cluster, Generation: f.generation, Slots: describe(f.slots)}, nil
}

func (k *Keyring) String() string {
	return fmt.Sprintf("keyring of %v, generation %d", k.cluster, k.generation)
}

// Format implements [fmt.Formatter]: every verb prints what String does.
func (k *Keyring) Format(f fmt.State, _ rune) { _, _ = io.WriteString(f, k.String()) }
