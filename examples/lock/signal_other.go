//go:build !unix

package main

import "syscall"

// There is no stopping a process here: the play ends with an error in its second act.
const (
	stopSignal     = syscall.Signal(-1)
	continueSignal = syscall.Signal(-1)
)
