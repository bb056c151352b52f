package main

import (
	"bufio"
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"strings"
	"unicode"
)

// Prediction is what the model makes of one text.
type Prediction struct {
	Label string  `json:"label"` // "pos" or "neg"
	Score float64 `json:"score"` // probability that the text is positive: the mean of the bag
	Low   float64 `json:"low"`   // 5 % of the bag are below
	High  float64 `json:"high"`  // 5 % of the bag are above
}

// bagSize is how many classifiers vote. More give a steadier interval and take longer.
const bagSize = 400

// Model says whether a text is positive. It is a bag of multinomial naive Bayes classifiers over words and
// pairs of words, each of which learned from a bootstrap sample of the training sentences: how much they
// disagree tells how far the score can be trusted. Sums over the samples are made for each text.
type Model struct {
	smoothing float64
	sentences []sentence
	found     map[string][]int // which sentences have a feature, each as often as it has it
	bag       []bootstrap
}

type sentence struct {
	class    int // 0 is neg, 1 is pos
	features int
}

// bootstrap is a sample of the sentences, as many as there are, with replacement.
type bootstrap struct {
	times     []float64  // how often each sentence was drawn
	sentences [2]float64 // how many were drawn, by class
	features  [2]float64 // how many features they have, by class
}

// NewModel learns from lines of "pos<TAB>sentence" and "neg<TAB>sentence". Smoothing is what is added to each
// count; 1 is Laplace's. Equal arguments make equal models.
func NewModel(training string, smoothing float64) (*Model, error) {
	m := &Model{smoothing: smoothing, found: make(map[string][]int)}
	lines := bufio.NewScanner(strings.NewReader(training))
	for lines.Scan() {
		label, text, _ := strings.Cut(lines.Text(), "\t")
		class := slices.Index([]string{"neg", "pos"}, label)
		features := featuresOf(text)
		if class < 0 || len(features) == 0 {
			return nil, fmt.Errorf("training line %d is not pos or neg, a tab and a sentence", len(m.sentences)+1)
		}
		for _, f := range features {
			m.found[f] = append(m.found[f], len(m.sentences))
		}
		m.sentences = append(m.sentences, sentence{class, len(features)})
	}
	if len(m.sentences) == 0 {
		return nil, fmt.Errorf("there is no training data")
	}
	random := rand.New(rand.NewPCG(1, 2)) // seeded: every process has the same model
	for range bagSize {
		s := bootstrap{times: make([]float64, len(m.sentences))}
		for range m.sentences {
			drawn := random.IntN(len(m.sentences))
			s.times[drawn]++
			s.sentences[m.sentences[drawn].class]++
			s.features[m.sentences[drawn].class] += float64(m.sentences[drawn].features)
		}
		m.bag = append(m.bag, s)
	}
	return m, nil
}

// Predict scores a text. Features that the training data lack say nothing; a text of only such scores 0.5 or so.
func (m *Model) Predict(text string) Prediction {
	times := make(map[string]float64)
	var features []string
	for _, f := range featuresOf(text) {
		if times[f]++; times[f] == 1 && m.found[f] != nil {
			features = append(features, f)
		}
	}
	votes := make([]float64, len(m.bag))
	var sum float64
	for i, s := range m.bag {
		logOdds := math.Log((s.sentences[1] + m.smoothing) / (s.sentences[0] + m.smoothing))
		all := m.smoothing * float64(len(m.found))
		for _, f := range features {
			count := [2]float64{m.smoothing, m.smoothing}
			for _, in := range m.found[f] {
				count[m.sentences[in].class] += s.times[in]
			}
			likelihoods := count[1] / (s.features[1] + all) / (count[0] / (s.features[0] + all))
			logOdds += times[f] * math.Log(likelihoods)
		}
		votes[i] = 1 / (1 + math.Exp(-logOdds))
		sum += votes[i]
	}
	slices.Sort(votes)
	p := Prediction{Label: "neg", Score: sum / float64(len(votes))}
	if p.Score >= 0.5 {
		p.Label = "pos"
	}
	p.Low, p.High = votes[len(votes)/20], votes[len(votes)-1-len(votes)/20]
	return p
}

// featuresOf returns the words of a text in small letters, and each two that follow each other.
func featuresOf(text string) []string {
	words := strings.FieldsFunc(strings.ToLower(text), func(r rune) bool {
		return !unicode.IsLetter(r) && !unicode.IsDigit(r)
	})
	features := slices.Clone(words)
	for i := 1; i < len(words); i++ {
		features = append(features, words[i-1]+" "+words[i])
	}
	return features
}
