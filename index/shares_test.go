package index

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"cairn/id"
	"cairn/manifest"
	"cairn/record"
)

// refTree is chunks and lists under which they lie.
type refTree struct {
	depth    map[uint64]uint8
	children map[uint64][]uint64
}

// under is a chunk and everything below it.
func (r *refTree) under(c uint64, into map[uint64]bool) {
	into[c] = true
	for _, child := range r.children[c] {
		r.under(child, into)
	}
}

// TestShares: whatever buckets have in common, chunks and lists that lie under several
// of them too, the shares are what sets say, however little is looked at at a time.
func TestShares(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		x := newIndex(t)
		var c chain
		tree := refTree{map[uint64]uint8{}, map[uint64][]uint64{}}
		var byDepth [manifest.MaxDepth + 1][]uint64
		names := []string{"a", "b", "c", ".one", ".two"}
		ids := map[string]id.Bucket{}
		refers := map[string]map[string][][]uint64{} // bucket, key: roots of each version
		build(t, x, &c, true, func(b *builder) {
			for _, name := range names {
				ids[name], refers[name] = b.bucket(name, name == "a"), map[string][][]uint64{}
			}
			for n := range rapid.Uint64Range(1, 30).Draw(t, "chunks") {
				b.entry(n+1, false)
				byDepth[0] = append(byDepth[0], n+1)
			}
			for depth := 1; depth <= manifest.MaxDepth; depth++ {
				if len(byDepth[depth-1]) == 0 {
					break
				}
				for n := range rapid.Uint64Range(0, 4).Draw(t, "lists") {
					l := uint64(depth*100) + n
					b.entry(l, true)
					rec := &record.List{In: id.Main, Chunk: testChunk(l)}
					for _, ch := range rapid.SliceOfN(rapid.SampledFrom(byDepth[depth-1]), 1, 6).Draw(t, "children") {
						tree.children[l] = append(tree.children[l], ch)
						rec.Children = append(rec.Children, testChunk(ch))
					}
					b.apply(rec)
					tree.depth[l] = uint8(depth)
					byDepth[depth] = append(byDepth[depth], l)
				}
			}
		})
		all := slices.Concat(byDepth[:]...)
		build(t, x, &c, false, func(b *builder) {
			for range rapid.IntRange(0, 12).Draw(t, "puts") {
				name, key := rapid.SampledFrom(names).Draw(t, "bucket"), rapid.SampledFrom([]string{"k", "l"}).Draw(t, "key")
				roots := rapid.SliceOfN(rapid.SampledFrom(all), 0, 4).Draw(t, "roots")
				p := &record.Put{In: id.Main, Bucket: ids[name], Key: []byte(key), Time: b.link.Time}
				for _, root := range roots {
					p.Manifest.Roots = append(p.Manifest.Roots, manifest.Ref{Chunk: testChunk(root), Depth: tree.depth[root], Len: 7})
					p.Manifest.Size += 7
				}
				versions := append(refers[name][key], roots)
				if set, err := b.r.BucketByID(p.Bucket); err != nil {
					t.Fatal(err)
				} else if !set.Settings.Versioning {
					versions = versions[len(versions)-1:]
					old, err := b.r.Versions(p.Bucket, p.Key, 100)
					if err != nil {
						t.Fatal(err)
					}
					for _, v := range old {
						p.Drops = append(p.Drops, record.Dropped{Version: v.Version})
					}
				}
				refers[name][key] = versions
				b.apply(p)
			}
		})
		uses := map[string]map[uint64]bool{}
		users := map[uint64]int{}
		for _, name := range names {
			share := name
			if strings.HasPrefix(name, ".") {
				share = "."
			}
			if uses[share] == nil {
				uses[share] = map[uint64]bool{}
			}
			for _, versions := range refers[name] {
				for _, roots := range versions {
					for _, root := range roots {
						tree.under(root, uses[share])
					}
				}
			}
		}
		for _, set := range uses {
			for c := range set {
				users[c]++
			}
		}
		sealed := func(c uint64) uint64 { return uint64(testEntry(c, false, 0).SealedLen) }
		check := func(name string, got Share) {
			t.Helper()
			var want Share
			most := uint64(0)
			for c := range uses[name] {
				want.Chunks, want.Bytes = want.Chunks+1, want.Bytes+sealed(c)
				want.Fair += sealed(c) / uint64(users[c])
				if sealed(c)%uint64(users[c]) > 0 {
					most++
				}
				if users[c] == 1 {
					want.AloneChunks, want.AloneBytes = want.AloneChunks+1, want.AloneBytes+sealed(c)
				}
			}
			if got.Fair < want.Fair || got.Fair > want.Fair+most {
				t.Errorf("%s: a fair share of %d, want %d to %d", name, got.Fair, want.Fair, want.Fair+most)
			}
			if want.Fair = got.Fair; got != want {
				t.Errorf("%s: got %+v, want %+v", name, got, want)
			}
		}
		// What widths are wished for: those of the hidden buckets are content with any.
		wishes := map[string]int{"a": 4, "b": 8, "c": 4}
		wished := map[int]uint64{}
		for c := range users {
			for _, w := range []int{4, 8} {
				if slices.ContainsFunc(slices.Collect(maps.Keys(uses)), func(name string) bool { return uses[name][c] && (wishes[name] == w || name == ".") }) {
					wished[w] += sealed(c)
				}
			}
		}
		for _, bounds := range [][2]int{{sharedAtOnce, listsKnown}, {rapid.IntRange(1, 10).Draw(t, "wishes at once"), rapid.IntRange(0, 3).Draw(t, "lists of wishes")}} {
			got, err := x.wishes(context.Background(), func(b Bucket) int { return wishes[b.Name] }, bounds[0], bounds[1])
			if err != nil {
				t.Fatal(err)
			}
			sum := map[int]uint64{}
			for _, in := range got.Bytes {
				for w, n := range in {
					sum[w] += n
				}
			}
			for _, w := range []int{4, 8} {
				if sum[w] != wished[w] {
					t.Errorf("%d bytes are wished at a width of %d, want %d", sum[w], w, wished[w])
				}
			}
		}
		var first Shares
		for i, bounds := range [][2]int{{sharedAtOnce, listsKnown}, {rapid.IntRange(1, 10).Draw(t, "at once"), rapid.IntRange(0, 3).Draw(t, "lists")}} {
			var done, total uint64
			got, err := x.shares(context.Background(), func(b Bucket) bool { return b.Name[0] == '.' }, func(d, of uint64) {
				if d < done || d > of {
					t.Errorf("read %d versions of %d, %d before", d, of, done)
				}
				done, total = d, of
			}, bounds[0], bounds[1])
			if err != nil {
				t.Fatal(err)
			}
			if done != total {
				t.Errorf("read %d versions of %d in all", done, total)
			}
			fair := got.Together.Fair
			var listed []string
			for _, b := range got.Buckets {
				listed = append(listed, b.Name)
				check(b.Name, b.Share)
				fair += b.Fair
			}
			check(".", got.Together)
			if want := []string{"a", "b", "c"}; !slices.Equal(listed, want) {
				t.Errorf("shares of %q, want %q", listed, want)
			}
			var used, unused uint64
			for _, c := range all {
				if users[c] > 0 {
					used += sealed(c)
				} else {
					unused += sealed(c)
				}
			}
			if got.UsedChunks != uint64(len(slices.Collect(maps.Keys(users)))) || got.UsedChunks+got.UnusedChunks != uint64(len(all)) || got.UsedBytes != used || got.UnusedBytes != unused || fair != used {
				t.Errorf("%d chunks of %d bytes are used, want %d bytes, the fair shares are %d; unused are %d of %d bytes, want %d", got.UsedChunks, got.UsedBytes, used, fair, got.UnusedChunks, got.UnusedBytes, unused)
			}
			if i == 0 {
				first = got
			} else if fmt.Sprint(first) != fmt.Sprint(got) {
				t.Errorf("in many sweeps\n%+v, in one\n%+v", got, first)
			}
		}
	})
}

func TestSharesEndWithTheirContext(t *testing.T) {
	x := newIndex(t)
	var c chain
	build(t, x, &c, true, func(b *builder) {
		n := b.bucket("a", false)
		b.entry(1, false)
		for i := range 1500 {
			b.put(n, fmt.Sprint(i), 1)
		}
	})
	why := errors.New("enough")
	ctx, cancel := context.WithCancelCause(t.Context())
	_, err := x.Shares(ctx, func(Bucket) bool { return false }, func(done, _ uint64) {
		if done > 0 {
			cancel(why)
		}
	})
	if !errors.Is(err, why) {
		t.Errorf("%v", err)
	}
}
