//go:build !cairn_without_syncs

package vfs

import (
	"os"

	"golang.org/x/sys/unix"
)

// Syncs says that this program makes durable what it says is durable. It is
// false only in a program that was built to lose data, with the tag
// cairn_without_syncs: the tests of power cuts must notice that one.
const Syncs = true

func fdatasync(fd int) error   { return unix.Fdatasync(fd) }
func fsync(fd int) error       { return unix.Fsync(fd) }
func syncDir(d *os.File) error { return d.Sync() }
