package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"runtime/debug"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/dustin/go-humanize"
	"github.com/spf13/cobra"

	"cairn/api/door"
	"cairn/api/rest"
	"cairn/datadir"
	"cairn/id"
	"cairn/index"
	"cairn/index/kv"
	"cairn/keys"
	"cairn/node/vfs"
	"cairn/notice"
	"cairn/schedule"
	"cairn/store"
	"cairn/store/budget"
)

func newServe() *cobra.Command {
	cmd := &cobra.Command{
		Use: "serve", Short: "Serve the store in a data directory; begin one where there is none", Args: cobra.NoArgs,
		Long: `Serve the store in a data directory. In an empty one a new store begins: six node directories, a key file and
an admin token in the configuration directory ($XDG_CONFIG_HOME/cairn), a recovery code, and a first
bucket, main. The code is shown by every start until ` + "`cairn keys confirm-recovery`" + ` has been told it.

What --memory gives is divided in shares for packs, uploads, readers, the index and the rest; requests beyond them
wait in line, then get 503 with Retry-After. A store that survives two losses needs at least 128MiB. GET /metrics
shows each share.

The server reads everything by itself: every shard within --scrub-light-within, and within --scrub-deep-within it also
codes the parity again and opens every chunk; what is missing or damaged is made anew. It begins early enough for that,
in a window of --scrub-window if there are any; what windows missed is made up for outside of them once it is overdue by a
seventh. "cairn status" says how old the last such word is.

What is found wrong (damage, loss, a node that is gone, no more writes or room, a scrub that is overdue) goes to
--notify-command and --notify-url as well: at most a message a minute, tried again until it is delivered, without names of
buckets and objects.

With --tls-cert and --tls-key all is served over TLS (1.2 and later). The files are looked at every few seconds: a new
pair is served from then on, one that cannot be served leaves the pair before in its place and is told of in the log.

Beyond loopback the server listens only with TLS, or with --behind-proxy: then it speaks plain HTTP, and the word
says that nothing but a proxy that speaks TLS, or a port that is published on loopback, leads to it. Nothing that comes
from there is trusted for it: the token is asked for as ever, headers such as X-Forwarded-For are not looked at, the
Host header must be a name given with --host, and the routes without a token are not served, on loopback neither.

The first system's routes (POST /cargar, GET /descargar/NAME, DELETE /eliminar/NAME) ask for no token and are
therefore served on loopback only.`,
		Example: `  cairn serve --data /srv/cairn --listen localhost:5000
  cairn serve --data /srv/cairn --listen :5000 --tls-cert cert.pem --tls-key key.pem --host store.example
  cairn serve --data /srv/cairn --listen 10.0.0.5:5000 --behind-proxy --host store.example`,
		RunE: do(runServe),
	}
	f := cmd.Flags()
	f.String("data", "", "data directory (required)")
	f.String("listen", "localhost:5000", "address to listen on")
	f.Int("local-nodes", 6, "node directories of a new store")
	f.Int("losses", 0, "how many lost nodes a new store survives (default 2 with five or more nodes, else 1)")
	f.String("key-file", "", "key file (default CLUSTER.key in the configuration directory)")
	f.String("recovery-code-file", "", "file with the recovery code (- for standard input): opens a store whose key file is lost, and makes a new one")
	f.String("passphrase-file", "", "file with a passphrase that unlocks the store instead of the key file (see keys add-passphrase)")
	cmd.MarkFlagsMutuallyExclusive("passphrase-file", "recovery-code-file")
	f.String("memory", "512MiB", "memory to use, divided in shares; 128MiB or more")
	f.String("snapshot-every", "64MiB", "how much of the log (records, and 512 B for each pack of it) there is between two snapshots of the index; more when the index is large")
	f.String("scrub-light-within", schedule.FormatSpan(schedule.WithinLight), "read every shard by itself, so often that none was last read longer ago; 0: never by itself")
	f.String("scrub-deep-within", schedule.FormatSpan(schedule.WithinDeep), "verify everything by itself, likewise; 0: never by itself")
	f.String("scrub-window", "", `when that may run, such as "0 1 * * 1-5 for 5h; 0 0 * * 6 for 1d": five fields of a crontab, in the time zone of the server, and a length (default: any time)`)
	f.String("scrub-max", "32MiB", "read at most so many bytes per second for that; a quarter of it while clients are served")
	f.String("notify-command", "", "program, and its arguments with spaces between, that is told what is found wrong: JSON on its standard input; no shell")
	f.String("notify-url", "", "URL that is told what is found wrong: JSON in a POST")
	f.String("notify-secret-file", "", "file with what goes along to that URL, as Authorization: Bearer")
	f.StringSlice("host", nil, "other names under which clients reach this server; several share a comma")
	f.String("tls-cert", "", "file with the server's certificate and those that sign it (PEM): serve over TLS")
	f.String("tls-key", "", "file with the key of that certificate (PEM)")
	f.Bool("behind-proxy", false, "speak plain HTTP beyond loopback: a proxy that speaks TLS is all that reaches this address")
	f.Bool("new", false, "begin a new store although this directory is known to have held one")
	f.Bool("stale-reads", false, "answer reads without asking the nodes whether another gateway has taken over")
	f.Duration("drain", 7*time.Second, "how long requests that run may go on after a signal to stop")
	f.Bool("log-json", false, "write the log as JSON")
	f.Bool("json", false, "print what is printed as JSON, an object a line")
	settings(f, serveSection, "data", "listen", "local-nodes", "losses", "key-file", "passphrase-file", "memory", "snapshot-every", "scrub-light-within", "scrub-deep-within", "scrub-window", "scrub-max",
		"notify-command", "notify-url", "notify-secret-file", "host",
		"tls-cert", "tls-key", "behind-proxy", "stale-reads", "drain", "log-json")
	_ = cmd.MarkFlagRequired("data")
	return cmd
}

