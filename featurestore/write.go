package featurestore

import (
	"context"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"time"
	"unsafe"

	"github.com/redis/rueidis"

	"github.com/redispatterns/redispatterns/featurestore/feast"
	"github.com/redispatterns/redispatterns/internal/script"
)

// Outcome says what became of a row that was written.
type Outcome uint8

const (
	// Applied means that it was written: there was none, or an older one.
	Applied Outcome = iota + 1
	// Older means that it was not, since the row that is there has a later event time. Nothing has changed, nor any TTL.
	Older
	// Same means that it was written over one of the same event time, to correct it or because it came twice.
	Same
)

func (o Outcome) String() string { return [...]string{"none", "applied", "older", "same"}[o] }

// Put writes a whole row, unless a later one is there: features that are absent, null, or no longer in the schema leave
// nothing behind. at is the time of the event that the features are of, after 1970 and before 2255, in whole microseconds:
// the rest is cut off. It is written to the version that is live, if one is; if another one becomes so meanwhile, to both.
// (Of a Cluster it may be the old one alone, if the switch and the Put were under way in the same 20ms.)
//
// One round trip, and one more before the first of a process and the first after a second without one. When its reply is
// lost, Put may be sent again, which does no harm: it then may return Same, or Older if another row came in between.
func (v *View[K, T]) Put(ctx context.Context, k K, value T, at time.Time) (Outcome, error) {
	w := write{v: v.v, began: time.Now()}
	out, err := w.put(ctx, unsafe.Pointer(&k), unsafe.Pointer(&value), at)
	w.report(ctx, out, err)
	if err != nil {
		return 0, fmt.Errorf("featurestore: put: %w", err)
	}
	return out, nil
}

// Assign is a value for one feature of a row. See [To].
type Assign struct {
	Feature string
	Value   any // nil for null
}

// To is an Assign for Patch. value is of the feature's type, or of one of the same kind that fits; nil is null.
func To(feature string, value any) Assign { return Assign{feature, value} }

// Patch writes some features of a row and leaves the others, unless a later row is there. The row's event time becomes at,
// for all of its features. If there is no row, the others are absent. With codec Packed the row must be readable; with the
// others, what Patch sets is mended. Two round trips; more if the row is written by others meanwhile.
func (v *View[K, T]) Patch(ctx context.Context, k K, at time.Time, set ...Assign) (Outcome, error) {
	w := write{v: v.v, began: time.Now()}
	var value T
	out, err := w.patch(ctx, unsafe.Pointer(&k), unsafe.Pointer(&value), at, set)
	w.report(ctx, out, err)
	if err != nil {
		return 0, fmt.Errorf("featurestore: patch: %w", err)
	}
	return out, nil
}

// write is one Put or Patch.
type write struct {
	v     *view
	began time.Time
}

func (w *write) report(ctx context.Context, out Outcome, err error) {
	if w.v.opts.Hooks.Write == nil {
		return
	}
	info := WriteInfo{View: w.v.name, Took: time.Since(w.began), Err: err}
	info.count(out, err)
	w.v.opts.Hooks.Write(ctx, info)
}

func (i *WriteInfo) count(out Outcome, err error) {
	switch {
	case errors.Is(err, ErrInvalid):
		i.Invalid++
	case out == Applied:
		i.Applied++
	case out == Older:
		i.Older++
	case out == Same:
		i.Same++
	}
}

// encoded is a row as it is written.
type encoded struct {
	at        int64
	set, drop []string
	payload   string   // in place of those two, what dump makes of set
	expected  []string // pairs that must be there: a field, and its value with = before it or nothing
	unchecked bool     // whatever time the row that is there has
	anySchema bool     // whatever schema it has
}

// encode checks a row and encodes it, with dump if it is asked to and that can be.
func (v *view) encode(p unsafe.Pointer, at time.Time, dumped bool) (e encoded, err error) {
	r := v.row(p)
	defer v.rows.Put(r)
	if r.at, err = micros(at); err != nil {
		return e, err
	}
	for i := range v.schema.features {
		f := &v.schema.features[i]
		if r.states[i], err = v.stateOf(f, p); err != nil {
			return e, err
		}
	}
	e.at = r.at
	if dumped {
		if e.payload, dumped, err = v.codec.dump(r); dumped || err != nil {
			return e, err
		}
	}
	e.set, e.drop, err = v.codec.encode(v.everyone, r)
	return e, err
}

