package store

import (
	"errors"
	"slices"
	"strings"

	"cairn/node"
)

// NodeState is how a member is, as far as is known without asking it.
type NodeState struct {
	Name   string
	State  string // as in [NodeStatus]
	Reason string
}

// NodeStates says how the members are without asking any of them.
func (s *Store) NodeStates() []NodeState {
	set := s.members.Load()
	out := make([]NodeState, 0, len(set.all))
	for _, m := range set.all {
		state, why := m.state(s.now())
		out = append(out, NodeState{Name: m.info.Name, State: drainState(state, set.draining(m)), Reason: reasonOf(m.info.Name, why)})
	}
	return out
}

// drainState is the state of a member that may be draining.
func drainState(state string, draining bool) string {
	if state == "up" && draining {
		return "draining"
	}
	return state
}

// reasonOf says in one line why a member is not up, and what to do about one that
// is missing.
func reasonOf(name string, why error) string {
	if why == nil {
		return ""
	}
	replace := "cairn nodes replace " + name
	if _, ran := errors.AsType[*node.Error](why); ran && errors.Is(why, node.ErrMissing) {
		return "directory emptied or swapped; if it is back, restart the server; if it is lost: " + replace
	}
	var lines []string // an error may be several, joined, and the same one twice
	for line := range strings.SplitSeq(why.Error(), "\n") {
		if !slices.Contains(lines, line) {
			lines = append(lines, line)
		}
	}
	// Nodes do not know by which name they are members.
	text := strings.ReplaceAll(strings.Join(lines, "; "), "cairn nodes replace NAME", replace)
	if (errors.Is(why, node.ErrMissing) || errors.Is(why, node.ErrDamaged)) && !strings.Contains(text, replace) {
		text += "; if it is lost: " + replace
	}
	return text
}
