package disk

import (
	"context"
	"errors"
	"fmt"
	"hash/crc32"
	"time"

	"cairn/id"
	"cairn/node"
	"cairn/pack"
)

// Put keeps a shard; see node.Store.
func (n *Node) Put(ctx context.Context, by node.Authority, why node.Purpose, s node.Shard) (id.Instance, error) {
	h, crc, err := inspect(s)
	k := node.Key{Pack: h.Pack, Index: h.Index}
	if err != nil {
		return 0, n.fail("put", k, err)
	}
	if err := n.enter(ctx); err != nil {
		return 0, n.fail("put", k, err)
	}
	defer n.ops.Done()
	i, err := n.put(ctx, by, why, &h, crc, s)
	return i, n.fail("put", k, err)
}

func (n *Node) put(ctx context.Context, by node.Authority, why node.Purpose, h *pack.Header, crc uint32, s node.Shard) (id.Instance, error) {
	if err := n.authorise(ctx, by); err != nil {
		return 0, err
	}
	k := node.Key{Pack: h.Pack, Index: h.Index}
	r := &request{rec: rec{typ: shardRec, size: uint32(h.ShardLen()), kind: h.Kind, key: k},
		head: s.Head, body: s.Body, payCRC: crc, by: by, why: why, done: make(chan struct{})}
	if h.Kind == pack.Log {
		r.pos = h.Position()
	}
	for { // until no other put of this key is on its way
		n.mu.Lock()
		other := n.pending[k]
		held := n.table.live(k)
		var inst id.Instance
		if held != 0 {
			inst = n.table.at(held).inst
		}
		if other == nil && held == 0 {
			n.pending[k] = r
		}
		n.mu.Unlock()
		if other != nil {
			select {
			case <-other.done:
				n.settled(k, other)
				continue
			case <-ctx.Done():
				return 0, ctx.Err()
			}
		}
		if held == 0 {
			break
		}
		same, err := n.same(ctx, k, inst, s)
		switch {
		case errors.Is(err, node.ErrNotFound):
			continue // deleted meanwhile
		case errors.Is(err, node.ErrDamaged):
			// What is held is no good: this put replaces it.
			n.mu.Lock()
			if n.pending[k] != nil {
				n.mu.Unlock()
				continue
			}
			n.pending[k] = r
			n.mu.Unlock()
		case err != nil:
			return 0, err
		case !same:
			return 0, fmt.Errorf("%w: instance %d", node.ErrConflict, inst)
		default:
			return n.again(ctx, by, k, inst)
		}
		break
	}
	defer n.settled(k, r)
	release, err := n.room(why, int64(r.size))
	if err != nil {
		r.finish(err)
		return 0, err
	}
	defer release()
	a := n.data
	if h.Kind == pack.Log || r.size <= smallShard {
		a = n.journal
	}
	err = a.send(ctx.Done(), ctx.Err, r)
	if err != nil {
		r.abandon()
		return 0, err
	}
	return r.inst, nil
}

// settled says that r is no longer on its way.
func (n *Node) settled(k node.Key, r *request) {
	n.mu.Lock()
	if n.pending[k] == r {
		delete(n.pending, k)
	}
	n.mu.Unlock()
}

// again answers the put of bytes that are held already. They are durable; the
// authority is checked as for any other answer, and a delete of which nobody
// knows whether it reached the disk is settled first.
func (n *Node) again(ctx context.Context, by node.Authority, k node.Key, inst id.Instance) (id.Instance, error) {
	n.mu.RLock()
	err := n.obeys(by)
	doubted := n.doubted[instance{k, inst}]
	n.mu.RUnlock()
	if err == nil && doubted {
		err = n.journal.send(ctx.Done(), ctx.Err, noteRequest(by, note{typ: undelete, key: k, inst: inst, time: n.now()}))
	}
	if err != nil {
		return 0, err
	}
	return inst, nil
}

// abandon wakes those who wait for a request that nobody will finish.
func (r *request) abandon() {
	select {
	case <-r.done:
	default:
		close(r.done)
	}
}

// inspect checks header, lengths, table and every block of a shard that lies in
// two pieces, cut anywhere. crc is that of header and table.
func inspect(s node.Shard) (h pack.Header, crc uint32, err error) {
	var scratch [pack.HeaderSize]byte
	hb := s.Head
	if len(hb) < pack.HeaderSize {
		hb = append(append(scratch[:0], s.Head...), s.Body[:min(len(s.Body), pack.HeaderSize-len(s.Head))]...)
	}
	if h, err = parseShardHeader(hb); err != nil {
		return h, 0, err
	}
	if len(s.Head)+len(s.Body) != h.ShardLen() {
		return h, 0, damaged("%d bytes, the header says %d", len(s.Head)+len(s.Body), h.ShardLen())
	}
	body := h.BodyOffset()
	table := shardBytes(s, pack.HeaderSize, h.TableLen())
	crc = payloadCRC(hb, table)
	if err := pack.CheckTable(table); err != nil {
		return h, 0, fmt.Errorf("%w: %w", node.ErrDamaged, err)
	}
	for i, left := 0, h.BodyLen(); left > 0; i++ {
		l := min(left, pack.BlockSize)
		if c := shardCRC(s, body+i*pack.BlockSize, l); c != pack.BlockCRC(table, i) {
			return h, 0, damaged("block %d has checksum %08x, want %08x", i, c, pack.BlockCRC(table, i))
		}
		left -= l
	}
	return h, crc, nil
}

