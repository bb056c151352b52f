//go:build !unix

package main

import "time"

// ownCPU is unknown here.
func ownCPU() (time.Duration, bool) { return 0, false }
