package store

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path"
	"reflect"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"cairn/id"
	"cairn/index"
	"cairn/index/kv/memkv"
	"cairn/node"
	"cairn/node/disk"
	"cairn/node/vfs"
	"cairn/node/vfs/crashfs"
	"cairn/pack"
	"cairn/record"
)

// fast is a scrub that does not wait.
var fast = JobOptions{Rate: 1 << 50}

func deeply(o JobOptions) JobOptions { o.Deep = true; return o }

// scrub runs one and returns what it says.
func (r *rig) scrub(opt JobOptions) (*ScrubResult, error) {
	r.t.Helper()
	res, err := r.st.scrub(context.Background(), opt, func(uint64, uint64) {})
	if res == nil {
		r.t.Fatal(err)
	}
	if res.Damaged != res.Repaired+res.Left+res.Passing {
		r.t.Errorf("%d damaged, %d repaired, %d left, %d passing", res.Damaged, res.Repaired, res.Left, res.Passing)
	}
	for _, m := range r.st.members.Load().all { // findings are for people
		if i := slices.IndexFunc(res.Findings, func(f string) bool { return strings.Contains(f, m.info.ID.String()) }); i >= 0 {
			r.t.Errorf("a finding names %s by its ID: %s", m.info.Name, res.Findings[i])
		}
	}
	return res, err
}

// placesOf lists where the shards of the packs of data lie that have so many.
func (r *rig) placesOf(kind pack.Kind) (out map[id.Pack][]record.Place) {
	r.t.Helper()
	out = map[id.Pack][]record.Place{}
	if err := r.st.view(func(rd index.Reader) error {
		head, err := rd.Head()
		if err != nil {
			return err
		}
		return rd.EachPack(func(p id.Pack, row index.PackRow) error {
			if p != head.Pack && row.Kind == kind && !empty(row) {
				out[p] = slices.Clone(row.Shards)
			}
			return nil
		})
	}); err != nil {
		r.t.Fatal(err)
	}
	return out
}

// live is how many bytes of a pack something refers to.
func (r *rig) live(p id.Pack) (n uint64) {
	r.t.Helper()
	if err := r.st.view(func(rd index.Reader) error {
		row, err := rd.Pack(p)
		n = row.Live
		return err
	}); err != nil {
		r.t.Fatal(err)
	}
	return n
}

// whole repairs what a start has left short: of the log's last pack it knows the shards
// that it could read.
func (r *rig) whole() {
	r.t.Helper()
	if rep, err := r.st.Repair(context.Background()); err != nil || rep.Short+rep.Lost > 0 {
		r.t.Fatalf("%+v, %v", rep, err)
	}
	r.put("behind the repair", []byte("x"))
}

// readHeld is the shard that a node really holds.
func (r *rig) readHeld(p id.Pack, place record.Place) (*disk.Node, node.Key, []byte) {
	r.t.Helper()
	n := r.nodes[r.st.members.Load().byID[place.Node].info.Name]
	k := node.Key{Pack: p, Index: place.Index}
	info, _, err := n.Stat(context.Background(), k)
	if err != nil {
		r.t.Fatal(err)
	}
	b := make([]byte, info.Size)
	if err := n.Read(context.Background(), k, 0, b); err != nil {
		r.t.Fatal(err)
	}
	return n, k, b
}

// remove deletes a shard behind the store's back.
func (r *rig) remove(p id.Pack, place record.Place) {
	r.t.Helper()
	n, k, _ := r.readHeld(p, place)
	info, _, err := n.Stat(context.Background(), k)
	if err == nil {
		err = n.Delete(context.Background(), r.st.auth, k, info.Instance)
	}
	if err != nil {
		r.t.Fatal(err)
	}
}

