package main

import (
	"math"
	"math/rand/v2"
	"strconv"
	"strings"
	"sync/atomic"
)

// distribution says which keys are asked for how often.
type distribution struct {
	kind string
	a, b float64
}

// pick returns one of n numbers.
func (d distribution) pick(n int, next *atomic.Int64) int {
	switch d.kind {
	case "seq":
		return int((next.Add(1) - 1) % int64(n))
	case "zipf":
		// By inversion of the continuous law, which is close, and needs no table and no lock.
		e := 1 - d.a
		x := math.Pow(1+rand.Float64()*(math.Pow(float64(n)+1, e)-1), 1/e) - 1
		return min(int(x), n-1)
	case "hot":
		hot := min(max(int(float64(n)*d.a), 1), n)
		if rand.Float64() < d.b || hot == n {
			return rand.IntN(hot)
		}
		return hot + rand.IntN(n-hot)
	}
	return rand.IntN(n)
}

// dataset is what is loaded before: keys with numbers, of classes that take turns by their weights, so that any first part of
// it has all classes in proportion.
type dataset struct {
	prefix  string
	keys    int
	classes []class
	dist    distribution

	turns  []int   // the class of number i is turns[i%len(turns)]
	places [][]int // of each class in turns
	counts []int   // keys of each class
	values [][]string
	next   []atomic.Int64
}

// variants is how many different values a class has.
const variants = 16

func newDataset(prefix string, keys int, classes []class, dist distribution, compressible bool) *dataset {
	d := &dataset{prefix: prefix, keys: keys, classes: classes, dist: dist}
	divisor := 0
	for _, c := range classes {
		divisor = gcd(divisor, c.Weight)
	}
	weights, sum := make([]int, len(classes)), 0
	for i, c := range classes {
		weights[i] = c.Weight / divisor
		sum += weights[i]
	}
	credit := make([]int, len(classes))
	d.places = make([][]int, len(classes))
	for turn := range sum { // evenly mixed: each turn goes to the class that is furthest behind
		best := 0
		for i, w := range weights {
			credit[i] += w
			if credit[i] > credit[best] {
				best = i
			}
		}
		credit[best] -= sum
		d.turns = append(d.turns, best)
		d.places[best] = append(d.places[best], turn)
	}
	d.counts = make([]int, len(classes))
	for i, places := range d.places {
		d.counts[i] = keys / sum * len(places)
		for _, p := range places {
			if p < keys%sum {
				d.counts[i]++
			}
		}
	}
	d.next = make([]atomic.Int64, len(classes))
	for _, c := range classes {
		d.values = append(d.values, makeValues(c.Size, compressible))
	}
	return d
}

func gcd(a, b int) int {
	for b != 0 {
		a, b = b, a%b
	}
	return a
}

func makeValues(size int, compressible bool) []string {
	n := variants
	if size > 1<<20 {
		n = 1
	}
	all := make([]string, n)
	const letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
	for i := range all {
		var b strings.Builder
		b.Grow(size)
		for b.Len() < size {
			if compressible {
				text := `{"sub":"user-` + strconv.Itoa(i) + `","scope":"read write","iss":"https://issuer.example"},`
				b.WriteString(text[:min(len(text), size-b.Len())])
			} else {
				b.WriteByte(letters[rand.IntN(len(letters))])
			}
		}
		all[i] = b.String()
	}
	return all
}

// classOf returns the class of key number i.
func (d *dataset) classOf(i int) int { return d.turns[i%len(d.turns)] }

// key returns the name of key number i.
func (d *dataset) key(i int) string { return d.name(d.classOf(i), i) }

func (d *dataset) name(class, i int) string {
	return d.prefix + d.classes[class].Name + ":" + digits(i)
}

// digits writes a number as ten digits that look random, so that all keys have one length and a dataset grows evenly: the slots
// of a cluster that numbers in sequence fall into are far from evenly spread.
func digits(i int) string {
	s := strconv.FormatUint(uint64(i)*6_180_339_887%1e10, 10) // one to one, as the factor and 1e10 have no common divisor
	return "0000000000"[min(len(s), 10):] + s
}

// pick returns the number of one of a class' keys, by the distribution.
func (d *dataset) pick(class int) int {
	j := d.dist.pick(d.counts[class], &d.next[class])
	places := d.places[class]
	return j/len(places)*len(d.turns) + places[j%len(places)]
}

func (d *dataset) value(class int) string {
	return d.values[class][rand.IntN(len(d.values[class]))]
}

// estimate returns about how many bytes a key takes: what it is before anything was measured.
func (d *dataset) estimate() float64 {
	sum, weights := 0.0, 0.0
	for i, c := range d.classes {
		key := len(d.name(i, d.keys))
		sum += float64(c.Weight) * float64(allocated(key+4)+allocatedString(c.Size)+24+24+2*16+16)
		weights += float64(c.Weight)
	}
	return sum / weights
}

// allocatedString returns what the allocator gives a string of Redis: the bytes, a header and an end.
func allocatedString(size int) int {
	switch {
	case size < 1<<8:
		return allocated(size + 4)
	case size < 1<<16:
		return allocated(size + 6)
	default:
		return allocated(size + 10)
	}
}

// allocated returns the size class of jemalloc, which Redis and Valkey are built with, for so many bytes: four classes between
// one power of two and the next.
func allocated(size int) int {
	if size <= 8 {
		return 8
	}
	step := 16
	for size > step*8 {
		step *= 2
	}
	return (size + step - 1) / step * step
}
