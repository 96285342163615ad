package store

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"cairn/id"
	"cairn/index"
	"cairn/record"
)

func noise(seed uint64, n int) []byte {
	b := make([]byte, n)
	rng := rand.NewChaCha8([32]byte{byte(seed), byte(seed >> 8)})
	rng.Read(b)
	return b
}

var errCut = errors.New("the connection broke")

// cut is a body that breaks off.
func cut(b []byte) io.Reader { return io.MultiReader(bytes.NewReader(b), brokenBody{}) }

type brokenBody struct{}

func (brokenBody) Read([]byte) (int, error) { return 0, errCut }

// newUploadRig has parts of that size.
func newUploadRig(t *testing.T, part uint64) *rig {
	r := newRig(t)
	r.change = func(c *Config) { c.UploadPart = part }
	r.close()
	r.open()
	return r
}

func (r *rig) begin(key string, size int64) Upload {
	r.t.Helper()
	u, err := r.st.BeginUpload(context.Background(), "main", key, UploadOptions{Size: size, Attrs: record.Attrs{ContentType: "x/y"}, Note: []byte("note")})
	if err != nil {
		r.t.Fatal(err)
	}
	return u
}

// hiddenRows counts what the hidden bucket holds.
func (r *rig) hiddenRows() (heads, parts int) {
	r.t.Helper()
	in, err := r.st.hiddenBucket(context.Background(), uploadsBucket, false)
	if err != nil {
		r.t.Fatal(err)
	}
	if err := r.st.view(func(rd index.Reader) error {
		page, err := rd.List(in.ID, index.ListOptions{Limit: 1000, Versions: true})
		for _, o := range page.Objects {
			if strings.HasPrefix(o.Key, headPrefix) {
				heads++
			} else {
				parts++
			}
		}
		return err
	}); err != nil {
		r.t.Fatal(err)
	}
	return heads, parts
}

func (r *rig) sound() {
	r.t.Helper()
	if rep, err := r.st.CheckIndex(context.Background()); err != nil {
		r.t.Errorf("index: %v; %v", err, rep.Findings)
	}
}

// TestUploadGoesOnWhereItBroke: bytes that came before a connection broke, the
// process was killed or the index was lost are not asked for again, and the object
// is what was sent.
func TestUploadGoesOnWhereItBroke(t *testing.T) {
	r := newUploadRig(t, 3<<20)
	defer r.close()
	ctx := context.Background()
	want := noise(1, 23<<20+12345)
	u := r.begin("big", int64(len(want)))
	at := uint64(0)
	rng := rand.New(rand.NewPCG(1, 2))
	for step := 0; at < uint64(len(want)); step++ {
		n := min(1+rng.Uint64N(5<<20), uint64(len(want))-at)
		got, err := r.st.AppendUpload(ctx, u.ID, at, cut(want[at:at+n]))
		if !errors.Is(err, errCut) || got != at+n {
			t.Fatalf("step %d: %d bytes at %d: %d are durable, %v", step, n, at, got, err)
		}
		at = got
		switch step % 3 {
		case 0:
			r.close()
			if step%2 == 0 {
				r.loseIndex()
			}
			r.open()
		case 1:
			if _, err := r.st.AppendUpload(ctx, u.ID, at-1, strings.NewReader("x")); !errors.Is(err, ErrOffset) {
				t.Fatalf("append at another offset: %v", err)
			}
		}
		now, err := r.st.Upload(ctx, u.ID)
		if err != nil || now.Offset != at || now.Size != int64(len(want)) || now.Key != "big" || now.Bucket != "main" || string(now.Note) != "note" || !now.Done.IsZero() {
			t.Fatalf("step %d: %+v, %v", step, now, err)
		}
	}
	if _, err := r.st.Get(ctx, "main", "big", GetOptions{}); !errors.Is(err, ErrNoObject) {
		t.Fatalf("the object before its upload is complete: %v", err)
	}
	o, err := r.st.CompleteUpload(ctx, u.ID, Conditions{IfNoneMatch: []string{"*"}})
	if err != nil || o.Size != uint64(len(want)) || o.Attrs.ContentType != "x/y" {
		t.Fatalf("complete: %+v, %v", o, err)
	}
	r.mustRead("big", want)
	again, err := r.st.CompleteUpload(ctx, u.ID, Conditions{IfNoneMatch: []string{"*"}})
	if err != nil || again.Version != o.Version || again.ETag != o.ETag {
		t.Fatalf("complete once more: %+v, %v; want %+v", again, err, o)
	}
	if now, err := r.st.Upload(ctx, u.ID); err != nil || now.Offset != uint64(len(want)) || now.Done != o.Version {
		t.Fatalf("a complete upload: %+v, %v", now, err)
	}
	if err := r.st.ClearUploads(ctx); err != nil {
		t.Fatal(err)
	}
	if heads, parts := r.hiddenRows(); heads != 1 || parts != 0 {
		t.Errorf("%d heads and %d parts are left", heads, parts)
	}
	r.sound()
	r.close()
	r.loseIndex()
	r.open()
	r.mustRead("big", want)
	r.sound()
}

