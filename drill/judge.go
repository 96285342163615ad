package drill

import (
	"crypto/sha256"
	"fmt"
	"maps"
	"slices"
	"strings"
)

// name is what a version of an object is found by.
type name struct{ Bucket, Key, Version string }

func (n name) String() string {
	if n.Version == "" {
		return n.Bucket + "/" + n.Key
	}
	return n.Bucket + "/" + n.Key + ", version " + n.Version
}

// version is what is known of one: what a listing shows, and of one that is not
// a delete marker the hash of its bytes.
type version struct {
	Size             int64
	Deleted, Current bool
	Sum              [sha256.Size]byte
}

// truth is what a store has to hold.
type truth struct {
	buckets  []string
	versions map[name]version
}

func (t truth) clone() truth {
	return truth{slices.Clone(t.buckets), maps.Clone(t.versions)}
}

// names are those of the versions that have bytes, in order.
func (t truth) names() []name {
	var out []name
	for n, v := range t.versions {
		if !v.Deleted {
			out = append(out, n)
		}
	}
	slices.SortFunc(out, func(a, b name) int { return strings.Compare(a.String(), b.String()) })
	return out
}

// reading is what came of reading a version to its end.
type reading struct {
	status int    // 0: no answer
	kind   string // of an error, without the common prefix
	size   int64
	sum    [sha256.Size]byte
	err    error // the connection, or the body was cut
}

func (r reading) whole() bool { return r.status == 200 && r.err == nil }

func (r reading) String() string {
	if r.err != nil {
		return fmt.Sprintf("status %d, %v", r.status, r.err)
	}
	return strings.TrimSpace(fmt.Sprintf("status %d %s", r.status, r.kind))
}

// judgeRead wants the bytes that were written.
func judgeRead(n name, want version, got reading) error {
	switch {
	case !got.whole():
		return brokenf("%v cannot be read: %v", n, got)
	case got.size != want.Size || got.sum != want.Sum:
		return brokenf("%v gives %d bytes that are not the %d that were written", n, got.size, want.Size)
	}
	return nil
}

// judgeNoWrongByte wants the bytes that were written, or an error that says so.
func judgeNoWrongByte(n name, want version, got reading) error {
	if got.whole() {
		return judgeRead(n, want, got)
	}
	if got.status == 404 || got.status == 410 {
		return brokenf("%v is lost, and the answer is that it is not there: %v", n, got)
	}
	return nil
}

// judgeListing wants exactly the versions that there are, each as it was.
func judgeListing(want, got map[name]version) error {
	var wrong []string
	for n, w := range want {
		g, ok := got[n]
		switch {
		case !ok:
			wrong = append(wrong, n.String()+" is not listed")
		case g.Size != w.Size || g.Deleted != w.Deleted || g.Current != w.Current:
			wrong = append(wrong, fmt.Sprintf("%v is listed as %+v and was %+v", n, shown(g), shown(w)))
		}
	}
	for n := range got {
		if _, ok := want[n]; !ok {
			wrong = append(wrong, n.String()+" is listed and was never written")
		}
	}
	slices.Sort(wrong)
	return first(wrong)
}

// shown leaves out the hash.
func shown(v version) string {
	return fmt.Sprintf("%d bytes, deleted %v, current %v", v.Size, v.Deleted, v.Current)
}

// first makes an error of complaints, however many.
func first(wrong []string) error {
	switch n := len(wrong); {
	case n == 0:
		return nil
	case n > 3:
		return brokenf("%s; and %d more", strings.Join(wrong[:3], "; "), n-3)
	}
	return &broken{strings.Join(wrong, "; ")}
}

// attempt is a write whose outcome may not be known.
type attempt struct {
	sum     [sha256.Size]byte
	size    int64
	acked   bool // it was answered as done
	refused bool // it was answered as not done
}

// judgeWrites holds a key that one client has written in order against what it
// reads as: an acknowledged write stands until a later one may have taken its
// place, and what was not acknowledged is there whole or not at all.
func judgeWrites(n name, history []attempt, got reading) error {
	none := true // that there is nothing is allowed
	var allowed []attempt
	for _, a := range history {
		switch {
		case a.acked:
			none, allowed = false, []attempt{a}
		case !a.refused:
			allowed = append(allowed, a)
		}
	}
	if got.status == 404 {
		if !none {
			return brokenf("%v was acknowledged and is not there", n)
		}
		return nil
	}
	if !got.whole() {
		return brokenf("%v cannot be read: %v", n, got)
	}
	for _, a := range allowed {
		if a.size == got.size && a.sum == got.sum {
			return nil
		}
	}
	return brokenf("%v gives %d bytes that no write that it may hold has written", n, got.size)
}

