// Package sim runs the whole engine on simulated disks and a simulated clock and
// compares what it answers with a plain map.
//
// A history follows from one number, its seed: concurrent clients, faults of
// disks and nodes, kills, power cuts and restarts. It runs inside a bubble of
// testing/synctest; every operation of a filesystem takes a time that is drawn
// from the seed, so that the order of events is decided by the fake clock. A
// history ends with a full check: everything acknowledged is read back byte for
// byte, what was refused left nothing, what is unknown is absent or whole,
// deletes stay, listings agree, the index is recounted and compared with one
// replayed from the log, and store.Verify finds nothing but what the faults
// explain. docs/testing.md says how to run one seed.
//
// What is not quite decided by the seed is the order of goroutines that run at
// the same instant of the fake clock; a seed that fails nearly always fails
// again, but not by proof.
//
// The package is for tests. It owns all the filesystems and engines it makes; no
// two histories share anything but the caches of the libraries.
package sim
