package main

import (
	"context"
	"fmt"
	"math/rand/v2"
	"strconv"
	"time"

	"github.com/redis/rueidis"
)

// operation is one row of the table: something that is done again and again.
type operation struct {
	name    string
	weight  float64
	command string        // of Redis, to show beside it how long the server took; or ""
	twin    string        // the operation that this one does without a package
	ttl     time.Duration // of what it writes under ever new names, or 0: for the keys that there will be at a time
	bytes   float64       // about what each of these keys takes
	do      func(ctx context.Context) outcome
}

// workload is what a scenario comes to.
type workload struct {
	operations []operation
	// fill writes the keys with numbers from a to b, not included; nil if nothing is loaded before.
	fill func(ctx context.Context, a, b int) error
	// copies is how many keys of Redis fill writes per number.
	copies int
	// start begins what goes on beside the operations. It may be nil, and is called once nothing speaks against the run.
	start func()
	// close ends what the scenario and start began. It may be nil.
	close func(ctx context.Context) error
}

// environment is what scenarios are made of.
type environment struct {
	client    rueidis.Client
	data      *dataset
	ttl       time.Duration // of what is loaded before
	jitter    float64       // up to which part of it a TTL is shorter
	csc       bool
	raw       bool
	callLimit time.Duration
}

func (e *environment) prefix() string { return e.data.prefix }

// ttlNow returns a TTL of what is loaded before.
func (e *environment) ttlNow() time.Duration {
	return max(e.ttl-time.Duration(rand.Float64()*e.jitter*float64(e.ttl)), time.Millisecond)
}

// anyClass returns a class by the weights.
func (e *environment) anyClass() int { return e.data.turns[rand.IntN(len(e.data.turns))] }

func (e *environment) get(ctx context.Context, key string) outcome {
	var r rueidis.RedisResult
	if e.csc {
		r = e.client.DoCache(ctx, e.client.B().Get().Key(key).Cache(), time.Minute)
	} else {
		r = e.client.Do(ctx, e.client.B().Get().Key(key).Build())
	}
	s, err := r.ToString()
	switch {
	case rueidis.IsRedisNil(err):
		return outcome{misses: 1, out: len(key)}
	case err != nil:
		return outcome{err: err, out: len(key)}
	}
	return outcome{hits: 1, in: len(s), out: len(key)}
}

// getMany is one MGET, or in a cluster, where that is for one slot, as many GETs, which are one pipeline per node.
func (e *environment) getMany(ctx context.Context, keys []string) (o outcome) {
	for _, k := range keys {
		o.out += len(k)
	}
	var replies []rueidis.RedisMessage
	if e.client.Mode() == rueidis.ClientModeCluster {
		gets := make(rueidis.Commands, len(keys))
		for i, k := range keys {
			gets[i] = e.client.B().Get().Key(k).Build()
		}
		for _, r := range e.client.DoMulti(ctx, gets...) {
			m, err := r.ToMessage()
			if err != nil && !rueidis.IsRedisNil(err) {
				o.err = err
				return o
			}
			replies = append(replies, m)
		}
	} else {
		replies, o.err = e.client.Do(ctx, e.client.B().Mget().Key(keys...).Build()).ToArray()
	}
	if o.err != nil {
		return o
	}
	for i := range replies {
		if s, err := replies[i].ToString(); err == nil {
			o.hits++
			o.in += len(s)
		} else {
			o.misses++
		}
	}
	return o
}

func (e *environment) set(ctx context.Context, key, value string, ttl time.Duration) outcome {
	err := e.client.Do(ctx, e.setCommand(key, value, ttl)).Error()
	return outcome{err: err, out: len(key) + len(value)}
}

func (e *environment) setCommand(key, value string, ttl time.Duration) rueidis.Completed {
	set := e.client.B().Set().Key(key).Value(value)
	if ttl <= 0 {
		return set.Build()
	}
	return set.Px(ttl).Build()
}

