package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/spf13/pflag"
)

// fence is what a page says to type: a fenced sh block, or a comment that begins
// with "<!-- test" alone on its line, in which stands what happens unseen between
// blocks, such as the accident that the page is about.
type fence struct {
	line  int    // of its first line, counted from 1
	says  string // the prose between it and what was there before
	text  string
	notes bool // it is a comment
}

var notRun = regexp.MustCompile(`^<!-- not run: \S.* -->$`)

// command is a line that a reader would type.
var command = regexp.MustCompile(`^\s*(\$ )?(sudo )?(cairn|bin/cairn|\./bin/cairn|make|docker|curl) [^0-9]`)

// walk returns what a page says to type, in its order. A block below a comment
// <!-- not run: REASON --> is left out. Commands that no test would run, as they
// stand in blocks of another kind, are an error.
func walk(page []byte) (out []fence, err error) {
	var (
		block *fence // the one that is open, if it is to be run
		end   string // what ends the fence or comment that is open
		skip  bool   // the next fence is not run
		says  string
	)
	for i, line := range strings.Split(string(page), "\n") {
		trimmed := strings.TrimSpace(line)
		switch {
		case end != "" && trimmed == end:
			if block != nil {
				out = append(out, *block)
			}
			block, end = nil, ""
		case end != "" && block != nil:
			block.text += line + "\n"
		case end != "":
			if !skip && command.MatchString(line) {
				err = errors.Join(err, fmt.Errorf("line %d: a command in a block that is not sh", i+1))
			}
		case strings.HasPrefix(trimmed, "```"):
			end = "```"
			if trimmed == "```sh" && !skip {
				block, says = &fence{line: i + 2, says: says}, ""
				continue
			}
			skip = skip && trimmed == "```sh"
		case trimmed == "<!-- test":
			end = "-->"
			block, says = &fence{line: i + 2, says: says, notes: true}, ""
		case strings.HasPrefix(line, "    ") && command.MatchString(line):
			err = errors.Join(err, fmt.Errorf("line %d: a command in an indented block", i+1))
		default:
			says += line + "\n"
			skip = notRun.MatchString(trimmed)
		}
		if end == "" && strings.HasPrefix(trimmed, "```") {
			skip = false
		}
	}
	if end != "" {
		err = errors.Join(err, errors.New("the last block has no end"))
	}
	return out, err
}

func TestWalkFindsItsBlocks(t *testing.T) {
	page := "# Cairn\n<!-- not run: it\n cannot -->\n```sh\nthis\n```\n## Five minutes\n```sh\none\n# ## no heading\n```\n```json\n{}\n```\n" +
		"<!-- not run: it needs a moon -->\n```sh\ncairn moon\n```\n<!-- test\nunseen\n-->\n  - a list\n    ```sh\ntwo\n  ```\n"
	got, err := walk([]byte(page))
	want := []fence{{5, "# Cairn\n<!-- not run: it\n cannot -->\n", "this\n", false}, {9, "## Five minutes\n", "one\n# ## no heading\n", false},
		{20, "<!-- not run: it needs a moon -->\n", "unseen\n", true}, {24, "  - a list\n", "two\n", false}}
	if err != nil || !slices.Equal(got, want) {
		t.Errorf("the walk has %+v, %v, want %+v", got, err, want)
	}
	for _, page := range []string{"text\n\n    cairn ls\n", "```console\n$ cairn ls\n```\n", "```sh\nnever ends\n", "<!-- not run: x -->\n\n```\nmake run \n```\n"} {
		if _, err := walk([]byte(page)); err == nil {
			t.Errorf("%q passes", page)
		}
	}
}

// walker runs a page's blocks one after the other in one directory that has the
// page as README.md, the program as bin/cairn, and cert.pem and key.pem for
// store.example. Variables that are exported stay for the blocks that follow.
//
// A line `make run` or `cairn serve ...` is what runs in another terminal: the
// server, on a port of its own in the place of 5000. Prose that names `make run`
// says so as well, and Ctrl-C in prose, or alone on a line of a comment, stops it.
type walker struct {
	dir, cairn string
	env        []string
	running    *server
}

