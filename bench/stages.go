package bench

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"time"

	"cairn/chunker"
	"cairn/erasure"
	"cairn/id"
	"cairn/keys"
	"cairn/node"
	"cairn/node/disk"
	"cairn/node/vfs"
	"cairn/pack"
	"cairn/seal"
)

// The code that stages and stores are measured with.
const (
	dataShards   = 4
	parityShards = 2
	allShards    = dataShards + parityShards
)

// transferSize is how much of a body is read or written at a time.
const transferSize = 256 << 10

// Stage is what one step costs alone.
type Stage struct {
	Name string `json:"name"`
	CPU  Figure `json:"cpu_s_per_gb"` // seconds per GB of the object
	// What the step is part of.
	Put     bool `json:"put"`      // of a put of incompressible data
	Get     bool `json:"get"`      // of a get
	OverNet bool `json:"over_net"` // only when it comes over the network
}

// Limits are the sums of stages, in CPU seconds per GB: nothing composed of them
// costs less.
type Limits struct {
	Put    float64 `json:"put"`
	Get    float64 `json:"get"`
	PutNet float64 `json:"put_over_net"`
	GetNet float64 `json:"get_over_net"`
}

func limits(stages []Stage) (l Limits) {
	for _, s := range stages {
		if s.Put {
			l.PutNet += s.CPU.Median
			if !s.OverNet {
				l.Put += s.CPU.Median
			}
		}
		if s.Get {
			l.GetNet += s.CPU.Median
			if !s.OverNet {
				l.Get += s.CPU.Median
			}
		}
	}
	return l
}

// step is a stage that can be run. run returns the CPU time that it took, of
// whichever process does the work, for the bytes of the object it stands for.
type step struct {
	Stage
	run   func(context.Context) (time.Duration, error)
	bytes int
}

// stages hold what the steps work on. They belong to one goroutine.
type stages struct {
	steps []step

	plain  []byte // incompressible
	text   []byte // compressible
	cutter *chunker.Cutter
	realm  *keys.Realm
	sealer *seal.Sealer
	zstd   seal.Compressor
	code   *erasure.Code
	coder  pack.Coder
	pool   *freeList

	chunks [][]byte // of plain, those that the packs hold
	infos  []seal.Info
	packs  []*packed
	held   int // bytes of chunks
	sealed []byte
	opened []byte
	table  []byte

	by    node.Authority
	nodes []*disk.Node
	fss   []vfs.FS
	sink  *sinkProcess
	dir   string
}

// packed is a data pack in memory, and where it was put last.
type packed struct {
	buf     []byte
	payload []byte
	entries []pack.Entry
	enc     *pack.Encoded
	written pack.Header // of the copy on the nodes
}

// freeList lends buffers again by their length.
type freeList struct {
	mu   sync.Mutex
	free map[int][][]byte
}

func (f *freeList) Get(n int) []byte {
	f.mu.Lock()
	defer f.mu.Unlock()
	if l := f.free[n]; len(l) > 0 {
		f.free[n] = l[:len(l)-1]
		return l[len(l)-1]
	}
	return make([]byte, n)
}

func (f *freeList) Put(b []byte) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.free[len(b)] = append(f.free[len(b)], b)
}

type packSecrets struct{ ring *keys.Keyring }

func (p packSecrets) MetaKey(i id.Pack) [32]byte   { return p.ring.MetaKey(i).Reveal() }
func (p packSecrets) DigestKey(i id.Pack) [32]byte { return p.ring.DigestKey(i).Reveal() }
func (p packSecrets) PadKey(i id.Pack) [32]byte    { return p.ring.PadKey(i).Reveal() }