func runServe(cmd *cobra.Command, _ []string) error {
	ctx := cmd.Context()
	f := cmd.Flags()
	memoryText, _ := f.GetString("memory")
	memory, err := humanize.ParseBytes(memoryText)
	if err != nil || memory > 1<<42 {
		return &exitError{exitUsage, fmt.Errorf("--memory %q is not a size, such as 512MiB", memoryText)}
	}
	logger := slog.New(slog.NewTextHandler(cmd.ErrOrStderr(), nil))
	if j, _ := f.GetBool("log-json"); j {
		logger = slog.New(slog.NewJSONHandler(cmd.ErrOrStderr(), nil))
	}
	if !vfs.Syncs {
		logger.Error("this program was built without syncs, for tests alone: it loses data when the power goes")
	}
	config, err := configDir()
	if err != nil {
		return err
	}
	o := datadir.Options{Config: config, Create: true, Serve: true, Log: logger}
	o.Dir, _ = f.GetString("data")
	o.KeyFile, _ = f.GetString("key-file")
	o.LocalNodes, _ = f.GetInt("local-nodes")
	o.Losses, _ = f.GetInt("losses")
	o.New, _ = f.GetBool("new")
	for _, name := range []string{"losses", "local-nodes"} {
		if n, _ := f.GetInt(name); n < 1 && f.Changed(name) {
			return &exitError{exitUsage, fmt.Errorf("--%s is at least 1", name)}
		}
	}
	sizes, err := budget.Divide(int64(memory), o.StoreLosses())
	if err != nil {
		return &exitError{exitUsage, fmt.Errorf("--memory %s is too little: %w", memoryText, err)}
	}
	debug.SetMemoryLimit(sizes.Total)
	listen, _ := f.GetString("listen")
	proxied, _ := f.GetBool("behind-proxy")
	cert, err := serverCertificate(cmd, proxied, logger)
	if err != nil {
		return &exitError{exitUsage, err}
	}
	listeners, loopback, err := listenAll(ctx, listen, cert != nil || proxied)
	if err != nil {
		return err
	}
	defer func() {
		for _, l := range listeners {
			l.Close()
		}
	}()
	plan, rate, err := scrubPlan(cmd)
	if err != nil {
		return &exitError{exitUsage, err}
	}
	tellPlan(plan, time.Now(), logger)
	notifier, err := newNotifier(cmd, logger)
	if err != nil {
		return &exitError{exitUsage, err}
	}
	if o.RecoveryCode, err = readCode(cmd); err != nil {
		return &exitError{code: exitUsage, err: err}
	}
	if name, _ := f.GetString("passphrase-file"); name != "" {
		text, err := readPassphrase(cmd, name)
		if err == nil {
			o.Unlock, err = keys.NewPassphrase(text)
		}
		if err != nil {
			return &exitError{exitUsage, err}
		}
	}
	dir, err := datadir.Open(ctx, o)
	if err != nil {
		return &exitError{exitNoReach, err}
	}
	defer dir.Close()
	stale, _ := f.GetBool("stale-reads")
	everyText, _ := f.GetString("snapshot-every")
	every, err := humanize.ParseBytes(everyText)
	if err != nil || every < 64<<10 {
		return &exitError{exitUsage, fmt.Errorf("--snapshot-every %q is not a size of at least 64KiB", everyText)}
	}
	st, err := openStore(ctx, dir, engineOptions{sizes, every, stale, plan, rate}, logger)
	if err != nil {
		return &exitError{exitNoReach, err}
	}
	if fresh := dir.Fresh; fresh != nil {
		if err := dir.MarkFormed(); err != nil {
			st.Close(context.Background())
			return err
		}
		if err := tellFresh(cmd, dir.Cluster, fresh); err != nil {
			return errors.Join(err, st.Close(context.Background()))
		}
	} else if code, err := dir.PendingRecovery(); err != nil {
		logger.Warn("whether the recovery code is confirmed is not known", "err", err)
	} else if code != "" {
		if err := tell(cmd, map[string]any{"event": "recovery code", "store": dir.Cluster, "recovery_code": code},
			"\nThe recovery code is not confirmed yet.\n"+showCode(code)); err != nil {
			logger.Warn("standard output cannot be written", "err", err)
		}
	}
	defer dir.Watch()()
	watching, stopWatching := context.WithCancel(ctx)
	watched := make(chan struct{})
	go func() {
		defer close(watched)
		w := &nodeWatch{log: logger, told: map[string]string{}, up: map[string]time.Time{}}
		w.run(watching, st.NodeStates)
	}()
	certWatched := make(chan struct{})
	go func() {
		defer close(certWatched)
		if cert != nil {
			cert.watch(watching)
		}
	}()
	defer func() {
		stopWatching()
		<-watched
		<-certWatched
	}()
	notified := make(chan struct{})
	go func() { // ends when the store has closed
		defer close(notified)
		notifier.Run(context.Background(), dir.Cluster.String(), st.Listen, st.NodeStates, st.GivenUp(), noticeGrace)
	}()
	connections := budget.NewShare("connections", sizes.Connections, len(listeners))
	entrance := door.New(connections)
	var changing sync.Mutex // the node set
	hosts, _ := f.GetStringSlice("host")
	if host, _, err := net.SplitHostPort(listen); err == nil && host != "" && !net.ParseIP(host).IsUnspecified() {
		hosts = append(hosts, host)
	}
	stopping := make(chan struct{})
	handler, err := rest.New(rest.Config{Store: st, Token: dir.Token, Hosts: hosts, First: loopback && !proxied, Version: version, Log: logger,
		InFlight: entrance.Requests(), Listeners: entrance.Streams(), Stopping: stopping, Notices: notifier.Counts,
		Memory: func() []budget.State {
			// The index takes its share as a whole when it is opened.
			index := budget.State{Name: "index", Limit: sizes.Index, Used: sizes.Index}
			return append(st.Memory(), index, connections.State())
		},
		Replace: func(ctx context.Context, name string) (rest.Replaced, error) {
			changing.Lock()
			defer changing.Unlock()
			return replaceNode(ctx, st, dir, name, logger)
		},
		Add: func(ctx context.Context, n rest.NewNode) (rest.Added, error) {
			changing.Lock()
			defer changing.Unlock()
			return addNode(ctx, st, dir, n)
		},
		Remove: func(ctx context.Context, name string) (rest.Removed, error) {
			changing.Lock()
			defer changing.Unlock()
			return removeNode(ctx, st, dir, name, logger)
		}})
	if err != nil {
		err = errors.Join(err, st.Close(context.Background()))
		<-notified
		return err
	}
	srv := entrance.Server(handler)
	srv.ErrorLog = log.New(quiet{logger}, "", 0)
	srv.RegisterOnShutdown(func() { close(stopping) })
	addrs := make([]net.Addr, len(listeners))
	for i, l := range listeners {
		addrs[i] = l.Addr()
	}
	if err := dir.RememberServer(addrs...); err != nil {
		logger.Warn("commands on this machine may need --token-file", "err", err)
	}
	ended := make(chan error, len(listeners))
	scheme := "http://"
	if cert != nil {
		scheme, srv.TLSConfig = "https://", cert.config()
		srv.Protocols = new(http.Protocols)
		srv.Protocols.SetHTTP1(true)
	}
	for _, l := range entrance.Listen(listeners) {
		if err := tell(cmd, map[string]any{"event": "serving", "store": dir.Cluster, "url": scheme + l.Addr().String()},
			fmt.Sprintf("serving %s at %s%s\n", dir.Cluster, scheme, l.Addr())); err != nil {
			logger.Warn("standard output cannot be written", "err", err)
		}
		go func() {
			if cert != nil {
				ended <- srv.ServeTLS(l, "", "")
				return
			}
			ended <- srv.Serve(l)
		}()
	}
	var lost error
	running := len(listeners)
	select {
	case <-ctx.Done():
		logger.Info("stopping: no new work is taken, what runs is finished; a second signal ends it at once")
	case <-st.Failed():
		logger.Error("stopping: the next start applies what the log holds", "err", st.Failure())
	case lost = <-ended:
		running--
		lost = fmt.Errorf("a listener ended: %w", lost)
		logger.Error("stopping", "err", lost)
	}
	drain, _ := f.GetDuration("drain")
	limit, cancel := context.WithTimeout(context.Background(), drain)
	defer cancel()
	if err := srv.Shutdown(limit); err != nil {
		logger.Warn("requests that still ran were cut off")
		srv.Close()
	}
	for range running {
		if err := <-ended; !errors.Is(err, http.ErrServerClosed) {
			logger.Warn("a listener ended", "err", err)
		}
	}
	// What requests left behind is small: the packs that are open.
	limit, cancel = context.WithTimeout(context.Background(), 2*time.Second+drain/4)
	defer cancel()
	err = errors.Join(lost, st.Close(limit))
	<-notified
	if failure := st.Failure(); failure != nil {
		if badIndex(failure) {
			if aside, aerr := dir.SetIndexAside(); aerr == nil {
				logger.Error("the index is damaged: the next start makes it anew from the log", "kept as", filepath.Base(aside))
			}
		}
		return errors.Join(failure, err)
	}
	return errors.Join(err, dir.Close())
}

