// Package pack is the format in which everything is stored: packs of sealed
// chunks and records, cut into shards that survive the loss of any m of them.
//
// A pack's payload, padding and, when it is long, sealed meta form one coded
// stream; k' consecutive slices of it and m parity slices, each behind a header
// and a CRC table, are the shards. docs/formats/pack.md has the picture.
//
//   - [Builder] collects sealed chunks side by side in one buffer.
//   - [Coder] does the rest: [Coder.Encode] makes a pack's shards and their
//     digests, [Coder.Assemble] makes the pack from enough verified shards,
//     [Coder.OpenTail] from shards for which no digest is known,
//     [Coder.Rebuild] makes lost shards anew.
//   - [Header.Ranges] says which bytes of which shards hold a chunk.
//
// Headers, metas and layouts are values. A Coder never changes after it was
// filled in and may be used by many goroutines; a Builder says which of its
// methods may run at the same time. Buffers come from the caller's [Pool]; what
// [Coder.Encode] returns refers to the payload it was given until
// [Encoded.Release].
//
// The package only computes. It does not seal or open chunks or records, knows
// no node and no clock, and does not decide which of several log packs counts.
package pack
