package remote

import (
	"bytes"
	"errors"
	"io"
	"testing"
	"testing/iotest"
)

// TestBody: a request's bytes come in order, and none behind detach: they are their
// owner's again, whatever the transport still does.
func TestBody(t *testing.T) {
	head, rest := bytes.Repeat([]byte{1}, 1000), bytes.Repeat([]byte{2}, 300_000)
	want := append(bytes.Clone(head), rest...)
	if err := iotest.TestReader(newBody(head, nil, rest), want); err != nil {
		t.Error(err)
	}
	b := newBody(head, rest)
	var left []int
	b.moved = func(n int) { left = append(left, n) }
	got := make([]byte, 500)
	if _, err := io.ReadFull(b, got); err != nil || !bytes.Equal(got, head[:500]) {
		t.Fatalf("%v", err)
	}
	b.detach()
	for i := range head {
		head[i] = 0xdd
	}
	if n, err := b.Read(got); n != 0 || !errors.Is(err, errDetached) {
		t.Errorf("behind detach %d bytes are read, %v", n, err)
	}
	if len(left) != 1 || left[0] != len(want)-500 {
		t.Errorf("left: %v", left)
	}
}
