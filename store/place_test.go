package store

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"sync"
	"testing"

	"cairn/id"
	"cairn/node"
)

// noted tells who read shards of a pack.
type noted struct {
	node.Store
	name string
	mu   *sync.Mutex
	read map[string]map[id.Pack]bool
}

func (n noted) Read(ctx context.Context, k node.Key, off int64, dst []byte) error {
	n.mu.Lock()
	if n.read[n.name] == nil {
		n.read[n.name] = map[id.Pack]bool{}
	}
	n.read[n.name][k.Pack] = true
	n.mu.Unlock()
	return n.Store.Read(ctx, k, off, dst)
}

// TestPlacement: the pages join to the whole object, every pack has all its shards
// on nodes of their own, and a chunk is read from the shards that are named.
func TestPlacement(t *testing.T) {
	ctx := context.Background()
	r := newRig(t)
	var mu sync.Mutex
	read := map[string]map[id.Pack]bool{}
	r.wrap = func(name string, n node.Store) node.Store { return noted{n, name, &mu, read} }
	r.idle() // no job reads, and no other node is asked because one lags
	for _, n := range []int{0, 1, 5000, 300 << 10, 40 << 20} {
		key := fmt.Sprint("k", n)
		r.put(key, random(uint64(n), n))
		for _, limit := range []int{0, 1, 3} {
			at, chunks := uint64(0), 0
			for opt := (PlacementOptions{Limit: limit}); ; {
				p, err := r.st.Placement(ctx, "main", key, opt)
				if err != nil {
					t.Fatal(err)
				}
				packs := map[id.Pack]PackPlace{}
				for _, k := range p.Packs {
					nodes, indexes := map[string]bool{}, map[int]bool{}
					for _, s := range k.Shards {
						if s.State != "up" || s.Index >= k.K+k.M {
							t.Errorf("%s: shard %+v of %d+%d", key, s, k.K, k.M)
						}
						nodes[s.Node], indexes[s.Index] = true, true
					}
					if len(nodes) != k.K+k.M || len(indexes) != k.K+k.M || k.M != 2 || packs[k.Pack].K != 0 {
						t.Errorf("%s: pack %+v", key, k)
					}
					packs[k.Pack] = k
				}
				for _, c := range p.Chunks {
					k := packs[c.Pack]
					if c.Offset != at || c.Size == 0 || k.K == 0 || c.First > c.Last || c.Last >= k.K || c.Refs != 1 || c.Damaged || c.Compressed || uint64(c.Sealed) <= c.Size {
						t.Errorf("%s: chunk %+v at %d in %+v", key, c, at, k)
					}
					if small := n <= smallObject; small != k.Log && c.Size > smallObject {
						t.Errorf("%s: chunk %+v in a log pack: %v", key, c, k.Log)
					}
					at += c.Size
					chunks++
				}
				if limit > 0 && len(p.Chunks) > limit {
					t.Errorf("%s: %d chunks where %d were asked for", key, len(p.Chunks), limit)
				}
				if !p.More {
					break
				}
				if opt.From = p.Next; p.Next != at {
					t.Fatalf("%s: the next page begins at %d, this one ended at %d", key, p.Next, at)
				}
			}
			if at != uint64(n) || n == 40<<20 && chunks < 17 { // more than a manifest holds itself
				t.Errorf("%s: %d chunks cover %d bytes", key, chunks, at)
			}
		}
	}
	// From a byte in the middle of a chunk, that chunk comes first.
	all, err := r.st.Placement(ctx, "main", "k41943040", PlacementOptions{})
	if err != nil {
		t.Fatal(err)
	}
	mid := all.Chunks[len(all.Chunks)/2]
	one, err := r.st.Placement(ctx, "main", "k41943040", PlacementOptions{From: mid.Offset + mid.Size - 1, Limit: 1})
	if err != nil || len(one.Chunks) != 1 || one.Chunks[0] != mid || !one.More || one.Next != mid.Offset+mid.Size {
		t.Errorf("from the last byte of a chunk: %+v, %v", one, err)
	}
	// Reading a chunk asks the nodes that are named, and no others.
	for _, c := range all.Chunks {
		mu.Lock()
		clear(read)
		mu.Unlock()
		got, err := r.st.Get(ctx, "main", "k41943040", GetOptions{})
		if err != nil {
			t.Fatal(err)
		}
		body := got.Body(c.Offset, c.Size)
		if n, err := io.Copy(io.Discard, body); err != nil || uint64(n) != c.Size {
			t.Fatalf("read of a chunk: %d bytes, %v", n, err)
		}
		body.Close()
		var asked, named []string
		mu.Lock()
		for name, packs := range read {
			if packs[c.Pack] {
				asked = append(asked, name)
			}
		}
		mu.Unlock()
		for _, k := range all.Packs {
			for _, s := range k.Shards {
				if k.Pack == c.Pack && c.First <= s.Index && s.Index <= c.Last {
					named = append(named, s.Node)
				}
			}
		}
		slices.Sort(asked)
		slices.Sort(named)
		if !slices.Equal(asked, named) {
			t.Errorf("chunk %+v was read from %q; named are %q", c, asked, named)
		}
	}
	// What is shared says so, and a node that is gone too.
	if _, err := r.st.Put(ctx, "main", "again", bytes.NewReader(random(5000, 5000)), PutOptions{Size: -1}); err != nil {
		t.Fatal(err)
	}
	p, err := r.st.Placement(ctx, "main", "again", PlacementOptions{})
	if err != nil || len(p.Chunks) != 1 || p.Chunks[0].Refs != 2 || len(p.Packs) != 1 || !p.Packs[0].Log {
		t.Errorf("stored again: %+v, %v", p, err)
	}
	for _, c := range []struct {
		key  string
		opt  PlacementOptions
		want error
	}{{"nothing", PlacementOptions{}, ErrNoObject}, {"k1", PlacementOptions{From: 2}, ErrRange}, {"k1", PlacementOptions{Version: id.Version{Seq: 1}}, ErrNoVersion}, {"", PlacementOptions{}, ErrInvalid}} {
		if p, err := r.st.Placement(ctx, "main", c.key, c.opt); !errors.Is(err, c.want) {
			t.Errorf("placement of %q %+v: %+v, %v", c.key, c.opt, p, err)
		}
	}
	r.close()
	r.away = map[string]bool{"n03": true}
	r.open()
	all, err = r.st.Placement(ctx, "main", "k41943040", PlacementOptions{})
	if err != nil {
		t.Fatal(err)
	}
	for _, k := range all.Packs {
		for _, s := range k.Shards {
			if (s.State == "up") != (s.Node != "n03") {
				t.Errorf("with n03 away: %+v", s)
			}
		}
	}
}
