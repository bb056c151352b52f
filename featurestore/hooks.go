package featurestore

import (
	"context"
	"time"
)

// Hooks are optional functions that a view calls, for metrics and traces, from several goroutines at once. Keep them fast, and do
// not let them panic. Nil ones cost nothing.
type Hooks struct {
	// Read is called after each read of the view.
	Read func(ctx context.Context, info ReadInfo)
	// Write is called after each Put and Patch, and after each batch of a Load.
	Write func(ctx context.Context, info WriteInfo)
	// Switch is called when this process notices that another version is live; "" is none.
	Switch func(ctx context.Context, view, from, to string)
}

// Counts are numbers of rows by status.
type Counts struct{ Missing, Found, Partial, Stale, Broken int }

func (c *Counts) add(s Status) {
	switch s {
	case Missing:
		c.Missing++
	case Found:
		c.Found++
	case Partial:
		c.Partial++
	case Stale:
		c.Stale++
	default:
		c.Broken++
	}
}

// ReadInfo describes one read of one view.
type ReadInfo struct {
	View   string
	Counts Counts
	Took   time.Duration // of the whole batch, if it was one
	Err    error         // why Redis could not be asked for some rows
}

// WriteInfo describes rows that were written, or were not.
type WriteInfo struct {
	View                          string
	Applied, Older, Same, Invalid int
	Took                          time.Duration // of the batch, if it was a Load's: without what it waited for rows
	Err                           error
}
