package disk

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"sync"
	"time"

	"cairn/id"
	"cairn/node"
	"cairn/node/vfs"
	"cairn/pack"
)

// place is where an instance lay at one moment.
type place struct {
	seg    *segment
	off    int64 // of the record
	size   int64 // of the shard
	inst   id.Instance
	broken bool
}

// locate finds the instance that answers for k, or a certain one, dead or not.
func (n *Node) locate(k node.Key, inst id.Instance) (place, error) {
	n.mu.RLock()
	defer n.mu.RUnlock()
	var i uint32
	if inst == 0 {
		i = n.table.live(k)
	} else {
		i = n.table.find(k, inst)
	}
	if i == 0 {
		return place{}, node.ErrNotFound
	}
	e := n.table.at(i)
	return place{e.seg, e.off(), int64(e.size), e.inst, e.flags&broken != 0}, nil
}

// at runs read on the place of a shard, and again when the shard has moved or
// gone meanwhile: what was read, good or damaged, then means nothing.
func (n *Node) at(ctx context.Context, k node.Key, inst id.Instance, read func(f vfs.File, p place) error) error {
	for {
		if err := ctx.Err(); err != nil {
			return err
		}
		p, err := n.locate(k, inst)
		if err != nil {
			return err
		}
		if p.broken {
			err = damaged("found so when the node was opened")
		} else if f, ferr := n.files.get(p.seg); ferr != nil {
			err = n.noFile(ferr)
		} else {
			err = read(f, p)
			n.files.put(p.seg)
		}
		if now, lerr := n.locate(k, inst); lerr == nil && now == p {
			return err
		}
	}
}

// noFile says why a segment that the table knows cannot be opened. That its
// name has gone is the end of the node, not of one shard.
func (n *Node) noFile(err error) error {
	if !errors.Is(err, fs.ErrNotExist) {
		return asked(err)
	}
	if err := n.still(); err != nil {
		return err
	}
	return damaged("its segment has gone: %v", err)
}

const (
	maxHead  = pack.HeaderSize + 4*((pack.MaxShardSize+pack.BlockSize-1)/pack.BlockSize) + 4
	readStep = 16 * pack.BlockSize // read at once
)

// buffer is what one read needs: a shard's header and table, and some blocks.
type buffer struct {
	head [maxHead]byte
	data [readStep]byte
}

var buffers = sync.Pool{New: func() any { return new(buffer) }}

// Read fills dst with a shard's bytes; see node.Store.
func (n *Node) Read(ctx context.Context, k node.Key, off int64, dst []byte) error {
	if err := n.enter(ctx); err != nil {
		return n.fail("read", k, err)
	}
	defer n.ops.Done()
	b := buffers.Get().(*buffer)
	defer buffers.Put(b)
	return n.fail("read", k, n.at(ctx, k, 0, func(f vfs.File, p place) error {
		if off < 0 || off+int64(len(dst)) > p.size {
			return damaged("bytes %d to %d of %d", off, off+int64(len(dst)), p.size)
		}
		h, small, err := b.readHead(f, k, p)
		if err != nil {
			return err
		}
		return b.readRange(f, p, &h, small, int(off), dst)
	}))
}

// readHead reads and checks the shard's header and CRC table. A short shard is
// read whole at once: then small is all of it.
func (b *buffer) readHead(f vfs.File, k node.Key, p place) (h pack.Header, small []byte, err error) {
	base := p.off + recordHead
	head := b.head[:min(p.size, firstRead)]
	if p.size <= smallShard {
		small = b.data[:p.size]
		head = small
	}
	if err := readFull(f, head, base); err != nil {
		return h, nil, err
	}
	if h, err = parseShardHeader(head); err != nil {
		return h, nil, err
	}
	if (node.Key{Pack: h.Pack, Index: h.Index}) != k || int64(h.ShardLen()) != p.size {
		return h, nil, damaged("the header is that of shard %v/%d, %d bytes", h.Pack, h.Index, h.ShardLen())
	}
	n := h.BodyOffset()
	if small == nil {
		if len(head) < n {
			if err := readFull(f, b.head[len(head):n], base+int64(len(head))); err != nil {
				return h, nil, err
			}
		}
	} else {
		copy(b.head[:], small[:n])
	}
	if err := pack.CheckTable(b.head[pack.HeaderSize:n]); err != nil {
		return h, nil, fmt.Errorf("%w: %w", node.ErrDamaged, err)
	}
	return h, small, nil
}

// firstRead reaches over header and table of a shard of 4 MiB in one read.
const firstRead = 2 << 10

