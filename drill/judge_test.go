package drill

import (
	"crypto/sha256"
	"errors"
	"slices"
	"strings"
	"testing"
)

// wants holds an error against whether a broken promise is meant.
func wants(t *testing.T, what string, err error, bad bool) {
	t.Helper()
	if _, is := errors.AsType[*broken](err); is != bad || (err != nil) != bad {
		t.Errorf("%s: judged %v, want a broken promise: %v", what, err, bad)
	}
}

func sum(s string) [sha256.Size]byte { return sha256.Sum256([]byte(s)) }

// read is what came of reading an object with these bytes.
func read(s string) reading { return reading{status: 200, size: int64(len(s)), sum: sum(s)} }

var (
	anObject = name{"b", "k", "1"}
	asIs     = version{Size: 5, Current: true, Sum: sum("right")}
	cut      = reading{status: 200, size: 3, err: errors.New("unexpected EOF")}
	notThere = reading{status: 404, kind: "no-such-object"}
	damaged  = reading{status: 500, kind: "damaged"}
	silence  = reading{err: errors.New("connection refused")}
)

func TestJudgeRead(t *testing.T) {
	wants(t, "as it was written", judgeRead(anObject, asIs, read("right")), false)
	wants(t, "as it was written", judgeNoWrongByte(anObject, asIs, read("right")), false)
	for what, got := range map[string]reading{"other bytes": read("wrong"), "longer": read("right!"), "shorter": read("righ"), "nothing": read(""), "not there": notThere} {
		wants(t, what, judgeRead(anObject, asIs, got), true)
		wants(t, what+", where it may be lost", judgeNoWrongByte(anObject, asIs, got), true)
	}
	for what, got := range map[string]reading{"an error": damaged, "no answer": silence, "a body that was cut": cut} {
		wants(t, what, judgeRead(anObject, asIs, got), true)
		wants(t, what+", where it may be lost", judgeNoWrongByte(anObject, asIs, got), false)
	}
}

func TestJudgeListing(t *testing.T) {
	other := name{"b", "l", "2"}
	marker := version{Deleted: true, Current: true}
	want := map[name]version{anObject: asIs, other: marker}
	listed := version{Size: 5, Current: true} // a listing has no hash
	wants(t, "the same", judgeListing(want, map[name]version{anObject: listed, other: marker}), false)
	for what, got := range map[string]map[name]version{
		"none":              {},
		"one is missing":    {anObject: listed},
		"one too many":      {anObject: listed, other: marker, {"b", "m", "3"}: listed},
		"another version":   {{"b", "k", "9"}: listed, other: marker},
		"another size":      {anObject: {Size: 6, Current: true}, other: marker},
		"revived":           {anObject: listed, other: {Current: true}},
		"not current":       {anObject: {Size: 5}, other: marker},
		"in another bucket": {{"c", "k", "1"}: listed, other: marker},
	} {
		wants(t, what, judgeListing(want, got), true)
	}
}

func TestJudgeWrites(t *testing.T) {
	write := func(s string, acked, refused bool) attempt { return attempt{sum(s), int64(len(s)), acked, refused} }
	done := func(s string) attempt { return write(s, true, false) }
	open := func(s string) attempt { return write(s, false, false) }
	no := func(s string) attempt { return write(s, false, true) }
	for _, c := range []struct {
		what    string
		history []attempt
		got     reading
		bad     bool
	}{
		{"never written", nil, notThere, false},
		{"never written, and there", nil, read("x"), true},
		{"acknowledged", []attempt{done("a")}, read("a"), false},
		{"acknowledged and gone", []attempt{done("a")}, notThere, true},
		{"acknowledged and an error", []attempt{done("a")}, damaged, true},
		{"acknowledged and cut", []attempt{done("a")}, cut, true},
		{"acknowledged and other bytes", []attempt{done("a")}, read("b"), true},
		{"an overwrite that was undone", []attempt{done("a"), done("b")}, read("a"), true},
		{"under way, absent", []attempt{open("a")}, notThere, false},
		{"under way, whole", []attempt{open("a")}, read("a"), false},
		{"under way, half", []attempt{open("ab")}, read("a"), true},
		{"an overwrite under way, before", []attempt{done("a"), open("b")}, read("a"), false},
		{"an overwrite under way, after", []attempt{done("a"), open("b")}, read("b"), false},
		{"an overwrite under way took both", []attempt{done("a"), open("b")}, notThere, true},
		{"what was under way before an acknowledged write", []attempt{open("a"), done("b")}, read("a"), true},
		{"refused, absent", []attempt{no("a")}, notThere, false},
		{"refused, and there", []attempt{no("a")}, read("a"), true},
	} {
		wants(t, c.what, judgeWrites(anObject, c.history, c.got), c.bad)
	}
}

