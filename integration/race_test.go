//go:build race

package integration

func init() { buildArgs = append(buildArgs, "-race") }
