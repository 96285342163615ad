package integration

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"math/big"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// planted are texts that must not be found, by what each is.
type planted map[string]string

// found lists which of the texts are in b, as they are, in hexadecimal of either
// case, or in base64 at any alignment.
func (p planted) found(b []byte) (out []string) {
	for what, s := range p {
		forms := []string{s, hex.EncodeToString([]byte(s)), strings.ToUpper(hex.EncodeToString([]byte(s)))}
		for i := range 3 { // the digits that the bytes around it have no part in
			for _, e := range []*base64.Encoding{base64.RawStdEncoding, base64.RawURLEncoding} {
				t := e.EncodeToString([]byte(strings.Repeat("\x00", i) + s))
				forms = append(forms, t[(i*8+5)/6:(i+len(s))*8/6])
			}
		}
		for _, f := range forms {
			if bytes.Contains(b, []byte(f)) {
				out = append(out, what)
				break
			}
		}
	}
	return out
}

func TestPlantedIsFound(t *testing.T) {
	p := planted{"it": "planted-5c1e"}
	for _, s := range []string{"planted-5c1e", hex.EncodeToString([]byte("planted-5c1e")), base64.StdEncoding.EncodeToString([]byte("planted-5c1e")),
		base64.URLEncoding.EncodeToString([]byte("xplanted-5c1e")), base64.StdEncoding.EncodeToString([]byte("xyplanted-5c1ez"))} {
		if p.found([]byte("..."+s+"...")) == nil {
			t.Errorf("it is not found in %q", s)
		}
	}
	if p.found([]byte("planted")) != nil {
		t.Error("it is found where it is not")
	}
}