// replaceNode puts a new node in the place of a lost one. Nothing is moved before
// it is known that the store would take it, and it is put back if the store does
// not after all.
func replaceNode(ctx context.Context, st *store.Store, dir *datadir.Dir, name string, logger *slog.Logger) (rest.Replaced, error) {
	// A directory that went while nobody wrote is noticed when its node is asked.
	status, err := st.Status(ctx)
	if err != nil {
		return rest.Replaced{}, err
	}
	if err := st.Replaceable(name); err != nil {
		return rest.Replaced{}, err
	}
	if !status.Writable {
		return rest.Replaced{}, fmt.Errorf("%w: a replacement is a write, and none are taken: %s", store.ErrUnavailable, status.Reason)
	}
	i := slices.IndexFunc(status.Nodes, func(n store.NodeStatus) bool { return n.Name == name })
	if i < 0 {
		return rest.Replaced{}, fmt.Errorf("%w: the node set has changed", store.ErrRetry)
	}
	r, err := dir.Replace(name, status.Nodes[i].ID)
	if errors.Is(err, datadir.ErrBack) {
		return rest.Replaced{}, fmt.Errorf("%w: %s is back; restart the server instead of replacing it", store.ErrPrecondition, name)
	}
	if errors.Is(err, datadir.ErrInUse) {
		return rest.Replaced{}, fmt.Errorf("%w: the directory of %s holds a node that is in use", store.ErrPrecondition, name)
	}
	if err != nil {
		return rest.Replaced{}, err
	}
	if err := st.ReplaceNode(ctx, name, r.Node); err != nil {
		if errors.Is(err, store.ErrUnknown) { // it may be the member already
			logger.Error("whether a node was replaced is not known", "node", name, "kept", r.Kept, "err", err)
			return rest.Replaced{}, err
		}
		return rest.Replaced{}, errors.Join(err, r.Undo())
	}
	if r.Kept != "" {
		logger.Warn("what was in the directory of a replaced node is kept", "node", name, "directory", r.Kept)
	}
	return rest.Replaced{Node: name, ID: r.Node.ID().String(), Kept: r.Kept}, nil
}

