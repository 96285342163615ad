package keys

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"testing"

	"cairn/id"
)

// Six nodes, of which some hold what they should not.
func TestOpenNewest(t *testing.T) {
	k1, f := unlocked(t)
	g, err := NewKeyFile(nil)
	if err != nil {
		t.Fatal(err)
	}
	k2, err := k1.AddSlot(ctx, g)
	if err != nil {
		t.Fatal(err)
	}
	k3, err := k2.Rotate(id.Main)
	if err != nil {
		t.Fatal(err)
	}
	k4, err := k3.RemoveSlot(1) // f is no key any more
	if err != nil {
		t.Fatal(err)
	}
	k5, err := k4.Rotate(id.Main)
	if err != nil {
		t.Fatal(err)
	}
	foreign, err := New(id.Cluster{9}, nil)
	for err == nil && foreign.Generation() < 9 {
		foreign, err = foreign.AddSlot(ctx, f)
	}
	if err != nil {
		t.Fatal(err)
	}
	b1, b2, b3, b4, b5 := k1.Marshal(), k2.Marshal(), k3.Marshal(), k4.Marshal(), k5.Marshal()
	planted := bytes.Clone(b3)
	binary.LittleEndian.PutUint64(planted[24:], 1<<60)
	resum(planted) // a higher generation, with a checksum that holds
	wrong := bytes.Clone(planted)
	for at := ringHead; at < ringHead+2*(slotHead+wrapMin+wrapSize); at += slotHead + wrapMin + wrapSize {
		wrong[at+slotHead+wrapMin] ^= 1 // and salts that make every key a wrong one
	}
	resum(wrong)
	newer := resum(append([]byte("CRNK\x02\x00"), make([]byte, 100)...))
	rotten := bytes.Clone(b3)
	rotten[99] ^= 1
	huge := append(bytes.Clone(b3), make([]byte, MaxSize)...)
	alien := foreign.Marshal()
	away := errors.New("connection refused")
	for name, c := range map[string]struct {
		copies [][]byte
		p      Provider
		want   uint64
		err    error
	}{
		"all equal":                       {[][]byte{b3, b3, b3, b3, b3, b3}, f, k3.Generation(), nil},
		"a rotation cut short":            {[][]byte{b2, b2, b3, b2, b2, b2}, f, k3.Generation(), nil},
		"old ones":                        {[][]byte{b1, b3, b1, b3, b2, b3}, f, k3.Generation(), nil},
		"planted, wrong, rotten, huge":    {[][]byte{planted, wrong, rotten, huge, b3, b2}, f, k3.Generation(), nil},
		"foreign, cut, none":              {[][]byte{alien, b3[:80], nil, b3, alien, b3}, f, k3.Generation(), nil},
		"most are rotten":                 {[][]byte{rotten, rotten, rotten, rotten, rotten, b3}, f, k3.Generation(), nil},
		"newer on two":                    {[][]byte{newer, newer, b3, b3, b3, b3}, f, k3.Generation(), nil},
		"newer on four":                   {[][]byte{newer, newer, b3, newer, newer, b3}, f, 0, ErrNewer},
		"the slot was removed":            {[][]byte{b4, b4, b4, b4, b3, b3}, f, 0, ErrWrongKey},
		"the slot was removed, cut short": {[][]byte{b4, b4, b4, b3, b3, b3}, f, k3.Generation(), nil},
		"the other key":                   {[][]byte{b4, b4, b4, b4, b3, b3}, g, k4.Generation(), nil},
		"the other key, rotated":          {[][]byte{b4, b5, b4, b4, b3, b3}, g, k5.Generation(), nil},
		"all damaged":                     {[][]byte{rotten, rotten, huge}, f, 0, ErrDamaged},
		"all foreign":                     {[][]byte{alien, alien}, f, 0, ErrForeign},
		"none":                            {nil, f, 0, ErrInvalid},
		"could not ask":                   {[][]byte{b3, b3}, awayProvider{f, away}, 0, away},
	} {
		k, err := OpenNewest(ctx, testCluster, c.copies, c.p)
		switch {
		case c.err != nil && (!errors.Is(err, c.err) || k != nil):
			t.Errorf("%s: %v, %v, want %v", name, k, err, c.err)
		case c.err == nil && (err != nil || k.Generation() != c.want):
			t.Errorf("%s: %v, %v, want generation %d", name, k, err, c.want)
		}
	}
}

// awayProvider is a key file's that cannot be asked.
type awayProvider struct {
	KeyFile
	err error
}

func (a awayProvider) Unwrap(context.Context, []byte) (Secret, error) { return Secret{}, a.err }
