// Package ratelimit x.
package ratelimit
