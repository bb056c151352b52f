package main

import (
	"fmt"
	"html"
	"strings"

	"github.com/redispatterns/redispatterns/timeseries"
)

const (
	perColumn = 20 // minutes
	rows      = 8
)

// bars draws the mean of each column's points.
func bars(points []timeseries.Point) string {
	var columns []float64
	var most float64
	for len(points) > 0 {
		n := min(perColumn, len(points))
		var sum int64
		for _, p := range points[:n] {
			sum += p.Value
		}
		columns = append(columns, float64(sum)/float64(n))
		most = max(most, columns[len(columns)-1])
		points = points[n:]
	}
	var b strings.Builder
	for row := rows; row > 0; row-- {
		label := ""
		if row == rows {
			label = fmt.Sprintf("%.1f", most)
		}
		line := fmt.Sprintf("%5s |", label)
		for _, v := range columns {
			if most > 0 && v/most*rows > float64(row)-0.5 {
				line += "#"
			} else {
				line += " "
			}
		}
		b.WriteString(strings.TrimRight(line, " ") + "\n")
	}
	return b.String()
}

// page is the chart as a page that needs nothing else.
func page(points []timeseries.Point, summary string) string {
	const width, height = 1200, 300
	most := int64(1)
	for _, p := range points {
		most = max(most, p.Value)
	}
	var line strings.Builder
	for i, p := range points {
		fmt.Fprintf(&line, "%.1f,%.1f ", float64(i)*width/float64(len(points)), height-float64(p.Value)*height/float64(most))
	}
	summary = html.EscapeString(summary)
	return fmt.Sprintf(`<!doctype html>
<meta charset="utf-8">
<title>Hits per minute</title>
<h1 style="font: 16px sans-serif">%s</h1>
<svg xmlns="http://www.w3.org/2000/svg" viewBox="-40 -10 %d %d" role="img" aria-label="hits per minute">
<text x="-35" y="10" font-size="12">%d</text><text x="-35" y="%d" font-size="12">0</text>
<polyline fill="none" stroke="steelblue" points="%s"/>
</svg>
`, summary, width+50, height+20, most, height, strings.TrimSpace(line.String()))
}
