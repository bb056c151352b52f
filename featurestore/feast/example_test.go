package feast_test

import (
	"fmt"

	"github.com/redispatterns/redispatterns/featurestore/feast"
)

func Example() {
	key, err := feast.AppendKey(nil, feast.KeyV3, "my_project", feast.Join{Name: "driver_id", Value: feast.Value{Type: feast.Int64, Int: 1001}})
	fmt.Printf("%q %v\n", key, err)
	fmt.Printf("%q\n", feast.Field("driver_hourly_stats", "avg_daily_trips"))
	v, err := feast.ParseValue("\x20\xe9\x07")
	fmt.Println(v.Type == feast.Int64, v.Int, err)
	// Output:
	// "\x01\x00\x00\x00\x02\x00\x00\x00\t\x00\x00\x00driver_id\x04\x00\x00\x00\b\x00\x00\x00\xe9\x03\x00\x00\x00\x00\x00\x00my_project" <nil>
	// "\x18\xa5\xe5\xa3"
	// true 1001 <nil>
}