// addNode makes a directory a node and a member. What is refused is refused before
// anything is made, as far as it is known by then.
func addNode(ctx context.Context, st *store.Store, dir *datadir.Dir, n rest.NewNode) (rest.Added, error) {
	node := store.NewNode{Name: n.Name, Weight: n.Weight, Labels: n.Labels}
	if err := st.Addable(&node, id.Node{}); err != nil {
		return rest.Added{}, err
	}
	made, err := dir.AddNode(n.Name, n.Path)
	if err != nil {
		return rest.Added{}, err
	}
	if err := st.AddNode(ctx, node, made); err != nil {
		return rest.Added{}, err
	}
	return rest.Added{Node: n.Name, ID: made.ID().String()}, nil
}

// removeNode takes a drained node out of the store, and its directory out of the way.
func removeNode(ctx context.Context, st *store.Store, dir *datadir.Dir, name string, logger *slog.Logger) (rest.Removed, error) {
	if err := st.RemoveNode(ctx, name); err != nil {
		return rest.Removed{}, err
	}
	kept, err := dir.Retire(name)
	if err != nil { // it is no member, wherever it is
		logger.Warn("the directory of a node that was removed is left where it was", "node", name, "directory", kept, "err", err)
	}
	return rest.Removed{Node: name, Kept: kept}, nil
}