// TestUploadIsCutWhereAPutIs: between the parts of one request there is no cut that
// an ordinary put would not make, so the same bytes are stored once.
func TestUploadIsCutWhereAPutIs(t *testing.T) {
	r := newUploadRig(t, 2<<20)
	defer r.close()
	ctx := context.Background()
	want := noise(2, 17<<20)
	r.put("plain", want)
	before, err := r.st.Usage(ctx)
	if err != nil {
		t.Fatal(err)
	}
	u := r.begin("in parts", -1)
	if n, err := r.st.AppendUpload(ctx, u.ID, 0, bytes.NewReader(want)); err != nil || n != uint64(len(want)) {
		t.Fatalf("append: %d, %v", n, err)
	}
	if _, parts := r.hiddenRows(); parts < 5 {
		t.Fatalf("%d parts of 2 MiB", parts)
	}
	if _, err := r.st.CompleteUpload(ctx, u.ID, Conditions{}); err != nil {
		t.Fatal(err)
	}
	after, err := r.st.Usage(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if more := after.UniqueBytes - before.UniqueBytes; more > 64<<10 {
		t.Errorf("the same bytes took %d more", more)
	}
	r.mustRead("in parts", want)
}

// TestUploadOfManyParts: the tree of a long upload is made of lists that are stored
// while nothing of the object is.
func TestUploadOfManyParts(t *testing.T) {
	r := newRig(t)
	defer r.close()
	ctx := context.Background()
	u := r.begin("many", -1)
	var want []byte
	for i := range 60 {
		b := noise(uint64(i), 100+i)
		if _, err := r.st.AppendUpload(ctx, u.ID, uint64(len(want)), bytes.NewReader(b)); err != nil {
			t.Fatal(err)
		}
		want = append(want, b...)
	}
	if u, err := r.st.SetUploadSize(ctx, u.ID, int64(len(want))); err != nil || u.Size != int64(len(want)) {
		t.Fatalf("declare the length: %+v, %v", u, err)
	}
	if _, err := r.st.SetUploadSize(ctx, u.ID, int64(len(want))+1); !errors.Is(err, ErrInvalid) {
		t.Errorf("another length: %v", err)
	}
	if _, err := r.st.CompleteUpload(ctx, u.ID, Conditions{}); err != nil {
		t.Fatal(err)
	}
	r.mustRead("many", want)
	r.sound()
	r.close()
	r.loseIndex()
	r.open()
	r.mustRead("many", want)
}

func TestUploadRefusals(t *testing.T) {
	r := newRig(t)
	defer r.close()
	ctx := context.Background()
	is := func(what string, err, want error) {
		t.Helper()
		if !errors.Is(err, want) {
			t.Errorf("%s: %v, want %v", what, err, want)
		}
	}
	_, err := r.st.BeginUpload(ctx, "nowhere", "k", UploadOptions{})
	is("no bucket", err, ErrNoBucket)
	_, err = r.st.BeginUpload(ctx, uploadsBucket, "k", UploadOptions{})
	is("the hidden bucket", err, ErrNoBucket)
	_, err = r.st.BeginUpload(ctx, "main", "", UploadOptions{})
	is("no key", err, ErrInvalid)
	_, err = r.st.BeginUpload(ctx, "main", "k", UploadOptions{Note: make([]byte, record.MaxUploadNote+1)})
	is("a long note", err, ErrInvalid)
	for _, uid := range []string{"", "x", strings.Repeat("0", uploadIDLen), "h/../" + strings.Repeat("0", 27)} {
		_, err = r.st.Upload(ctx, uid)
		is("upload "+uid, err, ErrNoUpload)
		_, err = r.st.AppendUpload(ctx, uid, 0, strings.NewReader("x"))
		is("append to "+uid, err, ErrNoUpload)
	}
	u := r.begin("k", 10)
	_, err = r.st.Upload(ctx, strings.Repeat("0", uploadIDLen))
	is("another upload", err, ErrNoUpload)
	n, err := r.st.AppendUpload(ctx, u.ID, 0, strings.NewReader("01234567890"))
	is("more than declared", err, ErrTooLarge)
	if n != 0 {
		t.Errorf("%d bytes of too many were kept", n)
	}
	if _, err := r.st.AppendUpload(ctx, u.ID, 0, strings.NewReader("0123")); err != nil {
		t.Fatal(err)
	}
	_, err = r.st.CompleteUpload(ctx, u.ID, Conditions{})
	is("too short", err, ErrShortBody)
	if _, err := r.st.AppendUpload(ctx, u.ID, 4, strings.NewReader("456789")); err != nil {
		t.Fatal(err)
	}
	r.put("k", []byte("before"))
	_, err = r.st.CompleteUpload(ctx, u.ID, Conditions{IfNoneMatch: []string{"*"}})
	is("there is one", err, ErrPrecondition)
	r.mustRead("k", []byte("before"))
	release, err := r.st.uploads.claim(u.ID)
	if err != nil {
		t.Fatal(err)
	}
	_, err = r.st.CompleteUpload(ctx, u.ID, Conditions{})
	is("in use", err, ErrInUse)
	is("abort in use", r.st.AbortUpload(ctx, u.ID), ErrInUse)
	release()
	if _, err := r.st.CompleteUpload(ctx, u.ID, Conditions{}); err != nil {
		t.Fatal(err)
	}
	r.mustRead("k", []byte("0123456789"))
	_, err = r.st.AppendUpload(ctx, u.ID, 10, strings.NewReader("x"))
	is("append to a complete one", err, ErrOffset)
	r.put("k", []byte("after"))
	_, err = r.st.CompleteUpload(ctx, u.ID, Conditions{})
	is("complete again what was replaced", err, ErrNoVersion)
	r.mustRead("k", []byte("after"))

	// What no client can name is not there.
	if _, err := r.st.Get(ctx, uploadsBucket, headPrefix+u.ID, GetOptions{}); !errors.Is(err, ErrNoBucket) {
		t.Errorf("get from the hidden bucket: %v", err)
	}
	_, err = r.st.Put(ctx, uploadsBucket, "x", strings.NewReader("x"), PutOptions{Size: -1})
	is("put into it", err, ErrNoBucket)
	_, err = r.st.Delete(ctx, uploadsBucket, headPrefix+u.ID, Conditions{})
	is("delete from it", err, ErrNoBucket)
	_, err = r.st.List(ctx, uploadsBucket, ListOptions{})
	is("list it", err, ErrNoBucket)
	is("delete it", r.st.DeleteBucket(ctx, uploadsBucket), ErrNoBucket)
	is("set it", r.st.SetBucket(ctx, uploadsBucket, record.Settings{}), ErrNoBucket)
	_, err = r.st.CreateBucket(ctx, uploadsBucket, record.Settings{})
	is("make it", err, ErrInvalid)
	if bs, err := r.st.Buckets(ctx); err != nil || len(bs) != 1 {
		t.Errorf("buckets: %v, %v", bs, err)
	}
}

// TestUploadEnds: an aborted upload, one of a bucket that is gone and one that was
// forgotten leave nothing.
func TestUploadEnds(t *testing.T) {
	r := newRig(t)
	r.change = func(c *Config) { c.UploadPart, c.idle = 256<<10, true } // the test moves the clock
	r.close()
	r.open()
	defer r.close()
	ctx := context.Background()
	if _, err := r.st.CreateBucket(ctx, "other", record.Settings{}); err != nil {
		t.Fatal(err)
	}
	body := noise(3, 3<<20)
	append3 := func(u Upload) {
		t.Helper()
		if _, err := r.st.AppendUpload(ctx, u.ID, 0, bytes.NewReader(body)); err != nil {
			t.Fatal(err)
		}
	}
	aborted := r.begin("aborted", -1)
	append3(aborted)
	if err := r.st.AbortUpload(ctx, aborted.ID); err != nil {
		t.Fatal(err)
	}
	if _, err := r.st.AppendUpload(ctx, aborted.ID, uint64(len(body)), strings.NewReader("x")); !errors.Is(err, ErrNoUpload) {
		t.Errorf("append to an aborted upload: %v", err)
	}
	lost, err := r.st.BeginUpload(ctx, "other", "k", UploadOptions{Size: -1})
	if err != nil {
		t.Fatal(err)
	}
	append3(lost)
	if err := r.st.DeleteBucket(ctx, "other"); err != nil {
		t.Fatal(err)
	}
	for range 2 { // also when there is another of that name
		if _, err := r.st.CompleteUpload(ctx, lost.ID, Conditions{}); !errors.Is(err, ErrNoBucket) {
			t.Errorf("complete into a bucket that is gone: %v", err)
		}
		if _, err := r.st.CreateBucket(ctx, "other", record.Settings{}); err != nil && !errors.Is(err, ErrBucketExists) {
			t.Fatal(err)
		}
	}
	kept := r.begin("kept", -1)
	append3(kept)
	if err := r.st.ClearUploads(ctx); err != nil {
		t.Fatal(err)
	}
	if n, err := r.st.expireUploads(ctx, time.Now()); n != 0 || err != nil {
		t.Fatalf("expired too early: %d, %v", n, err)
	}
	if heads, parts := r.hiddenRows(); heads != 2 || parts < 4 {
		t.Errorf("%d heads and %d parts of two uploads", heads, parts)
	}
	later := time.Now().Add(uploadKeep - time.Hour)
	r.st.now = func() time.Time { return later }
	if _, err := r.st.AppendUpload(ctx, kept.ID, uint64(len(body)), strings.NewReader("more")); err != nil {
		t.Fatal(err)
	}
	latest := later.Add(2 * time.Hour)
	r.st.now = func() time.Time { return latest }
	if n, err := r.st.expireUploads(ctx, latest); n != 1 || err != nil {
		t.Errorf("expired: %d, %v", n, err)
	}
	if _, err := r.st.Upload(ctx, lost.ID); !errors.Is(err, ErrNoUpload) {
		t.Errorf("an upload that nobody continued: %v", err)
	}
	if u, err := r.st.Upload(ctx, kept.ID); err != nil || u.Offset != uint64(len(body))+4 || !u.Expires.Equal(u.Changed.Add(uploadKeep)) {
		t.Errorf("one that was continued: %+v, %v", u, err)
	}
	if err := r.st.AbortUpload(ctx, kept.ID); err != nil {
		t.Fatal(err)
	}
	if err := r.st.ClearUploads(ctx); err != nil {
		t.Fatal(err)
	}
	if heads, parts := r.hiddenRows(); heads != 0 || parts != 0 {
		t.Errorf("%d heads and %d parts are left", heads, parts)
	}
	r.sound()
}

// TestPartOfAnAbortedUploadIsRefused: a part that is on its way when its upload
// ends is nowhere.
func TestPartOfAnAbortedUploadIsRefused(t *testing.T) {
	r := newRig(t)
	defer r.close()
	ctx := context.Background()
	u := r.begin("k", -1)
	half := make(chan struct{})
	go_ := make(chan struct{})
	done := make(chan error, 1)
	go func() {
		_, err := r.st.AppendUpload(ctx, u.ID, 0, readerFunc(func(p []byte) (int, error) {
			close(half)
			<-go_
			return 0, io.EOF
		}))
		done <- err
	}()
	<-half
	old, err := r.st.upload(ctx, u.ID)
	if err != nil {
		t.Fatal(err)
	}
	if err := r.st.dropHead(ctx, old); err != nil { // as another process would
		t.Fatal(err)
	}
	close(go_)
	if err := <-done; err != nil {
		t.Errorf("an append of nothing: %v", err)
	}
	st, err := r.st.newStream(ctx, index.Bucket{ID: 1, Name: "main", Realm: id.Main})
	if err != nil {
		t.Fatal(err)
	}
	defer st.giveBack()
	body := r.st.newCutBody(strings.NewReader("late"), -1)
	defer body.free()
	if err := r.st.appendPart(ctx, old, st.bucket, body); !errors.Is(err, ErrNoUpload) {
		t.Errorf("a part without its upload: %v", err)
	}
	if heads, parts := r.hiddenRows(); heads != 0 || parts != 0 {
		t.Errorf("%d heads and %d parts are left", heads, parts)
	}
}

type readerFunc func([]byte) (int, error)

func (f readerFunc) Read(p []byte) (int, error) { return f(p) }

// TestHalfClearedUploadIsComplete: while parts of a complete upload are being purged
// it answers as it did.
func TestHalfClearedUploadIsComplete(t *testing.T) {
	r := newRig(t)
	defer r.close()
	r.st.stopJobs() // nothing is cleared but what the test clears
	ctx := context.Background()
	u := r.begin("k", -1)
	for i := range 5 {
		if _, err := r.st.AppendUpload(ctx, u.ID, uint64(i), strings.NewReader("x")); err != nil {
			t.Fatal(err)
		}
	}
	o, err := r.st.CompleteUpload(ctx, u.ID, Conditions{})
	if err != nil {
		t.Fatal(err)
	}
	in, err := r.st.hiddenBucket(ctx, uploadsBucket, false)
	if err != nil {
		t.Fatal(err)
	}
	if err := r.st.writer.submit(ctx, &submission{decide: func(d *decision) (func() error, error) {
		return func() error { return d.purgeAll(in, partKey(u.ID, 0)) }, nil
	}}); err != nil {
		t.Fatal(err)
	}
	if _, parts := r.hiddenRows(); parts != 4 {
		t.Fatalf("%d parts are left of 5", parts)
	}
	if now, err := r.st.Upload(ctx, u.ID); err != nil || now.Done != o.Version || now.Offset != 5 {
		t.Errorf("%+v, %v", now, err)
	}
	if again, err := r.st.CompleteUpload(ctx, u.ID, Conditions{}); err != nil || again.Version != o.Version {
		t.Errorf("%+v, %v", again, err)
	}
	if err := r.st.AbortUpload(ctx, u.ID); err != nil {
		t.Error(err)
	}
}

// TestPartsGrow: an upload of any length fits, for its parts become longer.
func TestPartsGrow(t *testing.T) {
	most := 0.0
	for n := range maxParts {
		most += float64(uint64(64 << 20 << (n / partsOfASize)))
	}
	if most < 1<<54 {
		t.Errorf("%d parts hold %g bytes", maxParts, most)
	}
	r := newUploadRig(t, 300<<10)
	defer r.close()
	ctx := context.Background()
	u := r.begin("k", -1)
	old, err := r.st.upload(ctx, u.ID)
	if err != nil {
		t.Fatal(err)
	}
	st, err := r.st.newStream(ctx, index.Bucket{ID: 1, Name: "main", Realm: id.Main})
	if err != nil {
		t.Fatal(err)
	}
	defer st.giveBack()
	size := func(parts int) uint64 {
		body := r.st.newCutBody(bytes.NewReader(noise(4, 40<<20)), -1)
		defer body.free()
		old.parts, old.Offset = parts, 0
		if err := r.st.appendPart(ctx, old, st.bucket, body); err != nil {
			t.Fatal(err)
		}
		return old.Offset
	}
	if a, b := size(0), size(5*partsOfASize); a < 300<<10 || a > 5<<20 || b < 9<<20 || b > 15<<20 {
		t.Errorf("the first part has %d bytes, one after %d has %d", a, 5*partsOfASize, b)
	}
}

// TestSilentAppendsHoldNothing: a client that sends nothing has no share of the memory,
// and neither has one that waits for it.
func TestSilentAppendsHoldNothing(t *testing.T) {
	r := newRig(t)
	defer r.close()
	ctx := context.Background()
	const n = 40
	end := make(chan struct{})
	done := make(chan error, n)
	reading := make(chan struct{}, n)
	for range n {
		u := r.begin("k", -1)
		go func() {
			told := false
			_, err := r.st.AppendUpload(ctx, u.ID, 0, readerFunc(func(p []byte) (int, error) {
				if !told {
					told = true
					reading <- struct{}{}
				}
				<-end
				return 0, io.EOF
			}))
			done <- err
		}()
	}
	for range n {
		<-reading
	}
	if used := r.st.mem.streams.State().Used; used != 0 {
		t.Errorf("%d silent appends hold %d bytes of the streams' share", n, used)
	}
	close(end)
	for range n {
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
}

// TestUploadIsJudgedWhenItBegins: what would be refused in the end is not sent.
func TestUploadIsJudgedWhenItBegins(t *testing.T) {
	r := newRig(t)
	defer r.close()
	r.put("k", []byte("there"))
	_, err := r.st.BeginUpload(context.Background(), "main", "k", UploadOptions{Size: -1, If: Conditions{IfNoneMatch: []string{"*"}}})
	if !errors.Is(err, ErrPrecondition) {
		t.Errorf("%v, want %v", err, ErrPrecondition)
	}
}

// TestUsageLeavesOutWhatIsHidden: clients are told of what they stored.
func TestUsageLeavesOutWhatIsHidden(t *testing.T) {
	r := newRig(t)
	defer r.close()
	ctx := context.Background()
	r.put("k", []byte("0123456789"))
	if _, err := r.st.Put(onceWith("a", "b"), "main", "l", strings.NewReader("x"), PutOptions{Size: -1}); err != nil {
		t.Fatal(err)
	}
	u := r.begin("m", -1)
	if _, err := r.st.AppendUpload(ctx, u.ID, 0, strings.NewReader("in an upload")); err != nil {
		t.Fatal(err)
	}
	got, err := r.st.Usage(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if got.Objects != 2 || got.Versions != 2 || got.LogicalBytes != 11 || got.UploadBytes < 12 || len(got.Buckets) != 1 {
		t.Errorf("%+v", got)
	}
}

// TestUploadsAreListed: pages hold every upload that is not complete once, by ID, with
// what arrived of it.
func TestUploadsAreListed(t *testing.T) {
	r := newUploadRig(t, 256<<10)
	defer r.close()
	ctx := context.Background()
	if us, more, err := r.st.Uploads(ctx, "", 0); len(us) != 0 || more || err != nil {
		t.Fatalf("before the first: %v, %v, %v", us, more, err)
	}
	want := map[string]uint64{}
	for i := range 7 {
		u := r.begin(fmt.Sprintf("k%d", i), -1)
		n, err := r.st.AppendUpload(ctx, u.ID, 0, bytes.NewReader(noise(uint64(i), i*1000)))
		if err != nil {
			t.Fatal(err)
		}
		want[u.ID] = n
	}
	for range 7 {
		done := r.begin("done", 3)
		if _, err := r.st.AppendUpload(ctx, done.ID, 0, strings.NewReader("abc")); err != nil {
			t.Fatal(err)
		}
		if _, err := r.st.CompleteUpload(ctx, done.ID, Conditions{}); err != nil {
			t.Fatal(err)
		}
	}
	aborted := r.begin("aborted", -1)
	if err := r.st.AbortUpload(ctx, aborted.ID); err != nil {
		t.Fatal(err)
	}
	got, after := map[string]uint64{}, ""
	for pages := 1; ; pages++ {
		us, more, err := r.st.Uploads(ctx, after, 1)
		if err != nil || len(us) == 0 {
			t.Fatalf("page %d: %d uploads, %v", pages, len(us), err)
		}
		for _, u := range us {
			if u.ID <= after {
				t.Fatalf("%s stands behind %s", u.ID, after)
			}
			if after = u.ID; u.Bucket != "main" || u.Key == "" || u.Expires.IsZero() {
				t.Errorf("an upload is told as %+v", u)
			}
			got[u.ID] = u.Offset
		}
		if !more {
			break
		}
	}
	if !maps.Equal(got, want) {
		t.Errorf("listed %v, want %v", got, want)
	}
}
