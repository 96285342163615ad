package main

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"cairn/datadir"
)

// configDir is the user's configuration directory for cairn.
func configDir() (string, error) {
	base, err := os.UserConfigDir() // $XDG_CONFIG_HOME, else $HOME/.config
	if err != nil {
		return "", fmt.Errorf("no configuration directory: %w; set XDG_CONFIG_HOME to a directory that stays", err)
	}
	return filepath.Join(base, "cairn"), nil
}

// client speaks REST with a server.
type client struct {
	base  *url.URL
	token string
	from  string // where the token was found, for error texts
	http  *http.Client
}

// clientFlags adds the flags that every client command has.
func clientFlags(cmd *cobra.Command) *cobra.Command {
	serverFlags(cmd)
	cmd.Flags().String("token-file", "", "file with the token (else the value of $CAIRN_TOKEN; else, on this machine, the token of the store that this user last served there, or of this user's first store)")
	cmd.Flags().Bool("json", false, "print JSON")
	settings(cmd.Flags(), clientSection, "token-file")
	return cmd
}

// serverFlags adds the flags that say which server is meant, and how it is known.
func serverFlags(cmd *cobra.Command) {
	cmd.Flags().String("server", "http://localhost:5000", "server to talk to")
	cmd.Flags().String("ca-cert", "", "file with the only CAs to believe of an https server (PEM; default: the system's)")
	settings(cmd.Flags(), clientSection, "server", "ca-cert")
}

func jsonWanted(cmd *cobra.Command) bool {
	v, err := cmd.Flags().GetBool("json")
	return err == nil && v
}

func printJSON(cmd *cobra.Command, v any) error {
	e := json.NewEncoder(cmd.OutOrStdout())
	e.SetIndent("", "  ")
	return e.Encode(v)
}

// tellAll prints a line for each name that something was done to, or with --json
// an object with all of them.
func tellAll(cmd *cobra.Command, word string, names []string) error {
	if jsonWanted(cmd) {
		return printJSON(cmd, map[string][]string{word: names})
	}
	for _, name := range names {
		if _, err := fmt.Fprintf(cmd.OutOrStdout(), "%s %s\n", word, printable(name)); err != nil {
			return err
		}
	}
	return nil
}

// serverURL is the server to talk to.
func serverURL(cmd *cobra.Command) (*url.URL, error) {
	server, _ := cmd.Flags().GetString("server")
	if !strings.Contains(server, "://") {
		server = "http://" + server
	}
	u, err := url.Parse(server)
	if err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https" {
		return nil, &exitError{exitUsage, fmt.Errorf("server %q is not a URL like http://localhost:5000", server)}
	}
	return u, nil
}

func newClient(cmd *cobra.Command) (*client, error) {
	u, err := serverURL(cmd)
	if err != nil {
		return nil, err
	}
	token, from, err := findToken(cmd, u)
	if err != nil {
		return nil, err
	}
	transport, err := newTransport(cmd)
	if err != nil {
		return nil, err
	}
	transport.ResponseHeaderTimeout = 5 * time.Minute // a put is answered when it is durable
	transport.DisableCompression = true
	transport.WriteBufferSize, transport.ReadBufferSize = 256<<10, 256<<10
	return &client{base: u, token: token, from: from, http: &http.Client{Transport: transport,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}}, nil
}

// newTransport believes what --ca-cert says. It speaks HTTP/1.1.
func newTransport(cmd *cobra.Command) (*http.Transport, error) {
	file, _ := cmd.Flags().GetString("ca-cert")
	cfg, err := clientTLS(file)
	if err != nil {
		return nil, &exitError{exitUsage, err}
	}
	transport := http.DefaultTransport.(*http.Transport).Clone()
	transport.TLSClientConfig = cfg
	transport.Protocols = new(http.Protocols)
	transport.Protocols.SetHTTP1(true)
	return transport, nil
}

// findToken reads the token, and says where it was: in the file of the flag, in
// CAIRN_TOKEN, in the file of another origin, or in the configuration directory.
// The last is a local store's and is shown to servers on this machine only.
func findToken(cmd *cobra.Command, server *url.URL) (token, from string, err error) {
	flag := cmd.Flags().Lookup("token-file")
	file := flag.Value.String()
	if originOf(flag) != "flag" {
		if t := os.Getenv("CAIRN_TOKEN"); t != "" {
			return t, "CAIRN_TOKEN", nil
		}
	}
	if file == "" {
		host := server.Hostname()
		if host != "localhost" && !net.ParseIP(host).IsLoopback() {
			return "", "", &exitError{exitUsage, fmt.Errorf("the token of a store on this machine is not sent to %s; give that server's token with --token-file or CAIRN_TOKEN", server.Host)}
		}
		dir, err := configDir()
		if err != nil {
			return "", "", err
		}
		port := cmp.Or(server.Port(), map[string]string{"http": "80", "https": "443"}[server.Scheme])
		if file, err = datadir.TokenFile(dir, host, port); err != nil {
			return "", "", &exitError{exitNoReach, err}
		}
	}
	b, err := os.ReadFile(file)
	if errors.Is(err, os.ErrNotExist) {
		return "", "", &exitError{exitNoReach, fmt.Errorf("no token: %s is not there; start a store with `cairn serve`, or give --token-file or CAIRN_TOKEN", file)}
	}
	if err != nil {
		return "", "", &exitError{exitNoReach, err}
	}
	return strings.TrimSpace(string(b)), file, nil
}

