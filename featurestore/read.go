package featurestore

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"time"
	"unsafe"

	"github.com/redis/rueidis"

	"github.com/redispatterns/redispatterns/internal/gather"
)

// Status says what was found of a row.
type Status uint8

// Statuses of rows. The zero value is Missing.
const (
	Missing Status = iota // nothing
	Found                 // a row with all features that were asked for
	Partial               // a row in which at least one of them is absent or null
	Stale                 // a row that is older than Options.MaxAge
	Broken                // a row that cannot be read; see Err
)

func (s Status) String() string {
	return [...]string{"missing", "found", "partial", "stale", "broken"}[s]
}

// Row is what was read of an entity.
type Row[T any] struct {
	// Value has defaults and zeros where nothing was written, and in fields that were not asked for.
	Value T
	Info
}

// Info is about a row.
type Info struct {
	Status    Status
	EventTime time.Time // zero if the row has none
	Version   string    // which version it was read from; "" outside versions
	Err       error     // why the row is Broken, or ErrStale: of this row alone
}

// Projection reads some features of a view. It does not change, and its methods may be called concurrently.
type Projection[K comparable, T any] struct {
	v      *view
	plan   plan
	pinned *string
	trips  *gather.Trips[gathered[K, T]] // nil if each Get goes by itself
}

func newProjection[K comparable, T any](v *view, plan plan, pinned *string) *Projection[K, T] {
	p := &Projection[K, T]{v: v, plan: plan, pinned: pinned}
	p.trips = p.newTrips()
	return p
}

// Select returns a projection that reads the named features alone, however often: make it once and keep it. Other fields of
// its rows are zero. With codec Packed it reads as many bytes as a read of all features.
func (p *Projection[K, T]) Select(names ...string) (*Projection[K, T], error) {
	var features []int
	for _, name := range names {
		i, err := p.v.index(name)
		if err != nil {
			return nil, fmt.Errorf("featurestore: %w", err)
		}
		features = append(features, i)
	}
	slices.Sort(features)
	features = slices.Compact(features)
	return newProjection[K, T](p.v, p.v.plan(features), p.pinned), nil
}

// Pin returns a projection that reads one version, whichever is live: "" is rows outside versions. Make it once and keep it.
func (p *Projection[K, T]) Pin(version string) *Projection[K, T] {
	return newProjection[K, T](p.v, p.plan, &version)
}

// Get reads one row. The error is the row's Err, or why Redis could not be asked; a row that is missing is no error. It takes one
// round trip, and a second one in those cases in which GetMany does.
func (p *Projection[K, T]) Get(ctx context.Context, k K) (Row[T], error) {
	var row Row[T]
	err := p.get(ctx, k, &row)
	if err == nil {
		err = row.Err
	}
	if err != nil {
		return row, fmt.Errorf("featurestore: get: %w", err)
	}
	return row, nil
}

// GetMany reads the rows of many entities, in the order of ks. A key that is there twice is read once and returned twice. dst is
// where the rows go, from its beginning, if it is large enough.
//
// It takes one round trip; of a Cluster, one to each node, in parallel. With codec Fields and 20 features or more, one that
// meets a hash that cannot be read with DUMP takes one more. The first read of a process takes a second one if a version is
// live, and so does the first one after another version has become so.
//
// The error says why Redis could not be asked for some of the rows, which have it too; the others are there. A row that cannot
// be read is no such error: see its Err.
func (p *Projection[K, T]) GetMany(ctx context.Context, ks []K, dst []Row[T]) ([]Row[T], error) {
	if cap(dst) < len(ks) {
		dst = make([]Row[T], len(ks))
	}
	dst = dst[:len(ks)]
	many := part[K, T]{p: p, keys: ks, rows: dst}
	if err := read(ctx, &many); err != nil {
		return dst, fmt.Errorf("featurestore: get many: %w", err)
	}
	return dst, nil
}

// request is a part without its types.
type request interface {
	of() (*view, *plan, *string)
	size() int
	// appendKey appends the key of the row of the i-th entity.
	appendKey(dst []byte, version string, i int) ([]byte, error)
	// begin returns where the i-th row goes, emptied.
	begin(i int) (unsafe.Pointer, *Info)
	// end takes the i-th row, whose features have these states.
	end(i int, states []State)
}

// part is a read of rows of one view.
type part[K comparable, T any] struct {
	p    *Projection[K, T]
	keys []K
	rows []Row[T]
}

func (p *part[K, T]) of() (*view, *plan, *string) { return p.p.v, &p.p.plan, p.p.pinned }
func (p *part[K, T]) size() int                   { return len(p.keys) }

func (p *part[K, T]) appendKey(dst []byte, version string, i int) ([]byte, error) {
	return p.p.v.keys.appendRow(dst, version, unsafe.Pointer(&p.keys[i]))
}

