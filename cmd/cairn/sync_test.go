package main

import (
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"
)

// TestPlanSync: after what a plan says was done, the target has the source's files
// and sizes, nothing that was newer there was kept, and a second plan is empty.
func TestPlanSync(t *testing.T) {
	base := time.Date(2026, 11, 26, 12, 0, 0, 0, time.UTC)
	side := rapid.MapOfN(rapid.StringMatching(`[ab](/[ab])?`), rapid.Custom(func(t *rapid.T) synced {
		return synced{rapid.Uint64Range(0, 2).Draw(t, "size"), base.Add(time.Duration(rapid.IntRange(0, 3).Draw(t, "minute")) * time.Minute)}
	}), 0, 6)
	rapid.Check(t, func(t *rapid.T) {
		source, target := side.Draw(t, "source"), side.Draw(t, "target")
		p := planSync(source, target)
		for _, name := range p.compare {
			if s, o := source[name], target[name]; s.size != o.size || s.changed.After(o.changed) {
				t.Errorf("%s is taken for the same: %v, %v", name, s, o)
			}
		}
		if !slices.IsSorted(p.copy) || !slices.IsSorted(p.compare) || !slices.IsSorted(p.extra) {
			t.Errorf("not sorted: %+v", p)
		}
		for _, name := range p.copy {
			if s, o := source[name], target[name]; s.size == o.size && !s.changed.After(o.changed) && !o.changed.IsZero() {
				t.Errorf("%s is copied for nothing: %v, %v", name, s, o)
			}
			target[name] = synced{source[name].size, base.Add(time.Hour)}
		}
		for _, name := range p.extra {
			if _, ok := source[name]; ok {
				t.Errorf("%s is deleted, and the source has it", name)
			}
			delete(target, name)
		}
		if len(source) != len(target) {
			t.Errorf("%d files became %d", len(source), len(target))
		}
		if again := planSync(source, target); len(again.copy) > 0 || len(again.extra) > 0 || len(again.compare) != len(source) {
			t.Errorf("a second plan: %+v", again)
		}
	})
}
