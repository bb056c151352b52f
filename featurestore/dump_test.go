package featurestore

import (
	"encoding/binary"
	"math/bits"
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
		if ok {
			require.Equal(t, pairs, undump(t, got))
		}
	})
}
