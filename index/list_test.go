package index

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"cairn/id"
	"cairn/record"
)

// listed is an object of the listing model: a key and which of its versions,
// newest first, are delete markers.
type listed struct {
	key      string
	versions []Object
}

// modelList says what a page must hold, from all objects in order.
func modelList(all []listed, o ListOptions) (page Page) {
	type entry struct {
		name   string
		prefix bool
		Object
	}
	var out []entry
	for _, l := range all {
		if !strings.HasPrefix(l.key, o.Prefix) {
			continue
		}
		name, folded := l.key, false
		if o.Delimiter != "" {
			if i := strings.Index(l.key[len(o.Prefix):], o.Delimiter); i >= 0 {
				name, folded = l.key[:len(o.Prefix)+i+len(o.Delimiter)], true
			}
		}
		for _, v := range l.versions {
			switch {
			case !o.Versions && (!v.Current || v.Deleted):
				continue
			case name < o.After || name == o.After && o.After != "" && (folded || !o.Versions || o.AfterVersion.IsZero() || v.Version.Compare(o.AfterVersion) >= 0):
				continue
			case folded && len(out) > 0 && out[len(out)-1].name == name:
				continue
			}
			out = append(out, entry{name, folded, v})
		}
	}
	limit := o.Limit
	if limit <= 0 || limit > MaxList {
		limit = MaxList
	}
	page.More = len(out) > limit
	for _, e := range out[:min(limit, len(out))] {
		if e.prefix {
			page.Prefixes = append(page.Prefixes, e.name)
		} else {
			page.Objects = append(page.Objects, Item{e.name, e.Object})
		}
	}
	if page.More {
		last := out[limit-1]
		page.Next = last.name
		if o.Versions && !last.prefix {
			page.NextVersion = last.Version
		}
	}
	return page
}

func brief(p Page) string {
	var b strings.Builder
	for _, o := range p.Objects {
		fmt.Fprintf(&b, "%q@%v deleted=%v current=%v; ", o.Key, o.Version, o.Deleted, o.Current)
	}
	fmt.Fprintf(&b, "prefixes %q more=%v next=%q@%v", p.Prefixes, p.More, p.Next, p.NextVersion)
	return b.String()
}