func micros(at time.Time) (int64, error) {
	if s := at.Unix(); s >= 0 && s <= maxMicros/1_000_000 { // else microseconds may not fit into an int64
		if us := at.UnixMicro(); us > 0 && us <= maxMicros {
			return us, nil
		}
	}
	return 0, fmt.Errorf("event time: %w", ErrInvalid)
}

// stateOf returns the state in which a feature is written.
func (v *view) stateOf(f *feature, p unsafe.Pointer) (State, error) {
	s := f.stateOf(p)
	if s == Set && f.overflows(p) {
		return s, f.invalid()
	}
	if s == Set && v.opts.NaN != NaNKeeps && f.isNaN(p) {
		if v.opts.NaN == NaNFails {
			return s, f.invalid()
		}
		return Null, nil
	}
	return s, nil
}

func (w *write) put(ctx context.Context, k, value unsafe.Pointer, at time.Time) (Outcome, error) {
	e, err := w.v.encode(value, at, false)
	if err != nil {
		return 0, err
	}
	anew := false
	for range maxAttempts {
		version, known, err := w.v.target(ctx, anew)
		if err != nil {
			return 0, err
		}
		switch code, err := w.send(ctx, k, version, known, e); {
		case err != nil:
			return 0, err
		case code == codeUnknown:
			e.anySchema, anew = anew, true // still unknown: by a writer that did not see DeleteAll
		case code != codeMoved:
			return outcome(code), nil
		}
	}
	return 0, errUnsettled
}

// maxAttempts bounds how often a write begins again because of what others wrote meanwhile.
const maxAttempts = 20

// What becomes of a row besides outcomes: see put.lua and load.lua.
const (
	codeUnknown   = -1
	codeExpected  = -2
	codeMoved     = -3 // another version is live
	codeWrongType = -4
	codeRefused   = -5
)

func outcome(code int64) Outcome { return [...]Outcome{Older, Applied, Same}[code] }

// call is how a row is written.
func (v *view) call(key string, known *knownSchemas, e *encoded) script.Call {
	var fields, others []string
	if len(e.expected) == 0 { // else it is a Patch, which leaves what it does not set
		fields, others = known.fields, known.others
	}
	args := make([]string, 0, 10+len(e.expected)+len(e.set)+len(e.drop)+len(fields)+len(others))
	args = append(args, v.opts.Codec.String(), v.codec.timeField(), strconv.FormatInt(e.at, 10), strconv.FormatInt(v.ttl(), 10),
		flag(!e.unchecked), v.schema.mark, flag(e.anySchema), strconv.Itoa(len(e.expected)/2), strconv.Itoa(len(e.set)/2),
		strconv.Itoa(len(e.drop)+len(fields)))
	args = append(append(append(append(append(args, e.expected...), e.set...), e.drop...), fields...), others...)
	return putScript.Call([]string{key}, args...)
}

// flag is a bool for a script.
func flag(b bool) string {
	if b {
		return "1"
	}
	return "0"
}

// send writes a row to a version, and asks in the same pipeline if it is live.
func (w *write) send(ctx context.Context, k unsafe.Pointer, version string, known *knownSchemas, e encoded) (int64, error) {
	key, err := w.v.keys.appendRow(nil, version, k)
	if err != nil {
		return 0, err
	}
	calls := []script.Call{w.v.call(string(key), known, &e)}
	if w.v.opts.Codec != Feast {
		calls = append(calls, liveScript.Call([]string{w.v.control}, version))
	}
	bounded, cancel := w.v.bound(ctx)
	defer cancel()
	sent := time.Now()
	replies := script.DoMulti(bounded, w.v.client, calls)
	code, err := replies[0].AsInt64()
	if err != nil || len(replies) == 1 {
		return code, err
	}
	live, _, err := w.v.liveAfter(ctx, replies[1], sent)
	if err != nil {
		return 0, err
	}
	if live != version {
		return codeMoved, nil
	}
	return code, nil
}