func newStages(ctx context.Context, o Options, dir string) (_ *stages, err error) {
	st := &stages{dir: dir, plain: make([]byte, o.Stage), text: make([]byte, o.Stage), pool: &freeList{free: map[int][][]byte{}}}
	defer func() {
		if err != nil {
			err = errors.Join(err, st.close())
		}
	}()
	Random(st.plain, 1)
	Text(st.text, 1)
	cluster, err := id.NewCluster(nil)
	if err != nil {
		return nil, err
	}
	ring, err := keys.New(cluster, nil)
	if err != nil {
		return nil, err
	}
	if st.realm, err = ring.Realm(id.Main); err != nil {
		return nil, err
	}
	gearKey := st.realm.GearKey().Reveal()
	if st.cutter, err = chunker.NewCutter(chunker.NewGear(&gearKey), chunker.Default()); err != nil {
		return nil, err
	}
	st.sealer = seal.NewSealer(st.realm, nil)
	if st.code, err = erasure.New(dataShards, parityShards); err != nil {
		return nil, err
	}
	st.coder = pack.Coder{Secrets: packSecrets{ring}, Pool: st.pool}
	if err := st.fillPacks(); err != nil {
		return nil, err
	}
	if err := st.openNodes(cluster, dir); err != nil {
		return nil, err
	}
	if len(o.Sink) > 0 {
		if st.sink, err = startSink(ctx, o.Sink); err != nil {
			return nil, err
		}
	}
	st.sealed, st.opened = make([]byte, 0, 8<<20), make([]byte, 0, 8<<20)
	st.list(o.Stage)
	return st, nil
}

// fillPacks cuts the plain bytes, seals the chunks and codes the packs they fill.
func (st *stages) fillPacks() error {
	var (
		b *pack.Builder
		p *packed
	)
	finish := func() error {
		if b == nil || b.Len() == 0 {
			return nil
		}
		b.Close()
		p.payload, p.entries = b.Payload(), b.Entries()
		st.packs = append(st.packs, p)
		var err error
		p.enc, err = st.encode(p)
		return err
	}
	begin := func() {
		p = &packed{buf: make([]byte, pack.StreamLen(dataShards))}
		b = pack.NewBuilder(p.buf, dataShards, 0)
	}
	begin()
	for rest := st.plain; len(rest) > 0; {
		n := st.cutter.Cut(rest, true)
		chunk := rest[:n]
		rest = rest[n:]
		info := st.sealer.Info(st.realm.ChunkID(seal.Data, chunk), seal.Data, n, seal.None, n)
		dst, off, ok := b.Reserve(int(info.SealedLen))
		if !ok {
			if err := finish(); err != nil {
				return err
			}
			begin()
			if dst, off, ok = b.Reserve(int(info.SealedLen)); !ok {
				return fmt.Errorf("bench: a chunk of %d bytes fits in no pack", n)
			}
		}
		if _, err := st.sealer.Seal(dst[:0], info, chunk); err != nil {
			return err
		}
		b.Add(pack.Entry{Info: info, Offset: off})
		st.chunks, st.infos = append(st.chunks, chunk), append(st.infos, info)
		st.held += n
	}
	return finish()
}

func (st *stages) encode(p *packed) (*pack.Encoded, error) {
	return st.coder.Encode(pack.Input{
		Header:  pack.Header{Kind: pack.Data, K: dataShards, M: parityShards, Writer: id.Writer{1}, Counter: 1, Epoch: 1},
		Meta:    pack.Meta{Entries: p.entries},
		Payload: p.payload,
	})
}

func (st *stages) openNodes(cluster id.Cluster, dir string) error {
	st.by = node.Authority{Epoch: 1, Writer: id.Writer{1}}
	for i := range allShards {
		name := filepath.Join(dir, fmt.Sprintf("stage-node-%d", i))
		if err := os.Mkdir(name, 0o700); err != nil {
			return err
		}
		fsys, err := vfs.OS(name)
		if err != nil {
			return err
		}
		st.fss = append(st.fss, fsys)
		if _, err := disk.Format(fsys, disk.Config{Cluster: cluster}); err != nil {
			return err
		}
		n, err := disk.Open(fsys, disk.Config{Cluster: cluster})
		if err != nil {
			return err
		}
		st.nodes = append(st.nodes, n)
	}
	return nil
}

