package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"regexp"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"cairn/drill"
)

// lies are programs that do not keep what Cairn promises: each stands between a
// drill and the real program and breaks one promise, from its second start on.
// A drill that believes one of them could not fail.
var lies = []struct {
	name, scenario string
	want           string // what the drill complains of; which of two things it meets first is chance
	long           bool
}{
	{"flips a byte", "index-old", "not the", false},
	{"cuts a body", "old-node", "cannot be read", true},
	{"hides an object", "index-lost", "is not listed", true},
	{"acknowledges too soon", "kill", "acknowledged and is not there|no write that it may hold", false},
	{"finds nothing", "rot", "cairn verify|exit code 0, want 1", false},
	{"finds nothing", "other-bytes", "cairn verify|exit code 0, want 1", true},
	{"serves all the same", "twice", "serves all the same", false},
	{"serves all the same", "wrong-key", "serves all the same", true},
	{"serves all the same", "not-mounted", "serves all the same", true},
	{"serves all the same", "rolled-back", "serves all the same", true},
	{"serves all the same", "keyring", "serves all the same", true},
	{"serves all the same", "beyond-nodes", "serves all the same", true},
	{"keeps the space", "gc", "have given back", false},
	{"takes too much", "gc", "is not listed", true},
	{"names nobody", "beyond-rot", "cairn damaged does not name", false},
	{"writes it in clear", "plaintext", "is found in", true},
	{"calls nobody missing", "lost-nodes", "status calls missing", true},
	{"calls everything sound", "torn", "exit code 0, want 1", true},
}

// TestDrillFindsLies proves that a drill can fail.
func TestDrillFindsLies(t *testing.T) {
	cairn := cairnProgram(t)
	for _, lie := range lies {
		if lie.long && os.Getenv("CAIRN_LONG") == "" {
			continue
		}
		t.Run(lie.name+", "+lie.scenario, func(t *testing.T) {
			dir := filepath.Join(t.TempDir(), lie.name)
			if err := os.Mkdir(dir, 0o700); err != nil {
				t.Fatal(err)
			}
			liar := filepath.Join(dir, "liar") // the directory tells it what to lie about
			if err := os.Link(cairn, liar); err != nil {
				t.Fatal("the program cannot be linked: ", err)
			}
			rep, err := drill.Run(t.Context(), drill.Config{Program: liar, Scratch: t.TempDir(), Seed: 7, Size: drill.MinSize, Only: []string{lie.scenario}})
			if err != nil {
				t.Fatal(err)
			}
			if len(rep.Results) != 1 || rep.Results[0].Name != lie.scenario {
				t.Fatalf("it came to %+v", rep.Results)
			}
			if r := rep.Results[0]; r.Outcome != drill.Broken || !regexp.MustCompile(lie.want).MatchString(r.Why) {
				b, _ := json.MarshalIndent(r, "", " ")
				t.Errorf("a program that %s is %s: %q, want a broken promise with %q\n%s", lie.name, r.Outcome, r.Why, lie.want, b)
			}
		})
	}
}

// TestWholeDrill runs every scenario on more than the usual.
func TestWholeDrill(t *testing.T) {
	if os.Getenv("CAIRN_LONG") == "" {
		t.Skip("it takes minutes: CAIRN_LONG=1")
	}
	for range 3 {
		seed := uint64(time.Now().UnixNano())
		t.Logf("--seed %d", seed)
		rep, err := drill.Run(t.Context(), drill.Config{Program: cairnProgram(t), Scratch: t.TempDir(), Seed: seed, Size: 64 << 20})
		if err != nil {
			t.Fatal(err)
		}
		for _, r := range rep.Results {
			t.Logf("%s: %s in %.1f s, %d versions read", r.Name, r.Outcome, r.Seconds, r.Read)
			if r.Outcome != drill.Proven {
				b, _ := json.MarshalIndent(r, "", " ")
				t.Errorf("seed %d: %s", seed, b)
			}
		}
	}
}

// liar is the program in the place of cairn.
func liar() {
	self, err := os.Executable()
	if err != nil {
		panic(err)
	}
	what := filepath.Base(filepath.Dir(self))
	cairn, err := exec.LookPath("cairn")
	if err != nil {
		panic(err)
	}
	starts := filepath.Join(filepath.Dir(self), "starts")
	_, err = os.Stat(starts)
	honest := err != nil
	args := os.Args[1:]
	if len(args) > 0 && args[0] == "serve" {
		if honest {
			if err := os.WriteFile(starts, nil, 0o600); err != nil {
				panic(err)
			}
		}
		os.Exit(serveLies(cairn, what, honest, args))
	}
	if answer := map[string]string{
		"finds nothing scrub":          `{"result":{"complete":true,"packs":9,"shards":54}}`,
		"calls everything sound scrub": `{"result":{"complete":true,"packs":9,"shards":54}}`,
		"keeps the space gc":           `{"state":"done","result":{}}`,
		"names nobody damaged":         `{"objects":[]}`,
	}[what+" "+args[0]]; answer != "" {
		fmt.Println(answer)
		os.Exit(0)
	}
	if what == "takes too much" && args[0] == "gc" {
		rm := exec.Command(cairn, "rm", "drill-00000007-wide/large/1")
		if err := rm.Run(); err != nil {
			panic(err)
		}
	}
	if err := syscall.Exec(cairn, append([]string{cairn}, args...), os.Environ()); err != nil {
		panic(err)
	}
}

