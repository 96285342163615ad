package store

import (
	"bytes"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"testing"

	"cairn/id"
	"cairn/record"
)

// damaged lists what is lost, in pages of so many, as bucket/key or bucket/key@old.
func (r *rig) damaged(limit int) (out []string, pages int) {
	r.t.Helper()
	var from DamagedCursor
	for {
		page, err := r.st.Damaged(r.t.Context(), from, limit)
		if err != nil || len(page.Objects) > limit {
			r.t.Fatalf("%+v, %v", page, err)
		}
		for _, o := range page.Objects {
			name := o.Bucket + "/" + o.Key
			if !o.Current {
				name += "@old"
			}
			out = append(out, name)
		}
		if pages++; !page.More {
			return out, pages
		}
		from = page.Next
	}
}

// TestDamagedNamesObjects: what is lost is named by the versions of objects that cannot
// be read, however deep in a manifest it lies, and nothing else is; page by page, until
// it is stored again.
func TestDamagedNamesObjects(t *testing.T) {
	r := newRig(t)
	r.change = func(c *Config) { c.idle, c.Lag, c.walkAtOnce = true, noDeadline, 7 }
	r.close()
	r.open()
	ctx := t.Context()
	if _, err := r.st.CreateBucket(ctx, "kept", record.Settings{Versioning: true}); err != nil {
		t.Fatal(err)
	}
	put := func(bucket, key string, b []byte) {
		t.Helper()
		if _, err := r.st.Put(ctx, bucket, key, bytes.NewReader(b), PutOptions{Size: int64(len(b))}); err != nil {
			t.Fatal(err)
		}
	}
	long := random(71, 40<<20) // more chunks than a manifest has roots
	put("main", "long", long)
	put("kept", "v", random(72, 2<<20))
	put("kept", "v", []byte("newer"))
	wide := r.putWide("wide", 3<<20)
	for i := range 20 {
		put("main", fmt.Sprint("small ", i), []byte(fmt.Sprint(i)))
	}
	if got, pages := r.damaged(10); len(got) > 0 || pages < 3 {
		t.Errorf("nothing is lost, and in %d pages there is %q", pages, got)
	}
	r.takeAway()
	if _, err := r.scrub(fast); !errors.Is(err, ErrDamaged) {
		t.Fatal(err)
	}
	put("kept", "behind", random(73, 2<<20))
	var want []string
	for _, o := range []struct{ bucket, key, name string }{{"main", "long", "main/long"}, {"main", "wide", "main/wide"}, {"kept", "v", "kept/v@old"}} {
		var v id.Version
		if o.bucket == "kept" {
			page, err := r.st.List(ctx, "kept", ListOptions{Versions: true})
			if err != nil {
				t.Fatal(err)
			}
			v = page.Objects[slices.IndexFunc(page.Objects, func(x Object) bool { return x.Key == "v" && x.Size > 100 })].Version
		}
		if _, _, err := r.content(Name{o.bucket, o.key}, v); !errors.Is(err, ErrDamaged) {
			t.Fatalf("%s is to be lost, and is read: %v", o.name, err)
		}
		want = append(want, o.name)
	}
	for _, limit := range []int{1, 2, 1000} {
		if got, _ := r.damaged(limit); !reflect.DeepEqual(got, want) {
			t.Errorf("lost are %q, in pages of %d they are %q", want, limit, got)
		}
	}
	put("main", "long again", long)
	put("main", "wide again", wide)
	put("kept", "v again", random(72, 2<<20))
	if got, _ := r.damaged(1000); len(got) > 0 {
		t.Errorf("stored again, and still named: %q", got)
	}
	p, err := r.st.Placement(ctx, "main", "wide", PlacementOptions{})
	if err != nil {
		t.Fatal(err)
	}
	r.st.scrubs.noteBroken(chunkKey{id.Main, p.Chunks[0].Chunk}, true)
	if got, _ := r.damaged(1000); !reflect.DeepEqual(got, []string{"main/wide", "main/wide again"}) {
		t.Errorf("a chunk of two objects does not open: %q", got)
	}
	if _, err := r.scrub(deeply(fast)); err != nil {
		t.Error(err)
	}
	if got, _ := r.damaged(1000); len(got) > 0 {
		t.Errorf("it opens, and still named are %q", got)
	}
}
