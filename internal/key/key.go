// Package key makes key names whose hash tag is an id of the user.
package key

import (
	"fmt"
	"strings"
)

// Tagged returns before, id in braces, and after. In a cluster all keys with the same id share a slot, and where before
// has no braces, keys of different ids are different. Redis hashes what is between the first "{" of a key and the next
// "}", and the whole key if that is nothing, so an id that would leave nothing there is marked with "%".
func Tagged(before, id, after string) string { return before + open(id) + id + "}" + after }

// AppendTagged appends Tagged(before, id, "") to b.
func AppendTagged(b []byte, before, id string) []byte {
	return append(append(append(append(b, before...), open(id)...), id...), '}')
}

func open(id string) string {
	if id == "" || id[0] == '}' || id[0] == '%' {
		return "{%"
	}
	return "{"
}

// CheckPrefix returns an error if prefix cannot come before a tag.
func CheckPrefix(prefix string) error {
	if prefix == "" || strings.ContainsAny(prefix, "{}") {
		return fmt.Errorf("prefix must not be empty or contain braces, got %q", prefix)
	}
	return nil
}