// swap puts other bytes in the place of a shard, whose checksums hold.
func (r *rig) swap(p id.Pack, place record.Place) (pack.Shard, id.Instance) {
	r.t.Helper()
	n, _, b := r.readHeld(p, place)
	r.remove(p, place)
	h, sh, err := pack.ParseShard(b)
	if err != nil {
		r.t.Fatal(err)
	}
	sh.Slice[len(sh.Slice)/3] ^= 1
	copy(sh.Head[pack.HeaderSize:], pack.AppendTable(nil, sh.Head[h.BodyOffset():], sh.Slice))
	inst, err := n.Put(context.Background(), r.st.auth, node.ForRepair, node.Shard{Head: sh.Head, Body: sh.Slice})
	if err != nil {
		r.t.Fatal(err)
	}
	return sh, inst
}

// rot flips bits of a shard on the disk, where it stands.
func (r *rig) rot(p id.Pack, place record.Place) {
	r.t.Helper()
	_, _, b := r.readHeld(p, place)
	want := b[len(b)-64:]
	fs := r.fs[r.st.members.Load().byID[place.Node].info.Name]
	if !flipIn(r.t, fs, want) {
		r.t.Fatalf("the bytes of %v/%d are not found on disk", p, place.Index)
	}
}

// flipIn flips a bit of the bytes that are looked for, in whatever file they lie.
func flipIn(t *testing.T, fs *crashfs.FS, want []byte) (found bool) {
	t.Helper()
	var walk func(dir string)
	walk = func(dir string) {
		names, err := fs.ReadDir(dir)
		if err != nil {
			t.Fatal(err)
		}
		for _, name := range names {
			name = path.Join(dir, name)
			info, err := fs.Stat(name)
			if err != nil {
				t.Fatal(err)
			}
			if info.Dir {
				walk(name)
				continue
			}
			b, err := vfs.ReadFile(fs, name, 1<<30)
			if err != nil {
				t.Fatal(err)
			}
			if at := bytes.Index(b, want); at >= 0 {
				found = true
				if err := fs.Flip(name, int64(at+len(want)/2)*8); err != nil {
					t.Fatal(err)
				}
			}
		}
	}
	walk(".")
	return found
}

func newEngine() *memkv.Engine { return memkv.New(memkv.Options{}) }

// miscode makes the writer's mistake: parity that is not that of the data, written and
// logged.
func (r *rig) miscode(p id.Pack, place record.Place) {
	r.t.Helper()
	sh, inst := r.swap(p, place)
	wrong := place
	wrong.Instance, wrong.Digest = inst, r.st.coder.Digest(p, place.Index, sh)
	if moved, err := r.st.logRemade(context.Background(), []remade{{pack: p, shards: []*record.Reshard{{Pack: p, Index: place.Index, Old: place, New: wrong}}}}); err != nil || moved[0] {
		r.t.Fatal(err, moved)
	}
}

// verified says what an offline verification finds, and starts the store again.
func (r *rig) verified() Report {
	r.t.Helper()
	r.close()
	rep, err := Verify(context.Background(), Config{Cluster: r.cluster, Nodes: r.stores(), Keyring: r.ring, Engine: newEngine(), Log: r.log})
	r.closeNodes()
	if err != nil {
		r.t.Fatal(err)
	}
	r.open()
	return rep
}

// wide stores what fills packs of 4+2, and small objects for the log.
func (r *rig) wide() map[string][]byte {
	r.t.Helper()
	out := map[string][]byte{"wide": r.putWide("wide", 6<<20), "small": []byte("small")}
	r.put("small", out["small"])
	r.put("after", []byte("x"))
	return out
}