// TestNothingPlantedIsFound uses a store in every way there is to bring names and
// contents into it, stops and kills it, and then looks for them, for the token, the
// key, the recovery code, a passphrase, the key of a certificate and what the configuration file says in every
// file of the data and the configuration directory, the logs, the metrics and what the
// system tells of the processes of server and commands (H60).
// The files that keep token, key, code and configuration are left out.
func TestNothingPlantedIsFound(t *testing.T) {
	r := newRig(t)
	s := r.start()
	c := s.client()
	defer c.close()
	p := planted{"the token": s.token}
	plant := func(what string) string {
		p[what] = fmt.Sprintf("planted%02d-8d2f6b", len(p))
		return p[what]
	}
	b64 := func(v string) string { return base64.StdEncoding.EncodeToString([]byte(v)) }
	want := func(status int, got reply) {
		t.Helper()
		if got.status != status {
			t.Errorf("%v: %s, want %d", got, got.body, status)
		}
	}
	key := plant("a key")
	header := http.Header{"Content-Type": {"text/" + plant("a type")}, "Cairn-Meta-" + strings.ToUpper(plant("a name of metadata")[:1]) + p["a name of metadata"][1:]: {plant("metadata")},
		"Content-Disposition": {`attachment; filename="` + plant("a file name") + `"`}, "User-Agent": {plant("an agent")}, "X-Any": {plant("a header")}}
	want(201, c.do("PUT", objectPath(key), header, []byte(plant("a small content"))))
	want(201, c.put("large/"+plant("a large key"), bytes.Repeat([]byte(plant("a large content")), 30_000)))
	want(201, c.do("POST", objectPath(plant("a copy"))+"?copy_from=main/"+key, nil, nil))
	want(201, c.do("POST", objectPath(plant("a new name"))+"?rename_from=main/"+p["a copy"], nil, nil))
	want(200, c.do("PUT", objectPath(key), nil, []byte(plant("a newer content"))))
	want(204, c.delete(key))
	want(404, c.get(plant("a key that is not there")))
	want(201, c.do("PUT", "/v1/buckets/"+plant("a bucket"), nil, nil))
	want(200, c.do("GET", "/v1/buckets/main/objects?prefix="+plant("a prefix"), nil, nil))
	want(400, c.do("GET", "/v1/buckets/main/objects?"+plant("a parameter"), nil, nil))
	want(401, (&client{base: s.url, token: plant("a wrong token"), http: c.http}).get(key))
	form := "--b\r\nContent-Disposition: form-data; name=\"archivo\"; filename=\"" + plant("a form's file") + "\"\r\n\r\n" + plant("a form's content") + "\r\n--b--\r\n"
	want(200, c.do("POST", "/cargar", http.Header{"Content-Type": {"multipart/form-data; boundary=b"}}, []byte(form)))
	for i, length := range []string{"900000", "300000"} { // one goes on waiting, the other one becomes an object
		name := fmt.Sprintf("upload %d", i)
		body := bytes.Repeat([]byte(plant(name+"'s content")), 20_000)[:300_000]
		want(201, c.do("POST", "/v1/uploads", http.Header{"Tus-Resumable": {"1.0.0"}, "Upload-Length": {length}, "Content-Type": {"application/offset+octet-stream"},
			"Upload-Metadata": {"bucket " + b64("main") + ",key " + b64(plant(name+"'s key")) + ",meta-x " + b64(plant(name+"'s metadata")) + ",other " + b64(plant(name+"'s note"))}}, body))
	}
	look := func(where string, b []byte) {
		t.Helper()
		if found := p.found(b); found != nil {
			t.Errorf("%s holds %s", where, strings.Join(found, ", "))
		}
	}
	look("the answer of /metrics", c.do("GET", "/metrics", nil, nil).body)
	lookAt := func(cmd *exec.Cmd) {
		t.Helper()
		for _, name := range []string{"cmdline", "comm", "environ", "status"} {
			b, err := os.ReadFile(fmt.Sprintf("/proc/%d/%s", cmd.Process.Pid, name))
			if err != nil || len(b) == 0 {
				t.Errorf("%s of %s is not to be seen: %v", name, cmd, err)
			}
			look("the "+name+" of "+cmd.String(), b)
		}
	}
	lookAt(s.cmd)
	s.kill()
	empty(t, r.index())
	s = r.start("--snapshot-every", "64KiB")
	want(200, (&client{base: s.url, token: s.token, http: c.http}).get(p["a new name"]))
	s.stop()
	pass := filepath.Join(r.base, "pass")
	if err := os.WriteFile(pass, []byte(plant("a passphrase")+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	r.must("keys", "add-passphrase", "--data", r.data, "--new-passphrase-file", pass)
	// From here on there is a configuration file, and TLS.
	certFile, keyFile, pool, scalar := certificate(t, r.base)
	p["the certificate's key"] = scalar
	config := fmt.Sprintf("# %s\n[serve]\nhost = [%q]\npassphrase-file = %q\n", plant("a comment of the configuration"), plant("a host")+".example", pass)
	if err := os.WriteFile(filepath.Join(r.config, "cairn", "cairn.toml"), []byte(config), 0o600); err != nil {
		t.Fatal(err)
	}
	s = r.start("--tls-cert", certFile, "--tls-key", keyFile)
	over := s.client()
	over.http.Transport.(*http.Transport).TLSClientConfig = &tls.Config{MinVersion: tls.VersionTLS12, RootCAs: pool}
	want(200, over.get(p["a new name"]))
	look("the answer of /metrics", over.do("GET", "/metrics", nil, nil).body)
	over.close()
	served := s.cmd
	secret := map[string]bool{} // files that hold what they are there for
	files, size := 0, 0
	err := filepath.WalkDir(r.config, func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		b, err := os.ReadFile(path)
		text := strings.TrimSpace(string(b))
		switch {
		case text == s.token, filepath.Base(path) == "cairn.toml":
		case filepath.Ext(path) == ".recovery":
			p["the recovery code"] = text
		case filepath.Ext(path) == ".key":
			key, kerr := hex.DecodeString(strings.Split(text, ":")[1])
			p["the key"], err = string(key), errors.Join(err, kerr)
		default:
			return err
		}
		secret[path] = true
		return err
	})
	if err != nil || p["the key"] == "" || p["the recovery code"] == "" || len(secret) < 3 {
		t.Fatalf("the secrets in %s: %v, %v", r.config, secret, err)
	}
	lookAt(served)
	lookAt(r.waiting(t, certFile, s))
	s.stop()
	for _, dir := range []string{r.data, r.config, filepath.Join(r.base, "logs"), filepath.Join(r.base, "home")} {
		err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
			if err != nil || !d.Type().IsRegular() {
				return err
			}
			b, err := os.ReadFile(path)
			files, size = files+1, size+len(b)
			if look("the name "+path, []byte(path)); !secret[path] {
				look(path, b)
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("%d texts are in none of %d files with %s", len(p), files, mib(int64(size)))
	if files < 20 || size < 1<<20 {
		t.Errorf("%d files with %d bytes: that proves little", files, size)
	}
}

// certificate makes a certificate for loopback and its key, as files, and says what
// the secret in the key is.
func certificate(t *testing.T, dir string) (certFile, keyFile string, pool *x509.CertPool, secret string) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	about := &x509.Certificate{SerialNumber: big.NewInt(1), NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		IsCA: true, BasicConstraintsValid: true}
	cert, err := x509.CreateCertificate(rand.Reader, about, about, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	raw, err := key.Bytes()
	if err != nil {
		t.Fatal(err)
	}
	certFile, keyFile = filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem")
	for file, block := range map[string]*pem.Block{certFile: {Type: "CERTIFICATE", Bytes: cert}, keyFile: {Type: "PRIVATE KEY", Bytes: der}} {
		if err := os.WriteFile(file, pem.EncodeToMemory(block), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	parsed, err := x509.ParseCertificate(cert)
	if err != nil {
		t.Fatal(err)
	}
	pool = x509.NewCertPool()
	pool.AddCert(parsed)
	return certFile, keyFile, pool, string(raw)
}

// waiting is a put that waits for its bytes, and has found the token: part of them
// went to the server.
func (r *rig) waiting(t *testing.T, caCert string, s *server) *exec.Cmd {
	t.Helper()
	cmd := exec.Command(r.program, "put", "-", "main/waiting", "--ca-cert", caCert)
	cmd.Env = append(r.env(), "CAIRN_SERVER="+s.url)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	var errs bytes.Buffer
	cmd.Stderr = &errs
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait() // it was killed
	})
	// More than the pipe and the client hold before a byte goes out.
	done := make(chan error, 1)
	go func() {
		_, err := in.Write(make([]byte, 4*mebi))
		done <- err
	}()
	select {
	case err := <-done:
		if err != nil {
			t.Fatalf("cairn put takes nothing: %v", err)
		}
	case <-time.After(time.Minute):
		t.Fatal("cairn put takes nothing")
	}
	return cmd
}
