package store

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"pgregory.net/rapid"

	"cairn/id"
	"cairn/index/kv/memkv"
	"cairn/record"
)

// leaps gives the store a clock that the test sets.
func (r *rig) leaps() *atomic.Int64 {
	var leap atomic.Int64
	r.close()
	r.change = func(c *Config) { c.Now = func() time.Time { return time.Now().Add(time.Duration(leap.Load())) } }
	r.open()
	return &leap
}

func on(b bool) *bool { return &b }

const day = 24 * time.Hour

// TestLocks walks through what a lock refuses, and what it does not.
func TestLocks(t *testing.T) {
	ctx := context.Background()
	r := newRig(t)
	leap := r.leaps()
	is := func(what string, err, want error) {
		t.Helper()
		if !errors.Is(err, want) {
			t.Errorf("%s: got %v, want %v", what, err, want)
		}
	}
	put := func(bucket, key string) Object {
		t.Helper()
		o, err := r.st.Put(ctx, bucket, key, strings.NewReader("content of "+key), PutOptions{Size: -1})
		if err != nil {
			t.Fatal(err)
		}
		return o
	}
	retain := func(o Object, mode string, d time.Duration, bypass bool) error {
		var until time.Time
		if mode != "" {
			until = time.Now().Add(d)
		}
		_, err := r.st.Lock(ctx, o.Bucket, o.Key, LockOptions{Version: o.Version, Retention: &Retention{mode, until}, Bypass: bypass})
		return err
	}
	hold := func(o Object, held bool) error {
		_, err := r.st.Lock(ctx, o.Bucket, o.Key, LockOptions{Version: o.Version, Hold: on(held)})
		return err
	}
	purge := func(o Object, bypass bool) error { return r.st.DeleteVersion(ctx, o.Bucket, o.Key, o.Version, bypass) }

	// Settings.
	set := record.Settings{Versioning: true, Lock: true}
	for _, bad := range []record.Settings{{Lock: true}, {Versioning: true, RetentionMode: record.Governance, RetentionDays: 1}, {Versioning: true, Lock: true, RetentionMode: "forever", RetentionDays: 1},
		{Versioning: true, Lock: true, RetentionMode: record.Compliance}, {Versioning: true, Lock: true, RetentionDays: 1}, {Versioning: true, Lock: true, RetentionMode: record.Compliance, RetentionDays: 36501}} {
		_, err := r.st.CreateBucket(ctx, "bad", bad)
		is(fmt.Sprintf("%+v", bad), err, ErrInvalid)
	}
	r.bucket("locked", set)
	is("without versions", r.st.SetBucket(ctx, "locked", record.Settings{Lock: true}), ErrInvalid)
	is("without a lock", r.st.SetBucket(ctx, "locked", record.Settings{Versioning: true}), ErrLocked)
	_, err := r.st.Lock(ctx, "main", "a", LockOptions{Hold: on(true)})
	is("in another bucket", err, ErrInvalid)
	_, err = r.st.Lock(ctx, "locked", "a", LockOptions{Hold: on(true)})
	is("of nothing", err, ErrNoObject)
	_, err = r.st.Lock(ctx, "locked", "a", LockOptions{})
	is("to nothing", err, ErrInvalid)

	// A hold stays until it is taken away.
	a := put("locked", "a")
	is("hold", hold(a, true), nil)
	is("purge of what is held", purge(a, true), ErrLocked)
	marker, err := r.st.Delete(ctx, "locked", "a", Conditions{})
	is("delete", err, nil)
	is("purge under a marker", purge(a, true), ErrLocked)
	is("hold of a marker", hold(marker, true), ErrNoObject)
	is("purge of the marker", purge(marker, false), nil)
	put("locked", "a")
	is("purge of an older version", purge(a, true), ErrLocked)
	is("no hold", hold(a, false), nil)
	is("purge", purge(a, false), nil)

	// Governance is lifted by who says so.
	b := put("locked", "b")
	is("in the past", retain(b, record.Governance, -time.Hour, false), ErrInvalid)
	is("for ever", retain(b, record.Governance, 40_000*day, false), ErrInvalid)
	is("in a mode that is none", retain(b, "forever", day, false), ErrInvalid)
	is("governance", retain(b, record.Governance, 10*day, false), nil)
	is("purge", purge(b, false), ErrLocked)
	is("shorter", retain(b, record.Governance, 9*day, false), ErrLocked)
	is("none", retain(b, "", 0, false), ErrLocked)
	is("longer", retain(b, record.Governance, 11*day, false), nil)
	is("shorter, bypassed", retain(b, record.Governance, 5*day, true), nil)
	is("hold", hold(b, true), nil)
	is("purge of what is held too", purge(b, true), ErrLocked)
	is("no hold", hold(b, false), nil)
	is("purge of what is retained still", purge(b, false), ErrLocked)
	is("purge, bypassed", purge(b, true), nil)

	// Compliance is not.
	c := put("locked", "c")
	is("governance", retain(c, record.Governance, 10*day, false), nil)
	is("compliance from governance, shorter", retain(c, record.Compliance, 9*day, false), ErrLocked)
	is("compliance from governance", retain(c, record.Compliance, 10*day, false), nil)
	is("shorter", retain(c, record.Compliance, 9*day, true), ErrLocked)
	is("governance again", retain(c, record.Governance, 20*day, true), ErrLocked)
	is("none", retain(c, "", 0, true), ErrLocked)
	is("longer", retain(c, record.Compliance, 11*day, false), nil)
	is("purge", purge(c, true), ErrLocked)
	_, err = r.st.Delete(ctx, "locked", "c", Conditions{})
	is("delete", err, nil)

	// Nothing of it goes with what is around it: not by a bucket's end, a leap of the clock,
	// a start, a collection, or the loss of the index.
	for _, key := range []string{"a"} {
		if _, err := r.st.Delete(ctx, "locked", key, Conditions{}); err != nil {
			t.Fatal(err)
		}
	}
	is("delete of the bucket", r.st.DeleteBucket(ctx, "locked"), ErrBucketNotEmpty)
	leap.Store(int64(3650 * day))
	is("after a leap", purge(c, true), ErrLocked)
	r.close()
	r.engine = memkv.New(memkv.Options{})
	r.open()
	is("after a start", purge(c, true), ErrLocked)
	if _, err := r.st.Collect(ctx, JobOptions{Now: true, Purge: true}); err != nil {
		t.Fatal(err)
	}
	if got, _, err := r.content(Name{"locked", "c"}, c.Version); err != nil || got != "content of c" {
		t.Errorf("what is locked reads as %q, %v", got, err)
	}
	leap.Store(0)
	r.pass(11*day - time.Hour)
	is("an hour too early", purge(c, true), ErrLocked)
	r.pass(2 * time.Hour)
	is("when it is over", purge(c, false), nil)
}