// fillKeys writes the dataset's keys: one pipeline, which is not a transaction, so that others' commands come in between.
func (e *environment) fillKeys(ctx context.Context, a, b int) error {
	sets := make(rueidis.Commands, 0, b-a)
	for i := a; i < b; i++ {
		c := e.data.classOf(i)
		sets = append(sets, e.setCommand(e.data.name(c, i), e.data.value(c), e.ttlNow()))
	}
	for _, r := range e.client.DoMulti(ctx, sets...) {
		if err := r.Error(); err != nil {
			return err
		}
	}
	return nil
}

// operations makes the operations of an --op, one for each class of values that it is about.
func (e *environment) operations(spec operationSpec) ([]operation, error) {
	classes := make([]int, 0, len(e.data.classes))
	weights := 0
	for i, c := range e.data.classes {
		if spec.class == "" || spec.class == c.Name {
			classes = append(classes, i)
			weights += c.Weight
		}
	}
	if len(classes) == 0 {
		return nil, usage("--op: there is no class of values %q", spec.class)
	}
	switch spec.kind {
	case "ping":
		return []operation{{name: "ping", weight: spec.weight, command: "ping", do: func(ctx context.Context) outcome {
			return outcome{err: e.client.Do(ctx, e.client.B().Ping().Build()).Error()}
		}}}, nil
	case "incr":
		return []operation{e.incrOperation(spec)}, nil
	}
	var all []operation
	for _, c := range classes {
		o := e.classOperation(spec, c)
		o.weight = spec.weight * float64(e.data.classes[c].Weight) / float64(weights)
		all = append(all, o)
	}
	return all, nil
}

func (e *environment) incrOperation(spec operationSpec) operation {
	ttl := spec.ttl
	if ttl == 0 {
		ttl = e.ttl
	}
	return operation{name: "incr", weight: spec.weight, command: "incr", do: func(ctx context.Context) outcome {
		key := e.prefix() + "n:" + strconv.Itoa(rand.IntN(max(e.data.keys, 1)))
		for _, r := range e.client.DoMulti(ctx, e.client.B().Incr().Key(key).Build(),
			e.client.B().Pexpire().Key(key).Milliseconds(ttl.Milliseconds()).Nx().Build()) {
			if err := r.Error(); err != nil {
				return outcome{err: err}
			}
		}
		return outcome{out: len(key)}
	}}
}

func (e *environment) classOperation(spec operationSpec, c int) operation {
	d, name := e.data, e.data.classes[c].Name
	switch spec.kind {
	case "get":
		return operation{name: "get(" + name + ")", command: "get", do: func(ctx context.Context) outcome {
			return e.get(ctx, d.name(c, d.pick(c)))
		}}
	case "mget":
		return operation{name: fmt.Sprintf("mget[%d](%s)", spec.width, name), command: "mget", do: func(ctx context.Context) outcome {
			keys := make([]string, spec.width)
			for i := range keys {
				keys[i] = d.name(c, d.pick(c))
			}
			return e.getMany(ctx, keys)
		}}
	case "del":
		return operation{name: "del(" + name + ")", command: "del", do: func(ctx context.Context) outcome {
			key := d.name(c, d.pick(c))
			n, err := e.client.Do(ctx, e.client.B().Del().Key(key).Build()).AsInt64()
			return outcome{hits: int(n), misses: 1 - int(n), out: len(key), err: err}
		}}
	}
	if spec.ttl == 0 { // of the keys that are read
		return operation{name: "set(" + name + ")", command: "set", do: func(ctx context.Context) outcome {
			return e.set(ctx, d.name(c, d.pick(c)), d.value(c), e.ttlNow())
		}}
	}
	one := newDataset(d.prefix, 1, d.classes[c:c+1], distribution{}, false)
	return operation{
		name: fmt.Sprintf("set(%s,%v)", name, spec.ttl), command: "set", ttl: spec.ttl, bytes: one.estimate(),
		do: func(ctx context.Context) outcome {
			key := d.prefix + "new:" + strconv.FormatUint(rand.Uint64(), 36)
			return e.set(ctx, key, d.value(c), spec.ttl)
		},
	}
}
