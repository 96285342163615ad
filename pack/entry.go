package pack

import "cairn/seal"

// Info is what a sealed chunk's seal binds beside its bytes, and its two
// lengths. Nothing here reads kind, epoch and compression.
type Info = seal.Info

const maxEpoch = 1<<32 - 1

func (e *Entry) wire() wireEntry {
	return wireEntry{
		Realm: e.Realm, Chunk: e.Chunk, Kind: uint8(e.Kind), Epoch: uint64(e.Epoch), Compression: uint8(e.Compression),
		Offset: e.Offset, SealedLen: e.SealedLen, PlainLen: e.PlainLen,
	}
}

// entry is the line that w writes. Numbers that do not fit come out as others,
// and are refused because they would be encoded as others.
func (w *wireEntry) entry() Entry {
	return Entry{Info: Info{
		Realm: w.Realm, Chunk: w.Chunk, Kind: seal.Kind(w.Kind), Epoch: uint32(w.Epoch), Compression: seal.Compression(w.Compression),
		PlainLen: w.PlainLen, SealedLen: w.SealedLen,
	}, Offset: w.Offset}
}
