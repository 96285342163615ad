package cairn_test

import (
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// layers orders our packages: an import may only point to a lower layer, or to
// one named in beside. A package that is not listed fails the test, so that every
// new one is given its place.
var layers = [][]string{
	{"id", "store/budget"},
	{"chunker", "erasure", "keys", "manifest", "schedule"},
	{"seal", "placement"},
	{"pack"},
	{"record"},
	{"index/kv", "node", "node/vfs"},
	{"index/kv/badgerkv", "index/kv/memkv", "index/kv/kvtest", "index", "node/vfs/crashfs", "node/vfs/vfstest", "node/disk", "node/nodetest", "node/link"},
	{"node/remote", "node/server"},
	{"store"},
	{"store/sim"},
	{"datadir", "maintain", "notice"},
	{"api", "api/rest", "api/door"},
	{"bench", "drill"}, // both drive the program through its public faces; a drill also opens nodes that nobody serves, to forge shards
	{"cmd"},
	{"integration"},
}

// beside lists the imports within a layer that are meant.
var beside = map[string][]string{
	"seal":          {"keys"},
	"index":         {"index/kv"},
	"node/nodetest": {"node"},
}

// homes says where a library's types may appear, and why.
var homes = []struct {
	library, reason string
	dirs            []string
	tests           bool // test files may use it anywhere
}{
	{"github.com/labstack/echo", "the web framework translates protocols: those of api, and the link to nodes", []string{"api", "node/server"}, false},
	{"github.com/failsafe-go/failsafe-go", "retries and breakers belong to the link to nodes", []string{"node/remote"}, false},
	{"github.com/dgraph-io/badger", "badger is one engine of the index; nothing else may depend on how it works", []string{"index/kv/badgerkv"}, false},
	{"github.com/klauspost/reedsolomon", "the codec's types stay in erasure", []string{"erasure"}, false},
	{"github.com/tidwall/btree", "the memory engine's tree", []string{"index/kv"}, false},
	{"github.com/spf13/cobra", "commands are cmd's", []string{"cmd"}, false},
	{"github.com/spf13/pflag", "flags are cmd's", []string{"cmd"}, false},
	{"github.com/pelletier/go-toml", "configuration ends in cmd; below, it is fields of a struct", []string{"cmd"}, false},
	{"github.com/netresearch/go-cron", "the fields of a crontab are read in one place", []string{"schedule"}, false},
	{"github.com/prometheus/client_golang", "metrics are a protocol that api speaks", []string{"api"}, false},
	{"github.com/vbauerster/mpb", "progress bars are cmd's", []string{"cmd"}, false},
}

// pure packages compute on bytes: no files, network, clock or logger.
var (
	pure    = []string{"chunker", "seal", "erasure", "manifest", "pack", "placement", "record", "id"}
	unclean = []string{"os", "net", "net/http", "time", "log", "log/slog", "os/exec", "path/filepath"}
)

// cleanExceptions are imports of a pure package that break no rule, and why.
var cleanExceptions = map[string]string{}

type sourceFile struct {
	name, dir string
	test      bool
	imports   []string
}

func sources(t *testing.T) []sourceFile {
	t.Helper()
	var out []sourceFile
	err := filepath.WalkDir(".", func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() && p != "." && (strings.HasPrefix(d.Name(), ".") || d.Name() == "testdata" || d.Name() == "data" || d.Name() == "bin") {
			return filepath.SkipDir
		}
		if d.IsDir() || !strings.HasSuffix(p, ".go") {
			return nil
		}
		f, err := parser.ParseFile(token.NewFileSet(), p, nil, parser.ImportsOnly)
		if err != nil {
			return err
		}
		s := sourceFile{name: p, dir: filepath.ToSlash(filepath.Dir(p)), test: strings.HasSuffix(p, "_test.go")}
		for _, i := range f.Imports {
			v, err := strconv.Unquote(i.Path.Value)
			if err != nil {
				return err
			}
			s.imports = append(s.imports, v)
		}
		out = append(out, s)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// layerOf is the number of a package's layer; commands share one.
func layerOf(dir string) int {
	for i, l := range layers {
		if slices.Contains(l, dir) || (strings.HasPrefix(dir, "cmd/") && slices.Contains(l, "cmd")) || (strings.HasPrefix(dir, "bench/") && slices.Contains(l, "bench")) {
			return i
		}
	}
	return -1
}

func TestImportsPointDown(t *testing.T) {
	for _, s := range sources(t) {
		if s.test || s.dir == "." {
			continue // tests may compose whatever they test
		}
		from := layerOf(s.dir)
		if from < 0 {
			t.Errorf("%s: package %s has no place among the layers of this test", s.name, s.dir)
			continue
		}
		for _, i := range s.imports {
			to, ours := strings.CutPrefix(i, "cairn/")
			if !ours || slices.Contains(beside[s.dir], to) || strings.HasPrefix(to, s.dir+"/") && strings.HasPrefix(s.dir, "cmd") {
				continue
			}
			if l := layerOf(to); l >= from {
				t.Errorf("%s: %s imports %s, which is not below it: what both need belongs into a package under them", s.name, s.dir, to)
			}
			if strings.HasPrefix(s.dir, "index") && strings.HasPrefix(to, "node") || strings.HasPrefix(s.dir, "node") && strings.HasPrefix(to, "index") {
				t.Errorf("%s: %s imports %s: index and nodes do not know each other, only the store composes them", s.name, s.dir, to)
			}
		}
	}
}

func TestLibrariesStayHome(t *testing.T) {
	for _, s := range sources(t) {
		for _, i := range s.imports {
			for _, h := range homes {
				if !strings.HasPrefix(i, h.library) || h.tests && s.test {
					continue
				}
				if !slices.ContainsFunc(h.dirs, func(d string) bool { return s.dir == d || strings.HasPrefix(s.dir, d+"/") }) {
					t.Errorf("%s imports %s: %s", s.name, i, h.reason)
				}
			}
		}
	}
}

// TestNothingServesWithoutToken: the handler that asks for no token is the
// benchmarks' alone.
func TestNothingServesWithoutToken(t *testing.T) {
	for _, s := range sources(t) {
		if s.dir == "bench" || s.dir == "api/rest" || s.dir == "." {
			continue
		}
		b, err := os.ReadFile(s.name)
		if err != nil {
			t.Fatal(err)
		}
		if strings.Contains(string(b), "WithoutToken") {
			t.Errorf("%s serves without asking for the token", s.name)
		}
	}
}

func TestPurePackagesOnlyCompute(t *testing.T) {
	for _, s := range sources(t) {
		if s.test || !slices.Contains(pure, s.dir) {
			continue
		}
		for _, i := range s.imports {
			if slices.Contains(unclean, i) && cleanExceptions[s.dir+" "+i] == "" {
				t.Errorf("%s imports %s: %s only computes; files, network, clock and logger belong to its callers", s.name, i, s.dir)
			}
		}
	}
}

// TestEveryPackageExplainsItself: exactly one file of a package carries its
// comment.
func TestEveryPackageExplainsItself(t *testing.T) {
	docs := map[string][]string{}
	seen := map[string]bool{}
	for _, s := range sources(t) {
		if s.test || s.dir == "." {
			continue
		}
		seen[s.dir] = true
		b, err := os.ReadFile(s.name)
		if err != nil {
			t.Fatal(err)
		}
		f, err := parser.ParseFile(token.NewFileSet(), s.name, b, parser.PackageClauseOnly|parser.ParseComments)
		if err != nil {
			t.Fatal(err)
		}
		if f.Doc != nil {
			docs[s.dir] = append(docs[s.dir], path.Base(s.name))
		}
	}
	for dir := range seen {
		if n := len(docs[dir]); n != 1 {
			t.Errorf("package %s has its comment in %d files %v, want exactly one", dir, n, docs[dir])
		}
	}
}
