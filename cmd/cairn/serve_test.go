package main

import (
	"fmt"
	"testing"

	"cairn/index"
	"cairn/index/kv"
	"cairn/store"
	"cairn/store/budget"
)

// H12, H14: an index that a record contradicts is made anew like one that is
// damaged; one that knows more than the nodes is kept.
func TestBadIndex(t *testing.T) {
	for _, c := range []struct {
		err  error
		want bool
	}{
		{kv.ErrDamaged, true}, {index.ErrDivergent, true}, {store.ErrDivergent, false}, {store.ErrDamaged, false},
		{store.ErrUnavailable, false}, {index.ErrNotFound, false}, {kv.ErrForeign, false}, {nil, false},
	} {
		err := c.err
		if err != nil {
			err = fmt.Errorf("the store must stop: %w", err)
		}
		if got := badIndex(err); got != c.want {
			t.Errorf("badIndex(%v) = %v, want %v", err, got, c.want)
		}
	}
}

// TestPlaces: never all connections are busy with requests and streams, neither with
// the other's, and never none.
func TestPlaces(t *testing.T) {
	for connections, want := range map[int64][2]int{0: {1, 1}, 1: {1, 1}, 2: {1, 1}, 10: {8, 1}, 160: {140, 10}, 1600: {1436, 64}} {
		if requests, streams := places(connections*budget.Connection + 1); requests != want[0] || streams != want[1] {
			t.Errorf("%d connections serve %d requests and %d streams, want %v", connections, requests, streams, want)
		}
	}
}