func TestJudgeLoss(t *testing.T) {
	a, b := anObject, name{"b", "other", "2"}
	wants(t, "exactly", judgeLoss("it", []name{a, b}, []name{b, a}), false)
	wants(t, "none", judgeLoss("it", nil, nil), false)
	wants(t, "one is not named", judgeLoss("it", []name{a, b}, []name{a}), true)
	wants(t, "none is named", judgeLoss("it", []name{a}, nil), true)
	wants(t, "one too many", judgeLoss("it", []name{a}, []name{a, b}), true)
	wants(t, "another version", judgeLoss("it", []name{a}, []name{{"b", "k", "9"}}), true)
}

func TestJudgeScrub(t *testing.T) {
	whole := scrubbed{Complete: true, Packs: 3, Shards: 18}
	mended := scrubbed{Complete: true, Damaged: 2, Repaired: 2}
	lost := scrubbed{Complete: true, LostPacks: 1}
	wants(t, "clean", judgeScrub(0, whole, scrubClean), false)
	wants(t, "repaired", judgeScrub(1, mended, scrubRepaired), false)
	wants(t, "lost", judgeScrub(2, lost, scrubLost), false)
	wants(t, "nothing left to find", judgeScrub(0, whole, scrubEither), false)
	wants(t, "the rest", judgeScrub(1, mended, scrubEither), false)
	wants(t, "found, and called clean", judgeScrub(0, mended, scrubEither), true)
	wants(t, "nothing found, and called repaired", judgeScrub(1, whole, scrubEither), true)
	wants(t, "lost where all can be repaired", judgeScrub(2, lost, scrubEither), true)
	for _, c := range []struct {
		what string
		code int
		s    scrubbed
		want int
	}{
		{"not complete", 0, scrubbed{}, scrubClean},
		{"finds nothing where there is damage", 0, whole, scrubRepaired},
		{"says repaired, and has found nothing", 1, whole, scrubRepaired},
		{"leaves some", 1, scrubbed{Complete: true, Damaged: 2, Repaired: 1, Left: 1}, scrubRepaired},
		{"code 2 where all can be repaired", 2, mended, scrubRepaired},
		{"says clean, and has found something", 0, mended, scrubClean},
		{"repairs again", 1, mended, scrubClean},
		{"chunks that do not open", 0, scrubbed{Complete: true, Broken: 1}, scrubClean},
		{"repaired, where something is lost", 1, mended, scrubLost},
		{"code 2, and nothing lost", 2, mended, scrubLost},
	} {
		wants(t, c.what, judgeScrub(c.code, c.s, c.want), true)
	}
}

func TestJudgeSpace(t *testing.T) {
	wants(t, "all and its parity", judgeSpace(100<<20, 85<<20, 10<<20), false)
	wants(t, "nine tenths", judgeSpace(100<<20, 91<<20, 10<<20), false)
	wants(t, "half", judgeSpace(100<<20, 95<<20, 10<<20), true)
	wants(t, "nothing", judgeSpace(100<<20, 100<<20, 10<<20), true)
	wants(t, "more than before", judgeSpace(100<<20, 120<<20, 10<<20), true)
}

func TestLostWithout(t *testing.T) {
	wide := piece{&pack{id: "p", need: 2, shards: []place{{0, "a"}, {1, "b"}, {2, "c"}, {3, "d"}}}, 0, 0}
	lone := piece{&pack{id: "q", need: 1, shards: []place{{0, "e"}, {1, "f"}, {2, "g"}}}, 0, 0}
	for gone, want := range map[string]bool{"": false, "a": false, "a b": false, "b d e f": false, "a b c": true, "e f g": true, "b c d": false, "a c d": true} {
		nodes := strings.Fields(gone)
		if got := lostWithout([]piece{wide, lone}, func(_ *pack, s place) bool { return slices.Contains(nodes, s.node) }); got != want {
			t.Errorf("without %q: lost %v, want %v", gone, got, want)
		}
	}
}