// close ends what the stages started.
func (st *stages) close() error {
	var errs []error
	for _, n := range st.nodes {
		errs = append(errs, n.Close())
	}
	for _, fsys := range st.fss {
		errs = append(errs, fsys.Close())
	}
	if st.sink != nil {
		errs = append(errs, st.sink.close())
	}
	return errors.Join(errs...)
}

// list names the steps, in the order in which a put and then a get takes them.
func (st *stages) list(size int) {
	// here is the cost of work in this process.
	here := func(f func(context.Context) error) func(context.Context) (time.Duration, error) {
		return func(ctx context.Context) (time.Duration, error) {
			from := selfCPU()
			err := f(ctx)
			return selfCPU() - from, err
		}
	}
	alone := func(f func()) func(context.Context) (time.Duration, error) {
		return here(func(context.Context) error { f(); return nil })
	}
	add := func(bytes int, s Stage, run func(context.Context) (time.Duration, error)) {
		st.steps = append(st.steps, step{s, run, bytes})
	}
	if st.sink != nil {
		add(size, Stage{Name: "receive over HTTP/1.1, loopback, 256 KiB reads", Put: true, OverNet: true},
			func(ctx context.Context) (time.Duration, error) { return st.sink.send(ctx, st.plain) })
	}
	add(size, Stage{Name: "chunking", Put: true}, alone(st.cut))
	add(st.held, Stage{Name: "chunk IDs (keyed BLAKE3)", Put: true}, alone(func() {
		for _, c := range st.chunks {
			st.realm.ChunkID(seal.Data, c)
		}
	}))
	add(st.held, Stage{Name: "compression probe", Put: true}, alone(func() {
		for _, c := range st.chunks {
			seal.Probe(c)
		}
	}))
	add(size, Stage{Name: "zstd, compressible data (not in the sum)"}, alone(st.compress))
	add(st.held, Stage{Name: "seal (AES-256-GCM) and its key", Put: true}, here(func(context.Context) error { return st.seal() }))
	add(st.held, Stage{Name: "Reed-Solomon 4+2", Put: true}, here(func(context.Context) error { return st.parity() }))
	add(st.held, Stage{Name: "CRC32C tables of 6 shards", Put: true}, alone(st.tables))
	add(st.held, Stage{Name: "digests of 6 shards (GMAC)", Put: true}, alone(st.digests))
	add(st.held, Stage{Name: "check and append 6 shards on 6 nodes, synced", Put: true}, st.append)
	add(st.held, Stage{Name: "read chunks from nodes (page cache), CRC32C", Get: true}, here(st.read))
	add(st.held, Stage{Name: "open (AES-256-GCM) and its key", Get: true}, here(func(context.Context) error { return st.open() }))
	if st.sink != nil {
		add(size, Stage{Name: "send over HTTP/1.1, loopback, 256 KiB writes", Get: true, OverNet: true},
			func(ctx context.Context) (time.Duration, error) { return st.sink.receive(ctx, size) })
	}
}

// measure runs every step once to warm it up and then in turns.
func (st *stages) measure(ctx context.Context, o Options) ([]Stage, error) {
	var found series[int]
	for round := -1; round < o.Rounds; round++ {
		if round >= 0 {
			o.Progress(fmt.Sprintf("stages: round %d of %d", round+1, o.Rounds))
		}
		for i, s := range st.steps {
			if err := ctx.Err(); err != nil {
				return nil, context.Cause(ctx)
			}
			took, err := s.run(ctx)
			if err != nil {
				return nil, fmt.Errorf("%s: %w", s.Name, err)
			}
			if round >= 0 {
				found.add(i, seconds(took)*GB/float64(s.bytes))
			}
		}
		if err := forget(st.dir); err != nil {
			return nil, err
		}
	}
	var out []Stage
	for i, s := range st.steps {
		s.CPU = found.figure(i)
		out = append(out, s.Stage)
	}
	return out, nil
}