// remoteError is an answer that is no success.
type remoteError struct {
	Status int    `json:"status"`
	Type   string `json:"type"`
	Title  string `json:"title"`
	Detail string `json:"detail"`
	Hint   string `json:"hint"`
}

func (e *remoteError) Error() string {
	s := e.Title
	if e.Detail != "" {
		s = e.Detail
	}
	if s == "" {
		s = http.StatusText(e.Status)
	}
	if e.Hint != "" {
		s += " (" + e.Hint + ")"
	}
	return s
}

// escape makes one element of a path. "." and ".." would be cleaned away on the
// road.
func escape(name string) string {
	if name == "." || name == ".." {
		return strings.ReplaceAll(name, ".", "%2E")
	}
	return url.PathEscape(name)
}

func bucketPath(bucket string) string { return "/v1/buckets/" + escape(bucket) }

// objectPath is an object's escaped path: its elements are escaped one by one, so
// that a key travels as it is, slashes kept.
func objectPath(bucket, key string) string { return keyPath(bucket, "objects", key) }

// keyPath is the escaped path of what is about an object.
func keyPath(bucket, what, key string) string {
	parts := strings.Split(key, "/")
	for i, part := range parts {
		parts[i] = escape(part)
	}
	return bucketPath(bucket) + "/" + what + "/" + strings.Join(parts, "/")
}

// expectFrom is the size from which a body is sent only when the server has said
// that it wants it.
const expectFrom = 1 << 20

// do sends a request and returns the answer when it is a success.
func (c *client) do(ctx context.Context, method, path string, query url.Values, header http.Header, body io.Reader, size int64) (*http.Response, error) {
	u := strings.TrimSuffix(c.base.String(), "/") + path
	if len(query) > 0 {
		u += "?" + query.Encode()
	}
	req, err := http.NewRequestWithContext(ctx, method, u, body)
	if err != nil {
		return nil, err
	}
	for k, v := range header {
		req.Header[k] = v
	}
	if body != nil {
		req.ContentLength = size
		if size < 0 || size >= expectFrom {
			req.Header.Set("Expect", "100-continue")
		}
	}
	req.Header.Set("Authorization", "Bearer "+c.token)
	req.Header.Set("User-Agent", "cairn/"+version)
	resp, err := c.http.Do(req)
	if err != nil {
		return nil, noAnswer(c.base, err)
	}
	if resp.StatusCode/100 == 2 {
		return resp, nil
	}
	defer resp.Body.Close()
	e := &remoteError{Status: resp.StatusCode}
	b, _ := io.ReadAll(io.LimitReader(resp.Body, 64<<10))
	if json.Unmarshal(b, e) != nil {
		// Something else answers, or stands in between; its first line may say what.
		line, _, _ := strings.Cut(strings.TrimSpace(string(b)), "\n")
		if e.Detail == "" && strings.Contains(string(b), "HTTP request to an HTTPS server") {
			return nil, &exitError{exitNoReach, fmt.Errorf("the server at %s speaks https: say --server https://%s", c.base.Host, c.base.Host)}
		}
		if media, _, _ := strings.Cut(resp.Header.Get("Content-Type"), ";"); (media == "text/plain" || media == "") && line != "" {
			e.Detail = fmt.Sprintf("%s: %.200s", resp.Status, printable(line))
		}
	}
	e.Status = resp.StatusCode
	if e.Status == http.StatusUnauthorized {
		e.Hint = fmt.Sprintf("%s does not take the one from %s; give that server's own with --token-file or CAIRN_TOKEN", c.base.Host, c.from)
	}
	return nil, e
}

// noAnswer says why a request got none.
func noAnswer(server *url.URL, err error) error {
	if op, ok := errors.AsType[*net.OpError](err); ok && op.Op == "dial" && !errors.Is(err, context.Canceled) {
		return &exitError{exitNoReach, fmt.Errorf("no server answers at %s: is `cairn serve` running there?", server)}
	}
	if errors.Is(err, http.ErrSchemeMismatch) {
		return &exitError{exitNoReach, fmt.Errorf("the server at %s speaks http, not https", server.Host)}
	}
	if reason := distrust(server.Host, err); reason != nil {
		return &exitError{exitNoReach, reason}
	}
	if e, ok := errors.AsType[*url.Error](err); ok { // it names the whole URL
		return fmt.Errorf("no answer from the server at %s: %w", server.Host, e.Err)
	}
	return err
}

// call exchanges JSON. in and out may be nil.
func (c *client) call(ctx context.Context, method, path string, query url.Values, in, out any) error {
	var (
		body io.Reader
		size int64
		h    = http.Header{}
	)
	if in != nil {
		b, err := json.Marshal(in)
		if err != nil {
			return err
		}
		body, size = bytes.NewReader(b), int64(len(b))
		h.Set("Content-Type", "application/json")
	}
	resp, err := c.do(ctx, method, path, query, h, body, size)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if out == nil {
		return nil
	}
	if err := json.NewDecoder(resp.Body).Decode(out); err != nil {
		return fmt.Errorf("read the server's answer: %w", err)
	}
	return nil
}

// splitName cuts BUCKET/KEY. A key may be empty where a prefix is meant.
func splitName(s string, needKey bool) (bucket, key string, err error) {
	bucket, key, _ = strings.Cut(s, "/")
	if bucket == "" || needKey && key == "" {
		return "", "", &exitError{exitUsage, fmt.Errorf("%q is not BUCKET/KEY", s)}
	}
	return bucket, key, nil
}
