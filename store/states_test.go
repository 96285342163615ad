package store

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"

	"cairn/id"
	"cairn/node"
)

func TestReasonIsOneLine(t *testing.T) {
	t.Parallel()
	gone := &node.Error{Op: "usage", Node: id.Node{1}, Err: fmt.Errorf("%w: this is no longer the directory that was opened", node.ErrMissing)}
	for _, c := range []struct {
		why  error
		want string
	}{
		{nil, ""},
		{errors.Join(gone, gone), "directory emptied or swapped; if it is back, restart the server; if it is lost: cairn nodes replace n02"},
		{fmt.Errorf("%w: no node.json; if what was here is lost, run: cairn nodes replace NAME", node.ErrMissing), "node missing: no node.json; if what was here is lost, run: cairn nodes replace n02"},
		{fmt.Errorf("directory x is not there: %w", node.ErrMissing), "directory x is not there: node missing; if it is lost: cairn nodes replace n02"},
		{fmt.Errorf("state: %w", node.ErrDamaged), "state: damaged; if it is lost: cairn nodes replace n02"},
		{errors.Join(errors.New("slow"), errors.New("slow"), errors.New("late")), "slow; late"},
	} {
		if got := reasonOf("n02", c.why); got != c.want {
			t.Errorf("the reason of %v is %q, want %q", c.why, got, c.want)
		}
	}
}

// TestStatesAgreeWithStatus: what is known without asking is what asking said last.
func TestStatesAgreeWithStatus(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.put("a", []byte("a"))
	if err := r.fs["n02"].RemoveAll("node.json"); err != nil {
		t.Fatal(err)
	}
	for asked := range 2 {
		for i, s := range r.st.NodeStates() {
			want := "up"
			if asked == 1 && s.Name == "n02" {
				want = "missing"
			}
			if s.State != want || strings.Contains(s.Reason, "\n") || (s.Reason == "") != (want == "up") {
				t.Errorf("asked %d times, node %d is %+v, want it %s", asked, i, s, want)
			}
		}
		status, err := r.st.Status(context.Background())
		if err != nil {
			t.Fatal(err)
		}
		for i, s := range r.st.NodeStates() {
			if n := status.Nodes[i]; n.Name != s.Name || n.State != s.State || n.Reason != s.Reason {
				t.Errorf("the status of a node is %+v, its state %+v", n, s)
			}
		}
	}
}
