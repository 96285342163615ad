package kvtest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"

	"cairn/index/kv"
)

func runEngine(t *testing.T, h Harness) {
	for _, test := range []struct {
		name string
		run  func(*testing.T, Harness)
	}{
		{"empty", engineEmpty},
		{"commit", engineCommit},
		{"order", engineOrder},
		{"snapshot", engineSnapshot},
		{"limits", engineLimits},
		{"reopen", engineReopen},
		{"closed", engineClosed},
		{"concurrent", engineConcurrent},
	} {
		t.Run(test.name, func(t *testing.T) { test.run(t, h) })
	}
}

func engine(t testing.TB, h Harness) kv.Engine {
	e := h.New(t)
	t.Cleanup(func() {
		if err := e.Close(); err != nil {
			t.Errorf("close: %v", err)
		}
	})
	return e
}

// apply commits "key=value" and, for a deletion, "key".
func apply(t testing.TB, e kv.Engine, rows ...string) {
	t.Helper()
	if err := e.Commit(ops(rows...)); err != nil {
		t.Fatalf("commit %.60q: %v", rows, err)
	}
}

func ops(rows ...string) (ops []kv.Op) {
	for _, row := range rows {
		k, v, put := strings.Cut(row, "=")
		op := kv.Op{Key: []byte(k), Delete: !put}
		if put {
			op.Value = []byte(v)
		}
		ops = append(ops, op)
	}
	slices.SortFunc(ops, func(a, b kv.Op) int { return bytes.Compare(a.Key, b.Key) })
	return ops
}

func snapshot(t testing.TB, e kv.Engine) kv.EngineSnapshot {
	t.Helper()
	s, err := e.Snapshot()
	if err != nil {
		t.Fatalf("snapshot: %v", err)
	}
	return s
}

// rows lists a range; "" does not bound.
func rows(t testing.TB, s kv.EngineSnapshot, from, to string, reverse bool) (got []string) {
	t.Helper()
	var f, u []byte
	if from != "" {
		f = []byte(from)
	}
	if to != "" {
		u = []byte(to)
	}
	c := s.Cursor(f, u, reverse)
	defer c.Close()
	for c.Next() {
		got = append(got, string(c.Key())+"="+string(c.Value()))
	}
	if c.Err() != nil {
		t.Fatalf("cursor %q to %q: %v", from, to, c.Err())
	}
	if c.Next() {
		t.Fatalf("cursor %q to %q goes on after its end", from, to)
	}
	return got
}

func want(t testing.TB, what string, got []string, want ...string) {
	t.Helper()
	if !slices.Equal(got, want) {
		t.Errorf("%s: got %.200q, want %.200q", what, got, want)
	}
}

func engineEmpty(t *testing.T, h Harness) {
	e := engine(t, h)
	s := snapshot(t, e)
	defer s.Close()
	if v, err := s.Get([]byte("k"), []byte("dst")); !errors.Is(err, kv.ErrNotFound) || string(v) != "dst" {
		t.Errorf("get: %q, %v, want dst, ErrNotFound", v, err)
	}
	want(t, "up", rows(t, s, "", "", false))
	want(t, "down", rows(t, s, "", "", true))
	if err := e.Verify(t.Context()); err != nil {
		t.Errorf("verify: %v", err)
	}
	if err := e.Sync(); err != nil {
		t.Errorf("sync: %v", err)
	}
}

