package store

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"sync"
	"testing"

	"pgregory.net/rapid"

	"cairn/id"
	"cairn/record"
)

// content reads an object of any bucket.
func (r *rig) content(n Name, v id.Version) (string, Object, error) {
	got, err := r.st.Get(context.Background(), n.Bucket, n.Key, GetOptions{Version: v})
	if err != nil {
		return "", Object{}, err
	}
	body := got.Body(0, got.Object.Size)
	defer body.Close()
	b, err := io.ReadAll(body)
	return string(b), got.Object, err
}

// TestCopiesTakeNoRoom: a copy of an object that is chunks, or one that travels in
// the log, refers to what is there, whatever becomes of the source, also once the
// index is made anew.
func TestCopiesTakeNoRoom(t *testing.T) {
	ctx := context.Background()
	r := newRig(t)
	if _, err := r.st.CreateBucket(ctx, "other", record.Settings{Versioning: true}); err != nil {
		t.Fatal(err)
	}
	want := map[string][]byte{"none": nil, "small": random(1, 1000), "large": random(2, 9<<20)}
	for _, key := range slices.Sorted(maps.Keys(want)) {
		attrs := record.Attrs{ContentType: "text/plain", User: []record.UserField{{Name: "a", Value: "b"}}}
		if _, err := r.st.Put(ctx, "main", key, bytes.NewReader(want[key]), PutOptions{Size: -1, Attrs: attrs}); err != nil {
			t.Fatal(err)
		}
	}
	before, err := r.st.Usage(ctx)
	if err != nil {
		t.Fatal(err)
	}
	for _, key := range slices.Sorted(maps.Keys(want)) {
		src := Name{"main", key}
		_, o, err := r.content(src, id.Version{})
		if err != nil {
			t.Fatal(err)
		}
		kept, err := r.st.Copy(ctx, src, Name{"other", key}, CopyOptions{Version: o.Version})
		if err != nil || kept.Attrs.ContentType != "text/plain" || len(kept.Attrs.User) != 1 || kept.ETag != o.ETag || kept.Size != o.Size || kept.Replaced {
			t.Errorf("copy of %s: %+v, %v", key, kept, err)
		}
		other, err := r.st.Copy(ctx, Name{"other", key}, Name{"other", key}, CopyOptions{Attrs: &record.Attrs{ContentType: "a/b"}})
		if err != nil || other.Attrs.ContentType != "a/b" || other.Attrs.User != nil || !other.Replaced || other.Version == kept.Version {
			t.Errorf("copy of %s to itself: %+v, %v", key, other, err)
		}
		moved, err := r.st.Rename(ctx, src, Name{"main", "to/" + key}, CopyOptions{})
		if err != nil || moved.Size != o.Size || moved.ETag != o.ETag {
			t.Errorf("rename of %s: %+v, %v", key, moved, err)
		}
		if _, _, err := r.content(src, id.Version{}); !errors.Is(err, ErrNoObject) {
			t.Errorf("%s after it was renamed: %v", key, err)
		}
		// Nothing is left of the source but the copies.
		vs, err := r.st.List(ctx, "main", ListOptions{Prefix: key, Versions: true})
		if err != nil || len(vs.Objects) != 2 || !vs.Objects[0].Deleted {
			t.Fatalf("%s after it was renamed: %+v, %v", key, vs.Objects, err)
		}
		for _, v := range vs.Objects {
			if err := r.st.DeleteVersion(ctx, "main", key, v.Version, false); err != nil {
				t.Error(err)
			}
		}
	}
	after, err := r.st.Usage(ctx)
	if err != nil || after.UniqueBytes != before.UniqueBytes || after.Chunks != before.Chunks || after.DeadBytes != before.DeadBytes {
		t.Errorf("copies, renames and the sources' removal changed what is stored from %+v to %+v, %v", before, after, err)
	}
	check := func(when string) {
		for key, b := range want {
			for _, n := range []Name{{"other", key}, {"main", "to/" + key}} {
				if got, _, err := r.content(n, id.Version{}); err != nil || got != string(b) {
					t.Errorf("%s: %v has %d bytes, %v; want %d", when, n, len(got), err, len(b))
				}
			}
		}
		if _, err := r.st.CheckIndex(ctx); err != nil {
			t.Errorf("%s: %v", when, err)
		}
	}
	check("at first")
	r.close()
	r.loseIndex()
	r.open()
	check("with the index rebuilt")
}

