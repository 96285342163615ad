//go:build race

package seal

// raceEnabled: pools drop items at random then, so that allocations are not
// counted.
const raceEnabled = true