// judgeLoss wants exactly these named, and says what is missing and what is too
// much. who says so is named in the complaint.
func judgeLoss(who string, want, got []name) error {
	var wrong []string
	for _, n := range want {
		if !slices.Contains(got, n) {
			wrong = append(wrong, fmt.Sprintf("%s does not name %v, which is lost", who, n))
		}
	}
	for _, n := range got {
		if !slices.Contains(want, n) {
			wrong = append(wrong, fmt.Sprintf("%s names %v, which is not lost", who, n))
		}
	}
	return first(wrong)
}

// scrubbed is what a scrub says of its pass.
type scrubbed struct {
	Complete  bool           `json:"complete"`
	Packs     int            `json:"packs"`
	Shards    int            `json:"shards"`
	Damaged   int            `json:"damaged"`
	Repaired  int            `json:"repaired"`
	Left      int            `json:"left"`
	LostPacks int            `json:"lost_packs"`
	Broken    int            `json:"lost_chunks"`
	Bytes     int64          `json:"bytes_read"`
	Seconds   float64        `json:"seconds"`
	Damage    map[string]int `json:"damage"`
}

// Exit codes of cairn scrub.
const (
	scrubClean    = 0
	scrubRepaired = 1
	scrubLost     = 2

	// scrubEither is what may be wanted where reads have found damage before, and had
	// it repaired: clean, or repaired.
	scrubEither = -1
)

// judgeScrub wants a complete pass whose exit code says what it has found.
func judgeScrub(code int, s scrubbed, want int) error {
	if want == scrubEither {
		if want = scrubRepaired; s.Damaged == 0 {
			want = scrubClean
		}
	}
	switch {
	case !s.Complete:
		return brokenf("the scrub is not complete (exit code %d)", code)
	case code != want:
		return brokenf("the scrub ends with exit code %d, want %d: damaged %d, repaired %d, left %d, lost packs %d", code, want, s.Damaged, s.Repaired, s.Left, s.LostPacks)
	case want == scrubClean && s.Damaged+s.LostPacks+s.Broken > 0:
		return brokenf("a scrub that should find nothing finds %d shards damaged and %d packs lost", s.Damaged, s.LostPacks)
	case want == scrubRepaired && (s.Damaged == 0 || s.Left+s.LostPacks+s.Broken > 0):
		return brokenf("a scrub that should repair everything finds %d shards damaged, leaves %d, and finds %d packs lost", s.Damaged, s.Left, s.LostPacks)
	case want == scrubLost && s.LostPacks == 0:
		return brokenf("a scrub finds no pack lost where there are")
	}
	return nil
}

// pack is where the shards of one lie.
type pack struct {
	id     string
	data   bool // not one of the log
	need   int  // shards
	shards []place
}

// place is that of a shard.
type place struct {
	index uint8
	node  string
}

// piece is a chunk: where in a pack it lies.
type piece struct {
	pack        *pack
	first, last uint8 // data shards
}

// lostWithout says whether an object of these chunks is lost when shards are. A
// chunk is read from the shards it lies in, or if one of them is gone, from as many
// others as the pack needs.
func lostWithout(chunks []piece, gone func(*pack, place) bool) bool {
	for _, c := range chunks {
		left, touched := 0, false
		for _, s := range c.pack.shards {
			if !gone(c.pack, s) {
				left++
			} else if s.index >= c.first && s.index <= c.last {
				touched = true
			}
		}
		if touched && left < c.pack.need {
			return true
		}
	}
	return false
}

// judgeSpace wants that nodes which took full bytes on disk give back what so many
// deleted bytes took, parity left out: a tenth is left to rewriting and segments.
func judgeSpace(full, less, deleted int64) error {
	if back := full - less; back < deleted*9/10 {
		return brokenf("%s were deleted, and the nodes have given back %s", mib(deleted), mib(back))
	}
	return nil
}