// TestScrub: damage of each kind, on one node and on two, is found and repaired where
// it lies, by a light pass where a light pass can see it; what an offline verification
// finds then is nothing.
func TestScrub(t *testing.T) {
	for _, c := range []struct {
		kind   string
		damage func(*rig, id.Pack, record.Place)
		deep   bool // only a deep pass sees it
		parity bool // only shards of parity
	}{
		{damageMissing, (*rig).remove, false, false},
		{damageRotten, (*rig).rot, false, false},
		{damageOther, func(r *rig, p id.Pack, x record.Place) { r.swap(p, x) }, false, false},
		{damageParity, (*rig).miscode, true, true},
	} {
		for nodes := 1; nodes <= 2; nodes++ {
			for _, deep := range []bool{false, true} {
				t.Run(fmt.Sprintf("%s on %d, deep %v", c.kind, nodes, deep), func(t *testing.T) {
					t.Parallel()
					r := newRig(t)
					r.idle()
					objects := r.wide()
					want := 0
					kinds := []pack.Kind{pack.Data, pack.Log}
					if c.parity {
						kinds = kinds[:1]
					}
					for _, kind := range kinds {
						for p, places := range r.placesOf(kind) {
							first := want % 4
							switch {
							case c.parity:
								first = 4
							case kind == pack.Log:
								first = 1
							}
							if len(places) < first+nodes {
								continue
							}
							for _, x := range places[first : first+nodes] {
								c.damage(r, p, x)
								want++
							}
							if kind == pack.Log {
								break // one is enough
							}
						}
					}
					opt := fast
					opt.Deep = deep
					res, err := r.scrub(opt)
					if c.deep && !deep {
						if err != nil || res.Damaged != 0 || !res.Complete || res.Chunks != 0 {
							t.Errorf("a light pass sees what it does not look at: %+v, %v", res, err)
						}
						return
					}
					if err != nil || !res.Complete || res.Damage[c.kind] != want || res.Damaged != want || res.Repaired != want || res.Left+res.NotAsked+res.LostPacks+res.Broken != 0 || deep && res.Chunks == 0 {
						t.Fatalf("%d shards are %s: %+v, %v", want, c.kind, res, err)
					}
					if res.Before[6] == res.After[6] || res.After[6]+res.After[3] != res.Packs {
						t.Errorf("packs by good shards %v, afterwards %v of %d", res.Before, res.After, res.Packs)
					}
					if passes := r.st.ScrubPasses(); len(passes) == 0 || passes[0].Deep || passes[len(passes)-1].Deep != deep {
						t.Errorf("complete passes: %+v", passes)
					}
					for key, b := range objects {
						r.mustRead(key, b)
					}
					if again, err := r.scrub(opt); err != nil || again.Damaged != 0 || again.Runs != 1 {
						t.Errorf("the next pass: %+v, %v", again, err)
					}
					if rep := r.verified(); len(rep.Findings) > 0 {
						t.Errorf("verify finds %v", rep.Findings)
					}
				})
			}
		}
	}
}

// TestScrubLoses: three of six shards are gone for good: that is said, the chunks are
// marked, and the next upload heals them.
func TestScrubLoses(t *testing.T) {
	r := newRig(t)
	r.idle()
	big := r.putWide("wide", 3<<20)
	r.put("other", []byte("x"))
	lost := 0
	for p, places := range r.placesOf(pack.Data) {
		if r.live(p) == 0 {
			continue // of an earlier try
		}
		for i, damage := range []func(id.Pack, record.Place){r.remove, r.rot, func(p id.Pack, x record.Place) { r.swap(p, x) }} {
			damage(p, places[i])
		}
		lost++
	}
	res, err := r.scrub(fast)
	if !errors.Is(err, ErrDamaged) || res.LostPacks != lost || res.LostBytes < 2<<20 || res.Left != 3*lost || res.Repaired != 0 || !res.Complete {
		t.Fatalf("three shards of each of %d packs are gone: %+v, %v", lost, res, err)
	}
	if st, err := r.st.Status(t.Context()); err != nil || st.PacksLost != lost || st.LostBytes != res.LostBytes {
		t.Errorf("status: %d packs, %d bytes, %v", st.PacksLost, st.LostBytes, err)
	}
	if _, err := r.read("wide"); !errors.Is(err, ErrDamaged) {
		t.Errorf("read: %v", err)
	}
	r.put("again", big)
	r.mustRead("wide", big)
	if res, err = r.scrub(deeply(fast)); err != nil || res.LostPacks != 0 || res.DeadPacks < lost {
		t.Errorf("after it was stored again: %+v, %v", res, err)
	}
}

