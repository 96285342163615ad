package notice

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"strings"
	"time"
)

const (
	tryTime   = 10 * time.Second // of one request
	tries     = 3
	tryPause  = time.Second // before the second; four times that before the third
	maxSecret = 4 << 10     // bytes
)

// webhook posts each message to a URL.
type webhook struct {
	url    string
	secret string // file
	client *http.Client
	pause  time.Duration
}

// newWebhook checks the URL. No error of this file names it: it may hold a secret.
func newWebhook(text, secretFile string) (*webhook, error) {
	u, err := url.Parse(text)
	if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" || u.Fragment != "" {
		return nil, errors.New("the URL for notices is not of the form http://HOST/PATH or https://HOST/PATH")
	}
	if u.User != nil {
		return nil, errors.New("the URL for notices has a user in it: put what it asks for into a file with a secret")
	}
	ip := net.ParseIP(u.Hostname())
	if secretFile != "" && u.Scheme == "http" && u.Hostname() != "localhost" && (ip == nil || !ip.IsLoopback()) {
		return nil, errors.New("the secret for notices would travel in the clear: use https, or no secret")
	}
	w := &webhook{url: text, secret: secretFile, pause: tryPause}
	if _, err := w.readSecret(); err != nil {
		return nil, err
	}
	w.client = &http.Client{
		Timeout: tryTime,
		// Where it leads to was not configured, and would get the secret.
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		Transport:     &http.Transport{Proxy: http.ProxyFromEnvironment, MaxResponseHeaderBytes: 64 << 10, DisableKeepAlives: true, ForceAttemptHTTP2: true},
	}
	return w, nil
}

// readSecret reads the secret, "" when there is none.
func (w *webhook) readSecret() (string, error) {
	if w.secret == "" {
		return "", nil
	}
	f, err := os.Open(w.secret)
	if err != nil {
		return "", fmt.Errorf("the secret for notices: %w", err)
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxSecret+1))
	if err != nil {
		return "", fmt.Errorf("the secret for notices: %w", err)
	}
	s := strings.TrimSpace(string(b))
	if s == "" || len(b) > maxSecret || strings.ContainsFunc(s, func(r rune) bool { return r < 0x21 || r > 0x7e }) {
		return "", fmt.Errorf("the secret for notices in %s is not one line of visible ASCII, at most %d bytes", w.secret, maxSecret)
	}
	return s, nil
}

// errRefused says that the same request again would be no use.
var errRefused = errors.New("refused")

// send posts a message, a few times if need be.
func (w *webhook) send(ctx context.Context, body []byte) error {
	pause := w.pause
	for try := 1; ; try++ {
		err := w.post(ctx, body)
		if err == nil || errors.Is(err, errRefused) || try == tries {
			return err
		}
		t := time.NewTimer(pause)
		select {
		case <-ctx.Done():
			t.Stop()
			return err
		case <-t.C:
		}
		pause *= 4
	}
}

func (w *webhook) post(ctx context.Context, body []byte) error {
	secret, err := w.readSecret()
	if err != nil {
		return err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, w.url, bytes.NewReader(body))
	if err != nil {
		return fmt.Errorf("%w: the URL for notices makes no request", errRefused)
	}
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("User-Agent", "cairn")
	if secret != "" {
		req.Header.Set("Authorization", "Bearer "+secret)
	}
	resp, err := w.client.Do(req)
	if err != nil {
		if e, ok := errors.AsType[*url.Error](err); ok {
			err = e.Err // which leaves the URL out
		}
		return err
	}
	defer resp.Body.Close()
	_, _ = io.CopyN(io.Discard, resp.Body, maxOutput) // what it says does not matter
	switch code := resp.StatusCode; {
	case code/100 == 2:
		return nil
	case code/100 == 3:
		return fmt.Errorf("%w: it answers %d, and redirects are not followed: give the URL that it leads to", errRefused, code)
	case code/100 == 5, code == http.StatusTooManyRequests, code == http.StatusRequestTimeout:
		return fmt.Errorf("it answers %d", code)
	default:
		return fmt.Errorf("%w: it answers %d", errRefused, code)
	}
}
