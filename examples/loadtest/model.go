package main

import (
	"errors"
	"math"
	"slices"
)

// checkpoint is how much memory the servers used with so many keys.
type checkpoint struct {
	Numbers int       `json:"numbers"` // keys of the dataset that are loaded
	Keys    []float64 `json:"keys"`    // of each primary, all that it has
	Used    float64   `json:"used"`    // bytes, of all primaries together
	Calm    bool      `json:"calm"`    // what tables that are being doubled take besides is known, and not in Used
}

// model is what memory is made of: Base + PerKey·keys + PerSlot·slots, where slots are those of hash tables that double when
// they are full, PerBucket keys to a bucket: 1 in Redis, 7 in Valkey 8.1. A primary has one such table; but a cluster since Redis
// 7.4 and Valkey 8 has one for each of its 16384 slots as soon as there is a key in it, which takes PerTable besides: over 2 kB
// in Redis 8. Which of them it is is found by the fit.
type model struct {
	Base      float64 `json:"base"`
	PerKey    float64 `json:"per_key"`
	PerSlot   float64 `json:"per_slot"`
	PerBucket float64 `json:"per_bucket"`
	Spread    bool    `json:"spread"` // over the tables of a cluster's slots
	PerTable  float64 `json:"per_table"`
	R2        float64 `json:"r2"`
	Copies    int     `json:"copies"` // keys of Redis per key of the dataset
	Points    int     `json:"points"`
}

// slots returns those of the one table of so many keys.
func slots(keys, perBucket float64) float64 {
	if keys <= 0 || perBucket == 0 {
		return 0
	}
	return math.Exp2(math.Ceil(math.Log2(max(keys/perBucket, 1)))) * perBucket
}

// clusterSlots is how many slots a cluster has.
const clusterSlots = 16384

// spread returns how many of a cluster's tables have a key, and the slots of these. Keys fall into them at random, so that they
// double one after the other. One that is there at all has at least four slots.
func spread(keys, perBucket float64) (tables, all float64) {
	mean := keys / clusterSlots
	deviation := math.Sqrt(mean)
	for n := math.Floor(max(mean-8*deviation, 0)) + 1; n <= mean+8*deviation+8; n++ {
		lgamma, _ := math.Lgamma(n + 1)
		chance := math.Exp(n*math.Log(mean) - mean - lgamma) // Poisson's
		tables += clusterSlots * chance
		all += clusterSlots * chance * max(slots(n, perBucket), 4)
	}
	return tables, all
}

// tables returns how many tables some primaries have, and the slots of these.
func (m model) tables(keys []float64) (tables, all float64) {
	sum := 0.0
	for _, k := range keys {
		sum += k
		all += slots(k, m.PerBucket)
	}
	if m.Spread && sum > 0 {
		return spread(sum, m.PerBucket)
	}
	return float64(len(keys)), all
}

// evenly returns so many keys of each primary.
func evenly(keys float64, primaries int) []float64 {
	return slices.Repeat([]float64{keys / float64(primaries)}, primaries)
}

// fit finds the model that comes nearest to the checkpoints. The slope alone would be wrong by up to what a doubling takes: 16
// bytes a key in Redis, where keys with a TTL are in two tables.
func fit(points []checkpoint, copies int, cluster bool) (model, error) {
	if len(points) < 3 {
		return model{}, errors.New("too few checkpoints")
	}
	points = calm(points)
	var best model
	bestError := math.Inf(1)
	for _, m := range []model{{}, {PerBucket: 1}, {PerBucket: 7}, {PerBucket: 1, PerSlot: 2 * 8, Spread: true}, {PerBucket: 7, PerSlot: 2 * 64 / 7.0, Spread: true}} {
		if m.PerBucket > 0 && len(points) < 6 || m.Spread && !cluster {
			continue
		}
		// One parameter more must be worth it.
		if squares, ok := m.fit(points); ok && squares < bestError*0.8 {
			best, bestError = m, squares
		}
	}
	if math.IsInf(bestError, 1) {
		return model{}, errors.New("memory did not grow with the keys: is somebody else using the server?")
	}
	best.Copies = copies
	return best, nil
}

