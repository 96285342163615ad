package link

import (
	"bytes"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"

	"cairn/id"
	"cairn/node"
	"cairn/pack"
)

// TestErrorsKeepTheirKind: what a node says comes out as what it was, and what is not the
// contract's is "could not ask".
func TestErrorsKeepTheirKind(t *testing.T) {
	for _, c := range []struct {
		err  error
		want []error
		not  []error
	}{
		{node.ErrNotFound, []error{node.ErrNotFound}, []error{node.ErrUnavailable}},
		{fmt.Errorf("x: %w", node.ErrDamaged), []error{node.ErrDamaged}, []error{node.ErrNotFound}},
		{node.ErrMissing, []error{node.ErrMissing}, nil},
		{node.ErrFenced, []error{node.ErrFenced}, nil},
		{node.ErrStalePut, []error{node.ErrStalePut}, nil},
		{node.ErrConflict, []error{node.ErrConflict}, nil},
		{node.ErrFull, []error{node.ErrFull}, nil},
		{node.ErrClosed, []error{node.ErrUnavailable}, []error{node.ErrClosed}},
		{id.ErrNewer, []error{id.ErrNewer, node.ErrUnavailable}, nil},
		{errors.Join(node.ErrNotFound, node.ErrDamaged), []error{node.ErrNotFound}, []error{node.ErrDamaged}},
		{errors.Join(node.ErrDamaged, node.ErrUnavailable), []error{node.ErrUnavailable}, []error{node.ErrDamaged}},
		{io.ErrShortWrite, []error{node.ErrUnavailable}, []error{node.ErrDamaged, node.ErrNotFound}},
	} {
		var a Answer
		a.Fail(&node.Error{Op: "put", Err: c.err})
		a = echo(t, a)
		err := a.Err()
		for _, w := range c.want {
			if !errors.Is(err, w) {
				t.Errorf("%v arrives as %v (%d), want %v", c.err, err, a.Code, w)
			}
		}
		for _, w := range c.not {
			if errors.Is(err, w) {
				t.Errorf("%v arrives as %v, which is %v", c.err, err, w)
			}
		}
	}
	for code := CodeUnknownCall; code != 0; code++ {
		if err := (&Answer{Code: code}).Err(); !errors.Is(err, node.ErrUnavailable) {
			t.Errorf("code %d is %v, want unavailable", code, err)
		}
	}
	var a Answer
	a.Fail(&node.RoomError{Dir: "/srv", Why: node.ForLog, Free: 5, Need: 7})
	var room *node.RoomError
	if a = echo(t, a); !errors.As(a.Err(), &room) || *room != (node.RoomError{Dir: "/srv", Why: node.ForLog, Free: 5, Need: 7}) {
		t.Errorf("a room error arrives as %v", a.Err())
	}
	a = Answer{}
	a.Fail(fmt.Errorf("%w: write: no space left", node.ErrFull))
	if a = echo(t, a); errors.As(a.Err(), &room) || !errors.Is(a.Err(), node.ErrFull) {
		t.Errorf("what failed in mid-write arrives as %v", a.Err())
	}
	if got := (&Answer{Code: CodeDamaged, Words: "a\x1b[2Jb\n" + strings.Repeat("ü", 1000)}).Err().Error(); strings.ContainsAny(got, "\x1b\n") || len(got) > MaxWords {
		t.Errorf("words: %q", got)
	}
}