func (p *part[K, T]) begin(i int) (unsafe.Pointer, *Info) {
	p.rows[i] = Row[T]{}
	return unsafe.Pointer(&p.rows[i].Value), &p.rows[i].Info
}

func (p *part[K, T]) end(int, []State) {}

// trip is one round trip for several requests.
type trip struct {
	requests []request
	versions []string
	checks   []int   // of each request, which command asks what version is live; -1 is none
	doubts   []error // and why Redis did not tell
	missing  []miss
	counts   []Counts
	buf      []byte
	ends     []int
	places   []place // of all rows of all requests
	index    map[string]int
	keys     []string   // of the commands
	asks     [][]ask    // of each command, if there are several requests
	fields   [][]string // likewise
	commands []rueidis.Completed
	single   [1]rueidis.RedisResult
	cached   []rueidis.CacheableTTL
	hot      bool // the client-side cache is used
	dumps    bool // hashes are read with DUMP
	anew     bool // and one has to be read with HMGET
}

// place is where in the replies a row is.
type place struct{ command, offset int }

// miss is a row of a request that is Missing.
type miss struct{ request, row int }

// ask is what a request wants of a hash: its fields begin at offset.
type ask struct{ request, offset int }

var trips = sync.Pool{New: func() any { return &trip{index: map[string]int{}} }}

// maxSwitches bounds how often a read begins again because the live version changed while it ran.
const maxSwitches = 10

// read reads all requests, of one client.
func read(ctx context.Context, requests ...request) error {
	began := time.Now()
	counts, err := fetch(ctx, requests...)
	for i, r := range requests {
		if v, _, _ := r.of(); v.opts.Hooks.Read != nil {
			v.opts.Hooks.Read(ctx, ReadInfo{View: v.name, Counts: counts[i], Took: time.Since(began), Err: err})
		}
	}
	return err
}

// fetch is read without hooks.
func fetch(ctx context.Context, requests ...request) (counts []Counts, err error) {
	t := trips.Get().(*trip)
	t.requests = append(t.requests[:0], requests...)
	err = errUnsettled
	again := true
	for n := 0; again && n < maxSwitches; n++ {
		again, err = t.run(ctx)
	}
	if again {
		t.fail(err)
	}
	for _, r := range requests {
		if v, _, _ := r.of(); v.opts.Hooks.Read != nil {
			counts = slices.Clone(t.counts) // t is somebody else's soon
			break
		}
	}
	t.reset()
	clear(t.requests)
	trips.Put(t)
	return counts, err
}

func (t *trip) reset() {
	clear(t.versions)
	clear(t.doubts)
	clear(t.keys)
	clear(t.asks)
	clear(t.fields)
	clear(t.index)
	clear(t.commands)
	clear(t.cached)
	clear(t.single[:])
	t.versions, t.checks, t.counts, t.buf, t.ends, t.places = t.versions[:0], t.checks[:0], t.counts[:0], t.buf[:0], t.ends[:0], t.places[:0]
	t.doubts, t.missing, t.dumps, t.anew = t.doubts[:0], t.missing[:0], false, false
	t.keys, t.asks, t.fields, t.commands, t.cached = t.keys[:0], t.asks[:0], t.fields[:0], t.commands[:0], t.cached[:0]
}

// run makes one round trip. again is whether it was of a version that is no longer live.
func (t *trip) run(ctx context.Context) (again bool, err error) {
	t.reset()
	if err := t.plan(); err != nil {
		t.fail(err)
		return false, err
	}
	if len(t.places) == 0 {
		return false, nil
	}
	lead, _, _ := t.requests[0].of()
	sent := time.Now()
	bounded, cancel := lead.bound(ctx)
	defer cancel()
	replies := t.send(bounded, lead.client)
	for i, r := range t.requests {
		v, _, pinned := r.of()
		t.doubts = append(t.doubts, nil)
		if pinned != nil || v.opts.Codec == Feast {
			continue
		}
		var check *rueidis.RedisResult
		if t.checks[i] >= 0 {
			check = &replies[t.checks[i]]
		}
		ok, doubt, err := v.confirm(ctx, t.versions[i], sent, check)
		t.doubts[i] = doubt
		if err != nil {
			t.fail(err)
			return false, err
		}
		again = again || !ok
	}
	if again && slices.ContainsFunc(replies, func(r rueidis.RedisResult) bool { return r.NonRedisError() == nil }) {
		return true, errUnsettled
	}
	n := 0 // if there is no reply at all, another round trip would take its time in vain
	for i, r := range t.requests {
		for j := range r.size() {
			place := t.places[n]
			n++
			if failed := t.decode(i, j, &replies[place.command], place.offset); failed != nil && err == nil {
				err = failed
			}
		}
	}
	if t.anew {
		return true, errUnsettled
	}
	return t.doubt(ctx, err)
}

