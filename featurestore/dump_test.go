package featurestore

import (
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
	_, ok = dump(make([]string, 2*maxPairs+2))
	require.False(t, ok)
}
