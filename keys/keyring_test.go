package keys

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/zeebo/blake3"
	"pgregory.net/rapid"

	"cairn/id"
)

var (
	ctx         = context.Background()
	testCluster = id.Cluster{1, 2, 3}
	cheap       = Argon2{Time: 1, Memory: 8, Threads: 1}
)

// unlocked returns a keyring and a key file that opens it.
func unlocked(t testing.TB) (*Keyring, KeyFile) {
	t.Helper()
	f, err := NewKeyFile(nil)
	if err != nil {
		t.Fatal(err)
	}
	k, err := New(testCluster, nil)
	if err != nil {
		t.Fatal(err)
	}
	if k, err = k.AddSlot(ctx, f); err != nil {
		t.Fatal(err)
	}
	return k, f
}

// resum gives altered bytes their checksum.
func resum(b []byte) []byte {
	sum := blake3.Sum256(b[:len(b)-sumSize])
	copy(b[len(b)-sumSize:], sum[:])
	return b
}

func providers(t testing.TB) []Provider {
	t.Helper()
	f, err := NewKeyFile(nil)
	if err != nil {
		t.Fatal(err)
	}
	code, err := NewRecoveryCode(nil)
	if err != nil {
		t.Fatal(err)
	}
	pass, err := NewPassphraseCost([]byte(code.Reveal()), cheap)
	if err != nil {
		t.Fatal(err)
	}
	return []Provider{f, pass, code}
}

func TestEveryKindOfSlotOpens(t *testing.T) {
	k, err := New(testCluster, nil)
	if err != nil {
		t.Fatal(err)
	}
	mine, others := providers(t), providers(t)
	for _, p := range mine {
		if k, err = k.AddSlot(ctx, p); err != nil {
			t.Fatal(err)
		}
	}
	b := k.Marshal()
	for i, p := range mine {
		got, err := Open(ctx, testCluster, b, p)
		if err != nil {
			t.Fatalf("%v: %v", p.Kind(), err)
		}
		if !bytes.Equal(got.appendRoots(), k.appendRoots()) || !got.master.Equal(k.master) || !slices.Equal(got.Slots(), k.Slots()) || got.nextSlot != k.nextSlot {
			t.Errorf("%v opens another keyring", p.Kind())
		}
		if _, err := Open(ctx, testCluster, b, others[i]); !errors.Is(err, ErrWrongKey) || errors.Is(err, ErrDamaged) || errors.Is(err, ErrNoKey) {
			t.Errorf("another %v: %v, want ErrWrongKey", p.Kind(), err)
		}
	}
	only, _ := unlocked(t)
	if _, err := Open(ctx, testCluster, only.Marshal(), mine[2]); !errors.Is(err, ErrWrongKey) || !strings.Contains(err.Error(), "no slot") {
		t.Errorf("a recovery code where there is no slot for one: %v, want ErrWrongKey", err)
	}
}

func TestForeignKeyringIsNamed(t *testing.T) {
	k, f := unlocked(t)
	asked := false
	p := fake{f, func() { asked = true }}
	if _, err := Open(ctx, id.Cluster{9}, k.Marshal(), p); !errors.Is(err, ErrForeign) {
		t.Errorf("a foreign keyring: %v, want ErrForeign", err)
	}
	if asked {
		t.Error("a provider was asked to open a foreign keyring")
	}
	if _, err := Open(ctx, id.Cluster{}, k.Marshal(), p); err != nil || !asked {
		t.Errorf("without a cluster: %v", err)
	}
	if _, err := New(id.Cluster{}, nil); !errors.Is(err, ErrInvalid) {
		t.Errorf("a keyring for no cluster: %v, want ErrInvalid", err)
	}
}

// fake tells when it is asked.
type fake struct {
	Provider
	called func()
}

func (f fake) Unwrap(ctx context.Context, b []byte) (Secret, error) {
	f.called()
	return f.Provider.Unwrap(ctx, b)
}

// service is a key management service that can be out of reach.
type service struct {
	KeyFile
	err error
}

func (service) Kind() SlotKind { return ServiceSlot }
func (s service) Wrap(ctx context.Context, m Secret) ([]byte, error) {
	if s.err != nil {
		return nil, s.err
	}
	return s.KeyFile.Wrap(ctx, m)
}
func (s service) Unwrap(ctx context.Context, b []byte) (Secret, error) {
	if s.err != nil {
		return Secret{}, s.err
	}
	return s.KeyFile.Unwrap(ctx, b)
}

