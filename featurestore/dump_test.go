package featurestore

import (
	"encoding/binary"
	"encoding/hex"
	"math/bits"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// What Redis makes of it, servers tell: see the tests of loads.
func TestDump_IsWhatRedisMakes(t *testing.T) {
	t.Parallel()
	require.Equal(t, uint64(0xe9c6d914c4b8d9ca), dumpCRC(dumpTables(), []byte("123456789")), "as in Redis' crc64.c")
	got, ok := dump([]string{"f", "v"})
	require.True(t, ok)
	require.Equal(t, "\x10\x80\x00\x00\x00\x0d\x0d\x00\x00\x00\x02\x00\x81f\x02\x81v\x02\xff\x0a\x00", got[:len(got)-8])
	long := strings.Repeat("x", maxDumped)
	got, ok = dump([]string{"f", long})
	require.True(t, ok)
	require.Contains(t, got, "\xe0\x40"+long+"\x42\xff")
	_, ok = dump([]string{"f", long + "x"})
	require.False(t, ok)
	most := make([]string, 2*maxPairs)
	got, ok = dump(most)
	require.True(t, ok)
	require.Equal(t, most, undump(t, got))
	_, ok = dump(append(most, "f", "v"))
	require.False(t, ok)
}

// undump reads a payload as Redis' rdb.c and listpack.c do, bit by bit and byte by byte.
func dump(pairs []string) (payload string, ok bool) {
	d := startDump(nil)
	for _, s := range pairs {
		d.add(s)
	}
	return d.end()
}

func undump(t *testing.T, payload string) (entries []string) {
	t.Helper()
	b := []byte(payload)
	require.Greater(t, len(b), 1+5+6+1+10)
	body, end := b[:len(b)-8], binary.LittleEndian.Uint64(b[len(b)-8:])
	crc := uint64(0)
	for _, c := range body {
		crc ^= uint64(c)
		for range 8 {
			odd := crc & 1
			if crc >>= 1; odd != 0 {
				crc ^= bits.Reverse64(0xad93d23594c935a9)
			}
		}
	}
	require.Equal(t, crc, end)
	require.LessOrEqual(t, binary.LittleEndian.Uint16(body[len(body)-2:]), uint16(10), "the version of Redis 7.0")
	require.Equal(t, []byte{16, 0x80}, body[:2])
	pack := body[6 : len(body)-2]
	require.Equal(t, uint32(len(pack)), binary.BigEndian.Uint32(body[2:]))
	require.Equal(t, uint32(len(pack)), binary.LittleEndian.Uint32(pack))
	count := int(binary.LittleEndian.Uint16(pack[4:]))
	require.Less(t, count, 1<<16-1, "which means that nobody has counted")
	pack = pack[6:]
	for pack[0] != 0xff {
		head, n := 1, 0
		switch {
		case pack[0]&0xc0 == 0x80:
			n = int(pack[0] & 0x3f)
		case pack[0]&0xf0 == 0xe0:
			head, n = 2, int(pack[0]&0x0f)<<8|int(pack[1])
		default:
			require.Fail(t, "neither a short nor a longer string", "%x", pack[0])
		}
		entries = append(entries, string(pack[head:head+n]))
		require.LessOrEqual(t, head+n, 127, "the way back would take more bytes")
		require.Equal(t, byte(head+n), pack[head+n], "the way back")
		pack = pack[head+n+1:]
	}
	require.Len(t, pack, 1)
	require.Len(t, entries, count)
	return entries
}

// redisDump is what Redis 7.0 and Redis 8 make of dumpedFields, in hexadecimal: compressed, and numbers in each way that
// they can be.
const redisDump = "10c340eb417110710100003000826630030001826631037f20050a3203c0800282663303dfff2006023403cf4006033503d000200d0c3603f1001003" +
	"82663703f1ff7f20070038200f008020070f3903f2008000048366313004f2ffff7f4009053104f20000804009023204f32009010005201e033304f3" +
	"ff201f400a00344015010080400a023504f4400a20030100092024023604f420244000007f400e0037601d40000080400e0538048330303740570b39" +
	"0480018366323004e04078e0360000422047033104bf79e03500004020451d320483610062040c01926e616d6520697320616e20696e746567657213" +
	"ff0c00af22f5b49bb70b9a"

var dumpedFields = []string{
	"0", "127", "128", "-1", "4095", "-4096", "4096", "32767", "-32768", "32768", "8388607", "-8388608", "8388608", "2147483647", "-2147483648",
	"2147483648", "9223372036854775807", "-9223372036854775808", "007", "", strings.Repeat("x", 64), strings.Repeat("y", 63), "a\x00b",
}

// dumpPlan reads the fields f0, f1 … and one that there is not, in this order or backwards.
func dumpPlan(n int, backwards bool) *plan {
	p := &plan{fields: []string{"none"}, dumped: map[string]int{}}
	for i := range n {
		p.fields = append(p.fields, "f"+strconv.Itoa(i))
	}
	if backwards {
		slices.Reverse(p.fields)
	}
	for i, name := range p.fields {
		p.dumped[name] = i
	}
	return p
}

func TestUndump_WhatRedisMakes(t *testing.T) {
	t.Parallel()
	payload, err := hex.DecodeString(redisDump)
	require.NoError(t, err)
	for _, backwards := range []bool{false, true} {
		p, r := dumpPlan(len(dumpedFields), backwards), &row{}
		require.True(t, p.undump(string(payload), r))
		want := []value{{}}
		for _, text := range dumpedFields {
			want = append(want, value{text, true})
		}
		if backwards {
			slices.Reverse(want)
		}
		require.Equal(t, want, r.values)
		for n := range payload {
			require.False(t, p.undump(string(payload[:n]), r), "cut off at %d", n)
		}
	}
	p := dumpPlan(1, false)
	for _, c := range []struct {
		text string
		ok   bool
	}{{strings.Repeat("x", dumpOthers-1), true}, {strings.Repeat("x", dumpOthers), false}} {
		pack := binary.LittleEndian.AppendUint32([]byte("\x00\x00\x00\x00\x00\x00\x81g\x02\xf0"), uint32(len(c.text)))
		pack = append(append(pack, c.text...), "--\xff"...) // what is not asked for, but carried
		payload := binary.BigEndian.AppendUint32([]byte{dumpHash, 0x80}, uint32(len(pack)))
		require.Equal(t, c.ok, p.undump(string(payload)+string(pack)+"0123456789", &row{}))
	}
	require.False(t, p.undump("\x00\x05value0123456789", &row{}), "no hash")
}

func FuzzUndump(f *testing.F) {
	payload, err := hex.DecodeString(redisDump)
	require.NoError(f, err)
	f.Add(payload)
	flat, _ := dump([]string{"f0", "1", "f1", "x"})
	f.Add([]byte(flat))
	p := dumpPlan(len(dumpedFields), false)
	r := &row{}
	f.Fuzz(func(t *testing.T, b []byte) {
		if p.undump(string(b), r) {
			require.Len(t, r.values, len(p.fields))
		}
		require.LessOrEqual(t, cap(r.pack), 200*len(b)+1<<12, "memory that the payload cannot be worth")
		r.pack = nil
	})
}

func FuzzDump(f *testing.F) {
	for _, s := range []string{
		"", "a\n", "f\n\n", "a\n0\nb\n-0\nc\n007\nd\n-32768\ne\n32768\nf\n9223372036854775807\ng\n-9223372036854775808", "\x00\n\x00\xff",
		strings.Repeat("x", 63) + "\n" + strings.Repeat("y", 64), strings.Repeat("x", 65) + "\n1", strings.Repeat("1\n", 255), strings.Repeat("\n", 257),
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		pairs := strings.Split(s, "\n")
		fits := len(pairs) <= 2*128
		for _, one := range pairs {
			fits = fits && len(one) <= 64
		}
		got, ok := dump(pairs)
		require.Equal(t, fits, ok)
		if !ok {
			return
		}
		require.Equal(t, pairs, undump(t, got))
		if len(pairs)%2 == 0 {
			e := encoded{payload: got}
			e.undump(nil)
			require.Equal(t, pairs, e.set)
		}
	})
}
