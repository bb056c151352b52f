package featurestore

import (
	"testing"
	"unsafe"

	"github.com/stretchr/testify/require"
)

// wide is a row of mixed features, as models have them.
type wide struct {
	F00 int64   `feature:"orders_count_last_7_days_00"`
	F01 float64 `feature:"basket_value_average_01"`
	F02 float64 `feature:"conversion_rate_30_days_02"`
	F03 bool    `feature:"is_active_subscriber_03"`
	F04 string  `feature:"preferred_channel_name_04"`
	F05 int64   `feature:"returns_count_last_90d_05"`
	F06 float64 `feature:"session_length_average_06"`
	F07 int64   `feature:"orders_count_last_7_days_07"`
	F08 float64 `feature:"basket_value_average_08"`
	F09 float64 `feature:"conversion_rate_30_days_09"`
	F10 bool    `feature:"is_active_subscriber_10"`
	F11 string  `feature:"preferred_channel_name_11"`
	F12 int64   `feature:"returns_count_last_90d_12"`
	F13 float64 `feature:"session_length_average_13"`
	F14 int64   `feature:"orders_count_last_7_days_14"`
	F15 float64 `feature:"basket_value_average_15"`
	F16 float64 `feature:"conversion_rate_30_days_16"`
	F17 bool    `feature:"is_active_subscriber_17"`
	F18 string  `feature:"preferred_channel_name_18"`
	F19 int64   `feature:"returns_count_last_90d_19"`
	F20 float64 `feature:"session_length_average_20"`
	F21 int64   `feature:"orders_count_last_7_days_21"`
	F22 float64 `feature:"basket_value_average_22"`
	F23 float64 `feature:"conversion_rate_30_days_23"`
	F24 bool    `feature:"is_active_subscriber_24"`
	F25 string  `feature:"preferred_channel_name_25"`
	F26 int64   `feature:"returns_count_last_90d_26"`
	F27 float64 `feature:"session_length_average_27"`
	F28 int64   `feature:"orders_count_last_7_days_28"`
	F29 float64 `feature:"basket_value_average_29"`
	F30 float64 `feature:"conversion_rate_30_days_30"`
	F31 bool    `feature:"is_active_subscriber_31"`
	F32 string  `feature:"preferred_channel_name_32"`
	F33 int64   `feature:"returns_count_last_90d_33"`
	F34 float64 `feature:"session_length_average_34"`
	F35 int64   `feature:"orders_count_last_7_days_35"`
	F36 float64 `feature:"basket_value_average_36"`
	F37 float64 `feature:"conversion_rate_30_days_37"`
	F38 bool    `feature:"is_active_subscriber_38"`
	F39 string  `feature:"preferred_channel_name_39"`
	F40 int64   `feature:"returns_count_last_90d_40"`
	F41 float64 `feature:"session_length_average_41"`
	F42 int64   `feature:"orders_count_last_7_days_42"`
	F43 float64 `feature:"basket_value_average_43"`
	F44 float64 `feature:"conversion_rate_30_days_44"`
	F45 bool    `feature:"is_active_subscriber_45"`
	F46 string  `feature:"preferred_channel_name_46"`
	F47 int64   `feature:"returns_count_last_90d_47"`
	F48 float64 `feature:"session_length_average_48"`
	F49 int64   `feature:"orders_count_last_7_days_49"`
}

// What a packed row costs beyond its reply: the memory that its texts share.
func TestPacked_DecodesWithOneAllocation(t *testing.T) {
	v := testView[wide](t, Packed, "view")
	h := hash{}
	writeTo(t, h, v, wide{F04: "some", F11: "text", F01: 1.5}, 1)
	reply := h.read(v.plan.fields)
	require.Greater(t, len(h), 2)
	var rows [1]Row[wide]
	one := part[string, wide]{p: &v.Projection, keys: []string{"k"}, rows: rows[:]}
	allocs := 100.0
	for range 100 { // under the race detector pools forget at random
		allocs = min(allocs, testing.AllocsPerRun(1, func() {
			p, _ := one.begin(0)
			r := v.v.row(p)
			if err := v.v.codec.decode(v.plan.features, reply, r); err != nil {
				t.Error(err)
			}
			v.v.rows.Put(r)
		}))
	}
	require.LessOrEqual(t, allocs, 1.0)
	require.Equal(t, "text", rows[0].Value.F11)
}

func BenchmarkDecode(b *testing.B) {
	for _, c := range codecs {
		b.Run(c.String(), func(b *testing.B) {
			v := testView[wide](b, c, "view")
			h := hash{}
			value := wide{F00: 1000, F01: 1.2345678, F02: .33333, F04: "email", F05: 77, F06: 123.456}
			writeTo(b, h, v, value, 1)
			reply := h.read(v.plan.fields)
			b.ReportAllocs()
			for b.Loop() {
				value = wide{}
				r := v.v.row(unsafe.Pointer(&value))
				if err := v.v.codec.decode(v.plan.features, reply, r); err != nil {
					b.Fatal(err)
				}
				v.v.rows.Put(r)
			}
		})
	}
}