// TestScrubAsksInVain: a node that is away, hangs or fails is no damage. The pass says
// that it is not complete, and claims no age.
func TestScrubAsksInVain(t *testing.T) {
	for _, how := range []string{"away", "hangs", "fails"} {
		t.Run(how, func(t *testing.T) {
			t.Parallel()
			r := newRig(t)
			r.idle()
			r.wide()
			r.close()
			release := make(chan struct{})
			defer close(release)
			switch how {
			case "away":
				r.away = map[string]bool{"n02": true}
			case "hangs":
				r.change = func(c *Config) { c.idle = true }
				r.wrap = only("n02", faulty{hang: release})
			case "fails":
				r.wrap = func(name string, n node.Store) node.Store {
					if name == "n02" {
						return unreachable{n}
					}
					return n
				}
			}
			r.open()
			r.whole()
			res, err := r.scrub(deeply(fast))
			if !errors.Is(err, ErrUnavailable) || res.Complete || res.NotAsked == 0 || res.Damaged != 0 || res.LostPacks != 0 || res.Packs == 0 {
				t.Errorf("%+v, %v", res, err)
			}
			if p := r.st.ScrubPasses(); len(p) > 0 {
				t.Errorf("it claims %+v", p)
			}
		})
	}
}

// unreachable is a node whose shards cannot be read.
type unreachable struct{ node.Store }

func (u unreachable) Read(context.Context, node.Key, int64, []byte) error { return node.ErrUnavailable }

// readers notes which shards were read from their beginning.
type readers struct {
	node.Store
	mu  *sync.Mutex
	got map[id.Pack]int
	hit func(id.Pack)
}

func (c readers) Read(ctx context.Context, k node.Key, off int64, dst []byte) error {
	if off == 0 {
		c.mu.Lock()
		c.got[k.Pack]++
		c.mu.Unlock()
		c.hit(k.Pack)
	}
	return c.Store.Read(ctx, k, off, dst)
}

// TestScrubGoesOn: a pass that is cut off goes on where it was, also after a restart
// and the loss of the index; each pack is read once, and what the first run found is
// still said by the last.
func TestScrubGoesOn(t *testing.T) {
	r := newRig(t)
	r.idle()
	for i := range 12 {
		r.put(fmt.Sprint("k", i), random(uint64(i), 300_000))
	}
	r.put("after", []byte("x"))
	packs := r.placesOf(pack.Log)
	for p, x := range r.placesOf(pack.Data) {
		packs[p] = x
	}
	var order []id.Pack
	for p := range packs {
		order = append(order, p)
	}
	slices.SortFunc(order, func(a, b id.Pack) int { return bytes.Compare(a[:], b[:]) })
	r.remove(order[0], packs[order[0]][0])
	var (
		mu     sync.Mutex
		got    = map[id.Pack]int{}
		cancel context.CancelFunc
		at     = order[len(order)/2]
	)
	r.wrap = func(_ string, n node.Store) node.Store {
		return readers{n, &mu, got, func(p id.Pack) {
			if p == at && cancel != nil {
				cancel()
			}
		}}
	}
	r.close()
	r.open()
	clear(got)
	var ctx context.Context
	ctx, cancel = context.WithCancel(t.Context())
	res, err := r.st.scrub(ctx, deeply(fast), func(uint64, uint64) {})
	if !errors.Is(err, context.Canceled) || res.Complete || res.Repaired != 1 || res.Packs == 0 {
		t.Fatalf("%+v, %v", res, err)
	}
	if p := r.st.ScrubPasses(); len(p) > 0 {
		t.Errorf("half a pass claims %+v", p)
	}
	cancel = nil
	first := res.Packs
	mu.Lock()
	if got[order[0]] == 0 || got[order[len(order)-1]] != 0 {
		t.Errorf("of the first pack %d shards were read, of the last %d", got[order[0]], got[order[len(order)-1]])
	}
	delete(got, at)       // which was being read
	delete(got, order[0]) // which was repaired
	mu.Unlock()
	r.close()
	r.engine = newEngine()
	r.open()
	mu.Lock()
	for p, n := range got {
		if !slices.Contains(order, p) || slices.Index(order, p) > len(order)/2 {
			delete(got, p) // read by the start
		} else if n < len(packs[p]) {
			t.Errorf("%d of %d shards of a pack were read", n, len(packs[p]))
		}
	}
	before := map[id.Pack]int{}
	for p, n := range got {
		before[p] = n
	}
	mu.Unlock()
	res, err = r.scrub(deeply(fast))
	if err != nil || !res.Complete || res.Runs != 2 || res.Repaired != 1 || res.Packs <= first {
		t.Fatalf("%+v, %v", res, err)
	}
	mu.Lock()
	defer mu.Unlock()
	for i, p := range order {
		switch n := got[p] - before[p]; {
		case i < len(order)/2 && n != 0:
			t.Errorf("pack %d of %d was read again, %d shards", i, len(order), n)
		case i >= len(order)/2 && n != len(packs[p]):
			t.Errorf("of pack %d of %d, %d of %d shards were read", i, len(order), n, len(packs[p]))
		}
	}
	if p := r.st.ScrubPasses(); len(p) != 2 {
		t.Errorf("complete passes: %+v", p)
	}
}