// TestDefaultRetention: new versions are retained as their bucket says when they are made,
// however they are made.
func TestDefaultRetention(t *testing.T) {
	ctx := context.Background()
	r := newRig(t)
	leap := r.leaps()
	r.bucket("kept", record.Settings{Versioning: true, Lock: true, RetentionMode: record.Compliance, RetentionDays: 30})
	check := func(what string, o Object, err error) {
		t.Helper()
		if err != nil {
			t.Fatalf("%s: %v", what, err)
		}
		_, now, err := r.content(Name{o.Bucket, o.Key}, o.Version)
		if late := o.Lock.Retention.Until.Sub(o.Modified.Add(30 * day)); err != nil || now.Lock != o.Lock || o.Lock.Retention.Mode != record.Compliance || late < 0 || late > time.Minute {
			t.Errorf("%s: of %v it has the lock %+v, was answered %+v, %v", what, o.Modified, now.Lock, o.Lock, err)
		}
		if err := r.st.DeleteVersion(ctx, o.Bucket, o.Key, o.Version, true); !errors.Is(err, ErrLocked) {
			t.Errorf("%s: purge: got %v, want ErrLocked", what, err)
		}
	}
	o, err := r.sized("kept", "put", 100)
	check("put", o, err)
	first := o
	r.put("source", random(1, 5<<20))
	o, err = r.st.Copy(ctx, Name{"main", "source"}, Name{"kept", "copy"}, CopyOptions{})
	check("copy", o, err)
	o, err = r.st.Rename(ctx, Name{"kept", "copy"}, Name{"kept", "renamed"}, CopyOptions{})
	check("rename", o, err)
	u, err := r.st.BeginUpload(ctx, "kept", "upload", UploadOptions{Size: -1})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := r.st.AppendUpload(ctx, u.ID, 0, bytes.NewReader(random(2, 1000))); err != nil {
		t.Fatal(err)
	}
	o, err = r.st.CompleteUpload(ctx, u.ID, Conditions{})
	check("upload", o, err)
	// Under a clock that was set back, days begin where the log's time stands.
	leap.Store(-int64(3650 * day))
	o, err = r.sized("kept", "back", 100)
	check("put under a clock that was set back", o, err)
	// Under one that is ahead they are longer, never shorter.
	leap.Store(int64(3650 * day))
	o, err = r.sized("kept", "ahead", 100)
	check("put under a clock that is ahead", o, err)
	leap.Store(0)
	if err := r.st.SetBucket(ctx, "kept", record.Settings{Versioning: true, Lock: true}); err != nil {
		t.Fatal(err)
	}
	if _, now, err := r.content(Name{"kept", "put"}, id.Version{}); err != nil || now.Lock != first.Lock {
		t.Errorf("after the default was taken away an older version has %+v, %v", now.Lock, err)
	}
	if o, err = r.sized("kept", "put", 100); err != nil || o.Lock != (Lock{}) {
		t.Errorf("without a default: %+v, %v", o.Lock, err)
	}
}

