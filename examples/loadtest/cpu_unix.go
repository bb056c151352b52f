//go:build unix

package main

import (
	"syscall"
	"time"
)

// ownCPU returns how much processor time this process has used.
func ownCPU() (time.Duration, bool) {
	var r syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &r); err != nil {
		return 0, false
	}
	return time.Duration(r.Utime.Nano() + r.Stime.Nano()), true
}
