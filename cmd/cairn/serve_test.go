package main

import (
	"fmt"
	"testing"

	"cairn/index"
	"cairn/index/kv"
	"cairn/store"
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