// TestScrubCountsWhatItHasReadBack: a node that takes shards and keeps none, or gives
// back others, has not repaired anything (H33).
func TestScrubCountsWhatItHasReadBack(t *testing.T) {
	for _, how := range []string{"keeps none", "gives others"} {
		t.Run(how, func(t *testing.T) {
			t.Parallel()
			r := newRig(t)
			r.idle()
			r.wide()
			want := 0
			for p, places := range r.placesOf(pack.Data) {
				for _, x := range places {
					if r.st.members.Load().byID[x.Node].info.Name == "n02" {
						r.remove(p, x)
						want++
					}
				}
			}
			r.wrap = func(name string, n node.Store) node.Store {
				switch {
				case name != "n02":
					return n
				case how == "keeps none":
					return &forgetful{n}
				}
				return &faulty{Store: n, read: func(_ int64, b []byte) { b[len(b)/2] ^= 1 }}
			}
			r.close()
			r.open()
			if how == "keeps none" {
				r.whole()
			} else if _, err := r.st.Repair(t.Context()); err != nil {
				t.Fatal(err)
			}
			before := r.placesOf(pack.Data)
			res, err := r.scrub(fast)
			if !errors.Is(err, ErrDamaged) || want == 0 || res.Repaired != 0 || res.Left < want || res.LostPacks != 0 {
				t.Errorf("%d shards are missing, on a node that %s: %+v, %v", want, how, res, err)
			}
			for p, places := range r.placesOf(pack.Data) {
				if !slices.Equal(places, before[p]) {
					t.Errorf("pack %v has other places: %v, before %v", p, places, before[p])
				}
			}
		})
	}
}

// TestScrubMovesWhatIsOnNoNode: shards of a node that was replaced, and of which no repair
// has taken care, are made anew beside those that are damaged.
func TestScrubMovesWhatIsOnNoNode(t *testing.T) {
	r := newRig(t)
	r.idle()
	objects := r.wide()
	r.close()
	r.wipe("n01")
	r.open()
	r.replace("n01")
	r.put("behind", []byte("x"))
	damaged := 0
	for p, places := range r.placesOf(pack.Data) {
		for _, x := range places {
			if r.st.members.Load().byID[x.Node] != nil {
				r.swap(p, x)
				damaged++
				break
			}
		}
	}
	res, err := r.scrub(fast)
	if err != nil || !res.Complete || res.Damage[damageOther] != damaged || res.Damage[damageMissing] < damaged || res.Repaired != res.Damaged || res.Before[6] != 0 || res.After[6]+res.After[3] != res.Packs {
		t.Errorf("%+v, %v", res, err)
	}
	for key, b := range objects {
		r.mustRead(key, b)
	}
	if rep := r.verified(); len(rep.Findings) > 0 {
		t.Errorf("verify finds %v", rep.Findings)
	}
}

