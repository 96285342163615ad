package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"mime"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"github.com/spf13/cobra"
	"github.com/vbauerster/mpb/v8"
	"github.com/vbauerster/mpb/v8/decor"
	"golang.org/x/term"
)

// progress shows bars on a terminal, and nothing elsewhere.
type progress struct {
	p   *mpb.Progress
	err io.Writer // where else lines go
}

func newProgress(cmd *cobra.Command, quiet bool) *progress {
	if f, ok := cmd.ErrOrStderr().(*os.File); ok && !quiet && term.IsTerminal(int(f.Fd())) {
		return &progress{p: mpb.New(mpb.WithOutput(f), mpb.WithWidth(40))}
	}
	return &progress{err: cmd.ErrOrStderr()}
}

// say prints a line, above the bars if there are any.
func (p *progress) say(format string, args ...any) {
	w := p.err
	if p.p != nil {
		w = p.p
	}
	fmt.Fprintf(w, format+"\n", args...)
}

func (p *progress) wait() {
	if p.p != nil {
		p.p.Wait()
	}
}

// bar is one transfer's; a nil mpb bar shows nothing.
type bar struct {
	b    *mpb.Bar
	rest *atomic.Int64 // nanoseconds that it still takes, as it was told; nil: it is not told
}

// begin adds a bar; size -1 is not known.
func (p *progress) begin(name string, size int64) *bar {
	if p.p == nil {
		return &bar{}
	}
	name = printable(name)
	if r := []rune(name); len(r) > 32 {
		name = "..." + string(r[len(r)-29:])
	}
	return &bar{b: p.p.AddBar(max(size, 0),
		mpb.BarRemoveOnComplete(),
		mpb.PrependDecorators(decor.Name(name, decor.WCSyncSpaceR), decor.CountersKibiByte("% .1f / % .1f", decor.WCSyncSpace)),
		mpb.AppendDecorators(decor.AverageSpeed(decor.SizeB1024(0), "% .1f", decor.WCSyncSpace), decor.AverageETA(decor.ET_STYLE_GO, decor.WCSyncSpace)))}
}

// count adds a bar for what has that unit; how much there is is told later.
func (p *progress) count(name, unit string) *bar {
	if p.p == nil {
		return &bar{}
	}
	counters := decor.CountersNoUnit("%d / %d "+unit, decor.WCSyncSpace)
	if unit == "bytes" {
		counters = decor.CountersKibiByte("% .1f / % .1f", decor.WCSyncSpace)
	}
	b := &bar{rest: new(atomic.Int64)}
	b.b = p.p.AddBar(0, mpb.BarRemoveOnComplete(), mpb.PrependDecorators(decor.Name(printable(name), decor.WCSyncSpaceR), counters),
		mpb.AppendDecorators(decor.Any(func(decor.Statistics) string {
			if d := time.Duration(b.rest.Load()); d > 0 {
				return d.String()
			}
			return ""
		}, decor.WCSyncSpace)))
	return b
}

// left says how long a transfer still takes; 0: that is not known.
func (b *bar) left(d time.Duration) {
	if b.rest != nil {
		b.rest.Store(int64(d))
	}
}

// of says how much there is; 0: that is not known.
func (b *bar) of(n int64) {
	if b.b != nil && n > 0 {
		b.b.SetTotal(n, false)
	}
}

func (b *bar) reader(r io.Reader) io.Reader {
	if b.b == nil {
		return r
	}
	if p, err := b.b.ProxyReader(r); err == nil {
		return p
	}
	return r
}

// at says how far a transfer is.
func (b *bar) at(n int64) {
	if b.b != nil {
		b.b.SetCurrent(n)
	}
}

func (b *bar) end(err error) {
	switch {
	case b.b == nil:
	case err != nil:
		b.b.Abort(true)
	default:
		b.b.SetTotal(-1, true)
	}
}

// each runs fn over the items, a bounded number at a time, and returns what was
// done, in order; what was not is noted in b.
func each[T, R any](ctx context.Context, parallel int, items []T, b *batch, name func(T) string, fn func(context.Context, T) (R, error)) []R {
	var (
		mu    sync.Mutex
		next  int
		ended bool
		out   = make([]R, len(items))
		ok    = make([]bool, len(items))
		wg    sync.WaitGroup
	)
	for range min(parallel, len(items)) {
		wg.Add(1)
		go func() {
			defer wg.Done()
			for {
				mu.Lock()
				i := next
				if ended || i >= len(items) {
					mu.Unlock()
					return
				}
				next++
				mu.Unlock()
				r, err := fn(ctx, items[i])
				mu.Lock()
				if !b.note(name(items[i]), err) {
					ended = true
				}
				if err == nil {
					out[i], ok[i] = r, true
				}
				mu.Unlock()
			}
		}()
	}
	wg.Wait()
	b.left += len(items) - next
	done := make([]R, 0, len(items))
	for i, r := range out {
		if ok[i] {
			done = append(done, r)
		}
	}
	return done
}

func decode(r io.Reader, v any) error {
	if err := json.NewDecoder(r).Decode(v); err != nil {
		return fmt.Errorf("read the server's answer: %w", err)
	}
	return nil
}

// typeOf guesses a content type from a name.
func typeOf(key string) string {
	if t := mime.TypeByExtension(filepath.Ext(key)); t != "" {
		return t
	}
	return "application/octet-stream"
}
