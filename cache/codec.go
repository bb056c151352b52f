package cache

import (
	"bytes"
	"compress/flate"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"sync"
	"unsafe"
)

// Codec turns values into bytes and back. It must be safe for concurrent use.
type Codec[V any] interface {
	// Append appends the encoding of v to b and returns the extended slice. It must not keep b.
	Append(b []byte, v V) ([]byte, error)
	// Decode returns the value encoded in b. It must neither modify nor keep b: copy what the value needs.
	// An error makes the entry a miss, so that it is loaded again and replaced.
	Decode(b []byte) (V, error)
}

// JSON returns a codec that uses encoding/json. It is the default.
func JSON[V any]() Codec[V] { return jsonCodec[V]{} }

type jsonCodec[V any] struct{}

func (jsonCodec[V]) Append(b []byte, v V) ([]byte, error) {
	data, err := json.Marshal(v)
	return append(b, data...), err
}

func (jsonCodec[V]) Decode(b []byte) (v V, err error) {
	err = json.Unmarshal(b, &v)
	return v, err
}

// String returns a codec that stores the string's own bytes. Any bytes are legal.
func String() Codec[string] { return stringCodec{} }

type stringCodec struct{}

func (stringCodec) Append(b []byte, v string) ([]byte, error) { return append(b, v...), nil }
func (stringCodec) Decode(b []byte) (string, error)           { return string(b), nil }

// aliasString is stringCodec.Decode without the copy. The cache may use it on its own buffers, since it
// never writes to one that it has begun to decode; a codec wrapped around String may not be as careful.
func aliasString(b []byte) (string, error) { return unsafe.String(unsafe.SliceData(b), len(b)), nil }

// Bytes returns a codec that stores the slice's own bytes. Every decoded slice is a copy that its
// receiver may change. A nil slice comes back empty, not nil.
func Bytes() Codec[[]byte] { return bytesCodec{} }

type bytesCodec struct{}

func (bytesCodec) Append(b, v []byte) ([]byte, error)    { return append(b, v...), nil }
func (bytesCodec) Decode(b []byte) (v []byte, err error) { return append([]byte{}, b...), nil }

// Func returns a codec made of two functions, such as proto.Marshal and its reverse. decode must
// neither modify nor keep its argument.
func Func[V any](encode func(V) ([]byte, error), decode func([]byte) (V, error)) Codec[V] {
	return funcCodec[V]{encode, decode}
}

type funcCodec[V any] struct {
	encode func(V) ([]byte, error)
	decode func([]byte) (V, error)
}

func (c funcCodec[V]) Append(b []byte, v V) ([]byte, error) {
	data, err := c.encode(v)
	return append(b, data...), err
}

func (c funcCodec[V]) Decode(b []byte) (V, error) { return c.decode(b) }

// Compress wraps a codec: encodings of at least minBytes bytes are compressed with DEFLATE (RFC 1951) at
// its fastest level and stored that way where it makes them smaller. Each encoding grows by one byte, a
// compressed one by at most ten more. Adding or removing Compress changes the encoding: change
// Options.Version with it, or the entries of the one are misses to the other. Decoding takes as much memory as
// the value that was encoded: MaxBytes bounds what is stored, not that. Whoever can write to Redis can make it 512 MiB.
func Compress[V any](c Codec[V], minBytes int) Codec[V] { return compressCodec[V]{c, minBytes} }

type compressCodec[V any] struct {
	codec    Codec[V]
	minBytes int
}

const (
	encodedPlain   = 0
	encodedDeflate = 1
	// maxInflated bounds what a damaged length may make Decode allocate. It is Redis' own bound on a string.
	maxInflated = 512 << 20
)

var errCompressed = errors.New("cache: not an encoding made by Compress")

var (
	deflaters = sync.Pool{New: func() any {
		w, _ := flate.NewWriter(nil, flate.BestSpeed) // the only error is an unknown level
		return w
	}}
	inflaters = sync.Pool{New: func() any { return flate.NewReader(bytes.NewReader(nil)) }}
)

func (c compressCodec[V]) Append(b []byte, v V) ([]byte, error) {
	start := len(b)
	b, err := c.codec.Append(append(b, encodedPlain), v)
	if err != nil || len(b)-start-1 < c.minBytes {
		return b, err
	}
	plain := b[start+1:]
	var out bytes.Buffer
	out.WriteByte(encodedDeflate)
	out.Write(binary.AppendUvarint(nil, uint64(len(plain))))
	w := deflaters.Get().(*flate.Writer)
	defer deflaters.Put(w)
	w.Reset(&out)
	if _, err := w.Write(plain); err != nil {
		return b, fmt.Errorf("cache: compress: %w", err)
	}
	if err := w.Close(); err != nil {
		return b, fmt.Errorf("cache: compress: %w", err)
	}
	if out.Len() > len(plain) {
		return b, nil
	}
	return append(b[:start], out.Bytes()...), nil
}

func (c compressCodec[V]) Decode(b []byte) (v V, err error) {
	if len(b) > 0 && b[0] == encodedPlain {
		return c.codec.Decode(b[1:])
	}
	if len(b) == 0 || b[0] != encodedDeflate {
		return v, errCompressed
	}
	size, n := binary.Uvarint(b[1:])
	if n <= 0 || size > maxInflated {
		return v, errCompressed
	}
	r := inflaters.Get().(io.ReadCloser)
	defer inflaters.Put(r)
	if err := r.(flate.Resetter).Reset(bytes.NewReader(b[1+n:]), nil); err != nil {
		return v, fmt.Errorf("cache: decompress: %w", err)
	}
	// Read one byte more than promised: a longer stream is as wrong as a shorter one. The buffer grows
	// with what is really there, so a damaged length costs nothing.
	var plain bytes.Buffer
	read, err := io.Copy(&plain, io.LimitReader(r, int64(size)+1))
	if err != nil {
		return v, fmt.Errorf("cache: decompress: %w", err)
	}
	if read != int64(size) {
		return v, errCompressed
	}
	return c.codec.Decode(plain.Bytes())
}
