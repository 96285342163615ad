package crashfs_test

import (
	"testing"

	"cairn/node/vfs"
	"cairn/node/vfs/crashfs"
	"cairn/node/vfs/vfstest"
)

func TestCrashfs(t *testing.T) {
	vfstest.Run(t, func(t *testing.T) vfs.FS { return crashfs.New() })
}
