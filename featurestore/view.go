package featurestore

import (
	"context"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"reflect"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/redis/rueidis"

	"github.com/redispatterns/redispatterns/featurestore/feast"
	"github.com/redispatterns/redispatterns/internal/deadline"
	"github.com/redispatterns/redispatterns/internal/key"
)

// ErrInvalid means that a row cannot be written: its event time is out of bounds, or a feature's value cannot be told in the view's
// codec or is not allowed by Options.NaN.
var ErrInvalid = errors.New("featurestore: invalid row")

// ErrStale means that a row is older than Options.MaxAge, with StaleFails.
var ErrStale = errors.New("featurestore: stale row")

// StalePolicy says what becomes of rows that are older than Options.MaxAge.
type StalePolicy uint8

const (
	// StaleServes returns them, with status Stale.
	StaleServes StalePolicy = iota
	// StaleDrops returns them with status Stale, but as if no feature had been written.
	StaleDrops
	// StaleFails is StaleDrops with an error in the row.
	StaleFails
)

// NaNPolicy says what becomes of features that are NaN, or vectors that have one in them.
type NaNPolicy uint8

const (
	// NaNKeeps writes and returns them.
	NaNKeeps NaNPolicy = iota
	// NaNNull takes them for null, where rows are written and where they are read.
	NaNNull
	// NaNFails refuses rows with them: Put returns ErrInvalid, and a row that is read has an error.
	NaNFails
)

// Options configures a [View]; the zero value works. All processes that use a view should have the same. Durations are whole
// milliseconds.
type Options struct {
	// Prefix is what all keys begin with, but for those of Key and of codec Feast. No braces and no @. None should be another
	// one, a colon and the name of a view in it: with Share, views of the one would have the keys of the other. Defaults to
	// "features".
	Prefix string

	// Share keeps the rows of an entity in one hash, "Prefix:{entity}", for all views of the prefix that have it, so that
	// one command reads several of them. They must be of the same kind of entity, and of the same codec or without a view
	// that has the name of a feature; no two may have a feature of the same name: else they write over each other's.
	Share bool

	// Codec is how rows are encoded. Defaults to Fields. Packed is for rows that are read as a whole by this package.
	Codec Codec

	// Key is the template of keys, with one %v for the entity, as in "user:%v". It must begin otherwise than Prefix. It is not
	// for rows of versions, which are under Prefix, nor for codec Feast or with Share. What Share says goes for views that have the
	// same Key. Empty, it is "Prefix:View:{%v}".
	Key string

	// Feast is for codec Feast alone.
	Feast FeastOptions

	// MaxAge is how long after its event time a row is fresh, by this machine's clock. A row without event time is not.
	// 0, the default, means for ever.
	MaxAge time.Duration

	// Stale is for rows that are not fresh. Defaults to StaleServes.
	Stale StalePolicy

	// TTL is how long after it is written a row stays in Redis. Where views share a hash, it stays for the longest, and for ever
	// if one of them has no TTL. 0, the default, means for ever. At least 1ms. A hash that was written without one, which Redis
	// takes for the longest, does not get one by being written again: delete the row first.
	TTL time.Duration

	// TTLJitter is up to how much longer a row may stay, at random, so that rows which are loaded together do not all go at
	// once. Needs a TTL.
	TTLJitter time.Duration

	// NaN is for floats that are no number. Defaults to NaNKeeps.
	NaN NaNPolicy

	// Hot is how long a row may be served from rueidis' client-side cache, which Redis invalidates when the row's hash is
	// written. It is for views whose few hot entities are read again and again: a miss costs a command more, and a row that is
	// Missing a round trip, to see which version is live. 0, the default, means not to cache. A client with DisableCache does not.
	Hot time.Duration

	// OpTimeout bounds each pipeline that is sent to Redis, 7/8 of it at least; an operation may take several, each with its own.
	// Defaults to 1s.
	OpTimeout time.Duration

	// Hooks are told what the view does.
	Hooks Hooks
}

const (
	defaultPrefix    = "features"
	defaultOpTimeout = time.Second
)