// serveLies serves what the real program serves, but for the lie.
func serveLies(cairn, what string, honest bool, args []string) int {
	var (
		child *exec.Cmd
		real  struct{ Event, Store, URL string }
	)
	for tries := 0; ; tries++ {
		child = exec.Command(cairn, args...)
		child.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
		out, err := child.StdoutPipe()
		if err != nil {
			panic(err)
		}
		var errs bytes.Buffer
		child.Stderr = &errs
		if err := child.Start(); err != nil {
			panic(err)
		}
		for d := json.NewDecoder(out); real.Event != "serving" && d.Decode(&real) == nil; {
		}
		if real.Event == "serving" {
			go io.Copy(io.Discard, out)
			break
		}
		child.Wait()
		if what == "serves all the same" && !honest {
			break
		}
		// The child of a liar that was killed may be dying still.
		if tries < 50 && strings.Contains(errs.String(), "in use") {
			time.Sleep(100 * time.Millisecond)
			continue
		}
		os.Stderr.Write(errs.Bytes())
		return max(1, child.ProcessState.ExitCode())
	}
	stop := make(chan os.Signal, 1)
	signal.Notify(stop, syscall.SIGTERM)
	if real.Event != "serving" {
		tokens, _ := filepath.Glob(filepath.Join(os.Getenv("XDG_CONFIG_HOME"), "cairn", "*.token"))
		fmt.Printf(`{"event":"serving","store":%q,"url":"http://127.0.0.1:1"}`+"\n", strings.TrimSuffix(filepath.Base(tokens[0]), ".token"))
		<-stop
		return 0
	}
	target, err := url.Parse(real.URL)
	if err != nil {
		panic(err)
	}
	var puts atomic.Int64
	proxy := &httputil.ReverseProxy{
		Rewrite: func(r *httputil.ProxyRequest) { r.SetURL(target) },
		ModifyResponse: func(resp *http.Response) error {
			get := resp.Request.Method == http.MethodGet && resp.StatusCode == http.StatusOK
			object := strings.Contains(resp.Request.URL.Path, "/objects/")
			var change func([]byte) []byte
			switch {
			case honest:
			case what == "flips a byte" && get && object && resp.ContentLength > 50_000:
				change = func(b []byte) []byte { b[len(b)/2] ^= 1; return b }
			case what == "cuts a body" && get && object && resp.ContentLength > 50_000:
				resp.Body = io.NopCloser(io.LimitReader(resp.Body, resp.ContentLength-1))
			case what == "hides an object" && get && strings.HasSuffix(resp.Request.URL.Path, "-wide/objects"):
				change = func(b []byte) []byte {
					var page struct {
						Objects []any `json:"objects"`
					}
					if err := json.Unmarshal(b, &page); err != nil {
						panic(err)
					}
					page.Objects = page.Objects[1:]
					b, _ = json.Marshal(page)
					return b
				}
			case what == "calls nobody missing" && get && resp.Request.URL.Path == "/v1/status":
				change = func(b []byte) []byte { return bytes.ReplaceAll(b, []byte(`"missing"`), []byte(`"up"`)) }
			}
			if change != nil {
				b, err := io.ReadAll(resp.Body)
				if err != nil {
					return err
				}
				b = change(b)
				resp.Body, resp.ContentLength = io.NopCloser(bytes.NewReader(b)), int64(len(b))
				resp.Header.Set("Content-Length", fmt.Sprint(len(b)))
			}
			return nil
		},
	}
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodPut && strings.Contains(r.URL.Path, "/objects/") {
			b, err := io.ReadAll(r.Body)
			if err != nil {
				return
			}
			r.Body = io.NopCloser(bytes.NewReader(b))
			if what == "writes it in clear" && !honest {
				if err := os.WriteFile(filepath.Join(args[2], "nodes", "n01", "spool"), b, 0o600); err != nil {
					panic(err)
				}
			}
			if what == "acknowledges too soon" && strings.Contains(r.URL.Path, "client ") && puts.Add(1)%5 == 0 {
				w.WriteHeader(http.StatusCreated)
				return
			}
		}
		proxy.ServeHTTP(w, r)
	}))
	fmt.Printf(`{"event":"serving","store":%q,"url":%q}`+"\n", real.Store, server.URL)
	<-stop
	if err := child.Process.Signal(syscall.SIGTERM); err != nil {
		panic(err)
	}
	child.Wait()
	return child.ProcessState.ExitCode()
}