// TestCopyRefuses: what a copy is told, and that it then leaves nothing.
func TestCopyRefuses(t *testing.T) {
	ctx := context.Background()
	r := newRig(t)
	r.put("a", []byte("one"))
	r.put("b", []byte("two"))
	r.put("gone", []byte("three"))
	if err := r.delete("gone"); err != nil {
		t.Fatal(err)
	}
	marker, err := r.st.List(ctx, "main", ListOptions{Prefix: "gone", Versions: true})
	if err != nil || len(marker.Objects) != 2 {
		t.Fatal(marker, err)
	}
	_, a, _ := r.content(Name{"main", "a"}, id.Version{})
	_, b, _ := r.content(Name{"main", "b"}, id.Version{})
	main := func(key string) Name { return Name{"main", key} }
	for i, c := range []struct {
		from, to Name
		opt      CopyOptions
		move     bool
		want     error
	}{
		{from: main("nothing"), to: main("c"), want: ErrNoObject},
		{from: main("gone"), to: main("c"), want: ErrNoObject},
		{from: main("gone"), to: main("c"), opt: CopyOptions{Version: marker.Objects[0].Version}, want: ErrNoObject},
		{from: main("a"), to: main("c"), opt: CopyOptions{Version: b.Version}, want: ErrNoVersion},
		{from: Name{"nowhere", "a"}, to: main("c"), want: ErrNoBucket},
		{from: main("a"), to: Name{"nowhere", "c"}, want: ErrNoBucket},
		{from: main(""), to: main("c"), want: ErrInvalid},
		{from: main("a"), to: main("\xff"), want: ErrInvalid},
		{from: main("a"), to: main("c"), opt: CopyOptions{Attrs: &record.Attrs{ContentType: string(make([]byte, record.MaxAttrs+1))}}, want: ErrTooLarge},
		{from: main("a"), to: main("b"), opt: CopyOptions{If: Conditions{IfNoneMatch: []string{"*"}}}, want: ErrPrecondition},
		{from: main("a"), to: main("b"), opt: CopyOptions{If: Conditions{IfMatch: []string{a.ETag}}}, want: ErrPrecondition},
		{from: main("a"), to: main("c"), opt: CopyOptions{Source: Conditions{IfMatch: []string{b.ETag}}}, want: ErrPrecondition},
		{from: main("a"), to: main("c"), opt: CopyOptions{Source: Conditions{IfNoneMatch: []string{a.ETag}}}, want: ErrPrecondition},
		{from: main("nothing"), to: main("b"), opt: CopyOptions{If: Conditions{IfNoneMatch: []string{"*"}}}, want: ErrNoObject},
		{from: main("a"), to: main("a"), move: true, want: ErrInvalid},
		{from: main("a"), to: main("c"), opt: CopyOptions{Version: a.Version}, move: true, want: ErrInvalid},
		{from: main("a"), to: main("b"), opt: CopyOptions{If: Conditions{IfNoneMatch: []string{"*"}}}, move: true, want: ErrPrecondition},
	} {
		do := r.st.Copy
		if c.move {
			do = r.st.Rename
		}
		if o, err := do(ctx, c.from, c.to, c.opt); !errors.Is(err, c.want) {
			t.Errorf("%d: %v to %v: %+v, %v, want %v", i, c.from, c.to, o, err, c.want)
		}
	}
	for key, want := range map[string]string{"a": "one", "b": "two"} {
		if got, _, err := r.content(main(key), id.Version{}); err != nil || got != want {
			t.Errorf("%s after refusals: %q, %v", key, got, err)
		}
	}
	l, err := r.st.List(ctx, "main", ListOptions{Versions: true})
	if err != nil || len(l.Objects) != 4 {
		t.Errorf("refusals left %d versions, %v", len(l.Objects), err)
	}
}

// TestRenamesRace: of many renames of one object one wins, and a listing never
// shows the object twice, or not at all.
func TestRenamesRace(t *testing.T) {
	ctx := context.Background()
	r := newRig(t)
	r.put("k0", []byte("there is one"))
	var (
		wg   sync.WaitGroup
		mu   sync.Mutex
		at   int
		wins int
	)
	stop := make(chan struct{})
	wg.Go(func() {
		for {
			select {
			case <-stop:
				return
			default:
			}
			if l, err := r.st.List(ctx, "main", ListOptions{}); err != nil || len(l.Objects) != 1 {
				t.Errorf("a listing shows %d objects, %v", len(l.Objects), err)
				return
			}
		}
	})
	for round := range 10 {
		var renames sync.WaitGroup
		from := at
		for i := range 4 {
			renames.Go(func() {
				to := 1 + round*4 + i
				_, err := r.st.Rename(ctx, Name{"main", fmt.Sprint("k", from)}, Name{"main", fmt.Sprint("k", to)}, CopyOptions{})
				mu.Lock()
				defer mu.Unlock()
				if err == nil {
					at = to
					wins++
				} else if !errors.Is(err, ErrNoObject) {
					t.Errorf("a rename that lost: %v", err)
				}
			})
		}
		renames.Wait()
	}
	close(stop)
	if wg.Wait(); wins != 10 {
		t.Errorf("%d renames of 10 rounds won", wins)
	}
}

