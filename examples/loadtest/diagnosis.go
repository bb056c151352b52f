package main

import (
	"context"
	"fmt"
	"io"
	"time"

	"github.com/redispatterns/redispatterns/examples/doctor/doctor"
)

// diagnosis is what the doctor says of the servers, having watched them during the run.
type diagnosis struct {
	Fine     int            `json:"fine"` // checks, of all nodes
	Findings []doctor.Group `json:"findings"`
}

// diagnose has the doctor look at the servers for a time. The channel yields nil if there is nothing to look at, or ctx has ended.
func (s *session) diagnose(ctx context.Context, d time.Duration) <-chan *diagnosis {
	done := make(chan *diagnosis, 1)
	if s.c.url == embedded || !s.c.doctor {
		close(done)
		return done
	}
	expect := doctor.Expect{
		Uses: []doctor.Pattern{s.c.scenario.pattern}, Prefixes: map[string]doctor.Pattern{s.c.prefix: s.c.scenario.pattern},
		Interval: min(max(d-time.Second, d/2, 10*time.Millisecond), 10*time.Minute), SampleKeys: 200,
	}
	go func() {
		defer close(done)
		report, err := doctor.Check(ctx, s.t.info, expect)
		if err != nil {
			return
		}
		found := &diagnosis{Findings: report.Groups(false)}
		for _, f := range report.Findings {
			if f.Severity == doctor.OK {
				found.Fine++
			}
		}
		done <- found
	}()
	return done
}

func (d *diagnosis) print(w io.Writer) {
	if d == nil {
		return
	}
	fmt.Fprintln(w, "DOCTOR")
	for _, f := range d.Findings {
		if f.Severity != doctor.Info {
			fmt.Fprintln(w, " ", f)
		}
	}
	fmt.Fprintf(w, "  %d checks found nothing\n", d.Fine)
}
