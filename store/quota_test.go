package store

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"pgregory.net/rapid"

	"cairn/id"
	"cairn/record"
)

func (r *rig) bucket(name string, set record.Settings) {
	r.t.Helper()
	if _, err := r.st.CreateBucket(context.Background(), name, set); err != nil {
		r.t.Fatal(err)
	}
}

func (r *rig) sized(bucket, key string, n int) (Object, error) {
	return r.st.Put(context.Background(), bucket, key, bytes.NewReader(random(uint64(n), n)), PutOptions{Size: int64(n)})
}

// TestQuotas walks through what adds to a bucket, and what does not.
func TestQuotas(t *testing.T) {
	ctx := context.Background()
	r := newRig(t)
	defer r.close()
	is := func(what string, err, want error) {
		t.Helper()
		if !errors.Is(err, want) {
			t.Errorf("%s: got %v, want %v", what, err, want)
		}
	}
	put := func(bucket, key string, n int) error {
		_, err := r.sized(bucket, key, n)
		return err
	}
	r.bucket("plain", record.Settings{QuotaBytes: 100})
	is("within", put("plain", "a", 60), nil)
	is("beyond", put("plain", "b", 41), ErrQuota)
	is("the rest", put("plain", "b", 40), nil)
	is("nothing adds nothing", put("plain", "c", 0), nil)
	is("what is replaced makes room", put("plain", "a", 59), nil)
	is("replaced by more", put("plain", "a", 61), ErrQuota)
	_, err := r.st.Delete(ctx, "plain", "b", Conditions{})
	is("delete", err, nil)
	is("what was deleted still counts", put("plain", "d", 2), ErrQuota)
	is("until it is put again", put("plain", "b", 1), nil)
	is("now there is room", put("plain", "d", 40), nil)
	_, err = r.st.Copy(ctx, Name{"plain", "a"}, Name{"plain", "e"}, CopyOptions{})
	is("a copy", err, ErrQuota)
	_, err = r.st.Copy(ctx, Name{"plain", "a"}, Name{"plain", "a"}, CopyOptions{})
	is("a copy onto itself", err, nil)
	is("a quota below what is there", r.st.SetBucket(ctx, "plain", record.Settings{QuotaBytes: 10}), nil)
	is("less than before", put("plain", "a", 58), nil)
	is("more than before", put("plain", "a", 59), ErrQuota)
	r.holds("plain", "a", random(58, 58))
	is("no quota", r.st.SetBucket(ctx, "plain", record.Settings{}), nil)
	is("anything goes", put("plain", "a", 1000), nil)

	// With versions, each of them counts, until it is purged.
	r.bucket("kept", record.Settings{QuotaBytes: 100, Versioning: true})
	first, err := r.sized("kept", "a", 60)
	is("first", err, nil)
	is("second", put("kept", "a", 41), ErrQuota)
	is("second, smaller", put("kept", "a", 40), nil)
	is("third", put("kept", "a", 1), ErrQuota)
	is("purge", r.st.DeleteVersion(ctx, "kept", "a", first.Version, false), nil)
	is("after the purge", put("kept", "a", 60), nil)

	// Of objects those count that are listed.
	r.bucket("few", record.Settings{QuotaObjects: 2, Versioning: true})
	is("one", put("few", "a", 1), nil)
	is("two", put("few", "b", 1), nil)
	is("three", put("few", "c", 1), ErrQuota)
	is("a version more", put("few", "b", 2), nil)
	_, err = r.st.Rename(ctx, Name{"few", "a"}, Name{"few", "c"}, CopyOptions{})
	is("rename", err, nil)
	_, err = r.st.Rename(ctx, Name{"kept", "a"}, Name{"few", "d"}, CopyOptions{})
	is("rename from elsewhere", err, ErrQuota)
	_, err = r.st.Undelete(ctx, "few", "a")
	is("undelete", err, ErrQuota)
	page, err := r.st.List(ctx, "few", ListOptions{Prefix: "a", Versions: true})
	if err != nil || len(page.Objects) != 2 || !page.Objects[0].Deleted {
		t.Fatalf("versions of a: %+v, %v", page.Objects, err)
	}
	is("purge of the marker", r.st.DeleteVersion(ctx, "few", "a", page.Objects[0].Version, false), ErrQuota)
	_, err = r.st.Delete(ctx, "few", "c", Conditions{})
	is("delete", err, nil)
	_, err = r.st.Undelete(ctx, "few", "a")
	is("undelete with room", err, nil)
	if b, err := r.st.Bucket(ctx, "few"); err != nil || b.Objects != 2 {
		t.Errorf("%d objects, %v", b.Objects, err)
	}

	// An upload that cannot fit does not begin; one that does not say is refused at its end.
	r.bucket("upl", record.Settings{QuotaBytes: 100})
	_, err = r.st.BeginUpload(ctx, "upl", "a", UploadOptions{Size: 101})
	is("an upload that says how long it is", err, ErrQuota)
	u, err := r.st.BeginUpload(ctx, "upl", "a", UploadOptions{Size: -1})
	is("begin", err, nil)
	_, err = r.st.AppendUpload(ctx, u.ID, 0, bytes.NewReader(random(1, 101)))
	is("append", err, nil)
	_, err = r.st.CompleteUpload(ctx, u.ID, Conditions{})
	is("complete", err, ErrQuota)
	is("a larger quota", r.st.SetBucket(ctx, "upl", record.Settings{QuotaBytes: 101}), nil)
	_, err = r.st.CompleteUpload(ctx, u.ID, Conditions{})
	is("complete with room", err, nil)

	// A body that has no chance is not read.
	read := &counted{r: bytes.NewReader(random(1, 1000))}
	_, err = r.st.Put(ctx, "upl", "b", read, PutOptions{Size: 1000})
	is("a long body", err, ErrQuota)
	if read.n != 0 {
		t.Errorf("%d bytes were read of a body that has no chance", read.n)
	}
	var quota *QuotaError
	if !errors.As(err, &quota) || quota.Bucket != "upl" || quota.Quota != 101 || quota.Bytes != 1101 {
		t.Errorf("the error says %+v", quota)
	}
}