// TestScrubPassing: what is read wrong once and right the second time is told, and
// nothing is written for it.
func TestScrubPassing(t *testing.T) {
	r := newRig(t)
	r.idle()
	r.wide()
	var once sync.Once
	r.wrap = only("n02", faulty{read: func(_ int64, b []byte) { once.Do(func() { b[len(b)/2] ^= 1 }) }})
	r.close()
	r.open()
	r.whole()
	before := r.placesOf(pack.Data)
	once = sync.Once{}
	res, err := r.scrub(fast)
	if err != nil || res.Passing != 1 || res.Damaged != 1 || res.Repaired != 0 {
		t.Errorf("%+v, %v", res, err)
	}
	for p, places := range r.placesOf(pack.Data) {
		if !slices.Equal(places, before[p]) {
			t.Errorf("pack %v was written anew", p)
		}
	}
}

// TestScrubTrustsNoParity: what parity gives that the writer has miscoded is not what
// was written, and is not written anywhere (H30).
func TestScrubTrustsNoParity(t *testing.T) {
	r := newRig(t)
	r.idle()
	r.putWide("wide", 3<<20)
	r.put("after", []byte("x"))
	for p, places := range r.placesOf(pack.Data) {
		r.miscode(p, places[4])
		r.remove(p, places[0])
	}
	r.put("behind", []byte("x"))
	before := r.placesOf(pack.Data)
	res, err := r.scrub(deeply(fast))
	if !errors.Is(err, ErrDamaged) || res.Repaired != 0 || res.Left < 2*len(before) {
		t.Errorf("%+v, %v", res, err)
	}
	for p, places := range r.placesOf(pack.Data) {
		if !slices.Equal(places, before[p]) {
			t.Errorf("pack %v has other places: %v, before %v", p, places, before[p])
		}
	}
}

// TestScrubBesideClients: objects are put, read and deleted while shards rot and scrubs
// run; nobody reads a wrong byte, and at the end all is sound.
func TestScrubBesideClients(t *testing.T) {
	r := newRig(t)
	objects := r.wide()
	var clients sync.WaitGroup
	stop := make(chan struct{})
	for c := range 3 {
		clients.Go(func() {
			for i := 0; ; i++ {
				select {
				case <-stop:
					return
				default:
				}
				key, want := fmt.Sprint("c", c), random(uint64(1000*c+i), 200_000)
				if err := r.tryPut(key, want); err != nil {
					t.Errorf("put %s: %v", key, err)
				} else if got, err := r.read(key); err != nil || !bytes.Equal(got, want) {
					t.Errorf("get %s: %v", key, err)
				}
			}
		})
	}
	for round := range 4 {
		for p, places := range r.placesOf(pack.Data) {
			if len(places) == 6 {
				r.remove(p, places[round])
				r.swap(p, places[(round+3)%6])
				break
			}
		}
		j, err := r.st.StartJob(t.Context(), JobScrub, JobOptions{Deep: round%2 == 0, Rate: 1 << 50})
		if err != nil {
			t.Fatal(err)
		}
		if got := ended(t, r.st, j.ID); got.State != JobDone || got.Result == nil {
			t.Errorf("%+v", got)
		}
	}
	close(stop)
	clients.Wait()
	for key, b := range objects {
		r.mustRead(key, b)
	}
	if rep := r.verified(); len(rep.Findings) > 0 {
		t.Errorf("verify finds %v", rep.Findings)
	}
}