// echo sends an answer to itself.
func echo(t testing.TB, a Answer) Answer {
	t.Helper()
	out, err := ReadAnswer(bytes.NewReader(AppendAnswer(nil, &a)), func(uint32) int { return 1 << 20 })
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// TestSizesOfAnswers: no answer is longer than it is said to be at most.
func TestSizesOfAnswers(t *testing.T) {
	info := Info{Pack: id.Pack{0xff}, Index: 255, Instance: 1<<64 - 1, Kind: 255, Size: -1 << 63, Deleted: -1 << 63}
	long := strings.Repeat("x", MaxWords)
	entry := Entry{Info: info, Header: bytes.Repeat([]byte{1}, pack.HeaderSize), Epoch: 1<<64 - 1, Seq: 1<<64 - 1, Attempt: 1<<32 - 1}
	damaged := OfFound(&node.Found{Info: info.Node(), Header: pack.Header{Epoch: 1<<64 - 1, Seq: 1<<64 - 1, Attempt: 1<<32 - 1}, Err: errors.New(strings.Repeat("x", 1000))})
	for _, c := range []struct {
		call Call
		r    Result
	}{
		{Call{Op: OpRead, Len: SmallBody}, Result{Body: make([]byte, SmallBody)}},
		{Call{Op: OpList, Len: MaxPage}, Result{Infos: many(info, MaxPage)}},
		{Call{Op: OpListLog, Len: MaxLogPage}, Result{Entries: many(entry, MaxLogPage+MaxDamaged)}},
		{Call{Op: OpListLog, Len: MaxLogPage}, Result{Entries: many(damaged, MaxLogPage+MaxDamaged)}},
		{Call{Op: OpReadFile}, Result{Body: make([]byte, MaxFile)}},
		{Call{Op: OpStat}, Result{Info: &info, Header: make([]byte, pack.HeaderSize)}},
		{Call{Op: OpUsage}, Result{Usage: &Usage{Dir: long, Device: 1<<64 - 1}}},
		{Call{Op: OpPut}, Result{}},
	} {
		a := Answer{No: 1<<32 - 1, Code: 255, Words: long, Result: c.r, Room: &Room{Dir: long}}
		if n := len(AppendAnswer(nil, &a)) - 8; n > c.call.MaxAnswer() || c.call.MaxAnswer() > MaxAnswers {
			t.Errorf("an answer to %v has %d bytes, it is said to have at most %d", c.call.Op, n, c.call.MaxAnswer())
		}
	}
}

func many[T any](v T, n int) (out []T) {
	for range n {
		out = append(out, v)
	}
	return out
}

// TestKeys: a key prints its public half and nothing else.
func TestKeys(t *testing.T) {
	k, err := NewKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%x", "%q"} {
		if got := fmt.Sprintf(verb, k); got != "link.Key(hidden)" {
			t.Errorf("%s prints %q", verb, got)
		}
	}
	var p Public
	if err := p.UnmarshalText([]byte(k.Public().String())); err != nil || p != k.Public() {
		t.Errorf("%v comes back as %v, %v", k.Public(), p, err)
	}
	for _, bad := range []string{"", "x", k.Public().String()[1:], k.Public().String() + "A", strings.Repeat("=", 43)} {
		if err := p.UnmarshalText([]byte(bad)); err == nil {
			t.Errorf("%q is a key", bad)
		}
	}
	if again := KeyFromSeed([32]byte(k.Seed())); again.Public() != k.Public() {
		t.Error("a seed gives another key")
	}
}

// FuzzCalls: a request that is taken is the only encoding of its calls.
func FuzzCalls(f *testing.F) {
	b, _ := AppendCall(nil, &Call{No: 1, Op: OpPut, Within: 10, Generation: 1, Epoch: 1, Writer: id.Writer{1}, Pack: id.Pack{2}, Index: 3, Body: []byte("body")})
	b, _ = AppendCall(b, &Call{No: 2, Op: OpListLog, From: 7, Len: 9, After: &Entry{Info: Info{Pack: id.Pack{1}}, Damaged: "x"}})
	f.Add(b)
	f.Add([]byte{0, 0, 0, 1, 0xa0})
	f.Fuzz(func(t *testing.T, b []byte) {
		raw, err := Split(b)
		if err != nil {
			return
		}
		if len(raw) > MaxCalls {
			t.Fatalf("%d calls", len(raw))
		}
		var again []byte
		for _, r := range raw {
			c, err := ParseCall(r)
			if err != nil {
				return
			}
			if n := c.MaxAnswer(); n <= 0 || n > MaxAnswers {
				t.Errorf("an answer of %d bytes", n)
			}
			if c.After != nil {
				if found, err := c.After.Node(); err == nil && found.Err == nil && (found.Header.Pack != found.Info.Key.Pack || found.Header.Kind != pack.Log) {
					t.Errorf("%+v", found)
				}
			}
			if again, err = AppendCall(again, &c); err != nil {
				t.Fatal(err)
			}
		}
		// Deterministic CBOR has one encoding; what is taken in another comes out in this one.
		if one, err := Split(again); err != nil || len(one) != len(raw) {
			t.Fatalf("%d calls become %d, %v", len(raw), len(one), err)
		}
	})
}

// FuzzAnswers: whatever a node sends, what is read of it is bounded, and harmless to print.
func FuzzAnswers(f *testing.F) {
	info := Info{Pack: id.Pack{1}, Instance: 3, Size: 10}
	f.Add(AppendAnswer(nil, &Answer{No: 1, Code: CodeDamaged, Words: "rotten"}))
	f.Add(AppendAnswer(nil, &Answer{No: 2, Result: Result{Instance: 5, Info: &info, Infos: []Info{info}, Entries: []Entry{{Info: info, Damaged: "x"}}, Usage: &Usage{Total: 5}}}))
	f.Fuzz(func(t *testing.T, b []byte) {
		r := bytes.NewReader(b)
		for range 10 {
			a, err := ReadAnswer(r, func(no uint32) int { return int(no % 4096) })
			if err != nil {
				return
			}
			if err := a.Err(); err != nil && strings.ContainsAny(err.Error(), "\x1b\n\r\x00") {
				t.Errorf("words: %q", err)
			}
			if u := a.Result.Usage; u != nil {
				if got, err := u.Node(); err == nil && (got.TotalBytes < 0 || got.LiveBytes < 0) {
					t.Errorf("%+v", got)
				}
			}
			for i := range a.Result.Entries {
				_, _ = a.Result.Entries[i].Node()
			}
		}
	})
}
