package timeseries

import (
	"encoding/binary"
	"math"
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// footer stands for the version and the checksum, which are not looked at.
const footer = "\x0c\x00\x01\x02\x03\x04\x05\x06\x07\x08"

// listpack returns one of these entries, each with its length in one byte after it.
func listpack(entries ...string) string {
	s := strings.Repeat("\x00", listpackHeader)
	for _, e := range entries {
		s += e + string([]byte{byte(len(e))})
	}
	return s + "\xff"
}

func rdbRaw(s string) string {
	return string([]byte{0x40 | byte(len(s)>>8), byte(len(s))}) + s
}

func TestDump_ReadsAllEncodings(t *testing.T) {
	t.Parallel()
	binaryOf := func(v int64, size int) string {
		var b [8]byte
		binary.LittleEndian.PutUint64(b[:], uint64(v))
		return string(b[:size])
	}
	long := strings.Repeat("x", 100)
	pack := listpack(
		"\x00", "\x7f", // 7 bits
		"\x01", "\xc0\x80", // 13 bits: 128
		"\x02", "\xdf\xff", // -1
		"\x03", "\xf1"+binaryOf(-30_000, 2), "\x04", "\xf2"+binaryOf(-8_000_000, 3), "\x05", "\xf3"+binaryOf(math.MinInt32, 4), "\x06", "\xf4"+binaryOf(math.MinInt64, 8),
		"\x07", "\x833 4", "\x08", "\xe0\x64"+long, "\x8211", "\xf4"+binaryOf(math.MaxInt64, 8),
	)
	want := map[int64]value{
		0: {n: 127}, 1: {n: 128}, 2: {n: -1}, 3: {n: -30_000}, 4: {n: -8_000_000}, 5: {n: math.MinInt32}, 6: {n: math.MinInt64},
		7: {text: "3 4", isText: true}, 8: {text: long, isText: true}, 11: {n: math.MaxInt64},
	}
	// A run of literals, then one of what was there four bytes before.
	compressed := "\xc3\x0c" + "\x40\x18" + "\x03abcd" + "\xe0\x01\x03" + "\x03abcd"
	text, rest, err := rdbString(compressed[:len(compressed)-5])
	require.Error(t, err, "%q %q", text.text, rest)
	text, _, err = rdbString("\xc3\x08\x0f" + "\x03abcd" + "\xe0\x02\x03")
	require.NoError(t, err)
	require.Equal(t, "abcdabcdabcdabc", text.text)

	table := "\x04\x03" + "\x0210" + "\xc0\xfe" + "\xc0\x05" + "\x05hello" + "\xc1\x2c\x01" + "\xc2\xff\xff\xff\xff"
	for dump, want := range map[string]map[int64]value{
		"\x10" + rdbRaw(pack): want,
		"\x10" + "\x80\x00\x00" + rdbRaw(pack)[:0] + string([]byte{byte(len(pack) >> 8), byte(len(pack))}) + pack: want,
		table: {10: {n: -2}, 5: {text: "hello", isText: true}, 300: {n: -1}},
	} {
		got := map[int64]value{}
		require.NoError(t, decodeDump(dump+footer, func(field int64, v value) { got[field] = v }))
		require.Equal(t, want, got)
		for i := range dump { // cut anywhere, it is an error
			require.ErrorIs(t, decodeDump(dump[:i]+footer, func(int64, value) {}), errDump, "%d of %d", i, len(dump))
		}
	}
	for _, bad := range []string{"", "\x16" + rdbRaw(pack), "\x10\xc0\x01", "\x10" + rdbRaw(listpack("\x81a", "\x01"))} {
		require.ErrorIs(t, decodeDump(bad+footer, func(int64, value) {}), errDump)
	}
}

func FuzzDump(f *testing.F) {
	f.Add("\x10" + rdbRaw(listpack("\x01", "\xc0\x80", "\x02", "\x833 4")) + footer)
	f.Add("\x04\x01\x0210\xc0\xfe" + footer)
	f.Add("\x10\xc3\x08\x0f\x03abcd\xe0\x02\x03" + footer)
	f.Fuzz(func(t *testing.T, dump string) {
		pairs := 0
		if err := decodeDump(dump, func(int64, value) { pairs++ }); err != nil && err != errDump { //nolint:errorlint // it is never wrapped
			t.Fatal(err)
		}
		if pairs > maxDump {
			t.Fatal(pairs)
		}
	})
}

func dense(g *registers) string {
	b := make([]byte, hllRegisters*hllBits/8+1)
	for i, v := range g {
		bit := i * hllBits
		x := uint16(v) << (bit % 8)
		b[bit/8] |= byte(x)
		b[bit/8+1] |= byte(x >> 8)
	}
	return "HYLL\x00" + strings.Repeat("\x00", 11) + string(b[:len(b)-1])
}

func TestRegisters_MergeBothEncodings(t *testing.T) {
	t.Parallel()
	r := rand.New(rand.NewPCG(1, 2))
	var want, got registers
	for range 5 {
		var g registers
		for i := range g {
			g[i] = uint8(r.IntN(hllMost + 1))
			want[i] = max(want[i], g[i])
		}
		require.NoError(t, got.merge(dense(&g)))
	}
	require.Equal(t, want, got)

	sparse := "HYLL\x01" + strings.Repeat("\x00", 11)
	var few registers
	// 64 zeros, 3 times 32, then 2 times 1, and zeros to the end.
	require.NoError(t, few.merge(sparse+"\x3f"+"\xfe"+"\x81"+"\x7f\xba"))
	for i, v := range few {
		switch {
		case i >= 64 && i < 67:
			require.EqualValues(t, 32, v)
		case i >= 67 && i < 69:
			require.EqualValues(t, 1, v)
		default:
			require.Zero(t, v, i)
		}
	}
	require.EqualValues(t, 5, few.count())
	require.Zero(t, new(registers).count())
	for _, bad := range []string{"", "HYLL", sparse, sparse + "\x7f", sparse + "\x7f\xff\x00", sparse[:4] + "\x02" + sparse[5:], dense(&want)[:12000], "HALL" + dense(&want)[4:]} {
		require.ErrorIs(t, new(registers).merge(bad), errReply)
	}
}

// TestRegisters_CountIsWithinTheBound adds random hashes as Redis does: 14 bits choose a register, which has the most zeros
// that the others ever began with, plus one.
func TestRegisters_CountIsWithinTheBound(t *testing.T) {
	t.Parallel()
	for _, n := range []int{10, 1000, 30_000, 100_000, 1_000_000} {
		r := rand.New(rand.NewPCG(3, uint64(n)))
		var g registers
		for range n {
			h := r.Uint64()
			zeros := uint8(1)
			for x := h>>14 | 1<<50; x&1 == 0; x >>= 1 {
				zeros++
			}
			g[h%hllRegisters] = max(g[h%hllRegisters], zeros)
		}
		require.InEpsilon(t, n, g.count(), 0.02)
	}
}

func FuzzRegisters(f *testing.F) {
	f.Add("HYLL\x01" + strings.Repeat("\x00", 11) + "\x7f\xff")
	f.Add(dense(new(registers)))
	f.Fuzz(func(t *testing.T, s string) {
		var g registers
		if g.merge(s) == nil {
			for _, v := range g {
				if v > hllMost {
					t.Fatal(v)
				}
			}
			g.count()
		}
	})
}
