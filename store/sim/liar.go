package sim

import (
	"context"
	"encoding/binary"
	"time"

	"cairn/id"
	"cairn/node"
	"cairn/pack"
)

// liar is a node that, once it is told to, gives other bytes than it was given,
// with checksums that hold: CRC32C keeps out accidents, not intent. Only digests
// and seals tell.
type liar struct {
	node.Store
	v *volume
}

// Put implements node.Store. It begins a moment late, by less than a microsecond: of two
// that are asked at the same instant the clock says which is first, not the scheduler.
func (l liar) Put(ctx context.Context, by node.Authority, why node.Purpose, s node.Shard) (id.Instance, error) {
	if h, err := pack.ParseHeader(s.Head); err == nil {
		time.Sleep(time.Duration(1 + (binary.LittleEndian.Uint64(h.Pack[:])^uint64(h.Index)*0x9e3779b97f4a7c15)%997))
	}
	return l.Store.Put(ctx, by, why, s)
}

// Read implements node.Store.
func (l liar) Read(ctx context.Context, k node.Key, off int64, dst []byte) error {
	if err := l.Store.Read(ctx, k, off, dst); err != nil {
		return err
	}
	if l.v.mood.Load().forges && len(dst) > 0 {
		forge(off, dst)
	}
	return nil
}

// forge changes what was read. Of a whole shard the checksums are made right.
func forge(off int64, b []byte) {
	if off == 0 {
		if h, s, err := pack.ParseShard(b); err == nil && len(s.Slice) > 0 {
			s.Slice[len(s.Slice)/2] ^= 0x10
			copy(s.Head[pack.HeaderSize:], pack.AppendTable(nil, s.Head[h.BodyOffset():], s.Slice))
			return
		}
	}
	b[len(b)/2] ^= 0x10
}