// readRange copies the shard's bytes from off on to dst, the covering blocks
// checked. Blocks that dst takes whole are read into it directly.
func (b *buffer) readRange(f vfs.File, p place, h *pack.Header, small []byte, off int, dst []byte) error {
	bodyOff, table := h.BodyOffset(), b.head[pack.HeaderSize:h.BodyOffset()]
	if off < bodyOff {
		m := copy(dst, b.head[off:bodyOff])
		dst, off = dst[m:], off+m
	}
	for len(dst) > 0 {
		first := (off - bodyOff) / pack.BlockSize
		from := bodyOff + first*pack.BlockSize
		to := min(int(p.size), bodyOff+(off-bodyOff+len(dst)+pack.BlockSize-1)/pack.BlockSize*pack.BlockSize)
		to = min(to, from+readStep)
		var raw []byte
		direct := false
		if small != nil {
			raw = small[from:to]
		} else {
			// The whole blocks at the front of dst need no copy.
			if whole := min(len(dst), to-from); off == from && (whole == to-from || whole >= pack.BlockSize) {
				if whole < to-from {
					to = from + whole/pack.BlockSize*pack.BlockSize
				}
				raw, direct = dst[:to-from], true
			} else {
				raw = b.data[:to-from]
			}
			if err := readFull(f, raw, p.off+recordHead+int64(from)); err != nil {
				return err
			}
		}
		for i, left := first, raw; len(left) > 0; i++ {
			l := min(len(left), pack.BlockSize)
			if c := pack.CRC(left[:l]); c != pack.BlockCRC(table, i) {
				return damaged("block %d has checksum %08x, want %08x", i, c, pack.BlockCRC(table, i))
			}
			left = left[l:]
		}
		m := to - off
		if !direct {
			m = copy(dst, raw[off-from:])
		}
		dst, off = dst[m:], off+m
	}
	return nil
}

// Stat says that a shard is held; see node.Store.
func (n *Node) Stat(ctx context.Context, k node.Key) (node.Info, pack.Header, error) {
	if err := n.enter(ctx); err != nil {
		return node.Info{}, pack.Header{}, n.fail("stat", k, err)
	}
	defer n.ops.Done()
	var h pack.Header
	var info node.Info
	err := n.at(ctx, k, 0, func(f vfs.File, p place) (err error) {
		var b [pack.HeaderSize]byte
		if err := readFull(f, b[:], p.off+recordHead); err != nil {
			return err
		}
		if h, err = parseShardHeader(b[:]); err != nil {
			return err
		}
		if (node.Key{Pack: h.Pack, Index: h.Index}) != k || int64(h.ShardLen()) != p.size {
			return damaged("the header is that of shard %v/%d, %d bytes", h.Pack, h.Index, h.ShardLen())
		}
		info = node.Info{Key: k, Instance: p.inst, Kind: h.Kind, Size: p.size}
		return nil
	})
	if err != nil {
		return node.Info{}, pack.Header{}, n.fail("stat", k, err)
	}
	return info, h, nil
}

// Verify reads and checks the whole shard; see node.Store.
func (n *Node) Verify(ctx context.Context, k node.Key) error {
	if err := n.enter(ctx); err != nil {
		return n.fail("verify", k, err)
	}
	defer n.ops.Done()
	return n.fail("verify", k, n.verify(ctx, k, 0))
}

// verify checks the instance of k that answers, or a certain one, dead or not.
func (n *Node) verify(ctx context.Context, k node.Key, inst id.Instance) error {
	return n.stream(ctx, k, inst, func(int, []byte) bool { return true })
}

// stream reads an instance through a pooled buffer, checks it, and hands each
// piece to visit, until that says false.
func (n *Node) stream(ctx context.Context, k node.Key, inst id.Instance, visit func(off int, b []byte) bool) error {
	b := buffers.Get().(*buffer)
	defer buffers.Put(b)
	piece := pieces.Get().(*[readStep]byte)
	defer pieces.Put(piece)
	return n.at(ctx, k, inst, func(f vfs.File, p place) error {
		h, small, err := b.readHead(f, k, p)
		if err != nil {
			return err
		}
		for off, to := 0, h.BodyOffset(); off < int(p.size); off, to = to, min(int(p.size), to+readStep) {
			if err := ctx.Err(); err != nil {
				return err
			}
			part := piece[:to-off]
			if err := b.readRange(f, p, &h, small, off, part); err != nil {
				return err
			}
			if !visit(off, part) {
				return nil
			}
		}
		return nil
	})
}

var pieces = sync.Pool{New: func() any { return new([readStep]byte) }}

// same compares a held instance with the bytes of a put.
func (n *Node) same(ctx context.Context, k node.Key, inst id.Instance, s node.Shard) (bool, error) {
	if p, err := n.locate(k, inst); err != nil {
		return false, err
	} else if !p.broken && p.size != int64(len(s.Head)+len(s.Body)) {
		return false, nil
	}
	equal := true
	err := n.stream(ctx, k, inst, func(off int, b []byte) bool {
		m := 0
		if off < len(s.Head) {
			m = min(len(b), len(s.Head)-off)
			equal = string(b[:m]) == string(s.Head[off:][:m])
		}
		if m < len(b) && equal {
			equal = string(b[m:]) == string(s.Body[off+m-len(s.Head):][:len(b)-m])
		}
		return equal
	})
	return equal, err
}