var (
	at5000 = regexp.MustCompile(`\b(localhost|127\.0\.0\.1):5000\b`)
	serves = regexp.MustCompile(`^(?:make run|(?:\./)?(?:bin/)?cairn serve( .*)?)$`)
	listen = regexp.MustCompile(` --listen \S+`)
)

func newWalker(t *testing.T, page []byte) *walker {
	t.Helper()
	for _, tool := range []string{"bash", "curl"} {
		if _, err := exec.LookPath(tool); err != nil {
			t.Skip(tool + " is not installed")
		}
	}
	w := &walker{dir: t.TempDir(), cairn: cairnProgram(t)}
	cert, key, err := certified(1, time.Now().Add(-time.Hour), time.Now().Add(30*24*time.Hour), "store.example")
	err = errors.Join(err, os.MkdirAll(filepath.Join(w.dir, "bin"), 0o755), os.Symlink(w.cairn, filepath.Join(w.dir, "bin", "cairn")))
	for name, b := range map[string][]byte{"README.md": page, "cert.pem": cert, "key.pem": key, ".exported": nil} {
		err = errors.Join(err, os.WriteFile(filepath.Join(w.dir, name), b, 0o600))
	}
	if err != nil {
		t.Fatal(err)
	}
	w.env = append(os.Environ(), "XDG_CONFIG_HOME="+filepath.Join(w.dir, "config"), "HOME="+w.dir)
	return w
}

func (w *walker) start(args ...string) (err error) {
	if err := w.stop(); err != nil {
		return err
	}
	w.running, err = startServer(w.cairn, w.dir, w.env, args...)
	return err
}

func (w *walker) stop() error {
	if w.running == nil {
		return nil
	}
	s := w.running
	w.running = nil
	if err := s.end(syscall.SIGINT); err != nil {
		return fmt.Errorf("the server ends with %w\n%s", err, s.log)
	}
	return nil
}

func (w *walker) shell(ctx context.Context, text string) error {
	if strings.TrimSpace(text) == "" {
		return nil
	}
	before := "set -eu -o pipefail\n. ./.exported\n"
	if w.running != nil {
		text = at5000.ReplaceAllString(text, strings.TrimPrefix(w.running.url, "http://"))
		before += "export CAIRN_SERVER=" + w.running.url + "\n"
	}
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, "bash", "-c", before+text+"\nexport -p > .exported\n")
	cmd.Dir, cmd.Env, cmd.WaitDelay = w.dir, w.env, time.Second
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%w\n%s\n%s", err, text, out)
	}
	return nil
}

func (w *walker) block(ctx context.Context, b fence) error {
	if strings.Contains(b.says, "Ctrl-C") {
		if err := w.stop(); err != nil {
			return err
		}
	}
	if strings.Contains(b.says, "`make run`") {
		if err := w.start("--data", "./data"); err != nil {
			return err
		}
	}
	var shell string
	for line := range strings.Lines(strings.ReplaceAll(b.text, "\\\n", " ")) {
		bare, _, _ := strings.Cut(strings.TrimSpace(line), " #")
		bare = strings.TrimSpace(bare)
		m := serves.FindStringSubmatch(bare)
		stops := b.notes && bare == "Ctrl-C"
		if m == nil && !stops {
			shell += line
			continue
		}
		if err := w.shell(ctx, shell); err != nil {
			return err
		}
		shell = ""
		if stops {
			if err := w.stop(); err != nil {
				return err
			}
			continue
		}
		if err := w.start(strings.Fields(cmp.Or(listen.ReplaceAllString(m[1], ""), "--data ./data"))...); err != nil {
			return err
		}
	}
	return w.shell(ctx, shell)
}

// run returns the error of the first block that fails.
func (w *walker) run(ctx context.Context, blocks []fence) (err error) {
	defer func() { err = errors.Join(err, w.stop()) }()
	for _, b := range blocks {
		if err := w.block(ctx, b); err != nil {
			var log string
			if w.running != nil {
				log = w.running.log.String()
			}
			return fmt.Errorf("the block at line %d: %w\nthe server's log:\n%s", b.line, err, log)
		}
	}
	return nil
}

