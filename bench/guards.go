package bench

import (
	"bufio"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"cairn/api/door"
	"cairn/api/rest"
	"cairn/store/budget"
)

// Guard is what a request costs over REST with more or fewer guards, beside REST as
// `cairn serve` has it over plain HTTP: ratios of two figures of one round.
type Guard struct {
	Variant string `json:"variant"`
	Op      string `json:"op"`
	Bytes   int    `json:"bytes"`
	Clients int    `json:"clients"`
	Rate    Figure `json:"rate_ratio"` // above 1: faster
	CPU     Figure `json:"cpu_ratio"`  // of the server's process; below 1: cheaper
}

// variant is a way to serve. The first one is what the others are compared with.
type variant struct {
	name              string
	tls               bool
	noToken, noLimits bool
}

var variants = []variant{{name: "REST"}, {name: "with TLS", tls: true}, {name: "without the token", noToken: true}, {name: "without limits", noLimits: true}}

// guarded is what the process that serves them says of itself.
type guarded struct {
	Token string   `json:"token"`
	Cert  []byte   `json:"cert"`
	Addrs []string `json:"addrs"` // of the variants, in their order
}

// ServeGuarded serves one store in dir, with every variant of guards on an address of
// its own; what it writes to w says where. It ends when r does.
func ServeGuarded(dir string, r io.Reader, w io.Writer) (err error) {
	ctx := context.Background()
	l, err := openLocal(ctx, dir)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, l.close()) }()
	cert, err := selfSigned()
	if err != nil {
		return err
	}
	g := guarded{Token: l.dir.Token, Cert: cert.Certificate[0]}
	for _, v := range variants {
		srv, ln, err := v.serve(ctx, l, cert)
		if err != nil {
			return err
		}
		ended := make(chan error, 1)
		go func() {
			if v.tls {
				ended <- srv.ServeTLS(ln, "", "")
				return
			}
			ended <- srv.Serve(ln)
		}()
		defer func() {
			err = errors.Join(err, srv.Close())
			<-ended
		}()
		g.Addrs = append(g.Addrs, ln.Addr().String())
	}
	if err := json.NewEncoder(w).Encode(g); err != nil {
		return err
	}
	_, err = io.Copy(io.Discard, r)
	return err
}

// serve makes the server of a variant, and its listener.
func (v variant) serve(ctx context.Context, l *local, cert tls.Certificate) (*http.Server, net.Listener, error) {
	sizes, err := budget.Divide(memory, 2)
	if err != nil {
		return nil, nil, err
	}
	d := door.New(budget.NewShare("connections", sizes.Connections, 1))
	cfg := rest.Config{Store: l.st, Token: l.dir.Token}
	var lc net.ListenConfig
	if !v.noLimits {
		cfg.InFlight, lc.Control = d.Requests(), door.Control
	}
	build := rest.New
	if v.noToken {
		build = rest.WithoutToken
	}
	h, err := build(cfg)
	if err != nil {
		return nil, nil, err
	}
	ln, err := lc.Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		return nil, nil, err
	}
	srv := &http.Server{Handler: h, ReadHeaderTimeout: 10 * time.Second}
	if !v.noLimits {
		srv, ln = d.Server(h), d.Listen([]net.Listener{ln})[0]
	}
	if v.tls {
		srv.TLSConfig = &tls.Config{MinVersion: tls.VersionTLS12, NextProtos: []string{"http/1.1"}, Certificates: []tls.Certificate{cert}}
	}
	return srv, ln, nil
}

// selfSigned makes a certificate for loopback.
func selfSigned() (tls.Certificate, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return tls.Certificate{}, err
	}
	about := x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(24 * time.Hour), IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}}
	der, err := x509.CreateCertificate(rand.Reader, &about, &about, key.Public(), key)
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, err
}

// guardedProcess is [ServeGuarded] in a process of its own.
type guardedProcess struct {
	cmd   *exec.Cmd
	stdin io.Closer
	faces []face
	dir   string
}

// guardedFace is one variant.
type guardedFace struct {
	served
	variant
}

func (g *guardedFace) name() string { return g.variant.name }

