package main

import (
	"context"
	_ "embed"
	"fmt"
	"slices"
	"strings"
	"sync/atomic"
	"time"
	"unicode"

	"github.com/redispatterns/redispatterns/cache"
)

//go:embed training.txt
var training string

// scorer is a model behind a cache.
type scorer struct {
	cache *cache.Cache[string, Prediction]
	model *Model
	calls atomic.Int64 // of the model
}

// answer is what a scorer said and how it came by it.
type answer struct {
	Prediction
	how  string // hit or miss
	took time.Duration
}

// newScorer returns a scorer with a model of its own. Models of different versions may share a prefix: none
// sees the scores of another.
func (t *tour) newScorer(version string, smoothing float64) (*scorer, error) {
	model, err := NewModel(training, smoothing)
	if err != nil {
		return nil, err
	}
	c, err := cache.New(t.client, t.prefix, cache.Options[string, Prediction]{
		TTL:       5 * time.Minute,
		Version:   version,
		OpTimeout: 2 * time.Second, // more than a service would: a slow machine shall not spoil the tour
	})
	if err != nil {
		return nil, err
	}
	return &scorer{cache: c, model: model}, nil
}

// segment returns a scorer whose scores are kept apart, and can be invalidated together.
func (s *scorer) segment(name string) *scorer {
	return &scorer{cache: s.cache.Segment(name), model: s.model}
}

// score is all there is to it: Fetch takes the score from the cache or, if there is none, from the model.
func (s *scorer) score(ctx context.Context, text string) (answer, error) {
	before, began := s.calls.Load(), time.Now()
	p, err := s.cache.Fetch(ctx, text, func(_ context.Context, text string) (Prediction, error) {
		s.calls.Add(1)
		return s.model.Predict(text), nil
	})
	a := answer{p, hit, time.Since(began)}
	if s.calls.Load() > before {
		a.how = miss
	}
	return a, err
}

func (s *scorer) close() {
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	_ = s.cache.Close(ctx) // at worst a load goes on, and the process ends anyway
}

func (t *tour) visitCache(ctx context.Context) error {
	one, err := t.newScorer("model-1", 1)
	if err != nil {
		return err
	}
	defer one.close()
	two, err := t.newScorer("model-2", 0.5)
	if err != nil {
		return err
	}
	defer two.close()
	if err := t.scoreTwice(ctx, one); err != nil {
		return err
	}
	if err := t.changeVersion(ctx, one, two); err != nil {
		return err
	}
	return t.invalidateTenant(ctx, one)
}

// scoreTwice scores all texts, and all once more, and compares hits with misses.
func (t *tour) scoreTwice(ctx context.Context, s *scorer) error {
	fmt.Fprintf(t.out, "cache: %d reviews and how likely each is positive, by %d classifiers\n\n", len(t.texts), bagSize)
	fmt.Fprintf(t.out, "%4s  %-4s  %-5s  %5s  %-13s  %8s  %s\n", "", "", "label", "score", "90 % interval", "took", "text")
	scores := make(map[string]Prediction)
	var hits, misses []time.Duration
	for again := range 2 {
		for i, text := range t.texts {
			a, err := s.score(ctx, text)
			if err != nil {
				return err
			}
			known, seen := scores[text]
			switch {
			case seen && a == answer{known, hit, a.took}:
				hits = append(hits, a.took)
			case !seen && a.how == miss:
				misses = append(misses, a.took)
				scores[text] = a.Prediction
			default:
				return fmt.Errorf("expected a hit, with the same score, for a text seen before, and a miss for "+
					"another: line %d was a %s", i+1, a.how)
			}
			if again == 0 {
				fmt.Fprintf(t.out, "%4d  %-4s  %-5s  %.3f  %.3f - %.3f  %6.2fms  %s\n",
					i+1, a.how, a.Label, a.Score, a.Low, a.High, millis(a.took), clip(text))
			}
		}
	}
	asked, calls := len(hits)+len(misses), int(s.calls.Load())
	fast, slow := median(hits), median(misses)
	if calls != len(misses) || fast >= slow {
		return fmt.Errorf("expected hits to be faster than misses and to call no model: %d hits, median %v, "+
			"%d misses, median %v, %d calls", len(hits), fast, len(misses), slow, calls)
	}
	fmt.Fprintf(t.out, "\nand all of them again: %d of %d calls of the model saved\n", asked-calls, asked)
	fmt.Fprintf(t.out, "median miss %.2fms, median hit %.2fms: %.1f times faster\n",
		millis(slow), millis(fast), float64(slow)/float64(fast))
	return nil
}

// changeVersion shows that scores of one model are never taken for those of another.
func (t *tour) changeVersion(ctx context.Context, one, two *scorer) error {
	fmt.Fprintln(t.out, "\na new model, with the same prefix and another Options.Version, and the text of line 1")
	return t.take(ctx, []step{
		{"model-1", one, hit, "scored above"},
		{"model-2", two, miss, "does not see that score"},
		{"model-2", two, hit, "sees its own"},
		{"model-1", one, hit, "goes on beside it"},
	})
}

// invalidateTenant shows that the scores of one tenant can be dropped without touching another's.
func (t *tour) invalidateTenant(ctx context.Context, s *scorer) error {
	fmt.Fprintln(t.out, "\ntwo tenants, each with a cache.Segment, and the text of line 1")
	acme, globex := s.segment("acme"), s.segment("globex")
	err := t.take(ctx, []step{
		{"acme", acme, miss, "each has scores of its own"},
		{"globex", globex, miss, ""},
		{"acme", acme, hit, ""},
		{"globex", globex, hit, ""},
	})
	if err != nil {
		return err
	}
	if err := acme.cache.Invalidate(ctx); err != nil {
		return err
	}
	return t.take(ctx, []step{
		{"acme", acme, miss, "after Invalidate of acme's"},
		{"globex", globex, hit, "not touched"},
	})
}

const (
	hit  = "HIT"
	miss = "MISS"
)

type step struct {
	name string
	*scorer
	want string // hit or miss
	note string
}

// take scores the first text in each step, and fails at one that does not come out as it should.
func (t *tour) take(ctx context.Context, steps []step) error {
	for _, s := range steps {
		a, err := s.score(ctx, t.texts[0])
		if err != nil {
			return err
		}
		if a.how != s.want {
			return fmt.Errorf("expected a %s of %s, got a %s", s.want, s.name, a.how)
		}
		line := fmt.Sprintf("      %-4s  %-7s  %.3f  %s", a.how, s.name, a.Score, s.note)
		fmt.Fprintln(t.out, strings.TrimRight(line, " "))
	}
	return nil
}

func millis(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }

func median(ds []time.Duration) time.Duration {
	slices.Sort(ds)
	return ds[len(ds)/2]
}

// clip makes a text fit the screen and harmless to it.
func clip(text string) string {
	const width = 48
	var b strings.Builder
	n := 0
	for _, r := range text {
		if n++; n == width {
			return b.String() + "..."
		}
		if !unicode.IsPrint(r) {
			r = '?'
		}
		b.WriteRune(r)
	}
	return b.String()
}