func TestWalkRuns(t *testing.T) {
	t.Parallel()
	page, err := os.ReadFile(filepath.Join("testdata", "walk.md"))
	if err != nil {
		t.Fatal(err)
	}
	blocks, err := walk(page)
	if err != nil {
		t.Fatal(err)
	}
	if err := newWalker(t, page).run(t.Context(), blocks); err != nil {
		t.Fatal(err)
	}
}

// TestWalkBites: a block that is wrong fails, whatever comes after it.
func TestWalkBites(t *testing.T) {
	t.Parallel()
	w := newWalker(t, nil)
	for _, text := range []string{"cairn lost\ntrue\n", "cairn version --no-such-flag | cat\n", "echo $UNSET\ntrue\n", "cairn serve --data ./data --no-such-flag\n", "cairn ls --server http://127.0.0.1:1\n"} {
		if err := w.run(t.Context(), []fence{{line: 1, text: text}}); err == nil {
			t.Errorf("%q passes", text)
		}
	}
}

// pages are README.md and all under docs, by their paths from the project's root.
func pages(t *testing.T) map[string][]byte {
	t.Helper()
	root := filepath.Join("..", "..")
	out := map[string][]byte{}
	read := func(path string) error {
		b, err := os.ReadFile(path)
		if rel, rerr := filepath.Rel(root, path); rerr == nil {
			out[rel] = b
		}
		return err
	}
	if err := read(filepath.Join(root, "README.md")); err != nil {
		t.Fatal(err)
	}
	if err := filepath.WalkDir(filepath.Join(root, "docs"), func(path string, _ fs.DirEntry, err error) error {
		if err != nil || filepath.Ext(path) != ".md" {
			return err
		}
		return read(path)
	}); err != nil {
		t.Fatal(err)
	}
	return out
}

// TestPages runs what README.md and the pages under docs tell a reader to type.
func TestPages(t *testing.T) {
	t.Parallel()
	for name, page := range pages(t) {
		blocks, err := walk(page)
		if err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if len(blocks) == 0 {
			continue
		}
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			if err := newWalker(t, page).run(t.Context(), blocks); err != nil {
				t.Fatal(err)
			}
		})
	}
}

// span is code within prose that names a command; it ends at what a shell would
// take.
var span = regexp.MustCompile("`(cairn [a-z][^`|>;&]*)")

// unknownIn returns what a command line names that the program does not have.
func unknownIn(line string) error {
	words := strings.Fields(line)[1:]
	root := newRoot()
	root.InitDefaultCompletionCmd(words...)
	cmd, rest, err := root.Find(words)
	if err != nil {
		return err
	}
	if cmd == root || cmd.HasSubCommands() && len(rest) > 0 && regexp.MustCompile(`^[a-z]`).MatchString(rest[0]) {
		return fmt.Errorf("no command %q", words)
	}
	cmd.InitDefaultHelpFlag()
	flag := func(name string) *pflag.Flag {
		return cmp.Or(cmd.Flags().Lookup(name), cmd.InheritedFlags().Lookup(name))
	}
	for _, word := range rest {
		name, _, _ := strings.Cut(strings.Trim(word, "[],.()"), "=")
		if name, ok := strings.CutPrefix(name, "--"); ok && flag(name) == nil {
			return fmt.Errorf("no flag --%s of %s", name, cmd.CommandPath())
		}
	}
	return nil
}

// TestPagesNameWhatThereIs: commands and flags in the prose exist.
func TestPagesNameWhatThereIs(t *testing.T) {
	for _, bad := range []string{"cairn lost", "cairn keys lost", "cairn ls --no-such-flag"} {
		if unknownIn(bad) == nil {
			t.Errorf("%q passes", bad)
		}
	}
	links := regexp.MustCompile(`\]\(([^)#:]+)(#[^)]*)?\)`)
	for name, page := range pages(t) {
		for _, m := range span.FindAllStringSubmatch(strings.ReplaceAll(string(page), "\n", " "), -1) {
			if err := unknownIn(m[1]); err != nil {
				t.Errorf("%s: `%s`: %v", name, m[1], err)
			}
		}
		for _, m := range links.FindAllStringSubmatch(string(page), -1) {
			if _, err := os.Stat(filepath.Join("..", "..", filepath.Dir(name), m[1])); err != nil {
				t.Errorf("%s: a link leads nowhere: %v", name, err)
			}
		}
	}
}