func engineCommit(t *testing.T, h Harness) {
	e := engine(t, h)
	apply(t, e, "a=1", "b=2", "c=")
	apply(t, e, "a", "b=3", "d=4", "nothing")
	s := snapshot(t, e)
	defer s.Close()
	want(t, "rows", rows(t, s, "", "", false), "b=3", "c=", "d=4")
	for _, k := range []string{"a", "nothing", "c\x00", "bb"} {
		if v, err := s.Get([]byte(k), nil); !errors.Is(err, kv.ErrNotFound) {
			t.Errorf("get %q: %q, %v, want ErrNotFound", k, v, err)
		}
	}
	if v, err := s.Get([]byte("b"), []byte("dst")); err != nil || string(v) != "dst3" {
		t.Errorf("get b: %q, %v, want dst3", v, err)
	}
	// What went in belongs to the caller again, what comes out is a copy.
	in := ops("x=before")
	if err := e.Commit(in); err != nil {
		t.Fatal(err)
	}
	copy(in[0].Key, "y")
	copy(in[0].Value, "behind")
	s2 := snapshot(t, e)
	defer s2.Close()
	v, err := s2.Get([]byte("x"), nil)
	if err != nil || string(v) != "before" {
		t.Errorf("get x after its buffers were written over: %q, %v", v, err)
	}
	clear(v)
	if v, err := s2.Get([]byte("x"), nil); err != nil || string(v) != "before" {
		t.Errorf("get x after the copy was written over: %q, %v", v, err)
	}
	big := strings.Repeat("v", kv.MaxValue+64)
	long := strings.Repeat("k", kv.MaxKey+1)
	apply(t, e, long+"="+big)
	s3 := snapshot(t, e)
	defer s3.Close()
	if v, err := s3.Get([]byte(long), nil); err != nil || string(v) != big {
		t.Errorf("a long row: %d bytes, %v", len(v), err)
	}
	if n, err := e.Size(); err != nil || n <= 0 {
		t.Errorf("size: %d, %v", n, err)
	}
	if err := e.Verify(t.Context()); err != nil {
		t.Errorf("verify: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := e.Verify(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("verify when cancelled: %v", err)
	}
}

func engineOrder(t *testing.T, h Harness) {
	e := engine(t, h)
	// Prefixes of each other, bytes at both ends; also over several commits.
	apply(t, e, "b=1", "ab=2", "a=3", "\xff=4", "a\x00=5")
	apply(t, e, "a\xff=6", "b\x00=7", "\x00=8", "gone=x")
	apply(t, e, "gone")
	s := snapshot(t, e)
	defer s.Close()
	all := []string{"\x00=8", "a=3", "a\x00=5", "ab=2", "a\xff=6", "b=1", "b\x00=7", "\xff=4"}
	down := slices.Clone(all)
	slices.Reverse(down)
	want(t, "all", rows(t, s, "", "", false), all...)
	want(t, "all down", rows(t, s, "", "", true), down...)
	for i := range all {
		for j := range all {
			from, _, _ := strings.Cut(all[i], "=")
			to, _, _ := strings.Cut(all[j], "=")
			part := all[i:max(i, j)]
			want(t, fmt.Sprintf("%q to %q", from, to), rows(t, s, from, to, false), part...)
			part = slices.Clone(part)
			slices.Reverse(part)
			want(t, fmt.Sprintf("%q to %q down", from, to), rows(t, s, from, to, true), part...)
		}
	}
	want(t, "between keys", rows(t, s, "aa", "b\x00\x00", false), "ab=2", "a\xff=6", "b=1", "b\x00=7")
	want(t, "between keys, down", rows(t, s, "aa", "b\x00\x00", true), "b\x00=7", "b=1", "a\xff=6", "ab=2")

	for _, reverse := range []bool{false, true} {
		// Keys from b\x00 down to a\x00, and seeks to, between and out of them.
		c := s.Cursor([]byte("a\x00"), []byte("b\x00\x00"), reverse)
		seeks := []struct{ to, up, down string }{
			{"ab", "ab", "ab"}, {"aa", "ab", "a\x00"}, {"", "a\x00", ""}, {"a", "a\x00", ""},
			{"\xff", "", "b\x00"}, {"b\x00", "b\x00", "b\x00"}, {"a\x00", "a\x00", "a\x00"}, {"b\x00\x00", "", "b\x00"},
		}
		for range 2 {
			for _, seek := range seeks {
				first := seek.up
				if reverse {
					first = seek.down
				}
				c.Seek([]byte(seek.to))
				if ok := c.Next(); ok != (first != "") || ok && string(c.Key()) != first {
					t.Errorf("seek %q reverse %v: %v at %q, want %q", seek.to, reverse, ok, c.Key(), first)
				}
			}
			c.Next()
		}
		c.Close()
	}
}

func engineSnapshot(t *testing.T, h Harness) {
	e := engine(t, h)
	apply(t, e, "a=1", "b=1")
	before := snapshot(t, e)
	defer before.Close()
	open := before.Cursor(nil, nil, false)
	defer open.Close()
	if !open.Next() {
		t.Fatal("no rows")
	}
	apply(t, e, "a=2", "b", "c=2")
	after := snapshot(t, e)
	defer after.Close()
	want(t, "before", rows(t, before, "", "", false), "a=1", "b=1")
	want(t, "after", rows(t, after, "", "", false), "a=2", "c=2")
	if !open.Next() || string(open.Key()) != "b" || open.Next() {
		t.Error("a cursor that was open met what was committed later")
	}
	for range 300 { // over several memtables of a small engine
		apply(t, e, "a="+strings.Repeat("x", 30<<10))
	}
	want(t, "before, later", rows(t, before, "", "", false), "a=1", "b=1")
}

// engineLimits writes the worst transactions: the most entries, the most bytes,
// each in the way that costs most, at the limit and one beyond it.
func engineLimits(t *testing.T, h Harness) {
	e := engine(t, h)
	l := e.Limits()
	small := func(n int) (ops []kv.Op) { // as many entries as fit
		for i := range n {
			ops = append(ops, kv.Op{Key: fmt.Appendf(nil, "%06x", i)})
		}
		return ops
	}
	large := func(size int) (ops []kv.Op) { // the longest rows, then one that fills up
		for i := 0; size > 0; i++ {
			k := fmt.Appendf(nil, "%0*x", kv.MaxKey+1, i)
			n := min(size-len(k)-l.OpBytes, kv.MaxValue+64)
			if size-len(k)-l.OpBytes-n < len(k)+l.OpBytes && n == kv.MaxValue+64 {
				n -= len(k) + l.OpBytes // leave room for another whole row
			}
			ops = append(ops, kv.Op{Key: k, Value: make([]byte, n)})
			size -= len(k) + n + l.OpBytes
		}
		return ops
	}
	// Entries at their limit have to fit in bytes too; else the bytes decide.
	entries := min(l.Entries, l.Bytes/(6+l.OpBytes))
	for _, deletes := range []bool{false, true} {
		at := small(entries)
		for i := range at {
			at[i].Delete = deletes
		}
		if err := e.Commit(at); err != nil {
			t.Fatalf("%d entries, deletes %v: %v", len(at), deletes, err)
		}
		over := small(entries + 1)
		if err := e.Commit(over); !errors.Is(err, kv.ErrTooBig) {
			t.Fatalf("%d entries: %v, want ErrTooBig", len(over), err)
		}
	}
	big := large(l.Bytes)
	if err := e.Commit(big); err != nil {
		t.Fatalf("%d bytes: %v", l.Bytes, err)
	}
	if err := e.Commit(large(l.Bytes + 1)); !errors.Is(err, kv.ErrTooBig) {
		t.Fatalf("%d bytes: %v, want ErrTooBig", l.Bytes+1, err)
	}
	s := snapshot(t, e)
	defer s.Close()
	if got := rows(t, s, "", "", false); len(got) != len(big) {
		t.Errorf("%d rows after the commits, want %d: one was refused in part", len(got), len(big))
	}
}

func engineReopen(t *testing.T, h Harness) {
	if h.Reopen == nil {
		t.Skip("nothing to reopen")
	}
	e := h.New(t)
	apply(t, e, "a=1", "b=1")
	apply(t, e, "b", "c=2")
	for i := range 3 {
		if err := e.Close(); err != nil {
			t.Fatal(err)
		}
		e = h.Reopen(t, e)
		s := snapshot(t, e)
		want(t, "reopened", rows(t, s, "", "", false), "a=1", fmt.Sprintf("c=%d", 2+i))
		s.Close()
		apply(t, e, fmt.Sprintf("c=%d", 3+i))
		if err := e.Verify(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	if err := e.Close(); err != nil {
		t.Fatal(err)
	}
}

func engineClosed(t *testing.T, h Harness) {
	e := h.New(t)
	apply(t, e, "a=1")
	for range 2 {
		if err := e.Close(); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := e.Snapshot(); !errors.Is(err, kv.ErrClosed) {
		t.Errorf("snapshot: %v, want ErrClosed", err)
	}
	if err := e.Commit(ops("a=2")); !errors.Is(err, kv.ErrClosed) {
		t.Errorf("commit: %v, want ErrClosed", err)
	}
	if err := e.Sync(); !errors.Is(err, kv.ErrClosed) {
		t.Errorf("sync: %v, want ErrClosed", err)
	}
}

// engineConcurrent has readers check that all rows are of one commit while
// commits go on.
func engineConcurrent(t *testing.T, h Harness) {
	e := engine(t, h)
	keys := []string{"a", "b", "c", "d"}
	round := func(i int) (r []string) {
		for _, k := range keys {
			r = append(r, fmt.Sprintf("%s=%d", k, i))
		}
		return r
	}
	apply(t, e, round(0)...)
	stop := make(chan struct{})
	var readers sync.WaitGroup
	for range 3 {
		readers.Go(func() {
			for last := -1; ; {
				s, err := e.Snapshot()
				if err != nil {
					t.Errorf("snapshot: %v", err)
					return
				}
				got := rows(t, s, "", "", last%2 == 0)
				v, err := s.Get([]byte("a"), nil)
				s.Close()
				slices.Sort(got)
				var n int
				if _, serr := fmt.Sscanf(string(v), "%d", &n); serr != nil || err != nil || !slices.Equal(got, round(n)) || n < last {
					t.Errorf("a reader saw %q, a=%q, %v, after %d", got, v, err, last)
					return
				}
				last = n
				select {
				case <-stop:
					return
				default:
				}
			}
		})
	}
	for i := 1; i <= 300; i++ {
		apply(t, e, round(i)...)
	}
	close(stop)
	readers.Wait()
}