func TestListAgainstSortedSlice(t *testing.T) {
	piece := rapid.SampledFrom([]string{"a", "b", "/", "--", "\x00", "\x01", "\xff", "é"})
	name := func(min, max int) *rapid.Generator[string] {
		return rapid.Custom(func(t *rapid.T) string {
			return strings.Join(rapid.SliceOfN(piece, min, max).Draw(t, "name"), "")
		})
	}
	rapid.Check(t, func(t *rapid.T) {
		x := newIndex(t)
		var c chain
		keys := rapid.SliceOfNDistinct(name(1, 5), 0, 25, rapid.ID[string]).Draw(t, "keys")
		history := map[string][]Object{}
		build(t, x, &c, true, func(b *builder) {
			n := b.bucket("other", true)
			b.put(n, "a")
			n = b.bucket("main", true)
			for _, k := range keys {
				for i := range rapid.SampledFrom([]int{1, 1, 2, 3, 9}).Draw(t, "versions") {
					v := Object{Version: id.Version{Seq: 1, Pos: uint32(len(b.link.Records))}, Time: b.link.Time}
					if v.Deleted = rapid.IntRange(0, 3).Draw(t, "deleted") == 0; v.Deleted {
						b.apply(&record.Delete{In: 1, Bucket: n, Key: []byte(k), Time: v.Time})
					} else {
						b.put(n, k)
					}
					if v.Current = true; i > 0 {
						history[k][0].Current = false
					}
					history[k] = append([]Object{v}, history[k]...)
				}
			}
			n = b.bucket("third", true)
			b.put(n, "a")
		})
		var all []listed
		for k, vs := range history {
			all = append(all, listed{k, vs})
		}
		slices.SortFunc(all, func(a, b listed) int { return strings.Compare(a.key, b.key) })
		err := x.View(func(r Reader) error {
			for range 20 {
				o := ListOptions{
					Prefix:    name(0, 2).Draw(t, "prefix"),
					Delimiter: rapid.SampledFrom([]string{"", "/", "--", "-", "a", "\x00", "\xff", "a/"}).Draw(t, "delimiter"),
					Limit:     rapid.SampledFrom([]int{0, 1, 2, 3, 7, 5000}).Draw(t, "limit"),
					Versions:  rapid.Bool().Draw(t, "all versions"),
				}
				if rapid.Bool().Draw(t, "after") {
					o.After = name(0, 3).Draw(t, "after")
					if len(all) > 0 && rapid.Bool().Draw(t, "a key") {
						l := rapid.SampledFrom(all).Draw(t, "after key")
						o.After = l.key
						if rapid.Bool().Draw(t, "with version") {
							o.AfterVersion = rapid.SampledFrom(l.versions).Draw(t, "after version").Version
						}
					}
				}
				for page := 0; ; page++ {
					got, err := r.List(2, o)
					if err != nil {
						return err
					}
					// Listings carry content too; here only what the model knows.
					for i := range got.Objects {
						got.Objects[i].ETag, got.Objects[i].Attrs = nil, record.Attrs{}
					}
					if want := modelList(all, o); brief(got) != brief(want) {
						t.Fatalf("%+v:\n got %s\nwant %s", o, brief(got), brief(want))
					}
					if !got.More {
						break
					}
					o.After, o.AfterVersion = got.Next, got.NextVersion
				}
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	})
}

// TestListLeaps counts the rows that a listing looks at.
func TestListLeaps(t *testing.T) {
	x := newIndex(t)
	var c chain
	var n id.Bucket
	build(t, x, &c, true, func(b *builder) { n = b.bucket("main", true) })
	const many = 20000
	for at := 0; at < many; at += 1000 {
		build(t, x, &c, false, func(b *builder) {
			for i := range 1000 {
				b.put(n, fmt.Sprintf("a/%06d", at+i))
			}
			for range 300 {
				b.put(n, "b")
			}
			b.put(n, fmt.Sprintf("c%06d", at))
		})
	}
	for _, test := range []struct {
		o       ListOptions
		entries int
		rows    int // at most
	}{
		{ListOptions{Delimiter: "/"}, 2 + many/1000, 2 + many/1000 + passed},
		{ListOptions{Delimiter: "/", After: "a/"}, 1 + many/1000, 1 + many/1000 + passed},
		{ListOptions{Delimiter: "/", Limit: 1}, 1, 2},
		{ListOptions{Prefix: "b"}, 1, 1 + passed},
		{ListOptions{Prefix: "a/", Limit: 10}, 10, 11},
		{ListOptions{Prefix: "a/", After: "a/010000", Limit: 10}, 10, 11},
		{ListOptions{After: "b", AfterVersion: id.Version{Seq: 2, Pos: 5}, Versions: true, Limit: 1}, 1, 2},
	} {
		err := x.View(func(r Reader) error {
			page, rows, err := r.(*reader).list(n, test.o)
			if got := len(page.Objects) + len(page.Prefixes); got != test.entries || rows > test.rows {
				t.Errorf("%+v: %d entries from %d rows, want %d from at most %d", test.o, got, rows, test.entries, test.rows)
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
}

// TestListEndsByBytes: a page of long attributes ends before its limit, and the
// pages join to the whole. An entry is never cut, and never kept out.
func TestListEndsByBytes(t *testing.T) {
	x := newIndex(t)
	var c chain
	var n id.Bucket
	build(t, x, &c, true, func(b *builder) { n = b.bucket("main", true) })
	const many = 420
	long := record.Attrs{ContentType: strings.Repeat("x", 7<<10)}
	for at := 0; at < many; at += 60 {
		build(t, x, &c, false, func(b *builder) {
			for i := range 60 {
				b.apply(&record.Put{In: 1, Bucket: n, Key: fmt.Appendf(nil, "%04d", at+i), Time: b.link.Time, Attrs: long})
			}
		})
	}
	for _, versions := range []bool{false, true} {
		var got []string
		pages := 0
		err := x.View(func(r Reader) error {
			for o := (ListOptions{Versions: versions}); ; pages++ {
				page, err := r.List(n, o)
				if err != nil {
					return err
				}
				size := 0
				for _, it := range page.Objects {
					got = append(got, it.Key)
					size += len(it.Attrs.ContentType)
				}
				if size > maxListBytes || len(page.Objects) == 0 || page.More && size < maxListBytes*9/10 {
					t.Errorf("a page of %d objects has %d bytes of attributes, more %v", len(page.Objects), size, page.More)
				}
				if !page.More {
					return nil
				}
				o.After, o.AfterVersion = page.Next, page.NextVersion
			}
		})
		if err != nil {
			t.Fatal(err)
		}
		if !slices.IsSorted(got) || len(slices.Compact(got)) != many || pages < 2 {
			t.Errorf("versions %v: %d keys on %d pages, want %d on several", versions, len(got), pages+1, many)
		}
	}
}
