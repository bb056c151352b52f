package export

import (
	"fmt"
	"net/http"
	"strings"
	"time"

	"github.com/redispatterns/redispatterns/timeseries"
)

// escape is for label values; the names of metrics are checked by New.
var escape = strings.NewReplacer(`\`, `\\`, `"`, `\"`, "\n", `\n`)

func (h *handler) metrics(w http.ResponseWriter, r *http.Request) {
	series, err := h.series(r)
	if err != nil {
		unavailable(w)
		return
	}
	now, err := h.store.Now(r.Context())
	if err != nil {
		unavailable(w)
		return
	}
	end := lastEnd(now.Add(-h.store.Delay()), h.opts.Window)
	all, err := h.store.RangeMany(r.Context(), timeseries.Range{From: end.Add(-h.opts.Window), To: end, Step: h.opts.Window}, series...)
	if err != nil {
		unavailable(w)
		return
	}
	w.Header().Set("Content-Type", "application/openmetrics-text; version=1.0.0; charset=utf-8")
	_, _ = w.Write(exposition(h.opts, end, series, all)) // the client has gone
}

// lastEnd is when the last whole window ended.
func lastEnd(now time.Time, window time.Duration) time.Time {
	w := int64(window / time.Second)
	return time.Unix(now.Unix()/w*w, 0)
}

// exposition has a sample for each series, except those that overflow.
func exposition(opts Options, end time.Time, names []string, all []timeseries.Series) []byte {
	b := fmt.Appendf(nil, "# TYPE %s gauge\n# HELP %s Events in the last whole %v.\n", opts.Metric, opts.Metric, opts.Window)
	for i, s := range all {
		if s.Err != nil {
			continue
		}
		var n int64
		for _, p := range s.Points { // one
			n += p.Value
		}
		b = fmt.Appendf(b, "%s{series=\"%s\"} %d %d\n", opts.Metric, escape.Replace(names[i]), n, end.Unix())
	}
	return append(b, "# EOF\n"...)
}