// engineOptions are what the flags say about the engine.
type engineOptions struct {
	memory        budget.Sizes
	snapshotEvery uint64
	stale         bool
	scrub         schedule.Plan
	scrubRate     uint64
}

// noticeGrace is how long a stop waits for the last notices.
const noticeGrace = 3 * time.Second

// newNotifier is who the flags say is told.
func newNotifier(cmd *cobra.Command, logger *slog.Logger) (*notice.Notifier, error) {
	f := cmd.Flags()
	cfg := notice.Config{Log: logger}
	text, _ := f.GetString("notify-command")
	cfg.Command = strings.Fields(text)
	cfg.URL, _ = f.GetString("notify-url")
	cfg.SecretFile, _ = f.GetString("notify-secret-file")
	return notice.New(cfg)
}

// scrubPlan is what the flags say of scrubs that begin by themselves.
func scrubPlan(cmd *cobra.Command) (p schedule.Plan, rate uint64, err error) {
	f := cmd.Flags()
	for deep, to := range []*time.Duration{&p.Light, &p.Deep} {
		name := "scrub-" + depthName(deep == 1) + "-within"
		text, _ := f.GetString(name)
		if *to, err = schedule.ParseSpan(text); err != nil {
			return p, 0, fmt.Errorf("--%s: %w", name, err)
		}
		switch {
		case *to == 0:
			*to = schedule.Off
		case *to < schedule.Least:
			return p, 0, fmt.Errorf("--%s %s: at least %s, or 0 for never", name, text, schedule.FormatSpan(schedule.Least))
		}
	}
	text, _ := f.GetString("scrub-window")
	if p.Windows, err = schedule.ParseWindows(text); err != nil {
		return p, 0, fmt.Errorf("--scrub-window: %w", err)
	}
	text, _ = f.GetString("scrub-max")
	if rate, err = humanize.ParseBytes(text); err != nil || rate < minScrubRate {
		return p, 0, fmt.Errorf("--scrub-max %s is no number of bytes of at least 64KiB: 32MiB, 100MB", text)
	}
	return p, rate, nil
}

