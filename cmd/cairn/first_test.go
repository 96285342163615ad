package main

import (
	"bytes"
	"fmt"
	"io"
	"mime/multipart"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

// TestFirstSystemsCommandLines runs what users of the first system have in their
// scripts: with curl where there is one, and with net/http everywhere.
func TestFirstSystemsCommandLines(t *testing.T) {
	s, _, dir := testServer(t)
	content := bytes.Repeat([]byte("una piedra sobre otra\n"), 40_000)
	for _, name := range []string{"informe.txt", "año 2026+1 100%.txt"} {
		if err := os.WriteFile(filepath.Join(dir, name), content, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	type client struct {
		upload           func(file string) error
		download, remove func(escaped string) ([]byte, error)
	}
	run := func(args ...string) ([]byte, error) {
		cmd := exec.Command("curl", append([]string{"-fsS", "--max-time", "30"}, args...)...)
		cmd.Dir = dir
		var stderr bytes.Buffer
		cmd.Stderr = &stderr
		out, err := cmd.Output()
		if err != nil {
			err = fmt.Errorf("%w: %s", err, &stderr)
		}
		return out, err
	}
	ask := func(method, url, contentType string, body io.Reader) ([]byte, error) {
		req, err := http.NewRequest(method, url, body)
		if err != nil {
			return nil, err
		}
		req.Header.Set("Content-Type", contentType)
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			return nil, err
		}
		defer resp.Body.Close()
		b, err := io.ReadAll(resp.Body)
		if err == nil && resp.StatusCode != http.StatusOK {
			err = fmt.Errorf("%s: %s", resp.Status, b)
		}
		return b, err
	}
	clients := map[string]client{
		"net/http": {
			upload: func(file string) error {
				var form bytes.Buffer
				w := multipart.NewWriter(&form)
				part, err := w.CreateFormFile("archivo", file)
				if err != nil {
					return err
				}
				if _, err := part.Write(content); err != nil {
					return err
				}
				if err := w.Close(); err != nil {
					return err
				}
				_, err = ask("POST", s.url+"/cargar", w.FormDataContentType(), &form)
				return err
			},
			download: func(name string) ([]byte, error) { return ask("GET", s.url+"/descargar/"+name, "", nil) },
			remove:   func(name string) ([]byte, error) { return ask("DELETE", s.url+"/eliminar/"+name, "", nil) },
		},
	}
	if _, err := exec.LookPath("curl"); err == nil {
		clients["curl"] = client{
			upload: func(file string) error {
				_, err := run("-F", "archivo=@"+file, s.url+"/cargar")
				return err
			},
			download: func(name string) ([]byte, error) { return run(s.url + "/descargar/" + name) },
			remove:   func(name string) ([]byte, error) { return run("-X", "DELETE", s.url+"/eliminar/"+name) },
		}
	} else {
		t.Log("curl is not installed: net/http alone")
	}
	for kind, c := range clients {
		for file, escaped := range map[string]string{"informe.txt": "informe.txt", "año 2026+1 100%.txt": "a%C3%B1o%202026+1%20100%25.txt"} {
			if err := c.upload(file); err != nil {
				t.Fatalf("%s: upload %s: %v", kind, file, err)
			}
			if got, err := c.download(escaped); err != nil || !bytes.Equal(got, content) {
				t.Errorf("%s: download %s: %d bytes, %v; want the %d uploaded", kind, file, len(got), err, len(content))
			}
			if _, err := c.remove(escaped); err != nil {
				t.Errorf("%s: delete %s: %v", kind, file, err)
			}
			if got, err := c.download(escaped); err == nil {
				t.Errorf("%s: %s was deleted and still gives %d bytes", kind, file, len(got))
			}
			if _, err := c.remove(escaped); err == nil {
				t.Errorf("%s: %s is deleted twice", kind, file)
			}
		}
	}
}
