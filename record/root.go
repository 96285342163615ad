package record

import (
	"fmt"

	"cairn/id"
)

// maxRoot bounds an encoded root: it is in one pack.
const maxRoot = 16 << 20

const rootVersion = 1

// SnapshotRoot lists the pieces of a snapshot in the order of the export.
type SnapshotRoot struct{ Pieces []RootPiece }

// RootPiece is a piece, and where in the export it begins.
type RootPiece struct {
	_     struct{} `cbor:",toarray"`
	Ref   PieceRef
	Start uint64
}

// Append appends the one encoding of a root: a byte of version, 1, and an array
// of pieces in core deterministic CBOR.
func (r *SnapshotRoot) Append(dst []byte) ([]byte, error) {
	if err := r.check(); err != nil {
		return dst, err
	}
	b, err := encMode.Marshal(r.Pieces)
	if err != nil {
		return dst, fmt.Errorf("encode the root of a snapshot: %w", err)
	}
	if len(b) >= maxRoot {
		return dst, fmt.Errorf("encode the root of a snapshot: %d pieces take %d bytes, at most %d", len(r.Pieces), len(b), maxRoot)
	}
	return append(append(dst, rootVersion), b...), nil
}

// ParseRoot is the inverse of Append. Errors are [ErrSyntax] or [ErrNewer].
func ParseRoot(b []byte) (r SnapshotRoot, err error) {
	if len(b) > 0 && b[0] > rootVersion {
		return r, fmt.Errorf("%w: the root of a snapshot of version %d, this build knows %d", ErrNewer, b[0], rootVersion)
	}
	if len(b) > maxRoot || len(b) == 0 || b[0] != rootVersion {
		return r, fmt.Errorf("%w: the root of a snapshot has %d bytes, or another version", ErrSyntax, len(b))
	}
	if err := decMode.Unmarshal(b[1:], &r.Pieces); err != nil {
		return SnapshotRoot{}, fmt.Errorf("%w: the root of a snapshot: %v", ErrSyntax, err)
	}
	again, err := r.Append(nil)
	if err != nil || string(again) != string(b) {
		return SnapshotRoot{}, fmt.Errorf("%w: the root of a snapshot is not in its one valid encoding", ErrSyntax)
	}
	return r, nil
}

func (r *SnapshotRoot) check() error {
	if len(r.Pieces) == 0 || r.Pieces[0].Start != 0 {
		return fmt.Errorf("%w: the root of a snapshot lacks the beginning", ErrSyntax)
	}
	for i, p := range r.Pieces {
		if p.Ref.Pack == (id.Pack{}) || i > 0 && p.Start <= r.Pieces[i-1].Start {
			return fmt.Errorf("%w: piece %d of a snapshot", ErrSyntax, i)
		}
	}
	return nil
}