func (o *Options) setDefaults() error {
	if o.Prefix == "" {
		o.Prefix = defaultPrefix
	}
	if err := key.CheckPrefix(o.Prefix); err != nil {
		return fmt.Errorf("Options.Prefix: %w", err)
	}
	if strings.Contains(o.Prefix, "@") {
		return fmt.Errorf("Options.Prefix must not contain @, got %q", o.Prefix)
	}
	if o.OpTimeout == 0 {
		o.OpTimeout = defaultOpTimeout
	}
	for _, d := range []struct {
		name     string
		value    time.Duration
		smallest time.Duration
	}{
		{"MaxAge", o.MaxAge, 0},
		{"TTL", o.TTL, 0},
		{"TTLJitter", o.TTLJitter, 0},
		{"Hot", o.Hot, 0},
		{"OpTimeout", o.OpTimeout, time.Millisecond},
	} {
		if d.value < d.smallest || d.value%time.Millisecond != 0 || d.value > math.MaxInt64/8 {
			return fmt.Errorf("%s must be whole milliseconds and at least %v, got %v", "Options."+d.name, d.smallest, d.value)
		}
	}
	switch {
	case o.TTLJitter > 0 && o.TTL == 0:
		return errors.New("Options.TTLJitter needs Options.TTL")
	case o.Codec > Feast:
		return fmt.Errorf("Options.Codec must be Fields, Packed or Feast, got %d", o.Codec)
	case o.Stale > StaleFails:
		return fmt.Errorf("Options.Stale must be StaleServes, StaleDrops or StaleFails, got %d", o.Stale)
	case o.NaN > NaNFails:
		return fmt.Errorf("Options.NaN must be NaNKeeps, NaNNull or NaNFails, got %d", o.NaN)
	case o.Codec != Feast && o.Feast != FeastOptions{}:
		return errors.New("Options.Feast needs Options.Codec Feast")
	case o.Share && (o.Key != "" || o.Codec == Feast):
		return errors.New("Options.Share cannot be with Options.Key or with codec Feast, which have keys of their own")
	case o.Codec != Feast:
		return nil
	case o.Key != "":
		return errors.New("Options.Key cannot be with Options.Codec Feast, which has keys of its own")
	case o.Feast.Project == "":
		return errors.New("Options.Feast.Project must not be empty")
	case o.Feast.KeyVersion == 0:
		o.Feast.KeyVersion = feast.KeyV3
	case o.Feast.KeyVersion != feast.KeyV2 && o.Feast.KeyVersion != feast.KeyV3:
		return fmt.Errorf("Options.Feast.KeyVersion must be 2 or 3, got %d", o.Feast.KeyVersion)
	}
	return nil
}

// View is a set of features of entities of one kind: K names the entity, and is a string, an integer, or a struct of those with
// entity tags; T is a struct whose fields have feature tags. Its rows are read by the methods of [Projection], which reads all
// features here. Its methods may be called concurrently.
type View[K comparable, T any] struct{ Projection[K, T] }

// view is a View without its types.
type view struct {
	client   rueidis.Client
	opts     Options
	name     string
	schema   schema
	codec    codec
	keys     keys
	everyone []int // the indexes of all features
	plain    bool  // no feature has anything to be done that is set
	control  string
	deadline *deadline.Shared
	began    time.Time
	live     atomic.Pointer[liveVersion]
	known    atomic.Pointer[knownSchemas]
	rows     sync.Pool // of *row
}

// NewView compiles the tags of T and K and returns the view of that name, which is of letters, digits, _, . and -. It does
// no I/O. Tags of T's fields are `feature:"name"`, with options after commas: f32 encodes a float64 as float32,
// default=value is for rows that do not have the feature, and comes last. Types of features are bool, all integers, floats,
// string, []byte, time.Time, slices and arrays of floats, types made of those, and [Opt] of any of them. Fields without the
// tag are ignored, but a struct that is embedded must not have the tag inside.
func NewView[K comparable, T any](client rueidis.Client, name string, opts Options) (*View[K, T], error) {
	v, err := newView(client, name, opts, reflect.TypeFor[K](), reflect.TypeFor[T]())
	if err != nil {
		return nil, fmt.Errorf("featurestore: %w", err)
	}
	return &View[K, T]{*newProjection[K, T](v, v.plan(v.everyone), nil)}, nil
}

