// Package index is a replica of the log in rows: which buckets, objects and
// chunks there are, where each chunk lies, and how many edges of the manifest
// DAG lead to it.
//
// Log packs are applied in chain order, each in one transaction that also moves
// the head ([Index.Apply]). A gateway that is about to write a log pack applies
// it while it decides ([Index.Begin], [Round]) and commits once the pack is
// durable; both ways run the same code and leave the same rows. Nothing here
// reads a clock, draws randomness or knows a configuration that could change
// what a link does: [Index.Export] of two indexes that applied the same links
// is the same, byte for byte.
//
// Records name what they replace. Live, a record that finds something else is
// [ErrDivergent]: rows are missing or wrong, nothing that follows from them may
// be acted on, and the index is rebuilt. In a rebuild it is redone, reported,
// and all edges are counted again at the end ([Index.Recount]).
//
// One Round is open at a time. Any number of goroutines read in views of their
// own ([Index.View]); a [Reader] belongs to one goroutine and what it returns to
// the caller. Object keys never appear in errors.
//
// The package does not open chunks, know nodes, or decide what a client may do;
// it checks that a record can be applied, not that it should have been written.
// docs/formats/index.md describes every row.
package index
