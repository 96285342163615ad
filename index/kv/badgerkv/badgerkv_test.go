package badgerkv_test

import (
	"testing"

	"cairn/index/kv"
	"cairn/index/kv/badgerkv"
	"cairn/index/kv/kvtest"
)

func options(dir string) badgerkv.Options {
	return badgerkv.Options{
		Dir:           dir,
		EncryptionKey: kv.NewSecret([32]byte{9}),
		MemTableBytes: 2 << 20,
		CacheBytes:    8 << 20,
	}
}

func TestEngine(t *testing.T) {
	t.Parallel()
	dirs := map[kv.Engine]string{} // of one goroutine
	open := func(t testing.TB, dir string) kv.Engine {
		e, err := badgerkv.Open(options(dir))
		if err != nil {
			t.Fatal(err)
		}
		dirs[e] = dir
		return e
	}
	kvtest.Run(t, kvtest.Harness{
		New:    func(t testing.TB) kv.Engine { return open(t, t.TempDir()) },
		Reopen: func(t testing.TB, e kv.Engine) kv.Engine { return open(t, dirs[e]) },
	})
}
