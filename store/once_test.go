package store

import (
	"context"
	"errors"
	"io"
	"strings"
	"sync"
	"testing"
	"time"

	"cairn/index"
	"cairn/record"
)

func onceWith(key, request string) context.Context {
	var k, r [32]byte
	copy(k[:], key)
	copy(r[:], request)
	return Once(context.Background(), k, r)
}

// TestOnce: a request that is sent again changes nothing, says what it said, and
// does so after a restart and the loss of the index.
func TestOnce(t *testing.T) {
	r := newRig(t)
	defer r.close()
	if err := r.st.SetBucket(context.Background(), "main", record.Settings{Versioning: true}); err != nil {
		t.Fatal(err)
	}
	attrs := record.Attrs{ContentType: "a/b"}
	type call struct {
		name string
		do   func(ctx context.Context) (Object, error)
		// undo makes the call one that would change something, or fail, were it made again.
		undo func(ctx context.Context) error
	}
	put := func(ctx context.Context) (Object, error) {
		return r.st.Put(ctx, "main", "k", strings.NewReader("content"), PutOptions{Size: -1, Attrs: attrs})
	}
	calls := []call{
		{"put", put, nil},
		{"put over it", put, nil},
		{"copy", func(ctx context.Context) (Object, error) {
			return r.st.Copy(ctx, Name{"main", "k"}, Name{"main", "copy"}, CopyOptions{Attrs: &attrs})
		}, nil},
		{"rename", func(ctx context.Context) (Object, error) {
			return r.st.Rename(ctx, Name{"main", "copy"}, Name{"main", "moved"}, CopyOptions{Attrs: &attrs})
		}, nil},
		{"delete", func(ctx context.Context) (Object, error) { return r.st.Delete(ctx, "main", "k", Conditions{}) }, nil},
		{"undelete", func(ctx context.Context) (Object, error) {
			return r.st.Undelete(ctx, "main", "k")
		}, nil},
		{"delete a version", func(ctx context.Context) (Object, error) {
			o, err := r.st.Get(context.Background(), "main", "moved", GetOptions{})
			if err != nil {
				return Object{}, err
			}
			return Object{}, r.st.DeleteVersion(ctx, "main", "moved", o.Object.Version, false)
		}, func(ctx context.Context) error {
			_, err := r.st.Put(ctx, "main", "moved", strings.NewReader("another"), PutOptions{Size: -1})
			return err
		}},
	}
	first := map[string]Object{}
	for _, c := range calls {
		o, err := c.do(onceWith(c.name, "request"))
		if err != nil {
			t.Fatalf("%s: %v", c.name, err)
		}
		first[c.name] = o
		if c.undo != nil {
			if err := c.undo(context.Background()); err != nil {
				t.Fatal(err)
			}
		}
	}
	same := func(when string) {
		t.Helper()
		before := r.export()
		for _, c := range calls {
			o, err := c.do(onceWith(c.name, "request"))
			want := first[c.name]
			if err != nil || !o.Modified.Equal(want.Modified) {
				t.Errorf("%s, %s: %+v, %v; first %+v", when, c.name, o, err, want)
				continue
			}
			o.Modified, want.Modified = time.Time{}, time.Time{}
			if o.Version != want.Version || o.ETag != want.ETag || o.Size != want.Size || o.Replaced != want.Replaced || o.Deleted != want.Deleted ||
				o.Key != want.Key && c.name != "delete a version" || o.Attrs.ContentType != want.Attrs.ContentType || o.Current != want.Current && c.name != "delete a version" {
				t.Errorf("%s, %s: %+v, first %+v", when, c.name, o, want)
			}
			if _, err := c.do(onceWith(c.name, "another request")); !errors.Is(err, ErrOnceOther) {
				t.Errorf("%s, %s with the same key for another request: %v", when, c.name, err)
			}
		}
		if string(r.export()) != string(before) {
			t.Errorf("%s: sending the same again has changed something", when)
		}
	}
	same("at once")
	r.close()
	r.open()
	same("after a restart")
	r.close()
	r.loseIndex()
	r.open()
	same("after the loss of the index")
	r.sound()
}

