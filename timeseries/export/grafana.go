package export

import (
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/redispatterns/redispatterns/timeseries"
)

func respond(w http.ResponseWriter, v any) {
	body, err := json.Marshal(v)
	if err != nil {
		unavailable(w)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	_, _ = w.Write(body) // the client has gone
}

func (h *handler) names(w http.ResponseWriter, r *http.Request) {
	series, err := h.series(r)
	if err != nil {
		unavailable(w)
		return
	}
	if strings.HasSuffix(r.URL.Path, "/search") {
		respond(w, series)
		return
	}
	type option struct {
		Label string `json:"label"`
		Value string `json:"value"`
	}
	options := make([]option, 0, len(series))
	for _, s := range series {
		options = append(options, option{s, s})
	}
	respond(w, options)
}

type query struct {
	Range struct {
		From, To time.Time
	}
	MaxDataPoints int
	Targets       []struct{ Target string }
}

var errQuery = errors.New("not a query")

func parseQuery(r io.Reader) (q query, err error) {
	if err := json.NewDecoder(r).Decode(&q); err != nil || len(q.Targets) > maxTargets || !q.Range.From.Before(q.Range.To) {
		return q, errQuery
	}
	return q, nil
}

// targets are the names that are asked for, each once. A panel without a choice yet has an empty one.
func (q query) targets() []string {
	var names []string
	for _, t := range q.Targets {
		if t.Target != "" {
			names = append(names, t.Target)
		}
	}
	return unique(names)
}

// points is how many each of so many targets may have.
func (q query) points(most, targets int) int {
	most = min(most, maxPoints/max(1, targets))
	if q.MaxDataPoints > 0 {
		most = min(most, q.MaxDataPoints)
	}
	return most
}

func (h *handler) query(w http.ResponseWriter, r *http.Request) {
	q, err := parseQuery(http.MaxBytesReader(w, r.Body, maxBody))
	if err != nil {
		http.Error(w, "not a query", http.StatusBadRequest)
		return
	}
	served, err := h.series(r)
	if err != nil {
		unavailable(w)
		return
	}
	names := q.targets()
	for _, n := range names {
		if !slices.Contains(served, n) {
			http.Error(w, "there is no such series", http.StatusNotFound)
			return
		}
	}
	if len(names) == 0 {
		respond(w, []answer{})
		return
	}
	all, err := h.store.RangeMany(r.Context(), timeseries.Range{
		From: q.Range.From, To: q.Range.To, MaxPoints: q.points(h.opts.MaxPoints, len(names)), Fill: h.opts.Fill,
	}, names...)
	switch {
	case errors.Is(err, timeseries.ErrTooMany):
		http.Error(w, "too much is asked for", http.StatusBadRequest)
	case err != nil:
		unavailable(w)
	default:
		respond(w, answers(names, all))
	}
}

type answer struct {
	Target     string     `json:"target"`
	Datapoints [][2]value `json:"datapoints"` // of a value and when its bucket begins, in ms
}

// value is a number or null.
type value struct {
	n    int64
	null bool
}

func (v value) MarshalJSON() ([]byte, error) {
	if v.null {
		return []byte("null"), nil
	}
	return strconv.AppendInt(nil, v.n, 10), nil
}

func answers(names []string, all []timeseries.Series) []answer {
	answers := make([]answer, len(all))
	for i, s := range all {
		answers[i] = answer{names[i], make([][2]value, 0, len(s.Points))} // empty, if it overflows
		for _, p := range s.Points {
			answers[i].Datapoints = append(answers[i].Datapoints, [2]value{{p.Value, p.Missing && !p.Filled}, {n: p.Start.UnixMilli()}})
		}
	}
	return answers
}
