package rest

import (
	"net/http"
	"strconv"

	"github.com/labstack/echo/v4"

	"cairn/store"
)

// placementJSON says where a part of an object lies.
type placementJSON struct {
	Object objectJSON  `json:"object"`
	Chunks []chunkJSON `json:"chunks"`
	Packs  []packJSON  `json:"packs"`
	More   bool        `json:"more"`
	Next   uint64      `json:"next,omitempty"`
}

type chunkJSON struct {
	Offset     uint64 `json:"offset"`
	Size       uint64 `json:"size"`
	ID         string `json:"id"`
	Sealed     uint32 `json:"sealed_bytes"`
	Compressed bool   `json:"compressed"`
	Refs       uint64 `json:"references"`
	Damaged    bool   `json:"damaged,omitempty"`
	Pack       string `json:"pack"`
	First      int    `json:"first_shard"`
	Last       int    `json:"last_shard"`
}

type packJSON struct {
	ID     string      `json:"id"`
	Kind   string      `json:"kind"`
	Code   string      `json:"code"`
	Shards []shardJSON `json:"shards"`
}

type shardJSON struct {
	Index int    `json:"index"`
	Role  string `json:"role"`
	Node  string `json:"node"`
	State string `json:"state"`
}

func packToJSON(p store.PackPlace) packJSON {
	out := packJSON{ID: p.Pack.String(), Kind: "data", Code: strconv.Itoa(p.K) + "+" + strconv.Itoa(p.M), Shards: make([]shardJSON, 0, len(p.Shards))}
	if p.Log {
		out.Kind = "log"
	}
	for _, s := range p.Shards {
		role := "data"
		if s.Index >= p.K {
			role = "parity"
		}
		out.Shards = append(out.Shards, shardJSON{s.Index, role, s.Node, s.State})
	}
	return out
}

func placementOptions(c echo.Context) (opt store.PlacementOptions, err error) {
	if opt.Version, err = version(c); err != nil {
		return opt, err
	}
	q := c.QueryParams()
	if q.Has("from") {
		n, ok := parseNumber(q.Get("from"))
		if !ok {
			return opt, problem(http.StatusBadRequest, "invalid-parameter", "from is a number of bytes", "")
		}
		opt.From = n
	}
	if opt.Limit, err = limit(c); err != nil {
		return opt, err
	}
	return opt, nil
}

// placement says where the chunks of an object lie, a page at a time.
func (f *face) placement(c echo.Context) (any, error) {
	bucket, key, err := target(c)
	if err != nil {
		return nil, err
	}
	opt, err := placementOptions(c)
	if err != nil {
		return nil, err
	}
	p, err := f.store.Placement(c.Request().Context(), bucket, key, opt)
	if err != nil {
		return nil, err
	}
	out := placementJSON{Object: toJSON(p.Object), Chunks: make([]chunkJSON, 0, len(p.Chunks)), Packs: make([]packJSON, 0, len(p.Packs)), More: p.More, Next: p.Next}
	for _, k := range p.Chunks {
		out.Chunks = append(out.Chunks, chunkJSON{k.Offset, k.Size, k.Chunk.String(), k.Sealed, k.Compressed, k.Refs, k.Damaged, k.Pack.String(), k.First, k.Last})
	}
	for _, k := range p.Packs {
		out.Packs = append(out.Packs, packToJSON(k))
	}
	return out, nil
}