// liveAfter reads a reply of liveScript that came last in a pipeline of writes, which was sent at a time. Of a Cluster it
// may have come from another node long before they were done; then it is asked again.
func (v *view) liveAfter(ctx context.Context, reply rueidis.RedisResult, sent time.Time) (live, state string, err error) {
	if live, state, err = liveReply(reply); err != nil {
		return "", "", err
	}
	v.setLive(ctx, live, sent)
	if v.client.Mode() == rueidis.ClientModeCluster && time.Since(sent) > recheck {
		live, err = v.askLive(ctx)
	}
	return live, state, err
}

func liveReply(reply rueidis.RedisResult) (live, state string, err error) {
	values, err := reply.ToArray()
	if err != nil {
		return "", "", err
	}
	if live, err = values[0].ToString(); err == nil {
		state, err = values[1].ToString()
	}
	return live, state, err
}

// knownSchemas is what this process knows of schemas under which rows of the view were written.
type knownSchemas struct {
	others []string // of rows that name their schema: pairs of its mark, and names of features that this process' has not
	fields []string // of rows that do not: fields that any of them has
}

// schemaField is how fields of the control key begin that have a schema's names.
const schemaField = "s:"

// target returns which version is to be written, and what else there is to know for it. That takes a round trip if it is not known
// yet, or has not been asked for a second (which in Feast is each second), or is wanted anew. Where Redis is too full to note
// this process' schema, it returns what is known all the same, with the error.
func (v *view) target(ctx context.Context, anew bool) (version string, known *knownSchemas, err error) {
	live, known := v.live.Load(), v.known.Load()
	if known != nil && live != nil && !anew && time.Since(v.began)-live.at <= trusted {
		return live.version, known, nil
	}
	if v.opts.Codec == Packed { // its rows have fields of the same names whatever the schema
		known = &knownSchemas{}
		v.known.Store(known)
		version, err = v.askLive(ctx)
		return version, known, err
	}
	names := make([]string, len(v.schema.features))
	for i := range names {
		names[i] = v.schema.features[i].name
	}
	b := v.client.B()
	bounded, cancel := v.bound(ctx)
	defer cancel()
	sent := time.Now()
	replies := v.client.DoMulti(bounded,
		b.Hset().Key(v.control).FieldValue().FieldValue(schemaField+v.schema.mark, strings.Join(names, " ")).Build(),
		v.ofPrimary("HGETALL", v.control))
	noted := replies[0].Error()
	if noted != nil && !isFull(noted) {
		return "", nil, noted
	}
	control, err := replies[1].AsStrMap()
	if err != nil {
		return "", nil, err
	}
	known = &knownSchemas{}
	for name, list := range control {
		mark, ok := strings.CutPrefix(name, schemaField)
		if !ok || mark == v.schema.mark {
			continue
		}
		missing := retired(names, list)
		if v.opts.Codec != Feast {
			known.others = append(known.others, mark, strings.Join(missing, " "))
			continue
		}
		for _, name := range missing {
			known.fields = append(known.fields, feast.Field(v.name, name))
		}
	}
	slices.Sort(known.fields)
	known.fields = slices.Compact(known.fields)
	v.setLive(ctx, control[liveField], sent)
	if noted == nil {
		v.known.Store(known)
	}
	return control[liveField], known, noted
}

func isFull(err error) bool {
	e, ok := rueidis.IsRedisErr(err)
	return ok && strings.HasPrefix(e.Error(), "OOM")
}

// ofPrimary is a command that reads what a write depends on. The client does not know that it only reads, and sends it to no
// replica, which may not have it yet, whatever its SendToReplicas says. Pinned, as retries may use its memory again too early.
func (v *view) ofPrimary(name, key string, args ...string) rueidis.Completed {
	return v.client.B().Arbitrary(name).Keys(key).Args(args...).Build().ToRetryable().Pin()
}