// minScrubRate is what no disk is too slow for.
const minScrubRate = 64 << 10

// tellPlan warns of a plan that leaves something unread.
func tellPlan(p schedule.Plan, now time.Time, logger *slog.Logger) {
	gap := p.Windows.Gap(now)
	for _, x := range []struct {
		depth  string
		within time.Duration
	}{{"light", p.Light}, {"deep", p.Deep}} {
		if x.within < 0 {
			logger.Warn("no "+x.depth+" scrub begins by itself", "why", "--scrub-"+x.depth+"-within 0")
		} else if gap > x.within {
			logger.Warn("windows come less often than a "+x.depth+" scrub is wanted: it runs outside of them when it is overdue", "windows apart", schedule.FormatSpan(gap), "limit", schedule.FormatSpan(x.within))
		}
	}
}

// openStore opens the store of a data directory. An index that is damaged is set
// aside and made anew from the log; one that does not agree with the log is not
// touched: it may be the only record of something.
func openStore(ctx context.Context, dir *datadir.Dir, o engineOptions, logger *slog.Logger) (*store.Store, error) {
	for try := 0; ; try++ {
		st, err := tryOpenStore(ctx, dir, o, logger)
		if err == nil || try > 0 || !badIndex(err) {
			return st, err
		}
		aside, aerr := dir.SetIndexAside()
		if aerr != nil {
			return nil, errors.Join(err, aerr)
		}
		logger.Error("the index is damaged and is made anew from the log", "err", err, "kept as", filepath.Base(aside))
	}
}

// badIndex reports whether an error says that the index is not what the log makes
// of it: rows are damaged, or a record found something else than it names.
// [store.ErrDivergent] is not among them.
func badIndex(err error) bool {
	return errors.Is(err, kv.ErrDamaged) || errors.Is(err, index.ErrDivergent)
}

func tryOpenStore(ctx context.Context, dir *datadir.Dir, o engineOptions, logger *slog.Logger) (*store.Store, error) {
	engine, err := dir.OpenIndex(o.memory.MemTable, o.memory.Cache)
	if err != nil {
		return nil, err
	}
	cfg := store.Config{Cluster: dir.Cluster, Nodes: dir.Stores(), Absent: dir.Absent, Keyring: dir.Keyring, Engine: engine,
		Memory: o.memory.Total, SnapshotEvery: o.snapshotEvery, Scrub: o.scrub, ScrubRate: o.scrubRate, Log: logger, StaleReads: o.stale, Room: dir.Room, Footprint: dir.Footprint, Survives: dir.NoteLosses}
	if dir.Fresh != nil {
		cfg.Genesis = dir.Fresh.Genesis
	}
	return store.Open(ctx, cfg)
}

// tell prints a line, or with --json an object.
func tell(cmd *cobra.Command, object map[string]any, line string) error {
	if jsonWanted(cmd) {
		return json.NewEncoder(cmd.OutOrStdout()).Encode(object)
	}
	_, err := io.WriteString(cmd.OutOrStdout(), line)
	return err
}