// TestLockDecidesInTheLog: of a hold and a purge that reach the log together one is refused.
func TestLockDecidesInTheLog(t *testing.T) {
	ctx := context.Background()
	r := newRig(t)
	r.bucket("locked", record.Settings{Versioning: true, Lock: true})
	for i := range 40 {
		o, err := r.sized("locked", fmt.Sprint(i), 10)
		if err != nil {
			t.Fatal(err)
		}
		purged := make(chan error)
		go func() { purged <- r.st.DeleteVersion(ctx, o.Bucket, o.Key, o.Version, true) }()
		_, held := r.st.Lock(ctx, o.Bucket, o.Key, LockOptions{Version: o.Version, Hold: on(true)})
		gone := <-purged
		_, _, there := r.content(Name{o.Bucket, o.Key}, o.Version)
		switch {
		case held == nil && errors.Is(gone, ErrLocked) && there == nil:
		case gone == nil && errors.Is(held, ErrNoVersion) && errors.Is(there, ErrNoVersion):
		default:
			t.Fatalf("hold: %v, purge: %v, read: %v", held, gone, there)
		}
	}
}

// TestLockModel: whatever is done, and whatever the clock does, a version that is locked is
// there and whole, and of the rest what was purged is gone.
func TestLockModel(t *testing.T) {
	r := newRig(t)
	leap := r.leaps()
	ctx := context.Background()
	type version struct {
		o    Object
		body string
	}
	n := 0
	rapid.Check(t, func(t *rapid.T) {
		n++
		name := fmt.Sprintf("locked-%d", n)
		set := record.Settings{Versioning: true, Lock: true}
		if _, err := r.st.CreateBucket(ctx, name, set); err != nil {
			t.Fatal(err)
		}
		var all []version
		key := rapid.SampledFrom([]string{"a", "b"})
		mode := rapid.SampledFrom([]string{"", record.Governance, record.Compliance})
		for step := range rapid.IntRange(1, 25).Draw(t, "steps") {
			var v *version
			if len(all) > 0 {
				v = &all[rapid.IntRange(0, len(all)-1).Draw(t, "version")]
			}
			sure := time.Unix(0, r.st.believed())
			retained := func() bool { return v.o.Lock.Retention.Until.After(sure) }
			what := rapid.IntRange(0, 10).Draw(t, "what")
			switch {
			case what <= 1:
				body := fmt.Sprintf("%s %d", name, step)
				o, err := r.st.Put(ctx, name, key.Draw(t, "key"), strings.NewReader(body), PutOptions{Size: -1})
				if err != nil {
					t.Fatal(err)
				}
				if r := o.Lock.Retention; r.Mode != set.RetentionMode || r.Mode != "" && r.Until.Before(sure.Add(time.Duration(set.RetentionDays)*day)) {
					t.Fatalf("a put at %v or later is retained %+v, by default %s for %d days", sure, r, set.RetentionMode, set.RetentionDays)
				}
				all = append(all, version{o, body})
			case what == 2:
				if _, err := r.st.Delete(ctx, name, key.Draw(t, "key"), Conditions{}); err != nil && !errors.Is(err, ErrNoObject) {
					t.Fatal(err)
				}
			case what == 3:
				set.RetentionMode, set.RetentionDays = mode.Draw(t, "default"), 0
				if set.RetentionMode != "" {
					set.RetentionDays = uint32(rapid.IntRange(1, 9).Draw(t, "days"))
				}
				if err := r.st.SetBucket(ctx, name, set); err != nil {
					t.Fatal(err)
				}
			case what == 4:
				leap.Store(int64(rapid.IntRange(-9, 9).Draw(t, "leap")) * int64(day))
			case what == 5:
				r.pass(time.Duration(rapid.IntRange(0, 5*24).Draw(t, "hours")) * time.Hour)
			case what == 6:
				if err := r.st.DeleteBucket(ctx, name); !errors.Is(err, ErrBucketNotEmpty) && (len(all) > 0 || err != nil) {
					t.Fatal(err)
				} else if err == nil {
					return
				}
			case v == nil:
			case what == 7:
				held := rapid.Bool().Draw(t, "hold")
				o, err := r.st.Lock(ctx, name, v.o.Key, LockOptions{Version: v.o.Version, Hold: &held})
				if err != nil || o.Lock.Hold != held || o.Lock.Retention != v.o.Lock.Retention {
					t.Fatalf("%+v, %v", o.Lock, err)
				}
				v.o = o
			case what == 8:
				next := Retention{Mode: mode.Draw(t, "mode")}
				if next.Mode != "" {
					next.Until = time.Now().Add(20*day + time.Duration(rapid.IntRange(0, 20*24).Draw(t, "until"))*time.Hour)
				}
				bypass := rapid.Bool().Draw(t, "bypass")
				o, err := r.st.Lock(ctx, name, v.o.Key, LockOptions{Version: v.o.Version, Retention: &next, Bypass: bypass})
				was := v.o.Lock.Retention
				longer := !next.Until.Before(was.Until) && (next.Mode == record.Compliance || was.Mode == record.Governance && next.Mode != "")
				may := !retained() || longer || bypass && was.Mode == record.Governance
				beyond := errors.Is(err, ErrInvalid) // where the log's time is
				if !beyond && ((err == nil) != may || err != nil && !errors.Is(err, ErrLocked)) {
					t.Fatalf("at %v from %+v to %+v, bypass %v: %v", sure, was, next, bypass, err)
				}
				if err == nil {
					v.o = o
				}
			default:
				bypass := rapid.Bool().Draw(t, "bypass")
				err := r.st.DeleteVersion(ctx, name, v.o.Key, v.o.Version, bypass)
				may := !v.o.Lock.Hold && (!retained() || bypass && v.o.Lock.Retention.Mode == record.Governance)
				if (err == nil) != may || err != nil && !errors.Is(err, ErrLocked) {
					t.Fatalf("at %v purge of %+v, bypass %v: %v", sure, v.o.Lock, bypass, err)
				}
				if err == nil {
					if _, _, err := r.content(Name{name, v.o.Key}, v.o.Version); !errors.Is(err, ErrNoVersion) {
						t.Fatalf("a version that was purged: %v", err)
					}
					all = slices.DeleteFunc(all, func(w version) bool { return w.o.Version == v.o.Version })
				}
			}
			for _, v := range all {
				got, o, err := r.content(Name{name, v.o.Key}, v.o.Version)
				if err != nil || got != v.body || o.Lock != v.o.Lock {
					t.Fatalf("%s of version %v: %q with %+v, %v; want %q with %+v", v.o.Key, v.o.Version, got, o.Lock, err, v.body, v.o.Lock)
				}
			}
		}
	})
	if rep, err := r.st.CheckIndex(ctx); err != nil {
		t.Errorf("%v: %v", err, rep.Findings)
	}
}