func startGuarded(command []string, dir string) (*guardedProcess, error) {
	dir = filepath.Join(dir, "guarded")
	if err := os.Mkdir(dir, 0o700); err != nil {
		return nil, err
	}
	cmd := exec.Command(command[0], append(command[1:], dir)...)
	cmd.Stderr = os.Stderr
	stdin, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	p := &guardedProcess{cmd: cmd, stdin: stdin, dir: dir}
	var g guarded
	if err := json.NewDecoder(bufio.NewReader(stdout)).Decode(&g); err != nil {
		return nil, errors.Join(fmt.Errorf("bench: %s gave no addresses: %w", command[0], err), p.close())
	}
	cert, err := x509.ParseCertificate(g.Cert)
	if err != nil {
		return nil, errors.Join(err, p.close())
	}
	pool := x509.NewCertPool()
	pool.AddCert(cert)
	for i, v := range variants {
		f := &guardedFace{served{cmd: cmd, url: "http://" + g.Addrs[i], token: g.Token, http: newClient(1024)}, v}
		if v.tls {
			f.url = "https://" + g.Addrs[i]
			f.http.Transport.(*http.Transport).TLSClientConfig = &tls.Config{MinVersion: tls.VersionTLS12, RootCAs: pool}
		}
		p.faces = append(p.faces, f)
	}
	return p, nil
}

func (p *guardedProcess) close() error {
	for _, f := range p.faces {
		f.(*guardedFace).http.CloseIdleConnections()
	}
	return errors.Join(p.stdin.Close(), p.cmd.Wait())
}

type guardKey struct {
	face, bytes int
	op          string
}

// measureGuards puts and gets the same through every variant in turns, each round
// beginning with another one.
func measureGuards(ctx context.Context, o Options, p *guardedProcess) ([]Guard, error) {
	var rate, cpu series[guardKey]
	long := make([]byte, o.Stage)
	seed := uint64(1 << 34)
	for round := -1; round < 2*o.Rounds; round++ {
		o.Progress(fmt.Sprintf("guards: round %d of %d", round+1, 2*o.Rounds))
		rates, cpus := map[guardKey]float64{}, map[guardKey]float64{}
		do := func(k guardKey, n int, f func() error) error {
			took, used, err := during(ctx, p.faces[k.face], f)
			if err != nil {
				return fmt.Errorf("%s, %s of %s: %w", p.faces[k.face].name(), k.op, size(k.bytes), err)
			}
			rates[k], cpus[k] = float64(n)/seconds(took), seconds(used)/float64(n)
			return nil
		}
		for turn := range p.faces {
			i := (turn + round + 1) % len(p.faces)
			f := p.faces[i]
			for _, op := range []string{opPut, opGet} {
				if err := do(guardKey{i, o.SmallSize, op}, o.PutsMany, func() error {
					return many(ctx, o, func(n int, b []byte) error {
						key := fmt.Sprintf("guards/%d/%d/%d", round+1, i, n)
						if op == opGet {
							c := &counter{}
							return errors.Join(f.get(ctx, key, c), c.want(len(b)))
						}
						Random(b, seed+uint64(n))
						return f.put(ctx, key, b)
					})
				}); err != nil {
					return nil, err
				}
			}
			seed += uint64(o.PutsMany)
			Random(long, seed)
			if err := touch(p.dir, len(long)); err != nil {
				return nil, err
			}
			key := fmt.Sprintf("guards/%d/%d/long", round+1, i)
			if err := do(guardKey{i, len(long), opPut}, 1, func() error { return f.put(ctx, key, long) }); err != nil {
				return nil, err
			}
			if err := do(guardKey{i, len(long), opGet}, 1, func() error {
				c := &counter{}
				return errors.Join(f.get(ctx, key, c), c.want(len(long)))
			}); err != nil {
				return nil, err
			}
			if err := forget(p.dir); err != nil {
				return nil, err
			}
		}
		for i := range p.faces {
			for _, bytes := range []int{o.SmallSize, len(long)} {
				for _, op := range []string{opPut, opGet} {
					if k, first := (guardKey{i, bytes, op}), (guardKey{0, bytes, op}); round >= 0 {
						rate.add(k, rates[k]/rates[first])
						cpu.add(k, cpus[k]/max(cpus[first], 1e-9))
					}
				}
			}
		}
	}
	var out []Guard
	for _, k := range rate.order {
		g := Guard{Variant: p.faces[k.face].name(), Op: k.op, Bytes: k.bytes, Clients: 1, Rate: rate.figure(k), CPU: cpu.figure(k)}
		if k.bytes == o.SmallSize {
			g.Clients = o.Clients
		}
		if k.face > 0 {
			out = append(out, g)
		}
	}
	return out, nil
}

// during is what f takes: time, and CPU time of the store's process.
func during(ctx context.Context, to face, f func() error) (took, used time.Duration, err error) {
	if ctx.Err() != nil {
		return 0, 0, context.Cause(ctx)
	}
	from, err := to.cpu()
	if err != nil {
		return 0, 0, err
	}
	start := time.Now()
	if err := f(); err != nil {
		return 0, 0, err
	}
	took = time.Since(start)
	now, err := to.cpu()
	return took, now - from, err
}