func (w *write) patch(ctx context.Context, k, value unsafe.Pointer, at time.Time, set []Assign) (Outcome, error) {
	us, err := micros(at)
	if err != nil {
		return 0, err
	}
	if len(set) == 0 {
		return 0, errors.New("nothing to set")
	}
	v := w.v
	for range maxAttempts {
		version, known, err := v.target(ctx, false)
		if err != nil {
			return 0, err
		}
		e, err := w.merge(ctx, k, value, version, us, set)
		if err != nil {
			return 0, err
		}
		switch code, err := w.send(ctx, k, version, known, e); {
		case err != nil:
			return 0, err
		case code >= 0:
			return outcome(code), nil
		}
		if err := ctx.Err(); err != nil {
			return 0, err
		}
	}
	return 0, errors.New("the row is written by others all the time")
}

// merge reads a row and encodes it with what is to be set.
func (w *write) merge(ctx context.Context, k, value unsafe.Pointer, version string, at int64, set []Assign) (e encoded, err error) {
	v := w.v
	key, err := v.keys.appendRow(nil, version, k)
	if err != nil {
		return e, err
	}
	var features []int // that are read: but for Packed, the others need not even be readable
	if v.opts.Codec == Packed {
		features = v.everyone
	}
	fields := v.codec.fields(features)
	bounded, cancel := v.bound(ctx)
	defer cancel()
	reply, err := v.client.Do(bounded, v.ofPrimary("HMGET", string(key), fields...)).ToArray()
	if err != nil {
		return e, err
	}
	r := v.row(value)
	defer v.rows.Put(r)
	if err := v.codec.decode(features, r.take(reply), r); err != nil {
		return e, err
	}
	r.at, e.at, e.anySchema = at, at, true
	if c, ok := v.codec.(*fieldsCodec); ok {
		c.keep(r.values[0].text, r)
	}
	var written []int
	for _, a := range set {
		i, err := v.index(a.Feature)
		if err != nil {
			return e, err
		}
		f := &v.schema.features[i]
		written = append(written, i)
		if a.Value == nil {
			r.states[i] = Null
			continue
		}
		if !f.assign(r, reflect.ValueOf(a.Value)) {
			return e, fmt.Errorf("feature %s: %T: %w", f.name, a.Value, ErrInvalid)
		}
		f.setState(value, Set)
		if r.states[i], err = v.stateOf(f, value); err != nil {
			return e, err
		}
	}
	if e.set, e.drop, err = v.codec.encode(written, r); err != nil {
		return e, err
	}
	for i, field := range fields { // the time tells if somebody else has written, and of Packed the whole
		e.expected = append(e.expected, field, "")
		if r.values[i].ok {
			e.expected[len(e.expected)-1] = "=" + r.values[i].text
		}
	}
	return e, nil
}

// assign stores a value of any type that goes with the feature's.
func (f *feature) assign(r *row, value reflect.Value) bool {
	var d datum
	switch {
	case f.class == classVector:
		if k := value.Kind(); k != reflect.Slice && k != reflect.Array {
			return false
		}
		a, b, ok := f.resize(r.p, value.Len())
		for i := 0; ok && i < value.Len(); i++ {
			ok = value.Index(i).CanFloat() && setElement(a, b, i, value.Index(i).Float())
		}
		return ok
	case f.class == classTime && value.Type() == timeType:
		t, _ := value.Interface().(time.Time)
		d = datum{num: uint64(t.Unix()), nanos: int32(t.Nanosecond())}
	case f.class == classText && f.bytes && value.Kind() == reflect.Slice && value.Type().Elem().Kind() == reflect.Uint8:
		d.text = string(value.Bytes())
	case f.class == classText && !f.bytes && value.Kind() == reflect.String:
		d.text = value.String()
	case f.class == classBool && value.Kind() == reflect.Bool:
		if value.Bool() {
			d.num = 1
		}
	case f.class == classFloat && value.CanFloat():
		d = floatDatum(value.Float())
	case f.class == classFloat && value.CanInt() && int64(float64(value.Int())) == value.Int():
		d = floatDatum(float64(value.Int()))
	case f.class == classInt && value.CanInt(), f.class == classUint && value.CanInt() && value.Int() >= 0:
		d.num = uint64(value.Int())
	case f.class == classUint && value.CanUint():
		d.num = value.Uint()
	default:
		return false
	}
	if !f.fits(d) {
		return false
	}
	f.store(r.p, d)
	return true
}
