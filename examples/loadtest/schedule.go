package main

import (
	"math"
	"time"
)

// stage is a level of load, requests per second or users, and how long it is kept.
type stage struct {
	level float64
	d     time.Duration
}

// segment is a part of a schedule in which the level changes linearly, or not at all.
type segment struct {
	d        time.Duration
	from, to float64
}

// requests returns how many are due by t after the segment's begin.
func (s segment) requests(t time.Duration) float64 {
	x := t.Seconds()
	return s.from*x + (s.to-s.from)*x*x/(2*s.d.Seconds())
}

// schedule is the level of load over time.
type schedule []segment

// newSchedule turns stages into segments. Between two levels, and from zero to the first, the level changes by ramp per
// second, or at once if ramp is 0.
func newSchedule(stages []stage, ramp float64) schedule {
	var s schedule
	level := 0.0
	for _, st := range stages {
		rest := st.d
		if ramp > 0 && st.level != level {
			d := min(time.Duration(math.Abs(st.level-level)/ramp*float64(time.Second)), rest)
			to := st.level
			if d == rest && d > 0 { // the stage ends before its level is reached
				to = level + math.Copysign(ramp*d.Seconds(), st.level-level)
			}
			if d > 0 {
				s = append(s, segment{d, level, to})
			}
			rest -= d
			level = to
		}
		if rest > 0 {
			s = append(s, segment{rest, st.level, st.level})
			level = st.level
		}
	}
	return s
}

func (s schedule) duration() (d time.Duration) {
	for _, g := range s {
		d += g.d
	}
	return d
}

// level returns the level at t.
func (s schedule) level(t time.Duration) float64 {
	for _, g := range s {
		if t < g.d {
			return g.from + (g.to-g.from)*float64(t)/float64(g.d)
		}
		t -= g.d
	}
	return 0
}

// requests returns how many requests are due by t.
func (s schedule) requests(t time.Duration) (n float64) {
	for _, g := range s {
		if t <= g.d {
			return n + g.requests(t)
		}
		n += g.requests(g.d)
		t -= g.d
	}
	return n
}

// at returns when request n, counted from 0, is due; ok is false if that is after the end.
func (s schedule) at(n float64) (t time.Duration, ok bool) {
	for _, g := range s {
		all := g.requests(g.d)
		if n >= all {
			n -= all
			t += g.d
			continue
		}
		// from·x + a·x² = n, in the form that also works for a = 0
		a := (g.to - g.from) / (2 * g.d.Seconds())
		x := 2 * n / (g.from + math.Sqrt(g.from*g.from+4*a*n))
		if n == 0 {
			x = 0
		}
		return t + time.Duration(x*float64(time.Second)), true
	}
	return t, false
}