// TestOnceKeepsNoFailure: what failed may be tried again under the same key, and so
// may what was cut short.
func TestOnceKeepsNoFailure(t *testing.T) {
	r := newRig(t)
	defer r.close()
	ctx := onceWith("k", "r")
	if _, err := r.st.Put(ctx, "main", "o", cut([]byte("half")), PutOptions{Size: -1}); !errors.Is(err, errCut) {
		t.Fatal(err)
	}
	if _, err := r.st.Put(ctx, "main", "o", strings.NewReader("x"), PutOptions{Size: -1, If: Conditions{IfMatch: []string{"*"}}}); !errors.Is(err, ErrPrecondition) {
		t.Fatal(err)
	}
	o, err := r.st.Put(ctx, "main", "o", strings.NewReader("whole"), PutOptions{Size: -1})
	if err != nil {
		t.Fatal(err)
	}
	// The body of what was done already is not read.
	again, err := r.st.Put(ctx, "main", "o", brokenBody{}, PutOptions{Size: -1})
	if err != nil || again.Version != o.Version {
		t.Fatalf("%+v, %v", again, err)
	}
	r.mustRead("o", []byte("whole"))
}

// TestOnceAtATime: of the same request in two connections one runs.
func TestOnceAtATime(t *testing.T) {
	r := newRig(t)
	defer r.close()
	ctx := onceWith("k", "r")
	reading, end := make(chan struct{}), make(chan struct{})
	var once sync.Once
	done := make(chan error, 1)
	go func() {
		_, err := r.st.Put(ctx, "main", "o", readerFunc(func(p []byte) (int, error) {
			once.Do(func() { close(reading) })
			<-end
			return 0, io.EOF
		}), PutOptions{Size: -1})
		done <- err
	}()
	<-reading
	if _, err := r.st.Put(ctx, "main", "o", strings.NewReader("x"), PutOptions{Size: -1}); !errors.Is(err, ErrOnceRunning) {
		t.Errorf("beside it: %v", err)
	}
	close(end)
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	if _, err := r.st.Put(ctx, "main", "o", strings.NewReader("x"), PutOptions{Size: -1}); err != nil {
		t.Errorf("after it: %v", err)
	}
	r.mustRead("o", nil)
}

func TestOutcomesExpire(t *testing.T) {
	r := newRig(t)
	r.idle() // the test moves the clock
	defer r.close()
	put := func(key string) Object {
		t.Helper()
		o, err := r.st.Put(onceWith(key, "r"), "main", "o", strings.NewReader(key), PutOptions{Size: -1})
		if err != nil {
			t.Fatal(err)
		}
		return o
	}
	count := func() (n int) {
		t.Helper()
		in, err := r.st.hiddenBucket(context.Background(), requestsBucket, false)
		if err != nil {
			t.Fatal(err)
		}
		if err := r.st.view(func(rd index.Reader) error {
			page, err := rd.List(in.ID, index.ListOptions{Limit: 1000, Versions: true})
			n = len(page.Objects)
			return err
		}); err != nil {
			t.Fatal(err)
		}
		return n
	}
	for i := range 2*purgedAtOnce + 7 {
		put(strings.Repeat("a", 1+i%30) + string(rune('a'+i/30)))
	}
	old := put("old")
	later := time.Now().Add(onceKeep - time.Hour)
	r.st.now = func() time.Time { return later }
	young := put("young")
	if err := r.st.expireRequests(context.Background(), later); err != nil || count() != 2*purgedAtOnce+9 {
		t.Fatalf("%d outcomes, %v", count(), err)
	}
	latest := later.Add(2 * time.Hour)
	r.st.now = func() time.Time { return latest }
	if err := r.st.expireRequests(context.Background(), latest); err != nil || count() != 1 {
		t.Fatalf("%d outcomes, %v", count(), err)
	}
	if o := put("young"); o.Version != young.Version {
		t.Errorf("a young outcome was forgotten")
	}
	if o := put("old"); o.Version == old.Version {
		t.Errorf("an old outcome was kept")
	}
	r.sound()
}

// TestOnceThatFailsEarly: whatever ends a named request before it has begun, its name
// is free again.
func TestOnceThatFailsEarly(t *testing.T) {
	r := newRig(t)
	defer r.close()
	put := func(ctx context.Context) error {
		_, err := r.st.Put(ctx, "main", "o", strings.NewReader("x"), PutOptions{Size: -1})
		return err
	}
	gone, cancel := context.WithCancel(onceWith("k", "r"))
	cancel()
	if err := put(gone); !errors.Is(err, context.Canceled) {
		t.Errorf("a client that has left: %v", err)
	}
	if err := put(onceWith("k", "r")); err != nil {
		t.Errorf("after all: %v", err)
	}
}