// TestCopiesAndAMap runs puts, copies, renames, deletes and removals of versions
// against a map of stacks, and counts the index again at the end.
func TestCopiesAndAMap(t *testing.T) {
	type version struct {
		id   id.Version
		body string // "" for a delete marker
	}
	ctx := context.Background()
	buckets := []string{"main", "versions"}
	bodies := []string{"x", string(random(5, 3000)), string(random(6, 400<<10))}
	rapid.Check(t, func(rt *rapid.T) {
		r := newRig(t)
		defer r.close() // newRig's own end comes with that of all runs
		if _, err := r.st.CreateBucket(ctx, "versions", record.Settings{Versioning: true}); err != nil {
			rt.Fatal(err)
		}
		model := map[Name][]version{} // newest first
		name := func(what string) Name {
			return Name{rapid.SampledFrom(buckets).Draw(rt, what+" bucket"), rapid.SampledFrom([]string{"a", "b"}).Draw(rt, what+" key")}
		}
		live := func(n Name) string {
			if vs := model[n]; len(vs) > 0 {
				return vs[0].body
			}
			return ""
		}
		push := func(n Name, v version) {
			if n.Bucket == "main" && v.body != "" {
				model[n] = nil
			}
			model[n] = append([]version{v}, model[n]...)
		}
		for range rapid.IntRange(1, 25).Draw(rt, "steps") {
			n := name("the")
			switch rapid.IntRange(0, 5).Draw(rt, "do") {
			case 0, 1:
				body := rapid.SampledFrom(bodies).Draw(rt, "body")
				o, err := r.st.Put(ctx, n.Bucket, n.Key, bytes.NewReader([]byte(body)), PutOptions{Size: -1})
				if err != nil || o.Replaced != (live(n) != "") {
					rt.Fatalf("put %v: %+v, %v", n, o, err)
				}
				push(n, version{o.Version, body})
			case 2:
				to := name("other")
				v := version{body: live(n)}
				var opt CopyOptions
				if vs := model[n]; len(vs) > 0 && rapid.Bool().Draw(rt, "of a version") {
					v = vs[rapid.IntRange(0, len(vs)-1).Draw(rt, "which")]
					opt.Version = v.id
				}
				o, err := r.st.Copy(ctx, n, to, opt)
				if v.body == "" {
					if !errors.Is(err, ErrNoObject) {
						rt.Fatalf("copy %v, which is nothing: %v", n, err)
					}
					continue
				}
				if err != nil || o.Replaced != (live(to) != "") {
					rt.Fatalf("copy %v to %v: %+v, %v", n, to, o, err)
				}
				push(to, version{o.Version, v.body})
			case 3:
				to := name("other")
				o, err := r.st.Rename(ctx, n, to, CopyOptions{})
				switch {
				case n == to:
					if !errors.Is(err, ErrInvalid) {
						rt.Fatalf("rename %v to itself: %v", n, err)
					}
				case live(n) == "":
					if !errors.Is(err, ErrNoObject) {
						rt.Fatalf("rename %v, which is nothing: %v", n, err)
					}
				case err != nil:
					rt.Fatalf("rename %v to %v: %v", n, to, err)
				default:
					push(to, version{o.Version, live(n)})
					push(n, version{id: id.Version{Seq: o.Version.Seq, Pos: o.Version.Pos + 1}})
				}
			case 4:
				o, err := r.st.Delete(ctx, n.Bucket, n.Key, Conditions{})
				if (err == nil) != (live(n) != "") {
					rt.Fatalf("delete %v: %v, there is %.10q", n, err, live(n))
				}
				if err == nil {
					push(n, version{id: o.Version})
				}
			case 5:
				if vs := model[n]; len(vs) > 0 {
					i := rapid.IntRange(0, len(vs)-1).Draw(rt, "which")
					if err := r.st.DeleteVersion(ctx, n.Bucket, n.Key, vs[i].id, false); err != nil {
						rt.Fatalf("remove a version of %v: %v", n, err)
					}
					model[n] = slices.Delete(slices.Clone(vs), i, i+1)
				}
			}
		}
		for _, when := range []string{"at first", "with the index rebuilt"} {
			for n, vs := range model {
				l, err := r.st.List(ctx, n.Bucket, ListOptions{Prefix: n.Key, Versions: true})
				if err != nil || len(l.Objects) != len(vs) {
					rt.Fatalf("%s: %v has %d versions, %v; want %d", when, n, len(l.Objects), err, len(vs))
				}
				for i, v := range vs {
					if o := l.Objects[i]; o.Version != v.id || o.Deleted != (v.body == "") || o.Current != (i == 0) {
						rt.Fatalf("%s: version %d of %v is %+v, want %v", when, i, n, o, v.id)
					}
					if v.body == "" {
						continue
					}
					if got, _, err := r.content(n, v.id); err != nil || got != v.body {
						rt.Fatalf("%s: version %v of %v: %d bytes, %v; want %d", when, v.id, n, len(got), err, len(v.body))
					}
				}
			}
			if _, err := r.st.CheckIndex(ctx); err != nil {
				rt.Fatalf("%s: %v", when, err)
			}
			if when == "at first" {
				r.close()
				r.loseIndex()
				r.open()
			}
		}
	})
}
