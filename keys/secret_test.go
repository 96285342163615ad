package keys

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/gob"
	"encoding/hex"
	"encoding/json"
	"encoding/xml"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"testing"
)

// prints returns everything that printing v in all the usual ways gives.
func prints(v any) string {
	var out strings.Builder
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%X", "% x", "%d", "%o", "%b", "%c", "%U", "%t", "%T", "%e", "%p"} {
		fmt.Fprintf(&out, verb+"\n", v)
		fmt.Fprintf(&out, verb+"\n", []any{v})
	}
	fmt.Fprintln(&out, v, fmt.Sprint(v), fmt.Errorf("an error about %v", v))
	for _, h := range []slog.Handler{slog.NewTextHandler(&out, nil), slog.NewJSONHandler(&out, nil)} {
		slog.New(h).Info("log", "v", v, "in", []any{v}, slog.Group("g", "v", v))
	}
	j, err := json.Marshal(map[string]any{"v": v})
	fmt.Fprintf(&out, "%s %v\n", j, err)
	x, err := xml.Marshal(struct{ V any }{v})
	fmt.Fprintf(&out, "%s %v\n", x, err)
	var g bytes.Buffer
	err = gob.NewEncoder(&g).Encode(v)
	fmt.Fprintf(&out, "%s %v\n", g.Bytes(), err)
	return out.String()
}

// traces are the forms in which eight bytes of a key would show.
func traces(key []byte) []string {
	b := key[4:12]
	list := func(format string) string {
		var s []string
		for _, x := range b {
			s = append(s, fmt.Sprintf(format, x))
		}
		return strings.Join(s, " ")
	}
	goSyntax := strings.ReplaceAll(list("0x%x"), " ", ", ")
	return []string{string(b), hex.EncodeToString(b), strings.ToUpper(hex.EncodeToString(b)), list("%d"), strings.ReplaceAll(list("%d"), " ", ","), list("%x"), list("%X"), list("%02x"), list("%o"), list("%b"), goSyntax,
		base64.StdEncoding.EncodeToString(key[6:12]), base64.StdEncoding.EncodeToString(key)[:12]}
}

func TestSecretsDoNotPrint(t *testing.T) {
	k, f := unlocked(t)
	code, err := NewRecoveryCode(nil)
	if err != nil {
		t.Fatal(err)
	}
	pass, err := NewPassphrase([]byte("Zur Linde, 7 Katzen, kein Hund"))
	if err != nil {
		t.Fatal(err)
	}
	r, err := k.Realm(1)
	if err != nil {
		t.Fatal(err)
	}
	r.ChunkID(Data, nil) // so that a hasher with the key is in the pool
	s := k.MetaKey(vectorPack)
	type exported struct {
		Secret   Secret
		File     KeyFile
		Code     RecoveryCode
		Pass     Passphrase
		Ring     *Keyring
		Realm    *Realm
		Pointer  *Secret
		Provider Provider
	}
	type unexported struct {
		secret   Secret
		file     KeyFile
		code     RecoveryCode
		pass     Passphrase
		ring     *Keyring
		realm    *Realm
		value    Keyring
		pointer  *Secret
		provider Provider
	}
	var known []string
	for _, s := range append([]Secret{s, k.master, k.roots.meta, k.roots.index, k.roots.digest, k.roots.cluster, r.ids, r.records, f.key, deriveDataID.key(r.ids, nil)}, r.epochs...) {
		b := s.Reveal()
		known = append(known, traces(b[:])...)
	}
	known = append(known, traces(code.get()[:])...)
	known = append(known, code.Reveal(), code.Reveal()[:11])
	known = append(known, traces(pass.secret())...)
	for _, v := range []any{
		s, &s, f, &f, code, &code, pass, &pass, k, *k, r,
		exported{s, f, code, pass, k, r, &s, f}, &exported{s, f, code, pass, k, r, &s, f},
		unexported{s, f, code, pass, k, r, *k, &s, f}, &unexported{s, f, code, pass, k, r, *k, &s, f},
		[]Secret{s}, map[string]Secret{"k": s}, [1]Secret{s},
	} {
		out := prints(v)
		for _, x := range known {
			if i := strings.Index(out, x); i >= 0 {
				t.Fatalf("a %T prints %q: %.300q", v, x, out[max(0, i-100):])
			}
		}
	}
	for _, v := range []any{s, f, code, pass} {
		for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%x", "%d", "%q"} {
			if got := fmt.Sprintf(verb, v); got != "[secret]" {
				t.Errorf("%s of a %T is %q", verb, v, got)
			}
		}
		if b, err := json.Marshal(v); err != nil || string(b) != `"[secret]"` {
			t.Errorf("a %T marshals to %s, %v", v, b, err)
		}
	}
}

