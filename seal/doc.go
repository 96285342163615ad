// Package seal turns chunks into sealed chunks and back: optional zstd, then
// AES-256-GCM under a key of the chunk's own. It also has the smaller pieces of
// cryptography that packs and metadata need: [Box], [Keystream], [Digester].
//
// The key of a sealed chunk comes from the sealing root of its realm's epoch and
// its chunk ID, which is a keyed hash of its plaintext. So a key covers one
// plaintext only, and should a nonce ever repeat under it (a machine that was
// cloned while it ran), what repeats is the same plaintext. What stands beside
// the seal, in directories and in the index, is [Info]; every field of it is
// authenticated. docs/formats/sealed-chunk.md has the bytes.
//
// Everything here never changes after it was made and may be used by many
// goroutines. Functions append to dst, which may have any capacity and must not
// overlap what they read; they keep no slice they were given, alter nothing but
// dst's free capacity, and return dst as it was beside an error. No byte is
// handed out before it was authenticated.
//
// The package does not decide whether a bucket's chunks are compressed, keeps no
// keys but those it was made with, and knows nothing of packs. It imports no
// files, network or clock.
package seal

import (
	"errors"
	"fmt"

	"cairn/id"
)

// What callers act on.
var (
	// ErrDamaged: the bytes, or what is said about them, are not what was sealed.
	ErrDamaged = errors.New("seal: damaged")
	// ErrNoKey: the realm or epoch is not the sealer's. Nothing is known of the
	// bytes.
	ErrNoKey = errors.New("seal: no key for this realm and epoch")
	// ErrNewer: authentic, and compressed in a way that this version does not know.
	ErrNewer = fmt.Errorf("seal: %w", id.ErrNewer)
	// ErrInvalid: what is to be sealed contradicts itself.
	ErrInvalid = errors.New("seal: invalid")
)
