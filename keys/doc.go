// Package keys holds the secrets of a store: the keyring with its roots, the
// ways to unlock it, and every key that is derived from a root.
//
// The roots are random and never change, except that a realm gets a new sealing
// root with each epoch. They exist outside this process only wrapped: a random
// master key seals them, and each slot of the keyring wraps that master key for
// one way of unlocking, as in LUKS: a key file, a passphrase, a recovery code, or
// whatever else implements [Provider]. docs/formats/keys.md has the bytes and the
// table of derivations.
//
// A [Keyring] never changes and may be used by many goroutines. What changes it
// (AddSlot, RemoveSlot, AddRealm, Rotate) returns the keyring of the next
// generation and leaves the receiver as it was. So the order that keeps data
// readable is also the natural one: make the next keyring, store it durably
// wherever keyrings are kept, and only then seal anything under it.
//
// No function keeps a slice it was given. A [Secret] cannot be compared with ==
// and does not print; wiping is best effort, for the runtime may have copied what
// it moved.
//
// This package does not decide which of several stored keyrings counts, stores
// none, and does not ask anybody for a passphrase. Of the file system it touches
// key files only.
package keys

import (
	"errors"
	"fmt"

	"cairn/id"
)

// What callers act on. Anything else, such as an error of the file system or of a
// key service, means that the key could not be asked for.
var (
	// ErrWrongKey: the key is whole, but it opens no slot of this keyring.
	ErrWrongKey = errors.New("keys: the wrong key")
	// ErrNoKey: there is no key file where it was looked for.
	ErrNoKey = errors.New("keys: no key there")
	// ErrDamaged: a key file or keyring is cut or altered, or was never one.
	ErrDamaged = errors.New("keys: damaged")
	// ErrNewer: a newer version of Cairn wrote it.
	ErrNewer = fmt.Errorf("keys: %w", id.ErrNewer)
	// ErrForeign: the keyring of another cluster.
	ErrForeign = errors.New("keys: another cluster's keyring")
	// ErrUnknown: the keyring has no such realm, epoch or slot.
	ErrUnknown = errors.New("keys: not in the keyring")
	// ErrInvalid: the call makes no sense, such as removing the last slot.
	ErrInvalid = errors.New("keys: invalid")
)
