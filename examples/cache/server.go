package main

import (
	"context"
	"crypto/sha256"
	_ "embed"
	"fmt"
	"net/http"
	"time"

	"github.com/redis/rueidis"

	"github.com/redispatterns/redispatterns/cache"
)

const maxTenant = 100 // bytes

// times are those of the cache's options that a measurement has other values for.
type times struct {
	ttl       time.Duration // until a score is made anew
	stale     time.Duration // for how long it is served meanwhile, and while that fails
	opTimeout time.Duration // what a Redis that hangs may cost a request
}

var production = times{ttl: 10 * time.Minute, stale: 24 * time.Hour, opTimeout: 100 * time.Millisecond}

//go:embed training.txt
var training string

type service struct {
	model   *Model
	cache   *cache.Cache[string, Prediction]
	metrics *metrics
}

// newService returns a service whose keys begin with prefix.
func newService(client rueidis.Client, prefix string, t times) (*service, error) {
	model, err := NewModel(training, 1)
	if err != nil {
		return nil, err
	}
	m := newMetrics()
	c, err := cache.New(client, prefix, cache.Options[string, Prediction]{
		TTL:       t.ttl,
		StaleTTL:  t.stale,
		OpTimeout: t.opTimeout,
		// Other training data make another model. The 1 is to be changed with model.go.
		Version: fmt.Sprintf("1-%.8x", sha256.Sum256([]byte(training))),
		Hooks:   m.hooks(),
	})
	if err != nil {
		return nil, err
	}
	return &service{model: model, cache: c, metrics: m}, nil
}

func (s *service) handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /score", answer(s.scoreOne))
	mux.HandleFunc("POST /score", answer(s.scoreMany))
	mux.HandleFunc("POST /invalidate", answer(s.invalidate))
	mux.HandleFunc("GET /metrics", s.metrics.serve)
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) {
		fmt.Fprintln(w, "ok") // whatever Redis does: the service goes on without it
	})
	return mux
}

// scoreOne answers with the score of the text in the query. With cache=off it asks the model: that is for
// -load to compare, and nothing to offer to strangers.
func (s *service) scoreOne(r *http.Request) (any, error) {
	query := r.URL.Query()
	text := query.Get("text")
	if err := checkText(text); err != nil {
		return nil, err
	}
	if query.Get("cache") == "off" {
		return s.model.Predict(text), nil
	}
	scores, err := s.scoresFor(query.Get("tenant"))
	if err != nil {
		return nil, err
	}
	return scores.Fetch(r.Context(), text, func(_ context.Context, text string) (Prediction, error) {
		return s.model.Predict(text), nil
	})
}

// scoreMany answers with the scores of the texts in the body, a JSON array of strings, in their order.
func (s *service) scoreMany(r *http.Request) (any, error) {
	scores, err := s.scoresFor(r.URL.Query().Get("tenant"))
	if err != nil {
		return nil, err
	}
	texts, err := readTexts(r.Body)
	if err != nil {
		return nil, err
	}
	found, err := scores.FetchMany(r.Context(), texts, s.predictMany)
	if err != nil {
		return nil, err
	}
	ordered := make([]Prediction, len(texts))
	for i, text := range texts {
		ordered[i] = found[text]
	}
	return ordered, nil
}

// predictMany loads what FetchMany did not find.
func (s *service) predictMany(ctx context.Context, texts []string) (map[string]Prediction, error) {
	scores := make(map[string]Prediction, len(texts))
	for _, text := range texts {
		if err := ctx.Err(); err != nil {
			return nil, err // nobody waits any more
		}
		scores[text] = s.model.Predict(text)
	}
	return scores, nil
}

// invalidate drops the scores of one tenant.
func (s *service) invalidate(r *http.Request) (any, error) {
	scores, err := s.scoresFor(r.URL.Query().Get("tenant"))
	if err != nil {
		return nil, err
	}
	if err := scores.Invalidate(r.Context()); err != nil {
		return nil, refusal{http.StatusServiceUnavailable, "some scores may still be there: try again"}
	}
	return nil, nil
}

// scoresFor returns the tenant's part of the cache.
func (s *service) scoresFor(tenant string) (*cache.Cache[string, Prediction], error) {
	if len(tenant) > maxTenant {
		return nil, refusal{http.StatusBadRequest, "tenant is too long"}
	}
	return s.cache.Segment(tenant), nil
}