// doubt makes sure that what is Missing is, in the version that is live: it may be one that is gone if Redis did not tell,
// or could not invalidate what was cached. err is why some rows were not read.
func (t *trip) doubt(ctx context.Context, err error) (again bool, _ error) {
	for i, r := range t.requests {
		v, _, pinned := r.of()
		if t.counts[i].Missing == 0 || pinned != nil || v.opts.Codec == Feast {
			continue
		}
		doubt := t.doubts[i]
		if doubt == nil && t.hot {
			live, failed := v.askLive(ctx)
			switch {
			case failed != nil:
				doubt = failed
			case live != t.versions[i] && err == nil:
				return true, errUnsettled
			case live != t.versions[i]:
				doubt = err
			}
		}
		if doubt == nil {
			continue
		}
		err = doubt
		for _, m := range t.missing {
			if m.request == i {
				t.counts[i].Missing--
				t.broken(i, m.row, doubt)
			}
		}
	}
	return false, err
}

// fail tells all rows that they were not read.
func (t *trip) fail(err error) {
	clear(t.counts)
	for i, r := range t.requests {
		for j := range r.size() {
			t.broken(i, j, err)
		}
	}
}

// plan finds out which commands it takes: one per hash.
func (t *trip) plan() error {
	for _, r := range t.requests {
		v, _, pinned := r.of()
		version, check := v.version(pinned)
		t.versions = append(t.versions, version)
		t.checks = append(t.checks, -1)
		t.counts = append(t.counts, Counts{})
		if check {
			t.checks[len(t.checks)-1] = 0 // its place is known later
		}
	}
	for n, r := range t.requests {
		version := t.versions[n]
		for i := range r.size() {
			var err error
			if t.buf, err = r.appendKey(t.buf, version, i); err != nil {
				return err
			}
			t.ends = append(t.ends, len(t.buf))
		}
	}
	all, from, n := string(t.buf), 0, 0
	for i, r := range t.requests {
		_, plan, _ := r.of()
		for range r.size() {
			key := all[from:t.ends[n]]
			from = t.ends[n]
			n++
			t.places = append(t.places, t.place(i, key, plan))
		}
	}
	return nil
}

// place returns where the row of a key will be, and has it asked for unless it is already.
func (t *trip) place(request int, key string, plan *plan) place {
	command, known := -1, false
	if len(t.ends) > 1 {
		command, known = t.index[key]
	}
	if !known {
		command = len(t.keys)
		t.keys = append(t.keys, key)
		if len(t.ends) > 1 {
			t.index[key] = command
		}
		if len(t.requests) > 1 {
			t.asks, t.fields = append(t.asks, nil), append(t.fields, nil)
		}
	}
	if len(t.requests) == 1 {
		return place{command, 0}
	}
	for _, a := range t.asks[command] {
		if a.request == request {
			return place{command, a.offset}
		}
	}
	offset := len(t.fields[command])
	t.asks[command] = append(t.asks[command], ask{request, offset})
	t.fields[command] = append(t.fields[command], plan.fields...)
	return place{command, offset}
}

// send sends one command per hash and one per version to check, in one pipeline.
func (t *trip) send(ctx context.Context, client rueidis.Client) []rueidis.RedisResult {
	hot := time.Duration(-1)
	for _, r := range t.requests {
		if v, _, _ := r.of(); hot < 0 || v.opts.Hot < hot {
			hot = v.opts.Hot
		}
	}
	add := func(command rueidis.Completed) { t.commands = append(t.commands, command) }
	lead, plan, _ := t.requests[0].of()
	t.hot = hot > 0
	t.dumps = len(t.requests) == 1 && plan.dumped != nil && int64(time.Since(lead.began)) > plan.plainly.Load() &&
		(!lead.keys.template || t.versions[0] != "") // others' hashes may be of any size
	for i, key := range t.keys {
		if t.dumps {
			add(client.B().Dump().Key(key).Build())
			continue
		}
		fields := plan.fields
		if len(t.requests) > 1 {
			fields = t.fields[i]
		}
		if command := client.B().Hmget().Key(key).Field(fields...); t.hot {
			t.cached = append(t.cached, rueidis.CT(command.Cache().ToStaticTTL(), hot))
		} else {
			add(command.Build())
		}
	}
	for i, r := range t.requests {
		if t.checks[i] < 0 {
			continue
		}
		v, _, _ := r.of()
		t.checks[i] = len(t.commands) + len(t.cached)
		if command := client.B().Hget().Key(v.control).Field(liveField); t.hot {
			t.cached = append(t.cached, rueidis.CT(command.Cache().ToStaticTTL(), hot))
		} else {
			add(command.Build())
		}
	}
	if len(t.commands) == 1 && !t.hot {
		t.single[0] = client.Do(ctx, t.commands[0])
		return t.single[:]
	}
	var replies []rueidis.RedisResult
	if t.hot {
		replies = client.DoMultiCache(ctx, t.cached...)
	} else {
		replies = client.DoMulti(ctx, t.commands...)
	}
	for i := range replies {
		if replies[i].NonRedisError() != nil { // the client may still have to send them, and reads the slice when it does
			t.commands, t.cached = nil, nil
			break
		}
	}
	return replies
}