// fit sets the coefficients of a kind of model, and returns the sum of the squares by which it misses.
func (m *model) fit(points []checkpoint) (squares float64, ok bool) {
	rows, used, mean := make([][]float64, len(points)), make([]float64, len(points)), 0.0
	for i, p := range points {
		rows[i], used[i] = []float64{1, float64(p.Numbers)}, p.Used
		tables, all := m.tables(p.Keys)
		switch {
		case m.Spread: // tables are so small that what their slots take must be known
			rows[i] = append(rows[i], tables)
			used[i] -= m.PerSlot * all
		case m.PerBucket > 0:
			rows[i] = append(rows[i], all)
		}
		mean += used[i] / float64(len(points))
	}
	x, ok := leastSquares(rows, used)
	if !ok || x[1] <= 0 || len(x) > 2 && (x[2] < 0 || x[2] > 64 && !m.Spread) {
		return 0, false
	}
	total := 0.0
	for i, row := range rows {
		v := 0.0
		for j, r := range row {
			v += r * x[j]
		}
		squares += (v - used[i]) * (v - used[i])
		total += (used[i] - mean) * (used[i] - mean)
	}
	if total <= 0 {
		return 0, false
	}
	m.Base, m.PerKey, m.Points, m.R2 = x[0], x[1], len(points), 1-squares/total
	switch {
	case m.Spread:
		m.PerTable = x[2]
	case m.PerBucket > 0:
		m.PerSlot = x[2]
	}
	return squares, true
}

// calm leaves out checkpoints at which keys were being moved to a larger table, and the old one was still there. Where the
// server does not tell (Redis 7.0), these are the first three fifths between two powers of two.
func calm(points []checkpoint) (kept []checkpoint) {
	for _, p := range points {
		busy := false
		for _, k := range p.Keys {
			busy = busy || k > 0 && slots(k, 1)/k > 1.24
		}
		if p.Calm || !busy {
			kept = append(kept, p)
		}
	}
	if len(kept) < 3 {
		return points
	}
	return kept
}

// leastSquares solves the normal equations by Gauss-Jordan elimination, with columns scaled to 1.
func leastSquares(rows [][]float64, y []float64) ([]float64, bool) {
	n := len(rows[0])
	scale := make([]float64, n)
	for _, r := range rows {
		for j, v := range r {
			scale[j] = max(scale[j], math.Abs(v))
		}
	}
	m := make([][]float64, n)
	for i := range m {
		m[i] = make([]float64, n+1)
		if scale[i] == 0 {
			return nil, false
		}
		for k, r := range rows {
			for j := range n {
				m[i][j] += r[i] / scale[i] * r[j] / scale[j]
			}
			m[i][n] += r[i] / scale[i] * y[k]
		}
	}
	for i := range m {
		pivot := i
		for k := i + 1; k < n; k++ {
			if math.Abs(m[k][i]) > math.Abs(m[pivot][i]) {
				pivot = k
			}
		}
		m[i], m[pivot] = m[pivot], m[i]
		if math.Abs(m[i][i]) < 1e-9 {
			return nil, false
		}
		for k := range m {
			if k == i {
				continue
			}
			f := m[k][i] / m[i][i]
			for j := i; j <= n; j++ {
				m[k][j] -= f * m[i][j]
			}
		}
	}
	x := make([]float64, n)
	for i := range x {
		x[i] = m[i][n] / m[i][i] / scale[i]
	}
	return x, true
}

// predict returns the memory that so many keys take, spread over so many primaries, each with what an empty server takes.
func (m model) predict(keys float64, primaries int) float64 {
	tables, all := m.tables(evenly(keys*float64(m.Copies), primaries))
	return m.Base + m.PerKey*keys + m.PerSlot*all + m.PerTable*tables
}

// spike returns what a table takes more while it doubles: the old one is there until all is moved.
func (m model) spike(keys float64, primaries int) float64 {
	if m.Spread { // one of very many, and each is small
		return 0
	}
	per := max(m.PerBucket, 1)
	return max(m.PerSlot, 16) * float64(primaries) * slots(keys*float64(max(m.Copies, 1))/float64(primaries)+1, per)
}