// cut finds the cuts as a stream does, looking at what each read brought.
func (st *stages) cut() {
	seen, at := 0, 0
	for fill := 0; at < len(st.plain); {
		fill = min(fill+transferSize, len(st.plain))
		for at < fill {
			n := st.cutter.CutFrom(st.plain[at:fill], seen, fill == len(st.plain))
			if n == 0 {
				seen = fill - at
				break
			}
			at, seen = at+n, 0
		}
	}
}

func (st *stages) compress() {
	const piece = 1 << 20
	for rest := st.text; len(rest) > 0; {
		n := min(piece, len(rest))
		st.sealed, _ = st.zstd.Compress(st.sealed[:0], rest[:n])
		rest = rest[n:]
	}
}

func (st *stages) seal() error {
	for i, c := range st.chunks {
		var err error
		if st.sealed, err = st.sealer.Seal(st.sealed[:0], st.infos[i], c); err != nil {
			return err
		}
	}
	return nil
}

func (st *stages) parity() error {
	slices := make([][]byte, allShards)
	for _, p := range st.packs {
		for i := range slices {
			slices[i] = p.enc.Shards[i].Slice
		}
		if err := st.code.Encode(slices); err != nil {
			return err
		}
	}
	return nil
}

func (st *stages) tables() {
	for _, p := range st.packs {
		for _, s := range p.enc.Shards {
			st.table = pack.AppendTable(st.table[:0], nil, s.Slice)
		}
	}
}

func (st *stages) digests() {
	for _, p := range st.packs {
		for i, s := range p.enc.Shards {
			st.coder.Digest(p.enc.Header.Pack, uint8(i), s)
		}
	}
}

// append puts every pack once more, under an ID of its own. Only the nodes' work
// counts.
func (st *stages) append(ctx context.Context) (sum time.Duration, err error) {
	if err := touch(st.dir, st.held); err != nil {
		return 0, err
	}
	for _, p := range st.packs {
		p.enc.Release()
		if p.enc, err = st.encode(p); err != nil {
			return 0, err
		}
		errs := make([]error, allShards)
		from := selfCPU()
		var wg sync.WaitGroup
		for i, s := range p.enc.Shards {
			wg.Go(func() {
				_, errs[i] = st.nodes[i].Put(ctx, st.by, node.ForClient, node.Shard{Head: s.Head, Body: s.Slice})
			})
		}
		wg.Wait()
		sum += selfCPU() - from
		if err := errors.Join(errs...); err != nil {
			return 0, err
		}
		p.written = p.enc.Header
	}
	return sum, nil
}

// read fetches every chunk of the packs as a get does, in one range of a shard
// or two.
func (st *stages) read(ctx context.Context) error {
	for _, p := range st.packs {
		h := &p.written
		for _, e := range p.entries {
			dst := st.sealed[:e.SealedLen]
			for off := int(e.Offset); len(dst) > 0; {
				i, within := off/int(h.SliceLen), off%int(h.SliceLen)
				n := min(len(dst), int(h.SliceLen)-within)
				if err := st.nodes[i].Read(ctx, node.Key{Pack: h.Pack, Index: uint8(i)}, int64(h.SliceOffset()+within), dst[:n]); err != nil {
					return err
				}
				dst, off = dst[n:], off+n
			}
		}
	}
	return nil
}

func (st *stages) open() error {
	for _, p := range st.packs {
		for _, e := range p.entries {
			var err error
			if st.opened, err = st.sealer.Open(st.opened[:0], e.Info, p.payload[e.Offset:e.End()]); err != nil {
				return err
			}
		}
	}
	return nil
}