func TestKeyServiceFits(t *testing.T) {
	k, f := unlocked(t)
	away := errors.New("connection refused")
	if _, err := k.AddSlot(ctx, service{f, away}); !errors.Is(err, away) {
		t.Errorf("AddSlot: %v, want the service's error", err)
	}
	k, err := k.AddSlot(ctx, service{f, nil})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Open(ctx, testCluster, k.Marshal(), service{f, nil}); err != nil {
		t.Error(err)
	}
	_, err = Open(ctx, testCluster, k.Marshal(), service{f, away})
	if !errors.Is(err, away) || errors.Is(err, ErrWrongKey) || errors.Is(err, ErrDamaged) || errors.Is(err, ErrNoKey) {
		t.Errorf("Open: %v, want the service's error and nothing else", err)
	}
}

func TestEverySlotOfAKindIsTried(t *testing.T) {
	k, f := unlocked(t)
	g, err := NewKeyFile(nil)
	if err != nil {
		t.Fatal(err)
	}
	if k, err = k.AddSlot(ctx, g); err != nil {
		t.Fatal(err)
	}
	for _, p := range []KeyFile{f, g} {
		if _, err := Open(ctx, testCluster, k.Marshal(), p); err != nil {
			t.Error(err)
		}
	}
}

func TestSlotsAreAddedAndRemoved(t *testing.T) {
	k, f := unlocked(t)
	if _, err := k.RemoveSlot(1); !errors.Is(err, ErrInvalid) {
		t.Errorf("remove the last slot: %v, want ErrInvalid", err)
	}
	if _, err := k.RemoveSlot(2); !errors.Is(err, ErrUnknown) {
		t.Errorf("remove slot 2 of 1: %v, want ErrUnknown", err)
	}
	g, err := NewKeyFile(nil)
	if err != nil {
		t.Fatal(err)
	}
	two, err := k.AddSlot(ctx, g)
	if err != nil {
		t.Fatal(err)
	}
	one, err := two.RemoveSlot(1)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Open(ctx, testCluster, one.Marshal(), f); !errors.Is(err, ErrWrongKey) {
		t.Errorf("the key of a removed slot: %v, want ErrWrongKey", err)
	}
	if _, err := Open(ctx, testCluster, one.Marshal(), g); err != nil {
		t.Error(err)
	}
	if one, err = one.RemoveSlot(2); !errors.Is(err, ErrInvalid) || one != nil {
		t.Errorf("remove the last slot: %v, %v, want ErrInvalid", one, err)
	}
	if again, err := two.RemoveSlot(2); err != nil {
		t.Error(err)
	} else if again, err = again.AddSlot(ctx, g); err != nil || again.Slots()[1] != (Slot{3, KeyFileSlot}) {
		t.Errorf("a slot's number is used again: %v, %v", again.Slots(), err)
	}
	for len(two.slots) < maxSlots {
		if two, err = two.AddSlot(ctx, f); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := two.AddSlot(ctx, f); !errors.Is(err, ErrInvalid) {
		t.Errorf("slot %d: %v, want ErrInvalid", maxSlots+1, err)
	}
	if _, err := Open(ctx, testCluster, two.Marshal(), f); err != nil {
		t.Errorf("%d slots: %v", maxSlots, err)
	}
}

func TestMarshalWithoutASlotPanics(t *testing.T) {
	k, err := New(testCluster, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if recover() == nil {
			t.Error("a keyring that nobody can open was marshalled")
		}
	}()
	k.Marshal()
}

func TestRotationKeepsEpochsAndIDs(t *testing.T) {
	k, _ := unlocked(t)
	old, err := k.Realm(id.Main)
	if err != nil {
		t.Fatal(err)
	}
	next, err := k.Rotate(id.Main)
	if err != nil {
		t.Fatal(err)
	}
	r, err := next.Realm(id.Main)
	if err != nil {
		t.Fatal(err)
	}
	if old.Epoch() != 1 || r.Epoch() != 2 || next.Generation() != k.Generation()+1 {
		t.Errorf("epochs %d and %d, generations %d and %d", old.Epoch(), r.Epoch(), k.Generation(), next.Generation())
	}
	if old.ChunkID(Data, []byte("x")) != r.ChunkID(Data, []byte("x")) {
		t.Error("a rotation changes chunk IDs: nothing stored would be found again")
	}
	a, err1 := old.SealingKey(1)
	b, err2 := r.SealingKey(1)
	c, err3 := r.SealingKey(2)
	if err := errors.Join(err1, err2, err3); err != nil || !a.Equal(b) || a.Equal(c) {
		t.Errorf("epoch 1 has another key, or epoch 2 the same; %v", err)
	}
	for _, e := range []uint32{0, 3, 1 << 31} {
		if _, err := r.SealingKey(e); !errors.Is(err, ErrUnknown) {
			t.Errorf("epoch %d: %v, want ErrUnknown", e, err)
		}
	}
	if _, err := old.SealingKey(2); !errors.Is(err, ErrUnknown) {
		t.Errorf("the old generation got epoch 2: %v", err)
	}
	for _, call := range []func() (*Keyring, error){func() (*Keyring, error) { return k.Rotate(2) }, func() (*Keyring, error) { return k.Rotate(0) }} {
		if _, err := call(); !errors.Is(err, ErrUnknown) {
			t.Errorf("rotate a realm that is not there: %v, want ErrUnknown", err)
		}
	}
	for _, n := range []id.Realm{0, id.Main} {
		if _, err := k.AddRealm(n); !errors.Is(err, ErrInvalid) {
			t.Errorf("add realm %d: %v, want ErrInvalid", n, err)
		}
	}
}

// Two rotations of one generation must not share memory.
func TestBranchesOfAKeyringAreApart(t *testing.T) {
	k, _ := unlocked(t)
	var err error
	for range 6 { // past every capacity that append rounds up to
		before, one, other := k.appendRoots(), (*Keyring)(nil), (*Keyring)(nil)
		if one, err = k.Rotate(id.Main); err != nil {
			t.Fatal(err)
		}
		inOne := one.appendRoots()
		if other, err = k.Rotate(id.Main); err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(one.appendRoots(), inOne) || bytes.Equal(inOne, other.appendRoots()) || !bytes.Equal(before, k.appendRoots()) {
			t.Error("one branch changes another")
		}
		k = one
	}
}

// What is authentic and not as encode would have it is refused: there is one
// encoding.
func TestKeyringsThatNoVersionWrites(t *testing.T) {
	good, f := unlocked(t)
	good, err := good.AddSlot(ctx, f)
	if err == nil {
		good, err = good.AddRealm(3)
	}
	if err != nil {
		t.Fatal(err)
	}
	for name, spoil := range map[string]func(*Keyring){
		"slots out of order": func(k *Keyring) { slices.Reverse(k.slots) },
		"a slot twice":       func(k *Keyring) { k.slots[1] = k.slots[0] },
		"slot 0":             func(k *Keyring) { k.slots[0].number = 0 },
		"a slot to come":     func(k *Keyring) { k.nextSlot = 2 },
		"no slot":            func(k *Keyring) { k.slots = nil },
		"too many slots": func(k *Keyring) {
			for len(k.slots) <= maxSlots {
				k.slots = append(k.slots, slot{k.nextSlot, KeyFileSlot, k.slots[0].blob})
				k.nextSlot++
			}
		},
		"a slot without bytes":  func(k *Keyring) { k.slots[1].blob = nil },
		"a slot too long":       func(k *Keyring) { k.slots[1].blob = make([]byte, maxBlob+1) },
		"a slot of no kind":     func(k *Keyring) { k.slots[1].kind = 0 },
		"a slot of kind 5":      func(k *Keyring) { k.slots[1].kind = 5 },
		"generation 0":          func(k *Keyring) { k.generation = 0 },
		"no cluster":            func(k *Keyring) { k.cluster = id.Cluster{} },
		"no realm":              func(k *Keyring) { k.roots.realms = nil },
		"realms out of order":   func(k *Keyring) { slices.Reverse(k.roots.realms) },
		"a realm without epoch": func(k *Keyring) { k.roots.realms[1] = newRealm(3, f.key, f.key, nil) },
	} {
		k := good.next()
		if b, err := k.encode(); err != nil {
			t.Fatal(err)
		} else if _, err := Open(ctx, id.Cluster{}, b, f); err != nil {
			t.Fatal(err)
		}
		spoil(k)
		b, err := k.encode()
		if err != nil {
			t.Fatal(err)
		}
		if _, err := Open(ctx, id.Cluster{}, b, f); !errors.Is(err, ErrDamaged) {
			t.Errorf("%s: %v, want ErrDamaged", name, err)
		}
	}
	b := resum(append(good.Marshal(), make([]byte, MaxSize)...))
	var m0, m1 runtime.MemStats
	runtime.ReadMemStats(&m0)
	_, err = Inspect(b)
	runtime.ReadMemStats(&m1)
	if n := m1.TotalAlloc - m0.TotalAlloc; !errors.Is(err, ErrDamaged) || n > 64<<10 {
		t.Errorf("a huge keyring: %v, want ErrDamaged; %d bytes allocated", err, n)
	}
}

// A history of changes, against a plain model: every generation opens with each
// of its keys and no other, has what its ancestors had, and leaves them as they
// were.
func TestHistories(t *testing.T) {
	pool := append(providers(t), providers(t)...)
	rapid.Check(t, func(t *rapid.T) {
		k, err := New(testCluster, nil)
		if err != nil {
			t.Fatal(err)
		}
		slots := map[uint32]int{} // number to provider
		epochs := map[id.Realm][]Secret{}
		learn := func() {
			for _, n := range k.Realms() {
				r, err := k.Realm(n)
				if err != nil {
					t.Fatal(err)
				}
				for e := uint32(1); e <= r.Epoch(); e++ {
					s, err := r.SealingKey(e)
					if err != nil {
						t.Fatal(err)
					}
					if int(e) > len(epochs[n]) {
						epochs[n] = append(epochs[n], s)
					} else if !epochs[n][e-1].Equal(s) {
						t.Fatalf("epoch %d of realm %d has another key", e, n)
					}
				}
				if int(r.Epoch()) != len(epochs[n]) {
					t.Fatalf("realm %d has %d epochs, had %d", n, r.Epoch(), len(epochs[n]))
				}
			}
			if len(k.Realms()) != len(epochs) {
				t.Fatalf("realms %v, want %d", k.Realms(), len(epochs))
			}
		}
		learn()
		wants := map[id.Realm]int{id.Main: 1}
		for range rapid.IntRange(1, 12).Draw(t, "changes") {
			var next *Keyring
			var was []byte
			if len(slots) > 0 {
				was = k.Marshal()
			}
			switch rapid.IntRange(0, 3).Draw(t, "change") {
			case 0:
				p := rapid.IntRange(0, len(pool)-1).Draw(t, "provider")
				if next, err = k.AddSlot(ctx, pool[p]); err == nil {
					slots[next.nextSlot-1] = p
				}
			case 1:
				if len(slots) == 0 {
					continue
				}
				s := rapid.SampledFrom(k.Slots()).Draw(t, "slot")
				if next, err = k.RemoveSlot(s.Number); err == nil {
					delete(slots, s.Number)
				} else if len(slots) == 1 && errors.Is(err, ErrInvalid) {
					continue
				}
			case 2:
				n := id.Realm(rapid.IntRange(1, 4).Draw(t, "realm"))
				if next, err = k.AddRealm(n); err == nil {
					wants[n] = 1
				} else if wants[n] > 0 && errors.Is(err, ErrInvalid) {
					continue
				}
			case 3:
				n := id.Realm(rapid.IntRange(1, 4).Draw(t, "realm"))
				if next, err = k.Rotate(n); err == nil {
					wants[n]++
				} else if wants[n] == 0 && errors.Is(err, ErrUnknown) {
					continue
				}
			}
			if err != nil {
				t.Fatal(err)
			}
			if next.Generation() != k.Generation()+1 || was != nil && !bytes.Equal(was, k.Marshal()) {
				t.Fatal("the generation did not grow by one, or a change altered its past")
			}
			k = next
			learn()
			for n, c := range wants {
				if len(epochs[n]) != c {
					t.Fatalf("realm %d has %d epochs, want %d", n, len(epochs[n]), c)
				}
			}
			if len(slots) == 0 {
				continue
			}
			b := k.Marshal()
			if s, err := Inspect(b); err != nil || s.Generation != k.Generation() || s.Cluster != testCluster || len(s.Slots) != len(slots) {
				t.Fatalf("Inspect: %+v, %v", s, err)
			}
			for i, p := range pool {
				fits := false
				for _, j := range slots {
					fits = fits || i == j
				}
				got, err := Open(ctx, testCluster, b, p)
				switch {
				case fits && err != nil:
					t.Fatalf("%v: %v", p.Kind(), err)
				case !fits && !errors.Is(err, ErrWrongKey):
					t.Fatalf("a %v without a slot: %v, want ErrWrongKey", p.Kind(), err)
				case fits:
					if !bytes.Equal(got.Marshal(), b) || !bytes.Equal(got.appendRoots(), k.appendRoots()) {
						t.Fatal("opened and marshalled, a keyring is another")
					}
					got.random = k.random
					k = got // go on with what was read
				}
			}
		}
	})
}

// Whatever byte of a keyring is changed and in whatever place it is cut, with the
// checksum made right or not, it never opens, and the error is one of those that
// are documented.
func TestAlteredKeyringsNeverOpen(t *testing.T) {
	k, err := New(testCluster, nil)
	if err != nil {
		t.Fatal(err)
	}
	all := providers(t)
	for _, p := range all {
		if k, err = k.AddSlot(ctx, p); err != nil {
			t.Fatal(err)
		}
	}
	whole := k.Marshal()
	try := func(what string, b []byte, want ...error) {
		t.Helper()
		for _, p := range all {
			_, err := Open(ctx, testCluster, b, p)
			if !slices.ContainsFunc(want, func(w error) bool { return errors.Is(err, w) }) {
				t.Fatalf("%s: %v with %v, want one of %v", what, err, p.Kind(), want)
			}
		}
	}
	seen := map[error]int{}
	for i := range whole {
		for _, flip := range []byte{1, 0x80} {
			b := bytes.Clone(whole)
			b[i] ^= flip
			try(fmt.Sprintf("byte %d", i), b, ErrDamaged)
			if i < len(b)-sumSize {
				try(fmt.Sprintf("byte %d, summed", i), resum(b), ErrDamaged, ErrWrongKey, ErrForeign, ErrNewer)
				for _, s := range []error{ErrDamaged, ErrWrongKey, ErrForeign, ErrNewer} {
					if _, err := Open(ctx, testCluster, b, all[0]); errors.Is(err, s) {
						seen[s]++
					}
				}
			}
		}
		try(fmt.Sprintf("cut at %d", i), whole[:i], ErrDamaged)
		if i > sumSize {
			try(fmt.Sprintf("cut at %d, summed", i), resum(bytes.Clone(whole[:i])), ErrDamaged, ErrWrongKey)
		}
	}
	for s, want := range map[error]int{ErrForeign: 2 * 16, ErrNewer: 2*2 - 1, ErrWrongKey: 2 * (saltSize + checkSize)} {
		if seen[s] < want {
			t.Errorf("%v was met %d times, want at least %d", s, seen[s], want)
		}
	}
	try("longer", append(bytes.Clone(whole), 0), ErrDamaged)
	try("longer, summed", resum(append(bytes.Clone(whole), 0)), ErrDamaged)
	try("nothing", nil, ErrDamaged)
	try("text", []byte("CRNK, it says, and no more; nothing of that is a keyring"), ErrDamaged)
	try("huge", make([]byte, MaxSize+1), ErrDamaged)
	huge := append(bytes.Clone(whole), make([]byte, MaxSize)...)
	try("huge, summed", resum(huge), ErrDamaged)
	newer := resum(append([]byte("CRNK\x02\x00 what version 2 has to say"), make([]byte, sumSize)...))
	try("newer", newer, ErrNewer)
	if _, err := Inspect(newer); !errors.Is(err, ErrNewer) {
		t.Errorf("Inspect of a newer keyring: %v", err)
	}
	if _, err := Inspect(whole[:100]); !errors.Is(err, ErrDamaged) {
		t.Errorf("Inspect of a cut keyring: %v", err)
	}
}

// Slots of one keyring planted in another, or a generation set back, do not open
// although every part is authentic.
func TestPartsOfKeyringsDoNotMix(t *testing.T) {
	k, f := unlocked(t)
	next, err := k.Rotate(id.Main)
	if err != nil {
		t.Fatal(err)
	}
	a, b := k.Marshal(), next.Marshal()
	cut := len(a) - sumSize - len(k.appendRoots()) - nonceSize - tagSize
	mixed := resum(append(bytes.Clone(a[:cut]), b[cut:]...))
	if _, err := Open(ctx, testCluster, mixed, f); !errors.Is(err, ErrDamaged) {
		t.Errorf("a head of generation %d on the roots of %d: %v, want ErrDamaged", k.Generation(), next.Generation(), err)
	}
	evil, g := unlocked(t)
	planted := bytes.Clone(a)
	copy(planted[ringHead:cut], evil.Marshal()[ringHead:cut])
	if _, err := Open(ctx, testCluster, resum(planted), g); !errors.Is(err, ErrDamaged) {
		t.Errorf("a planted slot: %v, want ErrDamaged", err)
	}
}

// Roots that are authentic and make no sense are refused: only a bug writes them.
func TestRootsThatDoNotFit(t *testing.T) {
	k, f := unlocked(t)
	if _, err := k.AddRealm(5); err != nil {
		t.Fatal(err)
	}
	good := k.appendRoots()
	rewrap := func(plain []byte) []byte {
		b := k.Marshal()
		cut := len(b) - sumSize - len(good) - nonceSize - tagSize
		b = b[: cut+nonceSize : cut+nonceSize]
		b = rootsSeal(k.master).Seal(b, b[cut:], plain, b[:cut])
		return resum(append(b, make([]byte, sumSize)...))
	}
	if _, err := Open(ctx, testCluster, rewrap(good), f); err != nil {
		t.Fatal(err) // the helper is right
	}
	edit := func(at int, v ...byte) []byte { b := bytes.Clone(good); copy(b[at:], v); return b }
	realmAt := rootsHead
	for name, plain := range map[string][]byte{
		"another purpose":    edit(0, 2),
		"another cluster":    edit(1, 99),
		"another generation": edit(17, 99),
		"no realm":           edit(rootsHead-4, 0),
		"too many realms":    edit(rootsHead-4, 2),
		"4 G realms":         edit(rootsHead-4, 255, 255, 255, 255),
		"realm 0":            edit(realmAt, 0),
		"no epoch":           edit(realmAt+realmHead-4, 0),
		"too many epochs":    edit(realmAt+realmHead-4, 2),
		"4 G epochs":         edit(realmAt+realmHead-4, 255, 255, 255, 255),
		"longer":             append(bytes.Clone(good), 0),
		"a realm twice":      append(edit(rootsHead-4, 2), good[realmAt:]...),
		"shorter":            good[:len(good)-1],
	} {
		if _, err := Open(ctx, testCluster, rewrap(plain), f); !errors.Is(err, ErrDamaged) {
			t.Errorf("%s: %v, want ErrDamaged", name, err)
		}
	}
}

// A planted keyring asks for a terabyte; the answer comes at once and costs
// nothing.
func TestCostsFromStorageAreBounded(t *testing.T) {
	p, err := NewPassphraseCost([]byte("x"), cheap)
	if err != nil {
		t.Fatal(err)
	}
	blob, err := p.Wrap(ctx, NewSecret([Size]byte{1}))
	if err != nil {
		t.Fatal(err)
	}
	if s, err := p.Unwrap(ctx, blob); err != nil || !s.Equal(NewSecret([Size]byte{1})) {
		t.Fatal(err)
	}
	for _, c := range []Argon2{{1, 1 << 30, 1}, {1, maxMemory + 1, 1}, {maxTime + 1, 8, 1}, {1 << 31, 8, 1}, {1, 1 << 20, 255}, {1, 8 * 17, 17}, {0, 8, 1}, {1, 8, 0}, {1, 7, 1}, {1, 0, 1}, {1, 31, 4}} {
		b := bytes.Clone(blob)
		binary.LittleEndian.PutUint32(b[2:], c.Time)
		binary.LittleEndian.PutUint32(b[6:], c.Memory)
		b[10] = c.Threads
		var m0, m1 runtime.MemStats
		runtime.ReadMemStats(&m0)
		_, err := p.Unwrap(ctx, b)
		runtime.ReadMemStats(&m1)
		if !errors.Is(err, ErrDamaged) {
			t.Errorf("%+v: %v, want ErrDamaged", c, err)
		}
		if n := m1.TotalAlloc - m0.TotalAlloc; n > 1<<20 {
			t.Errorf("%+v: %d bytes allocated", c, n)
		}
		if _, err := NewPassphraseCost([]byte("x"), c); !errors.Is(err, ErrInvalid) {
			t.Errorf("new slots with %+v: %v, want ErrInvalid", c, err)
		}
	}
	if _, err := NewPassphrase(nil); !errors.Is(err, ErrInvalid) {
		t.Errorf("an empty passphrase: %v, want ErrInvalid", err)
	}
	if !defaultArgon2.ok() || !(Argon2{maxTime, maxMemory, maxThreads}).ok() {
		t.Error("the defaults or the bounds are refused")
	}
	done, cancel := context.WithCancel(ctx)
	cancel()
	if _, err := p.Unwrap(done, blob); !errors.Is(err, context.Canceled) {
		t.Errorf("Unwrap: %v, want Canceled", err)
	}
	if _, err := p.Wrap(done, NewSecret([Size]byte{1})); !errors.Is(err, context.Canceled) {
		t.Errorf("Wrap: %v, want Canceled", err)
	}
}

// Every byte of a slot is under its check or its seal.
func TestAlteredSlotsNeverUnwrap(t *testing.T) {
	for _, p := range providers(t) {
		blob, err := p.Wrap(ctx, NewSecret([Size]byte{1}))
		if err != nil {
			t.Fatal(err)
		}
		var wrong, bad int
		for i := range blob {
			if i >= 2 && i < passHead-1 && p.Kind() == PassphraseSlot {
				continue // the cost: an altered one may be dear
			}
			b := bytes.Clone(blob)
			b[i] ^= 1
			_, err := p.Unwrap(ctx, b)
			switch {
			case errors.Is(err, ErrWrongKey):
				wrong++
			case errors.Is(err, ErrDamaged):
				bad++
			case errors.Is(err, ErrNewer) && i < 2:
			default:
				t.Errorf("%v: byte %d: %v", p.Kind(), i, err)
			}
			if _, err := p.Unwrap(ctx, blob[:i]); !errors.Is(err, ErrDamaged) {
				t.Errorf("%v: cut at %d: %v, want ErrDamaged", p.Kind(), i, err)
			}
		}
		if wrong < saltSize+checkSize || bad < nonceSize+Size+tagSize {
			t.Errorf("%v: %d times the wrong key, %d times damage", p.Kind(), wrong, bad)
		}
		binary.LittleEndian.PutUint16(blob, 2)
		if _, err := p.Unwrap(ctx, blob); !errors.Is(err, ErrNewer) {
			t.Errorf("%v: a newer slot: %v, want ErrNewer", p.Kind(), err)
		}
	}
}

func TestKeyringThatIsFull(t *testing.T) {
	k, f := unlocked(t)
	r := k.roots.realms[0]
	many := k.next()
	many.roots.realms[0] = newRealm(id.Main, r.ids, r.records, slices.Repeat(r.epochs, MaxSize/Size))
	if _, err := many.finish(); !errors.Is(err, ErrInvalid) {
		t.Errorf("a keyring beyond the limit: %v, want ErrInvalid", err)
	}
	many = k.next()
	many.roots.realms[0] = newRealm(id.Main, r.ids, r.records, slices.Repeat(r.epochs, MaxSize/Size-64))
	many, err := many.finish()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Open(ctx, testCluster, many.Marshal(), f); err != nil {
		t.Errorf("a keyring just below the limit: %v", err)
	}
}

// --- derivations

// Every context in the code is in the table, and the other way round, and no two
// derivations give one key.
func TestDerivationsAreApart(t *testing.T) {
	page, err := os.ReadFile("../docs/formats/keys.md")
	if err != nil {
		t.Fatal(err)
	}
	find := func(b []byte, re string) map[string]bool {
		out := map[string]bool{}
		for _, m := range regexp.MustCompile(re).FindAllSubmatch(b, -1) {
			if out[string(m[1])] {
				t.Errorf("%s stands there twice", m[1])
			}
			out[string(m[1])] = true
		}
		return out
	}
	listed := find(page, "`(cairn 2026-[^`]*)`")
	code, err1 := os.ReadFile("derive.go")
	more, err2 := os.ReadFile("../seal/sealer.go")
	if err := errors.Join(err1, err2); err != nil {
		t.Fatal(err)
	}
	used := find(append(code, more...), `"(cairn 2026-[^"]*)"`)
	if len(used) != 17 {
		t.Errorf("%d contexts in the code, want 17", len(used))
	}
	for c := range used {
		if !listed[c] {
			t.Errorf("context %q is not in the table", c)
		}
	}
	for c := range listed {
		if !used[c] {
			t.Errorf("context %q is in the table and nowhere else", c)
		}
	}
	k, _ := unlocked(t)
	k, err = k.AddRealm(2)
	if err == nil {
		k, err = k.Rotate(2)
	}
	if err != nil {
		t.Fatal(err)
	}
	seen := map[string]string{}
	for line := range strings.Lines(derivedKeys(t, k)) {
		name, value, _ := strings.Cut(line, " ")
		if was, ok := seen[value]; ok {
			t.Errorf("%s and %s are the same", name, was)
		}
		seen[value] = name
	}
	a, b := k.MetaKey(id.Pack{1}), k.MetaKey(id.Pack{2})
	if a.Equal(b) || k.PadKey(id.Pack{1}).Equal(k.PadKey(id.Pack{2})) || k.DigestKey(id.Pack{1}).Equal(k.DigestKey(id.Pack{2})) {
		t.Error("two packs share a key")
	}
	r, err := k.Realm(2)
	if err != nil {
		t.Fatal(err)
	}
	if r.RecordKey(id.Pack{1}).Equal(r.RecordKey(id.Pack{2})) {
		t.Error("two packs share a record key")
	}
	if _, err := k.Realm(3); !errors.Is(err, ErrUnknown) {
		t.Errorf("realm 3: %v, want ErrUnknown", err)
	}
}

func TestChunkIDs(t *testing.T) {
	k, _ := unlocked(t)
	k, err := k.AddRealm(2)
	if err != nil {
		t.Fatal(err)
	}
	r, err1 := k.Realm(1)
	other, err2 := k.Realm(2)
	if err := errors.Join(err1, err2); err != nil {
		t.Fatal(err)
	}
	plain := []byte("the same bytes")
	if a, b, c := r.ChunkID(Data, plain), r.ChunkID(List, plain), r.ChunkID(Snap, plain); a == b || a == c || b == c {
		t.Error("a list and a data chunk of the same bytes have one ID")
	}
	if r.ChunkID(Data, plain) == other.ChunkID(Data, plain) {
		t.Error("two realms have one ID")
	}
	if n := testing.AllocsPerRun(100, func() { r.ChunkID(Data, plain) }); n >= 1 {
		t.Errorf("%v allocations per chunk ID", n)
	}
	want := map[int]id.Chunk{}
	big := bytes.Repeat(plain, 5000)
	sizes := []int{0, 1, 1000, 9000, len(big)}
	for _, n := range sizes {
		want[n] = r.ChunkID(Data, big[:n])
	}
	var wg sync.WaitGroup
	for g := range 8 {
		wg.Go(func() {
			for i := range 200 {
				n := sizes[(g+i)%len(sizes)]
				if got := r.ChunkID(Data, big[:n]); got != want[n] {
					t.Errorf("%d bytes, at the same time as others: %v, want %v", n, got, want[n])
				}
				if k.MetaKey(id.Pack{byte(g)}).Equal(k.MetaKey(id.Pack{99})) {
					t.Error("derivations get mixed up")
				}
			}
		})
	}
	wg.Wait()
	defer func() {
		if recover() == nil {
			t.Error("an ID for a kind that does not exist")
		}
	}()
	r.ChunkID(4, plain)
}

func BenchmarkChunkID(b *testing.B) {
	k, _ := unlocked(b)
	r, err := k.Realm(id.Main)
	if err != nil {
		b.Fatal(err)
	}
	for _, n := range []int{4 << 10, 1 << 20} {
		b.Run(fmt.Sprintf("%dKiB", n>>10), func(b *testing.B) {
			plain := make([]byte, n)
			b.SetBytes(int64(n))
			b.ReportAllocs()
			for b.Loop() {
				r.ChunkID(Data, plain)
			}
		})
	}
}

func BenchmarkPackKey(b *testing.B) {
	k, _ := unlocked(b)
	b.ReportAllocs()
	for b.Loop() {
		k.MetaKey(vectorPack)
	}
}

func BenchmarkPassphrase(b *testing.B) {
	p, err := NewPassphrase([]byte("x"))
	if err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	for b.Loop() {
		if _, err := p.Wrap(ctx, NewSecret([Size]byte{1})); err != nil {
			b.Fatal(err)
		}
	}
}

func FuzzKeyring(f *testing.F) {
	k, file := unlocked(f)
	f.Add(k.Marshal(), true)
	f.Add(resum(append([]byte("CRNK\x02\x00"), make([]byte, 100)...)), false)
	f.Add(k.Marshal()[:200], true)
	if b, err := os.ReadFile(v1 + "/keyring.bin"); err == nil {
		f.Add(b, false)
	}
	f.Fuzz(func(t *testing.T, b []byte, sum bool) {
		b = bytes.Clone(b)
		if sum && len(b) >= sumSize {
			resum(b)
		}
		before := bytes.Clone(b)
		s, err := Inspect(b)
		if err != nil && !errors.Is(err, ErrDamaged) && !errors.Is(err, ErrNewer) {
			t.Fatalf("Inspect: %v", err)
		}
		if err == nil && (len(s.Slots) == 0 || len(s.Slots) > maxSlots) {
			t.Fatalf("%d slots", len(s.Slots))
		}
		got, oerr := Open(ctx, id.Cluster{}, b, file)
		if err != nil && oerr == nil {
			t.Fatalf("opens, and Inspect says %v", err)
		}
		if oerr == nil && (!bytes.Equal(b, k.Marshal()) || !bytes.Equal(got.Marshal(), b)) {
			t.Fatalf("%x opens and nobody wrote it", b)
		}
		if !bytes.Equal(b, before) {
			t.Fatal("the input was changed")
		}
	})
}

func FuzzSlot(f *testing.F) {
	_, file := unlocked(f)
	blob, err := file.Wrap(ctx, NewSecret([Size]byte{1}))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(blob)
	f.Fuzz(func(t *testing.T, b []byte) {
		s, err := file.Unwrap(ctx, b)
		if err == nil && !bytes.Equal(b, blob) || err != nil && s.IsSet() {
			t.Fatalf("%x unwraps: %v", b, err)
		}
	})
}

// A simulation gives every source of randomness, and gets the same bytes again.
func TestKeyringsFollowTheirSource(t *testing.T) {
	build := func() []byte {
		src := rand.NewChaCha8([32]byte{7})
		k, err := New(testCluster, src)
		f, err1 := NewKeyFile(src)
		c, err2 := NewRecoveryCode(src)
		if err := errors.Join(err, err1, err2); err != nil {
			t.Fatal(err)
		}
		for _, p := range []Provider{f, c} {
			if k, err = k.AddSlot(ctx, p); err != nil {
				t.Fatal(err)
			}
		}
		if k, err = k.Rotate(id.Main); err != nil {
			t.Fatal(err)
		}
		return k.Marshal()
	}
	if !bytes.Equal(build(), build()) {
		t.Error("one source, two keyrings")
	}
}