// showCode is what a start says until the recovery code is confirmed.
func showCode(code string) string {
	return fmt.Sprintf("  recovery code, shown until it is confirmed (cairn keys confirm-recovery --data DIR); write it down, away from this machine:\n\n    %s\n\n", code)
}

// tellFresh prints what a new store's owner must know.
func tellFresh(cmd *cobra.Command, cluster id.Cluster, fresh *datadir.Fresh) error {
	w := &strings.Builder{}
	fmt.Fprintf(w, "\nA new store has begun.\n  key file     %s  (back it up: without it, or the code below, nothing can be read)\n  admin token  %s\n", fresh.KeyFile, fresh.TokenFile)
	if fresh.RecoveryCode != "" {
		w.WriteString(showCode(fresh.RecoveryCode))
	}
	object := map[string]any{"event": "new store", "store": cluster, "key_file": fresh.KeyFile, "token_file": fresh.TokenFile}
	if fresh.RecoveryCode != "" {
		object["recovery_code"] = fresh.RecoveryCode
	}
	return tell(cmd, object, w.String())
}

// readCode reads the recovery code from the file that was named. It never comes
// from the command line, which every process on the machine can see.
func readCode(cmd *cobra.Command) (string, error) {
	name, _ := cmd.Flags().GetString("recovery-code-file")
	if name == "" {
		return "", nil
	}
	in := cmd.InOrStdin()
	if name != "-" {
		f, err := os.Open(name)
		if err != nil {
			return "", fmt.Errorf("read the recovery code: %w", err)
		}
		defer f.Close()
		in = f
	}
	b, err := io.ReadAll(io.LimitReader(in, 1024))
	if err != nil {
		return "", fmt.Errorf("read the recovery code: %w", err)
	}
	return strings.TrimSpace(string(b)), nil
}

// serverCertificate is the certificate that the flags name; nil: none.
func serverCertificate(cmd *cobra.Command, proxied bool, logger *slog.Logger) (*certificate, error) {
	certFile, _ := cmd.Flags().GetString("tls-cert")
	keyFile, _ := cmd.Flags().GetString("tls-key")
	switch {
	case certFile == "" && keyFile == "":
		return nil, nil
	case certFile == "" || keyFile == "":
		return nil, errors.New("--tls-cert and --tls-key go together")
	case proxied:
		return nil, errors.New("--behind-proxy is for plain HTTP; with --tls-cert it is not needed")
	}
	return loadCertificate(certFile, keyFile, logger)
}

// listenAll opens the listeners. Beyond loopback there must be something that
// guards them.
func listenAll(ctx context.Context, addr string, guarded bool) (ls []net.Listener, loopback bool, err error) {
	host, port, err := net.SplitHostPort(addr)
	if err != nil {
		return nil, false, &exitError{exitUsage, fmt.Errorf("--listen %q is not HOST:PORT", addr)}
	}
	hosts := []string{host}
	if host == "localhost" {
		hosts = []string{"127.0.0.1", "::1"}
	}
	loopback = true
	for _, h := range hosts {
		ip := net.ParseIP(h)
		if ip == nil || !ip.IsLoopback() {
			loopback = false
		}
	}
	if !loopback && !guarded {
		return nil, false, &exitError{exitUsage, fmt.Errorf("--listen %s is reachable from other machines, and tokens and data would travel in the clear; "+
			"listen on localhost, give --tls-cert and --tls-key, or say --behind-proxy where only a proxy that speaks TLS leads here", addr)}
	}
	lc := net.ListenConfig{Control: door.Control}
	for i, h := range hosts {
		l, err := lc.Listen(ctx, "tcp", net.JoinHostPort(h, port))
		if err != nil {
			if i > 0 {
				break // this machine has no IPv6
			}
			return nil, false, &exitError{exitNoReach, fmt.Errorf("listen on %s: %w", addr, err)}
		}
		ls = append(ls, l)
		if port == "0" { // one port for all of them
			_, port, _ = net.SplitHostPort(l.Addr().String())
		}
	}
	return ls, loopback, nil
}

