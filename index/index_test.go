package index

import (
	"bytes"
	"errors"
	"fmt"
	"sync"
	"testing"

	"cairn/id"
	"cairn/record"
)

// TestPutAndRead goes once through everything that a small store does.
func TestPutAndRead(t *testing.T) {
	x, replica := newIndex(t), newIndex(t)
	var c chain
	var links []Link
	links = append(links, build(t, x, &c, true, func(b *builder) {
		b.apply(&record.Nodes{Version: 1, M: 1, Members: []record.Member{{ID: testNode(1), Name: "a", Labels: []string{"zone=x"}}, {ID: testNode(2), Name: "b"}}})
		b.bucket("main", false)
		b.bucket("kept", true)
	}))
	links = append(links, build(t, x, &c, false, func(b *builder) {
		b.entry(1, false)
		b.put(1, "k", 1)
		b.apply(adoptOf(7, 2, 3, 4))
		b.put(1, "k", 2, 3, 3)
		b.put(2, "k", 1, 4)
		b.put(2, "k", 1)
	}))
	links = append(links, build(t, x, &c, false, func(b *builder) {
		b.apply(&record.Delete{In: 1, Bucket: 2, Key: []byte("k"), Time: 9})
	}))
	for _, l := range links {
		if err := replica.Apply(l, Strict); err != nil {
			t.Fatal(err)
		}
	}
	if !bytes.Equal(export(t, x), export(t, replica)) {
		t.Error("a replay of the links gives other rows than deciding them did")
	}
	err := x.View(func(r Reader) error {
		b, err := r.Bucket("kept")
		if err != nil {
			return err
		}
		if want := (BucketUsage{Objects: 0, Versions: 2, Markers: 1, Bytes: manifestOf(1, 4, 1).Size}); b.BucketUsage != want {
			t.Errorf("bucket: got %+v, want %+v", b.BucketUsage, want)
		}
		for _, want := range []struct{ chunk, refs uint64 }{{1, 2}, {2, 1}, {3, 2}, {4, 1}} {
			row, err := r.Chunk(1, testChunk(want.chunk))
			if err != nil || row.Refs != want.refs {
				t.Errorf("chunk %d: got %d edges, %v, want %d", want.chunk, row.Refs, err, want.refs)
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

// TestViewsDuringRounds: while rounds are open and committed, every view is one
// state of the chain, and an open round holds no reader up.
func TestViewsDuringRounds(t *testing.T) {
	x := newIndex(t)
	var c chain
	build(t, x, &c, true, func(b *builder) { b.bucket("main", true) })
	const links, puts = 60, 5
	look := func() (seq uint64, err error) {
		err = x.View(func(r Reader) error {
			h, err := r.Head()
			if err != nil {
				return err
			}
			seq = h.Seq
			totals, err := r.Totals()
			if err != nil {
				return err
			}
			page, err := r.List(1, ListOptions{})
			if err != nil {
				return err
			}
			if want := (seq - 1) * puts; totals.Versions != want || uint64(len(page.Objects)) != want {
				return fmt.Errorf("at sequence %d: %d versions, %d objects listed, want %d", seq, totals.Versions, len(page.Objects), want)
			}
			return nil
		})
		return seq, err
	}
	done := make(chan struct{})
	var readers sync.WaitGroup
	for range 3 {
		readers.Go(func() {
			for {
				select {
				case <-done:
					return
				default:
				}
				if _, err := look(); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	for range links {
		build(t, x, &c, false, func(b *builder) {
			for range puts {
				b.entry(uint64(len(b.link.Records))+c.seq*puts, false)
				b.put(1, fmt.Sprintf("%d/%d", c.seq, len(b.link.Records)), uint64(len(b.link.Records))+c.seq*puts)
			}
			// The round is open: the state before it is what a view sees.
			if seq, err := look(); err != nil || seq != c.seq-1 {
				t.Errorf("with a round open: sequence %d, %v, want %d", seq, err, c.seq-1)
			}
		})
	}
	close(done)
	readers.Wait()
}

// TestClosed: a closed index says so.
func TestClosed(t *testing.T) {
	x := newIndex(t)
	if err := x.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := x.Head(); !errors.Is(err, ErrClosed) {
		t.Errorf("head: got %v, want %v", err, ErrClosed)
	}
	// Twice: the first must not keep the writer's turn.
	for range 2 {
		if _, err := x.Begin(id.Pack{1}, 1); !errors.Is(err, ErrClosed) {
			t.Errorf("begin: got %v, want %v", err, ErrClosed)
		}
	}
}

// TestOneRoundAtATime: the next round begins when the one before has ended,
// however it ended, and sees what it left.
func TestOneRoundAtATime(t *testing.T) {
	x := newIndex(t)
	var c chain
	build(t, x, &c, true, func(b *builder) { b.bucket("main", true) })
	l := c.next(false)
	r, err := x.Begin(l.Header.Pack, l.Header.Seq)
	if err != nil {
		t.Fatal(err)
	}
	began := make(chan error)
	go func() {
		_, err := x.Begin(l.Header.Pack, l.Header.Seq)
		began <- err
	}()
	select {
	case <-began:
		t.Fatal("a second round began")
	default:
	}
	if err := r.Commit(l); err != nil {
		t.Fatal(err)
	}
	if err := <-began; !errors.Is(err, ErrApplied) {
		t.Errorf("got %v, want %v", err, ErrApplied)
	}
	r.Discard()
	build(t, x, &c, false, nil)
}