type counted struct {
	r io.Reader
	n int
}

func (c *counted) Read(p []byte) (int, error) {
	n, err := c.r.Read(p)
	c.n += n
	return n, err
}

// holds is mustRead of any bucket.
func (r *rig) holds(bucket, key string, want []byte) {
	r.t.Helper()
	got, _, err := r.content(Name{bucket, key}, id.Version{})
	if err != nil || got != string(want) {
		r.t.Errorf("%s/%s: %d bytes, want %d, %v", bucket, key, len(got), len(want), err)
	}
}

// TestQuotaHoldsAtOnce: of puts that reach the log writer together only so many pass as
// there is room for, whatever a look before each of them had said.
func TestQuotaHoldsAtOnce(t *testing.T) {
	r := newRig(t)
	defer r.close()
	r.bucket("plain", record.Settings{QuotaBytes: 50})
	r.bucket("few", record.Settings{QuotaObjects: 5})
	for _, bucket := range []string{"plain", "few"} {
		var (
			wg     sync.WaitGroup
			stored atomic.Int64
		)
		for i := range 64 {
			wg.Go(func() {
				_, err := r.st.Put(context.Background(), bucket, fmt.Sprint(i), strings.NewReader("0123456789"), PutOptions{Size: -1})
				if err == nil {
					stored.Add(1)
				} else if !errors.Is(err, ErrQuota) {
					t.Error(err)
				}
			})
		}
		wg.Wait()
		if b, err := r.st.Bucket(context.Background(), bucket); err != nil || stored.Load() != 5 || b.Bytes != 50 || b.Objects != 5 {
			t.Errorf("%s: %d of 64 puts were taken, %d bytes in %d objects, %v; want 5", bucket, stored.Load(), b.Bytes, b.Objects, err)
		}
	}
}

// TestQuotaModel: whatever is done, a bucket never holds more than its quota.
func TestQuotaModel(t *testing.T) {
	r := newRig(t)
	defer r.close()
	ctx := context.Background()
	n := 0
	rapid.Check(t, func(t *rapid.T) {
		n++
		name := fmt.Sprintf("b-%d", n)
		set := record.Settings{QuotaBytes: uint64(rapid.IntRange(1, 60).Draw(t, "quota")), QuotaObjects: uint64(rapid.IntRange(0, 3).Draw(t, "most")), Versioning: rapid.Bool().Draw(t, "versioning")}
		if _, err := r.st.CreateBucket(ctx, name, set); err != nil {
			t.Fatal(err)
		}
		key := rapid.SampledFrom([]string{"a", "b", "c", "d"})
		for range rapid.IntRange(1, 12).Draw(t, "steps") {
			k := key.Draw(t, "key")
			var err error
			switch rapid.IntRange(0, 5).Draw(t, "what") {
			case 0, 1:
				_, err = r.sized(name, k, rapid.IntRange(0, 30).Draw(t, "size"))
			case 2:
				_, err = r.st.Delete(ctx, name, k, Conditions{})
			case 3:
				_, err = r.st.Undelete(ctx, name, k)
			case 4:
				if to := key.Draw(t, "to"); to != k {
					_, err = r.st.Rename(ctx, Name{name, k}, Name{name, to}, CopyOptions{})
				}
			case 5:
				_, err = r.st.Copy(ctx, Name{name, k}, Name{name, key.Draw(t, "to")}, CopyOptions{})
			}
			if err != nil && !errors.Is(err, ErrQuota) && !errors.Is(err, ErrNoObject) && !errors.Is(err, ErrPrecondition) {
				t.Fatal(err)
			}
			b, err := r.st.Bucket(ctx, name)
			if err != nil || b.Bytes > set.QuotaBytes || set.QuotaObjects > 0 && b.Objects > set.QuotaObjects {
				t.Fatalf("%d bytes in %d objects, %v; the quotas are %d and %d", b.Bytes, b.Objects, err, set.QuotaBytes, set.QuotaObjects)
			}
		}
	})
}
