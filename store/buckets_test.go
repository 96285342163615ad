package store

import (
	"testing"

	"cairn/index"
	"cairn/record"
)

// TestKnownBucketsForgetInTime: what was read before a bucket changed is not
// remembered after it.
func TestKnownBucketsForgetInTime(t *testing.T) {
	var k knownBuckets
	b := index.Bucket{ID: 1, Name: "b", BucketUsage: index.BucketUsage{Objects: 7}}
	if _, _, ok := k.get("b"); ok {
		t.Fatal("known before it was put")
	}
	_, age, _ := k.get("b")
	k.put(b, age)
	got, _, ok := k.get("b")
	if !ok || got.ID != 1 || got.Objects != 0 {
		t.Fatalf("got %+v, %v", got, ok)
	}
	k.changed([]record.Record{&record.Put{}, &record.Delete{}})
	if _, _, ok := k.get("b"); !ok {
		t.Error("a put made it forget")
	}
	for _, r := range []record.Record{&record.BucketCreate{}, &record.BucketSet{}, &record.BucketDelete{}} {
		_, age, _ := k.get("b")
		k.put(b, age)
		k.changed([]record.Record{&record.Put{}, r})
		if _, _, ok := k.get("b"); ok {
			t.Errorf("known after %T", r)
		}
		k.put(b, age) // read before the change, put after it
		if _, _, ok := k.get("b"); ok {
			t.Errorf("an old row was remembered after %T", r)
		}
	}
	for i := range 3 * manyBuckets {
		k.put(index.Bucket{Name: string(rune('a' + i))}, k.age)
	}
	if len(k.byName) > manyBuckets {
		t.Errorf("%d are remembered", len(k.byName))
	}
}
