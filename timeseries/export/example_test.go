package export_test

import (
	"log"
	"net/http"

	"github.com/redispatterns/redispatterns/timeseries"
	"github.com/redispatterns/redispatterns/timeseries/export"
)

var store *timeseries.Store

func ExampleNew() {
	handler, err := export.New(store, export.Options{Series: export.List("hits", "errors")})
	if err != nil {
		log.Fatal(err)
	}
	http.Handle("/timeseries/", http.StripPrefix("/timeseries", handler))
}
