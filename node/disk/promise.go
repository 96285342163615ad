package disk

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"syscall"

	"cairn/id"
	"cairn/node"
	"cairn/node/vfs"
)

// How a promise and the puts that are on their way agree (H71).
//
// A put is judged three times: when it comes, when the appender takes it, and
// after the sync in commit, which under n.mu compares its authority with
// n.promised and enters the shard into the table. Promise first makes the new
// authority durable and then, under n.mu, sets n.promised. So for each put under
// an older one there are two orders: commit first, and then the shard is durable
// and in the table before Promise returns, so that a list made afterwards shows
// it; or n.promised first, and then commit refuses it. No put waits for a
// promise and no promise for a put.
//
// A delete or a small file cannot be refused once it is durable, so Promise
// waits for those that were let in before n.promised was set.

// obeys says whether by may still change something. The caller holds n.mu.
func (n *Node) obeys(by node.Authority) error {
	p := n.promised
	switch {
	case by == p:
		return nil
	case by.Epoch > p.Epoch:
		return nil // authorise makes the promise before anything is written
	}
	return fmt.Errorf("%w: epoch %d to writer %v, asked by epoch %d, writer %v", node.ErrFenced, p.Epoch, p.Writer, by.Epoch, by.Writer)
}

// authorise lets a request in: an older authority is refused, a newer one is
// promised first.
func (n *Node) authorise(ctx context.Context, by node.Authority) error {
	n.mu.RLock()
	p := n.promised
	err := n.obeys(by)
	n.mu.RUnlock()
	if err != nil || by == p {
		return err
	}
	return n.promise(ctx, by)
}

// Promise makes durable that nothing older will be obeyed; see node.Store.
func (n *Node) Promise(ctx context.Context, by node.Authority) error {
	if err := n.enter(ctx); err != nil {
		return n.fail("promise", node.Key{}, err)
	}
	defer n.ops.Done()
	return n.fail("promise", node.Key{}, n.promise(ctx, by))
}

func (n *Node) promise(ctx context.Context, by node.Authority) error {
	if err := acquire(ctx, n.stateSem); err != nil {
		return err
	}
	n.mu.RLock()
	p := n.promised
	err := n.obeys(by)
	n.mu.RUnlock()
	if err == nil && by != p {
		st := n.st
		st.promised = by
		if err = n.saveState(st); err == nil {
			n.mu.Lock()
			n.promised = by
			n.mu.Unlock()
		}
	}
	<-n.stateSem
	if err != nil {
		return err
	}
	return n.settle(ctx)
}

// settle waits for the orders that are on their way.
func (n *Node) settle(ctx context.Context) error {
	n.mu.RLock()
	var all []*order
	for o := range n.orders {
		if o.by != n.promised {
			all = append(all, o)
		}
	}
	n.mu.RUnlock()
	for _, o := range all {
		select {
		case <-o.done:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return nil
}

// begin lets an order in that a later promise has to wait for.
func (n *Node) begin(by node.Authority) (*order, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if err := n.obeys(by); err != nil {
		return nil, err
	}
	o := &order{by: by, done: make(chan struct{})}
	n.orders[o] = struct{}{}
	return o, nil
}

func (n *Node) end(o *order) {
	n.mu.Lock()
	delete(n.orders, o)
	n.mu.Unlock()
	close(o.done)
}

// Promised is the newest durable promise; see node.Store.
func (n *Node) Promised(ctx context.Context) (node.Authority, error) {
	if err := n.enter(ctx); err != nil {
		return node.Authority{}, n.fail("promised", node.Key{}, err)
	}
	defer n.ops.Done()
	n.mu.RLock()
	defer n.mu.RUnlock()
	return n.promised, nil
}

// saveState makes st durable; the caller holds stateSem.
func (n *Node) saveState(st state) error {
	if err := n.still(); err != nil { // never write into a stranger's directory
		return err
	}
	if err := vfs.WriteFile(n.fs, "state", sealSmall(stateFile, n.id, st.encode())); err != nil {
		return asked(err)
	}
	if err := n.still(); err != nil {
		return err
	}
	n.st = st
	return nil
}

// WriteFile replaces a small file; see node.Store.
func (n *Node) WriteFile(ctx context.Context, by node.Authority, f node.File, b []byte) error {
	return n.fail("write "+string(f), node.Key{}, n.writeFile(ctx, by, f, b))
}

func (n *Node) writeFile(ctx context.Context, by node.Authority, f node.File, b []byte) error {
	kind, err := fileKind(f)
	if err != nil {
		return err
	}
	if len(b) > maxSmallFile {
		return fmt.Errorf("%d bytes, at most %d", len(b), maxSmallFile)
	}
	if err := n.enter(ctx); err != nil {
		return err
	}
	defer n.ops.Done()
	if err := n.authorise(ctx, by); err != nil {
		return err
	}
	if err := acquire(ctx, n.fileSem); err != nil {
		return err
	}
	defer func() { <-n.fileSem }()
	o, err := n.begin(by)
	if err != nil {
		return err
	}
	defer n.end(o)
	if err := n.still(); err != nil {
		return err
	}
	if err := vfs.WriteFile(n.fs, string(f), sealSmall(kind, n.id, b)); err != nil {
		return asked(err)
	}
	return n.still()
}

// ReadFile reads a small file; see node.Store.
func (n *Node) ReadFile(ctx context.Context, f node.File) ([]byte, error) {
	b, err := n.readFile(ctx, f)
	return b, n.fail("read "+string(f), node.Key{}, err)
}

func (n *Node) readFile(ctx context.Context, f node.File) ([]byte, error) {
	kind, err := fileKind(f)
	if err != nil {
		return nil, err
	}
	if err := n.enter(ctx); err != nil {
		return nil, err
	}
	defer n.ops.Done()
	b, err := readSmall(n.fs, string(f), kind, n.id, maxSmallFile)
	if errors.Is(err, fs.ErrNotExist) {
		if err := n.still(); err != nil {
			return nil, err // nothing is there any more: that is not "never written"
		}
		return nil, node.ErrNotFound
	}
	return b, err
}

func fileKind(f node.File) (uint16, error) {
	switch f {
	case node.ClusterFile:
		return clusterFile, nil
	case node.KeyringFile:
		return keyringFile, nil
	}
	return 0, fmt.Errorf("no small file is called %q", f)
}

// readSmall reads a file in its envelope. One that is not there is fs.ErrNotExist.
func readSmall(fsys vfs.FS, name string, kind uint16, n id.Node, limit int64) ([]byte, error) {
	b, err := vfs.ReadFile(fsys, name, smallHead+limit)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, err
	case errors.Is(err, vfs.ErrTooLarge):
		return nil, damaged("%v", err)
	case err != nil:
		return nil, asked(err)
	}
	if b, err = openSmall(kind, n, b); err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	return b, nil
}

// still finds out whether node.json is the one that was opened, and is where the next
// start looks for it.
func (n *Node) still() error {
	if n.gone.Load() {
		return n.missing()
	}
	me, err := n.fs.Stat("node.json")
	switch {
	case err != nil && !errors.Is(err, fs.ErrNotExist):
		return asked(err)
	case err != nil || me.Inode != n.inode:
		n.gone.Store(true)
		return n.missing()
	}
	if n.cfg.Placed == nil {
		return nil
	}
	switch inode, err := n.cfg.Placed(); {
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, syscall.ENOTDIR), err == nil && inode != n.inode:
		n.gone.Store(true)
		return n.missing()
	case err != nil:
		return asked(err)
	}
	return nil
}
