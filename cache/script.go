package cache

import (
	_ "embed"

	"github.com/redispatterns/redispatterns/internal/script"
)

//go:embed stamp.lua
var stampSource string

//go:embed acquire.lua
var acquireSource string

//go:embed store.lua
var storeSource string

//go:embed lease.lua
var leaseSource string

// The scripts may be sent again when a reply was lost: a token takes, holds and writes once.
var (
	stampScript   = script.NewRetryable(stampSource)
	acquireScript = script.NewRetryable(acquireSource)
	storeScript   = script.NewRetryable(storeSource)
	leaseScript   = script.NewRetryable(leaseSource)
)