// The search above must find a key that does print.
func TestTracesAreFound(t *testing.T) {
	key := [Size]byte{0x9a, 1, 0xb7, 3, 200, 5, 99, 7, 0x88, 9, 10, 255, 12}
	out := prints(struct{ k [Size]byte }{key}) + prints(key[:]) + prints(string(key[:]))
	found := 0
	for _, x := range traces(key[:]) {
		if strings.Contains(out, x) {
			found++
		}
	}
	if found < 9 {
		t.Errorf("%d of %d traces found", found, len(traces(key[:])))
	}
}

func TestSecretEquality(t *testing.T) {
	a, b := NewSecret([Size]byte{1}), NewSecret([Size]byte{1})
	if !a.Equal(b) || a.Equal(NewSecret([Size]byte{2})) || a.Equal(Secret{}) || (Secret{}).Equal(Secret{}) {
		t.Error("Equal is wrong")
	}
	if (Secret{}).IsSet() || !a.IsSet() {
		t.Error("IsSet is wrong")
	}
	c := a
	a.Wipe()
	if c.Equal(b) || c.Reveal() != ([Size]byte{}) {
		t.Error("Wipe left a copy")
	}
	if !b.IsSet() || b.Reveal() != ([Size]byte{1}) {
		t.Error("Wipe reached another secret")
	}
	defer func() {
		if recover() == nil {
			t.Error("Reveal of a secret that was never set did not panic")
		}
	}()
	Secret{}.Reveal()
}

type zeros struct{}

func (zeros) Read(b []byte) (int, error) { clear(b); return len(b), nil }

type broken struct{ after int }

var errBroken = errors.New("no random bytes today")

func (r *broken) Read(b []byte) (int, error) {
	if r.after -= len(b); r.after < 0 {
		return 0, errBroken
	}
	for i := range b {
		b[i] = byte(r.after + i + 1)
	}
	return len(b), nil
}

// Wherever the source of random bytes breaks, the error comes out and no keyring
// does.
func TestNoKeysWithoutRandomBytes(t *testing.T) {
	if _, err := New(testCluster, zeros{}); err == nil {
		t.Error("New took zeros for keys")
	}
	whole := 0
	for after := 0; after < 2000 && whole == 0; after++ {
		src := &broken{after}
		k, err := New(testCluster, src)
		f := KeyFile{key: NewSecret([Size]byte{1}), random: src}
		for _, change := range []func() (*Keyring, error){
			func() (*Keyring, error) { return k.AddSlot(context.Background(), f) },
			func() (*Keyring, error) { return k.AddRealm(9) },
			func() (*Keyring, error) { return k.Rotate(9) },
		} {
			if err == nil {
				k, err = change()
			}
		}
		switch {
		case err == nil:
			whole = after
		case !errors.Is(err, errBroken) || k != nil:
			t.Fatalf("%d random bytes: %v, %v", after, k, err)
		}
	}
	if whole < 10*Size {
		t.Errorf("%d random bytes were enough", whole)
	}
}
