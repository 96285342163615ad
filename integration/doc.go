// Package integration holds the tests that run the real program: `cairn serve` as
// a process of its own on a loopback port, spoken to over REST and through the
// command line, killed by its process ID, its directories destroyed, swapped and
// put back while it runs and while it does not.
//
// What is asked is always the same (the full check): an acknowledged write reads
// back byte for byte, one whose answer never came is there whole or not at all,
// what was refused left nothing, what was deleted stays deleted, and a listing is
// what the model says. `cairn verify` has the last word.
//
// The package has no code outside its tests. Everything random comes from one
// seed, which is printed; CAIRN_SEED=n runs with that one (the timing of a kill
// still differs). CAIRN_LONG=1 runs ten times the rounds, -short a few.
// CAIRN_KEEP=1 leaves the directories of a test that failed. With the race
// detector on, the program is built with it too, and a race it reports fails the
// test.
package integration
