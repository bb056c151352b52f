package featurestore

import (
	"fmt"
	"strings"
)

// Manifest says what a view's rows are made of. It is made to be kept beside a model, as JSON, and compared where the model
// is served.
type Manifest struct {
	View     string            `json:"view"`
	Entity   []string          `json:"entity"` // the types of the key's parts, as in "user_id string"
	Features []ManifestFeature `json:"features"`
}

// ManifestFeature is a feature of a manifest.
type ManifestFeature struct {
	Name    string  `json:"name"`
	Type    string  `json:"type"`
	Default *string `json:"default,omitempty"` // nil if there is none
}

// SkewError says in what a view differs from what is required. It matches [ErrSkew].
type SkewError struct {
	View        string
	Differences []string // such as "feature age: int32, required is int64"
}

func (e *SkewError) Error() string {
	return fmt.Sprintf("featurestore: view %s has another schema: %s", e.View, strings.Join(e.Differences, "; "))
}

// Is makes a SkewError match ErrSkew.
func (e *SkewError) Is(target error) bool { return target == ErrSkew }

// Manifest returns the projection's manifest: its features in their order.
func (p *Projection[K, T]) Manifest() Manifest {
	m := Manifest{View: p.v.name}
	for i := range p.v.keys.entity.parts {
		part := &p.v.keys.entity.parts[i]
		m.Entity = append(m.Entity, strings.TrimSpace(part.name+" "+part.kind.String()))
	}
	for _, i := range p.plan.features {
		f := &p.v.schema.features[i]
		feature := ManifestFeature{Name: f.name, Type: f.typeName()}
		if f.initial != nil {
			preset := f.preset
			feature.Default = &preset
		}
		m.Features = append(m.Features, feature)
	}
	return m
}

// Require returns a *SkewError that names all differences if the projection's manifest is not m: features that are missing or too
// many, of another type or default, or in another order.
func (p *Projection[K, T]) Require(m Manifest) error {
	have := p.Manifest()
	var differences []string
	differ := func(format string, args ...any) { differences = append(differences, fmt.Sprintf(format, args...)) }
	if have.View != m.View {
		differ("view: %s, required is %s", have.View, m.View)
	}
	if a, b := strings.Join(have.Entity, ", "), strings.Join(m.Entity, ", "); a != b {
		differ("entity: %s, required is %s", a, b)
	}
	places := map[string]int{}
	for i, f := range have.Features {
		places[f.Name] = i
	}
	required := map[string]bool{}
	last, ordered := -1, true
	for _, want := range m.Features {
		required[want.Name] = true
		i, ok := places[want.Name]
		if !ok {
			differ("feature %s: missing", want.Name)
			continue
		}
		f := have.Features[i]
		if f.Type != want.Type {
			differ("feature %s: %s, required is %s", f.Name, f.Type, want.Type)
		}
		if a, b := presetText(f.Default), presetText(want.Default); a != b {
			differ("feature %s: %s, required is %s", f.Name, a, b)
		}
		ordered = ordered && i > last
		last = i
	}
	for _, f := range have.Features {
		if !required[f.Name] {
			differ("feature %s: not required", f.Name)
		}
	}
	if !ordered {
		differ("the features are in another order")
	}
	if differences == nil {
		return nil
	}
	return &SkewError{p.v.name, differences}
}

func presetText(preset *string) string {
	if preset == nil {
		return "no default"
	}
	return fmt.Sprintf("default %q", *preset)
}
