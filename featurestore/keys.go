package featurestore

import (
	"fmt"
	"slices"
	"strings"
	"unsafe"

	"github.com/redispatterns/redispatterns/internal/key"
)

// keys makes the names of a view's keys.
type keys struct {
	prefix, view  string
	before, after string // of the template
	template      bool
	shared        bool // with other views
	feast         *FeastOptions
	entity        entityType
}

// control is the key of what is known about the view itself. No entity's key is like it: those have a brace behind the prefix,
// or a name of a view.
func (k *keys) control() string {
	if k.feast != nil {
		return key.Tagged(k.prefix+":@", k.feast.Project+"/"+k.view, "")
	}
	return key.Tagged(k.prefix+":@", k.view, "")
}

// start is what the keys of all rows of a version begin with.
func (k *keys) start(version string) string {
	switch {
	case version != "":
		return k.prefix + ":" + k.view + "@" + version + ":{"
	case k.template:
		return k.before
	case k.shared:
		return k.prefix + ":{"
	}
	return k.prefix + ":" + k.view + ":{"
}

// appendRow appends the key of an entity's row, "" being the version of rows outside versions.
func (k *keys) appendRow(dst []byte, version string, p unsafe.Pointer) ([]byte, error) {
	switch {
	case k.feast != nil:
		return k.entity.appendFeast(dst, k.feast.KeyVersion, k.feast.Project, p)
	case version == "" && k.template:
		return append(k.entity.appendText(append(dst, k.before...), p), k.after...), nil
	case version == "" && k.shared:
		dst = append(append(dst, k.prefix...), ":{"...)
	case version == "":
		dst = append(append(append(append(dst, k.prefix...), ':'), k.view...), ":{"...)
	default:
		dst = append(append(append(append(append(append(dst, k.prefix...), ':'), k.view...), '@'), version...), ":{"...)
	}
	i := len(dst)
	dst = k.entity.appendText(dst, p)
	if len(dst) == i || dst[i] == '}' || dst[i] == '%' { // as in key.Tagged
		dst = slices.Insert(dst, i, '%')
	}
	return append(dst, '}'), nil
}

// own reports whether a row of a version has its hash to itself.
func (k *keys) own(version string) bool {
	return version != "" || k.feast == nil && !k.template && !k.shared
}

// parseRow is the inverse of appendRow. p points to a zero key.
func (k *keys) parseRow(s, version string, p unsafe.Pointer) error {
	if k.feast != nil {
		return k.entity.parseFeast(s, k.feast.KeyVersion, k.feast.Project, p)
	}
	whole := s
	s, begins := strings.CutPrefix(s, k.start(version))
	after := "}"
	if version == "" && k.template {
		after = k.after
	} else {
		s = strings.TrimPrefix(s, "%")
	}
	s, ends := strings.CutSuffix(s, after)
	if !begins || !ends {
		return errNotAKey
	}
	if err := k.entity.parseText(s, p); err != nil {
		return err
	}
	if back, err := k.appendRow(nil, version, p); err != nil || string(back) != whole { // as "007" is not 7
		return errNotAKey
	}
	return nil
}

// pattern matches the keys of all rows of a version, and maybe others: see parseRow.
func (k *keys) pattern(version string) string {
	if k.feast != nil {
		return "*" + globEscape.Replace(k.feast.Project)
	}
	return globEscape.Replace(k.start(version)) + "*"
}

var globEscape = strings.NewReplacer(`*`, `\*`, `?`, `\?`, `[`, `\[`, `]`, `\]`, `\`, `\\`, `^`, `\^`)

func newKeys(view string, o *Options, entity entityType) (keys, error) {
	k := keys{prefix: o.Prefix, view: view, entity: entity, shared: o.Share}
	if o.Codec == Feast {
		k.feast = &o.Feast
		return k, k.entity.checkFeast(o.Feast.JoinKey)
	}
	if o.Key == "" {
		return k, nil
	}
	var ok bool
	k.template = true
	k.before, k.after, ok = strings.Cut(o.Key, "%v")
	if !ok || strings.Contains(k.after, "%v") {
		return k, fmt.Errorf("Options.Key must have one %%v in it, got %q", o.Key)
	}
	// Else an entity could be named such that its key is that of a version, or the view's own.
	if own := k.prefix + ":"; strings.HasPrefix(k.before, own) || strings.HasPrefix(own, k.before) {
		return k, fmt.Errorf("Options.Key must begin otherwise than Options.Prefix, %q, got %q", k.prefix, o.Key)
	}
	return k, nil
}

// owns reports whether a key is that of a row of a version.
func (k *keys) owns(key, version string) bool {
	return k.parseRow(key, version, k.entity.scratch()) == nil
}
