package rest

import (
	"context"
	"errors"
	"fmt"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"cairn/record"
	"cairn/store"
)

// waiting is a store whose listings and puts last until they are let go.
type waiting struct {
	*fakeStore
	in  chan string
	out chan struct{}
}

func (w waiting) List(ctx context.Context, bucket string, o store.ListOptions) (store.Listing, error) {
	w.in <- "list"
	<-w.out
	return w.fakeStore.List(ctx, bucket, o)
}

func (w waiting) Delete(ctx context.Context, bucket, key string, c store.Conditions) (store.Object, error) {
	w.in <- "delete"
	<-w.out
	return w.fakeStore.Delete(ctx, bucket, key, c)
}

func newWaiting(t *testing.T, inFlight int) (*rig, waiting) {
	w := waiting{newFake("main"), make(chan string, 1000), make(chan struct{})}
	h, err := New(Config{Store: w, Token: testToken, InFlight: inFlight})
	if err != nil {
		t.Fatal(err)
	}
	return &rig{t: t, store: w.fakeStore, handler: h, doc: readDocument(t)}, w
}

// TestTooManyRequestsAreToldSo: beyond the bound a request is refused before it
// reaches the store; what watches the server is answered, and a place that is
// given back is taken.
func TestTooManyRequestsAreToldSo(t *testing.T) {
	r, w := newWaiting(t, 3)
	var wg sync.WaitGroup
	for range 3 {
		wg.Go(func() { r.do("DELETE", objects+"k", "") })
	}
	for range 3 {
		<-w.in
	}
	for range 2 {
		a := r.want(503, "busy", "PUT", objects+"new", "body")
		if a.header.Get("Retry-After") == "" {
			t.Error("busy, and no word of when to come back")
		}
	}
	r.want(503, "busy", "GET", "/v1/buckets", "")
	for _, path := range []string{"/healthz", "/readyz", "/metrics"} {
		r.want(200, "", "GET", path, "")
	}
	if len(r.store.puts) > 0 {
		t.Error("a request that was refused reached the store")
	}
	close(w.out)
	wg.Wait()
	r.want(201, "", "PUT", objects+"new", "body")
}

// TestPagesAreMadeAFewAtATime: of many listings a few run, a bounded number waits
// and gets its turn or is told so in time, and the rest is told so at once.
func TestPagesAreMadeAFewAtATime(t *testing.T) {
	for _, letGo := range []bool{true, false} {
		synctest.Test(t, func(t *testing.T) {
			r, w := newWaiting(t, 0)
			const more = 7
			var (
				wg  sync.WaitGroup
				mu  sync.Mutex
				got = map[int]int{}
			)
			begin := time.Now()
			for range heldAtOnce + heldInLine + more {
				wg.Go(func() {
					a := r.do("GET", "/v1/buckets/main/objects", "")
					mu.Lock()
					defer mu.Unlock()
					got[a.status]++
				})
			}
			synctest.Wait()
			mu.Lock()
			if len(w.in) != heldAtOnce || got[503] != more || got[200] != 0 {
				t.Errorf("%d listings run, %v are answered; want %d, and %d refused", len(w.in), got, heldAtOnce, more)
			}
			mu.Unlock()
			if letGo {
				close(w.out)
				wg.Wait()
				if got[200] != heldAtOnce+heldInLine || time.Since(begin) > 0 {
					t.Errorf("%v after %v", got, time.Since(begin))
				}
				return
			}
			time.Sleep(heldWait)
			synctest.Wait()
			mu.Lock()
			if got[503] != more+heldInLine {
				t.Errorf("after %v %v are answered; all that waited should be refused", heldWait, got)
			}
			mu.Unlock()
			close(w.out)
			wg.Wait()
		})
	}
}

// stuck is a client that does not take its answer.
type stuck struct {
	*httptest.ResponseRecorder
	goOn chan struct{}
}

func (s stuck) Write(b []byte) (int, error) {
	<-s.goOn
	return s.ResponseRecorder.Write(b)
}

// TestSlowClientsOfPagesStopNobody: any number of them takes no place in the line;
// what they may keep waiting is bounded.
func TestSlowClientsOfPagesStopNobody(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t)
		for i := range 900 {
			r.store.push(r.store.buckets["main"], fmt.Sprint(i), fakeVersion{store.Object{Bucket: "main", Key: fmt.Sprint(i), Current: true,
				Attrs: record.Attrs{ContentType: strings.Repeat("x", 1000)}}, nil})
		}
		page := r.want(200, "", "GET", "/v1/buckets/main/objects", "")
		fit := maxUnsent / len(page.body)
		goOn := make(chan struct{})
		var wg sync.WaitGroup
		for range fit {
			wg.Go(func() {
				req := httptest.NewRequest("GET", "http://localhost/v1/buckets/main/objects", nil)
				req.Header.Set("Authorization", "Bearer "+testToken)
				r.handler.ServeHTTP(stuck{httptest.NewRecorder(), goOn}, req)
			})
		}
		synctest.Wait()
		r.want(200, "", "GET", "/v1/buckets/main/objects?limit=1", "")
		r.want(503, "busy", "GET", "/v1/buckets/main/objects", "")
		close(goOn)
		wg.Wait()
		r.want(200, "", "GET", "/v1/buckets/main/objects", "")
	})
}

// TestWhoLeavesTheLineIsNotServed: a client that goes while it waits takes no place.
func TestWhoLeavesTheLineIsNotServed(t *testing.T) {
	l := newLine(heldAtOnce, heldInLine, heldWait)
	for range heldAtOnce {
		if _, err := l.enter(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := l.enter(ctx); !errors.Is(err, context.Canceled) || l.waiting.Load() != 0 || len(l.places) != heldAtOnce {
		t.Errorf("%v, %d wait, %d places are taken", err, l.waiting.Load(), len(l.places))
	}
}

func TestLongURLsAreRefused(t *testing.T) {
	r := newRig(t)
	key := strings.Repeat("%61", 1024)
	r.want(201, "", "PUT", objects+key, "body")
	r.want(201, "", "POST", objects+strings.Repeat("%62", 1024)+"?copy_from=main/"+key, "") // the longest that is of use
	long := "/v1/buckets/main/objects?prefix=" + strings.Repeat("a", maxURL)
	r.want(414, "url-too-long", "GET", long, "")
	r.want(414, "url-too-long", "GET", long, "", "Authorization: none")
	if a := r.do("GET", fmt.Sprintf("/v1/buckets/main/objects?prefix=%s&start_after=%s&delimiter=%s", key, key, key), ""); a.status != 200 {
		t.Errorf("the longest listing: %d", a.status)
	}
}