func newView(client rueidis.Client, name string, opts Options, keyType, rowType reflect.Type) (*view, error) {
	if client == nil {
		return nil, errors.New("client must not be nil")
	}
	if err := checkName(name); err != nil {
		return nil, fmt.Errorf("view: %w", err)
	}
	if err := opts.setDefaults(); err != nil {
		return nil, err
	}
	features, err := compileSchema(rowType)
	if err != nil {
		return nil, err
	}
	e, err := compileEntity(keyType)
	if err != nil {
		return nil, err
	}
	k, err := newKeys(name, &opts, e)
	if err != nil {
		return nil, err
	}
	hash := fingerprint(features)
	v := &view{
		client: client, opts: opts, name: name, schema: schema{name, features, hash, markOf(hash)}, keys: k, control: k.control(),
		deadline: deadline.New(opts.OpTimeout), began: time.Now(),
	}
	switch opts.Codec {
	case Packed:
		v.codec = newPackedCodec(&v.schema)
	case Feast:
		c := &feastCodec{schema: &v.schema}
		for i := range features {
			f := &features[i]
			if f.class == classUint && f.bits == 64 {
				return nil, fmt.Errorf("feature %s: uint64 has no type in Feast", f.name)
			}
			hash := feast.Field(name, f.name)
			if j := slices.Index(c.hashes, hash); j >= 0 {
				return nil, fmt.Errorf("features %s and %s have the same hash in Feast", features[j].name, f.name)
			}
			c.hashes = append(c.hashes, hash)
		}
		v.codec = c
	default:
		v.codec = &fieldsCodec{&v.schema}
	}
	v.plain = opts.NaN == NaNKeeps
	for i := range features {
		v.everyone = append(v.everyone, i)
		v.plain = v.plain && !features[i].optional
	}
	v.rows.New = func() any { return &row{states: make([]State, len(features))} }
	return v, nil
}

// plan is what to read of a view.
type plan struct {
	features []int          // indexes, ascending
	fields   []string       // of the hash
	width    int            // of a Matrix
	wide     string         // a feature that cannot be in a Matrix
	dumped   map[string]int // where each field is in fields, if hashes are read with DUMP; see dumpFields
	plainly  *atomic.Int64  // until when they are not, since began
}

const (
	// dumpFields is from how many fields on hashes that are the view's own are read with DUMP, in Redis' own format. HMGET walks a
	// compact hash from its beginning for each field, and each value is a string to the client; DUMP is one.
	dumpFields = 20
	// dumpOthers is how many bytes of a hash may be none that were asked for, which DUMP carries nevertheless. Where there
	// were more, or DUMP did not return what is understood here, hashes are read with HMGET for as long as dumpAgain.
	dumpOthers = 4096
	dumpAgain  = 10 * time.Second
)

func (v *view) plan(features []int) plan {
	p := plan{features: features, fields: v.codec.fields(features)}
	for _, i := range features {
		f := &v.schema.features[i]
		if f.width() < 0 {
			p.wide = f.name
		}
		p.width += f.width()
	}
	if v.opts.Codec == Fields && v.opts.Hot == 0 && len(p.fields) >= dumpFields {
		p.dumped, p.plainly = map[string]int{}, &atomic.Int64{}
		for i, name := range p.fields {
			p.dumped[name] = i
		}
	}
	return p
}

func (v *view) index(name string) (int, error) {
	for i := range v.schema.features {
		if v.schema.features[i].name == name {
			return i, nil
		}
	}
	return 0, fmt.Errorf("view %s has no feature %q", v.name, name)
}

// ttl returns how long a row written now is to stay, in milliseconds; 0 is for ever.
func (v *view) ttl() int64 {
	ttl := v.opts.TTL
	if v.opts.TTLJitter > 0 {
		ttl += rand.N(v.opts.TTLJitter)
	}
	return ttl.Milliseconds()
}

// bound ends a round trip's context after OpTimeout.
func (v *view) bound(ctx context.Context) (context.Context, context.CancelFunc) {
	return v.deadline.Bound(ctx, time.Since(v.began))
}
