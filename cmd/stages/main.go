// Command stages measures what puts and gets cost beside the sum of their stages,
// on the machine it runs on, and prints tables. `make bench` runs it;
// docs/performance.md explains what it prints.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"cairn/bench"
)

func main() {
	if len(os.Args) == 2 && os.Args[1] == sinkCommand {
		exit(bench.ServeSink(os.Stdin, os.Stdout))
	}
	if len(os.Args) == 3 && os.Args[1] == guardedCommand {
		exit(bench.ServeGuarded(os.Args[2], os.Stdin, os.Stdout))
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	exit(run(ctx))
}

const (
	// sinkCommand makes the process the bare HTTP server of the stages.
	sinkCommand = "serve-sink"
	// guardedCommand makes it the server of a store with more and fewer guards.
	guardedCommand = "serve-guarded"
)

func exit(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, "stages:", err)
		os.Exit(1)
	}
	os.Exit(0)
}

func run(ctx context.Context) error {
	var o bench.Options
	flag.StringVar(&o.Dir, "dir", ".", "`directory` on the disk to measure; a temporary directory is made in it and removed")
	flag.StringVar(&o.Cairn, "cairn", "bin/cairn", "the cairn `binary` that is served for REST; empty: REST is not measured")
	flag.StringVar(&o.Profile, "profile", "", "write CPU profiles of put and get to this `directory`")
	jsonFile := flag.String("json", "", "write the report as JSON to this `file`")
	quick := flag.Bool("quick", false, "a run of about 20 seconds")
	tiny := flag.Bool("tiny", false, "a run of a few seconds, to see that it works; its figures mean nothing")
	flag.Parse()
	if flag.NArg() > 0 {
		return fmt.Errorf("unexpected argument %q", flag.Arg(0))
	}
	if o.Cairn != "" {
		if _, err := os.Stat(o.Cairn); err != nil {
			return fmt.Errorf("%w; build it (`make build`) or name another with --cairn", err)
		}
	}
	self, err := os.Executable()
	if err != nil {
		return err
	}
	o.Sink = []string{self, sinkCommand}
	if o.Cairn != "" {
		o.Guarded = []string{self, guardedCommand}
	}
	o.Progress = func(s string) { fmt.Fprintln(os.Stderr, s) }
	switch {
	case *tiny:
		o = o.Tiny()
	case *quick:
		o = o.Quick()
	}
	rep, err := bench.Run(ctx, o)
	if err != nil {
		return err
	}
	if err := rep.Markdown(os.Stdout); err != nil {
		return err
	}
	if *jsonFile == "" {
		return nil
	}
	b, err := json.MarshalIndent(rep, "", "  ")
	if err != nil {
		return err
	}
	w, err := os.Create(*jsonFile)
	if err != nil {
		return err
	}
	_, err = w.Write(append(b, '\n'))
	return errors.Join(err, w.Close())
}
