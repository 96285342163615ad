package keys

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

func testCode(t testing.TB) (RecoveryCode, string) {
	t.Helper()
	c, err := NewRecoveryCode(nil)
	if err != nil {
		t.Fatal(err)
	}
	return c, c.Reveal()
}

func TestRecoveryCodesParseBack(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		c := newCode([codeBytes]byte(rapid.SliceOfN(rapid.Byte(), codeBytes, codeBytes).Draw(t, "bits")))
		s := c.Reveal()
		if len(s) != codeGroups*6-1 {
			t.Fatalf("%s has %d characters", s, len(s))
		}
		for _, typed := range []string{s, strings.ToLower(s), strings.ReplaceAll(s, "-", ""), strings.ReplaceAll(s, "-", " "), " " + s + "\r\n",
			strings.ReplaceAll(s, "0", "O"), strings.ReplaceAll(s, "0", "o"), strings.ReplaceAll(s, "1", "I"), strings.ReplaceAll(s, "1", "l")} {
			got, err := ParseRecoveryCode(typed)
			if err != nil || *got.get() != *c.get() {
				t.Fatalf("%q: %v", typed, err)
			}
		}
	})
}

// Every wrong symbol, every two of a group that changed places, every two groups
// that did, and every symbol missing or too many is found, and the error says in
// which group where that can be known.
func TestTypingErrorsAreFound(t *testing.T) {
	for range 5 {
		_, s := testCode(t)
		refuse := func(what, typed string, group int) {
			t.Helper()
			_, err := ParseRecoveryCode(typed)
			if !errors.Is(err, ErrInvalid) || group > 0 && !strings.Contains(err.Error(), fmt.Sprintf("group %d", group)) {
				t.Errorf("%s: %q for %q: %v, want ErrInvalid in group %d", what, typed, s, err, group)
			} else if strings.Contains(err.Error(), s[:5]) || strings.Contains(err.Error(), s[6:11]) {
				t.Errorf("%s: the error quotes the code: %v", what, err)
			}
		}
		for i := range s {
			if s[i] == '-' {
				continue
			}
			for _, c := range codeSymbols {
				if byte(c) != s[i] {
					refuse("a wrong symbol", s[:i]+string(c)+s[i+1:], i/6+1)
				}
			}
			for _, c := range "U*#é" {
				refuse("no symbol", s[:i]+string(c)+s[i+1:], i/6+1)
			}
			refuse("one missing", s[:i]+s[i+1:], 0)
			refuse("one too many", s[:i]+"7"+s[i:], 0)
			for j := i + 1; j < len(s) && s[j] != '-'; j++ {
				if s[i] != s[j] {
					b := []byte(s)
					b[i], b[j] = b[j], b[i]
					refuse("two changed places", string(b), i/6+1)
				}
			}
		}
		groups := strings.Split(s, "-")
		for i := range groups {
			for j := range i {
				if groups[i] != groups[j] {
					g := strings.Split(s, "-")
					g[i], g[j] = g[j], g[i]
					refuse("two groups changed places", strings.Join(g, "-"), j+1)
				}
			}
		}
		refuse("nothing", "", 0)
		refuse("much", strings.Repeat(s, 1000), 0)
	}
}

func TestRecoveryCodesAreRandom(t *testing.T) {
	_, a := testCode(t)
	_, b := testCode(t)
	if a == b {
		t.Error("two codes are one")
	}
	if codeBytes*8 != 160 {
		t.Errorf("a code holds %d bits", codeBytes*8)
	}
}

// field is checked against multiplication written out as polynomials.
func TestFieldArithmetic(t *testing.T) {
	for a := range byte(32) {
		for b := range byte(32) {
			var p int
			for i := range 5 {
				if b>>i&1 == 1 {
					p ^= int(a) << i
				}
			}
			for i := 9; i >= 5; i-- {
				if p>>i&1 == 1 {
					p ^= 0b100101 << (i - 5)
				}
			}
			if got := field(a, b); int(got) != p {
				t.Fatalf("%d times %d is %d, want %d", a, b, got, p)
			}
		}
	}
}

func FuzzRecoveryCode(f *testing.F) {
	_, s := testCode(f)
	f.Add(s)
	f.Add(strings.ToLower(s))
	f.Add(s[:20])
	f.Add("OIL" + s[3:])
	f.Fuzz(func(t *testing.T, s string) {
		c, err := ParseRecoveryCode(s)
		if err != nil {
			if !errors.Is(err, ErrInvalid) {
				t.Fatal(err)
			}
			return
		}
		again, err := ParseRecoveryCode(c.Reveal())
		if err != nil || *again.get() != *c.get() {
			t.Fatalf("%q is printed as %q, which is another code: %v", s, c.Reveal(), err)
		}
	})
}
