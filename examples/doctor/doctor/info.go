package doctor

import (
	"strconv"
	"strings"
)

// fields are what INFO says, by name.
type fields map[string]string

func parseInfo(text string) fields {
	f := fields{}
	text = strings.TrimPrefix(text, "txt:") // RESP3's format of a verbatim string
	for line := range strings.Lines(text) {
		name, value, ok := strings.Cut(strings.TrimRight(line, "\r\n"), ":")
		if ok && !strings.HasPrefix(name, "#") {
			f[name] = value
		}
	}
	return f
}

// has reports whether there is a number of that name.
func (f fields) has(name string) bool {
	_, err := strconv.ParseFloat(f[name], 64)
	return err == nil
}

// number returns 0 where there is none.
func (f fields) number(name string) float64 {
	n, err := strconv.ParseFloat(f[name], 64)
	if err != nil {
		return 0
	}
	return n
}

// part returns a number out of a field like "calls=3,usec=5", or 0.
func (f fields) part(name, part string) float64 {
	for p := range strings.SplitSeq(f[name], ",") {
		if value, ok := strings.CutPrefix(p, part+"="); ok {
			n, err := strconv.ParseFloat(value, 64)
			if err != nil {
				return 0
			}
			return n
		}
	}
	return 0
}
