package record

import (
	"fmt"

	"cairn/id"
)

// Bounds on the head of an upload.
const (
	MaxUploadHead = 32 << 10 // bytes, encoded
	MaxUploadNote = 16 << 10 // bytes of Note
)

const uploadVersion = 1

// UploadHead says what an upload in several requests is to become
// (docs/formats/uploads.md). It is the content of an object and no record.
type UploadHead struct {
	Bucket id.Bucket `cbor:"1,keyasint"`
	Name   string    `cbor:"2,keyasint"` // of the bucket when the upload was begun
	Key    []byte    `cbor:"3,keyasint"`
	Attrs  Attrs     `cbor:"4,keyasint"`
	Size   int64     `cbor:"5,keyasint"` // bytes; -1: not known yet
	Note   []byte    `cbor:"6,keyasint,omitempty"`
}

// Append appends the one encoding of a head: a byte of version, 1, and a map in
// core deterministic CBOR.
func (h *UploadHead) Append(dst []byte) ([]byte, error) {
	if h.Bucket == 0 || len(h.Key) == 0 || len(h.Key) > MaxKey || h.Size < -1 || len(h.Note) > MaxUploadNote {
		return dst, fmt.Errorf("%w: the head of an upload to bucket %d with a key of %d bytes, a size of %d and a note of %d bytes", ErrSyntax,
			h.Bucket, len(h.Key), h.Size, len(h.Note))
	}
	if err := checkText(append(h.Attrs.texts(nil), h.Name)); err != nil {
		return dst, err
	}
	b, err := encMode.Marshal(h)
	if err != nil {
		return dst, fmt.Errorf("encode the head of an upload: %w", err)
	}
	if len(b) >= MaxUploadHead {
		return dst, fmt.Errorf("%w: the head of an upload takes %d bytes, at most %d", ErrSyntax, len(b), MaxUploadHead)
	}
	return append(append(dst, uploadVersion), b...), nil
}

// ParseUploadHead is the inverse of Append. Errors are [ErrSyntax] or [ErrNewer].
func ParseUploadHead(b []byte) (h UploadHead, err error) {
	if len(b) > 0 && b[0] > uploadVersion {
		return h, fmt.Errorf("%w: the head of an upload of version %d, this build knows %d", ErrNewer, b[0], uploadVersion)
	}
	if len(b) > MaxUploadHead || len(b) == 0 || b[0] != uploadVersion {
		return h, fmt.Errorf("%w: the head of an upload has %d bytes, or another version", ErrSyntax, len(b))
	}
	if err := decMode.Unmarshal(b[1:], &h); err != nil {
		return UploadHead{}, fmt.Errorf("%w: the head of an upload: %v", ErrSyntax, err)
	}
	again, err := h.Append(nil)
	if err != nil || string(again) != string(b) {
		return UploadHead{}, fmt.Errorf("%w: the head of an upload is not in its one valid encoding", ErrSyntax)
	}
	return h, nil
}