// TestScrubKeepsItsRate: it takes at least as long as what it reads takes at the rate,
// holds nothing while it waits, and is cancelled in the middle of that.
func TestScrubKeepsItsRate(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.idle()
	r.wide()
	for p, places := range r.placesOf(pack.Data) {
		r.remove(p, places[0])
	}
	const rate = 16 << 20
	began := time.Now()
	res, err := r.scrub(JobOptions{Rate: rate})
	if least := time.Duration(res.Bytes)*time.Second/rate - 20*time.Millisecond; err != nil || res.Bytes < 6<<20 || time.Since(began) < least {
		t.Errorf("%d bytes in %v, %v", res.Bytes, time.Since(began), err)
	}
	j, err := r.st.StartJob(t.Context(), JobScrub, JobOptions{Deep: true, Rate: 1})
	if err != nil {
		t.Fatal(err)
	}
	for got, limit := j, time.Now().Add(aWhile); got.Done == 0; time.Sleep(time.Millisecond) {
		if got, err = r.st.Job(t.Context(), j.ID); err != nil || time.Now().After(limit) {
			t.Fatalf("%+v, %v", got, err)
		}
	}
	if other, err := r.st.StartJob(t.Context(), JobScrub, JobOptions{}); !errors.Is(err, ErrJobRunning) || !other.Options.Deep || other.Options.Rate != 1 {
		t.Errorf("beside it: %+v, %v", other, err)
	}
	if _, err := r.st.StartJob(t.Context(), JobRepair, JobOptions{Deep: true}); !errors.Is(err, ErrInvalid) {
		t.Errorf("a deep repair: %v", err)
	}
	if rep, err := r.st.Repair(t.Context()); err != nil || rep.Short > 0 {
		t.Errorf("a repair beside it: %+v, %v", rep, err)
	}
	if _, err := r.st.CancelJob(t.Context(), j.ID); err != nil {
		t.Fatal(err)
	}
	var said ScrubResult
	if got := ended(t, r.st, j.ID); got.State != JobCancelled || json.Unmarshal(got.Result, &said) != nil || said.Complete || said.Packs == 0 {
		t.Errorf("%+v, %s", got, got.Result)
	}
}

// TestScrubState: what is kept of passes is read as it was written, and damage of it
// makes no pass.
func TestScrubState(t *testing.T) {
	at := time.Unix(1_700_000_000, 123_000_000).UTC()
	res := &ScrubResult{Deep: true, Runs: 2, Packs: 3, Shards: 18, Damaged: 1, Repaired: 1, Damage: map[string]int{damageRotten: 1}, Before: map[int]int{5: 1, 6: 2}, After: map[int]int{6: 3}}
	for range 2 * scrubFindings {
		res.find(errors.New(strings.Repeat("\x01", maxFinding)))
	}
	long, err := json.Marshal(res.clone().fit())
	if err != nil || len(long) > maxJobResult {
		t.Errorf("a result of %d bytes, %v", len(long), err)
	}
	res.Findings = []string{"rotten"}
	st := scrubState{Last: &ScrubPass{Deep: true, Began: at, Ended: at.Add(time.Hour), Left: 1}, Began: at, Cursor: id.Pack{0xab}.String(), Pass: res}
	b, err := json.Marshal(st)
	if err != nil {
		t.Fatal(err)
	}
	want, err := os.ReadFile("testdata/scrub-v1.txt")
	if err != nil || string(b)+"\n" != string(want) {
		t.Errorf("written is\n%s\nwant\n%s%v", b, want, err)
	}
	if got, err := parseScrub([]record.UserField{{Name: "state", Value: string(b)}}); err != nil || !reflect.DeepEqual(got, st) {
		t.Errorf("%+v is read as %+v, %v", st, got, err)
	}
	bad := []string{"", "{", `{"pass":{}}`, `{"pass":{},"cursor":"xyz"}`, strings.Repeat("x", 100)}
	for _, text := range bad {
		if st, err := parseScrub([]record.UserField{{Name: "state", Value: text}}); err == nil {
			t.Errorf("%q is read as %+v", text, st)
		}
	}
	if _, err := parseScrub([]record.UserField{{Name: "of a later build", Value: "x"}}); err != nil {
		t.Error(err)
	}
}