// parseShardHeader translates the errors of pack. A newer version cannot be
// judged, and so cannot be kept.
func parseShardHeader(b []byte) (pack.Header, error) {
	h, err := pack.ParseHeader(b)
	switch {
	case errors.Is(err, pack.ErrNewer):
		return h, fmt.Errorf("%w: %w", node.ErrUnavailable, err)
	case err != nil:
		return h, fmt.Errorf("%w: %w", node.ErrDamaged, err)
	}
	return h, nil
}

// payloadCRC binds a record's header to its shard's header and table. Their own
// checksums are left out: a CRC over bytes that end in their CRC is the same for
// all bytes.
func payloadCRC(header, table []byte) uint32 {
	return crc32.Update(pack.CRC(header[:pack.HeaderSize-4]), castagnoli, table[:len(table)-4])
}

// shardCRC is the checksum of a range of a shard in two pieces.
func shardCRC(s node.Shard, off, n int) uint32 {
	var c uint32
	if off < len(s.Head) {
		m := min(n, len(s.Head)-off)
		c = crc32.Update(c, castagnoli, s.Head[off:][:m])
		off, n = off+m, n-m
	}
	if n > 0 {
		c = crc32.Update(c, castagnoli, s.Body[off-len(s.Head):][:n])
	}
	return c
}

// shardBytes returns a range of a shard in two pieces, copied only where it is cut.
func shardBytes(s node.Shard, off, n int) []byte {
	switch {
	case off+n <= len(s.Head):
		return s.Head[off:][:n]
	case off >= len(s.Head):
		return s.Body[off-len(s.Head):][:n]
	}
	b := append(make([]byte, 0, n), s.Head[off:]...)
	return append(b, s.Body[:n-len(b)]...)
}

// Delete tombstones an instance; see node.Store.
func (n *Node) Delete(ctx context.Context, by node.Authority, k node.Key, i id.Instance) error {
	return n.change(ctx, "delete", by, note{typ: tombstone, key: k, inst: i})
}

// Undelete brings an instance back; see node.Store. Beside another live instance
// of the key it is node.ErrConflict.
func (n *Node) Undelete(ctx context.Context, by node.Authority, k node.Key, i id.Instance) error {
	return n.change(ctx, "undelete", by, note{typ: undelete, key: k, inst: i})
}

func (n *Node) change(ctx context.Context, op string, by node.Authority, nt note) error {
	if err := n.enter(ctx); err != nil {
		return n.fail(op, nt.key, err)
	}
	defer n.ops.Done()
	if err := n.authorise(ctx, by); err != nil {
		return n.fail(op, nt.key, err)
	}
	o, err := n.begin(by)
	if err != nil {
		return n.fail(op, nt.key, err)
	}
	defer n.end(o)
	if nt.typ == undelete {
		err = n.bringBack(ctx, by, nt)
	} else {
		err = n.bury(ctx, by, nt)
	}
	return n.fail(op, nt.key, err)
}

func (n *Node) bury(ctx context.Context, by node.Authority, nt note) error {
	n.mu.RLock()
	i := n.table.find(nt.key, nt.inst)
	there := i != 0 && (!n.table.at(i).isDead() || n.doubted[instance{nt.key, nt.inst}])
	n.mu.RUnlock()
	if !there {
		return nil
	}
	nt.time = n.now()
	return n.journal.send(ctx.Done(), ctx.Err, noteRequest(by, nt))
}

func (n *Node) bringBack(ctx context.Context, by node.Authority, nt note) error {
	n.mu.Lock()
	i := n.table.find(nt.key, nt.inst)
	if i == 0 || n.table.at(i).flags&(going|pinned) != 0 {
		n.mu.Unlock()
		return node.ErrNotFound
	}
	e := n.table.at(i)
	live := n.table.live(nt.key)
	if live == i && !n.doubted[instance{nt.key, nt.inst}] {
		n.mu.Unlock()
		return nil
	}
	if live != 0 && live != i || n.pending[nt.key] != nil {
		n.mu.Unlock()
		return node.ErrConflict
	}
	e.flags |= pinned // the background pass leaves it alone
	r := noteRequest(by, nt)
	n.pending[nt.key] = r // and so does a put
	n.mu.Unlock()
	defer func() {
		r.abandon()
		n.settled(nt.key, r)
		n.mu.Lock()
		if i := n.table.find(nt.key, nt.inst); i != 0 {
			n.table.at(i).flags &^= pinned
		}
		n.mu.Unlock()
	}()
	if err := n.verify(ctx, nt.key, nt.inst); errors.Is(err, node.ErrDamaged) {
		return fmt.Errorf("%w: its bytes are damaged: %w", node.ErrNotFound, err)
	} else if err != nil {
		return err
	}
	r.note.time = n.now()
	return n.journal.send(ctx.Done(), ctx.Err, r)
}

// now is the clock, without the monotonic part that no disk keeps.
func (n *Node) now() time.Time { return time.Unix(0, n.cfg.Now().UnixNano()) }

func noteRequest(by node.Authority, nt note) *request {
	return &request{rec: rec{typ: notesRec, size: noteLen}, by: by, note: nt, done: make(chan struct{})}
}
