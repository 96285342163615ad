package store

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"

	"cairn/record"
)

// A bucket of deleted objects goes with all their versions, however many one key
// has, and what they shared with others stays.
func TestDeletedBucketGoesWithItsVersions(t *testing.T) {
	for _, n := range []int{1, maxDrops - 1, maxDrops, maxDrops + 1, 199, 200, 201, 450} {
		r := newRig(t)
		ctx := context.Background()
		if _, err := r.st.CreateBucket(ctx, "versions", record.Settings{Versioning: true}); err != nil {
			t.Fatal(err)
		}
		r.put("shared", []byte("version 0"))
		for i := range n {
			keys := []string{"b"}
			if i < 3 {
				keys = []string{"a", "b", "c"}
			}
			for _, key := range keys {
				if _, err := r.st.Put(ctx, "versions", key, strings.NewReader(fmt.Sprintf("version %d", i/2)), PutOptions{Size: -1}); err != nil {
					t.Fatal(err)
				}
			}
		}
		for _, key := range []string{"a", "b", "c"} {
			if _, err := r.st.Delete(ctx, "versions", key, Conditions{}); err != nil {
				t.Fatal(err)
			}
		}
		if err := r.st.DeleteBucket(ctx, "versions"); err != nil {
			t.Fatalf("delete a bucket with %d versions of a key: %v", n, err)
		}
		if _, err := r.st.Bucket(ctx, "versions"); !errors.Is(err, ErrNoBucket) {
			t.Errorf("the deleted bucket: %v, want ErrNoBucket", err)
		}
		if rep, err := r.st.CheckIndex(ctx); err != nil {
			t.Errorf("index after the delete of a bucket with %d versions of a key: %v; %v", n, err, rep.Findings)
		}
		r.mustRead("shared", []byte("version 0"))
		r.close()
	}
}

// A bucket that was deleted, or made again, is not the one that requests used before.
func TestBucketMadeAgainIsAnother(t *testing.T) {
	r := newRig(t)
	defer r.close()
	ctx := context.Background()
	put := func() error {
		_, err := r.st.Put(ctx, "again", "o", strings.NewReader("content"), PutOptions{Size: -1})
		return err
	}
	get := func() error {
		_, err := r.st.Get(ctx, "again", "o", GetOptions{})
		return err
	}
	for i := range 3 {
		if err := put(); !errors.Is(err, ErrNoBucket) {
			t.Fatalf("put into no bucket: %v", err)
		}
		if err := get(); !errors.Is(err, ErrNoBucket) {
			t.Fatalf("get from no bucket: %v", err)
		}
		if _, err := r.st.CreateBucket(ctx, "again", record.Settings{}); err != nil {
			t.Fatal(err)
		}
		if i == 1 { // else the put is the first to meet the new bucket
			if err := get(); !errors.Is(err, ErrNoObject) {
				t.Fatalf("get from a new bucket: %v", err)
			}
		}
		for range 2 {
			if err := errors.Join(put(), get()); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := r.st.Delete(ctx, "again", "o", Conditions{}); err != nil {
			t.Fatal(err)
		}
		if err := r.st.DeleteBucket(ctx, "again"); err != nil {
			t.Fatal(err)
		}
	}
	r.put("o", []byte("content"))
	if err := r.st.SetBucket(ctx, "main", record.Settings{K: 2}); err != nil {
		t.Fatal(err)
	}
	b, err := r.st.bucket("main")
	if err != nil || b.Settings.K != 2 {
		t.Errorf("settings after a change: %+v, %v", b.Settings, err)
	}
}
