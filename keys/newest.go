package keys

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math"
	"slices"

	"cairn/id"
)

// OpenNewest unlocks the newest of several copies of a keyring, as the nodes
// keep them. What a copy says of its generation is not authenticated before it
// opens, so the copies are tried from the highest down, equal ones once:
//
//   - what is damaged or foreign is passed over, wherever it is: nodes that hold
//     planted, cut or rotten copies stop no start (H56);
//   - what p does not open ([ErrWrongKey]), or only a newer version reads
//     ([ErrNewer]), ends the search with that error when more than half of all
//     copies are equal to it: the slot was removed on purpose, and an older
//     generation must not be taken in its place. One that fewer hold is passed
//     over;
//   - any other error of p ends the search: nothing is known then.
//
// The caller still holds the generation against the one in its log.
func OpenNewest(ctx context.Context, cluster id.Cluster, copies [][]byte, p Provider) (*Keyring, error) {
	type group struct {
		wrapped    []byte
		count      int
		generation uint64
	}
	var groups []group
	var passed []error
	at := map[string]int{}
	for _, b := range copies {
		if len(b) > MaxSize {
			passed = append(passed, damaged("%d bytes, at most %d are possible", len(b), MaxSize))
			continue
		}
		if i, ok := at[string(b)]; ok {
			groups[i].count++
			continue
		}
		s, err := Inspect(b)
		if errors.Is(err, ErrNewer) {
			s.Generation = math.MaxUint64
		} else if err != nil {
			passed = append(passed, err)
			continue
		}
		at[string(b)] = len(groups)
		groups = append(groups, group{b, 1, s.Generation})
	}
	slices.SortStableFunc(groups, func(a, b group) int {
		return cmp.Or(cmp.Compare(b.generation, a.generation), cmp.Compare(b.count, a.count))
	})
	for _, g := range groups {
		k, err := Open(ctx, cluster, g.wrapped, p)
		switch {
		case err == nil:
			return k, nil
		case errors.Is(err, ErrDamaged), errors.Is(err, ErrForeign):
		case errors.Is(err, ErrWrongKey), errors.Is(err, ErrNewer):
			if g.count > len(copies)/2 {
				return nil, err
			}
		default:
			return nil, err
		}
		passed = append(passed, err)
	}
	if len(passed) == 0 {
		return nil, fmt.Errorf("%w: no copy of the keyring to open", ErrInvalid)
	}
	return nil, fmt.Errorf("none of %d copies of the keyring opens: %w", len(copies), errors.Join(passed...))
}