// List returns shards in key order; see node.Store. A key that was deleted and
// put again is listed once, with its live instance.
func (n *Node) List(ctx context.Context, after node.Key, limit int) ([]node.Info, error) {
	if err := n.enter(ctx); err != nil {
		return nil, n.fail("list", node.Key{}, err)
	}
	defer n.ops.Done()
	if limit <= 0 {
		return nil, nil
	}
	var out []node.Info
	n.mu.RLock()
	defer n.mu.RUnlock()
	t := n.table
	t.byKey.ascend(keyItem{key: after}, func(it keyItem) bool {
		if it.key == after {
			return true
		}
		i := t.liveIn(it.e)
		if i == 0 {
			i = it.e
		}
		e := t.at(i)
		info := node.Info{Key: it.key, Instance: e.inst, Kind: e.kind, Size: int64(e.size)}
		if e.isDead() {
			info.Deleted = time.Unix(0, t.fates[i].at)
		}
		out = append(out, info)
		return len(out) < limit
	})
	return out, nil
}

// ListLog returns shards of log packs by position; see node.Store. What is
// damaged beyond its position comes first, with a zero sequence and perhaps
// without a key, whatever from is.
func (n *Node) ListLog(ctx context.Context, from uint64, after *node.Found, limit int) ([]node.Found, error) {
	if err := n.enter(ctx); err != nil {
		return nil, n.fail("list log", node.Key{}, err)
	}
	defer n.ops.Done()
	var out []node.Found
	if limit <= 0 {
		return nil, nil
	}
	if after == nil {
		n.mu.RLock()
		for _, l := range n.lost {
			if l.seg.kind != journalSeg {
				continue // log packs lie in the journal: this rot hides none of them
			}
			out = append(out, node.Found{Info: node.Info{Size: int64(l.size)}, Err: damaged("%d bytes of segment %s at %d, and with them their name", l.size, l.seg.name(), l.off)})
		}
		n.mu.RUnlock()
		if len(out) > 0 {
			// All at once, so that a cursor without a key never has to be found again.
			if len(out) >= limit {
				return out, nil
			}
			limit -= len(out)
		}
	}
	cursor := posItem{}
	if after != nil && after.Info.Key != (node.Key{}) {
		cursor = posItem{after.Header.Position(), after.Info.Key, math.MaxUint32}
	}
	for _, it := range n.logItems(cursor, from, limit) {
		found, err := n.readLog(ctx, it)
		if errors.Is(err, node.ErrNotFound) {
			continue
		}
		if err != nil {
			return nil, n.fail("list log", it.key, err)
		}
		out = append(out, found)
	}
	return out, nil
}

// logItems is the next part of the order of log shards.
func (n *Node) logItems(after posItem, from uint64, limit int) []posItem {
	n.mu.RLock()
	defer n.mu.RUnlock()
	var out []posItem
	add := func(it posItem) bool {
		if !n.table.at(it.e).isDead() && comparePos(&it, &after) > 0 {
			out = append(out, it)
		}
		return len(out) < limit
	}
	if after.pos.Seq == 0 {
		n.table.byPos.ascend(after, func(it posItem) bool { return it.pos.Seq == 0 && add(it) })
	}
	if start := (posItem{pos: pack.Position{Seq: max(from, 1)}}); len(out) < limit {
		if comparePos(&start, &after) < 0 {
			start = after
		}
		n.table.byPos.ascend(start, add)
	}
	return out
}

// readLog reads a log shard back. One that is damaged is found with its error,
// and with what of its header the node knows.
func (n *Node) readLog(ctx context.Context, it posItem) (node.Found, error) {
	n.mu.RLock()
	e := n.table.at(it.e)
	found := node.Found{Info: node.Info{Key: it.key, Instance: e.inst, Kind: pack.Log, Size: int64(e.size)}}
	n.mu.RUnlock()
	info, h, err := n.Stat(ctx, it.key)
	if err == nil {
		found.Info, found.Header = info, h
		err = n.verify(ctx, it.key, info.Instance)
	}
	switch {
	case errors.Is(err, node.ErrDamaged):
		found.Err = n.fail("list log", it.key, err)
		if found.Header.Seq == 0 {
			found.Header = pack.Header{Kind: pack.Log, Pack: it.key.Pack, Index: it.key.Index,
				Epoch: it.pos.Epoch, Seq: it.pos.Seq, Attempt: it.pos.Attempt}
		}
		return found, nil
	case err != nil:
		return node.Found{}, err
	}
	return found, nil
}