// quiet takes net/http's own messages; they may hold what clients sent, so only
// their existence is logged.
type quiet struct{ log *slog.Logger }

func (q quiet) Write(p []byte) (int, error) {
	q.log.Debug("a connection ended with an error")
	return len(p), nil
}

func newVerify() *cobra.Command {
	cmd := offline(&cobra.Command{
		Annotations: map[string]string{usageExit: "3"},
		Use:         "verify", Short: "Read everything in a data directory and prove it sound", Args: cobra.NoArgs,
		Long: `Read every shard of every pack, compare digests, code the parity again, open every chunk and compute its ID,
and walk the manifest of every object in the log. The index in DIR is not looked at. Nothing is changed.

Exit codes: 0 sound, 1 damage that can be repaired, 2 data lost, 3 could not run. Node directories that are not
there are damage (1). When more are away than the store survives, nothing can be said (3): bring them back and run
it again. What is lost (2) may be so only until other directories are back.`,
		Example: "  cairn verify --data /srv/cairn",
		RunE:    do(runVerify),
	})
	cmd.Flags().String("scratch", "", "directory for the index that the log is replayed into; it is sealed, and removed in the end (default: the data directory)")
	return cmd
}

func runVerify(cmd *cobra.Command, _ []string) error {
	const cannotRun = 3
	dir, logger, err := openOffline(cmd)
	if err != nil {
		return &exitError{cannotRun, err}
	}
	defer dir.Close()
	scratch, _ := cmd.Flags().GetString("scratch")
	engine, remove, err := dir.ScratchIndex(scratch)
	if err != nil {
		return &exitError{cannotRun, err}
	}
	defer remove()
	report, err := store.Verify(cmd.Context(), store.Config{Cluster: dir.Cluster, Nodes: dir.Stores(), Absent: dir.Absent, Keyring: dir.Keyring, Engine: engine, Log: logger})
	if err != nil {
		if errors.Is(err, store.ErrDamaged) && !errors.Is(err, id.ErrNewer) {
			return &exitError{2, err} // not even the log can be read
		}
		if errors.Is(err, store.ErrUnavailable) {
			err = fmt.Errorf("%w; that is no proof of a loss: bring the node directories back and run it again", err)
		}
		return &exitError{cannotRun, err}
	}
	if jsonWanted(cmd) {
		if err := printJSON(cmd, report); err != nil {
			return err
		}
	} else {
		printReport(cmd, report)
	}
	switch {
	case report.Lost > 0:
		return &exitError{code: 2}
	case report.Damaged > 0:
		return &exitError{code: 1}
	}
	return nil
}

func printReport(cmd *cobra.Command, r store.Report) {
	w := cmd.OutOrStdout()
	fmt.Fprintf(w, "packs %d, shards %d, chunks %d, objects %d; %s read\n", r.Packs, r.Shards, r.Chunks, r.Objects, humanize.IBytes(r.Bytes))
	for _, f := range r.Findings {
		fmt.Fprintf(w, "%s: %s\n", f.Kind, printable(f.Detail))
	}
	if r.Dead > 0 {
		fmt.Fprintf(w, "%s of them not read, which nothing lies in any more\n", plural(r.Dead, "pack"))
	}
	if o := r.Open; o != nil {
		fmt.Fprintf(w, "the newest log pack, %v of sequence %d, has %d of its %d shards: it was on its way when the process ended, or lost some since; the next start writes it again\n", o.Pack, o.Seq, o.Shards, o.Of)
	}
	switch {
	case r.Lost > 0:
		fmt.Fprintf(w, "LOST: %d; damaged and repairable: %d\n", r.Lost, r.Damaged)
	case r.Damaged > 0:
		fmt.Fprintf(w, "damaged, nothing lost: %d\n", r.Damaged)
	case r.Open != nil:
		fmt.Fprintln(w, "sound, but for that: all else was read and is what was written")
	default:
		fmt.Fprintln(w, "sound: everything was read and is what was written")
	}
}
