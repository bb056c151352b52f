//go:build !linux

package redistest

import "syscall"

// childAttr is nothing special where the system cannot tie a child's life to its parent's.
func childAttr() *syscall.SysProcAttr { return nil }