// decode reads the j-th row of a request. The error is why Redis could not be asked for it.
func (t *trip) decode(request, j int, reply *rueidis.RedisResult, offset int) error {
	r := t.requests[request]
	v, plan, _ := r.of()
	p, info := r.begin(j)
	row := v.row(p)
	defer v.rows.Put(row)
	values, err := t.values(reply, offset, plan, row)
	switch {
	case t.anew:
		plan.plainly.Store(int64(time.Since(v.began) + dumpAgain))
		return nil
	case err != nil && isWrongType(err):
		t.broken(request, j, ErrCorrupt)
		return nil
	case err != nil:
		t.broken(request, j, err)
		return err
	}
	if err := v.codec.decode(plan.features, values, row); err != nil {
		t.broken(request, j, err)
		if row.at != 0 {
			info.EventTime = time.UnixMicro(row.at).UTC()
		}
		return nil
	}
	info.Version = t.versions[request]
	if row.at != 0 {
		info.EventTime = time.UnixMicro(row.at).UTC()
	}
	status := Found
	switch {
	case !row.found:
		status = Missing
	case v.opts.MaxAge > 0 && (row.at == 0 || time.Since(info.EventTime) > v.opts.MaxAge):
		status = Stale
		if v.opts.Stale == StaleServes {
			break
		}
		kept := *info
		row.p, info = r.begin(j)
		*info = kept
		for _, i := range plan.features {
			row.states[i] = Absent
		}
		if v.opts.Stale == StaleFails {
			info.Err = ErrStale
		}
	}
	features := plan.features
	if row.whole && v.plain && status != Stale {
		features = nil
	}
	for _, i := range features {
		f := &v.schema.features[i]
		if row.states[i] == Set && v.opts.NaN != NaNKeeps && f.isNaN(row.p) {
			if v.opts.NaN == NaNFails {
				t.broken(request, j, f.corrupt())
				return nil
			}
			row.states[i] = Null
			f.zero(row.p)
		}
		if row.states[i] == Set {
			f.setState(row.p, Set)
			continue
		}
		row.states[i] = f.blank(row.p, row.states[i])
		if status == Found {
			status = Partial
		}
	}
	if status == Missing {
		t.missing = append(t.missing, miss{request, j})
	}
	info.Status = status
	t.counts[request].add(status)
	r.end(j, row.states)
	return nil
}

// values returns what a hash has in the fields of a plan.
func (t *trip) values(reply *rueidis.RedisResult, offset int, plan *plan, r *row) ([]value, error) {
	if !t.dumps {
		all, err := reply.ToArray()
		if err == nil && len(all) < offset+len(plan.fields) {
			err = ErrCorrupt
		}
		if err != nil {
			return nil, err
		}
		return r.take(all[offset : offset+len(plan.fields)]), nil
	}
	payload, err := reply.ToString()
	switch {
	case rueidis.IsRedisNil(err):
		r.values = slices.Grow(r.values[:0], len(plan.fields))[:len(plan.fields)]
		clear(r.values)
		return r.values, nil
	case err != nil && reply.NonRedisError() != nil:
		return nil, err
	case err != nil || !plan.undump(payload, r):
		t.anew = true
	}
	return r.values, nil
}

// broken tells a row why it cannot be read.
func (t *trip) broken(request, j int, err error) {
	r := t.requests[request]
	v, plan, _ := r.of()
	p, info := r.begin(j)
	*info = Info{Status: Broken, Version: t.versions[request], Err: err}
	row := v.row(p)
	defer v.rows.Put(row)
	for _, i := range plan.features {
		row.states[i] = v.schema.features[i].blank(p, Absent)
	}
	t.counts[request].add(Broken)
	r.end(j, row.states)
}

// row returns a row to decode into p, or to encode from it.
func (v *view) row(p unsafe.Pointer) *row {
	r := v.rows.Get().(*row)
	r.p, r.at, r.found, r.whole, r.lent, r.marks, r.nulls = p, 0, false, false, false, "", ""
	return r
}
