package main

import (
	"testing"

	"github.com/spf13/cobra"
)

// TestEveryVerbHasItsPlace: a command that does something shows how it is used,
// and stands under a heading.
func TestEveryVerbHasItsPlace(t *testing.T) {
	var walk func(*cobra.Command)
	n := 0
	walk = func(c *cobra.Command) {
		for _, sub := range c.Commands() {
			walk(sub)
		}
		if c.HasSubCommands() || c.Name() == "help" {
			return
		}
		n++
		if c.Example == "" && c.Name() != "version" {
			t.Errorf("%s has no example", c.CommandPath())
		}
		if c.Flags().Lookup("json") == nil {
			t.Errorf("%s has no --json", c.CommandPath())
		}
	}
	root := newRoot()
	for _, c := range root.Commands() {
		if c.GroupID == "" {
			t.Errorf("%s stands under no heading", c.CommandPath())
		}
	}
	walk(root)
	if n < 25 {
		t.Errorf("%d commands", n)
	}
}
