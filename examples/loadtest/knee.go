package main

import (
	"context"
	"fmt"
	"io"
	"strings"
	"time"
)

// knee is the highest rate at which conditions hold.
type knee struct {
	Condition string     `json:"condition"`
	Rate      float64    `json:"rate"` // 0: none of those that were tried
	Bounded   bool       `json:"bounded"`
	Steps     []kneeStep `json:"steps"`
}

type kneeStep struct {
	Rate     float64 `json:"rate"`
	Achieved float64 `json:"achieved"`
	P50      float64 `json:"p50"`
	P99      float64 `json:"p99"`
	Held     bool    `json:"held"`
	Why      string  `json:"why,omitempty"`
}

// find doubles the rate until the conditions do not hold any more, and then halves what is left in between, down to a
// sixteenth. try runs a rate and says whether they held.
func (k *knee) find(from float64, try func(rate float64) (kneeStep, error)) error {
	low, high := 0.0, 0.0
	for rate := from; rate <= maxRate; {
		step, err := try(rate)
		if err != nil {
			return err
		}
		k.Steps = append(k.Steps, step)
		if step.Held {
			low = rate
		} else {
			high = rate
		}
		k.Rate = low
		switch {
		case high == 0:
			rate *= 2
		case low == 0 && high > 1 && len(k.Steps) < 20:
			rate = high / 2
		case low == 0 || high-low <= low/16:
			k.Bounded = true
			return nil
		default:
			rate = (low + high) / 2
		}
	}
	return nil
}

func (k *knee) print(w io.Writer) {
	for _, s := range k.Steps {
		verdict := "holds"
		if !s.Held {
			verdict = "does not hold: " + s.Why
		}
		fmt.Fprintf(w, "  %9s/s  achieved %9s/s  p50 %s ms  p99 %s ms  %s\n", count(s.Rate), count(s.Achieved), milliseconds(s.P50), milliseconds(s.P99), verdict)
	}
	switch {
	case k.Rate == 0:
		fmt.Fprintf(w, "KNEE: %s holds at none of these rates\n", k.Condition)
	case !k.Bounded:
		fmt.Fprintf(w, "KNEE: %s still holds at %s/s; the search ended there\n", k.Condition, count(k.Rate))
	default:
		fmt.Fprintf(w, "KNEE: %s/s is the highest rate, to a sixteenth, at which %s holds\n", count(k.Rate), k.Condition)
	}
}

// findKnee measures one rate after the other. The report is that of the highest that held, or of the first.
func (s *session) findKnee(ctx context.Context) error {
	texts := make([]string, len(s.c.knee))
	for i, c := range s.c.knee {
		texts[i] = c.text
	}
	k := &knee{Condition: strings.Join(texts, ", ")}
	var best report
	err := k.find(s.c.kneeFrom, func(rate float64) (kneeStep, error) {
		warmup := s.c.kneeStep / 5
		s.report.Series = nil
		if err := s.measure(ctx, schedule{{s.c.kneeStep + warmup, rate, rate}}, warmup); err != nil {
			return kneeStep{}, err
		}
		if ctx.Err() != nil {
			return kneeStep{}, ctx.Err()
		}
		r := s.report
		step := kneeStep{Rate: rate, Achieved: r.Load.Achieved, P50: r.Total.Response.P50, P99: r.Total.Response.P99, Why: r.Load.Saturated}
		for _, c := range s.c.knee {
			v := r.figureOf(c.metric)
			switch {
			case v == nil:
				step.Why = c.metric + " is unknown"
			case !c.holds(*v) && step.Why == "":
				step.Why = c.metric + " is " + metrics[c.metric].text(*v)
			}
		}
		step.Held = step.Why == ""
		if step.Held && rate > k.Rate || best.Total.Requests == 0 {
			best = *r
		}
		s.screen.keep()
		wait(ctx, 200*time.Millisecond)
		return step, nil
	})
	if best.Total.Requests > 0 {
		*s.report = best
	}
	s.report.Load.Saturated = "" // to be saturated is what was looked for
	s.report.Knee = k
	return err
}
