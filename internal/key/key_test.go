package key

import (
	"testing"

	"github.com/stretchr/testify/require"
)

func TestTagged(t *testing.T) {
	for id, want := range map[string]string{
		"":     "{%}",
		"a":    "{a}",
		"}a":   "{%}a}",
		"%":    "{%%}",
		"%}a":  "{%%}a}",
		"a}b":  "{a}b}",
		"{a}b": "{{a}b}",
	} {
		require.Equal(t, "p:"+want+":l", Tagged("p:", id, ":l"), "of %q", id)
		require.Equal(t, "xp:"+want, string(AppendTagged([]byte("x"), "p:", id)), "of %q", id)
	}
}

// Two ids whose tags are alike would share what belongs to one of them.
func FuzzTagged(f *testing.F) {
	f.Add("", "%")
	f.Add("}", "%}")
	f.Fuzz(func(t *testing.T, a, b string) {
		if (a == b) != (Tagged("", a, "") == Tagged("", b, "")) {
			t.Errorf("tags of %q and %q: %q, %q", a, b, Tagged("", a, ""), Tagged("", b, ""))
		}
		if tag := Tagged("", a, ""); len(tag) < 3 || tag[1] == '}' {
			t.Errorf("nothing to hash in the tag of %q: %q", a, tag)
		}
	})
}

func TestCheckPrefix(t *testing.T) {
	require.NoError(t, CheckPrefix("app:cache"))
	for _, bad := range []string{"", "a{b", "}"} {
		require.Error(t, CheckPrefix(bad))
	}
}
