package id

import (
	"bytes"
	"errors"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

func TestPrintedFormsParseBack(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		b := rapid.SliceOfN(rapid.Byte(), 32, 32).Draw(t, "bytes")
		c := Chunk(b)
		if got, err := ParseChunk(c.String()); err != nil || got != c {
			t.Fatalf("chunk %v parses to %v, %v", c, got, err)
		}
		p := Pack(b[:16])
		if got, err := ParsePack(p.String()); err != nil || got != p {
			t.Fatalf("pack %v parses to %v, %v", p, got, err)
		}
		n := Node(b[16:])
		if got, err := ParseNode(n.String()); err != nil || got != n {
			t.Fatalf("node %v parses to %v, %v", n, got, err)
		}
	})
}

func TestVersionsSortAsTheyPrint(t *testing.T) {
	version := rapid.Custom(func(t *rapid.T) Version {
		return Version{Seq: rapid.Uint64().Draw(t, "seq"), Pos: rapid.Uint32().Draw(t, "pos")}
	})
	rapid.Check(t, func(t *rapid.T) {
		v, w := version.Draw(t, "v"), version.Draw(t, "w")
		if got, want := strings.Compare(v.String(), w.String()), v.Compare(w); got != want {
			t.Fatalf("%v and %v: printed order %d, order %d", v, w, got, want)
		}
		if back, err := ParseVersion(v.String()); err != nil || back != v {
			t.Fatalf("version %v parses to %v, %v", v, back, err)
		}
	})
}

// TestJobsSortByTime: whatever is drawn, and the printed form is read back.
func TestJobsSortByTime(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		ms := rapid.Uint64Range(0, 1<<48-1)
		a, b := ms.Draw(t, "a"), ms.Draw(t, "b")
		random := bytes.NewReader(append(rapid.SliceOfN(rapid.Byte(), 32, 32).Draw(t, "random"), 1))
		x, err := NewJob(random, a)
		if err != nil {
			t.Skip(err)
		}
		y, err := NewJob(random, b)
		if err != nil {
			t.Skip(err)
		}
		if x.Milliseconds() != a || y.Milliseconds() != b || a < b && (x.Compare(y) >= 0 || x.String() >= y.String()) {
			t.Fatalf("%v of %d and %v of %d", x, a, y, b)
		}
		if got, err := ParseJob(x.String()); err != nil || got != x {
			t.Fatalf("job %v parses to %v, %v", x, got, err)
		}
	})
	const good = "018bcfe5-687b-7abc-9abc-0123456789ab"
	if _, err := ParseJob(good); err != nil {
		t.Error(err)
	}
	for _, s := range []string{"", strings.ToUpper(good), good + "0", strings.ReplaceAll(good, "-", "0"), strings.Replace(good, "-7", "-4", 1), strings.Replace(good, "-9", "-c", 1), strings.Repeat("-", 36)} {
		if _, err := ParseJob(s); !errors.Is(err, ErrSyntax) {
			t.Errorf("%q: %v", s, err)
		}
	}
}

func TestParseRefuses(t *testing.T) {
	for _, s := range []string{"", "zz", strings.Repeat("A", 32), strings.Repeat("a", 31), strings.Repeat("a", 33), strings.Repeat("a", 1<<20), strings.Repeat("g", 32)} {
		if _, err := ParsePack(s); !errors.Is(err, ErrSyntax) {
			t.Errorf("ParsePack(%.40q): %v, want ErrSyntax", s, err)
		} else if len(err.Error()) > 400 {
			t.Errorf("ParsePack(%.40q): an error of %d bytes", s, len(err.Error()))
		}
	}
}

func TestDrawnIDsAreNeverZero(t *testing.T) {
	if _, err := NewPack(bytes.NewReader(make([]byte, 64))); err == nil {
		t.Error("NewPack took sixteen zero bytes for an ID")
	}
	a, err := NewPack(nil)
	if err != nil {
		t.Fatal(err)
	}
	b, err := NewPack(nil)
	if err != nil {
		t.Fatal(err)
	}
	if a == b || a.IsZero() {
		t.Errorf("two drawn IDs: %v and %v", a, b)
	}
}
